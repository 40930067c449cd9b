//! Where guest memory is mapped, as plain numbers: looked up when a queue becomes ready, and then for every buffer.
//!
//! It saves the walk through the memory's own types, which costs as much again as the rest of a descriptor (measured:
//! 33 against 19 ns for a chain of three). It is valid as long as the memory that it was made from lives.

use arch::GuestMemory;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

/// All mappings of a guest's memory.
#[derive(Debug)]
pub(super) struct MemoryMap {
    mappings: Box<[MappedRange]>,
    /// The mapping of the last buffer, which mostly is that of the next.
    recent: usize,
}

/// A range of guest memory in one mapping. `end` is exclusive, and never wraps.
#[derive(Clone, Copy, Debug)]
struct MappedRange {
    start: u64,
    end: u64,
    /// The address here of `start`, with exposed provenance.
    host: usize,
}

/// Where a guest address is mapped, and how many bytes there are from it to the end of the mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) host: usize,
    pub(super) room: u64,
}

impl MemoryMap {
    pub(super) fn new(memory: &GuestMemory) -> Self {
        let mappings = memory.iter().map(|region| {
            let start = region.start_addr().raw_value();
            let mapping = region.as_volatile_slice().expect("all of a region is mapped");
            let len = u64::try_from(mapping.len()).expect("64 bits fit");
            let host = mapping.ptr_guard_mut().as_ptr().expose_provenance();
            MappedRange { start, end: start.checked_add(len).expect("a region ends below 2^64"), host }
        });
        Self { mappings: mappings.collect(), recent: 0 }
    }

    /// None if `address` is no guest memory.
    pub(super) fn find(&mut self, address: u64) -> Option<Mapped> {
        let inside = |range: &MappedRange| range.start <= address && address < range.end;
        let mut range = self.mappings.get(self.recent).copied()?;
        if !inside(&range) {
            self.recent = self.mappings.iter().position(inside)?;
            range = self.mappings[self.recent];
        }
        let offset = usize::try_from(address - range.start).expect("64 bits fit");
        Some(Mapped { host: range.host + offset, room: range.end - address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn every_address_is_found_where_the_memory_has_it() {
        let len = 1 << 16;
        let ranges = [(0, len), (1 << 16, len), (1 << 32, len)].map(|(start, len)| (GuestAddress(start), len));
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        let mut map = MemoryMap::new(&memory);
        for address in [0, 0xffff, 0x1_0000, 5, 0x1_ffff, 1 << 32, 0x1_8000, (1 << 32) + 0xffff] {
            let found = map.find(address).unwrap();
            let pointer = memory.get_host_address(GuestAddress(address)).unwrap();
            assert_eq!(found.host, pointer.expose_provenance());
            assert_eq!(found.room, 0x1_0000 - address % 0x1_0000);
        }
        for address in [0x2_0000, (1 << 32) - 1, (1 << 32) + 0x1_0000, u64::MAX] {
            assert_eq!(map.find(address), None, "{address:#x}");
        }
    }
}
