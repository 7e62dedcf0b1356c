# SPDX-License-Identifier: Apache-2.0
"""Processes that are killed: workers in mid-task, committers in mid-commit."""

import time
from pathlib import Path

import oracle
from pool import Child
from work import Run, Work


def wait(seconds: float, child: Child) -> float:
    """Wait so long, or until the child has answered; how long that was.

    Sleeps are too coarse for the last half of a millisecond.
    """
    began = time.monotonic()
    while (waited := time.monotonic() - began) < seconds and not child.answered():
        time.sleep(0.0002 if seconds - waited > 0.0005 else 0)
    return waited


def wait_within(run: Run, work: Work, verb: str, child: Child) -> None:
    """Wait for a random part of the time that the child's verb takes, sometimes longer."""
    known = run.pace.of(work, verb, child)
    waited = wait(known * run.rng.uniform(0, 1.2), child)
    if child.answered():
        run.pace.saw(work, verb, child, waited)


def wait_for_new(folder: str, known: set[str], child: Child) -> bool:
    """Wait until a file appears in a folder, or the child has answered; whether one appeared."""
    path = Path(folder)
    while True:
        if path.is_dir() and {entry.name for entry in path.iterdir()} - known:
            return True
        if child.answered():
            return False


def names(folder: str) -> set[str]:
    path = Path(folder)
    return {entry.name for entry in path.iterdir()} if path.is_dir() else set()


def kill_worker(run: Run, work: Work, task: dict[str, str]) -> str:
    """Kill an attempt at a random moment of the time that it takes, or when it has begun to write.

    The result of one that was quicker may be known, or lost with it.
    """
    child = run.pool.take(fresh=run.fresh())
    run.pace.measure(run, work.shape)
    folder = f"{work.uri}/{'_indices' if 'index' in work.shape.operation else 'data'}"
    known = names(folder)
    request = work.attempt(task)
    child.ask(**request)
    if run.rng.random() < 0.5:
        wait_within(run, work, "execute", child)
    else:
        wait_for_new(folder, known, child)
        wait(run.rng.choice([0, 0, 0.0005, 0.002, 0.01]), child)
    run.pool.kill(child)
    if Path(request["out"]).exists():
        if run.rng.random() < 0.5:
            work.results.append(request["out"])
        return "after its end"
    return "while writing" if names(folder) - known else "before it wrote"


def worker_killed_retried(run: Run) -> str:
    """An attempt is killed, once or more; another process does the task; the job is committed."""
    work = run.work()
    victim = run.rng.randrange(len(work.tasks))
    work.execute(work.tasks[:victim])
    how = [kill_worker(run, work, work.tasks[victim]) for _ in range(run.rng.randint(1, 3))]
    work.execute(work.tasks[victim:], fresh=run.fresh())
    work.finish()
    work.conclude_committed()
    return f"killed {how[-1]}, retried, committed"


def worker_killed_aborted(run: Run) -> str:
    """Workers are killed and the job is given up; sometimes it is prepared again afterwards."""
    work = run.work()
    victim = run.rng.randrange(len(work.tasks))
    work.execute(run.rng.sample(work.tasks, victim))
    how = [kill_worker(run, work, work.tasks[victim]) for _ in range(run.rng.randint(1, 3))]
    work.conclude_aborted()
    if run.rng.random() < 0.3:
        work.redo()
    return f"killed {how[-1]}, aborted"


def committed_version(work: Work) -> int:
    """The version that the job has made by now, by what stock pylance sees; 0: none."""
    if work.shape.operation == "compact":  # others only reserve fragment ids
        return max(oracle.changes(work.uri, work.before.latest), default=0)
    newest = max(oracle.manifests(work.uri), default=0)
    return newest if newest > work.before.latest else 0


def end_after_kill(run: Run, work: Work, answer: dict | None) -> str:
    """After the death of a committer: commit again, elsewhere, or give the job up."""
    made = committed_version(work)
    when = "committed" if made else "nothing committed"
    when += ", not answered" if answer is None else ", answered"
    if run.rng.random() < 0.7:
        again = work.conclude_committed([] if answer is None else [answer])
        found = "found" if again["already_committed"] else "made"
        return f"killed ({when}), {found} by the next"
    if made and work.parts == 1:
        # Whoever gives up does not know: what was committed stays, whole.
        work.abort(run.rng.sample(work.results, len(work.results) // 2))
        work.check_committed(made)
        return f"killed ({when}), abort kept it"
    work.conclude_aborted()
    return f"killed ({when}), aborted"


def committer_killed(run: Run) -> str:
    """Committers, one after the other, are killed at a random moment of the time that it takes."""
    work = run.work()
    work.complete()
    run.pace.measure(run, work.shape)
    for left in reversed(range(run.rng.choice([1, 1, 2, 3]))):
        child = run.pool.take(fresh=run.fresh())
        child.ask(**work.commit())
        wait_within(run, work, "commit", child)
        answer = run.pool.kill(child)
        if answer or not left:
            break
    return end_after_kill(run, work, answer)


def committer_killed_at_manifest(run: Run) -> str:
    """A committer is killed as soon as its manifest, or another file of its commit, is there."""
    work = run.work()
    work.complete()
    child = run.pool.take(fresh=run.fresh())
    watched = run.rng.choice(["_versions", "_versions", "_versions", "_transactions"])
    known = names(f"{work.uri}/{watched}")
    child.ask(**work.commit())
    wait_for_new(f"{work.uri}/{watched}", known, child)
    return end_after_kill(run, work, run.pool.kill(child))


def committer_stalled(run: Run) -> str:
    """A committer freezes in mid-commit, another one commits, and the first goes on."""
    work = run.work()
    work.complete()
    child = run.pool.take(fresh=run.fresh())
    run.pace.measure(run, work.shape)
    watched, known = f"{work.uri}/_transactions", names(f"{work.uri}/_transactions")
    child.ask(**work.commit())
    if run.rng.random() < 0.4:
        wait_within(run, work, "commit", child)
    else:
        wait_for_new(watched, known, child)
    child.stop()
    stalled = not child.answered()
    second = work.do(work.commit())
    child.go_on()
    first = child.answer()
    run.pool.give_back(child)
    work.conclude_committed([first, second])
    if not stalled:
        return "stalled after its answer"
    whose = "the first" if second["already_committed"] else "the second"
    return f"stalled, {whose} committed"


def aborter_killed(run: Run) -> str:
    """An abort, before or after the commit of the job, is killed; another process does it."""
    work = run.work()
    work.complete()
    run.pace.measure(run, work.shape)
    committed = run.rng.random() < 0.5
    answers = []
    if committed:  # and there are attempts for abort to remove
        first = list(work.results)
        work.execute(work.tasks)
        answers = [work.do(work.commit(first))]
    child = run.pool.take(fresh=run.fresh())
    child.ask("abort", job=work.job_file, results=work.results)
    wait(run.pace.of(work, "commit", child) * run.rng.uniform(0, 1), child)
    answer = run.pool.kill(child)
    when = "before its end" if answer is None else "after its end"
    if committed:
        work.conclude_committed(answers)
        return f"killed {when}, after the commit"
    if answer is None and run.rng.random() < 0.5:
        # It may have removed something: the job is committed whole, or refused.
        again = work.do(work.commit())
        if "error" not in again:
            work.conclude_committed([again])
            return f"killed {when}, had removed nothing, committed"
        assert again["code"] == "VERIFICATION", again
    work.conclude_aborted()
    return f"killed {when}, aborted by the next"
