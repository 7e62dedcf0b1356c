# SPDX-License-Identifier: Apache-2.0
"""What several test files need: tables, dataset inspection by pylance, and worker processes."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq

import lance_tasks as lt

WORKER = Path(__file__).with_name("worker.py")


# Tables


def numbers(rows: int, start: int = 0) -> pa.Table:
    """Rows `start .. start + rows` of an id, a string with nulls and a float."""
    ids = range(start, start + rows)
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "name": pa.array([None if i % 7 == 3 else f"name-{i}" for i in ids], pa.string()),
            "score": pa.array([i * 0.5 for i in ids], pa.float64()),
        }
    )


def write_parquet_files(folder: Path, table: pa.Table, files: int, **options: object) -> list[str]:
    """Cut a table into `files` Parquet files whose sorted names keep the order of the rows."""
    size = -(-table.num_rows // files)
    paths = []
    for i in range(files):
        path = folder / f"part-{i:03}.parquet"
        pq.write_table(table.slice(i * size, size), path, **options)
        paths.append(str(path))
    return paths


def make_dataset(uri: str, rows: int = 1200, rows_per_file: int = 100, **options: object):
    """A dataset of many small fragments, made by pylance."""
    return lance.write_dataset(numbers(rows), uri, max_rows_per_file=rows_per_file, **options)


# Looking at datasets


def read(uri: str, version: int | None = None, **options: object) -> pa.Table:
    """All rows as stock pylance reads them."""
    return lance.dataset(uri, version=version).to_table(**options)


def version_of(uri: str) -> int:
    return lance.dataset(uri).version


def fragment_rows(uri: str) -> list[int]:
    """Rows per fragment, deleted ones included, in the dataset's order."""
    return [fragment.physical_rows for fragment in lance.dataset(uri).get_fragments()]


def files(root: str | Path) -> dict[str, int]:
    """Every file below a folder with its size."""
    root = Path(root)
    return {
        str(path.relative_to(root)): path.stat().st_size
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def referenced_files(uri: str) -> set[str]:
    """The data files of the latest version, relative to the dataset's root."""
    return {
        f"data/{file.path}"
        for fragment in lance.dataset(uri).get_fragments()
        for file in fragment.data_files()
    }


def assert_same(actual: pa.Table, expected: pa.Table) -> None:
    """Equal names, types and values, in the same order; NaN equals NaN."""
    assert actual.column_names == expected.column_names
    for name in expected.column_names:
        left, right = actual[name], expected[name]
        assert left.type.equals(right.type), f"{name}: {left.type} is not {right.type}"
        assert len(left) == len(right), f"{name}: {len(left)} rows, not {len(right)}"
        assert left.null_count == right.null_count, f"{name}: nulls differ"
        if not left.equals(right):
            # Dictionaries may be laid out otherwise, and Arrow holds NaN unequal to itself.
            shown = str(right.type)
            assert any(word in shown for word in ("float", "double", "dictionary")), name
            assert repr(left.to_pylist()) == repr(right.to_pylist()), name


def assert_same_rows(actual: pa.Table, expected: pa.Table, key: str = "id") -> None:
    """As `assert_same`, in any order: Lance orders fragments by their ids, so that rows move where
    a part of a dataset is compacted."""
    assert_same(actual.sort_by(key), expected.sort_by(key))


@contextlib.contextmanager
def unchanged(*roots: str | Path) -> Iterator[None]:
    """The block writes, changes and removes no file below these folders.

    Lance unlinks the temporary file of a write that was given up a moment later, on another thread.
    """
    before = {root: files(root) for root in roots}
    yield
    for root, listing in before.items():
        for _ in range(100):
            if (now := files(root)) == listing:
                break
            time.sleep(0.02)
        new, gone = sorted(now.keys() - listing.keys()), sorted(listing.keys() - now.keys())
        assert now == listing, f"files of {root}: {new} are new, {gone} are gone, or sizes differ"


@contextlib.contextmanager
def hidden(path: str | Path) -> Iterator[None]:
    """A file is away for a while and comes back unchanged."""
    path = Path(path)
    away = path.with_name(path.name + ".away")
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)


# The loop


def finish(job: lt.Job, results: Iterable[lt.Result] = ()) -> list[lt.Result]:
    """Execute what is still to do, stage by stage, one task after the other."""
    results = list(results)
    while tasks := lt.plan(job, results):
        results += [lt.execute(task) for task in tasks]
    return results


def execute_partitions(job: lt.Job, parts: dict[str, pa.Table]) -> list[lt.Result]:
    """One task per named partition of an open job."""
    return [lt.execute(job.task(name), data) for name, data in parts.items()]


def append_job(uri: str, rows: int = 50, start: int = 5000) -> tuple[lt.Job, list[lt.Result]]:
    job = lt.prepare(lt.Write(uri, mode="append"), schema=numbers(0).schema)
    return job, execute_partitions(job, {"0": numbers(rows, start)})


def run_loop(spec: object) -> lt.Outcome:
    job = lt.prepare(spec)
    return lt.commit(job, finish(job))


def edit_result(result: lt.Result, **columns: object) -> lt.Result:
    """A result with some columns replaced, as a faulty or malicious worker might send it."""
    with pa.ipc.open_stream(result.to_bytes()) as reader:
        table = reader.read_all()
    for name, value in columns.items():
        at = table.column_names.index(name)
        field = table.schema.field(at)
        table = table.set_column(at, field, pa.array([value], field.type))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return lt.Result.from_bytes(sink.getvalue().to_pybytes())


def edit_fragments(result: lt.Result, edit) -> lt.Result:
    """A result whose fragments (Lance's JSON) went through `edit(list of dicts)`."""
    fragments = edit([json.loads(fragment) for fragment in result.fragments])
    columns: dict[str, object] = {"fragments": [json.dumps(fragment) for fragment in fragments]}
    if "new_fragments" in result.payload:  # of a compaction
        columns["payload"] = json.dumps(result.payload | {"new_fragments": fragments})
    return edit_result(result, **columns)


# Other processes


def start_worker(*arguments: object, wait: bool = False) -> subprocess.Popen:
    """Start `worker.py`; with `wait` it is ready but does nothing until `go` is called."""
    environment = os.environ | {"WORKER_WAITS": "1" if wait else ""}
    process = subprocess.Popen(
        [sys.executable, str(WORKER), *map(str, arguments)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if wait:
        line = process.stdout.readline()
        assert line == "ready\n", line + process.communicate()[1]
    return process


def go(*processes: subprocess.Popen) -> list[dict]:
    """Let waiting workers go at once; what each of them reports."""
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [finish_worker(process) for process in processes]


def finish_worker(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, f"worker failed ({process.returncode}):\n{out}\n{err}"
    return json.loads(out.splitlines()[-1])


def worker(*arguments: object) -> dict:
    """Run one verb in a process of its own; its answer, or `{"error": .., "code": .., ..}`."""
    return finish_worker(start_worker(*arguments))


def spool(folder: Path, job: lt.Job, results: list[lt.Result]) -> tuple[Path, Path]:
    """A job and its results as files for worker processes."""
    folder.mkdir()
    (folder / "results").mkdir()
    (folder / "job").write_bytes(job.to_bytes())
    for result in results:
        (folder / "results" / result.attempt_id).write_bytes(result.to_bytes())
    return folder / "job", folder / "results"
