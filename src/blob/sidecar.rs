//! The files beside a data file that hold its payloads: packs of many, and files of one.
//!
//! Where a payload lies is known as soon as it is handed in, so nobody waits for it to be written: a
//! task per file does that, behind the back of whoever encodes the data file. What waits is counted
//! against the memory of the task.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use lance::{DedicatedBlobWriter, PackedBlobWriter};
use lance_core::utils::blob::blob_path;
use lance_io::object_store::ObjectStore;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::local;
use super::writer::Held;
use crate::dataset::join;
use crate::error::{Error, ErrorCode, Result};
use crate::executor::Running;
use crate::result::WrittenFile;

/// Bytes that go to one pack before the next one's turn.
const TURN: u64 = 4 << 20;
/// Packs that are written at one time.
const PACKS: usize = 2;
/// Files of one payload that are written at one time.
const FILES: usize = 4;
/// Bytes that are read at once of a payload that is copied.
pub(super) const PIECE: u64 = 8 << 20;

/// Where the payloads of a data file go.
#[derive(Clone)]
pub(crate) struct Beside {
    pub store: Arc<ObjectStore>,
    /// The data file as it is named while it is being written.
    pub data_file: Path,
    /// The folder as results list it in the end: `data/<stem>`, in a base that is no dataset root
    /// `<stem>`.
    pub folder: String,
    pub base: Option<u32>,
}

/// Bytes with their share of the memory.
pub(crate) type Payload = (Bytes, Held);

/// What a file of its own is made of.
pub(crate) enum Source {
    Here(Payload),
    /// In an object, of which it is the whole; read piece by piece.
    Copy {
        store: Arc<ObjectStore>,
        path: Path,
        size: u64,
    },
}

impl Source {
    /// The next piece from byte `at` on; empty at the end.
    pub(super) async fn piece(&self, at: u64) -> Result<Bytes> {
        match self {
            Self::Here((bytes, _)) => Ok(bytes.slice(bytes.len().min(at as usize)..)),
            Self::Copy { size, .. } if at >= *size => Ok(Bytes::new()),
            Self::Copy { store, path, size } => {
                let range = at..(at + PIECE).min(*size);
                store.inner.get_range(path, range).await.map_err(|e| {
                    Error::from(lance::Error::from(e)).context(format!("payload {path}"))
                })
            }
        }
    }
}

struct Pack {
    id: u32,
    bytes: u64,
    payloads: mpsc::UnboundedSender<Payload>,
}

/// Why a file's writer has ended early, and whether all shall.
#[derive(Default)]
pub(super) struct Fate {
    stop: AtomicBool,
    failed: Mutex<Option<Error>>,
}

impl Fate {
    pub fn check(&self) -> Result<()> {
        match self.failed.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(error) => Err(error.clone()),
            None if self.stop.load(Ordering::Relaxed) => {
                Err(Error::new(ErrorCode::Cancelled, "the attempt has ended"))
            }
            None => Ok(()),
        }
    }
}

/// The payloads' files of one data file. Dropped before [`finish`](Self::finish), no more of them become
/// whole.
pub(crate) struct Sidecars {
    running: Running,
    beside: Beside,
    next_id: u32,
    packs: Vec<Option<Pack>>,
    /// The pack whose turn it is, and the bytes it has had in this turn.
    turn: (usize, u64),
    writers: Vec<JoinHandle<Option<WrittenFile>>>,
    dedicated: Arc<Semaphore>,
    fate: Arc<Fate>,
}

impl Drop for Sidecars {
    fn drop(&mut self) {
        self.fate.stop.store(true, Ordering::Relaxed);
    }
}

impl Sidecars {
    pub fn new(running: &Running, beside: Beside) -> Self {
        Self {
            running: running.clone(),
            beside,
            next_id: 1,
            packs: (0..PACKS).map(|_| None).collect(),
            turn: (0, 0),
            writers: Vec::new(),
            dedicated: Arc::new(Semaphore::new(FILES)),
            fate: Arc::default(),
        }
    }

    /// The first error of a writer.
    pub fn check(&self) -> Result<()> {
        self.fate.check()
    }

    fn new_file(&mut self) -> Result<(u32, WrittenFile)> {
        let id = self.next_id;
        self.next_id = id.checked_add(1).ok_or_else(|| Error::internal("too many payloads"))?;
        let name = blob_path(&Path::default(), "x", id);
        let name = name.filename().unwrap_or_default();
        let file = WrittenFile {
            path: format!("{}/{name}", self.beside.folder),
            size: 0,
            base: self.beside.base,
        };
        self.running.wrote(file.clone());
        Ok((id, file))
    }

    /// Into a pack of at most `limit` bytes: the pack's id, and the payload's place in it.
    pub fn pack(&mut self, size: u64, limit: u64, payload: Payload) -> Result<(u32, u64)> {
        if self.turn.1 >= TURN {
            self.turn = ((self.turn.0 + 1) % self.packs.len(), 0);
        }
        let at = self.turn.0;
        let full = |pack: &Pack| pack.bytes > 0 && pack.bytes + size > limit;
        if self.packs[at].as_ref().is_none_or(full) {
            let (id, file) = self.new_file()?;
            let (payloads, receiver) = mpsc::unbounded_channel();
            let (beside, fate) = (self.beside.clone(), self.fate.clone());
            self.spawn(async move { write_pack(beside, id, file, receiver, fate).await });
            self.packs[at] = Some(Pack { id, bytes: 0, payloads });
        }
        let pack = self.packs[at].as_mut().ok_or_else(|| Error::internal("a pack is missing"))?;
        let place = (pack.id, pack.bytes);
        // Where the writer has ended early, its own error says why, now or at the end.
        if pack.payloads.send(payload).is_err() {
            self.fate.check()?;
        }
        pack.bytes += size;
        self.turn.1 += size;
        Ok(place)
    }

    /// Into a file of its own: its id.
    pub fn dedicate(&mut self, source: Source) -> Result<u32> {
        let (id, mut file) = self.new_file()?;
        let (beside, fate, turn) = (self.beside.clone(), self.fate.clone(), self.dedicated.clone());
        self.spawn(async move {
            let _turn = turn.acquire().await;
            fate.check()?;
            if let Some(path) = local::path(&beside, id) {
                return local::copy(path, file, fate, source).await;
            }
            let store = beside.store.as_ref().clone();
            let mut writer = DedicatedBlobWriter::try_new(store, beside.data_file, id).await?;
            loop {
                let piece = source.piece(file.size).await?;
                if piece.is_empty() {
                    break;
                }
                writer.write(&piece).await?;
                file.size += piece.len() as u64;
                fate.check()?;
            }
            writer.finish().await?;
            Ok(file)
        });
        Ok(id)
    }

    /// Into a file of the dataset's, `path` below `root`, unless it is there already.
    pub fn place(&mut self, root: &Path, path: &str, (bytes, memory): Payload) {
        let (store, location) = (self.beside.store.clone(), join(root, path));
        let (fate, turn) = (self.fate.clone(), self.dedicated.clone());
        let file = path.to_owned();
        self.spawn(async move {
            let _turn = turn.acquire().await;
            fate.check()?;
            let _memory = memory;
            let size = bytes.len() as u64;
            // Another task of the job may have been first; the name is made of the bytes.
            if store.size(&location).await.ok() != Some(size) {
                let mut writer = store.create(&location).await?;
                writer.write_all(&bytes).await?;
                lance_io::traits::Writer::shutdown(writer.as_mut()).await?;
            }
            Ok(WrittenFile { path: file, size, base: None })
        });
    }

    fn spawn(&mut self, write: impl Future<Output = Result<WrittenFile>> + Send + 'static) {
        // The attempt ends when its writers have.
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        self.running.on_end(tokio::spawn(async move {
            let _ = end.await;
        }));
        let fate = self.fate.clone();
        self.writers.push(tokio::spawn(async move {
            let _ended = ended;
            match write.await {
                Ok(file) => Some(file),
                Err(error) => {
                    let mut failed = fate.failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.get_or_insert(error);
                    None
                }
            }
        }));
    }

    /// Wait until all is written: the files, with their sizes.
    pub async fn finish(mut self) -> Result<Vec<WrittenFile>> {
        self.packs.clear();
        let mut files = Vec::with_capacity(self.writers.len());
        for writer in std::mem::take(&mut self.writers) {
            let file = writer.await.map_err(|e| Error::internal(format!("a writer ended: {e}")))?;
            files.extend(file);
        }
        self.fate.check()?;
        Ok(files)
    }
}

async fn write_pack(
    beside: Beside,
    id: u32,
    mut file: WrittenFile,
    mut payloads: mpsc::UnboundedReceiver<Payload>,
    fate: Arc<Fate>,
) -> Result<WrittenFile> {
    if let Some(path) = local::path(&beside, id) {
        return local::write(path, file, fate, move |write| {
            while let Some((bytes, _memory)) = payloads.blocking_recv() {
                write(&bytes)?;
            }
            Ok(())
        })
        .await;
    }
    let store = beside.store.as_ref().clone();
    let mut writer = PackedBlobWriter::try_new(store, beside.data_file, id).await?;
    while let Some((bytes, memory)) = payloads.recv().await {
        fate.check()?;
        writer.write_blob(&bytes).await?;
        file.size += bytes.len() as u64;
        drop(memory);
    }
    fate.check()?;
    writer.finish().await?;
    Ok(file)
}
