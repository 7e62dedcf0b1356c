# SPDX-License-Identifier: Apache-2.0
"""Options of a write take effect, as stock pylance sees it."""

import time
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from support import (
    assert_same,
    execute_partitions,
    files,
    finish,
    fragment_rows,
    make_dataset,
    numbers,
    read,
    write_parquet_files,
)

import lance_tasks as lt


@pytest.mark.parametrize("rows, limit, expected", [
    (100, 30, [30, 30, 30, 10]),
    (100, 50, [50, 50]),
    (100, 1, [1] * 100),
    (100, 100, [100]),
])  # fmt: skip
def test_max_rows_per_file(uri: str, rows: int, limit: int, expected: list[int]) -> None:
    lt.run(lt.Write(uri, max_rows_per_file=limit), data=numbers(rows))
    assert fragment_rows(uri) == expected
    assert_same(read(uri), numbers(rows))


@pytest.mark.parametrize(
    "asked, stored",
    [(None, "2.2"), ("stable", "2.2"), ("2.0", "2.0"), ("2.1", "2.1"), ("2.2", "2.2"),
     ("2.3", "2.3"), ("legacy", "0.1")],
)  # fmt: skip
def test_data_storage_version(uri: str, asked: str | None, stored: str) -> None:
    table = numbers(50).select(["id", "score"])
    lt.run(lt.Write(uri, data_storage_version=asked), data=table)
    dataset = lance.dataset(uri)
    judge = lance.write_dataset(table, uri + ".judge", data_storage_version=asked)
    assert dataset.data_storage_version == judge.data_storage_version == stored
    (file,) = dataset.get_fragments()[0].metadata.files
    (other,) = judge.get_fragments()[0].metadata.files
    assert file.file_major_version == other.file_major_version
    assert file.file_minor_version == other.file_minor_version
    assert_same(dataset.to_table(), table)


@pytest.mark.parametrize("version", ["2.0", "2.1", "2.2"])
def test_append_keeps_the_storage_version(uri: str, version: str) -> None:
    make_dataset(uri, data_storage_version=version)
    lt.run(lt.Write(uri, mode="append"), data=numbers(10, start=1200))
    minors = {f.metadata.files[0].file_minor_version for f in lance.dataset(uri).get_fragments()}
    assert minors == {int(version[-1])}
    assert_same(read(uri), numbers(1210))


def test_overwrite_with_another_storage_version(uri: str) -> None:
    make_dataset(uri, data_storage_version="2.0")
    lt.run(lt.Write(uri, mode="overwrite", data_storage_version="2.1"), data=numbers(10))
    assert lance.dataset(uri).data_storage_version == "2.1"
    assert_same(read(uri), numbers(10))


def row_ids(dataset) -> dict[int, int]:
    """The row id of each id."""
    table = dataset.to_table(columns=["id"], with_row_id=True)
    return dict(zip(table["id"].to_pylist(), table["_rowid"].to_pylist(), strict=True))


@pytest.mark.parametrize("enabled", [True, False, None])
def test_stable_row_ids(uri: str, enabled: bool | None) -> None:
    lt.run(lt.Write(uri, enable_stable_row_ids=enabled, max_rows_per_file=100), data=numbers(1200))
    dataset = lance.dataset(uri)
    assert dataset.has_stable_row_ids == bool(enabled)
    lt.run(lt.Write(uri, mode="append"), data=numbers(10, start=1200))
    dataset = lance.dataset(uri)
    ids = dataset.to_table(columns=["id"], with_row_id=True)
    if enabled:
        assert ids["_rowid"].to_pylist() == list(range(1210))
    dataset.delete("id % 2 = 0")
    before = row_ids(dataset)
    lt.run(lt.Compact(uri))
    dataset = lance.dataset(uri)
    assert dataset.has_stable_row_ids == bool(enabled)
    after = row_ids(dataset)
    assert (after == before) == bool(enabled)
    if enabled:
        assert dataset._take_rows([5, 7, 1201])["id"].to_pylist() == [5, 7, 1201]


@pytest.mark.parametrize("enabled", [True, False, None])
def test_v2_manifest_paths(uri: str, enabled: bool | None) -> None:
    lt.run(lt.Write(uri, enable_v2_manifest_paths=enabled), data=numbers(10))
    lt.run(lt.Write(uri, mode="append"), data=numbers(10, start=10))
    names = {path.name for path in Path(uri, "_versions").glob("*.manifest")}
    if enabled is False:
        assert names == {"1.manifest", "2.manifest"}
    else:
        assert names == {f"{2**64 - 1 - version}.manifest" for version in (1, 2)}
    assert_same(read(uri), numbers(20))


def test_auto_cleanup(uri: str) -> None:
    cleanup = lt.AutoCleanup(interval=2, older_than_seconds=3600)
    lt.run(lt.Write(uri, auto_cleanup=cleanup), data=numbers(10))
    config = lance.dataset(uri).config()
    assert config["lance.auto_cleanup.interval"] == "2"
    assert config["lance.auto_cleanup.older_than"] in ("3600s", "1h", "1hour")
    lt.run(lt.Write(uri + "2"), data=numbers(10))
    assert lance.dataset(uri + "2").config() == {}


@pytest.mark.parametrize("skip", [True, None])
def test_skip_auto_cleanup(uri: str, skip: bool | None) -> None:
    options = {"interval": 1, "older_than_seconds": 0}
    lance.write_dataset(numbers(10), uri, auto_cleanup_options=options)
    time.sleep(0.01)
    for i in range(2):
        spec = lt.Write(uri, mode="append", skip_auto_cleanup=skip)
        lt.run(spec, data=numbers(10, start=10 * (i + 1)))
    versions = [entry["version"] for entry in lance.dataset(uri).versions()]
    assert versions[-1] == 3
    assert (versions == [1, 2, 3]) == bool(skip)
    assert_same(read(uri), numbers(30))


def bases_of(folder: Path) -> list[dict]:
    for name in ("one", "two"):
        (folder / name).mkdir()
    return [
        {"id": 1, "name": "one", "path": str(folder / "one"), "is_dataset_root": True},
        {"id": 2, "name": "two", "path": str(folder / "two"), "is_dataset_root": False},
    ]


def placed(folder: Path, uri: str) -> dict[str, int]:
    """How many data files each place holds."""
    return {
        "one": len(list(folder.glob("one/data/*.lance"))),
        "two": len(list(folder.glob("two/*.lance"))),
        "own": len(list(Path(uri).glob("data/*.lance"))),
    }


@pytest.mark.parametrize("by_source", [False, True])
@pytest.mark.parametrize(
    "targets, expected",
    [
        ({"target_bases": ["two"]}, {"one": 0, "two": 6, "own": 0}),
        ({"target_bases": ["one", "two"]}, {"one": 3, "two": 3, "own": 0}),
        ({"target_all_bases": False}, {"one": 3, "two": 3, "own": 0}),
        ({"target_all_bases": True}, {"one": 2, "two": 2, "own": 2}),
        ({}, {"one": 0, "two": 0, "own": 6}),
    ],
    ids=str,
)
def test_bases(
    tmp_path: Path, sources: Path, uri: str, targets: dict, expected: dict, by_source: bool
) -> None:
    options = {"initial_bases": bases_of(tmp_path), "max_rows_per_file": 20} | targets
    if by_source:
        paths = write_parquet_files(sources, numbers(120), 1)
        options |= {"sources": paths, "max_rows_per_task": 120}
        lt.run(lt.Write(uri, **options))
    else:
        lt.run(lt.Write(uri, **options), data=numbers(120))
    assert placed(tmp_path, uri) == expected
    dataset = lance.dataset(uri)
    assert {(b.id, b.name, b.is_dataset_root) for b in dataset.base_paths().values()} == {
        (1, "one", True),
        (2, "two", False),
    }
    assert_same(dataset.to_table(), numbers(120))


def test_append_to_a_base(tmp_path: Path, uri: str) -> None:
    lt.run(lt.Write(uri, initial_bases=bases_of(tmp_path)), data=numbers(20))
    job = lt.prepare(lt.Write(uri, mode="append", target_bases=["one"]), schema=numbers(0).schema)
    results = execute_partitions(job, {"0": numbers(20, start=20)})
    assert [file["base"] for result in results for file in result.to_dict()["files"]] == [1]
    assert placed(tmp_path, uri) == {"one": 1, "two": 0, "own": 1}
    lt.commit(job, results)
    assert_same(read(uri), numbers(40))


def test_abort_cleans_bases(tmp_path: Path, uri: str) -> None:
    spec = lt.Write(
        uri, initial_bases=bases_of(tmp_path), target_all_bases=True, max_rows_per_file=10
    )
    job = lt.prepare(spec, schema=numbers(0).schema)
    results = execute_partitions(job, {"0": numbers(60)})
    assert placed(tmp_path, uri) == {"one": 2, "two": 2, "own": 2}
    report = lt.abort(job, results)
    assert report.files_removed == 6
    assert placed(tmp_path, uri) == {"one": 0, "two": 0, "own": 0}


@pytest.mark.parametrize("operation", ["create", "append", "overwrite", "compact", "create_index"])
def test_transaction_properties(uri: str, operation: str) -> None:
    properties = {"team": "data", "ticket": "ä-17"}
    if operation != "create":
        make_dataset(uri)
    spec = {
        "compact": lambda: lt.Compact(uri, transaction_properties=properties),
        "create_index": lambda: lt.CreateIndex(
            uri, column="id", index_type="BTREE", transaction_properties=properties
        ),
    }.get(operation, lambda: lt.Write(uri, mode=operation, transaction_properties=properties))()
    writes = operation in ("create", "append", "overwrite")
    outcome = lt.run(spec, data=numbers(5) if writes else None)
    transaction = lance.dataset(uri).read_transaction(outcome.version)
    found = transaction.transaction_properties
    assert {key: found.get(key) for key in properties} == properties


def test_spec_has_all_of_its_options(uri: str) -> None:
    """A dataclass and its JSON say the same."""
    spec = lt.Write(
        uri,
        mode="create",
        max_rows_per_file=10,
        enable_stable_row_ids=True,
        auto_cleanup=lt.AutoCleanup(interval=3, older_than_seconds=60),
        transaction_properties={"a": "b"},
    )
    one = lt.prepare(spec, schema=numbers(0).schema)
    two = lt.prepare(spec.to_json(), schema=numbers(0).schema)
    assert one.id != two.id
    assert one.to_json().replace(one.id, two.id) == two.to_json()


def test_overwrite_keeps_what_the_dataset_is(uri: str) -> None:
    """Config, tags and earlier versions stay; rows and schema are replaced."""
    dataset = make_dataset(uri, enable_stable_row_ids=True)
    dataset.update_config({"owner": "me"})
    dataset.tags.create("before", 1)
    lt.run(lt.Write(uri, mode="overwrite"), data=pa.table({"other": ["x"]}))
    dataset = lance.dataset(uri)
    assert dataset.config() == {"owner": "me"}
    assert dataset.to_table().to_pylist() == [{"other": "x"}]
    assert_same(read(uri, version="before"), numbers(1200))


def test_paths_that_are_unusual(tmp_path: Path) -> None:
    for name in ["with space", "ümlaut", "per%20cent", "hash#tag", "q?mark", "a+b"]:
        path = tmp_path / name / "d.lance"
        path.parent.mkdir()
        lt.run(lt.Write(path, max_rows_per_file=50), data=numbers(120))
        assert path.is_dir(), f"{name}: {list(tmp_path.iterdir())}"
        assert_same(read(str(path)), numbers(120))
        lt.run(lt.Compact(path))
        lt.run(lt.CreateIndex(path, column="id", index_type="BTREE"))
        assert_same(read(str(path)), numbers(120))


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs hold absolute paths: tasks run anywhere."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_parquet_files(tmp_path / "here", numbers(100), 2)
    job = lt.prepare(lt.Write("d.lance", sources=["part-*.parquet"]))
    assert job.uri == str(tmp_path / "here" / "d.lance")
    monkeypatch.chdir(tmp_path / "there")
    lt.commit(job, finish(job))
    assert files(tmp_path / "there") == {}
    assert_same(read(str(tmp_path / "here" / "d.lance")), numbers(100))


def test_file_uri(tmp_path: Path) -> None:
    lt.run(lt.Write(f"file://{tmp_path}/d.lance"), data=numbers(10))
    assert_same(read(str(tmp_path / "d.lance")), numbers(10))
