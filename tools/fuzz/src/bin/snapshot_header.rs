//! The head of a state file, under a checksum that is right: only so does anything behind it run.
#![no_main]

use vmm::epoch::{Digest, StateFile, StateHeader};

libfuzzer_sys::fuzz_target!(|head: &[u8]| {
    // As they are, they are no state file.
    assert!(StateHeader::decode(head).is_err() || head.starts_with(b"HUSKSTAT"));
    let Ok(bytes) = u32::try_from(head.len()) else { return };
    let numbers = [&b"HUSKSTAT\x01\0\0\0"[..], &bytes.to_le_bytes()].concat();
    let digest = Digest::of(&[&numbers[..], head].concat());
    let file = [&numbers[..], digest.bytes(), head].concat();
    let Ok((header, table)) = StateHeader::decode(&file) else { return };
    // There is nothing behind the head: what is in the table is empty.
    assert!(table.iter().all(|row| row.bytes == 0));
    let again = StateFile::encode(&header, &[]).expect("what was read can be written");
    assert_eq!(StateFile::decode(&again).expect("what was written can be read").header, header);
    let _sections = StateFile::decode(&file);
});
