//! What the dataset's versions refer to, read from every manifest: of all versions that are kept, those
//! of branches and detached ones among them, and of those that are to be removed.

use std::collections::{BTreeMap, HashSet};

use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance_io::object_store::ObjectStore;
use lance_table::format::{BasePath, Manifest};
use lance_table::io::commit::{CommitHandler, ManifestLocation, commit_handler_from_url};
use lance_table::io::deletion::relative_deletion_file_path;
use lance_table::io::manifest::{read_manifest, read_manifest_indexes};
use object_store::path::Path;

use crate::dataset::{base_location, store_params};
use crate::error::{Error, Result};
use crate::executor::Running;

/// Manifests read at a time.
const PARALLEL: usize = 16;

/// See the module.
#[derive(Default)]
pub(super) struct References {
    /// Keys of the data and deletion files and of the transactions that a kept version refers to.
    kept: HashSet<u128>,
    /// Keys of the data and deletion files and of the folders of indexes that a removed one refers to.
    gone: HashSet<u128>,
    /// Data files in other bases that removed versions refer to, by their keys.
    in_bases: BTreeMap<u128, InBase>,
    /// The versions to be removed, ascending; without those of branches.
    pub removed: Vec<u64>,
    /// Whether a kept version has managed blobs, which may be sidecars of removed data files.
    pub managed: bool,
    /// Bases that are said to be roots of datasets.
    pub roots: HashSet<String>,
    /// Files of another dataset are this one's too: which one it is.
    pub shared: Option<&'static str>,
}

/// A data file in a base.
#[derive(Debug, Clone)]
pub(super) struct InBase {
    /// Where the base is.
    pub base: String,
    /// Relative to it.
    pub path: String,
    /// Whether it may have blobs beside it.
    pub blobs: bool,
}

/// One line of versions: the dataset's main one, or a branch.
struct Lineage {
    root: Path,
    uri: String,
    own: bool,
}

impl References {
    /// `expired` are the paths of manifests that are to be removed.
    pub async fn read(
        cx: &Running,
        uri: &str,
        dataset: &Dataset,
        expired: &HashSet<String>,
    ) -> Result<Self> {
        let mut references = Self::default();
        if dataset.manifest.branch.is_some() {
            references.shared = Some("a branch");
        }
        let params = store_params(&cx.call.storage_options);
        let handler = commit_handler_from_url(uri, &Some(params)).await?;
        let store = dataset.object_store(None).await?;
        for lineage in lineages(uri, dataset).await? {
            let locations = locations(handler.as_ref(), &store, &lineage.root).await?;
            let mut manifests = futures::stream::iter(locations)
                .map(|location| manifest(&store, location, &lineage, dataset.manifest.version))
                .buffer_unordered(PARALLEL);
            while let Some(read) = manifests.try_next().await? {
                let Some((location, manifest)) = read else { continue };
                let removed = expired.contains(location.path.as_ref());
                references.add(&manifest, &lineage, removed);
                if removed {
                    references.add_indices(&store, &location, &manifest, &lineage).await?;
                }
            }
        }
        references.removed.sort_unstable();
        let kept = std::mem::take(&mut references.kept);
        references.in_bases.retain(|key, _| !kept.contains(key));
        references.kept = kept;
        Ok(references)
    }

    fn add(&mut self, manifest: &Manifest, lineage: &Lineage, removed: bool) {
        let bases = &manifest.base_paths;
        if lineage.own {
            // A clone registers what it was cloned from under an id that nothing else can have.
            if bases.contains_key(&0) {
                self.shared = self.shared.or(Some("a shallow clone"));
            }
            let roots = bases.values().filter(|base| base.is_dataset_root);
            self.roots.extend(roots.map(|base| base_location(&base.path)));
            if removed {
                self.removed.push(manifest.version);
            }
        }
        if !removed {
            self.managed |= manifest.has_managed_blobs();
            if let Some(file) = &manifest.transaction_file {
                self.kept.insert(key(&lineage.uri, &format!("_transactions/{file}")));
            }
        }
        let blobs = manifest.schema.fields_pre_order().any(|field| field.is_blob_v2());
        for fragment in manifest.fragments.iter() {
            for file in fragment.referenced_lance_files() {
                let base = file.base_id.map(|id| bases.get(&id));
                let (base, path) = match base {
                    None => (lineage.uri.clone(), format!("data/{}", file.path)),
                    Some(Some(base)) => (base_location(&base.path), in_base(base, &file.path)),
                    // What no base is known of is nowhere.
                    Some(None) => continue,
                };
                let key = key(&base, &path);
                if !removed {
                    self.kept.insert(key);
                    continue;
                }
                self.gone.insert(key);
                if lineage.own && file.base_id.is_some() && plain(&path) {
                    self.in_bases.insert(key, InBase { base, path, blobs });
                }
            }
            if let Some(file) = &fragment.deletion_file {
                let path = relative_deletion_file_path(fragment.id, file);
                let base = file.base_id.and_then(|id| bases.get(&id));
                let base =
                    base.map_or_else(|| lineage.uri.clone(), |base| base_location(&base.path));
                let files = if removed { &mut self.gone } else { &mut self.kept };
                files.insert(key(&base, &path));
            }
        }
    }

    async fn add_indices(
        &mut self,
        store: &ObjectStore,
        location: &ManifestLocation,
        manifest: &Manifest,
        lineage: &Lineage,
    ) -> Result<()> {
        match read_manifest_indexes(store, location, manifest).await {
            Ok(indices) => {
                let folders = indices.iter().map(|index| format!("_indices/{}", index.uuid));
                self.gone.extend(folders.map(|folder| key(&lineage.uri, &folder)));
                Ok(())
            }
            // Another cleanup was quicker.
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(Error::from(error).context(&location.path)),
        }
    }

    /// Whether a kept version refers to a data or deletion file, or to a transaction.
    pub fn keeps(&self, location: &str, path: &str) -> bool {
        self.kept.contains(&key(location, path))
    }

    /// Whether a removed version referred to a data or deletion file, or to the folder of an index.
    pub fn knew(&self, location: &str, path: &str) -> bool {
        self.gone.contains(&key(location, path))
    }

    /// Data files in other bases that removed versions refer to, and no kept one.
    pub fn in_bases(&self) -> impl Iterator<Item = &InBase> {
        self.in_bases.values()
    }
}

async fn lineages(uri: &str, dataset: &Dataset) -> Result<Vec<Lineage>> {
    let here = dataset.branch_location();
    let mut names: Vec<Option<String>> = vec![None];
    names.extend(dataset.branches().list().await?.into_keys().map(Some));
    let mut lineages = Vec::new();
    for name in names {
        let own = name == here.branch;
        let location = here.find_branch(name.as_deref())?;
        let uri = if own { uri.to_owned() } else { base_location(&location.uri) };
        lineages.push(Lineage { root: location.path, uri, own });
    }
    Ok(lineages)
}

async fn locations(
    handler: &dyn CommitHandler,
    store: &ObjectStore,
    root: &Path,
) -> Result<Vec<ManifestLocation>> {
    let attached = handler.list_manifest_locations(root, store, false);
    let detached = handler.list_detached_manifest_locations(root, store);
    // A branch that goes meanwhile refers to nothing any more.
    let there = attached
        .chain(detached)
        .filter(|found| std::future::ready(!matches!(found, Err(error) if error.is_not_found())));
    Ok(there.try_collect().await?)
}

/// `None` where another cleanup was quicker.
async fn manifest(
    store: &ObjectStore,
    location: ManifestLocation,
    lineage: &Lineage,
    pinned: u64,
) -> Result<Option<(ManifestLocation, Manifest)>> {
    match read_manifest(store, &location.path, location.size).await {
        Ok(manifest) => Ok(Some((location, manifest))),
        Err(error) if error.is_not_found() && !(lineage.own && location.version >= pinned) => {
            Ok(None)
        }
        Err(error) => Err(Error::from(error).context(&location.path)),
    }
}

fn in_base(base: &BasePath, file: &str) -> String {
    if base.is_dataset_root { format!("data/{file}") } else { file.to_owned() }
}

/// A manifest that is damaged must not name what lies elsewhere.
fn plain(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Millions of names, in few bytes each.
fn key(location: &str, path: &str) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(location.as_bytes()).update(b"/").update(path.as_bytes());
    let mut key = [0; 16];
    key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(key)
}
