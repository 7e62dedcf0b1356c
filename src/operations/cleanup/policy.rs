//! What is to be removed, with every default resolved: Lance's own policy, pinned.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use lance::Dataset;
use lance::dataset::cleanup::{CleanupOperation, CleanupPolicy, CleanupPolicyBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spec::{Age, CleanupSpec};
use crate::error::{Error, Result};

/// Lance's default.
const TWO_WEEKS: Age = Age(14 * 24 * 3600 * 1_000_000);
/// Lance's default.
const CANDIDATES: u64 = 1000;

/// See the module. A version goes where all that is given here says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Versions made before this go, in microseconds since the epoch.
    pub before_timestamp: Option<i64>,
    /// Versions before this one go.
    pub before_version: Option<u64>,
    /// These versions go.
    pub versions: Option<Vec<u64>>,
    pub delete_unverified: bool,
    pub error_if_tagged_old_versions: bool,
    pub clean_referenced_branches: bool,
    pub delete_rate_limit: Option<u64>,
    pub delete_concurrency: Option<u64>,
    pub max_candidate_files: u64,
}

impl Policy {
    pub async fn of(spec: &CleanupSpec, dataset: &Dataset) -> Result<Self> {
        let unlimited = spec.retain_versions.is_none() && spec.versions.is_none();
        let older_than = spec.older_than.or(unlimited.then_some(TWO_WEEKS));
        let before_timestamp = older_than.map(before).transpose()?;
        let before_version = match spec.retain_versions {
            None => None,
            Some(count) => {
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                let builder = CleanupPolicyBuilder::default();
                builder.retain_n_versions(dataset, count).await?.build().before_version
            }
        };
        Ok(Self {
            before_timestamp,
            before_version,
            versions: spec.versions.clone(),
            delete_unverified: spec.delete_unverified.unwrap_or(false),
            error_if_tagged_old_versions: spec.error_if_tagged_old_versions.unwrap_or(true),
            clean_referenced_branches: spec.clean_referenced_branches.unwrap_or(false),
            delete_rate_limit: spec.delete_rate_limit,
            delete_concurrency: spec.delete_concurrency,
            max_candidate_files: spec.max_candidate_files.unwrap_or(CANDIDATES),
        })
    }

    /// Lance's cleanup of a dataset, of no versions but those in `within`, where that is given.
    pub fn operation<'a>(
        &self,
        dataset: &'a Dataset,
        within: Option<&HashSet<u64>>,
    ) -> Result<CleanupOperation<'a>> {
        let time = |micros| {
            DateTime::<Utc>::from_timestamp_micros(micros)
                .ok_or_else(|| Error::invalid(format!("before_timestamp {micros} is no time")))
        };
        let operation = dataset.cleanup(CleanupPolicy {
            before_timestamp: self.before_timestamp.map(time).transpose()?,
            before_version: self.before_version,
            versions: within.cloned().or_else(|| self.named()),
            delete_unverified: self.delete_unverified,
            error_if_tagged_old_versions: self.error_if_tagged_old_versions,
            clean_referenced_branches: self.clean_referenced_branches,
            delete_rate_limit: self.delete_rate_limit,
        });
        Ok(match self.delete_concurrency {
            Some(count) => {
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                operation.with_delete_concurrency(count)?
            }
            None => operation,
        })
    }
}

impl Policy {
    fn named(&self) -> Option<HashSet<u64>> {
        Some(self.versions.as_ref()?.iter().copied().collect())
    }

    /// The versions that may go where some are kept.
    pub async fn without(&self, dataset: &Dataset, kept: &HashSet<u64>) -> Result<HashSet<u64>> {
        let mut within = match self.named() {
            Some(named) => named,
            None => dataset.version_refs().await?.into_iter().map(|found| found.version).collect(),
        };
        within.retain(|version| !kept.contains(version));
        Ok(within)
    }
}

/// Refuse what makes no sense before anything is looked at.
pub(super) fn check(spec: &CleanupSpec) -> Result<()> {
    for (name, value) in [
        ("retain_versions", spec.retain_versions),
        ("delete_rate_limit", spec.delete_rate_limit),
        ("delete_concurrency", spec.delete_concurrency),
    ] {
        if value == Some(0) {
            return Err(Error::invalid(format!("option {name:?} is 0, it must be at least 1")));
        }
    }
    let most = (usize::MAX >> 3) as u64;
    if spec.delete_concurrency.is_some_and(|count| count > most) {
        return Err(Error::invalid(format!("option \"delete_concurrency\" is over {most}")));
    }
    if spec.versions.as_ref().is_some_and(Vec::is_empty) {
        return Err(Error::invalid("option \"versions\" is empty: name at least one version"));
    }
    Ok(())
}

/// Microseconds since the epoch.
fn before(age: Age) -> Result<i64> {
    let time = i64::try_from(age.0).ok().map(TimeDelta::microseconds);
    let time = time.and_then(|age| Utc::now().checked_sub_signed(age));
    time.map(|time| time.timestamp_micros())
        .ok_or_else(|| Error::invalid("option \"older_than\" reaches back before all time"))
}
