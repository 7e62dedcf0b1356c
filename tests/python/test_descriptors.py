# SPDX-License-Identifier: Apache-2.0
"""Descriptors and results that are damaged, of another version or kind, of another job, or tampered
with: refused by name, and nothing is written or removed."""

import json
import random
import struct
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from support import (
    assert_same,
    edit_fragments,
    edit_result,
    execute_partitions,
    finish,
    make_dataset,
    numbers,
    read,
    unchanged,
)

import lance_tasks as lt

DAMAGE = (lt.DecodeError, lt.VersionMismatchError, lt.InvalidArgumentError)


def verbs(job: bytes, task: bytes, results: list) -> list:
    """Each verb with the given bytes, whatever they are."""

    def as_job(data: bytes) -> lt.Job:
        return lt.Job.from_bytes(data)

    return [
        lambda: lt.plan(as_job(job), results),
        lambda: lt.execute(lt.Task.from_bytes(task)),
        lambda: list(lt.execute_all([task])),
        lambda: lt.commit(as_job(job), results),
        lambda: lt.abort(as_job(job), results),
    ]


@pytest.fixture
def compaction(uri: str) -> tuple[lt.Job, list[lt.Task]]:
    make_dataset(uri)
    job = lt.prepare(lt.Compact(uri, target_rows_per_fragment=300))
    return job, lt.plan(job)


# Envelopes


def test_binary_envelope(compaction) -> None:
    job, tasks = compaction
    for kind, data in [(b"job", job.to_bytes()), (b"task", tasks[0].to_bytes())]:
        assert data[:4] == b"LTSK"
        assert struct.unpack("<H", data[4:6]) == (1,)
        assert data[6] == len(kind) and data[7 : 7 + len(kind)] == kind
        assert lt.__version__.encode() in data[:64] and b"14.0.2" in data[:64]


def test_truncated(compaction, uri: str) -> None:
    job, tasks = compaction
    job_bytes, task_bytes = job.to_bytes(), tasks[0].to_bytes()
    cuts = [0, 1, 3, 4, 5, 6, 8, 12, 20, 30, len(job_bytes) // 2, len(job_bytes) - 1]
    with unchanged(uri):
        for cut in cuts:
            for call in verbs(job_bytes[:cut], task_bytes[: min(cut, len(task_bytes) - 1)], []):
                with pytest.raises(lt.DecodeError):
                    call()


def test_damaged(compaction, uri: str) -> None:
    """Any single changed byte is found: by the checksum, if by nothing else."""
    job, tasks = compaction
    rng = random.Random(11)
    with unchanged(uri):
        for data, kind in [(job.to_bytes(), lt.Job), (tasks[0].to_bytes(), lt.Task)]:
            places = [*range(40), *(rng.randrange(40, len(data)) for _ in range(40))]
            for place in places:
                broken = bytearray(data)
                broken[place] ^= 1 << rng.randrange(8)
                with pytest.raises(DAMAGE):
                    value = kind.from_bytes(bytes(broken))
                    lt.plan(value) if kind is lt.Job else lt.execute(value)


def test_bytes_after_the_end(compaction, uri: str) -> None:
    job, tasks = compaction
    with unchanged(uri):
        for call in verbs(job.to_bytes() + b"\0", tasks[0].to_bytes() + b"more", []):
            with pytest.raises(lt.DecodeError):
                call()


@pytest.mark.parametrize("version", [0, 2, 65_535])
def test_another_format_version(compaction, uri: str, version: int) -> None:
    job, tasks = compaction

    def patch(data: bytes) -> bytes:
        return data[:4] + struct.pack("<H", version) + data[6:]

    with unchanged(uri):
        for call in verbs(patch(job.to_bytes()), patch(tasks[0].to_bytes()), []):
            with pytest.raises(lt.VersionMismatchError, match=str(version)):
                call()


def test_another_format_version_in_json(compaction, uri: str) -> None:
    job, tasks = compaction

    def patch(text: str) -> bytes:
        return json.dumps(json.loads(text) | {"format": 99}).encode()

    with unchanged(uri):
        for call in verbs(patch(job.to_json()), patch(tasks[0].to_json()), []):
            with pytest.raises(lt.VersionMismatchError, match="99"):
                call()


def test_another_kind(compaction, uri: str) -> None:
    job, tasks = compaction
    with unchanged(uri):
        for a, b in [
            (tasks[0].to_bytes(), job.to_bytes()),
            (tasks[0].to_json().encode(), job.to_json().encode()),
        ]:
            for call in verbs(a, b, []):
                with pytest.raises((lt.InvalidArgumentError, lt.DecodeError)):
                    call()
        with pytest.raises(lt.InvalidArgumentError, match="job"):
            lt.prepare(job.to_bytes())


def test_unknown_kind(compaction, uri: str) -> None:
    job, _ = compaction
    data = job.to_bytes().replace(b"\x03job", b"\x03jab", 1)
    text = json.dumps({**json.loads(job.to_json()), "kind": "poem"}).encode()
    for broken in (data, text):
        with unchanged(uri), pytest.raises((lt.VersionMismatchError, lt.DecodeError)):
            lt.plan(lt.Job.from_bytes(broken))


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"LTSK", b"{}", b'{"kind": "job"}', b"[1]"])
def test_bytes_that_are_no_descriptor(data: bytes) -> None:
    for call in verbs(data, data, []):
        with pytest.raises(lt.Error):
            call()


def test_json_with_a_field_too_many_or_too_few(compaction, uri: str) -> None:
    job, _ = compaction
    whole = json.loads(job.to_json())
    more = whole | {"job": whole["job"] | {"surprise": 1}}
    less = whole | {"job": {k: v for k, v in whole["job"].items() if k != "read_version"}}
    for broken, word in [(more, "surprise"), (less, "read_version")]:
        with unchanged(uri), pytest.raises(lt.DecodeError, match=word):
            lt.plan(lt.Job.from_bytes(json.dumps(broken).encode()))


@pytest.mark.parametrize("cut", [0, 1, 10, 100, 500])
def test_truncated_results(compaction, uri: str, cut: int) -> None:
    job, tasks = compaction
    data = lt.execute(tasks[0]).to_bytes()
    with unchanged(uri):
        for verb in (lt.plan, lt.commit, lt.abort):
            with pytest.raises(lt.Error) as caught:
                verb(job, [data[:cut]])
            assert caught.value.code in ("DECODE", "INVALID_ARGUMENT")


def test_damaged_results(compaction, uri: str) -> None:
    """Damage is an error or a value, never a crash."""
    job, tasks = compaction
    data = lt.execute(tasks[0]).to_bytes()
    rng = random.Random(4)
    for _ in range(200):
        broken = bytearray(data)
        for _ in range(3):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            lt.plan(job, [bytes(broken)])
        except lt.Error as error:
            assert error.code not in ("PANIC", "INTERNAL"), error


def test_tables_that_hold_no_results(compaction, uri: str) -> None:
    job, _ = compaction
    table = pa.table({"job_id": [job.id], "answer": [42]})
    with unchanged(uri):
        for verb in (lt.plan, lt.commit, lt.abort):
            with pytest.raises(lt.DecodeError, match="column"):
                verb(job, table)
        with pytest.raises(lt.DecodeError, match="payload"):
            list(lt.execute_all(table))


# Results of others


def test_results_of_another_job(case, tmp_path: Path) -> None:
    job, other = lt.prepare(case.spec), lt.prepare(case.spec)
    results, strange = finish(job), finish(other)
    with unchanged(case.folder):
        for verb in (lt.plan, lt.commit, lt.abort):
            with pytest.raises(lt.Error) as caught:
                verb(job, [*results[1:], strange[0]])
            assert caught.value.retry_class in ("invalid", "fatal")
            assert other.id in caught.value.message
    lt.abort(other, strange)
    lt.commit(job, results)
    case.check()


def test_result_of_no_task_of_the_job(case) -> None:
    job = lt.prepare(case.spec)
    results = finish(job)
    forged = edit_result(results[0], task_id="00000000-0000-4000-8000-000000000000")
    with unchanged(case.folder), pytest.raises(lt.Error) as caught:
        lt.commit(job, [*results, forged])
    assert "00000000-0000-4000-8000-000000000000" in str(caught.value.__dict__) + str(caught.value)
    case.check_untouched()


# Results that do not tell the truth


def tampered(case, edit) -> None:
    """Commit refuses the edited result, and takes the honest one."""
    job = lt.prepare(case.spec)
    results = finish(job)
    position = case.stages_before
    forged = edit(results[position])
    assert forged.to_bytes() != results[position].to_bytes()
    rest = results[:position] + results[position + 1 :]
    with unchanged(case.folder), pytest.raises(lt.Error) as caught:
        lt.commit(job, [*rest, forged])
    assert caught.value.code in ("VERIFICATION", "INVALID_ARGUMENT", "DECODE", "NOT_FOUND")
    case.check_untouched()
    lt.commit(job, results)
    case.check()


def test_dataset_uri_changed(case) -> None:
    tampered(case, lambda r: edit_result(r, dataset_uri=case.uri + "-other"))


def test_read_version_changed(case) -> None:
    tampered(case, lambda r: edit_result(r, read_version=r.to_dict()["read_version"] + 7))


def test_operation_changed(case) -> None:
    tampered(case, lambda r: edit_result(r, operation="delete"))


def test_rows_out_changed(case) -> None:
    tampered(case, lambda r: edit_result(r, rows_out=r.rows_out + 1))


def test_payload_emptied(case) -> None:
    tampered(case, lambda r: edit_result(r, payload="{}", fragments=[], index_segments=[]))


def test_output_dropped(case) -> None:
    if "index" in case.name:
        tampered(case, lambda r: edit_result(r, index_segments=[]))
    else:
        tampered(case, lambda r: edit_fragments(r, lambda fragments: fragments[1:]))


def test_output_doubled(case) -> None:
    if "index" in case.name:
        tampered(case, lambda r: edit_result(r, index_segments=segments_of(r) * 2))
    else:
        tampered(case, lambda r: edit_fragments(r, lambda fragments: fragments * 2))


def segments_of(result: lt.Result) -> list[bytes]:
    return pa.table(lt.results_table([result]))["index_segments"][0].as_py()


def test_index_segment_of_another_task(uri: str) -> None:
    make_dataset(uri)
    job = lt.prepare(lt.CreateIndex(uri, column="id", index_type="BTREE", num_segments=3))
    results = finish(job)
    forged = edit_result(results[0], index_segments=segments_of(results[1]))
    with unchanged(uri), pytest.raises(lt.VerificationError):
        lt.commit(job, [forged, *results[1:]])


WRITES = ["create", "append", "overwrite"]


@pytest.mark.parametrize("case", [*WRITES, "compact"], indirect=True)
@pytest.mark.parametrize("what", ["fields", "physical_rows", "path", "column_indices", "gone"])
def test_fragment_changed(case, what: str) -> None:
    def edit(fragments: list[dict]) -> list[dict]:
        file = fragments[0]["files"][0]
        if what == "fields":
            file["fields"] = [i + 1 for i in file["fields"]]
        elif what == "physical_rows":
            fragments[0]["physical_rows"] += 1
        elif what == "column_indices":
            file["column_indices"] = file["column_indices"][:-1]
        elif what == "path":
            file["path"] = "../../elsewhere.lance"
        else:
            file["path"] = "never-written.lance"
        return fragments

    tampered(case, lambda r: edit_fragments(r, edit))


@pytest.mark.parametrize("case", ["append"], indirect=True)
def test_fragment_that_names_a_file_of_the_dataset(case) -> None:
    """Rows that are there already may not be added once more."""
    theirs = lance.dataset(case.uri).get_fragments()[0].metadata
    path = "data/" + theirs.files[0].path
    file = {"path": path, "size": (Path(case.uri) / path).stat().st_size, "base": None}
    # As many rows as the task has, so that only the file itself tells.
    tampered(
        case,
        lambda result: edit_result(
            result,
            fragments=[json.dumps(theirs.to_json() | {"physical_rows": result.rows_out})],
            files=[file],
        ),
    )


@pytest.mark.parametrize("case", WRITES, indirect=True)
def test_output_of_another_task(case) -> None:
    """Two tasks may not both claim the same file: rows would be there twice."""
    job = lt.prepare(case.spec)
    results = finish(job)
    assert results[0].rows_out == results[1].rows_out
    forged = edit_result(
        results[0], fragments=results[1].fragments, files=results[1].to_dict()["files"]
    )
    with unchanged(case.folder), pytest.raises(lt.VerificationError):
        lt.commit(job, [forged, *results[1:]])
    case.check_untouched()


def files_of(result: lt.Result) -> list[dict]:
    return result.to_dict()["files"]


@pytest.fixture
def appended(uri: str) -> tuple[lt.Job, list[lt.Result]]:
    """Two tasks of a file each, beside which there may be others."""
    make_dataset(uri, rows=100)
    job = lt.prepare(lt.Write(uri, mode="append"), schema=numbers(0).schema)
    return job, execute_partitions(job, {"a": numbers(40), "b": numbers(30)})


def with_files(result: lt.Result, uri: str, *paths: str) -> lt.Result:
    """A result that lists these too, which are there."""
    for path in paths:
        (Path(uri) / path).parent.mkdir(parents=True, exist_ok=True)
        (Path(uri) / path).write_bytes(b"payload")
    more = [{"path": path, "size": 7, "base": None} for path in paths]
    return edit_result(result, files=files_of(result) + more)


def sidecars(result: lt.Result, *ids: str) -> list[str]:
    """Names of blob files that belong to a result's data file."""
    stem = files_of(result)[0]["path"].removesuffix(".lance")
    return [f"{stem}/{id}.blob" for id in ids]


def test_blob_files_beside_data_files(uri: str, appended) -> None:
    """Several of one data file, and managed ones that both tasks have written."""
    job, (a, b) = appended
    a = with_files(a, uri, *sidecars(a, "10", "01"), "_blobs/ab.blob")
    b = with_files(b, uri, *sidecars(b, "10"), "_blobs/ab.blob")
    lt.commit(job, [a, b])
    with unchanged(uri):
        report = lt.abort(job, [a, b])
    assert (report.files_removed, report.kept) == (0, 6)  # the managed blob is one file


def test_blob_files_of_aborted_tasks(uri: str, appended) -> None:
    """Managed ones may be other jobs' as well."""
    job, (a, b) = appended
    a = with_files(a, uri, *sidecars(a, "10", "01"), "_blobs/ab.blob")
    report = lt.abort(job, [a, b])
    assert (report.files_removed, report.kept) == (4, 1)
    left = list(Path(uri).rglob("*.blob"))
    assert left == [Path(uri) / "_blobs/ab.blob"]


@pytest.mark.parametrize("wrong", ["another's", "missing", "twice"])
def test_blob_files_that_are_wrong(uri: str, appended, wrong: str) -> None:
    job, (a, b) = appended
    (path,) = sidecars(b if wrong == "another's" else a, "10")
    forged = with_files(a, uri, path)
    if wrong == "missing":
        (Path(uri) / path).unlink()
    if wrong == "twice":
        forged = with_files(forged, uri, path)
    with unchanged(uri), pytest.raises(lt.VerificationError) as caught:
        lt.commit(job, [forged, b])
    stem = Path(path).parent.name
    assert stem in caught.value.message
    lt.commit(job, [a, b])


def test_results_that_another_client_committed(uri: str, appended) -> None:
    """The files came into the dataset since the job was prepared: no one has tampered with them."""
    job, results = appended
    fragments = [lance.FragmentMetadata.from_json(f) for r in results for f in r.fragments]
    lance.LanceDataset.commit(uri, lance.LanceOperation.Append(fragments), read_version=1)
    with unchanged(uri), pytest.raises(lt.ConflictError, match="by another commit") as caught:
        lt.commit(job, results)
    assert files_of(results[0])[0]["path"] in caught.value.message
    assert lance.dataset(uri).count_rows() == 170


@pytest.mark.parametrize("case", ["append"], indirect=True)
def test_file_changed_after_execute(case) -> None:
    """A file that was cut short since is no longer what the result says."""
    job = lt.prepare(case.spec)
    results = finish(job)
    path = Path(case.uri) / results[0].to_dict()["files"][0]["path"]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(lt.Error) as caught:
        lt.commit(job, results)
    assert path.name in caught.value.message
    case.check_untouched()


def test_open_job_rows_changed(uri: str) -> None:
    """Where no plan knows the rows, the fragments and the totals must agree."""
    make_dataset(uri, rows=100)
    job = lt.prepare(lt.Write(uri, mode="append"), schema=numbers(0).schema)
    (result,) = execute_partitions(job, {"0": numbers(40)})
    for forged in [
        edit_result(result, rows_out=41),
        edit_fragments(result, lambda f: [f[0] | {"physical_rows": 39}]),
        edit_fragments(result, lambda f: []),
    ]:
        with unchanged(uri), pytest.raises(lt.VerificationError):
            lt.commit(job, [forged])
    lt.commit(job, [result])
    assert_same(read(uri), pa.concat_tables([numbers(100), numbers(40)]).combine_chunks())
    assert lance.dataset(uri).version == 2
