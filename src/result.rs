//! Results: one row of Arrow per attempt, with a fixed schema.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::{Arc, LazyLock};

use arrow_array::builder::{
    BinaryBuilder, ListBuilder, StringBuilder, StructBuilder, UInt32Builder, UInt64Builder,
};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    DurationMicrosecondType, Int32Type, TimestampMicrosecondType, UInt32Type, UInt64Type,
};
use arrow_array::{
    Array, ArrayRef, BinaryArray, DurationMicrosecondArray, Int32Array, ListArray, RecordBatch,
    StringArray, StructArray, TimestampMicrosecondArray, UInt32Array, UInt64Array,
};
use arrow_buffer::{Buffer, NullBuffer};
use arrow_cast::CastOptions;
use arrow_schema::{ArrowError, DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::error::{Error, ErrorCode, Result};

/// A file that an attempt wrote.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WrittenFile {
    /// Relative to the dataset's root, or to the base's: `data/<name>.lance`, `_indices/<uuid>/<name>`.
    pub path: String,
    /// Bytes; 0 where the attempt failed before the file was closed.
    pub size: u64,
    /// The registered base that holds it; none = the dataset's own storage.
    pub base: Option<u32>,
}

/// What one attempt made, or why it failed.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskResult {
    pub job_id: Uuid,
    pub task_id: Uuid,
    pub attempt_id: Uuid,
    pub operation: String,
    /// None = the attempt succeeded.
    pub error: Option<Error>,
    pub dataset_uri: String,
    pub read_version: u64,
    /// What the operation's commit needs beyond the columns below (JSON).
    pub payload: String,
    /// New fragments as Lance's JSON (`pylance`: `FragmentMetadata.from_json`), in row order.
    pub fragments: Vec<String>,
    /// New index segments as Lance's `pb::IndexMetadata`.
    pub index_segments: Vec<Vec<u8>>,
    pub files: Vec<WrittenFile>,
    pub rows_in: u64,
    pub rows_out: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    /// Microseconds since the epoch, UTC.
    pub started_at: i64,
    /// Microseconds.
    pub elapsed: i64,
    /// The process's peak resident set, in bytes, when the attempt ended; 0 where unknown.
    pub peak_memory: u64,
    pub host: String,
    pub pid: u32,
    pub versions: Versions,
}

/// What wrote a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versions {
    pub lance_tasks: String,
    pub lance: String,
    pub format: u32,
}

impl Versions {
    pub fn current() -> Self {
        Self {
            lance_tasks: env!("CARGO_PKG_VERSION").into(),
            lance: crate::codec::LANCE_VERSION.into(),
            format: crate::codec::FORMAT_VERSION.into(),
        }
    }
}

fn error_fields() -> Fields {
    vec![
        Field::new("code", DataType::Int32, false),
        Field::new("class", DataType::Utf8, false),
        Field::new("message", DataType::Utf8, false),
    ]
    .into()
}

fn file_fields() -> Fields {
    vec![
        Field::new("path", DataType::Utf8, false),
        Field::new("size", DataType::UInt64, false),
        Field::new("base", DataType::UInt32, true),
    ]
    .into()
}

fn version_fields() -> Fields {
    vec![
        Field::new("lance_tasks", DataType::Utf8, false),
        Field::new("lance", DataType::Utf8, false),
        Field::new("format", DataType::UInt32, false),
    ]
    .into()
}

fn item(data_type: DataType) -> Arc<Field> {
    Arc::new(Field::new("item", data_type, true))
}

/// The schema of a table of results.
pub fn table_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(new_schema);
    SCHEMA.clone()
}

/// How each of our own IPC streams of results begins: the message that holds the schema.
fn ipc_start() -> &'static [u8] {
    static START: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut bytes = Vec::new();
        let _ = arrow_ipc::writer::StreamWriter::try_new(&mut bytes, &table_schema());
        bytes
    });
    &START
}

fn new_schema() -> SchemaRef {
    let field = |name: &str, data_type: DataType| Field::new(name, data_type, false);
    Arc::new(Schema::new(vec![
        field("job_id", DataType::Utf8),
        field("task_id", DataType::Utf8),
        field("attempt_id", DataType::Utf8),
        field("operation", DataType::Utf8),
        field("status", DataType::Utf8),
        Field::new("error", DataType::Struct(error_fields()), true),
        field("dataset_uri", DataType::Utf8),
        field("read_version", DataType::UInt64),
        field("payload", DataType::Utf8),
        field("fragments", DataType::List(item(DataType::Utf8))),
        field("index_segments", DataType::List(item(DataType::Binary))),
        field("files", DataType::List(item(DataType::Struct(file_fields())))),
        field("rows_in", DataType::UInt64),
        field("rows_out", DataType::UInt64),
        field("bytes_read", DataType::UInt64),
        field("bytes_written", DataType::UInt64),
        field("started_at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
        field("elapsed", DataType::Duration(TimeUnit::Microsecond)),
        field("peak_memory", DataType::UInt64),
        field("host", DataType::Utf8),
        field("pid", DataType::UInt32),
        field("versions", DataType::Struct(version_fields())),
    ]))
}

impl TaskResult {
    pub fn succeeded(&self) -> bool {
        self.error.is_none()
    }

    pub fn to_table(results: &[TaskResult]) -> Result<RecordBatch> {
        fn text<'a>(results: &'a [TaskResult], f: impl Fn(&'a TaskResult) -> String) -> ArrayRef {
            Arc::new(StringArray::from_iter_values(results.iter().map(f)))
        }
        fn u64s(results: &[TaskResult], f: impl Fn(&TaskResult) -> u64) -> ArrayRef {
            Arc::new(UInt64Array::from_iter_values(results.iter().map(f)))
        }
        let r = results;
        let errors = StructArray::try_new(
            error_fields(),
            vec![
                Arc::new(Int32Array::from_iter_values(
                    r.iter().map(|x| x.error.as_ref().map_or(0, |e| e.code() as i32)),
                )),
                text(r, |x| x.error.as_ref().map_or("", |e| e.class().as_str()).into()),
                text(r, |x| x.error.as_ref().map_or("", Error::message).into()),
            ],
            Some(NullBuffer::from_iter(r.iter().map(|x| x.error.is_some()))),
        )?;
        let mut fragments = ListBuilder::new(StringBuilder::new()).with_field(item(DataType::Utf8));
        let mut segments =
            ListBuilder::new(BinaryBuilder::new()).with_field(item(DataType::Binary));
        let mut files = ListBuilder::new(StructBuilder::from_fields(file_fields(), 0))
            .with_field(item(DataType::Struct(file_fields())));
        for x in r {
            x.fragments.iter().for_each(|f| fragments.values().append_value(f));
            fragments.append(true);
            x.index_segments.iter().for_each(|s| segments.values().append_value(s));
            segments.append(true);
            for file in &x.files {
                let row = files.values();
                let built = "built from file_fields()";
                row.field_builder::<StringBuilder>(0).expect(built).append_value(&file.path);
                row.field_builder::<UInt64Builder>(1).expect(built).append_value(file.size);
                row.field_builder::<UInt32Builder>(2).expect(built).append_option(file.base);
                row.append(true);
            }
            files.append(true);
        }
        let versions = StructArray::try_new(
            version_fields(),
            vec![
                text(r, |x| x.versions.lance_tasks.clone()),
                text(r, |x| x.versions.lance.clone()),
                Arc::new(UInt32Array::from_iter_values(r.iter().map(|x| x.versions.format))),
            ],
            None,
        )?;
        Ok(RecordBatch::try_new(
            table_schema(),
            vec![
                text(r, |x| x.job_id.to_string()),
                text(r, |x| x.task_id.to_string()),
                text(r, |x| x.attempt_id.to_string()),
                text(r, |x| x.operation.clone()),
                text(r, |x| if x.succeeded() { "ok" } else { "failed" }.into()),
                Arc::new(errors),
                text(r, |x| x.dataset_uri.clone()),
                u64s(r, |x| x.read_version),
                text(r, |x| x.payload.clone()),
                Arc::new(fragments.finish()),
                Arc::new(segments.finish()),
                Arc::new(files.finish()),
                u64s(r, |x| x.rows_in),
                u64s(r, |x| x.rows_out),
                u64s(r, |x| x.bytes_read),
                u64s(r, |x| x.bytes_written),
                Arc::new(
                    TimestampMicrosecondArray::from_iter_values(r.iter().map(|x| x.started_at))
                        .with_timezone("UTC"),
                ),
                Arc::new(DurationMicrosecondArray::from_iter_values(r.iter().map(|x| x.elapsed))),
                u64s(r, |x| x.peak_memory),
                text(r, |x| x.host.clone()),
                Arc::new(UInt32Array::from_iter_values(r.iter().map(|x| x.pid))),
                Arc::new(versions),
            ],
        )?)
    }

    /// The results of a table that any engine may have carried: columns are found by name and may
    /// have come back as other kinds of strings, binaries or lists.
    pub fn from_table(batch: &RecordBatch) -> Result<Vec<TaskResult>> {
        // Arrow's casts may panic on types that nobody would choose.
        let read = std::panic::AssertUnwindSafe(|| {
            let t = Columns::new(batch)?;
            (0..batch.num_rows())
                .map(|row| t.row(row).map_err(|e| e.context(format!("results: row {row}"))))
                .collect()
        });
        std::panic::catch_unwind(read)
            .unwrap_or_else(|_| Err(Error::new(ErrorCode::Decode, "results: damaged Arrow arrays")))
    }

    /// One row as an Arrow IPC stream: the form in which a result is stored and sent.
    pub fn to_ipc(results: &[TaskResult]) -> Result<Vec<u8>> {
        let batch = Self::to_table(results)?;
        let mut out = Vec::new();
        let mut writer = arrow_ipc::writer::StreamWriter::try_new(&mut out, &batch.schema())?;
        writer.write(&batch)?;
        writer.finish()?;
        drop(writer);
        Ok(out)
    }

    pub fn from_ipc(bytes: &[u8]) -> Result<Vec<TaskResult>> {
        if bytes.len() > crate::codec::MAX_BYTES {
            return Err(Error::new(ErrorCode::Decode, "result: over the size limit"));
        }
        let bad =
            |e: arrow_schema::ArrowError| Error::new(ErrorCode::Decode, format!("result: {e}"));
        // The IPC reader may panic on damaged buffers; decoding is total all the same.
        std::panic::catch_unwind(|| {
            check_ipc(bytes)
                .map_err(|why| Error::new(ErrorCode::Decode, format!("result: {why}")))?;
            let mut results = Vec::new();
            for batch in batches(bytes).map_err(bad)? {
                if batch.num_rows() > bytes.len() {
                    return Err(Error::new(ErrorCode::Decode, "result: more rows than bytes"));
                }
                results.extend(Self::from_table(&batch)?);
            }
            Ok(results)
        })
        .unwrap_or_else(|_| Err(Error::new(ErrorCode::Decode, "result: damaged Arrow IPC bytes")))
    }

    /// The row for people, and for hosts without Arrow.
    pub fn to_json(&self) -> Value {
        json!({
            "job_id": self.job_id,
            "task_id": self.task_id,
            "attempt_id": self.attempt_id,
            "operation": self.operation,
            "status": if self.succeeded() { "ok" } else { "failed" },
            "error": self.error.as_ref().map(|e| json!({
                "code": e.code().name(),
                "class": e.class().as_str(),
                "message": e.message(),
            })),
            "dataset_uri": self.dataset_uri,
            "read_version": self.read_version,
            "payload": serde_json::from_str::<Value>(&self.payload).unwrap_or(Value::Null),
            "fragments": self.fragments.iter()
                .map(|f| serde_json::from_str::<Value>(f).unwrap_or(Value::Null))
                .collect::<Vec<_>>(),
            "index_segments": self.index_segments.len(),
            "files": self.files.iter().map(|f| json!({
                "path": f.path, "size": f.size, "base": f.base,
            })).collect::<Vec<_>>(),
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "started_at_us": self.started_at,
            "elapsed_us": self.elapsed,
            "peak_memory": self.peak_memory,
            "host": self.host,
            "pid": self.pid,
            "versions": {
                "lance_tasks": self.versions.lance_tasks,
                "lance": self.versions.lance,
                "format": self.versions.format,
            },
        })
    }
}

/// The IPC reader allocates what a message's header states, and an allocation that fails ends the
/// process: refuse lengths that the bytes do not bear out, and compression, whose lengths cannot be
/// known.
pub(crate) fn check_ipc(bytes: &[u8]) -> Result<(), String> {
    let mut rest = bytes;
    let word = |rest: &mut &[u8]| {
        let (head, tail) = rest.split_first_chunk::<4>()?;
        *rest = tail;
        Some(u32::from_le_bytes(*head))
    };
    while let Some(mut length) = word(&mut rest) {
        if length == u32::MAX {
            length = word(&mut rest).ok_or("cut short in a message's length")?;
        }
        if length == 0 {
            break;
        }
        let (header, after) =
            rest.split_at_checked(length as usize).ok_or("cut short in a message's header")?;
        let message =
            arrow_ipc::root_as_message(header).map_err(|e| format!("a message's header: {e}"))?;
        let batch = message
            .header_as_record_batch()
            .or_else(|| message.header_as_dictionary_batch().and_then(|d| d.data()));
        if batch.is_some_and(|b| b.compression().is_some()) {
            return Err("a compressed message".into());
        }
        let body = usize::try_from(message.bodyLength()).ok();
        rest = body
            .and_then(|n| after.get(n..))
            .ok_or_else(|| format!("a message states {} bytes of body", message.bodyLength()))?;
    }
    Ok(())
}

/// Most results come one by one, and are of our own schema: reading it anew each time would cost more
/// than the row.
fn batches(bytes: &[u8]) -> Result<Vec<RecordBatch>, ArrowError> {
    let Some(mut rest) = bytes.strip_prefix(ipc_start()) else {
        return arrow_ipc::reader::StreamReader::try_new(Cursor::new(bytes), None)?.collect();
    };
    let (schema, mut found) = (table_schema(), Vec::new());
    let damaged = |what: &str| ArrowError::IpcError(what.to_owned());
    while let Some((head, after)) = rest.split_first_chunk::<8>() {
        let [.., a, b, c, d] = *head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length == 0 {
            break;
        }
        let (header, after) =
            after.split_at_checked(length).ok_or_else(|| damaged("a message is cut short"))?;
        let message = arrow_ipc::root_as_message(header).map_err(|e| damaged(&e.to_string()))?;
        let batch =
            message.header_as_record_batch().ok_or_else(|| damaged("a message of another kind"))?;
        let body = usize::try_from(message.bodyLength()).unwrap_or(usize::MAX);
        let (body, after) =
            after.split_at_checked(body).ok_or_else(|| damaged("a message is cut short"))?;
        found.push(arrow_ipc::reader::read_record_batch(
            &Buffer::from(body),
            batch,
            schema.clone(),
            &HashMap::new(),
            None,
            &message.version(),
        )?);
        rest = after;
    }
    Ok(found)
}

/// The columns of a results table, cast to the canonical types and in their order.
struct Columns {
    columns: Vec<ArrayRef>,
}

impl Columns {
    fn new(batch: &RecordBatch) -> Result<Self> {
        let schema = table_schema();
        let mut columns = Vec::with_capacity(schema.fields().len());
        for field in schema.fields() {
            let column = batch.column_by_name(field.name()).ok_or_else(|| {
                Error::new(
                    ErrorCode::Decode,
                    format!(
                        "a table of results has a column {:?}, this one does not",
                        field.name()
                    ),
                )
            })?;
            let bad = |what: &dyn std::fmt::Display| {
                let message = format!("results: column {:?}: {what}", field.name());
                Error::new(ErrorCode::Decode, message)
            };
            let column = if column.data_type() == field.data_type() {
                column.clone()
            } else {
                let strict = CastOptions { safe: false, ..Default::default() };
                arrow_cast::cast_with_options(column, field.data_type(), &strict)
                    .map_err(|e| bad(&e))?
            };
            if column.len() != batch.num_rows() {
                return Err(bad(&"it cannot be read as what a table of results has there"));
            }
            if lacks_values(&column, field) {
                return Err(bad(&"it has nulls"));
            }
            columns.push(column);
        }
        Ok(Self { columns })
    }

    fn column(&self, name: &str) -> &ArrayRef {
        static PLACES: LazyLock<HashMap<String, usize>> = LazyLock::new(|| {
            let schema = table_schema();
            schema.fields().iter().enumerate().map(|(i, f)| (f.name().clone(), i)).collect()
        });
        &self.columns[PLACES[name]]
    }

    fn row(&self, row: usize) -> Result<TaskResult> {
        let text = |name: &str| string(self.column(name), row);
        let number = |name: &str| self.column(name).as_primitive::<UInt64Type>().value(row);
        let id = |name: &str| -> Result<Uuid> {
            Uuid::parse_str(text(name)).map_err(|_| {
                Error::new(ErrorCode::Decode, format!("{name} {:?} is no UUID", text(name)))
            })
        };
        let errors = self.column("error").as_struct();
        let error = (errors.is_valid(row) && text("status") != "ok").then(|| {
            let code = errors.column(0).as_primitive::<Int32Type>().value(row);
            Error::new(
                ErrorCode::from_i32(code).unwrap_or(ErrorCode::Internal),
                string(errors.column(2), row),
            )
        });
        let error = match (text("status"), error) {
            ("ok", _) => None,
            ("failed", Some(error)) => Some(error),
            ("failed", None) => Some(Error::internal("failed without an error")),
            (other, _) => {
                return Err(Error::new(ErrorCode::Decode, format!("unknown status {other:?}")));
            }
        };
        let versions = self.column("versions").as_struct();
        let files = list(self.column("files"), row);
        let files = files.as_struct();
        let task_id = id("task_id")?;
        Ok(TaskResult {
            job_id: id("job_id")?,
            task_id,
            attempt_id: id("attempt_id")?,
            operation: text("operation").to_owned(),
            error: error.map(|e| e.for_task(&task_id.to_string())),
            dataset_uri: text("dataset_uri").to_owned(),
            read_version: number("read_version"),
            payload: text("payload").to_owned(),
            fragments: {
                let values = list(self.column("fragments"), row);
                (0..values.len()).map(|i| string(&values, i).to_owned()).collect()
            },
            index_segments: {
                let values = list(self.column("index_segments"), row);
                let values: &BinaryArray = values.as_binary();
                (0..values.len()).map(|i| values.value(i).to_vec()).collect()
            },
            files: (0..files.len())
                .map(|i| {
                    let base = files.column(2).as_primitive::<UInt32Type>();
                    WrittenFile {
                        path: string(files.column(0), i).to_owned(),
                        size: files.column(1).as_primitive::<UInt64Type>().value(i),
                        base: base.is_valid(i).then(|| base.value(i)),
                    }
                })
                .collect(),
            rows_in: number("rows_in"),
            rows_out: number("rows_out"),
            bytes_read: number("bytes_read"),
            bytes_written: number("bytes_written"),
            started_at: self
                .column("started_at")
                .as_primitive::<TimestampMicrosecondType>()
                .value(row),
            elapsed: self.column("elapsed").as_primitive::<DurationMicrosecondType>().value(row),
            peak_memory: number("peak_memory"),
            host: text("host").to_owned(),
            pid: self.column("pid").as_primitive::<UInt32Type>().value(row),
            versions: Versions {
                lance_tasks: string(versions.column(0), row).to_owned(),
                lance: string(versions.column(1), row).to_owned(),
                format: versions.column(2).as_primitive::<UInt32Type>().value(row),
            },
        })
    }
}

/// Nulls where there must be values; also within, where the parent is there.
fn lacks_values(array: &ArrayRef, field: &Field) -> bool {
    if !field.is_nullable() && array.null_count() > 0 {
        return true;
    }
    match field.data_type() {
        DataType::Struct(fields) => {
            let parent = array.as_struct();
            fields.iter().zip(parent.columns()).any(|(field, child)| match array.null_count() {
                0 => lacks_values(child, field),
                _ => {
                    let there = |row: &usize| parent.is_valid(*row) && child.is_null(*row);
                    !field.is_nullable() && (0..parent.len()).any(|row| there(&row))
                }
            })
        }
        DataType::List(item) => {
            let lists: &ListArray = array.as_list();
            let item = item.as_ref().clone().with_nullable(false);
            (0..lists.len()).any(|row| lacks_values(&lists.value(row), &item))
        }
        _ => false,
    }
}

fn string(array: &ArrayRef, row: usize) -> &str {
    array.as_string::<i32>().value(row)
}

fn list(array: &ArrayRef, row: usize) -> ArrayRef {
    let lists: &ListArray = array.as_list();
    lists.value(row)
}
