//! The command line: the five verbs over a spool folder.

mod spool;

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use lance_tasks::{
    Call, Descriptor, Error, ErrorCode, Event, EventKind, Executor, ExecutorOptions, Result,
    RetryClass, Spec,
};
use serde_json::{Value, json};
use spool::Spool;

/// Work on Lance datasets as tasks: prepare, plan, run anywhere, commit exactly once.
///
/// A spool is a folder that holds one job, its tasks and one file per attempt; any number of processes
/// that see the folder may run its tasks.
#[derive(Parser)]
#[command(name = "lance-tasks", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON object instead of lines for people.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Common {
    /// A JSON file with Lance's storage options (credentials, endpoint, region). Else they come from
    /// the environment, as the store's own tools take them.
    #[arg(long, global = true, value_name = "FILE")]
    storage_options: Option<PathBuf>,
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
}

#[derive(Subcommand)]
enum Command {
    /// Validate a spec, pin the dataset's version, and put the job into a new spool.
    Prepare {
        /// The spec, a JSON file; - reads standard input.
        spec: PathBuf,
        #[arg(long, value_name = "FOLDER")]
        spool: PathBuf,
    },
    /// Put the tasks that have no result yet into the spool, and say how many there are.
    Plan { spool: PathBuf },
    /// Execute the spool's tasks that have no result yet.
    Run {
        spool: PathBuf,
        /// This process's share: shard I of N, counted from 0.
        #[arg(long, value_name = "I/N", value_parser = parse_shard, default_value = "0/1")]
        shard: (u32, u32),
        /// Tasks at a time [default: the CPUs].
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        jobs: usize,
    },
    /// Commit the spool's job: verified, exactly once, safe to repeat.
    Commit {
        spool: PathBuf,
        /// Commit the tasks that have a result, where the operation allows it.
        #[arg(long)]
        partial: bool,
    },
    /// Delete what attempts that were not committed have written. The spool stays.
    Abort { spool: PathBuf },
    /// Print the JSON Schema of specs, jobs, tasks and outcomes.
    Schema,
}

fn parse_shard(text: &str) -> std::result::Result<(u32, u32), String> {
    let parsed = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match parsed {
        Some((i, n)) if i < n => Ok((i, n)),
        _ => Err(format!("{text:?} is no shard; say I/N with I from 0 to N-1")),
    }
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("LANCE_TASKS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let cli = Cli::parse();
    match run(&cli) {
        Ok((value, line)) => {
            // A reader that went away early is not this program's failure.
            let _ = if cli.json {
                writeln!(std::io::stdout(), "{value}")
            } else {
                writeln!(std::io::stdout(), "{line}")
            };
            ExitCode::SUCCESS
        }
        Err(error) => {
            if cli.json {
                let value = json!({ "error": {
                    "code": error.code().name(),
                    "class": error.class().as_str(),
                    "message": error.message(),
                    "task_id": error.task_id(),
                }});
                let _ = writeln!(std::io::stdout(), "{value}");
            }
            let _ = writeln!(
                std::io::stderr(),
                "lance-tasks: {} ({}): {}",
                error.code().name(),
                error.class().as_str(),
                error.message()
            );
            ExitCode::from(exit_code(error.class()))
        }
    }
}

/// By error class, after `sysexits.h` where it has a word for it.
fn exit_code(class: RetryClass) -> u8 {
    match class {
        RetryClass::Invalid => 2,
        RetryClass::Replan => 3,
        RetryClass::Conflict => 4,
        RetryClass::Fatal => 70,
        RetryClass::RetryTask => 75,
        RetryClass::Credentials => 77,
    }
}

fn run(cli: &Cli) -> Result<(Value, String)> {
    if matches!(cli.command, Command::Schema) {
        let schema = serde_json::to_string_pretty(&lance_tasks::schema::json_schema())?;
        return Ok((Value::String(schema.clone()), schema));
    }
    let jobs = match cli.command {
        Command::Run { jobs, .. } => jobs,
        _ => 0,
    };
    let executor = Executor::new(ExecutorOptions {
        num_threads: jobs,
        memory_budget: cli.common.memory_budget,
    })?;
    let mut call = cli.common.call()?;
    match &cli.command {
        Command::Prepare { spec, spool } => {
            let spec = Spec::decode(&read(spec)?)?;
            let job = executor.prepare(spec, None, &call)?;
            Spool::create(spool, &job)?;
            let value = json!({ "job_id": job.id, "operation": job.operation(), "uri": job.uri,
                "read_version": job.read_version, "spool": spool });
            Ok((
                value,
                format!(
                    "prepared {} on {} at version {}: job {}",
                    job.operation(),
                    job.uri,
                    job.read_version,
                    job.id
                ),
            ))
        }
        Command::Plan { spool } => {
            let spool = Spool::open(spool)?;
            let tasks = executor.plan(&spool.job, &spool.results()?, &call)?;
            spool.put_tasks(&tasks)?;
            let rows: u64 = tasks.iter().map(|t| t.estimated_rows).sum();
            let line = match tasks.len() {
                0 => "nothing left to do: ready to commit".to_owned(),
                n => format!("{n} tasks to run, about {rows} rows"),
            };
            Ok((json!({ "tasks": tasks.len(), "estimated_rows": rows }), line))
        }
        Command::Run { spool, shard, .. } => {
            call.progress = progress(cli.json);
            run_tasks(&executor, &Spool::open(spool)?, *shard, call)
        }
        Command::Commit { spool, partial } => {
            let spool = Spool::open(spool)?;
            call.partial = *partial;
            let outcome = executor.commit(&spool.job, &spool.results()?, &call)?;
            let value = serde_json::to_value(&outcome)?;
            spool.put_outcome(&value)?;
            let line = format!(
                "{} version {} of {}: {} rows{}",
                if outcome.already_committed { "was committed before as" } else { "committed" },
                outcome.version,
                outcome.uri,
                outcome.rows,
                if outcome.complete { "" } else { " (in part)" }
            );
            Ok((value, line))
        }
        Command::Abort { spool } => {
            let spool = Spool::open(spool)?;
            let report = executor.abort(&spool.job, &spool.results()?, &call)?;
            let line = format!(
                "removed {} files ({} bytes), kept {} that are committed",
                report.files_removed, report.bytes_removed, report.kept
            );
            Ok((serde_json::to_value(&report)?, line))
        }
        Command::Schema => Err(Error::internal("handled above")),
    }
}

fn run_tasks(
    executor: &Executor,
    spool: &Spool,
    (shard, shards): (u32, u32),
    call: Call,
) -> Result<(Value, String)> {
    let mut tasks = spool.open_tasks()?;
    tasks.retain(|task| task.index % shards == shard);
    let total = tasks.len();
    let (mut done, mut rows, mut bytes) = (0u64, 0, 0);
    let mut first_error: Option<Error> = None;
    for result in executor.execute_all(tasks, call)? {
        spool.put_result(&result)?;
        match result.error {
            None => {
                done += 1;
                rows += result.rows_out;
                bytes += result.bytes_written;
            }
            Some(error) => first_error = first_error.or(Some(error)),
        }
    }
    if let Some(error) = first_error {
        let failed = total as u64 - done;
        return Err(error.context(format!("{failed} of {total} tasks failed, the first")));
    }
    let value = json!({ "tasks": done, "rows": rows, "bytes_written": bytes });
    Ok((value, format!("ran {done} tasks: {rows} rows, {bytes} bytes written")))
}

/// One line per task that ends, on a terminal's error stream.
fn progress(json: bool) -> Option<lance_tasks::executor::ProgressFn> {
    if json || !std::io::stderr().is_terminal() {
        return None;
    }
    Some(Arc::new(|event: &Event<'_>| {
        let _ = match event.kind {
            EventKind::Finished => {
                writeln!(std::io::stderr(), "task {}: {} rows", event.task_id, event.rows)
            }
            EventKind::Failed => {
                writeln!(std::io::stderr(), "task {} failed: {}", event.task_id, event.message)
            }
            _ => Ok(()),
        };
    }))
}

impl Common {
    fn call(&self) -> Result<Call> {
        let storage_options = match &self.storage_options {
            None => Default::default(),
            // The parser's message could quote a secret.
            Some(file) => serde_json::from_slice(&read(file)?).map_err(|_| {
                Error::invalid(format!("{} is not a JSON object of strings", file.display()))
            })?,
        };
        let deadline = self.timeout.and_then(|seconds| {
            std::time::Instant::now().checked_add(std::time::Duration::from_secs(seconds))
        });
        Ok(Call { storage_options, deadline, ..Default::default() })
    }
}

fn read(file: &PathBuf) -> Result<Vec<u8>> {
    if file.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    std::fs::read(file).map_err(|e| {
        let code = match e.kind() {
            std::io::ErrorKind::NotFound => ErrorCode::NotFound,
            _ => ErrorCode::Io,
        };
        Error::new(code, format!("{}: {e}", file.display()))
    })
}
