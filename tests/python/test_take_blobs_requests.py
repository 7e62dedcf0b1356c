# SPDX-License-Identifier: Apache-2.0
"""Blobs on S3: which bytes are asked for, seen by a proxy before the store."""

import http.client
import re
import threading
from collections.abc import Iterator

import blobs
import lance
import pyarrow as pa
import pytest
import stores
from stores import Proxy, Store

import lance_tasks as lt


@pytest.fixture(scope="module")
def s3() -> Iterator[Store]:
    with stores.s3() as store:
        yield store


class Reads:
    """The byte ranges that are asked for while a block runs, of objects that a pattern names."""

    def __init__(self, proxy: Proxy, path: str) -> None:
        self._proxy = proxy
        self._path = path
        self._lock = threading.Lock()
        self.ranges: list[tuple[int, int]] = []

    def __enter__(self) -> "Reads":
        self._proxy.add("fail", method="GET", path=self._path, when=self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.rules.clear()

    def _note(self, headers: http.client.HTTPMessage) -> bool:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", headers["Range"] or "")
        assert found, headers["Range"]
        with self._lock:
            self.ranges.append((int(found[1]), int(found[2]) + 1))
        return False

    @property
    def bytes(self) -> int:
        return sum(end - start for start, end in self.ranges)


def take(proxy: Proxy, uri: str, **what: object) -> list[bytes | None]:
    spec = lt.TakeBlobs(uri, column="film", **what)
    table = pa.table(lt.read(spec, storage_options=proxy.options))
    return table["film"].to_pylist()


def test_what_rows_share_is_fetched_once(s3: Store) -> None:
    bucket = s3.bucket()
    payloads = [blobs.payload(i, 300_000) for i in range(4)]
    uri = bucket.uri("shared.lance")
    dataset = blobs.write_shared(uri, payloads, 80, s3.options)
    assert set(blobs.kinds(dataset)) == {blobs.KINDS["packed"]}
    expected = [payloads[i % 4] for i in range(80)]
    with Proxy(s3) as proxy:
        with Reads(proxy, r"\.blob$") as reads:
            assert take(proxy, uri, indices=range(80)) == expected
        assert reads.bytes == 4 * 300_000
        # Cut into batches of a few rows each, they are kept from batch to batch.
        with Reads(proxy, r"\.blob$") as reads:
            taken = take(proxy, uri, indices=range(80), max_bytes_per_batch=1_300_000)
            assert taken == expected
        assert reads.bytes == 4 * 300_000
        # The same part of them.
        with Reads(proxy, r"\.blob$") as reads:
            ranges = [(1000, 5000)] * 80
            taken = take(proxy, uri, indices=range(80), ranges=ranges)
            assert taken == [data[1000:6000] for data in expected]
        assert reads.bytes == 4 * 5000
        # One row, asked for again and again.
        with Reads(proxy, r"\.blob$") as reads:
            assert take(proxy, uri, indices=[7] * 30) == [payloads[3]] * 30
        assert reads.bytes == 300_000


def test_what_is_adjacent_is_fetched_at_once(s3: Store) -> None:
    bucket = s3.bucket()
    contents = [blobs.payload(i, 70_000) for i in range(50)]
    uri = bucket.uri()
    schema = pa.schema([lance.blob_field("film")])
    table = pa.table([lance.blob_array(contents)], schema=schema)
    dataset = bucket.write(table, "d.lance", data_storage_version="2.2")
    assert set(blobs.kinds(dataset)) == {blobs.KINDS["packed"]}
    with Proxy(s3) as proxy, Reads(proxy, r"\.blob$") as reads:
        rows = [*range(40, 50), *range(25, 5, -1)]
        assert take(proxy, uri, indices=rows) == [contents[row] for row in rows]
    assert sorted(reads.ranges) == [(6 * 70_000, 26 * 70_000), (40 * 70_000, 50 * 70_000)]


def test_nothing_is_fetched_that_is_not_wanted(s3: Store) -> None:
    bucket = s3.bucket()
    bucket.put("outside.bin", blobs.payload(1, 200_000))
    outside = lance.Blob.from_uri(bucket.uri("outside.bin"))
    values = [None, b"", blobs.payload(2, 80_000), outside, outside, outside]
    uri = bucket.uri()
    schema = pa.schema([lance.blob_field("film")])
    table = pa.table([lance.blob_array(values)], schema=schema)
    options = {"data_storage_version": "2.2", "allow_external_blob_outside_bases": True}
    bucket.write(table, "d.lance", **options)
    with Proxy(s3) as proxy:
        with Reads(proxy, r"\.(blob|bin)$") as reads:
            assert take(proxy, uri, indices=[1, 0, 2, 0], ranges=[None, None, (5, 0), (9, 9)]) == [
                b"",
                None,
                b"",
                None,
            ]
            # The data is there when it is pulled, and not before.
            stream = lt.read(
                lt.TakeBlobs(uri, column="film", indices=[2, 3]), storage_options=proxy.options
            )
            assert reads.ranges == []
            stream.close()
        # An object that rows refer to is asked for its size once, and read once.
        with Reads(proxy, r"outside\.bin$") as reads:
            proxy.requests.clear()
            assert take(proxy, uri, indices=[3, 4, 5, 3]) == [blobs.payload(1, 200_000)] * 4
        assert reads.bytes == 200_000
        heads = [target for method, target in proxy.requests if method == "HEAD"]
        assert len([target for target in heads if target.endswith("outside.bin")]) == 1
        judged = bucket.dataset().read_blobs("film", indices=[3, 2])
        assert take(proxy, uri, indices=[3, 2]) == [data for _, data in judged]


def test_a_store_that_fails_is_said(s3: Store) -> None:
    bucket = s3.bucket()
    uri = bucket.uri()
    schema = pa.schema([lance.blob_field("film")])
    table = pa.table([lance.blob_array([blobs.payload(2, 80_000)])], schema=schema)
    bucket.write(table, "d.lance", data_storage_version="2.2")
    with Proxy(s3) as proxy:
        rule = proxy.add("fail", method="GET", path=r"\.blob$", status=503)
        spec = lt.TakeBlobs(uri, column="film", indices=[0])
        stream = lt.read(spec, storage_options=proxy.options | stores.IMPATIENT)
        with pytest.raises(Exception, match=r"IO: task .*\.blob"):
            pa.table(stream)
        assert rule.hits > 0
        proxy.recover()
        assert take(proxy, uri, indices=[0]) == [blobs.payload(2, 80_000)]
