# SPDX-License-Identifier: Apache-2.0
"""Indexes over a million rows, first build and increment, beside pylance's own in one process.

Each measurement is a process of its own (`index_work.py`); the sides take turns.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Section, Settings, child, mb, median, medians
from index_work import (
    APPENDED,
    BUDGET,
    CASES,
    FRAGMENTS,
    NEIGHBOURS,
    PROBES,
    ROWS,
    SIDES,
    make,
    make_appended,
    same_hits,
)

TARGET, RECALL = 1.3, 0.02


def take_turns(
    settings: Settings, sides: list[str], measure: Callable[[str, str], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Every side in a process of its own, one after the other, forwards and backwards."""
    answers: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for turn in range(settings.runs):
        for side in sides if turn % 2 else sides[::-1]:
            with settings.scratch() as scratch:
                answers[side].append(measure(side, str(scratch / "out.lance")))
    return answers


def times(answers: list[dict[str, Any]]) -> tuple[float, float]:
    """Medians of the first and of the second time in a process."""
    first, second = zip(*(answer["seconds"] for answer in answers), strict=True)
    return median(first), median(second)


def check(title: str, answers: dict[str, list[dict[str, Any]]]) -> None:
    """Both sides find the same rows."""
    (theirs, *_) = answers["pylance"]
    for side, runs in answers.items():
        for answer in runs:
            if "hits" in answer and not same_hits(answer["hits"], theirs["hits"]):
                sys.exit(f"{title}: {side} finds {answer['hits']}, pylance {theirs['hits']}")


def recalls(answers: list[dict[str, Any]]) -> dict[str, float]:
    return medians([answer["recall"] for answer in answers]) if "recall" in answers[0] else {}


def result_cells(answers: list[dict[str, Any]]) -> list[str]:
    found = recalls(answers)
    return [
        str(answers[0]["segments"]),
        mb(max(answer["peak"] for answer in answers)),
        ", ".join(f"{value:.3f}" for value in found.values()) or "equal",
    ]


def steps_text(answers: list[dict[str, Any]]) -> str:
    """Where our time goes, of the second time in a process."""
    middle = medians([answer["steps"] for answer in answers])
    return ", ".join(f"{name} {took:.3f}" for name, took in middle.items())


def builds(settings: Settings, section: Section, sources: dict[str, Path]) -> None:
    rows, steps = [], []
    for name, case in CASES.items():
        answers = take_turns(
            settings,
            list(SIDES),
            lambda side, out, name=name: child(
                "index_work", "build", name=name, side=side, folder=str(sources[name]), out=out
            ),
        )
        check(case.title, answers)
        their_first, theirs = times(answers["pylance"])
        for side, runs in answers.items():
            first, second = times(runs)
            rows.append(
                [
                    f"{case.title}: {side}",
                    f"{second:.2f} s",
                    f"{theirs / second:.2f}",
                    f"{first:.2f} s",
                    f"{their_first / first:.2f}",
                    *result_cells(runs),
                ]
            )
            if side != "pylance":
                steps.append([f"{case.title}: {side}", steps_text(runs)])
        _, ours = times(answers["lance-tasks"])
        count = settings.scaled(ROWS)
        section.target(
            f"{case.title}, {count} rows, whole job",
            f"{TARGET:.1f}x",
            f"{theirs / ours:.2f}x",
            theirs / ours >= TARGET,
        )
        mine, known = recalls(answers["lance-tasks"]), recalls(answers["pylance"])
        if known:
            least = min(mine[n] - known[n] for n in known)
            section.target(
                f"{case.title}: recall@{NEIGHBOURS} beside pylance's at equal nprobes",
                f"at most {RECALL} below",
                f"{least:+.3f}",
                least >= -RECALL,
            )
    section.table(
        [
            "Index",
            *("second time", "ratio", "first time", "ratio", "segments", "peak memory"),
            f"recall@{NEIGHBOURS} at {', '.join(map(str, PROBES))} probes, or hits and scores",
        ],
        rows,
    )
    section.text("Seconds of our steps, the second time in a process:")
    section.table(["Job", "steps"], steps)


def beneath(settings: Settings, section: Section, sources: dict[str, Path]) -> None:
    rows = []
    for name, case in CASES.items():
        runs = []
        for _ in range(settings.runs):
            with settings.scratch() as scratch:
                out = str(scratch / "out.lance")
                runs.append(
                    child("index_work", "floors", name=name, folder=str(sources[name]), out=out)
                )
        rows += [[case.title, what, f"{took:.3f} s"] for what, took in medians(runs).items()]
    section.text("Floors: parts of the same work by pylance, in the same run.")
    section.table(["Index", "floor", "seconds"], rows)


def memory(settings: Settings, section: Section, sources: dict[str, Path]) -> None:
    section.text(
        f"One task in an executor with a memory_budget of {BUDGET >> 20} MiB, in a process of its "
        "own. Before: the process with the library loaded. The largest of all runs."
    )
    rows = []
    for name, case in CASES.items():
        runs: dict[str, list[dict[str, float]]] = {}
        for _ in range(settings.runs):
            for segments in (None, 4):
                with settings.scratch() as scratch:
                    arguments = {
                        "name": name,
                        "segments": segments,
                        "folder": str(sources[name]),
                        "out": str(scratch / "out.lance"),
                    }
                    for step in ("train", "segment"):
                        what = {None: "a segment, the default of them", 4: "one of 4 segments"}
                        title = "training" if step == "train" else what[segments]
                        if answer := child("index_work", "task", step=step, **arguments):
                            runs.setdefault(title, []).append(answer)
        for title, answers in runs.items():
            most = {what: max(answer[what] for answer in answers) for what in answers[0]}
            rows.append([f"{case.title}: {title}", *(mb(size) for size in most.values())])
        largest = max(answer["peak"] for answers in runs.values() for answer in answers)
        section.target(
            f"peak memory of a task, {case.title}, budget {BUDGET >> 20} MiB",
            mb(BUDGET),
            mb(largest),
            largest <= BUDGET,
        )
    section.table(["Task", "before", "peak of the process", "in its result"], rows)


def increments(settings: Settings, section: Section, sources: dict[str, Path]) -> None:
    count, more = settings.scaled(ROWS), settings.scaled(APPENDED)
    section.text(
        f"The increment: {count} rows indexed by pylance, {more} appended after it. Delta: a "
        "segment for these alone. Merge: together with the segment that is there."
    )
    rows = []
    for name, case in CASES.items():

        def appended(folder: Path, name: str = name) -> None:
            make_appended(name, sources[name], folder, settings.less)

        folder = settings.inputs(f"{name}-appended", appended)
        for merge, what in ((0, "delta"), (1, "merge")):
            answers = take_turns(
                settings,
                ["lance-tasks", "pylance"],
                lambda side, out, name=name, merge=merge, folder=folder: child(
                    *("index_work", "optimize"),
                    name=name,
                    side=side,
                    merge=merge,
                    folder=str(folder),
                    out=out,
                ),
            )
            check(f"{case.title}, {what}", answers)
            their_first, theirs = times(answers["pylance"])
            for side, runs in answers.items():
                first, second = times(runs)
                rows.append(
                    [
                        f"{case.title}, {what}: {side}",
                        f"{second:.3f} s",
                        f"{theirs / second:.2f}",
                        f"{first:.3f} s",
                        f"{their_first / first:.2f}",
                        *result_cells(runs),
                    ]
                )
    section.table(
        [
            "Increment",
            *("second time", "ratio", "first time", "ratio", "segments", "peak memory"),
            f"recall@{NEIGHBOURS} at {', '.join(map(str, PROBES))} probes, or hits and scores",
        ],
        rows,
    )


def run(settings: Settings) -> Section:
    section = Section("Indexes in segments")
    section.text(
        f"{settings.scaled(ROWS)} rows in {FRAGMENTS} fragments, Lance's defaults, everything in "
        "the page cache: prepare to commit of ours, with the default of `num_segments` and with 2 "
        "and 4, beside `create_scalar_index` and `create_index`. Each process does the job twice; "
        "the second time is a worker that goes on. Ratio: pylance's seconds over this row's."
    )
    sources = {}
    for name in CASES:

        def one(folder: Path, name: str = name) -> None:
            make(name, folder, settings.less)

        sources[name] = settings.inputs(name, one)
    builds(settings, section, sources)
    beneath(settings, section, sources)
    memory(settings, section, sources)
    increments(settings, section, sources)
    return section
