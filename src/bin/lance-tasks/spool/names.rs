//! The names of result files. They say which tasks of which stage a file is of and whether those
//! attempts succeeded, so that one listing tells what is open, however many tasks there are:
//!
//! ```text
//! <stage>.<tasks>.<ok|failed>.<attempt>.arrow         0.3-93x10_97.ok.<uuid>.arrow
//! ```
//!
//! where tasks are runs of indices, `first-lastxstep`, as a shard has them.

use uuid::Uuid;

/// Bytes of the tasks in a name: file systems take 255 in all.
const TASKS_MAX: usize = 160;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultName {
    pub stage: u32,
    pub tasks: Vec<u32>,
    pub ok: bool,
}

impl ResultName {
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_suffix(".arrow")?.splitn(4, '.');
        let stage = parts.next()?.parse().ok()?;
        let tasks = expand(parts.next()?)?;
        let ok = match parts.next()? {
            "ok" => true,
            "failed" => false,
            _ => return None,
        };
        parts.next()?.parse::<Uuid>().ok()?;
        Some(Self { stage, tasks, ok })
    }
}

pub fn file_name(stage: u32, tasks: &str, ok: bool, attempt: Uuid) -> String {
    format!("{stage}.{tasks}.{}.{attempt}.arrow", if ok { "ok" } else { "failed" })
}

/// Ascending indices as texts that each fit into a name, with how many of the indices it holds.
pub fn compress(indices: &[u32]) -> Vec<(String, usize)> {
    let mut texts: Vec<(String, usize)> = Vec::new();
    let mut rest = indices;
    while let Some(first) = rest.first() {
        let step = rest.get(1).map_or(1, |second| second - first);
        let mut length = rest.windows(2).take_while(|w| w[1] - w[0] == step).count() + 1;
        // A pair that is not adjacent is no run: its second may begin a better one.
        if length == 2 && step != 1 {
            length = 1;
        }
        let run = match (length, step) {
            (1, _) => first.to_string(),
            (_, 1) => format!("{first}-{}", rest[length - 1]),
            _ => format!("{first}-{}x{step}", rest[length - 1]),
        };
        match texts.last_mut() {
            Some((text, count)) if text.len() + 1 + run.len() <= TASKS_MAX => {
                text.push('_');
                text.push_str(&run);
                *count += length;
            }
            _ => texts.push((run, length)),
        }
        rest = &rest[length..];
    }
    texts
}

fn expand(text: &str) -> Option<Vec<u32>> {
    let mut indices = Vec::new();
    for run in text.split('_') {
        let (range, step) = run.split_once('x').unwrap_or((run, "1"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        let step: usize = step.parse().ok().filter(|step| *step > 0)?;
        indices.extend((first..=last).step_by(step));
    }
    Some(indices)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(indices: &[u32]) -> Vec<String> {
        compress(indices).into_iter().map(|(text, _)| text).collect()
    }

    #[test]
    fn runs_are_short() {
        assert_eq!(texts(&[7]), ["7"]);
        assert_eq!(texts(&[0, 1, 2, 9]), ["0-2_9"]);
        let shard: Vec<u32> = (3..100_000).step_by(10).collect();
        assert_eq!(texts(&shard), ["3-99993x10"]);
        assert_eq!(texts(&[1, 5, 6, 7]), ["1_5-7"]);
        assert!(texts(&[]).is_empty());
    }

    #[test]
    fn names_read_as_written_and_fit() {
        // Squares have no runs at all.
        let squares: Vec<u32> = (0..2000).map(|i| i * i).collect();
        let mut read = Vec::new();
        let mut counted = 0;
        for (text, count) in compress(&squares) {
            let name = file_name(12, &text, true, Uuid::new_v4());
            assert!(name.len() < 230, "{name}");
            let parsed = ResultName::parse(&name).unwrap();
            assert_eq!((parsed.stage, parsed.ok, parsed.tasks.len()), (12, true, count));
            read.extend(parsed.tasks);
            counted += count;
        }
        assert_eq!((read, counted), (squares, 2000));
    }

    #[test]
    fn strangers_are_no_names() {
        for name in
            ["x", "0.1.ok.arrow", "0.1.maybe.0.arrow", "0.a.ok.0.arrow", "0.1-2x0.ok.0.arrow"]
        {
            assert_eq!(ResultName::parse(name), None, "{name}");
        }
    }
}
