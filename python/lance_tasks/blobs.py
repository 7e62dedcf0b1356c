# SPDX-License-Identifier: Apache-2.0
"""Values of blob columns as Arrow arrays: bytes, objects by URI, parts of them, shared payloads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

from .errors import InvalidArgumentError

if TYPE_CHECKING:
    import pyarrow as pa

_EXTENSION = b"lance.blob.v2"
_THRESHOLD = "lance-encoding:blob-{}-size-threshold"


@dataclass(frozen=True)
class Blob:
    """One value of a blob column: its bytes, or the object at a URI.

    Attributes:
        data: the bytes; empty ones are not null.
        uri: instead of them an object, referred to or copied (`Write.external_blob_mode`).
        position: with `size`, where the part of the object begins that is meant, in bytes.
        size: its length in bytes, at least 1.
        ref_id: rows of a column that carry the same positive number share one stored payload; they
            must have the same bytes. 0 or None: not shared.
    """

    data: bytes | None = None
    _: KW_ONLY
    uri: str | None = None
    position: int | None = None
    size: int | None = None
    ref_id: int | None = None

    def __post_init__(self) -> None:
        if (self.data is None) == (self.uri is None):
            raise InvalidArgumentError("a blob has exactly one of data and uri")
        if (self.position is None) != (self.size is None):
            raise InvalidArgumentError("a blob's position and size go together")
        if self.position is not None and self.uri is None:
            raise InvalidArgumentError("a blob's position and size are for a uri")


def blob_array(values: Iterable[Blob | bytes | str | None]) -> pa.StructArray:
    """An Arrow array for a blob column, to be named in `Write.blob_columns` or with `blob_field`.

    Args:
        values: per row a `Blob`, bytes, the URI of an object, or None for null.

    Returns:
        a `pyarrow.StructArray` with the children ``data``, ``uri``, ``position``, ``size`` and
        ``ref_id``.

    Raises:
        InvalidArgumentError: a value of another type, naming its row.
        ImportError: pyarrow is not installed.
    """
    import pyarrow as pa

    rows = [_blob(row, value) for row, value in enumerate(values)]

    def child(name: str, kind: pa.DataType) -> pa.Array:
        return pa.array([None if row is None else getattr(row, name) for row in rows], kind)

    types = _types()
    return pa.StructArray.from_arrays(
        [child(field.name, field.type) for field in types],
        fields=list(types),
        mask=pa.array([row is None for row in rows], pa.bool_()),
    )


def blob_field(
    name: str,
    nullable: bool = True,
    *,
    inline_size_threshold: int | None = None,
    dedicated_size_threshold: int | None = None,
    pack_file_size_threshold: int | None = None,
) -> pa.Field:
    """The Arrow field of a blob column whose values `blob_array` has made.

    Args:
        name: of the column.
        nullable: whether it may hold nulls.
        inline_size_threshold: payloads of more bytes lie outside of the data file; default 64 KiB.
        dedicated_size_threshold: payloads of more bytes have a file of their own; default 4 MiB.
        pack_file_size_threshold: bytes at which a pack file is rolled; default 1 GiB.
    """
    import pyarrow as pa

    metadata = {b"ARROW:extension:name": _EXTENSION, b"ARROW:extension:metadata": b""}
    for kind, value in (
        ("inline", inline_size_threshold),
        ("dedicated", dedicated_size_threshold),
        ("pack-file", pack_file_size_threshold),
    ):
        if value is not None:
            metadata[_THRESHOLD.format(kind).encode()] = str(value).encode()
    return pa.field(name, pa.struct(_types()), nullable=nullable, metadata=metadata)


def _types() -> list[pa.Field]:
    import pyarrow as pa

    return [
        pa.field("data", pa.large_binary()),
        pa.field("uri", pa.string()),
        pa.field("position", pa.uint64()),
        pa.field("size", pa.uint64()),
        pa.field("ref_id", pa.uint64()),
    ]


def _blob(row: int, value: Blob | bytes | str | None) -> Blob | None:
    if value is None or isinstance(value, Blob):
        return value
    if isinstance(value, str):
        return Blob(uri=value)
    if isinstance(value, bytes | bytearray | memoryview):
        return Blob(bytes(value))
    raise InvalidArgumentError(
        f"row {row}: a blob is a Blob, bytes, a URI or None, not {type(value).__name__}"
    )
