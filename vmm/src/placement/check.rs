//! What the host can honour, before anything is made. Pure: the host's part is a value.

mod error;
mod pool;
mod shortage;

use std::collections::BTreeMap;

use arch::layout;
use vm_memory::GuestAddress;

pub use error::PlacementError;
pub use shortage::Shortage;
use shortage::shortages;

use crate::config::{Honour, HostNodes, MIB, MemoryBacking, MemoryPart, MemoryPlacement, NodePolicy, Pages};
use crate::host::{self, HugetlbLimit, IdList, Limit, NodeFacts, PoolFacts, Switch};

/// The host's memory, as far as a placement asks for it.
#[derive(Debug, Clone)]
pub struct HostMemory {
    /// Its online nodes.
    pub nodes: Vec<NodeFacts>,
    /// The nodes that this process may use (its cpuset's); `None` if the kernel does not tell.
    pub allowed_nodes: Option<IdList>,
    /// The HugePage pools of the whole host.
    pub pools: Vec<PoolFacts>,
    /// The least limits of those control groups on a pool's pages, held and reserved.
    pub pool_limits: Vec<HugetlbLimit>,
    /// What can be had of the whole host's memory now, in bytes; `None` if the kernel does not tell.
    pub available_bytes: Option<u64>,
    /// How much this process may lock, in bytes; `None` for any amount.
    pub lockable_bytes: Option<u64>,
    /// The least limit on memory of the control groups that this process is in; a pool's pages are held against none.
    pub group_limit: Option<Limit>,
    /// Whether anonymous memory can be made of transparent HugePages; `None` if the kernel does not tell, as with the next two.
    pub thp: Option<Switch>,
    /// Whether shared memory can.
    pub shmem_thp: Option<Switch>,
    /// Whether pages are merged.
    pub ksm: Option<Switch>,
}

impl HostMemory {
    /// Asks the running host.
    #[must_use]
    pub fn read() -> Self {
        let (nodes, pools) = host::nodes_and_pools();
        let [thp, shmem_thp, ksm] = host::page_switches();
        let page_sizes: Vec<u64> = pools.iter().map(|pool| pool.page_bytes).collect();
        let limits = host::memory_limits(&page_sizes);
        Self {
            nodes,
            allowed_nodes: limits.allowed_nodes,
            pool_limits: limits.pools,
            pools,
            available_bytes: host::available_memory(),
            lockable_bytes: limits.lockable_bytes,
            group_limit: limits.group,
            thp,
            shmem_thp,
            ksm,
        }
    }

    /// What a husk would find that read these facts.
    #[cfg(test)]
    pub(crate) fn of(facts: &host::Facts) -> Self {
        let host::Facts { cpu, memory, limits, .. } = facts;
        let switch = |value: &Option<String>, file: &str| {
            let file = format!("/sys/kernel/mm/{file}");
            value.clone().map(|value| Switch { value, file })
        };
        Self {
            nodes: cpu.nodes.clone(),
            allowed_nodes: limits.mems_allowed.clone().or_else(|| limits.cpuset_mems.clone()),
            pools: memory.pools.clone(),
            pool_limits: limits.hugetlb.iter().chain(&limits.hugetlb_reserved).cloned().collect(),
            available_bytes: memory.available_bytes,
            lockable_bytes: limits.memlock_bytes.filter(|_| limits.ipc_lock != Some(true)),
            group_limit: limits.memory_bytes.clone(),
            thp: switch(&memory.thp, "transparent_hugepage/enabled"),
            shmem_thp: switch(&memory.shmem_thp, "transparent_hugepage/shmem_enabled"),
            ksm: switch(&memory.ksm.as_ref().map(|ksm| ksm.run.to_string()), "ksm/run"),
        }
    }

    /// What `of` says of each node, in MiB; a node of which it knows nothing has any amount.
    fn mib_by_node(&self, of: impl Fn(&NodeFacts) -> Option<u64>) -> BTreeMap<u16, u64> {
        self.nodes.iter().map(|node| (node.id, of(node).map_or(u64::MAX, |bytes| bytes / MIB))).collect()
    }

    fn node(&self, id: u16) -> Option<&NodeFacts> {
        self.nodes.iter().find(|node| node.id == id)
    }
}

/// A placement that the host can honour now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// What holds for all of memory.
    pub placement: MemoryPlacement,
    /// Its parts in the order of their guest addresses, each with the host's nodes that it comes from.
    pub parts: Vec<MemoryPart>,
    /// What the guest is asked to plug beside them at its start, in bytes.
    pub requested_bytes: u64,
    /// What differs from what was asked, where that is allowed.
    pub differences: Vec<PlacementError>,
}

impl Settled {
    /// What was asked, of a host that has no say in it.
    pub(crate) fn as_asked(placement: &MemoryPlacement, parts: Vec<MemoryPart>) -> Self {
        Self { placement: placement.clone(), parts, requested_bytes: 0, differences: Vec::new() }
    }

    /// Whether memory is brought in before the guest starts, which takes as long as there is memory.
    pub(crate) fn takes_long(&self) -> bool {
        self.parts.iter().any(|part| self.placement.is_prefaulted(part.nodes.as_ref()))
    }

    /// The pool has been emptied since it was counted. Whether the best effort is enough: then it goes without.
    pub(crate) fn goes_without_pool(&mut self) -> bool {
        let pages = self.placement.pages;
        let goes = self.placement.honour == Honour::BestEffort && pages.pool_page_bytes().is_some();
        if goes {
            self.placement.pages = Pages::Transparent;
            self.differences.push(PlacementError::PoolTaken { pages });
        }
        goes
    }

    fn bytes(&self) -> u64 {
        self.needed().iter().fold(0, |sum, part| sum.saturating_add(part.bytes))
    }

    /// The host's nodes that memory comes from which can be plugged.
    pub(crate) fn hotplug_nodes(&self) -> Option<&HostNodes> {
        let node = self.placement.hotplug_node.unwrap_or(0);
        self.parts.get(usize::from(node)).and_then(|part| part.nodes.as_ref())
    }

    /// All that the guest can have soon after its start.
    fn needed(&self) -> Vec<MemoryPart> {
        let plugged = MemoryPart { bytes: self.requested_bytes, nodes: self.hotplug_nodes().cloned() };
        self.parts.iter().cloned().chain((plugged.bytes > 0).then_some(plugged)).collect()
    }

    /// Whether it is so; where the best effort is enough, what is not so is noted.
    fn has(&mut self, checked: Result<(), PlacementError>) -> Result<bool, PlacementError> {
        match (checked, self.placement.honour) {
            (Ok(()), _) => Ok(true),
            (Err(error), Honour::Strictly) => Err(error),
            (Err(error), Honour::BestEffort) => {
                self.differences.push(error);
                Ok(false)
            }
        }
    }

    /// Lets a part be on any node.
    fn release(&mut self, part: usize) {
        let nodes = self.parts[part].nodes.take();
        if nodes == self.placement.nodes {
            self.placement.nodes = None;
        }
    }

    /// The ranges of guest memory in the order of their addresses, each in one part, with that part's nodes.
    pub(crate) fn ranges(&self) -> Vec<(GuestAddress, u64, Option<&HostNodes>)> {
        let bytes: Vec<u64> = self.parts.iter().map(|part| part.bytes).collect();
        let of_parts = layout::node_ranges(&bytes).into_iter().zip(&self.parts);
        of_parts
            .flat_map(|(ranges, part)| ranges.into_iter().map(|(start, length)| (start, length, part.nodes.as_ref())))
            .collect()
    }

    /// Whether the host's nodes, pools or limits have a say in it.
    pub(crate) fn needs_the_host(&self) -> bool {
        let placement = &self.placement;
        placement.pages != Pages::HostsChoice
            || placement.merge
            || placement.lock
            || placement.prefault
            || self.parts.iter().any(|part| part.nodes.is_some())
    }
}

/// Holds what is asked against the host. With [`Honour::BestEffort`] what the host cannot do is left out.
///
/// # Errors
/// The first thing that it cannot.
pub(crate) fn settle(asked: Settled, backing: MemoryBacking, host: &HostMemory) -> Result<Settled, PlacementError> {
    let mut settled = asked;
    for index in 0..settled.parts.len() {
        let nodes = settled.parts[index].nodes.as_ref();
        if !settled.has(nodes.map_or(Ok(()), |nodes| check_nodes(nodes, host)))? {
            settled.release(index);
        }
    }
    if let Some(page_bytes) = settled.placement.pages.pool_page_bytes()
        && !settled.has(pool::check(settled.placement.pages, page_bytes, &settled.needed(), host))?
    {
        settled.placement.pages = Pages::Transparent;
    }
    if settled.placement.pages == Pages::Transparent && !settled.has(check_transparent(backing, host))? {
        settled.placement.pages = Pages::HostsChoice;
    }
    if settled.placement.merge && !settled.has(check_merging(host))? {
        settled.placement.merge = false;
    }
    // A pool's pages are counted and need no guess. No control group's limit on memory is on them, unless the host mounts cgroup2
    // with memory_hugetlb_accounting: there the kernel may still refuse what is granted here.
    if settled.placement.pages.pool_page_bytes().is_none() {
        settle_small_pages(&mut settled, host)?;
    }
    let needed = settled.bytes();
    let may_lock = match host.lockable_bytes {
        Some(limit) if settled.placement.lock && limit < needed => Err(PlacementError::LockLimit { limit, needed }),
        _ => Ok(()),
    };
    if !settled.has(may_lock)? {
        settled.placement.lock = false;
    }
    Ok(settled)
}

fn settle_small_pages(settled: &mut Settled, host: &HostMemory) -> Result<(), PlacementError> {
    let total = |node: &NodeFacts| node.total_bytes;
    for Shortage { nodes, needed, free } in shortages(&settled.parts, MIB, &host.mib_by_node(total), None) {
        let Some(nodes) = nodes else { continue };
        let (has, needed) = (free * MIB, needed * MIB);
        if !settled.has(Err(PlacementError::NodesTooSmall { nodes: nodes.clone(), has, needed }))? {
            for index in 0..settled.parts.len() {
                if settled.parts[index].nodes.as_ref().is_some_and(|asked| is_short_on(asked, &nodes)) {
                    settled.release(index);
                }
            }
        }
    }
    if !settled.has(check_free(settled, host))? {
        (settled.placement.prefault, settled.placement.lock) = (false, false);
    }
    if !settled.has(check_group(settled, host))? {
        (settled.placement.prefault, settled.placement.lock) = (false, false);
    }
    Ok(())
}

/// Whether memory that is asked for so is part of what is short on `nodes`: as [`shortages`] counts it.
fn is_short_on(asked: &HostNodes, nodes: &IdList) -> bool {
    match asked.policy {
        NodePolicy::Bind => asked.nodes == *nodes,
        // A share is on each of them, and what is left of a last round on any.
        NodePolicy::Interleave => asked.nodes == *nodes || (nodes.len() == 1 && nodes.without(&asked.nodes).is_empty()),
        NodePolicy::Preferred => false,
    }
}

fn check_transparent(backing: MemoryBacking, host: &HostMemory) -> Result<(), PlacementError> {
    let (switch, advised) = match backing {
        MemoryBacking::Anonymous => (&host.thp, "madvise"),
        MemoryBacking::Memfd => (&host.shmem_thp, "advise"),
    };
    match switch {
        Some(Switch { value, file }) if value == "never" || value == "deny" => {
            Err(PlacementError::NoTransparent { mode: value.clone(), file: file.clone(), advised })
        }
        _ => Ok(()),
    }
}

fn check_merging(host: &HostMemory) -> Result<(), PlacementError> {
    match &host.ksm {
        Some(Switch { value, file }) if value != "1" => Err(PlacementError::NoMerging { file: file.clone() }),
        _ => Ok(()),
    }
}

fn check_nodes(asked: &HostNodes, host: &HostMemory) -> Result<(), PlacementError> {
    for id in asked.nodes.iter() {
        let Some(node) = host.node(id) else {
            let online = host.nodes.iter().map(|node| node.id).collect();
            return Err(PlacementError::NoSuchNode { node: id, online });
        };
        if node.total_bytes == Some(0) {
            let with_memory =
                host.nodes.iter().filter(|node| node.total_bytes != Some(0)).map(|node| node.id).collect();
            return Err(PlacementError::NodeWithoutMemory { node: id, with_memory });
        }
        if let Some(allowed) = &host.allowed_nodes
            && !allowed.contains(id)
        {
            return Err(PlacementError::NodeForbidden { node: id, allowed: allowed.clone() });
        }
    }
    Ok(())
}

/// What shall be there at once is free now: the kernel would end husk, or another, for what is not.
fn check_free(settled: &Settled, host: &HostMemory) -> Result<(), PlacementError> {
    if !settled.placement.prefault && !settled.placement.lock {
        return Ok(());
    }
    let free = |node: &NodeFacts| node.free_bytes.map(|_| node.available_bytes());
    let whole = host.available_bytes.map(|bytes| bytes / MIB);
    let shortages = shortages(&settled.needed(), MIB, &host.mib_by_node(free), whole);
    if shortages.is_empty() { Ok(()) } else { Err(PlacementError::NotFree { shortages }) }
}

/// A guest that touches all of its memory is not ended for it.
fn check_group(settled: &Settled, host: &HostMemory) -> Result<(), PlacementError> {
    let needed = group_bytes(settled.bytes());
    match &host.group_limit {
        Some(Limit { value: limit, file }) if *limit < needed => {
            Err(PlacementError::GroupLimit { limit: *limit, file: file.clone(), needed })
        }
        _ => Ok(()),
    }
}

/// What a control group is charged for a guest: its memory, three tables that map it by entries of 8 bytes a page (husk's,
/// KVM's, and KVM's way back), and husk itself.
pub(crate) fn group_bytes(guest_bytes: u64) -> u64 {
    let tables = (guest_bytes / 512).saturating_mul(3);
    guest_bytes.saturating_add(tables).saturating_add(64 * MIB)
}

#[cfg(test)]
mod tests;
