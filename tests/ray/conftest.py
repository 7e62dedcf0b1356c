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
for name, value in {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A machine that is busy with other things starts processes slowly.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
    "RAY_gcs_rpc_server_connect_timeout_s": "120",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_register_timeout_seconds": "300",
}.items():
    os.environ.setdefault(name, value)

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
