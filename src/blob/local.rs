//! Payloads' files on a local disk. Lance's writer there copies each payload and hands each to another
//! thread; here one thread writes a file from the payloads as they lie in memory.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lance_core::utils::blob::blob_path;
use lance_io::local::to_local_path;

use super::sidecar::{Beside, Fate};
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

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::from(error).context(path.display())
}
