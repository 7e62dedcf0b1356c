//! Parquet, by row group.

use std::ops::Range;
use std::sync::Arc;

use arrow_schema::SchemaRef;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::store::SourceFile;
use super::{Batches, Piece, Reading, changed, in_order, project};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;

/// Decoded bytes that a batch should have: enough to encode well, little enough to hold a few.
const BATCH_BYTES: u64 = 4 << 20;

struct Reader(SourceFile);

impl AsyncFileReader for Reader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        async move { self.0.range(range).await.map_err(external) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, parquet::errors::Result<Arc<ParquetMetaData>>> {
        async move {
            let size = self.0.size;
            let metadata = ParquetMetaDataReader::new()
                .with_prefetch_hint(Some(64 << 10))
                .load_and_finish(&mut *self, size)
                .await?;
            Ok(Arc::new(metadata))
        }
        .boxed()
    }
}

fn external(error: Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

fn failed(error: ParquetError) -> Error {
    if let ParquetError::External(source) = &error
        && let Some(own) = source.downcast_ref::<Error>()
    {
        return own.clone();
    }
    Error::new(ErrorCode::Source, format!("not a readable Parquet file: {error}"))
}

async fn metadata(file: &SourceFile) -> Result<ArrowReaderMetadata> {
    ArrowReaderMetadata::load_async(&mut Reader(file.clone()), ArrowReaderOptions::new())
        .await
        .map_err(failed)
}

pub(super) async fn inspect(file: &SourceFile) -> Result<(Option<u64>, Option<SchemaRef>)> {
    let metadata = metadata(file).await?;
    let rows = metadata.metadata().file_metadata().num_rows();
    Ok((u64::try_from(rows).ok(), Some(metadata.schema().clone())))
}

pub(super) async fn read(
    running: &Running,
    file: SourceFile,
    reading: &Reading,
    piece: &Piece,
) -> Result<(SchemaRef, Batches)> {
    let metadata = metadata(&file).await?;
    let groups = metadata.metadata().row_groups();
    let counts: Vec<u64> = groups.iter().map(|g| g.num_rows().max(0) as u64).collect();
    let total: u64 = counts.iter().sum();
    if let Some(rows) = piece.file.rows
        && rows != total
    {
        return Err(changed(&file.uri, format!("{rows} rows, now {total}")));
    }
    let (first, end) = piece.rows.unwrap_or((0, total));
    let schema = project(metadata.schema(), reading, &file.uri)?;
    let mask = match &reading.columns {
        Some(columns) => {
            ProjectionMask::columns(metadata.parquet_schema(), columns.iter().map(String::as_str))
        }
        None => ProjectionMask::all(),
    };
    let mut parts = Vec::new();
    let mut start = 0;
    for (group, rows) in counts.iter().copied().enumerate() {
        let (from, to) = (first.max(start), end.min(start + rows));
        if from < to {
            let bytes = groups[group].total_byte_size().max(1) as u64;
            let batch = (BATCH_BYTES * rows / bytes).clamp(1, 64 << 10) as usize;
            let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(
                Reader(file.clone()),
                metadata.clone(),
            )
            .with_row_groups(vec![group])
            .with_projection(mask.clone())
            .with_batch_size(batch)
            .with_offset((from - start) as usize)
            .with_limit((to - from) as usize);
            let schema = schema.clone();
            parts.push(async move {
                let stream = builder.build().map_err(failed)?;
                // The mask keeps the file's order of columns.
                let batches = stream.map_err(failed).map(move |batch| order(batch?, &schema));
                Ok(batches.boxed())
            });
        }
        start += rows;
    }
    Ok((schema, in_order(parts, running.threads())))
}

fn order(batch: arrow_array::RecordBatch, schema: &SchemaRef) -> Result<arrow_array::RecordBatch> {
    if batch.schema().fields() == schema.fields() {
        return Ok(batch);
    }
    let places = schema
        .fields()
        .iter()
        .map(|f| batch.schema().index_of(f.name()))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(batch.project(&places)?)
}
