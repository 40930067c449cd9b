//! Guest memory in memory file order: its regions back to back, by address.

use std::ops::Range;

use arch::GuestMemory;
use arch::memory::{DirtyBitmap, GuestRegionMmap, VolatileSlice};
use vm_memory::bitmap::BS;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// Bytes of all of it.
pub(crate) fn bytes(memory: &GuestMemory) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

/// The regions, each behind its first byte's offset.
pub(crate) fn regions(memory: &GuestMemory) -> impl Iterator<Item = (u64, &GuestRegionMmap)> {
    memory.iter().scan(0, |next, region| {
        let offset = *next;
        *next += region.len();
        Some((offset, region))
    })
}

/// The bytes of a range, which may go through several regions: each part behind its offset.
pub(crate) fn slices(
    memory: &GuestMemory,
    range: Range<u64>,
) -> impl Iterator<Item = (u64, VolatileSlice<'_, BS<'_, DirtyBitmap>>)> {
    regions(memory).filter_map(move |(offset, region)| {
        let (start, end) = (range.start.max(offset), range.end.min(offset + region.len()));
        let bytes = usize::try_from(end.checked_sub(start)?).expect("what is mapped here has a length of 64 bits");
        let part = region.get_slice(MemoryRegionAddress(start - offset), bytes).expect("the part is within the region");
        Some((start, part)).filter(|_| bytes > 0)
    })
}

/// What of a range is in `held`, ranges in order that do not overlap.
pub(crate) fn overlaps(held: &[Range<u64>], range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let first = held.partition_point(|part| part.end <= range.start);
    let within = held[first..].iter().take_while(move |part| part.start < range.end);
    within.map(move |part| part.start.max(range.start)..part.end.min(range.end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::GuestAddress;

    #[test]
    fn a_range_is_the_parts_of_the_regions_that_it_goes_through() {
        let ranges = [(0, 0x2000), (1 << 32, 0x1000), (2 << 32, 0x3000)];
        let memory = GuestMemory::from_ranges(&ranges.map(|(start, len)| (GuestAddress(start), len))).unwrap();
        assert_eq!(bytes(&memory), 0x6000);
        assert_eq!(regions(&memory).map(|(offset, _)| offset).collect::<Vec<_>>(), [0, 0x2000, 0x3000]);
        for (range, parts) in [
            (0..0x6000, &[(0, 0x2000), (0x2000, 0x1000), (0x3000, 0x3000)][..]),
            (0x1800..0x3001, &[(0x1800, 0x800), (0x2000, 0x1000), (0x3000, 1)]),
            (0x2000..0x3000, &[(0x2000, 0x1000)]),
            (0x1000..0x1000, &[]),
            (0x5fff..0x7000, &[(0x5fff, 1)]),
            (0x6000..0x7000, &[]),
        ] {
            let found: Vec<_> = slices(&memory, range).map(|(offset, part)| (offset, part.len())).collect();
            assert_eq!(found, parts);
        }
    }

    #[test]
    fn of_a_range_there_is_what_is_held_of_it() {
        let held = [0..10, 20..30, 30..40, 50..60];
        for (range, parts) in [
            (0..60, "0..10 20..30 30..40 50..60"),
            (5..35, "5..10 20..30 30..35"),
            (10..20, ""),
            (55..70, "55..60"),
            (60..70, ""),
            (22..23, "22..23"),
        ] {
            let found: Vec<_> = overlaps(&held, range).map(|part| format!("{part:?}")).collect();
            assert_eq!(found.join(" "), parts);
        }
    }
}
