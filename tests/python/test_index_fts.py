# SPDX-License-Identifier: Apache-2.0
"""Full-text indexes in segments: the hits and scores of one build by stock pylance over a copy of
the data, for every kind of query and every tokenizer parameter, with nulls, deletions, appends."""

import json
import math
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from lance.query import (
    BooleanQuery,
    BoostQuery,
    DocumentGranularity,
    FullTextOperator,
    FullTextQuery,
    MatchQuery,
    MultiMatchQuery,
    Occur,
    PhraseQuery,
)
from support import finish, read, run_loop, unchanged

import lance_tasks as lt

ROWS = 1530
ROWS_PER_FILE = 170
EVERYTHING = 10 * ROWS

WORDS = """
    river mountain running runs ran cities city forest light night storm stormy winter summer cafe
    café über naïve house houses garden window teacher student music dance story history ocean
    the and with chien chiens mangent vector-index search_query table.column e-mail 3rd don't
    extraordinarily internationalization
"""


@cache
def texts() -> pa.Table:
    """Short documents of a fixed vocabulary with frequencies as of natural language; some null."""
    random = np.random.default_rng(11)
    words = [*WORDS.split(), *(f"w{chr(97 + i % 26)}{chr(97 + i // 26)}x" for i in range(120))]
    weights = 1 / np.arange(1, len(words) + 1)
    documents: list[str | None] = []
    for i in range(ROWS):
        if i % 37 == 11:
            documents.append(None)
            continue
        chosen = random.choice(words, random.integers(2, 16), p=weights / weights.sum())
        documents.append(" ".join(w.title() if random.random() < 0.2 else w for w in chosen))
    documents[20] = ""
    return pa.table({"id": range(ROWS), "text": pa.array(documents, pa.string())})


MATCH = MatchQuery("river storm", "text")
QUERIES: dict[str, FullTextQuery] = {
    "match": MATCH,
    "match one": MatchQuery("Winter", "text"),
    "match stem": MatchQuery("city house", "text"),
    "match rare": MatchQuery("wccx wabx", "text"),
    "match none": MatchQuery("unheard", "text"),
    "and": MatchQuery("river mountain runs", "text", operator=FullTextOperator.AND),
    "boosted": MatchQuery("storm", "text", boost=2.5),
    "fuzzy": MatchQuery("rivr mountin", "text", fuzziness=1),
    "fuzzy prefix": MatchQuery("forast", "text", fuzziness=1, prefix_length=3),
    "fuzzy and": MatchQuery("rivar mountain", "text", fuzziness=1, operator=FullTextOperator.AND),
    "boolean": BooleanQuery(
        [
            (Occur.MUST, MatchQuery("river", "text")),
            (Occur.SHOULD, MatchQuery("light", "text")),
            (Occur.MUST_NOT, MatchQuery("mountain", "text")),
        ]
    ),
    "boolean should": BooleanQuery(
        [(Occur.SHOULD, MatchQuery("winter", "text")), (Occur.SHOULD, MatchQuery("cafe", "text"))]
    ),
    "boosting": BoostQuery(
        MatchQuery("river", "text"), MatchQuery("storm", "text"), negative_boost=0.3
    ),
}
PHRASES: dict[str, FullTextQuery] = {
    "phrase": PhraseQuery("river mountain", "text"),
    "phrase slop": PhraseQuery("river storm", "text", slop=2),
    "phrase boolean": BooleanQuery(
        [
            (Occur.MUST, PhraseQuery("river mountain", "text")),
            (Occur.MUST_NOT, MatchQuery("forest", "text")),
        ]
    ),
}


Maker = Callable[..., str]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """The URI of a dataset of `texts` that pylance has indexed in one build; one per parameters."""

    @cache
    def build(**params: object) -> str:
        uri = str(tmp_path_factory.mktemp("single") / "dataset.lance")
        make(uri).create_scalar_index("text", "INVERTED", **params)
        return uri

    # A list of stop words is no key of a cache.
    return lambda **params: build(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in params.items()}
    )


def make(uri: str, table: pa.Table | None = None, **options: object) -> lance.LanceDataset:
    """9 fragments, some rows deleted."""
    table = texts() if table is None else table
    rows_per_file = -(-table.num_rows // 9)
    dataset = lance.write_dataset(table, uri, max_rows_per_file=rows_per_file, **options)
    dataset.delete("id % 23 = 5")
    return dataset


def spec(uri: str, **options: object) -> lt.CreateIndex:
    return lt.CreateIndex(uri, **{"column": "text", "index_type": "INVERTED", **options})


def hits(uri: str, query: FullTextQuery | str, limit: int = EVERYTHING) -> dict[int, float]:
    scanner = lance.dataset(uri).scanner(
        columns=["id", "_score"], full_text_query=query, limit=limit
    )
    found = scanner.to_table()
    ids = found["id"].to_pylist()
    assert len(set(ids)) == len(ids), "a row is found twice"
    return dict(zip(ids, found["_score"].to_pylist(), strict=True))


def plan_of(uri: str, query: FullTextQuery | str) -> str:
    scanner = lance.dataset(uri).scanner(
        columns=["id", "_score"], full_text_query=query, limit=EVERYTHING
    )
    return scanner.explain_plan()


def segments_of(uri: str, name: str = "text_idx") -> list[list[int]]:
    """The fragments of each segment."""
    (index,) = [i for i in lance.dataset(uri).describe_indices() if i.name == name]
    return sorted(sorted(segment.fragment_ids) for segment in index.segments)


def segment_params(uri: str, name: str = "text_idx") -> list[dict]:
    """The parameters that each segment has stored."""
    statistics = lance.dataset(uri).stats.index_stats(name)
    return [segment["params"] for segment in statistics["indices"]]


def assert_same_hits(
    actual: dict[int, float], expected: dict[int, float], message: str = ""
) -> None:
    assert actual.keys() == expected.keys(), (
        f"{message}: missing {sorted(expected.keys() - actual.keys())[:5]}, "
        f"too many {sorted(actual.keys() - expected.keys())[:5]}"
    )
    for row, score in expected.items():
        assert math.isclose(actual[row], score, rel_tol=1e-5), f"{message}: score of row {row}"


def assert_answers_as(uri: str, judge: str, queries: dict[str, FullTextQuery]) -> None:
    """Each query has the judge's hits and scores, the best ten too, without reading any text."""
    found = 0
    for name, query in queries.items():
        plan = plan_of(uri, query)
        assert "Flat" not in plan, f"{name} reads documents:\n{plan}"
        assert "Query: column" in plan or "CompoundFtsScorer" in plan, f"{name}:\n{plan}"
        expected = hits(judge, query)
        assert_same_hits(hits(uri, query), expected, name)
        best = sorted(hits(uri, query, limit=10).values())
        assert best == pytest.approx(sorted(expected.values())[-10:], rel=1e-5), name
        found += len(expected)
    assert found, "no query finds anything"


def live_documents(uri: str) -> dict[int, str]:
    table = read(uri, columns=["id", "text"])
    rows = zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
    return {row: text for row, text in rows if text is not None}


# One build, 1, 3 and 8 segments


@pytest.mark.parametrize("index_type", ["INVERTED", "FTS"])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_hits_and_scores_of_a_single_build(
    uri: str, single: Maker, index_type: str, count: int
) -> None:
    make(uri)
    job = lt.prepare(spec(uri, index_type=index_type, num_segments=count, with_position=True))
    tasks = lt.plan(job)
    assert len(tasks) == count
    outcome = lt.commit(job, finish(job))
    segments = segments_of(uri)
    assert len(segments) == count == outcome.metrics["segments"]
    assert [i for segment in segments for i in segment] == list(range(9)), "contiguous runs"
    judge = single(with_position=True)
    assert_answers_as(uri, judge, QUERIES | PHRASES)
    statistics = lance.dataset(uri).stats.index_stats("text_idx")
    assert statistics["num_unindexed_rows"] == 0
    assert statistics["num_indexed_rows"] == lance.dataset(uri).count_rows()
    documents = sum(segment["num_docs"] for segment in statistics["indices"])
    expected = lance.dataset(judge).stats.index_stats("text_idx")["indices"]
    assert documents == sum(segment["num_docs"] for segment in expected)


def test_hits_are_those_of_the_text(uri: str) -> None:
    """Judged by the documents themselves, not by an index."""
    make(uri)
    run_loop(spec(uri, num_segments=3, stem=False, remove_stop_words=False, ascii_folding=False))
    tokens = {row: text.lower().split() for row, text in live_documents(uri).items()}
    for word in ("river", "cities", "über", "the", "wccx"):
        expected = {row for row, words in tokens.items() if word in words}
        assert expected and hits(uri, MatchQuery(word, "text")).keys() == expected, word
    expected = {row for row, words in tokens.items() if {"river", "storm"} <= set(words)}
    both = MatchQuery("river storm", "text", operator=FullTextOperator.AND)
    assert expected and hits(uri, both).keys() == expected


def test_fts_in_any_case_and_name(uri: str, single: Maker) -> None:
    make(uri)
    run_loop(spec(uri, index_type="fts", name="words", num_segments=2))
    (index,) = lance.dataset(uri).describe_indices()
    assert index.name == "words" and index.index_type.lower() == "inverted"
    assert_answers_as(uri, single(), {"match": MATCH})


@pytest.mark.parametrize("stable", [False, True])
def test_changes_after_the_build(uri: str, stable: bool) -> None:
    """Deletions, appended rows and a compaction: as pylance's own index goes through them."""
    judge = uri + ".judge"
    for place in (uri, judge):
        make(place, enable_stable_row_ids=stable)
    lance.dataset(judge).create_scalar_index("text", "INVERTED")
    run_loop(spec(uri, num_segments=3))
    for place in (uri, judge):
        lance.dataset(place).delete("id % 7 = 2")
    assert_answers_as(uri, judge, QUERIES)
    more = texts().slice(0, 60).set_column(0, "id", pa.array(range(5000, 5060)))
    for place in (uri, judge):
        lance.dataset(place).insert(more)
    for name, query in QUERIES.items():
        assert_same_hits(hits(uri, query), hits(judge, query), name)
    assert any(row >= 5000 for row in hits(uri, MATCH)), "appended rows are found by scanning"
    lance.dataset(uri).optimize.compact_files(target_rows_per_fragment=600)
    assert len(lance.dataset(uri).get_fragments()) < 10
    for name, query in QUERIES.items():
        assert hits(uri, query).keys() == hits(judge, query).keys(), name


def test_fragment_ids(uri: str, single: Maker) -> None:
    make(uri)
    run_loop(spec(uri, fragment_ids=[1, 2, 3, 7], num_segments=2))
    assert [i for segment in segments_of(uri) for i in segment] == [1, 2, 3, 7]
    assert "Flat" in plan_of(uri, MATCH), "the other fragments are scanned"
    for name in ("match", "and", "boolean should"):
        assert hits(uri, QUERIES[name]).keys() == hits(single(), QUERIES[name]).keys(), name


def test_later_job_covers_the_rest(uri: str, single: Maker) -> None:
    make(uri)
    run_loop(spec(uri, fragment_ids=[0, 1, 2, 3], num_segments=2, with_position=True))
    run_loop(
        spec(uri, fragment_ids=[4, 5, 6, 7, 8], num_segments=1, replace=True, with_position=True)
    )
    assert len(segments_of(uri)) == 3
    assert [i for segment in segments_of(uri) for i in segment] == list(range(9))
    assert_answers_as(uri, single(with_position=True), QUERIES | PHRASES)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("merge", [None, True])
def test_fragments_without_any_text(uri: str, count: int, merge: bool | None) -> None:
    """A segment may be without documents, others not."""
    words = [None] * 40 + ["river storm", "storm"] * 20 + [None] * 40
    table = pa.table({"id": range(120), "text": pa.array(words, pa.string())})
    lance.write_dataset(table, uri, max_rows_per_file=40)
    judge = lance.write_dataset(table, uri + ".judge", max_rows_per_file=40)
    judge.create_scalar_index("text", "INVERTED")
    run_loop(spec(uri, num_segments=count, merge=merge))
    assert len(segments_of(uri)) == (1 if merge else count)
    assert_answers_as(uri, uri + ".judge", {"match": MATCH})


# Merging


@pytest.mark.parametrize("count", [1, 3, 8])
def test_merge(uri: str, single: Maker, count: int) -> None:
    make(uri)
    job = lt.prepare(spec(uri, num_segments=count, merge=True, with_position=True))
    results = [lt.execute(task) for task in lt.plan(job)]
    assert len(results) == count
    results = finish(job, results)
    outcome = lt.commit(job, results)
    assert segments_of(uri) == [list(range(9))] and outcome.metrics["segments"] == 1
    assert_answers_as(uri, single(with_position=True), QUERIES | PHRASES)
    lt.abort(job, results)
    assert index_folders(uri) == {segment.uuid for segment in index_segments(uri)}
    assert_answers_as(uri, single(with_position=True), {"match": MATCH})


# Where the work is done


def index_segments(uri: str) -> list:
    return [s for index in lance.dataset(uri).describe_indices() for s in index.segments]


def index_folders(uri: str) -> set[str]:
    return {path.name for path in Path(uri, "_indices").iterdir()}


def index_files(uri: str) -> dict[str, tuple[int, int]]:
    """Every file below the index folders, with its size and when it was written."""
    root = Path(uri, "_indices")
    return {
        str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("merge", [None, True])
def test_tasks_leave_finished_segments(uri: str, merge: bool | None) -> None:
    """What tasks write is what readers read: the commit writes nothing below the index folders."""
    make(uri)
    job = lt.prepare(spec(uri, num_segments=3, merge=merge, with_position=True))
    results = finish(job)
    before = index_files(uri)
    assert before and not [path for path in before if "stag" in path]
    listed = {
        f"{segment.uuid}/{file.path}": file.size_bytes
        for result in results
        for segment in [lt.pylance_index(result)]
        for file in segment.files
    }
    assert {path: size for path, (size, _) in before.items()} == listed
    lt.commit(job, results)
    after = index_files(uri)
    assert after.items() <= before.items(), "the commit wrote files"
    if not merge:
        assert after == before
    for segment in index_segments(uri):
        sizes = [size for path, (size, _) in after.items() if path.startswith(segment.uuid)]
        assert len(sizes) >= 4 and segment.size_bytes == sum(sizes)
        assert Path(uri, "_indices", segment.uuid, "metadata.lance").is_file()


def test_a_little_memory(uri: str, single: Maker) -> None:
    make(uri)
    run_loop(spec(uri, num_segments=2, memory_limit=1, num_workers=1, with_position=True))
    assert_answers_as(uri, single(with_position=True), QUERIES | PHRASES)


# Parameters

# What is given to both, and a query that answers otherwise than by the defaults.
PARAMETERS: dict[str, tuple[dict, FullTextQuery]] = {
    "whitespace": ({"base_tokenizer": "whitespace"}, MatchQuery("search_query", "text")),
    "raw": (
        {"base_tokenizer": "raw", "stem": False, "remove_stop_words": False,
         "max_token_length": None},
        MatchQuery("river", "text"),
    ),
    "ngram": ({"base_tokenizer": "ngram"}, MatchQuery("ount", "text")),
    "ngram lengths": (
        {"base_tokenizer": "ngram", "min_ngram_length": 2, "max_ngram_length": 4,
         "prefix_only": True},
        MatchQuery("mo", "text"),
    ),
    "icu": ({"base_tokenizer": "icu"}, MatchQuery("don't", "text")),
    "no stems": ({"stem": False}, MatchQuery("houses", "text")),
    "stop words kept": ({"remove_stop_words": False}, MatchQuery("the", "text")),
    "own stop words": ({"custom_stop_words": ["river", "forest"]}, MatchQuery("river", "text")),
    "case kept": ({"lower_case": False, "stem": False}, MatchQuery("River", "text")),
    "accents kept": ({"ascii_folding": False}, MatchQuery("cafe", "text")),
    "short tokens": ({"max_token_length": 6}, MatchQuery("mountain", "text")),
    "tokens of any length": (
        {"max_token_length": None, "remove_stop_words": False}, MatchQuery("and", "text"),
    ),
    "language": ({"language": "French"}, MatchQuery("chien", "text")),
    "block size": ({"block_size": 256}, MATCH),
    "old format": ({"format_version": 1}, MATCH),
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(uri: str, single: Maker, name: str) -> None:
    params, query = PARAMETERS[name]
    make(uri)
    run_loop(spec(uri, num_segments=3, **params))
    judge = single(**params)
    assert segment_params(uri) == segment_params(judge) * 3
    assert_answers_as(uri, judge, {"own": query, "match": MATCH, "word": QUERIES["match one"]})
    if not {"block_size", "format_version"} & params.keys():
        assert hits(uri, query) != hits(single(), query), "the parameter changes nothing"
    else:
        versions = {i.index_version for place in (uri, judge) for i in index_segments(place)}
        assert len(versions) == 1
        assert versions != {i.index_version for i in index_segments(single())}


def test_defaults(uri: str, single: Maker) -> None:
    make(uri)
    run_loop(spec(uri, num_segments=2))
    assert segment_params(uri) == segment_params(single()) * 2
    with pytest.raises(Exception, match="position"):
        hits(uri, PHRASES["phrase"])


# Columns


def check_column(
    uri: str, table: pa.Table, column: str, queries: list[FullTextQuery], **params: object
) -> None:
    """As pylance's single build over a copy: 3 segments, and these merged, where Lance can."""
    options = params.pop("options", {})
    merges = params.pop("merges", True)
    make(uri, table, **options)
    for copy in ("judge", "merged"):
        shutil.copytree(uri, f"{uri}.{copy}")
    judge_params = dict(params)
    if "document_granularity" in params:
        judge_params["document_granularity"] = DocumentGranularity(params["document_granularity"])
    lance.dataset(uri + ".judge").create_scalar_index(column, "INVERTED", **judge_params)
    run_loop(spec(uri, column=column, num_segments=3, **params))
    merged = spec(uri + ".merged", column=column, num_segments=3, merge=True, **params)
    if merges:
        run_loop(merged)
    else:
        with unchanged(uri + ".merged"), pytest.raises(lt.NotSupportedError, match="merge"):
            lt.prepare(merged)
    name = lance.dataset(uri).describe_indices()[0].name
    assert name == lance.dataset(uri + ".judge").describe_indices()[0].name
    places = [uri, uri + ".merged"] if merges else [uri]
    assert [len(segments_of(place, name)) for place in places] == [3, 1][: len(places)]
    named = {str(i): query for i, query in enumerate(queries)}
    for place in places:
        if params.get("document_granularity") != "list_element":
            assert_answers_as(place, uri + ".judge", named)
            continue
        for query in queries:
            assert element_hits(place, query) == pytest.approx(
                element_hits(uri + ".judge", query), rel=1e-5
            )


def element_hits(uri: str, query: FullTextQuery) -> dict[str, float]:
    """Scores by row and element of its list."""
    table = lance.dataset(uri).scanner(full_text_query=query, limit=EVERYTHING).to_table()
    keys = zip(table["id"].to_pylist(), table["_doc_index"].to_pylist(), strict=True)
    found = dict(zip(map(str, keys), table["_score"].to_pylist(), strict=True))
    assert found and len(found) == table.num_rows
    return found


def parts() -> pa.Array:
    """The documents cut into lists of strings; null and empty ones, of null and empty strings."""
    lists: list = []
    for i, text in enumerate(texts()["text"].to_pylist()):
        words = (text or "").split(" ")
        lists.append(None if text is None else [] if i % 31 == 4 else [
            " ".join(words[:2]), None if i % 13 == 1 else "", " ".join(words[2:])
        ])  # fmt: skip
    return pa.array(lists, pa.list_(pa.string()))


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("dtype", [pa.string(), pa.large_string()])
def test_string_column(uri: str, dtype: pa.DataType, stable: bool) -> None:
    table = texts()
    table = table.set_column(1, "text", table["text"].cast(dtype))
    queries = [MATCH, PHRASES["phrase"]]
    check_column(
        uri, table, "text", queries, with_position=True, options={"enable_stable_row_ids": stable}
    )


def test_list_column(uri: str) -> None:
    table = texts().set_column(1, "text", parts())
    queries = [MATCH, PHRASES["phrase"], QUERIES["and"]]
    check_column(uri, table, "text", queries, with_position=True)


def test_list_elements_as_documents(uri: str) -> None:
    table = texts().set_column(1, "text", parts())
    queries = [MATCH, QUERIES["and"]]
    check_column(uri, table, "text", queries, document_granularity="list_element")


def test_nested_column(uri: str) -> None:
    nested = pa.StructArray.from_arrays([texts()["text"].combine_chunks()], ["body"])
    table = texts().set_column(1, "page", nested)
    check_column(uri, table, "page.body", [MatchQuery("river storm", "page.body")])


def test_json_column(uri: str) -> None:
    values = [
        None if text is None else json.dumps({"title": text[:20], "body": {"words": text}})
        for text in texts()["text"].to_pylist()
    ]
    table = texts().set_column(1, "text", pa.array(values, pa.json_()))
    queries = [MatchQuery("body.words,str,river", "text"), MatchQuery("title,str,storm", "text")]
    options = {"data_storage_version": "2.2"}
    check_column(uri, table, "text", queries, options=options, merges=False)


def test_column_of_several(uri: str) -> None:
    """Two indexed columns of one dataset, asked together."""
    table = texts().append_column("title", pa.array(texts()["text"].to_pylist()[::-1]))
    make(uri, table)
    shutil.copytree(uri, uri + ".judge")
    for column in ("text", "title"):
        lance.dataset(uri + ".judge").create_scalar_index(column, "INVERTED")
        run_loop(spec(uri, column=column, num_segments=3))
    query = MultiMatchQuery("winter storm", ["text", "title"])
    assert_answers_as(uri, uri + ".judge", {"multi": query, "match": MATCH})


# Refused


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"block_size": 100}, "block_size"),
        ({"base_tokenizer": "nonsense"}, "nonsense"),
        ({"base_tokenizer": 5}, "base_tokenizer"),
        ({"language": "Klingon"}, "Klingon"),
        ({"with_position": "yes"}, "with_position"),
        ({"stem": 3}, "stem"),
        ({"max_token_length": -1}, "max_token_length"),
        ({"custom_stop_words": "the"}, "custom_stop_words"),
        ({"memory_limit": "much"}, "memory_limit"),
        ({"format_version": 9}, "format_version"),
        ({"format_version": 1, "block_size": 256}, "block_size"),
        ({"base_tokenizer": "ngram", "min_ngram_length": 0}, "min_gram|min_ngram"),
        ({"base_tokenizer": "ngram", "min_ngram_length": 5}, "min_gram"),
        ({"document_granularity": "page"}, "document_granularity|page"),
        ({"document_granularity": "list_element"}, "document_granularity|list"),
        ({"zone_size": 8}, "zone_size"),
        ({"with_positions": True}, "with_positions"),
        ({"num_partitions": 2}, "num_partitions"),
        ({"column": "id"}, "id"),
        ({"column": "score"}, "score"),
        ({"column": "absent"}, "absent"),
    ],
)
def test_refused_at_prepare(uri: str, options: dict, named: str) -> None:
    table = texts().append_column("score", pa.array([0.5] * ROWS))
    lance.write_dataset(table, uri, max_rows_per_file=500)
    with unchanged(uri), pytest.raises(lt.Error, match=named) as caught:
        lt.prepare(spec(uri, **options))
    assert caught.value.retry_class == "invalid"


def test_existing_name(uri: str, single: Maker) -> None:
    make(uri)
    run_loop(spec(uri, num_segments=3))
    with unchanged(uri), pytest.raises(lt.AlreadyExistsError, match="text_idx"):
        lt.prepare(spec(uri, num_segments=2))
    run_loop(spec(uri, num_segments=2, replace=True, with_position=True))
    assert len(segments_of(uri)) == 2
    assert_answers_as(uri, single(with_position=True), QUERIES | PHRASES)
