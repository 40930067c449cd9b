//! The probe (resources/guest/small/probe): how it is started, what it says, and what tests compute beside it.

use super::{Husk, Launch, husk};

/// The test guest, resources/guest/small/probe.
pub(crate) const PROBE: &str = env!("HUSK_GUEST_PROBE");
/// The same without its PVH note.
pub(crate) const PROBE_NO_NOTE: &str = env!("HUSK_GUEST_PROBE_NO_NOTE");
/// What the probe prints when it runs.
pub(crate) const READY: &str = "PROBE READY";

/// What the check `serial` prints when it listens.
pub(crate) const LISTENING: &str = "SERIAL WAIT\n";

/// What the check `flood` prints, so many KiB of it.
pub(crate) fn flood(kib: usize) -> String {
    (0..kib * 1024 / 64).map(|number| format!("FLOOD {number:08}{}\n", ".".repeat(49))).collect()
}

/// `husk run` with the probe as its kernel and `words` as its command line.
pub(crate) fn probe(words: &str) -> Launch {
    husk(["run", "--kernel", PROBE, "--cmdline", words])
}

/// The probe repeats each line until one is `end`.
pub(crate) fn echoing() -> Launch {
    probe("check=serial end=poweroff")
}

/// The guest lives although its input has ended: it goes on until a signal comes.
pub(crate) fn stops_only_when_told(husk: Husk) {
    husk.signal(libc::SIGTERM);
    let ended = husk.end().went_well();
    assert!(ended.lines("CHECK serial").is_empty() && ended.lines("END").is_empty(), "{ended}");
}

/// Lines that together are far longer than the FIFO of 64 bytes.
pub(crate) fn long_lines() -> (Vec<u8>, Vec<String>) {
    let letters = |seed| noise(seed, 1500).iter().map(|byte| char::from(b'a' + byte % 26)).collect::<String>();
    let lines: Vec<String> = (1..=8).map(letters).collect();
    ((lines.join("\n") + "\nend\n").into_bytes(), lines)
}

/// FNV-1a with 64 bits, as the guests sum.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    let add = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, add)
}

/// Bytes that are different for each seed and have no pattern to speak of.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[4]
    };
    (0..len).map(|_| next()).collect()
}
