//! The Linux guest of `tools/dev guest`, and what its init says.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::fs;
use std::path::Path;

use super::ended::{Ended, Facts};
use super::{Launch, husk};

/// What boots everywhere (resources/guest/linux/README.md): the first words are needed where ring 0 is emulated.
pub(crate) const CMDLINE: &str = "console=ttyS0 clearcpuid=smap,popcnt,erms noxsave rodata=off noreplace-smp panic=-1";

/// What `tools/dev guest` leaves.
pub(crate) fn guest(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest").join(name);
    assert!(path.is_file(), "{} is missing: run tools/dev guest first", path.display());
    path.to_str().unwrap().to_owned()
}

pub(crate) fn linux(words: &str) -> Launch {
    let cmdline = format!("{CMDLINE} {words}");
    husk(["run", "--kernel", &guest("vmlinux"), "--initrd", &guest("initramfs.cpio"), "--cmdline", &cmdline])
}

/// A file of the guest's initramfs, which is a cpio archive of the format `newc`.
pub(crate) fn initramfs_file(name: &str) -> Vec<u8> {
    const HEADER: usize = 110;
    let archive = fs::read(guest("initramfs.cpio")).unwrap();
    let mut at = 0;
    loop {
        let number = |field: usize| {
            let digits = std::str::from_utf8(&archive[at + 6 + 8 * field..][..8]).unwrap();
            usize::from_str_radix(digits, 16).unwrap()
        };
        let (bytes, name_bytes) = (number(6), number(11));
        let begin = (at + HEADER + name_bytes).next_multiple_of(4);
        let found = &archive[at + HEADER..][..name_bytes - 1];
        assert_ne!(found, b"TRAILER!!!", "{name} is not in the initramfs");
        if found == name.as_bytes() {
            return archive[begin..begin + bytes].to_vec();
        }
        at = (begin + bytes).next_multiple_of(4);
    }
}

/// The bytes that the init writes to its `index`th disk with this seed: words of xorshift64.
pub(crate) fn pattern(seed: u64, index: u64, len: usize) -> Vec<u8> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(index + 1);
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len / 8).flat_map(|_| word()).collect()
}

/// A sum as the init says it: hexadecimal digits alone.
#[track_caller]
pub(crate) fn sum(facts: &Facts, key: &str) -> u64 {
    u64::from_str_radix(facts.get(key), 16).unwrap()
}

/// All that was asked was done, and nothing failed.
#[track_caller]
pub(crate) fn checks_went_well(ended: &Ended, names: &[&str], end: &str) {
    assert_eq!(ended.stderr, "", "{ended}");
    guest_did(ended, names, end);
}

/// The guest is satisfied, whatever husk had to say.
#[track_caller]
pub(crate) fn guest_did(ended: &Ended, names: &[&str], end: &str) {
    assert_eq!(ended.code(), Some(0), "{ended}");
    for name in names {
        ended.check(name);
    }
    let done = format!("checks={} failed=0 end={end}", names.len());
    assert_eq!(ended.line("GUEST DONE ").trim_end(), done, "{ended}");
    assert!(!ended.text().contains("GUEST FAIL") && !ended.text().contains("GUEST PANIC"), "{ended}");
}
