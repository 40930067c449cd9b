//! Disks in trouble: reset under load, broken chains.

use guest::blk::{Op, Request, SECTOR};
use guest::virtio::{self, DESC_NEXT, Desc, F_EVENT_IDX, F_INDIRECT, STATUS_NEEDS_RESET};
use guest::{memory, time};

use super::disk::{listen, listen_no_more, writable, write_and_verify};
use super::{Failure, Machine, passed};

/// Resets the disk with requests outstanding, ten times: the old ring must stay as it is from then on, and the disk work
/// again.
pub(crate) fn reset(machine: &Machine) -> Result<(), Failure> {
    const LEN: u64 = 64 << 10;
    const ROUNDS: usize = 10;
    let mut outstanding = 0;
    let buffer = memory::alloc(LEN * 32);
    for _ in 0..ROUNDS {
        let mut blk = writable(machine, 0)?;
        let len = LEN.min(blk.capacity * SECTOR);
        for i in 0..blk.depth_max().min(32) as u64 {
            blk.push(&Request { op: Op::Read, sector: 0, buffer: buffer + LEN * i, len: len as u32 });
        }
        blk.queue.kick();
        blk.device.reset()?;
        let answered = blk.queue.used_index();
        outstanding += blk.depth_max().min(32) as u64 - u64::from(answered);
        time::delay_us(10_000);
        if blk.queue.used_index() != answered {
            let now = blk.queue.used_index();
            return Err(Failure::Numbers("the used ring moved after a reset", answered.into(), now.into()));
        }
    }
    let fnv = write_and_verify(&mut writable(machine, F_EVENT_IDX | F_INDIRECT)?)?;
    passed!("reset", "rounds={ROUNDS} outstanding={outstanding} fnv={fnv:#018x}")
}

/// Makes a chain that loops: the device must ask for a reset, by its status and an interrupt, answer nothing more, and
/// work again after the reset.
pub(crate) fn broken(machine: &Machine) -> Result<(), Failure> {
    let mut blk = writable(machine, 0)?;
    let device = blk.device;
    let counter = listen(machine, device)?;
    let seen = counter.load(core::sync::atomic::Ordering::Acquire);
    let buffer = memory::alloc(SECTOR);
    for (index, next) in [(0, 1), (1, 0)] {
        blk.queue.set(index, Desc { address: buffer, len: SECTOR as u32, flags: DESC_NEXT, next });
    }
    blk.queue.push(0);
    blk.queue.kick();
    if !time::poll_until(2000, || device.status() & STATUS_NEEDS_RESET != 0) {
        return Err(Failure::Numbers("status 2 s after a looping chain", device.status().into(), 0x40));
    }
    let reason = device.wait_for_interrupt(counter, seen, 2000);
    listen_no_more(machine, device);
    if reason & virtio::INTERRUPT_CONFIG == 0 {
        return Err(Failure::Numbers("reasons to interrupt", reason.into(), virtio::INTERRUPT_CONFIG.into()));
    }
    let fnv = write_and_verify(&mut writable(machine, 0)?)?;
    passed!("broken", "status={:#x} interrupt={reason:#x} fnv={fnv:#018x}", STATUS_NEEDS_RESET)
}
