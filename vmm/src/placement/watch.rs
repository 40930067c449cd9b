//! Looks again and again whether memory and threads are where they were asked to be, and tells when that changes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::PlacementSource;

/// How often it looks.
pub(crate) const EVERY: Duration = Duration::from_secs(10);

/// The thread that looks. It ends with this.
#[derive(Debug)]
pub(crate) struct Watch {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    drifted: Arc<AtomicU64>,
}

impl Watch {
    /// Looks at `source` so often, and gives `tell` what has drifted since it last looked, a line each.
    ///
    /// # Errors
    /// The host gives no thread.
    pub(crate) fn start(
        source: PlacementSource,
        every: Duration,
        tell: impl Fn(String) + Send + 'static,
    ) -> io::Result<Self> {
        let (end, ended) = channel::<()>();
        let drifted = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&drifted);
        let look = move || {
            let mut known = Vec::new();
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(every) {
                let drift = source.drift();
                // Who is told finds the count as it is.
                count.store(u64::try_from(drift.len()).expect("64 bits fit"), Ordering::Release);
                drift.iter().filter(|line| !known.contains(*line)).cloned().for_each(&tell);
                known = drift;
            }
        };
        let thread = Builder::new().name("husk-placement".to_owned()).stack_size(STACK_BYTES).spawn(look)?;
        Ok(Self { end: Some(end), thread: Some(thread), drifted })
    }

    /// How much was not where it was asked to be when it last looked.
    pub(crate) fn drifted(&self) -> u64 {
        self.drifted.load(Ordering::Acquire)
    }
}

/// It reads files of /proc.
const STACK_BYTES: usize = 128 << 10;

impl Drop for Watch {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            thread.join().expect("with panic = abort a thread returns or the process ends");
        }
    }
}
