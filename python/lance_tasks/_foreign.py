# SPDX-License-Identifier: Apache-2.0
"""What another Lance client made, as JSON: knows pylance's classes by their shape; and back."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json

from .errors import InvalidArgumentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from lance.dataset import Index

    from .descriptors import Result


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


def pylance_index(result: Result) -> Index:
    """The index segment of a result, as pylance's `commit_existing_index_segments` takes it.

    Raises:
        InvalidArgumentError: the result is of no index segment.
        ImportError: pylance is not installed.
    """
    from lance.dataset import Index, IndexFile

    # It takes sets too, and its type is of a compiled module.
    covered: Any = set(result.payload.get("fragment_ids", ()))
    fields = result.payload
    if "fragment_ids" not in fields:
        raise InvalidArgumentError(
            f"result: the attempt at task {result.task_id} made no index segment"
        )
    created_at = fields["created_at"]
    details = fields["index_details"]
    return Index(
        uuid=fields["uuid"],
        name=fields["name"],
        fields=fields["fields"],
        dataset_version=fields["dataset_version"],
        fragment_ids=covered,
        index_version=fields["index_version"],
        created_at=None if created_at is None else datetime.datetime.fromisoformat(created_at),
        base_id=fields["base_id"],
        files=[IndexFile(file["path"], file["size_bytes"]) for file in fields["files"]],
        index_details=None if details is None else (details[0], base64.b64decode(details[1])),
        covering_fields=fields["covering_fields"],
    )
