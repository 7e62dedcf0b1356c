# SPDX-License-Identifier: Apache-2.0
"""What the Python package itself promises, beyond the library below it."""

import gc
import inspect
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import lance
import nanoarrow as na
import polars as pl
import pyarrow as pa
import pytest
from support import assert_same, files, numbers, read, write_parquet_files

import lance_tasks as lt
from lance_tasks import _arrow, _call, _library, errors

ERRORS = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]


@pytest.fixture
def job(uri: str) -> lt.Job:
    """An open write of `numbers`."""
    return lt.prepare(lt.Write(uri), schema=numbers(0).schema)


@pytest.fixture
def results(job: lt.Job) -> list[lt.Result]:
    """Two successful attempts and a failed one."""
    failed = list(lt.execute_all([job.task("c")]))
    return [lt.execute(job.task(name), numbers(10)) for name in "ab"] + failed


def script(code: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, **options)


# Descriptors


def test_descriptors_are_values(job: lt.Job, results: list[lt.Result]) -> None:
    for value in [job, job.task("a"), results[0], results[-1]]:
        kind = type(value)
        for again in [
            kind.from_bytes(value.to_bytes()),
            kind.from_bytes(memoryview(value.to_bytes())),
            pickle.loads(pickle.dumps(value)),
        ]:
            assert again == value and hash(again) == hash(value) and again is not value
            assert again.to_bytes() == value.to_bytes()
            assert repr(again) == repr(value)
        assert len(repr(value)) < 400
        assert value != value.to_bytes()
        with pytest.raises(AttributeError, match="immutable"):
            value.id = "x"
        with pytest.raises(TypeError, match="from_bytes"):
            kind()
    assert len({job.task("a"), job.task("a"), job.task("b")}) == 2


def test_descriptors_as_json(job: lt.Job) -> None:
    for value in [job, job.task("a")]:
        kind = type(value)
        assert kind.from_json(value.to_json()) == value
        assert kind.from_bytes(value.to_json().encode()) == value


def test_fields(job: lt.Job, results: list[lt.Result], uri: str) -> None:
    task = job.task("a")
    assert (job.uri, job.operation, job.read_version) == (uri, "write", 0)
    assert (task.uri, task.operation, task.read_version) == (uri, "write", 0)
    assert (task.job_id, task.stage, task.estimated_rows) == (job.id, 0, 0)
    ok, _, failed = results
    assert (ok.job_id, ok.task_id, ok.operation, ok.status) == (job.id, task.id, "write", "ok")
    assert ok.error is None and ok.rows_in == ok.rows_out == 10
    assert 0 < ok.elapsed < 60 and ok.pid == os.getpid() and ok.host and ok.peak_memory > 0
    assert ok.bytes_written == sum(file["size"] for file in ok.files) > 0
    assert ok.attempt_id not in (job.id, task.id)
    (fragment,) = [lance.FragmentMetadata.from_json(text) for text in ok.fragments]
    assert fragment.physical_rows == 10
    assert isinstance(ok.payload, dict) and ok.to_dict()["rows_out"] == 10
    assert failed.status == "failed" and failed.fragments == []
    assert isinstance(failed.error, lt.InvalidArgumentError)
    assert failed.error.task_id == failed.task_id


def test_wrong_kinds_are_refused(job: lt.Job, results: list[lt.Result]) -> None:
    task = job.task("a")
    with pytest.raises(lt.InvalidArgumentError, match=r"expected a job.* task"):
        lt.Job.from_bytes(task.to_bytes())
    with pytest.raises(lt.InvalidArgumentError, match=r"expected a task.* result"):
        lt.Task.from_bytes(results[0].to_bytes())
    with pytest.raises(lt.InvalidArgumentError, match=r"expected a result.* job"):
        lt.Result.from_bytes(job.to_bytes())
    with pytest.raises(lt.DecodeError):
        lt.Result.from_bytes(b"")
    for wrong, message in [
        (lambda: lt.plan(task), "job: expected Job, got Task"),
        (lambda: lt.execute(job), "task: expected Task, got Job"),
        (lambda: lt.commit(job, [task]), "results: expected Result or bytes, got Task"),
        (lambda: lt.commit(job, results[0]), "results: expected several"),
        (lambda: list(lt.execute_all([results[0]])), "tasks: expected Task or bytes, got Result"),
        (lambda: lt.execute(task, 3), "data: int is no Arrow data"),
        (lambda: lt.execute(task, {"a": [1]}), "data: a str among the items"),
        (lambda: lt.prepare(3), "spec: expected Write"),
        (lambda: lt.prepare({}, schema=3), "schema: int is no Arrow schema"),
        (lambda: lt.plan(job, executor=3), "executor: expected Executor"),
        (lambda: lt.plan(job, storage_options={"a": 1}), "storage_options: 'a'"),
        (lambda: lt.execute(task, progress=3), "progress: int is not callable"),
        (lambda: lt.Executor(num_threads="2"), "num_threads: expected int"),
        (lambda: pickle.dumps(lt.Executor()), "belongs to its process"),
    ]:
        with pytest.raises(TypeError, match=message):
            wrong()
    with pytest.raises(lt.InvalidArgumentError, match="timeout: -1"):
        lt.plan(job, timeout=-1)
    with pytest.raises(lt.InvalidArgumentError, match="num_threads: 0"):
        lt.Executor(num_threads=0)


def test_specs_in_all_forms(uri: str, sources: Path) -> None:
    (path,) = write_parquet_files(sources, numbers(5), 1)
    spec = lt.Write(Path(uri), sources=lt.Source(Path(path), columns=("id",)))
    assert spec.to_dict()["sources"] == [{"uri": path, "columns": ["id"]}]
    forms = [spec, spec.to_dict(), spec.to_json(), spec.to_json().encode()]
    forms += [{"operation": "write", "uri": Path(uri), "sources": [Path(path)]}]
    assert {lt.prepare(form).uri for form in forms} == {uri}
    index = lt.CreateIndex(uri, column="id", index_type="BTREE", zone_size=7)
    assert index.to_dict()["params"] == {"zone_size": 7} and "name" not in index.to_dict()
    assert index == pickle.loads(pickle.dumps(index))


@pytest.mark.parametrize("form", [lambda s: s, na.c_schema, lambda s: s.serialize().to_pybytes()])
def test_schema_in_a_spec(uri: str, form) -> None:
    wide = pa.schema([("id", pa.int64()), ("name", pa.large_string()), ("score", pa.float64())])
    lt.run(lt.Write(uri, schema=form(wide)), numbers(10))
    assert lance.dataset(uri).schema == wide


# Errors


def test_errors_by_kind(uri: str, job: lt.Job) -> None:
    lance.write_dataset(numbers(10), uri + "2")
    other = pa.table({"z": [1]})
    for call, kind, builtin in [
        (lambda: lt.prepare({"operation": "sing"}), lt.InvalidArgumentError, ValueError),
        (lambda: lt.prepare(lt.Compact(uri)), lt.NotFoundError, FileNotFoundError),
        (lambda: lt.run(lt.Write(uri + "2"), numbers(1)), lt.AlreadyExistsError, FileExistsError),
        (lambda: lt.plan(b"LTSK"), lt.DecodeError, Exception),
        (lambda: lt.plan(b"LTSK\xff\xff"), lt.VersionMismatchError, Exception),
        (lambda: lt.execute(job.task("a"), other), lt.SchemaMismatchError, Exception),
    ]:
        with pytest.raises(kind) as caught:
            call()
        error = caught.value
        assert isinstance(error, lt.Error) and isinstance(error, builtin)
        assert type(error) is kind and error.code == kind.code
        assert error.retry_class == "invalid"
        assert str(error) == error.message != ""
    assert error.task_id == job.task("a").id


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_errors_pickle(kind: type[lt.Error]) -> None:
    error = kind("what", task_id="t")
    for again in [
        pickle.loads(pickle.dumps(error)),
        errors.from_code(kind.code, "what", None, "t"),
    ]:
        assert (str(again), again.task_id, again.code) == ("what", "t", kind.code)
        assert again.retry_class == kind.retry_class
    assert type(pickle.loads(pickle.dumps(error))) is kind
    assert getattr(lt, kind.__name__) is kind
    newer = errors.from_code("NEWER", "what", "replan")
    assert type(newer) is lt.Error and (newer.code, newer.retry_class) == ("NEWER", "replan")


# Arrow in


class OnlyArray:
    """Has `__arrow_c_array__` and nothing else."""

    def __init__(self, array: pa.StructArray | pa.RecordBatch) -> None:
        self._array = array

    def __arrow_c_array__(self, requested_schema: object = None) -> object:
        return self._array.__arrow_c_array__()


def misaligned(table: pa.Table) -> pa.Table:
    """The same values in buffers that begin at odd addresses."""

    def shift(buffer: pa.Buffer | None) -> pa.Buffer | None:
        return buffer and pa.py_buffer(b"x" + buffer.to_pybytes()).slice(1)

    columns = [
        pa.Array.from_buffers(c.type, len(c), [shift(b) for b in c.buffers()], c.null_count)
        for c in table.combine_chunks().to_batches()[0].columns
    ]
    return pa.table(columns, names=table.column_names)


def relation(table: pa.Table) -> duckdb.DuckDBPyRelation:
    return duckdb.connect().from_arrow(table)


INPUTS = {
    "table": lambda t: t,
    "reader": lambda t: t.to_reader(max_chunksize=7),
    "record_batch": lambda t: t.to_batches()[0],
    "batches": lambda t: t.to_batches(max_chunksize=7),
    "generator": lambda t: (b for b in t.to_batches(max_chunksize=7)),
    "tables": lambda t: [t.slice(0, 13), t.slice(13, 0), t.slice(13)],
    "only_array": lambda t: OnlyArray(t.to_batches()[0]),
    "only_arrays": lambda t: iter([OnlyArray(b) for b in t.to_batches(max_chunksize=7)]),
    "sliced_struct": lambda t: OnlyArray(
        pa.concat_tables([t.slice(0, 5), t]).combine_chunks().to_struct_array().chunk(0).slice(5)
    ),
    "sliced": lambda t: pa.concat_tables([t.slice(0, 3), t]).combine_chunks().slice(3),
    "misaligned": misaligned,
    "polars": pl.from_arrow,
    "polars_frames": lambda t: [pl.from_arrow(t.slice(0, 20)), pl.from_arrow(t.slice(20))],
    "duckdb": relation,
    "nanoarrow": na.ArrayStream,
    "pandas": lambda t: t.to_pandas(),
}


@pytest.mark.parametrize("form", INPUTS)
def test_rows_from_every_package(uri: str, form: str) -> None:
    table = numbers(50).append_column("odd", pa.array([i % 2 == 1 for i in range(50)]))
    lt.run(lt.Write(uri, schema=table.schema), INPUTS[form](table))
    assert_same(read(uri), table)
    gc.collect()
    assert not _arrow._chains


def test_inputs_that_fail(job: lt.Job, uri: str) -> None:
    def broken():
        yield numbers(5)
        raise KeyError("the disk is on fire")

    task = job.task("a")
    with pytest.raises(lt.Error, match="the disk is on fire") as caught:
        lt.execute(task, broken())
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(lt.Error, match="another schema"):
        lt.execute(task, [numbers(5), pa.table({"id": ["x"], "name": [1], "score": [None]})])
    with pytest.raises(lt.InvalidArgumentError, match="no record batches"):
        lt.execute(task, [])
    with pytest.raises(lt.Error):
        lt.execute(task, pl.Series("id", [1, 2]))
    with pytest.raises(lt.Error, match="null"):
        nulls = pa.StructArray.from_arrays([pa.array([1])], ["id"], mask=pa.array([True]))
        lt.execute(task, OnlyArray(nulls))
    reader = na.ArrayStream(numbers(5))
    lt.execute(task, reader)
    with pytest.raises(Exception, match="released"):
        lt.execute(task, reader)
    gc.collect()
    assert not _arrow._chains


def test_run_with_rows(uri: str, sources: Path) -> None:
    paths = write_parquet_files(sources, numbers(5), 1)
    assert lt.run(lt.Write(uri, partitions=["x"]), numbers(5)).rows == 5
    assert lt.run({"operation": "write", "uri": uri, "mode": "append"}, numbers(5)).rows == 10
    assert lt.run(lt.Write(uri, mode="append", num_partitions=1).to_json(), numbers(5)).rows == 15
    for spec, message in [
        (lt.Compact(uri), "a compact takes no rows"),
        (lt.Write(uri, mode="append", sources=paths), "sources already"),
        (lt.Write(uri, mode="append", partitions=["a", "b"]), "as one partition"),
        (lt.Write(uri, mode="append", num_partitions=2), "as one partition"),
    ]:
        with pytest.raises(lt.InvalidArgumentError, match=message):
            lt.run(spec, numbers(5))


# Arrow out


OUTPUTS = {
    "pyarrow": pa.table,
    "reader": pa.RecordBatchReader.from_stream,
    "polars": pl.DataFrame,
    "nanoarrow": na.ArrayStream,
    "duckdb": lambda t: duckdb.sql("select * from t order by task_id"),
}


@pytest.mark.parametrize("form", OUTPUTS)
def test_results_through_every_package(form: str, job, results, uri: str) -> None:
    table = lt.results_table(results)
    carried = OUTPUTS[form](table)
    outcome = lt.commit(job, carried)
    assert outcome.rows == 20 and not outcome.already_committed
    assert lt.commit(job, lt.results_table(r.to_bytes() for r in results)).already_committed


@pytest.mark.parametrize("form", OUTPUTS)
def test_tasks_through_every_package(form: str, sources: Path, uri: str) -> None:
    paths = write_parquet_files(sources, numbers(40), 4)
    job = lt.prepare(lt.Write(uri, sources=paths, max_rows_per_file=10))
    tasks = lt.plan(job)
    results = list(lt.execute_all(OUTPUTS[form](lt.tasks_table(tasks))))
    assert {r.task_id for r in results} == {t.id for t in tasks}
    assert lt.commit(job, results).rows == 40


def test_tables(job: lt.Job, results: list[lt.Result]) -> None:
    table = lt.results_table(results)
    assert len(table) == 3 and "3 rows" in repr(table)
    first, again = pa.table(table), pa.table(table)
    assert first == again and first.schema == pa.schema(table)
    assert first["status"].to_pylist() == ["ok", "ok", "failed"]
    assert first["rows_out"].to_pylist() == [10, 10, 0]
    assert len(pa.table(lt.results_table([]))) == 0
    tasks = lt.tasks_table([job.task("a"), job.task("b").to_bytes()])
    assert pa.table(tasks)["task_id"].to_pylist() == [job.task("a").id, job.task("b").id]
    # Capsules that nobody reads are released with them.
    for _ in range(100):
        table.__arrow_c_stream__()
        table.__arrow_c_schema__()
    gc.collect()


# Calls


def test_progress(sources: Path, uri: str, capfd: pytest.CaptureFixture[str]) -> None:
    paths = write_parquet_files(sources, numbers(40), 4)
    seen: list[lt.Progress] = []
    raised: list[object] = []

    def progress(event: lt.Progress) -> None:
        seen.append(event)
        raise LookupError("of no matter")

    hook, sys.unraisablehook = sys.unraisablehook, raised.append
    try:
        spec = lt.Write(uri, sources=paths, max_rows_per_file=10)
        lt.run(spec, progress=progress)
    finally:
        sys.unraisablehook = hook
    assert {event.kind for event in seen} >= {"started", "finished"}
    assert len({event.task_id for event in seen}) == 4
    assert {type(e.exc_value) for e in raised} == {LookupError} and len(raised) == len(seen)
    assert not _call._callbacks
    with pytest.raises(lt.Error):
        lt.execute(b"broken", progress=progress)
    assert not _call._callbacks


def test_iterator_of_results(job: lt.Job) -> None:
    tasks = [job.task(f"{i}") for i in range(5)]
    assert list(lt.execute_all([])) == []
    with lt.execute_all(tasks) as results:
        next(results)
    assert list(results) == []
    results = lt.execute_all(tasks)
    results.cancel()
    assert len(list(results)) == 5
    next(lt.execute_all(tasks))  # dropped on the way
    shared = lt.execute_all(tasks)
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(len(list(shared)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 5


def test_gil_is_released(job: lt.Job) -> None:
    """A library thread waits for a Python thread, which runs while the main thread is in a call."""
    go = threading.Event()

    def rows():
        assert go.wait(30)
        yield numbers(5)

    threading.Timer(0.05, go.set).start()
    assert (
        lt.execute(
            job.task("a"),
            pa.RecordBatchReader.from_batches(
                numbers(0).schema, (batch for table in rows() for batch in table.to_batches())
            ),
        ).rows_out
        == 5
    )


def test_calls_in_threads(job: lt.Job) -> None:
    made: list[lt.Result] = []
    threads = [
        threading.Thread(target=lambda i=i: made.append(lt.execute(job.task(f"{i}"), numbers(10))))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lt.commit(job, made).rows == 80


INTERRUPTED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.argv[3] == "polars":
    import polars
import pyarrow as pa
import lance_tasks as lt
schema = pa.schema([("x", pa.int64())])
def rows():
    yield pa.record_batch([list(range(100_000))], schema=schema)
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        yield pa.record_batch([list(range(1000))], schema=schema)
def endless():
    return pa.RecordBatchReader.from_batches(schema, rows())
job = lt.prepare(lt.Write(sys.argv[1], max_rows_per_file=1000), schema)
try:
    if sys.argv[2] == "run":
        lt.run(lt.Write(sys.argv[1], max_rows_per_file=1000), endless())
    else:
        lt.execute(job.task("0"), endless())
except KeyboardInterrupt:
    print("interrupted", flush=True)
assert lt.run(lt.Write(sys.argv[1] + "2"), pa.table({"x": [1]})).rows == 1
"""


def interrupt(code: str, *arguments: str) -> tuple[str, str, float]:
    """Run it, send SIGINT when it is ready: its output, its errors, seconds until it ended."""
    command = [sys.executable, "-c", code, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        time.sleep(0.2)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        return out, err, time.monotonic() - start


@pytest.mark.parametrize("verb", ["execute", "run"])
@pytest.mark.parametrize("beside", ["alone", "polars"])
def test_ctrl_c_cancels(uri: str, verb: str, beside: str) -> None:
    out, err, seconds = interrupt(INTERRUPTED, uri, verb, beside)
    assert out == "interrupted\n", err
    assert seconds < 20
    assert files(uri) == {}, "what was written is removed"


INTERRUPTED_ALL = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import lance_tasks as lt
job = lt.prepare(lt.Write(sys.argv[1], sources=sys.argv[2:], max_rows_per_file=500))
tasks = lt.plan(job) * 4
results = lt.execute_all(tasks, executor=lt.Executor(num_threads=1))
done = [next(results)]
print("ready", flush=True)
try:
    done.extend(results)
except KeyboardInterrupt:
    rest = list(results)
    print(rest[-1].error.code, flush=True)
"""


def test_ctrl_c_cancels_what_is_not_done(uri: str, sources: Path) -> None:
    paths = write_parquet_files(sources, numbers(200_000), 4)
    out, err, _ = interrupt(INTERRUPTED_ALL, uri, *paths)
    assert out == "CANCELLED\n", err


FORKED = """
import os, sys, pyarrow as pa
import lance_tasks as lt
spec = lt.Write(sys.argv[1])
own = lt.Executor()
job = lt.prepare(spec, pa.schema([("x", pa.int64())]))
results = lt.execute_all([job.task("a")])
if os.fork() == 0:
    for call in [
        lambda: lt.plan(job),
        lambda: lt.plan(job, executor=own),
        lambda: next(results),
    ]:
        try:
            call()
        except lt.InvalidStateError as e:
            assert "spawn" in str(e), e
        else:
            raise AssertionError("not refused")
    assert job.id and job.task("x").id  # descriptors need no threads
    del own, results
    print("refused", flush=True)
    sys.exit(0)
assert os.wait()[1] == 0
print(len(list(results)))
"""


def test_fork_is_refused(uri: str) -> None:
    assert script(FORKED, uri, timeout=60).stdout == "refused\n1\n"


def test_workers_by_spawn(job: lt.Job) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply(lt.execute, (job.task("a"), numbers(10)))
    assert result.pid != os.getpid()
    assert lt.commit(job, [result]).rows == 10


# Loading


BARE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pyarrow", "lance", "numpy", "pandas", "polars", "ray"}:
            raise ImportError(name)
sys.meta_path.insert(0, Block())
before = set(sys.modules)
import lance_tasks as lt
heavy = {"dataclasses", "inspect", "json", "typing", "asyncio"} & (set(sys.modules) - before)
assert not heavy, heavy
uri, source = sys.argv[1:]
outcome = lt.run(lt.Write(uri, sources=source))
assert lt.run(lt.Write(uri, mode="append", sources=[lt.Source(source)])).rows == 2 * outcome.rows
assert lt.run(lt.CreateIndex(uri, column="a", index_type="btree")).metrics["segments"] >= 1
print(outcome.rows, len(lt.results_table([])), sorted(lt.versions()))
"""


def test_needs_no_arrow_package(tmp_path: Path, uri: str) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("a,b\n1,x\n2,y\n")
    out = script(BARE, uri, str(source)).stdout
    assert out == "2 0 ['abi', 'format', 'lance', 'lance_tasks']\n"


def test_public_names() -> None:
    for name in lt.__all__:
        assert getattr(lt, name) is not None
        assert name in dir(lt)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lt.nothing
    assert lt.versions()["lance_tasks"] == lt.__version__


def test_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_library, "FILE_NAME", "libnowhere.so")
    monkeypatch.delenv("LANCE_TASKS_LIBRARY")
    with pytest.raises(ImportError, match=r"libnowhere\.so.*\$LANCE_TASKS_LIBRARY is not set"):
        _library.load()
    monkeypatch.setenv("LANCE_TASKS_LIBRARY", str(tmp_path / "gone.so"))
    with pytest.raises(ImportError, match=r"\$LANCE_TASKS_LIBRARY names .*gone\.so"):
        _library.load()
    (tmp_path / "gone.so").write_bytes(b"no library")
    with pytest.raises(ImportError, match="cannot load"):
        _library.load()


def test_library_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_library, "ABI_VERSION", 99)
        with pytest.raises(ImportError, match="has ABI version 1, this package needs 99"):
            _library.load()
    other = next(iter(Path("/usr/lib").rglob("libm.so.6")), None)
    if other is not None:
        monkeypatch.setenv("LANCE_TASKS_LIBRARY", str(other))
        with pytest.raises(ImportError, match="not a lance-tasks library"):
            _library.load()


def test_cpu_that_is_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "cpuinfo"
    old.write_text("processor : 0\nflags : fpu sse2 avx bmi1\n")
    monkeypatch.setattr(_library.sys, "platform", "linux")
    monkeypatch.setattr(_library.os, "uname", lambda: os.uname_result(["", "", "", "", "x86_64"]))
    with pytest.raises(ImportError, match=r"x86-64-v3 CPU.* lacks avx2, bmi2, fma"):
        _library.check_cpu(str(old))
    monkeypatch.setenv("LANCE_TASKS_SKIP_CPU_CHECK", "1")
    _library.check_cpu(str(old))
