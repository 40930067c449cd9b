//! The device's voice: what an I/O thread tells the driver, without any lock.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

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

    fn raise(&self, cause: u32) {
        // AcqRel: the ring or the configuration comes before its cause. Partner: `acknowledge`, and the driver's read
        // of the status, an exit that orders everything.
        self.status.fetch_or(cause, Ordering::AcqRel);
        // Fails only when 2^64 - 2 edges are undelivered, and then one is pending.
        let _pending = self.line.write(1);
    }
}
