//! Memory of each node from the CPUs of each.
#![expect(unsafe_code, reason = "set_mempolicy has no safe interface in libc")]

use std::io;
use std::time::Instant;

use vm_memory::{Bytes, MmapRegion, VolatileMemory};

use super::{FIGURE_TIME, MemoryFigures, MemoryMeasured, Outcome, on_cpus};
use crate::host::facts::NodeFacts;
use crate::host::id_list::IdList;

/// Several times the last-level cache of one core complex.
const AREA_BYTES: usize = 256 << 20;
/// Twice as much, since a node that runs dry under a strict policy ends a process.
const FREE_BYTES_LEAST: u64 = 2 * AREA_BYTES as u64;
const LINE_BYTES: usize = 64;
/// What is read at a time: it stays in the first-level cache.
const CHUNK_BYTES: usize = 16 << 10;
/// Reads between two looks at the clock.
const READS_PER_LOOK: u32 = 4096;
const CHUNKS_PER_LOOK: u32 = 64;
/// Linux's MAX_NUMNODES on this architecture.
const NODES_MAX: usize = 1024;

pub(super) fn measure(nodes: &[NodeFacts], cpus: &IdList) -> Vec<MemoryMeasured> {
    let from = nodes.iter().filter(|node| !node.cpus.and(cpus).is_empty());
    let to = || nodes.iter().filter(|node| node.total_bytes != Some(0));
    let pairs = from.flat_map(|from| to().map(move |to| (from, to)));
    let pair = |(from, to): (&NodeFacts, &NodeFacts)| MemoryMeasured {
        cpu_node: from.id,
        memory_node: to.id,
        outcome: Outcome::of(on_cpus(&from.cpus.and(cpus), || figures(to))),
    };
    pairs.map(pair).collect()
}

fn figures(node: &NodeFacts) -> io::Result<MemoryFigures> {
    if node.available_bytes() < FREE_BYTES_LEAST {
        return Err(io::Error::other(format!("less than {} MiB are free", FREE_BYTES_LEAST >> 20)));
    }
    bind_thread(node.id)?;
    let area = MmapRegion::<()>::new(AREA_BYTES).map_err(io::Error::other)?;
    let area = area.as_volatile_slice();
    // Each line names the next of one walk through all of them, in an order that no prefetcher foresees: a linear
    // congruence of full period (Hull and Dobell: the multiplier 1 modulo 4, the increment odd).
    let lines = AREA_BYTES / LINE_BYTES;
    for line in 0..lines {
        let next = line.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) % lines;
        area.write_obj(next, line * LINE_BYTES).map_err(io::Error::other)?;
    }
    let walk = |line: &mut usize| {
        *line = area.read_obj::<usize>(*line * LINE_BYTES).map_err(io::Error::other)?;
        Ok(1)
    };
    let (reads, nanoseconds) = repeat(0, READS_PER_LOOK, walk)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let read = |offset: &mut usize| {
        area.read_slice(&mut chunk, *offset).map_err(io::Error::other)?;
        *offset = (*offset + CHUNK_BYTES) % AREA_BYTES;
        Ok(1)
    };
    let (chunks, read_nanoseconds) = repeat(0, CHUNKS_PER_LOOK, read)?;
    let mib_s =
        u128::from(chunks) * CHUNK_BYTES as u128 * 1_000_000_000 / u128::from(read_nanoseconds.max(1)) / (1 << 20);
    Ok(MemoryFigures { read_mib_s: u64::try_from(mib_s).unwrap_or(u64::MAX), latency_ns: nanoseconds / reads.max(1) })
}

/// Does `step` over and over; what it did in all, and in how many nanoseconds.
fn repeat(
    mut state: usize,
    steps_per_look: u32,
    mut step: impl FnMut(&mut usize) -> io::Result<u64>,
) -> io::Result<(u64, u64)> {
    let (began, mut done) = (Instant::now(), 0);
    loop {
        for _ in 0..steps_per_look {
            done += step(&mut state)?;
        }
        let took = began.elapsed();
        if took >= FIGURE_TIME {
            return Ok((done, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)));
        }
    }
}

/// Has this thread's new memory come from one node.
fn bind_thread(node: u16) -> io::Result<()> {
    let mut mask = [0u64; NODES_MAX / 64];
    let word = mask.get_mut(usize::from(node) / 64).ok_or(io::ErrorKind::InvalidInput)?;
    *word = 1 << (node % 64);
    // The kernel counts one bit less than it is told.
    const BITS: usize = NODES_MAX + 1;
    // SAFETY: set_mempolicy reads NODES_MAX bits at `mask`, which has as many, and keeps no pointer.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, libc::MPOL_BIND, mask.as_ptr(), BITS) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
