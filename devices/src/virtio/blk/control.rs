//! What the machine's owner may do to a disk while its guest uses it.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use thiserror::Error;

use super::OnFull;
use super::counters::DiskQueueCounters;
use super::slots::{QueueSlots, Undone};
use crate::backend::block::{BlockBackend, DiskGeometry, SECTOR_BYTES};
use crate::virtio::DeviceCounters;
use crate::virtio::transport::Interrupt;
use crate::virtio::voice::{Changed, ConfigVoice, News};

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

/// Why a disk cannot have another file. Nothing has changed.
#[derive(Debug, Error)]
pub enum ReplaceError {
    /// The driver was told another block size.
    #[error("its logical block is {new} bytes, and the guest was told {old}: give a disk of the same")]
    Block {
        /// That of the new one, in bytes.
        new: u32,
        /// That of the old one, in bytes.
        old: u32,
    },
    /// The driver was told another access.
    #[error("it is open for other access than the guest was told")]
    Access,
    /// The driver is resetting the device at this moment.
    #[error("the guest is resetting the disk just now: try again")]
    Busy,
    /// A replace before this one could not be taken back.
    #[error("a replace before it could not be taken back: the disk has its own file again when the guest has reset it")]
    Broken,
    /// Requests in flight do not complete.
    #[error("the old file or device does not answer: requests in flight did not complete in time")]
    Held,
    /// An I/O thread does not take its queue back.
    #[error("an I/O thread cannot watch the new file's events")]
    Attach(#[source] io::Error),
}

/// A disk that is in use, for the machine's owner. Its clones are of the same disk.
#[derive(Clone)]
pub struct DiskControl {
    shared: Arc<Shared>,
    queues: Arc<Mutex<QueueSlots>>,
}

impl fmt::Debug for DiskControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

/// What a disk's device, its queues and its owner have in common.
#[derive(Debug)]
pub(super) struct Shared {
    geometry: DiskGeometry,
    /// Written by the owner, read for every request.
    sectors: AtomicU64,
    /// Those of the file or device, as far as is known here.
    backing_sectors: AtomicU64,
    voice: ConfigVoice,
    counters: Arc<DeviceCounters>,
    /// By queue.
    queue_counters: Box<[DiskQueueCounters]>,
    on_full: OnFull,
    /// A request is kept for want of space.
    full: AtomicBool,
    /// Queues have backends that they must not use, until they stop.
    broken: AtomicBool,
}

impl DiskControl {
    pub(super) fn new(shared: Arc<Shared>, queues: Arc<Mutex<QueueSlots>>) -> Self {
        Self { shared, queues }
    }

    /// Gives the disk a new size and tells the driver. The backing must have that size already, or a larger one:
    /// `backing_sectors` is what it has now. When a disk shrinks, requests that were taken before may still reach behind its end.
    ///
    /// # Errors
    /// [`ResizeError`]; the size is what it was.
    pub fn resize(&self, backing_sectors: u64, bytes: u64) -> Result<(), ResizeError> {
        let block = self.shared.geometry.logical_block_bytes;
        if bytes == 0 || !bytes.is_multiple_of(block.into()) {
            return Err(ResizeError::Unaligned { bytes, block });
        }
        let backing = backing_sectors * SECTOR_BYTES;
        if bytes > backing {
            return Err(ResizeError::BeyondBacking { bytes, backing });
        }
        self.shared.set_sectors(bytes / SECTOR_BYTES, backing_sectors);
        Ok(())
    }

    /// Its size now, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.shared.sectors() * SECTOR_BYTES
    }

    /// Puts other backends behind the disk, one a queue and all over one image, and tells the driver of the size. What is
    /// in flight completes first, on the old ones, which the deadline bounds. Gives those back: where their file's host does
    /// not answer, to close it may take for ever.
    ///
    /// # Errors
    /// [`ReplaceError`]; the disk is what it was.
    ///
    /// # Panics
    /// If there are not as many backends as queues.
    pub fn replace(
        &self,
        backends: Vec<Box<dyn BlockBackend>>,
        deadline: Instant,
    ) -> Result<Vec<Box<dyn BlockBackend>>, ReplaceError> {
        let (old, new) = (self.shared.geometry, backends[0].geometry());
        if new.logical_block_bytes != old.logical_block_bytes || new.transfer_align() != old.transfer_align() {
            return Err(ReplaceError::Block { new: new.logical_block_bytes, old: old.logical_block_bytes });
        }
        if new.access != old.access {
            return Err(ReplaceError::Access);
        }
        // A vCPU that resets the device holds this for as long as its requests take: nobody waits for a vCPU here.
        let Ok(mut queues) = self.queues.try_lock() else { return Err(ReplaceError::Busy) };
        if self.shared.is_broken() {
            return Err(ReplaceError::Broken);
        }
        assert_eq!(backends.len(), queues.slots.len(), "a backend for each queue");
        if !queues.quiet(deadline) {
            return Err(ReplaceError::Held);
        }
        let before = || {
            self.shared.clear_full();
            self.shared.set_sectors(new.sectors, new.sectors);
        };
        queues.exchange(backends, deadline, before, |undone| {
            self.shared.broken.store(undone == Undone::AtStop, Ordering::Relaxed);
        })
    }

    /// Whether a request is kept because the backing has no space for it ([`OnFull::Keep`]). Stopping the device and
    /// letting it go on tries again.
    pub fn is_full(&self) -> bool {
        // Partner: the Release in `tell_full`.
        self.shared.full.load(Ordering::Acquire)
    }

    /// What happens in the disk.
    pub fn counters(&self) -> &DeviceCounters {
        &self.shared.counters
    }

    /// What happens in each of its queues.
    pub fn queue_counters(&self) -> &[DiskQueueCounters] {
        &self.shared.queue_counters
    }
}

impl Shared {
    pub(super) fn new(geometry: DiskGeometry, queues: u16, on_full: OnFull) -> Arc<Self> {
        Arc::new(Self {
            geometry,
            sectors: AtomicU64::new(geometry.sectors),
            backing_sectors: AtomicU64::new(geometry.sectors),
            voice: ConfigVoice::new(),
            counters: Arc::default(),
            queue_counters: (0..queues).map(|_| DiskQueueCounters::default()).collect(),
            on_full,
            full: AtomicBool::new(false),
            broken: AtomicBool::new(false),
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

    /// Whether a request is to be kept that changes the disk and failed for want of space.
    pub(super) fn keeps_when_full(&self) -> bool {
        matches!(self.on_full, OnFull::Keep(_))
    }

    /// A request is kept.
    pub(super) fn tell_full(&self) {
        // Release, before the callee hears of it. Partner: the Acquire in `is_full`.
        self.full.store(true, Ordering::Release);
        if let OnFull::Keep(tell) = &self.on_full {
            tell();
        }
    }

    /// Whether no queue may go on before it was stopped. A queue is told to go on, by its thread's channel, only after this was
    /// set: Relaxed will do.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// All queues have stopped.
    pub(super) fn mend(&self) {
        self.broken.store(false, Ordering::Relaxed);
    }

    /// What is kept is tried again.
    pub(super) fn clear_full(&self) {
        self.full.store(false, Ordering::Relaxed);
    }

    /// The size of the file or device when it was last looked at.
    pub(super) fn backing_sectors(&self) -> u64 {
        self.backing_sectors.load(Ordering::Relaxed)
    }

    /// Changes the size, on a backing that may be larger, and tells the driver.
    fn set_sectors(&self, sectors: u64, backing_sectors: u64) {
        self.backing_sectors.store(backing_sectors, Ordering::Relaxed);
        self.voice.tell(|| {
            self.sectors.store(sectors, Ordering::Relaxed);
            Changed::Yes
        });
    }

    pub(super) fn counters(&self) -> &Arc<DeviceCounters> {
        &self.counters
    }

    pub(super) fn queue_counters(&self, index: u16) -> &DiskQueueCounters {
        &self.queue_counters[usize::from(index)]
    }

    pub(super) fn started(&self, interrupt: Arc<Interrupt>) {
        self.voice.started(interrupt);
    }

    pub(super) fn stopped(&self) {
        self.voice.stopped();
    }

    /// Whether the driver has yet to be told of its size.
    pub(super) fn news(&self) -> News {
        self.voice.news()
    }

    /// Has the size of which another disk's driver was told, or will be.
    pub(super) fn inherit(&self, sectors: u64, news: News) {
        self.sectors.store(sectors, Ordering::Relaxed);
        self.voice.inherit(news);
    }

    /// The next driver reads the size anyway.
    pub(super) fn reset(&self) {
        self.voice.reset();
    }
}
