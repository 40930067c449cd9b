//! Whether the host's pools have the HugePages that are asked for, node by node.

use std::collections::BTreeMap;

use super::{PlacementError, Shortage, nodes_for, shortages};
use crate::config::{MemoryPart, Pages};
use crate::host::{HostMemory, Limit, NodeFacts, PoolFacts};

/// Holds all parts against the pool.
pub(super) fn check<H: HostMemory>(
    pages: Pages,
    page_bytes: u64,
    parts: &[MemoryPart],
    host: &H,
) -> Result<(), PlacementError> {
    let Some(pool) = host.pool(page_bytes) else {
        return Err(PlacementError::NoSuchPages { pages, available: host.pool_sizes() });
    };
    let nodes = nodes_for(parts, host).iter();
    let free: BTreeMap<u16, u64> =
        nodes.map(|node| (node.id, of_node(node, page_bytes).map_or(0, |pool| pool.free))).collect();
    check_limit(pages, parts, host.pool_limit(page_bytes))?;
    check_limit(pages, parts, host.pool_reservation_limit(page_bytes))?;
    // Pages that are promised to somebody are told for the whole host alone, and so are those that come on demand.
    let shortages = shortages(parts, page_bytes, &free, Some(pool.grown()));
    if shortages.is_empty() {
        return Ok(());
    }
    let mend = mend(&shortages, &pool, host);
    Err(PlacementError::PoolTooSmall { pages, shortages, mend })
}

/// Holds all parts against what their mapping does not meet, though it reserves all pages: what the control groups may have, which
/// they are charged page by page, as the guest touches them.
pub(super) fn check_reserved<H: HostMemory>(
    pages: Pages,
    page_bytes: u64,
    parts: &[MemoryPart],
    host: &H,
) -> Result<(), PlacementError> {
    check_limit(pages, parts, host.pool_limit(page_bytes))
}

fn check_limit(pages: Pages, parts: &[MemoryPart], limit: Option<Limit>) -> Result<(), PlacementError> {
    let needed = parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.bytes));
    match limit {
        Some(Limit { value: limit, file }) if limit < needed => {
            Err(PlacementError::PoolLimit { pages, limit, file, needed })
        }
        _ => Ok(()),
    }
}

/// The commands that add what is short, each pool's once.
fn mend(shortages: &[Shortage], pool: &PoolFacts, host: &impl HostMemory) -> String {
    let mut more = BTreeMap::<Option<u16>, u64>::new();
    for Shortage { nodes, needed, free } in shortages {
        let first = nodes.as_ref().and_then(|nodes| nodes.iter().next());
        *more.entry(first).or_default() += needed - free;
    }
    let file = format!("hugepages/hugepages-{}kB/nr_hugepages", pool.page_bytes / 1024);
    // What the nodes get is the whole host's, too.
    let of_nodes: u64 = more.iter().filter(|(node, _)| node.is_some()).map(|(_, pages)| pages).sum();
    let command = |(node, pages): (&Option<u16>, &u64)| match node {
        None => format!("echo {} > /sys/kernel/mm/{file}", pool.total + of_nodes + pages),
        Some(id) => {
            let total = host.node(*id).and_then(|node| of_node(node, pool.page_bytes)).map_or(0, |pool| pool.total);
            format!("echo {} > /sys/devices/system/node/node{id}/{file}", total + pages)
        }
    };
    // The nodes' first: the whole host's total has them in it.
    let (whole, of_nodes): (Vec<_>, Vec<_>) = more.iter().partition(|(node, _)| node.is_none());
    of_nodes.into_iter().chain(whole).map(command).collect::<Vec<_>>().join("; ")
}

fn of_node(node: &NodeFacts, page_bytes: u64) -> Option<&PoolFacts> {
    node.pools.iter().find(|pool| pool.page_bytes == page_bytes)
}
