//! `rng`: bytes from the entropy device, past the kernel's own generator.

use super::{Facts, Fault, fault};
use crate::sys;
use crate::text::Printable;
use crate::words::Words;

/// So many bytes that a working device fills both halves alike once in 2^256 tries.
const LEN: usize = 64;

pub(super) fn run(_words: &Words, facts: &mut Facts) -> Result<(), Fault> {
    let mut bytes = [0; LEN];
    let file = sys::File::open(c"/dev/hwrng", sys::Access::Read).map_err(|errno| fault!("no /dev/hwrng: {errno}"))?;
    let mut have = 0;
    while let Some(place) = bytes.get_mut(have..).filter(|place| !place.is_empty()) {
        match file.read(place) {
            Ok(0) => return Err(fault!("/dev/hwrng ended after {have} bytes")),
            Ok(read) => have += read,
            Err(errno) => return Err(fault!("cannot read /dev/hwrng after {have} bytes: {errno}")),
        }
    }
    let (left, right) = bytes.split_at(LEN / 2);
    if left == right {
        return Err(fault!("both halves of {LEN} bytes are alike"));
    }
    let mut name = [0; 64];
    let len = sys::read_file(c"/sys/class/misc/hw_random/rng_current", &mut name).unwrap_or(0);
    let name = name.get(..len).unwrap_or_default().trim_ascii();
    facts.fact(format_args!("bytes={LEN} source={}", Printable(name)));
    Ok(())
}
