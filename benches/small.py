# SPDX-License-Identifier: Apache-2.0
"""A thousand small tasks on a dataset of 5,000 fragments: what each costs beyond its work.

The work itself is what Lance takes for the same tasks where the dataset is open already; a dataset
of 20 fragments shows whether the size matters. A task touches two fragments of 100 rows. Everything
is done twice; the second time is warm: fragments' metadata are cached on both sides.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import inputs
from common import SIDES, Section, Settings, child, medians, ms, status
from common import median as middle

TASKS = 1_000
LARGE, SMALL = 5_000, 20
OPERATIONS = {"compact": "compact two fragments", "create_index": "BTREE over two fragments"}


def each(tasks: Sequence[object], work: Callable[[object], object]) -> list[float]:
    took = []
    for task in tasks:
        start = time.perf_counter()
        work(task)
        took.append(time.perf_counter() - start)
    return took


def thousand(planned: Sequence[object], count: int) -> list[object]:
    """The first tasks of a plan, again from the start where it has fewer."""
    return [planned[i % len(planned)] for i in range(count)]


def ours(operation: str, folder: str, count: int) -> dict[str, float]:
    """In a child: seconds per task, by dataset."""
    import lance_tasks as lt

    answer = {}
    for name in ("small", "large"):
        uri = Path(folder) / f"{name}.lance"
        pairs = len(list((uri / "data").iterdir())) // 2
        if operation == "compact":
            spec = lt.Compact(uri, target_rows_per_fragment=2 * inputs.TINY_ROWS)
        else:
            spec = lt.CreateIndex(uri, column="key", index_type="BTREE", num_segments=pairs)
        tasks = thousand(lt.plan(lt.prepare(spec)), count)
        answer[f"{name}, first time"] = middle(each(tasks, lt.execute))
        results: list[lt.Result] = []
        took = each(tasks, lambda task, into=results: into.append(lt.execute(task)))
        answer[name] = middle(took)
        answer[f"{name}, around"] = middle(
            [all_of_it - r.elapsed for all_of_it, r in zip(took, results, strict=True)]
        )
        start = time.perf_counter()
        failed = [r for r in lt.execute_all(tasks) if r.status != "ok"]
        answer[f"{name}, all"] = (time.perf_counter() - start) / count
        if failed:
            raise failed[0].error or RuntimeError("failed")
    return {**answer, "memory": status("VmHWM")}


def theirs(operation: str, folder: str, count: int) -> dict[str, float]:
    """In a child: seconds per task on a dataset opened once, and opened for each."""
    import lance
    from lance.optimize import Compaction

    answer = {}
    for name in ("small", "large"):
        uri = str(Path(folder) / f"{name}.lance")
        data = lance.dataset(uri)
        if operation == "compact":
            options = {"target_rows_per_fragment": 2 * inputs.TINY_ROWS}
            planned = list(Compaction.plan(data, options).tasks)

            def work(data, task):
                return task.execute(data)
        else:
            ids = [fragment.fragment_id for fragment in data.get_fragments()]
            planned = [ids[at : at + 2] for at in range(0, len(ids), 2)]

            def work(data, task):
                return data.create_index_uncommitted(
                    "key", "BTREE", name="key_idx", fragment_ids=task
                )

        tasks = thousand(planned, count)
        answer[f"{name}, first time"] = middle(each(tasks, lambda t, d=data, w=work: w(d, t)))
        answer[name] = middle(each(tasks, lambda t, d=data, w=work: w(d, t)))
        some = tasks[: max(count // 4, 1)]
        answer[f"{name}, opening"] = middle(
            each(some, lambda t, u=uri, w=work: w(lance.dataset(u), t))
        )
        answer[f"{name}, open"] = middle(each(some, lambda _, u=uri: lance.dataset(u)))
    return {**answer, "memory": status("VmHWM")}


def run(settings: Settings) -> Section:
    section = Section("A thousand small tasks")
    count = settings.scaled(TASKS, 10)
    fragments = max(settings.scaled(LARGE), SMALL)
    section.text(
        f"{count} tasks, one after the other, on datasets of {fragments} and of {SMALL} fragments "
        "of 100 rows, each task two fragments: seconds per task (medians). The work itself is what "
        "pylance takes for the same tasks on a dataset that it opened once. The small dataset has "
        "few tasks, which are repeated, so that all they read is cached."
    )
    rows = []
    for operation, title in OPERATIONS.items():
        answers: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for turn in range(settings.runs):
            for side in SIDES if turn % 2 else SIDES[::-1]:
                with settings.scratch() as scratch:
                    inputs.tiny_fragments(scratch / "large.lance", fragments)
                    inputs.tiny_fragments(scratch / "small.lance", SMALL)
                    function = "ours" if side == "lance-tasks" else "theirs"
                    answers[side].append(
                        child(
                            "small",
                            function,
                            operation=operation,
                            folder=str(scratch),
                            count=count,
                        )
                    )
        our, their = (medians(answers[side]) for side in SIDES)
        beyond = our["large"] - their["large"]
        section.target(
            f"{title}, beyond the work itself, {fragments} fragments",
            "1 ms",
            ms(beyond),
            beyond <= 1e-3,
        )
        for name, at in ((f"{SMALL} fragments", "small"), (f"{fragments} fragments", "large")):
            rows.append(
                [
                    f"{title}, {name}",
                    ms(our[at]),
                    ms(our[f"{at}, first time"]),
                    ms(our[f"{at}, around"]),
                    ms(our[f"{at}, all"]),
                    ms(their[f"{at}, opening"]),
                    ms(their[f"{at}, open"]),
                    ms(their[at]),
                    ms(our[at] - their[at]),
                    f"{their[f'{at}, opening'] / our[at]:.2f}",
                ]
            )
    section.table(
        [
            "Task",
            *("`execute`", "first time", "of it around the attempt", "`execute_all`, all threads"),
            *("pylance opening for each", "of it the opening", "pylance opened once"),
            *("beyond the work", "ratio"),
        ],
        rows,
    )
    return section
