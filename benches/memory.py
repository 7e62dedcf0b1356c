# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a write far larger than its budget."""

import shutil
import sys
from pathlib import Path

from common import SIDES, Section, Settings, child, mb, medians, seconds, status

ROWS, ROW_BYTES, BATCH_ROWS = 200_000, 50_000, 64
BUDGET = 256 << 20
LIMIT = 400e6


def stream(rows: int):
    """Rows of random bytes; no more than the batch being made and the one handed over exist."""
    import numpy as np
    import pyarrow as pa

    schema = pa.schema({"id": pa.int64(), "payload": pa.binary()})
    rng = np.random.default_rng(0)

    def batches():
        for first in range(0, rows, BATCH_ROWS):
            count = min(BATCH_ROWS, rows - first)
            ids = pa.array(range(first, first + count), pa.int64())
            offsets = np.arange(count + 1, dtype=np.int32) * ROW_BYTES
            data = pa.py_buffer(rng.bytes(count * ROW_BYTES))
            payload = pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), data])
            yield pa.record_batch([ids, payload], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def write(side: str, rows: int, out: str) -> dict[str, float]:
    """In a child: peak memory in bytes, before and with the write, and seconds."""
    for _ in stream(4 * BATCH_ROWS):  # the producer's own memory is there before
        pass
    if side == "lance-tasks":
        import lance_tasks as lt

        executor = lt.Executor(memory_budget=BUDGET)

        def run() -> None:
            lt.run(lt.Write(out), data=stream(rows), executor=executor)
    elif side == "pylance":
        import lance
        from lance.fragment import write_fragments

        def run() -> None:
            reader = stream(rows)
            fragments = write_fragments(reader, out, mode="create")
            lance.LanceDataset.commit(out, lance.LanceOperation.Overwrite(reader.schema, fragments))
    else:  # the producer alone

        def run() -> None:
            for _ in stream(rows):
                pass

    before = status("VmHWM")
    took = seconds(run)
    return {"before": before, "peak": status("VmHWM"), "own": status("RssAnon"), "seconds": took}


def check(rows: int, out: str) -> None:
    """In a child: is every row there, once?"""
    import lance
    import pyarrow.compute as pc

    data = lance.dataset(out)
    ids = data.to_table(columns=["id"])["id"]
    if len(ids) != rows or pc.sum(ids).as_py() != rows * (rows - 1) // 2:
        sys.exit(f"{out}: {len(ids)} rows, {rows} were written")
    some = data.take([0, rows - 1], columns=["payload"])["payload"]
    if any(len(value.as_py()) != ROW_BYTES for value in some):
        sys.exit(f"{out}: rows of other lengths")


def run(settings: Settings) -> Section:
    section = Section("Memory of a large write")
    rows = settings.scaled(ROWS, 10 * BATCH_ROWS)
    size = rows * ROW_BYTES
    settings.data.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(settings.data).free
    if free < 2 * size:
        sys.exit(f"{settings.data}: {free / 1e9:.0f} GB free, {2 * size / 1e9:.0f} GB are wanted")
    section.text(
        f"{rows} rows of {ROW_BYTES} random bytes ({size / 1e9:.1f} GB) from a stream of pyarrow's "
        f"batches of {BATCH_ROWS} rows, memory_budget {BUDGET >> 20} MiB. Before: the process with "
        "the producer, pyarrow and the library loaded. The largest of all runs counts; pylance and "
        "the producer ran once."
    )
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in (*SIDES, "producer alone")}
    for turn in range(settings.runs):
        # The others are there to compare with, once: each writes as much again.
        for side in runs if turn == 0 else SIDES[:1]:
            with settings.scratch() as scratch:
                out = str(Path(scratch) / "out.lance")
                runs[side].append(child("memory", "write", side=side, rows=rows, out=out))
                if side != "producer alone":
                    child("memory", "check", rows=rows, out=out)
    table = []
    for side, answers in runs.items():
        one = medians(answers)
        table.append(
            [
                side,
                mb(one["peak"]),
                mb(max(answer["peak"] for answer in answers)),
                mb(one["before"]),
                mb(one["peak"] - one["before"]),
                f"{one['seconds']:.1f} s",
                f"{size / 1e6 / one['seconds']:.0f} MB/s",
            ]
        )
    peak = max(answer["peak"] for answer in runs[SIDES[0]])
    section.target(
        f"peak memory of writing {rows} rows of 50 KB, budget {BUDGET >> 20} MiB",
        mb(LIMIT),
        mb(peak),
        peak < LIMIT,
    )
    section.table(["Write", "peak", "largest", "before", "beyond it", "seconds", "rate"], table)
    return section
