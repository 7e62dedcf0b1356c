# SPDX-License-Identifier: Apache-2.0
"""The one place that write tasks of a Ray Dataset ask: for the job, and whether to begin at all."""

from __future__ import annotations

import ray

import lance_tasks as lt

from ._worker import Storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _IpcSchema:
    """A schema from its Arrow IPC bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __arrow_c_schema__(self) -> object:
        import pyarrow as pa

        return pa.ipc.read_schema(pa.BufferReader(self._data)).__arrow_c_schema__()


class Desk:
    """An actor beside the driver.

    The first write task shows the schema, where the driver did not know it: fused with what comes
    before, nobody else sees a block before it is written. And attempts are counted, so that the
    driver knows when the last one has ended, and whether some were lost.

    Args:
        spec: of the write.
        job: if the driver could prepare it.
    """

    def __init__(self, spec: bytes, job: bytes | None) -> None:
        self._spec = spec
        self._job = job
        self._storage = Storage()
        self._begun = 0
        self._open: dict[str, int] = {}
        self._closed = False

    def hello(self, storage: Storage) -> None:
        """Comes before the other calls."""
        self._storage = storage

    def begin(self, partition: str, schema: bytes) -> tuple[bytes | None, dict[str, str] | None]:
        """An attempt begins: the job, or why there is none (the error's code and so on)."""
        if self._closed:
            error = lt.CancelledError("the write has ended")
            return None, described(error)
        if self._job is None:
            try:
                job = lt.prepare(self._spec, _IpcSchema(schema), **self._storage.keywords())
            except lt.Error as e:
                return None, described(e)
            self._job = job.to_bytes()
        self._begun += 1
        self._open[partition] = self._open.get(partition, 0) + 1
        return self._job, None

    def end(self, partition: str) -> None:
        """An attempt has ended, however."""
        self._open[partition] -= 1

    def state(self, close: bool = False) -> dict[str, Any]:
        """The job, how many attempts began, and how many of them have not ended."""
        self._closed = self._closed or close
        return {"job": self._job, "begun": self._begun, "open": sum(self._open.values())}


def described(error: lt.Error) -> dict[str, str]:
    """An error as plain values."""
    return {"code": error.code, "class": error.retry_class, "message": error.message}


def start_desk(spec: bytes, job: bytes | None, storage: Storage) -> Any:
    """A desk on the driver's node, which lives no longer than the driver."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": strategy}
    desk: Any = ray.remote(Desk).options(**options).remote(spec, job)
    desk.hello.remote(storage)
    return desk
