//! Which node each VM gets.
//!
//! The largest VMs come first: those of pools of large pages, then by memory, vCPUs and name. Each goes whole onto the
//! node where it overcommits CPUs least, gets most isolated CPUs, and leaves least behind; a VM that fits on no node is
//! split by its guest nodes, each near the others. What is left over afterwards is where I/O threads run.

mod mend;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::Overcommit;
use super::cores::{Choice, Cores, Pick};
use super::demand::{GuestNode, VmDemand};
use super::ground::{Ground, Node};
use super::report::{Miss, NodePlan, Part, Plan, PoolPlan, VmPlan};
use crate::host::IdList;

/// Plans `vms`, no two of one name, on `ground`.
#[must_use]
pub fn plan(ground: &Ground, vms: &[VmDemand], overcommit: Overcommit) -> Plan {
    let Attempt { host, placed, left_out } = Attempt::make(ground, vms, overcommit);
    let told = vms.iter().zip(&placed).map(|(vm, parts)| host.tell(vm, parts.as_deref())).collect();
    let nodes = host.nodes.iter().map(NodeState::tell).collect();
    let mend = mend::all(ground, vms, &host, &left_out);
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
