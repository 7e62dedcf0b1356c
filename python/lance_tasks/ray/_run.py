# SPDX-License-Identifier: Apache-2.0
"""`run`: a job of any operation on Ray actors. `abort`: of a job in a spool."""

from __future__ import annotations

import json
import os

import ray

import lance_tasks as lt
from lance_tasks import _ffi
from lance_tasks.errors import InvalidArgumentError
from lance_tasks.specs import spec_json

from ._blocks import Blocks
from ._job import Run
from ._pool import Pool
from ._progress import Bar
from ._retry import Limits
from ._specs import absolute, whole_files
from ._spool import Spool
from ._timeline import Timeline, places
from ._worker import Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping
    from typing import Any

    from lance_tasks.specs import SpecLike

    from ._timeline import Places

_READS = ("take_blobs",)
# Options of actors that are not the caller's.
_OWN = ("max_concurrency", "max_restarts", "max_task_retries")
_IN_PARTS = ("compact", "create_index")


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
    timeout: float | None = None,
    cancel: threading.Event | None = None,
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
        num_workers: actors; default: as many as the cluster has CPUs for, one less for data that
            is read once; where the data are references, workers are started when all of them are
            there. Else leave CPUs to what makes the data. For a Ray Dataset: write tasks at a time
            at most.
        ray_remote_args: Ray's options of the actors (``num_cpus``, default 1; ``memory``,
            ``resources``, ``runtime_env``, ``scheduling_strategy``, default ``"SPREAD"``, ...).
        storage_options, base_store_params: as for the verbs. They are handed to the workers, and
            stand in no descriptor, log, task name or error.
        spool: a folder, or a place in an object store, that keeps the job and its results as they
            come, as the command line does. Where the driver has died, the same call again executes
            only what has no result, and commits exactly once. See `write` for Ray Datasets.
        spool_storage_options: default: `storage_options`.
        max_retries: further attempts per task, of failures and of deaths each; of commits; and how
            often the job is prepared again.
        speculate: attempt a task a second time beside itself where it takes far longer than
            others and workers have nothing to do. The faster attempt counts.
        partial: commit what is done where tasks fail for good (compact, create_index).
        timeout: seconds for the whole job.
        cancel: ends the job once it is set, by any thread.
        progress: show a bar, in a terminal or a notebook.
        timeline: files to write what each worker did to: ``.json`` (Chrome's and Perfetto's trace),
            ``.svg``, ``.html``.
        schema: for data whose schema cannot be seen beforehand: anything with
            `__arrow_c_schema__`.
        min_rows_per_file: for data: small blocks that follow one another are put together to so
            many rows. The default of ``max_rows_per_file`` is then at least twice as many, so that
            they are not cut again.
        preserve_order: for a Ray Dataset: keep the order of its blocks. Other data always do.

    Returns:
        The `Outcome`; of a spec that reads, a Ray Dataset.

    Raises:
        VersionMismatchError: a worker has another lance-tasks, Lance or wire format than the
            driver; nothing was executed there.
        WorkerLostError: workers died with the same task again and again.
        WorkerStartError: workers could not be started.
        CancelledError, DeadlineExceededError: `cancel`, `timeout`.
        InvalidArgumentError: also for options that do not go with this spec or this data.
        Error: as the verbs do.
    """
    limits = Limits(timeout, cancel, max_retries)
    if num_workers is not None and num_workers < 1:
        raise InvalidArgumentError(f"num_workers: {num_workers}; at least 1")
    own = [f"ray_remote_args[{name!r}]" for name in _OWN if name in (ray_remote_args or {})]
    if own:
        raise InvalidArgumentError(f"{', '.join(own)}: workers are replaced and filled by this job")
    files = places(timeline)
    text = absolute(json.loads(_ffi.convert(spec_json(spec), _ffi.ENCODING_JSON)))
    operation = text["operation"]
    storage = Storage(storage_options, base_store_params)
    rows = {
        "schema": schema is not None,
        "min_rows_per_file": min_rows_per_file is not None,
        "preserve_order": preserve_order,
    }
    if operation in _READS:
        others = {
            "data": data is not None,
            "spool": spool is not None,
            "spool_storage_options": spool_storage_options is not None,
            "speculate": speculate,
            "partial": partial,
            "timeout": timeout is not None,
            "cancel": cancel is not None,
            "timeline": bool(files),
        }
        _refuse(f"{operation} reads, and gives a Ray Dataset", {**others, **rows})
        from ._read import read_dataset

        return read_dataset(
            text, storage, ray_remote_args or {}, num_workers, max_retries, progress
        )
    if partial and operation not in _IN_PARTS:
        raise InvalidArgumentError(f"partial: a {operation} commits all of its tasks or none")
    if data is None:
        _refuse("there is no data", rows)
    elif operation != "write":
        raise InvalidArgumentError(f"data: a {operation} takes no rows, only a write does")
    elif text.get("sources") is not None:
        raise InvalidArgumentError("data: the write has sources already; give one of the two")
    elif text.get("partitions") is not None or text.get("num_partitions") is not None:
        raise InvalidArgumentError("partitions, num_partitions: they are the data's blocks")
    if not ray.is_initialized():
        ray.init()
    kept = open_spool(spool, spool_storage_options, storage)
    if _is_dataset(data):
        _refuse("Ray Data runs this write", {"speculate": speculate})
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
            limits=limits,
            progress=progress,
            timeline=files,
        )
    _refuse("the order of these data is always kept", {"preserve_order": preserve_order})
    text = whole_files(text, min_rows_per_file)
    drawn = Timeline() if files else None
    bar = Bar(operation, progress)

    blocks = None if data is None else Blocks(data, min_rows_per_file)

    def pool() -> Pool:
        made = Pool(num_workers, ray_remote_args, storage, limits, speculate, bar, drawn)
        if blocks is not None and num_workers is None:
            # What makes the data may need CPUs of the cluster, which workers would hold.
            made.leave_room(1.0 if blocks.count is None else 0.0, blocks.references())
        return made

    job = Run(text, blocks, schema, storage, kept, limits, partial, bar, pool)
    try:
        return job.run()
    finally:
        bar.close()
        if drawn is not None:
            drawn.write(files)


def abort(
    spool: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, str] | None = None,
    base_store_params: Mapping[str, Mapping[str, str]] | None = None,
    spool_storage_options: Mapping[str, str] | None = None,
) -> lt.AbortReport:
    """Give up a job whose results are in a spool: remove what it wrote and has not committed.

    Not to be called while a driver works on the spool. The spool cannot be used again.

    Args:
        spool, spool_storage_options, storage_options, base_store_params: as for `run`.

    Raises:
        NotFoundError: there is no job.
        Error: as `lance_tasks.abort` does.
    """
    storage = Storage(storage_options, base_store_params)
    kept = open_spool(spool, spool_storage_options, storage)
    assert kept is not None
    job = kept.job()
    if job is None:
        raise lt.NotFoundError(f"spool {os.fspath(spool)} holds no job")
    report = lt.abort(job, kept.results(), **storage.keywords())
    kept.put_aborted(report)
    return report


def open_spool(
    place: str | os.PathLike[str] | None,
    options: Mapping[str, str] | None,
    storage: Storage,
) -> Spool | None:
    """The spool, if one is wanted."""
    if place is None:
        if options is not None:
            raise InvalidArgumentError("spool_storage_options: there is no spool")
        return None
    return Spool(os.fspath(place), storage.options() if options is None else options)


def _refuse(why: str, given: Mapping[str, bool]) -> None:
    """No option is taken and ignored."""
    names = [name for name, is_given in given.items() if is_given]
    if names:
        raise InvalidArgumentError(f"{', '.join(names)}: of no use here: {why}")


def _is_dataset(data: Any) -> bool:
    import sys

    module = sys.modules.get("ray.data")
    return module is not None and isinstance(data, module.Dataset)
