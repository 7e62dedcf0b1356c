//! What there is to be removed: what Lance's own cleanup would remove, what it leaves in other bases, and
//! what it leaves of work that was never committed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::cleanup::{CleanupExplanation, CleanupFileKind};
use lance_table::format::BasePath;
use lance_table::io::commit::ManifestNamingScheme;

use super::files::{Found, list_base};
use super::leftovers::leftovers;
use super::policy::Policy;
use super::references::{InBase, References};
use super::report::{Branch, File, Kind, Report, SkippedBase, ranges};
use crate::dataset::{Bases, base_location, bases_of};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use crate::result::WrittenFile;

/// Folders listed at a time.
const PARALLEL: usize = 16;

/// See the module.
pub(super) struct Survey {
    /// What Lance removes.
    lance: Vec<File>,
    /// Files in other bases.
    pub in_bases: Vec<File>,
    /// What is left in the dataset's own storage.
    pub leftovers: Vec<File>,
    /// The versions that may go; `None` = any.
    pub within: Option<HashSet<u64>>,
    /// How many manifests, and the versions of the dataset's own among them.
    manifests: u64,
    versions: Vec<u64>,
    branches: Vec<Branch>,
    skipped: Vec<SkippedBase>,
}

/// When a file that belongs to no version is certainly no more in use: Lance's own threshold.
const UNVERIFIED: Duration = Duration::from_secs(7 * 24 * 3600);

/// Which files that belong to no version may go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unverified {
    before: Option<SystemTime>,
}

impl Unverified {
    pub fn new(policy: &Policy) -> Self {
        let before = SystemTime::now().checked_sub(UNVERIFIED).unwrap_or(SystemTime::UNIX_EPOCH);
        Self { before: (!policy.delete_unverified).then_some(before) }
    }

    pub fn may_go(&self, found: &Found) -> bool {
        self.before.is_none_or(|before| found.modified < before)
    }
}

impl Survey {
    pub async fn make(cx: &Running, uri: &str, dataset: &Dataset, policy: &Policy) -> Result<Self> {
        let holders = holders(dataset).await?;
        let standing = standing(dataset).await?;
        let root = dataset.branch_location().path;
        let mut within = None;
        let mut explained = explain(policy, dataset, None).await?;
        if !policy.clean_referenced_branches {
            // Lance keeps a version that a branch needs, but not all that is the version's.
            let going = going(&explained, root.as_ref());
            let kept = standing.iter().map(|(_, version)| *version);
            let kept: HashSet<u64> = kept.filter(|version| !going.contains(version)).collect();
            if !kept.is_empty() {
                within = Some(policy.without(dataset, &kept).await?);
                explained = explain(policy, dataset, within.as_ref()).await?;
            }
        }
        let (mut lance, expired) = candidates(&explained, root.as_ref());
        let references = References::read(cx, uri, dataset, &expired).await?;
        check(uri, &lance, &references, policy)?;
        // To Lance, whatever is old enough is of no version.
        for file in lance.iter_mut().filter(|file| file.unverified) {
            file.unverified = !known(uri, file, &references);
        }
        let (in_bases, skipped) = in_bases(cx, &references, &bases_of(dataset)).await?;
        let listed: HashSet<&str> = lance.iter().map(|file| file.path.as_str()).collect();
        let unverified = Unverified::new(policy);
        let leftovers = leftovers(cx, uri, &references, unverified, &listed).await?;
        // A tag or branch that came meanwhile keeps files that were counted here.
        if !in_bases.is_empty() && self::holders(dataset).await? != holders {
            return Err(Error::new(
                ErrorCode::Io,
                "tags or branches have changed while files were being looked for; try again",
            ));
        }
        Ok(Self {
            manifests: expired.len() as u64,
            versions: references.removed,
            branches: branches(standing, policy),
            within,
            lance,
            in_bases,
            leftovers,
            skipped,
        })
    }

    fn files(&self) -> impl Iterator<Item = &File> {
        self.lance.iter().chain(&self.in_bases).chain(&self.leftovers)
    }

    /// Folders of files in the dataset's own storage.
    pub fn folders(&self) -> BTreeSet<String> {
        let files = self.lance.iter().chain(&self.leftovers);
        files.filter_map(|file| Some(file.path.rsplit_once('/')?.0.to_owned())).collect()
    }

    pub fn report(&self, policy: &Policy, removed: bool) -> Report {
        let limit = usize::try_from(policy.max_candidate_files).unwrap_or(usize::MAX);
        Report {
            removed,
            versions: self.manifests,
            version_ranges: ranges(&self.versions),
            branches: self.branches.clone(),
            skipped_bases: self.skipped.clone(),
            ..Report::new(self.files(), limit)
        }
    }
}

async fn explain(
    policy: &Policy,
    dataset: &Dataset,
    within: Option<&HashSet<u64>>,
) -> Result<CleanupExplanation> {
    let operation = policy.operation(dataset, within)?.with_max_candidate_files(usize::MAX);
    Ok(operation.explain().await?)
}

/// Lance's list, with paths relative to the dataset's root; and the manifests among it by their paths.
fn candidates(explained: &CleanupExplanation, root: &str) -> (Vec<File>, HashSet<String>) {
    let mut expired = HashSet::new();
    let files = explained.candidate_files.iter().map(|file| {
        let path = relative(&file.path, root).to_owned();
        let kind = Kind::of(file.kind, &path);
        if kind == Kind::Manifest {
            expired.insert(file.path.clone());
        }
        File { path, base: None, kind, size: file.size_bytes, unverified: file.unverified }
    });
    (files.collect(), expired)
}

/// The dataset's own versions that Lance would remove.
fn going(explained: &CleanupExplanation, root: &str) -> HashSet<u64> {
    let manifests =
        explained.candidate_files.iter().filter(|file| file.kind == CleanupFileKind::Manifest);
    let names = manifests.filter_map(|f| relative(&f.path, root).strip_prefix("_versions/"));
    names
        .filter_map(|name| ManifestNamingScheme::detect_scheme(name)?.parse_version(name))
        .collect()
}

fn relative<'a>(path: &'a str, root: &str) -> &'a str {
    path.strip_prefix(root).unwrap_or(path).trim_start_matches('/')
}

/// Tags and branches: what keeps a version beside its age.
async fn holders(dataset: &Dataset) -> Result<(BTreeSet<(String, u64)>, BTreeSet<String>)> {
    let tags = dataset.tags().list().await?;
    let branches = dataset.branches().list().await?;
    Ok((
        tags.into_iter().map(|(name, tag)| (name, tag.version)).collect(),
        branches.into_keys().collect(),
    ))
}

/// Branches, and the versions of this one that they and those on them begin with.
async fn standing(dataset: &Dataset) -> Result<Vec<(String, u64)>> {
    let branches = dataset.branches().list().await?;
    let mut standing = dataset.branch_identifier().await?.collect_referenced_versions(&branches);
    standing.sort();
    Ok(standing)
}

fn branches(standing: Vec<(String, u64)>, policy: &Policy) -> Vec<Branch> {
    let cleaned = policy.clean_referenced_branches;
    let branches = standing.into_iter().map(|(name, version)| Branch { name, version, cleaned });
    branches.collect()
}

/// Lance knows nothing of detached versions; and nothing that is kept may be lost by any oversight.
fn check(uri: &str, files: &[File], references: &References, policy: &Policy) -> Result<()> {
    for file in files {
        let needed = match file.kind {
            Kind::Data | Kind::Deletion => references.keeps(uri, &file.path),
            // With branches cleaned, Lance keeps those of its versions without that are built upon.
            Kind::Transaction if !policy.clean_referenced_branches => {
                references.keeps(uri, &file.path)
            }
            Kind::BlobSidecar => match file.path.rsplit_once('/') {
                Some((folder, _)) => references.keeps(uri, &format!("{folder}.lance")),
                None => false,
            },
            _ => false,
        };
        if needed {
            return Err(Error::new(
                ErrorCode::NotSupported,
                format!(
                    "a version that is kept, a detached one perhaps, refers to {}, which Lance's \
                     cleanup would remove; nothing was removed",
                    file.path
                ),
            ));
        }
    }
    Ok(())
}

/// Whether a removed version refers to a file of Lance's list.
fn known(uri: &str, file: &File, references: &References) -> bool {
    match file.kind {
        Kind::Data | Kind::Deletion => references.knew(uri, &file.path),
        Kind::BlobSidecar => match file.path.rsplit_once('/') {
            Some((folder, _)) => references.knew(uri, &format!("{folder}.lance")),
            None => false,
        },
        Kind::Index => {
            let parts: Vec<&str> = file.path.split('/').collect();
            let folder = parts.iter().position(|part| *part == "_indices").map(|at| at + 2);
            let folder = folder.and_then(|end| parts.get(..end));
            folder.is_some_and(|parts| references.knew(uri, &parts.join("/")))
        }
        Kind::ManagedBlob | Kind::Transaction | Kind::Manifest | Kind::Temporary => false,
    }
}

/// Files of removed versions in other bases. Only these are certainly the dataset's own: a base may hold
/// what others have put there, and what is not committed yet.
async fn in_bases(
    cx: &Running,
    references: &References,
    registered: &Bases,
) -> Result<(Vec<File>, Vec<SkippedBase>)> {
    let files: Vec<&InBase> = references.in_bases().collect();
    if files.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    if let Some(reason) = shared(cx, references, registered).await? {
        let bases: BTreeSet<&String> = files.iter().map(|file| &file.base).collect();
        let skipped = bases.into_iter().map(|base| SkippedBase {
            path: base.clone(),
            reason: format!("the dataset is {reason}: files there may be those of another"),
        });
        return Ok((Vec::new(), skipped.collect()));
    }
    let (bases, written) =
        addressed(files.iter().map(|file| (&file.base, &file.path, 0)), registered);
    let options = &cx.call.storage_options;
    let sizes = cx.datasets().sizes("", options, &written, &bases).await?;
    let mut found: Vec<File> = files
        .iter()
        .zip(sizes)
        .filter_map(|(file, size)| Some(file.file(file.path.clone(), Kind::Data, size?)))
        .collect();
    let with_blobs: Vec<InBase> =
        files.into_iter().filter(|file| file.blobs && !references.managed).cloned().collect();
    let sidecars: Vec<Vec<File>> = futures::stream::iter(with_blobs)
        .map(|file| sidecars(cx, file, registered))
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    found.extend(sidecars.into_iter().flatten());
    Ok((found, Vec::new()))
}

/// The blobs beside a data file.
async fn sidecars(cx: &Running, file: InBase, registered: &Bases) -> Result<Vec<File>> {
    let folder = file.path.trim_end_matches(".lance");
    let base = base_at(&file.base, registered, 0);
    let beside = list_base(cx, &base, folder).await?.into_iter();
    let beside = beside.filter(|found| is_sidecar(&found.path, folder));
    Ok(beside.map(|found| file.file(found.path, Kind::BlobSidecar, found.size)).collect())
}

impl InBase {
    /// A file of the base, which a removed version refers to.
    fn file(&self, path: String, kind: Kind, size: u64) -> File {
        File { path, base: Some(self.base.clone()), kind, size, unverified: false }
    }
}

/// `<folder>/<32 binary digits>.blob`, as Lance names them.
fn is_sidecar(path: &str, folder: &str) -> bool {
    let name = path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
    name.and_then(|name| name.strip_suffix(".blob"))
        .is_some_and(|id| id.len() == 32 && id.bytes().all(|b| matches!(b, b'0' | b'1')))
}

/// Whether files in bases may be another dataset's: then what the dataset is.
async fn shared(
    cx: &Running,
    references: &References,
    registered: &Bases,
) -> Result<Option<&'static str>> {
    if references.shared.is_some() {
        return Ok(references.shared);
    }
    for root in &references.roots {
        if !list_base(cx, &base_at(root, registered, 0), "_versions").await?.is_empty() {
            return Ok(Some("over the files of another dataset"));
        }
    }
    Ok(None)
}

/// Files by their bases' locations, as the store's helpers take them.
pub(super) fn addressed<'a>(
    files: impl Iterator<Item = (&'a String, &'a String, u64)>,
    registered: &Bases,
) -> (Bases, Vec<WrittenFile>) {
    let mut bases: HashMap<&String, BasePath> = HashMap::new();
    let mut written = Vec::new();
    for (base, path, size) in files {
        let nth = bases.len() as u32;
        let base = bases.entry(base).or_insert_with(|| base_at(base, registered, nth));
        written.push(WrittenFile { path: path.clone(), size, base: Some(base.id) });
    }
    (bases.into_values().map(|base| (base.id, base)).collect(), written)
}

/// The base at a location: by its id, as storage options may name it so. One that is not registered
/// any more is given an id that none has, another one for each `nth`.
fn base_at(location: &str, registered: &Bases, nth: u32) -> BasePath {
    let found = registered.values().find(|base| base_location(&base.path) == location);
    BasePath {
        id: found.map_or(u32::MAX - nth, |base| base.id),
        name: None,
        is_dataset_root: false,
        path: location.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecars_are_told_from_what_else_is_there() {
        let id = "01".repeat(16);
        assert!(is_sidecar(&format!("data/stem/{id}.blob"), "data/stem"));
        for path in [
            format!("data/stem/{id}"),
            format!("data/stem/x/{id}.blob"),
            "data/stem/photo.blob".into(),
        ] {
            assert!(!is_sidecar(&path, "data/stem"), "{path}");
        }
    }
}
