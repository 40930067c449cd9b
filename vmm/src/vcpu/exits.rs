//! Exits counted by kind: one relaxed add an exit.

use std::sync::atomic::{AtomicU64, Ordering};

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

/// How often a vCPU came back from the guest, by kind. Written by its own thread, read by any.
#[derive(Debug, Default)]
pub struct ExitCounts([AtomicU64; ExitKind::ALL.len()]);

impl ExitCounts {
    /// How often for this reason.
    #[must_use]
    pub fn get(&self, kind: ExitKind) -> u64 {
        self.0[kind as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, kind: ExitKind) {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }
}
