//! What is still to do: the job's tasks, stage by stage, less those that have a result.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use crate::job::Job;
use crate::result::TaskResult;
use crate::task::Task;

/// A job's tasks as far as its results allow to see.
pub(crate) struct Plan {
    /// The last stage that could be planned; a commit takes this stage's results.
    pub tasks: Vec<Task>,
    /// Tasks without a result; none = ready to commit.
    pub missing: Vec<Task>,
    /// Every planned task of every stage.
    pub known: HashSet<Uuid>,
}

pub(crate) async fn plan(running: &Running, job: &Job, results: &[TaskResult]) -> Result<Plan> {
    let attempts = attempts(job, results)?;
    let mut earlier = Vec::new();
    let mut tasks = Vec::new();
    let mut known = HashSet::new();
    for stage in 0.. {
        let Some(new) = job.state.stage(running, job, stage, &earlier).await? else { break };
        tasks = (0u32..).zip(new).map(|(index, new)| job.new_task(stage, index, new)).collect();
        known.extend(tasks.iter().map(|t: &Task| t.id));
        let missing: Vec<Task> =
            tasks.iter().filter(|t| !attempts.contains_key(&t.id)).cloned().collect();
        if !missing.is_empty() {
            return Ok(Plan { tasks, missing, known });
        }
        earlier.extend(
            tasks.iter().filter_map(|t| attempts.get(&t.id)?.first().map(|r| (*r).clone())),
        );
    }
    Ok(Plan { tasks, missing: Vec::new(), known })
}

/// The successful attempts at each task, the winner first: any process that has the same results picks
/// the same winner.
pub(crate) fn attempts<'a>(
    job: &Job,
    results: &'a [TaskResult],
) -> Result<HashMap<Uuid, Vec<&'a TaskResult>>> {
    let mut attempts: HashMap<Uuid, Vec<&TaskResult>> = HashMap::new();
    for result in results {
        check(job, result).map_err(|e| e.for_task(&result.task_id.to_string()))?;
        if result.succeeded() {
            attempts.entry(result.task_id).or_default().push(result);
        }
    }
    for of_one in attempts.values_mut() {
        of_one.sort_by_key(|r| r.attempt_id);
        of_one.dedup_by_key(|r| r.attempt_id);
    }
    Ok(attempts)
}

/// Is this a result of this job at all?
fn check(job: &Job, result: &TaskResult) -> Result<()> {
    if result.job_id != job.id {
        return Err(Error::invalid(format!(
            "a result of job {} was handed to job {}",
            result.job_id, job.id
        )));
    }
    if result.operation != job.operation()
        || result.dataset_uri != job.uri
        || result.read_version != job.read_version
    {
        return Err(Error::new(
            ErrorCode::Verification,
            format!(
                "the result of task {} is of {} on {} at version {}, its job is {} on {} at version {}",
                result.task_id,
                result.operation,
                result.dataset_uri,
                result.read_version,
                job.operation(),
                job.uri,
                job.read_version
            ),
        ));
    }
    if result.versions.format > crate::codec::FORMAT_VERSION.into() {
        return Err(Error::new(
            ErrorCode::VersionMismatch,
            format!(
                "the result of task {} was made by lance-tasks {} (format {}), this library reads \
                 formats up to {}",
                result.task_id,
                result.versions.lance_tasks,
                result.versions.format,
                crate::codec::FORMAT_VERSION
            ),
        ));
    }
    Ok(())
}
