//! Files of resources/golden, for tests: what husk once wrote, and reads for ever.

use std::fs;
use std::path::Path;

/// The bytes of a dump, whose lines are of 32 bytes each; one that begins with `#` is for people.
pub(crate) fn bytes(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/golden").join(name);
    let dump = fs::read_to_string(path).unwrap();
    let lines = dump.lines().filter(|line| !line.starts_with('#'));
    let digits: Vec<u8> =
        lines.flat_map(|line| line.bytes()).map(|d| u8::try_from((d as char).to_digit(16).unwrap()).unwrap()).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
