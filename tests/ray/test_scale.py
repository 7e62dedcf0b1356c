# SPDX-License-Identifier: Apache-2.0
"""Many tasks: what the driver and the object store hold does not grow with them."""

import json
import os
import re
import subprocess
import sys

import lance
import nodes
import pyarrow as pa
from support import read

DRIVER = """
import json, sys
import ray
import lance_tasks as lt, lance_tasks.ray as ltr
from lance_tasks.ray import _pool

ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
seen = {"rss": [], "tasks": [], "flight": 0}

def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

real = _pool.Pool._ended
def ended(self, *given):
    yield from real(self, *given)
    seen["rss"].append(rss())
    seen["flight"] = max(seen["flight"], len(self._running))
_pool.Pool._ended = ended
start = _pool.Pool._start
def started(self, work, member):
    seen["tasks"].append(len(work.task))
    start(self, work, member)
_pool.Pool._start = started

outcome = ltr.run(json.loads(sys.argv[2]))
print(json.dumps({**seen, "descriptor": max(seen["tasks"]), "tasks": outcome.metrics["tasks"]}))
"""


def test_two_thousand_tasks(uri: str, cluster) -> None:
    fragments = 2000
    table = pa.table({"id": range(fragments * 10)})
    lance.write_dataset(table, uri, max_rows_per_file=10).delete("id % 10 in (3, 4)")
    spec = {"operation": "compact", "uri": uri, "target_rows_per_fragment": 8}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, cluster.address, json.dumps(spec)],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["tasks"] == fragments
    assert seen["flight"] <= 4, "tasks at a time, of two workers with one thread each"
    assert seen["descriptor"] < 4096, "bytes of the largest descriptor"
    growth = seen["rss"][-1] - seen["rss"][200]
    assert growth < 24 << 20, f"the driver has grown by {growth} bytes over 1,800 tasks"
    dataset = lance.dataset(uri)
    assert len(dataset.get_fragments()) == fragments
    assert read(uri)["id"].to_pylist() == [i for i in range(fragments * 10) if i % 10 not in (3, 4)]


def test_object_store_stays_small(uri: str, cluster) -> None:
    """An iterator of blocks of more bytes than the object stores hold."""
    import numpy as np

    import lance_tasks as lt
    import lance_tasks.ray as ltr

    def blocks():
        for i in range(40):
            yield pa.table({"id": [i], "data": pa.array([np.full(8 << 20, i, "u1").tobytes()])})

    ltr.run(lt.Write(uri), data=blocks())
    assert lance.dataset(uri).count_rows() == 40
    spilled = [
        path
        for path in nodes.logs().glob("raylet*.out")
        if re.search(r"Spilled [1-9]", path.read_text())
    ]
    assert not spilled
