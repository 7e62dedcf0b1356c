# SPDX-License-Identifier: Apache-2.0
"""Processes that wait for work, started ahead: a kill costs one of them, not a start."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import environment

# More than any verb takes on a busy machine; whoever needs longer hangs.
PATIENCE = 120.0
# After so many verbs a process is replaced, so that cold ones come up all the time, too.
USES = 6


class Child:
    """One process of `child.py`, which does one verb after the other and may be killed any time.

    `imports` is "" or "lance" (for stock pylance, which is slow to start).
    """

    def __init__(self, log: Path, imports: str = "") -> None:
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(environment.HERE / "child.py")],
                env=os.environ | {"CHILD_IMPORTS": imports},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
            )
        self.log = log
        self.imports = imports
        self.uses = 0
        self._ready = False
        self._received = b""

    @property
    def fresh(self) -> bool:
        """Has it done nothing yet, so that its next verb also starts the executor?"""
        return self.uses == 0

    def wait_ready(self) -> None:
        if not self._ready:
            assert self._line() == b"ready", self.log.read_text()
            self._ready = True

    def ask(self, verb: str, **arguments: object) -> None:
        """Have it begin a verb; `answer` waits for the end."""
        self.wait_ready()
        request = json.dumps({"verb": verb, **arguments}).encode() + b"\n"
        self.process.stdin.write(request)
        self.process.stdin.flush()

    def answered(self) -> bool:
        """Is the answer there, or the process dead?"""
        return not self._receive(0) or b"\n" in self._received

    def answer(self) -> dict:
        """What was asked for; AssertionError where the process hangs or died of itself."""
        line = self._line()
        self.uses += 1
        return json.loads(line)

    def do(self, verb: str, **arguments: object) -> dict:
        self.ask(verb, **arguments)
        return self.answer()

    def kill(self) -> dict | None:
        """SIGKILL; the answer that was out by then, if any."""
        self.process.kill()
        self.process.wait()
        while self._receive(None):
            pass
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        answer, end, _ = self._received.partition(b"\n")
        return json.loads(answer) if end and self._ready else None

    def stop(self) -> None:
        """Freeze it, as a machine that swaps or a network that stalls would."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def _receive(self, timeout: float | None) -> bool:
        """Read what is there; False at the end of the pipe."""
        out = self.process.stdout.fileno()
        if not select.select([out], [], [], timeout)[0]:
            return True
        received = os.read(out, 1 << 16)
        self._received += received
        return received != b""

    def _line(self) -> bytes:
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0 or not self._receive(left):
                tail = self.log.read_text(errors="replace")[-2000:]
                what = "hangs" if left <= 0 else f"died of itself ({self.process.wait()})"
                raise AssertionError(f"a process {what}; the log ends with:\n{tail}")
        line, _, self._received = self._received.partition(b"\n")
        return line


class Pool:
    """Children, idle ones and ones that somebody has taken."""

    def __init__(self, folder: Path, spare: int = 2) -> None:
        self.log = folder / "children.log"
        self.log.touch()
        self.spare = spare
        self._new: list[Child] = []
        self._used: list[Child] = []
        self._taken: list[Child] = []

    def take(self, imports: str = "", fresh: bool = False) -> Child:
        """A process that is ready, for the caller alone until `give_back` or `kill`."""
        used = [] if fresh else [child for child in self._used if child.imports == imports]
        if used:
            child = used[-1]
            self._used.remove(child)
        elif imports:
            child = Child(self.log, imports)
        else:
            while len(self._new) <= self.spare:
                self._new.append(Child(self.log))
            child = self._new.pop(0)
        self._taken.append(child)
        child.wait_ready()
        return child

    def give_back(self, child: Child) -> None:
        """Have an idle process wait for the next who takes it."""
        self._taken.remove(child)
        if child.uses >= USES and not child.imports:
            child.kill()
        else:
            self._used.append(child)

    def kill(self, child: Child) -> dict | None:
        """SIGKILL; the answer that was out by then, if any."""
        self._taken.remove(child)
        return child.kill()

    def do(self, verb: str, imports: str = "", fresh: bool = False, **arguments: object) -> dict:
        """One verb in some process."""
        child = self.take(imports, fresh)
        answer = child.do(verb, **arguments)
        self.give_back(child)
        return answer

    def recall(self) -> None:
        """End what was taken and not given back, where a block failed."""
        for child in self._taken:
            child.kill()
        self._taken.clear()

    def end(self) -> None:
        self.recall()
        for child in (*self._new, *self._used):
            child.kill()
        self._new.clear()
        self._used.clear()
