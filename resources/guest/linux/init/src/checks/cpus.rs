//! `cpus`: the program moves to every CPU that is online and asks there where it is.

use super::{Facts, Fault, fault};
use crate::sys;
use crate::text::Printable;
use crate::words::Words;

pub(super) fn run(_words: &Words, facts: &mut Facts) -> Result<(), Fault> {
    let all = sys::allowed_cpus().map_err(|errno| fault!("cannot ask for the CPUs: {errno}"))?;
    for cpu in all.iter() {
        sys::run_on(cpu).map_err(|errno| fault!("cannot move to CPU {cpu}: {errno}"))?;
        let here = sys::this_cpu().map_err(|errno| fault!("cannot ask for the CPU: {errno}"))?;
        if here != cpu {
            return Err(fault!("moved to CPU {cpu} but runs on {here}"));
        }
    }
    sys::run_on_any(&all).map_err(|errno| fault!("cannot move back to any CPU: {errno}"))?;

    let mut online = [0; 64];
    let len = sys::read_file(c"/sys/devices/system/cpu/online", &mut online)
        .map_err(|errno| fault!("cannot read cpu/online: {errno}"))?;
    let online = online.get(..len).unwrap_or_default().trim_ascii();
    facts.fact(format_args!("ran={} online={}", all.count(), Printable(online)));
    Ok(())
}
