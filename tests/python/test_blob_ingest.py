# SPDX-License-Identifier: Apache-2.0
"""Blobs copied from objects: every class of size, and more bytes than a task may hold."""

from pathlib import Path

import pytest
from blob_cases import (
    DEDICATED,
    INLINE,
    check,
    data_bytes,
    descriptors,
    exact_files,
    kinds,
    listed,
    opened,
    payload,
    put,
    same,
    scanned,
    table,
    write,
)
from support import files, unchanged

import lance_tasks as lt

SIZES = {
    "empty": 0,
    "one": 1,
    "inline": INLINE,
    "packed": INLINE + 1,
    "large-packed": DEDICATED,
    "dedicated": DEDICATED + 1,
}


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.mark.parametrize("mode", ["create", "append", "overwrite"])
@pytest.mark.parametrize("registered", [False, True], ids=["outside", "base"])
def test_every_size(mode: str, registered: bool, objects: Path, uri: str) -> None:
    """Whole objects and parts, by path and URI; afterwards nobody needs the objects."""
    values: list[object] = [b"here", None]
    expected: list[bytes | None] = [b"here", None]
    for name, size in SIZES.items():
        data = payload(size, name)
        path = put(objects, name, data)
        values += [path, Path(path).as_uri()]
        expected += [data, data]
        if size > 1:
            values += [lt.Blob(uri=path, position=0, size=size)]
            values += [lt.Blob(uri=path, position=1, size=size - 1)]
            expected += [data, data[1:]]
    options: dict[str, object] = {"external_blob_mode": "ingest"}
    bases = {"initial_bases": [lt.Base(1, str(objects))]} if registered else {}
    start = 0
    if mode != "create":
        write(uri, table([b"before"]), **bases)
        start = 1 if mode == "append" else 0
    bases = bases if mode == "create" else {}
    write(uri, table(values, start), mode=mode, max_rows_per_file=9, **options, **bases)
    for path in objects.iterdir():
        path.unlink()
    dataset = check(uri, [b"before"] * start + expected)
    assert kinds(dataset)[start:] == [
        None
        if data is None
        else ["inline", "packed", "dedicated"][(len(data) > INLINE) + (len(data) > DEDICATED)]
        for data in expected
    ]
    exact_files(uri)


@pytest.mark.parametrize("part", [False, True], ids=["whole", "ranges"])
@pytest.mark.parametrize("size", [50_000, 1_500_000, 5_000_000], ids=["inline", "pack", "file"])
def test_more_than_fits(size: int, part: bool, objects: Path, uri: str) -> None:
    """One batch whose objects together are several times what a task may hold."""
    rows = 48_000_000 // size
    objects.mkdir()
    values, expected = [], []
    for n in range(min(rows, 40)):
        data = payload(size + n + 3, n)
        path = put(objects, f"{n}", data)
        values.append(lt.Blob(uri=path, position=3, size=size) if part else lt.Blob(uri=path))
        expected.append(data[3 : 3 + size] if part else data)
    while len(values) < rows:
        values, expected = values * 2, expected * 2
    values, expected = values[:rows], expected[:rows]
    spec = lt.Write(uri, blob_columns=["blob"], external_blob_mode="ingest")
    executor = lt.Executor(num_threads=2, memory_budget=32 << 20)
    job = lt.prepare(spec, schema=table([]).schema)
    lt.commit(job, [lt.execute(job.task("0"), table(values), executor=executor)])
    dataset = opened(uri)
    assert dataset.count_rows() == rows
    same(scanned(dataset), expected)
    assert sum(d["size"] for d in descriptors(dataset)) == sum(map(len, expected))
    exact_files(uri)


@pytest.mark.parametrize("part", [False, True], ids=["whole", "range"])
def test_one_object_beyond_the_budget(part: bool, objects: Path, uri: str) -> None:
    path = put(objects, "large", bytes(40 << 20))
    small = put(objects, "small", b"small")
    large = lt.Blob(uri=path, position=1, size=(40 << 20) - 1) if part else lt.Blob(uri=path)
    values = [lt.Blob(uri=small)] * 20 + [large]
    spec = lt.Write(uri, blob_columns=["blob"], external_blob_mode="ingest", max_rows_per_file=7)
    executor = lt.Executor(num_threads=2, memory_budget=32 << 20)
    job = lt.prepare(spec, schema=table([]).schema)
    size = large.size or 40 << 20
    with pytest.raises(lt.BudgetExceededError, match=rf'"blob", row 20.*{size}'):
        lt.execute(job.task("0"), table(values), executor=executor)
    assert listed(uri) == {}
    # A reference holds nothing; and a larger budget is enough.
    spec = lt.Write(uri, blob_columns=["blob"], allow_external_blob_outside_bases=True)
    lt.run(spec, data=table(values), executor=executor)
    assert kinds(opened(uri)) == ["external"] * 21
    executor = lt.Executor(num_threads=1, memory_budget=512 << 20)
    spec = lt.Write(uri, mode="append", external_blob_mode="ingest")
    lt.run(spec, data=table(values, start=21), executor=executor)
    assert kinds(opened(uri))[21:] == ["inline"] * 20 + ["dedicated"]
    same(scanned(opened(uri))[41:], [bytes(40 << 20)[1 if part else 0 :]])
    exact_files(uri)


def test_one_object_in_many_rows(objects: Path, uri: str) -> None:
    """With a ref_id, or by content, what was copied once is stored once."""
    data = payload(200_000)
    path = put(objects, "one", data)
    copies = [lt.Blob(uri=path) for _ in range(10)]
    write(uri, table(copies), external_blob_mode="ingest")
    assert data_bytes(uri) > 10 * len(data)
    shared = [lt.Blob(uri=path, ref_id=1) for _ in range(10)]
    write(uri, table(shared), mode="overwrite", external_blob_mode="ingest")
    assert len({(d["blob_id"], d["position"]) for d in descriptors(check(uri, [data] * 10))}) == 1
    write(uri, table(copies), mode="overwrite", external_blob_mode="ingest", dedup="content")
    assert len({(d["blob_id"], d["position"]) for d in descriptors(check(uri, [data] * 10))}) == 1
    exact_files(uri)


def test_objects_and_bytes_share(objects: Path, uri: str) -> None:
    """The same bytes under one ref_id, given or copied; others are refused."""
    data = payload(5000)
    path = put(objects, "one", data)
    part = lt.Blob(uri=put(objects, "two", b"ab" + data), position=2, size=5000, ref_id=9)
    values = [lt.Blob(data, ref_id=9), lt.Blob(uri=path, ref_id=9), part]
    write(uri, table(values), external_blob_mode="ingest")
    found = descriptors(check(uri, [data] * 3))
    assert len({(d["blob_id"], d["position"]) for d in found}) == 1
    wrong = lt.Blob(uri=path, position=0, size=4999, ref_id=9)
    with unchanged(uri), pytest.raises(lt.InvalidArgumentError, match=r"rows 2 and 3.*ref_id 9"):
        data_rows = table([*values, wrong], start=3)
        write(uri, data_rows, mode="append", external_blob_mode="ingest")


def test_references_are_not_copied(objects: Path, uri: str) -> None:
    path = put(objects, "one", payload(1_000_000))
    write(uri, table([path]), allow_external_blob_outside_bases=True)
    assert data_bytes(uri) < 10_000
    assert files(objects) == {"one": 1_000_000}
