//! `execute`: one task, a caller who may give it up, a worker who may come late or never.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use loom::thread;

use crate::handover::{Found, Owner, handover};
use crate::{Call, Progress};

const LONG: Duration = Duration::from_secs(3600);

/// As `execute` waits, without a reason to give up.
fn wait<W>(owner: &Owner<W, usize>) -> Option<usize> {
    loop {
        match owner.wait(LONG) {
            Found::Done(result) => return Some(result),
            Found::Lost => return None,
            Found::NotYet => {}
        }
    }
}

fn attempt(call: Call) -> usize {
    call.0.report();
    7
}

#[test]
fn a_result_arrives() {
    loom::model(|| {
        let progress = Progress::new();
        let (owner, worker) = handover(Call(progress.clone()));
        let thread = thread::spawn(move || worker.run(attempt));
        assert_eq!(wait(&owner), Some(7));
        progress.end();
        assert_eq!(progress.events(), 1);
        thread.join().unwrap();
    });
}

#[test]
fn begun_or_given_up_never_both() {
    loom::model(|| {
        let progress = Progress::new();
        let (owner, worker) = handover(Call(progress.clone()));
        let thread = thread::spawn(move || worker.run(attempt));
        // Cancelled at any moment.
        let given_up = owner.give_up();
        assert!(owner.give_up().is_none() || given_up.is_none());
        if let Some(call) = given_up {
            drop(call);
            progress.end();
            thread.join().unwrap();
            assert_eq!(progress.events(), 0, "run although given up");
        } else {
            assert_eq!(wait(&owner), Some(7), "neither given up nor run");
            progress.end();
            assert_eq!(progress.events(), 1);
            thread.join().unwrap();
        }
    });
}

#[test]
fn the_caller_learns_of_a_worker_that_never_comes() {
    loom::model(|| {
        let progress = Progress::new();
        let (owner, worker) = handover::<_, usize>(Call(progress.clone()));
        let thread = thread::spawn(move || drop(worker));
        assert_eq!(wait(&owner), None);
        thread.join().unwrap();
        progress.end();
    });
}

#[test]
fn the_caller_learns_of_a_panic() {
    loom::model(|| {
        let progress = Progress::new();
        let (owner, worker) = handover(Call(progress.clone()));
        let thread = thread::spawn(move || {
            let panics = |call: Call| -> usize {
                call.0.report();
                std::panic::resume_unwind(Box::new("a bug"))
            };
            catch_unwind(AssertUnwindSafe(|| worker.run(panics))).unwrap_err();
        });
        assert_eq!(wait(&owner), None);
        progress.end();
        thread.join().unwrap();
    });
}

#[test]
fn given_up_in_front_of_a_worker_that_never_comes() {
    loom::model(|| {
        let progress = Progress::new();
        let (owner, worker) = handover::<_, usize>(Call(progress.clone()));
        let thread = thread::spawn(move || drop(worker));
        match owner.give_up() {
            Some(call) => drop(call),
            None => assert_eq!(wait(&owner), None),
        }
        thread.join().unwrap();
        progress.end();
    });
}
