//! Policy, advice, prefault and lock on guest memory that is mapped and not touched yet.
#![expect(unsafe_code, reason = "mbind, madvise and mlock have no safe interface in libc")]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use arch::GuestMemory;
use arch::memory::{GuestRegionMmap, host_address};
use thiserror::Error;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::errno;

use super::check::Settled;
use super::threads;
use crate::config::{HostNodes, MIB, MemoryPlacement, NodePolicy, Pages};
use crate::host::IdList;
use crate::machine::Assembly;

/// What the kernel does not do to guest memory.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("memory: cannot {step} {} MiB at guest address {address:#x}: {cause}: {hint}", bytes / MIB)]
pub struct ApplyError {
    pub(super) step: Step,
    pub(super) address: u64,
    bytes: u64,
    cause: errno::Error,
    hint: &'static str,
}

/// What is done to guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Bind,
    KeepOutOfDumps,
    MakeTransparent,
    Merge,
    Prefault,
    Lock,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bind => "bind to its nodes (mbind)",
            Self::KeepOutOfDumps => "keep out of core dumps (MADV_DONTDUMP)",
            Self::MakeTransparent => "make of transparent HugePages (MADV_HUGEPAGE)",
            Self::Merge => "offer for merging (MADV_MERGEABLE)",
            Self::Prefault => "prefault (MADV_POPULATE_WRITE)",
            Self::Lock => "lock (mlock)",
        })
    }
}

/// A part of guest memory, as the host sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) guest: u64,
    pub(super) host: usize,
    pub(super) bytes: u64,
}

impl Span {
    pub(super) fn of(region: &GuestRegionMmap) -> Self {
        Self { guest: region.start_addr().0, host: host_address(region), bytes: region.len() }
    }

    fn failed(self, step: Step, hint: &'static str) -> impl FnOnce(errno::Error) -> ApplyError {
        move |cause| ApplyError { step, address: self.guest, bytes: self.bytes, cause, hint }
    }

    fn madvise(self, advice: libc::c_int) -> errno::Result<()> {
        let start = std::ptr::with_exposed_provenance_mut(self.host);
        let length = usize::try_from(self.bytes).expect("a 64-bit host addresses 64 bits");
        loop {
            // SAFETY: the span is a mapping of the caller's, and none of the advices here takes away what it holds.
            if unsafe { libc::madvise(start, length, advice) } == 0 {
                return Ok(());
            }
            let error = errno::Error::last();
            if error.errno() != libc::EINTR {
                return Err(error);
            }
        }
    }

    fn mbind(self, nodes: &HostNodes) -> errno::Result<()> {
        let mode = match nodes.policy {
            NodePolicy::Bind => libc::MPOL_BIND,
            NodePolicy::Preferred => libc::MPOL_PREFERRED,
            NodePolicy::Interleave => libc::MPOL_INTERLEAVE,
        };
        // Another cpuset must not renumber what was asked.
        let mode = mode | libc::MPOL_F_STATIC_NODES;
        let mask = mask(&nodes.nodes);
        // The kernel looks at one bit less than it is told.
        let bits = 64 * mask.len() + 1;
        // SAFETY: mbind reads `bits - 1` bits of the mask, and touches nothing of the span but its policy.
        let failed = unsafe {
            libc::syscall(libc::SYS_mbind, self.host, self.bytes, mode, mask.as_ptr(), bits, 0 as libc::c_uint)
        } != 0;
        if failed { errno::errno_result() } else { Ok(()) }
    }

    fn mlock(self) -> errno::Result<()> {
        let start = std::ptr::with_exposed_provenance(self.host);
        let length = usize::try_from(self.bytes).expect("a 64-bit host addresses 64 bits");
        // SAFETY: the span is a mapping of the caller's; to lock it changes nothing in it.
        let failed = unsafe { libc::mlock(start, length) } != 0;
        if failed { errno::errno_result() } else { Ok(()) }
    }
}

/// Says, before its first touch, where a region's pages shall come from and what may be done with them.
///
/// # Errors
/// The kernel does not take it.
pub(crate) fn advise(
    region: &GuestRegionMmap,
    placement: &MemoryPlacement,
    nodes: Option<&HostNodes>,
) -> Result<(), ApplyError> {
    let span = Span::of(region);
    if let Some(nodes) = nodes {
        span.mbind(nodes).map_err(span.failed(Step::Bind, "check the nodes with `husk host`"))?;
    }
    let mut advices = Vec::with_capacity(3);
    if !placement.dump {
        advices.push((libc::MADV_DONTDUMP, Step::KeepOutOfDumps, "set dump=on"));
    }
    if placement.pages == Pages::Transparent {
        advices.push((libc::MADV_HUGEPAGE, Step::MakeTransparent, "set pages=none"));
    }
    if placement.merge {
        advices.push((libc::MADV_MERGEABLE, Step::Merge, "this kernel has no KSM: set merge=off"));
    }
    for (advice, step, hint) in advices {
        span.madvise(advice).map_err(span.failed(step, hint))?;
    }
    Ok(())
}

/// Keeps all of memory where it is: what is not there yet comes now.
///
/// # Errors
/// The limit is too low, or the host has no memory for it.
pub(crate) fn lock(memory: &GuestMemory) -> Result<(), ApplyError> {
    for span in memory.iter().map(Span::of) {
        span.mlock().map_err(span.failed(Step::Lock, "raise RLIMIT_MEMLOCK, or free memory"))?;
    }
    Ok(())
}

/// What one step of a prefault populates: small enough that CPUs share the work evenly, a whole number of pages of any size.
const STEP_BYTES: u64 = 64 * MIB;
/// More threads than this wait for the memory, not for each other.
const THREADS_MAX: usize = 32;

/// Brings every page in that shall be there from the start, with all CPUs that there are (MADV_POPULATE_WRITE: an empty pool is an error here, and no
/// signal). What has the least choice of nodes comes first: what has more would take its pages.
///
/// # Errors
/// The host has no page where one must come from.
pub(crate) fn prefault(memory: &GuestMemory, settled: &Settled, assembly: &Assembly) -> Result<(), ApplyError> {
    let placement = &settled.placement;
    let step = placement.pages.pool_page_bytes().unwrap_or(0).max(STEP_BYTES);
    let regions = memory.iter().zip(settled.ranges());
    let asked = regions.filter(|(_, (.., nodes))| placement.is_prefaulted(*nodes));
    let by_choice = by_choice(asked.map(|(region, (.., nodes))| (Span::of(region), nodes)), step);
    let total: u64 = by_choice.values().flatten().map(|span| span.bytes).sum();
    let hint = match placement.pages.pool_page_bytes() {
        Some(_) => "another process took pages of the pool: add some, and start again",
        None => "free memory on its nodes, or give the guest less",
    };
    assembly.progress().expect(total);
    let done = AtomicU64::new(0);
    let goes_on = |bytes| {
        assembly.progress().add(bytes);
        tell(done.fetch_add(bytes, Ordering::Relaxed), bytes, total);
        !assembly.is_given_up()
    };
    by_choice.values().try_for_each(|spans| populate(spans, hint, goes_on))
}

/// The steps of spans, by how many nodes they may come from.
fn by_choice<'a>(spans: impl Iterator<Item = (Span, Option<&'a HostNodes>)>, step: u64) -> BTreeMap<usize, Vec<Span>> {
    let mut by_choice: BTreeMap<usize, Vec<Span>> = BTreeMap::new();
    for (span, nodes) in spans {
        let choice = nodes.filter(|nodes| nodes.is_strict()).map_or(usize::MAX, |nodes| nodes.nodes.len());
        by_choice.entry(choice).or_default().extend(steps(span, step));
    }
    by_choice
}

/// Populates spans, and gives `goes_on` the bytes of each; the rest is left when that says no.
fn populate(spans: &[Span], hint: &'static str, goes_on: impl Fn(u64) -> bool + Sync) -> Result<(), ApplyError> {
    let next = AtomicU64::new(0);
    // The others stop at their next step.
    let end = || next.store(u64::try_from(spans.len()).expect("far below 64 bits"), Ordering::Relaxed);
    let work = || -> Result<(), ApplyError> {
        loop {
            let index = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).expect("far below 64 bits");
            let Some(&span) = spans.get(index) else { return Ok(()) };
            if let Err(error) = span.madvise(libc::MADV_POPULATE_WRITE) {
                end();
                return Err(span.failed(Step::Prefault, hint)(error));
            }
            if !goes_on(span.bytes) {
                end();
            }
        }
    };
    // After a restart this thread has a place of its own.
    let elsewhere = || {
        threads::leave_inherited_place();
        work()
    };
    let workers = threads::parallelism().min(THREADS_MAX).min(spans.len());
    thread::scope(|scope| {
        let others: Vec<_> = (1..workers).map(|_| scope.spawn(elsewhere)).collect();
        let own = work();
        others.into_iter().fold(own, |first, other| {
            first.and(other.join().expect("with panic = abort a thread returns or the process ends"))
        })
    })
}

/// A line for each tenth of a prefault that takes its time.
fn tell(before: u64, bytes: u64, total: u64) {
    const WORTH_TELLING: u64 = 4096 * MIB;
    let tenth = |bytes: u64| bytes * 10 / total;
    if total >= WORTH_TELLING && tenth(before) != tenth(before + bytes) {
        log::info!("memory: {} of {} MiB prefaulted", (before + bytes) / MIB, total / MIB);
    }
}

fn steps(span: Span, step: u64) -> impl Iterator<Item = Span> {
    (0..span.bytes.div_ceil(step)).map(move |index| {
        let offset = index * step;
        Span {
            guest: span.guest + offset,
            host: span.host + usize::try_from(offset).expect("a 64-bit host addresses 64 bits"),
            bytes: step.min(span.bytes - offset),
        }
    })
}

/// Node numbers as the kernel's system calls take them.
fn mask(nodes: &IdList) -> Vec<u64> {
    let words = nodes.iter().max().map_or(1, |last| usize::from(last) / 64 + 1);
    let mut mask = vec![0; words];
    for node in nodes.iter() {
        mask[usize::from(node) / 64] |= 1 << (node % 64);
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_a_bit_for_each_node() {
        let mask = |text: &str| mask(&text.parse().unwrap());
        assert_eq!(mask("0"), [1]);
        assert_eq!(mask("0-1,63"), [3 | 1 << 63]);
        assert_eq!(mask("64,127"), [0, 1 | 1 << 63]);
    }

    #[test]
    fn what_has_the_least_choice_of_nodes_is_populated_first() {
        let on = |nodes: &str, policy| HostNodes { nodes: nodes.parse().unwrap(), policy };
        let (any, two) = (on("0", NodePolicy::Preferred), on("0-1", NodePolicy::Bind));
        let (one, both) = (on("0", NodePolicy::Bind), on("0-1", NodePolicy::Interleave));
        let asked = [None, Some(&any), Some(&two), Some(&one), Some(&both)];
        let spans = (0..).zip(asked).map(|(guest, nodes)| (Span { guest, host: 1 << 40, bytes: 1 }, nodes));
        let order: Vec<Vec<u64>> =
            by_choice(spans, 2).into_values().map(|steps| steps.iter().map(|step| step.guest).collect()).collect();
        assert_eq!(order, [vec![3], vec![2, 4], vec![0, 1]]);
    }

    #[test]
    fn steps_cover_a_span_and_nothing_beside_it() {
        let span = Span { guest: 1 << 32, host: 1 << 40, bytes: 5 };
        let steps: Vec<_> =
            steps(span, 2).map(|step| (step.guest - (1 << 32), step.host - (1 << 40), step.bytes)).collect();
        assert_eq!(steps, [(0, 0, 2), (2, 2, 2), (4, 4, 1)]);
    }
}
