//! Blobs in a compaction. Lance's own would read every row's payload and write it again; here Lance
//! rewrites the other columns, and each new fragment gets a second data file with the blob columns, whose
//! payloads are copied, each once however many rows share it.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Schema, SchemaRef};
use futures::TryStreamExt;
use lance::Dataset;
use lance::dataset::optimize::{CompactionMetrics, CompactionOptions, RewriteResult};
use lance::dataset::{WriteMode, WriteParams};
use lance::deps::datafusion::physical_plan::SendableRecordBatchStream;
use lance::index::DatasetIndexExt;
use lance_arrow::FieldExt;
use lance_core::ROW_ADDR;
use lance_core::datatypes::Schema as LanceSchema;
use lance_file::version::ConcreteFileVersion;
use lance_table::format::{DataFile, Fragment};
use roaring::RoaringTreemap;

use crate::blob::copy::{Copier, Lying, Origins, Stored};
use crate::blob::fields::{Leaf, any, is_blob, leaves, prepared_schema, supports};
use crate::blob::sidecar::Sidecars;
use crate::blob::values::{collect, replace};
use crate::blob::writer::Waiting;
use crate::dataset::{bases_of, store_params};
use crate::error::{Error, Result};
use crate::executor::Running;
use crate::operations::write::file::{DataFiles, Target};
use crate::operations::write::staging::Staging;
use crate::result::WrittenFile;
use crate::task::Task;

/// Rows of descriptors that are read at once.
const ROWS: usize = 4096;

/// The dataset without its blob columns, and with them alone.
pub(super) struct Split {
    rest: LanceSchema,
    blobs: LanceSchema,
}

/// The same dataset, of which only some columns are to be seen.
fn narrowed(dataset: &Dataset, schema: &LanceSchema) -> Dataset {
    let mut dataset = dataset.clone();
    Arc::make_mut(&mut dataset.manifest).schema = schema.clone();
    dataset
}

impl Split {
    /// `None` where Lance's own compaction is to do it: there are no blobs, or some lie in files of a
    /// version before 2.2, or would; or there is nothing else on stable row ids, which Lance carries over
    /// with the other columns.
    pub fn of(dataset: &Dataset, fragments: &[Fragment], to: ConcreteFileVersion) -> Option<Self> {
        let schema = dataset.schema();
        let arrow = Schema::from(schema);
        let (blobs, rest): (Vec<_>, Vec<_>) =
            schema.fields.iter().zip(arrow.fields()).partition(|(_, field)| any(field, &is_blob));
        let alone = rest.is_empty() && dataset.manifest.uses_stable_row_ids();
        if blobs.is_empty() || alone || !supports(to) {
            return None;
        }
        let part = |fields: Vec<(&lance_core::datatypes::Field, _)>| LanceSchema {
            fields: fields.into_iter().map(|(field, _)| field.clone()).collect(),
            metadata: schema.metadata.clone(),
        };
        let split = Self { blobs: part(blobs), rest: part(rest) };
        let ids = split.field_ids();
        let of_blobs = |file: &&DataFile| ids.iter().any(|id| file.fields.contains(id));
        let new = |file: &DataFile| {
            let (major, minor) = (file.file_major_version, file.file_minor_version);
            major == 2 && minor >= 2
        };
        fragments.iter().flat_map(|f| f.files.iter().filter(of_blobs)).all(new).then_some(split)
    }

    /// Of the blobs, in the order in which a walk meets them.
    fn field_ids(&self) -> Vec<i32> {
        self.blobs.fields_pre_order().filter(|f| f.is_blob_v2()).map(|f| f.id).collect()
    }

    /// The dataset that Lance is to compact; `None` where all columns are blobs.
    pub fn rest(&self, dataset: &Dataset) -> Option<Dataset> {
        (!self.rest.fields.is_empty()).then(|| narrowed(dataset, &self.rest))
    }

    /// What Lance would say of a rewrite of no columns, cut as Lance cuts it.
    pub async fn of_nothing(
        &self,
        dataset: &Dataset,
        fragments: &[Fragment],
        options: &CompactionOptions,
    ) -> Result<RewriteResult> {
        let live: usize = fragments.iter().filter_map(Fragment::num_rows).sum();
        let count = (live / options.target_rows_per_fragment.max(1)).max(1);
        let rows = |nth| live / count + usize::from(nth < live % count);
        let new = |nth| Fragment { physical_rows: Some(rows(nth)), ..Fragment::new(0) };
        let new_fragments: Vec<_> = (0..count).filter(|nth| rows(*nth) > 0).map(new).collect();
        let mut row_addrs = None;
        if options.defer_index_remap || !dataset.load_indices().await?.is_empty() {
            let mut live = RoaringTreemap::new();
            let mut scan = dataset.scan();
            scan.project::<&str>(&[])?.with_row_address().with_fragments(fragments.to_vec());
            let mut batches = scan.try_into_stream().await?;
            while let Some(batch) = batches.try_next().await? {
                live.extend(addresses(&batch)?);
            }
            let mut bytes = Vec::with_capacity(live.serialized_size());
            live.serialize_into(&mut bytes)?;
            row_addrs = Some(bytes);
        }
        let files = |f: &Fragment| f.files.len() + usize::from(f.deletion_file.is_some());
        Ok(RewriteResult {
            metrics: CompactionMetrics {
                fragments_removed: fragments.len(),
                fragments_added: new_fragments.len(),
                files_removed: fragments.iter().map(files).sum(),
                files_added: 0,
            },
            new_fragments,
            read_version: dataset.manifest.version,
            original_fragments: fragments.to_vec(),
            row_addrs,
        })
    }

    /// Give the new fragments of a rewrite their blobs; answers with the payloads' files.
    pub async fn add(
        &self,
        cx: &Running,
        task: &Task,
        dataset: &Arc<Dataset>,
        rewrite: &mut RewriteResult,
        options: &CompactionOptions,
        memory: u64,
    ) -> Result<Vec<WrittenFile>> {
        let fragments = &rewrite.original_fragments;
        let schema: SchemaRef = Arc::new(Schema::from(&self.blobs));
        let ids = self.field_ids();
        let origins = Origins::of(cx, &task.uri, dataset, fragments, &ids).await?;
        let rows = Rows { dataset, fragments, schema: &schema, ids: &ids, origins: &origins };
        let blobs = Blobs {
            leaves: leaves(&schema, None)?,
            prepared: Arc::new(prepared_schema(&schema)),
            shared: rows.shared().await?,
            waiting: Waiting::new(memory / 2),
            rows,
        };
        let files = self.files(cx, task, dataset, options, blobs.prepared.clone()).await?;
        rewrite.metrics.files_added += rewrite.new_fragments.len();
        blobs.write(cx, &files, &mut rewrite.new_fragments).await
    }

    async fn files(
        &self,
        cx: &Running,
        task: &Task,
        dataset: &Arc<Dataset>,
        options: &CompactionOptions,
        schema: SchemaRef,
    ) -> Result<DataFiles> {
        let mut params = WriteParams {
            mode: WriteMode::Append,
            store_params: Some(store_params(&cx.call.storage_options)),
            session: Some(cx.datasets().session()),
            data_storage_version: options
                .data_storage_version
                .or(Some(dataset.manifest.data_storage_format.lance_file_format().to_selector())),
            enable_stable_row_ids: dataset.manifest.uses_stable_row_ids(),
            allow_external_blob_outside_bases: true,
            ..Default::default()
        };
        let staging = Staging::of(&task.uri, cx.marks().mark()).map(Arc::new);
        let narrow = narrowed(dataset, &self.blobs);
        let target = match &staging {
            Some(staging) => {
                params.target_bases = Some(vec![Staging::BASE]);
                staging.dataset(&narrow)
            }
            None => cx.marks().dataset(&narrow).await?,
        };
        Ok(DataFiles {
            running: cx.clone(),
            uri: task.uri.clone(),
            job: task.job_id,
            target: Target::Dataset(Arc::new(target)),
            staging,
            params,
            bases: bases_of(dataset),
            expected: None,
            schema,
            blobs: true,
            progress: Default::default(),
            stop: Default::default(),
        })
    }
}

/// Rows that Lance's own compaction may have in memory at once, so that their payloads take at most
/// `memory` bytes; `None` where there are no blobs.
pub(super) async fn batch_size(
    dataset: &Dataset,
    fragments: &[Fragment],
    memory: u64,
) -> Result<Option<usize>> {
    let arrow = Schema::from(dataset.schema());
    let blobs = arrow.fields().iter().filter(|f| any(f, &FieldExt::is_blob));
    let names: Vec<&str> = blobs.map(|f| f.name().as_str()).collect();
    if names.is_empty() {
        return Ok(None);
    }
    let mut scan = dataset.scan();
    scan.project(&names)?;
    scan.with_fragments(fragments.to_vec());
    scan.scan_in_order(true);
    scan.batch_size(ROWS);
    let mut batches = scan.try_into_stream().await?;
    let mut sizes = Vec::new();
    while let Some(batch) = batches.try_next().await? {
        let mut rows = vec![0u64; batch.num_rows()];
        for column in batch.columns() {
            (0..rows.len()).for_each(|row| rows[row] += payload(column, row));
        }
        sizes.extend(rows);
    }
    let mut rows = ROWS;
    while rows > 1 && most(&sizes, rows) > memory {
        rows /= 2;
    }
    Ok(Some(rows))
}

/// Bytes that a row's descriptors speak of.
fn payload(array: &ArrayRef, row: usize) -> u64 {
    if array.is_null(row) {
        return 0;
    }
    let items = |values: &ArrayRef, from: usize, to: usize| {
        (from..to).map(|at| payload(values, at)).sum::<u64>()
    };
    match array.data_type() {
        DataType::Struct(_) => {
            let array = array.as_struct();
            match array.column_by_name("size").and_then(|c| c.as_primitive_opt::<UInt64Type>()) {
                Some(sizes) => sizes.value(row),
                None => array.columns().iter().map(|child| payload(child, row)).sum(),
            }
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let offsets = list.value_offsets();
            items(list.values(), offsets[row] as usize, offsets[row + 1] as usize)
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            let offsets = list.value_offsets();
            items(list.values(), offsets[row] as usize, offsets[row + 1] as usize)
        }
        DataType::LargeBinary => array.as_binary::<i64>().value(row).len() as u64,
        _ => 0,
    }
}

/// The largest sum of so many neighbours.
fn most(sizes: &[u64], rows: usize) -> u64 {
    let mut sum: u64 = sizes.iter().take(rows).sum();
    let mut most = sum;
    for (at, size) in sizes.iter().enumerate().skip(rows) {
        sum = sum + size - sizes[at - rows];
        most = most.max(sum);
    }
    most
}

/// The blob columns of the rows that stay.
struct Rows<'a> {
    dataset: &'a Arc<Dataset>,
    fragments: &'a [Fragment],
    schema: &'a SchemaRef,
    ids: &'a [i32],
    origins: &'a Origins,
}

impl Rows<'_> {
    /// Their descriptors, in order, and their addresses.
    async fn scan(&self) -> Result<SendableRecordBatchStream> {
        let mut scan = self.dataset.scan();
        let names: Vec<&str> = self.schema.fields().iter().map(|f| f.name().as_str()).collect();
        scan.project(&names)?;
        scan.with_fragments(self.fragments.to_vec());
        scan.with_row_address();
        scan.scan_in_order(true);
        scan.batch_size(ROWS);
        Ok(scan.try_into_stream().await?.into())
    }

    /// The sizes of payloads that several rows share.
    async fn shared(&self) -> Result<HashSet<u64>> {
        let (mut all, mut shared) = (HashSet::<Lying>::new(), HashSet::new());
        let mut batches = self.scan().await?;
        while let Some(batch) = batches.try_next().await.map_err(failed)? {
            let addresses = addresses(&batch)?;
            let (_, values) = collect(self.schema, &batch)?;
            for (values, id) in values.iter().zip(self.ids) {
                let column = Stored::new(values, *id, &addresses)?;
                for at in 0..column.len() {
                    if let Some(lying) = column.lying(self.origins, at)?
                        && !all.insert(lying)
                    {
                        shared.insert(lying.size);
                    }
                }
            }
        }
        Ok(shared)
    }
}

fn failed(error: lance::deps::datafusion::error::DataFusionError) -> Error {
    Error::from(lance::Error::from(error))
}

fn addresses(batch: &RecordBatch) -> Result<Vec<u64>> {
    let addresses = batch
        .column_by_name(ROW_ADDR)
        .and_then(|column| column.as_primitive_opt::<UInt64Type>())
        .ok_or_else(|| Error::internal("a scan without row addresses"))?;
    Ok(addresses.values().to_vec())
}

struct Blobs<'a> {
    rows: Rows<'a>,
    leaves: Vec<Leaf>,
    prepared: SchemaRef,
    shared: HashSet<u64>,
    waiting: Waiting,
}

impl Blobs<'_> {
    /// A data file for each fragment, of as many rows.
    async fn write(
        &self,
        cx: &Running,
        files: &DataFiles,
        fragments: &mut [Fragment],
    ) -> Result<Vec<WrittenFile>> {
        let mut rows = self.rows.scan().await?;
        let mut left: Option<RecordBatch> = None;
        let mut sidecars = Vec::new();
        for (nth, fragment) in fragments.iter_mut().enumerate() {
            let mut missing = fragment.physical_rows.unwrap_or(0);
            let (open, writing) = files.open(nth).await?;
            let beside =
                open.beside.clone().ok_or_else(|| Error::internal("a file without payloads"))?;
            let payloads = Sidecars::new(cx, beside);
            let mut copier = Copier::new(self.rows.origins, &self.shared, &self.waiting, payloads);
            let mut alive = true;
            while missing > 0 && alive {
                let batch = match left.take() {
                    Some(batch) => batch,
                    None => rows.try_next().await.map_err(failed)?.ok_or_else(|| {
                        Error::internal("the blob columns have fewer rows than the others")
                    })?,
                };
                let (done, batch) =
                    self.copied(&mut copier, &batch, missing).await.map(|(n, b)| {
                        left = (n < batch.num_rows()).then(|| batch.slice(n, batch.num_rows() - n));
                        (n, b)
                    })?;
                missing -= done;
                let mut held = copier.held();
                held.extend(self.waiting.take(1, 0).await?);
                alive = open.feed(batch, held);
            }
            open.close(Some(copier.sidecars));
            let made =
                writing.await.map_err(|e| Error::internal(format!("a writer ended: {e}")))??;
            let written: usize = made.fragments.iter().filter_map(|f| f.physical_rows).sum();
            if Some(written) != fragment.physical_rows {
                return Err(Error::internal(format!(
                    "{written} rows of blobs were written for {:?} rows",
                    fragment.physical_rows
                )));
            }
            fragment.files.extend(made.fragments.into_iter().flat_map(|f| f.files));
            sidecars.extend(made.sidecars);
        }
        Ok(sidecars)
    }

    /// The first rows of a batch, at most `missing` and as many as memory allows, with their payloads
    /// copied.
    async fn copied(
        &self,
        copier: &mut Copier<'_>,
        batch: &RecordBatch,
        missing: usize,
    ) -> Result<(usize, RecordBatch)> {
        let batch = batch.slice(0, missing.min(batch.num_rows()));
        let enough = self.waiting.bytes() / 4;
        let all = addresses(&batch)?;
        let (_, values) = collect(self.rows.schema, &batch)?;
        let columns = self.columns(&values, &all)?;
        let rows = copier.rows(&columns, batch.num_rows(), enough)?;
        let batch = batch.slice(0, rows);
        let (arrays, values) = collect(self.rows.schema, &batch)?;
        let mut blobs = Vec::with_capacity(values.len());
        for (column, leaf) in self.columns(&values, &all)?.iter().zip(&self.leaves) {
            blobs.push(copier.column(column, leaf).await?);
        }
        Ok((rows, replace(&self.prepared, arrays, rows, blobs)?))
    }

    fn columns<'b>(
        &self,
        values: &'b [crate::blob::values::Values],
        addresses: &'b [u64],
    ) -> Result<Vec<Stored<'b>>> {
        values.iter().zip(self.rows.ids).map(|(v, id)| Stored::new(v, *id, addresses)).collect()
    }
}
