//! `inspect`: a dataset's shape, or how far a spool's job is.

mod dataset;
mod job;

use clap::Args;
use lance_tasks::inspect::Details;
use lance_tasks::{Error, ErrorCode};

use crate::report::{Answer, Outcome};
use crate::session::Globals;
use crate::spool::Spool;

#[derive(Args)]
pub struct Inspect {
    /// A dataset or a spool: a path or an object-store URI.
    #[arg(value_name = "URI")]
    place: String,
    /// The dataset at a version or a tag [default: the latest version].
    #[arg(long, value_name = "VERSION|TAG")]
    at: Option<String>,
    /// List every version of the dataset.
    #[arg(long)]
    versions: bool,
    /// List every fragment of the dataset, every task of the spool that is not done.
    #[arg(long, alias = "tasks")]
    fragments: bool,
}

impl Inspect {
    pub fn run(&self, globals: &Globals) -> Outcome<Answer> {
        let details =
            Details { at: self.at.clone(), versions: self.versions, fragments: self.fragments };
        // Whoever may not look for a spool there may still read a dataset, or is told why not.
        if let Ok(files) = globals.files(&self.place)
            && Spool::exists(&files).unwrap_or(false)
        {
            return job::inspect(&Spool::open(files)?, self.fragments);
        }
        let storage_options = globals.storage_options()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(Error::from)?;
        let read = lance_tasks::inspect::dataset(&self.place, &storage_options, &details);
        let shape = runtime.block_on(read).map_err(|error| match (error.code(), &self.at) {
            (ErrorCode::NotFound, None) => error.context("neither a spool nor a dataset"),
            _ => error,
        })?;
        Ok(Answer { text: dataset::text(&shape), value: serde_json::to_value(&shape)? })
    }
}

/// Names with what is to be said of them.
fn facts(facts: &[(&str, String)]) -> Vec<String> {
    facts.iter().map(|(name, text)| format!("{name:<10}  {text}")).collect()
}

/// Lines of cells as columns, indented; numbers to the right.
fn table(rows: &[Vec<String>], indent: usize) -> Vec<String> {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let number = |cell: &str| {
        let first = cell.chars().next();
        first.is_some_and(|c| c.is_ascii_digit()) && !cell.contains([':', '-'])
    };
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| match number(cell) {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            format!("{:indent$}{}", "", line.trim_end())
        })
        .collect()
}
