# SPDX-License-Identifier: Apache-2.0
"""Both ways with stock pylance: it commits what tasks made, tasks work on what it made, and each
finds the other's commits."""

import datetime
import json
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.compute
import pytest
from cases import check_index_answers
from lance.fragment import FragmentMetadata, write_fragments
from lance.optimize import Compaction, RewriteResult
from schemas import random_table
from support import (
    assert_same,
    execute_partitions,
    finish,
    fragment_rows,
    make_dataset,
    numbers,
    read,
    run_loop,
)

import lance_tasks as lt

# pylance commits what tasks made


@pytest.mark.parametrize("rows_per_file", [1000, 30])
def test_pylance_commits_an_append(uri: str, rows_per_file: int) -> None:
    make_dataset(uri, rows=100)
    job = lt.prepare(
        lt.Write(uri, mode="append", max_rows_per_file=rows_per_file), schema=numbers(0).schema
    )
    results = execute_partitions(job, {"a": numbers(50, 100), "b": numbers(50, 150)})
    fragments = [
        FragmentMetadata.from_json(text) for result in results for text in result.fragments
    ]
    assert sum(fragment.num_rows for fragment in fragments) == 100
    operation = lance.LanceOperation.Append(fragments)
    dataset = lance.LanceDataset.commit(uri, operation, read_version=job.read_version)
    dataset.validate()
    assert_same(dataset.to_table(), numbers(200))


@pytest.mark.parametrize("seed", range(6))
def test_pylance_commits_a_create(uri: str, seed: int) -> None:
    table, stored = random_table(3000 + seed, "2.1")
    spec = lt.Write(uri, max_rows_per_file=40, data_storage_version="2.1")
    job = lt.prepare(spec, schema=table.schema)
    (result,) = execute_partitions(job, {"0": table})
    fragments = [FragmentMetadata.from_json(text) for text in result.fragments]
    operation = lance.LanceOperation.Overwrite(stored.schema, fragments)
    dataset = lance.LanceDataset.commit(uri, operation)
    assert_same(dataset.to_table(), stored)


def test_pylance_commits_a_compaction(uri: str) -> None:
    dataset = make_dataset(uri)
    dataset.delete("id % 50 = 7")
    dataset.create_scalar_index("id", "BTREE")
    before = read(uri)
    job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=300))
    rewrites = [RewriteResult.from_json(rewrite_json(result)) for result in finish(job)]
    metrics = Compaction.commit(lance.dataset(uri), rewrites)
    assert metrics.fragments_removed == 12
    assert_same(read(uri), before)
    check_index_answers(lance.dataset(uri), "id", ["id = 600", "id < 120"])


def rewrite_json(result: lt.Result) -> str:
    """Lance's own form of a rewrite within the payload of a compaction's result."""
    payload = result.payload
    inner = payload if "original_fragments" in payload else next(
        value for value in payload.values()
        if isinstance(value, dict) and "original_fragments" in value
    )  # fmt: skip
    return json.dumps(inner)


def test_pylance_commits_index_segments(uri: str) -> None:
    """The protobuf of a segment names its uuid, which is the folder of its files."""
    make_dataset(uri)
    job = lt.prepare(lt.CreateIndex(uri, column="id", index_type="BTREE", num_segments=3))
    results = finish(job)
    table = pa.table(lt.results_table(results))
    segments = [one for row in table["index_segments"].to_pylist() for one in row]
    assert len(segments) == 3
    folders = {file["path"].split("/")[1] for r in results for file in r.to_dict()["files"]}
    for segment in segments:
        assert any(bytes.fromhex(name.replace("-", "")) in segment for name in folders)


# Tasks work on what pylance made


def test_commit_of_fragments_that_pylance_wrote(uri: str) -> None:
    """One worker is ours, one is pylance's; one commit takes both, once."""
    make_dataset(uri, rows=100)
    job = lt.prepare(lt.Write(uri, mode="append"), schema=numbers(0).schema)
    ours = lt.execute(job.task("0"), numbers(50, 100))
    theirs = lt.adopt(job, job.task("1"), write_fragments(numbers(70, 150), uri))
    assert theirs.rows_out == 70
    outcome = lt.commit(job, [theirs, ours])
    assert_same(read(uri), numbers(220))
    assert lt.commit(job, [theirs, ours]).version == outcome.version
    lance.dataset(uri).validate()


def test_create_of_fragments_that_pylance_wrote(uri: str) -> None:
    job = lt.prepare(lt.Write(uri), schema=numbers(0).schema)
    (fragment,) = write_fragments(numbers(30), uri)
    lt.commit(job, [lt.adopt(job, job.task("0"), json.dumps(fragment.to_json()))])
    assert_same(read(uri), numbers(30))


def test_commit_of_a_compaction_that_pylance_ran(uri: str) -> None:
    dataset = make_dataset(uri)
    dataset.delete("id % 50 = 7")
    dataset.create_scalar_index("id", "BTREE")
    before = read(uri)
    job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=300))
    theirs = Compaction.plan(lance.dataset(uri), {"target_rows_per_fragment": 300}).tasks
    tasks = lt.plan(job)
    assert len(theirs) == len(tasks) > 1
    results = [
        lt.adopt(job, task, other.execute(lance.dataset(uri)))
        for task, other in zip(tasks, theirs, strict=True)
    ]
    assert lt.plan(job, results) == []
    outcome = lt.commit(job, results)
    assert outcome.metrics["fragments_removed"] == 12
    assert_same(read(uri), before)
    check_index_answers(lance.dataset(uri), "id", ["id = 600", "id < 120"])


def test_commit_of_index_segments_that_pylance_built(uri: str) -> None:
    make_dataset(uri)
    job = lt.prepare(lt.CreateIndex(uri, column="id", index_type="BTREE", num_segments=3))
    results = []
    for number, task in enumerate(lt.plan(job)):
        work = json.loads(task.to_json())["task"]["work"]["create_index"]["segment"]
        fragments = work["fragments"]
        dataset = lance.dataset(uri)
        if number == 1:
            results.append(lt.execute(task))
            continue
        segment = dataset.create_index_uncommitted(
            "id", "BTREE", name="id_idx", fragment_ids=fragments
        )
        results.append(lt.adopt(job, task, segment))
    lt.commit(job, results)
    check_index_answers(lance.dataset(uri), "id", ["id = 600", "id < 120"])


def test_adopting_what_is_not_the_tasks(uri: str) -> None:
    make_dataset(uri)
    job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=300))
    first, second = lt.plan(job)[:2]
    theirs = Compaction.plan(lance.dataset(uri), {"target_rows_per_fragment": 300}).tasks
    rewrite = theirs[0].execute(lance.dataset(uri))
    with pytest.raises(lt.VerificationError, match="fragments"):
        lt.adopt(job, second, rewrite)
    with pytest.raises(lt.InvalidArgumentError, match="RewriteResult"):
        lt.adopt(job, first, {"nonsense": 1})
    with pytest.raises(lt.InvalidArgumentError, match="JSON"):
        lt.adopt(job, first, "{")
    other = lt.prepare(lt.Compact(uri, target_rows_per_fragment=300))
    with pytest.raises(lt.InvalidArgumentError, match="of job"):
        lt.adopt(other, first, rewrite)
    append = lt.prepare(lt.Write(uri, mode="append"), schema=numbers(0).schema)
    (fragment,) = write_fragments(numbers(10).append_column("x", pa.array(range(10))), uri + "-2")
    with pytest.raises(lt.VerificationError, match="field ids"):
        lt.adopt(append, append.task("0"), fragment)


@pytest.mark.parametrize("version", ["2.0", "2.1", "2.2"])
def test_datasets_made_by_pylance(tmp_path: Path, version: str) -> None:
    table, _ = random_table(4001, version)
    table = pa.concat_tables([table] * 3).append_column("id", pa.array(range(3 * len(table))))
    uri = str(tmp_path / "theirs.lance")
    lance.write_dataset(table, uri, max_rows_per_file=20, data_storage_version=version)
    expected = read(uri)
    run_loop(lt.Compact(uri))
    assert_same(read(uri), expected)
    run_loop(lt.CreateIndex(uri, column="id", index_type="BTREE"))
    check_index_answers(lance.dataset(uri), "id", ["id = 3", "id < 9"])
    copy = str(tmp_path / "copy.lance")
    run_loop(lt.Write(copy, sources=[uri], data_storage_version=version))
    assert_same(read(copy), expected)


def test_dataset_of_several_data_files_per_fragment(uri: str) -> None:
    dataset = make_dataset(uri, rows=300)
    dataset.add_columns({"twice": "id * 2"})
    dataset.drop_columns(["name"])
    dataset.alter_columns({"path": "score", "name": "points"})
    dataset.delete("id % 9 = 0")
    expected = read(uri)
    run_loop(lt.CreateIndex(uri, column="twice", index_type="BTREE", num_segments=2))
    run_loop(lt.Compact(uri))
    assert_same(read(uri), expected)
    check_index_answers(lance.dataset(uri), "id", ["twice = 20", "twice > 500"])
    run_loop(lt.Write(uri, mode="append", sources=[uri]))
    assert_same(read(uri), pa.concat_tables([expected, expected]).combine_chunks())


def test_dataset_after_restore(uri: str) -> None:
    dataset = make_dataset(uri, rows=300)
    dataset.delete("id < 100")
    lance.dataset(uri, version=1).restore()
    run_loop(lt.Compact(uri))
    assert_same(read(uri), numbers(300))
    assert fragment_rows(uri) == [300]


def test_legacy_dataset(uri: str) -> None:
    table = pa.table({"id": range(300), "x": [0.5 * i for i in range(300)]})
    lance.write_dataset(table, uri, max_rows_per_file=50, data_storage_version="legacy")
    more = pa.table({"id": range(300, 400), "x": [0.5 * i for i in range(300, 400)]})
    lt.run(lt.Write(uri, mode="append"), data=more)
    assert_same(read(uri), pa.concat_tables([table, more]).combine_chunks())
    run_loop(lt.Compact(uri))
    assert lance.dataset(uri).data_storage_version == "0.1"
    assert_same(read(uri), pa.concat_tables([table, more]).combine_chunks())


# One history


def test_commits_take_turns(uri: str) -> None:
    outcome = lt.run(lt.Write(uri, max_rows_per_file=50), data=numbers(200))
    assert outcome.version == 1
    lance.dataset(uri).insert(numbers(100, start=200))
    assert lt.run(lt.Write(uri, mode="append"), data=numbers(50, start=300)).version == 3
    lance.dataset(uri).create_scalar_index("id", "BTREE")
    lance.dataset(uri).delete("id = 17")
    outcome = run_loop(lt.Compact(uri))
    assert outcome.version == lance.dataset(uri).version
    lance.dataset(uri).optimize.optimize_indices()
    expected = numbers(350).filter(pa.compute.field("id") != 17)
    assert_same(read(uri).sort_by("id"), expected)
    check_index_answers(lance.dataset(uri), "id", ["id = 17", "id = 310", "id < 30"])


def test_pylance_shows_our_transactions(uri: str) -> None:
    """The operation is Lance's own, with the version that the job was pinned to."""
    make_dataset(uri, rows=100)
    job = lt.prepare(lt.Write(uri, mode="append"), schema=numbers(0).schema)
    outcome = lt.commit(job, execute_partitions(job, {"0": numbers(10, 100)}))
    transaction = lance.dataset(uri).read_transaction(outcome.version)
    assert isinstance(transaction.operation, lance.LanceOperation.Append)
    assert transaction.read_version == job.read_version == 1


def test_pylance_cleans_up_what_was_lost(uri: str) -> None:
    """Files of lost attempts are unreferenced to Lance: its cleanup takes them, and no others."""
    lt.run(lt.Write(uri), data=numbers(100))
    job = lt.prepare(lt.Write(uri, mode="append"), schema=numbers(0).schema)
    (lost,) = execute_partitions(job, {"0": numbers(10)})
    path = Path(uri) / lost.to_dict()["files"][0]["path"]
    assert path.exists()
    lance.dataset(uri).cleanup_old_versions(
        older_than=datetime.timedelta(0), delete_unverified=True
    )
    assert not path.exists()
    assert_same(read(uri), numbers(100))


def test_tags_and_branches_of_others_stay(uri: str) -> None:
    dataset = make_dataset(uri)
    dataset.tags.create("keep", 1)
    run_loop(lt.Compact(uri))
    lt.run(lt.Write(uri, mode="overwrite"), data=numbers(5))
    assert lance.dataset(uri).tags.get_version("keep") == 1
    assert_same(read(uri, version="keep"), numbers(1200))
