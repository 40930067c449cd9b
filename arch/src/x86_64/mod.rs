//! The x86-64 machine.

pub mod acpi;
pub mod boot;
pub(crate) mod cache;
pub mod clock;
pub mod cpu_identity;
pub mod cpu_template;
pub mod cpuid;
mod exact;
pub mod layout;
pub mod mp;
pub mod msrs;
pub mod vcpu;
pub mod vm;
