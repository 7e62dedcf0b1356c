# SPDX-License-Identifier: Apache-2.0
"""The Datasink that writes a Ray Dataset."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from typing import Any

import ray
from ray.data.datasource.datasink import Datasink, WriteResult

import lance_tasks as lt
from lance_tasks import _arrow, _ffi, verbs
from lance_tasks._call import Call
from lance_tasks.errors import Error, from_code
from lance_tasks.specs import spec_json

from ._desk import described, here, start_desk
from ._retry import Limits, retrying
from ._tables import chain, tables_of
from ._worker import Storage, check_versions, memory_budget, summary, versions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import pyarrow as pa

    from lance_tasks.specs import SpecLike

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
        self.outcome: lt.Outcome | None = None
        self.counts: dict[str, int] = {}
        # The job of a driver that died while it read: its write tasks may have outlived it a while.
        self.left: bytes | None = None
        self.ended = False


class LanceDatasink(Datasink[Any]):
    """Writes a Ray Dataset; for ``ds.write_datasink(sink, ...)``. `write` does more beside.

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
        if min_rows_per_file is not None and min_rows_per_file < 1:
            raise lt.InvalidArgumentError(f"min_rows_per_file: {min_rows_per_file}; at least 1")
        self._spec = spec_json(spec)
        mode = json.loads(_ffi.convert(self._spec, _ffi.ENCODING_JSON)).get("mode", "create")
        self._append = mode == "append"
        self._storage = Storage(storage_options, base_store_params)
        self._schema = schema
        self._min_rows = min_rows_per_file
        self._versions = versions()
        self._job: lt.Job | None = None
        self._desk: Any = None
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
            self._job = driver.limits.verb(lt.prepare, self._storage, self._spec, given)
            if driver.spool is not None:
                driver.spool.put_pending(self._job)

    def on_write_start(self, schema: Any = None) -> None:
        """Ray is about to start write tasks. `schema` is that of what they are fused with."""
        self.prepare(None)
        job = None if self._job is None else self._job.to_bytes()
        keep = self._driver.timeline is not None
        self._desk = start_desk(self._spec, job, self._storage, keep)

    def counts(self) -> dict[str, int] | None:
        """How far the write is, while it goes on."""
        if self._desk is None:
            return None
        with contextlib.suppress(ray.exceptions.RayError):
            counts: dict[str, int] = ray.get(self._desk.state.remote(), timeout=5)["counts"]
            return counts
        return None

    def stop(self, error: Error) -> None:
        """Let no write task begin any more."""
        if self._desk is not None:
            self._desk.close.remote(described(error))

    def on_write_complete(self, write_result: WriteResult[Any]) -> None:
        """Commit."""
        parts = [part for parts in write_result.write_returns for part in parts]
        stray = self._close(len(parts))
        job = self._job
        if job is None:
            raise lt.InvalidArgumentError(
                "schema: it is needed, as the Ray Dataset has no rows that show it"
            )
        results = [part["result"] for part in parts]
        driver = self._driver
        if driver.spool is not None:
            for index, part in enumerate(parts):
                driver.spool.add(0, index, True, part["attempt"], part["result"])
            driver.spool.flush()
            if parts:
                driver.spool.put_stage(0, [job.task(part["partition"]) for part in parts])
            # From here on the data need not be read again.
            driver.spool.create(job, self._spec)
            driver.spool.drop_pending()
        outcome = driver.limits.verb(lt.commit, self._storage, job, results)
        driver.outcome = outcome
        driver.ended = True
        if driver.spool is not None:
            driver.spool.put_outcome(outcome)
        if stray:
            with contextlib.suppress(Error):
                lt.abort(job, results, **self._storage.keywords())
        if driver.left is not None:
            with contextlib.suppress(Error):
                lt.abort(driver.left, **self._storage.keywords())

    def on_write_failed(self, error: Exception) -> None:
        """Remove what was written."""
        self.abandon()

    def abandon(self) -> None:
        """Remove what was written, unless it was committed, or can be from a spool."""
        driver = self._driver
        if driver.ended:
            return
        driver.ended = True
        self._close(None)
        job, spool = self._job, driver.spool
        if job is None or (spool is not None and spool.open(self._spec) is not None):
            return
        try:
            retrying(lambda: lt.abort(job, **self._storage.keywords()), driver.limits.max_retries)
            if spool is not None:
                spool.clear()
                spool.drop_pending()
        except Error as e:
            log.warning("files of job %s may be left: abort failed: %s", job.id, e)

    def _close(self, used: int | None) -> bool:
        """Let no write task begin any more; were there attempts beside those whose results are
        used? None: the write failed, and those that have begun are waited for."""
        desk, self._desk = self._desk, None
        if desk is None:
            return False
        desk.close.remote(described(lt.CancelledError("the write has ended")))
        until = time.monotonic() + _END_TIME
        try:
            state = ray.get(desk.state.remote(), timeout=_END_TIME)
            while used is None and state["open"] and time.monotonic() < until:
                time.sleep(0.1)
                state = ray.get(desk.state.remote(), timeout=_END_TIME)
            last = ray.get(desk.last.remote(), timeout=_END_TIME)
        except ray.exceptions.RayError:
            return True
        finally:
            ray.kill(desk)
        self._driver.counts = state["counts"]
        if self._job is None and last["job"] is not None:
            self._job = lt.Job.from_bytes(last["job"])
        if self._driver.timeline is not None:
            for attempt in last["attempts"]:
                _draw(self._driver.timeline, attempt)
        return bool(state["begun"] > (used or 0))

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
        number, data, refused = ray.get(self._desk.begin.remote(partition, schema, place))
        if data is None:
            raise from_code(refused["code"], refused["message"], refused["class"])
        facts: dict[str, Any] | None = None
        failure: str | None = None
        try:
            result = self._execute(lt.Job.from_bytes(data).task(partition), chain(first, tables))
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
            # Waited for: the process may be gone before it is sent.
            ray.get(self._desk.end.remote(number, facts, failure))
        attempt = facts["attempt"]
        return [{"partition": partition, "result": result.to_bytes(), "attempt": attempt}]

    def _execute(self, task: lt.Task, tables: Iterator[pa.Table]) -> lt.Result:
        stream = _arrow.InStream(tables, "data")
        table = _ffi.OutStream()
        call = Call(**self._storage.keywords())
        try:
            verbs.execute_stream(_executor(), task.to_bytes(), stream, call, table)
        except Error as e:
            # What the Ray Dataset's own functions raise is not the library's.
            if isinstance(stream.failure, Exception) and not isinstance(e, lt.CancelledError):
                raise stream.failure from None
            raise
        return verbs.result_of(table)


def _draw(timeline: Timeline, attempt: dict[str, Any]) -> None:
    again = attempt["attempt"] > 1
    end = attempt.get("end")
    kind = "again" if again else "ok"
    if end is None:
        kind = "lost"
    elif attempt["error"] is not None:
        kind = "failed"
    timeline.add(
        node=f"{attempt['host']} {attempt['node'][:6]}",
        worker=f"pid {attempt['pid']}",
        task=f"partition {attempt['partition']}",
        kind=kind,
        start=attempt["start"],
        end=time.time() if end is None else end,
        attempt=attempt["attempt"],
        rows=attempt.get("rows"),
        bytes=attempt.get("bytes"),
        error=attempt.get("error"),
    )


_made: list[lt.Executor] = []


def _executor() -> lt.Executor:
    """This process's executor, sized as Ray's first task in it."""
    if not _made:
        context: Any = ray.get_runtime_context()
        assigned = context.get_assigned_resources()
        cpus = float(assigned.get("CPU", 1))
        budget = memory_budget(assigned.get("memory"), cpus)
        _made.append(lt.Executor(max(1, int(cpus)), budget))
    return _made[0]
