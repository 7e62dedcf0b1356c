# SPDX-License-Identifier: Apache-2.0
"""Which columns are blobs: several of them, nested ones, file versions, and what is refused."""

from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
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
    stored_as,
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
    with unchanged(uri), pytest.raises(lt.InvalidArgumentError, match=r'"blob".*threshold'):
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


def numbered(fields: list[Any]) -> list[Any]:
    """Names, ids and metadata, which pylance prints in any order."""
    return [(f.name(), f.id(), f.metadata, numbered(f.children())) for f in fields]


def test_append_to_what_pylance_wrote_and_back(uri: str) -> None:
    """Its blob columns have four children; ours bring two, five, or plain bytes."""

    def theirs(start: int) -> pa.Table:
        array = lance.blob_array(MIXED)
        return table([None] * 5, start).set_column(1, lance.blob_field("blob"), array)

    lance.write_dataset(theirs(0), uri, data_storage_version="2.2")
    schema = numbered(opened(uri).lance_schema.fields())
    lt.run(lt.Write(uri, mode="append"), data=table(MIXED, start=5))
    lance.write_dataset(theirs(10), uri, mode="append")
    lt.run(lt.Write(uri, mode="append"), data=binary(MIXED, start=15))
    lt.run(lt.Write(uri, mode="append"), data=theirs(20))
    dataset = check(uri, MIXED * 5)
    assert kinds(dataset) == kinds(dataset)[:5] * 5
    assert numbered(dataset.lance_schema.fields()) == schema
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
    with pytest.raises(lt.SchemaMismatchError, match=rf'"{name}".*{why}'):
        write(uri, data, blob_columns=[name])
    assert files(uri) == {}


def test_column_named_twice(uri: str) -> None:
    with pytest.raises(lt.InvalidArgumentError, match=r'blob_columns.*"blob".*twice'):
        write(uri, table(MIXED), blob_columns=["blob", lt.BlobColumn("blob")])
    assert files(uri) == {}


def test_append_cannot_make_a_column_a_blob(uri: str) -> None:
    lance.write_dataset(binary(MIXED), uri, data_storage_version="2.2")
    with unchanged(uri), pytest.raises(lt.SchemaMismatchError, match=r'"blob".*no blob column'):
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
