//! The guest that `husk demo` boots: shows its machine at work on the console, says what it measured, and powers off.
//!
//! For people: what is missing is said in words, and what goes wrong ends the machine by a triple fault, so that husk's
//! exit code tells. The whole text stays under 3 KiB, because each byte is an exit.

#![no_std]
#![no_main]

use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};

use guest::blk::{self, Blk, Op, Request, SECTOR, Series};
use guest::boot::{Boot, Entry};
use guest::platform::Platform;
use guest::virtio::{self, KIND_BLK, KIND_RNG};
use guest::{apic, console, cpu, memory, power, print, println, smp, time};

guest::pvh_note!("pvh_entry");

const MIB: u64 = 1 << 20;

/// A number of thousandths with one decimal.
struct Milli(u64);

impl fmt::Display for Milli {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let tenths = (self.0 + 50) / 100;
        let width = f.width().unwrap_or(0).saturating_sub(2);
        write!(f, "{:width$}.{}", tenths / 10, tenths % 10)
    }
}

/// Ticks as milliseconds or microseconds.
fn ms(ticks: u64) -> Milli {
    Milli(time::ns(ticks) / 1000)
}

fn us(ticks: u64, times: u64) -> Milli {
    Milli(time::ns(ticks) / times)
}

#[unsafe(no_mangle)]
fn guest_main(boot: &'static Boot) -> ! {
    console::end_lines_for_a_terminal();
    let clock = time::init();
    apic::mask_pic();
    apic::init_local();
    let platform = &Platform::find(boot);
    let entry = match boot.entry {
        Entry::Pvh => "PVH",
        Entry::Linux64 => "the 64-bit Linux protocol",
    };
    println!("Hello from inside. I was entered by {entry} and now run in ring 3.\n");
    show_memory(boot);
    show_cpus(platform);
    show_timer();
    let outcome = show_disk(boot, platform).and_then(|()| show_entropy(boot, platform));
    if let Err(what) = outcome {
        println!("FAILED: {what}");
        power::triple_fault();
    }
    show_costs(boot, platform, clock);
    println!("That is all. Powering off through ACPI.");
    power::off(&platform.power)
}

fn show_memory(boot: &Boot) {
    println!("Memory");
    for range in boot.ranges().iter().filter(|range| !range.is_empty()) {
        let (last, kib) = (range.end - 1, range.len() / 1024);
        println!("  {:#012x} - {last:#012x}  {kib:9} KiB  {}", range.start, range.kind.name());
    }
    let usable: u64 = boot.usable().map(|range| range.len()).sum();
    println!("  {} MiB are mine to use.\n", Milli(usable * 1000 / MIB));
}

const NUMBERS: u64 = 200_000;
const PRIMES: u64 = 17_984;
static CPUS: AtomicUsize = AtomicUsize::new(1);

/// Counts primes below [`NUMBERS`] among every nth odd number, where n is the number of CPUs.
fn count_primes(cpu: usize) -> u64 {
    let is_prime = |n: u64| (3..).step_by(2).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
    let cpus = CPUS.load(Ordering::Relaxed);
    let odd = (3 + 2 * cpu as u64..NUMBERS).step_by(2 * cpus);
    odd.filter(|n| is_prime(*n)).count() as u64 + u64::from(cpu == 0)
}

fn show_cpus(platform: &Platform) {
    println!("CPUs");
    let start = cpu::tsc();
    let running = smp::start(platform.apic_ids());
    let ticks = cpu::tsc() - start;
    CPUS.store(running, Ordering::Relaxed);
    println!("  {running} running; starting the others took {} ms.", ms(ticks));

    let start = cpu::tsc();
    (1..running).for_each(|index| smp::give(index, count_primes));
    let mut total = count_primes(0);
    print!("  Primes below {NUMBERS}: cpu 0 found {total}");
    for index in 1..running {
        let Some(found) = smp::collect(index, 5000) else { panic!("cpu {index} gave no answer within 5 s") };
        print!(", cpu {index} found {found}");
        total += found;
    }
    println!(", side by side in {} ms.\n", ms(cpu::tsc() - start));
    assert!(total == PRIMES, "{total} primes below {NUMBERS}, not {PRIMES}");
}

fn show_timer() {
    const PERIOD_US: u64 = 500;
    let counter = apic::counter(apic::VECTOR_TIMER);
    let before = counter.load(Ordering::Relaxed);
    apic::timer_start(apic::timer_hz(), PERIOD_US);
    cpu::interrupts_on();
    let start = cpu::tsc();
    time::delay_us(50_000);
    let (taken, ticks) = (counter.load(Ordering::Relaxed) - before, cpu::tsc() - start);
    cpu::interrupts_off();
    apic::timer_stop();
    println!("Timer");
    println!("  {taken} interrupts in {} ms at one in {PERIOD_US} us.\n", ms(ticks));
}

fn check(what: &'static str, series: Series) -> Result<u64, &'static str> {
    if series.failed == 0 { Ok(series.ticks) } else { Err(what) }
}

fn show_disk(boot: &Boot, platform: &Platform) -> Result<(), &'static str> {
    println!("Disk");
    let Some(device) = virtio::find(boot, platform, KIND_BLK, 0) else {
        println!("  There is none.\n");
        return Ok(());
    };
    let mut disk = Blk::open_fast(device)?;
    let size = disk.capacity * SECTOR;
    println!("  virtio-blk at {:#x}, interrupt {}: {} MiB", device.base, device.line.gsi, size / MIB);
    if disk.read_only() {
        println!("  It is read-only.\n");
        return Ok(());
    }
    let len = size.min(8 * MIB);
    let (written, read) = (memory::alloc(len), memory::alloc(len));
    for i in 0..len / 8 {
        memory::store(written + 8 * i, (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
    let speed = |ticks| time::rate(len, ticks) / MIB;
    let ticks = check("a write failed", disk.transfer(Op::Write, 0, written, len)?)?;
    println!("  wrote      {} MiB at {:6} MiB/s", len / MIB, speed(ticks));
    let start = cpu::tsc();
    if disk.features & blk::F_FLUSH != 0 && disk.flush()? != blk::OK {
        return Err("the flush failed");
    }
    println!("  flushed          in {} us", us(cpu::tsc() - start, 1));
    let ticks = check("a read failed", disk.transfer(Op::Read, 0, read, len)?)?;
    if memory::bytes(read, len) != memory::bytes(written, len) {
        return Err("what was read is not what was written");
    }
    println!("  read back  {} MiB at {:6} MiB/s, and it is what was written", len / MIB, speed(ticks));
    for depth in [1, 32] {
        let reads = random_requests(&mut disk, Op::Read, depth, read)?;
        let writes = random_requests(&mut disk, Op::Write, depth, written)?;
        println!("  random 4 KiB, {depth:2} in flight: {reads:7} reads/s {writes:7} writes/s");
    }
    println!("");
    device.reset()
}

/// Requests a second, measured for about 50 ms.
fn random_requests(disk: &mut Blk, op: Op, depth: usize, buffers: u64) -> Result<u64, &'static str> {
    const LEN: u64 = 4096;
    const BATCH: u64 = 256;
    let places = disk.capacity * SECTOR / LEN;
    let (mut answered, mut ticks) = (0, 0);
    while places > 0 && ticks < time::ticks(50_000) {
        let series = disk.series(BATCH, depth, |i| Request {
            op,
            sector: ((answered + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % places * (LEN / SECTOR),
            buffer: buffers + LEN * (i % blk::DEPTH_MAX as u64),
            len: LEN as u32,
        })?;
        ticks += check("a request failed", series)?;
        answered += BATCH;
    }
    Ok(time::rate(answered, ticks))
}

fn show_entropy(boot: &Boot, platform: &Platform) -> Result<(), &'static str> {
    println!("Entropy");
    let Some(device) = virtio::find(boot, platform, KIND_RNG, 0) else {
        println!("  There is no device for it.\n");
        return Ok(());
    };
    let (buffer, written) = guest::rng::fill(device, 16)?;
    let bytes = memory::bytes(buffer, u64::from(written));
    if bytes.iter().all(|byte| *byte == 0) {
        return Err("the entropy is all zeros");
    }
    print!("  virtio-rng at {:#x}:", device.base);
    bytes.iter().for_each(|byte| print!(" {byte:02x}"));
    println!("\n");
    Ok(())
}

fn show_costs(boot: &Boot, platform: &Platform, clock: time::Source) {
    const TURNS: u64 = 20_000_000;
    const TIMES: u32 = 500;
    let timed = |work: &dyn Fn()| {
        let start = cpu::tsc();
        work();
        cpu::tsc() - start
    };
    let repeat = |work: &dyn Fn()| (0..TIMES).for_each(|_| work());
    println!("What I measured");
    let turns = timed(&|| cpu::spin_turns(TURNS));
    println!("  instructions in ring 3     {:7} million a second", time::rate(2 * TURNS, turns) / 1_000_000);
    let scratch = console::PORT + 7;
    let port = timed(&|| repeat(&|| _ = cpu::in8(scratch)));
    println!("  port read, from ring 3     {:7} us", us(port, TIMES.into()));
    let port = timed(&|| cpu::ring0_in(scratch, TIMES));
    println!("  port read, from ring 0     {:7} us", us(port, TIMES.into()));
    if let Some(device) = virtio::find(boot, platform, KIND_BLK, 0) {
        let register = device.magic_register();
        let load = timed(&|| repeat(&|| _ = memory::load::<u32>(register)));
        println!("  register read, from ring 3 {:7} us", us(load, TIMES.into()));
        if let Ok(disk) = Blk::open_fast(device) {
            let ring = timed(&|| repeat(&|| disk.queue.ring()));
            println!("  doorbell, from ring 3      {:7} us", us(ring, TIMES.into()));
        }
    }
    println!("  (time stamp counter at {} MHz, by {})\n", time::tsc_hz() / 1_000_000, clock.name());
}
