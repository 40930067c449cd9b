//! Guest memory. Everyone names it by the alias here, so that what tracks its writes can change in one place.

mod dirty;

pub use dirty::{DIRTY_PAGE_BYTES, DirtyBitmap, DirtySlice};
pub use vm_memory::{
    Address, ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, Le16, Le32,
    Le64, Permissions, ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile,
};

/// The guest's memory: every region that the guest can use as RAM, mapped into this process.
pub type GuestMemory = vm_memory::GuestMemoryMmap<DirtyBitmap>;

/// One region of [`GuestMemory`].
pub type GuestRegionMmap = vm_memory::GuestRegionMmap<DirtyBitmap>;

/// The mapping of one region of [`GuestMemory`].
pub type MmapRegion = vm_memory::MmapRegion<DirtyBitmap>;

/// Where a region begins in this process.
#[must_use]
pub fn host_address(region: &GuestRegionMmap) -> usize {
    region.as_ptr().expose_provenance()
}

/// Whether writes to `memory` are marked, at next to no cost: for those who would have to look up what they wrote. Those who
/// find this off are those who find a mark off, for whom [`DirtyBitmap`] says what holds.
#[inline]
pub fn is_tracking(memory: &GuestMemory) -> bool {
    memory.iter().next().is_some_and(|region| bitmap(region).is_tracking())
}

/// The bitmap of a region, as its owner sees it.
#[inline]
pub fn bitmap(region: &GuestRegionMmap) -> &DirtyBitmap {
    // The region's own method of this name gives a slice.
    let mapping: &MmapRegion = region;
    mapping.bitmap()
}
