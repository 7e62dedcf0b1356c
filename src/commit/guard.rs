//! The guard: a commit handler around Lance's own that looks, before each manifest write, whether the
//! job has been committed already. Lance writes version n only where n is absent, so between the look at
//! everything below n and the write of n nobody can slip in.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use lance::Dataset;
use lance_io::object_store::ObjectStore;
use lance_table::format::pb::{self, Transaction as PbTransaction};
use lance_table::format::{IndexMetadata, Manifest, Transaction};
use lance_table::io::commit::{
    CommitError, CommitHandler, ManifestLocation, ManifestNamingScheme, ManifestWriter,
    commit_handler_from_url,
};
use object_store::path::Path;
use object_store::{ObjectStore as OSObjectStore, PutMode, PutOptions};
use prost::Message;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::history::{History, Seen, TaskSet, look};
use crate::dataset::{Datasets, StorageOptions, store_params};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use crate::job::Job;
use crate::marks::Marks;

/// What may come between the pinned version and the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Concurrency {
    /// What Lance can rebase over.
    Rebase,
    /// Nothing: the operation replaces what it was prepared on.
    Exclusive,
    /// The commit makes version 1.
    Create,
}

type LanceResult<T> = lance_core::Result<T>;

/// Looks at a manifest that is about to be written; an error keeps it from being written.
#[async_trait::async_trait]
pub(super) trait BeforeCommit: std::fmt::Debug + Send + Sync {
    async fn before(&self, manifest: &Manifest, transaction: PbTransaction) -> Result<()>;
}

/// Lance's own handler for the location, with a look before each write.
pub(super) struct Guard {
    inner: Arc<dyn CommitHandler>,
    hook: Arc<dyn BeforeCommit>,
    marks: Arc<Marks>,
    datasets: Datasets,
    options: StorageOptions,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("inner", &self.inner).field("hook", &self.hook).finish()
    }
}

impl Guard {
    pub async fn new(
        running: &Running,
        uri: &str,
        hook: Arc<dyn BeforeCommit>,
        marks: &Arc<Marks>,
    ) -> Result<Arc<Self>> {
        let params = store_params(&running.call.storage_options);
        let inner = commit_handler_from_url(uri, &Some(params)).await?;
        Ok(Arc::new(Self {
            inner,
            hook,
            marks: marks.clone(),
            datasets: running.datasets().clone(),
            options: running.call.storage_options.clone(),
        }))
    }

    /// A store that takes no notice of the condition of a put would let one writer overwrite another's
    /// manifest. Ask it once per process: the transaction's file is there, so to create it must fail.
    async fn check_store(
        &self,
        manifest: &Manifest,
        base_path: &Path,
        object_store: &ObjectStore,
    ) -> Result<()> {
        let Some(file) = &manifest.transaction_file else { return Ok(()) };
        let local = !object_store.is_cloud() || object_store.scheme().starts_with("file");
        let key = (object_store.store_prefix.clone(), self.options.clone());
        if local || self.datasets.conditional(&key) {
            return Ok(());
        }
        let path = base_path.clone().join("_transactions").join(file.as_str());
        let options = PutOptions { mode: PutMode::Create, ..Default::default() };
        match object_store.inner.put_opts(&path, Bytes::new().into(), options).await {
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => {
                self.datasets.set_conditional(key);
                Ok(())
            }
            Err(error) => Err(error.into()),
            Ok(_) => Err(Error::new(
                ErrorCode::NotSupported,
                "the object store has no conditional put (it ignores If-None-Match): concurrent commits \
                 would be lost silently",
            )),
        }
    }

    /// Name files as they were named when they were written.
    fn rename(&self, manifest: &mut Manifest, indices: &mut Option<Vec<IndexMetadata>>) {
        if let Some(file) = &mut manifest.transaction_file {
            *file = self.marks.mark().transaction(file);
        }
        for index in indices.iter_mut().flatten() {
            if let Some(uuid) = self.marks.given(index.uuid) {
                index.uuid = uuid;
            }
        }
    }

    fn rename_in(&self, transaction: &mut PbTransaction) {
        use pb::transaction::Operation as Op;
        let Some(Op::Rewrite(rewrite)) = &mut transaction.operation else { return };
        for id in rewrite.rewritten_indices.iter_mut().filter_map(|index| index.new_id.as_mut()) {
            let known = Uuid::from_slice(&id.uuid).ok();
            if let Some(given) = known.and_then(|uuid| self.marks.given(uuid)) {
                id.uuid = given.into_bytes().to_vec();
            }
        }
    }
}

/// Refuses what the job has committed already, or may not commit on top of.
#[derive(Debug)]
pub(super) struct ExactlyOnce {
    job: Job,
    tasks: TaskSet,
    concurrency: Concurrency,
    progress: Mutex<Looked>,
}

struct Looked {
    /// Reads history without the guard; `None` until the dataset exists.
    dataset: Option<Dataset>,
    /// Versions up to here have been looked at.
    version: u64,
}

impl std::fmt::Debug for Looked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Looked").field("version", &self.version).finish_non_exhaustive()
    }
}

impl ExactlyOnce {
    /// `tasks` are none that `history` has.
    pub fn new(job: &Job, tasks: TaskSet, history: &History) -> Arc<Self> {
        let concurrency = job.state.concurrency();
        let version = match concurrency {
            Concurrency::Rebase => history.seen(),
            Concurrency::Exclusive | Concurrency::Create => job.read_version,
        };
        let dataset = history.latest().cloned();
        let progress = Mutex::new(Looked { dataset, version });
        Arc::new(Self { concurrency, job: job.clone(), tasks, progress })
    }
}

#[async_trait::async_trait]
impl BeforeCommit for ExactlyOnce {
    async fn before(&self, manifest: &Manifest, transaction: PbTransaction) -> Result<()> {
        // Ids reserved for compaction change no rows and belong to no task.
        if matches!(transaction.operation, Some(pb::transaction::Operation::ReserveFragments(_))) {
            return Ok(());
        }
        let version = manifest.version;
        let conflict = |message: String| Err(Error::new(ErrorCode::Conflict, message));
        if self.concurrency == Concurrency::Create {
            return match version {
                1 => Ok(()),
                _ => conflict(format!("dataset {} was created by another writer", self.job.uri)),
            };
        }
        let mut looked = self.progress.lock().await;
        let Looked { dataset, version: done } = &mut *looked;
        let Some(dataset) = dataset else {
            return Err(crate::dataset::not_found(&self.job.uri));
        };
        for other in *done + 1..version {
            match look(dataset, &self.job, &self.tasks, other).await? {
                Seen::Ours => {
                    return conflict(format!("the job was committed as version {other} already"));
                }
                Seen::Foreign if self.concurrency == Concurrency::Exclusive => {
                    return conflict(format!(
                        "dataset {} is at version {other}, this job replaces version {}: what was \
                         written in between would be lost",
                        self.job.uri, self.job.read_version
                    ));
                }
                Seen::Foreign => *done = other,
            }
        }
        Ok(())
    }
}

/// Keeps the transaction and writes nothing: lets Lance work out a commit that is then made with the
/// job's own properties.
#[derive(Debug, Default)]
pub(super) struct Capture(std::sync::Mutex<Option<PbTransaction>>);

impl Capture {
    pub fn take(&self) -> Option<PbTransaction> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}

#[async_trait::async_trait]
impl BeforeCommit for Capture {
    async fn before(&self, _manifest: &Manifest, transaction: PbTransaction) -> Result<()> {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(transaction);
        Err(Error::internal("captured"))
    }
}

/// A transaction too large to stand in the manifest was written to its own file just before.
async fn read_transaction(
    manifest: &Manifest,
    base_path: &Path,
    object_store: &ObjectStore,
) -> LanceResult<PbTransaction> {
    let file = manifest
        .transaction_file
        .as_deref()
        .ok_or_else(|| lance_core::Error::internal("a commit without a transaction"))?;
    let bytes =
        object_store.read_one_all(&base_path.clone().join("_transactions").join(file)).await?;
    PbTransaction::decode(bytes).map_err(|e| lance_core::Error::internal(e.to_string()))
}

#[async_trait::async_trait]
impl CommitHandler for Guard {
    async fn commit(
        &self,
        manifest: &mut Manifest,
        mut indices: Option<Vec<IndexMetadata>>,
        base_path: &Path,
        object_store: &ObjectStore,
        manifest_writer: ManifestWriter,
        naming_scheme: ManifestNamingScheme,
        mut transaction: Option<Transaction>,
    ) -> std::result::Result<ManifestLocation, CommitError> {
        self.rename(manifest, &mut indices);
        if let Some(transaction) = &mut transaction {
            self.rename_in(&mut transaction.inner);
        }
        let known = match &transaction {
            Some(transaction) => Ok(transaction.inner.clone()),
            None => read_transaction(manifest, base_path, object_store).await,
        };
        let known = known.map_err(CommitError::OtherError)?;
        self.hook
            .before(manifest, known)
            .await
            .map_err(|error| CommitError::OtherError(lance_core::Error::from(error)))?;
        self.check_store(manifest, base_path, object_store)
            .await
            .map_err(|error| CommitError::OtherError(lance_core::Error::from(error)))?;
        self.inner
            .commit(
                manifest,
                indices,
                base_path,
                object_store,
                manifest_writer,
                naming_scheme,
                transaction,
            )
            .await
    }

    // Everything else is the inner handler's.

    fn is_version_not_found_definitive(&self) -> bool {
        self.inner.is_version_not_found_definitive()
    }

    fn propagate_commit_error_after_success(&self) -> bool {
        self.inner.propagate_commit_error_after_success()
    }

    async fn resolve_latest_location(
        &self,
        base_path: &Path,
        object_store: &ObjectStore,
    ) -> LanceResult<ManifestLocation> {
        self.inner.resolve_latest_location(base_path, object_store).await
    }

    async fn resolve_version_location(
        &self,
        base_path: &Path,
        version: u64,
        object_store: &dyn OSObjectStore,
    ) -> LanceResult<ManifestLocation> {
        self.inner.resolve_version_location(base_path, version, object_store).await
    }

    async fn version_exists(
        &self,
        base_path: &Path,
        version: u64,
        object_store: &dyn OSObjectStore,
        naming_scheme: ManifestNamingScheme,
    ) -> LanceResult<bool> {
        self.inner.version_exists(base_path, version, object_store, naming_scheme).await
    }

    fn list_detached_manifest_locations<'a>(
        &self,
        base_path: &Path,
        object_store: &'a ObjectStore,
    ) -> BoxStream<'a, LanceResult<ManifestLocation>> {
        self.inner.list_detached_manifest_locations(base_path, object_store)
    }

    fn list_manifest_locations<'a>(
        &self,
        base_path: &Path,
        object_store: &'a ObjectStore,
        sorted_descending: bool,
    ) -> BoxStream<'a, LanceResult<ManifestLocation>> {
        self.inner.list_manifest_locations(base_path, object_store, sorted_descending)
    }

    fn list_manifest_locations_since<'a>(
        &self,
        base_path: &Path,
        object_store: &'a ObjectStore,
        since_version: u64,
    ) -> BoxStream<'a, LanceResult<ManifestLocation>> {
        self.inner.list_manifest_locations_since(base_path, object_store, since_version)
    }
}
