# SPDX-License-Identifier: Apache-2.0
"""Specs: what is wanted of a dataset, as dataclasses named after the operations.

An option that is None takes the library's default, which `prepare` resolves. Storage options never
stand in a spec; they go into the calls.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from datetime import timedelta
from typing import Any, ClassVar

from ._encode import Part, ipc_schema, keys_of, plain, range_of, tensor

Path = str | os.PathLike[str]


class _Spec(Part):
    operation: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain values, as the library and the command line take it."""
        return {"operation": self.operation, **super().to_dict()}

    def to_json(self) -> str:
        """The spec as JSON text."""
        return json.dumps(self.to_dict(), indent=2)


@dataclass(frozen=True)
class Source(Part):
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
class AutoCleanup(Part):
    """Clean versions older than `older_than_seconds` up, after every `interval`-th commit."""

    interval: int
    older_than_seconds: int


@dataclass(frozen=True)
class Base(Part):
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
class BlobColumn(Part):
    """A column to be stored as blobs.

    Attributes:
        name: the column, or its path within structs (``"docs.image"``); a list stands for what is
            in it.
        inline_size_threshold: payloads of more bytes lie outside of the data file; default 64 KiB.
        dedicated_size_threshold: payloads of more bytes have a file of their own; default 4 MiB.
        pack_file_size_threshold: bytes at which a pack file is rolled; default 1 GiB.
        ref_id: the column of integers that has the rows' ref_ids; default: the child ``ref_id`` of
            the column itself, where it has one.
    """

    name: str
    _: KW_ONLY
    inline_size_threshold: int | None = None
    dedicated_size_threshold: int | None = None
    pack_file_size_threshold: int | None = None
    ref_id: str | None = None


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
        initial_bases: further storage locations to register; for create.
        target_bases: write data files to these bases in turn, by name or path.
        target_all_bases: write data files to every base in turn; true includes the dataset's own
            storage.
        blob_columns: columns of bytes to store as blobs (``lance.blob.v2``), beside those that
            carry the extension or are blobs of the dataset already; needs storage version 2.2, the
            default then.
        dedup: which rows share one stored payload: ``"ref_id"`` (default), those that carry the
            same positive ref_id; ``"content"``, also those with the same bytes, of at least 1,024.
        dedup_scope: ``"file"`` (default), within a data file; ``"dataset"``, across fragments and
            writes by managed blobs, which only clients can read that know of them. For create and
            overwrite; an append does as the dataset does.
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
    blob_columns: Sequence[str | BlobColumn | Mapping[str, Any]] | None = None
    dedup: str | None = None
    dedup_scope: str | None = None
    external_blob_mode: str | None = None
    allow_external_blob_outside_bases: bool | None = None
    blob_pack_file_size_threshold: int | None = None
    discard_concurrent: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain values, as the library and the command line take it."""
        spec = super().to_dict()
        if isinstance(self.sources, (str, os.PathLike, Part)):
            spec["sources"] = [spec["sources"]]
        if self.schema is not None:
            spec["schema"] = base64.b64encode(ipc_schema(self.schema)).decode()
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
                spec[name] = tensor(name, value)
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
class Cleanup(_Spec):
    """Remove old versions and the files that only they need, and what uncommitted work left behind.

    Files that a kept version refers to are never removed. The newest version, tagged versions, and
    those that branches still need are always kept. A cleanup makes no version: the outcome has the
    `version` that it was prepared on, and its `metrics` count what was removed, or with `dry_run`
    what would be: ``versions``, ``files`` and ``bytes``; of each kind (``data``, ``blob_sidecar``,
    ``managed_blob``, ``deletion``, ``index``, ``transaction``, ``manifest``, ``temporary``)
    ``data_files``, ``data_bytes`` and so on; ``uncommitted_files`` and ``uncommitted_bytes`` of
    those that belong to no version; ``dry_run``.

    The first task is a survey, which removes nothing; the second one removes. A survey's report,
    files by name, is the payload of its result::

        job = lt.prepare(lt.Cleanup("trips.lance", older_than=timedelta(days=7), dry_run=True))
        (survey,) = lt.plan(job)
        for file in lt.execute(survey).payload["files"]:
            print(file["path"], file["kind"], file["size"], file["unverified"])

    In other bases only what removed versions refer to is removed, with the blobs beside it, and
    nothing where the dataset shares its bases with one that it was cloned from (the payload's
    ``skipped_bases`` says so). What aborted or killed jobs left there is removed by their `abort`.

    Attributes:
        uri: the dataset.
        older_than: remove versions older than this at prepare: a timedelta, seconds, or text such
            as ``"7d"`` or ``"12h"``; default two weeks, unless `retain_versions` or `versions` is
            given.
        retain_versions: keep the last so many versions, counted at prepare; at least 1.
        versions: remove none but these versions.
        delete_unverified: remove files that belong to no version whatever their age: only where
            nothing else writes to the dataset, as files of work that is under way are among them.
            Default false: those that are seven days old.
        error_if_tagged_old_versions: fail where a version that would else be removed is tagged;
            default true; false keeps it and removes the others.
        clean_referenced_branches: clean the branches that stand on versions to be removed as well,
            as each branch's own configuration says; default false.
        delete_rate_limit: requests to delete per second at most; default: no limit.
        delete_concurrency: requests to delete at a time, of those that Lance makes; default: by the
            store.
        dry_run: list what would be removed, and remove nothing; default false.
        max_candidate_files: files that a report names at most, its counts are of all (then
            ``files_truncated`` is true); default 1,000.
    """

    operation: ClassVar[str] = "cleanup"

    uri: Path
    _: KW_ONLY
    older_than: timedelta | float | str | None = None
    retain_versions: int | None = None
    versions: Sequence[int] | None = None
    delete_unverified: bool | None = None
    error_if_tagged_old_versions: bool | None = None
    clean_referenced_branches: bool | None = None
    delete_rate_limit: int | None = None
    delete_concurrency: int | None = None
    dry_run: bool | None = None
    max_candidate_files: int | None = None


@dataclass(frozen=True)
class AddBases(_Spec):
    """Register further storage locations with a dataset that is there.

    Writes may then put data files there (`Write.target_bases`), and external blobs may lie there.
    A base that the dataset has already, with the same id, name and path, is left as it is; where
    there is no other, no version is made.

    Attributes:
        uri: the dataset.
        bases: the locations, at least one; ids, names and paths are unique among the dataset's, and
            Lance takes no more than one base without a name.
        transaction_properties: stored with the transaction.
    """

    operation: ClassVar[str] = "add_bases"

    uri: Path
    bases: Base | Sequence[Base | Mapping[str, Any]]
    _: KW_ONLY
    transaction_properties: Mapping[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain values, as the library and the command line take it."""
        spec = super().to_dict()
        if isinstance(self.bases, Base):
            spec["bases"] = [spec["bases"]]
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
                spec[name] = keys_of(name, keys)
        if self.ranges is not None:
            spec["ranges"] = [range_of(i, part) for i, part in enumerate(self.ranges)]
        return spec


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
        return {str(key): plain(value) for key, value in spec.items()}
    raise TypeError(
        "spec: expected Write, Compact, CreateIndex, OptimizeIndex, TakeBlobs, Cleanup, AddBases, "
        f"a mapping or JSON, got {type(spec).__name__}"
    )
