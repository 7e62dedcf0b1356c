//! A task: one self-contained piece of a job that any machine can execute without asking anyone.

use std::sync::Arc;

use arrow_array::{
    Array, BinaryArray, RecordBatch, StringArray, UInt32Array, UInt64Array, cast::AsArray,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::codec::Descriptor;
use crate::dataset::Pin;
use crate::error::{Error, ErrorCode, Result};
use crate::operations::Work;

/// One piece of a job. Its size depends on the piece, never on the dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Derived from the job and the piece: planning again gives the same id.
    #[schemars(with = "String")]
    pub id: Uuid,
    #[schemars(with = "String")]
    pub job_id: Uuid,
    /// Where the dataset is: an absolute path or a URI.
    pub uri: String,
    /// The pinned version; 0 where the job creates the dataset.
    pub read_version: u64,
    /// When that version was made, in nanoseconds since the epoch.
    pub read_timestamp: u64,
    /// Tasks of a stage may run at the same time; a stage begins when the one before has its results.
    pub stage: u32,
    /// The place among the stage's tasks.
    pub index: u32,
    /// Rows the task reads, 0 where unknown beforehand.
    pub estimated_rows: u64,
    /// Bytes the task reads, 0 where unknown beforehand.
    pub estimated_bytes: u64,
    /// The operation's own part.
    pub work: Work,
}

impl Descriptor for Task {
    const KIND: &'static str = "task";

    fn validate(&self) -> Result<()> {
        crate::dataset::refuse_secrets(&self.uri)
    }
}

impl Task {
    /// The operation's name.
    pub fn operation(&self) -> &'static str {
        self.work.name()
    }

    pub(crate) fn pin(&self) -> Pin {
        Pin { version: self.read_version, timestamp: self.read_timestamp }
    }

    /// The schema of a table of tasks; `payload` is the binary descriptor.
    pub fn table_schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("task_id", DataType::Utf8, false),
            Field::new("job_id", DataType::Utf8, false),
            Field::new("operation", DataType::Utf8, false),
            Field::new("stage", DataType::UInt32, false),
            Field::new("index", DataType::UInt32, false),
            Field::new("estimated_rows", DataType::UInt64, false),
            Field::new("estimated_bytes", DataType::UInt64, false),
            Field::new("payload", DataType::Binary, false),
        ]))
    }

    pub fn to_table(tasks: &[Task]) -> Result<RecordBatch> {
        let payloads = tasks.iter().map(Task::to_bytes).collect::<Result<Vec<_>>>()?;
        let text =
            |f: fn(&Task) -> String| Arc::new(StringArray::from_iter_values(tasks.iter().map(f)));
        let u64s =
            |f: fn(&Task) -> u64| Arc::new(UInt64Array::from_iter_values(tasks.iter().map(f)));
        let u32s =
            |f: fn(&Task) -> u32| Arc::new(UInt32Array::from_iter_values(tasks.iter().map(f)));
        Ok(RecordBatch::try_new(
            Self::table_schema(),
            vec![
                text(|t| t.id.to_string()),
                text(|t| t.job_id.to_string()),
                text(|t| t.operation().to_owned()),
                u32s(|t| t.stage),
                u32s(|t| t.index),
                u64s(|t| t.estimated_rows),
                u64s(|t| t.estimated_bytes),
                Arc::new(BinaryArray::from_iter_values(payloads)),
            ],
        )?)
    }

    /// The tasks of a table; only its `payload` column is read.
    pub fn from_table(batch: &RecordBatch) -> Result<Vec<Task>> {
        let payload = batch.column_by_name("payload").ok_or_else(|| {
            Error::new(
                ErrorCode::Decode,
                "a table of tasks has a column \"payload\", this one does not",
            )
        })?;
        // Any engine may have carried the table: it may come back as another kind of binary.
        let payload = arrow_cast::cast(payload, &DataType::LargeBinary)?;
        let payload = payload.as_binary::<i64>();
        (0..payload.len())
            .map(|row| {
                if payload.is_null(row) {
                    return Err(Error::new(
                        ErrorCode::Decode,
                        format!("tasks: row {row} has no payload"),
                    ));
                }
                Task::decode(payload.value(row)).map_err(|e| e.context(format!("tasks: row {row}")))
            })
            .collect()
    }
}
