# SPDX-License-Identifier: Apache-2.0
"""Index with Ray: a BTREE, and an IVF_PQ whose model is trained on a worker.

python examples/ray/index.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import ray
from cluster import two_nodes

import lance_tasks as lt
import lance_tasks.ray as ltr


def main(folder: Path) -> None:
    images = str(folder / "images.lance")

    def embed(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        random = np.random.default_rng(int(batch["id"][0]))
        return {"id": batch["id"], "v": random.random((len(batch["id"]), 16), "float32")}

    ltr.write(ray.data.range(20_000, override_num_blocks=8).map_batches(embed), images)
    ltr.run(lt.CreateIndex(images, column="id", index_type="BTREE", num_segments=4))
    spec = lt.CreateIndex(
        images,
        column="v",
        index_type="IVF_PQ",
        num_partitions=8,
        num_sub_vectors=4,
        num_segments=2,
    )
    # More CPUs per worker: its executor has as many threads.
    outcome = ltr.run(spec, ray_remote_args={"num_cpus": 1}, timeline=folder / "index.json")
    print(f"version {outcome.version}: {outcome.metrics['rows_covered']} rows indexed")

    ltr.write(ray.data.range(1_000).map_batches(embed), images, mode="append")
    outcome = ltr.run(lt.OptimizeIndex(images))
    print(f"version {outcome.version}: what was added is indexed as well")


if __name__ == "__main__":
    with two_nodes():
        main(Path(sys.argv[1]))
