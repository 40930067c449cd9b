//! Pages written in turn, each with a byte to the console: for those who watch a machine from outside, how much it writes and
//! when it goes on.

use guest::{console, cpu, memory, time};

use super::work::Work;
use super::{begin, figures};

const PAGE_BYTES: u64 = 4096;

pub(crate) fn run(work: &Work) -> Result<(), &'static str> {
    let pages = work.size / PAGE_BYTES;
    if pages == 0 {
        return Err("an area of no page");
    }
    let area = memory::alloc(work.size);
    begin(work);
    let start = cpu::tsc();
    let mut written = 0;
    while work.until.goes_on(written, start, cpu::tsc()) {
        memory::store(area + written % pages * PAGE_BYTES, written + 1);
        console::write_bytes(b".");
        written += 1;
        time::delay_us(work.us);
    }
    let ticks = cpu::tsc() - start;
    figures!(work, "requests={written} ns={} rate={}", time::ns(ticks), time::rate(written, ticks))
}
