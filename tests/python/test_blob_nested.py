# SPDX-License-Identifier: Apache-2.0
"""Blobs within structs and lists, and in arrays that are slices."""

import pyarrow as pa
import pytest
from blob_cases import (
    binary,
    check,
    exact_files,
    leaves,
    opened,
    payload,
    stored_as,
    write,
)
from support import assert_same, files

import lance_tasks as lt

A, B, C, D = payload(5, "a"), payload(200, "b"), payload(2000, "c"), b""
IMAGE = pa.struct([("name", pa.string()), ("image", pa.binary()), ("n", pa.int32())])

NESTED = {
    "struct": (
        IMAGE,
        "docs.image",
        [
            {"name": "x", "image": A, "n": 1},
            {"name": None, "image": None, "n": 2},
            None,
            {"name": "y", "image": B, "n": None},
            {"name": "z", "image": D, "n": 3},
            {"name": "w", "image": C, "n": 4},
        ],
    ),
    "list": (
        pa.list_(pa.binary()),
        "docs",
        [[A, B], None, [], [None, C, D], [B], [None]],
    ),
    "large_list": (
        pa.large_list(pa.large_binary()),
        "docs",
        [[A, B], None, [], [None, C, D], [B], [None]],
    ),
    "list_of_structs": (
        pa.list_(IMAGE),
        "docs.image",
        [
            [{"name": "x", "image": A, "n": 1}, {"name": "y", "image": B, "n": 2}],
            None,
            [],
            [None, {"name": "z", "image": None, "n": 3}, {"name": None, "image": D, "n": 4}],
            [{"name": "w", "image": C, "n": None}],
        ],
    ),
    "struct_of_structs": (
        pa.struct([("a", pa.struct([("image", pa.binary())])), ("b", pa.int64())]),
        "docs.a.image",
        [{"a": {"image": A}, "b": 1}, {"a": None, "b": 2}, None, {"a": {"image": C}, "b": 3}],
    ),
    "struct_of_lists": (
        pa.struct([("pages", pa.list_(pa.binary())), ("b", pa.int64())]),
        "docs.pages",
        [{"pages": [A, None, C], "b": 1}, {"pages": None, "b": 2}, None, {"pages": [], "b": 3}],
    ),
    "list_of_lists": (
        pa.list_(pa.list_(pa.binary())),
        "docs",
        [[[A], [B, C]], None, [], [[], None, [None, D]]],
    ),
}


@pytest.fixture(params=NESTED)
def nested(request: pytest.FixtureRequest) -> tuple[pa.Table, lt.BlobColumn]:
    kind, path, values = NESTED[request.param]
    # Small ones, and every class of size.
    return stored_as(kind, values), lt.BlobColumn(
        path, inline_size_threshold=100, dedicated_size_threshold=1000
    )


def nested_found(uri: str) -> list[object]:
    found = opened(uri).scanner(columns=["docs"], blob_handling="all_binary").to_table()
    return found["docs"].to_pylist()


def check_nested(uri: str, data: pa.Table) -> None:
    assert nested_found(uri) == data["docs"].to_pylist()
    others = opened(uri).to_table(columns=["id", "tail"])
    assert_same(others.combine_chunks(), data.select(["id", "tail"]).combine_chunks())
    opened(uri).validate()
    exact_files(uri)


@pytest.mark.parametrize("rows", [2, 100])
def test_nested(nested: tuple[pa.Table, lt.BlobColumn], rows: int, uri: str) -> None:
    data, column = nested
    write(uri, data, blob_columns=[column], max_rows_per_file=rows)
    check_nested(uri, data)
    found = opened(uri).to_table(columns=["docs"])["docs"].to_pylist()
    stored = sorted((d["size"], d["kind"]) for d in leaves(found))
    by_size = {5: 0, 200: 1, 2000: 2, 0: 0}
    assert {2, 0} <= {kind for _, kind in stored}
    assert stored == [(size, by_size[size]) for size, _ in stored]
    for rows_per_file in (1, 100):
        lt.run(lt.Write(uri, mode="append", max_rows_per_file=rows_per_file), data=data)
    check_nested(uri, pa.concat_tables([data] * 3))


def test_nested_in_slices(nested: tuple[pa.Table, lt.BlobColumn], uri: str) -> None:
    """Arrays that begin in the middle of their buffers, in batches of every length."""
    data, column = nested
    twice = pa.concat_tables([data] * 3).combine_chunks()
    batches = [twice.slice(1, 4), twice.slice(5, 1), twice.slice(6, 5)]
    reader = pa.RecordBatchReader.from_batches(
        data.schema, [batch for part in batches for batch in part.to_batches()]
    )
    write(uri, reader, blob_columns=[column], max_rows_per_file=3)
    check_nested(uri, twice.slice(1, 10))


def test_nested_below_null_parents(uri: str) -> None:
    """Bytes that lie below a null struct, or in no list, are not written."""
    hidden = [A, payload(5000, "hidden"), C]
    structs = pa.StructArray.from_arrays(
        [pa.array(hidden), pa.array([1, 2, 3])], ["image", "n"], mask=pa.array([False, True, False])
    )
    offsets = pa.array([0, 1, 2, 3], pa.int32())
    lists = pa.ListArray.from_arrays(offsets, pa.array(hidden), mask=structs.is_null())
    data = pa.table({"id": [0, 1, 2], "docs": structs, "pages": lists, "tail": ["a", "b", "c"]})
    columns = [lt.BlobColumn(n, inline_size_threshold=0) for n in ("docs.image", "pages")]
    write(uri, data, blob_columns=columns)
    dataset = opened(uri)
    found = dataset.scanner(blob_handling="all_binary").to_table().to_pydict()
    assert found == data.to_pydict()
    exact_files(uri)  # packs end where what is referenced ends
    assert sum(s for p, s in files(uri).items() if p.endswith(".blob")) == 2 * (len(A) + len(C))


def test_slices_of_plain_columns(uri: str) -> None:
    payloads = [payload(n * 10, n) if n % 3 else None for n in range(100)]
    data = binary(payloads, pa.binary()).slice(17, 50)
    write(uri, data, blob_columns=[lt.BlobColumn("blob", inline_size_threshold=100)])
    check(uri, payloads[17:67], start=17)
    exact_files(uri)


def test_blobs_of_a_struct_that_is_named_in_the_schema(uri: str) -> None:
    """The extension within a struct, as an append or another writer brings it."""
    image = lt.blob_field("image", inline_size_threshold=100)
    docs = pa.field("docs", pa.struct([pa.field("name", pa.string()), image]))
    array = lt.blob_array([A, None, B])
    structs = pa.StructArray.from_arrays([pa.array(["x", "y", None]), array], ["name", "image"])
    schema = pa.schema([("id", pa.int64()), docs])
    data = pa.table([pa.array([0, 1, 2]), structs.cast(docs.type)], schema=schema)
    lt.run(lt.Write(uri), data=data)
    assert nested_found(uri) == [
        {"name": "x", "image": A},
        {"name": "y", "image": None},
        {"name": None, "image": B},
    ]
    exact_files(uri)
