# SPDX-License-Identifier: Apache-2.0
"""Every scalar index type in segments: used by stock pylance, answering as a full scan does, with
nulls, deletions and stable row ids. The data and the predicates are in index_types.py."""

import datetime
import shutil
from decimal import Decimal

import index_types
import lance
import pyarrow as pa
import pytest
from index_types import FRAGMENTS, KINDS, REFUSED, Kind, check_filter, segments_of, statistics
from lance.indices import IndexConfig
from support import assert_same_rows, finish, run_loop, unchanged

import lance_tasks as lt

WITH_STABLE = [
    pytest.param(kind, stable, id=f"{kind.label}{'-stable' * stable}")
    for kind in KINDS
    for stable in (False, True)
    if kind.stable_row_ids or not stable
]
EACH_TYPE = [pytest.param(kind, id=kind.index_type) for kind in index_types.one_of_each_type()]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> index_types.Originals:
    return index_types.Originals(tmp_path_factory.mktemp("index_types"))


@pytest.fixture
def copy(originals: index_types.Originals, uri: str):
    """Calls make a copy of the table, `copy(stable)`."""
    return lambda stable=False: originals.copy(uri, stable)


def check_index(uri: str, kind: Kind, name: str, segments: int) -> None:
    """All fragments are covered by so many segments, and all predicates are answered by them."""
    dataset = lance.dataset(uri)
    (index,) = dataset.describe_indices()
    assert (index.name, index.index_type) == (name, kind.shown)
    covered = sorted(sorted(segment.fragment_ids) for segment in index.segments)
    assert len(covered) == segments
    assert [i for run in covered for i in run] == [f.fragment_id for f in dataset.get_fragments()]
    numbers = statistics(uri, name)
    assert numbers["num_segments"] == segments
    assert numbers["num_unindexed_fragments"] == numbers["num_unindexed_rows"] == 0
    assert numbers["num_indexed_rows"] == dataset.count_rows()
    kind.check(dataset, name, segments)


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize(("kind", "stable"), WITH_STABLE)
def test_answers(copy, kind: Kind, stable: bool, count: int) -> None:
    uri = copy(stable)
    job = lt.prepare(lt.CreateIndex(uri, name="mine", num_segments=count, **kind.spec))
    tasks = lt.plan(job)
    assert len(tasks) == count
    outcome = lt.commit(job, finish(job))
    assert outcome.metrics["segments"] == outcome.metrics["tasks"] == count
    assert outcome.metrics["fragments_covered"] == FRAGMENTS
    check_index(uri, kind, "mine", count)
    if count == 3:
        lance.dataset(uri).delete(index_types.DELETED_AFTER)
        kind.check(lance.dataset(uri), "mine", count)


@pytest.mark.parametrize(("kind", "stable"), WITH_STABLE)
def test_merge(copy, kind: Kind, stable: bool) -> None:
    uri = copy(stable)
    spec = lt.CreateIndex(uri, name="mine", num_segments=3, merge=True, **kind.spec)
    if kind.index_type == "JSON":
        with unchanged(uri), pytest.raises(lt.NotSupportedError, match=r"(?s)merge.*JSON"):
            lt.prepare(spec)
        return
    run_loop(spec)
    check_index(uri, kind, "mine", 1)
    lance.dataset(uri).delete(index_types.DELETED_AFTER)
    kind.check(lance.dataset(uri), "mine", 1)


@pytest.mark.parametrize("kind", EACH_TYPE)
def test_fragments_that_a_second_job_adds(copy, kind: Kind) -> None:
    """The first job's segments stay; until the second one, the rest is scanned."""
    uri = copy()
    first = lt.CreateIndex(uri, name="mine", num_segments=2, fragment_ids=[0, 1, 2, 3], **kind.spec)
    outcome = run_loop(first)
    assert outcome.metrics["fragments_covered"] == 4
    before = segments_of(uri, "mine")
    assert sorted(before.values()) == [[0, 1], [2, 3]]
    assert statistics(uri, "mine")["num_unindexed_fragments"] == 5
    kind.check(lance.dataset(uri), "mine", 2)
    rest = {"name": "mine", "num_segments": 2, "fragment_ids": [4, 5, 6, 7, 8]}
    with unchanged(uri), pytest.raises(lt.AlreadyExistsError, match="mine"):
        lt.prepare(lt.CreateIndex(uri, **rest, **kind.spec))
    run_loop(lt.CreateIndex(uri, replace=True, **rest, **kind.spec))
    after = segments_of(uri, "mine")
    assert before.items() < after.items()
    check_index(uri, kind, "mine", 4)


@pytest.mark.parametrize("kind", EACH_TYPE)
def test_replace(copy, kind: Kind) -> None:
    uri = copy()
    run_loop(lt.CreateIndex(uri, num_segments=3, **kind.spec))
    name = f"{kind.column}_idx"
    before = segments_of(uri, name)
    with unchanged(uri), pytest.raises(lt.AlreadyExistsError, match=name):
        lt.prepare(lt.CreateIndex(uri, num_segments=2, **kind.spec))
    run_loop(lt.CreateIndex(uri, num_segments=2, replace=True, **kind.spec))
    assert before.keys().isdisjoint(segments_of(uri, name))
    check_index(uri, kind, name, 2)


def test_replace_by_another_type(copy) -> None:
    uri = copy()
    btree, bloom = (index_types.kind(label) for label in ("btree", "bloomfilter"))
    run_loop(lt.CreateIndex(uri, name="mine", num_segments=3, **btree.spec))
    run_loop(lt.CreateIndex(uri, name="mine", num_segments=2, replace=True, **bloom.spec))
    check_index(uri, bloom, "mine", 2)


def test_index_types_in_any_case(copy) -> None:
    uri = copy()
    run_loop(lt.CreateIndex(uri, column="tags", index_type="label_List", num_segments=2))
    dataset = lance.dataset(uri)
    check_filter(dataset, "array_has(tags, 'delta')", "@tags_idx(LabelList)")


def test_two_types_on_one_column(copy) -> None:
    """Each under its own name; Lance searches the older one."""
    uri = copy()
    run_loop(lt.CreateIndex(uri, column="text", index_type="FM", num_segments=2))
    run_loop(lt.CreateIndex(uri, column="text", index_type="BTREE", name="sorted", num_segments=3))
    dataset = lance.dataset(uri)
    found = {
        index.name: (index.index_type, len(index.segments)) for index in dataset.describe_indices()
    }
    assert found == {"text_idx": ("Fm", 2), "sorted": ("BTree", 3)}
    check_filter(dataset, "contains(text, 'delta')", "@text_idx(Fm)")
    dataset.drop_index("text_idx")
    check_filter(lance.dataset(uri), "text < 'beta'", "@sorted(BTree)")


def test_two_paths_of_one_json_column(copy) -> None:
    uri = copy()
    for path in ("n", "label"):
        spec = {"path": path, "target_index_type": "btree", "name": path, "num_segments": 2}
        run_loop(lt.CreateIndex(uri, column="document", index_type="JSON", **spec))
    dataset = lance.dataset(uri)
    check_filter(dataset, "json_get_int(document, 'n') = 35", "@n(BTree)")
    check_filter(dataset, "json_get_string(document, 'label') = 'beta1'", "@label(BTree)")


# Columns


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("encoding", list(index_types.geometries()))
def test_geometries(copy, encoding: str, stable: bool) -> None:
    uri = copy(stable)
    run_loop(lt.CreateIndex(uri, column=encoding, index_type="RTREE", num_segments=3))
    for where in index_types.geo_filters(encoding):
        check_filter(lance.dataset(uri), where, f"@{encoding}_idx(RTree)")


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize(
    ("column", "index_type", "index", "filters"),
    [
        ("place.city", "BTREE", "place.city_idx(BTree)", ["place.city = 'city 7'"]),
        ("place.city", "ZONEMAP", "place.city_idx(ZoneMap)", ["place.city >= 'city 7'"]),
        ("place.`zip code`", "BITMAP", "zip code_idx(Bitmap)", ["place.`zip code` in (7, 9)"]),
        ("odd name", "BTREE", "@odd name_idx(BTree)", ["`odd name` < 7"]),
        ("`odd name`", "BITMAP", "@odd name_idx(Bitmap)", ["`odd name` = 7"]),
    ],
)
def test_nested_and_quoted_columns(
    copy, stable: bool, column: str, index_type: str, index: str, filters: list[str]
) -> None:
    uri = copy(stable)
    run_loop(lt.CreateIndex(uri, column=column, index_type=index_type, num_segments=3))
    root = column.split(".")[0]
    for where in [*filters, f"{column} is null"] if root == "place" else filters:
        check_filter(lance.dataset(uri), where, index)


@pytest.mark.parametrize("index_type", ["BLOOMFILTER", "NGRAM", "FM"])
def test_nested_columns_that_plans_do_not_search(copy, index_type: str) -> None:
    """Lance builds these on nested columns, and then answers by scanning."""
    uri = copy()
    run_loop(lt.CreateIndex(uri, column="place.city", index_type=index_type, num_segments=3))
    dataset = lance.dataset(uri)
    (index,) = dataset.describe_indices()
    assert (index.name, index.field_names) == ("place.city_idx", ["place.city"])
    for where in ("place.city = 'city 8'", "contains(place.city, '18')"):
        full = dataset.to_table(filter=where, columns=["id"], use_scalar_index=False)
        assert full.num_rows > 0
        assert_same_rows(dataset.to_table(filter=where, columns=["id"]), full)


def some(values) -> list:
    return index_types.with_nulls(values, 7)


DAY = datetime.datetime(2020, 1, 1)
HOURS = [DAY + datetime.timedelta(hours=i) for i in range(300)]
TYPES = {
    "bool": (pa.bool_(), [i % 3 == 0 for i in range(300)], ["x", "x = false"]),
    "int8": (pa.int8(), [i % 100 - 50 for i in range(300)], ["x = -5", "x > 40"]),
    "uint64": (pa.uint64(), [2**63 * (i % 2) + i for i in range(300)],
               ["x = 8", f"x = {2**63 + 9}", "x > 250"]),
    "float32": (pa.float32(), [float("nan") if i == 7 else i / 4 for i in range(300)],
                ["x = 2.25", "x > 70.0"]),
    "float64": (pa.float64(), [float("-inf") if i == 7 else i / 4 for i in range(300)],
                ["x = 2.25", "x < 3.0"]),
    "string": (pa.string(), [f"é{i % 50:02}" for i in range(300)],
               ["x = 'é07'", "x >= 'é45'", "contains(x, 'é07')"]),
    "large_string": (pa.large_string(), [f"é{i % 50:02}" for i in range(300)],
                     ["x = 'é07'", "x like 'é4%'", "contains(x, 'é07')"]),
    "binary": (pa.binary(), [bytes([255, i % 50]) for i in range(300)], ["x = X'FF08'"]),
    "fixed_size_binary": (pa.binary(2), [bytes([255, i % 50]) for i in range(300)], []),
    "date32": (pa.date32(), [DAY.date() + datetime.timedelta(i) for i in range(300)],
               ["x = date '2020-01-10'", "x < date '2020-01-10'"]),
    "time64": (pa.time64("us"), [datetime.time(i % 24, i % 60) for i in range(300)], []),
    "timestamp": (pa.timestamp("us"), HOURS,
                  ["x = timestamp '2020-01-02 01:00:00'", "x < timestamp '2020-01-02 01:00:00'"]),
    "timestamp_tz": (pa.timestamp("ms", "UTC"), HOURS, ["x < timestamp '2020-01-02 01:00:00'"]),
    "duration": (pa.duration("s"), [datetime.timedelta(seconds=i) for i in range(300)], []),
    "decimal128": (pa.decimal128(10, 2), [Decimal(i) / 4 for i in range(300)],
                   ["x > cast(70.00 as decimal(10, 2))"]),
    "decimal256": (pa.decimal256(40, 2), [Decimal(i) / 4 for i in range(300)], []),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), [f"é{i % 50}" for i in range(300)],
                   ["x = 'é8'"]),
    "list_int64": (pa.list_(pa.int64()), [[i % 9, 3] for i in range(300)],
                   ["array_has(x, 5)", "array_has_any(x, [5, 6])", "array_has_all(x, [3, 8])"]),
    "list_bool": (pa.list_(pa.bool_()), [[i % 9 == 1] for i in range(300)],
                  ["array_has(x, true)"]),
    "large_list": (pa.large_list(pa.large_string()), [[str(i % 9), "3"] for i in range(300)],
                   ["array_has(x, '5')", "array_has_all(x, ['3', '8'])"]),
    "list_of_lists": (pa.list_(pa.list_(pa.int64())), [[[i]] for i in range(300)], []),
    "struct": (pa.struct([("a", pa.int64())]), [{"a": i} for i in range(300)], []),
}  # fmt: skip
INDEX_TYPES = sorted({kind.index_type for kind in KINDS} - {"JSON"})


@pytest.mark.parametrize("name", TYPES)
def test_column_types(uri: str, name: str) -> None:
    """What pylance builds is built and serves the same predicates; what it refuses is refused."""
    dtype, values, filters = TYPES[name]
    data = pa.table({"id": range(300), "x": pa.array(some(values), dtype)})
    # Half of the types with stable row ids.
    stable = sorted(TYPES).index(name) % 2 == 0
    dataset = lance.write_dataset(data, uri, max_rows_per_file=60, enable_stable_row_ids=stable)
    dataset.delete("id % 5 = 2")
    judge_of = shutil.copytree(uri, f"{uri}.judge")
    for index_type in INDEX_TYPES:
        spec = lt.CreateIndex(uri, column="x", index_type=index_type, name="mine", num_segments=2)
        try:
            if index_type == "ZONEMAP" and pa.types.is_nested(dtype):
                raise TypeError("pylance builds one, which has nothing to compare")
            config = IndexConfig(index_type.replace("_", "").lower(), {})
            lance.dataset(judge_of).create_scalar_index("x", config, name="mine")
        except Exception:
            with unchanged(uri), pytest.raises(REFUSED, match='"x"'):
                lt.prepare(spec)
            continue
        run_loop(spec)
        mine, judge = lance.dataset(uri), lance.dataset(judge_of)
        assert mine.stats.index_stats("mine")["num_unindexed_rows"] == 0
        for where in [*filters, "x is null"]:
            check_as_judge(mine, judge, where)
        for done in (mine, judge):
            done.drop_index("mine")


def check_as_judge(dataset, judge, where: str) -> None:
    """The index is searched where the judge's is, and the rows are those of a full scan."""
    searched = [
        "ScalarIndexQuery" in each.scanner(filter=where).explain_plan() for each in (dataset, judge)
    ]
    assert searched[0] == searched[1], where
    full = dataset.scanner(filter=where, columns=["id"], use_scalar_index=False).to_table()
    found = dataset.to_table(filter=where, columns=["id"])
    assert sorted(found["id"].to_pylist()) == sorted(full["id"].to_pylist()), where
