//! Lance's largest futures, boxed here: the compiler generates their code where they are first awaited,
//! and in a module that does not change it does so once.

use std::sync::Arc;

use arrow_array::FixedSizeListArray;
use futures::FutureExt;
use futures::future::BoxFuture;
use lance::Dataset;
use lance::index::optimize::{IndexSegmentResult, OptimizeIndexTask};
use lance::index::vector::ivf::{build_ivf_model, train_ivf_model_from_sample};
use lance::index::vector::utils::maybe_sample_training_data;
use lance_index::metrics::NoOpMetricsCollector;
use lance_index::progress::IndexBuildProgress;
use lance_index::scalar::ScalarIndex;
use lance_index::vector::ivf::IvfBuildParams;
use lance_index::vector::ivf::storage::IvfModel;
use lance_linalg::distance::DistanceType;
use lance_table::format::IndexMetadata;

type Answer<'a, T> = BoxFuture<'a, lance::Result<T>>;

/// Lance's `build_ivf_model`.
pub(super) fn train_ivf<'a>(
    dataset: &'a Dataset,
    column: &'a str,
    dimension: usize,
    metric: DistanceType,
    params: &'a IvfBuildParams,
    fragments: Option<&'a [u32]>,
    progress: Arc<dyn IndexBuildProgress>,
) -> Answer<'a, IvfModel> {
    build_ivf_model(dataset, column, dimension, metric, params, fragments, progress).boxed()
}

/// Lance's `train_ivf_model_from_sample`.
pub(super) fn train_ivf_on(
    sample: FixedSizeListArray,
    metric: DistanceType,
    params: &IvfBuildParams,
    progress: Arc<dyn IndexBuildProgress>,
) -> Answer<'_, IvfModel> {
    train_ivf_model_from_sample(sample, metric, params, progress).boxed()
}

/// Lance's `maybe_sample_training_data`.
pub(super) fn sample<'a>(
    dataset: &'a Dataset,
    column: &'a str,
    size: usize,
    fragments: Option<&'a [u32]>,
) -> Answer<'a, FixedSizeListArray> {
    maybe_sample_training_data(dataset, column, size, fragments).boxed()
}

/// Lance's `OptimizeIndexTask::execute`.
pub(super) fn optimize<'a>(
    task: &'a OptimizeIndexTask,
    dataset: &'a Dataset,
) -> Answer<'a, Option<IndexSegmentResult>> {
    task.execute(dataset).boxed()
}

/// Lance's `open_scalar_index`.
pub(super) fn open_scalar<'a>(
    dataset: &'a Dataset,
    path: &'a str,
    index: &'a IndexMetadata,
) -> Answer<'a, Arc<dyn ScalarIndex>> {
    lance::index::scalar::open_scalar_index(dataset, path, index, &NoOpMetricsCollector).boxed()
}
