# SPDX-License-Identifier: Apache-2.0
"""Results in the driver's memory, small."""

from __future__ import annotations

import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Results:
    """Bytes of results. They are alike, so that each is stored as what differs from the first."""

    def __init__(self, results: Iterable[bytes] = ()) -> None:
        self._first = b""
        self._packed: list[bytes] = []
        for result in results:
            self.add(result)

    def add(self, result: bytes) -> None:
        """Keep one more."""
        if not self._packed:
            # A dictionary of deflate reaches no further back.
            self._first = result[-32_768:]
        packer = zlib.compressobj(level=1, zdict=self._first)
        self._packed.append(packer.compress(result) + packer.flush())

    def all(self) -> list[bytes]:
        """All of them, in the order in which they came."""
        return [zlib.decompressobj(zdict=self._first).decompress(one) for one in self._packed]

    def __len__(self) -> int:
        return len(self._packed)
