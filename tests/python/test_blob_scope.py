# SPDX-License-Identifier: Apache-2.0
"""Payloads that the whole dataset shares (`dedup_scope="dataset"`): across fragments, tasks and
writes, by managed blobs in `_blobs/`."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blob_cases import (
    DEDICATED,
    INLINE,
    binary,
    blobs_of,
    check,
    data_bytes,
    descriptors,
    exact_files,
    kinds,
    listed,
    listed_by,
    opened,
    payload,
    same,
    table,
    write,
)
from support import files, finish, go, start_worker, unchanged, worker

import lance_tasks as lt

SIZES = {"500 B": 500, "32 KB": 32_768, "1 MB": 1_000_000, "6 MB": 6_000_000}

WIDE = {"dedup_scope": "dataset", "dedup": "content"}


def managed(uri: str) -> dict[str, int]:
    """The payloads' files, by path."""
    return listed(uri, ("_blobs",))


def by_id(data: bytes, rows: int, ref_id: int = 1) -> list[lt.Blob]:
    return [lt.Blob(data, ref_id=ref_id) for _ in range(rows)]


# What is shared


@pytest.mark.parametrize("by", ["ref_id", "content"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_payload_is_stored_once(size: int, by: str, uri: str) -> None:
    """Across 4 fragments, another write, and its fragments."""
    data = payload(max(size, 1024) if by == "content" else size)
    options = WIDE if by == "content" else {"dedup_scope": "dataset"}
    rows = by_id(data, 20) if by == "ref_id" else [data] * 20
    write(uri, table(rows), max_rows_per_file=5, **options)
    check(uri, [data] * 20)
    assert list(managed(uri).values()) == [len(data)]
    assert kinds(opened(uri)) == ["managed"] * 20
    exact_files(uri)
    dedup = {"dedup": "content"} if by == "content" else {}
    write(uri, table(rows, start=20), mode="append", max_rows_per_file=5, **dedup)
    check(uri, [data] * 40)
    assert list(managed(uri).values()) == [len(data)]
    exact_files(uri)
    write(f"{uri}.bare", table([b""] * 20), max_rows_per_file=5, **options)
    # What descriptors take more than those of empty values.
    assert data_bytes(uri) - 2 * data_bytes(f"{uri}.bare") <= 1.05 * len(data) + 8 * 600


def test_across_tasks(uri: str, sources: Path) -> None:
    distinct = [payload(size, "t") for size in (2000, INLINE + 1, DEDICATED + 1)]
    rows = [distinct[n % 3] for n in range(36)]
    for n in range(3):
        part = binary(rows[n * 12 : n * 12 + 12], start=n * 12)
        pq.write_table(part, sources / f"{n}.parquet")
    spec = lt.Write(uri, sources=[str(sources)], blob_columns=["blob"], max_rows_per_file=5, **WIDE)
    job = lt.prepare(spec)
    tasks = lt.plan(job)
    assert len(tasks) == 8
    results = list(lt.execute_all(tasks))
    assert {result.status for result in results} == {"ok"}, [r.error for r in results]
    assert listed_by(results) == listed(uri)
    lt.commit(job, results)
    check(uri, rows)
    assert sorted(managed(uri).values()) == sorted(map(len, distinct))
    exact_files(uri)


def test_rows_that_share_nothing(uri: str) -> None:
    """Nulls, empty values, small ones, and those without an id lie as ever."""
    data = payload(INLINE + 1)
    rows = [None, b"", payload(10), data, lt.Blob(data, ref_id=2), lt.Blob(data, ref_id=0)]
    write(uri, table(rows), dedup_scope="dataset")
    check(uri, [None, b"", payload(10), data, data, data])
    assert kinds(opened(uri)) == [None, "inline", "inline", "packed", "managed", "packed"]
    exact_files(uri)


def test_content_below_1_kib(uri: str) -> None:
    rows = [payload(1023), payload(1023), payload(1024), payload(1024)]
    write(uri, binary(rows), **WIDE)
    assert kinds(check(uri, rows)) == ["inline"] * 2 + ["managed"] * 2
    assert list(managed(uri).values()) == [1024]
    exact_files(uri)


def test_several_columns_and_nested_ones(uri: str) -> None:
    """One payload, wherever it stands."""
    data = payload(5000)
    kind = pa.list_(pa.binary())
    rows = binary([data, None]).append_column("other", pa.array([None, data]))
    rows = rows.append_column("pages", pa.array([[data, b"x", data], None], kind))
    write(uri, rows, blob_columns=["blob", "other", "pages"], **WIDE)
    check(uri, [data, None])
    same(blobs_of(opened(uri), "other"), [None, data])
    found = opened(uri).scanner(columns=["pages"], blob_handling="all_binary").to_table()
    assert found["pages"].to_pylist() == [[data, b"x", data], None]
    assert list(managed(uri).values()) == [5000]
    exact_files(uri)


def test_different_bytes_under_one_id(uri: str) -> None:
    """Within a file an error; a later write may give the id to other bytes."""
    rows = [lt.Blob(payload(3000, n), ref_id=1) for n in range(2)]
    with pytest.raises(lt.InvalidArgumentError, match="rows 0 and 1 have ref_id 1"):
        write(uri, table(rows), dedup_scope="dataset")
    assert listed(uri) == {}
    write(uri, table(rows[:1]), dedup_scope="dataset")
    write(uri, table(rows[1:], start=1), mode="append")
    check(uri, [payload(3000, 0), payload(3000, 1)])
    exact_files(uri)


def test_an_append_finds_what_is_there(uri: str) -> None:
    """Also the payloads of fragments whose rows are partly deleted, and of several writes."""
    first, second, third = (payload(3000, n) for n in range(3))
    write(uri, binary([first] * 4), **WIDE)
    write(uri, binary([second] * 4, start=4), mode="append", dedup="content")
    opened(uri).delete("id in (0, 1, 5)")
    write(uri, binary([first, second, third], start=8), mode="append", dedup="content")
    same(blobs_of(opened(uri)), [first] * 2 + [second] * 3 + [first, second, third])
    assert sorted(managed(uri).values()) == [3000] * 3
    exact_files(uri)


def test_an_append_does_not_rely_on_what_only_older_versions_have(uri: str) -> None:
    """Cleaning them up would take the payload away."""
    data = payload(3000)
    write(uri, binary([data] * 4), **WIDE)
    write(uri, binary([payload(3000, "other")]), mode="overwrite", **WIDE)
    write(uri, binary([data], start=1), mode="append", dedup="content")
    opened(uri).cleanup_old_versions(older_than=timedelta(0))
    check(uri, [payload(3000, "other"), data])
    exact_files(uri)


# Versions and modes


def test_overwrite_begins_anew(uri: str) -> None:
    data = payload(3000)
    write(uri, binary([data] * 4), **WIDE)
    write(uri, binary([data] * 3), mode="overwrite", **WIDE)
    check(uri, [data] * 3)
    same(blobs_of(opened(uri, 1)), [data] * 4)
    exact_files(uri)


def test_overwrite_changes_the_scope(uri: str) -> None:
    data = payload(100_000)
    write(uri, binary([data] * 4))
    write(uri, binary([data] * 4), mode="overwrite", **WIDE)
    assert kinds(check(uri, [data] * 4)) == ["managed"] * 4
    write(uri, binary([data] * 4), mode="overwrite", dedup="content", dedup_scope="file")
    assert kinds(check(uri, [data] * 4)) == ["packed"] * 4
    for version, kind in ((1, "packed"), (2, "managed"), (3, "packed")):
        same(blobs_of(opened(uri, version)), [data] * 4)
        assert set(kinds(opened(uri, version))) == {kind}
    exact_files(uri)


def test_pylance_appends_and_compacts(uri: str) -> None:
    data = payload(100_000)
    write(uri, binary([data] * 4), max_rows_per_file=2, **WIDE)
    rows = table([None] * 3, start=4)
    rows = rows.set_column(1, lance.blob_field("blob"), lance.blob_array([data, None, b"x"]))
    lance.write_dataset(rows, uri, mode="append")
    expected = [data] * 4 + [data, None, b"x"]
    check(uri, expected)
    write(uri, binary([data], start=7), mode="append", dedup="content")
    check(uri, [*expected, data])
    exact_files(uri)
    opened(uri).optimize.compact_files()
    check(uri, [*expected, data])


# Options


def test_the_scope_is_the_datasets(uri: str) -> None:
    data = payload(3000)
    write(uri, binary([data]), **WIDE)
    write(uri, binary([data], start=1), mode="append", **WIDE)
    wrong = {"mode": "append", "dedup_scope": "file"}
    with unchanged(uri), pytest.raises(lt.InvalidArgumentError, match=r'"dedup_scope".*"dataset"'):
        write(uri, binary([data], start=2), **wrong)
    other = f"{uri}.other"
    write(other, binary([data]))
    wrong = {"mode": "append", "dedup_scope": "dataset"}
    with unchanged(other), pytest.raises(lt.InvalidArgumentError, match=r'"dedup_scope".*"file"'):
        write(other, binary([data], start=1), **wrong)


@pytest.mark.parametrize("target", [{"target_bases": ["base"]}, {"target_all_bases": True}])
def test_not_with_data_files_in_bases(target: dict, uri: str, tmp_path: Path) -> None:
    base = lt.Base(1, str(tmp_path / "base"), name="base")
    with pytest.raises(lt.InvalidArgumentError, match=r'"dedup_scope".*target_bases'):
        write(uri, binary([b"x"]), initial_bases=[base], **target, **WIDE)
    assert files(uri) == {}
    write(uri, binary([payload(3000)]), initial_bases=[base], **WIDE)
    with unchanged(uri), pytest.raises(lt.InvalidArgumentError, match="target_bases"):
        write(uri, binary([b"x"]), mode="append", **target)


# Attempts that come to nothing


def job_of(uri: str, mode: str = "create", partitions: str = "ab") -> lt.Job:
    options = {} if mode == "append" else {"dedup_scope": "dataset", "blob_columns": ["blob"]}
    spec = lt.Write(uri, mode=mode, partitions=list(partitions), dedup="content", **options)
    return lt.prepare(spec, schema=binary([]).schema)


X, Y, Z = (payload(5000, name) for name in "xyz")


def test_results_list_the_payloads(uri: str) -> None:
    """Of all tasks that have them: any of them may be the one that is committed."""
    job = job_of(uri)
    results = [lt.execute(job.task(name), binary([X, Y])) for name in "ab"]
    blobs = [{p for p in listed_by([r]) if p.startswith("_blobs/")} for r in results]
    assert blobs[0] == blobs[1] == set(managed(uri))
    assert len(blobs[0]) == 2
    lt.commit(job, results)
    exact_files(uri)


@pytest.mark.parametrize("known", [True, False], ids=["results", "no results"])
@pytest.mark.parametrize("mode", ["create", "append", "overwrite"])
def test_abort_of_a_job_that_failed(mode: str, known: bool, uri: str) -> None:
    if mode != "create":
        write(uri, binary([X, Y]), **WIDE)
    before = files(uri)
    job = job_of(uri, mode)
    results = [lt.execute(job.task("a"), binary([X, Y, Z, Z]))]
    assert len(files(uri)) > len(before)
    lt.abort(job, results if known else [])
    assert files(uri) == before
    if mode != "create":
        check(uri, [X, Y])


def test_abort_of_losing_attempts(uri: str) -> None:
    """Attempts whose rows differ: what only the loser has goes, what both have stays."""
    job = job_of(uri, partitions="a")
    results = [lt.execute(job.task("a"), binary(rows)) for rows in ([X, Y], [X, Z])]
    assert len(managed(uri)) == 3
    lt.commit(job, results)
    lt.abort(job, results)
    found = blobs_of(opened(uri))
    same(found, [X, Y] if found[1] == Y else [X, Z])
    assert len(managed(uri)) == 2
    exact_files(uri)


def test_abort_after_commit_keeps_what_others_rely_on(uri: str) -> None:
    """A later write refers to the payloads of the job; its own rows are gone by then."""
    job = job_of(uri)
    results = [lt.execute(job.task(name), binary([X, Y])) for name in "ab"]
    lt.commit(job, results)
    write(uri, binary([X, Y], start=9), mode="append", dedup="content")
    opened(uri).delete("id < 9")
    opened(uri).optimize.compact_files()
    with unchanged(uri):
        lt.abort(job, results)
        lt.abort(job, [])
    same(blobs_of(opened(uri)), [X, Y])


def test_abort_after_the_versions_are_gone(uri: str) -> None:
    """The version that the job made is cleaned up; a later one has its payload still."""
    job = job_of(uri, partitions="a")
    results = [lt.execute(job.task("a"), binary([X, Y]))]
    lt.commit(job, results)
    write(uri, binary([X], start=9), mode="append", dedup="content")
    opened(uri).delete("id < 9")
    opened(uri).cleanup_old_versions(older_than=timedelta(0))
    same(blobs_of(opened(uri)), [X])
    try:
        lt.abort(job, results)
    except lt.Error as error:
        # It may refuse where it cannot know; it may not remove.
        assert error.code in {"HISTORY_GONE", "VERSION_GONE"}, error
    same(blobs_of(opened(uri)), [X])


def test_two_jobs_at_once(uri: str) -> None:
    """Neither knows of the other's payload; one is given up, the other one is whole."""
    write(uri, binary([b"first"]), **WIDE)
    jobs = [job_of(uri, "append", "a") for _ in range(3)]
    results = [[lt.execute(job.task("a"), binary([X, Y], start=1))] for job in jobs]
    lt.commit(jobs[0], results[0])
    lt.abort(jobs[1], results[1])
    check(uri, [b"first", X, Y])
    exact_before = managed(uri)
    lt.commit(jobs[2], results[2])
    same(blobs_of(opened(uri)), [b"first", X, Y, X, Y])
    assert managed(uri) == exact_before
    lt.abort(jobs[0], results[0])
    lt.abort(jobs[2], results[2])
    exact_files(uri)


def test_processes_write_the_same_payload(uri: str, sources: Path, tmp_path: Path) -> None:
    """Tasks of one job at the same moment, each in two processes: all want to be the first."""
    data = payload(3_000_000)
    for n in range(2):
        pq.write_table(binary([data] * 4, start=4 * n), sources / f"{n}.parquet")
    spec = lt.Write(uri, sources=[str(sources)], blob_columns=["blob"], max_rows_per_file=4, **WIDE)
    job = lt.prepare(spec)
    (tmp_path / "results").mkdir()
    processes = []
    for task in lt.plan(job):
        (tmp_path / task.id).write_bytes(task.to_bytes())
        for n in range(2):
            out = tmp_path / "results" / f"{task.id}-{n}"
            processes.append(start_worker("execute", tmp_path / task.id, out, wait=True))
    answers = go(*processes)
    assert not [answer for answer in answers if "error" in answer], answers
    (tmp_path / "job").write_bytes(job.to_bytes())
    worker("commit", tmp_path / "job", tmp_path / "results")
    worker("abort", tmp_path / "job", tmp_path / "results")
    check(uri, [data] * 8)
    assert list(managed(uri).values()) == [len(data)]
    exact_files(uri)


def test_a_late_attempt(uri: str) -> None:
    """A task is done once more after the commit, and aborted: nothing that is needed goes."""
    job = job_of(uri)
    results = [lt.execute(job.task(name), binary([X, Y])) for name in "ab"]
    lt.commit(job, results)
    late = lt.execute(job.task("a"), binary([X, Z]))
    lt.abort(job, [late])
    same(blobs_of(opened(uri)), [X, Y] * 2)
    exact_files(uri)
    again = finish(job, results)
    assert [r.attempt_id for r in again] == [r.attempt_id for r in results]


def broken(tables: list[pa.Table]) -> pa.RecordBatchReader:
    """These rows, and then an error."""

    def batches() -> Iterator[pa.RecordBatch]:
        for part in tables:
            yield from part.to_batches()
        raise OSError("the source is gone")

    return pa.RecordBatchReader.from_batches(tables[0].schema, batches())


def test_failed_attempts(uri: str) -> None:
    """Rows are wrong, or end too early: the payloads before them do not stay."""
    write(uri, binary([X]), **WIDE)
    good = table([X, Y, Z], start=1)
    both = pa.array([{"data": b"x", "uri": "/x"}], good.schema.field("blob").type)
    bad = pa.concat_tables([good, table([None], 4).set_column(1, "blob", both)])
    reader = pa.RecordBatchReader.from_batches(bad.schema, bad.to_batches())
    before = files(uri)
    for data, why in ((reader, "row 3: both"), (broken([good]), "the source is gone")):
        job = job_of(uri, "append")
        with pytest.raises(lt.Error, match=why):
            lt.execute(job.task("a"), data)
        # Another task of the job may need them: only the end of the job is the end of its payloads.
        assert {
            p for p in files(uri).keys() - before.keys() if not p.startswith("_blobs/")
        } == set()
        lt.abort(job, [])
        assert files(uri) == before
    found = descriptors(check(uri, [X]))
    assert found[0]["blob_uri"] in managed(uri)


@pytest.mark.parametrize("first", [True, False], ids=["after", "before"])
def test_a_failed_attempt_takes_nothing_from_others(first: bool, uri: str) -> None:
    """Tasks of a job have the same payloads: what one has written is not another's to remove."""
    job = job_of(uri)
    large = [payload(2_000_000, n) for n in range(4)]
    rows = binary(large)
    results = [lt.execute(job.task("a"), rows)] if first else []
    with pytest.raises(lt.Error, match="the source is gone"):
        lt.execute(job.task("b"), broken([rows, binary([X])]))
    if not first:
        results = [lt.execute(job.task("a"), rows)]
    results.append(lt.execute(job.task("b"), binary([Y])))
    time.sleep(0.2)
    lt.commit(job, results)
    lt.abort(job, results)
    same(blobs_of(opened(uri)), [*large, Y])
    exact_files(uri)


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_payload_is_cleaned_up_in_between(when: str, uri: str) -> None:
    """A write refers to a payload whose last rows and versions go before (or after) its tasks have
    run: a commit would make rows without their bytes."""
    write(uri, binary([X, Y]), **WIDE)
    write(uri, binary([Z], start=2), mode="append", dedup="content")
    job = job_of(uri, "append", "a")
    results = [lt.execute(job.task("a"), binary([X], start=3))] if when == "after" else []
    opened(uri).delete("id < 2")
    opened(uri).optimize.compact_files()
    opened(uri).cleanup_old_versions(older_than=timedelta(0))
    assert list(managed(uri).values()) == [len(Z)]
    with pytest.raises(lt.VersionGoneError):
        lt.commit(job, results or [lt.execute(job.task("a"), binary([X], start=3))])
    same(blobs_of(opened(uri)), [Z])
    again = job_of(uri, "append", "a")
    lt.commit(again, [lt.execute(again.task("a"), binary([X], start=3))])
    lt.abort(job, results)
    same(blobs_of(opened(uri)), [Z, X])
    exact_files(uri)
