//! The block device (virtio 1.3 §5.2).
//!
//! [`Blk`] is the device behind the transport; its `Worker` serves the one queue on an I/O thread and owns the backend
//! while the device runs.

mod request;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

pub use request::SERIAL_BYTES;
use worker::BlkWorker;

use super::queue::QueueState;
use super::worker::{AttachError, Attachment, IoThreadHandle};
use super::{Activation, DeviceCounters, DeviceType, Identity, StartError, VirtioDevice, read_config_bytes};
use crate::backend::block::{BlockBackend, DiskAccess, DiskGeometry, SECTOR_BYTES};

const QUEUE: u16 = 0;
const QUEUE_SIZE: u16 = 256;
/// Data segments of a request: a chain without indirect descriptors has a header and a status beside them.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Offsets in the configuration space (virtio 1.3 §5.2.4).
const CONFIG_BYTES: usize = 34;
const CONFIG_CAPACITY: usize = 0;
const CONFIG_SEG_MAX: usize = 12;
const CONFIG_BLK_SIZE: usize = 20;
const CONFIG_PHYSICAL_BLOCK_EXP: usize = 24;
const CONFIG_MIN_IO_SIZE: usize = 26;
const CONFIG_WRITEBACK: usize = 32;

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
        let mut serial = [0; SERIAL_BYTES];
        let len = id.len().min(SERIAL_BYTES);
        serial[..len].copy_from_slice(&id.as_bytes()[..len]);
        Self { id, serial }
    }
}

/// A virtio block device.
pub struct Blk {
    name: DiskName,
    identity: Identity,
    config: [u8; CONFIG_BYTES],
    thread: IoThreadHandle,
    counters: Arc<DeviceCounters>,
    run: Run,
}

enum Run {
    Stopped(Box<dyn BlockBackend>),
    Running(Attachment<BlkWorker>),
    /// The I/O thread ended and took the backend along: the machine is coming down.
    Lost,
}

impl Blk {
    /// A disk over `backend` whose queue is served on `thread`.
    pub fn new(name: DiskName, backend: Box<dyn BlockBackend>, thread: IoThreadHandle) -> Self {
        let geometry = backend.geometry();
        Self {
            name,
            identity: identity(geometry),
            config: config(geometry),
            thread,
            counters: Arc::default(),
            run: Run::Stopped(backend),
        }
    }

    /// What happens in the device.
    pub fn counters(&self) -> Arc<DeviceCounters> {
        Arc::clone(&self.counters)
    }
}

fn identity(geometry: DiskGeometry) -> Identity {
    let mut bits = vec![
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
    ];
    if geometry.access == DiskAccess::ReadOnly {
        bits.push(VIRTIO_BLK_F_RO);
    }
    let features = bits.into_iter().fold(0, |features, bit| features | (1 << bit));
    Identity { device_type: DeviceType::Block, features, queue_sizes: vec![QUEUE_SIZE] }
}

fn config(geometry: DiskGeometry) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut put = |offset: usize, bytes: &[u8]| config[offset..offset + bytes.len()].copy_from_slice(bytes);
    let physical_sectors = u64::from(geometry.physical_block_bytes) / SECTOR_BYTES;
    let exponent = u8::try_from(physical_sectors.max(1).ilog2()).expect("at most 63");
    put(CONFIG_CAPACITY, &geometry.sectors.to_le_bytes());
    put(CONFIG_SEG_MAX, &SEGMENTS_MAX.to_le_bytes());
    put(CONFIG_BLK_SIZE, &u32::try_from(SECTOR_BYTES).expect("512").to_le_bytes());
    put(CONFIG_PHYSICAL_BLOCK_EXP, &[exponent]);
    put(CONFIG_MIN_IO_SIZE, &u16::try_from(physical_sectors).unwrap_or(1).to_le_bytes());
    // Writes are cached until a flush. Without CONFIG_WCE the field says so and takes no writes.
    put(CONFIG_WRITEBACK, &[1]);
    config
}

impl VirtioDevice for Blk {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn start(&mut self, mut activation: Activation) -> Result<(), StartError> {
        let at = activation.queues.iter().position(|queue| queue.ring.index() == QUEUE);
        let queue = activation.queues.swap_remove(at.ok_or(StartError::QueueMissing(QUEUE))?);
        let Run::Stopped(backend) = std::mem::replace(&mut self.run, Run::Lost) else {
            unreachable!("a transport starts only a stopped device");
        };
        let worker = BlkWorker::new(&self.name, Arc::clone(&self.counters), backend, queue, &activation);
        match self.thread.attach(worker) {
            Ok(attachment) => {
                self.run = Run::Running(attachment);
                Ok(())
            }
            Err(AttachError { error, worker }) => {
                self.run = worker.map_or(Run::Lost, |worker| Run::Stopped(worker.into_backend()));
                Err(StartError::Attach(error))
            }
        }
    }

    fn stop(&mut self) -> Vec<(u16, QueueState)> {
        match std::mem::replace(&mut self.run, Run::Lost) {
            Run::Running(attachment) => {
                let worker = attachment.detach();
                let state = worker.queue_state();
                self.run = Run::Stopped(worker.into_backend());
                vec![(QUEUE, state)]
            }
            stopped => {
                self.run = stopped;
                Vec::new()
            }
        }
    }

    /// A driver changes nothing that outlives its rings.
    fn reset(&mut self) {}
}
