//! Payloads that a whole dataset shares, by Lance's managed blobs: files in `_blobs/` that are named by
//! the job that wrote them and by the hash of their bytes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt8Type;
use arrow_array::{Array, StringArray};
use arrow_schema::Schema;
use futures::TryStreamExt;
use lance::Dataset;
use lance_core::datatypes::BlobKind;
use lance_table::feature_flags::managed_blobs_enabled;

use super::fields::{any, is_blob};
use super::values::collect;
use crate::error::Result;
use crate::marks::Mark;

pub(crate) const FOLDER: &str = "_blobs";

/// Payloads of committed rows by the hash of their bytes: their size and path.
pub(crate) type Known = HashMap<[u8; 32], String>;

/// The path of a payload, below the dataset's root.
pub(crate) fn path(mark: Mark, hash: &[u8; 32]) -> String {
    format!("{FOLDER}/{mark}/{}.blob", blake3::Hash::from(*hash).to_hex())
}

fn hash(path: &str) -> Option<[u8; 32]> {
    let name = path.rsplit('/').next()?.strip_suffix(".blob")?;
    Some(*blake3::Hash::from_hex(name).ok()?.as_bytes())
}

/// The managed payloads that rows of a version refer to, by the hash in their names. Reads the blob
/// columns' descriptors of the whole version.
pub(crate) async fn known(dataset: &Arc<Dataset>) -> Result<Known> {
    let mut known = Known::new();
    references(dataset, &mut HashSet::new(), &mut |uri| {
        if let Some(hash) = hash(uri) {
            known.entry(hash).or_insert_with(|| uri.to_owned());
        }
    })
    .await?;
    Ok(known)
}

/// Calls `visit` with the path of each managed payload in the dataset's own storage that a row refers
/// to. Fragments whose data files are all in `seen` are left out, and those of others are put there: of
/// several versions, the oldest first, each file is read once.
pub(crate) async fn references(
    dataset: &Arc<Dataset>,
    seen: &mut HashSet<String>,
    visit: &mut (dyn FnMut(&str) + Send),
) -> Result<()> {
    if !managed_blobs_enabled(dataset.schema())? {
        return Ok(());
    }
    let schema = Schema::from(dataset.schema());
    let blobs: Vec<_> = schema.fields().iter().filter(|f| any(f, &is_blob)).cloned().collect();
    let mut new = dataset.manifest.fragments.as_ref().clone();
    new.retain(|f| f.files.iter().filter(|file| seen.insert(file.path.clone())).count() > 0);
    if blobs.is_empty() || new.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = blobs.iter().map(|f| f.name().as_str()).collect();
    let schema = Schema::new(blobs.clone());
    let mut scan = dataset.scan();
    scan.project(&names)?;
    scan.with_fragments(new);
    let mut batches = scan.try_into_stream().await?;
    while let Some(batch) = batches.try_next().await? {
        let (_, leaves) = collect(&schema, &batch)?;
        for values in leaves {
            let kinds = values.array.column(0).as_primitive::<UInt8Type>();
            let uris: &StringArray = values.array.column(4).as_string();
            for at in 0..values.array.len() {
                if values.array.is_valid(at) && kinds.value(at) == BlobKind::Managed as u8 {
                    visit(uris.value(at));
                }
            }
        }
    }
    Ok(())
}
