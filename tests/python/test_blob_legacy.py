# SPDX-License-Identifier: Apache-2.0
"""Legacy blobs (`lance-encoding:blob`, storage 2.0 and 2.1): written, taken, compacted."""

from pathlib import Path

import lance
import pyarrow as pa
import pytest
from blob_cases import Payload, payload, same
from blob_files import check_rows, exact, payload_files
from cases import check_index_answers
from support import files, finish, fragment_rows, run_loop, unchanged
from test_blob_compact_jobs import numbered

import lance_tasks as lt

VERSIONS = ["2.0", "2.1"]
# Nulls and empty ones, and what would be inline, packed and dedicated today.
SIZES = [10, None, 0, 70_000, 4_500_000, 1]
STORED = [0, None, 0, 1, 2, 0]
FIELD = pa.field("blob", pa.large_binary(), metadata={"lance-encoding:blob": "true"})


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return request.param


def some(numbers: range) -> dict[int, Payload]:
    def one(n: int) -> Payload:
        size = SIZES[n % 6]
        return None if size is None else payload(size, n)

    return {n: one(n) for n in numbers}


def rows(payloads: dict[int, Payload], kind: pa.DataType = FIELD.type) -> pa.Table:
    schema = pa.schema([("id", pa.int64()), FIELD.with_type(kind), ("tail", pa.string())])
    columns = [list(payloads), list(payloads.values()), [f"tail-{n}" for n in payloads]]
    return pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema
    )


def make(uri: str, version: str, **options: object) -> dict[int, Payload]:
    """Three fragments of six rows."""
    payloads = some(range(18))
    options = {"max_rows_per_file": 6, "data_storage_version": version, **options}
    lt.run(lt.Write(uri, **options), data=rows(payloads))
    return payloads


def versions_of(uri: str) -> list[str]:
    found = [file for f in lance.dataset(uri).get_fragments() for file in f.data_files()]
    return [f"{file.file_major_version}.{file.file_minor_version}" for file in found]


def is_legacy(uri: str) -> bool:
    field = lance.dataset(uri).schema.field("blob")
    return field.type == pa.large_binary() and field.metadata == FIELD.metadata


def delete(uri: str, payloads: dict[int, Payload], gone: list[int]) -> None:
    lance.dataset(uri).delete(f"id in ({', '.join(map(str, gone))})")
    for n in gone:
        del payloads[n]


# Written, read and taken


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_written(kind: pa.DataType, version: str, uri: str, tmp_path: Path) -> None:
    """As pylance writes it: the schema, the descriptors, and nothing beside the data files."""
    payloads = some(range(18))
    spec = lt.Write(uri, data_storage_version=version, max_rows_per_file=6)
    if kind != FIELD.type:
        spec = lt.Write(**{**spec.__dict__, "schema": rows({}).schema})
    lt.run(spec, data=rows(payloads, kind))
    theirs = lance.write_dataset(
        rows(payloads), tmp_path / "theirs", data_storage_version=version, max_rows_per_file=6
    )
    assert is_legacy(uri) and versions_of(uri) == [version] * 3
    ours = check_rows(uri, payloads)
    assert ours.schema.equals(theirs.schema, check_metadata=True)
    assert ours.to_table().drop(["blob"]) == theirs.to_table().drop(["blob"])
    sizes = [d and d["size"] for d in ours.to_table()["blob"].to_pylist()]
    assert sizes == [d and d["size"] for d in theirs.to_table()["blob"].to_pylist()]
    assert payload_files(uri) == {}


@pytest.mark.parametrize("mode", ["append", "overwrite"])
@pytest.mark.parametrize("first", ["ours", "pylance"])
def test_written_after(first: str, mode: str, version: str, uri: str) -> None:
    payloads = some(range(18))
    if first == "ours":
        make(uri, version)
    else:
        lance.write_dataset(rows(payloads), uri, data_storage_version=version)
    more = some(range(18, 30))
    options = {} if mode == "append" else {"data_storage_version": version}
    lt.run(lt.Write(uri, mode=mode, **options), data=rows(more))
    check_rows(uri, payloads | more if mode == "append" else more)
    assert is_legacy(uri) and set(versions_of(uri)) == {version}
    lance.write_dataset(rows(some(range(30, 36))), uri, mode="append")
    check_rows(uri, (payloads if mode == "append" else {}) | more | some(range(30, 36)))


def test_taken_in_parts(version: str, uri: str) -> None:
    payloads = make(uri, version)
    indices = [4, 0, 16, 4, 2, 1, 3]
    ranges = [(4_400_000, 100_000), (3, 4), (0, 9), None, (0, 0), (5, 5), (69_999, 1)]
    spec = lt.TakeBlobs(uri, column="blob", indices=indices, ranges=ranges)
    found = pa.table(lt.read(spec))["blob"].to_pylist()

    def part(data: Payload, cut: tuple[int, int] | None) -> Payload:
        return data if data is None or cut is None else data[cut[0] : cut[0] + cut[1]]

    wanted = [part(payloads[n], cut) for n, cut in zip(indices, ranges, strict=True)]
    same(found, wanted)


# Compacted


@pytest.mark.parametrize("stable", [False, True], ids=["addresses", "stable"])
@pytest.mark.parametrize("gone", [[], [0, 4, 7, 8, 9, 15]], ids=len)
def test_compacted(gone: list[int], stable: bool, version: str, uri: str) -> None:
    payloads = make(uri, version, enable_stable_row_ids=stable)
    if gone:
        delete(uri, payloads, gone)
    run_loop(lt.Compact(uri))
    (fragment,) = lance.dataset(uri).get_fragments()
    assert (fragment.physical_rows, fragment.num_deletions) == (len(payloads), 0)
    check_rows(uri, payloads)
    assert is_legacy(uri) and versions_of(uri) == [version]
    lt.run(lt.Cleanup(uri, older_than=0))
    exact(uri)
    check_rows(uri, payloads)


def test_compacted_in_several_tasks(version: str, uri: str) -> None:
    payloads = make(uri, version, max_rows_per_file=2)
    lance.dataset(uri).create_scalar_index("id", "BTREE")
    delete(uri, payloads, [0, 5, 9])
    job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=4))
    results = finish(job)
    assert len(results) > 1
    lt.commit(job, results)
    dataset = check_rows(uri, payloads)
    check_index_answers(dataset, "id", ["id = 7", "id < 6", "id in (5, 16)"])


def test_abort_of_a_compaction(version: str, uri: str) -> None:
    payloads = make(uri, version)
    for to in (version, "2.2"):
        with unchanged(uri):
            job = lt.prepare(lt.Compact(uri, data_storage_version=to))
            results = finish(job)
            made = {f["path"] for result in results for f in result.to_dict()["files"]}
            assert any(path.endswith(".blob") for path in made) == (to == "2.2")
            assert made <= files(uri).keys()
            lt.abort(job, results)
    check_rows(uri, payloads)


# Migrated


@pytest.mark.parametrize("stable", [False, True], ids=["addresses", "stable"])
def test_migrated(stable: bool, version: str, uri: str) -> None:
    """Every payload is stored as its size asks for, and older versions stay what they were."""
    before = make(uri, version, enable_stable_row_ids=stable)
    payloads = dict(before)
    delete(uri, payloads, [0, 8, 9])
    run_loop(lt.Compact(uri, data_storage_version="2.2"))
    assert versions_of(uri) == ["2.2"] * len(versions_of(uri)) and fragment_rows(uri) == [15]
    dataset = check_rows(uri, payloads)
    assert dataset.schema.field("blob").type.extension_name == "lance.blob.v2"
    kinds = [d and d["kind"] for d in dataset.to_table(columns=["blob"])["blob"].to_pylist()]
    assert kinds == [STORED[n % 6] for n in payloads]
    check_rows(uri, before, version=1)
    lt.run(lt.Cleanup(uri, older_than=0))
    check_rows(uri, payloads)
    exact(uri)
    assert sum(payload_files(uri).values()) == sum(
        len(data) for data in payloads.values() if data and len(data) > 65_536
    )


def test_after_a_migration(version: str, uri: str) -> None:
    """Appended to, compacted again, by either side."""
    payloads = make(uri, version)
    run_loop(lt.Compact(uri, data_storage_version="2.2"))
    more = some(range(18, 24))
    lt.run(lt.Write(uri, mode="append", data_storage_version="2.2"), data=rows(more))
    payloads |= more
    assert set(versions_of(uri)) == {"2.2"}
    delete(uri, payloads, [3, 22])
    run_loop(lt.Compact(uri, data_storage_version="2.2"))
    assert fragment_rows(uri) == [22]
    check_rows(uri, payloads)
    lance.write_dataset(rows(some(range(24, 30))), uri, mode="append", data_storage_version="2.2")
    lance.dataset(uri).optimize.compact_files(data_storage_version="2.2")
    check_rows(uri, payloads | some(range(24, 30)))
    lt.run(lt.Cleanup(uri, older_than=0))
    exact(uri)


@pytest.mark.parametrize("writer", ["ours", "pylance"])
def test_appended_at_a_newer_version(writer: str, version: str, uri: str) -> None:
    """The dataset has blobs of both kinds, which all read; a compaction makes them one."""
    payloads = make(uri, version)
    more = some(range(18, 30))
    if writer == "ours":
        lt.run(lt.Write(uri, mode="append", data_storage_version="2.2"), data=rows(more))
    else:
        lance.write_dataset(rows(more), uri, mode="append", data_storage_version="2.2")
    payloads |= more
    assert versions_of(uri) == [version] * 3 + ["2.2"]
    dataset = check_rows(uri, payloads)
    assert dataset.schema.field("blob").type.extension_name == "lance.blob.v2"
    delete(uri, payloads, [1, 2, 20])
    check_rows(uri, payloads)
    exact(uri)
    run_loop(lt.Compact(uri, data_storage_version="2.2"))
    assert set(versions_of(uri)) == {"2.2"} and fragment_rows(uri) == [27]
    check_rows(uri, payloads)
    lt.run(lt.Cleanup(uri, older_than=0))
    exact(uri)
    check_rows(uri, payloads)


def test_legacy_as_a_source(version: str, uri: str, tmp_path: Path) -> None:
    """Copied into a new dataset, the rows are blobs of today."""
    payloads = make(uri, version)
    copy = str(tmp_path / "copy.lance")
    lt.run(lt.Write(copy, sources=[uri], blob_columns=["blob"]))
    dataset = check_rows(copy, payloads)
    assert dataset.schema.field("blob").type.extension_name == "lance.blob.v2"
    assert set(versions_of(copy)) == {"2.2"}
    exact(copy)


@pytest.mark.parametrize("to", ["2.1", "2.2"])
def test_payloads_larger_than_the_budget(to: str, uri: str) -> None:
    """Lance compacts them itself, a few rows at a time."""
    size, count = 8 << 20, 12

    def batches():
        for n in range(2 * count):
            yield from rows({n: numbered(size, n)}).to_batches()

    reader = pa.RecordBatchReader.from_batches(rows({}).schema, batches())
    lt.run(lt.Write(uri, data_storage_version="2.1", max_rows_per_file=count), data=reader)
    assert is_legacy(uri) and fragment_rows(uri) == [count] * 2
    executor = lt.Executor(num_threads=2, memory_budget=64 << 20)
    lt.run(lt.Compact(uri, data_storage_version=to), executor=executor)
    assert set(versions_of(uri)) == {to} and fragment_rows(uri) == [2 * count]
    every = range(2 * count)
    spec = lt.TakeBlobs(uri, column="blob", indices=every, ranges=[(0, 8)] * len(every))
    found = pa.table(lt.read(spec))["blob"].to_pylist()
    assert found == [n.to_bytes(8, "big") for n in every]
