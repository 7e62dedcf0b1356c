# SPDX-License-Identifier: Apache-2.0
"""Small files that processes share."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import stores

import lance_tasks as lt
from lance_tasks.files import Files


def check(files: Files) -> None:
    assert files.get("a/b") is None and files.list("a") == []
    assert files.put_new("a/b", b"1") and files.put_new("a/b", b"1"), "the same again is fine"
    assert not files.put_new("a/b", b"2") and files.get("a/b") == b"1"
    files.put("a/b", b"3" * 100_000)
    files.put("a/a", b"")
    assert files.list("a") == ["a", "b"]
    assert files.get("a/b") == b"3" * 100_000 and files.get("a/a") == b""
    files.delete("a/b")
    files.delete("a/b")
    assert files.list("a") == ["a"]
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda i: files.put_new("once", b"%d" % i), range(8)))
    assert won.count(True) == 1 and files.get("once") == b"%d" % won.index(True)


def test_a_folder(tmp_path: Path) -> None:
    check(Files(tmp_path / "new"))
    assert sorted(os.listdir(tmp_path / "new")) == ["a", "once"], "nothing temporary stays"
    assert os.listdir(tmp_path / "new/a") == ["a"]
    assert Files(f"file://{tmp_path}/new").get("a/a") == b""


def test_an_object_store() -> None:
    with stores.s3() as store:
        bucket = store.bucket()
        check(Files(bucket.uri("spool"), bucket.options))
        assert bucket.read("spool/a/a") == b""
        wrong = {**bucket.options, "aws_endpoint": "http://127.0.0.1:9", **stores.IMPATIENT}
        with pytest.raises(lt.StorageError, match="spool s3://") as caught:
            Files(bucket.uri("spool"), wrong).list("a")
        assert not [secret for secret in store.secrets if secret in str(caught.value)]


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../x", "a//b", "a/", "."])
def test_no_other_place_is_reached(tmp_path: Path, name: str) -> None:
    files = Files(tmp_path)
    for call in (files.get, files.list, files.delete, lambda n: files.put(n, b"")):
        with pytest.raises(lt.InvalidArgumentError, match="no relative name"):
            call(name)


def test_secrets_in_a_place(tmp_path: Path) -> None:
    for place in ("s3://key:hidden@bucket/x", "az://c/x?sig=hidden", ""):
        with pytest.raises(lt.InvalidArgumentError) as caught:
            Files(place)
        assert "hidden" not in str(caught.value)
    with pytest.raises(TypeError):
        pickle.dumps(Files(tmp_path))


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    files = Files(tmp_path / "file")
    assert files.get("a") is None
    with pytest.raises(lt.InvalidArgumentError, match="file"):
        files.put("a", b"1")
