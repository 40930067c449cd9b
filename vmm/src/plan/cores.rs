//! Which CPUs of a node a VM's vCPUs get: a pure choice over what is taken already.
//!
//! Work is counted in threads: a vCPU that keeps its siblings idle takes all threads of a core, one that shares them
//! takes one. A core serves one kind or the other, so that siblings are shared by those alone who said so.

use super::Overcommit;
use super::ground::Core;
use crate::config::Siblings;
use crate::host::IdList;

/// The cores of a node and what is promised of them.
#[derive(Debug, Clone)]
pub(crate) struct Cores<'a> {
    cores: &'a [Core],
    taken: Vec<Taken>,
    /// Of all cores together.
    threads: u64,
    /// Work of all cores, in threads, and the most that may be.
    work: u64,
    work_max: u64,
    /// How often a CPU may be promised.
    rounds_max: u32,
}

/// What is promised of a core.
#[derive(Debug, Clone)]
struct Taken {
    kind: Option<Siblings>,
    /// vCPUs on each thread.
    vcpus: Vec<u32>,
    /// In threads.
    work: u32,
}

/// A thread of a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pick {
    core: usize,
    thread: usize,
}

/// CPUs for some vCPUs, as far as there are any.
#[derive(Debug, Clone)]
pub(crate) struct Choice<'a> {
    /// What is taken with them.
    pub(crate) after: Cores<'a>,
    pub(crate) picks: Vec<Pick>,
    /// vCPUs that got a CPU which the scheduler does not leave alone.
    pub(super) not_isolated: usize,
}

impl<'a> Cores<'a> {
    pub(crate) fn new(cores: &'a [Core], overcommit: Overcommit) -> Self {
        let threads: u64 = cores.iter().map(|core| core.cpus.len() as u64).sum();
        let free = |core: &Core| Taken { kind: None, vcpus: vec![0; core.cpus.len()], work: 0 };
        Self {
            cores,
            taken: cores.iter().map(free).collect(),
            threads,
            work: 0,
            work_max: threads * u64::from(overcommit.thousandths()) / 1000,
            rounds_max: overcommit.thousandths().div_ceil(1000),
        }
    }

    /// Threads there are.
    pub(super) fn threads(&self) -> u64 {
        self.threads
    }

    /// Threads that are promised, some of them more than once.
    pub(super) fn work(&self) -> u64 {
        self.work
    }

    /// Work that may still be promised, in threads.
    pub(super) fn work_left(&self) -> u64 {
        self.work_max.saturating_sub(self.work)
    }

    /// Promised work by thread, in thousandths.
    pub(super) fn ratio_thousandths(&self) -> u64 {
        (self.work * 1000).checked_div(self.threads()).unwrap_or(0)
    }

    /// Takes CPUs for up to `vcpus` vCPUs of one VM: those least promised first, isolated ones first among them, and
    /// these from the last-level cache in which the VM fits most tightly.
    pub(crate) fn choose(&self, vcpus: u32, siblings: Siblings) -> Choice<'a> {
        let cache = self.tightest_cache(vcpus, siblings);
        let mut choice = Choice { after: self.clone(), picks: Vec::new(), not_isolated: 0 };
        for left in (1..=vcpus).rev() {
            let Some(pick) = choice.after.next(siblings, cache, left, &choice.picks) else { break };
            choice.after.take(pick, siblings);
            choice.not_isolated += usize::from(!self.cores[pick.core].isolated);
            choice.picks.push(pick);
        }
        choice
    }

    /// The CPU of a pick.
    pub(crate) fn cpu(&self, pick: Pick) -> u16 {
        self.cores[pick.core].cpus[pick.thread]
    }

    /// How many vCPUs run on the CPU of a pick.
    pub(super) fn vcpus_on(&self, pick: Pick) -> u32 {
        self.taken[pick.core].vcpus[pick.thread]
    }

    /// CPUs for I/O threads: those that are promised to nobody, not isolated, and no siblings of a vCPU that keeps them
    /// idle.
    pub(crate) fn spare(&self) -> IdList {
        let spare = self
            .cores
            .iter()
            .zip(&self.taken)
            .filter(|(core, taken)| !core.isolated && taken.kind != Some(Siblings::Idle));
        let threads = spare.flat_map(|(core, taken)| core.cpus.iter().zip(&taken.vcpus));
        threads.filter(|(_, vcpus)| **vcpus == 0).map(|(&cpu, _)| cpu).collect()
    }

    /// All threads of a VM's own cores that no other VM's kind of sharing forbids: where its I/O threads go if nothing
    /// is spare.
    pub(crate) fn own(&self, picks: &[Pick]) -> IdList {
        let cpus = |pick: &Pick| match self.taken[pick.core].kind {
            Some(Siblings::Idle) => self.cores[pick.core].cpus.clone(),
            _ => vec![self.cpu(*pick)],
        };
        picks.iter().flat_map(cpus).collect()
    }

    fn next(&self, siblings: Siblings, cache: Option<usize>, left: u32, own: &[Pick]) -> Option<Pick> {
        let fits = |&core: &usize| self.has_room(core, siblings);
        let order = |&core: &usize| {
            let (shape, taken) = (&self.cores[core], &self.taken[core]);
            let begun = taken.vcpus.iter().any(|vcpus| *vcpus > 0) && !self.level(core);
            // A core that this VM began is filled first; one that another began is for the last odd vCPU.
            let rank = match (begun, own.iter().any(|pick| pick.core == core)) {
                (true, true) => 0,
                (true, false) if left == 1 => 1,
                (false, _) => 2,
                (true, false) => 3,
            };
            (self.round(core), !shape.isolated, Some(shape.cache) != cache, rank, core)
        };
        let core = (0..self.cores.len()).filter(fits).min_by_key(order)?;
        let thread = match siblings {
            Siblings::Idle => 0,
            Siblings::Shared => {
                (0..self.taken[core].vcpus.len()).min_by_key(|&thread| self.taken[core].vcpus[thread])?
            }
        };
        Some(Pick { core, thread })
    }

    fn take(&mut self, pick: Pick, siblings: Siblings) {
        let cost = self.cost(pick.core, siblings);
        let taken = &mut self.taken[pick.core];
        taken.kind = Some(siblings);
        taken.vcpus[pick.thread] += 1;
        taken.work += cost;
        self.work += u64::from(cost);
    }

    fn has_room(&self, core: usize, siblings: Siblings) -> bool {
        let (taken, cost) = (&self.taken[core], self.cost(core, siblings));
        taken.kind.is_none_or(|kind| kind == siblings)
            && taken.work + cost <= self.rounds_max * self.threads_of(core)
            && self.work + u64::from(cost) <= self.work_max
    }

    /// What a vCPU takes of a core, in threads.
    fn cost(&self, core: usize, siblings: Siblings) -> u32 {
        match siblings {
            Siblings::Idle => self.threads_of(core),
            Siblings::Shared => 1,
        }
    }

    /// What a vCPU takes of the largest core, in threads.
    pub(super) fn cost_max(&self, siblings: Siblings) -> u64 {
        (0..self.cores.len()).map(|core| u64::from(self.cost(core, siblings))).max().unwrap_or(1)
    }

    fn threads_of(&self, core: usize) -> u32 {
        u32::try_from(self.cores[core].cpus.len()).unwrap_or(u32::MAX)
    }

    /// How often all of a core is promised.
    fn round(&self, core: usize) -> u32 {
        self.taken[core].work / self.threads_of(core)
    }

    /// Whether all threads of a core are promised equally often.
    fn level(&self, core: usize) -> bool {
        self.taken[core].work.is_multiple_of(self.threads_of(core))
    }

    /// The cache whose free CPUs hold the VM with the least left over, isolated ones if they suffice.
    fn tightest_cache(&self, vcpus: u32, siblings: Siblings) -> Option<usize> {
        let isolated = self.free_by_cache(siblings, |core| core.isolated);
        let enough = isolated.iter().map(|(_, free)| free).sum::<u32>() >= vcpus;
        let free = if enough { isolated } else { self.free_by_cache(siblings, |_| true) };
        free.into_iter()
            .filter(|(_, free)| *free >= vcpus)
            .min_by_key(|&(cache, free)| (free, cache))
            .map(|(cache, _)| cache)
    }

    /// vCPUs that fit into each cache's CPUs which are promised to nobody yet.
    fn free_by_cache(&self, siblings: Siblings, wanted: impl Fn(&Core) -> bool) -> Vec<(usize, u32)> {
        let mut free: Vec<(usize, u32)> = Vec::new();
        for (index, core) in self.cores.iter().enumerate() {
            let taken = &self.taken[index];
            if !wanted(core) || taken.kind.is_some_and(|kind| kind != siblings) || self.round(index) > 0 {
                continue;
            }
            let vcpus = (self.threads_of(index) - taken.work) / self.cost(index, siblings);
            match free.iter_mut().find(|(cache, _)| *cache == core.cache) {
                Some((_, sum)) => *sum += vcpus,
                None => free.push((core.cache, vcpus)),
            }
        }
        free
    }
}
