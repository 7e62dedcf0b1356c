# SPDX-License-Identifier: Apache-2.0
"""One executor for many threads: budget, deadline, progress, bounded memory."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from support import (
    assert_same,
    files,
    make_dataset,
    numbers,
    read,
    unchanged,
    write_parquet_files,
)

import lance_tasks as lt


def test_threads_share_an_executor(case) -> None:
    executor = lt.Executor(num_threads=2)
    job, done = case.begin()
    tasks = lt.plan(job, done, executor=executor)
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda t: lt.execute(t, executor=executor), [*tasks, *tasks]))
        results += done
        commits = list(threads.map(lambda _: lt.commit(job, results, executor=executor), range(4)))
    assert sorted(outcome.already_committed for outcome in commits) == [False, True, True, True]
    case.check()


def test_one_thread(case) -> None:
    lt.run(case.spec, executor=lt.Executor(num_threads=1))
    case.check()


def test_other_threads_run_meanwhile(uri: str) -> None:
    """The GIL is free while the library works, and taken to read a Python stream."""
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)

    def slow():
        for i in range(20):
            time.sleep(0.01)
            yield from numbers(100, start=100 * i).to_batches()

    thread = threading.Thread(target=tick)
    thread.start()
    reader = pa.RecordBatchReader.from_batches(numbers(0).schema, slow())
    lt.run(lt.Write(uri), data=reader)
    done.set()
    thread.join()
    assert ticks > 50
    assert_same(read(uri), numbers(2000))


def test_task_that_does_not_fit_the_budget(tmp_path: Path, uri: str) -> None:
    make_dataset(uri)
    tiny = lt.Executor(memory_budget=1 << 20)
    job = lt.prepare(lt.Compact(uri))
    (task, *_) = lt.plan(job)
    with unchanged(tmp_path), pytest.raises(lt.BudgetExceededError, match="1048576") as caught:
        lt.execute(task, executor=tiny)
    assert isinstance(caught.value, MemoryError)
    assert caught.value.task_id == task.id
    (row,) = lt.execute_all([task], executor=tiny)
    assert isinstance(row.error, lt.BudgetExceededError)


def test_tasks_wait_for_their_share_of_the_budget(sources: Path, uri: str) -> None:
    """More tasks than fit at once run one after the other."""
    paths = write_parquet_files(sources, numbers(4000), 4)
    job = lt.prepare(lt.Write(uri, sources=paths, max_rows_per_file=500))
    for budget in [1 << 34, 1 << 29, 1 << 28]:
        executor = lt.Executor(num_threads=4, memory_budget=budget)
        results = list(lt.execute_all(lt.plan(job), executor=executor))
        assert {result.status for result in results} == {"ok"}, results


def test_deadline(tmp_path: Path, uri: str) -> None:
    def endless():
        while True:
            time.sleep(0.01)
            yield from numbers(100).to_batches()

    job = lt.prepare(lt.Write(uri), schema=numbers(0).schema)
    reader = pa.RecordBatchReader.from_batches(numbers(0).schema, endless())
    start = time.monotonic()
    with unchanged(tmp_path), pytest.raises(lt.DeadlineExceededError) as caught:
        lt.execute(job.task("0"), reader, timeout=0.3)
    assert time.monotonic() - start < 20
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.retry_class == "retry_task"


def test_deadline_of_many_tasks(tmp_path: Path, sources: Path, uri: str) -> None:
    paths = write_parquet_files(sources, numbers(200_000), 4)
    job = lt.prepare(lt.Write(uri, sources=paths, max_rows_per_file=500))
    tasks = lt.plan(job)
    results = list(lt.execute_all(tasks, timeout=0.05, executor=lt.Executor(num_threads=1)))
    assert {result.task_id for result in results} == {task.id for task in tasks}
    late = [result for result in results if result.status == "failed"]
    assert late and {result.error.code for result in late} == {"DEADLINE_EXCEEDED"}
    lt.abort(job, results)
    assert files(uri) == {}


def test_progress(case) -> None:
    events: list[lt.Progress] = []
    job, done = case.begin()
    tasks = lt.plan(job, done)
    results = list(lt.execute_all(tasks, progress=events.append))
    for result in results:
        mine = [event for event in events if event.task_id == result.task_id]
        assert mine[0].kind == "started" and mine[-1].kind == "finished"
        assert {event.kind for event in mine} <= {"started", "advanced", "finished", "stage"}
        for stage in {event.message for event in mine if event.kind == "stage"} | {None}:
            # Each of Lance's stages counts from nothing.
            rows = [e.rows for e in mine if stage == (e.message if e.kind == "stage" else None)]
            assert rows == sorted(rows)
    if case.name in ("create", "append", "overwrite"):
        last = [event for event in events if event.kind == "finished"]
        assert sum(event.rows for event in last) == sum(result.rows_out for result in results)


BOUNDED = """
import re, sys
import lance_tasks as lt, numpy as np, pyarrow as pa
def peak():
    # Of this process alone: what getrusage says begins with the parent's.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
schema = pa.schema([(f"c{i}", pa.int64()) for i in range(4)])
values = np.random.default_rng(1).integers(0, 2**62, 100_000)
def batches():
    for i in range(200):
        yield pa.record_batch([pa.array(values + i + j) for j in range(4)], schema=schema)
reader = pa.RecordBatchReader.from_batches(schema, batches())
executor = lt.Executor(memory_budget=int(sys.argv[2]))
start = peak()
lt.run(lt.Write(sys.argv[1]), data=reader, executor=executor)
print(peak() - start)
"""


def test_memory_stays_near_the_budget(uri: str) -> None:
    """A stream of 640 MB within a budget of 200 MB."""
    budget = 200 << 20
    run = subprocess.run(
        [sys.executable, "-c", BOUNDED, uri, str(budget)],
        check=True,
        capture_output=True,
        text=True,
    )
    peak = int(run.stdout) << 10
    assert peak < 2 * budget, f"{peak >> 20} MiB held with a budget of {budget >> 20} MiB"
