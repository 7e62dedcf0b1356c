//! Batches to fragments: several files at once, cut at exact rows, memory bounded.
//!
//! Lance's writer takes a batch, encodes and writes it, then takes the next; one writer leaves cores
//! idle. Here each data file has a writer of its own, fed in order: while one file is encoded the next
//! ones fill. Batches that wait are counted against the task's share of memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow_array::{Array, RecordBatch, make_array};
use arrow_data::transform::MutableArrayData;
use arrow_schema::{DataType, Schema, SchemaRef};
use futures::StreamExt;
use lance_table::format::Fragment;

use super::file::{DataFiles, Made, Open, Writing};
use super::source::Batches;
use crate::blob::external::Mode as ExternalMode;
use crate::blob::fields::has_blobs;
use crate::blob::writer::{BlobWriter, Blobs, Waiting, rows_to_copy};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::{EventKind, Running};
use crate::result::WrittenFile;

/// Rows are handed on in slices of at most this many bytes, so that a limit in bytes holds for one huge
/// batch too.
const SLICE: u64 = 8 << 20;
/// What Lance's writer of one file holds beside the batches: pages being filled, uploads under way.
const WRITER: u64 = 48 << 20;

/// Where and how a task writes.
pub(super) struct Sink<'a> {
    pub running: &'a Running,
    pub files: DataFiles,
    /// Bytes that the task may hold.
    pub memory: u64,
    pub limits: Limits,
    pub blobs: Option<Arc<Blobs>>,
}

/// How a task's share of memory is spent.
pub(super) struct Limits {
    /// Files that are written at one time.
    writers: usize,
    /// Rows that wait for them.
    pub waiting: Waiting,
}

impl Limits {
    pub fn of(running: &Running, memory: u64, schema: &Schema) -> Self {
        let affordable = ((memory / 2 / WRITER) as usize).max(1);
        // Payloads of one file are written by several tasks already.
        let most = if has_blobs(schema) { 2 } else { 8 };
        let writers = running.threads().min(most).min(affordable).max(1);
        let waiting = memory.saturating_sub(writers as u64 * WRITER).max(memory / 2);
        Self { writers, waiting: Waiting::new(waiting) }
    }
}

#[derive(Debug, Default)]
pub(super) struct Written {
    pub fragments: Vec<Fragment>,
    pub sidecars: Vec<WrittenFile>,
    pub rows_in: u64,
    pub bytes_in: u64,
}

/// A file being filled.
struct Filled {
    file: Open,
    blobs: Option<BlobWriter>,
    rows: u64,
    bytes: u64,
}

impl Filled {
    fn close(self) {
        self.file.close(self.blobs.map(BlobWriter::into_sidecars));
    }
}

impl Sink<'_> {
    /// Write all batches, which have the schema `schema`; fragments come back in the order of their
    /// rows.
    pub async fn write(&self, schema: SchemaRef, mut batches: Batches) -> Result<Written> {
        let params = &self.files.params;
        let max_rows = params.max_rows_per_file as u64;
        let max_bytes = params.max_bytes_per_file as u64;
        let waiting = &self.limits.waiting;
        let copies = self.blobs.as_ref().filter(|b| b.externals.mode == ExternalMode::Ingest);
        let mut files: VecDeque<Filling> = VecDeque::new();
        let mut started = 0;
        let mut open: Option<Filled> = None;
        let mut written = Written::default();
        let mut cap = Cap::new(max_bytes);
        let fragile = fragile_columns(&schema);
        let mut trimmer = Trimmer::new(self.memory);
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let bytes = size(&batch);
            let rows = batch.num_rows() as u64;
            let first = written.rows_in;
            written.rows_in += rows;
            written.bytes_in += bytes;
            let per_slice = slice_rows(rows, bytes, SLICE.min(max_bytes / 4).max(1));
            let mut at = 0;
            while at < rows {
                let mut filled = match open.take() {
                    Some(filled) => filled,
                    None => {
                        self.make_room(&mut files, &mut written, &mut cap).await?;
                        let (file, writer) = self.files.open(started).await?;
                        started += 1;
                        files.push_back(Filling { writer, bytes: 0 });
                        let blobs = self.blobs.as_ref().zip(file.beside.clone());
                        let blobs =
                            blobs.map(|(b, beside)| BlobWriter::new(self.running, b, beside));
                        Filled { file, blobs, rows: 0, bytes: 0 }
                    }
                };
                let mut take = per_slice.min(rows - at).min(max_rows - filled.rows);
                if let Some(blobs) = copies {
                    let slice = batch.slice(at as usize, take as usize);
                    let enough = waiting.bytes() / 2;
                    take = rows_to_copy(blobs, &slice, first + at, enough).await? as u64;
                }
                let slice = copied(batch.slice(at as usize, take as usize), &fragile)?;
                let weight = if take == rows { bytes } else { size(&slice) };
                let held = waiting.take(weight, 0).await?.ok_or_else(|| {
                    Error::new(
                        ErrorCode::BudgetExceeded,
                        format!(
                            "{take} rows from row {} on take {weight} bytes, the task may hold {}; hand \
                             in smaller batches or raise memory_budget",
                            first + at,
                            waiting.bytes()
                        ),
                    )
                })?;
                let slice = match &mut filled.blobs {
                    Some(blobs) => blobs.write(&slice, first + at, held.clone()).await?,
                    None => slice,
                };
                at += take;
                filled.rows += take;
                filled.bytes += weight;
                if let Some(filling) = files.back_mut() {
                    filling.bytes += weight;
                }
                let full =
                    filled.rows >= max_rows || cap.reached(filled.bytes, SLICE.min(max_bytes / 4));
                match filled.file.feed(slice, vec![held]) {
                    true if full => filled.close(),
                    true => open = Some(filled),
                    // The writer has ended early: its own error says why.
                    false => break,
                }
            }
            trimmer.passed(bytes).await;
            let progress = &self.files.progress;
            self.running.event(
                EventKind::Advanced,
                progress.rows.load(Ordering::Relaxed),
                progress.bytes.load(Ordering::Relaxed),
                "",
            );
        }
        if let Some(filled) = open {
            filled.close();
        }
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

    /// Before another file is begun, wait until few enough are not whole: each holds pages of its own.
    async fn make_room(
        &self,
        files: &mut VecDeque<Filling>,
        written: &mut Written,
        cap: &mut Cap,
    ) -> Result<()> {
        while files.len() > self.limits.writers
            || files.front().is_some_and(|f| f.writer.is_finished())
        {
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
        let Made { fragments, sidecars } =
            file.writer.await.map_err(|e| Error::internal(format!("a writer ended: {e}")))??;
        let beside: u64 = sidecars.iter().map(|f| f.size).sum();
        let on_disk: u64 = fragments
            .iter()
            .flat_map(|f| &f.files)
            .filter_map(|f| f.file_size_bytes.get())
            .map(u64::from)
            .sum();
        // Payloads count as the file's: it is they that make it large.
        cap.learn(file.bytes, on_disk + beside);
        written.fragments.extend(fragments);
        written.sidecars.extend(sidecars);
        Ok(())
    }
}

/// A file that is being written.
struct Filling {
    writer: Writing,
    /// Bytes of its rows, in memory.
    bytes: u64,
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
