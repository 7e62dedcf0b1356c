//! Executor and cancel token.

use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::error::LanceTasksError;
use super::guard::{guard, out, sized, text};
use super::types::*;
use crate::error::{Error, ErrorCode, Result};
use crate::executor::{Call, CancelToken, Event, EventKind, Executor, ExecutorOptions};
use crate::storage::StorageOptions;

/// Runs the verbs: a thread pool, an I/O runtime, one Lance session, a cache of opened datasets and a
/// memory budget. Shared: a `const` handle may be used by any number of threads at once. Not usable in
/// a child after a fork.
pub struct LanceTasksExecutor {
    pub(super) executor: Executor,
    poisoned: AtomicBool,
}

impl LanceTasksExecutor {
    pub(super) fn check_poison(&self) -> Result<()> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(Error::new(
                ErrorCode::InvalidState,
                "the executor is poisoned by an earlier panic; free it and make another",
            ));
        }
        Ok(())
    }

    pub(super) fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
    }
}

/// Cancels the calls that were given it. Any thread may cancel at any time, also from a signal thread.
pub struct LanceTasksCancelToken(CancelToken);

/// The version of this ABI; compare it with the header's `LANCE_TASKS_ABI_VERSION` at load.
#[unsafe(no_mangle)]
pub extern "C" fn lance_tasks_abi_version() -> u32 {
    LANCE_TASKS_ABI_VERSION
}

/// The library's version, for example `0.1.0`. UTF-8 with a terminating NUL, static.
#[unsafe(no_mangle)]
pub extern "C" fn lance_tasks_version() -> *const std::ffi::c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The version of Lance inside, for example `14.0.2`. UTF-8 with a terminating NUL, static.
#[unsafe(no_mangle)]
pub extern "C" fn lance_tasks_lance_version() -> *const std::ffi::c_char {
    const TEXT: &std::ffi::CStr = c"14.0.2";
    TEXT.as_ptr()
}

/// The newest wire format of descriptors that this library reads and writes.
#[unsafe(no_mangle)]
pub extern "C" fn lance_tasks_format_version() -> u32 {
    crate::codec::FORMAT_VERSION.into()
}

/// Make an executor. One per process is enough; every call shares its threads, caches and budget.
///
/// # Parameters
/// `options`: NULL for defaults. `out_executor`: receives the handle.
/// # Returns
/// `LANCE_TASKS_OK`, or `LANCE_TASKS_INVALID_ARGUMENT`, `LANCE_TASKS_IO`.
/// # Memory and lifetimes
/// Free the handle with `lance_tasks_executor_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_executor_new(
    options: *const LanceTasksExecutorOptions,
    out_executor: *mut *mut LanceTasksExecutor,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    guard("lance_tasks_executor_new", out_error, || {
        // SAFETY: by the header's contract.
        let (place, options) =
            unsafe { (out("out_executor", out_executor)?, sized("options", options)?) };
        let executor = Executor::new(ExecutorOptions {
            num_threads: options.num_threads as usize,
            memory_budget: options.memory_budget,
        })?;
        place.write(Box::into_raw(Box::new(LanceTasksExecutor {
            executor,
            poisoned: AtomicBool::new(false),
        })));
        Ok(())
    })
}

/// Free an executor. NULL is a no-op. Calls under way on other threads must have returned; streams that
/// it made stay valid and keep what they need alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_executor_free(executor: *mut LanceTasksExecutor) {
    if !executor.is_null() {
        // SAFETY: made by `lance_tasks_executor_new`, freed once, by contract.
        let executor = unsafe { Box::from_raw(executor) };
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || drop(executor)));
    }
}

/// Make a cancel token; free it with `lance_tasks_cancel_token_free`. Never fails.
#[unsafe(no_mangle)]
pub extern "C" fn lance_tasks_cancel_token_new() -> *mut LanceTasksCancelToken {
    Box::into_raw(Box::new(LanceTasksCancelToken(CancelToken::new())))
}

/// Cancel. NULL, or a token already cancelled, is a no-op. Returns at once; the cancelled calls return
/// `LANCE_TASKS_CANCELLED` soon after.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_cancel_token_cancel(token: *const LanceTasksCancelToken) {
    // SAFETY: NULL or a live token, by contract.
    if let Some(token) = unsafe { token.as_ref() } {
        token.0.cancel();
    }
}

/// Free a token. NULL is a no-op. Calls that were given it go on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_cancel_token_free(token: *mut LanceTasksCancelToken) {
    if !token.is_null() {
        // SAFETY: made by `lance_tasks_cancel_token_new`, freed once, by contract.
        drop(unsafe { Box::from_raw(token) });
    }
}

/// The caller's progress context, freed by its finalizer when the last user of it is gone.
struct Context {
    callback: unsafe extern "C" fn(*mut c_void, *const LanceTasksProgress),
    context: *mut c_void,
    finalizer: LanceTasksFinalizer,
}

// SAFETY: the header says that the callback comes on any thread, and the finalizer once.
unsafe impl Send for Context {}
unsafe impl Sync for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        if let Some(finalizer) = self.finalizer {
            // SAFETY: by the header's contract.
            unsafe { finalizer(self.context) };
        }
    }
}

unsafe extern "C" fn ignore(_: *mut c_void, _: *const LanceTasksProgress) {}

impl Context {
    fn report(&self, event: &Event<'_>) {
        let task_id = CString::new(event.task_id.to_string()).unwrap_or_default();
        let message = CString::new(event.message.replace('\0', " ")).unwrap_or_default();
        let kind = match event.kind {
            EventKind::Started => LANCE_TASKS_PROGRESS_STARTED,
            EventKind::Advanced => LANCE_TASKS_PROGRESS_ADVANCED,
            EventKind::Finished => LANCE_TASKS_PROGRESS_FINISHED,
            EventKind::Failed => LANCE_TASKS_PROGRESS_FAILED,
            EventKind::Stage => LANCE_TASKS_PROGRESS_STAGE,
        };
        let event = LanceTasksProgress {
            struct_size: size_of::<LanceTasksProgress>() as u32,
            kind,
            task_id: task_id.as_ptr(),
            rows: event.rows,
            bytes: event.bytes,
            message: message.as_ptr(),
        };
        // SAFETY: by the header's contract.
        unsafe { (self.callback)(self.context, &raw const event) };
    }
}

/// # Safety
/// By the header's contract for `LanceTasksCallOptions`.
pub(super) unsafe fn call(options: *const LanceTasksCallOptions) -> Result<Call> {
    // SAFETY: by contract.
    let options = unsafe { sized("options", options) }?;
    // First of all, so that the finalizer runs on every path.
    let context = (options.progress.is_some() || options.progress_finalizer.is_some()).then(|| {
        Arc::new(Context {
            callback: options.progress.unwrap_or(ignore),
            context: options.progress_context,
            finalizer: options.progress_finalizer,
        })
    });
    if options.flags & !LANCE_TASKS_FLAG_PARTIAL != 0 {
        return Err(Error::invalid(format!(
            "options.flags has unknown bits: {:#x}",
            options.flags
        )));
    }
    // SAFETY: by contract.
    let json = unsafe {
        text("options.storage_options", options.storage_options, options.storage_options_len)
    }?;
    let storage_options = if json.trim().is_empty() {
        Default::default()
    } else {
        // The parser's message could quote a secret.
        StorageOptions::new(serde_json::from_str(json).map_err(|_| {
            Error::invalid("options.storage_options is not a JSON object of strings")
        })?)?
    };
    let deadline = (options.timeout_ms > 0)
        .then(|| Instant::now().checked_add(Duration::from_millis(options.timeout_ms)))
        .flatten();
    Ok(Call {
        storage_options,
        // SAFETY: NULL or a live token, by contract.
        cancel: unsafe { options.cancel.as_ref() }.map(|t| t.0.clone()).unwrap_or_default(),
        deadline,
        progress: context.map(|c| {
            Arc::new(move |event: &Event<'_>| c.report(event)) as crate::executor::ProgressFn
        }),
        partial: options.flags & LANCE_TASKS_FLAG_PARTIAL != 0,
    })
}
