# SPDX-License-Identifier: Apache-2.0
"""A table with a column for every scalar index type, and for each type the predicates that it
serves. The judge is stock pylance: a full scan for the rows, the query plan for the use."""

import json
import random
import shutil
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import lance
import pyarrow as pa
from lance.query import MinHashQuery

import lance_tasks as lt

FRAGMENTS = 9
ROWS_PER_FRAGMENT = 150
ROWS = FRAGMENTS * ROWS_PER_FRAGMENT
# Rows of this filter are deleted before an index is built, those of the other one afterwards.
DELETED_BEFORE = "id % 7 = 2"
DELETED_AFTER = "id % 11 = 4 or id between 300 and 449"

# How wrong input ends.
REFUSED = (lt.InvalidArgumentError, lt.NotSupportedError)

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
XY = pa.struct([("x", pa.float64()), ("y", pa.float64())])


# The table


def with_nulls(values: Iterable[object], every: int) -> list[object]:
    return [None if i % every == every // 2 else value for i, value in enumerate(values)]


def xy(i: int) -> tuple[float, float]:
    """A grid of 45 columns, filled row by row: every fragment has every x and its own y."""
    return float(i % 45), float(i // 45)


def point(x: float, y: float) -> dict[str, float]:
    return {"x": x, "y": y}


def geometries() -> dict[str, pa.Array]:
    """The grid in GeoArrow's encodings, by the name of the encoding."""
    corners = [xy(i) for i in range(ROWS)]
    box = pa.struct([(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])
    made = {
        "point": ([point(x, y) for x, y in corners], XY),
        "linestring": ([[point(x, y), point(x + 2, y)] for x, y in corners], pa.list_(XY)),
        "polygon": (
            [
                [[point(x, y), point(x + 0.5, y), point(x, y + 0.5), point(x, y)]]
                for x, y in corners
            ],
            pa.list_(pa.list_(XY)),
        ),
        "box": (
            [{"xmin": x, "ymin": y, "xmax": x + 0.5, "ymax": y + 0.5} for x, y in corners],
            box,
        ),
        "wkb": ([struct.pack("<BIdd", 1, 1, x, y) for x, y in corners], pa.binary()),
        "wkt": ([f"POINT ({x} {y})" for x, y in corners], pa.string()),
    }
    return {name: pa.array(with_nulls(v, 13), dtype) for name, (v, dtype) in made.items()}


def geo_field(name: str, encoding: str, dtype: pa.DataType) -> pa.Field:
    return pa.field(name, dtype, metadata={"ARROW:extension:name": f"geoarrow.{encoding}"})


def document(i: int) -> str:
    return json.dumps(
        {
            "n": i * 7 % 100,
            "price": i / 4,
            # The first value is an integer.
            "mixed": i / 4 if i % 4 else i // 4,
            "label": f"{WORDS[i % 8]}{i % 5}",
            "even": i % 2 == 0,
            # Neither the first row nor whole segments have these.
            **({"late": i % 50} if i >= 1000 else {}),
            **({"sparse": i % 20} if i % 3 == 0 else {}),
        }
    )


def duplicates() -> list[str]:
    """75 texts of 60 words; of each, 18 copies that differ in one word."""
    pick = random.Random(1)
    vocabulary = [f"word{i}" for i in range(500)]
    originals = [[pick.choice(vocabulary) for _ in range(60)] for _ in range(75)]
    texts = []
    for i in range(ROWS):
        words = list(originals[i % 75])
        words[i * 7 % 60] = f"other{i}"
        texts.append(" ".join(words))
    return texts


def table() -> pa.Table:
    ids = range(ROWS)
    tags = [
        [WORDS[(i + j) % 8] for j in range(i % 4)] + ([None] if i % 19 == 0 else []) for i in ids
    ]
    columns = {
        "amount": pa.array(with_nulls((i * 7919 % 1000 for i in ids), 10), pa.int64()),
        "name": pa.array(with_nulls((f"{WORDS[i % 8]}-{i % 97:02}" for i in ids), 11)),
        "color": pa.array(with_nulls((WORDS[i % 8] for i in ids), 10)),
        "stamp": pa.array(with_nulls((f"{i:05}-x" for i in ids), 10)),
        "tags": pa.array(with_nulls(tags, 17), pa.list_(pa.string())),
        "text": pa.array(
            with_nulls(
                (f"{WORDS[i % 8]} {WORDS[i * 3 % 8]} no {i % 60:03} Zürich" for i in ids), 11
            )
        ),
        "document": pa.array(with_nulls((document(i) for i in ids), 13), pa.json_()),
        "copy": pa.array(with_nulls(duplicates(), 13)),
        "original": pa.array([i % 75 for i in ids]),
        "place": pa.array(
            with_nulls(({"zip code": i % 50, "city": f"city {i % 30}"} for i in ids), 9),
            pa.struct([("zip code", pa.int64()), ("city", pa.string())]),
        ),
        "odd name": pa.array([i % 40 for i in ids]),
        "plain_xy": pa.array([point(*xy(i)) for i in ids], XY),
    }
    fields = [pa.field(name, array.type) for name, array in columns.items()]
    geometry = geometries()
    fields += [geo_field(name, name, array.type) for name, array in geometry.items()]
    return pa.table(
        [pa.array(ids, pa.int64()), *columns.values(), *geometry.values()],
        schema=pa.schema([pa.field("id", pa.int64()), *fields]),
    )


def write(uri: str, stable_row_ids: bool) -> None:
    """The table in fragments, with some rows deleted in each."""
    dataset = lance.write_dataset(
        table(),
        uri,
        max_rows_per_file=ROWS_PER_FRAGMENT,
        enable_stable_row_ids=stable_row_ids,
        data_storage_version="2.2",
    )
    dataset.delete(DELETED_BEFORE)


class Originals:
    """The table, without and with stable row ids, and copies of it."""

    def __init__(self, folder: Path) -> None:
        self.paths = {stable: folder / f"stable_{stable}.lance" for stable in (False, True)}
        for stable, path in self.paths.items():
            write(str(path), stable)

    def copy(self, uri: str, stable: bool) -> str:
        return str(shutil.copytree(self.paths[stable], uri))


def segments_of(uri: str, name: str) -> dict[str, list[int]]:
    """The fragments of each segment, by its uuid."""
    (index,) = [i for i in lance.dataset(uri).describe_indices() if i.name == name]
    return {segment.uuid: sorted(segment.fragment_ids) for segment in index.segments}


def statistics(uri: str, name: str) -> dict:
    return lance.dataset(uri).stats.index_stats(name)


# Kinds of indexes


@dataclass
class Kind:
    """An index, the predicates that it serves, and how pylance names its type."""

    label: str
    index_type: str
    column: str
    shown: str
    filters: list[str]
    params: dict[str, object] = field(default_factory=dict)
    # What the plan calls the index that it searches, where that is not `shown`.
    plan: str | None = None
    stable_row_ids: bool = True

    @property
    def spec(self) -> dict[str, object]:
        return {"column": self.column, "index_type": self.index_type, **self.params}

    def check(self, dataset: lance.LanceDataset, name: str, segments: int) -> None:
        """Each predicate searches the index of this name, and answers as a full scan does."""
        for where in self.filters:
            check_filter(dataset, where, f"@{name}({self.plan or self.shown})")


@dataclass
class Near(Kind):
    """Near duplicates are not found by predicates, but by a search of their own."""

    def check(self, dataset: lance.LanceDataset, name: str, segments: int) -> None:
        for original in (10, 33, 74):
            where = f"original = {original} and `copy` is not null"
            copies = dataset.to_table(filter=where, columns=["id", "copy"])
            query = copies["copy"][len(copies) // 2].as_py()
            plan, hits = near_duplicates(dataset, query)
            assert f"MinHashSearch: column=copy, limit=40, segments={segments}" in plan, plan
            assert sorted(hits["id"].to_pylist()) == sorted(copies["id"].to_pylist())
            distances = hits["_distance"].to_pylist()
            assert distances == sorted(distances) and distances[0] == 0.0 < distances[1] < 0.4


def near_duplicates(dataset: lance.LanceDataset, text: str) -> tuple[str, pa.Table]:
    scanner = dataset.scanner(
        nearest=MinHashQuery(text, "copy"), limit=40, columns=["id", "_distance"]
    )
    return scanner.explain_plan(), scanner.to_table()


def check_filter(dataset: lance.LanceDataset, where: str, index: str) -> None:
    scanner = dataset.scanner(filter=where, columns=["id"])
    full = dataset.scanner(filter=where, columns=["id"], use_scalar_index=False)
    plan = scanner.explain_plan()
    assert index in plan, f"{where} does not use {index}:\n{plan}"
    assert "ScalarIndexQuery" not in full.explain_plan()
    expected = sorted(full.to_table()["id"].to_pylist())
    assert expected, f"{where} has no rows: it shows nothing"
    assert sorted(scanner.to_table()["id"].to_pylist()) == expected, where


AREA = "st_geomfromtext('POLYGON((10 3, 20 3, 20 19, 10 19, 10 3))')"
CORNER = "st_geomfromtext('POLYGON((0 0, 1.2 0, 1.2 1.2, 0 1.2, 0 0))')"


def geo_filters(column: str) -> list[str]:
    return [
        f"st_intersects({column}, {AREA})",
        f"st_intersects({column}, {CORNER})",
        f"st_within({column}, {AREA})",
        f"{column} is null",
    ]


def of_json(label: str, path: str, filters: list[str], **params: object) -> Kind:
    """JSON indexes; `{}` in a filter stands for the document and the path."""
    target = str(params["target_index_type"]).lower()
    shown = {"btree": "BTree", "zonemap": "ZoneMap", "bloomfilter": "BloomFilter", "ngram": "NGram"}
    return Kind(
        f"json_{label}",
        "JSON",
        "document",
        "Json",
        [where.format(f"document, '{path}'") for where in filters],
        {"path": path, **params},
        plan=shown.get(target, "Fm"),
        # Lance reads what these find as row ids, and they find row addresses.
        stable_row_ids=target == "ngram",
    )


KINDS = [
    Kind(
        "btree",
        "BTREE",
        "amount",
        "BTree",
        [
            "amount = 21",
            "amount < 50",
            "amount >= 990 or amount = 3",
            "amount between 100 and 140",
            "amount in (5, 6, 7, -1)",
            "amount != 21",
            "amount is null",
            "amount is not null",
        ],
    ),
    Kind(
        "btree_string",
        "BTREE",
        "name",
        "BTree",
        [
            "name = 'beta-01'",
            "name like 'eta%'",
            "name like 'eta%7'",
            "starts_with(name, 'zeta-1')",
            "name in ('beta-01', 'gamma-02', 'omega')",
            "name > 'zeta'",
            "name is null",
        ],
        {"zone_size": 64},
    ),
    Kind(
        "bitmap",
        "BITMAP",
        "color",
        "Bitmap",
        [
            "color = 'beta'",
            "color != 'beta'",
            "color in ('beta', 'gamma', 'omega')",
            "color between 'a' and 'c'",
            "color is null",
        ],
    ),
    Kind(
        "label_list",
        "LABEL_LIST",
        "tags",
        "LabelList",
        [
            "array_has(tags, 'delta')",
            "array_contains(tags, 'beta')",
            "array_has_any(tags, ['gamma', 'omega'])",
            "array_has_all(tags, ['alpha', 'beta'])",
            "not array_has(tags, 'alpha')",
            "array_has(tags, 'alpha') and array_has(tags, 'theta')",
        ],
    ),
    Kind(
        "ngram",
        "NGRAM",
        "text",
        "NGram",
        [
            "contains(text, 'delta')",
            "contains(text, 'no 012')",
            "contains(text, 'Zürich')",
            "text like '%silon eps%'",
            "regexp_match(text, 'epsilon.*no 0[13]')",
        ],
    ),
    Kind(
        "zonemap",
        "ZONEMAP",
        "stamp",
        "ZoneMap",
        [
            "stamp = '00151-x'",
            "stamp like '0012%'",
            "starts_with(stamp, '0054')",
            "stamp in ('00003-x', '01000-x')",
            "stamp between '00140-x' and '00160-x'",
            "stamp >= '01340'",
            "stamp is null",
        ],
        {"rows_per_zone": 32},
    ),
    Kind(
        "bloomfilter",
        "BLOOMFILTER",
        "amount",
        "BloomFilter",
        ["amount = 21", "amount in (5, 6, 7, -1)", "amount is null"],
        {"number_of_items": 50, "probability": 0.01},
    ),
    Kind("rtree", "RTREE", "point", "RTree", geo_filters("point")),
    Kind("rtree_polygon", "RTREE", "polygon", "RTree", geo_filters("polygon"), {"page_size": 16}),
    of_json(
        "btree",
        "n",
        [
            "json_get_int({}) = 35",
            "json_get_int({}) < 4",
            "json_get_int({}) in (2, 3)",
            "json_get_int({}) is null",
        ],
        target_index_type="btree",
    ),
    of_json(
        "btree_float",
        "price",
        ["json_get_float({}) < 3.0", "json_get_float({}) = 250.25"],
        target_index_type="BTREE",
        target_data_type="float64",
        target_index_parameters={"zone_size": 64},
    ),
    of_json(
        "btree_mixed",
        "mixed",
        ["json_get_float({}) < 3.0", "json_get_float({}) = 250.25"],
        target_index_type="btree",
        target_data_type="float64",
    ),
    of_json(
        "btree_string",
        "label",
        ["json_get_string({}) = 'beta1'", "json_get_string({}) >= 'zeta'"],
        target_index_type="btree",
        target_data_type="utf8",
    ),
    # Of three and more segments, the first ones have no value to tell the type by.
    of_json(
        "btree_late",
        "late",
        ["json_get_int({}) = 35", "json_get_int({}) > 40", "json_get_int({}) is null"],
        target_index_type="btree",
    ),
    of_json(
        "zonemap",
        "sparse",
        ["json_get_int({}) = 15", "json_get_int({}) > 17", "json_get_int({}) is null"],
        target_index_type="zonemap",
        target_index_parameters={"rows_per_zone": 32},
    ),
    of_json(
        "bloomfilter",
        "label",
        ["json_get_string({}) = 'beta1'", "json_get_string({}) is null"],
        target_index_type="bloomfilter",
        target_index_parameters={"number_of_items": 50, "probability": 0.01},
    ),
    of_json(
        "ngram",
        "label",
        ["contains(json_get_string({}), 'eta1')"],
        target_index_type="ngram",
        target_data_type="utf8",
    ),
    of_json("fm", "label", ["contains(json_get_string({}), 'eta1')"], target_index_type="fm"),
    Kind(
        "fm",
        "FM",
        "text",
        "Fm",
        ["contains(text, 'delta')", "contains(text, 'no 012')", "contains(text, 'Z')"],
    ),
    Near("minhashlsh", "MINHASHLSH", "copy", "MinHashLsh", [], {"num_bands": 32}),
]


def kind(label: str) -> Kind:
    return next(kind for kind in KINDS if kind.label == label)


def one_of_each_type() -> list[Kind]:
    return list({kind.index_type: kind for kind in reversed(KINDS)}.values())[::-1]
