# SPDX-License-Identifier: Apache-2.0
"""Indexes of datasets that change while and after the index is built: no query misses a row, gives
one twice or an old value, and the outcome tells the coverage that stock pylance finds.

`KINDS`, `table` and the checks are shared with other tests of indexes.
"""

import contextlib
import datetime
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from support import files, finish, spool, unchanged, version_of, worker

import lance_tasks as lt

# The data: ten fragments of a hundred rows, a column for every kind of index

ROWS, ROWS_PER_FRAGMENT, FRAGMENTS = 1000, 100, 10
DIMENSION, PARTITIONS, NEIGHBOURS = 16, 4, 12
# Where in the order of ids: rows of appends, and rows whose values others take over in an update.
APPENDED, TAKEN, INSERTED = 1000, 10_000, 20_000
NAME = "by_x"
WORDS = ["alpha", "beta", "gamma", "delta", "omega", "sigma", "kappa", "lambda", "river", "stone"]


def vectors(ids: Iterable[int]) -> np.ndarray:
    """Of eight clusters."""
    ids = np.fromiter(ids, np.int64)
    centers = np.random.default_rng(1).normal(size=(8, DIMENSION)) * 5
    noise = np.sin(np.outer(ids + 1.0, np.sqrt(np.arange(2, DIMENSION + 2)) * 100))
    return (centers[ids % 8] + noise).astype(np.float32)


def values(column: str, ids: Iterable[int]) -> pa.Array:
    """What a column holds at these rows, some nulls among it."""
    ids = list(ids)
    if column == "id":
        return pa.array(ids, pa.int64())
    if column == "key":
        return pa.array([None if i % 41 == 7 else i * 7919 % 100_003 for i in ids], pa.int64())
    if column == "kind":
        return pa.array([None if i % 29 == 3 else f"kind-{(i + i // 5000) % 5}" for i in ids])
    if column == "tags":
        made = [[f"tag-{i % 4}", f"tag-{4 + i % 3}"][: 1 + i % 2] for i in ids]
        return pa.array([None if i % 31 == 4 else t for i, t in zip(ids, made, strict=True)])
    if column == "text":
        made = [f"{WORDS[i % 10]} {WORDS[i // 10 % 10]} n{i}" for i in ids]
        return pa.array([None if i % 37 == 5 else t for i, t in zip(ids, made, strict=True)])
    if column == "document":
        made = [json.dumps({"x": i % 50, "name": f"n{i % 9}"}) for i in ids]
        return pa.array([None if i % 43 == 6 else t for i, t in zip(ids, made, strict=True)])
    assert column == "vector"
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors(ids).ravel()), DIMENSION)


COLUMNS = ["id", "key", "kind", "tags", "text", "document", "vector"]


@functools.cache
def table(rows: int = ROWS, start: int = 0) -> pa.Table:
    made = {name: values(name, range(start, start + rows)) for name in COLUMNS}
    made["document"] = made["document"].cast(pa.json_())
    return pa.table(made)


def write(uri: str, stable: bool = False, **options: object) -> lance.LanceDataset:
    options = {"max_rows_per_file": ROWS_PER_FRAGMENT, "data_storage_version": "2.2", **options}
    return lance.write_dataset(table(), uri, enable_stable_row_ids=stable, **options)


# Kinds of indexes


@dataclass(frozen=True)
class Kind:
    """An index, and questions that it serves: here, SQL filters."""

    index_type: str
    column: str
    questions: tuple = ()
    params: dict[str, object] = field(default_factory=dict)
    # What SQL sets updated rows to.
    updated: str | None = None
    # Whether Lance keeps what is covered where fragments are compacted.
    remapped: bool = True
    # Whether it finds rows by stable ids alone, in whatever fragment they are now.
    by_row_id: bool = False

    def spec(self, uri: str, **options: object) -> lt.CreateIndex:
        options = {"name": NAME, "num_segments": 3, **self.params, **options}
        return lt.CreateIndex(uri, column=self.column, index_type=self.index_type, **options)

    def scanner(self, dataset: lance.LanceDataset, question: object) -> lance.LanceScanner:
        return dataset.scanner(columns=["id"], filter=question)

    def expected(self, dataset: lance.LanceDataset, question: object) -> list[int]:
        """By a full scan."""
        scanner = dataset.scanner(columns=["id"], filter=question, use_scalar_index=False)
        assert "ScalarIndexQuery" not in scanner.explain_plan()
        return sorted(scanner.to_table()["id"].to_pylist())

    def answer(self, dataset: lance.LanceDataset, question: object) -> list[int]:
        return sorted(self.scanner(dataset, question).to_table()["id"].to_pylist())

    def uses(self, name: str) -> str:
        """What a plan says that uses the index."""
        return rf"ScalarIndexQuery: query=.*@{name}\("

    def check(self, uri: str, name: str = NAME) -> None:
        """Every question is answered by the index, where it covers anything, and as without it."""
        dataset = lance.dataset(uri)
        found, covered = 0, covered_by(uri, name)
        for question in self.questions:
            plan = self.scanner(dataset, question).explain_plan(verbose=True)
            used = re.search(self.uses(name), plan) or not covered
            assert used, f"{question} does not use {name}:\n{plan}"
            expected = self.expected(dataset, question)
            assert self.answer(dataset, question) == expected, question
            found += len(expected)
        assert found, "questions without answers show nothing"


class Words(Kind):
    """The questions are words, searched in full text."""

    def scanner(self, dataset: lance.LanceDataset, question: object) -> lance.LanceScanner:
        return dataset.scanner(columns=["id", "_score"], full_text_query=question)

    def expected(self, dataset: lance.LanceDataset, question: object) -> list[int]:
        rows = dataset.to_table(columns=["id", self.column]).to_pylist()
        return sorted(r["id"] for r in rows if question in (r[self.column] or "").split())

    def uses(self, name: str) -> str:
        return r"(?<!Flat)MatchQuery: column="


class Near(Kind):
    """The questions are rows whose vectors' nearest neighbours are sought, in every partition and
    refined by exact distances."""

    def nearest(self, question: object, **options: object) -> dict[str, object]:
        return {"column": self.column, "q": vectors([question])[0], "k": NEIGHBOURS, **options}

    def scanner(self, dataset: lance.LanceDataset, question: object) -> lance.LanceScanner:
        options = {"nprobes": 10 * PARTITIONS, "refine_factor": 10**4 // NEIGHBOURS}
        if "HNSW" in self.index_type:
            options["ef"] = 10**4
        nearest = self.nearest(question, **options)
        return dataset.scanner(columns=["id", "_distance"], nearest=nearest)

    def expected(self, dataset: lance.LanceDataset, question: object) -> list[int]:
        """Brute force, in the order of distances."""
        rows = dataset.to_table(columns=["id", self.column])
        there = rows.filter(rows[self.column].is_valid())
        known = np.stack(there[self.column].to_numpy(zero_copy_only=False)).astype(np.float64)
        distances = ((known - vectors([question])) ** 2).sum(axis=1)
        return there["id"].to_numpy()[np.argsort(distances)[:NEIGHBOURS]].tolist()

    def answer(self, dataset: lance.LanceDataset, question: object) -> list[int]:
        return self.scanner(dataset, question).to_table()["id"].to_pylist()

    def uses(self, name: str) -> str:
        return rf"ANNSubIndex: name={name},"


def near(index_type: str, **params: object) -> Kind:
    questions = (5, 205, 305, APPENDED + 3, TAKEN + 5)
    params = {"num_partitions": PARTITIONS, "sample_rate": 64, **params}
    return Near(index_type, "vector", questions, params)


BETWEEN = "key between 20000 and 30000"
TEXT = ("contains(text, 'river')", "contains(text, 'n20')", "contains(text, 'updated')")
KINDS = {
    kind.index_type: kind
    for kind in [
        Kind(
            "BTREE",
            "key",
            ("key = 7919", BETWEEN, "key >= 500000", "key in (15838, 500205)", "key is null"),
            updated="500000 + id",
        ),
        Kind(
            "BITMAP",
            "kind",
            ("kind = 'kind-2'", "kind in ('kind-1', 'updated')", "kind is null"),
            updated="'updated'",
            by_row_id=True,
        ),
        Kind(
            "LABEL_LIST",
            "tags",
            (
                "array_has_any(tags, ['tag-1', 'updated'])",
                "array_has_all(tags, ['tag-1', 'tag-5'])",
            ),
            updated="make_array('updated')",
            by_row_id=True,
        ),
        Words(
            "INVERTED",
            "text",
            ("river", "n205", "n5", f"n{APPENDED + 3}", f"n{TAKEN + 5}", "updated"),
            {"stem": False, "remove_stop_words": False},
            updated="'updated river'",
            by_row_id=True,
        ),
        Kind("NGRAM", "text", TEXT, updated="'updated'"),
        Kind(
            "ZONEMAP",
            "key",
            ("key = 7919", BETWEEN, "key >= 500000", "key is null"),
            {"rows_per_zone": 32},
            updated="500000 + id",
            remapped=False,
        ),
        Kind(
            "BLOOMFILTER",
            "key",
            ("key = 7919", "key in (15838, 500205)", "key = 500210"),
            {"number_of_items": 64, "probability": 0.01},
            updated="500000 + id",
            remapped=False,
        ),
        Kind("FM", "text", TEXT, updated="'updated'", remapped=False),
        Kind(
            "JSON",
            "document",
            ("json_get_int(document, 'x') = 7", "json_get_int(document, 'x') > 45"),
            {"target_index_type": "btree", "path": "x"},
        ),
        near("IVF_FLAT"),
        near("IVF_PQ", num_sub_vectors=4),
        near("IVF_SQ"),
        near("IVF_RQ"),
        near("IVF_HNSW_FLAT"),
        near("IVF_HNSW_PQ", num_sub_vectors=4),
        near("IVF_HNSW_SQ"),
    ]
}
CHANGING = ["BTREE", "BITMAP", "LABEL_LIST", "INVERTED", "ZONEMAP", "IVF_FLAT", "IVF_PQ"]

kinds = pytest.mark.parametrize("kind", [KINDS[k] for k in CHANGING], ids=lambda k: k.index_type)
row_ids = pytest.mark.parametrize("stable", [False, True], ids=["addresses", "stable"])


# Changes by another writer


def append(uri: str, kind: Kind) -> None:
    lance.dataset(uri).insert(table(100, APPENDED))


def delete(uri: str, kind: Kind) -> None:
    lance.dataset(uri).delete("id % 7 = 3")


def delete_fragments(uri: str, kind: Kind) -> None:
    """Fragments 2 and 3, and parts of those beside them."""
    lance.dataset(uri).delete("id >= 190 and id < 410")


def compact_some(uri: str, kind: Kind, **options: object) -> None:
    """Fragments 2 and 3 lose rows and are put together."""
    lance.dataset(uri).delete("id >= 200 and id < 400 and id % 3 = 0")
    lance.dataset(uri).optimize.compact_files(
        target_rows_per_fragment=90, materialize_deletions_threshold=0.1, **options
    )


def compact_some_deferred(uri: str, kind: Kind) -> None:
    compact_some(uri, kind, defer_index_remap=True)


def compact_all(uri: str, kind: Kind) -> None:
    lance.dataset(uri).optimize.compact_files(target_rows_per_fragment=300)


def update(uri: str, kind: Kind, where: str = "id >= 200 and id < 240") -> None:
    """Other values for 40 rows, which Lance moves to a fragment of their own."""
    if kind.updated is not None:
        lance.dataset(uri).update({kind.column: kind.updated}, where=where)
    else:
        rows = with_values(lance.dataset(uri).to_table(filter=where), kind)
        lance.dataset(uri).merge_insert("id").when_matched_update_all().execute(rows)


def with_values(rows: pa.Table, kind: Kind) -> pa.Table:
    """Rows with values of their own in the indexed column."""
    at = rows.column_names.index(kind.column)
    taken = table(TAKEN_ROWS, TAKEN)[kind.column].slice(0, len(rows))
    return rows.set_column(at, rows.schema.field(at), taken)


TAKEN_ROWS = 150


def merge_insert(uri: str, kind: Kind) -> None:
    """60 rows of two fragments get other values, 20 rows are new."""
    rows = with_values(lance.dataset(uri).to_table(filter="id >= 180 and id < 240"), kind)
    merge = lance.dataset(uri).merge_insert("id")
    merge = merge.when_matched_update_all().when_not_matched_insert_all()
    merge.execute(pa.concat_tables([rows, table(20, INSERTED)]))


def rewrite_column(uri: str, kind: Kind) -> None:
    """Other values for 100 rows, in place: new files for the column within fragments 2 and 3."""
    dataset = lance.dataset(uri)
    rows = with_values(dataset.to_table(filter="id >= 250 and id < 350"), kind)
    # Lance itself tells the leaves only.
    changed, fields = [], {dataset.lance_schema.field(kind.column).id()}
    for fragment in dataset.get_fragments()[2:4]:
        new, ids = fragment.update_columns(rows.select(["id", kind.column]), "id", "id")
        changed.append(new)
        fields.update(ids)
    operation = lance.LanceOperation.Update(
        removed_fragment_ids=[],
        updated_fragments=changed,
        new_fragments=[],
        fields_modified=sorted(fields),
        update_mode="rewrite_columns",
    )
    lance.LanceDataset.commit(uri, operation, read_version=dataset.version)


Change = Callable[[str, Kind], None]
# With the fragments that the index loses by the change.
CHANGES: dict[Change, set[int]] = {
    delete: set(),
    delete_fragments: {2, 3},
    compact_some: {2, 3},
    update: set(),
    merge_insert: set(),
    rewrite_column: {2, 3},
}


def interrupted(job: lt.Job, when: str, change: Callable[[], None]) -> list[lt.Result]:
    """All results of a job that meets a change of the dataset once: `planned` before the first
    task, `executing` between two segments, `executed` after the last task."""
    results: list[lt.Result] = []
    pending = [change]
    while tasks := lt.plan(job, results):
        for number, task in enumerate(tasks):
            if pending and (when == "planned" or (when == "executing" and number == 1)):
                pending.pop()()
            results.append(lt.execute(task))
    if when == "executed":
        pending.pop()()
    assert not pending, f"the job has no moment {when!r}"
    return results


# Coverage


def rows_of(uri: str, version: int | None = None) -> dict[int, int]:
    """Live rows of every fragment."""
    dataset = lance.dataset(uri, version=version)
    return {f.fragment_id: f.count_rows() for f in dataset.get_fragments()}


def segments_of(uri: str, name: str = NAME) -> dict[str, list[int]]:
    """The fragments of every segment, by its uuid."""
    described = lance.dataset(uri).describe_indices()
    found = [index for index in described if index.name == name]
    return {s.uuid: sorted(s.fragment_ids) for index in found for s in index.segments}


def covered_by(uri: str, name: str = NAME) -> set[int]:
    """The fragments that an index covers; no two segments share one."""
    live = rows_of(uri).keys()
    fragments = [i for ids in segments_of(uri, name).values() for i in ids if i in live]
    assert len(fragments) == len(set(fragments)), f"segments overlap: {segments_of(uri, name)}"
    return set(fragments)


def check_coverage(uri: str, outcome: lt.Outcome, planned: dict[int, int]) -> set[int]:
    """What a commit says that it covers is what pylance finds; `planned` are the rows of the
    fragments as the job found them. Gives the fragments covered."""
    live, covered = rows_of(uri), covered_by(uri)
    rows = sum(live[i] for i in covered)
    statistics = lance.dataset(uri).stats.index_stats(NAME)
    (index,) = [i for i in lance.dataset(uri).describe_indices() if i.name == NAME]
    assert outcome.version == version_of(uri)
    assert outcome.rows == sum(live.values())
    assert outcome.metrics["segments"] == len(segments_of(uri)) == statistics["num_segments"]
    assert outcome.metrics["fragments_covered"] == len(covered)
    assert statistics["num_indexed_fragments"] == len(covered)
    assert outcome.metrics["rows_covered"] == rows
    assert statistics["num_indexed_rows"] == index.num_rows_indexed == rows
    assert statistics["num_unindexed_rows"] == sum(live.values()) - rows
    pruned = planned.keys() - covered
    assert outcome.metrics["fragments_pruned"] == len(pruned)
    assert outcome.metrics["rows_pruned"] == sum(planned[i] for i in pruned)
    return covered


def referenced(uri: str) -> set[str]:
    """The folders of all segments of the latest version."""
    described = lance.dataset(uri).describe_indices()
    return {segment.uuid for index in described for segment in index.segments}


def index_folders(uri: str) -> set[str]:
    return {path.split("/")[1] for path in files(uri) if path.startswith("_indices/")}


# In mid-build


@kinds
@pytest.mark.parametrize("when", ["planned", "executing", "executed"])
def test_append_in_mid_build(uri: str, kind: Kind, when: str) -> None:
    write(uri, stable=when == "executing")
    planned = rows_of(uri)
    job = lt.prepare(kind.spec(uri))
    results = interrupted(job, when, lambda: append(uri, kind))
    outcome = lt.commit(job, results)
    assert check_coverage(uri, outcome, planned) == set(range(FRAGMENTS))
    kind.check(uri)


@kinds
@row_ids
@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_change_in_mid_build(uri: str, kind: Kind, stable: bool, change: Change) -> None:
    write(uri, stable)
    planned = rows_of(uri)
    job = lt.prepare(kind.spec(uri))
    results = interrupted(job, "executing", lambda: change(uri, kind))
    outcome = lt.commit(job, results)
    lost = set(CHANGES[change])
    if stable and kind.by_row_id and change is not rewrite_column:
        # Rows of fragments that are gone may be elsewhere: a segment is taken whole or not at all.
        segments = [set(result.payload["fragment_ids"]) for result in results]
        lost = {i for segment in segments if segment & lost for i in segment}
    assert check_coverage(uri, outcome, planned) == planned.keys() - lost
    kind.check(uri)
    assert lt.commit(job, results).version == outcome.version
    # What is not covered is added, then everything is built anew.
    for spec in (lt.OptimizeIndex(uri), kind.spec(uri, replace=True)):
        lt.run(spec)
        assert covered_by(uri) == rows_of(uri).keys()
        kind.check(uri)


@kinds
@row_ids
def test_compaction_of_everything_in_mid_build(uri: str, kind: Kind, stable: bool) -> None:
    write(uri, stable)
    job = lt.prepare(kind.spec(uri))
    results = interrupted(job, "executing", lambda: compact_all(uri, kind))
    with unchanged(uri), pytest.raises(lt.RetryableConflictError) as caught:
        lt.commit(job, results)
    assert caught.value.retry_class == "replan"
    assert referenced(uri) == set()
    lt.abort(job, results)
    assert index_folders(uri) == set()
    outcome = lt.run(kind.spec(uri))
    check_coverage(uri, outcome, rows_of(uri))
    kind.check(uri)


@kinds
def test_deferred_compaction_in_mid_build(uri: str, kind: Kind) -> None:
    write(uri)
    planned = rows_of(uri)
    job = lt.prepare(kind.spec(uri))
    outcome = lt.commit(
        job, interrupted(job, "executing", lambda: compact_some_deferred(uri, kind))
    )
    check_coverage(uri, outcome, planned)
    kind.check(uri)


@pytest.mark.parametrize("change", [delete_fragments, compact_some], ids=lambda c: c.__name__)
def test_ngram_in_mid_build(uri: str, change: Change) -> None:
    """Lance takes no NGRAM segments from before a compaction: then the job is to be done again."""
    kind = KINDS["NGRAM"]
    write(uri)
    planned = rows_of(uri)
    job = lt.prepare(kind.spec(uri, num_segments=2))
    results = interrupted(job, "executing", lambda: change(uri, kind))
    try:
        outcome = lt.commit(job, results)
    except lt.RetryableConflictError as error:
        assert error.retry_class == "replan"
        assert referenced(uri) == set()
        lt.abort(job, results)
        assert index_folders(uri) == set()
        planned = rows_of(uri)
        outcome = lt.run(kind.spec(uri, num_segments=1))
    check_coverage(uri, outcome, planned)
    kind.check(uri)


@pytest.mark.parametrize("gone", ["dropped", "cast"])
def test_column_gone_in_mid_build(uri: str, gone: str) -> None:
    write(uri)
    job = lt.prepare(KINDS["BTREE"].spec(uri))
    results = finish(job)
    if gone == "dropped":
        lance.dataset(uri).drop_columns(["key"])
    else:
        lance.dataset(uri).alter_columns({"path": "key", "data_type": pa.int32()})
    with unchanged(uri), pytest.raises(lt.Error, match="key") as caught:
        lt.commit(job, results)
    assert caught.value.retry_class in ("replan", "conflict")
    assert referenced(uri) == set()


def test_overwritten_in_mid_build(uri: str) -> None:
    write(uri)
    job = lt.prepare(KINDS["BTREE"].spec(uri))
    results = finish(job)
    lance.write_dataset(table(), uri, mode="overwrite", max_rows_per_file=ROWS_PER_FRAGMENT)
    with unchanged(uri), pytest.raises(lt.ConflictError):
        lt.commit(job, results)
    lt.abort(job, results)
    assert index_folders(uri) == set()


# After the build


def compact_by_job(uri: str, kind: Kind) -> None:
    lt.run(lt.Compact(uri, target_rows_per_fragment=300))


AFTERWARDS = [compact_all, compact_by_job, compact_some, rewrite_column]


@kinds
@pytest.mark.parametrize("number", range(len(AFTERWARDS)), ids=lambda n: AFTERWARDS[n].__name__)
def test_change_after_the_build(uri: str, kind: Kind, number: int) -> None:
    """Compactions keep what is covered: segments are contiguous runs of fragments."""
    change = AFTERWARDS[number]
    write(uri, stable=(number + CHANGING.index(kind.index_type)) % 2 == 0)
    lt.run(kind.spec(uri))
    built = covered_by(uri)
    change(uri, kind)
    kind.check(uri)
    left = rows_of(uri).keys()
    if change is rewrite_column:
        left = built - {2, 3}
    elif not kind.remapped:
        left = built & left
    assert covered_by(uri) == left
    assert len(segments_of(uri)) == 3


@kinds
@row_ids
def test_delete_and_compaction_after_the_build(uri: str, kind: Kind, stable: bool) -> None:
    write(uri, stable)
    lt.run(kind.spec(uri))
    for change in (append, delete, update, merge_insert, delete_fragments):
        change(uri, kind)
        kind.check(uri)
    compact_all(uri, kind)
    kind.check(uri)
    lance.dataset(uri).optimize.compact_files()
    kind.check(uri)


@kinds
def test_deferred_compaction_after_the_build(uri: str, kind: Kind) -> None:
    write(uri)
    lt.run(kind.spec(uri))
    compact_some_deferred(uri, kind)
    kind.check(uri)


# Attempts and commits


@pytest.mark.parametrize(
    ("index_type", "options"),
    [
        ("BTREE", {}),
        ("BTREE", {"merge": True}),
        ("BITMAP", {}),
        ("INVERTED", {}),
        ("INVERTED", {"merge": True}),
        ("ZONEMAP", {}),
        ("IVF_FLAT", {"merge": True}),
        ("IVF_PQ", {}),
        ("IVF_PQ", {"merge": True}),
    ],
)
def test_three_attempts_per_task(
    uri: str, tmp_path: Path, index_type: str, options: dict[str, object]
) -> None:
    """One set of segments, however often tasks and commits are repeated, and whoever commits."""
    kind = KINDS[index_type]
    write(uri).create_scalar_index("id", "BTREE", name="other")
    job = lt.prepare(kind.spec(uri, **options))
    results: list[lt.Result] = []
    while tasks := lt.plan(job, results):
        results += [lt.execute(task) for _ in range(3) for task in tasks]
    job_file, folder = spool(tmp_path / "spool", job, results)
    first = worker("commit", job_file, folder)
    assert first.get("version") == 3, first
    with unchanged(uri):
        again = lt.commit(job, results)
        assert again.already_committed and again.version == first["version"]
        assert lt.commit(job, results[::-1], executor=lt.Executor()).already_committed
    assert len(segments_of(uri)) == (1 if options.get("merge") else 3)
    assert covered_by(uri) == set(range(FRAGMENTS))
    kind.check(uri)
    assert index_folders(uri) > referenced(uri)
    report = lt.abort(job, results)
    assert report.files_removed > 0
    assert index_folders(uri) == referenced(uri)
    assert set(segments_of(uri, "other")) < referenced(uri)
    kind.check(uri)
    assert lt.commit(job, results).version == first["version"]
    assert lt.abort(job).files_removed == 0


@kinds
def test_abort_leaves_nothing(uri: str, kind: Kind) -> None:
    """Of a job that was not committed, with and without its results."""
    write(uri)
    before = files(uri)
    for known in (True, False):
        job = lt.prepare(kind.spec(uri))
        results = finish(job)
        assert files(uri) != before
        lt.abort(job, results if known else [])
        assert files(uri) == before


def clean_up(uri: str) -> None:
    """Remove every version but the latest."""
    lance.dataset(uri).cleanup_old_versions(older_than=datetime.timedelta(0))


@kinds
def test_pinned_version_cleaned_away(uri: str, kind: Kind) -> None:
    write(uri)
    job = lt.prepare(kind.spec(uri))
    results = finish(job)
    append(uri, kind)
    clean_up(uri)
    for executor in (None, lt.Executor()):
        with unchanged(uri), pytest.raises(lt.VersionGoneError) as caught:
            lt.commit(job, results, executor=executor)
        assert caught.value.retry_class == "replan"
    assert referenced(uri) == set()
    outcome = lt.run(kind.spec(uri))
    check_coverage(uri, outcome, rows_of(uri))
    kind.check(uri)


@pytest.mark.parametrize("index_type", ["BTREE", "INVERTED", "IVF_PQ"])
def test_repeated_where_the_version_is_gone(uri: str, index_type: str) -> None:
    """The job is committed, its version and the commit's are cleaned away: never twice."""
    kind = KINDS[index_type]
    write(uri)
    job = lt.prepare(kind.spec(uri))
    results = finish(job)
    lt.commit(job, results)
    append(uri, kind)
    clean_up(uri)
    segments = segments_of(uri)
    with unchanged(uri), contextlib.suppress(lt.VersionGoneError, lt.HistoryGoneError):
        assert lt.commit(job, results, executor=lt.Executor()).already_committed
    assert segments_of(uri) == segments
    kind.check(uri)


@pytest.mark.parametrize("index_type", ["IVF_FLAT", "IVF_PQ", "IVF_RQ", "IVF_HNSW_SQ"])
def test_model_gone_before_the_segments(uri: str, index_type: str) -> None:
    """The model is trained again where its file is gone, say to a cleanup."""
    kind = KINDS[index_type]
    write(uri)
    job = lt.prepare(kind.spec(uri))
    (training,) = lt.plan(job)
    trained = lt.execute(training)
    tasks = lt.plan(job, [trained])
    assert len(tasks) == 3 and trained.files
    for file in trained.files:
        Path(uri, file["path"]).unlink()
    before = index_folders(uri)
    for executor in (None, lt.Executor()):
        with pytest.raises(lt.Error, match=trained.payload["model"]) as caught:
            lt.execute(tasks[0], executor=executor)
        assert caught.value.retry_class == "replan"
    assert index_folders(uri) == before
    lt.run(kind.spec(uri))
    kind.check(uri)


# In parts


@kinds
def test_partial_commits(uri: str, kind: Kind) -> None:
    write(uri)
    job = lt.prepare(kind.spec(uri))
    results = finish(job)
    segments = [result for result in results if result.files and "model" not in result.payload]
    assert len(segments) == 3
    model = [result for result in results if result not in segments]
    part = lt.commit(job, [*model, segments[1]], partial=True)
    assert not part.complete and part.metrics["segments"] == 1
    covered = covered_by(uri)
    assert 0 < len(covered) < FRAGMENTS
    assert part.metrics["fragments_covered"] == len(covered)
    assert part.metrics["rows_covered"] == ROWS_PER_FRAGMENT * len(covered)
    kind.check(uri)
    append(uri, kind)
    update(uri, kind)
    rest = lt.commit(job, results)
    assert rest.complete and rest.metrics["segments"] == 2
    assert covered_by(uri) == set(range(FRAGMENTS))
    assert len(segments_of(uri)) == 3
    kind.check(uri)
    assert lt.commit(job, results).already_committed
    lt.abort(job, results)
    assert index_folders(uri) == referenced(uri)


@kinds
@row_ids
def test_backfill_by_a_second_job(uri: str, kind: Kind, stable: bool) -> None:
    """A job over other fragments adds its segments to those that are there."""
    write(uri, stable)
    lt.run(kind.spec(uri, fragment_ids=[0, 1, 2, 7], num_segments=2))
    first = segments_of(uri)
    assert covered_by(uri) == {0, 1, 2, 7}
    kind.check(uri)
    append(uri, kind)
    rest = [3, 4, 5, 6, 8, 9, 10]
    outcome = lt.run(kind.spec(uri, fragment_ids=rest, num_segments=2, replace=True))
    assert outcome.metrics["segments"] == 2
    assert segments_of(uri).items() > first.items()
    assert len(segments_of(uri)) == 4
    assert covered_by(uri) == set(range(FRAGMENTS + 1))
    kind.check(uri)
    compact_all(uri, kind)
    kind.check(uri)


# A codebook is learnt from more rows than these changes leave to be covered.
@pytest.mark.parametrize("kind", [KINDS[k] for k in CHANGING[:-1]], ids=lambda k: k.index_type)
@row_ids
@pytest.mark.parametrize("change", [update, rewrite_column], ids=lambda c: c.__name__)
def test_backfill_beside_old_values(uri: str, kind: Kind, stable: bool, change: Change) -> None:
    """Where Lance would find the old values as well as soon as the new ones are indexed, segments
    beside those that hold them are refused."""
    write(uri, stable)
    lt.run(kind.spec(uri))
    change(uri, kind)
    rest = sorted(rows_of(uri).keys() - covered_by(uri))
    assert rest == [2, 3] if change is rewrite_column else rest == [FRAGMENTS]
    spec = kind.spec(uri, fragment_ids=rest, replace=True)
    try:
        lt.run(spec)
    except lt.NotSupportedError as error:
        assert "fragment_ids" in error.message
        assert kind.by_row_id or change is rewrite_column
    else:
        assert covered_by(uri) == rows_of(uri).keys()
    kind.check(uri)
    lt.run(lt.OptimizeIndex(uri))
    assert covered_by(uri) == rows_of(uri).keys()
    kind.check(uri)


@kinds
def test_two_jobs_of_one_name_race(uri: str, kind: Kind) -> None:
    write(uri)
    jobs = [lt.prepare(kind.spec(uri, num_segments=n, replace=True)) for n in (2, 3)]
    results = [finish(job) for job in jobs]
    lt.commit(jobs[1], results[1])
    with unchanged(uri), pytest.raises(lt.RetryableConflictError) as caught:
        lt.commit(jobs[0], results[0])
    assert caught.value.retry_class == "replan" and NAME in caught.value.message
    assert len(segments_of(uri)) == 3
    kind.check(uri)
    for job, made in zip(jobs, results, strict=True):
        lt.abort(job, made)
    assert index_folders(uri) == referenced(uri)
    assert len(segments_of(uri)) == 3
    kind.check(uri)


# Progress

STAGES = {
    "BTREE": {"load_data"},
    "BITMAP": {"load_data"},
    "LABEL_LIST": {"load_data"},
    "INVERTED": {"tokenize_docs", "write_metadata"},
    "ZONEMAP": {"load_data"},
    "IVF_FLAT": {"shuffle", "merge_partitions"},
    "IVF_PQ": {"shuffle", "merge_partitions"},
    "IVF_HNSW_SQ": {"shuffle", "merge_partitions"},
}


@pytest.mark.parametrize("index_type", STAGES)
def test_progress(uri: str, index_type: str) -> None:
    """Lance's own names of the stages of a build."""
    kind = KINDS[index_type]
    write(uri)
    job = lt.prepare(kind.spec(uri))
    results: list[lt.Result] = []
    for stage in itertools.count():
        tasks = lt.plan(job, results)
        if not tasks:
            break
        events: list[lt.Progress] = []
        done = list(lt.execute_all(tasks, progress=events.append))
        assert all(result.status == "ok" for result in done)
        results += done
        for task in tasks:
            mine = [event for event in events if event.task_id == task.id]
            assert mine[0].kind == "started" and mine[-1].kind == "finished"
            names = {event.message for event in mine if event.kind == "stage"}
            if stage == 0 and index_type.startswith("IVF"):
                assert "train_ivf" in names, names
            else:
                assert STAGES[index_type] <= names, names
    assert stage == (2 if index_type.startswith("IVF") else 1)
    lt.commit(job, results)
    kind.check(uri)
