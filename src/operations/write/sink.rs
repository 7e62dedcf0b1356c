//! Batches to fragments: several files at once, cut at exact rows, memory bounded.
//!
//! Lance's writer takes a batch, encodes and writes it, then takes the next; one writer leaves cores
//! idle. Here each data file has a writer of its own, fed in order: while one file is encoded the next
//! ones fill. Batches that wait are counted against the task's share of memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arrow_array::{Array, RecordBatch, make_array};
use arrow_data::transform::MutableArrayData;
use arrow_schema::{DataType, SchemaRef};
use futures::StreamExt;
use lance::dataset::transaction::Operation;
use lance::dataset::{InsertBuilder, WriteDestination, WriteParams};
use lance::deps::datafusion::error::DataFusionError;
use lance::deps::datafusion::physical_plan::SendableRecordBatchStream;
use lance::deps::datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use lance::{Dataset, datatypes::Schema as LanceSchema};
use lance_table::format::Fragment;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::source::Batches;
use super::staging::Staging;
use crate::dataset::{Bases, data_file_path};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::{EventKind, Running};
use crate::result::WrittenFile;

/// Rows are handed on in slices of at most this many bytes, so that a limit in bytes holds for one huge
/// batch too.
const SLICE: u64 = 8 << 20;
/// What Lance's writer of one file holds beside the batches: pages being filled, uploads under way.
const WRITER: u64 = 48 << 20;
/// The unit in which waiting bytes are counted.
const UNIT: u64 = 64 << 10;

/// Where and how a task writes.
pub(super) struct Sink<'a> {
    pub running: &'a Running,
    pub target: Target,
    /// Where the files are until they are whole, on a local disk.
    pub staging: Option<Arc<Staging>>,
    pub params: WriteParams,
    pub bases: Bases,
    /// The schema with the field ids that the commit will give it; `None` for append.
    pub expected: Option<LanceSchema>,
    /// Bytes that the task may hold.
    pub memory: u64,
}

/// Where the files go, under the job's marked names.
#[derive(Clone)]
pub(super) enum Target {
    Dataset(Arc<Dataset>),
    /// The job creates the dataset, here.
    New(String),
}

#[derive(Debug, Default)]
pub(super) struct Written {
    pub fragments: Vec<Fragment>,
    pub rows_in: u64,
    pub bytes_in: u64,
}

/// A batch on its way, with its share of the memory.
type Queued = (RecordBatch, OwnedSemaphorePermit);

/// A file being filled.
struct Open {
    sender: mpsc::UnboundedSender<Queued>,
    rows: u64,
    bytes: u64,
}

impl Sink<'_> {
    /// Write all batches; fragments come back in the order of their rows.
    pub async fn write(&self, schema: SchemaRef, mut batches: Batches) -> Result<Written> {
        let max_rows = self.params.max_rows_per_file as u64;
        let max_bytes = self.params.max_bytes_per_file as u64;
        let affordable = (self.memory / 2 / WRITER) as usize;
        let writers = self.running.threads().min(8).min(affordable).max(1);
        let waiting = self.memory.saturating_sub(writers as u64 * WRITER).max(self.memory / 2);
        let units = (waiting / UNIT).clamp(1, u32::MAX as u64) as u32;
        let memory = Arc::new(Semaphore::new(units as usize));
        let progress = Arc::new(Progress::default());
        // Writers are not aborted: a file that becomes whole in that moment would be nobody's.
        let stop = StopOnDrop::default();
        let mut files: VecDeque<Filling> = VecDeque::new();
        let mut started = 0;
        let mut open: Option<Open> = None;
        let mut written = Written::default();
        let mut cap = Cap::new(max_bytes);
        let fragile = fragile_columns(&schema);
        let mut trimmer = Trimmer::new(self.memory);
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let bytes = size(&batch);
            let rows = batch.num_rows() as u64;
            written.rows_in += rows;
            written.bytes_in += bytes;
            let per_slice = slice_rows(rows, bytes, SLICE.min(max_bytes / 4).max(1));
            let mut at = 0;
            while at < rows {
                if open.is_none() {
                    self.make_room(&mut files, writers, &mut written, &mut cap).await?;
                }
                let file = open.get_or_insert_with(|| {
                    let (sender, receiver) = mpsc::unbounded_channel();
                    let writer = Writer {
                        schema: schema.clone(),
                        receiver,
                        progress: progress.clone(),
                        stop: stop.0.clone(),
                    };
                    files.push_back(Filling { writer: self.start(writer, started), bytes: 0 });
                    started += 1;
                    Open { sender, rows: 0, bytes: 0 }
                });
                let take = per_slice.min(rows - at).min(max_rows - file.rows);
                let slice = copied(batch.slice(at as usize, take as usize), &fragile)?;
                let weight = if take == rows { bytes } else { size(&slice) };
                let cost = weight.div_ceil(UNIT).clamp(1, u32::MAX as u64) as u32;
                if cost > units {
                    return Err(Error::new(
                        ErrorCode::BudgetExceeded,
                        format!(
                            "{take} rows from row {} on take {weight} bytes, the task may hold {}; hand \
                             in smaller batches or raise memory_budget",
                            written.rows_in - rows + at,
                            waiting
                        ),
                    ));
                }
                let permit = memory
                    .clone()
                    .acquire_many_owned(cost)
                    .await
                    .map_err(|_| Error::internal("the sink is closed"))?;
                if file.sender.send((slice, permit)).is_err() {
                    // The writer has ended early: its own error says why.
                    open = None;
                    break;
                }
                file.rows += take;
                file.bytes += weight;
                if let Some(filling) = files.back_mut() {
                    filling.bytes += weight;
                }
                at += take;
                if file.rows >= max_rows || cap.reached(file.bytes, SLICE.min(max_bytes / 4)) {
                    open = None;
                }
            }
            trimmer.passed(bytes).await;
            self.running.event(
                EventKind::Advanced,
                progress.rows.load(Ordering::Relaxed),
                progress.bytes.load(Ordering::Relaxed),
                "",
            );
        }
        drop(open);
        while !files.is_empty() {
            self.finish(&mut files, &mut written, &mut cap).await?;
        }
        let out: u64 =
            written.fragments.iter().filter_map(|f| f.physical_rows).sum::<usize>() as u64;
        if out != written.rows_in {
            return Err(Error::internal(format!(
                "{} rows came in, {out} were written",
                written.rows_in
            )));
        }
        Ok(written)
    }

    /// Before another file is begun, wait until at most `writers` are not whole: each holds pages of its
    /// own.
    async fn make_room(
        &self,
        files: &mut VecDeque<Filling>,
        writers: usize,
        written: &mut Written,
        cap: &mut Cap,
    ) -> Result<()> {
        while files.len() > writers || files.front().is_some_and(|f| f.writer.is_finished()) {
            self.finish(files, written, cap).await?;
        }
        Ok(())
    }

    async fn finish(
        &self,
        files: &mut VecDeque<Filling>,
        written: &mut Written,
        cap: &mut Cap,
    ) -> Result<()> {
        let Some(file) = files.pop_front() else { return Ok(()) };
        let fragments =
            file.writer.await.map_err(|e| Error::internal(format!("a writer ended: {e}")))??;
        let on_disk: u64 = fragments
            .iter()
            .flat_map(|f| &f.files)
            .filter_map(|f| f.file_size_bytes.get())
            .map(u64::from)
            .sum();
        cap.learn(file.bytes, on_disk);
        written.fragments.extend(fragments);
        Ok(())
    }

    /// One file's writer, on the runtime; `nth` of this task.
    fn start(&self, writer: Writer, nth: usize) -> JoinHandle<Result<Vec<Fragment>>> {
        let Writer { schema, receiver, progress, stop } = writer;
        let (target, staging) = (self.target.clone(), self.staging.clone());
        let expected = self.expected.clone();
        let (running, all_bases) = (self.running.clone(), self.bases.clone());
        let mut params = self.params.clone();
        if let Some(bases) = &mut params.target_bases
            && !bases.is_empty()
        {
            // Lance takes the bases in turn, beginning anew in each of its writers.
            let turn = nth % bases.len();
            bases.rotate_left(turn);
        }
        // The attempt ends when its writers have: no file comes after the removal of its files, and no
        // progress after its end.
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        self.running.on_end(tokio::spawn(async move {
            let _ = end.await;
        }));
        let writer = async move {
            let stream = futures::stream::unfold(
                Some((receiver, None::<OwnedSemaphorePermit>)),
                move |state| {
                    let (progress, stop) = (progress.clone(), stop.clone());
                    async move {
                        let (mut receiver, held) = state?;
                        // Asked for the next batch: the one before has been encoded.
                        drop(held);
                        let next = receiver.recv().await;
                        if stop.load(Ordering::Relaxed) {
                            let error = Error::new(ErrorCode::Cancelled, "the attempt has ended");
                            return Some((Err(DataFusionError::External(error.into())), None));
                        }
                        let (batch, permit) = next?;
                        let bytes = permit.num_permits() as u64 * UNIT;
                        progress.rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
                        progress.bytes.fetch_add(bytes, Ordering::Relaxed);
                        Some((Ok(batch), Some((receiver, Some(permit)))))
                    }
                },
            );
            let stream: SendableRecordBatchStream =
                Box::pin(RecordBatchStreamAdapter::new(schema, stream));
            let destination = match &target {
                Target::Dataset(dataset) => WriteDestination::Dataset(dataset.clone()),
                Target::New(uri) => WriteDestination::Uri(uri),
            };
            let transaction = InsertBuilder::new(destination)
                .with_params(&params)
                .execute_uncommitted_stream(stream)
                .await?;
            let mut fragments = match transaction.operation {
                Operation::Append { fragments } => fragments,
                Operation::Overwrite { fragments, schema, .. } => {
                    check_schema(&schema, expected.as_ref())?;
                    fragments
                }
                other => {
                    return Err(Error::internal(format!("a write became {}", other.name())));
                }
            };
            match staging {
                Some(staging) => staging.publish(&mut fragments)?,
                None => running.marks().mark().fragments(&mut fragments),
            }
            // Where Lance fails it removes what it wrote itself.
            for file in fragments.iter().flat_map(|f| written_files(f, &all_bases)) {
                running.wrote(file);
            }
            Ok::<_, Error>(fragments)
        };
        tokio::spawn(async move {
            let _ended = ended; // dropped after the writer and all that it holds
            writer.await
        })
    }
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

#[derive(Default)]
struct Progress {
    rows: AtomicU64,
    bytes: AtomicU64,
}

/// What a file's writer works with.
struct Writer {
    schema: SchemaRef,
    receiver: mpsc::UnboundedReceiver<Queued>,
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
}

/// A file that is being written.
struct Filling {
    writer: JoinHandle<Result<Vec<Fragment>>>,
    /// Bytes of its rows, in memory.
    bytes: u64,
}

/// Tells the writers that the attempt has ended.
#[derive(Default)]
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Blocks of all sizes come and go, and the allocator would keep several times what is in use: where the
/// process has grown beyond the task's share, what is free is given back now and then.
struct Trimmer {
    memory: u64,
    limit: u64,
    passed: u64,
}

impl Trimmer {
    fn new(memory: u64) -> Self {
        Self { memory, limit: crate::process::resident_memory() + memory, passed: 0 }
    }

    async fn passed(&mut self, bytes: u64) {
        self.passed += bytes;
        if self.passed < self.memory / 4 {
            return;
        }
        self.passed = 0;
        if crate::process::resident_memory() > self.limit {
            let _ = tokio::task::spawn_blocking(crate::ffi::process::trim_memory).await;
        }
    }
}

/// When a file has its bytes. Lance looks at what is flushed only, which lags by up to a page per
/// column; so count what goes in, by the ratio of the files that are finished.
struct Cap {
    max: u64,
    /// Bytes on disk per byte in memory, in thousandths; at first taken as equal.
    ratio: u64,
}

impl Cap {
    fn new(max: u64) -> Self {
        Self { max, ratio: 1000 }
    }

    /// Would one more slice go over? Page headers and the footer come on top.
    fn reached(&self, bytes: u64, next: u64) -> bool {
        let room = self.max - self.max / 32;
        u128::from(bytes + next) * u128::from(self.ratio) > u128::from(room) * 1000
    }

    fn learn(&mut self, in_memory: u64, on_disk: u64) {
        // A tenth of caution: the next file may compress worse.
        if let Some(ratio) = (on_disk * 1100).checked_div(in_memory) {
            self.ratio = ratio.clamp(1, 1100);
        }
    }
}

/// Columns with a map or booleans inside of a struct: where they are slices, Lance 14.0.2 fails to push
/// the struct's nulls down to them (so does pylance).
fn fragile_columns(schema: &SchemaRef) -> Vec<usize> {
    fn fragile(data_type: &DataType, in_struct: bool) -> bool {
        match data_type {
            DataType::Boolean | DataType::Map(..) => in_struct,
            DataType::Struct(fields) => fields.iter().any(|f| fragile(f.data_type(), true)),
            DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => {
                fragile(f.data_type(), in_struct)
            }
            _ => false,
        }
    }
    let columns = schema.fields().iter().enumerate();
    columns.filter(|(_, f)| fragile(f.data_type(), false)).map(|(place, _)| place).collect()
}

/// The same rows, with the named columns in buffers of their own.
fn copied(batch: RecordBatch, columns: &[usize]) -> Result<RecordBatch> {
    if columns.is_empty() {
        return Ok(batch);
    }
    let (schema, mut arrays, _) = batch.into_parts();
    for place in columns {
        let data = arrays[*place].to_data();
        let mut copy = MutableArrayData::new(vec![&data], false, data.len());
        copy.extend(0, 0, data.len());
        arrays[*place] = make_array(copy.freeze());
    }
    Ok(RecordBatch::try_new(schema, arrays)?)
}

/// Bytes of the rows themselves, not of the buffers that a slice shares.
fn size(batch: &RecordBatch) -> u64 {
    batch
        .columns()
        .iter()
        .map(|c| c.to_data().get_slice_memory_size().unwrap_or_else(|_| c.get_array_memory_size()))
        .sum::<usize>() as u64
}

fn slice_rows(rows: u64, bytes: u64, limit: u64) -> u64 {
    if bytes <= limit {
        return rows.max(1);
    }
    (rows * limit / bytes.max(1)).max(1)
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
