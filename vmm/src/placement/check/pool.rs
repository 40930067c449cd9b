//! Whether the host's pools have the HugePages that are asked for, node by node.

use std::collections::BTreeMap;
use std::fmt;

use super::{HostMemory, PlacementError};
use crate::config::{MemoryPart, NodePolicy, Pages};
use crate::host::{IdList, NodeFacts, PoolFacts};

/// HugePages that are lacking somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolShortage {
    /// On which nodes together; `None` for any.
    pub nodes: Option<IdList>,
    /// How many are needed there.
    pub needed: u64,
    /// How many can be had there.
    pub free: u64,
}

impl fmt::Display for PoolShortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.nodes {
            Some(nodes) => write!(f, "on node {nodes} and {} are free", self.free),
            None => write!(f, "on any node and {} are free", self.free),
        }
    }
}

/// All shortages in one sentence: `256 HugePages of 2M are needed on node 1 and 100 are free: 156 short`.
pub(super) fn sentence(pages: Pages, shortages: &[PoolShortage]) -> String {
    let need = |(index, shortage): (usize, &PoolShortage)| match index {
        0 => format!("{} HugePages of {pages} are needed {shortage}", shortage.needed),
        _ => format!("{} {shortage}", shortage.needed),
    };
    let needs: Vec<_> = shortages.iter().enumerate().map(need).collect();
    let short: Vec<_> = shortages.iter().map(|shortage| (shortage.needed - shortage.free).to_string()).collect();
    format!("{}: {} short", needs.join(", "), short.join(" and "))
}

/// Holds all parts against the pool: those with the least choice of nodes first, those that take any last.
pub(super) fn check(
    pages: Pages,
    page_bytes: u64,
    parts: &[MemoryPart],
    host: &HostMemory,
) -> Result<(), PlacementError> {
    let Some(pool) = host.pools.iter().find(|pool| pool.page_bytes == page_bytes) else {
        let available = host.pools.iter().map(|pool| pool.page_bytes).collect();
        return Err(PlacementError::NoSuchPages { pages, available });
    };
    let mut free: BTreeMap<u16, u64> =
        host.nodes.iter().map(|node| (node.id, of_node(node, page_bytes).map_or(0, |pool| pool.free))).collect();
    let demands = Demands::of(parts, page_bytes);
    let (mut shortages, mut taken) = (Vec::new(), 0);
    for (nodes, needed) in demands.on_nodes {
        let there: u64 = nodes.iter().filter_map(|node| free.get(&node)).sum();
        let mut wanted = needed.min(there);
        taken += wanted;
        for node in nodes.iter() {
            let left = free.entry(node).or_default();
            let taken = wanted.min(*left);
            (*left, wanted) = (*left - taken, wanted - taken);
        }
        if there < needed {
            shortages.push(PoolShortage { nodes: Some(nodes), needed, free: there });
        }
    }
    // Pages that are promised to somebody are told for the whole host alone, and so are those that come on demand.
    let left = pool.grown().checked_sub(taken);
    if demands.anywhere > left.unwrap_or(0) {
        shortages.push(PoolShortage { nodes: None, needed: demands.anywhere, free: left.unwrap_or(0) });
    } else if left.is_none() && shortages.is_empty() {
        shortages.push(PoolShortage { nodes: demands.all_nodes, needed: taken, free: pool.grown() });
    }
    if shortages.is_empty() {
        return Ok(());
    }
    let mend = mend(&shortages, pool, host);
    Err(PlacementError::PoolTooSmall { pages, shortages, mend })
}

/// Pages by where they shall be.
struct Demands {
    /// On these nodes together; the fewest nodes first.
    on_nodes: Vec<(IdList, u64)>,
    /// All of their nodes, if there are any.
    all_nodes: Option<IdList>,
    /// On any.
    anywhere: u64,
}

impl Demands {
    fn of(parts: &[MemoryPart], page_bytes: u64) -> Self {
        let mut on_nodes = BTreeMap::<(usize, IdList), u64>::new();
        let mut anywhere = 0;
        for part in parts {
            let pages = part.bytes / page_bytes;
            let mut add = |nodes: IdList, pages| *on_nodes.entry((nodes.len(), nodes)).or_default() += pages;
            match &part.nodes {
                Some(asked) if asked.policy == NodePolicy::Bind => add(asked.nodes.clone(), pages),
                Some(asked) if asked.policy == NodePolicy::Interleave => {
                    let count = u64::try_from(asked.nodes.len()).expect("at most 65536");
                    asked.nodes.iter().for_each(|node| add(IdList::from_iter([node]), pages / count));
                    // What is left of a last round may be on any of them.
                    add(asked.nodes.clone(), pages % count);
                }
                _ => anywhere += pages,
            }
        }
        let nodes: IdList = on_nodes.keys().flat_map(|(_, nodes)| nodes.iter()).collect();
        Self {
            on_nodes: on_nodes.into_iter().map(|((_, nodes), pages)| (nodes, pages)).collect(),
            all_nodes: (!nodes.is_empty()).then_some(nodes),
            anywhere,
        }
    }
}

/// The commands that add what is short, each pool's once.
fn mend(shortages: &[PoolShortage], pool: &PoolFacts, host: &HostMemory) -> String {
    let mut more = BTreeMap::<Option<u16>, u64>::new();
    for PoolShortage { nodes, needed, free } in shortages {
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
