//! Take blobs: the bytes of a blob column for rows that the caller names, in the caller's order.

mod descriptors;
mod keys;
mod payloads;

use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use futures::StreamExt;
use lance::Dataset;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{NewWork, Operation, Prepared, Preparing, Reading};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use crate::job::Job;
use crate::result::TaskResult;
use crate::task::Task;

use keys::Keys;
use payloads::Payloads;

pub(crate) struct TakeBlobs;

/// Keys travel in their task, which stays small.
const ROWS_PER_TASK: u64 = 8192;

/// Take the bytes of a blob column's rows, whole or in part. The data has two columns: the key that
/// the row was asked for by (`_rowid`, `_rowaddr` or `_index`), and the blob's bytes. One row per key,
/// in the order of the keys; a key may be there more than once.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TakeBlobsSpec {
    /// The dataset: a path or an object-store URI.
    pub uri: String,
    /// The blob column, a nested one by its path (`a.b`).
    pub column: String,
    /// The dataset's version; default the newest at prepare.
    pub version: Option<u64>,
    /// The rows by their ids (`_rowid`).
    pub row_ids: Option<Vec<u64>>,
    /// The rows by their addresses (`_rowaddr`).
    pub addresses: Option<Vec<u64>>,
    /// The rows by their places in the dataset, from 0; deleted rows do not count.
    pub indices: Option<Vec<u64>>,
    /// For each key the part of its blob to take; null = all of it. Default all of every blob.
    pub ranges: Option<Vec<Option<ByteRange>>>,
    /// Keys of a task at most. Default 8,192.
    pub max_rows_per_task: Option<u64>,
    /// Bytes of a batch at most, where a single blob does not have more. Default 16 MiB, or what the
    /// executor's memory budget allows.
    pub max_bytes_per_batch: Option<u64>,
}

/// Bytes of one blob, counted from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ByteRange {
    pub offset: u64,
    pub size: u64,
}

impl ByteRange {
    fn end(self) -> Option<u64> {
        self.offset.checked_add(self.size)
    }
}

/// What to take, resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TakeBlobsState {
    pub column: String,
    pub keys: Keys,
    /// As many as keys.
    pub ranges: Option<Vec<Option<ByteRange>>>,
    pub max_rows_per_task: u64,
    pub max_bytes_per_batch: Option<u64>,
}

/// One task: a run of the keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TakeBlobsWork {
    pub column: String,
    pub keys: Keys,
    /// As many as keys.
    pub ranges: Option<Vec<Option<ByteRange>>>,
    pub max_bytes_per_batch: Option<u64>,
}

impl Operation for TakeBlobs {
    const READS: bool = true;

    type Spec = TakeBlobsSpec;
    type State = TakeBlobsState;
    type Work = TakeBlobsWork;

    async fn prepare(
        cx: &Preparing<'_>,
        spec: TakeBlobsSpec,
        input: Option<SchemaRef>,
    ) -> Result<Prepared<TakeBlobsState>> {
        for (name, value) in [
            ("max_rows_per_task", spec.max_rows_per_task),
            ("max_bytes_per_batch", spec.max_bytes_per_batch),
        ] {
            if value == Some(0) {
                return Err(Error::invalid(format!("option {name:?} is 0, it must be at least 1")));
            }
        }
        if spec.column.is_empty() {
            return Err(Error::invalid("option \"column\" is missing: the blob column to take"));
        }
        let keys = Keys::one_of([
            ("row_ids", spec.row_ids.map(Keys::RowIds)),
            ("addresses", spec.addresses.map(Keys::Addresses)),
            ("indices", spec.indices.map(Keys::Indices)),
        ])?;
        if let Some(ranges) = &spec.ranges {
            check_ranges(ranges, &keys)?;
        }
        let (uri, dataset) =
            cx.at_version(&spec.uri, spec.version, input.as_ref(), "take_blobs").await?;
        blob_field(&dataset, &spec.column)?;
        keys.check_bounds(&dataset).await?;
        let state = TakeBlobsState {
            column: spec.column,
            keys,
            ranges: spec.ranges,
            max_rows_per_task: spec.max_rows_per_task.unwrap_or(ROWS_PER_TASK),
            max_bytes_per_batch: spec.max_bytes_per_batch,
        };
        Ok(cx.prepared(uri, &dataset, state))
    }

    async fn stage(
        _cx: &Running,
        _job: &Job,
        state: &TakeBlobsState,
        stage: u32,
        _earlier: &[TaskResult],
    ) -> Result<Option<Vec<NewWork<TakeBlobsWork>>>> {
        if stage > 0 {
            return Ok(None);
        }
        let all = state.keys.values().len();
        let size = usize::try_from(state.max_rows_per_task).unwrap_or(usize::MAX).max(1);
        // No keys are one task too: it has the schema.
        let tasks = (0..all.div_ceil(size).max(1)).map(|i| {
            let run = i * size..all.min(i.saturating_add(1).saturating_mul(size));
            NewWork {
                key: None,
                rows: run.len() as u64,
                bytes: 0,
                work: TakeBlobsWork {
                    column: state.column.clone(),
                    keys: state.keys.slice(run.clone()),
                    ranges: state.ranges.as_ref().map(|ranges| {
                        ranges.get(run).map(<[Option<ByteRange>]>::to_vec).unwrap_or_default()
                    }),
                    max_bytes_per_batch: state.max_bytes_per_batch,
                },
            }
        });
        Ok(Some(tasks.collect()))
    }

    async fn read(cx: &Running, task: &Task, work: &TakeBlobsWork) -> Result<Reading> {
        if let Some(ranges) = &work.ranges {
            check_ranges(ranges, &work.keys)?;
        }
        let dataset = cx.open(&task.uri, task.pin()).await?;
        let field_id = blob_field(&dataset, &work.column)?;
        let schema = Arc::new(Schema::new(vec![
            Field::new(work.keys.column(), DataType::UInt64, false),
            Field::new(&work.column, DataType::LargeBinary, true),
        ]));
        let payloads = Payloads::locate(cx, dataset, field_id, work, schema.clone()).await?;
        Ok(Reading { schema, memory: payloads.memory(), batches: payloads.stream().boxed() })
    }
}

fn check_ranges(ranges: &[Option<ByteRange>], keys: &Keys) -> Result<()> {
    let number = keys.values().len();
    if ranges.len() != number {
        return Err(Error::invalid(format!(
            "option \"ranges\" has {} entries for {number} {}: one for each, null for all of a blob",
            ranges.len(),
            keys.option()
        )));
    }
    for (i, range) in ranges.iter().enumerate() {
        if let Some(range) = range
            && range.end().is_none()
        {
            return Err(Error::invalid(format!(
                "{}: the range of {} bytes from {} on has no end",
                keys.name(i),
                range.size,
                range.offset
            )));
        }
    }
    Ok(())
}

/// The id of a blob column's field.
fn blob_field(dataset: &Dataset, column: &str) -> Result<u32> {
    let schema = dataset.schema();
    let path = schema.resolve(column).unwrap_or_default();
    let [above @ .., field] = path.as_slice() else {
        let blobs: Vec<String> = schema
            .fields_pre_order()
            .filter(|f| f.is_blob())
            .filter_map(|f| schema.field_path(f.id).ok())
            .collect();
        return Err(Error::invalid(format!(
            "there is no column {column:?}; the dataset's blob columns are {blobs:?}"
        )));
    };
    if !field.is_blob() {
        return Err(Error::invalid(format!(
            "column {column:?} is no blob column, its type is {}",
            field.data_type()
        )));
    }
    if above.iter().any(|parent| !matches!(parent.data_type(), DataType::Struct(_))) {
        return Err(Error::new(
            ErrorCode::NotSupported,
            format!("column {column:?} is inside of a list or map; Lance takes no blobs of such"),
        ));
    }
    u32::try_from(field.id).map_err(|_| Error::internal(format!("column {column:?} has no id")))
}
