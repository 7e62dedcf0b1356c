# SPDX-License-Identifier: Apache-2.0
"""What is written reads back by stock pylance, equal to the source: every type, random nested
schemas, one and several fragments, all storage versions. Pylance's own writer is the judge of what
Lance can store: what it writes, this library writes, and both read back the same."""

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from schemas import EXAMPLES, VERSIONS, build, example, random_table, sliced, stored_type
from support import assert_same, execute_partitions, files, fragment_rows, read

import lance_tasks as lt


def by_pylance(table: pa.Table, uri: str, version: str, **options: object) -> pa.Table | None:
    """The table as pylance writes and reads it, or None where Lance cannot."""
    try:
        lance.write_dataset(table, uri, data_storage_version=version, **options)
        return read(uri)
    except BaseException as error:  # a panic in pylance is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return None


def by_tasks(table: pa.Table, uri: str, version: str, **options: object) -> pa.Table:
    """The table as this library writes it and pylance reads it."""
    spec = lt.Write(uri, data_storage_version=version, **options)
    # An executor of its own: a panic in Lance poisons no more than that.
    outcome = lt.run(spec, data=table, executor=lt.Executor())
    assert outcome.rows == table.num_rows
    dataset = lance.dataset(uri)
    dataset.validate()
    expected = "0.1" if version == "legacy" else version
    assert dataset.data_storage_version in (expected, version)
    return dataset.to_table()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_type(name: str, version: str, tmp_path: Path) -> None:
    table = example(name)
    expected = by_pylance(table, str(tmp_path / "judge.lance"), version)
    uri = str(tmp_path / "ours.lance")
    if expected is None:
        # Refused clearly, or stored as something that says the same (a list for a list view).
        try:
            actual = by_tasks(table, uri, version)
        except lt.Error as error:
            assert error.code not in ("PANIC", "IO") and error.message
            assert files(uri) == {}
        else:
            assert version == "legacy" or actual["x"].to_pylist() == table["x"].to_pylist()
        return
    if version == "legacy" and "dictionary" in str(table.schema):
        # One dictionary for the whole dataset, which tasks of their own cannot agree on.
        with pytest.raises(lt.NotSupportedError, match="dictionaries"):
            by_tasks(table, uri, version)
        assert files(uri) == {}
        return
    actual = by_tasks(table, uri, version)
    assert actual.schema == expected.schema
    assert_same(actual, expected)
    if version != "legacy":  # which has no nulls
        dtype, values = EXAMPLES[name]
        assert_same(actual, pa.table({"x": build(values, stored_type(dtype))}))


def test_the_judge_accepts_most_types(tmp_path: Path) -> None:
    """Were pylance to refuse everything, the test above would show little."""
    accepted = [
        name
        for name in EXAMPLES
        if by_pylance(example(name), str(tmp_path / name), "2.2") is not None
    ]
    assert len(accepted) >= len(EXAMPLES) - 8


@pytest.mark.parametrize("version", VERSIONS[1:])
@pytest.mark.parametrize("seed", range(25))
def test_random_schemas(seed: int, version: str, tmp_path: Path) -> None:
    table, stored = random_table(seed, version)
    options = {"max_rows_per_file": [7, 50, 1000][seed % 3]}
    expected = by_pylance(table, str(tmp_path / "judge.lance"), version, **options)
    if expected is None:
        pytest.skip(f"Lance itself cannot store this: {table.schema}")
    uri = str(tmp_path / "ours.lance")
    actual = by_tasks(table, uri, version, **options)
    assert actual.schema == expected.schema
    assert_same(actual, stored)
    fragments = fragment_rows(uri)
    assert len(fragments) == -(-table.num_rows // options["max_rows_per_file"])


@pytest.mark.parametrize("seed", range(60))
def test_random_slices(seed: int, tmp_path: Path) -> None:
    """Batches with offsets into larger arrays, as any engine hands them over."""
    table, stored = random_table(seed, "2.2")
    if by_pylance(table, str(tmp_path / "judge.lance"), "2.2") is None:
        pytest.skip(f"Lance itself cannot store this: {table.schema}")
    actual = by_tasks(sliced(table, seed), str(tmp_path / "ours.lance"), "2.2")
    assert_same(actual, stored)


@pytest.mark.parametrize("seed", range(12))
def test_random_partitions_and_compaction(seed: int, tmp_path: Path) -> None:
    """Written by several tasks, deleted from, compacted: still the source's rows."""
    table, stored = random_table(1000 + seed, "2.2")
    if by_pylance(table, str(tmp_path / "judge.lance"), "2.2") is None:
        pytest.skip(f"Lance itself cannot store this: {table.schema}")
    uri = str(tmp_path / "ours.lance")
    half = table.num_rows // 2
    parts = {"a": table.slice(0, half), "b": table.slice(half)}
    spec = lt.Write(uri, partitions=["a", "b"], max_rows_per_file=20, data_storage_version="2.2")
    job = lt.prepare(spec, schema=table.schema)
    lt.commit(job, execute_partitions(job, parts))
    assert_same(read(uri), stored)
    lt.run(lt.Compact(uri))
    assert len(fragment_rows(uri)) == 1
    assert_same(read(uri), stored)


@pytest.mark.parametrize("seed", range(12))
def test_random_append(seed: int, tmp_path: Path) -> None:
    table, stored = random_table(2000 + seed, "2.2")
    if by_pylance(table, str(tmp_path / "ours.lance"), "2.2") is None:
        pytest.skip(f"Lance itself cannot store this: {table.schema}")
    uri = str(tmp_path / "ours.lance")
    lt.run(lt.Write(uri, mode="append"), data=table)
    assert_same(read(uri), pa.concat_tables([stored, stored]).combine_chunks())


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_schema_is_kept_whole(version: str, uri: str) -> None:
    """Nullability, inner names and metadata of the schema and of fields."""
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False, metadata={"unit": "none"}),
            pa.field("tags", pa.list_(pa.field("tag", pa.string(), nullable=False))),
            pa.field(
                "place",
                pa.struct([pa.field("lat", pa.float64(), nullable=False), ("lon", pa.float32())]),
                nullable=False,
            ),
        ],
        metadata={"origin": "survey"},
    )
    rows = [{"id": i, "tags": ["a"] * i, "place": {"lat": i, "lon": None}} for i in range(5)]
    table = pa.Table.from_pylist(rows, schema=schema)
    actual = by_tasks(table, uri, version)
    judge = by_pylance(table, uri + ".judge", version)
    assert actual.schema.equals(judge.schema, check_metadata=True)
    assert actual.schema.equals(schema, check_metadata=True)
    assert_same(actual, table)


def test_field_ids_are_those_of_pylance(tmp_path: Path) -> None:
    """Nested fields get the ids that pylance gives them, in every fragment."""
    table = pa.table(
        {
            "a": [{"x": 1, "y": ["u"]}],
            "b": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
            "c": pa.array(["k"]).dictionary_encode(),
        }
    )
    ours, judge = str(tmp_path / "ours"), str(tmp_path / "judge")
    lt.run(lt.Write(ours), data=table)
    lance.write_dataset(table, judge)

    def fields(uri: str) -> list:
        return [
            (field.name(), field.id(), [(c.name(), c.id()) for c in field.children()])
            for field in lance.dataset(uri).lance_schema.fields()
        ]

    assert fields(ours) == fields(judge)
    (file,) = lance.dataset(ours).get_fragments()[0].data_files()
    (other,) = lance.dataset(judge).get_fragments()[0].data_files()
    assert (file.fields, file.column_indices) == (other.fields, other.column_indices)


@pytest.mark.parametrize("limit", [5, 10, 13, 1000])
@pytest.mark.parametrize("offset", [0, 8, 11])
def test_null_booleans_in_null_structs(uri: str, limit: int, offset: int) -> None:
    """Lance 14.0.2 itself cannot encode these in a slice: each is to be cut loose first."""
    rows = [None if i % 3 == 0 else {"b": None if i % 2 else True} for i in range(60)]
    table = pa.table({"x": pa.array(rows, pa.struct([("b", pa.bool_())]))}).slice(offset, 40)
    actual = by_tasks(table, uri, "2.2", max_rows_per_file=limit)
    assert actual["x"].to_pylist() == rows[offset : offset + 40]


def test_dictionaries_that_differ_from_batch_to_batch(uri: str) -> None:
    dtype = pa.dictionary(pa.int32(), pa.string())
    values = [["red", "green", None], ["green", "blue"], [None, None], ["red", "violet"]]
    batches = [pa.record_batch({"x": build(part, dtype)}) for part in values]
    reader = pa.RecordBatchReader.from_batches(batches[0].schema, batches)
    lt.run(lt.Write(uri, max_rows_per_file=4), data=reader)
    assert read(uri)["x"].to_pylist() == [value for part in values for value in part]
    assert read(uri).schema.field("x").type == dtype


def test_many_rows_in_many_batches(tmp_path: Path, uri: str) -> None:
    """Batches that fit no fragment limit; row order is the stream's."""
    rng = np.random.default_rng(5)
    rows = 300_000
    table = pa.table(
        {
            "id": np.arange(rows),
            "word": pa.array([f"w{i % 977}" for i in range(rows)]),
            "vector": pa.FixedSizeListArray.from_arrays(
                pa.array(rng.standard_normal(rows * 8, dtype=np.float32)), 8
            ),
        }
    )
    batches = table.to_batches(max_chunksize=7_777)
    reader = pa.RecordBatchReader.from_batches(table.schema, batches)
    lt.run(lt.Write(uri, max_rows_per_file=100_000), data=reader)
    assert fragment_rows(uri) == [100_000] * 3
    assert_same(read(uri), table)


def test_one_huge_value(uri: str) -> None:
    table = pa.table({"text": ["small", "x" * (20 << 20), None, "y" * (5 << 20)]})
    lt.run(lt.Write(uri), data=table)
    assert_same(read(uri), table)


def test_wide_table(uri: str) -> None:
    table = pa.table({f"c{i}": pa.array([i, None, i + 1], pa.int32()) for i in range(1000)})
    lt.run(lt.Write(uri), data=table)
    assert_same(read(uri), table)


@pytest.mark.parametrize("name", ["struct_with_nulls", "map", "vector_float32", "large_string"])
def test_types_through_parquet(name: str, tmp_path: Path, uri: str) -> None:
    table = example(name)
    pq.write_table(table, tmp_path / "x.parquet")
    lt.run(lt.Write(uri, sources=[tmp_path / "x.parquet"]))
    assert read(uri)["x"].to_pylist() == table["x"].to_pylist()


def test_empty_stream(uri: str) -> None:
    outcome = lt.run(lt.Write(uri), data=example("struct").slice(0, 0))
    assert outcome.rows == 0
    assert_same(read(uri), example("struct").slice(0, 0))
