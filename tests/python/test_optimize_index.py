# SPDX-License-Identifier: Apache-2.0
"""Indexes that grow with their dataset: `OptimizeIndex` covers what no segment covers, reads no
more than that, merges and retrains where told, and commits all of it at once."""

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator

import lance
import pyarrow as pa
import pytest
from lance.indices import IndexConfig
from support import files, finish, spool, unchanged, version_of, worker
from test_index_changes import (
    APPENDED,
    DIMENSION,
    FRAGMENTS,
    KINDS,
    NAME,
    Kind,
    Near,
    Words,
    append,
    check_coverage,
    compact_all,
    covered_by,
    delete,
    delete_fragments,
    index_folders,
    merge_insert,
    referenced,
    rewrite_column,
    rows_of,
    segments_of,
    table,
    update,
    vectors,
    write,
)

import lance_tasks as lt

NEW = 100
# A zone map is of use where the order of the rows is the column's.
ZONES = Kind(
    "ZONEMAP",
    "id",
    ("id between 130 and 150", "id = 1050", "id >= 990", "id < 20"),
    {"rows_per_zone": 32},
    updated="500000 + id",
    remapped=False,
)
OPTIMIZED = {
    name: ZONES if name == "ZONEMAP" else KINDS[name]
    for name in [
        "BTREE",
        "BITMAP",
        "LABEL_LIST",
        "NGRAM",
        "ZONEMAP",
        "BLOOMFILTER",
        "INVERTED",
        "JSON",
        "FM",
        "IVF_FLAT",
        "IVF_PQ",
        "IVF_SQ",
        "IVF_HNSW_SQ",
        "IVF_RQ",
    ]
}
FEW = [KINDS[name] for name in ("BTREE", "BITMAP", "INVERTED", "ZONEMAP", "IVF_FLAT", "IVF_PQ")]

every = pytest.mark.parametrize("kind", OPTIMIZED.values(), ids=lambda k: k.index_type)
few = pytest.mark.parametrize("kind", FEW, ids=lambda k: k.index_type)
row_ids = pytest.mark.parametrize("stable", [False, True], ids=["addresses", "stable"])


def optimize(uri: str, names: object = None, **options: object) -> lt.Outcome:
    return lt.run(lt.OptimizeIndex(uri, names, **options))


def build_by_pylance(uri: str, kind: Kind, name: str = NAME) -> None:
    dataset = lance.dataset(uri)
    params = {key: value for key, value in kind.params.items() if key != "merge"}
    if isinstance(kind, Near):
        dataset.create_index(kind.column, kind.index_type, name=name, replace=True, **params)
    elif kind.index_type in ("JSON", "FM"):
        config = IndexConfig(kind.index_type.lower(), params)
        dataset.create_scalar_index(kind.column, config, name=name)
    else:
        dataset.create_scalar_index(kind.column, kind.index_type, name=name, **params)


def build(uri: str, kind: Kind, by: str = "tasks") -> None:
    if by == "pylance":
        build_by_pylance(uri, kind)
    else:
        lt.run(kind.spec(uri))


def scanned(kind: Kind, uri: str, question: object) -> int:
    """Rows that a query reads beside those that the index names; for a search, 1 where its plan
    has a branch that searches rows without the index."""
    dataset = lance.dataset(uri)
    if isinstance(kind, (Words, Near)):
        plan = kind.scanner(dataset, question).explain_plan(verbose=True)
        return int("FlatMatchQuery" in plan or "LanceScan" in plan)
    statistics: list[lance.ScanStatistics] = []
    options = {"columns": ["id"], "filter": question, "scan_stats_callback": statistics.append}
    dataset.scanner(**options).to_table()
    return statistics[-1].all_counts["rows_scanned"]


def unindexed(uri: str, name: str = NAME) -> int:
    return lance.dataset(uri).stats.index_stats(name)["num_unindexed_rows"]


# The delta


# Kinds by the row ids that Lance has them for, and that they are not too slow for.
ALL = [
    pytest.param(kind, stable, id=f"{name}-{'stable' if stable else 'addresses'}")
    for name, kind in OPTIMIZED.items()
    for stable in (False, True)
    if not (stable and name in ("JSON", "NGRAM"))
]
every_stable = pytest.mark.parametrize(("kind", "stable"), ALL)


@every_stable
def test_delta(uri: str, kind: Kind, stable: bool) -> None:
    """Only what is new is indexed, and queries stop to scan it."""
    write(uri, stable)
    place = list(OPTIMIZED).index(kind.index_type)
    build(uri, kind, ["tasks", "pylance"][(place + stable) % 2])
    before = segments_of(uri)
    for start in (0, NEW // 2):
        lance.dataset(uri).insert(table(NEW // 2, APPENDED + start))
    kind.check(uri)
    question = kind.questions[0]
    beside = scanned(kind, uri, question)
    hits = [i for i in kind.answer(lance.dataset(uri), question) if i >= APPENDED]
    version = version_of(uri)

    job = lt.prepare(lt.OptimizeIndex(uri))
    results = finish(job)
    outcome = lt.commit(job, results)
    assert outcome.version == version_of(uri) == version + 1
    assert outcome.metrics["indices"] == 1 and outcome.metrics["segments_replaced"] == 0
    assert outcome.metrics["segments"] == 1
    assert unindexed(uri) == 0 and covered_by(uri) == rows_of(uri).keys()
    now = segments_of(uri)
    assert now.items() > before.items() and len(now) == len(before) + 1
    kind.check(uri)
    if isinstance(kind, (Words, Near)):
        assert (beside, scanned(kind, uri, question)) == (1, 0)
    else:
        assert beside - scanned(kind, uri, question) == NEW - len(hits)

    # Nothing is left to do.
    job = lt.prepare(lt.OptimizeIndex(uri))
    assert lt.plan(job) == []
    with unchanged(uri):
        outcome = optimize(uri)
    assert outcome.version == version + 1 and not outcome.metrics.get("segments")


# Values that no encoding makes smaller, so that bytes tell what is read


def digests(ids: range) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest()[:32] for i in ids]


@functools.cache
def wide(rows: int, start: int = 0) -> pa.Table:
    ids = range(start, start + rows)
    texts = digests(ids)
    numbers = [int(text[:15], 16) for text in texts]
    flat = vectors(ids).ravel()
    return pa.table(
        {
            "id": pa.array(numbers),
            "key": pa.array(numbers),
            "kind": pa.array(texts),
            "tags": pa.array([[text] for text in texts]),
            "text": pa.array(texts),
            "document": pa.array([json.dumps({"x": n}) for n in numbers]).cast(pa.json_()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat), DIMENSION),
        }
    )


def column_bytes(dataset: lance.LanceDataset, column: str) -> int:
    """Bytes in data files of a column and what is nested in it."""
    ids, open_ = set(), [dataset.lance_schema.field(column)]
    while open_:
        field = open_.pop()
        ids.add(field.id())
        open_ += field.children()
    return sum(f.bytes_on_disk for f in dataset.stats.data_stats().fields if f.id in ids)


@every
def test_only_new_fragments_are_read(uri: str, kind: Kind) -> None:
    rows = 500
    options = {"max_rows_per_file": rows, "data_storage_version": "2.2"}
    dataset = lance.write_dataset(wide(10 * rows), uri, **options)
    old = column_bytes(dataset, kind.column)
    build(uri, kind)
    lance.dataset(uri).insert(wide(rows, 10 * rows))
    new = column_bytes(lance.dataset(uri), kind.column) - old
    assert old > 9 * new
    job = lt.prepare(lt.OptimizeIndex(uri))
    results = finish(job)
    read = sum(result.bytes_read for result in results)
    if kind.index_type == "INVERTED":  # finishing a segment reads what was written of it
        read -= sum(result.bytes_written for result in results)
    assert new * 0.9 < read < old / 3, f"{read} bytes read, old {old}, new {new}"
    lt.commit(job, results)
    assert unindexed(uri) == 0


@few
@pytest.mark.parametrize(
    ("options", "segments"),
    [({"num_segments": 2}, 2), ({"num_segments": 9}, 4), ({"max_rows_per_segment": 100}, 2)],
)
def test_segments_of_the_delta(
    uri: str, kind: Kind, options: dict[str, int], segments: int
) -> None:
    write(uri)
    build(uri, kind)
    before = segments_of(uri)
    for start in range(4):
        lance.dataset(uri).insert(table(50, APPENDED + 50 * start))
    job = lt.prepare(lt.OptimizeIndex(uri, **options))
    outcome = lt.commit(job, finish(job))
    assert outcome.metrics["segments"] == segments
    new = {uuid: ids for uuid, ids in segments_of(uri).items() if uuid not in before}
    assert segments_of(uri).items() > before.items() and len(new) == segments
    runs = sorted(new.values())
    assert [i for ids in runs for i in ids] == list(range(FRAGMENTS, FRAGMENTS + 4))
    assert max(map(len, runs)) - min(map(len, runs)) == 0
    kind.check(uri)


# Merging and retraining


MERGES = [
    pytest.param(kind, count, id=f"{name}-{count}")
    for name, kind in OPTIMIZED.items()
    for count in (1, 2, 10)
    # Lance switches threads too often there to be quick on a busy machine.
    if name != "NGRAM" or count == 2
]


@pytest.mark.parametrize(("kind", "count"), MERGES)
def test_merge(uri: str, kind: Kind, count: int) -> None:
    """The last segments and the delta become one."""
    write(uri)
    build(uri, kind)
    before = segments_of(uri)
    append(uri, kind)
    outcome = optimize(uri, num_indices_to_merge=count)
    now = segments_of(uri)
    replaced = min(count, 3)
    assert len(now) == 3 - replaced + 1
    assert len(before.keys() - now.keys()) == replaced
    assert outcome.metrics["segments"] == 1
    assert outcome.metrics["segments_replaced"] == replaced
    assert unindexed(uri) == 0 and covered_by(uri) == rows_of(uri).keys()
    kind.check(uri)
    delete(uri, kind)
    compact_all(uri, kind)
    kind.check(uri)


@few
@row_ids
def test_merge_without_a_delta(uri: str, kind: Kind, stable: bool) -> None:
    write(uri, stable)
    build(uri, kind)
    append(uri, kind)
    optimize(uri)
    delete(uri, kind)
    assert len(segments_of(uri)) == 4 and unindexed(uri) == 0
    optimize(uri, num_indices_to_merge=10)
    assert len(segments_of(uri)) == 1 and unindexed(uri) == 0
    kind.check(uri)


# Old values that linger in segments

OLD_VALUES = [OPTIMIZED[n] for n in ("BTREE", "BITMAP", "LABEL_LIST", "INVERTED", "FM", "IVF_PQ")]
old_values = pytest.mark.parametrize(
    "kind", [*OLD_VALUES, KINDS["ZONEMAP"]], ids=lambda k: k.index_type
)


@old_values
@row_ids
@pytest.mark.parametrize("options", [{}, {"num_indices_to_merge": 2}], ids=str)
def test_moved_rows(uri: str, kind: Kind, stable: bool, options: dict[str, int]) -> None:
    """With stable row ids, Lance finds rows of some kinds by their old values again as soon as
    their new fragment is covered: then segments that hold such rows are built anew."""
    write(uri, stable)
    build(uri, kind)
    before = segments_of(uri)
    update(uri, kind)
    kind.check(uri)
    outcome = optimize(uri, **options)
    kept = segments_of(uri).keys() & before.keys()
    if options:
        assert len(kept) <= 1
    elif stable and kind.by_row_id:
        assert {2, 3}.isdisjoint(i for uuid in kept for i in before[uuid])
        assert outcome.metrics["segments_replaced"] == 1 and len(kept) == 2
    else:
        assert outcome.metrics["segments_replaced"] == 0 and len(kept) == 3
    assert unindexed(uri) == 0 and covered_by(uri) == rows_of(uri).keys()
    kind.check(uri)
    # Rows that have moved already move again.
    merge_insert(uri, kind)
    optimize(uri, **options)
    assert unindexed(uri) == 0 and covered_by(uri) == rows_of(uri).keys()
    kind.check(uri)


@old_values
@row_ids
@pytest.mark.parametrize("options", [{}, {"num_indices_to_merge": 2}], ids=str)
def test_column_rewritten_in_place(
    uri: str, kind: Kind, stable: bool, options: dict[str, int]
) -> None:
    """As above, for rows that stay where they are."""
    write(uri, stable)
    build(uri, kind, "pylance" if stable else "tasks")
    rewrite_column(uri, kind)
    assert covered_by(uri) == set(range(FRAGMENTS)) - {2, 3}
    optimize(uri, **options)
    assert unindexed(uri) == 0 and covered_by(uri) == set(range(FRAGMENTS))
    kind.check(uri)
    append(uri, kind)
    segments = segments_of(uri)
    optimize(uri)
    assert segments_of(uri).items() > segments.items()
    kind.check(uri)


@every_stable
def test_retrain(uri: str, kind: Kind, stable: bool) -> None:
    """Everything is built anew, from the rows as they are."""
    write(uri, stable)
    build(uri, kind)
    before = segments_of(uri)
    append(uri, kind)
    if kind.index_type != "JSON":
        update(uri, kind)
    delete_fragments(uri, kind)
    version = version_of(uri)
    outcome = optimize(uri, retrain=True, num_segments=2)
    assert outcome.version == version_of(uri) == version + 1
    assert before.keys().isdisjoint(segments_of(uri))
    assert outcome.metrics["segments_replaced"] == 3
    assert check_coverage(uri, outcome, rows_of(uri)) == rows_of(uri).keys()
    assert len(segments_of(uri)) == 2
    kind.check(uri)


# Several indexes

SEVERAL = [KINDS[n] for n in ("BTREE", "BITMAP", "LABEL_LIST", "INVERTED", "IVF_PQ")]


def build_several(uri: str, stable: bool = False) -> None:
    write(uri, stable)
    for number, kind in enumerate(SEVERAL):
        if number % 2:
            build_by_pylance(uri, kind, kind.column)
        else:
            lt.run(kind.spec(uri, name=kind.column))


@row_ids
def test_several_indexes_in_one_commit(uri: str, stable: bool) -> None:
    build_several(uri, stable)
    append(uri, SEVERAL[0])
    version = version_of(uri)
    outcome = optimize(uri)
    assert outcome.version == version_of(uri) == version + 1
    assert outcome.metrics["indices"] == outcome.metrics["segments"] == len(SEVERAL)
    for kind in SEVERAL:
        assert unindexed(uri, kind.column) == 0
        assert covered_by(uri, kind.column) == rows_of(uri).keys()
        kind.check(uri, kind.column)


@pytest.mark.parametrize("names", ["key", ["key"], ["key", "vector"]])
def test_names(uri: str, names: object) -> None:
    build_several(uri)
    append(uri, SEVERAL[0])
    before = {kind.column: segments_of(uri, kind.column) for kind in SEVERAL}
    chosen = [names] if isinstance(names, str) else names
    outcome = optimize(uri, names)
    assert outcome.metrics["indices"] == len(chosen)
    for kind in SEVERAL:
        if kind.column in chosen:
            assert unindexed(uri, kind.column) == 0
        else:
            assert segments_of(uri, kind.column) == before[kind.column]
            assert unindexed(uri, kind.column) == NEW
        kind.check(uri, kind.column)


@pytest.mark.parametrize("names", ["nowhere", ["key", "nowhere"]])
def test_unknown_name_refused(uri: str, names: object) -> None:
    build_several(uri)
    append(uri, SEVERAL[0])
    with unchanged(uri), pytest.raises(lt.NotFoundError, match="nowhere"):
        lt.prepare(lt.OptimizeIndex(uri, names))


def test_wrong_numbers_refused(uri: str) -> None:
    write(uri)
    build(uri, KINDS["BTREE"])
    for options in (
        {"num_segments": 0},
        {"max_rows_per_segment": 0},
        {"num_segments": 2, "max_rows_per_segment": 100},
        {"num_indices_to_merge": -1},
    ):
        with pytest.raises(lt.InvalidArgumentError) as caught:
            lt.prepare(lt.OptimizeIndex(uri, **options))
        assert any(name in caught.value.message for name in options)


def test_dataset_without_indexes(uri: str) -> None:
    write(uri)
    with unchanged(uri):
        outcome = optimize(uri)
        assert outcome.version == 1 and not outcome.metrics.get("segments")


def test_transaction_properties(uri: str) -> None:
    write(uri)
    build(uri, KINDS["BTREE"])
    append(uri, KINDS["BTREE"])
    outcome = optimize(uri, transaction_properties={"who": "a test"})
    transaction = lance.dataset(uri).read_transaction(outcome.version)
    assert transaction.transaction_properties["who"] == "a test"
    assert transaction.uuid == outcome.transaction_id


# Changes before and in mid-optimize


@few
@row_ids
def test_changes_between(uri: str, kind: Kind, stable: bool) -> None:
    """Rounds of changes and optimizing, then of compactions."""
    write(uri, stable)
    build(uri, kind)
    for change in (append, delete, update, merge_insert, delete_fragments):
        change(uri, kind)
        optimize(uri)
        assert unindexed(uri) == 0
        kind.check(uri)
    compact_all(uri, kind)
    optimize(uri)
    assert unindexed(uri) == 0
    kind.check(uri)


Change = Callable[[str, Kind], None]


def update_new(uri: str, kind: Kind) -> None:
    update(uri, kind, f"id >= {APPENDED + 10} and id < {APPENDED + 50}")


def more_rows(uri: str, kind: Kind) -> None:
    lance.dataset(uri).insert(table(NEW, APPENDED + NEW))


def delete_new(uri: str, kind: Kind) -> None:
    lance.dataset(uri).delete(f"id >= {APPENDED} and id % 2 = 0")


def delete_new_fragment(uri: str, kind: Kind) -> None:
    lance.dataset(uri).delete(f"id >= {APPENDED}")


def compact_old(uri: str, kind: Kind) -> None:
    """Fragments that the index covers, not the new one."""
    lance.dataset(uri).delete("id >= 200 and id < 400 and id % 3 = 0")
    lance.dataset(uri).optimize.compact_files(
        target_rows_per_fragment=90, materialize_deletions_threshold=0.1
    )


def compact_new(uri: str, kind: Kind) -> None:
    """The new fragment, which the index does not cover yet."""
    delete_new(uri, kind)
    lance.dataset(uri).optimize.compact_files(
        target_rows_per_fragment=90, materialize_deletions_threshold=0.1
    )


def optimize_by_pylance(uri: str, kind: Kind) -> None:
    lance.dataset(uri).optimize.optimize_indices(num_indices_to_merge=0)


def merge_by_pylance(uri: str, kind: Kind) -> None:
    lance.dataset(uri).optimize.optimize_indices(num_indices_to_merge=10)


def rebuild_by_pylance(uri: str, kind: Kind) -> None:
    build_by_pylance(uri, kind)


GO_TOGETHER = [
    more_rows,
    delete,
    delete_new,
    delete_fragments,
    update,
    update_new,
    merge_insert,
    rewrite_column,
    compact_old,
]
GET_AHEAD = [
    compact_all,
    compact_new,
    delete_new_fragment,
    optimize_by_pylance,
    merge_by_pylance,
    rebuild_by_pylance,
]


def in_mid_optimize() -> Iterator[object]:
    """Every change with every kind, and with every way to optimize in turn."""
    ways = list(
        itertools.product([False, True], [{}, {"num_indices_to_merge": 2}, {"retrain": True}])
    )
    for number, change in enumerate(GO_TOGETHER + GET_AHEAD):
        for other, kind in enumerate(FEW):
            stable, options = ways[(number + other) % len(ways)]
            shown = [change.__name__, kind.index_type, *(["stable"] if stable else []), *options]
            yield pytest.param(change, kind, stable, options, id="-".join(shown))


@pytest.mark.parametrize(("change", "kind", "stable", "options"), list(in_mid_optimize()))
def test_change_in_mid_optimize(
    uri: str, change: Change, kind: Kind, stable: bool, options: dict[str, object]
) -> None:
    """What goes together is committed; where another writer was ahead, the work may be refused for
    being planned again. Queries are right in either case, and after optimizing again."""
    write(uri, stable)
    build(uri, kind)
    append(uri, kind)
    job = lt.prepare(lt.OptimizeIndex(uri, **options))
    results = finish(job)
    change(uri, kind)
    before, version = segments_of(uri), version_of(uri)
    try:
        outcome = lt.commit(job, results)
    except lt.RetryableConflictError as error:
        assert change in GET_AHEAD or options, f"{change.__name__}: {error}"
        assert error.retry_class == "replan"
        assert segments_of(uri) == before and version_of(uri) == version
    else:
        assert outcome.version == version_of(uri)
    covered_by(uri)
    kind.check(uri)
    lt.abort(job, results)
    optimize(uri)
    assert unindexed(uri) == 0 and covered_by(uri) == rows_of(uri).keys()
    kind.check(uri)


@few
def test_index_dropped_in_mid_optimize(uri: str, kind: Kind) -> None:
    """No half of an index comes back."""
    write(uri)
    build(uri, kind)
    append(uri, kind)
    for options in ({}, {"num_indices_to_merge": 10}, {"retrain": True}):
        job = lt.prepare(lt.OptimizeIndex(uri, **options))
        results = finish(job)
        lance.dataset(uri).drop_index(NAME)
        with unchanged(uri), pytest.raises(lt.Error, match=NAME) as caught:
            lt.commit(job, results)
        assert caught.value.retry_class in ("replan", "conflict")
        assert lance.dataset(uri).describe_indices() == []
        lt.abort(job, results)
        build(uri, kind)
        lance.dataset(uri).delete(f"id = {APPENDED}")
        append(uri, kind)


def test_one_of_several_dropped_in_mid_optimize(uri: str) -> None:
    build_several(uri)
    append(uri, SEVERAL[0])
    job = lt.prepare(lt.OptimizeIndex(uri))
    results = finish(job)
    lance.dataset(uri).drop_index("kind")
    try:
        lt.commit(job, results)
    except lt.Error as error:
        assert error.retry_class in ("replan", "conflict")
    names = [index.name for index in lance.dataset(uri).describe_indices()]
    assert sorted(names) == sorted({kind.column for kind in SEVERAL} - {"kind"})
    lt.abort(job, results)
    optimize(uri)
    for kind in SEVERAL:
        if kind.column != "kind":
            assert unindexed(uri, kind.column) == 0
            kind.check(uri, kind.column)


@few
def test_two_jobs_for_one_delta(uri: str, kind: Kind) -> None:
    write(uri)
    build(uri, kind)
    append(uri, kind)
    jobs = [lt.prepare(lt.OptimizeIndex(uri)) for _ in range(2)]
    results = [finish(job) for job in jobs]
    lt.commit(jobs[1], results[1])
    segments = segments_of(uri)
    try:
        lt.commit(jobs[0], results[0])
    except lt.RetryableConflictError as error:
        assert error.retry_class == "replan"
    assert segments_of(uri) == segments and covered_by(uri) == rows_of(uri).keys()
    for job, made in zip(jobs, results, strict=True):
        lt.abort(job, made)
    assert index_folders(uri) == referenced(uri)
    kind.check(uri)


# Attempts and commits


@few
@pytest.mark.parametrize(
    "options", [{}, {"num_indices_to_merge": 2}, {"retrain": True, "num_segments": 2}], ids=str
)
def test_three_attempts_per_task(
    uri: str, tmp_path, kind: Kind, options: dict[str, object]
) -> None:
    write(uri)
    build(uri, kind)
    append(uri, kind)
    job = lt.prepare(lt.OptimizeIndex(uri, **options))
    results: list[lt.Result] = []
    while tasks := lt.plan(job, results):
        results += [lt.execute(task) for _ in range(3) for task in tasks]
    version = version_of(uri)
    first = worker("commit", *spool(tmp_path / "spool", job, results))
    assert first.get("version") == version + 1, first
    segments = segments_of(uri)
    assert len(segments) == {0: 4, 1: 2, 2: 2}[len(options)]
    with unchanged(uri):
        again = lt.commit(job, results[::-1])
        assert again.already_committed and again.version == first["version"]
    assert segments_of(uri) == segments and unindexed(uri) == 0
    kind.check(uri)
    lt.abort(job, results)
    # What was replaced belongs to earlier versions.
    earlier = {s for v in range(1, version + 1) for s in referenced_by(uri, v)}
    assert index_folders(uri) == referenced(uri) | earlier
    assert segments_of(uri) == segments
    kind.check(uri)
    assert lt.commit(job, results).version == first["version"]


def referenced_by(uri: str, version: int) -> set[str]:
    described = lance.dataset(uri, version=version).describe_indices()
    return {segment.uuid for index in described for segment in index.segments}


@few
def test_abort_leaves_nothing(uri: str, kind: Kind) -> None:
    write(uri)
    build(uri, kind)
    append(uri, kind)
    before = files(uri)
    for options in ({}, {"num_indices_to_merge": 2}, {"retrain": True}):
        job = lt.prepare(lt.OptimizeIndex(uri, **options))
        results = finish(job)
        assert files(uri) != before
        lt.abort(job, results)
        assert files(uri) == before
    kind.check(uri)
