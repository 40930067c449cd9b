//! The device's voice: what an I/O thread tells the driver, without any lock.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The interrupt of one device, and the state that comes with it.
///
/// Each call raises an edge, also when the driver has not acknowledged the one before: it may have looked at its
/// rings already.
#[derive(Debug)]
pub struct Interrupt {
    /// Why the driver was interrupted (virtio 1.3 §4.2.2, InterruptStatus).
    status: AtomicU32,
    needs_reset: AtomicBool,
    config_generation: AtomicU32,
    line: EventFd,
}

/// What an interrupt has come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptState {
    pub(crate) status: u32,
    pub(crate) needs_reset: bool,
    pub(crate) config_generation: u32,
}

impl InterruptState {
    /// Whether its causes are some that there are.
    pub(super) fn is_possible(&self) -> bool {
        self.status & !(VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG) == 0
    }
}

impl Interrupt {
    /// An interrupt that was never raised.
    ///
    /// # Errors
    /// That of the eventfd's creation.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            config_generation: AtomicU32::new(0),
            line: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// The line, to be bound to the device's GSI.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// A queue has used chains that the driver wants to know of.
    pub fn queue_used(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// The configuration space changed.
    pub fn config_changed(&self) {
        // Release: the new configuration comes before its generation. Partner: the Acquire in `config_generation`.
        self.config_generation.fetch_add(1, Ordering::Release);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The device cannot go on until the driver resets it (virtio 1.3 §2.1.2).
    pub fn needs_reset(&self) {
        // Release, before the interrupt that makes the driver look. Partner: the Acquire in `is_reset_needed`.
        self.needs_reset.store(true, Ordering::Release);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    pub(super) fn is_reset_needed(&self) -> bool {
        // Partner: the Release in `needs_reset`.
        self.needs_reset.load(Ordering::Acquire)
    }

    pub(super) fn config_generation(&self) -> u32 {
        // Partner: the Release in `config_changed`.
        self.config_generation.load(Ordering::Acquire)
    }

    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::Relaxed)
    }

    /// A cause that is raised between the driver's look and this stays, unless it is the same one, whose rings the
    /// driver looks at after this.
    pub(super) fn acknowledge(&self, causes: u32) {
        // AcqRel: what the driver does next comes after. Partner: the same operation in `raise`.
        self.status.fetch_and(!causes, Ordering::AcqRel);
    }

    /// As new. Only while the device is stopped.
    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::Relaxed);
        self.needs_reset.store(false, Ordering::Relaxed);
    }

    /// As it is, on a stopped device.
    pub(super) fn save(&self) -> InterruptState {
        let Self { status, needs_reset, config_generation, line: _ } = self;
        InterruptState {
            status: status.load(Ordering::Relaxed),
            needs_reset: needs_reset.load(Ordering::Relaxed),
            config_generation: config_generation.load(Ordering::Relaxed),
        }
    }

    /// As another one was. On a stopped device; the line stays as it is.
    pub(super) fn restore(&self, state: InterruptState) {
        let InterruptState { status, needs_reset, config_generation } = state;
        self.status.store(status, Ordering::Relaxed);
        self.needs_reset.store(needs_reset, Ordering::Relaxed);
        self.config_generation.store(config_generation, Ordering::Relaxed);
    }

    /// Raises another edge for the causes that the driver has not acknowledged, if there are any.
    pub(super) fn repeat(&self) {
        if self.status() != 0 {
            self.raise(0);
        }
    }

    fn raise(&self, cause: u32) {
        // AcqRel: the ring or the configuration comes before its cause. Partner: `acknowledge`, and the driver's read
        // of the status, an exit that orders everything.
        self.status.fetch_or(cause, Ordering::AcqRel);
        // Fails only when 2^64 - 2 edges are undelivered, and then one is pending.
        let _pending = self.line.write(1);
    }
}
