# SPDX-License-Identifier: Apache-2.0
"""What no writer of the same bytes can do without: moving them, and reading them at all."""

import os
import shutil
import threading
from pathlib import Path
from typing import Any

from common import seconds

PIECE = 8 << 20


def parquet_reader(folder: Path, threads: bool = True):
    """A stream over the Parquet files, read ahead by pyarrow's threads or on one."""
    import pyarrow.dataset

    files = sorted(map(str, folder.glob("part-*.parquet")))
    return pyarrow.dataset.dataset(files).scanner(use_threads=threads).to_reader()


def rows_of(name: str, folder: Path):
    """The Arrow rows that the work reads: for the index its column, else all."""
    if (folder / "input.lance").exists():
        import lance

        data = lance.dataset(folder / "input.lance")
        return data.to_table(columns=["key"] if name == "btree" else None)
    if (folder / "input.arrow").exists():
        import pyarrow as pa

        with pa.ipc.open_file(folder / "input.arrow") as reader:
            return reader.read_all()
    return parquet_reader(folder).read_all()


def measure(name: str, folder: str, out: str) -> dict[str, float]:
    """In a child: the seconds of each floor, and the bytes."""
    import numpy as np

    source = Path(folder)
    data = np.random.default_rng(0).bytes(rows_of(name, source).nbytes)
    half = len(data) // 2
    view = memoryview(data)
    floors: dict[str, float] = {}
    for _ in range(2):  # the second counts, as above
        floors["memcpy into fresh memory, 1 thread"] = seconds(lambda: bytearray(view))
        os.sync()
        floors["copy to a new file, 1 thread"] = seconds(lambda: copy(view, f"{out}/copy"))
        os.unlink(f"{out}/copy")
        os.sync()
        parts = {f"{out}/first": view[:half], f"{out}/second": view[half:]}
        floors["copy to new files, 2 threads"] = seconds(lambda parts=parts: copies(parts))
        for path in parts:
            os.unlink(path)
        if name == "write-parquet":
            floors["decode alone by pyarrow, 1 thread"] = seconds(lambda: drain(source, False))
            floors["decode alone by pyarrow, all threads"] = seconds(lambda: drain(source, True))
        if name == "btree":
            keys = rows_of(name, source)["key"].to_numpy()
            floors["sort of the keys alone by numpy, 1 thread"] = seconds(lambda k=keys: np.sort(k))
    if (source / "input.arrow").exists():
        floors["pylance in 2 processes, half of the rows each"] = two_processes(source, out)
    return {"bytes": float(len(data)), **floors}


def two_processes(folder: Path, out: str) -> float:
    """What two cores give the same encoder where it shares nothing: the second run, as above."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(2), context.Queue()
    halves = [
        context.Process(target=write_half, args=(part, folder, f"{out}/{part}", barrier, times))
        for part in range(2)
    ]
    for process in halves:
        process.start()
    taken = [times.get(timeout=120) for _ in halves]
    for process in halves:
        process.join()
    return max(taken)


def write_half(part: int, folder: Path, out: str, barrier: Any, times: Any) -> None:
    import pyarrow as pa
    from lance.fragment import write_fragments

    with pa.ipc.open_file(folder / "input.arrow") as reader:
        rows = reader.read_all()
    rows = rows.slice(part * len(rows) // 2, len(rows) // 2)
    taken = 0.0
    for _ in range(2):
        shutil.rmtree(out, ignore_errors=True)
        barrier.wait(120)
        taken = seconds(lambda: write_fragments(rows.to_reader(), out, mode="create"))
        barrier.wait(120)
    times.put(taken)


def copy(data: memoryview, path: str) -> None:
    """Into the page cache, as a writer that does not sync does it."""
    with open(path, "wb", buffering=0) as file:
        for at in range(0, len(data), PIECE):
            file.write(data[at : at + PIECE])


def copies(parts: dict[str, memoryview]) -> None:
    threads = [threading.Thread(target=copy, args=(data, path)) for path, data in parts.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def drain(folder: Path, threads: bool) -> None:
    for _ in parquet_reader(folder, threads):
        pass
