//! Write: rows become new fragments, by create, append or overwrite.

mod align;
mod blob;
mod cut;
pub(super) mod file;
mod input;
mod shared;
mod sink;
mod source;
mod spec;
pub(super) mod staging;

use std::collections::HashSet;
use std::num::NonZero;
use std::sync::Arc;

use arrow_schema::{Schema, SchemaRef};
use futures::{StreamExt, TryStreamExt};
use lance::dataset::transaction::Operation as LanceOperation;
use lance::dataset::{WriteMode, WriteParams};
use lance::{Dataset, datatypes::Schema as LanceSchema};
use lance_file::version::LanceFileVersion;
use lance_io::utils::CachedFileSize;
use lance_table::format::{BasePath, Fragment};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Elsewhere, Metrics, NewWork, Operation, Prepared, Preparing, Produced, described};
use crate::blob::fields::{has_blobs, prepared_schema};
pub use crate::blob::{Dedup, Scope};
use crate::commit::{Applied, Committing, Concurrency, beside};
use crate::dataset::{Bases, Pin, bases_of, normalize, not_found};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::{Input, Running};
use crate::job::Job;
use crate::marks::through_store;
use crate::result::TaskResult;
use crate::task::Task;
use align::Aligner;
use blob::aligned_to;
pub(crate) use file::written_files;
use file::{DataFiles, Target};
pub use shared::Shared;
pub(super) use shared::base_path;
use shared::{schema_bytes, schema_from};
use sink::{Limits, Sink};
use source::{Batches, Piece, Reading, Source};
pub use spec::{AutoCleanup, Base, BlobColumn, Format, Mode, SourceSpec, WriteSpec};
use staging::Staging;

pub(crate) struct Write;

/// A write with its defaults resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WriteState {
    /// What each task needs.
    pub shared: Shared,
    /// `None` = the job is open.
    pub sources: Option<Vec<Source>>,
    pub partitions: Option<Vec<String>>,
    pub num_partitions: Option<u64>,
    pub max_rows_per_task: u64,
    /// The ids that the schema's fields have in the dataset.
    pub field_ids: Vec<i32>,
    pub transaction_properties: Option<std::collections::BTreeMap<String, String>>,
    pub discard_concurrent: bool,
}

/// One task of a write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WriteWork {
    pub shared: Shared,
    pub rows: Rows,
}

/// Where a task's rows come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rows {
    /// A stream that the caller hands to `execute`.
    Partition(String),
    /// Pieces of files, in order.
    Pieces { readings: Vec<Reading>, pieces: Vec<Piece> },
}

/// The schema that a create or overwrite commits, numbered as Lance's writer numbers it: an overwrite
/// from the prepared form of blobs, of which only some children stay.
fn lance_schema(schema: &Schema, mode: Mode) -> Result<LanceSchema> {
    let mut lance = LanceSchema::try_from(&prepared_schema(schema))?;
    lance.fields.iter_mut().for_each(keep_logical);
    lance.validate()?;
    if mode == Mode::Create {
        lance.try_reassign_field_ids(None)?;
    }
    Ok(lance)
}

fn keep_logical(field: &mut lance::datatypes::Field) {
    if field.is_blob_v2() {
        field.children.retain(|child| ["data", "uri"].contains(&child.name.as_str()));
    }
    field.children.iter_mut().for_each(keep_logical);
}

impl Operation for Write {
    type Spec = WriteSpec;
    type State = WriteState;
    type Work = WriteWork;

    async fn prepare(
        cx: &Preparing<'_>,
        spec: WriteSpec,
        input: Option<SchemaRef>,
    ) -> Result<Prepared<WriteState>> {
        input::prepare(cx.running, spec, input).await
    }

    fn partition(state: &WriteState, partition: &str) -> Result<(u32, NewWork<WriteWork>)> {
        if state.sources.is_some() {
            return Err(Error::invalid(format!(
                "partition {partition:?}: the job reads its own sources; execute the tasks of its plan"
            )));
        }
        if partition.is_empty() {
            return Err(Error::invalid("a partition needs a name"));
        }
        let index = match &state.partitions {
            Some(stated) => stated.iter().position(|p| p == partition).ok_or_else(|| {
                Error::invalid(format!(
                    "partition {partition:?} is none of the {} that the job states",
                    stated.len()
                ))
            })?,
            None => 0,
        };
        Ok((index as u32, partition_work(state, partition)))
    }

    async fn stage(
        _cx: &Running,
        _job: &Job,
        state: &WriteState,
        stage: u32,
        _earlier: &[TaskResult],
    ) -> Result<Option<Vec<NewWork<WriteWork>>>> {
        if stage > 0 {
            return Ok(None);
        }
        Ok(Some(match (&state.sources, &state.partitions) {
            (Some(sources), _) => cut::cut(state, sources),
            (None, Some(stated)) => stated.iter().map(|p| partition_work(state, p)).collect(),
            (None, None) => Vec::new(),
        }))
    }

    fn memory(cx: &Running, _task: &Task, _work: &WriteWork) -> u64 {
        cx.memory_share().clamp(MIN_MEMORY, MAX_MEMORY)
    }

    async fn execute(
        cx: &Running,
        task: &Task,
        work: &WriteWork,
        input: Option<Input>,
    ) -> Result<Produced> {
        let schema = work.shared.arrow_schema()?;
        let input_schema = aligned_to(&schema);
        let batches = match (&work.rows, input) {
            (Rows::Partition(_), Some(reader)) => input::stream(reader, &input_schema, cx)?,
            (Rows::Partition(name), None) => {
                return Err(Error::invalid(format!(
                    "the task of partition {name:?} needs an input stream"
                )));
            }
            (Rows::Pieces { .. }, Some(_)) => {
                return Err(Error::invalid(
                    "the task reads its own sources and takes no input stream",
                ));
            }
            (Rows::Pieces { readings, pieces }, None) => {
                input::pieces(cx, readings.clone(), pieces.clone(), &input_schema)
            }
        };
        let dataset = match task.read_version {
            // Another attempt's commit may have made it: this one is late, and does no harm.
            0 => {
                cx.datasets().open_latest(&task.uri, &cx.call.storage_options).await?.map(Arc::new)
            }
            _ => Some(cx.open(&task.uri, task.pin()).await?),
        };
        let mut bases = work.shared.bases();
        if let Some(dataset) = &dataset {
            bases.extend(bases_of(dataset));
        }
        cx.set_bases(bases.clone());
        // A late attempt at a create meets the dataset, and numbers fields as an overwrite does.
        let late = task.read_version == 0 && dataset.is_some();
        let expected = match work.shared.mode {
            Mode::Append => None,
            _ if late => Some(lance_schema(&schema, Mode::Overwrite)?),
            mode => Some(lance_schema(&schema, mode)?),
        };
        let memory = Self::memory(cx, task, work);
        let mut params = work.shared.params(cx)?;
        params.target_bases = work.shared.targets(&task.uri, &bases)?;
        if late {
            params.mode = WriteMode::Overwrite;
            params.initial_bases = None;
        }
        if let Some(targets) = &mut params.target_bases
            && !targets.is_empty()
        {
            let turn = task.index as usize % targets.len();
            targets.rotate_left(turn);
        }
        // Elsewhere a store stands between Lance and its files, and gives them the job's names.
        let staging = Staging::of(&task.uri, cx.marks().mark())
            .filter(|_| !work.shared.writes_to_bases())
            .map(Arc::new);
        let pinned = dataset.clone();
        let target = match (dataset, &staging) {
            (Some(dataset), Some(staging)) => {
                params.target_bases = Some(vec![Staging::BASE]);
                Target::Dataset(Arc::new(staging.dataset(&dataset)))
            }
            (None, Some(staging)) => {
                params.target_bases = Some(vec![Staging::BASE]);
                params.initial_bases.get_or_insert_default().push(staging.base());
                Target::New(task.uri.clone())
            }
            (Some(dataset), None) => {
                if work.shared.writes_to_bases() {
                    cx.place(task).await?.set(&mut params);
                }
                Target::Dataset(Arc::new(cx.marks().dataset(&dataset).await?))
            }
            (None, None) => {
                let place = cx.place(task).await?;
                place.set(&mut params);
                for base in params.initial_bases.iter_mut().flatten() {
                    base.path = through_store(&base.path);
                }
                Target::New(place.uri.clone())
            }
        };
        let limits = Limits::of(cx, memory, &schema);
        let blobs =
            blob::blobs(cx, task, &work.shared, &schema, pinned.as_ref(), &bases, &limits.waiting)
                .await?;
        let files = DataFiles {
            running: cx.clone(),
            uri: task.uri.clone(),
            job: task.job_id,
            target,
            staging,
            params,
            bases,
            expected,
            schema: blobs.as_ref().map_or(schema, |b| b.prepared.clone()),
            blobs: blobs.is_some(),
            progress: Default::default(),
            stop: Default::default(),
        };
        let sink = Sink { running: cx, files, memory, limits, blobs };
        let written = sink.write(input_schema, batches).await.map_err(|e| match e.code() {
            // The dataset came into being meanwhile.
            ErrorCode::AlreadyExists => e.with_code(ErrorCode::Io),
            _ => e,
        })?;
        let expected_rows = task.estimated_rows;
        if let Rows::Pieces { pieces, .. } = &work.rows
            && pieces.iter().all(|p| p.file.rows.is_some())
            && expected_rows != written.rows_in
        {
            return Err(Error::new(
                ErrorCode::Source,
                format!("the sources gave {} rows, {expected_rows} were planned", written.rows_in),
            ));
        }
        let mut made = produced(
            work,
            &written.fragments,
            &sink.files.bases,
            written.rows_in,
            written.bytes_in,
        )?;
        made.bytes_written += written.sidecars.iter().map(|f| f.size).sum::<u64>();
        made.files.extend(written.sidecars);
        Ok(made)
    }

    async fn adopt(
        cx: &Running,
        task: &Task,
        work: &WriteWork,
        made: serde_json::Value,
    ) -> Result<Produced> {
        let mut fragments = match made {
            serde_json::Value::Array(many) => many
                .into_iter()
                .map(|one| described("fragment (Lance's FragmentMetadata)", one))
                .collect::<Result<Vec<Fragment>>>()?,
            one => vec![described("fragment (Lance's FragmentMetadata)", one)?],
        };
        let mut bases = work.shared.bases();
        if task.read_version > 0 {
            bases.extend(bases_of(cx.open(&task.uri, task.pin()).await?.as_ref()));
        }
        state_sizes(cx, &task.uri, &mut fragments, &bases).await?;
        let rows = fragments.iter().map(|f| f.physical_rows.unwrap_or(0) as u64).sum();
        let mut made = produced(work, &fragments, &bases, rows, 0)?;
        if has_blobs(work.shared.arrow_schema()?.as_ref()) {
            made.files.extend(beside(cx, &task.uri, &made.files, &bases).await?);
        }
        Ok(made)
    }

    fn verify(
        state: &WriteState,
        task: Option<&Task>,
        work: Option<&WriteWork>,
        result: &TaskResult,
    ) -> Result<()> {
        let wrong = |what: String| Err(Error::new(ErrorCode::Verification, what));
        let fragments = fragments(result)?;
        let rows: u64 = fragments.iter().map(|f| f.physical_rows.unwrap_or(0) as u64).sum();
        if rows != result.rows_out || result.rows_in != result.rows_out {
            return wrong(format!(
                "{} rows in, {} rows out, {rows} rows in its fragments",
                result.rows_in, result.rows_out
            ));
        }
        if let (Some(task), Some(Rows::Pieces { pieces, .. })) = (task, work.map(|w| &w.rows))
            && pieces.iter().all(|p| p.file.rows.is_some())
            && task.estimated_rows != rows
        {
            return wrong(format!("{rows} rows, its task has {}", task.estimated_rows));
        }
        check_data_files(&fragments, &state.field_ids, result)
    }

    fn label(work: &WriteWork) -> Option<String> {
        match &work.rows {
            Rows::Partition(name) => Some(format!("partition {name:?}")),
            Rows::Pieces { .. } => None,
        }
    }

    fn check_open(state: &WriteState, winners: &mut Vec<TaskResult>) -> Result<bool> {
        if state.sources.is_some() || state.partitions.is_some() {
            return Ok(false);
        }
        if let Some(n) = state.num_partitions
            && winners.len() as u64 != n
        {
            return Err(Error::new(
                ErrorCode::Incomplete,
                format!("the job states {n} partitions, {} have a result", winners.len()),
            ));
        }
        let mut keyed = winners
            .drain(..)
            .map(|result| {
                let payload: serde_json::Value = serde_json::from_str(&result.payload)?;
                let partition = payload["partition"].as_str().unwrap_or_default().to_owned();
                let id =
                    uuid::Uuid::new_v5(&result.job_id, format!("partition/{partition}").as_bytes());
                if id != result.task_id {
                    return Err(Error::new(
                        ErrorCode::Verification,
                        format!(
                            "the result of task {} is not of partition {partition:?}",
                            result.task_id
                        ),
                    ));
                }
                Ok((input::natural(&partition), result))
            })
            .collect::<Result<Vec<_>>>()?;
        keyed.sort_by(|a, b| a.0.cmp(&b.0));
        winners.extend(keyed.into_iter().map(|(_, result)| result));
        Ok(true)
    }

    fn concurrency(state: &WriteState) -> Concurrency {
        match state.shared.mode {
            Mode::Create => Concurrency::Create,
            Mode::Overwrite if !state.discard_concurrent => Concurrency::Exclusive,
            _ => Concurrency::Rebase,
        }
    }

    fn bases(state: &WriteState) -> Bases {
        state.shared.bases()
    }

    fn writes_to_bases(state: &WriteState) -> bool {
        state.shared.writes_to_bases()
    }

    fn elsewhere(state: &WriteState) -> Elsewhere {
        let sources = state.sources.iter().flatten();
        let read = sources.filter_map(|s| Some((s.files.first()?, s.reading.version?)));
        Elsewhere { bases: state.shared.bases(), datasets: read.map(lance_source).collect() }
    }

    fn task_elsewhere(work: &WriteWork) -> Elsewhere {
        let datasets: HashSet<_> = match &work.rows {
            Rows::Partition(_) => HashSet::new(),
            Rows::Pieces { readings, pieces } => pieces
                .iter()
                .filter_map(|p| Some((&p.file, readings.get(p.reading as usize)?.version?)))
                .map(lance_source)
                .collect(),
        };
        Elsewhere { bases: work.shared.bases(), datasets: datasets.into_iter().collect() }
    }

    async fn commit(
        cx: &Committing<'_>,
        job: &Job,
        state: &WriteState,
        winners: &[TaskResult],
    ) -> Result<Applied> {
        let shared = &state.shared;
        let mut all: Vec<Fragment> = Vec::new();
        for winner in winners {
            all.extend(fragments(winner)?);
        }
        let metrics = Metrics::from([
            ("fragments_added".into(), all.len() as u64),
            ("files_added".into(), all.iter().map(|f| f.files.len() as u64).sum()),
            ("rows_written".into(), winners.iter().map(|r| r.rows_out).sum()),
            ("bytes_written".into(), winners.iter().map(|r| r.bytes_written).sum()),
            ("tasks".into(), winners.len() as u64),
        ]);
        let operation = match shared.mode {
            Mode::Append => LanceOperation::Append { fragments: all },
            mode => LanceOperation::Overwrite {
                fragments: all,
                schema: lance_schema(shared.arrow_schema()?.as_ref(), mode)?,
                config_upsert_values: shared.auto_cleanup.as_ref().map(cleanup_config),
                initial_bases: shared
                    .initial_bases
                    .as_ref()
                    .map(|bases| bases.iter().map(base_path).collect()),
            },
        };
        let version = shared.version()?;
        let properties = cx.properties(state.transaction_properties.as_ref());
        cx.apply(operation, job.read_version, properties, |builder| {
            let builder = builder.with_skip_auto_cleanup(shared.skip_auto_cleanup);
            match shared.mode {
                Mode::Append => builder,
                _ => builder
                    .use_stable_row_ids(shared.enable_stable_row_ids)
                    .enable_v2_manifest_paths(shared.enable_v2_manifest_paths)
                    .with_storage_format(version),
            }
        })
        .await?;
        Ok(Applied { metrics, nothing: false })
    }
}

/// A source that is a dataset itself, with the version that is read.
fn lance_source((file, (version, timestamp)): (&source::File, (u64, u64))) -> (String, Pin) {
    (file.uri.clone(), Pin { version, timestamp })
}

fn produced(
    work: &WriteWork,
    fragments: &[Fragment],
    bases: &Bases,
    rows: u64,
    bytes_read: u64,
) -> Result<Produced> {
    let files: Vec<_> = fragments.iter().flat_map(|f| written_files(f, bases)).collect();
    let partition = match &work.rows {
        Rows::Partition(name) => Some(name),
        Rows::Pieces { .. } => None,
    };
    Ok(Produced {
        payload: json!({ "partition": partition }),
        fragments: fragments.iter().map(serde_json::to_string).collect::<Result<_, _>>()?,
        rows_in: rows,
        rows_out: rows,
        bytes_read,
        bytes_written: files.iter().map(|f| f.size).sum(),
        files,
        ..Default::default()
    })
}

/// Fill in sizes that the writer did not state: the commit and every reader would look them up one by
/// one.
pub(super) async fn state_sizes(
    cx: &Running,
    uri: &str,
    fragments: &mut [Fragment],
    bases: &Bases,
) -> Result<()> {
    let unknown: Vec<_> =
        fragments.iter().flat_map(|f| written_files(f, bases)).filter(|f| f.size == 0).collect();
    let options = &cx.call.storage_options;
    let mut sizes = cx.datasets().sizes(uri, options, &unknown, bases).await?.into_iter();
    for file in fragments.iter_mut().flat_map(|f| &mut f.files) {
        if file.file_size_bytes.get().is_none() {
            let size = sizes.next().flatten().and_then(NonZero::new);
            file.file_size_bytes = CachedFileSize::new(size.map_or(0, u64::from));
        }
    }
    Ok(())
}

/// More memory makes nothing faster.
const MAX_MEMORY: u64 = 1 << 30;
/// Less memory makes no progress.
const MIN_MEMORY: u64 = 8 << 20;

fn partition_work(state: &WriteState, partition: &str) -> NewWork<WriteWork> {
    NewWork {
        key: Some(partition.to_owned()),
        work: WriteWork {
            shared: state.shared.clone(),
            rows: Rows::Partition(partition.to_owned()),
        },
        rows: 0,
        bytes: 0,
    }
}

/// New fragments must be of the job's fields, and of files that the result lists.
pub(super) fn check_data_files(
    fragments: &[Fragment],
    field_ids: &[i32],
    result: &TaskResult,
) -> Result<()> {
    let wrong = |what: String| Err(Error::new(ErrorCode::Verification, what));
    let listed: HashSet<&str> = result.files.iter().map(|f| f.path.as_str()).collect();
    for file in fragments.iter().flat_map(|f| &f.files) {
        let mut seen = HashSet::new();
        if !file.fields.iter().all(|id| field_ids.contains(id) && seen.insert(*id)) {
            return wrong(format!(
                "data file {} has field ids {:?}, the schema has {field_ids:?}",
                file.path, file.fields
            ));
        }
        // Files of the legacy version have no column indices.
        if file.file_major_version >= 2 && file.column_indices.len() != file.fields.len() {
            return wrong(format!(
                "data file {} has {} column indices for {} fields",
                file.path,
                file.column_indices.len(),
                file.fields.len()
            ));
        }
        let in_data = format!("data/{}", file.path);
        if !listed.contains(in_data.as_str()) && !listed.contains(file.path.as_str()) {
            return wrong(format!("data file {} is not among the files it lists", file.path));
        }
    }
    Ok(())
}

pub(crate) fn fragments(result: &TaskResult) -> Result<Vec<Fragment>> {
    result
        .fragments
        .iter()
        .map(|json| {
            serde_json::from_str(json).map_err(|e| {
                Error::new(ErrorCode::Decode, format!("a fragment of task {}: {e}", result.task_id))
            })
        })
        .collect()
}

/// As Lance's own create stores it.
fn cleanup_config(cleanup: &AutoCleanup) -> std::collections::HashMap<String, String> {
    [
        ("lance.auto_cleanup.interval".to_owned(), cleanup.interval.to_string()),
        ("lance.auto_cleanup.older_than".to_owned(), format!("{}s", cleanup.older_than_seconds)),
    ]
    .into()
}
