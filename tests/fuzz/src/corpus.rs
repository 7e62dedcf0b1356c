//! Valid inputs: the golden files of released formats, and specs, jobs, tasks and results made through
//! the ABI on small datasets in a sandbox.

use std::ffi::c_void;
use std::fs;
use std::path::{Path, PathBuf};
use std::ptr;

use crate::abi::{Api, ArrowSchema, ArrowStream, ExecutorOptions, Outcome, taken};
use crate::columns::{self, Column, Table, Values};
use crate::import;
use crate::mutate::{frame, unframe};

/// One job with its spec, tasks and results, each task executed once.
pub struct Work {
    pub name: String,
    pub spec: Vec<u8>,
    pub job: Vec<u8>,
    pub tasks: Vec<Vec<u8>>,
    /// Rows as Arrow IPC streams; empty for jobs that nothing was executed of.
    pub results: Vec<Vec<u8>>,
}

impl Work {
    /// What a task made as another Lance client would say it: fragments, a rewrite, an index segment.
    pub fn made(&self, api: &Api, nth: usize) -> Option<Vec<u8>> {
        let json = api.convert(self.results.get(nth)?, 1).ok()?.ok()?;
        let result: serde_json::Value = serde_json::from_slice(&json).ok()?;
        let made = match self.name.as_str() {
            "compact" | "index" | "text" | "optimize" => result["payload"].clone(),
            _ => result["fragments"].clone(),
        };
        Some(made.to_string().into_bytes())
    }
}

pub struct Corpus {
    pub work: Vec<Work>,
    pub specs: Vec<Vec<u8>>,
    pub jobs: Vec<Vec<u8>>,
    pub tasks: Vec<Vec<u8>>,
    pub results: Vec<Vec<u8>>,
    /// Tables of results, one per job that has some, and one of tasks at the end.
    pub tables: Vec<Table>,
    /// The rows of those tables as `table_to_rows` gives them.
    pub rows: Vec<Vec<Vec<u8>>>,
}

/// An executor of the library, freed with this.
pub struct Executor<'a> {
    api: &'a Api,
    pub handle: *mut c_void,
}

impl<'a> Executor<'a> {
    pub fn new(api: &'a Api) -> Result<Self, String> {
        let options = ExecutorOptions { struct_size: 16, num_threads: 2, memory_budget: 64 << 20 };
        let mut handle = ptr::null_mut();
        // SAFETY: places for the outputs.
        must(
            "executor_new",
            api.call("executor_new", |error| unsafe {
                (api.f.executor_new)(&options, &mut handle, error)
            }),
        )?;
        Ok(Self { api, handle })
    }

    pub fn prepare(&self, spec: &[u8], schema: Option<&mut ArrowSchema>) -> Outcome<Vec<u8>> {
        let schema = schema.map_or(ptr::null_mut(), ptr::from_mut);
        // SAFETY: a live executor, readable bytes, places for the outputs; so below.
        self.api.bytes("prepare", |out, error| unsafe {
            let (data, len) = (spec.as_ptr(), spec.len());
            (self.api.f.prepare)(self.handle, data, len, schema, ptr::null(), out, error)
        })
    }

    pub fn plan(&self, job: &[u8], mut results: ArrowStream) -> Outcome<ArrowStream> {
        let place: *mut ArrowStream =
            if results.release.is_some() { &mut results } else { ptr::null_mut() };
        let tasks = self.api.stream("plan", |out, error| unsafe {
            let (data, len) = (job.as_ptr(), job.len());
            (self.api.f.plan)(self.handle, data, len, place, ptr::null(), out, error)
        });
        taken("plan", &results).and(tasks)
    }

    pub fn execute(&self, task: &[u8], mut input: ArrowStream) -> Outcome<ArrowStream> {
        let place: *mut ArrowStream =
            if input.release.is_some() { &mut input } else { ptr::null_mut() };
        let result = self.api.stream("execute", |out, error| unsafe {
            let (data, len) = (task.as_ptr(), task.len());
            (self.api.f.execute)(self.handle, data, len, place, ptr::null(), out, error)
        });
        taken("execute", &input).and(result)
    }

    pub fn adopt(&self, job: &[u8], task: &[u8], made: &[u8]) -> Outcome<ArrowStream> {
        self.api.stream("adopt", |out, error| unsafe {
            (self.api.f.adopt)(
                self.handle,
                job.as_ptr(),
                job.len(),
                task.as_ptr(),
                task.len(),
                made.as_ptr(),
                made.len(),
                ptr::null(),
                out,
                error,
            )
        })
    }

    pub fn commit(&self, job: &[u8], mut results: ArrowStream) -> Outcome<Vec<u8>> {
        let answer = self.api.bytes("commit", |out, error| unsafe {
            let (data, len) = (job.as_ptr(), job.len());
            (self.api.f.commit)(self.handle, data, len, &mut results, ptr::null(), out, error)
        });
        taken("commit", &results).and(answer)
    }

    pub fn abort(&self, job: &[u8], mut results: ArrowStream) -> Outcome<Vec<u8>> {
        let answer = self.api.bytes("abort", |out, error| unsafe {
            let (data, len) = (job.as_ptr(), job.len());
            (self.api.f.abort)(self.handle, data, len, &mut results, ptr::null(), out, error)
        });
        taken("abort", &results).and(answer)
    }
}

impl Drop for Executor<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once.
        unsafe { (self.api.f.executor_free)(self.handle) };
    }
}

/// A call of the set-up, which must succeed.
pub fn must<T>(what: &str, outcome: Outcome<T>) -> Result<T, String> {
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(failure)) => Err(format!("{what}: {} {}", failure.code, failure.message)),
        Err(broken) => Err(format!("{what}: {}", broken.0)),
    }
}

/// A small table with the schema of the sandbox's datasets: `id` int64, `name` utf8.
pub fn people(rows: usize) -> Table {
    let ids = (0..rows as i64).flat_map(i64::to_le_bytes).collect();
    let names = (0..rows).map(|i| format!("row {i}").into_bytes()).collect();
    let nullable = |c: Column| Column { nullable: true, ..c };
    let id = Values::Fixed { format: "l".into(), width: 8, data: ids };
    let name = Values::Text { format: "u", dictionary: false, items: names };
    let columns = vec![nullable(Column::new("id", id)), nullable(Column::new("name", name))];
    Table { columns, rows, ..Default::default() }
}

fn rows_of(api: &Api, stream: ArrowStream) -> Result<Vec<Vec<u8>>, String> {
    Ok(unframe(&must("table_to_rows", api.table_to_rows(stream))?))
}

/// Executes what is to do; commits where told to.
fn work(
    api: &Api,
    executor: &Executor<'_>,
    name: &str,
    spec: String,
    partitions: &[&str],
    commit: bool,
) -> Result<Work, String> {
    let spec = spec.into_bytes();
    let mut input = (!partitions.is_empty()).then(|| columns::export_schema(people(0).columns));
    let schema = input.as_mut().map(|(schema, _)| schema);
    let job = must("prepare", executor.prepare(&spec, schema))?;
    let tasks = if partitions.is_empty() {
        let plan = must("plan", executor.plan(&job, ArrowStream::empty()))?;
        rows_of(api, plan)?
    } else {
        let task = |p: &&str| must("job_task", api.job_task(&job, p.as_bytes()));
        partitions.iter().map(task).collect::<Result<_, _>>()?
    };
    let mut results = Vec::new();
    for task in &tasks {
        let input =
            if partitions.is_empty() { ArrowStream::empty() } else { columns::export(people(3)).0 };
        let result = must("execute", executor.execute(task, input))?;
        results.extend(rows_of(api, result)?);
    }
    if commit {
        let framed = frame(&results);
        let table = must("rows_to_table", api.rows_to_table(&framed))?;
        must("commit", executor.commit(&job, table))?;
    }
    Ok(Work { name: name.to_owned(), spec, job, tasks, results })
}

/// Make the datasets and the corpus in an empty folder, and a pristine copy of the datasets.
pub fn make(api: &Api, sandbox: &Path) -> Result<(), String> {
    let io = |e: std::io::Error| format!("{}: {e}", sandbox.display());
    let root = sandbox.to_str().ok_or("the sandbox's path is not UTF-8")?;
    fs::write(sandbox.join("canary"), "not yours").map_err(io)?;
    fs::write(sandbox.join("in.csv"), "id,name\n1,a\n2,b\n3,\n4,d\n").map_err(io)?;
    let more = "{\"id\":5,\"name\":\"e\"}\n{\"id\":6,\"name\":\"f\"}\n";
    fs::write(sandbox.join("in.ndjson"), more).map_err(io)?;
    let executor = Executor::new(api)?;
    let data = format!("{root}/data.lance");
    let write = |rest: &str| format!(r#"{{"operation":"write","uri":"{data}",{rest}}}"#);
    let csv = format!(r#""sources":["{root}/in.csv"]"#);
    let on = |name: &str, rest: &str| format!(r#"{{"operation":"{name}","uri":"{data}",{rest}}}"#);
    let all: [(&str, String, &[&str], bool); 8] = [
        ("create", write(&format!(r#"{csv},"max_rows_per_file":1"#)), &[], true),
        (
            "append",
            write(&format!(
                r#""mode":"append","max_rows_per_file":2,"sources":["{root}/in.ndjson",
                {{"uri":"{data}","format":"lance","version":1,"filter":"id > 1"}}]"#
            )),
            &[],
            false,
        ),
        (
            "open",
            write(r#""mode":"append","partitions":["a","b"],"transaction_properties":{"k":"v"}"#),
            &["a", "b"],
            false,
        ),
        ("overwrite", write(&format!(r#"{csv},"mode":"overwrite""#)), &[], false),
        ("compact", on("compact", r#""micro_commit_batch_size":3"#), &[], false),
        (
            "index",
            on("create_index", r#""column":"id","index_type":"BTREE","params":{"zone_size":512}"#),
            &[],
            true,
        ),
        (
            "text",
            on(
                "create_index",
                r#""column":"name","index_type":"FTS","merge":true,"num_segments":2"#,
            ),
            &[],
            false,
        ),
        ("optimize", on("optimize_index", r#""retrain":true,"num_segments":2"#), &[], false),
    ];
    let corpus = sandbox.join("corpus");
    fs::create_dir(&corpus).map_err(io)?;
    for (name, spec, partitions, commit) in all {
        let work = work(api, &executor, name, spec, partitions, commit)?;
        let put = |kind: &str, i: usize, bytes: &[u8]| {
            fs::write(corpus.join(format!("{name}.{kind}.{i:02}")), bytes).map_err(io)
        };
        put("spec", 0, &work.spec)?;
        put("job", 0, &work.job)?;
        for (i, task) in work.tasks.iter().enumerate() {
            put("task", i, task)?;
        }
        for (i, result) in work.results.iter().enumerate() {
            put("result", i, result)?;
        }
    }
    drop(executor);
    copy(&sandbox.join("data.lance"), &sandbox.join("pristine")).map_err(io)
}

/// Put the sandbox's dataset back as it was.
pub fn restore(sandbox: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(sandbox)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("corpus") && !path.ends_with("pristine") {
            fs::remove_dir_all(path)?;
        }
    }
    copy(&sandbox.join("pristine"), &sandbox.join("data.lance"))
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    Ok(paths)
}

/// Read the corpus of a sandbox and the golden files.
pub fn load(api: &Api, sandbox: &Path, golden: &Path) -> Result<Corpus, String> {
    let mut corpus = Corpus {
        work: Vec::new(),
        specs: Vec::new(),
        jobs: Vec::new(),
        tasks: Vec::new(),
        results: Vec::new(),
        tables: Vec::new(),
        rows: Vec::new(),
    };
    for path in files(&sandbox.join("corpus"))? {
        let bytes = fs::read(&path).map_err(|e| e.to_string())?;
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        let mut parts = name.split('.');
        let (of, kind) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if corpus.work.last().is_none_or(|w| w.name != of) {
            corpus.work.push(Work {
                name: of.to_owned(),
                spec: Vec::new(),
                job: Vec::new(),
                tasks: Vec::new(),
                results: Vec::new(),
            });
        }
        let Some(work) = corpus.work.last_mut() else { continue };
        match kind {
            "spec" => work.spec = bytes,
            "job" => work.job = bytes,
            "task" => work.tasks.push(bytes),
            _ => work.results.push(bytes),
        }
    }
    for work in &corpus.work {
        let both = |bytes: &Vec<u8>| -> Result<[Vec<u8>; 2], String> {
            Ok([must("convert", api.convert(bytes, 1))?, must("convert", api.convert(bytes, 2))?])
        };
        corpus.specs.push(work.spec.clone());
        corpus.specs.extend(both(&work.spec)?);
        corpus.jobs.extend(both(&work.job)?);
        for task in &work.tasks {
            corpus.tasks.extend(both(task)?);
        }
        corpus.results.extend(work.results.iter().cloned());
    }
    let mut tables: Vec<Vec<Vec<u8>>> = corpus.work.iter().map(|w| w.results.clone()).collect();
    tables.push(corpus.work.iter().flat_map(|w| w.tasks.clone()).collect());
    for rows in tables {
        let framed = frame(&rows);
        let table = must("rows_to_table", api.rows_to_table(&framed))?;
        corpus.tables.push(import::import(table)?);
        corpus.rows.push(rows);
    }
    for path in files(golden)? {
        let bytes = fs::read(&path).map_err(|e| e.to_string())?;
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        match name {
            n if n.contains(".job.") => corpus.jobs.push(bytes),
            n if n.contains(".task.") => corpus.tasks.push(bytes),
            n if n.ends_with(".arrow") => corpus.results.push(bytes),
            _ => {}
        }
    }
    Ok(corpus)
}
