# SPDX-License-Identifier: Apache-2.0
"""Ray's blocks as Arrow tables of one schema."""

from __future__ import annotations

from ray.data.block import BlockAccessor

import lance_tasks as lt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    import pyarrow as pa


def tables_of(blocks: Iterable[Any], schema: Any) -> Iterator[pa.Table]:
    """Blocks as tables of one schema: the given one, or the first block's.

    Raises:
        SchemaMismatchError: a block has other columns, or other types that cannot be cast.
    """
    import pyarrow as pa

    tables: Iterator[pa.Table] = (t for t in map(_table, blocks) if t.num_columns)
    wanted = None if schema is None else pa.schema(schema)
    if wanted is None:
        first = next(tables, None)
        if first is None:
            return
        wanted = first.schema
        tables = chain(first, tables)
        if any(pa.types.is_null(field.type) for field in wanted):
            # What the column is only another block can tell.
            whole = list(tables)
            wanted = pa.unify_schemas([t.schema for t in whole], promote_options="permissive")
            tables = iter(whole)
    wanted = wanted.remove_metadata()
    for table in tables:
        yield _conform(table.replace_schema_metadata(None), wanted)


def chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    """What was taken from an iterator, and the rest of it."""
    yield first
    yield from rest


def _table(block: Any) -> pa.Table:
    return plain(BlockAccessor.for_block(block).to_arrow())


def _conform(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    import pyarrow as pa

    if table.schema.equals(wanted):
        return table
    strange = [name for name in table.column_names if name not in wanted.names]
    if strange:
        raise lt.SchemaMismatchError(
            f"column {strange[0]!r} is in some blocks and not in others; give schema"
        )
    columns = []
    for field in wanted:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table[field.name]
        try:
            columns.append(column if column.type == field.type else column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as e:
            raise lt.SchemaMismatchError(
                f"column {field.name!r}: {column.type} in one block, {field.type} in another: {e}; "
                "give schema"
            ) from None
    return pa.Table.from_arrays(columns, schema=wanted)


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
