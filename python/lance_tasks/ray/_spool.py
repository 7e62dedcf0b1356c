# SPDX-License-Identifier: Apache-2.0
"""A spool as the command line has it: a job, its tasks and its results in a shared place.

    job.json                 the job and the spec that it was prepared from
    tasks/<stage>.arrow      every task of a stage
    results/<name>.arrow     results, `<stage>.<tasks>.<ok|failed>.<attempt>.arrow`
    outcome.json             what the last commit did
    aborted.json             what the last abort did

`lance-tasks inspect`, `run`, `commit` and `abort` work on it. Beside these there may be
`pending.json`, a job whose data was being read from a Ray Dataset when its driver died.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import lance_tasks as lt
from lance_tasks import _arrow, _ffi
from lance_tasks.files import Files

from ._retry import retrying

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_JOB = "job.json"
_OUTCOME = "outcome.json"
_ABORTED = "aborted.json"
_PENDING = "pending.json"
_NAME = re.compile(r"(\d+)\.([0-9x_-]+)\.(ok|failed)\.[0-9a-f-]+\.arrow")
_TASKS_MAX = 160
_AT_A_TIME = 16
# Further attempts at a file.
_PUTS = 3
# A killed driver loses no more than the results of so many seconds.
_EVERY = 1.0


class Spool:
    """One job in a place.

    Args:
        place: a folder, or a URI in an object store.
        storage_options: for an object store.
    """

    def __init__(self, place: str, storage_options: Mapping[str, str]) -> None:
        self._files = Files(place, storage_options)
        self._place = place
        self._waiting: list[tuple[int, int, bool, str, bytes]] = []
        self._due = 0.0
        self._job = b""
        self._pending: str | None = None

    def open(self, spec: bytes) -> lt.Job | None:
        """The job of the spool, if it holds one; it must be of this spec.

        Raises:
            InvalidArgumentError: the spool is of other work.
            InvalidStateError: the job was aborted.
        """
        if self._files.get(_ABORTED) is not None:
            raise lt.InvalidStateError(
                f"spool {self._place}: the job was aborted; take another place for a new one"
            )
        self._job = self._files.get(_JOB) or b""
        if not self._job:
            return None
        value = json.loads(self._job)
        own, other = value.get("spec") or {}, json.loads(spec)
        differing = sorted(k for k in {*own, *other} if own.get(k) != other.get(k))
        if differing:
            raise lt.InvalidArgumentError(
                f"spool {self._place} holds a job of another spec: "
                + "; ".join(
                    f"{k}: the spool has {_short(own.get(k))}, this says {_short(other.get(k))}"
                    for k in differing
                )
            )
        return lt.Job.from_bytes(self._job)

    def job(self) -> lt.Job | None:
        """The job of the spool, of whatever spec, or one that is pending."""
        data = self._files.get(_JOB) or self._files.get(_PENDING)
        return None if data is None else lt.Job.from_bytes(data)

    def create(self, job: lt.Job, spec: bytes) -> None:
        """Put a job where there is none.

        Raises:
            AlreadyExistsError: another driver put one there at the same time.
        """
        value = {**json.loads(job.to_json()), "spec": json.loads(spec)}
        self._job = json.dumps(value, indent=2).encode()
        if not self._files.put_new(_JOB, self._job):
            raise lt.AlreadyExistsError(f"spool {self._place} holds a job already")

    def check(self) -> None:
        """Is the job still this one? To be asked before a commit.

        Raises:
            InvalidStateError: another driver has put its own in the place.
        """
        if self._files.get(_JOB) != self._job:
            raise lt.InvalidStateError(
                f"spool {self._place}: another driver works here at the same time; this one ends"
            )

    def replace(self, job: lt.Job, spec: bytes) -> None:
        """Begin anew with another job, once `clear` was called and the old one aborted."""
        value = {**json.loads(job.to_json()), "spec": json.loads(spec)}
        self._job = json.dumps(value, indent=2).encode()
        self._files.put(_JOB, self._job)

    def clear(self) -> None:
        """Remove tasks and results."""
        self._waiting = []
        for folder in ("results", "tasks"):
            for name in self._files.list(folder):
                self._files.delete(f"{folder}/{name}")
        self._files.delete(_OUTCOME)

    def put_stage(self, number: int, tasks: list[lt.Task]) -> None:
        """Note the tasks of a stage, unless that is done."""
        name = f"tasks/{number}.arrow"
        if self._files.get(name) is None:
            self._files.put_new(name, _ipc(lt.tasks_table(tasks), "zstd"))

    def has_stage(self, number: int) -> bool:
        """Are the tasks of a stage noted?"""
        return self._files.get(f"tasks/{number}.arrow") is not None

    def add(self, stage: int, index: int, ok: bool, attempt: str, result: bytes) -> None:
        """Note a result; a moment later, with others."""
        if not self._waiting:
            self._due = time.monotonic() + _EVERY
        self._waiting.append((stage, index, ok, attempt, result))
        if time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Store the results that wait."""
        waiting = self._waiting
        for (stage, ok), items in itertools.groupby(
            sorted(waiting, key=lambda w: (w[0], w[2], w[1])), key=lambda w: (w[0], w[2])
        ):
            for tasks, group in _grouped(list(items)):
                kind = "ok" if ok else "failed"
                name = f"results/{stage}.{tasks}.{kind}.{group[0][3]}.arrow"
                rows = [item[4] for item in group]
                # The library takes no compressed results.
                data = rows[0] if len(rows) == 1 else _ipc(lt.results_table(rows))
                retrying(functools.partial(self._files.put, name, data), _PUTS)
        self._waiting = []

    def results(self) -> list[bytes]:
        """Every result of the job, of every attempt."""
        return [result for result, _ in self.marked_results()]

    def marked_results(self) -> list[tuple[bytes, bool]]:
        """As `results`, each with whether the attempt succeeded."""
        job = self.job()
        found: list[tuple[bytes, bool]] = []
        names = self._files.list("results")
        with ThreadPoolExecutor(_AT_A_TIME) as threads:
            for name, data in zip(names, threads.map(self._result, names), strict=True):
                match = _NAME.fullmatch(name)
                if match is None:
                    raise lt.DecodeError(
                        f"spool {self._place}: results/{name} is no result of a spool"
                    )
                for row in [data] if match[2].isdigit() else _rows(data):
                    # A driver that has lost the place to another one may have put some.
                    if job is None or lt.Result.from_bytes(row).job_id == job.id:
                        found.append((row, match[3] == "ok"))
        return found

    def _result(self, name: str) -> bytes:
        return self._files.get(f"results/{name}") or b""

    def outcome(self) -> lt.Outcome | None:
        """What a commit of the whole job did, if there was one."""
        data = self._files.get(_OUTCOME)
        value: dict[str, Any] = json.loads(data) if data else {}
        if not value.get("complete"):
            return None
        names = lt.Outcome.__dataclass_fields__
        return lt.Outcome(**{k: v for k, v in value.items() if k in names})

    def put_outcome(self, outcome: lt.Outcome) -> None:
        """Note what the commit did."""
        import dataclasses

        self._files.put(_OUTCOME, json.dumps(dataclasses.asdict(outcome), indent=2).encode())

    def put_aborted(self, report: lt.AbortReport) -> None:
        """Note that the job was given up."""
        import dataclasses

        self._files.put(_ABORTED, json.dumps(dataclasses.asdict(report), indent=2).encode())

    def put_results(self, spec: bytes, job: lt.Job, parts: list[dict[str, Any]]) -> None:
        """Note all results of a job whose data was read from a Ray Dataset, and then the job: from
        there on the data need not be read again.

        Raises:
            InvalidStateError: another driver has begun here meanwhile.
        """
        if self._pending is not None and self._pending_id() != self._pending:
            raise lt.InvalidStateError(
                f"spool {self._place}: another driver works here at the same time; this one ends"
            )
        for index, part in enumerate(parts):
            self.add(0, index, True, part["attempt"], part["result"])
        self.flush()
        if parts:
            self.put_stage(0, [job.task(part["partition"]) for part in parts])
        self.create(job, spec)
        self.drop_pending(job.id)

    def has(self, job_id: str) -> bool:
        """Is this the spool's job?"""
        data = self._files.get(_JOB)
        return data is not None and lt.Job.from_bytes(data).id == job_id

    def pending(self) -> lt.Job | None:
        """The job of a driver that died while it read its data."""
        data = self._files.get(_PENDING)
        return None if data is None else lt.Job.from_bytes(data)

    def _pending_id(self) -> str | None:
        job = self.pending()
        return None if job is None else job.id

    def put_pending(self, job: lt.Job) -> None:
        """Note a job before its data is read.

        Raises:
            AlreadyExistsError: another driver has put its own.
        """
        if not self._files.put_new(_PENDING, job.to_json().encode()):
            raise lt.AlreadyExistsError(f"spool {self._place}: another driver works here")
        self._pending = job.id

    def drop_pending(self, job_id: str) -> None:
        """The job is pending no more."""
        if self._pending_id() == job_id:
            self._files.delete(_PENDING)


def _short(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) < 200 else text[:200] + "..."


def _ipc(table: lt.Table, compression: str | None = None) -> bytes:
    """An Arrow IPC stream of a table."""
    import pyarrow as pa

    whole = pa.table(table)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, whole.schema, options=options) as writer:
        writer.write_table(whole)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _rows(data: bytes) -> list[bytes]:
    """The results of an IPC stream, each as bytes of its own."""
    import pyarrow as pa

    with pa.ipc.open_stream(data) as reader:
        stream = _arrow.InStream(reader.read_all(), "results")
    rows = _ffi.OutBytes()
    _ffi.call(_ffi.lib().table_to_rows, stream, rows)
    return _ffi.unframe(rows.take() or b"")


def _grouped(
    items: list[tuple[int, int, bool, str, bytes]],
) -> list[tuple[str, list[tuple[int, int, bool, str, bytes]]]]:
    """Items in order of their tasks, with the tasks' text for the name of one file."""
    groups: list[tuple[str, list[tuple[int, int, bool, str, bytes]]]] = []
    at = 0
    while at < len(items):
        end = at + 1
        while end < len(items) and items[end][1] == items[end - 1][1] + 1:
            end += 1
        first, last = items[at][1], items[end - 1][1]
        run = str(first) if first == last else f"{first}-{last}"
        if groups and len(groups[-1][0]) + 1 + len(run) <= _TASKS_MAX:
            text, group = groups.pop()
            groups.append((f"{text}_{run}", group + items[at:end]))
        else:
            groups.append((run, items[at:end]))
        at = end
    return groups
