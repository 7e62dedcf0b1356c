# SPDX-License-Identifier: Apache-2.0
"""Work on Lance datasets as serializable tasks: plan, execute anywhere, commit exactly once.

    import lance_tasks as lt

    lt.run(lt.Write("flights.lance", sources="flights/*.parquet"))

does it here. To spread the work, let anything carry the tasks out and the results back:

    job = lt.prepare(lt.Write("flights.lance", sources="flights/*.parquet"))
    results = []
    while tasks := lt.plan(job, results):
        results += [lt.execute(task) for task in tasks]   # in any process, on any machine
    lt.commit(job, results)

Tasks of an operation that reads yield data instead, for any Arrow consumer:

    table = pyarrow.table(lt.read(lt.TakeBlobs("films.lance", column="film", row_ids=[7, 3])))

Rows come from, and results go to, any Arrow package; none is needed. This package loads a shared
library by ctypes: `$LANCE_TASKS_LIBRARY`, else the one next to it.
"""

from __future__ import annotations

from .descriptors import Job, Result, Task
from .errors import (
    AlreadyExistsError,
    BudgetExceededError,
    CancelledError,
    CommitUnknownError,
    ConflictError,
    CredentialsError,
    DeadlineExceededError,
    DecodeError,
    Error,
    HistoryGoneError,
    IncompleteError,
    InternalError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    NotSupportedError,
    PanicError,
    RetryableConflictError,
    SchemaMismatchError,
    SourceError,
    StorageError,
    VerificationError,
    VersionGoneError,
    VersionMismatchError,
)
from .executor import Executor, set_default_executor
from .loop import run
from .reads import DataStream, read
from .results import ResultIterator
from .tables import Table, results_table, tasks_table
from .verbs import abort, adopt, commit, execute, execute_all, plan, prepare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._foreign import pylance_index
    from .blobs import Blob, blob_array, blob_field
    from .outcomes import AbortReport, Outcome, Progress
    from .specs import (
        AutoCleanup,
        Base,
        BlobColumn,
        Compact,
        CreateIndex,
        OptimizeIndex,
        Source,
        TakeBlobs,
        Write,
    )

__version__ = "0.1.0"

__all__ = [
    "AbortReport",
    "AlreadyExistsError",
    "AutoCleanup",
    "Base",
    "Blob",
    "BlobColumn",
    "BudgetExceededError",
    "CancelledError",
    "CommitUnknownError",
    "Compact",
    "ConflictError",
    "CreateIndex",
    "CredentialsError",
    "DataStream",
    "DeadlineExceededError",
    "DecodeError",
    "Error",
    "Executor",
    "HistoryGoneError",
    "IncompleteError",
    "InternalError",
    "InvalidArgumentError",
    "InvalidStateError",
    "Job",
    "NotFoundError",
    "NotSupportedError",
    "OptimizeIndex",
    "Outcome",
    "PanicError",
    "Progress",
    "Result",
    "ResultIterator",
    "RetryableConflictError",
    "SchemaMismatchError",
    "Source",
    "SourceError",
    "StorageError",
    "Table",
    "TakeBlobs",
    "Task",
    "VerificationError",
    "VersionGoneError",
    "VersionMismatchError",
    "Write",
    "__version__",
    "abort",
    "adopt",
    "blob_array",
    "blob_field",
    "commit",
    "execute",
    "execute_all",
    "plan",
    "prepare",
    "pylance_index",
    "read",
    "results_table",
    "run",
    "set_default_executor",
    "tasks_table",
    "versions",
]

# dataclasses takes longer to import than the rest of this package: what needs it comes when asked
# for.
_LAZY = {
    "AbortReport": "outcomes",
    "Outcome": "outcomes",
    "Progress": "outcomes",
    "AutoCleanup": "specs",
    "Base": "specs",
    "Blob": "blobs",
    "BlobColumn": "specs",
    "Compact": "specs",
    "CreateIndex": "specs",
    "OptimizeIndex": "specs",
    "Source": "specs",
    "TakeBlobs": "specs",
    "Write": "specs",
    "blob_array": "blobs",
    "blob_field": "blobs",
    "pylance_index": "_foreign",
}


def __getattr__(name: str) -> object:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def versions() -> dict[str, str | int]:
    """The versions of the library, of Lance inside, of the wire format and of the ABI."""
    from . import _ffi, _library

    library = _ffi.lib()
    return {
        "lance_tasks": library.version().decode(),
        "lance": library.lance_version().decode(),
        "format": library.format_version(),
        "abi": _library.ABI_VERSION,
    }
