# SPDX-License-Identifier: Apache-2.0
"""What tests of a blob's later life share: the files that versions need, and rows as pylance and
the library read them."""

import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from blob_cases import (
    KIND,
    KINDS,
    Payload,
    blobs_of,
    holds_blob,
    leaves,
    payload,
    put,
    same,
    sidecar,
)
from support import files

import lance_tasks as lt

# So that small payloads are of every kind.
SMALL = {"inline_size_threshold": 100, "dedicated_size_threshold": 2000}
SIZES = {"inline": 90, "packed": 700, "dedicated": 3000}


# Files


def fields_of(field: Any) -> Iterator[int]:
    yield field.id()
    for child in field.children():
        yield from fields_of(child)


def needed(
    dataset: lance.LanceDataset, sizes: dict[tuple[int, str], int] | None = None
) -> set[tuple[int, str]]:
    """The data files and payloads that a version needs, by base (0: the dataset's own storage) and
    path; a column's payloads lie beside that of a fragment's data files which has the column. Into
    `sizes` go the payload files' ends, as referenced."""
    bases = dataset.base_paths()
    ids = {field.name(): set(fields_of(field)) for field in dataset.lance_schema.fields()}
    columns = [field.name for field in dataset.schema if holds_blob(field.type)]
    found: set[tuple[int, str]] = set()
    for fragment in dataset.get_fragments():
        places = {}
        for file in fragment.data_files():
            base = file.base_id or 0
            flat = base and not bases[base].is_dataset_root
            path = file.path if flat else f"data/{file.path}"
            found.add((base, path))
            for column in columns:
                if ids[column] & set(file.fields):
                    places[column] = (base, path)
        rows = dataset.scanner(
            columns=columns, fragments=[fragment], with_row_id=True, include_deleted_rows=True
        ).to_table()
        for column in columns:
            for blob in leaves(rows[column].to_pylist()):
                if blob["kind"] in (KIND["packed"], KIND["dedicated"]):
                    base, path = places[column]
                    at = (base, sidecar(path, blob["blob_id"]))
                elif blob["kind"] == KIND["managed"]:
                    at = (places[column][0], blob["blob_uri"])
                else:
                    continue
                found.add(at)
                if sizes is not None:
                    sizes[at] = max(sizes.get(at, 0), blob["position"] + blob["size"])
    return found


def exact(
    uri: str,
    bases: Mapping[int, Path] | None = None,
    options: dict[str, str] | None = None,
    there: dict[str, int] | None = None,
) -> None:
    """The data files and payloads that are there are those that some version needs, and no other;
    each payload file ends where the last payload in it does.

    Args:
        bases: folders of registered bases that hold nothing but the dataset's files.
        there: every file below the root, where it is no local folder.
    """
    wanted: set[tuple[int, str]] = set()
    sizes: dict[tuple[int, str], int] = {}
    for version in lance.dataset(uri, storage_options=options).versions():
        number = version["version"]
        wanted |= needed(lance.dataset(uri, version=number, storage_options=options), sizes)
    everything = files(uri) if there is None else there
    known = {"data", "_blobs", "_versions", "_transactions", "_deletions", "_indices"}
    assert {path.split("/")[0] for path in everything} <= known
    found = {(0, p): s for p, s in everything.items() if p.split("/")[0] in ("data", "_blobs")}
    for number, folder in (bases or {}).items():
        found |= {(number, path): size for path, size in files(folder).items()}
    assert found.keys() == wanted, {
        "unreferenced": sorted(found.keys() - wanted),
        "missing": sorted(wanted - found.keys()),
    }
    assert {at: found[at] for at in sizes} == sizes


def payload_files(uri: str) -> dict[str, int]:
    return {path: size for path, size in files(uri).items() if path.endswith(".blob")}


# Rows


def taken(
    uri: str,
    dataset: lance.LanceDataset,
    column: str = "blob",
    options: dict[str, str] | None = None,
) -> list[Payload]:
    """All payloads as the library takes them, in the order of the rows; its three ways agree."""
    rows = dataset.to_table(columns=[], with_row_id=True, with_row_address=True)
    keys = {
        "indices": list(range(rows.num_rows)),
        "row_ids": rows["_rowid"],
        "addresses": rows["_rowaddr"],
    }
    found: dict[str, list[Payload]] = {}
    for by, of_rows in keys.items():
        spec = lt.TakeBlobs(uri, column=column, version=dataset.version, **{by: of_rows})
        found[by] = pa.table(lt.read(spec, storage_options=options))[column].to_pylist()
    same(found["row_ids"], found["indices"])
    same(found["addresses"], found["indices"])
    return found["indices"]


def check_rows(
    uri: str,
    expected: Mapping[int, Payload],
    column: str = "blob",
    options: dict[str, str] | None = None,
    version: int | None = None,
    handles: bool = True,
) -> lance.LanceDataset:
    """The dataset has these payloads by id, in any order of rows, between the columns of
    `blob_cases.table`; pylance's ways to read them and ours agree.

    Args:
        handles: also by pylance's handles, a request each and one at a time.
    """
    dataset = lance.dataset(uri, version=version, storage_options=options)
    others = dataset.to_table(columns=["id", "tail"])
    ids = others["id"].to_pylist()
    assert sorted(ids) == sorted(expected)
    assert others["tail"].to_pylist() == [f"tail-{i}" for i in ids]
    wanted = [expected[i] for i in ids]
    if handles:
        same(blobs_of(dataset, column), wanted)
    else:
        read = dataset.read_blobs(column, indices=list(range(len(ids))), preserve_order=True)
        same([data for _, data in read], wanted)
    same(taken(uri, dataset, column, options), wanted)
    dataset.validate()
    return dataset


def small(n: int, kind: str, folder: Path) -> tuple[lt.Blob | None, Payload]:
    """The n-th row of a kind, by the thresholds of `SMALL`."""
    if kind in SIZES:
        data = random.Random(n).randbytes(SIZES[kind] + n % 10)
        return lt.Blob(data), data
    if kind == "external_range":
        data = payload(20_000, "parts")
        at, size = 50 * n + 7, 300 + n
        uri = Path(put(folder, "parts", data)).as_uri()
        return lt.Blob(uri=uri, position=at, size=size), data[at : at + size]
    (made,) = [k for k in KINDS if k.name == kind]
    return made.make(folder, n)


def all_kinds(folder: Path, numbers: Iterable[int]) -> tuple[list[lt.Blob | None], list[Payload]]:
    """Rows of every kind in turn."""
    made = [small(n, KINDS[n % len(KINDS)].name, folder) for n in numbers]
    return [value for value, _ in made], [data for _, data in made]
