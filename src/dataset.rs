//! Where datasets are: locations, opening, the cache of opened ones, and removing files.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt;
use lance::Dataset;
use lance::dataset::WriteParams;
use lance::dataset::builder::DatasetBuilder;
use lance::session::Session;
use lance_io::object_store::{ObjectStore, ObjectStoreParams};
use lance_table::format::BasePath;
use lance_table::io::commit::CommitHandler;
use object_store::path::Path;
use uuid::Uuid;

use crate::blob::managed::{self, Known};
use crate::error::{Error, ErrorCode, Result};
use crate::marks::{Marks, Use, through_store};
use crate::operations::Elsewhere;
use crate::result::WrittenFile;
pub(crate) use crate::storage::{StorageOptions, check_options, store_params};

/// Refuse a URI that carries a secret: descriptors and logs would spread it.
pub(crate) fn refuse_secrets(uri: &str) -> Result<()> {
    let Some((scheme, rest)) = uri.split_once("://") else { return Ok(()) };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = path.split('/').next().unwrap_or_default();
    let user = path.rsplit_once('@').map(|(user, _)| user).filter(|u| u.contains(':'));
    let query = query.to_ascii_lowercase();
    const SIGNS: &[&str] = &[
        "sig=",
        "signature",
        "token",
        "secret",
        "password",
        "credential",
        "access_key",
        "accesskey",
    ];
    if user.is_some() || SIGNS.iter().any(|sign| query.contains(sign)) {
        let host = authority.rsplit('@').next().unwrap_or_default();
        return Err(Error::invalid(format!(
            "the URI {scheme}://***{host}.. carries credentials; give them as storage options of the \
             call or in the environment"
        )));
    }
    Ok(())
}

/// The form of a location that means the same in every process: local paths absolute, no trailing `/`.
pub(crate) fn normalize(what: &str, uri: &str) -> Result<String> {
    if uri.trim().is_empty() {
        return Err(Error::invalid(format!("{what} is empty")));
    }
    refuse_secrets(uri)?;
    let local = uri.strip_prefix("file://").unwrap_or(uri);
    if local.contains("://") {
        return Ok(uri.trim_end_matches('/').to_owned());
    }
    let path = std::path::absolute(local)
        .map_err(|e| Error::invalid(format!("{what} {uri:?} is no path: {e}")))?;
    let text =
        path.to_str().ok_or_else(|| Error::invalid(format!("{what} {uri:?} is not UTF-8")))?;
    Ok(if text.len() > 1 { text.trim_end_matches('/').to_owned() } else { text.to_owned() })
}

/// What pins a version: its number, and when its manifest was made, so that a dataset dropped and made
/// anew at the same place is not taken for the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Pin {
    pub version: u64,
    /// Nanoseconds since the epoch; 0 = any.
    pub timestamp: u64,
}

impl Pin {
    pub fn of(dataset: &Dataset) -> Self {
        Self {
            version: dataset.manifest.version,
            timestamp: u64::try_from(dataset.manifest.timestamp_nanos).unwrap_or(0),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    uri: String,
    pin: Pin,
    options: StorageOptions,
}

/// Opened datasets of one executor, all on one Lance session.
#[derive(Clone)]
pub(crate) struct Datasets {
    session: Arc<Session>,
    opened: moka::future::Cache<Key, Arc<Dataset>>,
    places: moka::future::Cache<(Uuid, String, StorageOptions), Arc<Place>>,
    conditional: moka::sync::Cache<(String, StorageOptions), ()>,
    /// Managed payloads of versions that writes append to.
    managed: moka::future::Cache<Key, Arc<Known>>,
}

/// A location where a job writes without an opened dataset. Held, so that a store on the network keeps
/// its connections from task to task.
pub(crate) struct Place {
    pub uri: String,
    pub params: ObjectStoreParams,
    /// Of bases that have storage options of their own.
    base_params: HashMap<String, ObjectStoreParams>,
    _store: Arc<ObjectStore>,
}

impl Place {
    /// Have Lance write here, under marked names.
    pub fn set(&self, params: &mut WriteParams) {
        params.store_params = Some(self.params.clone());
        params.base_store_params = Some(self.base_params.clone());
    }
}

impl Datasets {
    pub fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            opened: moka::future::Cache::new(64),
            places: moka::future::Cache::new(64),
            conditional: moka::sync::Cache::new(64),
            managed: moka::future::Cache::new(4),
        }
    }

    pub fn session(&self) -> Arc<Session> {
        self.session.clone()
    }

    /// The dataset at a pinned version; the thousandth task on it opens nothing.
    pub async fn open(
        &self,
        uri: &str,
        pin: Pin,
        options: &StorageOptions,
    ) -> Result<Arc<Dataset>> {
        let key = Key { uri: uri.to_owned(), pin, options: options.clone() };
        self.opened
            .try_get_with(key, async { self.open_uncached(uri, pin, options).await.map(Arc::new) })
            .await
            .map_err(|e: Arc<Error>| e.as_ref().clone())
    }

    /// As [`open`](Self::open), and never from the cache.
    pub async fn open_uncached(
        &self,
        uri: &str,
        pin: Pin,
        options: &StorageOptions,
    ) -> Result<Dataset> {
        let gone = |why: &str| {
            Error::new(
                ErrorCode::VersionGone,
                format!("dataset {uri}: version {} {why}; prepare the job again", pin.version),
            )
        };
        match self.builder(uri, options).with_version(pin.version).load().await {
            Ok(dataset) => {
                let found = Pin::of(&dataset);
                if pin.timestamp != 0 && found.timestamp != pin.timestamp {
                    return Err(gone(
                        "is not the one the job was prepared on: the dataset was replaced",
                    ));
                }
                Ok(dataset)
            }
            Err(error) => {
                let error = Error::from(error);
                let missing = matches!(error.code(), ErrorCode::NotFound | ErrorCode::VersionGone);
                match missing {
                    true if self.open_latest(uri, options).await?.is_some() => {
                        Err(gone("has been cleaned away"))
                    }
                    true => Err(not_found(uri)),
                    false => Err(error.context(format!("dataset {uri}, version {}", pin.version))),
                }
            }
        }
    }

    /// The newest version, or `None` where there is no dataset. Never cached.
    pub async fn open_latest(
        &self,
        uri: &str,
        options: &StorageOptions,
    ) -> Result<Option<Dataset>> {
        self.load_latest(uri, self.builder(uri, options)).await
    }

    /// As [`open_latest`](Self::open_latest), committing through a handler of ours, under marked names.
    pub async fn open_guarded(
        &self,
        uri: &str,
        options: &StorageOptions,
        handler: Arc<dyn CommitHandler>,
        marks: &Arc<Marks>,
    ) -> Result<Option<Dataset>> {
        let builder = self.builder(uri, options).with_commit_handler(handler);
        match self.load_latest(uri, builder).await? {
            Some(dataset) => Ok(Some(marks.dataset(&dataset).await?)),
            None => Ok(None),
        }
    }

    async fn load_latest(&self, uri: &str, builder: DatasetBuilder) -> Result<Option<Dataset>> {
        match builder.load().await {
            Ok(dataset) => Ok(Some(dataset)),
            Err(lance::Error::DatasetNotFound { .. } | lance::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(Error::from(error).context(format!("dataset {uri}"))),
        }
    }

    fn builder(&self, uri: &str, options: &StorageOptions) -> DatasetBuilder {
        options.builder(uri).with_session(self.session.clone())
    }

    /// Refuse storage options of a base that is none of the dataset's, nor of what else is touched.
    pub async fn check_bases(
        &self,
        uri: &str,
        pin: Pin,
        elsewhere: Elsewhere,
        options: &StorageOptions,
    ) -> Result<()> {
        let mut bases: Vec<BasePath> = elsewhere.bases.into_values().collect();
        let own = (pin.version > 0).then(|| (uri.to_owned(), pin));
        for (uri, pin) in own.into_iter().chain(elsewhere.datasets) {
            // Whoever needs that version will say what is wrong with it.
            let Ok(dataset) = self.open(&uri, pin, options).await else { return Ok(()) };
            bases.extend(bases_of(&dataset).into_values());
        }
        if options.check_bases(&bases).is_ok() {
            return Ok(());
        }
        // It may have been registered since.
        if let Some(latest) = self.open_latest(uri, options).await? {
            bases.extend(bases_of(&latest).into_values());
        }
        options.check_bases(&bases)
    }

    /// Whether a store is known to honour conditional puts.
    pub fn conditional(&self, store: &(String, StorageOptions)) -> bool {
        self.conditional.contains_key(store)
    }

    pub fn set_conditional(&self, store: (String, StorageOptions)) {
        self.conditional.insert(store, ());
    }

    /// The payloads that rows of a version share; read once per executor and version.
    pub async fn managed(
        &self,
        uri: &str,
        pin: Pin,
        options: &StorageOptions,
        dataset: &Arc<Dataset>,
    ) -> Result<Arc<Known>> {
        let key = Key { uri: uri.to_owned(), pin, options: options.clone() };
        self.managed
            .try_get_with(key, async { managed::known(dataset).await.map(Arc::new) })
            .await
            .map_err(|e: Arc<Error>| e.as_ref().clone())
    }

    /// Where a job writes new files of a dataset that does not exist yet, or in another base: under
    /// marked names.
    pub async fn place(
        &self,
        job: Uuid,
        uri: &str,
        options: &StorageOptions,
    ) -> Result<Arc<Place>> {
        let open = async {
            let uri = through_store(uri);
            let wrapper = Marks::new(job, Use::Job).wrapper();
            let mut params = store_params(options);
            let base_params = options.own_params(Some(&wrapper));
            params.object_store_wrapper = Some(wrapper);
            let registry = self.session.store_registry();
            let (store, _) = ObjectStore::from_uri_and_params(registry, &uri, &params)
                .await
                .map_err(|e| Error::from(e).context(&uri))?;
            Ok(Arc::new(Place { uri, params, base_params, _store: store }))
        };
        self.places
            .try_get_with((job, uri.to_owned(), options.clone()), open)
            .await
            .map_err(|e: Arc<Error>| e.as_ref().clone())
    }

    /// The object store of a location, and the location's path in it.
    pub async fn store(
        &self,
        uri: &str,
        options: &StorageOptions,
    ) -> Result<(Arc<ObjectStore>, Path)> {
        self.store_by(uri, options.params()).await
    }

    /// The same of a base.
    pub async fn base_store(
        &self,
        base: &BasePath,
        options: &StorageOptions,
    ) -> Result<(Arc<ObjectStore>, Path)> {
        self.store_by(&base.path, options.base_params(base)).await
    }

    async fn store_by(
        &self,
        uri: &str,
        params: ObjectStoreParams,
    ) -> Result<(Arc<ObjectStore>, Path)> {
        ObjectStore::from_uri_and_params(self.session.store_registry(), uri, &params)
            .await
            .map_err(|e| Error::from(e).context(uri))
    }

    /// Delete files of a dataset; answers with those that could not be deleted. A missing file counts
    /// as deleted.
    pub async fn remove(
        &self,
        uri: &str,
        options: &StorageOptions,
        files: Vec<WrittenFile>,
        bases: &Bases,
    ) -> Result<Vec<WrittenFile>> {
        let places = self.places(uri, options, bases, &files).await?;
        let outcomes: Vec<_> = futures::stream::iter(files)
            .map(|file| {
                let place = places.get(&file.base);
                async move {
                    let removed = match place {
                        Some(folder) => folder.delete(&file.path).await,
                        None => Err(Error::invalid("its base is not registered")),
                    };
                    let error = removed.err()?;
                    tracing::warn!(file = %file.path, "not removed: {error}");
                    Some(file)
                }
            })
            .buffer_unordered(64)
            .collect()
            .await;
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// The size of each file, `None` where it is missing.
    pub async fn sizes(
        &self,
        uri: &str,
        options: &StorageOptions,
        files: &[WrittenFile],
        bases: &Bases,
    ) -> Result<Vec<Option<u64>>> {
        let places = self.places(uri, options, bases, files).await?;
        let local =
            |file: &WrittenFile| Some(places.get(&file.base)?.local.as_ref()?.join(&file.path));
        if let Some(paths) = files.iter().map(local).collect::<Option<Vec<_>>>() {
            // A thread for each of many would cost more than the look.
            return tokio::task::spawn_blocking(move || {
                paths.iter().map(|p| local_size(p)).collect()
            })
            .await
            .map_err(|e| Error::internal(format!("sizes: {e}")))?;
        }
        let sizes: Vec<_> = futures::stream::iter(files.iter().cloned())
            .map(|file| {
                let place = places.get(&file.base);
                async move {
                    let Some(folder) = place else { return Ok(None) };
                    match folder.store.size(&join(&folder.root, &file.path)).await {
                        Ok(size) => Ok(Some(size)),
                        Err(lance::Error::NotFound { .. }) => Ok(None),
                        Err(error) => Err(Error::from(error).context(&file.path)),
                    }
                }
            })
            .buffered(64)
            .collect()
            .await;
        sizes.into_iter().collect()
    }

    async fn places(
        &self,
        uri: &str,
        options: &StorageOptions,
        bases: &Bases,
        files: &[WrittenFile],
    ) -> Result<HashMap<Option<u32>, Folder>> {
        let mut places = HashMap::new();
        for base in files.iter().map(|f| f.base) {
            if places.contains_key(&base) {
                continue;
            }
            let (location, opened) = match base {
                None => (uri, self.store(uri, options).await),
                Some(id) => match bases.get(&id) {
                    Some(base) => (base.path.as_str(), self.base_store(base, options).await),
                    None => continue,
                },
            };
            let (store, root) = opened?;
            places.insert(base, Folder { store, root, local: local_folder(location) });
        }
        Ok(places)
    }
}

/// Where files of a dataset, or of one of its bases, lie.
struct Folder {
    store: Arc<ObjectStore>,
    root: Path,
    local: Option<PathBuf>,
}

impl Folder {
    /// A missing file counts as deleted.
    async fn delete(&self, relative: &str) -> Result<()> {
        if let Some(folder) = &self.local {
            // By the file system: what was still being written has a name that the store does not take.
            return match std::fs::remove_file(folder.join(relative)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            };
        }
        match self.store.delete(&join(&self.root, relative)).await {
            Ok(()) | Err(lance::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Registered storage bases by id.
pub(crate) type Bases = BTreeMap<u32, BasePath>;

pub(crate) fn bases_of(dataset: &Dataset) -> Bases {
    dataset.manifest.base_paths.iter().map(|(id, base)| (*id, base.clone())).collect()
}

/// Where a data file of a fragment lies, relative to its base's path.
pub(crate) fn data_file_path(file: &str, base: Option<u32>, bases: &Bases) -> String {
    match base.and_then(|id| bases.get(&id)) {
        Some(base) if !base.is_dataset_root => file.to_owned(),
        _ => format!("data/{file}"),
    }
}

pub(crate) fn not_found(uri: &str) -> Error {
    Error::new(ErrorCode::NotFound, format!("there is no dataset at {uri}"))
}

fn local_size(path: &std::path::Path) -> Result<Option<u64>> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::from(error).context(path.display())),
    }
}

/// The folder of a location on a local disk.
pub(crate) fn local_folder(location: &str) -> Option<PathBuf> {
    if location.starts_with("file://") {
        return url::Url::parse(location).ok()?.to_file_path().ok();
    }
    (!location.contains("://")).then(|| PathBuf::from(location))
}

pub(crate) fn join(root: &Path, relative: &str) -> Path {
    relative.split('/').filter(|p| !p.is_empty()).fold(root.clone(), |path, part| path.join(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_uris_are_refused_and_not_quoted() {
        for uri in [
            "s3://key:secret@bucket/x",
            "https://user:pw@host/x",
            "az://c/x?sig=abc",
            "s3://b/x?X-Amz-Signature=abc",
        ] {
            let error = normalize("uri", uri).unwrap_err();
            for secret in ["secret@", "pw", "abc"] {
                assert!(!error.message().contains(secret), "{error}");
            }
        }
        for uri in
            ["abfss://container@account.dfs.core.windows.net/x", "s3://bucket/a b", "/tmp/a@b:c"]
        {
            normalize("uri", uri).unwrap();
        }
    }

    #[test]
    fn local_paths_become_absolute() {
        assert!(normalize("uri", "x/y/").unwrap().ends_with("/x/y"));
        assert_eq!(normalize("uri", "file:///a/b/").unwrap(), "/a/b");
        assert!(normalize("uri", " ").is_err());
    }
}
