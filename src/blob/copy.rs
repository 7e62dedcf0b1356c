//! Payloads of rows that exist already, copied beside a new data file: each once, however many rows
//! share it, and never decoded.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{UInt8Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, StringArray, StructArray};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use lance::{BlobDescriptor, Dataset};
use lance_core::datatypes::{BlobKind, BlobV2Layout};
use lance_core::utils::blob::blob_path;
use lance_io::object_store::ObjectStore;
use lance_table::format::Fragment;
use object_store::path::Path;

use super::fields::Leaf;
use super::sidecar::{Sidecars, Source};
use super::values::Values;
use super::writer::{Held, Waiting, prepared};
use crate::dataset::{bases_of, data_file_path, join};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;

/// A data file that payloads are read from.
struct Origin {
    base: Option<u32>,
    store: Arc<ObjectStore>,
    data_file: Path,
}

/// The data files of some fragments, by fragment and field.
pub(crate) struct Origins {
    files: Vec<Origin>,
    places: HashMap<(u32, i32), usize>,
}

impl Origins {
    /// `fields` are the ids of the blob columns.
    pub async fn of(
        running: &Running,
        uri: &str,
        dataset: &Dataset,
        fragments: &[Fragment],
        fields: &[i32],
    ) -> Result<Self> {
        let bases = bases_of(dataset);
        let mut origins = Self { files: Vec::new(), places: HashMap::new() };
        let mut known: HashMap<(Option<u32>, &str), usize> = HashMap::new();
        for fragment in fragments {
            for field in fields {
                let holds = |f: &&lance_table::format::DataFile| f.fields.contains(field);
                let Some(file) = fragment.files.iter().find(holds) else { continue };
                let key = (file.base_id, file.path.as_str());
                let place = match known.get(&key) {
                    Some(place) => *place,
                    None => {
                        let datasets = running.datasets();
                        let options = &running.call.storage_options;
                        let (store, root) = match file.base_id.and_then(|id| bases.get(&id)) {
                            Some(base) => datasets.base_store(base, options).await?,
                            None => datasets.store(uri, options).await?,
                        };
                        let path = data_file_path(&file.path, file.base_id, &bases);
                        let data_file = join(&root, &path);
                        origins.files.push(Origin { base: file.base_id, store, data_file });
                        known.insert(key, origins.files.len() - 1);
                        origins.files.len() - 1
                    }
                };
                origins.places.insert((fragment.id as u32, *field), place);
            }
        }
        Ok(origins)
    }

    fn find(&self, row_address: u64, field: i32) -> Result<usize> {
        let fragment = (row_address >> 32) as u32;
        self.places.get(&(fragment, field)).copied().ok_or_else(|| {
            Error::internal(format!("fragment {fragment} has no data file of field {field}"))
        })
    }
}

/// Where a payload lies: what tells whether rows share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Lying {
    origin: usize,
    kind: u8,
    blob_id: u32,
    position: u64,
    pub size: u64,
}

impl Lying {
    fn is_inline(&self) -> bool {
        self.kind == BlobKind::Inline as u8
    }

    fn is_dedicated(&self) -> bool {
        self.kind == BlobKind::Dedicated as u8
    }
}

/// One blob column of rows that exist.
pub(crate) struct Stored<'a> {
    array: &'a StructArray,
    kinds: &'a arrow_array::UInt8Array,
    positions: &'a arrow_array::UInt64Array,
    sizes: &'a arrow_array::UInt64Array,
    blob_ids: &'a arrow_array::UInt32Array,
    uris: &'a StringArray,
    values: &'a Values,
    field: i32,
    rows: &'a [u64],
}

impl<'a> Stored<'a> {
    /// `rows` are the addresses of the batch's rows.
    pub fn new(values: &'a Values, field: i32, rows: &'a [u64]) -> Result<Self> {
        let array = &values.array;
        if BlobV2Layout::classify(array.fields()) != Some(BlobV2Layout::Descriptor) {
            return Err(Error::internal("a scan of blobs gave no descriptors"));
        }
        Ok(Self {
            array,
            kinds: array.column(0).as_primitive::<UInt8Type>(),
            positions: array.column(1).as_primitive::<UInt64Type>(),
            sizes: array.column(2).as_primitive::<UInt64Type>(),
            blob_ids: array.column(3).as_primitive::<UInt32Type>(),
            uris: array.column(4).as_string(),
            values,
            field,
            rows,
        })
    }

    pub fn len(&self) -> usize {
        self.array.len()
    }

    pub fn row(&self, at: usize) -> usize {
        self.values.row(at)
    }

    fn origin(&self, origins: &Origins, at: usize) -> Result<usize> {
        origins.find(self.rows.get(self.row(at)).copied().unwrap_or_default(), self.field)
    }

    /// Where a payload lies that has to be copied; `None` for nulls, empty ones, and those that are not
    /// the data file's own.
    pub fn lying(&self, origins: &Origins, at: usize) -> Result<Option<Lying>> {
        if self.array.is_null(at) || self.sizes.value(at) == 0 {
            return Ok(None);
        }
        let kind = BlobKind::try_from(self.kinds.value(at))?;
        if !matches!(kind, BlobKind::Inline | BlobKind::Packed | BlobKind::Dedicated) {
            return Ok(None);
        }
        Ok(Some(Lying {
            origin: self.origin(origins, at)?,
            kind: kind as u8,
            blob_id: self.blob_ids.value(at),
            position: self.positions.value(at),
            size: self.sizes.value(at),
        }))
    }

    /// A value that says the same in any data file of the dataset's own storage.
    fn kept(&self, origins: &Origins, at: usize) -> Result<BlobDescriptor> {
        if self.array.is_null(at) {
            return Ok(BlobDescriptor::Null);
        }
        let (uri, blob_id) = (self.uris.value(at).to_owned(), self.blob_ids.value(at));
        let (offset, size) = (self.positions.value(at), self.sizes.value(at));
        Ok(match BlobKind::try_from(self.kinds.value(at))? {
            BlobKind::External => BlobDescriptor::External { base_id: blob_id, uri, offset, size },
            BlobKind::ManagedWithBase => {
                BlobDescriptor::Managed { base_id: Some(blob_id), uri, offset, size }
            }
            BlobKind::Managed => {
                let base_id = origins.files[self.origin(origins, at)?].base;
                BlobDescriptor::Managed { base_id, uri, offset, size }
            }
            _ => BlobDescriptor::Inline { data: Bytes::new() },
        })
    }
}

/// What one new data file has of payloads already.
pub(crate) struct Copier<'a> {
    pub origins: &'a Origins,
    pub sidecars: Sidecars,
    /// The sizes of payloads that rows share.
    sizes: &'a HashSet<u64>,
    pub waiting: &'a Waiting,
    copied: HashMap<Lying, BlobDescriptor>,
    /// Of payloads that will be in the data file, until they are.
    held: Vec<Held>,
    /// Shared payloads by their bytes: the same may lie in several files.
    same: HashMap<(blake3::Hash, u64), BlobDescriptor>,
}

impl<'a> Copier<'a> {
    pub fn new(
        origins: &'a Origins,
        sizes: &'a HashSet<u64>,
        waiting: &'a Waiting,
        sidecars: Sidecars,
    ) -> Self {
        let (copied, same, held) = (HashMap::new(), HashMap::new(), Vec::new());
        Self { origins, sidecars, sizes, waiting, copied, same, held }
    }

    /// How many rows can be copied with at most `enough` bytes in memory, at least one.
    pub fn rows(&self, columns: &[Stored<'_>], rows: usize, enough: u64) -> Result<usize> {
        let mut bytes = vec![0u64; rows];
        for column in columns {
            for at in 0..column.len() {
                if let Some(lying) = column.lying(self.origins, at)?
                    && !self.copied.contains_key(&lying)
                    && !lying.is_dedicated()
                    && let Some(row) = bytes.get_mut(column.row(at))
                {
                    *row += lying.size;
                }
            }
        }
        let mut sum = 0;
        let fits = bytes.iter().take_while(|size| {
            sum += **size;
            sum <= enough
        });
        Ok(fits.count().max(1))
    }

    /// The memory of values since this was last asked for, to be held until they are written.
    pub fn held(&mut self) -> Vec<Held> {
        std::mem::take(&mut self.held)
    }

    /// The values of a column for the new file.
    pub async fn column(&mut self, column: &Stored<'_>, leaf: &Leaf) -> Result<ArrayRef> {
        self.sidecars.check()?;
        let (mut wanted, mut seen) = (Vec::new(), HashSet::new());
        let mut places = Vec::with_capacity(column.len());
        for at in 0..column.len() {
            let lying = column.lying(self.origins, at)?;
            if let Some(lying) = lying
                && !self.copied.contains_key(&lying)
                && seen.insert(lying)
            {
                wanted.push(lying);
            }
            places.push(lying);
        }
        let inline = self.copy(wanted, leaf).await?;
        let values = places.into_iter().enumerate().map(|(at, lying)| match lying {
            None => column.kept(self.origins, at),
            Some(lying) if lying.is_inline() => inline
                .get(&lying)
                .map(|data| BlobDescriptor::Inline { data: data.clone() })
                .ok_or_else(|| Error::internal("a payload was not read")),
            Some(lying) => self
                .copied
                .get(&lying)
                .cloned()
                .ok_or_else(|| Error::internal("a payload was not copied")),
        });
        prepared(values.collect::<Result<_>>()?)
    }

    /// Copy payloads; those that lie in the data file itself come back.
    async fn copy(&mut self, wanted: Vec<Lying>, leaf: &Leaf) -> Result<HashMap<Lying, Bytes>> {
        let (large, small): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|lying| {
            lying.is_dedicated()
                && (!self.is_shared(lying) || lying.size > self.waiting.bytes() / 4)
        });
        for lying in large {
            let origin = &self.origins.files[lying.origin];
            let (store, path) = (origin.store.clone(), path(origin, &lying)?);
            let blob_id = self.sidecars.dedicate(Source::Copy { store, path, size: lying.size })?;
            self.copied.insert(lying, BlobDescriptor::Dedicated { blob_id, size: lying.size });
        }
        let total: u64 = small.iter().map(|lying| lying.size).sum();
        if small.is_empty() {
            return Ok(HashMap::new());
        }
        let memory = self.waiting.take(total, 0).await?;
        let memory = memory.ok_or_else(|| self.too_large(leaf, total))?;
        let mut inline = HashMap::new();
        for (lying, bytes) in self.read(small).await? {
            if lying.is_inline() {
                if inline.is_empty() {
                    self.held.push(memory.clone());
                }
                inline.insert(lying, bytes);
                continue;
            }
            let same = self.is_shared(&lying).then(|| (blake3::hash(&bytes), lying.size));
            let place = match same.and_then(|same| self.same.get(&same).cloned()) {
                Some(place) => place,
                None => {
                    let payload = (bytes, memory.clone());
                    let size = lying.size;
                    if lying.is_dedicated() {
                        let blob_id = self.sidecars.dedicate(Source::Here(payload))?;
                        BlobDescriptor::Dedicated { blob_id, size }
                    } else {
                        let (blob_id, offset) = self.sidecars.pack(size, leaf.pack, payload)?;
                        BlobDescriptor::Packed { blob_id, offset, size }
                    }
                }
            };
            if let Some(same) = same {
                self.same.insert(same, place.clone());
            }
            self.copied.insert(lying, place);
        }
        Ok(inline)
    }

    /// Whether rows share the payload, or may: another of its size is shared.
    fn is_shared(&self, lying: &Lying) -> bool {
        self.sizes.contains(&lying.size)
    }

    fn too_large(&self, leaf: &Leaf, bytes: u64) -> Error {
        Error::new(
            ErrorCode::BudgetExceeded,
            format!(
                "column {:?}: {bytes} bytes of payloads to be copied at once, the task may hold {}; \
                 raise memory_budget",
                leaf.path,
                self.waiting.bytes()
            ),
        )
    }

    /// Read payloads, those that lie close together at once.
    async fn read(&self, wanted: Vec<Lying>) -> Result<Vec<(Lying, Bytes)>> {
        let mut files: HashMap<(usize, Path), Vec<Lying>> = HashMap::new();
        for lying in wanted {
            let path = path(&self.origins.files[lying.origin], &lying)?;
            files.entry((lying.origin, path)).or_default().push(lying);
        }
        let reads = files.into_iter().map(|((origin, path), lying)| {
            let store = self.origins.files[origin].store.clone();
            async move {
                let range = |l: &Lying| -> Range<u64> {
                    let start = if l.is_dedicated() { 0 } else { l.position };
                    start..start + l.size
                };
                let ranges: Vec<_> = lying.iter().map(range).collect();
                let bytes = store.inner.get_ranges(&path, &ranges).await.map_err(|e| {
                    Error::from(lance::Error::from(e)).context(format!("payloads in {path}"))
                })?;
                Ok::<_, Error>(lying.into_iter().zip(bytes).collect::<Vec<_>>())
            }
        });
        let read: Vec<Vec<_>> =
            futures::stream::iter(reads).buffer_unordered(8).try_collect().await?;
        Ok(read.into_iter().flatten().collect())
    }
}

/// The file that a payload lies in.
fn path(origin: &Origin, lying: &Lying) -> Result<Path> {
    if lying.is_inline() {
        return Ok(origin.data_file.clone());
    }
    let (Some(name), Some(folder)) = (origin.data_file.filename(), origin.data_file.parent())
    else {
        return Err(Error::internal("a data file without a name"));
    };
    let stem = name.strip_suffix(".lance").unwrap_or(name);
    Ok(blob_path(&folder, stem, lying.blob_id))
}
