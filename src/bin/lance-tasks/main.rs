//! The command line: the verbs over a spool, shorthands that do all of them at once, and a look at
//! datasets and spools.

mod inspect;
mod progress;
mod read;
mod report;
mod run;
mod session;
mod shorthand;
mod signals;
mod spec;
mod spool;
mod verbs;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use lance_tasks::Error;

use report::{Answer, Failure, Outcome};
use run::Shard;
use session::{Globals, Session};
use spool::Spool;

/// Work on Lance datasets as tasks: prepare, plan, run anywhere, commit exactly once.
///
/// A spool is a folder, or a place in an object store, that holds one job, its tasks and the results of
/// their attempts; any number of processes that see it may run its tasks.
#[derive(Parser)]
#[command(
    name = "lance-tasks",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 2 invalid input, 3 plan or prepare again, 4 conflict, 70 fatal, \
                  75 try again (also after SIGTERM and SIGINT), 77 credentials."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    globals: Globals,
}

#[derive(Subcommand)]
enum Command {
    /// Validate a spec, pin the dataset's version, and put the job into a new spool.
    Prepare {
        /// The spec, a JSON file; - reads standard input.
        spec: PathBuf,
        #[arg(long, value_name = "PLACE")]
        spool: String,
        /// Set an option of the spec, as JSON; a dot reaches into an object.
        #[arg(long, value_name = "KEY=JSON")]
        set: Vec<String>,
    },
    /// Put the tasks that are to be done next into the spool, and say how many there are.
    Plan { spool: String },
    /// Execute the spool's tasks that have no successful result yet; plans where that is not done.
    Run {
        spool: String,
        /// This process's share: shard I of N, counted from 0.
        #[arg(long, value_name = "I/N", default_value = "0/1")]
        shard: Shard,
        /// Tasks at a time [default: the CPUs].
        #[arg(long, value_name = "K", default_value_t = 0, hide_default_value = true)]
        jobs: usize,
    },
    /// Read the data of an operation that reads (take_blobs), into an Arrow IPC stream.
    Read {
        /// The spec, a JSON file (- reads standard input); or a spool.
        #[arg(value_name = "SPEC|SPOOL")]
        what: String,
        /// Where the data goes; - is standard output.
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
        /// Set an option of the spec, as JSON; a dot reaches into an object.
        #[arg(long, value_name = "KEY=JSON")]
        set: Vec<String>,
        /// Of a spool, the tasks of shard I of N: every Nth from the Ith on, counted from 0.
        #[arg(long, value_name = "I/N", default_value = "0/1")]
        shard: Shard,
    },
    /// Commit the spool's job: verified, exactly once, safe to repeat.
    Commit {
        spool: String,
        /// Commit the tasks that have a result, where the operation allows it.
        #[arg(long)]
        partial: bool,
    },
    /// Delete what attempts that were not committed have written. The spool stays.
    Abort { spool: String },
    /// Show a dataset's shape, or how far a spool's job is.
    Inspect(inspect::Inspect),
    /// Print the JSON Schema of specs, jobs, tasks and outcomes.
    Schema,
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("LANCE_TASKS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let command = Cli::command().subcommands(shorthand::commands());
    let matches = match command.try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return usage(&error),
    };
    let globals = match Globals::from_arg_matches(&matches) {
        Ok(globals) => globals,
        Err(error) => return usage(&error),
    };
    let outcome = matches
        .subcommand()
        .and_then(|(name, matches)| shorthand::dispatch(name, &globals, matches));
    let outcome = match outcome {
        Some(outcome) => outcome,
        None => match Cli::from_arg_matches(&matches) {
            Ok(cli) => dispatch(cli),
            Err(error) => return usage(&error),
        },
    };
    match outcome {
        Ok(answer) => answer.print(globals.json),
        Err(failure) => failure.print(globals.json),
    }
}

/// What the parser says: help, or what is wrong with the arguments.
fn usage(error: &clap::Error) -> ExitCode {
    let json = std::env::args().any(|argument| argument == "--json");
    let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if json && !help {
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let line = text.split("\n\n").next().unwrap_or(text).trim();
        return Box::<Failure>::from(Error::invalid(line)).print(true);
    }
    let _ = error.print();
    if help { ExitCode::SUCCESS } else { ExitCode::from(2) }
}

fn dispatch(cli: Cli) -> Outcome<Answer> {
    let globals = &cli.globals;
    let open = |place: &str| Spool::open(globals.files(place)?);
    let session = |jobs: usize| Session::new(globals, jobs);
    match cli.command {
        Command::Prepare { spec, spool, set } => {
            let spec = verbs::spec(&session::read(&spec)?, &set)?;
            let session = session(0)?;
            Ok(verbs::prepared(&verbs::prepare(&session, spec, globals.files(&spool)?)?))
        }
        Command::Plan { spool } => {
            let session = session(0)?;
            verbs::plan(&session, &open(&spool)?)
        }
        Command::Run { spool, shard, jobs } => {
            let session = session(jobs)?;
            verbs::run(&session, &open(&spool)?, shard)
        }
        Command::Read { what, output, set, shard } => {
            if what == "-" || std::path::Path::new(&what).is_file() {
                let spec = verbs::spec(&session::read(what.as_ref())?, &set)?;
                return read::spec(&session(0)?, spec, shard, &output);
            }
            if !set.is_empty() {
                return Err(Error::invalid(format!("--set: {what} is no spec but a spool")).into());
            }
            let spool = open(&what)?;
            read::spool(&session(0)?, &spool, shard, &output)
        }
        Command::Commit { spool, partial } => {
            let session = session(0)?;
            verbs::commit(&session, &open(&spool)?, partial)
        }
        Command::Abort { spool } => {
            let session = session(0)?;
            verbs::abort(&session, &open(&spool)?, &session.call())
        }
        Command::Inspect(inspect) => inspect.run(globals),
        Command::Schema => {
            let value = lance_tasks::schema::json_schema();
            let text = serde_json::to_string_pretty(&value)?;
            Ok(Answer { value, text })
        }
    }
}
