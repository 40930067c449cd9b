//! Loads at pseudo-random places of an area, each where the one before sent it: what a place far from caches and TLB costs,
//! on the pages that the host backs the area with.

use core::hint::black_box;

use guest::{cpu, memory, time};

use super::work::{Until, Work};
use super::{begin, figures};

const WORD_BYTES: u64 = 8;
/// A place is taken from 32 bits, and a product of 64 bits must hold it.
const AREA_BYTES_MAX: u64 = 32 << 30;
/// Loads between two looks at the clock: some tens of microseconds.
const LOADS_PER_LOOK: u64 = 1000;

pub(crate) fn run(work: &Work) -> Result<(), &'static str> {
    let words = work.size / WORD_BYTES;
    if words == 0 || work.size > AREA_BYTES_MAX {
        return Err("an area of no word, or of more than 32 GiB");
    }
    let area = memory::alloc(work.size);
    // A page that was never written may be a page of zeroes that the host has once for all.
    (0..work.size.div_ceil(memory::PAGE)).for_each(|page| memory::store(area + page * memory::PAGE, 0u64));
    if let Some(warm_up) = work.warm_up() {
        series(area, words, warm_up.until);
    }
    begin(work);
    let (loads, ticks) = series(area, words, work.until);
    figures!(work, "requests={loads} ns={} rate={}", time::ns(ticks), time::rate(loads, ticks))
}

/// Loads, and the ticks that they took.
fn series(area: u64, words: u64, until: Until) -> (u64, u64) {
    let start = cpu::tsc();
    let (mut now, mut loads, mut state) = (start, 0, start);
    while until.goes_on(loads, start, now) {
        let due = match until {
            Until::Count(count) => LOADS_PER_LOOK.min(count - loads),
            Until::Ms(_) => LOADS_PER_LOOK,
        };
        for _ in 0..due {
            let place = ((state >> 32) * words) >> 32;
            let word: u64 = memory::load(area + place * WORD_BYTES);
            // Knuth's MMIX: the upper bits are the random ones. The word is zero, which the CPU cannot know.
            state = (state ^ word).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        }
        loads += due;
        now = cpu::tsc();
    }
    black_box(state);
    (loads, now - start)
}
