//! The facts: each source its own small function.

use std::collections::BTreeMap;
use std::path::Path;

use super::facts::{
    CgroupV2Facts, CpuFacts, Facts, IoFacts, IsolationFacts, KsmFacts, KvmFacts, MemoryFacts, NodeFacts, PoolFacts,
    SeccompFacts, Virtualization,
};
use super::id_list::IdList;
use super::probe::Probes;
use super::tree::{Tree, field, field_bytes};

const CPUS: &str = "sys/devices/system/cpu";
const NODES: &str = "sys/devices/system/node";
const POOLS: &str = "sys/kernel/mm/hugepages";
const THP: &str = "sys/kernel/mm/transparent_hugepage";

impl Facts {
    /// Asks the running host. It opens devices, which loads their modules where the host does that on demand, and makes
    /// a VM, a ring and descriptors that are gone again when it returns.
    #[must_use]
    pub fn read() -> Self {
        Self::from_parts(&Tree::at(Path::new("/")), Probes::run())
    }

    /// The facts of a host whose files are `tree` and whose kernel answered `probes`.
    pub(super) fn from_parts(tree: &Tree, probes: Probes) -> Self {
        Self {
            kernel: tree.text("proc/sys/kernel/osrelease"),
            // With CONFIG_MODULES, /proc/modules is there, also when no module is loaded.
            loadable_modules: tree.text("proc/modules").is_some(),
            misc_devices: misc_devices(tree),
            cpu: cpu(tree),
            memory: memory(tree, &probes),
            io: io(tree, &probes),
            isolation: isolation(tree, &probes),
            kvm: kvm(tree, probes),
        }
    }
}

/// The online nodes, and the HugePage pools of the whole host: what files tell, and nothing opened beside them.
pub(crate) fn nodes_and_pools() -> (Vec<NodeFacts>, Vec<PoolFacts>) {
    let tree = Tree::at(Path::new("/"));
    (nodes(&tree), pools(&tree, POOLS))
}

/// The nodes that this process may have memory of.
pub(crate) fn allowed_memory_nodes() -> Option<IdList> {
    let status = Tree::at(Path::new("/")).text("proc/self/status")?;
    field(&status, "Mems_allowed_list")?.parse().ok()
}

fn misc_devices(tree: &Tree) -> BTreeMap<String, u32> {
    let text = tree.text("proc/misc").unwrap_or_default();
    let device = |line: &str| {
        let (minor, name) = line.trim_start().split_once(' ')?;
        Some((name.to_owned(), minor.parse().ok()?))
    };
    text.lines().filter_map(device).collect()
}

fn kvm(tree: &Tree, probes: Probes) -> KvmFacts {
    let mut vendor_modules = tree.names("sys/module");
    vendor_modules.retain(|name| name.starts_with("kvm_"));
    KvmFacts {
        device: probes.kvm,
        api_version: probes.kvm_api_version,
        create_vm: probes.create_vm,
        vendor_modules,
        capabilities: probes.capabilities,
    }
}

fn cpu(tree: &Tree) -> CpuFacts {
    let info = tree.text("proc/cpuinfo").unwrap_or_default();
    let word = |key| field(&info, key).map(str::to_owned);
    CpuFacts {
        vendor: word("vendor_id"),
        model: word("model name"),
        virtualization: virtualization(&info),
        present: tree.value(&format!("{CPUS}/present")),
        online: tree.value(&format!("{CPUS}/online")).or_else(|| numbered(&info)),
        isolated: tree.value(&format!("{CPUS}/isolated")),
        nohz_full: tree.value(&format!("{CPUS}/nohz_full")),
        nodes: nodes(tree),
    }
}

fn virtualization(cpuinfo: &str) -> Option<Virtualization> {
    field(cpuinfo, "flags")?.split(' ').find_map(|flag| match flag {
        "vmx" => Some(Virtualization::Vmx),
        "svm" => Some(Virtualization::Svm),
        _ => None,
    })
}

/// The CPUs that /proc/cpuinfo numbers; `None` if it numbers none.
fn numbered(cpuinfo: &str) -> Option<IdList> {
    let cpus: IdList = cpuinfo.lines().filter_map(|line| field(line, "processor")?.parse::<u16>().ok()).collect();
    (!cpus.is_empty()).then_some(cpus)
}

fn nodes(tree: &Tree) -> Vec<NodeFacts> {
    let online: IdList = tree.value(&format!("{NODES}/online")).unwrap_or_default();
    let node = |id| {
        let folder = format!("{NODES}/node{id}");
        let meminfo = tree.text(&format!("{folder}/meminfo")).unwrap_or_default();
        let bytes = |key| field_bytes(&meminfo, &format!("Node {id} {key}"));
        NodeFacts {
            id,
            cpus: tree.value(&format!("{folder}/cpulist")).unwrap_or_default(),
            total_bytes: bytes("MemTotal"),
            free_bytes: bytes("MemFree"),
            pools: pools(tree, &format!("{folder}/hugepages")),
        }
    };
    online.iter().map(node).collect()
}

fn pools(tree: &Tree, folder: &str) -> Vec<PoolFacts> {
    let pool = |name: String| {
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let pages = |what| tree.value(&format!("{folder}/{name}/{what}"));
        Some(PoolFacts {
            page_bytes: kib.checked_mul(1024)?,
            total: pages("nr_hugepages")?,
            free: pages("free_hugepages")?,
            reserved: pages("resv_hugepages"),
        })
    };
    let mut pools: Vec<_> = tree.names(folder).into_iter().filter_map(pool).collect();
    pools.sort_by_key(|pool| pool.page_bytes);
    pools
}

fn memory(tree: &Tree, probes: &Probes) -> MemoryFacts {
    let info = tree.text("proc/meminfo").unwrap_or_default();
    MemoryFacts {
        total_bytes: field_bytes(&info, "MemTotal"),
        available_bytes: field_bytes(&info, "MemAvailable"),
        pools: pools(tree, POOLS),
        thp: thp(tree),
        // The shared memory that husk uses is memfds, which the sizes' own switches (for shared anonymous memory) leave
        // alone.
        shmem_thp: tree.choice(&format!("{THP}/shmem_enabled")),
        overcommit: tree.value("proc/sys/vm/overcommit_memory"),
        swap_total_bytes: field_bytes(&info, "SwapTotal"),
        swap_free_bytes: field_bytes(&info, "SwapFree"),
        ksm: tree
            .value("sys/kernel/mm/ksm/run")
            .map(|run| KsmFacts { run, pages_sharing: tree.value("sys/kernel/mm/ksm/pages_sharing") }),
        memfd: probes.memfd,
        userfaultfd: probes.userfaultfd,
        unprivileged_userfaultfd: tree.value("proc/sys/vm/unprivileged_userfaultfd"),
    }
}

/// The mode for pages of the size that one page table entry of the next level maps. Since Linux 6.8 each size has its
/// own switch, which counts unless it says `inherit`.
fn thp(tree: &Tree) -> Option<String> {
    let own = tree.value::<u64>(&format!("{THP}/hpage_pmd_size")).and_then(|bytes| {
        let switch = format!("{THP}/hugepages-{}kB/enabled", bytes / 1024);
        tree.choice(&switch).filter(|mode| mode != "inherit")
    });
    own.or_else(|| tree.choice(&format!("{THP}/enabled")))
}

fn io(tree: &Tree, probes: &Probes) -> IoFacts {
    IoFacts {
        io_uring: probes.io_uring,
        io_uring_disabled: tree.value("proc/sys/kernel/io_uring_disabled"),
        tun: probes.tun,
        vhost_net: probes.vhost_net,
        vhost_vsock: probes.vhost_vsock,
    }
}

fn isolation(tree: &Tree, probes: &Probes) -> IsolationFacts {
    let (cgroup_v2, cgroup_v1) = cgroups(tree);
    let status = tree.text("proc/self/status").unwrap_or_default();
    let mode = field(&status, "Seccomp").and_then(|mode| mode.parse().ok());
    IsolationFacts {
        cgroup_v2,
        cgroup_v1,
        seccomp: mode.map(|mode| SeccompFacts {
            mode,
            actions: tree.words("proc/sys/kernel/seccomp/actions_avail").unwrap_or_default(),
        }),
        landlock: probes.landlock,
        landlock_abi: probes.landlock_abi,
    }
}

/// What is mounted of either version. A version 1 mount names its controllers among its options; which of the options
/// are controllers, /proc/cgroups knows.
fn cgroups(tree: &Tree) -> (Option<CgroupV2Facts>, Vec<String>) {
    let known = tree.text("proc/cgroups").unwrap_or_default();
    let known: Vec<&str> = known.lines().filter_map(|line| line.split('\t').next()).collect();
    let mounts = tree.text("proc/self/mounts").unwrap_or_default();
    let (mut v2, mut v1) = (None, Vec::new());
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(mount), Some(kind), Some(options)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        match kind {
            "cgroup" => v1.extend(options.split(',').filter(|word| known.contains(word)).map(str::to_owned)),
            "cgroup2" if v2.is_none() => {
                v2 = Some(CgroupV2Facts {
                    mount: mount.to_owned(),
                    controllers: tree.words(&format!("{mount}/cgroup.controllers")).unwrap_or_default(),
                });
            }
            _ => {}
        }
    }
    v1.sort();
    v1.dedup();
    (v2, v1)
}
