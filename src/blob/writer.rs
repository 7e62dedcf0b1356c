//! The blobs of one data file: payloads go beside it, what stays in it says where they are.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, ArrayRef, RecordBatch, StructArray};
use arrow_buffer::Buffer;
use arrow_schema::{DataType, SchemaRef};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use lance::{BlobDescriptor, BlobDescriptorArrayBuilder};
use object_store::path::Path;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::external::{Externals, Mode};
use super::fields::Leaf;
use super::managed::{self, Known};
use super::share::{Dedup, Hash, Key, LEAST, Scope, Shared};
use super::sidecar::{Beside, Sidecars, Source};
use super::values::{Values, collect, replace};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use crate::marks::Mark;

/// Bytes that may wait in memory until they are written, handed out in units.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    units: Arc<Semaphore>,
    total: u32,
}

/// A part of them, given back when it is dropped.
pub(crate) type Held = Arc<OwnedSemaphorePermit>;

/// The unit in which waiting bytes are counted.
pub(crate) const UNIT: u64 = 64 << 10;

impl Waiting {
    pub fn new(bytes: u64) -> Self {
        let total = (bytes / UNIT).clamp(1, u32::MAX as u64) as u32;
        Self { units: Arc::new(Semaphore::new(total as usize)), total }
    }

    pub fn bytes(&self) -> u64 {
        u64::from(self.total) * UNIT
    }

    /// Wait for room; `None` where there never will be, beside `other` units.
    pub async fn take(&self, bytes: u64, other: usize) -> Result<Option<Held>> {
        let units = bytes.div_ceil(UNIT).max(1);
        if units + other as u64 > u64::from(self.total) {
            return Ok(None);
        }
        let held = self.units.clone().acquire_many_owned(units as u32).await;
        held.map(|held| Some(Arc::new(held))).map_err(|_| Error::internal("the sink is closed"))
    }
}

/// What the data files of a task have in common.
pub(crate) struct Blobs {
    pub leaves: Vec<Leaf>,
    /// The dataset's schema, which says which columns are blobs; and the one with prepared values.
    pub schema: SchemaRef,
    pub prepared: SchemaRef,
    pub dedup: Dedup,
    pub scope: Scope,
    /// For a blob column the place of the column that has its `ref_id`s.
    pub ref_ids: HashMap<usize, usize>,
    pub externals: Externals,
    /// Payloads of committed rows, and the dataset's root; for the scope of the dataset.
    pub known: Arc<Known>,
    pub root: Path,
    pub mark: Mark,
    pub memory: Waiting,
}

/// See the module.
pub(crate) struct BlobWriter {
    blobs: Arc<Blobs>,
    sidecars: Sidecars,
    shared: Shared,
}

/// Bytes of an Arrow buffer, shared and not copied.
struct Part(Buffer);

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

/// A value before it has its place.
enum Value {
    /// Has it already: null, or somewhere else.
    Placed(BlobDescriptor),
    Bytes(Bytes, Held),
}

impl BlobWriter {
    pub fn new(running: &Running, blobs: &Arc<Blobs>, beside: Beside) -> Self {
        Self {
            blobs: blobs.clone(),
            sidecars: Sidecars::new(running, beside),
            shared: Shared::default(),
        }
    }

    /// Take the payloads out of a batch whose first row is row `first` of the task; `memory` is held
    /// until they are written.
    ///
    /// # Errors
    /// Name the column and the row: a value with both bytes and a URI, or neither; a range without its
    /// size; a missing object; different bytes under one `ref_id`.
    pub async fn write(
        &mut self,
        batch: &RecordBatch,
        first: u64,
        memory: Held,
    ) -> Result<RecordBatch> {
        self.sidecars.check()?;
        let blobs = self.blobs.clone();
        let (columns, leaves) = collect(&blobs.schema, batch)?;
        let mut arrays = Vec::with_capacity(leaves.len());
        for (leaf, values) in leaves.iter().enumerate() {
            let column = Column::new(&blobs, leaf, values, batch, first)?;
            let found = column.values(&memory).await?;
            arrays.push(self.placed(&column, found).await?);
        }
        replace(&blobs.prepared, columns, batch.num_rows(), arrays)
    }

    async fn placed(&mut self, column: &Column<'_>, values: Vec<Value>) -> Result<ArrayRef> {
        let hashes = self.hashes(column, &values).await?;
        let mut placed = Vec::with_capacity(values.len());
        for ((at, value), hash) in values.into_iter().enumerate().zip(hashes) {
            placed.push(match value {
                Value::Placed(descriptor) => descriptor,
                Value::Bytes(bytes, memory) => match hash {
                    Some(hash) => self.share(column, at, bytes, hash, memory)?,
                    None => self.store(column.leaf(), bytes, memory, false)?,
                },
            });
        }
        prepared(placed)
    }

    /// The hash of each value that may be shared.
    async fn hashes(&self, column: &Column<'_>, values: &[Value]) -> Result<Vec<Option<Hash>>> {
        let candidates: Vec<Option<Bytes>> = values
            .iter()
            .enumerate()
            .map(|(at, value)| match value {
                Value::Bytes(bytes, _) if column.shares(at, bytes.len()) => Some(bytes.clone()),
                _ => None,
            })
            .collect();
        if candidates.iter().all(Option::is_none) {
            return Ok(vec![None; values.len()]);
        }
        let hash = |bytes: Bytes| *blake3::hash(&bytes).as_bytes();
        tokio::task::spawn_blocking(move || candidates.into_iter().map(|c| c.map(hash)).collect())
            .await
            .map_err(|e| Error::internal(format!("hashing: {e}")))
    }

    fn share(
        &mut self,
        column: &Column<'_>,
        at: usize,
        bytes: Bytes,
        hash: Hash,
        memory: Held,
    ) -> Result<BlobDescriptor> {
        let (size, row, leaf) = (bytes.len() as u64, column.row(at), column.leaf());
        let by_ref = column.ref_id(at).map(|id| Key::Ref { leaf: column.index, id });
        let by_content = Key::Content { hash, size };
        let content = self.blobs.dedup == Dedup::Content || self.blobs.scope == Scope::Dataset;
        let keys: Vec<Key> = by_ref.into_iter().chain(content.then_some(by_content)).collect();
        let mut found = None;
        for key in &keys {
            found = found.or(self.shared.find(key, &leaf.path, row, &hash, size)?);
        }
        let place = match found {
            Some(place) => place,
            None if self.blobs.scope == Scope::Dataset => {
                let uri = match self.blobs.known.get(&hash) {
                    Some(uri) => uri.clone(),
                    None => {
                        let uri = managed::path(self.blobs.mark, &hash);
                        self.sidecars.place(&self.blobs.root, &uri, (bytes, memory));
                        uri
                    }
                };
                BlobDescriptor::Managed { base_id: None, uri, offset: 0, size }
            }
            None => self.store(leaf, bytes, memory, true)?,
        };
        for key in keys {
            self.shared.insert(key, row, hash, size, place.clone());
        }
        Ok(place)
    }

    /// By its size: into the data file, a pack, or a file of its own. What is shared cannot be in the
    /// data file, where each row has bytes of its own.
    fn store(
        &mut self,
        leaf: &Leaf,
        bytes: Bytes,
        memory: Held,
        shared: bool,
    ) -> Result<BlobDescriptor> {
        let size = bytes.len() as u64;
        if size == 0 || (size <= leaf.inline && !shared) {
            return Ok(BlobDescriptor::Inline { data: bytes });
        }
        if size > leaf.dedicated {
            let blob_id = self.sidecars.dedicate(Source::Here((bytes, memory)))?;
            return Ok(BlobDescriptor::Dedicated { blob_id, size });
        }
        let (blob_id, offset) = self.sidecars.pack(size, leaf.pack, (bytes, memory))?;
        Ok(BlobDescriptor::Packed { blob_id, offset, size })
    }

    /// The payloads' files, to be waited for.
    pub fn into_sidecars(self) -> Sidecars {
        self.sidecars
    }
}

/// Values as Lance's writer takes them.
pub(crate) fn prepared(values: Vec<BlobDescriptor>) -> Result<ArrayRef> {
    let mut builder = BlobDescriptorArrayBuilder::new("blob");
    builder.extend(values)?;
    Ok(builder.finish()?.into_parts().1)
}

/// A value that is an object, or a part of it: its position and size.
struct Reference {
    at: usize,
    uri: String,
    range: Option<(u64, u64)>,
}

/// One blob column of a batch.
struct Column<'a> {
    blobs: &'a Blobs,
    index: usize,
    values: &'a Values,
    ref_ids: Option<ArrayRef>,
    first: u64,
}

impl<'a> Column<'a> {
    fn new(
        blobs: &'a Blobs,
        index: usize,
        values: &'a Values,
        batch: &RecordBatch,
        first: u64,
    ) -> Result<Self> {
        let ref_ids = match blobs.ref_ids.get(&index) {
            None => values.array.column_by_name("ref_id").cloned(),
            Some(column) => {
                let ids = batch.column(*column);
                let strict = arrow_cast::CastOptions { safe: false, ..Default::default() };
                let cast = arrow_cast::cast_with_options(ids, &DataType::UInt64, &strict);
                let name = batch.schema_ref().field(*column).name().clone();
                Some(cast.map_err(|e| {
                    Error::new(ErrorCode::SchemaMismatch, format!("ref_id column {name:?}: {e}"))
                })?)
            }
        };
        Ok(Self { blobs, index, values, ref_ids, first })
    }

    fn leaf(&self) -> &'a Leaf {
        &self.blobs.leaves[self.index]
    }

    fn row(&self, at: usize) -> u64 {
        self.first + self.values.row(at) as u64
    }

    fn wrong(&self, at: usize, why: impl std::fmt::Display) -> Error {
        Error::invalid(format!("column {:?}, row {}: {why}", self.leaf().path, self.row(at)))
    }

    /// The positive `ref_id` of a value.
    fn ref_id(&self, at: usize) -> Option<u64> {
        let ids = self.ref_ids.as_ref()?.as_primitive::<UInt64Type>();
        (ids.is_valid(at) && ids.value(at) > 0).then(|| ids.value(at))
    }

    fn shares(&self, at: usize, bytes: usize) -> bool {
        let content = self.blobs.dedup == Dedup::Content && bytes >= LEAST;
        bytes > 0 && (content || self.ref_id(at).is_some())
    }

    async fn values(&self, memory: &Held) -> Result<Vec<Value>> {
        let array = &self.values.array;
        let child = |name: &str| {
            array
                .column_by_name(name)
                .ok_or_else(|| Error::internal(format!("a blob column without {name:?}")))
        };
        let (data, uris) = (child("data")?.as_binary::<i64>(), child("uri")?.as_string::<i32>());
        let positions = child("position")?.as_primitive::<UInt64Type>();
        let sizes = child("size")?.as_primitive::<UInt64Type>();
        let mut external = Vec::new();
        let mut values = Vec::with_capacity(array.len());
        for at in 0..array.len() {
            if array.is_null(at) {
                values.push(Value::Placed(BlobDescriptor::Null));
                continue;
            }
            let (bytes, uri) = (data.is_valid(at), uris.is_valid(at));
            let (position, size) = (positions.is_valid(at), sizes.is_valid(at));
            if bytes == uri {
                let which = if bytes { "both" } else { "neither" };
                return Err(self.wrong(
                    at,
                    format!("{which} of data and uri; a value that is not null has one of them"),
                ));
            }
            if position != size {
                let (one, other) =
                    if position { ("position", "size") } else { ("size", "position") };
                return Err(self.wrong(at, format!("a {one} without a {other}")));
            }
            if position && bytes {
                return Err(self.wrong(at, "position and size are for a uri, it has data"));
            }
            if bytes {
                let offsets = data.value_offsets();
                let (start, end) = (offsets[at] as usize, offsets[at + 1] as usize);
                let part = Part(data.values().slice_with_length(start, end - start));
                values.push(Value::Bytes(Bytes::from_owner(part), memory.clone()));
                continue;
            }
            let range = position.then(|| (positions.value(at), sizes.value(at)));
            if range.is_some_and(|(_, size)| size == 0) {
                return Err(self.wrong(at, "the size of a part of an object is 0"));
            }
            external.push(Reference { at, uri: uris.value(at).to_owned(), range });
            values.push(Value::Placed(BlobDescriptor::Null));
        }
        for (at, value) in self.external(external, memory).await? {
            values[at] = value;
        }
        Ok(values)
    }

    /// Look the objects at URIs up, several at once.
    async fn external(&self, uris: Vec<Reference>, other: &Held) -> Result<Vec<(usize, Value)>> {
        let externals = &self.blobs.externals;
        let look = uris.into_iter().map(|Reference { at, uri, range }| async move {
            let of = || format!("column {:?}, row {}", self.leaf().path, self.row(at));
            let found = externals.find(&uri, &of).await?;
            if let Some((position, size)) = range
                && position.checked_add(size).is_none_or(|end| end > found.size)
            {
                return Err(self.wrong(
                    at,
                    format!(
                        "bytes {position} to {} of {uri:?}, which has {}",
                        position.saturating_add(size),
                        found.size
                    ),
                ));
            }
            if externals.mode != Mode::Ingest {
                // With its size, a reader need not ask for it.
                let (offset, size) = range.unwrap_or((0, found.size));
                let (base_id, uri) = (found.base_id, found.uri.clone());
                let place = BlobDescriptor::External { base_id, uri, offset, size };
                return Ok((at, Value::Placed(place)));
            }
            let (offset, size) = range.unwrap_or((0, found.size));
            let memory = self.memory(at, size, other).await?;
            let bytes = found.read(offset..offset + size).await?;
            Ok((at, Value::Bytes(bytes, memory)))
        });
        futures::stream::iter(look).buffered(16).try_collect().await
    }

    async fn memory(&self, at: usize, bytes: u64, other: &Held) -> Result<Held> {
        let memory = self.blobs.memory.take(bytes, other.num_permits()).await?;
        memory.ok_or_else(|| self.too_large(at, bytes))
    }

    fn too_large(&self, at: usize, bytes: u64) -> Error {
        too_large(&self.blobs.memory, &self.leaf().path, self.row(at), bytes)
    }
}

fn too_large(memory: &Waiting, path: &str, row: u64, bytes: u64) -> Error {
    Error::new(
        ErrorCode::BudgetExceeded,
        format!(
            "column {path:?}, row {row}: {bytes} bytes to be copied, the task may hold {}; raise \
             memory_budget",
            memory.bytes()
        ),
    )
}

/// How many rows of a batch have objects of at most `enough` bytes together at their URIs, at least one:
/// batches whose objects are copied are cut so.
///
/// # Errors
/// `BUDGET_EXCEEDED` names the row whose objects are too large.
pub(crate) async fn rows_to_copy(
    blobs: &Blobs,
    batch: &RecordBatch,
    first: u64,
    enough: u64,
) -> Result<usize> {
    let (_, leaves) = collect(&blobs.schema, batch)?;
    let mut bytes = vec![0u64; batch.num_rows()];
    for (leaf, values) in blobs.leaves.iter().zip(&leaves) {
        let array: &StructArray = &values.array;
        let (Some(uris), Some(sizes)) = (array.column_by_name("uri"), array.column_by_name("size"))
        else {
            continue;
        };
        let (uris, sizes) = (uris.as_string::<i32>(), sizes.as_primitive::<UInt64Type>());
        let mut sum = 0;
        for at in (0..array.len()).filter(|at| array.is_valid(*at) && uris.is_valid(*at)) {
            let row = values.row(at);
            if row > 0 && sum > enough {
                break;
            }
            let of = || format!("column {:?}, row {}", leaf.path, first + row as u64);
            // A part beyond the object's end is not for here to say.
            let all = blobs.externals.find(uris.value(at), &of).await?.size;
            let size = if sizes.is_valid(at) { sizes.value(at).min(all) } else { all };
            bytes[row] += size;
            sum += size;
        }
        // What the batch itself holds comes on top.
        if bytes[0] > blobs.memory.bytes().saturating_sub(enough / 4) {
            return Err(too_large(&blobs.memory, &leaf.path, first, bytes[0]));
        }
    }
    let mut sum = 0;
    let fits = bytes.iter().take_while(|size| {
        sum += **size;
        sum <= enough
    });
    Ok(fits.count().max(1))
}
