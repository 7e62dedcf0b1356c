# SPDX-License-Identifier: Apache-2.0
"""The Datasink that writes a Ray Dataset."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import ray
from ray.data.datasource.datasink import Datasink, WriteResult

import lance_tasks as lt
from lance_tasks import _arrow, _ffi, verbs
from lance_tasks._call import Call
from lance_tasks.errors import Error
from lance_tasks.specs import spec_json

from ._desk import Desk, here
from ._retry import Limits, clear, note, retrying
from ._specs import absolute, whole_files
from ._tables import chain, tables_of
from ._worker import Storage, check_versions, process_executor, summary, versions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import pyarrow as pa

    from lance_tasks.specs import SpecLike

    from ._progress import Bar
    from ._spool import Spool
    from ._timeline import Timeline

log = logging.getLogger("lance_tasks.ray")

# Seconds that write tasks have to end after a failure.
_END_TIME = 5.0


class AgainError(Exception):
    """Ray is to attempt the task again.

    Attributes:
        given: code, message and retry class. Ray rewrites the arguments.
    """

    def __init__(self, *given: str) -> None:
        super().__init__(*given)
        self.given = given


class _Driver:
    """What stays with the driver."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.spool: Spool | None = None
        self.timeline: Timeline | None = None
        self.bar: Bar | None = None
        self.outcome: lt.Outcome | None = None
        # How often each partition was attempted, and those that are done; for a bar.
        self.tries: dict[str, int] = {}
        self.done: set[str] = set()
        # Every attempt, for a timeline.
        self.attempts: list[dict[str, Any]] = []
        # The job of a driver that died while it read: its write tasks may have outlived it a while.
        self.left: lt.Job | None = None
        self.used = False
        # The last error is of a second use, which is nothing to the first.
        self.refused = False

    def count(self, attempts: list[dict[str, Any]]) -> None:
        """Attempts have ended."""
        if self.timeline is not None:
            self.attempts += attempts
        if self.bar is None:
            return
        counts = self.bar.counts
        for attempt in attempts:
            partition = attempt["partition"]
            self.tries[partition] = self.tries.get(partition, 0) + 1
            counts.retries += self.tries[partition] > 1
            if attempt["error"] is not None:
                counts.failed += 1
            elif partition not in self.done:
                self.done.add(partition)
                counts.done += 1
                counts.rows += attempt["rows"]
                counts.bytes += attempt["bytes"]
        self.bar.update()


class LanceDatasink(Datasink[Any]):
    """Writes one Ray Dataset; for ``ds.write_datasink(sink, ...)``. `write` does more beside.

    Where the `DataContext`'s ``max_errored_blocks`` is not 0, Ray Data leaves out blocks that
    failed, of the write as well; `write` does not let it.

    Args:
        spec: `Write` without sources, a mapping, or JSON text.
        storage_options, base_store_params: as for `run`.
        schema: as for `write`.
        min_rows_per_file: as for `write`.
        max_retries: further attempts of the commit. For those of tasks set the `DataContext`'s
            ``retried_map_errors = ["AgainError"]`` and ``max_map_retries``.
    """

    def __init__(
        self,
        spec: SpecLike,
        *,
        storage_options: Mapping[str, str] | None = None,
        base_store_params: Mapping[str, Mapping[str, str]] | None = None,
        schema: Any = None,
        min_rows_per_file: int | None = None,
        max_retries: int = 3,
    ) -> None:
        plain = json.loads(_ffi.convert(spec_json(spec), _ffi.ENCODING_JSON))
        self._append = plain.get("mode") == "append"
        self._spec = json.dumps(whole_files(absolute(plain), min_rows_per_file)).encode()
        self._storage = Storage(storage_options, base_store_params)
        self._schema = schema
        self._min_rows = min_rows_per_file
        self._versions = versions()
        self._job: bytes | None = None
        self._desk: Desk | None = None
        self._driver = _Driver(Limits(None, None, max_retries))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_driver"}

    def __repr__(self) -> str:
        return "<LanceDatasink>"

    @property
    def outcome(self) -> lt.Outcome | None:
        """What the commit did, once the write is done."""
        return self._driver.outcome

    def get_name(self) -> str:
        """Ray's name of the write tasks."""
        return "Lance"

    @property
    def min_rows_per_write(self) -> int | None:
        """Rows that Ray puts together for a write task."""
        return self._min_rows

    # On the driver

    def prepare(self, schema: Any) -> None:
        """Prepare, where the schema is known or not needed: what is wrong is said before any
        block is read."""
        schema = self._schema if self._schema is not None else schema
        if self._job is None and (schema is not None or self._append):
            driver = self._driver
            given = None if self._append else schema
            job = driver.limits.verb(lt.prepare, self._storage, self._spec, given)
            if driver.spool is not None:
                driver.spool.put_pending(job)
            self._job = job.to_bytes()

    def on_write_start(self, schema: Any = None) -> None:
        """Ray is about to start write tasks. `schema` is that of what they are fused with.

        Raises:
            InvalidStateError: the sink has written a Ray Dataset already.
        """
        driver = self._driver
        if driver.used:
            driver.refused = True
            raise lt.InvalidStateError("a LanceDatasink writes one Ray Dataset; make another")
        driver.used = True
        self.prepare(None)
        watched = driver.bar is not None and driver.bar.shown
        desk = Desk(keep=watched or driver.timeline is not None)
        desk.start()
        self._desk = desk

    def watch(self) -> None:
        """Show how far the write is, and end it where that is due."""
        desk, driver = self._desk, self._driver
        if desk is None:
            return
        if (why := driver.limits.reached()) is not None:
            desk.close(why)
        if driver.bar is not None and driver.bar.shown:
            driver.count(desk.ended())

    def on_write_complete(self, write_result: WriteResult[Any]) -> None:
        """Commit."""
        parts = [part for parts in write_result.write_returns for part in parts]
        stray = self._close(failed=False)
        if self._job is None:
            raise lt.InvalidArgumentError(
                "schema: it is needed, as the Ray Dataset has no rows that show it"
            )
        job = lt.Job.from_bytes(self._job)
        results = [part["result"] for part in parts]
        driver = self._driver
        if driver.spool is not None:
            driver.spool.put_results(self._spec, job, parts)
        driver.outcome = driver.limits.verb(lt.commit, self._storage, job, results)
        # Before the outcome is noted: where this driver dies, the next one does it.
        if stray or driver.outcome.already_committed:
            clear(self._storage, job, results)
        if driver.left is not None:
            clear(self._storage, driver.left)
        if driver.spool is not None:
            driver.spool.put_outcome(driver.outcome)

    def on_write_failed(self, error: Exception) -> None:
        """Remove what was written."""
        if self._driver.refused:
            self._driver.refused = False
        else:
            self.abandon(error)

    def abandon(self, error: BaseException) -> None:
        """Remove what was written, unless it was committed, or can be from the spool."""
        driver = self._driver
        if driver.outcome is not None or not driver.used:
            return
        try:
            self._close(failed=True)
            if self._job is None:
                return
            job, spool = lt.Job.from_bytes(self._job), driver.spool
            if spool is not None and spool.has(job.id):
                return
            retrying(lambda: lt.abort(job, **self._storage.keywords()), driver.limits.max_retries)
            if spool is not None:
                spool.drop_pending(job.id)
        except (Error, ray.exceptions.RayError) as e:
            note(error, f"files of the write may be left: {e}")

    def _close(self, failed: bool) -> bool:
        """Let no write task begin any more; were any lost? Where the write failed, those that have
        begun are waited for."""
        desk, self._desk = self._desk, None
        if desk is None:
            return False
        driver = self._driver
        try:
            self._job = self._job or desk.prepared()
            desk.close(lt.CancelledError("the write has ended"))
            lost = desk.open()
            until = time.monotonic() + _END_TIME
            while failed and lost and time.monotonic() < until:
                time.sleep(0.1)
                lost = desk.open()
            # Between the two looks one may have prepared it.
            self._job = self._job or desk.prepared()
            driver.count(desk.ended())
            if driver.timeline is not None:
                _draw(driver.timeline, [*driver.attempts, *desk.lost()])
            stray = lost > 0 or desk.stray()
            desk.remove()
        except ray.exceptions.RayError as e:
            # What was written counts all the same; what else is there is looked for.
            log.warning("the cluster does not answer: %s", e)
            return True
        return stray

    # On workers

    def write(self, blocks: Iterable[Any], ctx: Any) -> list[dict[str, Any]]:
        """Write the blocks of one of Ray's tasks as one partition."""
        place = here()
        check_versions(versions(), self._versions, f"on {place['host']} (pid {place['pid']})")
        tables = tables_of(blocks, self._schema)
        first = next(tables, None)
        if first is None:
            return []
        # The same for every attempt of Ray's task, and in the order of the blocks.
        partition = str(ctx.task_idx)
        schema = first.schema.serialize().to_pybytes()
        desk = self._desk
        if desk is None:
            raise lt.InvalidStateError("the write has not been started")
        facts: dict[str, Any] | None = None
        failure: str | None = None
        start = time.time()
        name = desk.begin(partition, place)
        try:
            job = desk.job(partition, self._job, self._spec, schema, self._storage)
            task = lt.Job.from_bytes(job).task(partition)
            result = self._execute(task, chain(first, tables))
            facts = summary(result)
        except Error as e:
            failure = e.code
            if e.retry_class != "retry_task":
                raise
            raise AgainError(e.code, e.message, e.retry_class) from None
        except BaseException as e:
            failure = type(e).__name__
            raise
        finally:
            desk.end(name, partition, place, start, facts, failure)
        attempt = facts["attempt"]
        return [{"partition": partition, "result": result.to_bytes(), "attempt": attempt}]

    def _execute(self, task: lt.Task, tables: Iterator[pa.Table]) -> lt.Result:
        stream = _arrow.InStream(tables, "data")
        table = _ffi.OutStream()
        call = Call(**self._storage.keywords())
        try:
            verbs.execute_stream(process_executor(), task.to_bytes(), stream, call, table)
        except Error as e:
            # What the Ray Dataset's own functions raise is not the library's.
            if isinstance(stream.failure, Exception) and not isinstance(e, lt.CancelledError):
                raise stream.failure from None
            raise
        return verbs.result_of(table)


def _tries(attempts: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Attempts in their order, each with which of its partition it is."""
    counts: dict[str, int] = {}
    for attempt in sorted(attempts, key=lambda a: float(a["start"])):
        number = counts[attempt["partition"]] = counts.get(attempt["partition"], 0) + 1
        yield number, attempt


def _draw(timeline: Timeline, attempts: list[dict[str, Any]]) -> None:
    for number, attempt in _tries(attempts):
        kind = "again" if number > 1 else "ok"
        if "end" not in attempt:
            kind = "lost"
        elif attempt["error"] is not None:
            kind = "failed"
        timeline.add(
            node=f"{attempt['host']} {attempt['node'][:6]}",
            worker=f"pid {attempt['pid']}",
            task=f"partition {attempt['partition']}",
            kind=kind,
            start=attempt["start"],
            end=attempt.get("end", time.time()),
            attempt=number,
            rows=attempt.get("rows"),
            bytes=attempt.get("bytes"),
            error=attempt.get("error"),
        )
