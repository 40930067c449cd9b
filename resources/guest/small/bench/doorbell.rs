//! What a doorbell costs the guest: it is rung for a queue in which there is nothing.

use guest::blk::Blk;
use guest::virtio::{self, KIND_BLK};
use guest::{cpu, time};

use super::work::Work;
use super::{Machine, begin, figures};

pub(crate) fn run(machine: &Machine, work: &Work) -> Result<(), &'static str> {
    let device = virtio::find(machine.boot, &machine.platform, KIND_BLK, 0).ok_or("there is no disk")?;
    let blk = Blk::open_fast(device)?;
    begin(work);
    let start = cpu::tsc();
    let (mut now, mut rung) = (start, 0);
    while work.until.goes_on(rung, start, now) {
        blk.queue.ring();
        rung += 1;
        now = cpu::tsc();
    }
    device.reset()?;
    let ticks = now - start;
    figures!(work, "requests={rung} ns={} rate={}", time::ns(ticks), time::rate(rung, ticks))
}
