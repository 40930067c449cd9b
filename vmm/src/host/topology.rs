//! How CPUs hang together: cores, caches, governors, nodes and the distances between them.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::NodeFacts;
use super::id_list::IdList;
use super::read::pools;
use super::tree::{Tree, field_bytes};

pub(super) const CPUS: &str = "sys/devices/system/cpu";
const NODES: &str = "sys/devices/system/node";

/// The most that a Linux of this architecture is built for (NR_CPUS); a longer list comes from a broken file.
const CPUS_MAX: usize = 8192;
/// Linux's MAX_NUMNODES on this architecture.
const NODES_MAX: usize = 1024;
/// Cache levels and kinds of a CPU; four on today's.
const CACHES_MAX: u16 = 16;

/// The online CPUs of each core.
pub(super) fn cores(tree: &Tree, online: &IdList) -> Vec<IdList> {
    groups(online, |cpu| {
        let folder = format!("{CPUS}/cpu{cpu}/topology");
        // The name that it had before Linux 5.3.
        tree.value(&format!("{folder}/core_cpus_list"))
            .or_else(|| tree.value(&format!("{folder}/thread_siblings_list")))
    })
}

/// The online CPUs of each last-level cache.
pub(super) fn l3(tree: &Tree, online: &IdList) -> Vec<IdList> {
    groups(online, |cpu| {
        let cache = |index| format!("{CPUS}/cpu{cpu}/cache/index{index}");
        let levels =
            (0..CACHES_MAX).map_while(|index| Some((index, tree.value::<u64>(&format!("{}/level", cache(index)))?)));
        let (index, _) = levels.filter(|(_, level)| *level == 3).last()?;
        tree.value(&format!("{}/shared_cpu_list", cache(index)))
    })
}

/// Sets that share something, each read from the first of its CPUs.
fn groups(online: &IdList, of: impl Fn(u16) -> Option<IdList>) -> Vec<IdList> {
    let mut seen = BTreeSet::new();
    let mut groups = Vec::new();
    for cpu in online.iter().take(CPUS_MAX) {
        if seen.contains(&cpu) {
            continue;
        }
        if let Some(group) = of(cpu).map(|group| group.and(online)).filter(|group| group.contains(cpu)) {
            seen.extend(group.iter());
            groups.push(group);
        }
    }
    groups
}

/// Frequency governors and the CPUs under each.
pub(super) fn governors(tree: &Tree, online: &IdList) -> BTreeMap<String, IdList> {
    let mut governors = BTreeMap::<String, Vec<u16>>::new();
    for cpu in online.iter().take(CPUS_MAX) {
        if let Some(governor) = tree.text(&format!("{CPUS}/cpu{cpu}/cpufreq/scaling_governor")) {
            governors.entry(governor).or_default().push(cpu);
        }
    }
    governors.into_iter().map(|(governor, cpus)| (governor, cpus.into_iter().collect())).collect()
}

/// The online nodes.
pub(super) fn nodes(tree: &Tree) -> Vec<NodeFacts> {
    let online: IdList = tree.value(&format!("{NODES}/online")).unwrap_or_default();
    let node = |id| {
        let folder = format!("{NODES}/node{id}");
        let meminfo = tree.text(&format!("{folder}/meminfo")).unwrap_or_default();
        let bytes = |key| field_bytes(&meminfo, &format!("Node {id} {key}"));
        let file_cache = bytes("Active(file)").zip(bytes("Inactive(file)"));
        NodeFacts {
            id,
            cpus: tree.value(&format!("{folder}/cpulist")).unwrap_or_default(),
            total_bytes: bytes("MemTotal"),
            free_bytes: bytes("MemFree"),
            file_cache_bytes: file_cache.and_then(|(active, inactive)| active.checked_add(inactive)),
            distances: distances(tree, &format!("{folder}/distance"), &online),
            pools: pools(tree, &format!("{folder}/hugepages")),
        }
    };
    online.iter().take(NODES_MAX).map(node).collect()
}

/// A node's distances to all online ones, which stand in one line in their order.
fn distances(tree: &Tree, path: &str, online: &IdList) -> BTreeMap<u16, u16> {
    let words = tree.words(path).unwrap_or_default();
    let distances: Vec<u16> = words.iter().map_while(|word| word.parse().ok()).collect();
    if distances.len() == online.len() { online.iter().zip(distances).collect() } else { BTreeMap::new() }
}
