//! Blob columns of a write: what is asked of them at prepare, and what a task makes of that.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::{Schema, SchemaRef};
use lance::Dataset;
use lance_file::version::LanceFileVersion;
use lance_table::feature_flags::MANAGED_BLOBS_META_KEY;

use super::spec::{BlobColumn, Mode, WriteSpec};
use super::{Shared, Task};
use crate::blob::Scope;
use crate::blob::external::{Externals, Mode as ExternalMode};
use crate::blob::fields::{
    Wanted, any, first_blob, has_blobs, input_schema, is_blob, is_legacy, leaves, prepared_schema,
    stored_schema, supports,
};
use crate::blob::writer::{Blobs, Waiting};
use crate::dataset::Bases;
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;

/// The schema that rows are aligned to before they are written as `schema`.
pub(super) fn aligned_to(schema: &SchemaRef) -> SchemaRef {
    if has_blobs(schema) { Arc::new(input_schema(schema)) } else { schema.clone() }
}

fn managed(schema: &Schema) -> bool {
    schema.metadata().get(MANAGED_BLOBS_META_KEY).is_some_and(|value| value == "true")
}

/// What a spec says of blobs.
pub(super) struct Asked {
    wanted: HashMap<String, Wanted>,
    /// For blob columns the columns that have their `ref_id`s.
    pub ref_ids: Vec<(String, String)>,
    scope: Option<Scope>,
    supported: bool,
}

impl Asked {
    /// # Errors
    /// `INVALID_ARGUMENT` names a column that is named twice, or a threshold of 0.
    pub fn of(spec: &WriteSpec, version: LanceFileVersion) -> Result<Self> {
        let mut wanted = HashMap::new();
        let mut ref_ids = Vec::new();
        for column in spec.blob_columns.iter().flatten() {
            let BlobColumn { name, .. } = column;
            let wrong =
                |why: &str| Error::invalid(format!("option \"blob_columns\": {name:?} {why}"));
            for (threshold, value) in [
                ("dedicated_size_threshold", column.dedicated_size_threshold),
                ("pack_file_size_threshold", column.pack_file_size_threshold),
            ] {
                if value == Some(0) {
                    return Err(wrong(&format!("has a {threshold} of 0, it must be at least 1")));
                }
            }
            let options = Wanted {
                inline_size_threshold: column.inline_size_threshold,
                dedicated_size_threshold: column.dedicated_size_threshold,
                pack_file_size_threshold: column.pack_file_size_threshold,
            };
            if wanted.insert(name.clone(), options).is_some() {
                return Err(wrong("is there twice"));
            }
            ref_ids.extend(column.ref_id.clone().map(|ids| (name.clone(), ids)));
        }
        Ok(Self {
            wanted,
            ref_ids,
            scope: spec.dedup_scope,
            supported: supports(version.resolve()),
        })
    }

    /// The schema to be stored for rows of a schema.
    pub fn stored(&self, schema: &Schema) -> Result<Schema> {
        stored_schema(schema, &self.wanted, self.supported)
    }

    /// The dataset's schema as an append writes it.
    pub fn promoted(&self, schema: &Schema) -> Result<Schema> {
        stored_schema(schema, &HashMap::new(), self.supported)
    }

    /// An append takes the dataset's columns as they are.
    pub fn check_append(&self, schema: &Schema) -> Result<()> {
        let legacy = |f: &arrow_schema::Field| is_legacy(f) || is_blob(f);
        for (name, options) in &self.wanted {
            let root = name.split('.').next().unwrap_or(name);
            let field = schema.field_with_name(root).ok().filter(|f| any(f, &legacy));
            let Some(field) = field else {
                return Err(Error::new(
                    ErrorCode::SchemaMismatch,
                    format!("blob column {name:?}: it is no blob column of the dataset"),
                ));
            };
            let with = HashMap::from([(name.clone(), options.clone())]);
            let changed = leaves(&stored_schema(schema, &with, true)?, None)?
                != leaves(&stored_schema(schema, &HashMap::new(), true)?, None)?;
            if changed {
                return Err(Error::invalid(format!(
                    "blob column {name:?}: the thresholds of {:?} were set when the dataset was made, \
                     an append cannot change them",
                    field.name()
                )));
            }
        }
        Ok(())
    }

    /// The schema to be stored, checked as a whole.
    pub fn check(
        &self,
        schema: SchemaRef,
        spec: &WriteSpec,
        dataset: Option<&Dataset>,
        version: LanceFileVersion,
    ) -> Result<SchemaRef> {
        if let Some(column) = first_blob(&schema)
            && !self.supported
        {
            return Err(Error::invalid(format!(
                "column {column:?}: blobs need data_storage_version 2.2 or later, it is {}",
                version.resolve()
            )));
        }
        let blobs = leaves(&schema, spec.blob_pack_file_size_threshold)?;
        for (path, ids) in &self.ref_ids {
            check_ref_ids(&schema, path, ids)?;
        }
        let asked = [("dedup", spec.dedup.is_some()), ("dedup_scope", spec.dedup_scope.is_some())];
        if let Some((name, _)) = asked.iter().find(|(_, given)| *given && blobs.is_empty()) {
            return Err(Error::invalid(format!("option {name:?}: the write has no blob columns")));
        }
        let dataset = dataset.filter(|_| spec.mode == Mode::Append);
        let wide = match dataset {
            Some(_) => managed(&schema),
            None => self.scope == Some(Scope::Dataset) || managed(&schema),
        };
        if dataset.is_some() && self.scope.is_some_and(|scope| (scope == Scope::Dataset) != wide) {
            let how = if wide { "dataset" } else { "file" };
            return Err(Error::invalid(format!(
                "option \"dedup_scope\": the dataset was made with the scope {how:?}, an append cannot \
                 change it"
            )));
        }
        if wide && (spec.target_bases.is_some() || spec.target_all_bases.is_some()) {
            return Err(Error::invalid(
                "option \"dedup_scope\": payloads that the whole dataset shares lie in its own storage; \
                 data files cannot go to target_bases",
            ));
        }
        if wide && dataset.is_none() {
            let mut metadata = schema.metadata().clone();
            metadata.insert(MANAGED_BLOBS_META_KEY.to_owned(), "true".to_owned());
            return Ok(Arc::new(Schema::new_with_metadata(schema.fields().clone(), metadata)));
        }
        Ok(schema)
    }
}

fn check_ref_ids(schema: &Schema, path: &str, ids: &str) -> Result<()> {
    let wrong = |why: String| {
        Err(Error::invalid(format!("option \"blob_columns\": ref_id {ids:?} of {path:?}: {why}")))
    };
    if !schema.field_with_name(path).is_ok_and(is_blob) {
        return wrong("a column of ids is for a blob column that lies in no struct or list".into());
    }
    match schema.field_with_name(ids) {
        Ok(field) if field.data_type().is_integer() => Ok(()),
        Ok(field) => {
            wrong(format!("it must be a column of integers, and is {}", field.data_type()))
        }
        Err(_) => wrong("there is no such column".into()),
    }
}

/// What a task's data files have in common; `None` where there are no blobs. `memory` is what may wait.
pub(super) async fn blobs(
    running: &Running,
    task: &Task,
    shared: &Shared,
    schema: &SchemaRef,
    dataset: Option<&Arc<Dataset>>,
    bases: &Bases,
    memory: &Waiting,
) -> Result<Option<Arc<Blobs>>> {
    if !has_blobs(schema) {
        return Ok(None);
    }
    let datasets = running.datasets();
    let options = &running.call.storage_options;
    let mode = match shared.ingest_external_blobs {
        true => ExternalMode::Ingest,
        false => ExternalMode::Reference { outside: shared.allow_external_blob_outside_bases },
    };
    let scope = if managed(schema) { Scope::Dataset } else { Scope::File };
    let (known, root) = match (scope, dataset) {
        (Scope::File, _) => Default::default(),
        (Scope::Dataset, dataset) => {
            let known = match dataset.filter(|_| shared.mode == Mode::Append) {
                Some(dataset) => datasets.managed(&task.uri, task.pin(), options, dataset).await?,
                None => Default::default(),
            };
            (known, datasets.store(&task.uri, options).await?.1)
        }
    };
    let leaves = leaves(schema, shared.blob_pack_file_size_threshold)?;
    let ref_ids = shared
        .blob_ref_ids
        .iter()
        .filter_map(|(path, ids)| {
            let leaf = leaves.iter().position(|leaf| leaf.path == *path)?;
            Some((leaf, schema.index_of(ids).ok()?))
        })
        .collect();
    Ok(Some(Arc::new(Blobs {
        leaves,
        schema: schema.clone(),
        prepared: Arc::new(prepared_schema(schema)),
        dedup: shared.dedup,
        scope,
        ref_ids,
        externals: Externals::new(datasets, options, bases, mode).await?,
        known,
        root,
        mark: running.marks().mark(),
        memory: memory.clone(),
    })))
}
