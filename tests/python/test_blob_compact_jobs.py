# SPDX-License-Identifier: Apache-2.0
"""Compactions of blobs: what is shared stays shared, memory, and the jobs among other writers."""

import subprocess
import sys
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from blob_cases import blobs_of, data_bytes, kinds, payload, same, table, write
from blob_files import SMALL, check_rows, exact, payload_files, taken
from lance.optimize import Compaction, RewriteResult
from support import files, finish, fragment_rows, hidden, run_loop, unchanged
from test_blob_compact import all_kinds, clean, delete, make
from test_interop import rewrite_json

import lance_tasks as lt


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """A folder for what blobs refer to."""
    return tmp_path / "objects"


def places(uri: str) -> list[tuple[int, int, int]]:
    """Fragment, file and position of the payloads that lie outside of data files."""
    found = []
    for fragment in lance.dataset(uri).get_fragments():
        rows = fragment.to_table(columns=["blob"])["blob"].to_pylist()
        found += [(fragment.fragment_id, d["blob_id"], d["position"]) for d in rows]
    return found


# Sharing


SIZES = {"500 B": 500, "32 KB": 32_768, "1 MB": 1_000_000, "5 MB": 5_000_000}


@pytest.mark.parametrize("fragments", [1, 4])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_shared_payload_is_written_once(size: int, fragments: int, uri: str) -> None:
    """However many rows have it, in whichever of the fragments, whatever its size."""
    data = payload(size)
    rows = [lt.Blob(data, ref_id=1) for _ in range(16)]
    write(uri, table(rows), max_rows_per_file=16 // fragments)
    kept = dict.fromkeys(range(16), data)
    delete(uri, kept, [0, 6, 7, 15])
    job = lt.prepare(lt.Compact(uri))
    results = finish(job)
    made = [f for result in results for f in result.to_dict()["files"]]
    assert [f["size"] for f in made if f["path"].endswith(".blob")] == [size]
    assert sum(result.bytes_written for result in results) == sum(f["size"] for f in made)
    lt.commit(job, results)
    assert len(set(places(uri))) == 1
    clean(uri, kept)
    assert list(payload_files(uri).values()) == [size]


def test_many_shared_payloads(uri: str) -> None:
    """1,000 rows over 50 payloads in 4 fragments: no more is written than there is."""
    distinct = [payload(20_000 + n, n) for n in range(50)]
    rows = [lt.Blob(distinct[n * 7 % 50], ref_id=n * 7 % 50 + 1) for n in range(1000)]
    write(uri, table(rows), max_rows_per_file=250)
    assert sum(payload_files(uri).values()) == 4 * sum(map(len, distinct))
    job = lt.prepare(lt.Compact(uri))
    results = finish(job)
    written = sum(result.bytes_written for result in results)
    assert written <= 1.1 * sum(map(len, distinct))
    lt.commit(job, results)
    lt.run(lt.Cleanup(uri, older_than=0))
    exact(uri)
    assert sum(payload_files(uri).values()) == sum(map(len, distinct))
    assert data_bytes(uri) == written
    dataset = lance.dataset(uri)
    assert fragment_rows(uri) == [1000]
    expected = [distinct[n * 7 % 50] for n in range(1000)]
    same(blobs_of(dataset), expected)
    same(taken(uri, dataset), expected)
    dataset.validate()


def test_shared_in_each_new_fragment(uri: str) -> None:
    """Several new fragments each have what their rows need, once."""
    distinct = [payload(3000, n) for n in range(3)]
    rows = [lt.Blob(distinct[n % 3], ref_id=n % 3 + 1) for n in range(60)]
    write(uri, table(rows), max_rows_per_file=60)
    kept = {n: distinct[n % 3] for n in range(60)}
    delete(uri, kept, list(range(0, 60, 5)))
    run_loop(lt.Compact(uri, target_rows_per_fragment=12))
    assert fragment_rows(uri) == [12] * 4
    clean(uri, kept)
    assert list(payload_files(uri).values()) == [9000] * 4


def test_shared_beside_others(uri: str, objects: Path) -> None:
    """Rows that share, rows of other bytes of the same size, and every other kind."""
    values, payloads = all_kinds(objects, range(14))
    one, two = payload(1000, "one"), payload(5000, "two")
    mixed = []
    for n, (value, data) in enumerate(zip(values, payloads, strict=True)):
        other = payload(1000, n)
        mixed += [(value, data), (lt.Blob(one, ref_id=5), one), (lt.Blob(other), other)]
        mixed += [(lt.Blob(two, ref_id=6), two)] if n % 2 else [(None, None)]
    bases = [lt.Base(7, str(objects))]
    columns = [lt.BlobColumn("blob", **SMALL)]
    rows = table(value for value, _ in mixed)
    write(uri, rows, max_rows_per_file=28, blob_columns=columns, initial_bases=bases)
    kept = {n: data for n, (_, data) in enumerate(mixed)}
    before = sorted(map(str, kinds(lance.dataset(uri))))
    run_loop(lt.Compact(uri))
    assert sorted(map(str, kinds(lance.dataset(uri)))) == before
    clean(uri, kept)
    own = sum(len(data) for data in payloads[1::7] + payloads[2::7])
    assert sum(payload_files(uri).values()) == 5000 + 1000 + 14 * 1000 + own


def test_columns_do_not_share_with_each_other(uri: str) -> None:
    """Each has its own place for the same id."""
    left, right = payload(3000, "left"), payload(4000, "right")
    data = table([lt.Blob(left, ref_id=1)] * 12)
    other = lt.blob_array([lt.Blob(right, ref_id=1)] * 12)
    data = data.append_column("other", other)
    write(uri, data, max_rows_per_file=3, blob_columns=["blob", "other"])
    run_loop(lt.Compact(uri))
    check_rows(uri, dict.fromkeys(range(12), left))
    clean(uri, dict.fromkeys(range(12), left))
    check_rows(uri, dict.fromkeys(range(12), right), column="other")
    assert sum(payload_files(uri).values()) == 7000


def test_sharing_goes_on_over_compactions(uri: str) -> None:
    """Compacted, appended to, and compacted again: still once."""
    data = payload(100_000)
    write(uri, table([lt.Blob(data, ref_id=1)] * 6), max_rows_per_file=3)
    for n in range(1, 4):
        run_loop(lt.Compact(uri))
        more = table([lt.Blob(data, ref_id=1)] * 6, start=6 * n)
        write(uri, more, mode="append", max_rows_per_file=3)
    run_loop(lt.Compact(uri))
    clean(uri, dict.fromkeys(range(24), data))
    assert list(payload_files(uri).values()) == [100_000]


# Memory


LARGE = r"""
import re, sys
from pathlib import Path
import lance_tasks as lt

def peak() -> int:
    # Of this process alone: what `getrusage` says begins with the parent's.
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

uri = sys.argv[1]
executor = lt.Executor(num_threads=2, memory_budget=64 << 20)
lt.prepare(lt.Compact(uri), executor=executor)
start = peak()
job = lt.prepare(lt.Compact(uri), executor=executor)
results = list(lt.execute_all(lt.plan(job, executor=executor), executor=executor))
assert [r.status for r in results] == ["ok"], [r.error for r in results]
lt.commit(job, results, executor=executor)
print(peak() - start)
"""

MEASURED = {
    "dedicated": (40, 8 << 20),
    "packed": (80, 4 << 20),
    "inline": (5000, 60_000),
    "alone": (40, 8 << 20),
}


def numbered(size: int, n: int) -> bytes:
    """Bytes that differ by their number, quickly made."""
    return n.to_bytes(8, "big") * (size // 8)


@pytest.mark.parametrize("kind", MEASURED)
def test_memory_is_bounded(kind: str, uri: str) -> None:
    """Fragments whose payloads are many times the budget."""
    rows, size = MEASURED[kind]
    at_once = min(rows, (16 << 20) // size)

    def batches():
        for n in range(0, 2 * rows, at_once):
            numbers = range(n, min(n + at_once, 2 * rows))
            yield from chosen(table([numbered(size, i) for i in numbers], n)).to_batches()

    def chosen(data: pa.Table) -> pa.Table:
        return data.select(["blob"]) if kind == "alone" else data

    schema = chosen(table([])).schema
    reader = pa.RecordBatchReader.from_batches(schema, batches())
    lt.run(lt.Write(uri, blob_columns=["blob"], max_rows_per_file=rows), data=reader)
    stored = {"alone": "dedicated"}.get(kind, kind)
    assert set(kinds(lance.dataset(uri))) == {stored}
    run = subprocess.run([sys.executable, "-c", LARGE, uri], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    peak = int(run.stdout) << 10
    assert fragment_rows(uri) == [2 * rows]
    # Of 600 MB and more; what Lance holds comes on top of the budget.
    assert peak < 4 * (64 << 20), f"{peak >> 20} MiB held with a budget of 64 MiB"
    spec = lt.TakeBlobs(uri, column="blob", indices=range(2 * rows), ranges=[(0, 8)] * (2 * rows))
    found = pa.table(lt.read(spec))["blob"].to_pylist()
    assert found == [n.to_bytes(8, "big") for n in range(2 * rows)]


def test_payload_larger_than_the_task_may_hold(uri: str) -> None:
    """Those with a file of their own are copied piece by piece; nothing else of the size fits."""
    data = {n: numbered(40 << 20, n) for n in range(2)}
    write(uri, table(data.values()), max_rows_per_file=1)
    tight = lt.Executor(num_threads=2, memory_budget=24 << 20)
    job = lt.prepare(lt.Compact(uri), executor=tight)
    results = [lt.execute(task, executor=tight) for task in lt.plan(job, executor=tight)]
    lt.commit(job, results, executor=tight)
    assert fragment_rows(uri) == [2]
    clean(uri, data)


def test_payload_that_does_not_fit_is_refused(uri: str) -> None:
    column = lt.BlobColumn("blob", dedicated_size_threshold=100 << 20)
    write(uri, table([numbered(40 << 20, n) for n in range(2)]), blob_columns=[column])
    write(uri, table([numbered(8, 0)], start=2), mode="append")
    tight = lt.Executor(num_threads=2, memory_budget=24 << 20)
    (task,) = lt.plan(lt.prepare(lt.Compact(uri)))
    with unchanged(uri), pytest.raises(lt.BudgetExceededError, match=r'"blob".*memory_budget'):
        lt.execute(task, executor=tight)


# Interop


def test_pylance_commits_our_compaction(uri: str, objects: Path) -> None:
    payloads = make(uri, objects, rows=63)
    lance.dataset(uri).create_scalar_index("id", "BTREE")
    delete(uri, payloads, [0, 8, 9])
    job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=12))
    rewrites = [RewriteResult.from_json(rewrite_json(result)) for result in finish(job)]
    assert len(rewrites) > 1
    metrics = Compaction.commit(lance.dataset(uri), rewrites)
    assert metrics.fragments_removed == 9
    assert metrics.fragments_added == len(fragment_rows(uri))
    clean(uri, payloads)


def test_our_commit_of_what_pylance_compacted(uri: str, objects: Path) -> None:
    """Payloads' files are among those that the result names, so that abort finds them."""
    payloads = make(uri, objects, rows=63)
    delete(uri, payloads, [0, 8, 9])
    options = {"target_rows_per_fragment": 12}
    job = lt.prepare(lt.Compact(uri, **options))
    tasks, before = lt.plan(job), files(uri)
    theirs = Compaction.plan(lance.dataset(uri), options).tasks
    assert len(theirs) == len(tasks) > 1
    results = [
        lt.adopt(job, task, other.execute(lance.dataset(uri)))
        for task, other in zip(tasks, theirs, strict=True)
    ]
    made = {path: size for path, size in files(uri).items() if path not in before}
    named = [f for result in results for f in result.to_dict()["files"]]
    assert {f["path"]: f["size"] for f in named} == made
    assert len([path for path in made if path.endswith(".blob")]) > 2
    # One of them by us in its place: pylance's goes, with its payloads.
    results.append(lt.execute(tasks[0]))
    lt.commit(job, results[1:])
    lt.abort(job, results)
    clean(uri, payloads)


def test_abort_of_what_pylance_compacted(uri: str, objects: Path) -> None:
    make(uri, objects)
    job = lt.prepare(lt.Compact(uri))
    (task,) = lt.plan(job)
    (other,) = Compaction.plan(lance.dataset(uri), {}).tasks
    with unchanged(uri):
        result = lt.adopt(job, task, other.execute(lance.dataset(uri)))
        lt.abort(job, [result])


# Other writers


def test_delete_in_between(uri: str, objects: Path) -> None:
    payloads = make(uri, objects)
    job = lt.prepare(lt.Compact(uri))
    results = finish(job)
    delete(uri, payloads, [5])
    with unchanged(uri), pytest.raises(lt.RetryableConflictError) as caught:
        lt.commit(job, results)
    assert caught.value.retry_class == "replan"
    lt.abort(job, results)
    exact(uri)
    run_loop(lt.Compact(uri))
    clean(uri, payloads)


def test_append_in_between(uri: str, objects: Path) -> None:
    payloads = make(uri, objects)
    job = lt.prepare(lt.Compact(uri))
    results = finish(job)
    values, more = all_kinds(objects, range(28, 35))
    write(uri, table(values, 28), mode="append")
    lt.commit(job, results)
    assert sorted(fragment_rows(uri)) == [7, 28]
    clean(uri, payloads | dict(enumerate(more, 28)))


def test_compaction_in_between(uri: str, objects: Path) -> None:
    payloads = make(uri, objects)
    jobs = [lt.prepare(lt.Compact(uri)) for _ in range(2)]
    results = [finish(job) for job in jobs]
    lt.commit(jobs[0], results[0])
    with pytest.raises(lt.RetryableConflictError):
        lt.commit(jobs[1], results[1])
    lt.abort(jobs[1], results[1])
    clean(uri, payloads)


def test_overwrite_in_between(uri: str, objects: Path) -> None:
    make(uri, objects)
    job = lt.prepare(lt.Compact(uri))
    results = finish(job)
    data = payload(3000, "new")
    write(uri, table([data]), mode="overwrite")
    with pytest.raises(lt.ConflictError):
        lt.commit(job, results)
    lt.abort(job, results)
    clean(uri, {0: data})


@pytest.mark.parametrize("batch", [1, 2])
def test_micro_commits(batch: int, uri: str, objects: Path) -> None:
    payloads = make(uri, objects, rows=63)
    delete(uri, payloads, [0, 8, 9, 40])
    spec = lt.Compact(uri, target_rows_per_fragment=12, micro_commit_batch_size=batch)
    outcome = run_loop(spec)
    assert outcome.metrics["commits"] == -(-outcome.metrics["tasks"] // batch) > 1
    for version in lance.dataset(uri).versions()[2:]:
        check_rows(uri, payloads, version=version["version"])
    clean(uri, payloads)


def test_partial_commit(uri: str, objects: Path) -> None:
    payloads = make(uri, objects, rows=63)
    job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=12))
    results = finish(job)
    assert len(results) > 2
    outcome = lt.commit(job, results[1:2], partial=True)
    assert not outcome.complete
    check_rows(uri, payloads)
    # The rest is given up; what was committed stays.
    lt.abort(job, results)
    check_rows(uri, payloads)
    clean(uri, payloads)


def test_partial_commits_to_the_end(uri: str, objects: Path) -> None:
    payloads = make(uri, objects, rows=63)
    job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=12))
    results = finish(job)
    lt.commit(job, [results[-1]], partial=True)
    assert lt.commit(job, results).complete
    clean(uri, payloads)


# Failures


def test_abort_leaves_no_file(uri: str, objects: Path) -> None:
    payloads = make(uri, objects, rows=63)
    delete(uri, payloads, [0, 8, 9, 40])
    with unchanged(uri):
        job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=12))
        results = finish(job) + finish(job)
        made = {f["path"]: f["size"] for r in results for f in r.to_dict()["files"]}
        assert any(path.endswith(".blob") for path in made)
        assert made.items() <= files(uri).items()
        report = lt.abort(job, results[: len(results) // 2])
        assert report.files_removed == len(made)
    check_rows(uri, payloads)


@pytest.mark.parametrize("cut", [False, True], ids=["missing", "short"])
@pytest.mark.parametrize("blob", ["packed", "dedicated"])
def test_payload_that_cannot_be_read(blob: str, cut: bool, uri: str, objects: Path) -> None:
    """The error says which file; nothing is left of the attempt, and it can be tried again."""
    payloads = make(uri, objects)
    sizes = {path: size for path, size in payload_files(uri).items() if "/" in path}
    wanted = [p for p, size in sizes.items() if (size > 2999) == (blob == "dedicated")]
    victim = Path(uri, wanted[-1])
    job = lt.prepare(lt.Compact(uri))
    (task,) = lt.plan(job)
    with hidden(victim):
        if cut:
            away = victim.with_name(victim.name + ".away")
            victim.write_bytes(away.read_bytes()[:-1])
        with unchanged(uri), pytest.raises(lt.Error, match=victim.name) as caught:
            lt.execute(task)
        assert caught.value.code in ("NOT_FOUND", "IO"), caught.value.code
        victim.unlink(missing_ok=True)
    lt.commit(job, [lt.execute(task)])
    clean(uri, payloads)


def test_cancelled_attempts_leave_no_file(uri: str, objects: Path) -> None:
    """Wherever in its work an attempt is cancelled."""
    data = {n: payload(50_000, n % 40) + bytes([n]) for n in range(240)}
    column = lt.BlobColumn("blob", inline_size_threshold=100, dedicated_size_threshold=40_000)
    write(uri, table(data.values()), max_rows_per_file=30, blob_columns=[column])
    job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=60))
    tasks = lt.plan(job)
    with unchanged(uri):
        done = []
        for _ in range(8):
            results = lt.execute_all(tasks)
            done += [next(results)]
            results.cancel()
            done += list(results)
        lt.abort(job, done)
    exact(uri)
