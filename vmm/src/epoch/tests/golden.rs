//! The files of format version 1, as husk 0.1.0 wrote them: read for ever.

use std::fs;

use super::super::index::{ChunkRecord, Parent};
use super::super::state_file::SamplePage;
use super::super::*;
use crate::golden::bytes as golden;

const PAGES: u64 = CHUNK_PAGES + 8;

/// What a page of the golden memory holds.
fn page(number: u64) -> Vec<u8> {
    (0..PAGE_BYTES / 8).flat_map(|word| (number << 32 | word | 1).to_le_bytes()).collect()
}

fn record(chunk: u64, pages: &[u64]) -> ChunkRecord {
    let mut present = Presence::NONE;
    pages.iter().for_each(|&page| present.insert(page));
    let held: Vec<u8> = pages.iter().flat_map(|within| page(chunk * CHUNK_PAGES + within)).collect();
    ChunkRecord { chunk, present, digest: Digest::of(&held) }
}

/// What the golden index says.
fn index(parent: Option<Parent>) -> Index {
    let records = vec![record(0, &[0, 1, 2, 500]), record(1, &[7])];
    Index::new(PointId::from_bytes([0x11; 16]), parent, PAGES * PAGE_BYTES, records).unwrap()
}

fn header() -> StateHeader {
    let sample = |number| SamplePage { page: number, digest: Digest::of(&page(number)) };
    StateHeader {
        id: PointId::from_bytes([0x11; 16]),
        parent: None,
        husk_version: "0.1.0".to_owned(),
        created_ms: 1_795_693_333_000,
        cpu: Encoded::of(1, &("AuthenticAMD", 0x00a0_0f11_u32)).unwrap(),
        config: Digest::of(b"configuration"),
        memory_bytes: PAGES * PAGE_BYTES,
        index: index(None).encode().1,
        sample: vec![sample(1), sample(519)],
    }
}

fn sections() -> Vec<Section> {
    let of = |kind, id, version, value: &Vec<u32>| Section::of(kind, id, version, value).unwrap();
    vec![
        of(SectionKind::Vm, "", 1, &vec![1, 2, 3]),
        of(SectionKind::Vcpu, "0", 1, &vec![0x1234_5678]),
        of(SectionKind::Blk, "rootfs", 2, &vec![]),
    ]
}

#[test]
fn a_point_of_version_1_is_read_and_its_memory_verified() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("state"), golden("state-v1.txt")).unwrap();
    fs::write(at("memory.idx"), golden("index-v1.txt")).unwrap();
    let mut memory = vec![0; usize::try_from(PAGES * PAGE_BYTES).unwrap()];
    for number in [0, 1, 2, 500, 519] {
        memory[usize::try_from(number * PAGE_BYTES).unwrap()..][..PAGE].copy_from_slice(&page(number));
    }
    fs::write(at("memory"), memory).unwrap();
    let StateFile { header: read, sections: mut found } = StateFile::read(&at("state")).unwrap();
    assert_eq!(read, header());
    assert_eq!(read.cpu.decode::<(String, u32)>(1, &"CPU").unwrap(), ("AuthenticAMD".to_owned(), 0x00a0_0f11));
    assert_eq!(found.take::<Vec<u32>>(SectionKind::Vm, "", 1).unwrap(), [1, 2, 3]);
    assert_eq!(found.take::<Vec<u32>>(SectionKind::Vcpu, "0", 1).unwrap(), [0x1234_5678]);
    assert_eq!(found.take::<Vec<u32>>(SectionKind::Blk, "rootfs", 2).unwrap(), [0_u32; 0]);
    found.finish().unwrap();
    let point = Point::open(&at("memory"), &read).unwrap();
    assert!(point.has_index());
    point.verify_all().unwrap();
}

#[test]
fn an_incremental_index_of_version_1_is_read() {
    let parent = Parent { id: PointId::from_bytes([0x22; 16]), index: Digest::of(b"parent") };
    assert_eq!(Index::decode(&golden("index-incremental-v1.txt")).unwrap().0, index(Some(parent)));
}

/// A new format version is a new constant, and new golden files beside these.
#[test]
fn what_version_1_writes_has_not_changed() {
    let parent = Parent { id: PointId::from_bytes([0x22; 16]), index: Digest::of(b"parent") };
    let written = [
        ("state-v1.txt", StateFile::encode(&header(), &sections()).unwrap()),
        ("index-v1.txt", index(None).encode().0),
        ("index-incremental-v1.txt", index(Some(parent)).encode().0),
    ];
    for (name, bytes) in written {
        let dump =
            bytes.chunks(32).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n");
        assert!(golden(name) == bytes, "{name} should be\n{}", dump.collect::<String>());
    }
}
