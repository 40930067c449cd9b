//! Exits, the serial port, entropy.

use core::sync::atomic::Ordering;

use guest::platform::Line;
use guest::virtio::{self, KIND_RNG};
use guest::{apic, console, cpu, memory, println, time};

use super::{Failure, Machine, passed};

/// A register of the serial port that reads without effect.
const SCRATCH: u16 = console::PORT + 7;
const TIMES: u32 = 2000;

/// A byte of the CMOS that keeps what is written to it.
const CMOS_STORAGE: u8 = 0x50;

/// String instructions: many accesses to one port, of which KVM may hand several over in one exit.
pub(crate) fn string(_: &Machine) -> Result<(), Failure> {
    const PATTERN: u8 = 0xa7;
    cpu::out8(0x70, CMOS_STORAGE);
    cpu::out8(0x71, PATTERN);
    let mut bytes = [0; 64];
    cpu::in8_string(0x71, &mut bytes);
    if let Some(&wrong) = bytes.iter().find(|&&byte| byte != PATTERN) {
        return Err(Failure::Numbers("rep insb read a wrong byte", wrong.into(), PATTERN.into()));
    }
    cpu::out8_string(console::PORT, b"STRING by one instruction\n");
    passed!("string", "bytes={}", bytes.len())
}

fn rate(work: impl FnOnce()) -> u64 {
    let start = cpu::tsc();
    work();
    time::rate(u64::from(TIMES), cpu::tsc() - start)
}

/// Port reads a second that end in user space, from either ring.
pub(crate) fn pio(_: &Machine) -> Result<(), Failure> {
    let ring3 = rate(|| {
        for _ in 0..TIMES {
            cpu::in8(SCRATCH);
        }
    });
    let ring0 = rate(|| cpu::ring0_in(SCRATCH, TIMES));
    passed!("pio", "ring3_per_s={ring3} ring0_per_s={ring0}")
}

/// Device register reads a second that end in user space, from either ring.
pub(crate) fn mmio(machine: &Machine) -> Result<(), Failure> {
    let mut register = None;
    virtio::for_each(machine.boot, &machine.platform, |device| register = Some(device.magic_register()));
    let register = register.ok_or("there is no virtio-mmio device to read")?;
    let ring3 = rate(|| {
        for _ in 0..TIMES {
            memory::load::<u32>(register);
        }
    });
    let ring0 = rate(|| cpu::ring0_load(register, TIMES));
    passed!("mmio", "ring3_per_s={ring3} ring0_per_s={ring0}")
}

/// Echoes each line that arrives as `ECHO line`, until the line `end`; says how many interrupts told it so. The first
/// line out is `SERIAL WAIT`.
pub(crate) fn serial(machine: &Machine) -> Result<(), Failure> {
    let counter = apic::line_counter(console::GSI);
    let first = counter.load(Ordering::Relaxed);
    apic::route(&machine.platform, Line { gsi: console::GSI, level: false, low: false });
    // Bounds each sleep, so that a lost interrupt costs time and shows in the figure, not in a test that hangs.
    apic::timer_start(machine.timer_hz, 50_000);
    console::interrupt_on_input();
    println!("SERIAL WAIT");
    let (mut line, mut len, mut bytes) = ([0u8; 4096], 0, 0u64);
    loop {
        let seen = counter.load(Ordering::Acquire);
        while let Some(byte) = console::poll_byte() {
            bytes += 1;
            if byte != b'\n' {
                line[len] = byte;
                len = (len + 1).min(line.len() - 1);
                continue;
            }
            if &line[..len] == b"end" {
                apic::timer_stop();
                apic::mask(&machine.platform, console::GSI);
                let interrupts = counter.load(Ordering::Relaxed) - first;
                return passed!("serial", "bytes={bytes} interrupts={interrupts}");
            }
            guest::print!("ECHO ");
            console::write_bytes(&line[..len]);
            println!("");
            len = 0;
        }
        cpu::wait(counter, seen);
        if counter.load(Ordering::Relaxed) != seen {
            apic::acknowledge();
        }
    }
}

/// Writes 1 MiB, or as many KiB as the word `flood_kib=` says, as fast as it goes: lines of 64 bytes, numbered.
pub(crate) fn flood(machine: &Machine) -> Result<(), Failure> {
    const LINE: usize = 64;
    let kib = machine.boot.values("flood_kib").last().and_then(|kib| kib.parse().ok()).unwrap_or(1024);
    let lines: u64 = kib * 1024 / LINE as u64;
    let start = cpu::tsc();
    for number in 0..lines {
        let mut line = [b'.'; LINE];
        line[..6].copy_from_slice(b"FLOOD ");
        let mut rest = number;
        for digit in line[6..14].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        line[LINE - 1] = b'\n';
        console::write_bytes(&line);
    }
    let ms = time::ns(cpu::tsc() - start) / 1_000_000;
    passed!("flood", "bytes={} ms={ms}", lines * LINE as u64)
}

/// 64 bytes of entropy, from every device that gives some.
pub(crate) fn rng(machine: &Machine) -> Result<(), Failure> {
    let mut devices = 0;
    while let Some(device) = virtio::find(machine.boot, &machine.platform, KIND_RNG, devices) {
        let (buffer, written) = guest::rng::fill(device, 64)?;
        let bytes = memory::bytes(buffer, u64::from(written));
        if written != 64 || bytes.iter().all(|byte| *byte == bytes[0]) {
            return Err(Failure::Numbers("bytes written, the first", written.into(), bytes[0].into()));
        }
        println!("RNG {devices} fnv={:#018x}", memory::fnv1a(bytes));
        devices += 1;
    }
    if devices == 0 {
        return Err("there is no virtio-rng device".into());
    }
    passed!("rng", "devices={devices}")
}
