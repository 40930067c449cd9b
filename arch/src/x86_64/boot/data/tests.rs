//! Reads boot data back from guest memory as a kernel would.

use linux_loader::bootparam::boot_params;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};

use super::*;
use crate::boot::KernelFile;
use crate::layout::{ACPI_START, GDT_START, PAGE_TABLES_START, PVH_START_INFO, ZERO_PAGE};

const INITRD: Initrd = Initrd { address: GuestAddress(0x1ff_0000), size: 0x1234 };

/// Memory below and above the hole, the lower part small.
fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 32 << 20), (GuestAddress(0x1_0000_0000), 1 << 20)]).unwrap()
}

fn kernel(protocol: BootProtocol) -> Kernel {
    Kernel { entry: GuestAddress(0x10_0000), protocol, end: GuestAddress(0x20_0000), file: KernelFile::Elf }
}

fn word(memory: &GuestMemory, address: u64) -> u64 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

/// Start, size and kind of each range that the sample's kernels must see.
const MAP: [(u64, u64, u32); 6] = [
    (0, 0x9_fc00, 1),
    (0x9_fc00, 0x6_0400, 2),
    (0x10_0000, 0x1f0_0000, 1),
    (0xfee0_0000, 0x1000, 2),
    (0xfeff_c000, 0x4000, 2),
    (0x1_0000_0000, 0x10_0000, 1),
];

#[test]
fn pvh_finds_command_line_initrd_tables_and_memory() {
    let memory = memory();
    write_boot_data(&memory, &kernel(BootProtocol::Pvh), Some(&INITRD), "console=ttyS0", Some(ACPI_START)).unwrap();
    let info: hvm_start_info = memory.read_obj(PVH_START_INFO).unwrap();
    assert_eq!((info.magic, info.version, info.flags), (0x336e_c578, 1, 0));
    assert_eq!(info.rsdp_paddr, ACPI_START.0);
    let mut cmdline = [0xff; 14];
    memory.read_slice(&mut cmdline, GuestAddress(info.cmdline_paddr)).unwrap();
    assert_eq!(&cmdline, b"console=ttyS0\0");
    assert_eq!(info.nr_modules, 1);
    let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
    assert_eq!((module.paddr, module.size, module.cmdline_paddr), (INITRD.address.0, INITRD.size, 0));
    let map: Vec<_> = (0..u64::from(info.memmap_entries))
        .map(|i| memory.read_obj::<hvm_memmap_table_entry>(GuestAddress(info.memmap_paddr + i * 24)).unwrap())
        .map(|entry| (entry.addr, entry.size, entry.type_))
        .collect();
    assert_eq!(map, MAP);
}

#[test]
fn without_initrd_and_acpi_pvh_finds_none() {
    let memory = memory();
    write_boot_data(&memory, &kernel(BootProtocol::Pvh), None, "", None).unwrap();
    let info: hvm_start_info = memory.read_obj(PVH_START_INFO).unwrap();
    assert_eq!((info.nr_modules, info.modlist_paddr, info.rsdp_paddr), (0, 0, 0));
}

#[test]
fn linux64_finds_command_line_initrd_tables_and_memory() {
    let memory = memory();
    let kernel = kernel(BootProtocol::Linux64);
    write_boot_data(&memory, &kernel, Some(&INITRD), "quiet", Some(ACPI_START)).unwrap();
    let params: boot_params = memory.read_obj(ZERO_PAGE).unwrap();
    assert_eq!(word(&memory, ZERO_PAGE.0 + 0x70), ACPI_START.0);
    // Offsets as Linux's boot.rst gives them.
    let half = |offset| memory.read_obj::<u32>(GuestAddress(ZERO_PAGE.0 + offset)).unwrap();
    assert_eq!((half(0x1fe) & 0xffff, half(0x202)), (0xaa55, u32::from_le_bytes(*b"HdrS")));
    assert_eq!((half(0x218), half(0x21c)), (0x1ff_0000, 0x1234));
    let mut cmdline = [0xff; 6];
    memory.read_slice(&mut cmdline, GuestAddress(half(0x228).into())).unwrap();
    assert_eq!(&cmdline, b"quiet\0");
    let table = params.e820_table;
    let map: Vec<_> = table[..params.e820_entries.into()].iter().map(|e| (e.addr, e.size, e.r#type)).collect();
    assert_eq!(map, MAP);
}

#[test]
fn linux64_page_tables_map_every_address_below_4_gib_to_itself() {
    let memory = memory();
    write_boot_data(&memory, &kernel(BootProtocol::Linux64), None, "", None).unwrap();
    let frame = |entry: u64| entry & 0x000f_ffff_ffff_f000;
    for address in [0_u64, 0x7000, 0x10_0000, 0xbfff_ffff, 0xd000_0000, 0xffff_ffff] {
        let top = word(&memory, PAGE_TABLES_START.0 + 8 * (address >> 39));
        let pointer = word(&memory, frame(top) + 8 * (address >> 30 & 511));
        let page = word(&memory, frame(pointer) + 8 * (address >> 21 & 511));
        assert_eq!((top & 0xfff, pointer & 0xfff, page & 0xfff), (3, 3, 0x83));
        assert_eq!(frame(page) + (address & 0x1f_ffff), address);
    }
    // Nothing above 4 GiB is mapped.
    assert_eq!((word(&memory, PAGE_TABLES_START.0 + 8), word(&memory, PAGE_TABLES_START.0 + 0x1000 + 32)), (0, 0));
    // Flat long-mode code at 0x10, flat data at 0x18 (SDM 3A §3.4.5).
    assert_eq!(word(&memory, GDT_START.0 + 0x10), 0x00af_9b00_0000_ffff);
    assert_eq!(word(&memory, GDT_START.0 + 0x18), 0x00cf_9300_0000_ffff);
}

#[test]
fn a_command_line_of_2047_bytes_fits_and_one_more_does_not() {
    let write = |cmdline: &str| write_boot_data(&memory(), &kernel(BootProtocol::Pvh), None, cmdline, None);
    assert!(write(&"x".repeat(2047)).is_ok());
    assert_eq!(
        write(&"x".repeat(2048)).unwrap_err().to_string(),
        "the kernel command line has 2048 bytes, at most 2047 fit: shorten it"
    );
    assert!(matches!(write("a\0b"), Err(LoadError::CmdlineNul { at: 1 })));
}

#[test]
fn memory_without_its_first_megabyte_is_refused() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let refused = write_boot_data(&memory, &kernel(BootProtocol::Linux64), None, "", None).unwrap_err();
    assert!(refused.to_string().starts_with("cannot write the command line at 0x20000 of guest memory"));
}
