# SPDX-License-Identifier: Apache-2.0
"""Writing Ray Datasets."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from typing import Any

import ray

import lance_tasks as lt
from lance_tasks import _ffi
from lance_tasks.errors import Error, from_code
from lance_tasks.specs import Write, spec_json

from ._progress import Bar
from ._retry import Limits, clear
from ._run import open_spool
from ._sink import AgainError, LanceDatasink
from ._tables import plain
from ._timeline import Timeline, places
from ._worker import Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from ._spool import Spool
    from ._timeline import Places

# Seconds between looks at how far a write is.
_EVERY = 0.5


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
    timeout: float | None = None,
    cancel: threading.Event | None = None,
    spool: str | os.PathLike[str] | None = None,
    spool_storage_options: Mapping[str, str] | None = None,
    progress: bool = True,
    timeline: Places | None = None,
    **options: Any,
) -> lt.Outcome:
    """Write a Ray Dataset, streaming, in one commit.

    Ray Data runs the write fused with what precedes it, where it can. Each of its write tasks
    becomes a partition of one job; where Ray attempts a task again, its blocks are read again and
    one attempt counts. Where the write fails, the files written so far are removed. No block is
    left out: Ray Data's ``max_errored_blocks`` does not hold for a write.

    Args:
        ds: the rows.
        uri: the dataset.
        mode: ``"create"``, ``"append"`` or ``"overwrite"``.
        schema: the dataset's schema, to which rows are aligned; default: the first block's. To be
            given where columns have nothing but nulls in some blocks.
        min_rows_per_file: small blocks are put together up to so many rows, by Ray; what precedes
            the write is then fused only where it is ``map_batches``. The default of
            ``max_rows_per_file`` is then at least twice as many. Default: each of Ray's tasks
            writes its own files.
        preserve_order: keep the order of the blocks; default false.
        storage_options, base_store_params: as for `run`.
        ray_remote_args: Ray's options of the write tasks.
        concurrency: write tasks at a time at most.
        max_retries: further attempts per task that fails for storage's sake. How often Ray
            attempts tasks again whose workers die is Ray's own setting (``max_retries`` of its
            tasks, default 3).
        timeout: seconds. No write task begins after it; those under way end first.
        cancel: as `timeout`, once it is set.
        spool: as for `run`; its results are kept once all blocks are written. Where the driver
            dies before, the next call removes what was written, and reads the data again, as
            nothing tells whether Ray would give the same blocks; where it dies after, the next
            call commits what is there without reading any. For one driver at a time: another one
            that begins while the data are read takes this one for dead.
        spool_storage_options: as for `run`.
        progress: as for `run`. Where its bar is shown, Ray Data shows none of its own, nor where
            this is False.
        timeline: as for `run`.
        options: further options of `Write`: ``max_rows_per_file``, ``blob_columns`` and so on.

    Raises:
        Error: as for `run`.
    """
    limits = Limits(timeout, cancel, max_retries)
    if options.get("sources") is not None or options.get("partitions") is not None:
        raise lt.InvalidArgumentError("sources, partitions: the rows are the Ray Dataset's")
    spec = Write(uri, mode=mode, schema=schema, **options)
    storage = Storage(storage_options, base_store_params)
    text = json.loads(_ffi.convert(spec_json(spec), _ffi.ENCODING_JSON))
    return write_dataset(
        ds,
        text,
        storage=storage,
        spool=open_spool(spool, spool_storage_options, storage),
        schema=schema,
        min_rows_per_file=min_rows_per_file,
        preserve_order=preserve_order,
        ray_remote_args=ray_remote_args or {},
        concurrency=concurrency,
        limits=limits,
        progress=progress,
        timeline=places(timeline),
    )


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
    limits: Limits,
    progress: bool,
    timeline: list[str],
) -> lt.Outcome:
    """As `write`, of a spec."""
    sink = LanceDatasink(spec, schema=schema, min_rows_per_file=min_rows_per_file)
    sink._storage = storage
    driver = sink._driver
    driver.limits, driver.spool = limits, spool
    if spool is not None:
        found = _resume(spool, sink._spec, storage, limits)
        if isinstance(found, lt.Outcome):
            return found
        driver.left = found
    driver.bar = bar = Bar("write", progress)
    if timeline:
        driver.timeline = Timeline()
    try:
        sink.prepare(_schema(ds, fetch=spool is not None))
        with (
            _context(ds, preserve_order, limits.max_retries, bar.shown or not progress),
            _Watch(sink),
        ):
            ds.write_datasink(sink, ray_remote_args=dict(ray_remote_args), concurrency=concurrency)
    except BaseException as e:
        own = _own(e)
        sink.abandon(own)
        raise own from (None if own is e else e)
    finally:
        bar.close()
        if driver.timeline is not None:
            driver.timeline.write(timeline)
    if sink.outcome is None:
        raise lt.InternalError("Ray Data ended the write without a word")
    return sink.outcome


class _Watch:
    """Looks after a write from a thread of its own."""

    def __init__(self, sink: LanceDatasink) -> None:
        self._sink = sink
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ended.wait(_EVERY):
            # The cluster may be going down; the write itself says so.
            with contextlib.suppress(ray.exceptions.RayError):
                self._sink.watch()

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


@contextlib.contextmanager
def _context(
    ds: ray.data.Dataset, preserve_order: bool, max_retries: int, quiet: bool
) -> Iterator[None]:
    """Ray Data's settings for a write. Options of its tasks instead would stand against fusing."""
    context = ds.context
    names = ("retried_map_errors", "max_map_retries", "enable_progress_bars", "max_errored_blocks")
    before = {name: getattr(context, name) for name in names}
    order = context.execution_options.preserve_order
    # A block that is left out would be missing from the dataset without a word.
    context.max_errored_blocks = 0
    # Ray runs a task's functions again on its blocks where the text of an error has this.
    if not isinstance(context.retried_map_errors, bool):
        context.retried_map_errors = [*context.retried_map_errors, AgainError.__name__]
    elif not context.retried_map_errors:
        context.retried_map_errors = [AgainError.__name__]
    context.max_map_retries = max(context.max_map_retries, max_retries)
    context.execution_options.preserve_order = preserve_order or order
    if quiet:
        context.enable_progress_bars = False
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        context.execution_options.preserve_order = order


def _schema(ds: ray.data.Dataset, fetch: bool) -> Any:
    """The schema of the rows, where it is known, or for the price of the first block."""
    known = ds.schema(fetch_if_missing=fetch)
    base = getattr(known, "base_schema", None)
    if base is None or not hasattr(base, "empty_table"):
        return None
    return plain(base.empty_table()).schema


def _resume(
    spool: Spool, spec: bytes, storage: Storage, limits: Limits
) -> lt.Outcome | lt.Job | None:
    """Commit what a driver that died has left complete; remove what it left otherwise, and give
    its job."""
    job = spool.open(spec)
    if job is not None:
        outcome = spool.outcome()
        if outcome is not None:
            return dataclasses.replace(outcome, already_committed=True)
        results = spool.results()
        outcome = limits.verb(lt.commit, storage, job, results)
        clear(storage, job, results)
        spool.put_outcome(outcome)
        return outcome
    left = spool.pending()
    if left is not None:
        spool.clear()
        limits.verb(lt.abort, storage, left)
        spool.drop_pending(left.id)
    return left


def _own(error: BaseException) -> BaseException:
    """The library's error inside of Ray's, if there is one."""
    inner: Any = error
    seen = 0
    while inner is not None and seen < 10:
        # Ray raises a class of both; what was raised itself is the cause.
        if not isinstance(inner, ray.exceptions.RayError):
            if isinstance(inner, Error):
                return inner
            if isinstance(inner, AgainError):
                return from_code(*inner.given)
        inner, seen = getattr(inner, "cause", None) or inner.__cause__, seen + 1
    return error
