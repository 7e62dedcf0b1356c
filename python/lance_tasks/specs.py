# SPDX-License-Identifier: Apache-2.0
"""Specs: what is wanted of a dataset, as dataclasses named after the operations.

An option that is None takes the library's default, which `prepare` resolves. Storage options never
stand in a spec; they go into the calls.
"""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar

from .errors import InvalidArgumentError

Path = str | os.PathLike[str]


class _Part:
    """What has a JSON form: its fields that are not None."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form as plain values."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))  # type: ignore[arg-type]
        return {name: _plain(value) for name, value in values if value is not None}


class _Spec(_Part):
    operation: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain values, as the library and the command line take it."""
        return {"operation": self.operation, **super().to_dict()}

    def to_json(self) -> str:
        """The spec as JSON text."""
        return json.dumps(self.to_dict(), indent=2)


@dataclass(frozen=True)
class Source(_Part):
    """Where rows come from.

    Attributes:
        uri: a file, a glob (``*``, ``?``, ``[..]``, ``**``), a folder of files, or a Lance dataset.
        format: ``"parquet"``, ``"arrow"``, ``"csv"``, ``"json"`` or ``"lance"``; default: by the
            name's ending.
        columns: columns to read; default all.
        version: Lance only: the version to read; default the latest at prepare.
        filter: Lance only: an SQL filter.
        delimiter: CSV only: one byte; default ``,`` (for ``.tsv`` a tab).
        has_header: CSV only: whether the first line names the columns; default true.
        null_value: CSV only: values that stand for null, beside the empty one.
    """

    uri: Path
    _: KW_ONLY
    format: str | None = None
    columns: Sequence[str] | None = None
    version: int | None = None
    filter: str | None = None
    delimiter: str | None = None
    has_header: bool | None = None
    null_value: str | None = None


@dataclass(frozen=True)
class AutoCleanup(_Part):
    """Clean versions older than `older_than_seconds` up, after every `interval`-th commit."""

    interval: int
    older_than_seconds: int


@dataclass(frozen=True)
class Base(_Part):
    """A storage location beside the dataset's own.

    Attributes:
        id: unique among the dataset's bases, not 0.
        path: the location.
        name: its name, for `Write.target_bases`.
        is_dataset_root: whether `path` is the root of a dataset (files in ``data/``), or holds the
            files themselves.
    """

    id: int
    path: Path
    _: KW_ONLY
    name: str | None = None
    is_dataset_root: bool = False


@dataclass(frozen=True)
class Write(_Spec):
    """Write rows as new fragments.

    Without `sources` the job is open: the caller names a partition per task (`Job.task`) and hands
    its rows to `execute`.

    Attributes:
        uri: the dataset: a path or an object-store URI.
        mode: ``"create"`` (the dataset must not exist), ``"append"`` or ``"overwrite"`` (it must).
        sources: files, globs, folders or datasets, read in this order.
        partitions: an open job's partitions, in the order of their rows; `commit` wants each.
        num_partitions: how many partitions an open job has, where their names are not known.
        schema: the dataset's schema for create and overwrite, to which rows are aligned; anything
            with `__arrow_c_schema__`, or Arrow IPC schema bytes. Default: the input's.
        max_rows_per_file: default 1,048,576.
        max_bytes_per_file: default 90 GiB.
        max_rows_per_group: matters for the legacy storage version only; default 1,024.
        max_rows_per_task: rows a planned task writes at most; default `max_rows_per_file`.
        data_storage_version: Lance's file version, for example ``"2.1"`` or ``"stable"``; default:
            the dataset's, for a new one Lance's stable version.
        enable_stable_row_ids: row ids that survive compaction; for create; default false.
        enable_v2_manifest_paths: manifest names that list newest first; for create; default true.
        auto_cleanup: for create: clean old versions up now and then; default never.
        skip_auto_cleanup: do not run the dataset's auto-cleanup within this commit.
        transaction_properties: stored with the transaction.
        initial_bases: further storage locations to register; for create and overwrite.
        target_bases: write data files to these bases in turn, by name or path.
        target_all_bases: write data files to every base in turn; true includes the dataset's own
            storage.
        external_blob_mode: ``"reference"`` (default) or ``"ingest"`` external blob URIs.
        allow_external_blob_outside_bases: default false.
        blob_pack_file_size_threshold: bytes at which a blob pack file is rolled; default 1 GiB.
        discard_concurrent: for overwrite: replace the dataset even where other commits came in
            between; default false: such a commit is refused as a conflict.
    """

    operation: ClassVar[str] = "write"

    uri: Path
    _: KW_ONLY
    mode: str = "create"
    sources: Path | Source | Sequence[Path | Source | Mapping[str, Any]] | None = None
    partitions: Sequence[str] | None = None
    num_partitions: int | None = None
    schema: Any = None
    max_rows_per_file: int | None = None
    max_bytes_per_file: int | None = None
    max_rows_per_group: int | None = None
    max_rows_per_task: int | None = None
    data_storage_version: str | None = None
    enable_stable_row_ids: bool | None = None
    enable_v2_manifest_paths: bool | None = None
    auto_cleanup: AutoCleanup | Mapping[str, int] | None = None
    skip_auto_cleanup: bool | None = None
    transaction_properties: Mapping[str, str] | None = None
    initial_bases: Sequence[Base | Mapping[str, Any]] | None = None
    target_bases: Sequence[str] | None = None
    target_all_bases: bool | None = None
    external_blob_mode: str | None = None
    allow_external_blob_outside_bases: bool | None = None
    blob_pack_file_size_threshold: int | None = None
    discard_concurrent: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain values, as the library and the command line take it."""
        spec = super().to_dict()
        if isinstance(self.sources, (str, os.PathLike, _Part)):
            spec["sources"] = [spec["sources"]]
        if self.schema is not None:
            spec["schema"] = base64.b64encode(_ipc_schema(self.schema)).decode()
        return spec


@dataclass(frozen=True)
class Compact(_Spec):
    """Merge small fragments and drop deleted rows. Options as Lance's compaction has them.

    Attributes:
        uri: the dataset.
        target_rows_per_fragment: rows that a compacted fragment aims at.
        max_rows_per_group: matters for the legacy storage version only.
        max_bytes_per_file: bytes a new data file holds at most.
        materialize_deletions: rewrite fragments with deleted rows.
        materialize_deletions_threshold: the share of deleted rows above which one is rewritten.
        batch_size: rows read at a time.
        io_buffer_size: bytes read ahead.
        defer_index_remap: leave indices as they are and record how rows moved.
        index_remap_mode: ``"direct"`` or ``"compact"``.
        compaction_mode: ``"reencode"``, ``"try_binary_copy"`` or ``"force_binary_copy"``.
        binary_copy_read_batch_bytes: bytes that a binary copy reads at a time.
        max_source_fragments: fragments a task takes at most.
        max_source_rows: rows a task takes at most.
        max_source_bytes: bytes a task takes at most.
        excluded_fragment_ids: fragments to leave alone.
        max_overlays_per_fragment: overlays above which a fragment is rewritten.
        data_storage_version: Lance's file version for the new files.
        transaction_properties: stored with the transaction.
        micro_commit_batch_size: tasks that each commit takes; default: one commit of all.
    """

    operation: ClassVar[str] = "compact"

    uri: Path
    _: KW_ONLY
    target_rows_per_fragment: int | None = None
    max_rows_per_group: int | None = None
    max_bytes_per_file: int | None = None
    materialize_deletions: bool | None = None
    materialize_deletions_threshold: float | None = None
    batch_size: int | None = None
    io_buffer_size: int | None = None
    defer_index_remap: bool | None = None
    index_remap_mode: str | None = None
    compaction_mode: str | None = None
    binary_copy_read_batch_bytes: int | None = None
    max_source_fragments: int | None = None
    max_source_rows: int | None = None
    max_source_bytes: int | None = None
    excluded_fragment_ids: Sequence[int] | None = None
    max_overlays_per_fragment: int | None = None
    data_storage_version: str | None = None
    transaction_properties: Mapping[str, str] | None = None
    micro_commit_batch_size: int | None = None


@dataclass(frozen=True, init=False)
class CreateIndex(_Spec):
    """Index a column, in segments that are built side by side.

    Attributes:
        uri: the dataset.
        column: the column, a nested one by its path (``"a.b"``).
        index_type: Lance's name in any case: ``BTREE``, ``BITMAP``, ``LABEL_LIST``, ``INVERTED``
            (or ``FTS``), ``NGRAM``, ``ZONEMAP``, ``BLOOMFILTER``, ``RTREE``, ``JSON``, ``FM``,
            ``MINHASHLSH``, ``IVF_FLAT``, ``IVF_PQ``, ``IVF_SQ``, ``IVF_RQ``, ``IVF_HNSW_FLAT``,
            ``IVF_HNSW_PQ`` or ``IVF_HNSW_SQ``.
        name: the index's name; default: the column's path and ``_idx``.
        replace: replace an index of that name; default false.
        num_segments: how many segments to build; default by size.
        max_rows_per_segment: rows a segment covers at most.
        fragment_ids: fragments to cover; default all.
        merge: merge the segments into one by a last task; default false.
        ivf_centroids: of a vector index: partitions x dimension; a NumPy array, a pyarrow
            `FixedSizeListArray`, or nested lists; default: trained by the job's first task.
        pq_codebook: of product quantization: sub-vectors x 2**num_bits x values of each; likewise.
        rabitq_model: of IVF_RQ: Lance's JSON of the rotation (pylance's ``build_rq_model``).
        transaction_properties: stored with the transaction.
        params: Lance's own parameters of the index; the constructor takes them by keyword.
    """

    operation: ClassVar[str] = "create_index"

    uri: Path
    column: str
    index_type: str
    name: str | None
    replace: bool
    num_segments: int | None
    max_rows_per_segment: int | None
    fragment_ids: Sequence[int] | None
    merge: bool | None
    ivf_centroids: Any
    pq_codebook: Any
    rabitq_model: str | None
    transaction_properties: Mapping[str, str] | None
    params: Mapping[str, Any] | None

    def __init__(
        self,
        uri: Path,
        *,
        column: str,
        index_type: str,
        name: str | None = None,
        replace: bool = False,
        num_segments: int | None = None,
        max_rows_per_segment: int | None = None,
        fragment_ids: Sequence[int] | None = None,
        merge: bool | None = None,
        ivf_centroids: Any = None,
        pq_codebook: Any = None,
        rabitq_model: str | None = None,
        transaction_properties: Mapping[str, str] | None = None,
        **params: Any,
    ) -> None:
        given = {**locals(), "params": params or None}
        for field in fields(self):
            object.__setattr__(self, field.name, given[field.name])

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain values, as the library and the command line take it."""
        spec = super().to_dict()
        for name in ("ivf_centroids", "pq_codebook"):
            if (value := getattr(self, name)) is not None:
                spec[name] = _tensor(name, value)
        return spec


@dataclass(frozen=True)
class OptimizeIndex(_Spec):
    """Index what has been added since an index was built, fold small segments, or rebuild.

    All indexes are committed at once. An index that covers every fragment is left as it is.

    Attributes:
        uri: the dataset.
        names: the indexes, one name or several; default all.
        num_indices_to_merge: how many of an index's last segments to fold into one with what is
            new; default 0: what is new becomes segments of its own.
        retrain: build each index anew over all fragments; default false.
        num_segments: how many segments what is new (or all, with `retrain`) becomes; default by
            size.
        max_rows_per_segment: rows of such a segment at most.
        transaction_properties: stored with the transaction.
    """

    operation: ClassVar[str] = "optimize_index"

    uri: Path
    names: str | Sequence[str] | None = None
    _: KW_ONLY
    num_indices_to_merge: int | None = None
    retrain: bool | None = None
    num_segments: int | None = None
    max_rows_per_segment: int | None = None
    transaction_properties: Mapping[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain values, as the library and the command line take it."""
        spec = super().to_dict()
        if isinstance(self.names, str):
            spec["names"] = [self.names]
        return spec


@dataclass(frozen=True)
class TakeBlobs(_Spec):
    """Take the bytes of a blob column's rows, whole or in part; for `read`.

    The data has two columns: the key that the row was asked for by (``_rowid``, ``_rowaddr`` or
    ``_index``), and under the column's name the bytes (large_binary), null where the blob is null.
    It has one row per key, in the order of the keys; a key may be there more than once. A payload
    that several rows share is fetched once.

    Keys are a list, a NumPy array or a pyarrow array; one of the three is given.

    Attributes:
        uri: the dataset.
        column: the blob column, a nested one by its path (``"a.b"``).
        row_ids: the rows by their ids (``_rowid``).
        addresses: the rows by their addresses (``_rowaddr``).
        indices: the rows by their places in the dataset, from 0; deleted rows do not count.
        ranges: for each key the part of its blob: a pair of offset and size, or None for all of it;
            default: all of every blob.
        version: the dataset's version; default: the newest at prepare.
        max_rows_per_task: keys of a task at most; default 8,192.
        max_bytes_per_batch: bytes of a batch at most, where a single blob does not have more;
            default 16 MiB, or what the executor's memory budget allows.
    """

    operation: ClassVar[str] = "take_blobs"

    uri: Path
    _: KW_ONLY
    column: str
    row_ids: Any = None
    addresses: Any = None
    indices: Any = None
    ranges: Sequence[tuple[int, int] | Mapping[str, int] | None] | None = None
    version: int | None = None
    max_rows_per_task: int | None = None
    max_bytes_per_batch: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain values, as the library and the command line take it."""
        spec = super().to_dict()
        for name in ("row_ids", "addresses", "indices"):
            if (keys := getattr(self, name)) is not None:
                spec[name] = _keys(name, keys)
        if self.ranges is not None:
            spec["ranges"] = [_range(i, part) for i, part in enumerate(self.ranges)]
        return spec


def _keys(name: str, keys: Any) -> list[Any]:
    for to_list in ("to_pylist", "tolist"):  # pyarrow, NumPy
        if hasattr(keys, to_list):
            keys = getattr(keys, to_list)()
            break
    if isinstance(keys, (str, bytes)) or not hasattr(keys, "__iter__"):
        raise TypeError(f"{name}: expected several numbers, got {type(keys).__name__}")
    # Numbers of NumPy in a list of Python are numbers too, but not JSON's.
    return [key.item() if hasattr(key, "item") else key for key in keys]


def _range(i: int, part: Any) -> Any:
    if part is None or isinstance(part, Mapping):
        return _plain(part)
    try:
        offset, size = part
    except (TypeError, ValueError):
        raise TypeError(f"ranges: entry {i} is no pair of offset and size, and not None") from None
    return {"offset": int(offset), "size": int(size)}


SpecLike = _Spec | Mapping[str, Any] | str | bytes | bytearray | memoryview


def spec_json(spec: SpecLike) -> bytes:
    """A spec in any of its forms as the library takes it."""
    if isinstance(spec, (bytes, bytearray, memoryview)):
        return bytes(spec)
    if isinstance(spec, str):
        return spec.encode()
    return json.dumps(spec_dict(spec)).encode()


def spec_dict(spec: _Spec | Mapping[str, Any]) -> dict[str, Any]:
    """A spec that is a dataclass or mapping, as plain values."""
    if isinstance(spec, _Spec):
        return spec.to_dict()
    if isinstance(spec, Mapping):
        return {str(key): _plain(value) for key, value in spec.items()}
    raise TypeError(
        "spec: expected Write, Compact, CreateIndex, OptimizeIndex, TakeBlobs, a mapping or JSON, "
        f"got {type(spec).__name__}"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, _Part):
        return value.to_dict()
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, range)):
        return [_plain(item) for item in value]
    return value


def _tensor(name: str, value: Any) -> Any:
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
    shape, numbers = _lists(value.tolist() if hasattr(value, "tolist") else _plain(value))
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


def _ipc_schema(schema: Any) -> bytes:
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
