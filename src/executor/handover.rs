//! One piece of work between the caller who waits for it and the worker who may begin it.
//!
//! The work is begun once or taken back once, never both; the caller learns of its end in every case,
//! also where the worker panics or never comes. `sync` is the standard library's, or loom's in
//! `tests/loom`, which tries every interleaving.

use std::sync::PoisonError;
use std::time::Duration;

use super::sync::{Arc, Condvar, Mutex, MutexGuard};

enum State<W, R> {
    Waiting(W),
    Begun,
    Done(R),
    /// Ended without a result, or the result is taken.
    Over,
}

struct Shared<W, R> {
    state: Mutex<State<W, R>>,
    changed: Condvar,
}

impl<W, R> Shared<W, R> {
    fn lock(&self) -> MutexGuard<'_, State<W, R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The caller's side.
pub(super) struct Owner<W, R>(Arc<Shared<W, R>>);

/// The worker's side.
pub(super) struct Worker<W, R>(Arc<Shared<W, R>>);

/// What the caller finds.
pub(super) enum Found<R> {
    Done(R),
    /// The worker ended, or will never come, without a result.
    Lost,
    NotYet,
}

pub(super) fn handover<W, R>(work: W) -> (Owner<W, R>, Worker<W, R>) {
    let shared =
        Arc::new(Shared { state: Mutex::new(State::Waiting(work)), changed: Condvar::new() });
    (Owner(shared.clone()), Worker(shared))
}

impl<W, R> Owner<W, R> {
    /// Wait for the end, no longer than this; may return earlier.
    pub fn wait(&self, at_most: Duration) -> Found<R> {
        let mut state = self.0.lock();
        if matches!(*state, State::Waiting(_) | State::Begun) {
            let woken = self.0.changed.wait_timeout(state, at_most);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        match std::mem::replace(&mut *state, State::Over) {
            State::Done(result) => Found::Done(result),
            State::Over => Found::Lost,
            before => {
                *state = before;
                Found::NotYet
            }
        }
    }

    /// Take the work back, where no worker has begun it: then none will.
    pub fn give_up(&self) -> Option<W> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, State::Over) {
            State::Waiting(work) => Some(work),
            before => {
                *state = before;
                None
            }
        }
    }
}

impl<W, R> Worker<W, R> {
    /// Do the work, where it has not been taken back. `f` drops all that the caller must not outlive
    /// before it returns.
    pub fn run(self, f: impl FnOnce(W) -> R) {
        let work = {
            let mut state = self.0.lock();
            match std::mem::replace(&mut *state, State::Begun) {
                State::Waiting(work) => work,
                before => {
                    *state = before;
                    return;
                }
            }
        };
        let result = f(work);
        *self.0.lock() = State::Done(result);
    }
}

impl<W, R> Drop for Worker<W, R> {
    /// The end, also by a panic in `run` and without `run`.
    fn drop(&mut self) {
        let mut state = self.0.lock();
        let before = std::mem::replace(&mut *state, State::Over);
        let unbegun = match before {
            State::Waiting(work) => Some(work),
            State::Done(result) => {
                *state = State::Done(result);
                None
            }
            State::Begun | State::Over => None,
        };
        self.0.changed.notify_all();
        drop(state);
        // Not under the lock: it may be the caller's own code.
        drop(unbegun);
    }
}
