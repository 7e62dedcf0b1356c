# SPDX-License-Identifier: Apache-2.0
"""Jobs that other writers get ahead of: what goes together is committed, what does not is refused
with the class of error that says what to do, and the dataset is right in any case."""

import shutil
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from cases import check_index_answers
from support import (
    append_job,
    assert_same,
    assert_same_rows,
    execute_partitions,
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


def test_create_after_create(uri: str) -> None:
    jobs = [lt.prepare(lt.Write(uri), schema=numbers(0).schema) for _ in range(2)]
    results = [
        execute_partitions(job, {"0": numbers(20, start=100 * i)}) for i, job in enumerate(jobs)
    ]
    lt.commit(jobs[1], results[1])
    with unchanged(uri), pytest.raises((lt.ConflictError, lt.AlreadyExistsError)):
        lt.commit(jobs[0], results[0])
    assert_same(read(uri), numbers(20, start=100))
    assert lt.abort(jobs[0], results[0]).files_removed == 1
    assert_same(read(uri), numbers(20, start=100))


@pytest.mark.parametrize("round_", range(3))
def test_create_races_with_create(uri: str, tmp_path: Path, round_: int) -> None:
    spools = []
    for i in range(3):
        job = lt.prepare(lt.Write(uri), schema=numbers(0).schema)
        results = execute_partitions(job, {"0": numbers(20, start=100 * i)})
        spools.append(spool(tmp_path / f"spool-{i}", job, results))
    outcomes = go(*[start_worker("commit", *paths, wait=True) for paths in spools])
    winners = [i for i, outcome in enumerate(outcomes) if "error" not in outcome]
    assert len(winners) == 1, outcomes
    losers = [outcome["code"] for outcome in outcomes if "error" in outcome]
    assert set(losers) <= {"CONFLICT", "ALREADY_EXISTS"}
    assert version_of(uri) == 1
    assert_same(read(uri), numbers(20, start=100 * winners[0]))


def test_appends_race(uri: str, tmp_path: Path) -> None:
    """Four processes append at once: each gets a version of its own."""
    make_dataset(uri, rows=100)
    spools = [
        spool(tmp_path / f"spool-{i}", *append_job(uri, start=1000 * i, rows=10))
        for i in range(1, 5)
    ]
    outcomes = go(*[start_worker("commit", *paths, wait=True) for paths in spools])
    assert sorted(outcome.get("version") for outcome in outcomes) == [2, 3, 4, 5], outcomes
    added = [numbers(10, 1000 * i) for i in range(1, 5)]
    assert_same_rows(read(uri), pa.concat_tables([numbers(100), *added]))


def test_append_after_overwrite_conflicts(uri: str) -> None:
    make_dataset(uri, rows=100)
    job, results = append_job(uri)
    lance.write_dataset(numbers(7), uri, mode="overwrite")
    with unchanged(uri), pytest.raises(lt.ConflictError) as caught:
        lt.commit(job, results)
    assert caught.value.retry_class in ("conflict", "replan")
    assert_same(read(uri), numbers(7))
    assert lt.abort(job, results).files_removed == 1


@pytest.mark.parametrize("change", ["append", "delete", "compact", "index"])
def test_append_goes_with_other_changes(uri: str, change: str) -> None:
    dataset = make_dataset(uri, rows=300)
    job, results = append_job(uri)
    if change == "append":
        dataset.insert(numbers(10, start=2000))
    elif change == "delete":
        dataset.delete("id < 100")
    elif change == "compact":
        dataset.optimize.compact_files()
    else:
        dataset.create_scalar_index("id", "BTREE")
    before = read(uri)
    version = version_of(uri)
    outcome = lt.commit(job, results)
    assert outcome.version == version + 1
    assert_same(read(uri), pa.concat_tables([before, numbers(50, 5000)]).combine_chunks())


@pytest.mark.parametrize("change", ["append", "delete", "overwrite"])
def test_overwrite_is_strict(uri: str, change: str) -> None:
    dataset = make_dataset(uri, rows=100)
    job = lt.prepare(lt.Write(uri, mode="overwrite"), schema=numbers(0).schema)
    results = execute_partitions(job, {"0": numbers(20, start=1000)})
    if change == "append":
        dataset.insert(numbers(10, start=2000))
    elif change == "delete":
        dataset.delete("id < 10")
    else:
        lance.write_dataset(numbers(3), uri, mode="overwrite")
    before = read(uri)
    with unchanged(uri), pytest.raises(lt.ConflictError):
        lt.commit(job, results)
    assert_same(read(uri), before)
    lt.abort(job, results)
    assert_same(read(uri), before)


def test_overwrite_discards_concurrent_commits_where_told(uri: str) -> None:
    dataset = make_dataset(uri, rows=100)
    spec = lt.Write(uri, mode="overwrite", discard_concurrent=True)
    job = lt.prepare(spec, schema=numbers(0).schema)
    results = execute_partitions(job, {"0": numbers(20, start=1000)})
    dataset.insert(numbers(10, start=2000))
    outcome = lt.commit(job, results)
    assert (outcome.version, outcome.rows) == (3, 20)
    assert_same(read(uri), numbers(20, start=1000))
    assert lt.commit(job, results).already_committed


@pytest.mark.parametrize("change", ["delete", "update", "compact"])
def test_compaction_loses_to_a_change_of_its_fragments(uri: str, change: str) -> None:
    dataset = make_dataset(uri, rows=600)
    job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=300))
    results = finish(job)
    if change == "delete":
        dataset.delete("id = 250")
    elif change == "update":
        dataset.update({"score": "0.0"}, where="id = 250")
    else:
        dataset.optimize.compact_files()
    before, rows = read(uri), fragment_rows(uri)
    with unchanged(uri), pytest.raises(lt.Error) as caught:
        lt.commit(job, results)
    assert caught.value.retry_class == "replan"
    assert isinstance(caught.value, lt.RetryableConflictError)
    report = lt.abort(job, results)
    assert report.files_removed == len(results) and report.kept == 0
    assert_same(read(uri), before)
    assert fragment_rows(uri) == rows
    if change == "delete":  # planned again, the work goes through
        run_loop(lt.Compact(uri, target_rows_per_fragment=300))
        assert_same(read(uri), before)
        assert sum(fragment_rows(uri)) == 599


def test_compaction_goes_with_changes_elsewhere(uri: str) -> None:
    dataset = make_dataset(uri, rows=600)
    job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=300, excluded_fragment_ids=[5]))
    results = finish(job)
    dataset.insert(numbers(10, start=2000))
    dataset.delete("id = 555")  # in the fragment left out
    before = read(uri)
    lt.commit(job, results)
    assert_same_rows(read(uri), before)
    assert len(fragment_rows(uri)) < 7


def test_index_goes_with_an_append(uri: str) -> None:
    dataset = make_dataset(uri, rows=600)
    job = lt.prepare(lt.CreateIndex(uri, column="id", index_type="BTREE", num_segments=3))
    results = finish(job)
    dataset.insert(numbers(60, start=590))  # ids that the index holds, too
    outcome = lt.commit(job, results)
    assert outcome.metrics["fragments_covered"] == 6
    check_index_answers(
        lance.dataset(uri), "id", ["id = 595", "id = 640", "id between 580 and 600"]
    )


def test_index_goes_with_deletes(uri: str) -> None:
    dataset = make_dataset(uri, rows=600)
    job = lt.prepare(lt.CreateIndex(uri, column="id", index_type="BTREE", num_segments=3))
    results = finish(job)
    dataset.delete("id >= 95 and id < 205")  # a whole fragment, too
    lt.commit(job, results)
    check_index_answers(lance.dataset(uri), "id", ["id = 100", "id < 210", "id > 90 and id < 300"])


def test_index_after_compaction_of_its_fragments(uri: str) -> None:
    """Either the commit is refused for planning again, or the index answers right."""
    dataset = make_dataset(uri, rows=600)
    job = lt.prepare(lt.CreateIndex(uri, column="id", index_type="BTREE", num_segments=3))
    results = finish(job)
    dataset.optimize.compact_files(target_rows_per_fragment=300)
    try:
        lt.commit(job, results)
    except lt.Error as error:
        assert error.retry_class == "replan"
        assert lance.dataset(uri).describe_indices() == []
        lt.abort(job, results)
        lt.run(lt.CreateIndex(uri, column="id", index_type="BTREE", num_segments=2))
    dataset = lance.dataset(uri)
    for where in ["id = 5", "id between 95 and 305", "id in (1, 250, 599)"]:
        full = dataset.scanner(filter=where, use_scalar_index=False).to_table()
        assert_same(dataset.to_table(filter=where).sort_by("id"), full.sort_by("id"))


def test_datasets_made_anew_at_the_same_place(uri: str) -> None:
    """A process that has seen the earlier ones works on the one that is there."""
    for rows in (300, 500, 400):
        shutil.rmtree(uri, ignore_errors=True)
        assert lt.run(lt.Write(uri, max_rows_per_file=100), data=numbers(rows)).rows == rows
        assert lt.run(lt.Write(uri, mode="append"), data=numbers(10, rows)).rows == rows + 10
        index = lt.CreateIndex(uri, column="id", index_type="BTREE", num_segments=2)
        assert lt.run(index).rows == rows + 10
        check_index_answers(lance.dataset(uri), "id", ["id = 305", f"id > {rows - 5}"])
        outcome = lt.run(lt.Compact(uri))
        assert outcome.rows == rows + 10
        assert_same_rows(read(uri), numbers(rows + 10))


@pytest.mark.parametrize("kind", ["append", "compact"])
def test_another_dataset_at_the_same_place(uri: str, kind: str) -> None:
    """Removed and made anew, the dataset has the job's version again, with other rows."""
    make_dataset(uri)
    if kind == "append":
        job, results = append_job(uri)
    else:
        job = lt.prepare(lt.Compact(uri))
        results = finish(job)
    made = {f["path"]: Path(uri, f["path"]).read_bytes() for r in results for f in r.files}
    shutil.rmtree(uri)
    make_dataset(uri, rows=500)
    for path, data in made.items():  # the tasks' files are there
        Path(uri, path).write_bytes(data)
    for executor in (None, lt.Executor()):
        with unchanged(uri), pytest.raises(lt.Error) as caught:
            lt.commit(job, results, executor=executor)
        assert caught.value.retry_class in ("replan", "conflict", "fatal")
    assert_same(read(uri), numbers(500))
