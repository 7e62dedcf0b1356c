# SPDX-License-Identifier: Apache-2.0
"""Blobs on S3: written, referred to, copied, shared, and what is left of attempts."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import stores
from blob_cases import (
    DEDICATED,
    INLINE,
    binary,
    check,
    descriptors,
    exact_files,
    kinds,
    listed_by,
    opened,
    payload,
    same,
    scanned,
    table,
    write,
)
from stores import Bucket, Proxy, Store

import lance_tasks as lt


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with stores.s3() as store:
        yield store


@pytest.fixture
def bucket(store: Store) -> Bucket:
    return store.bucket()


DATA = payload(10_000, "object")
OBJECTS = {"inline": 500, "packed": INLINE + 1, "dedicated": DEDICATED + 1}


def objects(bucket: Bucket) -> dict[str, str]:
    """Objects of every size; their URIs."""
    for name, size in OBJECTS.items():
        bucket.put(f"objects/{name}", payload(size, name))
    return {name: bucket.uri(f"objects/{name}") for name in OBJECTS}


def exact(bucket: Bucket) -> None:
    exact_files(bucket.uri(), options=bucket.options, there=bucket.files("d.lance"))


def rows_of_every_kind(bucket: Bucket) -> tuple[list[object], list[bytes | None]]:
    uris = objects(bucket)
    sizes = [10, INLINE + 1, DEDICATED + 1]
    values: list[object] = [*map(payload, sizes), None, b"", uris["packed"]]
    values.append(lt.Blob(uri=uris["dedicated"], position=1_000_000, size=5000))
    expected = [*map(payload, sizes), None, b"", payload(INLINE + 1, "packed")]
    expected.append(payload(DEDICATED + 1, "dedicated")[1_000_000:1_005_000])
    return values, expected


KINDS = ["inline", "packed", "dedicated", None, "inline", "external", "external"]


@pytest.mark.parametrize("fragments", [1, 4])
def test_every_kind(bucket: Bucket, fragments: int) -> None:
    """Created, appended to, overwritten; references are relative to their base."""
    values, expected = rows_of_every_kind(bucket)
    options = {"storage_options": bucket.options, "max_rows_per_file": 8 // fragments}
    base = lt.Base(1, bucket.uri("objects"))
    write(bucket.uri(), table(values), initial_bases=[base], **options)
    dataset = check(bucket.uri(), expected, options=bucket.options)
    assert kinds(dataset) == KINDS
    assert [d["blob_uri"] for d in descriptors(dataset)[5:]] == ["packed", "dedicated"]
    exact(bucket)
    write(bucket.uri(), table(values, start=7), mode="append", **options)
    check(bucket.uri(), expected * 2, options=bucket.options)
    exact(bucket)
    write(bucket.uri(), table(values), mode="overwrite", **options)
    check(bucket.uri(), expected, options=bucket.options)
    same(scanned(opened(bucket.uri(), 2, bucket.options)), expected * 2)
    exact(bucket)


@pytest.mark.parametrize("local", [False, True], ids=["s3", "local"])
def test_objects_are_copied(bucket: Bucket, local: bool, uri: str) -> None:
    """Into the bucket itself, and from S3 into a dataset on this machine."""
    uris = objects(bucket)
    values = [*uris.values(), lt.Blob(uri=uris["dedicated"], position=9, size=INLINE + 1)]
    expected = [payload(size, name) for name, size in OBJECTS.items()]
    expected.append(expected[2][9 : 9 + INLINE + 1])
    place = uri if local else bucket.uri()
    options = {"storage_options": bucket.options, "external_blob_mode": "ingest"}
    write(place, table(values), **options)
    dataset = check(place, expected, options=bucket.options)
    assert kinds(dataset) == ["inline", "packed", "dedicated", "packed"]
    if local:
        exact_files(uri)
    else:
        exact(bucket)


def test_references_from_this_machine_to_s3(bucket: Bucket, uri: str) -> None:
    """Outside of the bases they are absolute; options of the call open them."""
    uris = objects(bucket)
    outside = {"allow_external_blob_outside_bases": True, "storage_options": bucket.options}
    write(uri, table([uris["inline"]]), **outside)
    (found,) = descriptors(opened(uri, options=bucket.options))
    assert (found["kind"], found["blob_id"], found["blob_uri"]) == (3, 0, uris["inline"])
    assert found["size"] == 500
    with pytest.raises(lt.InvalidArgumentError, match="registered base"):
        write(uri, table([uris["inline"]]), mode="append", storage_options=bucket.options)


@pytest.mark.parametrize("mode", ["reference", "ingest"])
@pytest.mark.parametrize(
    ("name", "position", "why"),
    [("missing", None, "no object"), ("inline", 400, "500"), ("missing", 0, "no object")],
)
def test_wrong_references(
    bucket: Bucket, mode: str, name: str, position: int | None, why: str
) -> None:
    objects(bucket)
    size = None if position is None else 101
    wrong = lt.Blob(uri=bucket.uri(f"objects/{name}"), position=position, size=size)
    base = lt.Base(1, bucket.uri("objects"))
    options = {"storage_options": bucket.options, "external_blob_mode": mode}
    values = [payload(INLINE + 1)] * 4 + [wrong]
    with pytest.raises(lt.Error, match=rf'"blob", row 4.*{why}') as caught:
        write(bucket.uri(), table(values), initial_bases=[base], max_rows_per_file=2, **options)
    assert isinstance(caught.value, lt.SourceError | lt.InvalidArgumentError)
    assert not [path for path in bucket.files("d.lance") if path.endswith((".blob", ".lance"))]


def test_each_object_is_looked_up_once(store: Store) -> None:
    """However many rows refer to it."""
    bucket = store.bucket()
    bucket.put("objects/one", DATA)
    with Proxy(store) as proxy:
        values = [lt.Blob(uri=bucket.uri("objects/one"), position=n, size=9) for n in range(200)]
        base = lt.Base(1, bucket.uri("objects"))
        write(bucket.uri(), table(values), initial_bases=[base], storage_options=proxy.options)
        asked = [method for method, path in proxy.requests if path.endswith("objects/one")]
    assert len(asked) <= 16, asked  # those that begin at the same moment
    check(bucket.uri(), [DATA[n : n + 9] for n in range(200)], options=bucket.options)


# Sharing


@pytest.mark.parametrize("scope", [None, "dataset"], ids=["file", "dataset"])
@pytest.mark.parametrize("size", [32_768, 1_000_000, 6_000_000], ids=["32 KB", "1 MB", "6 MB"])
def test_payload_is_stored_once(bucket: Bucket, size: int, scope: str | None) -> None:
    data = payload(size)
    rows = [lt.Blob(data, ref_id=1) for _ in range(20)]
    options = {"storage_options": bucket.options}
    write(bucket.uri(), table(rows), dedup_scope=scope, **options)
    check(bucket.uri(), [data] * 20, options=bucket.options)
    found = bucket.files("d.lance")
    assert [s for path, s in found.items() if path.endswith(".blob")] == [size]
    exact(bucket)
    write(bucket.uri(), table(rows, start=20), mode="append", max_rows_per_file=10, **options)
    check(bucket.uri(), [data] * 40, options=bucket.options)
    found = bucket.files("d.lance")
    assert [s for p, s in found.items() if p.endswith(".blob")] == [size] * (1 if scope else 3)
    exact(bucket)


def test_different_bytes_under_one_id(bucket: Bucket) -> None:
    rows = [lt.Blob(payload(INLINE + 1, n), ref_id=3) for n in range(2)]
    with pytest.raises(lt.InvalidArgumentError, match="rows 0 and 1 have ref_id 3"):
        write(bucket.uri(), table(rows), storage_options=bucket.options)
    assert bucket.files("d.lance") == {}


# Attempts that come to nothing


@pytest.mark.parametrize("scope", [None, "dataset"], ids=["file", "dataset"])
def test_abort(bucket: Bucket, scope: str | None) -> None:
    rows = [payload((10, INLINE + 1, DEDICATED + 1)[n % 3], n) for n in range(9)]
    call = {"storage_options": bucket.options}
    spec = lt.Write(
        bucket.uri(),
        blob_columns=["blob"],
        dedup="content",
        dedup_scope=scope,
        max_rows_per_file=4,
    )
    job = lt.prepare(spec, schema=binary([]).schema, **call)
    results = [lt.execute(job.task("0"), binary(rows), **call) for _ in range(2)]
    assert listed_by(results) == bucket.files("d.lance")
    lt.abort(job, [], **call)
    assert bucket.files("d.lance") == {}
    results = [lt.execute(job.task("0"), binary(rows), **call) for _ in range(2)]
    lt.commit(job, results, **call)
    lt.abort(job, results, **call)
    check(bucket.uri(), rows, options=bucket.options)
    exact(bucket)


@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("path", [r"\.blob", r"\.lance(\?|$)"], ids=["payload", "data file"])
def test_store_that_fails(store: Store, path: str, method: str) -> None:
    """In mid-write: an error, and after abort no object; a retry is whole."""
    bucket = store.bucket()
    rows = [payload((10, INLINE + 1, 6_000_000)[n % 3], n) for n in range(9)]
    with Proxy(store) as proxy:
        call = {"storage_options": proxy.options | stores.IMPATIENT}
        spec = lt.Write(bucket.uri(), blob_columns=["blob"], max_rows_per_file=4)
        job = lt.prepare(spec, schema=binary([]).schema, **call)
        rule = proxy.add("fail", method=method, path=path, first=2)
        results = []
        if method == "PUT" or "blob" in path:
            with pytest.raises(lt.StorageError):
                lt.execute(job.task("0"), binary(rows), **call)
            assert rule.hits
        else:  # small enough to be put in one request
            results.append(lt.execute(job.task("0"), binary(rows), **call))
        proxy.recover()
        lt.abort(job, results, **call)
        assert bucket.files("d.lance") == {}
        results = [lt.execute(job.task("0"), binary(rows), **call)]
        lt.commit(job, results, **call)
    check(bucket.uri(), rows, options=bucket.options)
    exact(bucket)


# Bases


def test_data_files_in_a_base(bucket: Bucket, tmp_path: Path) -> None:
    """Payloads lie beside them, in another part of the bucket."""
    rows = [payload((10, INLINE + 1, DEDICATED + 1)[n % 3], n) for n in range(6)]
    base = lt.Base(2, bucket.uri("elsewhere"), name="elsewhere")
    write(
        bucket.uri(),
        table(rows),
        initial_bases=[base],
        target_bases=["elsewhere"],
        max_rows_per_file=3,
        storage_options=bucket.options,
    )
    check(bucket.uri(), rows, options=bucket.options)
    assert not [path for path in bucket.files("d.lance") if path.startswith("data/")]
    found = bucket.files("elsewhere")
    stems = {path.removesuffix(".lance") for path in found if path.endswith(".lance")}
    assert len(stems) == 2 and len(found) == 2 + 2 * 2
    assert {path.split("/")[0] for path in found if path.endswith(".blob")} == stems


def test_sources_on_s3(bucket: Bucket) -> None:
    rows = [payload((10, INLINE + 1)[n % 2], n) for n in range(20)]
    source = bucket.put_parquet("in.parquet", binary(rows, pa.binary()))
    options = {"storage_options": bucket.options}
    write(bucket.uri(), None, sources=[source], max_rows_per_file=7, **options)
    check(bucket.uri(), rows, options=bucket.options)
    exact(bucket)
