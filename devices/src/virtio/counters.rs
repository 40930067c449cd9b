//! What happened in a device, counted for whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one device. The I/O thread adds, anybody reads.
#[derive(Debug, Default)]
pub struct DeviceCounters {
    /// Chains completed.
    pub requests: AtomicU64,
    /// Bytes of data moved by the requests that succeeded.
    pub bytes: AtomicU64,
    /// Requests that were answered with an error.
    pub errors: AtomicU64,
    /// Queues that a driver broke.
    pub retired_queues: AtomicU64,
}

impl DeviceCounters {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}
