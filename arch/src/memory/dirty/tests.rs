use super::*;
use crate::memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, bitmap};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::thread;
use vm_memory::VolatileMemory;

const PAGES: usize = 200;

fn taken(bitmap: &DirtyBitmap) -> BTreeSet<usize> {
    let words: Vec<u64> = bitmap.take().collect();
    let bits = (0..words.len() * 64).filter(|page| words[page / 64] >> (page % 64) & 1 == 1);
    bits.collect()
}

#[test]
fn nothing_is_marked_and_no_storage_taken_before_the_start() {
    let bitmap = DirtyBitmap::with_len(PAGES * 4096);
    bitmap.mark_dirty(0, 1);
    assert_eq!(bitmap.take().count(), 0);
    assert!(bitmap.words.get().is_none());
    bitmap.start();
    assert_eq!(taken(&bitmap), BTreeSet::new());
}

#[test]
fn a_start_forgets_what_came_before_it() {
    let bitmap = DirtyBitmap::with_len(PAGES * 4096);
    bitmap.start();
    bitmap.mark_dirty(0, 1);
    bitmap.stop();
    bitmap.mark_dirty(4096, 1);
    bitmap.start();
    bitmap.mark_dirty(8192, 1);
    assert_eq!(taken(&bitmap), BTreeSet::from([2]));
}

#[test]
fn what_nobody_took_stays() {
    let bitmap = DirtyBitmap::with_len(PAGES * 4096);
    bitmap.start();
    bitmap.mark_dirty(0, PAGES * 4096);
    let first = bitmap.take().next();
    assert_eq!(first, Some(u64::MAX));
    assert_eq!(taken(&bitmap), (64..PAGES).collect());
    assert_eq!(taken(&bitmap), BTreeSet::new());
}

proptest! {
    #[test]
    fn the_pages_of_every_range_are_marked_and_no_other(
        ranges in prop::collection::vec((0..PAGES * 4096, 0_usize..300_000), 0..8),
        base in 0..PAGES * 4096,
    ) {
        let bitmap = DirtyBitmap::with_len(PAGES * 4096);
        bitmap.start();
        let mut expected = BTreeSet::new();
        for (offset, len) in ranges {
            // Through a slice of a slice, as vm-memory does it.
            let part = base.min(offset);
            bitmap.slice_at(part / 2).slice_at(part - part / 2).mark_dirty(offset - part, len);
            if len > 0 {
                expected.extend((offset / 4096..=(offset + len - 1) / 4096).filter(|page| *page < PAGES));
            }
        }
        for page in 0..PAGES {
            assert_eq!(bitmap.dirty_at(page * 4096 + 17), expected.contains(&page));
        }
        assert_eq!(taken(&bitmap), expected);
    }
}

#[test]
fn a_mark_beyond_the_region_or_beyond_all_numbers_is_none() {
    let bitmap = DirtyBitmap::with_len(PAGES * 4096);
    bitmap.start();
    bitmap.mark_dirty(1 << 40, 4096);
    bitmap.mark_dirty(usize::MAX, 2);
    bitmap.mark_dirty(5, 0);
    assert_eq!(taken(&bitmap), BTreeSet::new());
}

#[test]
fn every_accessor_of_vm_memory_marks_what_it_writes() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20), (GuestAddress(1 << 32), 1 << 20)]).unwrap();
    memory.iter().for_each(|region| bitmap(region).start());
    let at = |page: u64| GuestAddress((1 << 32) + page * 4096);
    memory.write_slice(&[1; 4097], at(1)).unwrap();
    memory.write_obj(7_u32, at(5)).unwrap();
    memory.store(7_u16, at(7), Ordering::Relaxed).unwrap();
    memory.get_slice(at(9), 8192).unwrap().write_obj(1_u8, 4096).unwrap();
    memory.get_slice(at(12), 64).unwrap().get_ref::<u64>(8).unwrap().store(3);
    memory.read_exact_volatile_from(at(14), &mut &[1_u8; 16][..], 16).unwrap();
    let pages: Vec<_> = memory.iter().map(|region| taken(bitmap(region))).collect();
    assert_eq!(pages, [BTreeSet::new(), BTreeSet::from([1, 2, 5, 7, 10, 12, 14])]);
}

/// Writers count in cells of their own, one cell a page, with plain stores and each followed by its mark. The reader copies the
/// cells of the pages that a take finds. When the writers are done, a last take must bring the copy up to date: a lost mark
/// leaves it behind.
#[test]
fn no_write_is_lost_between_marks_and_takes_of_many_threads() {
    const WRITERS: usize = 3;
    const ROUNDS: u64 = 4_000;
    const CELLS: usize = 132;
    let bitmap = DirtyBitmap::with_len(CELLS * 4096);
    let cells: Vec<AtomicU64> = (0..CELLS).map(|_| AtomicU64::new(0)).collect();
    let mut copy = [0; CELLS];
    bitmap.start();
    let catch_up = |copy: &mut [u64; CELLS]| {
        for page in taken(&bitmap) {
            copy[page] = cells[page].load(Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (bitmap, cells) = (&bitmap, &cells);
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        // The writers' pages are each other's neighbours in a word.
                        let page = usize::try_from(round).unwrap() * 7 % (CELLS / WRITERS) * WRITERS + writer;
                        cells[page].store(cells[page].load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                        bitmap.mark_dirty(page * 4096 + 100, 8);
                    }
                })
            })
            .collect();
        while !writers.iter().all(thread::ScopedJoinHandle::is_finished) {
            catch_up(&mut copy);
        }
    });
    catch_up(&mut copy);
    let now: Vec<u64> = cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect();
    assert_eq!(copy[..], now[..]);
    assert_eq!(now.iter().sum::<u64>(), ROUNDS * u64::try_from(WRITERS).unwrap());
}
