//! A thread that somebody waits for no longer than he likes: one in a call on a file whose host never answers does not come
//! back, and is left to the end of the process.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// A thread that makes a `T`. Dropped, it is left to itself.
#[derive(Debug)]
pub(crate) struct Thread<T> {
    made: Receiver<T>,
    handle: JoinHandle<()>,
}

impl<T: Send + 'static> Thread<T> {
    /// Starts `work` on a thread of this name.
    ///
    /// # Errors
    /// The host gives none.
    pub(crate) fn start(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let (make, made) = channel();
        let handle = Builder::new().name(name.to_owned()).spawn(move || {
            // Nobody has a use for it who has left the thread.
            let _ = make.send(work());
        })?;
        Ok(Self { made, handle })
    }

    /// Waits until the thread has ended, and gives what it made.
    ///
    /// # Errors
    /// The thread, which has not ended by `deadline`.
    pub(crate) fn end_by(self, deadline: Instant) -> Result<T, Self> {
        match self.made.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(made) => {
                self.handle.join().expect("with panic = abort a thread returns or the process ends");
                Ok(made)
            }
            Err(RecvTimeoutError::Timeout) => Err(self),
            Err(RecvTimeoutError::Disconnected) => unreachable!("a thread sends before it ends"),
        }
    }
}

/// How long the end of a machine waits for a thread that was told to end. One that reads or writes a file of a host that is merely
/// slow is back by then.
pub(crate) const END_PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_does_not_come_back_is_left_and_one_that_does_gives_what_it_made() {
        let (release, released) = channel::<()>();
        let thread = Thread::start("husk-test", move || released.recv().is_err()).unwrap();
        let thread = thread.end_by(Instant::now()).unwrap_err();
        drop(release);
        assert!(thread.end_by(Instant::now() + Duration::from_secs(60)).unwrap());
    }
}
