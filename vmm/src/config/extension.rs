//! What Firecracker's document cannot say of a machine: the key `husk` of the configuration file, and `PUT
//! /husk/v1/placement`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    CoreScheduling, GuestNode, Honour, HostNodes, MIB, MemoryBacking, MemoryPlacement, NodePolicy, Pages, ThreadName,
    ThreadPlacement, ThreadTerms, VmConfig,
};
use crate::host::IdList;

/// husk's own part of a configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Extension {
    /// Where the machine is on the host.
    pub placement: Option<Placement>,
}

/// Where the machine is on the host. What is absent is left to the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Placement {
    /// Guest memory.
    pub memory: Memory,
    /// The guest's NUMA nodes, in the order of their memory.
    pub numa: Vec<Node>,
    /// husk's threads: `vcpu0`, `vcpu` (all), `io:NAME`, `io` (all), `api`, `main`.
    pub threads: BTreeMap<ThreadName, ThreadTerms>,
    /// Which threads may share a core's SMT siblings at one time.
    pub core_scheduling: CoreScheduling,
    /// Whether what the host cannot honour is left out, and told, where the start would be refused otherwise.
    pub best_effort: bool,
}

/// Where guest memory is, and on which pages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// Whether it is a memfd that another process can be handed; absent is what is so without this.
    pub shared: Option<bool>,
    /// The pages that it is made of; absent is what `machine-config` says.
    pub pages: Option<Pages>,
    /// The host's NUMA nodes that it comes from, as in `0-1,3`.
    pub nodes: Option<IdList>,
    /// How they are used.
    pub policy: NodePolicy,
    /// The guest's NUMA node that memory belongs to which can be plugged; absent is the first.
    pub hotplug_node: Option<u16>,
    /// Whether all of it is there before the guest starts.
    pub prefault: bool,
    /// Whether it stays in memory.
    pub lock: bool,
    /// Whether the host may merge its pages with equal ones.
    pub merge: bool,
    /// Whether it is part of a core dump.
    pub dump: bool,
}

/// A NUMA node of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its vCPUs, as in `0-1`.
    #[serde(default)]
    pub cpus: IdList,
    /// Its memory, in MiB.
    pub mem_size_mib: u32,
    /// The host's NUMA nodes that its memory comes from, in the place of the whole memory's.
    #[serde(default)]
    pub nodes: Option<IdList>,
    /// How they are used.
    #[serde(default)]
    pub policy: NodePolicy,
    /// The ids of the devices that are near it; its `_PXM` tells the guest.
    #[serde(default)]
    pub devices: Vec<String>,
    /// How far it is to each node, as ACPI counts: 10 to itself. Absent is 20 to any other.
    #[serde(default)]
    pub distances: Vec<u8>,
}

impl Extension {
    /// Applies it, unchecked.
    pub(super) fn apply(self, config: &mut VmConfig) {
        if let Some(placement) = self.placement {
            placement.apply(config);
        }
    }
}

impl Placement {
    /// Where `config` has it.
    pub(super) fn of(config: &VmConfig) -> Self {
        let MemoryPlacement { pages, nodes, prefault, lock, merge, dump, honour, hotplug_node } =
            &config.memory.placement;
        let ThreadPlacement { terms, core_scheduling, honour: _ } = &config.threads;
        let split = |host: &Option<HostNodes>| match host {
            Some(HostNodes { nodes, policy }) => (Some(nodes.clone()), *policy),
            None => (None, NodePolicy::default()),
        };
        let (nodes, policy) = split(nodes);
        let node = |node: &GuestNode| {
            let (nodes, policy) = split(&node.host);
            let mem_size_mib = u32::try_from(node.bytes / MIB).unwrap_or(u32::MAX);
            let (devices, distances) = (node.devices.clone(), node.distances.clone());
            Node { cpus: node.cpus.clone(), mem_size_mib, nodes, policy, devices, distances }
        };
        Self {
            memory: Memory {
                // Who saves a configuration has it beside this.
                shared: None,
                pages: Some(*pages),
                nodes,
                policy,
                prefault: *prefault,
                lock: *lock,
                merge: *merge,
                dump: *dump,
                hotplug_node: *hotplug_node,
            },
            numa: config.numa.iter().map(node).collect(),
            threads: terms.clone(),
            core_scheduling: *core_scheduling,
            best_effort: *honour == Honour::BestEffort,
        }
    }

    /// Applies it, unchecked, in the place of what was there.
    pub(super) fn apply(self, config: &mut VmConfig) {
        let honour = if self.best_effort { Honour::BestEffort } else { Honour::Strictly };
        config.threads = ThreadPlacement { terms: self.threads, core_scheduling: self.core_scheduling, honour };
        let node = |Node { cpus, mem_size_mib, nodes, policy, devices, distances }| GuestNode {
            cpus,
            bytes: u64::from(mem_size_mib) * MIB,
            host: nodes.map(|nodes| HostNodes { nodes, policy }),
            devices,
            distances,
        };
        config.numa = self.numa.into_iter().map(node).collect();
        let Memory { shared, pages, nodes, policy, hotplug_node, prefault, lock, merge, dump } = self.memory;
        if let Some(shared) = shared {
            config.memory.backing = if shared { MemoryBacking::Memfd } else { MemoryBacking::Anonymous };
        }
        config.memory.placement = MemoryPlacement {
            pages: pages.unwrap_or(config.memory.placement.pages),
            nodes: nodes.map(|nodes| HostNodes { nodes, policy }),
            hotplug_node,
            prefault,
            lock,
            merge,
            dump,
            honour,
        };
    }
}
