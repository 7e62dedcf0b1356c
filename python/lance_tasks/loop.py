# SPDX-License-Identifier: Apache-2.0
"""`run`: the loop over the five verbs, in this process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sized

from . import _arrow, _ffi, verbs
from ._call import Call
from .errors import DeadlineExceededError, Error, InvalidArgumentError
from .executor import usable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TypedDict, TypeVar

    from .descriptors import Job, Result, Task
    from .executor import Executor
    from .outcomes import Outcome, Progress
    from .specs import SpecLike

    _T = TypeVar("_T")

    class _Storage(TypedDict):
        storage_options: Mapping[str, str] | None
        base_store_params: Mapping[str, Mapping[str, str]] | None


def run(
    spec: SpecLike,
    data: Any = None,
    *,
    storage_options: Mapping[str, str] | None = None,
    base_store_params: Mapping[str, Mapping[str, str]] | None = None,
    timeout: float | None = None,
    progress: Callable[[Progress], object] | None = None,
    max_attempts: int = 3,
    executor: Executor | None = None,
) -> Outcome:
    """Prepare, plan, execute and commit in this process.

    A task (or commit) that fails in a way that trying again may mend is tried again, up to
    `max_attempts` times. Whatever ends the job otherwise, Ctrl-C included, the files written so far
    are deleted, the dataset is as it was, and the first error is raised.

    Args:
        spec: a `Write`, `Compact`, `CreateIndex`, `OptimizeIndex`, `Cleanup` or `AddBases`, a
            mapping, or JSON text.
        data: for a write without sources: the rows; anything with `__arrow_c_stream__` or
            `__arrow_c_array__`, or an iterable of such (record batches). What can be read only once
            (a reader, a generator) is not tried again.
        storage_options, base_store_params, executor: as for the verbs.
        timeout: seconds for the whole job.
        progress: as for `execute`.
        max_attempts: attempts per task.

    Raises:
        Error: as the verbs do.
    """
    if max_attempts < 1:
        raise InvalidArgumentError(f"max_attempts: {max_attempts}; at least 1")
    storage: _Storage = {
        "storage_options": storage_options,
        "base_store_params": base_store_params,
    }
    loop = _Loop(usable(executor), storage, timeout, progress, max_attempts)
    if data is None:
        return loop.finish(verbs.prepare(spec, **loop.options()), loop.planned)
    spec, partition = _open_spec(spec)
    stream = _arrow.InStream(data, "data")
    job = verbs.prepare(spec, _Schema(stream), **loop.options())
    return loop.finish(job, lambda job: loop.streamed(job.task(partition), data, stream))


class _Schema:
    """The schema of a stream, for `prepare`."""

    def __init__(self, stream: _arrow.InStream) -> None:
        self._stream = stream

    def __arrow_c_schema__(self) -> object:
        return self._stream.schema().capsule()


def _open_spec(spec: Any) -> tuple[dict[str, Any], str]:
    """The spec of a write with one partition, and that partition's name."""
    import json

    from .specs import spec_dict, spec_json

    if isinstance(spec, (str, bytes, bytearray, memoryview)):
        spec = json.loads(_ffi.convert(spec_json(spec), _ffi.ENCODING_JSON))
    spec = spec_dict(spec)
    operation = spec.get("operation", "write")
    if operation != "write":
        raise InvalidArgumentError(f"data: a {operation} takes no rows, only a write does")
    if spec.get("sources") is not None:
        raise InvalidArgumentError("data: the write has sources already; give one of the two")
    partitions = spec.get("partitions")
    if partitions is None:
        partitions = ["0"]
        if spec.get("num_partitions") is None:
            spec["partitions"] = partitions
    if len(partitions) != 1 or spec.get("num_partitions") not in (None, 1):
        raise InvalidArgumentError(
            "partitions: run writes its data as one partition; for more of them call prepare, "
            "Job.task, execute and commit"
        )
    return spec, partitions[0]


class _Loop:
    def __init__(
        self,
        executor: Executor,
        storage: _Storage,
        timeout: float | None,
        progress: Callable[[Progress], object] | None,
        max_attempts: int,
    ) -> None:
        self._executor = executor
        self._storage = storage
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._progress = progress
        self._max_attempts = max_attempts
        self._results: list[Result] = []

    def options(self) -> dict[str, Any]:
        """The keywords of the next call."""
        return {
            **self._storage,
            "timeout": self._remaining(),
            "executor": self._executor,
        }

    def _remaining(self) -> float | None:
        if self._deadline is None:
            return None
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise DeadlineExceededError("run: the deadline passed")
        return remaining

    def finish(self, job: Job, execute: Callable[[Job], None]) -> Outcome:
        """Execute and commit, or undo."""
        try:
            execute(job)
            return self._again(
                lambda: verbs.commit(job, self._results, **self.options()), self._max_attempts
            )
        except BaseException as e:
            self._undo(job, e)
            raise

    def planned(self, job: Job) -> None:
        """Execute what the plan says until it says nothing more."""
        failures: dict[str, int] = {}
        while tasks := verbs.plan(job, self._results, **self.options()):
            worst = self._round(tasks, failures)
            if worst:
                self._pause(worst)

    def _round(self, tasks: list[Task], failures: dict[str, int]) -> int:
        """Execute tasks once; how often the one that failed most has failed."""
        worst = 0
        first: Error | None = None
        results = verbs.execute_all(tasks, progress=self._progress, **self.options())
        try:
            for result in results:
                self._results.append(result)
                error = result.error
                if error is None or first is not None:
                    continue
                count = failures[result.task_id] = failures.get(result.task_id, 0) + 1
                worst = max(worst, count)
                if error.retry_class != "retry_task" or count >= self._max_attempts:
                    first = error
                    results.cancel()
        except BaseException:
            # What is done by now has files, which the undoing must know.
            results.cancel()
            self._results.extend(results)
            raise
        if first is not None:
            raise first
        return worst

    def streamed(self, task: Task, data: Any, stream: _arrow.InStream) -> None:
        """Execute the one task of an open job."""
        first: _arrow.InStream | None = stream

        def attempt() -> None:
            nonlocal first
            given, first = first or _arrow.InStream(data, "data"), None
            call = Call(timeout=self._remaining(), progress=self._progress, **self._storage)
            table = _ffi.OutStream()
            try:
                verbs.execute_stream(self._executor, task.to_bytes(), given, call, table)
            except Error:
                raise
            except BaseException:
                # It may have been done before it was cancelled.
                if not call.token.abandoned:
                    with contextlib.suppress(Error):
                        self._results.append(verbs.result_of(table))
                raise
            self._results.append(verbs.result_of(table))

        self._again(attempt, self._max_attempts if _rereadable(data) else 1)

    def _again(self, attempt: Callable[[], _T], attempts: int) -> _T:
        count = 1
        while True:
            try:
                return attempt()
            except Error as e:
                if e.retry_class != "retry_task" or count >= attempts:
                    raise
            self._pause(count)
            count += 1

    def _pause(self, failures: int) -> None:
        seconds = min(0.1 * 2**failures, 5.0)
        remaining = self._remaining()
        time.sleep(seconds if remaining is None else min(seconds, remaining))

    def _undo(self, job: Job, error: BaseException) -> None:
        for count in range(1, self._max_attempts + 1):
            try:
                verbs.abort(job, self._results, **self._storage, executor=self._executor)
                return
            except Error as e:
                if e.retry_class == "retry_task" and count < self._max_attempts:
                    time.sleep(0.1 * 2**count)
                    continue
                if hasattr(error, "add_note"):  # Python 3.11
                    error.add_note(f"files of job {job.id} may be left: abort failed: {e}")
                return


def _rereadable(data: Any) -> bool:
    # Tables, frames, lists and relations know their length; readers and generators do not.
    return isinstance(data, Sized)
