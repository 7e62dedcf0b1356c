//! A dataset's shape as lines for people.

use indicatif::HumanCount;
use lance_tasks::inspect::{Column, DatasetShape, Index, Spread};

use super::{facts, table};
use crate::report::{bytes, count};

pub fn text(shape: &DatasetShape) -> String {
    let mut lines = vec![head(shape)];
    let mut known: Vec<(&str, String)> = Vec::new();
    let mut fact = |name, text| known.push((name, text));
    let deleted = match shape.deleted_rows {
        0 => String::new(),
        n => format!(", {} deleted", count(n, "more row")),
    };
    fact("rows", format!("{}{deleted}", count(shape.rows, "row")));
    let unknown = match shape.files_of_unknown_size {
        0 => String::new(),
        n => format!(" (and {} of unknown size)", count(n, "file")),
    };
    fact(
        "data",
        format!(
            "{} in {}{unknown}, file version {}",
            bytes(shape.bytes),
            count(shape.data_files, "file"),
            shape.data_storage_version
        ),
    );
    let fragments = &shape.fragments;
    fact(
        "fragments",
        format!(
            "{}, {} with deletions",
            count(fragments.count, "fragment"),
            fragments.with_deletions
        ),
    );
    fact("", format!("rows: {}", spread(&fragments.rows, |n| HumanCount(n).to_string())));
    fact("", format!("size: {}", spread(&fragments.bytes, bytes)));
    let compactable = &fragments.compactable;
    fact(
        "compaction",
        match compactable.tasks {
            0 => "nothing to do".into(),
            tasks => format!(
                "would take {} with {} in {}",
                count(compactable.fragments, "fragment"),
                count(compactable.rows, "row"),
                count(tasks, "task")
            ),
        },
    );
    fact("row ids", if shape.stable_row_ids { "stable" } else { "addresses" }.into());
    lines.extend(facts(&known));
    section(&mut lines, "columns", &columns(&shape.schema, 0));
    section(&mut lines, "indexes", &shape.indexes.iter().map(index).collect::<Vec<_>>());
    let pair = |name: &String, value: String| vec![name.clone(), value];
    let tags: Vec<_> = shape.tags.iter().map(|(t, v)| pair(t, format!("version {v}"))).collect();
    section(&mut lines, "tags", &tags);
    let config: Vec<_> = shape.config.iter().map(|(k, v)| pair(k, v.clone())).collect();
    section(&mut lines, "config", &config);
    let bases = shape.bases.iter().map(|base| {
        vec![base.id.to_string(), base.name.clone().unwrap_or_default(), base.path.clone()]
    });
    section(&mut lines, "bases", &bases.collect::<Vec<_>>());
    let versions = shape.versions.iter().flatten().map(|version| {
        vec![
            version.version.to_string(),
            version.timestamp.clone(),
            version.operation.clone().unwrap_or_else(|| "?".into()),
            count(version.rows, "row"),
            count(version.fragments, "fragment"),
            version.tags.join(", "),
        ]
    });
    section(&mut lines, "versions", &versions.collect::<Vec<_>>());
    let fragments = shape.fragment_list.iter().flatten().map(|fragment| {
        vec![
            fragment.id.to_string(),
            count(fragment.rows, "row"),
            format!("{} deleted", fragment.deleted_rows),
            count(fragment.files, "file"),
            fragment.bytes.map_or_else(|| "?".into(), bytes),
        ]
    });
    section(&mut lines, "fragments", &fragments.collect::<Vec<_>>());
    lines.join("\n")
}

fn head(shape: &DatasetShape) -> String {
    let latest = match shape.version == shape.latest_version {
        true => "the latest".to_owned(),
        false => format!("the latest is {}", shape.latest_version),
    };
    format!("{}: version {} of {} ({latest})", shape.uri, shape.version, shape.timestamp)
}

fn section(lines: &mut Vec<String>, title: &str, rows: &[Vec<String>]) {
    if !rows.is_empty() {
        lines.push(title.to_owned());
        lines.extend(table(rows, 2));
    }
}

fn spread(spread: &Spread, text: impl Fn(u64) -> String) -> String {
    let parts = [("min", spread.min), ("median", spread.median), ("max", spread.max)];
    parts.map(|(name, value)| format!("{} {name}", text(value))).join(", ")
}

fn columns(columns: &[Column], depth: usize) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for column in columns {
        let name = format!("{}{}", "  ".repeat(depth), column.name);
        let nullable = if column.nullable { "" } else { "not null" };
        rows.push(vec![name, column.r#type.clone(), nullable.into()]);
        rows.extend(self::columns(&column.fields, depth + 1));
    }
    rows
}

fn index(index: &Index) -> Vec<String> {
    let coverage = match &index.coverage {
        _ if index.system => "kept by Lance".to_owned(),
        None => "coverage unknown".into(),
        Some(coverage) => {
            let open = match coverage.unindexed_rows {
                0 => String::new(),
                n => format!(", {} unindexed", count(n, "row")),
            };
            let fragments = count(coverage.fragments, "fragment");
            format!("{:.1}% of rows in {fragments}{open}", coverage.percent)
        }
    };
    vec![
        index.name.clone(),
        index.r#type.clone(),
        format!("on {}", index.columns.join(", ")),
        coverage,
        count(index.segments.len() as u64, "segment"),
        index.bytes.map(bytes).unwrap_or_default(),
    ]
}
