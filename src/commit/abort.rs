//! Abort: delete what attempts that were not committed have written.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use futures::StreamExt;
use lance::Dataset;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::files::{Reference, is_managed_blob, reference, references};
use super::history::History;
use super::owned::{FOLDERS, owned, within};
use crate::blob::managed;
use crate::dataset::{Bases, bases_of};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use crate::job::Job;
use crate::marks::Mark;
use crate::plan::attempts;
use crate::result::{TaskResult, WrittenFile};

/// What an abort did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AbortReport {
    pub files_removed: u64,
    pub bytes_removed: u64,
    /// Files of the results that a version of the dataset refers to, or managed blobs of other jobs: not
    /// removed.
    pub kept: u64,
}

pub(crate) async fn abort(
    running: &Running,
    job: &Job,
    results: &[TaskResult],
) -> Result<AbortReport> {
    attempts(job, results)?;
    if job.reads() {
        return Ok(AbortReport::default());
    }
    let mut files: BTreeSet<WrittenFile> = BTreeSet::new();
    for result in results {
        for file in &result.files {
            check_path(file)?;
            files.insert(file.clone());
        }
    }
    let options = &running.call.storage_options;
    let mut bases = job.state.bases();
    let history = match History::read(running, job).await {
        // The dataset is gone, and with it all versions that could need the files.
        Err(error) if error.code() == ErrorCode::NotFound => None,
        history => Some(history?),
    };
    let latest = history.as_ref().and_then(|history| history.latest());
    if let Some(latest) = latest {
        bases.extend(bases_of(latest));
    }
    let in_bases = if job.state.writes_to_bases() { bases.clone() } else { Bases::new() };
    let mark = Mark::of(job.id);
    // What the results do not list: of attempts that were killed, and of commits.
    let mut found: BTreeSet<WrittenFile> =
        owned(running, &job.uri, &in_bases, mark).await?.into_iter().collect();
    // In the folder of a segment that another client began, a merge or commit may have ended it.
    for uuid in segments(&files).into_iter().filter(|uuid| !mark.owns_uuid(*uuid)) {
        found.extend(within(running, &job.uri, &format!("_indices/{uuid}")).await?);
    }
    let known: HashSet<_> = found.iter().map(|file| (file.base, file.path.clone())).collect();
    // Made by another Lance client, and adopted; or gone.
    let unknown = files.iter().filter(|file| !known.contains(&(file.base, file.path.clone())));
    let unknown: Vec<_> = unknown.cloned().collect();
    let sizes = running.datasets().sizes(&job.uri, options, &unknown, &bases).await?;
    let there = unknown.into_iter().zip(sizes);
    found.extend(there.filter_map(|(file, size)| Some(WrittenFile { size: size?, ..file })));
    let needed = match &history {
        Some(history) => Needed::by(running, job, history, &found).await?,
        None => Needed::nothing(job),
    };
    let doomed: Vec<_> = found.into_iter().filter(|file| !needed.has(file)).collect();
    let kept = files.iter().filter(|file| needed.has(file)).count() as u64;
    let bytes = doomed.iter().map(|file| file.size).sum();
    let folders = folders(&doomed);
    let count = doomed.len();
    let left = running.datasets().remove(&job.uri, options, doomed, &bases).await?;
    if let Some(file) = left.first() {
        return Err(Error::new(
            ErrorCode::Io,
            format!(
                "{} of {count} files could not be removed, the first is {}",
                left.len(),
                file.path
            ),
        ));
    }
    remove_empty_folders(&job.uri, folders, latest.is_none());
    Ok(AbortReport { files_removed: count as u64, bytes_removed: bytes, kept })
}

/// What versions of the dataset refer to.
struct Needed {
    mark: Mark,
    files: HashSet<Reference>,
    transactions: HashSet<String>,
    /// Payloads of managed blobs.
    blobs: HashSet<String>,
}

impl Needed {
    fn nothing(job: &Job) -> Self {
        Self {
            mark: Mark::of(job.id),
            files: HashSet::new(),
            transactions: HashSet::new(),
            blobs: HashSet::new(),
        }
    }

    /// What has to be known of the versions to decide about these files.
    async fn by(
        running: &Running,
        job: &Job,
        history: &History,
        files: &BTreeSet<WrittenFile>,
    ) -> Result<Self> {
        let mut needed = Self::nothing(job);
        needed.transactions.clone_from(&history.transactions);
        let Some(latest) = history.latest() else { return Ok(needed) };
        references(latest, &mut needed.files).await?;
        // Most often the newest version needs all that any does. One before it may need what was
        // replaced since, also where another client committed the job's results; and what the pinned
        // version needs is no task's.
        let is_data = |file: &&WrittenFile| !file.path.starts_with("_transactions/");
        if files.iter().filter(is_data).all(|file| needed.has(file)) {
            return Ok(needed);
        }
        let before = job.read_version.max(1)..latest.manifest.version;
        let mut versions = futures::stream::iter(before)
            .map(|version| history.at(running, job, version))
            .buffered(16);
        let blobs = files.iter().any(|file| needed.is_own_blob(file));
        let mut seen = HashSet::new();
        while let Some(version) = versions.next().await {
            match version {
                Ok(version) => needed.add(&version, blobs, &mut seen).await?,
                // Cleaned away.
                Err(error)
                    if matches!(error.code(), ErrorCode::VersionGone | ErrorCode::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        needed.add(latest, blobs, &mut seen).await?;
        Ok(needed)
    }

    /// `blobs`: also of managed blobs, whose references are in the rows.
    async fn add(
        &mut self,
        version: &Dataset,
        blobs: bool,
        seen: &mut HashSet<String>,
    ) -> Result<()> {
        references(version, &mut self.files).await?;
        if blobs {
            let version = Arc::new(version.clone());
            managed::references(&version, seen, &mut |path| {
                self.blobs.insert(path.to_owned());
            })
            .await?;
        }
        Ok(())
    }

    /// A payload that the job has written; others may refer to it by way of the job's rows only.
    fn is_own_blob(&self, file: &WrittenFile) -> bool {
        is_managed_blob(file) && file.path.split('/').any(|part| self.mark.owns(part))
    }

    fn has(&self, file: &WrittenFile) -> bool {
        match file.path.strip_prefix("_transactions/") {
            Some(name) => self.transactions.contains(name),
            None if self.is_own_blob(file) => self.blobs.contains(&file.path),
            None => is_managed_blob(file) || self.files.contains(&reference(file)),
        }
    }
}

/// A damaged result must not delete what is not a task's.
fn check_path(file: &WrittenFile) -> Result<()> {
    const WRITTEN: [&str; 3] = ["data/", "_indices/", "_blobs/"];
    let inside = file.base.is_some() || WRITTEN.iter().any(|place| file.path.starts_with(place));
    if !inside || file.path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Error::new(
            ErrorCode::Verification,
            format!("a result lists {:?}, which no task writes", file.path),
        ));
    }
    Ok(())
}

/// The index segments among these files.
fn segments<'a>(files: impl IntoIterator<Item = &'a WrittenFile>) -> BTreeSet<Uuid> {
    let segment = |file: &WrittenFile| {
        let (uuid, _) = file.path.strip_prefix("_indices/")?.split_once('/')?;
        Uuid::try_parse(uuid).ok()
    };
    files.into_iter().filter_map(segment).collect()
}

/// Remove, best effort, what a job's own later stages have used up: segments with all that is in their
/// folders, as a merge ends what another client began.
pub(super) async fn remove_spent(running: &Running, job: &Job, files: Vec<WrittenFile>) {
    let mut doomed: BTreeSet<WrittenFile> = BTreeSet::new();
    for uuid in segments(&files) {
        let folder = format!("_indices/{uuid}");
        let found = running.call.limit(within(running, &job.uri, &folder)).await;
        doomed.extend(found.into_iter().flatten());
    }
    doomed.extend(files);
    let doomed: Vec<WrittenFile> = doomed.into_iter().collect();
    let folders = folders(&doomed);
    let options = &running.call.storage_options;
    let bases = Bases::new();
    let removed = running.call.limit(running.datasets().remove(&job.uri, options, doomed, &bases));
    if removed.await.is_ok() {
        remove_empty_folders(&job.uri, folders, false);
    }
}

fn folders(files: &[WrittenFile]) -> BTreeSet<String> {
    let own = files.iter().filter(|f| f.base.is_none());
    let folders = own.filter_map(|f| f.path.rsplit_once('/').map(|(folder, _)| folder.to_owned()));
    // Lance leaves the folder empty that it puts a full-text segment together in.
    folders.flat_map(|folder| [format!("{folder}/staging"), folder]).collect()
}

/// Local file systems keep empty folders; object stores have none.
fn remove_empty_folders(uri: &str, folders: BTreeSet<String>, and_root: bool) {
    if uri.contains("://") {
        return;
    }
    let root = std::path::Path::new(uri);
    // A dataset that was never made may have folders in which nothing was begun.
    let made = FOLDERS.iter().filter(|_| and_root).map(|f| (*f).to_owned());
    for folder in folders.into_iter().rev().chain(made) {
        let mut path = root.join(folder);
        while path != root && std::fs::remove_dir(&path).is_ok() {
            path.pop();
        }
    }
    if and_root {
        let _ = std::fs::remove_dir(root);
    }
}
