//! bzImages good and bad, through [`load_kernel`] as the machine's builder calls it.

use std::io::Write;
use std::time::{Duration, Instant};

use linux_loader::bootparam::{boot_params, setup_header};
use lzma_rust2::{CheckType, FilterType, XzOptions, XzWriter};
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_oneof, proptest};

use super::super::testing::{PAYLOAD_OFFSET, TestElf, TestImage};
use super::super::{load_initrd, load_kernel, write_boot_data};
use super::*;
use crate::layout::{PAGE_SIZE, ZERO_PAGE};
use crate::memory::Bytes;

const MIB: u64 = 1 << 20;
const MEMORY_SIZE: usize = 8 << 20;
const CODE: &[u8] = b"\x90\x90\xf4 and some data";
const ALL: [Compression; 4] = [Compression::Gzip, Compression::Lz4, Compression::Xz, Compression::Zstd];

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).unwrap()
}

fn load(image: &[u8], entry: BootEntry) -> Result<Kernel, LoadError> {
    load_kernel(&memory(), &mut Cursor::new(image), entry)
}

fn refusal(image: &[u8]) -> LoadError {
    load(image, BootEntry::Auto).unwrap_err()
}

/// Packs as Linux's build does, with the unpacked size behind it where the format has none.
fn pack(content: &[u8], compression: Compression) -> Vec<u8> {
    let mut packed = Vec::new();
    match compression {
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(&mut packed, flate2::Compression::fast());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap();
            return packed;
        }
        Compression::Lz4 => {
            packed.extend_from_slice(&lz4::MAGIC);
            for block in content.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                packed.extend_from_slice(&u32::try_from(block.len()).unwrap().to_le_bytes());
                packed.extend_from_slice(&block);
            }
        }
        Compression::Xz => {
            let mut options = XzOptions::with_preset(1);
            options.set_check_sum_type(CheckType::Crc32);
            options.prepend_pre_filter(FilterType::BcjX86, 0);
            let mut encoder = XzWriter::new(&mut packed, options).unwrap();
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap();
        }
        Compression::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(&mut packed, 1).unwrap();
            encoder.include_checksum(true).unwrap();
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap();
        }
    }
    packed.extend_from_slice(&u32::try_from(content.len()).unwrap().to_le_bytes());
    packed
}

fn image(content: &[u8], compression: Compression) -> Vec<u8> {
    TestImage::new(&pack(content, compression)).bytes()
}

/// Two segments that are not in the order of the file, the first with pages of zeroes and of other bytes in it, and
/// relocations behind them.
fn sample() -> TestElf {
    let mut text = CODE.to_vec();
    text.resize(0x1_2345, 0);
    text.extend((0..0x2_0000_u32).flat_map(|i| i.wrapping_mul(0x9e37_79b1).to_le_bytes()));
    text.resize(0x40_0000, 0);
    text.extend_from_slice(b"end");
    TestElf::new(2 * MIB + 5).load(2 * MIB + 5, &text, 5 * MIB).load(MIB, b"data", 100).pvh(2 * MIB + 7)
}

fn sample_with_relocations() -> Vec<u8> {
    let mut bytes = sample().bytes();
    bytes.extend((0..10_000_u32).flat_map(u32::to_le_bytes));
    bytes
}

fn contents(memory: &GuestMemory) -> Vec<u8> {
    let mut found = vec![0; MEMORY_SIZE];
    memory.read_slice(&mut found, GuestAddress(0)).unwrap();
    found
}

#[test]
fn a_kernel_packed_in_any_way_arrives_as_its_elf_would() {
    let plain = memory();
    let elf = load_kernel(&plain, &mut Cursor::new(sample().bytes()), BootEntry::Auto).unwrap();
    for compression in ALL {
        let packed = memory();
        let image = image(&sample_with_relocations(), compression);
        let kernel = load_kernel(&packed, &mut Cursor::new(&image), BootEntry::Auto).unwrap();
        assert!(contents(&packed) == contents(&plain), "{compression}");
        assert_eq!((kernel.entry, kernel.protocol, kernel.end), (elf.entry, elf.protocol, elf.end));
        assert!(matches!(kernel.file, KernelFile::Unpacked { compression: found, .. } if found == compression));
        assert!(kernel.skips_own_kaslr() && !elf.skips_own_kaslr());
        let linux64 = load(&image, BootEntry::Linux64).unwrap();
        assert_eq!((linux64.entry.0, linux64.protocol), (2 * MIB + 5, BootProtocol::Linux64));
        assert_eq!(load(&image, BootEntry::Pvh).unwrap().protocol, BootProtocol::Pvh);
    }
}

/// What `xz --check=crc32 --x86 --lzma2=preset=9e,dict=32MiB` (5.4.1) made of an ELF with 64 calls of one function.
const PACKED_BY_XZ: &str = "\
    fd377a585a0000016922de360201040021011a0001c980b3e001f8006e5d003f914584683d89a6da8acc93e24ef1e35c72f0cec475b6856594c3\
    55c84c234c890cb1dec315ba8cf0b1dc86d2d74eb0205381c92a55e487558a4774b3411e35173451921b54680c59e00aef9b304832d8e511658e\
    d9f167d696980c57ff345a52dfb2cf5fdda90cdbbc99cd36c2000000a3b8cc3e00018601f9030000dcedf4cf3e300d8b020000000001595a";

#[test]
fn the_x86_filter_is_undone_as_the_xz_tool_applied_it() {
    let packed: Vec<u8> = (0..PACKED_BY_XZ.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&PACKED_BY_XZ[at..at + 2], 16).unwrap())
        .collect();
    let memory = memory();
    let image = TestImage::new(&packed).bytes();
    load_kernel(&memory, &mut Cursor::new(image), BootEntry::Auto).unwrap();
    for call in 0..64_i32 {
        let address = MIB + u64::try_from(5 * call).unwrap();
        let opcode: u8 = memory.read_obj(GuestAddress(address)).unwrap();
        let distance: i32 = memory.read_obj(GuestAddress(address + 1)).unwrap();
        assert_eq!((opcode, distance), (0xe8, 0x400 - 5 * call));
    }
}

#[test]
fn pages_of_zeroes_are_not_written() {
    // Were they written, they would hide what is here.
    let memory = memory();
    let page = GuestAddress(4 * MIB);
    memory.write_slice(&[0xaa; 4096], page).unwrap();
    load_kernel(&memory, &mut Cursor::new(image(&sample().bytes(), Compression::Lz4)), BootEntry::Auto).unwrap();
    assert_eq!(memory.read_obj::<u8>(page).unwrap(), 0xaa);
}

#[test]
fn a_kernel_in_memory_of_several_regions_is_whole() {
    let split = GuestMemory::from_ranges(&[(GuestAddress(0), 3 << 20), (GuestAddress(3 * MIB), 5 << 20)]).unwrap();
    let whole = memory();
    let image = image(&sample().bytes(), Compression::Zstd);
    load_kernel(&split, &mut Cursor::new(&image), BootEntry::Auto).unwrap();
    load_kernel(&whole, &mut Cursor::new(&image), BootEntry::Auto).unwrap();
    assert!(contents(&split) == contents(&whole));
}

#[test]
fn the_image_entry_loads_the_image_as_it_is() {
    let image = TestImage::new(b"anything");
    let memory = memory();
    let bytes = image.bytes();
    let kernel = load_kernel(&memory, &mut Cursor::new(&bytes), BootEntry::Image).unwrap();
    assert_eq!((kernel.entry.0, kernel.protocol, kernel.end.0), (2 * MIB + 0x200, BootProtocol::Linux64, 3 * MIB));
    assert!(matches!(kernel.file, KernelFile::Image { .. }) && !kernel.skips_own_kaslr());
    let size = usize::try_from(image.header.syssize * 16).unwrap();
    let mut expected = vec![0; MEMORY_SIZE];
    expected[2 << 20..][..size].copy_from_slice(&bytes[1536..1536 + size]);
    assert!(contents(&memory) == expected);
}

#[test]
fn the_zero_page_starts_as_the_setup_header_and_says_who_loaded_the_kernel() {
    let mut image = TestImage::new(&pack(&sample().bytes(), Compression::Lz4));
    // What is the loader's to say, and must not be taken from the file.
    image.header.type_of_loader = 7;
    image.header.loadflags = 0xff;
    image.header.setup_data = 0x1234;
    image.header.cmd_line_ptr = 0x5678;
    image.header.ramdisk_image = 0x9abc;
    image.header.ramdisk_size = 0xdef0;
    // What is the kernel's.
    image.header.root_flags = 1;
    image.header.vid_mode = 0xffff;
    for entry in [BootEntry::Linux64, BootEntry::Image] {
        let memory = memory();
        let kernel = load_kernel(&memory, &mut Cursor::new(image.bytes()), entry).unwrap();
        write_boot_data(&memory, &kernel, None, "quiet", None).unwrap();
        let header = memory.read_obj::<boot_params>(ZERO_PAGE).unwrap().hdr;
        let expected = setup_header {
            type_of_loader: 0xff,
            loadflags: 1,
            setup_data: 0,
            cmd_line_ptr: 0x2_0000,
            ramdisk_image: 0,
            ramdisk_size: 0,
            ..image.header
        };
        assert_eq!(header, expected);
    }
}

#[test]
fn a_setup_header_ends_where_its_jump_says() {
    let mut image = TestImage::new(&pack(&sample().bytes(), Compression::Lz4));
    image.header.jump = 0x66eb;
    image.header.kernel_info_offset = 0x9090_9090;
    let kernel = load(&image.bytes(), BootEntry::Linux64).unwrap();
    let setup = kernel.setup().unwrap().raw();
    assert_eq!({ setup.kernel_info_offset }, 0);
    assert_eq!({ setup.init_size }, { image.header.init_size });
}

#[test]
fn an_initrd_stays_below_the_address_that_the_kernel_allows() {
    let mut image = TestImage::new(&pack(&sample().bytes(), Compression::Lz4));
    image.header.initrd_addr_max = 0x78_0000 - 1;
    let memory = memory();
    let kernel = load_kernel(&memory, &mut Cursor::new(image.bytes()), BootEntry::Auto).unwrap();
    let initrd = load_initrd(&memory, &mut Cursor::new([1_u8; 5000]), &kernel).unwrap();
    assert_eq!(initrd.address.0, 0x78_0000 - 2 * PAGE_SIZE);
    let refused = load_initrd(&memory, &mut Cursor::new(vec![1; 600_000]), &kernel).unwrap_err();
    assert!(matches!(refused, LoadError::InitrdTooLarge { .. }), "{refused}");
}

#[test]
fn an_image_that_cannot_be_entered_as_it_is_is_refused_by_field() {
    let changed = |change: fn(&mut TestImage)| {
        let mut image = TestImage::new(b"anything");
        change(&mut image);
        load(&image.bytes(), BootEntry::Image).unwrap_err().to_string()
    };
    assert!(changed(|image| image.header.version = 0x20b).contains("boot protocol 2.11, 2.12 is needed"));
    assert!(changed(|image| image.header.xloadflags = 0x7e).contains("xloadflags 0x0, it must be 1 (64-bit entry)"));
    assert!(changed(|image| image.header.loadflags = 0).contains("loadflags 0x0"));
    for alignment in [0, 3, u32::MAX] {
        let mut image = TestImage::new(b"anything");
        image.header.kernel_alignment = alignment;
        let refused = load(&image.bytes(), BootEntry::Image).unwrap_err().to_string();
        assert!(refused.contains(&format!("kernel_alignment {alignment:#x}")), "{refused}");
    }
    assert!(changed(|image| image.header.pref_address = u64::MAX).contains("pref_address 0xffffffffffffffff"));
    assert!(changed(|image| image.header.pref_address = 0xc000_0000).contains("pref_address"));
    assert!(
        changed(|image| {
            image.header.pref_address = 0x123;
            image.header.relocatable_kernel = 0;
        })
        .contains("pref_address 0x123")
    );
    assert!(changed(|image| image.header.syssize = 32).contains("syssize 0x20"));
    assert!(changed(|image| image.header.syssize = u32::MAX).contains("its protected-mode code ends at byte"));
    let refused = changed(|image| image.header.init_size = 0x60_0001);
    assert_eq!(
        refused,
        "the bzImage needs memory up to 0x800001 to unpack itself, guest memory ends at 0x800000: give the guest more \
         than 8 MiB"
    );
    assert!(changed(|image| image.header.init_size = u32::MAX).contains("needs memory up to 0x1001fffff"));
}

#[test]
fn a_kernel_that_may_be_moved_goes_to_an_aligned_place_above_1_mib() {
    let mut image = TestImage::new(b"anything");
    image.header.pref_address = 0;
    let kernel = load(&image.bytes(), BootEntry::Image).unwrap();
    assert_eq!(kernel.entry.0, 2 * MIB + 0x200);
}

#[test]
fn a_packed_kernel_is_bounded_by_guest_memory() {
    let mut bomb = sample().bytes();
    bomb.resize(9 << 20, 0);
    for compression in ALL {
        let refused = refusal(&image(&bomb, compression));
        assert!(
            matches!(&refused, LoadError::BzImage(BzImageError::TooLarge { max, .. }) if *max == 8 * MIB),
            "{refused}"
        );
    }
    // What the headers claim is known before it is unpacked.
    let mut elf = sample();
    elf.parts[0].0.p_offset = 1 << 40;
    let refused = refusal(&image(&elf.bytes(), Compression::Zstd));
    assert!(refused.to_string().contains("zstd kernel unpacks to more than 8388608 bytes"), "{refused}");
}

#[test]
fn any_number_of_zeroes_ends_at_the_first_few() {
    let zeroes = vec![0; 24 << 20];
    for compression in ALL {
        let start = Instant::now();
        let refused = refusal(&image(&zeroes, compression));
        assert!(matches!(refused, LoadError::BzImage(BzImageError::NotElf { start: [0, 0, 0, 0], .. })), "{refused}");
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}

/// Streams that a decompressor reads for ever without a result.
#[test]
fn streams_that_unpack_to_nothing_end_soon() {
    const SIZE: usize = 12 << 20;
    let repeat = |start: &[u8], part: &[u8]| {
        let mut bytes = start.to_vec();
        bytes.extend(part.iter().copied().cycle().take(SIZE / part.len() * part.len()));
        bytes
    };
    let gzip = repeat(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", b"\x00\x00\x00\xff\xff");
    let lz4_magic = repeat(b"", &lz4::MAGIC);
    let lz4_empty = repeat(&lz4::MAGIC, b"\x01\x00\x00\x00\x00");
    let lz4_no_size = repeat(&lz4::MAGIC, b"\x00\x00\x00\x00");
    // One empty raw block after the other, none of them the last.
    let zstd = repeat(b"\x28\xb5\x2f\xfd\x00\x58", b"\x00\x00\x00");
    // A block whose LZMA2 ends at once, with its padding and no check.
    let header = [2, 0, 0x21, 1, 0x16, 0, 0, 0];
    let crc = crc32(&header).to_le_bytes();
    let block = [&header[..], &crc, &[0, 0, 0, 0]].concat();
    let flags = [0, 0];
    let xz = repeat(&[b"\xfd7zXZ\0", &flags[..], &crc32(&flags).to_le_bytes()].concat(), &block);
    for payload in [gzip, lz4_magic, lz4_empty, lz4_no_size, zstd, xz] {
        let start = Instant::now();
        let refused = refusal(&TestImage::new(&payload).bytes());
        assert!(matches!(&refused, LoadError::BzImage(BzImageError::Corrupt { at: 0, .. })), "{refused:?}");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", &payload[..8]);
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1))))
        ^ !0
}

#[test]
fn what_is_packed_must_be_a_kernel() {
    for compression in ALL {
        for content in [&b""[..], b"\x7f", b"#!/bin/sh", &[0x55; 40_000]] {
            let refused = refusal(&image(content, compression));
            let expected = content.iter().copied().chain([0; 4]).take(4).collect::<Vec<_>>();
            assert!(
                matches!(&refused, LoadError::BzImage(BzImageError::NotElf { start, .. }) if start[..] == expected[..]),
                "{compression}: {refused}"
            );
        }
        // An ELF that ends before its segments do, in a payload that is whole.
        let elf = sample().bytes();
        for len in [10, 64, 100, 1000, 20_000, elf.len() - 1] {
            let refused = refusal(&image(&elf[..len], compression));
            assert!(matches!(refused, LoadError::Truncated { .. }), "{compression} {len}: {refused}");
        }
    }
}

#[test]
fn formats_that_are_not_read_are_refused_by_name() {
    let refused = |payload: &[u8]| refusal(&TestImage::new(payload).bytes()).to_string();
    assert_eq!(
        refused(b"BZh91AY"),
        "the bzImage is packed with bzip2, which husk does not unpack: use the boot entry image, or its vmlinux"
    );
    assert!(refused(b"\x5d\0\0\0\x04\xff").contains("packed with LZMA"));
    assert!(refused(b"\x89LZO\0\r\n").contains("packed with LZO"));
    assert!(refused(&sample().bytes()).contains("packed with nothing"));
    assert_eq!(
        refused(b"\xde\xad\xbe\xef and more"),
        "the bzImage's packed kernel starts with [de, ad, be, ef], which no known format does: copy it again"
    );
    assert!(refused(b"").contains("starts with [00, 00, 00, 00]"));
    assert!(refused(b"\x1f").contains("starts with [1f, 00, 00, 00]"));
}

#[test]
fn a_setup_header_that_lies_about_the_payload_is_refused() {
    let changed = |change: fn(&mut TestImage)| {
        let mut image = TestImage::new(&pack(&sample().bytes(), Compression::Zstd));
        change(&mut image);
        refusal(&image.bytes())
    };
    for change in [
        (|image| image.header.payload_offset = u32::MAX) as fn(&mut TestImage),
        |image| image.header.payload_length = u32::MAX,
        |image| image.header.setup_sects = 255,
    ] {
        assert!(matches!(changed(change), LoadError::Truncated { what: "packed kernel", .. }));
    }
    let refused = changed(|image| image.header.payload_offset += 1);
    assert!(matches!(refused, LoadError::BzImage(BzImageError::UnknownFormat { .. })));
    let refused = changed(|image| image.header.payload_length /= 2);
    assert!(refused.to_string().contains("cannot unpack the bzImage's zstd kernel beyond byte"), "{refused}");
    let refused = changed(|image| image.header.version = 0x207).to_string();
    assert_eq!(
        refused,
        "the kernel is a bzImage of boot protocol 2.07, 2.08 is needed: use a newer kernel, or its vmlinux"
    );
}

#[test]
fn a_changed_byte_of_the_payload_is_noticed_where_the_format_has_a_checksum() {
    for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd] {
        let good = image(&sample_with_relocations(), compression);
        let start = 1536 + usize::try_from(PAYLOAD_OFFSET).unwrap();
        for at in (start + 40..good.len() - 600).step_by(good.len() / 7) {
            let mut bad = good.clone();
            bad[at] ^= 4;
            assert!(load(&bad, BootEntry::Auto).is_err(), "{compression} {at}");
        }
    }
}

#[test]
fn every_truncation_of_an_image_is_an_error() {
    let elf = TestElf::new(MIB).load(MIB, CODE, 4096).pvh(MIB + 2);
    for compression in ALL {
        let good = image(&elf.bytes(), compression);
        let payload = pack(&elf.bytes(), compression);
        let end = 1536 + usize::try_from(PAYLOAD_OFFSET).unwrap() + payload.len();
        assert!(load(&good[..end], BootEntry::Auto).is_ok());
        for len in 0..end {
            let refused = refusal(&good[..len]);
            match len {
                0 => assert!(matches!(refused, LoadError::Empty { .. })),
                1..0x206 => assert!(matches!(refused, LoadError::NotElf { .. })),
                _ => assert!(matches!(refused, LoadError::Truncated { .. }), "{refused}"),
            }
        }
        // The same where the header knows of it.
        for len in 0..payload.len() - 4 {
            assert!(load(&TestImage::new(&payload[..len]).bytes(), BootEntry::Auto).is_err(), "{compression} {len}");
        }
    }
}

fn compression() -> impl Strategy<Value = Compression> {
    prop_oneof![Just(Compression::Gzip), Just(Compression::Lz4), Just(Compression::Xz), Just(Compression::Zstd)]
}

/// Loads what may be anything, and checks that nothing was written where no kernel belongs.
fn survives(image: &[u8], entry: BootEntry) -> bool {
    let memory = memory();
    let placed = match load_kernel(&memory, &mut Cursor::new(image), entry) {
        Ok(kernel) => MIB <= kernel.entry.0 && kernel.entry < kernel.end && kernel.end.0 <= 8 * MIB,
        Err(_) => true,
    };
    placed && contents(&memory)[..1 << 20].iter().all(|byte| *byte == 0)
}

proptest! {
    #[test]
    fn changed_bytes_anywhere_never_end_in_a_panic(
        compression in compression(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let elf = TestElf::new(MIB).load(MIB, CODE, 4096).load(2 * MIB, &[7; 5000], 8192).pvh(MIB + 2);
        let mut payload = pack(&elf.bytes(), compression);
        for (at, value) in changes {
            let at = at.index(payload.len());
            payload[at] = value;
        }
        prop_assert!(survives(&TestImage::new(&payload).bytes(), BootEntry::Auto));
    }

    #[test]
    fn random_payloads_never_end_in_a_panic(
        compression in compression(),
        good in 6..64_usize,
        random in proptest::collection::vec(any::<u8>(), 0..4096),
    ) {
        let elf = TestElf::new(MIB).load(MIB, CODE, 4096);
        let mut payload = pack(&elf.bytes(), compression);
        payload.truncate(good);
        payload.extend(random);
        prop_assert!(survives(&TestImage::new(&payload).bytes(), BootEntry::Auto));
    }

    #[test]
    fn random_setup_headers_never_end_in_a_panic(
        random in proptest::collection::vec((0..0x7b_usize, any::<u8>()), 1..16),
        entry in prop_oneof![Just(BootEntry::Auto), Just(BootEntry::Image)],
    ) {
        let mut image = image(&TestElf::new(MIB).load(MIB, CODE, 4096).bytes(), Compression::Lz4);
        for (at, value) in random {
            image[0x1f1 + at] = value;
        }
        prop_assert!(survives(&image, entry));
    }
}
