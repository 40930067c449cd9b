//! Disks that work: contents, figures, indirect descriptors, EVENT_IDX.

use core::sync::atomic::{AtomicU64, Ordering};

use guest::blk::{self, Blk, Op, Request, SECTOR};
use guest::virtio::{self, Device, F_EVENT_IDX, F_INDIRECT, KIND_BLK};
use guest::{apic, memory, println, time};

use super::{Failure, Machine, passed};

const REGION: u64 = 1 << 20;

/// The nth disk, or the first that can be written.
pub(crate) fn device(machine: &Machine, nth: usize) -> Option<Device> {
    virtio::find(machine.boot, &machine.platform, KIND_BLK, nth)
}

/// The first disk that can be written, opened with these features; it must offer all of them.
pub(crate) fn writable(machine: &Machine, features: u64) -> Result<Blk, Failure> {
    let mut nth = 0;
    while let Some(device) = device(machine, nth) {
        let blk = Blk::open(device, features)?;
        if !blk.read_only() {
            let missing = features & !blk.features;
            return if missing == 0 { Ok(blk) } else { Err(Failure::Numbers("not offered", missing, blk.features)) };
        }
        nth += 1;
    }
    Err("there is no virtio-blk device that can be written".into())
}

/// Fills memory with the pattern that tests on the host know: the 64-bit little-endian word at byte 8 i of the disk is
/// (i + 1) * 0x9e3779b97f4a7c15, modulo 2^64.
fn fill(buffer: u64, len: u64) {
    for i in 0..len / 8 {
        memory::store(buffer + 8 * i, (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
}

pub(crate) fn expect(what: &'static str, status: u8, expected: u8) -> Result<(), Failure> {
    if status == expected { Ok(()) } else { Err(Failure::Numbers(what, status.into(), expected.into())) }
}

fn expect_series(what: &'static str, series: blk::Series) -> Result<blk::Series, Failure> {
    if series.failed == 0 { Ok(series) } else { Err(Failure::Numbers(what, series.failed, 0)) }
}

/// Writes, flushes, reads back and compares the first MiB; gives its FNV-1a.
pub(crate) fn write_and_verify(blk: &mut Blk) -> Result<u64, Failure> {
    let len = REGION.min(blk.capacity * SECTOR);
    let (written, read) = (memory::alloc(len), memory::alloc(len));
    fill(written, len);
    expect_series("failed writes", blk.transfer(Op::Write, 0, written, len)?)?;
    if blk.features & blk::F_FLUSH != 0 {
        expect("status of a flush", blk.flush()?, blk::OK)?;
    }
    expect_series("failed reads", blk.transfer(Op::Read, 0, read, len)?)?;
    if memory::bytes(read, len) != memory::bytes(written, len) {
        return Err("what was read is not what was written".into());
    }
    Ok(memory::fnv1a(memory::bytes(read, len)))
}

/// Reads the first MiB and sees that writes are refused; gives its FNV-1a.
fn read_and_be_refused(blk: &mut Blk) -> Result<u64, Failure> {
    let len = REGION.min(blk.capacity * SECTOR);
    let read = memory::alloc(len);
    expect_series("failed reads", blk.transfer(Op::Read, 0, read, len)?)?;
    let fnv = memory::fnv1a(memory::bytes(read, len));
    let write = Request { op: Op::Write, sector: 0, buffer: memory::alloc(SECTOR), len: SECTOR as u32 };
    expect("status of a write to a read-only disk", blk.request(write)?, blk::IO_ERROR)?;
    Ok(fnv)
}

/// `BLK n addr= gsi= ...` for each disk, then how many there are.
pub(crate) fn blk(machine: &Machine) -> Result<(), Failure> {
    let mut count = 0;
    while let Some(device) = device(machine, count) {
        let offered = device.offered();
        let mut blk = Blk::open(device, 0)?;
        let id = blk.id()?;
        let end = id.iter().position(|byte| *byte == 0).unwrap_or(id.len());
        let id = core::str::from_utf8(&id[..end]).unwrap_or("?");
        let fnv = if blk.read_only() { read_and_be_refused(&mut blk)? } else { write_and_verify(&mut blk)? };
        let beyond = Request { op: Op::Read, sector: blk.capacity, buffer: memory::alloc(SECTOR), len: SECTOR as u32 };
        expect("status of a read beyond the end", blk.request(beyond)?, blk::IO_ERROR)?;
        println!(
            "BLK {count} addr={:#x} gsi={} capacity={} features={offered:#x} ro={} blk_size={} fnv={fnv:#018x} id={id:?}",
            device.base,
            device.line.gsi,
            blk.capacity,
            u8::from(blk.read_only()),
            blk.block_size(),
        );
        device.reset()?;
        count += 1;
    }
    if count == 0 {
        return Err("there is no virtio-blk device".into());
    }
    passed!("blk", "devices={count}")
}

/// 4 KiB requests a second at random places of the first 256 MiB, each kind for about 100 ms.
pub(crate) fn blkbench(machine: &Machine) -> Result<(), Failure> {
    const LEN: u64 = 4096;
    const BATCH: u64 = 256;
    let mut blk = writable(machine, 0)?;
    blk = Blk::open_fast(blk.device)?;
    let depth_max = blk.depth_max();
    let places = (blk.capacity * SECTOR / LEN).min(65536);
    let buffers = memory::alloc(LEN * blk::DEPTH_MAX as u64);
    let mut measure = |op, depth| -> Result<u64, Failure> {
        let (mut answered, mut ticks) = (0, 0);
        while ticks < time::ticks(100_000) {
            let series = blk.series(BATCH, depth, |i| Request {
                op,
                sector: ((answered + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % places * (LEN / SECTOR),
                buffer: buffers + LEN * (i % blk::DEPTH_MAX as u64),
                len: LEN as u32,
            })?;
            ticks += expect_series("failed requests", series)?.ticks;
            answered += BATCH;
        }
        Ok(time::rate(answered, ticks))
    };
    let (read1, read32) = (measure(Op::Read, 1)?, measure(Op::Read, 32)?);
    let (write1, write32) = (measure(Op::Write, 1)?, measure(Op::Write, 32)?);
    let depth = depth_max.min(32);
    passed!("blkbench", "read_qd1={read1} read_qd32={read32} write_qd1={write1} write_qd32={write32} depth={depth}")
}

/// Requests through indirect tables, also with the buffer in eight pieces.
pub(crate) fn indirect(machine: &Machine) -> Result<(), Failure> {
    const LEN: u64 = 32 << 10;
    let mut blk = writable(machine, F_INDIRECT)?;
    let fnv = write_and_verify(&mut blk)?;
    let (written, read) = (memory::alloc(LEN), memory::alloc(LEN));
    fill(written, LEN);
    for (op, buffer, pieces) in [(Op::Write, written, 8), (Op::Read, read, 3)] {
        blk.push_pieces(&Request { op, sector: 0, buffer, len: LEN as u32 }, pieces);
        blk.queue.kick();
        expect("status of a request in pieces", blk.answer()?, blk::OK)?;
    }
    if memory::bytes(read, LEN) != memory::bytes(written, LEN) {
        return Err("what was read is not what was written".into());
    }
    passed!("indirect", "fnv={fnv:#018x}")
}

/// Routes a disk's line here and lets the timer bound sleeps, so that [`apic::wait`] works on it.
pub(crate) fn listen(machine: &Machine, device: Device) -> Result<&'static AtomicU64, Failure> {
    apic::route(&machine.platform, device.line);
    apic::timer_start(machine.timer_hz, 10_000);
    Ok(apic::line_counter(device.line.gsi))
}

/// Takes that back.
pub(crate) fn listen_no_more(machine: &Machine, device: Device) {
    apic::timer_stop();
    apic::mask(&machine.platform, device.line.gsi);
}

/// Interrupts come where the driver asked for them and nowhere else, and both indices may wrap.
pub(crate) fn eventidx(machine: &Machine) -> Result<(), Failure> {
    const WANTED: u64 = 20;
    let mut blk = writable(machine, F_EVENT_IDX)?;
    let device = blk.device;
    let counter = listen(machine, device)?;
    let read = Request { op: Op::Read, sector: 0, buffer: memory::alloc(SECTOR), len: SECTOR as u32 };

    // A device may interrupt for the first answer of all, as it has not seen the driver's wish before.
    expect("status of a read", blk.request(read)?, blk::OK)?;
    time::delay_us(10_000);
    device.take_interrupt();

    for _ in 0..100 {
        expect("status of a read", blk.request(read)?, blk::OK)?;
    }
    time::delay_us(10_000);
    if device.interrupt_status() != 0 {
        return Err("an interrupt that nobody asked for".into());
    }

    for _ in 0..WANTED {
        let seen = counter.load(Ordering::Acquire);
        blk.queue.interrupt_after(0);
        blk.push(&read);
        blk.queue.kick();
        let reason = device.wait_for_interrupt(counter, seen, 2000);
        if reason & virtio::INTERRUPT_USED == 0 {
            return Err(Failure::Numbers("status 2 s after a request", reason.into(), virtio::INTERRUPT_USED.into()));
        }
        expect("status of a read", blk.pop().ok_or("an interrupt before the answer")?.1, blk::OK)?;
    }
    listen_no_more(machine, device);
    blk.queue.interrupts_off();
    let series = expect_series("failed reads", blk.series(70_000, 32, |_| read)?)?;
    device.reset()?;
    passed!("eventidx", "interrupts={WANTED} requests=70000 doorbells={}", series.doorbells)
}
