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
VOCABULARY, WORDS = 50_000, 20
CLUSTERS, DIMENSION = 1_000, 128


def numbers(rows: int, start: int = 0):
    """Eight columns of numbers as they come: keys, counters, measurements, few distinct values."""
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(SEED + start)
    return pa.table(
        {
            "key": rng.integers(0, 2**62, rows),
            "counter": np.arange(start, start + rows),
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


def texts(rows: int, start: int = 0):
    """Twenty words each, drawn from a vocabulary as language has it: few words make most of it."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    rng = np.random.default_rng(SEED + start)
    drawn = rng.choice(VOCABULARY, rows * WORDS, p=frequencies()).astype(np.int32)
    words = pa.array(vocabulary()).take(pa.array(drawn))
    offsets = np.arange(0, rows * WORDS + 1, WORDS, dtype=np.int32)
    lines = pa.ListArray.from_arrays(pa.array(offsets), words)
    return pa.table({"id": np.arange(start, start + rows), "text": pc.binary_join(lines, " ")})


def frequencies():
    """How often each word of the vocabulary is drawn (Zipf's law)."""
    import numpy as np

    weights = 1 / np.arange(1, VOCABULARY + 1)
    return weights / weights.sum()


def vocabulary() -> list[str]:
    """Distinct words of 4 to 12 consonants: none is a stop word, or has an ending that a stemmer
    knows."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    letters = np.array(list("bcdfghjklmnpqrtvwxz"))
    words: dict[str, None] = {}
    while len(words) < VOCABULARY:
        words["".join(rng.choice(letters, rng.integers(4, 13)))] = None
    return list(words)


def clustered(rows: int, start: int = 0):
    """Vectors of 128 float32 in a thousand clusters of eight directions each, and some noise."""
    import numpy as np
    import pyarrow as pa

    fixed = np.random.default_rng(SEED)
    centers = fixed.standard_normal((CLUSTERS, DIMENSION), dtype=np.float32)
    directions = fixed.standard_normal((CLUSTERS, 8, DIMENSION), dtype=np.float32)
    rng = np.random.default_rng(SEED + start + 1)
    of = rng.integers(0, CLUSTERS, rows)
    within = rng.standard_normal((rows, 8), dtype=np.float32)
    values = np.empty((rows, DIMENSION), dtype=np.float32)
    for cluster in range(CLUSTERS):
        mine = np.nonzero(of == cluster)[0]
        values[mine] = centers[cluster] + 0.4 * (within[mine] @ directions[cluster])
    values += 0.05 * rng.standard_normal(values.shape, dtype=np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), DIMENSION)
    return pa.table({"id": np.arange(start, start + rows), "vector": vectors})


def values_of(rows):
    """The vectors of a table or batch as a matrix."""
    import pyarrow as pa

    column = rows["vector"]
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return column.flatten().to_numpy().reshape(-1, DIMENSION)


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
