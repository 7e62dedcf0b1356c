//! Payloads' files on a local disk. Lance's writer there copies each payload and hands each to another
//! thread; here one thread writes a file from the payloads as they lie in memory.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use lance_core::utils::blob::blob_path;
use lance_io::local::to_local_path;
use tokio::sync::mpsc;

use super::sidecar::{Beside, Fate, Source};
use crate::error::{Error, Result};
use crate::result::WrittenFile;

/// Where the file of an id is on a local disk.
pub(super) fn path(beside: &Beside, id: u32) -> Option<PathBuf> {
    if !beside.store.has_direct_local_paths() {
        return None;
    }
    let stem = beside.data_file.filename()?.strip_suffix(".lance")?;
    let folder = beside.data_file.parent()?;
    Some(PathBuf::from(to_local_path(&blob_path(&folder, stem, id))))
}

/// Write what `fill` gives into the file, which is there only when it is whole.
pub(super) async fn write(
    path: PathBuf,
    mut file: WrittenFile,
    fate: Arc<Fate>,
    fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> + Send + 'static,
) -> Result<WrittenFile> {
    let write = move || {
        let part = path.with_extension("part");
        let written = (|| {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(|e| failed(&part, e))?;
            }
            let mut out = File::create(&part).map_err(|e| failed(&part, e))?;
            fill(&mut |bytes| {
                fate.check()?;
                file.size += bytes.len() as u64;
                out.write_all(bytes).map_err(|e| failed(&part, e))
            })?;
            fate.check()?;
            fs::rename(&part, &path).map_err(|e| failed(&path, e))
        })();
        if written.is_err() {
            let _ = fs::remove_file(&part);
        }
        written.map(|()| file)
    };
    tokio::task::spawn_blocking(write)
        .await
        .map_err(|e| Error::internal(format!("a writer ended: {e}")))?
}

/// Write one payload, piece by piece where it is being read.
pub(super) async fn copy(
    path: PathBuf,
    file: WrittenFile,
    fate: Arc<Fate>,
    source: Source,
) -> Result<WrittenFile> {
    let (sender, mut pieces) = mpsc::channel::<Result<Bytes>>(1);
    let writing = tokio::spawn(write(path, file, fate, move |write| {
        while let Some(piece) = pieces.blocking_recv() {
            write(&piece?)?;
        }
        Ok(())
    }));
    let mut at = 0;
    loop {
        let piece = source.piece(at).await;
        let size = match &piece {
            Ok(piece) if piece.is_empty() => break,
            Ok(piece) => Some(piece.len() as u64),
            Err(_) => None,
        };
        let taken = sender.send(piece).await.is_ok();
        match size {
            Some(size) if taken => at += size,
            _ => break,
        }
    }
    drop(sender);
    writing.await.map_err(|e| Error::internal(format!("a writer ended: {e}")))?
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::from(error).context(path.display())
}
