//! Interrupts: the local APIC's registers and timer, the I/O APIC's routes, and the counters that traps.s keeps.
//!
//! Vectors: 0x20 + GSI for lines of the I/O APIC, acknowledged here by [`acknowledge`] after the device was asked to
//! let its line fall; the timer and the wake-up call, acknowledged in ring 0. Lines are taken in [`wait`] only: ring 3
//! has interrupts off while one may be asserted, because a KVM without hardware under it does not hold a vector back
//! until it is acknowledged, and a level-triggered line would come again and again.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::acpi::{Acpi, Line};
use crate::{cpu, memory, time};

const BASE: u64 = 0xfee0_0000;
const ID: u64 = 0x20;
const TASK_PRIORITY: u64 = 0x80;
const EOI: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const COMMAND_LOW: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const TIMER_LVT: u64 = 0x320;
const TIMER_INITIAL: u64 = 0x380;
const TIMER_CURRENT: u64 = 0x390;
const TIMER_DIVIDE: u64 = 0x3e0;

const MSR_APIC_BASE: u32 = 0x1b;
const VECTOR_FIRST_LINE: u32 = 0x20;
const LINES_MAX: u32 = 48;
/// The timer's vector; traps.s knows it too.
pub const VECTOR_TIMER: usize = 0x50;
/// The vector that wakes a sleeping CPU; traps.s knows it too.
pub const VECTOR_WAKE: usize = 0x51;
const VECTOR_SPURIOUS: u32 = 0x5f;

unsafe extern "C" {
    /// Interrupts taken, by vector; traps.s counts.
    safe static interrupts: [AtomicU64; 0x60];
}

/// How often a vector was taken, by all CPUs together.
pub fn counter(vector: usize) -> &'static AtomicU64 {
    &interrupts[vector]
}

/// The interrupts of one line.
pub fn line_counter(gsi: u32) -> &'static AtomicU64 {
    counter((VECTOR_FIRST_LINE + gsi) as usize)
}

fn read(register: u64) -> u32 {
    memory::load(BASE + register)
}

fn write(register: u64, value: u32) {
    memory::store(BASE + register, value);
}

/// Makes this CPU's APIC take interrupts, by its memory page.
pub fn init_local() {
    const X2APIC: u64 = 1 << 10;
    const ENABLED: u64 = 1 << 11;
    let base = cpu::rdmsr(MSR_APIC_BASE);
    if base & X2APIC != 0 {
        // SDM 3A §11.12.5: the way back leads through "disabled".
        cpu::wrmsr(MSR_APIC_BASE, base & !(X2APIC | ENABLED));
    }
    if base & (X2APIC | ENABLED) != ENABLED {
        cpu::wrmsr(MSR_APIC_BASE, base & !X2APIC | ENABLED);
    }
    write(TASK_PRIORITY, 0);
    write(SPURIOUS, 1 << 8 | VECTOR_SPURIOUS);
}

/// Silences the 8259 pair, whose lines reach the CPU beside the APICs.
pub fn mask_pic() {
    cpu::out8(0x21, 0xff);
    cpu::out8(0xa1, 0xff);
}

/// This CPU's APIC id.
pub fn id() -> u32 {
    read(ID) >> 24
}

/// Tells the APIC that the interrupt of a line is dealt with.
pub fn acknowledge() {
    write(EOI, 0);
}

fn send(apic_id: u32, command: u32) {
    write(COMMAND_HIGH, apic_id << 24);
    write(COMMAND_LOW, command);
}

/// Puts a CPU into wait-for-SIPI.
pub fn send_init(apic_id: u32) {
    send(apic_id, 0x4500);
}

/// Starts a CPU at a page below 1 MiB.
pub fn send_startup(apic_id: u32, page: u32) {
    send(apic_id, 0x4600 | page);
}

/// Wakes a CPU that sleeps.
pub fn send_wake(apic_id: u32) {
    send(apic_id, 0x4000 | VECTOR_WAKE as u32);
}

/// The timer's frequency, undivided, measured for 2 ms.
pub fn timer_hz() -> u64 {
    const MASKED: u32 = 1 << 16;
    write(TIMER_DIVIDE, 0xb);
    write(TIMER_LVT, MASKED | VECTOR_TIMER as u32);
    write(TIMER_INITIAL, u32::MAX);
    let (start, from) = (cpu::tsc(), read(TIMER_CURRENT));
    time::delay_us(2000);
    let (ticks, to) = (cpu::tsc() - start, read(TIMER_CURRENT));
    write(TIMER_INITIAL, 0);
    time::rate(u64::from(from - to), ticks)
}

/// An interrupt every `us` microseconds on this CPU.
pub fn timer_start(hz: u64, us: u64) {
    const PERIODIC: u32 = 1 << 17;
    write(TIMER_DIVIDE, 0xb);
    write(TIMER_LVT, PERIODIC | VECTOR_TIMER as u32);
    write(TIMER_INITIAL, (hz * us / 1_000_000) as u32);
}

/// No more of them.
pub fn timer_stop() {
    write(TIMER_INITIAL, 0);
}

/// Sends a line's interrupts to this CPU.
pub fn route(acpi: &Acpi, line: Line) {
    let (ioapic, pin) = ioapic_of(acpi, line.gsi);
    let low = (VECTOR_FIRST_LINE + line.gsi) | u32::from(line.low) << 13 | u32::from(line.level) << 15;
    ioapic_write(ioapic, 0x11 + 2 * pin, id() << 24);
    ioapic_write(ioapic, 0x10 + 2 * pin, low);
}

/// Keeps a line's interrupts back.
pub fn mask(acpi: &Acpi, gsi: u32) {
    let (ioapic, pin) = ioapic_of(acpi, gsi);
    ioapic_write(ioapic, 0x10 + 2 * pin, 1 << 16);
}

fn ioapic_of(acpi: &Acpi, gsi: u32) -> (u64, u32) {
    match acpi.ioapic_of(gsi) {
        Some(place) if gsi < LINES_MAX => place,
        _ => panic!("GSI {gsi} has no I/O APIC or no vector"),
    }
}

fn ioapic_write(ioapic: u64, register: u32, value: u32) {
    memory::store(ioapic, register);
    memory::store(ioapic + 0x10, value);
}

/// Sleeps until a counter moves on from `seen` or so many milliseconds are past; says whether it moved. The timer's
/// tick bounds each sleep, so it must run.
pub fn wait(counter: &AtomicU64, seen: u64, ms: u64) -> bool {
    let deadline = time::Deadline::in_ms(ms);
    while counter.load(Ordering::Acquire) == seen {
        if deadline.passed() {
            return false;
        }
        cpu::wait(counter, seen);
    }
    true
}
