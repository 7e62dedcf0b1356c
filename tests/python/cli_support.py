# SPDX-License-Identifier: Apache-2.0
"""The real binary for tests: started, waited for, killed, and what it prints."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import built_library

Done = subprocess.CompletedProcess[str]


def binary() -> Path:
    """The command line as the build leaves it."""
    return Path(os.environ.get("LANCE_TASKS_BIN") or built_library().with_name("lance-tasks"))


class Cli:
    """Calls of the command line in one folder."""

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.env = {**os.environ, **(env or {})}

    def start(self, *args: object, **options: Any) -> subprocess.Popen[str]:
        """A process of its own group, with its outputs piped."""
        return subprocess.Popen(
            [str(binary()), *map(str, args)],
            cwd=self.folder,
            env=self.env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def __call__(self, *args: object, status: int = 0, stdin: str = "") -> Done:
        """Run to the end and check the exit code."""
        done = subprocess.run(
            [str(binary()), *map(str, args)],
            cwd=self.folder,
            env=self.env,
            text=True,
            capture_output=True,
            input=stdin,
        )
        assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *args: object, status: int = 0, stdin: str = "") -> dict[str, Any]:
        """What `--json` prints: one object and nothing else."""
        done = self(*args, "--json", status=status, stdin=stdin)
        assert done.stdout.count("\n") == 1
        value = json.loads(done.stdout)
        assert isinstance(value, dict)
        return value

    def error(self, *args: object, status: int, stdin: str = "") -> dict[str, Any]:
        """The error of a call that must fail."""
        error = self.json(*args, status=status, stdin=stdin)["error"]
        assert {"code", "class", "message"} <= error.keys()
        return error

    def prepare(self, spool: str = "spool", **spec: object) -> dict[str, Any]:
        """Prepare a job from a spec in a file."""
        (self.folder / "spec.json").write_text(json.dumps(spec))
        return self.json("prepare", "spec.json", "--spool", spool)


def write_source(folder: Path, rows: int = 1000, name: str = "source.parquet") -> pa.Table:
    """A Parquet file of an id and a text."""
    table = pa.table({"id": range(rows), "name": [f"row {i}" for i in range(rows)]})
    pq.write_table(table, folder / name)
    return table


def write_big_source(folder: Path, rows: int = 3_000_000) -> int:
    """A Parquet file whose tasks take a while: rows of an id and a random number."""
    random = np.random.default_rng(7)
    table = pa.table({"id": np.arange(rows), "value": random.random(rows)})
    pq.write_table(table, folder / "big.parquet", row_group_size=20_000, compression="none")
    return rows


BIG = {
    "operation": "write",
    "uri": "big.lance",
    "sources": ["big.parquet"],
    "max_rows_per_file": 20_000,
}


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str] | None = None) -> None:
    """Until a file of that pattern is there; the process must not end before."""
    until = time.monotonic() + 60
    while not any(path.glob(pattern)):
        assert process is None or process.poll() is None, "the process ended early"
        assert time.monotonic() < until, f"no {pattern} in {path}"
        time.sleep(0.002)


def end(process: subprocess.Popen[str], sent: signal.Signals) -> tuple[int, str, str]:
    """Send a signal and wait; the exit code and both outputs."""
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def files_of(folder: Path) -> list[str]:
    """Every file below a folder that may not exist."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
