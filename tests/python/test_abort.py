# SPDX-License-Identifier: Apache-2.0
"""Abort removes exactly what attempts wrote that no commit of the job refers to."""

import contextlib
import dataclasses
import shutil
import time
from pathlib import Path

import lance
import pytest
from support import (
    assert_same,
    assert_same_rows,
    edit_result,
    execute_partitions,
    files,
    finish,
    make_dataset,
    numbers,
    read,
    referenced_files,
    unchanged,
    worker,
    write_parquet_files,
)

import lance_tasks as lt


def written(results: list[lt.Result]) -> dict[str, int]:
    return {f["path"]: f["size"] for result in results for f in result.to_dict()["files"]}


def lasting(results: list[lt.Result]) -> dict[str, int]:
    """What a commit refers to; a model that segments were built by goes with it."""
    return written([result for result in results if "model" not in result.payload])


def test_abort_leaves_no_file(case) -> None:
    job = lt.prepare(case.spec)
    before = files(case.folder)
    results = finish(job) + finish(job)
    made = written(results)
    assert set(files(case.uri)) >= set(made)
    report = lt.abort(job, results)
    assert files(case.folder) == before
    assert report.files_removed == len(made)
    assert report.bytes_removed == sum(made.values())
    assert report.kept == 0
    case.check_untouched()


def test_abort_in_another_process(case, tmp_path: Path) -> None:
    job = lt.prepare(case.spec)
    before = files(case.uri)
    results = finish(job)
    spool = tmp_path / "spool"
    spool.mkdir()
    (tmp_path / "job").write_bytes(job.to_bytes())
    for result in results:
        (spool / result.attempt_id).write_bytes(result.to_bytes())
    report = worker("abort", tmp_path / "job", spool)
    assert report["files_removed"] == len(written(results)), report
    assert files(case.uri) == before


def test_abort_repeated(case) -> None:
    job = lt.prepare(case.spec)
    results = finish(job)
    lt.abort(job, results)
    with unchanged(case.folder):
        report = lt.abort(job, results)
    assert dataclasses.astuple(report) == (0, 0, 0)


def test_abort_after_commit_keeps_what_was_committed(case) -> None:
    job = lt.prepare(case.spec)
    results = finish(job)
    lt.commit(job, results)
    with unchanged(case.folder):
        report = lt.abort(job, results)
    assert report.files_removed == report.bytes_removed == 0
    assert report.kept == len(lasting(results))
    case.check()


def test_abort_after_commit_removes_the_losers(case) -> None:
    job = lt.prepare(case.spec)
    attempts = finish(job) + finish(job)
    lt.commit(job, attempts)
    made = set(written(attempts)) & set(files(case.uri))
    report = lt.abort(job, attempts)
    assert report.kept == len(lasting(attempts)) // 2
    assert report.files_removed == len(made) - report.kept
    left = set(files(case.uri)) & set(made)
    assert len(left) == report.kept
    if "index" not in job.operation:
        assert left <= referenced_files(case.uri)
    case.check()


def test_abort_after_commit_by_another_process(case, tmp_path: Path) -> None:
    """The committer's answer was lost; whoever cleans up finds the commit in the history."""
    job = lt.prepare(case.spec)
    results, late = finish(job), finish(job)
    (tmp_path / "job").write_bytes(job.to_bytes())
    for name, attempts in {"committed": results, "all": results + late}.items():
        (tmp_path / name).mkdir()
        for attempt in attempts:
            (tmp_path / name / attempt.attempt_id).write_bytes(attempt.to_bytes())
    worker("commit", tmp_path / "job", tmp_path / "committed")
    report = worker("abort", tmp_path / "job", tmp_path / "all")
    assert report["kept"] == len(lasting(results)), report
    assert report["files_removed"] == len(written(late))
    case.check()


def test_abort_after_later_changes(case) -> None:
    """The committed files stay even where the latest version no longer needs them."""
    job = lt.prepare(case.spec)
    results = finish(job)
    outcome = lt.commit(job, results)
    committed = read(case.uri, version=outcome.version)
    dataset = lance.dataset(case.uri)
    dataset.delete("true")
    lance.write_dataset(numbers(3), case.uri, mode="overwrite")
    report = lt.abort(job, results)
    assert report.files_removed == 0
    assert_same(read(case.uri, version=outcome.version), committed)


def test_abort_after_partial_commit(uri: str) -> None:
    make_dataset(uri)
    before = read(uri)
    job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=300))
    results = finish(job)
    lt.commit(job, results[:1], partial=True)
    report = lt.abort(job, results)
    assert report.kept == 1
    assert report.files_removed == len(results) - 1
    assert_same_rows(read(uri), before)
    lance.dataset(uri).validate()


def test_abort_removes_no_file_of_others(uri: str) -> None:
    """A result that claims files which its job cannot have written removes none of them."""
    make_dataset(uri, rows=200)
    before = read(uri)
    job = lt.prepare(lt.Write(uri, mode="append"), schema=numbers(0).schema)
    (result,) = execute_partitions(job, {"0": numbers(10)})
    outside = Path(uri).parent / "precious"
    outside.write_text("keep me")
    claims = [*referenced_files(uri), "../precious", str(outside), "_versions"]
    claims += [path for path in files(uri) if path.startswith("_versions")]
    forged = [
        edit_result(result, files=[{"path": path, "size": 1, "base": None}]) for path in claims
    ]
    own = {f"{Path(uri).name}/{file['path']}" for file in result.to_dict()["files"]}
    kept = {path: size for path, size in files(Path(uri).parent).items() if path not in own}
    for forgery in forged:
        with contextlib.suppress(lt.Error):
            lt.abort(job, [forgery])
        # What the job itself wrote goes, by its mark, whatever the result says.
        assert {p: size for p, size in files(Path(uri).parent).items() if p not in own} == kept
    assert_same(read(uri), before)


def test_abort_removes_no_file_of_the_version_it_was_pinned_to(uri: str) -> None:
    """A forged claim on files that only an earlier version needs."""
    make_dataset(uri, rows=200)
    old = referenced_files(uri)
    job = lt.prepare(lt.Write(uri, mode="append"), schema=numbers(0).schema)
    (result,) = execute_partitions(job, {"0": numbers(10)})
    lance.write_dataset(numbers(5), uri, mode="overwrite")
    claims = [{"path": path, "size": 1, "base": None} for path in old]
    with contextlib.suppress(lt.Error):
        lt.abort(job, [edit_result(result, files=claims)])
    assert_same(read(uri, version=1), numbers(200))


def test_abort_refuses_results_of_another_job(uri: str) -> None:
    make_dataset(uri, rows=200)
    jobs = [lt.prepare(lt.Write(uri, mode="append"), schema=numbers(0).schema) for _ in range(2)]
    results = execute_partitions(jobs[0], {"0": numbers(10)})
    with unchanged(uri), pytest.raises(lt.InvalidArgumentError):
        lt.abort(jobs[1], results)
    lt.commit(jobs[0], results)
    assert lance.dataset(uri).count_rows() == 210


def test_aborted_create_can_be_created_again(uri: str) -> None:
    for _ in range(2):
        job = lt.prepare(lt.Write(uri), schema=numbers(0).schema)
        lt.abort(job, execute_partitions(job, {"0": numbers(10)}))
        assert files(uri) == {}
    lt.run(lt.Write(uri), data=numbers(10))
    assert_same(read(uri), numbers(10))


def test_abort_after_the_dataset_was_made_anew(uri: str) -> None:
    """What a process knows of an earlier dataset at the same place says nothing of this one."""
    lt.run(lt.Write(uri), data=numbers(30))
    shutil.rmtree(uri)
    job = lt.prepare(lt.Write(uri), schema=numbers(0).schema)
    results = execute_partitions(job, {"0": numbers(20)})
    assert lt.commit(job, results).rows == 20
    lance.write_dataset(numbers(5), uri, mode="overwrite")
    report = lt.abort(job, results)
    assert (report.files_removed, report.kept) == (0, 1)
    assert_same(read(uri, version=1), numbers(20))


def test_cancelled_attempts_leave_no_file(sources: Path, uri: str) -> None:
    """Wherever in its work an attempt is cancelled; many rounds, for it is a matter of moments."""
    paths = write_parquet_files(sources, numbers(20_000), 5)
    job = lt.prepare(lt.Write(uri, sources=paths, max_rows_per_file=500))
    tasks = lt.plan(job)
    for _ in range(60):
        results = lt.execute_all(tasks)
        done = [next(results)]
        results.cancel()
        done += results
        assert {result.task_id for result in done} == {task.id for task in tasks}
        lt.abort(job, done)
    time.sleep(0.5)
    assert files(uri) == {}


def test_abort_of_failed_results(uri: str) -> None:
    job = lt.prepare(lt.Write(uri), schema=numbers(0).schema)
    failed = list(lt.execute_all([job.task("a"), job.task("b")]))
    assert {result.status for result in failed} == {"failed"}
    report = lt.abort(job, failed)
    assert report.files_removed == 0 and files(uri) == {}
