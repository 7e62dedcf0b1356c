//! Create an index: segments over runs of fragments, built anywhere, committed together.

use std::collections::BTreeMap;
use std::sync::Arc;

use lance::Dataset;
use lance::dataset::transaction::Operation as LanceOperation;
use lance::index::DatasetIndexExt;
use lance_index::IndexType;
use lance_index::progress::IndexBuildProgress;
use lance_index::scalar::ScalarIndexParams;
use lance_table::format::{IndexFile, IndexMetadata, pb};
use prost::Message;
use roaring::RoaringBitmap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Metrics, NewWork, Operation, Prepared, Preparing, Produced, described};
use crate::codec::{Blob, Json};
use crate::commit::{Applied, Committing};
use crate::dataset::{Pin, normalize, not_found};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::{EventKind, Input, Running};
use crate::job::Job;
use crate::result::{TaskResult, WrittenFile};
use crate::task::Task;

pub(crate) struct CreateIndex;

/// Rows of a segment where nothing is said, and how many segments there are then at most: a query looks
/// into each of them.
const ROWS_PER_SEGMENT: u64 = 2_500_000;
const MAX_DEFAULT_SEGMENTS: u64 = 64;

/// Less memory makes no progress.
const MIN_MEMORY: u64 = 16 << 20;

/// Build an index over a column.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CreateIndexSpec {
    /// The dataset: a path or an object-store URI.
    pub uri: String,
    /// The column, nested ones by path (`a.b`).
    pub column: String,
    /// Lance's name of the type, in any case: `BTREE`.
    pub index_type: String,
    /// Default: the column's path and `_idx`.
    pub name: Option<String>,
    /// Replace an index of the same name. Default false: it is refused.
    pub replace: Option<bool>,
    /// How many segments; at most one per fragment. Default: by size.
    pub num_segments: Option<u64>,
    /// Rows of a segment at most, as far as whole fragments allow.
    pub max_rows_per_segment: Option<u64>,
    /// Build over these fragments only. Default all.
    pub fragment_ids: Option<Vec<u32>>,
    /// Lance's own parameters of the type.
    pub params: Option<Json>,
    /// Stored with the transaction.
    pub transaction_properties: Option<BTreeMap<String, String>>,
}

/// The types that can be built; each knows its parameters and the columns it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Btree,
}

impl Kind {
    const ALL: &[(&str, Kind)] = &[("BTREE", Kind::Btree)];

    fn parse(name: &str) -> Result<Self> {
        if name.is_empty() {
            return Err(Error::invalid("option \"index_type\" is missing"));
        }
        let known = Self::ALL.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        known.map(|(_, kind)| *kind).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|(name, _)| *name).collect();
            Error::new(
                ErrorCode::NotSupported,
                format!("option \"index_type\": {name:?} is not among {}", names.join(", ")),
            )
        })
    }

    fn lance(self) -> IndexType {
        match self {
            Self::Btree => IndexType::BTree,
        }
    }

    /// The names of Lance's parameters.
    fn params(self) -> &'static [&'static str] {
        match self {
            Self::Btree => &["zone_size"],
        }
    }

    fn check_column(self, path: &str, data_type: &arrow_schema::DataType) -> Result<()> {
        match self {
            Self::Btree if data_type.is_nested() => Err(Error::invalid(format!(
                "column {path:?}: a BTREE needs values in an order, {data_type} has none"
            ))),
            Self::Btree => Ok(()),
        }
    }
}

/// An index build with its defaults resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateIndexState {
    pub build: Build,
    pub field_id: i32,
    pub num_segments: u64,
    pub fragment_ids: Option<Vec<u32>>,
    pub transaction_properties: Option<BTreeMap<String, String>>,
}

/// What all segments agree on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Build {
    pub column: String,
    pub kind: Kind,
    pub name: String,
    pub params: Option<Json>,
}

/// One segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateIndexWork {
    pub build: Build,
    pub fragments: Vec<u32>,
}

impl Operation for CreateIndex {
    type Spec = CreateIndexSpec;
    type State = CreateIndexState;
    type Work = CreateIndexWork;

    const PARTIAL: bool = true;

    async fn prepare(
        cx: &Preparing<'_>,
        spec: CreateIndexSpec,
        input: Option<arrow_schema::SchemaRef>,
    ) -> Result<Prepared<CreateIndexState>> {
        let uri = normalize("uri", &spec.uri)?;
        if input.is_some() {
            return Err(Error::invalid("an index build takes no input stream"));
        }
        let kind = Kind::parse(&spec.index_type)?;
        check_numbers(&spec)?;
        check_params(kind, spec.params.as_ref())?;
        let running = cx.running;
        let dataset = running
            .datasets()
            .open_latest(&uri, &running.call.storage_options)
            .await?
            .ok_or_else(|| not_found(&uri))?;
        let (column, field_id, data_type) = column(&dataset, &spec.column)?;
        kind.check_column(&column, &data_type)?;
        let name = match spec.name {
            Some(name) if name.trim().is_empty() => {
                return Err(Error::invalid("option \"name\" is empty"));
            }
            Some(name) => name,
            None => format!("{}_idx", spec.column),
        };
        check_name(&dataset, &name, field_id, spec.replace.unwrap_or(false)).await?;
        if let Some(ids) = &spec.fragment_ids {
            check_fragments(&dataset, ids)?;
        }
        let rows: u64 = chosen(&dataset, spec.fragment_ids.as_deref()).map(|(_, rows)| rows).sum();
        let num_segments = match (spec.num_segments, spec.max_rows_per_segment) {
            (Some(n), _) => n,
            (None, Some(max)) => rows.div_ceil(max),
            (None, None) => rows.div_ceil(ROWS_PER_SEGMENT).min(MAX_DEFAULT_SEGMENTS),
        };
        Ok(Prepared {
            uri,
            pin: Pin::of(&dataset),
            state: CreateIndexState {
                build: Build { column, kind, name, params: spec.params },
                field_id,
                num_segments: num_segments.max(1),
                fragment_ids: spec.fragment_ids,
                transaction_properties: spec.transaction_properties,
            },
        })
    }

    async fn stage(
        cx: &Running,
        job: &Job,
        state: &CreateIndexState,
        stage: u32,
        _earlier: &[TaskResult],
    ) -> Result<Option<Vec<NewWork<CreateIndexWork>>>> {
        if stage > 0 {
            return Ok(None);
        }
        let dataset = cx.open(&job.uri, job.pin()).await?;
        let fragments: Vec<_> = chosen(&dataset, state.fragment_ids.as_deref()).collect();
        let runs = runs(&fragments, state.num_segments);
        Ok(Some(
            runs.into_iter()
                .map(|run| NewWork {
                    key: None,
                    rows: run.iter().map(|(_, rows)| rows).sum(),
                    bytes: 0,
                    work: CreateIndexWork {
                        build: state.build.clone(),
                        fragments: run.iter().map(|(id, _)| *id).collect(),
                    },
                })
                .collect(),
        ))
    }

    fn memory(cx: &Running, task: &Task, _work: &CreateIndexWork) -> u64 {
        // Lance sorts the values with spilling; small segments stay in memory.
        (task.estimated_rows.saturating_mul(64) + (16 << 20))
            .min(512 << 20)
            .min(cx.memory_share())
            .max(MIN_MEMORY)
    }

    async fn execute(
        cx: &Running,
        task: &Task,
        work: &CreateIndexWork,
        input: Option<Input>,
    ) -> Result<Produced> {
        if input.is_some() {
            return Err(Error::invalid("an index build takes no input stream"));
        }
        let dataset = cx.open(&task.uri, task.pin()).await?;
        let build = &work.build;
        let mut params = ScalarIndexParams::for_builtin(build.kind.lance().try_into()?);
        if let Some(given) = &build.params {
            params = params.with_params(&given.0);
        }
        let mut dataset = cx.marks().dataset(&dataset).await?;
        // The name may exist: whether it may be replaced was decided at prepare.
        let mut index = dataset
            .create_index_builder(&[&build.column], build.kind.lance(), &params)
            .name(build.name.clone())
            .replace(true)
            .fragments(work.fragments.clone())
            .progress(Arc::new(Stages(cx.clone())))
            .execute_uncommitted()
            .await?;
        if let Some(uuid) = cx.marks().given(index.uuid) {
            index.uuid = uuid;
        }
        Ok(produced(task, &index))
    }

    async fn adopt(
        _cx: &Running,
        task: &Task,
        _work: &CreateIndexWork,
        made: serde_json::Value,
    ) -> Result<Produced> {
        let segment: Described = described("index segment (pylance's Index)", made)?;
        Ok(produced(task, &segment.into()))
    }

    fn verify(
        state: &CreateIndexState,
        task: Option<&Task>,
        work: Option<&CreateIndexWork>,
        result: &TaskResult,
    ) -> Result<()> {
        let wrong = |what: String| Err(Error::new(ErrorCode::Verification, what));
        let segment = segment(result)?;
        if segment.name != state.build.name || segment.fields != [state.field_id] {
            return wrong(format!(
                "the segment is of index {:?} over fields {:?}, the job's is {:?} over [{}]",
                segment.name, segment.fields, state.build.name, state.field_id
            ));
        }
        if segment.dataset_version != result.read_version {
            return wrong(format!(
                "the segment was built at version {}, the job pins {}",
                segment.dataset_version, result.read_version
            ));
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
        if let Some(work) = work
            && covered != work.fragments.iter().copied().collect::<RoaringBitmap>()
        {
            return wrong(format!(
                "the segment covers fragments {:?}, its task has {:?}",
                covered.iter().collect::<Vec<_>>(),
                work.fragments
            ));
        }
        Ok(())
    }

    async fn commit(
        cx: &Committing<'_>,
        job: &Job,
        state: &CreateIndexState,
        winners: &[TaskResult],
    ) -> Result<Applied> {
        if winners.is_empty() {
            return Ok(Applied { metrics: Metrics::new(), nothing: true });
        }
        let segments = winners.iter().map(segment).collect::<Result<Vec<_>>>()?;
        let planned: RoaringBitmap = segments
            .iter()
            .filter_map(|s| s.fragment_bitmap.clone())
            .fold(Default::default(), |a, b| a | b);
        let live = cx.dataset().await?;
        check_segments(cx, job, &live, &state.build.name).await?;
        let (name, column) = (state.build.name.clone(), state.build.column.clone());
        let transaction = cx
            .capture(|mut dataset| async move {
                dataset.commit_existing_index_segments(&name, &column, segments).await
            })
            .await?;
        let there = fragment_bitmap(&live);
        let covered: RoaringBitmap = match &transaction.operation {
            LanceOperation::CreateIndex { new_indices, .. } => new_indices
                .iter()
                .filter_map(|i| i.effective_fragment_bitmap(&there))
                .fold(Default::default(), |a, b| a | b),
            other => {
                return Err(Error::internal(format!("an index commit became {}", other.name())));
            }
        };
        let rows_covered =
            chosen(&live, None).filter(|(id, _)| covered.contains(*id)).map(|(_, rows)| rows).sum();
        if covered.is_empty() && !planned.is_empty() {
            return Err(Error::new(
                ErrorCode::RetryableConflict,
                format!(
                    "index {:?}: other commits have replaced all of its fragments since version {}; \
                     prepare the job again",
                    state.build.name, job.read_version
                ),
            ));
        }
        let properties = cx.properties(state.transaction_properties.as_ref());
        cx.apply(transaction.operation, transaction.read_version, properties, |builder| builder)
            .await?;
        Ok(Applied {
            metrics: Metrics::from([
                ("segments".into(), winners.len() as u64),
                ("fragments_covered".into(), covered.len()),
                ("fragments_pruned".into(), (planned - covered).len()),
                ("rows_covered".into(), rows_covered),
                ("bytes_written".into(), winners.iter().map(|r| r.bytes_written).sum()),
                ("tasks".into(), winners.len() as u64),
            ]),
            nothing: false,
        })
    }
}

fn produced(task: &Task, index: &IndexMetadata) -> Produced {
    let files: Vec<WrittenFile> = index
        .files
        .iter()
        .flatten()
        .map(|file| WrittenFile {
            path: format!("_indices/{}/{}", index.uuid, file.path),
            size: file.size_bytes,
            base: None,
        })
        .collect();
    Produced {
        payload: json!({ "uuid": index.uuid, "name": index.name }),
        index_segments: vec![pb::IndexMetadata::from(index).encode_to_vec()],
        rows_in: task.estimated_rows,
        rows_out: task.estimated_rows,
        bytes_written: files.iter().map(|f| f.size).sum(),
        files,
        ..Default::default()
    }
}

/// A segment by the fields of pylance's `lance.dataset.Index`.
#[derive(Deserialize)]
struct Described {
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

fn check_numbers(spec: &CreateIndexSpec) -> Result<()> {
    if spec.num_segments.is_some() && spec.max_rows_per_segment.is_some() {
        return Err(Error::invalid(
            "options \"num_segments\" and \"max_rows_per_segment\" exclude each other",
        ));
    }
    for (name, value) in
        [("num_segments", spec.num_segments), ("max_rows_per_segment", spec.max_rows_per_segment)]
    {
        if value == Some(0) {
            return Err(Error::invalid(format!("option {name:?} is 0, it must be at least 1")));
        }
    }
    if spec.fragment_ids.as_ref().is_some_and(Vec::is_empty) {
        return Err(Error::invalid(
            "option \"fragment_ids\" is empty; leave it out for all fragments",
        ));
    }
    Ok(())
}

fn check_params(kind: Kind, params: Option<&Json>) -> Result<()> {
    for (name, value) in params.iter().flat_map(|p| &p.0) {
        if !kind.params().contains(&name.as_str()) {
            return Err(Error::invalid(format!(
                "parameter {name:?} is none of this index type's: {}",
                kind.params().join(", ")
            )));
        }
        if value.as_u64().is_none_or(|v| v == 0) {
            return Err(Error::invalid(format!(
                "parameter {name:?}: {value} is no positive number"
            )));
        }
    }
    Ok(())
}

/// The column's path as Lance writes it, its field and its type.
fn column(dataset: &Dataset, name: &str) -> Result<(String, i32, arrow_schema::DataType)> {
    if name.is_empty() {
        return Err(Error::invalid("option \"column\" is missing"));
    }
    let schema = dataset.schema();
    let path =
        schema.resolve_case_insensitive(name).filter(|p| !p.is_empty()).ok_or_else(|| {
            let names: Vec<&str> = schema.fields.iter().map(|f| f.name.as_str()).collect();
            Error::invalid(format!(
                "there is no column {name:?}; the dataset has {}",
                names.join(", ")
            ))
        })?;
    let names: Vec<&str> = path.iter().map(|f| f.name.as_str()).collect();
    let field = path[path.len() - 1];
    Ok((lance_core::datatypes::format_field_path(&names), field.id, field.data_type()))
}

async fn check_name(dataset: &Dataset, name: &str, field_id: i32, replace: bool) -> Result<()> {
    let indices = dataset.load_indices().await?;
    let Some(existing) = indices.iter().find(|i| i.name == name) else { return Ok(()) };
    if existing.fields.first() != Some(&field_id) {
        return Err(Error::new(
            ErrorCode::AlreadyExists,
            format!("index {name:?} exists over another column; choose another name"),
        ));
    }
    if !replace {
        return Err(Error::new(
            ErrorCode::AlreadyExists,
            format!("index {name:?} exists; set replace, or choose another name"),
        ));
    }
    Ok(())
}

/// Segments of the index that have come since the job was prepared, and not by the job itself, are
/// another build of the same name.
async fn check_segments(cx: &Committing<'_>, job: &Job, live: &Dataset, name: &str) -> Result<()> {
    let pinned = cx.running.open(&job.uri, job.pin()).await?;
    let before = pinned.load_indices().await?;
    let now = live.load_indices().await?;
    let other = now.iter().filter(|i| i.name == name).find(|i| {
        before.iter().all(|b| b.uuid != i.uuid) && !cx.own_segments().any(|uuid| uuid == i.uuid)
    });
    match other {
        None => Ok(()),
        Some(other) => Err(Error::new(
            ErrorCode::RetryableConflict,
            format!(
                "index {name:?} got segment {} by another commit since version {}; prepare the job again",
                other.uuid, job.read_version
            ),
        )),
    }
}

fn check_fragments(dataset: &Dataset, ids: &[u32]) -> Result<()> {
    let known = fragment_bitmap(dataset);
    match ids.iter().find(|id| !known.contains(**id)) {
        Some(id) => Err(Error::invalid(format!(
            "fragment_ids: there is no fragment {id} in version {}",
            dataset.manifest.version
        ))),
        None => Ok(()),
    }
}

fn fragment_bitmap(dataset: &Dataset) -> RoaringBitmap {
    dataset.manifest.fragments.iter().map(|f| f.id as u32).collect()
}

/// Fragments in their order, with their live rows.
fn chosen<'a>(
    dataset: &'a Dataset,
    ids: Option<&'a [u32]>,
) -> impl Iterator<Item = (u32, u64)> + 'a {
    let wanted: Option<RoaringBitmap> = ids.map(|ids| ids.iter().copied().collect());
    dataset
        .manifest
        .fragments
        .iter()
        .map(|f| (f.id as u32, f.num_rows().unwrap_or(0) as u64))
        .filter(move |(id, _)| wanted.as_ref().is_none_or(|w| w.contains(*id)))
}

/// Contiguous runs of about equal rows: compaction later puts together only what one segment covers.
fn runs(fragments: &[(u32, u64)], segments: u64) -> Vec<Vec<(u32, u64)>> {
    let segments = (segments as usize).clamp(1, fragments.len().max(1));
    let total: u64 = fragments.iter().map(|(_, rows)| rows).sum();
    let mut runs: Vec<Vec<(u32, u64)>> = Vec::new();
    let mut run = Vec::new();
    let mut done = 0;
    for (at, fragment) in fragments.iter().enumerate() {
        run.push(*fragment);
        done += fragment.1;
        let left = fragments.len() - at - 1;
        let open = segments - runs.len() - 1;
        let share = u128::from(total) * (runs.len() as u128 + 1) / segments as u128;
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

fn segment(result: &TaskResult) -> Result<IndexMetadata> {
    let bad = |e: &dyn std::fmt::Display| {
        Error::new(ErrorCode::Decode, format!("the segment of task {}: {e}", result.task_id))
    };
    let [bytes] = result.index_segments.as_slice() else {
        return Err(bad(&format!("{} segments, one was expected", result.index_segments.len())));
    };
    let message = pb::IndexMetadata::decode(bytes.as_slice()).map_err(|e| bad(&e))?;
    IndexMetadata::try_from(message).map_err(|e| bad(&e))
}

/// Lance's build stages as progress events.
#[derive(Clone)]
struct Stages(Running);

impl std::fmt::Debug for Stages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stages")
    }
}

#[async_trait::async_trait]
impl IndexBuildProgress for Stages {
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
        let fragments: Vec<(u32, u64)> = (0..10).map(|i| (i, 100)).collect();
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
