//! Tables of tasks and results as lists of bytes and back, and descriptors from one encoding to the
//! other: what hosts without Arrow need.

use arrow_array::RecordBatchReader;

use super::error::LanceTasksError;
use super::guard::{bytes, guard, out};
use super::stream::{FFI_ArrowArrayStream, Input, Reader, export_batch};
use super::types::*;
use crate::codec::{Descriptor, Encoding, encoding_of, kind_of};
use crate::error::{Error, ErrorCode, Result};
use crate::job::Job;
use crate::operations::Spec;
use crate::result::TaskResult;
use crate::task::Task;

fn read_all<T>(
    reader: Reader,
    decode: fn(&arrow_array::RecordBatch) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let mut rows = Vec::new();
    for batch in reader {
        rows.extend(decode(&batch?)?);
    }
    Ok(rows)
}

pub(super) fn read_results(results: Input) -> Result<Vec<TaskResult>> {
    match results.optional("results")? {
        Some(reader) => read_all(reader, TaskResult::from_table),
        None => Ok(Vec::new()),
    }
}

pub(super) fn read_tasks(tasks: Input) -> Result<Vec<Task>> {
    read_all(tasks.required("tasks")?, Task::from_table)
}

/// Turn a descriptor (spec, job or task, in either encoding) or a result (Arrow IPC stream bytes) into
/// another encoding. A result as JSON is a view for people, not read back.
///
/// # Parameters
/// `data`: what to turn. `encoding`: `LANCE_TASKS_ENCODING_JSON` or `LANCE_TASKS_ENCODING_BINARY`.
/// # Returns
/// `LANCE_TASKS_OK`, or `LANCE_TASKS_DECODE`, `LANCE_TASKS_VERSION_MISMATCH`.
/// # Memory and lifetimes
/// Free `out_bytes` with `lance_tasks_bytes_free`. Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_convert(
    data: *const u8,
    data_len: usize,
    encoding: i32,
    out_bytes: *mut LanceTasksBytes,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    guard("lance_tasks_convert", out_error, || {
        // SAFETY: by the header's contract.
        let (place, data) =
            unsafe { (out("out_bytes", out_bytes)?, bytes("data", data, data_len)?) };
        place.write(LanceTasksBytes::new(convert(data, encoding)?));
        Ok(())
    })
}

fn convert(data: &[u8], encoding: i32) -> Result<Vec<u8>> {
    let encoding = match encoding {
        LANCE_TASKS_ENCODING_JSON => Encoding::Json,
        LANCE_TASKS_ENCODING_BINARY => Encoding::Binary,
        other => {
            return Err(Error::invalid(format!(
                "encoding {other} is neither JSON (1) nor binary (2)"
            )));
        }
    };
    fn write<T: Descriptor>(data: &[u8], encoding: Encoding) -> Result<Vec<u8>> {
        let value = T::decode(data)?;
        match encoding {
            Encoding::Json => Ok(value.to_json()?.into_bytes()),
            Encoding::Binary => value.to_bytes(),
        }
    }
    if is_result(data) {
        let results = TaskResult::from_ipc(data)?;
        return match (encoding, results.as_slice()) {
            (Encoding::Binary, _) => TaskResult::to_ipc(&results),
            (Encoding::Json, [one]) => Ok(serde_json::to_vec(&one.to_json())?),
            (Encoding::Json, many) => {
                Ok(serde_json::to_vec(&many.iter().map(TaskResult::to_json).collect::<Vec<_>>())?)
            }
        };
    }
    match kind_of(data)?.as_str() {
        "spec" => write::<Spec>(data, encoding),
        "job" => write::<Job>(data, encoding),
        "task" => write::<Task>(data, encoding),
        other => Err(Error::new(ErrorCode::VersionMismatch, format!("unknown kind {other:?}"))),
    }
}

/// An Arrow IPC stream begins with the continuation marker.
fn is_result(data: &[u8]) -> bool {
    encoding_of(data).is_none() && data.starts_with(&[0xff; 4])
}

/// Split a table of tasks or results into one item of bytes per row: a task as its binary descriptor, a
/// result as an Arrow IPC stream of one row.
///
/// # Parameters
/// `table`: a stream of task or result rows; taken over and read to its end. `out_rows`: receives the
/// items, each behind its length (`uint64_t`, little-endian).
/// # Memory and lifetimes
/// Free `out_rows` with `lance_tasks_bytes_free`. Thread-safe. Of a stream made by
/// `lance_tasks_execute_all`, this waits for all tasks; use `lance_tasks_next_row` to take them one by
/// one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_table_to_rows(
    table: *mut FFI_ArrowArrayStream,
    out_rows: *mut LanceTasksBytes,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    // SAFETY: by the header's contract.
    let table = unsafe { Input::take(table) };
    guard("lance_tasks_table_to_rows", out_error, || {
        // SAFETY: by the header's contract.
        let place = unsafe { out("out_rows", out_rows) }?;
        let reader = table.required("table")?;
        let rows = if reader.schema().column_with_name("attempt_id").is_some() {
            read_all(reader, TaskResult::from_table)?
                .into_iter()
                .map(|r| TaskResult::to_ipc(&[r]))
                .collect::<Result<Vec<_>>>()?
        } else {
            read_all(reader, Task::from_table)?
                .iter()
                .map(Task::to_bytes)
                .collect::<Result<Vec<_>>>()?
        };
        let mut framed = Vec::with_capacity(rows.iter().map(|r| r.len() + 8).sum());
        for row in rows {
            framed.extend_from_slice(&(row.len() as u64).to_le_bytes());
            framed.extend_from_slice(&row);
        }
        place.write(LanceTasksBytes::new(framed));
        Ok(())
    })
}

/// Take the next row of a stream of results as bytes (an Arrow IPC stream of one row).
///
/// # Parameters
/// `stream`: a stream of `lance_tasks_execute_all`; advanced by one row, not taken over. `out_row`:
/// receives the row, or NULL and 0 at the end of the stream.
/// # Memory and lifetimes
/// Free `out_row` with `lance_tasks_bytes_free`. One thread at a time per stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_next_row(
    stream: *mut FFI_ArrowArrayStream,
    out_row: *mut LanceTasksBytes,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    guard("lance_tasks_next_row", out_error, || {
        // SAFETY: by the header's contract.
        let place = unsafe { out("out_row", out_row) }?;
        let batch = unsafe { super::stream::next_batch(stream) }?;
        place.write(match batch {
            Some(batch) => {
                LanceTasksBytes::new(TaskResult::to_ipc(&TaskResult::from_table(&batch)?)?)
            }
            None => LanceTasksBytes { data: std::ptr::null(), len: 0 },
        });
        Ok(())
    })
}

/// Make a table of tasks or results from the items that `lance_tasks_table_to_rows` makes; the two
/// kinds may not be mixed.
///
/// # Parameters
/// `rows`: items, each behind its length (`uint64_t`, little-endian); none gives an empty table of
/// results. `out_table`: a place for a stream.
/// # Memory and lifetimes
/// The caller releases `out_table` by its own `release`. Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lance_tasks_rows_to_table(
    rows: *const u8,
    rows_len: usize,
    out_table: *mut FFI_ArrowArrayStream,
    out_error: *mut *mut LanceTasksError,
) -> LanceTasksStatus {
    guard("lance_tasks_rows_to_table", out_error, || {
        // SAFETY: by the header's contract.
        let (place, rows) =
            unsafe { (out("out_table", out_table)?, bytes("rows", rows, rows_len)?) };
        let mut tasks = Vec::new();
        let mut results = Vec::new();
        for row in split(rows)? {
            if is_result(row) {
                results.extend(TaskResult::from_ipc(row)?);
            } else {
                tasks.push(Task::decode(row)?);
            }
        }
        if !tasks.is_empty() && !results.is_empty() {
            return Err(Error::invalid("rows: tasks and results are mixed"));
        }
        let batch = if tasks.is_empty() {
            TaskResult::to_table(&results)?
        } else {
            Task::to_table(&tasks)?
        };
        place.write(export_batch(batch));
        Ok(())
    })
}

fn split(mut framed: &[u8]) -> Result<Vec<&[u8]>> {
    let mut rows = Vec::new();
    while !framed.is_empty() {
        let cut =
            || Error::new(ErrorCode::Decode, format!("rows: cut short in row {}", rows.len()));
        let (length, rest) = framed.split_first_chunk::<8>().ok_or_else(cut)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| cut())?;
        let (row, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
        rows.push(row);
        framed = rest;
    }
    Ok(rows)
}
