# SPDX-License-Identifier: Apache-2.0
"""Work done more than once: answers that are lost, attempts that repeat or are late, committers of
one job side by side."""

import time
from collections.abc import Sequence

from killed import wait_within
from work import Run

# Until all processes have got their request, so that they begin at one moment.
LEAD = 0.003


def together(run: Run, requests: Sequence[dict], imports: Sequence[str] = ()) -> list[dict]:
    """Requests to processes of their own that begin at once, give or take a random moment."""
    kinds = imports or [""] * len(requests)
    children = [run.pool.take(kind, fresh=not kind and run.fresh()) for kind in kinds]
    spread = run.rng.choice([0.0, 0.0, 0.002, 0.01])
    start = time.monotonic() + LEAD
    for child, request in zip(children, requests, strict=True):
        child.ask(**request, at=start + run.rng.uniform(0, spread))
    answers = [child.answer() for child in children]
    for child in children:
        run.pool.give_back(child)
    return answers


def answer_lost(run: Run) -> str:
    """The caller of a commit never gets its answer, or gives up waiting; it commits again, from
    several processes at once where it is impatient."""
    work = run.work()
    work.complete()
    child = run.pool.take(fresh=run.fresh())
    run.pace.measure(run, work.shape)
    kind = run.rng.choice(["dropped", "deadline"])
    heard = []
    if kind == "dropped":
        child.do(**work.commit())
    else:
        known = run.pace.of(work, "commit", child)
        child.ask(**work.commit(timeout=max(0.0005, known * run.rng.uniform(0, 0.7))))
        wait_within(run, work, "commit", child)  # learns where it is quicker
        first = child.answer()
        if "error" not in first:
            kind = "answered before the deadline"
            heard = [first]
        else:
            assert first["class"] == "retry_task", first
    run.pool.give_back(child)
    count = run.rng.randint(1, 3)
    answers = heard + together(run, [work.commit()] * count)
    work.conclude_committed(answers)
    found = all(answer["already_committed"] for answer in answers)
    how = "once" if count == 1 else "at once"
    return f"{kind}, then {how} again: " + ("found" if found else "made")


def duplicate_attempts(run: Run) -> str:
    """One task is attempted by two or three processes at once; any of the results will do."""
    work = run.work()
    for task in work.tasks:
        count = run.rng.choice([1, 2, 2, 3])
        answers = together(run, [work.attempt(task) for _ in range(count)])
        for answer in answers:
            assert "error" not in answer, f"one of {count} attempts at once failed: {answer}"
        work.results += [answer["out"] for answer in answers]
    run.rng.shuffle(work.results)
    if run.rng.random() < 0.25:
        work.conclude_aborted()
        return "aborted"
    work.finish()
    work.conclude_committed()
    return "committed"


def late_attempt(run: Run) -> str:
    """An attempt freezes, another one takes its place and the job is committed; it finishes then.

    What it has written is for `abort` to remove, and its result changes nothing any more.
    """
    work = run.work()
    victim = run.rng.choice(work.tasks)
    child = run.pool.take(fresh=run.fresh())
    run.pace.measure(run, work.shape)
    request = work.attempt(victim)
    child.ask(**request)
    wait_within(run, work, "execute", child)
    child.stop()
    work.complete()
    committed = work.do(work.commit())
    child.go_on()
    late = child.answer()
    run.pool.give_back(child)
    if late.get("class") == "retry_task":
        # The dataset that it was about to create came into being under its hands: the same again.
        late = work.do(work.attempt(victim))
    if late.get("class") == "replan" and work.earlier:
        # What the stage before had made for it is used up, and removed by the commit.
        work.conclude_committed([committed, work.do(work.commit())])
        return "too late for what the stage before had made"
    if "error" in late:
        # Its task reads what is still there; nothing of what the commit did is in its way.
        raise AssertionError(f"the late attempt failed: {late}")
    work.results.append(late["out"])
    run.rng.shuffle(work.results)
    work.conclude_committed([committed, work.do(work.commit([late["out"], *work.results]))])
    return "finished after the commit, removed by abort"


def two_committers(run: Run) -> str:
    """Processes commit one job at the same moment, with the same results or with others."""
    work = run.work()
    work.execute(work.tasks)
    later = work.finish()
    sets = [list(work.results)]
    if run.rng.random() < 0.5:
        sets.append([*work.earlier, *work.execute(work.tasks), *later])
    count = run.rng.choice([2, 2, 3])
    requests = [work.commit(sets[i % len(sets)]) for i in range(count)]
    answers = together(run, requests)
    work.conclude_committed(answers)
    return f"{count} committers, {'other' if len(sets) > 1 else 'the same'} attempts: one version"
