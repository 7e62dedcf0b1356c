//! The executor's own protocols under loom: the very files of the library, with loom's locks in place
//! of the standard library's. Each test runs its closure once for every interleaving of its threads in
//! which no more than LOOM_MAX_PREEMPTIONS of them are taken off the CPU; without a limit that takes
//! very long.
//!
//! ```text
//! LOOM_MAX_PREEMPTIONS=3 cargo test --release --locked    # seconds
//! LOOM_MAX_PREEMPTIONS=5 cargo test --release --locked    # a minute
//! ```
//!
//! What is not here: the memory budget is tokio's `Semaphore`, which its own project checks under loom
//! and which cannot be compiled with loom's types from outside; `tests/c/contract_races.c` drives it
//! with many threads instead.

#![cfg(test)]

mod sync {
    pub use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
}

#[path = "../../../src/executor/gather.rs"]
mod gather;
#[path = "../../../src/executor/handover.rs"]
mod handover;

mod gathering;
mod handing_over;

/// What a caller hands to a task: the call's progress callback, as it were.
struct Progress {
    /// How often the callback came.
    events: loom::sync::atomic::AtomicUsize,
    /// Whether the caller's function has returned, after which no event may come.
    over: loom::sync::atomic::AtomicBool,
}

impl Progress {
    fn new() -> sync::Arc<Self> {
        sync::Arc::new(Self {
            events: loom::sync::atomic::AtomicUsize::new(0),
            over: loom::sync::atomic::AtomicBool::new(false),
        })
    }

    fn report(&self) {
        assert!(!self.over.load(loom::sync::atomic::Ordering::SeqCst), "progress after the end");
        self.events.fetch_add(1, loom::sync::atomic::Ordering::SeqCst);
    }

    fn events(&self) -> usize {
        self.events.load(loom::sync::atomic::Ordering::SeqCst)
    }

    /// The caller's function has returned; the library may hold nothing of the caller's any more.
    fn end(&self) {
        self.over.store(true, loom::sync::atomic::Ordering::SeqCst);
    }
}

/// A call's context, whose drop is the progress finalizer: must come before the end.
struct Call(sync::Arc<Progress>);

impl Drop for Call {
    fn drop(&mut self) {
        assert!(!self.0.over.load(loom::sync::atomic::Ordering::SeqCst), "finalized after the end");
    }
}
