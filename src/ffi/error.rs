//! The opaque error object.

use std::ffi::{CString, c_char};
use std::ptr;

use super::types::LanceTasksStatus;
use crate::error::{Error, ErrorCode};

/// Why a call failed. Opaque, immutable, may be read from any thread; freed by
/// `lance_tasks_error_free`.
pub struct LanceTasksError {
    code: ErrorCode,
    class: CString,
    name: CString,
    message: CString,
    task_id: Option<CString>,
}

fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

impl From<Error> for LanceTasksError {
    fn from(error: Error) -> Self {
        Self {
            code: error.code(),
            class: c_string(error.class().as_str()),
            name: c_string(error.code().name()),
            message: c_string(error.message()),
            task_id: error.task_id().map(c_string),
        }
    }
}

/// Hand an error out, where the caller asked for it, and answer with its code.
pub(super) fn fail(error: Error, out_error: *mut *mut LanceTasksError) -> LanceTasksStatus {
    let code = error.code() as LanceTasksStatus;
    if !out_error.is_null() {
        // SAFETY: the caller passes NULL or a place for one pointer.
        unsafe { *out_error = Box::into_raw(Box::new(error.into())) };
    }
    code
}

/// The error's code: the status that the failed call answered with.
///
/// # Parameters
/// `error`: an error, or NULL.
/// # Returns
/// The code, 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_error_code(error: *const LanceTasksError) -> LanceTasksStatus {
    // SAFETY: NULL or a live error, by contract.
    unsafe { error.as_ref() }.map_or(0, |e| e.code as LanceTasksStatus)
}

/// The code's name without its prefix, for example `SCHEMA_MISMATCH`.
///
/// # Returns
/// UTF-8 with a terminating NUL, valid until the error is freed; NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_error_name(error: *const LanceTasksError) -> *const c_char {
    // SAFETY: NULL or a live error, by contract.
    unsafe { error.as_ref() }.map_or(ptr::null(), |e| e.name.as_ptr())
}

/// The retry class: `retry_task`, `replan`, `conflict`, `invalid`, `credentials` or `fatal`.
///
/// # Returns
/// UTF-8 with a terminating NUL, valid until the error is freed; NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_error_class(error: *const LanceTasksError) -> *const c_char {
    // SAFETY: NULL or a live error, by contract.
    unsafe { error.as_ref() }.map_or(ptr::null(), |e| e.class.as_ptr())
}

/// What happened, naming the file, fragment, column or option.
///
/// # Returns
/// UTF-8 with a terminating NUL, valid until the error is freed; NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_error_message(error: *const LanceTasksError) -> *const c_char {
    // SAFETY: NULL or a live error, by contract.
    unsafe { error.as_ref() }.map_or(ptr::null(), |e| e.message.as_ptr())
}

/// The task concerned.
///
/// # Returns
/// UTF-8 with a terminating NUL, valid until the error is freed; NULL where no task is concerned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_error_task_id(error: *const LanceTasksError) -> *const c_char {
    // SAFETY: NULL or a live error, by contract.
    unsafe { error.as_ref() }.and_then(|e| e.task_id.as_ref()).map_or(ptr::null(), |id| id.as_ptr())
}

/// Free an error. NULL is a no-op.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_error_free(error: *mut LanceTasksError) {
    if !error.is_null() {
        // SAFETY: made by `fail`, freed once, by contract.
        drop(unsafe { Box::from_raw(error) });
    }
}
