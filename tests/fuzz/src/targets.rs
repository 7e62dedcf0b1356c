//! What is fuzzed: how inputs are made, and what must hold of them.

use std::cell::Cell;
use std::path::Path;

use crate::abi::{Api, ArrowStream, Check, INTERNAL, Outcome, broken};
use crate::columns::{self, Table};
use crate::corpus::{self, Corpus, Executor};
use crate::mutate::{self, false_frame, frame, join, split, unframe};
use crate::rng::Rng;
use crate::tables::{self, Program};

pub const JSON: i32 = 1;
pub const BINARY: i32 = 2;

/// Everything that targets work with.
pub struct Fuzz<'a> {
    pub api: &'a Api,
    pub executor: Executor<'a>,
    pub corpus: Corpus,
    pub sandbox: &'a Path,
    /// Inputs that reached the sandbox's dataset since it was restored.
    pub touched: Cell<u32>,
}

pub struct Target {
    pub name: &'static str,
    /// How often it is chosen, of all the targets' sum.
    pub weight: usize,
    pub generate: fn(&Fuzz<'_>, &mut Rng) -> Vec<u8>,
    pub run: fn(&Fuzz<'_>, &[u8]) -> Check<()>,
}

pub const TARGETS: &[Target] = &[
    Target { name: "convert", weight: 1500, generate: any_bytes, run: convert },
    Target { name: "job_task", weight: 160, generate: partition, run: job_task },
    Target { name: "rows_to_table", weight: 60, generate: rows, run: rows_to_table },
    Target { name: "table_to_rows", weight: 240, generate: program, run: table },
    Target { name: "arguments", weight: 24, generate: program, run: crate::arguments::run },
    Target { name: "prepare", weight: 6, generate: spec, run: prepare },
    Target { name: "execute", weight: 3, generate: task, run: execute },
    Target { name: "adopt", weight: 7, generate: made, run: adopt },
    Target { name: "plan, commit, abort", weight: 7, generate: results, run: verbs },
];

/// The place of the structured values, which proptest makes, among the targets.
pub const STRUCTURED: usize = 15;

fn near(fuzz: &Fuzz<'_>, rng: &mut Rng, kind: usize) -> Vec<u8> {
    let c = &fuzz.corpus;
    let pools = [&c.specs, &c.jobs, &c.tasks, &c.results];
    let mut data = rng.pick(pools[kind]).clone();
    let other = rng.pick(pools[kind]);
    match data.first() {
        Some(b'L') => mutate::descriptor(rng, &mut data, other),
        Some(b'{') => mutate::json(rng, &mut data, other),
        _ => mutate::bytes(rng, &mut data, other),
    }
    data
}

fn any_bytes(fuzz: &Fuzz<'_>, rng: &mut Rng) -> Vec<u8> {
    match rng.below(24) {
        0 => {
            let mut data =
                rng.pick(&[&b""[..], b"{", b"LTSK\x01\x00", b"\xff\xff\xff\xff"]).to_vec();
            data.extend((0..rng.below(400)).map(|_| rng.next() as u8));
            data
        }
        1..=4 => near(fuzz, rng, 3),
        n => near(fuzz, rng, n % 3),
    }
}

/// Decoding never answers "anything else": what is wrong with the input is said.
fn decoded<T>(name: &str, outcome: Outcome<T>) -> Check<Option<T>> {
    match outcome? {
        Ok(value) => Ok(Some(value)),
        Err(failure) if failure.code == INTERNAL => {
            broken!("{name} of bad input is INTERNAL: {}", failure.message)
        }
        Err(_) => Ok(None),
    }
}

fn same(what: &str, one: &[u8], other: &[u8]) -> Check<()> {
    if one != other {
        let text = |b: &[u8]| b[..b.len().min(4000)].escape_ascii().to_string();
        broken!("{what} differs:\n{}\n{}", text(one), text(other));
    }
    Ok(())
}

/// What decodes comes back from both encodings as it was; both encodings decode or none does.
pub fn convert(fuzz: &Fuzz<'_>, data: &[u8]) -> Check<()> {
    let to = |data: &[u8], encoding| decoded("convert", fuzz.api.convert(data, encoding));
    let json = to(data, JSON)?;
    let binary = to(data, BINARY)?;
    let (json, binary) = match (json, binary) {
        (Some(json), Some(binary)) => (json, binary),
        (None, None) => return Ok(()),
        (json, _) => broken!("one encoding fails, JSON is {}", json.is_some()),
    };
    let Some(again) = to(&binary, BINARY)? else { broken!("binary is not read back") };
    same("binary of binary", &binary, &again)?;
    let Some(again) = to(&binary, JSON)? else { broken!("binary is not read back") };
    same("JSON of binary", &json, &again)?;
    if !binary.starts_with(b"LTSK") {
        // A result's JSON is a view.
        return Ok(());
    }
    let Some(again) = to(&json, BINARY)? else { broken!("JSON is not read back") };
    same("binary of JSON", &binary, &again)?;
    let Some(again) = to(&json, JSON)? else { broken!("JSON is not read back") };
    same("JSON of JSON", &json, &again)
}

fn partition(fuzz: &Fuzz<'_>, rng: &mut Rng) -> Vec<u8> {
    let open = fuzz.corpus.work.iter().find(|w| w.name == "open").map(|w| &w.job);
    let job = match (rng.below(3), open) {
        (0, Some(job)) => job.clone(),
        (1, Some(job)) => {
            let mut job = job.clone();
            mutate::descriptor(rng, &mut job, &[]);
            job
        }
        _ => near(fuzz, rng, 1),
    };
    let mut name = rng.pick(&[&b"a"[..], b"b", b"p0", b"", b"a/b", b"\0"]).to_vec();
    if rng.one_in(3) {
        mutate::bytes(rng, &mut name, b"\xff partition \xf0\x9f\x98\x80");
    }
    join(&job, &name)
}

fn job_task(fuzz: &Fuzz<'_>, data: &[u8]) -> Check<()> {
    let (job, name) = split(data);
    let Some(task) = decoded("job_task", fuzz.api.job_task(job, name))? else { return Ok(()) };
    let again = decoded("job_task", fuzz.api.job_task(job, name))?;
    same("the task of a partition", &task, &again.unwrap_or_default())?;
    convert(fuzz, &task)
}

fn rows(fuzz: &Fuzz<'_>, rng: &mut Rng) -> Vec<u8> {
    let kind = 2 + rng.below(2);
    let items: Vec<Vec<u8>> = (0..rng.below(4))
        .map(|_| {
            let kind = if rng.one_in(20) { rng.below(4) } else { kind };
            if rng.one_in(2) {
                let pool = if kind == 2 { &fuzz.corpus.tasks } else { &fuzz.corpus.results };
                rng.pick(pool).clone()
            } else {
                near(fuzz, rng, kind)
            }
        })
        .collect();
    if rng.one_in(8) { false_frame(rng, &items) } else { frame(&items) }
}

/// Rows as bytes make a table, whose rows are the same again.
fn rows_to_table(fuzz: &Fuzz<'_>, framed: &[u8]) -> Check<()> {
    let Some(table) = decoded("rows_to_table", fuzz.api.rows_to_table(framed))? else {
        return Ok(());
    };
    match fuzz.api.table_to_rows(table)? {
        Ok(rows) => stable(fuzz, &rows),
        Err(failure) => broken!("a table is not read back: {}", failure.message),
    }
}

/// Rows that the library made are rows again.
fn stable(fuzz: &Fuzz<'_>, rows: &[u8]) -> Check<()> {
    let table = match fuzz.api.rows_to_table(rows)? {
        Ok(table) => table,
        Err(failure) => broken!("rows are not read back: {}", failure.message),
    };
    match fuzz.api.table_to_rows(table)? {
        Ok(again) => same("rows of a table of rows", rows, &again),
        Err(failure) => broken!("a table is not read back: {}", failure.message),
    }
}

fn program(_: &Fuzz<'_>, rng: &mut Rng) -> Vec<u8> {
    (0..2 + rng.below(24)).map(|_| rng.next() as u8).collect()
}

/// Tables that any engine may have carried: read, or refused with everything released.
fn table(fuzz: &Fuzz<'_>, data: &[u8]) -> Check<()> {
    let mut program = Program(data);
    let one_by_one = program.below(4) == 0;
    let built = tables::build(&fuzz.corpus, &mut program);
    let one_by_one = one_by_one && built.base + 1 < fuzz.corpus.tables.len();
    let results = one_by_one || built.table.columns.iter().any(|c| c.name == "attempt_id");
    let refused = tables::refused(&built.table, results);
    let (stream, released) = columns::export(built.table);
    let outcome =
        if one_by_one { next_rows(fuzz, stream)? } else { fuzz.api.table_to_rows(stream)? };
    let left = released.live.load(std::sync::atomic::Ordering::SeqCst);
    if left != 0 {
        broken!("{left} of the stream's structs are not released");
    }
    match (outcome, refused, built.same) {
        (Err(failure), _, None) if failure.code == INTERNAL => {
            broken!("a bad table is INTERNAL: {}", failure.message)
        }
        (Ok(_), Some(why), _) => broken!("a table was read although {why}"),
        (Ok(rows), None, Some(same_rows)) => {
            let all = &fuzz.corpus.rows[built.base];
            let expected: Vec<Vec<u8>> = same_rows.iter().map(|r| all[*r].clone()).collect();
            same("rows of an equal table", &frame(&expected), &rows)
        }
        (Ok(rows), None, None) => stable(fuzz, &rows),
        (Err(failure), _, Some(_)) => broken!("an equal table is refused: {}", failure.message),
        (Err(_), _, None) => Ok(()),
    }
}

/// All rows by `next_row`, framed. An empty batch is no row.
fn next_rows(fuzz: &Fuzz<'_>, mut stream: ArrowStream) -> Outcome<Vec<u8>> {
    let mut rows = Vec::new();
    for _ in 0..100 {
        match fuzz.api.next_row(&mut stream)? {
            Err(failure) => return Ok(Err(failure)),
            Ok(row) if row.is_empty() => return Ok(Ok(frame(&rows))),
            // The rows of one batch come as one stream.
            Ok(row) => {
                let table = fuzz.api.rows_to_table(&frame(&[row]))?;
                let table = match table {
                    Ok(table) => table,
                    Err(failure) => broken!("next_row gave what is no row: {}", failure.message),
                };
                match fuzz.api.table_to_rows(table)? {
                    Ok(framed) => rows.extend(unframe(&framed)),
                    Err(failure) => broken!("next_row's row is not read: {}", failure.message),
                }
            }
        }
    }
    broken!("a stream without end")
}

// ---- the sandbox ----

/// Whether every place that a descriptor names is in the sandbox: mutated paths and URIs must not reach
/// files or hosts outside.
fn contained(fuzz: &Fuzz<'_>, descriptor: &[u8]) -> Check<bool> {
    let Ok(json) = fuzz.api.convert(descriptor, JSON)? else { return Ok(true) };
    let Ok(value) = serde_json::from_slice(&json) else { broken!("JSON is no JSON") };
    let sandbox = fuzz.sandbox.to_string_lossy().into_owned() + "/";
    fn inside(value: &serde_json::Value, key: &str, sandbox: &str) -> bool {
        match value {
            serde_json::Value::String(text) if ["uri", "path", "target_bases"].contains(&key) => {
                text.starts_with(sandbox) && !text.contains("..") && !text.contains("/corpus")
            }
            serde_json::Value::Array(items) => items.iter().all(|v| inside(v, key, sandbox)),
            serde_json::Value::Object(map) => map.iter().all(|(k, v)| inside(v, k, sandbox)),
            _ => true,
        }
    }
    Ok(inside(&value, "", &sandbox))
}

impl Fuzz<'_> {
    /// After a verb: files outside of the datasets are untouched; the datasets are put back at times.
    pub fn touched(&self) -> Check<()> {
        if std::fs::read(self.sandbox.join("canary")).ok().as_deref() != Some(b"not yours") {
            broken!("a file outside of the dataset was touched");
        }
        self.touched.set(self.touched.get() + 1);
        if self.touched.get() >= 500 {
            self.touched.set(0);
            if let Err(error) = corpus::restore(self.sandbox) {
                broken!("the sandbox cannot be restored: {error}");
            }
        }
        Ok(())
    }
}

fn spec(fuzz: &Fuzz<'_>, rng: &mut Rng) -> Vec<u8> {
    let choices = rng.next().to_le_bytes();
    join(&near(fuzz, rng, 0), &choices)
}

/// Prepare, and where that works plan, execute some and abort.
fn prepare(fuzz: &Fuzz<'_>, data: &[u8]) -> Check<()> {
    let (spec, choices) = split(data);
    if !contained(fuzz, spec)? {
        return Ok(());
    }
    let mut program = Program(choices);
    let mut table = corpus::people(2);
    let mut schema = None;
    if program.below(2) == 1 {
        if program.below(2) == 1 {
            table = tables::build(&fuzz.corpus, &mut program).table;
        }
        schema = Some(columns::export_schema(table.columns.clone()));
    }
    let job = fuzz.executor.prepare(spec, schema.as_mut().map(|(schema, _)| schema))?;
    if let Some((schema, released)) = schema
        && (schema.release.is_some()
            || released.live.load(std::sync::atomic::Ordering::SeqCst) != 0)
    {
        broken!("prepare left the schema");
    }
    let Ok(job) = job else { return fuzz.touched() };
    convert(fuzz, &job)?;
    let tasks = match fuzz.api.job_task(&job, b"a")? {
        Ok(task) => vec![task],
        Err(_) => match fuzz.executor.plan(&job, ArrowStream::empty())? {
            Ok(tasks) => match fuzz.api.table_to_rows(tasks)? {
                Ok(rows) => unframe(&rows),
                Err(failure) => broken!("a plan is not read: {}", failure.message),
            },
            Err(_) => return fuzz.touched(),
        },
    };
    let mut results = Vec::new();
    for task in tasks.iter().take(2) {
        let input = match fuzz.api.job_task(&job, b"a")? {
            Ok(_) => columns::export(table.clone()).0,
            Err(_) => ArrowStream::empty(),
        };
        if let Ok(result) = fuzz.executor.execute(task, input)? {
            match fuzz.api.table_to_rows(result)? {
                Ok(rows) => results.extend(unframe(&rows)),
                Err(failure) => broken!("a result is not read: {}", failure.message),
            }
        }
    }
    let table = match fuzz.api.rows_to_table(&frame(&results))? {
        Ok(table) => table,
        Err(failure) => broken!("results make no table: {}", failure.message),
    };
    // It may be refused, for example where the job's options contradict the dataset.
    let _ = fuzz.executor.abort(&job, table)?;
    fuzz.touched()
}

fn task(fuzz: &Fuzz<'_>, rng: &mut Rng) -> Vec<u8> {
    let choices = rng.next().to_le_bytes();
    join(&near(fuzz, rng, 2), &choices)
}

fn execute(fuzz: &Fuzz<'_>, data: &[u8]) -> Check<()> {
    let (task, choices) = split(data);
    if !contained(fuzz, task)? {
        return Ok(());
    }
    let mut program = Program(choices);
    let (input, released) = match program.below(3) {
        0 => columns::export(Table { released: true, ..Default::default() }),
        1 => columns::export(corpus::people(3)),
        _ => columns::export(tables::build(&fuzz.corpus, &mut program).table),
    };
    if let Ok(result) = fuzz.executor.execute(task, input)?
        && let Err(failure) = fuzz.api.table_to_rows(result)?
    {
        broken!("a result is not read: {}", failure.message);
    }
    // Buffers may be let go by another thread, shortly after the call.
    for _ in 0..500 {
        if released.live.load(std::sync::atomic::Ordering::SeqCst) == 0 {
            return fuzz.touched();
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    broken!("the input's structs are not released")
}

fn results(fuzz: &Fuzz<'_>, rng: &mut Rng) -> Vec<u8> {
    let which = rng.below(fuzz.corpus.work.len());
    let job = match rng.below(4) {
        0 => {
            let mut job = fuzz.corpus.work[which].job.clone();
            mutate::descriptor(rng, &mut job, &[]);
            job
        }
        1 => rng.pick(&fuzz.corpus.jobs).clone(),
        _ => fuzz.corpus.work[which].job.clone(),
    };
    let mut choices = vec![rng.next() as u8, which as u8];
    choices.extend((0..rng.below(16)).map(|_| rng.next() as u8));
    join(&job, &choices)
}

fn made(fuzz: &Fuzz<'_>, rng: &mut Rng) -> Vec<u8> {
    let work = rng.pick(&fuzz.corpus.work);
    let nth = rng.below(work.tasks.len());
    let mut made = work.made(fuzz.api, nth).unwrap_or_default();
    let (mut job, mut task) = (work.job.clone(), work.tasks[nth].clone());
    match rng.below(16) {
        // As it is: must be taken, where the library made it.
        0 => return join(&job, &join(&task, &made)),
        1 => mutate::descriptor(rng, &mut job, &[]),
        2 => mutate::descriptor(rng, &mut task, &[]),
        3 => task.clone_from(rng.pick(&fuzz.corpus.tasks)),
        _ => {}
    }
    mutate::json(rng, &mut made, b"[{\"id\": 0, \"files\": [], \"physical_rows\": 2}]");
    join(&job, &join(&task, &made))
}

/// What another client made is adopted or refused; what the library itself made is adopted.
fn adopt(fuzz: &Fuzz<'_>, data: &[u8]) -> Check<()> {
    let (job, rest) = split(data);
    let (task, made) = split(rest);
    if !contained(fuzz, job)? || !contained(fuzz, task)? {
        return Ok(());
    }
    let own = fuzz.corpus.work.iter().filter(|w| w.job == job).any(|w| {
        let nth = w.tasks.iter().position(|t| t == task);
        nth.and_then(|nth| w.made(fuzz.api, nth)).is_some_and(|own| own == made)
    });
    match fuzz.executor.adopt(job, task, made)? {
        Err(failure) if own => broken!("its own result is not adopted: {}", failure.message),
        Err(failure) if failure.code == INTERNAL => {
            broken!("adopt of bad input is INTERNAL: {}", failure.message)
        }
        Err(_) => Ok(()),
        Ok(result) => match fuzz.api.table_to_rows(result)? {
            Ok(rows) => stable(fuzz, &rows),
            Err(failure) => broken!("an adopted result is not read: {}", failure.message),
        },
    }
}

fn verbs(fuzz: &Fuzz<'_>, data: &[u8]) -> Check<()> {
    let (job, choices) = split(data);
    if !contained(fuzz, job)? {
        return Ok(());
    }
    let mut program = Program(choices);
    let verb = program.below(3);
    let built = tables::build(&fuzz.corpus, &mut program);
    // A stream that is released is none, for these verbs: no results.
    let refused = tables::refused(&built.table, true).filter(|_| !built.table.released);
    let (stream, released) = columns::export(built.table);
    let failure = match verb {
        0 => fuzz.executor.plan(job, stream)?.err(),
        1 => fuzz.executor.commit(job, stream)?.err(),
        _ => fuzz.executor.abort(job, stream)?.err(),
    };
    let left = released.live.load(std::sync::atomic::Ordering::SeqCst);
    if left != 0 {
        broken!("{left} of the stream's structs are not released");
    }
    if let (None, Some(why)) = (failure, refused) {
        broken!("results were taken although {why}");
    }
    fuzz.touched()
}
