//! Guest memory as it is asked for: how much, on which pages, and where on the host.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigError, HostFacts, MIB};
use crate::host::IdList;

/// Guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Size in bytes; a whole number of MiB.
    pub size_bytes: u64,
    /// What stands behind it.
    pub backing: MemoryBacking,
    /// Where it is on the host, and on which pages.
    pub placement: MemoryPlacement,
    /// Whether what the guest writes is recorded from its start, so that its first snapshot can be an incremental one.
    pub track_dirty_pages: bool,
}

/// What stands behind guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryBacking {
    /// Private anonymous pages: boots fastest and costs least.
    Anonymous,
    /// A memfd mapped shared, which another process can be handed.
    Memfd,
}

/// Where guest memory is on the host, and on which pages. The default leaves all of it to the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryPlacement {
    /// The pages that it is made of.
    pub pages: Pages,
    /// The host's NUMA nodes that it comes from.
    pub nodes: Option<HostNodes>,
    /// The guest's NUMA node that memory belongs to which can be plugged; absent is the first, in a machine that has nodes.
    pub hotplug_node: Option<u16>,
    /// Whether all of it is there before the guest starts. HugePages that are bound to a node always are: their
    /// reservation says nothing about the node.
    pub prefault: bool,
    /// Whether it stays in memory (mlock).
    pub lock: bool,
    /// Whether the host may merge its pages with equal ones (MADV_MERGEABLE).
    pub merge: bool,
    /// Whether it is part of a core dump; the default leaves it out (MADV_DONTDUMP).
    pub dump: bool,
    /// What happens if the host cannot honour this.
    pub honour: Honour,
}

/// What happens if the host cannot honour a placement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Honour {
    /// There is no machine.
    #[default]
    Strictly,
    /// The machine gets what there is, and the difference is told.
    BestEffort,
}

impl Honour {
    /// Whether a thing is done. Where the best effort is enough, what is not is one of the `differences`.
    ///
    /// # Errors
    /// It is not, and must be.
    pub(crate) fn settle<E>(self, done: Result<(), E>, differences: &mut Vec<E>) -> Result<bool, E> {
        match (done, self) {
            (Ok(()), _) => Ok(true),
            (Err(error), Self::Strictly) => Err(error),
            (Err(error), Self::BestEffort) => {
                differences.push(error);
                Ok(false)
            }
        }
    }
}

/// The pages that guest memory is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Pages {
    /// Those of the host's choice.
    #[default]
    #[serde(rename = "none")]
    HostsChoice,
    /// 4 KiB, and 2 MiB where the kernel finds them in time (MADV_HUGEPAGE).
    #[serde(rename = "transparent")]
    Transparent,
    /// 2 MiB pages of the host's pool (hugetlb).
    #[serde(rename = "2M")]
    Huge2M,
    /// 1 GiB pages of the host's pool (hugetlb).
    #[serde(rename = "1G")]
    Huge1G,
}

impl Pages {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::HostsChoice, Self::Transparent, Self::Huge2M, Self::Huge1G];

    /// The name on the command line, in the API and in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostsChoice => "none",
            Self::Transparent => "transparent",
            Self::Huge2M => "2M",
            Self::Huge1G => "1G",
        }
    }

    /// The size of one page of the host's pool, in bytes; `None` for pages that need no pool.
    #[must_use]
    pub const fn pool_page_bytes(self) -> Option<u64> {
        match self {
            Self::HostsChoice | Self::Transparent => None,
            Self::Huge2M => Some(2 << 20),
            Self::Huge1G => Some(1 << 30),
        }
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Pages {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|pages| pages.name() == text).ok_or(())
    }
}

/// The host's NUMA nodes that memory comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNodes {
    /// Their numbers; at least one.
    pub nodes: IdList,
    /// How they are used.
    pub policy: NodePolicy,
}

/// A part of guest memory that comes from nodes of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPart {
    /// Its size, in bytes.
    pub bytes: u64,
    /// The host's nodes.
    pub nodes: Option<HostNodes>,
}

/// How nodes are used, as set_mempolicy(2) names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodePolicy {
    /// Every page comes from one of them (MPOL_BIND).
    #[default]
    Bind,
    /// Pages come from the one node while it has some (MPOL_PREFERRED).
    Preferred,
    /// Page by page from one after the other (MPOL_INTERLEAVE).
    Interleave,
}

impl NodePolicy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Bind, Self::Preferred, Self::Interleave];

    /// The name on the command line, in the API and in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Preferred => "preferred",
            Self::Interleave => "interleave",
        }
    }
}

impl FromStr for NodePolicy {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|policy| policy.name() == text).ok_or(())
    }
}

impl MemoryPlacement {
    /// Whether all of a part of memory that comes from `nodes` is there before the guest starts.
    #[must_use]
    pub fn is_prefaulted(&self, nodes: Option<&HostNodes>) -> bool {
        let bound = nodes.is_some_and(HostNodes::is_strict);
        self.prefault || self.lock || (bound && self.pages.pool_page_bytes().is_some())
    }
}

impl MemoryConfig {
    /// So many bytes, for the host to place.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            backing: MemoryBacking::Anonymous,
            placement: MemoryPlacement::default(),
            track_dirty_pages: false,
        }
    }

    pub(super) fn validate(&self, host: HostFacts) -> Result<(), ConfigError> {
        let bytes = self.size_bytes;
        if bytes == 0 {
            return Err(ConfigError::NoMemory);
        }
        if bytes > host.memory_bytes {
            return Err(ConfigError::MemoryBeyondHost { asked: bytes, host: host.memory_bytes });
        }
        if !bytes.is_multiple_of(MIB) {
            return Err(ConfigError::MemoryNotWholeMib { bytes });
        }
        self.validate_placement()
    }

    fn validate_placement(&self) -> Result<(), ConfigError> {
        let pages = self.placement.pages;
        if let Some(page) = pages.pool_page_bytes()
            && !self.size_bytes.is_multiple_of(page)
        {
            return Err(ConfigError::MemoryNotWholePages { bytes: self.size_bytes, pages });
        }
        let merges = self.placement.merge;
        if merges && (self.backing != MemoryBacking::Anonymous || pages.pool_page_bytes().is_some()) {
            return Err(ConfigError::MemoryCannotMerge);
        }
        self.placement.nodes.as_ref().map_or(Ok(()), HostNodes::validate)
    }
}

impl HostNodes {
    /// Whether memory may be on no others.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.policy != NodePolicy::Preferred
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        match self.policy {
            _ if self.nodes.is_empty() => Err(ConfigError::NoHostNodes),
            NodePolicy::Preferred if self.nodes.len() > 1 => {
                Err(ConfigError::OnePreferredNode { nodes: self.nodes.clone() })
            }
            _ => Ok(()),
        }
    }
}

/// The sizes on both sides of one that is no whole number of `unit`s, as far as there are any.
pub(super) fn whole_near(bytes: u64, unit: u64) -> String {
    let mib = |units: u64| units * (unit / MIB);
    match (bytes / unit, bytes.div_ceil(unit)) {
        (0, above) => format!("{}M", mib(above)),
        (below, above) => format!("{}M or {}M", mib(below), mib(above)),
    }
}
