//! Tasks that yield data, as one stream of batches in the order of the tasks.
//!
//! Each task has a producer on the I/O runtime, which keeps one batch ready for the caller. Producers of
//! the next tasks begin early; memory is given to them in the order of the tasks, so that the one whose
//! batches are wanted never waits for one behind it. Nothing begins before the first pull: a stream that
//! nobody reads holds no memory.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;

use arrow_array::{RecordBatch, RecordBatchReader};
use arrow_schema::{ArrowError, SchemaRef};
use futures::{FutureExt, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{Call, EventKind, Executor, OWN_THREAD, Running, check_options, panicked};
use crate::error::{Error, ErrorCode, Result};
use crate::operations::Reading;
use crate::task::Task;

/// Tasks that read at one time.
const TASKS: usize = 4;

/// What [`Executor::read`] yields. Pulled by one thread at a time. Dropped, it cancels what runs and
/// waits for its end; its share of the memory budget is free when it has ended.
pub struct DataStream {
    executor: Executor,
    call: Call,
    schema: SchemaRef,
    /// The first task, opened for its schema.
    first: Option<Begun>,
    tasks: VecDeque<Task>,
    producers: VecDeque<Producer>,
    /// Comes when the producer begun last has its memory.
    turn: Option<oneshot::Receiver<()>>,
    over: bool,
}

/// A task to be read, opened or not.
struct Begun {
    running: Running,
    task: Task,
    reading: Option<Reading>,
}

struct Producer {
    batches: mpsc::Receiver<Result<RecordBatch>>,
    work: JoinHandle<()>,
}

impl Executor {
    /// Read a task's data. What is wrong with the task is said here, before anything is pulled.
    ///
    /// Streams that are read at one time share the memory budget: one that does not get its part waits
    /// until another has ended or is dropped.
    pub fn read(&self, task: &Task, call: &Call) -> Result<DataStream> {
        self.read_all(vec![task.clone()], call.clone())
    }

    /// Read several tasks' data, one after the other, some of them ahead. All have the schema of the
    /// first one.
    pub fn read_all(&self, tasks: Vec<Task>, call: Call) -> Result<DataStream> {
        self.enter()?;
        check_options(&call.storage_options)?;
        let mut tasks = VecDeque::from(tasks);
        let task = tasks.pop_front().ok_or_else(|| {
            Error::invalid("tasks: there are none; what changes a dataset yields no data")
        })?;
        let call = Call { cancel: call.cancel.child_token(), ..call };
        let running = Running::new(self, &call, Some(&task));
        let reading = self.block_on(open(&running, &task)).inspect_err(|error| {
            running.event(EventKind::Failed, 0, 0, error.message());
        })?;
        Ok(DataStream {
            executor: self.clone(),
            call,
            schema: reading.schema.clone(),
            first: Some(Begun { running, task, reading: Some(reading) }),
            tasks,
            producers: VecDeque::new(),
            turn: None,
            over: false,
        })
    }
}

async fn open(running: &Running, task: &Task) -> Result<Reading> {
    running.event(EventKind::Started, 0, 0, "");
    let opening = running.call.limit(async {
        running.check_bases(&task.uri, task.pin(), task.work.elsewhere()).await?;
        task.work.read(running, task).await
    });
    let reading = AssertUnwindSafe(opening)
        .catch_unwind()
        .await
        .unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
    reading.map_err(|e| e.for_task(&task.id.to_string()))
}

impl DataStream {
    /// A thread of the same executor would wait for work that may have to wait for it: for a thread, or
    /// for the memory that its own task holds. Another executor's has nothing to do with it.
    fn check_thread(&self) -> Result<()> {
        self.executor.check_process()?;
        if OWN_THREAD.get() == self.executor.0.number {
            return Err(Error::new(
                ErrorCode::InvalidState,
                "the stream is pulled by one of its executor's own threads (in a callback, or as the \
                 input of a task): read it by another executor",
            ));
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        let at_once = self.executor.threads().clamp(2, TASKS);
        while self.producers.len() < at_once {
            let begun = if let Some(first) = self.first.take() {
                first
            } else if let Some(task) = self.tasks.pop_front() {
                let running = Running::new(&self.executor, &self.call, Some(&task));
                Begun { running, task, reading: None }
            } else {
                break;
            };
            let (sender, batches) = mpsc::channel(1);
            let (next, turn) = oneshot::channel();
            let before = self.turn.replace(turn);
            let work = produce(begun, self.schema.clone(), before, next, sender);
            let work = self.executor.runtime()?.spawn(work);
            self.producers.push_back(Producer { batches, work });
        }
        Ok(())
    }

    fn pull(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            self.begin()?;
            let Some(front) = self.producers.front_mut() else { return Ok(None) };
            let executor = self.executor.clone();
            let next = executor.block_on(async { Ok(front.batches.recv().await) })?;
            if let Some(batch) = next {
                return batch.map(Some);
            }
            let Some(ended) = self.producers.pop_front() else { return Ok(None) };
            executor.block_on(async {
                ended.work.await.map_err(|e| Error::internal(format!("a task ended early: {e}")))
            })?;
        }
    }
}

async fn produce(
    begun: Begun,
    schema: SchemaRef,
    turn: Option<oneshot::Receiver<()>>,
    next: oneshot::Sender<()>,
    batches: mpsc::Sender<Result<RecordBatch>>,
) {
    let Begun { running, task, reading } = begun;
    let work = async {
        let reading = match reading {
            Some(reading) => reading,
            None => open(&running, &task).await?,
        };
        if reading.schema != schema {
            return Err(Error::new(
                ErrorCode::SchemaMismatch,
                "its data has another schema than that of the first task",
            ));
        }
        if let Some(turn) = turn {
            // Where the one before has failed there is nothing to wait for.
            let _ = turn.await;
        }
        let _memory = running.executor.0.budget.take(reading.memory).await?;
        let _ = next.send(());
        let (mut stream, mut rows, mut bytes) = (reading.batches, 0, 0);
        // A place first: no batch is made while another waits for the caller.
        while let Ok(place) = batches.reserve().await {
            let Some(batch) = stream.next().await.transpose()? else {
                running.event(EventKind::Finished, rows, bytes, "");
                break;
            };
            rows += batch.num_rows() as u64;
            bytes += batch.get_array_memory_size() as u64;
            running.event(EventKind::Advanced, rows, bytes, "");
            place.send(Ok(batch));
        }
        Ok(())
    };
    let outcome = AssertUnwindSafe(running.call.limit(work))
        .catch_unwind()
        .await
        .unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
    if let Err(error) = outcome {
        running.event(EventKind::Failed, 0, 0, error.message());
        let id = task.id.to_string();
        // In the text as well: it is all that the C stream interface hands on.
        let error = error.context(format!("task {id}")).for_task(&id);
        let _ = batches.send(Err(error)).await;
    }
}

impl Iterator for DataStream {
    type Item = std::result::Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        if let Err(error) = self.check_thread() {
            return Some(Err(error.into()));
        }
        let next = self.pull();
        self.over = !matches!(next, Ok(Some(_)));
        next.map_err(Into::into).transpose()
    }
}

impl RecordBatchReader for DataStream {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

impl Drop for DataStream {
    fn drop(&mut self) {
        self.call.cancel.cancel();
        let works: Vec<_> = self.producers.drain(..).map(|producer| producer.work).collect();
        // The threads that would end them are not in a child after a fork.
        if works.is_empty() || std::process::id() != self.executor.0.pid {
            return;
        }
        let _ = self.executor.block_on(async {
            for work in works {
                let _ = work.await;
            }
            Ok(())
        });
    }
}
