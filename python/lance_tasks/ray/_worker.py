# SPDX-License-Identifier: Apache-2.0
"""What runs inside of a Ray worker. Needs neither pylance nor pyarrow."""

from __future__ import annotations

import os
import threading
import uuid

import lance_tasks as lt
from lance_tasks import _arrow, _ffi, verbs
from lance_tasks._call import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

# What must agree between processes that share a job's descriptors and files.
VERSIONS = ("lance_tasks", "lance", "format")


class Storage:
    """Storage options on their way to a worker. What they are is shown nowhere."""

    __slots__ = ("_bases", "_options")

    def __init__(
        self,
        options: Mapping[str, str] | None = None,
        bases: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._options = None if options is None else dict(options)
        self._bases = None if bases is None else {path: dict(own) for path, own in bases.items()}

    def keywords(self) -> dict[str, Any]:
        """As the verbs take them."""
        return {"storage_options": self._options, "base_store_params": self._bases}

    def options(self) -> dict[str, str]:
        """Those that are not of single bases."""
        return dict(self._options or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self._options, self._bases)

    def __repr__(self) -> str:
        return "<Storage options, not shown>"


def versions() -> dict[str, str | int]:
    """The versions of this process that others must share."""
    own = lt.versions()
    return {name: own[name] for name in VERSIONS}


def check_versions(worker: Mapping[str, Any], driver: Mapping[str, Any], where: str) -> None:
    """Refuse a worker of other versions.

    Raises:
        VersionMismatchError: naming the versions of both.
    """
    differing = [name for name in VERSIONS if worker.get(name) != driver.get(name)]
    if not differing:
        return
    names = {"lance_tasks": "lance-tasks", "lance": "Lance", "format": "wire format"}

    def shown(versions: Mapping[str, Any]) -> str:
        return ", ".join(f"{names[name]} {versions.get(name)}" for name in VERSIONS)

    raise lt.VersionMismatchError(
        f"the worker {where} has {shown(worker)}; the driver has {shown(driver)}: "
        f"{' and '.join(names[name] for name in differing)} must be the same; install one release "
        "of the package on all nodes, or ship it by runtime_env"
    )


def memory_budget(memory: float | None, cpus: float) -> int | None:
    """Bytes for an executor: of the memory that Ray was asked for, or by the share of CPUs.

    A quarter (of the whole machine's: half) is left to what the budget does not count.
    """
    if memory:
        return max(int(memory * 0.75), 1 << 28)
    count = os.cpu_count() or 1
    if cpus >= count:
        return None  # the executor's own default
    return max(int(_machine_memory() / 2 * max(cpus, 0.25) / count), 1 << 28)


def _machine_memory() -> int:
    total: int = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                text = file.read().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def summary(result: lt.Result) -> dict[str, Any]:
    """What a driver looks at, so that it need not decode results."""
    view = result._json()
    return {
        "ok": view["status"] == "ok",
        "error": view["error"],
        "attempt": view["attempt_id"],
        "rows": view["rows_out"],
        "bytes": view["bytes_written"],
        "started": view["started_at_us"] / 1e6,
        "elapsed": view["elapsed_us"] / 1e6,
        "memory": view["peak_memory"],
        "host": view["host"],
        "pid": view["pid"],
    }


def failed(error: lt.Error) -> dict[str, Any]:
    """The summary of an attempt that has no result row."""
    described = {"code": error.code, "class": error.retry_class, "message": error.message}
    return {"ok": False, "error": described, "attempt": str(uuid.uuid4())}


_made: list[lt.Executor] = []


def process_executor() -> lt.Executor:
    """The executor of one of Ray Data's worker processes, sized as the first task in it."""
    import ray

    if not _made:
        context: Any = ray.get_runtime_context()
        assigned = context.get_assigned_resources()
        cpus = float(assigned.get("CPU", 1))
        budget = memory_budget(assigned.get("memory"), cpus)
        _made.append(lt.Executor(max(1, int(cpus)), budget))
    return _made[0]


class Worker:
    """The actor: one executor, as many tasks at a time as it has threads.

    Args:
        num_threads: of the executor.
        budget: bytes that its tasks may hold; None: the executor's default.
    """

    def __init__(self, num_threads: int, budget: int | None) -> None:
        self._num_threads = num_threads
        self._budget = budget
        self._executor: lt.Executor | None = None
        self._storage = Storage()
        self._lock = threading.Lock()
        # By attempt: how to cancel it. None: cancelled before it began.
        self._running: dict[str, Callable[[], object] | None] = {}

    def hello(self, storage: Storage) -> dict[str, Any]:
        """Who this is. Comes before every other call."""
        import ray

        self._storage = storage
        node = ray.get_runtime_context().get_node_id()
        return {
            "versions": versions(),
            "node": node,
            "host": os.uname().nodename,
            "pid": os.getpid(),
        }

    def execute(self, attempt: str, task: bytes, *data: Any) -> tuple[bytes | None, dict[str, Any]]:
        """Execute a task; its result as bytes, if there is one, and the summary.

        Args:
            attempt: the driver's name of this attempt, for `cancel`.
            task: the descriptor.
            data: of the task of an open job: the partition's blocks; each Arrow data, or a function
                that gives such.
        """
        try:
            result = self._stream(attempt, task, data) if data else self._planned(attempt, task)
        except lt.Error as error:
            return None, failed(error)
        finally:
            with self._lock:
                self._running.pop(attempt, None)
        return result.to_bytes(), summary(result)

    def _planned(self, attempt: str, task: bytes) -> lt.Result:
        # By `execute_all` also what failed has a result, which says what it left.
        with lt.execute_all([task], executor=self._ready(), **self._storage.keywords()) as results:
            self._cancellable(attempt, results.cancel)
            return next(results)

    def _stream(self, attempt: str, task: bytes, data: tuple[Any, ...]) -> lt.Result:
        blocks = [item() if callable(item) else item for item in data]
        stream = _arrow.InStream(blocks[0] if len(blocks) == 1 else blocks, "data")
        executor = self._ready()
        table = _ffi.OutStream()
        call = Call(**self._storage.keywords())
        self._cancellable(attempt, call.token.cancel)
        verbs.execute_stream(executor, task, stream, call, table)
        return verbs.result_of(table)

    def _ready(self) -> lt.Executor:
        with self._lock:
            if self._executor is None:
                self._executor = lt.Executor(self._num_threads, self._budget)
            return self._executor

    def _cancellable(self, attempt: str, cancel: Callable[[], object]) -> None:
        with self._lock:
            cancelled = attempt in self._running
            self._running[attempt] = cancel
        if cancelled:
            cancel()

    def cancel(self, *attempts: str) -> None:
        """Cancel attempts; they end with an error, and remove what they wrote."""
        with self._lock:
            found = [self._running.setdefault(attempt, None) for attempt in attempts]
        for cancel in found:
            if cancel is not None:
                cancel()
