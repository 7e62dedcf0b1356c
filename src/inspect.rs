//! What a dataset looks like: its shape in numbers, for people and for programs that decide what to do.
//! Only metadata is read, never rows.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};
use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::optimize::{CompactionOptions, plan_compaction};
use lance::index::DatasetIndexExt;
use lance_core::datatypes::Field;
use lance_table::format::{Fragment, IndexMetadata};
use lance_table::system_index::is_system_index;
use roaring::RoaringBitmap;
use serde::Serialize;

use crate::dataset::{StorageOptions, normalize, not_found};
use crate::error::{Error, ErrorCode, Result};

/// What to read beyond the shape itself.
#[derive(Debug, Clone, Default)]
pub struct Details {
    /// A version number or a tag; default the latest.
    pub at: Option<String>,
    /// List every version. Reads each one's manifest.
    pub versions: bool,
    /// List every fragment.
    pub fragments: bool,
}

/// A dataset at one version. Sizes are in bytes.
#[derive(Debug, Clone, Serialize)]
pub struct DatasetShape {
    pub uri: String,
    pub version: u64,
    pub latest_version: u64,
    /// When the version was made, RFC 3339 in UTC.
    pub timestamp: String,
    /// Lance's file version, for example `2.1`.
    pub data_storage_version: String,
    pub stable_row_ids: bool,
    /// Rows that a reader sees.
    pub rows: u64,
    pub deleted_rows: u64,
    /// The data files' sizes, as far as the manifest knows them.
    pub bytes: u64,
    /// Data files whose size the manifest does not know.
    pub files_of_unknown_size: u64,
    pub data_files: u64,
    pub schema: Vec<Column>,
    pub fragments: Fragments,
    pub indexes: Vec<Index>,
    pub tags: BTreeMap<String, u64>,
    pub config: BTreeMap<String, String>,
    pub bases: Vec<Base>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub versions: Option<Vec<VersionRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragment_list: Option<Vec<FragmentRow>>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Column {
    pub name: String,
    pub field_id: i32,
    /// Arrow's name of the type; an extension type's name follows in brackets.
    pub r#type: String,
    pub nullable: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<Column>,
}

/// The fragments in numbers.
#[derive(Debug, Clone, Serialize)]
pub struct Fragments {
    pub count: u64,
    pub with_deletions: u64,
    /// Rows that a reader sees, per fragment.
    pub rows: Spread,
    /// Bytes of data files, per fragment whose sizes are known.
    pub bytes: Spread,
    /// What a compaction with the dataset's own options would take.
    pub compactable: Compactable,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    pub min: u64,
    pub median: u64,
    pub max: u64,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Compactable {
    pub tasks: u64,
    pub fragments: u64,
    pub rows: u64,
}

/// An index by its name, over all of its segments.
#[derive(Debug, Clone, Serialize)]
pub struct Index {
    pub name: String,
    /// Lance's name of the type.
    pub r#type: String,
    pub columns: Vec<String>,
    /// Lance keeps it for itself: it covers no rows.
    pub system: bool,
    /// `None` where a segment does not say which fragments it covers.
    pub coverage: Option<Coverage>,
    /// `None` where a segment does not say.
    pub bytes: Option<u64>,
    pub segments: Vec<Segment>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Coverage {
    pub fragments: u64,
    pub rows: u64,
    pub unindexed_rows: u64,
    /// Of the dataset's rows; 100 where it has none.
    pub percent: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Segment {
    pub uuid: String,
    /// The version that it was built on.
    pub dataset_version: u64,
    /// Fragments that it covers and that are still there.
    pub fragments: Option<u64>,
    pub bytes: Option<u64>,
    pub created_at: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Base {
    pub id: u32,
    pub name: Option<String>,
    pub path: String,
    pub is_dataset_root: bool,
}

#[derive(Debug, Clone, Serialize)]
pub struct VersionRow {
    pub version: u64,
    pub timestamp: String,
    /// Lance's name of the transaction; none where it is no longer known.
    pub operation: Option<String>,
    pub rows: u64,
    pub fragments: u64,
    pub tags: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct FragmentRow {
    pub id: u64,
    pub rows: u64,
    pub deleted_rows: u64,
    pub files: u64,
    /// None where the manifest does not know every file's size.
    pub bytes: Option<u64>,
}

/// Read a dataset's shape.
///
/// # Errors
/// `NOT_FOUND` where there is no dataset, no such version or no such tag.
pub async fn dataset(
    uri: &str,
    storage_options: &StorageOptions,
    details: &Details,
) -> Result<DatasetShape> {
    let uri = normalize("uri", uri)?;
    // To the store, a file in the place of a folder is a failure of its own.
    if std::path::Path::new(&uri).is_file() {
        return Err(not_found(&uri));
    }
    let dataset = open(&uri, storage_options, details.at.as_deref()).await?;
    let fragments = fragment_rows(&dataset).await?;
    let tags: BTreeMap<String, u64> =
        dataset.tags().list().await?.into_iter().map(|(name, tag)| (name, tag.version)).collect();
    let manifest = &dataset.manifest;
    let sizes =
        || manifest.fragments.iter().flat_map(|f| &f.files).map(|f| f.file_size_bytes.get());
    Ok(DatasetShape {
        version: manifest.version,
        latest_version: dataset.latest_version_id().await?,
        timestamp: time(manifest.timestamp()),
        data_storage_version: manifest.data_storage_format.lance_file_format().to_string(),
        stable_row_ids: manifest.uses_stable_row_ids(),
        rows: fragments.iter().map(|f| f.rows).sum(),
        deleted_rows: fragments.iter().map(|f| f.deleted_rows).sum(),
        bytes: sizes().flatten().map(|size| size.get()).sum(),
        files_of_unknown_size: sizes().filter(Option::is_none).count() as u64,
        data_files: sizes().count() as u64,
        schema: dataset.schema().fields.iter().map(column).collect(),
        fragments: summary(&dataset, &fragments).await?,
        indexes: indexes(&dataset, &fragments).await?,
        config: manifest.config.clone().into_iter().collect(),
        bases: bases(&dataset),
        versions: match details.versions {
            true => Some(versions(&dataset, &tags).await?),
            false => None,
        },
        fragment_list: details.fragments.then_some(fragments),
        tags,
        uri,
    })
}

async fn open(uri: &str, storage_options: &StorageOptions, at: Option<&str>) -> Result<Dataset> {
    let builder = storage_options.builder(uri);
    let builder = match at.map(|at| (at, at.parse::<u64>())) {
        None => builder,
        Some((_, Ok(version))) => builder.with_version(version),
        Some((tag, Err(_))) => builder.with_tag(tag),
    };
    let missing = |error: lance::Error| match (error, at) {
        (lance::Error::DatasetNotFound { .. } | lance::Error::NotFound { .. }, None) => {
            not_found(uri)
        }
        (error, None) => Error::from(error).context(format!("dataset {uri}")),
        (error, Some(at)) => {
            let no_tag = matches!(error, lance::Error::RefNotFound { .. });
            let error = Error::from(error);
            let error = match error.code() {
                _ if no_tag => error.with_code(ErrorCode::NotFound),
                ErrorCode::VersionGone => error.with_code(ErrorCode::NotFound),
                _ => error,
            };
            error.context(format!("dataset {uri} at {at:?}"))
        }
    };
    builder.load().await.map_err(missing)
}

async fn fragment_rows(dataset: &Dataset) -> Result<Vec<FragmentRow>> {
    futures::stream::iter(dataset.get_fragments())
        .map(|fragment| async move {
            let metadata: &Fragment = fragment.metadata();
            // What the manifests of older writers leave out stands in the files.
            let physical = match metadata.physical_rows {
                Some(rows) => rows,
                None => fragment.physical_rows().await?,
            };
            let deleted = match &metadata.deletion_file {
                None => 0,
                Some(file) => match file.num_deleted_rows {
                    Some(rows) => rows,
                    None => fragment.count_deletions().await?,
                },
            };
            Ok(FragmentRow {
                id: metadata.id,
                rows: physical.saturating_sub(deleted) as u64,
                deleted_rows: deleted as u64,
                files: metadata.files.len() as u64,
                bytes: metadata.files.iter().map(|f| Some(f.file_size_bytes.get()?.get())).sum(),
            })
        })
        .buffered(16)
        .try_collect()
        .await
}

async fn summary(dataset: &Dataset, fragments: &[FragmentRow]) -> Result<Fragments> {
    let options = CompactionOptions::from_dataset_config(&dataset.manifest.config)?;
    let plan = plan_compaction(dataset, &options).await?;
    let taken: RoaringBitmap =
        plan.tasks.iter().flat_map(|task| &task.fragments).map(|f| f.id as u32).collect();
    Ok(Fragments {
        count: fragments.len() as u64,
        with_deletions: fragments.iter().filter(|f| f.deleted_rows > 0).count() as u64,
        rows: spread(fragments.iter().map(|f| f.rows).collect()),
        bytes: spread(fragments.iter().filter_map(|f| f.bytes).collect()),
        compactable: Compactable {
            tasks: plan.tasks.len() as u64,
            fragments: taken.len(),
            rows: rows_of(fragments, &taken),
        },
    })
}

fn spread(mut values: Vec<u64>) -> Spread {
    values.sort_unstable();
    match (values.first(), values.get(values.len() / 2), values.last()) {
        (Some(min), Some(median), Some(max)) => Spread { min: *min, median: *median, max: *max },
        _ => Spread::default(),
    }
}

fn rows_of(fragments: &[FragmentRow], ids: &RoaringBitmap) -> u64 {
    fragments.iter().filter(|f| ids.contains(f.id as u32)).map(|f| f.rows).sum()
}

async fn indexes(dataset: &Dataset, fragments: &[FragmentRow]) -> Result<Vec<Index>> {
    // Lance describes none where one of them was made by a writer too old to say enough.
    let types: BTreeMap<String, String> = match dataset.describe_indices(None).await {
        Ok(described) => described
            .iter()
            .map(|index| (index.name().to_owned(), index.index_type().to_owned()))
            .collect(),
        Err(error) => {
            tracing::debug!("indexes not described: {error}");
            BTreeMap::new()
        }
    };
    let mut by_name: BTreeMap<String, Vec<IndexMetadata>> = BTreeMap::new();
    for segment in dataset.load_indices().await?.iter() {
        by_name.entry(segment.name.clone()).or_default().push(segment.clone());
    }
    let existing: RoaringBitmap = fragments.iter().map(|f| f.id as u32).collect();
    Ok(by_name
        .into_iter()
        .map(|(name, segments)| {
            let kind = types.get(&name).cloned().unwrap_or_else(|| "unknown".to_owned());
            index(dataset, fragments, &existing, name, kind, &segments)
        })
        .collect())
}

fn index(
    dataset: &Dataset,
    fragments: &[FragmentRow],
    existing: &RoaringBitmap,
    name: String,
    r#type: String,
    segments: &[IndexMetadata],
) -> Index {
    let system = segments.iter().any(is_system_index);
    let covered: Option<RoaringBitmap> = segments
        .iter()
        .map(|s| s.effective_fragment_bitmap(existing))
        .try_fold(RoaringBitmap::new(), |all, one| Some(all | one?));
    let total: u64 = fragments.iter().map(|f| f.rows).sum();
    let coverage = covered.filter(|_| !system).map(|covered| {
        let rows = rows_of(fragments, &covered);
        Coverage {
            fragments: covered.len(),
            rows,
            unindexed_rows: total - rows,
            percent: if total == 0 { 100.0 } else { rows as f64 * 100.0 / total as f64 },
        }
    });
    let size = |segment: &IndexMetadata| {
        Some(segment.files.as_ref()?.iter().map(|file| file.size_bytes).sum::<u64>())
    };
    let columns = segments.first().map(|s| s.keyed_fields().to_vec()).unwrap_or_default();
    Index {
        name,
        r#type,
        columns: columns
            .iter()
            .map(|id| dataset.schema().field_path(*id).unwrap_or_else(|_| format!("field {id}")))
            .collect(),
        system,
        coverage,
        bytes: segments.iter().map(size).sum(),
        segments: segments
            .iter()
            .map(|segment| Segment {
                uuid: segment.uuid.to_string(),
                dataset_version: segment.dataset_version,
                fragments: segment.effective_fragment_bitmap(existing).map(|b| b.len()),
                bytes: size(segment),
                created_at: segment.created_at.map(time),
            })
            .collect(),
    }
}

fn column(field: &Field) -> Column {
    let data_type = field.data_type();
    let mut r#type = match &data_type {
        arrow_schema::DataType::Struct(_) => "Struct".to_owned(),
        nested if nested.is_nested() && !field.children.is_empty() => {
            let text = nested.to_string();
            text.split('(').next().unwrap_or(&text).to_owned()
        }
        plain => plain.to_string(),
    };
    if let Some(extension) = field.metadata.get("ARROW:extension:name") {
        r#type = format!("{type} [{extension}]");
    }
    Column {
        name: field.name.clone(),
        field_id: field.id,
        r#type,
        nullable: field.nullable,
        fields: field.children.iter().map(column).collect(),
    }
}

fn bases(dataset: &Dataset) -> Vec<Base> {
    let mut bases: Vec<Base> = dataset
        .manifest
        .base_paths
        .values()
        .map(|base| Base {
            id: base.id,
            name: base.name.clone(),
            path: base.path.clone(),
            is_dataset_root: base.is_dataset_root,
        })
        .collect();
    bases.sort_by_key(|base| base.id);
    bases
}

async fn versions(dataset: &Dataset, tags: &BTreeMap<String, u64>) -> Result<Vec<VersionRow>> {
    futures::stream::iter(dataset.versions().await?)
        .map(|version| async move {
            let number = |key: &str| version.metadata.get(key)?.parse().ok();
            // A cleanup that runs meanwhile may take a version's transaction away.
            let transaction = dataset.read_version_transaction(version.version).await.ok();
            Ok(VersionRow {
                version: version.version,
                timestamp: time(version.timestamp),
                operation: transaction
                    .and_then(|found| found.transaction)
                    .map(|transaction| transaction.operation.to_string()),
                rows: number("total_rows").unwrap_or(0),
                fragments: number("total_fragments").unwrap_or(0),
                tags: tags
                    .iter()
                    .filter(|(_, tagged)| **tagged == version.version)
                    .map(|(name, _)| name.clone())
                    .collect(),
            })
        })
        .buffered(16)
        .try_collect()
        .await
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_of_few_and_none() {
        assert_eq!(spread(vec![]), Spread::default());
        assert_eq!(spread(vec![3, 1, 2]), Spread { min: 1, median: 2, max: 3 });
        assert_eq!(spread(vec![4]), Spread { min: 4, median: 4, max: 4 });
    }
}
