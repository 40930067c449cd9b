//! What happened to a network device's frames, counted for whoever asks.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one device. The I/O thread adds, anybody reads.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// Frames for the guest.
    pub received: DirectionCounters,
    /// Frames from the guest.
    pub transmitted: DirectionCounters,
    /// Frames from the guest that its source filter refused.
    pub filtered: AtomicU64,
    /// Commands of the control queue that were refused.
    pub control_errors: AtomicU64,
    /// Queues that a driver broke.
    pub retired_queues: AtomicU64,
}

/// Counters of one direction.
#[derive(Debug, Default)]
pub struct DirectionCounters {
    /// Frames that arrived where they should.
    pub frames: AtomicU64,
    /// Their bytes, without the headers.
    pub bytes: AtomicU64,
    /// Frames that did not fit, or whose header was wrong.
    pub dropped: AtomicU64,
    /// Chains that could not hold a frame, and failures of the host.
    pub errors: AtomicU64,
}

impl DirectionCounters {
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
}

impl Tally {
    pub(super) fn add(&mut self, bytes: u64) {
        self.frames += 1;
        self.bytes += bytes;
    }

    /// How many there are.
    pub(super) fn frames(&self) -> u64 {
        self.frames
    }

    /// Adds all of it to `counters`, and starts anew.
    pub(super) fn flush(&mut self, counters: &DirectionCounters) {
        let Self { frames, bytes } = std::mem::take(self);
        if frames > 0 {
            counters.frames.fetch_add(frames, Ordering::Relaxed);
            counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}
