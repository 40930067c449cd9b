//! `mem`: writes the pattern over `husk.mem` MiB (1 if it is not given), then reads all of it back.

use super::{Facts, Fault, fault};
use crate::fnv::Fnv;
use crate::pattern::{Pattern, SEED_DEFAULT};
use crate::sys;
use crate::words::Words;

const MIB_DEFAULT: u64 = 1;

pub(super) fn run(words: &Words, facts: &mut Facts) -> Result<(), Fault> {
    let mib = words.number("husk.mem", MIB_DEFAULT).map_err(|refusal| fault!("{refusal}"))?;
    let seed = words.number("husk.seed", SEED_DEFAULT).map_err(|refusal| fault!("{refusal}"))?;
    let len = mib
        .checked_mul(1 << 20)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| fault!("husk.mem={mib} is more than there is"))?;
    let memory = sys::memory(len).map_err(|errno| fault!("cannot have {mib} MiB: {errno}"))?;
    Pattern::new(seed, 0).fill(memory);
    if let Some(at) = Pattern::new(seed, 0).first_difference(memory) {
        return Err(fault!("memory differs at byte {at} of {len}"));
    }
    let mut sum = Fnv::new();
    sum.add(memory);
    facts.fact(format_args!("mib={mib} sum={:016x}", sum.value()));
    Ok(())
}
