# SPDX-License-Identifier: Apache-2.0
"""Jobs with blobs: partitions, results, retries, and what abort leaves of attempts that came to
nothing."""

import contextlib
import time
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
    exact_files,
    listed,
    listed_by,
    opened,
    payload,
    referenced,
    same,
    table,
    write,
)
from support import files, finish, go, start_worker, unchanged, worker

import lance_tasks as lt

# A payload of every class of size, small enough to be written often.
COLUMN = lt.BlobColumn("blob", inline_size_threshold=1000, dedicated_size_threshold=20_000)
ROWS = 40


def payloads(start: int = 0, rows: int = ROWS) -> list[bytes | None]:
    sizes = (10, 5000, 50_000, None, 0)
    return [
        None if sizes[n % 5] is None else payload(sizes[n % 5] + n, n) if sizes[n % 5] else b""
        for n in range(start, start + rows)
    ]


def partition(n: int) -> pa.Table:
    return binary(payloads(n * ROWS), start=n * ROWS)


@pytest.fixture(params=["create", "append", "overwrite"])
def job(request: pytest.FixtureRequest, uri: str) -> lt.Job:
    """An open job of three partitions, which for an append come after one that is there."""
    if request.param != "create":
        write(uri, partition(0), blob_columns=[COLUMN])
    columns = None if request.param == "append" else [COLUMN]
    spec = lt.Write(
        uri,
        mode=request.param,
        partitions=["a", "b", "c"],
        blob_columns=columns,
        max_rows_per_file=15,
    )
    return lt.prepare(spec, schema=partition(0).schema)


def attempts(job: lt.Job, first: int) -> list[lt.Result]:
    return [lt.execute(job.task(name), partition(first + n)) for n, name in enumerate("abc")]


@pytest.fixture
def first(job: lt.Job, request: pytest.FixtureRequest) -> int:
    return 1 if request.node.callspec.params["job"] == "append" else 0


def check_all(uri: str, first: int) -> None:
    same(blobs_of(opened(uri)), payloads(0, ROWS * (3 + first)))
    ids = opened(uri).to_table(columns=["id"])["id"].to_pylist()
    assert ids == list(range(ROWS * (3 + first)))


def test_partitions(job: lt.Job, first: int, uri: str) -> None:
    """In whatever order they are done, and bytes in between."""
    results = [
        lt.execute(lt.Task.from_bytes(job.task(name).to_bytes()), partition(first + n))
        for n, name in reversed(list(enumerate("abc")))
    ]
    results = [lt.Result.from_bytes(result.to_bytes()) for result in results]
    outcome = lt.commit(lt.Job.from_bytes(job.to_bytes()), results)
    check_all(uri, first)
    exact_files(uri)
    assert lt.commit(job, results).version == outcome.version
    exact_files(uri)


def test_results_list_every_file(job: lt.Job, first: int, uri: str) -> None:
    """With their sizes, payloads' files among them."""
    before = listed(uri)
    results = attempts(job, first)
    made = {path: size for path, size in listed(uri).items() if path not in before}
    assert listed_by(results) == made
    for result in results:
        names = list(listed_by([result]))
        assert len(names) == len(set(names))
        assert sum(name.endswith(".lance") for name in names) == 3
        assert sum(name.endswith(".blob") for name in names) >= 3
    outcome = lt.commit(job, results)
    assert outcome.metrics["bytes_written"] == sum(made.values())


def test_abort_leaves_no_file(job: lt.Job, first: int, uri: str) -> None:
    before = files(uri)
    results = attempts(job, first) + attempts(job, first)
    made = listed_by(results)
    assert len(made) > 2 * 3 * 3
    report = lt.abort(job, results)
    assert files(uri) == before
    assert not [path for path in Path(uri).rglob("*") if path.is_dir() and not any(path.iterdir())]
    assert (report.files_removed, report.bytes_removed) == (len(made), sum(made.values()))
    assert report.kept == 0


def test_abort_without_results(job: lt.Job, first: int, uri: str) -> None:
    """The results are lost: the job's files are known by their names."""
    before = files(uri)
    attempts(job, first)
    assert len(files(uri)) > len(before)
    lt.abort(job, [])
    assert files(uri) == before


def test_abort_after_commit(job: lt.Job, first: int, uri: str) -> None:
    """Losing attempts go, with their payloads; what the version needs stays."""
    results = [attempts(job, first), attempts(job, first)]
    lt.commit(job, results[0] + results[1])
    lt.abort(job, results[0] + results[1])
    check_all(uri, first)
    exact_files(uri)
    with unchanged(uri):
        report = lt.abort(job, [])
        assert report.files_removed == 0


def test_abort_after_the_rows_are_gone(job: lt.Job, first: int, uri: str) -> None:
    results = attempts(job, first)
    version = lt.commit(job, results).version
    opened(uri).delete("true")
    lance.write_dataset(pa.table({"x": [1]}), uri, mode="overwrite")
    with unchanged(uri):
        lt.abort(job, results)
    same(blobs_of(opened(uri, version)), payloads(0, ROWS * (3 + first)))


def test_retried_attempts(job: lt.Job, first: int, uri: str) -> None:
    """An attempt that fails in mid-stream has left no file; the next one does it."""

    def broken(n: int):
        data = partition(n)
        yield from data.to_batches(max_chunksize=10)[:3]
        raise OSError("the source is gone")

    before = files(uri)
    for _ in range(2):
        reader = pa.RecordBatchReader.from_batches(partition(0).schema, broken(first))
        with pytest.raises(lt.Error, match="the source is gone"):
            lt.execute(job.task("a"), reader)
        for _ in range(100):  # files that were being written go a moment later
            if files(uri) == before:
                break
            time.sleep(0.02)
        assert files(uri) == before
    lt.commit(job, attempts(job, first))
    check_all(uri, first)
    exact_files(uri)


def test_rows_that_are_wrong_leave_no_file(uri: str) -> None:
    """The last of many rows has both bytes and a URI."""
    good = table(payloads())
    both = pa.array([{"data": b"x", "uri": "/x"}], good.schema.field("blob").type)
    bad = table([None], ROWS).set_column(1, "blob", both)
    with pytest.raises(lt.InvalidArgumentError, match=f'"blob", row {ROWS}: both'):
        write(uri, pa.concat_tables([good, bad]), blob_columns=[COLUMN], max_rows_per_file=15)
    assert listed(uri) == {}


def test_execute_all(sources: Path, uri: str) -> None:
    for n in range(4):
        pq.write_table(partition(n), sources / f"{n}.parquet", row_group_size=10)
    spec = lt.Write(uri, sources=[str(sources)], blob_columns=[COLUMN], max_rows_per_file=16)
    job = lt.prepare(spec)
    tasks = lt.plan(job)
    assert len(tasks) == 10
    results = list(lt.execute_all(tasks))
    assert {result.status for result in results} == {"ok"}, [r.error for r in results]
    assert listed_by(results) == listed(uri)
    lt.commit(job, results)
    same(blobs_of(opened(uri)), payloads(0, 4 * ROWS))
    exact_files(uri)


def test_cancelled_attempts_leave_no_file(sources: Path, uri: str) -> None:
    """Wherever in its work an attempt is cancelled."""
    for n in range(4):
        pq.write_table(partition(n), sources / f"{n}.parquet", row_group_size=10)
    job = lt.prepare(
        lt.Write(uri, sources=[str(sources)], blob_columns=[COLUMN], max_rows_per_file=16)
    )
    tasks = lt.plan(job)
    for _ in range(15):
        results = lt.execute_all(tasks)
        done = [next(results)]
        results.cancel()
        done += results
        lt.abort(job, done)
    time.sleep(0.5)
    assert files(uri) == {}


def test_processes_side_by_side(uri: str, sources: Path, tmp_path: Path) -> None:
    """Every task in two processes at once; one attempt of each is committed, the others go."""
    for n in range(2):
        pq.write_table(partition(n), sources / f"{n}.parquet")
    job = lt.prepare(
        lt.Write(uri, sources=[str(sources)], blob_columns=[COLUMN], max_rows_per_file=ROWS)
    )
    (tmp_path / "results").mkdir()
    processes = []
    for task in lt.plan(job):
        (tmp_path / task.id).write_bytes(task.to_bytes())
        for n in range(2):
            out = tmp_path / "results" / f"{task.id}-{n}"
            processes.append(start_worker("execute", tmp_path / task.id, out, wait=True))
    assert not [answer for answer in go(*processes) if "error" in answer]
    (tmp_path / "job").write_bytes(job.to_bytes())
    worker("commit", tmp_path / "job", tmp_path / "results")
    worker("abort", tmp_path / "job", tmp_path / "results")
    same(blobs_of(opened(uri)), payloads(0, 2 * ROWS))
    exact_files(uri)


# Killed writers


def large(sources: Path, uri: str, **options: object) -> lt.Job:
    """A job of one task that takes a while: payloads of every class, 50 MB."""
    sizes = (100, INLINE + 1, 400_000, DEDICATED + 1)
    rows = [payload(sizes[n % 4], n % 8) + n.to_bytes(4, "big") for n in range(48)]
    pq.write_table(binary(rows, pa.binary()), sources / "rows.parquet", row_group_size=4)
    spec = lt.Write(uri, sources=[str(sources)], blob_columns=["blob"], **options)
    return lt.prepare(spec)


def kill_while_writing(job: lt.Job, uri: str, tmp_path: Path, enough: int) -> bool:
    """A process that executes the job's task dies when it has written so many files; whether it
    died before its end."""
    (task,) = lt.plan(job)
    (tmp_path / "task").write_bytes(task.to_bytes())
    process = start_worker("execute", tmp_path / "task", tmp_path / "lost", wait=True)
    before = len(files(uri))
    process.stdin.write("go\n")
    process.stdin.flush()
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # a file renamed while we look
            if len(files(uri)) >= before + enough:
                break
    process.kill()
    process.communicate()
    return process.returncode != 0


@pytest.mark.parametrize("scope", [None, "dataset"])
@pytest.mark.parametrize("enough", [1, 3, 6, 9])
def test_killed_and_given_up(
    enough: int, scope: str | None, sources: Path, uri: str, tmp_path: Path
) -> None:
    options = {} if scope is None else {"dedup_scope": scope, "dedup": "content"}
    job = large(sources, uri, **options)
    # A machine may be too busy to see it in time.
    assert any(kill_while_writing(job, uri, tmp_path, enough) for _ in range(5))
    assert files(uri)
    lt.abort(job, [])
    assert files(uri) == {}


@pytest.mark.parametrize("scope", [None, "dataset"])
@pytest.mark.parametrize("enough", [2, 6])
def test_killed_and_retried(
    enough: int, scope: str | None, sources: Path, uri: str, tmp_path: Path
) -> None:
    """After the commit of the second attempt abort takes what the first one left, and only that."""
    options = {} if scope is None else {"dedup_scope": scope, "dedup": "content"}
    job = large(sources, uri, max_rows_per_file=20, max_rows_per_task=1000, **options)
    # A machine may be too busy to see it in time.
    assert any(kill_while_writing(job, uri, tmp_path, enough) for _ in range(5))
    left = files(uri)
    assert left
    results = finish(job)
    lt.commit(job, results)
    needed = {path for _, path in referenced(opened(uri))}
    assert needed < listed(uri).keys() or scope == "dataset"
    lt.abort(job, results)
    assert opened(uri).count_rows() == 48
    exact_files(uri)
    expected = pq.read_table(sources / "rows.parquet")["blob"].to_pylist()
    check(uri, expected)
