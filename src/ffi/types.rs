//! Plain structs and constants of the header.

use std::ffi::{c_char, c_void};

use super::LanceTasksCancelToken;

/// Changes when a function or struct of this header changes incompatibly. See
/// `lance_tasks_abi_version`.
pub const LANCE_TASKS_ABI_VERSION: u32 = 1;

/// Answer of every fallible function: `LANCE_TASKS_OK` or one of the error codes.
pub type LanceTasksStatus = i32;

pub const LANCE_TASKS_OK: LanceTasksStatus = 0;
/// An argument, option, column or specification is wrong. Class `invalid`.
pub const LANCE_TASKS_INVALID_ARGUMENT: LanceTasksStatus = 1;
/// The dataset or a file named by the caller does not exist. Class `invalid`.
pub const LANCE_TASKS_NOT_FOUND: LanceTasksStatus = 2;
/// The dataset or index to be created exists. Class `invalid`.
pub const LANCE_TASKS_ALREADY_EXISTS: LanceTasksStatus = 3;
/// Data does not fit the schema. Class `invalid`.
pub const LANCE_TASKS_SCHEMA_MISMATCH: LanceTasksStatus = 4;
/// A source file cannot be read or decoded. Class `invalid`.
pub const LANCE_TASKS_SOURCE: LanceTasksStatus = 5;
/// Bytes that are not a descriptor, are cut short or damaged. Class `invalid`.
pub const LANCE_TASKS_DECODE: LanceTasksStatus = 6;
/// A descriptor of an unknown format version, kind or operation. Class `invalid`.
pub const LANCE_TASKS_VERSION_MISMATCH: LanceTasksStatus = 7;
/// The results do not cover the job. Class `replan`.
pub const LANCE_TASKS_INCOMPLETE: LanceTasksStatus = 8;
/// A result contradicts its task. Class `fatal`.
pub const LANCE_TASKS_VERIFICATION: LanceTasksStatus = 9;
/// Another commit made this one impossible. Class `conflict`.
pub const LANCE_TASKS_CONFLICT: LanceTasksStatus = 10;
/// Another commit touched the same fragments; the work must be redone. Class `replan`.
pub const LANCE_TASKS_RETRYABLE_CONFLICT: LanceTasksStatus = 11;
/// The pinned version of the dataset has been cleaned away. Class `replan`.
pub const LANCE_TASKS_VERSION_GONE: LanceTasksStatus = 12;
/// Versions since the job's own are gone, so an earlier commit cannot be ruled out. Class `fatal`.
pub const LANCE_TASKS_HISTORY_GONE: LanceTasksStatus = 13;
/// Storage failed. Class `retry_task`.
pub const LANCE_TASKS_IO: LanceTasksStatus = 14;
/// Storage refused the credentials. Class `credentials`.
pub const LANCE_TASKS_CREDENTIALS: LanceTasksStatus = 15;
/// The caller cancelled. Class `fatal`.
pub const LANCE_TASKS_CANCELLED: LanceTasksStatus = 16;
/// The call's deadline passed. Class `retry_task`.
pub const LANCE_TASKS_DEADLINE_EXCEEDED: LanceTasksStatus = 17;
/// The task does not fit the executor's memory budget. Class `invalid`.
pub const LANCE_TASKS_BUDGET_EXCEEDED: LanceTasksStatus = 18;
/// A handle was used after its end, from a callback, or after a fork. Class `invalid`.
pub const LANCE_TASKS_INVALID_STATE: LanceTasksStatus = 19;
/// Not supported by this library or by Lance for this dataset. Class `invalid`.
pub const LANCE_TASKS_NOT_SUPPORTED: LanceTasksStatus = 20;
/// The commit's answer was lost and could not be read back; commit again. Class `retry_task`.
pub const LANCE_TASKS_COMMIT_UNKNOWN: LanceTasksStatus = 21;
/// A panic was caught at the boundary; the executor handle is poisoned. Class `fatal`.
pub const LANCE_TASKS_PANIC: LanceTasksStatus = 22;
/// Anything else. Class `fatal`.
pub const LANCE_TASKS_INTERNAL: LanceTasksStatus = 23;

/// Encodings for `lance_tasks_convert`.
pub const LANCE_TASKS_ENCODING_JSON: i32 = 1;
pub const LANCE_TASKS_ENCODING_BINARY: i32 = 2;

/// Flag of `LanceTasksCallOptions`: `lance_tasks_commit` may commit a part of the job's tasks, where
/// the operation allows it (`compact`, `create_index`).
pub const LANCE_TASKS_FLAG_PARTIAL: u32 = 1;

/// Kinds of `LanceTasksProgress`.
pub const LANCE_TASKS_PROGRESS_STARTED: u32 = 1;
pub const LANCE_TASKS_PROGRESS_ADVANCED: u32 = 2;
pub const LANCE_TASKS_PROGRESS_FINISHED: u32 = 3;
pub const LANCE_TASKS_PROGRESS_FAILED: u32 = 4;
pub const LANCE_TASKS_PROGRESS_STAGE: u32 = 5;

/// Bytes owned by the library until `lance_tasks_bytes_free`. Not NUL-terminated.
#[repr(C)]
#[derive(Debug)]
pub struct LanceTasksBytes {
    pub data: *const u8,
    pub len: usize,
}

/// How an executor is made. Zero means default. Begin with `struct_size = sizeof(...)`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct LanceTasksExecutorOptions {
    pub struct_size: u32,
    /// Threads that run tasks; default: the CPUs this process may use.
    pub num_threads: u32,
    /// Bytes that the tasks running at one time may hold; default: half of the machine's memory.
    pub memory_budget: u64,
}

/// One event of a task. `task_id` and `message` are valid during the callback only; `message` is the
/// stage or the error, empty else.
#[repr(C)]
#[derive(Debug)]
pub struct LanceTasksProgress {
    pub struct_size: u32,
    /// One of the `LANCE_TASKS_PROGRESS_*` kinds.
    pub kind: u32,
    /// UTF-8 with a terminating NUL.
    pub task_id: *const c_char,
    /// Rows done so far by this task; of a stage, what Lance counts in it, from 0 in each.
    pub rows: u64,
    /// Bytes done so far by this task.
    pub bytes: u64,
    /// UTF-8 with a terminating NUL.
    pub message: *const c_char,
}

/// Called on any thread, several at once; must not call back into the library, and must not block.
pub type LanceTasksProgressCallback =
    Option<unsafe extern "C" fn(context: *mut c_void, event: *const LanceTasksProgress)>;

/// Called once when the library needs a callback's context no more.
pub type LanceTasksFinalizer = Option<unsafe extern "C" fn(context: *mut c_void)>;

/// What holds for one call. Zero means default; NULL in place of the struct means all defaults.
/// Begin with `struct_size = sizeof(...)`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct LanceTasksCallOptions {
    pub struct_size: u32,
    /// `LANCE_TASKS_FLAG_*`, or-ed.
    pub flags: u32,
    /// A JSON object of strings, Lance's storage options (credentials, endpoint, region). Kept for the
    /// call only; never stored in a descriptor or result, never logged. A name of the form
    /// `base:<path>:<option>` is an option of the one base that is registered under this path (which
    /// may have colons itself); a base with options of its own has these and no others, the rest have
    /// those without a prefix. A path that is no registered base is `LANCE_TASKS_INVALID_ARGUMENT`.
    pub storage_options: *const u8,
    pub storage_options_len: usize,
    /// Milliseconds until the call fails with `LANCE_TASKS_DEADLINE_EXCEEDED`; 0 = no limit.
    pub timeout_ms: u64,
    /// May be NULL. Must outlive the call (and the stream of `lance_tasks_execute_all`) only as far as
    /// the caller wants to cancel: the library keeps a reference of its own.
    pub cancel: *const LanceTasksCancelToken,
    /// May be NULL. No call comes after the function (or the stream it made) is done.
    pub progress: LanceTasksProgressCallback,
    pub progress_context: *mut c_void,
    /// May be NULL. Called exactly once, also where the call fails.
    pub progress_finalizer: LanceTasksFinalizer,
}
