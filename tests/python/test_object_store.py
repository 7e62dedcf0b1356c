# SPDX-License-Identifier: Apache-2.0
"""The same on object stores: S3 as moto serves it, Azure as Azurite does.

What was written is judged by stock pylance on the same store."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import stores
from cases import check_index_answers
from stores import Bucket, Store
from support import (
    assert_same,
    assert_same_rows,
    finish_worker,
    go,
    numbers,
    spool,
    start_worker,
)

import lance_tasks as lt


@pytest.fixture(scope="module", params=["s3", "azure"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with {"s3": stores.s3, "azure": stores.azurite}[request.param]() as store:
        yield store


@pytest.fixture
def bucket(store: Store, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("WORKER_STORAGE_OPTIONS", json.dumps(store.options))
    return store.bucket()


def finish(job: lt.Job, bucket: Bucket, attempts: int = 1) -> list[lt.Result]:
    """Every task of every stage executed so many times."""
    results: list[lt.Result] = []
    while tasks := lt.plan(job, results, storage_options=bucket.options):
        results += [lt.execute(task, storage_options=bucket.options) for task in tasks * attempts]
    return results


def append(bucket: Bucket, rows: int, start: int) -> tuple[lt.Job, list[lt.Result]]:
    spec, o = lt.Write(bucket.uri(), mode="append"), bucket.options
    job = lt.prepare(spec, numbers(0).schema, storage_options=o)
    return job, [lt.execute(job.task("0"), numbers(rows, start), storage_options=o)]


def work(verb: str, *arguments: object) -> dict:
    """One verb in a process of its own, which must succeed."""
    answer = finish_worker(start_worker(verb, *arguments))
    assert "error" not in answer, answer
    return answer


def in_processes(spec: dict, folder: Path) -> dict:
    """The whole loop, every verb and every task in a process of its own."""
    folder.mkdir()
    (folder / "spec").write_text(json.dumps(spec))
    work("prepare", folder / "spec", folder / "job")
    for number in range(3):
        results, tasks = folder / "results", folder / f"tasks-{number}"
        results.mkdir(exist_ok=True)
        tasks.mkdir()
        if not work("plan", folder / "job", results, tasks)["tasks"]:
            break
        workers = [
            start_worker("execute", task, results / task.name) for task in sorted(tasks.iterdir())
        ]
        for worker in workers:
            assert "error" not in (answer := finish_worker(worker)), answer
    return work("commit", folder / "job", folder / "results")


# End to end


def test_the_loop(bucket: Bucket) -> None:
    uri, o = bucket.uri(), bucket.options
    lt.run(lt.Write(uri, max_rows_per_file=100), data=numbers(900), storage_options=o)
    job, results = append(bucket, 100, 900)
    for _ in range(2):
        assert lt.commit(job, results, storage_options=o).version == 2
    assert_same(bucket.table(), numbers(1000))
    bucket.dataset().delete("id % 10 = 3")
    expected = bucket.table()
    lt.run(lt.Compact(uri, target_rows_per_fragment=300), storage_options=o)
    index = lt.CreateIndex(uri, column="id", index_type="BTREE", num_segments=2)
    lt.run(index, storage_options=o)
    dataset = bucket.dataset()
    assert_same(dataset.to_table(), expected)
    assert len(dataset.get_fragments()) == 2
    check_index_answers(dataset, "id", ["id = 500", "id < 20"])
    lt.run(lt.Write(uri, mode="overwrite"), data=numbers(7), storage_options=o)
    assert_same(bucket.table(), numbers(7))
    assert_same(bucket.dataset(version=1).to_table(), numbers(900))
    assert bucket.unreferenced() == set()


def test_every_verb_in_a_process_of_its_own(bucket: Bucket, tmp_path: Path) -> None:
    sources = [bucket.put_parquet(f"in/{i}.parquet", numbers(200, start=200 * i)) for i in range(2)]
    write = {"operation": "write", "uri": bucket.uri(), "max_rows_per_file": 200}
    first = in_processes(write | {"sources": sources[:1]}, tmp_path / "create")
    assert (first["version"], first["rows"]) == (1, 200)
    in_processes(write | {"mode": "append", "sources": sources[1:]}, tmp_path / "append")
    assert_same(bucket.table(), numbers(400))
    bucket.dataset().delete("id < 100")
    spec = {"operation": "compact", "uri": bucket.uri(), "target_rows_per_fragment": 1000}
    in_processes(spec, tmp_path / "compact")
    spec = {"operation": "create_index", "uri": bucket.uri(), "column": "id"}
    in_processes(spec | {"index_type": "BTREE"}, tmp_path / "index")
    dataset = bucket.dataset()
    assert_same(dataset.to_table(), numbers(300, start=100))
    assert len(dataset.get_fragments()) == 1
    check_index_answers(dataset, "id", ["id = 150", "id > 390"])
    in_processes(write | {"mode": "overwrite", "sources": sources}, tmp_path / "overwrite")
    assert_same(bucket.table(), numbers(400))
    assert bucket.unreferenced() == set()


def test_a_file_of_several_parts(bucket: Bucket) -> None:
    """More than one upload takes at once; on S3 a multipart upload, on Azure a list of blocks."""
    noise = np.random.default_rng(0).integers(0, 1 << 62, 1_000_000)
    table = pa.table({"noise": noise})
    o = bucket.options
    job = lt.prepare(lt.Write(bucket.uri()), table.schema, storage_options=o)
    result = lt.execute(job.task("0"), table, storage_options=o)
    (size,) = bucket.files().values()
    assert size == sum(file["size"] for file in result.to_dict()["files"]) > 6 << 20
    lt.commit(job, [result], storage_options=o)
    assert_same(bucket.table(), table)


@pytest.mark.parametrize("pattern", ["in/part-*.parquet", "in/", "in/part-[01].parquet"])
def test_sources(bucket: Bucket, pattern: str) -> None:
    for i in range(2):
        bucket.put_parquet(f"in/part-{i}.parquet", numbers(100, start=100 * i))
    spec = lt.Write(bucket.uri(), sources=[bucket.uri(pattern)], max_rows_per_file=70)
    lt.run(spec, storage_options=bucket.options)
    dataset = bucket.dataset()
    assert_same(dataset.to_table(), numbers(200))
    assert [f.physical_rows for f in dataset.get_fragments()] == [70, 70, 60]


def test_missing_source_and_bucket(bucket: Bucket) -> None:
    spec = lt.Write(bucket.uri(), sources=[bucket.uri("gone.parquet")])
    with pytest.raises(lt.NotFoundError, match=r"gone\.parquet"):
        lt.run(spec, storage_options=bucket.options)
    nowhere = Bucket(bucket.store, "no-such-bucket")
    with pytest.raises(lt.NotFoundError):
        lt.prepare(lt.Compact(nowhere.uri()), storage_options=bucket.options)
    with pytest.raises(lt.NotFoundError):
        lt.run(lt.Write(nowhere.uri()), data=numbers(1), storage_options=bucket.options)
    assert bucket.files() == {}


# Abort and duplicates


@pytest.mark.parametrize("operation", ["create", "append", "compact", "create_index"])
def test_abort_leaves_no_object(bucket: Bucket, operation: str) -> None:
    source = bucket.put_parquet("source.parquet", numbers(100))
    if operation != "create":
        bucket.write(numbers(100), max_rows_per_file=10)
    before = bucket.files()
    uri = bucket.uri()
    spec = {
        "create": lt.Write(uri, sources=[source], max_rows_per_file=10),
        "append": lt.Write(uri, mode="append", sources=[source], max_rows_per_file=10),
        "compact": lt.Compact(uri, target_rows_per_fragment=50),
        "create_index": lt.CreateIndex(uri, column="id", index_type="BTREE", num_segments=2),
    }[operation]
    job = lt.prepare(spec, storage_options=bucket.options)
    results = finish(job, bucket, attempts=2)
    made = bucket.files().keys() - before.keys()
    assert made
    report = lt.abort(job, results, storage_options=bucket.options)
    assert (report.files_removed, report.kept) == (len(made), 0)
    assert bucket.files() == before


@pytest.mark.parametrize("operation", ["write", "compact", "create_index"])
def test_duplicate_attempts(bucket: Bucket, operation: str) -> None:
    """All attempts of every task are committed at once: one each counts, the others are removed."""
    uri = bucket.uri()
    source = bucket.put_parquet("source.parquet", numbers(90, start=90))
    bucket.write(numbers(90), max_rows_per_file=10)
    spec, expected = {
        "write": (lt.Write(uri, mode="append", sources=[source], max_rows_per_file=30), 180),
        "compact": (lt.Compact(uri, target_rows_per_fragment=30), 90),
        "create_index": (lt.CreateIndex(uri, column="id", index_type="BTREE", num_segments=3), 90),
    }[operation]
    job = lt.prepare(spec, storage_options=bucket.options)
    results = finish(job, bucket, attempts=3)
    lt.commit(job, results[::-1], storage_options=bucket.options)
    version = bucket.dataset().version
    late = [*results, *finish(job, bucket)]
    assert lt.commit(job, late, storage_options=bucket.options).already_committed
    assert bucket.dataset().version == version
    lt.abort(job, late, storage_options=bucket.options)
    assert_same(bucket.table(), numbers(expected))
    assert bucket.unreferenced() == set()
    bucket.dataset().validate()
    if operation == "create_index":
        check_index_answers(bucket.dataset(), "id", ["id = 50", "id < 20"])


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("index_type", ["IVF_FLAT", "INVERTED"])
def test_indexes_in_stages(bucket: Bucket, index_type: str, merge: bool) -> None:
    """Models, segments and their parts lie on the store; nothing of them stays but the index."""

    def rows(start: int, count: int) -> pa.Table:
        ids = range(start, start + count)
        vectors = pa.array([[float(i % 50), 1.0] for i in ids], pa.list_(pa.float32(), 2))
        texts = [f"word{i % 50} all" for i in ids]
        return pa.table({"id": ids, "v": vectors, "text": texts})

    def answers() -> list[int]:
        if index_type == "INVERTED":
            query = {"full_text_query": "word7"}
        else:
            query = {"nearest": {"column": "v", "q": [7, 1], "k": 100, "nprobes": 9}}
        found = bucket.dataset().to_table(columns=["id"], **query)["id"].to_pylist()
        return sorted(i for i in found if i % 50 == 7)

    bucket.write(rows(0, 300), max_rows_per_file=50)
    column, params = ("text", {}) if index_type == "INVERTED" else ("v", {"num_partitions": 3})
    spec = lt.CreateIndex(
        bucket.uri(), column=column, index_type=index_type, num_segments=2, merge=merge, **params
    )
    job = lt.prepare(spec, storage_options=bucket.options)
    results = finish(job, bucket, attempts=2)
    outcome = lt.commit(job, results, storage_options=bucket.options)
    assert outcome.metrics["rows_covered"] == 300
    lt.abort(job, results, storage_options=bucket.options)
    assert bucket.unreferenced() == set()
    assert answers() == list(range(7, 300, 50))

    bucket.write(rows(300, 100), mode="append")
    outcome = lt.run(lt.OptimizeIndex(bucket.uri()), storage_options=bucket.options)
    assert outcome.metrics["rows_covered"] == 100
    statistics = bucket.dataset().stats.index_stats(f"{column}_idx")
    assert statistics["num_unindexed_rows"] == 0
    assert len(bucket.dataset().describe_indices()[0].segments) == (2 if merge else 3)
    assert answers() == list(range(7, 400, 50))
    assert bucket.unreferenced() == set()


# Committers in several processes


@pytest.mark.parametrize("same_job", [True, False])
def test_creators_race(bucket: Bucket, tmp_path: Path, same_job: bool) -> None:
    """Three commits of one job are one; of three jobs that create one dataset, one wins."""
    uri, o = bucket.uri(), bucket.options
    jobs = [lt.prepare(lt.Write(uri), numbers(0).schema, storage_options=o)]
    while not same_job and len(jobs) < 3:
        jobs.append(lt.prepare(lt.Write(uri), numbers(0).schema, storage_options=o))
    made = [
        [lt.execute(job.task("0"), numbers(10, start=10 * i), storage_options=o)]
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
        lost = [outcome["class"] for outcome in outcomes if "error" in outcome]
        assert lost == ["conflict"] * 2
        expected = numbers(10, start=10 * won[0])
    for i, (job, results) in enumerate(zip(jobs, made, strict=True)):
        report = lt.abort(job, results, storage_options=o)
        assert (report.kept, report.files_removed) == ((1, 0) if i in won else (0, 1))
    assert_same(bucket.table(), expected)
    assert bucket.versions() == [1] and bucket.unreferenced() == set()


def test_appends_race(bucket: Bucket, tmp_path: Path) -> None:
    """Each of four appends is committed by two processes at once."""
    bucket.write(numbers(10))
    jobs = [append(bucket, 10, 10 * i) for i in range(1, 5)]
    spools = [spool(tmp_path / f"{i}", *job) for i, job in enumerate(jobs)]
    outcomes = go(*[start_worker("commit", *place, wait=True) for place in spools * 2])
    assert sorted(outcome.get("version", outcome) for outcome in outcomes[:4]) == [2, 3, 4, 5]
    assert [o["version"] for o in outcomes[:4]] == [o["version"] for o in outcomes[4:]]
    for first, second in zip(outcomes[:4], outcomes[4:], strict=True):
        assert {first["already_committed"], second["already_committed"]} == {True, False}
        assert first["transaction_id"] == second["transaction_id"]
    for outcome in outcomes:
        assert bucket.dataset(version=outcome["version"]).count_rows() == outcome["rows"]
    assert_same_rows(bucket.table(), numbers(50))
    assert bucket.versions() == [1, 2, 3, 4, 5] and bucket.unreferenced() == set()


def test_operations_race(bucket: Bucket, tmp_path: Path) -> None:
    """An append, an index and a compaction of one dataset: what lost the race is committed again,
    and where that is not enough, prepared again."""
    bucket.write(numbers(100), max_rows_per_file=10)
    specs = [
        lt.CreateIndex(bucket.uri(), column="score", index_type="BTREE"),
        lt.Compact(bucket.uri(), target_rows_per_fragment=50),
    ]
    jobs = [append(bucket, 50, 100)]
    for spec in specs:
        job = lt.prepare(spec, storage_options=bucket.options)
        jobs.append((job, finish(job, bucket)))
    spools = [spool(tmp_path / f"{i}", *job) for i, job in enumerate(jobs)]
    outcomes = go(*[start_worker("commit", *place, wait=True) for place in spools])
    assert "error" not in outcomes[0]
    for spec, made, outcome in zip(specs, jobs[1:], outcomes[1:], strict=True):
        if "error" not in outcome:
            continue
        assert outcome["class"] == "replan", outcome
        try:
            lt.commit(*made, storage_options=bucket.options)
        except lt.RetryableConflictError:
            lt.abort(*made, storage_options=bucket.options)
            lt.run(spec, storage_options=bucket.options)
    dataset = bucket.dataset()
    assert_same_rows(dataset.to_table(), numbers(150))
    dataset.validate()
    # An index that came after the compaction may cover nothing of it any more.
    assert dataset.to_table(filter="score >= 20.5 and score < 60").num_rows == 79
    assert bucket.unreferenced() == set()
