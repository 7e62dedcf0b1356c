# SPDX-License-Identifier: Apache-2.0
"""Blobs written, compacted where rows share them, and taken at random, beside pylance.

Each measurement is a process of its own (`blob_work.py`); the sides take turns.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from blob_work import (
    BUDGET,
    CASES,
    COPY,
    FRAGMENTS,
    PRODUCER,
    SHARED_BYTES,
    SHARING,
    TAKERS,
    TAKES,
    make,
)
from common import SIDES, Section, Settings, child, mb, median, medians
from index import steps_text, take_turns, times

SHARED_ROWS = 1_000
FASTER, OF_A_COPY, MORE = 1.5, 0.8, 1.1

Answers = dict[str, list[dict[str, Any]]]


def rows_of(settings: Settings, name: str) -> int:
    return settings.scaled(CASES[name].rows, 20)


def writes(settings: Settings, section: Section, sources: dict[str, Path]) -> None:
    rows, steps, beneath = [], [], []
    for name, case in CASES.items():

        def measure(side: str, out: str, name: str = name) -> dict[str, Any]:
            return child("blob_work", "write", side=side, folder=str(sources[name]), out=out)

        answers = take_turns(settings, [*SIDES, COPY], measure)
        count = rows_of(settings, name)
        size, title = count * case.size, f"write {count} payloads of {case.title}"
        their_first, theirs = times(answers["pylance"])
        _, copy = times(answers[COPY])
        for side, runs in answers.items():
            first, second = times(runs)
            rows.append(
                [
                    f"{title}: {side}",
                    f"{second:.3f} s",
                    f"{median([run['cpu'][1] for run in runs]):.3f} s",
                    f"{size / 1e6 / second:.0f} MB/s",
                    f"{theirs / second:.2f}",
                    f"{copy / second:.2f}",
                    f"{first:.3f} s",
                    f"{their_first / first:.2f}",
                    str(runs[0].get("files", 1)),
                ]
            )
        _, ours = times(answers["lance-tasks"])
        steps.append([title, steps_text(answers["lance-tasks"])])
        floor = medians([answer["floors"] for answer in answers[COPY]])
        beneath += [
            [title, what, f"{took:.3f} s", f"{took / ours:.2f}"] for what, took in floor.items()
        ]
        section.target(
            title,
            f"{FASTER:.1f}x pylance, or {OF_A_COPY:.1f}x of a plain copy",
            f"{theirs / ours:.2f}x, {copy / ours:.2f}x",
            theirs / ours >= FASTER or copy / ours >= OF_A_COPY,
        )
    section.table(
        [
            "Write",
            *("second time", "its CPU time", "rate", "over pylance", "over a copy"),
            *("first time", "over pylance", "files"),
        ],
        rows,
    )
    section.text("Seconds of our steps, the second time in a process:")
    section.table(["Job", "steps"], steps)
    section.text(
        "Floors, in the same run: the same bytes from memory into new files. The last column is "
        "the share of our time."
    )
    section.table(["Write", "floor", "seconds", "share"], beneath)


def memory(settings: Settings, section: Section, sources: dict[str, Path]) -> None:
    section.text(
        f"Memory of the same writes in an executor with a memory_budget of {BUDGET >> 20} MiB, "
        "from a stream of batches of 32 MB that are read as they are asked for. Before: the "
        "process with the library and the producer loaded. The largest of all runs; pylance and "
        "the producer ran once."
    )
    rows = []
    for name, case in CASES.items():

        def measure(side: str, out: str, name: str = name) -> dict[str, Any]:
            return child(
                "blob_work", "write_in_budget", side=side, folder=str(sources[name]), out=out
            )

        answers = take_turns(settings, ["lance-tasks"], measure)
        # The others are there to compare with.
        answers |= take_turns(replace(settings, runs=1), ["pylance", PRODUCER], measure)
        title = f"{rows_of(settings, name)} payloads of {case.title}"
        for side, runs in answers.items():
            most = {what: max(run[what] for run in runs) for what in ("before", "peak")}
            took = median([run["seconds"] for run in runs])
            rows.append([f"{title}: {side}", *map(mb, most.values()), f"{took:.2f} s"])
        largest = max(run["peak"] for run in answers["lance-tasks"])
        section.target(
            f"peak memory of writing {title}, budget {BUDGET >> 20} MiB",
            mb(BUDGET),
            mb(largest),
            largest <= BUDGET,
        )
    section.table(["Write", "before", "peak of the process", "seconds"], rows)


def compaction(settings: Settings, section: Section) -> None:
    count = settings.scaled(SHARED_ROWS, 2 * SHARING * FRAGMENTS)
    with settings.scratch() as scratch:
        source = str(scratch / "shared.lance")
        distinct = child("blob_work", "make_shared", out=source, rows=count)

        def measure(side: str, out: str) -> dict[str, Any]:
            return child("blob_work", "compact", side=side, source=source, out=out, rows=count)

        answers = take_turns(settings, list(SIDES), measure)
    title = f"compact {count} rows over {count // SHARING} payloads of {mb(SHARED_BYTES)}"
    section.text(
        f"{title} into one fragment. The {FRAGMENTS} fragments were written by ours with `ref_id`, "
        "and each of them has every payload. Written: the files that are new after it; distinct "
        f"payloads are {mb(distinct)}. Ratio: pylance's seconds over this row's."
    )
    their_first, theirs = times(answers["pylance"])
    rows = []
    for side, runs in answers.items():
        first, second = times(runs)
        written = max(run["written"] for run in runs)
        rows.append(
            [
                side,
                f"{second:.3f} s",
                f"{theirs / second:.2f}",
                f"{first:.3f} s",
                f"{their_first / first:.2f}",
                mb(written),
                f"{written / distinct:.2f}x",
                mb(max(run["peak"] for run in runs)),
            ]
        )
    most = max(run["written"] for run in answers["lance-tasks"]) / distinct
    section.target(
        f"{title}: bytes written over distinct payloads",
        f"at most {MORE:.1f}x",
        f"{most:.2f}x",
        most <= MORE,
    )
    section.table(
        [
            "Compaction",
            *("second time", "ratio", "first time", "ratio"),
            *("written", "of the distinct payloads", "peak memory"),
        ],
        rows,
    )
    section.text(f"Seconds of our steps: {steps_text(answers['lance-tasks'])}.")


def takes(settings: Settings, section: Section, sources: dict[str, Path]) -> None:
    name = "blobs-packed"
    count, of = rows_of(settings, name) // 2, rows_of(settings, name)

    def measure(side: str, _: str) -> dict[str, Any]:
        return child("blob_work", "take", side=side, folder=str(sources[name]))

    answers = take_turns(settings, list(TAKERS), measure)
    section.text(
        f"Random take of {count} payloads of {CASES[name].title} of {of} by their indices, from a "
        "dataset that pylance wrote, in the page cache. Ours into an Arrow table, theirs into "
        "Python bytes (`take_blobs` and `readall` of each); opening the dataset is part of it. "
        f"{TAKES} times in a process: the first, and the median of the others. Over read_blobs and "
        "over take_blobs: their seconds over this row's."
    )

    def first(side: str) -> float:
        return median([run["seconds"][0] for run in answers[side]])

    def later(side: str) -> float:
        return median([median(run["seconds"][1:]) for run in answers[side]])

    _, planned, opened = TAKERS
    rows = [
        [
            side,
            f"{later(side) * 1e3:.0f} ms",
            f"{later(planned) / later(side):.2f}",
            f"{later(opened) / later(side):.2f}",
            f"{first(side) * 1e3:.0f} ms",
            f"{first(planned) / first(side):.2f}",
            mb(max(run["peak"] - run["before"] for run in runs)),
        ]
        for side, runs in answers.items()
    ]
    section.table(
        [
            "Take",
            *("later times", "over read_blobs", "over take_blobs"),
            *("first time", "over read_blobs", "memory beyond the process"),
        ],
        rows,
    )
    section.text(f"Seconds of our steps: {steps_text(answers['lance-tasks'])}.")


def run(settings: Settings) -> Section:
    section = Section("Blobs")
    section.text(
        "Payloads of random bytes, storage version 2.2, Lance's thresholds: 200 KB go into packs, "
        "8 MB into files of their own. The rows are an Arrow table in memory (batches of 32 MB, "
        "the column `lance.blob.v2`), the same for both; ours from prepare to commit, pylance's "
        "`write_dataset`. Each process writes twice, into a fresh place; the first is the warm-up "
        "of the second. The plain copy is `shutil.copyfile` of one file with the same bytes, in "
        "the page cache. Nobody syncs: ours, Lance and the copy end when the bytes are in the page "
        "cache. Over pylance, over a copy: their seconds over this row's. Stock pylance reads "
        "every payload back after each measurement, and it is the one that was given."
    )
    sources = {}
    for name in CASES:

        def one(folder: Path, name: str = name) -> None:
            make(name, folder, rows_of(settings, name))

        sources[name] = settings.inputs(name, one)
    parts: list[Callable[[], None]] = [
        lambda: writes(settings, section, sources),
        lambda: memory(settings, section, sources),
        lambda: compaction(settings, section),
        lambda: takes(settings, section, sources),
    ]
    for part in parts:
        part()
    return section
