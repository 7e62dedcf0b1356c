# SPDX-License-Identifier: Apache-2.0
"""Compact with Ray, and remove the old versions.

python examples/ray/compact.py FOLDER
"""

import sys
from pathlib import Path

import pyarrow as pa
from cluster import two_nodes

import lance_tasks as lt
import lance_tasks.ray as ltr


def main(folder: Path) -> None:
    trips = str(folder / "trips.lance")
    blocks = [pa.table({"id": range(i * 500, i * 500 + 500)}) for i in range(40)]
    ltr.run(lt.Write(trips), data=blocks)

    # A task that takes far longer than the others is attempted a second time beside itself.
    spec = lt.Compact(trips, target_rows_per_fragment=5_000)
    outcome = ltr.run(spec, speculate=True, timeline=[folder / "compact.svg"])
    metrics = outcome.metrics
    print(f"{metrics['fragments_removed']} fragments became {metrics['fragments_added']}")

    outcome = ltr.run(lt.Cleanup(trips, retain_versions=1))
    print(f"{outcome.metrics['files']} old files removed")


if __name__ == "__main__":
    with two_nodes():
        main(Path(sys.argv[1]))
