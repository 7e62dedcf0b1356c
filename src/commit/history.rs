//! What of a job the dataset's versions carry.

use std::collections::{BTreeSet, HashSet};
use std::fmt;

use futures::{StreamExt, TryStreamExt};
use lance::Dataset;
use lance::dataset::transaction::{Operation, Transaction};
use uuid::Uuid;

use crate::dataset::{Pin, not_found};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use crate::job::Job;
use crate::marks::Mark;

/// Transaction property: the id of the job.
pub(super) const JOB: &str = "lance_tasks.job";
/// Transaction property: which of its tasks, as places in the plan.
pub(super) const TASKS: &str = "lance_tasks.tasks";

/// Transaction property: which call of `commit` made it.
pub(super) const COMMIT: &str = "lance_tasks.commit";

/// Tasks by their place in the plan's last stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TaskSet(Option<BTreeSet<u32>>);

impl TaskSet {
    pub fn all() -> Self {
        Self(None)
    }

    pub fn contains(&self, index: u32) -> bool {
        self.0.as_ref().is_none_or(|set| set.contains(&index))
    }

    fn overlaps(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => a.iter().any(|index| b.contains(index)),
            _ => true,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if text == "all" {
            return Some(Self::all());
        }
        let mut set = BTreeSet::new();
        for range in text.split(',').filter(|r| !r.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
            set.extend(first..=last);
        }
        Some(Self(Some(set)))
    }
}

impl FromIterator<u32> for TaskSet {
    fn from_iter<T: IntoIterator<Item = u32>>(iter: T) -> Self {
        Self(Some(iter.into_iter().collect()))
    }
}

/// `all`, or ranges: `0-9,12`.
impl fmt::Display for TaskSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(set) = &self.0 else { return f.write_str("all") };
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for index in set {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == *index => *last = *index,
                _ => ranges.push((*index, *index)),
            }
        }
        for (i, (first, last)) in ranges.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }?;
        }
        Ok(())
    }
}

/// One commit of the job.
pub(super) struct Part {
    pub version: u64,
    pub transaction_id: String,
    commit_id: Option<String>,
    /// Index segments that it added.
    pub segments: Vec<Uuid>,
    tasks: TaskSet,
}

/// The commits of one job among the versions of its dataset.
pub(super) struct History {
    parts: Vec<Part>,
    /// Names of the transaction files of all versions looked at, under the job's mark.
    pub transactions: HashSet<String>,
    /// Versions up to here have been looked at.
    seen: u64,
    /// The newest version at the last look; `None` = there was no dataset.
    latest: Option<Dataset>,
}

impl History {
    pub async fn read(running: &Running, job: &Job) -> Result<Self> {
        let mut history = Self {
            parts: Vec::new(),
            transactions: HashSet::new(),
            seen: job.read_version,
            latest: None,
        };
        history.refresh(running, job).await?;
        Ok(history)
    }

    /// Look at the versions that have come since.
    pub async fn refresh(&mut self, running: &Running, job: &Job) -> Result<()> {
        let options = &running.call.storage_options;
        let Some(latest) = running.datasets().open_latest(&job.uri, options).await? else {
            return if job.read_version == 0 { Ok(()) } else { Err(not_found(&job.uri)) };
        };
        let newest = latest.manifest.version;
        if newest < job.read_version {
            return Err(Error::new(
                ErrorCode::VersionGone,
                format!(
                    "dataset {}: the newest version is {newest}, the job was prepared on {}: the \
                     dataset was replaced",
                    job.uri, job.read_version
                ),
            ));
        }
        // A job that creates the dataset makes version 1 and no other.
        let newest = if job.read_version == 0 { newest.min(1) } else { newest };
        let mark = Mark::of(job.id);
        for (version, transaction) in scan(&latest, job, self.seen + 1, newest).await? {
            if let Ok(uuid) = Uuid::parse_str(&transaction.uuid) {
                let name = format!("{}-{}.txn", transaction.read_version, mark.uuid(uuid));
                self.transactions.insert(name);
            }
            self.parts.extend(part(job, version, &transaction));
        }
        self.seen = self.seen.max(newest);
        self.latest = Some(latest);
        Ok(())
    }

    pub fn seen(&self) -> u64 {
        self.seen
    }

    pub fn latest(&self) -> Option<&Dataset> {
        self.latest.as_ref()
    }

    /// A version of the dataset, opened only where it is not the newest.
    pub async fn at(&self, running: &Running, job: &Job, version: u64) -> Result<Dataset> {
        if let Some(latest) = self.latest.as_ref().filter(|l| l.manifest.version == version) {
            return Ok(latest.clone());
        }
        // Not from the cache: it may be of an earlier dataset at the same place.
        let pin = Pin { version, timestamp: 0 };
        running.datasets().open_uncached(&job.uri, pin, &running.call.storage_options).await
    }

    /// The version that the job was prepared on must be there, and be the one it was.
    pub async fn check_pin(&self, running: &Running, job: &Job) -> Result<()> {
        if job.read_version == 0
            || self.latest.as_ref().is_some_and(|latest| Pin::of(latest) == job.pin())
        {
            return Ok(());
        }
        // Opened anew: what this process has in its cache may have been removed since.
        running
            .datasets()
            .open_uncached(&job.uri, job.pin(), &running.call.storage_options)
            .await?;
        Ok(())
    }

    pub fn segments(&self) -> impl Iterator<Item = Uuid> + '_ {
        self.parts.iter().flat_map(|p| p.segments.iter().copied())
    }

    pub fn any(&self) -> bool {
        !self.parts.is_empty()
    }

    pub fn complete(&self) -> bool {
        self.parts.iter().any(|p| p.tasks == TaskSet::all())
    }

    pub fn committed(&self, index: u32) -> bool {
        self.parts.iter().any(|p| p.tasks.contains(index))
    }

    pub fn contains(&self, tasks: &TaskSet) -> bool {
        match &tasks.0 {
            None => self.complete(),
            Some(set) => self.any() && set.iter().all(|index| self.committed(*index)),
        }
    }

    /// Did this call of `commit` make one of the versions?
    pub fn made(&self, commit_id: &Uuid) -> bool {
        let id = commit_id.to_string();
        self.parts.iter().any(|p| p.commit_id.as_ref() == Some(&id))
    }

    pub fn last(&self) -> Option<&Part> {
        self.parts.iter().max_by_key(|p| p.version)
    }
}

/// The transactions of a range of versions, every one of which must still be there.
async fn scan(
    dataset: &Dataset,
    job: &Job,
    first: u64,
    last: u64,
) -> Result<Vec<(u64, Transaction)>> {
    let found: Vec<Option<(u64, Transaction)>> = futures::stream::iter(first..=last)
        .map(|version| async move {
            Ok::<_, Error>(read(dataset, &job.uri, version).await?.map(|t| (version, t)))
        })
        .buffered(16)
        .try_collect()
        .await?;
    Ok(found.into_iter().flatten().collect())
}

async fn read(dataset: &Dataset, uri: &str, version: u64) -> Result<Option<Transaction>> {
    match dataset.read_version_transaction(version).await {
        Ok(found) => Ok(found.transaction),
        Err(lance::Error::DatasetNotFound { .. } | lance::Error::NotFound { .. }) => {
            Err(Error::new(
                ErrorCode::HistoryGone,
                format!(
                    "dataset {uri}: version {version}, made since the job was prepared, has been cleaned \
                 away, so an earlier commit of this job cannot be ruled out; look for its rows before \
                 preparing it again"
                ),
            ))
        }
        Err(error) => Err(Error::from(error).context(format!("dataset {uri}, version {version}"))),
    }
}

fn part(job: &Job, version: u64, transaction: &Transaction) -> Option<Part> {
    let properties = transaction.transaction_properties.as_ref()?;
    if *properties.get(JOB)? != job.id.to_string() {
        return None;
    }
    let tasks =
        properties.get(TASKS).and_then(|text| TaskSet::parse(text)).unwrap_or(TaskSet::all());
    Some(Part {
        version,
        transaction_id: transaction.uuid.clone(),
        commit_id: properties.get(COMMIT).cloned(),
        segments: match &transaction.operation {
            Operation::CreateIndex { new_indices, .. } => {
                new_indices.iter().map(|i| i.uuid).collect()
            }
            _ => Vec::new(),
        },
        tasks,
    })
}

/// What the guard learns of one version.
pub(super) enum Seen {
    /// Another writer's.
    Foreign,
    /// A commit of this job that took some of the same tasks.
    Ours,
}

pub(super) async fn look(
    dataset: &Dataset,
    job: &Job,
    tasks: &TaskSet,
    version: u64,
) -> Result<Seen> {
    let transaction = read(dataset, &job.uri, version).await?;
    let ours = transaction
        .and_then(|t| part(job, version, &t))
        .is_some_and(|part| part.tasks.overlaps(tasks));
    Ok(if ours { Seen::Ours } else { Seen::Foreign })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_sets_read_as_written() {
        for text in ["all", "0-9,12", "3", "", "1,3,5-6"] {
            assert_eq!(TaskSet::parse(text).unwrap().to_string(), text);
        }
        assert!(TaskSet::parse("x").is_none());
        let set: TaskSet = [1, 2, 7].into_iter().collect();
        assert!(set.contains(7) && !set.contains(3) && TaskSet::all().contains(3));
        assert!(
            set.overlaps(&[7].into_iter().collect()) && !set.overlaps(&[3].into_iter().collect())
        );
    }
}
