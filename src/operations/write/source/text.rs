//! CSV and newline-delimited JSON: one pass from begin to end.

use std::sync::Arc;

use arrow_csv::reader::Format as CsvFormat;
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use futures::StreamExt;

use super::super::spec::{Format, SourceSpec};
use super::store::SourceFile;
use super::{Batches, Reading, in_order, project};
use crate::error::{Error, ErrorCode, Result};

const CHUNK: u64 = 4 << 20;
const BATCH_ROWS: usize = 8192;
/// How much of the first file is looked at to find the types.
const SAMPLE: u64 = 4 << 20;

pub(super) fn delimiter(spec: &SourceSpec, files: &[SourceFile]) -> Result<u8> {
    match spec.delimiter.as_deref().map(str::as_bytes) {
        Some([one]) => Ok(*one),
        Some(_) => Err(Error::invalid(format!(
            "source {}: delimiter {:?} is not one byte",
            spec.uri,
            spec.delimiter.as_deref().unwrap_or_default()
        ))),
        None if files.iter().all(|f| f.uri.ends_with(".tsv")) => Ok(b'\t'),
        None => Ok(b','),
    }
}

fn bad(format: Format, error: &ArrowError) -> Error {
    let name = if format == Format::Csv { "CSV" } else { "JSON" };
    Error::new(ErrorCode::Source, format!("not readable as {name}: {error}"))
}

fn csv_format(reading: &Reading) -> CsvFormat {
    CsvFormat::default().with_header(reading.has_header).with_delimiter(reading.delimiter)
}

/// Names and types: from the first file's begin, and where the dataset has a column of the name, from
/// there.
pub(super) async fn infer(
    file: &SourceFile,
    reading: &Reading,
    target: Option<&SchemaRef>,
) -> Result<SchemaRef> {
    let sample = file.range(0..SAMPLE).await?;
    let whole = sample.len() as u64 == file.size;
    let cut = if whole {
        sample.len()
    } else {
        sample.iter().rposition(|b| *b == b'\n').map_or(sample.len(), |i| i + 1)
    };
    let sample = &sample[..cut];
    let format = reading.format;
    let found = match format {
        Format::Csv => {
            let mut csv = csv_format(reading);
            if let Some(null) = &reading.null_value {
                csv = csv.with_null_regex(null_regex(null)?);
            }
            csv.infer_schema(sample, None).map(|(schema, _)| schema)
        }
        _ => arrow_json::reader::infer_json_schema(std::io::BufReader::new(sample), None)
            .map(|(schema, _)| schema),
    }
    .map_err(|e| bad(format, &e))?;
    // Without a header the columns are the dataset's, in its order.
    let by_place = format == Format::Csv && !reading.has_header;
    let fields = found.fields().iter().enumerate().map(|(place, field)| {
        let known = match target {
            Some(target) if by_place => target.fields().get(place).map(|f| f.as_ref()),
            Some(target) => target.field_with_name(field.name()).ok(),
            None => None,
        };
        let name = known.map_or(field.name(), |known| known.name());
        let data_type = match (known, field.data_type()) {
            (Some(known), _) => known.data_type().clone(),
            // Nothing but nulls in the sample.
            (None, DataType::Null) => DataType::Utf8,
            (None, other) => other.clone(),
        };
        Field::new(name, data_type, true)
    });
    Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
}

fn null_regex(null: &str) -> Result<regex::Regex> {
    regex::Regex::new(&format!("^({})?$", regex::escape(null)))
        .map_err(|e| Error::invalid(format!("null_value {null:?}: {e}")))
}

pub(super) async fn read(file: SourceFile, reading: &Reading) -> Result<(SchemaRef, Batches)> {
    let schema = reading
        .schema
        .as_ref()
        .ok_or_else(|| Error::new(ErrorCode::Decode, "a text source without a schema"))?;
    let schema = super::super::schema_from(schema)?;
    let rows = match reading.format {
        Format::Csv => Rows::csv(reading, &schema)?,
        _ => Rows::json(&schema)?,
    };
    // CSV is parsed as text; the aligner casts and names the value that does not fit.
    let file_schema = rows.schema();
    let delivered = project(&file_schema, reading, &file.uri)?;
    let part = {
        let delivered = delivered.clone();
        async move { Ok(batches(file, rows, delivered)) }
    };
    Ok((delivered, in_order(vec![part], 1)))
}

/// A push decoder of either format.
enum Rows {
    Csv { decoder: Box<arrow_csv::reader::Decoder>, schema: SchemaRef },
    Json { decoder: Box<arrow_json::reader::Decoder>, schema: SchemaRef },
}

impl Rows {
    fn csv(reading: &Reading, schema: &SchemaRef) -> Result<Self> {
        let fields = schema.fields().iter().map(|f| Field::new(f.name(), DataType::Utf8, true));
        let schema: SchemaRef = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let mut builder = arrow_csv::ReaderBuilder::new(schema.clone())
            .with_header(reading.has_header)
            .with_delimiter(reading.delimiter)
            .with_batch_size(BATCH_ROWS);
        if let Some(null) = &reading.null_value {
            builder = builder.with_null_regex(null_regex(null)?);
        }
        Ok(Self::Csv { decoder: Box::new(builder.build_decoder()), schema })
    }

    fn json(schema: &SchemaRef) -> Result<Self> {
        let decoder = arrow_json::ReaderBuilder::new(schema.clone())
            .with_batch_size(BATCH_ROWS)
            .with_strict_mode(true)
            .build_decoder()?;
        Ok(Self::Json { decoder: Box::new(decoder), schema: schema.clone() })
    }

    fn schema(&self) -> SchemaRef {
        match self {
            Self::Csv { schema, .. } | Self::Json { schema, .. } => schema.clone(),
        }
    }

    fn format(&self) -> Format {
        match self {
            Self::Csv { .. } => Format::Csv,
            Self::Json { .. } => Format::Json,
        }
    }

    fn decode(&mut self, bytes: &[u8]) -> Result<usize, ArrowError> {
        match self {
            Self::Csv { decoder, .. } => decoder.decode(bytes),
            Self::Json { decoder, .. } => decoder.decode(bytes),
        }
    }

    fn full(&self) -> bool {
        match self {
            Self::Csv { decoder, .. } => decoder.capacity() == 0,
            Self::Json { decoder, .. } => decoder.len() >= BATCH_ROWS,
        }
    }

    fn flush(&mut self) -> Result<Option<arrow_array::RecordBatch>, ArrowError> {
        match self {
            Self::Csv { decoder, .. } => decoder.flush(),
            Self::Json { decoder, .. } => decoder.flush(),
        }
    }
}

struct State {
    file: SourceFile,
    rows: Rows,
    at: u64,
    buffer: Bytes,
    done: u64,
    delivered: SchemaRef,
    ended: bool,
}

fn batches(file: SourceFile, rows: Rows, delivered: SchemaRef) -> Batches {
    let state = State { file, rows, at: 0, buffer: Bytes::new(), done: 0, delivered, ended: false };
    futures::stream::try_unfold(state, |mut s| async move {
        loop {
            if s.buffer.is_empty() && s.at < s.file.size {
                s.buffer = s.file.range(s.at..s.at + CHUNK).await?;
                s.at += CHUNK;
            }
            let first = s.done;
            let fail = |format: Format, e: ArrowError| {
                let error = bad(format, &e);
                let misfit = matches!(e, ArrowError::JsonError(_)) && format == Format::Json;
                let error = error
                    .context(format!("within rows {first} to {}", first + BATCH_ROWS as u64 - 1));
                if misfit { error.with_code(ErrorCode::SchemaMismatch) } else { error }
            };
            let format = s.rows.format();
            let used = s.rows.decode(&s.buffer).map_err(|e| fail(format, e))?;
            s.buffer = s.buffer.slice(used..);
            if used == 0 && s.buffer.is_empty() && s.at >= s.file.size {
                s.ended = true;
            }
            if s.rows.full() || s.ended {
                match s.rows.flush().map_err(|e| fail(format, e))? {
                    Some(batch) => {
                        s.done += batch.num_rows() as u64;
                        let places = s
                            .delivered
                            .fields()
                            .iter()
                            .map(|f| batch.schema().index_of(f.name()))
                            .collect::<Result<Vec<_>, _>>()?;
                        let batch = batch.project(&places)?;
                        return Ok(Some((batch, s)));
                    }
                    None if s.ended => return Ok(None),
                    None => {}
                }
            }
        }
    })
    .boxed()
}
