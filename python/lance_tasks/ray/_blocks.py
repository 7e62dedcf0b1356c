# SPDX-License-Identifier: Apache-2.0
"""The data of an open job, as `run` takes it: cut into partitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import ray

from lance_tasks import _arrow
from lance_tasks.errors import InvalidArgumentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


class Blocks:
    """The data of an open job, cut into partitions.

    Attributes:
        count: how many partitions there are; None: not known beforehand.
    """

    def __init__(self, data: Any, min_rows: int | None) -> None:
        if hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__"):
            data = [data]
        elif not isinstance(data, Iterable) or isinstance(data, (str, bytes)):
            raise TypeError(
                f"data: {type(data).__name__} is no Ray Dataset, no Arrow data, and no list of such"
            )
        groups = _grouped(data, min_rows)
        self._groups: Any = list(groups) if isinstance(data, Sequence) else groups
        self.count = len(self._groups) if isinstance(self._groups, list) else None

    def references(self) -> list[Any]:
        """Those blocks that are in Ray's object store, or will be."""
        if self.count is None:
            return []
        blocks = (block for group in self._groups for block in group)
        return list(dict.fromkeys(b for b in blocks if isinstance(b, ray.ObjectRef)))

    def first(self) -> Any:
        """A block, to see the schema of."""
        if self.count is None:
            head = next(self._groups, None)
            if head is None:
                return None
            rest = self._groups
            self._groups = _chain(head, rest)
            return head[0]
        return self._groups[0][0] if self._groups else None

    def get(self, index: int) -> tuple[Any, ...]:
        """The blocks of a partition."""
        group: tuple[Any, ...] = self._groups[index]
        return group

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self._groups)


def _chain(head: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield head
    yield from rest


def _grouped(data: Iterable[Any], min_rows: int | None) -> Iterator[tuple[Any, ...]]:
    group: list[Any] = []
    rows = 0
    for item in data:
        blocks = list(item) if isinstance(item, (list, tuple)) else [item]
        if not blocks:
            raise InvalidArgumentError("data: a partition without a block, an empty tuple")
        sizes = [_rows_of(block) for block in blocks]
        group += blocks
        rows += sum(size or 0 for size in sizes)
        # What is not known to be small is not put together.
        if min_rows is None or rows >= min_rows or None in sizes:
            yield tuple(group)
            group, rows = [], 0
    if group:
        yield tuple(group)


def _rows_of(block: Any) -> int | None:
    rows = getattr(block, "num_rows", None)
    return rows if isinstance(rows, int) else None


class BlockSchema:
    """The schema of a block, for `prepare`."""

    def __init__(self, block: Any) -> None:
        if isinstance(block, ray.ObjectRef):
            block = ray.get(block)
        self._stream = _arrow.InStream(block, "data")

    def __arrow_c_schema__(self) -> object:
        return self._stream.schema().capsule()
