//! Work on Lance datasets as serializable tasks: plan anywhere, execute anywhere, commit exactly once.
//!
//! Five verbs of an [`Executor`]:
//!
//! - [`prepare`](Executor::prepare) turns a [`Spec`] into a [`Job`]: validated, the dataset's version
//!   pinned, every default resolved.
//! - [`plan`](Executor::plan) says what is still to do: the [`Task`]s that have no result yet, stage by
//!   stage; none = ready to commit.
//! - [`execute`](Executor::execute) makes one attempt at a task: it writes files, never the manifest,
//!   and answers with a [`TaskResult`]. Safe to repeat, safe to lose.
//!   [`execute_all`](Executor::execute_all) does it for many tasks on the thread pool.
//!   Tasks of operations that read have no result: [`read`](Executor::read) yields their data, and
//!   nothing is committed.
//! - [`commit`](Executor::commit) takes one result per task, verifies that they cover the job, and
//!   writes the manifest exactly once, however often and from wherever it is called.
//! - [`abort`](Executor::abort) deletes what attempts that were not committed have written.
//!
//! One loop serves every operation and every orchestrator:
//!
//! ```text
//! results = []
//! while tasks := plan(job, results):
//!     results += run(tasks)
//! commit(job, results)
//! ```

#![deny(unsafe_code)]

mod blob;
pub mod codec;
pub mod commit;
mod dataset;
pub mod error;
pub mod executor;
pub mod files;
// What callers must keep to stands once in the module, and in each function's own sections.
#[allow(unsafe_code, clippy::missing_safety_doc)]
pub mod ffi;
pub mod inspect;
pub mod job;
mod marks;
pub mod operations;
mod plan;
mod process;
pub mod result;
pub mod schema;
mod storage;
pub mod task;

pub use codec::Descriptor;
pub use commit::{AbortReport, Outcome};
pub use error::{Error, ErrorCode, Result, RetryClass};
pub use executor::{Call, CancelToken, DataStream, Event, EventKind, Executor, ExecutorOptions};
pub use job::Job;
pub use operations::Spec;
pub use result::TaskResult;
pub use storage::StorageOptions;
pub use task::Task;
