//! The operations. Each is one room with its prepare, plan, execute and commit; everything else knows
//! only the shape below. A new operation is a module and one line in [`operations!`].

pub mod compact;
pub mod create_index;
pub mod optimize_index;
pub mod take_blobs;
mod upstream;
pub mod write;

use std::collections::BTreeMap;
use std::future::Future;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use futures::stream::BoxStream;
use lance::Dataset;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::codec::Descriptor;
use crate::commit::{Applied, Committing, Concurrency};
use crate::dataset::{Bases, Pin, normalize, not_found};
use crate::error::{Error, Result};
use crate::executor::{Input, Running};
use crate::job::{Job, NewTask};
use crate::result::{TaskResult, WrittenFile};
use crate::task::Task;

/// The shape of an operation. One that changes a dataset has `memory`, `execute`, `adopt`, `verify` and
/// `commit`; one that reads has `read` in their place.
pub(crate) trait Operation {
    /// Whether tasks yield data instead of a result, so that there is nothing to commit.
    const READS: bool = false;

    /// As the user states it. Options that are not given are `None`: defaults are resolved by `prepare`.
    type Spec: Clone + PartialEq + Serialize + DeserializeOwned + JsonSchema + Send + Sync;
    /// What `prepare` resolved: everything that tasks must agree on.
    type State: Clone + PartialEq + Serialize + DeserializeOwned + JsonSchema + Send + Sync;
    /// One task's own part.
    type Work: Clone + PartialEq + Serialize + DeserializeOwned + JsonSchema + Send + Sync;

    /// Validate, pin the version, resolve every default. `input` is the schema of the stream that will
    /// be handed to tasks, for operations that take one.
    fn prepare(
        cx: &Preparing<'_>,
        spec: Self::Spec,
        input: Option<SchemaRef>,
    ) -> impl Future<Output = Result<Prepared<Self::State>>> + Send;

    /// The task of a partition that the caller names: its place among the tasks, and its work.
    fn partition(_state: &Self::State, partition: &str) -> Result<(u32, NewWork<Self::Work>)> {
        Err(Error::invalid(format!(
            "partition {partition:?}: only a write without sources has tasks by partition"
        )))
    }

    /// All tasks of a stage in a fixed order, given the results of the stages before; `None` = there is
    /// no such stage. Pure: the same at every call, in every process.
    fn stage(
        cx: &Running,
        job: &Job,
        state: &Self::State,
        stage: u32,
        earlier: &[TaskResult],
    ) -> impl Future<Output = Result<Option<Vec<NewWork<Self::Work>>>>> + Send;

    /// Bytes of memory that executing holds at most; counted against the executor's budget.
    fn memory(_cx: &Running, _task: &Task, _work: &Self::Work) -> u64 {
        0
    }

    /// Write files, never the manifest.
    fn execute(
        _cx: &Running,
        task: &Task,
        _work: &Self::Work,
        _input: Option<Input>,
    ) -> impl Future<Output = Result<Produced>> + Send {
        std::future::ready(Err(yields_data(task.operation())))
    }

    /// Begin to read the task's data. Everything that may be wrong with the task is found here; the
    /// payload itself is read as the batches are pulled.
    fn read(
        _cx: &Running,
        task: &Task,
        _work: &Self::Work,
    ) -> impl Future<Output = Result<Reading>> + Send {
        std::future::ready(Err(Error::invalid(format!(
            "a task of {} makes a result, and yields no data: execute it",
            task.operation()
        ))))
    }

    /// The result of a task that another Lance client executed, from that client's own description of
    /// what it made (JSON). Writes nothing; the result is verified like any other.
    fn adopt(
        _cx: &Running,
        task: &Task,
        _work: &Self::Work,
        _made: Value,
    ) -> impl Future<Output = Result<Produced>> + Send {
        std::future::ready(Err(yields_data(task.operation())))
    }

    /// Check one result against the task that it is of.
    fn verify(
        _state: &Self::State,
        _task: Option<&Task>,
        _work: Option<&Self::Work>,
        result: &TaskResult,
    ) -> Result<()> {
        Err(yields_data(&result.operation))
    }

    /// Apply the winners, one per task and in the order of the tasks, to the dataset; called by the
    /// exactly-once machinery, which guards every manifest write that this makes.
    fn commit(
        _cx: &Committing<'_>,
        job: &Job,
        _state: &Self::State,
        _winners: &[TaskResult],
    ) -> impl Future<Output = Result<Applied>> + Send {
        std::future::ready(Err(nothing_to_commit(job)))
    }

    /// What a person calls the task, where it has a name.
    fn label(_work: &Self::Work) -> Option<String> {
        None
    }

    /// Whether a part of the tasks may be committed by itself.
    fn partial(_state: &Self::State) -> bool {
        false
    }

    /// How many commits of how many tasks each; `None` = one commit of all.
    fn batch_size(_state: &Self::State) -> Option<usize> {
        None
    }

    /// What may come between the pinned version and the commit.
    fn concurrency(_state: &Self::State) -> Concurrency {
        Concurrency::Rebase
    }

    /// Bases that the job itself registers, beside those of the dataset.
    fn bases(_state: &Self::State) -> Bases {
        Bases::new()
    }

    /// Whether tasks write to those, and to the dataset's.
    fn writes_to_bases(_state: &Self::State) -> bool {
        false
    }

    /// What the job touches beside its dataset.
    fn elsewhere(state: &Self::State) -> Elsewhere {
        Elsewhere { bases: Self::bases(state), datasets: Vec::new() }
    }

    /// What a task touches beside its dataset.
    fn task_elsewhere(_work: &Self::Work) -> Elsewhere {
        Elsewhere::default()
    }

    /// For jobs whose tasks the caller names: check that the set of winners is what was stated, and
    /// order it. Jobs with planned tasks are checked by the machinery.
    fn check_open(_state: &Self::State, _winners: &mut Vec<TaskResult>) -> Result<bool> {
        Ok(false)
    }
}

/// What may be touched beside a job's dataset, with storage options of its own.
#[derive(Debug, Default)]
pub(crate) struct Elsewhere {
    /// Bases that the dataset need not have yet.
    pub bases: Bases,
    /// Other datasets that are read.
    pub datasets: Vec<(String, Pin)>,
}

/// What [`Operation::prepare`] works with.
pub(crate) struct Preparing<'a> {
    pub running: &'a Running,
}

impl Preparing<'_> {
    /// The place of a dataset that must exist, and its newest version; for operations that take no
    /// input stream.
    pub async fn existing(
        &self,
        uri: &str,
        input: Option<&SchemaRef>,
        what: &str,
    ) -> Result<(String, Dataset)> {
        let uri = normalize("uri", uri)?;
        if input.is_some() {
            return Err(Error::invalid(format!("{what} takes no input stream")));
        }
        let options = &self.running.call.storage_options;
        let dataset = self.running.datasets().open_latest(&uri, options).await?;
        Ok((uri.clone(), dataset.ok_or_else(|| not_found(&uri))?))
    }

    /// As [`existing`](Self::existing), at the version that a reader asks for.
    pub async fn at_version(
        &self,
        uri: &str,
        version: Option<u64>,
        input: Option<&SchemaRef>,
        what: &str,
    ) -> Result<(String, Dataset)> {
        let (uri, latest) = self.existing(uri, input, what).await?;
        let newest = latest.manifest.version;
        match version {
            None => Ok((uri, latest)),
            Some(version) if version == newest => Ok((uri, latest)),
            Some(version) if version > newest || version == 0 => Err(Error::invalid(format!(
                "option \"version\" is {version}, the newest version of dataset {uri} is {newest}"
            ))),
            Some(version) => {
                let options = &self.running.call.storage_options;
                let pin = Pin { version, timestamp: 0 };
                let dataset = self.running.datasets().open_uncached(&uri, pin, options).await?;
                Ok((uri, dataset))
            }
        }
    }

    pub fn prepared<S>(&self, uri: String, dataset: &Dataset, state: S) -> Prepared<S> {
        Prepared { uri, pin: Pin::of(dataset), state }
    }
}

/// A prepared job, before it has an id.
pub(crate) struct Prepared<S> {
    pub uri: String,
    pub pin: Pin,
    pub state: S,
}

/// One task to be.
pub(crate) struct NewWork<W> {
    pub key: Option<String>,
    pub work: W,
    pub rows: u64,
    pub bytes: u64,
}

/// What an attempt made.
#[derive(Debug, Default)]
pub(crate) struct Produced {
    pub payload: Value,
    pub fragments: Vec<String>,
    pub index_segments: Vec<Vec<u8>>,
    pub files: Vec<WrittenFile>,
    pub rows_in: u64,
    pub rows_out: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
}

/// A task that has begun to read.
pub(crate) struct Reading {
    pub schema: SchemaRef,
    /// Bytes that reading holds at most, beside the batches that the caller has been given; counted
    /// against the executor's budget before the first batch is made.
    pub memory: u64,
    pub batches: BoxStream<'static, Result<RecordBatch>>,
}

fn yields_data(operation: &str) -> Error {
    Error::invalid(format!(
        "a task of {operation} yields data, and makes no result: read it instead of executing it"
    ))
}

/// Why a job that reads cannot be committed.
pub(crate) fn nothing_to_commit(job: &Job) -> Error {
    Error::invalid(format!(
        "a {} job reads: its tasks yield data, and there is nothing to commit",
        job.operation()
    ))
}

/// A description that another Lance client gave, decoded.
pub(crate) fn described<T: DeserializeOwned>(what: &str, made: Value) -> Result<T> {
    // pylance hands out some of them as text.
    let made = match made {
        Value::String(text) => serde_json::from_str(&text).map_err(|e| wrong(what, &e))?,
        made => made,
    };
    serde_json::from_value(made).map_err(|e| wrong(what, &e))
}

fn wrong(what: &str, error: &serde_json::Error) -> Error {
    Error::invalid(format!("what another client made is no {what}: {error}"))
}

pub(crate) type Metrics = BTreeMap<String, u64>;

macro_rules! operations {
    ($($variant:ident $name:literal => $operation:ty),* $(,)?) => {
        /// The operations' names, as in a spec.
        pub const NAMES: &[&str] = &[$($name),*];

        /// Whether an operation, by its name, reads: its tasks yield data.
        pub fn reads(name: &str) -> bool {
            match name {
                $($name => <$operation as Operation>::READS,)*
                _ => false,
            }
        }

        /// An operation with its options on one dataset, as a user states it.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[allow(private_interfaces, private_bounds)]
        pub enum Spec { $($variant(<$operation as Operation>::Spec)),* }

        /// What an operation resolved at prepare.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        #[allow(private_interfaces, private_bounds)]
        pub enum JobState { $($variant(<$operation as Operation>::State)),* }

        /// An operation's part of a task.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        #[allow(private_interfaces, private_bounds)]
        pub enum Work { $($variant(<$operation as Operation>::Work)),* }

        $(impl From<NewWork<<$operation as Operation>::Work>> for NewTask {
            fn from(new: NewWork<<$operation as Operation>::Work>) -> Self {
                NewTask {
                    key: new.key,
                    work: Work::$variant(new.work),
                    estimated_rows: new.rows,
                    estimated_bytes: new.bytes,
                }
            }
        })*

        impl Spec {
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name),* }
            }

            pub(crate) async fn prepare(
                self,
                cx: &Preparing<'_>,
                input: Option<SchemaRef>,
            ) -> Result<Prepared<JobState>> {
                match self {
                    $(Self::$variant(spec) => {
                        let p = <$operation>::prepare(cx, spec, input).await?;
                        Ok(Prepared {
                            uri: p.uri,
                            pin: p.pin,
                            state: JobState::$variant(p.state),
                        })
                    })*
                }
            }

            /// The JSON Schema of each operation's spec, by name.
            pub(crate) fn schemas(generator: &mut schemars::SchemaGenerator) -> Vec<(&'static str, schemars::Schema)> {
                vec![$(($name, generator.subschema_for::<<$operation as Operation>::Spec>())),*]
            }
        }

        impl JobState {
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name),* }
            }

            pub(crate) fn reads(&self) -> bool {
                reads(self.name())
            }

            pub(crate) fn partial(&self) -> bool {
                match self { $(Self::$variant(state) => <$operation>::partial(state)),* }
            }

            pub(crate) fn concurrency(&self) -> Concurrency {
                match self { $(Self::$variant(state) => <$operation>::concurrency(state)),* }
            }

            pub(crate) fn bases(&self) -> Bases {
                match self { $(Self::$variant(state) => <$operation>::bases(state)),* }
            }

            pub(crate) fn writes_to_bases(&self) -> bool {
                match self { $(Self::$variant(state) => <$operation>::writes_to_bases(state)),* }
            }

            pub(crate) fn elsewhere(&self) -> Elsewhere {
                match self { $(Self::$variant(state) => <$operation>::elsewhere(state)),* }
            }

            pub(crate) fn batch_size(&self) -> Option<usize> {
                match self { $(Self::$variant(state) => <$operation>::batch_size(state)),* }
            }

            pub(crate) fn partition(&self, partition: &str) -> Result<(u32, NewTask)> {
                match self {
                    $(Self::$variant(state) => {
                        <$operation>::partition(state, partition).map(|(i, w)| (i, w.into()))
                    })*
                }
            }

            pub(crate) async fn stage(
                &self,
                cx: &Running,
                job: &Job,
                stage: u32,
                earlier: &[TaskResult],
            ) -> Result<Option<Vec<NewTask>>> {
                match self {
                    $(Self::$variant(state) => Ok(<$operation>::stage(cx, job, state, stage, earlier)
                        .await?
                        .map(|tasks| tasks.into_iter().map(Into::into).collect())),)*
                }
            }

            pub(crate) fn verify(&self, task: Option<&Task>, result: &TaskResult) -> Result<()> {
                match self {
                    $(Self::$variant(state) => {
                        let work = task.and_then(|t| match &t.work {
                            Work::$variant(work) => Some(work),
                            #[allow(unreachable_patterns)]
                            _ => None,
                        });
                        <$operation>::verify(state, task, work, result)
                    })*
                }
            }

            pub(crate) fn check_open(&self, winners: &mut Vec<TaskResult>) -> Result<bool> {
                match self { $(Self::$variant(state) => <$operation>::check_open(state, winners)),* }
            }

            pub(crate) async fn commit(
                &self,
                cx: &Committing<'_>,
                job: &Job,
                winners: &[TaskResult],
            ) -> Result<Applied> {
                match self { $(Self::$variant(state) => <$operation>::commit(cx, job, state, winners).await),* }
            }
        }

        impl Work {
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name),* }
            }

            pub(crate) fn label(&self) -> Option<String> {
                match self { $(Self::$variant(work) => <$operation>::label(work)),* }
            }

            pub(crate) fn elsewhere(&self) -> Elsewhere {
                match self { $(Self::$variant(work) => <$operation>::task_elsewhere(work)),* }
            }

            pub(crate) fn memory(&self, cx: &Running, task: &Task) -> u64 {
                match self { $(Self::$variant(work) => <$operation>::memory(cx, task, work)),* }
            }

            pub(crate) async fn execute(
                &self,
                cx: &Running,
                task: &Task,
                input: Option<Input>,
            ) -> Result<Produced> {
                match self { $(Self::$variant(work) => <$operation>::execute(cx, task, work, input).await),* }
            }

            pub(crate) async fn read(&self, cx: &Running, task: &Task) -> Result<Reading> {
                match self { $(Self::$variant(work) => <$operation>::read(cx, task, work).await),* }
            }

            pub(crate) async fn adopt(&self, cx: &Running, task: &Task, made: Value) -> Result<Produced> {
                match self { $(Self::$variant(work) => <$operation>::adopt(cx, task, work, made).await),* }
            }
        }
    };
}

operations! {
    Write "write" => write::Write,
    Compact "compact" => compact::Compact,
    CreateIndex "create_index" => create_index::CreateIndex,
    OptimizeIndex "optimize_index" => optimize_index::OptimizeIndex,
    TakeBlobs "take_blobs" => take_blobs::TakeBlobs,
}

impl Descriptor for Spec {
    const KIND: &'static str = "spec";
}
