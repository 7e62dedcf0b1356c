//! On a local disk an attempt writes into a folder of its own, `data/<marked name>/`, and moves each file
//! out when it is whole. Lance's local writer, which is the fast one, chooses the names of its temporary
//! files itself: in this folder `abort` finds them after a crash.

use std::path::PathBuf;
use std::sync::Arc;

use lance::Dataset;
use lance_table::format::{BasePath, Fragment};
use object_store::path::Path;

use crate::dataset::local_folder;
use crate::error::{Error, ErrorCode, Result};
use crate::marks::Mark;

/// See the module. To Lance the folder is a base to write to.
pub(crate) struct Staging {
    data: PathBuf,
    folder: PathBuf,
    mark: Mark,
}

impl Staging {
    /// The folder's id among the bases; registered nowhere, and in no fragment in the end.
    pub const BASE: u32 = u32::MAX;

    /// `None` where the dataset is not on a local disk.
    pub fn of(uri: &str, mark: Mark) -> Option<Self> {
        let data = local_folder(uri)?.join("data");
        let folder = data.join(mark.new_name());
        Some(Self { data, folder, mark })
    }

    pub fn base(&self) -> BasePath {
        BasePath {
            id: Self::BASE,
            name: None,
            is_dataset_root: false,
            path: self.folder.to_string_lossy().into_owned(),
        }
    }

    /// The dataset as one that has the folder among its bases.
    pub fn dataset(&self, dataset: &Dataset) -> Dataset {
        let mut dataset = dataset.clone();
        Arc::make_mut(&mut dataset.manifest).base_paths.insert(Self::BASE, self.base());
        dataset
    }

    /// Where a data file of that name would lie, for the payloads beside it.
    pub fn file(&self, name: &str) -> Result<Path> {
        let path = self.folder.join(format!("{name}.lance"));
        Path::from_absolute_path(&path)
            .map_err(|e| Error::new(ErrorCode::Io, format!("{}: {e}", path.display())))
    }

    /// Move files that are whole to the others of the dataset, under their marked names. `only` is the
    /// name of the one data file of all, and of the folder of payloads beside it.
    pub fn publish(&self, fragments: &mut [Fragment], only: Option<&str>) -> Result<()> {
        let staged = |f: &&mut lance_table::format::DataFile| f.base_id == Some(Self::BASE);
        for file in fragments.iter_mut().flat_map(|f| &mut f.files).filter(staged) {
            let name = match only {
                Some(only) => {
                    // Its payloads first: it may not be there without them.
                    self.rename(only, only, true)?;
                    format!("{only}.lance")
                }
                None => self.mark.file(&file.path),
            };
            self.rename(&file.path, &name, false)?;
            file.path = name;
            file.base_id = None;
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str, may_miss: bool) -> Result<()> {
        let path = self.folder.join(from);
        match std::fs::rename(&path, self.data.join(to)) {
            Err(error) if may_miss && error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            moved => moved
                .map_err(|e| Error::new(ErrorCode::Io, format!("moving {}: {e}", path.display()))),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
