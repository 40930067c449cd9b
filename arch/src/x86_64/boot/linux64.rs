//! What the 64-bit Linux boot protocol asks for (Linux: arch/x86/boot.rst): zero page, descriptors, page tables.

use linux_loader::bootparam::{boot_e820_entry, boot_params};

use super::data::BootData;
use super::{LoadError, data};
use crate::layout::{
    CMDLINE_MAX, CMDLINE_START, GDT_START, HIGH_RAM_START, PAGE_SIZE, PAGE_TABLES_SIZE, PAGE_TABLES_START, ZERO_PAGE,
    ZERO_PAGE_SIZE,
};
use crate::memory::{ByteValued, GuestMemory};

/// `boot_flag` of every setup header.
const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS": there is a setup header.
const SETUP_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// 2.15: the newest version of the boot protocol.
const SETUP_VERSION: u16 = 0x020f;
/// A boot loader that has no number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// LOADED_HIGH: the kernel is above 1 MiB.
const LOADED_HIGH: u8 = 1;

/// Flat descriptors where the protocol wants them: `__BOOT_CS` is 0x10, `__BOOT_DS` is 0x18 (SDM 3A §3.4.5).
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Present and writable (SDM 3A §4.5).
const TABLE: u64 = 0b11;
/// Present, writable, a large page.
const LARGE_PAGE: u64 = TABLE | 1 << 7;
const LARGE_PAGE_SIZE: u64 = 2 << 20;
const ENTRIES: u64 = 512;
/// 4 GiB: a kernel that has not built its own tables yet reaches everything that was loaded and the devices.
const DIRECTORIES: u64 = 4;

const _: () = assert!(size_of::<boot_params>() as u64 == ZERO_PAGE_SIZE);
const _: () = assert!((2 + DIRECTORIES) * PAGE_SIZE == PAGE_TABLES_SIZE);

pub(super) fn write(memory: &GuestMemory, boot: &BootData<'_>) -> Result<(), LoadError> {
    let gdt: Vec<u8> = GDT.iter().flat_map(|descriptor| descriptor.to_le_bytes()).collect();
    data::write(memory, "boot descriptors", GDT_START, &gdt)?;
    data::write(memory, "zero page", ZERO_PAGE, zero_page(boot).as_slice())?;
    data::write(memory, "boot page tables", PAGE_TABLES_START, &page_tables())
}

fn zero_page(boot: &BootData<'_>) -> boot_params {
    let low = |address: u64| u32::try_from(address).expect("everything loaded is below 4 GiB");
    let mut params = boot_params::default();
    if let Some(setup) = boot.setup {
        params.hdr = setup.raw();
    }
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = SETUP_MAGIC;
    params.hdr.version = SETUP_VERSION;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.loadflags = LOADED_HIGH;
    params.hdr.code32_start = low(HIGH_RAM_START.0);
    params.hdr.cmd_line_ptr = low(CMDLINE_START.0);
    params.hdr.ext_loader_ver = 0;
    params.hdr.ext_loader_type = 0;
    params.hdr.setup_data = 0;
    params.hdr.cmdline_size = u32::try_from(CMDLINE_MAX - 1).expect("a small constant");
    let (address, size) = boot.initrd.map_or((0, 0), |initrd| (initrd.address.0, initrd.size));
    params.hdr.ramdisk_image = low(address);
    params.hdr.ramdisk_size = low(size);
    params.acpi_rsdp_addr = boot.rsdp.map_or(0, |rsdp| rsdp.0);
    let mut table = params.e820_table;
    assert!(boot.map.len() <= table.len(), "{} memory ranges do not fit into the zero page", boot.map.len());
    for (entry, range) in table.iter_mut().zip(&boot.map) {
        *entry = boot_e820_entry { addr: range.start, size: range.size, r#type: range.kind.number() };
    }
    params.e820_table = table;
    params.e820_entries = u8::try_from(boot.map.len()).expect("at most 128");
    params
}

/// One table of 512 directories with one entry, one of four, and four directories of 2 MiB pages, as one run of bytes.
fn page_tables() -> Vec<u8> {
    let directory_pointers = PAGE_TABLES_START.0 + PAGE_SIZE;
    let directories = directory_pointers + PAGE_SIZE;
    let top = (0..ENTRIES).map(|i| if i == 0 { directory_pointers | TABLE } else { 0 });
    let pointers = (0..ENTRIES).map(|i| if i < DIRECTORIES { (directories + i * PAGE_SIZE) | TABLE } else { 0 });
    let pages = (0..DIRECTORIES * ENTRIES).map(|i| (i * LARGE_PAGE_SIZE) | LARGE_PAGE);
    let mut bytes = Vec::with_capacity(usize::try_from(PAGE_TABLES_SIZE).expect("six pages"));
    for entry in top.chain(pointers).chain(pages) {
        bytes.extend_from_slice(&entry.to_le_bytes());
    }
    bytes
}
