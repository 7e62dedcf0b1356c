//! What holds for one invocation: the global options, the executor, the call.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use lance_tasks::{
    Call, Error, ErrorCode, Executor, ExecutorOptions, Result, RetryClass, StorageOptions,
};

use crate::progress::Show;
use crate::report::{Failure, Outcome};
use crate::signals::Signals;
use crate::spool::Files;

#[derive(Args, Clone)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Print one JSON object instead of lines for people, for errors as well.
    #[arg(long, global = true)]
    pub json: bool,
    /// Show no progress.
    #[arg(long, short, global = true)]
    quiet: bool,
    /// A JSON file with Lance's storage options (credentials, endpoint, region); `base:<path>:<option>`
    /// is an option of one base of the dataset. Else they come from the environment, as the store's
    /// own tools take them.
    #[arg(long, global = true, value_name = "FILE")]
    storage_options: Option<PathBuf>,
    /// The same for the spool [default: those of the dataset].
    #[arg(long, global = true, value_name = "FILE")]
    spool_storage_options: Option<PathBuf>,
    /// Bytes that the tasks running at one time may hold [default: half of the memory].
    #[arg(
        long,
        global = true,
        value_name = "BYTES",
        default_value_t = 0,
        hide_default_value = true
    )]
    memory_budget: u64,
    /// Give up after so many seconds.
    #[arg(long, global = true, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Try again so many times what may succeed the next time (errors of class retry_task).
    #[arg(long, global = true, value_name = "N", default_value_t = 2)]
    retries: u32,
}

impl Globals {
    pub fn storage_options(&self) -> Result<StorageOptions> {
        self.storage_options.as_deref().map_or_else(|| Ok(StorageOptions::default()), options_of)
    }

    /// Where a spool is.
    pub fn files(&self, place: &str) -> Result<Files> {
        // Not read for a local spool.
        let options = match (&self.spool_storage_options, place.contains("://")) {
            (Some(file), _) => options_of(file)?,
            (None, true) => self.storage_options()?,
            (None, false) => StorageOptions::default(),
        };
        Files::open(place, &options.shared())
    }
}

/// An executor with what each of its calls takes.
pub struct Session {
    pub executor: Executor,
    pub globals: Globals,
    pub show: Show,
    call: Call,
    signals: Signals,
}

impl Session {
    /// `jobs` tasks at a time, 0 = the CPUs. To be made before there are other threads.
    pub fn new(globals: &Globals, jobs: usize) -> Result<Self> {
        let storage_options = globals.storage_options()?;
        let deadline = globals
            .timeout
            .and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
        let call = Call { storage_options, deadline, ..Default::default() };
        let signals = Signals::cancel(call.cancel.clone())?;
        let executor = Executor::new(ExecutorOptions {
            num_threads: jobs,
            memory_budget: globals.memory_budget,
        })?;
        let show = Show::new(globals.quiet || globals.json);
        Ok(Self { executor, globals: globals.clone(), show, call, signals })
    }

    pub fn call(&self) -> Call {
        self.call.clone()
    }

    /// A call that cleans up: it outlives the signal and the deadline that ended the work.
    pub fn last_call(&self) -> Call {
        let storage_options = self.call.storage_options.clone();
        Call { storage_options, ..Default::default() }
    }

    pub fn retries(&self) -> u32 {
        self.globals.retries
    }

    /// The signal that ended the work.
    pub fn signal(&self) -> Option<&'static str> {
        self.signals.name()
    }

    pub fn ended(&self) -> bool {
        self.call.cancel.is_cancelled() || self.call.deadline.is_some_and(|at| at <= Instant::now())
    }

    /// Do something that is safe to repeat, again where its error says that it may succeed then.
    pub fn retrying<T>(&self, what: impl Fn() -> Result<T>) -> Outcome<T> {
        let mut tries = 0;
        loop {
            match what() {
                Ok(done) => return Ok(done),
                Err(error)
                    if error.class() == RetryClass::RetryTask
                        && tries < self.retries()
                        && !self.ended() =>
                {
                    tracing::warn!("tried again: {error}");
                    self.pause(tries);
                    tries += 1;
                }
                Err(error) => return Err(self.failure(error)),
            }
        }
    }

    /// An error as a failure; a cancellation by a signal is one that may be taken up again.
    pub fn failure(&self, error: Error) -> Box<Failure> {
        match (error.code(), self.signal()) {
            (ErrorCode::Cancelled, Some(signal)) => Failure::stopped(signal, "start it again"),
            _ => error.into(),
        }
    }

    /// Before a further try: half a second, doubled with each, cut short by a signal.
    pub fn pause(&self, tries: u32) {
        let until = Instant::now() + Duration::from_millis(500 << tries.min(6));
        while Instant::now() < until && !self.ended() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn options_of(file: &Path) -> Result<StorageOptions> {
    // The parser's message could quote a secret.
    let options = serde_json::from_slice(&read(file)?).map_err(|_| {
        Error::invalid(format!("{} is not a JSON object of strings", file.display()))
    })?;
    StorageOptions::new(options)
}

/// A file, or standard input for `-`.
pub fn read(file: &Path) -> Result<Vec<u8>> {
    if file.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    std::fs::read(file).map_err(|e| {
        let code = match e.kind() {
            std::io::ErrorKind::NotFound => ErrorCode::NotFound,
            std::io::ErrorKind::IsADirectory => ErrorCode::InvalidArgument,
            _ => ErrorCode::Io,
        };
        Error::new(code, format!("{}: {e}", file.display()))
    })
}
