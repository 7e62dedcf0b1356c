# SPDX-License-Identifier: Apache-2.0
"""What Ray does to workers and drivers: the dataset is as it would be without, and nothing is left.

Moments are random; the seed is in the test's name and in `RAY_FAULTS_SEED`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import lance
import nodes
import oracle
import pyarrow as pa
import pytest
import ray
from cases import CASES
from support import assert_same, make_dataset, numbers, read

import lance_tasks as lt
import lance_tasks.ray as ltr

DRIVER = Path(__file__).with_name("driver.py")
SEED = int(os.environ.get("RAY_FAULTS_SEED", "20260"))
KINDS = ["append", "compact", "create_index", "create_vector_index", "optimize_index"]


def rng(*what: object) -> random.Random:
    return random.Random(f"{SEED}-{what}")


def case_of(name: str, folder: Path):
    (kind,) = [kind for kind in CASES if kind.name == name]
    return kind(folder)


@pytest.mark.parametrize("moment", [0.1, 0.6, 1.2])
@pytest.mark.parametrize("name", KINDS)
def test_a_worker_is_killed(name: str, moment: float, tmp_path: Path) -> None:
    chance = rng(name, moment)
    # Where the job was over before, an earlier moment is taken.
    for i in range(5):
        folder = tmp_path / str(i)
        folder.mkdir()
        case = case_of(name, folder)
        after = moment * chance.uniform(0.8, 1.2) / 2**i
        begun: list[float] = []

        def due(begun: list[float] = begun, after: float = after) -> bool:
            if nodes.workers() and not begun:
                begun.append(time.monotonic())
            return bool(begun) and time.monotonic() - begun[0] > after

        with nodes.Meanwhile(due, lambda: nodes.kill_one(chance.choice)) as fault:
            ltr.run(case.spec, ray_remote_args=nodes.hooked("slow"), max_retries=5)
        if fault.done:
            break
    assert fault.done, "the job was always over before"
    case.check()
    oracle.check_no_stray(case.uri)


@pytest.mark.parametrize("name", ["append", "compact", "create_index"])
def test_a_node_is_removed(name: str, tmp_path: Path, cluster) -> None:
    case = case_of(name, tmp_path)
    node = cluster.add_node(**nodes.NODE)
    raylet = node.all_processes["raylet"][0].process.pid
    removed = []

    def remove() -> bool:
        time.sleep(rng(name).uniform(0.1, 0.6))
        cluster.remove_node(node, allow_graceful=False)
        removed.append(True)
        return True

    try:
        with nodes.Meanwhile(lambda: bool(nodes.workers(raylet)), remove):
            args = nodes.hooked("slow")
            ltr.run(case.spec, num_workers=3, ray_remote_args=args, max_retries=5)
        assert removed, "the node had no worker"
    finally:
        if not removed:
            cluster.remove_node(node)
    case.check()
    oracle.check_no_stray(case.uri)


@pytest.mark.parametrize("seconds", [2, 30])
@pytest.mark.parametrize("name", ["append", "compact", "create_index"])
def test_a_task_is_attempted_twice(name: str, seconds: float, tmp_path: Path) -> None:
    """The slow attempt ends meanwhile, or is cancelled; either way one of the two counts."""
    case = case_of(name, tmp_path)
    mark, path = tmp_path / "mark", tmp_path / "t.json"
    hook = nodes.hooked("straggle", STRAGGLE=str(mark), STRAGGLE_FOR=str(seconds))
    ltr.run(case.spec, ray_remote_args=hook, speculate=True, timeline=path)
    assert mark.exists()
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e["ph"] == "X"]
    assert sorted(e["name"] for e in events).count("task 0") == 2, events
    assert {"again", "cancelled"} <= {e["cat"] for e in events if e["name"] == "task 0"}
    case.check()
    oracle.check_no_stray(case.uri)


def test_storage_fails_for_a_while(tmp_path: Path) -> None:
    case = case_of("compact", tmp_path)
    ltr.run(case.spec, ray_remote_args=nodes.hooked("flaky"))
    case.check()


def test_storage_fails_for_good(tmp_path: Path) -> None:
    case = case_of("compact", tmp_path)
    with pytest.raises(lt.StorageError, match="busy"):
        ltr.run(case.spec, ray_remote_args=nodes.hooked("flaky"), max_retries=0)
    case.check_untouched()
    oracle.check_no_stray(case.uri)


def test_a_task_that_kills_workers(tmp_path: Path) -> None:
    """It ends the job, after some workers; what others did is removed, or kept in parts."""
    case = case_of("compact", tmp_path)
    with pytest.raises(ltr.WorkerLostError, match="task 0: 2 workers were lost"):
        ltr.run(case.spec, ray_remote_args=nodes.hooked("deadly"), max_retries=1)
    case.check_untouched()
    oracle.check_no_stray(case.uri)
    outcome = ltr.run(
        case.spec,
        ray_remote_args=nodes.hooked("deadly"),
        max_retries=5,
        num_workers=1,
        partial=True,
    )
    assert not outcome.complete and outcome.metrics["tasks"] == 2
    assert_same(read(case.uri).sort_by("id"), case.before.sort_by("id"))
    oracle.check_no_stray(case.uri)


def test_the_dataset_moves_on(uri: str) -> None:
    """Another compaction comes first: the job is prepared again on what is there then."""
    make_dataset(uri)
    spec = lt.Compact(uri, target_rows_per_fragment=300)

    def other() -> bool:
        lance.dataset(uri).optimize.compact_files(target_rows_per_fragment=200)
        return True

    with nodes.Meanwhile(lambda: bool(nodes.workers()), other) as fault:
        ltr.run(spec, ray_remote_args=nodes.hooked("slow"))
    assert fault.done
    assert_same(read(uri).sort_by("id"), numbers(1200))
    assert len(lance.dataset(uri).get_fragments()) <= 6
    oracle.check_no_stray(uri)


def test_ctrl_c(uri: str) -> None:
    make_dataset(uri)
    # A shell's background jobs ignore it.
    before_signal = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = oracle.files(uri)

    def interrupt() -> bool:
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGINT)
        return True

    spec = lt.Compact(uri, target_rows_per_fragment=200)
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            nodes.Meanwhile(lambda: len(nodes.workers()) > 0, interrupt),
        ):
            ltr.run(spec, ray_remote_args=nodes.hooked("slow"))
    finally:
        signal.signal(signal.SIGINT, before_signal)
    assert oracle.files(uri) == before
    nodes.no_workers()


# The driver dies


def drive(cluster, spec: object, spool: Path, moment: str, hook: bool = False) -> subprocess.Popen:
    environment = dict(os.environ)
    if hook:
        environment["DRIVER_ARGS"] = json.dumps(nodes.hooked("slow"))
    given = json.dumps(spec if isinstance(spec, dict) else spec.to_dict())
    return subprocess.Popen(
        [sys.executable, str(DRIVER), cluster.address, given, str(spool), moment],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen, killed: bool) -> str:
    out, err = process.communicate(timeout=180)
    assert process.returncode == (-signal.SIGKILL if killed else 0), f"{out}\n{err}"
    return out


def again(cluster, case, spool: Path) -> dict:
    """The same call, in a new driver."""
    nodes.no_workers()
    return json.loads(ended(drive(cluster, case.spec, spool, "done"), False).splitlines()[-1])


@pytest.mark.parametrize("name", KINDS)
def test_the_driver_dies_between_tasks(name: str, tmp_path: Path, cluster) -> None:
    case = case_of(name, tmp_path)
    spool = tmp_path / "spool"
    process = drive(cluster, case.spec, spool, "done", hook=True)
    until = time.monotonic() + 120
    while not list((spool / "results").glob("*.arrow")):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.01)
    time.sleep(rng(name).uniform(0, 0.3))
    process.kill()
    process.wait()
    kept = {path: path.read_bytes() for path in (spool / "results").glob("*.arrow")}
    answer = again(cluster, case, spool)
    case.check()
    oracle.check_no_stray(case.uri)
    assert all(path.read_bytes() == data for path, data in kept.items())
    assert answer["version"] == lance.dataset(case.uri).version


@pytest.mark.parametrize("moment", ["before_commit", "mid_commit", "after_commit"])
@pytest.mark.parametrize("name", ["append", "compact", "create_index"])
def test_the_driver_dies_at_the_commit(name: str, moment: str, tmp_path: Path, cluster) -> None:
    case = case_of(name, tmp_path)
    spool = tmp_path / "spool"
    if moment == "mid_commit":
        moment += f":{rng(name).uniform(0.0, 0.03):.4f}"
    process = drive(cluster, case.spec, spool, moment)
    process.communicate(timeout=180)
    results = {p.name for p in (spool / "results").iterdir()}
    again(cluster, case, spool)
    assert {p.name for p in (spool / "results").iterdir()} == results, "tasks were executed again"
    case.check()
    oracle.check_no_stray(case.uri)
    before = case.version_before
    assert len(oracle.changes(case.uri, before)) == (0 if name == "create_index" else 1)


@pytest.mark.parametrize("name", KINDS)
def test_the_commits_answer_is_lost(name: str, tmp_path: Path, cluster) -> None:
    case = case_of(name, tmp_path)
    out = ended(drive(cluster, case.spec, tmp_path / "spool", "answer_lost"), False)
    assert json.loads(out.splitlines()[-1])["again"]
    case.check()
    oracle.check_no_stray(case.uri)


@pytest.mark.parametrize(
    "moment", ["reading", "before_commit", "mid_commit", "after_commit", "answer_lost"]
)
def test_the_driver_of_a_ray_dataset_dies(uri: str, moment: str, tmp_path: Path, cluster) -> None:
    """Before all blocks are written, what was written goes; after, nothing is read again."""
    spool = tmp_path / "spool"
    lance.write_dataset(pa.table({"id": range(10)}), uri)
    spec = {"operation": "write", "uri": uri, "mode": "append", "dataset": True}
    if moment == "reading":
        process = drive(cluster, spec, spool, "done")
        until = time.monotonic() + 120
        while not len(oracle.files(uri)) > 4:
            assert process.poll() is None and time.monotonic() < until, process.communicate()
            time.sleep(0.01)
        time.sleep(rng(moment).uniform(0, 0.5))
        process.kill()
        process.wait()
        assert (spool / "pending.json").exists() and lance.dataset(uri).version == 1
    elif moment == "mid_commit":
        drive(cluster, spec, spool, f"mid_commit:{rng(moment).uniform(0, 0.02):.4f}").communicate()
    else:
        ended(drive(cluster, spec, spool, moment), moment != "answer_lost")
    # Ray ends what a dead driver left, some time later.
    until = time.monotonic() + 60
    while moment == "reading" and writers():
        assert time.monotonic() < until
        time.sleep(0.1)
    out = ended(drive(cluster, spec, spool, "done"), False)
    assert json.loads(out.splitlines()[-1])["version"] == 2
    ids = sorted(read(uri)["id"].to_pylist())
    assert ids == sorted([*range(10), *range(600)])
    oracle.check_no_stray(uri)


def writers() -> list[int]:
    """Ray's processes that execute write tasks, of this cluster."""
    return nodes.workers(title=b"ray::MapBatches")


def test_the_command_line_goes_on(tmp_path: Path, cluster) -> None:
    """What a driver on Ray has left, another orchestrator finishes."""
    from cli_support import Cli

    case = case_of("compact", tmp_path)
    spool = tmp_path / "spool"
    ended(drive(cluster, case.spec, spool, "before_commit"), True)
    nodes.no_workers()
    removed = sorted((spool / "results").iterdir())[0]
    removed.unlink()
    cli = Cli(tmp_path)
    assert cli.json("run", spool)["tasks"] > 0
    cli.json("commit", spool)
    case.check()
    assert ltr.run(case.spec, spool=spool).already_committed


def test_a_spool_of_other_work(tmp_path: Path) -> None:
    case = case_of("compact", tmp_path)
    ltr.run(case.spec, spool=tmp_path / "spool")
    with pytest.raises(lt.InvalidArgumentError, match="fragment: the spool has 300"):
        ltr.run(lt.Compact(case.uri, target_rows_per_fragment=77), spool=tmp_path / "spool")


def test_workers_are_gone() -> None:
    nodes.no_workers()
    assert ray.is_initialized()
