//! One CPU: ports, CPUID, the clock, and the calls down to ring 0 (traps.s).

use core::arch::asm;
use core::sync::atomic::AtomicU64;

macro_rules! ring0_functions {
    ($($name:ident),+ $(,)?) => { unsafe extern "C" { $(fn $name();)+ } };
}
ring0_functions!(
    ring0_rdmsr,
    ring0_wrmsr,
    ring0_cpuid,
    ring0_wait,
    ring0_interrupts_on,
    ring0_interrupts_off,
    ring0_flush_tlb,
    ring0_out_bytes,
    ring0_in_loop,
    ring0_load_loop,
    ring0_halt,
    ring0_hang,
    ring0_triple_fault,
    ring0_int3,
);

/// `eax` of a `ud2` that is a call down; traps.s takes any other for a fault.
const DOWN_CALL: u64 = 0x6b73_7568;

/// Runs `function` in ring 0 with interrupts off. Its arguments arrive in rsi, rdx and rcx.
fn ring0(function: unsafe extern "C" fn(), a: u64, b: u64, c: u64) -> u64 {
    let result;
    // SAFETY: the #UD handler calls `function`, which keeps to the C convention, and comes back behind the ud2.
    unsafe {
        asm!(
            "ud2",
            inout("rax") DOWN_CALL => result,
            inout("rdi") function => _,
            inout("rsi") a => _,
            inout("rdx") b => _,
            inout("rcx") c => _,
            clobber_abi("C"),
        );
    }
    result
}

/// Reads a model-specific register; one that does not exist is a fault, and the end.
pub fn rdmsr(msr: u32) -> u64 {
    ring0(ring0_rdmsr, u64::from(msr), 0, 0)
}

/// Writes a model-specific register.
pub fn wrmsr(msr: u32, value: u64) {
    ring0(ring0_wrmsr, u64::from(msr), value, 0);
}

/// eax, ebx, ecx and edx of a CPUID leaf as ring 0 sees them, which is what the monitor set.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let mut out = [0; 4];
    ring0(ring0_cpuid, u64::from(leaf), u64::from(subleaf), (&raw mut out) as u64);
    out
}

/// Sleeps until an interrupt unless `counter` has already moved on from `seen`.
pub fn wait(counter: &AtomicU64, seen: u64) {
    ring0(ring0_wait, counter.as_ptr() as u64, seen, 0);
}

/// Lets interrupts in.
pub fn interrupts_on() {
    ring0(ring0_interrupts_on, 0, 0, 0);
}

/// Keeps interrupts out.
pub fn interrupts_off() {
    ring0(ring0_interrupts_off, 0, 0, 0);
}

/// Forgets cached translations.
pub fn flush_tlb() {
    ring0(ring0_flush_tlb, 0, 0, 0);
}

/// Writes `bytes` to one port, one after the other.
pub fn out_bytes(port: u16, bytes: &[u8]) {
    ring0(ring0_out_bytes, bytes.as_ptr() as u64, u64::from(port), bytes.len() as u64);
}

/// Reads a byte port `times` times from ring 0.
pub fn ring0_in(port: u16, times: u32) {
    ring0(ring0_in_loop, 0, u64::from(port), u64::from(times));
}

/// Reads a 32-bit register `times` times from ring 0.
pub fn ring0_load(address: u64, times: u32) {
    ring0(ring0_load_loop, 0, address, u64::from(times));
}

/// The ends of a machine that only ring 0 can bring about; [`crate::power`] gives them names.
#[derive(Clone, Copy)]
pub(crate) enum Last {
    Halt,
    Hang,
    TripleFault,
    Int3,
}

pub(crate) fn last(what: Last) -> ! {
    let function = match what {
        Last::Halt => ring0_halt,
        Last::Hang => ring0_hang,
        Last::TripleFault => ring0_triple_fault,
        Last::Int3 => ring0_int3,
    };
    loop {
        ring0(function, 0, 0, 0);
    }
}

/// Writes a byte to a port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: the TSS allows every port; a device can reach memory only through addresses that its driver gave it.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
}

/// Writes 16 bits to a port.
pub fn out16(port: u16, value: u16) {
    // SAFETY: as out8.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) }
}

/// Writes 32 bits to a port.
pub fn out32(port: u16, value: u32) {
    // SAFETY: as out8.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) }
}

/// Reads a byte from a port.
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as out8.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) }
    value
}

/// Reads a port into every byte of `buffer` by one string instruction.
pub fn in8_string(port: u16, buffer: &mut [u8]) {
    // SAFETY: as out8; the instruction writes `len` bytes from the buffer's start on, and the direction flag is clear.
    unsafe {
        asm!("rep insb", in("dx") port, inout("rdi") buffer.as_mut_ptr() => _, inout("rcx") buffer.len() => _,
            options(nostack, preserves_flags));
    }
}

/// Writes every byte of `buffer` to a port by one string instruction.
pub fn out8_string(port: u16, buffer: &[u8]) {
    // SAFETY: as out8; the instruction reads `len` bytes from the buffer's start on, and the direction flag is clear.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") buffer.as_ptr() => _, inout("rcx") buffer.len() => _,
            options(nostack, preserves_flags));
    }
}

/// Reads 16 bits from a port.
pub fn in16(port: u16) -> u16 {
    let value;
    // SAFETY: as out8.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nostack, preserves_flags)) }
    value
}

/// The time stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: CR4.TSD is off.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Gives the hardware thread's sibling a moment.
pub fn pause() {
    core::hint::spin_loop();
}

/// Turns an empty loop of two instructions `turns` times.
pub fn spin_turns(turns: u64) {
    // SAFETY: counts a register down.
    unsafe { asm!("2: dec {0}", "jnz 2b", inout(reg) turns => _, options(nostack, nomem)) }
}
