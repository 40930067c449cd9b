//! The table of what husk changes in KVM's CPUID answers. One line is one field of one register, in the order of the
//! manuals: Intel SDM 2A "CPUID", AMD APM 3 appendix E.

use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

use super::Cpu;

/// Whose manual defines a field. A field of one vendor is reserved on the other's CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Any,
    Intel,
    Amd,
}

impl Scope {
    /// Which vendor's rules hold for these leaves. Unknown vendors get only the rules for all.
    pub(super) fn of_vendor(entries: &[kvm_cpuid_entry2]) -> Self {
        let Some(leaf) = entries.iter().find(|entry| entry.function == 0) else {
            return Self::Any;
        };
        let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
        match name.as_flattened() {
            b"GenuineIntel" => Self::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Self::Amd,
            _ => Self::Any,
        }
    }
}

/// A register that CPUID answers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}
use Register::{Eax, Ebx, Ecx, Edx};

/// What a field becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// This number.
    Is(u32),
    /// At least this number.
    AtLeast(u32),
    /// The vCPU's APIC ID.
    ApicId,
    /// How many APIC IDs the package sets aside, a power of two.
    ApicIds,
    /// How many bits of the APIC ID differ within the package.
    ApicIdBits,
    /// The number of the vCPU's core.
    CoreId,
    /// How many threads a core has, less one.
    CoreThreads,
    /// How many vCPUs there are, less one.
    CountMinusOne,
    /// 1 if there is more than one vCPU.
    Several,
    /// 1 if the timer's capability is there.
    TscDeadlineTimer,
    /// How many core IDs the package sets aside, less one, in every subleaf that describes a cache.
    CacheCoreIds,
    /// How many APIC IDs share the cache that this subleaf describes, less one.
    CacheSharers,
}
use Value::{
    ApicId, ApicIdBits, ApicIds, AtLeast, CacheCoreIds, CacheSharers, CoreId, CoreThreads, CountMinusOne, Is, Several,
    TscDeadlineTimer,
};

/// One field: bits `high..=low` of a register in every subleaf of a leaf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) leaf: u32,
    scope: Scope,
    register: Register,
    high: u32,
    low: u32,
    value: Value,
    /// What the field says, for error messages.
    pub(super) field: &'static str,
}

const fn rule(
    leaf: u32,
    scope: Scope,
    register: Register,
    (high, low): (u32, u32),
    value: Value,
    field: &'static str,
) -> Rule {
    assert!(high < 32 && low <= high);
    Rule { leaf, scope, register, high, low, value, field }
}

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    //   leaf         whose          register  bits      becomes            field
    rule(0x0000_0000, Scope::Any,    Eax,      (31, 0),  AtLeast(0xb),      "the last basic leaf, at least 0xb"),
    rule(0x0000_0001, Scope::Any,    Ebx,      (31, 24), ApicId,            "the initial APIC ID"),
    rule(0x0000_0001, Scope::Any,    Ebx,      (23, 16), ApicIds,           "the addressable IDs of the package"),
    rule(0x0000_0001, Scope::Any,    Ebx,      (15, 8),  Is(8),             "the CLFLUSH line size, in 8 bytes"),
    rule(0x0000_0001, Scope::Any,    Ecx,      (21, 21), Is(1),             "x2APIC, which KVM's LAPIC has"),
    rule(0x0000_0001, Scope::Any,    Ecx,      (24, 24), TscDeadlineTimer,  "the LAPIC timer by TSC deadline"),
    rule(0x0000_0001, Scope::Any,    Ecx,      (31, 31), Is(1),             "that a hypervisor is present"),
    rule(0x0000_0001, Scope::Any,    Edx,      (28, 28), Several,           "HTT, that bits 23:16 of EBX count"),
    rule(0x0000_0004, Scope::Intel,  Eax,      (31, 26), CacheCoreIds,      "the addressable core IDs, less one"),
    rule(0x0000_0004, Scope::Intel,  Eax,      (25, 14), CacheSharers,      "the IDs that share a cache, less one"),
    rule(0x8000_0001, Scope::Amd,    Ecx,      (1, 1),   Several,           "CmpLegacy, that there are several cores"),
    rule(0x8000_0008, Scope::Amd,    Ecx,      (7, 0),   CountMinusOne,     "NC, the threads of the package, less one"),
    rule(0x8000_0008, Scope::Amd,    Ecx,      (15, 12), ApicIdBits,        "ApicIdSize"),
    rule(0x8000_001d, Scope::Amd,    Eax,      (25, 14), CacheSharers,      "the threads that share a cache, less one"),
    rule(0x8000_001e, Scope::Amd,    Eax,      (31, 0),  ApicId,            "the extended APIC ID"),
    rule(0x8000_001e, Scope::Amd,    Ebx,      (7, 0),   CoreId,            "the core ID"),
    rule(0x8000_001e, Scope::Amd,    Ebx,      (15, 8),  CoreThreads,       "the threads of a core, less one"),
    rule(0x8000_001e, Scope::Amd,    Ecx,      (10, 0),  Is(0),             "the node, 0 of one"),
];

impl Rule {
    /// Writes the field, if it is one of this vCPU's vendor.
    pub(super) fn apply(&self, entry: &mut kvm_cpuid_entry2, cpu: &Cpu<'_>) {
        if !self.holds_for(cpu.scope) {
            return;
        }
        let mask = self.mask();
        let cache = Cache::of(entry.eax);
        let register = self.register.of(entry);
        if let Some(value) = self.value.of((*register & mask) >> self.low, cache, cpu) {
            *register = (*register & !mask) | ((value << self.low) & mask);
        }
    }
}

impl Rule {
    /// Whether `register`, with its bits in `mask` chosen by someone else, would not be what this rule makes it.
    pub(super) fn contradicts(&self, scope: Scope, register: Register, mask: u32, value: u32) -> bool {
        let chosen = mask & self.mask();
        if self.register != register || !self.holds_for(scope) || chosen == 0 {
            return false;
        }
        match self.value {
            Is(own) => ((own << self.low) ^ value) & chosen != 0,
            AtLeast(least) => (value & self.mask()) >> self.low < least,
            _ => true,
        }
    }

    fn holds_for(&self, scope: Scope) -> bool {
        self.scope == Scope::Any || self.scope == scope
    }

    fn mask(&self) -> u32 {
        (u32::MAX >> (31 - self.high + self.low)) << self.low
    }
}

impl Register {
    pub(in super::super) fn of(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Eax => &mut entry.eax,
            Ebx => &mut entry.ebx,
            Ecx => &mut entry.ecx,
            Edx => &mut entry.edx,
        }
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Eax => "EAX",
            Ebx => "EBX",
            Ecx => "ECX",
            Edx => "EDX",
        })
    }
}

/// What EAX of a cache leaf says about its cache.
#[derive(Clone, Copy)]
struct Cache {
    level: u32,
}

impl Cache {
    /// `None` behind the last cache (SDM 2A CPUID leaf 04H, EAX bits 4:0 and 7:5).
    fn of(eax: u32) -> Option<Self> {
        (eax & 0x1f != 0).then_some(Self { level: eax >> 5 & 0x7 })
    }
}

impl Value {
    /// The field's new value, or `None` to leave it. `cache` has a meaning for the values that only cache leaves have.
    fn of(self, old: u32, cache: Option<Cache>, cpu: &Cpu<'_>) -> Option<u32> {
        let ids = 1 << cpu.package_id_bits();
        let thread_bits = cpu.thread_id_bits();
        let core_threads = 1 << thread_bits;
        Some(match self {
            Is(value) => value,
            AtLeast(value) => old.max(value),
            ApicId => cpu.apic_id(),
            ApicIds => ids,
            ApicIdBits => cpu.package_id_bits(),
            CoreId => cpu.apic_id() >> thread_bits,
            CoreThreads => core_threads - 1,
            CountMinusOne => cpu.count() - 1,
            Several => u32::from(cpu.count() > 1),
            TscDeadlineTimer => u32::from(cpu.model.tsc_deadline_timer),
            CacheCoreIds => cache.map(|_| (ids >> thread_bits) - 1)?,
            // The first two levels belong to a core, what is above to a node, or without nodes to the package.
            CacheSharers => {
                let last = 1 << cpu.last_cache_bits();
                cache.map(|cache| if cache.level < 3 { core_threads - 1 } else { last - 1 })?
            }
        })
    }
}
