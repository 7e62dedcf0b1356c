//! Run a spool's open tasks: this process's share of them, stage after stage.
//!
//! A stage that is not in the spool yet is planned by whoever needs it first, so that all shards may
//! start at once. The next stage is planned as soon as the spool holds a result for every task of the
//! one before; whoever finds that others still have work to do ends, and is run again.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use lance_tasks::{Call, Error, ErrorCode, Result, RetryClass, Task, TaskResult};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::progress::Progress;
use crate::report::{Failure, Outcome, count};
use crate::session::Session;
use crate::spool::{Spool, Stage};

/// A killed process loses no more than the results of so much time.
const RECORD_EVERY: Duration = Duration::from_secs(1);

/// Shard `index` of `count`: the tasks whose index leaves that remainder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    pub index: u32,
    pub count: u32,
}

impl Shard {
    pub const ALL: Self = Self { index: 0, count: 1 };
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parts =
            text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((index, count)) if index < count => Ok(Self { index, count }),
            _ => Err(format!("{text:?} is no shard; say I/N with I from 0 to N-1")),
        }
    }
}

/// What a run has done.
#[derive(Debug, Default)]
pub struct Done {
    pub tasks: u64,
    pub rows: u64,
    pub bytes: u64,
    /// Tasks that other shards have still to do.
    pub elsewhere: u64,
    /// Every stage is done: ready to commit.
    pub ready: bool,
}

impl Done {
    pub fn json(&self) -> Map<String, Value> {
        let value = json!({
            "tasks": self.tasks,
            "rows": self.rows,
            "bytes_written": self.bytes,
            "open_elsewhere": self.elsewhere,
            "ready_to_commit": self.ready,
        });
        value.as_object().cloned().unwrap_or_default()
    }
}

/// A task whose attempts have failed.
struct Failed {
    stage: u32,
    index: u32,
    attempts: u32,
    error: Error,
}

/// The stage to be worked on with its open tasks; `None` = there is nothing left to do. Plans what the
/// spool does not hold yet.
pub fn open_stage(session: &Session, spool: &Spool) -> Outcome<Option<(Stage, Vec<u32>)>> {
    spool.refuse_aborted()?;
    loop {
        let last = spool.last_stage()?;
        if let Some(stage) = &last {
            if stage.is_end() {
                return Ok(None);
            }
            let open = stage.open(&spool.marks()?);
            if !open.is_empty() {
                return Ok(last.map(|stage| (stage, open)));
            }
        }
        let results = match last {
            Some(_) => spool.results()?,
            None => Vec::new(),
        };
        let tasks =
            session.retrying(|| session.executor.plan(&spool.job, &results, &session.call()))?;
        let next = last.as_ref().map_or(0, |stage| stage.number + 1);
        match tasks.first() {
            None => spool.put_stage(next, &[])?,
            // Nobody can have results of a stage that is in no spool.
            Some(first) if first.stage == next => spool.put_stage(next, &tasks)?,
            Some(first) => {
                return Err(Error::internal(format!(
                    "spool {}: task {} of stage {} has a result, and is planned again",
                    spool.place(),
                    first.index,
                    first.stage
                ))
                .into());
            }
        }
    }
}

/// Run a shard's tasks of the stage that is open, and of the next ones as far as they can be planned.
pub fn run(session: &Session, spool: &Spool, shard: Shard) -> Outcome<Done> {
    let mut done = Done::default();
    loop {
        let Some((stage, open)) = open_stage(session, spool)? else {
            done.ready = true;
            return Ok(done);
        };
        let (mine, others): (Vec<u32>, Vec<u32>) =
            open.into_iter().partition(|index| index % shard.count == shard.index);
        if mine.is_empty() {
            done.elsewhere = others.len() as u64;
            return Ok(done);
        }
        run_stage(session, spool, &stage, &mine, &mut done)?;
    }
}

fn run_stage(
    session: &Session,
    spool: &Spool,
    stage: &Stage,
    mine: &[u32],
    done: &mut Done,
) -> Outcome<()> {
    let mut tasks = stage.decode_tasks(mine)?;
    let total = tasks.len();
    let progress = Progress::new(session.show, &tasks);
    let call = Call { progress: Some(progress.callback()), ..session.call() };
    let mut failed: BTreeMap<u32, Failed> = BTreeMap::new();
    let mut interrupted = 0;
    for tries in 0.. {
        let again = attempt(session, spool, tasks, &call, done, &mut failed, &mut interrupted)?;
        if again.is_empty() || tries >= session.retries() || session.ended() {
            break;
        }
        progress.say(&format!("trying {} again", count(again.len() as u64, "task")));
        session.pause(tries);
        tasks = again;
    }
    drop(progress);
    match failed.is_empty() && interrupted == 0 {
        true => Ok(()),
        false => Err(failure(session, total, &failed, interrupted, done)),
    }
}

/// One attempt at each task; answers with those that are worth another.
fn attempt(
    session: &Session,
    spool: &Spool,
    tasks: Vec<Task>,
    call: &Call,
    done: &mut Done,
    failed: &mut BTreeMap<u32, Failed>,
    interrupted: &mut u64,
) -> Outcome<Vec<Task>> {
    let by_id: HashMap<Uuid, Task> = tasks.iter().map(|t| (t.id, t.clone())).collect();
    let stage = tasks.first().map_or(0, |t| t.stage);
    let results = session.executor.execute_all(tasks, call.clone())?;
    let (sender, receiver) = unbounded();
    let mut again = Vec::new();
    std::thread::scope(|scope| {
        let recorder = scope.spawn(move || record(spool, stage, &receiver));
        for result in results {
            let Some(task) = by_id.get(&result.task_id) else { continue };
            match &result.error {
                None => {
                    failed.remove(&task.index);
                    done.tasks += 1;
                    done.rows += result.rows_out;
                    done.bytes += result.bytes_written;
                }
                Some(error) if is_interruption(error) => {
                    *interrupted += 1;
                    // Nothing is worth noting of it, unless it left files behind.
                    if result.files.is_empty() {
                        continue;
                    }
                }
                Some(error) => {
                    if error.class() == RetryClass::RetryTask {
                        again.push(task.clone());
                    }
                    let attempts = failed.get(&task.index).map_or(0, |f| f.attempts) + 1;
                    let (stage, index, error) = (task.stage, task.index, error.clone());
                    failed.insert(index, Failed { stage, index, attempts, error });
                }
            }
            // The recorder has failed: what it says comes below, and no more is to be done.
            if sender.send((task.index, result)).is_err() {
                break;
            }
        }
        drop(sender);
        recorder.join().unwrap_or_else(|_| Err(Error::internal("results could not be recorded")))
    })?;
    Ok(again)
}

fn is_interruption(error: &Error) -> bool {
    matches!(error.code(), ErrorCode::Cancelled | ErrorCode::DeadlineExceeded)
}

/// Put results into the spool, together where several come within [`RECORD_EVERY`].
fn record(spool: &Spool, stage: u32, receiver: &Receiver<(u32, TaskResult)>) -> Result<()> {
    let mut waiting = Vec::new();
    let mut due = Instant::now();
    loop {
        let next = match waiting.is_empty() {
            true => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => receiver.recv_deadline(due),
        };
        match next {
            Ok(result) => {
                waiting.push(result);
                if Instant::now() < due {
                    continue;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return spool.put_results(stage, waiting),
        }
        spool.put_results(stage, std::mem::take(&mut waiting))?;
        due = Instant::now() + RECORD_EVERY;
    }
}

/// Failed tasks by name, the worst first: what trying again does not help decides the exit code.
fn failure(
    session: &Session,
    total: usize,
    failed: &BTreeMap<u32, Failed>,
    interrupted: u64,
    done: &Done,
) -> Box<Failure> {
    let total = count(total as u64, "task");
    let mut failure = match (session.signal(), failed.values().min_by_key(|f| rank(&f.error))) {
        (Some(signal), _) => Failure::stopped(
            signal,
            format!("{interrupted} of {total} not done; the results so far are kept"),
        )
        .with_hint("run again to go on"),
        (None, Some(worst)) => {
            let error = worst.error.clone().context(format!(
                "{} of {total} failed, among them task {}",
                failed.len(),
                worst.index
            ));
            let hint = hint(error.class());
            Box::<Failure>::from(error).with_hint(hint)
        }
        (None, None) => {
            let text = format!("{interrupted} of {total} were not done in time");
            Box::<Failure>::from(Error::new(ErrorCode::DeadlineExceeded, text))
                .with_hint("run again to go on")
        }
    };
    failure.more = done.json();
    failure.more.insert("failed".into(), failed.values().map(Failed::json).collect());
    failure.lines = lines(failed);
    failure
}

fn rank(error: &Error) -> u8 {
    match error.class() {
        RetryClass::Credentials => 0,
        RetryClass::Invalid => 1,
        RetryClass::Fatal => 2,
        RetryClass::Conflict => 3,
        RetryClass::Replan => 4,
        RetryClass::RetryTask => 5,
    }
}

pub fn hint(class: RetryClass) -> &'static str {
    match class {
        RetryClass::RetryTask => "run again: what is done stays done",
        RetryClass::Credentials => "renew the credentials and run again: what is done stays done",
        RetryClass::Replan => "abort this job and prepare it again on the dataset as it is now",
        RetryClass::Invalid | RetryClass::Conflict | RetryClass::Fatal => {
            "running again changes nothing: abort the job, and prepare it anew once the cause is gone"
        }
    }
}

/// One line per cause, naming up to ten of its tasks.
fn lines(failed: &BTreeMap<u32, Failed>) -> Vec<String> {
    let mut causes: Vec<(String, Vec<u32>)> = Vec::new();
    for task in failed.values() {
        let tries = match task.attempts {
            1 => String::new(),
            n => format!(" (tried {n} times)"),
        };
        let cause = format!("{}{tries}: {}", task.error.code().name(), task.error.message());
        match causes.iter_mut().find(|(known, _)| *known == cause) {
            Some((_, tasks)) => tasks.push(task.index),
            None => causes.push((cause, vec![task.index])),
        }
    }
    causes.into_iter().map(|(cause, tasks)| format!("{} failed: {cause}", names(&tasks))).collect()
}

/// `task 3`, `tasks 3, 5, 8 and 12 more`
pub fn names(tasks: &[u32]) -> String {
    let shown: Vec<String> = tasks.iter().take(10).map(u32::to_string).collect();
    let s = if tasks.len() == 1 { "" } else { "s" };
    let more = match tasks.len() - shown.len() {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    format!("task{s} {}{more}", shown.join(", "))
}

impl Failed {
    fn json(&self) -> Value {
        json!({
            "stage": self.stage,
            "index": self.index,
            "task_id": self.error.task_id(),
            "attempts": self.attempts,
            "code": self.error.code().name(),
            "class": self.error.class().as_str(),
            "message": self.error.message(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards() {
        assert_eq!("1/3".parse(), Ok(Shard { index: 1, count: 3 }));
        for text in ["3/3", "1", "-1/3", "a/b", "0/0", ""] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }

    #[test]
    fn tasks_by_name() {
        assert_eq!(names(&[4]), "task 4");
        let many: Vec<u32> = (0..12).collect();
        assert_eq!(names(&many), "tasks 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more");
    }
}
