# SPDX-License-Identifier: Apache-2.0
"""The jobs on which faults are tried: for each, the dataset before, the spec, what must hold after.

Datasets are made once and copied for each fault.
"""

import functools
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import lance
import numpy as np
import oracle
import pyarrow as pa
import pyarrow.parquet as pq
from support import numbers

import lance_tasks as lt

ROWS = 24_000
PARTS = ["a", "b", "c"]


def table(rows: int, start: int = 0) -> pa.Table:
    """Rows of `support.numbers`, each with a vector that tells it from others."""
    ids = np.arange(start, start + rows, dtype=np.float32)
    values = pa.array((ids[:, None] * 16 + np.arange(16, dtype=np.float32)).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(values, 16)
    return numbers(rows, start).append_column("vector", vectors)


def with_films(rows: pa.Table) -> pa.Table:
    """The rows with a column of payloads, small and large, of which some are the same."""

    def film(key: int) -> bytes | None:
        if key % 7 == 0:
            return None
        size = {0: 300_000, 1: 70_000}.get(key % 500, 40 * (key % 3))
        # Of the large ones a few are the same.
        return (b"%08d" % (key % 1500 if size > 1000 else key)) * (size // 8)

    films = pa.array([film(key) for key in rows["id"].to_pylist()], pa.large_binary())
    return rows.append_column("film", films)


FILMS = lt.BlobColumn("film", dedicated_size_threshold=200_000)


def write_stream(path: Path, rows: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=1000)


class Sources:
    """The same rows as Parquet files, as Arrow files and as streams of three partitions."""

    def __init__(self, folder: Path, films: bool = False) -> None:
        folder.mkdir()
        self.folder = folder
        self.rows = with_films(table(ROWS)) if films else table(ROWS)
        self.parquet, self.arrow = [], []
        for i in range(4):
            part = self.rows.slice(i * ROWS // 4, ROWS // 4)
            self.parquet.append(str(folder / f"{i}.parquet"))
            pq.write_table(part, self.parquet[-1], row_group_size=1700)
            self.arrow.append(str(folder / f"{i}.arrow"))
            with pa.OSFile(self.arrow[-1], "wb") as file, pa.ipc.new_file(file, part.schema) as out:
                out.write_table(part, max_chunksize=900)
        self.streams = {}
        for i, name in enumerate(PARTS):
            self.streams[name] = str(folder / f"{name}.arrows")
            size = ROWS // len(PARTS)
            write_stream(Path(self.streams[name]), self.rows.slice(i * size, size))
        self.few = table(40, start=3_000_000)
        self.few_path = str(folder / "few.arrows")
        write_stream(Path(self.few_path), self.few)


@dataclass(frozen=True)
class Index:
    """An index that is there after the job, in so many segments (None: any number)."""

    name: str
    column: str
    segments: int | None = None


@dataclass(frozen=True)
class Shape:
    """One kind of job.

    Attributes:
        template: the dataset before; None: there is none.
        spec: for a dataset's URI.
        streams: paths of the rows by partition, for an open job.
        added: rows that the job writes.
        stages: how many rounds of tasks the job has.
    """

    name: str
    operation: str
    template: Path | None
    spec: Callable[[str], object]
    streams: dict[str, str] = field(default_factory=dict)
    added: pa.Table | None = None
    indices: tuple[Index, ...] = ()
    stages: int = 1

    @property
    def mode(self) -> str:
        return self.name.partition("-")[0]

    def expected(self, before: pa.Table | None) -> pa.Table:
        """The rows after the job, committed on top of `before`."""
        if self.added is None:
            assert before is not None
            return before
        if self.mode == "append":
            return oracle.in_order(pa.concat_tables([before, self.added]))
        return oracle.in_order(self.added)

    def copy(self, uri: str) -> None:
        if self.template is not None:
            shutil.copytree(self.template, uri)

    def check(self, uri: str, rng: random.Random) -> None:
        """What holds of the newest version beyond its rows, once the job is committed."""
        present = {fragment.fragment_id for fragment in lance.dataset(uri).get_fragments()}
        for index in self.indices:
            segments, covered = oracle.coverage(uri, index.name)
            assert segments, f"there is no index {index.name}"
            if index.segments is not None:
                assert segments == min(index.segments, len(present)), segments
            if "index" in self.operation:
                assert covered == present, (index.name, covered, present)
            if covered & present:
                oracle.check_index(uri, index.name, index.column, rng)


class Shapes:
    """All of them, made below one folder when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, Path] = {}

    @functools.cached_property
    def sources(self) -> Sources:
        return Sources(self.folder / "sources")

    @functools.cached_property
    def films(self) -> Sources:
        return Sources(self.folder / "films", films=True)

    def of(self, operation: str) -> list[Shape]:
        kinds = {
            "write": self.writes,
            "write_blobs": self.blob_writes,
            "compact_blobs": self.blob_compacts,
            "compact": self.compacts,
            "create_index": self.scalar_indices,
            "create_vector_index": self.vector_indices,
            "optimize_index": self.optimizations,
        }
        return kinds[operation]()

    def dataset(self, name: str, rows: int, per_file: int, index: str = "", **options) -> Path:
        """A dataset of two or three versions with some rows deleted, by pylance."""
        path = self.folder / f"{name}.lance"
        if name not in self.made:
            start = 1_000_000
            dataset = lance.write_dataset(
                table(rows, start), path, max_rows_per_file=per_file, **options
            )
            dataset.delete("id % 50 = 7")
            if index:
                dataset.create_scalar_index(index, "BTREE", name="by_key")
            self.made[name] = path
        return path

    def grown(self, name: str, **options) -> Path:
        """A dataset with a BTREE and an IVF_FLAT, and rows that came after both were built."""
        path = self.folder / f"{name}.lance"
        if name not in self.made:
            start = 1_000_000
            dataset = lance.write_dataset(
                table(6000, start), path, max_rows_per_file=1000, **options
            )
            dataset.create_scalar_index("id", "BTREE", name="by_key")
            dataset.create_index("vector", "IVF_FLAT", name="by_vector", num_partitions=4)
            more = table(2500, start + 6000)
            dataset = lance.write_dataset(more, path, max_rows_per_file=900, mode="append")
            dataset.delete("id % 50 = 7")
            self.made[name] = path
        return path

    def writes(self) -> list[Shape]:
        sources = self.sources
        feeds = {
            "parquet": {"sources": sources.parquet, "max_rows_per_file": 5000},
            "arrow": {
                "sources": sources.arrow,
                "max_rows_per_file": 2000,
                "max_rows_per_task": 8000,
            },
            "open": {"partitions": PARTS, "max_rows_per_file": 3000},
        }
        modes = {
            "create": (None, {}),
            "create-v1paths": (None, {"enable_v2_manifest_paths": False}),
            "append": (self.dataset("append", 3000, 1000), {}),
            "append-stable": (self.dataset("stable", 3000, 1000, enable_stable_row_ids=True), {}),
            "overwrite": (self.dataset("append", 3000, 1000), {}),
        }

        def shape(mode: str, feed: str) -> Shape:
            template, options = modes[mode]

            def spec(uri: str) -> lt.Write:
                return lt.Write(uri, mode=mode.partition("-")[0], **feeds[feed], **options)

            streams = sources.streams if feed == "open" else {}
            return Shape(f"{mode}-{feed}", "write", template, spec, streams, sources.rows)

        return [shape(mode, feed) for mode in modes for feed in feeds]

    def with_blobs(self, name: str, rows: int, per_file: int, **options) -> Path:
        """A dataset with payloads, some of them shared, and some rows deleted."""
        path = self.folder / f"{name}.lance"
        if name not in self.made:
            spec = lt.Write(
                path, max_rows_per_file=per_file, blob_columns=[FILMS], dedup="content", **options
            )
            lt.run(spec, data=with_films(table(rows, 1_000_000)))
            lance.dataset(path).delete("id % 50 = 7")
            self.made[name] = path
        return path

    def blob_writes(self) -> list[Shape]:
        sources = self.films
        feeds = {
            "parquet": {"sources": sources.parquet, "max_rows_per_file": 5000},
            "open": {"partitions": PARTS, "max_rows_per_file": 3000},
        }
        blobs = {"blob_columns": [FILMS], "dedup": "content"}
        modes = {
            "create": (None, blobs),
            "append": (self.with_blobs("blobs", 3000, 1000), {"dedup": "content"}),
            "overwrite": (self.with_blobs("blobs", 3000, 1000), blobs),
        }

        def shape(mode: str, feed: str) -> Shape:
            template, options = modes[mode]

            def spec(uri: str) -> lt.Write:
                return lt.Write(uri, mode=mode, **feeds[feed], **options)

            streams = sources.streams if feed == "open" else {}
            return Shape(f"{mode}-{feed}", "write", template, spec, streams, sources.rows)

        return [shape(mode, feed) for mode in modes for feed in feeds]

    def blob_compacts(self) -> list[Shape]:
        kinds = {
            "plain": self.with_blobs("small-blobs", 9000, 1000),
            "stable": self.with_blobs("stable-blobs", 9000, 1000, enable_stable_row_ids=True),
        }

        def shape(name: str) -> Shape:
            return Shape(
                f"compact-{name}",
                "compact",
                kinds[name],
                lambda uri: lt.Compact(uri, target_rows_per_fragment=3000),
            )

        return [shape(name) for name in kinds]

    def compacts(self) -> list[Shape]:
        kinds = {
            "plain": (self.dataset("small", ROWS, 2000), {}),
            "batches": (self.dataset("small", ROWS, 2000), {"micro_commit_batch_size": 2}),
            "indexed": (self.dataset("small-indexed", ROWS, 2000, index="id"), {}),
            "deferred": (
                self.dataset("small-indexed", ROWS, 2000, index="id"),
                {"defer_index_remap": True},
            ),
            "stable": (
                self.dataset("small-stable", ROWS, 2000, index="id", enable_stable_row_ids=True),
                {},
            ),
        }

        def shape(name: str) -> Shape:
            template, options = kinds[name]
            return Shape(
                f"compact-{name}",
                "compact",
                template,
                lambda uri: lt.Compact(uri, target_rows_per_fragment=6000, **options),
                indices=(Index("by_key", "id"),) if "indexed" in template.name else (),
            )

        return [shape(name) for name in kinds]

    def scalar_indices(self) -> list[Shape]:
        small = self.dataset("small", ROWS, 2000)
        indexed = self.dataset("small-indexed", ROWS, 2000, index="id")
        kinds = {
            "id": (small, "id", 4, {"index_type": "BTREE"}),
            "name": (small, "name", 4, {"index_type": "BTREE"}),
            "replace": (indexed, "id", 4, {"index_type": "BTREE", "replace": True}),
            "words": (small, "name", 3, {"index_type": "INVERTED"}),
        }
        return [self.index(f"index-{kind}", *kinds[kind]) for kind in kinds]

    def vector_indices(self) -> list[Shape]:
        """A stage that trains, one of segments, and sometimes one that merges them."""
        small = self.dataset("vectors", 9000, 1000)
        stable = self.dataset("vectors-stable", 9000, 1000, enable_stable_row_ids=True)
        few = {"num_partitions": 4, "max_iters": 5}
        pq = {"index_type": "IVF_PQ", "num_sub_vectors": 2, "num_bits": 4, **few}
        flat = {"index_type": "IVF_FLAT", **few}
        kinds = {
            "pq": (small, 3, pq, 2),
            "pq-merged": (small, 1, {"num_segments": 3, "merge": True, **pq}, 3),
            "flat-stable": (stable, 3, flat, 2),
        }
        return [
            self.index(f"index-{kind}", template, "vector", segments, options, stages)
            for kind, (template, segments, options, stages) in kinds.items()
        ]

    def index(
        self,
        name: str,
        template: Path,
        column: str,
        segments: int,
        options: dict[str, object],
        stages: int = 1,
    ) -> Shape:
        def spec(uri: str) -> lt.CreateIndex:
            given = {"num_segments": segments, **options}
            return lt.CreateIndex(uri, column=column, name="by_key", **given)

        index = Index("by_key", column, segments)
        return Shape(name, "create_index", template, spec, indices=(index,), stages=stages)

    def optimizations(self) -> list[Shape]:
        """Deltas of two indices at once."""
        kinds = {
            "both": (self.grown("grown"), {}),
            "both-in-two": (self.grown("grown"), {"num_segments": 2}),
            "both-stable": (self.grown("grown-stable", enable_stable_row_ids=True), {}),
        }

        def shape(kind: str) -> Shape:
            template, options = kinds[kind]
            return Shape(
                f"optimize-{kind}",
                "optimize_index",
                template,
                lambda uri: lt.OptimizeIndex(uri, **options),
                indices=(Index("by_key", "id"), Index("by_vector", "vector")),
            )

        return [shape(kind) for kind in kinds]
