//! A state file of any sections: read as it was written, and refused with any byte changed.
//!
//! An input is a position and what is changed there, and then sections: kind, version, bytes of id and of payload, these.
#![no_main]

use vmm::epoch::{Digest, Encoded, PointId, Section, SectionKind, Sections, StateFile, StateHeader};

const KINDS: [SectionKind; 4] = [SectionKind::Vm, SectionKind::Vcpu, SectionKind::Transport, SectionKind::Blk];

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&[low, high, change], mut rest)) = input.split_first_chunk() else { return };
    let mut sections = Vec::new();
    while let Some((&[kind, version, id_bytes, bytes], behind)) = rest.split_first_chunk() {
        let (id, behind) = behind.split_at(behind.len().min(id_bytes.into()));
        let (payload, behind) = behind.split_at(behind.len().min(bytes.into()));
        let kind = KINDS[usize::from(kind) % KINDS.len()];
        let id = String::from_utf8_lossy(id).into_owned();
        sections.push(Section { kind, id, payload: Encoded::from_bytes(version.into(), payload.to_vec()) });
        rest = behind;
    }
    let Ok(mut file) = StateFile::encode(&header(), &sections) else { return };
    let read = StateFile::decode(&file).expect("what was written can be read");
    take(read.sections, &sections);
    let at = usize::from(u16::from_le_bytes([low, high])) % file.len();
    if change != 0 {
        file[at] ^= change;
        assert!(StateFile::decode(&file).is_err(), "byte {at} changed unseen");
    }
    assert!(StateFile::decode(&file[..at]).is_err());
});

/// Takes each section as a type that its payload may be of or not.
fn take(mut sections: Sections, written: &[Section]) {
    for (number, Section { kind, id, payload }) in written.iter().enumerate() {
        assert_eq!(sections.version(*kind, id), Some(payload.version));
        let _taken = match number % 4 {
            0 => sections.take::<Vec<u64>>(*kind, id, payload.version).map(drop),
            1 => sections.take::<(String, Option<[u8; 16]>)>(*kind, id, payload.version).map(drop),
            2 => sections.take::<Vec<Vec<(u16, bool)>>>(*kind, id, payload.version).map(drop),
            _ => sections.take::<StateHeader>(*kind, id, payload.version).map(drop),
        };
    }
    assert_eq!(sections.finish(), Ok(()));
}

fn header() -> StateHeader {
    let (id, index, config) = (PointId::from_bytes([1; 16]), Digest::of(b""), Digest::of(b""));
    let (husk_version, cpu, created_ms) = ("0".to_owned(), Encoded::from_bytes(1, vec![1, 2, 3]), 1);
    StateHeader {
        id,
        parent: None,
        husk_version,
        created_ms,
        cpu,
        config,
        memory_bytes: 4096,
        index,
        sample: Vec::new(),
    }
}
