//! A spool: one job, its tasks and the results of its attempts, in a folder or an object store that any
//! number of processes share.
//!
//! ```text
//! job.json                 the job and the spec that it was prepared from
//! tasks/<stage>.arrow      every task of a stage; without rows: there is no such stage
//! results/<name>.arrow     results of one or more attempts, see names.rs
//! outcome.json             what the last commit did
//! aborted.json             what the last abort did
//! ```
//!
//! Stages are planned by whoever comes first: a stage's tasks are the same in every plan, and its file
//! is never replaced.

mod names;

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;

use arrow_array::cast::AsArray;
use arrow_array::types::{UInt32Type, UInt64Type};
use arrow_array::{BooleanArray, RecordBatch};
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
use lance_tasks::{Descriptor, Error, ErrorCode, Job, Result, Spec, Task, TaskResult};
use rayon::prelude::*;
use serde_json::Value;

pub use lance_tasks::files::Files;
use names::ResultName;

const JOB: &str = "job.json";
const OUTCOME: &str = "outcome.json";
const ABORTED: &str = "aborted.json";

pub struct Spool {
    files: Files,
    pub job: Job,
    /// As it was given to `prepare`; none in a spool that another program made.
    pub spec: Option<Value>,
}

/// What the results' names say of the attempts at a task.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attempts {
    pub ok: u32,
    pub failed: u32,
}

/// The attempts at tasks, by stage and index.
pub type Marks = HashMap<(u32, u32), Attempts>;

impl Spool {
    pub fn exists(files: &Files) -> Result<bool> {
        Ok(files.get(JOB)?.is_some())
    }

    /// Make a spool of a job. A place that holds one already is refused.
    pub fn create(files: Files, spec: &Spec, job: Job) -> Result<Self> {
        let mut value: Value = serde_json::from_str(&job.to_json()?)?;
        let spec: Value = serde_json::from_str(&spec.to_json()?)?;
        value["spec"] = spec.clone();
        if !files.put_new(JOB, serde_json::to_string_pretty(&value)?.as_bytes())? {
            return Err(Self::taken(&files));
        }
        Ok(Self { files, job, spec: Some(spec) })
    }

    pub fn taken(files: &Files) -> Error {
        let text = format!("spool {} holds a job already", files.place());
        Error::new(ErrorCode::AlreadyExists, text)
    }

    pub fn open(files: Files) -> Result<Self> {
        let place = files.place();
        let bytes = files.get(JOB)?.ok_or_else(|| {
            Error::new(ErrorCode::NotFound, format!("{place} is no spool: it holds no {JOB}"))
        })?;
        let job = Job::decode(&bytes).map_err(|e| e.context(format!("spool {place}: {JOB}")))?;
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        Ok(Self { files, job, spec: value.get("spec").cloned() })
    }

    pub fn place(&self) -> String {
        self.files.place()
    }

    /// The last stage that has been planned.
    pub fn last_stage(&self) -> Result<Option<Stage>> {
        let names = self.files.list("tasks")?;
        let last = names.iter().filter_map(|n| n.strip_suffix(".arrow")?.parse().ok()).max();
        last.map(|number| self.stage(number)).transpose()
    }

    pub fn stage(&self, number: u32) -> Result<Stage> {
        let name = format!("tasks/{number}.arrow");
        let bytes = self.files.get(&name)?.ok_or_else(|| {
            Error::new(ErrorCode::NotFound, format!("spool {}: no {name}", self.place()))
        })?;
        Stage::decode(number, &bytes)
            .map_err(|e| e.context(format!("spool {}: {name}", self.place())))
    }

    /// Note a stage's tasks, unless another process already has.
    pub fn put_stage(&self, number: u32, tasks: &[Task]) -> Result<()> {
        let bytes = Stage::encode(tasks)?;
        self.files.put_new(&format!("tasks/{number}.arrow"), &bytes)?;
        Ok(())
    }

    /// Which tasks have been attempted, and how it went. Reads no result.
    pub fn marks(&self) -> Result<Marks> {
        let mut marks = Marks::new();
        for (_, name) in self.result_names()? {
            for index in name.tasks {
                let attempts = marks.entry((name.stage, index)).or_default();
                *if name.ok { &mut attempts.ok } else { &mut attempts.failed } += 1;
            }
        }
        Ok(marks)
    }

    fn result_names(&self) -> Result<Vec<(String, ResultName)>> {
        let names = self.files.list("results")?.into_iter();
        names
            .map(|file| match ResultName::parse(&file) {
                Some(name) => Ok((format!("results/{file}"), name)),
                None => Err(Error::new(
                    ErrorCode::Decode,
                    format!("spool {}: results/{file} is no result of a spool", self.place()),
                )),
            })
            .collect()
    }

    /// Every result, of every attempt.
    pub fn results(&self) -> Result<Vec<TaskResult>> {
        let names: Vec<String> = self.result_names()?.into_iter().map(|(file, _)| file).collect();
        let files = self.files.get_all(&names)?;
        let results: Vec<Vec<TaskResult>> = names
            .par_iter()
            .zip(files)
            .map(|(name, bytes)| {
                TaskResult::from_ipc(&bytes)
                    .map_err(|e| e.context(format!("spool {}: {name}", self.place())))
            })
            .collect::<Result<_>>()?;
        Ok(results.into_iter().flatten().collect())
    }

    /// Note results of a stage's tasks: one file for many, as far as their names go.
    pub fn put_results(&self, stage: u32, mut results: Vec<(u32, TaskResult)>) -> Result<()> {
        results.sort_by_key(|(index, _)| *index);
        let (ok, failed): (Vec<_>, Vec<_>) =
            results.into_iter().partition(|(_, result)| result.succeeded());
        for (ok, group) in [(true, ok), (false, failed)] {
            let (indices, results): (Vec<u32>, Vec<TaskResult>) = group.into_iter().unzip();
            let mut rest = results.as_slice();
            for (tasks, count) in names::compress(&indices) {
                let (of_file, others) = rest.split_at(count);
                rest = others;
                let name = names::file_name(stage, &tasks, ok, of_file[0].attempt_id);
                self.files.put(&format!("results/{name}"), &TaskResult::to_ipc(of_file)?)?;
            }
        }
        Ok(())
    }

    pub fn put_outcome(&self, outcome: &Value) -> Result<()> {
        self.files.put(OUTCOME, serde_json::to_string_pretty(outcome)?.as_bytes())
    }

    pub fn outcome(&self) -> Result<Option<Value>> {
        self.note(OUTCOME)
    }

    pub fn put_aborted(&self, report: &Value) -> Result<()> {
        self.files.put(ABORTED, serde_json::to_string_pretty(report)?.as_bytes())
    }

    pub fn aborted(&self) -> Result<Option<Value>> {
        self.note(ABORTED)
    }

    fn note(&self, name: &str) -> Result<Option<Value>> {
        let Some(bytes) = self.files.get(name)? else { return Ok(None) };
        let value = serde_json::from_slice(&bytes).map_err(|e| {
            Error::new(ErrorCode::Decode, format!("spool {}: {name}: {e}", self.place()))
        })?;
        Ok(Some(value))
    }

    /// Remove what killed processes left half written, when the spool's work is at its end.
    pub fn remove_stale(&self) -> Result<()> {
        [".", "tasks", "results"].iter().try_for_each(|folder| self.files.remove_stale(folder))
    }

    /// Refuse to work on a job whose files have been removed.
    pub fn refuse_aborted(&self) -> Result<()> {
        match self.aborted()? {
            None => Ok(()),
            Some(_) => Err(Error::new(
                ErrorCode::InvalidState,
                format!("spool {}: the job was aborted; prepare a new one", self.place()),
            )),
        }
    }

    /// Keep a spool that was in memory only.
    pub fn save(&self, to: &Files) -> Result<()> {
        self.files.save(to)
    }

    /// What differs between the spec of this spool and another one, option by option.
    pub fn differences(&self, spec: &Spec) -> Result<Vec<String>> {
        let other: Value = serde_json::from_str(&spec.to_json()?)?;
        let Some(own) = &self.spec else {
            return Ok(vec!["the spool does not say which spec it was prepared from".into()]);
        };
        let map = |value: &Value| -> BTreeMap<String, Value> {
            value.as_object().cloned().unwrap_or_default().into_iter().collect()
        };
        let (own, other) = (map(own), map(&other));
        let text = |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
        let keys: std::collections::BTreeSet<&String> = own.keys().chain(other.keys()).collect();
        Ok(keys
            .into_iter()
            .filter(|key| own.get(*key) != other.get(*key))
            .map(|key| {
                let (has, says) = (text(own.get(key)), text(other.get(key)));
                format!("{key}: the spool has {has}, this command says {says}")
            })
            .collect())
    }
}

/// The tasks of one stage; decoded only where asked for.
pub struct Stage {
    pub number: u32,
    table: Option<RecordBatch>,
}

impl Stage {
    fn encode(tasks: &[Task]) -> Result<Vec<u8>> {
        let table = Task::to_table(tasks)?;
        // Tasks of one job say much the same.
        let options = IpcWriteOptions::default()
            .try_with_compression(Some(arrow_ipc::CompressionType::ZSTD))?;
        let mut bytes = Vec::new();
        let schema = table.schema();
        let mut writer = StreamWriter::try_new_with_options(&mut bytes, &schema, options)?;
        writer.write(&table)?;
        writer.finish()?;
        drop(writer);
        Ok(bytes)
    }

    fn decode(number: u32, bytes: &[u8]) -> Result<Self> {
        let damaged = |why: &str| Error::new(ErrorCode::Decode, format!("damaged: {why}"));
        let reader = arrow_ipc::reader::StreamReader::try_new(Cursor::new(bytes), None)
            .map_err(|e| damaged(&e.to_string()))?;
        if reader.schema() != Task::table_schema() {
            return Err(damaged("not a table of tasks"));
        }
        let batches: Vec<RecordBatch> =
            reader.collect::<std::result::Result<_, _>>().map_err(|e| damaged(&e.to_string()))?;
        let schema = Task::table_schema();
        let table = arrow_select::concat::concat_batches(&schema, &batches)?;
        Ok(Self { number, table: (table.num_rows() > 0).then_some(table) })
    }

    /// There are no tasks: the stage before was the last.
    pub fn is_end(&self) -> bool {
        self.table.is_none()
    }

    /// Every task's index with its estimated rows.
    pub fn tasks(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.table.iter().flat_map(|table| {
            let index = table["index"].as_primitive::<UInt32Type>();
            let rows = table["estimated_rows"].as_primitive::<UInt64Type>();
            index.values().iter().copied().zip(rows.values().iter().copied())
        })
    }

    /// Tasks that have no successful attempt.
    pub fn open(&self, marks: &Marks) -> Vec<u32> {
        let done = |index: u32| marks.get(&(self.number, index)).is_some_and(|a| a.ok > 0);
        self.tasks().map(|(index, _)| index).filter(|index| !done(*index)).collect()
    }

    /// The tasks of some indices, in order.
    pub fn decode_tasks(&self, wanted: &[u32]) -> Result<Vec<Task>> {
        let Some(table) = &self.table else { return Ok(Vec::new()) };
        let wanted: std::collections::HashSet<u32> = wanted.iter().copied().collect();
        let index = table["index"].as_primitive::<UInt32Type>();
        let mask: BooleanArray = index.values().iter().map(|i| Some(wanted.contains(i))).collect();
        Task::from_table(&arrow_select::filter::filter_record_batch(table, &mask)?)
    }
}
