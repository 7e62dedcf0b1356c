# SPDX-License-Identifier: Apache-2.0
"""The five verbs.

What they take by keyword:

- ``storage_options``: Lance's storage options (credentials, endpoint, region), strings by strings.
  Kept for the call only; never in a descriptor or result, never logged.
- ``base_store_params``: the same for single bases of the dataset, by the path under which each is
  registered; such a base has these and none of ``storage_options``.
- ``timeout``: seconds until the call fails with `DeadlineExceededError`; default: no limit.
- ``executor``: default: the process's own, made at the first use.

All may be called from any number of threads at once, and let other Python threads run meanwhile.
Ctrl-C in the main thread cancels the call, waits for it to end and raises KeyboardInterrupt. After
a fork the child gets `InvalidStateError`: start processes with "spawn" or "forkserver".
"""

from __future__ import annotations

from . import _arrow, _ffi
from ._call import Call
from .descriptors import BytesLike, Job, Result, Task
from .errors import Error
from .executor import usable
from .results import ResultIterator
from .tables import stream_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from .executor import Executor
    from .outcomes import AbortReport, Outcome, Progress
    from .specs import SpecLike


def prepare(
    spec: SpecLike,
    schema: Any = None,
    *,
    storage_options: Mapping[str, str] | None = None,
    base_store_params: Mapping[str, Mapping[str, str]] | None = None,
    timeout: float | None = None,
    executor: Executor | None = None,
) -> Job:
    """Validate a spec, pin the dataset's version and resolve every default.

    Nothing is written to the dataset.

    Args:
        spec: a `Write`, `Compact`, `CreateIndex`, `OptimizeIndex`, `TakeBlobs`, `Cleanup` or
            `AddBases`, a mapping, or JSON text.
        schema: for a write without sources: the schema of the rows as they will come; anything with
            `__arrow_c_schema__`.

    Raises:
        InvalidArgumentError: the spec is wrong; the message names the field.
        NotFoundError, AlreadyExistsError: the dataset is missing, or is there.
    """
    from .specs import spec_json

    executor = usable(executor)
    text = spec_json(spec)
    given = None if schema is None else _arrow.InSchema(schema)
    out = _ffi.OutBytes()
    call = Call(storage_options, timeout, base_store_params=base_store_params)
    call.run(_ffi.lib().prepare, executor, text, len(text), given, call, out)
    return Job._trusted(out.take() or b"")


def plan(
    job: Job | bytes | str,
    results: Iterable[Result | bytes] | Any = (),
    *,
    storage_options: Mapping[str, str] | None = None,
    base_store_params: Mapping[str, Mapping[str, str]] | None = None,
    timeout: float | None = None,
    executor: Executor | None = None,
) -> list[Task]:
    """What is still to do, given the results so far; empty: ready to commit.

    Args:
        job: of `prepare`, or its bytes or JSON.
        results: results in any order, any number per task, failed ones too: `Result` or bytes, or
            a table of them from any Arrow package.

    Raises:
        VersionGoneError: the pinned version has been cleaned away; prepare again.
    """
    executor = usable(executor)
    data = _bytes_of(job, Job, "job")
    given = stream_of(results, Result, "results")
    tasks = _ffi.OutStream()
    call = Call(storage_options, timeout, base_store_params=base_store_params)
    library = _ffi.lib()
    call.run(library.plan, executor, data, len(data), given, call, tasks)
    rows = _ffi.OutBytes()
    _ffi.call(library.table_to_rows, tasks, rows)
    return [Task._trusted(row) for row in _ffi.unframe(rows.take() or b"")]


def execute(
    task: Task | bytes | str,
    data: Any = None,
    *,
    storage_options: Mapping[str, str] | None = None,
    base_store_params: Mapping[str, Mapping[str, str]] | None = None,
    timeout: float | None = None,
    progress: Callable[[Progress], object] | None = None,
    executor: Executor | None = None,
) -> Result:
    """Execute one task: writes files, never the manifest. Safe to repeat, safe to lose.

    Args:
        task: of `plan` or `Job.task`, or its bytes or JSON.
        data: the partition's rows, for the task of a write without sources: anything with
            `__arrow_c_stream__` or `__arrow_c_array__`, or an iterable of such (record batches).
        progress: called with a `Progress` on other threads, several at once; must not block. What
            it raises is reported by `sys.unraisablehook`, and ignored.

    Raises:
        Error: the attempt failed. It has removed what it wrote.
    """
    executor = usable(executor)
    payload = _bytes_of(task, Task, "task")
    given = None if data is None else _arrow.InStream(data, "data")
    table = _ffi.OutStream()
    call = Call(storage_options, timeout, progress, base_store_params=base_store_params)
    execute_stream(executor, payload, given, call, table)
    return result_of(table)


def execute_stream(
    executor: Executor,
    task: bytes,
    data: _arrow.InStream | None,
    call: Call,
    table: _ffi.OutStream,
) -> None:
    """As `execute`, in the library's terms; the result goes to `table`."""
    try:
        call.run(_ffi.lib().execute, executor, task, len(task), data, call, table)
    except Error as e:
        if data is not None and data.failure is not None:
            raise e from data.failure
        raise


def result_of(table: _ffi.OutStream) -> Result:
    """The one result of a table."""
    row = _ffi.OutBytes()
    _ffi.call(_ffi.lib().next_row, table, row)
    return Result._trusted(row.take() or b"")


def adopt(
    job: Job | bytes | str,
    task: Task | bytes | str,
    made: Any,
    *,
    storage_options: Mapping[str, str] | None = None,
    base_store_params: Mapping[str, Mapping[str, str]] | None = None,
    timeout: float | None = None,
    executor: Executor | None = None,
) -> Result:
    """The result of a task that another Lance client executed.

    It goes into `commit` like the result of `execute`. Nothing is written; the files that `made`
    names are the job's from now on: `abort` deletes them.

    Args:
        job: of `prepare`, or its bytes or JSON.
        task: the task that the client stood in for.
        made: what it made, as pylance gives it: for a write its `FragmentMetadata`, one or a list;
            for a compaction the `RewriteResult`; for an index the `Index` of
            `create_index_uncommitted`. Or the JSON of these.

    Raises:
        InvalidArgumentError: `made` is no such thing.
        VerificationError: it is not what the task asks for.
    """
    from ._foreign import described

    executor = usable(executor)
    whole, part = _bytes_of(job, Job, "job"), _bytes_of(task, Task, "task")
    text = described(made)
    table = _ffi.OutStream()
    call = Call(storage_options, timeout, base_store_params=base_store_params)
    arguments = (whole, len(whole), part, len(part), text, len(text))
    call.run(_ffi.lib().adopt, executor, *arguments, call, table)
    return result_of(table)


def execute_all(
    tasks: Iterable[Task | bytes] | Any,
    *,
    storage_options: Mapping[str, str] | None = None,
    base_store_params: Mapping[str, Mapping[str, str]] | None = None,
    timeout: float | None = None,
    progress: Callable[[Progress], object] | None = None,
    executor: Executor | None = None,
) -> ResultIterator:
    """Execute tasks on the executor's threads.

    Returns at once; the iterator gives one `Result` per task in the order of completion. A failed
    task is a result with `status` ``"failed"`` and its `error`, not the end of the others.

    Args:
        tasks: `Task` or bytes, or a table of tasks from any Arrow package.
        timeout: seconds from now for all of them.
        progress: as for `execute`.
    """
    executor = usable(executor)
    given = stream_of(tasks, Task, "tasks")
    results = _ffi.OutStream()
    call = Call(storage_options, timeout, progress, base_store_params=base_store_params)
    _ffi.call(_ffi.lib().execute_all, executor, given, call, results)
    return ResultIterator(results, call, executor)


def commit(
    job: Job | bytes | str,
    results: Iterable[Result | bytes] | Any,
    *,
    partial: bool = False,
    storage_options: Mapping[str, str] | None = None,
    base_store_params: Mapping[str, Mapping[str, str]] | None = None,
    timeout: float | None = None,
    executor: Executor | None = None,
) -> Outcome:
    """Commit the job: verified, exactly once, safe to repeat.

    A commit repeated, or whose answer was lost, answers with the version that the first one made.

    Args:
        job: of `prepare`, or its bytes or JSON.
        results: as for `plan`.
        partial: commit what is done of the job, where the operation allows it (compact,
            create_index).

    Raises:
        IncompleteError: tasks have no result.
        VerificationError: a result contradicts its task.
        ConflictError: another commit made this one impossible, or (`RetryableConflictError`) the
            work must be redone.
        HistoryGoneError: an earlier commit of this job cannot be ruled out.
        CommitUnknownError: the commit's answer was lost; commit again.
    """
    from .outcomes import Outcome

    view = _report(
        "commit", job, results, storage_options, base_store_params, timeout, partial, executor
    )
    return Outcome(
        version=view["version"],
        rows=view["rows"],
        already_committed=view["already_committed"],
        complete=view["complete"],
        metrics=view["metrics"],
        uri=view["uri"],
        operation=view["operation"],
        job_id=view["job_id"],
        transaction_id=view["transaction_id"] or None,
    )


def abort(
    job: Job | bytes | str,
    results: Iterable[Result | bytes] | Any = (),
    *,
    storage_options: Mapping[str, str] | None = None,
    base_store_params: Mapping[str, Mapping[str, str]] | None = None,
    timeout: float | None = None,
    executor: Executor | None = None,
) -> AbortReport:
    """Delete what attempts that were not committed have written.

    Never deletes what a commit of the job refers to. Not to be called while another process
    executes or commits the same job.

    Args:
        job: of `prepare`, or its bytes or JSON.
        results: as for `plan`. Files of attempts that left no result, because their process was
            killed, are found by the job's mark in their names.

    Raises:
        HistoryGoneError: an earlier commit cannot be ruled out; nothing is deleted.
    """
    from .outcomes import AbortReport

    view = _report(
        "abort", job, results, storage_options, base_store_params, timeout, False, executor
    )
    return AbortReport(
        files_removed=view["files_removed"],
        bytes_removed=view["bytes_removed"],
        kept=view["kept"],
    )


def _report(
    verb: str,
    job: Job | bytes | str,
    results: Iterable[Result | bytes] | Any,
    storage_options: Mapping[str, str] | None,
    base_store_params: Mapping[str, Mapping[str, str]] | None,
    timeout: float | None,
    partial: bool,
    executor: Executor | None,
) -> dict[str, Any]:
    import json

    executor = usable(executor)
    data = _bytes_of(job, Job, "job")
    given = stream_of(results, Result, "results")
    out = _ffi.OutBytes()
    flags = _ffi.FLAG_PARTIAL if partial else 0
    call = Call(storage_options, timeout, flags=flags, base_store_params=base_store_params)
    call.run(getattr(_ffi.lib(), verb), executor, data, len(data), given, call, out)
    view: dict[str, Any] = json.loads(out.take() or b"{}")
    return view


def _bytes_of(value: object, kind: type[Job | Task], what: str) -> bytes:
    if isinstance(value, kind):
        return value.to_bytes()
    if isinstance(value, BytesLike):
        return bytes(value)
    if isinstance(value, str):
        return value.encode()
    raise TypeError(f"{what}: expected {kind.__name__}, got {type(value).__name__}")
