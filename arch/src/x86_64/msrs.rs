//! Which MSRs are set and saved. Those that firmware would have set are set before a kernel starts; all others keep the
//! value that KVM gives a new vCPU.

use std::ops::RangeInclusive;

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

/// The time stamp counter (SDM 4 table 2-2).
pub(crate) const IA32_TSC: u32 = 0x10;
/// When the LAPIC's timer fires, as a value of the counter (SDM 3A §11.5.4.1).
const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// A write makes KVM put the time of day into guest memory, and that is all that it does (KVM:
/// Documentation/virt/kvm/x86/msr.rst); the first is the old number of the second.
const KVM_WALL_CLOCK: [u32; 2] = [0x11, 0x4b56_4d00];
/// The MTRRs (SDM 3A §12.11): eight variable ones in pairs, the fixed ones, and the default type.
const MTRRS: [RangeInclusive<u32>; 5] = [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x2ff..=0x2ff];

/// The MSRs that are saved of every vCPU, in the order of their restore. `supported` is the answer of
/// KVM_GET_MSR_INDEX_LIST, which lacks the MTRRs. The time stamp counter has its own place in a state. The wall clock has none:
/// to restore it would write guest memory, and a guest that wants the time writes the MSR anew.
pub(crate) fn saved(supported: &[u32]) -> Vec<u32> {
    let apart = |msr: &u32| [IA32_TSC, IA32_TSC_DEADLINE].contains(msr) || KVM_WALL_CLOCK.contains(msr);
    let unlisted = MTRRS.into_iter().flatten().filter(|msr| !supported.contains(msr));
    let mut saved: Vec<u32> = supported.iter().copied().filter(|msr| !apart(msr)).chain(unlisted).collect();
    // Last: one that is past fires at once.
    saved.extend(supported.contains(&IA32_TSC_DEADLINE).then_some(IA32_TSC_DEADLINE));
    saved
}

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

    #[test]
    fn the_deadline_is_restored_last_and_the_counter_and_the_wall_clock_not_as_msrs() {
        let listed = [0x174, 0x10, 0x6e0, 0x11, 0x4b56_4d00, 0x4b56_4d01, 0x200];
        let saved = saved(&listed);
        assert_eq!(saved[..3], [0x174, 0x4b56_4d01, 0x200]);
        assert_eq!(saved[3..5], [0x201, 0x202], "the MTRRs that KVM does not list");
        assert_eq!((saved.last(), saved.len()), (Some(&0x6e0), 3 + 15 + 11 + 1 + 1));
        assert!(!super::saved(&[]).contains(&0x6e0));
    }
}
