//! `execute_all`: tasks on workers, a stream that is read to its end or dropped at any moment.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::atomic::{AtomicBool, Ordering::SeqCst};
use loom::thread;

use crate::gather::{Gather, Piece, gather};
use crate::sync::Arc;
use crate::{Call, Progress};

/// A worker that does one task, and says whether it did.
fn worker(
    piece: Piece<Call, usize>,
    nth: usize,
    cancel: Arc<AtomicBool>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        piece.run(|call| {
            call.0.report();
            // An attempt looks at the token at times; it may end either way.
            let _ = cancel.load(SeqCst);
            nth
        });
    })
}

fn start(pieces: usize) -> (std::sync::Arc<Caller>, Gather<Call, usize>, Vec<Handle>) {
    let progress = Progress::new();
    let cancel = Arc::new(AtomicBool::new(false));
    let (gather, parts) = gather(Call(progress.clone()), pieces);
    let workers =
        parts.into_iter().enumerate().map(|(i, p)| worker(p, i, cancel.clone())).collect();
    (std::sync::Arc::new(Caller { progress, cancel }), gather, workers)
}

type Handle = thread::JoinHandle<()>;

/// The caller's side: what it watches and cancels by.
struct Caller {
    progress: Arc<Progress>,
    cancel: Arc<AtomicBool>,
}

impl Caller {
    /// As the stream's release: cancel, then wait.
    fn release(&self, gather: Gather<Call, usize>) {
        self.cancel.store(true, SeqCst);
        drop(gather);
        self.progress.end();
    }
}

#[test]
fn every_result_arrives_once() {
    loom::model(|| {
        let (caller, gather, workers) = start(2);
        let mut all: Vec<usize> = std::iter::from_fn(|| gather.next()).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1]);
        assert_eq!(gather.next(), None);
        caller.release(gather);
        assert_eq!(caller.progress.events(), 2);
        workers.into_iter().for_each(|w| w.join().unwrap());
    });
}

#[test]
fn nothing_happens_after_a_release() {
    for read in 0..2 {
        loom::model(move || {
            let (caller, gather, workers) = start(2);
            for _ in 0..read {
                assert!(gather.next().is_some());
            }
            caller.release(gather);
            let events = caller.progress.events();
            workers.into_iter().for_each(|w| w.join().unwrap());
            assert_eq!(caller.progress.events(), events);
            assert!(events >= read && events <= 2);
        });
    }
}

#[test]
fn a_release_waits_for_no_task_that_has_not_begun() {
    loom::model(|| {
        let progress = Progress::new();
        let (gather, mut pieces) = gather(Call(progress.clone()), 2);
        // The second task's worker is busy with another caller's tasks, for as long as this one lives.
        let behind = pieces.pop().unwrap();
        let running = pieces.pop().unwrap();
        let thread = thread::spawn(move || running.run(|call: &Call| call.0.report()));
        drop(gather);
        progress.end();
        behind.run(|call| call.0.report());
        thread.join().unwrap();
    });
}

#[test]
fn tasks_that_never_run_end_the_stream() {
    loom::model(|| {
        let progress = Progress::new();
        let (gather, mut pieces) = gather(Call(progress.clone()), 2);
        let dropped = pieces.pop().unwrap();
        let run = pieces.pop().unwrap();
        let one = thread::spawn(move || drop(dropped));
        let other = thread::spawn(move || {
            let panics = |call: &Call| -> usize {
                call.0.report();
                std::panic::resume_unwind(Box::new("a bug"))
            };
            catch_unwind(AssertUnwindSafe(|| run.run(panics))).unwrap_err();
        });
        assert_eq!(gather.next(), None);
        drop(gather);
        progress.end();
        assert_eq!(progress.events(), 1);
        one.join().unwrap();
        other.join().unwrap();
    });
}
