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

use super::apply::{ApplyError, Step};
use crate::config::{Honour, HostNodes, MIB, MemoryBacking, MemoryPart, MemoryPlacement, NodePolicy, Pages};
use crate::host::{HostMemory, IdList, Limit, NodeFacts, Switch};

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

    /// Whether it is of a HugePage pool.
    pub(crate) fn is_of_pool(&self) -> bool {
        self.placement.pages.pool_page_bytes().is_some()
    }

    /// The pool has been emptied since it was counted. Whether the best effort is enough: then it goes without.
    pub(crate) fn goes_without_pool(&mut self) -> bool {
        let pages = self.placement.pages;
        let goes = self.placement.honour == Honour::BestEffort && self.is_of_pool();
        if goes {
            self.placement.pages = Pages::Transparent;
            self.tell(PlacementError::PoolTaken { pages });
        }
        goes
    }

    /// The kernel has not done what was to be done. Where the best effort is enough, it goes without; without a pool, memory is to
    /// be mapped anew, because a guest that runs into a page that the pool lacks would end.
    ///
    /// # Errors
    /// It is not enough.
    pub(crate) fn goes_without(&mut self, refused: ApplyError) -> Result<(), ApplyError> {
        if self.placement.honour == Honour::Strictly {
            return Err(refused);
        }
        match refused.step {
            Step::Bind => self.release(self.part_of(refused.address)),
            Step::KeepOutOfDumps => self.placement.dump = true,
            Step::MakeTransparent => self.placement.pages = Pages::HostsChoice,
            Step::Merge => self.placement.merge = false,
            Step::Lock => self.placement.lock = false,
            Step::Prefault if self.is_of_pool() => self.placement.pages = Pages::Transparent,
            Step::Prefault => self.placement.prefault = false,
        }
        self.tell(refused.into());
        Ok(())
    }

    fn tell(&mut self, difference: PlacementError) {
        log::warn!("best effort: {difference}");
        self.differences.push(difference);
    }

    fn bytes(&self) -> u64 {
        self.needed().iter().fold(0, |sum, part| sum.saturating_add(part.bytes))
    }

    /// The host's nodes that memory comes from which can be plugged.
    pub(crate) fn hotplug_nodes(&self) -> Option<&HostNodes> {
        self.parts.get(self.hotplug_part()).and_then(|part| part.nodes.as_ref())
    }

    fn hotplug_part(&self) -> usize {
        self.placement.hotplug_node.unwrap_or(0).into()
    }

    /// All that the guest can have soon after its start.
    fn needed(&self) -> Vec<MemoryPart> {
        let plugged = MemoryPart { bytes: self.requested_bytes, nodes: self.hotplug_nodes().cloned() };
        self.parts.iter().cloned().chain((plugged.bytes > 0).then_some(plugged)).collect()
    }

    /// Whether it is so; where the best effort is enough, what is not so is noted.
    fn has(&mut self, checked: Result<(), PlacementError>) -> Result<bool, PlacementError> {
        self.placement.honour.settle(checked, &mut self.differences)
    }

    /// Lets a part be on any node.
    fn release(&mut self, part: usize) {
        let nodes = self.parts[part].nodes.take();
        if nodes == self.placement.nodes {
            self.placement.nodes = None;
        }
    }

    /// The part that memory at a guest address is of; what can be plugged is of that which it shares its nodes with.
    fn part_of(&self, address: u64) -> usize {
        let bytes: Vec<u64> = self.parts.iter().map(|part| part.bytes).collect();
        let has = |ranges: &Vec<(GuestAddress, u64)>| ranges.iter().any(|(start, _)| start.0 == address);
        layout::node_ranges(&bytes).iter().position(has).unwrap_or_else(|| self.hotplug_part())
    }

    /// The host's nodes that a region at a guest address comes from.
    pub(crate) fn nodes_of(&self, address: u64) -> Option<&HostNodes> {
        self.parts.get(self.part_of(address)).and_then(|part| part.nodes.as_ref())
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
pub(crate) fn settle<H: HostMemory>(
    asked: Settled,
    backing: MemoryBacking,
    host: &H,
) -> Result<Settled, PlacementError> {
    settle_by(pool::check, asked, backing, host)
}

/// As [`settle`], but for what the mapping that follows finds out by itself: the host is asked that only once the mapping has
/// failed, to say why.
///
/// # Errors
/// Those of [`settle`].
pub(crate) fn settle_before_mapping<H: HostMemory>(
    asked: Settled,
    backing: MemoryBacking,
    host: &H,
) -> Result<Settled, PlacementError> {
    // The kernel reserves a mapping's pages on any node: neither a node's share nor what is plugged later is among them.
    let is_reserved = asked.requested_bytes == 0 && asked.parts.iter().all(|part| part.nodes.is_none());
    let check = if is_reserved { pool::check_reserved } else { pool::check };
    settle_by(check, asked, backing, host)
}

/// Whether the host's pool of pages of so many bytes has them for all parts.
type PoolCheck<H> = fn(Pages, u64, &[MemoryPart], &H) -> Result<(), PlacementError>;

fn settle_by<H: HostMemory>(
    check_pool: PoolCheck<H>,
    asked: Settled,
    backing: MemoryBacking,
    host: &H,
) -> Result<Settled, PlacementError> {
    let mut settled = asked;
    for index in 0..settled.parts.len() {
        let nodes = settled.parts[index].nodes.as_ref();
        if !settled.has(nodes.map_or(Ok(()), |nodes| check_nodes(nodes, host)))? {
            settled.release(index);
        }
    }
    if let Some(page_bytes) = settled.placement.pages.pool_page_bytes()
        && !settled.has(check_pool(settled.placement.pages, page_bytes, &settled.needed(), host))?
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
    if !settled.is_of_pool() {
        settle_small_pages(&mut settled, host)?;
    }
    let needed = settled.bytes();
    let may_lock = match settled.placement.lock.then(|| host.lockable_bytes()).flatten() {
        Some(limit) if limit < needed => Err(PlacementError::LockLimit { limit, needed }),
        _ => Ok(()),
    };
    if !settled.has(may_lock)? {
        settled.placement.lock = false;
    }
    Ok(settled)
}

fn settle_small_pages(settled: &mut Settled, host: &impl HostMemory) -> Result<(), PlacementError> {
    let total = |node: &NodeFacts| node.total_bytes;
    let mib = mib_by_node(&settled.parts, host, total);
    for Shortage { nodes, needed, free } in shortages(&settled.parts, MIB, &mib, None) {
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

/// What `of` says of each node, in MiB; a node of which it knows nothing has any amount. Nobody asks where no part has a node.
fn mib_by_node(
    parts: &[MemoryPart],
    host: &impl HostMemory,
    of: impl Fn(&NodeFacts) -> Option<u64>,
) -> BTreeMap<u16, u64> {
    let mib = |node: &NodeFacts| (node.id, of(node).map_or(u64::MAX, |bytes| bytes / MIB));
    nodes_for(parts, host).iter().map(mib).collect()
}

/// The host's nodes, if any part is to be on some.
fn nodes_for<'a>(parts: &[MemoryPart], host: &'a impl HostMemory) -> &'a [NodeFacts] {
    if parts.iter().any(|part| part.nodes.is_some()) { host.nodes() } else { &[] }
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

fn check_transparent(backing: MemoryBacking, host: &impl HostMemory) -> Result<(), PlacementError> {
    let (switch, advised) = match backing {
        MemoryBacking::Anonymous => (host.thp(), "madvise"),
        MemoryBacking::Memfd => (host.shmem_thp(), "advise"),
    };
    match switch {
        Some(Switch { value, file }) if value == "never" || value == "deny" => {
            Err(PlacementError::NoTransparent { mode: value, file, advised })
        }
        _ => Ok(()),
    }
}

fn check_merging(host: &impl HostMemory) -> Result<(), PlacementError> {
    match host.ksm() {
        Some(Switch { value, file }) if value != "1" => Err(PlacementError::NoMerging { file }),
        _ => Ok(()),
    }
}

fn check_nodes(asked: &HostNodes, host: &impl HostMemory) -> Result<(), PlacementError> {
    for id in asked.nodes.iter() {
        let Some(node) = host.node(id) else {
            let online = host.nodes().iter().map(|node| node.id).collect();
            return Err(PlacementError::NoSuchNode { node: id, online });
        };
        if node.total_bytes == Some(0) {
            let with_memory =
                host.nodes().iter().filter(|node| node.total_bytes != Some(0)).map(|node| node.id).collect();
            return Err(PlacementError::NodeWithoutMemory { node: id, with_memory });
        }
    }
    let Some(allowed) = host.allowed_nodes() else { return Ok(()) };
    match asked.nodes.without(allowed).iter().next() {
        Some(node) => Err(PlacementError::NodeForbidden { node, allowed: allowed.clone() }),
        None => Ok(()),
    }
}

/// What shall be there at once is free now: the kernel would end husk, or another, for what is not.
fn check_free(settled: &Settled, host: &impl HostMemory) -> Result<(), PlacementError> {
    if !settled.placement.prefault && !settled.placement.lock {
        return Ok(());
    }
    let free = |node: &NodeFacts| node.free_bytes.map(|_| node.available_bytes());
    let whole = host.available_bytes().map(|bytes| bytes / MIB);
    let needed = settled.needed();
    let shortages = shortages(&needed, MIB, &mib_by_node(&needed, host, free), whole);
    if shortages.is_empty() { Ok(()) } else { Err(PlacementError::NotFree { shortages }) }
}

/// A guest that touches all of its memory is not ended for it.
fn check_group(settled: &Settled, host: &impl HostMemory) -> Result<(), PlacementError> {
    let needed = group_bytes(settled.bytes());
    match host.group_limit() {
        Some(Limit { value: limit, file }) if limit < needed => Err(PlacementError::GroupLimit { limit, file, needed }),
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
