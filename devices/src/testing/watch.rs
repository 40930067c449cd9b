//! Writes to guest memory, looked at from both sides: which bytes changed, and which pages were marked as written.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use arch::GuestMemory;
use arch::memory::{DIRTY_PAGE_BYTES, bitmap};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::DEADLINE;

/// Guest memory as it was at one moment, with its tracking on since. What a driver writes in between counts as well.
pub struct WriteWatch {
    memory: Arc<GuestMemory>,
    before: Vec<u8>,
    marked: BTreeSet<u64>,
}

impl WriteWatch {
    /// Forgets what was marked so far, and begins.
    pub fn begin(memory: &Arc<GuestMemory>) -> Self {
        memory.iter().for_each(|region| bitmap(region).start());
        Self { memory: Arc::clone(memory), before: contents(memory), marked: BTreeSet::new() }
    }

    /// The guest addresses of the pages that were marked since the beginning. Marks come after their writes: they are waited
    /// for.
    ///
    /// # Panics
    /// If the bytes of a page have changed and no mark comes.
    pub fn end(mut self) -> BTreeSet<u64> {
        let now = contents(&self.memory);
        let changed: Vec<u64> = self.pages(&now).collect();
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.take();
            let Some(page) = changed.iter().find(|page| !self.marked.contains(page)) else { break };
            assert!(Instant::now() < deadline, "the page at {page:#x} has changed and is not marked");
            std::thread::yield_now();
        }
        self.memory.iter().for_each(|region| bitmap(region).stop());
        self.marked
    }

    /// The pages that are not as they were.
    fn pages<'a>(&'a self, now: &'a [u8]) -> impl Iterator<Item = u64> + 'a {
        let both = self.before.chunks(DIRTY_PAGE_BYTES).zip(now.chunks(DIRTY_PAGE_BYTES));
        let addresses = self.memory.iter().flat_map(|region| {
            let start = region.start_addr().0;
            (start..start + region.len()).step_by(DIRTY_PAGE_BYTES)
        });
        both.zip(addresses).filter(|((before, now), _)| before != now).map(|(_, address)| address)
    }

    fn take(&mut self) {
        for region in self.memory.iter() {
            let starts = (region.start_addr().0..).step_by(64 * DIRTY_PAGE_BYTES);
            for (word, start) in bitmap(region).take().zip(starts) {
                let pages = (start..).step_by(DIRTY_PAGE_BYTES).zip(0..64);
                self.marked.extend(pages.filter(|(_, bit)| word >> bit & 1 == 1).map(|(page, _)| page));
            }
        }
    }
}

fn contents(memory: &GuestMemory) -> Vec<u8> {
    let mut bytes = Vec::new();
    for region in memory.iter() {
        let start = bytes.len();
        bytes.resize(start + usize::try_from(region.len()).expect("it is mapped here"), 0);
        memory
            .read_slice(&mut bytes[start..], GuestAddress(region.start_addr().0))
            .expect("it is a region of this memory");
    }
    bytes
}
