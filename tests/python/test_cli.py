# SPDX-License-Identifier: Apache-2.0
"""The command line over a spool folder, one process per verb."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import built_library

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    def call(*args: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [str(built_library().with_name("lance-tasks")), *map(str, args)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stderr
        return done

    return call


def prepare(cli: Cli, folder: Path, spool: str = "spool", **spec: object) -> None:
    (folder / "spec.json").write_text(json.dumps(spec))
    cli("prepare", "spec.json", "--spool", spool)


def write_source(folder: Path, rows: int = 1000) -> pa.Table:
    table = pa.table({"id": range(rows), "name": [f"row {i}" for i in range(rows)]})
    pq.write_table(table, folder / "source.parquet")
    return table


WRITE = {
    "operation": "write",
    "uri": "out.lance",
    "sources": ["source.parquet"],
    "max_rows_per_file": 100,
}


def test_every_verb_in_a_process_of_its_own(cli: Cli, tmp_path: Path) -> None:
    table = write_source(tmp_path)
    prepare(cli, tmp_path, **WRITE)
    assert json.loads(cli("plan", "spool", "--json").stdout)["tasks"] == 10
    for shard in range(3):
        cli("run", "spool", "--shard", f"{shard}/3", "--jobs", 1)
    assert "ready to commit" in cli("plan", "spool").stdout
    first = json.loads(cli("commit", "spool", "--json").stdout)
    assert (first["version"], first["rows"], first["already_committed"]) == (1, 1000, False)
    again = json.loads(cli("commit", "spool", "--json").stdout)
    assert (again["version"], again["already_committed"]) == (1, True)
    dataset = lance.dataset(tmp_path / "out.lance")
    assert dataset.to_table() == table and len(dataset.get_fragments()) == 10

    prepare(cli, tmp_path, "compaction", operation="compact", uri="out.lance")
    cli("plan", "compaction")
    cli("run", "compaction")
    outcome = json.loads(cli("commit", "compaction", "--json").stdout)
    assert outcome["metrics"]["fragments_removed"] == 10
    prepare(cli, tmp_path, "index", operation="create_index", uri="out.lance",
            column="id", index_type="btree")  # fmt: skip
    cli("plan", "index")
    cli("run", "index")
    cli("commit", "index")
    dataset = lance.dataset(tmp_path / "out.lance")
    assert dataset.to_table() == table
    assert [index["name"] for index in dataset.list_indices()] == ["id_idx"]


def test_a_lost_shard_is_run_again(cli: Cli, tmp_path: Path) -> None:
    write_source(tmp_path)
    prepare(cli, tmp_path, **WRITE)
    cli("plan", "spool")
    cli("run", "spool", "--shard", "0/2")
    refused = cli("commit", "spool", check=False)
    assert refused.returncode == 3 and "INCOMPLETE" in refused.stderr
    assert json.loads(cli("plan", "spool", "--json").stdout)["tasks"] == 5
    assert json.loads(cli("run", "spool", "--json").stdout)["tasks"] == 5
    cli("commit", "spool")
    assert lance.dataset(tmp_path / "out.lance").count_rows() == 1000


def test_abort_removes_the_files(cli: Cli, tmp_path: Path) -> None:
    write_source(tmp_path)
    prepare(cli, tmp_path, **WRITE)
    cli("plan", "spool")
    cli("run", "spool")
    assert json.loads(cli("abort", "spool", "--json").stdout)["files_removed"] == 10
    assert not (tmp_path / "out.lance").exists()
    assert cli("commit", "spool", check=False).returncode == 70


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["plan", "nowhere"], 2, ["nowhere", "no spool"]),
        (["run", "spool", "--shard", "2/2"], 2, ["2/2"]),
        (["prepare", "missing.json", "--spool", "x"], 2, ["missing.json"]),
        (["plan", "spool", "--storage-options", "spec.json"], 2, ["spec.json"]),
    ],
)
def test_bad_input(
    cli: Cli, tmp_path: Path, args: list[str], status: int, words: list[str]
) -> None:
    write_source(tmp_path)
    prepare(cli, tmp_path, **WRITE)
    refused = cli(*args, check=False)
    assert refused.returncode == status
    for word in words:
        assert word in refused.stderr


def test_errors_as_json(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"operation": "compact", "uri": "gone.lance"}')
    refused = cli("prepare", "spec.json", "--spool", "x", "--json", check=False)
    error = json.loads(refused.stdout)["error"]
    assert (error["code"], error["class"]) == ("NOT_FOUND", "invalid")
    assert "gone.lance" in error["message"]
    assert not (tmp_path / "x").exists()


def test_the_schema_is_printed(cli: Cli) -> None:
    defs = json.loads(cli("schema").stdout)["$defs"]
    assert {"spec", "job", "task", "outcome"} <= defs.keys()
