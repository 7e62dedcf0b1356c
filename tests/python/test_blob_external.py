# SPDX-License-Identifier: Apache-2.0
"""Blobs that are references: objects and parts of them by URI, and bases beside the dataset."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import lance
import pyarrow as pa
import pytest
from blob_cases import (
    DEDICATED,
    INLINE,
    blobs_of,
    check,
    descriptors,
    exact_files,
    kinds,
    listed,
    opened,
    payload,
    put,
    referenced,
    same,
    sidecar,
    table,
    write,
)
from support import files, unchanged

import lance_tasks as lt

DATA = payload(10_000, "object")


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """A folder of objects, which is to be a base."""
    folder = tmp_path / "objects"
    put(folder, "one", DATA)
    put(folder / "deep" / "er", "two", DATA[:100])
    put(folder, "empty", b"")
    return folder


def bases(objects: Path, **options: object) -> dict[str, object]:
    return {"initial_bases": [lt.Base(3, str(objects), name="objects", **options)]}


def raw(rows: list[dict[str, object] | None], **types: pa.DataType) -> pa.Table:
    """Rows that `lt.Blob` would refuse."""
    kind = table([]).schema.field("blob").type
    return table([None] * len(rows)).set_column(1, "blob", pa.array(rows, kind))


# References


def test_objects_and_parts(objects: Path, uri: str) -> None:
    """By path and by URI, whole and in part, to the last byte, beside nulls and bytes."""
    one, two = objects / "one", objects / "deep" / "er" / "two"
    values: list[object] = [
        str(one),
        one.as_uri(),
        lt.Blob(uri=str(two)),
        None,
        lt.Blob(uri=str(one), position=0, size=1),
        lt.Blob(uri=one.as_uri(), position=9_000, size=1_000),
        b"here",
        lt.Blob(uri=str(one), position=0, size=10_000),
        str(objects / "empty"),
    ]
    expected = [
        *(DATA, DATA, DATA[:100], None, DATA[:1], DATA[9_000:], b"here", DATA, b""),
    ]
    write(uri, table(values), max_rows_per_file=4, **bases(objects))
    dataset = check(uri, expected)
    assert (
        kinds(dataset)
        == ["external"] * 3 + [None] + ["external"] * 2 + ["inline"] + ["external"] * 2
    )
    found = [d for d in descriptors(dataset) if d is not None and d["kind"] == 3]
    assert [(d["blob_id"], d["blob_uri"]) for d in found] == [
        *((3, "one"), (3, "one"), (3, "deep/er/two"), (3, "one"), (3, "one"), (3, "one")),
        (3, "empty"),
    ]
    exact_files(uri)
    assert not list(Path(uri).rglob("*.blob"))


def test_the_innermost_base(objects: Path, uri: str) -> None:
    inner = [lt.Base(1, str(objects)), lt.Base(2, str(objects / "deep")), lt.Base(4, "/nowhere")]
    values = [str(objects / "one"), str(objects / "deep/er/two")]
    write(uri, table(values), initial_bases=inner)
    found = [(d["blob_id"], d["blob_uri"]) for d in descriptors(check(uri, [DATA, DATA[:100]]))]
    assert found == [(1, "one"), (2, "er/two")]


def test_names_that_need_escaping(objects: Path, uri: str) -> None:
    names = ["with space", "percent%20", "ümläut", "plus+", "hash#a", "question?"]
    values: list[object] = []
    for n, name in enumerate(names):
        path = put(objects, name, payload(100, n))
        values += [path, f"file://{quote(path)}"]
    write(uri, table(values), **bases(objects))
    check(uri, [payload(100, n // 2) for n in range(2 * len(names))])


def test_a_base_that_is_a_dataset_root(objects: Path, uri: str) -> None:
    """Objects lie below the root itself, not in `data/`."""
    write(uri, table([str(objects / "one")]), **bases(objects, is_dataset_root=True))
    check(uri, [DATA])


def test_moved_base(objects: Path, uri: str, tmp_path: Path) -> None:
    """What is stored is relative to the base, not absolute."""
    write(uri, table([str(objects / "one"), None]), **bases(objects))
    (found, _) = descriptors(opened(uri))
    assert str(objects) not in found["blob_uri"]


def test_append_and_pylance_appends(objects: Path, uri: str) -> None:
    """References by either side, to a base that either has registered."""
    write(uri, table([str(objects / "one")]), **bases(objects))
    part = lt.Blob(uri=str(objects / "one"), position=10, size=20)
    write(uri, table([part, None], start=1), mode="append")
    values = [lance.Blob.from_uri((objects / "one").as_uri(), 5, 6), None]
    theirs = table([None, None], start=3)
    theirs = theirs.set_column(1, lance.blob_field("blob"), lance.blob_array(values))
    lance.write_dataset(theirs, uri, mode="append")
    check(uri, [DATA, DATA[10:30], None, DATA[5:11], None])
    exact_files(uri)


@pytest.mark.parametrize("form", ["position and size", "uri only"])
def test_base_that_pylance_registered(form: str, objects: Path, uri: str) -> None:
    write(uri, table([b"x"]))
    opened(uri).add_bases([lance.DatasetBasePath(str(objects), "objects", False, 5)])
    value = lt.Blob(uri=str(objects / "one"))
    if form != "uri only":
        value = lt.Blob(uri=str(objects / "one"), position=1, size=2)
    write(uri, table([value], start=1), mode="append")
    dataset = check(uri, [b"x", DATA if form == "uri only" else DATA[1:3]])
    assert descriptors(dataset)[1]["blob_id"] == 5


def test_structs_in_lists(objects: Path, uri: str) -> None:
    kind = pa.list_(table([]).schema.field("blob").type)
    one = {"uri": str(objects / "one")}
    rows = [[one, None], None, [], [{"data": b"x"}, one | {"position": 3, "size": 4}]]
    data = pa.table({"id": range(4), "docs": pa.array(rows, kind)})
    write(uri, data, blob_columns=["docs"], **bases(objects))
    found = opened(uri).scanner(columns=["docs"], blob_handling="all_binary").to_table()
    assert found["docs"].to_pylist() == [[DATA, None], None, [], [b"x", DATA[3:7]]]


# Outside of the bases


@pytest.mark.parametrize("how", ["no base", "another base", "a neighbour"])
def test_outside_of_the_bases_is_refused(how: str, objects: Path, uri: str, tmp_path: Path) -> None:
    options = {
        "no base": {},
        "another base": {"initial_bases": [lt.Base(1, str(tmp_path / "other"))]},
        # A prefix of its name, not a folder above it.
        "a neighbour": {"initial_bases": [lt.Base(1, str(objects)[:-1])]},
    }[how]
    values = [b"fine"] * 25 + [lt.Blob(uri=str(objects / "one"))]
    with pytest.raises(lt.InvalidArgumentError, match=r'"blob", row 25.*one.*registered base'):
        write(uri, table(values), max_rows_per_file=10, **options)
    assert files(uri) == {}


def test_up_and_out_of_a_base(objects: Path, uri: str, tmp_path: Path) -> None:
    put(tmp_path, "secret", b"secret")
    for way in (f"{objects}/../secret", f"file://{objects}/../secret", f"{objects}/%2e%2e/secret"):
        with pytest.raises(lt.Error, match='"blob", row 0'):
            write(uri, table([way]), **bases(objects))
    assert files(uri) == {}


@pytest.mark.parametrize("way", ["{0}/one", "file://{0}/one"])
def test_outside_of_the_bases_allowed(way: str, objects: Path, uri: str, tmp_path: Path) -> None:
    other = lt.Base(1, str(tmp_path / "other"))
    value = way.format(objects)
    values = [value, lt.Blob(uri=value, position=7, size=9), b"x" * (INLINE + 1), None]
    options = {"initial_bases": [other], "allow_external_blob_outside_bases": True}
    write(uri, table(values), **options)
    dataset = check(uri, [DATA, DATA[7:16], b"x" * (INLINE + 1), None])
    for found in descriptors(dataset)[:2]:
        assert (found["blob_id"], found["blob_uri"]) == (0, (objects / "one").as_uri())
    exact_files(uri)


def test_the_permission_is_not_kept(objects: Path, uri: str) -> None:
    values = [str(objects / "one")]
    write(uri, table(values), allow_external_blob_outside_bases=True)
    with unchanged(uri), pytest.raises(lt.InvalidArgumentError, match="registered base"):
        write(uri, table(values, start=1), mode="append")


# Wrong values


def shifted(row: dict[str, object]) -> list[dict[str, object] | None]:
    """After rows that are right, some of them in files that are whole by then."""
    return [*[{"data": b"fine"}] * 12, None, row]


WRONG: dict[str, tuple[Callable[[Path], dict[str, object]], str]] = {
    "missing object": (lambda o: {"uri": f"{o}/missing"}, "no object.*missing"),
    "missing folder": (lambda o: {"uri": f"{o}/no/such"}, "no object.*no/such"),
    "missing part": (lambda o: {"uri": f"{o}/missing", "position": 0, "size": 1}, "no object"),
    "beyond the end": (lambda o: {"uri": f"{o}/one", "position": 9_999, "size": 2}, "10000"),
    "far beyond": (lambda o: {"uri": f"{o}/one", "position": 2**64 - 1, "size": 1}, "10000"),
    "overflow": (lambda o: {"uri": f"{o}/one", "position": 2**63, "size": 2**63}, "10000"),
    "begins at the end": (lambda o: {"uri": f"{o}/one", "position": 10_000, "size": 1}, "10000"),
    "position alone": (lambda o: {"uri": f"{o}/one", "position": 1}, "position without a size"),
    "size alone": (lambda o: {"uri": f"{o}/one", "size": 1}, "size without a position"),
    "size 0": (lambda o: {"uri": f"{o}/one", "position": 1, "size": 0}, "0"),
    "both": (lambda o: {"data": b"x", "uri": f"{o}/one"}, "both of data and uri"),
    "neither": (lambda o: {"position": None}, "neither of data and uri"),
    "part of data": (lambda o: {"data": b"abc", "position": 0, "size": 1}, "position and size"),
    "a folder": (lambda o: {"uri": f"{o}/deep"}, "deep"),
    "no uri": (lambda o: {"uri": ""}, "URI"),
    "relative": (lambda o: {"uri": "one"}, 'one" is no absolute URI'),
    "strange scheme": (lambda o: {"uri": "gopher://host/one"}, "gopher"),
}


@pytest.mark.parametrize("mode", ["reference", "ingest"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_values(case: str, mode: str, objects: Path, uri: str) -> None:
    """The error names the column and the row, and no file is left."""
    make, why = WRONG[case]
    data = raw(shifted(make(objects)))
    with (
        unchanged(objects),
        pytest.raises(
            (lt.InvalidArgumentError, lt.SourceError), match=rf'(?s)"blob", row 13.*{why}'
        ),
    ):
        write(uri, data, max_rows_per_file=5, external_blob_mode=mode, **bases(objects))
    assert listed(uri) == {}


def test_rows_are_counted_over_batches_and_partitions(objects: Path, uri: str) -> None:
    """A row is one of the task's."""
    data = raw([{"data": b"x"}] * 40 + [{"uri": f"{objects}/missing"}])
    reader = pa.RecordBatchReader.from_batches(data.schema, data.to_batches(max_chunksize=7))
    with pytest.raises(lt.SourceError, match="row 40"):
        write(uri, reader, max_rows_per_file=11, **bases(objects))
    assert listed(uri) == {}


def test_rows_within_lists_are_rows(objects: Path, uri: str) -> None:
    kind = pa.list_(table([]).schema.field("blob").type)
    rows = [[{"data": b"x"}] * 3, [], [{"data": b"x"}, {"uri": f"{objects}/missing"}]]
    data = pa.table({"docs": pa.array(rows, kind)})
    with pytest.raises(lt.SourceError, match='"docs", row 2'):
        write(uri, data, blob_columns=["docs"], **bases(objects))


SECRETS = [
    "https://user:hunter2@example.com/object",
    "s3://key:hunter2@bucket/object",
    "https://example.com/object?X-Amz-Signature=hunter2",
    "https://account.example.com/object?sv=1&sig=hunter2",
    "s3://bucket/object?aws_secret_access_key=hunter2",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("mode", ["reference", "ingest", "outside"])
def test_secrets_are_refused_and_not_quoted(secret: str, mode: str, uri: str) -> None:
    options = {
        "reference": {},
        "ingest": {"external_blob_mode": "ingest"},
        "outside": {"allow_external_blob_outside_bases": True},
    }[mode]
    with pytest.raises(lt.InvalidArgumentError, match=r'"blob", row 1.*credentials') as caught:
        write(uri, table([b"x", secret]), **options)
    assert "hunter2" not in str(caught.value) + repr(caught.value)
    assert files(uri) == {}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"external_blob_mode": "copy"}, "external_blob_mode.*copy"),
        (
            {"external_blob_mode": "ingest", "allow_external_blob_outside_bases": True},
            "allow_external_blob_outside_bases",
        ),
    ],
)
def test_wrong_options(options: dict[str, object], why: str, uri: str) -> None:
    with pytest.raises(lt.InvalidArgumentError, match=why):
        write(uri, table([b"x"]), **options)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"data": b"x", "uri": "/x"},
        {"uri": "/x", "position": 1},
        {"uri": "/x", "size": 1},
        {"data": b"x", "position": 0, "size": 1},
    ],
    ids=str,
)
def test_the_helper_refuses(arguments: dict[str, object]) -> None:
    with pytest.raises(lt.InvalidArgumentError):
        lt.Blob(**arguments)
    with pytest.raises(lt.InvalidArgumentError, match=r"row 1.*int"):
        lt.blob_array([b"x", 5])


# Data files in bases


@pytest.mark.parametrize("is_dataset_root", [False, True], ids=["plain", "root"])
def test_payloads_lie_beside_their_data_file(
    is_dataset_root: bool, uri: str, tmp_path: Path
) -> None:
    places = {n: tmp_path / f"base-{n}" for n in (1, 2)}
    initial = [
        lt.Base(n, str(place), name=f"base-{n}", is_dataset_root=is_dataset_root)
        for n, place in places.items()
    ]
    rows = [payload((10, INLINE + 1, DEDICATED + 1)[n % 3], n) for n in range(12)]
    targets = ["base-1", "base-2"]
    write(uri, table(rows), initial_bases=initial, target_bases=targets, max_rows_per_file=3)
    check(uri, rows)
    assert listed(uri) == {}
    exact_files(uri, places)
    for place in places.values():
        found = files(place)
        assert sum(path.endswith(".lance") for path in found) == 2
        assert sum(path.endswith(".blob") for path in found) == 4
    # Into the dataset's own storage, one base, and all in turn.
    for n, target in enumerate([{}, {"target_bases": ["base-2"]}, {"target_all_bases": True}]):
        write(uri, table(rows, 12 + 12 * n), mode="append", max_rows_per_file=3, **target)
    check(uri, rows * 4)
    exact_files(uri, places)
    assert len([path for path in listed(uri) if path.endswith(".lance")]) >= 4 + 1


@pytest.mark.parametrize("is_dataset_root", [False, True], ids=["plain", "root"])
def test_abort_in_bases(is_dataset_root: bool, uri: str, tmp_path: Path) -> None:
    place = tmp_path / "base"
    initial = [lt.Base(1, str(place), name="base", is_dataset_root=is_dataset_root)]
    rows = [payload((10, INLINE + 1, DEDICATED + 1)[n % 3], n) for n in range(6)]
    spec = lt.Write(
        uri,
        blob_columns=["blob"],
        initial_bases=initial,
        target_bases=["base"],
        max_rows_per_file=3,
    )
    job = lt.prepare(spec, schema=table(rows).schema)
    results = [lt.execute(job.task("0"), table(rows)) for _ in range(2)]
    for result in results:
        made = {f["path"]: f["size"] for f in result.to_dict()["files"]}
        assert made.items() <= files(place).items()
        assert {f["base"] for f in result.to_dict()["files"]} == {1}
        assert len(made) == 2 + 2 * 2
    lt.commit(job, results)
    lt.abort(job, results)
    check(uri, rows)
    exact_files(uri, {1: place})
    again = lt.prepare(
        lt.Write(uri, mode="append", target_bases=["base"]), schema=table(rows).schema
    )
    before = files(place)
    lt.execute(again.task("0"), table(rows))
    assert files(place) != before
    lt.abort(again, [])
    assert files(place) == before


def test_references_from_data_files_in_bases(objects: Path, uri: str, tmp_path: Path) -> None:
    place = tmp_path / "base"
    initial = [lt.Base(1, str(place), name="base"), lt.Base(3, str(objects))]
    values = [str(objects / "one"), payload(INLINE + 1), None]
    write(uri, table(values), initial_bases=initial, target_bases=["base"])
    check(uri, [DATA, payload(INLINE + 1), None])
    exact_files(uri, {1: place})
    ((base, path),) = [at for at in referenced(opened(uri)) if at[1].endswith(".lance")]
    assert base == 1 and Path(place, sidecar(path, 1)).exists()


def test_pylance_deletes_and_appends(objects: Path, uri: str) -> None:
    """What is left after a delete, and beside rows that pylance adds."""
    values = [str(objects / "one"), b"x", payload(INLINE + 1), payload(DEDICATED + 1), None, b""]
    write(uri, table(values), max_rows_per_file=3, **bases(objects))
    opened(uri).delete("id in (1, 3)")
    expected = [DATA, payload(INLINE + 1), None, b""]
    same(blobs_of(opened(uri)), expected)
    exact_files(uri)
