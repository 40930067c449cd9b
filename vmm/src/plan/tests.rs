//! Plans of drawn hosts, and what holds of every plan.

mod whole_way;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::host::sketch::{EPYC_NPS4, OFFLINE_CPUS, SINGLE, Sketch, TWO_SOCKETS, UNEVEN_NODES};
use crate::host::{Facts, HugetlbLimit, Limit};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const SKETCHES: [&Sketch; 5] = [&SINGLE, &OFFLINE_CPUS, &UNEVEN_NODES, &TWO_SOCKETS, &EPYC_NPS4];
static GROUNDS: LazyLock<[Ground; 5]> = LazyLock::new(|| SKETCHES.map(ground));

fn ground(sketch: &Sketch) -> Ground {
    Ground::of(&sketch.facts()).unwrap()
}

fn vm(name: &str, vcpus: u16, memory_bytes: u64, page_bytes: Option<u64>) -> VmDemand {
    let nodes = vec![GuestNode { vcpus: (0..vcpus).collect(), memory_bytes }];
    VmDemand { name: name.to_owned(), nodes, page_bytes, siblings: Siblings::Idle, may_grow_bytes: 0 }
}

fn ratio(text: &str) -> Overcommit {
    text.parse().unwrap()
}

/// Node and CPUs of each part.
fn parts(vm: &VmPlan) -> Vec<(u16, Vec<u16>)> {
    vm.parts.iter().map(|part| (part.node, part.cpus.clone())).collect()
}

#[test]
fn a_vm_is_whole_on_one_node_and_in_one_cache() {
    let vms = [vm("a", 6, 8 * GIB, Some(2 * MIB)), vm("b", 4, 8 * GIB, Some(2 * MIB))];
    let plan = plan(&ground(&EPYC_NPS4), &vms, Overcommit::NONE);
    assert_eq!(parts(&plan.vms[0]), [(0, (0..6).collect())]);
    // Two CPUs are left of the first cache, so the second VM has the second one.
    assert_eq!(parts(&plan.vms[1]), [(0, (8..12).collect())]);
    assert_eq!(plan.vms[0].parts[0].pages, 4096);
    // Neither vCPUs nor their siblings (64 to 69, 72 to 75).
    assert_eq!(plan.vms[0].io_cpus.to_string(), "6-7,12-15,70-71,76-79");
    assert_eq!(plan.vms[0].cpu_time, Some(1.0));
    let pool = &plan.nodes[0].pools[0];
    assert_eq!((pool.page_bytes, pool.pages, pool.pages_left), (2 * MIB, 8192, 24576));
    assert_eq!(plan.mend, []);
}

#[test]
fn isolated_cpus_go_first_and_io_threads_run_on_the_others() {
    let plan = plan(&ground(&TWO_SOCKETS), &[vm("a", 4, 4 * GIB, Some(GIB))], Overcommit::NONE);
    assert_eq!(parts(&plan.vms[0]), [(0, vec![4, 5, 6, 7])]);
    assert_eq!(plan.vms[0].io_cpus.to_string(), "0-3,32-35");
}

#[test]
fn threads_of_a_core_are_shared_by_those_alone_who_say_so() {
    let shared = |name, vcpus| VmDemand { siblings: Siblings::Shared, ..vm(name, vcpus, GIB, None) };
    let vms = [vm("a", 2, 4 * GIB, None), shared("b", 3), shared("c", 1)];
    let plan = plan(&ground(&EPYC_NPS4), &vms, Overcommit::NONE);
    assert_eq!(parts(&plan.vms[0]), [(0, vec![0, 1])]);
    assert_eq!(parts(&plan.vms[1]), [(0, vec![2, 66, 3])]);
    // The odd thread that the second VM left.
    assert_eq!(parts(&plan.vms[2]), [(0, vec![67])]);
}

#[test]
fn a_vm_is_split_only_by_its_own_nodes() {
    let nodes = [0..12, 12..24].map(|vcpus| GuestNode { vcpus: vcpus.collect(), memory_bytes: 40 * GIB }).to_vec();
    let split = VmDemand { nodes, ..vm("a", 0, 0, Some(GIB)) };
    let plan_of = |vm: &VmDemand| plan(&ground(&TWO_SOCKETS), std::slice::from_ref(vm), Overcommit::NONE);
    let plan = plan_of(&split);
    assert_eq!(parts(&plan.vms[0]), [(0, (4..16).collect()), (1, (20..32).collect())]);
    assert_eq!((plan.vms[0].parts[1].pages, plan.vms[0].parts[1].vcpus.to_string()), (40, "12-23".to_owned()));
    let plan = plan_of(&vm("a", 24, 80 * GIB, Some(GIB)));
    assert_eq!(plan.vms[0].parts, []);
    let misses: Vec<_> = plan.vms[0].misses.iter().map(|miss| (miss.node, miss.vcpus, miss.pages)).collect();
    assert_eq!(misses, [(0, 8, 0), (1, 8, 0)]);
}

#[test]
fn what_is_lacking_for_a_vm_that_can_be_split_is_lacking_for_one_of_its_nodes() {
    // 16 cores on each node: the first guest node fits, the second lacks 4.
    let nodes = [0..16, 16..36].map(|vcpus| GuestNode { vcpus: vcpus.collect(), memory_bytes: 40 * GIB }).to_vec();
    let vm = VmDemand { nodes, ..vm("a", 0, 0, Some(GIB)) };
    let plan = plan(&ground(&TWO_SOCKETS), &[vm], Overcommit::NONE);
    let misses: Vec<_> = plan.vms[0].misses.iter().map(|miss| (miss.node, miss.vcpus, miss.pages)).collect();
    assert_eq!(misses, [(0, 20, 0), (1, 4, 0)]);
    assert_eq!(plan.mend[0].lacks, "CPUs for 4 vCPUs");
}

#[test]
fn memory_is_promised_once_whatever_nodes_tell_of_it() {
    let mut facts = TWO_SOCKETS.facts();
    facts.memory.available_bytes = Some(4 * GIB);
    let vms = [vm("a", 1, 4 * GIB, None), vm("b", 1, 4 * GIB, None)];
    let plan = plan(&Ground::of(&facts).unwrap(), &vms, Overcommit::NONE);
    assert_eq!((plan.vms[0].parts.len(), plan.vms[1].parts.len()), (1, 0));
    assert_eq!(plan.vms[1].misses.iter().map(|miss| miss.memory_bytes).collect::<Vec<_>>(), [4 * GIB; 2]);
}

#[test]
fn what_the_control_group_may_have_is_all_that_is_promised() {
    let limit = |value, file: &str| Limit { value, file: file.to_owned() };
    let mut facts = TWO_SOCKETS.facts();
    facts.limits.memory_bytes = Some(limit(4 * GIB, "/g/memory.max"));
    facts.limits.hugetlb = vec![HugetlbLimit { page_bytes: GIB, limit: limit(2 * GIB, "/g/hugetlb.1GB.max") }];
    let read = Ground::parse(&serde_json::json!({ "facts": facts }).to_string()).unwrap();
    for ground in [Ground::of(&facts).unwrap(), read] {
        let lacks = |page_bytes| {
            let vms = [vm("a", 1, 2 * GIB, page_bytes), vm("b", 1, 3 * GIB, page_bytes)];
            plan(&ground, &vms, Overcommit::NONE).mend
        };
        let mend = |lacks: &str, fix: &str| {
            let lacks = format!("{lacks} in husk's control group");
            [Mend { node: None, lacks, fix: fix.to_owned() }]
        };
        // With what maps them, and husk for each.
        assert_eq!(lacks(None), mend("1182 MiB of memory", "echo 5534384128 > /g/memory.max, or fewer VMs"));
        assert_eq!(lacks(Some(GIB)), mend("3 pages of 1024 MiB", "echo 5368709120 > /g/hugetlb.1GB.max"));
        let whole = plan(&ground, &[vm("a", 1, 4 * GIB, None)], Overcommit::NONE);
        assert_eq!(whole.vms[0].misses.iter().map(|miss| miss.memory_bytes / MIB).collect::<Vec<_>>(), [88; 2]);
    }
}

#[test]
fn a_limit_is_told_once_for_all_vms_and_hides_no_pool_that_is_too_small() {
    let mut facts = TWO_SOCKETS.facts();
    for pool in facts.cpu.nodes.iter_mut().flat_map(|node| &mut node.pools).filter(|pool| pool.page_bytes == GIB) {
        (pool.total, pool.free) = (3, 3);
    }
    let limit = Limit { value: 2 * GIB, file: "/g/hugetlb.1GB.max".to_owned() };
    facts.limits.hugetlb = vec![HugetlbLimit { page_bytes: GIB, limit }];
    let ground = Ground::of(&facts).unwrap();
    let file = |node| format!("/sys/devices/system/node/node{node}/hugepages/hugepages-1048576kB/nr_hugepages");
    let of_node = |node| Mend {
        node: Some(node),
        lacks: "2 pages of 1024 MiB".to_owned(),
        fix: format!("echo 5 > {}", file(node)),
    };
    let of_group = |pages: u64| Mend {
        node: None,
        lacks: format!("{} pages of 1024 MiB in husk's control group", pages - 2),
        fix: format!("echo {} > /g/hugetlb.1GB.max", pages * GIB),
    };
    // Of 16 cores, two VMs of 12 have a node each.
    let large = |name| vm(name, 12, 5 * GIB, Some(GIB));
    assert_eq!(plan(&ground, &[large("a")], Overcommit::NONE).mend, [of_node(0), of_group(5)]);
    let both = plan(&ground, &[large("a"), large("b")], Overcommit::NONE).mend;
    assert_eq!(both, [of_node(0), of_node(1), of_group(10)]);
}

#[test]
fn a_node_without_memory_and_one_without_cpus_get_no_vm() {
    let vms = [vm("a", 4, 8 * GIB, None), vm("b", 4, 8 * GIB, None)];
    let plan = plan(&ground(&UNEVEN_NODES), &vms, Overcommit::NONE);
    assert_eq!(parts(&plan.vms[0]), [(0, vec![0, 1, 2, 3])]);
    assert_eq!(plan.vms[1].parts, []);
}

#[test]
fn a_pool_that_is_too_small_is_mended_by_the_command_that_is_told() {
    let vms = [vm("a", 1, GIB, Some(2 * MIB)), vm("b", 1, 2 * GIB, Some(2 * MIB)), vm("c", 1, GIB, Some(2 * MIB))];
    let plan = plan(&ground(&SINGLE), &vms, Overcommit::NONE);
    assert_eq!(parts(&plan.vms[1]), [(0, vec![0])]);
    let miss = Miss { node: 0, vcpus: 0, memory_bytes: 0, page_bytes: Some(2 * MIB), pages: 512 };
    assert_eq!(plan.vms[0].misses, [miss]);
    // Both that are left out.
    assert_eq!(
        plan.mend,
        [Mend {
            node: Some(0),
            lacks: "1024 pages of 2 MiB".to_owned(),
            fix: "echo 2048 > /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages".to_owned(),
        }]
    );
}

#[test]
fn pages_that_are_reserved_on_a_node_that_is_not_told_are_not_promised() {
    let mut ground = ground(&TWO_SOCKETS);
    ground.pools.insert(GIB, 3);
    let vms = [vm("a", 1, 2 * GIB, Some(GIB)), vm("b", 1, 2 * GIB, Some(GIB))];
    let plan = plan(&ground, &vms, Overcommit::NONE);
    assert_eq!((plan.vms[0].parts.len(), plan.vms[1].parts.len()), (1, 0));
}

#[test]
fn overcommitted_cpus_are_promised_evenly_and_say_what_is_left_of_each() {
    let vms = [vm("a", 6, GIB, None), vm("b", 6, GIB, None)];
    let refused = plan(&ground(&SINGLE), &vms, Overcommit::NONE);
    assert_eq!(refused.vms[1].parts, []);
    let mend = Mend { node: None, lacks: "CPUs for 4 vCPUs".to_owned(), fix: "husk plan --overcommit 1.5".to_owned() };
    assert_eq!(refused.mend, [mend]);
    let plan = plan(&ground(&SINGLE), &vms, ratio("1.5"));
    assert_eq!(parts(&plan.vms[0]), [(0, (0..6).collect())]);
    assert_eq!(parts(&plan.vms[1]), [(0, vec![6, 7, 0, 1, 2, 3])]);
    assert_eq!(plan.vms[1].cpu_time, Some(0.5));
    assert_eq!((plan.nodes[0].overcommit, plan.nodes[0].cpu_time), (1.5, 1.0 / 1.5));
    // Nothing is spare, so each VM's I/O threads are where its vCPUs are.
    assert_eq!(plan.vms[0].io_cpus.to_string(), "0-5");
}

#[test]
fn an_overcommit_ratio_is_a_decimal_from_1_to_64() {
    for (text, thousandths) in [("1", 1000), ("1.0", 1000), ("2.5", 2500), ("1.125", 1125), ("64", 64000)] {
        assert_eq!(ratio(text).thousandths(), thousandths);
    }
    for text in ["0", "0.9", "-1", "NaN", "inf", "64.001", "1e1", "1.", ".5", "+2", "1.0625", "", "100", "٢"] {
        let error = text.parse::<Overcommit>().unwrap_err().to_string();
        let expected = "is no overcommit ratio: use 1 to 64, with at most three decimals, as in 1.5";
        assert_eq!(error, format!("`{text}` {expected}"));
    }
}

#[test]
fn a_vms_file_says_what_it_asks_for() {
    let parse = |text: &str| VmDemand::parse("a", text, Siblings::Idle);
    let file = r#"{"machine-config": {"vcpu_count": 2, "mem_size_mib": 1024, "huge_pages": "2M"}, "drives": 7}"#;
    assert_eq!(parse(file).unwrap(), vm("a", 2, GIB, Some(2 * MIB)));
    let file = r#"{"machine-config": {"vcpu_count": 2, "mem_size_mib": 1024, "smt": true},
        "husk": {"placement": {"memory": {"pages": "1G"}}}}"#;
    let wanted = VmDemand { siblings: Siblings::Shared, ..vm("a", 2, GIB, Some(GIB)) };
    assert_eq!(parse(file).unwrap(), wanted);
    let file = r#"{"machine-config": {"vcpu_count": 3, "mem_size_mib": 1024}, "husk": {"placement": {"numa": [
        {"cpus": "0,2", "mem_size_mib": 256}, {"cpus": "1", "mem_size_mib": 768}]}}}"#;
    let node = |vcpus: &str, mib| GuestNode { vcpus: vcpus.parse().unwrap(), memory_bytes: mib * MIB };
    assert_eq!(parse(file).unwrap().nodes, [node("0,2", 256), node("1", 768)]);

    let file =
        r#"{"machine-config": {"vcpu_count": 2, "mem_size_mib": 1024}, "memory-hotplug": {"total_size_mib": 2048}}"#;
    assert_eq!(parse(file).unwrap(), VmDemand { may_grow_bytes: 2 * GIB, ..vm("a", 2, GIB, None) });

    let machine =
        |fields: &str| crate::describe(&parse(&format!(r#"{{"machine-config": {{{fields}}}}}"#)).unwrap_err());
    let table = [
        (r#""vcpu_count": 0, "mem_size_mib": 1"#, "vcpu_count: cpus: 0 vCPUs are not possible: ask for 1 to 64"),
        (r#""vcpu_count": 1, "mem_size_mib": 0"#, "mem_size_mib: memory: 0 bytes: a machine needs at least 1M"),
        (
            r#""vcpu_count": 1, "mem_size_mib": 3, "huge_pages": "2M""#,
            "memory: 3 MiB is not a whole number of 2M pages: use 2M or 4M",
        ),
    ];
    for (fields, message) in table {
        assert_eq!(machine(fields), message);
    }
    let split = r#"{"machine-config": {"vcpu_count": 4, "mem_size_mib": 512, "smt": true}, "husk": {"placement": {"numa": [
        {"cpus": "0-2", "mem_size_mib": 256}, {"cpus": "3", "mem_size_mib": 256}]}}}"#;
    let refused = crate::describe(&parse(split).unwrap_err());
    assert!(refused.contains("vCPUs 2 and 3 are one core's threads (smt) and in the nodes 0 and 1"), "{refused}");
    assert!(machine(r#""vcpu_count": "x", "mem_size_mib": 1"#).starts_with("machine-config.vcpu_count: invalid type"));
}

#[test]
fn what_husk_host_prints_is_read_back_as_the_same_host() {
    let facts: Facts = EPYC_NPS4.facts();
    let read = Ground::parse(&serde_json::json!({ "verdicts": [], "facts": facts }).to_string()).unwrap();
    let vms = [vm("a", 20, 100 * GIB, None), vm("b", 4, GIB, Some(2 * MIB))];
    let both = [&read, &ground(&EPYC_NPS4)].map(|ground| plan(ground, &vms, ratio("2")));
    assert_eq!(both[0], both[1]);
}

#[test]
fn a_host_that_contradicts_itself_is_refused_with_what_is_wrong() {
    let refused = |change: fn(&mut Facts)| {
        let mut facts = TWO_SOCKETS.facts();
        change(&mut facts);
        Ground::of(&facts).unwrap_err().to_string()
    };
    let hint = "record the host again (husk host --json)";
    let message = refused(|facts| facts.cpu.nodes[1].id = 0);
    assert_eq!(message, format!("facts.cpu.nodes: node 0 is there twice: {hint}"));
    let message = refused(|facts| facts.cpu.nodes[1].cpus = "5".parse().unwrap());
    assert_eq!(message, format!("facts.cpu.nodes: CPU 5 is there twice: {hint}"));
    let message = refused(|facts| facts.cpu.online = None);
    assert_eq!(message, format!("facts.cpu.online: has no CPU that husk may use: {hint}"));
    let message = Ground::parse(r#"{"facts": {"cpu": {"online": "0-x"}}}"#).unwrap_err().to_string();
    assert!(message.starts_with("facts.cpu.online: `0-x` is neither a number"), "{message}");
}

#[test]
fn cpus_and_nodes_outside_of_the_cpuset_are_not_there() {
    let mut facts = TWO_SOCKETS.facts();
    facts.limits.cpuset_cpus = Some("0-7,16-63".parse().unwrap());
    facts.limits.cpuset_mems = Some("0".parse().unwrap());
    let plan = plan(&Ground::of(&facts).unwrap(), &[vm("a", 9, GIB, None)], Overcommit::NONE);
    // The siblings of 0 to 7, and of 8 to 15, whose first threads are not allowed, are.
    assert_eq!(parts(&plan.vms[0]), [(0, vec![4, 5, 6, 7, 40, 41, 42, 43, 44])]);
}

fn any_vm() -> impl Strategy<Value = VmDemand> {
    let pages = prop::sample::select(vec![None, Some(2 * MIB), Some(GIB)]);
    let node = (1..20u16, 1..24u64)
        .prop_map(|(vcpus, gib)| GuestNode { vcpus: (0..vcpus).collect(), memory_bytes: gib * GIB });
    (prop::collection::vec(node, 1..3), pages, any::<bool>()).prop_map(|(mut nodes, page_bytes, shared)| {
        // A vCPU is in one node: those of the second come behind those of the first.
        let behind = u16::try_from(nodes[0].vcpus.len()).unwrap();
        if let Some(second) = nodes.get_mut(1) {
            second.vcpus = second.vcpus.iter().map(|vcpu| vcpu + behind).collect();
        }
        let siblings = if shared { Siblings::Shared } else { Siblings::Idle };
        VmDemand { name: String::new(), nodes, page_bytes, siblings, may_grow_bytes: 0 }
    })
}

fn any_vms() -> impl Strategy<Value = Vec<VmDemand>> {
    prop::collection::vec(any_vm(), 1..24).prop_map(|mut vms| {
        vms.iter_mut().enumerate().for_each(|(index, vm)| vm.name = format!("vm{index}"));
        vms
    })
}

fn any_ratio() -> impl Strategy<Value = Overcommit> {
    prop::sample::select(vec!["1", "1.25", "2", "3.7"]).prop_map(ratio)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_is_promised_more_often_than_was_said(which in 0..5usize, vms in any_vms(), overcommit in any_ratio()) {
        let ground = &GROUNDS[which];
        let plan = plan(ground, &vms, overcommit);
        let mut promised = BTreeMap::<u16, (u32, BTreeSet<bool>)>::new();
        let mut memory = BTreeMap::<(u16, Option<u64>), u64>::new();
        for (vm, told) in vms.iter().zip(&plan.vms) {
            prop_assert!(told.parts.is_empty() != told.misses.is_empty());
            prop_assert!(told.parts.len() <= vm.nodes.len());
            let vcpus: usize = told.parts.iter().map(|part| part.cpus.len()).sum();
            prop_assert!(told.parts.is_empty() || vcpus == usize::try_from(vm.vcpus()).unwrap());
            for part in &told.parts {
                *memory.entry((part.node, part.page_bytes)).or_default() += part.memory_bytes;
                for &cpu in &part.cpus {
                    let (count, kinds) = promised.entry(cpu).or_default();
                    *count += 1;
                    kinds.insert(vm.siblings == Siblings::Idle);
                }
            }
        }
        for node in &ground.nodes {
            let mut work = 0;
            for core in &node.cores {
                let on_core: Vec<_> = core.cpus.iter().filter_map(|cpu| promised.remove(cpu)).collect();
                let kinds: BTreeSet<bool> = on_core.iter().flat_map(|(_, kinds)| kinds.clone()).collect();
                prop_assert!(kinds.len() < 2, "a core serves one kind");
                let idle = kinds.contains(&true);
                prop_assert!(!idle || on_core.len() == 1, "siblings are idle");
                let rounds = overcommit.thousandths().div_ceil(1000);
                prop_assert!(on_core.iter().all(|(count, _)| *count <= rounds));
                let count: u32 = on_core.iter().map(|(count, _)| count).sum();
                work += count * if idle { u32::try_from(core.cpus.len()).unwrap() } else { 1 };
            }
            let threads: usize = node.cores.iter().map(|core| core.cpus.len()).sum();
            prop_assert!(work * 1000 <= u32::try_from(threads).unwrap() * overcommit.thousandths());
            let of = |page| memory.get(&(node.id, page)).copied().unwrap_or(0);
            prop_assert!(of(None) <= node.memory_bytes);
            for page in [2 * MIB, GIB] {
                let pool = node.pools.iter().find(|pool| pool.page_bytes == page);
                prop_assert!(of(Some(page)) / page <= pool.map_or(0, |pool| pool.free));
            }
        }
        prop_assert!(promised.is_empty(), "CPUs of no node: {promised:?}");
    }

    #[test]
    fn the_order_of_the_vms_changes_nothing(
        which in 0..5usize,
        (vms, shuffled) in any_vms().prop_flat_map(|vms| (Just(vms.clone()), Just(vms).prop_shuffle())),
        overcommit in any_ratio(),
    ) {
        let ground = &GROUNDS[which];
        let plan_of = |vms: &[VmDemand]| {
            let Plan { vms, nodes, mend } = plan(ground, vms, overcommit);
            let by_name: BTreeMap<String, VmPlan> = vms.into_iter().map(|vm| (vm.vm.clone(), vm)).collect();
            (by_name, nodes, mend)
        };
        prop_assert_eq!(plan_of(&vms), plan_of(&shuffled));
    }

    #[test]
    fn the_ratio_that_is_told_does(which in 0..5usize, vms in any_vms()) {
        let ground = &GROUNDS[which];
        let told = plan(ground, &vms, Overcommit::NONE);
        let fix = told.mend.iter().find_map(|mend| mend.fix.strip_prefix("husk plan --overcommit "));
        if let Some(fix) = fix {
            let again = plan(ground, &vms, ratio(fix));
            prop_assert!(again.mend.iter().all(|mend| mend.node.is_some()), "{fix}: {:?}", again.mend);
        }
    }

    #[test]
    fn no_text_brings_the_readers_down(text in "[\\[\\]{}\":,0-9a-z\\-]{0,60}") {
        let _ = (Ground::parse(&text), VmDemand::parse("a", &text, Siblings::Idle));
    }
}
