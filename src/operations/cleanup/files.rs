//! Listing files, on a local disk past the store: it hides what is still being written.

use std::path::Path;
use std::time::SystemTime;

use futures::TryStreamExt;
use lance_table::format::BasePath;

use crate::dataset::{join, local_folder};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;

/// A file that is there.
#[derive(Debug)]
pub(super) struct Found {
    /// Relative to the location.
    pub path: String,
    pub size: u64,
    pub modified: SystemTime,
}

/// All files in a folder below the dataset's location; none where there is no such folder.
pub(super) async fn list(cx: &Running, uri: &str, folder: &str) -> Result<Vec<Found>> {
    list_at(cx, uri, None, folder).await
}

/// The same of a base.
pub(super) async fn list_base(cx: &Running, base: &BasePath, folder: &str) -> Result<Vec<Found>> {
    list_at(cx, &base.path, Some(base), folder).await
}

async fn list_at(
    cx: &Running,
    location: &str,
    base: Option<&BasePath>,
    folder: &str,
) -> Result<Vec<Found>> {
    if let Some(root) = local_folder(location) {
        let (place, folder) = (format!("{location}/{folder}"), folder.to_owned());
        return tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            walk(&root, &folder, &mut found, &mut Vec::new()).map(|()| found)
        })
        .await
        .map_err(|e| Error::internal(format!("listing: {e}")))?
        .map_err(|e| Error::new(ErrorCode::Io, format!("{place}: {e}")));
    }
    let (datasets, options) = (cx.datasets(), &cx.call.storage_options);
    let (store, root) = match base {
        Some(base) => datasets.base_store(base, options).await?,
        None => datasets.store(location, options).await?,
    };
    let mut objects = store.inner.list(Some(&join(&root, folder)));
    let mut found = Vec::new();
    loop {
        let meta = match objects.try_next().await {
            Ok(Some(meta)) => meta,
            Ok(None) | Err(object_store::Error::NotFound { .. }) => return Ok(found),
            Err(error) => return Err(Error::from(lance::Error::from(error)).context(location)),
        };
        if let Some(path) = meta.location.as_ref().strip_prefix(root.as_ref()) {
            let path = path.trim_start_matches('/').to_owned();
            found.push(Found { path, size: meta.size, modified: meta.last_modified.into() });
        }
    }
}

/// Files below `root/folder`, and folders without any entry.
pub(super) fn walk(
    root: &Path,
    folder: &str,
    into: &mut Vec<Found>,
    empty: &mut Vec<Found>,
) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(root.join(folder)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut none = true;
    for entry in entries {
        none = false;
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let path = format!("{folder}/{name}");
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => walk(root, &path, into, empty)?,
            Ok(meta) => into.push(Found { path, size: meta.len(), modified: meta.modified()? }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    // Its age: when the last entry went.
    if none && let Ok(modified) = std::fs::metadata(root.join(folder)).and_then(|m| m.modified()) {
        empty.push(Found { path: folder.to_owned(), size: 0, modified });
    }
    Ok(())
}
