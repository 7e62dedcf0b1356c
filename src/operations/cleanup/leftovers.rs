//! What Lance's own cleanup leaves in the dataset's storage of work that was never committed: files that
//! were still being written, which a local store hides from it; the folders in which this library puts
//! data files together; transactions and deletion files that are newer than the oldest version kept.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use super::files::{Found, list, walk};
use super::references::References;
use super::report::{File, Kind};
use super::survey::Unverified;
use crate::dataset::local_folder;
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use crate::marks::{is_marked, is_staged_manifest};

/// Where work leaves files, below a dataset's root.
const FOLDERS: [&str; 6] =
    ["data", "_blobs", "_deletions", "_indices", "_transactions", "_versions"];
/// Where whole files may be left that an object store lists.
const LISTED: [&str; 2] = ["_deletions", "_transactions"];

/// Files that no version refers to; `known` are those that Lance removes.
pub(super) async fn leftovers(
    cx: &Running,
    uri: &str,
    references: &References,
    unverified: Unverified,
    known: &HashSet<&str>,
) -> Result<Vec<File>> {
    let folders: &[&str] = if local_folder(uri).is_some() { &FOLDERS } else { &LISTED };
    let mut files = Vec::new();
    for folder in folders {
        for found in list(cx, uri, folder).await? {
            let Some(kind) = kind(&found.path) else { continue };
            let staged = data_file_of_folder(&found.path);
            let needed = references.keeps(uri, &found.path)
                || staged.is_some_and(|file| references.keeps(uri, &file));
            if !needed && unverified.may_go(&found) && !known.contains(found.path.as_str()) {
                let Found { path, size, .. } = found;
                files.push(File { path, base: None, kind, size, unverified: true });
            }
        }
    }
    Ok(files)
}

/// What a file of that name was to be; `None` where it is none that this is about.
fn kind(path: &str) -> Option<Kind> {
    let parts: Vec<&str> = path.split('/').collect();
    let name = parts.last()?;
    let begun = name.rsplit_once('#').is_some_and(|(_, n)| n.parse::<u64>().is_ok());
    if begun || name.starts_with(".tmp") {
        return Some(Kind::Temporary);
    }
    match parts.as_slice() {
        ["_versions", name] => is_staged_manifest(name).then_some(Kind::Temporary),
        ["data", folder, _, ..] if parts.len() > 3 && is_marked(folder) => Some(Kind::Temporary),
        ["_transactions", name] => name.ends_with(".txn").then_some(Kind::Transaction),
        ["_deletions", name] => {
            (name.ends_with(".arrow") || name.ends_with(".bin")).then_some(Kind::Deletion)
        }
        _ => None,
    }
}

/// The data file that a folder is named after.
fn data_file_of_folder(path: &str) -> Option<String> {
    let folder = path.strip_prefix("data/")?.split('/').next()?;
    Some(format!("data/{folder}.lance"))
}

/// Remove folders that are empty now: those of removed files, and such as were left long ago. Best
/// effort; only local file systems have any.
pub(super) fn remove_empty_folders(uri: &str, emptied: &BTreeSet<String>, unverified: Unverified) {
    let Some(root) = local_folder(uri) else { return };
    let stale = || -> std::io::Result<Vec<Found>> {
        let (mut files, mut empty) = (Vec::new(), Vec::new());
        for folder in ["data", "_indices"] {
            walk(&root, folder, &mut files, &mut empty)?;
        }
        Ok(empty)
    };
    let empty = stale().unwrap_or_default().into_iter();
    let stale = empty.filter(|f| unverified.may_go(f)).map(|found| found.path);
    for folder in emptied.iter().cloned().chain(stale) {
        remove_upwards(&root, &folder);
    }
}

/// The folder, and those above it that are empty then, as far as the dataset's own ones.
fn remove_upwards(root: &Path, folder: &str) {
    let mut folder = folder;
    while let Some((above, _)) = folder.rsplit_once('/') {
        if std::fs::remove_dir(root.join(folder)).is_err() {
            return;
        }
        folder = above;
    }
}

/// The error of files that could not be removed.
pub(super) fn not_removed(count: usize, first: &str) -> Error {
    Error::new(
        ErrorCode::Io,
        format!("{count} files could not be removed, the first is {first}; the others are gone"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_from_what_is_used() {
        let marked = format!("{}{}", "01".repeat(12), "0123456789abcdef".repeat(2));
        for (path, expected) in [
            ("data/x.lance#1".to_owned(), Some(Kind::Temporary)),
            ("data/stem/.tmpAbC".into(), Some(Kind::Temporary)),
            (format!("data/{marked}/stem/1.blob"), Some(Kind::Temporary)),
            (format!("data/{marked}/1.blob"), None),
            ("data/photos/2024/1.blob".into(), None),
            ("data/x.lance".into(), None),
            ("_versions/1.manifest".into(), None),
            ("_versions/notes.tmp".into(), None),
            (
                "_versions/0123456789abcdef-0123456789abcdef0123456789abcdef.tmp".into(),
                Some(Kind::Temporary),
            ),
            ("_transactions/1-x.txn".into(), Some(Kind::Transaction)),
            ("_deletions/1-2-3.arrow".into(), Some(Kind::Deletion)),
            ("_indices/x/index.idx".into(), None),
            ("_blobs/x.blob".into(), None),
            ("_blobs/.tmpX".into(), Some(Kind::Temporary)),
        ] {
            assert_eq!(kind(&path), expected, "{path}");
        }
    }
}
