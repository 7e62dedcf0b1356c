# SPDX-License-Identifier: Apache-2.0
"""Errors: one class per code of the library.

Every error says what to do by its `retry_class`:

- ``retry_task``: the same task (or commit) may be tried again as it is.
- ``replan``: the dataset moved on; plan again, or prepare the job again.
- ``conflict``: another writer made this job's change impossible.
- ``invalid``: the input is wrong; trying again changes nothing.
- ``credentials``: credentials are missing, wrong or expired.
- ``fatal``: stop.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Error(Exception):
    """What every error of this library is.

    Attributes:
        code: the stable name, for example ``"SCHEMA_MISMATCH"``.
        retry_class: what to do about it, see the module.
        message: what happened, naming the file, fragment, column or option.
        task_id: the task concerned, or None.
    """

    code: str = "INTERNAL"
    retry_class: str = "fatal"
    message: str
    task_id: str | None

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        retry_class: str | None = None,
        task_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.task_id = task_id
        if code is not None:
            self.code = code
        if retry_class is not None:
            self.retry_class = retry_class

    def __str__(self) -> str:
        return self.message

    # OSError and its like have a __reduce__ of their own, which loses the attributes.
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message,), self.__dict__


class InvalidArgumentError(Error, ValueError):
    """An argument, option, column or specification is wrong."""

    code = "INVALID_ARGUMENT"
    retry_class = "invalid"


class NotFoundError(Error, FileNotFoundError):
    """The dataset or a file named by the caller does not exist."""

    code = "NOT_FOUND"
    retry_class = "invalid"


class AlreadyExistsError(Error, FileExistsError):
    """The dataset or index to be created exists."""

    code = "ALREADY_EXISTS"
    retry_class = "invalid"


class SchemaMismatchError(Error):
    """Data does not fit the schema."""

    code = "SCHEMA_MISMATCH"
    retry_class = "invalid"


class SourceError(Error):
    """A source file cannot be read or decoded."""

    code = "SOURCE"
    retry_class = "invalid"


class DecodeError(Error):
    """Bytes that are not a descriptor, are cut short or damaged."""

    code = "DECODE"
    retry_class = "invalid"


class VersionMismatchError(Error):
    """A descriptor of an unknown format version, kind or operation."""

    code = "VERSION_MISMATCH"
    retry_class = "invalid"


class IncompleteError(Error):
    """The results do not cover the job."""

    code = "INCOMPLETE"
    retry_class = "replan"


class VerificationError(Error):
    """A result contradicts its task."""

    code = "VERIFICATION"
    retry_class = "fatal"


class ConflictError(Error):
    """Another commit made this one impossible."""

    code = "CONFLICT"
    retry_class = "conflict"


class RetryableConflictError(ConflictError):
    """Another commit touched the same fragments; the work must be redone."""

    code = "RETRYABLE_CONFLICT"
    retry_class = "replan"


class VersionGoneError(Error):
    """The pinned version of the dataset has been cleaned away."""

    code = "VERSION_GONE"
    retry_class = "replan"


class HistoryGoneError(Error):
    """Versions since the job's own are gone, so an earlier commit cannot be ruled out."""

    code = "HISTORY_GONE"
    retry_class = "fatal"


class StorageError(Error, OSError):
    """Storage failed."""

    code = "IO"
    retry_class = "retry_task"


class CredentialsError(Error):
    """Storage refused the credentials."""

    code = "CREDENTIALS"
    retry_class = "credentials"


class CancelledError(Error):
    """The caller cancelled."""

    code = "CANCELLED"
    retry_class = "fatal"


class DeadlineExceededError(Error, TimeoutError):
    """The call's deadline passed."""

    code = "DEADLINE_EXCEEDED"
    retry_class = "retry_task"


class BudgetExceededError(Error, MemoryError):
    """The task does not fit the executor's memory budget."""

    code = "BUDGET_EXCEEDED"
    retry_class = "invalid"


class InvalidStateError(Error):
    """A handle was used after its end, from a callback, or after a fork."""

    code = "INVALID_STATE"
    retry_class = "invalid"


class NotSupportedError(Error):
    """Not supported by this library or by Lance for this dataset."""

    code = "NOT_SUPPORTED"
    retry_class = "invalid"


class CommitUnknownError(Error):
    """The commit's answer was lost and could not be read back; commit again."""

    code = "COMMIT_UNKNOWN"
    retry_class = "retry_task"


class PanicError(Error):
    """A panic was caught inside the library; the executor is poisoned."""

    code = "PANIC"
    retry_class = "fatal"


class InternalError(Error):
    """Anything else."""

    code = "INTERNAL"
    retry_class = "fatal"


_BY_CODE: dict[str, type[Error]] = {
    cls.code: cls
    for cls in (
        InvalidArgumentError,
        NotFoundError,
        AlreadyExistsError,
        SchemaMismatchError,
        SourceError,
        DecodeError,
        VersionMismatchError,
        IncompleteError,
        VerificationError,
        ConflictError,
        RetryableConflictError,
        VersionGoneError,
        HistoryGoneError,
        StorageError,
        CredentialsError,
        CancelledError,
        DeadlineExceededError,
        BudgetExceededError,
        InvalidStateError,
        NotSupportedError,
        CommitUnknownError,
        PanicError,
        InternalError,
    )
}


def from_code(
    code: str, message: str, retry_class: str | None = None, task_id: str | None = None
) -> Error:
    """The error of a code; a code of a newer library is a plain `Error` that carries it."""
    return _BY_CODE.get(code, Error)(message, code=code, retry_class=retry_class, task_id=task_id)
