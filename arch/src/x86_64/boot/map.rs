//! The guest's memory map as kernels are told it: one list, from which both boot protocols write their own form.

use crate::layout::{
    EBDA_START, HIGH_RAM_START, KVM_IDENTITY_MAP, KVM_PAGES_SIZE, LAPIC_SIZE, LAPIC_START, MMIO_HOLE_START,
};
use crate::memory::{Address, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion};

/// What a range of the map is. The numbers are those of e820 and of PVH alike (ACPI 6.5 §15.1 table 15.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    Ram = 1,
    Reserved = 2,
}

impl Kind {
    pub(super) const fn number(self) -> u32 {
        self as u32
    }
}

/// One range of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) size: u64,
    pub(super) kind: Kind,
}

impl Range {
    fn new(start: u64, end: u64, kind: Kind) -> Option<Self> {
        (start < end).then(|| Self { start, size: end - start, kind })
    }
}

/// The map, in order of address, without overlaps.
pub(super) fn ranges(memory: &GuestMemory) -> Vec<Range> {
    let spans = spans(memory);
    let low_end = spans.first().filter(|span| span.0 == 0).map_or(0, |span| span.1);
    let mut map = Vec::with_capacity(spans.len() + 6);
    map.extend(Range::new(0, low_end.min(EBDA_START.0), Kind::Ram));
    // The tables here are named by no other entry: reserved, so that no kernel takes them for free memory.
    map.extend(Range::new(EBDA_START.0, HIGH_RAM_START.0, Kind::Reserved));
    map.extend(Range::new(HIGH_RAM_START.0, low_end, Kind::Ram));
    let above = spans.iter().filter(|span| span.0 != 0);
    map.extend(above.clone().filter(|span| span.0 < MMIO_HOLE_START.0).filter_map(ram));
    // A kernel that places PCI windows or memory itself must not do so on these.
    map.extend(Range::new(LAPIC_START.0, LAPIC_START.0 + LAPIC_SIZE, Kind::Reserved));
    map.extend(Range::new(KVM_IDENTITY_MAP.0, KVM_IDENTITY_MAP.0 + KVM_PAGES_SIZE, Kind::Reserved));
    map.extend(above.filter(|span| span.0 >= MMIO_HOLE_START.0).filter_map(ram));
    map
}

/// The end of the memory that starts at 0: where a kernel and its initrd can be. Never above the MMIO hole's start.
pub(super) fn low_memory_end(memory: &GuestMemory) -> u64 {
    spans(memory).first().filter(|span| span.0 == 0).map_or(0, |span| span.1.min(MMIO_HOLE_START.0))
}

fn ram(&(start, end): &(u64, u64)) -> Option<Range> {
    Range::new(start, end, Kind::Ram)
}

/// First address and end of each stretch of guest memory. Adjoining regions, as NUMA nodes are, make one.
fn spans(memory: &GuestMemory) -> Vec<(u64, u64)> {
    let mut spans: Vec<(u64, u64)> = Vec::with_capacity(memory.num_regions());
    for region in memory.iter() {
        let GuestAddress(start) = region.start_addr();
        let end = region.last_addr().raw_value().saturating_add(1);
        match spans.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => spans.push((start, end)),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn map(regions: &[(u64, usize)]) -> Vec<(u64, u64, Kind)> {
        let regions: Vec<_> = regions.iter().map(|&(start, len)| (GuestAddress(start), len)).collect();
        let memory = GuestMemory::from_ranges(&regions).unwrap();
        ranges(&memory).iter().map(|r| (r.start, r.start + r.size, r.kind)).collect()
    }

    #[test]
    fn low_memory_loses_the_bios_area_and_the_hole_names_the_pages_in_use() {
        let expected = [
            (0, 0x9_fc00, Kind::Ram),
            (0x9_fc00, 0x10_0000, Kind::Reserved),
            (0x10_0000, 0x200_0000, Kind::Ram),
            (0xfee0_0000, 0xfee0_1000, Kind::Reserved),
            (0xfeff_c000, 0xff00_0000, Kind::Reserved),
        ];
        assert_eq!(map(&[(0, 32 * MIB)]), expected);
    }

    #[test]
    fn adjoining_regions_make_one_range_and_memory_above_4_gib_comes_last() {
        let whole = map(&[(0, 32 * MIB), (0x1_0000_0000, 2 * MIB)]);
        assert_eq!(map(&[(0, 16 * MIB), (16 << 20, 16 * MIB), (0x1_0000_0000, 2 * MIB)]), whole);
        assert_eq!(whole.last(), Some(&(0x1_0000_0000, 0x1_0020_0000, Kind::Ram)));
        assert!(whole.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    }

    #[test]
    fn a_megabyte_of_memory_has_no_range_above_it() {
        let ram: Vec<_> = map(&[(0, MIB)]).into_iter().filter(|r| r.2 == Kind::Ram).collect();
        assert_eq!(ram, [(0, 0x9_fc00, Kind::Ram)]);
    }
}
