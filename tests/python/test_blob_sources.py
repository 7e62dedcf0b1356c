# SPDX-License-Identifier: Apache-2.0
"""Blobs from files and datasets, and legacy blobs."""

from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blob_cases import (
    DEDICATED,
    INLINE,
    binary,
    blobs_of,
    check,
    exact_files,
    kinds,
    opened,
    payload,
    same,
    table,
    write,
)
from support import unchanged

import lance_tasks as lt

MIXED = [payload(10), None, b"", payload(INLINE + 1), payload(DEDICATED + 1)]


# Legacy blobs


def legacy(payloads: list[bytes | None], start: int = 0) -> pa.Table:
    field = pa.field("blob", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    return binary(payloads, start=start).set_column(1, field, pa.array(payloads, field.type))


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_legacy_blobs_are_written(version: str, uri: str) -> None:
    lt.run(lt.Write(uri, data_storage_version=version), data=legacy(MIXED))
    lt.run(lt.Write(uri, mode="append"), data=legacy(MIXED, start=5))
    lt.run(lt.Write(uri, mode="append"), data=binary(MIXED, start=10))
    dataset = opened(uri)
    assert dataset.data_storage_version == version
    assert dataset.schema.field("blob").metadata[b"lance-encoding:blob"] == b"true"
    same(blobs_of(dataset), MIXED * 3)
    assert dataset.to_table(columns=["id"])["id"].to_pylist() == list(range(15))


def test_legacy_column_at_2_2_is_promoted(uri: str) -> None:
    lt.run(lt.Write(uri, data_storage_version="2.2"), data=legacy(MIXED))
    assert kinds(check(uri, MIXED)) == ["inline", None, "inline", "packed", "dedicated"]
    exact_files(uri)


# Sources


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_files_as_sources(form: str, sources: Path, uri: str) -> None:
    payloads = [None if n % 7 == 3 else payload(n * 1500, n) for n in range(90)]
    for i in range(3):
        part = binary(payloads[i * 30 : i * 30 + 30], pa.binary(), start=i * 30)
        path = sources / f"{i}.{form}"
        if form == "parquet":
            pq.write_table(part, path, row_group_size=7)
        else:
            with pa.ipc.new_file(path, part.schema) as writer:
                writer.write_table(part, max_chunksize=7)
    write(uri, None, sources=[str(sources)], max_rows_per_file=20)
    check(uri, payloads)
    exact_files(uri)
    lt.run(lt.Write(uri, mode="append", sources=[str(sources)], max_rows_per_file=40))
    same(blobs_of(opened(uri)), payloads * 2)
    exact_files(uri)


def test_structs_in_files(sources: Path, uri: str) -> None:
    """`lt.blob_array` through Parquet, with references to objects."""
    data = payload(500)
    (sources / "object").write_bytes(data)
    values = [b"here", None, b"", lt.Blob(uri=str(sources / "object"), position=5, size=200)]
    pq.write_table(table(values), sources / "rows.parquet")
    base = lt.Base(1, str(sources))
    write(uri, None, sources=[str(sources / "rows.parquet")], initial_bases=[base])
    dataset = check(uri, [b"here", None, b"", data[5:205]])
    assert kinds(dataset) == ["inline", None, "inline", "external"]


@pytest.mark.parametrize("by", ["ours", "pylance", "legacy"])
def test_datasets_as_sources(by: str, sources: Path, uri: str) -> None:
    """The payloads are copied, not where they lie."""
    source = str(sources / "source.lance")
    if by == "ours":
        write(source, table(MIXED), max_rows_per_file=2)
    elif by == "pylance":
        array = lance.blob_array(MIXED)
        data = table(MIXED).set_column(1, lance.blob_field("blob"), array)
        lance.write_dataset(data, source, data_storage_version="2.2", max_rows_per_file=2)
    else:
        lance.write_dataset(legacy(MIXED), source, data_storage_version="2.1")
    options = {"blob_columns": ["blob"]} if by == "legacy" else {"blob_columns": None}
    with unchanged(source):
        write(uri, None, sources=[source], max_rows_per_file=3, **options)
        lt.run(lt.Write(uri, mode="append", sources=[source]))
    dataset = opened(uri)
    same(blobs_of(dataset), MIXED * 2)
    assert dataset.data_storage_version == "2.2"
    assert dataset.to_table(columns=["id"])["id"].to_pylist() == [*range(5), *range(5)]
    exact_files(uri)


def test_dataset_as_source_by_filter_and_columns(sources: Path, uri: str) -> None:
    source = str(sources / "source.lance")
    write(source, table(MIXED))
    opened(source).delete("id = 0")
    read = lt.Source(source, columns=["blob", "id"], filter="id > 1")
    write(uri, None, sources=[read], blob_columns=None)
    same(blobs_of(opened(uri)), MIXED[2:])
    assert opened(uri).to_table(columns=["id"])["id"].to_pylist() == [2, 3, 4]
    exact_files(uri)
