//! What a program without a library must bring itself: the entry, the panic and the memory functions that the compiler
//! calls by name.
#![expect(unsafe_code, reason = "the entry and the compiler's memory functions are assembly")]

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

use crate::sys;
use crate::text::say;

// The kernel enters with the argument count on top of the stack; System V AMD64 ABI §3.4.1.
global_asm!(
    ".globl _start",
    "_start:",
    "xor %ebp, %ebp",
    "and $-16, %rsp",
    "call {run}",
    "ud2",
    run = sym enter,
    options(att_syntax)
);

extern "C" fn enter() -> ! {
    crate::run()
}

/// Says what happened and leaves, which makes the kernel panic and, with `panic=-1`, reset the machine.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("GUEST PANIC {info}");
    sys::exit(101)
}

// SAFETY: the compiler calls this name with C's contract for memcpy, which the body keeps, and nobody else defines it.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: C's contract gives `len` readable bytes at `from` and writable ones at `to`, which is all that `rep movsb`
    // touches; the ABI keeps the direction flag clear.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
             options(nostack, preserves_flags));
    }
    to
}

// SAFETY: as for memcpy.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= len {
        // SAFETY: the caller's contract is memcpy's but for the overlap, and copying upwards reads every byte before it
        // is overwritten unless `to` lies inside the source, which the line above excludes.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: C's contract gives both ranges, `len` is not 0 here, and `std` and `cld` leave the direction flag clear.
    unsafe {
        asm!("lea rdi, [rdi + rcx - 1]", "lea rsi, [rsi + rcx - 1]", "std", "rep movsb", "cld",
             inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack));
    }
    to
}

// SAFETY: as for memcpy.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: C's contract gives `len` writable bytes at `to`, which is all that `rep stosb` touches.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("eax") byte,
             options(nostack, preserves_flags));
    }
    to
}

// SAFETY: as for memcpy.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    for index in 0..len {
        // SAFETY: C's contract gives `len` readable bytes at `left`, and `index` is below that.
        let ours = unsafe { left.wrapping_add(index).read() };
        // SAFETY: the same at `right`.
        let theirs = unsafe { right.wrapping_add(index).read() };
        if ours != theirs {
            return i32::from(ours) - i32::from(theirs);
        }
    }
    0
}

// SAFETY: as for memcpy.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
    // SAFETY: the contract is memcmp's.
    unsafe { memcmp(left, right, len) }
}
