# SPDX-License-Identifier: Apache-2.0
"""The command line's verbs over a spool folder, one process per verb."""

import json
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from cli_support import Cli, write_source


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


WRITE = {
    "operation": "write",
    "uri": "out.lance",
    "sources": ["source.parquet"],
    "max_rows_per_file": 100,
}


def test_every_verb_in_a_process_of_its_own(cli: Cli, tmp_path: Path) -> None:
    table = write_source(tmp_path)
    prepared = cli.prepare(**WRITE)
    assert (prepared["operation"], prepared["read_version"]) == ("write", 0)
    assert cli.json("plan", "spool")["tasks"] == 10
    for shard in range(3):
        cli("run", "spool", "--shard", f"{shard}/3", "--jobs", 1)
    assert "ready to commit" in cli("plan", "spool").stdout
    first = cli.json("commit", "spool")
    assert (first["version"], first["rows"], first["already_committed"]) == (1, 1000, False)
    again = cli.json("commit", "spool")
    assert (again["version"], again["already_committed"]) == (1, True)
    dataset = lance.dataset(tmp_path / "out.lance")
    assert dataset.to_table() == table and len(dataset.get_fragments()) == 10

    cli.prepare("compaction", operation="compact", uri="out.lance")
    cli("plan", "compaction")
    cli("run", "compaction")
    assert cli.json("commit", "compaction")["metrics"]["fragments_removed"] == 10
    cli.prepare("index", operation="create_index", uri="out.lance", column="id", index_type="btree")
    cli("plan", "index")
    cli("run", "index")
    cli("commit", "index")
    dataset = lance.dataset(tmp_path / "out.lance")
    assert dataset.to_table() == table
    assert [index["name"] for index in dataset.list_indices()] == ["id_idx"]


def test_a_lost_shard_is_run_again(cli: Cli, tmp_path: Path) -> None:
    write_source(tmp_path)
    cli.prepare(**WRITE)
    cli("plan", "spool")
    ran = cli.json("run", "spool", "--shard", "0/2")
    assert (ran["tasks"], ran["open_elsewhere"], ran["ready_to_commit"]) == (5, 5, False)
    assert cli.error("commit", "spool", status=3)["code"] == "INCOMPLETE"
    assert cli.json("plan", "spool")["tasks"] == 5
    ran = cli.json("run", "spool")
    assert (ran["tasks"], ran["rows"], ran["ready_to_commit"]) == (5, 500, True)
    cli("commit", "spool")
    assert lance.dataset(tmp_path / "out.lance").count_rows() == 1000


def test_run_plans_by_itself_once(cli: Cli, tmp_path: Path) -> None:
    """All shards may start at once on a spool without tasks; each task is run by one of them."""
    write_source(tmp_path)
    cli.prepare(**WRITE)
    shards = [cli.start("run", "spool", "--shard", f"{i}/4", "--json") for i in range(4)]
    ran = []
    for shard in shards:
        out, err = shard.communicate()
        assert shard.returncode == 0, err
        ran.append(json.loads(out)["tasks"])
    assert ran == [3, 3, 2, 2]
    assert cli.json("inspect", "spool")["attempts"] == {"ok": 10, "failed": 0}
    cli("commit", "spool")
    assert lance.dataset(tmp_path / "out.lance").count_rows() == 1000


def test_results_of_many_small_tasks_share_files(cli: Cli, tmp_path: Path) -> None:
    write_source(tmp_path, rows=2000)
    cli.prepare(**WRITE | {"max_rows_per_file": 2})
    assert cli.json("run", "spool")["tasks"] == 1000
    assert len(list((tmp_path / "spool" / "results").iterdir())) < 200
    assert len(list((tmp_path / "spool" / "tasks").iterdir())) == 2
    assert cli.json("run", "spool")["tasks"] == 0
    cli("commit", "spool")
    assert lance.dataset(tmp_path / "out.lance").to_table()["id"].to_pylist() == list(range(2000))


def test_two_attempts_at_every_task_are_one_commit(cli: Cli, tmp_path: Path) -> None:
    """The same tasks run by two processes that know nothing of each other."""
    table = write_source(tmp_path)
    cli.prepare(**WRITE)
    cli("plan", "spool")
    other = tmp_path / "other"
    other.mkdir()
    for part in ["job.json", "tasks/0.arrow"]:
        (other / part).parent.mkdir(exist_ok=True)
        (other / part).write_bytes((tmp_path / "spool" / part).read_bytes())
    cli("run", "spool")
    cli("run", "other")
    for result in (other / "results").iterdir():
        result.rename(tmp_path / "spool" / "results" / result.name)
    assert cli.json("inspect", "spool")["attempts"] == {"ok": 20, "failed": 0}
    cli("commit", "spool")
    assert lance.dataset(tmp_path / "out.lance").to_table() == table


def test_prepare_does_not_overwrite_a_spool(cli: Cli, tmp_path: Path) -> None:
    write_source(tmp_path)
    job = cli.prepare(**WRITE)["job_id"]
    error = cli.error("prepare", "spec.json", "--spool", "spool", status=2)
    assert error["code"] == "ALREADY_EXISTS" and "spool" in error["message"]
    assert cli.json("inspect", "spool")["job_id"] == job


def test_many_prepare_one_spool_and_one_wins(cli: Cli, tmp_path: Path) -> None:
    write_source(tmp_path)
    (tmp_path / "spec.json").write_text(json.dumps(WRITE))
    racers = [cli.start("prepare", "spec.json", "--spool", "spool", "--json") for _ in range(4)]
    outputs = [(racer.communicate()[0], racer.returncode) for racer in racers]
    assert sorted(status for _, status in outputs) == [0, 2, 2, 2]
    (winner,) = [json.loads(out)["job_id"] for out, status in outputs if status == 0]
    assert cli.json("inspect", "spool")["job_id"] == winner


def test_the_spec_may_come_from_standard_input_and_be_changed(cli: Cli, tmp_path: Path) -> None:
    table = write_source(tmp_path)
    spec = json.dumps(WRITE)
    settings = ["--set", "max-rows-per-file=250", "--set", "uri=b.lance"]
    cli("prepare", "-", "--spool", "spool", *settings, stdin=spec)
    cli("run", "spool")
    cli("commit", "spool")
    dataset = lance.dataset(tmp_path / "b.lance")
    assert dataset.to_table() == table and len(dataset.get_fragments()) == 4


def test_abort_removes_the_files_and_ends_the_spool(cli: Cli, tmp_path: Path) -> None:
    write_source(tmp_path)
    cli.prepare(**WRITE)
    cli("run", "spool")
    assert cli.json("abort", "spool")["files_removed"] == 10
    assert not (tmp_path / "out.lance").exists()
    assert cli.json("inspect", "spool")["state"] == "aborted"
    for verb in ["plan", "run"]:
        error = cli.error(verb, "spool", status=2)
        assert error["code"] == "INVALID_STATE" and "aborted" in error["message"]
    assert cli.error("commit", "spool", status=70)["code"] == "VERIFICATION"


def test_abort_keeps_what_is_committed(cli: Cli, tmp_path: Path) -> None:
    table = write_source(tmp_path)
    cli.prepare(**WRITE)
    cli("run", "spool")
    cli("commit", "spool")
    assert cli.json("abort", "spool")["files_removed"] == 0
    assert lance.dataset(tmp_path / "out.lance").to_table() == table
    assert cli.json("commit", "spool")["already_committed"] is True


def test_a_partial_commit(cli: Cli, tmp_path: Path) -> None:
    table = pa.table({"id": range(1000)})
    lance.write_dataset(table, tmp_path / "d.lance", max_rows_per_file=10)
    cli.prepare(operation="compact", uri="d.lance", target_rows_per_fragment=100)
    cli("run", "spool", "--shard", "0/2")
    assert cli.json("commit", "spool", "--partial")["complete"] is False
    assert cli.json("inspect", "spool")["state"] == "committed in part"
    cli("run", "spool")
    assert cli.json("commit", "spool")["complete"] is True
    dataset = lance.dataset(tmp_path / "d.lance")
    assert dataset.to_table().sort_by("id") == table and len(dataset.get_fragments()) == 10


def test_the_schema_is_printed(cli: Cli) -> None:
    defs = json.loads(cli("schema").stdout)["$defs"]
    assert {"spec", "job", "task", "outcome"} <= defs.keys()
    assert cli.json("schema")["$defs"] == defs
