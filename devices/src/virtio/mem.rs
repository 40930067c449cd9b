//! The memory device (virtio 1.3 §5.15): memory beside the machine's RAM that its driver plugs and unplugs, block by block,
//! until it has what the host asks for.
//!
//! Which blocks are plugged outlives drivers and resets of the device: what a guest has is its own until it gives it back.

mod blocks;
mod request;
mod state;
mod worker;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arch::GuestAddress;
use thiserror::Error;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use self::blocks::{BlockRun, Blocks};
use self::worker::MemoryWorker;
use super::exhaustion::Exhaustion;
use super::queue::QueueState;
use super::voice::{Changed, ConfigVoice};
use super::worker::{AttachError, Attachment, Holding, IoThreadHandle};
use super::{Activation, DeviceState, DeviceType, Identity, RestoreError, StartError, VirtioDevice, read_config_bytes};
use crate::fault::FaultLog;
use crate::state::SaveState;

pub use self::state::MemoryState;
pub use super::exhaustion::OnExhausted;

const QUEUE: u16 = 0;
const QUEUE_SIZE: u16 = 64;

/// VIRTIO_MEM_F_ACPI_PXM: the device says to which node its memory belongs (virtio 1.3 §5.15.3).
const ACPI_PXM: u64 = 1 << 0;
/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: a driver touches no block that is not plugged.
const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// The memory that a device has for its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryArea {
    /// Where it begins for the guest; a multiple of the size of a block.
    pub start: GuestAddress,
    /// Its size in bytes; a whole number of blocks.
    pub bytes: u64,
    /// The size of a block in bytes; a power of two.
    pub block_bytes: u64,
    /// The guest's NUMA node that it belongs to; `None` in a machine without nodes.
    pub node: Option<u16>,
}

/// What stands behind a device's blocks.
pub trait BlockStore: Send + Sync {
    /// Makes `bytes` bytes from `start` on, whole blocks that were unplugged, memory of the guest's that holds zeros.
    ///
    /// # Errors
    /// The host has no memory for them; then they are as they were.
    fn plug(&self, start: GuestAddress, bytes: u64) -> io::Result<()>;

    /// Takes whole blocks that were plugged away from the guest, with what they hold.
    ///
    /// # Errors
    /// The host does not do it; then they are the guest's still, but for what they hold, and it can be tried again.
    fn unplug(&self, start: GuestAddress, bytes: u64) -> io::Result<()>;
}

/// A virtio memory device.
pub struct MemoryDevice {
    log: FaultLog,
    identity: Identity,
    thread: IoThreadHandle,
    store: Arc<dyn BlockStore>,
    shared: Arc<Shared>,
    run: Option<Attachment<MemoryWorker>>,
}

/// What the device, its worker and its owner share.
#[derive(Debug)]
struct Shared {
    area: MemoryArea,
    /// Bytes that the guest shall have plugged.
    requested: AtomicU64,
    /// Bytes that it has. The worker writes it, with the lock of `blocks` held.
    plugged: AtomicU64,
    blocks: Mutex<Blocks>,
    voice: ConfigVoice,
    /// Of the host, until the guest has all that it shall have.
    exhaustion: Exhaustion,
    counters: MemoryCounters,
}

/// What happened in a memory device.
#[derive(Debug, Default)]
pub struct MemoryCounters {
    /// Bytes that the driver plugged.
    pub plugged_bytes: AtomicU64,
    /// Bytes that it unplugged.
    pub unplugged_bytes: AtomicU64,
    /// Requests of the driver's.
    pub requests: AtomicU64,
    /// Those that made no sense.
    pub errors: AtomicU64,
    /// Those that the host could not honour just then.
    pub exhausted: AtomicU64,
    /// Queues that a driver broke.
    pub retired_queues: AtomicU64,
}

/// What cannot be asked of a memory device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MemoryRequestError {
    /// More than there is.
    #[error("{requested} bytes are more than the {area} that can be plugged")]
    TooLarge {
        /// What was asked.
        requested: u64,
        /// What there is.
        area: u64,
    },
    /// No whole number of blocks.
    #[error("{requested} bytes are no whole number of blocks of {block}")]
    NotWhole {
        /// What was asked.
        requested: u64,
        /// The size of a block.
        block: u64,
    },
}

impl MemoryDevice {
    /// A device, `id` in the log, whose queue is served on `thread`. Nothing of `area` is plugged yet, and the guest is asked to
    /// plug `requested` bytes of it.
    ///
    /// # Errors
    /// As for [`MemoryDeviceControl::request`].
    pub fn new(
        id: &str,
        area: MemoryArea,
        requested: u64,
        store: Arc<dyn BlockStore>,
        on_exhausted: OnExhausted,
        thread: IoThreadHandle,
    ) -> Result<Self, MemoryRequestError> {
        area.check(requested)?;
        let node = if area.node.is_some() { ACPI_PXM } else { 0 };
        let queue = (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC);
        let identity = Identity {
            device_type: DeviceType::Memory,
            features: queue | UNPLUGGED_INACCESSIBLE | node,
            queue_sizes: vec![QUEUE_SIZE],
        };
        let shared = Shared {
            area,
            requested: AtomicU64::new(requested),
            plugged: AtomicU64::new(0),
            blocks: Mutex::new(Blocks::new(area)),
            voice: ConfigVoice::new(),
            exhaustion: Exhaustion::new(on_exhausted),
            counters: MemoryCounters::default(),
        };
        let (log, shared) = (FaultLog::new(id), Arc::new(shared));
        Ok(Self { log, identity, thread, store, shared, run: None })
    }

    /// What its owner holds it by.
    pub fn control(&self) -> MemoryDeviceControl {
        MemoryDeviceControl { shared: Arc::clone(&self.shared) }
    }
}

impl MemoryArea {
    /// Where a run of its blocks begins for the guest, and its size in bytes.
    fn range(self, run: BlockRun) -> (GuestAddress, u64) {
        (GuestAddress(self.start.0 + run.first * self.block_bytes), run.count * self.block_bytes)
    }

    fn check(self, requested: u64) -> Result<(), MemoryRequestError> {
        match requested {
            _ if requested > self.bytes => Err(MemoryRequestError::TooLarge { requested, area: self.bytes }),
            _ if !requested.is_multiple_of(self.block_bytes) => {
                Err(MemoryRequestError::NotWhole { requested, block: self.block_bytes })
            }
            _ => Ok(()),
        }
    }
}

impl VirtioDevice for MemoryDevice {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    /// `struct virtio_mem_config` (virtio 1.3 §5.15.4): the block's size, the node with padding, then the area's start, its
    /// size, how much of it is usable, which is all of it, how much is plugged and how much shall be.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let Shared { area, requested, plugged, .. } = &*self.shared;
        let fields = [
            area.block_bytes,
            area.node.unwrap_or(0).into(),
            area.start.0,
            area.bytes,
            area.bytes,
            plugged.load(Ordering::Acquire),
            requested.load(Ordering::Acquire),
        ];
        read_config_bytes(fields.map(u64::to_le_bytes).as_flattened(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn start(&mut self, mut activation: Activation) -> Result<(), StartError> {
        let interrupt = Arc::clone(&activation.interrupt);
        let at = activation.queues.iter().position(|queue| queue.ring.index() == QUEUE);
        let queue = activation.queues.swap_remove(at.ok_or(StartError::QueueMissing(QUEUE))?);
        let worker = MemoryWorker::new(
            queue,
            activation.interrupt,
            Arc::clone(&self.shared),
            Arc::clone(&self.store),
            self.log.clone(),
        );
        let attached = self.thread.attach(worker);
        self.run = Some(attached.map_err(|AttachError { error, .. }| StartError::Attach(error))?);
        self.shared.voice.started(interrupt);
        Ok(())
    }

    fn hold(&self) -> Vec<Holding> {
        self.run.iter().map(Attachment::hold).collect()
    }

    fn release(&self) {
        self.run.iter().for_each(Attachment::release);
    }

    fn stop(&mut self) -> Vec<(u16, QueueState)> {
        self.shared.voice.stopped();
        let worker = self.run.take().map(Attachment::detach);
        worker.map(|worker| (QUEUE, worker.into_state())).into_iter().collect()
    }

    /// Blocks stay what they are (virtio 1.3 §5.15.5.1).
    fn reset(&mut self) {
        self.shared.voice.reset();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Memory(SaveState::save(self))
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Memory(state) => SaveState::restore(self, state),
            other => Err(RestoreError::of_another_kind(&other, self.identity.device_type)),
        }
    }
}

/// What a memory device's owner holds it by.
#[derive(Debug, Clone)]
pub struct MemoryDeviceControl {
    shared: Arc<Shared>,
}

impl MemoryDeviceControl {
    /// Its memory.
    pub fn area(&self) -> MemoryArea {
        self.shared.area
    }

    /// Bytes that the guest shall have plugged.
    pub fn requested_bytes(&self) -> u64 {
        self.shared.requested.load(Ordering::Relaxed)
    }

    /// Bytes that it has plugged.
    pub fn plugged_bytes(&self) -> u64 {
        self.shared.plugged.load(Ordering::Relaxed)
    }

    /// Asks the guest to have so many bytes plugged.
    ///
    /// # Errors
    /// They are more than there are, or no whole number of blocks.
    pub fn request(&self, bytes: u64) -> Result<(), MemoryRequestError> {
        self.shared.area.check(bytes)?;
        self.shared.voice.tell(|| match self.shared.requested.swap(bytes, Ordering::Release) == bytes {
            true => Changed::No,
            false => Changed::Yes,
        });
        // What is asked anew may be refused anew.
        self.shared.exhaustion.end();
        Ok(())
    }

    /// What happened in it.
    pub fn counters(&self) -> &MemoryCounters {
        &self.shared.counters
    }
}

#[cfg(test)]
mod tests;
