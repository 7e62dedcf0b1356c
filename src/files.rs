//! Small files that processes share, as those of a spool: in a local folder, an object store, or this
//! process's memory. A file appears whole or not at all, and [`Files::put_new`] never replaces one.

use std::collections::{BTreeMap, HashMap};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use lance_io::object_store::{ObjectStore, ObjectStoreParams, StorageOptionsAccessor};
use object_store::{ObjectStore as _, ObjectStoreExt, PutMode, PutOptions};
use rayon::prelude::*;
use tokio::runtime::Runtime;

use crate::error::{Error, ErrorCode, Result};
use crate::executor::block_on;

/// Requests under way at a time.
const PARALLEL: usize = 64;

/// Nobody takes so long to write a file of a spool.
const STALE: Duration = Duration::from_secs(600);

/// Names are relative, with `/` between their parts.
pub enum Files {
    Local(PathBuf),
    Store(Store),
    Memory(Mutex<BTreeMap<String, Vec<u8>>>),
}

pub struct Store {
    store: Arc<ObjectStore>,
    root: object_store::path::Path,
    /// Taken at the end: a runtime may not be dropped on one of another's threads.
    runtime: Option<Runtime>,
    uri: String,
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Files {
    /// A path, a `file://` URI, or what Lance takes as an object store's URI.
    pub fn open(place: &str, storage_options: &BTreeMap<String, String>) -> Result<Self> {
        if place.trim().is_empty() {
            return Err(Error::invalid("the spool's place is empty"));
        }
        let local = place.strip_prefix("file://").unwrap_or(place);
        let Some((_, rest)) = local.split_once("://") else {
            return Ok(Self::Local(PathBuf::from(local)));
        };
        // As for datasets: it would end up in logs.
        let user = rest.split_once('@').map_or("", |(user, _)| user);
        if rest.contains('?') || user.contains(':') {
            return Err(Error::invalid(
                "the spool's URI carries credentials or a query; give them as the spool's storage \
                 options or in the environment",
            ));
        }
        let mut params = ObjectStoreParams::default();
        if !storage_options.is_empty() {
            let options: HashMap<_, _> = storage_options.clone().into_iter().collect();
            params.storage_options_accessor =
                Some(Arc::new(StorageOptionsAccessor::with_static_options(options)));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("lance-tasks-spool")
            .enable_all()
            .build()?;
        let opening = ObjectStore::from_uri_and_params(Default::default(), place, &params);
        let (store, root) = block_on(&runtime, opening)
            .map_err(|e| Error::from(e).context(format!("spool {place}")))?;
        let uri = place.trim_end_matches('/').into();
        Ok(Self::Store(Store { store, root, runtime: Some(runtime), uri }))
    }

    pub fn memory() -> Self {
        Self::Memory(Mutex::default())
    }

    /// For messages.
    pub fn place(&self) -> String {
        match self {
            Self::Local(root) => root.display().to_string(),
            Self::Store(store) => store.uri.clone(),
            Self::Memory(_) => "in memory".into(),
        }
    }

    /// A file, or `None` where there is none.
    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Local(root) => match std::fs::read(root.join(name)) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(e) if missing(&e) => Ok(None),
                Err(e) => Err(self.io(name, &e)),
            },
            Self::Store(store) => store.block_on(store.get(name)),
            Self::Memory(files) => Ok(lock(files).get(name).cloned()),
        }
    }

    /// Several files that are known to be there, in their order.
    pub fn get_all(&self, names: &[String]) -> Result<Vec<Vec<u8>>> {
        let gone = |name: &str| {
            Error::new(ErrorCode::Io, format!("spool {}: {name} has gone", self.place()))
        };
        match self {
            Self::Store(store) => {
                let reads: Vec<BoxFuture<'_, _>> =
                    names.iter().map(|name| store.get(name).boxed()).collect();
                let reads = futures::stream::iter(reads).buffered(PARALLEL);
                let found: Vec<_> = store.block_on(reads.try_collect())?;
                let found = names.iter().zip(found);
                found.map(|(name, bytes)| bytes.ok_or_else(|| gone(name))).collect()
            }
            _ => names
                .par_iter()
                .map(|name| self.get(name)?.ok_or_else(|| gone(name)))
                .collect::<Result<_>>(),
        }
    }

    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Local(root) => {
                let path = root.join(name);
                let file = beside(&path, bytes).map_err(|e| self.io(name, &e))?;
                file.persist(&path).map_err(|e| self.io(name, &e.error))?;
            }
            Self::Store(store) => {
                store.block_on(store.put(name, bytes, PutMode::Overwrite))?;
            }
            Self::Memory(files) => {
                lock(files).insert(name.to_owned(), bytes.to_vec());
            }
        }
        Ok(())
    }

    /// Write a file where there is none; `false` where there is one already that differs.
    pub fn put_new(&self, name: &str, bytes: &[u8]) -> Result<bool> {
        let made = match self {
            Self::Local(root) => {
                let path = root.join(name);
                let file = beside(&path, bytes).map_err(|e| self.io(name, &e))?;
                match file.persist_noclobber(&path) {
                    Ok(_) => true,
                    Err(e) if e.error.kind() == ErrorKind::AlreadyExists => false,
                    Err(e) => return Err(self.io(name, &e.error)),
                }
            }
            Self::Store(store) => store.block_on(store.put(name, bytes, PutMode::Create))?,
            Self::Memory(files) => {
                let mut files = lock(files);
                let new = !files.contains_key(name);
                files.entry(name.to_owned()).or_insert_with(|| bytes.to_vec());
                new
            }
        };
        // A put whose answer was lost is repeated by the client, and finds itself.
        Ok(made || self.get(name)?.as_deref() == Some(bytes))
    }

    /// As [`Files::put_new`]; a file that differs is the error `ALREADY_EXISTS`.
    pub fn put_once(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if self.put_new(name, bytes)? {
            return Ok(());
        }
        let text = format!("spool {}: there is another {name} already", self.place());
        Err(Error::new(ErrorCode::AlreadyExists, text))
    }

    /// Remove a file; none there is fine.
    pub fn delete(&self, name: &str) -> Result<()> {
        match self {
            Self::Local(root) => match std::fs::remove_file(root.join(name)) {
                Err(e) if !missing(&e) => Err(self.io(name, &e)),
                _ => Ok(()),
            },
            Self::Store(store) => store.block_on(store.delete(name)),
            Self::Memory(files) => {
                lock(files).remove(name);
                Ok(())
            }
        }
    }

    /// The names of the files in a folder, without the folder, in order; not those of folders in it. No
    /// such folder: none.
    pub fn list(&self, folder: &str) -> Result<Vec<String>> {
        let mut names: Vec<String> = match self {
            Self::Local(root) => match std::fs::read_dir(root.join(folder)) {
                Err(e) if missing(&e) => Vec::new(),
                Err(e) => return Err(self.io(folder, &e)),
                Ok(entries) => entries
                    .filter(|entry| !entry.as_ref().is_ok_and(is_folder))
                    .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
                    .collect::<std::io::Result<_>>()
                    .map_err(|e| self.io(folder, &e))?,
            },
            Self::Store(store) => store.block_on(store.list(folder))?,
            Self::Memory(files) => lock(files)
                .keys()
                .filter_map(|name| name.strip_prefix(folder)?.strip_prefix('/'))
                .filter(|name| !name.contains('/'))
                .map(str::to_owned)
                .collect(),
        };
        // Temporary files of writers.
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        Ok(names)
    }

    /// Remove the temporary files in a folder whose writers must have been killed. Only a local folder
    /// has any.
    pub fn remove_stale(&self, folder: &str) -> Result<()> {
        let Self::Local(root) = self else { return Ok(()) };
        let entries = match std::fs::read_dir(root.join(folder)) {
            Err(e) if missing(&e) => return Ok(()),
            entries => entries.map_err(|e| self.io(folder, &e))?,
        };
        for entry in entries.filter_map(std::io::Result::ok) {
            let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
            // As tempfile names them.
            let temporary = entry.file_name().to_str().is_some_and(|n| n.starts_with(".tmp"));
            if temporary && age().is_some_and(|age| age > STALE) {
                match std::fs::remove_file(entry.path()) {
                    Err(e) if !missing(&e) => return Err(self.io(folder, &e)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Copy what is in memory to another place.
    pub fn save(&self, to: &Files) -> Result<()> {
        if let Self::Memory(files) = self {
            for (name, bytes) in lock(files).iter() {
                to.put(name, bytes)?;
            }
        }
        Ok(())
    }

    fn io(&self, name: &str, error: &std::io::Error) -> Error {
        let code = match error.kind() {
            ErrorKind::PermissionDenied => ErrorCode::Credentials,
            ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::InvalidFilename => {
                ErrorCode::InvalidArgument
            }
            _ => ErrorCode::Io,
        };
        Error::new(code, format!("spool {}: {name}: {error}", self.place()))
    }
}

fn is_folder(entry: &std::fs::DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

fn missing(error: &std::io::Error) -> bool {
    // A file in the place of the folder holds no spool either.
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// A synced temporary file in the folder where it is to appear.
fn beside(path: &Path, bytes: &[u8]) -> std::io::Result<tempfile::NamedTempFile> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // As any other new file; temporary ones are for their owner alone.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = match builder.tempfile_in(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            std::fs::create_dir_all(folder)?;
            builder.tempfile_in(folder)?
        }
        made => made?,
    };
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    fn block_on<T: Send>(&self, future: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let runtime =
            self.runtime.as_ref().ok_or_else(|| Error::internal("the store has ended"))?;
        block_on(runtime, future)
    }

    fn path(&self, name: &str) -> object_store::path::Path {
        name.split('/').fold(self.root.clone(), |path, part| path.join(part))
    }

    fn failed(&self, name: &str, error: object_store::Error) -> Error {
        Error::from(error).context(format!("spool {}: {name}", self.uri))
    }

    async fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let read = async { self.store.inner.get(&self.path(name)).await?.bytes().await };
        match read.await {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.failed(name, e)),
        }
    }

    /// `false` where the mode forbids it.
    async fn put(&self, name: &str, bytes: &[u8], mode: PutMode) -> Result<bool> {
        let options = PutOptions { mode, ..Default::default() };
        match self.store.inner.put_opts(&self.path(name), bytes.to_vec().into(), options).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(e) => Err(self.failed(name, e)),
        }
    }

    async fn delete(&self, name: &str) -> Result<()> {
        match self.store.inner.delete(&self.path(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed(name, e)),
        }
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        let found = self.store.inner.list_with_delimiter(Some(&self.path(folder))).await;
        let objects = found.map_err(|e| self.failed(folder, e))?.objects;
        Ok(objects.iter().filter_map(|o| o.location.filename().map(str::to_owned)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &Files) {
        assert_eq!(files.get("a/b").unwrap(), None);
        assert!(files.list("a").unwrap().is_empty());
        assert!(files.put_new("a/b", b"1").unwrap());
        assert!(files.put_new("a/b", b"1").unwrap(), "the same again is no conflict");
        assert!(!files.put_new("a/b", b"2").unwrap());
        assert_eq!(files.get("a/b").unwrap().as_deref(), Some(&b"1"[..]));
        files.put("a/b", b"3").unwrap();
        files.put("a/a", b"4").unwrap();
        assert_eq!(files.list("a").unwrap(), ["a", "b"]);
        let all = files.get_all(&["a/b".into(), "a/a".into()]).unwrap();
        assert_eq!(all, [b"3", b"4"]);
        assert!(files.get_all(&["a/gone".into()]).is_err());
        files.put("a/c/d", b"5").unwrap();
        assert_eq!(files.list("a").unwrap(), ["a", "b"], "not what is in folders of it");
        assert_eq!(files.list("a/c").unwrap(), ["d"]);
        files.delete("a/b").unwrap();
        files.delete("a/b").unwrap();
        assert_eq!(files.list("a").unwrap(), ["a"]);
    }

    #[test]
    fn a_folder_and_memory_behave_alike() {
        let folder = tempfile::tempdir().unwrap();
        check(&Files::Local(folder.path().join("new")));
        check(&Files::memory());
        let to = Files::Local(folder.path().join("copy"));
        let memory = Files::memory();
        memory.put("x/y", b"z").unwrap();
        memory.save(&to).unwrap();
        assert_eq!(to.get("x/y").unwrap().as_deref(), Some(&b"z"[..]));
    }

    #[test]
    fn what_killed_writers_left_goes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::Local(folder.path().to_owned());
        let old = std::time::SystemTime::now() - 2 * STALE;
        for (name, time) in [("x/.tmpOld", old), ("x/result", old), ("x/.tmpNew", old + 2 * STALE)]
        {
            files.put(name, b"1").unwrap();
            let file = std::fs::File::options().write(true).open(folder.path().join(name));
            file.unwrap().set_modified(time).unwrap();
        }
        files.remove_stale("x").unwrap();
        files.remove_stale("none").unwrap();
        let left = ["x/.tmpOld", "x/result", "x/.tmpNew"].map(|n| files.get(n).unwrap().is_some());
        assert_eq!(left, [false, true, true]);
    }

    #[test]
    fn secrets_in_a_spools_place_are_refused_and_not_quoted() {
        for place in ["s3://key:hidden@bucket/x", "az://c/x?sig=hidden"] {
            let error = Files::open(place, &BTreeMap::new()).err().unwrap();
            assert!(!error.message().contains("hidden"), "{error}");
        }
    }
}
