# SPDX-License-Identifier: Apache-2.0
"""Indexes from the command line: vectors in stages over a spool, JSON options, optimize-index."""

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from cli_support import Cli


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def vectors(rows: int, start: int = 0) -> pa.Table:
    """Two clusters in four dimensions."""
    ids = np.arange(start, start + rows)
    values = np.zeros((rows, 4), np.float32)
    values[:, 0] = (ids % 2) * 10 + ids / 1e6
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 4)
    return pa.table({"id": ids, "v": column, "text": [f"even odd {i % 3}" for i in ids]})


def nearest(uri: Path, to: float) -> list[int]:
    query = {"column": "v", "q": [to, 0, 0, 0], "k": 3, "nprobes": 100}
    found = lance.dataset(uri).to_table(columns=["id"], nearest=query)
    return sorted(found["id"].to_pylist())


def test_a_vector_index_in_stages_over_a_spool(cli: Cli, tmp_path: Path) -> None:
    uri = tmp_path / "d.lance"
    lance.write_dataset(vectors(1000), uri, max_rows_per_file=100)
    params = {"num_partitions": 2, "metric": "l2"}
    cli.prepare(
        operation="create_index",
        uri="d.lance",
        column="v",
        index_type="ivf_flat",
        num_segments=3,
        params=params,
        ivf_centroids=[[0, 0, 0, 0], [10, 0, 0, 0]],
    )
    # The training, then the segments; each run takes what can be done.
    cli("run", "spool")
    outcome = cli.json("commit", "spool")
    assert outcome["metrics"]["segments"] == 3
    assert outcome["metrics"]["rows_covered"] == 1000
    (index,) = lance.dataset(uri).stats.index_stats("v_idx")["indices"][:1]
    assert sorted(c[0] for c in index["centroids"]) == [0, 10]
    assert nearest(uri, 0.0) == [0, 2, 4]
    assert nearest(uri, 11.0) == [995, 997, 999]


def test_shorthands_build_and_optimize(cli: Cli, tmp_path: Path) -> None:
    uri = tmp_path / "d.lance"
    lance.write_dataset(vectors(600), uri, max_rows_per_file=100)
    cli(
        *["index", "d.lance", "--column", "v", "--type", "IVF_FLAT", "--num-segments", "2"],
        *["--set", "params.num_partitions=2", "--set", "ivf_centroids=[[0,0,0,0],[10,0,0,0]]"],
    )
    cli("index", "d.lance", "--column", "text", "--type", "fts", "--merge", "--num-segments", "2")
    lance.write_dataset(vectors(200, start=600), uri, mode="append", max_rows_per_file=100)
    version = lance.dataset(uri).version
    outcome = cli.json("optimize-index", "d.lance", "--names", "v_idx", "--names", "text_idx")
    assert outcome["version"] == version + 1 and outcome["metrics"]["indices"] == 2
    dataset = lance.dataset(uri)
    for name in ("v_idx", "text_idx"):
        assert dataset.stats.index_stats(name)["num_unindexed_rows"] == 0
    assert nearest(uri, 11.0) == [795, 797, 799]
    assert cli.json("optimize-index", "d.lance")["version"] == version + 1, "nothing to do"
    folded = cli.json("optimize-index", "d.lance", "--num-indices-to-merge", "9")
    assert folded["metrics"]["segments_replaced"] == 5
    segments = {i.name: len(i.segments) for i in lance.dataset(uri).describe_indices()}
    assert segments == {"v_idx": 1, "text_idx": 1}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--type", "IVF_PQ", "--set", "params.num_sub_vectors=3"], "num_sub_vectors"),
        (["--type", "IVF_FLAT", "--set", "ivf_centroids=[[1,2]]"], "ivf_centroids"),
        (["--type", "IVF_FLAT", "--set", 'ivf_centroids=[["a"]]'], "ivf_centroids"),
        (["--type", "IVF_SQ", "--merge"], "merge"),
        (["--type", "BTREE"], "BTREE"),
    ],
)
def test_bad_options_are_named(cli: Cli, tmp_path: Path, flags: list[str], named: str) -> None:
    lance.write_dataset(vectors(300), tmp_path / "d.lance")
    error = cli.error("index", "d.lance", "--column", "v", *flags, status=2)
    assert error["class"] == "invalid" and named in error["message"]
    assert lance.dataset(tmp_path / "d.lance").version == 1


def test_an_unknown_index_is_named(cli: Cli, tmp_path: Path) -> None:
    lance.write_dataset(vectors(10), tmp_path / "d.lance")
    error = cli.error("optimize-index", "d.lance", "--names", "nope", status=2)
    assert error["code"] == "NOT_FOUND" and "nope" in error["message"]
