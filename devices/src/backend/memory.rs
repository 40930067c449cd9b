//! Guest memory given back to the host, and taken from it again.
#![expect(unsafe_code, reason = "madvise and fallocate have no safe interface in libc")]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use arch::memory::{GuestRegionMmap, bitmap};
use arch::{GuestMemory, layout};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// Guest memory whose pages can be given back.
#[derive(Debug, Clone)]
pub struct Reclaim {
    memory: Arc<GuestMemory>,
    pool_page_bytes: Option<u64>,
}

impl Reclaim {
    /// Of `memory`, which is made of a HugePage pool's pages of `pool_page_bytes` bytes, or of the host's small ones.
    pub fn new(memory: Arc<GuestMemory>, pool_page_bytes: Option<u64>) -> Self {
        Self { memory, pool_page_bytes }
    }

    /// The size of the pages that can be given back one by one, in bytes.
    pub fn page_bytes(&self) -> u64 {
        self.pool_page_bytes.unwrap_or(layout::PAGE_SIZE)
    }

    /// Whether they are a HugePage pool's.
    pub fn is_of_pool(&self) -> bool {
        self.pool_page_bytes.is_some()
    }

    /// Where memory ends for the guest.
    pub fn end(&self) -> u64 {
        self.memory.last_addr().raw_value() + 1
    }

    /// How much memory there is, in bytes.
    pub fn bytes(&self) -> u64 {
        self.memory.iter().map(GuestMemoryRegion::len).sum()
    }

    /// Gives the whole pages inside a range back: the host has them now, and the guest finds zeros there when it comes
    /// back, or, in a private mapping of a file, what the file has. Returns the bytes given back.
    ///
    /// # Errors
    /// The range is no memory, or the host does not take it.
    pub fn discard(&self, start: GuestAddress, len: u64) -> io::Result<u64> {
        let page = self.page_bytes();
        let end = start.raw_value().checked_add(len).ok_or(io::ErrorKind::InvalidInput)? / page * page;
        let start = start.raw_value().checked_next_multiple_of(page).ok_or(io::ErrorKind::InvalidInput)?;
        if start >= end {
            return Ok(0);
        }
        // Regions may adjoin, as those of NUMA nodes do. Each is a whole number of pages.
        let mut next = start;
        while next < end {
            let (region, offset) = self.inside(next, page)?;
            let len = (region.len() - offset.raw_value()).min(end - next);
            let done = match region.file_offset() {
                None => give_up(region, offset, len),
                // Also out of every mapping of the file.
                Some(file) => punch(file.file(), file.start() + offset.raw_value(), len),
            };
            // What was there is not there any more, a part of it at least, and no write of anybody's says so.
            mark(region, offset, len);
            done?;
            next += len;
        }
        Ok(end - start)
    }

    /// Takes the pages of a range from the host again.
    ///
    /// # Errors
    /// The range is no memory, or the host has no page for it.
    pub fn populate(&self, start: GuestAddress, len: u64) -> io::Result<()> {
        let (region, offset) = self.inside(start.raw_value(), len)?;
        advise(region, offset, len, libc::MADV_POPULATE_WRITE)
    }

    /// Whether a range is memory, all of one region.
    pub fn has(&self, start: GuestAddress, len: u64) -> bool {
        self.inside(start.raw_value(), len).is_ok()
    }

    /// The region that all of a range is in.
    fn inside(&self, start: u64, len: u64) -> io::Result<(&GuestRegionMmap, MemoryRegionAddress)> {
        let region = self.memory.find_region(GuestAddress(start));
        let found = region.and_then(|region| {
            let offset = region.to_region_addr(GuestAddress(start))?;
            (region.len() - offset.raw_value() >= len).then_some((region, offset))
        });
        found.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

fn mark(region: &GuestRegionMmap, offset: MemoryRegionAddress, len: u64) {
    let bytes = |value: u64| usize::try_from(value).expect("a 64-bit host addresses 64 bits");
    bitmap(region).mark_dirty(bytes(offset.raw_value()), bytes(len));
}

/// Also of locked memory, which the kernel gives up only where that is said: it is locked again when it comes back.
fn give_up(region: &GuestRegionMmap, offset: MemoryRegionAddress, len: u64) -> io::Result<()> {
    match advise(region, offset, len, libc::MADV_DONTNEED) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            advise(region, offset, len, libc::MADV_DONTNEED_LOCKED)
        }
        done => done,
    }
}

/// `offset` and `len` are inside the region.
fn advise(region: &GuestRegionMmap, offset: MemoryRegionAddress, len: u64, advice: libc::c_int) -> io::Result<()> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    let slice = region.get_slice(offset, len).map_err(io::Error::other)?;
    let start = slice.ptr_guard_mut().as_ptr();
    loop {
        // SAFETY: the range is inside a mapping of guest memory, which is only ever reached as what anybody may change at any
        // time; to become zeros, or to come in, is such a change, and unmaps nothing.
        if unsafe { libc::madvise(start.cast(), len, advice) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn punch(file: &std::fs::File, offset: u64, len: u64) -> io::Result<()> {
    let number = |value: u64| libc::off_t::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: fallocate takes a descriptor, which is open, and numbers. What it does to the mapping is as in `advise`.
    let failed = unsafe { libc::fallocate(file.as_raw_fd(), mode, number(offset)?, number(len)?) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::memory_with_hole;
    use vm_memory::Bytes;

    #[test]
    fn only_whole_pages_inside_a_range_go_and_read_as_zeros() {
        let memory = memory_with_hole(4 << 20);
        memory.write_slice(&[7; 5 * 4096], GuestAddress(4096)).unwrap();
        let reclaim = Reclaim::new(Arc::clone(&memory), None);
        assert_eq!(reclaim.discard(GuestAddress(2 * 4096 - 1), 2 * 4096 + 2).unwrap(), 2 * 4096);
        let mut bytes = [0; 5 * 4096];
        memory.read_slice(&mut bytes, GuestAddress(4096)).unwrap();
        assert!(bytes[..4096].iter().chain(&bytes[3 * 4096..]).all(|&byte| byte == 7));
        assert!(bytes[4096..3 * 4096].iter().all(|&byte| byte == 0));
        assert_eq!(reclaim.discard(GuestAddress(5), 4096).unwrap(), 0, "no whole page");
    }

    #[test]
    fn a_range_is_memory_where_all_of_it_is() {
        let reclaim = Reclaim::new(memory_with_hole(4 << 20), Some(2 << 20));
        let has = |start| reclaim.has(GuestAddress(start), 2 << 20);
        assert_eq!(
            [0, 2 << 20, 3 << 20, 4 << 20, 1 << 32, u64::MAX - 1].map(has),
            [true, true, false, false, true, false]
        );
    }

    /// Bytes of a region that are there, and those of them in transparent HugePages.
    fn resident(region: &GuestRegionMmap) -> (u64, u64) {
        let start = format!("{:x}-", region.as_ptr().addr());
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let lines: Vec<&str> = smaps.lines().skip_while(|line| !line.starts_with(&start)).collect();
        let kib = |name: &str| {
            let value = lines.iter().find_map(|line| line.strip_prefix(name)).unwrap();
            value.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        (kib("Rss:") << 10, kib("AnonHugePages:") << 10)
    }

    #[test]
    fn what_is_discarded_of_private_memory_is_the_hosts_also_out_of_transparent_huge_pages() {
        const HUGE: usize = 2 << 20;
        for advice in [libc::MADV_NOHUGEPAGE, libc::MADV_HUGEPAGE] {
            let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 4 * HUGE)]).unwrap());
            let region = memory.iter().next().unwrap();
            // SAFETY: what pages a mapping may be made of changes nothing in it.
            let failed = unsafe { libc::madvise(region.as_ptr().cast(), 4 * HUGE, advice) };
            assert_eq!(failed, 0);
            memory.write_slice(&vec![7; 4 * HUGE], GuestAddress(0)).unwrap();
            let (all, huge) = resident(region);
            assert!(all == 4 * HUGE as u64 && (huge > 0) == (advice == libc::MADV_HUGEPAGE), "{all} {huge}");
            let reclaim = Reclaim::new(Arc::clone(&memory), None);
            assert_eq!(reclaim.discard(GuestAddress(HUGE as u64), HUGE as u64 + 4096).unwrap(), HUGE as u64 + 4096);
            // A huge page of which a part is kept the kernel takes apart when it is short of memory.
            let (left, _) = resident(region);
            assert_eq!(left, 3 * HUGE as u64 - 4096);
        }
    }

    #[test]
    fn a_range_over_regions_that_adjoin_goes_whole_also_if_it_is_locked() {
        let half = 2 << 20;
        let ranges = [(GuestAddress(0), half), (GuestAddress(half as u64), half)];
        let memory: Arc<GuestMemory> = Arc::new(GuestMemory::from_ranges(&ranges).unwrap());
        for region in memory.iter() {
            let slice = region.as_volatile_slice().unwrap();
            // SAFETY: to lock a mapping changes nothing in it.
            let locked = unsafe { libc::mlock(slice.ptr_guard().as_ptr().cast(), 1 << 16) };
            assert_eq!(locked, 0);
        }
        let start = GuestAddress(half as u64 - 8192);
        memory.write_slice(&[7; 16384], start).unwrap();
        let reclaim = Reclaim::new(Arc::clone(&memory), None);
        assert_eq!(reclaim.discard(start, 16384).unwrap(), 16384);
        let mut bytes = [1; 16384];
        memory.read_slice(&mut bytes, start).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0));
        assert_eq!(reclaim.discard(GuestAddress(0), 4096).unwrap(), 4096);
        reclaim.discard(start, 4 << 20).unwrap_err();
    }

    #[test]
    fn what_is_no_memory_is_refused() {
        let reclaim = Reclaim::new(memory_with_hole(4 << 20), None);
        for (start, len) in [(u64::MAX - 4095, 4096), (u64::MAX, u64::MAX), (reclaim.end(), 4096), (0, 1 << 40)] {
            reclaim.discard(GuestAddress(start), len).unwrap_err();
        }
    }
}
