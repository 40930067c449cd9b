//! Where a saved machine was on its host.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::extension::{Memory, Node, Placement};
use crate::config::{CoreScheduling, NodePolicy, Pages, ThreadName, ThreadTerms};
use crate::host::IdList;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PlacementState {
    memory: MemoryState,
    numa: Vec<NodeState>,
    threads: BTreeMap<ThreadName, ThreadTerms>,
    core_scheduling: CoreScheduling,
    best_effort: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MemoryState {
    pages: Option<Pages>,
    nodes: Option<IdList>,
    policy: NodePolicy,
    hotplug_node: Option<u16>,
    prefault: bool,
    lock: bool,
    merge: bool,
    dump: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct NodeState {
    cpus: IdList,
    mem_size_mib: u32,
    nodes: Option<IdList>,
    policy: NodePolicy,
    distances: Vec<u8>,
}

impl PlacementState {
    pub(super) fn save(placement: Placement) -> Self {
        let Placement { memory, numa, threads, core_scheduling, best_effort } = placement;
        // What backs it is saved with the memory itself.
        let Memory { shared: _, pages, nodes, policy, hotplug_node, prefault, lock, merge, dump } = memory;
        let memory = MemoryState { pages, nodes, policy, hotplug_node, prefault, lock, merge, dump };
        // Devices that are near have a state of their own.
        let node = |Node { cpus, mem_size_mib, nodes, policy, devices: _, distances }| NodeState {
            cpus,
            mem_size_mib,
            nodes,
            policy,
            distances,
        };
        Self { memory, numa: numa.into_iter().map(node).collect(), threads, core_scheduling, best_effort }
    }

    pub(super) fn restore(self) -> Placement {
        let Self { memory, numa, threads, core_scheduling, best_effort } = self;
        let MemoryState { pages, nodes, policy, hotplug_node, prefault, lock, merge, dump } = memory;
        let memory = Memory { shared: None, pages, nodes, policy, hotplug_node, prefault, lock, merge, dump };
        let node = |NodeState { cpus, mem_size_mib, nodes, policy, distances }| Node {
            cpus,
            mem_size_mib,
            nodes,
            policy,
            devices: Vec::new(),
            distances,
        };
        Placement { memory, numa: numa.into_iter().map(node).collect(), threads, core_scheduling, best_effort }
    }
}
