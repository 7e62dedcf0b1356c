//! Progress while tasks run: a bar on a terminal, plain lines elsewhere, nothing where asked for
//! nothing. All of it goes to standard error.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lance_tasks::executor::ProgressFn;
use lance_tasks::{Event, EventKind, Task};
use uuid::Uuid;

use crate::report::{bytes, count, seconds};

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    Nothing,
    Lines,
    Bar,
}

impl Show {
    pub fn new(quiet: bool) -> Self {
        match quiet {
            true => Self::Nothing,
            false if std::io::stderr().is_terminal() => Self::Bar,
            false => Self::Lines,
        }
    }
}

/// Up to so many tasks each is told; of more only how far they are.
const EACH: usize = 50;
const BETWEEN_LINES: Duration = Duration::from_secs(5);
const BETWEEN_FRAMES: Duration = Duration::from_millis(100);
/// What a bar is divided into.
const PARTS: u64 = 1000;

/// Progress over some tasks; what it shows ends when it is dropped.
pub struct Progress {
    state: Arc<Mutex<State>>,
    ticker: Option<(Sender<()>, std::thread::JoinHandle<()>)>,
}

struct State {
    /// Index and estimated rows.
    tasks: HashMap<Uuid, (u32, u64)>,
    running: HashMap<Uuid, (u64, u64)>,
    started: Instant,
    estimated_rows: u64,
    done: u64,
    rows_estimated_done: u64,
    rows: u64,
    bytes: u64,
    failed: u64,
    bar: Option<ProgressBar>,
    lines: bool,
}

impl Progress {
    pub fn new(show: Show, tasks: &[Task]) -> Self {
        let bar = (show == Show::Bar).then(|| {
            let style = ProgressStyle::with_template("{bar:24} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let target = ProgressDrawTarget::stderr_with_hz(10);
            ProgressBar::with_draw_target(Some(PARTS), target).with_style(style)
        });
        let state = Arc::new(Mutex::new(State {
            tasks: tasks.iter().map(|t| (t.id, (t.index, t.estimated_rows))).collect(),
            running: HashMap::new(),
            started: Instant::now(),
            estimated_rows: tasks.iter().map(|t| t.estimated_rows).sum(),
            done: 0,
            rows_estimated_done: 0,
            rows: 0,
            bytes: 0,
            failed: 0,
            bar,
            lines: show == Show::Lines,
        }));
        let ticker = (show != Show::Nothing).then(|| ticker(state.clone(), show));
        Self { state, ticker }
    }

    /// For a call.
    pub fn callback(&self) -> ProgressFn {
        let state = self.state.clone();
        Arc::new(move |event| lock(&state).note(event))
    }

    /// Tell something without disturbing a bar.
    pub fn say(&self, line: &str) {
        lock(&self.state).say(line);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.ticker.take() {
            drop(stop);
            let _ = thread.join();
        }
        if let Some(bar) = lock(&self.state).bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn ticker(state: Arc<Mutex<State>>, show: Show) -> (Sender<()>, std::thread::JoinHandle<()>) {
    let (stop, stopped) = bounded::<()>(0);
    let every = if show == Show::Bar { BETWEEN_FRAMES } else { BETWEEN_LINES };
    let thread = std::thread::spawn(move || {
        lock(&state).draw();
        while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
            let state = lock(&state);
            state.draw();
            if state.lines && state.tasks.len() > EACH {
                let line = state.line();
                state.say(&line);
            }
        }
        lock(&state).draw();
    });
    (stop, thread)
}

impl State {
    fn note(&mut self, event: &Event<'_>) {
        let id = event.task_id;
        match event.kind {
            EventKind::Started | EventKind::Advanced => {
                self.running.insert(id, (event.rows, event.bytes));
            }
            EventKind::Stage => {}
            EventKind::Finished => {
                self.running.remove(&id);
                self.done += 1;
                self.rows += event.rows;
                self.bytes += event.bytes;
                self.rows_estimated_done += self.tasks.get(&id).map_or(0, |(_, rows)| *rows);
                if self.lines && self.tasks.len() <= EACH {
                    let (task, of) = (self.index(&id), self.tasks.len());
                    let (rows, size) = (count(event.rows, "row"), bytes(event.bytes));
                    self.say(&format!("task {task}: {rows}, {size} ({} of {of})", self.done));
                }
            }
            EventKind::Failed => {
                self.running.remove(&id);
                self.failed += 1;
                // What a cancellation ends is told once, at the end.
                if event.message != "cancelled" {
                    self.say(&format!("task {} failed: {}", self.index(&id), event.message));
                }
            }
        }
    }

    fn index(&self, id: &Uuid) -> String {
        self.tasks.get(id).map_or_else(|| id.to_string(), |(index, _)| index.to_string())
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| {
                let _ = writeln!(std::io::stderr(), "{line}");
            }),
            None if self.lines => {
                let _ = writeln!(std::io::stderr(), "{line}");
            }
            None => {}
        }
    }

    fn draw(&self) {
        if let Some(bar) = &self.bar {
            bar.set_position((self.share() * PARTS as f64) as u64);
            bar.set_message(self.line());
        }
    }

    /// How much of the work is done, 0 to 1: by rows where they are known beforehand, else by tasks.
    fn share(&self) -> f64 {
        let total = self.tasks.len() as f64;
        if total == 0.0 {
            return 1.0;
        }
        if self.estimated_rows == 0 {
            return self.done as f64 / total;
        }
        let running: u64 = self
            .running
            .iter()
            .map(|(id, (rows, _))| (*rows).min(self.tasks.get(id).map_or(0, |(_, all)| *all)))
            .sum();
        let rows = (self.rows_estimated_done + running) as f64 / self.estimated_rows as f64;
        rows.min(1.0)
    }

    /// `3 of 40 tasks, 300,000 rows, 1.20 MiB, 4.00 MiB/s, 1 failed, about 12 s left`
    fn line(&self) -> String {
        let (mut rows, mut size) = (self.rows, self.bytes);
        for (r, b) in self.running.values() {
            rows += r;
            size += b;
        }
        let elapsed = self.started.elapsed().as_secs_f64();
        let mut line = format!(
            "{} of {}, {}, {}, {}/s",
            self.done,
            count(self.tasks.len() as u64, "task"),
            count(rows, "row"),
            bytes(size),
            bytes((size as f64 / elapsed.max(0.001)) as u64),
        );
        if self.failed > 0 {
            line.push_str(&format!(", {} failed", self.failed));
        }
        let share = self.share();
        if share > 0.01 && share < 1.0 {
            let left = elapsed * (1.0 - share) / share;
            line.push_str(&format!(", about {} left", seconds(left)));
        }
        line
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
