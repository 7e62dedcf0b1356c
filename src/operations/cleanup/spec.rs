//! What a user says of a cleanup.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Remove old versions and the files that only they need, and what uncommitted work has left behind.
///
/// Files that a kept version refers to are never removed; the newest version, tagged versions and those
/// that branches still need are always kept. A cleanup makes no version.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CleanupSpec {
    /// The dataset: a path or an object-store URI.
    pub uri: String,
    /// Remove versions older than this at prepare: seconds, or text such as `"7d"`, `"12h"`, `"1d 6h"`.
    /// Default two weeks, unless `retain_versions` or `versions` is given.
    pub older_than: Option<Age>,
    /// Keep the last so many versions, counted at prepare; at least 1.
    pub retain_versions: Option<u64>,
    /// Remove none but these versions.
    pub versions: Option<Vec<u64>>,
    /// Remove files that belong to no version whatever their age: only where nothing else writes to the
    /// dataset, as files of work that is under way are among them. Default false: those that are seven
    /// days old.
    pub delete_unverified: Option<bool>,
    /// Fail where a version that would else be removed is tagged. Default true; false keeps it and
    /// removes the others.
    pub error_if_tagged_old_versions: Option<bool>,
    /// Clean the branches that stand on versions to be removed as well, as each branch's own
    /// configuration (`lance.auto_cleanup`) says. Default false.
    pub clean_referenced_branches: Option<bool>,
    /// Requests to delete per second at most. Default: no limit.
    pub delete_rate_limit: Option<u64>,
    /// Requests to delete at a time, of those that Lance makes. Default: the store's I/O parallelism.
    pub delete_concurrency: Option<u64>,
    /// List what would be removed, and remove nothing. Default false.
    pub dry_run: Option<bool>,
    /// Files that a report names at most; its counts are of all. Default 1,000.
    pub max_candidate_files: Option<u64>,
}

/// A span of time, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age(pub u64);

const SECOND: f64 = 1e6;

impl Age {
    fn seconds(seconds: f64) -> Result<Self, String> {
        let micros = seconds * SECOND;
        if !(0.0..u64::MAX as f64).contains(&micros) {
            return Err(format!("{seconds} seconds are no age"));
        }
        Ok(Self(micros.round() as u64))
    }

    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(seconds) = text.trim().parse::<f64>() {
            return Self::seconds(seconds);
        }
        let age = humantime::parse_duration(text).map_err(|e| {
            format!(
                "{text:?} is no age ({e}); say seconds, or for example \"7d\", \"12h\", \"30min\""
            )
        })?;
        u64::try_from(age.as_micros()).map(Self).map_err(|_| format!("{text:?} is too long"))
    }
}

impl Serialize for Age {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            micros if !serializer.is_human_readable() => serializer.serialize_u64(micros),
            micros if micros % 1_000_000 == 0 => serializer.serialize_u64(micros / 1_000_000),
            micros => serializer.serialize_f64(micros as f64 / SECOND),
        }
    }
}

impl<'de> Deserialize<'de> for Age {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        if !deserializer.is_human_readable() {
            return u64::deserialize(deserializer).map(Self);
        }
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => Self::parse(&text),
            value => match value.as_f64() {
                Some(seconds) => Self::seconds(seconds),
                None => Err(format!("{value} is no age: a number of seconds, or text")),
            },
        }
        .map_err(D::Error::custom)
    }
}

impl JsonSchema for Age {
    fn schema_name() -> Cow<'static, str> {
        "Age".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["number", "string"], "minimum": 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn age(json: &str) -> Result<u64, String> {
        serde_json::from_str::<Age>(json).map(|age| age.0).map_err(|e| e.to_string())
    }

    #[test]
    fn ages() {
        for (json, micros) in [
            ("0", 0),
            ("0.000001", 1),
            ("90", 90_000_000),
            ("\"90\"", 90_000_000),
            ("\"7d\"", 7 * 86_400_000_000),
            ("\"1d 6h\"", 30 * 3_600_000_000),
        ] {
            assert_eq!(age(json), Ok(micros), "{json}");
            let again = serde_json::to_string(&Age(micros)).unwrap();
            assert_eq!(age(&again), Ok(micros), "{again}");
        }
        for json in ["-1", "\"-1\"", "1e300", "\"soon\"", "\"7 moons\"", "\"\"", "true", "\"NaN\""]
        {
            age(json).unwrap_err();
        }
    }
}
