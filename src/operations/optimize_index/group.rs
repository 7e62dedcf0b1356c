//! One index's segments: what they leave uncovered, what is to become of them, and by which tasks.

use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance_index::is_system_index;
use lance_table::format::IndexMetadata;
use roaring::RoaringBitmap;

use super::{Action, OptimizeIndexState, OptimizeIndexWork, Target};
use crate::error::{Error, ErrorCode, Result};
use crate::operations::NewWork;
use crate::operations::create_index::{
    Build, Column, IndexWork, Kind, Rows, chosen, column_of, derive_scalar, derive_vectors, encode,
    fragment_bitmap, how_many, is_stale, rewritten, runs, segment_tasks, total, trained, union,
};
use crate::result::TaskResult;

/// The segments of one index, in the order of the manifest.
pub(super) struct Group {
    pub name: String,
    pub segments: Vec<IndexMetadata>,
}

impl Group {
    pub async fn all(dataset: &Dataset) -> Result<Vec<Self>> {
        let mut groups: Vec<Self> = Vec::new();
        for index in dataset.load_indices().await?.iter().filter(|index| !is_system_index(index)) {
            match groups.iter_mut().find(|group| group.name == index.name) {
                Some(group) => group.segments.push(index.clone()),
                None => {
                    groups.push(Self { name: index.name.clone(), segments: vec![index.clone()] })
                }
            }
        }
        Ok(groups)
    }

    /// Fragments that none of the segments covers.
    fn uncovered(&self, dataset: &Dataset) -> RoaringBitmap {
        let there = fragment_bitmap(dataset);
        let covered = self.segments.iter().filter_map(|s| s.effective_fragment_bitmap(&there));
        &there - union(covered)
    }

    /// The last so many segments, and the fragments that they cover.
    fn last(&self, dataset: &Dataset, count: u64) -> (&[IndexMetadata], RoaringBitmap) {
        let there = fragment_bitmap(dataset);
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(self.segments.len());
        let segments = &self.segments[self.segments.len() - count..];
        let covered = segments.iter().filter_map(|s| s.effective_fragment_bitmap(&there));
        (segments, union(covered))
    }

    /// Fragments of segments that hold rows which are elsewhere by now.
    fn stale(&self, dataset: &Dataset) -> RoaringBitmap {
        let there = fragment_bitmap(dataset);
        let stale = self.segments.iter().filter(|s| is_stale(dataset, s));
        union(stale.filter_map(|s| s.effective_fragment_bitmap(&there)))
    }

    /// The newest segment that covers something: the one whose model others are built by.
    fn reference(&self, dataset: &Dataset) -> Option<&IndexMetadata> {
        let there = fragment_bitmap(dataset);
        let live = |s: &&IndexMetadata| {
            s.effective_fragment_bitmap(&there).is_some_and(|bitmap| !bitmap.is_empty())
        };
        self.segments.iter().rev().find(live)
    }

    /// What is to be done; `None` = nothing.
    pub async fn target(
        &self,
        dataset: &Dataset,
        retrain: bool,
        absorb: u64,
    ) -> Result<Option<Target>> {
        let unsupported = |what: &str| Err(Error::new(ErrorCode::NotSupported, what.to_owned()));
        let Some(newest) = self.segments.last() else { return Ok(None) };
        if self.segments.iter().any(|s| !s.covering_fields.is_empty()) {
            return unsupported("Lance rebuilds no index that carries further columns");
        }
        if self.segments.iter().any(|s| s.fragment_bitmap.is_none()) && !retrain {
            return unsupported(
                "it does not say which fragments it covers; set retrain to rebuild it",
            );
        }
        let column = column_of(dataset, newest)?;
        let new = self.uncovered(dataset);
        let absorb = absorb.min(self.segments.len() as u64);
        let nothing = if absorb > 0 { new.is_empty() && absorb < 2 } else { new.is_empty() };
        if nothing && !retrain {
            return Ok(None);
        }
        let reference = self.reference(dataset);
        // A fold is as old as the oldest of its segments, and Lance would take such fragments from it.
        let changed = rewritten(dataset, &new, column.id).is_some();
        let url = newest.index_details.as_ref().map_or("", |any| any.type_url.as_str());
        let action = if url.ends_with("VectorIndexDetails") || url.is_empty() {
            match reference {
                Some(reference) if !retrain => {
                    match vectors_action(reference, &column, absorb, changed)? {
                        Some(action) => action,
                        None => Action::Rebuild(rebuilt(dataset, reference, &column)?),
                    }
                }
                // A definition that waits for its data, or nothing left of what was indexed.
                _ => Action::Rebuild(rebuilt(dataset, newest, &column)?),
            }
        } else {
            let build = scalar_build(dataset, newest, &column).await?;
            // Lance's fold of these keeps what rows were before they were updated.
            let anew = build.kind.clings() && dataset.manifest.uses_stable_row_ids();
            let lingers = changed && build.kind.lingers();
            match absorb {
                _ if retrain || lingers || reference.is_none() => Action::Rebuild(build),
                1.. if !anew && !changed => Action::Fold { absorb },
                _ => Action::Delta { build, absorb },
            }
        };
        let (name, column, field_id) = (self.name.clone(), column.path, column.id);
        Ok(Some(Target { name, column, field_id, action }))
    }

    pub fn tasks(
        &self,
        dataset: &Dataset,
        state: &OptimizeIndexState,
        action: &Action,
        earlier: &[TaskResult],
    ) -> Result<Vec<NewWork<OptimizeIndexWork>>> {
        let count = |kind, fragments: &[Rows]| {
            how_many(kind, total(fragments), state.num_segments, state.max_rows_per_segment)
        };
        let new = self.uncovered(dataset);
        match action {
            Action::Delta { build, absorb } => {
                let (_, old) = self.last(dataset, *absorb);
                let stale =
                    if build.kind.clings() { self.stale(dataset) } else { Default::default() };
                let fragments = chosen(dataset, Some(&(&new | old | stale)));
                // What replaces segments that were asked for is one, as Lance has it.
                let segments = if *absorb > 0 { 1 } else { count(build.kind, &fragments) };
                let tasks = segment_tasks(build, &fragments, segments, None);
                Ok(tasks.into_iter().map(built).collect())
            }
            Action::Rebuild(build) => {
                let model = match build.vectors {
                    Some(_) => Some(trained(earlier, &build.name)?),
                    None => None,
                };
                let fragments = chosen(dataset, None);
                let whole = build.vectors.as_ref().is_some_and(|v| v.whole_only(build.kind));
                let segments = if whole { 1 } else { count(build.kind, &fragments) };
                let tasks = segment_tasks(build, &fragments, segments, model);
                Ok(tasks.into_iter().map(built).collect())
            }
            Action::Append { absorb } => {
                let (_, old) = self.last(dataset, *absorb);
                let fragments = chosen(dataset, Some(&(&new | old)));
                let segments = if *absorb > 0 { 1 } else { count(Kind::IvfFlat, &fragments) };
                let runs = runs(&fragments, segments);
                runs.iter().map(|run| self.lance_task(dataset, run, run, &[])).collect()
            }
            Action::Fold { absorb } => {
                let (segments, old) = self.last(dataset, *absorb);
                let read = chosen(dataset, Some(&new));
                let covered = chosen(dataset, Some(&(&new | old)));
                Ok(vec![self.lance_task(dataset, &read, &covered, segments)?])
            }
        }
    }

    fn lance_task(
        &self,
        dataset: &Dataset,
        read: &[Rows],
        covered: &[Rows],
        segments: &[IndexMetadata],
    ) -> Result<NewWork<OptimizeIndexWork>> {
        let reference = self.reference(dataset).ok_or_else(|| {
            Error::internal(format!("index {:?} has no segment to build by", self.name))
        })?;
        let ids = |fragments: &[Rows]| fragments.iter().map(|(id, _)| *id).collect();
        let sizes = segments.iter().flat_map(|s| s.files.iter().flatten());
        Ok(NewWork {
            key: None,
            rows: total(covered),
            bytes: sizes.map(|file| file.size_bytes).sum(),
            work: OptimizeIndexWork::Lance {
                name: self.name.clone(),
                fragments: ids(read),
                covered: ids(covered),
                reference: encode(reference),
                segments: segments.iter().map(encode).collect(),
            },
        })
    }
}

/// A scalar index's type and parameters.
async fn scalar_build(dataset: &Dataset, index: &IndexMetadata, column: &Column) -> Result<Build> {
    let (kind, params) = derive_scalar(dataset, &column.path, index).await?;
    let (column, name) = (column.path.clone(), index.name.clone());
    Ok(Build { column, kind, name, params, vectors: None })
}

/// A vector index's type and parameters.
fn rebuilt(dataset: &Dataset, index: &IndexMetadata, column: &Column) -> Result<Build> {
    let rows = total(&chosen(dataset, None));
    // It may wait for more rows than there are yet.
    let derived =
        derive_vectors(index, column, rows).map_err(|e| e.with_code(ErrorCode::NotSupported))?;
    let Some((kind, vectors)) = derived else {
        return Err(Error::new(
            ErrorCode::NotSupported,
            "its metadata do not tell its parameters; create it anew with replace",
        ));
    };
    let (column, name) = (column.path.clone(), index.name.clone());
    Ok(Build { column, kind, name, params: None, vectors: Some(vectors) })
}

/// What becomes of a vector index that is there; `None` = it is built anew. Codes of scalar quantization
/// have bounds of their own in each segment: vectors are encoded anew instead of merging them.
fn vectors_action(
    reference: &IndexMetadata,
    column: &Column,
    absorb: u64,
    changed: bool,
) -> Result<Option<Action>> {
    let derived = derive_vectors(reference, column, u64::MAX)?;
    Ok(match derived {
        Some((kind, vectors)) if vectors.whole_only(kind) => None,
        _ if absorb == 0 => Some(Action::Append { absorb }),
        Some((kind, _)) if !kind.has_sq() && !changed => Some(Action::Fold { absorb }),
        _ => Some(Action::Append { absorb }),
    })
}

/// A task of a first build, as one of an optimization.
pub(super) fn built(new: NewWork<IndexWork>) -> NewWork<OptimizeIndexWork> {
    NewWork {
        key: new.key,
        rows: new.rows,
        bytes: new.bytes,
        work: OptimizeIndexWork::Build(Box::new(new.work)),
    }
}
