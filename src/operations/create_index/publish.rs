//! From segments to a manifest: what Lance would commit of them, and what they cover by then.

use lance::Dataset;
use lance::dataset::transaction::Operation as LanceOperation;
use lance::index::DatasetIndexExt;
use lance_table::format::IndexMetadata;
use roaring::RoaringBitmap;

use super::segments::{chosen, fragment_bitmap, total};
use crate::commit::Committing;
use crate::error::{Error, ErrorCode, Result};
use crate::operations::Metrics;

/// What a commit adds to and removes from the manifest.
#[derive(Default)]
pub(crate) struct Change {
    pub new: Vec<IndexMetadata>,
    pub removed: Vec<IndexMetadata>,
    pub read_version: u64,
}

impl Change {
    /// What Lance makes of an index's segments in the newest version: it prunes what they cover,
    /// replaces the segments whose fragments they cover, and refuses what would not fit together.
    pub async fn of(
        cx: &Committing<'_>,
        name: &str,
        column: &str,
        segments: Vec<IndexMetadata>,
    ) -> Result<Self> {
        segments.iter().for_each(|segment| cx.keep(segment.uuid));
        let (index, of, column) = (name.to_owned(), column, column.to_owned());
        let transaction = cx
            .capture(|mut dataset| async move {
                dataset.commit_existing_index_segments(&index, &column, segments).await
            })
            .await
            .map_err(|e| overtaken(e).context(format!("index {name:?} over {of:?}")))?;
        match transaction.operation {
            LanceOperation::CreateIndex { new_indices, removed_indices } => Ok(Self {
                new: new_indices,
                removed: removed_indices,
                read_version: transaction.read_version,
            }),
            other => Err(Error::internal(format!("an index commit became {}", other.name()))),
        }
    }

    pub fn operation(self) -> LanceOperation {
        LanceOperation::CreateIndex { new_indices: self.new, removed_indices: self.removed }
    }

    /// What the new segments cover of a version.
    pub fn covered(&self, live: &Dataset) -> RoaringBitmap {
        let there = fragment_bitmap(live);
        union(self.new.iter().filter_map(|index| index.effective_fragment_bitmap(&there)))
    }
}

/// What was right at prepare, and Lance refuses now, another commit has made impossible.
fn overtaken(error: Error) -> Error {
    match error.code() {
        ErrorCode::InvalidArgument | ErrorCode::NotSupported => {
            let message = format!("{}; prepare the job again", error.message());
            Error::new(ErrorCode::RetryableConflict, message)
        }
        _ => error,
    }
}

pub(crate) fn union(bitmaps: impl IntoIterator<Item = RoaringBitmap>) -> RoaringBitmap {
    bitmaps.into_iter().fold(RoaringBitmap::new(), |all, one| all | one)
}

/// Fragments that were planned to be covered, and those that are.
#[derive(Default)]
pub(crate) struct Coverage {
    fragments: u64,
    fragments_pruned: u64,
    rows: u64,
    rows_pruned: u64,
}

impl Coverage {
    /// What another commit compacted or deleted since the pinned version is pruned.
    pub fn add(
        &mut self,
        pinned: &Dataset,
        live: &Dataset,
        planned: &RoaringBitmap,
        covered: &RoaringBitmap,
    ) {
        let pruned = planned - covered;
        self.fragments += covered.len();
        self.fragments_pruned += pruned.len();
        self.rows += total(&chosen(live, Some(covered)));
        self.rows_pruned += total(&chosen(pinned, Some(&pruned)));
    }

    pub fn metrics(&self) -> Metrics {
        Metrics::from([
            ("fragments_covered".into(), self.fragments),
            ("fragments_pruned".into(), self.fragments_pruned),
            ("rows_covered".into(), self.rows),
            ("rows_pruned".into(), self.rows_pruned),
        ])
    }
}
