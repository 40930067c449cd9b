//! Which node each VM gets.
//!
//! The largest VMs come first: those of pools of large pages, then by memory, vCPUs and name. Each goes whole onto the
//! node where it overcommits CPUs least, gets most isolated CPUs, and leaves least behind; a VM that fits on no node is
//! split by its guest nodes, each near the others. What is left over afterwards is where I/O threads run.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::Overcommit;
use super::cores::{Choice, Cores, Pick};
use super::demand::{GuestNode, VmDemand};
use super::ground::{Ground, Node};
use super::report::{Mend, Miss, NodePlan, Part, Plan, PoolPlan, VmPlan};
use crate::host::{IdList, Limit};

/// Plans `vms`, no two of one name, on `ground`.
#[must_use]
pub fn plan(ground: &Ground, vms: &[VmDemand], overcommit: Overcommit) -> Plan {
    let Attempt { host, placed, left_out } = Attempt::make(ground, vms, overcommit);
    let told = vms.iter().zip(&placed).map(|(vm, parts)| host.tell(vm, parts.as_deref())).collect();
    let nodes = host.nodes.iter().map(NodeState::tell).collect();
    let lacks = host.clone().lacks(&left_out);
    let mut mend: Vec<Mend> = mend_cpus(ground, vms, &host, &lacks).into_iter().collect();
    mend.extend(lacks.iter().zip(&host.nodes).flat_map(|(lack, state)| lack.mend(state, &host)));
    mend.extend(mend_limits(ground, vms));
    Plan { vms: told, nodes, mend }
}

/// All VMs placed that can be.
struct Attempt<'a, 'v> {
    host: Host<'a>,
    /// In the VMs' order.
    placed: Vec<Option<Vec<Placed>>>,
    /// The largest first.
    left_out: Vec<&'v VmDemand>,
}

impl<'a, 'v> Attempt<'a, 'v> {
    fn make(ground: &'a Ground, vms: &'v [VmDemand], overcommit: Overcommit) -> Self {
        let mut order: Vec<(usize, &VmDemand)> = vms.iter().enumerate().collect();
        order
            .sort_by_key(|(_, vm)| (Reverse(vm.page_bytes), Reverse(vm.memory_bytes()), Reverse(vm.vcpus()), &vm.name));
        let mut host = Host::new(ground, overcommit);
        let mut placed = vec![None; vms.len()];
        let mut left_out = Vec::new();
        for (index, vm) in order {
            placed[index] = host.place(vm);
            if placed[index].is_none() {
                left_out.push(vm);
            }
        }
        Self { host, placed, left_out }
    }
}

/// The ratio at which every vCPU finds a CPU; the plan with it is made, since VMs may fit otherwise then.
fn mend_cpus(ground: &Ground, vms: &[VmDemand], host: &Host, lacks: &[Lack]) -> Option<Mend> {
    const TRIES: u32 = 8;
    let vcpus: u64 = lacks.iter().map(|lack| lack.vcpus).sum();
    let tenths = |(lack, state): (&Lack, &NodeState)| {
        let work = state.cores.work() + lack.work;
        (lack.vcpus > 0).then(|| (work * 10).div_ceil(state.cores.threads().max(1)))
    };
    let mut tenths = lacks.iter().zip(&host.nodes).filter_map(tenths).max()?;
    let mut fix = "fewer VMs, or another host".to_owned();
    for _ in 0..TRIES {
        let Ok(ratio) = format!("{}.{}", tenths / 10, tenths % 10).parse::<Overcommit>() else { break };
        let Attempt { host, left_out, .. } = Attempt::make(ground, vms, ratio);
        if host.lacks(&left_out).iter().all(|lack| lack.vcpus == 0) {
            fix = format!("husk plan --overcommit {}.{}", tenths / 10, tenths % 10);
            break;
        }
        tenths += tenths.div_ceil(10);
    }
    Some(Mend { node: None, lacks: format!("CPUs for {vcpus} vCPUs"), fix })
}

/// The host and what is promised of it.
#[derive(Debug, Clone)]
struct Host<'a> {
    ground: &'a Ground,
    nodes: Vec<NodeState<'a>>,
    /// Memory of no pool, of all nodes together.
    memory_left: u64,
    /// Free pages of the whole host, by size.
    pools_left: BTreeMap<u64, u64>,
    /// What the control group is charged, by the pool's size, in bytes.
    charged: BTreeMap<Option<u64>, u64>,
}

#[derive(Debug, Clone)]
struct NodeState<'a> {
    node: &'a Node,
    cores: Cores<'a>,
    vcpus: u64,
    memory_left: u64,
    pools_left: BTreeMap<u64, u64>,
}

/// A part of a VM on the node of this index.
#[derive(Debug, Clone)]
struct Placed {
    node: usize,
    vcpus: IdList,
    picks: Vec<Pick>,
    memory_bytes: u64,
    page_bytes: Option<u64>,
}

/// How good a node is for a VM; the least is best.
type Score = (u64, usize, u64, u64, u16);

impl<'a> Host<'a> {
    fn new(ground: &'a Ground, overcommit: Overcommit) -> Self {
        let state = |node: &'a Node| NodeState {
            node,
            cores: Cores::new(&node.cores, overcommit),
            vcpus: 0,
            memory_left: node.memory_bytes,
            pools_left: node.pools.iter().map(|pool| (pool.page_bytes, pool.available())).collect(),
        };
        Self {
            ground,
            nodes: ground.nodes.iter().map(state).collect(),
            memory_left: ground.memory_bytes,
            pools_left: ground.pools.clone(),
            charged: BTreeMap::new(),
        }
    }

    /// Places a VM, whole if that can be; `None`, and nothing is taken, if it fits nowhere.
    fn place(&mut self, vm: &VmDemand) -> Option<Vec<Placed>> {
        if let Some(part) = self.place_part(vm, &vm.whole(), &[]) {
            return Some(vec![part]);
        }
        if vm.nodes.len() < 2 {
            return None;
        }
        let before = self.clone();
        let mut parts = Vec::with_capacity(vm.nodes.len());
        for guest in &vm.nodes {
            let Some(part) = self.place_part(vm, guest, &parts) else {
                *self = before;
                return None;
            };
            parts.push(part);
        }
        Some(parts)
    }

    /// Places a part on the best node, one that is near the parts already placed.
    fn place_part(&mut self, vm: &VmDemand, guest: &GuestNode, others: &[Placed]) -> Option<Placed> {
        let choose = |index: usize| {
            let choice = self.nodes[index].cores.choose(guest.vcpu_count(), vm.siblings);
            let all = choice.picks.len() == guest.vcpus.len();
            let fits = self.over_limit(vm.page_bytes, guest) == 0 && self.node_short(index, vm.page_bytes, guest) == 0;
            (all && fits).then_some((index, choice))
        };
        let key =
            |(index, choice): &(usize, Choice)| (self.distance(*index, others), self.score(*index, choice, vm, guest));
        let (node, choice) = (0..self.nodes.len()).filter_map(choose).min_by_key(key)?;
        let part = Placed {
            node,
            vcpus: guest.vcpus.clone(),
            picks: choice.picks,
            memory_bytes: guest.memory_bytes,
            page_bytes: vm.page_bytes,
        };
        self.nodes[node].cores = choice.after;
        self.take_memory(node, vm.page_bytes, guest);
        self.nodes[node].vcpus += u64::from(guest.vcpu_count());
        Some(part)
    }

    fn score(&self, index: usize, choice: &Choice, vm: &VmDemand, guest: &GuestNode) -> Score {
        let state = &self.nodes[index];
        let ratio = choice.after.ratio_thousandths();
        let beyond = if ratio > 1000 { ratio } else { 0 };
        let memory_left = match vm.page_bytes {
            Some(page) => state.pools_left.get(&page).copied().unwrap_or(0),
            None => state.memory_left.saturating_sub(guest.memory_bytes),
        };
        (beyond, choice.not_isolated, choice.after.work_left(), memory_left, state.node.id)
    }

    /// How far a node is from those of the other parts, in all.
    fn distance(&self, index: usize, others: &[Placed]) -> u64 {
        let from = &self.nodes[index].node.distances;
        let to =
            |part: &Placed| from.get(&self.nodes[part.node].node.id).copied().map_or(u64::from(u16::MAX), u64::from);
        others.iter().map(to).sum()
    }

    /// What a node, or the whole host, lacks: pages of a pool, or bytes.
    fn node_short(&self, index: usize, page_bytes: Option<u64>, guest: &GuestNode) -> u64 {
        let state = &self.nodes[index];
        match page_bytes {
            None => guest.memory_bytes.saturating_sub(state.memory_left.min(self.memory_left)),
            Some(page) => {
                let left = |pools: &BTreeMap<u64, u64>| pools.get(&page).copied().unwrap_or(0);
                (guest.memory_bytes / page).saturating_sub(left(&state.pools_left).min(left(&self.pools_left)))
            }
        }
    }

    /// What the control group would be charged beyond the least of its limits, in bytes.
    fn over_limit(&self, page_bytes: Option<u64>, guest: &GuestNode) -> u64 {
        let charged = self.charged(page_bytes).saturating_add(guest.charge(page_bytes));
        let limits = self.ground.limits.iter().filter(|(of, _)| *of == page_bytes);
        limits.map(|(_, limit)| charged.saturating_sub(limit.value)).max().unwrap_or(0)
    }

    fn charged(&self, page_bytes: Option<u64>) -> u64 {
        self.charged.get(&page_bytes).copied().unwrap_or(0)
    }

    /// Takes what there is.
    fn take_memory(&mut self, index: usize, page_bytes: Option<u64>, guest: &GuestNode) {
        let charged = self.charged(page_bytes).saturating_add(guest.charge(page_bytes));
        self.charged.insert(page_bytes, charged);
        let (state, bytes) = (&mut self.nodes[index], guest.memory_bytes);
        match page_bytes {
            None => {
                for left in [&mut state.memory_left, &mut self.memory_left] {
                    *left = left.saturating_sub(bytes);
                }
            }
            Some(page) => {
                for left in [state.pools_left.get_mut(&page), self.pools_left.get_mut(&page)].into_iter().flatten() {
                    *left = left.saturating_sub(bytes / page);
                }
            }
        }
    }

    fn miss(&self, index: usize, vm: &VmDemand, guest: &GuestNode) -> Miss {
        let found = self.nodes[index].cores.choose(guest.vcpu_count(), vm.siblings).picks.len();
        let (of_node, over) = (self.node_short(index, vm.page_bytes, guest), self.over_limit(vm.page_bytes, guest));
        Miss {
            node: self.nodes[index].node.id,
            vcpus: guest.vcpu_count().saturating_sub(u32::try_from(found).unwrap_or(u32::MAX)),
            memory_bytes: if vm.page_bytes.is_none() { of_node.max(over) } else { 0 },
            page_bytes: vm.page_bytes,
            pages: vm.page_bytes.map_or(0, |page| of_node.max(over.div_ceil(page))),
        }
    }

    /// What each node lacks of a VM that fits nowhere: of one that can be split, of the first of its guest nodes for which
    /// there is no room beside those before it.
    fn misses(&self, vm: &VmDemand) -> Vec<Miss> {
        let of = |host: &Self, guest: &GuestNode| -> Vec<Miss> {
            (0..host.nodes.len()).map(|index| host.miss(index, vm, guest)).filter(|miss| !miss.is_none()).collect()
        };
        if vm.nodes.len() > 1 {
            let (mut host, mut parts) = (self.clone(), Vec::new());
            for guest in &vm.nodes {
                match host.place_part(vm, guest, &parts) {
                    Some(part) => parts.push(part),
                    None => return of(&host, guest),
                }
            }
        }
        of(self, &vm.whole())
    }

    fn tell(&self, vm: &VmDemand, parts: Option<&[Placed]>) -> VmPlan {
        let Some(parts) = parts else {
            return VmPlan {
                vm: vm.name.clone(),
                parts: Vec::new(),
                io_cpus: IdList::default(),
                cpu_time: None,
                may_grow_bytes: vm.may_grow_bytes,
                misses: self.misses(vm),
            };
        };
        let cores = |part: &Placed| &self.nodes[part.node].cores;
        let rounds = parts.iter().flat_map(|part| part.picks.iter().map(|&pick| cores(part).vcpus_on(pick))).max();
        let io_cpus = |part: &Placed| {
            let spare = cores(part).spare();
            if spare.is_empty() { cores(part).own(&part.picks) } else { spare }
        };
        VmPlan {
            vm: vm.name.clone(),
            parts: parts.iter().map(|part| self.tell_part(part)).collect(),
            io_cpus: parts.iter().flat_map(|part| io_cpus(part).iter().collect::<Vec<_>>()).collect(),
            cpu_time: rounds.map(|rounds| 1.0 / f64::from(rounds.max(1))),
            may_grow_bytes: vm.may_grow_bytes,
            misses: Vec::new(),
        }
    }

    fn tell_part(&self, part: &Placed) -> Part {
        let state = &self.nodes[part.node];
        Part {
            node: state.node.id,
            vcpus: part.vcpus.clone(),
            cpus: part.picks.iter().map(|&pick| state.cores.cpu(pick)).collect(),
            memory_bytes: part.memory_bytes,
            page_bytes: part.page_bytes,
            pages: part.page_bytes.map_or(0, |page| part.memory_bytes / page),
        }
    }

    /// What nodes lack for the VMs left out: each, or each of its guest nodes, is given to the node that lacks least, which
    /// then has less for the next.
    fn lacks(mut self, left_out: &[&VmDemand]) -> Vec<Lack> {
        let mut lacks = vec![Lack::default(); self.nodes.len()];
        for vm in left_out {
            let mut parts = Vec::new();
            let whole = [vm.whole()];
            for guest in if vm.nodes.len() > 1 { &vm.nodes[..] } else { &whole[..] } {
                match self.place_part(vm, guest, &parts) {
                    Some(part) => {
                        let cost = self.nodes[part.node].cores.cost_max(vm.siblings);
                        lacks[part.node].work += u64::from(guest.vcpu_count()) * cost;
                        parts.push(part);
                    }
                    None => self.give(vm, guest, &mut lacks),
                }
            }
        }
        lacks
    }

    /// Gives a part to the node that lacks least of it.
    fn give(&mut self, vm: &VmDemand, guest: &GuestNode, lacks: &mut [Lack]) {
        let misses = (0..self.nodes.len()).filter(|index| self.nodes[*index].cores.threads() > 0).map(|index| {
            let Miss { vcpus, node, .. } = self.miss(index, vm, guest);
            (vcpus, self.node_short(index, vm.page_bytes, guest), node, index)
        });
        let Some((vcpus, short, _, index)) = misses.min() else { return };
        let state = &mut self.nodes[index];
        state.cores = state.cores.choose(guest.vcpu_count(), vm.siblings).after;
        let cost = state.cores.cost_max(vm.siblings);
        self.take_memory(index, vm.page_bytes, guest);
        let lack = &mut lacks[index];
        lack.vcpus += u64::from(vcpus);
        lack.work += u64::from(guest.vcpu_count()) * cost;
        match vm.page_bytes {
            None => lack.memory_bytes = lack.memory_bytes.saturating_add(short),
            Some(page) => *lack.pages.entry(page).or_default() += short,
        }
    }
}

impl NodeState<'_> {
    fn tell(&self) -> NodePlan {
        let thousandths = self.cores.ratio_thousandths();
        // Thousandths of what is at most some thousands of CPUs fit into 32 bits.
        let overcommit = f64::from(u32::try_from(thousandths).unwrap_or(u32::MAX)) / 1000.0;
        let pool = |pool: &crate::host::PoolFacts| {
            let pages_left = self.pools_left.get(&pool.page_bytes).copied().unwrap_or(0);
            PoolPlan { page_bytes: pool.page_bytes, pages: pool.available().saturating_sub(pages_left), pages_left }
        };
        NodePlan {
            node: self.node.id,
            cpus: self.cores.threads(),
            vcpus: self.vcpus,
            overcommit,
            cpu_time: if overcommit > 1.0 { 1.0 / overcommit } else { 1.0 },
            memory_bytes: self.node.memory_bytes.saturating_sub(self.memory_left),
            memory_left_bytes: self.memory_left,
            pools: self.node.pools.iter().map(pool).collect(),
        }
    }
}

/// What a node lacks for all VMs that it was given beyond what it has.
#[derive(Debug, Clone, Default)]
struct Lack {
    /// vCPUs that find no CPU.
    vcpus: u64,
    /// What all vCPUs of the VMs that it was given take, in threads.
    work: u64,
    memory_bytes: u64,
    pages: BTreeMap<u64, u64>,
}

impl Lack {
    fn mend(&self, state: &NodeState, host: &Host) -> Vec<Mend> {
        let node = Some(state.node.id);
        let mut mends = Vec::new();
        if self.memory_bytes > 0 {
            let mib = self.memory_bytes.div_ceil(1 << 20);
            let lacks = format!("{mib} MiB of memory");
            let fix = format!("free {mib} MiB on node {}, or fewer VMs", state.node.id);
            mends.push(Mend { node, lacks, fix });
        }
        for (&page, &pages) in self.pages.iter().filter(|(_, pages)| **pages > 0) {
            mends.push(mend_pool(state, host, page, pages));
        }
        mends
    }
}

fn mend_pool(state: &NodeState, host: &Host, page: u64, pages: u64) -> Mend {
    let id = state.node.id;
    let (kib, mib) = (page >> 10, page >> 20);
    let lacks = format!("{pages} pages of {mib} MiB");
    let bytes = pages.saturating_mul(page);
    let folder = if host.ground.numa {
        format!("/sys/devices/system/node/node{id}/hugepages")
    } else {
        "/sys/kernel/mm/hugepages".to_owned()
    };
    let fix = match state.node.pools.iter().find(|pool| pool.page_bytes == page) {
        None => format!("use a host with pages of {mib} MiB"),
        Some(_) if bytes > state.memory_left => {
            let more = (bytes - state.memory_left).div_ceil(1 << 20);
            format!("free {more} MiB on node {id} for the pool to grow, or fewer VMs")
        }
        Some(pool) => format!("echo {} > {folder}/hugepages-{kib}kB/nr_hugepages", pool.total.saturating_add(pages)),
    };
    Mend { node: Some(id), lacks, fix }
}

/// The limits that are less than what all of `vms` are charged, each once.
fn mend_limits(ground: &Ground, vms: &[VmDemand]) -> Vec<Mend> {
    let charged = |page_bytes: Option<u64>| {
        let parts = vms.iter().filter(|vm| vm.page_bytes == page_bytes).flat_map(|vm| &vm.nodes);
        parts.fold(0_u64, |sum, part| sum.saturating_add(part.charge(page_bytes)))
    };
    let over = |(page_bytes, Limit { value, file }): &(Option<u64>, Limit)| {
        let all = charged(*page_bytes);
        let short = all.checked_sub(*value).filter(|short| *short > 0)?;
        let (lacks, hint) = match page_bytes {
            None => (format!("{} MiB of memory in husk's control group", short.div_ceil(1 << 20)), ", or fewer VMs"),
            Some(page) => {
                (format!("{} pages of {} MiB in husk's control group", short.div_ceil(*page), page >> 20), "")
            }
        };
        Some(Mend { node: None, lacks, fix: format!("echo {all} > {file}{hint}") })
    };
    ground.limits.iter().filter_map(over).collect()
}
