# SPDX-License-Identifier: Apache-2.0
"""One bar for a job: in a terminal, in a notebook, and nothing elsewhere."""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, TextIO

_EVERY = 0.2


class Counts:
    """How far a job is.

    Attributes:
        total: tasks of the stages so far; 0: not known.
        done: of those, the ones that are done.
        rows: rows written.
        bytes: bytes written.
        failed: attempts that failed, or were lost with their worker.
        retries: attempts beyond the first of their task.
    """

    __slots__ = ("bytes", "done", "failed", "retries", "rows", "total")

    def __init__(self) -> None:
        self.total = self.done = self.rows = self.bytes = self.failed = self.retries = 0

    def take(self, counts: Mapping[str, int]) -> None:
        """Set some of them by their names."""
        for name, value in counts.items():
            setattr(self, name, value)

    def text(self) -> str:
        """The counts, and a bar where the total is known."""
        if self.total:
            filled = round(self.done / self.total * 24)
            text = f"[{'#' * filled}{'-' * (24 - filled)}] {self.done}/{self.total} tasks"
        else:
            text = f"{self.done} tasks"
        text += f", {self.rows:,} rows, {_bytes(self.bytes)}"
        if self.failed:
            text += f", {self.failed} failed"
        if self.retries:
            text += f", {self.retries} retried"
        return text


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


class Bar:
    """Shows `counts` as they change.

    Args:
        name: what is done.
        wanted: False: nothing is shown.
        stream: for tests; default: standard error.
    """

    def __init__(self, name: str, wanted: bool, stream: TextIO | None = None) -> None:
        self.counts = Counts()
        self._name = name
        self._next = 0.0
        self._place: _Terminal | _Notebook | None = None
        stream = stream or sys.stderr
        if wanted and stream.isatty():
            self._place = _Terminal(stream)
        elif wanted and _in_notebook():
            self._place = _Notebook()

    @property
    def shown(self) -> bool:
        """Does anybody see it?"""
        return self._place is not None

    def update(self, now: bool = False) -> None:
        """Show the counts, not too often."""
        if self._place is None or (not now and time.monotonic() < self._next):
            return
        self._next = time.monotonic() + _EVERY
        self._place.show(f"{self._name} {self.counts.text()}")

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._place is not None:
            self._place.say(text)
            self.update(now=True)

    def close(self) -> None:
        """The last state stays."""
        self.update(now=True)
        if self._place is not None:
            self._place.close()
            self._place = None


class _Terminal:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._width = 0

    def show(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)

    def say(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._width) + "\n")
        self._width = 0

    def close(self) -> None:
        if self._width:
            self._stream.write("\n")
            self._stream.flush()


class _Notebook:
    """One output of the cell, which is replaced; needs nothing but IPython itself."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._output: Any = None

    def show(self, text: str) -> None:
        from IPython.display import display  # type: ignore[import-not-found,unused-ignore]

        shown = {"text/plain": "\n".join([*self._said, text])}
        if self._output is None:
            self._output = display(shown, raw=True, display_id=True)
        else:
            self._output.update(shown, raw=True)

    def say(self, text: str) -> None:
        # Those of a long job would fill the page.
        self._said = [*self._said[-9:], text]

    def close(self) -> None:
        pass


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
