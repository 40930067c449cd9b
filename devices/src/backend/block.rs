//! Where a disk's sectors live.
//!
//! A backend belongs to the I/O thread of its queue. It never waits in [`BlockBackend::submit`] longer than the host's
//! page cache or a flush that was quick before makes it; one that can answer later says [`Submission::Pending`].

mod bounce;
mod cached;
#[cfg(test)]
pub(super) mod calls;
#[cfg(any(test, feature = "testing"))]
mod faulty;
mod file;
mod image;
mod image_error;
mod job;
mod probe;
#[cfg(any(test, feature = "testing"))]
mod scripted;
mod successor;
mod syncs;
mod uring;

use std::io;

#[cfg(any(test, feature = "testing"))]
pub use faulty::{Fault, FaultyBackend, Release};
pub use file::FileBackend;
#[cfg(test)]
pub(crate) use image::try_lock_whole;
pub use image::{BlockSize, DiskImage, DiskOptions, FileIdentity};
pub use image_error::DiskImageError;
#[cfg(any(test, feature = "testing"))]
pub use scripted::{Answer, Script, ScriptedBackend, Told};
pub use successor::{Predecessor, Successor};
pub use uring::{RingError, UringBackend};

use crate::virtio::GuestBuffers;
use crate::virtio::worker::Source;

/// The unit of a virtio disk's addresses (virtio 1.3 §5.2.2), whatever the disk's own block size.
pub const SECTOR_BYTES: u64 = 512;

/// A disk's shape, fixed while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskGeometry {
    /// Sectors of [`SECTOR_BYTES`] when it was opened.
    pub sectors: u64,
    /// The unit that transfers should begin and end at, and with [`CacheMode::Direct`] must; a power of two.
    pub logical_block_bytes: u32,
    /// The smallest unit that the backing reads or writes without more work, in bytes; a power of two.
    pub physical_block_bytes: u32,
    /// Whether writes are refused.
    pub access: DiskAccess,
    /// When a write is durable, and which way it takes.
    pub cache: CacheMode,
    /// What becomes of space that the guest gives back.
    pub discard: Discard,
}

impl DiskGeometry {
    /// Where transfers must begin and end, in bytes: a disk that bypasses the page cache has whole blocks only.
    pub fn transfer_align(&self) -> u64 {
        match self.cache {
            CacheMode::Direct => u64::from(self.logical_block_bytes),
            CacheMode::Writeback | CacheMode::Writethrough | CacheMode::Unsafe => SECTOR_BYTES,
        }
    }
}

/// How writes reach the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Through the host's page cache; a flush makes them durable.
    #[default]
    Writeback,
    /// Through the host's page cache, and each is durable when it is complete.
    Writethrough,
    /// Past the host's page cache, in whole blocks; a flush makes them durable.
    Direct,
    /// Through the host's page cache, and a flush does nothing: a host that crashes loses the guest's data.
    Unsafe,
}

/// What becomes of space that the guest gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// The guest is not offered to.
    Unsupported,
    /// It is given back to the file system or device in pieces of `granularity_bytes`.
    Supported {
        /// Smaller pieces may stay allocated; a power of two of at least [`SECTOR_BYTES`].
        granularity_bytes: u32,
    },
}

/// What a guest may do to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskAccess {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// Names an operation between [`BlockBackend::submit`] and its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(pub u32);

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockAction {
    /// Fill the buffers from the disk.
    Read,
    /// Write the buffers to the disk.
    Write(Durability),
    /// Make all writes that completed before durable.
    Flush,
    /// Give `len` bytes of space back. What they read as afterwards is open.
    Discard {
        /// Bytes, in whole sectors.
        len: u64,
    },
    /// Make `len` bytes read as zero.
    WriteZeroes {
        /// Bytes, in whole sectors.
        len: u64,
        /// Whether their space may be given back.
        space: Space,
        /// When it is complete.
        durability: Durability,
    },
}

/// What becomes of the space under zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// It stays allocated.
    Keep,
    /// It may be given back.
    MayFree,
}

/// When a write is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When a later read sees it; a flush makes it durable.
    Cached,
    /// When it survives a loss of power.
    Durable,
}

/// An operation, which owns its guest buffers from submission to completion.
#[derive(Debug)]
pub struct BlockOperation {
    /// What to do.
    pub action: BlockAction,
    /// Byte offset on the disk. The caller checked that all of the operation is inside the disk.
    pub offset: u64,
    /// The guest's memory; empty for all but reads and writes.
    pub buffers: GuestBuffers,
}

/// The end of an operation.
#[derive(Debug)]
pub struct Completion {
    /// Its name.
    pub token: Token,
    /// The operation, with its buffers.
    pub operation: BlockOperation,
    /// All of it was done, or none of it counts.
    pub result: io::Result<()>,
}

/// What became of a submission.
#[derive(Debug)]
pub enum Submission {
    /// It is complete already.
    Done(Completion),
    /// It comes out of [`BlockBackend::poll`] or [`BlockBackend::drain`].
    Pending,
    /// As `Pending`, and it is time for [`BlockBackend::poll`].
    Ripe,
    /// There is no room before something pending completes, which it does only after [`BlockBackend::commit`]. The operation comes back untouched.
    Full(BlockOperation),
}

/// Where a disk's sectors live.
///
/// Every operation that was taken comes back exactly once, in any order, with its buffers; an error is a result of an
/// operation and never of the backend.
pub trait BlockBackend: Send {
    /// The disk's shape.
    fn geometry(&self) -> DiskGeometry;

    /// Begins an operation. `token` is free for use again when it comes back.
    fn submit(&mut self, token: Token, operation: BlockOperation) -> Submission;

    /// Hands what was submitted since the last call to the host, all at once, as far as [`Self::poll`] did not answer it.
    fn commit(&mut self) {}

    /// Moves what has completed to `completions`, without waiting. Due after each batch of submissions, too: what the host can
    /// answer at once is asked for here.
    fn poll(&mut self, completions: &mut Vec<Completion>);

    /// Waits until nothing is pending, and moves it to `completions`.
    fn drain(&mut self, completions: &mut Vec<Completion>);

    /// The backend, with nothing pending, may meet another thread next. Called on the one that submitted.
    fn leave_thread(&mut self) {}

    /// Fires when [`Self::poll`] has something. None if nothing is ever pending.
    fn wake_source(&self) -> Option<Source>;
}
