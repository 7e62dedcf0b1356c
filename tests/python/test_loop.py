# SPDX-License-Identifier: Apache-2.0
"""The loop of prepare, plan, execute and commit, for every operation: in one process, in many, with
attempts that repeat, fail, and finish in any order, and resumed after a crash."""

import json
import pickle
import random
from pathlib import Path

import lance
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
from support import (
    assert_same,
    execute_partitions,
    files,
    finish,
    finish_worker,
    hidden,
    numbers,
    read,
    start_worker,
    unchanged,
    worker,
    write_parquet_files,
)

import lance_tasks as lt


def test_loop_in_one_process(case) -> None:
    job = lt.prepare(case.spec)
    results: list[lt.Result] = []
    while tasks := lt.plan(job, results):
        alone = len(results) < case.stages_before
        assert alone or len(tasks) > 1, "the case is to have several tasks"
        results += [lt.execute(task) for task in tasks]
    case.check_untouched()  # executing makes nothing visible
    outcome = lt.commit(job, results)
    case.check()
    dataset = lance.dataset(case.uri)
    assert outcome.version == dataset.version
    assert outcome.rows == dataset.count_rows()
    assert outcome.complete and not outcome.already_committed
    assert (outcome.job_id, outcome.uri) == (job.id, case.uri)
    assert outcome.metrics["tasks"] == len(results) - case.stages_before


def test_loop_with_execute_all(case) -> None:
    job = lt.prepare(case.spec)
    results: list[lt.Result] = []
    while tasks := lt.plan(job, results):
        done = list(lt.execute_all(tasks))
        assert {result.task_id for result in done} == {task.id for task in tasks}
        assert [result.status for result in done] == ["ok"] * len(tasks)
        results += done
    lt.commit(job, results)
    case.check()


def test_run(case) -> None:
    outcome = lt.run(case.spec)
    assert outcome.complete and not outcome.already_committed
    case.check()


def test_every_verb_in_its_own_process(case, tmp_path: Path) -> None:
    """Bytes in files are all that the processes share; each task has its own process."""
    spool = tmp_path / "spool"
    tasks, results = spool / "tasks", spool / "results"
    tasks.mkdir(parents=True)
    results.mkdir()
    (spool / "spec").write_bytes(case.spec_json())
    prepared = worker("prepare", spool / "spec", spool / "job")
    stages = []
    while planned := worker("plan", spool / "job", results, tasks)["tasks"]:
        stages.append(len(planned))
        chosen = sorted(tasks.iterdir())
        half = len(chosen) // 2
        running = [start_worker("execute", t, results / t.name) for t in chosen[:half]]
        answers = [finish_worker(process) for process in running]
        answers += [worker("execute", t, results / t.name) for t in chosen[half:]]
        assert [answer["task_id"] for answer in answers] == planned
        assert len({answer["pid"] for answer in answers}) == len(planned)
        for task in chosen:
            task.unlink()
    assert len(stages) == case.stages_before + 1 and stages[-1] > 1

    outcome = worker("commit", spool / "job", results)
    assert "error" not in outcome, outcome
    assert outcome["job_id"] == prepared["job_id"]
    assert outcome["version"] == lance.dataset(case.uri).version
    case.check()


def test_two_attempts_of_every_task_in_any_order(case) -> None:
    job, done = case.begin()
    tasks = lt.plan(job, done)
    attempts = [lt.execute(task) for task in [*tasks, *reversed(tasks)]]
    assert len({attempt.attempt_id for attempt in attempts}) == 2 * len(tasks)
    paths = [file["path"] for attempt in attempts for file in attempt.to_dict()["files"]]
    assert len(set(paths)) == len(paths), "two attempts wrote the same file"
    attempts += done
    random.Random(7).shuffle(attempts)
    lt.commit(job, attempts)
    case.check()


def test_two_attempts_at_once(case) -> None:
    job, done = case.begin()
    tasks = lt.plan(job, done)
    attempts = list(lt.execute_all([*tasks, *tasks]))
    assert [attempt.status for attempt in attempts] == ["ok"] * 2 * len(tasks)
    lt.commit(job, [*done, *attempts])
    case.check()


def test_duplicate_results(case) -> None:
    job = lt.prepare(case.spec)
    results = finish(job)
    again = [lt.Result.from_bytes(result.to_bytes()) for result in reversed(results)]
    outcome = lt.commit(job, [*again, *results, *again])
    assert outcome.metrics["tasks"] == len(results) - case.stages_before
    case.check()


def test_failed_attempts_among_the_results(case) -> None:
    job, done = case.begin()
    tasks = lt.plan(job, done)
    with hidden(case.input_file()):
        # A fresh executor has nothing of the file in memory.
        first = list(lt.execute_all(tasks, executor=lt.Executor()))
    failed = [result for result in first if result.status == "failed"]
    assert 0 < len(failed) < len(tasks), "one failing task is not the end of the others"
    assert {result.task_id for result in first} == {task.id for task in tasks}
    for result in failed:
        assert isinstance(result.error, lt.Error)
        assert result.error.task_id == result.task_id
        assert case.input_file().name in result.error.message
        assert result.rows_out == 0 and result.fragments == []
    left = lt.plan(job, [*done, *first])
    assert {task.id for task in left} == {result.task_id for result in failed}
    second = [lt.execute(task) for task in left]
    lt.commit(job, [*second, *first, *done])
    case.check()


def test_execute_raises_what_failed(case) -> None:
    job, done = case.begin()
    tasks = lt.plan(job, done)
    executor = lt.Executor()
    raised = []
    with hidden(case.input_file()):
        for task in tasks:
            try:
                lt.execute(task, executor=executor)
            except lt.Error as error:
                raised.append((task.id, error))
    assert 0 < len(raised) < len(tasks)
    for task_id, error in raised:
        assert error.task_id == task_id
        assert case.input_file().name in error.message
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert (copy.code, copy.message, copy.task_id) == (error.code, error.message, task_id)


def test_a_failed_attempt_leaves_no_file(case) -> None:
    executor = lt.Executor()
    with unchanged(case.folder):
        job, done = case.begin()
        failed = []
        with hidden(case.input_file()):
            for task in lt.plan(job, done):
                try:
                    done.append(lt.execute(task, executor=executor))
                except lt.Error:
                    failed.append(task)
            for task in failed:
                with unchanged(case.folder), pytest.raises(lt.Error):
                    lt.execute(task, executor=executor)
        lt.abort(job, done, executor=executor)
    assert failed


def test_results_as_an_arrow_table(case) -> None:
    job, done = case.begin()
    tasks = lt.plan(job, done)
    half = [lt.execute(task) for task in tasks[: len(tasks) // 2]]
    table = pa.table(lt.results_table([*done, *half]))
    known = [result.task_id for result in done]
    assert table["task_id"].to_pylist() == known + [task.id for task in tasks[: len(tasks) // 2]]
    assert table["job_id"].unique().to_pylist() == [job.id]
    rest = lt.plan(job, table)
    assert [task.id for task in rest] == [task.id for task in tasks[len(tasks) // 2 :]]
    both = pa.concat_tables([pa.table(lt.results_table(lt.execute_all(rest))), table])
    lt.commit(job, both)
    case.check()


def test_results_through_polars(case) -> None:
    """Another engine hands strings, binaries and lists back as other Arrow types."""
    job = lt.prepare(case.spec)
    frame = pl.DataFrame(lt.results_table(finish(job)))
    lt.commit(job, frame.reverse())
    case.check()


def test_tasks_as_an_arrow_table(case) -> None:
    job, done = case.begin()
    tasks = lt.plan(job, done)
    table = pa.table(lt.tasks_table(tasks))
    assert table["task_id"].to_pylist() == [task.id for task in tasks]
    assert table["operation"].unique().to_pylist() == [job.operation]
    assert table["index"].to_pylist() == [task.index for task in tasks]
    results = list(lt.execute_all(table.slice(1)))
    assert {result.task_id for result in results} == {task.id for task in tasks[1:]}
    lt.commit(job, [*results, lt.execute(tasks[0]), *done])
    case.check()


def test_plan_is_pure(case, tmp_path: Path) -> None:
    job = lt.prepare(case.spec)
    first = lt.plan(job)
    assert [t.to_bytes() for t in lt.plan(job)] == [t.to_bytes() for t in first]
    assert [t.to_bytes() for t in lt.plan(job, executor=lt.Executor())] == [
        t.to_bytes() for t in first
    ]
    (tmp_path / "results").mkdir()
    (tmp_path / "tasks").mkdir()
    (tmp_path / "job").write_bytes(job.to_bytes())
    elsewhere = worker("plan", tmp_path / "job", tmp_path / "results", tmp_path / "tasks")
    assert elsewhere["tasks"] == [task.id for task in first]
    assert [p.read_bytes() for p in sorted((tmp_path / "tasks").iterdir())] == [
        task.to_bytes() for task in first
    ]


def test_plan_and_execute_touch_no_manifest(case) -> None:
    job = lt.prepare(case.spec)
    with unchanged(case.folder):
        lt.plan(job)
    versions = Path(case.uri) / "_versions"
    listing = files(versions) if versions.exists() else {}
    finish(job)
    assert (files(versions) if versions.exists() else {}) == listing


def test_resumed_job_plans_only_what_is_missing(case) -> None:
    job, done = case.begin()
    tasks = lt.plan(job, done)
    stored = [result.to_bytes() for result in [*done, *map(lt.execute, tasks[1::2])]]
    # The orchestrator died here; the job and the results are bytes in a store.
    job = lt.Job.from_bytes(job.to_bytes())
    left = lt.plan(job, stored)
    assert [task.id for task in left] == [task.id for task in tasks[::2]]
    assert [task.to_bytes() for task in left] == [task.to_bytes() for task in tasks[::2]]
    results = finish(job, [lt.Result.from_bytes(data) for data in stored])
    assert len(results) == len(done) + len(tasks)
    lt.commit(job, results)
    case.check()


def test_job_and_tasks_through_json(case) -> None:
    job, done = case.begin()
    copy = lt.Job.from_json(job.to_json())
    assert copy == job and copy.to_bytes() == job.to_bytes()
    assert json.loads(job.to_json())["kind"] == "job"
    tasks = [lt.Task.from_json(task.to_json()) for task in lt.plan(copy, done)]
    assert tasks == lt.plan(job, done)
    lt.commit(copy, [*done, *map(lt.execute, tasks)])
    case.check()


def test_pickled_values(case) -> None:
    job, done = pickle.loads(pickle.dumps(case.begin()))
    tasks = pickle.loads(pickle.dumps(lt.plan(job, done)))
    results = pickle.loads(pickle.dumps([*done, *map(lt.execute, tasks)]))
    lt.commit(job, results)
    case.check()


def test_spec_as_json_bytes(case) -> None:
    lt.run(case.spec_json())
    case.check()


def test_result_tells_what_was_done(case) -> None:
    job, done = case.begin()
    for task in [*lt.plan(job), *lt.plan(job, done)]:
        result = lt.execute(task)
        assert (result.job_id, result.task_id) == (job.id, task.id)
        assert result.operation == job.operation
        assert result.status == "ok" and result.error is None
        assert result.rows_in > 0 and result.elapsed > 0 and result.peak_memory > 0
        written = result.to_dict()["files"]
        assert written and result.bytes_written == sum(file["size"] for file in written)
        for file in written:
            assert (Path(case.uri) / file["path"]).stat().st_size == file["size"]


def test_execute_all_yields_as_tasks_finish(sources: Path, uri: str) -> None:
    """The first result is there while other tasks have not begun."""
    paths = write_parquet_files(sources, numbers(200_000), 4)
    job = lt.prepare(lt.Write(uri, sources=paths, max_rows_per_file=5_000))
    tasks = lt.plan(job)
    assert len(tasks) == 40
    started = set()
    stream = lt.execute_all(
        tasks,
        executor=lt.Executor(num_threads=1),
        progress=lambda event: started.add(event.task_id) if event.kind == "started" else None,
    )
    first = next(iter(stream))
    begun = len(started)
    assert first.status == "ok" and begun < 40
    rest = list(stream)
    assert len({result.task_id for result in [first, *rest]}) == 40
    assert started == {task.id for task in tasks}


def test_execute_all_gives_each_failure_its_own_row(uri: str) -> None:
    job = lt.prepare(lt.Write(uri), schema=numbers(0).schema)
    # Tasks of an open job fail without their data.
    results = list(lt.execute_all([job.task(f"{i}") for i in range(6)]))
    assert [result.status for result in results] == ["failed"] * 6
    assert all(isinstance(result.error, lt.InvalidArgumentError) for result in results)


@pytest.mark.parametrize("names", [None, ["p0", "p1", "p2"]])
def test_open_job(uri: str, names: list[str] | None) -> None:
    parts = {f"p{i}": numbers(100, start=100 * i) for i in range(3)}
    job = lt.prepare(lt.Write(uri, partitions=names), schema=parts["p0"].schema)
    results = execute_partitions(job, dict(reversed(parts.items())))
    assert {r.task_id for r in results} == {job.task(name).id for name in parts}
    outcome = lt.commit(job, results)
    assert outcome.rows == 300
    expected = pa.concat_tables(parts.values())
    if names:  # stated partitions: in the order of their rows
        assert_same(read(uri), expected.combine_chunks())
    else:
        assert_same(read(uri).sort_by("id"), expected.combine_chunks())


def test_open_job_takes_one_attempt_per_partition(uri: str) -> None:
    parts = {"a": numbers(10), "b": numbers(10, start=10)}
    job = lt.prepare(lt.Write(uri, num_partitions=2), schema=parts["a"].schema)
    results = execute_partitions(job, parts) + execute_partitions(job, parts)
    lt.commit(job, results)
    assert sorted(read(uri)["id"].to_pylist()) == list(range(20))


@pytest.mark.parametrize("mode", ["create", "append", "overwrite"])
def test_run_with_data(uri: str, mode: str) -> None:
    if mode != "create":
        lance.write_dataset(numbers(30), uri)
    outcome = lt.run(lt.Write(uri, mode=mode), data=numbers(50, start=30))
    expected = numbers(80) if mode == "append" else numbers(50, start=30)
    assert outcome.rows == expected.num_rows
    assert_same(read(uri), expected)


def test_run_aborts_what_fails(sources: Path, uri: str) -> None:
    pa.parquet.write_table(numbers(10), sources / "a.parquet")
    (sources / "b.csv").write_text("id,name,score\n1,x,notanumber\n")
    spec = lt.Write(uri, sources=[sources / "a.parquet", sources / "b.csv"], max_rows_per_file=5)
    with pytest.raises(lt.Error):
        lt.run(spec)
    assert files(uri) == {}
