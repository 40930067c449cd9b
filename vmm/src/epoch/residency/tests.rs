use std::collections::BTreeSet;
use std::sync::Arc;

use arch::memory::MmapRegion;
use arch::{GuestAddress, GuestMemory};
use devices::backend::memory::Reclaim;
use vm_memory::Bytes;
use vm_memory::GuestMemoryBackend;

use super::*;
use crate::epoch::pool::Pool;
use crate::memfd;

const REGION_BYTES: u64 = 8 << 20;
const REGION_PAGES: u64 = REGION_BYTES / PAGE_BYTES;
const UPPER: u64 = 1 << 32;

/// Two regions, of a file or of none.
fn memory(file: Option<File>) -> Arc<GuestMemory> {
    let file = file.map(Arc::new);
    let range = |start: u64, offset: u64| {
        let place = file.as_ref().map(|file| FileOffset::from_arc(Arc::clone(file), offset));
        (GuestAddress(start), usize::try_from(REGION_BYTES).unwrap(), place)
    };
    Arc::new(GuestMemory::from_ranges_with_files([range(0, 0), range(UPPER, REGION_BYTES)]).unwrap())
}

/// Where a page, by its number in memory file order, is for the guest.
fn address(page: u64) -> GuestAddress {
    GuestAddress(if page < REGION_PAGES { page * PAGE_BYTES } else { UPPER + (page - REGION_PAGES) * PAGE_BYTES })
}

fn write(memory: &GuestMemory, pages: impl IntoIterator<Item = u64>) {
    pages.into_iter().for_each(|page| memory.write_obj(7_u8, address(page)).unwrap());
}

fn set(pages: &PageSet) -> BTreeSet<u64> {
    pages.runs().flat_map(|run| run.first..run.end()).collect()
}

fn found(memory: &GuestMemory) -> BTreeSet<u64> {
    let found = set(&touched(memory).unwrap());
    assert_eq!(set(&touched(memory).unwrap()), found, "to look touches nothing");
    found
}

const SOME: [u64; 7] = [0, 1, 77, REGION_PAGES - 1, REGION_PAGES, REGION_PAGES + 900, 2 * REGION_PAGES - 1];

#[test]
fn the_pages_that_were_written_are_touched_whatever_memory_is_made_of() {
    for file in [None, Some(memfd::create("husk-test", 2 * REGION_BYTES).unwrap())] {
        let memory = memory(file);
        assert_eq!(found(&memory), BTreeSet::new());
        write(&memory, SOME);
        assert_eq!(found(&memory), BTreeSet::from(SOME));
        // More ranges than one answer of the kernel's holds.
        write(&memory, (100..2 * REGION_PAGES).step_by(2));
        assert_eq!(found(&memory), SOME.into_iter().chain((100..2 * REGION_PAGES).step_by(2)).collect());
    }
}

#[test]
fn pages_that_were_given_back_are_untouched() {
    for file in [None, Some(memfd::create("husk-test", 2 * REGION_BYTES).unwrap())] {
        let memory = memory(file);
        write(&memory, 10..20);
        let reclaim = Reclaim::new(Arc::clone(&memory), None);
        assert_eq!(reclaim.discard(address(13), 4 * PAGE_BYTES).unwrap(), 4 * PAGE_BYTES);
        assert_eq!(found(&memory), (10..13).chain(17..20).collect());
    }
}

#[test]
fn a_page_that_was_only_read_is_untouched() {
    let memory = memory(None);
    write(&memory, [5]);
    assert_eq!(memory.read_obj::<u8>(address(9)).unwrap(), 0);
    assert_eq!(found(&memory), BTreeSet::from([5]));
}

#[test]
fn large_pages_are_touched_whole_in_memory_of_hugepages() {
    const LARGE: u64 = 512;
    let _pool = Pool::of_2m(8);
    let memory = memory(Some(memfd::create_huge("husk-test", 2 * REGION_BYTES, 2 << 20).unwrap()));
    assert_eq!(found(&memory), BTreeSet::new());
    write(&memory, [LARGE + 3, REGION_PAGES]);
    assert_eq!(found(&memory), (LARGE..2 * LARGE).chain(REGION_PAGES..REGION_PAGES + LARGE).collect());
    let reclaim = Reclaim::new(Arc::clone(&memory), Some(2 << 20));
    reclaim.discard(address(LARGE), 2 << 20).unwrap();
    assert_eq!(found(&memory), (REGION_PAGES..REGION_PAGES + LARGE).collect());
}

#[test]
fn of_a_private_mapping_of_a_file_the_copies_are_touched() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&vec![9; 1 << 20], 0).unwrap();
    file.set_len(REGION_BYTES).unwrap();
    let place = FileOffset::new(file, 0);
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let mapping = MmapRegion::build(Some(place), usize::try_from(REGION_BYTES).unwrap(), access, flags).unwrap();
    let memory = GuestMemory::from_regions(vec![GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap()]).unwrap();
    (0..300).for_each(|page| assert_eq!(memory.read_obj::<u8>(address(page)).unwrap(), u8::from(page < 256) * 9));
    assert_eq!(found(&memory), BTreeSet::new(), "what was read is the file's");
    write(&memory, [3, 4, 290]);
    assert_eq!(found(&memory), BTreeSet::from([3, 4, 290]));
}

/// The way of kernels before 6.7, on this one.
#[test]
fn the_page_tables_read_entry_by_entry_tell_the_same() {
    let memory = memory(None);
    write(&memory, SOME);
    let tables = File::open(PAGEMAP).unwrap();
    let mut pages = BTreeSet::new();
    for (region, first) in memory.iter().zip([0, REGION_PAGES]) {
        let host = region.as_ptr().expose_provenance() as u64;
        let span = host..host + region.len();
        let insert = |part: Range<u64>| {
            pages.extend(first + part.start / PAGE_BYTES..first + part.end / PAGE_BYTES);
        };
        read(&tables, span, Kind::NotOfFiles, insert).unwrap();
    }
    assert_eq!(pages, found(&memory));
}
