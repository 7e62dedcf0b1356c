//! The verbs over a spool.

use lance_tasks::{AbortReport, Call, Error, ErrorCode, Outcome as Committed, RetryClass, Spec};
use serde_json::{Value, json};

use crate::report::{Answer, Outcome, bytes, count};
use crate::run::{self, Shard, open_stage};
use crate::session::Session;
use crate::spool::{Files, Spool};

pub fn prepare(session: &Session, spec: Spec, files: Files) -> Outcome<Spool> {
    // Before anything is asked of the dataset; `create` makes sure of it.
    if Spool::exists(&files)? {
        return Err(Spool::taken(&files).into());
    }
    let job = session.retrying(|| session.executor.prepare(spec.clone(), None, &session.call()))?;
    Ok(Spool::create(files, &spec, job)?)
}

pub fn prepared(spool: &Spool) -> Answer {
    let job = &spool.job;
    let (operation, version) = (job.operation(), job.read_version);
    Answer {
        value: json!({ "job_id": job.id, "operation": operation, "uri": job.uri,
            "read_version": version, "spool": spool.place() }),
        text: format!("prepared {operation} on {} at version {version}: job {}", job.uri, job.id),
    }
}

pub fn plan(session: &Session, spool: &Spool) -> Outcome<Answer> {
    let Some((stage, open)) = open_stage(session, spool)? else {
        return Ok(Answer {
            value: json!({ "tasks": 0, "estimated_rows": 0, "ready_to_commit": true }),
            text: "nothing left to do: ready to commit".into(),
        });
    };
    let estimated: u64 =
        stage.tasks().filter(|(i, _)| open.binary_search(i).is_ok()).map(|(_, rows)| rows).sum();
    Ok(Answer {
        value: json!({ "tasks": open.len(), "estimated_rows": estimated, "stage": stage.number,
            "ready_to_commit": false }),
        text: format!(
            "{} to {}, about {}",
            count(open.len() as u64, "task"),
            if spool.job.reads() { "read" } else { "run" },
            count(estimated, "row")
        ),
    })
}

pub fn run(session: &Session, spool: &Spool, shard: Shard) -> Outcome<Answer> {
    if spool.job.reads() {
        let (operation, place) = (spool.job.operation(), spool.place());
        let error = Error::invalid(format!("spool {place}: the tasks of {operation} yield data"));
        return Err(crate::report::Failure::with_hint(
            error.into(),
            format!("lance-tasks read {place} --output FILE"),
        ));
    }
    let done = run::run(session, spool, shard)?;
    let mut text = format!(
        "ran {}: {}, {} written",
        count(done.tasks, "task"),
        count(done.rows, "row"),
        bytes(done.bytes)
    );
    if done.ready {
        text.push_str("; ready to commit");
    } else {
        text.push_str(&format!("; {} of other shards open", count(done.elsewhere, "task")));
    }
    Ok(Answer { value: Value::Object(done.json()), text })
}

pub fn commit(session: &Session, spool: &Spool, partial: bool) -> Outcome<Answer> {
    let results = spool.results()?;
    let call = Call { partial, ..session.call() };
    let outcome = session
        .retrying(|| session.executor.commit(&spool.job, &results, &call))
        .map_err(|failure| match failure.error.code() {
            ErrorCode::Incomplete => failure.with_hint("run what is left, then commit"),
            _ => match failure.class {
                RetryClass::RetryTask => failure.with_hint("commit again: it is done once at most"),
                RetryClass::Replan | RetryClass::Conflict => {
                    failure.with_hint("abort this job and prepare it again")
                }
                _ => failure,
            },
        })?;
    let value = serde_json::to_value(&outcome)?;
    spool.put_outcome(&value)?;
    Ok(Answer { value, text: committed(&outcome) })
}

fn committed(outcome: &Committed) -> String {
    let metrics: Vec<String> =
        outcome.metrics.iter().map(|(name, value)| format!("{name} {value}")).collect();
    format!(
        "{} version {} of {}: {}{}{}",
        if outcome.already_committed { "was committed before as" } else { "committed" },
        outcome.version,
        outcome.uri,
        count(outcome.rows, "row"),
        if metrics.is_empty() { String::new() } else { format!(" ({})", metrics.join(", ")) },
        if outcome.complete { "" } else { ", in part" }
    )
}

pub fn abort(session: &Session, spool: &Spool, call: &Call) -> Outcome<Answer> {
    let report = abort_job(session, spool, call)?;
    let value = serde_json::to_value(&report)?;
    spool.put_aborted(&value)?;
    let text = format!(
        "removed {} ({}), kept {} committed",
        count(report.files_removed, "file"),
        bytes(report.bytes_removed),
        report.kept
    );
    Ok(Answer { value, text })
}

fn abort_job(session: &Session, spool: &Spool, call: &Call) -> Outcome<AbortReport> {
    let results = spool.results()?;
    session.retrying(|| session.executor.abort(&spool.job, &results, call))
}

/// A file that holds a spec, with options set over it.
pub fn spec(bytes: &[u8], settings: &[String]) -> Outcome<Spec> {
    use lance_tasks::Descriptor;
    if settings.is_empty() {
        return Ok(Spec::decode(bytes)?);
    }
    let mut value: Value = serde_json::from_slice(bytes)
        .map_err(|e| Error::new(ErrorCode::Decode, format!("spec: not valid JSON: {e}")))?;
    crate::spec::set(&mut value, settings)?;
    Ok(Spec::decode(value.to_string().as_bytes())?)
}
