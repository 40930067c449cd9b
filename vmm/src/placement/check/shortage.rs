//! What nodes lack of what is asked of them: pages of a pool, or memory.

use std::collections::BTreeMap;
use std::fmt;

use crate::config::{MemoryPart, NodePolicy};
use crate::host::IdList;

/// What is lacking somewhere, in units of which the other words say what they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// On which nodes together; `None` for any.
    pub nodes: Option<IdList>,
    /// How much is needed there.
    pub needed: u64,
    /// How much can be had there.
    pub free: u64,
}

/// What `parts` need in units of so many bytes beyond what nodes have `free`, and the `whole` host, if that is known. Those
/// with the least choice of nodes come first, those that take any last.
pub(super) fn shortages(
    parts: &[MemoryPart],
    unit_bytes: u64,
    free: &BTreeMap<u16, u64>,
    whole: Option<u64>,
) -> Vec<Shortage> {
    let mut free = free.clone();
    let demands = Demands::of(parts, unit_bytes);
    let (mut shortages, mut taken) = (Vec::new(), 0);
    for (nodes, needed) in demands.on_nodes {
        let there = nodes.iter().filter_map(|node| free.get(&node)).fold(0_u64, |sum, left| sum.saturating_add(*left));
        let mut wanted = needed.min(there);
        taken += wanted;
        for node in nodes.iter() {
            let left = free.entry(node).or_default();
            let taken = wanted.min(*left);
            (*left, wanted) = (*left - taken, wanted - taken);
        }
        if there < needed {
            shortages.push(Shortage { nodes: Some(nodes), needed, free: there });
        }
    }
    let Some(whole) = whole else { return shortages };
    // What the nodes lack they need beside it: once they have got it, this is still lacking.
    let lacking = demands.anywhere.saturating_add(taken).saturating_sub(whole);
    let (nodes, needed) = match demands.anywhere {
        0 => (demands.all_nodes, taken),
        anywhere if anywhere >= lacking => (None, anywhere),
        anywhere => (None, anywhere.saturating_add(taken)),
    };
    let same = shortages.iter_mut().find(|same| same.nodes == nodes && same.free >= lacking);
    match (lacking, same) {
        (0, _) => {}
        (_, Some(same)) => same.free -= lacking,
        (_, None) => shortages.push(Shortage { nodes, needed, free: needed - lacking }),
    }
    shortages
}

/// All shortages in one sentence: `256 HugePages of 2M are needed on node 1 and 100 are free: 156 short`.
pub(super) fn sentence(unit: &str, shortages: &[Shortage]) -> String {
    let need = |(index, shortage): (usize, &Shortage)| match index {
        0 => format!("{} {unit} are needed {shortage}", shortage.needed),
        _ => format!("{} {shortage}", shortage.needed),
    };
    let needs: Vec<_> = shortages.iter().enumerate().map(need).collect();
    let short: Vec<_> = shortages.iter().map(|shortage| (shortage.needed - shortage.free).to_string()).collect();
    format!("{}: {} short", needs.join(", "), short.join(" and "))
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.nodes {
            Some(nodes) => write!(f, "on node {nodes} and {} are free", self.free),
            None => write!(f, "on any node and {} are free", self.free),
        }
    }
}

/// Units by where they shall be.
struct Demands {
    /// On these nodes together; the fewest nodes first.
    on_nodes: Vec<(IdList, u64)>,
    /// All of their nodes, if there are any.
    all_nodes: Option<IdList>,
    /// On any.
    anywhere: u64,
}

impl Demands {
    fn of(parts: &[MemoryPart], unit_bytes: u64) -> Self {
        let mut on_nodes = BTreeMap::<(usize, IdList), u64>::new();
        let mut anywhere = 0;
        for part in parts {
            let units = part.bytes / unit_bytes;
            let mut add = |nodes: IdList, units| *on_nodes.entry((nodes.len(), nodes)).or_default() += units;
            match &part.nodes {
                Some(asked) if asked.policy == NodePolicy::Bind => add(asked.nodes.clone(), units),
                Some(asked) if asked.policy == NodePolicy::Interleave => {
                    let count = u64::try_from(asked.nodes.len()).expect("at most 65536");
                    asked.nodes.iter().for_each(|node| add(IdList::from_iter([node]), units / count));
                    // What is left of a last round may be on any of them.
                    add(asked.nodes.clone(), units % count);
                }
                _ => anywhere += units,
            }
        }
        let nodes: IdList = on_nodes.keys().flat_map(|(_, nodes)| nodes.iter()).collect();
        Self {
            on_nodes: on_nodes.into_iter().map(|((_, nodes), units)| (nodes, units)).collect(),
            all_nodes: (!nodes.is_empty()).then_some(nodes),
            anywhere,
        }
    }
}
