//! The MSRs that firmware would have set before a kernel starts. All others keep the value that KVM gives a new vCPU.

use kvm_bindings::{Msrs, kvm_msr_entry};

/// (SDM 4 table 2-2.)
const IA32_MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations: KVM's reset leaves them off, and Linux then slows its memory copies down.
const FAST_STRINGS_ENABLE: u64 = 1;
/// (SDM 3A §12.11.2.1.)
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, write-back by default: without it a kernel takes all memory for uncached.
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

const BOOT: [(u32, u64); 2] = [
    (IA32_MISC_ENABLE, FAST_STRINGS_ENABLE),
    (IA32_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK),
];

/// The MSRs to set on every vCPU: those of the table above that are among `supported`, the answer of
/// KVM_GET_MSR_INDEX_LIST. KVM refuses what it does not list.
pub fn boot(supported: &[u32]) -> Msrs {
    let entries: Vec<_> = BOOT
        .iter()
        .filter(|(index, _)| supported.contains(index))
        .map(|&(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).expect("two entries are fewer than KVM_MAX_MSR_ENTRIES")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indices(msrs: &Msrs) -> Vec<u32> {
        msrs.as_slice().iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn only_what_kvm_lists_is_set() {
        assert_eq!(indices(&boot(&[0x10, 0x1a0, 0x2ff])), [0x1a0, 0x2ff]);
        assert_eq!(indices(&boot(&[0x2ff])), [0x2ff]);
        assert!(indices(&boot(&[])).is_empty());
    }
}
