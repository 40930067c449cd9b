//! The MP table (Intel MultiProcessor Specification 1.4): CPUs and interrupt lines, for kernels without ACPI. It says what
//! the MADT says.

use crate::layout::{IOAPIC_PINS, IOAPIC_START, LAPIC_START, MP_SIZE, MP_START};
use crate::memory::{Bytes, GuestMemory, GuestMemoryError};
use crate::topology::{VcpuCount, VcpuIndex};

/// Version 1.4, as the floating pointer and the table's header have it.
const REVISION: u8 = 4;
const POINTER_SIZE: usize = 16;
const HEADER_SIZE: usize = 44;
const OEM_ID: &[u8; 8] = b"HUSK    ";
const PRODUCT_ID: &[u8; 12] = b"HUSKVM      ";
/// What KVM's LAPIC and IOAPIC have in their version registers.
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
/// Family 6. Kernels ask CPUID for the rest.
const CPU_SIGNATURE: u32 = 0x600;
/// An FPU and a LAPIC, as bits of CPUID leaf 1, EDX.
const CPU_FEATURES: u32 = 1 | 1 << 9;
const ENABLED: u8 = 1;
const BOOT_CPU: u8 = 1 << 1;
const ISA_BUS: u8 = 0;
/// The ISA interrupt through which the second 8259 reports: it is no line of its own.
const CASCADE: u8 = 2;
const ALL_LAPICS: u8 = 0xff;

/// Entry types (MP 1.4 §4.3).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IOAPIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

/// Interrupt types (MP 1.4 table 4-11). All lines have the polarity and the trigger of their bus: 0 in both fields.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

/// The table cannot be written: guest memory is missing where the map says that it is.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the MP table at {:#x} of guest memory: give the guest at least 1 MiB", MP_START.0)]
pub struct MpError(#[source] GuestMemoryError);

/// Writes the floating pointer and the table of a machine with these CPUs.
///
/// # Errors
/// [`MpError`], with nothing written.
pub fn write_mp_table(memory: &GuestMemory, cpus: VcpuCount) -> Result<(), MpError> {
    let table = table(cpus);
    let mut bytes = pointer().to_vec();
    bytes.extend_from_slice(&table);
    assert!(
        u64::try_from(bytes.len()).is_ok_and(|size| size <= MP_SIZE),
        "an MP table of {} bytes is larger than its place",
        bytes.len()
    );
    memory.write_slice(&bytes, MP_START).map_err(MpError)
}

/// The floating pointer (MP 1.4 §4.1). The feature bytes are 0: there is a table, and no IMCR, so the 8259 pair reaches
/// the boot CPU through its LAPIC.
fn pointer() -> [u8; POINTER_SIZE] {
    let mut pointer = [0; POINTER_SIZE];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&low(MP_START.0 + POINTER_SIZE as u64).to_le_bytes());
    // In units of 16 bytes.
    pointer[8] = 1;
    pointer[9] = REVISION;
    pointer[10] = checksum(&pointer);
    pointer
}

/// The table (MP 1.4 §4.2), its entries in the order of their types.
fn table(cpus: VcpuCount) -> Vec<u8> {
    let mut entries = Entries::default();
    for index in cpus.indices() {
        let flags = if index.is_boot() { ENABLED | BOOT_CPU } else { ENABLED };
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[PROCESSOR, index.get(), LAPIC_VERSION, flags]);
        entry[4..8].copy_from_slice(&CPU_SIGNATURE.to_le_bytes());
        entry[8..12].copy_from_slice(&CPU_FEATURES.to_le_bytes());
        entries.add(&entry);
    }
    entries.add(&[BUS, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    // Behind the CPUs' IDs, because here all APICs share one space of IDs.
    let ioapic = cpus.get();
    let [a, b, c, d] = low(IOAPIC_START.0).to_le_bytes();
    entries.add(&[IOAPIC, ioapic, IOAPIC_VERSION, ENABLED, a, b, c, d]);
    // Input n is ISA interrupt n, also above 15: kernels give a line the number that its bus gives it.
    for line in (0..IOAPIC_LINES).filter(|line| *line != CASCADE) {
        entries.add(&[IO_INTERRUPT, INT, 0, 0, ISA_BUS, line, ioapic, line]);
    }
    entries.add(&[LOCAL_INTERRUPT, EXT_INT, 0, 0, ISA_BUS, 0, VcpuIndex::BOOT.get(), 0]);
    entries.add(&[LOCAL_INTERRUPT, NMI, 0, 0, ISA_BUS, 0, ALL_LAPICS, 1]);
    entries.into_table()
}

/// The IOAPIC's inputs, as an entry counts them.
const IOAPIC_LINES: u8 = 24;
const _: () = assert!(IOAPIC_LINES as u32 == IOAPIC_PINS);

/// The entries behind the header, and how many they are.
#[derive(Default)]
struct Entries {
    bytes: Vec<u8>,
    count: u16,
}

impl Entries {
    fn add(&mut self, entry: &[u8]) {
        self.bytes.extend_from_slice(entry);
        self.count += 1;
    }

    fn into_table(self) -> Vec<u8> {
        let size = u16::try_from(HEADER_SIZE + self.bytes.len()).expect("64 CPUs take 1280 bytes");
        let mut table = vec![0; HEADER_SIZE];
        table[..4].copy_from_slice(b"PCMP");
        table[4..6].copy_from_slice(&size.to_le_bytes());
        table[6] = REVISION;
        table[8..16].copy_from_slice(OEM_ID);
        table[16..28].copy_from_slice(PRODUCT_ID);
        table[34..36].copy_from_slice(&self.count.to_le_bytes());
        table[36..40].copy_from_slice(&low(LAPIC_START.0).to_le_bytes());
        table.extend_from_slice(&self.bytes);
        table[7] = checksum(&table);
        table
    }
}

fn low(address: u64) -> u32 {
    u32::try_from(address).expect("the tables and the APICs are below 4 GiB")
}

/// What makes the sum of all bytes 0, where the byte for it is still 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestAddress;

    /// The table of a machine, found as a kernel finds it.
    fn read(count: u64) -> Vec<u8> {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_mp_table(&memory, VcpuCount::new(count).unwrap()).unwrap();
        let mut area = vec![0; 0x1_0000];
        memory.read_slice(&mut area, GuestAddress(0xf_0000)).unwrap();
        let pointer = area.chunks(16).find(|chunk| chunk.starts_with(b"_MP_")).unwrap();
        assert_eq!(sum(pointer), 0);
        assert_eq!(pointer[8..], [1, 4, pointer[10], 0, 0, 0, 0, 0]);
        let start = usize::try_from(u32::from_le_bytes(pointer[4..8].try_into().unwrap())).unwrap() - 0xf_0000;
        let size = usize::from(u16::from_le_bytes(area[start + 4..start + 6].try_into().unwrap()));
        let table = area[start..start + size].to_vec();
        assert!(area[start + size..].iter().all(|byte| *byte == 0));
        table
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn entries(table: &[u8]) -> Vec<&[u8]> {
        let mut rest = &table[44..];
        let mut entries = Vec::new();
        while let Some(kind) = rest.first() {
            let (entry, behind) = rest.split_at(if *kind == 0 { 20 } else { 8 });
            entries.push(entry);
            rest = behind;
        }
        entries
    }

    #[test]
    fn the_header_counts_its_entries_and_its_bytes_sum_to_0() {
        for count in [1, 2, 3, 8, 64] {
            let table = read(count);
            assert_eq!(&table[..4], b"PCMP");
            assert_eq!(sum(&table), 0);
            assert_eq!(table[6], 4);
            let entries = entries(&table);
            assert_eq!(usize::from(u16::from_le_bytes([table[34], table[35]])), entries.len());
            assert_eq!(table[36..40], 0xfee0_0000_u32.to_le_bytes());
            // MP 1.4 §4.3: in ascending order of their types.
            assert!(entries.is_sorted_by_key(|entry| entry[0]));
        }
    }

    #[test]
    fn every_cpu_is_enabled_and_the_first_one_boots() {
        for count in [1_u8, 2, 64] {
            let table = read(count.into());
            let cpus: Vec<_> = entries(&table).into_iter().filter(|entry| entry[0] == PROCESSOR).collect();
            assert_eq!(cpus.len(), usize::from(count));
            for (id, cpu) in (0..).zip(cpus) {
                assert_eq!(cpu[..4], [0, id, 0x14, if id == 0 { 3 } else { 1 }]);
                assert_eq!(cpu[4..], [0, 6, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            }
        }
    }

    #[test]
    fn every_line_but_the_cascade_is_the_ioapic_input_of_its_number() {
        let table = read(8);
        let of = |kind| entries(&table).into_iter().filter(move |entry| entry[0] == kind).collect::<Vec<_>>();
        assert_eq!(of(BUS), [b"\x01\x00ISA   "]);
        assert_eq!(of(IOAPIC), [[2, 8, 0x11, 1, 0, 0, 0xc0, 0xfe]]);
        let lines: Vec<u8> = (0..24).filter(|line| *line != 2).collect();
        let expected: Vec<_> = lines.iter().map(|&line| [3, 0, 0, 0, 0, line, 8, line]).collect();
        assert_eq!(of(IO_INTERRUPT), expected);
        assert_eq!(of(LOCAL_INTERRUPT), [[4, 3, 0, 0, 0, 0, 0, 0], [4, 1, 0, 0, 0, 0, 0xff, 1]]);
    }

    #[test]
    fn the_ioapics_id_is_no_cpus() {
        for count in [1_u8, 15, 64] {
            let table = read(count.into());
            let found: Vec<_> = entries(&table).into_iter().filter(|entry| entry[0] == IOAPIC).collect();
            assert_eq!(found[0][1], count);
        }
    }

    #[test]
    fn a_guest_without_the_place_is_an_error() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x8_0000)]).unwrap();
        let refused = write_mp_table(&memory, VcpuCount::ONE).unwrap_err().to_string();
        assert_eq!(refused, "cannot write the MP table at 0xf0000 of guest memory: give the guest at least 1 MiB");
    }
}
