# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed, stopped, fail and are taken up again."""

import json
import signal
from pathlib import Path

import lance
import pytest
from cli_support import BIG, Cli, end, files_of, wait_for, write_big_source, write_source


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def check_big(folder: Path, rows: int) -> None:
    """Every row exactly once, in order."""
    ids = lance.dataset(folder / "big.lance").to_table(columns=["id"])["id"].to_numpy()
    assert len(ids) == rows and (ids[1:] > ids[:-1]).all()


def done(cli: Cli) -> int:
    (stage,) = cli.json("inspect", "spool")["stages"]
    return int(stage["done"])


def test_a_killed_shard_is_taken_up_again(cli: Cli, tmp_path: Path) -> None:
    rows = write_big_source(tmp_path)
    cli.prepare(**BIG)
    shard = cli.start("run", "spool", "--shard", "0/2", "--jobs", 1)
    wait_for(tmp_path, "spool/results/*.ok.*", shard)
    assert end(shard, signal.SIGKILL)[0] == -signal.SIGKILL
    before = done(cli)
    assert 0 < before < 75
    cli("run", "spool", "--shard", "1/2")
    assert done(cli) == before + 75
    assert cli.json("run", "spool", "--shard", "0/2")["tasks"] == 75 - before
    cli("commit", "spool")
    check_big(tmp_path, rows)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_keeps_the_results_so_far(cli: Cli, tmp_path: Path, sent: signal.Signals) -> None:
    rows = write_big_source(tmp_path)
    cli.prepare(**BIG)
    shard = cli.start("run", "spool", "--json", "--jobs", 1)
    wait_for(tmp_path, "spool/results/*.ok.*", shard)
    status, out, err = end(shard, sent)
    answer = json.loads(out)
    assert status == 75 and sent.name in err
    assert (answer["error"]["code"], answer["error"]["class"]) == ("CANCELLED", "retry_task")
    inspected = cli.json("inspect", "spool")
    (stage,) = inspected["stages"]
    # What was done is noted, what was cancelled is no failure, and left no file behind.
    assert 0 < stage["done"] == answer["tasks"] < 150
    assert inspected["attempts"] == {"ok": stage["done"], "failed": 0}
    assert len(files_of(tmp_path / "big.lance" / "data")) == stage["done"]
    assert cli.json("run", "spool")["tasks"] == 150 - stage["done"]
    cli("commit", "spool")
    check_big(tmp_path, rows)


def test_a_shell_that_ignores_sigint_is_obeyed(cli: Cli, tmp_path: Path) -> None:
    write_big_source(tmp_path)
    cli.prepare(**BIG)
    shard = cli.start(
        "run", "spool", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )
    wait_for(tmp_path, "spool/results/*.ok.*", shard)
    status, _, err = end(shard, signal.SIGINT)
    assert status == 0, err


def block_data(folder: Path) -> Path:
    """A file where the data folder has to be: no task can write, until it is away."""
    (folder / "out.lance").mkdir()
    obstacle = folder / "out.lance" / "data"
    obstacle.write_text("in the way")
    return obstacle


SPEC = {
    "operation": "write",
    "uri": "out.lance",
    "sources": ["source.parquet"],
    "max_rows_per_file": 100,
}


def test_what_may_succeed_is_tried_again_and_named(cli: Cli, tmp_path: Path) -> None:
    write_source(tmp_path, rows=1500)
    cli.prepare(**SPEC)
    obstacle = block_data(tmp_path)
    answer = cli.json("run", "spool", "--retries", 1, status=75)
    assert (answer["error"]["code"], answer["error"]["class"]) == ("IO", "retry_task")
    assert "run again" in answer["error"]["hint"]
    assert [task["index"] for task in answer["failed"]] == list(range(15))
    assert {task["attempts"] for task in answer["failed"]} == {2}
    inspected = cli.json("inspect", "spool")
    assert inspected["attempts"] == {"ok": 0, "failed": 30}
    assert (inspected["stages"][0]["failed"], inspected["state"]) == (15, "open")
    assert sum(error["count"] for error in inspected["errors"]) == 30
    assert "15 failed (tasks 0, 1, 2" in cli("inspect", "spool").stdout

    plain = cli("run", "spool", "--retries", 0, "--shard", "2/3", status=75)
    assert "5 of 5 tasks failed" in plain.stderr and "hint: run again" in plain.stderr
    obstacle.unlink()
    assert cli.json("run", "spool")["tasks"] == 15
    cli("commit", "spool")
    assert lance.dataset(tmp_path / "out.lance").count_rows() == 1500


def test_what_fails_once_succeeds_at_the_next_try(cli: Cli, tmp_path: Path) -> None:
    """The obstacle goes away while the run waits for its next try."""
    write_source(tmp_path)
    cli.prepare(**SPEC)
    obstacle = block_data(tmp_path)
    running = cli.start("run", "spool", "--json", "--retries", 50)
    wait_for(tmp_path, "spool/results/*.failed.*", running)
    obstacle.unlink()
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert json.loads(out)["tasks"] == 10
    assert cli.json("inspect", "spool")["stages"][0]["done"] == 10


def test_the_worst_failure_decides_the_exit_code(cli: Cli, tmp_path: Path) -> None:
    """A source that is wrong for good is not tried again; the other tasks are done all the same."""
    (tmp_path / "a.csv").write_text("id\n" + "".join(f"{i}\n" for i in range(100)))
    (tmp_path / "b.csv").write_text("id\n" + "".join(f"{i}\n" for i in range(5000)))
    cli.prepare(operation="write", uri="out.lance", sources=["a.csv", "b.csv"])
    cli("plan", "spool")
    with (tmp_path / "b.csv").open("a") as file:
        file.write("no number\n")
    answer = cli.json("run", "spool", status=2)
    assert answer["error"]["class"] == "invalid"
    assert {task["attempts"] for task in answer["failed"]} == {1}
    assert "prepare it anew" in answer["error"]["hint"]


def test_a_deadline(cli: Cli, tmp_path: Path) -> None:
    rows = write_big_source(tmp_path)
    cli.prepare(**BIG)
    cli("plan", "spool")
    answer = cli.json("run", "spool", "--timeout", 0, status=75)
    assert answer["error"]["code"] == "DEADLINE_EXCEEDED"
    assert "150 of 150 tasks were not done in time" in answer["error"]["message"]
    assert cli.json("inspect", "spool")["attempts"] == {"ok": 0, "failed": 0}
    cli("run", "spool", "--timeout", 600)
    cli("commit", "spool")
    check_big(tmp_path, rows)
