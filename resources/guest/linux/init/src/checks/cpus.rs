//! `cpus`: the program moves to every CPU that is online and asks there where it is. On every second one it has the kernel
//! interrupt those that it was on since the last time. With four CPUs these are two of the three others: to one, to some and
//! to all others a kernel sends its interrupts in three different ways.

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
        if cpu % 2 == 1 {
            sys::flush_other_tlbs().map_err(|errno| fault!("cannot map and unmap a page: {errno}"))?;
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
