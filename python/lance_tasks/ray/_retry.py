# SPDX-License-Identifier: Apache-2.0
"""What the driver does itself: again where that may help, and not beyond the job's end."""

from __future__ import annotations

import logging
import time

from lance_tasks.errors import CancelledError, DeadlineExceededError, Error, InvalidArgumentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence
    from typing import Any, TypeVar

    from lance_tasks import Job

    from ._worker import Storage

    _T = TypeVar("_T")

log = logging.getLogger("lance_tasks.ray")


class Limits:
    """When a job is to end, and how often its parts are tried.

    Args:
        timeout: seconds from now; None: no limit.
        cancel: an event that ends the job once it is set.
        max_retries: further attempts.

    Raises:
        InvalidArgumentError: a number is out of range.
    """

    def __init__(
        self, timeout: float | None, cancel: threading.Event | None, max_retries: int
    ) -> None:
        if max_retries < 0:
            raise InvalidArgumentError(f"max_retries: {max_retries}; at least 0")
        if timeout is not None and not timeout > 0:
            raise InvalidArgumentError(f"timeout: {timeout}; more than 0 seconds")
        if cancel is not None and not hasattr(cancel, "is_set"):
            raise TypeError(f"cancel: {type(cancel).__name__} is no threading.Event")
        self._timeout = timeout
        self._until = None if timeout is None else time.monotonic() + timeout
        self._cancel = cancel
        self.max_retries = max_retries

    def reached(self) -> Error | None:
        """Why the job is to end now, if it is."""
        if self._cancel is not None and self._cancel.is_set():
            return CancelledError("the job was cancelled by the caller")
        if self._until is not None and time.monotonic() > self._until:
            return DeadlineExceededError(f"timeout: the job took more than {self._timeout:g} s")
        return None

    def check(self) -> None:
        """Raise where the job is to end."""
        error = self.reached()
        if error is not None:
            raise error

    def wait(self, references: list[Any]) -> None:
        """Until objects are in the object store, or will never be."""
        import ray

        while references:
            self.check()
            _, references = ray.wait(
                references, num_returns=len(references), timeout=0.25, fetch_local=False
            )

    def verb(self, verb: Callable[..., _T], storage: Storage, *given: Any, **options: Any) -> _T:
        """Call one of the verbs on the driver, within what time is left."""

        failure: Error | None = None
        for count in range(self.max_retries + 1):
            if failure is not None:
                time.sleep(_pause(count))
                if self.reached() is not None:
                    # It says more: that a commit may have been done, for example.
                    raise failure
            else:
                self.check()
            left = None if self._until is None else max(self._until - time.monotonic(), 0.001)
            try:
                return verb(*given, timeout=left, **options, **storage.keywords())
            except Error as e:
                if e.retry_class != "retry_task":
                    raise
                failure = e
        raise failure or AssertionError


def _pause(count: int) -> float:
    return min(0.1 * 2.0**count, 5.0)


def retrying(what: Callable[[], _T], max_retries: int) -> _T:
    """Do something that is safe to repeat, again where its error says that this may help."""
    count = 0
    while True:
        try:
            return what()
        except Error as e:
            if e.retry_class != "retry_task" or count >= max_retries:
                raise
        count += 1
        time.sleep(_pause(count))


def clear(storage: Storage, job: Job, results: Sequence[bytes] = ()) -> None:
    """Remove what attempts have left whose results were not needed."""
    import lance_tasks as lt

    try:
        lt.abort(job, results, **storage.keywords())
    except Error as e:
        log.warning("files of lost attempts of job %s may be left: %s", job.id, e)


def note(error: BaseException, text: str) -> None:
    """Say more about an error."""
    if hasattr(error, "add_note"):  # Python 3.11
        error.add_note(text)
    log.warning("%s", text)
