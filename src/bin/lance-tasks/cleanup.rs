//! A cleanup's report for people.

use lance_tasks::{Outcome, TaskResult};
use serde_json::Value;

use crate::report::{bytes, count};

/// The report of a cleanup that is done: of its last task.
pub fn report(outcome: &Outcome, results: &[TaskResult]) -> Option<Value> {
    if outcome.operation != "cleanup" {
        return None;
    }
    let removed = outcome.metrics.get("dry_run") == Some(&0);
    let reports = results.iter().filter(|result| result.succeeded());
    reports
        .filter_map(|result| serde_json::from_str::<Value>(&result.payload).ok())
        .find(|report| report["removed"] == removed)
}

/// What is gone; of a dry run, the files that would go as well.
pub fn text(outcome: &Outcome, report: &Value) -> String {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let each = |value: &'static str| report[value].as_array().into_iter().flatten();
    let dry = report["removed"] == false;
    let mut lines = vec![format!(
        "{} {} of {}{}, {} ({})",
        if dry { "would remove" } else { "removed" },
        count(number(&report["versions"]), "version"),
        outcome.uri,
        versions(report),
        count(number(&report["total"]["files"]), "file"),
        bytes(number(&report["total"]["bytes"])),
    )];
    for (kind, counted) in report["kinds"].as_object().into_iter().flatten() {
        let (files, size) = (number(&counted["files"]), number(&counted["bytes"]));
        lines.push(format!(
            "  {:<13} {} ({})",
            kind.replace('_', " "),
            count(files, "file"),
            bytes(size)
        ));
    }
    let uncommitted = number(&report["uncommitted"]["files"]);
    if uncommitted > 0 {
        let size = bytes(number(&report["uncommitted"]["bytes"]));
        lines.push(format!("  among them {} of no version ({size})", count(uncommitted, "file")));
    }
    for base in each("skipped_bases") {
        lines.push(format!(
            "  left alone: base {}: {}",
            text_of(&base["path"]),
            text_of(&base["reason"])
        ));
    }
    if dry {
        for file in each("files") {
            let base = file["base"].as_str().map(|base| format!("{base}/")).unwrap_or_default();
            let size = bytes(number(&file["size"]));
            lines.push(format!("{base}{} ({size})", text_of(&file["path"])));
        }
        if report["files_truncated"] == true {
            lines.push("... and more: --max-candidate-files says how many are listed".into());
        }
    }
    lines.join("\n")
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// ` (1-9, 12)`
fn versions(report: &Value) -> String {
    let ranges = report["version_ranges"].as_array().into_iter().flatten();
    let ranges: Vec<String> = ranges
        .map(|range| match (&range[0], &range[1]) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        })
        .collect();
    match ranges.is_empty() {
        true => String::new(),
        false => format!(" ({})", ranges.join(", ")),
    }
}
