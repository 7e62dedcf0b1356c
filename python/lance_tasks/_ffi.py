# SPDX-License-Identifier: Apache-2.0
"""The C ABI as ctypes sees it: structs, prototypes, owned outputs, calls.

Calls that may block take place on a thread of their own where Python's main thread makes them: the
main thread only waits, so that Ctrl-C reaches it, cancels the call and is raised again.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import threading
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_int32,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from types import SimpleNamespace

from . import _library
from .errors import Error, from_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ENCODING_JSON = 1
ENCODING_BINARY = 2
FLAG_PARTIAL = 1


class Bytes(ctypes.Structure):
    """LanceTasksBytes."""

    _fields_ = (("data", POINTER(c_uint8)), ("len", c_size_t))


class ExecutorOptions(ctypes.Structure):
    """LanceTasksExecutorOptions."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("num_threads", c_uint32),
        ("memory_budget", c_uint64),
    )


class ProgressEvent(ctypes.Structure):
    """LanceTasksProgress."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("kind", c_uint32),
        ("task_id", c_char_p),
        ("rows", c_uint64),
        ("bytes", c_uint64),
        ("message", c_char_p),
    )


ProgressCallback = ctypes.CFUNCTYPE(None, c_void_p, POINTER(ProgressEvent))
Finalizer = ctypes.CFUNCTYPE(None, c_void_p)


class CallOptions(ctypes.Structure):
    """LanceTasksCallOptions."""

    _fields_ = (
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("storage_options", c_char_p),
        ("storage_options_len", c_size_t),
        ("timeout_ms", c_uint64),
        ("cancel", c_void_p),
        ("progress", ProgressCallback),
        ("progress_context", c_void_p),
        ("progress_finalizer", Finalizer),
    )


_TEXT = (c_char_p, c_size_t)  # const uint8_t *data, size_t len

# Name: (result, arguments). Pointers that only pass through are void here; fallible functions
# answer with a status and end in `LanceTasksError **out_error`.
_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "version": (c_char_p, ()),
    "lance_version": (c_char_p, ()),
    "format_version": (c_uint32, ()),
    "error_name": (c_char_p, (c_void_p,)),
    "error_class": (c_char_p, (c_void_p,)),
    "error_message": (c_char_p, (c_void_p,)),
    "error_task_id": (c_char_p, (c_void_p,)),
    "error_free": (None, (c_void_p,)),
    "bytes_free": (None, (c_void_p,)),
    "executor_new": (c_int32, (c_void_p, c_void_p, c_void_p)),
    "executor_free": (None, (c_void_p,)),
    "cancel_token_new": (c_void_p, ()),
    "cancel_token_cancel": (None, (c_void_p,)),
    "cancel_token_free": (None, (c_void_p,)),
    "alloc_stream": (c_void_p, ()),
    "free_stream": (None, (c_void_p,)),
    "alloc_schema": (c_void_p, ()),
    "free_schema": (None, (c_void_p,)),
    "stream_capsule_free": (None, (c_void_p,)),
    "convert": (c_int32, (*_TEXT, c_int32, c_void_p, c_void_p)),
    "job_task": (c_int32, (*_TEXT, *_TEXT, c_void_p, c_void_p)),
    "table_to_rows": (c_int32, (c_void_p, c_void_p, c_void_p)),
    "next_row": (c_int32, (c_void_p, c_void_p, c_void_p)),
    "rows_to_table": (c_int32, (*_TEXT, c_void_p, c_void_p)),
    "prepare": (c_int32, (c_void_p, *_TEXT, c_void_p, c_void_p, c_void_p, c_void_p)),
    "plan": (c_int32, (c_void_p, *_TEXT, c_void_p, c_void_p, c_void_p, c_void_p)),
    "adopt": (
        c_int32,
        (c_void_p, *_TEXT, *_TEXT, *_TEXT, c_void_p, c_void_p, c_void_p),
    ),
    "execute": (c_int32, (c_void_p, *_TEXT, c_void_p, c_void_p, c_void_p, c_void_p)),
    "execute_all": (c_int32, (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)),
    "read": (c_int32, (c_void_p, *_TEXT, c_void_p, c_void_p, c_void_p)),
    "read_all": (c_int32, (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)),
    "commit": (c_int32, (c_void_p, *_TEXT, c_void_p, c_void_p, c_void_p, c_void_p)),
    "abort": (c_int32, (c_void_p, *_TEXT, c_void_p, c_void_p, c_void_p, c_void_p)),
    "files_open": (c_int32, (*_TEXT, c_void_p, c_void_p, c_void_p)),
    "files_free": (None, (c_void_p,)),
    "files_get": (c_int32, (c_void_p, *_TEXT, c_void_p, c_void_p)),
    "files_put": (c_int32, (c_void_p, *_TEXT, *_TEXT, c_int32, c_void_p)),
    "files_list": (c_int32, (c_void_p, *_TEXT, c_void_p, c_void_p)),
    "files_delete": (c_int32, (c_void_p, *_TEXT, c_void_p)),
}

_functions: SimpleNamespace | None = None
_loading = threading.Lock()


def lib() -> SimpleNamespace:
    """The library's functions, without their prefix; loaded at the first use.

    Raises:
        ImportError: it cannot be loaded, see `_library.load`.
    """
    global _functions
    if _functions is None:
        with _loading:
            if _functions is None:
                library = _library.load()
                functions = SimpleNamespace()
                for name, (result, arguments) in _PROTOTYPES.items():
                    function = getattr(library, f"lance_tasks_{name}")
                    function.restype = result
                    function.argtypes = arguments
                    setattr(functions, name, function)
                _functions = functions
    return _functions


def take_error(pointer: int | None) -> Error:
    """The exception of an error object, which is freed."""
    library = lib()

    def text(value: bytes | None) -> str:
        return (value or b"").decode("utf-8", "replace")

    try:
        return from_code(
            text(library.error_name(pointer)),
            text(library.error_message(pointer)),
            text(library.error_class(pointer)),
            text(library.error_task_id(pointer)) or None,
        )
    finally:
        library.error_free(pointer)


def call(function: Callable[..., int], *arguments: Any) -> None:
    """Call a fallible function here and now; `out_error` is added.

    Raises:
        Error: the function failed.
    """
    error = c_void_p()
    if function(*arguments, byref(error)) != 0:
        raise take_error(error.value)


class CancelToken:
    """LanceTasksCancelToken; may be cancelled by any thread.

    Attributes:
        abandoned: a call with this token goes on though nobody waits for it any more.
    """

    __slots__ = ("_as_parameter_", "_free", "abandoned")

    def __init__(self) -> None:
        library = lib()
        self.abandoned = False
        self._as_parameter_: int = library.cancel_token_new()
        self._free = library.cancel_token_free

    def cancel(self) -> None:
        lib().cancel_token_cancel(self)

    def __del__(self) -> None:
        self._free(self._as_parameter_)


class _Pending:
    """A call on another thread."""

    __slots__ = ("arguments", "done", "error", "function", "misuse", "returned", "status")

    def __init__(self, function: Callable[..., int], arguments: tuple[Any, ...]) -> None:
        self.function = function
        self.arguments = arguments
        self.error = c_void_p()
        self.status = 0
        self.misuse: BaseException | None = None
        self.returned = False
        self.done = _thread.allocate_lock()
        self.done.acquire()

    def make(self) -> None:
        try:
            self.status = self.function(*self.arguments, byref(self.error))
        except BaseException as e:
            self.misuse = e
        finally:
            self.arguments = ()
            self.returned = True
            self.done.release()

    def wait(self) -> None:
        # A signal ends the wait; but not one whose handler another library has put before Python's
        # with SA_RESTART (polars does), hence the time limit.
        while not self.returned:
            self.done.acquire(timeout=0.1)

    def finish(self) -> None:
        if self.misuse is not None:
            raise self.misuse
        if self.status != 0:
            raise take_error(self.error.value)


class _Helper:
    """A thread that makes the main thread's calls: one at a time, kept from call to call because
    starting a thread may take longer than the call."""

    __slots__ = ("_go", "_pending", "_pid")

    def __init__(self) -> None:
        self._go = _thread.allocate_lock()
        self._go.acquire()
        self._pending: _Pending | None = None
        self._pid = os.getpid()
        # Not threading.Thread: an idle helper is nothing to wait for at exit.
        _thread.start_new_thread(self._serve, ())

    def _serve(self) -> None:
        while True:
            self._go.acquire()
            pending = self._pending
            if pending is not None:
                pending.make()
            del pending
            if self is not _helper:
                return

    @property
    def idle(self) -> bool:
        """Usable; not in a forked child, not while a call goes on (abandoned, or interrupted by a
        signal handler that makes one of its own)."""
        pending = self._pending
        return (pending is None or pending.returned) and self._pid == os.getpid()

    def start(self, pending: _Pending) -> None:
        self._pending = pending
        self._go.release()


_helper: _Helper | None = None


def call_cancellable(token: CancelToken, function: Callable[..., int], *arguments: Any) -> None:
    """As `call`, for a function that may take long and was given `token`.

    What comes up in the main thread meanwhile (KeyboardInterrupt, an exception of a signal handler)
    cancels the call and is raised when it has returned. A second one is raised at once; the call
    then ends by itself, its arguments stay alive for it.
    """
    global _helper
    if threading.get_ident() != threading.main_thread().ident:
        return call(function, *arguments)
    if _helper is None or not _helper.idle:
        _helper = _Helper()
    pending = _Pending(function, arguments)
    started = False
    try:
        _helper.start(pending)
        started = True
        pending.wait()
    except BaseException:
        token.cancel()
        token.abandoned = True
        if started:
            pending.wait()
            token.abandoned = False
            lib().error_free(pending.error)
        raise
    pending.finish()


class OutBytes:
    """A place for bytes that the library hands out; pass it as the `out_` argument."""

    __slots__ = ("_as_parameter_", "_free", "_struct")

    def __init__(self) -> None:
        self._struct = Bytes()
        self._as_parameter_ = byref(self._struct)
        self._free = lib().bytes_free

    def take(self) -> bytes | None:
        """A copy of the bytes, None where the library handed NULL out; frees them."""
        data = self._struct.data
        if not data:
            return None
        value = ctypes.string_at(data, self._struct.len)
        self._free(self)
        return value

    def __del__(self) -> None:
        self._free(self)


class OutStream:
    """An Arrow stream struct of the library; pass it as the `out_` argument, or as an input.

    Its release is the library's: not done in a forked child, where its threads are missing.
    """

    __slots__ = ("_as_parameter_", "_free", "_pid")

    def __init__(self) -> None:
        library = lib()
        self._as_parameter_: int | None = library.alloc_stream()
        self._free = library.free_stream
        self._pid = os.getpid()

    @property
    def address(self) -> int:
        assert self._as_parameter_ is not None
        return self._as_parameter_

    def detach(self) -> int:
        """The struct's address; whoever asked frees it."""
        address, self._as_parameter_ = self.address, None
        return address

    def close(self) -> None:
        """Release the stream and free its struct."""
        address, self._as_parameter_ = self._as_parameter_, None
        if address is not None and os.getpid() == self._pid:
            self._free(address)

    def __del__(self, _getpid: Callable[[], int] = os.getpid) -> None:
        if self._as_parameter_ is not None and _getpid() == self._pid:
            self._free(self._as_parameter_)


def convert(data: bytes, encoding: int) -> bytes:
    """A descriptor or result in another encoding (`ENCODING_JSON`, `ENCODING_BINARY`)."""
    out = OutBytes()
    call(lib().convert, data, len(data), encoding, out)
    return out.take() or b""


def frame(rows: list[bytes]) -> bytes:
    """Rows, each behind its length, as `rows_to_table` wants them."""
    parts: list[bytes] = []
    for row in rows:
        parts += (len(row).to_bytes(8, "little"), row)
    return b"".join(parts)


def unframe(framed: bytes) -> list[bytes]:
    """The rows of `table_to_rows`."""
    rows = []
    at = 0
    while at < len(framed):
        start = at + 8
        at = start + int.from_bytes(framed[at:start], "little")
        rows.append(framed[start:at])
    return rows


def rows_to_table(rows: list[bytes]) -> OutStream:
    """A stream of one table of tasks or of results."""
    framed = frame(rows)
    out = OutStream()
    call(lib().rows_to_table, framed, len(framed), out)
    return out
