//! Another Lance dataset, by fragment.

use std::sync::Arc;

use arrow_schema::{Schema, SchemaRef};
use futures::{StreamExt, TryStreamExt};
use lance::Dataset;

use super::super::spec::{Format, SourceSpec};
use super::{Batches, File, Piece, Reading, Resolved, Source, changed, in_order, unreadable};
use crate::dataset::{Pin, not_found};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;

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
    Ok(Resolved { source: Source { reading, files }, schema: stripped(&schema) })
}

/// The other dataset's own field metadata is not this one's business, but extensions are.
fn stripped(schema: &Schema) -> SchemaRef {
    Arc::new(Schema::new(schema.fields().clone()))
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
    let schema = stripped(scan.schema().await.map_err(Error::from)?.as_ref());
    let part = async move {
        let batches = scan.try_into_stream().await.map_err(|e| unreadable(&uri, e.into()))?;
        Ok(batches.map_err(move |e| unreadable(&uri, e.into())).boxed())
    };
    Ok((schema, in_order(vec![part], 1)))
}
