//! What the host can honour, before anything is made. Pure: the host's part is a value.

mod pool;

use arch::layout;
use thiserror::Error;
use vm_memory::GuestAddress;

pub use pool::PoolShortage;

use crate::config::{Honour, HostNodes, MIB, MemoryPart, MemoryPlacement, NodePolicy, Pages};
use crate::host::{self, IdList, Limit, NodeFacts, PoolFacts};

/// The host's memory, as far as a placement asks for it.
#[derive(Debug, Clone)]
pub struct HostMemory {
    /// Its online nodes.
    pub nodes: Vec<NodeFacts>,
    /// The nodes that this process may use (its cpuset's); `None` if the kernel does not tell.
    pub allowed_nodes: Option<IdList>,
    /// The HugePage pools of the whole host.
    pub pools: Vec<PoolFacts>,
    /// How much this process may lock, in bytes; `None` for any amount.
    pub lockable_bytes: Option<u64>,
    /// The least limit on memory of the control groups that this process is in; none of them counts a pool's pages.
    pub group_limit: Option<Limit>,
}

impl HostMemory {
    /// Asks the running host.
    #[must_use]
    pub fn read() -> Self {
        let (nodes, pools) = host::nodes_and_pools();
        Self {
            nodes,
            allowed_nodes: host::allowed_memory_nodes(),
            pools,
            lockable_bytes: super::apply::lockable_bytes(),
            group_limit: host::memory_limit(),
        }
    }

    fn node(&self, id: u16) -> Option<&NodeFacts> {
        self.nodes.iter().find(|node| node.id == id)
    }
}

/// A placement that the host cannot honour, with what would do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlacementError {
    /// The host has no such pages.
    #[error("memory: pages: this host has no HugePages of {pages}: it has {}", sizes(available))]
    NoSuchPages {
        /// What was asked.
        pages: Pages,
        /// The sizes that there are, in bytes.
        available: Vec<u64>,
    },
    /// A pool has too few pages.
    #[error("memory: pages: {}: {mend}", pool::sentence(*pages, shortages))]
    PoolTooSmall {
        /// What was asked.
        pages: Pages,
        /// Where, and how many.
        shortages: Vec<PoolShortage>,
        /// The commands that add them.
        mend: String,
    },
    /// A node that is not there.
    #[error("memory: nodes: the host has no node {node}: its nodes are {online}")]
    NoSuchNode {
        /// What was asked.
        node: u16,
        /// What there is.
        online: IdList,
    },
    /// A node without memory.
    #[error("memory: nodes: node {node} has no memory: use {with_memory}")]
    NodeWithoutMemory {
        /// What was asked.
        node: u16,
        /// The nodes that have some.
        with_memory: IdList,
    },
    /// A node that this process may not use.
    #[error(
        "memory: nodes: husk may not use node {node}: its cpuset allows {allowed}: widen cpuset.mems of its cgroup"
    )]
    NodeForbidden {
        /// What was asked.
        node: u16,
        /// What it may use.
        allowed: IdList,
    },
    /// Nodes that are smaller than the guest.
    #[error("memory: nodes: node {nodes} has {} MiB and the guest needs {}: give it less, or more nodes", has / MIB, needed / MIB)]
    NodesTooSmall {
        /// What was asked.
        nodes: IdList,
        /// Their memory, in bytes.
        has: u64,
        /// The guest's, in bytes.
        needed: u64,
    },
    /// More memory at once than the control group may have.
    #[error("memory: prefault: husk's control group may have {} MiB ({file}) and the guest has {}: give it less, or: echo {} > {file}", limit / MIB, needed / MIB, needed + GROUP_SPARE_BYTES)]
    GroupLimit {
        /// The limit, in bytes.
        limit: u64,
        /// Where it is set.
        file: String,
        /// The guest's memory, in bytes.
        needed: u64,
    },
    /// More memory than this process may lock.
    #[error("memory: lock: husk may lock {} KiB (RLIMIT_MEMLOCK) and the guest has {}: ulimit -l {}", limit / 1024, needed / 1024, needed / 1024)]
    LockLimit {
        /// The limit, in bytes.
        limit: u64,
        /// The guest's memory, in bytes.
        needed: u64,
    },
}

/// What husk and the kernel need beside guest memory, roughly, where a limit is suggested.
const GROUP_SPARE_BYTES: u64 = 64 * MIB;

/// A placement that the host can honour now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// What holds for all of memory.
    pub placement: MemoryPlacement,
    /// Its parts in the order of their guest addresses, each with the host's nodes that it comes from.
    pub parts: Vec<MemoryPart>,
    /// What differs from what was asked, where that is allowed.
    pub differences: Vec<PlacementError>,
}

impl Settled {
    /// What was asked, of a host that has no say in it.
    pub(crate) fn as_asked(placement: &MemoryPlacement, parts: Vec<MemoryPart>) -> Self {
        Self { placement: placement.clone(), parts, differences: Vec::new() }
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
        placement.pages.pool_page_bytes().is_some()
            || placement.lock
            || placement.prefault
            || self.parts.iter().any(|part| part.nodes.is_some())
    }
}

/// Holds what is asked against the host. With [`Honour::BestEffort`] what the host cannot do is left out.
///
/// # Errors
/// The first thing that it cannot.
pub(crate) fn settle(asked: Settled, host: &HostMemory) -> Result<Settled, PlacementError> {
    let mut settled = asked;
    while let Err(error) = check(&settled, host) {
        if settled.placement.honour == Honour::Strictly {
            return Err(error);
        }
        match &error {
            PlacementError::NoSuchPages { .. } | PlacementError::PoolTooSmall { .. } => {
                settled.placement.pages = Pages::Transparent;
            }
            PlacementError::NoSuchNode { .. }
            | PlacementError::NodeWithoutMemory { .. }
            | PlacementError::NodeForbidden { .. }
            | PlacementError::NodesTooSmall { .. } => {
                settled.placement.nodes = None;
                settled.parts.iter_mut().for_each(|part| part.nodes = None);
            }
            PlacementError::GroupLimit { .. } => {
                settled.placement.prefault = false;
                settled.placement.lock = false;
            }
            PlacementError::LockLimit { .. } => settled.placement.lock = false,
        }
        settled.differences.push(error);
    }
    Ok(settled)
}

fn check(settled: &Settled, host: &HostMemory) -> Result<(), PlacementError> {
    let (placement, parts) = (&settled.placement, &settled.parts);
    for part in parts {
        if let Some(nodes) = &part.nodes {
            check_nodes(part.bytes, nodes, placement.pages, host)?;
        }
    }
    if let Some(page_bytes) = placement.pages.pool_page_bytes() {
        pool::check(placement.pages, page_bytes, parts, host)?;
    }
    let bytes = parts.iter().map(|part| part.bytes).sum();
    // What is touched by and by may never be all of it; what shall be there at once would have the kernel end husk.
    if let Some(Limit { value: limit, file }) = &host.group_limit
        && placement.pages.pool_page_bytes().is_none()
        && (placement.prefault || placement.lock)
        && *limit < bytes
    {
        return Err(PlacementError::GroupLimit { limit: *limit, file: file.clone(), needed: bytes });
    }
    match host.lockable_bytes {
        Some(limit) if placement.lock && limit < bytes => Err(PlacementError::LockLimit { limit, needed: bytes }),
        _ => Ok(()),
    }
}

fn check_nodes(bytes: u64, asked: &HostNodes, pages: Pages, host: &HostMemory) -> Result<(), PlacementError> {
    let mut has = 0_u64;
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
        has = has.saturating_add(node.total_bytes.unwrap_or(u64::MAX));
    }
    // A pool's pages are counted, and need no guess.
    if asked.policy == NodePolicy::Bind && pages.pool_page_bytes().is_none() && has < bytes {
        return Err(PlacementError::NodesTooSmall { nodes: asked.nodes.clone(), has, needed: bytes });
    }
    Ok(())
}

fn sizes(bytes: &[u64]) -> String {
    if bytes.is_empty() {
        return "none".to_owned();
    }
    bytes.iter().map(|bytes| format!("{}M", bytes / MIB)).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests;
