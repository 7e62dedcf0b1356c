//! Where the payloads are, how they are cut into batches, and reading them.
//!
//! Rows that share a payload (the same place of the same object, and the same part of it) share a
//! [`Unit`], which is fetched once; one that a later batch needs again is kept, as far as it fits. Where
//! a payload lies is Lance's to say: what is fetched is asked of Lance by row address.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use arrow_array::builder::LargeBinaryBuilder;
use arrow_array::{ArrayRef, LargeBinaryArray, RecordBatch, UInt64Array};
use arrow_buffer::{Buffer, OffsetBuffer};
use arrow_schema::SchemaRef;
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::{BlobFile, BlobRangeRequest};

use super::TakeBlobsWork;
use super::descriptors::{Blob, descriptors};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;

/// Larger ones cost more: their memory is new from the system each time.
const BATCH: u64 = 16 << 20;
/// Batches that are fetched at one time.
const AHEAD: usize = 4;
/// Bytes that are kept from batch to batch, for rows of later ones.
const KEEP: u64 = 64 << 20;
/// Lance reads more than this in parts, and then puts them together in a buffer of their own.
const LARGE: u64 = 16 << 20;
/// A large payload is read in pieces, straight into its place.
const PIECE: u64 = 2 << 20;
const PIECES: usize = 8;
/// Pieces under way, which Lance may copy once.
const IN_FLIGHT: u64 = 2 * PIECE * PIECES as u64;
/// Handles that are opened by one call of Lance, which asks for their sizes one by one, and such calls
/// at one time.
const HANDLES: usize = 8;
const AT_ONCE: usize = 16;

/// The part of a payload that one or more rows want; never empty.
struct Unit {
    /// Of one of the rows.
    address: u64,
    range: Range<u64>,
    /// For those that are not read together with others.
    file: Option<Arc<BlobFile>>,
    /// The last batch that it is in.
    last: usize,
}

impl Unit {
    fn size(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Bytes that reading it alone takes.
    fn memory(&self) -> u64 {
        self.size() + if self.size() > LARGE { IN_FLIGHT } else { 0 }
    }
}

#[derive(Clone, Copy)]
enum Cell {
    Null,
    Empty,
    Unit(usize),
}

struct Batch {
    rows: Range<usize>,
    /// Each once.
    units: Vec<usize>,
    /// Those of them that are not kept from an earlier batch.
    fetch: Vec<usize>,
    /// Those that are fetched here and kept for a later one.
    keep: Vec<usize>,
    /// Of all rows.
    bytes: u64,
}

/// A task's payloads, none of them read yet.
pub(super) struct Payloads {
    dataset: Arc<Dataset>,
    column: String,
    schema: SchemaRef,
    keys: Vec<u64>,
    cells: Vec<Cell>,
    units: Vec<Unit>,
    batches: Vec<Batch>,
    ahead: usize,
    memory: u64,
}

impl Payloads {
    /// Find the rows and read their descriptors.
    pub(super) async fn locate(
        cx: &Running,
        dataset: Arc<Dataset>,
        field_id: u32,
        work: &TakeBlobsWork,
        schema: SchemaRef,
    ) -> Result<Self> {
        let keys = &work.keys;
        let addresses = keys.addresses(&dataset).await?;
        let mut distinct = addresses.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let mut blobs = descriptors(&dataset, field_id, &work.column, &distinct).await?;
        let mut files = open_whole(&dataset, &work.column, &distinct, &mut blobs).await?;

        let budget = cx.memory_budget();
        let mut known: HashMap<(&Blob, Range<u64>), usize> = HashMap::new();
        let mut units: Vec<Unit> = Vec::new();
        let mut cells = Vec::with_capacity(addresses.len());
        for (i, address) in addresses.iter().enumerate() {
            let place = distinct.binary_search(address).unwrap_or_default();
            let Some(blob) = &blobs[place] else {
                cells.push(Cell::Null);
                continue;
            };
            let size = blob.size.unwrap_or_default();
            let range = match work.ranges.as_ref().and_then(|r| r.get(i).copied().flatten()) {
                None => 0..size,
                Some(range) => match range.end().filter(|end| *end <= size) {
                    Some(end) => range.offset..end,
                    None => {
                        return Err(Error::invalid(format!(
                            "{}: the range of {} bytes from {} on is beyond the end of its blob of \
                             {size} bytes",
                            keys.name(i),
                            range.size,
                            range.offset
                        )));
                    }
                },
            };
            if range.is_empty() {
                cells.push(Cell::Empty);
                continue;
            }
            let next = units.len();
            let unit = *known.entry((blob, range.clone())).or_insert(next);
            if unit == next {
                let file = files.get(&place).cloned();
                let new = Unit { address: *address, range, file, last: 0 };
                if new.memory() > budget {
                    return Err(Error::new(
                        ErrorCode::BudgetExceeded,
                        format!(
                            "{}: {} bytes of its blob are wanted, which do not fit into the \
                             executor's memory budget of {budget} bytes; take it by ranges or raise \
                             memory_budget",
                            keys.name(i),
                            new.size()
                        ),
                    ));
                }
                units.push(new);
            }
            cells.push(Cell::Unit(unit));
        }
        drop(known);
        let large: Vec<usize> = (0..units.len())
            .filter(|u| units[*u].size() > LARGE && units[*u].file.is_none())
            .collect();
        let wanted: Vec<u64> = large.iter().map(|u| units[*u].address).collect();
        files = open(&dataset, &work.column, &wanted).await?;
        for (i, unit) in large.into_iter().enumerate() {
            units[unit].file = files.get(&i).cloned();
        }

        let share = cx.memory_share();
        let most = work.max_bytes_per_batch.unwrap_or(BATCH).min(share / 4).max(1);
        let mut batches = cut(&cells, &mut units, most);
        let mut kept = keep(&mut batches, &units, KEEP.min(share / 4));
        let mut ahead = AHEAD;
        while ahead > 1 && memory(&batches, &units, ahead) + kept > share {
            ahead -= 1;
        }
        if memory(&batches, &units, ahead) + kept > budget {
            kept = keep(&mut batches, &units, 0);
        }
        let memory = memory(&batches, &units, ahead) + kept;
        Ok(Self {
            column: work.column.clone(),
            schema,
            keys: keys.values().to_vec(),
            cells,
            units,
            batches,
            ahead,
            memory,
            dataset,
        })
    }

    /// Bytes that reading holds at most.
    pub(super) fn memory(&self) -> u64 {
        self.memory
    }

    pub(super) fn stream(self) -> impl Stream<Item = Result<RecordBatch>> + Send + 'static {
        let payloads = Arc::new(self);
        let ahead = payloads.ahead;
        let reader = payloads.clone();
        let fetched = futures::stream::iter(0..payloads.batches.len())
            .map(move |i| {
                let payloads = reader.clone();
                async move { Ok((i, payloads.fetch(&payloads.batches[i].fetch).await?)) }
            })
            .buffered(ahead);
        let mut kept: HashMap<usize, Bytes> = HashMap::new();
        fetched.map(move |fetched: Result<_>| {
            let (i, fetched) = fetched?;
            payloads.batch(i, fetched, &mut kept)
        })
    }

    fn batch(
        &self,
        i: usize,
        fetched: HashMap<usize, Bytes>,
        kept: &mut HashMap<usize, Bytes>,
    ) -> Result<RecordBatch> {
        let batch = &self.batches[i];
        let payload = |unit: usize| {
            let found = fetched.get(&unit).or_else(|| kept.get(&unit)).cloned();
            found.ok_or_else(|| Error::internal("a payload was not read"))
        };
        let blobs: ArrayRef = match &self.cells[batch.rows.clone()] {
            // Not copied: it may be very large.
            [Cell::Unit(unit)] => {
                let payload = payload(*unit)?;
                let offsets = OffsetBuffer::<i64>::from_lengths([payload.len()]);
                Arc::new(LargeBinaryArray::try_new(offsets, Buffer::from(payload), None)?)
            }
            cells => {
                let bytes = batch.bytes as usize;
                let mut builder = LargeBinaryBuilder::with_capacity(cells.len(), bytes);
                for cell in cells {
                    match cell {
                        Cell::Null => builder.append_null(),
                        Cell::Empty => builder.append_value([]),
                        Cell::Unit(unit) => builder.append_value(payload(*unit)?),
                    }
                }
                Arc::new(builder.finish())
            }
        };
        for unit in &batch.keep {
            // A copy: what was read may be a part of a larger buffer.
            kept.extend(fetched.get(unit).map(|p| (*unit, Bytes::copy_from_slice(p))));
        }
        for unit in batch.units.iter().filter(|unit| self.units[**unit].last == i) {
            kept.remove(unit);
        }
        let keys = Arc::new(UInt64Array::from(self.keys[batch.rows.clone()].to_vec()));
        Ok(RecordBatch::try_new(self.schema.clone(), vec![keys, blobs])?)
    }

    async fn fetch(&self, wanted: &[usize]) -> Result<HashMap<usize, Bytes>> {
        let (alone, mut together): (Vec<usize>, Vec<usize>) =
            wanted.iter().partition(|unit| self.units[**unit].file.is_some());
        let mut fetched = HashMap::with_capacity(alone.len() + together.len());
        if !together.is_empty() {
            together.sort_unstable_by_key(|unit| self.units[*unit].address);
            let requests: Vec<_> = together
                .iter()
                .map(|unit| &self.units[*unit])
                .map(|unit| BlobRangeRequest::new(unit.address, unit.range.start, unit.size()))
                .collect();
            // Lance joins what is adjacent and what overlaps.
            let reads = self.dataset.read_blob_ranges(&self.column)?.with_row_addresses(requests);
            for read in reads.preserve_order(false).execute().await? {
                if let (Some(unit), Some(data)) = (together.get(read.request_index), read.data) {
                    fetched.insert(*unit, data);
                }
            }
        }
        let (small, large): (Vec<usize>, Vec<usize>) =
            alone.into_iter().partition(|unit| self.units[*unit].size() <= LARGE);
        let small: Vec<_> = futures::stream::iter(small)
            .map(|unit| async move { Ok::<_, Error>((unit, self.whole(unit).await?)) })
            .buffer_unordered(self.dataset.object_store(None).await?.io_parallelism().max(1))
            .try_collect()
            .await?;
        fetched.extend(small);
        for unit in large {
            fetched.insert(unit, self.in_pieces(unit).await?);
        }
        for (unit, data) in &fetched {
            let size = self.units[*unit].size();
            if data.len() as u64 != size {
                let text = format!("{} bytes of a blob were read, not {size}", data.len());
                return Err(Error::new(ErrorCode::Io, text));
            }
        }
        Ok(fetched)
    }

    async fn whole(&self, unit: usize) -> Result<Bytes> {
        let unit = &self.units[unit];
        let file = unit.file.as_ref().ok_or_else(|| Error::internal("a blob is not open"))?;
        Ok(file.read_range(unit.range.clone()).await?)
    }

    async fn in_pieces(&self, unit: usize) -> Result<Bytes> {
        let unit = &self.units[unit];
        let file = unit.file.as_ref().ok_or_else(|| Error::internal("a blob is not open"))?;
        let mut data = Vec::with_capacity(unit.size() as usize);
        let pieces = unit.range.clone().step_by(PIECE as usize).map(|start| {
            let end = unit.range.end.min(start + PIECE);
            async move { file.read_range(start..end).await }
        });
        let mut pieces = futures::stream::iter(pieces).buffered(PIECES);
        while let Some(piece) = pieces.try_next().await? {
            data.extend_from_slice(&piece);
        }
        Ok(data.into())
    }
}

impl Batch {
    /// Bytes that fetching its payloads takes.
    fn fetching(&self, units: &[Unit]) -> u64 {
        let (mut together, mut large) = (0, 0);
        for unit in self.fetch.iter().map(|unit| &units[*unit]) {
            *if unit.size() > LARGE { &mut large } else { &mut together } += unit.size();
        }
        let together = if together > LARGE { 2 * together } else { together };
        together + large + if large > 0 { IN_FLIGHT } else { 0 }
    }

    /// Bytes that making it alone takes: what is read, and the copy that is handed out.
    fn memory(&self, units: &[Unit]) -> u64 {
        self.fetching(units) + if self.rows.len() == 1 { 0 } else { self.bytes }
    }
}

/// Bytes that batches take at most of which so many are fetched at one time.
fn memory(batches: &[Batch], units: &[Unit], ahead: usize) -> u64 {
    if ahead == 1 {
        return batches.iter().map(|batch| batch.memory(units)).max().unwrap_or_default();
    }
    let fetching: Vec<u64> = batches.iter().map(|batch| batch.fetching(units)).collect();
    let windows = fetching.windows(ahead.min(fetching.len()).max(1));
    let most = windows.map(|window| window.iter().sum::<u64>()).max().unwrap_or_default();
    // And the one that waits for the caller.
    most + batches.iter().map(|batch| batch.bytes).max().unwrap_or_default()
}

/// Decide what is fetched for each batch and what is kept for later ones, within so many bytes;
/// answers with the bytes that are.
fn keep(batches: &mut [Batch], units: &[Unit], within: u64) -> u64 {
    let mut kept: HashSet<usize> = HashSet::new();
    let (mut held, mut most) = (0, 0);
    for (i, batch) in batches.iter_mut().enumerate() {
        batch.fetch = batch.units.iter().copied().filter(|unit| !kept.contains(unit)).collect();
        batch.keep.clear();
        for unit in &batch.fetch {
            let size = units[*unit].size();
            if units[*unit].last > i && held + size <= within {
                held += size;
                kept.insert(*unit);
                batch.keep.push(*unit);
            }
        }
        most = held.max(most);
        for unit in &batch.units {
            if units[*unit].last == i && kept.remove(unit) {
                held -= units[*unit].size();
            }
        }
    }
    most
}

/// Cut the rows into batches of so many bytes, or of one row that has more.
fn cut(cells: &[Cell], units: &mut [Unit], most: u64) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    let mut seen: HashMap<usize, usize> = HashMap::new();
    for (row, cell) in cells.iter().enumerate() {
        let size = match cell {
            Cell::Unit(unit) => units[*unit].size(),
            Cell::Null | Cell::Empty => 0,
        };
        let fits = batches.last().is_some_and(|batch| batch.bytes.saturating_add(size) <= most);
        if !fits {
            batches.push(Batch {
                rows: row..row,
                units: Vec::new(),
                fetch: Vec::new(),
                keep: Vec::new(),
                bytes: 0,
            });
        }
        let at = batches.len() - 1;
        let batch = &mut batches[at];
        batch.rows.end = row + 1;
        batch.bytes += size;
        if let Cell::Unit(unit) = cell
            && seen.insert(*unit, at) != Some(at)
        {
            batch.units.push(*unit);
            units[*unit].last = at;
        }
    }
    batches
}

/// Handles of the blobs whose size their descriptors do not tell (whole external objects), by their
/// places among `addresses`; their sizes are filled in. Rows of one object share one handle.
async fn open_whole(
    dataset: &Arc<Dataset>,
    column: &str,
    addresses: &[u64],
    blobs: &mut [Option<Blob>],
) -> Result<HashMap<usize, Arc<BlobFile>>> {
    let mut first: HashMap<Blob, usize> = HashMap::new();
    let mut wanted = Vec::new();
    let mut rows = Vec::new();
    for (place, blob) in blobs.iter().enumerate() {
        let Some(blob) = blob.as_ref().filter(|blob| blob.size.is_none()) else { continue };
        let at = *first.entry(blob.clone()).or_insert(wanted.len());
        if at == wanted.len() {
            wanted.push(addresses[place]);
        }
        rows.push((place, at));
    }
    let opened = open(dataset, column, &wanted).await?;
    let mut files = HashMap::new();
    for (place, at) in rows {
        let file = opened.get(&at).ok_or_else(|| Error::internal("a blob was not opened"))?;
        if let Some(blob) = &mut blobs[place] {
            blob.size = Some(file.size());
        }
        files.insert(place, file.clone());
    }
    Ok(files)
}

/// Handles by their places among `addresses`.
async fn open(
    dataset: &Arc<Dataset>,
    column: &str,
    addresses: &[u64],
) -> Result<HashMap<usize, Arc<BlobFile>>> {
    let some: Vec<Vec<u64>> = addresses.chunks(HANDLES).map(<[u64]>::to_vec).collect();
    let opened: Vec<Vec<Option<BlobFile>>> = futures::stream::iter(some)
        .map(|some| async move { dataset.take_blobs_by_addresses(&some, column).await })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    let files = opened.into_iter().flatten().enumerate();
    Ok(files.filter_map(|(i, file)| Some((i, Arc::new(file?)))).collect())
}
