//! A job's mark: it stands in the names of all files that the job's tasks and commits write, so that
//! `abort` finds them, whether a result names them or not.
//!
//! Lance chooses names at random. [`MarkedStore`] stands between Lance and the store and gives each new
//! file its marked name: of a data file (24 binary digits that spread the load on S3, then 26 hex
//! digits) it keeps the first 24 and the last 16 digits and puts the mark between them; of an index's or a
//! transaction's uuid it keeps 56 random bits. What the job writes into metadata is renamed alike.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance_io::object_store::{ObjectStore as LanceStore, WrappingObjectStore};
use lance_table::format::Fragment;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions,
    RenameTargetMode,
};
use uuid::Uuid;

use crate::error::Result;

type StoreResult<T> = object_store::Result<T>;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark([u8; 8]);

/// Digits of a data file's name that are kept before and after the mark, and of the mark.
const HEAD: usize = 24;
const TAIL: usize = 16;
const MARK: usize = 16;
/// Digits of Lance's own names.
const RANDOM: usize = 50;

impl Mark {
    pub fn of(job: Uuid) -> Self {
        let mut mark = [0; 8];
        mark.copy_from_slice(&job.as_bytes()[..8]);
        Self(mark)
    }

    /// 56 bits of mark, the others (version and variant among them) of `uuid`.
    pub fn uuid(&self, uuid: Uuid) -> Uuid {
        let mut bytes = *uuid.as_bytes();
        bytes[..6].copy_from_slice(&self.0[..6]);
        bytes[7] = self.0[7];
        Uuid::from_bytes(bytes)
    }

    pub fn new_uuid(&self) -> Uuid {
        self.uuid(Uuid::new_v4())
    }

    pub fn owns_uuid(&self, uuid: Uuid) -> bool {
        self.uuid(uuid) == uuid
    }

    /// A name of the job's for a data file, without its ending, or for a folder beside them.
    pub fn new_name(&self) -> String {
        let random = Uuid::new_v4();
        let head: String = random.as_bytes()[12..].iter().map(|b| format!("{b:08b}")).collect();
        format!("{}{self}{}", &head[..HEAD], &random.simple().to_string()[..TAIL])
    }

    /// The marked form of a data file's name; other names stay.
    pub fn file(&self, name: &str) -> String {
        let stem = name.split('.').next().unwrap_or_default();
        if stem.len() != RANDOM || !random(stem, RANDOM) {
            return name.to_owned();
        }
        format!("{}{self}{}", &name[..HEAD], &name[RANDOM - TAIL..])
    }

    /// The marked form of a transaction file's name; other names stay.
    pub fn transaction(&self, name: &str) -> String {
        let parts = name.strip_suffix(".txn").and_then(|name| name.split_once('-'));
        match parts.and_then(|(version, id)| Some((version, Uuid::parse_str(id).ok()?))) {
            Some((version, uuid)) => format!("{version}-{}.txn", self.uuid(uuid)),
            None => name.to_owned(),
        }
    }

    pub fn fragments(&self, fragments: &mut [Fragment]) {
        for file in fragments.iter_mut().flat_map(|f| &mut f.files) {
            file.path = self.file(&file.path);
        }
    }

    /// Is this the name of a file or folder of the job, whole or still being written?
    pub fn owns(&self, name: &str) -> bool {
        let mark = self.to_string();
        let stem = name.split(['.', '#']).next().unwrap_or_default();
        if stem == mark || stem.starts_with(&format!("{mark}-")) {
            return true;
        }
        if stem.len() == HEAD + MARK + TAIL && random(stem, stem.len()) {
            return stem[HEAD..].starts_with(&mark);
        }
        let uuid = stem.split_once('-').filter(|(version, _)| version.parse::<u64>().is_ok());
        let transaction = uuid.and_then(|(_, uuid)| Uuid::try_parse(uuid).ok());
        let index = Uuid::try_parse(stem).ok();
        // A uuid may begin with eight decimal digits.
        index.or(transaction).is_some_and(|uuid| self.owns_uuid(uuid))
    }

    /// What a part of a path becomes, where it is one of Lance's random names.
    fn part(&self, folder: Option<&str>, name: &str) -> Option<String> {
        let marked = match folder {
            Some("_indices") => self.uuid(Uuid::parse_str(name).ok()?).to_string(),
            Some("_transactions") => self.transaction(name),
            _ => self.file(name),
        };
        (marked != name).then_some(marked)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn random(stem: &str, len: usize) -> bool {
    stem.len() == len
        && stem.bytes().take(HEAD).all(|b| matches!(b, b'0' | b'1'))
        && stem.bytes().skip(HEAD).all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// What a store does beside renaming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// One attempt at a task writes through it.
    Attempt,
    /// All attempts of a job in this process do.
    Job,
    /// A commit does. Lance removes a compaction's data files when the commit fails; they are results,
    /// which a second try needs, and only `abort` removes.
    Commit,
}

/// The names that one attempt, or commit, has given.
#[derive(Debug)]
pub(crate) struct Marks {
    mark: Mark,
    used: Use,
    names: Mutex<Names>,
    read: AtomicU64,
    /// The name, without its ending, that every new data file gets; and whose files they are.
    only: Option<(String, Arc<Marks>)>,
}

#[derive(Debug, Default)]
struct Names {
    /// Lance's name to ours, and back; by file stem.
    given: HashMap<String, String>,
    taken: HashMap<String, String>,
    /// Where an attempt's new files are.
    files: Vec<Path>,
}

impl Marks {
    pub fn new(job: Uuid, used: Use) -> Arc<Self> {
        Arc::new(Self {
            mark: Mark::of(job),
            used,
            names: Mutex::default(),
            read: AtomicU64::new(0),
            only: None,
        })
    }

    /// The same, for one data file whose name is chosen beforehand.
    pub fn only(self: &Arc<Self>, name: &str) -> Arc<Self> {
        Arc::new(Self {
            mark: self.mark,
            used: self.used,
            names: Mutex::default(),
            read: AtomicU64::new(0),
            only: Some((name.to_owned(), self.clone())),
        })
    }

    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Bytes that were read through the store.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    fn count(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name that Lance's uuid was given, where it was given one.
    pub fn given(&self, uuid: Uuid) -> Option<Uuid> {
        self.names().given.get(&uuid.to_string()).and_then(|given| Uuid::parse_str(given).ok())
    }

    /// An index folder that another client has made, and in which files will be written, keeps its name.
    pub fn keep(&self, uuid: Uuid) {
        let name = uuid.to_string();
        self.names().given.insert(name.clone(), name);
    }

    /// The same dataset, with new files under marked names. Files in its other bases are, where Lance is
    /// given [`wrapper`](Self::wrapper) for those.
    pub async fn dataset(self: &Arc<Self>, dataset: &Dataset) -> Result<Dataset> {
        let store = Arc::new(self.store(dataset.object_store(None).await?.as_ref()));
        let mut marked = dataset.with_object_store(store, None);
        if !marked.manifest.base_paths.is_empty() {
            for base in Arc::make_mut(&mut marked.manifest).base_paths.values_mut() {
                base.path = through_store(&base.path);
            }
        }
        Ok(marked)
    }

    /// The same store, likewise.
    fn store(self: &Arc<Self>, store: &LanceStore) -> LanceStore {
        let mut store = store.clone();
        if store.has_direct_local_paths() {
            // Else Lance would write local files past the store.
            store.store_prefix = format!("{}$marked", store.scheme());
        }
        store.apply_wrapper(&Wrapper(self.clone()));
        store
    }

    pub fn wrapper(self: &Arc<Self>) -> Arc<dyn WrappingObjectStore> {
        Arc::new(Wrapper(self.clone()))
    }

    /// Where a file of that name is, or will be.
    fn renamed(&self, path: &Path, new: bool) -> Path {
        let mut names = self.names();
        let mut changed = false;
        let mut folder: Option<&str> = None;
        let mut parts = Vec::new();
        for part in path.as_ref().split('/') {
            let (stem, ending) = split(part);
            let mut name = names.given.get(stem).map(|given| format!("{given}{ending}"));
            if name.is_none() && new {
                name = match &self.only {
                    Some((only, _)) if random(stem, RANDOM) => Some(format!("{only}{ending}")),
                    _ => self.mark.part(folder, part),
                };
                if let Some(name) = &name {
                    let (given, _) = split(name);
                    names.given.insert(stem.to_owned(), given.to_owned());
                    names.taken.insert(given.to_owned(), stem.to_owned());
                }
            }
            changed |= name.is_some();
            parts.push(name.unwrap_or_else(|| part.to_owned()));
            folder = Some(part);
        }
        let path = match changed.then(|| Path::parse(parts.join("/"))) {
            Some(Ok(renamed)) => renamed,
            _ => path.clone(),
        };
        drop(names);
        if new && self.used == Use::Attempt {
            let whose = self.only.as_ref().map_or(self, |(_, whose)| whose.as_ref());
            whose.names().files.push(path.clone());
        }
        path
    }

    /// Where the files are that an attempt has begun.
    pub fn files(&self) -> Vec<Path> {
        self.names().files.clone()
    }

    /// The name that Lance knows a file by.
    fn original(&self, mut meta: ObjectMeta) -> ObjectMeta {
        meta.location = self.original_path(&meta.location);
        meta
    }

    fn original_path(&self, path: &Path) -> Path {
        let names = self.names();
        let parts: Vec<String> = path
            .as_ref()
            .split('/')
            .map(|part| {
                let (stem, ending) = split(part);
                let name = names.taken.get(stem).map(|taken| format!("{taken}{ending}"));
                name.unwrap_or_else(|| part.to_owned())
            })
            .collect();
        Path::parse(parts.join("/")).unwrap_or_else(|_| path.clone())
    }
}

/// A location under which Lance writes local files by way of its store, where they can be renamed.
pub(crate) fn through_store(uri: &str) -> String {
    if let Some(path) = uri.strip_prefix("file://") {
        return format!("file-object-store://{path}");
    }
    match uri.contains("://") {
        true => uri.to_owned(),
        false => match url::Url::from_file_path(uri) {
            Ok(url) => format!("file-object-store://{}", url.path()),
            Err(()) => uri.to_owned(),
        },
    }
}

fn split(part: &str) -> (&str, &str) {
    part.split_at(part.find('.').unwrap_or(part.len()))
}

#[derive(Debug)]
struct Wrapper(Arc<Marks>);

impl WrappingObjectStore for Wrapper {
    fn wrap(&self, store_prefix: &str, inner: Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore> {
        let local = store_prefix.starts_with("file");
        Arc::new(MarkedStore { inner, marks: self.0.clone(), local })
    }

    fn wrap_paginated(
        &self,
        _store_prefix: &str,
        _original: Arc<dyn PaginatedListStore>,
    ) -> Option<Arc<dyn PaginatedListStore>> {
        None
    }
}

/// See the module.
#[derive(Debug, Clone)]
struct MarkedStore {
    inner: Arc<dyn ObjectStore>,
    marks: Arc<Marks>,
    local: bool,
}

impl fmt::Display for MarkedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Marked({})", self.inner)
    }
}

impl MarkedStore {
    /// A local file that replaces or must not replace another is written beside it first; under a
    /// marked name, as nobody else would remove it after a crash.
    async fn put_beside(
        &self,
        folder: &str,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> StoreResult<PutResult> {
        let name = format!("{folder}/{}-{}.tmp", self.marks.mark, Uuid::new_v4().simple());
        let staged = Path::parse(name)?;
        let target_mode = match opts.mode {
            PutMode::Create => RenameTargetMode::Create,
            _ => RenameTargetMode::Overwrite,
        };
        let put =
            self.inner.put_opts(&staged, payload, PutOptions { mode: PutMode::Overwrite, ..opts });
        let put = put.await?;
        let options = RenameOptions { target_mode, ..Default::default() };
        let renamed = self.inner.rename_opts(&staged, location, options).await;
        if renamed.is_err() {
            let _ = self.inner.delete(&staged).await;
        }
        renamed.map(|()| put)
    }

    fn keeps(&self, location: &Path) -> bool {
        let data = |part| {
            let (stem, _) = split(part);
            random(stem, RANDOM) || random(stem, HEAD + MARK + TAIL)
        };
        self.marks.used == Use::Commit && location.as_ref().split('/').any(data)
    }
}

#[async_trait::async_trait]
impl ObjectStore for MarkedStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> StoreResult<PutResult> {
        if self.local
            && let Some((folder, _)) = location.as_ref().rsplit_once('/')
            && folder.ends_with("_versions")
        {
            return self.put_beside(folder, location, payload, opts).await;
        }
        self.inner.put_opts(&self.marks.renamed(location, true), payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(&self.marks.renamed(location, true), opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        let head = options.head;
        let mut got = self.inner.get_opts(&self.marks.renamed(location, false), options).await?;
        if !head {
            self.marks.count(got.range.end - got.range.start);
        }
        got.meta = self.marks.original(got.meta);
        Ok(got)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> StoreResult<Vec<Bytes>> {
        let got = self.inner.get_ranges(&self.marks.renamed(location, false), ranges).await?;
        self.marks.count(got.iter().map(|bytes| bytes.len() as u64).sum());
        Ok(got)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, StoreResult<Path>>,
    ) -> BoxStream<'static, StoreResult<Path>> {
        let store = self.clone();
        // One by one: an answer may leave out what it is kept from removing.
        locations
            .and_then(move |location| {
                let store = store.clone();
                async move {
                    if !store.keeps(&location) {
                        store.inner.delete(&store.marks.renamed(&location, false)).await?;
                    }
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        let marks = self.marks.clone();
        let prefix = prefix.map(|p| marks.renamed(p, false));
        self.inner.list(prefix.as_ref()).map_ok(move |meta| marks.original(meta)).boxed()
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        let marks = self.marks.clone();
        let prefix = prefix.map(|p| marks.renamed(p, false));
        let offset = marks.renamed(offset, false);
        self.inner
            .list_with_offset(prefix.as_ref(), &offset)
            .map_ok(move |meta| marks.original(meta))
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        let prefix = prefix.map(|p| self.marks.renamed(p, false));
        let mut found = self.inner.list_with_delimiter(prefix.as_ref()).await?;
        found.objects = found.objects.into_iter().map(|meta| self.marks.original(meta)).collect();
        found.common_prefixes =
            found.common_prefixes.iter().map(|path| self.marks.original_path(path)).collect();
        Ok(found)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        let (from, to) = (self.marks.renamed(from, false), self.marks.renamed(to, true));
        self.inner.copy_opts(&from, &to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> StoreResult<()> {
        let (from, to) = (self.marks.renamed(from, false), self.marks.renamed(to, true));
        self.inner.rename_opts(&from, &to, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "010101010101010101010101aabbccddeeff00112233445566.lance";

    #[test]
    fn marked_names_are_found_and_stay() {
        let (job, other) = (Uuid::new_v4(), Mark::of(Uuid::new_v4()));
        let mark = Mark::of(job);
        let file = mark.file(NAME);
        assert_eq!(mark.file(&file), file);
        let uuid = mark.new_uuid();
        assert_eq!((mark.uuid(uuid), uuid.get_version_num()), (uuid, 4));
        let names = [
            file.clone(),
            format!("{file}#1"),
            file.trim_end_matches(".lance").to_owned(),
            mark.new_name(),
            uuid.to_string(),
            format!("17-{uuid}.txn"),
            format!("17-{uuid}.txn#2"),
            format!("{mark}-{}.tmp#1", Uuid::new_v4().simple()),
        ];
        for name in &names {
            assert!(mark.owns(name), "{name}");
            assert!(!other.owns(name), "{name}");
        }
        for name in ["17.manifest", "latest_version_hint.json", NAME, "", "0-x.txn"] {
            assert!(!mark.owns(name), "{name}");
            assert_eq!(Mark::of(job).part(None, name).is_some(), name == NAME);
        }
    }

    #[test]
    fn folders_of_others_keep_their_names() {
        let marks = Marks::new(Uuid::new_v4(), Use::Commit);
        let (kept, new) = (Uuid::new_v4(), Uuid::new_v4());
        marks.keep(kept);
        let path = |uuid| Path::from(format!("a/_indices/{uuid}/part_0.lance"));
        assert_eq!(marks.renamed(&path(kept), true), path(kept));
        assert_ne!(marks.renamed(&path(new), true), path(new));
        assert_eq!(marks.given(kept), Some(kept));
        assert_eq!(marks.given(new), Some(marks.mark().uuid(new)));
    }

    #[test]
    fn new_files_get_marked_names_and_others_keep_theirs() {
        let marks = Marks::new(Uuid::new_v4(), Use::Attempt);
        let path = Path::from(format!("a/b c/data/{NAME}"));
        assert_eq!(marks.renamed(&path, false), path);
        let new = marks.renamed(&path, true);
        assert_ne!(new, path);
        assert_eq!(marks.renamed(&path, false), new);
        assert_eq!(marks.original_path(&new), path);
        let sidecar = Path::from(format!("a/b c/data/{}/1.blob", NAME.trim_end_matches(".lance")));
        let folder = marks.renamed(&sidecar, true);
        assert!(new.as_ref().starts_with(folder.as_ref().strip_suffix("/1.blob").unwrap()));
    }
}
