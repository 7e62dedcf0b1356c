# SPDX-License-Identifier: Apache-2.0
"""Operations that read, as Ray Datasets."""

from __future__ import annotations

import json
import time

import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

import lance_tasks as lt
from lance_tasks.specs import spec_json

from ._desk import here
from ._worker import Storage, check_versions, process_executor, versions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from lance_tasks.specs import SpecLike


def read(
    spec: SpecLike,
    *,
    storage_options: Mapping[str, str] | None = None,
    base_store_params: Mapping[str, Mapping[str, str]] | None = None,
    ray_remote_args: Mapping[str, Any] | None = None,
    concurrency: int | None = None,
    max_retries: int = 3,
) -> ray.data.Dataset:
    """The data of an operation that reads (`TakeBlobs`) as a Ray Dataset.

    The dataset's version is pinned and all keys are checked here; payloads are read on workers as
    the Ray Dataset is consumed, again wherever Ray needs a block again. Blocks come in the order of
    the keys where Ray's ``preserve_order`` is set.

    Args:
        spec: `TakeBlobs`, a mapping, or JSON text.
        storage_options, base_store_params: as for `run`.
        ray_remote_args: Ray's options of the read tasks.
        concurrency: read tasks at a time at most.
        max_retries: further attempts where storage fails, also in the middle of a task.

    Raises:
        InvalidArgumentError: the spec is wrong, or changes a dataset.
    """
    from lance_tasks import _ffi

    text = json.loads(_ffi.convert(spec_json(spec), _ffi.ENCODING_JSON))
    storage = Storage(storage_options, base_store_params)
    return read_dataset(text, storage, ray_remote_args or {}, concurrency, max_retries)


def read_dataset(
    spec: dict[str, Any],
    storage: Storage,
    ray_remote_args: Mapping[str, Any],
    concurrency: int | None,
    max_retries: int,
    progress: bool = True,
) -> ray.data.Dataset:
    """As `read`; without `progress` Ray Data shows none of its bars."""
    job = lt.prepare(spec, **storage.keywords())
    tasks = lt.plan(job, **storage.keywords())
    if not tasks:
        raise lt.InvalidArgumentError(f"{spec['operation']}: there is nothing to read")
    source = _Source(spec["operation"], tasks, storage, max_retries)
    dataset: ray.data.Dataset = ray.data.read_datasource(
        source,
        ray_remote_args=dict(ray_remote_args),
        concurrency=concurrency,
        override_num_blocks=len(tasks),
    )
    if not progress:
        dataset.context.enable_progress_bars = False
    return dataset


class _Source(Datasource):
    def __init__(
        self, operation: str, tasks: list[lt.Task], storage: Storage, max_retries: int
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._operation = operation
        self._tasks = tasks
        self._storage = storage
        self._max_retries = max_retries

    def get_name(self) -> str:
        return "".join(part.title() for part in self._operation.split("_"))

    def estimate_inmemory_data_size(self) -> int | None:
        return sum(task.estimated_bytes for task in self._tasks) or None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        own = versions()
        return [
            ReadTask(
                _reader(task.to_bytes(), self._storage, own, self._max_retries),
                BlockMetadata(
                    num_rows=task.estimated_rows or None,
                    size_bytes=task.estimated_bytes or None,
                    exec_stats=None,
                    input_files=None,
                ),
            )
            for task in self._tasks
        ]


def _reader(
    task: bytes, storage: Storage, driver: dict[str, str | int], max_retries: int
) -> Callable[[], Iterable[Any]]:
    def blocks() -> Iterable[Any]:
        import pyarrow as pa

        place = here()
        check_versions(versions(), driver, f"on {place['host']} (pid {place['pid']})")
        given = failures = 0
        while True:
            at = 0
            try:
                stream = lt.read(
                    lt.Task.from_bytes(task), executor=process_executor(), **storage.keywords()
                )
                with pa.RecordBatchReader.from_stream(stream) as reader:
                    for batch in reader:
                        # A further attempt gives the same rows, perhaps in other batches.
                        rows = batch.slice(max(given - at, 0))
                        at += batch.num_rows
                        if rows.num_rows:
                            given += rows.num_rows
                            yield pa.table(rows)
                return
            except (lt.Error, pa.ArrowException, OSError) as e:
                # An error in the middle comes by Arrow, which knows no class of it.
                final = isinstance(e, lt.Error) and e.retry_class != "retry_task"
                failures += 1
                if final or failures > max_retries:
                    raise
            time.sleep(min(0.1 * 2**failures, 5.0))

    return blocks
