//! Data files: each has a writer of Lance's on the runtime that is fed batch by batch, and where the
//! dataset has blobs, payloads beside it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use lance::dataset::transaction::Operation;
use lance::dataset::{InsertBuilder, WriteDestination, WriteParams};
use lance::deps::datafusion::error::DataFusionError;
use lance::deps::datafusion::physical_plan::SendableRecordBatchStream;
use lance::deps::datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use lance::{Dataset, datatypes::Schema as LanceSchema};
use lance_table::format::Fragment;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::staging::Staging;
use crate::blob::sidecar::{Beside, Sidecars};
use crate::blob::writer::{Held, UNIT};
use crate::dataset::{Bases, data_file_path, join};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use crate::marks::{Marks, Use};
use crate::result::WrittenFile;

/// Where files go, under the job's marked names.
#[derive(Clone)]
pub(crate) enum Target {
    Dataset(Arc<Dataset>),
    /// The job creates the dataset, here.
    New(String),
}

/// Where and how the data files of a task are written.
pub(crate) struct DataFiles {
    pub running: Running,
    pub uri: String,
    pub job: Uuid,
    pub target: Target,
    /// Where the files are until they are whole, on a local disk.
    pub staging: Option<Arc<Staging>>,
    pub params: WriteParams,
    pub bases: Bases,
    /// The schema with the field ids that the commit will give it; `None` for append.
    pub expected: Option<LanceSchema>,
    /// The schema of the batches that files are fed with.
    pub schema: SchemaRef,
    /// Whether payloads will lie beside the files.
    pub blobs: bool,
    pub progress: Arc<Progress>,
    /// Writers are not aborted: a file that becomes whole in that moment would be nobody's.
    pub stop: StopOnDrop,
}

/// Tells the writers that the attempt has ended.
#[derive(Default)]
pub(crate) struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Default)]
pub(crate) struct Progress {
    pub rows: AtomicU64,
    pub bytes: AtomicU64,
}

/// A batch on its way, with its shares of the memory.
type Queued = (RecordBatch, Vec<Held>);

/// A file being filled.
pub(crate) struct Open {
    batches: mpsc::UnboundedSender<Queued>,
    payloads: oneshot::Sender<Sidecars>,
    /// Where its payloads go.
    pub beside: Option<Beside>,
}

impl Open {
    /// Hand a batch on; false where the writer has ended early: its own error says why.
    pub fn feed(&self, batch: RecordBatch, memory: Vec<Held>) -> bool {
        self.batches.send((batch, memory)).is_ok()
    }

    /// There is no more to come.
    pub fn close(self, payloads: Option<Sidecars>) {
        if let Some(payloads) = payloads {
            let _ = self.payloads.send(payloads);
        }
    }
}

/// What became of a file.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub fragments: Vec<Fragment>,
    pub sidecars: Vec<WrittenFile>,
}

pub(crate) type Writing = JoinHandle<Result<Made>>;

impl DataFiles {
    /// Begin the `nth` file of the task.
    pub async fn open(&self, nth: usize) -> Result<(Open, Writing)> {
        let mut params = self.params.clone();
        if let Some(bases) = &mut params.target_bases
            && !bases.is_empty()
        {
            // Lance takes the bases in turn, beginning anew in each of its writers.
            let turn = nth % bases.len();
            bases.rotate_left(turn);
        }
        let mut target = self.target.clone();
        let (mut name, mut beside) = (None, None);
        if self.blobs {
            // Payloads lie in a folder of the data file's name, which must be known before it is there.
            let only = self.running.marks().mark().new_name();
            beside = Some(self.beside(&only, &params).await?);
            if self.staging.is_none() {
                self.name(&only, &mut target, &mut params).await?;
            }
            // One file is one fragment: this side says when it is full.
            params.max_rows_per_file = u32::MAX as usize;
            params.max_bytes_per_file = usize::MAX;
            name = Some(only);
        }
        let (batches, receiver) = mpsc::unbounded_channel();
        let (payloads, written) = oneshot::channel();
        let writer = Writer {
            running: self.running.clone(),
            bases: self.bases.clone(),
            expected: self.expected.clone(),
            staging: self.staging.clone(),
            target,
            params,
            name,
            schema: self.schema.clone(),
            progress: self.progress.clone(),
            stop: self.stop.0.clone(),
        };
        // The attempt ends when its writers have: no file comes after the removal of its files, and no
        // progress after its end.
        let (ended, end) = oneshot::channel::<()>();
        self.running.on_end(tokio::spawn(async move {
            let _ = end.await;
        }));
        let writing = tokio::spawn(async move {
            let _ended = ended; // dropped after the writer and all that it holds
            writer.write(receiver, written).await
        });
        Ok((Open { batches, payloads, beside }, writing))
    }

    /// Where the payloads of a data file of that name go.
    async fn beside(&self, name: &str, params: &WriteParams) -> Result<Beside> {
        let first = params.target_bases.as_ref().and_then(|bases| bases.first().copied());
        let base = first.filter(|id| ![0, Staging::BASE].contains(id));
        let file = format!("{name}.lance");
        let listed = data_file_path(&file, base, &self.bases);
        let folder = listed.strip_suffix(".lance").unwrap_or(&listed).to_owned();
        if let (Some(staging), None) = (&self.staging, base) {
            let store = Arc::new(lance_io::object_store::ObjectStore::local());
            return Ok(Beside { store, data_file: staging.file(name)?, folder, base });
        }
        let (datasets, options) = (self.running.datasets(), &self.running.call.storage_options);
        let (store, root) = match base {
            Some(id) => match self.bases.get(&id) {
                Some(base) => datasets.base_store(base, options).await?,
                None => return Err(Error::internal(format!("base {id} is not registered"))),
            },
            None => datasets.store(&self.uri, options).await?,
        };
        Ok(Beside { store, data_file: join(&root, &listed), folder, base })
    }

    /// Have Lance's writer give the file that name.
    async fn name(&self, name: &str, target: &mut Target, params: &mut WriteParams) -> Result<()> {
        if let Target::Dataset(dataset) = target {
            *target =
                Target::Dataset(Arc::new(self.running.marks().only(name).dataset(dataset).await?));
        }
        let wrapper = Marks::new(self.job, Use::Job).only(name).wrapper();
        let own = params.base_store_params.iter_mut().flat_map(HashMap::values_mut);
        for store in params.store_params.iter_mut().chain(own) {
            store.object_store_wrapper = Some(wrapper.clone());
        }
        Ok(())
    }
}

/// What one file's writer works with.
struct Writer {
    running: Running,
    bases: Bases,
    expected: Option<LanceSchema>,
    staging: Option<Arc<Staging>>,
    target: Target,
    params: WriteParams,
    /// The file's name, where it was chosen beforehand.
    name: Option<String>,
    schema: SchemaRef,
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
}

impl Writer {
    async fn write(
        self,
        batches: mpsc::UnboundedReceiver<Queued>,
        payloads: oneshot::Receiver<Sidecars>,
    ) -> Result<Made> {
        let stream = self.stream(batches);
        let destination = match &self.target {
            Target::Dataset(dataset) => WriteDestination::Dataset(dataset.clone()),
            Target::New(uri) => WriteDestination::Uri(uri),
        };
        let transaction = InsertBuilder::new(destination)
            .with_params(&self.params)
            .execute_uncommitted_stream(stream)
            .await?;
        let mut fragments = match transaction.operation {
            Operation::Append { fragments } => fragments,
            Operation::Overwrite { fragments, schema, .. } => {
                check_schema(&schema, self.expected.as_ref())?;
                fragments
            }
            other => {
                return Err(Error::internal(format!("a write became {}", other.name())));
            }
        };
        let sidecars = match self.name {
            Some(_) => payloads.await.map_err(|_| ended())?.finish().await?,
            None => Vec::new(),
        };
        match (&self.staging, &self.name) {
            (Some(staging), name) => staging.publish(&mut fragments, name.as_deref())?,
            (None, Some(name)) => {
                for file in fragments.iter_mut().flat_map(|f| &mut f.files) {
                    file.path = format!("{name}.lance");
                }
            }
            (None, None) => self.running.marks().mark().fragments(&mut fragments),
        }
        // Where Lance fails it removes what it wrote itself.
        for file in fragments.iter().flat_map(|f| written_files(f, &self.bases)) {
            self.running.wrote(file);
        }
        Ok(Made { fragments, sidecars })
    }

    fn stream(&self, batches: mpsc::UnboundedReceiver<Queued>) -> SendableRecordBatchStream {
        let (progress, stop) = (self.progress.clone(), self.stop.clone());
        let stream = futures::stream::unfold(Some((batches, Vec::new())), move |state| {
            let (progress, stop) = (progress.clone(), stop.clone());
            async move {
                let (mut batches, held) = state?;
                // Asked for the next batch: the one before has been encoded.
                drop(held);
                let next = batches.recv().await;
                if stop.load(Ordering::Relaxed) {
                    return Some((Err(DataFusionError::External(ended().into())), None));
                }
                let (batch, held) = next?;
                let units: usize = held.iter().map(|held| held.num_permits()).sum();
                let bytes = units as u64 * UNIT;
                progress.rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
                progress.bytes.fetch_add(bytes, Ordering::Relaxed);
                Some((Ok(batch), Some((batches, held))))
            }
        });
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), stream))
    }
}

fn ended() -> Error {
    Error::new(ErrorCode::Cancelled, "the attempt has ended")
}

/// All tasks of a job must number the fields alike, or columns would be swapped.
fn check_schema(written: &LanceSchema, expected: Option<&LanceSchema>) -> Result<()> {
    let ids = |schema: &LanceSchema| -> Vec<(i32, String)> {
        schema.fields_pre_order().map(|f| (f.id, f.name.clone())).collect()
    };
    match expected {
        Some(expected) if ids(written) != ids(expected) => Err(Error::internal(format!(
            "the writer numbered the fields {:?}, the job {:?}",
            ids(written),
            ids(expected)
        ))),
        _ => Ok(()),
    }
}

/// The files of a new fragment.
pub(crate) fn written_files<'a>(
    fragment: &'a Fragment,
    bases: &'a Bases,
) -> impl Iterator<Item = WrittenFile> + 'a {
    fragment.files.iter().map(|file| WrittenFile {
        path: data_file_path(&file.path, file.base_id, bases),
        size: file.file_size_bytes.get().map_or(0, u64::from),
        base: file.base_id,
    })
}
