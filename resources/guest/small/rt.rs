//! What the compiler expects to find: memory functions, and where panics and faults end.

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

use crate::power;

// In assembly, because a memcpy written in Rust may be compiled into a call of memcpy.
global_asm!(
    ".text",
    ".global memcpy, memmove, memset",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    "memmove:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "mov r8, rdi",
    "sub r8, rsi",
    "cmp r8, rdx", // unsigned: only a target inside the source must be copied from its end
    "jb 1f",
    "rep movsb",
    "ret",
    "1: lea rsi, [rsi + rdx - 1]",
    "lea rdi, [rdi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    // The compiled core library names it in unwind tables, which script.ld drops.
    ".global rust_eh_personality",
    "rust_eh_personality:",
    "ud2",
);

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for i in 0..len {
        // Volatile, or this loop could become a call of itself.
        // SAFETY: the caller vouches for `len` bytes at `a`, and `i` is below `len`.
        let x = unsafe { a.wrapping_add(i).read_volatile() };
        // SAFETY: and for as many at `b`.
        let y = unsafe { b.wrapping_add(i).read_volatile() };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, len) }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    println!("PANIC {info}");
    power::triple_fault()
}

/// traps.s sends every fault here, in ring 3.
#[unsafe(no_mangle)]
extern "C" fn fault_report(vector: u64, error: u64, rip: u64, cr2: u64, rsp: u64, cs: u64) -> ! {
    println!("FAULT vector={vector} error={error:#x} rip={rip:#x} cr2={cr2:#x} rsp={rsp:#x} ring={}", cs & 3);
    power::triple_fault()
}

/// Tells the compiler that memory may have changed, as a device's write does.
pub(crate) fn memory_may_have_changed() {
    // SAFETY: no instruction at all.
    unsafe { asm!("", options(nostack, preserves_flags)) }
}
