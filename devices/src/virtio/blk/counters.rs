//! What happened in each queue of a disk, counted for whoever asks.

use std::sync::atomic::AtomicU64;

use crate::backend::block::BlockAction;
use crate::latency::Latency;

/// What a driver asks of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum DiskOperation {
    /// Data from the disk.
    Read,
    /// Data to it.
    Write,
    /// All earlier writes made durable.
    Flush,
    /// Anything else, also what was refused.
    Other,
}

impl DiskOperation {
    /// Every operation with its name in figures.
    pub const ALL: [(Self, &'static str); 4] =
        [(Self::Read, "read"), (Self::Write, "write"), (Self::Flush, "flush"), (Self::Other, "other")];

    pub(super) fn of(action: BlockAction) -> Self {
        match action {
            BlockAction::Read => Self::Read,
            BlockAction::Write(_) => Self::Write,
            BlockAction::Flush => Self::Flush,
            BlockAction::Discard { .. } | BlockAction::WriteZeroes { .. } => Self::Other,
        }
    }
}

/// Requests of one kind and the data that they moved.
#[derive(Debug, Default)]
pub struct OperationCounters {
    /// Requests that were answered.
    pub requests: AtomicU64,
    /// Bytes of those that succeeded.
    pub bytes: AtomicU64,
}

/// Counters of one queue. Its I/O thread adds, anybody reads.
#[derive(Debug, Default)]
pub struct DiskQueueCounters {
    operations: [OperationCounters; DiskOperation::ALL.len()],
    /// Requests that were answered with an error.
    pub errors: AtomicU64,
    /// How often answers were shown to the driver.
    pub batches: AtomicU64,
    /// How long the queue waited for its limiter, in nanoseconds.
    pub throttled_ns: AtomicU64,
    /// From the time a request was noticed to the time its answer could be seen, of those that the backend served.
    pub latency: Latency,
}

impl DiskQueueCounters {
    /// Requests of one kind.
    pub fn operation(&self, operation: DiskOperation) -> &OperationCounters {
        &self.operations[operation as usize]
    }
}
