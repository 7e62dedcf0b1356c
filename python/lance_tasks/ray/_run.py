# SPDX-License-Identifier: Apache-2.0
"""`run`: a job of any operation on Ray actors."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence

import ray

import lance_tasks as lt
from lance_tasks import _arrow, _ffi
from lance_tasks.errors import Error, InvalidArgumentError
from lance_tasks.specs import spec_json

from ._pool import Pool, Work
from ._progress import Bar
from ._results import Results
from ._timeline import Timeline, check_place
from ._worker import Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, TypeVar

    from lance_tasks.specs import SpecLike

    from ._spool import Spool

    _T = TypeVar("_T")
    Places = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

log = logging.getLogger("lance_tasks.ray")

_READS = ("take_blobs",)


def run(
    spec: SpecLike,
    *,
    data: Any = None,
    num_workers: int | None = None,
    ray_remote_args: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, str] | None = None,
    base_store_params: Mapping[str, Mapping[str, str]] | None = None,
    spool: str | os.PathLike[str] | None = None,
    spool_storage_options: Mapping[str, str] | None = None,
    max_retries: int = 3,
    speculate: bool = False,
    partial: bool = False,
    progress: bool = True,
    timeline: Places | None = None,
    schema: Any = None,
    min_rows_per_file: int | None = None,
    preserve_order: bool = False,
) -> Any:
    """Prepare, plan, execute on Ray actors, and commit exactly once.

    The driver prepares, plans and commits; each worker has one executor, as many threads as the
    actor has CPUs, and a memory budget by the actor's memory (three quarters of
    ``ray_remote_args["memory"]``, else by its CPUs' share of half the machine).

    A task that fails for storage's sake is tried again a little later; where a worker or its node
    dies, another worker is started and what it had to do is attempted again. Where the dataset has
    moved on, the job is prepared again, unless its data can be read only once. Whatever ends the
    job otherwise, Ctrl-C included, attempts are cancelled, the files written so far are removed,
    and the first error is raised. With `spool` what is done is kept instead.

    Args:
        spec: as for `lance_tasks.run`. One that reads gives a Ray Dataset, see `read`.
        data: for a write without sources: a Ray Dataset, see `write`; a list of blocks, each Arrow
            data, a reference (`ray.put`) to such, a function that gives such on the worker, or a
            tuple of these that becomes one partition; or any other iterable of these, which is
            read once, as there is room.
        num_workers: actors; default: as many as the cluster has CPUs for.
        ray_remote_args: Ray's options of the actors (``num_cpus``, default 1; ``memory``,
            ``resources``, ``runtime_env``, ``scheduling_strategy``, default ``"SPREAD"``, ...).
        storage_options, base_store_params: as for the verbs. They are handed to the workers, and
            stand in no descriptor, log, task name or error.
        spool: a folder, or a place in an object store, that keeps the job and its results as they
            come, as the command line does. Where the driver has died, the same call again executes
            only what has no result, and commits exactly once. See `write` for Ray Datasets.
        spool_storage_options: default: `storage_options`, where the spool is in an object store.
        max_retries: further attempts per task, of failures and of deaths each; of commits; and how
            often the job is prepared again.
        speculate: attempt a task a second time beside itself where it takes far longer than
            others and workers have nothing to do. The faster attempt counts.
        partial: commit what is done where tasks fail for good (compact, create_index).
        progress: show a bar, in a terminal or a notebook.
        timeline: files to write what each worker did to: ``.json`` (Chrome's and Perfetto's trace),
            ``.svg``, ``.html``.
        schema: for data whose schema cannot be seen beforehand: anything with
            `__arrow_c_schema__`.
        min_rows_per_file: for data: small blocks that follow one another are put together to so
            many rows.
        preserve_order: for a Ray Dataset: keep the order of its blocks.

    Returns:
        The `Outcome`; of a spec that reads, a Ray Dataset.

    Raises:
        VersionMismatchError: a worker has another lance-tasks, Lance or wire format than the
            driver; nothing was executed there.
        WorkerLostError: workers died with the same task again and again.
        WorkerStartError: workers could not be started.
        Error: as the verbs do.
    """
    if max_retries < 0:
        raise InvalidArgumentError(f"max_retries: {max_retries}; at least 0")
    if num_workers is not None and num_workers < 1:
        raise InvalidArgumentError(f"num_workers: {num_workers}; at least 1")
    for place in _places(timeline):
        check_place(str(place))
    text = json.loads(_ffi.convert(spec_json(spec), _ffi.ENCODING_JSON))
    operation = text["operation"]
    storage = Storage(storage_options, base_store_params)
    if operation in _READS:
        from ._read import read_dataset

        return read_dataset(text, storage, ray_remote_args or {}, num_workers)
    if data is not None:
        if operation != "write":
            raise InvalidArgumentError(f"data: a {operation} takes no rows, only a write does")
        if text.get("sources") is not None:
            raise InvalidArgumentError("data: the write has sources already; give one of the two")
    if not ray.is_initialized():
        ray.init()
    kept = None
    if spool is not None:
        from ._spool import Spool

        options = storage.options() if spool_storage_options is None else spool_storage_options
        kept = Spool(str(spool), options)
    if _is_dataset(data):
        from ._write import write_dataset

        return write_dataset(
            data,
            text,
            storage=storage,
            spool=kept,
            schema=schema,
            min_rows_per_file=min_rows_per_file,
            preserve_order=preserve_order,
            ray_remote_args=ray_remote_args or {},
            concurrency=num_workers,
            max_retries=max_retries,
            timeline=timeline,
        )
    drawn = Timeline() if timeline is not None else None
    bar = Bar(operation, progress)

    def pool() -> Pool:
        return Pool(num_workers, ray_remote_args, storage, max_retries, speculate, bar, drawn)

    blocks = None if data is None else Blocks(data, min_rows_per_file)
    job = _Run(text, blocks, schema, storage, kept, max_retries, partial, bar, pool)
    try:
        return job.run()
    finally:
        bar.close()
        if drawn is not None and timeline is not None:
            drawn.write(timeline)


def _places(timeline: Places | None) -> list[str | os.PathLike[str]]:
    if timeline is None:
        return []
    return list(timeline) if isinstance(timeline, (list, tuple)) else [timeline]  # type: ignore


def _is_dataset(data: Any) -> bool:
    import sys

    module = sys.modules.get("ray.data")
    return module is not None and isinstance(data, module.Dataset)


class Blocks:
    """The data of an open job, cut into partitions.

    Attributes:
        count: how many partitions there are; None: not known beforehand.
    """

    def __init__(self, data: Any, min_rows: int | None) -> None:
        if hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__"):
            data = [data]
        elif not isinstance(data, Iterable) or isinstance(data, (str, bytes)):
            raise TypeError(
                f"data: {type(data).__name__} is no Ray Dataset, no Arrow data, and no list of such"
            )
        groups = _grouped(data, min_rows)
        self._groups: Any = list(groups) if isinstance(data, Sequence) else groups
        self.count = len(self._groups) if isinstance(self._groups, list) else None

    def first(self) -> Any:
        """A block, to see the schema of."""
        if self.count is None:
            head = next(self._groups, None)
            if head is None:
                return None
            rest = self._groups
            self._groups = _chain(head, rest)
            return head[0]
        return self._groups[0][0] if self._groups else None

    def get(self, index: int) -> tuple[Any, ...]:
        """The blocks of a partition."""
        group: tuple[Any, ...] = self._groups[index]
        return group

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self._groups)


def _chain(head: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield head
    yield from rest


def _grouped(data: Iterable[Any], min_rows: int | None) -> Iterator[tuple[Any, ...]]:
    group: list[Any] = []
    rows = 0
    for item in data:
        blocks = list(item) if isinstance(item, (list, tuple)) else [item]
        sizes = [_rows_of(block) for block in blocks]
        group += blocks
        rows += sum(size or 0 for size in sizes)
        # What is not known to be small is not put together.
        if min_rows is None or rows >= min_rows or None in sizes:
            yield tuple(group)
            group, rows = [], 0
    if group:
        yield tuple(group)


def _rows_of(block: Any) -> int | None:
    rows = getattr(block, "num_rows", None)
    return rows if isinstance(rows, int) else None


class _Schema:
    def __init__(self, block: Any) -> None:
        if isinstance(block, ray.ObjectRef):
            block = ray.get(block)
        self._stream = _arrow.InStream(block, "data")

    def __arrow_c_schema__(self) -> object:
        return self._stream.schema().capsule()


class _Run:
    """One job."""

    def __init__(
        self,
        spec: dict[str, Any],
        blocks: Blocks | None,
        schema: Any,
        storage: Storage,
        spool: Spool | None,
        max_retries: int,
        partial: bool,
        bar: Bar,
        pool: Callable[[], Pool],
    ) -> None:
        if blocks is not None and blocks.count is not None:
            # So that a commit wants each of them.
            spec = {**spec, "partitions": [str(i) for i in range(blocks.count)]}
        if blocks is not None and blocks.count is None and spool is not None:
            raise InvalidArgumentError(
                "spool: data that is read once cannot be resumed; give a list of blocks"
            )
        self._spec = json.dumps(spec).encode()
        self._append = spec.get("mode") == "append"
        self._blocks = blocks
        self._schema = schema
        self._storage = storage.keywords()
        self._spool = spool
        self._max_retries = max_retries
        self._partial = partial
        self._bar = bar
        self._make_pool = pool
        self._results = Results()
        self._resumed = False
        self._failure: Error | None = None

    def run(self) -> lt.Outcome:
        job = self._open()
        if isinstance(job, lt.Outcome):
            return job
        anew = 0
        while True:
            try:
                return self._attempt(job)
            except Error as e:
                once = self._blocks is not None and self._blocks.count is None
                if e.retry_class != "replan" or once or anew >= self._max_retries:
                    self._end(job, e)
                    raise
                anew += 1
                self._bar.say(f"prepared again: {e}")
                log.info("the job is prepared again: %s", e)
                job = self._anew(job)
            except BaseException as e:
                self._end(job, e)
                raise

    def _open(self) -> lt.Job | lt.Outcome:
        """The spool's job, what has become of it, or a new one."""
        if self._spool is None:
            return self._prepare()
        job = self._spool.open(self._spec)
        if job is None:
            job = self._prepare()
            self._spool.create(job, self._spec)
            return job
        if (outcome := self._spool.outcome()) is not None:
            import dataclasses

            return dataclasses.replace(outcome, already_committed=True)
        self._resumed = True
        for result in self._spool.results():
            self._results.add(result)
        return job

    def _prepare(self) -> lt.Job:
        schema = self._schema
        if schema is None and self._blocks is not None and not self._append:
            first = self._blocks.first()
            if first is None or (callable(first) and not hasattr(first, "__arrow_c_stream__")):
                raise InvalidArgumentError("schema: it is needed, as no block of the data shows it")
            schema = _Schema(first)
        return retrying(lambda: lt.prepare(self._spec, schema, **self._storage), self._max_retries)

    def _anew(self, job: lt.Job) -> lt.Job:
        """Begin again on the dataset as it is now."""
        results, self._results = self._results.all(), Results()
        counts = self._bar.counts
        counts.total = counts.done = counts.rows = counts.bytes = 0
        # First, so that nobody who comes later counts on files that are no more.
        if self._spool is not None:
            self._spool.clear()
        retrying(lambda: lt.abort(job, results, **self._storage), self._max_retries)
        job = self._prepare()
        if self._spool is not None:
            self._spool.replace(job, self._spec)
        return job

    def _attempt(self, job: lt.Job) -> lt.Outcome:
        pool = self._make_pool()
        try:
            try:
                self._execute(job, pool)
            finally:
                # Before the commit: attempts that are still under way have lost.
                pool.close()
                if self._spool is not None:
                    self._spool.flush()
            results = self._results.all()
            outcome = self._commit(job, results)
        finally:
            self._bar.update(now=True)
        if pool.stray or self._resumed:
            with contextlib.suppress(Error):
                lt.abort(job, results, **self._storage)
        return outcome

    def _commit(self, job: lt.Job, results: list[bytes]) -> lt.Outcome:
        if self._spool is not None:
            self._spool.check()
        partial = self._failure is not None
        if partial and not len(results):
            raise self._failure or AssertionError
        outcome = retrying(
            lambda: lt.commit(job, results, partial=partial, **self._storage), self._max_retries
        )
        if self._spool is not None:
            self._spool.put_outcome(outcome)
        return outcome

    def _execute(self, job: lt.Job, pool: Pool) -> None:
        if self._blocks is not None and self._blocks.count is None:
            self._do(pool, _partitions(job, self._blocks), 0, None)
            return
        while self._failure is None:
            tasks = retrying(
                lambda: lt.plan(job, self._results.all(), **self._storage), self._max_retries
            )
            if not tasks:
                return
            stage = tasks[0].stage
            if self._spool is not None and not self._spool.has_stage(stage):
                self._spool.put_stage(stage, tasks)
            count = len(tasks)
            self._bar.counts.total += count
            self._do(pool, _works(deque(tasks), self._blocks), stage, count)
            del tasks

    def _do(self, pool: Pool, works: Iterable[Work], stage: int, count: int | None) -> None:
        for work, result, facts in pool.run(works, self._give_up, count):
            if count is None:
                self._bar.counts.total = self._bar.counts.done
            if result is None:
                continue
            self._results.add(result)
            if self._spool is not None:
                self._spool.add(stage, work.index, facts["ok"], facts["attempt"], result)

    def _give_up(self, work: Work, error: Error) -> None:
        if not self._partial or error.retry_class == "credentials":
            raise error
        log.warning("task %d is left out: %s", work.index, error)
        self._failure = self._failure or error

    def _end(self, job: lt.Job, error: BaseException) -> None:
        """Remove what was written, or keep it in the spool."""
        if self._spool is not None:
            return
        try:
            retrying(lambda: lt.abort(job, self._results.all(), **self._storage), self._max_retries)
        except Error as e:
            note(error, f"files of job {job.id} may be left: abort failed: {e}")


def _works(tasks: deque[lt.Task], blocks: Blocks | None) -> Iterator[Work]:
    """The tasks of a stage; each is forgotten here once it is given away."""
    while tasks:
        task = tasks.popleft()
        index = task.index
        yield Work(index, task.to_bytes(), _getter(blocks, index))


def _getter(blocks: Blocks | None, index: int) -> Callable[[], tuple[Any, ...]] | None:
    return None if blocks is None else lambda: blocks.get(index)


def _partitions(job: lt.Job, blocks: Blocks) -> Iterator[Work]:
    for index, group in enumerate(blocks):
        yield Work(index, job.task(str(index)).to_bytes(), _held(group))


def _held(group: tuple[Any, ...]) -> Callable[[], tuple[Any, ...]]:
    return lambda: group


def retrying(what: Callable[[], _T], max_retries: int) -> _T:
    """Do something that is safe to repeat, again where its error says that this may help."""
    count = 0
    while True:
        try:
            return what()
        except Error as e:
            if e.retry_class != "retry_task" or count >= max_retries:
                raise
        count += 1
        time.sleep(min(0.1 * 2**count, 5.0))


def note(error: BaseException, text: str) -> None:
    """Say more about an error."""
    if hasattr(error, "add_note"):  # Python 3.11
        error.add_note(text)
    log.warning("%s", text)
