//! Training: what the segments of a vector index share, from a sample of the column.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, Float64Type};
use arrow_array::{Array, ArrayRef, FixedSizeListArray, Float32Array, UInt32Array};
use arrow_schema::DataType;
use lance::Dataset;
use lance::index::vector::utils::{filter_finite_training_data, infer_vector_element_type};
use lance_index::vector::bq::builder::RabitQuantizer;
use lance_index::vector::ivf::builder::recommended_num_partitions;
use lance_index::vector::ivf::new_ivf_transformer;
use lance_index::vector::ivf::storage::IvfModel;
use lance_index::vector::pq::{PQBuildParams, ProductQuantizer};
use lance_index::vector::quantizer::{Quantization, QuantizerBuildParams};
use lance_linalg::distance::DistanceType;
use lance_table::format::Fragment;
use roaring::RoaringBitmap;

use super::Build;
use super::codebook::{Codebook, Random};
use super::kind::Kind;
use super::model::Model;
use super::segments::{Stages, chosen, total};
use super::vector::{Given, Vectors};
use crate::error::{Error, Result};
use crate::executor::{EventKind, Running};
use crate::operations::upstream;

/// What training holds beside the sample.
const MIN_MEMORY: u64 = 64 << 20;

/// Bytes that training holds: the sample as it is read, and as it is worked on.
pub(super) fn memory(build: &Build, vectors: &Vectors, rows: u64) -> u64 {
    let sample = vectors.sample(build.kind).min(rows.max(1));
    sample.saturating_mul(vectors.dimension * 4).saturating_mul(3).saturating_add(MIN_MEMORY)
}

/// Bytes of the vectors that training draws, for the centroids and for the codebook.
pub(super) fn bytes_read(build: &Build, vectors: &Vectors, given: &Given, rows: u64) -> u64 {
    if let Some(size) = shared_sample(vectors, build.kind, given) {
        return (size as u64).min(rows).saturating_mul(vectors.dimension * 4);
    }
    let codes = if vectors.trains_codes(build.kind, given) { 1 << vectors.num_bits } else { 0 };
    let partitions = if given.ivf_centroids.is_none() { vectors.num_partitions } else { 0 };
    let drawn = [partitions, codes].map(|n: u64| n.saturating_mul(vectors.sample_rate).min(rows));
    drawn.iter().sum::<u64>().saturating_mul(vectors.dimension * 4)
}

/// Train what was not given on a sample that Lance draws across the fragments; all of them where none
/// are named.
pub(super) async fn train(
    cx: &Running,
    dataset: &Dataset,
    build: &Build,
    vectors: &Vectors,
    given: &Given,
    fragments: Option<&[u32]>,
) -> Result<Model> {
    let (kind, column, metric) = (build.kind, build.column.as_str(), vectors.metric()?);
    let field = dataset.schema().field(column).ok_or_else(|| {
        Error::invalid(format!("there is no column {column:?} in the task's version"))
    })?;
    let element = infer_vector_element_type(&field.data_type())?;
    let dimension = vectors.dimension as usize;
    let stages = Arc::new(Stages(cx.clone()));
    let sample = match shared_sample(vectors, kind, given) {
        Some(size) => Some(draw(dataset, column, size, fragments).await?),
        None => None,
    };
    let ivf = match (&given.ivf_centroids, &sample) {
        (Some(centroids), _) => IvfModel::new(centroids.rows(dimension, &element)?, None),
        (None, sample) => {
            let count = supported(dataset, build, vectors, given, fragments).await?;
            let params = vectors.ivf(count);
            let size = (count.saturating_mul(vectors.sample_rate)) as usize;
            match sample {
                Some(drawn) => {
                    let part = drawn.slice(0, size.min(drawn.len()));
                    upstream::train_ivf_on(part, metric, &params, stages).await?
                }
                None => {
                    upstream::train_ivf(
                        dataset, column, dimension, metric, &params, fragments, stages,
                    )
                    .await?
                }
            }
        }
    };
    let centroids = ivf.centroids.clone();
    let centroids = centroids.ok_or_else(|| Error::internal("an IVF model without centroids"))?;
    let codebook = match (&given.pq_codebook, kind.has_pq()) {
        (_, false) => None,
        (Some(codebook), true) => Some(codebook.codebook(vectors.codebook_shape(), &element)?),
        (None, true) => {
            cx.event(EventKind::Stage, 0, 0, "train_quantizer");
            let params = vectors.pq();
            let size = params.try_sample_size()?;
            let mut sample = match sample {
                Some(drawn) => drawn.slice(0, size.min(drawn.len())),
                None => draw(dataset, column, size, fragments).await?,
            };
            if metric == DistanceType::Cosine {
                sample = lance_linalg::kernels::normalize_fsl_owned(sample)?;
                sample = filter_finite_training_data(sample)?;
            }
            if PQBuildParams::use_residual(metric) {
                let ivf = new_ivf_transformer(centroids.clone(), DistanceType::L2, vec![]);
                sample = ivf.compute_residual(&sample)?;
            }
            let codes = 1usize << params.num_bits;
            if sample.len() < codes {
                return Err(Error::invalid(format!(
                    "column {column:?} holds {} vectors that are neither null nor infinite; product \
                     quantization with {} bits needs {codes} to learn from",
                    sample.len(),
                    params.num_bits
                )));
            }
            Some(train_codebook(&sample, vectors, &params)?)
        }
    };
    let rabitq = match (&given.rabitq_model, kind) {
        (Some(model), _) => Some(model.clone()),
        (None, Kind::IvfRq) => Some(new_rotation(vectors, &element)?),
        (None, _) => None,
    };
    Ok(Model { centroids, codebook, rabitq })
}

/// Vectors to draw at once for the centroids and for the codebook; `None` where they are not both trained
/// on one sample.
fn shared_sample(vectors: &Vectors, kind: Kind, given: &Given) -> Option<usize> {
    let both = given.ivf_centroids.is_none() && vectors.trains_codes(kind, given);
    let whole = vectors.streaming_sample_rate.is_none_or(|rate| rate >= vectors.sample_rate);
    (both && whole).then(|| vectors.sample(kind) as usize)
}

/// Vectors that are neither null nor infinite, in random order: whoever takes the first of them has a
/// sample too.
async fn draw(
    dataset: &Dataset,
    column: &str,
    size: usize,
    fragments: Option<&[u32]>,
) -> Result<FixedSizeListArray> {
    let drawn = upstream::sample(dataset, column, size, fragments).await?;
    let drawn = filter_finite_training_data(drawn)?;
    let mut random = Random::new();
    let mut order: Vec<u32> = (0..drawn.len() as u32).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, random.below(i as u64 + 1) as usize);
    }
    let shuffled = arrow_select::take::take(&drawn, &UInt32Array::from(order), None)?;
    Ok(shuffled.as_fixed_size_list().clone())
}

fn train_codebook(
    sample: &FixedSizeListArray,
    vectors: &Vectors,
    params: &PQBuildParams,
) -> Result<ArrayRef> {
    let element = sample.value_type();
    if element == DataType::Float64 {
        let quantizer = ProductQuantizer::build(sample, DistanceType::L2, params)?;
        return Ok(quantizer.codebook.values().clone());
    }
    let codebook = Codebook {
        dimension: vectors.dimension as usize,
        num_sub_vectors: params.num_sub_vectors,
        codes: 1 << params.num_bits,
        max_iters: params.max_iters,
        redos: params.kmeans_redos,
    };
    let from = sample.value_offset(0) as usize;
    let values = sample.values().slice(from, sample.len() * codebook.dimension);
    let values = arrow_cast::cast(&values, &DataType::Float32)?;
    let values = values.as_primitive::<Float32Type>().values();
    let trained = codebook.train(values, Random::new().next());
    Ok(arrow_cast::cast(&Float32Array::from(trained), &element)?)
}

/// A random rotation, as Lance writes one down.
fn new_rotation(vectors: &Vectors, element: &DataType) -> Result<String> {
    let (bits, dimension) = (vectors.num_bits as u8, vectors.dimension as i32);
    let quantizer = match element {
        DataType::Float16 => RabitQuantizer::new::<Float16Type>(bits, dimension),
        DataType::Float64 => RabitQuantizer::new::<Float64Type>(bits, dimension),
        _ => RabitQuantizer::new::<Float32Type>(bits, dimension),
    };
    Ok(serde_json::to_string(&quantizer.metadata(None))?)
}

/// How many of them to train, as Lance has it for a build over the whole table: a partition that a
/// handful of vectors made prunes nothing, where codes are lossy.
async fn supported(
    dataset: &Dataset,
    build: &Build,
    vectors: &Vectors,
    given: &Given,
    fragments: Option<&[u32]>,
) -> Result<u64> {
    let requested = vectors.num_partitions;
    let Some(field) = dataset.schema().field(&build.column) else { return Ok(requested) };
    if matches!(field.data_type(), DataType::List(_)) {
        return Ok(requested);
    }
    let lossy = vectors.trains_codes(build.kind, given);
    let each = if lossy { vectors.sample_rate } else { 1 };
    let ids: Option<RoaringBitmap> = fragments.map(|ids| ids.iter().copied().collect());
    let rows = total(&chosen(dataset, ids.as_ref()));
    // Looking for nulls reads the column: where more than half would have to be, they are not looked for.
    let enough = requested.saturating_mul(each);
    if rows >= enough.saturating_mul(2) || (rows >= enough && !field.nullable) {
        return Ok(requested);
    }
    let mut scanner = dataset.scan();
    scanner.filter(&format!("{} IS NOT NULL", build.column))?;
    scanner.project::<&str>(&[])?.with_row_id();
    if let Some(ids) = &ids {
        let wanted = |f: &&Fragment| ids.contains(f.id as u32);
        let fragments = dataset.fragments().iter().filter(wanted).cloned().collect();
        scanner.with_fragments(fragments);
    }
    let found = scanner.count_rows().await?;
    if found >= enough {
        return Ok(requested);
    }
    let most = if lossy {
        recommended_num_partitions(found as usize, each as usize) as u64
    } else {
        found.max(1)
    };
    Ok(requested.min(most))
}
