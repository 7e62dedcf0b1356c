# SPDX-License-Identifier: Apache-2.0
"""One job under fault: its tasks and results as files, how it is brought to an end and judged."""

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import oracle
import pyarrow as pa
from pool import Child, Pool
from shapes import Shape, Shapes

import lance_tasks as lt


@dataclass
class Run:
    """What one fault has at hand.

    Attributes:
        rng: every choice comes from it.
        folder: an empty folder of the fault's own.
        operation: "write", "compact" or "create_index".
    """

    rng: random.Random
    folder: Path
    operation: str
    pool: Pool
    shapes: Shapes
    pace: "Pace"

    def shape(self, *modes: str) -> Shape:
        """One of the operation's shapes, of these write modes if any are named."""
        shapes = self.shapes.of(self.operation)
        return self.rng.choice([s for s in shapes if not modes or s.mode in modes])

    def work(self, *modes: str, uri: str = "", name: str = "work") -> "Work":
        return Work(self, self.shape(*modes), uri, name)

    def fresh(self) -> bool:
        """Is the next process to be one that has done nothing yet?"""
        return self.rng.random() < 0.25


class Work:
    """A prepared job, with its tasks, and the results that its orchestrator knows."""

    def __init__(self, run: Run, shape: Shape, uri: str = "", name: str = "work") -> None:
        self.run, self.shape = run, shape
        self.folder = run.folder / name
        (self.folder / "results").mkdir(parents=True)
        self.uri = uri or str(run.folder / "dataset.lance")
        if not uri:
            shape.copy(self.uri)
        self.before = oracle.Snapshot(self.uri)
        self.results: list[str] = []
        self.attempts = 0
        # Files that may stay although no version refers to them, where others write as well.
        self.strays: oracle.Stray | None = None
        self.prepare()

    def prepare(self) -> None:
        """Prepare the job, anew where it was before, and plan its tasks."""
        streams = self.shape.streams
        schema = self.run.shapes.sources.rows.schema if streams else None
        self.job = lt.prepare(self.shape.spec(self.uri), schema=schema)
        self.job_file = str(self.folder / f"job-{self.job.id}")
        Path(self.job_file).write_bytes(self.job.to_bytes())
        if streams:
            planned = [(self.job.task(name), data) for name, data in streams.items()]
        else:
            planned = [(task, None) for task in lt.plan(self.job)]
        self.tasks: list[dict[str, str]] = []
        for number, (task, data) in enumerate(planned):
            path = self.folder / f"task-{self.job.id}-{number}"
            path.write_bytes(task.to_bytes())
            self.tasks.append({"task": str(path)} | ({"data": data} if data else {}))

    @property
    def after(self) -> pa.Table:
        """The rows once the job is committed on what was there before."""
        return self.shape.expected(self.before.rows)

    @property
    def parts(self) -> int:
        """How many commits the job may take at most."""
        return len(self.tasks) if "batches" in self.shape.name else 1

    # Verbs in processes

    def attempt(self, task: dict[str, str]) -> dict:
        """The request for one more attempt of a task; its result goes to `out`."""
        self.attempts += 1
        return {"verb": "execute", **task, "out": str(self.folder / "results" / f"{self.attempts}")}

    def commit(self, results: Iterable[str] | None = None, **options: object) -> dict:
        """The request for a commit of these results (default: all known)."""
        given = list(self.results if results is None else results)
        return {"verb": "commit", "job": self.job_file, "results": given, **options}

    def execute(self, tasks: Iterable[dict[str, str]], fresh: bool = False) -> list[str]:
        """Attempt tasks where nothing goes wrong; their results are known from now on."""
        made = []
        for task in tasks:
            answer = self.run.pool.do(**self.attempt(task), fresh=fresh)
            assert "error" not in answer, f"an attempt failed: {answer}"
            made.append(answer["out"])
        self.results += made
        return made

    def do(self, request: dict, fresh: bool | None = None) -> dict:
        return self.run.pool.do(**request, fresh=self.run.fresh() if fresh is None else fresh)

    # Ends

    def conclude_committed(self, answers: Iterable[dict] = ()) -> dict:
        """Bring the job to its commit, and judge. `answers` are what commits of it have said."""
        answers = [*answers, self.do(self.commit())]
        for answer in answers:
            assert "error" not in answer, f"a commit failed: {answer}"
        assert len({answer["version"] for answer in answers}) == 1, f"versions differ: {answers}"
        made = [answer for answer in answers if not answer["already_committed"]]
        assert len(made) <= self.parts, f"too many commits: {answers}"
        assert all(answer["complete"] for answer in answers), answers
        before = oracle.files(self.uri)
        again = self.do(self.commit())
        assert again.get("already_committed"), f"the commit repeated: {again}"
        assert again["version"] == answers[-1]["version"], (again, answers)
        changed = {f for f in before.keys() ^ oracle.files(self.uri).keys() if "#" not in f}
        assert not changed, f"the commit repeated changed {changed}"
        self.abort(self.results)
        self.check_committed(answers[-1]["version"])
        return answers[-1]

    def check_committed(self, version: int) -> None:
        """The job is committed as `version`, once, and nothing else is there."""
        before, after = self.before, self.after
        oracle.check_states(before, [after if before.rows is None else before.rows, after], after)
        before.check_kept()
        new = [number for number in oracle.manifests(self.uri) if number > before.latest]
        if self.run.operation == "compact":
            # Versions that only reserve fragment ids are anybody's; parts are one commit each.
            changed = oracle.changes(self.uri, before.latest)
            assert changed[-1] == version and len(changed) <= self.parts, (changed, version)
        else:
            assert new == [version] == [before.latest + 1], (new, version)
        oracle.check_no_stray(self.uri, self.strays)
        oracle.check_files_exist(self.uri)
        self.shape.check(self.uri, self.run.rng)

    def conclude_aborted(self, results: Iterable[str] | None = None) -> None:
        """Abort with these results (default: a random part of what is known), and judge."""
        if results is None:
            results = self.run.rng.sample(self.results, self.run.rng.randint(0, len(self.results)))
        self.abort(results)
        oracle.check_untouched(self.before)
        if self.run.operation != "compact":  # which may have reserved ids, or committed in part
            assert oracle.files(self.uri) == self.before.files

    def abort(self, results: Iterable[str]) -> dict:
        """Abort by some process; it must answer."""
        request = {"verb": "abort", "job": self.job_file, "results": list(results)}
        answer = self.do(request)
        assert "error" not in answer, f"abort failed: {answer}"
        return answer

    def redo(self) -> None:
        """After an abort: the same job, prepared again, goes through."""
        self.before = oracle.Snapshot(self.uri)
        self.prepare()
        self.results = []
        if not self.tasks:  # others have done it all
            answer = self.do(self.commit())
            assert answer.get("version") == self.before.latest, answer
            oracle.check_untouched(self.before, self.strays)
            return
        self.execute(self.tasks)
        self.conclude_committed()


class Pace:
    """How long verbs really take, measured before anything is killed."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str, bool], float] = {}

    def of(self, shape: Shape, verb: str, child: Child) -> float:
        """Seconds that `execute` (of one task) or `commit` of this shape take in such a process."""
        return self.known[shape.name, verb, child.fresh]

    def saw(self, shape: Shape, verb: str, child: Child, seconds: float) -> None:
        """It took no longer than that."""
        key = (shape.name, verb, child.fresh)
        self.known[key] = 0.75 * self.known[key] + 0.25 * min(seconds, self.known[key])

    def measure(self, run: Run, shape: Shape) -> None:
        """Unless that is known, do the whole job twice: with a process that starts, and a warm one
        for the commit; and the other way round."""
        for number in range(0 if (shape.name, "commit", False) in self.known else 2):
            folder = run.folder / f"pace-{number}"
            folder.mkdir()
            uri = str(folder / "dataset.lance")
            shape.copy(uri)
            work = Work(run, shape, uri, f"{folder.name}/work")
            child = run.pool.take(fresh=True)
            times = [self._time(child, work.attempt(task)) for task in work.tasks]
            self.known[shape.name, "execute", True] = times[0]
            self.known[shape.name, "execute", False] = sorted(times[1:])[len(times[1:]) // 2]
            work.results = [str(path) for path in (work.folder / "results").iterdir()]
            if number == 0:
                run.pool.give_back(child)
                child = run.pool.take(fresh=True)
            self.known[shape.name, "commit", number == 0] = self._time(child, work.commit())
            run.pool.give_back(child)

    @staticmethod
    def _time(child: Child, request: dict) -> float:
        began = time.monotonic()
        answer = child.do(**request)
        assert "error" not in answer, answer
        return time.monotonic() - began
