//! Where rows come from: files of four formats and other datasets. `resolve` lists and counts them at
//! prepare; `read` streams a piece in a task.

mod ipc;
mod lance;
mod parquet;
mod store;
mod text;

use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spec::{Format, SourceSpec};
use crate::codec::Blob;
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use store::SourceFile;

pub(super) type Batches = BoxStream<'static, Result<RecordBatch>>;

/// How the files of one source are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reading {
    pub format: Format,
    pub columns: Option<Vec<String>>,
    /// Lance: the pinned version and when it was made.
    pub version: Option<(u64, u64)>,
    /// Lance: an SQL filter.
    pub filter: Option<String>,
    /// CSV.
    pub delimiter: u8,
    /// CSV.
    pub has_header: bool,
    /// CSV.
    pub null_value: Option<String>,
    /// CSV and JSON: the schema found at prepare, as Arrow IPC bytes.
    pub schema: Option<Blob>,
}

/// One file, or one fragment of a dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct File {
    pub uri: String,
    /// Bytes on disk; checked again before reading.
    pub size: u64,
    /// Rows, where known beforehand.
    pub rows: Option<u64>,
    /// Lance: the fragment.
    pub fragment: Option<u64>,
}

/// A source as prepare found it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Source {
    pub reading: Reading,
    pub files: Vec<File>,
}

/// What a task reads of one file: all of it, or some of its rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Piece {
    /// The place of the file's reading in the task's list.
    pub reading: u32,
    pub file: File,
    /// The first row, and the row behind the last; none = all.
    pub rows: Option<(u64, u64)>,
}

/// A source and its schema.
pub(super) struct Resolved {
    pub source: Source,
    pub schema: SchemaRef,
}

/// List a source's files, count their rows where that is cheap, and find the schema.
///
/// # Errors
/// Names the source where nothing is there, or the file that cannot be read.
pub(super) async fn resolve(
    running: &Running,
    spec: &SourceSpec,
    target: Option<&SchemaRef>,
) -> Result<Resolved> {
    let uri = crate::dataset::normalize("source", &spec.uri)?;
    if spec.format == Some(Format::Lance) || (spec.format.is_none() && uri.ends_with(".lance")) {
        refuse(
            spec,
            &[
                ("delimiter", spec.delimiter.is_some()),
                ("has_header", spec.has_header.is_some()),
                ("null_value", spec.null_value.is_some()),
            ],
            "csv",
        )?;
        return lance::resolve(running, spec, &uri).await;
    }
    refuse(
        spec,
        &[("version", spec.version.is_some()), ("filter", spec.filter.is_some())],
        "lance",
    )?;
    let files = store::list(running, spec, &uri).await?;
    let format = store::format(spec, &files)?;
    if format != Format::Csv {
        refuse(
            spec,
            &[
                ("delimiter", spec.delimiter.is_some()),
                ("has_header", spec.has_header.is_some()),
                ("null_value", spec.null_value.is_some()),
            ],
            "csv",
        )?;
    }
    let mut reading = Reading {
        format,
        columns: spec.columns.clone(),
        version: None,
        filter: None,
        delimiter: text::delimiter(spec, &files)?,
        has_header: spec.has_header.unwrap_or(true),
        null_value: spec.null_value.clone(),
        schema: None,
    };
    let opened = futures::stream::iter(files.into_iter().map(|file| {
        let reading = reading.clone();
        async move {
            let (rows, schema) = match format {
                Format::Parquet => parquet::inspect(&file).await,
                Format::Arrow => ipc::inspect(&file).await,
                Format::Csv | Format::Json => Ok((None, None)),
                Format::Lance => Err(Error::internal("not a file")),
            }
            .map_err(|e| unreadable(&file.uri, e))?;
            let entry = File { uri: file.uri.clone(), size: file.size, rows, fragment: None };
            let schema = schema.map(|s| project(&s, &reading, &file.uri)).transpose()?;
            Ok::<_, Error>((entry, schema, file))
        }
    }))
    .buffered(32)
    .try_collect::<Vec<_>>()
    .await?;
    let mut schema: Option<SchemaRef> = None;
    for (entry, found, _) in &opened {
        let Some(found) = found else { continue };
        if let Some(target) = target {
            super::align::Aligner::new(found, target).map_err(|e| e.context(&entry.uri))?;
        }
        schema.get_or_insert_with(|| found.clone());
    }
    let schema = match (schema, opened.first()) {
        (Some(schema), _) => schema,
        (None, Some((_, _, file))) => {
            let schema =
                text::infer(file, &reading, target).await.map_err(|e| unreadable(&file.uri, e))?;
            reading.schema = Some(super::schema_bytes(&schema)?);
            // Rows are read whole and projected: the file's own columns say what is in each place.
            project(&schema, &reading, &file.uri)?
        }
        (None, None) => return Err(Error::internal("a source without files")),
    };
    let files = opened.into_iter().map(|(entry, _, _)| entry).collect();
    Ok(Resolved { source: Source { reading, files }, schema })
}

fn refuse(spec: &SourceSpec, options: &[(&str, bool)], only: &str) -> Result<()> {
    match options.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(Error::invalid(format!(
            "source {}: option {name:?} is for {only} sources only",
            spec.uri
        ))),
        None => Ok(()),
    }
}

/// Say which file it was; what the storage said keeps its code.
fn unreadable(uri: &str, error: Error) -> Error {
    let storage = matches!(
        error.code(),
        ErrorCode::Io
            | ErrorCode::Credentials
            | ErrorCode::SchemaMismatch
            | ErrorCode::Cancelled
            | ErrorCode::DeadlineExceeded
            | ErrorCode::VersionGone
            | ErrorCode::BudgetExceeded
    );
    let error = error.context(format!("source file {uri}"));
    if storage { error } else { error.with_code(ErrorCode::Source) }
}

fn project(schema: &Schema, reading: &Reading, uri: &str) -> Result<SchemaRef> {
    let Some(columns) = &reading.columns else { return Ok(SchemaRef::new(schema.clone())) };
    let fields = columns
        .iter()
        .map(|name| {
            schema.fields().find(name).map(|(_, f)| f.clone()).ok_or_else(|| {
                let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
                Error::invalid(format!(
                    "source {uri} has no column {name:?}, it has {}",
                    names.join(", ")
                ))
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(SchemaRef::new(Schema::new_with_metadata(fields, schema.metadata().clone())))
}

/// A piece's rows in order, and its file's schema.
pub(super) async fn read(
    running: &Running,
    reading: &Reading,
    piece: &Piece,
) -> Result<(SchemaRef, Batches)> {
    if reading.format == Format::Lance {
        return lance::read(running, reading, piece).await;
    }
    let uri = piece.file.uri.clone();
    let file = SourceFile::open(running, &uri).await.map_err(|e| unreadable(&uri, e))?;
    if file.size != piece.file.size {
        return Err(changed(&uri, format!("{} bytes, now {}", piece.file.size, file.size)));
    }
    let (schema, batches) = match reading.format {
        Format::Parquet => parquet::read(running, file, reading, piece).await,
        Format::Arrow => ipc::read(running, file, reading, piece).await,
        Format::Csv | Format::Json => text::read(file, reading).await,
        Format::Lance => Err(Error::internal("not a file")),
    }
    .map_err(|e| unreadable(&uri, e))?;
    Ok((schema, batches.map_err(move |e| unreadable(&uri, e)).boxed()))
}

fn changed(uri: &str, how: String) -> Error {
    Error::new(
        ErrorCode::Source,
        format!(
            "source file {uri} has changed since the job was prepared ({how}); prepare it again"
        ),
    )
}

/// Run the parts of a file side by side, a few ahead, and yield their batches in order. Each part's
/// work happens on the runtime's threads, not in the reader of the stream.
fn in_order<F>(parts: Vec<F>, ahead: usize) -> Batches
where
    F: Future<Output = Result<Batches>> + Send + 'static,
{
    futures::stream::iter(parts)
        .map(|part| async move {
            let (sender, receiver) = tokio::sync::mpsc::channel(2);
            let task = tokio::spawn(async move {
                let mut batches = match part.await {
                    Ok(batches) => batches,
                    Err(error) => {
                        let _ = sender.send(Err(error)).await;
                        return;
                    }
                };
                while let Some(batch) = batches.next().await {
                    if sender.send(batch).await.is_err() {
                        return;
                    }
                }
            });
            // Ends with the stream; a panic inside must not read as the end of the file.
            let task = AbortOnDrop(task);
            futures::stream::unfold(Some((receiver, task)), |state| async move {
                let (mut receiver, mut task) = state?;
                match receiver.recv().await {
                    Some(batch) => Some((batch, Some((receiver, task)))),
                    None => match (&mut task.0).await {
                        Ok(()) => None,
                        Err(error) => {
                            Some((Err(Error::internal(format!("reading: {error}"))), None))
                        }
                    },
                }
            })
        })
        .buffered(ahead.max(1))
        .flatten()
        .boxed()
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
