//! The x86-64 machine.

pub mod acpi;
pub mod boot;
pub mod cpu_template;
pub mod cpuid;
pub mod layout;
pub mod mp;
pub mod msrs;
pub mod vcpu;
