# SPDX-License-Identifier: Apache-2.0
"""Which columns are blobs: several of them, nested ones, file versions, and what is refused."""

from pathlib import Path

import lance
import numpy as np
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
    leaves,
    opened,
    payload,
    same,
    table,
    write,
)
from support import assert_same, files, unchanged

import lance_tasks as lt

MIXED = [payload(10), None, b"", payload(INLINE + 1), payload(DEDICATED + 1)]


# Versions of files


@pytest.mark.parametrize("asked", [None, "2.2", "2.3", "stable"])
def test_file_version(asked: str | None, uri: str) -> None:
    expected = {None: "2.2", "stable": "2.2"}.get(asked, asked)
    write(uri, table(MIXED), data_storage_version=asked)
    assert check(uri, MIXED).data_storage_version == expected
    exact_files(uri)


@pytest.mark.parametrize("named", [True, False], ids=["named", "extension"])
@pytest.mark.parametrize("asked", ["2.1", "2.0", "legacy"])
def test_file_versions_without_blobs_are_refused(asked: str, named: bool, uri: str) -> None:
    data = table(MIXED)
    if named:
        spec = lt.Write(uri, blob_columns=["blob"], data_storage_version=asked)
    else:
        data = data.set_column(1, lt.blob_field("blob"), data["blob"])
        spec = lt.Write(uri, data_storage_version=asked)
    with pytest.raises(lt.InvalidArgumentError, match=r'"blob".*2\.2'):
        lt.prepare(spec, schema=data.schema)
    assert files(uri) == {}


def test_field_alone_asks_for_the_version(uri: str) -> None:
    data = table(MIXED)
    lt.run(lt.Write(uri), data=data.set_column(1, lt.blob_field("blob"), data["blob"]))
    assert check(uri, MIXED).data_storage_version == "2.2"


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_overwrite_of_older_files(version: str, uri: str) -> None:
    """The dataset's version is raised, as the new schema needs it."""
    lance.write_dataset(pa.table({"a": [1, 2]}), uri, data_storage_version=version)
    write(uri, table(MIXED), mode="overwrite")
    assert check(uri, MIXED).data_storage_version == "2.2"
    exact_files(uri)


def test_append_of_blobs_to_older_files_is_refused(uri: str) -> None:
    lance.write_dataset(binary(MIXED), uri, data_storage_version="2.1")
    with unchanged(uri), pytest.raises(lt.Error, match='"blob"'):
        lt.run(lt.Write(uri, mode="append", blob_columns=["blob"]), data=binary(MIXED))


# Appends


def test_append_does_not_name_the_column(uri: str) -> None:
    write(uri, table(MIXED))
    forms = [
        binary(MIXED, pa.binary(), start=5),
        binary(MIXED, pa.binary_view(), start=10),
        table(MIXED, start=15),
    ]
    for data in forms:
        lt.run(lt.Write(uri, mode="append"), data=data)
    assert kinds(check(uri, MIXED * 4)) == kinds(opened(uri))[:5] * 4
    exact_files(uri)


def test_append_may_name_the_column(uri: str) -> None:
    write(uri, table(MIXED))
    spec = lt.Write(uri, mode="append", blob_columns=["blob"])
    lt.run(spec, data=binary(MIXED, start=5))
    check(uri, MIXED * 2)


def test_append_may_repeat_the_thresholds(uri: str) -> None:
    column = lt.BlobColumn("blob", inline_size_threshold=5)
    write(uri, table(MIXED), blob_columns=[column])
    lt.run(lt.Write(uri, mode="append", blob_columns=[column]), data=table(MIXED, start=5))
    check(uri, MIXED * 2)
    other = lt.BlobColumn("blob", inline_size_threshold=6)
    with unchanged(uri), pytest.raises(lt.InvalidArgumentError, match='"blob".*threshold'):
        spec = lt.Write(uri, mode="append", blob_columns=[other])
        lt.run(spec, data=table(MIXED, start=10))


def test_append_of_columns_in_another_order(uri: str) -> None:
    write(uri, table(MIXED))
    data = table(MIXED, start=5).select(["tail", "blob", "id"])
    lt.run(lt.Write(uri, mode="append"), data=data)
    check(uri, MIXED * 2)


def test_append_without_the_blob_column(uri: str) -> None:
    """A column that may be null is null in rows that do not have it."""
    write(uri, table(MIXED))
    lt.run(lt.Write(uri, mode="append"), data=table(MIXED, start=5).drop_columns(["blob"]))
    check(uri, [*MIXED, *[None] * 5])
    exact_files(uri)


def test_append_to_what_pylance_wrote_and_back(uri: str) -> None:
    """Its blob columns have four children; ours bring two, five, or plain bytes."""

    def theirs(start: int) -> pa.Table:
        array = lance.blob_array(MIXED)
        return table([None] * 5, start).set_column(1, lance.blob_field("blob"), array)

    lance.write_dataset(theirs(0), uri, data_storage_version="2.2")
    schema = opened(uri).lance_schema
    lt.run(lt.Write(uri, mode="append"), data=table(MIXED, start=5))
    lance.write_dataset(theirs(10), uri, mode="append")
    lt.run(lt.Write(uri, mode="append"), data=binary(MIXED, start=15))
    lt.run(lt.Write(uri, mode="append"), data=theirs(20))
    dataset = check(uri, MIXED * 5)
    assert kinds(dataset) == kinds(dataset)[:5] * 5
    assert str(dataset.lance_schema) == str(schema)
    exact_files(uri)


def test_append_to_an_altered_schema(uri: str) -> None:
    """Field ids with gaps: a column dropped before the blob, another added behind it."""
    write(uri, table(MIXED).add_column(0, "first", pa.array(range(5))))
    dataset = opened(uri)
    dataset.drop_columns(["first"])
    dataset.add_columns({"twice": "id * 2"})
    data = table(MIXED, start=5)
    data = data.append_column("twice", pa.array([2 * i for i in range(5, 10)], pa.int64()))
    lt.run(lt.Write(uri, mode="append"), data=data)
    dataset = opened(uri)
    same(blobs_of(dataset), MIXED * 2)
    assert dataset.to_table(columns=["id", "twice"]).to_pydict() == {
        "id": list(range(10)),
        "twice": [2 * i for i in range(10)],
    }


# Several columns


def test_several_columns_beside_scalars_and_vectors(uri: str) -> None:
    rng = np.random.default_rng(0)
    flat = pa.array(rng.standard_normal(5 * 16).astype(np.float32))
    plain = pa.table(
        {
            "before": pa.array([1, None, 3, 4, 5], pa.int16()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, 16),
            "words": pa.array([["a"], None, [], ["b", None], ["c"]], pa.list_(pa.string())),
            "tags": pa.array([{"x": 1.5, "y": "q"}] * 4 + [None]),
            "bytes": pa.array([b"not", b"a", None, b"", b"blob"], pa.binary()),
        }
    )
    columns = {
        name: [payload(size, name), None, b"", payload(size + 1, name), payload(3, name)]
        for name, size in {"small": 100, "medium": INLINE + 5, "large": DEDICATED + 5}.items()
    }
    data = plain
    for at, (name, payloads) in zip((1, 3, 7), columns.items(), strict=True):
        data = data.add_column(at, name, pa.array(payloads, pa.binary()))
    write(uri, data, blob_columns=list(columns), max_rows_per_file=3)
    for times in (1, 2):
        dataset = opened(uri)
        assert dataset.schema.names == data.schema.names
        found = dataset.to_table(columns=plain.column_names)
        assert_same(found.combine_chunks(), pa.concat_tables([plain] * times).combine_chunks())
        for name, payloads in columns.items():
            same(blobs_of(dataset, name), payloads * times)
        exact_files(uri)
        lt.run(lt.Write(uri, mode="append", max_rows_per_file=2), data=data)


def test_more_blob_columns_than_other_ones(uri: str) -> None:
    names = [f"blob-{i}" for i in range(20)]
    data = pa.table({name: pa.array([payload(1000, name), None]) for name in names})
    columns = [lt.BlobColumn(name, inline_size_threshold=10) for name in names]
    write(uri, data, blob_columns=columns)
    for name in names:
        same(blobs_of(opened(uri), name), [payload(1000, name), None])
    exact_files(uri)


# Nested


def stored_as(kind: pa.DataType, values: list[object]) -> pa.Table:
    ids = pa.array(range(len(values)), pa.int64())
    tails = pa.array([f"tail-{i}" for i in range(len(values))])
    return pa.table({"id": ids, "docs": pa.array(values, kind), "tail": tails})


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


# What is refused


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("missing", pa.binary(), "no such column"),
        ("docs.missing", pa.binary(), "no such column"),
        ("docs", pa.int64(), "Int64"),
        ("docs", pa.string(), "Utf8"),
        ("docs", pa.struct([("image", pa.int32())]), "Struct"),
        ("docs.image", pa.struct([("image", pa.int32())]), "Int32"),
        ("docs", pa.binary(4), "FixedSizeBinary"),
        ("docs", pa.list_(pa.binary(), 2), "fixed-size list"),
        ("docs", pa.map_(pa.string(), pa.binary()), "map"),
        ("docs", pa.list_(pa.int8()), "Int8"),
    ],
    ids=str,
)
def test_columns_that_cannot_be_blobs(name: str, kind: pa.DataType, why: str, uri: str) -> None:
    data = stored_as(kind, [None, None])
    with pytest.raises(lt.SchemaMismatchError, match=f'"{name}".*{why}'):
        write(uri, data, blob_columns=[name])
    assert files(uri) == {}


def test_column_named_twice(uri: str) -> None:
    with pytest.raises(lt.InvalidArgumentError, match=r'blob_columns.*"blob".*twice'):
        write(uri, table(MIXED), blob_columns=["blob", lt.BlobColumn("blob")])
    assert files(uri) == {}


def test_append_cannot_make_a_column_a_blob(uri: str) -> None:
    lance.write_dataset(binary(MIXED), uri, data_storage_version="2.2")
    with unchanged(uri), pytest.raises(lt.SchemaMismatchError, match='"blob".*no blob column'):
        lt.run(lt.Write(uri, mode="append", blob_columns=["blob"]), data=binary(MIXED))


def test_append_cannot_name_a_column_that_is_not_there(uri: str) -> None:
    write(uri, table(MIXED))
    with unchanged(uri), pytest.raises(lt.SchemaMismatchError, match='"image"'):
        lt.run(lt.Write(uri, mode="append", blob_columns=["image"]), data=binary(MIXED))


@pytest.mark.parametrize("how", ["named", "extension", "append"])
def test_descriptors_are_no_input(how: str, uri: str, tmp_path: Path) -> None:
    """A scan's descriptors say where bytes lie beside another file."""
    write(uri, table(MIXED))
    scan = opened(uri).to_table()
    place, options = str(tmp_path / "other"), {"blob_columns": ["blob"]}
    if how == "extension":
        metadata = {"ARROW:extension:name": "lance.blob.v2"}
        field = pa.field("blob", scan["blob"].type, metadata=metadata)
        scan, options = scan.set_column(1, field, scan["blob"]), {"blob_columns": None}
    if how == "append":
        place, options = uri, {"mode": "append"}
    before = files(tmp_path)
    with pytest.raises(lt.SchemaMismatchError, match=r'"blob.*(descriptors|kind)'):
        write(place, scan, **options)
    assert files(tmp_path) == before


def test_values_that_are_no_bytes(uri: str) -> None:
    write(uri, table(MIXED))
    other = table(MIXED).set_column(1, "blob", pa.array([1, 2, 3, 4, 5]))
    with unchanged(uri), pytest.raises(lt.SchemaMismatchError, match="blob"):
        lt.run(lt.Write(uri, mode="append"), data=other)


def test_struct_with_an_unknown_child(uri: str) -> None:
    field = pa.field(
        "blob",
        pa.struct([("data", pa.large_binary()), ("etag", pa.string())]),
        metadata={"ARROW:extension:name": "lance.blob.v2"},
    )
    data = table(MIXED).set_column(1, field, pa.array([None] * 5, field.type))
    with pytest.raises(lt.SchemaMismatchError, match=r'"blob".*"etag"'):
        lt.run(lt.Write(uri), data=data)


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
    found = [f and f.readall() for f in dataset.take_blobs("blob", indices=list(range(15)))]
    same([b"" if f is None and MIXED[i % 5] == b"" else f for i, f in enumerate(found)], MIXED * 3)
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
    (sources / "object").write_bytes(A + B)
    values = [A, None, b"", lt.Blob(uri=str(sources / "object"), position=5, size=200)]
    pq.write_table(table(values), sources / "rows.parquet")
    base = lt.Base(1, str(sources))
    write(uri, None, sources=[str(sources / "rows.parquet")], initial_bases=[base])
    assert kinds(check(uri, [A, None, b"", B])) == ["inline", None, "inline", "external"]


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
