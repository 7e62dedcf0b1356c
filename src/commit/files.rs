//! The files of results: whether they are there and new, and by what a version refers to them.

use std::collections::{HashMap, HashSet};

use lance::Dataset;
use lance::index::DatasetIndexExt;
use uuid::Uuid;

use super::history::History;
use crate::dataset::{Bases, bases_of, data_file_path};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use crate::job::Job;
use crate::result::{TaskResult, WrittenFile};

/// What a version refers to: a base, and a data file or the folder of an index segment in it.
pub(super) type Reference = (Option<u32>, String);

/// Everything that the manifest will refer to must be there (an abort, or a cleanup, may have been
/// quicker), and be new.
pub(super) async fn check_files(
    running: &Running,
    job: &Job,
    history: &History,
    todo: &[(u32, TaskResult)],
) -> Result<()> {
    check_owners(todo.iter().map(|(_, result)| result))?;
    let files: Vec<WrittenFile> = todo.iter().flat_map(|(_, r)| r.files.iter().cloned()).collect();
    let mut taken = HashSet::new();
    if let Some(latest) = history.latest() {
        references(latest, &mut taken).await?;
    }
    if let Some(file) = files.iter().find(|file| taken.contains(&reference(file))) {
        return Err(in_use(running, job, file).await?);
    }
    let mut bases = job.state.bases();
    if job.read_version > 0 && files.iter().any(|f| f.base.is_some()) {
        bases.extend(bases_of(running.open(&job.uri, job.pin()).await?.as_ref()));
    }
    let options = &running.call.storage_options;
    let sizes = running.datasets().sizes(&job.uri, options, &files, &bases).await?;
    for (file, size) in files.iter().zip(sizes) {
        let wrong = match size {
            None => "is missing; was the job aborted or cleaned up?".to_owned(),
            Some(size) if file.size != 0 && size != file.size => {
                format!("has {size} bytes, its result says {}", file.size)
            }
            Some(_) => continue,
        };
        return Err(Error::new(ErrorCode::Verification, format!("file {} {wrong}", file.path)));
    }
    Ok(())
}

/// Two tasks may not claim one file, nor one task a part of what is another's.
fn check_owners<'a>(results: impl Iterator<Item = &'a TaskResult>) -> Result<()> {
    let mut owners: HashMap<Reference, Uuid> = HashMap::new();
    let mut paths = HashSet::new();
    for result in results {
        for file in result.files.iter().filter(|file| !is_managed_blob(file)) {
            let owner = *owners.entry(reference(file)).or_insert(result.task_id);
            if owner != result.task_id {
                return Err(Error::new(
                    ErrorCode::Verification,
                    format!("file {} is of another task too, {owner}", file.path),
                )
                .for_task(&result.task_id.to_string()));
            }
            if !paths.insert((file.base, &file.path)) {
                return Err(Error::new(
                    ErrorCode::Verification,
                    format!("file {} is listed twice", file.path),
                )
                .for_task(&result.task_id.to_string()));
            }
        }
    }
    Ok(())
}

/// A result's file is the dataset's already. Was it before the job began, no honest attempt has written
/// it; else another client has committed the same results.
async fn in_use(running: &Running, job: &Job, file: &WrittenFile) -> Result<Error> {
    let mut before = HashSet::new();
    if job.read_version > 0 {
        references(running.open(&job.uri, job.pin()).await?.as_ref(), &mut before).await?;
    }
    Ok(match before.contains(&reference(file)) {
        true => Error::new(
            ErrorCode::Verification,
            format!(
                "file {} was in the dataset before the job: version {} refers to it",
                file.path, job.read_version
            ),
        ),
        false => Error::new(
            ErrorCode::Conflict,
            format!("file {} is in the dataset already, by another commit", file.path),
        ),
    })
}

/// Of managed blobs the names follow from the bytes: tasks that write the same bytes share a file, and
/// rows of other jobs may refer to it.
pub(super) fn is_managed_blob(file: &WrittenFile) -> bool {
    file.path.starts_with("_blobs/")
}

/// An index segment is referred to by its folder, a data file by its name; a blob sidecar
/// (`<stem>/<id>.blob` beside `<stem>.lance`) lives as long as its data file.
pub(super) fn reference(file: &WrittenFile) -> Reference {
    let path = file.path.as_str();
    if let Some(uuid) = path.strip_prefix("_indices/").and_then(|rest| rest.split('/').next()) {
        return (None, format!("_indices/{uuid}"));
    }
    let (folder, name) = match path.strip_prefix("data/") {
        Some(name) => ("data/", name),
        // A base that is no dataset's root has its data files at its top.
        None if file.base.is_some() && !path.starts_with('_') => ("", path),
        None => return (file.base, path.to_owned()),
    };
    match name.split_once('/') {
        Some((stem, _)) => (file.base, format!("{folder}{stem}.lance")),
        None => (file.base, path.to_owned()),
    }
}

/// Everything that a version refers to.
pub(super) async fn references(dataset: &Dataset, into: &mut HashSet<Reference>) -> Result<()> {
    let bases: Bases = bases_of(dataset);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, base: Option<u32>) -> WrittenFile {
        WrittenFile { path: path.to_owned(), size: 1, base }
    }

    #[test]
    fn files_are_referred_to_by_what_they_belong_to() {
        for (path, base, expected) in [
            ("data/0101.lance", None, "data/0101.lance"),
            ("data/0101/1.blob", None, "data/0101.lance"),
            ("data/0101/1.blob", Some(2), "data/0101.lance"),
            ("0101/1.blob", Some(2), "0101.lance"),
            ("0101.lance", Some(2), "0101.lance"),
            ("_blobs/ab.blob", Some(2), "_blobs/ab.blob"),
            ("_blobs/ab.blob", None, "_blobs/ab.blob"),
            ("_transactions/1-a.txn", None, "_transactions/1-a.txn"),
        ] {
            assert_eq!(reference(&file(path, base)), (base, expected.to_owned()), "{path}");
        }
        let segment = (None, "_indices/u".to_owned());
        assert_eq!(reference(&file("_indices/u/staging/part_0.lance", None)), segment);
    }
}
