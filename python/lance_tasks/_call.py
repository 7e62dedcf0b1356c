# SPDX-License-Identifier: Apache-2.0
"""What holds for one call: storage options, time limit, cancelling, progress."""

from __future__ import annotations

import ctypes
import itertools
import math
from ctypes import c_void_p

from . import _ffi
from .errors import InvalidArgumentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from .outcomes import Progress

_KINDS = {1: "started", 2: "advanced", 3: "finished", 4: "failed", 5: "stage"}

# By the context pointer that the library was given. An entry lives until the library's finalizer.
_callbacks: dict[int, Callable[[Progress], object]] = {}
_contexts = itertools.count(1)


# An exception of the user's callback leaves through sys.unraisablehook, as ctypes does it.
def _progress(context: int, event: Any) -> None:
    from .outcomes import Progress

    callback = _callbacks.get(context)
    if callback is not None:
        e = event.contents
        callback(
            Progress(
                kind=_KINDS.get(e.kind, "stage"),
                task_id=e.task_id.decode(),
                rows=e.rows,
                bytes=e.bytes,
                message=e.message.decode("utf-8", "replace"),
            )
        )


def _finalize(context: int) -> None:
    _callbacks.pop(context, None)


_on_progress = _ffi.ProgressCallback(_progress)
_on_finalize = _ffi.Finalizer(_finalize)


def _milliseconds(timeout: float | None) -> int:
    if timeout is None or timeout == math.inf:
        return 0
    if not timeout > 0:
        raise InvalidArgumentError(f"timeout: {timeout} seconds; more than 0, or None for no limit")
    return min(math.ceil(timeout * 1000), 2**63)


def _storage_options(
    options: Mapping[str, str] | None,
    bases: Mapping[str, Mapping[str, str]] | None,
) -> bytes | None:
    """The library's form: those of a base as `base:<path>:<option>`."""
    flat = _strings("storage_options", options or {})
    for path, own in (bases or {}).items():
        if not isinstance(path, str) or not hasattr(own, "items"):
            raise TypeError(f"base_store_params: {path!r}: a base's path, and a mapping of strings")
        if not path or not own:
            raise InvalidArgumentError(
                f"base_store_params: {path!r}: a path or options are missing"
            )
        for key, value in _strings(f"base_store_params: {path!r}", own).items():
            if not key or ":" in key:
                raise InvalidArgumentError(f"base_store_params: {path!r}: {key!r} is no option")
            flat[f"base:{path}:{key}"] = value
    if not flat:
        return None
    import json

    return json.dumps(flat).encode()


def _strings(what: str, options: Mapping[str, str]) -> dict[str, str]:
    for key, value in options.items():
        # The value may be a secret and is not named.
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"{what}: {key!r}: keys and values are strings")
    return dict(options)


class Call:
    """LanceTasksCallOptions with what it points to. Made last before the call, and for one call:
    the library takes the progress callback over, and ends it by its finalizer."""

    __slots__ = ("_as_parameter_", "_options", "token")

    def __init__(
        self,
        storage_options: Mapping[str, str] | None = None,
        timeout: float | None = None,
        progress: Callable[[Progress], object] | None = None,
        flags: int = 0,
        *,
        base_store_params: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        storage = _storage_options(storage_options, base_store_params)
        milliseconds = _milliseconds(timeout)
        if progress is not None and not callable(progress):
            raise TypeError(f"progress: {type(progress).__name__} is not callable")
        self.token = _ffi.CancelToken()
        self._options = options = _ffi.CallOptions(
            struct_size=ctypes.sizeof(_ffi.CallOptions),
            flags=flags,
            storage_options=storage,
            storage_options_len=len(storage or b""),
            timeout_ms=milliseconds,
            cancel=self.token._as_parameter_,
        )
        if progress is not None:
            from . import outcomes  # noqa: F401  # not for the first time within the callback

            context = next(_contexts)
            _callbacks[context] = progress
            options.progress = _on_progress
            options.progress_context = c_void_p(context)
            options.progress_finalizer = _on_finalize
        self._as_parameter_ = ctypes.byref(options)

    def run(self, function: Callable[..., int], *arguments: Any) -> None:
        """Call a function that takes long; see `_ffi.call_cancellable`."""
        _ffi.call_cancellable(self.token, function, *arguments)
