//! Where guest memory is mapped in this process, for a signal handler to look up: no lock, no allocation.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arch::GuestMemory;
use arch::memory::{GuestRegionMmap, host_address};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// As many as a machine of 64 nodes has twice over, as when one follows another. What finds no place is not looked up.
const MAPPINGS_MAX: usize = 256;

static MAPPINGS: [Mapping; MAPPINGS_MAX] = [const { Mapping::free() }; MAPPINGS_MAX];

/// A range of this process's addresses.
struct Mapping {
    taken: AtomicBool,
    start: AtomicUsize,
    /// Exclusive; 0 while the range is not to be read.
    end: AtomicUsize,
    guest: AtomicU64,
}

/// The guest address of what is mapped at `host`, if that is guest memory. Async-signal-safe.
#[must_use]
pub fn guest_address_of(host: usize) -> Option<u64> {
    MAPPINGS.iter().find_map(|mapping| mapping.look_up(host))
}

/// The mappings of a machine's memory; they are forgotten when this is dropped.
#[derive(Debug)]
pub(super) struct Mapped(Vec<usize>);

impl Mapped {
    pub(super) fn new(memory: &GuestMemory) -> Self {
        let take = |region: &GuestRegionMmap| {
            let start = host_address(region);
            MAPPINGS.iter().position(|mapping| mapping.take(start, region.size(), region.start_addr().0))
        };
        Self(memory.iter().filter_map(take).collect())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        for &index in &self.0 {
            let mapping = &MAPPINGS[index];
            mapping.end.store(0, Ordering::Relaxed);
            // Partner: the Acquire in `take`.
            mapping.taken.store(false, Ordering::Release);
        }
    }
}

impl Mapping {
    const fn free() -> Self {
        Self {
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            guest: AtomicU64::new(0),
        }
    }

    /// False if it is somebody else's.
    fn take(&self, start: usize, len: usize, guest: u64) -> bool {
        if self.taken.swap(true, Ordering::Acquire) {
            return false;
        }
        self.start.store(start, Ordering::Relaxed);
        self.guest.store(guest, Ordering::Relaxed);
        // Partner: the Acquire in `look_up`.
        self.end.store(start + len, Ordering::Release);
        true
    }

    fn look_up(&self, host: usize) -> Option<u64> {
        let end = self.end.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Relaxed);
        let offset = host.checked_sub(start).filter(|_| host < end)?;
        Some(self.guest.load(Ordering::Relaxed) + u64::try_from(offset).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::GuestAddress;

    #[test]
    fn addresses_of_guest_memory_are_found_while_it_is_a_machines() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 8192), (GuestAddress(1 << 32), 4096)]).unwrap();
        let host = |guest| memory.get_host_address(GuestAddress(guest)).unwrap().addr();
        let (first, second) = (host(0), host(1 << 32));
        assert_eq!(guest_address_of(first), None);
        let mapped = Mapped::new(&memory);
        assert_eq!(guest_address_of(first + 8191), Some(8191));
        assert_eq!(guest_address_of(second + 1), Some((1 << 32) + 1));
        assert_eq!((guest_address_of(0), guest_address_of(usize::MAX)), (None, None));
        drop(mapped);
        assert_eq!((guest_address_of(first), guest_address_of(second)), (None, None));
    }
}
