//! What all tasks of a write agree on.

use arrow_schema::{Schema, SchemaRef};
use lance::dataset::{ExternalBlobMode, WriteMode, WriteParams};
use lance_file::version::LanceFileVersion;
use lance_table::format::BasePath;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spec::{AutoCleanup, Base, Mode};
use crate::blob::Dedup;
use crate::codec::Blob;
use crate::dataset::{Bases, store_params};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use crate::result::check_ipc;

/// What all tasks of a write agree on; travels in each of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shared {
    pub mode: Mode,
    /// The Arrow schema of the rows to be written, as IPC bytes.
    pub schema: Blob,
    pub max_rows_per_file: u64,
    pub max_bytes_per_file: u64,
    pub max_rows_per_group: u64,
    pub data_storage_version: String,
    pub enable_stable_row_ids: bool,
    pub enable_v2_manifest_paths: bool,
    pub auto_cleanup: Option<AutoCleanup>,
    pub skip_auto_cleanup: bool,
    pub initial_bases: Option<Vec<Base>>,
    pub target_bases: Option<Vec<String>>,
    pub target_all_bases: Option<bool>,
    pub ingest_external_blobs: bool,
    pub allow_external_blob_outside_bases: bool,
    pub blob_pack_file_size_threshold: Option<u64>,
    pub dedup: Dedup,
    /// Blob columns whose `ref_id`s are in another column: both names.
    pub blob_ref_ids: Vec<(String, String)>,
}

pub(crate) fn schema_bytes(schema: &Schema) -> Result<Blob> {
    let mut bytes = Vec::new();
    arrow_ipc::writer::StreamWriter::try_new(&mut bytes, schema)?.finish()?;
    Ok(Blob(bytes))
}

pub(crate) fn schema_from(bytes: &Blob) -> Result<SchemaRef> {
    check_ipc(&bytes.0).map_err(|why| Error::new(ErrorCode::Decode, format!("schema: {why}")))?;
    let bytes = bytes.0.clone();
    let read = move || arrow_ipc::reader::StreamReader::try_new(std::io::Cursor::new(bytes), None);
    // The IPC reader may panic on damaged bytes.
    match std::panic::catch_unwind(read) {
        Ok(Ok(reader)) => Ok(arrow_array::RecordBatchReader::schema(&reader)),
        Ok(Err(error)) => Err(Error::new(ErrorCode::Decode, format!("schema: {error}"))),
        Err(_) => Err(Error::new(ErrorCode::Decode, "schema: damaged Arrow IPC bytes")),
    }
}

impl Shared {
    pub(super) fn arrow_schema(&self) -> Result<SchemaRef> {
        schema_from(&self.schema)
    }

    pub(super) fn version(&self) -> Result<LanceFileVersion> {
        Ok(self.data_storage_version.parse::<LanceFileVersion>()?)
    }

    pub(super) fn bases(&self) -> Bases {
        self.initial_bases.iter().flatten().map(|b| (b.id, base_path(b))).collect()
    }

    /// The bases to write to in turn, 0 being the dataset's own storage; `None` = that alone.
    pub(super) fn targets(&self, uri: &str, bases: &Bases) -> Result<Option<Vec<u32>>> {
        if let Some(primary) = self.target_all_bases {
            let own = primary.then_some(0);
            return Ok(Some(own.into_iter().chain(bases.keys().copied()).collect()));
        }
        let Some(targets) = &self.target_bases else { return Ok(None) };
        let id = |target: &String| {
            if target == uri {
                return Ok(0);
            }
            let found = bases.iter().find(|(_, base)| {
                base.path == *target || base.name.as_deref() == Some(target.as_str())
            });
            found.map(|(id, _)| *id).ok_or_else(|| {
                Error::invalid(format!("target_bases: {target:?} is no registered base"))
            })
        };
        targets.iter().map(id).collect::<Result<_>>().map(Some)
    }

    pub(super) fn writes_to_bases(&self) -> bool {
        self.target_bases.is_some() || self.target_all_bases.is_some()
    }

    pub(super) fn params(&self, running: &Running) -> Result<WriteParams> {
        let options = &running.call.storage_options;
        Ok(WriteParams {
            max_rows_per_file: self.max_rows_per_file as usize,
            max_rows_per_group: self.max_rows_per_group as usize,
            max_bytes_per_file: self.max_bytes_per_file as usize,
            mode: match self.mode {
                Mode::Create => WriteMode::Create,
                Mode::Append => WriteMode::Append,
                Mode::Overwrite => WriteMode::Overwrite,
            },
            store_params: Some(store_params(options)),
            base_store_params: Some(options.own_params(None)),
            session: Some(running.datasets().session()),
            data_storage_version: Some(self.version()?),
            enable_stable_row_ids: self.enable_stable_row_ids,
            enable_v2_manifest_paths: self.enable_v2_manifest_paths,
            initial_bases: self.initial_bases.as_ref().map(|b| b.iter().map(base_path).collect()),
            external_blob_mode: if self.ingest_external_blobs {
                ExternalBlobMode::Ingest
            } else {
                ExternalBlobMode::Reference
            },
            allow_external_blob_outside_bases: self.allow_external_blob_outside_bases,
            blob_pack_file_size_threshold: self.blob_pack_file_size_threshold.map(|b| b as usize),
            ..Default::default()
        })
    }
}

pub(crate) fn base_path(base: &Base) -> BasePath {
    BasePath {
        id: base.id,
        name: base.name.clone(),
        is_dataset_root: base.is_dataset_root,
        path: base.path.clone(),
    }
}
