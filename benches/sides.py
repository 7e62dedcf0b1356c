# SPDX-License-Identifier: Apache-2.0
"""Write, compact and index, the same work by both sides, and the floors beneath it.

A measurement is a process that imports, loads its input into memory, then times the work and its
commit alone, twice: as a process begins, and as a worker that stays goes on.
"""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import floors
import inputs
from common import SIDES, Section, Settings, child, mb, median, seconds


@dataclass(frozen=True)
class Case:
    """One comparison: what is read, and what each side does to a fresh place for its output."""

    title: str
    target: float  # pylance's seconds over ours
    make: Callable[[Path, int], None]
    load: Callable[[Path], object]
    ours: Callable[[object, str], None]
    theirs: Callable[[object, str], None]


# The work


def stream(folder: Path):
    """The input in memory, as a stream of batches."""
    import pyarrow as pa

    with pa.ipc.open_file(folder / "input.arrow") as reader:
        return pa.table(reader.read_all()).to_reader()


def write_ours(reader: object, out: str) -> None:
    import lance_tasks as lt

    lt.run(lt.Write(out), data=reader)


def write_theirs(reader, out: str) -> None:
    import lance
    from lance.fragment import write_fragments

    fragments = write_fragments(reader, out, mode="create")
    lance.LanceDataset.commit(out, lance.LanceOperation.Overwrite(reader.schema, fragments))


def parquet_ours(folder: Path, out: str) -> None:
    import lance_tasks as lt

    lt.run(lt.Write(out, sources=[folder / "part-*.parquet"]))


def parquet_theirs(folder: Path, out: str) -> None:
    write_theirs(floors.parquet_reader(folder), out)


def warm(folder: Path) -> Path:
    """Every input file in the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()
    return folder


def compact_ours(target: object, out: str) -> None:
    import lance_tasks as lt

    lt.run(lt.Compact(out, target_rows_per_fragment=target))


def compact_theirs(target, out: str) -> None:
    import lance

    lance.dataset(out).optimize.compact_files(target_rows_per_fragment=target)


def quarter_of_rows(folder: Path) -> int:
    import lance

    return lance.dataset(warm(folder) / "input.lance").count_rows() // 4


def index_ours(_: object, out: str) -> None:
    import lance_tasks as lt

    lt.run(lt.CreateIndex(out, column="key", index_type="BTREE"))


def index_theirs(_: object, out: str) -> None:
    import lance

    lance.dataset(out).create_scalar_index("key", "BTREE")


CASES = {
    "write-numbers": Case(
        "write 5 M rows of 8 numbers, one Arrow stream", 1.6,
        inputs.arrow_file(inputs.numbers, 5_000_000), stream, write_ours, write_theirs,
    ),
    "write-strings": Case(
        "write 2.5 M strings, one Arrow stream", 1.6,
        inputs.arrow_file(inputs.strings, 2_500_000), stream, write_ours, write_theirs,
    ),
    "write-vectors": Case(
        "write 500 k vectors of 128 float32, one Arrow stream", 1.6,
        inputs.arrow_file(inputs.vectors, 500_000), stream, write_ours, write_theirs,
    ),
    "write-parquet": Case(
        "write 5 M rows of 8 numbers from 8 Parquet files", 1.6,
        inputs.parquet_files, warm, parquet_ours, parquet_theirs,
    ),
    "compact": Case(
        "compact 200 fragments (2 M rows of 8 numbers) into 4", 1.3,
        inputs.dataset(2_000_000, 200), quarter_of_rows, compact_ours, compact_theirs,
    ),
    "btree": Case(
        "BTREE over 5 M int64", 1.6,
        inputs.dataset(5_000_000, 5), warm, index_ours, index_theirs,
    ),
}  # fmt: skip


# Measuring


def measure(name: str, side: str, folder: str, out: str) -> dict:
    """In a child: do it twice; what it took, and what is there after."""
    case = CASES[name]
    source = Path(folder)
    if side == "lance-tasks":
        import lance_tasks as lt

        lt.versions()
    else:
        import lance
    run = case.ours if side == "lance-tasks" else case.theirs
    took = []
    for _ in range(2):
        shutil.rmtree(out, ignore_errors=True)
        loaded = case.load(source)
        if (source / "input.lance").exists():
            inputs.copy_dataset(source / "input.lance", out)
        os.sync()  # what earlier measurements left to be written is not this one's
        took.append(seconds(lambda loaded=loaded: run(loaded, out)))

    import lance

    data = lance.dataset(out)
    return {
        "seconds": took,
        "rows": data.count_rows(),
        "indexed": [
            data.stats.index_stats(i.name)["num_indexed_rows"] for i in data.describe_indices()
        ],
    }


def compare(
    settings: Settings, name: str, folder: Path
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """The median seconds of each side (a process's first run, and its second), and the floors."""
    took: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    floor: list[dict[str, float]] = []
    for turn in range(settings.runs + settings.warm_ups):
        answers = {}
        for side in SIDES if turn % 2 else SIDES[::-1]:
            with settings.scratch() as scratch:
                out = str(scratch / "out.lance")
                answers[side] = child(
                    "sides", "measure", name=name, side=side, folder=str(folder), out=out
                )
        made = [(answers[side]["rows"], sum(answers[side]["indexed"])) for side in SIDES]
        if made[0] != made[1]:
            sys.exit(f"{name}: the sides made different things: {made}")
        if turn < settings.warm_ups:
            continue
        for side in SIDES:
            took[side].append(answers[side]["seconds"])
        with settings.scratch() as scratch:
            floor.append(
                child("floors", "measure", name=name, folder=str(folder), out=str(scratch))
            )
    return (
        {side: [median(run) for run in zip(*values, strict=True)] for side, values in took.items()},
        {what: median([one[what] for one in floor]) for what in floor[0]},
    )


def run(settings: Settings, names: Sequence[str]) -> Section:
    section = Section("The same work by both")
    section.text(
        "Each process does the work twice: the first run pays for fresh memory, the second (first "
        "columns) is a worker that goes on. Inputs in memory or in the page cache, commit "
        "included. Ratio: pylance's seconds over ours; above 1 this project is faster. MB: Arrow "
        "bytes of the rows (of the column for an index)."
    )
    rows, beneath = [], []
    for name in names:
        case = CASES[name]

        def make(folder: Path, case: Case = case) -> None:
            case.make(folder, settings.less)

        folder = settings.inputs(name, make)
        medians, floor = compare(settings, name, folder)
        (first, ours), (their_first, theirs) = (medians[side] for side in SIDES)
        size = floor.pop("bytes")
        ratio = theirs / ours
        rows.append(
            [
                case.title,
                f"{ours:.3f} s",
                f"{theirs:.3f} s",
                f"{ratio:.2f}",
                f"{first:.3f} s",
                f"{their_first:.3f} s",
                f"{their_first / first:.2f}",
                f"{size / 1e6 / ours:.0f}",
                f"{size / 1e6 / theirs:.0f}",
            ]
        )
        beneath += [
            [case.title, what, mb(size), f"{took:.3f} s", f"{took / ours:.2f}"]
            for what, took in floor.items()
        ]
        section.target(case.title, f"{case.target:.1f}x", f"{ratio:.2f}x", ratio >= case.target)
    section.table(
        [
            "Work",
            *("lance-tasks", "pylance", "ratio"),
            *("first run: lance-tasks", "pylance", "ratio"),
            *("lance-tasks MB/s", "pylance MB/s"),
        ],
        rows,
    )
    section.text(
        "Floors, measured in the same run: what moving the same bytes takes without any work on "
        "them. The last column is the share of our time above."
    )
    section.table(["Work", "floor", "bytes", "seconds", "share"], beneath)
    return section
