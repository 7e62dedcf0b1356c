# SPDX-License-Identifier: Apache-2.0
"""Cleanup: blobs beside data files, managed ones, indexes, and what a compaction has replaced."""

from datetime import timedelta
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from support import assert_same, read
from test_cleanup import ALL, as_pylance, check_removes_what_it_lists, make_versions

import lance_tasks as lt

# What removed versions refer to is not uncommitted, where uncommitted files may go as well.
unverified = pytest.mark.parametrize("options", [{}, {"delete_unverified": True}], ids=str)


def blob_table(start: int, schema_metadata: dict | None = None) -> pa.Table:
    """Rows with an inline, two packed and a dedicated payload, a null and an empty one."""
    data = [b"a" * 10, b"b" * 100_000, b"c" * 90_000, b"d" * 5_000_000, None, b""]
    columns = [pa.array(range(start, start + 6)), lance.blob_array(data)]
    schema = pa.schema([pa.field("id", pa.int64()), lance.blob_field("blob")], schema_metadata)
    return pa.Table.from_arrays(columns, schema=schema)


def check_blobs(uri: str, start: int) -> None:
    dataset = lance.dataset(uri)
    assert dataset.to_table(columns=["id"])["id"].to_pylist() == list(range(start, start + 6))
    blobs = dataset.take_blobs("blob", indices=[0, 1, 2, 3])
    sizes = [(blob.size(), blob.read()[:1]) for blob in blobs]
    assert sizes == [(10, b"a"), (100_000, b"b"), (90_000, b"c"), (5_000_000, b"d")]


@unverified
def test_blob_sidecars(uri: str, options: dict) -> None:
    for start in (0, 10):
        lance.write_dataset(blob_table(start), uri, mode="overwrite", data_storage_version="2.2")
    outcome = check_removes_what_it_lists(uri, older_than=ALL, **options)
    assert outcome.metrics["uncommitted_files"] == 0
    assert outcome.metrics["blob_sidecar_files"] == 2
    assert outcome.metrics["blob_sidecar_bytes"] >= 5_190_000
    check_blobs(uri, 10)
    # Lance would leave the folder of the blobs.
    assert len(list(Path(uri, "data").iterdir())) == 2


@unverified
def test_managed_blobs(uri: str, options: dict) -> None:
    managed = {"lance.blob.managed": "true"}
    for start in (0, 10):
        table = blob_table(start, managed)
        lance.write_dataset(table, uri, mode="overwrite", data_storage_version="2.2")
    assert len(list(Path(uri, "_blobs").iterdir())) > 0
    outcome = check_removes_what_it_lists(uri, older_than=ALL, **options)
    assert outcome.metrics["uncommitted_files"] == 0
    assert outcome.metrics["managed_blob_files"] > 0
    assert outcome.metrics["managed_blob_bytes"] >= 5_190_000
    assert outcome.metrics["blob_sidecar_files"] == 0
    check_blobs(uri, 10)


@unverified
def test_indices(uri: str, options: dict) -> None:
    make_versions(uri, 1)
    for _ in range(2):
        lt.run(lt.CreateIndex(uri, column="id", index_type="BTREE", replace=True))
    outcome = check_removes_what_it_lists(uri, older_than=ALL, **options)
    assert outcome.metrics["uncommitted_files"] == 0
    assert outcome.metrics["index_files"] > 0
    assert len(list(Path(uri, "_indices").iterdir())) == 1
    scanner = lance.dataset(uri).scanner(filter="id = 42")
    assert "ScalarIndexQuery" in scanner.explain_plan()
    assert scanner.to_table()["id"].to_pylist() == [42]


def test_after_a_compaction(uri: str) -> None:
    make_versions(uri, 2)
    before = read(uri)
    lt.run(lt.Compact(uri))
    as_pylance(
        uri,
        lambda twin: twin.cleanup_old_versions(timedelta(microseconds=1)),
        older_than=ALL,
    )
    assert_same(read(uri), before)
    assert len(list(Path(uri, "data").glob("*.lance"))) == 1
