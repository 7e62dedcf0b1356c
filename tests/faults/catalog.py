# SPDX-License-Identifier: Apache-2.0
"""Every kind of fault by operation, and one run of one of them."""

import random
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import environment
import killed
import races
import repeated
import storage
from pool import Pool
from shapes import Shapes
from work import Pace, Run

Fault = Callable[[Run], str]

ALL: list[Fault] = [
    killed.worker_killed_retried,
    killed.worker_killed_aborted,
    killed.committer_killed,
    killed.committer_killed_at_manifest,
    killed.committer_stalled,
    killed.aborter_killed,
    repeated.answer_lost,
    repeated.duplicate_attempts,
    repeated.late_attempt,
    repeated.two_committers,
    storage.pin_cleaned_away,
    storage.files_cleaned_away,
]
if environment.can_mount():
    ALL += [storage.disk_full_at_task, storage.disk_full_at_commit]
else:
    ALL += [storage.file_too_large]

# The others write rows of their own, which have no blobs.
BLOBS = [fault for fault in ALL if fault is not storage.pin_cleaned_away]

FAULTS: dict[str, list[Fault]] = {
    "write": [
        *ALL,
        races.create_races_create,
        races.append_races_overwrite,
        races.appends_race,
        races.meets_delete,
        races.meets_compaction,
    ],
    "compact": [*ALL, races.meets_delete, races.meets_append, races.meets_compaction],
    "write_blobs": BLOBS,
    "compact_blobs": BLOBS,
    "create_index": [*ALL, races.meets_delete, races.meets_append, races.meets_compaction],
    "create_vector_index": [*ALL, races.meets_delete, races.meets_append, races.meets_compaction],
    "optimize_index": [*ALL, races.meets_delete, races.meets_append, races.meets_compaction],
}


@dataclass(frozen=True)
class Id:
    """One fault of one run: all that is needed to choose the same again."""

    seed: int
    operation: str
    fault: str
    number: int

    def __str__(self) -> str:
        return f"{self.seed}/{self.operation}/{self.fault}/{self.number}"

    @classmethod
    def parse(cls, text: str) -> "Id":
        seed, operation, fault, number = text.split("/")
        return cls(int(seed), operation, fault, int(number))

    def find(self) -> Fault:
        return next(f for f in FAULTS[self.operation] if f.__name__ == self.fault)


class Objection(AssertionError):
    """The oracle, or the fault itself, found something that must not be."""


class Bench:
    """What faults share: processes that wait, datasets to copy, measured times."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.pool = Pool(folder)
        self.shapes = Shapes(folder)
        self.pace = Pace()

    def run(self, fault: Id) -> str:
        """How the fault ended. Raises `Objection`, and keeps the fault's folder, where it should
        not have ended so."""
        folder = self.folder / str(fault).replace("/", "-")
        folder.mkdir()
        rng = random.Random(str(fault))
        run = Run(rng, folder, fault.operation, self.pool, self.shapes, self.pace)
        try:
            end = fault.find()(run)
        except Exception as error:
            self.pool.recall()
            raise Objection(
                f"{fault}: {error}\nfolder kept: {folder}\nagain: python tests/faults/soak.py "
                f"--again {fault}\n{traceback.format_exc()}"
            ) from None
        shutil.rmtree(folder)
        return end

    def close(self) -> None:
        self.pool.end()
