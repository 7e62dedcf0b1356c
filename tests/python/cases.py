# SPDX-License-Identifier: Apache-2.0
"""One small job of every operation: how the dataset is set up, the spec, and what must hold after.

Tests of the five verbs are parametrized by these, so that each promise is shown for each operation.
"""

import json
from abc import ABC, abstractmethod
from pathlib import Path

import lance
import pyarrow as pa
from support import assert_same, make_dataset, numbers, read, write_parquet_files

import lance_tasks as lt


class Case(ABC):
    name: str
    spec: object
    before: pa.Table
    version_before: int

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = str(folder / "dataset.lance")
        self.spec: object = None
        self.set_up()

    @abstractmethod
    def set_up(self) -> None:
        """Make what is there before the job, and `self.spec`."""

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

    def set_up(self) -> None:
        make_dataset(self.uri).delete("id % 50 = 7")
        self.remember()
        self.spec = lt.CreateIndex(
            self.uri, column="id", index_type="BTREE", name="by_id", num_segments=4
        )

    def spec_json(self) -> bytes:
        return json.dumps(
            {
                "operation": "create_index",
                "uri": self.uri,
                "column": "id",
                "index_type": "BTREE",
                "name": "by_id",
                "num_segments": 4,
            }
        ).encode()

    def check(self) -> None:
        assert_same(read(self.uri), self.before)
        dataset = lance.dataset(self.uri)
        (index,) = dataset.describe_indices()
        assert index.name == "by_id"
        assert len(index.segments) == 4
        covered = [i for segment in index.segments for i in segment.fragment_ids]
        assert sorted(covered) == [f.fragment_id for f in dataset.get_fragments()]
        check_index_answers(dataset, "id", ["id = 600", "id = 607", "id in (1, 99, 1199, 5000)"])

    def input_file(self) -> Path:
        file = lance.dataset(self.uri).get_fragments()[5].data_files()[0]
        return Path(self.uri, "data", file.path)


def check_index_answers(dataset, column: str, filters: list[str]) -> None:
    """Each filter uses the index, and answers as a full scan does."""
    for where in filters:
        plan = dataset.scanner(filter=where).explain_plan()
        assert "ScalarIndexQuery" in plan, f"{where} does not use the index:\n{plan}"
        with_index = dataset.to_table(filter=where)
        full = dataset.scanner(filter=where, use_scalar_index=False)
        assert "ScalarIndexQuery" not in full.explain_plan()
        assert_same(with_index.sort_by(column), full.to_table().sort_by(column))


CASES = [Create, Append, Overwrite, Compact, CreateIndex]
