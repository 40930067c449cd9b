//! A piece of guest memory that is looked up once and then used for as long as the queue lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use arch::GuestMemory;
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MmapRegion, VolatileMemory, VolatileSlice,
};

type Region = <GuestMemory as GuestMemoryBackend>::R;
type Dirty = <Region as GuestMemoryRegion>::B;
pub(super) type Mapping = MmapRegion<Dirty>;

/// `len` bytes of guest memory in one mapping, which they keep alive.
///
/// A ring never spans two mappings, even where their guest addresses meet: guests allocate rings within blocks that
/// are smaller than the alignment of a memory region.
#[derive(Debug)]
pub(super) struct Ring {
    mapping: Arc<Mapping>,
    offset: usize,
    len: usize,
}

const INSIDE: &str = "the offsets of a queue's structures lie inside them, aligned, as Ring::new proved";

impl Ring {
    /// None if the range is not inside one mapping, or not aligned to `align`, which is a power of two.
    pub(super) fn new(memory: &GuestMemory, address: u64, len: usize, align: u64) -> Option<Self> {
        if address & (align - 1) != 0 {
            return None;
        }
        let (region, start) = memory.to_region_addr(GuestAddress(address))?;
        let offset = usize::try_from(start.raw_value()).ok()?;
        let mapping = region.get_mmap();
        (offset.checked_add(len)? <= mapping.size()).then_some(Self { mapping, offset, len })
    }

    pub(super) fn slice(&self, offset: usize, len: usize) -> VolatileSlice<'_, vm_memory::bitmap::BS<'_, Dirty>> {
        debug_assert!(offset + len <= self.len, "{offset} + {len} in {}", self.len);
        self.mapping.get_slice(self.offset + offset, len).expect(INSIDE)
    }

    pub(super) fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        u16::from_le(self.atomic(offset).load(order))
    }

    pub(super) fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        self.atomic(offset).store(value.to_le(), order);
        self.mapping.bitmap().mark_dirty(self.offset + offset, size_of::<u16>());
    }

    /// Not atomic: the index that is published afterwards orders it.
    pub(super) fn store_u64(&self, offset: usize, value: u64) {
        self.slice(offset, size_of::<u64>()).get_ref(0).expect(INSIDE).store(value.to_le());
    }

    fn atomic(&self, offset: usize) -> &AtomicU16 {
        debug_assert!(offset + size_of::<u16>() <= self.len, "{offset} in {}", self.len);
        self.mapping.get_atomic_ref(self.offset + offset).expect(INSIDE)
    }
}
