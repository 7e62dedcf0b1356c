# SPDX-License-Identifier: Apache-2.0
"""The same on an object store: S3 as moto serves it, which honours conditional writes."""

import json
from collections.abc import Iterator

import boto3
import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cases import check_index_answers
from moto.server import ThreadedMotoServer
from support import assert_same, go, numbers, spool, start_worker

import lance_tasks as lt

SECRET = "wJalrXUtnFEMI-not-for-logs"


@pytest.fixture(scope="module")
def options() -> Iterator[dict[str, str]]:
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "allow_http": "true",
        "aws_endpoint": f"http://{host}:{port}",
        "aws_access_key_id": "AKIAEXAMPLE",
        "aws_secret_access_key": SECRET,
        "aws_region": "us-east-1",
    }
    server.stop()


@pytest.fixture
def bucket(options: dict[str, str], request: pytest.FixtureRequest):
    s3 = boto3.resource(
        "s3",
        endpoint_url=options["aws_endpoint"],
        aws_access_key_id=options["aws_access_key_id"],
        aws_secret_access_key=options["aws_secret_access_key"],
        region_name=options["aws_region"],
    )
    name = f"bucket-{abs(hash(request.node.name)):x}"
    return s3.create_bucket(Bucket=name)


def keys(bucket) -> set[str]:
    return {item.key for item in bucket.objects.all()}


def dataset_at(uri: str, options: dict[str, str]):
    return lance.dataset(uri, storage_options=options)


def test_the_loop(bucket, options: dict[str, str]) -> None:
    uri = f"s3://{bucket.name}/d.lance"
    lt.run(lt.Write(uri, max_rows_per_file=100), data=numbers(900), storage_options=options)
    job = lt.prepare(lt.Write(uri, mode="append"), numbers(0).schema, storage_options=options)
    result = lt.execute(job.task("0"), numbers(100, 900), storage_options=options)
    for _ in range(2):
        assert lt.commit(job, [result], storage_options=options).version == 2
    assert_same(dataset_at(uri, options).to_table(), numbers(1000))
    dataset_at(uri, options).delete("id % 10 = 3")
    expected = dataset_at(uri, options).to_table()
    lt.run(lt.Compact(uri, target_rows_per_fragment=300), storage_options=options)
    index = lt.CreateIndex(uri, column="id", index_type="BTREE", num_segments=2)
    lt.run(index, storage_options=options)
    dataset = dataset_at(uri, options)
    assert_same(dataset.to_table(), expected)
    assert len(dataset.get_fragments()) == 2
    check_index_answers(dataset, "id", ["id = 500", "id < 20"])


def test_abort_leaves_no_object(bucket, options: dict[str, str]) -> None:
    uri = f"s3://{bucket.name}/d.lance"
    spec = lt.Write(uri, max_rows_per_file=10)
    job = lt.prepare(spec, schema=numbers(0).schema, storage_options=options)
    result = lt.execute(job.task("0"), numbers(100), storage_options=options)
    assert len(keys(bucket)) == 10
    report = lt.abort(job, [result], storage_options=options)
    assert (report.files_removed, report.kept) == (10, 0)
    assert keys(bucket) == set()


@pytest.mark.parametrize("pattern", ["in/part-*.parquet", "in/", "in/part-[01].parquet"])
def test_sources(bucket, options: dict[str, str], pattern: str) -> None:
    for i in range(2):
        sink = pa.BufferOutputStream()
        pq.write_table(numbers(100, start=100 * i), sink, row_group_size=30)
        bucket.put_object(Key=f"in/part-{i}.parquet", Body=sink.getvalue().to_pybytes())
    uri = f"s3://{bucket.name}/d.lance"
    spec = lt.Write(uri, sources=[f"s3://{bucket.name}/{pattern}"], max_rows_per_file=70)
    lt.run(spec, storage_options=options)
    dataset = dataset_at(uri, options)
    assert_same(dataset.to_table(), numbers(200))
    assert [f.physical_rows for f in dataset.get_fragments()] == [70, 70, 60]


def test_missing_source_and_bucket(bucket, options: dict[str, str]) -> None:
    uri = f"s3://{bucket.name}/d.lance"
    spec = lt.Write(uri, sources=[f"s3://{bucket.name}/gone.parquet"])
    with pytest.raises(lt.NotFoundError, match=r"gone\.parquet"):
        lt.run(spec, storage_options=options)
    with pytest.raises(lt.Error) as caught:
        lt.prepare(lt.Compact("s3://no-such-bucket/d.lance"), storage_options=options)
    assert SECRET not in str(caught.value)
    assert keys(bucket) == set()


@pytest.mark.parametrize("same_job", [True, False])
def test_committers_race(
    bucket, options: dict[str, str], tmp_path, same_job: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three commits of one job are one; of three jobs that create one dataset, one wins."""
    uri = f"s3://{bucket.name}/d.lance"
    monkeypatch.setenv("WORKER_STORAGE_OPTIONS", json.dumps(options))
    jobs = [lt.prepare(lt.Write(uri), numbers(0).schema, storage_options=options)]
    while not same_job and len(jobs) < 3:
        jobs.append(lt.prepare(lt.Write(uri), numbers(0).schema, storage_options=options))
    made = [
        [lt.execute(job.task("0"), numbers(10, start=10 * i), storage_options=options)]
        for i, job in enumerate(jobs)
    ]
    spools = [
        spool(tmp_path / f"{i}", *pair) for i, pair in enumerate(zip(jobs, made, strict=True))
    ]
    workers = [start_worker("commit", *spools[i % len(spools)], wait=True) for i in range(3)]
    outcomes = go(*workers)
    won = [i for i, outcome in enumerate(outcomes) if "error" not in outcome]
    if same_job:
        assert won == [0, 1, 2] and {outcome["version"] for outcome in outcomes} == {1}
        expected = numbers(10)
    else:
        assert len(won) == 1, outcomes
        expected = numbers(10, start=10 * won[0])
    assert_same(dataset_at(uri, options).to_table(), expected)


def test_appends_race(
    bucket, options: dict[str, str], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://{bucket.name}/d.lance"
    monkeypatch.setenv("WORKER_STORAGE_OPTIONS", json.dumps(options))
    lance.write_dataset(numbers(10), uri, storage_options=options)
    workers = []
    for i in range(1, 4):
        job = lt.prepare(lt.Write(uri, mode="append"), numbers(0).schema, storage_options=options)
        made = lt.execute(job.task("0"), numbers(10, start=10 * i), storage_options=options)
        workers.append(start_worker("commit", *spool(tmp_path / f"{i}", job, [made]), wait=True))
    outcomes = go(*workers)
    assert sorted(outcome.get("version") for outcome in outcomes) == [2, 3, 4], outcomes
    assert_same(dataset_at(uri, options).to_table().sort_by("id"), numbers(40))


def test_descriptors_name_the_place_only(bucket, options: dict[str, str]) -> None:
    uri = f"s3://{bucket.name}/d.lance"
    job = lt.prepare(lt.Write(uri), schema=numbers(0).schema, storage_options=options)
    result = lt.execute(job.task("0"), numbers(10), storage_options=options)
    assert job.uri == uri
    for data in (job.to_bytes(), job.task("0").to_bytes(), result.to_bytes()):
        for secret in (SECRET, options["aws_access_key_id"], options["aws_endpoint"]):
            assert secret.encode() not in data
    lt.commit(job, [result], storage_options=options)
    for item in bucket.objects.all():
        assert SECRET.encode() not in item.get()["Body"].read()
