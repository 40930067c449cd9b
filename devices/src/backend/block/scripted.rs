//! A backend for tests that stands between an operation's system calls and the host: it answers some of them itself, and
//! remembers what the host was told, in order.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use super::bounce::BouncePool;
use super::file::{Waiting, complete, perform};
use super::job::{Pieces, Step};
use super::{BlockBackend, BlockOperation, Completion, DiskGeometry, DiskImage, Durability, Submission, Token};
use crate::bus::lock;
use crate::virtio::worker::Source;

/// What becomes of one system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The host does it.
    Host,
    /// It fails with this error number.
    Errno(i32),
    /// The host does at most so many bytes of it, or the first piece of a vector.
    Short(usize),
    /// It moves no byte, as at the end of a file.
    Nothing,
}

/// What the host was told to do, and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// These bytes are at this offset now.
    Wrote {
        /// In bytes.
        offset: u64,
        /// What the file has there.
        bytes: Vec<u8>,
        /// Whether they were to survive a loss of power.
        durability: Durability,
    },
    /// All that was told before survives a loss of power.
    Synced,
    /// Anything else.
    Other,
}

/// The answer to the system call of this number, counted from 0.
pub type Script = Box<dyn FnMut(u64) -> Answer + Send>;

/// A synchronous backend whose system calls are answered by a script.
pub struct ScriptedBackend {
    host: Host,
    pool: BouncePool,
}

/// Who answers the system calls.
struct Host {
    image: Arc<DiskImage>,
    /// Sees what was written, whatever the image's open file wants of alignment.
    reader: File,
    script: Script,
    steps: u64,
    told: Arc<Mutex<Vec<Told>>>,
}

impl ScriptedBackend {
    /// A backend over an image, which records in `told`.
    ///
    /// # Panics
    /// If the image's file cannot be opened a second time.
    pub fn new(image: Arc<DiskImage>, script: Script, told: Arc<Mutex<Vec<Told>>>) -> Self {
        let path = format!("/proc/self/fd/{}", image.file().as_raw_fd());
        let reader = File::open(path).expect("a test may open its own file");
        let align = image.direct().map_or(1, |alignment| alignment.memory);
        Self { host: Host { image, reader, script, steps: 0, told }, pool: BouncePool::new(1, align) }
    }
}

impl Host {
    fn answer(&mut self, step: Step) -> std::io::Result<usize> {
        let number = self.steps;
        self.steps += 1;
        let step = match (self.script)(number) {
            Answer::Host => step,
            Answer::Errno(errno) => return Err(std::io::Error::from_raw_os_error(errno)),
            Answer::Nothing => return Ok(0),
            Answer::Short(bytes) => shortened(step, bytes),
        };
        let moved = perform(self.image.file(), step, Waiting::Allowed)?;
        lock(&self.told).push(match step {
            Step::Write(_, offset, durability) => {
                let mut bytes = vec![0; moved];
                self.reader.read_exact_at(&mut bytes, offset)?;
                Told::Wrote { offset, bytes, durability }
            }
            Step::Sync => Told::Synced,
            Step::Read(..) | Step::Allocate(..) | Step::DeviceDiscard(..) => Told::Other,
        });
        Ok(moved)
    }
}

fn shortened(step: Step, bytes: usize) -> Step {
    let pieces = |pieces| match pieces {
        Pieces::One { address, len } => Pieces::One { address, len: len.min(bytes) },
        Pieces::Many { first, .. } => Pieces::Many { first, count: 1 },
    };
    match step {
        Step::Read(all, offset) => Step::Read(pieces(all), offset),
        Step::Write(all, offset, durability) => Step::Write(pieces(all), offset, durability),
        other => other,
    }
}

impl BlockBackend for ScriptedBackend {
    fn geometry(&self) -> DiskGeometry {
        self.host.image.geometry()
    }

    fn submit(&mut self, token: Token, operation: BlockOperation) -> Submission {
        let image = Arc::clone(&self.host.image);
        complete(&image, &mut self.pool, token, operation, |step| self.host.answer(step))
    }

    fn poll(&mut self, _completions: &mut Vec<Completion>) {}

    fn drain(&mut self, _completions: &mut Vec<Completion>) {}

    fn wake_source(&self) -> Option<Source> {
        None
    }
}
