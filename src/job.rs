//! A job: a prepared spec. Validated, defaults resolved, dataset version pinned, given an id.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::codec::Descriptor;
use crate::dataset::Pin;
use crate::error::Result;
use crate::operations::{JobState, Work};
use crate::task::Task;

/// A prepared spec. Serializable in both encodings; holds no credentials.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Random, given at prepare. Everything exactly-once derives from it.
    #[schemars(with = "String")]
    pub id: Uuid,
    /// Where the dataset is: an absolute path or a URI.
    pub uri: String,
    /// The pinned version; 0 where the job creates the dataset.
    pub read_version: u64,
    /// When that version was made, in nanoseconds since the epoch: tells a dataset made anew at the
    /// same place from the one the job was prepared on.
    pub read_timestamp: u64,
    /// What the operation resolved from its spec.
    pub state: JobState,
}

impl Descriptor for Job {
    const KIND: &'static str = "job";

    fn validate(&self) -> Result<()> {
        crate::dataset::refuse_secrets(&self.uri)
    }
}

impl Job {
    /// The operation's name.
    pub fn operation(&self) -> &'static str {
        self.state.name()
    }

    /// Whether the operation reads: its tasks yield data, and there is nothing to commit.
    pub fn reads(&self) -> bool {
        self.state.reads()
    }

    /// The task of one partition of an open job (a `write` fed by streams).
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` where the job is not open, the name is empty, or partitions were stated and
    /// this is none of them.
    pub fn task(&self, partition: &str) -> Result<Task> {
        let (index, work) = self.state.partition(partition)?;
        Ok(self.new_task(0, index, work))
    }

    pub(crate) fn pin(&self) -> Pin {
        Pin { version: self.read_version, timestamp: self.read_timestamp }
    }

    pub(crate) fn new_task(&self, stage: u32, index: u32, new: NewTask) -> Task {
        Task {
            id: self.task_id(new.key.as_deref(), stage, index),
            job_id: self.id,
            uri: self.uri.clone(),
            read_version: self.read_version,
            read_timestamp: self.read_timestamp,
            stage,
            index,
            estimated_rows: new.estimated_rows,
            estimated_bytes: new.estimated_bytes,
            work: new.work,
        }
    }

    /// Deterministic: planned again anywhere, the same task has the same id.
    pub(crate) fn task_id(&self, key: Option<&str>, stage: u32, index: u32) -> Uuid {
        let name = match key {
            Some(key) => format!("partition/{key}"),
            None => format!("{stage}/{index}"),
        };
        Uuid::new_v5(&self.id, name.as_bytes())
    }
}

/// What an operation's plan says of one task; ids are given by the job.
pub(crate) struct NewTask {
    /// The caller's name of the partition, where tasks are named and not numbered.
    pub key: Option<String>,
    pub work: Work,
    pub estimated_rows: u64,
    pub estimated_bytes: u64,
}
