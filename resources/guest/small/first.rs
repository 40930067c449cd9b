//! The smallest guest: writes `!` to the serial port as its first act, then sleeps for ever. Boot times are measured to
//! that byte, so it has no stack, no data and one page, and its code means the same in 32-bit (PVH) and 64-bit mode.

#![no_std]
#![no_main]

core::arch::global_asm!(
    ".pushsection .text.start, \"ax\", @progbits",
    ".global start",
    "start:",
    ".byte 0x66, 0xba, 0xf8, 0x03", // mov dx, 0x3f8
    ".byte 0xb0, 0x21",             // mov al, '!'
    ".byte 0xee",                   // out dx, al
    ".byte 0xfa",                   // cli
    ".byte 0xf4",                   // 1: hlt
    ".byte 0xeb, 0xfd",             // jmp 1b
    ".popsection",
);
core::arch::global_asm!(
    ".pushsection .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 4, 18", // name and value sizes, XEN_ELFNOTE_PHYS32_ENTRY
    ".asciz \"Xen\"",
    ".long start",
    ".popsection",
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
