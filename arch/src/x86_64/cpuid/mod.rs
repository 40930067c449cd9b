//! What CPUID answers in the guest: what KVM supports, with the bits replaced that say which CPU this is, how many
//! there are and which hypervisor is below. `rules.rs` is the table of them, to be read beside the manuals.
//!
//! The topology is one package with a core for each vCPU, or for each two of them; the APIC ID is the index.

mod hypercalls;
mod rules;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use self::rules::{RULES, Scope};

pub use self::hypercalls::{Ring0, usable};
pub use self::rules::Register;
use crate::topology::{ThreadsPerCore, VcpuCount, VcpuIndex};

/// KVM's signature in leaf 0x40000000 (KVM api: KVM CPUID bits).
const KVM_SIGNATURE: [u8; 12] = *b"KVMKVMKVM\0\0\0";
const LEAF_HYPERVISOR: u32 = 0x4000_0000;
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
const LEAF_TIMING: u32 = 0x4000_0010;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
/// KVM's LAPIC timer counts nanoseconds.
const LAPIC_TIMER_KHZ: u32 = 1_000_000;

/// What the machine's CPUs are, apart from what KVM supports.
#[derive(Clone, Copy, Debug)]
pub struct CpuModel {
    /// How many vCPUs there are.
    pub count: VcpuCount,
    /// How many of them share a core.
    pub threads: ThreadsPerCore,
    /// The vCPUs whose APIC IDs differ only in so many of their lowest bits share the last cache; absent is all of them
    /// ([`last_cache_bits`](crate::topology::last_cache_bits)).
    pub last_cache_bits: Option<u32>,
    /// Whether KVM has KVM_CAP_TSC_DEADLINE_TIMER, which KVM_GET_SUPPORTED_CPUID does not tell.
    pub tsc_deadline_timer: bool,
    /// The frequency of the vCPU's TSC in kHz, from KVM_GET_TSC_KHZ. `None` leaves its leaf out.
    pub tsc_khz: Option<u32>,
}

/// KVM or husk has more CPUID leaves than KVM takes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{entries} CPUID leaves are more than KVM takes: this kernel's KVM is newer than husk knows")]
pub struct CpuidError {
    /// How many there are.
    pub entries: usize,
}

/// The answers for one vCPU, from those that KVM_GET_SUPPORTED_CPUID returned.
///
/// # Errors
/// [`CpuidError`] if they are more than KVM_SET_CPUID2 takes.
pub fn for_vcpu(supported: &CpuId, index: VcpuIndex, model: &CpuModel) -> Result<CpuId, CpuidError> {
    let cpu = Cpu { index, model, scope: Scope::of_vendor(supported.as_slice()) };
    let mut entries = Vec::with_capacity(supported.as_slice().len() + 8);
    entries.extend(supported.as_slice().iter().copied().filter(|entry| owner_of_leaf(entry.function).is_none()));
    for entry in &mut entries {
        let leaf = entry.function;
        for rule in RULES.iter().filter(|rule| rule.leaf == leaf) {
            rule.apply(entry, &cpu);
        }
    }
    entries.extend(cpu.topology_leaf(LEAF_TOPOLOGY));
    if supported.as_slice().iter().any(|entry| entry.function == LEAF_TOPOLOGY_V2) {
        entries.extend(cpu.topology_leaf(LEAF_TOPOLOGY_V2));
    }
    entries.extend(hypervisor_leaves(&entries, model.tsc_khz));
    CpuId::from_entries(&entries).map_err(|_| CpuidError { entries: entries.len() })
}

/// What a leaf says that is the machine's own as a whole, if it is.
pub(super) fn owner_of_leaf(leaf: u32) -> Option<&'static str> {
    match leaf {
        LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => Some("the CPUs' topology"),
        LEAF_HYPERVISOR => Some("which hypervisor there is"),
        LEAF_TIMING => Some("the clocks' frequencies"),
        _ => None,
    }
}

/// What the machine says in a register of a leaf that would be contradicted, if its bits in `mask` were those of `value`.
/// `supported` is what the host has, which also decides whose CPU it is.
pub(super) fn contradicted(
    supported: &[kvm_cpuid_entry2],
    (leaf, register): (u32, Register),
    mask: u32,
    value: u32,
) -> Option<&'static str> {
    let scope = Scope::of_vendor(supported);
    RULES
        .iter()
        .filter(|rule| rule.leaf == leaf)
        .find(|rule| rule.contradicts(scope, register, mask, value))
        .map(|rule| rule.field)
}

/// One vCPU, as the rules ask about it.
struct Cpu<'a> {
    index: VcpuIndex,
    model: &'a CpuModel,
    scope: Scope,
}

impl Cpu<'_> {
    fn apic_id(&self) -> u32 {
        self.index.get().into()
    }

    fn count(&self) -> u32 {
        self.model.count.get().into()
    }

    /// How many bits of the APIC ID tell the package's threads apart.
    fn package_id_bits(&self) -> u32 {
        self.count().next_power_of_two().trailing_zeros()
    }

    /// How many of these tell a core's threads apart.
    fn thread_id_bits(&self) -> u32 {
        self.model.threads.id_bits(self.model.count)
    }

    /// How many of these tell the threads apart that share the last cache: a core's own do so always.
    fn last_cache_bits(&self) -> u32 {
        let package = self.package_id_bits();
        self.model.last_cache_bits.map_or(package, |bits| bits.clamp(self.thread_id_bits(), package))
    }

    /// Leaf 0xb, and 0x1f in the same form: threads of a core, cores of the package, end of list (SDM 2A CPUID).
    fn topology_leaf(&self, function: u32) -> [kvm_cpuid_entry2; 3] {
        const THREAD: u32 = 1;
        const CORE: u32 = 2;
        const END: u32 = 0;
        let level = |index: u32, kind: u32, id_bits: u32, processors: u32| kvm_cpuid_entry2 {
            function,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: id_bits,
            ebx: processors,
            ecx: kind << 8 | index,
            edx: self.apic_id(),
            ..Default::default()
        };
        let thread_bits = self.thread_id_bits();
        [
            level(0, THREAD, thread_bits, 1 << thread_bits),
            level(1, CORE, self.package_id_bits(), self.count()),
            level(2, END, 0, 0),
        ]
    }
}

/// The leaves from 0x40000000 that KVM did not give: which hypervisor this is, and how fast its clocks are.
fn hypervisor_leaves(entries: &[kvm_cpuid_entry2], tsc_khz: Option<u32>) -> Vec<kvm_cpuid_entry2> {
    let word = |i: usize| {
        u32::from_le_bytes([KVM_SIGNATURE[i], KVM_SIGNATURE[i + 1], KVM_SIGNATURE[i + 2], KVM_SIGNATURE[i + 3]])
    };
    let last = if tsc_khz.is_some() { LEAF_TIMING } else { LEAF_KVM_FEATURES };
    let mut leaves = vec![kvm_cpuid_entry2 {
        function: LEAF_HYPERVISOR,
        eax: last,
        ebx: word(0),
        ecx: word(4),
        edx: word(8),
        ..Default::default()
    }];
    if !entries.iter().any(|entry| entry.function == LEAF_KVM_FEATURES) {
        leaves.push(kvm_cpuid_entry2 { function: LEAF_KVM_FEATURES, ..Default::default() });
    }
    leaves.extend(tsc_khz.map(|khz| kvm_cpuid_entry2 {
        function: LEAF_TIMING,
        eax: khz,
        ebx: LAPIC_TIMER_KHZ,
        ..Default::default()
    }));
    leaves
}

#[cfg(test)]
mod tests;
