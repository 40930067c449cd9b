//! The plan as it is told. The field names are those of `husk plan --json` and stay.

use serde::Serialize;

use crate::host::IdList;

/// Where the VMs fit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// In the order in which they were named.
    pub vms: Vec<VmPlan>,
    /// What is promised of each node.
    pub nodes: Vec<NodePlan>,
    /// What would make room for the VMs that do not fit; all of it together.
    pub mend: Vec<Mend>,
}

/// Where one VM fits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VmPlan {
    /// As it is called.
    pub vm: String,
    /// Its share of each node that it is on: one, or one for each of the guest's nodes. Empty if it does not fit.
    pub parts: Vec<Part>,
    /// CPUs for its I/O threads, on the same nodes.
    pub io_cpus: IdList,
    /// The CPU time that a vCPU has at least, while all others on its CPU want theirs; null if the VM does not fit.
    pub cpu_time: Option<f64>,
    /// Memory that its guest may be asked to plug beside what is promised (`memory-hotplug`), in bytes: it is promised by
    /// nobody.
    pub may_grow_bytes: u64,
    /// If it does not fit: what each node lacks of it, or of the first of its guest nodes that fits nowhere.
    pub misses: Vec<Miss>,
}

/// A VM, or one of its guest nodes, on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// The host's node.
    pub node: u16,
    /// The guest's vCPUs on it.
    pub vcpus: IdList,
    /// The CPU of each, in their order.
    pub cpus: Vec<u16>,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Size of the pool's pages; null for memory of no pool.
    pub page_bytes: Option<u64>,
    /// How many of them.
    pub pages: u64,
}

/// What a node lacks for a VM that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Miss {
    /// The node.
    pub node: u16,
    /// vCPUs that find no CPU.
    pub vcpus: u32,
    /// Memory of no pool, in bytes.
    pub memory_bytes: u64,
    /// Size of the pool's pages; null for memory of no pool.
    pub page_bytes: Option<u64>,
    /// Pages that the pool lacks.
    pub pages: u64,
}

impl Miss {
    /// Whether nothing is lacking.
    pub(super) fn is_none(&self) -> bool {
        self.vcpus == 0 && self.memory_bytes == 0 && self.pages == 0
    }
}

/// What is promised of a node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodePlan {
    /// Its number.
    pub node: u16,
    /// CPUs that can be promised.
    pub cpus: u64,
    /// vCPUs on it.
    pub vcpus: u64,
    /// CPUs promised, each as often as it is, by CPUs there are. A vCPU whose siblings stay idle takes its whole core.
    pub overcommit: f64,
    /// The CPU time that is left of each promised CPU while all want theirs, 1 where none is promised twice.
    pub cpu_time: f64,
    /// Memory of no pool that is promised, in bytes.
    pub memory_bytes: u64,
    /// Memory of no pool that is left, in bytes.
    pub memory_left_bytes: u64,
    /// Its HugePages.
    pub pools: Vec<PoolPlan>,
}

/// A node's HugePages of one size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolPlan {
    /// Size of one.
    pub page_bytes: u64,
    /// Pages promised.
    pub pages: u64,
    /// Free pages left.
    pub pages_left: u64,
}

/// Something that makes room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mend {
    /// The node; null for what concerns all.
    pub node: Option<u16>,
    /// What is lacking there.
    pub lacks: String,
    /// A command, or the words for it where no command does.
    pub fix: String,
}
