# SPDX-License-Identifier: Apache-2.0
"""Inputs of the benches: tables, files and datasets, the same at every run."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

SEED = 20_240_229
BATCH_ROWS = 65_536
TINY_ROWS = 100


def numbers(rows: int):
    """Eight columns of numbers as they come: keys, counters, measurements, few distinct values."""
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(SEED)
    return pa.table(
        {
            "key": rng.integers(0, 2**62, rows),
            "counter": np.arange(rows),
            "small": rng.integers(0, 1000, rows, dtype=np.int32),
            "category": rng.integers(0, 12, rows, dtype=np.int16),
            "normal": rng.standard_normal(rows),
            "price": np.round(rng.gamma(2, 50, rows), 2),
            "single": rng.random(rows, dtype=np.float32),
            "time": pa.array(1_700_000_000_000 + np.cumsum(rng.integers(0, 100, rows))).cast(
                pa.timestamp("ms")
            ),
        }
    )


def strings(rows: int):
    """Distinct strings of 8 to 48 characters."""
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(SEED)
    lengths = rng.integers(8, 49, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    letters = rng.integers(97, 123, offsets[-1], dtype=np.uint8)
    array = pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(letters))
    return pa.table({"text": array})


def vectors(rows: int):
    """Vectors of 128 float32 values."""
    import numpy as np
    import pyarrow as pa

    values = np.random.default_rng(SEED).standard_normal(rows * 128, dtype=np.float32)
    return pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array(values), 128)})


def arrow_file(table: Callable[[int], object], rows: int) -> Callable[[Path, int], None]:
    def make(folder: Path, less: int) -> None:
        import pyarrow as pa

        data = table(rows // less)
        with pa.ipc.new_file(folder / "input.arrow", data.schema) as writer:
            writer.write_table(data, max_chunksize=BATCH_ROWS)

    return make


def parquet_files(folder: Path, less: int) -> None:
    import pyarrow.parquet as pq

    data = numbers(5_000_000 // less)
    size = data.num_rows // 8
    for i in range(8):
        part = data.slice(i * size, size)
        pq.write_table(part, folder / f"part-{i}.parquet", row_group_size=size // 5 + 1)


def dataset(rows: int, fragments: int) -> Callable[[Path, int], None]:
    def make(folder: Path, less: int) -> None:
        import lance

        data = numbers(rows // less)
        per_file = data.num_rows // fragments
        lance.write_dataset(data, folder / "input.lance", max_rows_per_file=per_file)

    return make


def copy_dataset(source: Path, target: Path | str) -> None:
    """The dataset at another place; its files never change, so links do."""
    shutil.copytree(source, target, copy_function=os.link)


def tiny_fragments(uri: Path, fragments: int) -> None:
    """A dataset of fragments of `TINY_ROWS` rows, all with the same rows.

    One data file is written and linked under a name of its own for each fragment, so that tens of
    thousands take a second.
    """
    import lance
    import numpy as np
    import pyarrow as pa
    from lance.fragment import FragmentMetadata, write_fragments

    shutil.rmtree(uri, ignore_errors=True)
    rng = np.random.default_rng(SEED)
    rows = pa.table({"key": rng.integers(0, 2**62, TINY_ROWS), "value": rng.random(TINY_ROWS)})
    (fragment,) = write_fragments(rows, str(uri), mode="create")
    description = fragment.to_json()
    (file,) = description["files"]
    written = uri / "data" / file["path"]
    linked = []
    for number in range(fragments):
        file["path"] = f"{number:06d}.lance"
        os.link(written, uri / "data" / file["path"])
        linked.append(FragmentMetadata.from_json(json.dumps(description)))
    written.unlink()
    operation = lance.LanceOperation.Overwrite(rows.schema, linked)
    lance.LanceDataset.commit(str(uri), operation)
