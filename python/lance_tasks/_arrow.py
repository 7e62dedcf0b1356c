# SPDX-License-Identifier: Apache-2.0
"""Arrow in and out by the PyCapsule interface, without any Arrow package.

In: an object with `__arrow_c_stream__` is handed to the library as it is; one with
`__arrow_c_array__`, or an iterable of such objects, is made a stream by `_Chain`.
Out: a stream of the library becomes a capsule whose destructor is the library's own, because a
destructor in Python could not run at interpreter exit.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
from collections.abc import Iterable, Iterator
from ctypes import (
    CFUNCTYPE,
    POINTER,
    PYFUNCTYPE,
    c_char_p,
    c_int,
    c_int64,
    c_void_p,
    py_object,
    pythonapi,
)

from . import _ffi
from .errors import InvalidArgumentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class ArrowSchema(ctypes.Structure):
    """The C Data Interface's schema."""


ArrowSchema._fields_ = (
    ("format", c_char_p),
    ("name", c_char_p),
    ("metadata", c_void_p),
    ("flags", c_int64),
    ("n_children", c_int64),
    ("children", POINTER(POINTER(ArrowSchema))),
    ("dictionary", POINTER(ArrowSchema)),
    ("release", c_void_p),
    ("private_data", c_void_p),
)


class ArrowArray(ctypes.Structure):
    """The C Data Interface's array; only moved here, never read."""

    _fields_ = (
        ("numbers", c_int64 * 5),
        ("buffers", c_void_p),
        ("children", c_void_p),
        ("dictionary", c_void_p),
        ("release", c_void_p),
        ("private_data", c_void_p),
    )


_Get = CFUNCTYPE(c_int, c_void_p, c_void_p)
_LastError = CFUNCTYPE(c_void_p, c_void_p)
_Release = CFUNCTYPE(None, c_void_p)


class ArrowArrayStream(ctypes.Structure):
    """The C Stream Interface's stream."""

    _fields_ = (
        ("get_schema", _Get),
        ("get_next", _Get),
        ("get_last_error", _LastError),
        ("release", _Release),
        ("private_data", c_void_p),
    )


_capsule_new = pythonapi.PyCapsule_New
_capsule_new.restype = py_object
_capsule_new.argtypes = (c_void_p, c_char_p, c_void_p)
_capsule_get = pythonapi.PyCapsule_GetPointer
_capsule_get.restype = c_void_p
_capsule_get.argtypes = (py_object, c_char_p)
# For a destructor: the capsule is no object that Python may touch any more.
_dying_capsule_get = PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", pythonapi))

STREAM = b"arrow_array_stream"
SCHEMA = b"arrow_schema"
ARRAY = b"arrow_array"
# Capsules point to their name as long as they live, which may be longer than this module.
for _name in (STREAM, SCHEMA):
    pythonapi.Py_IncRef(py_object(_name))


def _free_schema(capsule: int) -> None:
    _ffi.lib().free_schema(_dying_capsule_get(capsule, SCHEMA))


_free_schema_capsule = PYFUNCTYPE(None, c_void_p)(_free_schema)


class OutSchema:
    """A schema struct of the library; pass it as an input, or make a capsule of it."""

    __slots__ = ("_as_parameter_", "_free")

    def __init__(self) -> None:
        library = _ffi.lib()
        self._as_parameter_: int | None = library.alloc_schema()
        self._free = library.free_schema

    def capsule(self) -> object:
        capsule: object = _capsule_new(
            self.address, SCHEMA, ctypes.cast(_free_schema_capsule, c_void_p)
        )
        self._as_parameter_ = None
        return capsule

    @property
    def address(self) -> int:
        assert self._as_parameter_ is not None
        return self._as_parameter_

    def __del__(self) -> None:
        self._free(self._as_parameter_)


def stream_capsule(stream: _ffi.OutStream) -> object:
    """Hand a stream of the library to any Arrow consumer."""
    free = ctypes.cast(_ffi.lib().stream_capsule_free, c_void_p)
    capsule: object = _capsule_new(stream.address, STREAM, free)
    stream.detach()
    return capsule


def stream_schema(address: int) -> OutSchema:
    """Ask a stream for its schema; the stream stays as it is."""
    stream = ArrowArrayStream.from_address(address)
    if not stream.release:
        raise InvalidArgumentError("the Arrow stream has been read already")
    schema = OutSchema()
    code = stream.get_schema(address, schema.address)
    if code != 0:
        raise InvalidArgumentError(f"the Arrow stream has no schema: {_last_error(stream, code)}")
    return schema


def _last_error(stream: ArrowArrayStream, code: int) -> str:
    text = stream.get_last_error(ctypes.addressof(stream)) if stream.get_last_error else None
    if not text:
        return errno.errorcode.get(code, str(code))
    return ctypes.string_at(text).decode("utf-8", "replace")


class InSchema:
    """A schema of the caller, kept alive for a call; the library takes it over."""

    __slots__ = ("_as_parameter_", "_capsule")

    def __init__(self, source: Any) -> None:
        if not hasattr(source, "__arrow_c_schema__"):
            raise TypeError(
                f"schema: {type(source).__name__} is no Arrow schema (it has no __arrow_c_schema__)"
            )
        self._capsule = source.__arrow_c_schema__()
        self._as_parameter_: int = _capsule_get(self._capsule, SCHEMA)


class InStream:
    """A stream of the caller, kept alive for a call; the library takes it over.

    Args:
        source: an object with `__arrow_c_stream__` or `__arrow_c_array__`, or an iterable of such.
        what: its name in messages.
    """

    __slots__ = ("_as_parameter_", "_owner", "_struct")

    def __init__(self, source: Any, what: str) -> None:
        self._owner: Any
        self._struct: ArrowArrayStream | None = None
        if hasattr(source, "__arrow_c_stream__"):
            self._owner = source.__arrow_c_stream__()
            self._as_parameter_: int = _capsule_get(self._owner, STREAM)
            return
        if hasattr(source, "__arrow_c_array__"):
            items = iter((source,))
        elif isinstance(source, Iterable) and not isinstance(source, (str, bytes, bytearray)):
            items = iter(source)
        else:
            raise TypeError(
                f"{what}: {type(source).__name__} is no Arrow data (it has neither "
                "__arrow_c_stream__ nor __arrow_c_array__, and is no iterable of such)"
            )
        self._owner = _Chain(items, what)
        self._struct = self._owner.export()
        self._as_parameter_ = ctypes.addressof(self._struct)

    def schema(self) -> OutSchema:
        return stream_schema(self._as_parameter_)

    @property
    def failure(self) -> BaseException | None:
        """What the caller's iterable raised, if that is why the stream failed."""
        return self._owner.failure if isinstance(self._owner, _Chain) else None

    def __del__(self) -> None:
        # A capsule releases by itself what the library did not take.
        if self._struct is not None and self._struct.release:
            self._struct.release(ctypes.addressof(self._struct))


class _Part:
    """An array or a stream of the caller's iterable."""

    def __init__(self, item: Any, what: str) -> None:
        self._item = item
        self._stream: ArrowArrayStream | None = None
        self._array: object = None
        if hasattr(item, "__arrow_c_array__"):
            schema, self._array = item.__arrow_c_array__()
            self.fingerprint = _fingerprint(ArrowSchema.from_address(_capsule_get(schema, SCHEMA)))
        elif hasattr(item, "__arrow_c_stream__"):
            self._capsule = item.__arrow_c_stream__()
            self._stream = ArrowArrayStream.from_address(_capsule_get(self._capsule, STREAM))
            schema = stream_schema(ctypes.addressof(self._stream))
            self.fingerprint = _fingerprint(ArrowSchema.from_address(schema.address))
        else:
            raise TypeError(f"{what}: a {type(item).__name__} among the items is no Arrow data")

    def put_schema(self, out: int) -> None:
        if self._stream is None:
            schema, _ = self._item.__arrow_c_array__()
            _move(ArrowSchema, _capsule_get(schema, SCHEMA), out)
        else:
            self._check(self._stream.get_schema(ctypes.addressof(self._stream), out))

    def put_next(self, out: int) -> bool:
        """Move the next array to `out`, if there is one more."""
        if self._stream is None:
            array, self._array = self._array, None
            if array is None:
                return False
            _move(ArrowArray, _capsule_get(array, ARRAY), out)
            return True
        self._check(self._stream.get_next(ctypes.addressof(self._stream), out))
        return bool(ArrowArray.from_address(out).release)

    def _check(self, code: int) -> None:
        if code != 0:
            assert self._stream is not None
            raise InvalidArgumentError(_last_error(self._stream, code))


class _Chain:
    """Makes one Arrow stream of an iterator over arrays and streams of one schema.

    The library calls in on its own threads, one at a time; ctypes takes the GIL for it.
    """

    def __init__(self, items: Iterator[Any], what: str) -> None:
        self.failure: BaseException | None = None
        self._what = what
        self._message = ctypes.create_string_buffer(b"")
        self._items = items
        first = next(items, None)
        if first is None:
            raise InvalidArgumentError(
                f"{what}: no record batches; hand over a stream, which has a schema also when empty"
            )
        # Kept to the end: it answers for the schema.
        self._first = self._part = _Part(first, what)

    def export(self) -> ArrowArrayStream:
        key = next(_chain_keys)
        _chains[key] = self
        return ArrowArrayStream(_chain_schema, _chain_next, _chain_last_error, _chain_release, key)

    def put_schema(self, out: int) -> None:
        self._first.put_schema(out)

    def put_next(self, out: int) -> None:
        """Move the next array to `out`; a released one at the end."""
        ctypes.memset(out, 0, ctypes.sizeof(ArrowArray))
        while not self._part.put_next(out):
            item = next(self._items, None)
            if item is None:
                return
            self._part = _Part(item, self._what)
            # The library reads every array by the first one's schema.
            if self._part.fingerprint != self._first.fingerprint:
                raise InvalidArgumentError(
                    f"{self._what}: a {type(item).__name__} has another schema than the first one"
                )

    def attempt(self, put: Callable[[int], None], out: int) -> int:
        try:
            put(out)
        except BaseException as e:
            self.failure = e
            text = f"{type(e).__name__}: {e}".replace("\0", " ")
            self._message = ctypes.create_string_buffer(text.encode("utf-8", "replace"))
            return errno.EIO
        return 0

    def message(self) -> int:
        return ctypes.addressof(self._message)


# By the stream's private data. An entry lives until the stream's release.
_chains: dict[int, _Chain] = {}
_chain_keys = itertools.count(1)


def _chain(stream: int) -> _Chain:
    return _chains[ArrowArrayStream.from_address(stream).private_data]


def _get_schema(stream: int, out: int) -> int:
    chain = _chain(stream)
    return chain.attempt(chain.put_schema, out)


def _get_next(stream: int, out: int) -> int:
    chain = _chain(stream)
    return chain.attempt(chain.put_next, out)


def _get_last_error(stream: int) -> int:
    return _chain(stream).message()


def _release(stream: int) -> None:
    struct = ArrowArrayStream.from_address(stream)
    _chains.pop(struct.private_data, None)
    struct.release = _Release()


# Made once: a callback may not be freed while it runs, as a release of its own would be.
_chain_schema = _Get(_get_schema)
_chain_next = _Get(_get_next)
_chain_last_error = _LastError(_get_last_error)
_chain_release = _Release(_release)


def _move(kind: Any, source: int, out: int) -> None:
    ctypes.memmove(out, source, ctypes.sizeof(kind))
    kind.from_address(source).release = None


def _fingerprint(schema: ArrowSchema) -> tuple[object, ...]:
    """What must agree for one schema to describe another's arrays."""
    return (
        schema.format,
        schema.name,
        _fingerprint(schema.dictionary.contents) if schema.dictionary else None,
        *(_fingerprint(schema.children[i].contents) for i in range(schema.n_children)),
    )
