# SPDX-License-Identifier: Apache-2.0
"""Datasets with blobs, as stock pylance writes them, and what their rows hold."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from lance.blob import BlobDescriptorArrayBuilder
from lance.file import LanceFileSession
from lance.fragment import FragmentMetadata

# Small thresholds, so that small payloads are of every kind.
INLINE, DEDICATED = 64, 1024
KINDS = {"inline": 0, "packed": 1, "dedicated": 2, "external": 3, "managed": 4}


def payload(seed: int, size: int) -> bytes:
    """Bytes that no other seed has."""
    return (f"{seed}:".encode() * (size // 2 + 1))[:size]


def of_every_kind(folder: Path, rows: int, external: bool = True) -> tuple[list, list]:
    """The values of a blob column as pylance takes them, and the bytes that they stand for."""
    values: list[Any] = []
    contents: list[bytes | None] = []
    for row in range(rows):
        match row % 7:
            case 0:
                content = payload(row, 40)
            case 1:
                content = payload(row, 700)
            case 2:
                content = payload(row, 3000)
            case 3:
                content = None
            case 4:
                content = b""
            case 5 | 6 if not external:
                content = payload(row, 100)
            case 5:
                content = payload(row, 500)
                file = folder / f"whole-{row}.bin"
                file.write_bytes(content)
                values.append(lance.Blob.from_uri(file.as_uri()))
                contents.append(content)
                continue
            case _:
                file = folder / f"part-{row}.bin"
                file.write_bytes(payload(row, 900))
                content = payload(row, 900)[100:300]
                values.append(lance.Blob.from_uri(file.as_uri(), position=100, size=200))
                contents.append(content)
                continue
        values.append(content)
        contents.append(content)
    return values, contents


def blob_field(name: str = "film") -> pa.Field:
    return lance.blob_field(name, inline_size_threshold=INLINE, dedicated_size_threshold=DEDICATED)


def write(
    uri: str,
    values: Sequence[Any],
    *,
    fragments: int = 1,
    layout: str = "v2",
    **options: Any,
) -> lance.LanceDataset:
    """A dataset with the columns `id` and `film`; `layout` is v2, managed or legacy."""
    ids = pa.array(range(len(values)), pa.int64())
    if layout == "legacy":
        field = pa.field("film", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
        film = pa.array(values, pa.large_binary())
        version = "2.1"
    else:
        field = blob_field()
        film = lance.blob_array(list(values))
        version = "2.2"
    metadata = {"lance.blob.managed": "true"} if layout == "managed" else None
    schema = pa.schema([pa.field("id", pa.int64()), field], metadata=metadata)
    return lance.write_dataset(
        pa.table([ids, film], schema=schema),
        uri,
        max_rows_per_file=-(-len(values) // fragments),
        data_storage_version=version,
        allow_external_blob_outside_bases=True,
        **options,
    )


def kinds(dataset: lance.LanceDataset, column: str = "film") -> list[int | None]:
    """The kinds that the descriptors name, null for null blobs."""
    scanner = dataset.scanner(columns=[column], blob_handling="blobs_descriptions")
    return [d and d["kind"] for d in scanner.to_table()[column].to_pylist()]


def write_shared(
    uri: str, payloads: Sequence[bytes], rows: int, storage_options: dict[str, str] | None = None
) -> lance.LanceDataset:
    """A dataset whose row i has payload i % n, each of them stored once, in one packed file."""
    schema = pa.schema([pa.field("id", pa.int64()), lance.blob_field("film")])
    options: dict[str, Any] = {"storage_options": storage_options}
    example = pa.table([pa.array([0], pa.int64()), lance.blob_array([b"x"])], schema=schema)
    first = lance.write_dataset(example, uri, data_storage_version="2.2", **options)
    fragment = first.get_fragments()[0].metadata.to_json()
    session = LanceFileSession(f"{uri}/data", storage_options=storage_options)
    packed = session.open_packed_blob_writer("shared.lance", 1)
    for data in payloads:
        packed.write_blob(data)
    descriptors = packed.finish()
    film = BlobDescriptorArrayBuilder("film")
    for row in range(rows):
        film.append(descriptors[row % len(payloads)])
    prepared = pa.schema([schema.field("id"), film.field])
    with session.open_writer("shared.lance", schema=prepared, version="2.2") as writer:
        columns = [pa.array(range(rows), pa.int64()), film.finish()]
        writer.write_batch(pa.table(columns, schema=prepared))
    fragment = fragment if isinstance(fragment, dict) else json.loads(fragment)
    fragment["physical_rows"] = rows
    fragment["files"][0] |= {"path": "shared.lance", "file_size_bytes": None}
    if storage_options is None:
        size = os.path.getsize(f"{uri}/data/shared.lance")
        fragment["files"][0]["file_size_bytes"] = size
    operation = lance.LanceOperation.Overwrite(
        first.lance_schema, [FragmentMetadata.from_json(json.dumps(fragment))]
    )
    return lance.LanceDataset.commit(uri, operation, read_version=first.version, **options)


def keys(dataset: lance.LanceDataset, by: str) -> list[int]:
    """The keys of all rows in order, of the kind that the option `by` takes."""
    if by == "indices":
        return list(range(dataset.count_rows()))
    column = {"row_ids": "_rowid", "addresses": "_rowaddr"}[by]
    table = dataset.to_table(columns=[], with_row_id=True, with_row_address=True)
    return table[column].to_pylist()
