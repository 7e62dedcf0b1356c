# SPDX-License-Identifier: Apache-2.0
"""The executor: threads, caches and memory budget that all calls of a process share."""

from __future__ import annotations

import ctypes
import os
import threading
from ctypes import byref, c_void_p

from . import _ffi
from .errors import InvalidArgumentError, InvalidStateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Executor:
    """Runs the verbs. One per process is enough; any number of threads may use it at once.

    Args:
        num_threads: threads that run tasks; default: the CPUs this process may use.
        memory_budget: bytes that the tasks running at one time may hold; default: half of the
            machine's memory.

    Raises:
        InvalidArgumentError: a number is out of range.
        ImportError: the library cannot be loaded.
    """

    __slots__ = ("__weakref__", "_as_parameter_", "_free", "_pid")

    def __init__(self, num_threads: int | None = None, memory_budget: int | None = None) -> None:
        self._as_parameter_: int | None = None
        self._pid = os.getpid()
        library = _ffi.lib()
        self._free = library.executor_free
        options = _ffi.ExecutorOptions(
            struct_size=ctypes.sizeof(_ffi.ExecutorOptions),
            num_threads=_positive("num_threads", num_threads, 2**32),
            memory_budget=_positive("memory_budget", memory_budget, 2**64),
        )
        handle = c_void_p()
        _ffi.call(library.executor_new, byref(options), byref(handle))
        self._as_parameter_ = handle.value

    def check_process(self) -> None:
        """Raise `InvalidStateError` in a forked child of the process that made this."""
        if os.getpid() != self._pid:
            raise InvalidStateError(
                f"the executor was made in process {self._pid}, this is its forked child "
                f"{os.getpid()}, where its threads do not exist; start processes with "
                'multiprocessing.get_context("spawn") (or "forkserver")'
            )

    def __reduce__(self) -> str:
        raise TypeError("an Executor belongs to its process and cannot be pickled")

    def __del__(self, _getpid: Callable[[], int] = os.getpid) -> None:
        if self._as_parameter_ is not None and _getpid() == self._pid:
            self._free(self._as_parameter_)


def _positive(name: str, value: int | None, limit: int) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected int, got {type(value).__name__}")
    if not 0 < value < limit:
        raise InvalidArgumentError(f"{name}: {value}; at least 1, or None for the default")
    return value


_default: Executor | None = None
_making = threading.Lock()


def usable(executor: Executor | None) -> Executor:
    """The executor for a call: the given one, or the process's own, made at its first use.

    Raises:
        InvalidStateError: it was made before a fork, in the parent.
    """
    global _default
    if executor is None:
        executor = _default
        if executor is None:
            with _making:
                executor = _default = _default or Executor()
    elif not isinstance(executor, Executor):
        raise TypeError(f"executor: expected Executor, got {type(executor).__name__}")
    executor.check_process()
    return executor


def set_default_executor(executor: Executor | None) -> None:
    """Use `executor` where a call names none; None: make a new one at the next such call."""
    global _default
    if executor is not None and not isinstance(executor, Executor):
        raise TypeError(f"executor: expected Executor, got {type(executor).__name__}")
    with _making:
        _default = executor
