//! Indexes over values: their parameters, which Lance checks before anything is built, and a segment.

use std::sync::LazyLock;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt8Type;
use arrow_schema::{DataType, Field};
use futures::TryStreamExt;
use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance_datafusion::udf::json::JsonbType;
use lance_index::registry::IndexPluginRegistry;
use lance_index::scalar::{InvertedIndexParams, ScalarIndexParams};
use lance_table::format::IndexMetadata;
use roaring::RoaringBitmap;
use serde_json::{Map, Value};

use super::kind::Kind;
use super::segments::Stages;
use super::{Build, Column};
use crate::codec::Json;
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use crate::operations::upstream;

/// Parameters that count something.
const COUNTS: &[&str] = &[
    "block_size",
    "max_ngram_length",
    "memory_limit",
    "min_ngram_length",
    "num_bands",
    "num_hashes",
    "num_items",
    "num_workers",
    "number_of_items",
    "page_size",
    "rows_per_zone",
    "shingle_size",
    "zone_size",
];

/// Targets of a JSON index that Lance builds in segments.
const JSON_TARGETS: &[Kind] =
    &[Kind::Btree, Kind::Zonemap, Kind::Bloomfilter, Kind::Ngram, Kind::Fm];

/// Names that are no parameter of the type.
pub(super) fn check_names(kind: Kind, params: &Map<String, Value>) -> Result<()> {
    match params.keys().find(|name| !kind.params().any(|known| known == *name)) {
        None => Ok(()),
        Some(name) => {
            let known: Vec<&str> = kind.params().collect();
            let known = if known.is_empty() { "it has none".into() } else { known.join(", ") };
            let kind = kind.name();
            Err(Error::invalid(format!("parameter {name:?} is none of {kind}'s: {known}")))
        }
    }
}

/// Check the column and the parameters as Lance will, and resolve what the data decides.
pub(super) async fn resolve(
    dataset: &Dataset,
    kind: Kind,
    column: &Column,
    params: Map<String, Value>,
) -> Result<Map<String, Value>> {
    check_names(kind, &params)?;
    check_numbers(&params)?;
    check_column(kind, column, &params)?;
    let mut params = params;
    if kind == Kind::Json {
        resolve_json(dataset, column, &mut params).await?;
    }
    check_by_lance(kind, column, &params)?;
    Ok(params)
}

fn check_numbers(params: &Map<String, Value>) -> Result<()> {
    for (name, value) in params {
        if COUNTS.contains(&name.as_str()) && value.as_u64().is_none_or(|v| v == 0) {
            return Err(Error::invalid(format!(
                "parameter {name:?}: {value} is no positive number"
            )));
        }
        if name == "probability" && !value.as_f64().is_some_and(|p| p > 0.0 && p < 1.0) {
            return Err(Error::invalid(format!(
                "parameter {name:?}: {value} is no number between 0 and 1"
            )));
        }
    }
    Ok(())
}

/// What Lance finds out only while it builds.
fn check_column(kind: Kind, column: &Column, params: &Map<String, Value>) -> Result<()> {
    let Column { path, field, .. } = column;
    let data_type = field.data_type();
    if *data_type == DataType::Null {
        return Err(Error::invalid(format!("column {path:?}: it is of type Null, of no values")));
    }
    match kind {
        Kind::Btree if data_type.is_nested() => Err(Error::invalid(format!(
            "column {path:?}: a BTREE needs values in an order, {data_type} has none"
        ))),
        Kind::Zonemap if data_type.is_nested() => Err(Error::invalid(format!(
            "column {path:?}: a ZONEMAP needs values in an order, {data_type} has none"
        ))),
        Kind::Inverted if by_element(params) && !is_list(data_type) => {
            Err(Error::invalid(format!(
                "parameter \"document_granularity\": column {path:?} holds no lists, {data_type}"
            )))
        }
        Kind::Rtree => check_geometry(column),
        _ => Ok(()),
    }
}

fn check_geometry(Column { path, field, .. }: &Column) -> Result<()> {
    let wrong = |why: String| {
        Err(Error::invalid(format!("column {path:?}: an RTREE needs a GeoArrow geometry; {why}")))
    };
    let extension = field.metadata().get("ARROW:extension:name");
    if !extension.is_some_and(|name| name.starts_with("geoarrow.")) {
        return wrong(format!("{} is none", field.data_type()));
    }
    // What Lance will do with the column's values.
    let none = arrow_array::new_empty_array(field.data_type());
    match lance_index::scalar::rtree::extract_bounding_boxes(none.as_ref(), field) {
        Ok(_) => Ok(()),
        Err(error) => wrong(error.to_string()),
    }
}

/// Whether each element of a list is a document of its own.
pub(super) fn by_element(params: &Map<String, Value>) -> bool {
    let granularity = params.get("document_granularity").and_then(Value::as_str);
    granularity.is_some_and(|name| name.eq_ignore_ascii_case("list_element"))
}

fn is_list(data_type: &DataType) -> bool {
    matches!(data_type, DataType::List(_) | DataType::LargeList(_))
}

fn check_by_lance(kind: Kind, column: &Column, params: &Map<String, Value>) -> Result<()> {
    static PLUGINS: LazyLock<std::sync::Arc<IndexPluginRegistry>> =
        LazyLock::new(IndexPluginRegistry::with_default_plugins);
    // Lists of texts are indexed text by text.
    let field = match (kind, column.field.data_type()) {
        (Kind::Inverted, DataType::List(item) | DataType::LargeList(item)) => item.as_ref().clone(),
        _ => column.field.clone(),
    };
    let check = |field: &Field, params: &Map<String, Value>| -> Result<()> {
        let plugin = PLUGINS.get_plugin_by_name(kind.plugin())?;
        let text = serde_json::to_string(params)?;
        if let Some(trainer) = plugin.basic_trainer() {
            trainer.new_training_request(&text, field)?;
        }
        if kind == Kind::Inverted {
            let params: InvertedIndexParams = serde_json::from_str(&text)?;
            params.validate_format_version()?;
            params.build()?;
        }
        Ok(())
    };
    let Err(error) = check(&field, params) else { return Ok(()) };
    // Which of the parameters is it? Those that Lance refuses alone too.
    let culprit = params.iter().find(|(name, value)| {
        let alone = Map::from_iter([((*name).clone(), (*value).clone())]);
        kind != Kind::Json && check(&field, &Map::new()).is_ok() && check(&field, &alone).is_err()
    });
    let place = match culprit {
        Some((name, value)) => format!("parameter {name:?} = {value}"),
        None if kind != Kind::Json && check(&field, &Map::new()).is_ok() => {
            format!("the parameters of {}", kind.name())
        }
        None => format!("column {:?}: {}", column.path, kind.name()),
    };
    let code = match error.code() {
        ErrorCode::NotSupported => ErrorCode::NotSupported,
        _ => ErrorCode::InvalidArgument,
    };
    Err(error.with_code(code).context(place))
}

/// The type of a JSON index's values is pinned: Lance would infer it for each segment anew.
async fn resolve_json(
    dataset: &Dataset,
    column: &Column,
    params: &mut Map<String, Value>,
) -> Result<()> {
    let text = |params: &Map<String, Value>, name: &str| match params.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        Some(other) => Err(Error::invalid(format!("parameter {name:?}: {other} is no text"))),
        None => {
            Err(Error::invalid(format!("parameter {name:?} is missing; a JSON index needs it")))
        }
    };
    let path = text(params, "path")?;
    let target = Kind::parse(&text(params, "target_index_type")?)
        .map_err(|e| e.context("parameter \"target_index_type\""))?;
    if !JSON_TARGETS.contains(&target) {
        let known: Vec<&str> = JSON_TARGETS.iter().map(|kind| kind.name()).collect();
        return Err(Error::new(
            ErrorCode::NotSupported,
            format!(
                "parameter \"target_index_type\": Lance builds no segments of a JSON index over {}, \
                 it does over {}",
                target.name(),
                known.join(", ")
            ),
        ));
    }
    // All others answer with row addresses, which the JSON index hands on as row ids.
    if target != Kind::Ngram && dataset.manifest.uses_stable_row_ids() {
        return Err(Error::new(
            ErrorCode::NotSupported,
            format!(
                "parameter \"target_index_type\": on a dataset with stable row ids, a JSON index over \
                 {} gives wrong rows; NGRAM is right there",
                target.name()
            ),
        ));
    }
    // Queries name a key, and Lance takes the index where the texts are the same; the index would
    // read more than a key as a JSONPath, and hold other values than those asked for.
    if path.contains(['$', '.', '[', ']', '*', '@', '"', '\'', '?', '(', ' ']) {
        return Err(Error::new(
            ErrorCode::NotSupported,
            format!(
                "parameter \"path\": {path:?} is no plain key; Lance answers queries by an index over \
                 one rightly only there"
            ),
        ));
    }
    params.insert("target_index_type".into(), target.plugin().into());
    match params.get("target_index_parameters") {
        None | Some(Value::Null) => {}
        Some(Value::Object(map)) => {
            check_names(target, map)
                .and_then(|()| check_numbers(map))
                .map_err(|e| e.context("parameter \"target_index_parameters\""))?;
            // Lance takes them as text.
            let text = serde_json::to_string(map)?;
            params.insert("target_index_parameters".into(), text.into());
        }
        Some(other) => {
            return Err(Error::invalid(format!(
                "parameter \"target_index_parameters\": {other} is no object"
            )));
        }
    }
    const TYPES: [&str; 4] = ["Boolean", "Int64", "Float64", "Utf8"];
    let data_type = match params.get("target_data_type") {
        None | Some(Value::Null) => infer(dataset, column, &path).await?,
        Some(given) => TYPES
            .into_iter()
            .find(|known| given.as_str().is_some_and(|given| known.eq_ignore_ascii_case(given)))
            .ok_or_else(|| {
                Error::invalid(format!(
                    "parameter \"target_data_type\": {given} is not among {}",
                    TYPES.join(", ")
                ))
            })?,
    };
    params.insert("target_data_type".into(), data_type.into());
    Ok(())
}

/// The type of the first value at a path that is not null, over all fragments; text where there is none,
/// as Lance has it. Whole numbers before others make a column of floats only by saying so.
async fn infer(dataset: &Dataset, column: &Column, path: &str) -> Result<&'static str> {
    if !super::is_json(&column.field) {
        return Err(Error::invalid(format!(
            "column {:?}: {} is no JSON column; say \"target_data_type\"",
            column.path,
            column.field.data_type()
        )));
    }
    let mut scanner = dataset.scan();
    let tag = format!("json_extract_with_type({}, '{path}')", column.path);
    scanner.project_with_transform(&[("found", tag.as_str())])?.batch_size(1024);
    let mut batches = scanner.try_into_stream().await?;
    while let Some(batch) = batches.try_next().await? {
        let tags = batch
            .column_by_name("found")
            .and_then(|found| found.as_struct_opt())
            .and_then(|found| found.column_by_name("type_tag"))
            .and_then(|tags| tags.as_primitive_opt::<UInt8Type>().cloned())
            .ok_or_else(|| Error::internal("json_extract_with_type answered without a type_tag"))?;
        for tag in tags.iter().flatten() {
            return Ok(match JsonbType::from_u8(tag) {
                Some(JsonbType::Null) | None => continue,
                Some(JsonbType::Boolean) => "Boolean",
                Some(JsonbType::Int64) => "Int64",
                Some(JsonbType::Float64) => "Float64",
                Some(JsonbType::String) => "Utf8",
                Some(kind @ (JsonbType::Array | JsonbType::Object)) => {
                    return Err(Error::invalid(format!(
                        "parameter \"path\": {path:?} of column {:?} holds a JSON {kind:?}; only \
                         single values can be indexed",
                        column.path
                    )));
                }
            });
        }
    }
    Ok("Utf8")
}

/// Lance's parameters of an index, from its details.
pub(crate) async fn derive(
    dataset: &Dataset,
    path: &str,
    index: &IndexMetadata,
) -> Result<(Kind, Option<Json>)> {
    let opened = upstream::open_scalar(dataset, path, index).await?;
    let params = opened.derive_index_params()?;
    let url = index.index_details.as_ref().map_or("", |details| details.type_url.as_str());
    let kind = Kind::of_details(url).ok_or_else(|| {
        Error::new(
            ErrorCode::NotSupported,
            format!("index {:?} is of a type that is not known here: {url:?}", index.name),
        )
    })?;
    let params = match params.params.as_deref() {
        None | Some("") => None,
        Some(text) => Some(Json(serde_json::from_str(text)?)),
    };
    // Some say of themselves what they do not take.
    let params = params.map(|Json(map)| {
        Json(
            map.into_iter()
                .filter(|(n, v)| kind.params().any(|k| k == n) && !v.is_null())
                .collect(),
        )
    });
    Ok((kind, params.filter(|Json(map)| !map.is_empty())))
}

/// Less memory makes no progress.
const MIN_MEMORY: u64 = 16 << 20;
/// Lance's builders of inverted lists hold more than what they count.
const TEXT_OVERHEAD: u64 = 2;

/// Bytes that a segment over so many rows holds.
pub(super) fn memory(cx: &Running, build: &Build, rows: u64) -> u64 {
    if build.kind == Kind::Inverted {
        let given = build.params.as_ref().and_then(|p| p.0.get("memory_limit")?.as_u64());
        return match given {
            Some(mebibytes) => mebibytes.saturating_mul(1 << 20),
            None => (rows.saturating_mul(4096) + (64 << 20)).min(cx.memory_share()),
        }
        .max(MIN_MEMORY);
    }
    // Lance sorts the values with spilling; small segments stay in memory.
    (rows.saturating_mul(64) + (16 << 20)).min(512 << 20).min(cx.memory_share()).max(MIN_MEMORY)
}

/// Build one segment, uncommitted, by way of a dataset that gives new files their marked names.
pub(super) async fn build(
    cx: &Running,
    dataset: &mut Dataset,
    build: &Build,
    fragments: &RoaringBitmap,
    rows: u64,
) -> Result<IndexMetadata> {
    let kind = build.kind;
    let mut given = build.params.clone().map(|Json(map)| map).unwrap_or_default();
    if kind == Kind::Inverted {
        // Lance's default is 2 GiB for each of its workers.
        let limit = memory(cx, build, rows) / TEXT_OVERHEAD;
        given.entry("memory_limit").or_insert_with(|| (limit >> 20).max(1).into());
        given.entry("num_workers").or_insert_with(|| 1.into());
    }
    let params = match kind {
        Kind::Json => ScalarIndexParams::new("json".into()),
        _ => ScalarIndexParams::for_builtin(kind.lance().try_into()?),
    };
    let params = if given.is_empty() { params } else { params.with_params(&Value::Object(given)) };
    // The name may exist: whether it may be replaced was decided at prepare.
    let index = dataset
        .create_index_builder(&[&build.column], kind.lance(), &params)
        .name(build.name.clone())
        .replace(true)
        .fragments(fragments.iter().collect())
        .progress(std::sync::Arc::new(Stages(cx.clone())))
        .execute_uncommitted()
        .await?;
    if kind != Kind::Inverted {
        return Ok(index);
    }
    // Left to the commit, the coordinator would put the parts of each segment together.
    cx.event(crate::executor::EventKind::Stage, 0, 0, "finalize_segment");
    Ok(dataset.merge_existing_index_segments(vec![index]).await?)
}
