# SPDX-License-Identifier: Apache-2.0
"""Bases in another account: each account's credentials go to that account, and nowhere else."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lance
import pyarrow as pa
import pytest
import stores
from cli_support import Cli
from stores import IMPATIENT, Bucket, Proxy, Rule, Store
from support import assert_same, assert_same_rows, numbers
from test_credentials import find_secrets, refusal

import lance_tasks as lt

OURS = ("AKIAOURSOURSOURS0001", "ours-not-for-logs")
THEIRS = ("AKIATHEIRSTHEIRS0002", "theirs-not-for-logs")


@dataclass
class Account:
    """A bucket at an address of its own, and the only credentials that open it."""

    bucket: Bucket
    options: dict[str, str]
    proxy: Proxy
    refused: list[Rule]

    def uri(self, path: str = "d.lance") -> str:
        return self.bucket.uri(path)

    @property
    def refusals(self) -> int:
        return sum(rule.hits for rule in self.refused)


@pytest.fixture(scope="module")
def s3() -> Iterator[Store]:
    with stores.s3() as store:
        yield store


def account(store: Store, key: tuple[str, str]) -> Iterator[Account]:
    bucket = store.bucket()
    with Proxy(store) as proxy:
        other = {
            "when": lambda headers: key[0] not in headers["Authorization"],
            "body": refusal("InvalidAccessKeyId"),
        }
        refused = [
            proxy.add("fail", status=403, **other),
            proxy.add("fail", status=404, path=rf"^/(?!{bucket.name}[/?])"),
        ]
        options = proxy.options | IMPATIENT
        options |= {"aws_access_key_id": key[0], "aws_secret_access_key": key[1]}
        yield Account(bucket, options, proxy, refused)


@pytest.fixture
def ours(s3: Store) -> Iterator[Account]:
    yield from account(s3, OURS)


@pytest.fixture
def theirs(s3: Store) -> Iterator[Account]:
    yield from account(s3, THEIRS)


@pytest.fixture(params=[True, False], ids=["root", "folder"])
def base(request: pytest.FixtureRequest, theirs: Account) -> dict[str, object]:
    """A base in the other account, as a spec has it."""
    path = theirs.uri("their base")
    return {"id": 3, "name": "theirs", "path": path, "is_dataset_root": request.param}


def both(ours: Account, theirs: Account, path: str = "their base") -> dict[str, object]:
    """What a call is given."""
    return {
        "storage_options": ours.options,
        "base_store_params": {theirs.uri(path): theirs.options},
    }


def opened(ours: Account, theirs: Account, **options: object) -> lance.LanceDataset:
    """The dataset as stock pylance opens it."""
    return lance.dataset(ours.uri(), **both(ours, theirs), **options)


def data_files(account: Account) -> list[str]:
    return [path for path in account.bucket.files() if path.endswith(".lance")]


def test_every_verb(ours: Account, theirs: Account, base: dict[str, object]) -> None:
    o = both(ours, theirs)
    spec = lt.Write(ours.uri(), initial_bases=[base], target_bases=["theirs"], max_rows_per_file=10)
    job = lt.prepare(spec, numbers(0).schema, **o)
    results = [lt.execute(job.task(str(part)), numbers(20, 20 * part), **o) for part in range(3)]
    assert lt.plan(job, results, **o) == []
    assert {file["base"] for r in results for file in r.to_dict()["files"]} == {3}
    assert lt.commit(job, results, **o).rows == 60
    assert lt.commit(job, results, **o).already_committed
    assert lt.abort(job, results, **o).files_removed == 0
    assert len(data_files(theirs)) == 6 and data_files(ours) == []
    assert_same(opened(ours, theirs).to_table(), numbers(60))

    append = lt.Write(ours.uri(), mode="append", target_all_bases=True, max_rows_per_file=10)
    lt.run(append, data=numbers(40, 60), **o)
    assert (len(data_files(theirs)), len(data_files(ours))) == (8, 2)
    assert_same_rows(opened(ours, theirs).to_table(), numbers(100))

    opened(ours, theirs).delete("id % 10 = 3")
    index = lt.CreateIndex(ours.uri(), column="id", index_type="BTREE", num_segments=2)
    job = lt.prepare(index, **o)
    results = list(lt.execute_all(lt.plan(job, **o), **o))
    assert [r.error for r in results] == [None, None]
    lt.commit(job, results, **o)
    found = opened(ours, theirs).scanner(filter="id = 47", columns=["id"])
    assert "ScalarIndexQuery" in found.explain_plan() and found.to_table()["id"][0].as_py() == 47

    lt.run(lt.Compact(ours.uri(), target_rows_per_fragment=1000), **o)
    left = [row for row in numbers(100).to_pylist() if row["id"] % 10 != 3]
    expected = pa.Table.from_pylist(left, numbers(0).schema)
    assert_same_rows(opened(ours, theirs).to_table(), expected)
    lt.run(lt.OptimizeIndex(ours.uri()), **o)
    assert ours.refusals == theirs.refusals == 0


def test_what_is_not_committed_is_removed(
    ours: Account, theirs: Account, base: dict[str, object]
) -> None:
    """By a failing attempt, and by abort, with results and without."""
    o = both(ours, theirs)
    spec = lt.Write(ours.uri(), initial_bases=[base], target_bases=["theirs"], max_rows_per_file=10)
    job = lt.prepare(spec, numbers(0).schema, **o)

    def breaks() -> Iterator[pa.RecordBatch]:
        yield from numbers(50).to_batches()
        raise RuntimeError("no more")

    reader = pa.RecordBatchReader.from_batches(numbers(0).schema, breaks())
    with pytest.raises(lt.Error, match="no more"):
        lt.execute(job.task("0"), reader, **o)
    assert data_files(theirs) == []
    results = [lt.execute(job.task(part), numbers(20), **o) for part in "ab"]
    assert len(data_files(theirs)) == 4
    assert lt.abort(job, results[:1], **o).files_removed == 4
    assert theirs.bucket.files() == ours.bucket.files() == {}
    assert ours.refusals == theirs.refusals == 0


def test_a_source_with_bases(ours: Account, theirs: Account, base: dict, tmp_path: Path) -> None:
    """A dataset over two accounts is read into a local one, which has no bases."""
    o = both(ours, theirs)
    lance.write_dataset(
        numbers(50),
        ours.uri(),
        initial_bases=[lance.DatasetBasePath(base["path"], "theirs", base["is_dataset_root"])],
        target_bases=["theirs"],
        **o,
    )
    target = str(tmp_path / "local.lance")
    source = {"uri": ours.uri(), "format": "lance"}
    lt.run(lt.Write(target, sources=[source], max_rows_per_file=20), **o)
    assert_same(lance.dataset(target).to_table(), numbers(50))
    assert ours.refusals == theirs.refusals == 0


def test_options_by_the_id_of_a_base(ours: Account, theirs: Account, base: dict) -> None:
    """Lance's own form lies over the other options."""
    options = ours.options | {f"base_3.{key}": value for key, value in theirs.options.items()}
    spec = lt.Write(ours.uri(), initial_bases=[base], target_bases=["theirs"])
    lt.run(spec, data=numbers(20), storage_options=options)
    job = lt.prepare(
        lt.Write(ours.uri(), mode="append", target_bases=["theirs"]),
        numbers(0).schema,
        storage_options=options,
    )
    results = [lt.execute(job.task("0"), numbers(9), storage_options=options)]
    assert len(data_files(theirs)) == 2
    lt.abort(job, results, storage_options=options)
    assert len(data_files(theirs)) == 1 and data_files(ours) == []
    read = lance.dataset(ours.uri(), storage_options=options).to_table()
    assert_same(read, numbers(20))
    assert ours.refusals == theirs.refusals == 0


def test_a_base_that_was_registered_since(ours: Account, theirs: Account, base: dict) -> None:
    """The job's own version does not have it, and its options are the base's all the same."""
    lance.write_dataset(numbers(20), ours.uri(), storage_options=ours.options)
    job = lt.prepare(
        lt.Write(ours.uri(), mode="append"), numbers(0).schema, storage_options=ours.options
    )
    added = lance.DatasetBasePath(base["path"], "theirs", base["is_dataset_root"])
    lance.dataset(ours.uri(), storage_options=ours.options).add_bases([added])
    o = both(ours, theirs)
    results = [lt.execute(job.task("0"), numbers(20, 20), **o)]
    lt.commit(job, results, **o)
    append = lt.Write(ours.uri(), mode="append", target_bases=["theirs"])
    lt.run(append, data=numbers(20, 40), **o)
    assert (len(data_files(ours)), len(data_files(theirs))) == (2, 1)
    assert_same(opened(ours, theirs).to_table(), numbers(60))


def test_command_line(ours: Account, theirs: Account, base: dict, tmp_path: Path) -> None:
    flat = {f"base:{theirs.uri('their base')}:{k}": v for k, v in theirs.options.items()}
    (tmp_path / "options.json").write_text(json.dumps(ours.options | flat))
    spec = {
        "operation": "write",
        "uri": ours.uri(),
        "sources": [ours.bucket.put_parquet("in.parquet", numbers(40))],
        "initial_bases": [base],
        "target_bases": ["theirs"],
        "max_rows_per_file": 10,
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    cli = Cli(tmp_path)
    options = ["--storage-options", "options.json"]
    spool = ours.uri("spool")
    for verb in (["prepare", "spec.json", "--spool", spool], ["run", spool], ["commit", spool]):
        cli(*verb, *options)
    assert len(data_files(theirs)) == 4
    assert_same(opened(ours, theirs).to_table(), numbers(40))
    opened(ours, theirs).delete("id = 7")
    shape = cli.json("inspect", ours.uri(), *options)
    assert shape["rows"] == 39 and shape["bases"]
    kept = [ours.bucket.read(key) for key in ours.bucket.files()]
    kept += [theirs.bucket.read(key) for key in theirs.bucket.files()]
    assert find_secrets(kept, [*OURS, *THEIRS]) == set()
    assert ours.refusals == theirs.refusals == 0


# Blobs

SIZES = {"inline_size_threshold": 64, "dedicated_size_threshold": 1024}


def films(values: list[lt.Blob | bytes | str | None], start: int = 0) -> pa.Table:
    schema = pa.schema([("id", pa.int64()), lt.blob_field("film", **SIZES)])
    ids = pa.array(range(start, start + len(values)), pa.int64())
    return pa.table([ids, lt.blob_array(values)], schema)


def read_films(dataset: lance.LanceDataset, o: dict[str, object]) -> list[bytes | None]:
    """By stock pylance and by a task, which must agree."""
    rows = list(range(dataset.count_rows()))
    theirs = [None if d is None else bytes(d) for _, d in dataset.read_blobs("film", indices=rows)]
    ours = pa.table(lt.read(lt.TakeBlobs(dataset.uri, column="film", indices=rows), **o))
    assert ours["film"].to_pylist() == theirs
    return theirs


def test_blobs_in_a_base(ours: Account, theirs: Account, base: dict) -> None:
    """Payloads of every size lie beside their data files, wherever these are."""
    o = both(ours, theirs)
    contents = [b"a" * 40, b"b" * 700, None, b"c" * 3000, b"", b"d" * 800]
    spec = lt.Write(ours.uri(), initial_bases=[base], target_bases=["theirs"], max_rows_per_file=3)
    lt.run(spec, data=films(contents), **o)
    payloads = [path for path in theirs.bucket.files() if path.endswith(".blob")]
    assert len(payloads) >= 3 and data_files(ours) == []
    assert read_films(opened(ours, theirs), o) == contents
    append = lt.Write(ours.uri(), mode="append", target_bases=["theirs"])
    job = lt.prepare(append, films([]).schema, **o)
    results = [lt.execute(job.task("0"), films([b"e" * 2000, b"f" * 300], 6), **o)]
    before = theirs.bucket.files()
    lt.abort(job, results, **o)
    gone = before.keys() - theirs.bucket.files().keys()
    listed = {file["path"] for result in results for file in result.to_dict()["files"]}
    assert gone == {f"their base/{path}" for path in listed} and len(gone) >= 2
    lt.run(lt.Compact(ours.uri(), target_rows_per_fragment=100), **o)
    assert read_films(opened(ours, theirs), o) == contents
    assert ours.refusals == theirs.refusals == 0


@pytest.mark.parametrize("mode", ["reference", "ingest"])
def test_external_blobs_in_a_base(ours: Account, theirs: Account, mode: str) -> None:
    """Objects of the other account are referred to, or copied, by that account's credentials."""
    o = both(ours, theirs)
    base = {"id": 3, "name": "theirs", "path": theirs.uri("their base"), "is_dataset_root": False}
    theirs.bucket.put("their base/a.bin", b"a" * 100)
    theirs.bucket.put("their base/folder/b.bin", b"b" * 5000)
    place = theirs.uri("their base")
    values = [f"{place}/a.bin", lt.Blob(uri=f"{place}/folder/b.bin", position=10, size=20), None]
    spec = lt.Write(ours.uri(), initial_bases=[base], external_blob_mode=mode)
    lt.run(spec, data=films(values), **o)
    assert read_films(opened(ours, theirs), o) == [b"a" * 100, b"b" * 20, None]
    for path in ("a.bin", "folder/b.bin"):
        theirs.bucket.store.fs.delete_file(f"{theirs.bucket.name}/their base/{path}")
    if mode == "ingest":
        assert read_films(opened(ours, theirs), o) == [b"a" * 100, b"b" * 20, None]
    assert ours.refusals == theirs.refusals == 0


# Other operations


def test_a_base_is_added_with_its_options(ours: Account, theirs: Account, base: dict) -> None:
    """Whoever adds a base may hand in its options with all calls."""
    o = both(ours, theirs)
    lt.run(lt.Write(ours.uri()), data=numbers(20), storage_options=ours.options)
    lt.run(lt.AddBases(ours.uri(), [base]), **o)
    lt.run(lt.Write(ours.uri(), mode="append", target_bases=["theirs"]), data=numbers(9, 20), **o)
    assert_same(opened(ours, theirs).to_table(), numbers(29))
    assert ours.refusals == theirs.refusals == 0


@pytest.mark.parametrize("by_id", [False, True], ids=["by path", "by id"])
def test_cleanup_in_a_base(ours: Account, theirs: Account, base: dict, by_id: bool) -> None:
    """What removed versions had there goes, blobs too, by the credentials of that account."""
    o = both(ours, theirs)
    if by_id:
        scoped = {f"base_3.{key}": value for key, value in theirs.options.items()}
        o = {"storage_options": ours.options | scoped}
    contents = [b"a" * 40, b"b" * 700, b"c" * 3000]
    spec = lt.Write(ours.uri(), initial_bases=[base], target_bases=["theirs"])
    lt.run(spec, data=films(contents), **o)
    lt.run(lt.Write(ours.uri(), mode="overwrite", target_bases=["theirs"]), data=films([b"d"]), **o)
    assert len(data_files(theirs)) == 2
    lt.run(lt.Cleanup(ours.uri(), retain_versions=1), **o)
    assert len(data_files(theirs)) == 1
    assert [path for path in theirs.bucket.files() if path.endswith(".blob")] == []
    assert opened(ours, theirs).count_rows() == 1
    assert ours.refusals == theirs.refusals == 0


# What is wrong


def raised(results: Iterable[lt.Result]) -> None:
    """The error of the only result."""
    (result,) = results
    raise result.error


def test_options_of_no_base(ours: Account, theirs: Account, base: dict) -> None:
    """Refused by every verb, naming the base and those that there are."""
    o = both(ours, theirs)
    spec = lt.Write(ours.uri(), initial_bases=[base], target_bases=["theirs"])
    job = lt.prepare(spec, numbers(0).schema, **o)
    result = lt.execute(job.task("0"), numbers(5), **o)
    misspelt = both(ours, theirs, "there base")
    before = theirs.bucket.files()
    verbs = {
        "prepare": lambda o: lt.prepare(spec, numbers(0).schema, **o),
        "plan": lambda o: lt.plan(job, **o),
        "execute": lambda o: lt.execute(job.task("1"), numbers(5), **o),
        "commit": lambda o: lt.commit(job, [result], **o),
        "abort": lambda o: lt.abort(job, [result], **o),
        "run": lambda o: lt.run(spec, data=numbers(5), **o),
        "execute_all": lambda o: raised(lt.execute_all([job.task("1")], **o)),
    }
    flat = {f"base:{theirs.uri('there base')}:aws_region": "x", **ours.options}
    for options in (misspelt, {"storage_options": flat}):
        for verb, call in verbs.items():
            with pytest.raises(lt.InvalidArgumentError) as caught:
                call(options)
            said = caught.value.message
            assert theirs.uri("there base") in said and theirs.uri("their base") in said, verb
            assert find_secrets([said], [*OURS, *THEIRS]) == set()
    by_id = {"storage_options": ours.options | {"base_4.aws_region": "x"}}
    with pytest.raises(lt.InvalidArgumentError, match=r"base_4\.aws_region"):
        lt.prepare(spec, numbers(0).schema, **by_id)
    assert theirs.bucket.files() == before
    lt.commit(job, [result], **o)
    with pytest.raises(lt.InvalidArgumentError, match="there base"):
        lt.run(lt.Compact(ours.uri()), **misspelt)
    assert_same(opened(ours, theirs).to_table(), numbers(5))


def test_credentials_that_the_base_refuses(ours: Account, theirs: Account, base: dict) -> None:
    """None for the base, or wrong ones: said as such, whoever meets them, and nothing is lost."""
    o = both(ours, theirs)
    spec = lt.Write(ours.uri(), initial_bases=[base], target_bases=["theirs"])
    job = lt.prepare(spec, numbers(0).schema, **o)
    result = lt.execute(job.task("0"), numbers(5), **o)
    wrong = theirs.options | {"aws_access_key_id": OURS[0]}
    here = {"aws_endpoint": theirs.options["aws_endpoint"]}
    for options in (
        {"base_store_params": {base["path"]: wrong}, "storage_options": ours.options},
        {"storage_options": ours.options | {f"base_3.{k}": v for k, v in here.items()}},
    ):
        for call in (
            lambda o: lt.execute(job.task("1"), numbers(5), **o),
            lambda o: lt.commit(job, [result], **o),
            lambda o: lt.abort(job, [result], **o),
        ):
            hits = theirs.refusals
            with pytest.raises(lt.CredentialsError) as caught:
                call(options)
            assert theirs.refusals > hits
            assert find_secrets([str(caught.value)], [OURS[1], THEIRS[1]]) == set()
    lt.commit(job, [result], **o)
    assert_same(opened(ours, theirs).to_table(), numbers(5))
    # What is wrong with the dataset's own place is not taken for a base that is not there.
    mine = {"storage_options": ours.options | {"aws_access_key_id": THEIRS[0]}}
    with pytest.raises(lt.CredentialsError):
        lt.execute(job.task("2"), numbers(5), **(o | mine), executor=lt.Executor())


def test_names_of_options(ours: Account, theirs: Account) -> None:
    spec = lt.Write(ours.uri())
    path = theirs.uri()
    for name in ("base:", "base:aws_region", f"base:{path}", f"base:{path}:"):
        with pytest.raises(lt.InvalidArgumentError, match="base:<path of the base>:<option>"):
            lt.prepare(spec, storage_options={name: "x"})
    with pytest.raises(lt.InvalidArgumentError) as caught:
        hidden = {f"base:s3://{THEIRS[0]}:{THEIRS[1]}@bucket/x:aws_region": "x"}
        lt.prepare(spec, storage_options=hidden)
    assert find_secrets([str(caught.value)], [*THEIRS]) == set()
    with pytest.raises(lt.InvalidArgumentError, match=f"base:{path}:aws_endpoint"):
        lt.prepare(spec, base_store_params={path: {"aws_endpoint": "no url"}})
    for bases, kind, said in [
        ({path: "x"}, TypeError, path),
        ({3: {"a": "b"}}, TypeError, "3"),
        ({path: {"a": THEIRS}}, TypeError, "'a'"),
        ({path: {}}, lt.InvalidArgumentError, path),
        ({"": {"a": "b"}}, lt.InvalidArgumentError, "path"),
        ({path: {"a:b": "c"}}, lt.InvalidArgumentError, "a:b"),
        ({path: {"": "c"}}, lt.InvalidArgumentError, "option"),
    ]:
        with pytest.raises(kind, match=said) as caught:
            lt.prepare(spec, base_store_params=bases)
        assert find_secrets([str(caught.value)], [*THEIRS]) == set()
