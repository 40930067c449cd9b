//! Split virtqueues (virtio 1.3 §2.7), the device's side.
//!
//! What the guest wrote is a [`QueueConfig`]; [`QueueConfig::validate`] makes a [`ReadyQueue`] of it, and only that one
//! touches a ring. It belongs to the I/O thread that serves it, and nobody else may use it.
//!
//! Architecture invariants:
//! - every structure in guest memory is copied once, and the copy is checked; only a hint to the cache looks earlier;
//! - a chain that [`ReadyQueue::pop`] hands out lies in guest memory, whole;
//! - the first broken rule retires the queue: nothing is popped any more, but what is in flight still completes;
//! - no more chains are in flight than the ring has entries.

mod chain;
mod config;
mod map;
mod ring;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use arch::GuestMemory;
use thiserror::Error;

pub use chain::{CHAIN_SEGMENTS_MAX, Chain, Segment};
use chain::{DescriptorTable, Walk};
pub use config::{QUEUE_SIZE_MAX, QueueConfig, QueueConfigError, QueueState};
use map::MemoryMap;
use ring::Ring;

use super::abi::{AVAIL_NO_INTERRUPT, USED_NO_NOTIFY};

const FLAGS: usize = 0;
const INDEX: usize = 2;
const ENTRIES: usize = 4;
const AVAIL_ENTRY_BYTES: usize = 2;
const USED_ENTRY_BYTES: usize = 8;

/// What a driver did to its ring that no driver may do.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum QueueError {
    /// The available index moved by more than the ring holds.
    #[error("available index {index} is not within {size} entries of {next}")]
    IndexJump {
        /// The index that the driver published.
        index: u16,
        /// The index that the device had come to.
        next: u16,
        /// The ring's entries.
        size: u16,
    },
    /// The driver made more chains available than the ring has entries, without waiting for used ones.
    #[error("more than {size} chains are in flight")]
    TooManyInFlight {
        /// The ring's entries.
        size: u16,
    },
    /// A descriptor index points outside its table.
    #[error("descriptor {index} is outside a table of {len}")]
    DescriptorIndex {
        /// The index.
        index: u16,
        /// The table's entries.
        len: u32,
    },
    /// A chain has more descriptors than its table, so it loops.
    #[error("descriptor chain {head} loops")]
    Loop {
        /// The chain's first descriptor.
        head: u16,
    },
    /// A chain has more segments than husk takes.
    #[error("descriptor chain {head} has more than {CHAIN_SEGMENTS_MAX} segments")]
    TooManySegments {
        /// The chain's first descriptor.
        head: u16,
    },
    /// A chain describes more than 4 GiB (virtio 1.3 §2.7.5.2).
    #[error("descriptor chain {head} describes more than 4 GiB")]
    TooLong {
        /// The chain's first descriptor.
        head: u16,
    },
    /// A descriptor of no bytes.
    #[error("descriptor at {address:#x} has no length")]
    ZeroLength {
        /// The guest address in the descriptor.
        address: u64,
    },
    /// A buffer or an indirect table that is not in guest memory.
    #[error("descriptor at {address:#x} with {len} bytes is outside guest memory")]
    OutsideMemory {
        /// The guest address in the descriptor.
        address: u64,
        /// The length in the descriptor.
        len: u32,
    },
    /// A device-readable descriptor behind a device-writable one (virtio 1.3 §2.7.4.2).
    #[error("descriptor chain {head} has a readable segment after a writable one")]
    ReadableAfterWritable {
        /// The chain's first descriptor.
        head: u16,
    },
    /// An indirect descriptor that was not negotiated, is nested, or has a successor (virtio 1.3 §2.7.5.3.1).
    #[error("indirect descriptor in chain {head} where none may be")]
    UnexpectedIndirect {
        /// The chain's first descriptor.
        head: u16,
    },
    /// An indirect table that is empty, not whole descriptors, or too large.
    #[error("indirect table of {len} bytes")]
    IndirectLength {
        /// The table's bytes.
        len: u32,
    },
}

/// A virtqueue whose configuration holds, between DRIVER_OK and reset.
#[derive(Debug)]
pub struct ReadyQueue {
    index: u16,
    size: u16,
    event_idx: bool,
    memory: Arc<GuestMemory>,
    map: MemoryMap,
    table: DescriptorTable,
    avail: Ring,
    used: Ring,
    /// The next available entry to pop.
    next_avail: u16,
    /// The driver's index, as last read.
    avail_index: u16,
    /// The next used entry to write.
    next_used: u16,
    /// The used index that the driver sees.
    shown: u16,
    /// The used index up to which the driver's wish for an interrupt was looked at.
    published: u16,
    /// There was a publication in this activation, so the driver's event index has been compared up to it.
    announced: bool,
    in_flight: u16,
    /// Heads of chains that wait to be popped again, oldest first.
    held: VecDeque<u16>,
    /// The driver was asked for silence by flag.
    silenced: bool,
    retired: bool,
}

impl ReadyQueue {
    /// Which of the device's queues this is.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The ring's entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The memory that the queue and its chains lie in.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Chains that were popped and not yet given back.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Where the device has come to. Complete only when nothing is in flight.
    pub fn state(&self) -> QueueState {
        let held = self.held.iter().copied().collect();
        QueueState { next_avail: self.next_avail, next_used: self.next_used, retired: self.retired, held }
    }

    /// Takes the oldest held chain, or else the next available one, into `chain`. False if there is none.
    ///
    /// # Errors
    /// The first broken rule. It retires the queue: from then on there is never another chain.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        if !self.retired && !self.held.is_empty() {
            return self.pop_held(chain).map(|()| true);
        }
        if self.retired || (self.next_avail == self.avail_index && !self.reload_avail_index()?) {
            return Ok(false);
        }
        if self.in_flight == self.size {
            return Err(self.retire(QueueError::TooManyInFlight { size: self.size }));
        }
        let head = self.avail_head(self.next_avail);
        if let Err(error) = Walk::new(&self.memory, &mut self.map, &self.table, head, chain).run() {
            return Err(self.retire(error));
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        self.in_flight += 1;
        self.prefetch_next();
        Ok(true)
    }

    /// Begins to fetch what the next two pops will read: the driver wrote it, so it is in another CPU's cache, and arrives while
    /// the device is busy with the chain that was popped.
    fn prefetch_next(&mut self) {
        let ahead = self.avail_index.wrapping_sub(self.next_avail);
        if ahead > 0 {
            let head = self.avail_head(self.next_avail);
            self.table.prefetch_buffer(&mut self.map, head);
        }
        if ahead > 1 {
            self.table.prefetch(self.avail_head(self.next_avail.wrapping_add(1)));
        }
    }

    fn avail_head(&self, index: u16) -> u16 {
        let entry = usize::from(index & (self.size - 1));
        self.avail.load_u16(ENTRIES + AVAIL_ENTRY_BYTES * entry, Ordering::Relaxed)
    }

    fn pop_held(&mut self, chain: &mut Chain) -> Result<(), QueueError> {
        let head = self.held[0];
        // The driver may have changed the chain meanwhile, which only harms itself: all of it is checked again.
        if let Err(error) = Walk::new(&self.memory, &mut self.map, &self.table, head, chain).run() {
            return Err(self.retire(error));
        }
        self.held.pop_front();
        self.in_flight += 1;
        Ok(())
    }

    /// Puts a popped chain aside, in flight no longer: it is popped again before any other, also after the queue was
    /// stopped and is continued from its state.
    ///
    /// # Panics
    /// If no chain is in flight, which is the device's bug.
    pub fn hold(&mut self, head: u16) {
        assert!(self.in_flight > 0, "a device holds a chain that it did not have");
        self.in_flight -= 1;
        self.held.push_back(head);
    }

    /// As [`Self::hold`], for the held chain that was popped last: it stays before the others.
    ///
    /// # Panics
    /// If no chain is in flight, which is the device's bug.
    pub fn hold_first(&mut self, head: u16) {
        assert!(self.in_flight > 0, "a device holds a chain that it did not have");
        self.in_flight -= 1;
        self.held.push_front(head);
    }

    /// Whether the next pop takes a chain that was popped before.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Takes the last `count` pops back, none of a held chain: those chains are available again, as if they had never been
    /// popped.
    ///
    /// # Panics
    /// If fewer are in flight, which is the device's bug.
    pub fn unpop(&mut self, count: u16) {
        assert!(count <= self.in_flight, "a device takes back {count} pops of {}", self.in_flight);
        self.in_flight -= count;
        self.next_avail = self.next_avail.wrapping_sub(count);
    }

    /// Gives a chain back, after `written` bytes were put into its writable part. The driver sees it only after
    /// [`Self::show`] or [`Self::publish`].
    ///
    /// # Panics
    /// If no chain is in flight, which is the device's bug.
    pub fn add_used(&mut self, head: u16, written: u32) {
        assert!(self.in_flight > 0, "a device gave back a chain that it did not have");
        self.in_flight -= 1;
        let entry = usize::from(self.next_used & (self.size - 1));
        self.used.store_u64(ENTRIES + USED_ENTRY_BYTES * entry, u64::from(head) | (u64::from(written) << 32));
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver all chains given back so far. Whether it wants an interrupt for them is left to
    /// [`Self::publish`], which must follow soon.
    pub fn show(&mut self) {
        if self.shown != self.next_used {
            self.shown = self.next_used;
            // Release: the entries, and the data behind them, come before the index. Partner: the driver's read barrier
            // between the index and the entries (virtio 1.3 §2.7.8.2 and §2.7.14).
            self.used.store_u16(INDEX, self.shown, Ordering::Release);
        }
    }

    /// Shows the driver all chains given back so far. True if it wants an interrupt for those since the last time.
    pub fn publish(&mut self) -> bool {
        self.show();
        let (old, new) = (self.published, self.shown);
        if old == new {
            return false;
        }
        self.published = new;
        self.needs_notification(old, new)
    }

    /// virtio 1.3 §2.7.7.2.
    fn needs_notification(&mut self, old: u16, new: u16) -> bool {
        // Our index is stored before the driver's wish is read. Partner: the driver's full barrier between its wish
        // and its re-check of our index (virtio 1.3 §2.7.7.1). One of the two sees the other.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return self.avail.load_u16(FLAGS, Ordering::Relaxed) & AVAIL_NO_INTERRUPT == 0;
        }
        let event = self.avail.load_u16(self.used_event(), Ordering::Relaxed);
        // What was compared before this activation is unknown: its first publication interrupts.
        let announced = std::mem::replace(&mut self.announced, true);
        !announced || new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// Asks the driver not to ring the doorbell, as far as it can be asked: with EVENT_IDX the event index that lies
    /// behind is enough.
    pub fn disable_notification(&mut self) {
        if !self.event_idx && !self.silenced {
            self.silenced = true;
            self.used.store_u16(FLAGS, USED_NO_NOTIFY, Ordering::Relaxed);
        }
    }

    /// Asks the driver not to ring the doorbell, also after [`Self::enable_notification`]. It may ring all the same.
    pub fn retract_notification(&mut self) {
        self.disable_notification();
        if self.event_idx && !self.retired {
            // An index that the driver has passed already (virtio 1.3 §2.7.10.1).
            self.used.store_u16(self.avail_event(), self.next_avail.wrapping_sub(1), Ordering::Relaxed);
        }
    }

    /// Whether the driver's index is ahead of ours, right or wrong.
    pub fn is_available(&self) -> bool {
        !self.retired && (self.is_holding() || self.avail.load_u16(INDEX, Ordering::Relaxed) != self.next_avail)
    }

    /// Asks the driver to ring the doorbell for the next chain. True if there is one already, whose doorbell may have
    /// been left out: pop again then, or it is lost.
    ///
    /// # Errors
    /// [`QueueError::IndexJump`], which retires the queue.
    pub fn enable_notification(&mut self) -> Result<bool, QueueError> {
        if self.retired {
            return Ok(false);
        }
        if self.event_idx {
            self.used.store_u16(self.avail_event(), self.next_avail, Ordering::Relaxed);
        } else if self.silenced {
            self.silenced = false;
            self.used.store_u16(FLAGS, 0, Ordering::Relaxed);
        }
        // Our wish is stored before the driver's index is read again. Partner: the driver's full barrier between its
        // index and its check of our wish (virtio 1.3 §2.7.13.4.1). One of the two sees the other.
        fence(Ordering::SeqCst);
        Ok(self.next_avail != self.avail_index || self.reload_avail_index()?)
    }

    /// Reads the driver's index. True if it is ahead of ours.
    fn reload_avail_index(&mut self) -> Result<bool, QueueError> {
        // Acquire: the entries and descriptors come after the index. Partner: the driver's write barrier before it
        // stores the index (virtio 1.3 §2.7.13.3).
        let index = self.avail.load_u16(INDEX, Ordering::Acquire);
        if index.wrapping_sub(self.next_avail) > self.size {
            return Err(self.retire(QueueError::IndexJump { index, next: self.next_avail, size: self.size }));
        }
        self.avail_index = index;
        Ok(index != self.next_avail)
    }

    fn retire(&mut self, error: QueueError) -> QueueError {
        self.retired = true;
        error
    }

    /// The driver's event index lies behind the available ring's entries.
    fn used_event(&self) -> usize {
        ENTRIES + AVAIL_ENTRY_BYTES * usize::from(self.size)
    }

    /// Our event index lies behind the used ring's entries.
    fn avail_event(&self) -> usize {
        ENTRIES + USED_ENTRY_BYTES * usize::from(self.size)
    }
}
