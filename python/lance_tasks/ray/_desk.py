# SPDX-License-Identifier: Apache-2.0
"""What the driver and the write tasks of a Ray Dataset tell each other, in the cluster's key-value
store: no process of its own, which would take longer to start than a small write takes."""

from __future__ import annotations

import json
import os
import time
import uuid
from typing import Any

import ray
from ray.experimental import internal_kv as kv

import lance_tasks as lt
from lance_tasks.errors import Error, from_code

from ._retry import retrying

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._worker import Storage

_NAMESPACE = b"lance_tasks"


class _IpcSchema:
    """A schema from its Arrow IPC bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __arrow_c_schema__(self) -> object:
        import pyarrow as pa

        return pa.ipc.read_schema(pa.BufferReader(self._data)).__arrow_c_schema__()


class Desk:
    """One write.

    The first write task shows the schema, where the driver did not know it: fused with what comes
    before, nobody else sees a block before it is written. And attempts are noted while they are
    under way, so that the driver knows when the last one has ended, and which were lost.

    Args:
        keep: note what attempts did that have ended, for a bar or a timeline.
    """

    def __init__(self, keep: bool) -> None:
        self._prefix = f"{uuid.uuid4()}/".encode()
        self._keep = keep

    def _key(self, *parts: str) -> bytes:
        return self._prefix + "/".join(parts).encode()

    def _get(self, *parts: str) -> bytes | None:
        value: bytes | None = kv._internal_kv_get(self._key(*parts), namespace=_NAMESPACE)
        return value

    def _put(self, value: bytes, *parts: str, overwrite: bool = True) -> bool:
        """Put a value; was there one already?"""
        there: bool = kv._internal_kv_put(self._key(*parts), value, overwrite, namespace=_NAMESPACE)
        return there

    def _del(self, *parts: str) -> None:
        kv._internal_kv_del(self._key(*parts), namespace=_NAMESPACE)

    def _names(self, folder: str) -> list[str]:
        prefix = self._key(folder, "")
        found: list[bytes] = kv._internal_kv_list(prefix, namespace=_NAMESPACE)
        return [key[len(prefix) :].decode() for key in found]

    # On workers

    def begin(self, partition: str, place: dict[str, Any]) -> str:
        """An attempt begins: its name."""
        name = str(uuid.uuid4())
        fact = {**place, "partition": partition, "start": time.time()}
        self._put(json.dumps(fact).encode(), "open", name)
        return name

    def job(
        self, partition: str, job: bytes | None, spec: bytes, schema: bytes, storage: Storage
    ) -> bytes:
        """The job: the driver's, or the one that the first task prepares. Comes after `begin`, so
        that no attempt writes of which the driver does not know.

        Raises:
            Error: `close` was called with it, or what `prepare` says.
        """
        state = self._get("state")
        if state is None:
            raise _ended()
        if state:
            code, message = json.loads(state)
            # Not to be tried again, whatever the code means elsewhere.
            raise from_code(code, message, "fatal")
        if self._put(b"", "begun", partition, overwrite=False):
            # Whatever became of the attempt before, its files are not used.
            self._put(b"", "stray")
        found = job or self._get("job")
        if found is None:
            made = retrying(lambda: lt.prepare(spec, _IpcSchema(schema), **storage.keywords()), 3)
            # One of several that come at once wins; preparing writes nothing.
            self._put(made.to_bytes(), "job", overwrite=False)
            found = self._get("job")
        if found is None:
            raise _ended()
        return found

    def end(
        self,
        name: str,
        partition: str,
        place: dict[str, Any],
        start: float,
        facts: dict[str, Any] | None,
        error: str | None,
    ) -> None:
        """An attempt has ended: what it did, or its error's code."""
        if self._get("state") is not None:
            if error is not None:
                self._put(b"", "stray")
            if self._keep:
                fact = {**place, "partition": partition, "start": start, "end": time.time()}
                fact |= {"error": error, "rows": None, "bytes": None}
                if facts is not None:
                    fact |= {key: facts[key] for key in ("rows", "bytes")}
                    fact |= {"start": facts["started"], "end": facts["started"] + facts["elapsed"]}
                self._put(json.dumps(fact).encode(), "ended", name)
        self._del("open", name)

    # On the driver

    def start(self) -> None:
        """Write tasks may begin."""
        self._put(b"", "state")

    def close(self, error: Error) -> None:
        """Attempts that would begin from now on get this error."""
        if self._get("state") == b"":
            self._put(json.dumps([error.code, error.message]).encode(), "state")

    def open(self) -> int:
        """How many attempts have begun and not ended; among them are those that were lost."""
        return len(self._names("open"))

    def stray(self) -> bool:
        """Were there attempts whose files are not used?"""
        return self._get("stray") is not None

    def prepared(self) -> bytes | None:
        """The job that a write task has prepared."""
        return self._get("job")

    def ended(self) -> list[dict[str, Any]]:
        """Attempts that have ended since the last call."""
        found = []
        for name in self._names("ended"):
            fact = self._get("ended", name)
            if fact is not None:
                found.append(json.loads(fact))
                self._del("ended", name)
        return found

    def lost(self) -> list[dict[str, Any]]:
        """Attempts that have not ended."""
        found = [self._get("open", name) for name in self._names("open")]
        return [json.loads(fact) for fact in found if fact is not None]

    def remove(self) -> None:
        """Leave nothing in the store. Attempts that would begin later find that the write has
        ended."""
        kv._internal_kv_del(self._prefix, del_by_prefix=True, namespace=_NAMESPACE)


def _ended() -> Error:
    return lt.CancelledError("the write has ended", retry_class="fatal")


def here() -> dict[str, Any]:
    """Where this process is."""
    node = ray.get_runtime_context().get_node_id()
    return {"node": node, "host": os.uname().nodename, "pid": os.getpid()}
