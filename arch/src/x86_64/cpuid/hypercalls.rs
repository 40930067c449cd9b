//! Features by which a guest calls its hypervisor, on a host where such a call never returns.
//!
//! When KVM's emulator meets VMCALL or VMMCALL, it writes the host CPU's form of it into guest memory and lets the guest
//! execute it anew, for the processor to trap. Where the processor runs no guests and ring 0 is emulated throughout, it is
//! the emulator that meets it again, for ever. The KVM of such a host offers these features all the same.

use std::arch::x86_64::__cpuid;

use kvm_bindings::CpuId;

use super::LEAF_KVM_FEATURES;

// Bits of EAX (KVM: Documentation/virt/kvm/x86/cpuid.rst). A guest that sees them calls, in this order, KVM_HC_KICK_CPU for
// who waits at a spinlock, KVM_HC_SEND_IPI (Linux: to some of the other CPUs, but not to one or to all), KVM_HC_SCHED_YIELD
// and KVM_HC_MAP_GPA_RANGE.
const PV_UNHALT: u32 = 1 << 7;
const PV_SEND_IPI: u32 = 1 << 11;
const PV_SCHED_YIELD: u32 = 1 << 13;
const MAP_GPA_RANGE: u32 = 1 << 16;

/// How the instructions of a guest's kernel are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring0 {
    /// By the processor.
    Native,
    /// By KVM.
    Emulated,
}

impl Ring0 {
    /// How it is on this host: without VT-x and AMD-V, KVM can only emulate.
    #[must_use]
    pub fn of_host() -> Self {
        const VMX: u32 = 1 << 5; // of leaf 1, ECX: SDM 2A CPUID
        const SVM: u32 = 1 << 2; // of leaf 0x8000_0001, ECX: APM 3 §E.4.2
        let has_svm = || __cpuid(0x8000_0000).eax > 0x8000_0000 && __cpuid(0x8000_0001).ecx & SVM != 0;
        if __cpuid(1).ecx & VMX != 0 || has_svm() { Self::Native } else { Self::Emulated }
    }
}

/// What KVM_GET_SUPPORTED_CPUID returned, without the features that a guest on this host could not use.
#[must_use]
pub fn usable(mut supported: CpuId, ring0: Ring0) -> CpuId {
    if ring0 == Ring0::Emulated {
        let leaves = supported.as_mut_slice().iter_mut().filter(|entry| entry.function == LEAF_KVM_FEATURES);
        leaves.for_each(|leaf| leaf.eax &= !(PV_UNHALT | PV_SEND_IPI | PV_SCHED_YIELD | MAP_GPA_RANGE));
    }
    supported
}
