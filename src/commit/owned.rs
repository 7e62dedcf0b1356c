//! The files of a job, found by its mark in their names: also those of processes that were killed.

use std::path::Path as LocalPath;

use futures::TryStreamExt;
use lance_table::format::BasePath;

use crate::dataset::{Bases, join, local_folder};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use crate::marks::Mark;
use crate::result::WrittenFile;

/// Where tasks and commits write, below a dataset's root.
pub(super) const FOLDERS: [&str; 5] = ["data", "_indices", "_transactions", "_versions", "_blobs"];

/// Everything under the dataset's location, and under `bases`, that has the job's mark. One listing of
/// the folders: a request per thousand files on an object store.
pub(super) async fn owned(
    running: &Running,
    uri: &str,
    bases: &Bases,
    mark: Mark,
) -> Result<Vec<WrittenFile>> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        list(running, Place::Dataset(uri), folder, Some(mark), &mut files).await?;
    }
    for base in bases.values() {
        let folder = if base.is_dataset_root { "data" } else { "" };
        list(running, Place::Base(base), folder, Some(mark), &mut files).await?;
    }
    Ok(files)
}

/// Everything in a folder of the dataset, whoever wrote it.
pub(super) async fn within(running: &Running, uri: &str, folder: &str) -> Result<Vec<WrittenFile>> {
    let mut files = Vec::new();
    list(running, Place::Dataset(uri), folder, None, &mut files).await?;
    Ok(files)
}

/// Where to look.
#[derive(Clone, Copy)]
enum Place<'a> {
    Dataset(&'a str),
    Base(&'a BasePath),
}

async fn list(
    running: &Running,
    place: Place<'_>,
    folder: &str,
    mark: Option<Mark>,
    into: &mut Vec<WrittenFile>,
) -> Result<()> {
    let (location, base) = match place {
        Place::Dataset(uri) => (uri, None),
        Place::Base(base) => (base.path.as_str(), Some(base.id)),
    };
    if let Some(root) = local_folder(location) {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        return walk(&root.join(folder), &prefix, base, mark, into)
            .map_err(|e| Error::new(ErrorCode::Io, format!("{location}/{folder}: {e}")));
    }
    let options = &running.call.storage_options;
    let (store, root) = match place {
        Place::Dataset(uri) => running.datasets().store(uri, options).await?,
        Place::Base(base) => running.datasets().base_store(base, options).await?,
    };
    let start = join(&root, folder);
    let mut found = store.inner.list(Some(&start));
    loop {
        let meta = match found.try_next().await {
            Ok(Some(meta)) => meta,
            Ok(None) | Err(object_store::Error::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(Error::from(lance::Error::from(error)).context(location)),
        };
        let name = meta.location.prefix_match(&start).and_then(|mut parts| parts.next());
        let wanted = |name: &str| mark.is_none_or(|mark| mark.owns(name));
        if !name.is_some_and(|name| wanted(name.as_ref())) {
            continue;
        }
        if let Some(path) = meta.location.as_ref().strip_prefix(root.as_ref()) {
            let path = path.trim_start_matches('/').to_owned();
            into.push(WrittenFile { path, size: meta.size, base });
        }
    }
}

/// By the file system: the store hides files that are being written.
fn walk(
    folder: &LocalPath,
    prefix: &str,
    base: Option<u32>,
    mark: Option<Mark>,
    into: &mut Vec<WrittenFile>,
) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if mark.is_some_and(|mark| !mark.owns(name)) {
            continue;
        }
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => {
                walk(&entry.path(), &format!("{prefix}{name}/"), base, None, into)?;
            }
            Ok(meta) => {
                into.push(WrittenFile { path: format!("{prefix}{name}"), size: meta.len(), base });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
