# SPDX-License-Identifier: Apache-2.0
"""Sources of a write: formats, globs and folders, the order of rows, full fragments, and sources
that fail."""

import os
import random
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from support import (
    assert_same,
    files,
    finish,
    fragment_rows,
    make_dataset,
    numbers,
    read,
    run_loop,
    unchanged,
    write_parquet_files,
)

import lance_tasks as lt


def write_source(path: Path, table: pa.Table, kind: str) -> str:
    """One file of a kind; the name's ending tells which."""
    path = path.with_suffix(
        {"arrow-file": ".arrow", "arrow-stream": ".arrows"}.get(kind, f".{kind}")
    )
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=100)
    elif kind in ("arrow-file", "arrow-stream"):
        new = pa.ipc.new_file if kind == "arrow-file" else pa.ipc.new_stream
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=64)
    elif kind == "csv":
        pyarrow.csv.write_csv(table, path)
    elif kind == "ndjson":
        table.to_pandas().to_json(path, orient="records", lines=True)
    elif kind == "lance":
        lance.write_dataset(table, path, max_rows_per_file=100)
    return str(path)


KINDS = ["parquet", "arrow-file", "arrow-stream", "csv", "ndjson", "lance"]


# Formats


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows_per_file", [130, 10_000])
def test_formats(sources: Path, uri: str, kind: str, rows_per_file: int) -> None:
    table = numbers(1000)
    paths = [write_source(sources / f"{i}", table.slice(i * 250, 250), kind) for i in range(4)]
    # The schema makes the text formats give the same types.
    lt.run(lt.Write(uri, sources=paths, schema=table.schema, max_rows_per_file=rows_per_file))
    assert_same(read(uri), table)
    assert max(fragment_rows(uri)) <= rows_per_file


def test_formats_mixed(sources: Path, uri: str) -> None:
    table = numbers(600)
    paths = [
        write_source(sources / f"{i}", table.slice(i * 100, 100), kind)
        for i, kind in enumerate(KINDS)
    ]
    lt.run(lt.Write(uri, sources=paths, schema=table.schema, max_rows_per_file=70))
    assert_same(read(uri), table)


@pytest.mark.parametrize("kind", KINDS)
def test_format_named_where_the_ending_tells_nothing(sources: Path, uri: str, kind: str) -> None:
    path = Path(write_source(sources / "x", numbers(50), kind))
    plain = path.rename(sources / "noending")
    with pytest.raises(lt.InvalidArgumentError, match="noending"):
        lt.prepare(lt.Write(uri, sources=[plain]))
    named = {"arrow-file": "arrow", "arrow-stream": "arrow", "ndjson": "json"}.get(kind, kind)
    source = lt.Source(str(plain), format=named)
    lt.run(lt.Write(uri, sources=[source], schema=numbers(0).schema))
    assert_same(read(uri), numbers(50))


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip", "brotli", "lz4"])
def test_parquet_compressions(sources: Path, uri: str, compression: str) -> None:
    pq.write_table(numbers(500), sources / "x.parquet", compression=compression)
    lt.run(lt.Write(uri, sources=[sources / "x.parquet"]))
    assert_same(read(uri), numbers(500))


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_compressions(sources: Path, uri: str, compression: str, new) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with new(sources / "x.arrow", numbers(0).schema, options=options) as writer:
        writer.write_table(numbers(500), max_chunksize=33)
    lt.run(lt.Write(uri, sources=[sources / "x.arrow"]))
    assert_same(read(uri), numbers(500))


@pytest.mark.parametrize("kind", ["parquet", "arrow-file", "lance"])
def test_columns_of_a_source(sources: Path, uri: str, kind: str) -> None:
    path = write_source(sources / "x", numbers(300), kind)
    lt.run(lt.Write(uri, sources=[lt.Source(path, columns=["score", "id"])]))
    assert_same(read(uri), numbers(300).select(["score", "id"]))
    with pytest.raises(lt.Error, match="nothere"):
        lt.run(lt.Write(uri + "2", sources=[lt.Source(path, columns=["nothere"])]))
    assert files(uri + "2") == {}


# CSV and JSON


def test_csv_without_header(sources: Path, uri: str) -> None:
    (sources / "x.csv").write_text("1,a,0.5\n2,,1.5\n")
    schema = pa.schema([("id", pa.int64()), ("name", pa.string()), ("score", pa.float64())])
    source = lt.Source(str(sources / "x.csv"), has_header=False)
    lt.run(lt.Write(uri, sources=[source], schema=schema))
    assert read(uri).to_pylist() == [
        {"id": 1, "name": "a", "score": 0.5},
        {"id": 2, "name": None, "score": 1.5},
    ]


def test_csv_dialect(sources: Path, uri: str) -> None:
    (sources / "x.csv").write_text('id;name;score\n1;NA;0,5\n2;"a;b";NA\n3;"say ""hi""";7\n')
    source = lt.Source(str(sources / "x.csv"), delimiter=";", null_value="NA")
    schema = pa.schema([("id", pa.int32()), ("name", pa.string()), ("score", pa.string())])
    lt.run(lt.Write(uri, sources=[source], schema=schema))
    assert read(uri).to_pylist() == [
        {"id": 1, "name": None, "score": "0,5"},
        {"id": 2, "name": "a;b", "score": None},
        {"id": 3, "name": 'say "hi"', "score": "7"},
    ]


def test_csv_quoted_newlines(sources: Path, uri: str) -> None:
    """Lines are no records: a value may hold many of them, wherever a reader cuts the file."""
    rng = random.Random(3)
    rows = [
        (i, "\n".join("line" * rng.randint(0, 30) for _ in range(9)) + '\r\n,"')
        for i in range(2000)
    ]
    text = "id,text\n" + "".join('{},"{}"\n'.format(i, t.replace('"', '""')) for i, t in rows)
    (sources / "x.csv").write_text(text, newline="")
    lt.run(lt.Write(uri, sources=[sources / "x.csv"], max_rows_per_file=300))
    assert read(uri)["id"].to_pylist() == list(range(2000))
    assert read(uri)["text"].to_pylist() == [t for _, t in rows]


def test_csv_types_are_inferred(sources: Path, uri: str) -> None:
    (sources / "x.csv").write_text("i,f,s,b\n1,1.5,x,true\n,,,\n3,2,y,false\n")
    lt.run(lt.Write(uri, sources=[sources / "x.csv"]))
    table = read(uri)
    assert table.schema.types == [pa.int64(), pa.float64(), pa.string(), pa.bool_()]
    assert table["i"].to_pylist() == [1, None, 3]


def test_tsv(sources: Path, uri: str) -> None:
    (sources / "x.tsv").write_text("id\tname\n1\ta,b\n")
    lt.run(lt.Write(uri, sources=[sources / "x.tsv"]))
    assert read(uri).to_pylist() == [{"id": 1, "name": "a,b"}]


@pytest.mark.parametrize("ending", ["ndjson", "jsonl"])
def test_ndjson_nested(sources: Path, uri: str, ending: str) -> None:
    (sources / f"x.{ending}").write_text(
        '{"id": 1, "tags": ["a", "b"], "at": {"lat": 1.5}}\n'
        '{"id": 2, "at": {"lat": null}}\n'
        "\n"
        '{"at": null, "tags": [], "id": 3}'
    )
    lt.run(lt.Write(uri, sources=[sources / f"x.{ending}"]))
    assert read(uri).to_pylist() == [
        {"id": 1, "tags": ["a", "b"], "at": {"lat": 1.5}},
        {"id": 2, "tags": None, "at": {"lat": None}},
        {"id": 3, "tags": [], "at": None},
    ]


# Lance


def test_lance_source_skips_deleted_rows(sources: Path, uri: str) -> None:
    source = make_dataset(str(sources / "a.lance"), rows=1000)
    source.delete("id % 3 = 1")
    lt.run(lt.Write(uri, sources=[sources / "a.lance"], max_rows_per_file=150))
    expected = source.to_table()
    assert_same(read(uri), expected)
    full, last = divmod(expected.num_rows, 150)
    assert fragment_rows(uri) == [150] * full + [last]


def test_lance_source_of_a_version(sources: Path, uri: str) -> None:
    source = make_dataset(str(sources / "a.lance"), rows=300)
    source.delete("id < 50")
    source.insert(numbers(10, start=1000))
    for version, expected in [(1, 300), (2, 250), (None, 260)]:
        target = f"{uri}-{version}"
        lt.run(lt.Write(target, sources=[lt.Source(str(sources / "a.lance"), version=version)]))
        assert_same(read(target), read(str(sources / "a.lance"), version=version))
        assert lance.dataset(target).count_rows() == expected


def test_lance_source_is_pinned_at_prepare(sources: Path, uri: str) -> None:
    source = make_dataset(str(sources / "a.lance"), rows=300)
    job = lt.prepare(lt.Write(uri, sources=[sources / "a.lance"]))
    source.delete("id < 50")
    source.insert(numbers(10, start=1000))
    lt.commit(job, finish(job))
    assert_same(read(uri), numbers(300))


def test_lance_source_with_filter(sources: Path, uri: str) -> None:
    source = make_dataset(str(sources / "a.lance"), rows=1000)
    where = "id % 10 < 3 and name is not null"
    picked = lt.Source(str(sources / "a.lance"), filter=where, columns=["id", "score"])
    lt.run(lt.Write(uri, sources=[picked], max_rows_per_file=64))
    assert_same(read(uri), source.to_table(filter=where, columns=["id", "score"]))


def test_dataset_into_itself(uri: str) -> None:
    make_dataset(uri, rows=200)
    lt.run(lt.Write(uri, mode="append", sources=[uri]))
    assert_same(read(uri), pa.concat_tables([numbers(200), numbers(200)]).combine_chunks())


# Order, globs, folders


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_sources_keep_the_order_in_which_they_are_named(sources: Path, uri: str, kind: str) -> None:
    order = [7, 2, 9, 0, 4]
    paths = {i: write_source(sources / f"{i}", numbers(120, start=i * 1000), kind) for i in order}
    job = lt.prepare(
        lt.Write(
            uri,
            sources=[paths[i] for i in order],
            schema=numbers(0).schema,
            max_rows_per_file=100,
        )
    )
    results = list(lt.execute_all(lt.plan(job)))
    random.Random(2).shuffle(results)
    lt.commit(job, results)
    expected = [i * 1000 + row for i in order for row in range(120)]
    assert read(uri)["id"].to_pylist() == expected


def test_glob_and_folder_go_by_name(sources: Path, uri: str) -> None:
    for i in [3, 1, 2, 0]:
        pq.write_table(numbers(50, start=50 * i), sources / f"part-{i}.parquet")
    (sources / "part-9.txt").write_text("not data")
    (sources / "deep").mkdir()
    pq.write_table(numbers(50, start=200), sources / "deep" / "part-4.parquet")

    lt.run(lt.Write(uri + "1", sources=[str(sources / "part-*.parquet")]))
    assert_same(read(uri + "1"), numbers(200))
    lt.run(lt.Write(uri + "2", sources=[str(sources / "part-[12].parquet")]))
    assert_same(read(uri + "2"), numbers(100, start=50))
    lt.run(lt.Write(uri + "3", sources=[str(sources / "**" / "*.parquet")]))
    assert sorted(read(uri + "3")["id"].to_pylist()) == list(range(250))
    lt.run(lt.Write(uri + "4", sources=[str(sources / "part-?.parquet"), sources / "deep"]))
    assert_same(read(uri + "4"), numbers(250))


def test_folder_of_files(sources: Path, uri: str) -> None:
    write_parquet_files(sources, numbers(1000), 7)
    lt.run(lt.Write(uri, sources=[sources]))
    assert_same(read(uri), numbers(1000))


def test_glob_without_a_match(sources: Path, uri: str) -> None:
    with pytest.raises(lt.Error, match=r"none-\*\.parquet") as caught:
        lt.prepare(lt.Write(uri, sources=[str(sources / "none-*.parquet")]))
    assert caught.value.retry_class == "invalid"


def test_names_that_look_like_patterns_or_uris(sources: Path, uri: str) -> None:
    paths = []
    for i, name in enumerate(["a b.parquet", "ä%20c.parquet", "q#1.parquet", "x[1].parquet"]):
        pq.write_table(numbers(10, start=10 * i), sources / name)
        paths.append(sources / name)
    lt.run(lt.Write(uri, sources=paths))
    assert_same(read(uri), numbers(40))


# Full fragments


@pytest.mark.parametrize(
    "file_count, limit, expected",
    [
        (10, 1500, [1500] * 6 + [1000]),
        (10, 1000, [1000] * 10),
        (10, 10_000, [10_000]),
        (10, 1 << 20, [10_000]),
        (4, 999, [999] * 4 + [4]),
        (1, 300, [300] * 3 + [100]),
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "arrow-file", "lance"])
def test_fragments_come_out_full(
    sources: Path, uri: str, kind: str, file_count: int, limit: int, expected: list[int]
) -> None:
    paths = [
        write_source(sources / f"{i:02}", numbers(1000, start=1000 * i), kind)
        for i in range(file_count)
    ]
    lt.run(lt.Write(uri, sources=paths, max_rows_per_file=limit))
    assert fragment_rows(uri) == expected
    assert_same(read(uri), numbers(1000 * file_count))


def test_tasks_are_cut_at_multiples_of_the_file_limit(sources: Path, uri: str) -> None:
    paths = write_parquet_files(sources, numbers(10_000), 10)
    spec = lt.Write(uri, sources=paths, max_rows_per_file=700, max_rows_per_task=2100)
    job = lt.prepare(spec)
    tasks = lt.plan(job)
    assert [task.estimated_rows for task in tasks] == [2100] * 4 + [1600]
    lt.commit(job, finish(job))
    assert fragment_rows(uri) == [700] * 14 + [200]
    assert_same(read(uri), numbers(10_000))


def test_a_big_file_is_split_into_tasks(sources: Path, uri: str) -> None:
    pq.write_table(numbers(20_000), sources / "x.parquet", row_group_size=1000)
    job = lt.prepare(lt.Write(uri, sources=[sources / "x.parquet"], max_rows_per_file=2500))
    tasks = lt.plan(job)
    assert [task.estimated_rows for task in tasks] == [2500] * 8
    results = [lt.execute(task) for task in tasks]
    # A task reads its row groups, not the file.
    assert max(result.bytes_read for result in results) < os.path.getsize(sources / "x.parquet") / 2
    lt.commit(job, results)
    assert_same(read(uri), numbers(20_000))


# Nothing to write


def test_empty_source_makes_an_empty_dataset(sources: Path, uri: str) -> None:
    pq.write_table(numbers(0), sources / "x.parquet")
    outcome = run_loop(lt.Write(uri, sources=[sources / "x.parquet"]))
    assert (outcome.version, outcome.rows) == (1, 0)
    assert_same(read(uri), numbers(0))


def test_empty_sources_among_others(sources: Path, uri: str) -> None:
    paths = []
    for i, rows in enumerate([0, 10, 0, 0, 5, 0]):
        paths.append(sources / f"{i}.parquet")
        pq.write_table(numbers(rows, start=10 * (i > 1)), paths[-1])
    lt.run(lt.Write(uri, sources=paths))
    assert_same(read(uri), numbers(15))
    assert fragment_rows(uri) == [15]


def test_append_of_zero_rows(sources: Path, uri: str) -> None:
    make_dataset(uri, rows=100)
    pq.write_table(numbers(0), sources / "x.parquet")
    before = read(uri)
    outcome = run_loop(lt.Write(uri, mode="append", sources=[sources / "x.parquet"]))
    assert outcome.rows == 100
    assert_same(read(uri), before)
    assert len(fragment_rows(uri)) == 1


# Sources that fail


@pytest.mark.parametrize("mode", ["create", "append"])
@pytest.mark.parametrize("damage", ["garbage", "truncated", "page"])
def test_corrupt_file_among_good_ones(sources: Path, uri: str, damage: str, mode: str) -> None:
    paths = write_parquet_files(sources, numbers(5000), 5, compression="zstd")
    bad = Path(paths[3])
    data = bytearray(bad.read_bytes())
    if damage == "garbage":
        data = b"this is no parquet file at all"
    elif damage == "truncated":
        data = data[: len(data) // 2]
    else:
        data[4 : len(data) // 2] = random.Random(5).randbytes(len(data) // 2 - 4)
    bad.write_bytes(data)
    with pytest.raises((OSError, pa.ArrowInvalid)):
        pq.read_table(bad)
    if mode == "append":
        make_dataset(uri, rows=100)
    spec = lt.Write(uri, mode=mode, sources=paths, max_rows_per_file=500)
    with unchanged(sources.parent), pytest.raises(lt.SourceError, match=bad.name) as caught:
        lt.run(spec)
    assert caught.value.retry_class == "invalid"
    if mode == "append":
        assert_same(read(uri), numbers(100))


@pytest.mark.parametrize("name", ["x.csv", "x.ndjson", "x.arrow"])
def test_corrupt_file_of_other_formats(sources: Path, uri: str, name: str) -> None:
    text = {
        "x.csv": "id,name\n1,a\n2,b,c,d\n",
        "x.ndjson": '{"id": 1}\n{"id": 2,\n',
        "x.arrow": "no arrow",
    }[name]
    (sources / name).write_text(text)
    with unchanged(sources.parent), pytest.raises(lt.SourceError, match=name):
        lt.run(lt.Write(uri, sources=[sources / name]))


def test_missing_source(sources: Path, uri: str) -> None:
    with unchanged(sources.parent), pytest.raises(lt.NotFoundError, match=r"gone\.parquet"):
        lt.run(lt.Write(uri, sources=[sources / "gone.parquet"]))


def test_missing_lance_source_and_version(sources: Path, uri: str) -> None:
    make_dataset(str(sources / "a.lance"), rows=100)
    with unchanged(sources.parent):
        with pytest.raises(lt.Error, match=r"gone\.lance"):
            lt.prepare(lt.Write(uri, sources=[sources / "gone.lance"]))
        with pytest.raises(lt.Error, match="77"):
            lt.prepare(lt.Write(uri, sources=[lt.Source(str(sources / "a.lance"), version=77)]))
        with pytest.raises(lt.Error, match="nothere"):
            source = lt.Source(str(sources / "a.lance"), filter="nothere > 1")
            lt.run(lt.Write(uri, sources=[source]))


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_source_changed_after_prepare(sources: Path, uri: str, kind: str) -> None:
    """Tasks rely on what prepare saw; rows would be lost or doubled."""
    path = write_source(sources / "x", numbers(400), kind)
    job = lt.prepare(lt.Write(uri, sources=[path], max_rows_per_file=100))
    tasks = lt.plan(job)
    first = lt.execute(tasks[0])
    write_source(sources / "x", numbers(390, start=5), kind)
    with pytest.raises(lt.Error, match=Path(path).name):
        lt.execute(tasks[-1], executor=lt.Executor())
    lt.abort(job, [first])
    assert files(uri) == {}


def test_source_removed_after_prepare(sources: Path, uri: str) -> None:
    path = write_source(sources / "x", numbers(400), "parquet")
    job = lt.prepare(lt.Write(uri, sources=[path], max_rows_per_file=100))
    tasks = lt.plan(job)
    os.remove(path)
    with unchanged(sources.parent), pytest.raises(lt.Error, match=Path(path).name):
        lt.execute(tasks[0], executor=lt.Executor())
