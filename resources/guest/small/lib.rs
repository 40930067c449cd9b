//! What husk's own guests share: a ring-0 stub in assembly, then ordinary Rust in ring 3.
//!
//! Ring 0 may be emulated by the host's KVM at a millionth of the speed of ring 3, so nearly everything runs in ring 3:
//! with every port and all of memory its own, and calls down ([`cpu`]) for the few instructions that ring 3 cannot do.
//! Memory is mapped where it is (virtual = physical), so device addresses are pointers. Nothing here is used by husk
//! itself; a guest that meets what it does not expect says so on its console and ends the machine by a triple fault.

#![no_std]
#![warn(missing_docs)]

pub mod acpi;
pub mod apic;
pub mod blk;
pub mod boot;
#[macro_use]
pub mod console;
pub mod cpu;
pub mod mem;
pub mod memory;
mod mptable;
pub mod net;
pub mod platform;
pub mod power;
pub mod rng;
mod rt;
pub mod smp;
pub mod time;
pub mod virtio;

/// Names the PVH entry in an ELF note; a guest without it can only be entered by the 64-bit Linux protocol.
#[macro_export]
macro_rules! pvh_note {
    ($entry:literal) => {
        core::arch::global_asm!(
            ".pushsection .note.Xen, \"a\", @note",
            ".balign 4",
            ".long 4, 4, 18", // name and value sizes, XEN_ELFNOTE_PHYS32_ENTRY
            ".asciz \"Xen\"",
            concat!(".long ", $entry),
            ".popsection",
        );
    };
}
