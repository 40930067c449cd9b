//! What the host leaves of a CPU for the guest: it computes, and touches neither a device nor memory.

use core::hint::black_box;

use guest::{cpu, time};

use super::work::Work;
use super::{begin, figures};

/// Steps between two looks at the clock: some microseconds.
const STEPS_PER_LOOK: u64 = 10_000;

pub(crate) fn run(work: &Work) -> Result<(), &'static str> {
    begin(work);
    let start = cpu::tsc();
    let (mut now, mut steps, mut state) = (start, 0, start | 1);
    while work.until.goes_on(steps, start, now) {
        for _ in 0..STEPS_PER_LOOK {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        state = black_box(state);
        steps += STEPS_PER_LOOK;
        now = cpu::tsc();
    }
    let ticks = now - start;
    figures!(work, "requests={steps} ns={} rate={}", time::ns(ticks), time::rate(steps, ticks))
}
