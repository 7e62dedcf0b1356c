# SPDX-License-Identifier: Apache-2.0
"""What tests change in worker processes; each is given the module `lance_tasks.ray._worker`."""

import contextlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType


def slow(worker: ModuleType) -> None:
    """Attempts take a while before and after what they do, so that faults meet them."""
    for name in ("_planned", "_stream"):
        real = getattr(worker.Worker, name)

        def slowed(self: object, *given: object, real: Callable = real) -> object:
            time.sleep(random.uniform(0.05, 0.4))
            result = real(self, *given)
            time.sleep(random.uniform(0.05, 0.4))
            return result

        setattr(worker.Worker, name, slowed)


def straggle(worker: ModuleType) -> None:
    """The first attempt at the first task goes on for long after it is done."""
    real = worker.Worker._planned
    mark = Path(os.environ["STRAGGLE"])

    def held(self: object, attempt: str, task: bytes) -> object:
        import lance_tasks as lt

        result = real(self, attempt, task)
        if lt.Task.from_bytes(task).index == 0:
            with contextlib.suppress(FileExistsError):
                mark.touch(exist_ok=False)
                time.sleep(float(os.environ["STRAGGLE_FOR"]))
        return result

    worker.Worker._planned = held


def deadly(worker: ModuleType) -> None:
    """Every attempt at the first task kills its process."""
    real = worker.Worker._planned

    def killed(self: object, attempt: str, task: bytes) -> object:
        import lance_tasks as lt

        if lt.Task.from_bytes(task).index == 0:
            os.kill(os.getpid(), 9)
        return real(self, attempt, task)

    worker.Worker._planned = killed


def broken(worker: ModuleType) -> None:
    """Tasks of the stage `STAGE` and the indices `INDICES` (comma-separated) fail for good, as long
    as there is the file `BROKEN`."""
    real = worker.Worker._planned
    indices = {int(index) for index in os.environ["INDICES"].split(",")}

    def failing(self: object, attempt: str, task: bytes) -> object:
        import lance_tasks as lt

        seen = lt.Task.from_bytes(task)
        chosen = seen.stage == int(os.environ["STAGE"]) and seen.index in indices
        if chosen and Path(os.environ["BROKEN"]).exists():
            raise lt.InternalError("this task is broken")
        return real(self, attempt, task)

    worker.Worker._planned = failing


def flaky(worker: ModuleType) -> None:
    """The first attempts in each process fail for storage's sake."""
    import lance_tasks as lt

    left = [2]
    for name in ("_planned", "_stream"):
        real = getattr(worker.Worker, name)

        def failing(self: object, *given: object, real: Callable = real) -> object:
            if left[0]:
                left[0] -= 1
                raise lt.StorageError("the store is busy")
            return real(self, *given)

        setattr(worker.Worker, name, failing)


def other_version(worker: ModuleType) -> None:
    """Another release."""
    import lance_tasks as lt

    real = lt.versions
    lt.versions = lambda: real() | {"lance_tasks": "0.0.7", "lance": "13.9.9"}


def busy_store(worker: ModuleType) -> None:
    """One attempt of a Ray Dataset's write fails once it has written its rows."""
    import lance_tasks as lt

    def fail() -> None:
        raise lt.StorageError("the store is busy")

    _once_written(fail)


def dying_writer(worker: ModuleType) -> None:
    """The process of one attempt of a Ray Dataset's write dies once it has written its rows."""
    _once_written(lambda: os.kill(os.getpid(), 9))


def _once_written(what: Callable[[], None]) -> None:
    from lance_tasks import verbs

    real = verbs.execute_stream
    mark = Path(os.environ["MARK"])

    def failing(*given: object) -> None:
        real(*given)
        with contextlib.suppress(FileExistsError):
            mark.touch(exist_ok=False)
            what()

    verbs.execute_stream = failing
