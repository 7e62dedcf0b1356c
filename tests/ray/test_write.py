# SPDX-License-Identifier: Apache-2.0
"""Ray Datasets through the Datasink."""

import io
import json
import os
import sys
import threading
import time
from pathlib import Path

import lance
import nodes
import numpy as np
import oracle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from support import make_dataset, read

import lance_tasks as lt
import lance_tasks.ray as ltr


def rows_per_file(uri: str) -> list[int]:
    return [fragment.count_rows() for fragment in lance.dataset(uri).get_fragments()]


def ids(uri: str) -> list[int]:
    return sorted(read(uri)["id"].to_pylist())


def test_modes(uri: str) -> None:
    outcome = ltr.write(ray.data.range(1000, override_num_blocks=5), uri)
    assert (outcome.version, outcome.rows) == (1, 1000)
    ltr.write(ray.data.range(10), uri, mode="append")
    assert lance.dataset(uri).count_rows() == 1010
    ltr.write(ray.data.range(20), uri, mode="overwrite")
    assert ids(uri) == list(range(20))
    with pytest.raises(lt.AlreadyExistsError):
        ltr.write(ray.data.range(10), uri)
    oracle.check_no_stray(uri)


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They begin in the driver's folder, whoever prepares the job."""
    monkeypatch.chdir(tmp_path)
    ltr.write(ray.data.range(10), "known.lance")
    ltr.write(ray.data.range(10).map_batches(lambda b: b), "unknown.lance")
    ltr.run(lt.Compact("known.lance"))
    assert ids(str(tmp_path / "known.lance")) == ids(str(tmp_path / "unknown.lance"))


def test_a_spool_of_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ray.data.range(10)
    ltr.write(rows, "d.lance", spool="sp")
    assert ltr.write(rows, "d.lance", spool="sp").already_committed
    ltr.run(lt.Compact("d.lance"), spool="sp2")
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(lt.InvalidArgumentError, match="uri: the spool has"):
        ltr.run(lt.Compact("d.lance"), spool=tmp_path / "sp2")


def test_run_takes_a_dataset(uri: str) -> None:
    spec = lt.Write(uri, max_rows_per_file=40)
    ltr.run(spec, data=ray.data.range(100, override_num_blocks=1))
    assert rows_per_file(uri) == [40, 40, 20]


def test_small_blocks_are_put_together_in_order(uri: str) -> None:
    ds = ray.data.range(1000, override_num_blocks=100)
    ltr.write(ds, uri, min_rows_per_file=250, preserve_order=True)
    assert rows_per_file(uri) == [250] * 4
    assert read(uri)["id"].to_pylist() == list(range(1000))
    assert ds.context.execution_options.preserve_order is False


def test_what_was_put_together_is_not_cut_again(uri: str) -> None:
    ds = ray.data.range(2_600_000, override_num_blocks=26)
    ltr.write(ds, uri, min_rows_per_file=1_200_000, preserve_order=True)
    assert rows_per_file(uri) == [1_200_000, 1_200_000, 200_000]
    ltr.write(ray.data.range(90), uri, mode="overwrite", max_rows_per_file=40, min_rows_per_file=40)
    assert max(rows_per_file(uri)) == 40
    with pytest.raises(lt.InvalidArgumentError, match="min_rows_per_file: 50 is more than max"):
        ltr.write(ds, uri, mode="append", max_rows_per_file=40, min_rows_per_file=50)


def test_fused(uri: str, capfd: pytest.CaptureFixture) -> None:
    """The write runs in the task of what comes before, and the schema is that of its rows."""
    seen: list[str] = []
    real = ray.data.Dataset.write_datasink

    def watched(self: ray.data.Dataset, *given: object, **options: object) -> None:
        real(self, *given, **options)
        seen.append(self._write_ds.stats())

    ray.data.Dataset.write_datasink = watched
    try:
        ds = ray.data.range(100, override_num_blocks=4)
        ltr.write(ds.map_batches(lambda b: {"x": b["id"] * 1.5, "id": b["id"]}), uri)
    finally:
        ray.data.Dataset.write_datasink = real
    assert "MapBatches(<lambda>)->Write" in seen[0], seen
    table = read(uri)
    assert table.schema.names == ["x", "id"] and table["x"].type == pa.float64()
    assert ids(uri) == list(range(100))


def test_vectors(uri: str) -> None:
    ds = ray.data.range(60, override_num_blocks=3).map_batches(
        lambda b: {"id": b["id"], "v": np.repeat(b["id"][:, None], 8, 1).astype("float32")}
    )
    ltr.write(ds, uri)
    table = read(uri).sort_by("id")
    assert table["v"].type == pa.list_(pa.float32(), 8)
    assert table["v"].to_pylist()[7] == [7.0] * 8


def test_blobs(uri: str) -> None:
    def film(b: dict) -> dict:
        return {"id": b["id"], "film": [bytes([int(i)]) * 100_000 for i in b["id"]]}

    ds = ray.data.range(20, override_num_blocks=4).map_batches(film)
    ltr.write(ds, uri, blob_columns=["film"])
    taken = ltr.read(lt.TakeBlobs(uri, column="film", indices=list(range(20)))).take_all()
    assert sorted(row["film"] for row in taken) == [bytes([i]) * 100_000 for i in range(20)]


def test_blocks_of_various_schemas(uri: str) -> None:
    """Columns in another order, of another width, or with nothing but nulls."""
    tables = [
        pa.table({"id": pa.array([1, 2], pa.int64()), "name": pa.array([None, None], pa.null())}),
        pa.table({"name": ["a"], "id": pa.array([3], pa.int32())}),
        pa.table({"id": pa.array([4], pa.int64()), "name": pa.array(["b"], pa.large_string())}),
    ]
    schema = pa.schema([("id", pa.int64()), ("name", pa.string())])
    ltr.write(ray.data.from_arrow(tables), uri, schema=schema)
    table = read(uri).sort_by("id")
    assert table.schema.equals(schema) and table["name"].to_pylist() == [None, None, "a", "b"]
    ltr.write(ray.data.from_arrow(tables), uri, mode="append", min_rows_per_file=4)
    assert lance.dataset(uri).count_rows() == 8
    strange = pa.table({"id": [1], "name": ["x"], "other": [1]})
    with pytest.raises(lt.SchemaMismatchError, match="other"):
        ltr.write(ray.data.from_arrow([strange]), uri, mode="append")
    oracle.check_no_stray(uri)


def test_nothing_to_write(uri: str) -> None:
    make_dataset(uri, rows=10)
    empty = ray.data.range(10).filter(lambda row: False)
    assert ltr.write(empty, uri, mode="append").rows == 10
    schema = pa.schema([("id", pa.int64())])
    other = uri + "2"
    assert ltr.write(empty, other, schema=schema).rows == 0
    assert read(other).schema.equals(schema)


def test_a_function_fails(uri: str) -> None:
    make_dataset(uri, rows=10)
    before = oracle.files(uri)

    def fails(b: dict) -> dict:
        if b["id"][0] > 50:
            raise ZeroDivisionError("of a user")
        return {"id": b["id"]}

    with pytest.raises(Exception, match="of a user"):
        ltr.write(
            ray.data.range(100, override_num_blocks=10).map_batches(fails), uri, mode="append"
        )
    assert oracle.files(uri) == before


def fail_once(mark: Path):
    """Makes the worker's process die, or the store fail, in the middle of the first attempt."""

    def function(b: dict) -> dict:
        if 30 in b["id"] and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), 9)
        return {"id": b["id"]}

    return function


def test_a_write_worker_is_killed(uri: str, tmp_path: Path) -> None:
    """What comes before runs again, and so does the write; one attempt counts."""
    ds = ray.data.range(100, override_num_blocks=2).map_batches(
        fail_once(tmp_path / "mark"), batch_size=10
    )
    ltr.write(ds, uri)
    assert (tmp_path / "mark").exists()
    assert ids(uri) == list(range(100))
    oracle.check_no_stray(uri)


def test_a_writer_dies_with_its_files_written(uri: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    hook = nodes.hooked("dying_writer", MARK=str(tmp_path / "mark"))
    ds = ray.data.range(100, override_num_blocks=4)
    ltr.write(ds, uri, ray_remote_args=hook, timeline=path)
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e["ph"] == "X"]
    assert sorted(e["cat"] for e in events) == ["again", "lost", "ok", "ok", "ok"]
    assert ids(uri) == list(range(100))
    oracle.check_no_stray(uri)


def test_the_store_fails_for_a_while(uri: str, tmp_path: Path) -> None:
    hook = nodes.hooked("busy_store", MARK=str(tmp_path / "mark"))
    ds = ray.data.range(100, override_num_blocks=4)
    path = tmp_path / "t.json"
    ltr.write(ds, uri, ray_remote_args=hook, timeline=path)
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e["ph"] == "X"]
    assert sorted(e["cat"] for e in events) == ["again", "failed", "ok", "ok", "ok"]
    assert [e["args"]["error"] for e in events if e["cat"] == "failed"] == ["IO"]
    assert ids(uri) == list(range(100))
    oracle.check_no_stray(uri)
    (tmp_path / "mark").unlink()
    with pytest.raises(lt.StorageError, match="busy"):
        ltr.write(ds, uri, mode="append", ray_remote_args=hook, max_retries=0)
    assert ids(uri) == list(range(100))
    oracle.check_no_stray(uri)


def test_parquet(uri: str, sources: Path) -> None:
    for i in range(8):
        table = pa.table({"id": range(i * 50, i * 50 + 50)})
        pq.write_table(table, sources / f"{i}.parquet")
    ltr.write(ray.data.read_parquet(str(sources)), uri, min_rows_per_file=400)
    assert rows_per_file(uri) == [400]
    assert ids(uri) == list(range(400))


def test_spool(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver ends before the commit: the next one commits, and reads nothing."""
    spool = tmp_path / "spool"
    real = lt.commit

    def fails(*_: object, **__: object) -> None:
        raise SystemExit("killed")

    monkeypatch.setattr(lt, "commit", fails)
    with pytest.raises(SystemExit):
        ltr.write(ray.data.range(100, override_num_blocks=4), uri, spool=spool)
    assert not Path(uri, "_versions").exists()
    monkeypatch.setattr(lt, "commit", real)
    gone = ray.data.range(100, override_num_blocks=4).map_batches(lambda b: 1 / 0)
    assert ltr.write(gone, uri, spool=spool).rows == 100
    assert ids(uri) == list(range(100))
    assert ltr.write(gone, uri, spool=spool).already_committed
    oracle.check_no_stray(uri)


def test_spool_of_a_driver_that_died_while_reading(uri: str, tmp_path: Path) -> None:
    """What it wrote is removed, and the data are read again."""
    from lance_tasks.ray._spool import Spool

    spool = tmp_path / "spool"
    schema = pa.schema([("id", pa.int64())])
    job = lt.prepare(lt.Write(uri), schema=schema)
    Spool(str(spool), {}).put_pending(job)
    lt.execute(job.task("0"), pa.table({"id": [1, 2, 3]}))
    assert ltr.write(ray.data.range(100, override_num_blocks=4), uri, spool=spool).rows == 100
    oracle.check_no_stray(uri)
    assert not (spool / "pending.json").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    ds = ray.data.range(1000, override_num_blocks=10)
    ltr.write(ds, uri)
    assert "write 10 tasks, 1,000 rows, " in terminal.getvalue()
    ltr.run(lt.Compact(uri))
    assert "1/1 tasks, 1,000 rows" in terminal.getvalue()
    before = terminal.getvalue()
    ltr.write(ds, uri, mode="append", progress=False)
    assert "tasks" not in terminal.getvalue()[len(before) :]


def test_a_sink_writes_once(uri: str) -> None:
    sink = ltr.LanceDatasink(lt.Write(uri))
    ray.data.range(10).write_datasink(sink)
    assert sink.outcome is not None and sink.outcome.rows == 10
    with pytest.raises(lt.InvalidStateError, match="make another"):
        ray.data.range(20).write_datasink(sink)
    assert ids(uri) == list(range(10))
    oracle.check_no_stray(uri)


def test_a_second_use_leaves_the_first_alone(uri: str) -> None:
    """Of a sink whose first write is under way."""
    sink = ltr.LanceDatasink(lt.Write(uri))

    def slow(b: dict) -> dict:
        time.sleep(0.5)
        return b

    ds = ray.data.range(40, override_num_blocks=8).map_batches(slow)
    thread = threading.Thread(target=lambda: ds.write_datasink(sink))
    thread.start()
    while sink._desk is None:
        time.sleep(0.01)
    with pytest.raises(lt.InvalidStateError, match="make another"):
        ray.data.range(20).write_datasink(sink)
    thread.join()
    assert ids(uri) == list(range(40))


def test_a_task_that_comes_late(uri: str) -> None:
    """After the write has ended, whatever became of the cluster's store."""
    from ray.experimental.internal_kv import _internal_kv_list

    from lance_tasks.ray._desk import Desk, here

    desk = Desk(keep=True)
    desk.start()
    before = desk.begin("0", here())
    desk.close(lt.DeadlineExceededError("the time is over"))
    with pytest.raises(lt.DeadlineExceededError) as caught:
        desk.job("0", b"job", b"spec", b"schema", None)
    assert caught.value.retry_class == "fatal", "Ray does not try it again"
    desk.remove()
    late = desk.begin("1", here())
    with pytest.raises(lt.CancelledError, match="has ended"):
        desk.job("0", b"job", b"spec", b"schema", None)
    for name in (before, late):
        desk.end(name, "0", here(), 0.0, None, "CANCELLED")
    assert _internal_kv_list(b"", namespace=b"lance_tasks") == []


def test_no_block_is_left_out(uri: str) -> None:
    def fails(b: dict) -> dict:
        if b["id"][0] == 0:
            raise ZeroDivisionError("of a user")
        return b

    ds = ray.data.range(100, override_num_blocks=4).map_batches(fails)
    ds.context.max_errored_blocks = 2
    with pytest.raises(Exception, match="of a user"):
        ltr.write(ds, uri)
    assert not Path(uri).exists() or not oracle.files(uri)
    assert ds.context.max_errored_blocks == 2


def test_nothing_stays_in_the_cluster(uri: str) -> None:
    from ray.experimental.internal_kv import _internal_kv_list

    ltr.write(ray.data.range(100).map_batches(lambda b: b), uri, timeline=uri + ".json")
    assert _internal_kv_list(b"", namespace=b"lance_tasks") == []


def test_two_drivers_on_one_spool(uri: str, tmp_path: Path) -> None:
    """One that begins while another reads takes it for dead; the other ends, and says why."""
    spool = tmp_path / "spool"
    schema = pa.schema([("id", pa.int64())])
    started = tmp_path / "started"

    def waits(b: dict) -> dict:
        started.touch()
        time.sleep(4)
        return b

    failed: list[BaseException] = []

    def first() -> None:
        try:
            slow = ray.data.range(10, override_num_blocks=1).map_batches(waits)
            ltr.write(slow, uri, schema=schema, spool=spool)
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=first)
    thread.start()
    while not started.exists():
        time.sleep(0.05)
    rows = ray.data.range(20, override_num_blocks=1)
    assert ltr.write(rows, uri, schema=schema, spool=spool).rows == 20
    thread.join()
    assert isinstance(failed[0], (lt.InvalidStateError, lt.Error)), failed
    assert ids(uri) == list(range(20))
    oracle.check_no_stray(uri)
    assert ltr.write(rows, uri, schema=schema, spool=spool).already_committed
