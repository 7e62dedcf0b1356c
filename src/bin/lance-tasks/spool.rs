//! A spool: a folder with a job, its tasks, and one file per attempt.
//!
//! ```text
//! job.json                          the job
//! tasks/<task id>.task              a task, binary
//! results/<task id>.<attempt>.arrow one result row, Arrow IPC
//! outcome.json                      what the last commit did
//! ```
//!
//! Files appear whole (written beside and renamed), so that any number of processes may share a spool.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use lance_tasks::{Descriptor, Error, ErrorCode, Job, Result, Task, TaskResult};
use serde_json::Value;

pub struct Spool {
    root: PathBuf,
    pub job: Job,
}

fn io(path: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorCode::Io, format!("spool {}: {error}", path.display()))
}

impl Spool {
    /// Make a spool of a job. A folder that holds one already is refused.
    pub fn create(root: &Path, job: &Job) -> Result<()> {
        let file = root.join("job.json");
        if file.exists() {
            return Err(Error::new(
                ErrorCode::AlreadyExists,
                format!("spool {} holds a job already", root.display()),
            ));
        }
        for folder in ["tasks", "results"] {
            fs::create_dir_all(root.join(folder)).map_err(|e| io(root, &e))?;
        }
        put(&file, job.to_json()?.as_bytes())
    }

    pub fn open(root: &Path) -> Result<Self> {
        let file = root.join("job.json");
        let bytes = fs::read(&file).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::new(
                ErrorCode::NotFound,
                format!("{} is no spool: it holds no job.json", root.display()),
            ),
            _ => io(&file, &e),
        })?;
        let job = Job::decode(&bytes).map_err(|e| e.context(file.display()))?;
        Ok(Self { root: root.to_owned(), job })
    }

    pub fn put_tasks(&self, tasks: &[Task]) -> Result<()> {
        for task in tasks {
            put(&self.root.join("tasks").join(format!("{}.task", task.id)), &task.to_bytes()?)?;
        }
        Ok(())
    }

    /// Tasks without a successful result, in order.
    pub fn open_tasks(&self) -> Result<Vec<Task>> {
        let done: HashSet<_> =
            self.results()?.iter().filter(|r| r.succeeded()).map(|r| r.task_id).collect();
        let mut tasks = Vec::new();
        for file in self.files("tasks", "task")? {
            let bytes = fs::read(&file).map_err(|e| io(&file, &e))?;
            let task = Task::decode(&bytes).map_err(|e| e.context(file.display()))?;
            if !done.contains(&task.id) {
                tasks.push(task);
            }
        }
        tasks.sort_by_key(|t| (t.stage, t.index));
        Ok(tasks)
    }

    pub fn put_result(&self, result: &TaskResult) -> Result<()> {
        let name = format!("{}.{}.arrow", result.task_id, result.attempt_id);
        let bytes = TaskResult::to_ipc(std::slice::from_ref(result))?;
        put(&self.root.join("results").join(name), &bytes)
    }

    pub fn results(&self) -> Result<Vec<TaskResult>> {
        let mut results = Vec::new();
        for file in self.files("results", "arrow")? {
            let bytes = fs::read(&file).map_err(|e| io(&file, &e))?;
            results.extend(TaskResult::from_ipc(&bytes).map_err(|e| e.context(file.display()))?);
        }
        Ok(results)
    }

    pub fn put_outcome(&self, outcome: &Value) -> Result<()> {
        put(&self.root.join("outcome.json"), serde_json::to_string_pretty(outcome)?.as_bytes())
    }

    fn files(&self, folder: &str, ending: &str) -> Result<Vec<PathBuf>> {
        let folder = self.root.join(folder);
        let mut files = Vec::new();
        for entry in fs::read_dir(&folder).map_err(|e| io(&folder, &e))? {
            let path = entry.map_err(|e| io(&folder, &e))?.path();
            if path.extension().is_some_and(|e| e == ending) {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }
}

/// Write a file so that others see it whole or not at all.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|e| io(path, &e))?;
    std::io::Write::write_all(&mut file, bytes).map_err(|e| io(path, &e))?;
    file.as_file().sync_all().map_err(|e| io(path, &e))?;
    file.persist(path).map_err(|e| io(path, &e.error))?;
    Ok(())
}
