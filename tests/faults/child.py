# SPDX-License-Identifier: Apache-2.0
"""A process that waits for verbs: each request is a line of JSON, answered by a line of JSON.

Everything else goes by files. A result file appears whole or not at all, whenever the process dies.
"""

import dataclasses
import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nanoarrow.ipc

import lance_tasks as lt


class Rows:
    """The rows of an Arrow IPC stream in a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        stream = nanoarrow.ipc.InputStream.from_path(self.path)
        return stream.__arrow_c_stream__(requested_schema)


def read_job(path: str) -> lt.Job:
    return lt.Job.from_bytes(Path(path).read_bytes())


def read_results(paths: list[str]) -> list[lt.Result]:
    return [lt.Result.from_bytes(Path(path).read_bytes()) for path in paths]


def plan(job: str, results: list[str]) -> dict:
    return {"tasks": [task.id for task in lt.plan(read_job(job), read_results(results))]}


def execute(task: str, out: str, data: str | None = None) -> dict:
    given = lt.Task.from_bytes(Path(task).read_bytes())
    result = lt.execute(given, None if data is None else Rows(data))
    part = Path(out + ".part")
    part.write_bytes(result.to_bytes())
    part.rename(out)
    return {"out": out}


def commit(job: str, results: list[str], timeout: float | None = None) -> dict:
    return dataclasses.asdict(lt.commit(read_job(job), read_results(results), timeout=timeout))


def abort(job: str, results: list[str]) -> dict:
    return dataclasses.asdict(lt.abort(read_job(job), read_results(results)))


# Other writers: stock pylance.


def delete(uri: str, where: str) -> dict:
    import lance

    lance.dataset(uri).delete(where)
    return {}


def append(uri: str, data: str) -> dict:
    import lance
    import pyarrow as pa

    with pa.OSFile(data) as file, pa.ipc.open_stream(file) as reader:
        lance.write_dataset(reader.read_all(), uri, mode="append")
    return {}


VERBS: dict[str, Callable[..., dict]] = {
    verb.__name__: verb for verb in (plan, execute, commit, abort, delete, append)
}


def limit_file_size(size: int) -> None:
    """Writes beyond `size` bytes of a file fail (EFBIG), as they would on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def serve(verb: str, at: float | None = None, file_size: int = -1, **arguments: object) -> dict:
    """Do a verb at a moment of the machine's monotonic clock; None: now."""
    limit_file_size(file_size)
    while at is not None and time.monotonic() < at:
        pass
    try:
        return VERBS[verb](**arguments)
    except lt.Error as error:
        answer = {"error": error.message, "code": error.code, "class": error.retry_class}
    except (OSError, RuntimeError, ValueError) as error:
        if VERBS[verb] not in (delete, append):
            raise
        answer = {"error": str(error), "code": "PYLANCE", "class": "pylance"}
    return answer


def main() -> None:
    for name in filter(None, os.environ.get("CHILD_IMPORTS", "").split(",")):
        importlib.import_module(name)
    lt.versions()  # loads the library: what is left to do is the verb
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
