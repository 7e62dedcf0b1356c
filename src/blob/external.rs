//! Payloads that are not the dataset's own: objects, and parts of them, by URI.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use lance_io::object_store::{ObjectStore, ObjectStoreParams};
use object_store::path::Path;

use crate::dataset::{Bases, Datasets, StorageOptions, refuse_secrets};
use crate::error::{Error, ErrorCode, Result};

/// An object that was looked up.
pub(crate) struct Found {
    /// The registered base that it lies in, 0 = none.
    pub base_id: u32,
    /// Its path in the base, or else its absolute URI.
    pub uri: String,
    pub size: u64,
    store: Arc<ObjectStore>,
    path: Path,
}

/// What becomes of URIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// They are stored; `outside` = also those below no registered base.
    Reference { outside: bool },
    /// Their bytes are copied.
    Ingest,
}

/// Looks objects up, each once.
pub(crate) struct Externals {
    datasets: Datasets,
    options: StorageOptions,
    bases: Vec<Registered>,
    pub mode: Mode,
    found: Mutex<HashMap<String, Arc<Found>>>,
}

struct Registered {
    id: u32,
    params: ObjectStoreParams,
    store: Arc<ObjectStore>,
    path: Path,
}

impl Externals {
    pub async fn new(
        datasets: &Datasets,
        options: &StorageOptions,
        bases: &Bases,
        mode: Mode,
    ) -> Result<Self> {
        let mut registered = Vec::new();
        for (id, base) in bases {
            let (store, path) = datasets.base_store(base, options).await?;
            registered.push(Registered { id: *id, params: options.base_params(base), store, path });
        }
        Ok(Self {
            datasets: datasets.clone(),
            options: options.clone(),
            bases: registered,
            mode,
            found: Mutex::default(),
        })
    }

    /// The object at a URI, which `of` names in errors.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` where it lies below no registered base, `SOURCE` where it is missing.
    pub async fn find(&self, uri: &str, of: &(dyn Fn() -> String + Sync)) -> Result<Arc<Found>> {
        let known = || self.found.lock().unwrap_or_else(PoisonError::into_inner).get(uri).cloned();
        if let Some(found) = known() {
            return Ok(found);
        }
        let found = Arc::new(self.look(uri).await.map_err(|e| e.context(of()))?);
        let mut all = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(all.entry(uri.to_owned()).or_insert(found).clone())
    }

    async fn look(&self, uri: &str) -> Result<Found> {
        refuse_secrets(uri)?;
        let absolute = absolute(uri)?;
        let base = self.base(&absolute)?;
        if base.is_none() && self.mode == (Mode::Reference { outside: false }) {
            return Err(Error::invalid(format!(
                "URI {uri:?} is below no registered base; register one (initial_bases, add_bases), or \
                 set allow_external_blob_outside_bases, or external_blob_mode \"ingest\""
            )));
        }
        let (store, path) = match &base {
            Some((base, _)) => {
                let registry = self.datasets.session().store_registry();
                (base.store.clone(), ObjectStore::extract_path_from_uri(registry, &absolute)?)
            }
            None => self.datasets.store(&absolute, &self.options).await?,
        };
        let size = store.size(&path).await.map_err(|e| {
            let error = Error::from(e);
            match error.code() {
                ErrorCode::NotFound => {
                    Error::new(ErrorCode::Source, format!("there is no object at {uri:?}"))
                }
                _ => error.context(format!("object {uri:?}")),
            }
        })?;
        let (base_id, uri) = match base {
            Some((base, relative)) => (base.id, relative),
            None => (0, absolute),
        };
        Ok(Found { base_id, uri, size, store, path })
    }

    /// The innermost registered base above a URI, and the object's path in it.
    fn base(&self, uri: &str) -> Result<Option<(&Registered, String)>> {
        let registry = self.datasets.session().store_registry();
        let path = ObjectStore::extract_path_from_uri(registry.clone(), uri)?;
        let inside = self.bases.iter().filter(|base| {
            let options = base.params.storage_options();
            registry
                .calculate_object_store_prefix(uri, options)
                .is_ok_and(|prefix| base.store.store_prefix == prefix)
        });
        Ok(inside
            .filter_map(|base| {
                let relative = Path::from_iter(path.prefix_match(&base.path)?);
                (!relative.as_ref().is_empty()).then(|| (base, relative.to_string()))
            })
            .max_by_key(|(base, _)| base.path.parts().count()))
    }
}

impl Found {
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let read = object_store::ObjectStoreExt::get_range(&self.store.inner, &self.path, range);
        read.await.map_err(|e| {
            Error::from(lance::Error::from(e))
                .with_code(ErrorCode::Source)
                .context(format!("object {:?}", self.uri))
        })
    }
}

/// As Lance stores a URI; a local path stands for its file.
fn absolute(uri: &str) -> Result<String> {
    let url = match uri.starts_with('/') {
        true => url::Url::from_file_path(uri).ok(),
        false => url::Url::parse(uri).ok(),
    };
    let url = url.ok_or_else(|| Error::invalid(format!("{uri:?} is no absolute URI")))?;
    Ok(url.to_string())
}
