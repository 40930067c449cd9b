//! Recorded hosts, read and judged; and this one, held against its own files and ioctls.
//!
//! A recorded host is a text: a line `=== PATH`, then what that file holds. Its kernel's answers are in code.

mod baseline;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use kvm_ioctls::{Cap, Kvm};
use proptest::prelude::{ProptestConfig, any, prop, proptest};

use super::capabilities::{CAPABILITIES, Need};
use super::devices::Asked;
use super::facts::{Attempt, Facts};
use super::id_list::IdList;
use super::probe::Probes;
use super::sketch::record;
use super::verdicts::{Group, Level, Verdict, obstacle, verdicts};

const SOFTWARE_KVM: &str = include_str!("fixtures/software-kvm.tree");
const TWO_SOCKET_VMX: &str = include_str!("fixtures/two-socket-vmx.tree");
const NO_KVM: &str = include_str!("fixtures/no-kvm.tree");

const fn fails(errno: i32) -> Attempt {
    Attempt::Fails { errno }
}

const ABSENT: Attempt = fails(libc::ENOENT);

fn files(fixture: &str) -> impl Iterator<Item = (&str, &str)> {
    fixture.split("=== ").skip(1).map(|file| file.split_once('\n').unwrap())
}

/// A kernel that gives everything.
pub(super) fn all_works() -> Probes {
    let value = |need, least| if need == Need::Figure { 64 } else { least };
    Probes {
        kvm: Attempt::Works,
        kvm_api_version: Some(12),
        create_vm: Some(Attempt::Works),
        capabilities: CAPABILITIES.iter().map(|c| (c.name, value(c.need, c.least))).collect(),
        memfd: Attempt::Works,
        userfaultfd: Attempt::Works,
        io_uring: Attempt::Works,
        tun: Attempt::Works,
        vhost_net: Attempt::Works,
        vhost_vsock: Attempt::Works,
        landlock: Attempt::Works,
        landlock_abi: Some(6),
    }
}

/// A kernel without KVM.
fn without_kvm(errno: i32) -> Probes {
    Probes { kvm: fails(errno), kvm_api_version: None, create_vm: None, capabilities: BTreeMap::new(), ..all_works() }
}

fn facts(fixture: &str, probes: Probes) -> Facts {
    let (_folder, tree) = record(files(fixture));
    Facts::from_parts(&tree, probes, Vec::new(), &[]).unwrap()
}

fn judged(fixture: &str, probes: Probes) -> Vec<Verdict> {
    verdicts(&facts(fixture, probes))
}

fn line<'a>(verdicts: &'a [Verdict], name: &str) -> &'a Verdict {
    let found = verdicts.iter().find(|verdict| verdict.name == name);
    found.unwrap_or_else(|| panic!("there is no line {name}"))
}

/// Name, level, what is found, and the fix (empty for none).
type Row = (&'static str, Level, &'static str, &'static str);

fn assert_rows(verdicts: &[Verdict], rows: &[Row]) {
    for &(name, level, found, fix) in rows {
        let line = line(verdicts, name);
        let actual = (name, line.level, line.found.as_str(), line.fix.as_deref().unwrap_or_default());
        assert_eq!(actual, (name, level, found, fix));
    }
}

#[test]
fn a_host_with_kvm_in_software_runs_husk_and_says_what_is_less_well() {
    let mut probes = Probes { vhost_net: ABSENT, vhost_vsock: ABSENT, ..all_works() };
    probes.capabilities.insert("KVM_CAP_TSC_CONTROL", 0);
    let verdicts = judged(SOFTWARE_KVM, probes);
    assert_eq!(obstacle(&verdicts), None);
    assert_rows(
        &verdicts,
        &[
            ("kernel", Level::Info, "6.18.44", ""),
            ("/dev/kvm", Level::Ok, "opens, API version 12", ""),
            ("KVM_CAP_IRQFD", Level::Ok, "yes", ""),
            ("KVM_CAP_MAX_VCPUS", Level::Ok, "64", ""),
            ("KVM_CAP_TSC_CONTROL", Level::Degraded, "no", "use a host with TSC scaling in hardware"),
            ("processor", Level::Info, "AuthenticAMD, AMD EPYC", ""),
            (
                "virtualization",
                Level::Degraded,
                "software: neither vmx nor svm (kvm_pvm)",
                "use a host with VT-x or AMD-V; in a VM, enable nested virtualization in the hypervisor below",
            ),
            ("CPUs online", Level::Ok, "2 (0-1)", ""),
            ("NUMA nodes", Level::Ok, "1: every placement is local", ""),
            ("memory", Level::Ok, "23.5 GiB, 22.7 GiB available", ""),
            (
                "HugePages 2 MiB",
                Level::Missing,
                "0 of 0 free",
                "echo 256 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            ),
            (
                "HugePages 1 GiB",
                Level::Missing,
                "0 of 0 free",
                "echo 1 > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
            ),
            ("THP", Level::Ok, "madvise", ""),
            (
                "THP of shared memory",
                Level::Degraded,
                "never",
                "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
            ),
            ("swap", Level::Ok, "none", ""),
            // Its kernel loads no modules, so modprobe would be no help.
            ("/dev/vhost-net", Level::Degraded, "absent", "use a kernel with CONFIG_VHOST_NET"),
            (
                "cgroups",
                Level::Degraded,
                "version 1: blkio cpu cpuacct cpuset devices freezer memory pids; version 2: hugetlb",
                "boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all",
            ),
            ("seccomp", Level::Ok, "filters", ""),
            ("landlock", Level::Ok, "ABI 6", ""),
        ],
    );
}

#[test]
fn a_host_of_two_sockets_is_told_by_node() {
    let verdicts = judged(TWO_SOCKET_VMX, Probes { io_uring: fails(libc::EPERM), ..all_works() });
    assert_eq!(obstacle(&verdicts), None);
    assert_rows(
        &verdicts,
        &[
            ("virtualization", Level::Ok, "hardware: VT-x (vmx)", ""),
            ("CPUs online", Level::Ok, "64 (0-63)", ""),
            ("NUMA nodes", Level::Ok, "2", ""),
            ("node 0", Level::Info, "CPUs 0-15,32-47, 251.5 GiB, 112 GiB free", ""),
            ("node 1", Level::Info, "CPUs 16-31,48-63, 251.9 GiB, 115 GiB free", ""),
            ("isolated CPUs", Level::Ok, "48 (8-31,40-63)", ""),
            ("nohz_full", Level::Ok, "48 (8-31,40-63)", ""),
            // All that is free is promised.
            (
                "HugePages 2 MiB",
                Level::Degraded,
                "0 of 1024 free (node 0: 512 of 1024, node 1: 0 of 0), 512 reserved",
                "echo 1280 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            ),
            // A guest that is bound to node 1 gets none.
            (
                "HugePages 1 GiB",
                Level::Degraded,
                "32 of 64 free (node 0: 40 of 64, node 1: 0 of 0), 8 reserved",
                "echo 1 > /sys/devices/system/node/node1/hugepages/hugepages-1048576kB/nr_hugepages",
            ),
            // The switch of 2 MiB pages counts and not the one of all sizes.
            ("THP", Level::Ok, "always", ""),
            ("swap", Level::Info, "7.9 GiB, 1 GiB used", "swapoff -a"),
            ("KSM", Level::Info, "on, 81920 pages shared", "echo 2 > /sys/kernel/mm/ksm/run"),
            ("io_uring", Level::Degraded, "operation not permitted", "sysctl kernel.io_uring_disabled=0"),
            ("cgroups", Level::Ok, "version 2: cpuset cpu io memory hugetlb pids rdma misc dmem", ""),
            ("seccomp", Level::Ok, "filters; husk is already under one", ""),
        ],
    );
}

#[test]
fn a_host_without_kvm_cannot_run_husk_and_is_described_all_the_same() {
    let verdicts =
        judged(NO_KVM, Probes { landlock: fails(libc::EOPNOTSUPP), landlock_abi: None, ..without_kvm(libc::ENOENT) });
    assert_eq!(obstacle(&verdicts), Some(line(&verdicts, "/dev/kvm")));
    assert_rows(
        &verdicts,
        &[
            ("/dev/kvm", Level::Missing, "absent", "modprobe kvm_amd"),
            ("capabilities", Level::Info, "not known while /dev/kvm does not open", ""),
            ("virtualization", Level::Ok, "hardware: AMD-V (svm)", ""),
            ("CPUs online", Level::Info, "8 of 16 (0-7)", "chcpu -e 0-15"),
            ("NUMA nodes", Level::Info, "not told by this kernel", ""),
            ("nohz_full", Level::Info, "none", "boot with nohz_full=LIST (a kernel with CONFIG_NO_HZ_FULL)"),
            (
                "memory",
                Level::Degraded,
                "14.9 GiB, 256 MiB available",
                "stop what uses it, or give guests less than the default (--memory 128M)",
            ),
            ("HugePages", Level::Missing, "not in this kernel", "use a kernel with CONFIG_HUGETLBFS"),
            ("THP", Level::Degraded, "never", "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"),
            (
                "overcommit",
                Level::Degraded,
                "2: strict, all of a guest's memory counts",
                "sysctl vm.overcommit_memory=0",
            ),
            ("KSM", Level::Ok, "not in this kernel", ""),
            (
                "cgroups",
                Level::Degraded,
                "version 2: cpuset cpu io memory pids",
                "use a kernel with the controllers hugetlb",
            ),
            ("landlock", Level::Missing, "operation not supported", "boot with landlock among lsm="),
        ],
    );
}

#[test]
fn each_way_to_be_without_kvm_has_its_own_fix() {
    let firmware = "enable VT-x or AMD-V in the firmware, or nested virtualization in the hypervisor below";
    let table = [
        (TWO_SOCKET_VMX, libc::EACCES, "permission denied", "setfacl -m u:$USER:rw /dev/kvm"),
        (TWO_SOCKET_VMX, libc::EPERM, "operation not permitted", "allow device 10:232 in this process's device cgroup"),
        // The driver is there: a container without the node.
        (TWO_SOCKET_VMX, libc::ENOENT, "absent", "mknod /dev/kvm c 10 232"),
        (NO_KVM, libc::ENODEV, "absent", "modprobe kvm_amd"),
        ("=== proc/cpuinfo\nflags\t: fpu vmx\n", libc::ENOENT, "absent", "use a kernel with CONFIG_KVM"),
        ("", libc::ENOENT, "absent", firmware),
        ("", libc::EIO, "input/output error", "dmesg | grep -i kvm"),
    ];
    for (fixture, errno, found, fix) in table {
        let verdicts = judged(fixture, without_kvm(errno));
        assert_rows(&verdicts, &[("/dev/kvm", Level::Missing, found, fix)]);
        assert_eq!(obstacle(&verdicts).unwrap().name, "/dev/kvm");
    }
}

#[test]
fn virtualization_is_judged_by_what_is_there_and_not_by_who_may_use_it() {
    let refused = judged(SOFTWARE_KVM, without_kvm(libc::EACCES));
    assert_eq!(line(&refused, "virtualization").level, Level::Degraded);
    assert_eq!(line(&judged("", without_kvm(libc::ENOENT)), "virtualization").level, Level::Missing);
}

#[test]
fn what_husk_stands_on_is_an_obstacle_and_what_it_profits_from_is_not() {
    for capability in CAPABILITIES {
        let mut probes = all_works();
        probes.capabilities.insert(capability.name, capability.least - 1);
        let verdicts = judged(TWO_SOCKET_VMX, probes);
        let level = match capability.need {
            Need::Required | Need::Feature => Level::Missing,
            Need::Better => Level::Degraded,
            Need::Figure => Level::Info,
        };
        assert_eq!(line(&verdicts, capability.name).level, level, "{}", capability.name);
        let name = obstacle(&verdicts).map(|verdict| verdict.name.as_str());
        assert_eq!(name, (capability.need == Need::Required).then_some(capability.name));
    }
    let busy = judged(TWO_SOCKET_VMX, Probes { create_vm: Some(fails(libc::EBUSY)), ..all_works() });
    assert_eq!(obstacle(&busy).unwrap().name, "KVM_CREATE_VM");
    let old = judged(TWO_SOCKET_VMX, Probes { kvm_api_version: Some(11), ..all_works() });
    assert_eq!(obstacle(&old).unwrap().name, "/dev/kvm");
}

#[test]
fn what_is_refused_says_by_whom() {
    let refused = |probes| judged(SOFTWARE_KVM, probes);
    let eperm = fails(libc::EPERM);
    let userfaultfd = refused(Probes { userfaultfd: eperm, ..all_works() });
    assert_eq!(line(&userfaultfd, "userfaultfd").fix.as_deref(), Some("sysctl vm.unprivileged_userfaultfd=1"));
    // Here the setting allows it to all, so a filter must be what refuses.
    let io_uring = refused(Probes { io_uring: eperm, ..all_works() });
    let fix = "allow io_uring_setup in the seccomp filter that husk is started under";
    assert_eq!(line(&io_uring, "io_uring").fix.as_deref(), Some(fix));
    let tun = refused(Probes { tun: fails(libc::EACCES), ..all_works() });
    assert_eq!(line(&tun, "/dev/net/tun").fix.as_deref(), Some("setfacl -m u:$USER:rw /dev/net/tun"));
    let tun = refused(Probes { tun: ABSENT, ..all_works() });
    assert_eq!(line(&tun, "/dev/net/tun").fix.as_deref(), Some("mknod /dev/net/tun c 10 200"));
}

/// What holds of every host: names are unique, groups come in order, a fix stands where it must, and nothing breaks a
/// line.
fn assert_well_formed(verdicts: &[Verdict]) {
    let names: BTreeSet<_> = verdicts.iter().map(|verdict| &verdict.name).collect();
    assert_eq!(names.len(), verdicts.len());
    let groups: Vec<_> = verdicts.iter().map(|verdict| verdict.group).collect();
    assert!(groups.is_sorted_by_key(|group| Group::ALL.iter().position(|one| one == group)));
    for verdict in verdicts {
        assert!(!verdict.found.is_empty() && !verdict.purpose.is_empty(), "{verdict:?}");
        let fixed = verdict.fix.as_ref().is_some_and(|fix| !fix.is_empty());
        match verdict.level {
            Level::Ok => assert!(verdict.fix.is_none(), "{verdict:?}"),
            Level::Missing | Level::Degraded => assert!(fixed, "{verdict:?}"),
            Level::Info => assert!(verdict.fix.is_none() || fixed, "{verdict:?}"),
        }
        assert!(!verdict.found.chars().any(char::is_control), "{verdict:?}");
    }
}

#[test]
fn a_host_that_tells_nothing_is_described() {
    let verdicts = judged("", without_kvm(libc::ENOENT));
    assert_well_formed(&verdicts);
    for fixture in [SOFTWARE_KVM, TWO_SOCKET_VMX, NO_KVM] {
        assert_well_formed(&judged(fixture, all_works()));
    }
}

proptest! {
    // Each case writes a whole host to disk.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_content_of_any_file_brings_the_reader_down(
        contents in prop::collection::vec(any::<Vec<u8>>(), 64),
        stray in "[0-9,\\-\\[\\]a-z \n\t:=kB/]{0,80}",
    ) {
        let odd = files(TWO_SOCKET_VMX).zip(contents).enumerate().map(|(index, ((path, text), bytes))| {
            // The list of nodes must lead somewhere for the nodes' files to be read at all.
            match index % 3 {
                _ if path.ends_with("node/online") => (path, text.as_bytes().to_vec()),
                0 => (path, bytes),
                1 => (path, stray.clone().into_bytes()),
                _ => (path, text.as_bytes().iter().copied().take(bytes.len()).collect()),
            }
        });
        let (_folder, tree) = record(odd);
        assert_well_formed(&verdicts(&Facts::from_parts(&tree, all_works(), Vec::new(), &[]).unwrap()));
    }
}

#[test]
fn what_is_told_of_this_host_is_true_and_nothing_is_left_open() {
    let facts = Facts::read(&Asked::default()).unwrap();
    let kvm = Kvm::new().unwrap();
    assert_eq!(facts.kvm.device, Attempt::Works);
    assert_eq!(facts.kvm.api_version, Some(kvm.get_api_version()));
    assert_eq!(facts.kvm.create_vm, Some(Attempt::Works));
    assert_eq!(facts.kvm.capabilities.len(), CAPABILITIES.len());
    for capability in CAPABILITIES {
        let raw = kvm.check_extension_raw(capability.number.into());
        assert_eq!(facts.kvm.capabilities[capability.name], raw, "{}", capability.name);
    }
    let has = |name| facts.kvm.capabilities[name] > 0;
    assert_eq!(has("KVM_CAP_TSC_CONTROL"), kvm.check_extension(Cap::TscControl));
    assert_eq!(has("KVM_CAP_IRQFD"), kvm.check_extension(Cap::Irqfd));

    let folders = fs::read_dir("/sys/devices/system/node").unwrap();
    let nodes = folders.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
        name.strip_prefix("node").is_some_and(|id| id.parse::<u16>().is_ok())
    });
    assert_eq!(facts.cpu.nodes.len(), nodes.count());
    // The affinity of a test may leave out CPUs, never add any.
    let cpus = std::thread::available_parallelism().unwrap().get();
    let online = facts.cpu.online.unwrap().len();
    assert!(online >= cpus);
    assert!(facts.limits.cpus_allowed.unwrap().len() >= cpus);
    assert_eq!(facts.memory.total_bytes, Some(crate::config::HostFacts::read().memory_bytes));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(facts.kernel.as_deref(), Some(release.trim()));

    let text = |path: &str| fs::read_to_string(path).unwrap().trim().to_owned();
    for core in &facts.cpu.cores {
        for cpu in core.iter() {
            let siblings = text(&format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"));
            assert_eq!(core.to_string(), siblings);
        }
    }
    let in_cores: usize = facts.cpu.cores.iter().map(IdList::len).sum();
    assert_eq!(in_cores, online);
    let distances = text("/sys/devices/system/node/node0/distance");
    let own: Vec<String> = facts.cpu.nodes[0].distances.values().map(u16::to_string).collect();
    assert_eq!(own.join(" "), distances);
    assert_eq!(facts.malformed, BTreeMap::new());

    // Other tests run beside this one, so what is looked for is what only this module opens.
    let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let left = open.map(|target| target.to_string_lossy().into_owned()).filter(|target| {
        ["io_uring", "userfaultfd", "/dev/net/tun", "memfd:husk-host"].iter().any(|name| target.contains(name))
    });
    assert_eq!(left.collect::<Vec<_>>(), Vec::<String>::new());
}
