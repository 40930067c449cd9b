//! What a host lacks is named, whatever wrote the state.

use super::*;
use crate::cpuid::Register;

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

fn vendor(name: &[u8; 12]) -> kvm_cpuid_entry2 {
    let word = |i: usize| u32::from_le_bytes([name[i], name[i + 1], name[i + 2], name[i + 3]]);
    leaf(0, 0, [0xd, word(0), word(8), word(4)])
}

/// An AMD CPU with these registers of leaf 1 and leaf 7.
fn amd([ecx_1, edx_1, ebx_7, ecx_7]: [u32; 4]) -> CpuIdentity {
    CpuIdentity::of(&[
        vendor(b"AuthenticAMD"),
        leaf(1, 0, [0x00a1_0f11, 0, ecx_1, edx_1]),
        leaf(7, 0, [0, ebx_7, ecx_7, 0]),
        leaf(0x8000_0008, 0, [0x3030, 0, 0, 0]),
    ])
}

const FMA: u32 = 1 << 12;
const AVX2: u32 = 1 << 5;

#[test]
fn a_host_with_the_same_features_or_more_is_as_good() {
    let saved = amd([FMA, 1, AVX2, 0]);
    assert_eq!(saved.check(&saved), Ok(()));
    assert_eq!(saved.check(&amd([FMA | 1, 3, AVX2 | 1, 8])), Ok(()));
    assert_eq!(saved.to_string(), "AuthenticAMD family 25 model 17 stepping 1");
}

#[test]
fn missing_features_are_named() {
    let told = amd([FMA, 1, AVX2, 1 << 15]).check(&amd([0, 1, 0, 0])).unwrap_err().to_string();
    assert_eq!(
        told,
        "the guest's CPU (AuthenticAMD family 25 model 17 stepping 1) has fma, avx2, CPUID 0x7.0 ECX bit 15, \
         which this host's (AuthenticAMD family 25 model 17 stepping 1) lacks: restore it on a host that has"
    );
}

#[test]
fn another_vendor_is_named() {
    let intel = CpuIdentity::of(&[vendor(b"GenuineIntel")]);
    let told = amd([0; 4]).check(&intel).unwrap_err().to_string();
    assert_eq!(
        told,
        "the guest ran on a CPU of AuthenticAMD, this host's is of GenuineIntel: restore it on a host of the same vendor"
    );
    assert_eq!(CpuIdentity { vendor: *b"a\x1b[2J\xff\0evil!", ..intel }.vendor(), "a?[2J?");
}

#[test]
fn what_the_guest_switched_on_and_what_its_shape_says_is_not_the_hosts() {
    let (osxsave, x2apic, hypervisor) = (1 << 27, 1 << 21, 1 << 31);
    let (apic, several) = (1 << 9, 1 << 28);
    let saved = amd([osxsave | x2apic | hypervisor, apic | several, 0, 1 << 4]);
    assert_eq!(saved.check(&amd([0; 4])), Ok(()));
    assert_eq!(saved, amd([0; 4]));
}

#[test]
fn shorter_physical_addresses_are_refused() {
    let saved = amd([0; 4]);
    let host = CpuIdentity { address_bits: 40, ..saved.clone() };
    assert_eq!(saved.check(&host), Err(Incompatible::AddressBits { saved: 48, host: 40 }));
    assert_eq!(host.check(&saved), Ok(()));
}

#[test]
fn a_feature_of_the_future_is_refused_by_its_place_and_a_cut_identity_does_not_decode() {
    let mut saved = amd([FMA, 0, 0, 0]);
    let place = Place { leaf: 0x24, subleaf: 3, register: Register::Ebx };
    saved.words.push(FeatureWord { place, bits: 1 << 31 });
    let bytes = postcard::to_allocvec(&saved).unwrap();
    let decoded: CpuIdentity = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(decoded, saved);
    let told = decoded.check(&amd([FMA, 0, 0, 0])).unwrap_err().to_string();
    assert!(told.contains("has CPUID 0x24.3 EBX bit 31, which"), "{told}");
    for len in 0..bytes.len() {
        assert!(postcard::from_bytes::<CpuIdentity>(&bytes[..len]).is_err());
    }
}
