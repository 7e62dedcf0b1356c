# SPDX-License-Identifier: Apache-2.0
"""Commit is verified and happens exactly once: repeated, raced by its twin in another process, by
other jobs and by stock pylance; in parts; and after the history it relies on is gone."""

import datetime
import random
from pathlib import Path

import lance
import pytest
from cases import check_index_answers
from support import (
    append_job,
    assert_same,
    assert_same_rows,
    execute_partitions,
    files,
    finish,
    fragment_rows,
    go,
    make_dataset,
    numbers,
    read,
    run_loop,
    spool,
    start_worker,
    unchanged,
    version_of,
)

import lance_tasks as lt


def clean_up(uri: str) -> None:
    """Remove every version but the latest."""
    lance.dataset(uri).cleanup_old_versions(
        older_than=datetime.timedelta(0), delete_unverified=False
    )


# Repeated


def test_commit_repeated(case) -> None:
    job = lt.prepare(case.spec)
    results = finish(job)
    first = lt.commit(job, results)
    with unchanged(case.uri):
        for executor in [None, lt.Executor()]:
            again = lt.commit(job, results, executor=executor)
            assert again.already_committed and again.complete
            assert (again.version, again.rows) == (first.version, first.rows)
            assert again.transaction_id == first.transaction_id
    case.check()


def test_commit_repeated_with_other_attempts(case) -> None:
    """The answer was lost, some attempts were too: the job is committed all the same."""
    job = lt.prepare(case.spec)
    results, others = finish(job), finish(job)
    first = lt.commit(job, results)
    mixed = [random.Random(1).choice(pair) for pair in zip(results, others, strict=True)]
    assert lt.commit(job, mixed).version == first.version
    assert lt.commit(job, others).already_committed
    case.check()


def test_commit_repeated_after_other_commits(case) -> None:
    job = lt.prepare(case.spec)
    results = finish(job)
    first = lt.commit(job, results)
    dataset = lance.dataset(case.uri)
    dataset.insert(dataset.to_table(limit=5))
    dataset.delete("id = 1")
    latest = version_of(case.uri)
    with unchanged(case.uri):
        again = lt.commit(job, results)
    assert again.already_committed
    assert (again.version, again.rows) == (first.version, first.rows)
    assert version_of(case.uri) == latest > first.version


def test_transaction_id_derives_from_the_job(case) -> None:
    """Stock pylance finds the job's own uuid in the history of the dataset."""
    job = lt.prepare(case.spec)
    outcome = lt.commit(job, finish(job))
    try:
        transaction = lance.dataset(case.uri).read_transaction(outcome.version)
    except TypeError:
        pytest.skip("this pylance cannot show a Rewrite that remaps indexes")
    assert transaction.uuid == outcome.transaction_id


def test_two_committers_of_one_job(case, tmp_path: Path) -> None:
    job = lt.prepare(case.spec)
    job_file, results = spool(tmp_path / "spool", job, finish(job))
    committers = [start_worker("commit", job_file, results, wait=True) for _ in range(3)]
    outcomes = go(*committers)
    assert [outcome for outcome in outcomes if "error" in outcome] == []
    assert len({outcome["version"] for outcome in outcomes}) == 1
    assert sorted(outcome["already_committed"] for outcome in outcomes) == [False, True, True]
    case.check()


@pytest.mark.parametrize("round_", range(3))
def test_two_committers_with_different_attempts(uri: str, tmp_path: Path, round_: int) -> None:
    make_dataset(uri, rows=100)
    job = lt.prepare(lt.Write(uri, mode="append"), schema=numbers(0).schema)
    data = {"a": numbers(40, 1000), "b": numbers(40, 2000)}
    spools = [spool(tmp_path / f"spool-{i}", job, execute_partitions(job, data)) for i in range(2)]
    outcomes = go(*[start_worker("commit", *files, wait=True) for files in spools])
    assert len({outcome.get("version") for outcome in outcomes}) == 1, outcomes
    assert sorted(outcome["already_committed"] for outcome in outcomes) == [False, True]
    assert sorted(read(uri)["id"].to_pylist()) == [
        *range(100), *range(1000, 1040), *range(2000, 2040)
    ]  # fmt: skip


# What commit refuses


def test_incomplete_results_refused(case) -> None:
    job = lt.prepare(case.spec)
    results = finish(job)
    for missing in (0, len(results) // 2, len(results) - 1):
        some = results[:missing] + results[missing + 1 :]
        with unchanged(case.folder), pytest.raises(lt.IncompleteError) as caught:
            lt.commit(job, some)
        assert caught.value.retry_class == "replan"
        assert results[missing].task_id in f"{caught.value.message} {caught.value.task_id}"
    with pytest.raises(lt.IncompleteError):
        lt.commit(job, [])
    case.check_untouched()
    lt.commit(job, results)
    case.check()


def test_commit_of_an_aborted_job_refused(case) -> None:
    job = lt.prepare(case.spec)
    results = finish(job)
    paths = [file["path"] for result in results for file in result.to_dict()["files"]]
    lt.abort(job, results)
    with unchanged(case.folder), pytest.raises(lt.Error) as caught:
        lt.commit(job, results)
    assert any(Path(path).name in caught.value.message for path in paths), caught.value.message
    case.check_untouched()


# In parts


def test_partial_commit_of_a_compaction(uri: str) -> None:
    make_dataset(uri)
    before = read(uri)
    job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=300))
    results = finish(job)
    assert len(results) >= 3
    part = lt.commit(job, [results[2], results[0]], partial=True)
    assert not part.complete and not part.already_committed
    assert part.metrics["tasks"] == 2
    assert_same_rows(read(uri), before)
    between = fragment_rows(uri)
    assert 4 <= len(between) < 12

    again = lt.commit(job, [results[0], results[2]], partial=True)
    assert again.already_committed and not again.complete and again.version == part.version

    rest = lt.commit(job, results)
    assert rest.complete and not rest.already_committed
    assert_same_rows(read(uri), before)
    assert len(fragment_rows(uri)) == len(results)
    whole = lt.commit(job, results)
    assert whole.complete and whole.already_committed and whole.version == rest.version


def test_partial_commit_survives_a_conflict_of_the_rest(uri: str) -> None:
    """What is committed stays; only the part that lost is to be done again."""
    make_dataset(uri)
    job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=300))
    results = finish(job)
    lt.commit(job, results[:2], partial=True)
    lance.dataset(uri).delete("id = 1150")
    before, rows = read(uri), fragment_rows(uri)
    with pytest.raises(lt.Error) as caught:
        lt.commit(job, results)
    assert caught.value.retry_class == "replan"
    report = lt.abort(job, results)
    assert report.kept == 2
    assert_same_rows(read(uri), before)
    assert fragment_rows(uri) == rows


def test_partial_commit_of_an_index(uri: str) -> None:
    """What is indexed so far answers; the rest is scanned."""
    make_dataset(uri)
    job = lt.prepare(lt.CreateIndex(uri, column="id", index_type="BTREE", num_segments=3))
    results = finish(job)
    part = lt.commit(job, results[1:2], partial=True)
    assert not part.complete and part.metrics["fragments_covered"] == 4
    for complete in (False, True):
        (index,) = lance.dataset(uri).describe_indices()
        assert index.num_rows_indexed == (1200 if complete else 400)
        check_index_answers(lance.dataset(uri), "id", ["id = 5", "id = 450", "id < 500"])
        if not complete:
            rest = lt.commit(job, results)
            assert rest.complete and rest.metrics["segments"] == 2
    assert lt.commit(job, results).already_committed


def test_partial_commit_of_a_write_refused(uri: str) -> None:
    make_dataset(uri)
    job, results = append_job(uri)
    with unchanged(uri), pytest.raises(lt.InvalidArgumentError, match="partial"):
        lt.commit(job, results, partial=True)


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_micro_commits_sum_their_metrics(uri: str, batch: int) -> None:
    make_dataset(uri)
    before = read(uri)
    job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=300, micro_commit_batch_size=batch))
    results = finish(job)
    outcome = lt.commit(job, results)
    assert outcome.complete and outcome.version == version_of(uri)
    assert outcome.metrics["commits"] == -(-len(results) // batch)
    assert outcome.metrics["tasks"] == len(results)
    assert outcome.metrics["fragments_removed"] == outcome.metrics["files_removed"] == 12
    assert outcome.metrics["fragments_added"] == outcome.metrics["files_added"] == len(results)
    data = [file for path, file in files(uri).items() if path.startswith("data/")]
    assert outcome.metrics["bytes_removed"] + outcome.metrics["bytes_added"] == sum(data)
    assert_same(read(uri), before)
    again = lt.commit(job, results)
    assert again.already_committed and again.version == outcome.version


def test_write_metrics(uri: str) -> None:
    job = lt.prepare(lt.Write(uri, max_rows_per_file=30), schema=numbers(0).schema)
    results = execute_partitions(job, {"a": numbers(100), "b": numbers(20, 100)})
    metrics = lt.commit(job, results).metrics
    data = [size for path, size in files(uri).items() if path.startswith("data/")]
    assert metrics["fragments_added"] == metrics["files_added"] == len(data) == 5
    assert metrics["rows_written"] == 120
    assert metrics["bytes_written"] == sum(data)
    assert metrics["tasks"] == 2


def test_index_metrics(uri: str) -> None:
    make_dataset(uri).delete("id < 10")
    job = lt.prepare(lt.CreateIndex(uri, column="id", index_type="BTREE", num_segments=4))
    metrics = lt.commit(job, finish(job)).metrics
    written = [size for path, size in files(uri).items() if path.startswith("_indices/")]
    assert metrics["segments"] == metrics["tasks"] == 4
    assert metrics["fragments_covered"] == 12
    assert metrics["rows_covered"] in (1190, 1200)
    assert metrics["bytes_written"] == sum(written)


# History


@pytest.mark.parametrize("kind", ["compact", "create_index"])
def test_pinned_version_gone(uri: str, kind: str) -> None:
    dataset = make_dataset(uri)
    if kind == "compact":
        job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=300))
    else:
        job = lt.prepare(lt.CreateIndex(uri, column="id", index_type="BTREE", num_segments=3))
    tasks = lt.plan(job)
    dataset.insert(numbers(5, start=9000))
    clean_up(uri)
    with unchanged(uri):
        for call in (
            lambda e: lt.plan(job, executor=e),
            lambda e: lt.execute(tasks[0], executor=e),
        ):
            with pytest.raises(lt.VersionGoneError) as caught:
                call(lt.Executor())
            assert caught.value.retry_class == "replan"
            assert "1" in caught.value.message
    # Prepared again on what there is now, the work goes through.
    outcome = run_loop(
        lt.Compact(uri)
        if kind == "compact"
        else lt.CreateIndex(uri, column="id", index_type="BTREE")
    )
    assert outcome.rows == 1205


def test_append_refused_where_history_is_gone(uri: str) -> None:
    dataset = make_dataset(uri)
    job, results = append_job(uri)
    dataset.insert(numbers(5, start=9000))
    dataset.insert(numbers(5, start=9005))
    clean_up(uri)
    before = read(uri)
    for executor in (None, lt.Executor()):
        with unchanged(uri), pytest.raises(lt.HistoryGoneError) as caught:
            lt.commit(job, results, executor=executor)
        assert caught.value.retry_class == "fatal"
        with unchanged(uri), pytest.raises(lt.HistoryGoneError):
            lt.abort(job, results, executor=executor)
    assert_same(read(uri), before)


def test_committed_append_not_doubled_where_its_version_is_gone(uri: str) -> None:
    """The commit happened, its answer was lost, its version is cleaned up: never twice."""
    make_dataset(uri)
    job, results = append_job(uri)
    lt.commit(job, results)
    lance.dataset(uri).insert(numbers(5, start=9000))
    clean_up(uri)
    before = read(uri)
    with pytest.raises(lt.HistoryGoneError):
        lt.commit(job, results, executor=lt.Executor())
    assert_same(read(uri), before)


def test_append_goes_where_history_is_whole(uri: str) -> None:
    """Only versions since the job's own matter; these are there."""
    dataset = make_dataset(uri)
    dataset.insert(numbers(5, start=9000))
    job, results = append_job(uri)
    clean_up(uri)
    outcome = lt.commit(job, results)
    assert (outcome.version, outcome.rows) == (3, 1255)
