//! What a host has, as plain data. `None` says that the host does not tell: the file or the line is not there.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};

use super::devices::{DiskFacts, NetFacts};
use super::id_list::IdList;
use super::limits::LimitFacts;

/// A whole host. The field names are those of `husk host --json` and stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// The kernel's release, such as `6.12.9`.
    pub kernel: Option<String>,
    /// Whether it can load modules.
    pub loadable_modules: bool,
    /// Miscellaneous devices whose drivers are there, and their minor numbers (/proc/misc). Their nodes in /dev may be
    /// there without the driver, or, in a container, not there with it.
    pub misc_devices: BTreeMap<String, u32>,
    /// The hypervisor.
    pub kvm: KvmFacts,
    /// Processors and nodes.
    pub cpu: CpuFacts,
    /// Memory and how it can be had.
    pub memory: MemoryFacts,
    /// What disks and networks are served with.
    pub io: IoFacts,
    /// What keeps a VM apart from the host.
    pub isolation: IsolationFacts,
    /// What husk itself is held to.
    pub limits: LimitFacts,
    /// Files that are there and hold something else than they should, and what is wrong with each.
    pub malformed: BTreeMap<String, String>,
}

/// What came of asking the kernel for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Attempt {
    /// It gave it.
    Works,
    /// It refused.
    Fails {
        /// With this error number.
        errno: i32,
    },
}

impl Facts {
    /// The command that makes the node of a miscellaneous device whose driver is there.
    pub(super) fn mknod(&self, device: &str, path: &str) -> Option<String> {
        const MISC_MAJOR: u32 = 10;
        let minor = self.misc_devices.get(device)?;
        Some(format!("mknod {path} c {MISC_MAJOR} {minor}"))
    }
}

impl Attempt {
    /// The outcome of an attempt; an error with no number counts as EIO.
    pub fn of<T>(result: &io::Result<T>) -> Self {
        match result {
            Ok(_) => Self::Works,
            Err(error) => Self::Fails { errno: error.raw_os_error().unwrap_or(libc::EIO) },
        }
    }

    /// In the words of a table.
    #[must_use]
    pub fn describe(self) -> String {
        match self {
            Self::Works => "works".to_owned(),
            Self::Fails { errno: libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::ENOSYS } => "absent".to_owned(),
            Self::Fails { errno } => {
                let text = io::Error::from_raw_os_error(errno).to_string();
                text.split(" (os error").next().unwrap_or_default().to_lowercase()
            }
        }
    }
}

/// What /dev/kvm says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KvmFacts {
    /// Opening /dev/kvm for reading and writing.
    pub device: Attempt,
    /// KVM_GET_API_VERSION, 12 on every kernel since 2.6.22.
    pub api_version: Option<i32>,
    /// KVM_CREATE_VM.
    pub create_vm: Option<Attempt>,
    /// The modules beside `kvm` itself, such as `kvm_intel`.
    pub vendor_modules: Vec<String>,
    /// KVM_CHECK_EXTENSION by name, as the device itself (and not a VM) answers it. Empty without the device.
    pub capabilities: BTreeMap<&'static str, i32>,
}

/// The processor's own support of virtual machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Virtualization {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
}

/// Processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CpuFacts {
    /// `GenuineIntel`, `AuthenticAMD`, ...
    pub vendor: Option<String>,
    /// Brand string.
    pub model: Option<String>,
    /// What /proc/cpuinfo's flags say; `None` if they name neither.
    pub virtualization: Option<Virtualization>,
    /// CPUs that are plugged in.
    pub present: Option<IdList>,
    /// CPUs that the scheduler uses.
    pub online: Option<IdList>,
    /// CPUs that the scheduler leaves alone (`isolcpus=`, cpuset partitions).
    pub isolated: Option<IdList>,
    /// CPUs without a periodic tick.
    pub nohz_full: Option<IdList>,
    /// Whether cores run more than one thread: `on`, `off`, `forceoff`, `notsupported`, `notimplemented`.
    pub smt: Option<String>,
    /// The online CPUs of each core. Empty when the kernel does not tell.
    pub cores: Vec<IdList>,
    /// The online CPUs of each last-level cache. Empty when the kernel does not tell.
    pub l3: Vec<IdList>,
    /// Frequency governors and the CPUs under each. Empty where something else than the kernel governs.
    pub governors: BTreeMap<String, IdList>,
    /// Online NUMA nodes. Empty when the kernel does not tell.
    pub nodes: Vec<NodeFacts>,
    /// kernel.numa_balancing: 0 leaves pages and threads where they are.
    pub numa_balancing: Option<u64>,
}

/// A NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Its number.
    pub id: u16,
    /// Its CPUs; empty for a node that is memory alone.
    pub cpus: IdList,
    /// Its memory, in bytes.
    pub total_bytes: Option<u64>,
    /// What nobody uses of it, in bytes. Page cache counts as used.
    pub free_bytes: Option<u64>,
    /// What files have in its page cache, in bytes; it gives way.
    pub file_cache_bytes: Option<u64>,
    /// How far each online node's memory is from its CPUs; 10 is its own.
    pub distances: BTreeMap<u16, u16>,
    /// Its share of the HugePage pools.
    pub pools: Vec<PoolFacts>,
}

/// HugePages of one size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolFacts {
    /// Size of one page, in bytes.
    pub page_bytes: u64,
    /// Pages.
    pub total: u64,
    /// Pages that hold nothing.
    pub free: u64,
    /// Free pages that are promised to somebody. The kernel does not tell it by node.
    pub reserved: Option<u64>,
    /// Pages beyond the pool's asked size, which go when they are given back.
    pub surplus: Option<u64>,
    /// How many pages the pool may grow by on demand. The kernel tells it for the whole host alone.
    pub overcommit: Option<u64>,
}

impl NodeFacts {
    /// Memory that can be had now, in bytes: free, or free once the page cache gives way.
    #[must_use]
    pub fn available_bytes(&self) -> u64 {
        self.free_bytes.unwrap_or(0).saturating_add(self.file_cache_bytes.unwrap_or(0))
    }
}

impl PoolFacts {
    /// Pages that can be had now.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.free.saturating_sub(self.reserved.unwrap_or(0))
    }

    /// Those, and what the pool may grow by on demand.
    #[must_use]
    pub fn grown(&self) -> u64 {
        let growth = self.overcommit.unwrap_or(0).saturating_sub(self.surplus.unwrap_or(0));
        self.available().saturating_add(growth)
    }
}

/// Memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryFacts {
    /// `MemTotal`, in bytes.
    pub total_bytes: Option<u64>,
    /// `MemAvailable`, in bytes: free, or free once caches give way.
    pub available_bytes: Option<u64>,
    /// HugePage pools of the whole host, small pages first.
    pub pools: Vec<PoolFacts>,
    /// Transparent HugePages for anonymous memory: `always`, `madvise` or `never`.
    pub thp: Option<String>,
    /// Who waits for a transparent HugePage to be made: `always`, `defer`, `defer+madvise`, `madvise` or `never`.
    pub thp_defrag: Option<String>,
    /// Each size's own switch, by its KiB: as `thp`, or `inherit`.
    pub thp_sizes: BTreeMap<u64, String>,
    /// The same for shared memory: also `within_size`, `advise`, `deny`, `force`.
    pub shmem_thp: Option<String>,
    /// vm.overcommit_memory: 0 heuristic, 1 always, 2 strict.
    pub overcommit: Option<u64>,
    /// `SwapTotal`, in bytes.
    pub swap_total_bytes: Option<u64>,
    /// `SwapFree`, in bytes.
    pub swap_free_bytes: Option<u64>,
    /// Same-page merging.
    pub ksm: Option<KsmFacts>,
    /// memfd_create.
    pub memfd: Attempt,
    /// userfaultfd for faults of the kernel too, as KVM's are.
    pub userfaultfd: Attempt,
    /// vm.unprivileged_userfaultfd.
    pub unprivileged_userfaultfd: Option<u64>,
}

/// Same-page merging.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KsmFacts {
    /// 0 stopped, 1 running, 2 stopped and everything unmerged.
    pub run: u64,
    /// Pages that share another's memory.
    pub pages_sharing: Option<u64>,
    /// Whether pages of different nodes are merged, 1, or not, 0.
    pub merge_across_nodes: Option<u64>,
}

/// Disks and networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IoFacts {
    /// io_uring_setup.
    pub io_uring: Attempt,
    /// kernel.io_uring_disabled: 0 for all, 1 for a group, 2 for nobody.
    pub io_uring_disabled: Option<u64>,
    /// Opening /dev/net/tun.
    pub tun: Attempt,
    /// Opening /dev/vhost-net.
    pub vhost_net: Attempt,
    /// Opening /dev/vhost-vsock.
    pub vhost_vsock: Attempt,
    /// The disks asked for.
    pub disks: Vec<DiskFacts>,
    /// The network interfaces asked for.
    pub nets: Vec<NetFacts>,
}

/// Isolation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IsolationFacts {
    /// The unified hierarchy, if it is mounted.
    pub cgroup_v2: Option<CgroupV2Facts>,
    /// Controllers that are mounted as version 1.
    pub cgroup_v1: Vec<String>,
    /// System call filters, if the kernel has them.
    pub seccomp: Option<SeccompFacts>,
    /// landlock_create_ruleset asked for its version.
    pub landlock: Attempt,
    /// The version that it told.
    pub landlock_abi: Option<u32>,
}

/// The unified control group hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CgroupV2Facts {
    /// Where it is mounted.
    pub mount: String,
    /// Controllers of its root.
    pub controllers: Vec<String>,
}

/// System call filters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SeccompFacts {
    /// What husk itself already runs under: 0 nothing, 1 strict, 2 a filter.
    pub mode: u64,
    /// Actions that a filter can take.
    pub actions: Vec<String>,
}
