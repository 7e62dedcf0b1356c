# SPDX-License-Identifier: Apache-2.0
"""Bad input gets a clear error that names the thing, and nothing is written."""

import json
import os
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet
import pytest
from support import (
    assert_same,
    execute_partitions,
    files,
    finish,
    make_dataset,
    numbers,
    read,
    unchanged,
)

import lance_tasks as lt


def refused(root: Path, call, kind: type, *words: str) -> lt.Error:
    """`call` raises this kind of error naming these words, and no file of `root` changes."""
    with unchanged(root), pytest.raises(kind) as caught:
        call()
    error = caught.value
    assert isinstance(error, lt.Error)
    for word in words:
        assert word in error.message, f"{word!r} is not in {error.message!r}"
    return error


# Specs


@pytest.mark.parametrize("operation", ["append", "overwrite", "compact", "create_index"])
def test_missing_dataset(tmp_path: Path, uri: str, operation: str) -> None:
    def prepare() -> lt.Job:
        if operation == "compact":
            return lt.prepare(lt.Compact(uri))
        if operation == "create_index":
            return lt.prepare(lt.CreateIndex(uri, column="id", index_type="BTREE"))
        return lt.prepare(lt.Write(uri, mode=operation), schema=numbers(0).schema)

    error = refused(tmp_path, prepare, lt.NotFoundError, uri)
    assert error.retry_class == "invalid"
    assert isinstance(error, FileNotFoundError)
    assert not Path(uri).exists()


def test_create_where_a_dataset_is(tmp_path: Path, uri: str) -> None:
    make_dataset(uri)
    error = refused(
        tmp_path, lambda: lt.run(lt.Write(uri), data=numbers(5)), lt.AlreadyExistsError, uri
    )
    assert isinstance(error, FileExistsError)


@pytest.mark.parametrize(
    "spec, words",
    [
        ({"operation": "write", "mode": "truncate"}, ["truncate", "append"]),
        ({"operation": "write", "max_rows": 5}, ["max_rows"]),
        ({"operation": "write", "max_rows_per_file": "many"}, ["many"]),
        ({"operation": "write", "max_rows_per_file": -1}, ["-1"]),
        ({"operation": "write", "max_rows_per_file": 0}, ["max_rows_per_file"]),
        ({"operation": "write", "max_bytes_per_file": 0}, ["max_bytes_per_file"]),
        ({"operation": "write", "max_rows_per_task": 0}, ["max_rows_per_task"]),
        ({"operation": "write", "data_storage_version": "9.9"}, ["9.9"]),
        ({"operation": "write", "external_blob_mode": "forget"}, ["forget"]),
        ({"operation": "write", "sources": []}, ["sources"]),
        ({"operation": "write", "sources": [5]}, ["sources"]),
        ({"operation": "write", "sources": [{"uri": "x.csv", "colour": 1}]}, ["colour"]),
        ({"operation": "write", "sources": [{"uri": "x.csv", "delimiter": ";;"}]}, ["delimiter"]),
        ({"operation": "write", "sources": [{"uri": "x.csv", "version": 3}]}, ["version"]),
        ({"operation": "write", "sources": [{"uri": "x.csv", "filter": "a > 1"}]}, ["filter"]),
        ({"operation": "write", "partitions": ["a", "a"]}, ["a"]),
        ({"operation": "write", "partitions": ["a", ""]}, ["partition"]),
        ({"operation": "write", "partitions": ["a"], "num_partitions": 2}, ["num_partitions"]),
        ({"operation": "write", "target_bases": ["nowhere"]}, ["nowhere"]),
        ({"operation": "defragment"}, ["defragment", "compact"]),
        ({}, ["operation"]),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_bad_write_specs(
    tmp_path: Path, uri: str, spec: dict, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.csv").write_text("a\n1\n")
    monkeypatch.chdir(tmp_path)
    spec = spec | {"uri": uri}
    schema = None if "sources" in spec else numbers(0).schema
    refused(
        tmp_path,
        lambda: lt.prepare(spec, schema=schema),
        lt.InvalidArgumentError,
        *words,
    )


@pytest.mark.parametrize(
    "spec, words",
    [
        ({"target_rows_per_fragment": 0}, ["target_rows_per_fragment"]),
        ({"materialize_deletions_threshold": 1.5}, ["materialize_deletions_threshold", "1.5"]),
        ({"materialize_deletions_threshold": -0.1}, ["materialize_deletions_threshold"]),
        ({"compaction_mode": "squeeze"}, ["squeeze"]),
        ({"index_remap_mode": "never"}, ["never"]),
        ({"excluded_fragment_ids": ["x"]}, ["excluded_fragment_ids"]),
        ({"micro_commit_batch_size": 0}, ["micro_commit_batch_size"]),
        ({"batch_size": 0}, ["batch_size"]),
        ({"max_source_fragments": 0}, ["max_source_fragments"]),
        ({"data_storage_version": "9.9"}, ["9.9"]),
        ({"materialize_deletions": "yes"}, ["materialize_deletions"]),
        ({"num_threads": 4}, ["num_threads"]),
    ],
    ids=str,
)
def test_bad_compact_specs(tmp_path: Path, uri: str, spec: dict, words: list[str]) -> None:
    make_dataset(uri)
    spec = {"operation": "compact", "uri": uri} | spec
    refused(tmp_path, lambda: lt.prepare(spec), lt.InvalidArgumentError, *words)


@pytest.mark.parametrize(
    "spec, kind, words",
    [
        ({"column": "nothere"}, lt.InvalidArgumentError, ["nothere"]),
        ({"column": ""}, lt.InvalidArgumentError, ["column"]),
        ({"column": "place"}, lt.Error, ["place", "BTREE"]),
        ({"index_type": "OAK"}, lt.NotSupportedError, ["OAK", "BTREE"]),
        ({"index_type": 5}, lt.InvalidArgumentError, ["index_type"]),
        ({"num_segments": 0}, lt.InvalidArgumentError, ["num_segments"]),
        ({"max_rows_per_segment": 0}, lt.InvalidArgumentError, ["max_rows_per_segment"]),
        ({"fragment_ids": [0, 99]}, lt.InvalidArgumentError, ["99"]),
        ({"fragment_ids": []}, lt.InvalidArgumentError, ["fragment_ids"]),
        ({"params": {"bark": 1}}, lt.InvalidArgumentError, ["bark"]),
        ({"name": "taken"}, lt.AlreadyExistsError, ["taken"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_index_specs(
    tmp_path: Path, uri: str, spec: dict, kind: type, words: list[str]
) -> None:
    table = numbers(100).append_column("place", pa.array([{"lat": 1.0}] * 100))
    lance.write_dataset(table, uri).create_scalar_index("id", "BTREE", name="taken")
    base = {"operation": "create_index", "uri": uri, "column": "score", "index_type": "BTREE"}
    refused(tmp_path, lambda: lt.prepare(base | spec), kind, *words)


def test_missing_column_or_type_of_an_index(tmp_path: Path, uri: str) -> None:
    make_dataset(uri)
    for spec, word in [({"column": "id"}, "index_type"), ({"index_type": "BTREE"}, "column")]:
        base = {"operation": "create_index", "uri": uri} | spec
        refused(tmp_path, lambda base=base: lt.prepare(base), lt.InvalidArgumentError, word)


@pytest.mark.parametrize("name", [None, "by_id"])
def test_index_that_is_there(tmp_path: Path, uri: str, name: str | None) -> None:
    spec = lt.CreateIndex(uri, column="id", index_type="BTREE", name=name)
    make_dataset(uri)
    lt.run(spec)
    word = name or "id_idx"
    refused(tmp_path, lambda: lt.prepare(spec), lt.AlreadyExistsError, word)


def test_open_job_without_a_schema(tmp_path: Path, uri: str) -> None:
    refused(tmp_path, lambda: lt.prepare(lt.Write(uri)), lt.InvalidArgumentError, "schema")


@pytest.mark.parametrize("spec", [b"", b"  ", b"[]", b"{", b"write", b"\xff\xfe", b'{"uri": 1}'])
def test_specs_that_are_none(tmp_path: Path, spec: bytes) -> None:
    refused(tmp_path, lambda: lt.prepare(spec), lt.Error)


# Partitions of open jobs


def test_partition_not_stated(tmp_path: Path, uri: str) -> None:
    job = lt.prepare(lt.Write(uri, partitions=["a", "b"]), schema=numbers(0).schema)
    refused(tmp_path, lambda: job.task("c"), lt.InvalidArgumentError, '"c"')
    refused(tmp_path, lambda: job.task(""), lt.InvalidArgumentError, "partition")


def test_partition_of_a_job_that_is_not_open(tmp_path: Path, uri: str) -> None:
    make_dataset(uri)
    job = lt.prepare(lt.Compact(uri))
    refused(tmp_path, lambda: job.task("a"), lt.InvalidArgumentError, '"a"')


def test_stated_partition_missing_at_commit(tmp_path: Path, uri: str) -> None:
    job = lt.prepare(lt.Write(uri, partitions=["a", "b", "c"]), schema=numbers(0).schema)
    results = execute_partitions(job, {"c": numbers(5), "a": numbers(5)})
    refused(tmp_path, lambda: lt.commit(job, results), lt.IncompleteError, '"b"')


@pytest.mark.parametrize("stated", [1, 3])
def test_wrong_number_of_partitions(tmp_path: Path, uri: str, stated: int) -> None:
    job = lt.prepare(lt.Write(uri, num_partitions=stated), schema=numbers(0).schema)
    results = execute_partitions(job, {"x": numbers(5), "y": numbers(5)})
    error = refused(tmp_path, lambda: lt.commit(job, results), lt.Error, "2", str(stated))
    assert isinstance(error, (lt.IncompleteError, lt.VerificationError))


def test_no_partitions_at_all(uri: str) -> None:
    """Nothing to write is no error: an empty dataset."""
    job = lt.prepare(lt.Write(uri, partitions=[]), schema=numbers(0).schema)
    assert lt.plan(job) == []
    assert lt.commit(job, []).rows == 0
    assert_same(read(uri), numbers(0))


def test_data_where_none_is_wanted(tmp_path: Path, uri: str) -> None:
    make_dataset(uri)
    (task, *_) = lt.plan(lt.prepare(lt.Compact(uri)))
    refused(tmp_path, lambda: lt.execute(task, numbers(5)), lt.InvalidArgumentError)


def test_task_of_an_open_job_without_data(tmp_path: Path, uri: str) -> None:
    job = lt.prepare(lt.Write(uri), schema=numbers(0).schema)
    refused(tmp_path, lambda: lt.execute(job.task("a")), lt.InvalidArgumentError, "a")


def test_stream_that_fails_midway(tmp_path: Path, uri: str) -> None:
    def batches():
        yield from numbers(100).to_batches()
        raise RuntimeError("the disk of the producer is gone")

    reader = pa.RecordBatchReader.from_batches(numbers(0).schema, batches())
    with unchanged(tmp_path), pytest.raises(lt.Error, match="the disk of the producer is gone"):
        lt.run(lt.Write(uri), data=reader)


# Secrets


SECRET = "Tr0ub4dor3"


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://user:{SECRET}@bucket/data.lance",
        f"https://user:{SECRET}@host/data.lance",
        f"az://container/data.lance?sig={SECRET}",
    ],
)
@pytest.mark.parametrize("place", ["uri", "source", "base"])
def test_uri_with_a_password_refused(tmp_path: Path, uri: str, place: str) -> None:
    local = str(tmp_path / "d.lance")
    spec = {
        "uri": lt.Write(uri),
        "source": lt.Write(local, sources=[lt.Source(uri, format="parquet")]),
        "base": {
            "operation": "write",
            "uri": local,
            "initial_bases": [{"id": 1, "name": "b", "path": uri}],
        },
    }[place]
    error = refused(
        tmp_path, lambda: lt.prepare(spec, schema=numbers(0).schema), lt.InvalidArgumentError
    )
    assert SECRET not in str(error) and SECRET not in repr(error)


def test_storage_options_stay_out_of_everything(uri: str, sources: Path) -> None:
    options = {"aws_secret_access_key": SECRET, "custom": f"prefix-{SECRET}"}
    pa.parquet.write_table(numbers(100), sources / "x.parquet")
    for spec in [
        lt.Write(uri, sources=[sources / "x.parquet"], max_rows_per_file=30),
        lt.Compact(uri),
        lt.CreateIndex(uri, column="id", index_type="BTREE"),
    ]:
        job = lt.prepare(spec, storage_options=options)
        tasks = lt.plan(job, storage_options=options)
        results = list(lt.execute_all(tasks, storage_options=options))
        assert {result.status for result in results} == {"ok"}
        outcome = lt.commit(job, results, storage_options=options)
        shown = [job.to_bytes(), job.to_json(), repr(job), repr(outcome)]
        shown += [x for task in tasks for x in (task.to_bytes(), task.to_json(), repr(task))]
        shown += [x for r in results for x in (r.to_bytes(), json.dumps(r.to_dict()), repr(r))]
        for text in shown:
            data = text if isinstance(text, bytes) else text.encode()
            assert SECRET.encode() not in data
    for path in files(uri):
        assert SECRET.encode() not in (Path(uri) / path).read_bytes()


def test_storage_options_stay_out_of_errors(tmp_path: Path) -> None:
    options = {"aws_access_key_id": "AKIA0", "aws_secret_access_key": SECRET,
               "aws_endpoint": f"http://user:{SECRET}@127.0.0.1:9", "allow_http": "true",
               "aws_region": "us-east-1"}  # fmt: skip
    with pytest.raises(lt.Error) as caught:
        lt.prepare(lt.Compact("s3://bucket/none.lance"), storage_options=options, timeout=20)
    assert SECRET not in str(caught.value) and SECRET not in repr(caught.value)


# After bad input, good input


def test_a_refused_job_can_be_mended(uri: str, sources: Path) -> None:
    pa.parquet.write_table(numbers(100), sources / "0.parquet")
    (sources / "1.parquet").write_bytes(os.urandom(500))
    spec = lt.Write(uri, sources=[sources])
    with pytest.raises(lt.SourceError):
        lt.run(spec)
    pa.parquet.write_table(numbers(100, start=100), sources / "1.parquet")
    job = lt.prepare(spec)
    lt.commit(job, finish(job))
    assert_same(read(uri), numbers(200))
