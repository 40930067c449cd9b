//! What the host can honour, before anything is made. Pure: the host's part is a value.

use thiserror::Error;

use crate::config::{Honour, HostNodes, MIB, MemoryConfig, MemoryPlacement, NodePolicy, Pages};
use crate::host::{self, IdList, NodeFacts, PoolFacts};

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
    #[error("memory: pages: {needed} HugePages of {pages} are needed{place} and {free} are free: {} short: {mend}", needed - free)]
    PoolTooSmall {
        /// What was asked.
        pages: Pages,
        /// How many.
        needed: u64,
        /// How many can be had there.
        free: u64,
        /// Where, as ` on node 0`; empty for the whole host.
        place: String,
        /// The command that adds them.
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
    /// More memory than this process may lock.
    #[error("memory: lock: husk may lock {} KiB (RLIMIT_MEMLOCK) and the guest has {}: ulimit -l {}", limit / 1024, needed / 1024, needed / 1024)]
    LockLimit {
        /// The limit, in bytes.
        limit: u64,
        /// The guest's memory, in bytes.
        needed: u64,
    },
}

/// A placement that the host can honour now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// It.
    pub placement: MemoryPlacement,
    /// What differs from what was asked, where that is allowed.
    pub differences: Vec<PlacementError>,
}

/// Holds what is asked against the host. With [`Honour::BestEffort`] what the host cannot do is left out.
///
/// # Errors
/// The first thing that it cannot.
pub(crate) fn settle(config: &MemoryConfig, host: &HostMemory) -> Result<Settled, PlacementError> {
    let mut settled = Settled { placement: config.placement.clone(), differences: Vec::new() };
    while let Err(error) = check(config.size_bytes, &settled.placement, host) {
        if config.placement.honour == Honour::Strictly {
            return Err(error);
        }
        let placement = &mut settled.placement;
        match &error {
            PlacementError::NoSuchPages { .. } | PlacementError::PoolTooSmall { .. } => {
                placement.pages = Pages::Transparent;
            }
            PlacementError::NoSuchNode { .. }
            | PlacementError::NodeWithoutMemory { .. }
            | PlacementError::NodeForbidden { .. }
            | PlacementError::NodesTooSmall { .. } => placement.nodes = None,
            PlacementError::LockLimit { .. } => placement.lock = false,
        }
        settled.differences.push(error);
    }
    Ok(settled)
}

fn check(bytes: u64, placement: &MemoryPlacement, host: &HostMemory) -> Result<(), PlacementError> {
    if let Some(nodes) = &placement.nodes {
        check_nodes(bytes, nodes, placement.pages, host)?;
    }
    if let Some(page_bytes) = placement.pages.pool_page_bytes() {
        check_pool(bytes, placement, page_bytes, host)?;
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

fn check_pool(
    bytes: u64,
    placement: &MemoryPlacement,
    page_bytes: u64,
    host: &HostMemory,
) -> Result<(), PlacementError> {
    let (pages, needed) = (placement.pages, bytes / page_bytes);
    let Some(pool) = host.pools.iter().find(|pool| pool.page_bytes == page_bytes) else {
        let available = host.pools.iter().map(|pool| pool.page_bytes).collect();
        return Err(PlacementError::NoSuchPages { pages, available });
    };
    let folder = format!("hugepages/hugepages-{}kB/nr_hugepages", page_bytes / 1024);
    if pool.available() < needed {
        let total = pool.total + (needed - pool.available());
        let mend = format!("echo {total} > /sys/kernel/mm/{folder}");
        return Err(PlacementError::PoolTooSmall { pages, needed, free: pool.available(), place: String::new(), mend });
    }
    let Some(HostNodes { nodes, policy }) = &placement.nodes else { return Ok(()) };
    let of_node = |id| host.node(id).and_then(|node| node.pools.iter().find(|pool| pool.page_bytes == page_bytes));
    let free = |id| of_node(id).map_or(0, |pool| pool.free);
    let short = |place: String, id: u16, needed: u64, free: u64| {
        let total = of_node(id).map_or(0, |pool| pool.total) + (needed - free);
        let mend = format!("echo {total} > /sys/devices/system/node/node{id}/{folder}");
        Err(PlacementError::PoolTooSmall { pages, needed, free, place, mend })
    };
    match policy {
        NodePolicy::Preferred => Ok(()),
        NodePolicy::Bind => {
            let together: u64 = nodes.iter().map(free).sum();
            let first = nodes.iter().next().expect("validate() wants a node");
            match together < needed {
                true => short(format!(" on node {nodes}"), first, needed, together),
                false => Ok(()),
            }
        }
        NodePolicy::Interleave => {
            let share = needed.div_ceil(u64::try_from(nodes.len()).expect("at most 65536"));
            match nodes.iter().find(|&id| free(id) < share) {
                Some(id) => short(format!(" on node {id}"), id, share, free(id)),
                None => Ok(()),
            }
        }
    }
}

fn sizes(bytes: &[u64]) -> String {
    if bytes.is_empty() {
        return "none".to_owned();
    }
    bytes.iter().map(|bytes| format!("{}M", bytes / MIB)).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests;
