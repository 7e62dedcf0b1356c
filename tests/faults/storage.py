# SPDX-License-Identifier: Apache-2.0
"""Storage that fails the job: a full disk, and a pinned version that is cleaned away."""

import datetime
import shutil
import time

import environment
import lance
import oracle
import pyarrow as pa
from work import Run, Work

# Bytes of the disk: more than any job needs.
SIZE = 64 << 20


def check_clear(answer: dict) -> None:
    """Trying again helps against a full disk: the error must not say that the input is wrong."""
    assert answer["class"] == "retry_task", answer
    text = answer["error"].lower()
    assert any(word in text for word in ("space", "os error 28", "too large", "os error 27")), (
        answer
    )


class Disk:
    """A small file system that is filled by a file beside the dataset, so far as wanted."""

    def __init__(self, run: Run) -> None:
        self.folder = run.folder / "disk"
        self.filler = self.folder / "filler"

    def __enter__(self) -> "Disk":
        self.folder.mkdir()
        environment.mount(self.folder, SIZE)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # to be looked at
            self.filler.unlink(missing_ok=True)
            shutil.copytree(self.folder, self.folder.with_name("kept"))
        environment.umount(self.folder)

    def leave(self, size: int) -> None:
        """Fill it up but for so many bytes."""
        free = shutil.disk_usage(self.folder).free
        with self.filler.open("wb") as file:
            file.write(bytes(max(0, free - size)))

    def empty(self) -> None:
        self.filler.unlink()


def needed(work: Work) -> int:
    """Bytes that one round of the tasks writes, by doing it; then the job is prepared anew."""
    before = oracle.files(work.uri)
    work.execute(work.tasks)
    size = sum(oracle.files(work.uri).values()) - sum(before.values())
    work.abort(work.results)
    work.prepare()
    return size


def disk_full_at_task(run: Run) -> str:
    """The disk is full before the tasks are done; once there is room, the rest is done."""
    with Disk(run) as disk:
        uri = str(disk.folder / "dataset.lance")
        shape = run.shape()
        shape.copy(uri)
        work = Work(run, shape, uri)
        room = int(needed(work) * run.rng.uniform(0, 0.95))
        disk.leave(room)
        failed = []
        for task in work.tasks:
            before = oracle.files(uri)
            request = work.attempt(task)
            answer = work.do(request)
            if "error" in answer:
                check_clear(answer)
                code = answer["code"]
                failed.append(task)
                if work.shape.operation == "write":
                    check_same_files(uri, before)
            else:
                work.results.append(answer["out"])
        assert failed, f"{room} bytes were enough"
        oracle.check_states(
            work.before, [] if work.before.rows is None else [work.before.rows], work.before.rows
        )
        if run.rng.random() < 0.4:
            work.conclude_aborted()
            return f"{code}, aborted"
        disk.empty()
        work.execute(failed)
        work.finish()
        work.conclude_committed()
        return f"{code}, retried with room, committed"


def check_same_files(uri: str, before: dict[str, int]) -> None:
    """A failed attempt has removed what it wrote (temporary files a moment later)."""
    for _ in range(100):
        if (now := oracle.files(uri)) == before:
            return
        time.sleep(0.02)
    raise AssertionError(f"a failed attempt left {sorted(now.keys() - before.keys())}")


def disk_full_at_commit(run: Run) -> str:
    """There is room for the tasks, none for the manifest; once there is, the commit succeeds."""
    with Disk(run) as disk:
        uri = str(disk.folder / "dataset.lance")
        shape = run.shape()
        shape.copy(uri)
        work = Work(run, shape, uri)
        work.complete()
        disk.leave(4096 * run.rng.choice([0, 0, 1, 2, 3]))
        answer = work.do(work.commit())
        if "error" not in answer:
            disk.empty()
            work.conclude_committed([answer])
            return "room enough, committed"
        check_clear(answer)
        code = answer["code"]
        oracle.check_states(
            work.before, [] if work.before.rows is None else [work.before.rows], work.before.rows
        )
        if run.rng.random() < 0.4:
            work.conclude_aborted()
            return f"{code}, aborted"
        disk.empty()
        work.conclude_committed()
        return f"{code}, committed with room"


def file_too_large(run: Run) -> str:
    """Where no file system can be mounted: files cannot grow beyond a limit, as on a full disk."""
    work = run.work()
    task = run.rng.choice(work.tasks)
    known = oracle.files(work.uri)
    work.execute([task])
    written = {name: size for name, size in oracle.files(work.uri).items() if name not in known}
    limit = int(max(written.values()) * run.rng.uniform(0, 0.95))
    before = oracle.files(work.uri)
    answer = run.pool.do(**work.attempt(task), file_size=limit)
    assert "error" in answer, f"files of {limit} bytes were enough"
    check_clear(answer)
    code = answer["code"]
    if work.shape.operation == "write":
        check_same_files(work.uri, before)
    work.complete()
    work.conclude_committed()
    return f"{code}, retried with room, committed"


def insert(work: Work) -> pa.Table:
    """Another writer appends some rows; all rows then."""
    lance.write_dataset(work.run.shapes.sources.few, work.uri, mode="append")
    return oracle.rows(work.uri)


def clean_up(uri: str, delete_unverified: bool = False) -> None:
    """Remove every version but the newest, by stock pylance."""
    lance.dataset(uri).cleanup_old_versions(
        older_than=datetime.timedelta(0), delete_unverified=delete_unverified
    )


def pin_cleaned_away(run: Run) -> str:
    """The job's version is cleaned away at some point before the commit."""
    work = run.work("append", "overwrite", "compact", "index", "optimize")
    rng = run.rng
    point = rng.choice(["plan", "execute", "commit"])
    if point == "commit":
        work.complete()
        left = []
    else:
        done = rng.randrange(len(work.tasks)) if point == "execute" else 0
        work.execute(work.tasks[:done])
        left = work.tasks[done:]
    since = rng.choice([1, 1, 1, 2, 3])
    for _ in range(since):
        rows = insert(work)
    clean_up(work.uri)
    steps = [{"verb": "plan", "job": work.job_file, "results": work.results}]
    steps += [work.attempt(task) for task in left]
    errors = []
    for step in steps:
        answer = work.do(step, fresh=True)
        if "error" in answer:
            errors.append(answer)
        elif step["verb"] == "execute":
            work.results.append(answer["out"])
    last = work.stage + 1 == work.shape.stages
    if point == "commit" or (last and len(work.results) == len(work.earlier) + len(work.tasks)):
        answer = work.do(work.commit(), fresh=True)
        assert "error" in answer, f"committed on a version that is gone: {answer}"
        errors.append(answer)
    assert errors, "nobody noticed"
    for error in errors:
        # Where versions in between are gone as well, an earlier commit cannot be ruled out.
        allowed = {"VERSION_GONE": "replan"} | ({"HISTORY_GONE": "fatal"} if since > 1 else {})
        assert allowed.get(error["code"]) == error["class"], error
    now = oracle.Snapshot(work.uri)
    oracle.assert_rows(now.rows, rows, "nothing is lost")
    abort = work.do({"verb": "abort", "job": work.job_file, "results": work.results})
    if "error" in abort:
        assert since > 1 and abort["code"] == "HISTORY_GONE", abort
        oracle.check_states(now, [rows], rows)
        return f"{errors[-1]['code']}, abort refused: history gone"
    oracle.check_untouched(now)
    work.redo()
    return f"{errors[-1]['code']}, aborted, prepared again, committed"


def files_cleaned_away(run: Run) -> str:
    """A careless cleanup removes what the tasks have written; nothing is committed of it."""
    work = run.work("append", "overwrite", "compact", "index", "optimize")
    work.complete()
    clean_up(work.uri, delete_unverified=True)
    now = oracle.Snapshot(work.uri)
    answer = work.do(work.commit())
    assert "error" in answer, answer
    assert answer["class"] in ("fatal", "replan"), answer
    work.abort(work.results)
    oracle.check_untouched(now)
    work.redo()
    return f"{answer['code']}, aborted, prepared again, committed"
