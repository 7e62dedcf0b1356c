# SPDX-License-Identifier: Apache-2.0
"""BTREE indexes in segments: the segments asked for, used by stock pylance, answering as a full
scan does, on every kind of column, with deletions, stable row ids, and after other changes."""

import datetime
from decimal import Decimal

import lance
import pyarrow as pa
import pytest
from cases import check_index_answers
from support import assert_same, files, finish, make_dataset, numbers, read, run_loop, unchanged

import lance_tasks as lt

FILTERS = [
    "id = 600",
    "id = -1",
    "id < 120",
    "id >= 1100",
    "id between 290 and 410",
    "id in (7, 8, 1199, 5000)",
    "id is null",
    "id = 5 or id = 607",
]


def segments_of(uri: str, name: str = "id_idx") -> list[list[int]]:
    """The fragments of each segment."""
    (index,) = [i for i in lance.dataset(uri).describe_indices() if i.name == name]
    return sorted(sorted(segment.fragment_ids) for segment in index.segments)


def index_spec(uri: str, **options: object) -> lt.CreateIndex:
    return lt.CreateIndex(uri, **{"column": "id", "index_type": "BTREE", **options})


@pytest.mark.parametrize("count", [None, 1, 2, 3, 5, 12])
def test_num_segments(uri: str, count: int | None) -> None:
    make_dataset(uri)
    job = lt.prepare(index_spec(uri, num_segments=count))
    tasks = lt.plan(job)
    outcome = lt.commit(job, finish(job))
    segments = segments_of(uri)
    if count is not None:
        assert len(tasks) == len(segments) == outcome.metrics["segments"] == count
    assert [i for segment in segments for i in segment] == list(range(12)), "contiguous runs"
    sizes = [len(segment) for segment in segments]
    assert max(sizes) - min(sizes) <= 1, f"segments of uneven size: {sizes}"
    check_index_answers(lance.dataset(uri), "id", FILTERS)
    statistics = lance.dataset(uri).stats.index_stats("id_idx")
    assert statistics["num_unindexed_rows"] == 0
    assert statistics["num_indexed_rows"] == 1200


def test_more_segments_than_fragments(uri: str) -> None:
    make_dataset(uri, rows=300)
    run_loop(index_spec(uri, num_segments=10))
    assert segments_of(uri) == [[0], [1], [2]]


def test_max_rows_per_segment(uri: str) -> None:
    make_dataset(uri)
    run_loop(index_spec(uri, max_rows_per_segment=350))
    segments = segments_of(uri)
    assert [i for segment in segments for i in segment] == list(range(12))
    assert len(segments) == 4 and max(map(len, segments)) == 3
    check_index_answers(lance.dataset(uri), "id", FILTERS)


def test_fragment_ids(uri: str) -> None:
    make_dataset(uri)
    run_loop(index_spec(uri, fragment_ids=[2, 3, 4, 9], num_segments=2))
    assert [i for segment in segments_of(uri) for i in segment] == [2, 3, 4, 9]
    statistics = lance.dataset(uri).stats.index_stats("id_idx")
    assert statistics["num_indexed_fragments"] == 4
    assert statistics["num_unindexed_rows"] == 800
    check_index_answers(lance.dataset(uri), "id", [*FILTERS, "id = 250", "id = 950"])


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("count", [1, 4])
def test_with_deletions(uri: str, stable: bool, count: int) -> None:
    dataset = make_dataset(uri, enable_stable_row_ids=stable)
    dataset.delete("id % 3 = 1")
    run_loop(index_spec(uri, num_segments=count))
    check_index_answers(lance.dataset(uri), "id", FILTERS)
    lance.dataset(uri).delete("id % 5 = 0")
    check_index_answers(lance.dataset(uri), "id", FILTERS)


@pytest.mark.parametrize("stable", [False, True])
def test_after_compaction_update_and_append(uri: str, stable: bool) -> None:
    make_dataset(uri, enable_stable_row_ids=stable).delete("id % 10 = 3")
    run_loop(index_spec(uri, num_segments=4))
    lance.dataset(uri).insert(numbers(50, start=1200))
    lance.dataset(uri).update({"id": "id + 10000"}, where="id % 100 = 50")
    check_index_answers(lance.dataset(uri), "id", [*FILTERS, "id = 10050", "id = 50", "id = 1210"])
    run_loop(lt.Compact(uri, target_rows_per_fragment=500))
    check_index_answers(lance.dataset(uri), "id", [*FILTERS, "id = 10050", "id = 50", "id = 1210"])
    lance.dataset(uri).optimize.compact_files()
    check_index_answers(lance.dataset(uri), "id", [*FILTERS, "id = 10050", "id = 50", "id = 1210"])


def test_pylance_optimizes_the_index(uri: str) -> None:
    make_dataset(uri)
    run_loop(index_spec(uri, num_segments=3))
    lance.dataset(uri).insert(numbers(100, start=1200))
    lance.dataset(uri).optimize.optimize_indices()
    statistics = lance.dataset(uri).stats.index_stats("id_idx")
    assert statistics["num_unindexed_rows"] == 0
    check_index_answers(lance.dataset(uri), "id", [*FILTERS, "id = 1250"])


COLUMNS = {
    "int8": (pa.int8(), [1, None, -5, 7] * 25, "x = -5"),
    "uint64": (pa.uint64(), [1, None, 2**63, 7] * 25, "x = 7"),
    "float32": (pa.float32(), [1.5, None, float("inf"), -0.0] * 25, "x > 1.0"),
    "float64": (pa.float64(), [1.5, None, float("-inf"), 2.5] * 25, "x < 2.0"),
    "string": (pa.string(), ["a", None, "", "zürich"] * 25, "x = 'zürich'"),
    "large_string": (pa.large_string(), ["a", None, "", "z"] * 25, "x >= 'a'"),
    "binary": (pa.binary(), [b"a", None, b"", b"\xff"] * 25, "x is null"),
    "bool": (pa.bool_(), [True, None, False, True] * 25, "x is null"),
    "date32": (pa.date32(), [datetime.date(2020, 1, 1 + i % 9) for i in range(100)],
               "x = date '2020-01-05'"),
    "timestamp": (pa.timestamp("us"), [datetime.datetime(2020, 1, 1 + i % 9) for i in range(100)],
                  "x < timestamp '2020-01-05 00:00:00'"),
    "decimal": (pa.decimal128(10, 2), [Decimal(i % 9) for i in range(100)], "x is null"),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_column_types(uri: str, name: str) -> None:
    dtype, values, where = COLUMNS[name]
    table = pa.table({"id": range(100), "x": pa.array(values, dtype)})
    judge = lance.write_dataset(table, uri + ".judge", max_rows_per_file=20)
    lance.write_dataset(table, uri, max_rows_per_file=20)
    spec = lt.CreateIndex(uri, column="x", index_type="BTREE", num_segments=2)
    try:
        judge.create_scalar_index("x", "BTREE")
    except Exception:
        with unchanged(uri), pytest.raises(lt.Error, match="x"):
            run_loop(spec)
        return
    run_loop(spec)
    dataset = lance.dataset(uri)
    for filter_ in (where, "x is null"):
        with_index = dataset.to_table(filter=filter_).sort_by("id")
        full = dataset.scanner(filter=filter_, use_scalar_index=False).to_table().sort_by("id")
        assert_same(with_index, full)
        assert_same(judge.to_table(filter=filter_).sort_by("id"), full)
        used = "ScalarIndexQuery" in dataset.scanner(filter=filter_).explain_plan()
        assert used == ("ScalarIndexQuery" in judge.scanner(filter=filter_).explain_plan())


def test_nested_column(uri: str) -> None:
    table = pa.table({"id": range(100), "place": [{"lat": i * 1.0} for i in range(100)]})
    lance.write_dataset(table, uri, max_rows_per_file=20)
    run_loop(lt.CreateIndex(uri, column="place.lat", index_type="BTREE", num_segments=2))
    check_index_answers(lance.dataset(uri), "id", ["place.lat = 5.0", "place.lat < 7.0"])


def test_duplicates_and_order(uri: str) -> None:
    """Equal keys within and across segments, in no order."""
    values = [(i * 7919) % 13 for i in range(1000)]
    lance.write_dataset(pa.table({"id": range(1000), "k": values}), uri, max_rows_per_file=90)
    run_loop(lt.CreateIndex(uri, column="k", index_type="BTREE", num_segments=4))
    check_index_answers(lance.dataset(uri), "id", ["k = 5", "k > 10", "k in (0, 12)", "k < 0"])


def test_many_rows_per_segment(uri: str) -> None:
    """More rows than a page of the index holds."""
    rows = 60_000
    values = pa.array([(i * 7919) % rows for i in range(rows)])
    lance.write_dataset(pa.table({"id": range(rows), "k": values}), uri, max_rows_per_file=10_000)
    run_loop(lt.CreateIndex(uri, column="k", index_type="BTREE", num_segments=2))
    check_index_answers(
        lance.dataset(uri), "id", ["k = 4096", "k between 100 and 9000", "k >= 59990", "k is null"]
    )


def test_replace(uri: str) -> None:
    make_dataset(uri)
    run_loop(index_spec(uri, num_segments=3))
    old = {s.uuid for i in lance.dataset(uri).describe_indices() for s in i.segments}
    with unchanged(uri), pytest.raises(lt.AlreadyExistsError, match="id_idx"):
        run_loop(index_spec(uri, num_segments=2))
    lance.dataset(uri).insert(numbers(100, start=1200))
    run_loop(index_spec(uri, num_segments=2, replace=True))
    (index,) = lance.dataset(uri).describe_indices()
    assert len(index.segments) == 2
    assert old.isdisjoint(segment.uuid for segment in index.segments)
    assert [i for segment in segments_of(uri) for i in segment] == list(range(13))
    check_index_answers(lance.dataset(uri), "id", FILTERS)


def test_replace_leaves_other_indexes(uri: str) -> None:
    make_dataset(uri).create_scalar_index("score", "BTREE", name="other")
    run_loop(index_spec(uri, name="mine"))
    run_loop(index_spec(uri, name="mine", replace=True))
    dataset = lance.dataset(uri)
    assert sorted(index.name for index in dataset.describe_indices()) == ["mine", "other"]
    check_index_answers(dataset, "id", ["score = 10.0", *FILTERS])


def test_two_jobs_for_one_name(uri: str) -> None:
    """The second to commit is refused: it was to be a new index."""
    make_dataset(uri)
    jobs = [lt.prepare(index_spec(uri, num_segments=n)) for n in (2, 3)]
    results = [finish(job) for job in jobs]
    lt.commit(jobs[0], results[0])
    with unchanged(uri), pytest.raises((lt.ConflictError, lt.AlreadyExistsError)):
        lt.commit(jobs[1], results[1])
    assert len(segments_of(uri)) == 2
    lt.abort(jobs[1], results[1])
    check_index_answers(lance.dataset(uri), "id", FILTERS)


def test_two_jobs_for_two_columns(uri: str) -> None:
    make_dataset(uri)
    jobs = [
        lt.prepare(lt.CreateIndex(uri, column=c, index_type="btree", num_segments=2))
        for c in ("id", "score")
    ]
    results = [finish(job) for job in jobs]
    for job, made in zip(jobs, results, strict=True):
        lt.commit(job, made)
    check_index_answers(lance.dataset(uri), "id", [*FILTERS, "score < 10", "id < 9 and score > 2"])


def test_lance_parameters(uri: str) -> None:
    make_dataset(uri)
    run_loop(index_spec(uri, zone_size=64))
    check_index_answers(lance.dataset(uri), "id", FILTERS)


def test_index_of_an_empty_dataset(uri: str) -> None:
    lance.write_dataset(numbers(0), uri)
    outcome = run_loop(index_spec(uri))
    assert outcome.rows == 0
    lance.dataset(uri).insert(numbers(50))
    table = lance.dataset(uri).to_table(filter="id = 5")
    assert table["id"].to_pylist() == [5]


def test_files_are_those_of_the_segments(uri: str) -> None:
    make_dataset(uri)
    job = lt.prepare(index_spec(uri, num_segments=3))
    results = finish(job)
    made = {file["path"] for result in results for file in result.to_dict()["files"]}
    lt.commit(job, results)
    assert {path for path in files(uri) if path.startswith("_indices/")} == made
    (index,) = lance.dataset(uri).describe_indices()
    assert {path.split("/")[1] for path in made} == {s.uuid for s in index.segments}
    assert_same(read(uri), numbers(1200))
