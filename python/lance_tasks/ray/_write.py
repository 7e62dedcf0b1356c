# SPDX-License-Identifier: Apache-2.0
"""Writing Ray Datasets: a Datasink."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from typing import Any

import ray
from ray.data.block import BlockAccessor
from ray.data.datasource.datasink import Datasink, WriteResult

import lance_tasks as lt
from lance_tasks import _arrow, _ffi, verbs
from lance_tasks._call import Call
from lance_tasks.errors import Error, from_code
from lance_tasks.specs import Write, spec_json

from ._desk import start_desk
from ._run import retrying
from ._timeline import Timeline, check_place
from ._worker import Storage, check_versions, memory_budget, summary, versions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import pyarrow as pa

    from lance_tasks.specs import SpecLike

    from ._run import Places
    from ._spool import Spool

log = logging.getLogger("lance_tasks.ray")

# Seconds that write tasks have to end after a failure.
_END_TIME = 20.0


def write(
    ds: ray.data.Dataset,
    uri: str | os.PathLike[str],
    *,
    mode: str = "create",
    schema: Any = None,
    min_rows_per_file: int | None = None,
    preserve_order: bool = False,
    storage_options: Mapping[str, str] | None = None,
    base_store_params: Mapping[str, Mapping[str, str]] | None = None,
    ray_remote_args: Mapping[str, Any] | None = None,
    concurrency: int | None = None,
    max_retries: int = 3,
    spool: str | os.PathLike[str] | None = None,
    spool_storage_options: Mapping[str, str] | None = None,
    timeline: Places | None = None,
    **options: Any,
) -> lt.Outcome:
    """Write a Ray Dataset, streaming, in one commit.

    Ray Data runs the write fused with what precedes it, where it can. Each of its write tasks
    becomes a partition of one job; where Ray attempts a task again, its blocks are read again and
    one attempt counts. Where the write fails, the files written so far are removed.

    Args:
        ds: the rows.
        uri: the dataset.
        mode: ``"create"``, ``"append"`` or ``"overwrite"``.
        schema: the dataset's schema, to which rows are aligned; default: the first block's. To be
            given where columns have nothing but nulls in some blocks.
        min_rows_per_file: small blocks are put together up to so many rows, by Ray; what precedes
            the write is then fused only where it is ``map_batches``. Default: each of Ray's tasks
            writes its own files.
        preserve_order: keep the order of the blocks; default false.
        storage_options, base_store_params: as for `run`.
        ray_remote_args: Ray's options of the write tasks.
        concurrency: write tasks at a time at most.
        max_retries: further attempts per task that fails for storage's sake, or whose worker dies.
        spool: as for `run`; its results are kept once all blocks are written. Where the driver
            dies before, the next call removes what was written, and reads the data again; where it
            dies after, the next call commits what is there without reading any.
        spool_storage_options: as for `run`.
        timeline: as for `run`.
        options: further options of `Write`: ``max_rows_per_file``, ``blob_columns`` and so on.

    Raises:
        Error: as for `run`.
    """
    for place in _listed(timeline):
        check_place(str(place))
    if options.get("sources") is not None or options.get("partitions") is not None:
        raise lt.InvalidArgumentError("sources, partitions: the rows are the Ray Dataset's")
    spec = Write(uri, mode=mode, schema=schema, **options)
    storage = Storage(storage_options, base_store_params)
    kept = None
    if spool is not None:
        from ._spool import Spool

        kept = Spool(
            str(spool),
            storage.options() if spool_storage_options is None else spool_storage_options,
        )
    return write_dataset(
        ds,
        json.loads(_ffi.convert(spec_json(spec), _ffi.ENCODING_JSON)),
        storage=storage,
        spool=kept,
        schema=schema,
        min_rows_per_file=min_rows_per_file,
        preserve_order=preserve_order,
        ray_remote_args=ray_remote_args or {},
        concurrency=concurrency,
        max_retries=max_retries,
        timeline=timeline,
    )


def _listed(timeline: Places | None) -> list[Any]:
    if timeline is None:
        return []
    return [timeline] if isinstance(timeline, (str, os.PathLike)) else list(timeline)


def write_dataset(
    ds: ray.data.Dataset,
    spec: dict[str, Any],
    *,
    storage: Storage,
    spool: Spool | None,
    schema: Any,
    min_rows_per_file: int | None,
    preserve_order: bool,
    ray_remote_args: Mapping[str, Any],
    concurrency: int | None,
    max_retries: int,
    timeline: Places | None,
) -> lt.Outcome:
    """As `write`, of a spec."""
    text = json.dumps(spec).encode()
    sink = LanceDatasink(
        text,
        schema=schema,
        min_rows_per_file=min_rows_per_file,
        max_retries=max_retries,
    )
    sink._storage = storage
    sink._driver.spool = spool
    if timeline is not None:
        sink._driver.timeline = Timeline()
    if spool is not None:
        outcome = _resume(spool, text, storage, max_retries)
        if outcome is not None:
            return outcome
    sink._prepare(_schema(ds, fetch=spool is not None))
    try:
        with _context(ds, preserve_order, max_retries):
            ds.write_datasink(sink, ray_remote_args=dict(ray_remote_args), concurrency=concurrency)
    except BaseException as e:
        sink._abandon(e)
        own = _own(e)
        raise own from (None if own is e else e)
    finally:
        if timeline is not None and sink._driver.timeline is not None:
            sink._driver.timeline.write(timeline)
    done = sink.outcome
    if done is None:
        raise lt.InternalError("Ray Data ended the write without a word")
    return done


@contextlib.contextmanager
def _context(ds: ray.data.Dataset, preserve_order: bool, max_retries: int) -> Iterator[None]:
    """Ray Data's settings for a write. Options of its tasks instead would stand against fusing."""
    context = ds.context
    before = context.retried_map_errors, context.max_map_retries
    order = context.execution_options.preserve_order
    # Ray runs a task's functions again on its blocks where the text of an error has this.
    if not isinstance(context.retried_map_errors, bool):
        context.retried_map_errors = [*context.retried_map_errors, _AgainError.__name__]
    elif not context.retried_map_errors:
        context.retried_map_errors = [_AgainError.__name__]
    context.max_map_retries = max(context.max_map_retries, max_retries)
    context.execution_options.preserve_order = preserve_order or order
    try:
        yield
    finally:
        context.retried_map_errors, context.max_map_retries = before
        context.execution_options.preserve_order = order


def _schema(ds: ray.data.Dataset, fetch: bool) -> Any:
    """The schema of the rows, where it is known, or for the price of the first block."""
    known = ds.schema(fetch_if_missing=fetch)
    base = getattr(known, "base_schema", None)
    if base is None or not hasattr(base, "empty_table"):
        return None
    from ._tensors import plain

    return plain(base.empty_table()).schema


def _resume(spool: Spool, spec: bytes, storage: Storage, max_retries: int) -> lt.Outcome | None:
    """Commit what a driver that died has left complete; remove what it left otherwise."""
    job = spool.open(spec)
    if job is not None:
        outcome = spool.outcome()
        if outcome is not None:
            import dataclasses

            return dataclasses.replace(outcome, already_committed=True)
        results = spool.results()
        outcome = retrying(lambda: lt.commit(job, results, **storage.keywords()), max_retries)
        spool.put_outcome(outcome)
        return outcome
    left = spool.pending()
    if left is not None:
        spool.clear()
        retrying(lambda: lt.abort(left, **storage.keywords()), max_retries)
        spool.drop_pending()
    return None


def _own(error: BaseException) -> BaseException:
    """The library's error inside of Ray's, if there is one."""
    inner: Any = error
    seen = 0
    while inner is not None and seen < 10:
        if isinstance(inner, Error) and not isinstance(inner, ray.exceptions.RayError):
            return inner
        if isinstance(inner, _AgainError):
            return from_code(*inner.args)
        inner, seen = getattr(inner, "cause", None) or inner.__cause__, seen + 1
    return error


class _AgainError(Exception):
    """Ray is to attempt the task again. Arguments: code, message and retry class."""


class _Driver:
    """What stays with the driver."""

    def __init__(self) -> None:
        self.spool: Spool | None = None
        self.timeline: Timeline | None = None
        self.outcome: lt.Outcome | None = None
        self.ended = False


class LanceDatasink(Datasink[Any]):
    """Writes a Ray Dataset; for ``ds.write_datasink(sink, ...)``. `write` does more beside.

    Args:
        spec: `Write` without sources, a mapping, or JSON text.
        storage_options, base_store_params: as for `run`.
        schema: as for `write`.
        min_rows_per_file: as for `write`.
        max_retries: further attempts of the commit. For those of tasks set the `DataContext`'s
            ``retried_map_errors = ["_AgainError"]`` and ``max_map_retries``.
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
        self._max_retries = max_retries
        self._versions = versions()
        self._job: lt.Job | None = None
        self._desk: Any = None
        self._driver = _Driver()

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

    def _prepare(self, schema: Any) -> None:
        """Prepare, where the schema is known or not needed: what is wrong is said before any
        block is read."""
        schema = self._schema if self._schema is not None else schema
        if self._job is None and (schema is not None or self._append):
            job = retrying(
                lambda: lt.prepare(
                    self._spec, None if self._append else schema, **self._storage.keywords()
                ),
                self._max_retries,
            )
            self._job = job
            if self._driver.spool is not None:
                self._driver.spool.put_pending(job)

    def on_write_start(self, schema: Any = None) -> None:
        """Ray is about to start write tasks. `schema` is that of what they are fused with."""
        self._prepare(None)
        job = None if self._job is None else self._job.to_bytes()
        self._desk = start_desk(self._spec, job, self._storage)

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
        self._record(parts)
        spool = self._driver.spool
        if spool is not None:
            for index, part in enumerate(parts):
                spool.add(0, index, True, part["facts"]["attempt"], part["result"])
            spool.flush()
            if parts:
                spool.put_stage(0, [job.task(part["partition"]) for part in parts])
            # From here on the data need not be read again.
            spool.create(job, self._spec)
            spool.drop_pending()
        outcome = retrying(
            lambda: lt.commit(job, results, **self._storage.keywords()), self._max_retries
        )
        self._driver.outcome = outcome
        self._driver.ended = True
        if spool is not None:
            spool.put_outcome(outcome)
        if stray:
            with contextlib.suppress(Error):
                lt.abort(job, results, **self._storage.keywords())

    def on_write_failed(self, error: Exception) -> None:
        """Remove what was written."""
        self._abandon(error)

    def _abandon(self, error: BaseException) -> None:
        if self._driver.ended:
            return
        self._driver.ended = True
        self._close(0)
        spool = self._driver.spool
        if self._job is None or (spool is not None and spool.open(self._spec) is not None):
            return
        job = self._job
        try:
            retrying(lambda: lt.abort(job, **self._storage.keywords()), self._max_retries)
            if spool is not None:
                spool.clear()
                spool.drop_pending()
        except Error as e:
            log.warning("files of job %s may be left: abort failed: %s", job.id, e)

    def _close(self, used: int) -> bool:
        """Let no write task begin any more, and wait for those that have; were there more than
        those whose results are used?"""
        desk, self._desk = self._desk, None
        if desk is None:
            return False
        until = time.monotonic() + _END_TIME
        try:
            while True:
                state = ray.get(desk.state.remote(close=True), timeout=_END_TIME)
                if not state["open"] or used or time.monotonic() > until:
                    break
                time.sleep(0.2)
        except ray.exceptions.RayError:
            return True
        finally:
            ray.kill(desk)
        if self._job is None and state["job"] is not None:
            self._job = lt.Job.from_bytes(state["job"])
        return bool(state["begun"] > used)

    def _record(self, parts: list[dict[str, Any]]) -> None:
        if self._driver.timeline is None:
            return
        for part in parts:
            facts = part["facts"]
            self._driver.timeline.add(
                node=facts["host"],
                worker=f"pid {facts['pid']}",
                task=f"partition {part['partition']}",
                kind="ok",
                start=facts["started"],
                end=facts["started"] + facts["elapsed"],
                rows=facts["rows"],
                bytes=facts["bytes"],
            )

    # On workers

    def write(self, blocks: Iterable[Any], ctx: Any) -> list[dict[str, Any]]:
        """Write the blocks of one of Ray's tasks as one partition."""
        where = f"on {os.uname().nodename} (pid {os.getpid()})"
        check_versions(versions(), self._versions, where)
        tables = _tables(blocks, self._schema)
        first = next(tables, None)
        if first is None:
            return []
        # The same for every attempt of Ray's task, and in the order of the blocks.
        partition = str(ctx.task_idx)
        schema = first.schema.serialize().to_pybytes()
        data, error = ray.get(self._desk.begin.remote(partition, schema))
        if data is None:
            raise from_code(error["code"], error["message"], error["class"])
        try:
            result = self._execute(lt.Job.from_bytes(data).task(partition), _chain(first, tables))
        except Error as e:
            if e.retry_class != "retry_task":
                raise
            raise _AgainError(e.code, e.message, e.retry_class) from None
        finally:
            # Waited for: the process may be gone before it is sent.
            ray.get(self._desk.end.remote(partition))
        return [{"partition": partition, "result": result.to_bytes(), "facts": summary(result)}]

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


def _chain(first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest


def _tables(blocks: Iterable[Any], schema: Any) -> Iterator[pa.Table]:
    """Blocks as tables of one schema: the given one, or the first block's."""
    import pyarrow as pa

    tables: Iterator[pa.Table] = (t for t in map(_table, blocks) if t.num_columns)
    wanted = None if schema is None else pa.schema(schema)
    if wanted is None:
        first = next(tables, None)
        if first is None:
            return
        wanted = first.schema
        tables = _chain(first, tables)
        if any(pa.types.is_null(field.type) for field in wanted):
            # What the column is only another block can tell.
            whole = list(tables)
            wanted = pa.unify_schemas([t.schema for t in whole], promote_options="permissive")
            tables = iter(whole)
    wanted = wanted.remove_metadata()
    for table in tables:
        yield _conform(table.replace_schema_metadata(None), wanted)


def _table(block: Any) -> pa.Table:
    from ._tensors import plain

    return plain(BlockAccessor.for_block(block).to_arrow())


def _conform(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    import pyarrow as pa

    if table.schema.equals(wanted):
        return table
    strange = [name for name in table.column_names if name not in wanted.names]
    if strange:
        raise lt.SchemaMismatchError(
            f"column {strange[0]!r} is in some blocks and not in others; give schema"
        )
    columns = []
    for field in wanted:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table[field.name]
        try:
            columns.append(column if column.type == field.type else column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as e:
            raise lt.SchemaMismatchError(
                f"column {field.name!r}: {column.type} in one block, {field.type} in another: {e}; "
                "give schema"
            ) from None
    return pa.Table.from_arrays(columns, schema=wanted)
