# SPDX-License-Identifier: Apache-2.0
"""Jobs, tasks and results: immutable values around bytes.

They pickle as their bytes, compare by them, and can be made, sent and stored without the library;
it is loaded where their content is asked for.
"""

from __future__ import annotations

from . import _ffi
from .errors import DecodeError, Error, InvalidArgumentError, from_code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Self

BytesLike = (bytes, bytearray, memoryview)


class _Bytes:
    """Bytes of one kind, with the view of them that the library gives."""

    __slots__ = ("_data", "_view")
    _data: bytes
    _view: dict[str, Any] | None

    def __init__(self) -> None:
        name = type(self).__name__
        raise TypeError(f"{name} is made by the library, or by {name}.from_bytes")

    @classmethod
    def _trusted(cls, data: bytes) -> Self:
        """Around bytes that came from the library: nothing is checked."""
        self = object.__new__(cls)
        object.__setattr__(self, "_data", data)
        object.__setattr__(self, "_view", None)
        return self

    def to_bytes(self) -> bytes:
        """The binary form, to be stored or sent."""
        return self._data

    def _json(self) -> dict[str, Any]:
        """What the library's JSON form says; decoded once."""
        if self._view is None:
            object.__setattr__(self, "_view", self._decode(self._data))
        view = self._view
        assert view is not None
        return view

    @classmethod
    def _decode(cls, data: bytes) -> dict[str, Any]:
        raise NotImplementedError

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._data == other._data

    def __hash__(self) -> int:
        return hash((type(self), self._data))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (type(self), self._data)


def _unpickle(cls: type[_Bytes], data: bytes) -> _Bytes:
    return cls._trusted(data)


def _as_bytes(data: object, what: str) -> bytes:
    if not isinstance(data, BytesLike):
        raise TypeError(f"{what}: expected bytes, got {type(data).__name__}")
    return bytes(data)


class _Descriptor(_Bytes):
    """A job or task, which has a JSON form too."""

    __slots__ = ()
    _kind: str

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Take what `to_bytes` gave, or the JSON form as UTF-8.

        Raises:
            DecodeError: the bytes are damaged or something else.
            VersionMismatchError: they are of an unknown format version or kind.
            InvalidArgumentError: they are another kind of descriptor.
        """
        data = _as_bytes(data, f"{cls.__name__}.from_bytes")
        view = cls._decode(data)
        if data[:4] != b"LTSK":
            data = _ffi.convert(data, _ffi.ENCODING_BINARY)
        self = cls._trusted(data)
        object.__setattr__(self, "_view", view)
        return self

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Take what `to_json` gave. Raises as `from_bytes`."""
        return cls.from_bytes(text.encode() if isinstance(text, str) else text)

    def to_json(self) -> str:
        """The JSON form, for people and other languages."""
        return _ffi.convert(self._data, _ffi.ENCODING_JSON).decode()

    @classmethod
    def _decode(cls, data: bytes) -> dict[str, Any]:
        import json

        envelope = json.loads(_ffi.convert(data, _ffi.ENCODING_JSON))
        kind = envelope.get("kind", "spec") if isinstance(envelope, dict) else "result"
        if kind != cls._kind:
            kind = "result" if "attempt_id" in envelope else kind
            raise InvalidArgumentError(f"expected a {cls._kind}, this is a {kind}")
        view: dict[str, Any] = envelope[cls._kind]
        return view

    @property
    def id(self) -> str:
        """The UUID."""
        return str(self._json()["id"])

    @property
    def uri(self) -> str:
        """Where the dataset is: an absolute path or a URI."""
        return str(self._json()["uri"])

    @property
    def read_version(self) -> int:
        """The pinned version; 0 where the job creates the dataset."""
        return int(self._json()["read_version"])


class Job(_Descriptor):
    """A prepared spec: validated, defaults resolved, dataset version pinned, given an id."""

    __slots__ = ()
    _kind = "job"

    @property
    def operation(self) -> str:
        """The operation's name, for example ``"write"``."""
        return str(next(iter(self._json()["state"])))

    def task(self, partition: str) -> Task:
        """The task of one partition of an open job (a write that is fed by streams).

        Args:
            partition: the caller's name of the partition, not empty. The same name gives the same
                task, anywhere.

        Raises:
            InvalidArgumentError: the job is not open, or states its partitions and this is none.
        """
        if not isinstance(partition, str):
            raise TypeError(f"partition: expected str, got {type(partition).__name__}")
        out = _ffi.OutBytes()
        name = partition.encode()
        library = _ffi.lib()
        _ffi.call(library.job_task, self._data, len(self._data), name, len(name), out)
        return Task._trusted(out.take() or b"")

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.operation} {self.uri!r} version {self.read_version}>"


class Task(_Descriptor):
    """One self-contained piece of a job, which any machine can execute."""

    __slots__ = ()
    _kind = "task"

    @property
    def job_id(self) -> str:
        """The job's UUID."""
        return str(self._json()["job_id"])

    @property
    def operation(self) -> str:
        """The operation's name, for example ``"write"``."""
        return str(next(iter(self._json()["work"])))

    @property
    def stage(self) -> int:
        """Tasks of a stage may run at the same time; a stage begins when the one before is done."""
        return int(self._json()["stage"])

    @property
    def index(self) -> int:
        """The place among the stage's tasks."""
        return int(self._json()["index"])

    @property
    def estimated_rows(self) -> int:
        """Rows the task reads, 0 where unknown beforehand."""
        return int(self._json()["estimated_rows"])

    @property
    def estimated_bytes(self) -> int:
        """Bytes the task reads, 0 where unknown beforehand."""
        return int(self._json()["estimated_bytes"])

    def __repr__(self) -> str:
        return f"<Task {self.id} {self.operation} {self.stage}/{self.index}>"


class Result(_Bytes):
    """What one attempt made, or why it failed. Its bytes are an Arrow IPC stream of one row."""

    __slots__ = ()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Take what `to_bytes` gave.

        Raises:
            DecodeError: the bytes are damaged or something else.
        """
        data = _as_bytes(data, "Result.from_bytes")
        view = cls._decode(data)
        self = cls._trusted(data)
        object.__setattr__(self, "_view", view)
        return self

    @classmethod
    def _decode(cls, data: bytes) -> dict[str, Any]:
        import json

        view = json.loads(_ffi.convert(data, _ffi.ENCODING_JSON))
        if isinstance(view, list):
            raise DecodeError(f"expected one result, these are {len(view)}")
        if "attempt_id" not in view:
            raise InvalidArgumentError(f"expected a result, this is a {view.get('kind', 'spec')}")
        return dict(view)

    @property
    def job_id(self) -> str:
        """The job's UUID."""
        return str(self._json()["job_id"])

    @property
    def task_id(self) -> str:
        """The task's UUID."""
        return str(self._json()["task_id"])

    @property
    def attempt_id(self) -> str:
        """The UUID of this attempt."""
        return str(self._json()["attempt_id"])

    @property
    def operation(self) -> str:
        """The operation's name, for example ``"write"``."""
        return str(self._json()["operation"])

    @property
    def status(self) -> str:
        """``"ok"`` or ``"failed"``."""
        return str(self._json()["status"])

    @property
    def error(self) -> Error | None:
        """Why the attempt failed; None where it did not."""
        error = self._json()["error"]
        if error is None:
            return None
        return from_code(error["code"], error["message"], error["class"], self.task_id)

    @property
    def rows_in(self) -> int:
        """Rows read."""
        return int(self._json()["rows_in"])

    @property
    def rows_out(self) -> int:
        """Rows written."""
        return int(self._json()["rows_out"])

    @property
    def bytes_read(self) -> int:
        """Bytes read."""
        return int(self._json()["bytes_read"])

    @property
    def bytes_written(self) -> int:
        """Bytes written."""
        return int(self._json()["bytes_written"])

    @property
    def files(self) -> list[dict[str, Any]]:
        """The files written: `path` below the dataset or base, `size` in bytes, `base` or None."""
        return list(self._json()["files"])

    @property
    def fragments(self) -> list[str]:
        """New fragments as Lance's JSON, in row order, as `FragmentMetadata.from_json` takes it."""
        import json

        return [json.dumps(fragment) for fragment in self._json()["fragments"]]

    @property
    def payload(self) -> dict[str, Any]:
        """What the operation's commit needs beyond the rest."""
        return dict(self._json()["payload"] or {})

    @property
    def elapsed(self) -> float:
        """Seconds that the attempt took."""
        return float(self._json()["elapsed_us"]) / 1e6

    @property
    def host(self) -> str:
        """The machine's name."""
        return str(self._json()["host"])

    @property
    def pid(self) -> int:
        """The process."""
        return int(self._json()["pid"])

    @property
    def peak_memory(self) -> int:
        """The process's peak resident set in bytes when the attempt ended; 0 where unknown."""
        return int(self._json()["peak_memory"])

    def to_dict(self) -> dict[str, Any]:
        """The row as plain values, for people and logs."""
        import copy

        return copy.deepcopy(self._json())

    def __repr__(self) -> str:
        error = self.error
        said = f"{self.rows_out} rows" if error is None else f"{error.code}: {error.message}"
        return f"<Result {self.task_id} {self.operation} {self.status}, {said}>"
