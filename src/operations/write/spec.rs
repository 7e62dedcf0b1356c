//! What a user says of a write.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use crate::blob::{Dedup, Scope};

/// Write rows as new fragments. Without `sources` the job is open: the caller names a partition per
/// task and hands its rows to `execute` as an Arrow stream.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WriteSpec {
    /// The dataset: a path or an object-store URI.
    pub uri: String,
    /// `create` (default; the dataset must not exist), `append` or `overwrite` (it must).
    pub mode: Mode,
    /// Files, globs, folders or datasets, read in this order; a plain string stands for `{"uri": ..}`.
    #[serde(deserialize_with = "sources")]
    #[schemars(with = "Option<Vec<SourceOrUri>>")]
    pub sources: Option<Vec<SourceSpec>>,
    /// An open job's partitions, in the order of their rows. `commit` wants each of them.
    pub partitions: Option<Vec<String>>,
    /// How many partitions an open job has, where their names are not known beforehand.
    pub num_partitions: Option<u64>,
    /// The dataset's schema for `create` and `overwrite`, as Arrow IPC schema bytes in base64; default:
    /// the input's. Rows are aligned to it.
    pub schema: Option<crate::codec::Blob>,
    /// Rows a data file holds at most. Default 1,048,576.
    pub max_rows_per_file: Option<u64>,
    /// Bytes a data file holds at most. Default 90 GiB.
    pub max_bytes_per_file: Option<u64>,
    /// Rows per group; matters for the legacy storage version only. Default 1,024.
    pub max_rows_per_group: Option<u64>,
    /// Rows a planned task writes at most; default `max_rows_per_file`. Tasks are cut at multiples of
    /// `max_rows_per_file`, so that fragments come out full.
    pub max_rows_per_task: Option<u64>,
    /// Lance's file version, for example `"2.1"`, `"stable"`. Default: the dataset's, for a new one
    /// Lance's stable version.
    pub data_storage_version: Option<String>,
    /// Row ids that survive compaction. For `create`; default false.
    pub enable_stable_row_ids: Option<bool>,
    /// Manifest names that list newest first. For `create`; default true.
    pub enable_v2_manifest_paths: Option<bool>,
    /// For `create`: clean old versions up after every n-th commit. Default: never.
    pub auto_cleanup: Option<AutoCleanup>,
    /// Do not run the dataset's auto-cleanup within this commit. Default false.
    pub skip_auto_cleanup: Option<bool>,
    /// Stored with the transaction.
    pub transaction_properties: Option<BTreeMap<String, String>>,
    /// Further storage locations to register. For `create`; `add_bases` adds them to a dataset.
    pub initial_bases: Option<Vec<Base>>,
    /// Write data files to these bases in turn, by name or path.
    pub target_bases: Option<Vec<String>>,
    /// Write data files to every base in turn; `true` includes the dataset's own storage.
    pub target_all_bases: Option<bool>,
    /// Columns of bytes (binary, large binary, binary view) to store as blobs (`lance.blob.v2`), beside
    /// those that carry the extension or are blobs of the dataset already; a plain string stands for
    /// `{"name": ..}`. Needs storage version 2.2, the default then.
    #[serde(deserialize_with = "blob_columns")]
    #[schemars(with = "Option<Vec<BlobColumnOrName>>")]
    pub blob_columns: Option<Vec<BlobColumn>>,
    /// Which rows share one stored payload: `ref_id` (default), those that carry the same positive
    /// `ref_id`; or `content`, also those with the same bytes, of at least 1,024.
    pub dedup: Option<Dedup>,
    /// How far payloads are shared: `file` (default), within a data file; or `dataset`, across fragments
    /// and writes, by managed blobs, which only clients can read that know of them. For `create` and
    /// `overwrite`; an append does as the dataset does.
    pub dedup_scope: Option<Scope>,
    /// `reference` (default) or `ingest`: what to do with external blob URIs.
    pub external_blob_mode: Option<String>,
    /// Allow external blob URIs outside of the registered bases. Default false.
    pub allow_external_blob_outside_bases: Option<bool>,
    /// Bytes at which a blob pack file is rolled. Default 1 GiB.
    pub blob_pack_file_size_threshold: Option<u64>,
    /// For `overwrite`: replace the dataset even where other commits came in between (Lance's own
    /// behaviour). Default false: such a commit is refused as a conflict.
    pub discard_concurrent: Option<bool>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The dataset must not exist.
    #[default]
    Create,
    /// Add rows to the dataset.
    Append,
    /// Replace the dataset's rows and schema by a new version.
    Overwrite,
}

/// Clean versions older than `older_than_seconds` up, after every `interval`-th commit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AutoCleanup {
    pub interval: u64,
    pub older_than_seconds: u64,
}

/// A column of blobs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BlobColumn {
    /// The column, or its path within structs: `docs.image`. A list stands for its items.
    pub name: String,
    /// Payloads of more bytes lie outside of the data file. Default 64 KiB.
    pub inline_size_threshold: Option<u64>,
    /// Payloads of more bytes have a file of their own. Default 4 MiB.
    pub dedicated_size_threshold: Option<u64>,
    /// Bytes at which a pack file is rolled. Default 1 GiB.
    pub pack_file_size_threshold: Option<u64>,
    /// The column of integers that has the rows' `ref_id`s: rows of one positive number share their
    /// payload. Default: the child `ref_id` of the column itself, where it has one.
    pub ref_id: Option<String>,
}

/// A storage location beside the dataset's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Unique, not 0.
    pub id: u32,
    #[serde(default)]
    pub name: Option<String>,
    pub path: String,
    /// Whether `path` is the root of a dataset (files in `data/`), or holds the files themselves.
    #[serde(default)]
    pub is_dataset_root: bool,
}

/// Where rows come from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SourceSpec {
    /// A file, a glob (`*`, `?`, `[..]`, `**`), a folder of files, or a Lance dataset.
    pub uri: String,
    /// Default: by the name's ending (`.parquet`, `.arrow` `.ipc` `.feather` `.arrows`, `.csv` `.tsv`,
    /// `.ndjson` `.jsonl`, `.lance`).
    pub format: Option<Format>,
    /// Columns to read; default all.
    pub columns: Option<Vec<String>>,
    /// Lance only: the version to read; default the latest at prepare.
    pub version: Option<u64>,
    /// Lance only: an SQL filter.
    pub filter: Option<String>,
    /// CSV only: the delimiter, one byte; default `,` (for `.tsv` a tab).
    pub delimiter: Option<String>,
    /// CSV only: whether the first line names the columns; default true.
    pub has_header: Option<bool>,
    /// CSV only: values that stand for null, beside the empty one.
    pub null_value: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Parquet,
    /// Arrow IPC, file or stream: told apart by the first bytes.
    Arrow,
    Csv,
    /// Newline-delimited JSON.
    Json,
    Lance,
}

/// For the JSON Schema: a source or its bare URI.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code)]
enum SourceOrUri {
    Uri(String),
    Source(SourceSpec),
}

/// For the JSON Schema: a blob column or its bare name.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code)]
enum BlobColumnOrName {
    Name(String),
    Column(BlobColumn),
}

fn sources<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<SourceSpec>>, D::Error> {
    named("sources", deserializer, |uri| SourceSpec { uri, ..Default::default() })
}

fn blob_columns<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<BlobColumn>>, D::Error> {
    named("blob_columns", deserializer, |name| BlobColumn { name, ..Default::default() })
}

/// JSON may say one as a string; the binary form is always whole.
fn named<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    what: &str,
    deserializer: D,
    of: impl Fn(String) -> T,
) -> Result<Option<Vec<T>>, D::Error> {
    use serde::de::Error;
    if !deserializer.is_human_readable() {
        return Option::deserialize(deserializer);
    }
    let values: Option<Vec<serde_json::Value>> = Option::deserialize(deserializer)?;
    let one = |value| match value {
        serde_json::Value::String(name) => Ok(of(name)),
        other => {
            serde_json::from_value(other).map_err(|e| D::Error::custom(format!("{what}: {e}")))
        }
    };
    values.map(|values| values.into_iter().map(one).collect()).transpose()
}
