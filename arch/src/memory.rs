//! Guest memory. Everyone names it by the alias here, so that what tracks its writes can change in one place.

pub use vm_memory::{
    Address, ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestRegionMmap,
    Le16, Le32, Le64, MmapRegion, Permissions, ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile,
};

/// The guest's memory: every region that the guest can use as RAM, mapped into this process.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
