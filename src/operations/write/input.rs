//! What goes in: the spec resolved at prepare, sources cut into tasks, rows on their way to the sink.

use std::collections::HashSet;

use lance_core::is_system_column;
use tokio::sync::mpsc;

use super::blob::aligned_to;
use super::*;
use crate::blob::fields::supports;
use crate::operations::write::spec::WriteSpec;

pub(super) async fn prepare(
    running: &Running,
    spec: WriteSpec,
    input: Option<SchemaRef>,
) -> Result<Prepared<WriteState>> {
    let uri = normalize("uri", &spec.uri)?;
    let options = &running.call.storage_options;
    let dataset = running.datasets().open_latest(&uri, options).await?;
    let dataset = match (spec.mode, dataset) {
        (Mode::Create, Some(_)) => {
            return Err(Error::new(
                ErrorCode::AlreadyExists,
                format!("there is a dataset at {uri} already; append to it or overwrite it"),
            ));
        }
        (Mode::Append | Mode::Overwrite, None) => return Err(not_found(&uri)),
        (_, dataset) => dataset,
    };
    check_options(&spec, dataset.as_ref())?;
    let bases = initial_bases(&spec)?;
    check_targets(&spec, &uri, dataset.as_ref(), bases.as_deref())?;

    let version = storage_version(&spec, dataset.as_ref())?;
    let blobs = blob::Asked::of(&spec, version)?;
    let storable = |schema: &Schema| blobs.stored(&align::storable(schema));
    let stated = match (&spec.schema, spec.mode, &dataset) {
        (Some(_), Mode::Append, _) => {
            return Err(Error::invalid(
                "option \"schema\": an append has the dataset's schema; schema is for create and overwrite",
            ));
        }
        (Some(bytes), _, _) => Some(Arc::new(storable(schema_from(bytes)?.as_ref())?)),
        (None, Mode::Append, Some(dataset)) => {
            let schema = Schema::from(dataset.schema());
            blobs.check_append(&schema)?;
            Some(Arc::new(blobs.promoted(&schema)?))
        }
        (None, _, _) => None,
    };
    let (schema, sources) = match &spec.sources {
        Some(sources) => {
            if let Some(name) = open_option(&spec, input.is_some()) {
                return Err(Error::invalid(format!("{name} is for a write without sources")));
            }
            if sources.is_empty() {
                return Err(Error::invalid("option \"sources\" is empty"));
            }
            let (schema, sources) = resolve(running, sources, stated, &storable).await?;
            (schema, Some(sources))
        }
        None => {
            let schema = match (stated, input) {
                (Some(stated), Some(input)) => {
                    Aligner::new(&input, &aligned_to(&stated))?;
                    stated
                }
                (Some(stated), None) => stated,
                (None, Some(input)) => Arc::new(storable(&input)?),
                (None, None) => {
                    return Err(Error::invalid(
                        "a write needs sources, or for streams the schema of its input",
                    ));
                }
            };
            (schema, None)
        }
    };
    check_partitions(&spec)?;
    for field in schema.fields() {
        if is_system_column(field.name()) {
            return Err(Error::invalid(format!(
                "column {:?} has a name that Lance keeps for itself",
                field.name()
            )));
        }
    }
    let schema = blobs.check(schema, &spec, dataset.as_ref(), version)?;
    let version = version.resolve().to_string();
    let lance = match (spec.mode, &dataset) {
        (Mode::Append, Some(dataset)) => dataset.schema().clone(),
        _ => {
            lance_schema(&schema, spec.mode).map_err(|e| e.with_code(ErrorCode::SchemaMismatch))?
        }
    };
    check_legacy(&schema, &version)?;
    let defaults = WriteParams::default();
    let max_rows_per_file = spec.max_rows_per_file.unwrap_or(defaults.max_rows_per_file as u64);
    let per_task = spec.max_rows_per_task.unwrap_or(max_rows_per_file);
    let shared = Shared {
        mode: spec.mode,
        schema: schema_bytes(&schema)?,
        max_rows_per_file,
        max_bytes_per_file: spec.max_bytes_per_file.unwrap_or(defaults.max_bytes_per_file as u64),
        max_rows_per_group: spec.max_rows_per_group.unwrap_or(defaults.max_rows_per_group as u64),
        data_storage_version: version,
        enable_stable_row_ids: match &dataset {
            Some(dataset) => dataset.manifest.uses_stable_row_ids(),
            None => spec.enable_stable_row_ids.unwrap_or(false),
        },
        enable_v2_manifest_paths: spec.enable_v2_manifest_paths.unwrap_or(true),
        auto_cleanup: spec.auto_cleanup,
        skip_auto_cleanup: spec.skip_auto_cleanup.unwrap_or(false),
        initial_bases: bases,
        target_bases: spec.target_bases,
        target_all_bases: spec.target_all_bases,
        ingest_external_blobs: spec.external_blob_mode.as_deref() == Some("ingest"),
        allow_external_blob_outside_bases: spec.allow_external_blob_outside_bases.unwrap_or(false),
        blob_pack_file_size_threshold: spec.blob_pack_file_size_threshold,
        dedup: spec.dedup.unwrap_or_default(),
        blob_ref_ids: blobs.ref_ids,
    };
    Ok(Prepared {
        uri,
        pin: dataset.as_ref().map_or(Pin { version: 0, timestamp: 0 }, Pin::of),
        state: WriteState {
            shared,
            sources,
            partitions: spec.partitions,
            num_partitions: spec.num_partitions,
            // Whole files only, so that no task ends with a small one.
            max_rows_per_task: (per_task / max_rows_per_file).max(1) * max_rows_per_file,
            field_ids: lance.fields_pre_order().map(|f| f.id).collect(),
            transaction_properties: spec.transaction_properties,
            discard_concurrent: spec.discard_concurrent.unwrap_or(false),
        },
    })
}

/// As stated, or else the dataset's; blobs need 2.2 at least.
fn storage_version(spec: &WriteSpec, dataset: Option<&Dataset>) -> Result<LanceFileVersion> {
    let version = match (&spec.data_storage_version, dataset) {
        (Some(text), _) => {
            return text.parse::<LanceFileVersion>().map_err(|_| {
                Error::invalid(format!(
                    "option \"data_storage_version\": {text:?} is no Lance file version; known are \
                     legacy, 2.0, 2.1, 2.2, 2.3, stable, next"
                ))
            });
        }
        (None, Some(dataset)) => {
            dataset.manifest.data_storage_format.lance_file_format().to_selector()
        }
        (None, None) => LanceFileVersion::Stable,
    };
    let blobs = match (spec.mode, dataset) {
        // A dataset that blobs were appended to keeps the version that it was made with.
        (Mode::Append, Some(dataset)) => {
            dataset.schema().fields_pre_order().any(|f| f.is_blob_v2())
        }
        _ => spec.blob_columns.as_ref().is_some_and(|b| !b.is_empty()),
    };
    Ok(if blobs && !supports(version.resolve()) { LanceFileVersion::V2_2 } else { version })
}

fn open_option(spec: &WriteSpec, input: bool) -> Option<&'static str> {
    match spec {
        _ if input => Some("an input schema"),
        s if s.partitions.is_some() => Some("option \"partitions\""),
        s if s.num_partitions.is_some() => Some("option \"num_partitions\""),
        _ => None,
    }
}

fn check_options(spec: &WriteSpec, dataset: Option<&Dataset>) -> Result<()> {
    for (name, value) in [
        ("max_rows_per_file", spec.max_rows_per_file),
        ("max_bytes_per_file", spec.max_bytes_per_file),
        ("max_rows_per_group", spec.max_rows_per_group),
        ("max_rows_per_task", spec.max_rows_per_task),
        ("num_partitions", spec.num_partitions),
        ("blob_pack_file_size_threshold", spec.blob_pack_file_size_threshold),
    ] {
        if value == Some(0) {
            return Err(Error::invalid(format!("option {name:?} is 0, it must be at least 1")));
        }
    }
    if spec.max_rows_per_file.is_some_and(|rows| rows > u32::MAX.into()) {
        return Err(Error::invalid(format!(
            "option \"max_rows_per_file\": a fragment has at most {} rows",
            u32::MAX
        )));
    }
    if spec.sources.is_none() && spec.max_rows_per_task.is_some() {
        return Err(Error::invalid(
            "option \"max_rows_per_task\" is for a write with sources; a stream is one task",
        ));
    }
    if let Some(mode) = spec.external_blob_mode.as_deref()
        && !["reference", "ingest"].contains(&mode)
    {
        return Err(Error::invalid(format!(
            "option \"external_blob_mode\": {mode:?} is neither \"reference\" nor \"ingest\""
        )));
    }
    if spec.external_blob_mode.as_deref() == Some("ingest")
        && spec.allow_external_blob_outside_bases == Some(true)
    {
        return Err(Error::invalid(
            "option \"allow_external_blob_outside_bases\" goes with external_blob_mode \"reference\" only",
        ));
    }
    let only = |names: &[(&str, bool)], mode: &str| match names.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(Error::invalid(format!("option {name:?} is for mode {mode} only"))),
        None => Ok(()),
    };
    if spec.mode != Mode::Create {
        let keeps = dataset.map(|d| d.manifest.uses_stable_row_ids());
        only(
            &[
                (
                    "enable_stable_row_ids",
                    spec.enable_stable_row_ids.is_some() && spec.enable_stable_row_ids != keeps,
                ),
                ("enable_v2_manifest_paths", spec.enable_v2_manifest_paths.is_some()),
                ("auto_cleanup", spec.auto_cleanup.is_some()),
                ("initial_bases", spec.initial_bases.is_some()),
            ],
            "create",
        )?;
    }
    if spec.mode != Mode::Overwrite {
        only(&[("discard_concurrent", spec.discard_concurrent.is_some())], "overwrite")?;
    }
    Ok(())
}

/// The legacy version keeps one dictionary for the whole dataset in its schema, which tasks that do not
/// know of each other cannot agree on.
fn check_legacy(schema: &Schema, version: &str) -> Result<()> {
    fn dictionary(field: &arrow_schema::Field) -> bool {
        use arrow_schema::DataType as D;
        match field.data_type() {
            D::Dictionary(..) => true,
            D::Struct(fields) => fields.iter().any(|f| dictionary(f)),
            D::List(f) | D::LargeList(f) | D::FixedSizeList(f, _) | D::Map(f, _) => dictionary(f),
            _ => false,
        }
    }
    if version.parse::<LanceFileVersion>()?.resolve() != LanceFileVersion::Legacy.resolve() {
        return Ok(());
    }
    match schema.fields().iter().find(|f| dictionary(f)) {
        None => Ok(()),
        Some(field) => Err(Error::new(
            ErrorCode::NotSupported,
            format!(
                "column {:?}: dictionaries cannot be written in the legacy storage version; use 2.0 or \
                 later, or a plain column",
                field.name()
            ),
        )),
    }
}

fn initial_bases(spec: &WriteSpec) -> Result<Option<Vec<Base>>> {
    let Some(bases) = &spec.initial_bases else { return Ok(None) };
    let mut ids = HashSet::new();
    let mut out = Vec::new();
    for base in bases {
        if base.id == 0 || !ids.insert(base.id) {
            return Err(Error::invalid(format!(
                "initial_bases: id {} is 0 or there twice",
                base.id
            )));
        }
        out.push(Base { path: normalize("initial_bases: path", &base.path)?, ..base.clone() });
    }
    Ok(Some(out))
}

fn check_targets(
    spec: &WriteSpec,
    uri: &str,
    dataset: Option<&Dataset>,
    initial: Option<&[Base]>,
) -> Result<()> {
    let Some(targets) = &spec.target_bases else { return Ok(()) };
    if spec.target_all_bases.is_some() {
        return Err(Error::invalid(
            "options \"target_bases\" and \"target_all_bases\" exclude each other",
        ));
    }
    let known: Vec<BasePath> = dataset
        .map(|d| bases_of(d).into_values().collect())
        .unwrap_or_else(|| initial.iter().copied().flatten().map(base_path).collect());
    for target in targets {
        let found = target == uri
            || known
                .iter()
                .any(|b| b.path == *target || b.name.as_deref() == Some(target.as_str()));
        if !found {
            return Err(Error::invalid(format!("target_bases: {target:?} is no registered base")));
        }
    }
    Ok(())
}

fn check_partitions(spec: &WriteSpec) -> Result<()> {
    let Some(partitions) = &spec.partitions else { return Ok(()) };
    let mut seen = HashSet::new();
    if let Some(twice) = partitions.iter().find(|p| p.is_empty() || !seen.insert(p.as_str())) {
        return Err(Error::invalid(format!("partitions: {twice:?} is empty or there twice")));
    }
    if spec.num_partitions.is_some_and(|n| n != partitions.len() as u64) {
        return Err(Error::invalid(format!(
            "option \"num_partitions\" is {}, there are {} partitions",
            spec.num_partitions.unwrap_or(0),
            partitions.len()
        )));
    }
    Ok(())
}

async fn resolve(
    running: &Running,
    specs: &[SourceSpec],
    mut target: Option<SchemaRef>,
    storable: &(dyn Fn(&Schema) -> Result<Schema> + Sync),
) -> Result<(SchemaRef, Vec<Source>)> {
    let mut sources = Vec::new();
    for spec in specs {
        running.call.check()?;
        let found = source::resolve(running, spec, target.as_ref()).await?;
        match &target {
            Some(target) => {
                Aligner::new(&found.schema, &aligned_to(target))
                    .map_err(|e| e.context(format!("source {}", spec.uri)))?;
            }
            None => target = Some(Arc::new(storable(&found.schema)?)),
        }
        sources.push(found.source);
    }
    let target = target.ok_or_else(|| Error::internal("sources without a schema"))?;
    Ok((target, sources))
}

/// The caller's stream, read on a thread of its own and aligned on several.
pub(super) fn stream(reader: Input, target: &SchemaRef, running: &Running) -> Result<Batches> {
    let aligner = Aligner::new(&reader.schema(), target)?;
    let (sender, receiver) = mpsc::channel(2);
    let pump = tokio::task::spawn_blocking(move || {
        for batch in reader {
            let batch = batch.map(Some).map_err(|e| {
                let error = Error::from(e);
                let vague = error.code() == ErrorCode::InvalidArgument;
                let error = error.context("input stream");
                if vague { error.with_code(ErrorCode::Source) } else { error }
            });
            let failed = batch.is_err();
            if sender.blocking_send(batch).is_err() || failed {
                return;
            }
        }
        let _ = sender.blocking_send(Ok(None));
    });
    // The stream is the caller's: it is released before the call returns.
    running.on_end(pump);
    let batches = futures::stream::try_unfold(receiver, |mut receiver| async move {
        match receiver.recv().await {
            Some(Ok(Some(batch))) => Ok(Some((batch, receiver))),
            Some(Ok(None)) => Ok(None),
            Some(Err(error)) => Err(error),
            // A panic in the producer must not read as the end of its rows.
            None => Err(Error::internal("the input stream broke off")),
        }
    });
    Ok(aligned(batches.boxed(), aligner, 0, running.threads()))
}

/// The sources' rows, in order.
pub(super) fn pieces(
    running: &Running,
    readings: Vec<Reading>,
    pieces: Vec<Piece>,
    target: &SchemaRef,
) -> Batches {
    let (running, target) = (running.clone(), target.clone());
    let threads = running.threads();
    futures::stream::iter(pieces)
        .map(move |piece| {
            let (running, target) = (running.clone(), target.clone());
            let reading = readings.get(piece.reading as usize).cloned();
            async move {
                let reading = reading.ok_or_else(|| {
                    Error::new(ErrorCode::Decode, "a piece names a reading that is not there")
                })?;
                let (schema, batches) = source::read(&running, &reading, &piece).await?;
                let named = |e: Error| e.context(format!("source file {}", piece.file.uri));
                let aligner = Aligner::new(&schema, &target).map_err(named)?;
                let first = piece.rows.map_or(0, |(first, _)| first);
                let uri = piece.file.uri.clone();
                let batches = aligned(batches, aligner, first, running.threads());
                Ok::<_, Error>(batches.map_err(move |e| match e.code() {
                    ErrorCode::SchemaMismatch if !e.message().contains(&uri) => {
                        e.context(format!("source file {uri}"))
                    }
                    _ => e,
                }))
            }
        })
        .buffered(threads)
        .try_flatten()
        .boxed()
}

fn aligned(batches: Batches, aligner: Aligner, first: u64, ahead: usize) -> Batches {
    let mut row = first;
    batches
        .map(move |batch| {
            let aligner = aligner.clone();
            let first = row;
            if let Ok(batch) = &batch {
                row += batch.num_rows() as u64;
            }
            async move {
                let batch = batch?;
                if aligner.identical() {
                    return aligner.align(&batch, first);
                }
                tokio::task::spawn_blocking(move || aligner.align(&batch, first))
                    .await
                    .map_err(|e| Error::internal(format!("aligning: {e}")))?
            }
        })
        .buffered(ahead.max(1))
        .boxed()
}

/// An order in which `block-2` comes before `block-10`.
pub(super) fn natural(text: &str) -> Vec<(bool, usize, String)> {
    let mut parts: Vec<(bool, usize, String)> = Vec::new();
    for c in text.chars() {
        let digit = c.is_ascii_digit();
        match parts.last_mut() {
            Some((d, _, part)) if *d == digit => part.push(c),
            _ => parts.push((digit, 0, c.to_string())),
        }
    }
    for (digit, length, part) in &mut parts {
        if *digit {
            *length = part.trim_start_matches('0').len();
        }
    }
    // Digits before text at the same place; equal numbers by their writing.
    parts.iter_mut().for_each(|(digit, ..)| *digit = !*digit);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_sort_by_their_numbers() {
        let mut names = ["block-10", "block-2", "a", "block-1", "10", "9"];
        names.sort_by_key(|n| natural(n));
        assert_eq!(names, ["9", "10", "a", "block-1", "block-2", "block-10"]);
    }
}
