//! What a user changes in CPUID and MSRs, so that the machines of a mixed fleet look alike: Firecracker's "custom CPU
//! template", in its JSON.
//!
//! A template changes what the host offers; what the machine itself says in CPUID and MSRs is put over it. Firecracker does
//! that silently. Here a template that asks for something else than the guest would get is refused by name.

mod error;
mod json;

use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use serde::{Deserialize, Serialize};

use super::cpuid::{self, Register};

pub use error::CpuTemplateError;

/// A CPU template, read from JSON and told back in it: `kvm_capabilities`, `cpuid_modifiers` and `msr_modifiers`, each of which may be left
/// out. Its modifiers are applied in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "json::Template", into = "json::Template")]
pub struct CpuTemplate {
    capabilities: Vec<CapabilityCheck>,
    cpuid: Vec<CpuidModifier>,
    msrs: Vec<MsrModifier>,
}

/// A change to the list of KVM capabilities without which no machine is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapabilityCheck {
    /// The capability of this number must be there too.
    Add(u32),
    /// The capability of this number need not be there.
    Remove(u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct CpuidModifier {
    leaf: u32,
    subleaf: u32,
    flags: u32,
    registers: Vec<RegisterModifier>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RegisterModifier {
    register: Register,
    /// The bits that become those of `value`; the others stay.
    mask: u32,
    value: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MsrModifier {
    index: u32,
    /// The bits that become those of `value`; the others stay.
    mask: u64,
    value: u64,
}

impl CpuTemplate {
    /// Which KVM capabilities are to be asked for beside the machine's own, and which of these not.
    pub fn capabilities(&self) -> &[CapabilityCheck] {
        &self.capabilities
    }

    /// What KVM_GET_SUPPORTED_CPUID returned, as the template wants it: to be given to [`cpuid::for_vcpu`] in its place.
    ///
    /// # Errors
    /// [`CpuTemplateError`] if a leaf is not there, or if the machine's own bits would have to differ.
    pub fn apply_cpuid(&self, supported: &CpuId) -> Result<CpuId, CpuTemplateError> {
        let mut changed = supported.clone();
        for modifier in &self.cpuid {
            modifier.apply(supported.as_slice(), changed.as_mut_slice())?;
        }
        Ok(changed)
    }

    /// The MSRs whose present values [`apply_msrs`](Self::apply_msrs) needs, none twice.
    pub fn msr_indices(&self) -> Vec<u32> {
        let mut indices: Vec<_> = self.msrs.iter().map(|msr| msr.index).collect();
        indices.sort_unstable();
        indices.dedup();
        indices
    }

    /// The MSRs to set on every vCPU: those that the machine sets (`boot`, see [`super::msrs::boot`]) with those of the
    /// template. `current` is what KVM_GET_MSRS says on a new vCPU for [`msr_indices`](Self::msr_indices), as far as KVM
    /// has them.
    ///
    /// # Errors
    /// [`CpuTemplateError`] if an MSR is not there, or if they are more than KVM takes.
    pub fn apply_msrs(&self, boot: &Msrs, current: &[kvm_msr_entry]) -> Result<Msrs, CpuTemplateError> {
        let mut set = boot.as_slice().to_vec();
        for msr in &self.msrs {
            let is = |entry: &&kvm_msr_entry| entry.index == msr.index;
            let Some(found) = current.iter().find(is) else {
                return Err(CpuTemplateError::NoMsr { index: msr.index });
            };
            let changed = |old: u64| (old & !msr.mask) | (msr.value & msr.mask);
            match set.iter_mut().find(|entry| entry.index == msr.index) {
                Some(entry) => entry.data = changed(entry.data),
                None => set.push(kvm_msr_entry { index: msr.index, data: changed(found.data), ..Default::default() }),
            }
        }
        Msrs::from_entries(&set).map_err(|_| CpuTemplateError::TooManyMsrs { count: set.len() })
    }
}

impl CpuidModifier {
    fn apply(&self, supported: &[kvm_cpuid_entry2], entries: &mut [kvm_cpuid_entry2]) -> Result<(), CpuTemplateError> {
        let (leaf, subleaf) = (self.leaf, self.subleaf);
        let entry = entries
            .iter_mut()
            .find(|entry| (entry.function, entry.index) == (leaf, subleaf))
            .ok_or(CpuTemplateError::NoLeaf { leaf, subleaf })?;
        entry.flags = self.flags;
        for modifier in &self.registers {
            let register = modifier.register.of(entry);
            let old = *register;
            *register = (old & !modifier.mask) | (modifier.value & modifier.mask);
            let names_vendor = leaf == 0 && modifier.register != Register::Eax && *register != old;
            let field = match names_vendor {
                true => Some("the vendor's name"),
                false => cpuid::contradicted(supported, (leaf, modifier.register), modifier.mask, *register),
            };
            if let Some(field) = field {
                return Err(CpuTemplateError::OwnField { leaf, subleaf, register: modifier.register, field });
            }
        }
        Ok(())
    }
}

/// MSRs that are the machine's or the guest's own.
struct OwnMsrs {
    first: u32,
    last: u32,
    /// The bits that are.
    mask: u64,
    what: &'static str,
}

const fn own(first: u32, last: u32, mask: u64, what: &'static str) -> OwnMsrs {
    OwnMsrs { first, last, mask, what }
}

#[rustfmt::skip]
const OWN_MSRS: &[OwnMsrs] = &[
    //  first        last         bits       what they are (SDM 4 chapter 2; KVM: Documentation/virt/kvm/x86/msr.rst)
    own(0x0000_0010, 0x0000_0010, u64::MAX, "the time stamp counter"),
    own(0x0000_0011, 0x0000_0012, u64::MAX, "the guest's agreement with KVM on its clock"),
    own(0x0000_001b, 0x0000_001b, u64::MAX, "the LAPIC's address and mode"),
    own(0x0000_0174, 0x0000_0176, u64::MAX, "the guest's system call entry"),
    own(0x0000_01a0, 0x0000_01a0, 1,        "fast strings, which the boot protocol sets"),
    own(0x0000_02ff, 0x0000_02ff, u64::MAX, "the default memory type, which the boot protocol sets"),
    own(0x0000_06e0, 0x0000_06e0, u64::MAX, "the TSC deadline"),
    own(0x0000_0800, 0x0000_08ff, u64::MAX, "the LAPIC's registers"),
    own(0x4b56_4d00, 0x4b56_4dff, u64::MAX, "the guest's agreements with KVM"),
    own(0xc000_0080, 0xc000_0080, u64::MAX, "the mode that the boot protocol enters"),
    own(0xc000_0081, 0xc000_0084, u64::MAX, "the guest's system call entry"),
    own(0xc000_0100, 0xc000_0102, u64::MAX, "the guest's segment bases"),
];

/// What bits of an MSR are that no template may choose, if they are.
fn owner_of_msr(index: u32, mask: u64) -> Option<&'static str> {
    OWN_MSRS.iter().find(|own| (own.first..=own.last).contains(&index) && own.mask & mask != 0).map(|own| own.what)
}

#[cfg(test)]
mod tests;
