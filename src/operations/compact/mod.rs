//! Compact: small or thinned-out fragments become full ones. Lance plans, rewrites and commits; this
//! carries its options from the plan to the commit, and its tasks to other machines.

mod blobs;
mod options;

use std::collections::BTreeMap;
use std::sync::Arc;

use lance::Dataset;
use lance::dataset::index::DatasetIndexRemapperOptions;
use lance::dataset::optimize::{
    CompactionMetrics, CompactionMode, CompactionOptions, CompactionTask, RewriteResult, TaskData,
    commit_compaction, plan_compaction,
};
use lance_file::version::{ConcreteFileVersion, LanceFileVersion};
use lance_table::format::{DataFile, Fragment};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use blobs::{Split, batch_size};
use options::pinned;
pub use options::{CompactSpec, Options};

use super::{Metrics, NewWork, Operation, Prepared, Preparing, Produced, described};
use crate::blob::fields::{first_blob, supports};
use crate::commit::{Applied, Committing, beside};
use crate::dataset::bases_of;
use crate::error::{Error, ErrorCode, Result};
use crate::executor::{Input, Running};
use crate::job::Job;
use crate::operations::write::{check_data_files, state_sizes, written_files};
use crate::result::TaskResult;
use crate::task::Task;

pub(crate) struct Compact;

/// A compaction with its options resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CompactState {
    pub options: Options,
    /// The ids of the dataset's fields.
    pub field_ids: Vec<i32>,
    pub transaction_properties: Option<BTreeMap<String, String>>,
    pub micro_commit_batch_size: Option<u64>,
}

/// Less memory makes no progress.
const MIN_MEMORY: u64 = 16 << 20;
/// More memory makes nothing faster.
const MAX_MEMORY: u64 = 512 << 20;

/// One task: adjacent fragments of the pinned version that become new ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CompactWork {
    pub options: Options,
    pub fragments: Vec<u64>,
    /// Whether rows have payloads, which the estimate of bytes does not count.
    pub blobs: bool,
}

impl Operation for Compact {
    type Spec = CompactSpec;
    type State = CompactState;
    type Work = CompactWork;

    async fn prepare(
        cx: &Preparing<'_>,
        spec: CompactSpec,
        input: Option<arrow_schema::SchemaRef>,
    ) -> Result<Prepared<CompactState>> {
        if spec.micro_commit_batch_size == Some(0) {
            return Err(Error::invalid(
                "option \"micro_commit_batch_size\" is 0, it must be at least 1",
            ));
        }
        let mut options = spec.options();
        options.check()?;
        let (uri, dataset) = cx.existing(&spec.uri, input.as_ref(), "a compaction").await?;
        // What the dataset's configuration says is pinned with the job, not looked up again later.
        let resolved =
            options.lance(CompactionOptions::from_dataset_config(&dataset.manifest.config)?)?;
        let version = dataset.manifest.data_storage_format.lance_file_format();
        if options.data_storage_version.is_none() && has_blobs(&dataset) && !supports(version) {
            // A dataset that blobs were appended to keeps the version that it was made with.
            options.data_storage_version = Some(LanceFileVersion::V2_2.to_string());
        }
        let resolved = options.lance(resolved)?;
        check_blobs(&dataset, &resolved)?;
        options = pinned(options, &resolved);
        let state = CompactState {
            options,
            field_ids: dataset.schema().fields_pre_order().map(|f| f.id).collect(),
            transaction_properties: spec.transaction_properties,
            micro_commit_batch_size: spec.micro_commit_batch_size,
        };
        Ok(cx.prepared(uri, &dataset, state))
    }

    async fn stage(
        cx: &Running,
        job: &Job,
        state: &CompactState,
        stage: u32,
        _earlier: &[TaskResult],
    ) -> Result<Option<Vec<NewWork<CompactWork>>>> {
        if stage > 0 {
            return Ok(None);
        }
        let dataset = cx.open(&job.uri, job.pin()).await?;
        let blobs = dataset.schema().fields_pre_order().any(|f| f.is_blob());
        let options = state.options.lance(Default::default())?;
        let mut tasks = plan_compaction(&dataset, &options).await?.tasks;
        let planned: Vec<u64> =
            tasks.iter().flat_map(|task| task.fragments.iter().map(|f| f.id)).collect();
        let old = to_migrate(&dataset, &options, &planned);
        tasks.extend(old.into_iter().map(|fragment| TaskData { fragments: vec![fragment] }));
        let tasks = tasks.into_iter().map(|task| NewWork {
            key: None,
            rows: task.fragments.iter().map(live_rows).sum(),
            bytes: task.fragments.iter().flat_map(written_sizes).sum(),
            work: CompactWork {
                options: state.options.clone(),
                fragments: task.fragments.iter().map(|f| f.id).collect(),
                blobs,
            },
        });
        Ok(Some(tasks.collect()))
    }

    fn memory(cx: &Running, task: &Task, work: &CompactWork) -> u64 {
        if work.blobs {
            return cx.memory_share().clamp(MIN_MEMORY, MAX_MEMORY);
        }
        // Batches being read and pages being filled; a small task holds its rows at most twice.
        (task.estimated_bytes.saturating_mul(2) + (16 << 20))
            .min(MAX_MEMORY)
            .min(cx.memory_share())
            .max(MIN_MEMORY)
    }

    async fn execute(
        cx: &Running,
        task: &Task,
        work: &CompactWork,
        input: Option<Input>,
    ) -> Result<Produced> {
        if input.is_some() {
            return Err(Error::invalid("a compaction takes no input stream"));
        }
        let dataset = cx.open(&task.uri, task.pin()).await?;
        let fragments = fragments(&dataset, &work.fragments)?;
        let mut options = work.options.lance(Default::default())?;
        let marked = cx.marks().dataset(&dataset).await?;
        let memory = Self::memory(cx, task, work);
        let split = match options.compaction_mode {
            // Lance says itself that it cannot.
            Some(CompactionMode::ForceBinaryCopy) => None,
            _ => Split::of(&dataset, &fragments, write_version(&dataset, &options)),
        };
        match &split {
            Some(_) => options.compaction_mode = Some(CompactionMode::Reencode),
            None => {
                if let Some(rows) = batch_size(&dataset, &fragments, memory / 4).await? {
                    options.batch_size =
                        Some(options.batch_size.map_or(rows, |given| given.min(rows)));
                }
            }
        }
        let rest = match &split {
            Some(split) => split.rest(&marked),
            None => Some(marked),
        };
        let mut result = match (&split, rest) {
            (Some(split), None) => split.of_nothing(&dataset, &fragments, &options).await?,
            (None, None) => return Err(Error::internal("nothing to compact")),
            (_, Some(rest)) => {
                let lance_task = CompactionTask {
                    task: TaskData { fragments: fragments.clone() },
                    read_version: task.read_version,
                    options: options.clone(),
                };
                let mut result = lance_task.execute(&rest).await?;
                cx.marks().mark().fragments(&mut result.new_fragments);
                result
            }
        };
        let Some(split) = split else {
            let mut made = produced(cx, task, &dataset, result).await?;
            if work.blobs {
                made.files.extend(beside(cx, &task.uri, &made.files, &bases_of(&dataset)).await?);
            }
            return Ok(made);
        };
        let sidecars = split.add(cx, task, &dataset, &mut result, &options, memory).await?;
        // Lance describes a rewrite's fragments as they were; blobs are part of them again.
        let mut made = produced(cx, task, &dataset, result).await?;
        made.bytes_written += sidecars.iter().map(|f| f.size).sum::<u64>();
        made.files.extend(sidecars);
        Ok(made)
    }

    async fn adopt(
        cx: &Running,
        task: &Task,
        work: &CompactWork,
        made: serde_json::Value,
    ) -> Result<Produced> {
        let dataset = cx.open(&task.uri, task.pin()).await?;
        fragments(&dataset, &work.fragments)?;
        let rewrite = described("rewrite (Lance's RewriteResult)", made)?;
        let mut made = produced(cx, task, &dataset, rewrite).await?;
        if work.blobs {
            made.files.extend(beside(cx, &task.uri, &made.files, &bases_of(&dataset)).await?);
        }
        Ok(made)
    }

    fn verify(
        state: &CompactState,
        task: Option<&Task>,
        work: Option<&CompactWork>,
        result: &TaskResult,
    ) -> Result<()> {
        let wrong = |what: String| Err(Error::new(ErrorCode::Verification, what));
        let rewrite = rewrite(result)?;
        let sources: Vec<u64> = rewrite.original_fragments.iter().map(|f| f.id).collect();
        if let Some(work) = work
            && work.fragments != sources
        {
            return wrong(format!(
                "it rewrote fragments {sources:?}, its task has {:?}",
                work.fragments
            ));
        }
        let live: u64 = rewrite.original_fragments.iter().map(live_rows).sum();
        let rows: u64 = rewrite.new_fragments.iter().map(live_rows).sum();
        let expected = task.map_or(live, |t| t.estimated_rows);
        if rows != expected || result.rows_out != rows {
            return wrong(format!(
                "{expected} rows were there, {rows} are in the new fragments, {} are stated",
                result.rows_out
            ));
        }
        if rewrite.read_version != result.read_version {
            return wrong(format!(
                "it read version {}, its job pins {}",
                rewrite.read_version, result.read_version
            ));
        }
        check_data_files(&rewrite.new_fragments, &state.field_ids, result)
    }

    fn partial(_state: &CompactState) -> bool {
        true
    }

    fn batch_size(state: &CompactState) -> Option<usize> {
        state.micro_commit_batch_size.map(|n| n as usize)
    }

    async fn commit(
        cx: &Committing<'_>,
        _job: &Job,
        state: &CompactState,
        winners: &[TaskResult],
    ) -> Result<Applied> {
        let properties = cx.properties(state.transaction_properties.as_ref());
        if winners.is_empty() {
            // Nothing to compact is not a reason to make a version.
            return Ok(Applied { metrics: Metrics::new(), nothing: true });
        }
        let mut options = state.options.lance(Default::default())?;
        options.transaction_properties = Some(Arc::new(properties));
        let rewrites = winners.iter().map(rewrite).collect::<Result<Vec<_>>>()?;
        let added: u64 =
            rewrites.iter().flat_map(|r| &r.new_fragments).flat_map(written_sizes).sum();
        let removed: u64 =
            rewrites.iter().flat_map(|r| &r.original_fragments).flat_map(written_sizes).sum();
        let mut dataset = cx.dataset().await?;
        check_sources(&dataset, &rewrites)?;
        let remap = Arc::new(DatasetIndexRemapperOptions::default());
        let m: CompactionMetrics =
            commit_compaction(&mut dataset, rewrites, remap, &options).await?;
        Ok(Applied {
            metrics: Metrics::from([
                ("fragments_removed".into(), m.fragments_removed as u64),
                ("fragments_added".into(), m.fragments_added as u64),
                ("files_removed".into(), m.files_removed as u64),
                ("files_added".into(), m.files_added as u64),
                ("bytes_removed".into(), removed),
                ("bytes_added".into(), added),
                ("tasks".into(), winners.len() as u64),
                ("commits".into(), 1),
            ]),
            nothing: false,
        })
    }
}

fn has_blobs(dataset: &Dataset) -> bool {
    dataset.schema().fields_pre_order().any(|f| f.is_blob_v2())
}

/// Fragments that Lance has no reason to compact, but that hold blobs in an older form than is wanted.
fn to_migrate(dataset: &Dataset, options: &CompactionOptions, planned: &[u64]) -> Vec<Fragment> {
    if !options.data_storage_version.is_some_and(|version| supports(version.resolve())) {
        return Vec::new();
    }
    let blobs: Vec<i32> =
        dataset.schema().fields_pre_order().filter(|f| f.is_blob()).map(|f| f.id).collect();
    let old = |file: &DataFile| (file.file_major_version, file.file_minor_version) < (2, 2);
    let holds = |file: &DataFile| file.fields.iter().any(|id| blobs.contains(id));
    let fragments = dataset.manifest.fragments.iter();
    fragments
        .filter(|f| f.files.iter().any(|file| holds(file) && old(file)))
        .filter(|f| !planned.contains(&f.id))
        .filter(|f| !options.excluded_fragment_ids.contains(&(f.id as u32)))
        .cloned()
        .collect()
}

/// What Lance would refuse in each task.
fn check_blobs(dataset: &Dataset, options: &CompactionOptions) -> Result<()> {
    let arrow = arrow_schema::Schema::from(dataset.schema());
    let Some(column) = first_blob(&arrow) else { return Ok(()) };
    let version = write_version(dataset, options);
    if !supports(version) {
        return Err(Error::invalid(format!(
            "option \"data_storage_version\": column {column:?} has blobs, which need 2.2 or later, not \
             {version}"
        )));
    }
    if options.compaction_mode == Some(CompactionMode::ForceBinaryCopy) {
        return Err(Error::new(
            ErrorCode::NotSupported,
            format!(
                "option \"compaction_mode\": column {column:?} has blobs, no binary copy can be forced"
            ),
        ));
    }
    Ok(())
}

fn write_version(dataset: &Dataset, options: &CompactionOptions) -> ConcreteFileVersion {
    let own = dataset.manifest.data_storage_format.lance_file_format();
    options.data_storage_version.map_or(own, LanceFileVersion::resolve)
}

async fn produced(
    cx: &Running,
    task: &Task,
    dataset: &Dataset,
    mut rewrite: RewriteResult,
) -> Result<Produced> {
    let bases = bases_of(dataset);
    // Binary copies come without.
    state_sizes(cx, &task.uri, &mut rewrite.new_fragments, &bases).await?;
    let new = &rewrite.new_fragments;
    let files: Vec<_> = new.iter().flat_map(|f| written_files(f, &bases)).collect();
    Ok(Produced {
        fragments: new.iter().map(serde_json::to_string).collect::<Result<_, _>>()?,
        rows_in: rewrite.original_fragments.iter().map(live_rows).sum(),
        rows_out: new.iter().map(live_rows).sum(),
        bytes_read: rewrite.original_fragments.iter().flat_map(written_sizes).sum(),
        bytes_written: files.iter().map(|f| f.size).sum(),
        files,
        payload: serde_json::to_value(&rewrite)?,
        ..Default::default()
    })
}

/// Refuse before ids are reserved and indexes are remapped what Lance would refuse after.
fn check_sources(dataset: &Dataset, rewrites: &[RewriteResult]) -> Result<()> {
    let all = &dataset.manifest.fragments;
    for source in rewrites.iter().flat_map(|r| &r.original_fragments) {
        let now = all.binary_search_by_key(&source.id, |f| f.id).ok().map(|at| &all[at]);
        let changed = match now {
            None => "was removed",
            Some(now) if now.deletion_file != source.deletion_file => "lost rows",
            Some(now) if now.files.len() != source.files.len() => "got other columns",
            Some(_) => continue,
        };
        return Err(Error::new(
            ErrorCode::RetryableConflict,
            format!(
                "fragment {} {changed} by another commit since version {}; prepare the job again",
                source.id, rewrites[0].read_version
            ),
        ));
    }
    Ok(())
}

fn rewrite(result: &TaskResult) -> Result<RewriteResult> {
    serde_json::from_str(&result.payload).map_err(|e| {
        Error::new(ErrorCode::Decode, format!("the rewrite of task {}: {e}", result.task_id))
    })
}

fn live_rows(fragment: &Fragment) -> u64 {
    fragment.num_rows().unwrap_or(0) as u64
}

fn written_sizes(fragment: &Fragment) -> impl Iterator<Item = u64> + '_ {
    fragment.files.iter().map(|f| f.file_size_bytes.get().map_or(0, u64::from))
}

/// The pinned version's own metadata: a task carries ids only.
fn fragments(dataset: &Dataset, ids: &[u64]) -> Result<Vec<Fragment>> {
    let all = &dataset.manifest.fragments;
    ids.iter()
        .map(|id| {
            // Sorted by id, as Lance keeps them.
            let found = all.binary_search_by_key(id, |f| f.id).ok().map(|at| all[at].clone());
            found.ok_or_else(|| {
                Error::new(
                    ErrorCode::Verification,
                    format!("fragment {id} is not in version {}", dataset.manifest.version),
                )
            })
        })
        .collect()
}
