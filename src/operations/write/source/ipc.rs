//! Arrow IPC: files by record batch, streams from begin to end.

use std::sync::Arc;

use arrow_buffer::Buffer;
use arrow_ipc::convert::fb_to_schema;
use arrow_ipc::reader::{FileDecoder, StreamDecoder, read_footer_length};
use arrow_ipc::{Block, root_as_footer, root_as_message};
use arrow_schema::SchemaRef;
use futures::StreamExt;

use super::store::SourceFile;
use super::{Batches, Piece, Reading, changed, in_order, project};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;

const MAGIC: &[u8] = b"ARROW1";
const CHUNK: u64 = 4 << 20;

fn bad(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Source, format!("not a readable Arrow IPC file: {what}"))
}

/// An IPC file's layout.
struct Layout {
    schema: SchemaRef,
    decoder: Arc<FileDecoder>,
    /// Record batches with their row counts.
    batches: Vec<(Block, u64)>,
}

async fn is_file(file: &SourceFile) -> Result<bool> {
    Ok(file.range(0..MAGIC.len() as u64).await? == MAGIC)
}

async fn layout(file: &SourceFile) -> Result<Layout> {
    if file.size < 22 {
        return Err(bad(format!("{} bytes are too few", file.size)));
    }
    let tail = file.range(file.size - 10..file.size).await?;
    let length = read_footer_length(tail[..].try_into().map_err(bad)?).map_err(bad)? as u64;
    let start =
        (file.size - 10).checked_sub(length).ok_or_else(|| bad("the footer is too long"))?;
    let footer = file.range(start..file.size - 10).await?;
    let footer = root_as_footer(&footer).map_err(bad)?;
    let schema = Arc::new(fb_to_schema(footer.schema().ok_or_else(|| bad("no schema"))?));
    let mut decoder = FileDecoder::new(schema.clone(), footer.version());
    for block in footer.dictionaries().iter().flatten() {
        let data = block_bytes(file, block).await?;
        decoder.read_dictionary(block, &data).map_err(bad)?;
    }
    let mut batches = Vec::new();
    for block in footer.recordBatches().iter().flatten() {
        let (offset, length) = place(block)?;
        let message = file.range(offset..offset + block.metaDataLength().max(0) as u64).await?;
        // A continuation marker and the length, or (old writers) the length alone.
        let skip = if message.starts_with(&[0xff; 4]) { 8 } else { 4 };
        let message = root_as_message(message.get(skip..).unwrap_or_default()).map_err(bad)?;
        let rows =
            message.header_as_record_batch().ok_or_else(|| bad("a block without rows"))?.length();
        if offset + length > file.size {
            return Err(bad("a block lies behind the end of the file"));
        }
        batches.push((*block, u64::try_from(rows).map_err(bad)?));
    }
    Ok(Layout { schema, decoder: Arc::new(decoder), batches })
}

fn place(block: &Block) -> Result<(u64, u64)> {
    let offset = u64::try_from(block.offset()).map_err(bad)?;
    let body = u64::try_from(block.bodyLength()).map_err(bad)?;
    let metadata = u64::try_from(block.metaDataLength()).map_err(bad)?;
    Ok((offset, body.saturating_add(metadata)))
}

async fn block_bytes(file: &SourceFile, block: &Block) -> Result<Buffer> {
    let (offset, length) = place(block)?;
    let bytes = file.range(offset..offset.saturating_add(length)).await?;
    if bytes.len() as u64 != length {
        return Err(bad("the file ends within a block"));
    }
    Ok(Buffer::from(bytes))
}

pub(super) async fn inspect(file: &SourceFile) -> Result<(Option<u64>, Option<SchemaRef>)> {
    if is_file(file).await? {
        let layout = layout(file).await?;
        return Ok((Some(layout.batches.iter().map(|b| b.1).sum()), Some(layout.schema)));
    }
    let mut decoder = StreamDecoder::new();
    let mut at = 0;
    while decoder.schema().is_none() && at < file.size {
        let mut buffer = Buffer::from(file.range(at..at + (64 << 10)).await?);
        at += 64 << 10;
        while !buffer.is_empty() && decoder.schema().is_none() {
            decoder.decode(&mut buffer).map_err(bad)?;
        }
    }
    let schema = decoder.schema().ok_or_else(|| bad("no schema"))?;
    Ok((None, Some(schema)))
}

pub(super) async fn read(
    running: &Running,
    file: SourceFile,
    reading: &Reading,
    piece: &Piece,
) -> Result<(SchemaRef, Batches)> {
    if !is_file(&file).await? {
        let (_, schema) = inspect(&file).await?;
        let schema = schema.ok_or_else(|| bad("no schema"))?;
        let schema = project(&schema, reading, &file.uri)?;
        return Ok((schema.clone(), stream(file, schema)));
    }
    let layout = layout(&file).await?;
    let total: u64 = layout.batches.iter().map(|b| b.1).sum();
    if let Some(rows) = piece.file.rows
        && rows != total
    {
        return Err(changed(&file.uri, format!("{rows} rows, now {total}")));
    }
    let schema = project(&layout.schema, reading, &file.uri)?;
    let (first, end) = piece.rows.unwrap_or((0, total));
    let mut parts = Vec::new();
    let mut start = 0;
    for (block, rows) in layout.batches {
        let (from, to) = (first.max(start), end.min(start + rows));
        if from < to {
            let (file, decoder, schema) = (file.clone(), layout.decoder.clone(), schema.clone());
            let (offset, length) = ((from - start) as usize, (to - from) as usize);
            parts.push(async move {
                let data = block_bytes(&file, &block).await?;
                let batch = decoder
                    .read_record_batch(&block, &data)
                    .map_err(bad)?
                    .ok_or_else(|| bad("a block without rows"))?;
                if batch.num_rows() < offset + length {
                    return Err(bad("a block has fewer rows than it says"));
                }
                let batch = narrow(batch.slice(offset, length), &schema)?;
                Ok(futures::stream::iter([Ok(batch)]).boxed())
            });
        }
        start += rows;
    }
    Ok((schema, in_order(parts, running.threads())))
}

fn narrow(batch: arrow_array::RecordBatch, schema: &SchemaRef) -> Result<arrow_array::RecordBatch> {
    let places = schema
        .fields()
        .iter()
        .map(|f| batch.schema().index_of(f.name()))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(batch.project(&places)?)
}

fn stream(file: SourceFile, schema: SchemaRef) -> Batches {
    let part = async move {
        let state = (file, StreamDecoder::new(), 0u64, Buffer::from(Vec::<u8>::new()), schema);
        let batches = futures::stream::try_unfold(
            state,
            |(file, mut decoder, mut at, mut buffer, schema)| async move {
                loop {
                    if buffer.is_empty() {
                        if at >= file.size {
                            decoder.finish().map_err(bad)?;
                            return Ok(None);
                        }
                        buffer = Buffer::from(file.range(at..at + CHUNK).await?);
                        at += CHUNK;
                    }
                    if let Some(batch) = decoder.decode(&mut buffer).map_err(bad)? {
                        let batch = narrow(batch, &schema)?;
                        return Ok(Some((batch, (file, decoder, at, buffer, schema))));
                    }
                }
            },
        );
        Ok(batches.boxed())
    };
    in_order(vec![part], 1)
}
