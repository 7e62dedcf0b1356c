# SPDX-License-Identifier: Apache-2.0
"""Ray's tensor columns as Arrow has such."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    import pyarrow as pa


def plain(table: pa.Table) -> pa.Table:
    """The table with Ray's tensors of one dimension as fixed-size lists (as vectors are stored).

    Tensors of more dimensions and of various shapes stay as Ray has them.
    """
    import pyarrow as pa

    for at, field in enumerate(table.schema):
        shape = getattr(field.type, "shape", None)
        name = getattr(field.type, "extension_name", "")
        if not name.startswith("ray.data.arrow_tensor") or not shape or len(shape) != 1:
            continue
        chunks = [_vectors(chunk, shape[0]) for chunk in table[field.name].chunks]
        kind = pa.list_(field.type.value_type, shape[0])
        column = pa.chunked_array(chunks, kind)
        table = table.set_column(at, pa.field(field.name, kind, field.nullable), column)
    return table


def _vectors(chunk: Any, size: int) -> pa.Array:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(chunk.storage.flatten(), size)
