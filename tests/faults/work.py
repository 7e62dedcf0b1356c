# SPDX-License-Identifier: Apache-2.0
"""One job under fault: its tasks and results as files, how it is brought to an end and judged."""

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

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
        operation: a key of `catalog.FAULTS`.
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

    def __init__(
        self, run: Run, shape: Shape, uri: str = "", name: str = "work", stage: int | None = None
    ) -> None:
        self.run, self.shape = run, shape
        # Of the stages, the one that faults are for.
        self.stage = run.rng.randrange(shape.stages) if stage is None else stage
        self.folder = run.folder / name
        (self.folder / "results").mkdir(parents=True)
        self.uri = uri or str(run.folder / "dataset.lance")
        if not uri:
            shape.copy(self.uri)
        self.before = oracle.Snapshot(self.uri)
        self.attempts = 0
        # Files that may stay although no version refers to them, where others write as well.
        self.strays: oracle.Stray | None = None
        self.prepare()

    def prepare(self) -> None:
        """Prepare the job, anew where it was before, and come to the stage that faults are for.

        `tasks` are those of that stage; the results of the ones before are known.
        """
        streams = self.shape.streams
        schema = self.shape.added.schema if streams and self.shape.added else None
        self.job = lt.prepare(self.shape.spec(self.uri), schema=schema)
        self.job_file = str(self.folder / f"job-{self.job.id}")
        Path(self.job_file).write_bytes(self.job.to_bytes())
        if streams:
            planned = [(self.job.task(name), data) for name, data in streams.items()]
        else:
            planned = [(task, None) for task in lt.plan(self.job)]
        self.results: list[str] = []
        self.tasks = self.put(planned)
        for _ in range(self.stage):
            self.execute(self.tasks)
            self.tasks = self.planned()
        self.earlier = list(self.results)

    def planned(self) -> list[dict[str, str]]:
        """The tasks of the stage that follows from the results."""
        results = [lt.Result.from_bytes(Path(path).read_bytes()) for path in self.results]
        return self.put([(task, None) for task in lt.plan(self.job, results)])

    def put(self, tasks: Iterable[tuple[lt.Task, str | None]]) -> list[dict[str, str]]:
        """Tasks as files, with the paths of their rows where they have any."""
        made = []
        for task, data in tasks:
            path = self.folder / f"task-{len(list(self.folder.iterdir()))}"
            path.write_bytes(task.to_bytes())
            made.append({"task": str(path)} | ({"data": data} if data else {}))
        return made

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

    def finish(self) -> list[str]:
        """Do the stages after the one that faults are for; their results."""
        made = []
        for _ in range(self.stage + 1, self.shape.stages):
            made += self.execute(self.planned())
        return made

    def complete(self) -> None:
        """Do all that is left, where nothing goes wrong."""
        self.execute(self.tasks)
        self.finish()

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
        if self.shape.operation == "compact":
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
        if self.shape.operation != "compact":  # which may have reserved ids, or committed in part
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
        if not self.tasks and not self.results:  # others have done it all
            answer = self.do(self.commit())
            assert answer.get("version") == self.before.latest, answer
            oracle.check_untouched(self.before, self.strays)
            return
        self.complete()
        self.conclude_committed()


class Pace:
    """How long verbs really take, measured before anything is killed."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str, bool], float] = {}

    @staticmethod
    def _key(work: Work, verb: str, fresh: bool) -> tuple[str, str, bool]:
        return (work.shape.name, f"{verb}-{work.stage}" if verb == "execute" else verb, fresh)

    def of(self, work: Work, verb: str, child: Child) -> float:
        """Seconds that `execute` (of one task of this stage) or `commit` of such a job take in such
        a process."""
        return self.known[self._key(work, verb, child.fresh)]

    def saw(self, work: Work, verb: str, child: Child, seconds: float) -> None:
        """It took no longer than that."""
        key = self._key(work, verb, child.fresh)
        self.known[key] = 0.75 * self.known[key] + 0.25 * min(seconds, self.known[key])

    def measure(self, run: Run, shape: Shape) -> None:
        """Unless that is known, do the whole job twice: with processes that start, and warm ones
        for the commit; and the other way round."""
        for number in range(0 if (shape.name, "commit", False) in self.known else 2):
            folder = run.folder / f"pace-{number}"
            folder.mkdir()
            uri = str(folder / "dataset.lance")
            shape.copy(uri)
            work = Work(run, shape, uri, f"{folder.name}/work", stage=0)
            while True:
                child = run.pool.take(fresh=True)
                # The last one once more, so that there is one that meets a warm process.
                tasks = [*work.tasks, work.tasks[-1]]
                times = [self._time(child, work.attempt(task)) for task in tasks]
                self.known[self._key(work, "execute", True)] = times[0]
                self.known[self._key(work, "execute", False)] = median(times[1:])
                work.results = [str(path) for path in (work.folder / "results").iterdir()]
                if work.stage + 1 == shape.stages:
                    break
                run.pool.give_back(child)
                work.stage, work.tasks = work.stage + 1, work.planned()
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
