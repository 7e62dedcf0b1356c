//! The commit, shared by all operations: verified, exactly once, safe to repeat; and abort.
//!
//! Each commit carries the job's id and the tasks it took as properties of its Lance transaction. Before
//! a manifest is written, every version since the job's own is searched for them, under the same
//! put-if-absent that orders all writers ([`guard`]): whoever repeats a commit finds the first one.

mod abort;
mod files;
mod guard;
mod history;
mod outcome;
mod owned;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lance::Dataset;
use lance::dataset::CommitBuilder;
use lance::dataset::transaction::{Operation, Transaction, TransactionBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::dataset::not_found;
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use crate::job::Job;
use crate::marks::{Marks, Use};
use crate::operations::{Metrics, nothing_to_commit};
use crate::plan::{attempts, plan};
use crate::result::{TaskResult, WrittenFile};
use crate::task::Task;

pub use abort::AbortReport;
pub(crate) use abort::abort;
use abort::remove_spent;
use files::check_files;
pub(crate) use guard::Concurrency;
use guard::{Capture, ExactlyOnce, Guard};
use history::{History, TaskSet};
use outcome::{nothing, outcome, summary};
pub(crate) use owned::beside;

/// How often a commit is tried against others that come in between.
const TRIES: u32 = 3;

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Outcome {
    #[schemars(with = "String")]
    pub job_id: Uuid,
    pub operation: String,
    pub uri: String,
    /// The version that the commit made; where it was made earlier, that one.
    pub version: u64,
    /// Whether this call found the job committed and changed nothing.
    pub already_committed: bool,
    /// Whether all of the job's tasks are committed now.
    pub complete: bool,
    /// Rows of the dataset at `version`.
    pub rows: u64,
    /// The operation's counts; empty where the commit was made earlier.
    pub metrics: Metrics,
    /// Uuid of the Lance transaction.
    pub transaction_id: String,
}

/// What an operation's commit made of the winners.
pub(crate) struct Applied {
    pub metrics: Metrics,
    /// There was nothing to commit, and no version was made.
    pub nothing: bool,
}

/// What an operation's commit works with: every manifest write goes through the guard.
pub(crate) struct Committing<'a> {
    pub running: &'a Running,
    job: &'a Job,
    guard: Arc<Guard>,
    marks: Arc<Marks>,
    /// Names this call's try. Not derived from the job: Lance names its transaction file by it, and the
    /// loser of two committers of one job removes its own file.
    commit_id: Uuid,
    tasks: TaskSet,
    history: &'a History,
}

impl Committing<'_> {
    /// Index segments that earlier, partial commits of the job have added.
    pub fn own_segments(&self) -> impl Iterator<Item = Uuid> + '_ {
        self.history.segments()
    }

    /// A segment whose folder keeps its name, though Lance may finish it within the commit.
    pub fn keep(&self, segment: Uuid) {
        self.marks.keep(segment);
    }

    /// The newest version, committing through the guard.
    pub async fn dataset(&self) -> Result<Dataset> {
        let options = &self.running.call.storage_options;
        self.running
            .datasets()
            .open_guarded(&self.job.uri, options, self.guard.clone(), &self.marks)
            .await?
            .ok_or_else(|| not_found(&self.job.uri))
    }

    /// What Lance would commit, without committing it: for those of its functions that take no
    /// transaction properties. `f` is handed the newest version.
    pub async fn capture<F>(&self, f: impl FnOnce(Dataset) -> F) -> Result<Transaction>
    where
        F: Future<Output = lance::Result<()>>,
    {
        let hook = Arc::new(Capture::default());
        let marks = &self.marks;
        let guard = Guard::new(self.running, &self.job.uri, hook.clone(), marks).await?;
        let options = &self.running.call.storage_options;
        let dataset = self
            .running
            .datasets()
            .open_guarded(&self.job.uri, options, guard, marks)
            .await?
            .ok_or_else(|| not_found(&self.job.uri))?;
        let outcome = f(dataset).await;
        match (hook.take(), outcome) {
            (Some(transaction), _) => Ok(Transaction::try_from(transaction)?),
            (None, Err(error)) => Err(error.into()),
            (None, Ok(())) => Err(Error::internal("Lance committed nothing")),
        }
    }

    /// The properties that mark the commit, with the user's.
    pub fn properties(
        &self,
        user: Option<&std::collections::BTreeMap<String, String>>,
    ) -> HashMap<String, String> {
        let mut properties: HashMap<String, String> =
            user.into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        properties.insert(history::JOB.into(), self.job.id.to_string());
        properties.insert(history::TASKS.into(), self.tasks.to_string());
        properties.insert(history::COMMIT.into(), self.commit_id.to_string());
        properties
    }

    /// Commit one Lance operation that was made at `read_version`.
    pub async fn apply(
        &self,
        operation: Operation,
        read_version: u64,
        properties: HashMap<String, String>,
        configure: impl FnOnce(CommitBuilder<'_>) -> CommitBuilder<'_>,
    ) -> Result<()> {
        let transaction = TransactionBuilder::new(read_version, operation)
            .uuid(self.commit_id.to_string())
            .transaction_properties(Some(Arc::new(properties)))
            .build();
        let options = &self.running.call.storage_options;
        let place;
        let builder = match self.job.read_version {
            0 => {
                place = self.running.datasets().place(self.job.id, &self.job.uri, options).await?;
                CommitBuilder::new(place.uri.as_str())
                    .with_store_params(place.params.clone())
                    .with_session(self.running.datasets().session())
                    .with_commit_handler(self.guard.clone())
            }
            _ => CommitBuilder::new(Arc::new(self.dataset().await?)),
        };
        let timeout = self.running.call.deadline.map(|at| {
            at.saturating_duration_since(Instant::now()).max(std::time::Duration::from_millis(1))
        });
        let builder = match timeout {
            Some(timeout) => builder.with_timeout(Some(timeout)),
            None => builder,
        };
        configure(builder).execute(transaction).await?;
        Ok(())
    }
}

/// One result per task, in the order of the tasks; and whether that is all of the job.
struct Winners {
    results: Vec<(u32, TaskResult)>,
    complete: bool,
    /// Files of earlier stages, which nothing needs once the last one is committed.
    spent: Vec<WrittenFile>,
}

pub(crate) async fn commit(
    running: &Running,
    job: &Job,
    results: &[TaskResult],
) -> Result<Outcome> {
    if job.reads() {
        return Err(nothing_to_commit(job));
    }
    let call = &running.call;
    if !job.state.makes_version() {
        return call.limit(summary(running, job, results)).await;
    }
    let (mut history, winners) = match call.limit(ready(running, job, results)).await? {
        Ready::Before(history, complete) => {
            let outcome = outcome(running, job, &history, Default::default(), true, complete);
            return call.limit(outcome).await;
        }
        Ready::Todo(history, winners) => (history, winners),
    };
    let Winners { results: todo, complete, spent } = winners;
    let whole = complete && !history.any();
    let size = job.state.batch_size().unwrap_or(usize::MAX).max(1);
    let batches: Vec<&[(u32, TaskResult)]> =
        if todo.is_empty() { vec![&[]] } else { todo.chunks(size).collect() };
    let mut metrics = Metrics::new();
    let mut already = true;
    for batch in &batches {
        running.call.check()?;
        let tasks = if whole && batches.len() == 1 {
            TaskSet::all()
        } else {
            batch.iter().map(|(index, _)| *index).collect()
        };
        match commit_batch(running, job, &mut history, batch, tasks).await? {
            Some(applied) if applied.nothing => return call.limit(nothing(running, job)).await,
            Some(applied) => {
                already = false;
                for (name, value) in applied.metrics {
                    *metrics.entry(name).or_default() += value;
                }
            }
            // Another process committed the same tasks while this one was about to.
            None => {}
        }
    }
    if complete && !spent.is_empty() {
        remove_spent(running, job, spent).await;
    }
    let outcome = outcome(running, job, &history, metrics, already, complete);
    grace(running, outcome).await.map_err(|e| {
        e.with_code(ErrorCode::CommitUnknown)
            .context("committed, but what came of it could not be read back; commit again")
    })
}

/// What a commit finds before it writes anything.
enum Ready {
    /// The job, or all that its results cover, is committed; and whether that is all of the job.
    Before(History, bool),
    /// Results to be committed, by their places in the plan.
    Todo(History, Winners),
}

async fn ready(running: &Running, job: &Job, results: &[TaskResult]) -> Result<Ready> {
    let mut history = History::read(running, job).await?;
    if history.complete() {
        return Ok(Ready::Before(history, true));
    }
    history.check_pin(running, job).await?;
    let Winners { results, complete, spent } = winners(running, job, results).await?;
    if !complete && !running.call.partial {
        return Err(Error::internal("an incomplete set of results was not refused"));
    }
    let mut todo: Vec<_> =
        results.into_iter().filter(|(index, _)| !history.committed(*index)).collect();
    while let Err(error) = check_files(running, job, &history, &todo).await {
        // Another committer of this job may have been quicker, and the files are the dataset's now.
        let before = todo.len();
        history.refresh(running, job).await?;
        todo.retain(|(index, _)| !history.committed(*index));
        if todo.len() == before {
            return Err(error);
        }
    }
    if todo.is_empty() && history.any() {
        return Ok(Ready::Before(history, complete));
    }
    Ok(Ready::Todo(history, Winners { results: todo, complete, spent }))
}

/// After the manifest may have been written, a deadline does not keep from looking whether it was; a
/// store that stalls does.
async fn grace<T>(running: &Running, future: impl Future<Output = Result<T>>) -> Result<T> {
    const LOOK: Duration = Duration::from_secs(5);
    let limit = match running.call.deadline {
        None if !running.call.cancel.is_cancelled() => return future.await,
        None => LOOK,
        Some(at) => at.saturating_duration_since(Instant::now()).max(LOOK),
    };
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorCode::DeadlineExceeded, "the store did not answer in time"))
    })
}

/// As [`try_batch`], again where another commit came in between: what makes that impossible is found
/// before anything is written.
async fn commit_batch(
    running: &Running,
    job: &Job,
    history: &mut History,
    batch: &[(u32, TaskResult)],
    tasks: TaskSet,
) -> Result<Option<Applied>> {
    let mut tries = 0;
    loop {
        tries += 1;
        match try_batch(running, job, history, batch, tasks.clone()).await {
            Err(error) if error.code() == ErrorCode::RetryableConflict && tries < TRIES => {}
            done => return done,
        }
    }
}

/// Commit some tasks; `None` where they turn out to be committed already.
async fn try_batch(
    running: &Running,
    job: &Job,
    history: &mut History,
    batch: &[(u32, TaskResult)],
    tasks: TaskSet,
) -> Result<Option<Applied>> {
    let marks = Marks::new(job.id, Use::Commit);
    let commit_id = marks.mark().new_uuid();
    let once = ExactlyOnce::new(job, tasks.clone(), history);
    let guard = Guard::new(running, &job.uri, once, &marks).await?;
    let cx = Committing { running, job, guard, marks, commit_id, tasks: tasks.clone(), history };
    let results: Vec<TaskResult> = batch.iter().map(|(_, r)| r.clone()).collect();
    let applied = running.call.limit(job.state.commit(&cx, job, &results)).await;
    // Whatever was answered, what counts is what the history says now.
    let reread = grace(running, history.refresh(running, job)).await;
    match applied {
        // Unless another process was quicker, and left nothing to do.
        Ok(applied) if applied.nothing => {
            Ok(Some(applied).filter(|_| reread.is_err() || !history.contains(&tasks)))
        }
        Ok(applied) => {
            reread?;
            if history.made(&commit_id) {
                return Ok(Some(applied));
            }
            if history.contains(&tasks) {
                return Ok(None);
            }
            Err(Error::internal("the commit succeeded, yet no version of the dataset carries it"))
        }
        Err(error) => {
            // Where history cannot be read either, the first error says more.
            if reread.is_ok() && history.contains(&tasks) {
                return Ok(None);
            }
            let unknown = matches!(
                error.code(),
                ErrorCode::CommitUnknown | ErrorCode::DeadlineExceeded | ErrorCode::Cancelled
            );
            // Two jobs that create the same dataset: to the second, Lance says that it exists.
            let error = match error.code() {
                ErrorCode::AlreadyExists => error.with_code(ErrorCode::Conflict),
                _ => error,
            };
            Err(if unknown || reread.is_err() {
                error.with_code(ErrorCode::CommitUnknown).context(
                    "the commit's outcome is unknown; commit again with the same job and results",
                )
            } else {
                error
            })
        }
    }
}

/// Take one attempt per task and check that together they are the job.
async fn winners(running: &Running, job: &Job, results: &[TaskResult]) -> Result<Winners> {
    if running.call.partial && !job.state.partial() {
        return Err(Error::invalid(format!(
            "{} commits all of its tasks at once; it has no partial commits",
            job.operation()
        )));
    }
    let planned = plan(running, job, results).await?;
    let attempts = attempts(job, results)?;
    if let Some(task) = planned.missing.first()
        && !running.call.partial
    {
        return Err(Error::new(
            ErrorCode::Incomplete,
            format!(
                "{} of {} tasks of stage {} have no result yet, the first is task {}{}",
                planned.missing.len(),
                planned.tasks.len(),
                task.stage,
                task.id,
                task.work.label().map(|label| format!(" ({label})")).unwrap_or_default()
            ),
        )
        .for_task(&task.id.to_string()));
    }
    let mut chosen = Vec::new();
    for task in &planned.tasks {
        if let Some(of_one) = attempts.get(&task.id) {
            chosen.push((task.index, winner(job, Some(task), of_one)?));
        }
    }
    let mut open: Vec<TaskResult> = Vec::new();
    for (task_id, of_one) in &attempts {
        if !planned.known.contains(task_id) {
            open.push(winner(job, None, of_one)?);
        }
    }
    if job.state.check_open(&mut open)? {
        chosen.extend((chosen.len() as u32..).zip(open));
    } else if let Some(stranger) = open.first() {
        return Err(Error::new(
            ErrorCode::Verification,
            format!("the result of task {} is of no task of this job", stranger.task_id),
        )
        .for_task(&stranger.task_id.to_string()));
    }
    let last: HashSet<Uuid> = planned.tasks.iter().map(|task| task.id).collect();
    let spent = results
        .iter()
        .filter(|r| planned.known.contains(&r.task_id) && !last.contains(&r.task_id))
        .flat_map(|r| r.files.iter().cloned())
        .collect();
    Ok(Winners { results: chosen, complete: planned.missing.is_empty(), spent })
}

fn winner(job: &Job, task: Option<&Task>, attempts: &[&TaskResult]) -> Result<TaskResult> {
    let first = attempts.first().ok_or_else(|| Error::internal("a task without attempts"))?;
    job.state
        .verify(task, first)
        .map_err(|e| e.with_code(ErrorCode::Verification).for_task(&first.task_id.to_string()))?;
    Ok((*first).clone())
}
