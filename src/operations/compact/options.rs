//! Lance's compaction options, from the spec to each task.

use std::collections::BTreeMap;

use lance::dataset::optimize::{CompactionMode, CompactionOptions, IndexRemapMode};
use lance_file::version::LanceFileVersion;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode, Result};

macro_rules! compact_options {
    ($($(#[$doc:meta])* $name:ident: $type:ty),* $(,)?) => {
        /// Rewrite small fragments, and fragments with many deletions, into full ones. Options are
        /// Lance's `CompactionOptions`; where none is given the dataset's own configuration
        /// (`lance.compaction.*`) holds, then Lance's default.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct CompactSpec {
            /// The dataset: a path or an object-store URI.
            pub uri: String,
            $($(#[$doc])* pub $name: Option<$type>,)*
            /// Stored with each transaction.
            pub transaction_properties: Option<BTreeMap<String, String>>,
            /// How many tasks one commit takes; default all in one. Smaller commits conflict less with
            /// other writers.
            pub micro_commit_batch_size: Option<u64>,
        }

        /// Lance's compaction options as they were given; what was not is the same default everywhere.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct Options { $($(#[$doc])* pub $name: Option<$type>,)* }

        impl CompactSpec {
            pub(super) fn options(&self) -> Options {
                Options { $($name: self.$name.clone(),)* }
            }
        }
    };
}

compact_options! {
    /// Fragments with fewer rows are compacted. Default 1,048,576.
    target_rows_per_fragment: u64,
    /// Rows per group of the legacy storage version. Default 1,024.
    max_rows_per_group: u64,
    /// Bytes of a rewritten file at most. Default 90 GiB.
    max_bytes_per_file: u64,
    /// Rewrite fragments to drop their deleted rows. Default true.
    materialize_deletions: bool,
    /// The share of deleted rows, 0 to 1, from which a fragment is rewritten. Default 0.1.
    #[serde(deserialize_with = "finite")]
    materialize_deletions_threshold: f32,
    /// Rows per batch while reading.
    batch_size: u64,
    /// Bytes that reading may queue.
    io_buffer_size: u64,
    /// Leave indexes to be remapped later, through the fragment reuse index. Default false.
    defer_index_remap: bool,
    /// `direct` (default) or `compact`: how row addresses are mapped for indexes.
    index_remap_mode: String,
    /// `reencode` (default), `try_binary_copy` or `force_binary_copy`.
    compaction_mode: String,
    /// Bytes per read of a binary copy. Default 16 MiB.
    binary_copy_read_batch_bytes: u64,
    /// Fragments to be compacted at most by this job. Default no limit.
    max_source_fragments: u64,
    /// Rows to be compacted at most by this job. Default no limit.
    max_source_rows: u64,
    /// Bytes to be compacted at most by this job. Default no limit.
    max_source_bytes: u64,
    /// Fragments to leave alone.
    excluded_fragment_ids: Vec<u32>,
    /// Fragments with more overlay files are rewritten. Default 10.
    max_overlays_per_fragment: u64,
    /// Lance's file version of the rewritten files. Default the dataset's.
    data_storage_version: String,
}

impl Options {
    /// Lance's options. `base` are the dataset's own, or Lance's default.
    pub(super) fn lance(&self, base: CompactionOptions) -> Result<CompactionOptions> {
        let mut o = base;
        fn set<T, U>(place: &mut T, value: &Option<U>, to: impl FnOnce(&U) -> T) {
            if let Some(value) = value {
                *place = to(value);
            }
        }
        let size = |value: &u64| *value as usize;
        set(&mut o.target_rows_per_fragment, &self.target_rows_per_fragment, size);
        set(&mut o.max_rows_per_group, &self.max_rows_per_group, size);
        set(&mut o.max_bytes_per_file, &self.max_bytes_per_file, |v| Some(*v as usize));
        set(&mut o.materialize_deletions, &self.materialize_deletions, |v| *v);
        set(&mut o.materialize_deletions_threshold, &self.materialize_deletions_threshold, |v| *v);
        set(&mut o.batch_size, &self.batch_size, |v| Some(*v as usize));
        set(&mut o.io_buffer_size, &self.io_buffer_size, |v| Some(*v));
        set(&mut o.defer_index_remap, &self.defer_index_remap, |v| *v);
        if let Some(mode) = &self.index_remap_mode {
            o.index_remap_mode = IndexRemapMode::try_from(mode.as_str())
                .map_err(|e| option("index_remap_mode", e))?;
        }
        if let Some(mode) = &self.compaction_mode {
            o.compaction_mode = Some(
                CompactionMode::try_from(mode.as_str())
                    .map_err(|e| option("compaction_mode", e))?,
            );
        }
        set(&mut o.binary_copy_read_batch_bytes, &self.binary_copy_read_batch_bytes, |v| {
            Some(*v as usize)
        });
        set(&mut o.max_source_fragments, &self.max_source_fragments, |v| Some(*v as usize));
        set(&mut o.max_source_rows, &self.max_source_rows, |v| Some(*v as usize));
        set(&mut o.max_source_bytes, &self.max_source_bytes, |v| Some(*v));
        set(&mut o.excluded_fragment_ids, &self.excluded_fragment_ids, Clone::clone);
        set(&mut o.max_overlays_per_fragment, &self.max_overlays_per_fragment, |v| {
            Some(*v as usize)
        });
        if let Some(version) = &self.data_storage_version {
            o.data_storage_version = Some(
                version
                    .parse::<LanceFileVersion>()
                    .map_err(|e| option("data_storage_version", e))?,
            );
        }
        Ok(o)
    }

    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [
            ("target_rows_per_fragment", self.target_rows_per_fragment),
            ("max_rows_per_group", self.max_rows_per_group),
            ("max_bytes_per_file", self.max_bytes_per_file),
            ("batch_size", self.batch_size),
            ("io_buffer_size", self.io_buffer_size),
            ("binary_copy_read_batch_bytes", self.binary_copy_read_batch_bytes),
            ("max_source_fragments", self.max_source_fragments),
            ("max_source_rows", self.max_source_rows),
            ("max_source_bytes", self.max_source_bytes),
        ] {
            if value == Some(0) {
                return Err(Error::invalid(format!("option {name:?} is 0, it must be at least 1")));
            }
        }
        if let Some(share) = self.materialize_deletions_threshold
            && !(0.0..=1.0).contains(&share)
        {
            return Err(Error::invalid(format!(
                "option \"materialize_deletions_threshold\" is {share}, it is a share from 0 to 1"
            )));
        }
        Ok(())
    }
}

/// JSON's numbers may be too large for a float, and then not be written as JSON again.
fn finite<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<f32>, D::Error> {
    match Option::<f32>::deserialize(from)? {
        Some(number) if !number.is_finite() => {
            Err(serde::de::Error::custom(format!("{number} is no finite number")))
        }
        number => Ok(number),
    }
}

fn option(name: &str, error: lance::Error) -> Error {
    Error::from(error).with_code(ErrorCode::InvalidArgument).context(format!("option {name:?}"))
}

/// Options given by the dataset's configuration become the job's own.
pub(super) fn pinned(mut options: Options, resolved: &CompactionOptions) -> Options {
    let defaults = CompactionOptions::default();
    macro_rules! pin {
        ($($name:ident: $to:expr),* $(,)?) => {
            $(if options.$name.is_none() && resolved.$name != defaults.$name {
                #[allow(clippy::redundant_closure_call)]
                { options.$name = ($to)(resolved.$name.clone()); }
            })*
        };
    }
    pin! {
        target_rows_per_fragment: |v| Some(v as u64),
        max_rows_per_group: |v| Some(v as u64),
        max_bytes_per_file: |v: Option<usize>| v.map(|v| v as u64),
        materialize_deletions: Some,
        materialize_deletions_threshold: Some,
        batch_size: |v: Option<usize>| v.map(|v| v as u64),
        io_buffer_size: |v: Option<u64>| v,
        defer_index_remap: Some,
        binary_copy_read_batch_bytes: |v: Option<usize>| v.map(|v| v as u64),
        max_source_fragments: |v: Option<usize>| v.map(|v| v as u64),
        max_source_rows: |v: Option<usize>| v.map(|v| v as u64),
        max_source_bytes: |v: Option<u64>| v,
        excluded_fragment_ids: Some,
        max_overlays_per_fragment: |v: Option<usize>| v.map(|v| v as u64),
    }
    if options.index_remap_mode.is_none() && resolved.index_remap_mode == IndexRemapMode::Compact {
        options.index_remap_mode = Some("compact".into());
    }
    if options.compaction_mode.is_none() {
        options.compaction_mode = resolved.compaction_mode.map(|mode| {
            match mode {
                CompactionMode::Reencode => "reencode",
                CompactionMode::TryBinaryCopy => "try_binary_copy",
                CompactionMode::ForceBinaryCopy => "force_binary_copy",
            }
            .into()
        });
    }
    options
}
