//! Another Lance dataset, by fragment.

use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef};
use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance_arrow::FieldExt;
use lance_core::datatypes::BlobHandling;

use super::super::spec::{Format, SourceSpec};
use super::{Batches, File, Piece, Reading, Resolved, Source, changed, in_order, unreadable};
use crate::dataset::{Pin, not_found};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;

/// Of payloads, in a batch.
const BATCH_BYTES: u64 = 8 << 20;

pub(super) async fn resolve(running: &Running, spec: &SourceSpec, uri: &str) -> Result<Resolved> {
    let options = &running.call.storage_options;
    let dataset = match spec.version {
        Some(version) => running.open(uri, Pin { version, timestamp: 0 }).await,
        None => match running.datasets().open_latest(uri, options).await {
            Ok(Some(dataset)) => Ok(Arc::new(dataset)),
            Ok(None) => Err(not_found(uri)),
            Err(error) => Err(error),
        },
    }
    .map_err(|e| e.context(format!("source {uri}")))?;
    let pin = Pin::of(&dataset);
    let reading = Reading {
        format: Format::Lance,
        columns: spec.columns.clone(),
        version: Some((pin.version, pin.timestamp)),
        filter: spec.filter.clone(),
        delimiter: b',',
        has_header: true,
        null_value: None,
        schema: None,
    };
    let schema = scan(&dataset, &reading, None)?.schema().await.map_err(Error::from);
    let schema = schema
        .map_err(|e| e.with_code(ErrorCode::InvalidArgument).context(format!("source {uri}")))?;
    let mut files = Vec::new();
    for fragment in dataset.get_fragments() {
        // A filter's share is known only by running it.
        let rows = match &reading.filter {
            Some(_) => None,
            None => Some(fragment.count_rows(None).await? as u64),
        };
        let size = fragment
            .metadata()
            .files
            .iter()
            .filter_map(|f| f.file_size_bytes.get())
            .map(u64::from)
            .sum();
        files.push(File { uri: uri.to_owned(), size, rows, fragment: Some(fragment.id() as u64) });
    }
    let schema = stripped(&schema, &Schema::from(dataset.schema()));
    Ok(Resolved { source: Source { reading, files }, schema })
}

/// The other dataset's own metadata is not this one's business, but that a column is of blobs is, of
/// which a scan shows bytes.
fn stripped(scanned: &Schema, stored: &Schema) -> SchemaRef {
    fn marked(field: &FieldRef, stored: &Field) -> FieldRef {
        let data_type = match (field.data_type(), stored.data_type()) {
            _ if stored.is_blob() => {
                return Arc::new(field.as_ref().clone().with_metadata(stored.metadata().clone()));
            }
            (DataType::Struct(fields), DataType::Struct(like)) => DataType::Struct(
                fields
                    .iter()
                    .map(|f| like.find(f.name()).map_or(f.clone(), |l| marked(f, l.1)))
                    .collect(),
            ),
            (DataType::List(item), DataType::List(like)) => DataType::List(marked(item, like)),
            (DataType::LargeList(item), DataType::LargeList(like)) => {
                DataType::LargeList(marked(item, like))
            }
            _ => return field.clone(),
        };
        Arc::new(field.as_ref().clone().with_data_type(data_type))
    }
    let fields = scanned.fields().iter().map(|field| match stored.fields().find(field.name()) {
        Some((_, like)) => marked(field, like),
        None => field.clone(),
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn scan(
    dataset: &Arc<Dataset>,
    reading: &Reading,
    piece: Option<&Piece>,
) -> Result<lance::dataset::scanner::Scanner> {
    let mut scan = dataset.scan();
    if let Some(columns) = &reading.columns {
        scan.project(columns)?;
    }
    if let Some(filter) = &reading.filter {
        scan.filter(filter)?;
    }
    if let Some(piece) = piece {
        let fragment = piece.file.fragment.and_then(|id| dataset.get_fragment(id as usize));
        let fragment =
            fragment.ok_or_else(|| changed(&piece.file.uri, "a fragment is gone".into()))?;
        scan.with_fragments(vec![fragment.metadata().clone()]);
        if let Some((first, end)) = piece.rows {
            scan.limit(Some((end - first) as i64), Some(first as i64))?;
        }
    }
    if dataset.schema().fields_pre_order().any(|f| f.is_blob()) {
        // Descriptors mean nothing in another dataset.
        scan.blob_handling(BlobHandling::AllBinary);
        scan.batch_size_bytes(BATCH_BYTES);
    }
    scan.scan_in_order(true);
    Ok(scan)
}

pub(super) async fn read(
    running: &Running,
    reading: &Reading,
    piece: &Piece,
) -> Result<(SchemaRef, Batches)> {
    let uri = piece.file.uri.clone();
    let (version, timestamp) = reading
        .version
        .ok_or_else(|| Error::new(ErrorCode::Decode, "a Lance source without a version"))?;
    let dataset = running
        .open(&uri, Pin { version, timestamp })
        .await
        .map_err(|e| e.context(format!("source {uri}")))?;
    let scan = scan(&dataset, reading, Some(piece))?;
    let scanned = scan.schema().await.map_err(Error::from)?;
    let schema = stripped(&scanned, &Schema::from(dataset.schema()));
    let part = async move {
        let batches = scan.try_into_stream().await.map_err(|e| unreadable(&uri, e.into()))?;
        Ok(batches.map_err(move |e| unreadable(&uri, e.into())).boxed())
    };
    Ok((schema, in_order(vec![part], 1)))
}
