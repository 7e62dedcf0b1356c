//! Many pieces of work and the one who gathers their results, in the order of completion.
//!
//! Dropping the gatherer ends it all: what has not begun never does, what runs is waited for, and what
//! they share is dropped before. So nothing of the caller's (its progress, its cancel token) is used
//! once the drop has returned, and the drop waits for no one else's work in the pool's queue. `sync` is
//! the standard library's, or loom's in `tests/loom`, which tries every interleaving.

use std::collections::VecDeque;
use std::sync::PoisonError;

use super::sync::{Arc, Condvar, Mutex, MutexGuard};

struct State<C, R> {
    /// What all pieces share; none once the gatherer is gone.
    context: Option<Arc<C>>,
    /// Pieces that have not ended, begun or not.
    left: usize,
    running: usize,
    results: VecDeque<R>,
}

struct Shared<C, R> {
    state: Mutex<State<C, R>>,
    changed: Condvar,
}

impl<C, R> Shared<C, R> {
    fn lock(&self) -> MutexGuard<'_, State<C, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the results.
pub(super) struct Gather<C, R>(Arc<Shared<C, R>>);

/// One piece of the work, for a worker.
pub(super) struct Piece<C, R> {
    shared: Arc<Shared<C, R>>,
    running: bool,
}

pub(super) fn gather<C, R>(context: C, pieces: usize) -> (Gather<C, R>, Vec<Piece<C, R>>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            context: Some(Arc::new(context)),
            left: pieces,
            running: 0,
            results: VecDeque::new(),
        }),
        changed: Condvar::new(),
    });
    let pieces = (0..pieces).map(|_| Piece { shared: shared.clone(), running: false }).collect();
    (Gather(shared), pieces)
}

impl<C, R> Gather<C, R> {
    /// The next result; `None` when no piece is left.
    pub fn next(&self) -> Option<R> {
        let mut state = self.0.lock();
        loop {
            if let Some(result) = state.results.pop_front() {
                return Some(result);
            }
            if state.left == 0 {
                return None;
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<C, R> Drop for Gather<C, R> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        let context = state.context.take();
        while state.running > 0 {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let results = std::mem::take(&mut state.results);
        drop(state);
        // Not under the lock: it may be the caller's own code.
        drop((context, results));
    }
}

impl<C, R> Piece<C, R> {
    /// Do this piece, unless the gatherer is gone.
    pub fn run(mut self, f: impl FnOnce(&C) -> R) {
        let context = {
            let mut state = self.shared.lock();
            let Some(context) = state.context.clone() else { return };
            state.running += 1;
            context
        };
        self.running = true;
        let result = f(&context);
        drop(context);
        let mut state = self.shared.lock();
        if state.context.is_some() {
            state.results.push_back(result);
        }
    }
}

impl<C, R> Drop for Piece<C, R> {
    /// The end, also by a panic in `run` and without `run`.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.left -= 1;
        state.running -= usize::from(self.running);
        self.shared.changed.notify_all();
    }
}
