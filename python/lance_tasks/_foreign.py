# SPDX-License-Identifier: Apache-2.0
"""What another Lance client made, as JSON: knows pylance's classes by their shape, imports none."""

from __future__ import annotations

import base64
import dataclasses
import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def described(made: Any) -> bytes:
    """JSON of a `FragmentMetadata`, several, a `RewriteResult`, an `Index`, or of plain values."""
    if isinstance(made, (bytes, bytearray, memoryview)):
        return bytes(made)
    if isinstance(made, str):
        return made.encode()
    return json.dumps(_plain(made)).encode()


def _plain(made: Any) -> Any:
    if isinstance(made, (list, tuple)):
        return [_plain(one) for one in made]
    for name in ("to_json", "json"):
        method = getattr(made, name, None)
        if callable(method):
            value = method()
            return json.loads(value) if isinstance(value, str) else value
    if dataclasses.is_dataclass(made) and hasattr(made, "fragment_ids"):
        return _index(made)
    return made


def _index(index: Any) -> dict[str, Any]:
    details = index.index_details
    return {
        "uuid": str(index.uuid),
        "name": index.name,
        "fields": list(index.fields),
        "dataset_version": index.dataset_version,
        "fragment_ids": sorted(index.fragment_ids),
        "index_version": index.index_version,
        "created_at": None if index.created_at is None else index.created_at.isoformat(),
        "files": [{"path": f.path, "size_bytes": f.size_bytes} for f in index.files or ()],
        "index_details": None
        if details is None
        else [details[0], base64.b64encode(details[1]).decode()],
        "covering_fields": list(index.covering_fields),
    }
