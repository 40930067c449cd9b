//! What the guest configured a queue to be, and the check that makes it usable.

use std::sync::Arc;

use arch::GuestMemory;
use thiserror::Error;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::chain::{DESCRIPTOR_BYTES, DescriptorTable};
use super::map::MemoryMap;
use super::ring::Ring;
use super::{AVAIL_ENTRY_BYTES, ENTRIES, ReadyQueue, USED_ENTRY_BYTES};

/// The most entries a split ring has (virtio 1.3 §2.7).
pub const QUEUE_SIZE_MAX: u16 = 1 << 15;

/// Alignments (virtio 1.3 §2.7, table).
const TABLE_ALIGN: u64 = 16;
const AVAIL_ALIGN: u64 = 2;
const USED_ALIGN: u64 = 4;
const EVENT_BYTES: usize = 2;

/// A queue as the driver describes it in registers. Nothing in here is to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// Which of the device's queues this is.
    pub index: u16,
    /// The most entries that the device offers. The device's own, and so true.
    pub size_max: u16,
    /// The entries that the driver chose.
    pub size: u16,
    /// The driver finished the description.
    pub ready: bool,
    /// Guest address of the descriptor table.
    pub descriptor_table: u64,
    /// Guest address of the available ring, the driver area.
    pub avail_ring: u64,
    /// Guest address of the used ring, the device area.
    pub used_ring: u64,
}

/// How far the device has come in a queue: what a stopped queue is continued from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueState {
    /// Free-running index of the next available entry.
    pub next_avail: u16,
    /// Free-running index of the next used entry.
    pub next_used: u16,
    /// The driver broke a rule of the ring: nothing is popped any more before a reset.
    pub retired: bool,
    /// Heads of chains that were popped and neither given back nor begun for good: they are popped again, before all else.
    pub held: Vec<u16>,
}

/// Why a queue's description is no queue.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum QueueConfigError {
    /// The size is no power of two between 1 and the device's maximum.
    #[error("queue {index} has {size} entries, not a power of two of at most {size_max}")]
    Size {
        /// Which queue.
        index: u16,
        /// The driver's size.
        size: u16,
        /// The device's maximum.
        size_max: u16,
    },
    /// A ring is misaligned, or not wholly inside guest memory.
    #[error("queue {index} has its {ring} at {address:#x}: misaligned or not {bytes} bytes of guest memory")]
    Placement {
        /// Which queue.
        index: u16,
        /// Which of its three parts.
        ring: &'static str,
        /// The driver's address.
        address: u64,
        /// The part's size.
        bytes: usize,
    },
    /// A saved state holds more chains than there can be.
    #[error("queue {index} of {size} entries holds {held} chains")]
    Held {
        /// Which queue.
        index: u16,
        /// Its entries.
        size: u16,
        /// The chains.
        held: usize,
    },
}

impl QueueConfig {
    /// An unconfigured queue, as it is after reset.
    ///
    /// # Panics
    /// If `size_max` is no power of two of at most [`QUEUE_SIZE_MAX`], which is the device's bug.
    pub fn new(index: u16, size_max: u16) -> Self {
        assert!(
            size_max.is_power_of_two() && size_max <= QUEUE_SIZE_MAX,
            "a device offers a queue of {size_max} entries"
        );
        Self { index, size_max, size: size_max, ready: false, descriptor_table: 0, avail_ring: 0, used_ring: 0 }
    }

    /// Checks the description and looks the rings up, once for the whole life of the queue. `features` are the
    /// negotiated ones; `state` is the default for a fresh queue.
    ///
    /// # Errors
    /// What the driver did wrong.
    pub fn validate(
        &self,
        memory: &Arc<GuestMemory>,
        features: u64,
        state: QueueState,
    ) -> Result<ReadyQueue, QueueConfigError> {
        let Self { index, size_max, size, .. } = *self;
        if !size.is_power_of_two() || size > size_max {
            return Err(QueueConfigError::Size { index, size, size_max });
        }
        let entries = usize::from(size);
        if state.held.len() > entries {
            return Err(QueueConfigError::Held { index, size, held: state.held.len() });
        }
        let place = |ring, address, bytes, align| {
            Ring::new(memory, address, bytes, align).ok_or(QueueConfigError::Placement { index, ring, address, bytes })
        };
        let table = place("descriptor table", self.descriptor_table, entries * DESCRIPTOR_BYTES, TABLE_ALIGN)?;
        // The event indices are there or not; either way a driver keeps their space (virtio 1.3 §2.7.2).
        let avail_bytes = ENTRIES + entries * AVAIL_ENTRY_BYTES + EVENT_BYTES;
        let avail = place("available ring", self.avail_ring, avail_bytes, AVAIL_ALIGN)?;
        let used_bytes = ENTRIES + entries * USED_ENTRY_BYTES + EVENT_BYTES;
        let used = place("used ring", self.used_ring, used_bytes, USED_ALIGN)?;
        let indirect = features & (1 << VIRTIO_RING_F_INDIRECT_DESC) != 0;
        Ok(ReadyQueue {
            index,
            size,
            event_idx: features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
            memory: Arc::clone(memory),
            map: MemoryMap::new(memory),
            table: DescriptorTable::new(table, size, indirect),
            avail,
            used,
            next_avail: state.next_avail,
            avail_index: state.next_avail,
            next_used: state.next_used,
            shown: state.next_used,
            published: state.next_used,
            announced: false,
            in_flight: 0,
            silenced: false,
            retired: state.retired,
            held: state.held.into(),
        })
    }
}
