# SPDX-License-Identifier: Apache-2.0
"""What users put into specs, as plain values that JSON has."""

from __future__ import annotations

import base64
import os
import struct
from collections.abc import Mapping
from dataclasses import fields
from datetime import timedelta
from typing import Any

from .errors import InvalidArgumentError


class Part:
    """What has a JSON form: its fields that are not None."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form as plain values."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))  # type: ignore[arg-type]
        return {name: plain(value) for name, value in values if value is not None}


def plain(value: Any) -> Any:
    """Paths as text, durations as seconds, parts as mappings; all else as it is."""
    if isinstance(value, Part):
        return value.to_dict()
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, range)):
        return [plain(item) for item in value]
    return value


def tensor(name: str, value: Any) -> Any:
    """A matrix as the library takes it: nested lists, or its type, shape and bytes."""
    if hasattr(value, "storage") and hasattr(value.storage, "flatten"):
        value = value.storage  # pyarrow's tensor arrays
    if hasattr(value, "type") and hasattr(value.type, "list_size"):
        flat = value.flatten()
        if value.null_count or flat.null_count:
            raise InvalidArgumentError(f"option {name!r}: it has nulls")
        names = {"halffloat": "float16", "float": "float32", "double": "float64"}
        width = flat.type.bit_width // 8
        data = flat.buffers()[1][flat.offset * width : (flat.offset + len(flat)) * width]
        dtype = names.get(str(flat.type), str(flat.type))
        shape = [len(value), value.type.list_size]
        return _encoded(dtype, shape, bytes(data))
    if hasattr(value, "dtype") and hasattr(value, "tobytes"):
        little = value.astype(value.dtype.newbyteorder("<"))
        return _encoded(str(value.dtype.name), list(value.shape), little.tobytes())
    shape, numbers = _lists(value.tolist() if hasattr(value, "tolist") else plain(value))
    try:
        data = struct.pack(f"<{len(numbers)}d", *numbers)
    except struct.error:
        why = "it holds something else than numbers"
        raise InvalidArgumentError(f"option {name!r}: {why}") from None
    return _encoded("float64", shape, data)


def _lists(value: Any) -> tuple[list[int], list[Any]]:
    """The shape of nested lists, by their first ones, and all that is in them."""
    shape, level = [], [value]
    while level and isinstance(level[0], list):
        shape.append(len(level[0]))
        level = [item for one in level for item in (one if isinstance(one, list) else [one])]
    return shape, level


def _encoded(dtype: str, shape: list[int], data: bytes) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data": base64.b64encode(data).decode()}


def ipc_schema(schema: Any) -> bytes:
    """A schema as an Arrow IPC message."""
    if isinstance(schema, (bytes, bytearray, memoryview)):
        return bytes(schema)
    if hasattr(schema, "serialize"):  # pyarrow, nanoarrow
        return bytes(schema.serialize())
    if not hasattr(schema, "__arrow_c_schema__"):
        raise TypeError(
            f"schema: {type(schema).__name__} is no Arrow schema (it has no __arrow_c_schema__)"
        )
    try:
        import pyarrow
    except ImportError:
        raise InvalidArgumentError(
            f"schema: pyarrow is needed to write a {type(schema).__name__} into a spec; or hand it "
            "to prepare as its schema argument"
        ) from None
    return bytes(pyarrow.schema(schema).serialize())


def keys_of(name: str, keys: Any) -> list[Any]:
    """Numbers of any container."""
    for to_list in ("to_pylist", "tolist"):  # pyarrow, NumPy
        if hasattr(keys, to_list):
            keys = getattr(keys, to_list)()
            break
    if isinstance(keys, (str, bytes)) or not hasattr(keys, "__iter__"):
        raise TypeError(f"{name}: expected several numbers, got {type(keys).__name__}")
    # Numbers of NumPy in a list of Python are numbers too, but not JSON's.
    return [key.item() if hasattr(key, "item") else key for key in keys]


def range_of(i: int, part: Any) -> Any:
    """A pair of offset and size as a mapping."""
    if part is None or isinstance(part, Mapping):
        return plain(part)
    try:
        offset, size = part
    except (TypeError, ValueError):
        raise TypeError(f"ranges: entry {i} is no pair of offset and size, and not None") from None
    return {"offset": int(offset), "size": int(size)}
