# SPDX-License-Identifier: Apache-2.0
"""Options of a compaction take effect: pylance's own compaction of a copy, with the same options,
is the judge of which fragments there are after; and options are carried from plan to commit."""

import shutil

import lance
import numpy as np
import pyarrow as pa
import pytest
from cases import check_index_answers
from support import (
    assert_same,
    assert_same_rows,
    files,
    finish,
    fragment_rows,
    make_dataset,
    numbers,
    read,
    run_loop,
)

import lance_tasks as lt


def layout(uri: str) -> list[tuple[int, int]]:
    """Physical and deleted rows of each fragment."""
    fragments = lance.dataset(uri).get_fragments()
    return sorted((fragment.physical_rows, fragment.num_deletions) for fragment in fragments)


def with_deletions(uri: str, **options: object) -> None:
    """12 fragments of 100 rows: 2 deleted in each, 60 more in the fourth."""
    dataset = make_dataset(uri, **options)
    dataset.delete("id % 50 = 7")
    dataset.delete("id >= 300 and id < 360")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_rows_per_fragment": 300},
        {"target_rows_per_fragment": 250},
        {"target_rows_per_fragment": 100},
        {"target_rows_per_fragment": 100, "materialize_deletions": False},
        {"target_rows_per_fragment": 100, "materialize_deletions_threshold": 0.01},
        {"target_rows_per_fragment": 100, "materialize_deletions_threshold": 0.9},
        {"target_rows_per_fragment": 300, "excluded_fragment_ids": [0, 5]},
        {"target_rows_per_fragment": 300, "max_source_fragments": 2},
        {"target_rows_per_fragment": 300, "max_source_fragments": 6},
        {"target_rows_per_fragment": 300, "max_source_rows": 800},
        {"target_rows_per_fragment": 300, "max_source_bytes": 12_000},
        {"compaction_mode": "try_binary_copy"},
        {"batch_size": 17},
        {"max_rows_per_group": 64},
        {"io_buffer_size": 1 << 20},
        {"data_storage_version": "2.1"},
    ],
    ids=str,
)
@pytest.mark.parametrize("deletions", [True, False])
def test_layout_is_that_of_pylance(uri: str, options: dict, deletions: bool) -> None:
    with_deletions(uri) if deletions else make_dataset(uri)
    judge = uri + ".judge"
    shutil.copytree(uri, judge)
    known = {key: value for key, value in options.items() if key != "io_buffer_size"}
    metrics = lance.dataset(judge).optimize.compact_files(**known)
    before = read(uri)
    outcome = run_loop(lt.Compact(uri, **options))
    # Tasks of pylance are committed as they happen to finish: the order of fragments varies.
    assert layout(uri) == layout(judge)
    assert_same_rows(read(uri), before)
    for name in ("fragments_removed", "fragments_added", "files_removed", "files_added"):
        assert outcome.metrics.get(name, 0) == getattr(metrics, name), name


def test_nothing_to_compact(uri: str) -> None:
    lance.write_dataset(numbers(100), uri)
    job = lt.prepare(lt.Compact(uri))
    assert lt.plan(job) == []
    outcome = lt.commit(job, [])
    assert outcome.rows == 100 and outcome.complete
    assert outcome.metrics.get("fragments_removed", 0) == 0
    assert_same(read(uri), numbers(100))
    again = lt.commit(job, [])
    assert again.version == outcome.version


def test_max_bytes_per_file(uri: str) -> None:
    """Lance looks at the bytes where pages are flushed: the limit shows in large columns only."""
    table = pa.table({"noise": np.random.default_rng(1).integers(0, 2**62, 2_000_000)})
    lance.write_dataset(table, uri, max_rows_per_file=200_000)
    judge = uri + ".judge"
    shutil.copytree(uri, judge)
    options = {"target_rows_per_fragment": 2_000_000, "max_bytes_per_file": 4 << 20}
    lance.dataset(judge).optimize.compact_files(**options)
    run_loop(lt.Compact(uri, **options))
    assert fragment_rows(uri) == fragment_rows(judge)
    assert len(fragment_rows(uri)) == 2
    assert_same(read(uri), table)


def test_force_binary_copy(uri: str) -> None:
    make_dataset(uri)
    copied = run_loop(lt.Compact(uri, compaction_mode="force_binary_copy"))
    assert copied.metrics["fragments_added"] == 1
    assert_same(read(uri), numbers(1200))
    # A copy keeps the pages of its sources; encoding anew merges them.
    again = uri + ".again"
    make_dataset(again)
    merged = run_loop(lt.Compact(again, compaction_mode="reencode"))
    assert copied.metrics["bytes_added"] > 1.2 * merged.metrics["bytes_added"]


def test_force_binary_copy_refused_with_deletions(uri: str) -> None:
    with_deletions(uri)
    before = files(uri)
    job = lt.prepare(lt.Compact(uri, compaction_mode="force_binary_copy"))
    with pytest.raises(lt.NotSupportedError, match="binary copy"):
        finish(job)
    assert files(uri) == before


def test_deletions_are_materialized(uri: str) -> None:
    with_deletions(uri)
    before = read(uri)
    run_loop(lt.Compact(uri))
    assert layout(uri) == [(1118, 0)]
    assert_same(read(uri), before)


def test_whole_fragments_deleted(uri: str) -> None:
    dataset = make_dataset(uri)
    dataset.delete("id < 250 or id > 1150")
    before = read(uri)
    run_loop(lt.Compact(uri))
    assert layout(uri) == [(before.num_rows, 0)]
    assert_same(read(uri), before)


# Indexes


FILTERS = ["id = 600", "id < 120", "id between 290 and 410", "id in (7, 8, 1199)", "id is null"]


def index_uuids(uri: str) -> set[str]:
    return {
        segment.uuid
        for index in lance.dataset(uri).describe_indices()
        for segment in index.segments
        if not index.name.startswith("__")
    }


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("remap", [None, "direct", "compact"])
def test_index_after_compaction(uri: str, stable: bool, remap: str | None) -> None:
    with_deletions(uri, enable_stable_row_ids=stable)
    lance.dataset(uri).create_scalar_index("id", "BTREE")
    before = read(uri)
    run_loop(lt.Compact(uri, target_rows_per_fragment=300, index_remap_mode=remap))
    assert_same(read(uri), before)
    check_index_answers(lance.dataset(uri), "id", FILTERS)
    statistics = lance.dataset(uri).stats.index_stats("id_idx")
    assert statistics["num_unindexed_rows"] == 0


def test_defer_index_remap(uri: str) -> None:
    with_deletions(uri)
    lance.dataset(uri).create_scalar_index("id", "BTREE")
    before, uuids = read(uri), index_uuids(uri)
    run_loop(lt.Compact(uri, target_rows_per_fragment=300, defer_index_remap=True))
    dataset = lance.dataset(uri)
    assert "__lance_frag_reuse" in {index.name for index in dataset.describe_indices()}
    assert index_uuids(uri) == uuids, "the index itself is left as it was"
    assert_same(dataset.to_table(), before)
    check_index_answers(dataset, "id", FILTERS)


def test_index_is_remapped_where_not_deferred(uri: str) -> None:
    with_deletions(uri)
    lance.dataset(uri).create_scalar_index("id", "BTREE")
    uuids = index_uuids(uri)
    run_loop(lt.Compact(uri, target_rows_per_fragment=300, defer_index_remap=False))
    assert {i.name for i in lance.dataset(uri).describe_indices()} == {"id_idx"}
    assert index_uuids(uri).isdisjoint(uuids)
    check_index_answers(lance.dataset(uri), "id", FILTERS)


@pytest.mark.parametrize("defer", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_micro_commits_keep_indexes_right(uri: str, defer: bool, batch: int) -> None:
    with_deletions(uri)
    lance.dataset(uri).create_scalar_index("id", "BTREE")
    before = read(uri)
    spec = lt.Compact(
        uri, target_rows_per_fragment=300, defer_index_remap=defer, micro_commit_batch_size=batch
    )
    outcome = run_loop(spec)
    assert outcome.metrics["commits"] == -(-outcome.metrics["tasks"] // batch) > 1
    assert_same(read(uri), before)
    check_index_answers(lance.dataset(uri), "id", FILTERS)
    found = "__lance_frag_reuse" in {i.name for i in lance.dataset(uri).describe_indices()}
    assert found == defer


@pytest.mark.parametrize("defer", [False, True])
def test_partial_commits_keep_indexes_right(uri: str, defer: bool) -> None:
    """Options hold at every commit, not at the first only."""
    with_deletions(uri)
    lance.dataset(uri).create_scalar_index("id", "BTREE")
    before = read(uri)
    job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=300, defer_index_remap=defer))
    results = finish(job)
    assert len(results) == 3
    for chosen in ([results[1]], results):
        lt.commit(job, chosen, partial=len(chosen) == 1, executor=lt.Executor())
        assert_same_rows(read(uri), before)
        check_index_answers(lance.dataset(uri), "id", FILTERS)
        found = "__lance_frag_reuse" in {i.name for i in lance.dataset(uri).describe_indices()}
        assert found == defer


def test_fragments_with_and_without_an_index_stay_apart(uri: str) -> None:
    """A task takes fragments of the same indexes only, or the index would lie about the rest."""
    dataset = make_dataset(uri, rows=600)
    dataset.create_scalar_index("id", "BTREE")
    dataset.insert(numbers(600, start=600), max_rows_per_file=100)
    run_loop(lt.Compact(uri))
    assert fragment_rows(uri) == [600, 600]
    check_index_answers(lance.dataset(uri), "id", [*FILTERS, "id = 900"])


def test_compaction_defaults_of_the_dataset(uri: str) -> None:
    """Lance keeps defaults in the dataset's config; what the spec says goes first."""
    dataset = make_dataset(uri)
    dataset.update_config({"lance.compaction.target_rows_per_fragment": "400"})
    judge = uri + ".judge"
    shutil.copytree(uri, judge)
    lance.dataset(judge).optimize.compact_files()
    run_loop(lt.Compact(uri))
    assert fragment_rows(uri) == fragment_rows(judge) == [400] * 3
