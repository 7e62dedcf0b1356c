# SPDX-License-Identifier: Apache-2.0
"""What one `execute` through the C ABI costs beyond its work; abi.c is compiled and run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import inputs
from common import BENCHES, ROOT, Section, Settings, child, median

LOOPS = 20_000
LIMIT = 20e-6

STEPS = {
    "nothing": "a function that does nothing (with the clock)",
    "refused": "`execute` of no bytes: refused, error made and freed",
    "task": "a task decoded and encoded (`convert`)",
    "table": "a table of no results made, exported, released (`rows_to_table`)",
    "result": "a result decoded from IPC, made a row and exported (`rows_to_table`)",
    "cancelled": "`execute`, cancelled before it begins: decode, worker and back, error",
    "empty": "`execute` of a write without rows: success, nothing written",
    "around": "of it outside of the attempt: decode, worker and back, row, export",
    "row": "the result taken from its stream and released",
}


def prepare(folder: str) -> None:
    """In a child: the tasks."""
    import pyarrow as pa

    import lance_tasks as lt

    at = Path(folder)
    schema = pa.schema([pa.field("key", pa.int64())])
    job = lt.prepare(lt.Write(at / "empty.lance", partitions=["none"]), schema)
    (at / "empty.task").write_bytes(job.task("none").to_bytes())
    uri = at / "data.lance"
    inputs.tiny_fragments(uri, 20)
    spec = lt.Compact(uri, target_rows_per_fragment=2 * inputs.TINY_ROWS)
    (at / "compact.task").write_bytes(lt.plan(lt.prepare(spec))[0].to_bytes())


def compile_program(program: Path) -> None:
    library = Path(os.environ["LANCE_TASKS_LIBRARY"]).resolve()
    # As installed: the linker's name and the loader's (the SONAME) beside each other.
    for name in ("liblance_tasks.so", "liblance_tasks.so.0"):
        (program.parent / name).symlink_to(library)
    command = [
        os.environ.get("CC", "cc"),
        *("-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O2", "-Wall", "-Wextra", "-Werror"),
        *(f"-I{ROOT / 'include'}", BENCHES / "abi.c", "-o", program),
        *(f"-L{program.parent}", "-llance_tasks", f"-Wl,-rpath,{program.parent}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"abi.c does not compile:\n{done.stderr}")


def run(settings: Settings) -> Section:
    section = Section("The C ABI")
    loops = settings.scaled(LOOPS, 200)
    section.text(
        f"A C program, {loops} calls of each kind: median and 99th percentile of a call. The Rust "
        "call cannot be had without the ABI from outside; what `execute` adds to it is decoding "
        "the task and making and exporting the result's row. A call's way to a worker thread and "
        "back is the Rust call's own."
    )
    with settings.scratch() as scratch:
        child("abi", "prepare", folder=str(scratch))
        program = scratch / "abi"
        compile_program(program)
        answers = []
        for _ in range(settings.runs):
            done = subprocess.run(
                [program, str(loops), scratch / "empty.task", scratch / "compact.task"],
                capture_output=True,
                text=True,
            )
            if done.returncode != 0:
                sys.exit(f"abi.c failed:\n{done.stderr}")
            answers.append(json.loads(done.stdout))
    half, most = (
        {name: median([answer[name][at] for answer in answers]) / 1e9 for name in STEPS}
        for at in (0, 1)
    )
    section.table(
        ["Call", "median", "99th percentile"],
        [[title, us(half[name]), us(most[name])] for name, title in STEPS.items()],
    )
    fixed = half["task"] + half["table"]
    apart = half["task"] + half["around"] - half["cancelled"]
    low, high = sorted((fixed, apart))
    section.text(
        f"Beyond the Rust call, then: {us(fixed)} for the task and a row's table alone; "
        f"{us(apart)} as what a success costs more around its attempt than a call that is "
        "cancelled, which has the same way to a worker and back, and no row."
    )
    section.target(
        "C ABI: one `execute` beyond the Rust call",
        us(LIMIT),
        f"{low * 1e6:.1f} to {us(high)}",
        high < LIMIT,
    )
    return section


def us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us"
