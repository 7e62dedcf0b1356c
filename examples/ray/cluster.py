# SPDX-License-Identifier: Apache-2.0
"""A cluster of two nodes on this machine, for the examples.

On a real one: `ray.init("auto")`, and no more.
"""

import contextlib
import os
from collections.abc import Iterator

import ray
from ray.cluster_utils import Cluster


@contextlib.contextmanager
def two_nodes() -> Iterator[None]:
    # Ray would ask for a token between the processes of one machine.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    node = {"num_cpus": 1, "object_store_memory": 200 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        cluster.wait_for_nodes()
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()
