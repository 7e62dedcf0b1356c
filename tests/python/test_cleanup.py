# SPDX-License-Identifier: Apache-2.0
"""Cleanup: versions, tags, what each kind of file is, dry runs, repeated and killed ones.

Stock pylance's own cleanup of a copy is the judge of what goes in the dataset's storage.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from support import (
    assert_same,
    edit_result,
    files,
    finish,
    go,
    numbers,
    read,
    run_loop,
    start_worker,
    unchanged,
)

import lance_tasks as lt

ALL = timedelta(0)
WEEK = 7 * 24 * 3600


def make_versions(uri: str, versions: int = 6) -> None:
    """Version n holds the ids from 100 (n - 1); only odd ones are written as a whole."""
    for n in range(versions):
        if n % 2 == 0:
            lance.write_dataset(numbers(100, 100 * n), uri, mode="overwrite", max_rows_per_file=50)
        else:
            lance.dataset(uri).delete(f"id % 10 = {n}")


def age(root: Path, paths: set[str], seconds: float = WEEK + 60) -> None:
    """Make files, and the folders that they are in, as old as that."""
    then = time.time() - seconds
    for path in paths:
        place = root / path
        while place != root:
            os.utime(place, (then, then))
            place = place.parent


def versions(uri: str) -> list[int]:
    return [version["version"] for version in lance.dataset(uri).versions()]


def contents(uri: str) -> dict[int, pa.Table]:
    return {version: read(uri, version) for version in versions(uri)}


def check_contents(uri: str, before: dict[int, pa.Table], kept: list[int]) -> None:
    """The versions that are kept are whole, and there are no others."""
    assert versions(uri) == kept
    for version in kept:
        assert_same(read(uri, version), before[version])


def survey(spec: lt.Cleanup) -> dict:
    """The report of a spec's first task."""
    (task,) = lt.plan(lt.prepare(spec))
    return lt.execute(task).payload


def listed(report: dict) -> dict[str, int]:
    """A report's files in the dataset's own storage."""
    assert not report["files_truncated"]
    return {file["path"]: file["size"] for file in report["files"] if "base" not in file}


def check_removes_what_it_lists(uri: str, **options: object) -> lt.Outcome:
    """The dry run removes nothing; what it lists is what the real run removes."""
    before = files(uri)
    with unchanged(uri):
        report = survey(lt.Cleanup(uri, dry_run=True, **options))
        dry = lt.run(lt.Cleanup(uri, dry_run=True, **options))
    outcome = lt.run(lt.Cleanup(uri, **options))
    gone = {path: size for path, size in before.items() if path not in files(uri)}
    assert listed(report) == gone
    assert dry.metrics["dry_run"] == 1 and outcome.metrics["dry_run"] == 0
    assert {**dry.metrics, "dry_run": 0} == outcome.metrics
    assert outcome.metrics["files"] == len(gone)
    assert outcome.metrics["bytes"] == sum(gone.values())
    assert outcome.version == lance.dataset(uri).version
    assert outcome.rows == lance.dataset(uri).count_rows()
    return outcome


def as_pylance(uri: str, clean: Callable[[lance.LanceDataset], object], **options: object) -> None:
    """Ours leaves the same files as pylance's cleanup of a copy does."""
    twin = f"{uri}.twin"
    shutil.copytree(uri, twin)
    clean(lance.dataset(twin))
    lt.run(lt.Cleanup(uri, **options))
    assert files(uri) == files(twin)


@pytest.mark.parametrize(
    "options, theirs, kept",
    [
        ({"older_than": ALL}, {"older_than": timedelta(microseconds=1)}, [6]),
        ({"older_than": 0.000001}, {"older_than": timedelta(microseconds=1)}, [6]),
        ({"older_than": "1us"}, {"older_than": timedelta(microseconds=1)}, [6]),
        ({"older_than": "1h"}, {"older_than": timedelta(hours=1)}, [1, 2, 3, 4, 5, 6]),
        ({}, {}, [1, 2, 3, 4, 5, 6]),
        ({"retain_versions": 2}, {"retain_versions": 2}, [5, 6]),
        ({"retain_versions": 9}, {"retain_versions": 9}, [1, 2, 3, 4, 5, 6]),
        (
            {"retain_versions": 2, "older_than": "7d"},
            {"retain_versions": 2, "older_than": timedelta(days=7)},
            [1, 2, 3, 4, 5, 6],
        ),
        ({"versions": [2, 3, 6]}, {"versions": [2, 3, 6]}, [1, 4, 5, 6]),
    ],
    ids=str,
)
def test_versions(uri: str, options: dict, theirs: dict, kept: list[int]) -> None:
    make_versions(uri)
    before = contents(uri)
    as_pylance(uri, lambda twin: twin.cleanup_old_versions(**theirs), **options)
    check_contents(uri, before, kept)


def test_what_is_old_is_fixed_at_prepare(uri: str) -> None:
    """A cleanup that is executed late removes no version that has come of age since."""
    make_versions(uri, 4)
    before = contents(uri)
    job = lt.prepare(lt.Cleanup(uri, older_than=ALL))
    lance.write_dataset(numbers(10), uri, mode="overwrite")
    lance.write_dataset(numbers(20), uri, mode="overwrite")
    before |= contents(uri)
    outcome = lt.commit(job, finish(job))
    assert outcome.version == 4
    check_contents(uri, before, [4, 5, 6])


def test_age(uri: str) -> None:
    """The time of a version decides."""
    make_versions(uri)
    before = contents(uri)
    at = [version["timestamp"].timestamp() for version in lance.dataset(uri).versions()]
    job = json.loads(lt.prepare(lt.Cleanup(uri, older_than=1)).to_json())
    cut = int((at[2] + at[3]) / 2 * 1e6)
    job["job"]["state"]["cleanup"]["policy"]["before_timestamp"] = cut
    job = lt.Job.from_bytes(json.dumps(job).encode())
    lt.commit(job, finish(job))
    check_contents(uri, before, [4, 5, 6])


@pytest.mark.parametrize("how", ["young", "aged", "unverified"])
@pytest.mark.parametrize("options", [{"older_than": ALL}, {"retain_versions": 2}], ids=str)
def test_the_dry_run_lists_what_is_removed(uri: str, options: dict, how: str) -> None:
    make_versions(uri)
    before = contents(uri)
    if how == "aged":
        age(Path(uri), set(files(uri)))
    if how == "unverified":
        options = options | {"delete_unverified": True}
    outcome = check_removes_what_it_lists(uri, **options)
    kept = [6] if "older_than" in options else [5, 6]
    assert outcome.metrics["versions"] == outcome.metrics["manifest_files"] == 6 - len(kept)
    assert outcome.metrics["data_files"] == 4
    assert outcome.metrics["deletion_files"] > 0
    assert outcome.metrics["uncommitted_files"] == 0
    check_contents(uri, before, kept)


def test_the_report(uri: str) -> None:
    make_versions(uri)
    report = survey(lt.Cleanup(uri, versions=[1, 2, 4]))
    assert report["removed"] is False
    assert (report["versions"], report["version_ranges"]) == (3, [[1, 2], [4, 4]])
    kinds = {kind: count["files"] for kind, count in report["kinds"].items()}
    assert kinds["manifest"] == 3 and kinds["data"] == 2
    for kind, count in report["kinds"].items():
        of_kind = [file["size"] for file in report["files"] if file["kind"] == kind]
        assert count == {"files": len(of_kind), "bytes": sum(of_kind)}
    short = survey(lt.Cleanup(uri, versions=[1, 2, 4], max_candidate_files=3))
    assert short["files"] == report["files"][:3] and short["files_truncated"] is True
    assert short["total"] == report["total"] and short["kinds"] == report["kinds"]


def test_the_plan_goes_from_survey_to_removal(uri: str) -> None:
    make_versions(uri)
    job = lt.prepare(lt.Cleanup(uri, older_than=ALL))
    with unchanged(uri):
        (first,) = lt.plan(job)
        looked = lt.execute(first)
        (second,) = lt.plan(job, [looked])
        with pytest.raises(lt.IncompleteError):
            lt.commit(job, [looked])
    assert second.estimated_bytes == looked.payload["total"]["bytes"]
    removed = lt.execute(second)
    assert removed.payload == looked.payload | {"removed": True}
    assert lt.plan(job, [looked, removed]) == []
    # A result that says of itself that it removed nothing is not that of the removal.
    forged = edit_result(removed, payload=json.dumps(looked.payload))
    with pytest.raises(lt.VerificationError):
        lt.commit(job, [looked, forged])


def test_tags(uri: str) -> None:
    make_versions(uri)
    before = contents(uri)
    lance.dataset(uri).tags.create("release", 2)
    with unchanged(uri), pytest.raises(lt.InvalidArgumentError, match=r"release.*2"):
        lt.run(lt.Cleanup(uri, older_than=ALL))
    as_pylance(
        uri,
        lambda twin: twin.cleanup_old_versions(
            timedelta(microseconds=1), error_if_tagged_old_versions=False
        ),
        older_than=ALL,
        error_if_tagged_old_versions=False,
    )
    check_contents(uri, before, [2, 6])
    lance.dataset(uri).tags.delete("release")
    lt.run(lt.Cleanup(uri, older_than=ALL))
    check_contents(uri, before, [6])


def transactions(uri: str) -> dict[int, object]:
    dataset = lance.dataset(uri)
    return {version: dataset.read_transaction(version).uuid for version in versions(uri)}


def test_branches(uri: str) -> None:
    """The versions that branches stand on are kept, as a whole."""
    make_versions(uri, 3)
    branch = lance.dataset(uri).create_branch("dev", 1)
    expected = branch.to_table()
    make_versions(uri, 2)
    before, uuids = contents(uri), transactions(uri)
    report = check_removes_what_it_lists(uri, older_than=ALL, delete_unverified=True)
    assert report.metrics["versions"] == 3
    check_contents(uri, before, [1, 5])
    assert transactions(uri) == {version: uuids[version] for version in (1, 5)}
    assert_same(lance.dataset(uri).checkout_version(("dev", None)).to_table(), expected)
    report = survey(lt.Cleanup(uri, older_than=ALL))
    assert report["branches"] == [{"name": "dev", "version": 1, "cleaned": False}]
    lance.dataset(uri).branches.delete("dev")
    lt.run(lt.Cleanup(uri, older_than=ALL))
    check_contents(uri, before, [5])


def make_branch(uri: str) -> tuple[lance.LanceDataset, pa.Table]:
    """A branch from version 1 whose newest version needs no file of version 1; and its rows."""
    make_versions(uri, 1)
    branch = lance.dataset(uri).create_branch("dev")
    for n in range(3):
        branch = lance.write_dataset(numbers(10, n), branch, mode="overwrite")
    make_versions(uri, 1)
    return branch, numbers(10, 2)


def test_a_version_that_its_branch_needs_no_more(uri: str) -> None:
    branch, expected = make_branch(uri)
    before = contents(uri)
    lt.run(lt.Cleanup(uri, older_than=ALL))
    check_contents(uri, before, [1, 2])
    branch.cleanup_old_versions(timedelta(microseconds=1))
    as_pylance(
        uri,
        lambda twin: twin.cleanup_old_versions(timedelta(microseconds=1)),
        older_than=ALL,
    )
    check_contents(uri, before, [2])
    assert_same(lance.dataset(uri).checkout_version(("dev", None)).to_table(), expected)


def test_branches_cleaned_as_well(uri: str) -> None:
    """As the branch's own configuration says, of each 5th version or 6th."""
    branch, expected = make_branch(uri)
    off = {"lance.auto_cleanup.interval": "5", "lance.auto_cleanup.older_than": "1000d"}
    branch.update_config(off)
    config = {**off, "lance.auto_cleanup.older_than": "0s", "lance.auto_cleanup.interval": "6"}
    branch = lance.dataset(uri).checkout_version(("dev", None))
    assert branch.version == 5
    options = {"older_than": ALL, "clean_referenced_branches": True, "delete_unverified": True}
    report = survey(lt.Cleanup(uri, **options))
    assert report["branches"] == [{"name": "dev", "version": 1, "cleaned": True}]
    check_removes_what_it_lists(uri, **options)
    assert versions(uri) == [1, 2]
    branch.update_config(config)
    check_removes_what_it_lists(uri, **options)
    assert versions(uri) == [2]
    branch = lance.dataset(uri).checkout_version(("dev", None))
    assert [version["version"] for version in branch.versions()] == [6]
    assert_same(branch.to_table(), expected)


def test_a_detached_version_is_kept(uri: str) -> None:
    """Lance's own cleanup does not see them: nothing is removed, and the reason is said."""
    make_versions(uri, 1)
    dataset = lance.dataset(uri)
    fragments = lance.fragment.write_fragments(numbers(30), uri)
    detached = lance.LanceDataset.commit(
        dataset.uri, lance.LanceOperation.Append(fragments), read_version=1, detached=True
    )
    make_versions(uri, 2)
    with unchanged(uri), pytest.raises(lt.NotSupportedError, match="detached"):
        lt.run(lt.Cleanup(uri, older_than=ALL, delete_unverified=True))
    assert detached.count_rows() == 130


# Again, at once, killed


def test_twice(uri: str) -> None:
    make_versions(uri)
    before = contents(uri)
    job = lt.prepare(lt.Cleanup(uri, older_than=ALL))
    results = finish(job)
    check_contents(uri, before, [6])
    (task,) = lt.plan(job, results[:1])
    with unchanged(uri):
        again = lt.execute(task)
        assert again.payload["total"] == {"files": 0, "bytes": 0}
        first = lt.commit(job, results)
        assert first == lt.commit(job, results)
        assert lt.abort(job, results).files_removed == 0
        assert lt.run(lt.Cleanup(uri, older_than=ALL)).metrics["files"] == 0
    assert first.metrics["versions"] == 5
    assert first.operation == "cleanup" and first.complete


def test_commit_after_another_cleanup_removed_the_pinned_version(uri: str) -> None:
    make_versions(uri, 3)
    job = lt.prepare(lt.Cleanup(uri, older_than=ALL))
    results = finish(job)
    make_versions(uri, 2)
    lt.run(lt.Cleanup(uri, older_than=ALL))
    assert versions(uri) == [5]
    outcome = lt.commit(job, results)
    assert (outcome.version, outcome.metrics["versions"]) == (5, 2)


def test_two_at_once(uri: str, tmp_path: Path) -> None:
    make_versions(uri, 40)
    before = contents(uri)
    started = []
    for n in range(2):
        job = lt.prepare(lt.Cleanup(uri, older_than=ALL))
        results = [lt.execute(task) for task in lt.plan(job)]
        (task,) = lt.plan(job, results)
        (tmp_path / f"task-{n}").write_bytes(task.to_bytes())
        given = ("execute", tmp_path / f"task-{n}", tmp_path / f"result-{n}")
        started.append(start_worker(*given, wait=True))
    for answer in go(*started):
        assert "error" not in answer, answer
    check_contents(uri, before, [40])


def test_killed_in_the_middle(uri: str, tmp_path: Path) -> None:
    make_versions(uri, 30)
    before = contents(uri)
    job = lt.prepare(lt.Cleanup(uri, older_than=ALL, delete_rate_limit=30))
    results = [lt.execute(task) for task in lt.plan(job)]
    (task,) = lt.plan(job, results)
    (tmp_path / "task").write_bytes(task.to_bytes())
    there = len(files(uri))
    process = start_worker("execute", tmp_path / "task", tmp_path / "result")
    while len(files(uri)) > there - 10:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "result").exists() and len(files(uri)) > 20
    assert_same(read(uri), before[30])
    job = lt.prepare(lt.Cleanup(uri, older_than=ALL))
    lt.commit(job, finish(job))
    check_contents(uri, before, [30])
    shutil.copytree(uri, f"{uri}.twin")
    lance.dataset(f"{uri}.twin").cleanup_old_versions(timedelta(microseconds=1))
    assert files(uri) == files(f"{uri}.twin")


def test_a_dataset_made_anew(uri: str) -> None:
    """An old job's versions are not those of the dataset that is there now."""
    make_versions(uri, 6)
    job = lt.prepare(lt.Cleanup(uri, retain_versions=1))
    (task,) = lt.plan(job)
    shutil.rmtree(uri)
    make_versions(uri, 3)
    with unchanged(uri), pytest.raises(lt.VersionGoneError):
        lt.execute(task)
    shutil.rmtree(uri)
    make_versions(uri, 6)
    with unchanged(uri), pytest.raises(lt.VersionGoneError, match="replaced"):
        lt.execute(task)


# Bad input


@pytest.mark.parametrize(
    "options, words",
    [
        ({"older_than": -1}, ["older_than", "-1"]),
        ({"older_than": timedelta(days=-1)}, ["older_than"]),
        ({"older_than": "soon"}, ["older_than", "soon", "7d"]),
        ({"older_than": 1e40}, ["older_than"]),
        ({"older_than": 1e13}, ["older_than"]),
        ({"retain_versions": 0}, ["retain_versions"]),
        ({"retain_versions": -1}, ["retain_versions"]),
        ({"versions": []}, ["versions"]),
        ({"delete_rate_limit": 0}, ["delete_rate_limit"]),
        ({"delete_concurrency": 0}, ["delete_concurrency"]),
        ({"delete_concurrency": 2**63}, ["delete_concurrency"]),
    ],
    ids=str,
)
def test_bad_options(uri: str, options: dict, words: list[str]) -> None:
    make_versions(uri, 2)
    with unchanged(uri), pytest.raises(lt.InvalidArgumentError) as caught:
        lt.run(lt.Cleanup(uri, **options))
    assert all(word in str(caught.value) for word in words), caught.value


def test_bad_input(uri: str) -> None:
    with pytest.raises(lt.NotFoundError, match=r"dataset\.lance"):
        lt.prepare(lt.Cleanup(uri))
    make_versions(uri, 2)
    with pytest.raises(lt.InvalidArgumentError, match="input stream"):
        lt.prepare(lt.Cleanup(uri), schema=numbers(0).schema)
    with pytest.raises(lt.InvalidArgumentError, match="rows"):
        lt.run(lt.Cleanup(uri), data=numbers(1))
    with pytest.raises(lt.InvalidArgumentError, match="speed"):
        lt.prepare({"operation": "cleanup", "uri": uri, "speed": 9})
    job = lt.prepare(lt.Cleanup(uri, older_than=ALL))
    (task,) = lt.plan(job)
    with pytest.raises(lt.InvalidArgumentError, match="another client"):
        lt.adopt(job, task, {})
    with pytest.raises(lt.InvalidArgumentError, match="partial"):
        lt.commit(job, [], partial=True)


def test_mapping_and_loop(uri: str) -> None:
    make_versions(uri, 3)
    outcome = run_loop({"operation": "cleanup", "uri": uri, "older_than": "0s"})
    assert outcome.metrics["versions"] == 2
