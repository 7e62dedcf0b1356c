# SPDX-License-Identifier: Apache-2.0
"""What the children of `index.py` do: build, increment, judge, measure what is beneath.

The work is done twice, each time on a dataset as it was before: as a process begins, and as a
worker that stays goes on. What is left is then asked the same questions on both sides.
"""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import inputs
from common import seconds, status

ROWS, FRAGMENTS, APPENDED = 1_000_000, 16, 50_000
# Of the executor of a task whose memory is measured.
BUDGET = 512 << 20
QUERIES, NEIGHBOURS, PROBES = 200, 10, (1, 5, 20)
SIDES = {
    "lance-tasks": None,
    "lance-tasks, 2 segments": 2,
    "lance-tasks, 4 segments": 4,
    "pylance": None,
}


@dataclass(frozen=True)
class Case:
    """An index: `table` makes its rows, `parameters` are Lance's own, the same for both sides."""

    title: str
    table: Callable[..., Any]
    column: str
    index_type: str
    parameters: dict[str, int] = field(default_factory=dict)

    def spec(self, uri: str, segments: int | None):
        import lance_tasks as lt

        return lt.CreateIndex(
            uri,
            column=self.column,
            index_type=self.index_type,
            num_segments=segments,
            **self.parameters,
        )

    def pylance(self, uri: str) -> None:
        import lance

        data = lance.dataset(uri)
        if self.index_type.startswith("IVF"):
            data.create_index(self.column, self.index_type, **self.parameters)
        else:
            data.create_scalar_index(self.column, self.index_type)


CASES = {
    "index-btree": Case("BTREE, int64", inputs.numbers, "key", "BTREE"),
    "index-inverted": Case("INVERTED, 20 words a row", inputs.texts, "text", "INVERTED"),
    "index-ivf-pq": Case(
        "IVF_PQ, 128 float32, 16 sub vectors", inputs.clustered, "vector", "IVF_PQ",
        {"num_sub_vectors": 16},
    ),
}  # fmt: skip


def make(name: str, folder: Path, less: int) -> None:
    """The dataset, and for vectors queries with their true neighbours."""
    import lance

    case, rows = CASES[name], ROWS // less
    data = case.table(rows)
    lance.write_dataset(data, folder / "input.lance", max_rows_per_file=rows // FRAGMENTS)
    if case.column == "vector":
        remember_neighbours(folder)


def make_appended(name: str, source: Path, folder: Path, less: int) -> None:
    """The dataset with the index by pylance, and rows that came after it."""
    import lance

    case = CASES[name]
    uri = str(folder / "input.lance")
    inputs.copy_dataset(source / "input.lance", uri)
    case.pylance(uri)
    rows = case.table(APPENDED // less, start=ROWS // less)
    lance.write_dataset(rows, uri, mode="append")
    if case.column == "vector":
        remember_neighbours(folder)


def remember_neighbours(folder: Path) -> None:
    """Vectors of the same clusters that are not in the dataset, and their true neighbours in it."""
    import lance
    import numpy as np

    queries = inputs.values_of(inputs.clustered(QUERIES, start=2 * ROWS))
    best = np.full((QUERIES, NEIGHBOURS), np.inf, dtype=np.float32)
    ids = np.zeros((QUERIES, NEIGHBOURS), dtype=np.int64)
    for batch in lance.dataset(folder / "input.lance").to_batches(columns=["id", "vector"]):
        values = inputs.values_of(batch)
        distances = (values**2).sum(axis=1) - 2 * queries @ values.T
        distances = np.concatenate([best, distances], axis=1)
        numbers = np.broadcast_to(batch["id"].to_numpy(), (QUERIES, batch.num_rows))
        numbers = np.concatenate([ids, numbers], axis=1)
        nearest = np.argpartition(distances, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
        best = np.take_along_axis(distances, nearest, axis=1)
        ids = np.take_along_axis(numbers, nearest, axis=1)
    np.savez(folder / "queries.npz", queries=queries, neighbours=ids)


# The work, in children


def job(spec: object, executor: object = None) -> dict[str, float]:
    """Prepare to commit; seconds of each step."""
    import lance_tasks as lt

    took: dict[str, float] = {}
    made: list[lt.Job] = []
    took["prepare"] = seconds(lambda: made.append(lt.prepare(spec, executor=executor)))
    results: list[lt.Result] = []
    stage = 0
    while True:
        planned: list[lt.Task] = []
        took["plan"] = took.get("plan", 0) + seconds(
            lambda into=planned: into.extend(lt.plan(made[0], results, executor=executor))
        )
        if not planned:
            break
        took[f"stage {stage}"] = seconds(
            lambda tasks=planned: results.extend(lt.execute_all(tasks, executor=executor))
        )
        if failed := [r.error for r in results if r.status != "ok"]:
            raise failed[0] or RuntimeError("failed")
        stage += 1
    took["commit"] = seconds(lambda: lt.commit(made[0], results, executor=executor))
    return took


def again(source: Path, out: str, work: Callable[[], Any]) -> tuple[list[float], Any]:
    """The work twice, each time on a fresh copy; seconds of each, and what the second returned."""
    took, answer = [], None
    for _ in range(2):
        shutil.rmtree(out, ignore_errors=True)
        inputs.copy_dataset(source / "input.lance", out)
        os.sync()  # what earlier measurements left to be written is not this one's
        answers: list[Any] = []
        took.append(seconds(lambda into=answers: into.append(work())))
        (answer,) = answers
    return took, answer


def build(name: str, side: str, folder: str, out: str) -> dict[str, Any]:
    """In a child: the first build by one side, what it took, and what it answers."""
    case = CASES[name]
    if side == "pylance":
        import lance  # noqa: F401

        took, steps = again(Path(folder), out, lambda: case.pylance(out))
    else:
        import lance_tasks as lt

        lt.versions()
        took, steps = again(Path(folder), out, lambda: job(case.spec(out, SIDES[side])))
    return {"seconds": took, "steps": steps, "peak": status("VmHWM"), **judge(name, folder, out)}


def optimize(name: str, side: str, merge: int, folder: str, out: str) -> dict[str, Any]:
    """In a child: the increment by one side."""
    if side == "pylance":
        import lance

        def work() -> None:
            lance.dataset(out).optimize.optimize_indices(num_indices_to_merge=merge)
    else:
        import lance_tasks as lt

        lt.versions()

        def work() -> dict[str, float]:
            return job(lt.OptimizeIndex(out, num_indices_to_merge=merge))

    took, steps = again(Path(folder), out, work)
    return {"seconds": took, "steps": steps, "peak": status("VmHWM"), **judge(name, folder, out)}


def task(
    name: str, step: str, segments: int | None, folder: str, out: str
) -> dict[str, float] | None:
    """In a child: one task of a job in an executor with a budget, its peak memory in bytes.

    Step "train" prepares the job and does the task before the segments, where there is one; step
    "segment" does the first segment.
    """
    import lance_tasks as lt

    executor = lt.Executor(memory_budget=BUDGET)
    kept = Path(out + ".job")
    if step == "train":
        inputs.copy_dataset(Path(folder) / "input.lance", out)
        made = lt.prepare(CASES[name].spec(out, segments), executor=executor)
        kept.write_bytes(made.to_bytes())
        if not CASES[name].index_type.startswith("IVF"):
            return None
        tasks = lt.plan(made, [], executor=executor)
    else:
        made = lt.Job.from_bytes(kept.read_bytes())
        results = [lt.Result.from_bytes(path.read_bytes()) for path in done(out)]
        tasks = lt.plan(made, results, executor=executor)
    before = status("VmHWM")
    result = lt.execute(tasks[0], executor=executor)
    answer = {"before": before, "peak": status("VmHWM"), "reported": result.peak_memory}
    Path(f"{out}.result-{step}").write_bytes(result.to_bytes())
    return answer


def done(out: str) -> list[Path]:
    return sorted(Path(out).parent.glob(f"{Path(out).name}.result-*"))


# What is beneath it, in a child


def floors(name: str, folder: str, out: str) -> dict[str, float]:
    """Seconds of parts of the work, by pylance; the second time of each."""
    import lance

    case = CASES[name]
    inputs.copy_dataset(Path(folder) / "input.lance", out)
    data = lance.dataset(out)
    took: dict[str, float] = {}

    def scan() -> None:
        for _ in data.scanner(columns=[case.column]).to_reader():
            pass

    for _ in range(2):
        took["scan of the column"] = seconds(scan)
    if case.index_type == "BTREE":
        import numpy as np

        keys = data.to_table(columns=[case.column])[case.column].to_numpy()
        took["sort of the keys by numpy, 1 thread"] = seconds(lambda: np.sort(keys))
    if case.index_type == "IVF_PQ":
        took |= model_floors(case, data, out)
    took["2 processes, half of the fragments each"] = two_processes(name, out)
    return took


def model_floors(case: Case, data, out: str) -> dict[str, float]:
    """Training the models, and the rest of the build where they are given."""
    import lance
    from lance.indices import IndicesBuilder

    builder = IndicesBuilder(data, case.column)
    partitions = max(data.count_rows() // 8192, 1)
    models: dict[str, Any] = {}

    def train_ivf() -> None:
        models["ivf"] = builder.train_ivf(partitions)

    def train_pq() -> None:
        models["pq"] = builder.train_pq(
            models["ivf"],
            case.parameters["num_sub_vectors"],
            sample_rate=min(256, data.count_rows() // 256),
        )

    def rest() -> None:
        lance.dataset(out).create_index(
            case.column,
            case.index_type,
            num_partitions=partitions,
            ivf_centroids=models["ivf"].centroids,
            pq_codebook=models["pq"].codebook,
            **case.parameters,
        )

    return {
        f"training {partitions} centroids": seconds(train_ivf),
        "training the PQ codebook": seconds(train_pq),
        "the build with both given": seconds(rest),
    }


def two_processes(name: str, out: str) -> float:
    """What two cores give the same builder where it shares nothing, not even a model."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(2), context.Queue()
    halves = [
        context.Process(target=build_half, args=(name, half, out, barrier, times))
        for half in range(2)
    ]
    for process in halves:
        process.start()
    taken = [times.get(timeout=600) for _ in halves]
    for process in halves:
        process.join()
    return max(taken)


def build_half(name: str, half: int, out: str, barrier: Any, times: Any) -> None:
    import lance

    case = CASES[name]
    data = lance.dataset(out)
    ids = [fragment.fragment_id for fragment in data.get_fragments()]
    mine = ids[: len(ids) // 2] if half == 0 else ids[len(ids) // 2 :]
    taken = 0.0
    for i in range(2):
        barrier.wait(600)
        taken = seconds(
            lambda i=i: data.create_index_uncommitted(
                case.column,
                case.index_type,
                name=f"half-{half}-{i}",
                fragment_ids=mine,
                **case.parameters,
            )
        )
    barrier.wait(600)
    times.put(taken)


# What it answers, by stock pylance


def judge(name: str, folder: str, out: str) -> dict[str, Any]:
    """The index's coverage, and its answers to the same questions."""
    import lance

    data = lance.dataset(out)
    (index,) = data.describe_indices()
    statistics = data.stats.index_stats(index.name)
    if statistics["num_unindexed_rows"]:
        sys.exit(f"{name}: {statistics['num_unindexed_rows']} rows are in no segment")
    answer: dict[str, Any] = {"segments": len(index.segments)}
    if name == "index-ivf-pq":
        answer["recall"] = {str(n): recall(data, folder, n) for n in PROBES}
    elif name == "index-inverted":
        answer["hits"] = hits(data)
    else:
        answer["hits"] = keys(data)
    return answer


def recall(data, folder: str, probes: int) -> float:
    """The share of the true neighbours that are found, where they are known."""
    import numpy as np

    known = np.load(Path(folder) / "queries.npz")
    found = 0
    for query, truth in zip(known["queries"], known["neighbours"], strict=True):
        nearest = {"column": "vector", "q": query, "k": NEIGHBOURS, "nprobes": probes}
        near = data.to_table(columns=["id"], nearest=nearest)["id"].to_pylist()
        found += len(set(near) & set(truth.tolist()))
    return found / known["neighbours"].size


def hits(data) -> list[list[float]]:
    """For words from the frequent to the rare: how many rows, their ids' sum, their scores' sum."""
    from lance.query import BooleanQuery, MatchQuery, Occur

    words = inputs.vocabulary()
    queries: list[Any] = [MatchQuery(words[at], "text") for at in (100, 1_000, 10_000, 49_999)]
    queries.append(MatchQuery(f"{words[500]} {words[700]}", "text"))
    must = [(Occur.MUST, MatchQuery(words[at], "text")) for at in (3, 30)]
    queries.append(BooleanQuery(must))
    answers = []
    for query in queries:
        plan = data.scanner(full_text_query=query).explain_plan()
        if "FlatMatch" in plan:
            sys.exit(f"rows were scanned for {query}:\n{plan}")
        rows = data.to_table(
            columns=["id", "_score"], full_text_query=query, limit=data.count_rows()
        )
        ids, scores = rows["id"].to_numpy(), rows["_score"].to_numpy()
        answers.append([float(len(ids)), float(ids.sum()), float(scores.sum(dtype="float64"))])
    return answers


def keys(data) -> list[list[float]]:
    """For some keys and a range: how many rows."""
    chosen = data.take(range(0, data.count_rows(), data.count_rows() // 20), columns=["key"])
    listed = ", ".join(map(str, chosen["key"].to_pylist()))
    filters = [f"key in ({listed})", f"key < {2**62 // 1000}", "key = -1"]
    for where in filters:
        if "ScalarIndexQuery" not in data.scanner(filter=where).explain_plan():
            sys.exit(f"{where} does not use the index")
    return [[float(data.count_rows(filter=where))] for where in filters]


def same_hits(left: list[list[float]], right: list[list[float]]) -> bool:
    """Counts and ids equal, sums of scores to 1e-5."""
    return all(
        a[:2] == b[:2] and abs(a[-1] - b[-1]) <= 1e-5 * abs(b[-1])
        for a, b in zip(left, right, strict=True)
    )
