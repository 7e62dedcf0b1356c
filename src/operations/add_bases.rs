//! Add bases: register further storage locations with a dataset that is there. No tasks; the commit is all.

use std::collections::BTreeMap;

use lance::Dataset;
use lance::dataset::transaction::Operation as LanceOperation;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::write::{Base, base_path};
use super::{Metrics, NewWork, Operation, Prepared, Preparing, Produced};
use crate::commit::{Applied, Committing};
use crate::dataset::{Bases, base_location, normalize, not_found};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::{Input, Running};
use crate::job::Job;
use crate::result::TaskResult;
use crate::task::Task;

pub(crate) struct AddBases;

/// Register further storage locations: for data files (`target_bases` of a write) and for external blobs.
/// A base that is there already, with the same id, name and path, is left as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AddBasesSpec {
    /// The dataset: a path or an object-store URI.
    pub uri: String,
    /// At least one. Lance takes no more than one base without a name.
    pub bases: Vec<Base>,
    /// Stored with the transaction.
    pub transaction_properties: Option<BTreeMap<String, String>>,
}

/// Bases to be registered; local paths absolute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AddBasesState {
    pub bases: Vec<Base>,
    pub transaction_properties: Option<BTreeMap<String, String>>,
}

/// There are no tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub enum AddBasesWork {}

/// How often bases are added against others that are added at the same time.
const TRIES: u32 = 5;

impl Operation for AddBases {
    type Spec = AddBasesSpec;
    type State = AddBasesState;
    type Work = AddBasesWork;

    async fn prepare(
        cx: &Preparing<'_>,
        spec: AddBasesSpec,
        input: Option<arrow_schema::SchemaRef>,
    ) -> Result<Prepared<AddBasesState>> {
        if spec.bases.is_empty() {
            return Err(Error::invalid("option \"bases\" is empty: name at least one base"));
        }
        let bases = spec.bases.into_iter().map(|base| {
            let path = normalize(&format!("the path of base {}", base.id), &base.path)?;
            Ok(Base { path, ..base })
        });
        let bases = bases.collect::<Result<Vec<_>>>()?;
        let (uri, dataset) = cx.existing(&spec.uri, input.as_ref(), "adding bases").await?;
        missing(&bases, &dataset)?;
        let state = AddBasesState { bases, transaction_properties: spec.transaction_properties };
        Ok(cx.prepared(uri, &dataset, state))
    }

    async fn stage(
        _cx: &Running,
        _job: &Job,
        _state: &AddBasesState,
        _stage: u32,
        _earlier: &[TaskResult],
    ) -> Result<Option<Vec<NewWork<AddBasesWork>>>> {
        Ok(None)
    }

    fn memory(_cx: &Running, _task: &Task, work: &AddBasesWork) -> u64 {
        match *work {}
    }

    async fn execute(
        _cx: &Running,
        _task: &Task,
        work: &AddBasesWork,
        _input: Option<Input>,
    ) -> Result<Produced> {
        match *work {}
    }

    async fn adopt(
        _cx: &Running,
        _task: &Task,
        work: &AddBasesWork,
        _made: serde_json::Value,
    ) -> Result<Produced> {
        match *work {}
    }

    fn verify(
        _state: &AddBasesState,
        _task: Option<&Task>,
        _work: Option<&AddBasesWork>,
        _result: &TaskResult,
    ) -> Result<()> {
        Err(Error::new(ErrorCode::Verification, "adding bases has no tasks"))
    }

    /// Whoever adds a base may have its storage options already.
    fn bases(state: &AddBasesState) -> Bases {
        state.bases.iter().map(|base| (base.id, base_path(base))).collect()
    }

    async fn commit(
        cx: &Committing<'_>,
        job: &Job,
        state: &AddBasesState,
        _winners: &[TaskResult],
    ) -> Result<Applied> {
        let options = &cx.running.call.storage_options;
        let mut tries = 0;
        loop {
            tries += 1;
            // As it is stored: what is opened for a commit has its bases' paths changed.
            let latest = cx.running.datasets().open_latest(&job.uri, options).await?;
            let latest = latest.ok_or_else(|| not_found(&job.uri))?;
            let new = missing(&state.bases, &latest).map_err(|e| {
                e.with_code(ErrorCode::Conflict).context("since the job was prepared")
            })?;
            if new.is_empty() {
                return Ok(Applied { metrics: Metrics::new(), nothing: true });
            }
            let count = new.len() as u64;
            let operation =
                LanceOperation::UpdateBases { new_bases: new.iter().map(base_path).collect() };
            let properties = cx.properties(state.transaction_properties.as_ref());
            match cx.apply(operation, latest.manifest.version, properties, |builder| builder).await
            {
                // Another job added bases: the same ones perhaps.
                Err(error)
                    if matches!(error.code(), ErrorCode::Conflict | ErrorCode::InvalidArgument)
                        && tries < TRIES => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    let metrics = Metrics::from([("bases_added".into(), count)]);
                    return Ok(Applied { metrics, nothing: false });
                }
            }
        }
    }
}

/// Those that the dataset does not have yet; an error where one does not go together with those that it
/// has, or with the others.
fn missing(bases: &[Base], dataset: &Dataset) -> Result<Vec<Base>> {
    let there = dataset.manifest.base_paths.values().map(|base| Base {
        id: base.id,
        name: base.name.clone(),
        path: base_location(&base.path),
        is_dataset_root: base.is_dataset_root,
    });
    let mut known: Vec<Base> = there.collect();
    let mut new = Vec::new();
    for base in bases {
        check(base)?;
        if known.contains(base) {
            continue;
        }
        if let Some(clash) = known.iter().find_map(|other| clash(base, other)) {
            return Err(Error::invalid(clash));
        }
        known.push(base.clone());
        new.push(base.clone());
    }
    Ok(new)
}

fn check(base: &Base) -> Result<()> {
    if base.id == 0 {
        return Err(Error::invalid(format!(
            "base {:?} has id 0, which stands for the dataset's own storage; ids begin with 1",
            base.path
        )));
    }
    if base.name.as_ref().is_some_and(String::is_empty) {
        return Err(Error::invalid(format!("the name of base {} is empty", base.id)));
    }
    Ok(())
}

/// Why two bases cannot be there both.
fn clash(base: &Base, other: &Base) -> Option<String> {
    let Base { id, name, path, .. } = base;
    let said = |base: &Base| match &base.name {
        Some(name) => format!("base {} ({name:?}, {})", base.id, base.path),
        None => format!("base {} (without a name, {})", base.id, base.path),
    };
    let other_is = said(other);
    if other.id == *id {
        return Some(format!("id {id} of {} is taken by {other_is}", said(base)));
    }
    if other.path == *path {
        return Some(format!("the path of {} is that of {other_is}", said(base)));
    }
    match name {
        Some(name) if other.name.as_ref() == Some(name) => {
            Some(format!("the name of {} is that of {other_is}", said(base)))
        }
        // Lance takes two without a name for two of the same name.
        None if other.name.is_none() => Some(format!(
            "base {id} needs a name: {other_is} has none, and Lance takes one such base only"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(id: u32, name: Option<&str>, path: &str) -> Base {
        Base { id, name: name.map(str::to_owned), path: path.into(), is_dataset_root: false }
    }

    #[test]
    fn what_cannot_be_there_both_is_named() {
        let one = base(1, Some("one"), "/one");
        for (other, word) in [
            (base(1, Some("two"), "/two"), "id 1"),
            (base(2, Some("one"), "/two"), "name"),
            (base(2, Some("two"), "/one"), "path"),
        ] {
            let clash = clash(&other, &one).unwrap();
            assert!(clash.contains(word) && clash.contains("/one"), "{clash}");
        }
        assert_eq!(clash(&base(2, None, "/two"), &one), None);
        let clash = clash(&base(2, None, "/two"), &base(3, None, "/three")).unwrap();
        assert!(clash.contains("needs a name"), "{clash}");
    }
}
