//! How far a spool's job is.

use std::collections::{BTreeMap, HashSet};

use indicatif::HumanCount;
use lance_tasks::TaskResult;
use serde_json::{Value, json};

use super::facts;
use crate::report::{Answer, Outcome, bytes, count, seconds};
use crate::run::names;
use crate::spool::{Spool, Stage};

/// One stage in numbers of tasks.
struct Tasks {
    stage: u32,
    planned: usize,
    done: usize,
    failed: Vec<u32>,
    open: Vec<u32>,
    estimated_rows: u64,
}

pub fn inspect(spool: &Spool, list: bool) -> Outcome<Answer> {
    let marks = spool.marks()?;
    let results = spool.results()?;
    let (mut stages, mut ends) = (Vec::new(), false);
    let last = spool.last_stage()?.map_or(0, |stage| stage.number + 1);
    for number in 0..last {
        let stage = spool.stage(number)?;
        if stage.is_end() {
            ends = true;
        } else {
            stages.push(tasks(&stage, &marks));
        }
    }
    let outcome = spool.outcome()?;
    let aborted = spool.aborted()?;
    let remaining = stages.iter().any(|s| s.done < s.planned);
    let state = match (&outcome, &aborted) {
        (Some(outcome), _) if outcome["complete"] == true => "committed",
        (_, Some(_)) => "aborted",
        (Some(_), None) => "committed in part",
        (None, None) if last == 0 => "prepared",
        (None, None) if remaining => "open",
        (None, None) if ends => "ready to commit",
        (None, None) => "to be planned further",
    };
    let errors = errors(&results);
    let mut winners = HashSet::new();
    let (mut rows, mut size, mut busy) = (0, 0, 0.0);
    for result in &results {
        busy += result.elapsed as f64 / 1e6;
        if result.succeeded() && winners.insert(result.task_id) {
            rows += result.rows_out;
            size += result.bytes_written;
        }
    }
    let job = &spool.job;
    let ok = results.iter().filter(|r| r.succeeded()).count() as u64;
    let failed = results.len() as u64 - ok;
    let value = json!({
        "spool": spool.place(),
        "job_id": job.id,
        "operation": job.operation(),
        "uri": job.uri,
        "read_version": job.read_version,
        "spec": spool.spec,
        "state": state,
        "stages": stages.iter().map(|s| s.json(list)).collect::<Vec<_>>(),
        "attempts": { "ok": ok, "failed": failed },
        "rows": rows,
        "bytes_written": size,
        "seconds_busy": busy,
        "hosts": results.iter().map(|r| r.host.as_str()).collect::<HashSet<_>>().len(),
        "errors": errors,
        "outcome": outcome,
        "aborted": aborted,
    });
    let mut known = vec![("dataset", format!("{} at version {}", job.uri, job.read_version))];
    known.push(("state", state.to_owned()));
    for stage in &stages {
        known.push(("tasks", stage.text(stages.len() > 1)));
    }
    let tried = format!("{} ok, {} failed", HumanCount(ok), HumanCount(failed));
    known.push(("attempts", format!("{tried}, {} of work", seconds(busy))));
    known.push(("results", format!("{}, {} written", count(rows, "row"), bytes(size))));
    if let Some(outcome) = &outcome {
        let (version, rows) = (&outcome["version"], outcome["rows"].as_u64().unwrap_or(0));
        known.push(("committed", format!("version {version}: {}", count(rows, "row"))));
    }
    let head = format!("{}: job {}, {}", spool.place(), job.id, job.operation());
    let mut lines = vec![head];
    lines.extend(facts(&known));
    for error in &errors {
        let times = count(error["count"].as_u64().unwrap_or(0), "time");
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        lines.push(format!(
            "error       {} ({}), {times}: {}",
            text("code"),
            text("class"),
            text("message")
        ));
    }
    if list {
        for stage in &stages {
            for index in stage.failed.iter().chain(&stage.open) {
                let how = if stage.failed.contains(index) { "failed" } else { "open" };
                lines.push(format!("  stage {} task {index}: {how}", stage.stage));
            }
        }
    }
    Ok(Answer { value, text: lines.join("\n") })
}

fn tasks(stage: &Stage, marks: &crate::spool::Marks) -> Tasks {
    let (failed, open) = stage.open(marks).into_iter().partition::<Vec<u32>, _>(|index| {
        marks.get(&(stage.number, *index)).is_some_and(|attempts| attempts.failed > 0)
    });
    let planned = stage.tasks().count();
    Tasks {
        stage: stage.number,
        planned,
        done: planned - failed.len() - open.len(),
        failed,
        open,
        estimated_rows: stage.tasks().map(|(_, rows)| rows).sum(),
    }
}

impl Tasks {
    fn json(&self, list: bool) -> Value {
        let mut value = json!({
            "stage": self.stage,
            "planned": self.planned,
            "done": self.done,
            "failed": self.failed.len(),
            "open": self.open.len(),
            "estimated_rows": self.estimated_rows,
        });
        if list {
            value["failed_tasks"] = self.failed.clone().into();
            value["open_tasks"] = self.open.clone().into();
        }
        value
    }

    fn text(&self, several: bool) -> String {
        let of = if several { format!("stage {}: ", self.stage) } else { String::new() };
        let planned = count(self.planned as u64, "task");
        let mut text = format!("{of}{} of {planned} done", HumanCount(self.done as u64));
        for (tasks, what) in [(&self.failed, "failed"), (&self.open, "open")] {
            if !tasks.is_empty() {
                text.push_str(&format!(", {} {what} ({})", tasks.len(), names(tasks)));
            }
        }
        text
    }
}

/// The errors of failed attempts, each with how often it came, the most frequent first.
fn errors(results: &[TaskResult]) -> Vec<Value> {
    let mut errors: BTreeMap<(&str, &str, &str), (u64, HashSet<uuid::Uuid>)> = BTreeMap::new();
    for result in results {
        if let Some(error) = &result.error {
            let key = (error.code().name(), error.class().as_str(), error.message());
            let (times, tasks) = errors.entry(key).or_default();
            *times += 1;
            tasks.insert(result.task_id);
        }
    }
    let mut errors: Vec<_> = errors.into_iter().collect();
    errors.sort_by_key(|(_, (times, _))| std::cmp::Reverse(*times));
    errors
        .into_iter()
        .map(|((code, class, message), (times, tasks))| {
            json!({ "code": code, "class": class, "message": message, "count": times,
                "tasks": tasks.len() })
        })
        .collect()
}
