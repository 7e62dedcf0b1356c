# SPDX-License-Identifier: Apache-2.0
"""Options of `run` and `write`: each does what it says, or is refused."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import lance
import nodes
import oracle
import pyarrow as pa
import pytest
import ray
from conftest import ROOT
from support import assert_same, make_dataset, numbers, read

import lance_tasks as lt
import lance_tasks.ray as ltr


def blocks(count: int = 4, rows: int = 50) -> list[pa.Table]:
    return [numbers(rows, i * rows) for i in range(count)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_retries": -1}, "max_retries"),
        ({"num_workers": 0}, "num_workers"),
        ({"timeout": 0}, "timeout"),
        ({"timeline": "t.png"}, "timeline"),
        ({"timeline": "/nowhere/t.svg"}, "no such folder"),
        ({"schema": numbers(0).schema}, "schema"),
        ({"min_rows_per_file": 5, "preserve_order": True}, "min_rows_per_file, preserve_order"),
        ({"spool_storage_options": {}}, "there is no spool"),
        ({"data": blocks(1)}, "takes no rows"),
        ({"ray_remote_args": {"max_restarts": 1}}, r"ray_remote_args\['max_restarts'\]"),
    ],
)
def test_refused(uri: str, options: dict, said: str) -> None:
    make_dataset(uri, rows=10)
    with pytest.raises(lt.InvalidArgumentError, match=said):
        ltr.run(lt.Compact(uri), **options)


def test_refused_of_writes_and_reads(uri: str) -> None:
    ds = ray.data.range(10)
    with pytest.raises(lt.InvalidArgumentError, match="speculate: of no use here: Ray Data"):
        ltr.run(lt.Write(uri), data=ds, speculate=True)
    for data in (ds, blocks()):
        with pytest.raises(lt.InvalidArgumentError, match="partial: a write commits all"):
            ltr.run(lt.Write(uri), data=data, partial=True)
    with pytest.raises(lt.InvalidArgumentError, match="order of these data is always kept"):
        ltr.run(lt.Write(uri), data=blocks(), preserve_order=True)
    with pytest.raises(lt.InvalidArgumentError, match="partitions"):
        ltr.run(lt.Write(uri, partitions=["a"]), data=blocks())
    with pytest.raises(TypeError, match="data: int"):
        ltr.run(lt.Write(uri), data=7)
    with pytest.raises(TypeError, match="Event"):
        ltr.run(lt.Write(uri), data=blocks(), cancel=7)
    take = lt.TakeBlobs(uri, column="x", indices=[0])
    with pytest.raises(lt.InvalidArgumentError, match="spool, timeline: of no use here: take_blob"):
        ltr.run(take, spool="x", timeline="x.svg")
    assert not Path(uri).exists()


def test_timeout_and_cancel(uri: str) -> None:
    """Both end the job in the middle, and nothing is left."""
    make_dataset(uri)
    before = oracle.files(uri)
    spec = lt.Compact(uri, target_rows_per_fragment=200)
    slow = nodes.hooked("straggle", STRAGGLE=uri + ".mark", STRAGGLE_FOR="60")
    with pytest.raises(lt.DeadlineExceededError, match="more than 4 s"):
        ltr.run(spec, ray_remote_args=slow, timeout=4)
    assert oracle.files(uri) == before
    Path(uri + ".mark").unlink(missing_ok=True)
    event = threading.Event()
    threading.Timer(4, event.set).start()
    with pytest.raises(lt.CancelledError, match="cancelled by the caller"):
        ltr.run(spec, ray_remote_args=slow, cancel=event)
    assert oracle.files(uri) == before


def test_timeout_and_cancel_of_a_ray_dataset(uri: str, tmp_path: Path) -> None:
    make_dataset(uri, rows=10)
    before = oracle.files(uri)

    def slow(batch: dict) -> dict:
        time.sleep(0.3)
        (tmp_path / f"block {batch['id'][0]} {time.time()}").touch()
        return batch

    def computed() -> int:
        return len(list(tmp_path.glob("block *")))

    ds = ray.data.range(1000, override_num_blocks=100).map_batches(slow)
    with pytest.raises(lt.DeadlineExceededError):
        ltr.write(ds, uri, mode="append", timeout=3)
    assert computed() < 100
    event = threading.Event()
    threading.Timer(3, event.set).start()
    with pytest.raises(lt.CancelledError, match="cancelled by the caller"):
        ltr.run(lt.Write(uri, mode="append"), data=ds, cancel=event)
    assert computed() < 200
    assert oracle.files(uri) == before


def test_a_users_function_fails(uri: str) -> None:
    def wrong() -> pa.Table:
        raise ZeroDivisionError("of a user")

    make_dataset(uri, rows=10)
    before = oracle.files(uri)
    with pytest.raises(ZeroDivisionError, match="of a user"):
        ltr.run(lt.Write(uri, mode="append"), data=[*blocks(), wrong])
    assert oracle.files(uri) == before


SHIPPED = """
import sys
import pyarrow as pa, ray
import lance_tasks as lt, lance_tasks.ray as ltr
env = {"py_modules": [sys.argv[2]], "env_vars": {"LANCE_TASKS_LIBRARY": "", "PYTHONPATH": ""}}
ray.init(address=sys.argv[1], runtime_env=env, log_to_driver=False)
def block():
    import lance_tasks
    return pa.table({"place": [lance_tasks.__file__]})
schema = pa.schema([("place", pa.string())])
ltr.run(lt.Write(sys.argv[3]), data=[block], schema=schema)
"""


def test_shipped_by_runtime_env(uri: str, tmp_path: Path, cluster) -> None:
    """Workers without the package get it from the driver's machine, the library in it."""
    package = tmp_path / "lance_tasks"
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "python/lance_tasks", package, ignore=ignore)
    library = package / "liblance_tasks.so"
    subprocess.run(["strip", "-o", str(library), os.environ["LANCE_TASKS_LIBRARY"]], check=True)
    command = [sys.executable, "-c", SHIPPED, cluster.address, str(package), uri]
    subprocess.run(command, check=True)
    (place,) = read(uri)["place"].to_pylist()
    assert "py_modules_files" in place, place


def test_abort_of_a_spool(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = tmp_path / "spool"
    real = lt.commit

    def fails(*_: object, **__: object) -> None:
        raise SystemExit("killed")

    monkeypatch.setattr(lt, "commit", fails)
    with pytest.raises(SystemExit):
        ltr.run(lt.Write(uri), data=blocks(), spool=spool)
    monkeypatch.setattr(lt, "commit", real)
    assert oracle.files(uri)
    report = ltr.abort(spool)
    assert report.files_removed == 4 and not oracle.files(uri)
    with pytest.raises(lt.InvalidStateError, match="was aborted"):
        ltr.run(lt.Write(uri), data=blocks(), spool=spool)
    with pytest.raises(lt.NotFoundError, match="holds no job"):
        ltr.abort(tmp_path / "none")


def test_blobs_are_compacted(uri: str) -> None:
    films = [bytes([i % 7]) * 100_000 for i in range(40)]
    table = pa.table({"id": range(40), "film": lt.blob_array(films)})
    ltr.run(lt.Write(uri, blob_columns=["film"], dedup="content"), data=[table[:20], table[20:]])
    size = sum(p.stat().st_size for p in Path(uri).rglob("*.blob"))
    assert size < 20 * 100_000
    ltr.run(lt.Compact(uri))
    (fragment,) = lance.dataset(uri).get_fragments()
    assert fragment.count_rows() == 40
    taken = ltr.run(lt.TakeBlobs(uri, column="film", indices=list(range(40)))).take_all()
    assert sorted(row["film"] for row in taken) == sorted(films)


NO_PYLANCE = """
import sys
for name in ("lance", "pylance"):
    sys.modules[name] = None  # importing it fails
import ray
import lance_tasks as lt, lance_tasks.ray as ltr
ray.init(address=sys.argv[1], log_to_driver=False)
ltr.write(ray.data.range(100), sys.argv[2])
ltr.run(lt.CreateIndex(sys.argv[2], column="id", index_type="BTREE"), spool=sys.argv[3])
def block():
    assert "lance" not in sys.modules
    import pyarrow
    return pyarrow.table({"id": [7]})
ltr.run(lt.Write(sys.argv[2], mode="append"), data=[block])
"""


def test_no_pylance_is_needed(uri: str, tmp_path: Path, cluster) -> None:
    command = [sys.executable, "-c", NO_PYLANCE, cluster.address, uri, str(tmp_path / "spool")]
    subprocess.run(command, check=True)
    assert lance.dataset(uri).count_rows() == 101


def test_order_of_many_blocks(uri: str) -> None:
    """More write tasks than a name of one digit has."""
    ds = ray.data.range(2300, override_num_blocks=23)
    ltr.write(ds, uri, preserve_order=True, concurrency=2)
    assert read(uri)["id"].to_pylist() == list(range(2300))
    assert len(lance.dataset(uri).get_fragments()) == 23


def test_a_worker_with_more_cpus(uri: str) -> None:
    """Its executor has as many threads; fractions of a CPU have one."""
    make_dataset(uri)
    ltr.run(lt.Compact(uri, target_rows_per_fragment=300), ray_remote_args={"num_cpus": 0.5})
    assert_same(read(uri), numbers(1200))


def test_data_that_need_the_clusters_cpus(uri: str) -> None:
    """References to tasks that are not done, and an iterable that Ray feeds."""

    @ray.remote
    def make(i: int) -> pa.Table:
        time.sleep(0.3)
        return pa.table({"id": range(i * 10, i * 10 + 10)})

    references = [make.remote(i) for i in range(8)]
    ltr.run(lt.Write(uri), data=[*references, references[0]], timeout=60)
    assert read(uri)["id"].to_pylist() == [*range(80), *range(10)]
    ds = ray.data.range(400, override_num_blocks=20).map_batches(lambda b: b)
    batches = ds.iter_batches(batch_size=20, batch_format="pyarrow")
    ltr.run(lt.Write(uri + "2"), data=batches, timeout=60)
    assert sorted(read(uri + "2")["id"].to_pylist()) == list(range(400))


def test_no_block_in_a_partition(uri: str) -> None:
    with pytest.raises(lt.InvalidArgumentError, match="empty tuple"):
        ltr.run(lt.Write(uri), data=[(), *blocks()])
