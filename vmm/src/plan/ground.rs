//! What a host can give to VMs.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use thiserror::Error;

use crate::config::firecracker::{BodyError, from_json};
use crate::host::{self, Facts, HugetlbLimit, IdList, Limit, LimitFacts, NodeFacts, PoolFacts};

/// Nodes, with the CPUs and memory that can be promised. CPUs that are offline, or outside of husk's cpuset, are not
/// there; neither is memory of nodes outside of it.
#[derive(Debug, Clone)]
pub struct Ground {
    pub(super) nodes: Vec<Node>,
    /// Memory of no pool that can be had of all nodes together, in bytes.
    pub(super) memory_bytes: u64,
    /// The control group's limits, on memory of no pool and on pools of this size.
    pub(super) limits: Vec<(Option<u64>, Limit)>,
    /// Free pages of the whole host by size, less those that are reserved: the kernel does not tell of which node.
    pub(super) pools: BTreeMap<u64, u64>,
    /// Whether the kernel tells of nodes.
    pub(super) numa: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) id: u16,
    pub(super) cores: Vec<Core>,
    /// What can be had without HugePages, in bytes: free, or free once files' caches give way.
    pub(super) memory_bytes: u64,
    pub(super) pools: Vec<PoolFacts>,
    pub(super) distances: BTreeMap<u16, u16>,
}

#[derive(Debug, Clone)]
pub(crate) struct Core {
    /// Its threads, at least one.
    pub(crate) cpus: Vec<u16>,
    /// Whether the scheduler leaves all of them alone.
    pub(super) isolated: bool,
    /// Which of the host's last-level caches it has.
    pub(super) cache: usize,
}

/// A description of a host that no host can have.
#[derive(Debug, Error)]
pub enum GroundError {
    /// Not what `husk host --json` prints.
    #[error(transparent)]
    Shape(#[from] BodyError),
    /// Two nodes of one number.
    #[error("facts.cpu.nodes: node {id} is there twice: record the host again (husk host --json)")]
    NodeTwice {
        /// The number.
        id: u16,
    },
    /// A CPU in two places.
    #[error("facts.cpu.{list}: CPU {cpu} is there twice: record the host again (husk host --json)")]
    CpuTwice {
        /// Of what kind they are.
        list: &'static str,
        /// The CPU.
        cpu: u16,
    },
    /// No CPU at all.
    #[error("facts.cpu.online: has no CPU that husk may use: record the host again (husk host --json)")]
    NoCpu,
}

/// What `husk host --json` prints, as far as a plan needs it.
#[derive(Debug, Deserialize)]
struct Document {
    facts: Told,
}

#[derive(Debug, Deserialize)]
struct Told {
    cpu: Cpu,
    memory: Memory,
    limits: Limits,
}

#[derive(Debug, Deserialize)]
struct Cpu {
    online: Option<IdList>,
    isolated: Option<IdList>,
    cores: Vec<IdList>,
    l3: Vec<IdList>,
    nodes: Vec<NodeFacts>,
}

#[derive(Debug, Deserialize)]
struct Memory {
    available_bytes: Option<u64>,
    pools: Vec<PoolFacts>,
}

#[derive(Debug, Deserialize)]
struct Limits {
    cpuset_cpus: Option<IdList>,
    cpuset_mems: Option<IdList>,
    #[serde(default)]
    memory_bytes: Option<Limit>,
    #[serde(default)]
    hugetlb: Vec<HugetlbLimit>,
    #[serde(default)]
    hugetlb_reserved: Vec<HugetlbLimit>,
}

impl Limits {
    fn of(limits: LimitFacts) -> Self {
        let LimitFacts { cpuset_cpus, cpuset_mems, memory_bytes, hugetlb, hugetlb_reserved, .. } = limits;
        Self { cpuset_cpus, cpuset_mems, memory_bytes, hugetlb, hugetlb_reserved }
    }
}

impl Ground {
    /// What a host with these facts can give.
    ///
    /// # Errors
    /// The facts contradict each other.
    pub fn of(facts: &Facts) -> Result<Self, GroundError> {
        let (cpu, limits) = (&facts.cpu, &facts.limits);
        Self::from_told(Told {
            cpu: Cpu {
                online: cpu.online.clone(),
                isolated: cpu.isolated.clone(),
                cores: cpu.cores.clone(),
                l3: cpu.l3.clone(),
                nodes: cpu.nodes.clone(),
            },
            memory: Memory { available_bytes: facts.memory.available_bytes, pools: facts.memory.pools.clone() },
            limits: Limits::of(limits.clone()),
        })
    }

    /// What this host can give of its CPUs; its memory is not looked at.
    pub(crate) fn of_cpus() -> Result<Self, GroundError> {
        let (cpu, limits) = host::cpus_and_limits();
        Self::from_told(Told {
            cpu: Cpu { online: cpu.online, isolated: cpu.isolated, cores: cpu.cores, l3: cpu.l3, nodes: cpu.nodes },
            memory: Memory { available_bytes: None, pools: Vec::new() },
            limits: Limits::of(limits),
        })
    }

    /// The cores of some nodes, or of all.
    pub(crate) fn cores_of(&self, nodes: Option<&IdList>) -> Vec<Core> {
        let asked = |node: &&Node| nodes.is_none_or(|nodes| nodes.contains(node.id));
        self.nodes.iter().filter(asked).flat_map(|node| node.cores.iter().cloned()).collect()
    }

    /// The numbers of the nodes.
    pub(crate) fn node_ids(&self) -> impl Iterator<Item = u16> {
        self.nodes.iter().map(|node| node.id)
    }

    /// What the host can give that printed `text` for `husk host --json`.
    ///
    /// # Errors
    /// It is not what that command prints, or contradicts itself.
    pub fn parse(text: &str) -> Result<Self, GroundError> {
        Self::from_told(from_json::<Document>(text)?.facts)
    }

    fn from_told(Told { cpu, memory, limits }: Told) -> Result<Self, GroundError> {
        let numa = !cpu.nodes.is_empty();
        let online = cpu.online.unwrap_or_default();
        let allowed = limits.cpuset_cpus.map_or_else(|| online.clone(), |cpus| cpus.and(&online));
        if allowed.is_empty() {
            return Err(GroundError::NoCpu);
        }
        let available = memory.available_bytes.unwrap_or(u64::MAX);
        let told = if numa { cpu.nodes } else { vec![whole_host(online, available, &memory.pools)] };
        no_node_twice(&told)?;
        no_cpu_twice("nodes", told.iter().map(|node| &node.cpus))?;
        no_cpu_twice("cores", &cpu.cores)?;
        no_cpu_twice("l3", &cpu.l3)?;
        let isolated = cpu.isolated.unwrap_or_default();
        let node = |facts: NodeFacts| {
            let cores = cores(&facts.cpus.and(&allowed), &isolated, &cpu.cores, &cpu.l3);
            let may_use = limits.cpuset_mems.as_ref().is_none_or(|nodes| nodes.contains(facts.id));
            let free = facts.available_bytes();
            Node {
                id: facts.id,
                cores,
                memory_bytes: if may_use { free.min(available) } else { 0 },
                pools: if may_use { facts.pools } else { Vec::new() },
                distances: facts.distances,
            }
        };
        let mut nodes: Vec<Node> = told.into_iter().map(node).collect();
        nodes.sort_by_key(|node| node.id);
        let pools = memory.pools.iter().map(|pool| (pool.page_bytes, pool.available())).collect();
        let of_pools = limits.hugetlb.into_iter().chain(limits.hugetlb_reserved);
        let of_pools = of_pools.map(|HugetlbLimit { page_bytes, limit }| (Some(page_bytes), limit));
        let limits = limits.memory_bytes.map(|limit| (None, limit)).into_iter().chain(of_pools).collect();
        Ok(Self { nodes, memory_bytes: available, limits, pools, numa })
    }
}

/// A host whose kernel tells of no nodes.
fn whole_host(cpus: IdList, available: u64, pools: &[PoolFacts]) -> NodeFacts {
    NodeFacts {
        id: 0,
        cpus,
        total_bytes: None,
        free_bytes: Some(available),
        file_cache_bytes: None,
        distances: BTreeMap::new(),
        pools: pools.to_vec(),
    }
}

/// A node's cores; a CPU of which no core is told is one.
fn cores(cpus: &IdList, isolated: &IdList, cores: &[IdList], caches: &[IdList]) -> Vec<Core> {
    let of_core: BTreeMap<u16, usize> = index(cores);
    let of_cache = index(caches);
    let mut grouped = BTreeMap::<(usize, u16), Vec<u16>>::new();
    for cpu in cpus.iter() {
        // CPUs of no core sort behind, each for itself.
        let key = of_core.get(&cpu).map_or((usize::MAX, cpu), |&core| (core, 0));
        grouped.entry(key).or_default().push(cpu);
    }
    let core = |cpus: Vec<u16>| Core {
        isolated: cpus.iter().all(|&cpu| isolated.contains(cpu)),
        cache: cpus.first().and_then(|cpu| of_cache.get(cpu)).copied().unwrap_or(usize::MAX),
        cpus,
    };
    let mut cores: Vec<Core> = grouped.into_values().map(core).collect();
    cores.sort_by(|one, other| one.cpus.cmp(&other.cpus));
    cores
}

/// Which of the lists each CPU is in.
fn index(lists: &[IdList]) -> BTreeMap<u16, usize> {
    lists.iter().enumerate().flat_map(|(number, list)| list.iter().map(move |cpu| (cpu, number))).collect()
}

fn no_node_twice(nodes: &[NodeFacts]) -> Result<(), GroundError> {
    let mut seen = BTreeSet::new();
    match nodes.iter().find(|node| !seen.insert(node.id)) {
        Some(node) => Err(GroundError::NodeTwice { id: node.id }),
        None => Ok(()),
    }
}

fn no_cpu_twice<'a>(list: &'static str, lists: impl IntoIterator<Item = &'a IdList>) -> Result<(), GroundError> {
    let mut seen = BTreeSet::new();
    let twice = lists.into_iter().flat_map(IdList::iter).find(|&cpu| !seen.insert(cpu));
    twice.map_or(Ok(()), |cpu| Err(GroundError::CpuTwice { list, cpu }))
}
