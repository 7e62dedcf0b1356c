# SPDX-License-Identifier: Apache-2.0
"""Where the library and the package are found, and the fixtures that the tests share."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def built_library() -> Path:
    """The library as `cargo build --release` leaves it."""
    target = os.environ.get("CARGO_TARGET_DIR")
    if target is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        target = Path(cache) / "lance-tasks" / "target"
    return Path(target) / "release" / "liblance_tasks.so"


os.environ.setdefault("LANCE_TASKS_LIBRARY", str(built_library()))
sys.path.insert(0, str(ROOT / "python"))
# Worker processes of the tests find the package in the same place.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(ROOT / "python"), os.environ.get("PYTHONPATH")])
)


def pytest_report_header() -> str:
    return f"lance-tasks library: {os.environ['LANCE_TASKS_LIBRARY']}"


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A place for a dataset that does not exist yet."""
    return str(tmp_path / "dataset.lance")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """An empty folder for source files."""
    folder = tmp_path / "sources"
    folder.mkdir()
    return folder


CASES = [
    "create",
    "append",
    "overwrite",
    "compact",
    "create_index",
    "create_vector_index",
    "optimize_index",
]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path):
    """One job of every operation, see cases.py."""
    import cases

    (kind,) = [kind for kind in cases.CASES if kind.name == request.param]
    return kind(tmp_path)
