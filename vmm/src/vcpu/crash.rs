//! What is said of a vCPU that cannot go on: enough to find the guest's instruction at 3 a.m.
#![expect(unsafe_code, reason = "kvm_run is a union; the exit reason says which member is meant")]

use std::fmt;

use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES};
use kvm_ioctls::VcpuFd;

use arch::VcpuIndex;

/// A vCPU that cannot go on.
#[derive(Debug)]
pub struct Crash {
    /// Which vCPU.
    pub vcpu: VcpuIndex,
    /// Why.
    pub kind: CrashKind,
    /// Instruction pointer, if the registers could be read.
    pub rip: Option<u64>,
    /// What the vCPU was executing, if the registers could be read.
    pub mode: Option<CpuMode>,
}

/// Why a vCPU cannot go on.
#[derive(Debug)]
pub enum CrashKind {
    /// KVM_EXIT_SHUTDOWN: a fault in the handling of a double fault.
    TripleFault,
    /// KVM_EXIT_INTERNAL_ERROR: KVM cannot go on with the guest.
    Internal {
        /// KVM's number for what went wrong.
        suberror: u32,
        /// The instruction bytes of an emulation failure, else empty.
        data: Vec<u8>,
    },
    /// KVM_EXIT_FAIL_ENTRY: the hardware refused the guest's state.
    FailEntry {
        /// The hardware's reason.
        reason: u64,
        /// The host CPU.
        cpu: u32,
    },
    /// Guest memory that the host does not have: KVM_RUN said EFAULT.
    Memory {
        /// The guest-physical address, if KVM tells.
        address: Option<u64>,
        /// Bytes that were wanted; 0 if KVM does not tell.
        size: u64,
    },
    /// KVM_RUN failed otherwise.
    Host {
        /// What it said.
        source: kvm_ioctls::Error,
    },
    /// An exit that husk never asked KVM for.
    Unknown {
        /// Its name.
        exit: String,
    },
}

/// The mode of a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuMode {
    /// 16, 32 or 64.
    pub bits: u8,
    /// The privilege level, 0 to 3.
    pub ring: u8,
    /// Whether paging is on.
    pub paging: bool,
}

impl Crash {
    pub(super) fn describe(vcpu: VcpuIndex, kind: CrashKind, fd: &VcpuFd) -> Self {
        let mode = fd.get_sregs().ok().map(|sregs| CpuMode::of(&sregs));
        Self { vcpu, kind, rip: fd.get_regs().ok().map(|regs| regs.rip), mode }
    }
}

impl CrashKind {
    /// Completes an internal error with what KVM left in the vCPU's `kvm_run` page.
    pub(super) fn with_detail(self, fd: &mut VcpuFd) -> Self {
        let Self::Internal { .. } = self else { return self };
        let run = fd.get_kvm_run();
        // SAFETY: KVM_EXIT_INTERNAL_ERROR was this vCPU's last exit, so `internal` is the member KVM wrote.
        let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
        if suberror != KVM_INTERNAL_ERROR_EMULATION {
            return Self::Internal { suberror, data: Vec::new() };
        }
        // SAFETY: as above; `emulation_failure` is the same bytes for this suberror, and all its fields are integers.
        let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
        // SAFETY: the inner union has one member.
        let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let told = failure.ndata > 0 && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
        let size = if told { usize::from(instruction.insn_size).min(instruction.insn_bytes.len()) } else { 0 };
        Self::Internal { suberror, data: instruction.insn_bytes[..size].to_vec() }
    }
}

impl CpuMode {
    fn of(sregs: &kvm_bindings::kvm_sregs) -> Self {
        const CR0_PE: u64 = 1;
        const CR0_PG: u64 = 1 << 31;
        const EFER_LMA: u64 = 1 << 10;
        let bits = match () {
            () if sregs.efer & EFER_LMA != 0 && sregs.cs.l != 0 => 64,
            () if sregs.cr0 & CR0_PE != 0 && sregs.cs.db != 0 => 32,
            () => 16,
        };
        // The privilege level is that of SS (SDM 3A §5.5).
        Self { bits, ring: sregs.ss.dpl, paging: sregs.cr0 & CR0_PG != 0 }
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vcpu {}: {}", self.vcpu, self.kind)?;
        if let Some(rip) = self.rip {
            write!(f, " at rip {rip:#x}")?;
        }
        if let Some(mode) = self.mode {
            write!(f, ", {mode}")?;
        }
        if let CrashKind::Internal { data, .. } = &self.kind
            && !data.is_empty()
        {
            f.write_str(", instruction bytes")?;
            data.iter().try_for_each(|byte| write!(f, " {byte:02x}"))?;
        }
        Ok(())
    }
}

impl fmt::Display for CpuMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paging = if self.paging { "paging" } else { "no paging" };
        write!(f, "{}-bit ring {}, {paging}", self.bits, self.ring)
    }
}

impl fmt::Display for CrashKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TripleFault => f.write_str("guest crashed: triple fault (KVM_EXIT_SHUTDOWN)"),
            Self::Internal { suberror, .. } => {
                let name = match suberror {
                    1 => "emulation failure",
                    2 => "simultaneous exceptions",
                    3 => "exit while an event was delivered",
                    4 => "unexpected exit reason",
                    _ => "unknown",
                };
                write!(f, "guest crashed: KVM_EXIT_INTERNAL_ERROR, suberror {suberror} ({name})")
            }
            Self::FailEntry { reason, cpu } => {
                write!(f, "guest crashed: KVM_EXIT_FAIL_ENTRY, hardware reason {reason:#x} on host CPU {cpu}")
            }
            Self::Memory { address: Some(address), size } => {
                write!(f, "guest memory that the host cannot give: {size} bytes at guest address {address:#x} (EFAULT)")
            }
            Self::Memory { address: None, .. } => f.write_str("guest memory that the host cannot give (EFAULT)"),
            Self::Host { source } => write!(f, "KVM_RUN failed: {source}"),
            Self::Unknown { exit } => write!(f, "exit that husk did not ask for: {exit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_says_vcpu_reason_place_mode_and_bytes() {
        let crash = Crash {
            vcpu: VcpuIndex::BOOT,
            kind: CrashKind::Internal { suberror: 1, data: vec![0xcc, 0x90] },
            rip: Some(0x1000),
            mode: Some(CpuMode { bits: 64, ring: 0, paging: true }),
        };
        assert_eq!(
            crash.to_string(),
            "vcpu 0: guest crashed: KVM_EXIT_INTERNAL_ERROR, suberror 1 (emulation failure) at rip 0x1000, \
             64-bit ring 0, paging, instruction bytes cc 90"
        );
        let memory = Crash {
            vcpu: VcpuIndex::BOOT,
            kind: CrashKind::Memory { address: Some(0x20_0000), size: 4096 },
            rip: None,
            mode: None,
        };
        assert_eq!(
            memory.to_string(),
            "vcpu 0: guest memory that the host cannot give: 4096 bytes at guest address 0x200000 (EFAULT)"
        );
    }
}
