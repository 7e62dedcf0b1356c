# SPDX-License-Identifier: Apache-2.0
"""Cleanup: what uncommitted work left behind, by age or where it is said; the command line; S3."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import lance
import pytest
import stores
from cli_support import BIG, Cli, write_big_source
from stores import Bucket, Proxy, Store
from support import append_job, assert_same, files, make_dataset, numbers, read, unchanged
from test_cleanup import ALL, WEEK, age, check_removes_what_it_lists, listed, survey

import lance_tasks as lt

MARKED = "01" * 12 + "0123456789abcdef" * 2


def folders(root: str) -> set[str]:
    return {str(p.relative_to(root)) for p in Path(root).rglob("*") if p.is_dir()}


# What may be left, and the kind it is reported as.
LEFT = {
    "data/110011001100110011001100aabbccddeeff00112233445566.lance": "data",
    "data/110011001100110011001100aabbccddeeff00112233445566.lance#1": "temporary",
    f"data/{MARKED}.lance": "data",
    f"data/{MARKED}/{'01' * 16}.blob": "blob_sidecar",
    f"data/{MARKED[:-1]}0/x.lance": "data",
    f"data/{MARKED[:-1]}0/x.lance#2": "temporary",
    f"data/{MARKED[:-1]}0/x/{'01' * 16}.blob": "temporary",
    "data/.tmpAbCdEf": "temporary",
    "_blobs/67e8ff68-0fce-4963-9912-5a73f22a74cc.blob": "managed_blob",
    "_blobs/.tmpAbCdEf": "temporary",
    "_indices/67e8ff68-0fce-4963-9912-5a73f22a74cc/page_data.lance": "index",
    "_indices/67e8ff68-0fce-4963-9912-5a73f22a74cc/page_data.lance#1": "temporary",
    "_indices/67e8ff68-0fce-4963-9912-5a73f22a74cc/staging/part_0.lance": "index",
    "_transactions/1-67e8ff68-0fce-4963-9912-5a73f22a74cc.txn": "transaction",
    "_transactions/1-67e8ff68-0fce-4963-9912-5a73f22a74cc.txn#1": "temporary",
    "_deletions/0-1-123.arrow": "deletion",
    "_deletions/0-1-123.bin#3": "temporary",
    "_versions/0123456789abcdef-0123456789abcdef0123456789abcdef.tmp": "temporary",
    "_versions/0123456789abcdef-0123456789abcdef0123456789abcdef.tmp#1": "temporary",
}
# What is not of a dataset's making, and is nobody's to remove.
STRANGE = [
    "README.md",
    "data/notes.txt",
    "data/photos/2024/1.blob",
    "data/photos/1.jpg",
    "_versions/notes.tmp",
    "_transactions/notes.txt",
    "photos/1.blob",
]


def leave(uri: str) -> None:
    for path in [*LEFT, *STRANGE]:
        place = Path(uri, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"left behind")


@pytest.mark.parametrize("how", ["aged", "unverified"])
def test_what_belongs_to_no_version(uri: str, how: str) -> None:
    make_dataset(uri)
    lance.dataset(uri).delete("id % 10 = 3")
    expected, before, folders_before = read(uri), files(uri), folders(uri)
    leave(uri)
    with unchanged(uri):
        assert lt.run(lt.Cleanup(uri)).metrics["files"] == 0
        age(Path(uri), set(files(uri)), WEEK - 600)
        assert lt.run(lt.Cleanup(uri)).metrics["files"] == 0
    if how == "aged":
        age(Path(uri), set(files(uri)))
    options = {"delete_unverified": True} if how == "unverified" else {}
    kinds = {file["path"]: file["kind"] for file in survey(lt.Cleanup(uri, **options))["files"]}
    assert kinds == LEFT
    outcome = check_removes_what_it_lists(uri, **options)
    assert outcome.metrics["uncommitted_files"] == outcome.metrics["files"] == len(LEFT)
    assert outcome.metrics["versions"] == 0
    assert files(uri) == before | dict.fromkeys(STRANGE, len(b"left behind"))
    strange = {"data/photos", "data/photos/2024", "photos", "_indices", "_blobs"}
    assert folders(uri) == folders_before | strange
    assert_same(read(uri), expected)


def test_the_young_stay_and_the_old_go(uri: str) -> None:
    make_dataset(uri)
    leave(uri)
    old = set(list(LEFT)[::2])
    age(Path(uri), old)
    assert set(listed(survey(lt.Cleanup(uri)))) == old
    check_removes_what_it_lists(uri)
    assert set(LEFT) - old <= set(files(uri))


def test_a_job_under_way_is_safe(uri: str) -> None:
    """Files of a job that is not committed yet belong to no version; a cleanup keeps them."""
    make_dataset(uri)
    job, results = append_job(uri)
    index = lt.prepare(lt.CreateIndex(uri, column="id", index_type="BTREE"))
    built = [lt.execute(task) for task in lt.plan(index)]
    lance.write_dataset(numbers(10), uri, mode="append")
    with unchanged(Path(uri, "data"), Path(uri, "_indices")):
        assert lt.run(lt.Cleanup(uri, versions=[1], older_than=ALL)).metrics["versions"] == 1
    lance.write_dataset(numbers(10), uri, mode="append")
    # The version that they were prepared on is gone.
    with pytest.raises(lt.VersionGoneError):
        lt.commit(job, results)
    job, results = append_job(uri)
    lt.run(lt.Cleanup(uri, older_than=ALL))
    lt.commit(job, results)
    assert len(built) == 1 and lance.dataset(uri).count_rows() == 1200 + 10 + 10 + 50


def kill_writer(cli: Cli, folder: Path, pattern: str) -> None:
    cli.prepare(**BIG | {"mode": "append"})
    process = cli.start("run", "spool", "--jobs", 2, start_new_session=True)
    until = time.monotonic() + 60
    while not any((folder / "big.lance").glob(pattern)):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("how", ["aged", "unverified"])
def test_a_killed_writer(tmp_path: Path, how: str) -> None:
    cli, uri = Cli(tmp_path), str(tmp_path / "big.lance")
    write_big_source(tmp_path)
    cli(*["write", "big.parquet", "--to", "big.lance", "--max-rows-per-file", 1_000_000])
    before, folders_before, rows = files(uri), folders(uri), lance.dataset(uri).count_rows()
    kill_writer(cli, tmp_path, "data/*/*")
    left = files(uri).keys() - before.keys()
    assert left, "the writer left nothing: the test shows nothing"
    with unchanged(uri):
        assert lt.run(lt.Cleanup(uri)).metrics["files"] == 0
    if how == "aged":
        age(tmp_path / "big.lance", set(left))
        left_folders = folders(uri) - folders_before
        age(tmp_path / "big.lance", left_folders)
    outcome = check_removes_what_it_lists(uri, delete_unverified=how == "unverified")
    assert outcome.metrics["uncommitted_files"] == len(left)
    assert files(uri) == before and folders(uri) == folders_before
    assert lance.dataset(uri).count_rows() == rows


# Command line


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def test_command_line(cli: Cli, tmp_path: Path) -> None:
    uri = str(tmp_path / "d.lance")
    for n in range(4):
        lance.write_dataset(numbers(100, n), uri, mode="overwrite")
    expected = read(uri)
    with unchanged(uri):
        assert cli.json("cleanup", "d.lance", "--older-than", "7d")["metrics"]["files"] == 0
        dry = cli("cleanup", "d.lance", "--older-than", "0", "--dry-run").stdout
        answer = cli.json("cleanup", "d.lance", "--older-than=0s", "--dry-run")
    lines = dry.splitlines()
    assert lines[0].startswith("would remove 3 versions of ") and "(1-3)" in lines[0]
    files_listed = answer["report"]["files"]
    assert len(files_listed) == answer["metrics"]["files"] == 9
    for file in files_listed:
        assert any(line.startswith(file["path"] + " (") for line in lines), file
    assert any(line.split()[:2] == ["data", "3"] for line in lines), dry
    short = cli("cleanup", "d.lance", "--older-than=0", "--dry-run", "--max-candidate-files=2")
    assert "--max-candidate-files" in short.stdout.splitlines()[-1]
    done = cli("cleanup", "d.lance", "--retain-versions", 2, "--older-than", "0").stdout
    assert done.startswith("removed 2 versions of ") and "(1-2)" in done and "data/" not in done
    assert [v["version"] for v in lance.dataset(uri).versions()] == [3, 4]
    error = cli.error("cleanup", "d.lance", "--older-than", "soon", status=2)
    assert "soon" in error["message"] and "older_than" in error["message"]
    assert_same(read(uri), expected)


def test_command_line_over_a_spool(cli: Cli, tmp_path: Path) -> None:
    """The survey can be looked at before anything is removed."""
    uri = str(tmp_path / "d.lance")
    for n in range(3):
        lance.write_dataset(numbers(100, n), uri, mode="overwrite")
    cli.prepare(operation="cleanup", uri="d.lance", older_than="0s")
    with unchanged(uri):
        cli("plan", "spool")
        assert cli.error("commit", "spool", status=3)["code"] == "INCOMPLETE"
    cli("run", "spool")
    # Half written files of processes that were killed go with the spool's end; young ones stay.
    for folder in ("", "tasks", "results"):
        for name in (".tmpOld", ".tmpNew"):
            (tmp_path / "spool" / folder / name).write_text("half")
    age(tmp_path / "spool", {".tmpOld", "tasks/.tmpOld", "results/.tmpOld"}, 3600)
    first = cli.json("commit", "spool")
    assert first["metrics"]["versions"] == 2 and first == cli.json("commit", "spool")
    left = {path for path in files(tmp_path / "spool") if ".tmp" in path}
    assert left == {".tmpNew", "tasks/.tmpNew", "results/.tmpNew"}
    assert [v["version"] for v in lance.dataset(uri).versions()] == [3]


# S3


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with stores.s3() as store:
        yield store


@pytest.fixture
def bucket(store: Store) -> Bucket:
    return store.bucket()


def test_on_s3(bucket: Bucket) -> None:
    o = bucket.options
    for n in range(4):
        bucket.write(numbers(100, n), mode="overwrite", max_rows_per_file=50)
        bucket.dataset().delete(f"id % 10 = {n}")
    bucket.dataset().tags.create("kept", 3)
    lt.run(lt.CreateIndex(bucket.uri(), column="id", index_type="BTREE"), storage_options=o)
    contents = {version: bucket.dataset(version=version).to_table() for version in (3, 9)}
    job = lt.prepare(lt.Write(bucket.uri(), mode="append"), numbers(0).schema, storage_options=o)
    results = [lt.execute(job.task("0"), numbers(10), storage_options=o)]
    left = {f["path"] for result in results for f in result.to_dict()["files"]}
    left |= {"_transactions/9-67e8ff68-0fce-4963-9912-5a73f22a74cc.txn", "_deletions/0-9-1.arrow"}
    for path in left - set(bucket.files("d.lance")):
        bucket.put(f"d.lance/{path}", b"left")
    spec = {"older_than": ALL, "error_if_tagged_old_versions": False}

    for unverified in (False, True):
        options = spec | {"delete_unverified": unverified}
        before = bucket.files("d.lance")
        (task,) = lt.plan(lt.prepare(lt.Cleanup(bucket.uri(), **options), storage_options=o))
        report = lt.execute(task, storage_options=o).payload
        assert bucket.files("d.lance") == before
        outcome = lt.run(lt.Cleanup(bucket.uri(), **options), storage_options=o)
        after = bucket.files("d.lance")
        assert listed(report) == {p: size for p, size in before.items() if p not in after}
        assert left <= after.keys() or (unverified and not left & after.keys())
        assert outcome.metrics["versions"] == (0 if unverified else 7)
        assert outcome.metrics["uncommitted_files"] == (len(left) if unverified else 0)
        assert bucket.versions() == [3, 9]
        for version, table in contents.items():
            assert_same(bucket.dataset(version=version).to_table(), table)
    assert bucket.unreferenced() == {"_refs/tags/kept.json"}


def test_refused_deletions_are_tried_again(store: Store, bucket: Bucket) -> None:
    for n in range(4):
        bucket.write(numbers(100, n), mode="overwrite")
    with Proxy(store) as proxy:
        o = proxy.options | stores.IMPATIENT
        job = lt.prepare(lt.Cleanup(bucket.uri(), older_than=ALL), storage_options=o)
        results = [lt.execute(task, storage_options=o) for task in lt.plan(job, storage_options=o)]
        (task,) = lt.plan(job, results, storage_options=o)
        rule = proxy.add("fail", method="DELETE|POST", path="data/|delete")
        with pytest.raises(lt.StorageError, match="could not be removed"):
            lt.execute(task, storage_options=o)
        assert rule.hits > 0
        proxy.recover()
        assert_same(bucket.table(), numbers(100, 3))
    outcome = lt.run(lt.Cleanup(bucket.uri(), older_than=ALL), storage_options=bucket.options)
    assert outcome.metrics["files"] >= 3
    assert bucket.versions() == [4] and bucket.unreferenced() == set()
