# SPDX-License-Identifier: Apache-2.0
"""One verb in a process of its own, as a batch scheduler would run it: bytes in and out by files.

Prints one line of JSON: the verb's answer, or `{"error", "code", "class", "task_id"}`.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import lance_tasks as lt

# Never in the files that the processes share.
OPTIONS = json.loads(os.environ.get("WORKER_STORAGE_OPTIONS", "null"))


def read_all(folder: str, kind: type) -> list:
    return [kind.from_bytes(path.read_bytes()) for path in sorted(Path(folder).iterdir())]


def read_job(path: str) -> lt.Job:
    return lt.Job.from_bytes(Path(path).read_bytes())


def prepare(spec: str, out: str) -> dict:
    job = lt.prepare(Path(spec).read_bytes(), storage_options=OPTIONS)
    Path(out).write_bytes(job.to_bytes())
    return {"job_id": job.id}


def plan(job: str, results: str, tasks: str) -> dict:
    """Tasks go to files named by their ids."""
    made = lt.plan(read_job(job), read_all(results, lt.Result), storage_options=OPTIONS)
    for number, task in enumerate(made):
        Path(tasks, f"{number:04}-{task.id}").write_bytes(task.to_bytes())
    return {"tasks": [task.id for task in made]}


def execute(task: str, out: str, data: str | None = None) -> dict:
    table = None
    if data is not None:
        import pyarrow as pa

        table = pa.ipc.open_stream(data).read_all()
    given = lt.Task.from_bytes(Path(task).read_bytes())
    result = lt.execute(given, table, storage_options=OPTIONS)
    Path(out).write_bytes(result.to_bytes())
    return {"task_id": result.task_id, "pid": result.pid}


def commit(job: str, results: str) -> dict:
    given = read_all(results, lt.Result)
    outcome = lt.commit(read_job(job), given, storage_options=OPTIONS)
    return dataclasses.asdict(outcome)


def abort(job: str, results: str) -> dict:
    given = read_all(results, lt.Result)
    report = lt.abort(read_job(job), given, storage_options=OPTIONS)
    return dataclasses.asdict(report)


def main() -> None:
    verb, *arguments = sys.argv[1:]
    run = {"prepare": prepare, "plan": plan, "execute": execute, "commit": commit, "abort": abort}
    if os.environ.get("WORKER_WAITS"):
        lt.versions()  # loads the library, so that all that is left to do is the verb
        print("ready", flush=True)
        sys.stdin.readline()
    try:
        answer = run[verb](*arguments)
    except lt.Error as error:
        answer = {
            "error": error.message,
            "code": error.code,
            "class": error.retry_class,
            "task_id": error.task_id,
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
