# SPDX-License-Identifier: Apache-2.0
"""Write with Ray: a Ray Dataset, and files that the tasks read themselves.

python examples/ray/write.py FOLDER
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from cluster import two_nodes

import lance_tasks as lt
import lance_tasks.ray as ltr


def main(folder: Path) -> None:
    trips = str(folder / "trips.lance")

    # Ray Data computes, the write is fused with it. Small blocks are put together.
    rows = ray.data.range(100_000, override_num_blocks=50)
    rows = rows.map_batches(lambda b: {"id": b["id"], "miles": b["id"] % 97 * 0.5})
    outcome = ltr.write(rows, trips, min_rows_per_file=25_000)
    print(f"version {outcome.version}: {outcome.rows} rows, {outcome.metrics['files_added']} files")

    # Files need no Ray Data: each task reads its own part, and what is done survives the driver.
    for i in range(4):
        ids = range(100_000 + i * 5_000, 105_000 + i * 5_000)
        table = pa.table({"id": ids, "miles": [i * 0.25] * 5_000})
        pq.write_table(table, folder / f"more-{i}.parquet")
    spec = lt.Write(trips, mode="append", sources=str(folder / "more-*.parquet"))
    outcome = ltr.run(spec, spool=folder / "spool", timeline=folder / "write.html")
    print(f"version {outcome.version}: {outcome.rows} rows")


if __name__ == "__main__":
    with two_nodes():
        main(Path(sys.argv[1]))
