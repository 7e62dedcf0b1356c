# SPDX-License-Identifier: Apache-2.0
"""A bench for all tests of a run, and the seed that they share."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from catalog import Bench

# Where the tests of both folders are collected at once, the others import these from here.
from environment import ROOT, built_library  # noqa: F401

SEED = int(os.environ.get("FAULTS_SEED") or random.SystemRandom().randrange(1 << 32))


def pytest_report_header() -> str:
    return f"faults: seed {SEED} (FAULTS_SEED)"


@pytest.fixture(scope="session")
def seed() -> int:
    return SEED


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("faults"))
    yield bench
    bench.close()
