//! The KVM capabilities that husk stands on or profits from, and what each is for (KVM api: KVM_CHECK_EXTENSION).

use arch::topology::VCPU_COUNT_MAX;
use kvm_bindings as kvm;

/// What its absence means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// No VM can run.
    Required,
    /// What it is for cannot be had.
    Feature,
    /// What it is for works less well.
    Better,
    /// Nothing: it is a figure to know.
    Figure,
}

/// One capability.
#[derive(Debug)]
pub(super) struct Capability {
    pub(super) name: &'static str,
    pub(super) number: u32,
    pub(super) need: Need,
    /// The least value that counts as there.
    pub(super) least: i32,
    pub(super) purpose: &'static str,
    /// Where it comes from.
    pub(super) fix: &'static str,
}

const fn capability(
    (name, number): (&'static str, u32),
    need: Need,
    purpose: &'static str,
    fix: &'static str,
) -> Capability {
    Capability { name, number, need, least: 1, purpose, fix }
}

const fn at_least(least: i32, capability: Capability) -> Capability {
    Capability { least, ..capability }
}

/// A name and its number from one word.
macro_rules! cap {
    ($name:ident) => {
        (stringify!($name), kvm::$name)
    };
}

/// For what every kernel of the last ten years has.
const NEWER: &str = "use a newer kernel";

/// The slots that a 64-bit KVM gave before it had 32764. Fewer limit how often memory can be added to a running VM.
const MEMSLOTS_LEAST: i32 = 509;

/// In the order of the table.
#[rustfmt::skip]
pub(super) const CAPABILITIES: &[Capability] = &[
    capability(cap!(KVM_CAP_USER_MEMORY), Need::Required, "guest memory", NEWER),
    capability(cap!(KVM_CAP_IRQCHIP), Need::Required, "interrupt controllers in the kernel", NEWER),
    capability(cap!(KVM_CAP_PIT2), Need::Required, "the interval timer of a PC", NEWER),
    capability(cap!(KVM_CAP_IRQFD), Need::Required, "device interrupts raised inside the kernel", NEWER),
    capability(cap!(KVM_CAP_IOEVENTFD), Need::Required, "doorbells that stay in the kernel", NEWER),
    capability(cap!(KVM_CAP_IMMEDIATE_EXIT), Need::Required, "stopping a vCPU without losing the request", "use Linux 4.11 or newer"),
    at_least(VCPU_COUNT_MAX as i32, capability(cap!(KVM_CAP_MAX_VCPUS), Need::Better, "vCPUs that a VM may have", NEWER)),
    capability(cap!(KVM_CAP_NR_VCPUS), Need::Figure, "vCPUs that KVM recommends", ""),
    at_least(VCPU_COUNT_MAX as i32, capability(cap!(KVM_CAP_MAX_VCPU_ID), Need::Better, "APIC ids of a VM's topology", "use Linux 4.8 or newer")),
    at_least(MEMSLOTS_LEAST, capability(cap!(KVM_CAP_NR_MEMSLOTS), Need::Better, "memory slots: memory added while running", NEWER)),
    capability(cap!(KVM_CAP_READONLY_MEM), Need::Feature, "memory that the guest may not write", NEWER),
    capability(cap!(KVM_CAP_TSC_DEADLINE_TIMER), Need::Better, "guest timers of one register write", NEWER),
    capability(cap!(KVM_CAP_X2APIC_API), Need::Better, "interrupts to APIC ids above 255", "use Linux 4.7 or newer"),
    capability(cap!(KVM_CAP_IRQ_ROUTING), Need::Feature, "MSI routes: interrupts of PCI devices", NEWER),
    capability(cap!(KVM_CAP_SIGNAL_MSI), Need::Better, "an MSI without a route", NEWER),
    capability(cap!(KVM_CAP_SPLIT_IRQCHIP), Need::Better, "IOAPIC in husk, local APICs in the kernel", "use Linux 4.4 or newer"),
    capability(cap!(KVM_CAP_MP_STATE), Need::Feature, "saving halted and waiting vCPUs", NEWER),
    capability(cap!(KVM_CAP_VCPU_EVENTS), Need::Feature, "saving interrupts and exceptions under way", NEWER),
    capability(cap!(KVM_CAP_DEBUGREGS), Need::Feature, "saving debug registers", NEWER),
    capability(cap!(KVM_CAP_XSAVE), Need::Feature, "saving vector registers", NEWER),
    capability(cap!(KVM_CAP_XSAVE2), Need::Better, "saving vector state above 4 KiB (AMX)", "use Linux 5.17 or newer"),
    capability(cap!(KVM_CAP_XCRS), Need::Feature, "saving which vector state is enabled", NEWER),
    capability(cap!(KVM_CAP_ADJUST_CLOCK), Need::Feature, "saving the guest's clock", NEWER),
    capability(cap!(KVM_CAP_TSC_CONTROL), Need::Better, "moving to a host with another TSC frequency", "use a host with TSC scaling in hardware"),
    capability(cap!(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2), Need::Better, "dirty log cleared piece by piece", "use Linux 5.2 or newer"),
    capability(cap!(KVM_CAP_DIRTY_LOG_RING_ACQ_REL), Need::Better, "dirty pages without a scan of all memory", "use Linux 6.1 or newer"),
    capability(cap!(KVM_CAP_X86_USER_SPACE_MSR), Need::Better, "MSRs that husk answers (CPU configuration)", "use Linux 5.10 or newer"),
    capability(cap!(KVM_CAP_X86_MSR_FILTER), Need::Better, "MSRs that the guest may not touch", "use Linux 5.10 or newer"),
    capability(cap!(KVM_CAP_MEMORY_FAULT_INFO), Need::Better, "the address of memory that cannot be had", "use Linux 6.8 or newer"),
    capability(cap!(KVM_CAP_PRE_FAULT_MEMORY), Need::Better, "guest memory mapped before its first touch", "use Linux 6.11 or newer with EPT or NPT"),
];
