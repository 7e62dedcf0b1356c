# SPDX-License-Identifier: Apache-2.0
"""What the children of `blobs.py` do: write, compact and take blobs, and read back what is there.

A write or a compaction is done twice, each time into a fresh place: as a process begins, and as a
worker that stays goes on. Afterwards stock pylance reads every payload back and compares it.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import floors
import inputs
from common import seconds, status
from index_work import job

COLUMN = "payload"
# Of the executor whose memory is measured.
BUDGET = 512 << 20
BATCH_BYTES = 32_000_000
# Of the column that is shared, and compacted.
SHARING, SHARED_BYTES, FRAGMENTS = 20, 1_000_000, 4
TAKES = 5
COPY, PRODUCER = "plain copy", "producer alone"


@dataclass(frozen=True)
class Payloads:
    """Rows with a payload of random bytes each."""

    title: str
    rows: int
    size: int

    @property
    def batch_rows(self) -> int:
        return max(BATCH_BYTES // self.size, 1)


CASES = {
    "blobs-packed": Payloads("200 KB", 2_000, 200_000),
    "blobs-dedicated": Payloads("8 MB", 100, 8_000_000),
}


def payload(number: int, size: int) -> bytes:
    import numpy as np

    return np.random.default_rng(inputs.SEED + number).bytes(size)


# Inputs


def make(name: str, folder: Path, rows: int) -> None:
    """The payloads in an Arrow file, and a dataset of them by pylance."""
    import lance
    import pyarrow as pa

    case = CASES[name]
    schema = pa.schema([pa.field("id", pa.int64()), lance.blob_field(COLUMN)])
    with pa.ipc.new_file(folder / "input.arrow", schema) as writer:
        for first in range(0, rows, case.batch_rows):
            ids = range(first, min(first + case.batch_rows, rows))
            values = lance.blob_array([payload(i, case.size) for i in ids])
            writer.write_batch(pa.record_batch([pa.array(ids, pa.int64()), values], schema=schema))
    lance.write_dataset(stream(folder), folder / "input.lance", data_storage_version="2.2")


def stream(folder: Path):
    """The rows, read from their file as they are asked for."""
    import pyarrow as pa

    # Not mapped: the pages of a file would count as memory of the process.
    file = pa.ipc.open_file(pa.OSFile(str(folder / "input.arrow")))
    batches = (file.get_batch(i) for i in range(file.num_record_batches))
    return pa.RecordBatchReader.from_batches(file.schema, batches)


def make_shared(out: str, rows: int) -> float:
    """By ours: each payload `SHARING` times, in every fragment; the bytes of the distinct ones."""
    import pyarrow as pa

    import lance_tasks as lt

    distinct = rows // SHARING
    values = pa.array([payload(i, SHARED_BYTES) for i in range(distinct)], pa.large_binary())
    refs = pa.array(range(1, distinct + 1), pa.int64())
    batch = pa.record_batch({"ref": refs, COLUMN: values})
    spec = lt.Write(
        out,
        max_rows_per_file=rows // FRAGMENTS,
        blob_columns=[lt.BlobColumn(COLUMN, ref_id="ref")],
    )
    lt.run(spec, data=pa.Table.from_batches([batch] * SHARING))
    return float(distinct * SHARED_BYTES)


# The work


def twice(
    work: Callable[[], Any], out: str, source: Path | None = None
) -> tuple[dict[str, list[float]], Any]:
    """Seconds of each, by the clock and of CPU time, and what the second returned."""
    took: dict[str, list[float]] = {"seconds": [], "cpu": []}
    answers: list[Any] = []
    for _ in range(2):
        shutil.rmtree(out, ignore_errors=True)
        if source:
            inputs.copy_dataset(source, out)
        os.sync()  # what earlier measurements left to be written is not this one's
        before = time.process_time()
        took["seconds"].append(seconds(lambda: answers.append(work())))
        took["cpu"].append(time.process_time() - before)
    return took, answers[-1]


def write_ours(rows, out: str, executor: object = None) -> dict[str, float]:
    """Seconds of each step."""
    import lance_tasks as lt

    spec = lt.Write(out, partitions=["0"])
    made: list[Any] = []
    took = {
        "prepare": seconds(lambda: made.append(lt.prepare(spec, rows.schema, executor=executor))),
        "execute": seconds(
            lambda: made.append(lt.execute(made[0].task("0"), rows, executor=executor))
        ),
    }
    took["commit"] = seconds(lambda: lt.commit(made[0], made[1:], executor=executor))
    return took


def write_theirs(rows, out: str) -> None:
    import lance

    lance.write_dataset(rows, out, data_storage_version="2.2")


def write(side: str, folder: str, out: str) -> dict[str, Any]:
    """In a child: the rows in memory, written by one side."""
    source = Path(folder) / "input.arrow"
    if side == COPY:
        took, _ = twice(lambda: copy_file(source, out), out)
        return {**took, **memory_floors(source, out)}
    rows = stream(Path(folder)).read_all()
    if side == "pylance":
        import lance  # noqa: F401

        took, steps = twice(lambda: write_theirs(rows, out), out)
    else:
        import lance_tasks as lt

        lt.versions()
        took, steps = twice(lambda: write_ours(rows, out), out)
    check(out, payloads_of(rows))
    return {**took, "steps": steps, "files": len(files_of(out))}


def copy_file(source: Path, out: str) -> None:
    Path(out).mkdir()
    shutil.copyfile(source, f"{out}/copy")


def memory_floors(source: Path, out: str) -> dict[str, Any]:
    """Seconds of writing the same bytes from memory; the second time of each."""
    view = memoryview(source.read_bytes())
    half = len(view) // 2
    whole, parts = {f"{out}/0": view}, {f"{out}/0": view[:half], f"{out}/1": view[half:]}
    took: dict[str, float] = {}
    for what, files in (("1 thread", whole), ("2 threads", parts)):

        def work(files: dict[str, memoryview] = files) -> None:
            Path(out).mkdir()
            floors.copies(files)

        took[f"memory to new files, {what}"] = twice(work, out)[0]["seconds"][1]
    return {"floors": took}


def write_in_budget(side: str, folder: str, out: str) -> dict[str, float]:
    """In a child: peak memory in bytes, before and with a write of rows that are read meanwhile."""
    source = Path(folder)
    if side == "pylance":
        import lance  # noqa: F401

        def run() -> None:
            write_theirs(stream(source), out)
    elif side == PRODUCER:

        def run() -> None:
            for _ in stream(source):
                pass
    else:
        import lance_tasks as lt

        executor = lt.Executor(memory_budget=BUDGET)

        def run() -> None:
            write_ours(stream(source), out, executor)

    next(iter(stream(source)))  # the producer's own memory is there before
    before = status("VmHWM")
    took = seconds(run)
    answer = {"before": before, "peak": status("VmHWM"), "seconds": took}
    if side != PRODUCER:
        check(out, payloads_of(stream(source)))
    return answer


def compact(side: str, source: str, out: str, rows: int) -> dict[str, Any]:
    """In a child: a copy of the dataset compacted, and the bytes of the files that are new."""
    if side == "pylance":
        import lance

        def work() -> None:
            lance.dataset(out).optimize.compact_files()
    else:
        import lance_tasks as lt

        lt.versions()

        def work() -> dict[str, float]:
            return job(lt.Compact(out))

    took, steps = twice(work, out, Path(source))
    answer = {**took, "steps": steps, "peak": status("VmHWM")}
    before, after = files_of(source), files_of(out)
    answer["written"] = sum(size for path, size in after.items() if path not in before)
    distinct = [payload(i, SHARED_BYTES) for i in range(rows // SHARING)]
    check(out, iter(distinct * SHARING), fragments=1)
    return answer


def files_of(folder: str) -> dict[str, int]:
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def take(side: str, folder: str) -> dict[str, Any]:
    """In a child: half of the rows in a random order, by their places, several times."""
    import numpy as np

    source = Path(folder)
    uri = str(source / "input.lance")
    rows = sum(batch.num_rows for batch in stream(source))
    chosen = np.random.default_rng(inputs.SEED).permutation(rows)[: rows // 2].tolist()
    if side == "lance-tasks":
        import pyarrow  # noqa: F401

        import lance_tasks as lt

        lt.versions()
    else:
        import lance  # noqa: F401
    work = TAKERS[side]
    before = status("VmHWM")
    took: list[float] = []
    steps: dict[str, float] = {}
    found: list[Any] = []
    for _ in range(TAKES):
        found.clear()
        took.append(seconds(lambda: found.append(work(uri, chosen, steps))))
    answer = {"seconds": took, "steps": steps, "before": before, "peak": status("VmHWM")}
    known = stream(source).read_all()[COLUMN]
    same(f"{side}: ", buffers(found[0]), (payload_at(known, i) for i in chosen))
    return answer


def take_ours(uri: str, chosen: list[int], took: dict[str, float]):
    import pyarrow as pa

    import lance_tasks as lt

    made: list[Any] = []
    spec = lt.TakeBlobs(uri, column=COLUMN, indices=chosen)
    took["prepare"] = seconds(lambda: made.append(lt.prepare(spec)))
    took["plan"] = seconds(lambda: made.append(lt.plan(made[0])))
    took["read"] = seconds(lambda: made.append(pa.table(lt.read(made[1]))))
    return made[2][COLUMN]


def read_blobs(uri: str, chosen: list[int], _: dict[str, float]) -> list[bytes]:
    import lance

    found = lance.dataset(uri).read_blobs(COLUMN, indices=chosen, preserve_order=True)
    return [value for _, value in found]


def take_blobs(uri: str, chosen: list[int], _: dict[str, float]) -> list[bytes]:
    import lance

    found = lance.dataset(uri).take_blobs(COLUMN, indices=chosen)
    return [blob.readall() for blob in found]


TAKERS: dict[str, Callable[[str, list[int], dict[str, float]], Any]] = {
    "lance-tasks": take_ours,
    "pylance read_blobs": read_blobs,
    "pylance take_blobs": take_blobs,
}


# What is there, by stock pylance


def buffers(values: Any) -> Iterator[Any]:
    """The bytes of each, not copied."""
    import pyarrow as pa

    for value in values:
        yield value.as_buffer() if isinstance(value, pa.Scalar) else pa.py_buffer(value)


def payload_at(column, row: int):
    """The bytes of a row, whether or not its extension type is known here."""
    import pyarrow as pa

    for chunk in column.chunks:
        if row < len(chunk):
            storage = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
            return storage.field("data")[row].as_buffer()
        row -= len(chunk)
    raise IndexError(row)


def payloads_of(rows: Any) -> Iterator[Any]:
    """The payloads of a table, or of a stream of which a batch is held at a time."""
    import pyarrow as pa

    for batch in rows.to_batches() if isinstance(rows, pa.Table) else rows:
        column = pa.chunked_array([batch[COLUMN]])
        for row in range(batch.num_rows):
            yield payload_at(column, row)


def check(out: str, expected: Iterator[Any], fragments: int | None = None) -> None:
    """Every row's payload is the expected one."""
    import lance

    data = lance.dataset(out)
    if fragments is not None and len(data.get_fragments()) != fragments:
        sys.exit(f"{out}: {len(data.get_fragments())} fragments, {fragments} are wanted")

    def found() -> Iterator[Any]:
        rows, step = data.count_rows(), 32
        for first in range(0, rows, step):
            places = list(range(first, min(first + step, rows)))
            part = data.read_blobs(COLUMN, indices=places, preserve_order=True)
            yield from buffers(value for _, value in part)

    same(f"{out}: ", found(), expected)


def same(what: str, found: Iterator[Any], expected: Iterator[Any]) -> None:
    import pyarrow as pa

    end = object()
    row = 0
    while True:
        mine, known = next(found, end), next(expected, end)
        if mine is end and known is end:
            break
        if mine is end or known is end:
            sys.exit(f"{what}{row} rows and no more on one side")
        if not mine.equals(pa.py_buffer(known)):
            sys.exit(f"{what}row {row} has other bytes")
        row += 1
    if row == 0:
        sys.exit(f"{what}no rows")
