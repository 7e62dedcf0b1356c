# SPDX-License-Identifier: Apache-2.0
"""Small files that processes share: where a spool is kept."""

from __future__ import annotations

import os
from ctypes import byref, c_void_p

from . import _ffi
from ._call import Call
from .errors import AlreadyExistsError, InvalidStateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Files:
    """A folder, or a place in an object store. A file appears whole or not at all.

    Names are relative, with ``/`` between their parts. Any number of threads may use it at once.

    Args:
        place: a path, a ``file://`` URI, or an object store's URI as Lance takes it. A folder need
            not exist; the first `put` makes it.
        storage_options: for an object store.

    Raises:
        InvalidArgumentError: the place is none, or its URI carries credentials.
    """

    __slots__ = ("__weakref__", "_as_parameter_", "_free", "_pid", "place")

    def __init__(
        self,
        place: str | os.PathLike[str],
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        self._as_parameter_: int | None = None
        self._pid = os.getpid()
        self.place = os.fspath(place)
        library = _ffi.lib()
        self._free = library.files_free
        text = self.place.encode()
        handle = c_void_p()
        options = Call(storage_options)
        _ffi.call(library.files_open, text, len(text), options, byref(handle))
        self._as_parameter_ = handle.value

    def get(self, name: str) -> bytes | None:
        """What is in a file, or None where there is none."""
        out = _ffi.OutBytes()
        self._call("get", name, out)
        return out.take()

    def put(self, name: str, data: bytes) -> None:
        """Write a file, or replace it; it is synced."""
        self._call("put", name, data, len(data), 1)

    def put_new(self, name: str, data: bytes) -> bool:
        """Write a file where there is none; is it there now as it is here?"""
        try:
            self._call("put", name, data, len(data), 0)
        except AlreadyExistsError:
            return False
        return True

    def list(self, folder: str) -> list[str]:
        """The names in a folder, in order, without the folder; none where there is no folder."""
        out = _ffi.OutBytes()
        self._call("list", folder, out)
        return [name.decode() for name in (out.take() or b"").split(b"\0") if name]

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        self._call("delete", name)

    def _call(self, what: str, name: str, *rest: object) -> None:
        if os.getpid() != self._pid:
            raise InvalidStateError(
                f"the files of {self.place} were opened in process {self._pid}; open them anew"
            )
        text = name.encode()
        _ffi.call(getattr(_ffi.lib(), f"files_{what}"), self, text, len(text), *rest)

    def __repr__(self) -> str:
        return f"Files({self.place!r})"

    def __reduce__(self) -> str:
        raise TypeError("Files belong to their process and cannot be pickled")

    def __del__(self, _getpid: Callable[[], int] = os.getpid) -> None:
        if self._as_parameter_ is not None and _getpid() == self._pid:
            self._free(self._as_parameter_)
