//! Optimize indexes: index the fragments that no segment covers yet, fold small segments into one,
//! rebuild. Each index by tasks of its own, all of them committed at once.

mod group;

use std::collections::BTreeMap;

use lance::Dataset;
use lance::index::optimize::OptimizeIndexTask;
use lance_table::format::IndexMetadata;
use roaring::RoaringBitmap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::create_index::{
    Build, Change, Coverage, Described, Expected, Given, IndexWork, Properties, check,
    check_counts, decode, fragment_bitmap, is_segment, produced, rename, segment, train_task,
    union,
};
use super::{Metrics, NewWork, Operation, Prepared, Preparing, Produced, described, upstream};
use crate::codec::Blob;
use crate::commit::{Applied, Committing};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::{EventKind, Input, Running};
use crate::job::Job;
use crate::result::TaskResult;
use crate::task::Task;
use group::{Group, built};

pub(crate) struct OptimizeIndex;

/// Index what has been added since, fold small segments, or rebuild.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizeIndexSpec {
    /// The dataset: a path or an object-store URI.
    pub uri: String,
    /// The indexes, by name. Default all.
    pub names: Option<Vec<String>>,
    /// How many of an index's last segments to fold into one with what is new. Default 0: what is new
    /// becomes segments of its own.
    pub num_indices_to_merge: Option<u64>,
    /// Build each index anew, over all fragments. Default false.
    pub retrain: Option<bool>,
    /// How many segments what is new (or all, with `retrain`) becomes. Default: by size.
    pub num_segments: Option<u64>,
    /// Rows of such a segment at most, as far as whole fragments allow.
    pub max_rows_per_segment: Option<u64>,
    /// Stored with the transaction.
    pub transaction_properties: Option<BTreeMap<String, String>>,
}

/// Indexes to be optimized, with what each needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OptimizeIndexState {
    pub indices: Vec<Target>,
    pub num_segments: Option<u64>,
    pub max_rows_per_segment: Option<u64>,
    pub transaction_properties: Properties,
}

/// One index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    pub name: String,
    pub column: String,
    pub field_id: i32,
    pub action: Action,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// New segments over fragments that none covers, with the parameters of those that are there; and
    /// over those of the last so many segments, and of segments that would give wrong rows beside them.
    Delta { build: Build, absorb: u64 },
    /// The same of a vector index, by the model of the newest segment.
    Append { absorb: u64 },
    /// One new segment in the place of the last so many, and over such fragments.
    Fold { absorb: u64 },
    /// New segments over all fragments.
    Rebuild(Build),
}

/// One task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizeIndexWork {
    /// As in a first build.
    Build(Box<IndexWork>),
    /// Lance's own task over fragments and segments.
    Lance {
        name: String,
        /// The fragments to be read.
        fragments: Vec<u32>,
        /// The fragments that the new segment covers.
        covered: Vec<u32>,
        /// Lance's `pb::IndexMetadata` of the segment whose parameters and model are taken.
        reference: Blob,
        /// And of those that are folded in.
        segments: Vec<Blob>,
    },
}

impl Operation for OptimizeIndex {
    type Spec = OptimizeIndexSpec;
    type State = OptimizeIndexState;
    type Work = OptimizeIndexWork;

    async fn prepare(
        cx: &Preparing<'_>,
        spec: OptimizeIndexSpec,
        input: Option<arrow_schema::SchemaRef>,
    ) -> Result<Prepared<OptimizeIndexState>> {
        check_counts(spec.num_segments, spec.max_rows_per_segment)?;
        let retrain = spec.retrain.unwrap_or(false);
        let absorb = spec.num_indices_to_merge.unwrap_or(0);
        if retrain && absorb > 0 {
            return Err(Error::invalid(
                "options \"retrain\" and \"num_indices_to_merge\" exclude each other",
            ));
        }
        let (uri, dataset) = cx.existing(&spec.uri, input.as_ref(), "an optimization").await?;
        let groups = Group::all(&dataset).await?;
        for name in spec.names.iter().flatten() {
            if !groups.iter().any(|group| group.name == *name) {
                let known: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
                return Err(Error::new(
                    ErrorCode::NotFound,
                    format!(
                        "option \"names\": there is no index {name:?}; the dataset has {}",
                        if known.is_empty() { "none".into() } else { known.join(", ") }
                    ),
                ));
            }
        }
        let mut indices = Vec::new();
        for group in &groups {
            let named = spec.names.as_ref().map(|names| names.contains(&group.name));
            if named == Some(false) {
                continue;
            }
            match group.target(&dataset, retrain, absorb).await {
                Ok(target) => indices.extend(target),
                // One that cannot be optimized does not keep the others from it.
                Err(error) if named.is_none() && error.code() == ErrorCode::NotSupported => {
                    tracing::warn!(index = %group.name, "left as it is: {error}");
                }
                Err(error) => return Err(error.context(format!("index {:?}", group.name))),
            }
        }
        Ok(cx.prepared(
            uri,
            &dataset,
            OptimizeIndexState {
                indices,
                num_segments: spec.num_segments,
                max_rows_per_segment: spec.max_rows_per_segment,
                transaction_properties: spec.transaction_properties,
            },
        ))
    }

    async fn stage(
        cx: &Running,
        job: &Job,
        state: &OptimizeIndexState,
        stage: u32,
        earlier: &[TaskResult],
    ) -> Result<Option<Vec<NewWork<OptimizeIndexWork>>>> {
        // What is to be committed comes from the last stage: models are trained before it.
        let trains = u32::from(state.indices.iter().any(|target| target.trains().is_some()));
        if stage > trains {
            return Ok(None);
        }
        let dataset = cx.open(&job.uri, job.pin()).await?;
        if stage < trains {
            let builds = state.indices.iter().filter_map(Target::trains);
            let given = Given::default();
            let tasks = builds.map(|b| built(train_task(&dataset, b, &given, None)));
            return Ok(Some(tasks.collect()));
        }
        let groups = Group::all(&dataset).await?;
        let mut tasks = Vec::new();
        for target in &state.indices {
            let group = groups.iter().find(|group| group.name == target.name).ok_or_else(|| {
                Error::new(
                    ErrorCode::Decode,
                    format!("the job's version has no index {:?}", target.name),
                )
            })?;
            tasks.extend(group.tasks(&dataset, state, &target.action, earlier)?);
        }
        Ok(Some(tasks))
    }

    fn memory(cx: &Running, task: &Task, work: &OptimizeIndexWork) -> u64 {
        match work {
            OptimizeIndexWork::Build(work) => work.memory(cx, task),
            OptimizeIndexWork::Lance { .. } => {
                (task.estimated_bytes.saturating_mul(2) + (64 << 20)).min(cx.memory_share())
            }
        }
    }

    async fn execute(
        cx: &Running,
        task: &Task,
        work: &OptimizeIndexWork,
        input: Option<Input>,
    ) -> Result<Produced> {
        if input.is_some() {
            return Err(Error::invalid("an optimization takes no input stream"));
        }
        let (name, fragments, reference, segments) = match work {
            OptimizeIndexWork::Build(work) => return work.execute(cx, task).await,
            OptimizeIndexWork::Lance { name, fragments, reference, segments, .. } => {
                (name, fragments, reference, segments)
            }
        };
        let segments = segments.iter().map(|s| decode(&s.0)).collect::<Result<Vec<_>>>()?;
        let lance_task = OptimizeIndexTask {
            plan_id: task.job_id,
            read_version: task.read_version,
            group: 0,
            fragments: fragments.clone(),
            reference: decode(&reference.0)?,
            num_indices_to_merge: Some(segments.len()),
            old_segments: segments,
            enable_partition_rebalancing: false,
            retrain: false,
        };
        let pinned = cx.open(&task.uri, task.pin()).await?;
        let marked = cx.marks().dataset(&pinned).await?;
        cx.event(EventKind::Stage, 0, 0, "optimize_index");
        let made = upstream::optimize(&lance_task, &marked).await?.ok_or_else(|| {
            Error::internal(format!("Lance found nothing to do for index {name:?}"))
        })?;
        let mut index = made.segment;
        // Fragments that are gone may still be in it.
        let there = fragment_bitmap(&pinned);
        index.fragment_bitmap = index.effective_fragment_bitmap(&there);
        rename(cx, &mut index);
        Ok(Produced { bytes_read: cx.marks().bytes_read(), ..produced(task, &index) })
    }

    async fn adopt(
        _cx: &Running,
        task: &Task,
        work: &OptimizeIndexWork,
        made: serde_json::Value,
    ) -> Result<Produced> {
        if let OptimizeIndexWork::Build(work) = work
            && let IndexWork::Train { .. } = work.as_ref()
        {
            return Err(Error::invalid("a training task is not adopted: execute it"));
        }
        let segment: Described = described("index segment (pylance's Index)", made)?;
        Ok(produced(task, &segment.into()))
    }

    fn verify(
        state: &OptimizeIndexState,
        task: Option<&Task>,
        work: Option<&OptimizeIndexWork>,
        result: &TaskResult,
    ) -> Result<()> {
        let (Some(task), Some(work)) = (task, work) else {
            return Err(Error::new(ErrorCode::Verification, "the result is of no task of the job"));
        };
        let name = match work {
            OptimizeIndexWork::Build(work) => &work.build().name,
            OptimizeIndexWork::Lance { name, .. } => name,
        };
        let target = state.indices.iter().find(|target| target.name == *name).ok_or_else(|| {
            Error::new(ErrorCode::Verification, format!("the job is not about index {name:?}"))
        })?;
        match work {
            OptimizeIndexWork::Build(work) => work.verify(task, target.field_id, result),
            OptimizeIndexWork::Lance { covered, segments, .. } => {
                let covered: RoaringBitmap = covered.iter().copied().collect();
                let expected = Expected {
                    name,
                    field_id: target.field_id,
                    kind: None,
                    fragments: Some(&covered),
                    folded: !segments.is_empty(),
                };
                check(result, Some(task), &expected)
            }
        }
    }

    async fn commit(
        cx: &Committing<'_>,
        job: &Job,
        state: &OptimizeIndexState,
        winners: &[TaskResult],
    ) -> Result<Applied> {
        if winners.is_empty() {
            return Ok(Applied { metrics: Metrics::new(), nothing: true });
        }
        if !winners.iter().all(is_segment) {
            return Err(Error::new(
                ErrorCode::Incomplete,
                "models are trained, no segment is built",
            ));
        }
        let live = cx.dataset().await?;
        let pinned = cx.running.open(&job.uri, job.pin()).await?;
        let (before, now) = (Group::all(&pinned).await?, Group::all(&live).await?);
        let mut by_name: BTreeMap<String, Vec<IndexMetadata>> = BTreeMap::new();
        for winner in winners {
            let segment = segment(winner)?;
            by_name.entry(segment.name.clone()).or_default().push(segment);
        }
        let (mut all, mut coverage) = (Change::default(), Coverage::default());
        all.read_version = u64::MAX;
        for (name, segments) in by_name {
            let target = state.indices.iter().find(|target| target.name == name);
            let target = target.ok_or_else(|| {
                Error::new(ErrorCode::Verification, format!("the job is not about index {name:?}"))
            })?;
            let planned = union(segments.iter().filter_map(|s| s.fragment_bitmap.clone()));
            let was = before.iter().find(|group| group.name == name);
            let is = now.iter().find(|group| group.name == name);
            target.check_unchanged(&pinned, &live, (was, is), &planned)?;
            let change = Change::of(cx, &name, &target.column, segments).await?;
            coverage.add(&pinned, &live, &planned, &change.covered(&live));
            all.read_version = all.read_version.min(change.read_version);
            all.new.extend(change.new);
            all.removed.extend(change.removed);
        }
        let names: std::collections::BTreeSet<_> = all.new.iter().map(|i| &i.name).collect();
        let (indices, replaced) = (names.len() as u64, all.removed.len() as u64);
        let properties = cx.properties(state.transaction_properties.as_ref());
        let read_version = all.read_version;
        cx.apply(all.operation(), read_version, properties, |builder| builder).await?;
        let mut metrics = coverage.metrics();
        metrics.extend([
            ("indices".into(), indices),
            ("segments".into(), winners.len() as u64),
            ("segments_replaced".into(), replaced),
            ("bytes_written".into(), winners.iter().map(|r| r.bytes_written).sum()),
            ("tasks".into(), winners.len() as u64),
        ]);
        Ok(Applied { metrics, nothing: false })
    }

    fn label(work: &OptimizeIndexWork) -> Option<String> {
        match work {
            OptimizeIndexWork::Build(work) => {
                work.label().or_else(|| Some(work.build().name.clone()))
            }
            OptimizeIndexWork::Lance { name, .. } => Some(name.clone()),
        }
    }
}

impl Target {
    /// The build whose model is trained first.
    fn trains(&self) -> Option<&Build> {
        match &self.action {
            Action::Rebuild(build) if build.vectors.is_some() => Some(build),
            _ => None,
        }
    }

    /// The index is still the one that the job was planned for.
    fn check_unchanged(
        &self,
        pinned: &Dataset,
        live: &Dataset,
        (was, is): (Option<&Group>, Option<&Group>),
        planned: &RoaringBitmap,
    ) -> Result<()> {
        let version = pinned.manifest.version;
        let again = |what: String| {
            Err(Error::new(
                ErrorCode::RetryableConflict,
                format!(
                    "index {:?} {what} since version {version}; prepare the job again",
                    self.name
                ),
            ))
        };
        let (Some(was), Some(is)) = (was, is) else { return again("was dropped".into()) };
        if is.segments.iter().any(|s| s.keyed_field() != Some(self.field_id)) {
            return again("was made anew over another column".into());
        }
        let clings = match &self.action {
            Action::Delta { build, .. } | Action::Rebuild(build) => build.kind.clings(),
            Action::Append { .. } | Action::Fold { .. } => false,
        };
        if clings
            && live.manifest.uses_stable_row_ids()
            && !planned.is_subset(&fragment_bitmap(live))
        {
            return again("lost fragments to another commit".into());
        }
        let has = |group: &Group, uuid| group.segments.iter().any(|s| s.uuid == uuid);
        let new: Vec<_> = is.segments.iter().filter(|s| !has(was, s.uuid)).collect();
        let (then, now) = (fragment_bitmap(pinned), fragment_bitmap(live));
        let replaced: Vec<_> = was
            .segments
            .iter()
            .filter(|s| {
                let covered = s.effective_fragment_bitmap(&then);
                covered.is_none_or(|covered| !covered.is_disjoint(planned))
            })
            .collect();
        // A segment may keep its name where its rows move; it must still be replaced as a whole.
        let stays = |old: &IndexMetadata| {
            let Some(there) = is.segments.iter().find(|s| s.uuid == old.uuid) else { return true };
            let covered = there.effective_fragment_bitmap(&now);
            covered.is_some_and(|covered| !covered.is_subset(planned))
        };
        if replaced.iter().any(|old| stays(old)) || (!replaced.is_empty() && !new.is_empty()) {
            return again("got other segments by another commit".into());
        }
        let taken = union(new.iter().filter_map(|s| s.fragment_bitmap.clone()));
        match (taken & planned).min() {
            Some(id) => again(format!("got fragment {id} by another commit")),
            None => Ok(()),
        }
    }
}
