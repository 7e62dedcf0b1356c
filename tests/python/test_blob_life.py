# SPDX-License-Identifier: Apache-2.0
"""Blobs from their write to the cleanup of older versions, on a local disk and on S3; and writers
that are killed on the way."""

import contextlib
import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stores
from blob_cases import KIND, Payload, kinds, payload
from blob_files import SIZES, SMALL, check_rows, exact
from stores import Bucket
from support import files, start_worker

import lance_tasks as lt

KINDS = ["inline", "packed", "dedicated", "external", "external_range", "null", "empty"]
STORED = {"external_range": "external", "null": None, "empty": "inline"}
BEFORE = 6


@dataclass(frozen=True)
class Place:
    """Where a dataset lies, and the objects that its rows refer to."""

    uri: str
    objects: str
    options: dict[str, str] | None
    put: Callable[[str, bytes], None]
    """An object by its name."""
    listing: Callable[[], dict[str, int]]
    """Every file of the dataset."""

    def exact(self) -> None:
        exact(self.uri, options=self.options, there=self.listing())


@pytest.fixture
def disk(tmp_path: Path) -> Place:
    uri, objects = tmp_path / "dataset.lance", tmp_path / "objects"
    objects.mkdir()

    def put(name: str, data: bytes) -> None:
        (objects / name).write_bytes(data)

    return Place(str(uri), str(objects), None, put, lambda: files(uri))


@pytest.fixture(scope="module")
def s3() -> Iterator[stores.Store]:
    with stores.s3() as store:
        yield store


@pytest.fixture
def bucket(s3: stores.Store) -> Bucket:
    return s3.bucket()


def place_in(bucket: Bucket) -> Place:
    def put(name: str, data: bytes) -> None:
        bucket.put(f"objects/{name}", data)

    objects = bucket.uri("objects")
    return Place(bucket.uri(), objects, bucket.options, put, lambda: bucket.files("d.lance"))


# The round trip


class Column:
    """The rows of one kind; where they are `shared`, of so many payloads, by their ref_ids."""

    def __init__(self, place: Place, kind: str, shared: int) -> None:
        self.place, self.kind, self.shared = place, kind, shared

    def row(self, n: int) -> tuple[lt.Blob | None, Payload]:
        number = n % self.shared if self.shared else n
        ref_id = number + 1 if self.shared else None
        if self.kind == "null":
            return None, None
        if self.kind == "empty":
            return lt.Blob(b"", ref_id=ref_id), b""
        if self.kind in SIZES:
            data = payload(SIZES[self.kind] + number % 10, number)
            return lt.Blob(data, ref_id=ref_id), data
        if self.kind == "external":
            data = payload(500 + number, number)
            self.place.put(f"whole-{number}", data)
            return lt.Blob(uri=f"{self.place.objects}/whole-{number}", ref_id=ref_id), data
        data, at, size = payload(9000, "parts"), 30 * (number % 100) + 7, 300 + number % 100
        self.place.put("parts", data)
        uri = f"{self.place.objects}/parts"
        return lt.Blob(uri=uri, position=at, size=size, ref_id=ref_id), data[at : at + size]

    @property
    def stored(self) -> str | None:
        if self.kind == "inline" and self.shared:
            return "packed"
        return STORED.get(self.kind, self.kind)


def rows(columns: list[Column], numbers: range) -> tuple[pa.Table, dict[str, dict[int, Payload]]]:
    """A blob column for each kind, between an id and a string; and their payloads by id."""
    data: dict[str, pa.Array] = {"id": pa.array(numbers, pa.int64())}
    payloads = {}
    for column in columns:
        made = [column.row(n) for n in numbers]
        data[column.kind] = lt.blob_array(value for value, _ in made)
        payloads[column.kind] = dict(zip(numbers, (data for _, data in made), strict=True))
    data["tail"] = pa.array([f"tail-{n}" for n in numbers])
    return pa.table(data), payloads


def live(place: Place, names: list[str], mode: str, size: int, fragments: int, shared: int) -> None:
    columns = [Column(place, name, shared) for name in names]
    blobs = [lt.BlobColumn(name, **SMALL) for name in names]
    bases = [lt.Base(7, place.objects)]
    o = {"storage_options": place.options}

    def write(numbers: range, mode: str, per_file: int) -> dict[str, dict[int, Payload]]:
        data, payloads = rows(columns, numbers)
        how: dict[str, object] = {"mode": mode, "max_rows_per_file": per_file}
        if mode != "append":
            how["blob_columns"] = blobs
        if mode == "create":
            how["initial_bases"] = bases
        lt.run(lt.Write(place.uri, **how), data=data, **o)
        return payloads

    def check(payloads: dict[str, dict[int, Payload]]) -> lance.LanceDataset:
        for name in names:
            dataset = check_rows(
                place.uri, payloads[name], name, place.options, handles=place.options is None
            )
        place.exact()
        return dataset

    before: dict[str, dict[int, Payload]] = {name: {} for name in names}
    if mode != "create":
        before = write(range(1000, 1000 + BEFORE), "create", BEFORE)
    if mode == "overwrite":
        before = {name: {} for name in names}
    made = write(range(size), mode, size // fragments)
    payloads = {name: before[name] | made[name] for name in names}

    dataset = check(payloads)
    assert len(dataset.get_fragments()) == fragments + (mode == "append")
    for column in columns:
        assert set(kinds(dataset, column.kind)) == {column.stored}, column.kind

    gone = 5
    dataset.delete(f"id = {gone}")
    for name in names:
        del payloads[name][gone]
    check(payloads)

    # Of a fragment that has lost one row too.
    spec = lt.Compact(place.uri, materialize_deletions_threshold=0)
    assert lt.run(spec, **o).metrics["fragments_added"] == 1
    dataset = check(payloads)
    (fragment,) = dataset.get_fragments()
    assert fragment.num_deletions == 0 and fragment.physical_rows == dataset.count_rows()
    for column in columns:
        assert set(kinds(dataset, column.kind)) == {column.stored}, column.kind

    cleaned = lt.run(lt.Cleanup(place.uri, older_than=0), **o)
    assert cleaned.metrics["versions"] == (3 if mode == "create" else 4)
    assert len(check(payloads).versions()) == 1
    stored = sum(size for path, size in place.listing().items() if path.endswith(".blob"))
    outside = {column.kind for column in columns if column.stored in ("packed", "dedicated")}
    distinct = {
        name: set(payloads[name].values()) if shared else payloads[name].values()
        for name in outside
    }
    assert stored == sum(len(data) for name in outside for data in distinct[name])


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize("fragments", [1, 4])
@pytest.mark.parametrize("mode", ["create", "append", "overwrite"])
@pytest.mark.parametrize("kind", KINDS)
def test_life(kind: str, mode: str, fragments: int, shared: bool, disk: Place) -> None:
    live(disk, [kind], mode, 24, fragments, 2 if shared else 0)


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize("fragments", [1, 4])
@pytest.mark.parametrize("mode", ["create", "append", "overwrite"])
def test_life_on_s3(mode: str, fragments: int, shared: bool, bucket: Bucket) -> None:
    """Every kind has a column."""
    live(place_in(bucket), KINDS, mode, 12, fragments, 1 if shared else 0)


@pytest.mark.parametrize("on", ["disk", "s3"])
def test_life_of_managed_payloads(on: str, request: pytest.FixtureRequest) -> None:
    """Shared across fragments and writes; what no row has any more goes with the last version."""
    place = disk_or_s3(on, request)
    o = {"storage_options": place.options}
    column = [lt.BlobColumn("blob", **SMALL)]
    distinct = [payload(5000, n) for n in range(3)]

    def write(start: int, **options: object) -> dict[int, Payload]:
        made = {n: distinct[n % 3] for n in range(start, start + 9)}
        data = pa.table(
            {
                "id": pa.array(made, pa.int64()),
                "blob": pa.array(made.values(), pa.large_binary()),
                "tail": pa.array([f"tail-{n}" for n in made]),
            }
        )
        spec = lt.Write(place.uri, dedup="content", max_rows_per_file=3, **options)
        lt.run(spec, data=data, **o)
        return made

    def check() -> None:
        dataset = check_rows(place.uri, payloads, options=place.options, handles=on == "disk")
        assert {d["kind"] for d in dataset.to_table()["blob"].to_pylist()} == {KIND["managed"]}
        place.exact()

    def stored() -> int:
        return sum(size for path, size in place.listing().items() if path.endswith(".blob"))

    payloads = write(0, dedup_scope="dataset", blob_columns=column)
    payloads |= write(9, mode="append")
    check()
    assert stored() == 15_000
    lance.dataset(place.uri, storage_options=place.options).delete("id % 3 = 1")
    payloads = {n: data for n, data in payloads.items() if n % 3 != 1}
    check()
    lt.run(lt.Compact(place.uri), **o)
    check()
    assert stored() == 15_000
    lt.run(lt.Cleanup(place.uri, older_than=0), **o)
    check()
    assert stored() == 10_000


def disk_or_s3(on: str, request: pytest.FixtureRequest) -> Place:
    if on == "disk":
        return request.getfixturevalue("disk")
    return place_in(request.getfixturevalue("bucket"))


# Killed on the way


class Deaths:
    """A process that does one task, killed at random moments while it writes."""

    def __init__(self, place: Place, folder: Path, task: lt.Task) -> None:
        self.place, self.folder = place, folder
        (folder / "task").write_bytes(task.to_bytes())

    def attempt(self, enough: int | None, later: float = 0.0) -> tuple[bool, int]:
        """Kill it when it has written so many files (None: not at all); whether it died, and how
        many there are of it. Its result is lost in any case."""
        process = start_worker("execute", self.folder / "task", self.folder / "lost", wait=True)
        before = self.files()
        process.stdin.write("go\n")
        process.stdin.flush()
        while process.poll() is None:
            if enough is not None and self.files() - before >= enough:
                time.sleep(later)
                process.kill()
            time.sleep(0.02 if self.place.options else 0.001)
        out, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL) and '"error"' not in out, out + err
        return process.returncode != 0, self.files() - before

    def files(self) -> int:
        with contextlib.suppress(FileNotFoundError):  # renamed while we look
            return len(self.place.listing())
        return self.files()

    def several(self, seed: object) -> None:
        """Attempts of which no result is known: one came to its end, the others did not."""
        generator = random.Random(str(seed))
        _, made = self.attempt(None)
        died = left = 0
        for _ in range(3):
            enough = generator.randint(1, max(1, made // 2))
            how = self.attempt(enough, later=generator.choice([0, 0.001, 0.01]))
            died, left = died + how[0], left + how[1]
        # A machine may be too busy to see one of them in time, not all.
        assert died and left, (died, left)


PAYLOADS = {n: payload((80, 60_000, 400_000)[n % 3] + n % 5, n % 15) for n in range(60)}
LARGE = lt.BlobColumn("blob", inline_size_threshold=100, dedicated_size_threshold=100_000)


def source(folder: Path) -> str:
    """A file of every class of payloads, 9 MB."""
    data = pa.table(
        {
            "id": pa.array(PAYLOADS, pa.int64()),
            "blob": pa.array(PAYLOADS.values(), pa.binary()),
            "tail": pa.array([f"tail-{n}" for n in PAYLOADS]),
        }
    )
    path = folder / "rows.parquet"
    pq.write_table(data, path, row_group_size=10)
    return str(path)


DEDUPS = {
    "alone": {},
    "shared": {"dedup": "content"},
    "managed": {"dedup": "content", "dedup_scope": "dataset"},
}


@pytest.mark.parametrize("on", ["disk", "s3"])
@pytest.mark.parametrize("dedup", DEDUPS)
def test_killed_writes(
    on: str,
    dedup: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given up, no file is left; done again and committed, abort removes the dead ones' files."""
    place = disk_or_s3(on, request)
    monkeypatch.setenv("WORKER_STORAGE_OPTIONS", json.dumps(place.options))
    o = {"storage_options": place.options}
    options = {"blob_columns": [LARGE], "max_rows_per_file": 25, "max_rows_per_task": 1000}
    spec = lt.Write(place.uri, sources=source(tmp_path), **options, **DEDUPS[dedup])

    def die() -> tuple[lt.Job, lt.Task]:
        job = lt.prepare(spec, **o)
        (task,) = lt.plan(job, **o)
        Deaths(place, tmp_path, task).several((on, dedup))
        return job, task

    job, _ = die()
    lt.abort(job, [], **o)
    assert place.listing() == {}
    job, task = die()
    results = [lt.execute(task, **o)]
    lt.commit(job, results, **o)
    lt.abort(job, results, **o)
    check_rows(place.uri, PAYLOADS, options=place.options, handles=False)
    place.exact()


@pytest.mark.parametrize("on", ["disk", "s3"])
@pytest.mark.parametrize("dedup", ["alone", "shared"])
def test_killed_compactions(
    on: str,
    dedup: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = disk_or_s3(on, request)
    monkeypatch.setenv("WORKER_STORAGE_OPTIONS", json.dumps(place.options))
    o = {"storage_options": place.options}
    options = {"blob_columns": [LARGE], "max_rows_per_file": 15, **DEDUPS[dedup]}
    lt.run(lt.Write(place.uri, sources=source(tmp_path), **options), **o)
    before = place.listing()
    job = lt.prepare(lt.Compact(place.uri), **o)
    (task,) = lt.plan(job, **o)
    deaths = Deaths(place, tmp_path, task)
    deaths.several((on, dedup, "given up"))
    lt.abort(job, [], **o)
    assert place.listing() == before
    deaths.several((on, dedup, "done again"))
    results = [lt.execute(task, **o)]
    lt.commit(job, results, **o)
    lt.abort(job, results, **o)
    check_rows(place.uri, PAYLOADS, options=place.options, handles=False)
    place.exact()
    lt.run(lt.Cleanup(place.uri, older_than=0), **o)
    check_rows(place.uri, PAYLOADS, options=place.options, handles=False)
    place.exact()
