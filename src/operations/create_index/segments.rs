//! Segments: which fragments each covers, and the forms in which their metadata travel.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lance::Dataset;
use lance_table::format::{DeletionFile, Fragment, IndexFile, IndexMetadata, pb};
use prost::Message;
use roaring::RoaringBitmap;
use serde::Deserialize;
use serde_json::{Value, json};

use super::kind::Kind;
use crate::codec::Blob;
use crate::error::{Error, ErrorCode, Result};
use crate::executor::{EventKind, Running};
use crate::operations::Produced;
use crate::result::{TaskResult, WrittenFile};
use crate::task::Task;

/// Segments at most where nothing is said: a query looks into each of them.
const MAX_DEFAULT_SEGMENTS: u64 = 64;

/// A fragment's id and live rows.
pub(crate) type Rows = (u32, u64);

/// How many segments of an index so many rows are to have.
pub(crate) fn how_many(
    kind: Kind,
    rows: u64,
    num_segments: Option<u64>,
    max_rows: Option<u64>,
) -> u64 {
    let count = match (num_segments, max_rows) {
        (Some(n), _) => n,
        (None, Some(max)) => rows.div_ceil(max),
        (None, None) => rows.div_ceil(kind.rows_per_segment()).min(MAX_DEFAULT_SEGMENTS),
    };
    count.max(1)
}

/// Options of how many segments that are none.
pub(crate) fn check_counts(num_segments: Option<u64>, max_rows: Option<u64>) -> Result<()> {
    if num_segments.is_some() && max_rows.is_some() {
        return Err(Error::invalid(
            "options \"num_segments\" and \"max_rows_per_segment\" exclude each other",
        ));
    }
    for (name, value) in [("num_segments", num_segments), ("max_rows_per_segment", max_rows)] {
        if value == Some(0) {
            return Err(Error::invalid(format!("option {name:?} is 0, it must be at least 1")));
        }
    }
    Ok(())
}

pub(crate) fn fragment_bitmap(dataset: &Dataset) -> RoaringBitmap {
    dataset.manifest.fragments.iter().map(|f| f.id as u32).collect()
}

/// Fragments in their order, with their live rows; of these ids only.
pub(crate) fn chosen(dataset: &Dataset, ids: Option<&RoaringBitmap>) -> Vec<Rows> {
    dataset
        .manifest
        .fragments
        .iter()
        .map(|f| (f.id as u32, f.num_rows().unwrap_or(0) as u64))
        .filter(|(id, _)| ids.is_none_or(|ids| ids.contains(*id)))
        .collect()
}

/// Whether a segment holds rows that have left its fragments, updated or compacted away, or may: see
/// [`Kind::clings`].
pub(crate) fn is_stale(dataset: &Dataset, segment: &IndexMetadata) -> bool {
    if !dataset.manifest.uses_stable_row_ids() {
        return false;
    }
    let Some(covered) = &segment.fragment_bitmap else { return true };
    let there = fragment_bitmap(dataset);
    let touched = |f: &Fragment| {
        let later = |file: &DeletionFile| file.read_version >= segment.dataset_version;
        covered.contains(f.id as u32) && f.deletion_file.as_ref().is_some_and(later)
    };
    !covered.is_subset(&there) || dataset.manifest.fragments.iter().any(touched)
}

/// Of these fragments, one whose values of a column were rewritten in place, or may have been: an older
/// file of it has lost a field, and a later one holds the column.
pub(crate) fn rewritten(dataset: &Dataset, of: &RoaringBitmap, field_id: i32) -> Option<u32> {
    const LOST: i32 = -2;
    let mut fields = vec![field_id];
    if let Some(field) = dataset.schema().field_by_id(field_id) {
        let mut below: Vec<_> = field.children.iter().collect();
        while let Some(child) = below.pop() {
            fields.push(child.id);
            below.extend(&child.children);
        }
    }
    let fragments = dataset.manifest.fragments.iter().filter(|f| of.contains(f.id as u32));
    let found = fragments.into_iter().find(|fragment| {
        let lost = fragment.files.iter().position(|file| file.fields.contains(&LOST));
        lost.is_some_and(|lost| {
            let later = &fragment.files[lost + 1..];
            later.iter().any(|file| file.fields.iter().any(|id| fields.contains(id)))
        })
    });
    found.map(|fragment| fragment.id as u32)
}

pub(crate) fn total(fragments: &[Rows]) -> u64 {
    fragments.iter().map(|(_, rows)| rows).sum()
}

/// Contiguous runs of about equal rows: compaction later puts together only what one segment covers.
pub(crate) fn runs(fragments: &[Rows], segments: u64) -> Vec<Vec<Rows>> {
    let segments = (segments as usize).clamp(1, fragments.len().max(1));
    let all = total(fragments);
    let mut runs: Vec<Vec<Rows>> = Vec::new();
    let mut run = Vec::new();
    let mut done = 0;
    for (at, fragment) in fragments.iter().enumerate() {
        run.push(*fragment);
        done += fragment.1;
        let left = fragments.len() - at - 1;
        let open = segments - runs.len() - 1;
        let share = u128::from(all) * (runs.len() as u128 + 1) / segments as u128;
        // Full enough, or as many fragments left as segments.
        if open > 0 && (u128::from(done) >= share || left == open) {
            runs.push(std::mem::take(&mut run));
        }
    }
    if !run.is_empty() {
        runs.push(run);
    }
    runs
}

/// The files of a segment, below the dataset's root.
pub(crate) fn files(index: &IndexMetadata) -> impl Iterator<Item = WrittenFile> + '_ {
    index.files.iter().flatten().map(|file| WrittenFile {
        path: format!("_indices/{}/{}", index.uuid, file.path),
        size: file.size_bytes,
        base: None,
    })
}

/// What an attempt made: one segment.
pub(crate) fn produced(task: &Task, index: &IndexMetadata) -> Produced {
    let files: Vec<WrittenFile> = files(index).collect();
    Produced {
        payload: described(index),
        index_segments: vec![encode(index).0],
        rows_in: task.estimated_rows,
        rows_out: task.estimated_rows,
        bytes_written: files.iter().map(|f| f.size).sum(),
        files,
        ..Default::default()
    }
}

/// The fields of pylance's `lance.dataset.Index`.
fn described(index: &IndexMetadata) -> Value {
    let covered = index.fragment_bitmap.iter().flatten().collect::<Vec<u32>>();
    let details = index.index_details.as_ref();
    json!({
        "uuid": index.uuid,
        "name": index.name,
        "fields": index.fields,
        "covering_fields": index.covering_fields,
        "dataset_version": index.dataset_version,
        "fragment_ids": covered,
        "index_version": index.index_version,
        "created_at": index.created_at.map(|at| at.to_rfc3339()),
        "base_id": index.base_id,
        "files": index.files.iter().flatten()
            .map(|file| json!({ "path": file.path, "size_bytes": file.size_bytes }))
            .collect::<Vec<_>>(),
        "index_details": details.map(|any| json!([any.type_url, STANDARD.encode(&any.value)])),
    })
}

/// A segment by the fields of pylance's `lance.dataset.Index`.
#[derive(Deserialize)]
pub(crate) struct Described {
    uuid: uuid::Uuid,
    name: String,
    fields: Vec<i32>,
    dataset_version: u64,
    fragment_ids: Vec<u32>,
    index_version: i32,
    created_at: Option<chrono::DateTime<chrono::Utc>>,
    files: Vec<DescribedFile>,
    index_details: Option<DescribedDetails>,
    #[serde(default)]
    covering_fields: Vec<i32>,
}

#[derive(Deserialize)]
struct DescribedFile {
    path: String,
    size_bytes: u64,
}

/// The details' type and their bytes in Base64.
#[derive(Deserialize)]
struct DescribedDetails(String, Blob);

impl From<Described> for IndexMetadata {
    fn from(d: Described) -> Self {
        Self {
            uuid: d.uuid,
            fields: d.fields,
            covering_fields: d.covering_fields,
            name: d.name,
            dataset_version: d.dataset_version,
            fragment_bitmap: Some(d.fragment_ids.into_iter().collect()),
            index_details: d.index_details.map(|DescribedDetails(type_url, Blob(value))| {
                Arc::new(prost_types::Any { type_url, value })
            }),
            index_version: d.index_version,
            created_at: d.created_at,
            base_id: None,
            files: Some(
                d.files
                    .into_iter()
                    .map(|f| IndexFile { path: f.path, size_bytes: f.size_bytes })
                    .collect(),
            ),
        }
    }
}

pub(crate) fn encode(index: &IndexMetadata) -> Blob {
    Blob(pb::IndexMetadata::from(index).encode_to_vec())
}

pub(crate) fn decode(bytes: &[u8]) -> Result<IndexMetadata> {
    let bad = |e: &dyn std::fmt::Display| {
        Error::new(ErrorCode::Decode, format!("an index segment's metadata: {e}"))
    };
    let message = pb::IndexMetadata::decode(bytes).map_err(|e| bad(&e))?;
    IndexMetadata::try_from(message).map_err(|e| bad(&e))
}

/// The one segment of a result.
pub(crate) fn segment(result: &TaskResult) -> Result<IndexMetadata> {
    let [bytes] = result.index_segments.as_slice() else {
        return Err(Error::new(
            ErrorCode::Decode,
            format!(
                "task {}: {} segments, one was expected",
                result.task_id,
                result.index_segments.len()
            ),
        ));
    };
    decode(bytes).map_err(|e| e.context(format!("task {}", result.task_id)))
}

/// What a segment must be, for [`check`].
pub(crate) struct Expected<'a> {
    pub name: &'a str,
    pub field_id: i32,
    /// The type of its details; `None` = any.
    pub kind: Option<Kind>,
    pub fragments: Option<&'a RoaringBitmap>,
    /// Whether older segments may be folded in: Lance has it as old as the oldest of them.
    pub folded: bool,
}

/// Check a result's segment against its task.
pub(crate) fn check(result: &TaskResult, task: Option<&Task>, expected: &Expected) -> Result<()> {
    let wrong = |what: String| Err(Error::new(ErrorCode::Verification, what));
    let segment = segment(result)?;
    if segment.name != expected.name || segment.fields != [expected.field_id] {
        return wrong(format!(
            "the segment is of index {:?} over fields {:?}, the job's is {:?} over [{}]",
            segment.name, segment.fields, expected.name, expected.field_id
        ));
    }
    let older = expected.folded && segment.dataset_version < result.read_version;
    if segment.dataset_version != result.read_version && !older {
        return wrong(format!(
            "the segment was built at version {}, the job pins {}",
            segment.dataset_version, result.read_version
        ));
    }
    let url = segment.index_details.as_ref().map_or("", |details| details.type_url.as_str());
    if let Some(kind) = expected.kind
        && lance_index::registry::plugin_name_from_details_url(url) != kind.plugin()
    {
        return wrong(format!("the segment's details are {url:?}, the job builds {}", kind.name()));
    }
    if let Some(task) = task
        && (result.rows_in, result.rows_out) != (task.estimated_rows, task.estimated_rows)
    {
        return wrong(format!(
            "{} rows in, {} rows out, its task has {}",
            result.rows_in, result.rows_out, task.estimated_rows
        ));
    }
    let covered = segment.fragment_bitmap.clone().unwrap_or_default();
    if let Some(fragments) = expected.fragments
        && covered != *fragments
    {
        return wrong(format!(
            "the segment covers fragments {:?}, its task has {:?}",
            covered.iter().collect::<Vec<_>>(),
            fragments.iter().collect::<Vec<_>>()
        ));
    }
    Ok(())
}

/// Lance's build stages as progress events.
#[derive(Clone)]
pub(crate) struct Stages(pub Running);

impl std::fmt::Debug for Stages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stages")
    }
}

#[async_trait::async_trait]
impl lance_index::progress::IndexBuildProgress for Stages {
    async fn stage_start(
        &self,
        stage: &str,
        _total: Option<u64>,
        _unit: &str,
    ) -> lance::Result<()> {
        self.0.event(EventKind::Stage, 0, 0, stage);
        Ok(())
    }

    async fn stage_progress(&self, stage: &str, completed: u64) -> lance::Result<()> {
        self.0.event(EventKind::Stage, completed, 0, stage);
        Ok(())
    }

    async fn stage_complete(&self, _stage: &str) -> lance::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_contiguous_balanced_and_as_many_as_asked() {
        let fragments: Vec<Rows> = (0..10).map(|i| (i, 100)).collect();
        for n in 1..=10 {
            let runs = runs(&fragments, n);
            assert_eq!(runs.len() as u64, n);
            let flat: Vec<u32> = runs.iter().flatten().map(|(id, _)| *id).collect();
            assert_eq!(flat, (0..10).collect::<Vec<_>>());
            assert!(runs.iter().all(|r| (r.len() as u64) <= 10u64.div_ceil(n)), "{runs:?}");
        }
        assert_eq!(runs(&fragments, 99).len(), 10);
        let skewed = [(0, 1000), (1, 1), (2, 1)];
        assert_eq!(runs(&skewed, 3).len(), 3);
        assert!(runs(&[], 3).is_empty());
    }
}
