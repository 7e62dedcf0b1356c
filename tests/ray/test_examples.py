# SPDX-License-Identifier: Apache-2.0
"""The examples run, each in a cluster of its own, and make what they say."""

import os
import subprocess
import sys
from pathlib import Path

import lance
import pytest
from conftest import ROOT


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """The examples bring their own cluster."""


def run(name: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "ray" / f"{name}.py"), str(folder)],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_write(tmp_path: Path) -> None:
    said = run("write", tmp_path)
    assert "version 1: 100000 rows, 4 files" in said and "version 2: 120000 rows" in said
    ids = lance.dataset(tmp_path / "trips.lance").to_table()["id"].to_pylist()
    assert sorted(ids) == list(range(120_000))
    assert (tmp_path / "write.html").read_text().startswith("<!DOCTYPE html>")


def test_compact(tmp_path: Path) -> None:
    said = run("compact", tmp_path)
    assert "40 fragments became 4" in said
    dataset = lance.dataset(tmp_path / "trips.lance")
    assert len(dataset.versions()) == 1
    assert dataset.to_table()["id"].to_pylist() == list(range(20_000))


def test_index(tmp_path: Path) -> None:
    assert "20000 rows indexed" in run("index", tmp_path)
    dataset = lance.dataset(tmp_path / "images.lance")
    covered = {i.name: i.num_rows_indexed for i in dataset.describe_indices()}
    assert covered == {"id_idx": 21_000, "v_idx": 21_000}


def test_readme(tmp_path: Path, cluster) -> None:
    from test_readme import block

    script = f"import ray\nray.init({cluster.address!r}, log_to_driver=False)\n{block('ray')}"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    dataset = lance.dataset(tmp_path / "rides.lance")
    assert sorted(dataset.to_table()["id"].to_pylist()) == list(range(10_000))
    (index,) = dataset.describe_indices()
    assert index.num_rows_indexed == 10_000 and len(dataset.get_fragments()) == 1
    assert (tmp_path / "compact.html").exists() and (tmp_path / "spool/outcome.json").exists()
