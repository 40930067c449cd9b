//! Reads the tables back from guest memory as a kernel would: from the RSDP on, every checksum, every device.

use super::*;
use crate::layout::{VIRTIO_MMIO_DEVICES_MAX, virtio_mmio_window};

fn write(cpus: u64, devices: u8) -> GuestMemory {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let windows: Vec<_> = (0..devices).map_while(virtio_mmio_window).collect();
    let config = AcpiConfig { cpus: VcpuCount::new(cpus).unwrap(), virtio_mmio: &windows, numa: &[] };
    assert_eq!(write_tables(&memory, &config).unwrap(), ACPI_START);
    memory
}

fn read(memory: &GuestMemory, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// A table with its header, checked.
fn table_at(memory: &GuestMemory, address: u64, signature: &[u8; 4]) -> Vec<u8> {
    assert_eq!(address % 64, 0);
    let len = usize::try_from(number(&read(memory, address + 4, 4))).unwrap();
    let bytes = read(memory, address, len);
    assert_eq!((&bytes[..4], sum(&bytes)), (&signature[..], 0));
    bytes
}

/// FADT, MADT, DSDT.
fn follow(memory: &GuestMemory) -> [Vec<u8>; 3] {
    let rsdp = read(memory, ACPI_START.0, 36);
    assert_eq!((&rsdp[..8], rsdp[15]), (&b"RSD PTR "[..], 2));
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp), number(&rsdp[20..24])), (0, 0, 36));
    let xsdt = table_at(memory, number(&rsdp[24..32]), b"XSDT");
    assert_eq!(xsdt.len(), 36 + 2 * 8);
    let fadt = table_at(memory, number(&xsdt[36..44]), b"FACP");
    let madt = table_at(memory, number(&xsdt[44..52]), b"APIC");
    let dsdt = table_at(memory, number(&fadt[140..148]), b"DSDT");
    assert_eq!(number(&fadt[40..44]), number(&fadt[140..148]), "the old field names the same DSDT");
    [fadt, madt, dsdt]
}

/// ACPI 6.5 §5.2.9, offsets as its table gives them.
#[test]
fn the_fadt_is_hardware_reduced_with_reset_and_sleep_registers_on_ports() {
    let [fadt, ..] = follow(&write(1, 0));
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5));
    assert_eq!(fadt[109] & 2, 2, "IAPC_BOOT_ARCH names the i8042");
    let flags = number(&fadt[112..116]);
    let [wbinvd, power_button, sleep_button, fixed_rtc, reset, reduced] = [0, 4, 5, 6, 10, 20].map(|bit| 1 << bit);
    assert_eq!(flags, wbinvd | power_button | sleep_button | fixed_rtc | reset | reduced);
    let port = |offset: usize| {
        assert_eq!(fadt[offset..offset + 4], [1, 8, 0, 1], "system I/O, 8 bits at bit 0, byte access");
        number(&fadt[offset + 4..offset + 12])
    };
    assert_eq!((port(116), fadt[128]), (0x602, 1), "reset");
    assert_eq!((port(244), port(256)), (0x600, 0x601), "sleep control and status");
}

/// ACPI 6.5 §5.2.12.
#[test]
fn the_madt_has_every_vcpu_the_ioapic_and_the_nmi() {
    for count in [1, 3, 64] {
        let [_, madt, _] = follow(&write(count, 0));
        assert_eq!((number(&madt[36..40]), number(&madt[40..44])), (0xfee0_0000, 1));
        let (mut rest, mut vcpus, mut others) = (&madt[44..], Vec::new(), Vec::new());
        while !rest.is_empty() {
            let (entry, next) = rest.split_at(rest[1].into());
            match entry {
                [0, 8, uid, apic_id, 1, 0, 0, 0] if uid == apic_id => vcpus.push(u64::from(*uid)),
                other => others.push(other),
            }
            rest = next;
        }
        assert_eq!(vcpus, (0..count).collect::<Vec<_>>());
        assert_eq!(others, [&[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0][..], &[4, 6, 0xff, 0, 0, 1]]);
    }
}

/// One device of the DSDT: its name and what is in it.
struct Found<'a> {
    name: String,
    body: &'a [u8],
}

impl Found<'_> {
    fn has(&self, bytes: &[u8]) -> bool {
        self.body.windows(bytes.len()).any(|window| window == bytes)
    }
}

/// Takes a PkgLength (ACPI 6.5 §20.2.4) off and returns what it spans, and what follows.
fn package(aml: &[u8]) -> (&[u8], &[u8]) {
    let more = usize::from(aml[0] >> 6);
    let len = match more {
        0 => usize::from(aml[0]),
        _ => usize::try_from(number(&aml[1..=more])).unwrap() << 4 | usize::from(aml[0] & 0xf),
    };
    (&aml[1 + more..len], &aml[len..])
}

/// The devices under `\_SB`, and what comes after them.
fn devices(dsdt: &[u8]) -> (Vec<Found<'_>>, &[u8]) {
    let (0x10, aml) = (dsdt[36], &dsdt[37..]) else { panic!("the DSDT does not start with a scope") };
    let (scope, rest) = package(aml);
    assert_eq!(&scope[..5], b"\\_SB_");
    let (mut aml, mut found) = (&scope[5..], Vec::new());
    while !aml.is_empty() {
        assert_eq!(aml[..2], [0x5b, 0x82], "something else than a device");
        let (device, next) = package(&aml[2..]);
        found.push(Found { name: String::from_utf8(device[..4].to_vec()).unwrap(), body: &device[4..] });
        aml = next;
    }
    (found, rest)
}

/// An extended interrupt descriptor: consumer, edge, active high, not shared (ACPI 6.5 §6.4.3.6).
fn interrupt(gsi: u8) -> [u8; 9] {
    [0x89, 6, 0, 0b0011, 1, gsi, 0, 0, 0]
}

#[test]
fn the_dsdt_names_every_device_with_its_resources() {
    for (cpus, windows) in [(1, 0), (2, 1), (64, VIRTIO_MMIO_DEVICES_MAX)] {
        let [_, _, dsdt] = follow(&write(cpus, windows));
        let (devices, _) = devices(&dsdt);
        let named = |prefix: char| devices.iter().filter(move |device| device.name.starts_with(prefix));
        let serial = named('C').find(|device| device.name == "COM1").unwrap();
        assert!(serial.has(&[0x41, 0xd0, 0x05, 0x01]), "PNP0501");
        assert!(serial.has(&[0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8]) && serial.has(&interrupt(4)));
        let keyboard = named('K').find(|device| device.name == "KBD_").unwrap();
        assert!(keyboard.has(&[0x41, 0xd0, 0x03, 0x03]), "PNP0303");
        assert!(keyboard.has(&[0x47, 1, 0x60, 0, 0x60, 0, 1, 1, 0x47, 1, 0x64, 0, 0x64, 0, 1, 1]));
        assert!(keyboard.has(&interrupt(1)));

        assert_eq!(devices.iter().filter(|device| device.has(b"LNRO0005\0")).count(), usize::from(windows));
        for (index, device) in (0..).zip(devices.iter().filter(|device| device.has(b"LNRO0005\0"))) {
            let window = virtio_mmio_window(index).unwrap();
            let base = u32::try_from(window.base.0).unwrap().to_le_bytes();
            assert_eq!(device.name, format!("V{index:03X}"));
            assert!(device.has(&[&[0x86, 9, 0, 1][..], &base, &[0, 0x10, 0, 0]].concat()), "Memory32Fixed");
            assert!(device.has(&interrupt(5 + index)) && device.has(b"_CCA\x01"));
        }
    }
}

#[test]
fn the_event_device_tells_a_press_of_the_power_button_and_a_new_generation_by_their_interrupts() {
    let [_, _, dsdt] = follow(&write(1, 0));
    let (devices, rest) = devices(&dsdt);
    let button = devices.iter().find(|device| device.name == "PWRB").unwrap();
    assert!(button.has(&[0x41, 0xd0, 0x0c, 0x0c]), "PNP0C0C");
    let events = devices.iter().find(|device| device.name == "GED_").unwrap();
    assert!(events.has(b"ACPI0013\0") && events.has(&[interrupt(3), interrupt(23)].concat()));
    // If (Arg0 == 3) { Notify (\_SB.PWRB, 0x80) }
    assert!(events.has(b"\x93\x68\x0a\x03\x86\\\x2e_SB_PWRB\x0a\x80"));
    // If (Arg0 == 23) { Notify (\_SB.VGEN, 0x80) }
    assert!(events.has(b"\x93\x68\x0a\x17\x86\\\x2e_SB_VGEN\x0a\x80"));
    // Name (_S5, Package { 5, 0, 0, 0 })
    assert_eq!(rest, b"\x08_S5_\x12\x07\x04\x0a\x05\x00\x00\x00");
}

/// Microsoft, "Virtual Machine Generation ID", 2012.
#[test]
fn the_generation_is_found_by_its_compatible_id_and_is_in_a_page_that_is_not_ram() {
    let memory = write(1, 0);
    let [_, _, dsdt] = follow(&memory);
    let (devices, _) = devices(&dsdt);
    let device = devices.iter().find(|device| device.name == "VGEN").unwrap();
    assert!(device.has(b"\x08_HID\x0dHUSK0001\0"));
    assert!(device.has(b"\x08_CID\x0dVM_Gen_Counter\0") && device.has(b"\x08_DDN\x0dVM_Gen_Counter\0"));
    // Name (ADDR, Package { 0xf1000, 0 })
    assert!(device.has(b"\x08ADDR\x12\x08\x02\x0c\x00\x10\x0f\x00\x00"));
    Generation::new(*b"sixteen random b").write(&memory).unwrap();
    assert_eq!(read(&memory, 0xf_1000, 16), b"sixteen random b");
}

#[test]
fn the_last_of_all_devices_takes_the_generations_interrupt() {
    let [_, _, dsdt] = follow(&write(1, VIRTIO_MMIO_DEVICES_MAX));
    let (devices, _) = devices(&dsdt);
    let events = devices.iter().find(|device| device.name == "GED_").unwrap();
    assert!(events.has(&interrupt(3)) && !events.has(&interrupt(23)) && !events.has(b"VGEN"));
    assert!(devices.iter().any(|device| device.name == "VGEN"), "its id can be read all the same");
}

#[test]
fn a_window_that_a_32_bit_resource_cannot_name_is_refused() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let window = virtio_mmio_window(0).unwrap();
    for base in [0x1_0000_0000, 0xffff_ff00, u64::MAX] {
        let config = AcpiConfig {
            cpus: VcpuCount::ONE,
            virtio_mmio: &[window, VirtioMmioWindow { base: GuestAddress(base), ..window }],
            numa: &[],
        };
        let refused = write_tables(&memory, &config).unwrap_err();
        assert!(matches!(refused, AcpiError::WindowAbove4Gib { index: 1, .. }), "{refused}");
    }
}

#[test]
fn tables_without_room_or_without_memory_are_refused() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let windows = [virtio_mmio_window(0).unwrap(); 2000];
    let config = |count| AcpiConfig { cpus: VcpuCount::ONE, virtio_mmio: &windows[..count], numa: &[] };
    assert!(matches!(write_tables(&memory, &config(2000)), Err(AcpiError::TooLarge { .. })));
    assert!(matches!(write_tables(&memory, &config(1)), Err(AcpiError::Memory(_))));
}

/// ACPI 6.5 §6.2.15: of a device that is near a node, and of no other.
#[test]
fn a_virtio_device_tells_the_node_that_it_is_near() {
    let windows: Vec<_> = (0..3).map_while(virtio_mmio_window).collect();
    let node = |devices: &[usize]| NumaNode {
        cpus: Vec::new(),
        memory: Vec::new(),
        pluggable: None,
        devices: devices.to_vec(),
        distances: Vec::new(),
    };
    let body =
        |numa: &[NumaNode]| dsdt::body(&AcpiConfig { cpus: VcpuCount::ONE, virtio_mmio: &windows, numa }).unwrap();
    let count = |body: &[u8], part: &[u8]| body.windows(part.len()).filter(|bytes| *bytes == part).count();
    let near = body(&[node(&[2]), node(&[0])]);
    assert_eq!((count(&near, b"_PXM"), count(&near, b"\x08_PXM\x00"), count(&near, b"\x08_PXM\x01")), (2, 1, 1));
    assert_eq!(count(&body(&[]), b"_PXM"), 0);
}

#[test]
fn nodes_have_their_cpus_their_memory_and_their_distances() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let node = |cpus: &[u8], memory: &[(u64, u64)], distances: &[u8]| NumaNode {
        cpus: cpus.to_vec(),
        memory: memory.iter().map(|&(start, length)| (GuestAddress(start), length)).collect(),
        pluggable: None,
        devices: Vec::new(),
        distances: distances.to_vec(),
    };
    let numa = [
        node(&[0, 2], &[(0, 3 << 30), (4 << 30, 1 << 30)], &[10, 31, 255]),
        NumaNode { pluggable: Some((GuestAddress(7 << 30), 1 << 30)), ..node(&[1], &[(5 << 30, 1 << 30)], &[]) },
        node(&[], &[(6 << 30, 1 << 30)], &[]),
    ];
    let config = AcpiConfig { cpus: VcpuCount::new(3).unwrap(), virtio_mmio: &[], numa: &numa };
    write_tables(&memory, &config).unwrap();
    let rsdp = read(&memory, ACPI_START.0, 36);
    let xsdt = table_at(&memory, number(&rsdp[24..32]), b"XSDT");
    let srat = table_at(&memory, number(&xsdt[52..60]), b"SRAT");
    let slit = table_at(&memory, number(&xsdt[60..68]), b"SLIT");
    assert_eq!((srat[8], number(&srat[36..40])), (3, 1));
    let (mut cpus, mut ranges, mut rest) = (Vec::new(), Vec::new(), &srat[48..]);
    while let [kind, length, ..] = *rest {
        let (entry, later) = rest.split_at(length.into());
        match kind {
            0 => {
                assert_eq!(number(&entry[4..8]), 1, "enabled");
                cpus.push((entry[3], entry[2]));
            }
            1 => {
                // ACPI 6.5 table 5.57: enabled, and hot-pluggable.
                let flags = if number(&entry[8..16]) == 7 << 30 { 0b11 } else { 0b01 };
                assert_eq!(number(&entry[28..32]), flags);
                ranges.push((number(&entry[2..6]), number(&entry[8..16]), number(&entry[16..24])));
            }
            other => panic!("an entry of kind {other}"),
        }
        rest = later;
    }
    assert_eq!(cpus, [(0, 0), (2, 0), (1, 1)]);
    assert_eq!(
        ranges,
        [(0, 0, 3 << 30), (0, 4 << 30, 1 << 30), (1, 5 << 30, 1 << 30), (1, 7 << 30, 1 << 30), (2, 6 << 30, 1 << 30)]
    );
    assert_eq!(number(&slit[36..44]), 3);
    assert_eq!(slit[44..], [10, 31, 255, 31, 10, 20, 255, 20, 10]);
}
