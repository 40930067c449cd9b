//! The facts: each source its own small function.

use std::collections::BTreeMap;
use std::path::Path;

use super::devices::{self, Asked, AskedDisk, AskedError, DiskFacts, NetFacts};
use super::facts::{
    CgroupV2Facts, CpuFacts, Facts, IoFacts, IsolationFacts, KsmFacts, KvmFacts, MemoryFacts, PoolFacts, SeccompFacts,
    Virtualization,
};
use super::id_list::IdList;
use super::limits::LimitFacts;
use super::probe::Probes;
use super::topology::{self, CPUS};
use super::tree::{Tree, field, field_bytes};

pub(super) const POOLS: &str = "sys/kernel/mm/hugepages";
pub(super) const KSM_RUN: &str = "sys/kernel/mm/ksm/run";
pub(super) const THP: &str = "sys/kernel/mm/transparent_hugepage";

impl Facts {
    /// Asks the running host. It opens devices, which loads their modules where the host does that on demand, and makes
    /// a VM, a ring and descriptors that are gone again when it returns.
    ///
    /// # Errors
    /// Something that is asked about is not there.
    pub fn read(asked: &Asked) -> Result<Self, AskedError> {
        Self::from_parts(&Tree::at(Path::new("/")), Probes::run(), asked.probe()?, &asked.nets)
    }

    /// The facts of a host whose files are `tree` and whose kernel answered `probes`.
    pub(super) fn from_parts(
        tree: &Tree,
        probes: Probes,
        disks: Vec<AskedDisk>,
        nets: &[String],
    ) -> Result<Self, AskedError> {
        let (disks, nets) = (devices::disks(tree, disks), devices::nets(tree, nets)?);
        let memory = memory(tree, &probes);
        let page_sizes: Vec<u64> = memory.pools.iter().map(|pool| pool.page_bytes).collect();
        Ok(Self {
            kernel: tree.text("proc/sys/kernel/osrelease"),
            // With CONFIG_MODULES, /proc/modules is there, also when no module is loaded.
            loadable_modules: tree.text("proc/modules").is_some(),
            misc_devices: misc_devices(tree),
            cpu: cpu(tree),
            memory,
            io: io(tree, &probes, disks, nets),
            isolation: isolation(tree, &probes),
            limits: LimitFacts::read(tree, &page_sizes),
            kvm: kvm(tree, probes),
            // Last: it has what all of the above came upon.
            malformed: tree.malformed(),
        })
    }
}

/// The host's CPUs and what husk may have of them.
pub(crate) fn cpus_and_limits() -> (CpuFacts, LimitFacts) {
    let tree = Tree::at(Path::new("/"));
    (cpu(&tree), LimitFacts::read(&tree, &[]))
}

/// A switch of the kernel's and the file that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switch {
    /// What it is set to.
    pub value: String,
    /// Where.
    pub file: String,
}

/// The CPUs that the scheduler uses.
pub(crate) fn online_cpus() -> Option<IdList> {
    Tree::at(Path::new("/")).value(&format!("{CPUS}/online"))
}

/// The CPUs of husk's cpuset.
pub(crate) fn allowed_cpus() -> Option<IdList> {
    LimitFacts::cpuset_cpus(&Tree::at(Path::new("/")))
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
    let online = tree.value(&format!("{CPUS}/online")).or_else(|| numbered(&info));
    let listed = online.clone().unwrap_or_default();
    CpuFacts {
        vendor: word("vendor_id"),
        model: word("model name"),
        virtualization: virtualization(&info),
        present: tree.value(&format!("{CPUS}/present")),
        online,
        isolated: tree.value(&format!("{CPUS}/isolated")),
        nohz_full: tree.value(&format!("{CPUS}/nohz_full")),
        smt: tree.text(&format!("{CPUS}/smt/control")),
        cores: topology::cores(tree, &listed),
        l3: topology::l3(tree, &listed),
        governors: topology::governors(tree, &listed),
        nodes: topology::nodes(tree),
        numa_balancing: tree.value("proc/sys/kernel/numa_balancing"),
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

/// The pools of the whole host, or of a node, whose folder tells less.
pub(super) fn pools(tree: &Tree, folder: &str) -> Vec<PoolFacts> {
    let bytes = |name: &String| {
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        kib.checked_mul(1024)
    };
    let mut sizes: Vec<u64> = tree.names(folder).iter().filter_map(bytes).collect();
    sizes.sort_unstable();
    sizes.into_iter().filter_map(|page_bytes| pool(tree, folder, page_bytes)).collect()
}

/// That of one size.
pub(super) fn pool(tree: &Tree, folder: &str, page_bytes: u64) -> Option<PoolFacts> {
    let folder = format!("{folder}/hugepages-{}kB", page_bytes / 1024);
    let pages = |what| tree.value(&format!("{folder}/{what}"));
    Some(PoolFacts {
        page_bytes,
        total: pages("nr_hugepages")?,
        free: pages("free_hugepages")?,
        reserved: pages("resv_hugepages"),
        surplus: pages("surplus_hugepages"),
        overcommit: pages("nr_overcommit_hugepages"),
    })
}

fn memory(tree: &Tree, probes: &Probes) -> MemoryFacts {
    let info = tree.text("proc/meminfo").unwrap_or_default();
    MemoryFacts {
        total_bytes: field_bytes(&info, "MemTotal"),
        available_bytes: field_bytes(&info, "MemAvailable"),
        pools: pools(tree, POOLS),
        thp: thp(tree).map(|switch| switch.value),
        thp_defrag: tree.choice(&format!("{THP}/defrag")),
        thp_sizes: thp_sizes(tree),
        // The shared memory that husk uses is memfds, which the sizes' own switches (for shared anonymous memory) leave
        // alone.
        shmem_thp: tree.choice(&format!("{THP}/shmem_enabled")),
        overcommit: tree.value("proc/sys/vm/overcommit_memory"),
        swap_total_bytes: field_bytes(&info, "SwapTotal"),
        swap_free_bytes: field_bytes(&info, "SwapFree"),
        ksm: tree.value(KSM_RUN).map(|run| KsmFacts {
            run,
            pages_sharing: tree.value("sys/kernel/mm/ksm/pages_sharing"),
            merge_across_nodes: tree.value("sys/kernel/mm/ksm/merge_across_nodes"),
        }),
        memfd: probes.memfd,
        userfaultfd: probes.userfaultfd,
        unprivileged_userfaultfd: tree.value("proc/sys/vm/unprivileged_userfaultfd"),
    }
}

/// The mode for pages of the size that one page table entry of the next level maps. Since Linux 6.8 each size has its
/// own switch, which counts unless it says `inherit`.
pub(super) fn thp(tree: &Tree) -> Option<Switch> {
    let own = tree
        .value::<u64>(&format!("{THP}/hpage_pmd_size"))
        .map(|bytes| format!("{THP}/hugepages-{}kB/enabled", bytes / 1024));
    let all = format!("{THP}/enabled");
    let switch = |file: String| Some(Switch { value: tree.choice(&file)?, file: format!("/{file}") });
    own.and_then(switch).filter(|own| own.value != "inherit").or_else(|| switch(all))
}

/// Each size's own switch.
fn thp_sizes(tree: &Tree) -> BTreeMap<u64, String> {
    let size = |name: String| {
        let kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some((kib, tree.choice(&format!("{THP}/{name}/enabled"))?))
    };
    tree.names(THP).into_iter().filter_map(size).collect()
}

fn io(tree: &Tree, probes: &Probes, disks: Vec<DiskFacts>, nets: Vec<NetFacts>) -> IoFacts {
    IoFacts {
        io_uring: probes.io_uring,
        io_uring_disabled: tree.value("proc/sys/kernel/io_uring_disabled"),
        tun: probes.tun,
        vhost_net: probes.vhost_net,
        vhost_vsock: probes.vhost_vsock,
        disks,
        nets,
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
