//! Kernels as distributions ship them: Debian's bzImages, one packed by XZ and one by zstd. Where KVM is software they do
//! not reach userspace (KVM.md), so each is watched up to the ACPI tables: unpacked, entered, its memory map read.

mod common;

use common::husk;

/// The words that make a kernel speak before its console is there.
const WORDS: &str = "earlyprintk=serial,ttyS0,115200 console=ttyS0";

fn boots_to_its_acpi_tables(packed: &str, compression: &str) {
    let kernel = format!("{}/target/guest/vmlinuz-{packed}", env!("CARGO_MANIFEST_DIR"));
    assert!(std::path::Path::new(&kernel).exists(), "{kernel} is missing: run tools/dev.d/kernels");
    let husk = husk(["run", "--kernel", &kernel, "--memory", "80M", "--cmdline", WORDS]).start();
    husk.wait_for_error(&format!("unpacked from its bzImage ({compression}); its own KASLR is skipped"));
    husk.wait_for(&format!("Command line: {WORDS}"));
    husk.wait_for("BIOS-e820: [mem 0x0000000000100000-0x0000000004ffffff] usable");
    husk.wait_for("Hypervisor detected: KVM");
    husk.wait_for("ACPI: RSDP 0x00000000000E0000 000024 (v02 HUSK  )");
    husk.wait_for("ACPI: APIC 0x");
    husk.signal(15);
    assert_eq!(husk.end().code(), Some(0));
}

#[test]
fn debians_kernel_packed_by_xz_boots_to_its_acpi_tables() {
    boots_to_its_acpi_tables("xz", "XZ");
}

#[test]
fn debians_kernel_packed_by_zstd_boots_to_its_acpi_tables() {
    boots_to_its_acpi_tables("zstd", "zstd");
}
