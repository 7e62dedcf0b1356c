# SPDX-License-Identifier: Apache-2.0
"""Rows that share one payload within a data file: by `ref_id`, or by their bytes."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blob_cases import (
    binary,
    blobs_of,
    check,
    data_bytes,
    descriptors,
    exact_files,
    kinds,
    listed,
    opened,
    payload,
    same,
    table,
    write,
)
from support import files, unchanged

import lance_tasks as lt

SIZES = {"500 B": 500, "32 KB": 32_768, "1 MB": 1_000_000, "6 MB": 6_000_000}


def places(uri: str, column: str = "blob") -> list[tuple[int, int] | None]:
    """Where the payloads of packed and dedicated rows begin."""
    return [
        None if d is None or not d["blob_id"] else (d["blob_id"], d["position"])
        for d in descriptors(opened(uri), column)
    ]


def shared(data: bytes, rows: int, ref_id: int | None = 1) -> list[lt.Blob]:
    return [lt.Blob(data, ref_id=ref_id) for _ in range(rows)]


def with_ids(payloads: list[bytes | None], ids: list[object], kind: pa.DataType) -> pa.Table:
    """Plain bytes, and a column of ref_ids."""
    return binary(payloads).append_column("shot", pa.array(ids, kind))


NAMED = lt.BlobColumn("blob", ref_id="shot")


# By ref_id


@pytest.mark.parametrize(
    ("size", "by"),
    # By content, payloads below 1 KiB are not shared.
    [
        pytest.param(size, by, id=f"{name}-{by}")
        for name, size in SIZES.items()
        for by in ("child", "column", "content")
        if by != "content" or size >= 1024
    ],
)
def test_payload_is_stored_once(size: int, by: str, uri: str) -> None:
    """20 rows take what one takes: at most a twentieth more."""
    data = payload(size)
    if by == "column":
        write(uri, with_ids([data] * 20, [7] * 20, pa.int64()), blob_columns=[NAMED])
    else:
        rows = shared(data, 20, ref_id=7 if by == "child" else None)
        write(uri, table(rows), dedup="content" if by == "content" else None)
    check(uri, [data] * 20)
    exact_files(uri)
    payloads = sum(s for path, s in listed(uri).items() if path.endswith(".blob"))
    assert payloads == size
    # The data file of rows without payloads is what the other columns and the descriptors take.
    write(f"{uri}.bare", table([lt.Blob(b"")] * 20))
    assert data_bytes(uri) - data_bytes(f"{uri}.bare") <= 1.05 * size + 300
    if size > 20_000:
        assert data_bytes(uri) <= 1.05 * size + data_bytes(f"{uri}.bare")
    assert len(set(places(uri))) == 1 and None not in places(uri)


def test_payloads_of_several_ids(uri: str) -> None:
    """In any order, over several batches and slices, beside rows of their own."""
    distinct = [payload((300, 40_000, 500_000)[n % 3], n) for n in range(12)]
    ids = [(n * 7) % 12 + 1 for n in range(120)]
    rows = [lt.Blob(distinct[i - 1], ref_id=i) for i in ids]
    data = table(rows)
    batches = data.to_batches(max_chunksize=11)
    write(uri, pa.RecordBatchReader.from_batches(data.schema, batches))
    check(uri, [distinct[i - 1] for i in ids])
    exact_files(uri)
    assert len(set(places(uri))) == 12
    payloads = sum(s for path, s in listed(uri).items() if path.endswith(".blob"))
    assert payloads == sum(map(len, distinct))


def test_once_per_data_file(uri: str) -> None:
    """Each file has the payloads of its own rows."""
    data = payload(100_000)
    write(uri, table(shared(data, 20)), max_rows_per_file=5)
    check(uri, [data] * 20)
    exact_files(uri)
    sidecars = [s for path, s in listed(uri).items() if path.endswith(".blob")]
    assert sidecars == [100_000] * 4


@pytest.mark.parametrize("none", [0, None])
def test_ids_that_share_nothing(none: int | None, uri: str) -> None:
    data = payload(100_000)
    write(uri, table(shared(data, 5, ref_id=none)))
    check(uri, [data] * 5)
    assert len(set(places(uri))) == 5
    exact_files(uri)
    # Bytes may differ.
    rows = [lt.Blob(payload(3000, n), ref_id=none) for n in range(5)]
    write(uri, table(rows), mode="overwrite")
    check(uri, [payload(3000, n) for n in range(5)])


def test_ids_of_one_row_each(uri: str) -> None:
    rows = [payload(3000, n) for n in range(10)]
    write(uri, table([lt.Blob(data, ref_id=n + 1) for n, data in enumerate(rows)]))
    check(uri, rows)
    exact_files(uri)


@pytest.mark.parametrize("ref_id", [1, 2**32, 2**63, 2**64 - 1])
def test_large_ids(ref_id: int, uri: str) -> None:
    data = payload(3000)
    write(uri, table(shared(data, 3, ref_id=ref_id)))
    check(uri, [data] * 3)
    assert len(set(places(uri))) == 1


def test_nulls_and_empty_values_under_an_id(uri: str) -> None:
    """A null has no payload to share, whatever its id; empty bytes need none."""
    data = payload(3000)
    ids = [5, 5, 5, 5, 6, 6]
    payloads = [data, None, data, None, b"", b""]
    write(uri, with_ids(payloads, ids, pa.int32()), blob_columns=[NAMED])
    check(uri, payloads)
    assert kinds(opened(uri)) == ["packed", None, "packed", None, "inline", "inline"]
    exact_files(uri)


@pytest.mark.parametrize(
    "kind",
    [pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()],
    ids=str,
)
def test_column_of_ids(kind: pa.DataType, uri: str) -> None:
    """Of any integer type; it is stored as it is."""
    data, other = payload(5000, "a"), payload(70_000, "b")
    payloads = [data, other, data, None, other, data, b""]
    ids = [1, 2, 1, None, 2, 0, None]
    write(uri, with_ids(payloads, ids, kind), blob_columns=[NAMED])
    dataset = check(uri, payloads)
    at = places(uri)
    assert at[0] == at[2] and at[1] == at[4] and at[5] not in (at[0], None)[:1]
    assert kinds(dataset)[5] == "inline"
    assert dataset.to_table(columns=["shot"])["shot"].to_pylist() == ids
    assert dataset.schema.field("shot").type == kind
    exact_files(uri)


def test_column_of_ids_in_files(sources: Path, uri: str) -> None:
    data = payload(5000)
    rows = with_ids([data] * 30, [1 + n // 10 for n in range(30)], pa.int64())
    pq.write_table(rows, sources / "rows.parquet", row_group_size=4)
    write(uri, None, sources=[str(sources)], blob_columns=[NAMED])
    check(uri, [data] * 30)
    assert len(set(places(uri))) == 3
    exact_files(uri)


def test_column_of_ids_for_an_append(uri: str) -> None:
    """Each write says which column has the ids."""
    data = payload(5000)
    rows = with_ids([data] * 4, [1] * 4, pa.int64())
    write(uri, rows, blob_columns=[NAMED])
    write(uri, rows, mode="append", blob_columns=[NAMED])
    same(blobs_of(opened(uri)), [data] * 8)
    exact_files(uri)
    assert [s for path, s in listed(uri).items() if path.endswith(".blob")] == [5000] * 2


@pytest.mark.parametrize(
    ("column", "why"),
    [
        (lt.BlobColumn("blob", ref_id="missing"), '"missing" of "blob".*no such column'),
        (lt.BlobColumn("blob", ref_id="tail"), '"tail" of "blob".*integers'),
        (lt.BlobColumn("blob", ref_id="blob"), '"blob" of "blob".*integers'),
        (lt.BlobColumn("blob", ref_id="score"), '"score" of "blob".*integers'),
    ],
    ids=str,
)
def test_columns_that_are_no_ids(column: lt.BlobColumn, why: str, uri: str) -> None:
    data = binary([b"x"]).append_column("score", pa.array([1.0]))
    with pytest.raises(lt.InvalidArgumentError, match=why):
        write(uri, data, blob_columns=[column])
    assert files(uri) == {}


def test_column_of_ids_for_nested_blobs_is_refused(uri: str) -> None:
    data = pa.table({"docs": pa.array([[b"x"]], pa.list_(pa.binary())), "shot": [1]})
    with pytest.raises(lt.InvalidArgumentError, match=r'"shot" of "docs".*list'):
        write(uri, data, blob_columns=[lt.BlobColumn("docs", ref_id="shot")])


def test_negative_ids(uri: str) -> None:
    data = with_ids([b"x", b"y"], [1, -1], pa.int64())
    with pytest.raises(lt.Error, match="shot"):
        write(uri, data, blob_columns=[NAMED])
    assert listed(uri) == {}


# Different bytes under one id


@pytest.mark.parametrize("chunk", [1000, 7])
@pytest.mark.parametrize(
    "other", [payload(5000, "other"), payload(5001), payload(10), payload(70_000)], ids=len
)
def test_different_bytes_are_refused(other: bytes, chunk: int, uri: str) -> None:
    """Both rows are named, also where they came in different batches; no file is left."""
    data = payload(5000)
    rows = [lt.Blob(data, ref_id=4 if n == 3 else None) for n in range(30)]
    rows[25] = lt.Blob(other, ref_id=4)
    given = table(rows)
    batches = given.to_batches(max_chunksize=chunk)
    with pytest.raises(lt.InvalidArgumentError, match='"blob": rows 3 and 25 have ref_id 4'):
        write(uri, pa.RecordBatchReader.from_batches(given.schema, batches))
    assert listed(uri) == {}


def test_one_byte_that_differs(uri: str) -> None:
    """Megabytes long, in the last byte."""
    data = payload(5_000_000)
    other = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(lt.InvalidArgumentError, match="rows 0 and 1 have ref_id 1"):
        write(uri, table([lt.Blob(data, ref_id=1), lt.Blob(other, ref_id=1)]))
    assert listed(uri) == {}


# Several columns, nested ones


def test_ids_of_columns_do_not_mix(uri: str) -> None:
    left, right = payload(5000, "left"), payload(5000, "right")
    data = table(shared(left, 6)).append_column("other", table(shared(right, 6))["blob"])
    write(uri, data, blob_columns=["blob", "other"])
    check(uri, [left] * 6)
    same(blobs_of(opened(uri), "other"), [right] * 6)
    assert len({*places(uri), *places(uri, "other")}) == 2
    exact_files(uri)


def test_two_columns_by_one_column_of_ids(uri: str) -> None:
    left, right = payload(5000, "left"), payload(9000, "right")
    data = with_ids([left] * 6, [3] * 6, pa.int64()).append_column("other", pa.array([right] * 6))
    columns = [NAMED, lt.BlobColumn("other", ref_id="shot")]
    write(uri, data, blob_columns=columns)
    check(uri, [left] * 6)
    same(blobs_of(opened(uri), "other"), [right] * 6)
    assert sum(s for path, s in listed(uri).items() if path.endswith(".blob")) == 14_000
    exact_files(uri)


def test_ids_within_lists(uri: str) -> None:
    data, other = payload(5000, "a"), payload(6000, "b")
    kind = pa.list_(table([]).schema.field("blob").type)
    a, b = {"data": data, "ref_id": 1}, {"data": other, "ref_id": 2}
    rows = [[a, b, a], [], None, [b], [None, a]]
    write(uri, pa.table({"docs": pa.array(rows, kind)}), blob_columns=["docs"])
    found = opened(uri).scanner(columns=["docs"], blob_handling="all_binary").to_table()
    assert found["docs"].to_pylist() == [[data, other, data], [], None, [other], [None, data]]
    assert sum(s for path, s in listed(uri).items() if path.endswith(".blob")) == 11_000
    exact_files(uri)
    wrong = [[a], [b, {"data": other, "ref_id": 1}]]
    with unchanged(uri), pytest.raises(lt.InvalidArgumentError, match='"docs": rows 0 and 1'):
        write(uri, pa.table({"docs": pa.array(wrong, kind)}), mode="append")


# By content


def test_content_of_plain_bytes(uri: str) -> None:
    """No ids needed; over batches, for every class of size, and over columns."""
    distinct = [payload(size, "c") for size in (1024, 2000, 70_000, 5_000_000)]
    rows = [distinct[n % 4] for n in range(24)]
    data = binary(rows).append_column("other", pa.array(rows[::-1]))
    reader = pa.RecordBatchReader.from_batches(data.schema, data.to_batches(max_chunksize=5))
    write(uri, reader, dedup="content", blob_columns=["blob", "other"])
    check(uri, rows)
    same(blobs_of(opened(uri), "other"), rows[::-1])
    assert sum(s for path, s in listed(uri).items() if path.endswith(".blob")) == sum(
        map(len, distinct)
    )
    exact_files(uri)


def test_content_below_1_kib_is_not_shared(uri: str) -> None:
    data = [payload(1023)] * 5 + [payload(1024)] * 5
    write(uri, binary(data), dedup="content")
    assert kinds(check(uri, data)) == ["inline"] * 5 + ["packed"] * 5
    assert [s for path, s in listed(uri).items() if path.endswith(".blob")] == [1024]
    exact_files(uri)


def test_content_and_ids(uri: str) -> None:
    """Rows of one id must have the same bytes still; equal ones of several ids share as well."""
    data, small = payload(5000), payload(100)
    rows = [lt.Blob(data, ref_id=n % 3) for n in range(9)]
    rows += [lt.Blob(small, ref_id=8), lt.Blob(small, ref_id=8)]
    write(uri, table(rows), dedup="content")
    check(uri, [data] * 9 + [small] * 2)
    assert len(set(places(uri))) == 2
    assert sum(s for path, s in listed(uri).items() if path.endswith(".blob")) == 5100
    exact_files(uri)
    rows.append(lt.Blob(payload(5000, "other"), ref_id=1))
    with unchanged(uri), pytest.raises(lt.InvalidArgumentError, match="rows 7 and 11"):
        write(uri, table(rows), mode="append", dedup="content")


def test_equal_bytes_are_not_shared_unless_asked(uri: str) -> None:
    write(uri, binary([payload(100_000)] * 5))
    assert len(set(places(uri))) == 5


# Later changes by pylance


def test_deleted_and_updated_rows(uri: str) -> None:
    data = payload(100_000)
    write(uri, table(shared(data, 10)))
    opened(uri).delete("id < 4")
    same(blobs_of(opened(uri)), [data] * 6)
    opened(uri).update({"tail": "'new'"}, where="id = 5")
    same(blobs_of(opened(uri)), [data] * 6)


def test_pylance_compacts(uri: str) -> None:
    """It reads what is shared, and writes copies."""
    data = payload(100_000)
    write(uri, table(shared(data, 10)), max_rows_per_file=5)
    opened(uri).optimize.compact_files()
    assert len(opened(uri).get_fragments()) == 1
    check(uri, [data] * 10)


def test_shared_rows_of_a_dataset_as_source(uri: str, sources: Path) -> None:
    """Another write knows nothing of the ids; by content it shares again."""
    data = payload(100_000)
    source = str(sources / "source.lance")
    write(source, table(shared(data, 10)))
    write(uri, None, sources=[source], blob_columns=None, dedup="content")
    check(uri, [data] * 10)
    assert len(set(places(uri))) == 1
    exact_files(uri)


# Options


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"dedup": "content"}, '"dedup".*no blob columns'),
        ({"dedup": "ref_id"}, '"dedup".*no blob columns'),
        ({"dedup_scope": "dataset"}, '"dedup_scope".*no blob columns'),
        ({"dedup": "hash", "blob_columns": ["blob"]}, "dedup.*hash|hash.*dedup|unknown variant"),
        ({"dedup_scope": "world", "blob_columns": ["blob"]}, "world"),
    ],
    ids=str,
)
def test_options_that_are_refused(options: dict[str, object], why: str, uri: str) -> None:
    with pytest.raises(lt.InvalidArgumentError, match=why):
        lt.prepare(lt.Write(uri, **options), schema=binary([b"x"]).schema)
    assert files(uri) == {}


def test_ids_are_of_a_task(uri: str) -> None:
    """Tasks know nothing of each other: the same id may stand for other bytes."""
    parts = {name: table(shared(payload(5000, name), 4)) for name in "ab"}
    job = lt.prepare(
        lt.Write(uri, partitions=list("ab"), blob_columns=["blob"]), schema=parts["a"].schema
    )
    lt.commit(job, [lt.execute(job.task(name), data) for name, data in parts.items()])
    same(blobs_of(opened(uri)), [payload(5000, "a")] * 4 + [payload(5000, "b")] * 4)
    exact_files(uri)
