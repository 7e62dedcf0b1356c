# SPDX-License-Identifier: Apache-2.0
"""Parameters of the scalar index types: honoured as stock pylance honours them; wrong ones, and
columns that a type does not take, are refused before a file is written."""

import shutil

import index_types
import lance
import pyarrow as pa
import pytest
from index_types import REFUSED, Kind, check_filter, segments_of, statistics
from lance.indices import IndexConfig
from support import finish, run_loop, unchanged

import lance_tasks as lt

EACH_TYPE = [pytest.param(kind, id=kind.index_type) for kind in index_types.one_of_each_type()]
AMOUNT = index_types.kind("btree").spec


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> index_types.Originals:
    return index_types.Originals(tmp_path_factory.mktemp("index_types"))


@pytest.fixture
def copy(originals: index_types.Originals, uri: str):
    """Calls make a copy of the table, `copy(stable)`."""
    return lambda stable=False: originals.copy(uri, stable)


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ({"index_type": "BTREE", "column": "amount"}, {"num_pages": 1}),
        ({"index_type": "BTREE", "column": "amount", "zone_size": 100}, {"num_pages": 4}),
        ({"index_type": "ZONEMAP", "column": "stamp"}, {"rows_per_zone": 8192}),
        (
            {"index_type": "ZONEMAP", "column": "stamp", "rows_per_zone": 50},
            {"rows_per_zone": 50, "num_zones": 9},
        ),
        (
            {"index_type": "BLOOMFILTER", "column": "amount"},
            {"number_of_items": 8192, "probability": 0.00057},
        ),
        (
            {"index_type": "BLOOMFILTER", "column": "amount", "number_of_items": 30},
            {"number_of_items": 30, "probability": 0.00057, "num_blocks": 15},
        ),
        (
            {"index_type": "BLOOMFILTER", "column": "amount", "probability": 0.25},
            {"number_of_items": 8192, "probability": 0.25},
        ),
        ({"index_type": "RTREE", "column": "point"}, {"page_size": 4096}),
        ({"index_type": "RTREE", "column": "point", "page_size": 16}, {"page_size": 16}),
        (
            {"index_type": "MINHASHLSH", "column": "copy"},
            {"num_hashes": 128, "num_bands": 16, "shingle_size": 3},
        ),
        (
            {
                "index_type": "MINHASHLSH",
                "column": "copy",
                "num_hashes": 64,
                "num_bands": 32,
                "shingle_size": 2,
            },
            {"num_hashes": 64, "num_bands": 32, "shingle_size": 2},
        ),
        (
            {
                "index_type": "JSON",
                "column": "document",
                "path": "n",
                "target_index_type": "zonemap",
                "target_index_parameters": {"rows_per_zone": 50},
            },
            {"rows_per_zone": 50},
        ),
        (
            {
                "index_type": "JSON",
                "column": "document",
                "path": "n",
                "target_index_type": "bloomfilter",
                "target_index_parameters": {"number_of_items": 30, "probability": 0.25},
            },
            {"number_of_items": 30, "probability": 0.25},
        ),
    ],
)
def test_parameters_in_statistics(copy, spec: dict, shown: dict) -> None:
    uri = copy()
    run_loop(lt.CreateIndex(uri, name="mine", num_segments=3, **spec))
    segments = statistics(uri, "mine")["segments"]
    assert len(segments) == 3
    for segment in segments:
        assert {name: segment[name] for name in shown} == shown


@pytest.mark.parametrize(
    "spec",
    [
        {"index_type": "BTREE", "column": "amount"},
        {"index_type": "BTREE", "column": "amount", "zone_size": 64},
        {"index_type": "BITMAP", "column": "color"},
        {"index_type": "LABEL_LIST", "column": "tags"},
        {"index_type": "NGRAM", "column": "text"},
        {"index_type": "ZONEMAP", "column": "stamp"},
        {"index_type": "ZONEMAP", "column": "stamp", "use_seeds": False},
        {"index_type": "ZONEMAP", "column": "stamp", "use_seeds": True, "rows_per_zone": 32},
        {"index_type": "BLOOMFILTER", "column": "amount"},
        {"index_type": "RTREE", "column": "point"},
        {"index_type": "MINHASHLSH", "column": "copy"},
        {
            "index_type": "MINHASHLSH",
            "column": "copy",
            "num_bands": 32,
            "tokenizer": {"base_tokenizer": "whitespace", "lower_case": False},
        },
    ],
)
def test_segments_are_described_as_those_of_pylance(copy, spec: dict) -> None:
    uri = copy()
    params = {name: value for name, value in spec.items() if name not in ("index_type", "column")}
    kind = IndexConfig(spec["index_type"].lower(), params) if params else spec["index_type"]
    fragments = [2, 3, 4]
    theirs = lance.dataset(uri).create_index_uncommitted(
        spec["column"], kind, name="mine", fragment_ids=fragments
    )
    job = lt.prepare(
        lt.CreateIndex(uri, name="mine", fragment_ids=fragments, num_segments=1, **spec)
    )
    (result,) = finish(job)
    mine = lt.pylance_index(result)
    for name in ("name", "fields", "dataset_version", "index_version", "index_details"):
        assert getattr(mine, name) == getattr(theirs, name), name
    assert sorted(mine.fragment_ids) == sorted(theirs.fragment_ids) == fragments
    assert [file.path for file in mine.files] == [file.path for file in theirs.files]
    lt.commit(job, [result])
    assert segments_of(uri, "mine") == {mine.uuid: fragments}


@pytest.mark.parametrize("stable", [False, True])
def test_near_duplicates_as_in_one_segment(copy, stable: bool) -> None:
    """The same hits at the same distances as pylance's single index."""
    uri = copy(stable)
    judge = shutil.copytree(uri, uri + ".judge")
    params = {"num_hashes": 64, "num_bands": 32, "shingle_size": 2}
    lance.dataset(judge).create_scalar_index("copy", IndexConfig("minhashlsh", params))
    run_loop(lt.CreateIndex(uri, column="copy", index_type="MINHASHLSH", num_segments=8, **params))
    texts = lance.dataset(uri).to_table(filter="id in (3, 700, 1340)", columns=["copy"])["copy"]
    for text in texts.to_pylist():
        pairs = []
        for dataset in (lance.dataset(uri), lance.dataset(judge)):
            _, hits = index_types.near_duplicates(dataset, text)
            rows = zip(hits["_distance"].to_pylist(), hits["id"].to_pylist(), strict=True)
            pairs.append(sorted(rows))
        assert len(pairs[0]) > 10
        assert pairs[0] == pairs[1]


def json_spec(**options: object) -> dict[str, object]:
    spec = {"index_type": "JSON", "column": "document", "path": "n", "target_index_type": "btree"}
    return {name: value for name, value in (spec | options).items() if value is not None}


def test_json_is_described_by_its_path(copy) -> None:
    uri = copy()
    run_loop(lt.CreateIndex(uri, name="mine", num_segments=2, **json_spec(path="label")))
    (index,) = lance.dataset(uri).describe_indices()
    assert index.details["path"] == "label"


def test_json_type_is_inferred_over_all_fragments(copy) -> None:
    """The first fragment of six has no value at the path."""
    uri = copy()
    spec = lt.CreateIndex(
        uri, name="mine", num_segments=2, fragment_ids=[4, 5, 6, 7], **json_spec(path="late")
    )
    run_loop(spec)
    rest = lt.CreateIndex(
        uri, name="mine", num_segments=2, fragment_ids=[0, 1, 2, 3, 8], replace=True,
        **json_spec(path="late"),
    )  # fmt: skip
    run_loop(rest)
    dataset = lance.dataset(uri)
    for where in ("json_get_int(document, 'late') = 35", "json_get_int(document, 'late') is null"):
        check_filter(dataset, where, "@mine(BTree)")


def test_json_path_without_values(copy) -> None:
    uri = copy()
    run_loop(lt.CreateIndex(uri, name="mine", num_segments=2, **json_spec(path="nowhere")))
    check_filter(lance.dataset(uri), "json_get_string(document, 'nowhere') is null", "@mine(BTree)")


def test_values_that_are_not_of_the_json_type(copy) -> None:
    """Found by the task that meets one; nothing stays behind."""
    uri = copy()
    spec = lt.CreateIndex(uri, num_segments=2, **json_spec(path="label", target_data_type="int64"))
    job = lt.prepare(spec)
    with unchanged(uri), pytest.raises(lt.InvalidArgumentError, match=r"label.*Int64"):
        finish(job)


# Refused before anything is written

BAD_TYPES = [
    ("OAK", "OAK"),
    ("SCALAR", "SCALAR"),
    ("VECTOR", "VECTOR"),
    ("", "index_type"),
]


@pytest.mark.parametrize(("index_type", "word"), BAD_TYPES)
def test_unknown_types(copy, index_type: str, word: str) -> None:
    refused(copy(), {"index_type": index_type, "column": "amount"}, word)


@pytest.mark.parametrize("kind", EACH_TYPE)
def test_unknown_parameters(copy, kind: Kind) -> None:
    uri = copy()
    for name in ("nonsense", "shard_id", "range_id", "num_partitions", "Rows_Per_Zone"):
        refused(uri, {**kind.spec, name: 3}, f'"{name}"')


def refused(uri: str, spec: dict, *words: str) -> None:
    with unchanged(uri), pytest.raises(REFUSED) as caught:
        lt.prepare(lt.CreateIndex(uri, **spec))
    for word in words:
        assert word in str(caught.value)


BTREE_BAD = {"index_type": "BTREE", "column": "amount"}
ZONEMAP_BAD = {"index_type": "ZONEMAP", "column": "stamp"}
BLOOM_BAD = {"index_type": "BLOOMFILTER", "column": "amount"}
RTREE_BAD = {"index_type": "RTREE", "column": "point"}
MINHASH_BAD = {"index_type": "MINHASHLSH", "column": "copy"}
# What json_get_int and the like take is a key; an index of another path would answer for that one.
NO_KEYS = ["$", "$.n", "deep.n", "n[0]", "$['n']", "n.*", "a b", "it's"]
NO_COUNT = [0, -1, 1.5, "many", True, [5], {}]


@pytest.mark.parametrize(
    ("base", "name", "values"),
    [
        (BTREE_BAD, "zone_size", NO_COUNT),
        (ZONEMAP_BAD, "rows_per_zone", NO_COUNT),
        (ZONEMAP_BAD, "use_seeds", ["yes", 5, []]),
        (BLOOM_BAD, "number_of_items", NO_COUNT),
        (BLOOM_BAD, "probability", [0, 1, 2, -0.5, "half", True, []]),
        (RTREE_BAD, "page_size", [*NO_COUNT, 1, 2**32]),
        (MINHASH_BAD, "num_hashes", [*NO_COUNT, 5000, 100]),
        (MINHASH_BAD, "num_bands", [*NO_COUNT, 7]),
        (MINHASH_BAD, "shingle_size", NO_COUNT),
        (MINHASH_BAD, "tokenizer", ["simple", 3, {"base_tokenizer": "none"}, {"stem": 5}]),
        (json_spec(), "path", ["", 5, [], *NO_KEYS]),
        (json_spec(target_data_type="int64"), "path", ["", 5, [], *NO_KEYS]),
        (json_spec(), "target_index_type", ["", 5, "oak", "inverted", "fts", "bitmap"]),
        (
            json_spec(),
            "target_index_type",
            ["label_list", "rtree", "json", "ivf_flat", "minhashlsh"],
        ),
        (json_spec(), "target_data_type", ["text", 5, "large_binary", "binary"]),
        (json_spec(), "target_index_parameters", [5, ["zone_size"], "zone_size", {"zone": 5}]),
        (
            json_spec(),
            "target_index_parameters",
            [{"zone_size": 0}, {"zone_size": "x"}, '{"n": 1}'],
        ),
    ],
)
def test_bad_parameters(copy, base: dict, name: str, values: list) -> None:
    uri = copy()
    for value in values:
        refused(uri, {**base, name: value}, f'"{name}"')


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (json_spec(path=None), ['"path"']),
        (json_spec(target_index_type=None), ['"target_index_type"']),
        (json_spec(column="amount"), ['"amount"']),
        (json_spec(target_index_type="ngram"), ["Int64"]),
        (json_spec(target_index_type="fm"), ["Int64"]),
        (json_spec(target_index_type="ngram", target_data_type="float64"), ["Float64"]),
        (json_spec(path="even", target_index_type="bloomfilter"), ["Boolean"]),
        ({"index_type": "BTREE", "column": "tags"}, ['"tags"']),
        ({"index_type": "BTREE", "column": "place"}, ['"place"']),
        ({"index_type": "BITMAP", "column": "tags"}, ['"tags"']),
        ({"index_type": "LABEL_LIST", "column": "amount"}, ['"amount"']),
        ({"index_type": "NGRAM", "column": "amount"}, ['"amount"']),
        ({"index_type": "ZONEMAP", "column": "tags"}, ['"tags"']),
        ({"index_type": "BLOOMFILTER", "column": "place"}, ['"place"']),
        ({"index_type": "RTREE", "column": "amount"}, ['"amount"']),
        ({"index_type": "RTREE", "column": "plain_xy"}, ['"plain_xy"']),
        ({"index_type": "FM", "column": "amount"}, ['"amount"']),
        ({"index_type": "MINHASHLSH", "column": "amount"}, ['"amount"']),
        ({"index_type": "BITMAP", "column": "nowhere"}, ['"nowhere"']),
        ({"index_type": "BITMAP", "column": "place.nowhere"}, ["place.nowhere"]),
        ({**AMOUNT, "num_segments": 0}, ['"num_segments"']),
        ({**AMOUNT, "max_rows_per_segment": 0}, ['"max_rows_per_segment"']),
        (
            {**AMOUNT, "num_segments": 2, "max_rows_per_segment": 500},
            ["num_segments", "max_rows_per_segment"],
        ),
        ({**AMOUNT, "fragment_ids": [2, 99]}, ["fragment_ids", "99"]),
        ({**AMOUNT, "fragment_ids": []}, ["fragment_ids"]),
        ({**AMOUNT, "name": ""}, ['"name"']),
    ],
)
def test_bad_specs(copy, spec: dict, words: list[str]) -> None:
    refused(copy(), spec, *words)


@pytest.mark.parametrize(
    ("encoding", "values", "dtype"),
    [
        ("point", range(10), pa.int64()),
        ("point", [[1.0, 2.0]] * 10, pa.list_(pa.float64(), 2)),
        ("circle", [index_types.point(1.0, 2.0)] * 10, index_types.XY),
    ],
)
def test_geometries_that_lance_cannot_read(uri: str, encoding: str, values, dtype) -> None:
    field = index_types.geo_field("where", encoding, dtype)
    lance.write_dataset(pa.table([pa.array(values, dtype)], schema=pa.schema([field])), uri)
    refused(uri, {"index_type": "RTREE", "column": "where"}, '"where"')


@pytest.mark.parametrize("index_type", [kind.index_type for kind in index_types.one_of_each_type()])
def test_columns_of_nothing(uri: str, index_type: str) -> None:
    """Lance's own indexes on them do not find the nulls."""
    lance.write_dataset(pa.table({"nothing": pa.nulls(10)}), uri)
    params = {"path": "n", "target_index_type": "btree"} if index_type == "JSON" else {}
    refused(uri, {"index_type": index_type, "column": "nothing", **params}, '"nothing"')


@pytest.mark.parametrize("target", ["btree", "zonemap", "bloomfilter", "fm"])
def test_json_that_stable_row_ids_rule_out(copy, target: str) -> None:
    path = "label" if target == "fm" else "n"
    refused(copy(stable=True), json_spec(path=path, target_index_type=target), "stable row ids")


@pytest.mark.parametrize("kind", EACH_TYPE)
def test_name_of_an_index_over_another_column(copy, kind: Kind) -> None:
    uri = copy()
    lance.dataset(uri).create_scalar_index("id", "BTREE", name="taken")
    for replace in (False, True):
        spec = lt.CreateIndex(uri, name="taken", replace=replace, **kind.spec)
        with unchanged(uri), pytest.raises(lt.AlreadyExistsError, match="taken"):
            lt.prepare(spec)


def test_max_rows_per_segment_counts_live_rows(copy) -> None:
    """Three fragments hold 450 rows, of which fewer than 400 are left."""
    uri = copy()
    run_loop(lt.CreateIndex(uri, column="color", index_type="BITMAP", max_rows_per_segment=400))
    assert sorted(segments_of(uri, "color_idx").values()) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
