# SPDX-License-Identifier: Apache-2.0
"""A cluster of two simulated nodes, each a raylet of its own, shared by the tests of a process."""

import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PYTHON_TESTS = HERE.parent / "python"

# Paths, the library and the fixtures that the other tests have.
_shared = runpy.run_path(str(PYTHON_TESTS / "conftest.py"))
for folder in (PYTHON_TESTS, HERE.parent / "faults", HERE):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
# Workers find what the tests hand to them.
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ["PYTHONPATH"]])
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

uri, sources, case = _shared["uri"], _shared["sources"], _shared["case"]
ROOT, built_library = _shared["ROOT"], _shared["built_library"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[object]:
    """Two nodes of one CPU each; the driver is connected to it."""
    import nodes

    with nodes.cluster() as made:
        yield made


@pytest.fixture(autouse=True)
def _quiet(cluster: object) -> None:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
