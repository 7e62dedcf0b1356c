//! Payloads that several rows share.

use std::collections::HashMap;

use lance::BlobDescriptor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode, Result};

/// Which rows share a payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dedup {
    /// Rows that carry the same positive `ref_id` in one column.
    #[default]
    RefId,
    /// Rows with the same bytes, of at least 1,024; and those of one `ref_id`.
    Content,
}

/// How far a payload is shared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Within a data file: ordinary descriptors, readable by every client.
    #[default]
    File,
    /// Within the dataset, by Lance's managed blobs: across fragments and writes.
    Dataset,
}

/// Below this many bytes a payload is not worth a look at another file: by content it is not shared.
pub(super) const LEAST: usize = 1 << 10;

pub(super) type Hash = [u8; 32];

/// What makes rows share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Ref { leaf: usize, id: u64 },
    Content { hash: Hash, size: u64 },
}

struct Entry {
    row: u64,
    hash: Hash,
    size: u64,
    at: BlobDescriptor,
}

/// The payloads of one data file that may be shared.
#[derive(Default)]
pub(super) struct Shared(HashMap<Key, Entry>);

impl Shared {
    /// Where the payload lies already.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` names both rows where bytes differ under one `ref_id`.
    pub fn find(
        &self,
        key: &Key,
        path: &str,
        row: u64,
        hash: &Hash,
        size: u64,
    ) -> Result<Option<BlobDescriptor>> {
        let Some(entry) = self.0.get(key) else { return Ok(None) };
        if (entry.hash, entry.size) != (*hash, size) {
            let id = match key {
                Key::Ref { id, .. } => *id,
                Key::Content { .. } => 0,
            };
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!(
                    "column {path:?}: rows {} and {row} have ref_id {id} and different bytes",
                    entry.row
                ),
            ));
        }
        Ok(Some(entry.at.clone()))
    }

    pub fn insert(&mut self, key: Key, row: u64, hash: Hash, size: u64, at: BlobDescriptor) {
        self.0.insert(key, Entry { row, hash, size, at });
    }
}
