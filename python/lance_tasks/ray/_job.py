# SPDX-License-Identifier: Apache-2.0
"""One job on a pool of workers: from its spec, or its spool, to the commit."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import deque

import lance_tasks as lt
from lance_tasks.errors import Error, InvalidArgumentError

from ._blocks import BlockSchema
from ._pool import Work
from ._results import Results
from ._retry import clear, note, retrying

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from ._blocks import Blocks
    from ._pool import Pool
    from ._progress import Bar
    from ._retry import Limits
    from ._spool import Spool
    from ._worker import Storage

log = logging.getLogger("lance_tasks.ray")


class Run:
    """One job.

    Args:
        spec: as plain values.
        blocks: of an open job.
        schema: of the blocks, where it is known.
        storage: for the driver's own verbs.
        spool: where results are kept as they come.
        partial: commit what is done where tasks fail for good.
        pool: makes workers.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        blocks: Blocks | None,
        schema: Any,
        storage: Storage,
        spool: Spool | None,
        limits: Limits,
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
        self._storage = storage
        self._spool = spool
        self._limits = limits
        self._partial = partial
        self._bar = bar
        self._make_pool = pool
        self._results = Results()
        self._resumed = False
        self._done = 0
        self._failure: Error | None = None

    def run(self) -> lt.Outcome:
        """Do it, and commit."""
        job = self._open()
        if isinstance(job, lt.Outcome):
            return job
        anew = 0
        try:
            while True:
                try:
                    return self._attempt(job)
                except Error as e:
                    once = self._blocks is not None and self._blocks.count is None
                    if e.retry_class != "replan" or once or anew >= self._limits.max_retries:
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
            return dataclasses.replace(outcome, already_committed=True)
        self._resumed = True
        for result, ok in self._spool.marked_results():
            self._results.add(result)
            self._done += ok
        return job

    def _prepare(self) -> lt.Job:
        schema = self._schema
        if schema is None and self._blocks is not None and not self._append:
            first = self._blocks.first()
            if first is None or (callable(first) and not hasattr(first, "__arrow_c_stream__")):
                raise InvalidArgumentError("schema: it is needed, as no block of the data shows it")
            schema = BlockSchema(first)
        return self._limits.verb(lt.prepare, self._storage, self._spec, schema)

    def _anew(self, job: lt.Job) -> lt.Job:
        """Begin again on the dataset as it is now."""
        results, self._results = self._results.all(), Results()
        self._done, self._failure = 0, None
        counts = self._bar.counts
        counts.total = counts.done = counts.rows = counts.bytes = 0
        # First, so that nobody who comes later counts on files that are no more.
        if self._spool is not None:
            self._spool.clear()
        storage = self._storage.keywords()
        retrying(lambda: lt.abort(job, results, **storage), self._limits.max_retries)
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
        # What is missing from a partial commit may still be done, where there is a spool.
        kept = not outcome.complete and self._spool is not None
        lost = pool.stray or self._resumed or outcome.already_committed or not outcome.complete
        if lost and not kept:
            clear(self._storage, job, results)
        if self._spool is not None:
            # Last: where this driver dies before, the next one removes what attempts have left.
            self._spool.put_outcome(outcome)
        return outcome

    def _commit(self, job: lt.Job, results: list[bytes]) -> lt.Outcome:
        if self._spool is not None:
            self._spool.check()
        failure = self._failure
        if failure is not None and not self._done:
            raise failure
        partial = failure is not None
        outcome = self._limits.verb(lt.commit, self._storage, job, results, partial=partial)
        if failure is not None and outcome.transaction_id is None:
            # What was done was not the part that is committed, of an index say.
            raise failure
        return outcome

    def _execute(self, job: lt.Job, pool: Pool) -> None:
        if self._blocks is not None and self._blocks.count is None:
            self._do(pool, _partitions(job, self._blocks), 0, None)
            return
        while self._failure is None:
            tasks = self._limits.verb(lt.plan, self._storage, job, self._results.all())
            if not tasks:
                return
            stage = tasks[0].stage
            if self._spool is not None and not self._spool.has_stage(stage):
                self._spool.put_stage(stage, tasks)
            count = len(tasks)
            self._bar.counts.total += count
            todo = deque(tasks)
            del tasks
            self._do(pool, _works(todo, self._blocks), stage, count)

    def _do(self, pool: Pool, works: Iterable[Work], stage: int, count: int | None) -> None:
        for work, result, facts in pool.run(works, self._give_up, count):
            if result is None:
                continue
            self._results.add(result)
            self._done += facts["ok"]
            if self._spool is not None:
                self._spool.add(stage, work.index, facts["ok"], facts["attempt"], result)

    def _give_up(self, work: Work, error: Error) -> None:
        if not self._partial or error.retry_class in ("credentials", "replan"):
            raise error
        log.warning("task %d is left out: %s", work.index, error)
        self._failure = self._failure or error

    def _end(self, job: lt.Job, error: BaseException) -> None:
        """Remove what was written, or keep it in the spool."""
        if self._spool is not None:
            return
        results, storage = self._results.all(), self._storage.keywords()
        try:
            retrying(lambda: lt.abort(job, results, **storage), self._limits.max_retries)
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
