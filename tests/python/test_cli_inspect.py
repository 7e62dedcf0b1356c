# SPDX-License-Identifier: Apache-2.0
"""inspect: a dataset's shape as pylance knows it, for people and as JSON."""

from pathlib import Path

import lance
import pyarrow as pa
import pytest
from cli_support import Cli, write_source


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture
def dataset(tmp_path: Path) -> lance.LanceDataset:
    """Fragments of 100 rows with deletions, an index over most of them, a tag, a configuration."""
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("at", pa.struct([pa.field("x", pa.float64()), pa.field("y", pa.float32())])),
            pa.field("tags", pa.list_(pa.string())),
            pa.field("vector", pa.list_(pa.float32(), 4)),
        ]
    )

    def rows(start: int, count: int) -> pa.Table:
        ids = range(start, start + count)
        columns = [
            list(ids),
            [{"x": 0.5, "y": 1.0} for _ in ids],
            [["a"] for _ in ids],
            [[0.0, 1.0, 2.0, 3.0] for _ in ids],
        ]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
        return pa.table(arrays, schema=schema)

    uri = tmp_path / "d.lance"
    dataset = lance.write_dataset(rows(0, 800), uri, max_rows_per_file=100)
    dataset.create_scalar_index("id", "BTREE")
    dataset.tags.create("indexed", dataset.version)
    dataset = lance.write_dataset(rows(800, 200), uri, mode="append", max_rows_per_file=200)
    dataset.delete("id < 30 or id = 150")
    dataset.update_config({"lance.compaction.target_rows_per_fragment": "200"})
    return lance.dataset(uri)


def test_a_dataset_as_json(cli: Cli, dataset: lance.LanceDataset) -> None:
    shape = cli.json("inspect", "d.lance", "--fragments", "--versions")
    assert shape["version"] == shape["latest_version"] == dataset.version
    assert shape["uri"].endswith("/d.lance")
    assert shape["data_storage_version"] == dataset.data_storage_version
    assert shape["stable_row_ids"] is dataset.has_stable_row_ids
    assert (shape["rows"], shape["deleted_rows"]) == (dataset.count_rows(), 31)

    files = [file for fragment in dataset.get_fragments() for file in fragment.data_files()]
    on_disk = sum((Path(dataset.uri) / "data" / file.path).stat().st_size for file in files)
    assert (shape["bytes"], shape["data_files"]) == (on_disk, len(files))
    listed = {f["id"]: (f["rows"], f["deleted_rows"]) for f in shape["fragment_list"]}
    assert listed == {
        f.fragment_id: (f.count_rows(), f.physical_rows - f.count_rows())
        for f in dataset.get_fragments()
    }
    fragments = shape["fragments"]
    assert (fragments["count"], fragments["with_deletions"]) == (9, 2)
    assert fragments["rows"] == {"min": 70, "median": 100, "max": 200}
    # The dataset's own configuration: eight fragments are below 200 rows.
    assert fragments["compactable"]["fragments"] == 8
    assert fragments["compactable"]["rows"] == 769

    columns = {column["name"]: column for column in shape["schema"]}
    assert [c["name"] for c in shape["schema"]] == dataset.schema.names
    assert (columns["id"]["type"], columns["id"]["nullable"]) == ("Int64", False)
    assert [f["name"] for f in columns["at"]["fields"]] == ["x", "y"]
    assert columns["at"]["fields"][1]["type"] == "Float32"
    assert "4 x" in columns["vector"]["type"]

    (index,) = shape["indexes"]
    (described,) = dataset.describe_indices()
    assert (index["name"], index["columns"]) == (described.name, ["id"])
    assert index["type"].upper() == "BTREE"
    coverage = index["coverage"]
    assert (coverage["fragments"], coverage["rows"], coverage["unindexed_rows"]) == (8, 769, 200)
    assert coverage["percent"] == pytest.approx(100 * 769 / 969)
    assert len(index["segments"]) == 1 and index["bytes"] > 0

    assert shape["tags"] == {"indexed": 2}
    assert shape["config"]["lance.compaction.target_rows_per_fragment"] == "200"
    versions = {v["version"]: v for v in shape["versions"]}
    assert sorted(versions) == [v["version"] for v in dataset.versions()]
    assert (versions[2]["operation"], versions[2]["tags"]) == ("CreateIndex", ["indexed"])
    assert (versions[3]["operation"], versions[3]["rows"]) == ("Append", 1000)


def test_a_dataset_for_people(cli: Cli, dataset: lance.LanceDataset) -> None:
    text = cli("inspect", "d.lance").stdout
    for line in [
        f"version {dataset.version} of ",
        "969 rows, 31 more rows deleted",
        "9 fragments, 2 with deletions",
        "70 min, 100 median, 200 max",
        "would take 8 fragments with 769 rows",
        "not null",
        "79.4% of rows in 8 fragments, 200 rows unindexed",
        "lance.compaction.target_rows_per_fragment  200",
    ]:
        assert line in text, text
    assert "CreateIndex" not in text
    assert "CreateIndex" in cli("inspect", "d.lance", "--versions").stdout
    assert text.count("fragments\n") == 0
    assert "30 deleted" in cli("inspect", "d.lance", "--fragments").stdout


@pytest.mark.parametrize("at", ["indexed", "2"])
def test_an_older_version(cli: Cli, dataset: lance.LanceDataset, at: str) -> None:
    shape = cli.json("inspect", "d.lance", "--at", at)
    assert (shape["version"], shape["latest_version"]) == (2, dataset.version)
    assert (shape["rows"], shape["indexes"][0]["coverage"]["percent"]) == (800, 100.0)


@pytest.mark.parametrize("at", ["77", "no-such-tag"])
def test_a_version_that_is_not_there(cli: Cli, dataset: lance.LanceDataset, at: str) -> None:
    error = cli.error("inspect", "d.lance", "--at", at, status=2)
    assert error["code"] == "NOT_FOUND" and at in error["message"]


@pytest.mark.parametrize("version", ["legacy", "2.0"])
def test_older_formats_and_an_empty_dataset(cli: Cli, tmp_path: Path, version: str) -> None:
    table = pa.table({"id": pa.array([], pa.int64())})
    uri = tmp_path / "d.lance"
    lance.write_dataset(table, uri, data_storage_version=version)
    assert cli.json("inspect", "d.lance")["rows"] == 0
    assert "0 fragments" in cli("inspect", "d.lance").stdout
    lance.write_dataset(pa.table({"id": range(10)}), uri, mode="append")
    assert cli.json("inspect", "d.lance")["rows"] == 10


def test_a_spool(cli: Cli, tmp_path: Path) -> None:
    write_source(tmp_path)
    job = cli.prepare(
        operation="write", uri="out.lance", sources=["source.parquet"], max_rows_per_file=100
    )
    states = []

    def look() -> dict:
        value = cli.json("inspect", "spool")
        states.append(value["state"])
        return value

    value = look()
    assert (value["job_id"], value["operation"], value["read_version"]) == (
        job["job_id"],
        "write",
        0,
    )
    assert value["spec"]["max_rows_per_file"] == 100 and value["stages"] == []
    cli("plan", "spool")
    look()
    cli("run", "spool", "--shard", "0/5")
    (stage,) = look()["stages"]
    assert (stage["planned"], stage["done"], stage["failed"], stage["open"]) == (10, 2, 0, 8)
    assert stage["estimated_rows"] == 1000
    listed = cli.json("inspect", "spool", "--tasks")
    assert listed["stages"][0]["open_tasks"] == [1, 2, 3, 4, 6, 7, 8, 9]
    assert (listed["rows"], listed["hosts"]) == (200, 1)
    assert listed["bytes_written"] == sum(
        file.stat().st_size for file in (tmp_path / "out.lance" / "data").iterdir()
    )
    assert "2 of 10 tasks done, 8 open (tasks 1, 2, 3" in cli("inspect", "spool").stdout
    cli("run", "spool")
    look()
    cli("commit", "spool")
    assert look()["outcome"]["version"] == 1
    assert states == ["prepared", "open", "open", "ready to commit", "committed"]
