//! State files and indexes that are not as they were written.

use serde::Serialize;

use super::super::index::{ChunkRecord, Parent};
use super::super::*;
use super::model::{described, sections};

fn header() -> StateHeader {
    let sample = |page| state_file::SamplePage { page, digest: Digest::of(&[1]) };
    let Described { created_ms, cpu, config } = described();
    StateHeader {
        id: PointId::from_bytes([1; 16]),
        parent: Some(PointId::from_bytes([2; 16])),
        husk_version: "0.1.0".to_owned(),
        created_ms,
        cpu,
        config,
        memory_bytes: 64 << 20,
        index: Digest::of(b"index"),
        sample: vec![sample(3), sample(9)],
    }
}

fn index() -> Index {
    let record = |chunk, pages: &[u64]| {
        let mut present = Presence::NONE;
        pages.iter().for_each(|&page| present.insert(page));
        ChunkRecord { chunk, present, digest: Digest::of(&[2]) }
    };
    let parent = Parent { id: PointId::from_bytes([2; 16]), index: Digest::of(b"parent") };
    let records = vec![record(0, &[0, 1, 511]), record(7, &[64]), record(31, &[510])];
    Index::new(PointId::from_bytes([1; 16]), Some(parent), 64 << 20, records).unwrap()
}

fn state() -> Vec<u8> {
    StateFile::encode(&header(), &sections()).unwrap()
}

/// A state file's bytes around any head and payloads, with the checksum that makes them one.
fn sealed(head: &impl Serialize, payloads: &[u8]) -> Vec<u8> {
    let head = postcard::to_allocvec(head).unwrap();
    let mut file = b"HUSKSTAT\x01\0\0\0".to_vec();
    file.extend(u32::try_from(head.len()).unwrap().to_le_bytes());
    let digest = Digest::of(&[&file[..], &head].concat());
    [&file[..], digest.bytes(), &head, payloads].concat()
}

/// A row of the table as it is on disk: kind, id, version, bytes, digest.
type Row = (u16, &'static str, u16, u32, Digest);

fn row(kind: u16, id: &'static str, payload: &[u8]) -> Row {
    (kind, id, 1, u32::try_from(payload.len()).unwrap(), Digest::of(payload))
}

fn refusal(file: &[u8]) -> String {
    StateFile::decode(file).unwrap_err().to_string()
}

#[test]
fn a_state_file_is_what_was_written_and_its_header_needs_no_payload() {
    let file = state();
    let mut read = StateFile::decode(&file).unwrap();
    assert_eq!(read.header, header());
    assert_eq!(read.sections.ids(SectionKind::Blk).collect::<Vec<_>>(), ["rootfs"]);
    assert_eq!(read.sections.take::<String>(SectionKind::Blk, "rootfs", 2).unwrap(), "queue");
    let mut other = file.clone();
    let last = other.len() - 1;
    other[last] ^= 1;
    assert_eq!(StateHeader::decode(&other).unwrap().0, header());
    assert_eq!(refusal(&other), "the checksum of its section blk `rootfs` does not match: the file is damaged");
}

#[test]
fn a_state_file_cut_anywhere_or_longer_than_it_was_is_refused() {
    let file = state();
    for len in 0..file.len() {
        assert!(StateFile::decode(&file[..len]).is_err(), "{len} bytes");
        assert!(StateHeader::decode(&file[..len]).is_err(), "{len} bytes");
    }
    assert!(refusal(&[&file[..], &[0]].concat()).contains("bytes and should have"));
}

#[test]
fn no_bit_of_a_state_file_changes_unseen() {
    let file = state();
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut other = file.clone();
            other[at] ^= 1 << bit;
            assert!(StateFile::decode(&other).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn an_index_cut_anywhere_or_longer_than_it_was_is_refused() {
    let (file, digest) = index().encode();
    assert_eq!(Index::decode(&file), Ok((index(), digest)));
    for len in 0..file.len() {
        assert!(Index::decode(&file[..len]).is_err(), "{len} bytes");
    }
    assert!(matches!(Index::decode(&[&file[..], &[0]].concat()), Err(IndexError::Length { .. })));
}

#[test]
fn no_bit_of_an_index_changes_unseen() {
    let (file, _) = index().encode();
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut other = file.clone();
            other[at] ^= 1 << bit;
            assert!(Index::decode(&other).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn an_index_that_cannot_be_is_refused_whatever_its_checksum_says() {
    let (file, _) = index().encode();
    let refusal = |at: usize, bytes: &[u8]| {
        let mut other = file[..file.len() - 32].to_vec();
        other[at..at + bytes.len()].copy_from_slice(bytes);
        let digest = Digest::of(&other);
        other.extend(digest.bytes());
        Index::decode(&other).unwrap_err()
    };
    assert_eq!(refusal(8, &[2]), IndexError::Version { found: 2 });
    assert_eq!(refusal(12, &[0]), IndexError::Parent, "a parent that is not there");
    assert_eq!(refusal(12, &[3]), IndexError::Parent, "an unknown flag");
    assert_eq!(refusal(32, &[1; 16]), IndexError::Parent, "its own parent");
    for bytes in [0, 4095, 1 << 53, u64::MAX] {
        assert_eq!(refusal(80, &bytes.to_le_bytes()), IndexError::Memory { bytes });
    }
    for count in [0, 2, 4, u64::MAX / 104 + 2, u64::MAX] {
        assert!(matches!(refusal(88, &u64::to_le_bytes(count)), IndexError::Length { .. }), "{count} records");
    }
    assert_eq!(refusal(80, &(63_u64 << 20).to_le_bytes()), IndexError::Record { number: 2 }, "behind the end");
    assert_eq!(refusal(96 + 104, &[0]), IndexError::Record { number: 1 }, "out of order");
    assert_eq!(refusal(96 + 208, &[0xff; 8]), IndexError::Record { number: 2 }, "a chunk number that overflows");
    assert_eq!(refusal(96 + 8, &[0; 64]), IndexError::Record { number: 0 }, "no page");
}

#[test]
fn sections_that_are_doubled_unknown_or_of_the_future_are_named() {
    let payload = postcard::to_allocvec(&5_u32).unwrap();
    let two = [&payload[..], &payload].concat();
    let blk = row(33, "root", &payload);
    assert_eq!(refusal(&sealed(&(header(), vec![blk, blk]), &two)), "section blk `root` is there twice");
    let unknown = sealed(&(header(), vec![row(999, "x", &payload)]), &payload);
    assert_eq!(refusal(&unknown), "its section `x` is of kind 999, which this husk does not know");
    let mut future =
        StateFile::decode(&sealed(&(header(), vec![(33_u16, "root", 7_u16, 1_u32, blk.4)]), &payload)).unwrap();
    assert_eq!(future.sections.version(SectionKind::Blk, "root"), Some(7));
    let error = future.sections.take::<u32>(SectionKind::Blk, "root", 1).unwrap_err();
    assert_eq!(error.to_string(), "section blk `root` has version 7, this husk reads version 1");
    let error = StateFile::encode(&header(), &[sections().remove(0), sections().remove(0)]).unwrap_err();
    assert_eq!(error.to_string(), "section vm is there twice");
}

#[test]
fn sections_that_are_missing_left_over_or_not_of_their_type_are_named() {
    let read = || StateFile::decode(&state()).unwrap().sections;
    let said = |error: SectionError| error.to_string();
    let error = read().take::<u32>(SectionKind::Net, "eth0", 1).unwrap_err();
    assert_eq!(said(error), "section net `eth0` is missing");
    let mut twice = read();
    twice.take::<Vec<u64>>(SectionKind::Vcpu, "0", 1).unwrap();
    assert!(matches!(twice.take::<Vec<u64>>(SectionKind::Vcpu, "0", 1), Err(SectionError::Missing { .. })));
    assert_eq!(said(twice.finish().unwrap_err()), "section vm is of something this machine does not have");
    let error = read().take::<(u8, u8)>(SectionKind::Blk, "rootfs", 2).unwrap_err();
    assert_eq!(said(error), "section blk `rootfs` has 4 bytes too many");
    assert!(matches!(read().take::<[u64; 32]>(SectionKind::Blk, "rootfs", 2), Err(SectionError::Decode { .. })));
    let mut all = read();
    all.take::<Vec<u8>>(SectionKind::Vm, "", 1).unwrap();
    all.take::<Vec<u64>>(SectionKind::Vcpu, "0", 1).unwrap();
    all.take::<String>(SectionKind::Blk, "rootfs", 2).unwrap();
    assert_eq!(all.finish(), Ok(()));
}

#[test]
fn a_header_that_cannot_be_is_refused_whatever_its_checksum_says() {
    let none: &[Row] = &[];
    let with = |change: &dyn Fn(&mut StateHeader)| {
        let mut header = header();
        change(&mut header);
        refusal(&sealed(&(header, none), &[]))
    };
    assert!(with(&|header| header.memory_bytes = 0).contains("0 bytes of memory"));
    assert!(with(&|header| header.memory_bytes = u64::MAX).contains("bytes of memory"));
    assert!(with(&|header| header.parent = Some(header.id)).contains("is its own parent"));
    assert!(with(&|header| header.sample.reverse()).contains("out of order"));
    assert!(with(&|header| header.sample[1].page = u64::MAX).contains("behind the memory's end"));
    assert!(with(&|header| header.sample = (0..65).map(|_| header.sample[0]).collect()).contains("more than 64"));
    assert!(with(&|header| header.husk_version = "9".repeat(65)).contains("more than 64"));
    assert!(with(&|header| header.cpu = Encoded::of(1, &vec![0_u8; 70_000]).unwrap()).contains("more than 65536"));
    let long: &'static str = "a device id that goes on and on and on, and is longer than any that there can be";
    assert!(refusal(&sealed(&(header(), vec![row(33, long, &[])]), &[])).contains("more than 64"));
    assert!(refusal(&sealed(&(header(), none, 0_u8), &[])).contains("left over"));
    assert!(refusal(&sealed(&(header(), none), &[0])).contains("bytes and should have"));
}

#[test]
fn counts_and_lengths_are_not_believed() {
    // A table of 2^60 rows, a payload of 4 GiB, a head of 4 GiB.
    assert!(refusal(&sealed(&(header(), 1_u64 << 60), &[])).contains("header cannot be"));
    let huge: Row = (33, "x", 1, u32::MAX, Digest::of(b""));
    assert!(refusal(&sealed(&(header(), vec![huge]), &[])).contains("more than 16777216"));
    let large: Row = (33, "x", 1, 16 << 20, Digest::of(b""));
    assert!(refusal(&sealed(&(header(), vec![large]), &[])).contains("bytes and should have"));
    let rows = vec![row(33, "x", &[]); 4097];
    assert!(refusal(&sealed(&(header(), rows), &[])).contains("more than 4096"));
    let mut head = state();
    head[12..16].copy_from_slice(&[0xff; 4]);
    assert!(refusal(&head).contains("more than 1048576"));
}

#[test]
fn files_of_others_are_refused_by_name() {
    let mut version = state();
    version[8] = 2;
    assert_eq!(refusal(&version), "it has format version 2, this husk reads version 1");
    for magic in [0x0710_1984_8664_0000_u64, 0x0710_1984_8664_0001, 0x0710_1984_AAAA_0000] {
        for before in 0..4 {
            let file = [&vec![8; before][..], &magic.to_le_bytes(), &[3; 900]].concat();
            assert!(refusal(&file).contains("Firecracker"), "{magic:x} behind {before} bytes");
        }
    }
    assert_eq!(refusal(b""), "it is no state file of husk's");
    assert_eq!(refusal(&[0; 4096]), "it is no state file of husk's");
}
