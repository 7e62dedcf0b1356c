# SPDX-License-Identifier: Apache-2.0
"""`prepare`, `plan` and `commit` of thousands of tasks; executing them is not counted.

The tasks are executed once; then the commit is measured in processes of their own, each on the
dataset as it was: the versions that the one before made are removed.
"""

import json
import pickle
import sys
from pathlib import Path

import inputs
from common import Section, Settings, child, medians, seconds

SIZES = (2_500, 5_000, 10_000)
OPERATIONS = {"compact": "compaction", "create_index": "BTREE"}
# How the results come to the commit, or who commits.
WAYS = {"rows": "results as rows", "table": "as one Arrow table", "pylance": "pylance"}


def spec(operation: str, uri: Path, tasks: int):
    import lance_tasks as lt

    if operation == "compact":
        return lt.Compact(uri, target_rows_per_fragment=2 * inputs.TINY_ROWS)
    return lt.CreateIndex(uri, column="key", index_type="BTREE", num_segments=tasks)


def execute(operation: str, folder: str, tasks: int) -> float:
    """In a child: make the dataset, do the tasks, and keep job and results; seconds per task."""
    import time

    import lance_tasks as lt

    uri = Path(folder) / "data.lance"
    inputs.tiny_fragments(uri, tasks * (2 if operation == "compact" else 1))
    job = lt.prepare(spec(operation, uri, tasks))
    planned = lt.plan(job)
    if len(planned) != tasks:
        sys.exit(f"{operation}: {len(planned)} tasks, {tasks} were wanted")
    start = time.perf_counter()
    results = list(lt.execute_all(planned))
    took = time.perf_counter() - start
    if failed := [r.error for r in results if r.status != "ok"]:
        raise failed[0] or RuntimeError("failed")
    versions = {path.name: path.read_bytes() for path in (uri / "_versions").iterdir()}
    (Path(folder) / "done.pickle").write_bytes(pickle.dumps((job, results, versions)))
    return took / tasks


def restore(uri: Path, versions: dict[str, bytes]) -> None:
    for path in (uri / "_versions").iterdir():
        path.unlink()
    for name, content in versions.items():
        (uri / "_versions" / name).write_bytes(content)


def finish(operation: str, folder: str, tasks: int, way: str) -> dict[str, float]:
    """In a child: seconds of each verb, and what is there after."""
    import lance

    uri = Path(folder) / "data.lance"
    job, results, versions = pickle.loads((Path(folder) / "done.pickle").read_bytes())
    restore(uri, versions)
    verbs = pylance if way == "pylance" else ours
    took = verbs(operation, uri, tasks, job, results, way == "table")
    data = lance.dataset(str(uri))
    data_files = len(data.get_fragments())
    segments = sum(len(index.segments) for index in data.describe_indices())
    if (data_files if operation == "compact" else segments) != tasks:
        sys.exit(f"{operation} by {way}: {data_files} fragments, {segments} segments")
    return took


def ours(operation: str, uri: Path, tasks: int, job, results, as_table: bool) -> dict[str, float]:
    import lance_tasks as lt

    lt.Executor()
    lt.versions()
    if as_table:
        import pyarrow as pa

        results = pa.table(lt.results_table(results))
    new = None

    def prepare() -> None:
        nonlocal new
        new = lt.prepare(spec(operation, uri, tasks))

    return {
        "prepare": seconds(prepare),
        "plan": seconds(lambda: lt.plan(new)),
        "plan again": seconds(lambda: lt.plan(job, results)),
        "commit": seconds(lambda: lt.commit(job, results)),
    }


def pylance(operation: str, uri: Path, tasks: int, job, results, _: bool) -> dict[str, float]:
    import lance
    from lance.optimize import Compaction, RewriteResult

    if operation == "compact":
        data = None

        def plan() -> None:
            nonlocal data
            data = lance.dataset(str(uri))
            options = {"target_rows_per_fragment": 2 * inputs.TINY_ROWS}
            if len(Compaction.plan(data, options).tasks) != tasks:
                raise RuntimeError("another plan")

        rewrites = [RewriteResult.from_json(json.dumps(result.payload)) for result in results]
        return {"plan": seconds(plan), "commit": seconds(lambda: Compaction.commit(data, rewrites))}
    segments = index_segments(uri, results)
    data = None

    def open_it() -> None:
        nonlocal data
        data = lance.dataset(str(uri))

    return {
        "plan": seconds(open_it),
        "commit": seconds(lambda: data.commit_existing_index_segments("key_idx", "key", segments)),
    }


def index_segments(uri: Path, results):
    """Our segments as pylance's: one that it builds itself tells what all have in common."""
    import dataclasses

    import lance

    data = lance.dataset(str(uri))
    like = data.create_index_uncommitted("key", "BTREE", name="key_idx", fragment_ids=[0])
    segments = []
    for fragment, result in enumerate(sorted(results, key=lambda r: r.to_dict()["task_id"])):
        # Which of the fragments is whose does not matter: all have the same rows.
        segments.append(
            dataclasses.replace(like, uuid=result.payload["uuid"], fragment_ids={fragment})
        )
    return segments


def run(settings: Settings) -> Section:
    section = Section("`prepare`, `plan` and `commit` of thousands of tasks")
    section.text(
        "Seconds of each verb, from Python; executing is not counted. A compaction task has two "
        "fragments of 100 rows, an index task one. `plan again` is with every result there, as the "
        "loop asks before it commits, and is not part of the sum. pylance is handed what our tasks "
        "made; its plan is the opening and, for a compaction, `Compaction.plan`."
    )
    rows = []
    for operation, title in OPERATIONS.items():
        sums: dict[str, list[float]] = {way: [] for way in WAYS}
        for size in SIZES if settings.runs > 1 else SIZES[::2]:
            tasks = settings.scaled(size, 10)
            with settings.scratch() as scratch:
                arguments = {"operation": operation, "folder": str(scratch), "tasks": tasks}
                per_task = child("jobs", "execute", **arguments)
                for way, how in WAYS.items():
                    answers = [
                        child("jobs", "finish", **arguments, way=way) for _ in range(settings.runs)
                    ]
                    took = medians(answers)
                    verbs = ("prepare", "plan", "commit")
                    total = sum(took.get(verb, 0) for verb in verbs)
                    sums[way].append(total / tasks)
                    rows.append(
                        [
                            f"{tasks} {title} tasks, {how}",
                            *(
                                f"{took[verb]:.3f} s" if verb in took else ""
                                for verb in (*verbs, "plan again")
                            ),
                            f"{total:.3f} s",
                            f"{total / tasks * 1e6:.0f} us",
                            f"{per_task * 1e3:.2f} ms",
                        ]
                    )
        largest = settings.scaled(SIZES[-1], 10)
        for way in ("rows", "table"):
            total = sums[way][-1] * largest
            section.target(
                f"prepare + plan + commit of {largest} {title} tasks, {WAYS[way]}",
                "2 s",
                f"{total:.2f} s",
                total < 2,
            )
        growth = sums["rows"][-1] / sums["rows"][0]
        section.target(
            f"the same per task, {largest} tasks over {settings.scaled(SIZES[0], 10)}",
            "linear (at most 1.25x)",
            f"{growth:.2f}x",
            growth <= 1.25,
        )
    section.table(
        ["Job", "prepare", "plan", "commit", "plan again", "sum", "sum per task", "executing"],
        rows,
    )
    return section
