//! What the machine's owner may do to a disk while its guest uses it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use thiserror::Error;

use crate::backend::block::{DiskGeometry, DiskImage, SECTOR_BYTES};
use crate::bus::lock;
use crate::virtio::DeviceCounters;
use crate::virtio::transport::Interrupt;

/// Why a disk cannot have another size.
#[derive(Debug, Error)]
pub enum ResizeError {
    /// A disk of no block, or of a part of one.
    #[error("{bytes} bytes are not one or more whole blocks of {block}")]
    Unaligned {
        /// What was asked for.
        bytes: u64,
        /// The disk's logical block, in bytes.
        block: u32,
    },
    /// The backing is smaller.
    #[error("{bytes} bytes are more than the {backing} that the file or device has: extend that first")]
    BeyondBacking {
        /// What was asked for.
        bytes: u64,
        /// What there is.
        backing: u64,
    },
    /// The host does not say how large the backing is.
    #[error("cannot get the size of the file or device")]
    Host(#[source] io::Error),
}

/// A disk that is in use, for the machine's owner. Its clones are of the same disk.
#[derive(Clone, Debug)]
pub struct DiskControl {
    shared: Arc<Shared>,
}

/// What a disk's device, its queues and its owner have in common.
#[derive(Debug)]
pub(super) struct Shared {
    geometry: DiskGeometry,
    /// Written by the owner, read for every request.
    sectors: AtomicU64,
    voice: Mutex<Voice>,
    counters: Arc<DeviceCounters>,
}

/// How the driver is told of a new size.
#[derive(Debug)]
enum Voice {
    /// Nobody listens.
    Stopped,
    /// Nobody listens, and there is news.
    News,
    Running(Arc<Interrupt>),
}

impl DiskControl {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Gives the disk a new size and tells the driver. The backing must have that size already, or a larger one;
    /// `image` is that backing. When a disk shrinks, requests that were taken before may still reach behind its end.
    ///
    /// # Errors
    /// [`ResizeError`]; the size is what it was.
    pub fn resize(&self, image: &DiskImage, bytes: u64) -> Result<(), ResizeError> {
        let block = self.shared.geometry.logical_block_bytes;
        if bytes == 0 || !bytes.is_multiple_of(block.into()) {
            return Err(ResizeError::Unaligned { bytes, block });
        }
        let backing = image.current_sectors().map_err(ResizeError::Host)? * SECTOR_BYTES;
        if bytes > backing {
            return Err(ResizeError::BeyondBacking { bytes, backing });
        }
        let mut voice = lock(&self.shared.voice);
        // Ordered before the driver's look by `config_changed`, or by the lock.
        self.shared.sectors.store(bytes / SECTOR_BYTES, Ordering::Relaxed);
        match &*voice {
            Voice::Running(interrupt) => interrupt.config_changed(),
            Voice::Stopped | Voice::News => *voice = Voice::News,
        }
        Ok(())
    }

    /// Its size now, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.shared.sectors() * SECTOR_BYTES
    }

    /// What happens in the disk.
    pub fn counters(&self) -> &DeviceCounters {
        &self.shared.counters
    }
}

impl Shared {
    pub(super) fn new(geometry: DiskGeometry) -> Arc<Self> {
        Arc::new(Self {
            geometry,
            sectors: AtomicU64::new(geometry.sectors),
            voice: Mutex::new(Voice::Stopped),
            counters: Arc::default(),
        })
    }

    /// The disk's shape, but for its size.
    pub(super) fn geometry(&self) -> DiskGeometry {
        self.geometry
    }

    /// The disk's size now.
    pub(super) fn sectors(&self) -> u64 {
        // A number alone: whoever sees an old one is as good as a moment earlier.
        self.sectors.load(Ordering::Relaxed)
    }

    pub(super) fn counters(&self) -> &Arc<DeviceCounters> {
        &self.counters
    }

    /// The device runs, and tells at once what came up while it did not.
    pub(super) fn started(&self, interrupt: Arc<Interrupt>) {
        let mut voice = lock(&self.voice);
        if matches!(*voice, Voice::News) {
            interrupt.config_changed();
        }
        *voice = Voice::Running(interrupt);
    }

    pub(super) fn stopped(&self) {
        let mut voice = lock(&self.voice);
        if matches!(*voice, Voice::Running(_)) {
            *voice = Voice::Stopped;
        }
    }

    /// The next driver reads the size anyway.
    pub(super) fn reset(&self) {
        *lock(&self.voice) = Voice::Stopped;
    }
}
