#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""lance-tasks side by side with pylance, in one run on the same data.

    python benches/bench.py [--quick | --smoke] [--runs N] [--less N] [--only NAME]...
                            [--data FOLDER] [--out FILE]

Every measurement is a process of its own; the two sides take turns. Inputs are generated once and
kept in the data folder; outputs are removed after each measurement. A full run writes targets,
medians and ratios to benches/RESULTS.md; a run of less, or of some parts only, prints them, and
writes them where --out says.
"""

import argparse
import datetime
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import abi
import blobs
import descriptors
import index
import jobs
import memory
import sides
import small
import start
from common import (
    BENCHES,
    Section,
    Settings,
    answer_child,
    cache_folder,
    find_library,
    machine,
    row,
)

PARTS: dict[str, Callable[[Settings], Section]] = {
    "small": small.run,
    "jobs": jobs.run,
    "index": index.run,
    "blobs": blobs.run,
    "descriptors": descriptors.run,
    "start": start.run,
    "abi": abi.run,
    "memory": memory.run,
}


def head(sections: Sequence[Section], settings: Settings, command: str) -> str:
    """What was measured, where, and the targets."""
    import lance

    import lance_tasks as lt

    versions = lt.versions()
    targets = [target for section in sections for target in section.targets]
    scale = (
        f" All of it {settings.less} times smaller: the targets do not speak of this."
        if settings.less > 1
        else ""
    )
    return "\n".join(
        [
            "# Side by side with pylance",
            "",
            f"`{command}` on {datetime.date.today()}: medians of {settings.runs} runs of each "
            f"side, taking turns, each in processes of their own.{scale}",
            "",
            f"lance-tasks {versions['lance_tasks']} (Lance {versions['lance']}), "
            f"pylance {lance.__version__}; {machine()}.",
            "",
            "| | target | measured | |",
            "|---|---:|---:|---|",
            *(row([t.what, t.target, t.measured, "met" if t.met else "not met"]) for t in targets),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="--less 10 --runs 3")
    parser.add_argument("--smoke", action="store_true", help="--less 100 --runs 1: does it run?")
    parser.add_argument("--runs", type=int, help="measurements of each side (default 5)")
    parser.add_argument("--less", type=int, help="so many times less data")
    parser.add_argument(
        "--only", choices=[*sides.CASES, *PARTS], action="append", help="run these parts only"
    )
    parser.add_argument("--data", type=Path, help="folder for inputs and outputs")
    parser.add_argument("--out", type=Path, help="default of a full run: benches/RESULTS.md")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return answer_child(*arguments.child)

    settings = Settings(
        data=(arguments.data or cache_folder() / "bench").resolve(),
        runs=arguments.runs or (1 if arguments.smoke else 3 if arguments.quick else 5),
        less=arguments.less or (100 if arguments.smoke else 10 if arguments.quick else 1),
    )
    wanted = arguments.only or [*sides.CASES, *PARTS]
    sections = []
    if cases := [name for name in sides.CASES if name in wanted]:
        sections.append(sides.run(settings, cases))
    sections += [run(settings) for name, run in PARTS.items() if name in wanted]
    command = shlex.join(["python", "benches/bench.py", *sys.argv[1:]])
    first = head(sections, settings, command)
    print(first)
    whole = settings.less == 1 and len(wanted) == len(sides.CASES) + len(PARTS)
    if out := arguments.out or (BENCHES / "RESULTS.md" if whole else None):
        out.write_text("\n".join([first, *(section.markdown() for section in sections)]))
        print(f"wrote {out}")


if __name__ == "__main__":
    find_library()
    main()
