# SPDX-License-Identifier: Apache-2.0
"""Credentials are nowhere but in the requests. S3 is moto."""

import logging
from collections.abc import Iterator
from pathlib import Path

import nodes
import numpy as np
import pyarrow as pa
import pytest
import ray
import stores
from stores import Bucket, Store
from support import assert_same, numbers

import lance_tasks as lt
import lance_tasks.ray as ltr


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with stores.s3() as made:
        yield made


@pytest.fixture
def bucket(store: Store) -> Bucket:
    return store.bucket()


def leaks(secrets: tuple[str, ...], *folders: Path) -> list[str]:
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            if not path.is_file():
                continue
            data = path.read_bytes()
            found += [str(path) for secret in secrets if secret.encode() in data]
    return found


def test_no_secret_is_anywhere(
    bucket: Bucket,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    options = {"storage_options": bucket.options}
    blocks = [numbers(100, i * 100) for i in range(5)]
    spool = bucket.uri("spool")
    timeline = tmp_path / "t.json"
    ltr.run(lt.Write(bucket.uri()), data=blocks, spool=spool, timeline=timeline, **options)
    ltr.write(ray.data.range(0).map(lambda row: row), bucket.uri("e"), schema=SCHEMA, **options)
    ltr.write(ray.data.range(100), bucket.uri("ds"), **options)
    ltr.run(lt.Compact(bucket.uri()), spool=tmp_path / "spool", **options)
    assert_same(bucket.table(), numbers(500))
    wrong = {**bucket.options, "aws_endpoint": "http://127.0.0.1:9", **stores.IMPATIENT}
    errors = []
    for attempt in (
        lambda: ltr.run(lt.Compact(bucket.uri()), storage_options=wrong, max_retries=0),
        lambda: ltr.run(
            lt.Write(bucket.uri(), mode="append"), data=[pa.table({"x": [1]})], **options
        ),
        lambda: ltr.write(
            ray.data.range(9), bucket.uri("n"), mode="create", max_retries=0, storage_options=wrong
        ),
        lambda: ltr.write(
            ray.data.range(9).map_batches(lambda b: {"x": np.array([1 / 0])}),
            bucket.uri("n2"),
            **options,
        ),
    ):
        with pytest.raises(Exception) as caught:
            attempt()
        errors.append(str(caught.value) + repr(caught.value))
    said = capfd.readouterr()
    texts = [*errors, said.out, said.err, caplog.text, timeline.read_text()]
    texts += [bucket.read(f"spool/{key}").decode("latin-1") for key in bucket.files("spool")]
    for secret in bucket.store.secrets:
        assert not [text[:500] for text in texts if secret in text]
    assert len(bucket.files("spool")) >= 4
    found = leaks(bucket.store.secrets, nodes.logs(), tmp_path)
    assert not found
    # The search finds what is there.
    (tmp_path / "leak").write_text(f"x{bucket.store.secrets[1]}y")
    assert leaks(bucket.store.secrets, tmp_path) == [str(tmp_path / "leak")]


SCHEMA = pa.schema([("id", pa.int64())])


def test_a_spool_in_an_object_store(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver dies before the commit; the next one executes nothing and commits."""
    options = {"storage_options": bucket.options}
    blocks = [numbers(100, i * 100) for i in range(5)]
    spool = bucket.uri("spool")
    real = lt.commit

    def fails(*_: object, **__: object) -> None:
        raise SystemExit("killed")

    monkeypatch.setattr(lt, "commit", fails)
    with pytest.raises(SystemExit):
        ltr.run(lt.Write(bucket.uri()), data=blocks, spool=spool, **options)
    assert "_versions" not in str(bucket.files())
    results = [key for key in bucket.files("spool") if key.startswith("results/")]
    monkeypatch.setattr(lt, "commit", real)
    assert ltr.run(lt.Write(bucket.uri()), data=blocks, spool=spool, **options).rows == 500
    assert results == [key for key in bucket.files("spool") if key.startswith("results/")]
    assert_same(bucket.table(), numbers(500))
    assert not bucket.unreferenced()
    assert ltr.run(lt.Write(bucket.uri()), data=blocks, spool=spool, **options).already_committed


def test_wrong_credentials(bucket: Bucket) -> None:
    with pytest.raises(lt.InvalidArgumentError, match="carries credentials"):
        ltr.run(lt.Compact(bucket.uri()), spool="s3://key:secret@bucket/spool")
