//! What a fuzzing process shares with the parent that watches it: the input of the call under way, when
//! it began, and counts. A file in memory, so that it outlives a crash.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::abi::CODES;

/// No input is larger.
pub const MAX_INPUT: usize = 1 << 20;

#[repr(C)]
pub struct Slot {
    /// Milliseconds of the monotonic clock at which the call under way began; 0 = none.
    began: AtomicI64,
    /// Inputs done.
    pub done: AtomicU64,
    /// Peak resident bytes after the warm-up; 0 = not there yet.
    pub baseline: AtomicU64,
    /// Calls by status.
    pub statuses: [AtomicU64; CODES],
    /// Inputs by target.
    pub targets: [AtomicU64; 16],
    target: AtomicUsize,
    len: AtomicUsize,
    input: [u8; MAX_INPUT],
}

pub fn now_ms() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for the time.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec * 1000 + time.tv_nsec / 1_000_000
}

impl Slot {
    /// Map the file, made anew where `create`. Never unmapped.
    pub fn map(path: &Path, create: bool) -> Result<&'static Self, String> {
        let mut options = File::options();
        let file = options.read(true).write(true).create(create).truncate(create).open(path);
        let file = file.map_err(|e| format!("{}: {e}", path.display()))?;
        let len = size_of::<Self>();
        file.set_len(len as u64).map_err(|e| e.to_string())?;
        // SAFETY: a file of that length; the struct is atomics and bytes, all of which may be zero.
        unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let fd = file.as_raw_fd();
            let at = libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, fd, 0);
            if at == libc::MAP_FAILED {
                return Err(format!("mmap: {}", std::io::Error::last_os_error()));
            }
            Ok(&*at.cast::<Self>())
        }
    }

    /// Note what is about to be tried.
    pub fn put(&self, target: usize, input: &[u8]) {
        let len = input.len().min(MAX_INPUT);
        // SAFETY: one thread writes, and the parent reads when that has stopped.
        unsafe {
            let place = (&raw const self.input).cast::<u8>().cast_mut();
            std::ptr::copy_nonoverlapping(input.as_ptr(), place, len);
        }
        self.target.store(target, Relaxed);
        self.len.store(len, Relaxed);
        self.targets[target].fetch_add(1, Relaxed);
    }

    /// The last input noted, with its target.
    pub fn last(&self) -> (usize, Vec<u8>) {
        let len = self.len.load(Relaxed).min(MAX_INPUT);
        // SAFETY: as above.
        let bytes = unsafe {
            std::slice::from_raw_parts((&raw const self.input).cast::<u8>(), len).to_vec()
        };
        (self.target.load(Relaxed), bytes)
    }

    pub fn enter(&self) {
        self.began.store(now_ms(), Relaxed);
    }

    pub fn leave(&self, status: i32) {
        self.began.store(0, Relaxed);
        if let Some(count) = usize::try_from(status).ok().and_then(|s| self.statuses.get(s)) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// How long the call under way has taken, in milliseconds.
    pub fn running_for(&self) -> i64 {
        match self.began.load(Relaxed) {
            0 => 0,
            began => now_ms() - began,
        }
    }
}
