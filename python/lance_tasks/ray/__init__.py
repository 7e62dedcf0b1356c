# SPDX-License-Identifier: Apache-2.0
"""Work on Lance datasets on Ray: the tasks of a job on actors, results back, one commit.

    import lance_tasks as lt
    import lance_tasks.ray as ltr

    ltr.run(lt.Compact("s3://bucket/trips.lance"), storage_options=options)
    ltr.run(lt.CreateIndex("s3://bucket/trips.lance", column="id", index_type="BTREE"))
    ltr.write(ray.data.read_parquet("s3://bucket/raw"), "s3://bucket/trips.lance")

Needs Ray (`ray[data]` for `write` and `read`) on the driver, and this package on all nodes, or
shipped by `runtime_env`. No other Lance client is needed, on the driver or on workers.
"""

from __future__ import annotations

from ._errors import WorkerLostError, WorkerStartError
from ._run import abort, run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._read import read
    from ._sink import LanceDatasink
    from ._write import write

__all__ = ["LanceDatasink", "WorkerLostError", "WorkerStartError", "abort", "read", "run", "write"]

# ray.data takes a second to import.
_LAZY = {"LanceDatasink": "_sink", "read": "_read", "write": "_write"}


def __getattr__(name: str) -> object:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value
