//! A vCPU's saved state. Taken while the vCPU is out of the guest with its last exit completed; given to a vCPU that has
//! never run, on this host or another. What is restored may have been written by anyone: KVM checks most, the rest is here.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::msr_values::{self, MSRS_MAX, MsrValue};
use super::tsc::{TscResume, TscState};
use super::xsave::{XSAVE_BYTES_MAX, XsaveBytes};
use crate::clock::TimeAway;
use crate::msrs;
use crate::topology::VcpuIndex;
use crate::x86_64::exact;

/// A vCPU's state cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum VcpuStateError {
    /// KVM does not list its MSRs.
    #[error("cannot list the MSRs of a vCPU (KVM_GET_MSR_INDEX_LIST)")]
    MsrList(#[source] kvm_ioctls::Error),
    /// A part cannot be read.
    #[error("cannot save vCPU {index}: {ioctl}")]
    Save {
        /// The vCPU.
        index: VcpuIndex,
        /// What was attempted.
        ioctl: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// The guest is a hypervisor, and its guests are beyond the state here.
    #[error("cannot save vCPU {index}: its guest has {extension} on, and with it perhaps guests of its own")]
    Nested {
        /// The vCPU.
        index: VcpuIndex,
        /// What it uses.
        extension: &'static str,
    },
    /// KVM does not take a part.
    #[error("cannot restore vCPU {index}: {ioctl}")]
    Restore {
        /// The vCPU.
        index: VcpuIndex,
        /// What was attempted.
        ioctl: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// KVM_SET_MSRS stopped early.
    #[error("cannot restore vCPU {index}: KVM refuses the value {value:#x} for MSR {msr:#x}")]
    Msr {
        /// The vCPU.
        index: VcpuIndex,
        /// The MSR that was refused.
        msr: u32,
        /// What it should have become.
        value: u64,
    },
    /// A list in the state is longer than any vCPU's.
    #[error("cannot restore vCPU {index}: {found} {what} are more than {limit}")]
    TooMany {
        /// The vCPU.
        index: VcpuIndex,
        /// What of.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there can be.
        limit: usize,
    },
    /// Registers that this host's vCPUs do not have.
    #[error("cannot restore vCPU {index}: {found} bytes of XSAVE registers, and this host keeps {least} to {most}")]
    XsaveBytes {
        /// The vCPU.
        index: VcpuIndex,
        /// How many bytes there are.
        found: usize,
        /// The fewest that there can be.
        least: usize,
        /// The most that this host has.
        most: usize,
    },
    /// The host's time stamp counter has another frequency, and cannot be scaled.
    #[error(
        "cannot restore vCPU {index}: its time stamp counter ran at {saved_khz} kHz, this host's at {host_khz} kHz, which it does not scale (KVM_SET_TSC_KHZ)"
    )]
    TscFrequency {
        /// The vCPU.
        index: VcpuIndex,
        /// The saved frequency.
        saved_khz: u32,
        /// The host's, 0 if KVM does not know it.
        host_khz: u32,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// The states of one machine do not agree.
    #[error("cannot restore vCPU {index}: it has no offset of its time stamp counter, and the boot CPU has")]
    TscOffset {
        /// The vCPU.
        index: VcpuIndex,
    },
}

/// What KVM keeps for each vCPU of a VM on this host: the same for all of them, and for the VM's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcpuShape {
    msrs: Vec<u32>,
    xsave: XsaveBytes,
}

impl VcpuShape {
    /// Asks KVM.
    ///
    /// # Errors
    /// [`VcpuStateError::MsrList`].
    pub fn of(kvm: &Kvm, vm: &VmFd) -> Result<Self, VcpuStateError> {
        let listed = kvm.get_msr_index_list().map_err(VcpuStateError::MsrList)?;
        Ok(Self { msrs: msrs::saved(listed.as_slice()), xsave: XsaveBytes::of(vm) })
    }
}

/// Everything of a vCPU that a guest can see. The fields are in the order of their restore.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VcpuState {
    cpuid: Vec<CpuidLeaf>,
    #[serde(with = "exact")]
    mp_state: kvm_mp_state,
    #[serde(with = "exact")]
    regs: kvm_regs,
    #[serde(with = "exact")]
    sregs: kvm_sregs,
    xsave: Vec<u8>,
    #[serde(with = "exact")]
    xcrs: kvm_xcrs,
    #[serde(with = "exact")]
    debug_regs: kvm_debugregs,
    #[serde(with = "exact")]
    lapic: kvm_lapic_state,
    tsc: TscState,
    msrs: Vec<MsrValue>,
    #[serde(with = "exact")]
    events: kvm_vcpu_events,
}

impl VcpuState {
    /// Reads the state of a vCPU that is out of the guest.
    ///
    /// # Errors
    /// [`VcpuStateError`] names the ioctl that failed, or why this guest cannot be saved.
    pub fn save(fd: &VcpuFd, index: VcpuIndex, shape: &VcpuShape) -> Result<Self, VcpuStateError> {
        let failed = |ioctl| move |source| VcpuStateError::Save { index, ioctl, source };
        // First: to answer it, KVM takes a start-up IPI that is under way, which changes registers. And the events last:
        // reading the LAPIC may make one.
        let mp_state = fd.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
        let sregs = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        if let Some(extension) = nested(&sregs) {
            return Err(VcpuStateError::Nested { index, extension });
        }
        let cpuid = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_CPUID2"))?;
        Ok(Self {
            cpuid: cpuid.as_slice().iter().map(CpuidLeaf::of).collect(),
            mp_state,
            regs: fd.get_regs().map_err(failed("KVM_GET_REGS"))?,
            sregs,
            xsave: shape.xsave.read(fd).map_err(failed("KVM_GET_XSAVE2"))?,
            xcrs: fd.get_xcrs().map_err(failed("KVM_GET_XCRS"))?,
            debug_regs: fd.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?,
            lapic: fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?,
            tsc: TscState::save(fd, index)?,
            msrs: msr_values::read(fd, index, &shape.msrs)?,
            events: fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// How the time stamp counters of a machine go on whose boot CPU had this state, `away` later; for every vCPU's
    /// [`Self::restore`]. `fd` is the boot CPU's, which has not run yet.
    ///
    /// # Errors
    /// [`VcpuStateError`], if this host's counter cannot be like the saved one.
    pub fn resume_tsc(&self, fd: &VcpuFd, away: TimeAway) -> Result<TscResume, VcpuStateError> {
        self.tsc.resume(fd, VcpuIndex::BOOT, away)
    }

    /// Gives the state to a vCPU that has never run. Its VM has its memory and in-kernel interrupt controllers.
    ///
    /// # Errors
    /// [`VcpuStateError`] names what this host or KVM does not take. The vCPU may not be run then.
    pub fn restore(
        &self,
        fd: &VcpuFd,
        index: VcpuIndex,
        shape: &VcpuShape,
        tsc: TscResume,
    ) -> Result<(), VcpuStateError> {
        let Self { cpuid, mp_state, regs, sregs, xsave, xcrs, debug_regs, lapic, tsc: own_tsc, msrs, events } = self;
        let failed = |ioctl| move |source| VcpuStateError::Restore { index, ioctl, source };
        self.check_counts(index)?;
        let cpuid: Vec<_> = cpuid.iter().map(CpuidLeaf::entry).collect();
        let cpuid = CpuId::from_entries(&cpuid).expect("check_counts() holds them against the limit");
        // First, because KVM checks what follows against it.
        fd.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
        fd.set_mp_state(*mp_state).map_err(failed("KVM_SET_MP_STATE"))?;
        fd.set_regs(regs).map_err(failed("KVM_SET_REGS"))?;
        fd.set_sregs(sregs).map_err(failed("KVM_SET_SREGS"))?;
        shape.xsave.write(fd, index, xsave)?;
        fd.set_xcrs(xcrs).map_err(failed("KVM_SET_XCRS"))?;
        fd.set_debug_regs(debug_regs).map_err(failed("KVM_SET_DEBUGREGS"))?;
        // After the special registers: they have the LAPIC's base and mode.
        fd.set_lapic(lapic).map_err(failed("KVM_SET_LAPIC"))?;
        own_tsc.restore(fd, index, tsc)?;
        // After the LAPIC and the counter: the timer's deadline is a value of the one and needs the other's mode.
        msr_values::write(fd, index, msrs)?;
        // After the registers: setting those drops a pending exception.
        fd.set_vcpu_events(events).map_err(failed("KVM_SET_VCPU_EVENTS"))
    }

    /// Whether the vCPU runs, is halted or waits for an IPI: one of KVM_MP_STATE_* (KVM api: KVM_GET_MP_STATE).
    pub fn mp_state(&self) -> u32 {
        self.mp_state.mp_state
    }

    /// The CPUID that the vCPU has.
    pub fn cpuid(&self) -> Vec<kvm_cpuid_entry2> {
        self.cpuid.iter().map(CpuidLeaf::entry).collect()
    }

    fn check_counts(&self, index: VcpuIndex) -> Result<(), VcpuStateError> {
        let counts = [
            ("CPUID leaves", self.cpuid.len(), KVM_MAX_CPUID_ENTRIES),
            ("MSRs", self.msrs.len(), MSRS_MAX),
            ("bytes of XSAVE registers", self.xsave.len(), XSAVE_BYTES_MAX),
        ];
        match counts.into_iter().find(|(_, found, limit)| found > limit) {
            Some((what, found, limit)) => Err(VcpuStateError::TooMany { index, what, found, limit }),
            None => Ok(()),
        }
    }
}

/// What says that a guest is a hypervisor: VMX operation needs CR4.VMXE (SDM 3C §24.7), SVM's instructions EFER.SVME
/// (APM 2 §15.4).
fn nested(sregs: &kvm_sregs) -> Option<&'static str> {
    const CR4_VMXE: u64 = 1 << 13;
    const EFER_SVME: u64 = 1 << 12;
    match () {
        () if sregs.cr4 & CR4_VMXE != 0 => Some("VT-x"),
        () if sregs.efer & EFER_SVME != 0 => Some("SVM"),
        () => None,
    }
}

/// One answer of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct CpuidLeaf {
    function: u32,
    index: u32,
    flags: u32,
    registers: [u32; 4],
}

impl CpuidLeaf {
    fn of(entry: &kvm_cpuid_entry2) -> Self {
        let &kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, padding: _ } = entry;
        Self { function, index, flags, registers: [eax, ebx, ecx, edx] }
    }

    fn entry(&self) -> kvm_cpuid_entry2 {
        let &Self { function, index, flags, registers: [eax, ebx, ecx, edx] } = self;
        kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
    }
}

#[cfg(test)]
mod tests;
