//! What the machine is: guest memory, the address map, interrupt numbers, boot protocols, CPUs, ACPI.
//!
//! Everything here is a pure function over guest memory or a few ioctls on a vCPU: no thread, no lock, no device.
//! Whatever another architecture would replace is under `x86_64`.
//!
//! | module | owns |
//! | --- | --- |
//! | [`memory`] | the one alias for guest memory, and which of its pages this process wrote |
//! | [`gsi`] | interrupt numbers |
//! | [`topology`] | how many vCPUs there are and which one is meant |
//! | [`layout`] | the address map: memory, ports, interrupt lines |
//! | [`boot`] | kernel, initrd, command line, and the structures that a kernel finds at its entry |
//! | [`cpuid`] | what CPUID answers |
//! | [`cpu_identity`] | which CPU a guest has seen, and whether a host can go on with it |
//! | [`cpu_template`] | what a user changes in CPUID and MSRs |
//! | [`msrs`] | the MSRs that firmware would have set |
//! | [`vcpu`] | the state of a vCPU before its first instruction, and a state saved and restored |
//! | [`vm`] | the same for what KVM keeps beside the vCPUs |
//! | [`clock`] | how far a restored guest's clocks advance |
//! | [`acpi`] | the tables that name the hardware |
//! | [`mp`] | the table that names CPUs and interrupts to a kernel without ACPI |

pub mod gsi;
pub mod memory;
pub mod topology;

#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use gsi::Gsi;
pub use memory::{GuestAddress, GuestMemory};
pub use topology::{ThreadsPerCore, VcpuCount, VcpuIndex};
#[cfg(target_arch = "x86_64")]
pub use x86_64::{acpi, boot, cache::prefetch, clock, cpu_identity, cpu_template, cpuid, layout, mp, msrs, vcpu, vm};
