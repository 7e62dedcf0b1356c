# SPDX-License-Identifier: Apache-2.0
"""The README's quick starts, run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import lance
import pytest
from conftest import ROOT, built_library

README = (ROOT / "README.md").read_text()


def block(name: str) -> str:
    """The code block behind `<!-- test: name -->`."""
    found = re.findall(rf"<!-- test: {name} -->\n```\w+\n(.*?)```", README, flags=re.DOTALL)
    assert len(found) == 1, f"{len(found)} blocks are marked {name}"
    return found[0]


def test_python(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", block("python")], cwd=tmp_path, check=True)
    dataset = lance.dataset(tmp_path / "people.lance")
    assert dataset.count_rows() == 4000
    assert {index["name"] for index in dataset.list_indices()} == {"id_idx"}
    assert dataset.stats.index_stats("id_idx")["num_unindexed_rows"] == 0


def test_blobs(tmp_path: Path) -> None:
    imports = "import lance_tasks as lt\nimport pyarrow as pa\n"
    script = imports + block("blobs")
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    payloads = [p.stat().st_size for p in (tmp_path / "films.lance").rglob("*.blob")]
    assert payloads.count(4_000_000) == len(payloads)
    films = lance.dataset(tmp_path / "films.lance").to_table()["film"].to_pylist()
    assert [film and film["kind"] for film in films] == [0, None, 0, 1, 1]


def test_shell(tmp_path: Path) -> None:
    rows = "".join(f"{i},place {i}\n" for i in range(100))
    (tmp_path / "trips.csv").write_text("id,place\n" + rows)
    path = os.pathsep.join([str(built_library().parent), os.environ["PATH"]])
    script = "set -e\n" + block("shell")
    subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, check=True, env=os.environ | {"PATH": path}
    )
    assert lance.dataset(tmp_path / "trips.lance").count_rows() == 100


def test_paths_exist() -> None:
    for path in re.findall(r"\]\(([\w/.-]+)\)", README):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", ["python", "blobs", "shell", "ray"])
def test_blocks_are_marked(name: str) -> None:
    assert block(name).strip()
