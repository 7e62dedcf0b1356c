//! The panic guard, and how arguments become Rust values.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use super::error::{LanceTasksError, fail};
use super::executor::LanceTasksExecutor;
use super::types::{LANCE_TASKS_OK, LanceTasksBytes, LanceTasksStatus};
use crate::error::{Error, ErrorCode, Result};

/// Run a function of the ABI: an error becomes a status and an object, a panic an error.
pub(super) fn guard(
    name: &'static str,
    out_error: *mut *mut LanceTasksError,
    f: impl FnOnce() -> Result<()>,
) -> LanceTasksStatus {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        inject_panic(name);
        f()
    }));
    match outcome {
        Ok(Ok(())) => LANCE_TASKS_OK,
        Ok(Err(error)) => fail(error, out_error),
        Err(panic) => fail(panic_error(name, panic.as_ref()), out_error),
    }
}

/// As [`guard`], for functions of an executor: refuse a poisoned one, poison it on a panic.
pub(super) fn guard_executor(
    name: &'static str,
    executor: *const LanceTasksExecutor,
    out_error: *mut *mut LanceTasksError,
    f: impl FnOnce(&LanceTasksExecutor) -> Result<()>,
) -> LanceTasksStatus {
    guard(name, out_error, || {
        // SAFETY: NULL or a live executor, by contract.
        let executor = unsafe { executor.as_ref() }.ok_or_else(|| null("executor"))?;
        executor.check_poison()?;
        match catch_unwind(AssertUnwindSafe(|| {
            inject_panic("executor");
            f(executor)
        })) {
            Ok(result) => result,
            Err(panic) => {
                executor.poison();
                Err(panic_error(name, panic.as_ref()))
            }
        }
    })
}

pub(super) fn panic_error(name: &str, panic: &(dyn std::any::Any + Send)) -> Error {
    Error::new(ErrorCode::Panic, format!("{name} panicked: {}", panic_text(panic)))
}

pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into())
}

/// Tests set `LANCE_TASKS_INJECT_PANIC` to a function's name, `executor` or `stream`. Read once.
pub(super) fn inject_panic(name: &str) {
    static WHERE: OnceLock<Option<String>> = OnceLock::new();
    let place = WHERE.get_or_init(|| std::env::var("LANCE_TASKS_INJECT_PANIC").ok());
    if place.as_deref() == Some(name) {
        panic!("injected into {name}");
    }
}

pub(super) fn null(what: &str) -> Error {
    Error::invalid(format!("{what} is NULL"))
}

/// Borrow the caller's bytes for the call.
///
/// # Safety
/// `data` is NULL with `len` 0, or points to `len` readable bytes.
pub(super) unsafe fn bytes<'a>(what: &str, data: *const u8, len: usize) -> Result<&'a [u8]> {
    if data.is_null() {
        return if len == 0 { Ok(&[]) } else { Err(null(what)) };
    }
    if len > isize::MAX as usize {
        return Err(Error::invalid(format!("{what}: a length of {len} bytes")));
    }
    // SAFETY: by contract.
    Ok(unsafe { std::slice::from_raw_parts(data, len) })
}

/// # Safety
/// As [`bytes`].
pub(super) unsafe fn text<'a>(what: &str, data: *const u8, len: usize) -> Result<&'a str> {
    // SAFETY: by contract.
    std::str::from_utf8(unsafe { bytes(what, data, len) }?)
        .map_err(|_| Error::invalid(format!("{what} is not UTF-8")))
}

/// Where an output goes; checked before any work is done.
///
/// # Safety
/// `out` is NULL or a place for one `T`.
pub(super) unsafe fn out<'a, T>(
    what: &str,
    out: *mut T,
) -> Result<&'a mut std::mem::MaybeUninit<T>> {
    // SAFETY: by contract; MaybeUninit asks nothing of what is there.
    unsafe { out.cast::<std::mem::MaybeUninit<T>>().as_mut() }.ok_or_else(|| null(what))
}

/// A struct that grows by its size field: what the caller did not know is zero.
///
/// # Safety
/// `options` is NULL or points to a struct of at least its own `struct_size` bytes that begins with
/// that `u32`; all of `T`'s fields may be zero.
pub(super) unsafe fn sized<T: Copy>(what: &str, options: *const T) -> Result<T> {
    // SAFETY: by contract.
    let mut value: T = unsafe { std::mem::zeroed() };
    if options.is_null() {
        return Ok(value);
    }
    // SAFETY: by contract.
    let size = unsafe { options.cast::<u32>().read_unaligned() } as usize;
    if !(8..=4096).contains(&size) {
        return Err(Error::invalid(format!(
            "{what}: struct_size is {size}; set it to sizeof(the struct)"
        )));
    }
    // SAFETY: `size` bytes are there, and no more than T's own are written.
    unsafe {
        std::ptr::copy_nonoverlapping(
            options.cast::<u8>(),
            (&raw mut value).cast::<u8>(),
            size.min(size_of::<T>()),
        );
    }
    Ok(value)
}

impl LanceTasksBytes {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        let boxed = bytes.into_boxed_slice();
        let len = boxed.len();
        Self { data: Box::into_raw(boxed).cast::<u8>(), len }
    }
}

/// Free bytes that the library handed out, and set them to NULL and 0. NULL, or a freed one, is a
/// no-op.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_bytes_free(bytes: *mut LanceTasksBytes) {
    // SAFETY: NULL or a struct that the library filled, by contract.
    let Some(bytes) = (unsafe { bytes.as_mut() }) else { return };
    if !bytes.data.is_null() {
        let slice = std::ptr::slice_from_raw_parts_mut(bytes.data.cast_mut(), bytes.len);
        // SAFETY: made by `LanceTasksBytes::new`.
        drop(unsafe { Box::from_raw(slice) });
    }
    bytes.data = std::ptr::null();
    bytes.len = 0;
}
