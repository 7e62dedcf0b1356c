# SPDX-License-Identifier: Apache-2.0
"""What the library answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What a commit did.

    Attributes:
        version: the dataset's version that the commit made.
        rows: rows of the dataset at that version.
        already_committed: an earlier commit of the same job (and, for a partial commit, of the same
            tasks) had made that version; `metrics` may be empty then.
        complete: False after a partial commit that leaves tasks of the job to be committed.
        metrics: counts by name, for example `fragments_added`, `bytes_written`.
        uri: the dataset.
        operation: the operation's name.
        job_id: the job.
        transaction_id: the UUID of the transaction in the dataset's history.
    """

    version: int
    rows: int
    already_committed: bool
    complete: bool
    metrics: Mapping[str, int]
    uri: str
    operation: str
    job_id: str
    transaction_id: str | None


@dataclass(frozen=True)
class AbortReport:
    """What an abort removed.

    Attributes:
        files_removed: files deleted.
        bytes_removed: their bytes, as far as the results state them.
        kept: files left because a version of the dataset refers to them, or other jobs may (managed
            blobs).
    """

    files_removed: int
    bytes_removed: int
    kept: int


@dataclass(frozen=True)
class Progress:
    """One event of a task.

    Attributes:
        kind: ``"started"``, ``"advanced"``, ``"finished"``, ``"failed"`` or ``"stage"``.
        task_id: the task.
        rows: rows done so far by this task; of a ``"stage"``, what Lance counts in it (rows,
            partitions), from 0 in each.
        bytes: bytes done so far by this task.
        message: the stage, or the error; empty else.
    """

    kind: str
    task_id: str
    rows: int
    bytes: int
    message: str
