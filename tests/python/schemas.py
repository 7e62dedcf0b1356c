# SPDX-License-Identifier: Apache-2.0
"""Columns of every Arrow type, and random tables of nested ones."""

import random
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute

VERSIONS = ["legacy", "2.0", "2.1", "2.2", "2.3"]

# How `dtype(..)` of a source reads back: Lance has no views.
STORED_AS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}

DAY_MS = 86_400_000


def _examples() -> dict[str, tuple[pa.DataType, list]]:
    struct = pa.struct([("a", pa.int32()), ("b", pa.string())])
    columns: dict[str, tuple[pa.DataType, list]] = {
        "null": (pa.null(), [None] * 3),
        "bool": (pa.bool_(), [True, None, False]),
        "float16": (pa.float16(), [np.float16(1.5), None, np.float16(-2)]),
        "float32": (pa.float32(), [1.5, None, float("nan")]),
        "float64": (pa.float64(), [1.5, None, float("-inf")]),
        "string": (pa.string(), ["", None, "grüße 🦀"]),
        "large_string": (pa.large_string(), ["", None, "x" * 1000]),
        "string_view": (pa.string_view(), ["", None, "longer than twelve bytes"]),
        "binary": (pa.binary(), [b"", None, b"\0\xff"]),
        "large_binary": (pa.large_binary(), [b"", None, b"\0\xff"]),
        "binary_view": (pa.binary_view(), [b"", None, b"\0" * 20]),
        "fixed_size_binary": (pa.binary(4), [b"abcd", None, b"\0\0\0\0"]),
        "decimal32": (pa.decimal32(5, 2), [Decimal("1.25"), None, Decimal("-9")]),
        "decimal64": (pa.decimal64(15, 2), [Decimal("1.25"), None, Decimal("-9")]),
        "decimal128": (pa.decimal128(38, 3), [Decimal("1.234"), None, Decimal("-5")]),
        "decimal128_negative_scale": (pa.decimal128(10, -2), [Decimal("1200"), None, Decimal(0)]),
        "decimal256": (pa.decimal256(60, 10), [Decimal("1.234"), None, Decimal("-5")]),
        "timestamp_zone": (pa.timestamp("us", "Europe/Berlin"), [1, None, 10**12]),
        "timestamp_offset": (pa.timestamp("ns", "+05:30"), [1, None, 10**12]),
        "date32": (pa.date32(), [1, None, -10_000]),
        "date64": (pa.date64(), [DAY_MS, None, -20 * DAY_MS]),
        "time32_s": (pa.time32("s"), [1, None, 86_399]),
        "time32_ms": (pa.time32("ms"), [1, None, 100]),
        "time64_us": (pa.time64("us"), [1, None, 100]),
        "time64_ns": (pa.time64("ns"), [1, None, 100]),
        "interval": (pa.month_day_nano_interval(), [(1, 2, 3), None, (4, 5, 6)]),
        "list": (pa.list_(pa.int32()), [[1, None], None, []]),
        "large_list": (pa.large_list(pa.string()), [["a", None, ""], None, []]),
        "list_view": (pa.list_view(pa.int32()), [[1, None], None, []]),
        "list_of_list": (pa.list_(pa.list_(pa.int32())), [[[1], None, []], None, []]),
        "list_of_struct": (pa.list_(struct), [[{"a": 1, "b": "x"}], None, []]),
        "list_of_null_struct": (pa.list_(struct), [[{"a": 1, "b": "x"}, None], None, []]),
        "vector_float16": (pa.list_(pa.float16(), 2), [[np.float16(1), np.float16(2)], None] * 2),
        "vector_float32": (pa.list_(pa.float32(), 2), [[1, 2], None, [3, 4]]),
        "vector_float64": (pa.list_(pa.float64(), 2), [[1, 2], None, [3, 4]]),
        "vector_int8": (pa.list_(pa.int8(), 3), [[1, 2, 3], None, [3, 4, 5]]),
        "vector_with_null_items": (pa.list_(pa.float32(), 2), [[1, None], None, [3, 4]]),
        "vector_of_vector": (pa.list_(pa.list_(pa.float32(), 2), 2), [[[1, 2], [3, 4]], None]),
        "vector_of_string": (pa.list_(pa.string(), 2), [["a", "b"], None, ["c", "d"]]),
        "vector_of_struct": (pa.list_(struct, 2), [[{"a": 1}, {"a": 2}], None]),
        "list_of_vector": (pa.list_(pa.list_(pa.float32(), 2)), [[[1, 2], [3, 4]], None, []]),
        "struct": (struct, [{"a": 1, "b": "x"}, {"a": 2, "b": None}, {"a": None, "b": ""}]),
        "struct_with_nulls": (struct, [{"a": 1, "b": "x"}, None, {"a": None, "b": None}]),
        "struct_of_struct": (
            pa.struct([("a", pa.struct([("c", pa.float64())])), ("b", pa.list_(pa.int8()))]),
            [{"a": {"c": 1.5}, "b": [1]}, None, {"a": None, "b": None}],
        ),
        "struct_empty": (pa.struct([]), [{}, {}, {}]),
        "map": (pa.map_(pa.string(), pa.int32()), [[("a", 1), ("b", None)], None, []]),
        "map_of_struct": (pa.map_(pa.int32(), struct), [[(1, {"a": 1, "b": "q"})], None, []]),
        "dictionary_int8": (pa.dictionary(pa.int8(), pa.string()), ["a", None, "b"]),
        "dictionary_int32": (pa.dictionary(pa.int32(), pa.string()), ["a", None, "b"]),
        "dictionary_of_int": (pa.dictionary(pa.uint16(), pa.int64()), [1, None, 2]),
        "dictionary_large": (pa.dictionary(pa.int64(), pa.large_string()), ["a", None, "b"]),
        "list_of_dictionary": (
            pa.list_(pa.dictionary(pa.int8(), pa.string())),
            [["a", "b"], None, ["a"]],
        ),
        "struct_of_view": (pa.struct([("v", pa.string_view())]), [{"v": "x"}, {"v": None}]),
        "run_end_encoded": (pa.run_end_encoded(pa.int32(), pa.int64()), [1, 1, 2]),
        "uuid": (pa.uuid(), [b"0" * 16, None, b"1" * 16]),
        "bool8": (pa.bool8(), [1, None, 0]),
        "json": (pa.json_(), ["{}", None, "[1]"]),
    }
    for bits in (8, 16, 32, 64):
        columns[f"int{bits}"] = (getattr(pa, f"int{bits}")(), [1, None, -(2 ** (bits - 1))])
        columns[f"uint{bits}"] = (getattr(pa, f"uint{bits}")(), [1, None, 2**bits - 1])
    for unit in ("s", "ms", "us", "ns"):
        columns[f"timestamp_{unit}"] = (pa.timestamp(unit), [1, None, -1_000_000])
        columns[f"duration_{unit}"] = (pa.duration(unit), [1, None, -1_000_000])
    return columns


EXAMPLES = _examples()


def build(values: list, dtype: pa.DataType) -> pa.Array:
    """An array of Python values, also for types that `pa.array` does not build by itself."""
    if isinstance(dtype, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(dtype, build(values, dtype.storage_type))
    if pa.types.is_dictionary(dtype):
        return pa.array(values, dtype.value_type).dictionary_encode().cast(dtype)
    if pa.types.is_run_end_encoded(dtype):
        return pa.compute.run_end_encode(pa.array(values, dtype.value_type), dtype.run_end_type)
    if pa.types.is_list(dtype) and pa.types.is_dictionary(dtype.value_type):
        offsets = np.cumsum([0, *(len(v or []) for v in values)])
        items = build([item for v in values for item in v or []], dtype.value_type)
        missing = pa.array([v is None for v in values])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items, dtype, mask=missing)
    return pa.array(values, dtype)


def example(name: str) -> pa.Table:
    """A table of one column `x` of a type of `EXAMPLES`."""
    dtype, values = EXAMPLES[name]
    return pa.table({"x": build(values, dtype)})


# Random tables


def random_type(rng: random.Random, version: str, depth: int = 2) -> pa.DataType:
    """A type that Lance stores in this file version."""
    simple = [
        pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.uint64(), pa.bool_(), pa.float16(),
        pa.float32(), pa.float64(), pa.string(), pa.large_string(), pa.string_view(), pa.binary(),
        pa.large_binary(), pa.binary_view(), pa.binary(7), pa.decimal128(30, 4),
        pa.decimal256(50, 6), pa.timestamp("s"),
        pa.timestamp("us", "America/New_York"), pa.timestamp("ns", "UTC"),
        pa.date32(), pa.date64(), pa.time32("ms"), pa.time64("ns"), pa.duration("us"), pa.null(),
        pa.list_(pa.float32(), 4), pa.list_(pa.float16(), 8), pa.list_(pa.float64(), 3),
    ]  # fmt: skip
    if depth == 0 or rng.random() < 0.5:
        if depth == 2 and rng.random() < 0.15:
            return pa.dictionary(rng.choice([pa.int8(), pa.int32()]), pa.string())
        return rng.choice(simple)
    inner = random_type(rng, version, depth - 1)
    kinds = ["list", "large_list", "struct", "struct"]
    if version in ("2.2", "2.3"):
        kinds.append("map")
    kind = rng.choice(kinds)
    if kind == "list":
        return pa.list_(inner)
    if kind == "large_list":
        return pa.large_list(inner)
    if kind == "map":
        return pa.map_(rng.choice([pa.string(), pa.int32()]), inner)
    others = [random_type(rng, version, depth - 1) for _ in range(rng.randint(0, 2))]
    return pa.struct([(f"f{i}", t) for i, t in enumerate([inner, *others])])


def random_value(rng: random.Random, dtype: pa.DataType, version: str, nulls: float) -> object:
    null_struct = pa.types.is_struct(dtype) and version == "2.0"  # 2.0 cannot store these
    if pa.types.is_null(dtype) or (rng.random() < nulls and not null_struct):
        return None

    def value(inner: pa.DataType) -> object:
        return random_value(rng, inner, version, nulls)

    if pa.types.is_struct(dtype):
        return {field.name: value(field.type) for field in dtype}
    if pa.types.is_map(dtype):
        keys = range(rng.choice([0, 1, 3]))
        text = pa.types.is_string(dtype.key_type)
        return [(f"k{k}" if text else k, value(dtype.item_type)) for k in keys]
    if pa.types.is_fixed_size_list(dtype):
        as_float = np.float16 if pa.types.is_float16(dtype.value_type) else float
        return [as_float(rng.randint(-9, 9) / 2) for _ in range(dtype.list_size)]
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return [value(dtype.value_type) for _ in range(rng.choice([0, 1, 2, 5]))]
    if pa.types.is_dictionary(dtype):
        return rng.choice(["", "red", "green", "blue"])
    if pa.types.is_boolean(dtype):
        return rng.random() < 0.5
    if pa.types.is_float16(dtype):
        return np.float16(rng.randint(-100, 100) / 4)
    if pa.types.is_floating(dtype):
        return rng.choice([0.0, -1.5, 1e30, rng.randint(-1000, 1000) / 8])
    if pa.types.is_integer(dtype):
        signed = pa.types.is_signed_integer(dtype)
        half = 2 ** (dtype.bit_width - 1)
        low, high = (-half, half - 1) if signed else (0, 2 * half - 1)
        return rng.choice([low, high, 0, 1, rng.randint(low, high)])
    if pa.types.is_fixed_size_binary(dtype):
        return rng.randbytes(dtype.byte_width)
    if pa.types.is_decimal(dtype):
        return Decimal(rng.randint(-(10**20), 10**20)).scaleb(-dtype.scale)
    if pa.types.is_date64(dtype):
        return rng.randint(-10_000, 30_000) * DAY_MS
    if pa.types.is_temporal(dtype):
        return rng.randint(0, 86_399)
    text = rng.choice(["", "a", "Zürich", "x" * rng.randint(0, 40)])
    is_text = any(
        check(dtype)
        for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )
    return text if is_text else text.encode()


def stored_type(dtype: pa.DataType) -> pa.DataType:
    """The type as which Lance gives a column back."""
    if dtype in STORED_AS:
        return STORED_AS[dtype]
    if pa.types.is_struct(dtype):
        return pa.struct([f.with_type(stored_type(f.type)) for f in dtype])
    if pa.types.is_map(dtype):
        return pa.map_(dtype.key_type, stored_type(dtype.item_type))
    if pa.types.is_fixed_size_list(dtype):
        return dtype
    if pa.types.is_list(dtype):
        return pa.list_(dtype.value_field.with_type(stored_type(dtype.value_type)))
    if pa.types.is_large_list(dtype):
        return pa.large_list(dtype.value_field.with_type(stored_type(dtype.value_type)))
    return dtype


def random_table(seed: int, version: str) -> tuple[pa.Table, pa.Table]:
    """Up to 7 columns of up to 300 rows, and the same as Lance gives it back."""
    rng = random.Random(f"{seed}/{version}")
    rows = rng.choice([1, 2, 17, 64, 300])
    source, stored = {}, {}
    for column in range(rng.randint(1, 7)):
        dtype = random_type(rng, version)
        nulls = rng.choice([0.0, 0.1, 0.6, 1.0])
        values = [random_value(rng, dtype, version, nulls) for _ in range(rows)]
        source[f"c{column}"] = build(values, dtype)
        stored[f"c{column}"] = build(values, stored_type(dtype))
    return pa.table(source), pa.table(stored)


def sliced(table: pa.Table, seed: int) -> pa.Table:
    """The same rows in unequal chunks with offsets: arrays of streams seldom begin at 0."""
    rng = random.Random(seed)
    cuts = sorted({0, table.num_rows, *(rng.randint(0, table.num_rows) for _ in range(3))})
    parts = [table.slice(a, b - a) for a, b in pairwise(cuts)]
    return pa.concat_tables(parts)
