//! What a host cannot honour, in words.

use thiserror::Error;

use super::shortage::{Shortage, sentence};
use crate::config::{MIB, Pages};
use crate::host::IdList;
use crate::placement::ApplyError;

/// A placement that the host cannot honour, with what would do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlacementError {
    /// The host has no such pages.
    #[error("memory: pages: this host has no HugePages of {pages}: it has {}", sizes(available))]
    NoSuchPages {
        /// What was asked.
        pages: Pages,
        /// The sizes that there are, in bytes.
        available: Vec<u64>,
    },
    /// A pool has too few pages.
    #[error("memory: pages: {}: {mend}", sentence(&format!("HugePages of {pages}"), shortages))]
    PoolTooSmall {
        /// What was asked.
        pages: Pages,
        /// Where, and how many.
        shortages: Vec<Shortage>,
        /// The commands that add them.
        mend: String,
    },
    /// A pool that had the pages when it was counted.
    #[error(
        "memory: pages: somebody else took HugePages of {pages} after they were counted: add some, and start again"
    )]
    PoolTaken {
        /// What was asked.
        pages: Pages,
    },
    /// More of a pool's pages than the control group may have.
    #[error("memory: pages: husk's control group may have {} MiB of HugePages of {pages} ({file}) and the guest has {}: give it less, or: echo {needed} > {file}", limit / MIB, needed / MIB)]
    PoolLimit {
        /// What was asked.
        pages: Pages,
        /// The limit, in bytes.
        limit: u64,
        /// Where it is set.
        file: String,
        /// The guest's memory, in bytes.
        needed: u64,
    },
    /// Transparent HugePages that the kernel makes none of.
    #[error(
        "memory: pages: this host makes no transparent HugePages of such memory ({file} is {mode}): use another kind, or: echo {advised} > {file}"
    )]
    NoTransparent {
        /// What it is set to.
        mode: String,
        /// Where.
        file: String,
        /// What would do.
        advised: &'static str,
    },
    /// Merging that does not happen.
    #[error("memory: merge: this host merges no pages now: leave out merge, or: echo 1 > {file}")]
    NoMerging {
        /// The file that says so.
        file: String,
    },
    /// What the kernel did not do when it came to it.
    #[error(transparent)]
    Refused(#[from] ApplyError),
    /// A node that is not there.
    #[error("memory: nodes: the host has no node {node}: its nodes are {online}")]
    NoSuchNode {
        /// What was asked.
        node: u16,
        /// What there is.
        online: IdList,
    },
    /// A node without memory.
    #[error("memory: nodes: node {node} has no memory: use {with_memory}")]
    NodeWithoutMemory {
        /// What was asked.
        node: u16,
        /// The nodes that have some.
        with_memory: IdList,
    },
    /// A node that this process may not use.
    #[error(
        "memory: nodes: husk may not use node {node}: its cpuset allows {allowed}: widen cpuset.mems of its cgroup"
    )]
    NodeForbidden {
        /// What was asked.
        node: u16,
        /// What it may use.
        allowed: IdList,
    },
    /// Nodes that are smaller than the guest.
    #[error("memory: nodes: node {nodes} has {} MiB and the guest needs {}: give it less, or more nodes", has / MIB, needed / MIB)]
    NodesTooSmall {
        /// What was asked.
        nodes: IdList,
        /// Their memory, in bytes.
        has: u64,
        /// The guest's, in bytes.
        needed: u64,
    },
    /// More memory at once than is free.
    #[error("memory: prefault: {}: free some there, or give the guest less", sentence("MiB", shortages))]
    NotFree {
        /// Where, and how much, in MiB.
        shortages: Vec<Shortage>,
    },
    /// More memory than the control group may have.
    #[error("memory: husk's control group may have {} MiB ({file}) and the guest takes {} with what maps it: give it less, or: echo {needed} > {file}", limit / MIB, needed / MIB)]
    GroupLimit {
        /// The limit, in bytes.
        limit: u64,
        /// Where it is set.
        file: String,
        /// What the guest takes of it, in bytes.
        needed: u64,
    },
    /// More memory than this process may lock.
    #[error("memory: lock: husk may lock {} KiB (RLIMIT_MEMLOCK) and the guest has {}: ulimit -l {}", limit / 1024, needed / 1024, needed / 1024)]
    LockLimit {
        /// The limit, in bytes.
        limit: u64,
        /// The guest's memory, in bytes.
        needed: u64,
    },
}

fn sizes(bytes: &[u64]) -> String {
    if bytes.is_empty() {
        return "none".to_owned();
    }
    bytes.iter().map(|bytes| format!("{}M", bytes / MIB)).collect::<Vec<_>>().join(" and ")
}
