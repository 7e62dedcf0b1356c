//! SIGTERM (Slurm's preemption, Kubernetes' eviction) and SIGINT end the work cleanly: the first one
//! cancels, a second one ends the process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use lance_tasks::{CancelToken, Error, Result};

/// Which signal has come.
#[derive(Clone, Default)]
pub struct Signals(Arc<AtomicI32>);

impl Signals {
    /// From now on the signals cancel a token. To be called before there are other threads: they inherit
    /// that the signals are blocked.
    pub fn cancel(token: CancelToken) -> Result<Self> {
        let came = Self::default();
        let awaited = blocked()?;
        let noted = came.clone();
        std::thread::Builder::new().name("lance-tasks-signals".into()).spawn(move || {
            loop {
                let signal = wait(&awaited);
                if noted.0.swap(signal, Ordering::SeqCst) != 0 {
                    std::process::exit(128 + signal);
                }
                token.cancel();
            }
        })?;
        Ok(came)
    }

    pub fn name(&self) -> Option<&'static str> {
        match self.0.load(Ordering::SeqCst) {
            0 => None,
            libc::SIGINT => Some("SIGINT"),
            _ => Some("SIGTERM"),
        }
    }
}

/// Block the signals in this thread, and answer with their set.
fn blocked() -> Result<libc::sigset_t> {
    // SAFETY: plain calls on local values, which the first of them initializes.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGTERM, libc::SIGINT] {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &mut action);
            // A shell has its background commands ignore SIGINT.
            if action.sa_sigaction != libc::SIG_IGN {
                libc::sigaddset(&mut set, signal);
            }
        }
        match libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) {
            0 => Ok(set),
            code => Err(Error::internal(format!("signals cannot be blocked: error {code}"))),
        }
    }
}

fn wait(set: &libc::sigset_t) -> i32 {
    let mut signal = 0;
    // SAFETY: both point to live values of this thread.
    while unsafe { libc::sigwait(set, &mut signal) } != 0 {}
    signal
}
