# SPDX-License-Identifier: Apache-2.0
"""Blobs taken by tasks that yield them: what stock pylance has written, and reads the same."""

import itertools
import pickle
import random
import threading
from pathlib import Path

import blobs
import lance
import numpy as np
import pyarrow as pa
import pytest

import lance_tasks as lt

BY = ["row_ids", "addresses", "indices"]
COLUMNS = {"row_ids": "_rowid", "addresses": "_rowaddr", "indices": "_index"}
PYLANCE = {"row_ids": "ids", "addresses": "addresses", "indices": "indices"}


def take(uri: str, column: str = "film", executor: lt.Executor | None = None, **what) -> pa.Table:
    return pa.table(lt.read(lt.TakeBlobs(uri, column=column, **what), executor=executor))


def shuffled(items: list, more: int = 10) -> list:
    """All items and some of them again, in another order."""
    generator = random.Random(7)
    some = [*items, *generator.choices(items, k=more)]
    generator.shuffle(some)
    return some


# What is read


@pytest.mark.parametrize("fragments", [1, 4])
@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("layout", ["v2", "managed", "legacy"])
def test_every_kind_by_every_key(
    uri: str, tmp_path: Path, layout: str, stable: bool, fragments: int
) -> None:
    values, contents = blobs.of_every_kind(tmp_path, 42, external=layout != "legacy")
    dataset = blobs.write(
        uri, values, fragments=fragments, layout=layout, enable_stable_row_ids=stable
    )
    if layout != "legacy":
        there = set(blobs.kinds(dataset))
        stored = {0, 1, 2} if layout == "v2" else {4}
        assert there >= {None, 3, *stored}, there
    for by in BY:
        of_row = blobs.keys(dataset, by)
        rows = shuffled(list(range(42)))
        asked = [of_row[row] for row in rows]
        table = take(uri, **{by: asked})
        assert table.schema == pa.schema(
            [pa.field(COLUMNS[by], pa.uint64(), False), pa.field("film", pa.large_binary())]
        )
        assert table[COLUMNS[by]].to_pylist() == asked
        got = table["film"].to_pylist()
        assert got == [contents[row] for row in rows]
        judged = dataset.read_blobs("film", **{PYLANCE[by]: asked})
        assert got == [None if data is None else bytes(data) for _, data in judged]
        handles = dataset.take_blobs("film", **{PYLANCE[by]: asked})
        assert got == [None if file is None else file.readall() for file in handles]


def test_ranges(uri: str, tmp_path: Path) -> None:
    values, contents = blobs.of_every_kind(tmp_path, 21)
    blobs.write(uri, values, fragments=3)
    rows = shuffled(list(range(21)), 60)
    generator = random.Random(3)
    ranges: list[tuple[int, int] | None] = []
    expected = []
    for row in rows:
        content = contents[row]
        size = len(content or b"")
        offset = generator.randint(0, size)
        part = (offset, generator.randint(0, size - offset))
        if content is None:
            # Nothing is beyond the end of a null.
            part = (5, 7)
        ranges.append(generator.choice([part, part, None]))
        at, length = ranges[-1] or (0, size)
        expected.append(None if content is None else content[at : at + length])
    table = take(uri, indices=rows, ranges=ranges)
    assert table["film"].to_pylist() == expected
    # Beyond the end, by one.
    wrong = next(row for row in range(21) if contents[row])
    size = len(contents[wrong])
    part = {"offset": 1, "size": size}
    with pytest.raises(lt.InvalidArgumentError, match=rf"index {wrong}: .* {size} bytes"):
        take(uri, indices=[3, wrong], ranges=[None, part])
    with pytest.raises(lt.InvalidArgumentError, match=f"index {wrong}: .*no end"):
        take(uri, indices=[wrong], ranges=[(2**64 - 1, 2)])
    with pytest.raises(lt.InvalidArgumentError, match='"ranges" has 1 entries for 2 indices'):
        take(uri, indices=[0, 1], ranges=[None])


@pytest.mark.parametrize("stable", [False, True])
def test_deleted_rows(uri: str, tmp_path: Path, stable: bool) -> None:
    values, contents = blobs.of_every_kind(tmp_path, 42)
    dataset = blobs.write(uri, values, fragments=4, enable_stable_row_ids=stable)
    before = {by: blobs.keys(dataset, by) for by in BY}
    gone = [0, 5, 6, 12, 41, *range(22, 33)]
    dataset.delete(f"id IN ({','.join(map(str, gone))})")
    left = [row for row in range(42) if row not in gone]
    for by in BY:
        of_row = dict(zip(left, blobs.keys(dataset, by), strict=True))
        rows = shuffled(left)
        table = take(uri, **{by: [of_row[row] for row in rows]})
        assert table["film"].to_pylist() == [contents[row] for row in rows]
    for by, name in [("row_ids", "row id"), ("addresses", "row address")]:
        key = before[by][12]
        alive = before[by][13]
        for asked in ([key], [alive, key, alive], [key, key]):
            with pytest.raises(lt.InvalidArgumentError, match=f"{name} {key} .*deleted"):
                take(uri, **{by: asked})
        # What never was.
        for never in (10**6, 2**40 + 3, 2**64 - 1):
            with pytest.raises(lt.InvalidArgumentError, match=f"{name} {never} "):
                take(uri, **{by: [alive, never]})
    with pytest.raises(lt.InvalidArgumentError, match=f"index 7777 .*{len(left)} rows"):
        take(uri, indices=[1, 7777])


def test_row_ids_that_outlive_their_addresses(uri: str, tmp_path: Path) -> None:
    values, contents = blobs.of_every_kind(tmp_path, 42)
    dataset = blobs.write(uri, values, fragments=6, enable_stable_row_ids=True)
    dataset.delete("id % 5 = 2")
    ids = dict(
        zip([i for i in range(42) if i % 5 != 2], blobs.keys(dataset, "row_ids"), strict=True)
    )
    dataset.optimize.compact_files()
    assert len(lance.dataset(uri).get_fragments()) == 1
    rows = shuffled(list(ids))
    table = take(uri, row_ids=[ids[row] for row in rows])
    assert table["film"].to_pylist() == [contents[row] for row in rows]


def test_nested_columns(uri: str) -> None:
    contents = [b"a" * 10, None, b"", b"b" * 700, b"c" * 3000, None]
    film = lance.blob_array(contents)
    absent = pa.array([False] * 5 + [True])
    info = pa.StructArray.from_arrays([pa.array(range(6)), film], ["n", "film"], mask=absent)
    fields = [pa.field("n", pa.int64()), blobs.blob_field()]
    schema = pa.schema([pa.field("info", pa.struct(fields))])
    table = pa.table([pa.array(info.to_pylist() and info)], schema=schema)
    dataset = lance.write_dataset(table, uri, data_storage_version="2.2")
    rows = shuffled(list(range(6)))
    table = take(uri, "info.film", indices=rows)
    assert table.column_names == ["_index", "info.film"]
    assert table["info.film"].to_pylist() == [contents[row] for row in rows]
    judged = dataset.read_blobs("info.film", indices=rows)
    assert table["info.film"].to_pylist() == [data for _, data in judged]


def test_versions(uri: str) -> None:
    first = blobs.write(uri, [b"old"] * 4)
    blobs.write(uri, [b"new"] * 6, mode="overwrite")
    assert take(uri, indices=[3])["film"].to_pylist() == [b"new"]
    assert take(uri, indices=[3], version=first.version)["film"].to_pylist() == [b"old"]
    with pytest.raises(lt.InvalidArgumentError, match=r"index 5 .*version 1 has 4 rows"):
        take(uri, indices=[5], version=1)
    with pytest.raises(lt.InvalidArgumentError, match='"version" is 9'):
        take(uri, indices=[0], version=9)
    # What was prepared stays with its version.
    job = lt.prepare(lt.TakeBlobs(uri, column="film", indices=[5]))
    blobs.write(uri, [b"newest"], mode="overwrite")
    assert pa.table(lt.read(lt.plan(job)))["film"].to_pylist() == [b"new"]


def test_keys_of_any_package(uri: str) -> None:
    blobs.write(uri, [b"0", b"1", b"2"])
    for keys in (
        [2, 0],
        (2, 0),
        np.array([2, 0]),
        np.array([2, 0], np.uint32),
        list(np.array([2, 0])),
        pa.array([2, 0]),
        pa.chunked_array([[2], [0]]),
        iter([2, 0]),
    ):
        assert take(uri, row_ids=keys)["film"].to_pylist() == [b"2", b"0"]
    for wrong in (-1, 1.5, "1", None, 2**64):
        with pytest.raises(lt.InvalidArgumentError, match="row_ids"):
            take(uri, row_ids=[0, wrong])
    with pytest.raises(TypeError, match="row_ids"):
        take(uri, row_ids=7)
    with pytest.raises(TypeError, match="entry 1"):
        take(uri, row_ids=[0, 1], ranges=[None, 7])


def test_specs_of_any_form_and_none_that_changes(uri: str) -> None:
    blobs.write(uri, [b"0", b"1"])
    spec = lt.TakeBlobs(uri, column="film", indices=[1])
    for form in (spec, spec.to_dict(), spec.to_json(), spec.to_json().encode()):
        assert pa.table(lt.read(form))["film"].to_pylist() == [b"1"]
    with pytest.raises(lt.InvalidArgumentError, match="yields no data"):
        lt.read(lt.Compact(uri, target_rows_per_fragment=5), timeout=60)
    with pytest.raises(lt.InvalidArgumentError, match="there are none"):
        lt.read([])


def test_wrong_specs(uri: str) -> None:
    blobs.write(uri, [b"0", b"1"])

    def wrong(match: str, column: str = "film", **what: object) -> None:
        with pytest.raises(lt.InvalidArgumentError, match=match):
            lt.prepare(lt.TakeBlobs(uri, column=column, **what))

    wrong("no rows are named")
    wrong('"row_ids" and "indices" are both given', row_ids=[0], indices=[0])
    wrong('no column "movie".*film', "movie", indices=[0])
    wrong('"id" is no blob column', "id", indices=[0])
    wrong('"column" is missing', "", indices=[0])
    wrong("index 2 is beyond", indices=[0, 2])
    wrong("row address 4294967296", addresses=[2**32])
    wrong("max_rows_per_task", indices=[0], max_rows_per_task=0)
    wrong("max_bytes_per_batch", indices=[0], max_bytes_per_batch=0)
    with pytest.raises(lt.NotFoundError):
        lt.prepare(lt.TakeBlobs(uri + "x", column="film", indices=[0]))
    with pytest.raises(lt.InvalidArgumentError, match="takes no input"):
        lt.prepare(lt.TakeBlobs(uri, column="film", indices=[0]), pa.schema([]))


def test_blobs_in_lists_are_refused(uri: str) -> None:
    film = lance.blob_array([b"a", b"b", b"c"]).storage
    item = pa.field("item", film.type, metadata={"ARROW:extension:name": "lance.blob.v2"})
    offsets = pa.array([0, 2, 3], pa.int32())
    column = pa.ListArray.from_arrays(offsets, film, type=pa.list_(item))
    schema = pa.schema([pa.field("films", column.type)])
    lance.write_dataset(pa.table([column], schema=schema), uri, data_storage_version="2.2")
    with pytest.raises(lt.NotSupportedError, match="inside of a list"):
        lt.prepare(lt.TakeBlobs(uri, column="films.item", indices=[0]))


# Tasks, batches, streams


def test_tasks_cut_the_keys_and_keep_their_order(uri: str, tmp_path: Path) -> None:
    values, contents = blobs.of_every_kind(tmp_path, 42)
    blobs.write(uri, values, fragments=4)
    rows = shuffled(list(range(42)), 60)
    ranges = [(0, 0) if row % 2 else None for row in rows]
    what = {"column": "film", "indices": rows, "ranges": ranges, "max_rows_per_task": 10}
    job = lt.prepare(lt.TakeBlobs(uri, **what))
    tasks = lt.plan(job)
    assert [task.estimated_rows for task in tasks] == [10] * 10 + [2]
    assert max(len(task.to_bytes()) for task in tasks) < 1000
    tasks = pickle.loads(pickle.dumps(tasks))
    expected = [contents[row] and (b"" if row % 2 else contents[row]) for row in rows]
    expected = [None if contents[row] is None else e for row, e in zip(rows, expected, strict=True)]
    for read in (
        lt.read(tasks),
        lt.read(lt.tasks_table(tasks)),
        lt.read(lt.TakeBlobs(uri, **what)),
    ):
        table = pa.table(read)
        assert table["_index"].to_pylist() == rows
        assert table["film"].to_pylist() == expected
    # Each by itself, elsewhere, again and again.
    other = lt.Executor(num_threads=1)
    for i in (10, 3, 3):
        table = pa.table(lt.read(tasks[i], executor=other))
        assert table["_index"].to_pylist() == rows[10 * i : 10 * i + 10]
        assert table["film"].to_pylist() == expected[10 * i : 10 * i + 10]


def test_no_keys(uri: str) -> None:
    blobs.write(uri, [b"0"])
    table = take(uri, row_ids=[])
    assert table.num_rows == 0 and table.column_names == ["_rowid", "film"]


def test_the_plan_of_many_keys_is_quick_and_whole(uri: str) -> None:
    blobs.write(uri, [b"0", b"1"])
    job = lt.prepare(lt.TakeBlobs(uri, column="film", indices=np.arange(200_000) % 2))
    tasks = lt.plan(job)
    assert len(tasks) == 25 and sum(task.estimated_rows for task in tasks) == 200_000
    table = pa.table(lt.read(tasks[7:9]))
    assert table.num_rows == 2 * 8192
    assert table["film"].to_pylist()[:3] == [b"0", b"1", b"0"]


def test_batches_are_cut_by_bytes(uri: str) -> None:
    contents = [blobs.payload(i, 3000 * (i % 4)) for i in range(60)] + [b"x" * 50_000]
    blobs.write(uri, contents)
    rows = shuffled(list(range(61)))
    spec = lt.TakeBlobs(uri, column="film", indices=rows, max_bytes_per_batch=20_000)
    batches = list(pa.RecordBatchReader.from_stream(lt.read(spec)))
    sizes = [[len(data) for data in batch["film"].to_pylist()] for batch in batches]
    assert all(sum(size) <= 20_000 or size == [50_000] for size in sizes)
    # No batch could have taken the next one's first row.
    assert all(sum(a) + b[0] > 20_000 for a, b in itertools.pairwise(sizes))
    assert [data for batch in batches for data in batch["film"].to_pylist()] == [
        contents[row] for row in rows
    ]


def test_large_payloads_and_the_memory_budget(uri: str, tmp_path: Path) -> None:
    large = blobs.payload(1, 40 << 20)
    outside = tmp_path / "outside.bin"
    outside.write_bytes(large[::-1])
    values = [b"small", large, lance.Blob.from_uri(outside.as_uri())]
    schema = pa.schema([lance.blob_field("film")])
    table = pa.table([lance.blob_array(values)], schema=schema)
    lance.write_dataset(
        table, uri, data_storage_version="2.2", allow_external_blob_outside_bases=True
    )
    contents = [b"small", large, large[::-1]]
    rows = [1, 0, 2, 1, 1, 2]
    assert take(uri, indices=rows)["film"].to_pylist() == [contents[row] for row in rows]
    tight = lt.Executor(num_threads=2, memory_budget=32 << 20)
    for row in (1, 2):
        with pytest.raises(lt.BudgetExceededError, match=rf"index {row}: {40 << 20} bytes"):
            take(uri, indices=[0, row], executor=tight)
        parts = [(i << 20, 5 << 20) for i in range(0, 36, 7)]
        table = take(uri, indices=[row] * len(parts), ranges=parts, executor=tight)
        expected = [contents[row][at : at + size] for at, size in parts]
        assert table["film"].to_pylist() == expected


def test_streams_share_the_memory_budget_and_give_it_back(uri: str) -> None:
    contents = [blobs.payload(i, 1 << 20) for i in range(8)]
    blobs.write(uri, contents)
    executor = lt.Executor(num_threads=2, memory_budget=8 << 20)
    spec = lt.TakeBlobs(uri, column="film", indices=list(range(8)) * 3, max_rows_per_task=5)
    # Left unread, closed in their midst, and read to their end: more of them than fit at one time.
    idle = [lt.read(spec, executor=executor) for _ in range(20)]
    for _ in range(20):
        with pa.RecordBatchReader.from_stream(lt.read(spec, executor=executor)) as reader:
            assert reader.read_next_batch().num_rows > 0
    assert pa.table(lt.read(spec, executor=executor))["film"].to_pylist() == contents * 3
    for stream in idle:
        stream.close()
        with pytest.raises(lt.InvalidStateError, match="closed"):
            pa.table(stream)
    # Several at one time, each in a thread of its own.
    got: list[list[bytes]] = []

    def read() -> None:
        got.append(pa.table(lt.read(spec, executor=executor))["film"].to_pylist())

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == [contents * 3] * 6


def test_a_stream_that_is_read_waits_for_no_later_one(uri: str) -> None:
    contents = [blobs.payload(i, 1 << 20) for i in range(8)]
    blobs.write(uri, contents)
    executor = lt.Executor(num_threads=4, memory_budget=4 << 20)
    spec = lt.TakeBlobs(uri, column="film", indices=list(range(8)), max_rows_per_task=1)
    streams = [lt.read(spec, executor=executor) for _ in range(3)]
    for stream in reversed(streams):
        assert pa.table(stream)["film"].to_pylist() == contents


def test_cancelling_and_deadlines(uri: str) -> None:
    blobs.write(uri, [b"0", b"1"])
    spec = lt.TakeBlobs(uri, column="film", indices=[0, 1] * 20, max_rows_per_task=1)
    stream = lt.read(spec)
    reader = pa.RecordBatchReader.from_stream(stream)
    assert reader.read_next_batch().num_rows == 1
    stream.close()
    with pytest.raises(Exception, match=r"CANCELLED.*task"):
        reader.read_all()
    reader = pa.RecordBatchReader.from_stream(lt.read(spec, timeout=1.0))
    assert reader.read_next_batch().num_rows == 1
    threading.Event().wait(1.2)
    with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
        reader.read_all()
    assert take(uri, indices=[1])["film"].to_pylist() == [b"1"]


def test_an_error_of_a_later_task_comes_in_its_turn(uri: str, tmp_path: Path) -> None:
    file = tmp_path / "outside.bin"
    file.write_bytes(b"outside")
    values = [b"0", b"1", lance.Blob.from_uri(file.as_uri()), b"3"]
    blobs.write(uri, values)
    file.unlink()
    spec = lt.TakeBlobs(uri, column="film", indices=[0, 1, 2, 3], max_rows_per_task=1)
    tasks = lt.plan(lt.prepare(spec))
    reader = pa.RecordBatchReader.from_stream(lt.read(tasks))
    assert [reader.read_next_batch()["film"][0].as_py() for _ in range(2)] == [b"0", b"1"]
    with pytest.raises(Exception, match=f"task {tasks[2].id}.*outside.bin"):
        reader.read_next_batch()
    with pytest.raises(lt.Error, match=r"outside\.bin") as error:
        lt.read(tasks[2])
    assert error.value.task_id == tasks[2].id
    # A part of it whose size is known is found missing when it is read.
    ranged = lance.Blob.from_uri(file.as_uri(), position=1, size=2)
    blobs.write(uri, [ranged], mode="overwrite")
    with pytest.raises(Exception, match=r"outside\.bin"):
        pa.table(lt.read(lt.TakeBlobs(uri, column="film", indices=[0])))


def test_data_is_read_once_and_by_others(uri: str) -> None:
    blobs.write(uri, [b"0", b"1"])
    spec = lt.TakeBlobs(uri, column="film", indices=[1, 0])
    stream = lt.read(spec)
    assert pa.schema(stream).names == ["_index", "film"]
    assert pa.table(stream)["film"].to_pylist() == [b"1", b"0"]
    with pytest.raises(lt.InvalidStateError, match="already"):
        pa.table(stream)
    with lt.read(spec) as stream:
        pass
    with pytest.raises(lt.InvalidStateError, match="closed"):
        pa.table(stream)
    # Dropped by the caller, and kept by the reader.
    reader = pa.RecordBatchReader.from_stream(lt.read(spec))
    assert reader.read_all()["_index"].to_pylist() == [1, 0]


def test_the_data_of_one_executor_is_the_input_of_another(uri: str, tmp_path: Path) -> None:
    blobs.write(uri, [b"0", b"1"])
    spec = lt.TakeBlobs(uri, column="film", indices=[1, 0])
    copy = str(tmp_path / "copy.lance")
    lt.run(lt.Write(copy), lt.read(spec, executor=lt.Executor(num_threads=2)))
    assert lance.dataset(copy).to_table()["film"].to_pylist() == [b"1", b"0"]
    with pytest.raises(lt.Error, match="another executor"):
        lt.run(lt.Write(copy, mode="append"), lt.read(spec))


# The other verbs


def test_the_other_verbs_say_what_to_do(uri: str) -> None:
    dataset = blobs.write(uri, [b"0", b"1"])
    spec = lt.TakeBlobs(uri, column="film", indices=[1])
    job = lt.prepare(spec)
    (task,) = lt.plan(job)
    assert job.operation == task.operation == "take_blobs"
    with pytest.raises(lt.InvalidArgumentError, match="read it"):
        lt.execute(task)
    (failed,) = lt.execute_all([task])
    assert isinstance(failed.error, lt.InvalidArgumentError)
    assert lt.plan(job, [failed]) == [task]
    with pytest.raises(lt.InvalidArgumentError, match="nothing to commit"):
        lt.commit(job, [])
    with pytest.raises(lt.InvalidArgumentError, match="read it"):
        lt.run(spec)
    with pytest.raises(lt.InvalidArgumentError, match="read it"):
        lt.adopt(job, task, "{}")
    assert lt.abort(job, [failed]).files_removed == 0
    with pytest.raises(lt.InvalidArgumentError, match="partition"):
        job.task("a")
    assert lance.dataset(uri).version == dataset.version
