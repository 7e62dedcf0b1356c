# SPDX-License-Identifier: Apache-2.0
"""Jobs that meet other writers: other jobs, and stock pylance, in between or at the same moment.

Each side commits, or gets an error of the class that says what to do; the rows are right.
"""

from pathlib import Path

import lance
import oracle
import pyarrow as pa
import pyarrow.compute as pc
from repeated import together
from shapes import Shape
from work import Run, Work

import lance_tasks as lt


def side_by_side(run: Run, shapes: list[Shape]) -> list[Work]:
    """Jobs on one dataset, of the first shape's template, all prepared before any commits."""
    uri = str(run.folder / "dataset.lance")
    shapes[0].copy(uri)
    return [Work(run, shape, uri, f"work-{i}") for i, shape in enumerate(shapes)]


def check_end(run: Run, works: list[Work], states: list[pa.Table], final: pa.Table | None) -> None:
    """All jobs are given up or committed: nothing else may be left of them."""
    for work in works:
        work.abort(run.rng.sample(work.results, run.rng.randint(0, len(work.results))))
    before = works[0].before
    oracle.check_states(before, states, final)
    before.check_kept()
    oracle.check_no_stray(works[0].uri, strays_of_others)
    oracle.check_files_exist(works[0].uri)


def strays_of_others(path: Path) -> bool:
    """What pylance's own commits that had to be tried again have left: none of it is a job's."""
    if path.parent.name == "_transactions":
        return b"lance_tasks.job" not in path.read_bytes()
    return path.parent.name == "_deletions"


def classes(answers: list[dict], allowed: set[str]) -> None:
    for answer in answers:
        assert answer.get("class", "committed") in {"committed", *allowed}, answer


def check_repeated(works: list[Work], answers: list[dict]) -> list[dict]:
    """Whoever commits again is told the same: the version, or that it cannot be. What holds then.

    An index job that is to plan again may be lucky with what is still covered.
    """
    last = []
    for work, first in zip(works, answers, strict=True):
        again = work.do(work.commit())
        if "error" not in first:
            assert again.get("already_committed"), again
            assert again["version"] == first["version"], (first, again)
        elif "index" not in work.shape.operation:
            assert "error" in again, f"refused ({first}), then committed: {again}"
        last.append(again)
    return last


def create_races_create(run: Run) -> str:
    """Jobs that create one dataset, with rows of their own: one of them makes it."""
    count = run.rng.choice([2, 2, 3])
    # One way of naming manifests: Lance's put-if-absent only orders writers of one name.
    first = run.shape("create")
    same = [
        s
        for s in run.shapes.of("write")
        if s.name.rpartition("-")[0] == first.name.rpartition("-")[0]
    ]
    works = side_by_side(run, [first, *run.rng.choices(same, k=count - 1)])
    if run.rng.random() < 0.5:  # the tasks side by side, too
        for requests in zip(*[[w.attempt(t) for t in w.tasks[:3]] for w in works], strict=True):
            for work, answer in zip(works, together(run, requests), strict=True):
                assert "error" not in answer, answer
                work.results.append(answer["out"])
        for work in works:
            work.execute(work.tasks[3:])
    else:
        for work in works:
            work.complete()
    answers = together(run, [work.commit() for work in works])
    winners = [i for i, answer in enumerate(answers) if "error" not in answer]
    assert len(winners) == 1, answers
    for answer in answers:
        assert answer.get("code", "CONFLICT") in ("CONFLICT", "ALREADY_EXISTS"), answer
    check_repeated(works, answers)
    after = works[0].after
    check_end(run, works, [after], after)
    mine = {f["path"] for path in works[winners[0]].results for f in result_files(path)}
    used = oracle.version(works[0].uri, 1, oracle.manifests(works[0].uri)[1]).files
    assert {name for name in used if name.startswith("data/")} <= mine, "files of a loser"
    return f"{count} jobs: one created it, conflict for the others"


def result_files(path: str) -> list[dict]:
    """Which attempt's files a result names; only to tell the jobs apart."""
    return lt.Result.from_bytes(Path(path).read_bytes()).files


def append_races_overwrite(run: Run) -> str:
    """Either the append is there before the overwrite replaces all, or one of them is refused."""
    append, overwrite = run.shape("append"), run.shape("overwrite")
    discard = run.rng.random() < 0.4
    if discard:
        spec = overwrite.spec

        def discarding(uri: str) -> object:
            return lt.Write(**{**spec(uri).__dict__, "discard_concurrent": True})

        overwrite = Shape(**{**overwrite.__dict__, "spec": discarding})
    works = side_by_side(run, [append, overwrite])
    for work in works:
        work.complete()
    answers = together(run, [work.commit() for work in works])
    classes(answers, {"conflict"})
    appended, replaced = ["error" not in answer for answer in answers]
    check_repeated(works, answers)
    before = works[0].before.rows
    with_append = append.expected(before)
    after = overwrite.expected(before)
    if discard:
        assert replaced, answers
    else:
        assert appended != replaced, answers
    states = [before, *([with_append] if appended else []), *([after] if replaced else [])]
    check_end(run, works, states, after if replaced else with_append)
    ends = {(True, True): "both", (True, False): "append", (False, True): "overwrite"}
    discards = " (discards concurrent)" if discard else ""
    return f"committed: {ends[appended, replaced]}{discards}"


def appends_race(run: Run) -> str:
    """Every append gets a version of its own; pylance appends, too."""
    count = run.rng.randint(2, 4)
    with_pylance = run.rng.random() < 0.4
    first = run.shape("append")
    same = [s for s in run.shapes.of("write") if s.template == first.template]
    works = side_by_side(
        run, [first, *run.rng.choices([s for s in same if s.mode == "append"], k=count - 1)]
    )
    for work in works:
        work.complete()
    requests, kinds = [work.commit() for work in works], [""] * count
    if with_pylance:
        requests.append(pylance_append(run, works[0].uri))
        kinds.append("lance")
    answers = together(run, requests, kinds)
    assert all("error" not in answer for answer in answers), answers
    versions = sorted(answer["version"] for answer in answers[:count])
    assert len(set(versions)) == count, answers
    check_repeated(works, answers[:count])
    states = [works[0].before.rows]
    # Both sides' rows in every order: what counts is how many of each are there.
    few, added = run.shapes.sources.few, run.shapes.sources.rows
    for extra in range(2 if with_pylance else 1):
        for times in range(count + 1):
            parts = [works[0].before.rows, *[added] * times, *[few] * extra]
            states.append(oracle.in_order(pa.concat_tables(parts)))
    check_end(run, works, states, states[-1])
    return f"{count} jobs{' and pylance' if with_pylance else ''}: all committed"


def pylance_append(run: Run, uri: str) -> dict:
    return {"verb": "append", "uri": uri, "data": run.shapes.sources.few_path}


def at_random_order(run: Run, work: Work, other: dict, imports: str) -> tuple[dict, dict, str]:
    """Another writer in between (before the tasks, or before the commit), or at the same moment."""
    when = run.rng.choice(["before the tasks", "before the commit", "at once", "at once"])
    if when == "before the tasks":
        theirs = run.pool.do(**other, imports=imports)
        work.complete()
        return work.do(work.commit()), theirs, when
    work.complete()
    if when == "before the commit":
        theirs = run.pool.do(**other, imports=imports)
        return work.do(work.commit()), theirs, when
    ours, theirs = together(run, [work.commit(), other], ["", imports])
    return ours, theirs, when


def finish_race(run: Run, work: Work, ours: dict, after: pa.Table, when: str) -> str:
    """Judge; and a job that lost is prepared again, and goes through.

    `after` are the rows as the other writer leaves them, where it is alone.
    """
    (last,) = check_repeated([work], [ours])
    before = work.before.rows
    both = work.shape.expected(after)
    states = [before, after, *([work.shape.expected(before), both] if "error" not in last else [])]
    check_end(run, [work], states, after if "error" in last else both)
    if "error" not in last:
        check_indices(run, work.uri)
        refused = "refused, then " if "error" in ours else ""
        return f"{when}: {refused}committed{covers_nothing(work)}"
    work.strays = strays_of_others
    work.redo()
    return f"{when}: {ours['code']}, done again"


def covers_nothing(work: Work) -> str:
    """Whether an index was committed of which no fragment is left."""
    if work.shape.operation != "create_index":
        return ""
    present = {fragment.fragment_id for fragment in lance.dataset(work.uri).get_fragments()}
    covered = [oracle.coverage(work.uri, index.name)[1] for index in work.shape.indices]
    return "" if all(ids & present for ids in covered) else ", covers nothing"


def beside_others(run: Run) -> Work:
    """A job that other writers' changes may go with."""
    return run.work("append") if run.operation == "write" else run.work()


def without(rows: pa.Table, low: int, high: int) -> pa.Table:
    key = rows["id"]
    gone = pc.and_(pc.greater_equal(key, low), pc.less(key, high))
    return oracle.in_order(rows.filter(pc.invert(gone)))


def meets_delete(run: Run) -> str:
    """pylance deletes rows, of one fragment or across several, a whole fragment sometimes."""
    work = beside_others(run)
    ids = work.before.rows["id"]
    low = ids[run.rng.randrange(len(ids) // 2)].as_py()
    high = low + run.rng.choice([1, 10, 300, len(ids) // 4])
    other = {"verb": "delete", "uri": work.uri, "where": f"id >= {low} and id < {high}"}
    ours, theirs, when = at_random_order(run, work, other, "lance")
    assert "error" not in theirs, theirs
    classes([ours], set() if run.operation == "write" else {"replan"})
    after = without(work.before.rows, low, high)
    return f"delete {finish_race(run, work, ours, after, when)}"


def meets_append(run: Run) -> str:
    """pylance, or an append job, adds rows: both go through."""
    work = run.work()
    few = run.shapes.sources.few
    ours, theirs, when = at_random_order(run, work, pylance_append(run, work.uri), "lance")
    assert "error" not in theirs, theirs
    assert "error" not in ours, ours
    after = oracle.in_order(pa.concat_tables([work.before.rows, few]))
    return f"append {finish_race(run, work, ours, after, when)}"


def compaction_beside(run: Run, work: Work) -> Work:
    """A compaction job on the same dataset, its tasks done."""
    names = ["compact-plain", "compact-batches"]
    if "stable" not in work.shape.name:  # where Lance refuses it
        names.append("compact-deferred")
    name = run.rng.choice(names)
    (shape,) = [s for s in run.shapes.of("compact") if s.name == name]
    other = Work(run, shape, work.uri, "compaction")
    other.complete()
    return other


def meets_compaction(run: Run) -> str:
    """A compaction job on the same fragments: one of the two may have to plan again."""
    work = beside_others(run)
    other = compaction_beside(run, work)
    ours, theirs, when = at_random_order(run, work, other.commit(), "")
    classes([ours, theirs], set() if run.operation == "write" else {"replan"})
    if when != "at once":
        assert "error" not in theirs, theirs
    check_repeated([other], [theirs])
    other.abort(other.results)
    end = finish_race(run, work, ours, work.before.rows, when)
    return f"compaction ({'commits' if 'error' not in theirs else theirs['code']}) {end}"


def check_indices(run: Run, uri: str) -> None:
    """Whatever the indices still cover, queries answer as scans do."""
    dataset = lance.dataset(uri)
    present = {fragment.fragment_id for fragment in dataset.get_fragments()}
    for index in dataset.describe_indices():
        if index.name.startswith("__lance"):
            continue
        _, covered = oracle.coverage(uri, index.name)
        if covered & present:
            oracle.check_index(uri, index.name, index.field_names[0], run.rng)
