//! The leaves that two CPUs' KVM gives, rewritten for machines of several sizes and read as a kernel reads them.

use super::*;
use crate::topology::{NumaNode, last_cache_bits};

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

/// KVM_GET_SUPPORTED_CPUID of an Ice Lake server, the leaves that matter: 40 cores of two threads.
fn intel() -> CpuId {
    CpuId::from_entries(&[
        leaf(0x0, 0, [0x1b, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        leaf(0x1, 0, [0x0006_06a6, 0x2380_0800, 0xfffa_3203, 0x1f8b_fbff]),
        leaf(0x4, 0, [0xfc00_4121, 0x02c0_003f, 0x3f, 0]),
        leaf(0x4, 1, [0xfc00_4122, 0x01c0_003f, 0x3f, 0]),
        leaf(0x4, 2, [0xfc00_4143, 0x04c0_003f, 0x3ff, 0]),
        leaf(0x4, 3, [0xfc1f_c163, 0x02c0_003f, 0xdfff, 4]),
        leaf(0x4, 4, [0, 0, 0, 0]),
        leaf(0xb, 0, [1, 2, 0x100, 0x23]),
        leaf(0xb, 1, [7, 80, 0x201, 0x23]),
        leaf(0x1f, 0, [1, 2, 0x100, 0x23]),
        leaf(0x1f, 1, [7, 80, 0x201, 0x23]),
        leaf(0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        leaf(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
        leaf(0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
        leaf(0x8000_0001, 0, [0, 0, 0x121, 0x2c10_0800]),
        leaf(0x8000_0008, 0, [0x0000_3934, 0x0100_d200, 0, 0]),
    ])
    .unwrap()
}

/// KVM_GET_SUPPORTED_CPUID of a Milan server, the leaves that matter: 64 cores of two threads, KVM of before 6.0.
fn amd() -> CpuId {
    CpuId::from_entries(&[
        leaf(0x0, 0, [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        leaf(0x1, 0, [0x00a0_0f11, 0x4780_0800, 0xfeda_3203, 0x178b_fbff]),
        leaf(0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        leaf(0x8000_0000, 0, [0x8000_001f, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        leaf(0x8000_0001, 0, [0x00a0_0f11, 0x4000_0000, 0x0040_01f3, 0x2fd3_fbff]),
        leaf(0x8000_0008, 0, [0x0000_3030, 0x1111_d205, 0x0001_707f, 0]),
        leaf(0x8000_001d, 0, [0x0000_4121, 0x01c0_003f, 0x3f, 0]),
        leaf(0x8000_001d, 1, [0x0000_4122, 0x01c0_003f, 0x3f, 0]),
        leaf(0x8000_001d, 2, [0x0000_4143, 0x01c0_003f, 0x3ff, 2]),
        leaf(0x8000_001d, 3, [0x0003_c163, 0x03c0_003f, 0x7fff, 1]),
        leaf(0x8000_001d, 4, [0, 0, 0, 0]),
        leaf(0x8000_001e, 0, [0x47, 0x0123, 0x307, 0]),
    ])
    .unwrap()
}

fn model(count: u64) -> CpuModel {
    CpuModel {
        count: VcpuCount::new(count).unwrap(),
        threads: ThreadsPerCore::One,
        last_cache_bits: None,
        tsc_deadline_timer: true,
        tsc_khz: Some(2_400_000),
    }
}

/// EAX, EBX, ECX, EDX of a leaf that is there once.
fn registers(cpuid: &CpuId, function: u32, index: u32) -> [u32; 4] {
    let mut found = cpuid.as_slice().iter().filter(|e| (e.function, e.index) == (function, index));
    let entry = found.next().unwrap_or_else(|| panic!("no leaf {function:#x}.{index}"));
    assert!(found.next().is_none(), "leaf {function:#x}.{index} is there twice");
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

fn bits(value: u32, high: u32, low: u32) -> u32 {
    (value >> low) & (u32::MAX >> (31 - high + low))
}

/// Every vCPU of machines of 1, 2, 3, 8 and 64, with how many APIC IDs the machine sets aside.
fn each_vcpu(supported: &CpuId, check: impl Fn(u32, u32, u32, &CpuId)) {
    for (count, ids) in [(1, 1), (2, 2), (3, 4), (8, 8), (64, 64)] {
        for index in model(count).count.indices() {
            let cpuid = for_vcpu(supported, index, &model(count)).unwrap();
            check(index.get().into(), u32::try_from(count).unwrap(), ids, &cpuid);
        }
    }
}

#[test]
fn leaf_1_names_the_vcpu_and_what_every_machine_has() {
    for supported in [intel(), amd()] {
        each_vcpu(&supported, |index, count, ids, cpuid| {
            let [eax, ebx, ecx, edx] = registers(cpuid, 1, 0);
            assert_eq!(eax, registers(&supported, 1, 0)[0]);
            assert_eq!([bits(ebx, 31, 24), bits(ebx, 23, 16), bits(ebx, 15, 8)], [index, ids, 8]);
            assert_eq!([bits(ecx, 31, 31), bits(ecx, 24, 24), bits(ecx, 21, 21)], [1, 1, 1]);
            assert_eq!(bits(edx, 28, 28), u32::from(count > 1));
        });
        let without = CpuModel { tsc_deadline_timer: false, ..model(1) };
        let cpuid = for_vcpu(&supported, VcpuIndex::BOOT, &without).unwrap();
        assert_eq!(bits(registers(&cpuid, 1, 0)[2], 24, 24), 0);
    }
}

#[test]
fn the_topology_leaf_gives_x2apic_id_shift_and_count_at_each_level() {
    for supported in [intel(), amd()] {
        each_vcpu(&supported, |index, count, ids, cpuid| {
            assert_eq!(registers(cpuid, 0xb, 0), [0, 1, 0x100, index]);
            assert_eq!(registers(cpuid, 0xb, 1), [ids.ilog2(), count, 0x201, index]);
            assert_eq!(registers(cpuid, 0xb, 2), [0, 0, 2, index]);
            let levels = cpuid.as_slice().iter().filter(|entry| entry.function == 0xb);
            assert!(levels.clone().all(|entry| entry.flags == KVM_CPUID_FLAG_SIGNIFCANT_INDEX) && levels.count() == 3);
            // A package's IDs are told apart by its bits, and no vCPU is in another package.
            assert_eq!(index >> ids.ilog2(), 0);
        });
    }
    let cpuid = for_vcpu(&intel(), VcpuIndex::BOOT, &model(3)).unwrap();
    assert_eq!(registers(&cpuid, 0x1f, 1), registers(&cpuid, 0xb, 1));
    let cpuid = for_vcpu(&amd(), VcpuIndex::BOOT, &model(3)).unwrap();
    assert!(!cpuid.as_slice().iter().any(|entry| entry.function == 0x1f));
}

#[test]
fn a_cpu_without_topology_leaves_gets_them_within_its_last_basic_leaf() {
    let old = CpuId::from_entries(&[leaf(0, 0, [0x7, 0x756e_6547, 0x6c65_746e, 0x4965_6e69])]).unwrap();
    let cpuid = for_vcpu(&old, VcpuIndex::BOOT, &model(2)).unwrap();
    assert_eq!(registers(&cpuid, 0, 0)[0], 0xb);
    assert_eq!(registers(&cpuid, 0xb, 1)[1], 2);
    let new = for_vcpu(&intel(), VcpuIndex::BOOT, &model(2)).unwrap();
    assert_eq!(registers(&new, 0, 0), registers(&intel(), 0, 0));
}

#[test]
fn intel_caches_are_a_cores_own_but_for_the_last_level() {
    each_vcpu(&intel(), |_, _, ids, cpuid| {
        for (index, sharers) in [(0, 1), (1, 1), (2, 1), (3, ids)] {
            let [eax, rest @ ..] = registers(cpuid, 4, index);
            assert_eq!([bits(eax, 31, 26), bits(eax, 25, 14)], [ids - 1, sharers - 1]);
            let [old, old_rest @ ..] = registers(&intel(), 4, index);
            assert_eq!((bits(eax, 13, 0), rest), (bits(old, 13, 0), old_rest));
        }
        assert_eq!(registers(cpuid, 4, 4), [0; 4]);
        assert_eq!(registers(cpuid, 0x8000_0008, 0), registers(&intel(), 0x8000_0008, 0));
        assert_eq!(registers(cpuid, 0x8000_0001, 0), registers(&intel(), 0x8000_0001, 0));
    });
}

#[test]
fn amd_leaves_agree_on_cores_ids_and_caches() {
    each_vcpu(&amd(), |index, count, ids, cpuid| {
        let ecx = registers(cpuid, 0x8000_0008, 0)[2];
        assert_eq!([bits(ecx, 7, 0), bits(ecx, 15, 12), bits(ecx, 31, 16)], [count - 1, ids.ilog2(), 1]);
        assert_eq!(bits(registers(cpuid, 0x8000_0001, 0)[2], 1, 1), u32::from(count > 1));
        assert_eq!(registers(cpuid, 0x8000_001e, 0), [index, index, 0, 0]);
        for (subleaf, sharers) in [(0, 1), (1, 1), (2, 1), (3, ids)] {
            assert_eq!(bits(registers(cpuid, 0x8000_001d, subleaf)[0], 25, 14), sharers - 1);
        }
        assert_eq!(registers(cpuid, 0x8000_001d, 4), [0; 4]);
    });
}

#[test]
fn the_last_cache_is_not_shared_across_nodes() {
    let node = |cpus: &[u8]| NumaNode {
        cpus: cpus.to_vec(),
        memory: Vec::new(),
        pluggable: None,
        devices: Vec::new(),
        distances: Vec::new(),
    };
    let bits_of = |nodes: &[&[u8]], count| {
        let nodes: Vec<_> = nodes.iter().map(|cpus| node(cpus)).collect();
        last_cache_bits(&nodes, VcpuCount::new(count).unwrap())
    };
    assert_eq!(bits_of(&[], 4), None);
    assert_eq!(bits_of(&[&[0, 1, 2, 3]], 4), Some(2));
    assert_eq!(bits_of(&[&[0, 1], &[2, 3]], 4), Some(1));
    assert_eq!(bits_of(&[&[0, 1, 2, 3], &[4, 5]], 6), Some(2));
    assert_eq!(bits_of(&[&[0, 1, 2], &[3, 4, 5]], 6), Some(0));
    assert_eq!(bits_of(&[&[0, 2], &[1, 3]], 4), Some(0));
    assert_eq!(bits_of(&[&[0], &[]], 1), Some(0));
    for (last, threads, sharers) in [
        (Some(1), ThreadsPerCore::One, 2),
        (Some(0), ThreadsPerCore::One, 1),
        (Some(0), ThreadsPerCore::Two, 2),
        (Some(9), ThreadsPerCore::One, 8),
        (None, ThreadsPerCore::One, 8),
    ] {
        let model = CpuModel { last_cache_bits: last, threads, ..model(8) };
        let of = |supported: &CpuId| for_vcpu(supported, VcpuIndex::BOOT, &model).unwrap();
        assert_eq!(bits(registers(&of(&intel()), 4, 3)[0], 25, 14), sharers - 1);
        assert_eq!(bits(registers(&of(&amd()), 0x8000_001d, 3)[0], 25, 14), sharers - 1);
    }
}

#[test]
fn two_threads_of_a_core_share_its_id_and_its_caches_in_every_leaf() {
    for (count, ids) in [(2, 2_u32), (6, 8), (64, 64)] {
        let model = CpuModel { threads: ThreadsPerCore::Two, ..model(count) };
        let count = u32::try_from(count).unwrap();
        for index in model.count.indices() {
            let of = |supported: &CpuId| for_vcpu(supported, index, &model).unwrap();
            let (intel, amd, id) = (of(&intel()), of(&amd()), u32::from(index.get()));
            for cpuid in [&intel, &amd] {
                assert_eq!(registers(cpuid, 0xb, 0), [1, 2, 0x100, id]);
                assert_eq!(registers(cpuid, 0xb, 1), [ids.ilog2(), count, 0x201, id]);
                assert_eq!(bits(registers(cpuid, 1, 0)[1], 23, 16), ids);
            }
            for (subleaf, sharers) in [(0, 2), (1, 2), (2, 2), (3, ids)] {
                let eax = registers(&intel, 4, subleaf)[0];
                assert_eq!([bits(eax, 31, 26), bits(eax, 25, 14)], [ids / 2 - 1, sharers - 1]);
                assert_eq!(bits(registers(&amd, 0x8000_001d, subleaf)[0], 25, 14), sharers - 1);
            }
            assert_eq!(registers(&amd, 0x8000_001e, 0), [id, (1 << 8) | (id / 2), 0, 0]);
            assert_eq!(bits(registers(&amd, 0x8000_0008, 0)[2], 7, 0), count - 1);
        }
    }
    let single = CpuModel { threads: ThreadsPerCore::Two, ..model(1) };
    let alone = for_vcpu(&amd(), VcpuIndex::BOOT, &single).unwrap();
    assert_eq!(alone.as_slice(), for_vcpu(&amd(), VcpuIndex::BOOT, &model(1)).unwrap().as_slice());
}

#[test]
fn the_hypervisor_leaves_say_kvm_and_the_clocks_if_they_are_known() {
    let cpuid = for_vcpu(&intel(), VcpuIndex::BOOT, &model(1)).unwrap();
    let [last, ebx, ecx, edx] = registers(&cpuid, 0x4000_0000, 0);
    assert_eq!([ebx, ecx, edx].map(u32::to_le_bytes).as_flattened(), b"KVMKVMKVM\0\0\0");
    assert_eq!(last, 0x4000_0010);
    assert_eq!(registers(&cpuid, 0x4000_0001, 0)[0], 0x0100_7efb);
    assert_eq!(registers(&cpuid, 0x4000_0010, 0), [2_400_000, 1_000_000, 0, 0]);

    let unknown = CpuModel { tsc_khz: None, ..model(1) };
    let cpuid = for_vcpu(&amd(), VcpuIndex::BOOT, &unknown).unwrap();
    assert_eq!(registers(&cpuid, 0x4000_0000, 0)[0], 0x4000_0001);
    assert_eq!(registers(&cpuid, 0x4000_0001, 0), [0; 4]);
    assert!(!cpuid.as_slice().iter().any(|entry| entry.function == 0x4000_0010));
}

#[test]
fn where_ring_0_is_emulated_a_guest_sees_no_feature_that_is_a_hypercall() {
    assert_eq!(usable(intel(), Ring0::Native), intel());
    let found = usable(intel(), Ring0::Emulated);
    // Without PV_UNHALT (7), PV_SEND_IPI (11) and PV_SCHED_YIELD (13): clock, steal time, PV_EOI and the rest stay.
    assert_eq!(registers(&found, 0x4000_0001, 0)[0], 0x0100_567b);
    let others = |cpuid: &CpuId| {
        let all = cpuid.as_slice().iter().copied();
        all.filter(|entry| entry.function != 0x4000_0001).collect::<Vec<_>>()
    };
    assert_eq!(others(&found), others(&intel()));
    assert_eq!(usable(amd(), Ring0::Emulated), amd(), "there is no such leaf");
}

#[test]
fn the_host_runs_ring_0_if_its_kernel_finds_vmx_or_svm() {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags = info.lines().find(|line| line.starts_with("flags")).unwrap();
    let native = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    assert_eq!(Ring0::of_host(), if native { Ring0::Native } else { Ring0::Emulated });
}

#[test]
fn more_leaves_than_kvm_takes_are_an_error_and_not_a_panic() {
    let many: Vec<_> = (0..256).map(|index| leaf(0x4, index, [0; 4])).collect();
    let refused = for_vcpu(&CpuId::from_entries(&many).unwrap(), VcpuIndex::BOOT, &model(1)).unwrap_err();
    assert_eq!(refused, CpuidError { entries: 262 });
}
