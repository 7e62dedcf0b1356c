//! Indexes over vectors: their parameters, the model that their segments share, and a segment.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::Array;
use arrow_schema::DataType;
use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance::index::vector::utils::{
    default_distance_type_for, infer_vector_dim, infer_vector_element_type,
    validate_distance_type_for,
};
use lance::index::vector::{IndexFileVersion, StageParams, VectorIndexParams};
use lance_index::pb::VectorIndexDetails;
use lance_index::pb::vector_index_details::Compression;
use lance_index::vector::bq::storage::RabitQuantizationMetadata;
use lance_index::vector::bq::{RQBuildParams, RQRotationType, validate_supported_rq_num_bits};
use lance_index::vector::hnsw::builder::HnswBuildParams;
use lance_index::vector::ivf::IvfBuildParams;
use lance_index::vector::ivf::builder::recommended_num_partitions;
use lance_index::vector::pq::PQBuildParams;
use lance_index::vector::sq::builder::SQBuildParams;
use lance_linalg::distance::DistanceType;
use lance_table::format::IndexMetadata;
use roaring::RoaringBitmap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::kind::Kind;
use super::model::{Model, Tensor};
use super::scalar::check_names;
use super::segments::Stages;
use super::{Build, Column};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;

/// Parts of the model that the user gives.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Given {
    pub ivf_centroids: Option<Tensor>,
    pub pq_codebook: Option<Tensor>,
    pub rabitq_model: Option<String>,
}

/// Lance's parameters of a vector index, all of them resolved. Those of other types are 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Vectors {
    pub metric: String,
    pub dimension: u64,
    pub num_partitions: u64,
    pub target_partition_size: Option<u64>,
    pub sample_rate: u64,
    pub max_iters: u64,
    pub streaming_sample_rate: Option<u64>,
    pub streaming_coreset_rate: Option<u64>,
    pub streaming_refine_passes: u64,
    pub num_sub_vectors: u64,
    pub num_bits: u64,
    pub kmeans_redos: u64,
    pub max_level: u64,
    pub m: u64,
    pub ef_construction: u64,
}

/// Fewer edges make graphs that fall apart; Lance refuses them too, after the training.
const MIN_HNSW_M: u64 = 4;

/// The element type of a vector column, and its dimension.
fn element(column: &Column) -> Result<(DataType, usize)> {
    let data_type = column.field.data_type();
    let checked = infer_vector_element_type(data_type)
        .and_then(|element| Ok((element, infer_vector_dim(data_type)?)));
    checked.ok().filter(|(_, dimension)| *dimension > 0).ok_or_else(|| {
        Error::invalid(format!(
            "column {:?} holds no vectors: {data_type}; a fixed-size list of float16, float32, float64 \
             or uint8 is one",
            column.path
        ))
    })
}

/// Check the column and the parameters, and resolve Lance's defaults.
pub(super) fn resolve(
    kind: Kind,
    column: &Column,
    params: &Map<String, Value>,
    given: &Given,
    rows: u64,
) -> Result<Vectors> {
    check_names(kind, params)?;
    let (element, dimension) = element(column)?;
    let floats = matches!(element, DataType::Float16 | DataType::Float32 | DataType::Float64);
    let bytes = element == DataType::UInt8 && matches!(kind, Kind::IvfFlat | Kind::IvfHnswFlat);
    let path = &column.path;
    if !floats && !bytes {
        return Err(Error::new(
            ErrorCode::NotSupported,
            format!("column {path:?}: {} takes no vectors of {element}", kind.name()),
        ));
    }
    let number = |name: &str, default: usize| match params.get(name) {
        None | Some(Value::Null) => Ok(default as u64),
        Some(value) => value.as_u64().filter(|n| *n > 0).ok_or_else(|| {
            Error::invalid(format!("parameter {name:?}: {value} is no positive number"))
        }),
    };
    let optional = |name: &str| match params.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => number(name, 0).map(Some),
    };
    let ivf = IvfBuildParams::default();
    let metric = match params.get("metric") {
        None | Some(Value::Null) => default_distance_type_for(&element),
        Some(Value::String(name)) => {
            DistanceType::try_from(name.to_lowercase().as_str()).map_err(|_| {
                Error::invalid(format!(
                    "parameter \"metric\": {name:?} is not among l2, cosine, dot, hamming"
                ))
            })?
        }
        Some(other) => {
            return Err(Error::invalid(format!("parameter \"metric\": {other} is no text")));
        }
    };
    validate_distance_type_for(metric, &element).map_err(|_| {
        Error::invalid(format!("parameter \"metric\": {metric} is not for vectors of {element}"))
    })?;
    if matches!(column.field.data_type(), DataType::List(_)) && metric != DistanceType::Cosine {
        return Err(Error::invalid(format!(
            "parameter \"metric\": column {path:?} holds several vectors per row, which are compared \
             by \"cosine\" only"
        )));
    }
    let sample_rate = number("sample_rate", ivf.sample_rate)?;
    let mut vectors = Vectors {
        metric: metric.to_string(),
        dimension: dimension as u64,
        num_partitions: 0,
        target_partition_size: optional("target_partition_size")?,
        sample_rate,
        max_iters: number("max_iters", ivf.max_iters)?,
        streaming_sample_rate: optional("streaming_sample_rate")?,
        streaming_coreset_rate: optional("streaming_coreset_rate")?,
        streaming_refine_passes: optional("streaming_refine_passes")?.unwrap_or(0),
        num_sub_vectors: 0,
        num_bits: 0,
        kmeans_redos: 0,
        max_level: 0,
        m: 0,
        ef_construction: 0,
    };
    if vectors.streaming_coreset_rate.is_some_and(|rate| rate > sample_rate) {
        return Err(Error::invalid(format!(
            "parameter \"streaming_coreset_rate\" is over \"sample_rate\", {sample_rate}"
        )));
    }
    if kind.has_hnsw() {
        let hnsw = HnswBuildParams::default();
        vectors.max_level = number("max_level", hnsw.max_level.into())?;
        vectors.m = number("m", hnsw.m)?;
        vectors.ef_construction = number("ef_construction", hnsw.ef_construction)?;
        if vectors.max_level > u64::from(u16::MAX) {
            return Err(Error::invalid("parameter \"max_level\" is over 65535"));
        }
        if vectors.m < MIN_HNSW_M || vectors.m > vectors.ef_construction {
            return Err(Error::invalid(format!(
                "parameter \"m\": {} is not between {MIN_HNSW_M} and \"ef_construction\", {}",
                vectors.m, vectors.ef_construction
            )));
        }
    }
    if kind.has_pq() {
        resolve_pq(&mut vectors, params, &number)?;
    }
    if kind.has_sq() {
        vectors.num_bits = number("num_bits", SQBuildParams::default().num_bits.into())?;
        if vectors.num_bits != 8 {
            return Err(Error::invalid("parameter \"num_bits\": scalar quantization has 8"));
        }
    }
    if kind == Kind::IvfRq {
        vectors.num_bits = number("num_bits", RQBuildParams::default().num_bits.into())?;
        let bits = u8::try_from(vectors.num_bits).unwrap_or(u8::MAX);
        validate_supported_rq_num_bits(bits)
            .map_err(|e| Error::from(e).context("parameter \"num_bits\""))?;
        if !dimension.is_multiple_of(8) {
            return Err(Error::invalid(format!(
                "column {path:?}: its dimension, {dimension}, is not divisible by 8, as IVF_RQ needs"
            )));
        }
    }
    check_given(kind, &vectors, given, &element)?;
    vectors.num_partitions = partitions(kind, &vectors, optional("num_partitions")?, given, rows)?;
    Ok(vectors)
}

fn resolve_pq(
    vectors: &mut Vectors,
    params: &Map<String, Value>,
    number: &impl Fn(&str, usize) -> Result<u64>,
) -> Result<()> {
    let pq = PQBuildParams::default();
    vectors.num_sub_vectors = number("num_sub_vectors", pq.num_sub_vectors)?;
    vectors.num_bits = number("num_bits", pq.num_bits)?;
    vectors.kmeans_redos = number("kmeans_redos", pq.kmeans_redos)?;
    if !matches!(vectors.num_bits, 4 | 8) {
        return Err(Error::invalid(format!(
            "parameter \"num_bits\": {}; product quantization has 4 or 8",
            vectors.num_bits
        )));
    }
    if vectors.num_bits == 4 && !vectors.num_sub_vectors.is_multiple_of(2) {
        return Err(Error::invalid(format!(
            "parameter \"num_sub_vectors\": {} is odd, and two codes of 4 bits make a byte",
            vectors.num_sub_vectors
        )));
    }
    if !vectors.dimension.is_multiple_of(vectors.num_sub_vectors) {
        let default = if params.contains_key("num_sub_vectors") { "" } else { " (the default)" };
        return Err(Error::invalid(format!(
            "parameter \"num_sub_vectors\": {}{default} does not divide the column's dimension, {}",
            vectors.num_sub_vectors, vectors.dimension
        )));
    }
    Ok(())
}

/// The parts that the user gives fit the type and the column.
fn check_given(kind: Kind, vectors: &Vectors, given: &Given, element: &DataType) -> Result<()> {
    let dimension = vectors.dimension as usize;
    if let Some(centroids) = &given.ivf_centroids {
        centroids.rows(dimension, element).map_err(|e| e.context("option \"ivf_centroids\""))?;
    }
    if let Some(codebook) = &given.pq_codebook {
        if !kind.has_pq() {
            return Err(Error::invalid(format!(
                "option \"pq_codebook\": {} has no product quantization",
                kind.name()
            )));
        }
        if given.ivf_centroids.is_none() {
            return Err(Error::invalid(
                "option \"pq_codebook\" needs \"ivf_centroids\" too: it is of vectors relative to them",
            ));
        }
        codebook
            .codebook(vectors.codebook_shape(), element)
            .map_err(|e| e.context("option \"pq_codebook\""))?;
    }
    if let Some(model) = &given.rabitq_model {
        if kind != Kind::IvfRq {
            return Err(Error::invalid(format!(
                "option \"rabitq_model\": {} has no RaBitQ",
                kind.name()
            )));
        }
        rotation(model, vectors).map_err(|e| e.context("option \"rabitq_model\""))?;
    }
    Ok(())
}

fn rotation(model: &str, vectors: &Vectors) -> Result<RabitQuantizationMetadata> {
    let metadata: RabitQuantizationMetadata =
        serde_json::from_str(model).map_err(|e| Error::invalid(e.to_string()))?;
    let signs = metadata.fast_rotation_signs.as_ref().is_some_and(|signs| !signs.is_empty());
    if metadata.rotation_type != RQRotationType::Fast || !signs {
        return Err(Error::invalid("it has no fast rotation, and no other survives as JSON"));
    }
    if u64::from(metadata.num_bits) != vectors.num_bits
        || metadata.rotated_dim() as u64 != vectors.dimension
    {
        return Err(Error::invalid(format!(
            "it is for {} bits and dimension {}, the index has {} and {}",
            metadata.num_bits,
            metadata.rotated_dim(),
            vectors.num_bits,
            vectors.dimension
        )));
    }
    Ok(metadata)
}

/// How many partitions are asked for. How many the vectors are enough for, the training finds out.
fn partitions(
    kind: Kind,
    vectors: &Vectors,
    requested: Option<u64>,
    given: &Given,
    rows: u64,
) -> Result<u64> {
    let codes = 1u64 << vectors.num_bits.min(32);
    if vectors.trains_codes(kind, given) && rows < codes {
        return Err(Error::invalid(format!(
            "the fragments hold {rows} rows; product quantization with {} bits needs {codes} to learn \
             from",
            vectors.num_bits
        )));
    }
    if rows == 0 && given.ivf_centroids.is_none() {
        return Err(Error::invalid("the fragments hold no rows to learn partitions from"));
    }
    if let Some(centroids) = &given.ivf_centroids {
        let count = centroids.num_rows();
        return match requested {
            Some(requested) if requested != count => Err(Error::invalid(format!(
                "parameter \"num_partitions\" is {requested}, option \"ivf_centroids\" has {count} rows"
            ))),
            _ => Ok(count),
        };
    }
    let default_size = kind.lance().target_partition_size() as u64;
    let size = vectors.target_partition_size.unwrap_or(default_size);
    let recommended = recommended_num_partitions(rows as usize, size as usize) as u64;
    Ok(requested.unwrap_or(recommended))
}

impl Vectors {
    /// Whether only one segment over the whole table is right. Lance encodes vectors for product
    /// quantization by the least distance there, and for a part of the table by the largest inner
    /// product, where that is the metric: codes that say nothing.
    pub(crate) fn whole_only(&self, kind: Kind) -> bool {
        kind.has_pq() && self.metric == DistanceType::Dot.to_string()
    }

    /// Whether a codebook is trained.
    pub(super) fn trains_codes(&self, kind: Kind, given: &Given) -> bool {
        kind.has_pq() && given.pq_codebook.is_none()
    }

    pub(super) fn metric(&self) -> Result<DistanceType> {
        Ok(DistanceType::try_from(self.metric.as_str())?)
    }

    pub(super) fn codebook_shape(&self) -> [usize; 3] {
        let sub_vectors = (self.num_sub_vectors as usize).max(1);
        [sub_vectors, 1 << self.num_bits.min(16), self.dimension as usize / sub_vectors]
    }

    pub(super) fn ivf(&self, num_partitions: u64) -> IvfBuildParams {
        IvfBuildParams {
            num_partitions: Some(num_partitions as usize),
            target_partition_size: self.target_partition_size.map(|n| n as usize),
            sample_rate: self.sample_rate as usize,
            max_iters: self.max_iters as usize,
            streaming_sample_rate: self.streaming_sample_rate.map(|n| n as usize),
            streaming_coreset_rate: self.streaming_coreset_rate.map(|n| n as usize),
            streaming_refine_passes: self.streaming_refine_passes as usize,
            ..Default::default()
        }
    }

    pub(super) fn pq(&self) -> PQBuildParams {
        PQBuildParams {
            num_sub_vectors: self.num_sub_vectors as usize,
            num_bits: self.num_bits as usize,
            kmeans_redos: self.kmeans_redos as usize,
            sample_rate: self.sample_rate as usize,
            max_iters: self.max_iters as usize,
            codebook: None,
        }
    }

    /// Lance's parameters, with the model.
    fn lance(&self, kind: Kind, model: &Model) -> Result<VectorIndexParams> {
        let mut ivf = self.ivf(model.centroids.len() as u64);
        ivf.centroids = Some(Arc::new(model.centroids.clone()));
        let mut stages = vec![StageParams::Ivf(ivf)];
        if kind.has_hnsw() {
            stages.push(StageParams::Hnsw(HnswBuildParams {
                max_level: self.max_level as u16,
                m: self.m as usize,
                ef_construction: self.ef_construction as usize,
                ..Default::default()
            }));
        }
        if kind.has_pq() {
            stages.push(StageParams::PQ(PQBuildParams {
                codebook: model.codebook.clone(),
                ..self.pq()
            }));
        }
        if kind.has_sq() {
            stages.push(StageParams::SQ(SQBuildParams {
                num_bits: self.num_bits as u16,
                sample_rate: self.sample_rate as usize,
            }));
        }
        if kind == Kind::IvfRq {
            let mut rq = RQBuildParams::new(self.num_bits as u8);
            let model = model.rabitq.as_deref().ok_or_else(|| {
                Error::new(ErrorCode::Decode, "the model has no rotation, which IVF_RQ needs")
            })?;
            rq.rotation = Some(rotation(model, self)?);
            stages.push(StageParams::RQ(rq));
        }
        Ok(VectorIndexParams {
            stages,
            metric_type: self.metric()?,
            version: IndexFileVersion::V3,
            skip_transpose: false,
            runtime_hints: HashMap::new(),
        })
    }

    /// Vectors that training draws.
    pub(super) fn sample(&self, kind: Kind) -> u64 {
        let codes = if kind.has_pq() { 1 << self.num_bits.min(32) } else { 0 };
        let rate = self.streaming_sample_rate.unwrap_or(self.sample_rate).min(self.sample_rate);
        (self.num_partitions.saturating_mul(rate)).max(codes * self.sample_rate)
    }
}

/// A vector index's type and parameters as its details tell them; `None` where they do not.
fn told(index: &IndexMetadata) -> Option<(Kind, Map<String, Value>)> {
    let details = index.index_details.as_ref().filter(|any| !any.value.is_empty())?;
    let details = details.to_msg::<VectorIndexDetails>().ok()?;
    let mut params = Map::new();
    let metric = lance_index::pb::VectorMetricType::try_from(details.metric_type).ok()?;
    params.insert("metric".into(), DistanceType::from(metric).to_string().into());
    if details.target_partition_size > 0 {
        params.insert("target_partition_size".into(), details.target_partition_size.into());
    }
    if let Some(hnsw) = &details.hnsw_index_config {
        params.insert("m".into(), hnsw.max_connections.into());
        params.insert("ef_construction".into(), hnsw.construction_ef.into());
        params.insert("max_level".into(), hnsw.max_level.into());
    }
    let kind = match (&details.hnsw_index_config, &details.compression) {
        (hnsw, Some(Compression::Pq(pq))) => {
            params.insert("num_bits".into(), pq.num_bits.into());
            params.insert("num_sub_vectors".into(), pq.num_sub_vectors.into());
            if hnsw.is_some() { Kind::IvfHnswPq } else { Kind::IvfPq }
        }
        (Some(_), Some(Compression::Sq(_))) => Kind::IvfHnswSq,
        (None, Some(Compression::Sq(_))) => Kind::IvfSq,
        (None, Some(Compression::Rq(rq))) => {
            params.insert("num_bits".into(), rq.num_bits.into());
            Kind::IvfRq
        }
        (Some(_), Some(Compression::Flat(_)) | None) => Kind::IvfHnswFlat,
        (None, Some(Compression::Flat(_)) | None) => Kind::IvfFlat,
        _ => return None,
    };
    Some((kind, params))
}

/// The parameters of an index that is there, from its details; `None` where they do not tell.
pub(crate) fn derive(
    index: &IndexMetadata,
    column: &Column,
    rows: u64,
) -> Result<Option<(Kind, Vectors)>> {
    let Some((kind, params)) = told(index) else { return Ok(None) };
    let vectors = resolve(kind, column, &params, &Given::default(), rows)?;
    Ok(Some((kind, vectors)))
}

/// Check what a segment, which another client may have made, says of itself.
pub(super) fn check_segment(build: &Build, vectors: &Vectors, index: &IndexMetadata) -> Result<()> {
    let Some((kind, params)) = told(index) else { return Ok(()) };
    let number = |name: &str, expected: u64| {
        params.get(name).and_then(Value::as_u64).is_none_or(|given| given == expected)
    };
    let metric = params.get("metric").and_then(Value::as_str).unwrap_or_default();
    let same = kind == build.kind
        && metric == vectors.metric
        && number("num_bits", vectors.num_bits)
        && number("num_sub_vectors", vectors.num_sub_vectors);
    if same {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::Verification,
        format!(
            "the segment is of an {} with metric {metric:?} and {}, the job's is an {} with metric {:?}",
            kind.name(),
            Value::Object(params.clone()),
            build.kind.name(),
            vectors.metric
        ),
    ))
}

const MIN_MEMORY: u64 = 64 << 20;

/// Bytes that a segment over so many rows holds: batches on their way to the partitions, and then the
/// partitions being built.
pub(super) fn memory(cx: &Running, build: &Build, vectors: &Vectors, rows: u64) -> u64 {
    let row = vectors.dimension * 4;
    let reading = rows.min(8 * 8192) * row * 2;
    let stored = match build.kind {
        kind if kind.has_pq() => vectors.num_sub_vectors + 8,
        kind if kind.has_sq() => vectors.dimension + 8,
        Kind::IvfRq => vectors.dimension * vectors.num_bits / 8 + 32,
        _ => row + 8,
    };
    let graph = if build.kind.has_hnsw() { vectors.m * 16 + row } else { 0 };
    let partition = (rows / vectors.num_partitions.max(1) + 1) * (stored + graph) * 2;
    (MIN_MEMORY + reading + partition * cx.threads() as u64).max(MIN_MEMORY)
}

/// Build one segment, uncommitted, by way of a dataset that gives new files their marked names.
pub(super) async fn build(
    cx: &Running,
    dataset: &mut Dataset,
    build: &Build,
    vectors: &Vectors,
    model: &Model,
    fragments: &RoaringBitmap,
) -> Result<IndexMetadata> {
    let params = vectors.lance(build.kind, model)?;
    Ok(dataset
        .create_index_builder(&[&build.column], build.kind.lance(), &params)
        .name(build.name.clone())
        .replace(true)
        .fragments(fragments.iter().collect())
        .progress(Arc::new(Stages(cx.clone())))
        .execute_uncommitted()
        .await?)
}
