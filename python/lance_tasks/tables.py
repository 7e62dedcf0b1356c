# SPDX-License-Identifier: Apache-2.0
"""Tasks and results as Arrow tables, so that any engine can carry them, and back."""

from __future__ import annotations

from . import _arrow, _ffi
from .descriptors import BytesLike, Result, Task
from .errors import InvalidArgumentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


class Table:
    """A table of tasks or results for Arrow consumers, by the PyCapsule interface.

    For example ``pyarrow.table(x)``, ``polars.DataFrame(x)``, ``nanoarrow.ArrayStream(x)``, or the
    name of a variable that holds it in a query of duckdb. Can be read any number of times.
    """

    __slots__ = ("_rows",)

    def __init__(self, rows: list[bytes]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __arrow_c_schema__(self) -> object:
        stream = _ffi.rows_to_table(self._rows[:1])
        return _arrow.stream_schema(stream.address).capsule()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        # The protocol lets a producer give its own schema where it cannot give the requested one.
        return _arrow.stream_capsule(_ffi.rows_to_table(self._rows))

    def __repr__(self) -> str:
        return f"<lance_tasks Table of {len(self)} rows>"


def results_table(results: Iterable[Result | bytes]) -> Table:
    """Results as a table with one row each, in the schema that `plan`, `commit`, `abort` take."""
    return Table(rows_of(results, Result, "results"))


def tasks_table(tasks: Iterable[Task | bytes]) -> Table:
    """Tasks as a table with one row each, in the schema that `execute_all` takes.

    Raises:
        InvalidArgumentError: there are none, so that the table would be of no kind.
    """
    rows = rows_of(tasks, Task, "tasks")
    if not rows:
        raise InvalidArgumentError("tasks: there are none to make a table of")
    return Table(rows)


def rows_of(items: Any, kind: type[Task | Result], what: str) -> list[bytes]:
    """The bytes of items of one kind."""
    if isinstance(items, (kind, str, *BytesLike)):
        raise TypeError(f"{what}: expected several, in a list; got one {type(items).__name__}")
    rows = []
    for item in items:
        if isinstance(item, kind):
            rows.append(item.to_bytes())
        elif isinstance(item, BytesLike):
            rows.append(bytes(item))
        else:
            raise TypeError(f"{what}: expected {kind.__name__} or bytes, got {type(item).__name__}")
    return rows


def stream_of(items: Any, kind: type[Task | Result], what: str) -> _ffi.OutStream | _arrow.InStream:
    """A table that an engine carried, or items of one kind, as a stream for the library."""
    if hasattr(items, "__arrow_c_stream__") or hasattr(items, "__arrow_c_array__"):
        return _arrow.InStream(items, what)
    return _ffi.rows_to_table(rows_of(items, kind, what))
