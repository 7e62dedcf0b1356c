//! Cleanup: remove old versions and the files that only they need, and what uncommitted work left behind.
//!
//! A first task surveys: it lists what is to be removed, and is a dry run by itself. From its result a
//! second one is planned, unless a dry run is all that was asked for; it looks again and removes, so that
//! what has come to be needed since stays. What decides which versions go is resolved at prepare: a
//! cleanup that is repeated, or taken up again after a crash, removes the same ones.
//!
//! Lance's own cleanup removes what lies in the dataset's storage. It looks into no other base; there,
//! before the manifests go that are the only proof of whose they are, this removes the data files with
//! their blobs that removed versions refer to and no kept one does. Nothing else of a base is touched: a
//! file that no version refers to may be another dataset's, or a user's; only `abort` of the job that
//! wrote it knows better. Managed blobs in other bases stay.

mod files;
mod leftovers;
mod policy;
mod references;
mod report;
mod spec;
mod survey;

use std::time::Duration;

use lance::Dataset;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Metrics, NewWork, Operation, Prepared, Preparing, Produced};
use crate::commit::{Applied, Committing};
use crate::dataset::{Bases, bases_of};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::{EventKind, Input, Running};
use crate::job::Job;
use crate::result::{TaskResult, WrittenFile};
use crate::task::Task;
use leftovers::{not_removed, remove_empty_folders};
use policy::{Policy, check};
use report::Report;
pub use spec::CleanupSpec;
use survey::{Survey, Unverified, addressed};

pub(crate) struct Cleanup;

/// A cleanup with its options resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CleanupState {
    pub policy: Policy,
    pub dry_run: bool,
}

/// One task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CleanupWork {
    /// List what is to be removed.
    Survey(Policy),
    /// Look again, and remove it.
    Delete(Policy),
}

/// Names of files; their number is not known beforehand.
const MEMORY: u64 = 64 << 20;
const MIN_MEMORY: u64 = 8 << 20;

impl Operation for Cleanup {
    type Spec = CleanupSpec;
    type State = CleanupState;
    type Work = CleanupWork;

    const MAKES_VERSION: bool = false;

    async fn prepare(
        cx: &Preparing<'_>,
        spec: CleanupSpec,
        input: Option<arrow_schema::SchemaRef>,
    ) -> Result<Prepared<CleanupState>> {
        check(&spec)?;
        let (uri, dataset) = cx.existing(&spec.uri, input.as_ref(), "a cleanup").await?;
        let policy = Policy::of(&spec, &dataset).await?;
        let state = CleanupState { policy, dry_run: spec.dry_run.unwrap_or(false) };
        Ok(cx.prepared(uri, &dataset, state))
    }

    async fn stage(
        _cx: &Running,
        _job: &Job,
        state: &CleanupState,
        stage: u32,
        earlier: &[TaskResult],
    ) -> Result<Option<Vec<NewWork<CleanupWork>>>> {
        let (work, bytes) = match (stage, earlier) {
            (0, _) => (CleanupWork::Survey(state.policy.clone()), 0),
            (1, [survey]) if !state.dry_run => {
                (CleanupWork::Delete(state.policy.clone()), report(survey)?.total.bytes)
            }
            _ => return Ok(None),
        };
        Ok(Some(vec![NewWork { key: None, work, rows: 0, bytes }]))
    }

    fn memory(cx: &Running, _task: &Task, _work: &CleanupWork) -> u64 {
        MEMORY.min(cx.memory_share()).max(MIN_MEMORY)
    }

    async fn execute(
        cx: &Running,
        task: &Task,
        work: &CleanupWork,
        input: Option<Input>,
    ) -> Result<Produced> {
        if input.is_some() {
            return Err(Error::invalid("a cleanup takes no input stream"));
        }
        // Not from the cache: of a dataset that was made anew at this place, Lance would take every
        // version for an old one.
        let options = &cx.call.storage_options;
        let dataset = cx.datasets().open_uncached(&task.uri, task.pin(), options).await?;
        let (policy, delete) = match work {
            CleanupWork::Survey(policy) => (policy, false),
            CleanupWork::Delete(policy) => (policy, true),
        };
        cx.event(EventKind::Stage, 0, 0, "survey");
        let survey = Survey::make(cx, &task.uri, &dataset, policy).await?;
        if delete {
            cx.event(EventKind::Stage, 0, 0, "delete");
            remove(cx, &task.uri, &dataset, policy, &survey).await?;
        }
        let report = survey.report(policy, delete);
        Ok(Produced { payload: serde_json::to_value(&report)?, ..Default::default() })
    }

    async fn adopt(
        _cx: &Running,
        _task: &Task,
        _work: &CleanupWork,
        _made: serde_json::Value,
    ) -> Result<Produced> {
        Err(Error::invalid("a cleanup has nothing that another client could have made"))
    }

    fn verify(
        _state: &CleanupState,
        task: Option<&Task>,
        work: Option<&CleanupWork>,
        result: &TaskResult,
    ) -> Result<()> {
        let report = report(result)?;
        let wrong = work.is_some_and(|work| {
            matches!(work, CleanupWork::Delete(_)) != report.removed || !result.files.is_empty()
        });
        if wrong || task.is_none() {
            return Err(Error::new(ErrorCode::Verification, "it is of another task"));
        }
        Ok(())
    }

    async fn commit(
        _cx: &Committing<'_>,
        _job: &Job,
        state: &CleanupState,
        winners: &[TaskResult],
    ) -> Result<Applied> {
        Ok(Applied { metrics: Self::summary(state, winners)?, nothing: true })
    }

    fn summary(_state: &CleanupState, winners: &[TaskResult]) -> Result<Metrics> {
        winners.last().map_or_else(|| Ok(Metrics::new()), |last| Ok(report(last)?.metrics()))
    }

    fn label(work: &CleanupWork) -> Option<String> {
        let name = match work {
            CleanupWork::Survey(_) => "survey",
            CleanupWork::Delete(_) => "delete",
        };
        Some(name.into())
    }
}

fn report(result: &TaskResult) -> Result<Report> {
    serde_json::from_str(&result.payload).map_err(|e| {
        Error::new(ErrorCode::Decode, format!("the report of task {}: {e}", result.task_id))
    })
}

/// In other bases first: once the manifests are gone, nothing tells whose files those are.
async fn remove(
    cx: &Running,
    uri: &str,
    dataset: &Dataset,
    policy: &Policy,
    survey: &Survey,
) -> Result<()> {
    let in_bases = survey.in_bases.iter();
    let based = in_bases.filter_map(|file| Some((file.base.as_ref()?, &file.path, file.size)));
    let (bases, files) = addressed(based, &bases_of(dataset));
    delete(cx, uri, policy, files, &bases).await?;
    let stats = policy.operation(dataset, survey.within.as_ref())?.execute().await?;
    if stats.failed_deletes > 0 {
        return Err(Error::new(
            ErrorCode::Io,
            format!("{} files could not be removed; the others are gone", stats.failed_deletes),
        ));
    }
    let files = survey.leftovers.iter().map(|file| WrittenFile {
        path: file.path.clone(),
        size: file.size,
        base: None,
    });
    delete(cx, uri, policy, files.collect(), &Bases::new()).await?;
    let (uri, folders, unverified) = (uri.to_owned(), survey.folders(), Unverified::new(policy));
    tokio::task::spawn_blocking(move || remove_empty_folders(&uri, &folders, unverified))
        .await
        .map_err(|e| Error::internal(format!("empty folders: {e}")))
}

/// Delete files that Lance's own cleanup does not, at the same rate.
async fn delete(
    cx: &Running,
    uri: &str,
    policy: &Policy,
    files: Vec<WrittenFile>,
    bases: &Bases,
) -> Result<()> {
    let at_once = policy.delete_rate_limit.and_then(|rate| usize::try_from(rate).ok());
    let options = &cx.call.storage_options;
    let count = files.len();
    for (i, files) in files.chunks(at_once.unwrap_or(usize::MAX).min(count.max(1))).enumerate() {
        let next = Instant::now() + Duration::from_secs(1);
        let left = cx.datasets().remove(uri, options, files.to_vec(), bases).await?;
        if let Some(first) = left.first() {
            return Err(not_removed(left.len(), &first.path));
        }
        if at_once.is_some_and(|n| (i + 1) * n < count) {
            tokio::time::sleep_until(next).await;
        }
    }
    Ok(())
}
