//! The fuzzing process: tries inputs, noting each in the slot before it is tried. Whatever ends this
//! process, the parent knows the input.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::abi::{Api, Broken, Functions};
use crate::corpus::{self, Executor};
use crate::minimize::minimize;
use crate::rng::Rng;
use crate::slot::Slot;
use crate::structured;
use crate::targets::{Fuzz, STRUCTURED, TARGETS};

/// Address space that the process may take beyond what it has when it begins: what asks for more than
/// the library's limit of a descriptor (256 MiB) a few times over is killed by its failed allocation.
const MORE_MEMORY: u64 = 2 << 30;
/// Resident bytes that the process may grow by.
pub const MAX_GROWTH: u64 = 512 << 20;
/// Inputs after which memory is measured from.
const WARM_UP: u64 = 2000;

pub struct Args {
    pub library: PathBuf,
    pub sources: PathBuf,
    pub sandbox: PathBuf,
    pub seed: u64,
    pub inputs: u64,
    pub only: Option<String>,
    pub replay: Option<(usize, PathBuf)>,
}

/// Kilobytes of a field of `/proc/self/status`, as bytes.
fn status(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn limit_memory() {
    let limit = status("VmSize:") + MORE_MEMORY;
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: a plain call.
    unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) };
}

/// The library reports each panic that it catches, and Lance warns: keep the file short.
fn shorten_stderr() {
    // SAFETY: plain calls; stderr is a file opened for appending.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        if libc::fstat(2, &mut stat) == 0 && stat.st_size > 1 << 20 {
            libc::ftruncate(2, 0);
        }
    }
}

/// Make the sandbox where it is not, and everything else that targets need.
fn fuzz<'a>(api: &'a Api, args: &'a Args) -> Result<Fuzz<'a>, String> {
    if !args.sandbox.join("corpus").exists() {
        corpus::make(api, &args.sandbox)?;
    }
    Ok(Fuzz {
        api,
        executor: Executor::new(api)?,
        corpus: corpus::load(api, &args.sandbox, &args.sources.join("tests/golden/format-1"))?,
        sandbox: &args.sandbox,
        touched: Cell::new(0),
    })
}

fn choose(rng: &mut Rng, only: Option<&str>) -> usize {
    if let Some(at) = only.and_then(|only| TARGETS.iter().position(|t| t.name.starts_with(only))) {
        return at;
    }
    let mut at = rng.below(TARGETS.iter().map(|t| t.weight).sum());
    for (i, target) in TARGETS.iter().enumerate() {
        match at.checked_sub(target.weight) {
            Some(rest) => at = rest,
            None => return i,
        }
    }
    0
}

fn report(target: usize, input: &[u8], broken: &Broken) {
    let name = TARGETS.get(target).map_or("structured", |t| t.name);
    println!("target {name}: {}", broken.0);
    println!("{} bytes, minimized: {}", input.len(), crate::hex(input));
}

/// Answers with the process's exit code: 0, 1 where a property is broken, 2 where it cannot begin, 3 where
/// a replay took too much memory.
pub fn run(args: &Args, slot: &'static Slot) -> i32 {
    match try_run(args, slot) {
        Ok(code) => code,
        Err(error) => {
            println!("{error}");
            2
        }
    }
}

fn try_run(args: &Args, slot: &'static Slot) -> Result<i32, String> {
    let api = Api { f: Functions::load(&args.library)?, slot };
    // SAFETY: a plain call.
    let abi = unsafe { (api.f.abi_version)() };
    if abi != 1 {
        return Err(format!("the library has ABI version {abi}, this knows 1"));
    }
    let fuzz = fuzz(&api, args)?;
    limit_memory();
    if let Some((target, path)) = &args.replay {
        let input = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        slot.put(*target, &input);
        let target = TARGETS.get(*target).ok_or("structured inputs are not replayed, but shown")?;
        let before = status("VmHWM:");
        return Ok(match (target.run)(&fuzz, &input) {
            Ok(()) if status("VmHWM:") - before > MAX_GROWTH => 3,
            Ok(()) => 0,
            Err(broken) => {
                println!("target {}: {}", target.name, broken.0);
                1
            }
        });
    }
    if args.only.as_deref().is_none_or(|only| only == "structured") {
        let path = args.sources.join("include/lance_tasks/lance_tasks.schema.json");
        let schema = fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let schema = serde_json::from_slice(&schema).map_err(|e| e.to_string())?;
        let cases = (args.inputs / 200).clamp(64, 1 << 20) as u32;
        if let Err(broken) = structured::run(&fuzz, &schema, args.seed, cases) {
            println!("target structured: {}", broken.0);
            return Ok(1);
        }
        slot.done.fetch_add(slot.targets[STRUCTURED].load(Relaxed), Relaxed);
    }
    let mut index = 0;
    while slot.done.load(Relaxed) < args.inputs && args.only.as_deref() != Some("structured") {
        let mut rng = Rng::new(args.seed, index);
        let at = choose(&mut rng, args.only.as_deref());
        let target = &TARGETS[at];
        let input = (target.generate)(&fuzz, &mut rng);
        slot.put(at, &input);
        if let Err(broken) = (target.run)(&fuzz, &input) {
            let end = Instant::now() + Duration::from_secs(20);
            let mut last = broken;
            let small = minimize(
                &input,
                |smaller| {
                    slot.put(at, smaller);
                    match (target.run)(&fuzz, smaller) {
                        Err(broken) if kind(&broken) == kind(&last) => {
                            last = broken;
                            true
                        }
                        _ => false,
                    }
                },
                || Instant::now() < end,
            );
            slot.put(at, &small);
            report(at, &small, &last);
            return Ok(1);
        }
        index += 1;
        slot.done.fetch_add(1, Relaxed);
        if index % 256 == 0 {
            shorten_stderr();
        }
        if index == WARM_UP {
            slot.baseline.store(status("VmHWM:"), Relaxed);
        }
    }
    Ok(0)
}

/// Failures of one kind begin alike; what follows may quote the input.
fn kind(broken: &Broken) -> String {
    broken.0.chars().take_while(|c| !c.is_ascii_digit() && *c != ':').take(40).collect()
}

/// Where a process's own files are.
pub fn sandbox(work: &Path, nth: usize) -> PathBuf {
    work.join(format!("sandbox-{nth}"))
}
