//! Files of a spool: what an orchestrator keeps where its processes, and the command line, find it.

use super::error::LanceTasksError;
use super::executor::call;
use super::guard::{bytes, guard, null, out, text};
use super::types::*;
use crate::error::{Error, ErrorCode, Result};
use crate::files::Files;

/// A folder, or a place in an object store, with files in it that appear whole or not at all; where
/// `lance-tasks` (the command line) keeps its spools. Shared: a `const` handle may be used by any number
/// of threads at once, also of an async runtime. In a child after a fork every call with it answers
/// `LANCE_TASKS_INVALID_STATE`.
pub struct LanceTasksFiles {
    files: Files,
    pid: u32,
}

/// # Safety
/// `files` is NULL or a live handle.
unsafe fn handle<'a>(files: *const LanceTasksFiles) -> Result<&'a Files> {
    // SAFETY: by contract.
    let handle = unsafe { files.as_ref() }.ok_or_else(|| null("files"))?;
    if handle.pid != std::process::id() {
        let text = format!(
            "the files were opened in process {}, this is its forked child; open them anew",
            handle.pid
        );
        return Err(Error::new(ErrorCode::InvalidState, text));
    }
    Ok(&handle.files)
}

/// Names of files are relative, so that nothing outside of the place is reached.
///
/// # Safety
/// As [`bytes`].
unsafe fn relative<'a>(what: &str, data: *const u8, len: usize) -> Result<&'a str> {
    // SAFETY: by contract.
    let name = unsafe { text(what, data, len) }?;
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) || name.contains('\0') {
        return Err(Error::invalid(format!(
            "{what}: {name:?} is no relative name (parts with '/' between them)"
        )));
    }
    Ok(name)
}

/// Open a place.
///
/// # Parameters
/// `place`: a path, a `file://` URI, or an object store's URI as Lance takes it. `options`: NULL for
/// defaults; only its storage options are used. `out_files`: receives the handle.
/// # Returns
/// `LANCE_TASKS_OK`, or `LANCE_TASKS_INVALID_ARGUMENT` for a place that is none, or whose URI carries
/// credentials. A folder need not exist: the first put makes it.
/// # Memory and lifetimes
/// Free the handle with `lance_tasks_files_free`. Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_files_open(
    place: *const u8,
    place_len: usize,
    options: *const LanceTasksCallOptions,
    out_files: *mut *mut LanceTasksFiles,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    // SAFETY: by the header's contract, here and below.
    let call = unsafe { call(options) };
    guard("lance_tasks_files_open", out_error, || {
        let target = unsafe { out("out_files", out_files) }?;
        let place = unsafe { text("place", place, place_len) }?;
        let files = Files::open(place, &call?.storage_options.shared())?;
        let handle = LanceTasksFiles { files, pid: std::process::id() };
        target.write(Box::into_raw(Box::new(handle)));
        Ok(())
    })
}

/// Free a handle. NULL is a no-op. Calls under way on other threads must have returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_files_free(files: *mut LanceTasksFiles) {
    if !files.is_null() {
        // SAFETY: made by `lance_tasks_files_open`, freed once, by contract.
        let files = unsafe { Box::from_raw(files) };
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || drop(files)));
    }
}

/// Read a file.
///
/// # Parameters
/// `name`: relative to the place, with `/` between its parts. `out_bytes`: receives what is in the file;
/// NULL and 0 where there is none (an empty file is not NULL).
/// # Memory and lifetimes
/// Free `out_bytes` with `lance_tasks_bytes_free`. Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_files_get(
    files: *const LanceTasksFiles,
    name: *const u8,
    name_len: usize,
    out_bytes: *mut LanceTasksBytes,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    guard("lance_tasks_files_get", out_error, || {
        // SAFETY: by the header's contract, here and below.
        let place = unsafe { out("out_bytes", out_bytes) }?;
        let name = unsafe { relative("name", name, name_len) }?;
        place.write(match unsafe { handle(files) }?.get(name)? {
            Some(bytes) => LanceTasksBytes::new(bytes),
            None => LanceTasksBytes { data: std::ptr::null(), len: 0 },
        });
        Ok(())
    })
}

/// Write a file; it appears whole or not at all, and is synced.
///
/// # Parameters
/// `replace`: 0: where there is a file already that differs, that one stays, and the answer is
/// `LANCE_TASKS_ALREADY_EXISTS`; of several processes that put one name at once, one succeeds. Else: a
/// file that is there is replaced.
/// # Memory and lifetimes
/// `data` is copied. Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_files_put(
    files: *const LanceTasksFiles,
    name: *const u8,
    name_len: usize,
    data: *const u8,
    data_len: usize,
    replace: i32,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    guard("lance_tasks_files_put", out_error, || {
        // SAFETY: by the header's contract, here and below.
        let files = unsafe { handle(files) }?;
        let name = unsafe { relative("name", name, name_len) }?;
        let data = unsafe { bytes("data", data, data_len) }?;
        if replace != 0 { files.put(name, data) } else { files.put_once(name, data) }
    })
}

/// The names of the files in a folder, in order: without the folder, each ending in a NUL. Folders in it
/// are left out.
///
/// # Parameters
/// `folder`: relative to the place. `out_names`: receives the names; NULL and 0 where there are none, or
/// no such folder.
/// # Memory and lifetimes
/// Free `out_names` with `lance_tasks_bytes_free`. Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_files_list(
    files: *const LanceTasksFiles,
    folder: *const u8,
    folder_len: usize,
    out_names: *mut LanceTasksBytes,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    guard("lance_tasks_files_list", out_error, || {
        // SAFETY: by the header's contract, here and below.
        let place = unsafe { out("out_names", out_names) }?;
        let folder = unsafe { relative("folder", folder, folder_len) }?;
        let names = unsafe { handle(files) }?.list(folder)?;
        place.write(if names.is_empty() {
            LanceTasksBytes { data: std::ptr::null(), len: 0 }
        } else {
            LanceTasksBytes::new((names.join("\0") + "\0").into_bytes())
        });
        Ok(())
    })
}

/// Remove a file; where there is none, that is a success as well.
///
/// # Memory and lifetimes
/// Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_files_delete(
    files: *const LanceTasksFiles,
    name: *const u8,
    name_len: usize,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    guard("lance_tasks_files_delete", out_error, || {
        // SAFETY: by the header's contract, here and below.
        let name = unsafe { relative("name", name, name_len) }?;
        unsafe { handle(files) }?.delete(name)
    })
}
