# SPDX-License-Identifier: Apache-2.0
"""The one place that write tasks of a Ray Dataset ask: for the job, and whether to begin at all."""

from __future__ import annotations

import os
import time

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
    before, nobody else sees a block before it is written. And attempts are noted, so that the
    driver knows how far the write is, when the last attempt has ended, and which were lost.

    Args:
        spec: of the write.
        job: if the driver could prepare it.
        keep: whether every attempt is to be told in the end, for a timeline.
        folder: the driver's, where relative paths begin.
    """

    def __init__(self, spec: bytes, job: bytes | None, keep: bool, folder: str) -> None:
        os.chdir(folder)
        self._spec = spec
        self._job = job
        self._keep = keep
        self._storage = Storage()
        self._numbers = 0
        self._open: dict[int, dict[str, Any]] = {}
        self._ended: list[dict[str, Any]] = []
        self._done: set[str] = set()
        self._counts = {"done": 0, "rows": 0, "bytes": 0, "failed": 0, "retries": 0}
        self._tries: dict[str, int] = {}
        self._closed: dict[str, str] | None = None

    def hello(self, storage: Storage) -> None:
        """Comes before the other calls."""
        self._storage = storage

    def begin(
        self, partition: str, schema: bytes, place: dict[str, Any]
    ) -> tuple[int, bytes | None, dict[str, str] | None]:
        """An attempt begins: its number, the job, or why there is none (the error's code etc.)."""
        if self._closed is not None:
            return 0, None, self._closed
        if self._job is None:
            try:
                job = lt.prepare(self._spec, _IpcSchema(schema), **self._storage.keywords())
            except lt.Error as e:
                return 0, None, described(e)
            self._job = job.to_bytes()
        self._numbers += 1
        self._tries[partition] = self._tries.get(partition, 0) + 1
        # The attempt before was lost with its process, or Ray has two at once.
        self._counts["retries"] += self._tries[partition] > 1
        self._open[self._numbers] = {
            **place,
            "partition": partition,
            "attempt": self._tries[partition],
            "start": time.time(),
        }
        return self._numbers, self._job, None

    def end(self, number: int, facts: dict[str, Any] | None, error: str | None) -> None:
        """An attempt has ended: what it did, or its error's code."""
        attempt = self._open.pop(number)
        attempt |= {"end": time.time(), "error": error, "rows": None, "bytes": None}
        if facts is None:
            self._counts["failed"] += 1
        else:
            attempt |= {key: facts[key] for key in ("rows", "bytes")}
            attempt |= {"start": facts["started"], "end": facts["started"] + facts["elapsed"]}
            if attempt["partition"] not in self._done:
                self._done.add(attempt["partition"])
                self._counts["done"] += 1
                self._counts["rows"] += facts["rows"]
                self._counts["bytes"] += facts["bytes"]
        if self._keep:
            self._ended.append(attempt)

    def close(self, error: dict[str, str]) -> None:
        """Attempts that would begin from now on get this error."""
        self._closed = self._closed or error

    def state(self) -> dict[str, Any]:
        """How far the write is, and how many attempts have not ended."""
        return {"begun": self._numbers, "open": len(self._open), "counts": self._counts}

    def last(self) -> dict[str, Any]:
        """The job, and the attempts; those that have not ended are without an end."""
        return {"job": self._job, "attempts": [*self._ended, *self._open.values()]}


def described(error: lt.Error) -> dict[str, str]:
    """An error as plain values."""
    return {"code": error.code, "class": error.retry_class, "message": error.message}


def here() -> dict[str, Any]:
    """Where this process is."""
    node = ray.get_runtime_context().get_node_id()
    return {"node": node, "host": os.uname().nodename, "pid": os.getpid()}


def start_desk(spec: bytes, job: bytes | None, storage: Storage, keep: bool) -> Any:
    """A desk on the driver's node, which lives no longer than the driver."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": strategy}
    desk: Any = ray.remote(Desk).options(**options).remote(spec, job, keep, os.getcwd())
    desk.hello.remote(storage)
    return desk
