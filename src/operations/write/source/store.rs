//! Source files on any store: listing, globbing, reading ranges.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use lance_io::object_store::ObjectStore;
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _};

use super::super::spec::{Format, SourceSpec};
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;

/// A file that can be read by ranges.
#[derive(Clone)]
pub(super) struct SourceFile {
    pub uri: String,
    pub size: u64,
    store: Arc<ObjectStore>,
    path: Path,
    /// Local files are read directly.
    local: Option<PathBuf>,
}

impl SourceFile {
    pub async fn open(running: &Running, uri: &str) -> Result<Self> {
        let (store, path) = running.datasets().store(uri, &running.call.storage_options).await?;
        let size = store.inner.head(&path).await?.size;
        let local = (!uri.contains("://")).then(|| PathBuf::from(uri));
        Ok(Self { uri: uri.to_owned(), size, store, path, local })
    }

    pub async fn range(&self, range: Range<u64>) -> Result<Bytes> {
        let range = range.start.min(self.size)..range.end.min(self.size);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let Some(local) = self.local.clone() else {
            return Ok(self.store.inner.get_range(&self.path, range).await?);
        };
        tokio::task::spawn_blocking(move || {
            use std::os::unix::fs::FileExt;
            let file = std::fs::File::open(local)?;
            let mut buffer = vec![0; (range.end - range.start) as usize];
            file.read_exact_at(&mut buffer, range.start)?;
            Ok(Bytes::from(buffer))
        })
        .await
        .map_err(|e| Error::internal(format!("reading: {e}")))?
    }
}

/// The files that a source names, in the order of their names.
pub(super) async fn list(
    running: &Running,
    spec: &SourceSpec,
    uri: &str,
) -> Result<Vec<SourceFile>> {
    let names = if uri.contains("://") {
        remote(running, uri).await?
    } else {
        let uri = uri.to_owned();
        tokio::task::spawn_blocking(move || local(&uri))
            .await
            .map_err(|e| Error::internal(format!("listing: {e}")))??
    };
    if names.is_empty() {
        return Err(Error::new(
            ErrorCode::NotFound,
            format!("source {}: no file is there", spec.uri),
        ));
    }
    let mut files = Vec::with_capacity(names.len());
    for name in names {
        files
            .push(SourceFile::open(running, &name).await.map_err(|e| super::unreadable(&name, e))?);
    }
    Ok(files)
}

const GLOB: &[char] = &['*', '?', '['];

fn local(uri: &str) -> Result<Vec<String>> {
    let text = |path: PathBuf| {
        path.into_os_string()
            .into_string()
            .map_err(|p| Error::invalid(format!("source {}: not UTF-8", p.to_string_lossy())))
    };
    let path = std::path::Path::new(uri);
    if path.is_file() {
        return Ok(vec![uri.to_owned()]);
    }
    if path.is_dir() {
        let mut names = Vec::new();
        walk(path, &mut names)?;
        names.sort();
        return names.into_iter().map(text).collect();
    }
    if !uri.contains(GLOB) {
        return Ok(Vec::new());
    }
    let matches = glob::glob(uri).map_err(|e| Error::invalid(format!("source {uri:?}: {e}")))?;
    let mut names = Vec::new();
    for name in matches {
        let name = name.map_err(|e| Error::new(ErrorCode::Io, format!("source {uri}: {e}")))?;
        if name.is_file() {
            names.push(text(name)?);
        }
    }
    names.sort();
    Ok(names)
}

/// Files of a folder and its folders, without hidden ones and those that begin with `_`, as Spark and
/// Hive leave them.
fn walk(folder: &std::path::Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with(['.', '_']) {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            walk(&path, into)?;
        } else {
            into.push(path);
        }
    }
    Ok(())
}

async fn remote(running: &Running, uri: &str) -> Result<Vec<String>> {
    let options = &running.call.storage_options;
    let (folder, pattern) = match uri.find(GLOB) {
        None => {
            let (store, path) = running.datasets().store(uri, options).await?;
            match store.inner.head(&path).await {
                Ok(_) => return Ok(vec![uri.to_owned()]),
                Err(object_store::Error::NotFound { .. }) => (uri.to_owned(), None),
                Err(error) => return Err(Error::from(error).context(uri)),
            }
        }
        Some(at) => {
            let slash = uri[..at].rfind('/').unwrap_or(at);
            let pattern = glob::Pattern::new(&uri[slash + 1..])
                .map_err(|e| Error::invalid(format!("source {uri:?}: {e}")))?;
            (uri[..slash].to_owned(), Some(pattern))
        }
    };
    let (store, root) = running.datasets().store(&folder, options).await?;
    let found: Vec<_> = store.inner.list(Some(&root)).try_collect().await?;
    let strict = glob::MatchOptions { require_literal_separator: true, ..Default::default() };
    let mut names: Vec<String> = found
        .into_iter()
        .filter_map(|meta| {
            let relative: Vec<_> =
                meta.location.prefix_match(&root)?.map(|part| part.as_ref().to_owned()).collect();
            let relative = relative.join("/");
            let hidden = relative.split('/').any(|part| part.starts_with(['.', '_']));
            let wanted = match &pattern {
                Some(pattern) => pattern.matches_with(&relative, strict),
                None => !hidden,
            };
            (wanted && !relative.is_empty()).then(|| format!("{folder}/{relative}"))
        })
        .collect();
    names.sort();
    Ok(names)
}

/// The format that was said, or that all names end with.
pub(super) fn format(spec: &SourceSpec, files: &[SourceFile]) -> Result<Format> {
    if let Some(format) = spec.format {
        return Ok(format);
    }
    let mut found: Option<(Format, &str)> = None;
    for file in files {
        let ending = file.uri.rsplit(['.', '/']).next().unwrap_or_default().to_ascii_lowercase();
        let format = match ending.as_str() {
            "parquet" | "pq" => Format::Parquet,
            "arrow" | "arrows" | "ipc" | "feather" => Format::Arrow,
            "csv" | "tsv" => Format::Csv,
            "ndjson" | "jsonl" | "json" => Format::Json,
            _ => {
                return Err(Error::invalid(format!(
                    "source file {}: the name does not tell the format; say format = parquet, arrow, \
                     csv, json or lance",
                    file.uri
                )));
            }
        };
        match found {
            Some((other, name)) if other != format => {
                return Err(Error::invalid(format!(
                    "source {}: {name} and {} are of different formats; name them as sources of their \
                     own",
                    spec.uri, file.uri
                )));
            }
            _ => found = Some((format, &file.uri)),
        }
    }
    found.map(|(format, _)| format).ok_or_else(|| Error::internal("a source without files"))
}
