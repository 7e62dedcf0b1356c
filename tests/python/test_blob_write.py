# SPDX-License-Identifier: Apache-2.0
"""Blob columns as they are written: every kind in every mode, forms of input, thresholds."""

from pathlib import Path

import lance
import pyarrow as pa
import pytest
from blob_cases import (
    DEDICATED,
    INLINE,
    KINDS,
    Kind,
    binary,
    blobs_of,
    check,
    descriptors,
    exact_files,
    kinds,
    one_of_each,
    opened,
    payload,
    rows_of,
    same,
    sidecar,
    table,
    write,
)
from support import files, fragment_rows

import lance_tasks as lt


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """A folder for what blobs refer to."""
    return tmp_path / "objects"


def base(objects: Path) -> dict[str, object]:
    return {"initial_bases": [lt.Base(7, str(objects))]}


# Every kind


@pytest.mark.parametrize("fragments", [1, 4])
@pytest.mark.parametrize("mode", ["create", "append", "overwrite"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind(kind: Kind, mode: str, fragments: int, uri: str, objects: Path) -> None:
    before: list[bytes | None] = []
    if mode != "create":
        data, before = one_of_each(objects, start=0)
        write(uri, data, **base(objects))
    if mode == "overwrite":
        before = []
    start = len(before)
    data, expected = rows_of(kind, objects, 8, start)
    options = base(objects) if mode == "create" else {}  # bases stay
    outcome = write(uri, data, mode=mode, max_rows_per_file=8 // fragments, **options)
    assert outcome.rows == start + 8
    assert fragment_rows(uri)[-fragments:] == [8 // fragments] * fragments
    dataset = check(uri, before + expected)
    assert kinds(dataset)[start:] == [kind.stored] * 8
    exact_files(uri)
    found = [d for d in descriptors(dataset)[start:] if d is not None]
    if kind.stored is not None:
        assert [d["size"] for d in found] == [len(data or b"") for data in expected]
    if kind.stored == "external":
        assert {d["blob_id"] for d in found} == {7}
    # Whole payloads beside the data file, one after the other or each in a file of its own.
    per_fragment = 8 // fragments
    for first in range(0, 8, per_fragment):
        part = found[first : first + per_fragment]
        if kind.stored == "dedicated":
            assert len({d["blob_id"] for d in part}) == per_fragment
        if kind.stored == "packed":
            assert len({d["blob_id"] for d in part}) == 1
            assert [d["position"] for d in part] == [
                sum(d["size"] for d in part[:n]) for n in range(per_fragment)
            ]


def test_sidecars_lie_where_lance_looks(uri: str) -> None:
    """Beside the data file, named by the digits of the id from the lowest on."""
    payloads = [payload(size, size) for size in (INLINE + 1, DEDICATED + 1, DEDICATED + 2)]
    write(uri, table(payloads))
    (file,) = opened(uri).get_fragments()[0].data_files()
    stem = f"data/{file.path.removesuffix('.lance')}"
    ids = [d["blob_id"] for d in descriptors(opened(uri))]
    assert len(set(ids)) == 3
    for blob_id, data in zip(ids, payloads, strict=True):
        name = f"{int(f'{blob_id:032b}'[::-1], 2):032b}"
        assert sidecar(f"data/{file.path}", blob_id) == f"{stem}/{name}.blob"
        assert Path(uri, stem, f"{name}.blob").read_bytes() == data


# Forms of input


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_plain_bytes(kind: pa.DataType, uri: str) -> None:
    sizes = [0, None, 1, INLINE, INLINE + 1, DEDICATED, DEDICATED + 1, None, 0]
    payloads = [None if size is None else payload(size) for size in sizes]
    write(uri, binary(payloads, kind))
    dataset = check(uri, payloads)
    assert kinds(dataset) == [
        *("inline", None, "inline", "inline", "packed", "packed", "dedicated", None, "inline")
    ]
    exact_files(uri)


def logical(payloads: list[bytes | None], names: tuple[str, ...], **metadata: str) -> pa.Table:
    """Structs of some of a blob's children."""
    mask = pa.array([data is None for data in payloads])
    types = {"data": pa.large_binary(), "uri": pa.string()}
    types |= {"position": pa.uint64(), "size": pa.uint64(), "ref_id": pa.uint64()}
    children = [
        pa.array(payloads if name == "data" else [None] * len(payloads), types[name])
        for name in names
    ]
    fields = [pa.field(name, types[name]) for name in names]
    array = pa.StructArray.from_arrays(children, fields=fields, mask=mask)
    plain = table([None] * len(payloads))
    return plain.set_column(1, pa.field("blob", array.type, metadata=metadata or None), array)


MIXED = [payload(10), None, b"", payload(INLINE + 1), payload(DEDICATED + 1)]


@pytest.mark.parametrize("extension", [False, True], ids=["named", "extension"])
@pytest.mark.parametrize(
    "names",
    [
        ("data",),
        ("data", "uri"),
        ("uri", "data"),
        ("data", "uri", "position", "size"),
        ("data", "uri", "position", "size", "ref_id"),
    ],
    ids="-".join,
)
def test_structs(names: tuple[str, ...], extension: bool, uri: str) -> None:
    metadata = {"ARROW:extension:name": "lance.blob.v2"} if extension else {}
    data = logical(MIXED, names, **metadata)
    write(uri, data, **({"blob_columns": None} if extension else {}))
    check(uri, MIXED)
    exact_files(uri)


def test_structs_of_other_widths(uri: str) -> None:
    """Bytes, strings and numbers of other Arrow types than Lance's own."""
    mask = pa.array([data is None for data in MIXED])
    children = [
        pa.array(MIXED, pa.binary()),
        pa.array([None] * len(MIXED), pa.large_string()),
        pa.array([None] * len(MIXED), pa.int64()),
        pa.array([None] * len(MIXED), pa.uint32()),
    ]
    array = pa.StructArray.from_arrays(children, ["data", "uri", "position", "size"], mask=mask)
    write(uri, table(MIXED).set_column(1, "blob", array))
    check(uri, MIXED)


def test_arrays_of_pylance(uri: str) -> None:
    """What `lance.blob_array` makes is a blob without being named."""

    def rows(start: int) -> pa.Table:
        array = lance.blob_array(MIXED)
        return table([None] * 5, start).set_column(1, lance.blob_field("blob"), array)

    lt.run(lt.Write(uri), data=rows(0))
    assert check(uri, MIXED).data_storage_version == "2.2"
    write(uri, rows(5), mode="append")
    check(uri, MIXED * 2)
    exact_files(uri)


def test_field_of_a_schema(uri: str) -> None:
    """The schema says which column is a blob; the rows bring plain bytes."""
    schema = pa.schema([("id", pa.int64()), lt.blob_field("blob"), ("tail", pa.string())])
    lt.run(lt.Write(uri, schema=schema), data=binary(MIXED, pa.binary()))
    check(uri, MIXED)


def test_pylance_takes_the_schema_for_its_own(uri: str, tmp_path: Path) -> None:
    """Field ids without gaps in the order of the fields, as pylance gives them."""
    theirs = lance.write_dataset(
        logical(MIXED, ("data", "uri"), **{"ARROW:extension:name": "lance.blob.v2"}),
        tmp_path / "theirs",
        data_storage_version="2.2",
    )
    write(uri, table(MIXED))
    ours = opened(uri)
    assert ours.schema == theirs.schema
    assert str(ours.lance_schema) == str(theirs.lance_schema)

    def data_files(dataset: lance.LanceDataset) -> list[object]:
        found = [file for f in dataset.get_fragments() for file in f.data_files()]
        versions = [(file.file_major_version, file.file_minor_version) for file in found]
        return [*versions, *[(file.fields, file.column_indices) for file in found]]

    assert data_files(ours) == data_files(theirs)


# Nullability


def test_column_without_nulls(uri: str) -> None:
    schema = pa.schema(
        [("id", pa.int64()), lt.blob_field("blob", nullable=False), ("tail", pa.string())]
    )
    present = [data for data in MIXED if data is not None]
    lt.run(lt.Write(uri, schema=schema), data=table(present))
    assert not check(uri, present).schema.field("blob").nullable
    with pytest.raises(lt.Error, match="blob"):
        lt.run(lt.Write(uri, mode="append"), data=table(MIXED))
    check(uri, present)
    exact_files(uri)


def test_nulls_and_empty_values_alone(uri: str) -> None:
    payloads = [b"", None, None, b"", b"", None]
    write(uri, binary(payloads), max_rows_per_file=2)
    check(uri, payloads)
    exact_files(uri)


def test_no_rows(uri: str) -> None:
    write(uri, table([]))
    dataset = opened(uri)
    assert dataset.count_rows() == 0
    assert dataset.schema.field("blob").type.extension_name == "lance.blob.v2"
    write(uri, table(MIXED), mode="append")
    check(uri, MIXED)
    exact_files(uri)


# Thresholds


BOUNDS = [99, 100, 101, 999, 1000, 1001]
BY_BOUNDS = ["inline", "inline", "packed", "packed", "packed", "dedicated"]


@pytest.mark.parametrize("by", ["column", "field", "lance_field"])
def test_thresholds_of_a_column(by: str, uri: str) -> None:
    payloads = [payload(size) for size in BOUNDS]
    data = table(payloads)
    sizes = {"inline_size_threshold": 100, "dedicated_size_threshold": 1000}
    if by == "column":
        write(uri, data, blob_columns=[lt.BlobColumn("blob", **sizes)])
    elif by == "field":
        field = lt.blob_field("blob", **sizes)
        lt.run(lt.Write(uri), data=data.set_column(1, field, data["blob"]))
    else:
        field = lance.blob_field("blob", **sizes)
        lt.run(lt.Write(uri), data=data.set_column(1, field, lance.blob_array(payloads)))
    assert kinds(check(uri, payloads)) == BY_BOUNDS
    # Later rows, by either side, go by what the dataset says.
    write(uri, binary(payloads, start=6), mode="append")
    assert kinds(check(uri, payloads * 2)) == BY_BOUNDS * 2
    theirs = table([None] * 6, start=12)
    theirs = theirs.set_column(1, lance.blob_field("blob"), lance.blob_array(payloads))
    lance.write_dataset(theirs, uri, mode="append")
    assert kinds(check(uri, payloads * 3)) == BY_BOUNDS * 3
    exact_files(uri)


def test_thresholds_differ_by_column(uri: str) -> None:
    payloads = [payload(size) for size in BOUNDS]
    data = table(payloads).append_column("other", pa.array(payloads, pa.binary()))
    columns = [
        lt.BlobColumn("blob", inline_size_threshold=100, dedicated_size_threshold=1000),
        lt.BlobColumn("other", inline_size_threshold=0, dedicated_size_threshold=999),
    ]
    write(uri, data, blob_columns=columns)
    dataset = check(uri, payloads)
    same(blobs_of(dataset, "other"), payloads)
    assert kinds(dataset) == BY_BOUNDS
    assert kinds(dataset, "other") == ["packed"] * 4 + ["dedicated"] * 2
    exact_files(uri)


def test_empty_values_stay_inline_whatever_the_threshold(uri: str) -> None:
    write(
        uri,
        binary([b"", b"x", None]),
        blob_columns=[lt.BlobColumn("blob", inline_size_threshold=0)],
    )
    assert kinds(check(uri, [b"", b"x", None])) == ["inline", "packed", None]
    exact_files(uri)


@pytest.mark.parametrize("by", ["column", "field", "write"])
def test_packs_are_rolled(by: str, uri: str) -> None:
    """No pack is larger than the threshold, but for one payload that is larger by itself."""
    payloads = [payload(size, n) for n, size in enumerate([400, 400, 400, 1500, 100, 100, 900])]
    sizes = {"inline_size_threshold": 0}
    data = binary(payloads)
    if by == "write":
        column = lt.BlobColumn("blob", **sizes)
        write(uri, data, blob_columns=[column], blob_pack_file_size_threshold=1000)
    elif by == "column":
        write(
            uri, data, blob_columns=[lt.BlobColumn("blob", pack_file_size_threshold=1000, **sizes)]
        )
    else:
        field = lt.blob_field("blob", pack_file_size_threshold=1000, **sizes)
        lt.run(lt.Write(uri), data=table(payloads).set_column(1, field, table(payloads)["blob"]))
    dataset = check(uri, payloads)
    assert set(kinds(dataset)) == {"packed"}
    packs: dict[int, list[int]] = {}
    for found in descriptors(dataset):
        packs.setdefault(found["blob_id"], []).append(found["size"])
    assert len(packs) < len(payloads)
    assert all(sum(sizes) <= 1000 or sizes == [1500] for sizes in packs.values()), packs
    exact_files(uri)


def test_several_packs_of_large_payloads(uri: str) -> None:
    """Payloads in the megabytes, of which several are written at one time."""
    payloads = [payload(1 << 20, n) for n in range(24)]
    write(uri, binary(payloads))
    assert set(kinds(check(uri, payloads))) == {"packed"}
    exact_files(uri)


@pytest.mark.parametrize("threshold", ["dedicated_size_threshold", "pack_file_size_threshold"])
def test_thresholds_of_0_are_refused(threshold: str, uri: str) -> None:
    column = lt.BlobColumn("blob", **{threshold: 0})
    with pytest.raises(lt.InvalidArgumentError, match=rf"blob.*{threshold}"):
        write(uri, binary([b"x"]), blob_columns=[column])
    with pytest.raises(lt.InvalidArgumentError, match="blob_pack_file_size_threshold"):
        write(uri, binary([b"x"]), blob_pack_file_size_threshold=0)
    assert files(uri) == {}


@pytest.mark.parametrize("text", ["many", "-1", "", "1.5"])
def test_thresholds_that_are_no_numbers_are_refused(text: str, uri: str) -> None:
    key = "lance-encoding:blob-inline-size-threshold"
    data = table([b"x"])
    field = lt.blob_field("blob").with_metadata({**lt.blob_field("blob").metadata, key: text})
    with pytest.raises(lt.Error, match=rf'"blob".*{key}'):
        lt.run(lt.Write(uri), data=data.set_column(1, field, data["blob"]))
    assert files(uri) == {}
