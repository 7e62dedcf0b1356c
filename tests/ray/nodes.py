# SPDX-License-Identifier: Apache-2.0
"""Nodes and worker processes of a simulated cluster, and what is done to them."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}

# Those that this process has made; another one may test at the same time.
_made: list[Cluster] = []


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        made.add_node(**NODE)
        ray.init(address=made.address, logging_level="ERROR", log_to_driver=False)
        made.wait_for_nodes()
        _made.append(made)
        yield made
    finally:
        _made.clear()
        ray.shutdown()
        made.shutdown()


def raylets() -> set[int]:
    """The processes of the cluster's nodes."""
    (made,) = _made
    nodes = made.list_all_nodes()
    return {node.all_processes["raylet"][0].process.pid for node in nodes}


def logs() -> Path:
    """Where the cluster's processes log."""
    (made,) = _made
    return Path(made.head_node.get_session_dir_path()) / "logs"


def workers(raylet: int | None = None, title: bytes = b"ray::Worker") -> list[int]:
    """The processes of lance-tasks' actors, of all nodes or of one."""
    found = []
    parents = raylets() if raylet is None else {raylet}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if not (folder / "cmdline").read_bytes().startswith(title):
                continue
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in parents:
                found.append(int(folder.name))
    return found


class Meanwhile:
    """Does something on a thread while the block runs, once `when` says so."""

    def __init__(self, when: Callable[[], bool], what: Callable[[], bool]) -> None:
        self._when, self._what = when, what
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.done = False

    def _run(self) -> None:
        while not self._ended.is_set():
            if self._when():
                self.done = self._what()
                if self.done:
                    return
            time.sleep(0.01)

    def __enter__(self) -> "Meanwhile":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def kill_one(choose: Callable[[list[int]], int]) -> bool:
    """SIGKILL for one of the workers."""
    found = workers()
    if not found:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(choose(found), signal.SIGKILL)
        return True
    return False


def no_workers(seconds: float = 30) -> None:
    """Until the actors of a driver that is no more are gone as well."""
    until = time.monotonic() + seconds
    while workers():
        assert time.monotonic() < until, "actors outlive their driver"
        time.sleep(0.05)


def hooked(name: str, **more: str) -> dict[str, object]:
    """Options of actors whose processes run one of the hooks (hooks.py)."""
    return {"runtime_env": {"env_vars": {"LANCE_TASKS_TEST_HOOK": name, **more}}}
