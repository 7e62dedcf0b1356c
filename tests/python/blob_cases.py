# SPDX-License-Identifier: Apache-2.0
"""What the tests of blobs share: payloads of every kind, and what stock pylance sees of them."""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import lance
import pyarrow as pa
from support import files

import lance_tasks as lt

# Lance's default thresholds.
INLINE = 64 << 10
DEDICATED = 4 << 20

KIND = {"inline": 0, "packed": 1, "dedicated": 2, "external": 3, "managed": 4}

Payload = bytes | None


def payload(size: int, seed: object = 0) -> bytes:
    """Bytes that differ by seed and do not compress."""
    return random.Random(f"{size}/{seed}").randbytes(size)


# One row of every kind


@dataclass(frozen=True)
class Kind:
    """How rows of one kind come in, and what becomes of them.

    Attributes:
        stored: the descriptor's kind; None: null.
        make: the input and the bytes of the n-th row.
    """

    name: str
    stored: str | None
    make: Callable[[Path, int], tuple[lt.Blob | None, Payload]]


def _bytes(size: int) -> Callable[[Path, int], tuple[lt.Blob | None, Payload]]:
    def make(folder: Path, n: int) -> tuple[lt.Blob, bytes]:
        data = payload(size + n, n)
        return lt.Blob(data), data

    return make


def put(folder: Path, name: str, data: bytes) -> str:
    """An object outside of the dataset; its path."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(data)
    return str(folder / name)


def _external(folder: Path, n: int) -> tuple[lt.Blob, bytes]:
    data = payload(1000 + n, n)
    return lt.Blob(uri=put(folder, f"object-{n}", data)), data


def _external_range(folder: Path, n: int) -> tuple[lt.Blob, bytes]:
    data = payload(5000, "ranges")
    uri = Path(put(folder, "container", data)).as_uri()
    return lt.Blob(uri=uri, position=100 * n + 7, size=300 + n), data[100 * n + 7 :][: 300 + n]


KINDS = [
    Kind("inline", "inline", _bytes(INLINE - 20)),
    Kind("packed", "packed", _bytes(INLINE + 1)),
    Kind("dedicated", "dedicated", _bytes(DEDICATED + 1)),
    Kind("external", "external", _external),
    Kind("external_range", "external", _external_range),
    Kind("null", None, lambda folder, n: (None, None)),
    Kind("empty", "inline", lambda folder, n: (lt.Blob(b""), b"")),
]


def rows_of(kind: Kind, folder: Path, rows: int, start: int = 0) -> tuple[pa.Table, list[Payload]]:
    """Rows of one kind between an id and a string, and their payloads."""
    made = [kind.make(folder, n) for n in range(start, start + rows)]
    return table([value for value, _ in made], start), [data for _, data in made]


def one_of_each(folder: Path, start: int = 0) -> tuple[pa.Table, list[Payload]]:
    """A row of every kind."""
    made = [kind.make(folder, start + n) for n, kind in enumerate(KINDS)]
    return table([value for value, _ in made], start), [data for _, data in made]


def table(values: Iterable[object], start: int = 0, name: str = "blob") -> pa.Table:
    """Blobs between two other columns, whose field ids move if the blob's are counted wrong."""
    array = lt.blob_array(values)
    ids = range(start, start + len(array))
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            name: array,
            "tail": pa.array([f"tail-{i}" for i in ids], pa.string()),
        }
    )


def stored_as(kind: pa.DataType, values: list[object]) -> pa.Table:
    """Values of any type between the same two columns."""
    ids = pa.array(range(len(values)), pa.int64())
    tails = pa.array([f"tail-{i}" for i in range(len(values))])
    return pa.table({"id": ids, "docs": pa.array(values, kind), "tail": tails})


def binary(values: Iterable[Payload], kind: pa.DataType | None = None, start: int = 0) -> pa.Table:
    """As `table`, of plain bytes."""
    array = pa.array(list(values), kind or pa.large_binary())
    return table([None] * len(array), start).set_column(1, "blob", array)


def write(uri: str, data: pa.Table, **options: object) -> lt.Outcome:
    """A write in one call, with `blob` as the blob column of a dataset that does not exist."""
    call = {name: options.pop(name) for name in ("storage_options",) if name in options}
    if options.get("mode", "create") != "append":
        options.setdefault("blob_columns", ["blob"])
    return lt.run(lt.Write(uri, **options), data=data, **call)


# What pylance sees


def opened(
    uri: str, version: int | None = None, options: dict[str, str] | None = None
) -> lance.LanceDataset:
    return lance.dataset(uri, version=version, storage_options=options)


def descriptors(dataset: lance.LanceDataset, column: str = "blob") -> list[dict | None]:
    """Where each row's payload is, in the order of the rows."""
    return dataset.to_table(columns=[column])[column].to_pylist()


def kinds(dataset: lance.LanceDataset, column: str = "blob") -> list[str | None]:
    names = {number: name for name, number in KIND.items()}
    return [None if d is None else names[d["kind"]] for d in descriptors(dataset, column)]


def scanned(dataset: lance.LanceDataset, column: str = "blob") -> list[Payload]:
    return (
        dataset.scanner(columns=[column], blob_handling="all_binary").to_table()[column].to_pylist()
    )


def blobs_of(dataset: lance.LanceDataset, column: str = "blob") -> list[Payload]:
    """The payloads in the order of the rows; every way in which pylance reads them agrees."""
    found = scanned(dataset, column)
    rows = dataset.to_table(columns=[], with_row_id=True, with_row_address=True)
    indices = list(range(len(found)))
    files = dataset.take_blobs(column, ids=rows["_rowid"].to_pylist())
    assert [None if f is None else f.readall() for f in files] == found, "take_blobs"
    read = dataset.read_blobs(column, addresses=rows["_rowaddr"], preserve_order=True)
    assert [data for _, data in read] == found, "read_blobs by address"
    if indices:
        read = dataset.read_blobs(column, indices=indices, preserve_order=True)
        assert [data for _, data in read] == found, "read_blobs by index"
    return found


def same(found: list[Payload], expected: list[Payload]) -> None:
    """Equal, without megabytes of bytes in the message."""

    def shown(values: list[Payload]) -> list[str]:
        return [
            "null" if v is None else f"{len(v)} bytes {hashlib.sha256(v).hexdigest()[:12]}"
            for v in values
        ]

    assert shown(found) == shown(expected)


def check(
    uri: str, expected: list[Payload], start: int = 0, options: dict[str, str] | None = None
) -> lance.LanceDataset:
    """The dataset has these payloads, between the other columns of `table`."""
    dataset = opened(uri, options=options)
    same(blobs_of(dataset), expected)
    others = dataset.to_table(columns=["id", "tail"])
    ids = list(range(start, start + len(expected)))
    assert others["id"].to_pylist() == ids
    assert others["tail"].to_pylist() == [f"tail-{i}" for i in ids]
    dataset.validate()
    return dataset


# Files


def sidecar(data_file: str, blob_id: int) -> str:
    """The file of a packed or dedicated payload of a data file, beside it."""
    digits = f"{blob_id:032b}"[::-1]
    return f"{data_file.removesuffix('.lance')}/{digits}.blob"


def leaves(value: object) -> Iterator[dict]:
    """The descriptors in a value, which may be a blob, or a struct or list of them."""
    if isinstance(value, dict) and {"kind", "blob_id"} <= value.keys():
        yield value
    elif isinstance(value, Mapping):
        for child in value.values():
            yield from leaves(child)
    elif isinstance(value, list):
        for child in value:
            yield from leaves(child)


def holds_blob(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return kind.extension_name == "lance.blob.v2"
    return any(holds_blob(kind.field(i).type) for i in range(kind.num_fields))


def referenced(
    dataset: lance.LanceDataset, sizes: dict[tuple[int, str], int] | None = None
) -> set[tuple[int, str]]:
    """The files that a version needs, by base (0: the dataset's own storage) and path; deleted rows
    have theirs until they are compacted away. Into `sizes` go the sidecars' ends, as referenced."""
    needed: set[tuple[int, str]] = set()
    bases = dataset.base_paths()
    columns = [field.name for field in dataset.schema if holds_blob(field.type)]
    for fragment in dataset.get_fragments():
        (file,) = fragment.data_files()
        base = file.base_id or 0
        flat = base and not bases[base].is_dataset_root
        path = file.path if flat else f"data/{file.path}"
        needed.add((base, path))
        rows = dataset.scanner(
            columns=columns, fragments=[fragment], with_row_id=True, include_deleted_rows=True
        ).to_table()
        for found in leaves([rows[column].to_pylist() for column in columns]):
            if found["kind"] in (KIND["packed"], KIND["dedicated"]):
                at = (base, sidecar(path, found["blob_id"]))
                end = found["position"] + found["size"]
            elif found["kind"] == KIND["managed"]:
                at, end = (0, found["blob_uri"]), found["position"] + found["size"]
            else:
                continue
            needed.add(at)
            if sizes is not None:
                sizes[at] = max(sizes.get(at, 0), end)
    return needed


def listed(folder: str | Path, below: tuple[str, ...] = ("data", "_blobs")) -> dict[str, int]:
    found = files(folder)
    return {path: size for path, size in found.items() if path.split("/")[0] in below}


def exact_files(
    uri: str,
    bases: Mapping[int, Path] | None = None,
    options: dict[str, str] | None = None,
    there: dict[str, int] | None = None,
) -> None:
    """The data files and payloads on disk are those that some version needs, and no other; each
    payload's file ends where the last one in it does.

    Args:
        bases: folders of registered bases that hold nothing but the dataset's files.
        there: every file below the root, where it is no local folder.
    """
    needed: set[tuple[int, str]] = set()
    sizes: dict[tuple[int, str], int] = {}
    for version in opened(uri, options=options).versions():
        needed |= referenced(opened(uri, version["version"], options), sizes)
    everything = files(uri) if there is None else there
    folders = {path.split("/")[0] for path in everything}
    known = {"data", "_blobs", "_versions", "_transactions", "_deletions", "_indices"}
    assert folders <= known, folders - known
    found = {(0, p): s for p, s in everything.items() if p.split("/")[0] in ("data", "_blobs")}
    for number, folder in (bases or {}).items():
        found |= {(number, path): size for path, size in files(folder).items()}
    assert found.keys() == needed, {
        "unreferenced": sorted(found.keys() - needed),
        "missing": sorted(needed - found.keys()),
    }
    assert {at: found[at] for at in sizes} == sizes


def data_bytes(uri: str) -> int:
    """What the dataset's payloads and data files take."""
    return sum(listed(uri).values())


def listed_by(results: Iterable[lt.Result]) -> dict[str, int]:
    """The files that results name, with their sizes."""
    return {f["path"]: f["size"] for result in results for f in result.to_dict()["files"]}


def spec_json(spec: lt.Write) -> bytes:
    return json.dumps(spec.to_dict()).encode()
