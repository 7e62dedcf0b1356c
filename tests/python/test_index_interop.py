# SPDX-License-Identifier: Apache-2.0
"""Segments go both ways: stock pylance commits and optimizes what tasks built, a job commits and
optimizes what stock pylance built, and a segment's two forms in a result say the same."""

import base64
import contextlib
import dataclasses
import itertools
import json
import struct
import uuid
from collections.abc import Iterator

import lance
import numpy as np
import pyarrow as pa
import pytest
from index_types import KINDS as TYPES
from index_types import write as write_types
from support import finish, unchanged, version_of
from test_index_changes import (
    DIMENSION,
    FRAGMENTS,
    KINDS,
    NAME,
    PARTITIONS,
    Kind,
    Near,
    append,
    compact_all,
    covered_by,
    delete,
    index_folders,
    referenced,
    rows_of,
    segments_of,
    table,
    vectors,
    write,
)
from test_optimize_index import build_by_pylance, optimize, unindexed

import lance_tasks as lt

SCALAR = ["BTREE", "BITMAP", "LABEL_LIST", "NGRAM", "ZONEMAP", "BLOOMFILTER", "INVERTED"]
VECTOR = [name for name in KINDS if name.startswith("IVF")]


def model(kind: Kind) -> dict[str, object]:
    """What workers that build segments of one vector index share: centroids, one per cluster of
    the data, a codebook of some residuals, and a rotation."""
    if not isinstance(kind, Near):
        return {}
    rows = vectors(range(512)).astype(np.float32)
    centroids = np.stack([rows[i::8].mean(axis=0) for i in range(PARTITIONS)])
    made: dict[str, object] = {"ivf_centroids": centroids, "num_partitions": PARTITIONS}
    if "PQ" in kind.index_type:
        nearest = np.argmin(((rows[:, None] - centroids) ** 2).sum(axis=2), axis=1)
        residuals = rows - centroids[nearest]
        parts = residuals[:256].reshape(256, 4, DIMENSION // 4)
        made |= {"pq_codebook": parts.transpose(1, 0, 2).copy(), "num_sub_vectors": 4}
    if "RQ" in kind.index_type:
        made["rabitq_model"] = lance.lance.indices.build_rq_model(DIMENSION)
    return made


def spec(kind: Kind, uri: str, shared: dict[str, object], **options: object) -> lt.CreateIndex:
    """A job whose vectors' model is given."""
    if shared:
        kind = dataclasses.replace(kind, params={})
    return kind.spec(uri, **shared, **options)


def by_pylance(
    uri: str, kind: Kind, fragments: list[int], shared: dict[str, object], **options: object
) -> lance.Index:
    """A segment that stock pylance builds, for a job over this version of the dataset."""
    dataset = lance.dataset(uri, version=options.pop("version", None))
    options = {"name": NAME, "column": kind.column, **options}
    params = dict(shared) if shared else dict(kind.params)
    if "pq_codebook" in params:
        flat = pa.array(params["pq_codebook"].ravel())
        params["pq_codebook"] = pa.FixedSizeListArray.from_arrays(flat, DIMENSION // 4)
    return dataset.create_index_uncommitted(
        index_type=kind.index_type, fragment_ids=fragments, **options, **params
    )


def fragments_of(task: lt.Task) -> list[int]:
    """The fragments that a task is to cover."""

    def found(value: object) -> Iterator[list[int]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key == "fragments":
                    yield inner
                else:
                    yield from found(inner)

    (fragments,) = found(json.loads(task.to_json())["task"]["work"])
    return fragments


def segment_tasks(job: lt.Job) -> tuple[list[lt.Result], list[lt.Task]]:
    """The results before the segments, and the segments' tasks."""
    results: list[lt.Result] = []
    tasks = lt.plan(job)
    while len(tasks) == 1:
        results.append(lt.execute(tasks[0]))
        tasks = lt.plan(job, results)
    return results, tasks


def with_segments(results: list[lt.Result]) -> list[lt.Result]:
    return [result for result in results if result.to_dict()["index_segments"]]


# Stock pylance commits what tasks built


@pytest.mark.parametrize("stable", [False, True], ids=["addresses", "stable"])
@pytest.mark.parametrize("index_type", KINDS)
def test_pylance_commits_segments(uri: str, index_type: str, stable: bool) -> None:
    if index_type == "JSON" and stable:
        pytest.skip("Lance has no such index")
    kind = KINDS[index_type]
    write(uri, stable)
    delete(uri, kind)
    job = lt.prepare(kind.spec(uri))
    results = finish(job)
    segments = [lt.pylance_index(result) for result in with_segments(results)]
    assert len(segments) == 3 and all(isinstance(s, lance.Index) for s in segments)
    append(uri, kind)
    lance.dataset(uri).commit_existing_index_segments(NAME, kind.column, segments)
    assert segments_of(uri).keys() == {segment.uuid for segment in segments}
    assert covered_by(uri) == set(range(FRAGMENTS))
    kind.check(uri)
    compact_all(uri, kind)
    kind.check(uri)


@pytest.mark.parametrize("label", ["rtree", "minhashlsh"])
def test_pylance_commits_segments_of_other_types(uri: str, label: str) -> None:
    (kind,) = [kind for kind in TYPES if kind.label == label]
    write_types(uri, False)
    job = lt.prepare(lt.CreateIndex(uri, name=NAME, num_segments=3, **kind.spec))
    segments = [lt.pylance_index(result) for result in finish(job)]
    lance.dataset(uri).commit_existing_index_segments(NAME, kind.column, segments)
    kind.check(lance.dataset(uri), NAME, 3)


@pytest.mark.parametrize("index_type", ["BTREE", "INVERTED", "IVF_PQ"])
def test_commit_after_pylances(uri: str, index_type: str) -> None:
    """Both coordinators commit the same segments: they are there once."""
    kind = KINDS[index_type]
    write(uri)
    job = lt.prepare(kind.spec(uri))
    results = finish(job)
    segments = [lt.pylance_index(result) for result in with_segments(results)]
    lance.dataset(uri).commit_existing_index_segments(NAME, kind.column, segments)
    before = segments_of(uri)
    with contextlib.suppress(lt.Error):
        assert lt.commit(job, results).already_committed
    assert segments_of(uri) == before and len(before) == 3
    kind.check(uri)
    # The segments are in use, whoever committed them.
    lt.abort(job, results)
    assert referenced(uri) <= index_folders(uri)
    kind.check(uri)


@pytest.mark.parametrize("index_type", ["BTREE", "BITMAP", "INVERTED", "IVF_FLAT", "IVF_PQ"])
def test_pylance_merges_segments(uri: str, index_type: str) -> None:
    kind = KINDS[index_type]
    write(uri)
    job = lt.prepare(kind.spec(uri))
    segments = [lt.pylance_index(result) for result in with_segments(finish(job))]
    merged = lance.dataset(uri).merge_existing_index_segments(segments)
    lance.dataset(uri).commit_existing_index_segments(NAME, kind.column, [merged])
    assert list(segments_of(uri).values()) == [list(range(FRAGMENTS))]
    kind.check(uri)


# A job commits what stock pylance built


@pytest.mark.parametrize("stable", [False, True], ids=["addresses", "stable"])
@pytest.mark.parametrize("ours", [set(), {1}], ids=["theirs", "mixed"])
@pytest.mark.parametrize("index_type", [*SCALAR, *VECTOR])
def test_commit_of_segments_that_pylance_built(
    uri: str, index_type: str, ours: set[int], stable: bool
) -> None:
    kind = KINDS[index_type]
    write(uri, stable)
    delete(uri, kind)
    shared = model(kind)
    job = lt.prepare(spec(kind, uri, shared))
    results, tasks = segment_tasks(job)
    assert len(tasks) == 3
    append(uri, kind)
    for number, task in enumerate(tasks):
        if number in ours:
            results.append(lt.execute(task))
            continue
        fragments = fragments_of(task)
        made = by_pylance(uri, kind, fragments, shared, version=job.read_version)
        adopted = lt.adopt(job, task, made)
        assert lt.pylance_index(adopted).uuid == made.uuid or kind.index_type == "INVERTED"
        results.append(adopted)
    assert lt.plan(job, results) == []
    outcome = lt.commit(job, results)
    assert outcome.metrics["segments"] == len(segments_of(uri)) == 3
    assert outcome.metrics["fragments_covered"] == FRAGMENTS
    assert covered_by(uri) == set(range(FRAGMENTS))
    kind.check(uri)
    assert lt.commit(job, results).already_committed
    lt.abort(job, results)
    assert index_folders(uri) == referenced(uri)
    optimize(uri)
    assert unindexed(uri) == 0
    kind.check(uri)


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "aborted"])
@pytest.mark.parametrize("index_type", ["BTREE", "INVERTED", "IVF_FLAT", "IVF_PQ"])
def test_merge_of_segments_that_pylance_built(uri: str, index_type: str, committed: bool) -> None:
    """Shared models are what makes segments of both one.

    pylance leaves full-text segments unfinished, and the merge finishes them: what the adopted
    result lists is there no more, other files are.
    """
    kind = KINDS[index_type]
    write(uri)
    shared = model(kind)
    job = lt.prepare(spec(kind, uri, shared, merge=True))
    results, tasks = segment_tasks(job)
    results.append(lt.execute(tasks[0]))
    for task in tasks[1:]:
        made = by_pylance(uri, kind, fragments_of(task), shared)
        results.append(lt.adopt(job, task, made))
    results = finish(job, results)
    if not committed:
        lt.abort(job, results)
        assert index_folders(uri) == set()
        return
    lt.commit(job, results)
    assert list(segments_of(uri).values()) == [list(range(FRAGMENTS))]
    assert index_folders(uri) == referenced(uri)
    kind.check(uri)
    lt.abort(job, results)
    assert index_folders(uri) == referenced(uri)
    kind.check(uri)


@pytest.mark.parametrize("ended", ["committed", "aborted"])
@pytest.mark.parametrize("index_type", ["BTREE", "INVERTED", "IVF_FLAT", "IVF_PQ"])
def test_a_late_merge(uri: str, index_type: str, ended: str) -> None:
    """What it was to merge has been used up: it says so, and leaves nothing behind."""
    kind = KINDS[index_type]
    write(uri)
    job = lt.prepare(kind.spec(uri, merge=True))
    results = finish(job)
    (merge,) = lt.plan(job, [r for r in results if r.task_id != results[-1].task_id])
    if ended == "committed":
        lt.commit(job, results)
    else:
        lt.abort(job, results)
    with unchanged(uri), pytest.raises(lt.RetryableConflictError, match="is gone") as caught:
        lt.execute(merge)
    assert (caught.value.retry_class, caught.value.task_id) == ("replan", merge.id)
    if ended == "committed":
        assert lt.commit(job, results).already_committed
        kind.check(uri)


def test_abort_keeps_what_a_version_in_between_needs(uri: str) -> None:
    """Stock pylance commits the job's segments, and drops the index again."""
    kind = KINDS["BTREE"]
    write(uri)
    job = lt.prepare(kind.spec(uri))
    results = finish(job)
    segments = [lt.pylance_index(result) for result in results]
    lance.dataset(uri).commit_existing_index_segments(NAME, kind.column, segments)
    between = lance.dataset(uri).version
    lance.dataset(uri).drop_index(NAME)
    with unchanged(uri):
        assert lt.abort(job, results).kept == sum(len(s.files) for s in segments)
    lance.dataset(uri, version=between).restore()
    assert len(segments_of(uri)) == 3
    kind.check(uri)


@pytest.mark.parametrize("index_type", ["BTREE", "BITMAP", "INVERTED", "IVF_FLAT", "IVF_PQ"])
def test_pylance_commits_segments_of_both(uri: str, index_type: str) -> None:
    kind = KINDS[index_type]
    write(uri)
    shared = model(kind)
    job = lt.prepare(spec(kind, uri, shared))
    _, tasks = segment_tasks(job)
    segments = [lt.pylance_index(lt.execute(task)) for task in tasks[:2]]
    segments.append(by_pylance(uri, kind, fragments_of(tasks[2]), shared))
    lance.dataset(uri).commit_existing_index_segments(NAME, kind.column, segments)
    assert len(segments_of(uri)) == 3 and unindexed(uri) == 0
    kind.check(uri)


@pytest.mark.parametrize("index_type", ["BTREE", "BITMAP", "INVERTED", "IVF_PQ"])
def test_backfill_of_an_index_that_pylance_built(uri: str, index_type: str) -> None:
    """Segments of a job beside those that pylance committed before."""
    kind = KINDS[index_type]
    write(uri)
    shared = model(kind)
    first = [by_pylance(uri, kind, ids, shared) for ids in ([0, 1, 2], [3, 4])]
    lance.dataset(uri).commit_existing_index_segments(NAME, kind.column, first)
    before = segments_of(uri)
    rest = spec(kind, uri, shared, fragment_ids=[5, 6, 7, 8, 9], num_segments=2, replace=True)
    lt.run(rest)
    assert segments_of(uri).items() > before.items() and len(segments_of(uri)) == 4
    assert unindexed(uri) == 0
    kind.check(uri)


# Segments that are not the task's


def test_wrong_segments_refused(uri: str) -> None:
    kind = KINDS["BTREE"]
    write(uri)
    job = lt.prepare(kind.spec(uri))
    task, other = lt.plan(job)[:2]
    fragments = fragments_of(task)
    right = by_pylance(uri, kind, fragments, {})
    append(uri, kind)
    cases = {
        "of another column": (
            by_pylance(uri, kind, fragments, {}, column="id", version=1),
            "field",
        ),
        "of other fragments": (by_pylance(uri, kind, [0], {}, version=1), "fragments"),
        "of another version": (by_pylance(uri, kind, fragments, {}), "version"),
        "of another name": (
            by_pylance(uri, kind, fragments, {}, name="another", version=1),
            "another",
        ),
        "of another type": (by_pylance(uri, KINDS["ZONEMAP"], fragments, {}, version=1), "ZoneMap"),
        "of no fragments": (dataclasses.replace(right, fragment_ids=set()), "fragments"),
    }
    for what, (segment, said) in cases.items():
        with pytest.raises((lt.VerificationError, lt.InvalidArgumentError), match=said) as caught:
            lt.adopt(job, task, segment)
        assert caught.value.message, what
    with pytest.raises(lt.VerificationError, match="fragments"):
        lt.adopt(job, other, right)
    for nonsense in ({"nonsense": 1}, "{", []):
        with pytest.raises(lt.InvalidArgumentError):
            lt.adopt(job, task, nonsense)
    adopted = lt.adopt(job, task, right)
    assert adopted.status == "ok" and version_of(uri) == 2


def test_wrong_vector_segments_refused(uri: str) -> None:
    kind = KINDS["IVF_FLAT"]
    write(uri)
    shared = model(kind)
    job = lt.prepare(spec(kind, uri, shared))
    _, tasks = segment_tasks(job)
    fragments = fragments_of(tasks[0])
    wrong = {
        "cosine": by_pylance(uri, kind, fragments, {**shared, "metric": "cosine"}),
        "IVF_SQ": by_pylance(uri, KINDS["IVF_SQ"], fragments, shared),
    }
    for what, segment in wrong.items():
        with pytest.raises(lt.VerificationError, match=what):
            lt.adopt(job, tasks[0], segment)


def test_segment_whose_files_are_gone_refused(uri: str) -> None:
    kind = KINDS["BTREE"]
    write(uri)
    job = lt.prepare(kind.spec(uri, num_segments=1))
    (task,) = lt.plan(job)
    segment = by_pylance(uri, kind, fragments_of(task), {})
    adopted = lt.adopt(job, task, segment)
    lt.abort(job, [adopted])
    assert index_folders(uri) == set()
    with unchanged(uri), pytest.raises(lt.Error, match=segment.uuid):
        lt.commit(job, [adopted])


# The two forms of a segment in a result


def wire(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: their numbers with integers or bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in itertools.count(0, 7):
            value |= (message[at] & 0x7F) << shift
            at += 1
            if message[at - 1] < 0x80:
                return value
        raise AssertionError

    while at < len(message):
        key = varint()
        number, kind = key >> 3, key & 7
        if kind == 0:
            yield number, varint()
        else:
            assert kind == 2, f"field {number} has wire type {kind}"
            size = varint()
            yield number, message[at : at + size]
            at += size


def unpacked(value: int | bytes) -> list[int]:
    """A repeated integer, packed or not, of numbers below 128."""
    return list(value) if isinstance(value, bytes) else [value]


def decode(message: bytes) -> dict[str, object]:
    """Lance's `IndexMetadata` as the fields of pylance's `Index`."""
    fields: dict[str, object] = {
        "fields": [],
        "files": [],
        "covering_fields": [],
        "dataset_version": 0,
        "index_version": None,
        "created_at": None,
        "base_id": None,
        "index_details": None,
    }
    names = {4: "dataset_version", 7: "index_version", 8: "created_at", 9: "base_id"}
    for number, value in wire(message):
        if number == 1:
            fields["uuid"] = str(uuid.UUID(bytes=dict(wire(value))[1]))
        elif number in (2, 11):
            fields[{2: "fields", 11: "covering_fields"}[number]] += unpacked(value)
        elif number == 3:
            fields["name"] = value.decode()
        elif number == 5:
            fields["fragment_ids"] = fragments_in(value)
        elif number == 6:
            any_ = dict(wire(value))
            fields["index_details"] = [any_[1].decode(), any_.get(2, b"")]
        elif number == 10:
            file = dict(wire(value))
            fields["files"].append({"path": file[1].decode(), "size_bytes": file[2]})
        else:
            fields[names[number]] = value
    return fields


def fragments_in(bitmap: bytes) -> list[int]:
    """Ids of a serialized Roaring bitmap of one container: all below 65,536."""
    if int.from_bytes(bitmap[:2], "little") == 12347:  # with runs
        (runs,) = struct.unpack_from("<H", bitmap, 9)
        pairs = struct.iter_unpack("<HH", bitmap[11 : 11 + 4 * runs])
        return [start + i for start, more in pairs for i in range(more + 1)]
    cookie, containers, key, more = struct.unpack_from("<IIHH", bitmap)
    assert (cookie, containers, key) == (12346, 1, 0), bitmap
    return list(struct.unpack_from(f"<{more + 1}H", bitmap, 16))


@pytest.mark.parametrize("index_type", KINDS)
def test_protobuf_and_payload_say_the_same(uri: str, index_type: str) -> None:
    kind = KINDS[index_type]
    write(uri)
    job = lt.prepare(kind.spec(uri, num_segments=2))
    results = finish(job)
    rows = pa.table(lt.results_table(results)).to_pylist()
    assert sum(len(row["index_segments"]) for row in rows) == 2
    for row, result in zip(rows, results, strict=True):
        if not row["index_segments"]:
            assert set(result.payload) >= {"model"}
            continue
        (segment,) = row["index_segments"]
        decoded, payload = decode(segment), result.payload
        for name in ("uuid", "name", "fields", "dataset_version", "index_version", "base_id"):
            assert decoded[name] == payload[name], name
        assert decoded["name"] == NAME and decoded["dataset_version"] == job.read_version
        assert decoded["fragment_ids"] == sorted(payload["fragment_ids"])
        assert len(decoded["fragment_ids"]) == FRAGMENTS // 2
        assert decoded["covering_fields"] == payload["covering_fields"] == []
        assert decoded["files"] == payload["files"] and decoded["files"]
        type_url, details = payload["index_details"]
        assert decoded["index_details"] == [type_url, base64.b64decode(details)]
        assert {f"_indices/{payload['uuid']}/{f['path']}" for f in payload["files"]} == {
            file["path"] for file in result.files
        }
        index = lt.pylance_index(result)
        assert (index.uuid, index.name) == (payload["uuid"], NAME)
        assert list(index.fields) == payload["fields"]
        assert sorted(index.fragment_ids) == decoded["fragment_ids"]
        assert index.dataset_version == job.read_version
        assert index.index_version == payload["index_version"]
        assert int(index.created_at.timestamp() * 1000) == decoded["created_at"]
        assert index.index_details == (type_url, base64.b64decode(details))
        assert [(f.path, f.size_bytes) for f in index.files] == [
            (f["path"], f["size_bytes"]) for f in payload["files"]
        ]


def test_no_segment_no_index(uri: str) -> None:
    write(uri)
    job = lt.prepare(KINDS["IVF_PQ"].spec(uri))
    (training,) = lt.plan(job)
    with pytest.raises(lt.InvalidArgumentError):
        lt.pylance_index(lt.execute(training))


# Both optimize


@pytest.mark.parametrize("stable", [False, True], ids=["addresses", "stable"])
@pytest.mark.parametrize("index_type", KINDS)
def test_pylance_optimizes_after_us(uri: str, index_type: str, stable: bool) -> None:
    if index_type == "JSON" and stable:
        pytest.skip("Lance has no such index")
    kind = KINDS[index_type]
    write(uri, stable)
    lt.run(kind.spec(uri))
    lance.dataset(uri).insert(table(50, 1000))
    optimize(uri)
    lance.dataset(uri).insert(table(50, 1050))
    before = segments_of(uri)
    assert len(before) == 4
    lance.dataset(uri).optimize.optimize_indices(num_indices_to_merge=0)
    assert unindexed(uri) == 0 and segments_of(uri).items() > before.items()
    kind.check(uri)
    if index_type.endswith("SQ"):  # Lance merges none that have bounds of their own
        return
    lance.dataset(uri).optimize.optimize_indices(num_indices_to_merge=10)
    assert unindexed(uri) == 0 and len(segments_of(uri)) == 1
    kind.check(uri)


@pytest.mark.parametrize("stable", [False, True], ids=["addresses", "stable"])
@pytest.mark.parametrize("index_type", KINDS)
def test_optimize_after_pylance(uri: str, index_type: str, stable: bool) -> None:
    if index_type == "JSON" and stable:
        pytest.skip("Lance has no such index")
    kind = KINDS[index_type]
    write(uri, stable)
    build_by_pylance(uri, kind)
    lance.dataset(uri).insert(table(50, 1000))
    lance.dataset(uri).optimize.optimize_indices(num_indices_to_merge=0)
    lance.dataset(uri).insert(table(50, 1050))
    before = segments_of(uri)
    assert len(before) == 2
    optimize(uri)
    assert unindexed(uri) == 0 and segments_of(uri).items() > before.items()
    kind.check(uri)
    optimize(uri, num_indices_to_merge=10)
    assert unindexed(uri) == 0 and len(segments_of(uri)) == 1
    assert covered_by(uri) == rows_of(uri).keys()
    kind.check(uri)
