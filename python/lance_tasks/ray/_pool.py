# SPDX-License-Identifier: Apache-2.0
"""Workers, and what each of them has to do: dispatch, retry, replacement, second attempts."""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import time
from collections import deque

import ray
import ray.exceptions as rx

from lance_tasks.errors import Error, from_code

from ._errors import WorkerLostError, WorkerStartError
from ._worker import Storage, Worker, check_versions, memory_budget, versions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

    from ._progress import Bar
    from ._retry import Limits
    from ._timeline import Timeline

log = logging.getLogger("lance_tasks.ray")

# Where tasks take less than so many seconds, one more waits on each worker for its turn: the way to
# the driver and back would count. Elsewhere the next one goes to whoever is free first.
_BRIEF = 0.5
# Workers that die before they are ready, in a row, until the job is given up.
_BAD_STARTS = 3
_TICK = 0.25
_PAUSE_MAX = 30.0
# Seconds for cancelled attempts to remove what they wrote; their workers are killed then, and the
# job's abort does it.
_CANCEL_TIME = 5.0
_WAITING_TIME = 30.0
# How much longer than the median of those that are done a task takes before it is attempted again
# beside itself, and at least so many seconds. No fewer must be done than are under way.
_STRAGGLER = 2.0
_STRAGGLER_MIN = 1.0
# How many of the last tasks say how long one takes.
_RECENT = 256

_attempt_names = itertools.count()


def _resources() -> dict[str, float]:
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found


class Work:
    """A task on its way.

    Attributes:
        index: its place among those of the stage.
        task: the descriptor.
        data: of an open job: gives the partition's blocks, as references or as they are.
    """

    __slots__ = ("attempts", "data", "deaths", "done", "failures", "index", "refs", "task")

    def __init__(
        self, index: int, task: bytes, data: Callable[[], tuple[Any, ...]] | None = None
    ) -> None:
        self.index = index
        self.task = task
        self.data = data
        self.refs: tuple[Any, ...] | None = None
        self.attempts = 0
        self.failures = 0
        self.deaths = 0
        self.done = False


class _Attempt:
    __slots__ = ("cancelled", "charged", "member", "name", "started", "work")

    def __init__(self, work: Work, member: _Member) -> None:
        self.name = str(next(_attempt_names))
        self.work = work
        self.member = member
        self.started = time.time()
        self.cancelled = False
        # It was being executed, not only waiting, when its worker was lost.
        self.charged = False


class _Member:
    """A worker: its actor, and what it was given to do."""

    def __init__(self, number: int, actor: Any) -> None:
        self.number = number
        self.actor = actor
        self.node = ""
        self.host = ""
        self.load = 0
        self.dead = False
        # Bad starts that there had been when it was started.
        self.bad_starts = 0

    @property
    def name(self) -> str:
        return f"worker {self.number}"


class Pool:
    """Actors that execute tasks.

    Args:
        size: how many; None: as many as the cluster has CPUs for.
        remote_args: Ray's options of the actors.
        storage: storage options for the workers.
        limits: also of the further attempts per task, for failures and for deaths each.
        speculate: attempt stragglers a second time.
    """

    def __init__(
        self,
        size: int | None,
        remote_args: Mapping[str, Any] | None,
        storage: Storage,
        limits: Limits,
        speculate: bool,
        bar: Bar,
        timeline: Timeline | None,
    ) -> None:
        args = {"num_cpus": 1, "scheduling_strategy": "SPREAD", **(remote_args or {})}
        cpus = float(args["num_cpus"] or 0)
        self._threads = max(1, int(cpus))
        # Actors are replaced here, where it is known what they had to do.
        args |= {"max_restarts": 0, "max_task_retries": 0}
        args["max_concurrency"] = self._threads + 3
        self._actor = ray.remote(Worker).options(**args)
        self._budget = memory_budget(args.get("memory"), cpus)
        self._cpus = max(cpus, 0.25)
        self._size = size or max(1, int(_resources().get("CPU", 1) / self._cpus))
        self._awaited: list[Any] = []
        self._storage = storage
        self._versions = versions()
        self._limits = limits
        self._speculate = speculate
        self._bar = bar
        self._timeline = timeline

        self._numbers = itertools.count()
        self._ready: list[_Member] = []
        self._starting: dict[Any, _Member] = {}
        self._bad_starts = 0
        self._waiting_since: float | None = None
        self._running: dict[Any, _Attempt] = {}
        self._queue: deque[Work] = deque()
        self._later: list[tuple[float, int, Work]] = []
        self._order = itertools.count()
        self._durations: deque[float] = deque(maxlen=_RECENT)
        # Attempts that ended otherwise than with a result that is used may have left files.
        self.stray = False

    def leave_room(self, spare: float, references: list[Any]) -> None:
        """Leave CPUs to others, and start no worker before objects are there."""
        self._size = max(1, int(self._size - spare / self._cpus))
        self._awaited = references

    # The tasks

    def run(
        self,
        works: Iterable[Work],
        give_up: Callable[[Work, Error], None],
        count: int | None = None,
    ) -> Iterator[tuple[Work, bytes | None, dict[str, Any]]]:
        """Do the works, and give each result as it comes, also of attempts that failed.

        Works are taken from the iterable as there is room for them.

        Args:
            give_up: called with a work that failed for good; may raise, which ends all.
            count: how many works there are, if that is known.
        """
        source = iter(works)
        self._durations.clear()
        self._limits.wait(self._awaited)
        self._awaited = []
        self._want(min(self._size, count) if count is not None else self._size)
        more = True
        while True:
            self._limits.check()
            more = self._dispatch(source, more)
            under_way = [attempt.work for attempt in self._running.values()]
            waiting = [*self._queue, *(later[2] for later in self._later)]
            if not more and all(work.done for work in [*under_way, *waiting]):
                # What is still running has lost to another attempt.
                return
            for ref in self._wait():
                if ref in self._starting:
                    self._started(ref)
                elif ref in self._running:
                    yield from self._ended(ref, give_up)
            if self._speculate and not more and not self._queue:
                self._second_attempts()
            self._bar.update()

    def _dispatch(self, source: Iterator[Work], more: bool) -> bool:
        """Give workers what they have room for; is there more?"""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._queue.append(heapq.heappop(self._later)[2])
        while member := self._free():
            work = self._queue.popleft() if self._queue else next(source, None) if more else None
            if work is None:
                return False
            if not work.done:
                self._start(work, member)
        return more

    def _free(self) -> _Member | None:
        """The worker with the least to do, if it can do more."""
        member = min(self._ready, key=lambda m: m.load, default=None)
        recent = self._durations
        room = self._threads + (1 if recent and sum(recent) < _BRIEF * len(recent) else 0)
        return member if member and member.load < room else None

    def _start(self, work: Work, member: _Member) -> None:
        if work.refs is None:
            given = work.data() if work.data else ()
            # In the object store only while it is needed.
            work.refs = tuple(b if isinstance(b, ray.ObjectRef) else ray.put(b) for b in given)
        attempt = _Attempt(work, member)
        ref = member.actor.execute.remote(attempt.name, work.task, *work.refs)
        self._running[ref] = attempt
        member.load += 1
        work.attempts += 1
        if work.attempts > 1:
            self._bar.counts.retries += 1

    def _wait(self) -> list[Any]:
        refs = [*self._starting, *self._running]
        pause = _TICK
        if self._later:
            pause = min(pause, max(self._later[0][0] - time.monotonic(), 0.0))
        if not refs:
            time.sleep(pause)
            return []
        done, rest = ray.wait(refs, num_returns=1, timeout=pause)
        if done and rest:
            done += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        self._look_for_workers()
        return list(done)

    def _ended(
        self, ref: Any, give_up: Callable[[Work, Error], None]
    ) -> Iterator[tuple[Work, bytes | None, dict[str, Any]]]:
        attempt = self._running.pop(ref)
        attempt.member.load -= 1
        work = attempt.work
        try:
            result, facts = ray.get(ref)
        except rx.ObjectLostError as e:
            # Of its data, or its result. What this driver has put is put again.
            self.stray = True
            self._note(attempt, "failed")
            if work.done:
                return
            work.refs = None
            self._bar.counts.failed += 1
            what = "data" if isinstance(e, rx.RayTaskError) else "result"
            lost = f"the {what} of task {work.index}: lost with a node ({type(e).__name__})"
            self._failed(work, {"code": "IO", "class": "retry_task", "message": lost}, give_up)
            return
        except rx.RayTaskError as e:
            self.stray = True
            self._note(attempt, "failed")
            if work.done:
                return
            # Of the functions that give the data, say.
            raise e.as_instanceof_cause() from None  # type: ignore[no-untyped-call]
        except rx.RayError as e:
            self._lost(attempt, e, give_up)
            return
        if facts["ok"] and not work.done:
            work.done, work.refs = True, None
            self._durations.append(facts["elapsed"])
            self._note(attempt, "again" if work.attempts > 1 else "ok", facts)
            self._bar.counts.done += 1
            self._bar.counts.rows += facts["rows"]
            self._bar.counts.bytes += facts["bytes"]
            self._cancel([a for a in self._running.values() if a.work is work])
            yield work, result, facts
            return
        if work.done or attempt.cancelled:
            # Another attempt was faster.
            self.stray = True
            self._note(attempt, "cancelled", facts)
            return
        # It has removed its files, if the store let it.
        self.stray = True
        self._note(attempt, "failed", facts)
        self._bar.counts.failed += 1
        yield work, result, facts
        self._failed(work, facts["error"], give_up)

    def _failed(
        self, work: Work, described: dict[str, Any], give_up: Callable[[Work, Error], None]
    ) -> None:
        error = from_code(described["code"], described["message"], described["class"])
        work.failures += 1
        if error.retry_class == "retry_task" and work.failures <= self._limits.max_retries:
            log.info("task %d failed and is tried again: %s", work.index, error.code)
            self._again(work, work.failures)
        elif not any(a.work is work for a in self._running.values()):
            work.done, work.refs = True, None
            give_up(work, error)

    def _lost(
        self, attempt: _Attempt, error: BaseException, give_up: Callable[[Work, Error], None]
    ) -> None:
        """The worker is dead, or cannot be reached any more."""
        work, member = attempt.work, attempt.member
        self.stray = True
        if not member.dead:
            held = [attempt, *(a for a in self._running.values() if a.member is member)]
            for other in sorted(held, key=lambda a: a.started)[: self._threads]:
                other.charged = True
        self._bury(member, error)
        self._note(attempt, "lost")
        if work.done or attempt.cancelled:
            return
        self._bar.counts.failed += 1
        work.deaths += attempt.charged
        if work.deaths <= self._limits.max_retries:
            self._queue.appendleft(work)
        elif not any(a.work is work for a in self._running.values()):
            work.done, work.refs = True, None
            text = f"task {work.index}: {work.deaths} workers were lost while they had it, the last"
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            give_up(work, WorkerLostError(f"{text} on {member.host}: {why}"))

    def _again(self, work: Work, failures: int) -> None:
        pause = min(0.25 * 2**failures, _PAUSE_MAX) * random.uniform(0.75, 1.25)
        heapq.heappush(self._later, (time.monotonic() + pause, next(self._order), work))

    def _second_attempts(self) -> None:
        """Attempt stragglers beside themselves, where workers have nothing to do."""
        if not self._durations or len(self._durations) < min(len(self._running), _RECENT):
            return
        median = sorted(self._durations)[len(self._durations) // 2]
        limit = max(median * _STRAGGLER, _STRAGGLER_MIN)
        now = time.time()
        running = list(self._running.values())
        for attempt in sorted(running, key=lambda a: a.started):
            work = attempt.work
            if work.done or now - attempt.started < limit:
                continue
            if sum(other.work is work for other in running) > 1:
                continue
            idle = [m for m in self._ready if m.load < self._threads and m is not attempt.member]
            if not idle:
                return
            # Rather on another node.
            member = min(idle, key=lambda m: (m.node == attempt.member.node, m.load))
            self._start(work, member)
            running = list(self._running.values())

    def _cancel(self, attempts: list[_Attempt]) -> None:
        for attempt in attempts:
            attempt.cancelled = True
            self.stray = True
            attempt.member.actor.cancel.remote(attempt.name)

    def _note(self, attempt: _Attempt, kind: str, facts: Mapping[str, Any] | None = None) -> None:
        if self._timeline is None:
            return
        facts = facts or {}
        end = time.time()
        start = attempt.started
        if "started" in facts:
            # As the worker measured it: it may have waited for its turn.
            start, end = facts["started"], facts["started"] + facts["elapsed"]
        error = facts.get("error")
        self._timeline.add(
            node=attempt.member.host + " " + attempt.member.node[:6],
            worker=attempt.member.name,
            task=f"task {attempt.work.index}",
            kind=kind,
            start=start,
            end=end,
            attempt=attempt.work.attempts,
            rows=facts.get("rows"),
            bytes=facts.get("bytes"),
            error=error["code"] if error else None,
        )

    # The workers

    def _want(self, count: int) -> None:
        """Have so many workers, started or starting."""
        for _ in range(count - len(self._ready) - len(self._starting)):
            member = _Member(next(self._numbers), self._actor.remote(self._threads, self._budget))
            member.bad_starts = self._bad_starts
            # An argument of a method, unlike one of the constructor, is nowhere kept by Ray.
            self._starting[member.actor.hello.remote(self._storage)] = member

    def _started(self, ref: Any) -> None:
        member = self._starting.pop(ref)
        try:
            facts = ray.get(ref)
        except rx.RayTaskError as e:
            ray.kill(member.actor)
            raise self._worker_error(e, member) from None
        except rx.RayError as e:
            # Those of one node that went away count once.
            if member.bad_starts == self._bad_starts:
                self._bad_starts += 1
            if self._bad_starts >= _BAD_STARTS or isinstance(e, rx.RuntimeEnvSetupError):
                raise WorkerStartError(f"workers die before they are ready: {e}") from None
            self._want(len(self._ready) + len(self._starting) + 1)
            return
        self._bad_starts = 0
        where = f"on {facts['host']} (node {facts['node'][:12]}, pid {facts['pid']})"
        try:
            check_versions(facts["versions"], self._versions, where)
        except Error:
            ray.kill(member.actor)
            raise
        member.node, member.host = facts["node"], facts["host"]
        self._ready.append(member)

    def _bury(self, member: _Member, error: BaseException) -> None:
        if member.dead:
            return
        member.dead = True
        log.warning("%s on %s is lost (%s)", member.name, member.host, type(error).__name__)
        self._bar.say(f"{member.name} on {member.host} is lost; another one is started")
        self._ready.remove(member)
        # It may be that it can only not be reached: nothing more may come from it.
        ray.kill(member.actor)
        self._want(len(self._ready) + len(self._starting) + 1)

    def _look_for_workers(self) -> None:
        """Say so where there are none."""
        if self._ready or not self._starting:
            self._waiting_since = None
            return
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
        elif now - self._waiting_since > _WAITING_TIME:
            self._waiting_since = now
            log.warning("no worker could be started yet: is there room in the cluster?")

    def _worker_error(self, error: rx.RayTaskError, member: _Member) -> Exception:
        """What went wrong in a worker otherwise than by a task's own error."""
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, Error):
            return cause
        where = f"{member.name}{f' on {member.host}' if member.host else ''}"
        return WorkerStartError(f"{where}: {type(cause).__name__}: {cause}")

    def close(self) -> None:
        """Cancel what is running, give it time to remove what it wrote, and end the workers."""
        running = dict(self._running)
        refs = list(running)
        try:
            if running:
                self.stray = True
                for attempt in running.values():
                    if not (attempt.member.dead or attempt.cancelled):
                        attempt.member.actor.cancel.remote(attempt.name)
                ray.wait(refs, num_returns=len(refs), timeout=_CANCEL_TIME)
        finally:
            # Also where somebody cannot wait.
            for member in [*self._ready, *self._starting.values()]:
                ray.kill(member.actor)
            self._running, self._ready, self._starting = {}, [], {}
            if running:
                # Killed ones must be gone before somebody looks for what they left.
                ray.wait(refs, num_returns=len(refs), timeout=_CANCEL_TIME)
            for attempt in running.values():
                self._note(attempt, "cancelled")
