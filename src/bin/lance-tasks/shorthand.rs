//! Shorthands: an operation from spec to commit in one process.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use lance_tasks::{Error, ErrorCode, RetryClass};
use serde_json::{Map, Value, json};

use crate::report::{Answer, Failure, Outcome};
use crate::run::{self, Shard};
use crate::session::{Globals, Session, read};
use crate::spec::{self, Names, Options};
use crate::spool::{Files, Spool};
use crate::verbs;

/// How an operation is said. One that is not listed is said by its own name, with its dataset as the
/// argument and all of its options as flags.
struct Shorthand {
    operation: &'static str,
    command: &'static str,
    /// Empty: what the spec says of itself.
    about: &'static str,
    /// The option whose values are the arguments, in the place of the dataset, which is then `--to`.
    arguments: Option<&'static str>,
    /// Flags that have another name than their option.
    renamed: &'static [(&'static str, &'static str)],
}

const LISTED: &[Shorthand] = &[
    Shorthand {
        operation: "write",
        command: "write",
        about: "Write files or datasets into a dataset, and commit",
        arguments: Some("sources"),
        renamed: &[],
    },
    Shorthand {
        operation: "compact",
        command: "compact",
        about: "Rewrite small fragments and fragments with deletions, and commit",
        arguments: None,
        renamed: &[],
    },
    Shorthand {
        operation: "create_index",
        command: "index",
        about: "Build an index, and commit",
        arguments: None,
        renamed: &[("index_type", "type")],
    },
    Shorthand {
        operation: "take_blobs",
        command: "take-blobs",
        about: "Take the bytes of blobs, as an Arrow IPC stream",
        arguments: None,
        renamed: &[],
    },
    Shorthand {
        operation: "optimize_index",
        command: "optimize-index",
        about: "Index what was added since, fold small segments, or rebuild; and commit",
        arguments: None,
        renamed: &[],
    },
];

fn all() -> impl Iterator<Item = Shorthand> {
    lance_tasks::operations::NAMES.iter().map(|operation| {
        let listed = LISTED.iter().find(|listed| listed.operation == *operation);
        match listed {
            Some(Shorthand { operation, command, about, arguments, renamed }) => {
                Shorthand { operation, command, about, arguments: *arguments, renamed }
            }
            None => Shorthand {
                operation,
                command: Names::new(operation, operation).long,
                about: "",
                arguments: None,
                renamed: &[],
            },
        }
    })
}

pub fn commands() -> impl Iterator<Item = Command> {
    all().map(|shorthand| shorthand.command())
}

/// Run the shorthand of this name; `None` where there is none.
pub fn dispatch(name: &str, globals: &Globals, matches: &ArgMatches) -> Option<Outcome<Answer>> {
    let shorthand = all().find(|shorthand| shorthand.command == name)?;
    Some(shorthand.run(globals, matches))
}

const TAKEN: &[&str] = &[
    "help",
    "jobs",
    "json",
    "memory_budget",
    "output",
    "quiet",
    "retries",
    "set",
    "spec",
    "spool",
    "spool_storage_options",
    "storage_options",
    "timeout",
    "to",
];
const HEADING: &str = "Options of the operation";
const HEADING_ITEMS: &str = "Options of every source";

impl Shorthand {
    fn command(&self) -> Command {
        let options = Options::of(self.operation);
        let about = if self.about.is_empty() { options.about.clone() } else { self.about.into() };
        let mut command = Command::new(self.command).about(about).after_help(
            "Every option of the operation is a flag, with - or _; --spec and --set say the same in \
             JSON, and --set goes over flags, flags over --spec.",
        );
        let place = Arg::new("place").value_name("URI").help("The dataset: a path or a URI");
        command = match self.arguments {
            None => command.arg(place),
            Some(_) => command.arg(place.long("to")).arg(
                Arg::new("arguments")
                    .value_name("SRC")
                    .num_args(0..)
                    .help("Files, globs, folders or datasets, in this order"),
            ),
        };
        if self.reads() {
            command = command.arg(
                Arg::new("output")
                    .long("output")
                    .short('o')
                    .value_name("FILE")
                    .required(true)
                    .value_parser(value_parser!(PathBuf))
                    .help("Where the data goes, an Arrow IPC stream; - is standard output"),
            );
        } else {
            command = command.arg(Arg::new("spool").long("spool").value_name("PLACE").help(
                "Keep the job here, so that the same command goes on where it ended; then nothing \
                 is aborted where it fails",
            ));
        }
        command = command
            .arg(
                Arg::new("file")
                    .long("spec")
                    .value_name("FILE")
                    .value_parser(value_parser!(PathBuf))
                    .help("A spec to begin with, a JSON file; - reads standard input"),
            )
            .arg(
                Arg::new("set")
                    .long("set")
                    .value_name("KEY=JSON")
                    .action(ArgAction::Append)
                    .help("Set an option of the spec, as JSON; a dot reaches into an object"),
            )
            .arg(
                Arg::new("jobs")
                    .long("jobs")
                    .value_name("K")
                    .default_value("0")
                    .hide_default_value(true)
                    .value_parser(value_parser!(usize))
                    .help("Tasks at a time [default: the CPUs]"),
            );
        command = options.flags(command, HEADING, |option| self.flag(option));
        match self.arguments {
            None => command,
            Some(list) => options.of_items(list).flags(command, HEADING_ITEMS, item_flag),
        }
    }

    /// Whether it yields data, and commits nothing.
    fn reads(&self) -> bool {
        lance_tasks::operations::reads(self.operation)
    }

    fn flag(&self, option: &str) -> Option<Names> {
        // What other flags are called can be said by --set only.
        if option == "uri" || self.arguments == Some(option) || TAKEN.contains(&option) {
            return None;
        }
        let renamed = self.renamed.iter().find(|(of, _)| *of == option);
        Some(Names::new(renamed.map_or(option, |(_, flag)| flag), option))
    }

    /// The spec that the arguments make, from `--spec` over flags to `--set`.
    fn spec(&self, matches: &ArgMatches) -> Outcome<Value> {
        let mut spec = match matches.get_one::<PathBuf>("file") {
            None => json!({}),
            Some(file) => serde_json::from_slice(&read(file)?).map_err(|e| {
                let text = format!("{}: not valid JSON: {e}", file.display());
                Error::new(ErrorCode::Decode, text)
            })?,
        };
        let Value::Object(fields) = &mut spec else {
            return Err(Error::invalid("--spec: expected a JSON object").into());
        };
        let stated = fields.entry("operation").or_insert_with(|| self.operation.into());
        if stated != self.operation {
            let text = format!("--spec says operation {stated}, this is {:?}", self.operation);
            return Err(Error::invalid(text).into());
        }
        let options = Options::of(self.operation);
        fields.extend(options.read(matches, |option| self.flag(option))?);
        if let Some(place) = matches.get_one::<String>("place") {
            fields.insert("uri".into(), place.as_str().into());
        }
        if let Some(list) = self.arguments {
            let given: Vec<&String> =
                matches.get_many("arguments").map(Iterator::collect).unwrap_or_default();
            let of_each = options.of_items(list).read(matches, item_flag)?;
            if !given.is_empty() {
                fields.insert(list.into(), given.iter().map(|uri| item(uri, &of_each)).collect());
            } else if !of_each.is_empty() {
                let text = "options of every source, and no source as an argument";
                return Err(Error::invalid(text).into());
            }
        }
        let settings: Vec<String> =
            matches.get_many("set").map(|given| given.cloned().collect()).unwrap_or_default();
        spec::set(&mut spec, &settings)?;
        let missing = |name: &str| spec.get(name).is_none_or(Value::is_null);
        let said = match self.arguments {
            Some(list) if missing(list) => {
                Some("no source is given: lance-tasks write SRC... --to URI")
            }
            Some(_) if missing("uri") => Some("the dataset is not given: --to URI"),
            None if missing("uri") => Some("the dataset is not given: its URI is the argument"),
            _ => None,
        };
        if let Some(text) = said {
            return Err(Error::invalid(text).into());
        }
        spec::absolute(&mut spec);
        Ok(spec)
    }

    fn run(&self, globals: &Globals, matches: &ArgMatches) -> Outcome<Answer> {
        let spec = spec::decode(&self.spec(matches)?)?;
        let jobs = matches.get_one::<usize>("jobs").copied().unwrap_or_default();
        let session = Session::new(globals, jobs)?;
        if self.reads() {
            let output = matches.get_one::<PathBuf>("output").cloned().unwrap_or_default();
            return crate::read::spec(&session, spec, Shard::ALL, &output);
        }
        let Some(place) = matches.get_one::<String>("spool") else {
            let spool = verbs::prepare(&session, spec, Files::memory())?;
            return finish(&session, &spool).map_err(|failure| clean_up(&session, &spool, failure));
        };
        let files = globals.files(place)?;
        if !Spool::exists(&files)? {
            let spool = verbs::prepare(&session, spec, files)?;
            return finish(&session, &spool);
        }
        let spool = Spool::open(files)?;
        let differences = spool.differences(&spec)?;
        if !differences.is_empty() {
            let text =
                format!("spool {} holds another job; {}", spool.place(), differences.join("; "));
            return Err(Error::new(ErrorCode::AlreadyExists, text).into());
        }
        finish(&session, &spool)
    }
}

fn item_flag(option: &str) -> Option<Names> {
    let flag = format!("source_{option}");
    (option != "uri").then(|| Names::new(&flag, &flag))
}

fn item(uri: &str, options: &Map<String, Value>) -> Value {
    if options.is_empty() {
        return uri.into();
    }
    let mut object = options.clone();
    object.insert("uri".into(), uri.into());
    Value::Object(object)
}

fn finish(session: &Session, spool: &Spool) -> Outcome<Answer> {
    run::run(session, spool, Shard::ALL)?;
    verbs::commit(session, spool, false)
}

/// Leave nothing behind of a job that nobody can take up again.
fn clean_up(session: &Session, spool: &Spool, mut failure: Box<Failure>) -> Box<Failure> {
    // Whether it is committed nobody knows: its files must stay, and so must the job.
    if failure.error.code() == ErrorCode::CommitUnknown {
        let kept = format!("lance-tasks-{}", spool.job.id);
        let saved = Files::open(&kept, &Default::default()).and_then(|files| spool.save(&files));
        failure.hint = Some(match saved {
            Ok(()) => format!("the job is kept: lance-tasks commit {kept}"),
            Err(e) => {
                format!("the job could not be kept ({e}); look for its rows before trying again")
            }
        });
        return failure;
    }
    let removed = match verbs::abort(session, spool, &session.last_call()) {
        Ok(answer) => {
            failure.more.insert("aborted".into(), answer.value);
            format!("aborted: {}", answer.text)
        }
        Err(e) => format!("what was written could not be removed: {}", e.error.message()),
    };
    failure.lines.push(removed);
    failure.hint = Some(
        match failure.class {
            RetryClass::RetryTask | RetryClass::Replan => "try again",
            RetryClass::Credentials => "renew the credentials and try again",
            _ => "trying again changes nothing while the cause stays",
        }
        .into(),
    );
    failure
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_operation_has_a_command_without_clashes() {
        let command = crate::Cli::command().subcommands(commands());
        let names: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
        assert!(all().all(|shorthand| names.contains(&shorthand.command)), "{names:?}");
        command.debug_assert();
    }

    #[test]
    fn sources_with_and_without_options() {
        let mut options = Map::new();
        assert_eq!(item("a.csv", &options), json!("a.csv"));
        options.insert("delimiter".into(), ";".into());
        assert_eq!(item("a.csv", &options), json!({ "uri": "a.csv", "delimiter": ";" }));
    }
}
