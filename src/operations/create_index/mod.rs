//! Create an index: segments over runs of fragments, built anywhere, committed together.
//!
//! A vector index begins with a task that trains what its segments share; with `merge` a last task puts
//! the segments together.

mod codebook;
mod kind;
mod model;
mod publish;
mod scalar;
mod segments;
mod training;
mod vector;
mod work;

use arrow_schema::Field;
use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance_table::format::IndexMetadata;
use roaring::RoaringBitmap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::{Metrics, NewWork, Operation, Prepared, Preparing, Produced, described};
use crate::codec::Json;
use crate::commit::{Applied, Committing};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::{Input, Running};
use crate::job::Job;
use crate::result::TaskResult;
use crate::task::Task;

pub use kind::Kind;
pub use model::Tensor;
pub(crate) use publish::{Change, Coverage, union};
pub(crate) use scalar::derive as derive_scalar;
pub(crate) use segments::{
    Described, Expected, Rows, check, check_counts, chosen, decode, encode, fragment_bitmap,
    how_many, is_stale, produced, rewritten, runs, segment, total,
};
pub(crate) use vector::derive as derive_vectors;
pub use vector::{Given, Vectors};
pub use work::{Build, IndexWork};
pub(crate) use work::{
    Properties, is_segment, merge_task, rename, segment_tasks, train_task, trained,
};

pub(crate) struct CreateIndex;

/// Build an index over a column.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CreateIndexSpec {
    /// The dataset: a path or an object-store URI.
    pub uri: String,
    /// The column, nested ones by path (`a.b`).
    pub column: String,
    /// Lance's name of the type, in any case: `BTREE`, `INVERTED`, `IVF_PQ`.
    pub index_type: String,
    /// Default: the column's path and `_idx`.
    pub name: Option<String>,
    /// Replace an index of the same name. Default false: it is refused.
    pub replace: Option<bool>,
    /// How many segments; at most one per fragment. Default: by size.
    pub num_segments: Option<u64>,
    /// Rows of a segment at most, as far as whole fragments allow.
    pub max_rows_per_segment: Option<u64>,
    /// Build over these fragments only. Default all.
    pub fragment_ids: Option<Vec<u32>>,
    /// Merge the segments into one, by a task of its own. Default false.
    pub merge: Option<bool>,
    /// Of a vector index: its partitions' centroids, one row each. Default: trained on a sample.
    pub ivf_centroids: Option<Tensor>,
    /// Of product quantization: sub-vectors x codes x values of each. Default: trained on a sample.
    pub pq_codebook: Option<Tensor>,
    /// Of IVF_RQ: Lance's JSON of the rotation. Default: a random one.
    pub rabitq_model: Option<String>,
    /// Lance's own parameters of the type.
    pub params: Option<Json>,
    /// Stored with the transaction.
    pub transaction_properties: Option<BTreeMap<String, String>>,
}

/// An index build with its defaults resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateIndexState {
    pub build: Build,
    pub field_id: i32,
    pub num_segments: u64,
    pub fragment_ids: Option<Vec<u32>>,
    pub merge: bool,
    pub given: Given,
    pub transaction_properties: Properties,
}

/// A column of a dataset.
pub(crate) struct Column {
    /// As Lance writes it.
    pub path: String,
    pub id: i32,
    pub field: Field,
}

impl Operation for CreateIndex {
    type Spec = CreateIndexSpec;
    type State = CreateIndexState;
    type Work = IndexWork;

    async fn prepare(
        cx: &Preparing<'_>,
        spec: CreateIndexSpec,
        input: Option<arrow_schema::SchemaRef>,
    ) -> Result<Prepared<CreateIndexState>> {
        let kind = Kind::parse(&spec.index_type)?;
        check_counts(spec.num_segments, spec.max_rows_per_segment)?;
        if spec.fragment_ids.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::invalid(
                "option \"fragment_ids\" is empty; leave it out for all fragments",
            ));
        }
        let merge = spec.merge.unwrap_or(false);
        if let (true, Some(why)) = (merge, kind.unmergeable()) {
            return Err(Error::new(
                ErrorCode::NotSupported,
                format!("option \"merge\": segments of {} stay apart: {why}", kind.name()),
            ));
        }
        let (uri, dataset) = cx.existing(&spec.uri, input.as_ref(), "an index build").await?;
        let column = column(&dataset, &spec.column)?;
        if merge && kind == Kind::Inverted && is_json(&column.field) {
            return Err(Error::new(
                ErrorCode::NotSupported,
                format!(
                    "option \"merge\": Lance merges no {} segments over a JSON column, {:?}",
                    kind.name(),
                    column.path
                ),
            ));
        }
        let name = match spec.name {
            Some(name) if name.trim().is_empty() => {
                return Err(Error::invalid("option \"name\" is empty"));
            }
            Some(name) => name,
            None => default_name(&dataset, kind, &column, spec.params.as_ref()).await?,
        };
        let wanted: Option<RoaringBitmap> =
            spec.fragment_ids.as_ref().map(|ids| ids.iter().copied().collect());
        if let Some(ids) = &wanted {
            check_fragments(&dataset, ids)?;
        }
        let replace = spec.replace.unwrap_or(false);
        check_name(&dataset, &name, kind, column.id, wanted.as_ref(), replace).await?;
        let rows = total(&chosen(&dataset, wanted.as_ref()));
        let given = Given {
            ivf_centroids: spec.ivf_centroids,
            pq_codebook: spec.pq_codebook,
            rabitq_model: spec.rabitq_model,
        };
        let params = spec.params.map(|Json(map)| map).unwrap_or_default();
        let (params, vectors) = if kind.is_vector() {
            (None, Some(vector::resolve(kind, &column, &params, &given, rows)?))
        } else {
            if given != Given::default() {
                return Err(Error::invalid(format!(
                    "options \"ivf_centroids\", \"pq_codebook\" and \"rabitq_model\" are for vector \
                     indexes, not for {}",
                    kind.name()
                )));
            }
            let params = scalar::resolve(&dataset, kind, &column, params).await?;
            ((!params.is_empty()).then_some(Json(params)), None)
        };
        let mut num_segments = how_many(kind, rows, spec.num_segments, spec.max_rows_per_segment);
        if vectors.as_ref().is_some_and(|vectors| vectors.whole_only(kind)) {
            let all = dataset.manifest.fragments.len() as u64;
            let said = spec.num_segments.or(spec.max_rows_per_segment).is_some();
            let part = wanted.as_ref().is_some_and(|ids| ids.len() < all);
            if part || (said && num_segments.min(all) > 1) {
                return Err(Error::new(
                    ErrorCode::NotSupported,
                    format!(
                        "parameter \"metric\": with \"dot\", Lance builds {} rightly only in one segment \
                         over all fragments",
                        kind.name()
                    ),
                ));
            }
            num_segments = 1;
        }
        Ok(cx.prepared(
            uri,
            &dataset,
            CreateIndexState {
                build: Build { column: column.path, kind, name, params, vectors },
                field_id: column.id,
                num_segments,
                fragment_ids: spec.fragment_ids,
                merge,
                given,
                transaction_properties: spec.transaction_properties,
            },
        ))
    }

    async fn stage(
        cx: &Running,
        job: &Job,
        state: &CreateIndexState,
        stage: u32,
        earlier: &[TaskResult],
    ) -> Result<Option<Vec<NewWork<IndexWork>>>> {
        let build = &state.build;
        let trains = u32::from(build.vectors.is_some());
        if stage > trains + u32::from(state.merge) {
            return Ok(None);
        }
        let dataset = cx.open(&job.uri, job.pin()).await?;
        if stage < trains {
            let fragments = state.fragment_ids.as_deref();
            return Ok(Some(vec![train_task(&dataset, build, &state.given, fragments)]));
        }
        if stage == trains {
            let wanted: Option<RoaringBitmap> =
                state.fragment_ids.as_ref().map(|ids| ids.iter().copied().collect());
            let model = match build.vectors {
                Some(_) => Some(trained(earlier, &build.name)?),
                None => None,
            };
            let fragments = chosen(&dataset, wanted.as_ref());
            return Ok(Some(segment_tasks(build, &fragments, state.num_segments, model)));
        }
        let built: Vec<&TaskResult> = earlier.iter().filter(|r| is_segment(r)).collect();
        match built.len() {
            0 | 1 => Ok(None),
            _ => Ok(Some(vec![merge_task(build, &built)?])),
        }
    }

    fn memory(cx: &Running, task: &Task, work: &IndexWork) -> u64 {
        work.memory(cx, task)
    }

    async fn execute(
        cx: &Running,
        task: &Task,
        work: &IndexWork,
        input: Option<Input>,
    ) -> Result<Produced> {
        if input.is_some() {
            return Err(Error::invalid("an index build takes no input stream"));
        }
        work.execute(cx, task).await
    }

    async fn adopt(
        _cx: &Running,
        task: &Task,
        work: &IndexWork,
        made: serde_json::Value,
    ) -> Result<Produced> {
        if let IndexWork::Train { .. } = work {
            return Err(Error::invalid(
                "a training task is not adopted: execute it, or give the model in the spec",
            ));
        }
        let segment: Described = described("index segment (pylance's Index)", made)?;
        Ok(produced(task, &segment.into()))
    }

    fn verify(
        state: &CreateIndexState,
        task: Option<&Task>,
        work: Option<&IndexWork>,
        result: &TaskResult,
    ) -> Result<()> {
        match (task, work) {
            (Some(task), Some(work)) => work.verify(task, state.field_id, result),
            _ => {
                let build = &state.build;
                let expected = Expected {
                    name: &build.name,
                    field_id: state.field_id,
                    kind: Some(build.kind),
                    fragments: None,
                    folded: false,
                };
                check(result, None, &expected)
            }
        }
    }

    async fn commit(
        cx: &Committing<'_>,
        job: &Job,
        state: &CreateIndexState,
        winners: &[TaskResult],
    ) -> Result<Applied> {
        if winners.is_empty() {
            return Ok(Applied { metrics: Metrics::new(), nothing: true });
        }
        let name = &state.build.name;
        if !winners.iter().all(is_segment) {
            return Err(Error::new(
                ErrorCode::Incomplete,
                format!("index {name:?}: its model is trained, none of its segments is built"),
            ));
        }
        let mut segments = winners.iter().map(segment).collect::<Result<Vec<_>>>()?;
        let planned = union(segments.iter().filter_map(|s| s.fragment_bitmap.clone()));
        let live = cx.dataset().await?;
        let pinned = cx.running.open(&job.uri, job.pin()).await?;
        check_segments(cx, job, &pinned, &live, name).await?;
        if state.build.kind.clings() && live.manifest.uses_stable_row_ids() {
            // Nobody could tell later that such a segment holds more than it covers.
            let there = fragment_bitmap(&live);
            segments.retain(|s| s.fragment_bitmap.as_ref().is_some_and(|b| b.is_subset(&there)));
        }
        if segments.is_empty() {
            return Err(overtaken(name, job));
        }
        let change = Change::of(cx, name, &state.build.column, segments).await?;
        let covered = change.covered(&live);
        if covered.is_empty() && !planned.is_empty() {
            return Err(overtaken(name, job));
        }
        let mut coverage = Coverage::default();
        coverage.add(&pinned, &live, &planned, &covered);
        let properties = cx.properties(state.transaction_properties.as_ref());
        let (read_version, segments) = (change.read_version, change.new.len() as u64);
        cx.apply(change.operation(), read_version, properties, |builder| builder).await?;
        let mut metrics = coverage.metrics();
        metrics.extend([
            ("segments".into(), segments),
            ("bytes_written".into(), winners.iter().map(|r| r.bytes_written).sum()),
            ("tasks".into(), winners.len() as u64),
        ]);
        Ok(Applied { metrics, nothing: false })
    }

    fn label(work: &IndexWork) -> Option<String> {
        work.label()
    }

    fn partial(state: &CreateIndexState) -> bool {
        !state.merge
    }
}

pub(crate) fn is_json(field: &Field) -> bool {
    lance_arrow::json::is_json_field(field) || lance_arrow::json::is_arrow_json_field(field)
}

fn overtaken(name: &str, job: &Job) -> Error {
    Error::new(
        ErrorCode::RetryableConflict,
        format!(
            "index {name:?}: other commits have replaced fragments of each of its segments since version \
             {}; prepare the job again",
            job.read_version
        ),
    )
}

/// Find a column by its path, in any case.
fn column(dataset: &Dataset, name: &str) -> Result<Column> {
    if name.is_empty() {
        return Err(Error::invalid("option \"column\" is missing"));
    }
    let schema = dataset.schema();
    let path =
        schema.resolve_case_insensitive(name).filter(|p| !p.is_empty()).ok_or_else(|| {
            let names: Vec<&str> = schema.fields.iter().map(|f| f.name.as_str()).collect();
            Error::invalid(format!(
                "there is no column {name:?}; the dataset has {}",
                names.join(", ")
            ))
        })?;
    let names: Vec<&str> = path.iter().map(|f| f.name.as_str()).collect();
    let field = path[path.len() - 1];
    let path = lance_core::datatypes::format_field_path(&names);
    Ok(Column { path, id: field.id, field: field.into() })
}

/// Lance's name for an index that was given none: one of its own where another column or type has it.
async fn default_name(
    dataset: &Dataset,
    kind: Kind,
    column: &Column,
    params: Option<&Json>,
) -> Result<String> {
    let names = lance_core::datatypes::parse_field_path(&column.path)?;
    let plain = names.iter().all(|name| !name.contains('.'));
    let path = if plain { names.join(".") } else { column.path.clone() };
    let elements = params.is_some_and(|Json(params)| scalar::by_element(params));
    let base = format!("{path}{}_idx", if elements { "_list_element" } else { "" });
    let indices = dataset.load_indices().await?;
    let taken = |name: &str| {
        indices.iter().filter(|index| index.name == name).any(|index| {
            let url = index.index_details.as_ref().map(|details| details.type_url.as_str());
            let plugin = url.map(lance_index::registry::plugin_name_from_details_url);
            index.keyed_field() != Some(column.id)
                || plugin.is_some_and(|plugin| plugin != kind.plugin())
        })
    };
    let mut numbered = (2..).map(|n| format!("{base}_{n}"));
    let mut name = base.clone();
    while taken(&name) {
        name = numbered.next().unwrap_or_default();
    }
    Ok(name)
}

/// The column that an index is over.
pub(crate) fn column_of(dataset: &Dataset, index: &IndexMetadata) -> Result<Column> {
    let gone = || {
        Error::new(
            ErrorCode::NotSupported,
            format!("index {:?} is not over one column of the dataset", index.name),
        )
    };
    let id = index.keyed_field().ok_or_else(gone)?;
    let field = dataset.schema().field_by_id(id).ok_or_else(gone)?;
    Ok(Column { path: dataset.schema().field_path(id)?, id, field: field.into() })
}

/// Whether the build may take the name.
async fn check_name(
    dataset: &Dataset,
    name: &str,
    kind: Kind,
    field_id: i32,
    wanted: Option<&RoaringBitmap>,
    replace: bool,
) -> Result<()> {
    let exists = |what: &str| {
        Err(Error::new(ErrorCode::AlreadyExists, format!("index {name:?} exists{what}")))
    };
    let indices = dataset.load_indices().await?;
    let all = fragment_bitmap(dataset);
    let left = wanted.map(|wanted| &all - wanted).unwrap_or_default();
    for existing in indices.iter().filter(|index| index.name == name) {
        if existing.keyed_field() != Some(field_id) {
            return exists(" over another column; choose another name");
        }
        if !replace {
            return exists("; set replace, or choose another name");
        }
        // Lance keeps what lies beside, and replaces what is covered whole.
        let url = existing.index_details.as_ref().map_or("", |details| details.type_url.as_str());
        let covered = existing.effective_fragment_bitmap(&all);
        let same = lance_index::registry::plugin_name_from_details_url(url) == kind.plugin();
        if !left.is_empty() && (!same || covered.is_none()) {
            return Err(Error::invalid(format!(
                "option \"fragment_ids\": index {name:?} is of another type, and is replaced by a build \
                 over all fragments only"
            )));
        }
        let covered = covered.unwrap_or_default();
        if kind.clings()
            && !left.is_empty()
            && covered.is_subset(&left)
            && is_stale(dataset, existing)
        {
            return Err(Error::new(
                ErrorCode::NotSupported,
                format!(
                    "option \"fragment_ids\": segment {} of index {name:?} holds rows that have been \
                     updated or moved since, and with stable row ids would answer for them beside \
                     others; build over all fragments, or optimize the index",
                    existing.uuid
                ),
            ));
        }
        if kind.lingers()
            && covered.is_subset(&left)
            && let Some(id) = rewritten(dataset, &(&all - &left), field_id)
        {
            return Err(Error::new(
                ErrorCode::NotSupported,
                format!(
                    "option \"fragment_ids\": the column was rewritten in fragment {id}, and segment {} of \
                     index {name:?}, which stays, may hold what it was; build over all fragments, or \
                     optimize the index",
                    existing.uuid
                ),
            ));
        }
        if let Some(id) = (&covered & &left).min()
            && !covered.is_subset(&left)
        {
            return Err(Error::invalid(format!(
                "option \"fragment_ids\": segment {} of index {name:?} covers fragment {id} too; a \
                 segment is replaced whole or not at all",
                existing.uuid
            )));
        }
    }
    Ok(())
}

/// Segments of the index that have come since the job was prepared, and not by the job itself, are
/// another build of the same name.
async fn check_segments(
    cx: &Committing<'_>,
    job: &Job,
    pinned: &Dataset,
    live: &Dataset,
    name: &str,
) -> Result<()> {
    let before = pinned.load_indices().await?;
    let now = live.load_indices().await?;
    let other = now.iter().filter(|i| i.name == name).find(|i| {
        before.iter().all(|b| b.uuid != i.uuid) && !cx.own_segments().any(|uuid| uuid == i.uuid)
    });
    match other {
        None => Ok(()),
        Some(other) => Err(Error::new(
            ErrorCode::RetryableConflict,
            format!(
                "index {name:?} got segment {} by another commit since version {}; prepare the job \
                 again",
                other.uuid, job.read_version
            ),
        )),
    }
}

fn check_fragments(dataset: &Dataset, ids: &RoaringBitmap) -> Result<()> {
    match (ids - fragment_bitmap(dataset)).min() {
        Some(id) => Err(Error::invalid(format!(
            "fragment_ids: there is no fragment {id} in version {}",
            dataset.manifest.version
        ))),
        None => Ok(()),
    }
}
