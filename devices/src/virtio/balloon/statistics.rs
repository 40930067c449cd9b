//! What a driver tells of its memory: pairs of a 16-bit tag and a 64-bit value, packed (virtio 1.3 §5.5.6.3).

use arch::GuestMemory;
use vm_memory::Bytes;

use crate::virtio::queue::Segment;

/// Bytes of a pair.
const PAIR_BYTES: usize = 10;
/// Pairs that are looked at; there are 16 tags.
const PAIRS_MAX: usize = 32;

/// Tags that there are.
pub(super) const TAGS: usize = 16;

/// The names of the tags, in the order of their numbers, as Firecracker's API has them.
const NAMES: [&str; TAGS] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kill",
    "alloc_stall",
    "async_scan",
    "direct_scan",
    "async_reclaim",
    "direct_reclaim",
];

/// What a driver told, as far as it told it. It may be any number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics(pub(super) [Option<u64>; TAGS]);

impl Statistics {
    /// What was told, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.into_iter().zip(self.0).filter_map(|(name, value)| Some((name, value?)))
    }

    /// Reads the pairs at the start of a chain. Unknown tags and what is cut short are left out.
    pub(super) fn read(memory: &GuestMemory, segments: &[Segment]) -> Self {
        let mut bytes = [0; PAIR_BYTES * PAIRS_MAX];
        let mut filled = 0;
        for segment in segments {
            let room = u32::try_from(bytes.len() - filled).expect("small");
            let Some(part) = segment.part(0, room) else { break };
            let end = filled + usize::try_from(part.len()).expect("32 bits fit");
            memory.read_slice(&mut bytes[filled..end], part.address()).expect("the chain was checked to be in memory");
            filled = end;
        }
        let mut statistics = Self::default();
        for pair in bytes[..filled].chunks_exact(PAIR_BYTES) {
            let (tag, value) = pair.split_at(2);
            let tag = u16::from_le_bytes(tag.try_into().expect("two bytes"));
            if let Some(place) = statistics.0.get_mut(usize::from(tag)) {
                *place = Some(u64::from_le_bytes(value.try_into().expect("eight bytes")));
            }
        }
        statistics
    }
}
