#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write, compact and index side by side with pylance, in one run on the same data.

    python benches/bench.py [--quick] [--runs N] [--only NAME] [--data FOLDER] [--out FILE]

Every measurement is a process of its own: it imports, loads its input into memory, then times the
work and its commit alone, twice. The two sides take turns, and who goes first changes from round to
round.
Inputs are generated once and kept in the data folder; outputs are removed after each measurement.
The medians go to benches/RESULTS.md as a table.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("lance-tasks", "pylance")
BATCH_ROWS = 65_536
SEED = 20_240_229


@dataclass(frozen=True)
class Case:
    """One comparison: what is read, and what each side does to a fresh place for its output."""

    title: str
    make: Callable[[Path, int], None]
    load: Callable[[Path], object]
    ours: Callable[[object, str], None]
    theirs: Callable[[object, str], None]
    quick: int = 10  # by how much less data with --quick


# Inputs


def numbers(rows: int):
    """Eight columns of numbers as they come: keys, counters, measurements, few distinct values."""
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(SEED)
    return pa.table(
        {
            "key": rng.integers(0, 2**62, rows),
            "counter": np.arange(rows),
            "small": rng.integers(0, 1000, rows, dtype=np.int32),
            "category": rng.integers(0, 12, rows, dtype=np.int16),
            "normal": rng.standard_normal(rows),
            "price": np.round(rng.gamma(2, 50, rows), 2),
            "single": rng.random(rows, dtype=np.float32),
            "time": pa.array(1_700_000_000_000 + np.cumsum(rng.integers(0, 100, rows))).cast(
                pa.timestamp("ms")
            ),
        }
    )


def strings(rows: int):
    """Distinct strings of 8 to 48 characters."""
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(SEED)
    lengths = rng.integers(8, 49, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    letters = rng.integers(97, 123, offsets[-1], dtype=np.uint8)
    array = pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(letters))
    return pa.table({"text": array})


def vectors(rows: int):
    """Vectors of 128 float32 values."""
    import numpy as np
    import pyarrow as pa

    values = np.random.default_rng(SEED).standard_normal(rows * 128, dtype=np.float32)
    return pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array(values), 128)})


def arrow_file(table: Callable[[int], object], rows: int):
    def make(folder: Path, less: int) -> None:
        import pyarrow as pa

        data = table(rows // less)
        with pa.ipc.new_file(folder / "input.arrow", data.schema) as writer:
            writer.write_table(data, max_chunksize=BATCH_ROWS)

    return make


def parquet_files(folder: Path, less: int) -> None:
    import pyarrow.parquet as pq

    data = numbers(5_000_000 // less)
    size = data.num_rows // 8
    for i in range(8):
        part = data.slice(i * size, size)
        pq.write_table(part, folder / f"part-{i}.parquet", row_group_size=size // 5 + 1)


def dataset(rows: int, fragments: int):
    def make(folder: Path, less: int) -> None:
        import lance

        data = numbers(rows // less)
        per_file = data.num_rows // fragments
        lance.write_dataset(data, folder / "input.lance", max_rows_per_file=per_file)

    return make


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
    import pyarrow.dataset

    files = sorted(map(str, folder.glob("part-*.parquet")))
    write_theirs(pyarrow.dataset.dataset(files).scanner().to_reader(), out)


def warm(folder: Path) -> Path:
    """Every input file in the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()
    return folder


def copy_input(folder: Path, out: str) -> None:
    """The input dataset at the output's place; its files never change, so links do."""
    shutil.copytree(folder / "input.lance", out, copy_function=os.link)


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
        "write 5 M rows of 8 numbers, one Arrow stream",
        arrow_file(numbers, 5_000_000), stream, write_ours, write_theirs,
    ),
    "write-strings": Case(
        "write 2.5 M strings, one Arrow stream",
        arrow_file(strings, 2_500_000), stream, write_ours, write_theirs,
    ),
    "write-vectors": Case(
        "write 500 k vectors of 128 float32, one Arrow stream",
        arrow_file(vectors, 500_000), stream, write_ours, write_theirs,
    ),
    "write-parquet": Case(
        "write 5 M rows of 8 numbers from 8 Parquet files",
        parquet_files, warm, parquet_ours, parquet_theirs,
    ),
    "compact": Case(
        "compact 200 fragments (2 M rows of 8 numbers) into 4",
        dataset(2_000_000, 200), quarter_of_rows, compact_ours, compact_theirs,
    ),
    "btree": Case(
        "BTREE over 5 M int64",
        dataset(5_000_000, 5), warm, index_ours, index_theirs,
    ),
}  # fmt: skip


# Measuring


def input_bytes(name: str, folder: Path) -> int:
    """Arrow bytes of what the work reads: for the index its column, else all rows."""
    import lance
    import pyarrow as pa

    if (folder / "input.lance").exists():
        data = lance.dataset(folder / "input.lance")
        return data.count_rows() * 8 if name == "btree" else data.to_table().nbytes
    if (folder / "input.arrow").exists():
        with pa.ipc.open_file(folder / "input.arrow") as reader:
            return reader.read_all().nbytes
    import pyarrow.dataset

    return pyarrow.dataset.dataset(list(map(str, folder.glob("*.parquet")))).to_table().nbytes


def child(name: str, side: str, folder: Path, out: str) -> None:
    """One measurement; prints what it took, and what is there after."""
    case = CASES[name]
    if side == "lance-tasks":
        import lance_tasks as lt

        lt.versions()
    else:
        import lance
    run = case.ours if side == "lance-tasks" else case.theirs
    seconds = []
    for _ in range(2):  # as a process begins, and as a worker that stays goes on
        shutil.rmtree(out, ignore_errors=True)
        source = case.load(folder)
        if (folder / "input.lance").exists():
            copy_input(folder, out)
        os.sync()  # what earlier measurements left to be written is not this one's
        start = time.perf_counter()
        run(source, out)
        seconds.append(time.perf_counter() - start)

    import lance

    data = lance.dataset(out)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "rows": data.count_rows(),
                "fragments": len(data.get_fragments()),
                "indexed": [
                    data.stats.index_stats(i.name)["num_indexed_rows"]
                    for i in data.describe_indices()
                ],
            }
        )
    )


def measure(name: str, side: str, folder: Path, scratch: Path) -> dict:
    out = tempfile.mkdtemp(dir=scratch)
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--child", name, side, folder, f"{out}/out.lance"],
            check=True,
            capture_output=True,
            text=True,
        )
    except subprocess.CalledProcessError as error:
        sys.exit(f"{name} by {side} failed:\n{error.stderr}")
    finally:
        shutil.rmtree(out)
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, folder: Path, scratch: Path, runs: int) -> dict[str, list[float]]:
    """The median seconds of each side: a process's first run, and its second."""
    seconds: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for round_ in range(runs + 1):
        sides = SIDES if round_ % 2 else SIDES[::-1]
        answers = {side: measure(name, side, folder, scratch) for side in sides}
        made = [{k: v for k, v in answers[side].items() if k != "seconds"} for side in SIDES]
        if made[0]["rows"] != made[1]["rows"] or made[0]["indexed"] != made[1]["indexed"]:
            sys.exit(f"{name}: the sides made different things: {made}")
        if round_:  # the first round warms up
            for side in SIDES:
                seconds[side].append(answers[side]["seconds"])
    return {
        side: [statistics.median(run) for run in zip(*values, strict=True)]
        for side, values in seconds.items()
    }


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{cpu}, {cores} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}"


def report(rows: list[str], arguments: argparse.Namespace) -> str:
    import lance

    import lance_tasks as lt

    command = "python benches/bench.py" + (" --quick" if arguments.quick else "")
    versions = lt.versions()
    return "\n".join(
        [
            "# Side by side with pylance",
            "",
            f"`{command}` on {datetime.date.today()}: medians of {arguments.runs} processes of "
            "each side, taking turns. Each process does the work twice: the first run pays for "
            "fresh memory, the second (first columns) is a worker that goes on. Inputs in memory "
            "or in the page cache, commit included.",
            "",
            f"lance-tasks {versions['lance_tasks']} (Lance {versions['lance']}), "
            f"pylance {lance.__version__}; {machine()}.",
            "",
            "| Work | lance-tasks | pylance | ratio | first run: lance-tasks | pylance | ratio "
            "| lance-tasks MB/s | pylance MB/s |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
            *rows,
            "",
            "Ratio: pylance's seconds over ours; above 1 this project is faster. MB: Arrow bytes "
            "of the rows (of the column for an index).",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the data, 3 runs")
    parser.add_argument("--runs", type=int, help="measurements of each side (default 5)")
    parser.add_argument("--only", choices=CASES, action="append", help="run these cases only")
    parser.add_argument("--data", type=Path, help="folder for inputs and outputs")
    parser.add_argument("--out", type=Path, default=ROOT / "benches" / "RESULTS.md")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, side, folder, out = arguments.child
        return child(name, side, Path(folder), out)
    arguments.runs = arguments.runs or (3 if arguments.quick else 5)

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lance-tasks"
    data = arguments.data or cache / "bench"
    rows = []
    for name in arguments.only or CASES:
        case = CASES[name]
        less = case.quick if arguments.quick else 1
        folder = data / f"{name}-{less}"
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            case.make(folder, less)
            (folder / "done").touch()
        medians = compare(name, folder, data, arguments.runs)
        (first, ours), (their_first, theirs) = (medians[side] for side in SIDES)
        size = input_bytes(name, folder) / 1e6
        title = case.title + (f" (1/{less} of it)" if less > 1 else "")
        rows.append(
            f"| {title} | {ours:.3f} s | {theirs:.3f} s | {theirs / ours:.2f} "
            f"| {first:.3f} s | {their_first:.3f} s | {their_first / first:.2f} "
            f"| {size / ours:.0f} | {size / theirs:.0f} |"
        )
        print(rows[-1], flush=True)
    arguments.out.write_text(report(rows, arguments))
    print(f"wrote {arguments.out}")


def find_library() -> None:
    """The built library and the checkout's package, where the environment names no others."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = Path(os.environ.get("CARGO_TARGET_DIR") or cache / "lance-tasks" / "target")
    os.environ.setdefault("LANCE_TASKS_LIBRARY", str(target / "release" / "liblance_tasks.so"))
    sys.path.insert(0, str(ROOT / "python"))


if __name__ == "__main__":
    find_library()
    main()
