//! The baseline of consolidation: topology, limits and the devices asked about.

use std::path::PathBuf;

use super::{Level, all_works, assert_rows, files, judged, line};
use crate::host::devices::{AskedDisk, AskedError};
use crate::host::facts::Facts;
use crate::host::limits::LimitFacts;
use crate::host::sketch::{EPYC_NPS4, OFFLINE_CPUS, SINGLE, TWO_SOCKETS, UNEVEN_NODES, record};
use crate::host::verdicts::verdicts;

const HELD_V2: &str = include_str!("../fixtures/held-v2.tree");
const HELD_V1: &str = include_str!("../fixtures/held-v1.tree");
const DEVICES: &str = include_str!("../fixtures/devices.tree");

#[test]
fn two_sockets_have_cores_of_two_threads_and_a_pool_of_each_size_on_each() {
    let facts = TWO_SOCKETS.facts();
    assert_eq!(facts.cpu.cores.len(), 32);
    assert_eq!(facts.cpu.cores[1].to_string(), "1,33");
    assert_eq!(facts.cpu.nodes[1].distances.iter().collect::<Vec<_>>(), [(&0, &21), (&1, &10)]);
    assert_eq!(facts.cpu.nodes[1].pools[1].free, 128);
    assert_rows(
        &verdicts(&facts),
        &[
            ("SMT", Level::Info, "2 threads a core, cores: 32", "echo off > /sys/devices/system/cpu/smt/control"),
            ("L3 domains", Level::Info, "2 of 32 CPUs", ""),
            ("NUMA distances", Level::Info, "0: 10 21; 1: 21 10", ""),
            ("NUMA balancing", Level::Ok, "not in this kernel", ""),
        ],
    );
}

#[test]
fn a_socket_of_four_nodes_has_two_caches_on_each() {
    let facts = EPYC_NPS4.facts();
    assert_eq!((facts.cpu.nodes.len(), facts.cpu.cores.len(), facts.cpu.l3.len()), (4, 64, 8));
    assert!(facts.cpu.l3.iter().all(|cache| cache.len() == 16));
    assert_rows(
        &verdicts(&facts),
        &[
            ("NUMA nodes", Level::Ok, "4", ""),
            ("node 3", Level::Info, "CPUs 48-63,112-127, 128 GiB, 124 GiB free", ""),
            ("L3 domains", Level::Info, "8 of 16 CPUs", ""),
        ],
    );
}

#[test]
fn a_single_node_needs_no_lines_of_its_own() {
    let verdicts = verdicts(&SINGLE.facts());
    assert_eq!(line(&verdicts, "SMT").found, "1 thread a core, cores: 8");
    assert!(!verdicts.iter().any(|verdict| ["node 0", "NUMA distances"].contains(&verdict.name.as_str())));
}

#[test]
fn cpus_that_are_offline_are_in_no_core_and_in_no_cache() {
    let facts = OFFLINE_CPUS.facts();
    let cores: Vec<String> = facts.cpu.cores.iter().map(ToString::to_string).collect();
    assert_eq!(cores, ["0,8", "1,9", "2", "4"]);
    let caches: Vec<String> = facts.cpu.l3.iter().map(ToString::to_string).collect();
    assert_eq!(caches, ["0-2,8-9", "4"]);
    assert_rows(
        &verdicts(&facts),
        &[
            ("CPUs online", Level::Info, "6 of 16 (0-2,4,8-9)", "chcpu -e 0-15"),
            ("L3 domains", Level::Info, "2 of 1 to 5 CPUs", ""),
        ],
    );
}

#[test]
fn a_node_without_memory_is_a_fault_and_one_without_cpus_is_not() {
    let fix = "put memory into its channels; until then vCPUs there have another node's memory";
    assert_rows(
        &verdicts(&UNEVEN_NODES.facts()),
        &[
            ("node 1", Level::Degraded, "CPUs 4-7, no memory", fix),
            ("node 2", Level::Info, "no CPUs, 64 GiB, 64 GiB free", ""),
        ],
    );
}

#[test]
fn the_least_limit_on_the_way_up_is_the_one_in_force() {
    assert_rows(
        &judged(HELD_V2, all_works()),
        &[
            ("affinity", Level::Info, "2 of 8 (2-3)", "taskset -c 0-5 husk ..."),
            (
                "cpuset",
                Level::Info,
                "4 of 8 (2-5)",
                "write 0-7 into cpuset.cpus of husk's control group and those above it",
            ),
            (
                "memory nodes",
                Level::Info,
                "1 of 2 (0)",
                "write 0-1 into cpuset.mems of husk's control group and those above it",
            ),
            ("CPU time limit", Level::Degraded, "1.500 CPUs", "echo max > /sys/fs/cgroup/vms.slice/cpu.max"),
            ("memory limit", Level::Info, "8 GiB", "echo max > /sys/fs/cgroup/vms.slice/memory.max"),
            (
                "HugePages 2 MiB limit",
                Level::Info,
                "1 GiB",
                "echo max > /sys/fs/cgroup/vms.slice/husk.service/hugetlb.2MB.max",
            ),
            (
                "HugePages 2 MiB reservation limit",
                Level::Info,
                "512 MiB",
                "echo max > /sys/fs/cgroup/vms.slice/husk.service/hugetlb.2MB.rsvd.max",
            ),
            ("memory soft limit", Level::Info, "6 GiB", "echo max > /sys/fs/cgroup/vms.slice/memory.high"),
            ("swap limit", Level::Info, "0 KiB", "echo max > /sys/fs/cgroup/vms.slice/memory.swap.max"),
            ("tasks limit", Level::Info, "1024", "echo max > /sys/fs/cgroup/vms.slice/husk.service/pids.max"),
            ("locked memory limit", Level::Info, "8 MiB", "ulimit -l unlimited, or give husk CAP_IPC_LOCK"),
            (
                "disk limits 8:0 of /sys/fs/cgroup/vms.slice/io.max",
                Level::Info,
                "wbps=1048576 wiops=120",
                "echo 8:0 wbps=max wiops=max > /sys/fs/cgroup/vms.slice/io.max",
            ),
            (
                "HugePages 2 MiB",
                Level::Ok,
                "472 of 512 free, 40 reserved, 12 of them surplus, grows by 100 on demand",
                "",
            ),
        ],
    );
}

#[test]
fn who_has_cap_ipc_lock_may_lock_any_amount_root_or_not() {
    let bytes = |capabilities: &str| {
        let held = HELD_V2.replace("0000000000003fff", capabilities);
        let (_folder, tree) = record(files(&held));
        let facts = LimitFacts::read(&tree, &[]);
        (LimitFacts::lockable_bytes(&tree), facts.ipc_lock)
    };
    assert_eq!(bytes("0000000000003fff"), (Some(8 << 20), Some(false)));
    assert_eq!(bytes("0000000000004000"), (None, Some(true)));
    assert_eq!(bytes("no number"), (Some(8 << 20), None));
}

#[test]
fn limits_of_version_1_are_read_too() {
    assert_rows(
        &judged(HELD_V1, all_works()),
        &[
            ("cpuset", Level::Ok, "all 4 (0-3)", ""),
            (
                "CPU time limit",
                Level::Degraded,
                "0.500 CPUs",
                "echo -1 > /sys/fs/cgroup/cpu,cpuacct/vms/cpu.cfs_quota_us",
            ),
            ("memory limit", Level::Degraded, "256 MiB", "echo -1 > /sys/fs/cgroup/memory/vms/memory.limit_in_bytes"),
            ("tasks limit", Level::Ok, "none", ""),
            (
                "disk limits 8:16 of /sys/fs/cgroup/blkio/vms/blkio.throttle.read_bps_device",
                Level::Info,
                "rbps=1048576",
                "echo 8:16 0 > /sys/fs/cgroup/blkio/vms/blkio.throttle.read_bps_device",
            ),
        ],
    );
}

fn devices(nets: &[&str]) -> Result<Facts, AskedError> {
    let disk = |path: &str, major, minor| AskedDisk { path: PathBuf::from(path), major, minor };
    let disks = vec![disk("/var/a.img", 259, 1), disk("/dev/vda", 254, 0), disk("/dev/shm/b.img", 0, 26)];
    let nets: Vec<String> = nets.iter().map(|&name| name.to_owned()).collect();
    let (_folder, tree) = record(files(DEVICES));
    Facts::from_parts(&tree, all_works(), disks, &nets)
}

#[test]
fn devices_asked_about_are_judged_by_queue_and_by_who_takes_their_interrupts() {
    let facts = devices(&["ens1f0", "lo"]).unwrap();
    assert_eq!((facts.io.nets[0].node, facts.io.disks[0].node), (Some(1), None));
    assert_rows(
        &verdicts(&facts),
        &[
            // A partition's disk is what is looked at.
            (
                "disk /var/a.img scheduler",
                Level::Degraded,
                "nvme0n1: mq-deadline",
                "echo none > /sys/block/nvme0n1/queue/scheduler",
            ),
            (
                "disk /var/a.img queue",
                Level::Degraded,
                "nvme0n1: 32 requests, hardware queues: 2",
                "echo 64 > /sys/block/nvme0n1/queue/nr_requests",
            ),
            (
                "disk /var/a.img interrupts",
                Level::Degraded,
                "1 of 2 on isolated CPUs (CPUs 0,2)",
                "boot with isolcpus=managed_irq,domain,2,6-7",
            ),
            ("disk /dev/vda scheduler", Level::Ok, "vda: none", ""),
            ("disk /dev/vda interrupts", Level::Ok, "1 on CPUs 0-1", ""),
            ("disk /dev/shm/b.img", Level::Info, "no block device is behind it", ""),
            (
                "net ens1f0 link",
                Level::Degraded,
                "down, MTU 9000, receive queues: 2, transmit queues: 1",
                "ip link set ens1f0 up",
            ),
            (
                "net ens1f0 interrupts",
                Level::Degraded,
                "2 of 2 on isolated CPUs or another node's (CPUs 2-3, device on node 1)",
                "for i in 50 51; do echo 4-5 > /proc/irq/$i/smp_affinity_list; done",
            ),
            ("net lo interrupts", Level::Info, "none of its own", ""),
        ],
    );
}

#[test]
fn an_interface_that_is_not_there_is_named_with_those_that_are() {
    let error = devices(&["eth7"]).unwrap_err().to_string();
    assert_eq!(error, "net `eth7`: this host has no such interface: use one of ens1f0, lo");
}

#[test]
fn a_file_that_holds_something_else_than_it_should_is_named() {
    let (_folder, tree) = record([
        ("sys/devices/system/cpu/online", "0-3"),
        ("sys/devices/system/cpu/isolated", "three"),
        ("proc/sys/vm/overcommit_memory", "18446744073709551616"),
    ]);
    let facts = Facts::from_parts(&tree, all_works(), Vec::new(), &[]).unwrap();
    let verdicts = verdicts(&facts);
    let isolated = "/sys/devices/system/cpu/isolated";
    assert_rows(&verdicts, &[(isolated, Level::Degraded, "holds `three`", "cat /sys/devices/system/cpu/isolated")]);
    assert_eq!(line(&verdicts, "/proc/sys/vm/overcommit_memory").found, "holds `18446744073709551616`");
}
