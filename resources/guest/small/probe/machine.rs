//! What the monitor handed over: memory, command line, initrd; and the clock and the button.

use guest::memory::{self, PAGE, Range};
use guest::platform::Line;
use guest::{apic, console, cpu, println};

use super::{Failure, Machine, passed};

const MIB: u64 = 1 << 20;

/// `MAP start-end type` for each range.
pub(crate) fn map(machine: &Machine) -> Result<(), Failure> {
    let ranges = machine.boot.ranges();
    for range in ranges {
        println!("MAP {:#x}-{:#x} {}", range.start, range.end, range.kind.name());
    }
    passed!("map", "ranges={}", ranges.len())
}

/// The words that `mem` writes: one in every MiB and one in the last page of each usable range, but not where the guest
/// itself or the initrd is.
fn words_of(machine: &Machine) -> impl Iterator<Item = u64> {
    let (image, _) = memory::image();
    let end = memory::allocated_end();
    let (initrd, initrd_len) = machine.boot.initrd.unwrap_or((0, 0));
    let free = move |at: &u64| *at >= MIB && !(image..end).contains(at) && !(initrd..initrd + initrd_len).contains(at);
    let words = |range: Range| (range.start.next_multiple_of(MIB)..range.end).step_by(MIB as usize);
    let last = |range: Range| (range.end - PAGE) & !7;
    machine.boot.usable().flat_map(move |range| words(range).chain([last(range)])).filter(free)
}

/// Writes a word to every MiB of usable memory, then reads them all back.
pub(crate) fn mem(machine: &Machine) -> Result<(), Failure> {
    let top = machine.boot.usable().map(|range| range.end).max().unwrap_or(0);
    memory::map_to(top);
    let word = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5555_5555_5555_5555;
    words_of(machine).for_each(|at| memory::store(at, word(at)));
    let mut words = 0u64;
    for at in words_of(machine) {
        if memory::load::<u64>(at) != word(at) {
            return Err(Failure::Numbers("address and word read", at, memory::load(at)));
        }
        words += 1;
    }
    passed!("mem", "words={words} top={top:#x}")
}

/// Writes to each page of 32 MiB, over and over, until `q` arrives: `SCRIBBLE n` for each time.
pub(crate) fn scribble(_: &Machine) -> Result<(), Failure> {
    let start = memory::alloc(32 * MIB);
    let mut times = 0u64;
    while console::poll_byte() != Some(b'q') {
        times += 1;
        (0..32 * MIB / PAGE).for_each(|page| memory::store(start + page * PAGE, times));
        println!("SCRIBBLE {times}");
    }
    passed!("scribble", "times={times}")
}

/// `CMDLINE text`, then its length and FNV-1a.
pub(crate) fn cmdline(machine: &Machine) -> Result<(), Failure> {
    let text = machine.boot.cmdline();
    guest::print!("CMDLINE ");
    guest::console::write_bytes(text);
    println!("");
    passed!("cmdline", "len={} fnv={:#018x}", text.len(), memory::fnv1a(text))
}

/// Where the initrd is and what is in it.
pub(crate) fn initrd(machine: &Machine) -> Result<(), Failure> {
    let (start, len) = machine.boot.initrd.ok_or("none was given")?;
    memory::map_to(start + len);
    let fnv = memory::fnv1a(memory::bytes(start, len));
    passed!("initrd", "start={start:#x} len={len} fnv={fnv:#018x}")
}

/// The CMOS clock's date and time.
pub(crate) fn rtc(_: &Machine) -> Result<(), Failure> {
    const STATUS_B: u8 = 0x0b;
    const BINARY: u8 = 4;
    let register = |index: u8| {
        cpu::out8(0x70, index);
        cpu::in8(0x71)
    };
    let binary = register(STATUS_B) & BINARY != 0;
    let number = |index| match register(index) {
        value if binary => value,
        value => (value >> 4) * 10 + (value & 15),
    };
    let read = || [0x32, 9, 8, 7, 4, 2, 0].map(number);
    let mut now = read();
    // Once more when a second went by between two registers.
    if read() != now {
        now = read();
    }
    let [century, year, month, day, hour, minute, second] = now;
    let century = if century == 0 { 20 } else { century };
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return Err(Failure::Numbers("no date: month and day", month.into(), day.into()));
    }
    passed!("rtc", "date={century:02}{year:02}-{month:02}-{day:02} time={hour:02}:{minute:02}:{second:02}")
}

/// Waits for the power button: `BUTTON WAIT gsi=N` when it is ready, then at most a minute.
pub(crate) fn button(machine: &Machine) -> Result<(), Failure> {
    let line = machine.platform.power.event_line.ok_or("the DSDT has no ACPI0013 with an interrupt")?;
    let counter = apic::line_counter(line.gsi);
    let seen = counter.load(core::sync::atomic::Ordering::Relaxed);
    apic::route(&machine.platform, line);
    apic::timer_start(machine.timer_hz, 20_000);
    println!("BUTTON WAIT gsi={}", line.gsi);
    let pressed = apic::wait(counter, seen, 60_000);
    apic::timer_stop();
    apic::mask(&machine.platform, line.gsi);
    if !pressed {
        return Err("no interrupt within a minute".into());
    }
    apic::acknowledge();
    passed!("button", "gsi={}", line.gsi)
}

/// Sets the keyboard up as Linux does, waits until a key is let go that begins with Ctrl, and prints the bytes that
/// came by interrupt.
pub(crate) fn keyboard(machine: &Machine) -> Result<(), Failure> {
    const DATA: u16 = 0x60;
    const COMMAND: u16 = 0x64;
    const LINE: Line = Line { gsi: 1, level: false, low: false };
    const CTRL_RELEASED: u8 = 0x9d;
    let waits = || cpu::in8(COMMAND) & 1 != 0;
    let ask = |byte: u8| {
        cpu::out8(DATA, byte);
        if waits() { cpu::in8(DATA) } else { 0 }
    };
    // Interrupt and translation; the keyboard's clock runs.
    cpu::out8(COMMAND, 0x60);
    cpu::out8(DATA, 0x41);
    let id = [ask(0xf2), cpu::in8(DATA), cpu::in8(DATA)];
    if id != [0xfa, 0xab, 0x41] {
        return Err(Failure::Numbers("the keyboard's id", id[1].into(), id[2].into()));
    }
    if ask(0xf4) != 0xfa {
        return Err("the keyboard does not acknowledge that it is enabled".into());
    }
    let counter = apic::line_counter(LINE.gsi);
    apic::route(&machine.platform, LINE);
    apic::timer_start(machine.timer_hz, 20_000);
    let mut seen = counter.load(core::sync::atomic::Ordering::Relaxed);
    println!("KEYBOARD WAIT");
    guest::print!("KEYBOARD");
    let mut last = 0;
    while last != CTRL_RELEASED {
        if !apic::wait(counter, seen, 60_000) {
            return Err("no interrupt within a minute".into());
        }
        seen = counter.load(core::sync::atomic::Ordering::Relaxed);
        apic::acknowledge();
        while waits() {
            last = cpu::in8(DATA);
            guest::print!(" {last:02x}");
        }
    }
    println!("");
    apic::timer_stop();
    apic::mask(&machine.platform, LINE.gsi);
    passed!("keyboard", "gsi={}", LINE.gsi)
}
