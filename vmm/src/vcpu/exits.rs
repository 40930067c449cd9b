//! Exits counted by kind: one relaxed add an exit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Why a vCPU came back from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum ExitKind {
    /// A port was read.
    IoIn,
    /// A port was written.
    IoOut,
    /// A device register was read.
    MmioRead,
    /// A device register was written.
    MmioWrite,
    /// A signal or an ask interrupted it.
    Interrupted,
    /// Anything else.
    Other,
}

impl ExitKind {
    /// Every kind with its name in figures.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::IoIn, "io-in"),
        (Self::IoOut, "io-out"),
        (Self::MmioRead, "mmio-read"),
        (Self::MmioWrite, "mmio-write"),
        (Self::Interrupted, "interrupted"),
        (Self::Other, "other"),
    ];
}

/// How often a vCPU came back from the guest, by kind, and how long it was away for that. Written by its own thread, read
/// by any.
#[derive(Debug, Default)]
pub struct ExitCounts {
    exits: [AtomicU64; ExitKind::ALL.len()],
    outside_ns: AtomicU64,
}

impl ExitCounts {
    /// How often for this reason.
    #[must_use]
    pub fn get(&self, kind: ExitKind) -> u64 {
        self.exits[kind as usize].load(Ordering::Relaxed)
    }

    /// How long devices took for accesses by this vCPU.
    #[must_use]
    pub fn outside(&self) -> Duration {
        Duration::from_nanos(self.outside_ns.load(Ordering::Relaxed))
    }

    pub(crate) fn count(&self, kind: ExitKind) {
        self.exits[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_outside(&self, took: Duration) {
        self.outside_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
