//! A verb under way.

use std::sync::{Arc, Mutex};

use lance::dataset::Dataset;
use uuid::Uuid;

use super::{Call, Event, EventKind, Executor};
use crate::dataset::{Bases, Datasets, Pin, Place};
use crate::error::Result;
use crate::marks::{Marks, Use};
use crate::operations::Elsewhere;
use crate::result::WrittenFile;
use crate::task::Task;

/// A verb under way: the executor, what holds for the call, and the attempt's files.
#[derive(Clone)]
pub(crate) struct Running {
    pub(super) executor: Executor,
    pub call: Call,
    task_id: Option<Uuid>,
    marks: Arc<Marks>,
    written: Arc<Mutex<Written>>,
    background: Arc<Mutex<Vec<tokio::task::JoinHandle<()>>>>,
}

/// What an attempt has written, so that it can be removed where the attempt fails.
#[derive(Default, Clone)]
struct Written {
    files: Vec<WrittenFile>,
    /// The bases that the files may be in.
    bases: Bases,
}

impl Running {
    pub(super) fn new(executor: &Executor, call: &Call, task: Option<&Task>) -> Self {
        Self {
            executor: executor.clone(),
            call: call.clone(),
            task_id: task.map(|t| t.id),
            marks: Marks::new(task.map_or(Uuid::nil(), |t| t.job_id), Use::Attempt),
            written: Arc::default(),
            background: Arc::default(),
        }
    }

    /// The dataset at a version; opened once per executor, version and storage options.
    pub async fn open(&self, uri: &str, pin: Pin) -> Result<Arc<Dataset>> {
        self.datasets().open(uri, pin, &self.call.storage_options).await
    }

    /// Where the task's dataset will be; for a job that creates it.
    pub async fn place(&self, task: &Task) -> Result<Arc<Place>> {
        self.datasets().place(task.job_id, &task.uri, &self.call.storage_options).await
    }

    /// Refuse storage options of a base that nothing here has.
    pub(super) async fn check_bases(
        &self,
        uri: &str,
        pin: Pin,
        elsewhere: Elsewhere,
    ) -> Result<()> {
        let options = &self.call.storage_options;
        match options.any_base() {
            true => self.datasets().check_bases(uri, pin, elsewhere, options).await,
            false => Ok(()),
        }
    }

    /// Gives the attempt's files their names.
    pub fn marks(&self) -> &Arc<Marks> {
        &self.marks
    }

    pub fn datasets(&self) -> &Datasets {
        &self.executor.0.datasets
    }

    /// Threads that run tasks.
    pub fn threads(&self) -> usize {
        self.executor.0.threads
    }

    /// What all tasks together may hold.
    pub fn memory_budget(&self) -> u64 {
        self.executor.0.budget.total
    }

    /// What one task may hold when every thread runs one.
    pub fn memory_share(&self) -> u64 {
        self.executor.0.budget.total / self.threads() as u64
    }

    pub fn event(&self, kind: EventKind, rows: u64, bytes: u64, message: &str) {
        if let (Some(progress), Some(task_id)) = (&self.call.progress, self.task_id) {
            progress(&Event { kind, task_id, rows, bytes, message });
        }
    }

    /// Note a file, so that a failed attempt can remove it.
    pub fn wrote(&self, file: WrittenFile) {
        self.lock().files.push(file);
    }

    /// The bases that this attempt's files may be in.
    pub fn set_bases(&self, bases: Bases) {
        self.lock().bases = bases;
    }

    /// Wait for this before the attempt ends.
    pub fn on_end(&self, task: tokio::task::JoinHandle<()>) {
        self.background.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(task);
    }

    pub(super) async fn end(&self) {
        let tasks = std::mem::take(
            &mut *self.background.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        for task in tasks {
            let _ = task.await;
        }
    }

    pub(super) fn written(&self) -> Vec<WrittenFile> {
        self.lock().files.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Best effort: `abort` finds what is left by its marked names.
    pub(super) async fn remove_written(&self, uri: &str) {
        let Written { files, bases } = self.lock().clone();
        let options = &self.call.storage_options;
        if !files.is_empty()
            && let Ok(left) = self.datasets().remove(uri, options, files, &bases).await
        {
            self.lock().files = left;
        }
        let begun = self.marks.files();
        if !begun.is_empty()
            && let Ok((store, _)) = self.datasets().store(uri, options).await
        {
            for file in begun {
                let _ = store.delete(&file).await;
            }
        }
    }
}
