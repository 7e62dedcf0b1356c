# SPDX-License-Identifier: Apache-2.0
"""One bar for a job: in a terminal, in a notebook, and nothing elsewhere."""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

_EVERY = 0.2


class Counts:
    """How far a job is.

    Attributes:
        total: tasks of the stages so far.
        done: of those, the ones that are done.
        rows: rows written.
        bytes: bytes written.
        failed: attempts that failed, or were lost with their worker.
        retries: attempts beyond the first of their task.
    """

    __slots__ = ("bytes", "done", "failed", "retries", "rows", "total")

    def __init__(self) -> None:
        self.total = self.done = self.rows = self.bytes = self.failed = self.retries = 0

    def text(self) -> str:
        """The counts beyond the tasks."""
        text = f"{self.rows:,} rows, {_bytes(self.bytes)}"
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
        self._stream = stream or sys.stderr
        self._line = wanted and self._stream.isatty()
        self._notebook: Any = _notebook(name) if wanted and not self._line else None
        self._width = 0

    def update(self, now: bool = False) -> None:
        """Show the counts, not too often."""
        if not self._line and self._notebook is None:
            return
        if not now and time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _EVERY
        if self._notebook is not None:
            self._notebook.total = self.counts.total
            self._notebook.n = self.counts.done
            self._notebook.set_postfix_str(self.counts.text())
            return
        text = self._text()
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)

    def _text(self) -> str:
        counts = self.counts
        share = counts.done / counts.total if counts.total else 0.0
        filled = round(share * 24)
        bar = "#" * filled + "-" * (24 - filled)
        return f"{self._name} [{bar}] {counts.done}/{counts.total} tasks, {counts.text()}"

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._line:
            self._stream.write("\r" + text.ljust(self._width) + "\n")
            self.update(now=True)

    def close(self) -> None:
        """The last state stays."""
        self.update(now=True)
        if self._line and self._width:
            self._stream.write("\n")
            self._stream.flush()
        if self._notebook is not None:
            self._notebook.close()


def _notebook(name: str) -> Any:
    """A bar in the notebook that this is, if it is one."""
    shell = sys.modules.get("IPython")
    if shell is None or type(shell.get_ipython()).__name__ != "ZMQInteractiveShell":
        return None
    try:
        from tqdm.notebook import tqdm  # type: ignore[import-untyped,unused-ignore]

        return tqdm(desc=name, unit="task")
    except ImportError:  # without its widgets
        return None
