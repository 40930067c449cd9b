//! The state of a vCPU before its first instruction. Runs on the vCPU's own thread, or on the one that builds it.

mod msr_values;
mod state;
mod tsc;
mod xsave;

use kvm_bindings::{CpuId, Msrs, kvm_dtable, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::boot::{BootProtocol, Kernel};
use crate::layout::{BOOT_STACK_TOP, GDT_SIZE, GDT_START, PAGE_TABLES_START, PVH_START_INFO, ZERO_PAGE};
use crate::topology::VcpuIndex;

pub use self::state::{VcpuShape, VcpuState, VcpuStateError};
pub use self::tsc::TscResume;

/// KVM did not take a vCPU's state.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// One of the ioctls failed.
    #[error("cannot configure vCPU {index}: {ioctl}")]
    Ioctl {
        /// The vCPU.
        index: VcpuIndex,
        /// What was attempted.
        ioctl: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// KVM_SET_MSRS stopped early.
    #[error("cannot configure vCPU {index}: KVM refuses the value {value:#x} for MSR {msr:#x}")]
    Msr {
        /// The vCPU.
        index: VcpuIndex,
        /// The MSR that was refused.
        msr: u32,
        /// What it should have become.
        value: u64,
    },
}

/// Configures a vCPU that has never run. With a kernel it is the one that enters it, in the state that the kernel's
/// protocol asks for. Without, it stays as KVM made it, waiting for a start-up IPI, with only CPUID and MSRs set: the
/// INIT before that IPI resets everything else. The VM must have its in-kernel LAPIC. The FPU needs nothing: KVM makes it as
/// FNINIT leaves it.
///
/// # Errors
/// [`VcpuError`] names the ioctl that failed, or the MSR that was refused.
pub fn configure(
    fd: &VcpuFd,
    index: VcpuIndex,
    cpuid: &CpuId,
    msrs: &Msrs,
    entry: Option<&Kernel>,
) -> Result<(), VcpuError> {
    let failed = |ioctl| move |source| VcpuError::Ioctl { index, ioctl, source };
    // First, because KVM checks what follows against it.
    fd.set_cpuid2(cpuid).map_err(failed("KVM_SET_CPUID2"))?;
    if let Some(kernel) = entry {
        fd.set_regs(&registers(kernel)).map_err(failed("KVM_SET_REGS"))?;
        let mut sregs = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        enter_mode(&mut sregs, kernel.protocol);
        fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
        let mut lapic = fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
        connect_local_interrupts(&mut lapic);
        fd.set_lapic(&lapic).map_err(failed("KVM_SET_LAPIC"))?;
    }
    let set = fd.set_msrs(msrs).map_err(failed("KVM_SET_MSRS"))?;
    match msrs.as_slice().get(set) {
        None => Ok(()),
        Some(refused) => Err(VcpuError::Msr { index, msr: refused.index, value: refused.data }),
    }
}

/// What these MSRs hold on a vCPU, in their order, up to the first that KVM does not have.
///
/// # Errors
/// [`VcpuError::Ioctl`]; more MSRs than KVM_GET_MSRS takes count as one that it refuses.
pub fn read_msrs(fd: &VcpuFd, index: VcpuIndex, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, VcpuError> {
    let failed = |source| VcpuError::Ioctl { index, ioctl: "KVM_GET_MSRS", source };
    let entries: Vec<_> = indices.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    let mut msrs = Msrs::from_entries(&entries).map_err(|_| failed(kvm_ioctls::Error::new(libc::E2BIG)))?;
    let read = fd.get_msrs(&mut msrs).map_err(failed)?;
    Ok(msrs.as_slice()[..read].to_vec())
}

fn registers(kernel: &Kernel) -> kvm_regs {
    // Bit 1 is always set, all else off: interrupts too, as both protocols want (SDM 1 §3.4.3).
    let regs = kvm_regs { rip: kernel.entry.0, rflags: 1 << 1, ..Default::default() };
    match kernel.protocol {
        BootProtocol::Pvh => kvm_regs { rbx: PVH_START_INFO.0, ..regs },
        BootProtocol::Linux64 => kvm_regs { rsi: ZERO_PAGE.0, rsp: BOOT_STACK_TOP.0, rbp: BOOT_STACK_TOP.0, ..regs },
    }
}

// SDM 3A §2.5, and §2.2.1 for EFER.
const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;

fn enter_mode(sregs: &mut kvm_sregs, protocol: BootProtocol) {
    let code = segment(CODE_SELECTOR, TYPE_CODE);
    match protocol {
        // No paging, flat 32-bit segments, no descriptor table: the kernel loads its own before it loads a segment.
        BootProtocol::Pvh => {
            sregs.cs = kvm_segment { db: 1, ..code };
            sregs.gdt = kvm_dtable::default();
            sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
            sregs.cr3 = 0;
            sregs.cr4 = 0;
            sregs.efer = 0;
        }
        BootProtocol::Linux64 => {
            sregs.cs = kvm_segment { l: 1, ..code };
            sregs.gdt = kvm_dtable { base: GDT_START.0, limit: GDT_LIMIT, ..Default::default() };
            sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE | CR0_PAGING;
            sregs.cr3 = PAGE_TABLES_START.0;
            sregs.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
            sregs.efer = EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
        }
    }
    let data = kvm_segment { db: 1, ..segment(DATA_SELECTOR, TYPE_DATA) };
    for register in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *register = data;
    }
    // Hardware refuses to run with a task register that is not a busy TSS (SDM 3C §27.3.1.2).
    sregs.tr = kvm_segment { limit: TSS_LIMIT, type_: TYPE_TSS_BUSY, present: 1, ..Default::default() };
    sregs.idt = kvm_dtable::default();
}

/// The four descriptors that the loader wrote, in bytes, less one.
const GDT_LIMIT: u16 = 31;
const _: () = assert!(GDT_LIMIT as u64 + 1 == GDT_SIZE);
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
// SDM 3A §3.4.5.1 and §3.5: readable code and writable data, both accessed; a TSS in use.
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;
const TYPE_TSS_BUSY: u8 = 0xb;
/// The smallest TSS, in bytes, less one.
const TSS_LIMIT: u32 = 0x67;

/// All of 4 GiB, ring 0.
fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment { base: 0, limit: u32::MAX, selector, type_, present: 1, s: 1, g: 1, ..Default::default() }
}

const LAPIC_LVT_LINT0: usize = 0x350;
const LAPIC_LVT_LINT1: usize = 0x360;
// Delivery modes in bits 10:8 of an LVT entry (SDM 3A §11.5.1).
const DELIVER_NMI: u32 = 0b100 << 8;
const DELIVER_EXTINT: u32 = 0b111 << 8;

/// Wires the 8259 pair to LINT0 and NMI to LINT1, as a PC's firmware leaves the boot CPU (MP 1.4 §3.6.2.1).
fn connect_local_interrupts(lapic: &mut kvm_lapic_state) {
    for (register, value) in [(LAPIC_LVT_LINT0, DELIVER_EXTINT), (LAPIC_LVT_LINT1, DELIVER_NMI)] {
        for (byte, new) in lapic.regs[register..register + 4].iter_mut().zip(value.to_le_bytes()) {
            *byte = i8::from_le_bytes([new]);
        }
    }
}

#[cfg(test)]
mod tests;
