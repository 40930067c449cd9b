//! The MSRs that firmware would have set before a kernel starts. All others keep the value that KVM gives a new vCPU.

use kvm_bindings::{Msrs, kvm_msr_entry};

/// One MSR and its value.
struct BootMsr {
    index: u32,
    value: u64,
    /// Whether KVM_GET_MSR_INDEX_LIST tells if it is there. KVM has had the MTRRs from the start and never listed them.
    listed: bool,
}

const BOOT: [BootMsr; 2] = [
    // IA32_MISC_ENABLE (SDM 4 table 2-2): fast strings. Without, Linux slows its memory copies down on Intel.
    BootMsr { index: 0x1a0, value: 1, listed: true },
    // IA32_MTRR_DEF_TYPE (SDM 3A §12.11.2.1): MTRRs on, write-back by default. Without, all memory is uncached.
    BootMsr { index: 0x2ff, value: (1 << 11) | 6, listed: false },
];

/// The MSRs to set on every vCPU. `supported` is the answer of KVM_GET_MSR_INDEX_LIST: what is not in it is left out.
pub fn boot(supported: &[u32]) -> Msrs {
    let entries: Vec<_> = BOOT
        .iter()
        .filter(|msr| !msr.listed || supported.contains(&msr.index))
        .map(|msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() })
        .collect();
    Msrs::from_entries(&entries).expect("two entries are fewer than KVM_MAX_MSR_ENTRIES")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kvm_would_list_and_does_not_is_left_out() {
        let values = |supported| boot(supported).as_slice().iter().map(|m| (m.index, m.data)).collect::<Vec<_>>();
        assert_eq!(values(&[0x10, 0x1a0]), [(0x1a0, 1), (0x2ff, 0x806)]);
        assert_eq!(values(&[0x10]), [(0x2ff, 0x806)]);
    }
}
