//! The driver's side of a split virtqueue (virtio 1.3 §2.7).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use arch::GuestMemory;
use vm_memory::{Address, Bytes, GuestAddress};

use crate::virtio::abi::{AVAIL_NO_INTERRUPT, USED_NO_NOTIFY, descriptor};
use crate::virtio::queue::QueueConfig;

const DESCRIPTOR_BYTES: u64 = 16;
const MAPPED: &str = "the rings of a test lie in guest memory";

/// A descriptor as a driver writes it, right or wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest address of the buffer.
    pub address: u64,
    /// Its bytes.
    pub len: u32,
    /// NEXT, WRITE, INDIRECT.
    pub flags: u16,
    /// The next descriptor.
    pub next: u16,
}

impl Descriptor {
    /// The chain goes on.
    pub const NEXT: u16 = descriptor::NEXT;
    /// The device writes.
    pub const WRITE: u16 = descriptor::WRITE;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = descriptor::INDIRECT;

    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
        Self {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }
}

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// The device reads so many bytes.
    Readable(GuestAddress, u32),
    /// The device writes so many bytes.
    Writable(GuestAddress, u32),
}

impl Buffer {
    pub(crate) fn descriptor(self) -> Descriptor {
        match self {
            Self::Readable(address, len) => Descriptor { address: address.0, len, ..Descriptor::default() },
            Self::Writable(address, len) => {
                Descriptor { address: address.0, len, flags: Descriptor::WRITE, ..Descriptor::default() }
            }
        }
    }
}

/// A chain that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain.
    pub head: u16,
    /// What the device says that it wrote.
    pub written: u32,
}

/// A queue in guest memory, and the driver's bookkeeping.
#[derive(Debug)]
pub struct DriverRing {
    memory: Arc<GuestMemory>,
    size: u16,
    event_idx: bool,
    /// Guest address of the descriptor table.
    pub table: GuestAddress,
    /// Guest address of the available ring.
    pub avail: GuestAddress,
    /// Guest address of the used ring.
    pub used: GuestAddress,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
    avail_index: u16,
    /// The index that the device was last told of by a doorbell.
    kicked_index: u16,
    used_index: u16,
}

impl DriverRing {
    /// Bytes that a ring of `size` entries takes.
    pub fn bytes(size: u16) -> u64 {
        // Each part is aligned to 16.
        u64::from(size) * (DESCRIPTOR_BYTES + 2 + 8) + 3 * 16
    }

    /// An empty queue of `size` entries at `address`, which is aligned to 16.
    pub fn new(memory: Arc<GuestMemory>, address: GuestAddress, size: u16, event_idx: bool) -> Self {
        let entries = u64::from(size);
        let avail = address.unchecked_add(entries * DESCRIPTOR_BYTES);
        let used = avail.unchecked_add((6 + entries * 2).next_multiple_of(16));
        let ring = Self {
            memory,
            size,
            event_idx,
            table: address,
            avail,
            used,
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
            avail_index: 0,
            kicked_index: 0,
            used_index: 0,
        };
        let zeroes = vec![0; usize::try_from(Self::bytes(size)).expect("64 bits fit")];
        ring.memory.write_slice(&zeroes, address).expect(MAPPED);
        ring
    }

    /// How a driver describes the queue to the device.
    pub fn config(&self, index: u16, size_max: u16) -> QueueConfig {
        QueueConfig {
            size: self.size,
            ready: true,
            descriptor_table: self.table.0,
            avail_ring: self.avail.0,
            used_ring: self.used.0,
            ..QueueConfig::new(index, size_max)
        }
    }

    /// Its entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Descriptors that are in no chain.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Makes a chain of `buffers` available. Returns its head.
    ///
    /// # Panics
    /// If there are no buffers, or not enough free descriptors.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let indices: Vec<u16> = buffers.iter().map(|_| self.take()).collect();
        for (at, buffer) in buffers.iter().enumerate() {
            let mut descriptor = buffer.descriptor();
            if let Some(next) = indices.get(at + 1) {
                descriptor.flags |= Descriptor::NEXT;
                descriptor.next = *next;
            }
            self.write_descriptor(indices[at], descriptor);
        }
        let head = *indices.first().expect("a chain has a buffer");
        self.chains.insert(head, indices);
        self.make_available(head);
        head
    }

    /// Makes a chain of `buffers` available through an indirect table at `table`.
    ///
    /// # Panics
    /// As [`Self::add`].
    pub fn add_indirect(&mut self, table: GuestAddress, buffers: &[Buffer]) -> u16 {
        let mut address = table;
        for (at, buffer) in buffers.iter().enumerate() {
            let mut descriptor = buffer.descriptor();
            if at + 1 < buffers.len() {
                descriptor.flags |= Descriptor::NEXT;
                descriptor.next = u16::try_from(at + 1).expect("a short table");
            }
            self.memory.write_slice(&descriptor.to_bytes(), address).expect(MAPPED);
            address = address.unchecked_add(DESCRIPTOR_BYTES);
        }
        let len = u32::try_from(address.0 - table.0).expect("a short table");
        let head = self.take();
        let outer = Descriptor { address: table.0, len, flags: Descriptor::INDIRECT, next: 0 };
        self.write_descriptor(head, outer);
        self.chains.insert(head, vec![head]);
        self.make_available(head);
        head
    }

    /// Writes any descriptor anywhere in the table.
    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        self.write_table_entry(self.table, index, descriptor);
    }

    /// Writes any descriptor into a table that begins at `table`.
    pub fn write_table_entry(&self, table: GuestAddress, index: u16, descriptor: Descriptor) {
        let address = table.unchecked_add(u64::from(index) * DESCRIPTOR_BYTES);
        self.memory.write_slice(&descriptor.to_bytes(), address).expect(MAPPED);
    }

    /// Puts any head into the available ring and publishes it.
    pub fn make_available(&mut self, head: u16) {
        let entry = u64::from(self.avail_index % self.size);
        self.memory.write_obj(head.to_le(), self.avail.unchecked_add(4 + 2 * entry)).expect(MAPPED);
        self.publish_avail_index(self.avail_index.wrapping_add(1));
    }

    /// Publishes any available index.
    pub fn publish_avail_index(&mut self, index: u16) {
        self.avail_index = index;
        self.memory.store(index.to_le(), self.avail.unchecked_add(2), Ordering::Release).expect(MAPPED);
    }

    /// Whether the device wants a doorbell for what was made available since the last call that said so
    /// (virtio 1.3 §2.7.13.4).
    pub fn needs_kick(&mut self) -> bool {
        // Partner: the device's fence in `enable_notification`.
        fence(Ordering::SeqCst);
        let (old, new) = (std::mem::replace(&mut self.kicked_index, self.avail_index), self.avail_index);
        if self.event_idx {
            let event = self.load(self.used.unchecked_add(4 + 8 * u64::from(self.size)));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            old != new && self.load(self.used) & USED_NO_NOTIFY == 0
        }
    }

    /// The event index that the device published.
    pub fn avail_event(&self) -> u16 {
        self.load(self.used.unchecked_add(4 + 8 * u64::from(self.size)))
    }

    /// Asks for an interrupt when the device's used index passes `event`.
    pub fn set_used_event(&self, event: u16) {
        let address = self.avail.unchecked_add(4 + 2 * u64::from(self.size));
        self.memory.store(event.to_le(), address, Ordering::SeqCst).expect(MAPPED);
    }

    /// Asks for an interrupt with the next used chain.
    pub fn want_interrupt(&self) {
        self.want_interrupt_at(self.used_index.wrapping_add(1));
    }

    /// Asks for an interrupt once the device's used index is `index`, which it is not yet.
    pub fn want_interrupt_at(&self, index: u16) {
        if self.event_idx {
            self.set_used_event(index.wrapping_sub(1));
        } else {
            self.memory.store(0_u16, self.avail, Ordering::SeqCst).expect(MAPPED);
        }
        // Partner: the device's fence in `needs_notification`.
        fence(Ordering::SeqCst);
    }

    /// Asks for no interrupts, where flags can.
    pub fn refuse_interrupts(&self) {
        self.memory.store(AVAIL_NO_INTERRUPT.to_le(), self.avail, Ordering::SeqCst).expect(MAPPED);
    }

    /// The device's used index.
    pub fn device_used_index(&self) -> u16 {
        u16::from_le(self.memory.load(self.used.unchecked_add(2), Ordering::Acquire).expect(MAPPED))
    }

    /// The next chain that came back, if one did.
    pub fn take_used(&mut self) -> Option<Used> {
        if self.device_used_index() == self.used_index {
            return None;
        }
        let entry = u64::from(self.used_index % self.size);
        let element: u64 = self.memory.read_obj(self.used.unchecked_add(4 + 8 * entry)).expect(MAPPED);
        let [h0, h1, h2, h3, written @ ..] = element.to_le_bytes();
        let head = u32::from_le_bytes([h0, h1, h2, h3]);
        let head = u16::try_from(head).expect("the device gives back a head");
        self.used_index = self.used_index.wrapping_add(1);
        if let Some(descriptors) = self.chains.remove(&head) {
            self.free.extend(descriptors);
        }
        Some(Used { head, written: u32::from_le_bytes(written) })
    }

    fn take(&mut self) -> u16 {
        self.free.pop().expect("the driver has a free descriptor")
    }

    fn load(&self, address: GuestAddress) -> u16 {
        u16::from_le(self.memory.load(address, Ordering::Relaxed).expect(MAPPED))
    }
}
