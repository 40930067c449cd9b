//! The host's memory, as a machine on its way asks for it.

use std::cell::OnceCell;
use std::path::Path;

use super::facts::{NodeFacts, PoolFacts};
use super::id_list::IdList;
use super::limits::{Limit, LimitFacts};
use super::read::{self, Switch};
use super::topology;
use super::tree::{Tree, field_bytes};

/// What a placement is held against. Each thing is asked for only where it has a say, because a machine waits for the
/// answer. What the host does not tell is held against nobody.
pub(crate) trait HostMemory {
    /// Its online nodes.
    fn nodes(&self) -> &[NodeFacts];

    /// One of them.
    fn node(&self, id: u16) -> Option<&NodeFacts> {
        self.nodes().iter().find(|node| node.id == id)
    }

    /// The nodes that this process may use (its cpuset's).
    fn allowed_nodes(&self) -> Option<&IdList>;

    /// The pool of the whole host with pages of this size.
    fn pool(&self, page_bytes: u64) -> Option<PoolFacts>;

    /// The sizes of the pages of all pools, in bytes.
    fn pool_sizes(&self) -> Vec<u64>;

    /// The least limit of this process's control groups on what it may have of a pool.
    fn pool_limit(&self, page_bytes: u64) -> Option<Limit>;

    /// Theirs on what it may reserve of it.
    fn pool_reservation_limit(&self, page_bytes: u64) -> Option<Limit>;

    /// What can be had of the whole host's memory now, in bytes.
    fn available_bytes(&self) -> Option<u64>;

    /// How much this process may lock, in bytes; `None` for any amount.
    fn lockable_bytes(&self) -> Option<u64>;

    /// The least limit on memory of those control groups; a pool's pages are held against none.
    fn group_limit(&self) -> Option<Limit>;

    /// Whether anonymous memory can be made of transparent HugePages.
    fn thp(&self) -> Option<Switch>;

    /// Whether shared memory can.
    fn shmem_thp(&self) -> Option<Switch>;

    /// Whether pages are merged.
    fn ksm(&self) -> Option<Switch>;
}

/// The running host's, each file read when it is asked for.
#[derive(Debug)]
pub(crate) struct MemoryFiles {
    tree: Tree,
    nodes: OnceCell<Vec<NodeFacts>>,
    allowed_nodes: OnceCell<Option<IdList>>,
}

impl MemoryFiles {
    /// This host's.
    pub(crate) fn here() -> Self {
        Self::of(Tree::at(Path::new("/")))
    }

    fn of(tree: Tree) -> Self {
        Self { tree, nodes: OnceCell::new(), allowed_nodes: OnceCell::new() }
    }

    /// Those of a recorded host.
    #[cfg(test)]
    pub(crate) fn at(root: &Path) -> Self {
        Self::of(Tree::at(root))
    }
}

impl HostMemory for MemoryFiles {
    fn nodes(&self) -> &[NodeFacts] {
        self.nodes.get_or_init(|| topology::nodes(&self.tree))
    }

    fn allowed_nodes(&self) -> Option<&IdList> {
        self.allowed_nodes.get_or_init(|| LimitFacts::mems_allowed(&self.tree)).as_ref()
    }

    fn pool(&self, page_bytes: u64) -> Option<PoolFacts> {
        read::pool(&self.tree, read::POOLS, page_bytes)
    }

    fn pool_sizes(&self) -> Vec<u64> {
        read::pools(&self.tree, read::POOLS).iter().map(|pool| pool.page_bytes).collect()
    }

    fn pool_limit(&self, page_bytes: u64) -> Option<Limit> {
        LimitFacts::pool(&self.tree, page_bytes)
    }

    fn pool_reservation_limit(&self, page_bytes: u64) -> Option<Limit> {
        LimitFacts::pool_reservation(&self.tree, page_bytes)
    }

    fn available_bytes(&self) -> Option<u64> {
        field_bytes(&self.tree.text("proc/meminfo")?, "MemAvailable")
    }

    fn lockable_bytes(&self) -> Option<u64> {
        LimitFacts::lockable_bytes(&self.tree)
    }

    fn group_limit(&self) -> Option<Limit> {
        LimitFacts::memory_bytes(&self.tree)
    }

    fn thp(&self) -> Option<Switch> {
        read::thp(&self.tree)
    }

    fn shmem_thp(&self) -> Option<Switch> {
        let file = format!("{}/shmem_enabled", read::THP);
        Some(Switch { value: self.tree.choice(&file)?, file: format!("/{file}") })
    }

    fn ksm(&self) -> Option<Switch> {
        let run: u64 = self.tree.value(read::KSM_RUN)?;
        Some(Switch { value: run.to_string(), file: format!("/{}", read::KSM_RUN) })
    }
}

/// A host's memory that is all known.
#[cfg(test)]
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownMemory {
    pub(crate) nodes: Vec<NodeFacts>,
    pub(crate) allowed_nodes: Option<IdList>,
    pub(crate) pools: Vec<PoolFacts>,
    pub(crate) pool_limits: Vec<super::HugetlbLimit>,
    pub(crate) pool_reservation_limits: Vec<super::HugetlbLimit>,
    pub(crate) available_bytes: Option<u64>,
    pub(crate) lockable_bytes: Option<u64>,
    pub(crate) group_limit: Option<Limit>,
    pub(crate) thp: Option<Switch>,
    pub(crate) shmem_thp: Option<Switch>,
    pub(crate) ksm: Option<Switch>,
}

#[cfg(test)]
impl KnownMemory {
    /// What a husk would find that read these facts.
    pub(crate) fn of(facts: &super::Facts) -> Self {
        let super::Facts { cpu, memory, limits, .. } = facts;
        let switch = |value: &Option<String>, file: &str| {
            let file = format!("/sys/kernel/mm/{file}");
            value.clone().map(|value| Switch { value, file })
        };
        Self {
            nodes: cpu.nodes.clone(),
            allowed_nodes: limits.mems_allowed.clone().or_else(|| limits.cpuset_mems.clone()),
            pools: memory.pools.clone(),
            pool_limits: limits.hugetlb.clone(),
            pool_reservation_limits: limits.hugetlb_reserved.clone(),
            available_bytes: memory.available_bytes,
            lockable_bytes: limits.memlock_bytes.filter(|_| limits.ipc_lock != Some(true)),
            group_limit: limits.memory_bytes.clone(),
            thp: switch(&memory.thp, "transparent_hugepage/enabled"),
            shmem_thp: switch(&memory.shmem_thp, "transparent_hugepage/shmem_enabled"),
            ksm: switch(&memory.ksm.as_ref().map(|ksm| ksm.run.to_string()), "ksm/run"),
        }
    }

    fn of_size(limits: &[super::HugetlbLimit], page_bytes: u64) -> Option<Limit> {
        limits.iter().find(|limit| limit.page_bytes == page_bytes).map(|limit| limit.limit.clone())
    }
}

#[cfg(test)]
impl HostMemory for KnownMemory {
    fn nodes(&self) -> &[NodeFacts] {
        &self.nodes
    }

    fn allowed_nodes(&self) -> Option<&IdList> {
        self.allowed_nodes.as_ref()
    }

    fn pool(&self, page_bytes: u64) -> Option<PoolFacts> {
        self.pools.iter().find(|pool| pool.page_bytes == page_bytes).cloned()
    }

    fn pool_sizes(&self) -> Vec<u64> {
        self.pools.iter().map(|pool| pool.page_bytes).collect()
    }

    fn pool_limit(&self, page_bytes: u64) -> Option<Limit> {
        Self::of_size(&self.pool_limits, page_bytes)
    }

    fn pool_reservation_limit(&self, page_bytes: u64) -> Option<Limit> {
        Self::of_size(&self.pool_reservation_limits, page_bytes)
    }

    fn available_bytes(&self) -> Option<u64> {
        self.available_bytes
    }

    fn lockable_bytes(&self) -> Option<u64> {
        self.lockable_bytes
    }

    fn group_limit(&self) -> Option<Limit> {
        self.group_limit.clone()
    }

    fn thp(&self) -> Option<Switch> {
        self.thp.clone()
    }

    fn shmem_thp(&self) -> Option<Switch> {
        self.shmem_thp.clone()
    }

    fn ksm(&self) -> Option<Switch> {
        self.ksm.clone()
    }
}
