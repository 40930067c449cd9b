//! Templates good and bad, from their JSON to the entries that KVM is given.

use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::cpuid::{CpuModel, for_vcpu};
use crate::topology::{ThreadsPerCore, VcpuCount, VcpuIndex};

fn parse(json: &str) -> Result<CpuTemplate, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

/// A template with one modifier of one register.
fn changing(leaf: &str, subleaf: &str, register: &str, bitmap: &str) -> CpuTemplate {
    parse(&format!(
        r#"{{"cpuid_modifiers": [{{"leaf": "{leaf}", "subleaf": "{subleaf}", "flags": 0,
            "modifiers": [{{"register": "{register}", "bitmap": "{bitmap}"}}]}}]}}"#
    ))
    .unwrap()
}

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

fn host(vendor: [u32; 3]) -> CpuId {
    CpuId::from_entries(&[
        leaf(0x0, 0, [0xd, vendor[0], vendor[1], vendor[2]]),
        leaf(0x1, 0, [0x50654, 0x0010_0800, 0xfeda_3203, 0x178b_fbff]),
        leaf(0x4, 0, [0x0400_0121, 0, 0, 0]),
        leaf(0x7, 0, [1, 0xffff_ffff, 0, 0]),
        leaf(0x7, 1, [0xffff, 0, 0, 0]),
        leaf(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
        leaf(0x8000_0008, 0, [0x3030, 0x200, 0x7f, 0]),
    ])
    .unwrap()
}

fn intel() -> CpuId {
    host([0x756e_6547, 0x6c65_746e, 0x4965_6e69])
}

fn amd() -> CpuId {
    host([0x6874_7541, 0x444d_4163, 0x6974_6e65])
}

fn registers(cpuid: &CpuId, function: u32, index: u32) -> [u32; 4] {
    let entry = cpuid.as_slice().iter().find(|e| (e.function, e.index) == (function, index));
    entry.map(|e| [e.eax, e.ebx, e.ecx, e.edx]).unwrap()
}

fn msr(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..Default::default() }
}

const TEMPLATE: &str = r#"{
    "kvm_capabilities": ["!56", "171"],
    "cpuid_modifiers": [
        {"leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": [
            {"register": "eax", "bitmap": "0bxxxx_0000_0000_0011_xx00_0110_1111_0010"},
            {"register": "edx", "bitmap": "0bxxx0xxxx"}]},
        {"leaf": "0x7", "subleaf": "0b1", "flags": 1, "modifiers": [{"register": "eax", "bitmap": "0b0"}]}],
    "msr_modifiers": [
        {"addr": "0x10a", "bitmap": "0bx1x0"},
        {"addr": "0x1a0", "bitmap": "0b1xxxxxxxxxxxxxxxxxxxxxx"}]
}"#;

#[test]
fn a_template_is_told_back_as_what_it_was_read_from() {
    for template in ["{}", TEMPLATE] {
        let read = parse(template).unwrap();
        let told = serde_json::to_string(&read).unwrap();
        assert_eq!(parse(&told), Ok(read), "{told}");
    }
    let told = serde_json::to_value(changing("0x1", "0b11", "ebx", "0b1x0")).unwrap();
    assert_eq!(told["cpuid_modifiers"][0]["subleaf"], "0x3");
    let bitmap = format!("0b{}1x0", "x".repeat(29));
    assert_eq!(told["cpuid_modifiers"][0]["modifiers"][0]["bitmap"], bitmap.as_str());
    assert_eq!(told.as_object().unwrap().len(), 3, "{told}");
}

#[test]
fn a_template_changes_the_bits_it_names_and_no_others() {
    let template = parse(TEMPLATE).unwrap();
    assert_eq!(template.capabilities(), [CapabilityCheck::Remove(56), CapabilityCheck::Add(171)]);
    let before = intel();
    let after = template.apply_cpuid(&before).unwrap();
    let [eax, ebx, ecx, edx] = registers(&before, 1, 0);
    let changed = (eax & 0xf000_c000) | 0x0003_06f2;
    assert_eq!(registers(&after, 1, 0), [changed, ebx, ecx, edx & !0x10]);
    assert_eq!(registers(&after, 7, 1), [0xfffe, 0, 0, 0]);
    assert_eq!(registers(&after, 7, 0), registers(&before, 7, 0));
    let flags: Vec<_> = after.as_slice().iter().filter(|entry| entry.flags == 1).collect();
    assert!(matches!(flags[..], [entry] if (entry.function, entry.index) == (7, 1)));

    assert_eq!(template.msr_indices(), [0x10a, 0x1a0]);
    let boot = Msrs::from_entries(&[msr(0x1a0, 1), msr(0x2ff, 0x806)]).unwrap();
    let set = template.apply_msrs(&boot, &[msr(0x1a0, 0xffff), msr(0x10a, 0b1011)]).unwrap();
    let values: Vec<_> = set.as_slice().iter().map(|msr| (msr.index, msr.data)).collect();
    assert_eq!(values, [(0x1a0, 1 | 1 << 22), (0x2ff, 0x806), (0x10a, 0b1110)]);
}

#[test]
fn an_empty_template_changes_nothing() {
    let template = parse("{}").unwrap();
    assert_eq!(template, CpuTemplate::default());
    assert_eq!(template.apply_cpuid(&intel()).unwrap().as_slice(), intel().as_slice());
    let boot = Msrs::from_entries(&[msr(0x2ff, 0x806)]).unwrap();
    assert_eq!(template.apply_msrs(&boot, &[]).unwrap().as_slice(), boot.as_slice());
}

#[test]
fn what_the_template_says_reaches_the_guest_beside_what_the_machine_says() {
    let template = changing("0x1", "0x0", "ecx", "0bxxxxxxx0xxxx0");
    let (count, threads) = (VcpuCount::new(2).unwrap(), ThreadsPerCore::One);
    let model = CpuModel { count, threads, last_cache_bits: None, tsc_deadline_timer: true, tsc_khz: None };
    let with = for_vcpu(&template.apply_cpuid(&intel()).unwrap(), VcpuIndex::BOOT, &model).unwrap();
    let without = for_vcpu(&intel(), VcpuIndex::BOOT, &model).unwrap();
    let [eax, ebx, ecx, edx] = registers(&without, 1, 0);
    assert_eq!(registers(&with, 1, 0), [eax, ebx, ecx & !0x21, edx]);
}

#[test]
fn a_field_that_is_unknown_doubled_missing_or_mistyped_is_named() {
    let refused = |json| parse(json).unwrap_err();
    assert!(refused(r#"{"cpuid": []}"#).contains("unknown field `cpuid`"));
    assert!(refused(r#"{"msr_modifiers": [], "msr_modifiers": []}"#).contains("duplicate field `msr_modifiers`"));
    assert!(refused(r#"{"msr_modifiers": [{"addr": "0x10"}]}"#).contains("missing field `bitmap`"));
    assert!(refused(r#"{"msr_modifiers": [{"addr": 16, "bitmap": "0b1"}]}"#).contains("invalid type: integer `16`"));
    assert!(
        refused(r#"{"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "modifiers": []}]}"#).contains("`flags`")
    );
    assert!(
        refused(r#"{"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": [{"register": "rax", "bitmap": "0b1"}]}]}"#)
            .contains("unknown variant `rax`")
    );
    for field in ["vcpu_features", "reg_modifiers"] {
        let refused = parse(&format!(r#"{{"{field}": []}}"#)).unwrap_err();
        assert!(refused.starts_with(&format!("cpu-config has {field}, which is for aarch64: remove it")), "{refused}");
    }
}

#[test]
fn strings_that_are_no_numbers_bitmaps_or_capabilities_are_refused_with_their_place() {
    for number in ["1", "", "0x", "0x+1", "0xg", "0x100000000", "0b2", " 0x1", "0X1"] {
        let json = format!(
            r#"{{"msr_modifiers": [{{"addr": "0x10a", "bitmap": "0b1"}}, {{"addr": "{number}", "bitmap": "0b1"}}]}}"#
        );
        let expected = format!(
            "cpu-config has {number:?} as msr_modifiers[1].addr: write a number of 32 bits that starts with 0x or 0b"
        );
        assert!(parse(&json).unwrap_err().starts_with(&expected), "{number}");
    }
    let too_long = format!("0b{}", "x".repeat(33));
    for bitmap in ["", "0b", "0b_", "01", "0b12", "0bX", "0x1", too_long.as_str()] {
        let json = format!(
            r#"{{"cpuid_modifiers": [{{"leaf": "0x1", "subleaf": "0x0", "flags": 0,
                "modifiers": [{{"register": "eax", "bitmap": "{bitmap}"}}]}}]}}"#
        );
        let expected =
            format!("cpu-config has {bitmap:?} as cpuid_modifiers[0].modifiers[0].bitmap: write 0b and 1 to 32");
        assert!(parse(&json).unwrap_err().starts_with(&expected), "{bitmap}");
    }
    for capability in ["", "!", "0x38", "-1", "56!", "!!56", "4294967296"] {
        let json = format!(r#"{{"kvm_capabilities": ["{capability}"]}}"#);
        let expected = format!("cpu-config has {capability:?} as kvm_capabilities[0]: write the decimal number");
        assert!(parse(&json).unwrap_err().starts_with(&expected), "{capability}");
    }
    let flags = r#"{"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 8, "modifiers": []}]}"#;
    assert!(parse(flags).unwrap_err().contains("flags 0x8 for CPUID leaf 0x1"));
}

#[test]
fn the_machines_own_leaves_and_msrs_are_refused_by_name() {
    for (leaf, what) in [
        ("0xb", "the CPUs' topology"),
        ("0x1f", "the CPUs' topology"),
        ("0x40000000", "which hypervisor there is"),
        ("0x40000010", "the clocks' frequencies"),
    ] {
        let json =
            format!(r#"{{"cpuid_modifiers": [{{"leaf": "{leaf}", "subleaf": "0x0", "flags": 0, "modifiers": []}}]}}"#);
        let expected = format!("cpu-config changes CPUID leaf {leaf}, in which the machine says {what}: remove it");
        assert!(parse(&json).unwrap_err().starts_with(&expected));
    }
    for index in [0x10_u32, 0x1b, 0x2ff, 0x800, 0x8ff, 0x4b56_4d01, 0xc000_0080, 0xc000_0082, 0xc000_0101, 0x1a0] {
        let json = format!(r#"{{"msr_modifiers": [{{"addr": "{index:#x}", "bitmap": "0b0"}}]}}"#);
        let refused = parse(&json).unwrap_err();
        assert!(refused.starts_with(&format!("cpu-config changes MSR {index:#x}, which holds ")), "{refused}");
    }
    assert!(parse(r#"{"msr_modifiers": [{"addr": "0x10", "bitmap": "0bx"}]}"#).is_ok());
}

#[test]
fn the_machines_own_bits_are_refused_unless_they_are_left_or_right() {
    let check = |host: &CpuId, leaf, register, bitmap: &str| {
        changing(leaf, "0x0", register, bitmap).apply_cpuid(host).map(|_| ()).map_err(|error| error.to_string())
    };
    let high = |bit: usize, value: char| format!("0b{value}{}", "x".repeat(bit));
    let cases = [
        ("0x1", "ebx", high(24, '0'), "the initial APIC ID"),
        ("0x1", "ebx", high(16, '1'), "the addressable IDs of the package"),
        ("0x1", "ecx", high(31, '0'), "that a hypervisor is present"),
        ("0x1", "ecx", high(24, '0'), "the LAPIC timer by TSC deadline"),
        ("0x1", "ecx", high(21, '0'), "x2APIC, which KVM's LAPIC has"),
        ("0x1", "edx", high(28, '0'), "HTT, that bits 23:16 of EBX count"),
        ("0x0", "ebx", high(0, '0'), "the vendor's name"),
        ("0x0", "eax", high(3, '0'), "the last basic leaf, at least 0xb"),
    ];
    for (leaf, register, bitmap, field) in &cases {
        let expected = format!(
            "cpu-config changes {} of CPUID leaf {leaf} subleaf 0x0 where the machine says {field}: write x for these bits",
            register.to_uppercase()
        );
        assert_eq!(check(&intel(), leaf, register, bitmap), Err(expected));
    }
    for (leaf, register, bitmap) in [
        ("0x1", "ecx", high(31, '1')),
        ("0x1", "ecx", high(21, '1')),
        ("0x1", "ecx", high(30, '0')),
        ("0x0", "ebx", high(0, '1')),
        ("0x0", "eax", "0b1011".to_owned()),
        ("0x40000001", "eax", "0b0000".to_owned()),
    ] {
        assert_eq!(check(&intel(), leaf, register, &bitmap), Ok(()), "{leaf} {register} {bitmap}");
    }
    // One vendor's field is reserved on the other's CPUs.
    assert!(check(&amd(), "0x80000008", "ecx", "0b0").is_err());
    assert!(check(&intel(), "0x80000008", "ecx", "0b0").is_ok());
    assert!(check(&intel(), "0x4", "eax", &high(14, '0')).is_err());
    assert!(check(&amd(), "0x4", "eax", &high(14, '0')).is_ok());
}

#[test]
fn what_the_host_does_not_have_is_refused_by_name() {
    let refused = changing("0x7", "0x2", "eax", "0b0").apply_cpuid(&intel()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "cpu-config changes CPUID leaf 0x7 subleaf 0x2, which this host does not have: remove it"
    );
    let template = parse(r#"{"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1"}]}"#).unwrap();
    let boot = Msrs::from_entries(&[]).unwrap();
    let refused = template.apply_msrs(&boot, &[msr(0x10b, 0)]).unwrap_err();
    assert_eq!(refused.to_string(), "cpu-config changes MSR 0x10a, which this host does not have: remove it");
}

#[test]
fn more_msrs_than_kvm_takes_are_refused() {
    let many: Vec<_> = (0x2000..0x2101).map(|index| format!(r#"{{"addr": "{index:#x}", "bitmap": "0b1"}}"#)).collect();
    let template = parse(&format!(r#"{{"msr_modifiers": [{}]}}"#, many.join(","))).unwrap();
    let current: Vec<_> = (0x2000..0x2101).map(|index| msr(index, 0)).collect();
    let refused = template.apply_msrs(&Msrs::from_entries(&[]).unwrap(), &current);
    assert_eq!(refused, Err(CpuTemplateError::TooManyMsrs { count: 257 }));
}

proptest! {
    #[test]
    fn any_bitmap_does_what_it_says(bits in "[01x_]{1,40}", old in proptest::num::u32::ANY) {
        let template = parse(&format!(
            r#"{{"cpuid_modifiers": [{{"leaf": "0x7", "subleaf": "0x0", "flags": 0,
                "modifiers": [{{"register": "ebx", "bitmap": "0b{bits}"}}]}}]}}"#
        ));
        let wanted: Vec<char> = bits.chars().filter(|bit| *bit != '_').collect();
        if wanted.is_empty() || wanted.len() > 32 {
            prop_assert!(template.is_err());
            return Ok(());
        }
        let host = CpuId::from_entries(&[leaf(7, 0, [0, old, 0, 0])]).unwrap();
        let [_, new, _, _] = registers(&template.unwrap().apply_cpuid(&host).unwrap(), 7, 0);
        for bit in 0..32_usize {
            let now = new >> bit & 1;
            match wanted.iter().rev().nth(bit) {
                Some('0') => prop_assert_eq!(now, 0),
                Some('1') => prop_assert_eq!(now, 1),
                _ => prop_assert_eq!(now, old >> bit & 1),
            }
        }
    }

    #[test]
    fn random_json_is_never_a_panic(json in r#"[\[\]{}":,0-9a-z_!]{0,80}"#) {
        let _ = parse(&json);
    }
}
