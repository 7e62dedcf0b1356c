# SPDX-License-Identifier: Apache-2.0
"""One small job of every operation: how the dataset is set up, the spec, and what must hold after.

Tests of the five verbs are parametrized by these, so that each promise is shown for each operation.
"""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import lance
import numpy as np
import pyarrow as pa
from support import assert_same, make_dataset, numbers, read, write_parquet_files

import lance_tasks as lt


class Case(ABC):
    name: str
    spec: object
    before: pa.Table
    version_before: int
    # Stages of a single task each that come before the tasks that are done side by side.
    stages_before = 0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = str(folder / "dataset.lance")
        self.spec: object = None
        self.set_up()

    @abstractmethod
    def set_up(self) -> None:
        """Make what is there before the job, and `self.spec`."""

    def begin(self) -> tuple[lt.Job, list[lt.Result]]:
        """The job, and the results of the stages before the one whose tasks go side by side."""
        job = lt.prepare(self.spec)
        results: list[lt.Result] = []
        for _ in range(self.stages_before):
            results += [lt.execute(task) for task in lt.plan(job, results)]
        return job, results

    @abstractmethod
    def check(self) -> None:
        """The dataset is as the job leaves it."""

    def check_untouched(self) -> None:
        """The dataset is as it was before the job."""
        assert_same(read(self.uri), self.before)
        assert lance.dataset(self.uri).version == self.version_before

    def input_file(self) -> Path:
        """A file that one of the tasks, not all of them, must read."""
        raise NotImplementedError

    def remember(self) -> None:
        self.before = read(self.uri)
        self.version_before = lance.dataset(self.uri).version

    def spec_json(self) -> bytes:
        raise NotImplementedError


class WriteCase(Case):
    """2,000 rows of 4 Parquet files, fragments of 300 rows: a file feeds several tasks."""

    mode = "create"
    rows = 2000

    def set_up(self) -> None:
        self.set_up_dataset()
        folder = self.folder / "sources"
        folder.mkdir()
        self.added = numbers(self.rows, start=10_000)
        self.paths = write_parquet_files(folder, self.added, 4, row_group_size=150)
        self.spec = lt.Write(self.uri, mode=self.mode, sources=self.paths, max_rows_per_file=300)

    def set_up_dataset(self) -> None:
        pass

    def spec_json(self) -> bytes:
        return json.dumps(
            {
                "operation": "write",
                "uri": self.uri,
                "mode": self.mode,
                "sources": self.paths,
                "max_rows_per_file": 300,
            }
        ).encode()

    def input_file(self) -> Path:
        return Path(self.paths[1])


class Create(WriteCase):
    name = "create"

    def check(self) -> None:
        assert_same(read(self.uri), self.added)
        assert lance.dataset(self.uri).version == 1

    def check_untouched(self) -> None:
        assert not (Path(self.uri) / "_versions").exists()


class Append(WriteCase):
    name = "append"
    mode = "append"

    def set_up_dataset(self) -> None:
        make_dataset(self.uri, rows=500)
        self.remember()

    def check(self) -> None:
        assert_same(read(self.uri), pa.concat_tables([self.before, self.added]).combine_chunks())


class Overwrite(WriteCase):
    name = "overwrite"
    mode = "overwrite"

    def set_up_dataset(self) -> None:
        lance.write_dataset(pa.table({"other": [1.5, 2.5]}), self.uri)
        self.remember()

    def check(self) -> None:
        assert_same(read(self.uri), self.added)
        assert_same(read(self.uri, version=self.version_before), self.before)


class Compact(Case):
    """12 fragments of 100 rows with some rows deleted, into fragments of 300 rows."""

    name = "compact"

    def set_up(self) -> None:
        make_dataset(self.uri).delete("id % 50 = 7")
        self.remember()
        self.spec = lt.Compact(self.uri, target_rows_per_fragment=300)

    def spec_json(self) -> bytes:
        spec = {"operation": "compact", "uri": self.uri, "target_rows_per_fragment": 300}
        return json.dumps(spec).encode()

    def check(self) -> None:
        dataset = lance.dataset(self.uri)
        assert_same(dataset.to_table(), self.before)
        fragments = dataset.get_fragments()
        assert len(fragments) < 12
        assert all(fragment.num_deletions == 0 for fragment in fragments)

    def input_file(self) -> Path:
        file = lance.dataset(self.uri).get_fragments()[5].data_files()[0]
        return Path(self.uri, "data", file.path)


class CreateIndex(Case):
    """A BTREE over 12 fragments with some rows deleted, in 4 segments."""

    name = "create_index"
    options: ClassVar[dict[str, object]] = {
        "column": "id",
        "index_type": "BTREE",
        "name": "by_id",
        "num_segments": 4,
    }

    def set_up(self) -> None:
        make_dataset(self.uri).delete("id % 50 = 7")
        self.remember()
        self.spec = lt.CreateIndex(self.uri, **self.options)

    def spec_json(self) -> bytes:
        return json.dumps({"operation": "create_index", "uri": self.uri, **self.options}).encode()

    def check(self) -> None:
        assert_same(read(self.uri), self.before)
        dataset = lance.dataset(self.uri)
        (index,) = dataset.describe_indices()
        assert index.name == self.options["name"]
        assert len(index.segments) == self.options["num_segments"]
        check_covers_all(dataset)
        self.check_answers(dataset)

    def check_answers(self, dataset: lance.LanceDataset) -> None:
        check_index_answers(dataset, "id", ["id = 600", "id = 607", "id in (1, 99, 1199, 5000)"])

    def input_file(self) -> Path:
        file = lance.dataset(self.uri).get_fragments()[5].data_files()[0]
        return Path(self.uri, "data", file.path)


class CreateVectorIndex(CreateIndex):
    """An IVF_FLAT over 12 fragments with some rows deleted: one task that trains, 3 segments."""

    name = "create_vector_index"
    stages_before = 1
    options: ClassVar[dict[str, object]] = {
        "column": "vector",
        "index_type": "IVF_FLAT",
        "name": "by_vector",
        "num_segments": 3,
    }
    params: ClassVar[dict[str, object]] = {"num_partitions": 4, "metric": "l2"}

    def set_up(self) -> None:
        dataset = lance.write_dataset(with_vectors(numbers(1200)), self.uri, max_rows_per_file=100)
        dataset.delete("id % 50 = 7")
        self.remember()
        self.spec = lt.CreateIndex(self.uri, **self.options, **self.params)

    def spec_json(self) -> bytes:
        spec = {"operation": "create_index", "uri": self.uri, **self.options, "params": self.params}
        return json.dumps(spec).encode()

    def check_answers(self, dataset: lance.LanceDataset) -> None:
        check_neighbours(dataset, "vector")


class OptimizeIndex(Case):
    """A BTREE and an IVF_FLAT over 8 fragments, and 4 fragments that came after them: 2 segments
    for each."""

    name = "optimize_index"

    def set_up(self) -> None:
        table = with_vectors(numbers(1200))
        dataset = lance.write_dataset(table.slice(0, 800), self.uri, max_rows_per_file=100)
        dataset.create_scalar_index("id", "BTREE", name="by_id")
        dataset.create_index("vector", "IVF_FLAT", name="by_vector", num_partitions=4)
        dataset = lance.write_dataset(
            table.slice(800), self.uri, mode="append", max_rows_per_file=100
        )
        dataset.delete("id % 50 = 7")
        self.remember()
        self.spec = lt.OptimizeIndex(self.uri, num_segments=2)

    def spec_json(self) -> bytes:
        spec = {"operation": "optimize_index", "uri": self.uri, "num_segments": 2}
        return json.dumps(spec).encode()

    def check(self) -> None:
        assert_same(read(self.uri), self.before)
        dataset = lance.dataset(self.uri)
        assert dataset.version == self.version_before + 1
        indices = {index.name: index for index in dataset.describe_indices()}
        assert indices.keys() == {"by_id", "by_vector"}
        for index in indices.values():
            assert len(index.segments) == 3
        check_covers_all(dataset)
        check_index_answers(dataset, "id", ["id = 600", "id = 907", "id in (1, 99, 1199, 5000)"])
        check_neighbours(dataset, "vector")

    def input_file(self) -> Path:
        file = lance.dataset(self.uri).get_fragments()[9].data_files()[0]
        return Path(self.uri, "data", file.path)


def with_vectors(table: pa.Table) -> pa.Table:
    """With a column of vectors around a few points, none of them twice."""
    rng = np.random.default_rng(1)
    ids = table["id"].to_numpy()
    values = 10 * (ids % 5)[:, None] + rng.standard_normal((len(ids), 8))
    flat = pa.array(values.astype(np.float32).reshape(-1))
    return table.append_column("vector", pa.FixedSizeListArray.from_arrays(flat, 8))


def check_covers_all(dataset: lance.LanceDataset) -> None:
    """The segments of each index cover every fragment, once."""
    present = [fragment.fragment_id for fragment in dataset.get_fragments()]
    for index in dataset.describe_indices():
        covered = sorted(i for segment in index.segments for i in segment.fragment_ids)
        assert covered == present, index.name


def check_neighbours(dataset: lance.LanceDataset, column: str) -> None:
    """With all partitions probed, a search by the index gives what a scan gives."""
    for at in (0, 500, 1100):
        query = dataset.take([at], columns=[column])[column][0].values.to_numpy() + 0.25
        nearest = {"column": column, "q": query, "k": 10, "nprobes": 100}
        scanner = dataset.scanner(columns=["id", "_distance"], nearest=nearest)
        assert "ANNSubIndex" in scanner.explain_plan(), "the search does not use the index"
        full = dataset.to_table(
            columns=["id", "_distance"], nearest={**nearest, "use_index": False}
        )
        assert_same(scanner.to_table().sort_by("_distance"), full.sort_by("_distance"))


def check_index_answers(dataset, column: str, filters: list[str]) -> None:
    """Each filter uses the index, and answers as a full scan does."""
    for where in filters:
        plan = dataset.scanner(filter=where).explain_plan()
        assert "ScalarIndexQuery" in plan, f"{where} does not use the index:\n{plan}"
        with_index = dataset.to_table(filter=where)
        full = dataset.scanner(filter=where, use_scalar_index=False)
        assert "ScalarIndexQuery" not in full.explain_plan()
        assert_same(with_index.sort_by(column), full.to_table().sort_by(column))


CASES = [Create, Append, Overwrite, Compact, CreateIndex, CreateVectorIndex, OptimizeIndex]
