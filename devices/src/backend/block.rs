//! Where a disk's sectors live.
//!
//! A backend belongs to the I/O thread of its queue. It never waits in [`BlockBackend::submit`] longer than the host's
//! page cache makes it; one that can answer later says [`Submission::Pending`].

#[cfg(any(test, feature = "testing"))]
mod faulty;
mod file;
mod image;

use std::io;
use std::os::fd::RawFd;

#[cfg(any(test, feature = "testing"))]
pub use faulty::{Fault, FaultyBackend, Release};
pub use file::FileBackend;
pub use image::{DiskImage, DiskImageError};

use crate::virtio::GuestBuffers;

/// The unit of a virtio disk's addresses (virtio 1.3 §5.2.2), whatever the disk's own block size.
pub const SECTOR_BYTES: u64 = 512;

/// A disk's shape, fixed while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskGeometry {
    /// Sectors of [`SECTOR_BYTES`].
    pub sectors: u64,
    /// The smallest unit that the backing reads or writes without more work, in bytes; a power of two.
    pub physical_block_bytes: u32,
    /// Writes are refused.
    pub access: DiskAccess,
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
    /// Byte offset on the disk. The caller checked that offset and buffers are inside the geometry.
    pub offset: u64,
    /// The guest's memory; empty for a flush.
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
    /// There is no room before something pending completes. The operation comes back untouched.
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

    /// Moves what has completed to `completions`, without waiting.
    fn poll(&mut self, completions: &mut Vec<Completion>);

    /// Waits until nothing is pending, and moves it to `completions`.
    fn drain(&mut self, completions: &mut Vec<Completion>);

    /// Is readable while [`Self::poll`] has something. None if nothing is ever pending.
    fn wake_fd(&self) -> Option<RawFd>;
}
