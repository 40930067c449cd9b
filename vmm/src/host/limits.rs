//! What husk itself is held to: its control groups' limits (either version), its affinity and its resource limits.

use serde::{Deserialize, Serialize};

use super::id_list::IdList;
use super::tree::{Tree, field};

/// Groups within groups; deeper ones do not count.
const DEPTH_MAX: usize = 64;
/// Lines of io.max that are kept.
const IO_LINES_MAX: usize = 64;
/// Version 1 writes "no limit" as the largest number of whole pages that 63 bits count, whatever the page's size.
const V1_NO_LIMIT: u64 = 1 << 62;

/// Limits in force. A limit of a group is the least one on the way from husk's group up to the mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LimitFacts {
    /// CPUs that this process may run on.
    pub cpus_allowed: Option<IdList>,
    /// Nodes that it may have memory of.
    pub mems_allowed: Option<IdList>,
    /// RLIMIT_MEMLOCK, in bytes; null if there is none.
    pub memlock_bytes: Option<u64>,
    /// Whether CAP_IPC_LOCK frees it of that.
    pub ipc_lock: Option<bool>,
    /// CPUs of its control group.
    pub cpuset_cpus: Option<IdList>,
    /// Nodes of its control group.
    pub cpuset_mems: Option<IdList>,
    /// Memory, in bytes.
    pub memory_bytes: Option<Limit>,
    /// Memory beyond which it is slowed down, in bytes.
    pub memory_high_bytes: Option<Limit>,
    /// Swap, in bytes; version 2's alone.
    pub swap_bytes: Option<Limit>,
    /// CPU time, in thousandths of a CPU.
    pub cpu_millis: Option<Limit>,
    /// Tasks: processes and threads.
    pub tasks: Option<Limit>,
    /// HugePages, by size.
    pub hugetlb: Vec<HugetlbLimit>,
    /// HugePages that may be reserved, which husk's are before they are touched, by size.
    pub hugetlb_reserved: Vec<HugetlbLimit>,
    /// Disks.
    pub io: Vec<IoLimit>,
}

/// A number and the file that sets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// The limit.
    pub value: u64,
    /// Where it is set.
    pub file: String,
}

/// A limit on HugePages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugetlbLimit {
    /// Size of one page, in bytes.
    pub page_bytes: u64,
    /// The limit, in bytes.
    #[serde(flatten)]
    pub limit: Limit,
}

/// A limit on one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IoLimit {
    /// Its numbers, such as `8:0`.
    pub device: String,
    /// In the kernel's words, such as `rbps=1048576 wiops=120`.
    pub limits: String,
    /// Where it is set.
    pub file: String,
}

impl LimitFacts {
    /// What holds the process whose files `tree` has under /proc/self.
    pub(super) fn read(tree: &Tree, page_sizes: &[u64]) -> Self {
        let status = tree.text("proc/self/status").unwrap_or_default();
        let list = |key| field(&status, key)?.parse().ok();
        let groups = Groups::read(tree);
        Self {
            cpus_allowed: list("Cpus_allowed_list"),
            mems_allowed: list("Mems_allowed_list"),
            memlock_bytes: memlock(tree),
            ipc_lock: has_capability(&status, CAP_IPC_LOCK),
            cpuset_cpus: groups.cpuset_cpus(),
            cpuset_mems: groups.list("cpuset", "cpuset.mems.effective", "cpuset.effective_mems"),
            memory_bytes: groups.memory(),
            memory_high_bytes: groups.least("memory", "memory.high", "", |_, text| number(text)),
            swap_bytes: groups.least("memory", "memory.swap.max", "", |_, text| number(text)),
            cpu_millis: groups.least("cpu", "cpu.max", "cpu.cfs_quota_us", |folder, text| match text.split_once(' ') {
                Some((quota, period)) => millis(quota, period),
                None => millis(text, &tree.text(&format!("{folder}/cpu.cfs_period_us"))?),
            }),
            tasks: groups.least("pids", "pids.max", "pids.max", |_, text| number(text)),
            hugetlb: groups.hugetlb(page_sizes, ""),
            hugetlb_reserved: groups.hugetlb(page_sizes, ".rsvd"),
            io: groups.io(),
        }
    }
}

/// One of them alone, for those who wait for it.
impl LimitFacts {
    /// The cpuset's CPUs.
    pub(super) fn cpuset_cpus(tree: &Tree) -> Option<IdList> {
        Groups::read(tree).cpuset_cpus()
    }

    /// The nodes that this process may have memory of.
    pub(super) fn mems_allowed(tree: &Tree) -> Option<IdList> {
        field(&tree.text("proc/self/status")?, "Mems_allowed_list")?.parse().ok()
    }

    /// How much it may lock, in bytes; `None` for any amount.
    pub(super) fn lockable_bytes(tree: &Tree) -> Option<u64> {
        let status = tree.text("proc/self/status").unwrap_or_default();
        if has_capability(&status, CAP_IPC_LOCK) == Some(true) { None } else { memlock(tree) }
    }

    /// The least limit on memory of the control groups that it is in.
    pub(super) fn memory_bytes(tree: &Tree) -> Option<Limit> {
        Groups::read(tree).memory()
    }

    /// Theirs on what it may have of a pool.
    pub(super) fn pool(tree: &Tree, page_bytes: u64) -> Option<Limit> {
        Groups::of(tree, "hugetlb").pool(page_bytes, "")
    }

    /// Theirs on what it may reserve of one.
    pub(super) fn pool_reservation(tree: &Tree, page_bytes: u64) -> Option<Limit> {
        Groups::of(tree, "hugetlb").pool(page_bytes, ".rsvd")
    }
}

/// A number; `max`, and what version 1 writes for it, is none.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number| *number < V1_NO_LIMIT)
}

/// A quota in a period as thousandths of a CPU; version 1's `-1` is none.
fn millis(quota: &str, period: &str) -> Option<u64> {
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.trim().parse().ok()?);
    quota.checked_mul(1000)?.checked_div(period)
}

/// The bit of the capability to lock any amount (linux/capability.h).
const CAP_IPC_LOCK: u32 = 14;

/// Whether /proc/self/status has the capability in force.
fn has_capability(status: &str, bit: u32) -> Option<bool> {
    let set = u64::from_str_radix(field(status, "CapEff")?, 16).ok()?;
    Some(set & 1 << bit != 0)
}

/// The soft limit, in bytes.
fn memlock(tree: &Tree) -> Option<u64> {
    let text = tree.text("proc/self/limits")?;
    text.lines().find_map(|line| line.strip_prefix("Max locked memory")?.split_whitespace().next()?.parse().ok())
}

/// Where the unified hierarchy is: alone, and beside those of version 1.
const UNIFIED: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Where husk's control groups are.
struct Groups<'a> {
    tree: &'a Tree,
    /// Of each mounted hierarchy: its controllers (none for the unified one), and the folders from husk's group up to
    /// the mount.
    hierarchies: Vec<(Vec<String>, Vec<String>)>,
}

impl<'a> Groups<'a> {
    fn read(tree: &'a Tree) -> Self {
        let own = tree.text("proc/self/cgroup").unwrap_or_default();
        let mounts = tree.text("proc/self/mounts").unwrap_or_default();
        let hierarchy = |line: &str| {
            let mut words = line.splitn(3, ':').skip(1);
            let (controllers, path) = (words.next()?, words.next()?);
            let controllers: Vec<String> =
                controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
            let mount = mounts.lines().find_map(|line| {
                let mut words = line.split(' ').skip(1);
                let (mount, kind, options) = (words.next()?, words.next()?, words.next()?);
                let here = match controllers.first() {
                    None => kind == "cgroup2",
                    Some(first) => kind == "cgroup" && options.split(',').any(|option| option == first),
                };
                here.then_some(mount)
            })?;
            Some((controllers, folders(mount, path)))
        };
        Self { tree, hierarchies: own.lines().filter_map(hierarchy).collect() }
    }

    /// As [`Self::read`], of one controller. A machine waits for it, and the list of all mounts takes the kernel longer than all
    /// else here: where the unified hierarchy is in a usual place, it says itself what it has.
    fn of(tree: &'a Tree, controller: &str) -> Self {
        let names = |mount: &str, file: &str| tree.text(&format!("{mount}/{file}")).unwrap_or_default();
        let has = |mount: &str, file: &str| names(mount, file).split_whitespace().any(|name| name == controller);
        let Some(mount) = UNIFIED.into_iter().find(|mount| has(mount, "cgroup.controllers")) else {
            return Self::read(tree);
        };
        // What the group at the mount does not give to those below it, none of them limits.
        let folders = if has(mount, "cgroup.subtree_control") {
            let own = tree.text("proc/self/cgroup").unwrap_or_default();
            folders(mount, own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default())
        } else {
            vec![mount.to_owned()]
        };
        Self { tree, hierarchies: vec![(Vec::new(), folders)] }
    }

    /// The folders of a controller and the name of the file in its version.
    fn folders<'b>(
        &'b self,
        controller: &str,
        v2: &'b str,
        v1: &'b str,
    ) -> impl Iterator<Item = (&'b String, &'b str)> {
        let controller = controller.to_owned();
        let with = move |names: &Vec<String>| names.is_empty() || names.contains(&controller);
        let file = move |names: &Vec<String>| if names.is_empty() { v2 } else { v1 };
        // A version that has no such file has no name for it.
        let hierarchies = self.hierarchies.iter().filter(move |(names, _)| with(names) && !file(names).is_empty());
        hierarchies.flat_map(move |(names, folders)| folders.iter().map(move |folder| (folder, file(names))))
    }

    /// A list as the nearest group tells it; its own is already what all above leave.
    fn list(&self, controller: &str, v2: &str, v1: &str) -> Option<IdList> {
        self.folders(controller, v2, v1).find_map(|(folder, file)| self.tree.value(&format!("{folder}/{file}")))
    }

    /// The least limit from husk's group to the mount.
    fn least(&self, controller: &str, v2: &str, v1: &str, parse: impl Fn(&str, &str) -> Option<u64>) -> Option<Limit> {
        let limits = self.folders(controller, v2, v1).filter_map(|(folder, name)| {
            let file = format!("{folder}/{name}");
            Some(Limit { value: parse(folder, &self.tree.text(&file)?)?, file })
        });
        limits.min_by_key(|limit| limit.value)
    }

    fn cpuset_cpus(&self) -> Option<IdList> {
        self.list("cpuset", "cpuset.cpus.effective", "cpuset.effective_cpus")
    }

    fn memory(&self) -> Option<Limit> {
        self.least("memory", "memory.max", "memory.limit_in_bytes", |_, text| number(text))
    }

    fn hugetlb(&self, page_sizes: &[u64], kind: &str) -> Vec<HugetlbLimit> {
        let of_size = |&page_bytes: &u64| Some(HugetlbLimit { page_bytes, limit: self.pool(page_bytes, kind)? });
        page_sizes.iter().filter_map(of_size).collect()
    }

    /// `kind` is between the size and the limit in the file's name.
    fn pool(&self, page_bytes: u64, kind: &str) -> Option<Limit> {
        let size = match page_bytes {
            large if large.is_multiple_of(1 << 30) => format!("{}GB", large >> 30),
            large if large.is_multiple_of(1 << 20) => format!("{}MB", large >> 20),
            small => format!("{}KB", small >> 10),
        };
        let (v2, v1) = (format!("hugetlb.{size}{kind}.max"), format!("hugetlb.{size}{kind}.limit_in_bytes"));
        self.least("hugetlb", &v2, &v1, |_, text| number(text))
    }

    fn io(&self) -> Vec<IoLimit> {
        let v2 = self.folders("io", "io.max", "").map(|(folder, name)| format!("{folder}/{name}"));
        let v2 = v2.flat_map(|file| self.lines(&file, io_limit));
        let v1 = V1_THROTTLES.iter().flat_map(|(name, word)| {
            let files = self.folders("blkio", "", name).map(|(folder, name)| format!("{folder}/{name}"));
            files.flat_map(|file| self.lines(&file, |line, file| throttle(line, word, file)))
        });
        v2.chain(v1).take(IO_LINES_MAX).collect()
    }

    fn lines(&self, file: &str, parse: impl Fn(&str, &str) -> Option<IoLimit>) -> Vec<IoLimit> {
        let text = self.tree.text(file).unwrap_or_default();
        text.lines().filter_map(|line| parse(line, file)).collect()
    }
}

/// Version 1's files and the word of each in io.max.
const V1_THROTTLES: [(&str, &str); 4] = [
    ("blkio.throttle.read_bps_device", "rbps"),
    ("blkio.throttle.write_bps_device", "wbps"),
    ("blkio.throttle.read_iops_device", "riops"),
    ("blkio.throttle.write_iops_device", "wiops"),
];

/// A line such as `8:0 rbps=max wbps=1048576 riops=max wiops=max`, without what is no limit.
fn io_limit(line: &str, file: &str) -> Option<IoLimit> {
    let (device, limits) = line.split_once(' ')?;
    let set: Vec<&str> = limits.split(' ').filter(|limit| !limit.ends_with("=max")).collect();
    (!set.is_empty()).then(|| IoLimit { device: device.to_owned(), limits: set.join(" "), file: file.to_owned() })
}

/// A line such as `8:0 1048576` of version 1, in version 2's words.
fn throttle(line: &str, word: &str, file: &str) -> Option<IoLimit> {
    let (device, limit) = line.split_once(' ')?;
    Some(IoLimit { device: device.to_owned(), limits: format!("{word}={limit}"), file: file.to_owned() })
}

/// A group's folder and those above it, up to the mount. A group outside of the namespace (`/../x`) has the mount alone.
fn folders(mount: &str, path: &str) -> Vec<String> {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    if names.contains(&"..") || names.len() > DEPTH_MAX {
        return vec![mount.to_owned()];
    }
    let folder = |length: usize| [&[mount][..], &names[..length]].concat().join("/");
    (0..=names.len()).rev().map(folder).collect()
}
