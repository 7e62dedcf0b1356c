# SPDX-License-Identifier: Apache-2.0
"""The short form: some of every kind of fault. `soak.py` is the long one."""

import subprocess
import sys

import environment
import pytest
from catalog import FAULTS, Bench, Id

# Operations of several stages take longer; what they have in common the others show as well.
ROUNDS = {"create_vector_index": 1, "optimize_index": 1}


@pytest.mark.parametrize(
    ("operation", "fault", "number"),
    [
        (operation, fault.__name__, number)
        for operation, faults in FAULTS.items()
        for fault in faults
        for number in range(ROUNDS.get(operation, 2))
    ],
)
def test_fault(bench: Bench, seed: int, operation: str, fault: str, number: int) -> None:
    bench.run(Id(seed, operation, fault, number))


@pytest.mark.skipif(not environment.can_unshare(), reason="this machine has no user name spaces")
def test_full_disk_without_being_root(seed: int) -> None:
    """Also where only a name space of our own lets us mount a disk to fill."""
    soak = [sys.executable, str(environment.HERE / "soak.py"), "--seed", str(seed), "--faults", "1"]
    run = subprocess.run(
        [*environment.IN_NAME_SPACE, *soak, "--fault", "disk_full_at_task"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(FAULTS)} faults in" in run.stdout
