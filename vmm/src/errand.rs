//! What the host is asked on a thread of its own, because it may never answer, as when the server behind a path is gone. Who
//! asks waits for a while; the thread is left to its wait, and what it gets too late goes there.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::placement::leave_inherited_place;

/// How long the host has.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// Threads of a kind that a host which does not answer may keep.
pub(crate) const THREADS_MAX: usize = 8;

/// Threads on errands.
static AWAY: AtomicUsize = AtomicUsize::new(0);

/// A thread that asks the host, seen from who waits for its answers.
#[derive(Debug)]
pub(crate) struct Errand<T> {
    answers: Receiver<T>,
    deadline: Instant,
}

/// What keeps the host from being asked.
#[derive(Debug, Error)]
pub(crate) enum ErrandError {
    /// Hosts that do not answer are waited for already.
    #[error("{THREADS_MAX} others are waited for already: check the servers and devices behind those")]
    Crowded,
    /// There is no thread.
    #[error("cannot start a thread for it")]
    Thread(#[source] io::Error),
}

impl<T: Send + 'static> Errand<T> {
    /// Has `ask` ask the host, and send what it says. It ends when nobody takes that any more.
    ///
    /// # Errors
    /// [`ErrandError`].
    pub(crate) fn begin(ask: impl FnOnce(&Sender<T>) + Send + 'static) -> Result<Self, ErrandError> {
        let away = Away::go().ok_or(ErrandError::Crowded)?;
        let (sender, answers) = channel();
        let thread = Builder::new().name("husk-job-file".to_owned());
        let started = thread.spawn(move || {
            leave_inherited_place();
            ask(&sender);
            drop((sender, away));
        });
        started.map_err(ErrandError::Thread)?;
        Ok(Self { answers, deadline: Instant::now() + PATIENCE })
    }

    /// When the host has had its time.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The next answer. None if there is none by then.
    pub(crate) fn next_by(&self, deadline: Instant) -> Option<T> {
        match self.answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(answer) => Some(answer),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => unreachable!("an errand sends as many answers as are waited for"),
        }
    }
}

/// One of those threads, as long as it is one.
struct Away;

impl Away {
    fn go() -> Option<Self> {
        // A number alone: Relaxed will do.
        let room = |away: usize| (away < THREADS_MAX).then_some(away + 1);
        AWAY.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok().map(|_| Self)
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        AWAY.fetch_sub(1, Ordering::Relaxed);
    }
}
