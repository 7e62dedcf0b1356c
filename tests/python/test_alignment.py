# SPDX-License-Identifier: Apache-2.0
"""Rows are aligned to the schema they are written to: order, type, nullability, missing columns,
nested fields; and what does not fit is named. Also the byte limit of files."""

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import assert_same, execute_partitions, files, numbers, read, unchanged

import lance_tasks as lt

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("name", pa.large_string()),
        pa.field(
            "place",
            pa.struct(
                [("lat", pa.float64()), ("lon", pa.float64()), ("tags", pa.list_(pa.string()))]
            ),
        ),
    ]
)


@pytest.fixture(params=["stream", "parquet"])
def write(request: pytest.FixtureRequest, sources: Path):
    """`write(uri, table, **options)` by either kind of input."""

    def by_stream(uri: str, table: pa.Table, **options: object) -> lt.Outcome:
        return lt.run(lt.Write(uri, **options), data=table)

    def by_parquet(uri: str, table: pa.Table, **options: object) -> lt.Outcome:
        pq.write_table(table, sources / "input.parquet")
        return lt.run(lt.Write(uri, sources=[sources / "input.parquet"], **options))

    return by_stream if request.param == "stream" else by_parquet


def test_order_of_columns(uri: str, write) -> None:
    lance.write_dataset(numbers(10), uri)
    write(uri, numbers(10, start=10).select(["score", "id", "name"]), mode="append")
    assert_same(read(uri), numbers(20))


def test_types_are_cast(uri: str, write) -> None:
    lance.write_dataset(SCHEMA.empty_table(), uri)
    table = pa.table(
        {
            "id": pa.array([1, 2], pa.int32()),
            "name": pa.array(["a", None], pa.string()),
            "place": pa.array(
                [{"lat": 1, "lon": 2, "tags": ["x", None]}, None],
                pa.struct(
                    [
                        ("lat", pa.int8()),
                        ("lon", pa.float32()),
                        ("tags", pa.large_list(pa.string())),
                    ]
                ),
            ),
        }
    )
    write(uri, table, mode="append")
    actual = read(uri)
    assert actual.schema == SCHEMA
    assert actual.to_pylist() == table.to_pylist()


@pytest.mark.parametrize(
    "source, target",
    [
        (pa.array([1, None], pa.int8()), pa.int64()),
        (pa.array([1, None], pa.int64()), pa.int16()),
        (pa.array([1, None], pa.int32()), pa.float64()),
        (pa.array([1.5, None], pa.float64()), pa.float32()),
        (pa.array(["a", None]), pa.large_string()),
        (pa.array(["a", None], pa.large_string()), pa.string()),
        (pa.array(["a", None]).dictionary_encode(), pa.string()),
        (pa.array([b"a", None]), pa.large_binary()),
        (pa.array([1, None], pa.timestamp("s")), pa.timestamp("us")),
        (pa.array([1, None], pa.timestamp("us", "UTC")), pa.timestamp("us", "Europe/Paris")),
        (pa.array([1, None], pa.date32()), pa.timestamp("ms")),
        (pa.array(["12", None]), pa.int64()),
        (pa.array([None, None], pa.null()), pa.int32()),
        (pa.array([[1, 2], None], pa.list_(pa.int32(), 2)), pa.list_(pa.float32(), 2)),
        (pa.array([[1, 2], None], pa.list_(pa.float64())), pa.list_(pa.float32(), 2)),
        (pa.array([[1], None], pa.list_(pa.int32())), pa.large_list(pa.int64())),
    ],
    ids=lambda value: str(getattr(value, "type", value)).replace(" ", ""),
)
def test_casts(uri: str, write, source: pa.Array, target: pa.DataType) -> None:
    lance.write_dataset(pa.table({"x": pa.array([], target)}), uri)
    write(uri, pa.table({"x": source}), mode="append")
    if pa.types.is_fixed_size_list(target) and not pa.types.is_fixed_size_list(source.type):
        expected = pa.array(source.to_pylist(), target)
    else:
        expected = source.cast(target)
    assert_same(read(uri), pa.table({"x": expected}))


def test_missing_nullable_columns_are_null(uri: str, write) -> None:
    lance.write_dataset(SCHEMA.empty_table(), uri)
    table = pa.table(
        {"place": [{"lon": 1.5}, None], "id": pa.array([1, 2])},
    )
    write(uri, table, mode="append")
    assert read(uri).to_pylist() == [
        {"id": 1, "name": None, "place": {"lat": None, "lon": 1.5, "tags": None}},
        {"id": 2, "name": None, "place": None},
    ]


def test_missing_column_that_may_not_be_null(uri: str, write) -> None:
    lance.write_dataset(SCHEMA.empty_table(), uri)
    with unchanged(uri), pytest.raises(lt.SchemaMismatchError, match=r"\bid\b"):
        write(uri, pa.table({"name": ["a"]}), mode="append")


@pytest.mark.parametrize(
    "table, column",
    [
        (pa.table({"id": [1], "surprise": ["x"]}), "surprise"),
        (pa.table({"id": [1], "place": [{"lat": 1.0, "height": 2.0}]}), "height"),
    ],
    ids=["top", "nested"],
)
def test_extra_column_refused(uri: str, write, table: pa.Table, column: str) -> None:
    lance.write_dataset(SCHEMA.empty_table(), uri)
    with unchanged(uri), pytest.raises(lt.SchemaMismatchError, match=column):
        write(uri, table, mode="append")


def test_null_where_none_may_be(uri: str, write) -> None:
    lance.write_dataset(SCHEMA.empty_table(), uri)
    ids = pa.array([*range(1234), None, 5], pa.int64())
    with unchanged(uri), pytest.raises(lt.SchemaMismatchError, match=r"\bid\b") as caught:
        write(uri, pa.table({"id": ids}), mode="append")
    assert "1234" in caught.value.message


@pytest.mark.parametrize(
    "values, target, shown",
    [
        (["12"] * 1234 + ["abc"] + ["7"] * 10, pa.int64(), "abc"),
        ([1] * 1234 + [3_000_000_000] + [2] * 10, pa.int32(), "3000000000"),
        (["2020-01-01"] * 1234 + ["yesterday"], pa.date32(), "yesterday"),
        ([[1, 2]] * 1234 + [[1, 2, 3]], pa.list_(pa.int64(), 2), "3"),
    ],
    ids=["text-to-int", "overflow", "text-to-date", "vector-length"],
)
def test_value_that_cannot_be_cast(
    uri: str, write, values: list, target: pa.DataType, shown: str
) -> None:
    """The message names the column, the row (from 0) and the value."""
    lance.write_dataset(pa.table({"k": pa.array([], pa.int64()), "x": pa.array([], target)}), uri)
    table = pa.table({"k": range(len(values)), "x": values})
    with unchanged(uri), pytest.raises(lt.SchemaMismatchError) as caught:
        write(uri, table, mode="append")
    message = caught.value.message
    assert '"x"' in message or " x" in message, message
    assert "1234" in message, message
    assert shown in message, message
    assert caught.value.retry_class == "invalid"


def test_nested_value_that_cannot_be_cast(uri: str, write) -> None:
    target = pa.struct([("n", pa.int16())])
    lance.write_dataset(pa.table({"x": pa.array([], target)}), uri)
    table = pa.table({"x": [{"n": 1}, {"n": 70_000}]})
    with unchanged(uri), pytest.raises(lt.SchemaMismatchError) as caught:
        write(uri, table, mode="append")
    assert "x.n" in caught.value.message and "70000" in caught.value.message


def test_types_that_never_fit(uri: str, write) -> None:
    lance.write_dataset(numbers(5), uri)
    table = pa.table({"id": [[1, 2]], "name": ["a"], "score": [1.0]})
    with unchanged(uri), pytest.raises(lt.SchemaMismatchError, match=r"\bid\b"):
        write(uri, table, mode="append")


@pytest.mark.parametrize("mode", ["create", "overwrite"])
def test_schema_given_for_a_new_dataset(uri: str, write, mode: str) -> None:
    if mode == "overwrite":
        lance.write_dataset(pa.table({"old": [1]}), uri)
    table = pa.table({"name": ["a"], "id": pa.array([1], pa.int8())})
    write(uri, table, mode=mode, schema=SCHEMA)
    assert read(uri).schema == SCHEMA
    assert read(uri).to_pylist() == [{"id": 1, "name": "a", "place": None}]


def test_sources_of_different_schemas(sources: Path, uri: str) -> None:
    """The first source's schema holds; the others are aligned to it."""
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), sources / "0.parquet")
    pq.write_table(pa.table({"b": ["y"], "a": pa.array([2], pa.int8())}), sources / "1.parquet")
    pq.write_table(pa.table({"a": [3]}), sources / "2.parquet")
    lt.run(lt.Write(uri, sources=[sources]))
    assert read(uri).to_pylist() == [
        {"a": 1, "b": "x"},
        {"a": 2, "b": "y"},
        {"a": 3, "b": None},
    ]


def test_stream_unlike_the_schema_given_at_prepare(uri: str) -> None:
    job = lt.prepare(lt.Write(uri, partitions=["0", "1"]), schema=numbers(0).schema)
    execute_partitions(job, {"0": numbers(5).select(["name", "score", "id"])})
    with pytest.raises(lt.SchemaMismatchError, match="surprise"):
        lt.execute(job.task("1"), pa.table({"id": [1], "surprise": [2]}))


def test_append_aligns_after_columns_were_dropped(uri: str, write) -> None:
    """Field ids then have gaps; what is written goes to the right ones."""
    lance.write_dataset(numbers(10), uri).drop_columns(["name"])
    write(uri, numbers(10, start=10).drop_columns(["name"]), mode="append")
    assert_same(read(uri), numbers(20).drop_columns(["name"]))
    for fragment in lance.dataset(uri).get_fragments():
        assert [i for file in fragment.data_files() for i in file.fields if i >= 0] in (
            [0, 2],
            [0, 1, 2],
        )


def test_append_after_a_column_was_added(uri: str, write) -> None:
    lance.write_dataset(numbers(10), uri).add_columns({"twice": "id * 2"})
    write(uri, numbers(5, start=10), mode="append")
    assert read(uri)["twice"].to_pylist() == [2 * i for i in range(10)] + [None] * 5


# The byte limit


def noise(rows: int) -> pa.Table:
    """64 bytes a row that no encoding makes smaller."""
    values = np.random.default_rng(1).integers(-(2**62), 2**62, (8, rows))
    return pa.table({f"c{i}": column for i, column in enumerate(values)})


@pytest.mark.parametrize("version", ["2.0", "2.1", "2.2"])
def test_byte_limit_holds_for_one_huge_batch(uri: str, write, version: str) -> None:
    table = noise(200_000)
    assert len(table.to_batches()) == 1 and table.nbytes > 12 << 20
    limit = 2 << 20
    write(uri, table, max_bytes_per_file=limit, data_storage_version=version)
    sizes = [size for path, size in files(uri).items() if path.startswith("data/")]
    assert max(sizes) <= limit
    # The files are filled, too: not a trail of small ones.
    assert len(sizes) <= 2 * (table.nbytes // limit + 1)
    assert_same(read(uri), table)


def test_byte_limit_holds_for_strings_of_uneven_length(uri: str, write) -> None:
    rng = np.random.default_rng(2)
    texts = [rng.bytes(40_000 if i % 100 == 0 else 10).hex() for i in range(20_000)]
    table = pa.table({"text": texts})
    limit = 1 << 20
    write(uri, table, max_bytes_per_file=limit)
    sizes = [size for path, size in files(uri).items() if path.startswith("data/")]
    assert max(sizes) <= limit
    assert_same(read(uri), table)
