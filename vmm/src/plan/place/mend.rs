//! What would make room for the VMs that were left out: what they lack where they lack least, and the commands that add it.

use std::collections::BTreeMap;

use super::{Attempt, Host, NodeState};
use crate::host::Limit;
use crate::plan::Overcommit;
use crate::plan::demand::{GuestNode, VmDemand};
use crate::plan::ground::Ground;
use crate::plan::report::{Mend, Miss};

/// All that is to be done for them together, on a host that has the others.
pub(super) fn all(ground: &Ground, vms: &[VmDemand], host: &Host, left_out: &[&VmDemand]) -> Vec<Mend> {
    let lacks = host.clone().lacks(left_out);
    let mut mends: Vec<Mend> = mend_cpus(ground, vms, host, &lacks).into_iter().collect();
    mends.extend(lacks.iter().zip(&host.nodes).flat_map(|(lack, state)| lack.mend(state, host)));
    mends.extend(mend_limits(ground, vms));
    mends
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

impl Host<'_> {
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
