//! What a cleanup removes, or would remove: the payload of its results.

use std::collections::BTreeMap;

use lance::dataset::cleanup::CleanupFileKind;
use serde::{Deserialize, Serialize};

use crate::operations::Metrics;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Data,
    /// Payloads beside a data file.
    BlobSidecar,
    /// Payloads that several data files may share.
    ManagedBlob,
    Deletion,
    Index,
    Transaction,
    Manifest,
    /// What was still being written.
    Temporary,
}

impl Kind {
    const ALL: [(Self, &'static str); 8] = [
        (Self::Data, "data"),
        (Self::BlobSidecar, "blob_sidecar"),
        (Self::ManagedBlob, "managed_blob"),
        (Self::Deletion, "deletion"),
        (Self::Index, "index"),
        (Self::Transaction, "transaction"),
        (Self::Manifest, "manifest"),
        (Self::Temporary, "temporary"),
    ];

    /// Of a file of Lance's own list.
    pub fn of(kind: CleanupFileKind, path: &str) -> Self {
        match kind {
            CleanupFileKind::Manifest => Self::Manifest,
            CleanupFileKind::Transaction => Self::Transaction,
            CleanupFileKind::Index => Self::Index,
            CleanupFileKind::Deletion => Self::Deletion,
            CleanupFileKind::TemporaryManifest => Self::Temporary,
            CleanupFileKind::Data if !path.ends_with(".blob") => match path.ends_with(".lance") {
                true => Self::Data,
                false => Self::Temporary,
            },
            CleanupFileKind::Data if path.split('/').any(|part| part == "_blobs") => {
                Self::ManagedBlob
            }
            CleanupFileKind::Data => Self::BlobSidecar,
        }
    }
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct File {
    /// Relative to the dataset's root, or to the base.
    pub path: String,
    /// The location of the registered base that holds it; none = the dataset's own storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    pub kind: Kind,
    pub size: u64,
    /// Whether it belongs to no version: left behind by work that was never committed.
    pub unverified: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Count {
    pub files: u64,
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, file: &File) {
        self.files += 1;
        self.bytes += file.size;
    }
}

/// A branch that stands on a version of the dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Branch {
    pub name: String,
    pub version: u64,
    /// Whether it is cleaned too, as far as its own configuration says so.
    pub cleaned: bool,
}

/// A base whose files are left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SkippedBase {
    pub path: String,
    pub reason: String,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// Whether the files have been removed; else they would be.
    pub removed: bool,
    /// How many versions.
    pub versions: u64,
    /// Which, as runs from a first to a last one; those of branches are counted only.
    pub version_ranges: Vec<(u64, u64)>,
    pub total: Count,
    pub kinds: BTreeMap<Kind, Count>,
    /// Among them: files that belong to no version.
    pub uncommitted: Count,
    pub branches: Vec<Branch>,
    pub skipped_bases: Vec<SkippedBase>,
    /// Ordered by their places.
    pub files: Vec<File>,
    /// Whether there are more than are listed.
    pub files_truncated: bool,
}

impl Report {
    pub fn new<'a>(files: impl Iterator<Item = &'a File>, limit: usize) -> Self {
        let mut report = Self::default();
        let mut all: Vec<&File> = files.collect();
        all.sort_by(|a, b| (&a.base, &a.path).cmp(&(&b.base, &b.path)));
        for file in &all {
            report.total.add(file);
            report.kinds.entry(file.kind).or_default().add(file);
            if file.unverified {
                report.uncommitted.add(file);
            }
        }
        report.files_truncated = all.len() > limit;
        report.files = all.into_iter().take(limit).cloned().collect();
        report
    }

    /// The same as numbers.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = Metrics::from([
            ("dry_run".into(), u64::from(!self.removed)),
            ("versions".into(), self.versions),
        ]);
        let mut put = |name: &str, count: &Count| {
            metrics.insert(format!("{name}files"), count.files);
            metrics.insert(format!("{name}bytes"), count.bytes);
        };
        put("", &self.total);
        put("uncommitted_", &self.uncommitted);
        for (kind, name) in Kind::ALL {
            let count = self.kinds.get(&kind).copied().unwrap_or_default();
            put(&format!("{name}_"), &count);
        }
        metrics
    }
}

/// Ascending versions as runs.
pub(super) fn ranges(versions: &[u64]) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for version in versions {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *version => *last = *version,
            _ => ranges.push((*version, *version)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_runs() {
        assert_eq!(ranges(&[1, 2, 3, 7, 9, 10]), [(1, 3), (7, 7), (9, 10)]);
        assert!(ranges(&[]).is_empty());
    }

    #[test]
    fn every_kind_has_its_name() {
        for (kind, name) in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), name);
        }
    }
}
