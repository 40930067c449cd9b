//! An index, under a checksum and with a count that are right: only so does anything behind them run.
#![no_main]

use vmm::epoch::{Digest, Index};

const COUNT: std::ops::Range<usize> = 88..96;
const RECORD_BYTES: usize = 104;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    if bytes.len() < COUNT.end {
        return;
    }
    let mut body = bytes.to_vec();
    body[..12].copy_from_slice(b"HUSKINDX\x01\0\0\0");
    let records = (body.len() - COUNT.end) / RECORD_BYTES;
    body.truncate(COUNT.end + records * RECORD_BYTES);
    body[COUNT].copy_from_slice(&(records as u64).to_le_bytes());
    let digest = Digest::of(&body);
    body.extend(digest.bytes());
    check(&body);
});

/// What is read is written as it was, and lies inside the memory.
fn check(bytes: &[u8]) {
    let Ok((index, digest)) = Index::decode(bytes) else { return };
    assert_eq!(index.encode(), (bytes.to_vec(), digest));
    for record in index.records() {
        let last = record.present.runs().last().map(|(first, pages)| record.chunk * 512 + first + pages);
        assert!(last.is_some_and(|end| end * 4096 <= index.memory_bytes()));
        assert_eq!(index.record(record.chunk), Some(record));
    }
}
