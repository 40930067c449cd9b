//! `ask`: answers what the lines that come from the console ask, until one says `end`.

use super::echo::{each_line, without_echo};
use super::{Facts, Fault, fault};
use crate::sys::{self, Errno};
use crate::text::{Printable, Text, say};
use crate::words::Words;

/// As many as the kernel is configured for (CONFIG_NODES_SHIFT).
const NODES_MAX: u32 = 8;

pub(super) fn run(_words: &Words, facts: &mut Facts) -> Result<(), Fault> {
    without_echo(|| {
        say!("WAIT ask");
        let lines = each_line(|line| match line {
            b"mem" => memory(),
            b"nodes" => (0..NODES_MAX).try_for_each(node),
            _ => Err(fault!("there is no answer to `{}`", Printable(line))),
        })?;
        facts.fact(format_args!("lines={lines}"));
        Ok(())
    })
}

fn memory() -> Result<(), Fault> {
    let [total, free] = sys::memory_bytes().map_err(|errno| fault!("cannot ask for the memory: {errno}"))?;
    say!("MEM total_kib={} free_kib={}", total / 1024, free / 1024);
    Ok(())
}

/// A line for a node that is there.
fn node(number: u32) -> Result<(), Fault> {
    let (mut cpus, mut distance, mut memory) = ([0; 64], [0; 64], [0; 256]);
    let cpus = match read(number, "cpulist", &mut cpus) {
        Err(Errno::NOT_FOUND) => return Ok(()),
        other => other.map_err(|errno| fault!("cannot read node{number}/cpulist: {errno}"))?,
    };
    let distance = read(number, "distance", &mut distance)
        .map_err(|errno| fault!("cannot read node{number}/distance: {errno}"))?;
    let memory =
        read(number, "meminfo", &mut memory).map_err(|errno| fault!("cannot read node{number}/meminfo: {errno}"))?;
    // Node 0 MemTotal: 57524 kB
    let total = memory.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).nth(3).unwrap_or_default();
    say!("NODE {number} cpus={} mem_kib={} distances={}", Printable(cpus), Printable(total), Printable(distance));
    Ok(())
}

fn read<'a>(node: u32, file: &str, place: &'a mut [u8]) -> sys::Result<&'a [u8]> {
    let path = Text::<64>::of(format_args!("/sys/devices/system/node/node{node}/{file}"));
    let len = sys::read_file(path.as_cstr().ok_or(Errno::NOT_FOUND)?, place)?;
    Ok(place.get(..len).unwrap_or_default().trim_ascii())
}
