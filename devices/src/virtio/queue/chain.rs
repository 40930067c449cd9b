//! Descriptor chains: the walk through a driver's descriptors, and what comes of it.
//!
//! Each descriptor is copied once; everything after that is about the copy.

use arch::GuestMemory;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, VolatileMemory, VolatileSlice};

use super::map::{Mapped, MemoryMap};
use super::ring::Ring;
use super::{QUEUE_SIZE_MAX, QueueError};
use crate::virtio::abi::descriptor::{INDIRECT, NEXT, WRITE};

/// Bytes of a descriptor (virtio 1.3 §2.7.5).
pub(super) const DESCRIPTOR_BYTES: usize = 16;

/// The most segments of a chain: one system call takes 1024 (`IOV_MAX`), and a device's header and status come
/// beside the data.
pub const CHAIN_SEGMENTS_MAX: usize = 1026;

/// Some bytes of guest memory, checked to be in one mapping of it.
///
/// The bytes stay the guest's: it may change them at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    address: GuestAddress,
    len: u32,
    /// Where the bytes are mapped here, as an exposed address. It holds while the memory that it came from lives.
    host: usize,
}

impl Segment {
    /// Where the guest sees the bytes.
    pub fn address(&self) -> GuestAddress {
        self.address
    }

    /// How many bytes; never 0 in a chain.
    #[expect(clippy::len_without_is_empty, reason = "a segment of a chain is never empty")]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Where this process sees the bytes, with exposed provenance.
    pub(crate) fn host(&self) -> usize {
        self.host
    }

    /// The part from `skip` on, of at most `len` bytes. None if it is empty.
    pub fn part(&self, skip: u32, len: u32) -> Option<Self> {
        let rest = self.len.checked_sub(skip)?.min(len);
        let host = self.host + usize::try_from(skip).expect("32 bits fit");
        // Neither addition overflows: all of the segment is mapped.
        (rest > 0).then(|| Self { address: self.address.unchecked_add(skip.into()), len: rest, host })
    }
}

/// A chain of segments, readable ones first. Made once for each queue and reused.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    readable_segments: usize,
    readable_len: u32,
    writable_len: u32,
}

impl Chain {
    /// An empty chain for [`super::ReadyQueue::pop`] to fill. It grows to what the driver uses, at most to
    /// [`CHAIN_SEGMENTS_MAX`].
    pub fn new() -> Self {
        Self::default()
    }

    /// What [`super::ReadyQueue::add_used`] gives back.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver wrote for the device.
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable_segments]
    }

    /// What the device may write into.
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable_segments..]
    }

    /// Bytes in [`Self::readable`].
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes in [`Self::writable`].
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    fn restart(&mut self, head: u16) {
        self.head = head;
        self.segments.clear();
        self.readable_segments = 0;
        self.readable_len = 0;
        self.writable_len = 0;
    }
}

/// A queue's own table of descriptors.
#[derive(Debug)]
pub(super) struct DescriptorTable {
    ring: Ring,
    len: u16,
    /// Indirect descriptors were negotiated.
    indirect: bool,
}

impl DescriptorTable {
    pub(super) fn new(ring: Ring, len: u16, indirect: bool) -> Self {
        Self { ring, len, indirect }
    }

    /// Begins to fetch a chain's first descriptor. The driver's index may be anything.
    pub(super) fn prefetch(&self, head: u16) {
        if let Some(descriptor) = self.descriptor(head) {
            arch::prefetch(descriptor.ptr_guard().as_ptr().expose_provenance());
        }
    }

    /// Begins to fetch what a chain's first descriptor points to. The address that is read for it is a hint and nothing else:
    /// the walk reads its own and checks it.
    pub(super) fn prefetch_buffer(&self, map: &mut MemoryMap, head: u16) {
        if let Some(descriptor) = self.descriptor(head)
            && let Some(Mapped { host, .. }) = map.find(Descriptor::load(&descriptor, 0).address)
        {
            arch::prefetch(host);
        }
    }

    fn descriptor(&self, index: u16) -> Option<VolatileSlice<'_, impl BitmapSlice>> {
        let offset = usize::from(index) * DESCRIPTOR_BYTES;
        (index < self.len).then(|| self.ring.slice(offset, DESCRIPTOR_BYTES))
    }
}

/// A descriptor, copied out of guest memory.
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// One copy of 16 bytes, aligned or not.
    fn load<B: BitmapSlice>(table: &VolatileSlice<'_, B>, index: usize) -> Self {
        let bytes =
            table.get_ref::<[u64; 2]>(index * DESCRIPTOR_BYTES).expect("the walk stays inside the table").load();
        let [address, rest] = bytes.map(u64::from_le);
        let [l0, l1, l2, l3, f0, f1, n0, n1] = rest.to_le_bytes();
        Self {
            address,
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }
}

/// One walk through one chain.
pub(super) struct Walk<'a> {
    memory: &'a GuestMemory,
    map: &'a mut MemoryMap,
    table: &'a DescriptorTable,
    chain: &'a mut Chain,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        memory: &'a GuestMemory,
        map: &'a mut MemoryMap,
        table: &'a DescriptorTable,
        head: u16,
        chain: &'a mut Chain,
    ) -> Self {
        chain.restart(head);
        Self { memory, map, table, chain }
    }

    pub(super) fn run(mut self) -> Result<(), QueueError> {
        let len = usize::from(self.table.len);
        let slice = self.table.ring.slice(0, len * DESCRIPTOR_BYTES);
        let last = self.follow(&slice, self.table.len, self.chain.head)?;
        match last {
            None => Ok(()),
            Some(indirect) => self.indirect(indirect),
        }
    }

    /// Follows the chain through one table. Returns the indirect descriptor that ends it, if one does.
    fn follow<B: BitmapSlice>(
        &mut self,
        table: &VolatileSlice<'_, B>,
        len: u16,
        first: u16,
    ) -> Result<Option<Descriptor>, QueueError> {
        let (mut index, mut visited) = (first, 0);
        loop {
            if index >= len {
                return Err(QueueError::DescriptorIndex { index, len: len.into() });
            }
            // A chain without a loop visits no entry twice.
            if visited == len {
                return Err(QueueError::Loop { head: self.chain.head });
            }
            visited += 1;
            let descriptor = Descriptor::load(table, usize::from(index));
            if descriptor.flags & INDIRECT != 0 {
                // virtio 1.3 §2.7.5.3.1: negotiated, and the last of its chain.
                if !self.table.indirect || descriptor.flags & NEXT != 0 {
                    return Err(QueueError::UnexpectedIndirect { head: self.chain.head });
                }
                return Ok(Some(descriptor));
            }
            self.push(descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(None);
            }
            index = descriptor.next;
        }
    }

    /// virtio 1.3 §2.7.5.3.2: the write flag of the descriptor that refers to the table means nothing.
    fn indirect(&mut self, outer: Descriptor) -> Result<(), QueueError> {
        let Descriptor { address, len: bytes, .. } = outer;
        let size = usize::try_from(bytes).expect("32 bits fit");
        let len = u16::try_from(size / DESCRIPTOR_BYTES).unwrap_or(u16::MAX);
        if len == 0 || len > QUEUE_SIZE_MAX || !size.is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(QueueError::IndirectLength { len: bytes });
        }
        let table = self
            .memory
            .get_slice(GuestAddress(address), size)
            .map_err(|_| QueueError::OutsideMemory { address, len: bytes })?;
        match self.follow(&table, len, 0)? {
            None => Ok(()),
            Some(_nested) => Err(QueueError::UnexpectedIndirect { head: self.chain.head }),
        }
    }

    fn push(&mut self, descriptor: Descriptor) -> Result<(), QueueError> {
        let Descriptor { address, len, flags, .. } = descriptor;
        let head = self.chain.head;
        if len == 0 {
            return Err(QueueError::ZeroLength { address });
        }
        let writable = flags & WRITE != 0;
        let (mine, other) = (self.chain.readable_len, self.chain.writable_len);
        mine.checked_add(other).and_then(|sum| sum.checked_add(len)).ok_or(QueueError::TooLong { head })?;
        if !writable && other > 0 {
            return Err(QueueError::ReadableAfterWritable { head });
        }
        let pushed = self.push_mapped(address, len)?;
        if writable {
            self.chain.writable_len += len;
        } else {
            self.chain.readable_len += len;
            self.chain.readable_segments += pushed;
        }
        Ok(())
    }

    /// The one lookup of a buffer: from here on its segments are known to be guest memory. A buffer that spans
    /// mappings becomes a segment in each. Returns how many.
    fn push_mapped(&mut self, address: u64, len: u32) -> Result<usize, QueueError> {
        let outside = QueueError::OutsideMemory { address, len };
        let (mut next, mut left, mut pushed) = (address, len, 0);
        while left > 0 {
            if self.chain.segments.len() == CHAIN_SEGMENTS_MAX {
                return Err(QueueError::TooManySegments { head: self.chain.head });
            }
            let Mapped { host, room } = self.map.find(next).ok_or(outside)?;
            let here = u32::try_from(room).unwrap_or(u32::MAX).min(left);
            self.chain.segments.push(Segment { address: GuestAddress(next), len: here, host });
            pushed += 1;
            left -= here;
            // The end of a mapping does not wrap.
            next += u64::from(here);
        }
        Ok(pushed)
    }
}
