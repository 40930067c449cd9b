use super::*;
use crate::config::NodePolicy;
use crate::host::sketch::{TWO_SOCKETS, UNEVEN_NODES};
use crate::host::{HugetlbLimit, KnownMemory, MemoryFiles, PoolFacts};

const GIB: u64 = 1 << 30;

fn pool(page_bytes: u64, total: u64, free: u64, reserved: Option<u64>) -> PoolFacts {
    PoolFacts { page_bytes, total, free, reserved, surplus: None, overcommit: None }
}

fn node(id: u16, total_bytes: u64, pools: Vec<PoolFacts>) -> NodeFacts {
    NodeFacts {
        id,
        cpus: IdList::default(),
        total_bytes: Some(total_bytes),
        free_bytes: None,
        file_cache_bytes: None,
        distances: BTreeMap::new(),
        pools,
    }
}

fn settle(asked: Settled, host: &KnownMemory) -> Result<Settled, PlacementError> {
    super::settle(asked, MemoryBacking::Anonymous, host)
}

/// Two nodes of 8 GiB with 512 and 100 free pages of 2M, and a third without memory.
fn host() -> KnownMemory {
    let small = 2 << 20;
    KnownMemory {
        nodes: vec![
            node(0, 8 * GIB, vec![pool(small, 600, 512, None)]),
            node(1, 8 * GIB, vec![pool(small, 100, 100, None)]),
            node(2, 0, vec![]),
        ],
        pools: vec![pool(small, 700, 612, Some(12))],
        ..KnownMemory::default()
    }
}

fn part(gib_halves: u64, nodes: &str, policy: NodePolicy) -> MemoryPart {
    let nodes = (!nodes.is_empty()).then(|| HostNodes { nodes: nodes.parse().unwrap(), policy });
    MemoryPart { bytes: gib_halves * GIB / 2, nodes }
}

fn asked(gib_halves: u64, pages: Pages, nodes: &str, policy: NodePolicy) -> Settled {
    let part = part(gib_halves, nodes, policy);
    let placement = MemoryPlacement { pages, nodes: part.nodes.clone(), ..MemoryPlacement::default() };
    Settled::as_asked(&placement, vec![part])
}

fn refused(asked: Settled) -> String {
    settle(asked, &host()).unwrap_err().to_string()
}

#[test]
fn what_the_host_has_is_granted_as_it_was_asked() {
    for config in [
        asked(1, Pages::HostsChoice, "", NodePolicy::Bind),
        asked(16, Pages::Transparent, "0", NodePolicy::Bind),
        asked(32, Pages::Transparent, "0-1", NodePolicy::Bind),
        asked(2, Pages::Huge2M, "0", NodePolicy::Bind),
        asked(2, Pages::Huge2M, "0-1", NodePolicy::Bind),
        asked(2, Pages::Huge2M, "1", NodePolicy::Preferred),
    ] {
        assert_eq!(settle(config.clone(), &host()), Ok(config));
    }
}

#[test]
fn a_pool_that_is_too_small_is_refused_with_the_shortfall_and_the_command() {
    assert_eq!(
        refused(asked(3, Pages::Huge2M, "", NodePolicy::Bind)),
        "memory: pages: 768 HugePages of 2M are needed on any node and 600 are free: 168 short: \
         echo 868 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
    );
    assert_eq!(
        refused(asked(1, Pages::Huge2M, "1", NodePolicy::Bind)),
        "memory: pages: 256 HugePages of 2M are needed on node 1 and 100 are free: 156 short: \
         echo 256 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages",
        "large enough in all, too small on the node"
    );
    assert_eq!(
        refused(asked(1, Pages::Huge2M, "0-1", NodePolicy::Interleave)),
        "memory: pages: 128 HugePages of 2M are needed on node 1 and 100 are free: 28 short: \
         echo 128 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages"
    );
    assert_eq!(
        refused(asked(2, Pages::Huge2M, "1", NodePolicy::Bind)),
        "memory: pages: 512 HugePages of 2M are needed on node 1 and 100 are free: 412 short: \
         echo 512 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages"
    );
    assert_eq!(
        refused(asked(5, Pages::Huge2M, "1", NodePolicy::Bind)),
        "memory: pages: 1280 HugePages of 2M are needed on node 1 and 100 are free: 1180 short: \
         echo 1280 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages",
        "too small on the node, and in all"
    );
    assert_eq!(
        refused(asked(2, Pages::Huge1G, "", NodePolicy::Bind)),
        "memory: pages: this host has no HugePages of 1G: it has 2M"
    );
}

#[test]
fn a_node_that_cannot_be_used_is_named_with_those_that_can() {
    assert_eq!(
        refused(asked(1, Pages::HostsChoice, "0,7", NodePolicy::Bind)),
        "memory: nodes: the host has no node 7: its nodes are 0-2"
    );
    assert_eq!(
        refused(asked(1, Pages::HostsChoice, "2", NodePolicy::Preferred)),
        "memory: nodes: node 2 has no memory: use 0-1"
    );
    assert_eq!(
        refused(asked(17, Pages::HostsChoice, "0", NodePolicy::Bind)),
        "memory: nodes: node 0 has 8192 MiB and the guest needs 8704: give it less, or more nodes"
    );
    let fenced = KnownMemory { allowed_nodes: Some("1".parse().unwrap()), ..host() };
    let error = settle(asked(1, Pages::HostsChoice, "0", NodePolicy::Bind), &fenced).unwrap_err();
    assert_eq!(
        error.to_string(),
        "memory: nodes: husk may not use node 0: its cpuset allows 1: widen cpuset.mems of its cgroup"
    );
}

#[test]
fn more_than_may_be_locked_is_refused_with_what_would_do() {
    let mut config = asked(1, Pages::HostsChoice, "", NodePolicy::Bind);
    config.placement.lock = true;
    let host = KnownMemory { lockable_bytes: Some(8 << 20), ..host() };
    assert_eq!(
        settle(config, &host).unwrap_err().to_string(),
        "memory: lock: husk may lock 8192 KiB (RLIMIT_MEMLOCK) and the guest has 524288: ulimit -l 524288"
    );
}

#[test]
fn the_best_effort_leaves_out_what_cannot_be_and_tells_it() {
    let mut config = asked(2, Pages::Huge1G, "7", NodePolicy::Bind);
    config.placement.lock = true;
    config.placement.honour = Honour::BestEffort;
    let host = KnownMemory { lockable_bytes: Some(0), ..host() };
    let Settled { placement, parts, requested_bytes: _, differences } = settle(config, &host).unwrap();
    assert_eq!((placement.pages, placement.nodes, placement.lock), (Pages::Transparent, None, false));
    assert_eq!(parts, [part(2, "", NodePolicy::Bind)]);
    let told: Vec<_> = differences.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 3);
    assert!(told[0].contains("node 7") && told[1].contains("1G") && told[2].contains("RLIMIT_MEMLOCK"), "{told:?}");
}

#[test]
fn what_is_to_be_plugged_at_the_start_is_needed_as_well() {
    let mut config = asked(2, Pages::Huge2M, "0", NodePolicy::Bind);
    config.requested_bytes = 64 * MIB;
    let error = refused(config.clone());
    assert!(error.contains("544 HugePages of 2M are needed on node 0") && error.contains("32 short"), "{error}");
    config.placement.hotplug_node = Some(1);
    config.parts.push(MemoryPart { bytes: 0, ..part(0, "1", NodePolicy::Bind) });
    assert_eq!(settle(config.clone(), &host()), Ok(config));
}

#[test]
fn guest_nodes_share_what_their_host_nodes_have() {
    let two = |first: MemoryPart, second: MemoryPart| {
        let placement = MemoryPlacement { pages: Pages::Huge2M, ..MemoryPlacement::default() };
        settle(Settled::as_asked(&placement, vec![first, second]), &host())
    };
    let bind = |gib_halves, nodes| part(gib_halves, nodes, NodePolicy::Bind);
    // 512 and 100 pages: 256 and 256 fit on node 0, but not beside a third of them on node 1.
    two(bind(1, "0"), bind(1, "0")).unwrap();
    two(bind(1, "0-1"), bind(1, "0")).unwrap();
    let refused = |first, second| two(first, second).unwrap_err().to_string();
    let short = refused(bind(1, "0"), bind(1, "1"));
    assert!(short.contains("256 HugePages of 2M are needed on node 1 and 100 are free"), "{short}");
    // Each would fit alone.
    let twice = refused(bind(1, "0"), bind(2, "0"));
    assert!(twice.contains("768 HugePages of 2M are needed on node 0 and 512 are free: 256 short"), "{twice}");
    assert_eq!(
        refused(bind(3, "0"), bind(1, "1")),
        "memory: pages: 768 HugePages of 2M are needed on node 0 and 512 are free, 256 on node 1 and 100 are free, 612 on \
         node 0-1 and 600 are free: 256 and 156 and 12 short: echo 868 > /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages; \
         echo 256 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages",
        "every node that is short, and what is promised to somebody"
    );
    assert_eq!(
        refused(bind(2, "0"), part(1, "", NodePolicy::Bind)),
        "memory: pages: 256 HugePages of 2M are needed on any node and 88 are free: 168 short: \
         echo 868 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
        "what is bound comes first"
    );
    // All there is free, 12 of them promised to somebody.
    let promised = settle(
        Settled::as_asked(
            &MemoryPlacement { pages: Pages::Huge2M, ..MemoryPlacement::default() },
            vec![MemoryPart { bytes: 612 * (2 << 20), ..bind(1, "0-1") }],
        ),
        &host(),
    );
    let promised = promised.unwrap_err().to_string();
    assert!(promised.contains("612 HugePages of 2M are needed on node 0-1 and 600 are free: 12 short"), "{promised}");
}

/// 612 pages are free and 12 of them promised to somebody.
#[test]
fn the_commands_that_are_told_add_all_that_is_lacking() {
    const PAGE: u64 = 2 << 20;
    let of = |pages: u64, nodes| MemoryPart { bytes: pages * PAGE, ..part(0, nodes, NodePolicy::Bind) };
    let settle = |parts: &[MemoryPart], host: &KnownMemory| {
        let placement = MemoryPlacement { pages: Pages::Huge2M, ..MemoryPlacement::default() };
        settle(Settled::as_asked(&placement, parts.to_vec()), host).map_err(|error| error.to_string())
    };
    for (parts, short) in [
        // What is bound takes more than what is promised to nobody; beside it comes what is bound to none.
        (vec![of(512, "0"), of(100, "1")], "612 HugePages of 2M are needed on node 0-1 and 600 are free: 12 short"),
        (vec![of(500, "0"), of(110, "")], "110 HugePages of 2M are needed on any node and 100 are free: 10 short"),
        (vec![of(512, "0"), of(100, "1"), of(5, "")], "617 HugePages of 2M are needed on any node and 600 are free"),
        // A node is short as well.
        (
            vec![of(520, "0"), of(100, "1")],
            "520 HugePages of 2M are needed on node 0 and 512 are free, 612 on node 0-1",
        ),
        (vec![of(520, "0"), of(100, "1"), of(5, "")], "617 on any node and 600 are free: 8 and 17 short"),
        (vec![of(520, "0"), of(80, "")], "520 HugePages of 2M are needed on node 0 and 512 are free: 8 short"),
        (vec![of(620, "0-1")], "620 HugePages of 2M are needed on node 0-1 and 600 are free: 20 short"),
    ] {
        let refused = settle(&parts, &host()).unwrap_err();
        assert!(refused.contains(short), "{refused}");
        let mended = mended(&host(), &refused);
        settle(&parts, &mended).unwrap_or_else(|error| panic!("{refused}, and then {error}"));
    }
}

/// The host after the commands that a refusal tells: each `echo` sets a node's pool or the whole host's.
fn mended(host: &KnownMemory, refused: &str) -> KnownMemory {
    let mut host = host.clone();
    let (_, commands) = refused.split_once(" short: ").unwrap();
    for command in commands.split("; ") {
        let (total, file) = command.strip_prefix("echo ").unwrap().split_once(" > ").unwrap();
        let total: u64 = total.parse().unwrap();
        let node = file.strip_prefix("/sys/devices/system/node/node").map(|rest| rest[..1].parse::<usize>().unwrap());
        // The kernel spreads what is asked of the whole host over its nodes; here it goes to the first.
        let more = total - node.map_or(host.pools[0].total, |node| host.nodes[node].pools[0].total);
        let node = &mut host.nodes[node.unwrap_or(0)];
        for pool in [&mut node.pools[0], &mut host.pools[0]] {
            (pool.total, pool.free) = (pool.total + more, pool.free + more);
        }
    }
    host
}

#[test]
fn a_last_round_of_interleaved_pages_and_a_pool_that_grows_are_counted() {
    let settle = |pages: u64, nodes, policy, host: &KnownMemory| {
        let placement = MemoryPlacement { pages: Pages::Huge2M, ..MemoryPlacement::default() };
        let part = MemoryPart { bytes: pages * (2 << 20), ..part(1, nodes, policy) };
        settle(Settled::as_asked(&placement, vec![part]), host)
    };
    settle(201, "0-1", NodePolicy::Interleave, &host()).unwrap();
    let uneven = settle(202, "0-1", NodePolicy::Interleave, &host()).unwrap_err().to_string();
    assert!(uneven.contains("101 HugePages of 2M are needed on node 1 and 100 are free: 1 short"), "{uneven}");
    let mut grows = host();
    (grows.pools[0].overcommit, grows.pools[0].surplus) = (Some(30), Some(10));
    settle(620, "", NodePolicy::Bind, &grows).unwrap();
    settle(621, "", NodePolicy::Bind, &grows).unwrap_err();
    // On which node it grows is the kernel's choice.
    settle(513, "0", NodePolicy::Bind, &grows).unwrap_err();
}

fn with(mut asked: Settled, change: impl FnOnce(&mut MemoryPlacement)) -> Settled {
    change(&mut asked.placement);
    asked
}

#[test]
fn a_guest_fits_under_the_control_groups_limit_with_what_maps_it() {
    let limit = Limit { value: 4 * GIB, file: "/sys/fs/cgroup/vm/memory.max".to_owned() };
    let host = KnownMemory { group_limit: Some(limit), ..host() };
    let asked = |gib_halves, pages| asked(gib_halves, pages, "", NodePolicy::Bind);
    settle(asked(7, Pages::Transparent), &host).unwrap();
    settle(with(asked(2, Pages::Huge2M), |placement| placement.prefault = true), &host).unwrap();
    let pool = KnownMemory { pools: vec![pool(2 << 20, 4096, 4096, None)], ..host.clone() };
    settle(asked(9, Pages::Huge2M), &pool).expect("a pool's pages are no memory of the group");
    for honours in [Pages::HostsChoice, Pages::Transparent] {
        let refused = settle(asked(8, honours), &host).unwrap_err().to_string();
        assert_eq!(
            refused,
            "memory: husk's control group may have 4096 MiB (/sys/fs/cgroup/vm/memory.max) and the guest takes 4184 with \
             what maps it: give it less, or: echo 4387241984 > /sys/fs/cgroup/vm/memory.max",
            "the guest alone would fit, to the byte"
        );
    }
    let enough = Limit { value: 4_387_241_984, file: String::new() };
    settle(asked(8, Pages::HostsChoice), &KnownMemory { group_limit: Some(enough), ..host.clone() }).unwrap();
    let best = with(asked(9, Pages::HostsChoice), |placement| {
        (placement.prefault, placement.honour) = (true, Honour::BestEffort);
    });
    let settled = settle(best, &host).unwrap();
    assert!(!settled.placement.prefault && settled.differences.len() == 1);
}

#[test]
fn memory_that_shall_be_there_at_once_is_free_on_its_nodes() {
    let mut host = KnownMemory { available_bytes: Some(5 * GIB), ..host() };
    for (node, (free, cache)) in host.nodes.iter_mut().zip([(GIB, 2 * GIB), (2 * GIB, GIB)]) {
        (node.free_bytes, node.file_cache_bytes) = (Some(free), Some(cache));
    }
    let prefaulted = |gib_halves, nodes, policy| {
        with(asked(gib_halves, Pages::HostsChoice, nodes, policy), |placement| placement.prefault = true)
    };
    for (gib_halves, nodes, policy, refusal) in [
        (6, "0", NodePolicy::Bind, None),
        (7, "0", NodePolicy::Bind, Some("3584 MiB are needed on node 0 and 3072 are free: 512 short")),
        (10, "0-1", NodePolicy::Interleave, None),
        (11, "0-1", NodePolicy::Interleave, Some("5632 MiB are needed on node 0-1 and 5120 are free: 512 short")),
        (16, "0-1", NodePolicy::Interleave, Some("on node 0 and 3072 are free, 4096 on node 1 and 3072 are free")),
        (10, "", NodePolicy::Bind, None),
        (11, "0", NodePolicy::Preferred, Some("5632 MiB are needed on any node and 5120 are free: 512 short")),
    ] {
        let settled = settle(prefaulted(gib_halves, nodes, policy), &host).map_err(|error| error.to_string());
        match (settled, refusal) {
            (Ok(_), None) => {}
            (Err(told), Some(part)) => {
                assert!(told.starts_with("memory: prefault: ") && told.contains(part), "{told}");
            }
            (settled, _) => panic!("{gib_halves} {nodes} {policy:?}: {settled:?}"),
        }
        settle(asked(gib_halves, Pages::HostsChoice, nodes, policy), &host).expect("by and by it may fit");
    }
    let locked = with(asked(7, Pages::HostsChoice, "0", NodePolicy::Bind), |placement| placement.lock = true);
    settle(locked, &host).unwrap_err();
    let best = with(prefaulted(7, "0", NodePolicy::Bind), |placement| placement.honour = Honour::BestEffort);
    let Settled { placement, parts, requested_bytes: _, differences } = settle(best, &host).unwrap();
    assert!(!placement.prefault && parts[0].nodes.is_some() && differences.len() == 1);
}

#[test]
fn the_best_effort_leaves_out_the_nodes_of_that_part_alone_which_cannot_have_them() {
    let bind = |nodes| part(1, nodes, NodePolicy::Bind);
    let placement = MemoryPlacement { honour: Honour::BestEffort, ..MemoryPlacement::default() };
    let asked = Settled::as_asked(&placement, vec![bind("0"), bind("7"), bind("0-1")]);
    let settled = settle(asked, &host()).unwrap();
    assert_eq!(settled.parts, [bind("0"), bind(""), bind("0-1")]);
    assert_eq!(settled.differences.len(), 1);
    let large = part(17, "1", NodePolicy::Bind);
    let settled = settle(Settled::as_asked(&placement, vec![bind("0"), large]), &host()).unwrap();
    assert_eq!(settled.parts, [bind("0"), part(17, "", NodePolicy::Bind)]);
    assert!(settled.differences[0].to_string().contains("node 1 has 8192 MiB and the guest needs 8704"));
    // What can be on another node, too, lacks nothing; what has a share on each does.
    let parts = [part(17, "1", NodePolicy::Bind), bind("0-1"), part(1, "0-1", NodePolicy::Interleave)];
    let settled = settle(Settled::as_asked(&placement, parts.to_vec()), &host()).unwrap();
    assert_eq!(settled.parts, [part(17, "", NodePolicy::Bind), bind("0-1"), bind("")]);
}

#[test]
fn a_pools_pages_are_held_against_what_the_control_group_may_have_of_them() {
    let pools = vec![pool(2 << 20, 4096, 4096, None)];
    let limits = |file: &str| {
        let limit = Limit { value: GIB, file: file.to_owned() };
        vec![HugetlbLimit { page_bytes: 2 << 20, limit }]
    };
    let (file, reserved) = ("/g/hugetlb.2MB.max", "/g/hugetlb.2MB.rsvd.max");
    for (file, host) in [
        (file, KnownMemory { pool_limits: limits(file), ..host() }),
        (reserved, KnownMemory { pool_reservation_limits: limits(reserved), ..host() }),
    ] {
        let host = KnownMemory { pools: pools.clone(), ..host };
        settle(asked(2, Pages::Huge2M, "", NodePolicy::Bind), &host).unwrap();
        settle(asked(3, Pages::Transparent, "", NodePolicy::Bind), &host).unwrap();
        let refused = settle(asked(3, Pages::Huge2M, "", NodePolicy::Bind), &host).unwrap_err().to_string();
        assert_eq!(
            refused,
            format!(
                "memory: pages: husk's control group may have 1024 MiB of HugePages of 2M ({file}) and the guest has 1536: \
                 give it less, or: echo 1610612736 > {file}"
            )
        );
        let best =
            with(asked(3, Pages::Huge2M, "", NodePolicy::Bind), |placement| placement.honour = Honour::BestEffort);
        assert_eq!(settle(best, &host).unwrap().placement.pages, Pages::Transparent);
    }
}

#[test]
fn pages_that_the_kernel_never_makes_or_merges_are_refused_with_the_switch() {
    let switch = |value: &str, file: &str| Some(Switch { value: value.to_owned(), file: file.to_owned() });
    let host =
        |mode| KnownMemory { thp: switch("madvise", "/thp"), shmem_thp: switch(mode, "/shmem"), ksm: None, ..host() };
    let transparent = || asked(1, Pages::Transparent, "", NodePolicy::Bind);
    super::settle(transparent(), MemoryBacking::Anonymous, &host("never")).unwrap();
    super::settle(transparent(), MemoryBacking::Memfd, &host("advise")).unwrap();
    let refused = super::settle(transparent(), MemoryBacking::Memfd, &host("never")).unwrap_err().to_string();
    assert_eq!(
        refused,
        "memory: pages: this host makes no transparent HugePages of such memory (/shmem is never): use another kind, or: \
         echo advise > /shmem"
    );
    let off = KnownMemory { thp: switch("never", "/thp"), ksm: switch("0", "/ksm/run"), ..host("never") };
    settle(transparent(), &off).unwrap_err();
    let merged = || with(asked(1, Pages::HostsChoice, "", NodePolicy::Bind), |placement| placement.merge = true);
    assert!(merged().needs_the_host() && transparent().needs_the_host());
    assert_eq!(
        settle(merged(), &off).unwrap_err().to_string(),
        "memory: merge: this host merges no pages now: leave out merge, or: echo 1 > /ksm/run"
    );
    settle(merged(), &KnownMemory { ksm: switch("1", "/ksm/run"), ..host("never") }).unwrap();
    // A pool that is too small falls back to what cannot be had either: both are told.
    let best = with(asked(5, Pages::Huge2M, "", NodePolicy::Bind), |placement| {
        (placement.merge, placement.honour) = (true, Honour::BestEffort);
    });
    let settled = settle(best, &off).unwrap();
    assert_eq!((settled.placement.pages, settled.placement.merge), (Pages::HostsChoice, false));
    assert_eq!(settled.differences.len(), 3);
}

#[test]
fn what_files_tell_one_by_one_settles_as_all_of_them_do_at_once() {
    let limits = [
        ("proc/meminfo", "MemAvailable:    5000000 kB"),
        ("proc/self/status", "CapEff:\t0000000000000000\nMems_allowed_list:\t0"),
        ("proc/self/limits", "Max locked memory         8388608              8388608              bytes"),
        ("proc/self/cgroup", "0::/vms"),
        ("proc/self/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0"),
        ("sys/fs/cgroup/vms/memory.max", "4294967296"),
        ("sys/fs/cgroup/vms/hugetlb.2MB.rsvd.max", "3221225472"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]"),
        ("sys/kernel/mm/transparent_hugepage/shmem_enabled", "always advise [never]"),
        ("sys/kernel/mm/ksm/run", "0"),
    ];
    let told =
        [("sys/fs/cgroup/cgroup.controllers", "cpu hugetlb"), ("sys/fs/cgroup/cgroup.subtree_control", "hugetlb")];
    let told = [&limits[..], &told].concat();
    let mut refusals = std::collections::BTreeSet::new();
    for (folder, facts) in [
        TWO_SOCKETS.recorded(&limits),
        TWO_SOCKETS.recorded(&told),
        UNEVEN_NODES.recorded(&limits),
        TWO_SOCKETS.recorded(&[]),
    ] {
        let known = KnownMemory::of(&facts);
        for choice in 0..1024 {
            let pages = [Pages::HostsChoice, Pages::Transparent, Pages::Huge2M, Pages::Huge1G][choice % 4];
            let (nodes, policy) = [
                ("", NodePolicy::Bind),
                ("1", NodePolicy::Bind),
                ("0", NodePolicy::Bind),
                ("0-1", NodePolicy::Interleave),
            ][choice / 4 % 4];
            let backing = [MemoryBacking::Anonymous, MemoryBacking::Memfd][choice / 16 % 2];
            let asked = with(asked([2, 20][choice / 32 % 2], pages, nodes, policy), |placement| {
                placement.honour = [Honour::Strictly, Honour::BestEffort][choice / 64 % 2];
                (placement.prefault, placement.lock, placement.merge) =
                    (choice / 128 % 2 == 1, choice / 256 % 2 == 1, choice / 512 == 1);
            });
            let settled = super::settle(asked.clone(), backing, &MemoryFiles::at(folder.path()));
            assert_eq!(settled, super::settle(asked, backing, &known), "choice {choice}");
            let told = settled.map_or_else(|error| vec![error], |settled| settled.differences);
            refusals
                .extend(told.iter().map(|error| format!("{error:?}").split(' ').next().unwrap_or_default().to_owned()));
        }
    }
    assert!(refusals.len() >= 9, "{refusals:?}");
}

#[test]
fn a_pool_whose_pages_are_reserved_by_the_mapping_is_counted_only_when_that_has_failed() {
    let limit = |name: &str| {
        let limit = Limit { value: GIB, file: format!("/g/hugetlb.2MB.{name}") };
        vec![HugetlbLimit { page_bytes: 2 << 20, limit }]
    };
    let before = |asked, host: &KnownMemory| settle_before_mapping(asked, MemoryBacking::Memfd, host);
    let large = asked(3, Pages::Huge2M, "", NodePolicy::Bind);
    let strict = KnownMemory { pool_reservation_limits: limit("rsvd.max"), ..host() };
    assert_eq!(before(large.clone(), &strict), Ok(large.clone()), "its mapping is refused for either");
    // A guest that touches a page beyond it would end.
    let strict = KnownMemory { pool_limits: limit("max"), ..host() };
    assert_eq!(before(large.clone(), &strict), settle(large.clone(), &strict));
    settle(large.clone(), &strict).unwrap_err();
    // What its mapping does not reserve: pages of a node, and those that are plugged later.
    let on_nodes = asked(3, Pages::Huge2M, "0-1", NodePolicy::Bind);
    let preferred = asked(3, Pages::Huge2M, "1", NodePolicy::Preferred);
    let plugged = Settled { requested_bytes: GIB, ..large };
    for asked in [on_nodes, preferred, plugged] {
        assert_eq!(before(asked.clone(), &host()), settle(asked.clone(), &host()));
        settle(asked, &host()).unwrap_err();
    }
}

#[test]
fn a_pool_on_no_node_is_held_against_the_files_of_that_pool_alone() {
    let (folder, _) = TWO_SOCKETS.recorded(&[("proc/meminfo", "")]);
    for other in ["sys/devices", "sys/kernel/mm/hugepages/hugepages-1048576kB", "proc"] {
        std::fs::remove_dir_all(folder.path().join(other)).unwrap();
    }
    let settled = super::settle(
        asked(2, Pages::Huge2M, "", NodePolicy::Bind),
        MemoryBacking::Memfd,
        &MemoryFiles::at(folder.path()),
    );
    assert_eq!(settled.unwrap().placement.pages, Pages::Huge2M);
}

#[test]
fn a_pool_that_the_mapping_counts_is_held_against_the_control_groups_limit_alone_without_the_list_of_mounts() {
    let mount = "sys/fs/cgroup";
    let files = |given: &str| {
        let mut files = vec![
            (format!("{mount}/cgroup.controllers"), "cpu hugetlb memory".to_owned()),
            (format!("{mount}/cgroup.subtree_control"), format!("cpu {given}")),
            (format!("{mount}/vms/husk/hugetlb.2MB.max"), "max".to_owned()),
        ];
        // As the kernel has them, where they are given.
        files.push((format!("{mount}/{}/hugetlb.2MB.max", if given.is_empty() { "" } else { "vms" }), GIB.to_string()));
        files.extend((!given.is_empty()).then(|| ("proc/self/cgroup".to_owned(), "0::/vms/husk".to_owned())));
        files
    };
    for given in ["hugetlb", ""] {
        let files = files(given);
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        let (folder, _) = TWO_SOCKETS.recorded(&files);
        for other in ["sys/devices", "sys/kernel"] {
            std::fs::remove_dir_all(folder.path().join(other)).unwrap();
        }
        let before = |gib_halves| {
            let asked = asked(gib_halves, Pages::Huge2M, "", NodePolicy::Bind);
            settle_before_mapping(asked, MemoryBacking::Memfd, &MemoryFiles::at(folder.path()))
        };
        before(2).unwrap();
        let refused = before(3).unwrap_err().to_string();
        let file =
            if given.is_empty() { "/sys/fs/cgroup/hugetlb.2MB.max" } else { "/sys/fs/cgroup/vms/hugetlb.2MB.max" };
        assert!(refused.contains(&format!("may have 1024 MiB of HugePages of 2M ({file})")), "{refused}");
    }
}
