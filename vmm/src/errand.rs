//! What the host is asked on a thread of its own, because it may never answer, as when the server behind a path is gone. Who
//! asks waits for a while; the thread is left to its wait, and what it gets too late goes there.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, LazyLock};
use std::thread::Builder;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::placement::leave_inherited_place;

/// How long the host has.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// Threads of a kind that a host which does not answer may keep.
pub(crate) const THREADS_MAX: usize = 8;

/// Threads of one kind, which ask the host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Threads(Arc<AtomicUsize>);

/// Those on errands.
static ON_ERRANDS: LazyLock<Threads> = LazyLock::new(Threads::default);

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
        let (sender, answers) = channel();
        ON_ERRANDS.start(move || ask(&sender))?;
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

impl Threads {
    /// Has another one do `work`, which may never end.
    ///
    /// # Errors
    /// [`ErrandError`].
    pub(crate) fn start(&self, work: impl FnOnce() + Send + 'static) -> Result<(), ErrandError> {
        let away = Away::go(&self.0).ok_or(ErrandError::Crowded)?;
        let started = Builder::new().name("husk-job-file".to_owned()).spawn(move || {
            leave_inherited_place();
            work();
            drop(away);
        });
        started.map(drop).map_err(ErrandError::Thread)
    }
}

/// One of those threads, as long as it is one.
struct Away(Arc<AtomicUsize>);

impl Away {
    fn go(threads: &Arc<AtomicUsize>) -> Option<Self> {
        // A number alone: Relaxed will do.
        let room = |away: usize| (away < THREADS_MAX).then_some(away + 1);
        threads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok().map(|_| Self(Arc::clone(threads)))
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
