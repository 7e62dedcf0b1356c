# SPDX-License-Identifier: Apache-2.0
"""`read`: the data of tasks that read."""

from __future__ import annotations

import time

from . import _arrow, _ffi
from ._call import Call
from .descriptors import BytesLike, Task
from .errors import InvalidStateError
from .executor import usable
from .tables import stream_of
from .verbs import plan, prepare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Any

    from typing_extensions import Self

    from .executor import Executor
    from .specs import SpecLike


def read(
    what: SpecLike | Task | Iterable[Task | bytes] | Any,
    *,
    storage_options: Mapping[str, str] | None = None,
    base_store_params: Mapping[str, Mapping[str, str]] | None = None,
    timeout: float | None = None,
    executor: Executor | None = None,
) -> DataStream:
    """Read the data of an operation that reads, in the order of its tasks.

    Everything that is wrong with the spec and with the first task is raised here. The payload is
    read while the stream is, one batch ahead, and some tasks ahead; an error then is the Arrow
    consumer's, with the code and the task in its text.

    Args:
        what: a spec that reads (`TakeBlobs`, a mapping, or JSON text), which is prepared and
            planned here; or a task, several, or a table of them, of such a job.
        storage_options, base_store_params: as for the verbs.
        timeout: seconds until the stream fails, from now.
        executor: default: the process's own. Streams that are read at one time share its memory
            budget; one that finds too little waits for another to end. A stream cannot be the input
            of a task of the same executor.

    Raises:
        InvalidArgumentError: the spec is wrong, it changes a dataset, or a key names no row.
        BudgetExceededError: a single value is larger than the executor's memory budget.
    """
    executor = usable(executor)
    end = None if timeout is None else time.monotonic() + timeout

    def options() -> dict[str, Any]:
        # What is left of the time, of which even the last call has a little.
        left = None if end is None else max(end - time.monotonic(), 0.001)
        return {
            "storage_options": storage_options,
            "base_store_params": base_store_params,
            "timeout": left,
        }

    tasks = _tasks(what, options, executor)
    given = stream_of(tasks, Task, "tasks")
    stream = _ffi.OutStream()
    call = Call(**options())
    call.run(_ffi.lib().read_all, executor, given, call, stream)
    return DataStream(stream, call, executor)


def _tasks(what: Any, options: Callable[[], dict[str, Any]], executor: Executor) -> Any:
    from collections.abc import Mapping

    from .specs import _Spec

    if isinstance(what, Task):
        return [what]
    if isinstance(what, (str, *BytesLike)):
        data = what.encode() if isinstance(what, str) else bytes(what)
        if _is_task(data):
            return [data]
    elif not isinstance(what, (_Spec, Mapping)):
        return what
    job = prepare(what, executor=executor, **options())
    return plan(job, executor=executor, **options())


def _is_task(data: bytes) -> bool:
    import json

    view = json.loads(_ffi.convert(data, _ffi.ENCODING_JSON))
    return isinstance(view, dict) and view.get("kind") == "task"


class DataStream:
    """Record batches for an Arrow consumer, by the PyCapsule interface; they can be read once.

    For example ``pyarrow.table(x)``, ``pyarrow.RecordBatchReader.from_stream(x)``,
    ``polars.DataFrame(x)`` or ``nanoarrow.ArrayStream(x)``. Ending it early (`close`, leaving its
    ``with`` block, dropping what reads it) cancels what is not done and waits for that.
    """

    __slots__ = ("_call", "_executor", "_stream")

    def __init__(self, stream: _ffi.OutStream, call: Call, executor: Executor) -> None:
        self._stream: _ffi.OutStream | None = stream
        self._call = call
        self._executor = executor

    def __arrow_c_schema__(self) -> object:
        return _arrow.stream_schema(self._open().address).capsule()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        # The protocol lets a producer give its own schema where it cannot give the requested one.
        capsule = _arrow.stream_capsule(self._open())
        self._stream = None
        return capsule

    def _open(self) -> _ffi.OutStream:
        self._executor.check_process()
        if self._stream is None:
            raise InvalidStateError("the data has been read already, or closed")
        return self._stream

    def close(self) -> None:
        """Cancel what is not done. Whoever reads the stream gets an error."""
        self._call.token.cancel()
        stream, self._stream = self._stream, None
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
