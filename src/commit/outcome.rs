//! What a commit answers.

use lance::Dataset;

use super::history::History;
use super::{Outcome, winners};
use crate::dataset::not_found;
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use crate::job::Job;
use crate::operations::Metrics;
use crate::result::TaskResult;

/// The outcome of a commit, made now or before.
pub(super) async fn outcome(
    running: &Running,
    job: &Job,
    history: &History,
    metrics: Metrics,
    already_committed: bool,
    complete: bool,
) -> Result<Outcome> {
    let part = history.last().ok_or_else(|| Error::internal("a commit without a version"))?;
    let dataset = history.at(running, job, part.version).await?;
    let rows = dataset.count_rows(None).await?;
    Ok(Outcome {
        job_id: job.id,
        operation: job.operation().to_owned(),
        uri: job.uri.clone(),
        version: part.version,
        already_committed,
        complete,
        rows: rows as u64,
        metrics,
        transaction_id: part.transaction_id.clone(),
    })
}

/// The outcome of a job that had nothing to do.
pub(super) async fn nothing(running: &Running, job: &Job) -> Result<Outcome> {
    let dataset = running.open(&job.uri, job.pin()).await?;
    unchanged(job, &dataset, Metrics::new()).await
}

/// The outcome of a job whose operation makes no version.
pub(super) async fn summary(
    running: &Running,
    job: &Job,
    results: &[TaskResult],
) -> Result<Outcome> {
    let winners = winners(running, job, results).await?.results;
    let winners: Vec<TaskResult> = winners.into_iter().map(|(_, result)| result).collect();
    let metrics = job.state.summary(&winners)?;
    let options = &running.call.storage_options;
    // The pinned version may have been cleaned away since, which changes nothing here.
    let dataset = match running.datasets().open_uncached(&job.uri, job.pin(), options).await {
        Err(error) if error.code() == ErrorCode::VersionGone => {
            let latest = running.datasets().open_latest(&job.uri, options).await?;
            latest.ok_or_else(|| not_found(&job.uri))?
        }
        opened => opened?,
    };
    unchanged(job, &dataset, metrics).await
}

/// An outcome that names a version that was there before.
async fn unchanged(job: &Job, dataset: &Dataset, metrics: Metrics) -> Result<Outcome> {
    Ok(Outcome {
        job_id: job.id,
        operation: job.operation().to_owned(),
        uri: job.uri.clone(),
        version: dataset.manifest.version,
        already_committed: false,
        complete: true,
        rows: dataset.count_rows(None).await? as u64,
        metrics,
        transaction_id: String::new(),
    })
}
