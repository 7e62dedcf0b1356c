//! Where datasets are: locations, opening, the cache of opened ones, and removing files.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::StreamExt;
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::session::Session;
use lance_io::object_store::{ObjectStore, ObjectStoreParams, StorageOptionsAccessor};
use lance_table::format::BasePath;
use lance_table::io::commit::CommitHandler;
use object_store::path::Path;

use crate::error::{Error, ErrorCode, Result};
use crate::result::WrittenFile;

pub(crate) type StorageOptions = BTreeMap<String, String>;

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

/// Lance's store parameters for a call's storage options.
pub(crate) fn store_params(options: &StorageOptions) -> ObjectStoreParams {
    let mut params = ObjectStoreParams::default();
    if !options.is_empty() {
        let options: HashMap<String, String> = options.clone().into_iter().collect();
        params.storage_options_accessor =
            Some(Arc::new(StorageOptionsAccessor::with_static_options(options)));
    }
    params
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
pub(crate) struct Datasets {
    session: Arc<Session>,
    opened: moka::future::Cache<Key, Arc<Dataset>>,
}

impl Datasets {
    pub fn new(session: Arc<Session>) -> Self {
        Self { session, opened: moka::future::Cache::new(64) }
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

    /// As [`open_latest`](Self::open_latest), committing through a handler of ours.
    pub async fn open_guarded(
        &self,
        uri: &str,
        options: &StorageOptions,
        handler: Arc<dyn CommitHandler>,
    ) -> Result<Option<Dataset>> {
        self.load_latest(uri, self.builder(uri, options).with_commit_handler(handler)).await
    }

    async fn load_latest(&self, uri: &str, builder: DatasetBuilder) -> Result<Option<Dataset>> {
        match builder.load().await {
            Ok(dataset) => Ok(Some(dataset)),
            Err(lance::Error::DatasetNotFound { .. } | lance::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(Error::from(error).context(format!("dataset {uri}"))),
        }
    }

    fn builder(&self, uri: &str, options: &StorageOptions) -> DatasetBuilder {
        DatasetBuilder::from_uri(uri)
            .with_session(self.session.clone())
            .with_store_params(store_params(options))
    }

    /// The object store of a location, and the location's path in it.
    pub async fn store(
        &self,
        uri: &str,
        options: &StorageOptions,
    ) -> Result<(Arc<ObjectStore>, Path)> {
        ObjectStore::from_uri_and_params(self.session.store_registry(), uri, &store_params(options))
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
                        Some((store, root)) => match store.delete(&join(root, &file.path)).await {
                            Ok(()) | Err(lance::Error::NotFound { .. }) => true,
                            Err(error) => {
                                tracing::warn!(file = %file.path, "not removed: {}", Error::from(error));
                                false
                            }
                        },
                        None => false,
                    };
                    (!removed).then_some(file)
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
        let sizes: Vec<_> = futures::stream::iter(files.iter().cloned())
            .map(|file| {
                let place = places.get(&file.base);
                async move {
                    let Some((store, root)) = place else { return Ok(None) };
                    match store.size(&join(root, &file.path)).await {
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
    ) -> Result<HashMap<Option<u32>, (Arc<ObjectStore>, Path)>> {
        let mut places = HashMap::new();
        for base in files.iter().map(|f| f.base) {
            if places.contains_key(&base) {
                continue;
            }
            let location = match base {
                None => uri,
                Some(id) => match bases.get(&id) {
                    Some(base) => &base.path,
                    None => continue,
                },
            };
            places.insert(base, self.store(location, options).await?);
        }
        Ok(places)
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

fn join(root: &Path, relative: &str) -> Path {
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
