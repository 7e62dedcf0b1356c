#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""lance_tasks.ray beside lance-ray: the same cluster, the same data, in turns.

    python benches/on_ray.py [--runs N] [--less N] [--only NAME]... [--data FOLDER] [--out FILE]

One cluster of two nodes of one CPU each serves the whole run. A measurement is one call on the
driver, from the call to its return with the commit done; each side has a warm-up that does not
count. Outputs are removed after each. `start` measures a worker from nothing to its first result,
and its memory after that.
"""

import argparse
import datetime
import importlib.metadata
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import lance_ray
import numpy as np
import pyarrow as pa
import ray
from common import BENCHES, ROOT, find_library, package_path
from ray.cluster_utils import Cluster

# Also for the processes that Ray starts.
find_library()
os.environ["PYTHONPATH"] = os.pathsep.join([*package_path(), str(ROOT / "python")])

import lance_tasks as lt  # noqa: E402
import lance_tasks.ray as ltr  # noqa: E402

SIDES = ("lance-tasks", "lance-ray")
WORKERS = 2


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        target: lance-ray's seconds over ours; 0: none.
        make: makes the dataset that is worked on, or the Ray Dataset that is written.
        check: raises where the outcome is not what it should be.
    """

    title: str
    target: float
    make: Callable[[Path, int], Any]
    ours: Callable[[Any, str], None]
    theirs: Callable[[Any, str], None]
    check: Callable[[str, int], None]


def rows(less: int) -> int:
    return 5_000_000 // less


def narrow(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ids = batch["id"]
    return {"id": ids, "a": ids * 0.5, "b": ids % 1000, "c": ids * 7 % 100_003}


def wide(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ids = batch["id"]
    random = np.random.default_rng(int(ids[0]))
    return {"id": ids, "a": ids * 0.5, "v": random.random((len(ids), 16), dtype="float32")}


def computed(function: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]):
    """Blocks that are computed while they are written."""
    return lambda folder, less: ray.data.range(rows(less), override_num_blocks=40).map_batches(
        function
    )


def stored(function: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]):
    """Blocks in the object store: what is measured is the write."""
    return lambda folder, less: computed(function)(folder, less).materialize()


def write_ours(ds: ray.data.Dataset, uri: str) -> None:
    # As many rows as lance-ray puts together.
    ltr.write(ds, uri, min_rows_per_file=1 << 20)


def write_theirs(ds: ray.data.Dataset, uri: str) -> None:
    lance_ray.write_lance(ds, uri)


def check_rows(uri: str, less: int) -> None:
    ids = lance.dataset(uri).to_table(columns=["id"])["id"].to_numpy()
    assert len(ids) == rows(less) and ids.sum() == len(ids) * (len(ids) - 1) // 2


def fragments(folder: Path, less: int) -> str:
    """200 fragments of 10,000 rows."""
    uri = str(folder / f"fragments-{less}.lance")
    if not Path(uri).exists():
        count = 2_000_000 // less
        ids = np.arange(count)
        table = pa.table({"id": ids, "a": ids * 0.5, "s": [f"name {i}" for i in range(count)]})
        lance.write_dataset(table, uri, max_rows_per_file=max(count // 200, 1))
    return uri


def compact_ours(uri: str, out: str) -> None:
    shutil.copytree(uri, out)
    with timed():
        spec = lt.Compact(out, target_rows_per_fragment=target_rows(uri))
        ltr.run(spec, num_workers=WORKERS, progress=False)


def compact_theirs(uri: str, out: str) -> None:
    shutil.copytree(uri, out)
    with timed():
        options = {"target_rows_per_fragment": target_rows(uri)}
        lance_ray.compact_files(out, compaction_options=options, num_workers=WORKERS)


def target_rows(uri: str) -> int:
    return lance.dataset(uri).count_rows() // 10


def check_compacted(uri: str, less: int) -> None:
    assert len(lance.dataset(uri).get_fragments()) <= 20
    assert lance.dataset(uri).count_rows() == 2_000_000 // less


def vectors(folder: Path, less: int) -> str:
    """A million rows with vectors of 64, in 10 fragments."""
    uri = str(folder / f"vectors-{less}.lance")
    if not Path(uri).exists():
        count = 1_000_000 // less
        random = np.random.default_rng(7)
        values = random.random(count * 64, dtype="float32")
        lists = pa.FixedSizeListArray.from_arrays(pa.array(values), 64)
        ids = random.permutation(count)
        lance.write_dataset(pa.table({"id": ids, "v": lists}), uri, max_rows_per_file=count // 10)
    return uri


def btree_ours(uri: str, out: str) -> None:
    shutil.copytree(uri, out)
    with timed():
        spec = lt.CreateIndex(out, column="id", index_type="BTREE", num_segments=WORKERS)
        ltr.run(spec, num_workers=WORKERS, progress=False)


def btree_theirs(uri: str, out: str) -> None:
    shutil.copytree(uri, out)
    with timed():
        lance_ray.create_scalar_index(out, column="id", index_type="BTREE", num_workers=WORKERS)


PQ = {"num_partitions": 256, "num_sub_vectors": 16}


def pq_ours(uri: str, out: str) -> None:
    shutil.copytree(uri, out)
    with timed():
        spec = lt.CreateIndex(out, column="v", index_type="IVF_PQ", num_segments=WORKERS, **PQ)
        ltr.run(spec, num_workers=WORKERS, progress=False)


def pq_theirs(uri: str, out: str) -> None:
    shutil.copytree(uri, out)
    with timed():
        lance_ray.create_index(out, column="v", index_type="IVF_PQ", num_workers=WORKERS, **PQ)


def check_indexed(uri: str, less: int) -> None:
    (index,) = lance.dataset(uri).describe_indices()
    assert index.num_rows_indexed == 1_000_000 // less


CASES = {
    "write": Case(
        "Write 5 M rows with vectors of 16", 1.3, stored(wide), write_ours, write_theirs, check_rows
    ),
    "write_computed": Case(
        "The same, computed meanwhile", 1.3, computed(wide), write_ours, write_theirs, check_rows
    ),
    "write_narrow": Case(
        "Write 5 M rows of four numbers", 0, stored(narrow), write_ours, write_theirs, check_rows
    ),
    "compact": Case(
        "Compact 200 fragments", 1.3, fragments, compact_ours, compact_theirs, check_compacted
    ),
    "btree": Case("BTREE", 1.3, vectors, btree_ours, btree_theirs, check_indexed),
    "ivf_pq": Case("IVF_PQ", 1.3, vectors, pq_ours, pq_theirs, check_indexed),
}

# What of a call is measured, where it begins with a copy of its input.
_timed: list[float] = []


@contextmanager
def timed():
    begin = time.perf_counter()
    yield
    _timed.append(time.perf_counter() - begin)


def measure(case: Case, given: Any, side: str, scratch: Path, less: int) -> dict[str, float]:
    out = str(Path(tempfile.mkdtemp(dir=scratch)) / "out.lance")
    work = case.ours if side == "lance-tasks" else case.theirs
    _timed.clear()
    begin = time.perf_counter()
    work(given, out)
    seconds = _timed[0] if _timed else time.perf_counter() - begin
    case.check(out, less)
    shutil.rmtree(Path(out).parent)
    return {"seconds": seconds}


def own_memory() -> dict[str, int]:
    """Bytes of this process: resident in all, and what no other process shares."""
    sizes = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        sizes[name] = int(value.split()[0]) * 1024
    return {"rss": sizes["Rss"], "own": sizes["Private_Dirty"] + sizes["Private_Clean"]}


@ray.remote
class BareWorker:
    """What Ray itself needs."""

    def work(self, _: object) -> dict[str, int]:
        import pyarrow  # noqa: F401  # as Ray does with the first result

        return own_memory()


@ray.remote
class TheirWorker:
    """As lance-ray's pool has them: a process that imports the package and does a fragment."""

    def work(self, uri: str) -> dict[str, int]:
        import lance
        import lance_ray  # noqa: F401

        (fragment, *_) = lance.dataset(uri).get_fragments()
        lance.fragment.LanceFragment.create(uri, fragment.to_table())
        return own_memory()


@ray.remote
class OurWorker:
    def work(self, task: bytes) -> dict[str, int]:
        import pyarrow  # noqa: F401

        import lance_tasks as lt

        lt.execute(lt.Task.from_bytes(task), executor=lt.Executor(1, 1 << 30))
        return own_memory()


def start(side: str, scratch: Path) -> dict[str, float]:
    """A new actor writes 1,000 rows of a dataset as new files: seconds, and the memory that it then
    has beyond an actor that does nothing."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    uri = str(folder / "d.lance")
    lance.write_dataset(pa.table({"id": range(1000)}), uri)
    job = lt.prepare(lt.Write(str(folder / "o.lance"), sources=[uri]))
    (task,) = lt.plan(job)
    bare = BareWorker.remote()
    base = ray.get(bare.work.remote(None))
    ray.kill(bare)
    time.sleep(1)
    begin = time.perf_counter()
    if side == "lance-tasks":
        actor = OurWorker.remote()
        memory = ray.get(actor.work.remote(task.to_bytes()))
    else:
        actor = TheirWorker.remote()
        memory = ray.get(actor.work.remote(uri))
    seconds = time.perf_counter() - begin
    ray.kill(actor)
    shutil.rmtree(folder)
    return {
        "seconds": seconds,
        "own": memory["own"] - base["own"],
        "rss": memory["rss"],
        "bare": base["rss"],
    }


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def in_turns(what: Callable[[str], dict[str, float]], runs: int) -> dict[str, dict[str, float]]:
    for side in SIDES:
        what(side)
    seen: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for turn in range(runs):
        for side in SIDES if turn % 2 == 0 else reversed(SIDES):
            seen[side].append(what(side))
    return {
        side: {key: median([one[key] for one in all_]) for key in all_[0]}
        for side, all_ in seen.items()
    }


def report(
    title: str, answers: dict[str, dict[str, float]], key: str, scale: str, target: float
) -> str:
    ours, theirs = (answers[side][key] for side in SIDES)
    ratio = theirs / ours if ours else float("nan")
    factor, unit, digits = {"s": (1.0, "s", 2), "MB": (1e-6, "MB", 0)}[scale]
    shown = (f"{value * factor:.{digits}f} {unit}" for value in (ours, theirs))
    verdict = f"{target:g}x | {'met' if ratio >= target else 'not met'}" if target else " | "
    line = f"| {title} | {' | '.join(shown)} | {ratio:.2f}x | {verdict} |"
    print(line, flush=True)
    return line


@contextmanager
def two_nodes(store: int):
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    node = {"num_cpus": 1, "object_store_memory": store}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        cluster.wait_for_nodes()
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--less", type=int, default=1, help="so many times less work")
    parser.add_argument("--only", action="append", choices=[*CASES, "start"])
    parser.add_argument("--data", type=Path, default=Path.home() / ".cache/lance-tasks/bench-ray")
    parser.add_argument(
        "--out", type=Path, help="of a full run: a section of benches/RESULTS.md, put in its place"
    )
    args = parser.parse_args()
    args.data.mkdir(parents=True, exist_ok=True)
    lines = [
        "| | lance-tasks | lance-ray | ratio | target | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    print("\n".join(lines), flush=True)
    with two_nodes(1 << 30), tempfile.TemporaryDirectory(dir=args.data) as scratch:
        for name, case in CASES.items():
            if args.only and name not in args.only:
                continue
            given = case.make(args.data, args.less)
            place = Path(scratch)
            answers = in_turns(
                lambda side, c=case, g=given, p=place: measure(c, g, side, p, args.less), args.runs
            )
            lines.append(report(case.title, answers, "seconds", "s", case.target))
        if not args.only or "start" in args.only:
            answers = in_turns(lambda side: start(side, Path(scratch)), args.runs)
            lines += [
                report("Worker start to first result", answers, "seconds", "s", 2),
                report("Memory of a worker beyond Ray's own", answers, "own", "MB", 2),
                report("Resident in all, shared pages as well", answers, "rss", "MB", 2),
                report("of that, a Ray worker that does nothing", answers, "bare", "MB", 0),
            ]
    versions = lt.versions()
    command = f"python benches/on_ray.py --runs {args.runs}"
    head = (
        f"`{command}`, {datetime.date.today()}: two simulated nodes of one CPU each, both sides in "
        f"turns on the same cluster, medians. lance-tasks {versions['lance_tasks']} (Lance "
        f"{versions['lance']}), lance-ray {importlib.metadata.version('lance-ray')}, ray "
        f"{ray.__version__}."
    )
    section = "\n".join(["## Ray, beside lance-ray", "", head, "", *lines, ""])
    if args.out:
        args.out.write_text(section)
    elif not args.only and args.less == 1:
        results = BENCHES / "RESULTS.md"
        before, _, after = results.read_text().partition("\n## Ray, beside lance-ray\n")
        rest = after.partition("\n## ")
        kept = rest[1] + rest[2]
        results.write_text(f"{before.rstrip()}\n\n{section}{kept}")


if __name__ == "__main__":
    main()
