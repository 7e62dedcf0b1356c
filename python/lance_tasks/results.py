# SPDX-License-Identifier: Apache-2.0
"""The results of `execute_all`, as they come."""

from __future__ import annotations

import atexit
import os
import threading
import weakref

from . import _ffi
from .descriptors import Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from ._call import Call
    from .executor import Executor


class ResultIterator:
    """Gives one `Result` per task in the order of completion.

    Ending it early (`close`, leaving its ``with`` block, dropping it) cancels what is not done and
    waits for that. Ctrl-C while it waits cancels too; who goes on after it gets the rest of the
    results, failed ones for what was cancelled. Threads may share it.
    """

    __slots__ = ("__weakref__", "_call", "_executor", "_interrupted", "_lock", "_pid", "_stream")

    def __init__(self, stream: _ffi.OutStream, call: Call, executor: Executor) -> None:
        self._stream: _ffi.OutStream | None = stream
        self._call = call
        self._executor = executor
        # The place of a row that came while an exception left the wait for it.
        self._interrupted: _ffi.OutBytes | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        _open.add(self)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Result:
        self._executor.check_process()
        with self._lock:
            row = self._next_row()
            if row is None:
                self._end()
                raise StopIteration
            return Result._trusted(row)

    def _next_row(self) -> bytes | None:
        out, self._interrupted = self._interrupted, None
        if out is not None:
            return out.take()
        if self._stream is None:
            return None
        out = _ffi.OutBytes()
        try:
            self._call.run(_ffi.lib().next_row, self._stream, out)
        except Exception:
            raise
        except BaseException:
            if self._call.token.abandoned:
                # The call goes on by itself and has a reference of its own to the stream.
                self._stream = None
            else:
                self._interrupted = out
            raise
        return out.take()

    def cancel(self) -> None:
        """Cancel what is not done. The rest of the results still come."""
        self._call.token.cancel()

    def close(self) -> None:
        """Cancel what is not done, wait for it to end, and give no more results."""
        if os.getpid() != self._pid:
            return
        self.cancel()
        with self._lock:
            self._interrupted = None
            self._end()

    def _end(self) -> None:
        stream, self._stream = self._stream, None
        _open.discard(self)
        if stream is not None:
            stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


_open: weakref.WeakSet[ResultIterator] = weakref.WeakSet()


# A progress callback from a worker thread may not meet an interpreter that is ending.
@atexit.register
def _close_all() -> None:
    for results in list(_open):
        results.close()
