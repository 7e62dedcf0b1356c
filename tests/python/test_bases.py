# SPDX-License-Identifier: Apache-2.0
"""Bases: added to a dataset that is there, and what a cleanup removes of them and what not."""

import json
import shutil
import time
from datetime import timedelta
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from cli_support import Cli
from support import (
    assert_same,
    execute_partitions,
    files,
    go,
    make_dataset,
    numbers,
    read,
    spool,
    start_worker,
    unchanged,
)
from test_cleanup import ALL, WEEK, age, listed, survey
from test_cleanup_kinds import blob_table, check_blobs

import lance_tasks as lt


def bases(uri: str) -> dict[int, tuple[str | None, str, bool]]:
    there = lance.dataset(uri).base_paths().values()
    return {base.id: (base.name, base.path, base.is_dataset_root) for base in there}


def base(folder: Path, n: int, name: str | None = "", **options: object) -> lt.Base:
    name = f"name-{n}" if name == "" else name
    return lt.Base(n, folder / f"base-{n}", name=name, **options)


def append_to(uri: str, target: str, table: pa.Table) -> None:
    job = lt.prepare(lt.Write(uri, mode="append", target_bases=[target]), schema=table.schema)
    lt.commit(job, execute_partitions(job, {"0": table}))


def test_add_bases_before_an_append(uri: str, tmp_path: Path) -> None:
    make_dataset(uri)
    root, plain = base(tmp_path, 1, is_dataset_root=True), base(tmp_path, 7, None)
    outcome = lt.run(lt.AddBases(uri, [root, plain]))
    assert (outcome.version, outcome.metrics, outcome.rows) == (2, {"bases_added": 2}, 1200)
    expected = {
        1: ("name-1", str(root.path), True),
        7: (None, str(plain.path), False),
    }
    assert bases(uri) == expected
    append_to(uri, "name-1", numbers(50, 2000))
    append_to(uri, str(plain.path), numbers(50, 3000))
    assert len(list((tmp_path / "base-1" / "data").glob("*.lance"))) == 1
    assert len(list((tmp_path / "base-7").glob("*.lance"))) == 1
    lance.write_dataset(numbers(50, 4000), uri, mode="append", target_bases=["name-1"])
    lt.run(lt.Compact(uri, target_rows_per_fragment=500))
    assert bases(uri) == expected
    assert sorted(read(uri)["id"].to_pylist()) == sorted(
        [*range(1200), *range(2000, 2050), *range(3000, 3050), *range(4000, 4050)]
    )
    lt.run(lt.AddBases(uri, base(tmp_path, 8)))
    assert bases(uri) == expected | {8: ("name-8", str(tmp_path / "base-8"), False)}


def test_the_same_base_again(uri: str, tmp_path: Path) -> None:
    make_dataset(uri)
    lt.run(lt.AddBases(uri, base(tmp_path, 1)))
    with unchanged(uri):
        outcome = lt.run(lt.AddBases(uri, base(tmp_path, 1)))
        assert (outcome.version, outcome.metrics) == (2, {})
        lt.run(lt.AddBases(uri, [{"id": 1, "name": "name-1", "path": f"{tmp_path}/base-1/"}]))
    outcome = lt.run(lt.AddBases(uri, [base(tmp_path, 1), base(tmp_path, 2)]))
    assert (outcome.version, outcome.metrics) == (3, {"bases_added": 1})
    assert bases(uri).keys() == {1, 2}


@pytest.mark.parametrize(
    "new, words",
    [
        ([], ["bases", "empty"]),
        ([{"id": 0, "path": "/x"}], ["id 0", "/x"]),
        ([{"id": 2, "path": ""}], ["base 2", "empty"]),
        ([{"id": 2, "path": "/x", "name": ""}], ["name", "base 2", "empty"]),
        ([{"id": 1, "path": "/x", "name": "x"}], ["id 1", "/x", "name-1"]),
        ([{"id": 2, "path": "/x", "name": "name-1"}], ["name", "base 2", "base 1"]),
        ([{"id": 2, "path": "{}/base-1", "name": "x"}], ["path", "base 2", "base 1"]),
        ([{"id": 1, "path": "{}/base-1", "name": "x"}], ["id 1"]),
        ([{"id": 1, "path": "{}/base-1", "name": "name-1", "is_dataset_root": True}], ["id 1"]),
        ([{"id": 2, "path": "/x"}, {"id": 3, "path": "/y"}], ["base 3", "needs a name"]),
        ([{"id": 2, "path": "/x", "name": "x"}, {"id": 2, "path": "/y", "name": "y"}], ["id 2"]),
        ([{"id": 2, "path": "s3://a:secret@b/x"}], ["credentials"]),
        ([{"id": -1, "path": "/x"}], ["id"]),
        ([{"path": "/x"}], ["id"]),
    ],
    ids=str,
)
def test_bases_that_do_not_go(uri: str, tmp_path: Path, new: list[dict], words: list[str]) -> None:
    make_dataset(uri)
    lt.run(lt.AddBases(uri, base(tmp_path, 1)))
    new = [b | {"path": b["path"].replace("{}", str(tmp_path))} for b in new]
    with unchanged(uri), pytest.raises(lt.InvalidArgumentError) as caught:
        lt.run(lt.AddBases(uri, new))
    assert all(word in str(caught.value) for word in words), caught.value
    assert "secret" not in str(caught.value)


def test_bad_input(uri: str, tmp_path: Path) -> None:
    with pytest.raises(lt.NotFoundError, match=r"dataset\.lance"):
        lt.prepare(lt.AddBases(uri, base(tmp_path, 1)))
    make_dataset(uri)
    with pytest.raises(lt.InvalidArgumentError, match="input stream"):
        lt.prepare(lt.AddBases(uri, base(tmp_path, 1)), schema=numbers(0).schema)


def test_exactly_once(uri: str, tmp_path: Path) -> None:
    make_dataset(uri)
    spec = lt.AddBases(uri, base(tmp_path, 1), transaction_properties={"who": "me"})
    job = lt.prepare(spec)
    assert lt.plan(job) == []
    lance.write_dataset(numbers(10), uri, mode="append")
    lance.dataset(uri).delete("id = 5")
    first = lt.commit(job, [])
    lance.write_dataset(numbers(10), uri, mode="append")
    again = lt.commit(job, [])
    assert (first.version, again.version, again.already_committed) == (4, 4, True)
    assert lance.dataset(uri).version == 5 and bases(uri).keys() == {1}
    assert lance.dataset(uri).read_transaction(4).transaction_properties["who"] == "me"
    assert lt.abort(job, []).files_removed == 0


def test_an_overwrite_in_between(uri: str, tmp_path: Path) -> None:
    make_dataset(uri)
    job = lt.prepare(lt.AddBases(uri, base(tmp_path, 1)))
    lance.write_dataset(numbers(10), uri, mode="overwrite")
    assert lt.commit(job, []).version == 3
    assert bases(uri).keys() == {1}
    assert_same(read(uri), numbers(10))


def test_committed_by_two_processes(uri: str, tmp_path: Path) -> None:
    make_dataset(uri)
    job = lt.prepare(lt.AddBases(uri, base(tmp_path, 1)))
    given = spool(tmp_path / "spool", job, [])
    answers = go(*[start_worker("commit", *given, wait=True) for _ in range(3)])
    assert {answer.get("version") for answer in answers} == {2}, answers
    assert sorted(answer["already_committed"] for answer in answers) == [False, True, True]
    assert lance.dataset(uri).version == 2


def test_jobs_side_by_side(uri: str, tmp_path: Path) -> None:
    make_dataset(uri)
    first, same, other, clash = (
        lt.prepare(lt.AddBases(uri, base))
        for base in (
            base(tmp_path, 1),
            base(tmp_path, 1),
            base(tmp_path, 2),
            lt.Base(1, tmp_path / "elsewhere", name="elsewhere"),
        )
    )
    lt.commit(first, [])
    assert lt.commit(same, []).metrics == {}
    assert lance.dataset(uri).version == 2
    assert lt.commit(other, []).version == 3
    with pytest.raises(lt.ConflictError, match=r"id 1.*elsewhere"):
        lt.commit(clash, [])
    assert bases(uri).keys() == {1, 2}


def test_external_blobs_in_a_new_base(uri: str, tmp_path: Path) -> None:
    """What a base is for: blobs that lie there may be referred to from then on."""
    lance.write_dataset(blob_table(0), uri, data_storage_version="2.2")
    media = base(tmp_path, 3)
    Path(media.path).mkdir()
    photo = Path(media.path) / "photo.jpg"
    photo.write_bytes(b"jpg" * 100)
    external = pa.Table.from_arrays(
        [pa.array([100]), lance.blob_array([photo.as_uri()])], schema=blob_table(0).schema
    )
    with pytest.raises(OSError, match="base"):
        lance.write_dataset(external, uri, mode="append")
    lt.run(lt.AddBases(uri, media))
    lance.write_dataset(external, uri, mode="append")
    dataset = lance.dataset(uri)
    at = dataset.count_rows() - 1
    assert dataset.take_blobs("blob", indices=[at])[0].read() == b"jpg" * 100
    # No cleanup removes them: not when no version is left that refers to them, nor when it may take
    # what belongs to no version.
    lance.write_dataset(blob_table(0), uri, mode="overwrite", data_storage_version="2.2")
    with unchanged(media.path):
        lt.run(lt.Cleanup(uri, older_than=ALL, delete_unverified=True))
    check_blobs(uri, 0)


def test_command_line(tmp_path: Path) -> None:
    cli, uri = Cli(tmp_path), str(tmp_path / "d.lance")
    make_dataset(uri)
    spec = [{"id": 1, "name": "b", "path": "here/b"}]
    cli("add-bases", "d.lance", "--bases", json.dumps(spec))
    assert bases(uri) == {1: ("b", str(tmp_path / "here" / "b"), False)}
    spec[0] |= {"id": 2, "name": "c", "path": "here/c"}
    cli.prepare(operation="add_bases", uri="d.lance", bases=spec)
    cli("run", "spool")
    assert cli.json("commit", "spool")["version"] == 3
    assert cli.json("commit", "spool")["already_committed"] is True
    assert bases(uri)[2] == ("c", str(tmp_path / "here" / "c"), False)


# Cleanup


def make_versions_in_bases(uri: str, folder: Path) -> None:
    """Versions over two bases: 2 appends to each, then 4 and 5 delete and rewrite all of it."""
    make_dataset(uri, rows=100)
    plain, root = base(folder, 1), base(folder, 2, is_dataset_root=True)
    lt.run(lt.AddBases(uri, [plain, root]))
    append_to(uri, "name-1", numbers(100, 1000))
    append_to(uri, "name-2", numbers(100, 2000))


def in_bases(folder: Path) -> dict[str, int]:
    return {
        f"{base}/{path}": size
        for base in ("base-1", "base-2")
        for path, size in files(folder / base).items()
    }


def foreign(folder: Path) -> None:
    """What others have put into the bases: another dataset's files, a user's, a job's under way."""
    for path in (
        "base-1/photo.jpg",
        f"base-1/{'01' * 12}aabbccddeeff00112233445566.lance",
        f"base-1/{'01' * 12}{'0123456789abcdef' * 2}.lance",
        "base-1/photos/1.blob",
        "base-2/data/x.lance",
        f"base-2/data/x/{'01' * 16}.blob",
        "base-2/_indices/x/index.idx",
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"foreign")
        age(folder, {path}, 2 * WEEK)


def test_files_of_removed_versions_go(uri: str, tmp_path: Path) -> None:
    make_versions_in_bases(uri, tmp_path)
    gone = set(in_bases(tmp_path))
    assert len(gone) == 2
    foreign(tmp_path)
    expected = read(uri)
    with unchanged(tmp_path / "base-1", tmp_path / "base-2"):
        lt.run(lt.Cleanup(uri, older_than=ALL, delete_unverified=True))
        assert_same(read(uri), expected)
        lt.run(lt.Compact(uri))
        tagged = lance.dataset(uri).version - 1
        lance.dataset(uri).tags.create("before", tagged)
        lt.run(lt.Cleanup(uri, older_than=ALL, error_if_tagged_old_versions=False))
    assert_same(read(uri, tagged), expected)
    lance.dataset(uri).tags.delete("before")
    before = in_bases(tmp_path)
    with unchanged(uri, tmp_path / "base-1", tmp_path / "base-2"):
        report = survey(lt.Cleanup(uri, older_than=ALL))
    places = {(file["base"], file["path"]) for file in report["files"] if "base" in file}
    assert {str(Path(*place).relative_to(tmp_path)) for place in places} == gone
    outcome = lt.run(lt.Cleanup(uri, older_than=ALL, delete_unverified=True))
    after = in_bases(tmp_path)
    assert before.keys() - after.keys() == gone
    assert outcome.metrics["files"] == report["total"]["files"]
    assert outcome.metrics["bytes"] == sum(listed(report).values()) + sum(before[p] for p in gone)
    assert_same(read(uri).sort_by("id"), expected.sort_by("id"))
    assert lt.run(lt.Cleanup(uri, older_than=ALL)).metrics["files"] == 0


@pytest.mark.parametrize("is_dataset_root", [False, True])
def test_blobs_in_bases_go_with_their_files(
    uri: str, tmp_path: Path, is_dataset_root: bool
) -> None:
    lance.write_dataset(blob_table(0), uri, data_storage_version="2.2")
    there = base(tmp_path, 1, is_dataset_root=is_dataset_root)
    lt.run(lt.AddBases(uri, there))
    options = {"target_bases": ["name-1"], "data_storage_version": "2.2"}
    lance.write_dataset(blob_table(10), uri, mode="append", **options)
    kept = Path(there.path, "data/kept" if is_dataset_root else "kept")
    first = set(files(there.path))
    assert sum(path.endswith(".blob") for path in first) == 2
    lance.dataset(uri).delete("id >= 10")
    lance.write_dataset(blob_table(20), uri, mode="append", **options)
    second = set(files(there.path)) - first
    # Beside the sidecars, and not one of them.
    stem = next(path for path in first if path.endswith(".lance")).removesuffix(".lance")
    kept = Path(there.path, stem, "photo.blob")
    kept.write_bytes(b"a user's")
    outcome = lt.run(lt.Cleanup(uri, older_than=ALL))
    assert outcome.metrics["blob_sidecar_files"] == 2
    assert set(files(there.path)) == second | {f"{stem}/photo.blob"}
    dataset = lance.dataset(uri)
    assert dataset.to_table(columns=["id"])["id"].to_pylist() == [*range(6), *range(20, 26)]
    blobs = dataset.take_blobs("blob", indices=[7, 9])
    assert [blob.size() for blob in blobs] == [100_000, 5_000_000]


def test_a_branch_keeps_files_in_bases(uri: str, tmp_path: Path) -> None:
    make_versions_in_bases(uri, tmp_path)
    expected = read(uri)
    lance.dataset(uri).create_branch("dev")
    lance.write_dataset(numbers(10), uri, mode="overwrite")
    with unchanged(tmp_path / "base-1", tmp_path / "base-2"):
        lt.run(lt.Cleanup(uri, older_than=ALL))
    assert_same(lance.dataset(uri).checkout_version(("dev", None)).to_table(), expected)


def test_a_clone_removes_nothing_of_its_source(uri: str, tmp_path: Path) -> None:
    make_versions_in_bases(uri, tmp_path)
    expected = read(uri)
    clone = str(tmp_path / "clone.lance")
    lance.dataset(uri).shallow_clone(clone, lance.dataset(uri).version)
    lance.write_dataset(numbers(10), clone, mode="overwrite")
    with unchanged(uri, tmp_path / "base-1", tmp_path / "base-2"):
        report = survey(lt.Cleanup(clone, older_than=ALL))
        lt.run(lt.Cleanup(clone, older_than=ALL, delete_unverified=True))
    skipped = {base["path"]: base["reason"] for base in report["skipped_bases"]}
    assert skipped.keys() == {uri, str(tmp_path / "base-1"), str(tmp_path / "base-2")}
    assert all("shallow clone" in reason for reason in skipped.values())
    assert_same(read(uri), expected)
    assert [version["version"] for version in lance.dataset(clone).versions()] == [
        lance.dataset(clone).version
    ]


def test_a_base_that_is_another_dataset(uri: str, tmp_path: Path) -> None:
    """Its files may be in the versions of both."""
    other = str(tmp_path / "other.lance")
    make_dataset(other, rows=100)
    make_dataset(uri, rows=100)
    lt.run(lt.AddBases(uri, lt.Base(1, other, name="other", is_dataset_root=True)))
    append_to(uri, "other", numbers(100, 1000))
    lance.write_dataset(numbers(10), uri, mode="overwrite")
    with unchanged(other):
        report = survey(lt.Cleanup(uri, older_than=ALL))
        lt.run(lt.Cleanup(uri, older_than=ALL))
    assert "another dataset" in report["skipped_bases"][0]["reason"]


def test_a_base_that_is_gone(uri: str, tmp_path: Path) -> None:
    make_versions_in_bases(uri, tmp_path)
    lance.write_dataset(numbers(10), uri, mode="overwrite")
    shutil.rmtree(tmp_path / "base-1")
    outcome = lt.run(lt.Cleanup(uri, older_than=ALL))
    assert outcome.metrics["versions"] == 4
    assert in_bases(tmp_path) == {}
    assert_same(read(uri), numbers(10))


def test_killed_between_bases_and_versions(uri: str, tmp_path: Path) -> None:
    """Files in bases go before the versions that tell of them, so that a second try finds them."""
    make_versions_in_bases(uri, tmp_path)
    table = numbers(100)
    for n in range(20):
        append_to(uri, "name-1", numbers(10, 100 * n))
    lance.write_dataset(table, uri, mode="overwrite")
    before = in_bases(tmp_path)
    job = lt.prepare(lt.Cleanup(uri, older_than=ALL, delete_rate_limit=5))
    results = [lt.execute(task) for task in lt.plan(job)]
    (task,) = lt.plan(job, results)
    (tmp_path / "task").write_bytes(task.to_bytes())
    process = start_worker("execute", tmp_path / "task", tmp_path / "result")
    while len(in_bases(tmp_path)) > len(before) - 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert 0 < len(in_bases(tmp_path)) < len(before)
    lt.run(lt.Cleanup(uri, older_than=timedelta(0)))
    assert in_bases(tmp_path) == {}
    assert_same(read(uri), table)
