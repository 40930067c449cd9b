//! What a VM asks for.

use arch::topology::{VcpuCount, VcpuCountError};
use serde::Deserialize;
use thiserror::Error;

use crate::config::extension::Extension;
use crate::config::firecracker::bodies::{HugePages, MachineConfiguration};
use crate::config::firecracker::{BodyError, from_json};
use crate::config::{MIB, Pages};

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
}

/// One of the guest's NUMA nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestNode {
    /// Its vCPUs.
    pub vcpus: u16,
    /// Its memory, in bytes; a whole number of the VM's pages.
    pub memory_bytes: u64,
}

/// Whether vCPUs run on both threads of a core.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Siblings {
    /// A vCPU has a core's first thread, and no other vCPU runs on the others.
    #[default]
    Idle,
    /// Threads are CPUs like any other, shared with VMs that say the same.
    Shared,
}

/// A configuration file that tells of no VM that can be placed.
#[derive(Debug, Error)]
pub enum DemandError {
    /// Not a configuration file.
    #[error(transparent)]
    Shape(#[from] BodyError),
    /// A number of vCPUs that no VM can have.
    #[error("machine-config.vcpu_count: {0}")]
    Vcpus(VcpuCountError),
    /// No memory, or more than can be counted.
    #[error("machine-config.mem_size_mib: {mib} is no size of a machine: use 1 or more, below 2^44")]
    Memory {
        /// What was written.
        mib: u64,
    },
    /// Memory that is no whole number of its pages.
    #[error("machine-config.mem_size_mib: {mib} is no whole number of {pages} pages: use a multiple of {page_mib}")]
    Pages {
        /// What was written.
        mib: u64,
        /// The pages.
        pages: Pages,
        /// Size of one.
        page_mib: u64,
    },
}

/// The parts of a configuration file that a plan needs.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct VmFile {
    machine_config: Option<MachineConfiguration>,
    husk: Option<Extension>,
}

impl VmDemand {
    /// Reads it from a configuration file's text. A guest that is told of threads (`smt`) shares siblings in any case.
    ///
    /// # Errors
    /// The field that is wrong, its value, and what is allowed.
    pub fn parse(name: &str, text: &str, siblings: Siblings) -> Result<Self, DemandError> {
        let VmFile { machine_config, husk } = from_json(text)?;
        let machine = machine_config.unwrap_or_default();
        let MachineConfiguration { vcpu_count, mem_size_mib: mib, smt, huge_pages, .. } = machine;
        let vcpus = VcpuCount::new(vcpu_count).map_err(DemandError::Vcpus)?;
        let placement = husk.and_then(|extension| extension.placement).unwrap_or_default();
        let pages = placement.memory.pages.unwrap_or(match huge_pages {
            HugePages::None => Pages::HostsChoice,
            HugePages::Transparent => Pages::Transparent,
            HugePages::TwoMib => Pages::Huge2M,
        });
        let memory_bytes = mib.checked_mul(MIB).filter(|bytes| *bytes > 0).ok_or(DemandError::Memory { mib })?;
        let page_bytes = pages.pool_page_bytes();
        if let Some(page) = page_bytes.filter(|page| !memory_bytes.is_multiple_of(*page)) {
            return Err(DemandError::Pages { mib, pages, page_mib: page / MIB });
        }
        Ok(Self {
            name: name.to_owned(),
            nodes: vec![GuestNode { vcpus: vcpus.get().into(), memory_bytes }],
            page_bytes,
            siblings: if smt { Siblings::Shared } else { siblings },
        })
    }

    pub(super) fn vcpus(&self) -> u32 {
        self.nodes.iter().map(|node| u32::from(node.vcpus)).sum()
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.nodes.iter().fold(0, |sum, node| sum.saturating_add(node.memory_bytes))
    }
}
