//! Requests to the first disk.
//!
//! A block of 4 KiB of the disk begins with the number of its first sector, or with zeroes when nobody wrote it. Reads
//! are held to that and writes keep it, so a monitor that is fast because it does something else is found out.

use core::sync::atomic::Ordering;

use guest::blk::{self, Blk, DEPTH_MAX, Op, Request, SECTOR};
use guest::virtio::{self, KIND_BLK};
use guest::{apic, cpu, memory, time};

use super::latency::Latencies;
use super::work::{Kind, SEQUENTIAL_BYTES_MIN, Wait, Work};
use super::{Machine, begin, figures};

const BLOCK: u64 = 4096;
/// Patience with a request.
const ANSWER_WITHIN_MS: u64 = 5000;
/// Bounds each sleep, so that a lost interrupt is a slow run and not a hang.
const TICK_US: u64 = 10_000;

/// What a run came to.
struct Sum {
    requests: u64,
    ticks: u64,
    doorbells: u64,
    /// Answers that were not OK, and blocks that were not what they should be.
    failed: u64,
    wrong: u64,
    latencies: Latencies,
}

/// One run, after its warm-up.
pub(crate) fn run(machine: &Machine, work: &Work) -> Result<(), &'static str> {
    let device = virtio::find(machine.boot, &machine.platform, KIND_BLK, 0).ok_or("there is no disk")?;
    let mut blk = Blk::open_fast(device)?;
    if work.size == 0 || work.size % BLOCK != 0 || work.size > blk.capacity * SECTOR {
        return Err("a size that the disk has not, or no whole blocks");
    }
    // A flush is waited for alone.
    let depth_max = if work.kind == Kind::Flush { 1 } else { blk.depth_max() };
    if work.depth == 0 || work.depth > depth_max {
        return Err("a depth that the queue has not");
    }
    let buffers = memory::alloc(work.size * work.depth as u64);
    if work.wait == Wait::Sleep {
        apic::route(&machine.platform, device.line);
        apic::timer_start(machine.timer_hz, TICK_US);
    }
    if let Some(warm_up) = work.warm_up() {
        series(&mut blk, &warm_up, buffers)?;
    }
    begin(work);
    let interrupts = apic::line_counter(device.line.gsi).load(Ordering::Acquire);
    let sum = series(&mut blk, work, buffers)?;
    let interrupts = apic::line_counter(device.line.gsi).load(Ordering::Acquire) - interrupts;
    if work.wait == Wait::Sleep {
        apic::timer_stop();
        apic::mask(&machine.platform, device.line.gsi);
    }
    device.reset()?;
    let Sum { requests, ticks, doorbells, failed, wrong, latencies } = &sum;
    let [p50, p99, p999] = [500, 990, 999].map(|per_mille| latencies.percentile_ns(per_mille));
    figures!(
        work,
        "requests={requests} ns={} rate={} p50_ns={p50} p99_ns={p99} p999_ns={p999} doorbells={doorbells} \
         interrupts={interrupts} failed={failed} wrong={wrong}",
        time::ns(*ticks),
        time::rate(*requests, *ticks),
    )
}

/// Keeps the depth's worth of requests in flight until the run is over.
fn series(blk: &mut Blk, work: &Work, buffers: u64) -> Result<Sum, &'static str> {
    let mut sum = Sum { requests: 0, ticks: 0, doorbells: 0, failed: 0, wrong: 0, latencies: Latencies::new() };
    let mut slots = [(0, Request { op: Op::Read, sector: 0, buffer: 0, len: 0 }); DEPTH_MAX];
    // Buffers belong to requests and slots are the driver's: both are handed out anew for each.
    let mut free_buffers = u64::MAX >> (64 - work.depth);
    let start = cpu::tsc();
    let (mut now, mut moved, mut begun) = (start, start, 0);
    while free_buffers.count_ones() as usize != work.depth || work.until.goes_on(begun, start, now) {
        let before = begun;
        while free_buffers != 0 && work.until.goes_on(begun, start, now) {
            let index = free_buffers.trailing_zeros();
            free_buffers &= free_buffers - 1;
            let request = request(blk, work, begun, buffers + work.size * u64::from(index));
            slots[blk.push(&request) as usize] = (now, request);
            begun += 1;
        }
        if begun != before {
            sum.doorbells += u64::from(blk.queue.kick());
        }
        let before = sum.requests;
        while let Some((slot, status)) = blk.pop() {
            let durable = if work.kind == Kind::Flush { blk.flush()? } else { blk::OK };
            now = cpu::tsc();
            let (pushed, request) = slots[slot as usize];
            sum.latencies.record(now - pushed);
            sum.requests += 1;
            sum.failed += u64::from(status != blk::OK || durable != blk::OK);
            sum.wrong += u64::from(request.op == Op::Read && !is_of(request.buffer, request.sector));
            free_buffers |= 1 << ((request.buffer - buffers) / work.size);
        }
        now = cpu::tsc();
        if sum.requests != before {
            moved = now;
        } else if now - moved > time::ticks(ANSWER_WITHIN_MS * 1000) {
            return Err("no answer within 5 s");
        } else if work.wait == Wait::Sleep {
            sleep(blk);
        } else {
            cpu::pause();
        }
    }
    sum.ticks = cpu::tsc() - start;
    Ok(sum)
}

/// The `number`th request, and what it writes in its buffer.
fn request(blk: &Blk, work: &Work, number: u64, buffer: u64) -> Request {
    let places = blk.capacity * SECTOR / work.size;
    let place = if work.size >= SEQUENTIAL_BYTES_MIN {
        number % places
    } else {
        (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % places
    };
    let sector = place * (work.size / SECTOR);
    let op = if work.kind == Kind::Read { Op::Read } else { Op::Write };
    if op == Op::Write {
        (0..work.size / BLOCK).for_each(|block| memory::store(buffer + block * BLOCK, sector + block * BLOCK / SECTOR));
    }
    Request { op, sector, buffer, len: work.size as u32 }
}

/// Whether a block is the one of this sector.
fn is_of(buffer: u64, sector: u64) -> bool {
    let first: u64 = memory::load(buffer);
    first == sector || first == 0
}

/// Until the next answer's interrupt, unless it has come meanwhile.
fn sleep(blk: &Blk) {
    let device = blk.device;
    let counter = apic::line_counter(device.line.gsi);
    let seen = counter.load(Ordering::Acquire);
    blk.queue.interrupt_after(0);
    if !blk.queue.has_used() {
        device.wait_for_interrupt(counter, seen, ANSWER_WITHIN_MS);
    }
    blk.queue.interrupts_off();
}
