//! The PVH start info (Xen: public/arch-x86/hvm/start_info.h), version 1, with its module list and memory map.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};

use super::LoadError;
use super::data::{self, BootData};
use crate::layout::{CMDLINE_START, PVH_START_INFO, PVH_START_INFO_SIZE};
use crate::memory::{ByteValued, GuestMemory};

const MODULES_START: u64 = PVH_START_INFO.0 + size_of::<hvm_start_info>() as u64;
const MAP_START: u64 = MODULES_START + size_of::<hvm_modlist_entry>() as u64;
/// A machine has one range for each stretch of memory and five more.
const MAP_ENTRIES_MAX: usize = 128;

const _: () = assert!(MAP_START.is_multiple_of(8));
const _: () = assert!(
    MAP_START + (MAP_ENTRIES_MAX * size_of::<hvm_memmap_table_entry>()) as u64
        <= PVH_START_INFO.0 + PVH_START_INFO_SIZE
);

pub(super) fn start_info(boot: &BootData<'_>) -> Vec<u8> {
    assert!(boot.map.len() <= MAP_ENTRIES_MAX, "{} memory ranges do not fit into the start info", boot.map.len());
    let modules = boot.initrd.map_or((0, 0), |_| (1, MODULES_START));
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: modules.0,
        modlist_paddr: modules.1,
        cmdline_paddr: CMDLINE_START.0,
        rsdp_paddr: boot.rsdp.map_or(0, |rsdp| rsdp.0),
        memmap_paddr: MAP_START,
        memmap_entries: u32::try_from(boot.map.len()).expect("bounded above"),
        ..Default::default()
    };
    let module = boot.initrd.map_or_else(hvm_modlist_entry::default, |initrd| hvm_modlist_entry {
        paddr: initrd.address.0,
        size: initrd.size,
        ..Default::default()
    });
    let mut bytes = Vec::with_capacity(usize::try_from(PVH_START_INFO_SIZE).expect("one page"));
    bytes.extend_from_slice(info.as_slice());
    bytes.extend_from_slice(module.as_slice());
    for range in &boot.map {
        let entry =
            hvm_memmap_table_entry { addr: range.start, size: range.size, type_: range.kind.number(), reserved: 0 };
        bytes.extend_from_slice(entry.as_slice());
    }
    bytes
}

pub(super) fn write(memory: &GuestMemory, boot: &BootData<'_>) -> Result<(), LoadError> {
    data::write(memory, "PVH start info", PVH_START_INFO, &start_info(boot))
}
