# SPDX-License-Identifier: Apache-2.0
"""The oracle objects to what must not be, and to nothing that stock pylance does."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import lance
import oracle
import pyarrow as pa
import pytest
from shapes import table
from support import numbers

ROWS = numbers(600)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "PATIENCE", 0.0)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """Three versions by stock pylance: written, some rows deleted, indexed."""
    uri = str(tmp_path / "dataset.lance")
    dataset = lance.write_dataset(ROWS, uri, max_rows_per_file=100)
    dataset.delete("id % 50 = 7")
    dataset.create_scalar_index("id", "BTREE", name="by_key")
    return uri


def append(uri: str, rows: pa.Table) -> None:
    lance.write_dataset(rows, uri, mode="append")


def test_content_with_what_pylance_does(uri: str) -> None:
    snapshot = oracle.Snapshot(uri)
    oracle.check_untouched(snapshot)
    oracle.check_index(uri, "by_key", "id", random.Random(0))
    assert oracle.HINT in snapshot.files
    append(uri, numbers(10, 1000))
    after = pa.concat_tables([snapshot.rows, numbers(10, 1000)])
    oracle.check_states(snapshot, [snapshot.rows, oracle.in_order(after)], oracle.in_order(after))
    snapshot.check_kept()
    oracle.check_no_stray(uri)
    oracle.check_files_exist(uri)
    assert oracle.changes(uri, 1) == [2, 4]
    lance.dataset(uri).optimize.compact_files()
    assert oracle.unreferenced(uri) == []
    dataset = lance.dataset(uri)
    dataset.tags.create("kept", 2)
    assert oracle.unreferenced(uri) == []


def test_manifests_of_both_namings(tmp_path: Path) -> None:
    for v2 in (True, False):
        uri = str(tmp_path / f"{v2}.lance")
        lance.write_dataset(ROWS, uri, enable_v2_manifest_paths=v2)
        append(uri, ROWS)
        assert list(oracle.manifests(uri)) == [1, 2]
        assert oracle.unreferenced(uri) == []


@pytest.mark.parametrize(
    "stray",
    [
        "data/0011.lance",
        "data/.tmpAbC",
        "_versions/.tmpAbC",
        "_versions/7.manifest#1",
        "_indices/00000000-0000-4000-8000-000000000000/page_data.lance",
        "_transactions/2-00000000-0000-4000-8000-000000000000.txn",
        "_deletions/0-1-2.arrow",
        "left.txt",
    ],
)
def test_stray_file(uri: str, stray: str) -> None:
    snapshot = oracle.Snapshot(uri)
    path = Path(uri, stray)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    assert oracle.unreferenced(uri) == [stray]
    with pytest.raises(AssertionError, match="no version refers to"):
        oracle.check_untouched(snapshot)


def test_nothing_may_be_left_where_there_is_no_dataset(tmp_path: Path) -> None:
    uri = str(tmp_path / "none.lance")
    snapshot = oracle.Snapshot(uri)
    oracle.check_untouched(snapshot)
    Path(uri, "_versions").mkdir(parents=True)
    Path(uri, "_versions", "latest_version_hint.json").write_text("{}")
    with pytest.raises(AssertionError, match="no version refers to"):
        oracle.check_untouched(snapshot)


def test_dataset_where_there_should_be_none(tmp_path: Path) -> None:
    uri = str(tmp_path / "none.lance")
    snapshot = oracle.Snapshot(uri)
    lance.write_dataset(ROWS, uri)
    with pytest.raises(AssertionError, match="there is a dataset"):
        oracle.check_untouched(snapshot)
    shutil.rmtree(uri)
    with pytest.raises(AssertionError, match="there is no dataset"):
        oracle.check_states(snapshot, [ROWS], ROWS)


def wrong(case: str) -> list[pa.Table]:
    """Appends that are not once the ten rows that should be added."""
    added = numbers(10, 1000)
    changed = added.set_column(2, "score", pa.array([0.0] * 10))
    return {
        "nothing": [],
        "half": [added.slice(0, 5)],
        "twice": [added, added],
        "halves": [added.slice(0, 5), added.slice(5)],
        "another row": [numbers(9, 1000), numbers(1, 5000)],
        "one twice, one not": [added.slice(0, 9), added.slice(0, 1)],
        "values": [changed],
    }[case]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("nothing", "10 lost"),
        ("half", "no allowed state"),
        ("twice", "no allowed state"),
        ("halves", "no allowed state"),
        ("another row", "no allowed state"),
        ("one twice, one not", "no allowed state"),
        ("values", "no allowed state"),
    ],
)
def test_wrong_rows(uri: str, case: str, message: str) -> None:
    snapshot = oracle.Snapshot(uri)
    after = oracle.in_order(pa.concat_tables([snapshot.rows, numbers(10, 1000)]))
    for rows in wrong(case):
        append(uri, rows)
    with pytest.raises(AssertionError, match=message):
        oracle.check_states(snapshot, [snapshot.rows, after], after)


def test_older_version_changed(uri: str) -> None:
    snapshot = oracle.Snapshot(uri)
    snapshot.check_kept()
    manifest = oracle.manifests(uri)[2]
    manifest.write_bytes(oracle.manifests(uri)[1].read_bytes())
    with pytest.raises(AssertionError, match="manifest of version 2 has changed"):
        snapshot.check_kept()


@pytest.mark.parametrize("kind", ["data", "_deletions", "_indices/*", "_transactions", "_versions"])
def test_older_file_gone(uri: str, kind: str) -> None:
    snapshot = oracle.Snapshot(uri)
    append(uri, numbers(10, 1000))
    file = next(
        path
        for path in sorted(Path(uri).glob(f"{kind}/*"))
        if path.relative_to(uri).as_posix() in snapshot.files and path.suffix != ".json"
    )
    file.unlink()
    with pytest.raises(AssertionError, match="is gone"):
        snapshot.check_kept()


def test_referenced_file_gone(uri: str) -> None:
    oracle.check_files_exist(uri)
    next(Path(uri, "_deletions").iterdir()).unlink()
    with pytest.raises(AssertionError, match="not there"):
        oracle.check_files_exist(uri)


def test_index_that_is_not_there(uri: str) -> None:
    lance.dataset(uri).drop_index("by_key")
    assert oracle.coverage(uri, "by_key") == (0, set())
    with pytest.raises(AssertionError, match="there is no index"):
        oracle.check_index(uri, "by_key", "id", random.Random(0))
    with pytest.raises(AssertionError, match="does not use the index"):
        oracle.check_keys(lance.dataset(uri), "id", random.Random(0))


class Lying:
    """A dataset whose index searches go through `change`."""

    def __init__(self, dataset: lance.LanceDataset, change: Callable[[pa.Table], pa.Table]) -> None:
        self.dataset, self.change = dataset, change
        self.search: lance.LanceScanner | None = None

    def scanner(self, **options: object) -> object:
        self.search = self.dataset.scanner(**options)
        return self

    def explain_plan(self) -> str:
        assert self.search is not None
        return self.search.explain_plan()

    def to_table(self, **options: object) -> pa.Table:
        if "full_text_query" in options:
            return self.change(self.dataset.to_table(**options))
        if options:
            return self.dataset.to_table(**options)
        assert self.search is not None
        return self.change(self.search.to_table())


def rows_of_others(table: pa.Table) -> pa.Table:
    """Another row's id in the first row."""
    ids = table["id"].to_pylist()
    return table.set_column(
        table.column_names.index("id"), "id", pa.array([ids[0] ^ 1, *ids[1:]], pa.int64())
    )


WRONG = {
    "lost": lambda table: table.slice(1),
    "twice": lambda table: pa.concat_tables([table.slice(0, 1), table.slice(0, len(table) - 1)]),
    "of nobody": rows_of_others,
}


@pytest.mark.parametrize("wrong", [None, *WRONG])
def test_words(uri: str, wrong: str | None) -> None:
    dataset = lance.dataset(uri)
    with pytest.raises(AssertionError, match="does not use the index"):
        oracle.check_words(dataset, "name", random.Random(0))
    dataset.create_scalar_index("name", "INVERTED", name="by_word")
    oracle.check_index(uri, "by_word", "name", random.Random(0))
    append(uri, numbers(10, 1000))  # which no segment covers
    oracle.check_index(uri, "by_word", "name", random.Random(0))
    if wrong:
        with pytest.raises(AssertionError, match=r"lost or of nobody|rows twice"):
            oracle.check_words(Lying(lance.dataset(uri), WRONG[wrong]), "name", random.Random(0))


@pytest.mark.parametrize("wrong", [None, *WRONG])
@pytest.mark.parametrize("kind", ["IVF_FLAT", "IVF_PQ"])
def test_vectors(tmp_path: Path, kind: str, wrong: str | None) -> None:
    uri = str(tmp_path / "vectors.lance")
    dataset = lance.write_dataset(table(3000), uri, max_rows_per_file=500)
    dataset.delete("id % 50 = 7")
    with pytest.raises(AssertionError, match="does not use the index"):
        oracle.check_vectors(dataset, "vector", random.Random(0))
    options = {"num_sub_vectors": 2, "num_bits": 4} if kind == "IVF_PQ" else {}
    dataset.create_index("vector", kind, name="near", num_partitions=4, **options)
    oracle.check_index(uri, "near", "vector", random.Random(0))
    append(uri, table(10, 5000))
    oracle.check_index(uri, "near", "vector", random.Random(0))
    if wrong:
        with pytest.raises(AssertionError, match=r"rows twice, or too few|array"):
            oracle.check_vectors(
                Lying(lance.dataset(uri), WRONG[wrong]), "vector", random.Random(0)
            )
