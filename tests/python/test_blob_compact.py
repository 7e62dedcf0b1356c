# SPDX-License-Identifier: Apache-2.0
"""Compactions of datasets with blobs: every row keeps its payload, nothing is stored twice."""

import random
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from blob_cases import blobs_of, descriptors, kinds, payload, same, table, write
from blob_files import (
    SMALL,
    all_kinds,
    check_rows,
    exact,
    needed,
    payload_files,
    small,
    taken,
)
from cases import check_index_answers
from support import files, fragment_rows, run_loop, unchanged

import lance_tasks as lt

COLUMN = lt.BlobColumn("blob", **SMALL)
STORED = ["inline", "packed", "dedicated", "external", "external", None, "inline"]


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """A folder for what blobs refer to."""
    return tmp_path / "objects"


def make(uri: str, objects: Path, rows: int = 28, per_file: int = 7, **options: object) -> dict:
    """Rows of every kind in turn; payloads by id."""
    values, payloads = all_kinds(objects, range(rows))
    bases = [lt.Base(7, str(objects)), *options.pop("bases", [])]
    options.setdefault("blob_columns", [COLUMN])
    write(uri, table(values), max_rows_per_file=per_file, initial_bases=bases, **options)
    return dict(enumerate(payloads))


def delete(uri: str, payloads: dict, gone: list[int]) -> None:
    lance.dataset(uri).delete(f"id in ({', '.join(map(str, gone))})")
    for n in gone:
        del payloads[n]


def clean(uri: str, payloads: dict, **options: object) -> lance.LanceDataset:
    """Older versions go; what is left is what the newest needs, and it is whole."""
    exact(uri, **options)
    lt.run(lt.Cleanup(uri, older_than=0))
    assert len(lance.dataset(uri).versions()) == 1
    exact(uri, **options)
    return check_rows(uri, payloads)


# Every kind


@pytest.mark.parametrize("stable", [False, True], ids=["addresses", "stable"])
@pytest.mark.parametrize("gone", [[], [0, 5, 9, 10, 11, 15, 27], list(range(7, 21))], ids=len)
def test_every_kind(gone: list[int], stable: bool, uri: str, objects: Path) -> None:
    before = make(uri, objects, enable_stable_row_ids=stable)
    payloads = dict(before)
    if gone:
        delete(uri, payloads, gone)
    outcome = run_loop(lt.Compact(uri))
    assert outcome.rows == len(payloads) and outcome.metrics["fragments_added"] == 1
    (fragment,) = lance.dataset(uri).get_fragments()
    assert (fragment.physical_rows, fragment.num_deletions) == (len(payloads), 0)
    dataset = check_rows(uri, payloads)
    assert kinds(dataset) == [STORED[n % 7] for n in payloads]
    check_rows(uri, before, version=1)
    clean(uri, payloads)


def test_rows_keep_their_ids(uri: str, objects: Path) -> None:
    """Stable row ids name the same payloads before and after."""
    payloads = make(uri, objects, enable_stable_row_ids=True)
    delete(uri, payloads, [3, 4, 8, 20])
    rows = lance.dataset(uri).to_table(columns=["id"], with_row_id=True)
    run_loop(lt.Compact(uri))
    spec = lt.TakeBlobs(uri, column="blob", row_ids=rows["_rowid"])
    found = pa.table(lt.read(spec))["blob"].to_pylist()
    same(found, [payloads[n] for n in rows["id"].to_pylist()])


@pytest.mark.parametrize("target", [5, 9, 13])
def test_several_new_fragments(target: int, uri: str, objects: Path) -> None:
    payloads = make(uri, objects, rows=84)
    delete(uri, payloads, [*range(3, 84, 9), 50, 51, 52])
    run_loop(lt.Compact(uri, target_rows_per_fragment=target))
    rows = fragment_rows(uri)
    assert len(rows) >= 4 and sum(rows) == len(payloads)
    check_rows(uri, payloads)
    clean(uri, payloads)


def test_one_task_with_several_new_fragments(uri: str, objects: Path) -> None:
    """A fragment's rows become those of several, each with a file of its own for the blobs."""
    payloads = make(uri, objects, rows=56, per_file=56)
    delete(uri, payloads, list(range(0, 56, 4)))
    job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=10))
    (task,) = lt.plan(job)
    lt.commit(job, [lt.execute(task)])
    assert fragment_rows(uri) == [11, 11, 10, 10]
    files_of = [len(f.data_files()) for f in lance.dataset(uri).get_fragments()]
    assert files_of == [2] * 4
    clean(uri, payloads)


def test_all_rows_deleted(uri: str, objects: Path) -> None:
    payloads = make(uri, objects)
    delete(uri, payloads, list(payloads))
    run_loop(lt.Compact(uri))
    assert clean(uri, {}).get_fragments() == []
    assert payload_files(uri) == {}


def test_nulls_and_empty_values_alone(uri: str, objects: Path) -> None:
    values = [None, lt.Blob(b"")] * 6
    write(uri, table(values), max_rows_per_file=3)
    payloads = {n: value and b"" for n, value in enumerate(values)}
    delete(uri, payloads, [2, 3])
    run_loop(lt.Compact(uri))
    assert clean(uri, payloads).count_rows() == 10
    assert payload_files(uri) == {}


def test_thresholds_are_kept(uri: str, objects: Path) -> None:
    """Rows that come after a compaction are still what the column says."""
    payloads = make(uri, objects)
    field = lance.dataset(uri).schema.field("blob")
    run_loop(lt.Compact(uri))
    after = lance.dataset(uri).schema.field("blob")
    assert after.equals(field, check_metadata=True)
    values, more = all_kinds(objects, range(28, 35))
    write(uri, table(values, 28), mode="append")
    payloads |= dict(enumerate(more, 28))
    assert kinds(check_rows(uri, payloads)) == STORED * 5


@pytest.mark.parametrize("version", ["2.2", "2.3"])
def test_file_version(version: str, uri: str, objects: Path) -> None:
    payloads = make(uri, objects)
    run_loop(lt.Compact(uri, data_storage_version=version))
    (fragment,) = lance.dataset(uri).get_fragments()
    found = {(f.file_major_version, f.file_minor_version) for f in fragment.data_files()}
    assert found == {(2, int(version[-1]))}
    clean(uri, payloads)


def test_blobs_cannot_go_to_older_files(uri: str, objects: Path) -> None:
    payloads = make(uri, objects)
    with unchanged(uri), pytest.raises(lt.InvalidArgumentError, match=r"[Bb]lob"):
        run_loop(lt.Compact(uri, data_storage_version="2.1"))
    check_rows(uri, payloads)


# Modes


def test_try_binary_copy(uri: str, objects: Path) -> None:
    """Pages of descriptors cannot be copied, as payloads lie beside the data file."""
    payloads = make(uri, objects)
    run_loop(lt.Compact(uri, compaction_mode="try_binary_copy"))
    clean(uri, payloads)


def test_force_binary_copy_is_refused(uri: str, objects: Path) -> None:
    payloads = make(uri, objects)
    with unchanged(uri), pytest.raises(lt.NotSupportedError, match="binary copy"):
        run_loop(lt.Compact(uri, compaction_mode="force_binary_copy"))
    check_rows(uri, payloads)


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_batch_size(batch_size: int, uri: str, objects: Path) -> None:
    payloads = make(uri, objects)
    run_loop(lt.Compact(uri, batch_size=batch_size))
    clean(uri, payloads)


def test_more_rows_than_are_read_at_once(uri: str) -> None:
    """Batches and fragments end at different rows."""
    data = {n: payload(120 + n % 50, n) for n in range(10_000)}
    write(uri, table(data.values()), max_rows_per_file=1700, blob_columns=[COLUMN])
    delete(uri, data, list(range(0, 10_000, 3)))
    run_loop(lt.Compact(uri, target_rows_per_fragment=2500))
    assert len(fragment_rows(uri)) > 1
    dataset = lance.dataset(uri)
    found = taken(uri, dataset)
    ids = dataset.to_table(columns=["id"])["id"].to_pylist()
    assert sorted(ids) == sorted(data) and found == [data[n] for n in ids]
    lt.run(lt.Cleanup(uri, older_than=0))
    exact(uri)


# Several columns, nested ones


def test_several_columns(uri: str, objects: Path) -> None:
    """Payloads of columns do not mix, whatever the order of the columns."""
    values, payloads = all_kinds(objects, range(28))
    left = table(values)
    others = {"first": range(100, 128), "last": range(230, 202, -1)}
    made = {name: all_kinds(objects, numbers) for name, numbers in others.items()}
    columns = {name: lt.blob_array(values) for name, (values, _) in made.items()}
    data = pa.table({"first": columns["first"], **{n: left[n] for n in left.column_names}})
    data = data.append_column("last", columns["last"])
    names = [lt.BlobColumn(name, **SMALL) for name in ("last", "blob", "first")]
    bases = [lt.Base(7, str(objects))]
    write(uri, data, blob_columns=names, max_rows_per_file=6, initial_bases=bases)
    expected = {name: dict(enumerate(payloads)) for name, (_, payloads) in made.items()}
    expected["blob"] = dict(enumerate(payloads))
    lance.dataset(uri).delete("id % 5 = 1")
    expected = {
        name: {n: data for n, data in rows.items() if n % 5 != 1} for name, rows in expected.items()
    }
    run_loop(lt.Compact(uri))
    clean(uri, expected["blob"])
    for name in others:
        check_rows(uri, expected[name], column=name)


def nested(rows: int) -> pa.Table:
    """Blobs in a struct, a list, a list of structs and a large list, some of them null."""

    def blob(name: str, n: int, i: int = 0) -> dict[str, object]:
        return {"data": payload((50, 700, 3000)[(n + i) % 3], (name, n, i))}

    kind = pa.struct([("data", pa.large_binary())])
    docs, pages, parts, clips = [], [], [], []
    for n in range(rows):
        docs.append(None if n % 7 == 3 else {"n": n, "scan": None if n % 5 == 2 else blob("d", n)})
        count = n % 4
        page = [None if i == 2 else blob("p", n, i) for i in range(count)]
        pages.append(None if n % 6 == 5 else page)
        parts.append([{"at": i, "image": blob("i", n, i)} for i in range(count)] + [None] * (n % 2))
        clips.append([blob("c", n)] * (n % 3))
    return pa.table(
        {
            "docs": pa.array(docs, pa.struct([("n", pa.int64()), ("scan", kind)])),
            "id": pa.array(range(rows), pa.int64()),
            "pages": pa.array(pages, pa.list_(kind)),
            "parts": pa.array(parts, pa.list_(pa.struct([("at", pa.int32()), ("image", kind)]))),
            "tail": pa.array([f"tail-{n}" for n in range(rows)]),
            "clips": pa.array(clips, pa.large_list(kind)),
        }
    )


def test_nested(uri: str) -> None:
    names = ["docs.scan", "pages", "parts.image", "clips"]
    columns = [lt.BlobColumn(name, **SMALL) for name in names]
    lt.run(lt.Write(uri, max_rows_per_file=8, blob_columns=columns), data=nested(40))
    lance.dataset(uri).delete("id % 9 = 4 or id = 8")

    def contents(version: int | None = None) -> pa.Table:
        dataset = lance.dataset(uri, version=version)
        return dataset.scanner(blob_handling="all_binary").to_table()

    before = contents()
    assert {len(v) for v in before["docs"].combine_chunks().field("scan").to_pylist() if v} == {
        *(50, 700, 3000)
    }
    run_loop(lt.Compact(uri, target_rows_per_fragment=25))
    assert contents().sort_by("id") == before.sort_by("id")
    exact(uri)
    lt.run(lt.Cleanup(uri, older_than=0))
    exact(uri)
    assert contents().sort_by("id") == before.sort_by("id")
    dataset = lance.dataset(uri)
    scans = blobs_of_struct(dataset)
    same(taken(uri, dataset, "docs.scan"), scans)
    dataset.validate()


def blobs_of_struct(dataset: lance.LanceDataset) -> list[bytes | None]:
    docs = dataset.scanner(columns=["docs"], blob_handling="all_binary").to_table()["docs"]
    return [doc and doc["scan"] for doc in docs.to_pylist()]


# Datasets that others have changed


def test_columns_added_and_dropped(uri: str, objects: Path) -> None:
    """Fragments of several data files, one of them of no column any more."""
    payloads = make(uri, objects)
    dataset = lance.dataset(uri)
    dataset.add_columns({"twice": "id * 2"})
    dataset.add_columns({"thrice": "id * 3"})
    dataset.drop_columns(["twice"])
    delete(uri, payloads, [1, 2, 12])
    run_loop(lt.Compact(uri))
    dataset = clean(uri, payloads)
    assert dataset.to_table(columns=["thrice"])["thrice"].to_pylist() == [3 * n for n in payloads]
    assert [len(f.data_files()) for f in dataset.get_fragments()] == [2]


def test_blob_column_dropped(uri: str, objects: Path) -> None:
    """Its payloads go with the files of the fragments that had it."""
    make(uri, objects)
    lance.dataset(uri).drop_columns(["blob"])
    run_loop(lt.Compact(uri))
    lt.run(lt.Cleanup(uri, older_than=0))
    exact(uri)
    assert payload_files(uri) == {}
    assert lance.dataset(uri).to_table()["id"].to_pylist() == list(range(28))


def test_blob_column_renamed(uri: str, objects: Path) -> None:
    payloads = make(uri, objects)
    lance.dataset(uri).alter_columns({"path": "blob", "name": "film"})
    run_loop(lt.Compact(uri))
    check_rows(uri, payloads, column="film")


def test_blob_column_that_older_fragments_lack(uri: str, objects: Path) -> None:
    """Their rows are null, and have no file of the column at all."""
    rows = table([None] * 14)
    lance.write_dataset(rows.drop(["blob"]), uri, max_rows_per_file=7, data_storage_version="2.2")
    lance.dataset(uri).add_columns(lance.blob_field("blob"))
    more = {n: payload(70_000, n) for n in range(14, 21)}
    write(uri, table(more.values(), 14), mode="append")
    payloads = dict.fromkeys(range(14)) | more
    assert lance.dataset(uri).count_rows() == 21
    run_loop(lt.Compact(uri))
    assert fragment_rows(uri) == [21]
    clean(uri, payloads)


@pytest.mark.parametrize("writer", ["ours", "pylance"])
def test_compacted_twice(writer: str, uri: str, objects: Path) -> None:
    """What a compaction made, by either side, is a source as good as any other."""
    payloads = make(uri, objects)
    delete(uri, payloads, [0, 1, 2])
    if writer == "ours":
        run_loop(lt.Compact(uri))
    else:
        lance.dataset(uri).optimize.compact_files()
    with unchanged(Path(uri, "data")):
        assert run_loop(lt.Compact(uri)).metrics == {}
    values, more = all_kinds(objects, range(28, 42))
    write(uri, table(values, 28), mode="append", max_rows_per_file=7)
    payloads |= dict(enumerate(more, 28))
    delete(uri, payloads, [3, 30])
    run_loop(lt.Compact(uri))
    assert fragment_rows(uri) == [len(payloads)]
    clean(uri, payloads)


def test_pylance_goes_on_after_a_compaction(uri: str, objects: Path) -> None:
    """It deletes, updates, appends, merges columns and compacts again."""
    payloads = make(uri, objects)
    run_loop(lt.Compact(uri))
    delete(uri, payloads, [2, 9])
    dataset = lance.dataset(uri)
    dataset.add_columns({"twice": "id * 2"})
    dataset.update({"twice": "7"}, where="id = 3")
    ids = dataset.to_table(columns=["id"])["id"].to_pylist()
    same(blobs_of(dataset), [payloads[n] for n in ids])
    dataset.optimize.compact_files()
    check_rows(uri, payloads)
    dataset = lance.dataset(uri)
    assert sorted(dataset.to_table(columns=["twice"])["twice"].to_pylist()) == sorted(
        7 if n == 3 else 2 * n for n in payloads
    )
    lt.run(lt.Cleanup(uri, older_than=0))
    exact(uri)


# Indexes


@pytest.mark.parametrize("stable", [False, True], ids=["addresses", "stable"])
@pytest.mark.parametrize(
    "options", [{}, {"defer_index_remap": True}, {"index_remap_mode": "compact"}]
)
def test_index_answers_the_same(options: dict, stable: bool, uri: str, objects: Path) -> None:
    payloads = make(uri, objects, rows=56, enable_stable_row_ids=stable)
    dataset = lance.dataset(uri)
    dataset.create_scalar_index("id", "BTREE")
    delete(uri, payloads, [4, 5, 6, 30, 31])
    if stable and options.get("defer_index_remap"):
        with unchanged(Path(uri, "_versions")), pytest.raises(lt.Error, match="stable row IDs"):
            run_loop(lt.Compact(uri, **options))
        return
    run_loop(lt.Compact(uri, target_rows_per_fragment=20, **options))
    dataset = check_rows(uri, payloads)
    assert {f.num_deletions for f in dataset.get_fragments()} == {0}
    check_index_answers(dataset, "id", ["id = 29", "id < 9", "id in (5, 7, 55)", "id >= 50"])
    found = dataset.to_table(columns=["id"], filter="id = 29", with_row_id=True)
    spec = lt.TakeBlobs(uri, column="blob", row_ids=found["_rowid"])
    same(pa.table(lt.read(spec))["blob"].to_pylist(), [payloads[29]])


# Other places


@pytest.mark.parametrize("root", [False, True], ids=["flat", "root"])
def test_source_in_other_bases(root: bool, uri: str, objects: Path, tmp_path: Path) -> None:
    """What is compacted lies in the dataset's own storage; what was there goes with its version."""
    base = lt.Base(3, str(tmp_path / "far"), name="far", is_dataset_root=root)
    payloads = make(uri, objects, bases=[base], target_bases=["far"])
    assert payload_files(uri) == {} and payload_files(str(tmp_path / "far"))
    values, more = all_kinds(objects, range(28, 35))
    write(uri, table(values, 28), mode="append")
    payloads |= dict(enumerate(more, 28))
    delete(uri, payloads, [1, 2, 12, 30])
    run_loop(lt.Compact(uri))
    dataset = check_rows(uri, payloads)
    assert {base for base, _ in needed(dataset)} == {0}
    exact(uri, bases={3: tmp_path / "far"})
    found = {d["blob_id"] for d in descriptors(dataset) if d and d["kind"] == 3}
    assert found == {7}
    lt.run(lt.Cleanup(uri, older_than=0))
    check_rows(uri, payloads)
    exact(uri, bases={3: tmp_path / "far"})
    assert files(tmp_path / "far") == {}


def test_external_objects_stay_where_they_are(uri: str, objects: Path) -> None:
    payloads = make(uri, objects)
    outside = files(objects)
    keys = ["kind", "position", "size", "blob_id", "blob_uri"]

    def external() -> list[list[object]]:
        found = descriptors(lance.dataset(uri))
        return [[d[key] for key in keys] for d in found if d and d["kind"] == 3]

    before = external()
    assert len(before) == 8 and all(d[3] == 7 and "://" not in d[4] for d in before)
    run_loop(lt.Compact(uri))
    assert external() == before
    clean(uri, payloads)
    assert files(objects) == outside


def test_managed_payloads_are_kept(uri: str) -> None:
    """They are of the dataset, not of a data file: a compaction does not touch them."""
    distinct = [payload(5000, n) for n in range(4)]
    data = {n: distinct[n % 4] for n in range(24)}
    options = {"dedup": "content", "max_rows_per_file": 6}
    rows = table(data.values())
    write(uri, rows.slice(0, 12), dedup_scope="dataset", **options)
    write(uri, rows.slice(12), mode="append", **options)
    before = payload_files(uri)
    delete(uri, data, [0, 1, 13])
    run_loop(lt.Compact(uri))
    assert fragment_rows(uri) == [21]
    assert set(kinds(lance.dataset(uri))) == {"managed"}
    assert payload_files(uri) == before
    clean(uri, data)
    assert payload_files(uri) == before and sum(before.values()) == 4 * 5000
    # What no row has any more goes with the last version that had it.
    delete(uri, data, [n for n in data if n % 4 == 0])
    run_loop(lt.Compact(uri))
    clean(uri, data)
    assert sum(payload_files(uri).values()) == 3 * 5000


@pytest.mark.parametrize("kind", ["inline", "packed", "dedicated", "external_range"])
def test_blobs_alone(kind: str, uri: str, objects: Path) -> None:
    """Nothing but a blob column: Lance's own compaction."""
    made = [small(n, kind, objects) for n in range(20)]
    data = pa.table({"blob": lt.blob_array([value for value, _ in made])})
    bases = [lt.Base(7, str(objects))]
    write(uri, data, max_rows_per_file=5, blob_columns=[COLUMN], initial_bases=bases)
    lance.dataset(uri).delete("_rowid = 3")
    expected = [data for n, (_, data) in enumerate(made) if n != 3]
    random.Random(0).shuffle(made)
    run_loop(lt.Compact(uri))
    assert fragment_rows(uri) == [19]
    dataset = lance.dataset(uri)
    same(blobs_of(dataset), expected)
    same(taken(uri, dataset), expected)
    lt.run(lt.Cleanup(uri, older_than=0))
    exact(uri)
    same(blobs_of(lance.dataset(uri)), expected)
