# SPDX-License-Identifier: Apache-2.0
"""Shorthands: an operation from spec to commit in one process, resumable with a spool."""

import base64
import json
import signal
import time
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.csv
import pytest
from cli_support import Cli, end, files_of, wait_for, write_big_source, write_source


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def test_write_compact_index(cli: Cli, tmp_path: Path) -> None:
    table = write_source(tmp_path)
    write = ["write", "source.parquet", "--to", "d.lance", "--max-rows-per-file", "100"]
    assert cli.json(*write)["rows"] == 1000
    # Lance's own spelling is taken as well, and a number as people write it.
    cli(*write[:-2], "--mode=append", "--max_rows_per_file", "2_50")
    assert len(lance.dataset(tmp_path / "d.lance").get_fragments()) == 14
    cli(*write, "--mode", "overwrite")
    dataset = lance.dataset(tmp_path / "d.lance")
    assert dataset.to_table() == table and dataset.version == 3

    outcome = cli.json("compact", "d.lance", "--target-rows-per-fragment", "500")
    assert outcome["metrics"]["fragments_removed"] == 10
    index = ["index", "d.lance", "--column", "id", "--type", "btree"]
    cli(*index, "--num-segments", "2")
    assert cli.error(*index, status=2)["code"] == "ALREADY_EXISTS"
    cli(*index, "--replace", "--name", "id_idx")
    cli(*index, "--replace=false", "--name", "second", "--set", "params.zone_size=256")
    dataset = lance.dataset(tmp_path / "d.lance")
    assert dataset.to_table() == table
    names = sorted(index.name for index in dataset.describe_indices())
    assert names == ["id_idx", "second"]
    assert "ScalarIndexQuery" in dataset.scanner(filter="id = 7").explain_plan()


def test_options_by_flag_spec_and_set(cli: Cli, tmp_path: Path) -> None:
    """The same spec three ways: --set goes over flags, flags over --spec."""
    table = write_source(tmp_path)
    spec = {"mode": "create", "max_rows_per_file": 7, "max_rows_per_task": 500}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    cli(
        *["write", "source.parquet", "--to", "d.lance", "--spec", "spec.json"],
        *["--max-rows-per-file", "50", "--set", "max_rows_per_file=125"],
        *["--enable-stable-row-ids", "--data-storage-version", "2.1"],
        *["--transaction-properties", "who=me", "--transaction-properties", "why=a=b"],
    )
    dataset = lance.dataset(tmp_path / "d.lance")
    assert dataset.to_table() == table and len(dataset.get_fragments()) == 8
    assert dataset.has_stable_row_ids and dataset.data_storage_version == "2.1"
    properties = dataset.read_transaction(1).transaction_properties
    assert (properties["who"], properties["why"]) == ("me", "a=b")

    whole = {"operation": "compact", "uri": str(tmp_path / "d.lance")}
    (tmp_path / "compact.json").write_text(json.dumps(whole))
    outcome = cli.json("compact", "--spec", "compact.json", "--excluded-fragment-ids", "0,1,2")
    assert outcome["metrics"]["fragments_removed"] == 5


def test_options_of_sources(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1;x\n2;NIL\n")
    (tmp_path / "b.txt").write_text("3;z\n")
    schema = pa.schema({"id": pa.int64(), "name": pa.string()})
    cli(
        *["write", "a.txt", "b.txt", "--to", "d.lance", "--source-format", "csv"],
        *["--source-delimiter", ";", "--source-has-header=false", "--source_null_value", "NIL"],
        *["--set", f"schema={base64.b64encode(schema.serialize()).decode()}"],
        status=0,
    )
    rows = lance.dataset(tmp_path / "d.lance").to_table().to_pylist()
    assert [tuple(row.values()) for row in rows] == [(1, "x"), (2, None), (3, "z")]


def test_a_failed_write_leaves_nothing(cli: Cli, tmp_path: Path) -> None:
    """The first file is written before the second turns out to be wrong."""
    write_source(tmp_path, rows=100, name="a.parquet")
    pa.csv.write_csv(pa.table({"id": range(100), "name": ["x"] * 100}), tmp_path / "b.csv")
    with (tmp_path / "b.csv").open("a") as file:
        file.writelines(f"{i},y\n" for i in range(100_000))
        file.write("no number,z\n")
    answer = cli.json("write", "a.parquet", "b.csv", "--to", "d.lance", "--jobs", 1, status=2)
    assert answer["error"]["class"] == "invalid" and "b.csv" in answer["error"]["message"]
    assert answer["tasks"] == 1 and answer["aborted"]["files_removed"] == 1
    assert files_of(tmp_path / "d.lance") == []


def test_a_signal_leaves_nothing(cli: Cli, tmp_path: Path) -> None:
    write_big_source(tmp_path)
    write = ["write", "big.parquet", "--to", "d.lance", "--max-rows-per-file", "20000"]
    writing = cli.start(*write, "--jobs", 1, "--json")
    wait_for(tmp_path, "d.lance/data/*.lance", writing)
    status, out, _ = end(writing, signal.SIGTERM)
    error = json.loads(out)["error"]
    assert (status, error["class"]) == (75, "retry_task") and "SIGTERM" in error["message"]
    assert files_of(tmp_path / "d.lance") == []


def test_a_killed_write_with_a_spool_goes_on(cli: Cli, tmp_path: Path) -> None:
    rows = write_big_source(tmp_path)
    write = ["write", "big.parquet", "--to", "d.lance", "--max-rows-per-file", "20000"]
    write += ["--spool", "spool"]
    writing = cli.start(*write, "--jobs", 1)
    wait_for(tmp_path, "spool/results/*.ok.*", writing)
    assert end(writing, signal.SIGKILL)[0] == -signal.SIGKILL
    before = cli.json("inspect", "spool")
    assert 0 < before["stages"][0]["done"] < 150
    outcome = cli.json(*write)
    assert outcome["rows"] == rows and outcome["job_id"] == before["job_id"]
    assert cli.json("inspect", "spool")["attempts"]["ok"] == 150
    ids = lance.dataset(tmp_path / "d.lance").to_table(columns=["id"])["id"].to_numpy()
    assert len(ids) == rows and (ids[1:] > ids[:-1]).all()
    # Once more: it is committed already, and nothing is written.
    assert cli.json(*write)["already_committed"] is True
    assert lance.dataset(tmp_path / "d.lance").version == 1


def test_a_spool_of_other_work_is_refused(cli: Cli, tmp_path: Path) -> None:
    write_source(tmp_path)
    write = ["write", "source.parquet", "--spool", "spool"]
    cli(*write, "--to", "d.lance", "--max-rows-per-file", "100")
    error = cli.error(*write, "--to", "e.lance", "--max-rows-per-file", "200", status=2)
    assert error["code"] == "ALREADY_EXISTS"
    for word in ["spool", "uri:", "d.lance", "e.lance", "max_rows_per_file:", "100", "200"]:
        assert word in error["message"]
    assert not (tmp_path / "e.lance").exists()
    # The same work said otherwise, from another folder, is the same work.
    (tmp_path / "sub").mkdir()
    again = Cli(tmp_path / "sub").json(
        *["write", "../sub/../source.parquet", "--to", str(tmp_path / "d.lance")],
        *["--spool", "../spool", "--set", "max_rows_per_file=100"],
        *["--set", f"sources={json.dumps([str(tmp_path / 'source.parquet')])}"],
    )
    assert again["already_committed"] is True


def test_a_failure_with_a_spool_keeps_the_job(cli: Cli, tmp_path: Path) -> None:
    write_source(tmp_path)
    (tmp_path / "d.lance").mkdir()
    obstacle = tmp_path / "d.lance" / "data"
    obstacle.write_text("in the way")
    write = ["write", "source.parquet", "--to", "d.lance", "--spool", "spool"]
    answer = cli.json(*write, "--retries", 0, status=75)
    assert "aborted" not in answer and "run again" in answer["error"]["hint"]
    assert cli.json("inspect", "spool")["state"] == "open"
    obstacle.unlink()
    assert cli.json(*write)["rows"] == 1000


def test_a_conflict_is_aborted(cli: Cli, tmp_path: Path) -> None:
    """The dataset is overwritten while this one is written: exit code 4, and no file stays."""
    write_big_source(tmp_path)
    lance.write_dataset(pa.table({"id": [1], "value": [0.5]}), tmp_path / "d.lance")
    before = files_of(tmp_path / "d.lance" / "data")
    write = ["write", "big.parquet", "--to", "d.lance", "--max-rows-per-file", "20000"]
    writing = cli.start(*write, "--mode", "overwrite", "--json", "--jobs", 1)
    while files_of(tmp_path / "d.lance" / "data") == before:
        assert writing.poll() is None
        time.sleep(0.002)
    writing.send_signal(signal.SIGSTOP)
    lance.write_dataset(pa.table({"id": [2], "value": [1.5]}), tmp_path / "d.lance", mode="append")
    writing.send_signal(signal.SIGCONT)
    out, err = writing.communicate(timeout=120)
    assert writing.returncode == 4, err
    assert json.loads(out)["error"]["class"] == "conflict"
    assert json.loads(out)["aborted"]["files_removed"] == 150
    assert lance.dataset(tmp_path / "d.lance").to_table()["id"].to_pylist() == [1, 2]
    assert len(files_of(tmp_path / "d.lance" / "data")) == len(before) + 1
