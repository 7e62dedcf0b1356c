//! The tasks of an index build: train a model, build a segment, merge segments.

use std::collections::BTreeMap;

use lance::Dataset;
use lance::index::DatasetIndexExt;
use lance_table::format::IndexMetadata;
use roaring::RoaringBitmap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::model::Model;
use super::segments::{self, Expected, Rows, chosen, decode, encode, produced, runs, total};
use super::vector::{self, Given, Vectors};
use super::{Kind, scalar, training};
use crate::codec::{Blob, Json};
use crate::dataset::Bases;
use crate::error::{Error, ErrorCode, Result};
use crate::executor::{EventKind, Running};
use crate::operations::{NewWork, Produced};
use crate::result::{TaskResult, WrittenFile};
use crate::task::Task;

/// What all segments agree on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Build {
    pub column: String,
    pub kind: Kind,
    pub name: String,
    pub params: Option<Json>,
    /// Of a vector index.
    pub vectors: Option<Vectors>,
}

/// One task of an index build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum IndexWork {
    /// Train the model that the segments of a vector index share.
    Train {
        build: Build,
        given: Given,
        /// Draw the sample from these; default all.
        fragments: Option<Vec<u32>>,
    },
    /// Build one segment.
    Segment {
        build: Build,
        fragments: Vec<u32>,
        /// Of a vector index: where its model is.
        #[schemars(with = "Option<String>")]
        model: Option<Uuid>,
    },
    /// Merge segments into one.
    Merge {
        build: Build,
        fragments: Vec<u32>,
        /// Lance's `pb::IndexMetadata` of each.
        segments: Vec<Blob>,
    },
}

/// The task that trains a build's model.
pub(crate) fn train_task(
    dataset: &Dataset,
    build: &Build,
    given: &Given,
    fragments: Option<&[u32]>,
) -> NewWork<IndexWork> {
    let ids: Option<RoaringBitmap> = fragments.map(|ids| ids.iter().copied().collect());
    NewWork {
        key: None,
        rows: total(&chosen(dataset, ids.as_ref())),
        bytes: 0,
        work: IndexWork::Train {
            build: build.clone(),
            given: given.clone(),
            fragments: fragments.map(<[u32]>::to_vec),
        },
    }
}

/// The tasks that build segments over contiguous runs of fragments.
pub(crate) fn segment_tasks(
    build: &Build,
    fragments: &[Rows],
    num_segments: u64,
    model: Option<Uuid>,
) -> Vec<NewWork<IndexWork>> {
    runs(fragments, num_segments)
        .into_iter()
        .map(|run| NewWork {
            key: None,
            rows: total(&run),
            bytes: 0,
            work: IndexWork::Segment {
                build: build.clone(),
                fragments: run.iter().map(|(id, _)| *id).collect(),
                model,
            },
        })
        .collect()
}

/// The task that merges what others built.
pub(crate) fn merge_task(build: &Build, built: &[&TaskResult]) -> Result<NewWork<IndexWork>> {
    let mut covered = RoaringBitmap::new();
    let mut segments = Vec::new();
    for result in built {
        let segment = segments::segment(result)?;
        covered |= segment.fragment_bitmap.clone().unwrap_or_default();
        segments.push(encode(&segment));
    }
    Ok(NewWork {
        key: None,
        rows: built.iter().map(|r| r.rows_out).sum(),
        bytes: built.iter().map(|r| r.bytes_written).sum(),
        work: IndexWork::Merge {
            build: build.clone(),
            fragments: covered.iter().collect(),
            segments,
        },
    })
}

/// The payload of a training task.
#[derive(Serialize, Deserialize)]
struct Trained {
    model: Uuid,
    name: String,
}

/// The model that an index's training task has made.
pub(crate) fn trained(earlier: &[TaskResult], name: &str) -> Result<Uuid> {
    let found = earlier
        .iter()
        .filter_map(|r| serde_json::from_str::<Trained>(&r.payload).ok())
        .find(|trained| trained.name == name);
    found.map(|trained| trained.model).ok_or_else(|| {
        Error::new(
            ErrorCode::Verification,
            format!("the results of the training of index {name:?} name no model"),
        )
    })
}

/// Whether a result is a segment, and not the model of some.
pub(crate) fn is_segment(result: &TaskResult) -> bool {
    !result.index_segments.is_empty()
}

impl IndexWork {
    pub(crate) fn build(&self) -> &Build {
        match self {
            Self::Train { build, .. } | Self::Segment { build, .. } | Self::Merge { build, .. } => {
                build
            }
        }
    }

    pub(crate) fn memory(&self, cx: &Running, task: &Task) -> u64 {
        let build = self.build();
        match (self, &build.vectors) {
            (Self::Train { .. }, Some(vectors)) => {
                training::memory(build, vectors, task.estimated_rows)
            }
            (_, Some(vectors)) => vector::memory(cx, build, vectors, task.estimated_rows),
            (_, None) => scalar::memory(cx, build, task.estimated_rows),
        }
    }

    pub(crate) async fn execute(&self, cx: &Running, task: &Task) -> Result<Produced> {
        let pinned = cx.open(&task.uri, task.pin()).await?;
        let mut dataset = cx.marks().dataset(&pinned).await?;
        let build = self.build();
        let mut index = match (self, &build.vectors) {
            (Self::Train { given, fragments, .. }, Some(vectors)) => {
                // It writes nothing of Lance's: past the store that renames, many small reads are quicker.
                let fragments = fragments.as_deref();
                let model = training::train(cx, &pinned, build, vectors, given, fragments).await?;
                let (id, file) = model.write(cx, &task.uri).await?;
                return Ok(Produced {
                    payload: json!(Trained { model: id, name: build.name.clone() }),
                    rows_in: task.estimated_rows,
                    bytes_read: training::bytes_read(build, vectors, given, task.estimated_rows),
                    bytes_written: file.size,
                    files: vec![file],
                    ..Default::default()
                });
            }
            (Self::Train { .. }, None) => {
                return Err(Error::new(ErrorCode::Decode, "a training task without vectors"));
            }
            (Self::Segment { fragments, model: Some(model), .. }, Some(vectors)) => {
                let model = Model::read(cx, &task.uri, *model).await?;
                let fragments = fragments.iter().copied().collect();
                vector::build(cx, &mut dataset, build, vectors, &model, &fragments).await?
            }
            (Self::Segment { model: None, .. }, Some(_)) => {
                return Err(Error::new(ErrorCode::Decode, "a vector segment without a model"));
            }
            (Self::Segment { fragments, .. }, None) => {
                let fragments = fragments.iter().copied().collect();
                scalar::build(cx, &mut dataset, build, &fragments, task.estimated_rows).await?
            }
            (Self::Merge { segments, .. }, _) => {
                cx.event(EventKind::Stage, 0, 0, "merge_segments");
                let segments = segments.iter().map(|s| decode(&s.0)).collect::<Result<Vec<_>>>()?;
                segments.iter().for_each(|segment| cx.marks().keep(segment.uuid));
                match dataset.merge_existing_index_segments(segments.clone()).await {
                    Ok(merged) => merged,
                    Err(error) => {
                        return Err(used_up(cx, task, &segments, Error::from(error)).await);
                    }
                }
            }
        };
        rename(cx, &mut index);
        let bytes_read = cx.marks().bytes_read();
        Ok(Produced { bytes_read, ..produced(task, &index) })
    }

    pub(crate) fn verify(&self, task: &Task, field_id: i32, result: &TaskResult) -> Result<()> {
        let build = self.build();
        let fragments: RoaringBitmap = match self {
            Self::Train { .. } => {
                trained(std::slice::from_ref(result), &build.name)?;
                return match is_segment(result) {
                    false => Ok(()),
                    true => Err(Error::new(
                        ErrorCode::Verification,
                        "a training task lists an index segment",
                    )),
                };
            }
            Self::Segment { fragments, .. } | Self::Merge { fragments, .. } => {
                fragments.iter().copied().collect()
            }
        };
        let expected = Expected {
            name: &build.name,
            field_id,
            kind: Some(build.kind),
            fragments: Some(&fragments),
            folded: false,
        };
        segments::check(result, Some(task), &expected)?;
        match &build.vectors {
            Some(vectors) => vector::check_segment(build, vectors, &segments::segment(result)?),
            None => Ok(()),
        }
    }

    pub(crate) fn label(&self) -> Option<String> {
        match self {
            Self::Train { build, .. } => Some(format!("train {}", build.name)),
            Self::Merge { build, .. } => Some(format!("merge {}", build.name)),
            Self::Segment { .. } => None,
        }
    }
}

/// Why a merge failed. A commit of the job, or an abort, removes the segments that were to be merged:
/// an attempt that comes later cannot be repeated, and the job is over or has to begin again.
async fn used_up(cx: &Running, task: &Task, segments: &[IndexMetadata], error: Error) -> Error {
    // Lance has many words for a file that is missing, but none of these.
    let other = matches!(
        error.code(),
        ErrorCode::Io
            | ErrorCode::Credentials
            | ErrorCode::Cancelled
            | ErrorCode::DeadlineExceeded
            | ErrorCode::BudgetExceeded
    );
    if other {
        return error;
    }
    let files: Vec<WrittenFile> = segments.iter().flat_map(segments::files).collect();
    let options = &cx.call.storage_options;
    let sizes = cx.datasets().sizes(&task.uri, options, &files, &Bases::new()).await;
    let Ok(sizes) = sizes else { return error };
    match files.iter().zip(sizes).find(|(_, size)| size.is_none()) {
        Some((file, _)) => Error::new(
            ErrorCode::RetryableConflict,
            format!(
                "{}, of a segment to be merged, is gone (was the job committed or aborted, or the \
                 dataset cleaned up?); prepare the job again",
                file.path
            ),
        ),
        None => error,
    }
}

/// Give a segment the name that its folder was given.
pub(crate) fn rename(cx: &Running, index: &mut IndexMetadata) {
    if let Some(uuid) = cx.marks().given(index.uuid) {
        index.uuid = uuid;
    }
}

/// Transaction properties, as a spec has them.
pub(crate) type Properties = Option<BTreeMap<String, String>>;
