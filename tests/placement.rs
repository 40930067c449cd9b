//! Guest memory on the pages and nodes that were asked for: given and looked up, or refused with nothing left behind.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::ended::Ended;
use common::guest::PROBE;
use common::pool::Pool;
use common::vm::Vm;
use common::{Launch, husk, through_shell};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// A VM of 64 MiB that runs with this placement.
fn placed(machine: &Value, placement: &Value) -> Vm {
    let mut vm = Vm::new();
    vm.describe("check=serial end=poweroff");
    if machine != &json!({}) {
        vm.patch("/machine-config", machine).done();
    }
    vm.put("/husk/v1/placement", placement).done();
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    vm.husk.wait_for("SERIAL WAIT");
    vm
}

fn bytes(memory: &Value, field: &str) -> u64 {
    memory[field].as_u64().unwrap_or_else(|| panic!("no {field} in {memory}"))
}

#[test]
fn memory_of_huge_pages_on_a_node_is_there_before_the_guest_and_told_page_by_page() {
    let pool = Pool::of_2m(32);
    for backing in ["anonymous", "shared"] {
        let before = pool.free();
        let size = if backing == "shared" { "64M,shared,pages=2M,nodes=0" } else { "64M,pages=2M,nodes=0" };
        let folder = common::folder::Folder::new();
        let socket = folder.at("s");
        let run = ["run", "--kernel", PROBE, "--cmdline", "check=serial end=poweroff", "--memory", size];
        let husk = husk(run).args(["--api-sock", &socket]).start();
        husk.wait_for("SERIAL WAIT");
        let report = common::http::Connection::open(&socket).ask("GET", "/husk/v1/placement", "").json();
        let memory = &report["memory"];
        assert_eq!(bytes(memory, "pool_bytes"), 64 * MIB, "{backing}: {report}");
        assert_eq!(bytes(memory, "resident_bytes"), 64 * MIB, "{backing}: {report}");
        assert_eq!(bytes(memory, "elsewhere_bytes"), 0, "{backing}: {report}");
        assert_eq!(memory["regions"][0]["resident_by_node"], json!({ "0": 64 * MIB }), "{backing}: {report}");
        let by_size = json!({ "2M": { "0": 64 * MIB } });
        assert_eq!(memory["regions"][0]["resident_by_size"], by_size, "{backing}: {report}");
        assert_eq!((bytes(memory, "dumpable_bytes"), bytes(memory, "mergeable_bytes")), (0, 0), "{backing}: {report}");
        let told = common::husk(["ctl", "--api-sock", &socket, "placement"]).end().went_well().text();
        for line in ["memory.given.pages", "memory.pool_bytes", "memory.regions.0.resident_by_size.2M.0"] {
            let line = told.lines().find(|told| told.starts_with(line)).unwrap_or_else(|| panic!("no {line}: {told}"));
            assert!(line.ends_with("  2M") || line.ends_with("  67108864"), "{line}");
        }
        assert_eq!(before - pool.free(), 32, "{backing}");
        husk.signal(libc::SIGTERM);
        assert_eq!(husk.end().code(), Some(0));
        assert_eq!(pool.free(), before, "{backing}: given back");
    }
}

#[test]
fn a_machine_that_restarts_has_its_pages_again_out_of_a_pool_that_has_no_others() {
    let pool = Pool::of_2m(32);
    let before = pool.free();
    let folder = common::folder::Folder::new();
    let socket = folder.at("s");
    let run = ["run", "--kernel", PROBE, "--cmdline", "check=serial end=i8042", "--memory", "64M,pages=2M,nodes=0"];
    let mut husk = husk(run).args(["--on-reboot", "restart", "--api-sock", &socket]).typed();
    for boot in 1..=3 {
        husk.wait_for_times("SERIAL WAIT", boot);
        let report = common::http::Connection::open(&socket).ask("GET", "/husk/v1/placement", "").json();
        let by_size = &report["memory"]["regions"][0]["resident_by_size"];
        assert_eq!(by_size, &json!({ "2M": { "0": 64 * MIB } }), "boot {boot}: {report}");
        assert_eq!(before - pool.free(), 32, "boot {boot}");
        husk.type_in(b"end\n");
    }
    husk.wait_for_times("SERIAL WAIT", 4);
    husk.signal(libc::SIGTERM);
    assert_eq!(husk.end().code(), Some(0));
    assert_eq!(pool.free(), before, "given back");
}

#[test]
fn what_is_planned_is_told_before_the_start() {
    let mut vm = Vm::new();
    vm.describe("check=serial end=poweroff");
    vm.patch("/machine-config", &json!({ "vcpu_count": 2 })).done();
    let numa = json!([{ "cpus": "0", "mem_size_mib": 24, "nodes": "0" }, { "cpus": "1", "mem_size_mib": 40 }]);
    let placement = json!({ "memory": { "shared": true }, "numa": numa, "threads": { "vcpu1": { "cpus": "0-1" } } });
    vm.put("/husk/v1/placement", &placement).done();
    assert_eq!(vm.get("/husk/v1/config")["memory_backing"], "memfd");
    let report = vm.get("/husk/v1/placement");
    let regions = report["memory"]["regions"].as_array().unwrap_or_else(|| panic!("{report}"));
    let of = |region: &Value| (bytes(region, "guest_address"), bytes(region, "bytes"), region["nodes"].clone());
    let planned: Vec<_> = regions.iter().map(of).collect();
    assert_eq!(planned, [(0, 24 * MIB, json!("0")), (24 * MIB, 40 * MIB, json!(null))], "{report}");
    let thread = thread(&report, "vcpu1");
    assert_eq!((&thread["asked_cpus"], &thread["tid"]), (&json!("0-1"), &json!(null)), "{report}");
    vm.put("/husk/v1/placement", &json!({ "memory": { "shared": false } })).done();
    assert_eq!(vm.get("/husk/v1/config")["memory_backing"], "anonymous");
}

#[test]
fn firecrackers_huge_pages_come_from_the_pool_as_the_guest_touches_them() {
    let pool = Pool::of_2m(32);
    let mut vm = placed(&json!({ "huge_pages": "2M" }), &json!({}));
    let memory = vm.get("/husk/v1/placement")["memory"].clone();
    let there = bytes(&memory, "pool_bytes");
    assert!((2 * MIB..=64 * MIB).contains(&there) && there.is_multiple_of(2 * MIB), "{memory}");
    assert_eq!(bytes(&memory, "resident_bytes"), there, "{memory}");
    assert_eq!(vm.get("/machine-config")["huge_pages"], "2M");
    vm.stop();
    drop(pool);
}

#[test]
fn a_pool_that_somebody_else_empties_ends_in_a_refusal_and_never_in_a_signal() {
    // Enough for one machine and a half: of two that start at once at most one gets what it checked for.
    let pool = Pool::of_2m(48);
    let free = pool.free();
    let start =
        || husk(["run", "--kernel", PROBE, "--cmdline", "end=poweroff", "--memory", "64M,pages=2M,nodes=0"]).start();
    for round in 0..10 {
        let both = [start(), start()].map(common::Husk::end);
        for ended in &both {
            match ended.code() {
                Some(0) => {}
                Some(1) => assert!(ended.stderr.contains("HugePages"), "round {round}: {ended}"),
                _ => panic!("round {round}: {ended}"),
            }
        }
        assert_eq!(pool.free(), free, "round {round}: nothing is left reserved");
    }
}

#[test]
fn a_pool_that_is_too_small_is_refused_with_the_shortfall_unless_the_best_effort_is_enough() {
    let pool = Pool::of_2m(8);
    let short = 32 - pool.free();
    let start = json!({ "action_type": "InstanceStart" });
    // Counted before the mapping, and after it has failed.
    for (memory, place, mend) in [
        (json!({ "pages": "2M", "nodes": "0" }), "node 0", "/sys/devices/system/node/node0/hugepages/hugepages-2048kB"),
        (json!({ "pages": "2M" }), "any node", "/sys/kernel/mm/hugepages/hugepages-2048kB"),
    ] {
        let mut vm = Vm::new();
        vm.describe("check=serial end=poweroff");
        vm.put("/husk/v1/placement", &json!({ "memory": memory })).done();
        let needed = format!("32 HugePages of 2M are needed on {place} and");
        vm.put("/actions", &start).refused(&[
            &needed,
            &format!("{short} short: echo "),
            &format!("{mend}/nr_hugepages"),
        ]);
        assert_eq!(vm.state(), "Not started");
        vm.put("/husk/v1/placement", &json!({ "memory": memory, "best_effort": true })).done();
        vm.put("/actions", &start).done();
        vm.husk.wait_for("SERIAL WAIT");
        let report = vm.get("/husk/v1/placement");
        assert_eq!(report["memory"]["given"]["pages"], "transparent", "{report}");
        assert!(report["differences"][0].as_str().is_some_and(|text| text.contains(&needed)), "{report}");
        vm.stop();
    }
}

/// Of the tests themselves: whatever ends one of them, the host's pool is as it was. The one that is killed is a process that
/// runs this test again.
#[test]
fn a_pool_is_as_it_was_after_the_process_that_raised_it_is_killed() {
    const INSIDE: &str = "HUSK_TEST_HOLDS_A_POOL";
    if std::env::var_os(INSIDE).is_some() {
        let _pool = Pool::of_2m(4);
        println!("HOLDS");
        return std::thread::sleep(Duration::from_secs(60));
    }
    let pages = || {
        let lock = fs::File::create("/run/husk-test-pool.lock").unwrap();
        lock.lock().unwrap();
        let file = "/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages";
        fs::read_to_string(file).unwrap().trim().parse::<u64>().unwrap()
    };
    let before = pages();
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_pool_is_as_it_was_after_the_process_that_raised_it_is_killed", "--nocapture"])
        .env(INSIDE, "")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("HOLDS")), "it has raised the pool");
    holder.kill().unwrap();
    holder.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while pages() != before {
        assert!(Instant::now() < deadline, "the pool had {before} pages and has {}", pages());
        std::thread::yield_now();
    }
}

/// Where the host has its control groups of version 2, and of version 1 those of a controller, if it has them.
fn control_groups(controller: Option<&str>) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = lines.find(|line| match controller {
        None => line[2] == "cgroup2",
        Some(controller) => line[2] == "cgroup" && line[3].split(',').any(|option| option == controller),
    });
    found.map(|line| PathBuf::from(line[1]))
}

/// A control group of our own, which is gone with this.
struct Group {
    folder: PathBuf,
    /// A controller that groups have since then, where it is said that they have, and must be said again when it is no longer.
    given: Option<(PathBuf, String)>,
}

impl Group {
    /// With one limit.
    fn limited(mount: &Path, limit: &str, value: u64) -> Self {
        // Of version 2, groups have a controller only where that is said above them.
        let given = mount.join("cgroup.subtree_control");
        let controller = limit.split('.').next().unwrap();
        let lacks = fs::read_to_string(&given).is_ok_and(|has| !has.split_whitespace().any(|name| name == controller));
        let given = lacks.then(|| {
            fs::write(&given, format!("+{controller}")).unwrap();
            (given, format!("-{controller}"))
        });
        let group = Self { folder: mount.join(format!("husk-test-{}", std::process::id())), given };
        fs::create_dir_all(&group.folder).unwrap();
        fs::write(group.folder.join(limit), value.to_string()).unwrap();
        group
    }

    fn run(&self, memory: &str) -> Ended {
        self.launch(memory, "end=poweroff").end()
    }

    fn launch(&self, memory: &str, words: &str) -> Launch {
        let run = ["run", "--kernel", PROBE, "--cmdline", words, "--memory", memory];
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.folder.display());
        through_shell(&script, &husk(run))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel goes on taking a process apart after it has been reaped.
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir(&self.folder).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        if let Some((given, no_longer)) = &self.given {
            // Somebody else's groups may have it by now.
            let _ = fs::write(given, no_longer);
        }
    }
}

#[test]
fn a_control_group_that_is_too_small_is_refused_with_the_command_that_does() {
    let pool = Pool::of_2m(32);
    let free = pool.free();
    let unified = control_groups(None).expect("control groups of version 2");
    let (memory_groups, memory_limit) = match control_groups(Some("memory")) {
        Some(mount) => (mount, "memory.limit_in_bytes"),
        None => (unified.clone(), "memory.max"),
    };
    let limits = [
        (&memory_groups, memory_limit, "64M,prefault", "husk's control group may have 32 MiB"),
        (&unified, "hugetlb.2MB.max", "64M,pages=2M", "may have 32 MiB of HugePages of 2M"),
        (&unified, "hugetlb.2MB.rsvd.max", "64M,pages=2M", "may have 32 MiB of HugePages of 2M"),
    ];
    for (mount, limit, memory, part) in limits {
        let group = Group::limited(mount, limit, 32 * MIB);
        let ended = group.run(memory);
        let message = ended.message();
        assert!(ended.code() == Some(1) && message.contains(part), "{limit}: {ended}");
        assert_eq!(pool.free(), free, "{limit}: nothing is left reserved");
        let (_, mend) = message.split_once(", or: ").unwrap_or_else(|| panic!("{limit}: {ended}"));
        assert!(Command::new("sh").args(["-c", mend]).status().unwrap().success(), "{limit}: {mend}");
        group.run(memory).went_well();
    }
}

#[test]
fn a_pool_that_lacks_pages_when_they_are_to_come_is_gone_without_if_the_best_effort_is_enough() {
    let pool = Pool::of_2m(32 + 32);
    let unified = control_groups(None).expect("control groups of version 2");
    let group = Group::limited(&unified, "hugetlb.2MB.max", 96 * MIB);
    let neighbour = group.launch("64M,pages=2M,nodes=0", "check=serial end=poweroff").start();
    neighbour.wait_for("SERIAL WAIT");
    let free = pool.free();
    let refused = group.run("64M,pages=2M,nodes=0");
    let message = "memory: cannot prefault (MADV_POPULATE_WRITE) 64 MiB at guest address 0x0";
    assert!(refused.code() == Some(1) && refused.message().contains(message), "{refused}");
    let ended = group.run("64M,pages=2M,nodes=0,best_effort");
    assert!(ended.code() == Some(0) && ended.stderr.contains(&format!("best effort: {message}")), "{ended}");
    assert_eq!(pool.free(), free, "nothing is left of either");
    neighbour.signal(libc::SIGTERM);
    assert_eq!(neighbour.end().code(), Some(0));
}

#[test]
fn more_than_may_be_locked_is_refused_with_the_limit_that_does() {
    let run = |kib: &str| {
        let run = ["run", "--kernel", PROBE, "--cmdline", "end=poweroff", "--memory", "4M,lock"];
        let script = format!("ulimit -l {kib} && exec setpriv --bounding-set=-ipc_lock \"$@\"");
        through_shell(&script, &husk(run)).end()
    };
    let ended = run("1024");
    assert_eq!(ended.code(), Some(1), "{ended}");
    let (told, mend) = ended.message().split_once(": ulimit -l ").unwrap_or_else(|| panic!("{ended}"));
    assert!(told.contains("husk may lock 1024 KiB (RLIMIT_MEMLOCK) and the guest has 4096"), "{ended}");
    run(mend).went_well();
}

#[test]
fn prefaulted_and_locked_memory_is_there_and_locked() {
    let placement = json!({ "memory": { "prefault": true, "lock": true, "nodes": "0", "policy": "interleave" } });
    let mut vm = placed(&json!({}), &placement);
    let memory = vm.get("/husk/v1/placement")["memory"].clone();
    for field in ["resident_bytes", "locked_bytes"] {
        assert_eq!(bytes(&memory, field), 64 * MIB, "{field}: {memory}");
    }
    vm.stop();
}

#[test]
fn transparent_huge_pages_form_where_they_are_asked_for_and_only_there() {
    let transparent = |pages: &str| {
        let mut vm = placed(&json!({}), &json!({ "memory": { "pages": pages, "prefault": true } }));
        let memory = vm.get("/husk/v1/placement")["memory"].clone();
        assert_eq!(bytes(&memory, "resident_bytes"), 64 * MIB, "{memory}");
        vm.stop();
        bytes(&memory, "transparent_bytes")
    };
    // The host may be short of 2 MiB in one piece for a moment, and makes some when it is told to.
    let formed = transparent("transparent");
    if formed < 32 * MIB {
        fs::write("/proc/sys/vm/compact_memory", "1").unwrap();
        assert!(transparent("transparent") >= 32 * MIB, "{formed} at first");
    }
    assert_eq!(transparent("none"), 0);
}

#[test]
fn what_no_host_can_honour_is_named_with_what_can() {
    let mut vm = Vm::new();
    vm.describe("end=poweroff");
    let refused = |vm: &mut Vm, memory: Value, parts: &[&str]| {
        let answer = vm.put("/husk/v1/placement", &json!({ "memory": memory }));
        assert_eq!(answer.status, 400, "{answer:?}");
        let message = answer.json()["message"].as_str().map(str::to_owned).unwrap_or_default();
        parts.iter().for_each(|part| assert!(message.contains(part), "`{part}` is not in `{message}`"));
    };
    refused(&mut vm, json!({ "pages": "4M" }), &["memory.pages", "4M", "none", "transparent", "2M", "1G"]);
    refused(&mut vm, json!({ "pages": "1G" }), &["64 MiB", "1G pages", "1024M"]);
    refused(&mut vm, json!({ "nodes": "" }), &["nodes", "name a node"]);
    refused(&mut vm, json!({ "nodes": "0-1", "policy": "preferred" }), &["0-1", "bind or interleave"]);
    refused(&mut vm, json!({ "pages": "2M", "merge": true }), &["merge"]);
    // What only the start can know.
    vm.put("/husk/v1/placement", &json!({ "memory": { "nodes": "60000" } })).done();
    let start = json!({ "action_type": "InstanceStart" });
    vm.put("/actions", &start).refused(&["no node 60000", "its nodes are 0"]);
    assert_eq!(vm.get("/husk/v1/placement")["memory"]["given"]["nodes"], "60000");
}

fn thread<'a>(report: &'a Value, name: &str) -> &'a Value {
    let threads = report["threads"].as_array().unwrap_or_else(|| panic!("{report}"));
    threads.iter().find(|thread| thread["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

#[test]
fn threads_run_where_they_were_asked_to_and_a_change_from_outside_is_told() {
    let folder = common::folder::Folder::new();
    let (socket, disk) = (folder.at("s"), folder.at("disk"));
    std::fs::write(&disk, [0; 4096]).unwrap_or_else(|error| panic!("{disk}: {error}"));
    let threads = [
        "vcpu,cpus=0,priority=nice:5",
        "vcpu1,cpus=1",
        "io:root,cpus=0-1,priority=fifo:2",
        "main,cpus=1",
        "api,cpus=0",
    ];
    let threads = threads.iter().flat_map(|thread| ["--thread", thread]);
    let husk =
        husk(["run", "--kernel", PROBE, "--cmdline", "check=serial end=poweroff", "--cpus", "2", "--memory", "64M"])
            .args(["--api-sock", &socket, "--disk", &format!("{disk},id=root")])
            .args(threads)
            .start();
    husk.wait_for("SERIAL WAIT");
    let mut client = common::http::Connection::open(&socket);
    let report = client.ask("GET", "/husk/v1/placement", "").json();
    for (name, cpus, priority) in [
        ("husk-vcpu0", "0", Some("nice:5")),
        ("husk-vcpu1", "1", Some("nice:5")),
        ("husk-io-root", "0-1", Some("fifo:2")),
        ("husk", "1", None),
        ("husk-api", "0", None),
    ] {
        let thread = thread(&report, name);
        assert_eq!(thread["cpus"], cpus, "{name}: {report}");
        if let Some(priority) = priority {
            assert_eq!(thread["priority"], priority, "{name}: {report}");
        }
    }
    assert!(thread(&report, "husk-vcpu0")["wait_ms"].is_u64(), "{report}");
    assert_eq!(report["drift"], json!([]), "{report}");
    let vcpu1 = thread(&report, "husk-vcpu1")["tid"].to_string();
    let moved = Launch::new("taskset", ["-pc", "0", &vcpu1]).end();
    assert_eq!(moved.code(), Some(0), "{moved}");
    let report = client.ask("GET", "/husk/v1/placement", "").json();
    assert_eq!(report["drift"], json!(["husk-vcpu1 has CPUs 0, not 1"]), "{report}");
    // husk finds it by itself.
    let mut follower = common::http::Connection::open(&socket);
    follower.send(common::http::request("GET", "/husk/v1/events", "").as_bytes());
    follower.wait_for(r#""event":"placement_drift","what":"husk-vcpu1 has CPUs 0, not 1""#);
    let metrics = client.ask("GET", "/husk/v1/metrics", "").body;
    assert!(metrics.contains("\nhusk_placement_drift 1\n"), "{metrics}");
    husk.signal(libc::SIGTERM);
    assert_eq!(husk.end().code(), Some(0));
}

#[test]
fn a_vcpu_that_leaves_the_choice_gets_one_cpu_and_the_same_in_every_dialect() {
    let mut vm = Vm::new();
    vm.describe("check=serial end=poweroff");
    let placement = json!({ "threads": { "vcpu": { "cpus": "auto" }, "api": { "cpus": "auto:shared" } } });
    vm.put("/husk/v1/placement", &placement).done();
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    vm.husk.wait_for("SERIAL WAIT");
    let report = vm.get("/husk/v1/placement");
    let vcpu = thread(&report, "husk-vcpu0");
    assert!(vcpu["asked_cpus"].as_str().is_some_and(|cpus| cpus.parse::<u16>().is_ok()), "{vcpu}");
    assert_eq!(vcpu["cpus"], vcpu["asked_cpus"], "{report}");
    assert_eq!(thread(&report, "husk-api")["cpus"], thread(&report, "husk-api")["asked_cpus"], "{report}");
    vm.stop();
    let run = ["run", "--kernel", PROBE, "--cmdline", "end=poweroff", "--thread", "vcpu,cpus=auto"];
    husk(run).end().went_well();
}

#[test]
fn a_thread_that_cannot_be_placed_is_named_and_nothing_runs() {
    let run = |words: &[&str]| {
        let ended = husk(["run", "--kernel", PROBE, "--cmdline", "end=poweroff", "--memory", "64M"]).args(words).end();
        (ended.code(), ended.stderr)
    };
    for (words, part) in [
        (["--thread", "vcpu0,cpus=0:4000"], "vcpu0: CPU 4000 is not online: the host's are 0"),
        (["--thread", "vcpu7,cpus=0"], "there is no thread vcpu7: the machine has vcpu0"),
        (["--thread", "io:nothing,cpus=0"], "there is no thread io:nothing"),
        (["--thread", "vcpu0,cpus="], "vcpu0: the list of CPUs is empty"),
        // This kernel has no core scheduling.
        (["--core-scheduling", "vm"], "CONFIG_SCHED_CORE"),
    ] {
        let (code, message) = run(&words);
        assert!(
            code == Some(1) && message.starts_with("husk: threads: ") && message.contains(part),
            "{words:?}: {message}"
        );
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    let (code, message) = run(&["--thread", "vcpu0,cpus=0", "--thread", "vcpu0,priority=nice:5"]);
    assert!(code == Some(1) && message.contains("thread `vcpu0` is given twice"), "{message}");
    // Before anything is made: the kernel is not even opened.
    let early = husk(["run", "--kernel", "/nothing", "--thread", "vcpu0,cpus=4000"]).end();
    assert!(early.code() == Some(1) && early.message().contains("CPU 4000 is not online"), "{early}");
}

#[test]
fn a_thread_of_each_device_is_known_by_its_name_before_the_device_is_there() {
    let folder = common::folder::Folder::new();
    let disk = |name: &str| {
        let path = folder.at(name);
        std::fs::write(&path, [0; 4096]).unwrap_or_else(|error| panic!("{path}: {error}"));
        path
    };
    let run = ["run", "--kernel", PROBE, "--cmdline", "end=poweroff", "--memory", "64M"];
    let mut husk = husk(run).args(["--disk", &format!("{},id=two,queues=2,iothreads=2", disk("a"))]);
    for (path, id) in [(disk("b"), "three"), (disk("c"), "four")] {
        husk = husk.args(["--disk", &format!("{path},id={id},iothread=both")]);
    }
    let names = ["two-0", "two-1", "both", "rng"].map(|name| format!("io:{name},cpus=0"));
    names.iter().fold(husk, |husk, name| husk.args(["--thread", name])).end().went_well();
}

#[test]
fn a_machine_that_is_started_again_has_nothing_of_its_starters_priority() {
    let socket_folder = common::folder::Folder::new();
    let socket = socket_folder.at("s");
    for priority in ["fifo:2", "nice:5"] {
        let mut husk = husk(["run", "--kernel", PROBE, "--cmdline", "check=serial end=i8042", "--memory", "64M"])
            .args(["--api-sock", &socket, "--on-reboot", "restart"])
            .args(["--thread", &format!("main,cpus=1,priority={priority}"), "--thread", "vcpu0,cpus=0"])
            .typed();
        husk.wait_for("SERIAL WAIT");
        husk.type_in(b"end\n");
        husk.wait_for_times("SERIAL WAIT", 2);
        let report = common::http::Connection::open(&socket).ask("GET", "/husk/v1/placement", "").json();
        assert_eq!(thread(&report, "husk")["priority"], priority, "{report}");
        assert_eq!(thread(&report, "husk-vcpu0")["priority"], "nice:0", "{report}");
        assert_eq!(report["drift"], json!([]), "{report}");
        husk.signal(libc::SIGTERM);
        assert_eq!(husk.end().code(), Some(0));
    }
}

#[test]
fn each_guest_node_has_its_memory_on_its_host_nodes() {
    let pool = Pool::of_2m(32);
    let placement = json!({
        "memory": { "pages": "2M" },
        "numa": [
            { "cpus": "0", "mem_size_mib": 40, "nodes": "0", "distances": [10, 15] },
            { "cpus": "", "mem_size_mib": 24 }
        ]
    });
    let mut vm = placed(&json!({}), &placement);
    let report = vm.get("/husk/v1/placement");
    let regions = &report["memory"]["regions"];
    assert_eq!((bytes(&regions[0], "guest_address"), bytes(&regions[0], "bytes")), (0, 40 * MIB), "{report}");
    assert_eq!((bytes(&regions[1], "guest_address"), bytes(&regions[1], "bytes")), (40 * MIB, 24 * MIB), "{report}");
    assert_eq!((&regions[0]["nodes"], &regions[1]["nodes"]), (&json!("0"), &Value::Null), "{report}");
    assert_eq!(regions[0]["resident_by_node"], json!({ "0": 40 * MIB }), "bound, so all there: {report}");
    assert!(regions[1]["resident_by_node"]["0"].as_u64().unwrap_or(0) < 24 * MIB, "{report}");
    vm.stop();
    drop(pool);
}

#[test]
fn guest_nodes_that_do_not_fit_together_are_refused_by_name() {
    let run = |words: &[&str]| {
        let run = ["run", "--kernel", PROBE, "--cmdline", "end=poweroff", "--cpus", "2", "--memory", "64M"];
        husk(run).args(words).end()
    };
    for (words, part) in [
        (vec!["--numa", "cpus=0-1,memory=32M"], "numa: the nodes have 32 MiB and the machine 64: make them equal"),
        (vec!["--numa", "cpus=0,memory=64M"], "numa: vCPU 1 is in no node"),
        (vec!["--numa", "cpus=0-2,memory=64M"], "numa: node 0: the machine has no vCPU 2"),
        (vec!["--numa", "cpus=0-1,memory=64M", "--acpi", "off"], "numa: the guest learns of its nodes by ACPI"),
        (vec!["--numa", "cpus=0-1,memory=64M,nodes=900"], "the host has no node 900"),
    ] {
        let ended = run(&words);
        assert!(ended.code() == Some(1) && ended.message().contains(part), "{words:?}: {ended}");
    }
    run(&["--numa", "cpus=0,memory=40M,nodes=0", "--numa", "cpus=1,memory=24M"]).went_well();
}
