//! What a process writes, read by a thread into a buffer that tests can wait on.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::soaks_in_full;

/// How long anything may take on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(120);
/// The same where soaks run in full.
const SOAK_DEADLINE: Duration = Duration::from_secs(600);

/// What a stream has given so far.
#[derive(Clone, Default)]
pub(super) struct Seen {
    pub(super) bytes: Vec<u8>,
    pub(super) ended: bool,
}

/// A stream that a thread reads into a buffer.
#[derive(Clone, Default)]
pub(super) struct Stream(Arc<(Mutex<Seen>, Condvar)>);

impl Stream {
    pub(super) fn of(mut source: impl Read + Send + 'static) -> Self {
        let stream = Self::default();
        let filled = stream.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = source.read(&mut buffer).unwrap_or(0);
                let mut seen = filled.0.0.lock().unwrap();
                seen.bytes.extend(&buffer[..count]);
                seen.ended = count == 0;
                filled.0.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        stream
    }

    /// A stream that the test does not watch.
    pub(super) fn none() -> Self {
        let stream = Self::default();
        stream.0.0.lock().unwrap().ended = true;
        stream
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.0.lock().unwrap().bytes.clone()
    }

    /// What was seen when `done` held; nothing after the deadline.
    pub(super) fn wait(&self, done: impl Fn(&Seen) -> bool) -> Result<Seen, ()> {
        self.wait_within(if soaks_in_full() { SOAK_DEADLINE } else { DEADLINE }, done)
    }

    /// As [`Self::wait`], with another deadline.
    pub(super) fn wait_within(&self, limit: Duration, done: impl Fn(&Seen) -> bool) -> Result<Seen, ()> {
        let (seen, changed) = &*self.0;
        let (seen, timeout) = changed.wait_timeout_while(seen.lock().unwrap(), limit, |seen| !done(seen)).unwrap();
        if timeout.timed_out() { Err(()) } else { Ok(seen.clone()) }
    }
}
