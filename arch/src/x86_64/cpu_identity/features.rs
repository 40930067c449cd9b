//! The words of CPUID that are lists of features, with the names that Linux gives them in /proc/cpuinfo. One line is one
//! register, its names from bit 0 up, `-` for a bit without; in the order of Intel SDM 2A "CPUID" and AMD APM 3 appendix E.

use serde::{Deserialize, Serialize};

use crate::cpuid::Register;
use Register::{Eax, Ebx, Ecx, Edx};

/// One register of one leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) leaf: u32,
    pub(super) subleaf: u32,
    pub(super) register: Register,
}

/// A register whose bits are features.
pub(super) struct Word {
    pub(super) place: Place,
    /// What says nothing of the host's CPU: the guest switches it on, or it says how many vCPUs there are, or KVM has it on
    /// any host.
    pub(super) ignored: u32,
    names: &'static str,
}

const fn word(leaf: u32, subleaf: u32, register: Register, ignored: u32, names: &'static str) -> Word {
    Word { place: Place { leaf, subleaf, register }, ignored, names }
}

/// OSXSAVE, which follows CR4; x2APIC, which KVM's LAPIC has; that there is a hypervisor.
const LEAF_1_ECX_IGNORED: u32 = 1 << 27 | 1 << 21 | 1 << 31;
/// Whether the LAPIC is on; how many threads there are.
const LEAF_1_EDX_IGNORED: u32 = 1 << 9 | 1 << 28;
/// OSPKE, which follows CR4.
const LEAF_7_ECX_IGNORED: u32 = 1 << 4;
/// CmpLegacy: how many cores there are.
const EXTENDED_ECX_IGNORED: u32 = 1 << 1;
/// AMD's copy of the LAPIC's bit.
const EXTENDED_EDX_IGNORED: u32 = 1 << 9;

#[rustfmt::skip]
pub(super) const WORDS: &[Word] = &[
    word(0x0000_0001, 0, Edx, LEAF_1_EDX_IGNORED, "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe"),
    word(0x0000_0001, 0, Ecx, LEAF_1_ECX_IGNORED, "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor"),
    word(0x0000_0007, 0, Ebx, 0, "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl"),
    word(0x0000_0007, 0, Ecx, LEAF_7_ECX_IGNORED, "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks"),
    word(0x0000_0007, 0, Edx, 0, "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl stibp flush_l1d arch_capabilities core_capabilities ssbd"),
    word(0x0000_0007, 1, Eax, 0, "sha512 sm3 sm4 - avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - - - fred lkgs wrmsrns - amx_fp16 hreset avx_ifma - - lam msrlist"),
    word(0x0000_0007, 1, Edx, 0, "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchi - - - - avx10"),
    word(0x0000_0007, 2, Edx, 0, "psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no"),
    word(0x0000_000d, 0, Eax, 0, "xsave_x87 xsave_sse xsave_avx xsave_bndregs xsave_bndcsr xsave_opmask xsave_zmm_hi256 xsave_hi16_zmm - xsave_pkru - - - - - - - xsave_xtilecfg xsave_xtiledata"),
    word(0x0000_000d, 1, Eax, 0, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    word(0x4000_0001, 0, Eax, 0, "kvmclock kvm_nopiodelay kvm_mmu_op kvmclock2 kvm_asyncpf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt - kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield kvm_asyncpf_int kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control - - - - - - kvmclock_stable"),
    word(0x8000_0001, 0, Edx, EXTENDED_EDX_IGNORED, "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - mmxext mmx fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow"),
    word(0x8000_0001, 0, Ecx, EXTENDED_ECX_IGNORED, "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx"),
    word(0x8000_0007, 0, Edx, 0, "- - - - - - - - constant_tsc"),
    word(0x8000_0008, 0, Ebx, 0, "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - ibpb - ibrs amd_stibp ibrs_always_on stibp_always_on ibrs_preferred ibrs_same_mode - - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no ibpb_ret brs"),
    word(0x8000_0021, 0, Eax, 0, "no_nested_data_bp fs_gs_nonserializing lfence_rdtsc - - - null_sel_clr_base upper_address_ignore autoibrs no_smm_ctl_msr"),
];

impl Word {
    pub(super) fn at(place: Place) -> Option<&'static Self> {
        WORDS.iter().find(|word| word.place == place)
    }

    /// The feature's name, if it has one.
    pub(super) fn name(&self, bit: u32) -> Option<&'static str> {
        self.names.split(' ').nth(usize::try_from(bit).ok()?).filter(|name| *name != "-")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_stands_at_its_bit() {
        let name = |leaf, subleaf, register, bit| Word::at(Place { leaf, subleaf, register }).unwrap().name(bit);
        for (leaf, subleaf, register, bit, expected) in [
            (1, 0, Edx, 0, "fpu"),
            (1, 0, Edx, 26, "sse2"),
            (1, 0, Edx, 31, "pbe"),
            (1, 0, Ecx, 0, "sse3"),
            (1, 0, Ecx, 12, "fma"),
            (1, 0, Ecx, 13, "cx16"),
            (1, 0, Ecx, 20, "sse4_2"),
            (1, 0, Ecx, 23, "popcnt"),
            (1, 0, Ecx, 28, "avx"),
            (1, 0, Ecx, 31, "hypervisor"),
            (7, 0, Ebx, 5, "avx2"),
            (7, 0, Ebx, 9, "erms"),
            (7, 0, Ebx, 16, "avx512f"),
            (7, 0, Ebx, 29, "sha_ni"),
            (7, 0, Ebx, 31, "avx512vl"),
            (7, 0, Ecx, 3, "pku"),
            (7, 0, Ecx, 16, "la57"),
            (7, 0, Ecx, 22, "rdpid"),
            (7, 0, Ecx, 31, "pks"),
            (7, 0, Edx, 4, "fsrm"),
            (7, 0, Edx, 24, "amx_tile"),
            (7, 0, Edx, 31, "ssbd"),
            (7, 1, Eax, 4, "avx_vnni"),
            (7, 1, Eax, 23, "avx_ifma"),
            (7, 1, Edx, 19, "avx10"),
            (0xd, 0, Eax, 9, "xsave_pkru"),
            (0xd, 0, Eax, 18, "xsave_xtiledata"),
            (0xd, 1, Eax, 3, "xsaves"),
            (0x4000_0001, 0, Eax, 14, "kvm_asyncpf_int"),
            (0x4000_0001, 0, Eax, 24, "kvmclock_stable"),
            (0x8000_0001, 0, Edx, 11, "syscall"),
            (0x8000_0001, 0, Edx, 26, "pdpe1gb"),
            (0x8000_0001, 0, Edx, 31, "3dnow"),
            (0x8000_0001, 0, Ecx, 6, "sse4a"),
            (0x8000_0001, 0, Ecx, 29, "mwaitx"),
            (0x8000_0007, 0, Edx, 8, "constant_tsc"),
            (0x8000_0008, 0, Ebx, 12, "ibpb"),
            (0x8000_0008, 0, Ebx, 31, "brs"),
            (0x8000_0021, 0, Eax, 8, "autoibrs"),
        ] {
            assert_eq!(name(leaf, subleaf, register, bit), Some(expected));
        }
        assert_eq!((name(1, 0, Edx, 10), name(0xd, 1, Eax, 31)), (None, None));
        assert!(WORDS.iter().all(|word| word.names.split(' ').count() <= 32));
    }
}
