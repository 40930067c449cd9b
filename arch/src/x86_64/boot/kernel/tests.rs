//! Kernels good and bad, through [`load_kernel`] as the machine's builder calls it.

use std::fs::File;
use std::io::{Cursor, Write};

use linux_loader::elf::{ET_DYN, ET_REL};
use proptest::prelude::{any, prop_assert, proptest};

use super::super::elf::{NOTES_BYTES_MAX, PROGRAM_HEADERS_MAX};
use super::super::testing::{TestElf, note};
use super::*;
use crate::memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

const MIB: u64 = 1 << 20;
const CODE: &[u8] = b"\x90\x90\xf4 and some data";

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap()
}

fn load(elf: &TestElf, entry: BootEntry) -> Result<Kernel, LoadError> {
    load_kernel(&memory(), &mut Cursor::new(elf.bytes()), entry)
}

fn refusal(elf: &TestElf) -> String {
    load(elf, BootEntry::Auto).unwrap_err().to_string()
}

/// Two segments: code at 1 MiB, data with a zero-initialized end at 2 MiB. Entry and PVH entry differ.
fn sample() -> TestElf {
    TestElf::new(MIB).load(MIB, CODE, 4096).load(2 * MIB, b"data", 100).pvh(MIB + 2)
}

#[test]
fn auto_takes_pvh_where_the_note_is_and_the_elf_entry_elsewhere() {
    let without = TestElf::new(MIB).load(MIB, CODE, 4096);
    let pvh = Kernel {
        entry: GuestAddress(MIB + 2),
        protocol: BootProtocol::Pvh,
        end: GuestAddress(2 * MIB + 100),
        file: KernelFile::Elf,
    };
    let linux64 = Kernel { entry: GuestAddress(MIB), protocol: BootProtocol::Linux64, ..pvh };
    assert_eq!(load(&sample(), BootEntry::Auto).unwrap(), pvh);
    assert_eq!(load(&sample(), BootEntry::Pvh).unwrap(), pvh);
    assert_eq!(load(&sample(), BootEntry::Linux64).unwrap(), linux64);
    assert_eq!(load(&without, BootEntry::Auto).unwrap().protocol, BootProtocol::Linux64);
    assert_eq!(
        load(&without, BootEntry::Pvh).unwrap_err().to_string(),
        "the kernel has no PVH entry: build it with CONFIG_PVH, or use the boot entry auto or linux64"
    );
}

#[test]
fn segments_from_a_file_and_from_bytes_arrive_where_they_belong_and_nowhere_else() {
    let bytes = sample().bytes();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let (from_file, from_bytes) = (memory(), memory());
    load_kernel(&from_file, &mut file, BootEntry::Auto).unwrap();
    load_kernel(&from_bytes, &mut Cursor::new(&bytes), BootEntry::Auto).unwrap();
    for memory in [from_file, from_bytes] {
        let mut expected = vec![0; 8 << 20];
        expected[1 << 20..][..CODE.len()].copy_from_slice(CODE);
        expected[2 << 20..][..4].copy_from_slice(b"data");
        let mut found = vec![0; 8 << 20];
        memory.read_slice(&mut found, GuestAddress(0)).unwrap();
        assert!(found == expected);
    }
}

#[test]
fn a_segment_may_cross_regions_of_guest_memory() {
    let content: Vec<u8> = (0..8192_u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
    let elf = TestElf::new(2 * MIB).load(2 * MIB - 4096, &content, 8192);
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20), (GuestAddress(2 * MIB), 2 << 20)]).unwrap();
    assert_eq!(memory.iter().map(|region| region.len()).collect::<Vec<_>>(), [2 * MIB, 2 * MIB]);
    load_kernel(&memory, &mut Cursor::new(elf.bytes()), BootEntry::Auto).unwrap();
    let mut found = vec![0; content.len()];
    memory.read_slice(&mut found, GuestAddress(2 * MIB - 4096)).unwrap();
    assert!(found == content);
}

#[test]
fn files_that_are_no_kernel_are_refused_by_what_they_are() {
    let refuse = |bytes: &[u8]| load_kernel(&memory(), &mut Cursor::new(bytes), BootEntry::Auto).unwrap_err();
    assert_eq!(refuse(b"").to_string(), "the kernel is empty: copy it again");
    assert_eq!(
        refuse(b"#!/bin/sh\n").to_string(),
        "the kernel is neither an ELF file nor a bzImage, it starts with [23, 21, 2f, 62]: give the vmlinux or the vmlinuz \
         of an x86-64 kernel"
    );
    assert!(matches!(refuse(b"\x7fE"), LoadError::NotElf { start: [0x7f, b'E', 0, 0] }));
    assert!(matches!(refuse(&[0; 4096]), LoadError::NotElf { .. }));
    assert_eq!(
        load(&sample(), BootEntry::Image).unwrap_err().to_string(),
        "the kernel is an ELF file, the boot entry image is a bzImage's: use the boot entry auto"
    );
}

#[test]
fn a_directory_and_a_pipe_are_refused_with_what_the_system_says() {
    let refused = load_kernel(&memory(), &mut File::open("/").unwrap(), BootEntry::Auto).unwrap_err();
    let LoadError::Read { source, .. } = &refused else { panic!("{refused}") };
    assert_eq!(source.kind(), std::io::ErrorKind::IsADirectory);
    let (reader, _writer) = std::io::pipe().unwrap();
    let mut pipe = File::from(std::os::fd::OwnedFd::from(reader));
    let refused = load_kernel(&memory(), &mut pipe, BootEntry::Auto).unwrap_err();
    assert_eq!(refused.to_string(), "cannot tell how large the kernel is: it must be a regular file");
}

#[test]
fn an_elf_for_another_machine_or_of_another_kind_is_refused_by_field() {
    let changed = |change: fn(&mut TestElf)| {
        let mut elf = sample();
        change(&mut elf);
        refusal(&elf)
    };
    assert_eq!(
        changed(|elf| elf.header.e_machine = 183),
        "the kernel has ELF machine 183, it must be 62 (x86-64): give the vmlinux of an x86-64 kernel"
    );
    assert!(changed(|elf| elf.header.e_ident[4] = 1).contains("ELF class 1, it must be 2 (64 bit)"));
    assert!(changed(|elf| elf.header.e_ident[5] = 2).contains("ELF byte order 2"));
    assert!(changed(|elf| elf.header.e_type = ET_REL).contains("ELF type 1, it must be 2 (executable)"));
    assert!(changed(|elf| elf.header.e_phentsize = 32).contains("ELF program header size 32, it must be 56"));
    assert!(changed(|elf| elf.header.e_phnum = PROGRAM_HEADERS_MAX + 1).contains("129 program headers, at most 128"));
    assert!(changed(|elf| elf.header.e_phoff = u64::MAX).contains("program header table ends at byte"));
    let mut relocatable = sample();
    relocatable.header.e_type = ET_DYN;
    assert!(load(&relocatable, BootEntry::Auto).is_ok());
}

#[test]
fn segments_must_agree_with_the_file_and_with_each_other() {
    let segment = |offset, file_size, address, memory_size| {
        let mut elf = TestElf::new(MIB).load(address, CODE, memory_size);
        elf.parts[0].0.p_offset = offset;
        elf.parts[0].0.p_filesz = file_size;
        refusal(&elf)
    };
    assert!(refusal(&TestElf::new(MIB)).contains("no segment to load"));
    assert!(segment(0, 8192, MIB, 4096).contains("malformed: 0x2000 bytes of file for 0x1000 of memory at 0x100000"));
    assert!(segment(0, 1, u64::MAX - 1, 4096).contains("malformed"));
    assert!(segment(u64::MAX, 2, MIB, 4096).contains("truncated: its segment ends at byte 18446744073709551615"));
    assert!(segment(100, 500, MIB, 4096).contains("truncated: its segment ends at byte 600, the file has 1"));
    let overlap = TestElf::new(MIB).load(2 * MIB, CODE, 4096).load(MIB, CODE, MIB + 1);
    assert!(refusal(&overlap).contains("segments 1 and 0 overlap at 0x200000"));
    let adjoining = TestElf::new(MIB).load(2 * MIB, CODE, 4096).load(MIB, CODE, MIB);
    assert!(load(&adjoining, BootEntry::Auto).is_ok());
}

#[test]
fn segments_stay_off_boot_data_the_hole_and_what_is_not_memory() {
    let at = |address, size| refusal(&TestElf::new(address).load(address, CODE, size));
    assert_eq!(
        at(MIB - 1, 4096),
        "kernel segment 0 starts at 0xfffff, below 0x100000 where boot data and the BIOS area are: link it higher"
    );
    assert!(at(0, 4096).contains("starts at 0x0, below"));
    assert_eq!(
        at(7 * MIB, 2 * MIB + 1),
        "kernel segment 0 ends at 0x900001, guest memory at 0x800000: give the guest more than 9 MiB"
    );
    assert!(
        at(0xbfff_0000, 0x1_0001).contains("ends at 0xc0000001, above 0xc0000000 where devices are: link it lower")
    );
    assert!(at(0x1_0000_0000, 4096).contains("above 0xc0000000"));
    let exact = TestElf::new(7 * MIB).load(7 * MIB, CODE, MIB);
    assert_eq!(load(&exact, BootEntry::Auto).unwrap().end, GuestAddress(8 * MIB));
}

#[test]
fn an_entry_outside_of_every_segment_is_refused() {
    for entry in [0, MIB - 1, MIB + 4096, u64::MAX] {
        let elf = TestElf::new(entry).load(MIB, CODE, 4096);
        assert!(refusal(&elf).contains(&format!("linux64 entry {entry:#x} is in none of its segments")));
    }
    let elf = TestElf::new(MIB).load(MIB, CODE, 4096).pvh(0x7000);
    assert!(refusal(&elf).contains("pvh entry 0x7000 is in none"));
    assert!(load(&elf, BootEntry::Linux64).is_ok(), "the PVH entry is not used here");
}

#[test]
fn the_pvh_note_is_found_among_others_in_every_form_that_tools_write() {
    let entry = 0x10_0002_u32.to_le_bytes();
    let other = note(b"GNU\0", 3, &[7; 20], 4);
    let unnamed = note(b"", 18, &[1, 2, 3], 4);
    let loaded = |elf: &TestElf| load(elf, BootEntry::Auto).unwrap().protocol;
    let base = || TestElf::new(MIB).load(MIB, CODE, 4096);
    let of_four_bytes = [other.clone(), unnamed, note(b"Xen\0", 18, &entry, 4)].concat();
    assert_eq!(loaded(&base().notes(&of_four_bytes, 4)), BootProtocol::Pvh);
    let aligned_to_8 = [note(b"GNU\0", 5, &[7; 12], 8), note(b"Xen\0", 18, &[entry, [0; 4]].concat(), 8)].concat();
    assert_eq!(loaded(&base().notes(&aligned_to_8, 8)), BootProtocol::Pvh);
    assert_eq!(loaded(&base().notes(&of_four_bytes, 4).notes(&other, 4)), BootProtocol::Pvh);
    assert_eq!(loaded(&base().notes(&other, 4).notes(&of_four_bytes, 4)), BootProtocol::Pvh);
    // The last note may lack its padding, and a few bytes behind the notes are not one.
    let mut unpadded = note(b"abc", 1, b"xyz", 4);
    unpadded.pop();
    assert_eq!(loaded(&base().notes(&unpadded, 4)), BootProtocol::Linux64);
    assert_eq!(loaded(&base().notes(&[other, vec![0xff; 11]].concat(), 4)), BootProtocol::Linux64);
}

#[test]
fn notes_that_lie_are_refused_when_they_are_needed_and_only_then() {
    let bad = |bytes: &[u8]| {
        let elf = TestElf::new(MIB).load(MIB, CODE, 4096).notes(bytes, 4);
        assert!(load(&elf, BootEntry::Linux64).is_ok());
        load(&elf, BootEntry::Auto).unwrap_err()
    };
    let words = |words: [u32; 3]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    assert!(matches!(bad(&words([u32::MAX, 0, 18])), LoadError::MalformedNote { offset: 0 }));
    assert!(matches!(bad(&words([0, u32::MAX, 18])), LoadError::MalformedNote { offset: 0 }));
    let second = [note(b"GNU\0", 1, b"", 4), words([u32::MAX - 3, u32::MAX - 3, 0])].concat();
    assert!(matches!(bad(&second), LoadError::MalformedNote { offset: 16 }));
    for descriptor in [&[][..], &[0; 3], &[0, 0, 0x10, 0, 1, 0, 0, 0], &[0; 16]] {
        assert!(matches!(bad(&note(b"Xen\0", 18, descriptor, 4)), LoadError::MalformedNote { .. }), "{descriptor:?}");
    }
}

#[test]
fn notes_that_claim_a_sparse_file_are_refused_before_a_byte_of_them_is_read() {
    let mut elf = sample();
    elf.parts[2].0.p_filesz = 1 << 40;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&elf.bytes()).unwrap();
    file.set_len(1 << 41).unwrap();
    let refused = load_kernel(&memory(), &mut file, BootEntry::Auto).unwrap_err();
    assert!(matches!(refused, LoadError::NotesTooLarge { size, max: NOTES_BYTES_MAX } if size == 1 << 40));
}

#[test]
fn every_truncation_is_an_error_and_the_whole_file_is_not() {
    let bytes = sample().bytes();
    for len in 0..bytes.len() {
        let refused = load_kernel(&memory(), &mut Cursor::new(&bytes[..len]), BootEntry::Auto);
        assert!(refused.is_err(), "{len} of {} bytes were loaded", bytes.len());
    }
    assert!(load_kernel(&memory(), &mut Cursor::new(&bytes), BootEntry::Auto).is_ok());
}

proptest! {
    #[test]
    fn random_bytes_in_the_headers_never_end_in_a_panic_or_a_kernel_outside_of_its_place(
        changes in proptest::collection::vec((0..64_usize + 3 * 56, any::<u8>()), 1..12),
    ) {
        let mut bytes = sample().bytes();
        for (at, value) in changes {
            bytes[at] = value;
        }
        let memory = memory();
        if let Ok(kernel) = load_kernel(&memory, &mut Cursor::new(&bytes), BootEntry::Auto) {
            prop_assert!(kernel.entry < kernel.end && kernel.end.0 <= 8 * MIB && kernel.entry.0 >= MIB);
        }
        let mut low = vec![0; 1 << 20];
        memory.read_slice(&mut low, GuestAddress(0)).unwrap();
        prop_assert!(low == vec![0; 1 << 20], "written below 1 MiB");
    }

    #[test]
    fn random_notes_never_end_in_a_panic(notes in proptest::collection::vec(any::<u8>(), 0..200), align in 0..9_u64) {
        let elf = TestElf::new(MIB).load(MIB, CODE, 4096).notes(&notes, align);
        let _ = load(&elf, BootEntry::Auto);
    }

    #[test]
    fn random_files_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        prop_assert!(load_kernel(&memory(), &mut Cursor::new(&bytes), BootEntry::Auto).is_err());
    }
}
