//! Abort: delete what attempts that were not committed have written.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use lance::Dataset;
use lance::index::DatasetIndexExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::history::History;
use super::owned::{FOLDERS, owned};
use crate::dataset::{Bases, bases_of, data_file_path};
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
    /// Files of the results that a version of the dataset refers to: not removed.
    pub kept: u64,
}

pub(crate) async fn abort(
    running: &Running,
    job: &Job,
    results: &[TaskResult],
) -> Result<AbortReport> {
    attempts(job, results)?;
    if !job.state.makes_version() {
        // Nor does it write files.
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
    let mut referenced = HashSet::new();
    let mut transactions = HashSet::new();
    let history = match History::read(running, job).await {
        // The dataset is gone, and with it all versions that could need the files.
        Err(error) if error.code() == ErrorCode::NotFound => None,
        history => Some(history?),
    };
    let latest = history.as_ref().and_then(|h| h.latest().cloned());
    if let (Some(history), Some(latest)) = (history, &latest) {
        bases.extend(bases_of(latest));
        references(latest, &mut referenced).await?;
        for version in history.versions() {
            references(&history.at(running, job, version).await?, &mut referenced).await?;
        }
        // Files that only the pinned version needs are no task's either.
        if job.read_version > 0
            && let Ok(pinned) = history.at(running, job, job.read_version).await
        {
            references(&pinned, &mut referenced).await?;
        }
        transactions = history.transactions;
    }
    let in_bases = if job.state.writes_to_bases() { bases.clone() } else { Bases::new() };
    // What the results do not list: of attempts that were killed, and of commits.
    let found = owned(running, &job.uri, &in_bases, Mark::of(job.id)).await?;
    let found: BTreeMap<_, _> = found.into_iter().map(|f| ((f.base, f.path), f.size)).collect();
    let (kept, mut doomed): (Vec<_>, Vec<_>) =
        files.into_iter().partition(|file| referenced.contains(&reference_key(file)));
    let unmarked: Vec<_> = doomed
        .extract_if(.., |file| !found.contains_key(&(file.base, file.path.clone())))
        .collect();
    // Made by another Lance client, and adopted; or gone.
    let sizes = running.datasets().sizes(&job.uri, options, &unmarked, &bases).await?;
    let mut bytes: u64 = sizes.iter().flatten().sum();
    doomed = unmarked.into_iter().zip(sizes).filter_map(|(f, size)| size.map(|_| f)).collect();
    for ((base, path), size) in found {
        let file = WrittenFile { path, size, base };
        let needed = match file.path.strip_prefix("_transactions/") {
            Some(name) => transactions.contains(name),
            None => referenced.contains(&reference_key(&file)),
        };
        if !needed {
            bytes += size;
            doomed.push(file);
        }
    }
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
    Ok(AbortReport { files_removed: count as u64, bytes_removed: bytes, kept: kept.len() as u64 })
}

/// A damaged result must not delete what is not a task's.
fn check_path(file: &WrittenFile) -> Result<()> {
    let inside =
        file.base.is_some() || file.path.starts_with("data/") || file.path.starts_with("_indices/");
    if !inside || file.path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Error::new(
            ErrorCode::Verification,
            format!("a result lists {:?}, which no task writes", file.path),
        ));
    }
    Ok(())
}

/// An index is referred to by its folder, a data file by its name.
pub(super) fn reference_key(file: &WrittenFile) -> (Option<u32>, String) {
    let mut parts = file.path.split('/');
    match (parts.next(), parts.next()) {
        (Some("_indices"), Some(uuid)) => (None, format!("_indices/{uuid}")),
        // A blob sidecar (data/<stem>/<id>.blob) lives as long as its data file.
        (Some("data"), Some(stem)) if parts.next().is_some() => {
            (file.base, format!("data/{stem}.lance"))
        }
        _ => (file.base, file.path.clone()),
    }
}

pub(super) async fn references(
    dataset: &Dataset,
    into: &mut HashSet<(Option<u32>, String)>,
) -> Result<()> {
    let bases = bases_of(dataset);
    for fragment in dataset.manifest.fragments.iter() {
        for file in fragment.referenced_lance_files() {
            into.insert((file.base_id, data_file_path(&file.path, file.base_id, &bases)));
        }
    }
    for index in dataset.load_indices().await?.iter() {
        into.insert((None, format!("_indices/{}", index.uuid)));
    }
    Ok(())
}

/// Remove, best effort, what a job's own later stages have used up.
pub(super) async fn remove_spent(running: &Running, job: &Job, files: Vec<WrittenFile>) {
    let folders = folders(&files);
    let options = &running.call.storage_options;
    let bases = Bases::new();
    let removed = running.call.limit(running.datasets().remove(&job.uri, options, files, &bases));
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
