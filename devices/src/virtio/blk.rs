//! The block device (virtio 1.3 §5.2).
//!
//! [`Blk`] is the device behind the transport; a `Worker` for each queue serves it on an I/O thread and owns that
//! queue's backend while the device runs.

mod batch;
mod control;
mod counters;
mod in_flight;
mod policy;
mod request;
mod slots;
mod state;
#[cfg(test)]
mod tests;
mod worker;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use control::Shared;
pub use control::{DiskControl, ReplaceError, ResizeError};
pub use counters::{DiskOperation, DiskQueueCounters, OperationCounters};
pub use request::SERIAL_BYTES;
use request::{DISCARD_SECTORS_MAX, RANGES_MAX, WRITE_ZEROES_SECTORS_MAX};
use slots::{Idle, QueueSlot, QueueSlots};
pub use state::BlkState;
use worker::BlkWorker;

use super::queue::QueueState;
use super::throttle::Throttle;
use super::worker::{Holding, IoThreadHandle};
use super::{
    Activation, DeviceCounters, DeviceState, DeviceType, Identity, RestoreError, StartError, VirtioDevice,
    read_config_bytes,
};
use crate::backend::block::{BlockBackend, CacheMode, Discard, DiskAccess, DiskGeometry, SECTOR_BYTES};
use crate::bus::lock;
use crate::fault::FaultLog;
use crate::limit::Limiter;
use crate::state::SaveState;

/// Entries of a queue where nobody asks for another number.
pub const QUEUE_SIZE_DEFAULT: u16 = 256;
/// The fewest: a request has a header, data and a status.
pub const QUEUE_SIZE_MIN: u16 = 4;
/// The most: a request's pieces fill one system call.
pub const QUEUE_SIZE_MAX: u16 = 1024;
/// The most queues: one for each vCPU is enough.
pub const QUEUES_MAX: usize = 64;

/// Offsets in the configuration space (virtio 1.3 §5.2.4).
const CONFIG_BYTES: usize = 60;
const CONFIG_CAPACITY: usize = 0;
const CONFIG_SEG_MAX: usize = 12;
const CONFIG_BLK_SIZE: usize = 20;
const CONFIG_PHYSICAL_BLOCK_EXP: usize = 24;
const CONFIG_MIN_IO_SIZE: usize = 26;
const CONFIG_WRITEBACK: usize = 32;
const CONFIG_NUM_QUEUES: usize = 34;
const CONFIG_MAX_DISCARD_SECTORS: usize = 36;
const CONFIG_MAX_DISCARD_SEG: usize = 40;
const CONFIG_DISCARD_ALIGNMENT: usize = 44;
const CONFIG_MAX_WRITE_ZEROES_SECTORS: usize = 48;
const CONFIG_MAX_WRITE_ZEROES_SEG: usize = 52;
const CONFIG_WRITE_ZEROES_MAY_UNMAP: usize = 56;

/// What a disk is called: for the log, and for the guest's GET_ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskName {
    /// The drive's name on the host.
    pub id: String,
    /// What the guest sees as the serial number; cut or filled with zeroes.
    pub serial: [u8; SERIAL_BYTES],
}

impl DiskName {
    /// A disk whose serial number is its name, as far as it fits.
    pub fn new(id: impl Into<String>) -> Self {
        let id = id.into();
        let serial = serial_bytes(&id);
        Self { id, serial }
    }

    /// A disk with a serial number of its own, as far as it fits.
    pub fn with_serial(id: impl Into<String>, serial: &str) -> Self {
        Self { id: id.into(), serial: serial_bytes(serial) }
    }
}

fn serial_bytes(text: &str) -> [u8; SERIAL_BYTES] {
    let mut serial = [0; SERIAL_BYTES];
    let len = text.len().min(SERIAL_BYTES);
    serial[..len].copy_from_slice(&text.as_bytes()[..len]);
    serial
}

/// One queue of a disk: who does its requests, and where it is served.
pub struct DiskQueue {
    /// All queues of a disk have backends over one image.
    pub backend: Box<dyn BlockBackend>,
    /// The thread.
    pub thread: IoThreadHandle,
}

/// What becomes of a request that changes the disk when its backing has no space left for it (ENOSPC, EDQUOT).
#[derive(Clone, Default)]
pub enum OnFull {
    /// The guest is told of an I/O error.
    #[default]
    Report,
    /// It is kept and its queue takes nothing more, until the device was stopped and goes on; the callee is told, on an
    /// I/O thread, and must not block.
    Keep(Arc<dyn Fn() + Send + Sync>),
}

impl fmt::Debug for OnFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Report => "Report",
            Self::Keep(_) => "Keep",
        })
    }
}

/// How a disk presents itself.
#[derive(Clone, Debug)]
pub struct BlkOptions {
    /// Entries of each queue: a power of two from [`QUEUE_SIZE_MIN`] to [`QUEUE_SIZE_MAX`].
    pub queue_size: u16,
    /// What all its queues are held to.
    pub limiter: Option<Arc<Limiter>>,
    /// What a full backing means.
    pub on_full: OnFull,
}

impl Default for BlkOptions {
    fn default() -> Self {
        Self { queue_size: QUEUE_SIZE_DEFAULT, limiter: None, on_full: OnFull::Report }
    }
}

/// A virtio block device.
pub struct Blk {
    name: DiskName,
    log: FaultLog,
    identity: Identity,
    config: [u8; CONFIG_BYTES],
    limiter: Option<Arc<Limiter>>,
    shared: Arc<Shared>,
    /// The device's and its owner's. Lock order: the transport, then this.
    queues: Arc<Mutex<QueueSlots>>,
}

impl Blk {
    /// A disk with at least one queue.
    ///
    /// # Errors
    /// No descriptor is left for the limiter's timers.
    ///
    /// # Panics
    /// If there is no queue, or too many, or of a size that is none.
    pub fn new(name: DiskName, queues: Vec<DiskQueue>, options: BlkOptions) -> io::Result<Self> {
        let BlkOptions { queue_size, limiter, on_full } = options;
        assert!((1..=QUEUES_MAX).contains(&queues.len()), "a disk has {} queues", queues.len());
        assert!((QUEUE_SIZE_MIN..=QUEUE_SIZE_MAX).contains(&queue_size), "a disk has queues of {queue_size} entries");
        let geometry = queues[0].backend.geometry();
        let count = u16::try_from(queues.len()).expect("few queues");
        let slots = queues.into_iter().map(|DiskQueue { backend, thread }| {
            let throttle = limiter.as_ref().map(Throttle::new).transpose()?;
            Ok(QueueSlot::new(thread, Idle { backend, throttle }))
        });
        let slots = slots.collect::<io::Result<_>>()?;
        Ok(Self {
            log: FaultLog::new(&name.id),
            name,
            identity: identity(geometry, count, queue_size),
            config: config(geometry, count, queue_size),
            shared: Shared::new(geometry, count, on_full),
            limiter,
            queues: Arc::new(Mutex::new(QueueSlots { slots, interrupt: None })),
        })
    }

    /// What happens in the device.
    pub fn counters(&self) -> Arc<DeviceCounters> {
        Arc::clone(self.shared.counters())
    }

    /// The disk for the machine's owner.
    pub fn control(&self) -> DiskControl {
        DiskControl::new(Arc::clone(&self.shared), Arc::clone(&self.queues))
    }
}

fn identity(geometry: DiskGeometry, queues: u16, queue_size: u16) -> Identity {
    let mut bits = vec![
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
    ];
    // Where each write is durable there is nothing to flush.
    if geometry.cache != CacheMode::Writethrough {
        bits.push(VIRTIO_BLK_F_FLUSH);
    }
    if queues > 1 {
        bits.push(VIRTIO_BLK_F_MQ);
    }
    match geometry.access {
        DiskAccess::ReadOnly => bits.push(VIRTIO_BLK_F_RO),
        DiskAccess::ReadWrite => bits.push(VIRTIO_BLK_F_WRITE_ZEROES),
    }
    if geometry.discard != Discard::Unsupported {
        bits.push(VIRTIO_BLK_F_DISCARD);
    }
    let features = bits.into_iter().fold(0, |features, bit| features | (1 << bit));
    Identity { device_type: DeviceType::Block, features, queue_sizes: vec![queue_size; queues.into()] }
}

fn config(geometry: DiskGeometry, queues: u16, queue_size: u16) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut put = |offset: usize, bytes: &[u8]| config[offset..offset + bytes.len()].copy_from_slice(bytes);
    let block = geometry.logical_block_bytes;
    let physical_blocks = (geometry.physical_block_bytes / block).max(1);
    let exponent = u8::try_from(physical_blocks.ilog2()).expect("at most 31");
    // A chain without indirect descriptors has a header and a status beside its data.
    put(CONFIG_SEG_MAX, &u32::from(queue_size - 2).to_le_bytes());
    put(CONFIG_BLK_SIZE, &block.to_le_bytes());
    put(CONFIG_PHYSICAL_BLOCK_EXP, &[exponent]);
    put(CONFIG_MIN_IO_SIZE, &u16::try_from(physical_blocks).unwrap_or(1).to_le_bytes());
    // Without CONFIG_WCE the field only tells.
    put(CONFIG_WRITEBACK, &[(geometry.cache != CacheMode::Writethrough).into()]);
    put(CONFIG_NUM_QUEUES, &queues.to_le_bytes());
    if let Discard::Supported { granularity_bytes } = geometry.discard {
        let sectors = granularity_bytes.max(block) / u32::try_from(SECTOR_BYTES).expect("512");
        put(CONFIG_MAX_DISCARD_SECTORS, &DISCARD_SECTORS_MAX.to_le_bytes());
        put(CONFIG_MAX_DISCARD_SEG, &RANGES_MAX.to_le_bytes());
        put(CONFIG_DISCARD_ALIGNMENT, &sectors.to_le_bytes());
    }
    if geometry.access == DiskAccess::ReadWrite {
        put(CONFIG_MAX_WRITE_ZEROES_SECTORS, &WRITE_ZEROES_SECTORS_MAX.to_le_bytes());
        put(CONFIG_MAX_WRITE_ZEROES_SEG, &RANGES_MAX.to_le_bytes());
        put(CONFIG_WRITE_ZEROES_MAY_UNMAP, &[(geometry.discard != Discard::Unsupported).into()]);
    }
    config
}

impl VirtioDevice for Blk {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = self.config;
        config[CONFIG_CAPACITY..CONFIG_CAPACITY + 8].copy_from_slice(&self.shared.sectors().to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// A driver may set up fewer queues than there are, but not leave out the first (virtio 1.3 §5.2.2).
    fn start(&mut self, mut activation: Activation) -> Result<(), StartError> {
        let active = std::mem::take(&mut activation.queues);
        if !active.iter().any(|queue| queue.ring.index() == 0) {
            return Err(StartError::QueueMissing(0));
        }
        let multi_queue = activation.features & (1 << VIRTIO_BLK_F_MQ) != 0;
        let mut queues = lock(&self.queues);
        queues.interrupt = Some(Arc::clone(&activation.interrupt));
        self.shared.clear_full();
        self.shared.mend();
        for queue in active {
            let index = usize::from(queue.ring.index());
            if index > 0 && !multi_queue {
                continue;
            }
            let (log, shared) = (self.log.clone(), Arc::clone(&self.shared));
            let worker = |idle| BlkWorker::new(&self.name, log, shared, idle, queue, &activation);
            if let Err(error) = queues.slots[index].start(worker) {
                drop(queues);
                self.stop();
                return Err(StartError::Attach(error));
            }
        }
        drop(queues);
        self.shared.started(activation.interrupt);
        Ok(())
    }

    fn hold(&self) -> Vec<Holding> {
        lock(&self.queues).hold()
    }

    fn release(&self) {
        lock(&self.queues).release();
    }

    fn stop(&mut self) -> Vec<(u16, QueueState)> {
        self.shared.stopped();
        let mut queues = lock(&self.queues);
        queues.interrupt = None;
        let stopped = (0..).zip(&mut queues.slots).filter_map(|(index, slot)| Some((index, slot.stop()?)));
        stopped.collect()
    }

    fn reset(&mut self) {
        self.shared.reset();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Block(SaveState::save(self))
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Block(state) => SaveState::restore(self, state),
            other => Err(RestoreError::of_another_kind(&other, self.identity.device_type)),
        }
    }
}
