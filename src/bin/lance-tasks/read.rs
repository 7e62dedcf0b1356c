//! The data of operations that read, as an Arrow IPC stream.

use std::fs::{File, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use arrow_array::RecordBatchReader;
use arrow_ipc::writer::StreamWriter;
use lance_tasks::{Call, DataStream, Error, ErrorCode, Result, Spec, Task};
use serde_json::{Value, json};

use crate::progress::Progress;
use crate::report::{Answer, Outcome, bytes, count};
use crate::run::{Shard, open_stage};
use crate::session::Session;
use crate::spool::Spool;

/// Prepare and read a spec.
pub fn spec(session: &Session, spec: Spec, shard: Shard, output: &Path) -> Outcome<Answer> {
    let (call, executor) = (session.call(), &session.executor);
    let job = session.retrying(|| executor.prepare(spec.clone(), None, &call))?;
    if !job.reads() {
        let operation = job.operation();
        let text = format!("{operation} changes a dataset, and yields no data to be read");
        return Err(Error::invalid(text).into());
    }
    let tasks = session.retrying(|| executor.plan(&job, &[], &call))?;
    read(session, tasks, shard, output)
}

/// Read the tasks of a spool.
pub fn spool(session: &Session, spool: &Spool, shard: Shard, output: &Path) -> Outcome<Answer> {
    if !spool.job.reads() {
        let (operation, place) = (spool.job.operation(), spool.place());
        let text = format!("spool {place}: {operation} changes a dataset, and yields no data");
        return Err(Error::invalid(text).into());
    }
    let tasks = match open_stage(session, spool)? {
        Some((stage, open)) => stage.decode_tasks(&open)?,
        None => Vec::new(),
    };
    read(session, tasks, shard, output)
}

fn read(session: &Session, tasks: Vec<Task>, shard: Shard, output: &Path) -> Outcome<Answer> {
    let first = tasks.first().cloned();
    let mine: Vec<Task> =
        tasks.into_iter().filter(|task| task.index % shard.count == shard.index).collect();
    // More shards than tasks: the columns, and no rows.
    let empty = mine.is_empty();
    let tasks = if empty { first.into_iter().collect() } else { mine };
    let progress = Progress::new(session.show, &tasks);
    let call = || Call { progress: Some(progress.callback()), ..session.call() };
    let stream = session.retrying(|| session.executor.read_all(tasks.clone(), call()))?;
    let written = write(stream, !empty, output).map_err(|e| session.failure(e))?;
    drop(progress);
    let tasks = if empty { 0 } else { tasks.len() as u64 };
    let text =
        format!("read {}: {}, {}", count(tasks, "task"), count(written.0, "row"), bytes(written.1));
    if output.as_os_str() == "-" {
        return Ok(Answer { value: Value::Null, text });
    }
    let value = json!({ "tasks": tasks, "rows": written.0, "bytes": written.1, "output": output });
    Ok(Answer { value, text: format!("{text} into {}", output.display()) })
}

/// Rows and bytes of what was written.
fn write(stream: DataStream, with_rows: bool, output: &Path) -> Result<(u64, u64)> {
    if output.as_os_str() == "-" {
        return copy(stream, with_rows, BufWriter::new(std::io::stdout().lock()));
    }
    let failed =
        |e: std::io::Error| Error::new(ErrorCode::Io, format!("output {}: {e}", output.display()));
    // A pipe or a device takes the bytes itself.
    if std::fs::metadata(output).is_ok_and(|found| !found.is_file()) {
        let file = File::options().write(true).open(output).map_err(failed)?;
        return copy(stream, with_rows, BufWriter::new(file));
    }
    // Under its name stands a whole file or none.
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(failed)?;
    let written = copy(stream, with_rows, BufWriter::new(file.as_file_mut()))?;
    file.persist(output).map_err(|e| failed(e.error))?;
    Ok(written)
}

fn copy(mut stream: DataStream, with_rows: bool, sink: impl Write) -> Result<(u64, u64)> {
    let failed = |e: arrow_schema::ArrowError| Error::from(e).context("output");
    let mut writer = StreamWriter::try_new(sink, &stream.schema()).map_err(failed)?;
    let (mut rows, mut bytes) = (0, 0);
    if with_rows {
        for batch in stream.by_ref() {
            let batch = batch?;
            rows += batch.num_rows() as u64;
            bytes += batch.get_array_memory_size() as u64;
            writer.write(&batch).map_err(failed)?;
        }
    }
    writer.finish().map_err(failed)?;
    writer.into_inner().map_err(failed)?.flush()?;
    Ok((rows, bytes))
}
