# SPDX-License-Identifier: Apache-2.0
"""What progress looks like: a bar on a terminal, plain lines elsewhere, nothing when asked."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
from pathlib import Path

import pytest
from cli_support import BIG, Cli, binary, write_big_source, write_source


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def on_a_terminal(cli: Cli, *args: str, columns: int = 100) -> tuple[int, str, str]:
    """Exit code, standard output, and what a terminal at standard error was sent."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [str(binary()), *args],
        cwd=cli.folder,
        env={**cli.env, "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=follower,
    )
    os.close(follower)
    sent = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not chunk:
            break
        sent += chunk
    os.close(leader)
    assert process.stdout is not None
    out = process.stdout.read().decode()
    return process.wait(), out, sent.decode()


def test_a_bar_on_a_terminal(cli: Cli, tmp_path: Path) -> None:
    write_big_source(tmp_path)
    cli.prepare(**BIG)
    status, out, sent = on_a_terminal(cli, "run", "spool", "--jobs", "1")
    assert status == 0 and out.startswith("ran 150 tasks: 3,000,000 rows")
    assert "of 150 tasks" in sent and "/s" in sent and "left" in sent
    # Drawn more than once in one line, and cleared at the end.
    assert sent.count("of 150 tasks") > 2 and "\r" in sent and "\x1b[" in sent
    assert "(1 of" not in sent


def test_a_failure_on_a_terminal(cli: Cli, tmp_path: Path) -> None:
    write_source(tmp_path)
    cli.prepare(operation="write", uri="out.lance", sources=["source.parquet"])
    (tmp_path / "out.lance").mkdir()
    (tmp_path / "out.lance" / "data").write_text("in the way")
    status, _, sent = on_a_terminal(cli, "run", "spool", "--retries", "0")
    assert status == 75
    assert "task 0 failed: " in sent and "1 failed" in sent and "hint: " in sent


@pytest.mark.parametrize("flag", ["--quiet", "--json"])
def test_nothing_on_a_terminal_when_asked(cli: Cli, tmp_path: Path, flag: str) -> None:
    write_source(tmp_path)
    write = ["write", "source.parquet", "--to", "d.lance", "--max-rows-per-file", "100"]
    status, out, sent = on_a_terminal(cli, *write, flag)
    assert (status, sent) == (0, "") and out.count("\n") == 1


def test_lines_elsewhere(cli: Cli, tmp_path: Path) -> None:
    write_source(tmp_path)
    write = ["write", "source.parquet", "--to", "d.lance", "--max-rows-per-file", "100"]
    done = cli(*write)
    lines = done.stderr.splitlines()
    assert len(lines) == 10 and all("100 rows" in line for line in lines)
    assert lines[-1].endswith("(10 of 10)")
    assert done.stdout.startswith("committed version 1 of ")
    assert "\r" not in done.stderr and "\x1b" not in done.stderr


def test_of_many_tasks_not_each_is_told(cli: Cli, tmp_path: Path) -> None:
    write_source(tmp_path)
    done = cli("write", "source.parquet", "--to", "d.lance", "--max-rows-per-file", "5")
    assert len(done.stderr.splitlines()) < 20
