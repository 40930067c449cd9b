//! What a VM asks for.

use serde::Deserialize;

use crate::config::extension::Extension;
use crate::config::firecracker::bodies::MachineConfiguration;
use crate::config::firecracker::hotplug::MemoryHotplugConfig;
use crate::config::firecracker::{BodyError, Change, blank, from_json};
use crate::config::{self, HostFacts, MIB, Siblings};
use crate::host::IdList;
use crate::placement::group_bytes;

/// One VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmDemand {
    /// What it is called in the plan; no two are called the same.
    pub name: String,
    /// Its NUMA nodes, as the guest sees them; at least one. Only a VM of several can be split over host nodes.
    pub nodes: Vec<GuestNode>,
    /// The pages of a pool that its memory is made of; `None` for memory that needs no pool.
    pub page_bytes: Option<u64>,
    /// Whether its vCPUs run on both threads of a core.
    pub siblings: Siblings,
    /// Memory that the guest may be asked to plug, in bytes.
    pub may_grow_bytes: u64,
}

/// One of the guest's NUMA nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNode {
    /// Its vCPUs.
    pub vcpus: IdList,
    /// Its memory, in bytes; a whole number of the VM's pages.
    pub memory_bytes: u64,
}

/// The parts of a configuration file that a plan needs.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct VmFile {
    machine_config: Option<MachineConfiguration>,
    memory_hotplug: Option<MemoryHotplugConfig>,
    husk: Option<Extension>,
}

impl VmDemand {
    /// Reads it from a configuration file's text. A guest that is told of threads (`smt`) shares siblings in any case.
    ///
    /// # Errors
    /// The field that is wrong, its value, and what is allowed.
    pub fn parse(name: &str, text: &str, siblings: Siblings) -> Result<Self, BodyError> {
        // What the host has is the plan's to say.
        const ROOMY: HostFacts = HostFacts { memory_bytes: u64::MAX };
        let VmFile { machine_config, memory_hotplug, husk } = from_json(text)?;
        let machine = machine_config.unwrap_or_default();
        let siblings = if machine.smt { Siblings::Shared } else { siblings };
        let mut config = blank();
        Change::Machine(machine).apply(&mut config, ROOMY)?;
        if let Some(mut placement) = husk.and_then(|extension| extension.placement) {
            // Devices are no part of a plan.
            placement.numa.iter_mut().for_each(|node| node.devices.clear());
            Change::Placement(placement).apply(&mut config, ROOMY)?;
        }
        let whole = || GuestNode {
            vcpus: (0..u16::try_from(config.cpus).unwrap_or(u16::MAX)).collect(),
            memory_bytes: config.memory.size_bytes,
        };
        let node = |node: &config::GuestNode| GuestNode { vcpus: node.cpus.clone(), memory_bytes: node.bytes };
        let nodes = if config.numa.is_empty() { vec![whole()] } else { config.numa.iter().map(node).collect() };
        let may_grow_bytes = memory_hotplug.map_or(0, |hotplug| u64::from(hotplug.total_size_mib) * MIB);
        let page_bytes = config.memory.placement.pages.pool_page_bytes();
        Ok(Self { name: name.to_owned(), nodes, page_bytes, siblings, may_grow_bytes })
    }

    /// The whole VM as one node.
    pub(super) fn whole(&self) -> GuestNode {
        let vcpus = self.nodes.iter().flat_map(|node| node.vcpus.iter()).collect();
        GuestNode { vcpus, memory_bytes: self.memory_bytes() }
    }

    pub(super) fn vcpus(&self) -> u32 {
        self.nodes.iter().map(GuestNode::vcpu_count).sum()
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.nodes.iter().fold(0, |sum, node| sum.saturating_add(node.memory_bytes))
    }
}

impl GuestNode {
    /// What a control group is charged for it in pages of a pool of this size, or in those of none; what husk takes for itself
    /// comes with the first vCPU.
    pub(super) fn charge(&self, page_bytes: Option<u64>) -> u64 {
        match page_bytes {
            Some(_) => self.memory_bytes,
            None if self.vcpus.contains(0) => group_bytes(self.memory_bytes),
            None => group_bytes(self.memory_bytes).saturating_sub(group_bytes(0)),
        }
    }

    pub(super) fn vcpu_count(&self) -> u32 {
        u32::try_from(self.vcpus.len()).unwrap_or(u32::MAX)
    }
}
