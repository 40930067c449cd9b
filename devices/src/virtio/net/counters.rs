//! What happened to a network device's frames, counted for whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::latency::Latency;

/// Counters of one device. Its I/O threads add, anybody reads.
#[derive(Debug)]
pub struct NetCounters {
    /// By pair of queues.
    pub pairs: Box<[PairCounters]>,
    /// Commands of the control queue that were refused.
    pub control_errors: AtomicU64,
    /// Queues that a driver broke.
    pub retired_queues: AtomicU64,
}

/// Counters of a pair of queues.
#[derive(Debug, Default)]
pub struct PairCounters {
    /// Frames for the guest.
    pub received: NetQueueCounters,
    /// Frames from the guest.
    pub transmitted: NetQueueCounters,
}

/// Counters of one queue.
#[derive(Debug, Default)]
pub struct NetQueueCounters {
    /// Frames that arrived where they should.
    pub frames: AtomicU64,
    /// Their bytes, without the headers.
    pub bytes: AtomicU64,
    /// Frames that did not fit, or whose header was wrong.
    pub dropped: AtomicU64,
    /// Frames from the guest that its source filter refused.
    pub filtered: AtomicU64,
    /// Chains that could not hold a frame, and failures of the host.
    pub errors: AtomicU64,
    /// How often frames were shown to the driver, together.
    pub batches: AtomicU64,
    /// How long the queue waited for its limiter, in nanoseconds.
    pub throttled_ns: AtomicU64,
    /// From the time that the first of a batch was taken up to the time that the driver could see all of it.
    pub latency: Latency,
}

impl NetCounters {
    /// Of a device of so many pairs.
    pub(super) fn new(pairs: usize) -> Self {
        Self {
            pairs: (0..pairs).map(|_| PairCounters::default()).collect(),
            control_errors: AtomicU64::new(0),
            retired_queues: AtomicU64::new(0),
        }
    }
}

impl NetQueueCounters {
    pub(super) fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }
}

/// Frames of one batch, which are counted together.
#[derive(Debug, Default)]
pub(super) struct Tally {
    frames: u64,
    bytes: u64,
    begun: Option<Instant>,
}

impl Tally {
    /// A frame is taken up. The clock is asked for the first of a batch alone.
    pub(super) fn begin(&mut self) {
        self.begun.get_or_insert_with(Instant::now);
    }

    /// A frame that was taken up has arrived.
    pub(super) fn add(&mut self, bytes: u64) {
        self.frames += 1;
        self.bytes += bytes;
    }

    /// A frame that was taken up is lost.
    pub(super) fn forget(&mut self) {
        if self.frames == 0 {
            self.begun = None;
        }
    }

    /// Adds all of it to `counters`, and starts anew.
    pub(super) fn flush(&mut self, counters: &NetQueueCounters) {
        if self.frames == 0 {
            return;
        }
        let Self { frames, bytes, begun } = std::mem::take(self);
        counters.frames.fetch_add(frames, Ordering::Relaxed);
        counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        counters.batches.fetch_add(1, Ordering::Relaxed);
        if let Some(begun) = begun {
            counters.latency.add_alike(begun.elapsed(), frames);
        }
    }
}
