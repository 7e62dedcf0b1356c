//! The executor: threads, I/O runtime, Lance session, dataset cache, memory budget, cancellation.
//!
//! One per process, shared by threads. Tasks run on a Rayon pool, one per worker; each worker drives
//! Lance's I/O on one tokio runtime. There is no other global state.

mod gather;
mod handover;
mod read;
mod running;
/// What [`gather`] and [`handover`] are built of; loom has its own for the tests.
mod sync {
    pub use std::sync::{Arc, Condvar, Mutex, MutexGuard};
}

use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arrow_array::{RecordBatch, RecordBatchReader};
use arrow_schema::{ArrowError, SchemaRef};
use lance::session::Session;
use tokio::sync::Semaphore;
use uuid::Uuid;

pub use read::DataStream;
pub(crate) use running::Running;
pub use tokio_util::sync::CancellationToken as CancelToken;

use crate::commit::{AbortReport, Outcome};
use crate::dataset::{Datasets, StorageOptions, check_options};
use crate::error::{Error, ErrorCode, Result};
use crate::job::Job;
use crate::operations::{Preparing, Produced, Spec};
use crate::result::{TaskResult, Versions, table_schema};
use crate::task::Task;
use gather::{Gather, gather};
use handover::{Found, handover};

/// How an executor is made; zero means default.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExecutorOptions {
    /// Threads that run tasks; default: the CPUs this process may use.
    pub num_threads: usize,
    /// Bytes that the tasks running at one time may hold; default: half of the machine's memory.
    pub memory_budget: u64,
}

/// What holds for one call.
#[derive(Clone, Default)]
pub struct Call {
    pub storage_options: StorageOptions,
    pub cancel: CancelToken,
    pub deadline: Option<Instant>,
    pub progress: Option<ProgressFn>,
    /// `commit` may commit a part of the tasks, where the operation allows it.
    pub partial: bool,
}

/// Called on any thread; must not block or call back.
pub type ProgressFn = Arc<dyn Fn(&Event<'_>) + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Started,
    Advanced,
    Finished,
    Failed,
    /// A stage within the task began; `message` names it.
    Stage,
}

/// What happened to a task.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    pub kind: EventKind,
    pub task_id: Uuid,
    /// Done so far by the task.
    pub rows: u64,
    pub bytes: u64,
    /// The stage or the error, empty else.
    pub message: &'a str,
}

/// Rows that the caller hands to a task.
pub type Input = Box<dyn RecordBatchReader + Send>;

/// See the module.
#[derive(Clone)]
pub struct Executor(Arc<Inner>);

struct Inner {
    pool: rayon::ThreadPool,
    /// Taken when the executor ends: a runtime may not be dropped on one of its own threads.
    runtime: Option<tokio::runtime::Runtime>,
    datasets: Datasets,
    budget: Budget,
    threads: usize,
    /// Tells executors of one process apart, from 1.
    number: u64,
    pid: u32,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Wait, also on a thread of another tokio runtime, which may not block on this one.
pub(crate) fn block_on<T: Send>(
    runtime: &tokio::runtime::Runtime,
    future: impl Future<Output = T> + Send,
) -> T {
    if tokio::runtime::Handle::try_current().is_err() {
        return runtime.block_on(future);
    }
    std::thread::scope(|scope| {
        scope
            .spawn(|| runtime.block_on(future))
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Memory in pages of 64 KiB, handed out in the order of asking.
struct Budget {
    pages: Semaphore,
    total: u64,
}

const PAGE: u64 = 64 << 10;

impl Budget {
    fn new(bytes: u64) -> Self {
        let pages = (bytes / PAGE).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize) as u64);
        Self { pages: Semaphore::new(pages as usize), total: pages * PAGE }
    }

    async fn take(&self, bytes: u64) -> Result<tokio::sync::SemaphorePermit<'_>> {
        if bytes > self.total {
            return Err(Error::new(
                ErrorCode::BudgetExceeded,
                format!(
                    "the task needs {bytes} bytes of memory, the executor's budget is {}; raise \
                     memory_budget or make smaller tasks",
                    self.total
                ),
            ));
        }
        self.pages
            .acquire_many(bytes.div_ceil(PAGE) as u32)
            .await
            .map_err(|_| Error::internal("the memory budget is closed"))
    }
}

thread_local! {
    /// On an executor's own threads its number, else 0: callbacks run there and may not call back.
    static OWN_THREAD: Cell<u64> = const { Cell::new(0) };
}

impl Executor {
    pub fn new(options: ExecutorOptions) -> Result<Self> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if options.num_threads == 0 { cpus } else { options.num_threads };
        if threads > 4096 {
            return Err(Error::invalid(format!("num_threads {threads} is over 4096")));
        }
        crate::ffi::process::size_lance_pool(threads);
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("lance-tasks-{i}"))
            .start_handler(move |_| OWN_THREAD.set(number))
            .build()
            .map_err(|e| Error::new(ErrorCode::Io, format!("thread pool: {e}")))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.max(2))
            .thread_name("lance-tasks-io")
            .on_thread_start(move || OWN_THREAD.set(number))
            .enable_all()
            .build()?;
        let budget = match options.memory_budget {
            0 => crate::process::memory_total().map_or(4 << 30, |total| total / 2),
            bytes => bytes,
        };
        // Lance's defaults (6 GiB of index, 1 GiB of metadata) know nothing of the budget.
        let session = Arc::new(Session::new(
            (budget / 8).min(6 << 30) as usize,
            (budget / 8).clamp(64 << 20, 1 << 30) as usize,
            Default::default(),
        ));
        Ok(Self(Arc::new(Inner {
            pool,
            runtime: Some(runtime),
            datasets: Datasets::new(session),
            budget: Budget::new(budget),
            threads,
            number,
            pid: std::process::id(),
        })))
    }

    /// Validate a spec, pin the version, resolve every default. `input` is the schema of the streams
    /// that will be handed to the tasks of an open job.
    pub fn prepare(&self, spec: Spec, input: Option<SchemaRef>, call: &Call) -> Result<Job> {
        self.wait(call, |running| async move {
            let prepared = spec.prepare(&Preparing { running: &running }, input).await?;
            running.check_bases(&prepared.uri, prepared.pin, prepared.state.elsewhere()).await?;
            Ok(Job {
                id: Uuid::new_v4(),
                uri: prepared.uri,
                read_version: prepared.pin.version,
                read_timestamp: prepared.pin.timestamp,
                state: prepared.state,
            })
        })
    }

    /// What is still to do, given the results so far; empty = ready to commit.
    pub fn plan(&self, job: &Job, results: &[TaskResult], call: &Call) -> Result<Vec<Task>> {
        self.wait(call, |running| async move {
            running.check_bases(&job.uri, job.pin(), job.state.elsewhere()).await?;
            Ok(crate::plan::plan(&running, job, results).await?.missing)
        })
    }

    /// Execute one task on the pool; the calling thread waits.
    pub fn execute(&self, task: &Task, input: Option<Input>, call: &Call) -> Result<TaskResult> {
        self.enter()?;
        let (owner, worker) = handover((task.clone(), input, call.clone()));
        let executor = self.clone();
        self.0.pool.spawn_fifo(move || {
            worker.run(|(task, input, call)| {
                let result = executor.attempt(&task, input, &call);
                // The caller's progress ends before its call returns.
                drop((call, executor));
                result
            });
        });
        loop {
            match owner.wait(std::time::Duration::from_millis(20)) {
                Found::Done(TaskResult { error: Some(error), .. }) => return Err(error),
                Found::Done(result) => return Ok(result),
                Found::Lost => return Err(Error::internal("the attempt ended without a result")),
                // Still behind other tasks: give up without waiting for them. An attempt that has
                // begun looks at the token itself.
                Found::NotYet => {
                    if let Err(error) = call.check()
                        && owner.give_up().is_some()
                    {
                        return Err(error.for_task(&task.id.to_string()));
                    }
                }
            }
        }
    }

    /// Execute tasks on the pool. Results come in the order of completion; a failed task is a result.
    /// Dropping the iterator cancels what is not done, and waits for it to end.
    pub fn execute_all(&self, tasks: Vec<Task>, call: Call) -> Result<Results> {
        self.enter()?;
        let call = Call { cancel: call.cancel.child_token(), ..call };
        let cancel = call.cancel.clone();
        let (results, pieces) = gather((self.clone(), call), tasks.len());
        for (task, piece) in tasks.into_iter().zip(pieces) {
            self.0.pool.spawn_fifo(move || {
                piece.run(|(executor, call)| executor.attempt(&task, None, call));
            });
        }
        Ok(Results { cancel, results })
    }

    /// The result of a task that another Lance client executed, from that client's own description of
    /// what it made: for a write Lance's fragments (`FragmentMetadata`, one or a list), for a compaction
    /// a `RewriteResult`, for an index the fields of pylance's `Index`. Nothing is written.
    pub fn adopt(&self, job: &Job, task: &Task, made: &str, call: &Call) -> Result<TaskResult> {
        if task.job_id != job.id {
            return Err(Error::invalid(format!(
                "task {} is of job {}, not of job {}",
                task.id, task.job_id, job.id
            )));
        }
        let made = serde_json::from_str(made)
            .map_err(|e| Error::invalid(format!("what another client made is no JSON: {e}")))?;
        let (started, started_at) = (Instant::now(), now());
        self.wait(call, |running| async move {
            running.check_bases(&task.uri, task.pin(), task.work.elsewhere()).await?;
            let produced = task.work.adopt(&running, task, made).await?;
            let result = result(task, produced, None, started_at, started);
            job.state.verify(Some(task), &result)?;
            Ok(result)
        })
        .map_err(|e| e.for_task(&task.id.to_string()))
    }

    /// Commit: verified, exactly once, safe to repeat.
    pub fn commit(&self, job: &Job, results: &[TaskResult], call: &Call) -> Result<Outcome> {
        self.enter()?;
        check_options(&call.storage_options)?;
        let running = Running::new(self, call, None);
        self.block_on(async {
            let bases = running.check_bases(&job.uri, job.pin(), job.state.elsewhere());
            call.limit(bases).await?;
            crate::commit::commit(&running, job, results).await
        })
    }

    /// Delete what attempts that were not committed have written.
    pub fn abort(&self, job: &Job, results: &[TaskResult], call: &Call) -> Result<AbortReport> {
        self.wait(call, |running| async move {
            running.check_bases(&job.uri, job.pin(), job.state.elsewhere()).await?;
            crate::commit::abort(&running, job, results).await
        })
    }

    /// Refuse calls that would deadlock or find no threads.
    fn enter(&self) -> Result<()> {
        self.check_process()?;
        if OWN_THREAD.get() != 0 {
            return Err(Error::new(
                ErrorCode::InvalidState,
                "called from one of an executor's own threads (a callback or an input stream)",
            ));
        }
        Ok(())
    }

    fn check_process(&self) -> Result<()> {
        if std::process::id() != self.0.pid {
            return Err(Error::new(
                ErrorCode::InvalidState,
                "the executor belongs to the process before the fork; its threads are not here. Make \
                 one after forking, or start workers by spawn instead of fork",
            ));
        }
        Ok(())
    }

    fn threads(&self) -> usize {
        self.0.threads
    }

    fn runtime(&self) -> Result<&tokio::runtime::Runtime> {
        self.0.runtime.as_ref().ok_or_else(|| Error::internal("the executor has ended"))
    }

    fn block_on<T: Send>(&self, future: impl Future<Output = Result<T>> + Send) -> Result<T> {
        block_on(self.runtime()?, future)
    }

    /// Run on the calling thread, under the call's cancel token and deadline.
    fn wait<T, F>(&self, call: &Call, f: impl FnOnce(Running) -> F) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
    {
        self.enter()?;
        check_options(&call.storage_options)?;
        let future = f(Running::new(self, call, None));
        self.block_on(call.limit(future))
    }

    /// One attempt, on a worker of the pool. Whatever happens becomes a result.
    fn attempt(&self, task: &Task, input: Option<Input>, call: &Call) -> TaskResult {
        let (started, started_at) = (Instant::now(), now());
        let running = Running::new(self, call, Some(task));
        running.event(EventKind::Started, 0, 0, "");
        let run = std::panic::AssertUnwindSafe(|| {
            self.runtime()?.block_on(async {
                let outcome = call.limit(self.budgeted(&running, task, input)).await;
                running.end().await;
                if outcome.is_err() {
                    running.remove_written(&task.uri).await;
                }
                outcome
            })
        });
        // A panic in Lance costs this attempt, not the worker.
        let outcome = std::panic::catch_unwind(run).unwrap_or_else(|panic| {
            let clean = std::panic::AssertUnwindSafe(|| {
                self.runtime().map(|runtime| {
                    runtime.block_on(async {
                        running.end().await;
                        running.remove_written(&task.uri).await;
                    });
                })
            });
            let _ = std::panic::catch_unwind(clean);
            Err(panicked(panic.as_ref()))
        });
        let (produced, error) = match outcome {
            Ok(produced) => {
                running.event(EventKind::Finished, produced.rows_out, produced.bytes_written, "");
                (produced, None)
            }
            Err(error) => {
                running.event(EventKind::Failed, 0, 0, error.message());
                let files = running.written();
                (
                    Produced { files, ..Default::default() },
                    Some(error.for_task(&task.id.to_string())),
                )
            }
        };
        result(task, produced, error, started_at, started)
    }

    async fn budgeted(
        &self,
        running: &Running,
        task: &Task,
        input: Option<Input>,
    ) -> Result<Produced> {
        check_options(&running.call.storage_options)?;
        let _memory = self.0.budget.take(task.work.memory(running, task)).await?;
        running.check_bases(&task.uri, task.pin(), task.work.elsewhere()).await?;
        task.work.execute(running, task, input).await
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    let text = text.unwrap_or_else(|| "no message".into());
    Error::new(ErrorCode::Panic, format!("the task panicked: {text}"))
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64)
}

fn result(
    task: &Task,
    produced: Produced,
    error: Option<Error>,
    started_at: i64,
    started: Instant,
) -> TaskResult {
    TaskResult {
        job_id: task.job_id,
        task_id: task.id,
        attempt_id: Uuid::new_v4(),
        operation: task.operation().to_owned(),
        error,
        dataset_uri: task.uri.clone(),
        read_version: task.read_version,
        payload: produced.payload.to_string(),
        fragments: produced.fragments,
        index_segments: produced.index_segments,
        files: produced.files,
        rows_in: produced.rows_in,
        rows_out: produced.rows_out,
        bytes_read: produced.bytes_read,
        bytes_written: produced.bytes_written,
        started_at,
        elapsed: started.elapsed().as_micros() as i64,
        peak_memory: crate::process::peak_memory(),
        host: crate::process::host(),
        pid: std::process::id(),
        versions: Versions::current(),
    }
}

impl Call {
    pub(crate) async fn limit<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        let deadline = async {
            match self.deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Error::new(ErrorCode::Cancelled, "cancelled")),
            () = deadline => Err(Error::new(ErrorCode::DeadlineExceeded, "the deadline passed")),
            outcome = future => outcome,
        }
    }

    /// Whether the caller has cancelled or the deadline has passed.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::new(ErrorCode::Cancelled, "cancelled"));
        }
        if self.deadline.is_some_and(|at| Instant::now() >= at) {
            return Err(Error::new(ErrorCode::DeadlineExceeded, "the deadline passed"));
        }
        Ok(())
    }
}

/// The results of [`Executor::execute_all`], in the order of completion. Dropped, it cancels what runs
/// and waits for its end; what has not begun never does.
pub struct Results {
    cancel: CancelToken,
    results: Gather<(Executor, Call), TaskResult>,
}

impl Iterator for Results {
    type Item = TaskResult;

    fn next(&mut self) -> Option<TaskResult> {
        self.results.next()
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// [`Results`] as an Arrow stream of one-row batches.
pub struct ResultReader(Results);

impl ResultReader {
    pub fn new(results: Results) -> Self {
        Self(results)
    }
}

impl Iterator for ResultReader {
    type Item = std::result::Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let result = self.0.next()?;
        Some(TaskResult::to_table(&[result]).map_err(Into::into))
    }
}

impl RecordBatchReader for ResultReader {
    fn schema(&self) -> SchemaRef {
        table_schema()
    }
}
