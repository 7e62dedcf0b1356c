//! The five verbs, and reading.

use super::error::LanceTasksError;
use super::executor::{LanceTasksExecutor, call};
use super::guard::{bytes, guard, guard_executor, out, text};
use super::stream::{
    FFI_ArrowArrayStream, FFI_ArrowSchema, Input, export, export_batch, import_schema, take_schema,
};
use super::tables::{read_results, read_tasks};
use super::types::*;
use crate::codec::Descriptor;
use crate::error::Error;
use crate::executor::ResultReader;
use crate::job::Job;
use crate::operations::Spec;
use crate::result::TaskResult;
use crate::task::Task;

/// Validate a spec, pin the dataset's version and resolve every default.
///
/// # Parameters
/// `spec`: a spec in either encoding. `schema`: for a `write` fed by streams, the schema of the input
/// as it will come, else NULL; taken over. `options`: NULL for defaults. `out_job`: receives the job,
/// in binary.
/// # Returns
/// `LANCE_TASKS_OK`, or what is wrong with the spec. Nothing is written to the dataset in any case.
/// # Memory and lifetimes
/// Free `out_job` with `lance_tasks_bytes_free`. Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_prepare(
    executor: *const LanceTasksExecutor,
    spec: *const u8,
    spec_len: usize,
    schema: *mut FFI_ArrowSchema,
    options: *const LanceTasksCallOptions,
    out_job: *mut LanceTasksBytes,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    // SAFETY: by the header's contract, here and below.
    let (schema, call) = unsafe { (take_schema(schema), call(options)) };
    guard_executor("lance_tasks_prepare", executor, out_error, |executor| {
        let place = unsafe { out("out_job", out_job) }?;
        let spec = Spec::decode(unsafe { bytes("spec", spec, spec_len) }?)?;
        let schema = schema
            .map(|s| import_schema(&s).map(Into::into))
            .transpose()
            .map_err(|e| Error::invalid(format!("schema: {e}")))?;
        let job = executor.executor.prepare(spec, schema, &call?)?;
        place.write(LanceTasksBytes::new(job.to_bytes()?));
        Ok(())
    })
}

/// The task of one partition of an open job (a `write` fed by streams). Needs no executor.
///
/// # Parameters
/// `job`: a job in either encoding. `partition`: the caller's name of the partition, not empty.
/// `out_task`: receives the task, in binary.
/// # Returns
/// `LANCE_TASKS_OK`, or `LANCE_TASKS_INVALID_ARGUMENT` where the job is not open or names its
/// partitions and this is none of them.
/// # Memory and lifetimes
/// Free `out_task` with `lance_tasks_bytes_free`. Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_job_task(
    job: *const u8,
    job_len: usize,
    partition: *const u8,
    partition_len: usize,
    out_task: *mut LanceTasksBytes,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    guard("lance_tasks_job_task", out_error, || {
        // SAFETY: by the header's contract.
        let place = unsafe { out("out_task", out_task) }?;
        let job = Job::decode(unsafe { bytes("job", job, job_len) }?)?;
        let task = job.task(unsafe { text("partition", partition, partition_len) }?)?;
        place.write(LanceTasksBytes::new(task.to_bytes()?));
        Ok(())
    })
}

/// What is still to do, given the results so far. An empty table means: ready to commit.
///
/// # Parameters
/// `job`: a job in either encoding. `results`: a stream of result rows in any order, any number per
/// task, or NULL for none; taken over. `out_tasks`: a place for a stream; receives a table of tasks.
/// # Returns
/// `LANCE_TASKS_OK`, or for example `LANCE_TASKS_VERSION_GONE`.
/// # Memory and lifetimes
/// The caller releases `out_tasks` by its own `release`. Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_plan(
    executor: *const LanceTasksExecutor,
    job: *const u8,
    job_len: usize,
    results: *mut FFI_ArrowArrayStream,
    options: *const LanceTasksCallOptions,
    out_tasks: *mut FFI_ArrowArrayStream,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    // SAFETY: by the header's contract, here and below.
    let (results, call) = unsafe { (Input::take(results), call(options)) };
    guard_executor("lance_tasks_plan", executor, out_error, |executor| {
        let place = unsafe { out("out_tasks", out_tasks) }?;
        let job = Job::decode(unsafe { bytes("job", job, job_len) }?)?;
        let tasks = executor.executor.plan(&job, &read_results(results)?, &call?)?;
        place.write(export_batch(Task::to_table(&tasks)?));
        Ok(())
    })
}

/// Execute one task: writes files, never the manifest. Safe to repeat, safe to lose. Runs on the
/// executor's threads; the calling thread waits.
///
/// # Parameters
/// `task`: a task in either encoding. `input`: the partition's data for the task of an open job, else
/// NULL; taken over, read to its end or released early. `out_result`: a place for a stream; receives
/// one result row.
/// # Returns
/// `LANCE_TASKS_OK`, or why the attempt failed; a failed attempt removes what it wrote.
/// # Memory and lifetimes
/// The caller releases `out_result` by its own `release`. Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_execute(
    executor: *const LanceTasksExecutor,
    task: *const u8,
    task_len: usize,
    input: *mut FFI_ArrowArrayStream,
    options: *const LanceTasksCallOptions,
    out_result: *mut FFI_ArrowArrayStream,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    // SAFETY: by the header's contract, here and below.
    let (input, call) = unsafe { (Input::take(input), call(options)) };
    guard_executor("lance_tasks_execute", executor, out_error, |executor| {
        let place = unsafe { out("out_result", out_result) }?;
        let task = Task::decode(unsafe { bytes("task", task, task_len) }?)?;
        let result = executor.executor.execute(&task, input.optional("input")?, &call?)?;
        place.write(export_batch(TaskResult::to_table(&[result])?));
        Ok(())
    })
}

/// Execute a table of tasks on the executor's threads. Returns at once; the stream yields one result
/// row per task, in the order of completion. A failed task is a row with `status` "failed", not the
/// end of the others. Releasing the stream early cancels what is not done.
///
/// # Parameters
/// `tasks`: a stream of task rows as `lance_tasks_plan` makes them; taken over. `out_results`: a place
/// for a stream.
/// # Returns
/// `LANCE_TASKS_OK`, or `LANCE_TASKS_DECODE` for rows that are no tasks.
/// # Memory and lifetimes
/// The caller releases `out_results` by its own `release`, before or after the executor is freed.
/// Thread-safe; the stream itself is read by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_execute_all(
    executor: *const LanceTasksExecutor,
    tasks: *mut FFI_ArrowArrayStream,
    options: *const LanceTasksCallOptions,
    out_results: *mut FFI_ArrowArrayStream,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    // SAFETY: by the header's contract, here and below.
    let (tasks, call) = unsafe { (Input::take(tasks), call(options)) };
    guard_executor("lance_tasks_execute_all", executor, out_error, |executor| {
        let place = unsafe { out("out_results", out_results) }?;
        let tasks = read_tasks(tasks)?;
        let results = executor.executor.execute_all(tasks, call?)?;
        place.write(export(ResultReader::new(results)));
        Ok(())
    })
}

/// Read one task of an operation that reads (`take_blobs`): its data as a stream of batches. What is
/// wrong with the task is said here; the payload is read as the stream is pulled, on the executor's
/// threads, one batch ahead.
///
/// # Parameters
/// `task`: a task in either encoding. `options`: NULL for defaults; the time limit, the cancel token and
/// the progress callback hold until the stream ends or is released. `out_data`: a place for a stream.
/// # Returns
/// `LANCE_TASKS_OK`; `LANCE_TASKS_INVALID_ARGUMENT` for a task that makes a result, and where the task
/// asks for what is not there; `LANCE_TASKS_BUDGET_EXCEEDED`. What fails later is an error of the
/// stream, whose text names the code and the task; the stream is at its end then.
/// # Memory and lifetimes
/// The caller releases `out_data` by its own `release`, before or after the executor is freed; that
/// cancels what is not done, and waits for it. From the first pull to its end the stream holds its part
/// of the memory budget; one that finds too little waits for another to end. Thread-safe; the stream
/// itself is read by one thread at a time, which may be none of the executor's own: it cannot be the
/// input of a task of the same executor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_read(
    executor: *const LanceTasksExecutor,
    task: *const u8,
    task_len: usize,
    options: *const LanceTasksCallOptions,
    out_data: *mut FFI_ArrowArrayStream,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    // SAFETY: by the header's contract, here and below.
    let call = unsafe { call(options) };
    guard_executor("lance_tasks_read", executor, out_error, |executor| {
        let place = unsafe { out("out_data", out_data) }?;
        let task = Task::decode(unsafe { bytes("task", task, task_len) }?)?;
        place.write(export(executor.executor.read(&task, &call?)?));
        Ok(())
    })
}

/// Read a table of tasks: the data of one after the other in their order, some of them read ahead. All
/// must yield the same columns.
///
/// # Parameters
/// `tasks`: a stream of task rows as `lance_tasks_plan` makes them, at least one; taken over. `options`,
/// `out_data`: as for `lance_tasks_read`.
/// # Returns
/// As `lance_tasks_read`, of the first task; `LANCE_TASKS_DECODE` for rows that are no tasks. What is
/// wrong with a later task is an error of the stream when its turn comes.
/// # Memory and lifetimes
/// As for `lance_tasks_read`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_read_all(
    executor: *const LanceTasksExecutor,
    tasks: *mut FFI_ArrowArrayStream,
    options: *const LanceTasksCallOptions,
    out_data: *mut FFI_ArrowArrayStream,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    // SAFETY: by the header's contract, here and below.
    let (tasks, call) = unsafe { (Input::take(tasks), call(options)) };
    guard_executor("lance_tasks_read_all", executor, out_error, |executor| {
        let place = unsafe { out("out_data", out_data) }?;
        let tasks = read_tasks(tasks)?;
        place.write(export(executor.executor.read_all(tasks, call?)?));
        Ok(())
    })
}

/// The result of a task that another Lance client executed: what it made goes into the job's commit
/// like the result of an attempt. Nothing is written.
///
/// # Parameters
/// `job`, `task`: in either encoding. `made`: JSON, that client's own description of what it made: for a
/// write Lance's fragments (pylance's `FragmentMetadata.to_json`, one or an array), for a compaction a
/// `RewriteResult`, for an index the fields of pylance's `Index` (`index_details` as an array of its
/// type and its bytes in Base64). `out_result`: a place for a stream; receives one result row.
/// # Returns
/// `LANCE_TASKS_OK`; `LANCE_TASKS_INVALID_ARGUMENT` for what is no such description;
/// `LANCE_TASKS_VERIFICATION` where it is not what the task asks for.
/// # Memory and lifetimes
/// The caller releases `out_result` by its own `release`. Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_adopt(
    executor: *const LanceTasksExecutor,
    job: *const u8,
    job_len: usize,
    task: *const u8,
    task_len: usize,
    made: *const u8,
    made_len: usize,
    options: *const LanceTasksCallOptions,
    out_result: *mut FFI_ArrowArrayStream,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    // SAFETY: by the header's contract, here and below.
    let call = unsafe { call(options) };
    guard_executor("lance_tasks_adopt", executor, out_error, |executor| {
        let place = unsafe { out("out_result", out_result) }?;
        let job = Job::decode(unsafe { bytes("job", job, job_len) }?)?;
        let task = Task::decode(unsafe { bytes("task", task, task_len) }?)?;
        let made = unsafe { text("made", made, made_len) }?;
        let result = executor.executor.adopt(&job, &task, made, &call?)?;
        place.write(export_batch(TaskResult::to_table(&[result])?));
        Ok(())
    })
}

/// Commit the job: verified, exactly once, safe to repeat.
///
/// # Parameters
/// `job`: a job in either encoding. `results`: a stream of result rows in any order, any number per
/// task; taken over. `out_outcome`: receives the outcome, a JSON object with `version`, `rows`,
/// `already_committed`, `metrics`.
/// # Returns
/// `LANCE_TASKS_OK`; `LANCE_TASKS_INCOMPLETE` where tasks have no result; `LANCE_TASKS_CONFLICT`,
/// `LANCE_TASKS_RETRYABLE_CONFLICT`, `LANCE_TASKS_HISTORY_GONE`, `LANCE_TASKS_COMMIT_UNKNOWN` as they
/// say. On any error the dataset is as it was, or the commit has happened whole; calling again tells.
/// # Memory and lifetimes
/// Free `out_outcome` with `lance_tasks_bytes_free`. Thread-safe, also among processes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_commit(
    executor: *const LanceTasksExecutor,
    job: *const u8,
    job_len: usize,
    results: *mut FFI_ArrowArrayStream,
    options: *const LanceTasksCallOptions,
    out_outcome: *mut LanceTasksBytes,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    // SAFETY: by the header's contract, here and below.
    let (results, call) = unsafe { (Input::take(results), call(options)) };
    guard_executor("lance_tasks_commit", executor, out_error, |executor| {
        let place = unsafe { out("out_outcome", out_outcome) }?;
        let job = Job::decode(unsafe { bytes("job", job, job_len) }?)?;
        let outcome = executor.executor.commit(&job, &read_results(results)?, &call?)?;
        place.write(LanceTasksBytes::new(serde_json::to_vec(&outcome)?));
        Ok(())
    })
}

/// Delete what attempts that were not committed have written. Never deletes what a commit of the job
/// refers to. Not to be called while another process executes or commits the same job.
///
/// # Parameters
/// `job`: a job in either encoding. `results`: a stream of result rows; taken over. `out_report`:
/// receives a JSON object with `files_removed`, `bytes_removed`, `kept`.
/// # Returns
/// `LANCE_TASKS_OK`, or `LANCE_TASKS_HISTORY_GONE` where an earlier commit cannot be ruled out (nothing
/// is deleted then).
/// # Memory and lifetimes
/// Free `out_report` with `lance_tasks_bytes_free`. Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_abort(
    executor: *const LanceTasksExecutor,
    job: *const u8,
    job_len: usize,
    results: *mut FFI_ArrowArrayStream,
    options: *const LanceTasksCallOptions,
    out_report: *mut LanceTasksBytes,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    // SAFETY: by the header's contract, here and below.
    let (results, call) = unsafe { (Input::take(results), call(options)) };
    guard_executor("lance_tasks_abort", executor, out_error, |executor| {
        let place = unsafe { out("out_report", out_report) }?;
        let job = Job::decode(unsafe { bytes("job", job, job_len) }?)?;
        let report = executor.executor.abort(&job, &read_results(results)?, &call?)?;
        place.write(LanceTasksBytes::new(serde_json::to_vec(&report)?));
        Ok(())
    })
}
