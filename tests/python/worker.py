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


def read_all(folder: str, kind: type) -> list:
    return [kind.from_bytes(path.read_bytes()) for path in sorted(Path(folder).iterdir())]


def prepare(spec: str, out: str) -> dict:
    job = lt.prepare(Path(spec).read_bytes())
    Path(out).write_bytes(job.to_bytes())
    return {"job_id": job.id}


def plan(job: str, results: str, tasks: str) -> dict:
    """Tasks go to files named by their ids."""
    made = lt.plan(lt.Job.from_bytes(Path(job).read_bytes()), read_all(results, lt.Result))
    for number, task in enumerate(made):
        Path(tasks, f"{number:04}-{task.id}").write_bytes(task.to_bytes())
    return {"tasks": [task.id for task in made]}


def execute(task: str, out: str, data: str | None = None) -> dict:
    table = None
    if data is not None:
        import pyarrow as pa

        table = pa.ipc.open_stream(data).read_all()
    result = lt.execute(lt.Task.from_bytes(Path(task).read_bytes()), table)
    Path(out).write_bytes(result.to_bytes())
    return {"task_id": result.task_id, "pid": result.pid}


def commit(job: str, results: str) -> dict:
    outcome = lt.commit(lt.Job.from_bytes(Path(job).read_bytes()), read_all(results, lt.Result))
    return dataclasses.asdict(outcome)


def abort(job: str, results: str) -> dict:
    report = lt.abort(lt.Job.from_bytes(Path(job).read_bytes()), read_all(results, lt.Result))
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
