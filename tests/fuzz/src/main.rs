//! Fuzzing of lance-tasks through its C ABI: the decoders, the rows of tasks and results, and the entry
//! points with any arguments.
//!
//! ```text
//! LANCE_TASKS_LIBRARY=.../liblance_tasks.so cargo run --release --locked -- \
//!     [--inputs N] [--seed S] [--processes P] [--call-seconds T] [--only TARGET] [--work DIR]
//! ... -- --replay TARGET_NUMBER FILE --work DIR
//! ```
//!
//! Inputs are tried in processes of their own. A crash, a call that takes too long and memory that
//! grows too far are seen from outside, by the parent; what must hold of answers is checked inside. On a
//! failure the seed and a minimized input are printed, the work folder is kept for a replay, and the exit
//! code is 1.

mod abi;
mod arguments;
mod child;
mod columns;
mod corpus;
mod import;
mod minimize;
mod mutate;
mod rng;
mod slot;
mod structured;
mod tables;
mod targets;

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use child::MAX_GROWTH;
use minimize::minimize;
use slot::Slot;
use targets::{STRUCTURED, TARGETS};

struct Options {
    inputs: u64,
    seed: u64,
    processes: usize,
    call_seconds: u64,
    only: Option<String>,
    work: Option<PathBuf>,
    replay: Option<(usize, PathBuf)>,
    child: Option<usize>,
}

fn options() -> Result<Options, String> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let mut options = Options {
        inputs: 200_000,
        seed: clock.map_or(0, |d| d.as_secs()),
        processes: std::thread::available_parallelism().map_or(1, usize::from),
        call_seconds: 5,
        only: None,
        work: None,
        replay: None,
        child: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut next = || args.next().ok_or(format!("{arg} wants a value"));
        let number = |text: String| text.parse::<u64>().map_err(|e| format!("{arg} {text}: {e}"));
        match arg.as_str() {
            "--inputs" => options.inputs = number(next()?)?,
            "--seed" => options.seed = number(next()?)?,
            "--processes" => options.processes = number(next()?)?.max(1) as usize,
            "--call-seconds" => options.call_seconds = number(next()?)?,
            "--only" => options.only = Some(next()?),
            "--work" => options.work = Some(next()?.into()),
            "--replay" => options.replay = Some((number(next()?)? as usize, next()?.into())),
            "--child" => options.child = Some(number(next()?)? as usize),
            _ => return Err(format!("unknown argument: {arg}")),
        }
    }
    Ok(options)
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn slot_path(work: &Path, nth: usize) -> PathBuf {
    work.join(format!("slot-{nth}"))
}

/// A fuzzing process under watch.
struct Watched {
    nth: usize,
    child: Child,
    slot: &'static Slot,
    seed: u64,
}

/// How a process ended.
#[derive(PartialEq)]
enum End {
    Well,
    /// A property is broken; the process has said which.
    Broken,
    /// It could not begin; it has said why.
    Unable,
    /// Killed by a signal, or an unexpected exit code.
    Crash(String),
    Hang,
    Memory(u64),
}

fn start(work: &Path, nth: usize, seed: u64, rest: &[String]) -> Result<Watched, String> {
    let io = |e: std::io::Error| e.to_string();
    let slot = Slot::map(&slot_path(work, nth), true)?;
    fs::create_dir_all(child::sandbox(work, nth)).map_err(io)?;
    let err = File::options().create(true).append(true).open(work.join(format!("stderr-{nth}")));
    let child = Command::new(std::env::current_exe().map_err(io)?)
        .args(["--child", &nth.to_string(), "--seed", &seed.to_string(), "--work"])
        .arg(work)
        .args(rest)
        .stdout(File::create(work.join(format!("stdout-{nth}"))).map_err(io)?)
        .stderr(err.map_err(io)?)
        .stdin(Stdio::null())
        // Each arena reserves address space, which is limited.
        .envs([("RUST_BACKTRACE", "0"), ("MALLOC_ARENA_MAX", "2")])
        .spawn()
        .map_err(io)?;
    Ok(Watched { nth, child, slot, seed })
}

fn peak(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
}

impl Watched {
    /// Whether it has ended, and how; kills what takes too long or too much.
    fn look(&mut self, call_seconds: u64) -> Result<Option<End>, String> {
        if let Some(status) = self.child.try_wait().map_err(|e| e.to_string())? {
            return Ok(Some(match (status.code(), status.signal()) {
                (Some(0), _) => End::Well,
                (Some(1), _) => End::Broken,
                (Some(2), _) => End::Unable,
                (Some(3), _) => End::Memory(MAX_GROWTH),
                (Some(code), _) => End::Crash(format!("exit code {code}")),
                (None, signal) => End::Crash(format!("signal {}", signal.unwrap_or(0))),
            }));
        }
        let baseline = self.slot.baseline.load(Relaxed);
        let growth = peak(self.child.id()).saturating_sub(baseline);
        let end = if self.slot.running_for() > call_seconds as i64 * 1000 {
            End::Hang
        } else if baseline > 0 && growth > MAX_GROWTH {
            End::Memory(growth)
        } else {
            return Ok(None);
        };
        self.child.kill().and_then(|()| self.child.wait()).map_err(|e| e.to_string())?;
        Ok(Some(end))
    }

    fn wait(&mut self, call_seconds: u64) -> Result<End, String> {
        loop {
            if let Some(end) = self.look(call_seconds)? {
                return Ok(end);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn tail(path: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Say what happened, with the smallest input found that ends a process in the same way.
fn explain(work: &Path, watched: &Watched, end: &End, options: &Options) -> Result<(), String> {
    println!("FAILED seed {} (process {}):", watched.seed, watched.nth);
    let said = fs::read_to_string(work.join(format!("stdout-{}", watched.nth)));
    print!("{}", said.unwrap_or_default());
    let what = match end {
        End::Unable => return Ok(()),
        End::Well | End::Broken => {
            let (target, input) = watched.slot.last();
            return keep(work, watched.nth, target, &input);
        }
        End::Crash(how) => format!("the process ended by {how}"),
        End::Hang => format!("a call took more than {} s", options.call_seconds),
        End::Memory(growth) => format!("memory grew by {} MiB or more", growth >> 20),
    };
    println!("{what}; the last of its stderr:");
    println!("{}", tail(&work.join(format!("stderr-{}", watched.nth))));
    let (target, input) = watched.slot.last();
    if target == STRUCTURED {
        println!("target structured, input: {}", String::from_utf8_lossy(&input));
        return Ok(());
    }
    println!("target {}, {} bytes: {}", TARGETS[target].name, input.len(), hex(&input));
    let mut tries = 150;
    let deadline = Instant::now() + Duration::from_secs(90);
    let candidate = work.join("candidate");
    let mut fails = |smaller: &[u8]| -> bool {
        tries -= 1;
        let rest = ["--replay".into(), target.to_string(), candidate.display().to_string()];
        let ended = fs::write(&candidate, smaller)
            .map_err(|e| e.to_string())
            .and_then(|()| start(work, watched.nth, watched.seed, &rest))
            .and_then(|mut w| w.wait(options.call_seconds));
        tries > 0 && ended.is_ok_and(|e| std::mem::discriminant(&e) == std::mem::discriminant(end))
    };
    if !fails(&input) {
        println!("alone it does not fail: what came before matters");
        return keep(work, watched.nth, target, &input);
    }
    let small = minimize(&input, fails, || Instant::now() < deadline);
    println!("minimized to {} bytes: {}", small.len(), hex(&small));
    keep(work, watched.nth, target, &small)
}

fn keep(work: &Path, nth: usize, target: usize, input: &[u8]) -> Result<(), String> {
    let path = work.join(format!("failure-{nth}"));
    fs::write(&path, input).map_err(|e| e.to_string())?;
    if target < TARGETS.len() {
        println!("replay: --replay {target} {} --work {}", path.display(), work.display());
    }
    Ok(())
}

fn summary(watched: &[Watched], took: Duration) {
    let sum = |f: &dyn Fn(&Slot) -> u64| watched.iter().map(|w| f(w.slot)).sum::<u64>();
    let names = TARGETS.iter().map(|t| t.name).enumerate().chain([(STRUCTURED, "structured")]);
    let targets: Vec<String> = names
        .map(|(at, name)| format!("{name} {}", sum(&|s| s.targets[at].load(Relaxed))))
        .collect();
    let statuses: Vec<String> = (0..abi::CODES)
        .map(|code| (code, sum(&|s| s.statuses[code].load(Relaxed))))
        .filter(|(_, count)| *count > 0)
        .map(|(code, count)| format!("{code}: {count}"))
        .collect();
    let inputs = sum(&|s| s.done.load(Relaxed));
    println!("inputs by target: {}", targets.join(", "));
    println!("calls by status: {}", statuses.join(", "));
    println!("{inputs} inputs in {:.0} s: no failure", took.as_secs_f64());
}

fn try_main() -> Result<bool, String> {
    let options = options()?;
    let library = std::env::var_os("LANCE_TASKS_LIBRARY")
        .map(PathBuf::from)
        .ok_or("set LANCE_TASKS_LIBRARY to liblance_tasks.so")?;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    if let (Some(nth), Some(work)) = (options.child, &options.work) {
        let slot = Slot::map(&slot_path(work, nth), false)?;
        let args = child::Args {
            library,
            sources,
            sandbox: child::sandbox(work, nth),
            seed: options.seed,
            inputs: options.inputs,
            only: options.only,
            replay: options.replay,
        };
        std::process::exit(child::run(&args, slot));
    }
    let work = match &options.work {
        Some(work) => work.clone(),
        None => std::env::temp_dir().join(format!("lance-tasks-fuzz.{}", std::process::id())),
    };
    fs::create_dir_all(&work).map_err(|e| format!("{}: {e}", work.display()))?;
    let work = work.canonicalize().map_err(|e| e.to_string())?;
    let begin = Instant::now();
    if let Some((target, path)) = &options.replay {
        let path = path.canonicalize().map_err(|e| format!("{}: {e}", path.display()))?;
        let rest = ["--replay".into(), target.to_string(), path.display().to_string()];
        let mut watched = start(&work, 0, options.seed, &rest)?;
        let end = watched.wait(options.call_seconds)?;
        print!("{}", fs::read_to_string(work.join("stdout-0")).unwrap_or_default());
        match &end {
            End::Well | End::Broken | End::Unable => {}
            End::Crash(how) => {
                println!("the process ended by {how}\n{}", tail(&work.join("stderr-0")));
            }
            End::Hang => println!("a call took more than {} s", options.call_seconds),
            End::Memory(growth) => println!("memory grew by more than {} MiB", growth >> 20),
        }
        return Ok(end == End::Well);
    }
    let share = options.inputs.div_ceil(options.processes as u64);
    let mut rest = vec!["--inputs".to_owned(), share.to_string()];
    rest.extend(options.only.iter().flat_map(|only| ["--only".to_owned(), only.clone()]));
    println!("seed {}, {} inputs, {} processes", options.seed, options.inputs, options.processes);
    let seed = |nth: usize| options.seed.wrapping_add((nth as u64) << 32);
    let mut watched = (0..options.processes)
        .map(|nth| start(&work, nth, seed(nth), &rest))
        .collect::<Result<Vec<_>, _>>()?;
    let mut ended = vec![false; watched.len()];
    let mut next_word = Instant::now() + Duration::from_secs(60);
    while ended.contains(&false) {
        for at in 0..watched.len() {
            if ended[at] {
                continue;
            }
            let Some(end) = watched[at].look(options.call_seconds)? else { continue };
            ended[at] = true;
            if end != End::Well {
                for (other, _) in watched.iter_mut().zip(&ended).filter(|(_, ended)| !**ended) {
                    let _ = other.child.kill().and_then(|()| other.child.wait());
                }
                explain(&work, &watched[at], &end, &options)?;
                return Ok(false);
            }
        }
        if Instant::now() > next_word {
            next_word += Duration::from_secs(60);
            let done: u64 = watched.iter().map(|w| w.slot.done.load(Relaxed)).sum();
            println!("{done} inputs after {} s", begin.elapsed().as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    summary(&watched, begin.elapsed());
    if options.work.is_none() {
        fs::remove_dir_all(&work).map_err(|e| e.to_string())?;
    }
    Ok(true)
}

fn main() -> ExitCode {
    match try_main() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}
