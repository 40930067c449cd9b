//! Linux on husk: to userspace, through its checks and out again. Few boots, many checks a boot: each costs seconds.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use arch::memory::MmapRegion;
use common::ended::{Ended, Facts};
use common::failing::FailingFiles;
use common::folder::Folder;
use common::guest::{fnv1a, noise};
use common::http::{Connection, request};
use common::linux::{CMDLINE, checks_went_well, guest, guest_did, initramfs_file, linux, pattern, sum};
use common::network::{HOST, in_network_namespace, ip, tap};
use common::pool::Pool;
use common::vm::Vm;
use common::{husk, soaks_in_full};
use serde_json::json;
use vm_memory::FileOffset;

const MIB: usize = 1 << 20;
const BLOCK: usize = 512;
/// How long a guest is asked again for what it does by and by.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long 20,000 requests to failing disks may take, boot included.
const SOAK_WITHIN: Duration = Duration::from_secs(240);

#[track_caller]
fn disk(ended: &Ended, name: &str) -> Facts {
    Facts::of(&ended.line(&format!("DISK {name} ")))
}

#[test]
fn linux_boots_with_two_cpus_uses_its_devices_and_powers_off_by_acpi() {
    let folder = Folder::new();
    let (before, only_read) = (noise(40, 2 * MIB), noise(41, MIB));
    let writable = folder.file("writable", &before);
    let read_only = folder.file("read-only", &only_read);
    let names = ["cpus", "mem", "disk", "rng", "clock", "rtc", "dmesg"];
    let words = format!("loglevel=8 reboot=k husk.seed=77 husk.check={} husk.end=poweroff", names.join(","));
    let options = [
        "--cpus",
        "2",
        "--memory",
        "128M",
        "--disk",
        &format!("{writable},id=root"),
        "--disk",
        &format!("{read_only},ro"),
    ];
    let ended = linux(&words).args(options).end();
    checks_went_well(&ended, &names, "poweroff");
    let ready = Facts::of(&ended.line("GUEST READY "));
    assert_eq!(ready.number("cpus"), 2);
    assert_eq!(ended.check("cpus").number("ran"), 2);
    assert_eq!(ended.check("disk").number("disks"), 2);
    assert_eq!(ended.check("dmesg").number("warnings"), 0, "{ended}");

    let root = disk(&ended, "vda");
    assert_eq!((root.get("serial"), root.number("ro")), ("root", 0));
    let (offset, len) = (2 * MIB / BLOCK / 4 * BLOCK, 2 * MIB / BLOCK / 2 * BLOCK);
    assert_eq!((root.number("offset"), root.number("len")), (offset as u64, len as u64), "{ended}");
    let mut after = before.clone();
    after[offset..offset + len].copy_from_slice(&pattern(77, 0, len));
    assert_eq!((sum(&root, "before"), sum(&root, "after")), (fnv1a(&before), fnv1a(&after)), "{ended}");
    assert!(folder.read("writable") == after, "the file is what the guest says it wrote");

    let data = disk(&ended, "vdb");
    assert_eq!((data.get("serial"), data.number("ro")), ("disk1", 1));
    assert_eq!(sum(&data, "before"), fnv1a(&only_read));
    assert!(folder.read("read-only") == only_read);
}

#[test]
fn linux_with_one_cpu_talks_on_its_console_and_reboots_by_the_keyboard_controller() {
    let words = "quiet reboot=k husk.check=echo husk.end=reboot";
    let mut husk = linux(words).args(["--memory", "64M", "--boot-entry", "linux64"]).typed();
    husk.wait_for("WAIT echo");
    // Longer than the FIFO of 64 bytes.
    let line = "a line from outside ".repeat(10);
    husk.type_in(format!("{line}\nend\n").as_bytes());
    let ended = husk.end();
    checks_went_well(&ended, &["echo"], "reboot");
    assert_eq!(ended.line("ECHO ").trim_end(), line.trim_end());
    assert_eq!(Facts::of(&ended.line("GUEST READY ")).number("cpus"), 1);
}

#[test]
fn linux_with_four_cpus_no_acpi_and_no_initrd_finds_its_root_by_partuuid_and_reboots() {
    const DATA: usize = MIB;
    let folder = Folder::new();
    let (data, root) = (folder.sparse("data", DATA as u64), folder.at("root"));
    let partuuid = partitioned_root(&folder, &root);
    let before = folder.read("root");
    let words = format!("{CMDLINE} quiet reboot=k husk.check=cpus,disk husk.end=reboot");
    // The root is the first disk, wherever it is given.
    let ended = husk(["run", "--kernel", &guest("vmlinux"), "--cmdline", &words])
        .args(["--memory", "64M", "--cpus", "4", "--acpi", "off", "--disk", &data])
        .args(["--disk", &format!("{root},ro,partuuid={partuuid}")])
        .end();
    checks_went_well(&ended, &["cpus", "disk"], "reboot");
    assert_eq!(ended.check("cpus").number("ran"), 4);
    let (first, second) = (disk(&ended, "vda"), disk(&ended, "vdb"));
    assert_eq!((first.get("serial"), sum(&first, "before")), ("disk1", fnv1a(&before)), "{ended}");
    assert_eq!((second.get("serial"), second.number("bytes")), ("disk0", DATA as u64), "{ended}");
    assert!(folder.read("root") == before);
}

/// Makes a disk at `path` of two partitions, of which the second has the guest's init and nothing else, and tells that one's
/// PARTUUID: what a DOS disk label says of itself, and the number of the partition.
fn partitioned_root(folder: &Folder, path: &str) -> String {
    const SIGNATURE: u32 = 0x6875_736b;
    const ENTRIES: usize = 446;
    for name in ["tree/dev", "tree/proc", "tree/sys", "tree/sbin"] {
        fs::create_dir_all(folder.at(name)).unwrap();
    }
    fs::write(folder.at("tree/sbin/init"), initramfs_file("init")).unwrap();
    // The kernel opens the console before init mounts what has it.
    let script = "chmod 755 tree/sbin/init && mknod tree/dev/console c 5 1 && mkfs.ext2 -q -d tree partition 1M";
    let made = Command::new("sh").args(["-ec", script]).current_dir(folder.path()).status().unwrap();
    assert!(made.success());
    let partition = folder.read("partition");
    let mut label = vec![0; 2 * MIB];
    label[440..444].copy_from_slice(&SIGNATURE.to_le_bytes());
    for (index, begin, bytes) in [(0, MIB, MIB), (1, 2 * MIB, partition.len())] {
        // Linux, from a sector on, so many of them.
        let entry = &mut label[ENTRIES + 16 * index..][..16];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&u32::try_from(begin / BLOCK).unwrap().to_le_bytes());
        entry[12..].copy_from_slice(&u32::try_from(bytes / BLOCK).unwrap().to_le_bytes());
    }
    label[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(path, [label, partition].concat()).unwrap();
    format!("{SIGNATURE:08x}-02")
}

/// The guest compares what it reads with what was acknowledged to it, and so does this test with what the files hold.
#[test]
fn linux_finds_all_that_failing_disks_acknowledged_and_reboots_by_acpi() {
    const SEED: u64 = 79;
    let requests = if soaks_in_full() { 20_000 } else { 2_000 };
    let begun = Instant::now();
    let folder = Folder::new();
    let words = format!("quiet reboot=a husk.seed={SEED} husk.soak={requests} husk.check=soak husk.end=reboot");
    let engines = ["io_uring", "sync"];
    let disks = engines
        .iter()
        .enumerate()
        .flat_map(|(index, engine)| ["--disk".to_owned(), format!("failing/disk{index},engine={engine},cache=direct")]);
    let launch = linux(&words).args(["--memory", "64M"]).args(disks);
    let (files, launch) = FailingFiles::around(&folder, engines.len(), MIB, SEED, launch);
    let ended = launch.end();
    assert!(begun.elapsed() < SOAK_WITHIN, "{requests} requests took {:?}", begun.elapsed());
    guest_did(&ended, &["soak"], "reboot");
    assert!(ended.stderr.lines().all(|line| line.starts_with("husk: warn: disk")), "{ended}");
    let soak = ended.check("soak");
    let done: u64 = ["reads", "writes", "flushes"].map(|kind| soak.number(kind)).iter().sum();
    assert_eq!((soak.number("disks"), done), (engines.len() as u64, requests), "{ended}");
    assert_eq!(soak.number("failed"), files.failed(), "each error reached the guest, and no other: {ended}");
    assert!(files.failed() > requests / 20, "{ended}");
    for (index, name) in ["vda", "vdb"].into_iter().enumerate() {
        holds_what_was_acknowledged(&ended, name, &files.content(index), SEED);
    }
}

/// Looks in a disk's file for the patterns that the guest says are there.
#[track_caller]
fn holds_what_was_acknowledged(ended: &Ended, name: &str, content: &[u8], seed: u64) {
    let lines = ended.lines(&format!("SOAK {name} "));
    let patterns = lines.iter().flat_map(|line| line.split_ascii_whitespace().skip(1));
    let patterns: Vec<u64> = patterns.map(|index| u64::from_str_radix(index, 16).unwrap()).collect();
    let blocks: Vec<&[u8]> = content.chunks(4096).collect();
    assert_eq!(patterns.len(), blocks.len(), "{ended}");
    let known = || patterns.iter().zip(&blocks).filter(|(index, _)| **index != 0);
    for (place, (&index, block)) in known().enumerate() {
        assert!(**block == pattern(seed, index, 4096), "{name}: known block {place} holds pattern {index:x}\n{ended}");
    }
    let told = Facts::of(&ended.line(&format!("SOAKED {name} ")));
    assert_eq!(told.number("known"), known().count() as u64, "{ended}");
    assert!(known().count() > blocks.len() / 2, "{ended}");
    let bytes: Vec<u8> = known().flat_map(|(_, block)| block.iter().copied()).collect();
    assert_eq!(sum(&told, "sum"), fnv1a(&bytes), "{ended}");
}

/// Takes one stream to its end, sends `back`, and says what came.
fn serve(listener: &TcpListener, back: &[u8]) -> Vec<u8> {
    let (mut stream, _) = listener.accept().unwrap();
    let mut came = Vec::new();
    stream.read_to_end(&mut came).unwrap();
    stream.write_all(back).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    came
}

#[test]
fn linux_talks_over_its_tap_and_does_so_again_after_a_reboot() {
    const SENT: usize = MIB / 2;
    in_network_namespace(|| {
        tap("tap7");
        ip("link set tap7 mtu 1500");
        let listener = TcpListener::bind((HOST, 4243)).unwrap();
        let back = noise(50, MIB + 12_345);
        let words = format!("quiet reboot=k husk.seed=78 husk.net={SENT} husk.check=net husk.end=reboot");
        let options = ["--memory", "64M", "--net", "tap=tap7,mac=02:00:00:00:00:07", "--on-reboot", "restart"];
        let husk = linux(&words).args(options).start();
        for boot in 1..=2 {
            let came = thread::scope(|scope| scope.spawn(|| serve(&listener, &back)).join().unwrap());
            assert!(came == pattern(78, 1000, SENT), "what the guest sent in boot {boot}");
            husk.wait_for_times("CHECK net ", boot);
        }
        husk.wait_for_times("GUEST DONE ", 2);
        husk.signal(libc::SIGTERM);
        let ended = husk.end();
        assert_eq!((ended.code(), ended.stderr.as_str()), (Some(0), ""), "{ended}");
        assert_eq!(ended.lines("GUEST DONE ").len(), ended.lines("CHECK net ok ").len(), "{ended}");
        for line in ended.lines("CHECK net ok ") {
            let facts = Facts::of(line.trim_end());
            assert_eq!(facts.get("mac"), "02:00:00:00:00:07");
            assert_eq!(sum(&facts, "sent_sum"), fnv1a(&pattern(78, 1000, SENT)));
            assert_eq!(sum(&facts, "received_sum"), fnv1a(&back));
            assert_eq!(facts.number("pings"), 6);
        }
        ip("link show tap7");
    });
}

/// A Linux guest that is asked over its console, and driven over the control socket.
struct Asked {
    vm: Vm,
    questions: usize,
}

impl Asked {
    /// Guest memory as the guest counts it, in KiB: all, and what is free.
    fn memory(&mut self) -> (u64, u64) {
        self.questions += 1;
        self.vm.husk.type_in(b"mem\n");
        let facts = Facts::of(&self.vm.husk.line("MEM ", self.questions));
        (facts.number("total_kib"), facts.number("free_kib"))
    }

    /// Asks until the answer is as it shall be.
    fn memory_until(&mut self, what: &str, done: impl Fn(u64, u64) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let (total, free) = self.memory();
            if done(total, free) {
                return;
            }
            assert!(Instant::now() < deadline, "{what} does not come: {total} KiB, {free} free");
            // Each question is work for the guest that waits to do what it is asked about.
            thread::sleep(Duration::from_millis(250));
        }
    }
}

#[test]
fn linux_sees_its_nodes_plugs_and_unplugs_fills_a_balloon_and_hears_ctrl_alt_del() {
    const PLUGGED: u32 = 64;
    const BALLOON: u32 = 8;
    let folder = Folder::new();
    let husk = husk(["--api-sock", &folder.at("s")]).typed();
    let client = Connection::open(folder.at("s"));
    let mut asked = Asked { vm: Vm { folder, husk, client }, questions: 0 };
    let vm = &mut asked.vm;
    vm.put("/machine-config", &json!({ "vcpu_count": 2, "mem_size_mib": 128 })).done();
    let words = format!("{CMDLINE} quiet reboot=k husk.keyboard husk.check=ask husk.end=stay");
    let boot =
        json!({ "kernel_image_path": guest("vmlinux"), "initrd_path": guest("initramfs.cpio"), "boot_args": words });
    vm.put("/boot-source", &boot).done();
    vm.put("/balloon", &json!({ "amount_mib": 0, "deflate_on_oom": false })).done();
    vm.put("/hotplug/memory", &json!({ "total_size_mib": 2 * PLUGGED })).done();
    let nodes = json!([
        { "cpus": "0", "mem_size_mib": 64, "distances": [10, 21] },
        { "cpus": "1", "mem_size_mib": 64, "distances": [31, 10] },
    ]);
    vm.put("/husk/v1/placement", &json!({ "numa": nodes, "memory": { "hotplug_node": 1 } })).done();
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    vm.husk.wait_for("WAIT ask");

    vm.husk.type_in(b"nodes\n");
    let node = |vm: &Vm, number: u32, times| vm.husk.line(&format!("NODE {number} "), times);
    let (first, second) = (node(vm, 0, 1), node(vm, 1, 1));
    assert!(first.contains(" cpus=0 ") && first.ends_with(" distances=10 21"), "{first}");
    assert!(second.contains(" cpus=1 ") && second.ends_with(" distances=31 10"), "{second}");

    let (total, free) = asked.memory();
    asked.vm.patch("/hotplug/memory", &json!({ "requested_size_mib": PLUGGED })).done();
    asked.memory_until("plugged memory", |now, _| now == total + u64::from(PLUGGED) * 1024);
    let vm = &mut asked.vm;
    assert_eq!(vm.get("/hotplug/memory")["plugged_size_mib"], PLUGGED);
    vm.husk.type_in(b"nodes\n");
    assert_eq!(node(vm, 0, 2), first);
    let kib = |line: &str| Facts::of(line).number("mem_kib");
    assert_eq!(kib(&node(vm, 1, 2)), kib(&second) + u64::from(PLUGGED) * 1024);
    vm.patch("/hotplug/memory", &json!({ "requested_size_mib": 0 })).done();
    asked.memory_until("the end of plugged memory", |now, _| now == total);
    assert_eq!(asked.vm.get("/hotplug/memory")["plugged_size_mib"], 0);

    let balloon = u64::from(BALLOON) * 1024;
    asked.vm.patch("/balloon", &json!({ "amount_mib": BALLOON })).done();
    asked.memory_until("a full balloon", |_, now| now <= free - balloon + balloon / 8);
    asked.vm.patch("/balloon", &json!({ "amount_mib": 0 })).done();
    asked.memory_until("an empty balloon", |_, now| now >= free - balloon / 4);

    let mut vm = asked.vm;
    vm.husk.type_in(b"end\n");
    vm.husk.wait_for("WAIT button");
    vm.put("/actions", &json!({ "action_type": "SendCtrlAltDel" })).done();
    let ended = vm.husk.end();
    checks_went_well(&ended, &["ask"], "stay");
    ended.line("GUEST BUTTON ctrl-alt-del");
}

#[test]
fn linux_that_plugs_from_a_dry_pool_is_told_of_once_and_plugs_when_it_has_pages_again() {
    const RAM: u64 = 64;
    const PLUGGED: u64 = 32;
    const HUGE: u64 = 2 << 20;
    const MIB: u64 = 1 << 20;
    let pool = Pool::of_2m(RAM / 2 + PLUGGED / 2);
    let folder = Folder::new();
    let husk = husk(["--api-sock", &folder.at("s")]).typed();
    let client = Connection::open(folder.at("s"));
    let mut vm = Vm { folder, husk, client };
    vm.put("/machine-config", &json!({ "vcpu_count": 1, "mem_size_mib": RAM, "huge_pages": "2M" })).done();
    let words = format!("{CMDLINE} quiet reboot=k husk.keyboard husk.check=ask husk.end=poweroff");
    let boot =
        json!({ "kernel_image_path": guest("vmlinux"), "initrd_path": guest("initramfs.cpio"), "boot_args": words });
    vm.put("/boot-source", &boot).done();
    vm.put("/hotplug/memory", &json!({ "total_size_mib": 128 })).done();
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    vm.husk.wait_for("WAIT ask");
    // Somebody else takes what is not reserved for its RAM.
    let other = vmm::memfd::create_huge("husk-test", PLUGGED * MIB, HUGE).expect("the host has huge pages");
    let place = Some(FileOffset::new(other, 0));
    let bytes = usize::try_from(PLUGGED * MIB).expect("small");
    let taken = MmapRegion::build(place, bytes, libc::PROT_READ, libc::MAP_SHARED).expect("they are free");
    let mut follower = vm.connect();
    follower.send(request("GET", "/husk/v1/events", "").as_bytes());
    let ask = |vm: &mut Vm, mib: u64| vm.patch("/hotplug/memory", &json!({ "requested_size_mib": mib })).done();
    ask(&mut vm, PLUGGED);
    let events = follower.wait_for(r#""event":"pool_exhausted""#);
    assert_eq!(events.matches("pool_exhausted").count(), 1, "{events}");
    assert_eq!(vm.get("/hotplug/memory")["plugged_size_mib"], 0);
    drop(taken);
    // Linux tries again by itself after a minute, and at once for another size; it plugs in steps of 4 MiB.
    ask(&mut vm, PLUGGED - 4);
    let deadline = Instant::now() + Duration::from_secs(60);
    while vm.get("/hotplug/memory")["plugged_size_mib"] != PLUGGED - 4 {
        assert!(Instant::now() < deadline, "{}", vm.get("/hotplug/memory"));
        thread::sleep(Duration::from_millis(10));
    }
    let report = vm.get("/husk/v1/placement");
    let plugged = &report["memory"]["regions"][1];
    assert_eq!((&plugged["plugged"], &plugged["bytes"]), (&json!(true), &json!(128 * MIB)), "{report}");
    assert_eq!(plugged["resident_by_size"]["2M"]["0"], (PLUGGED - 4) * MIB, "{report}");
    vm.husk.type_in(b"end\n");
    assert_eq!(vm.husk.end().code(), Some(0));
    drop(pool);
}

/// A Linux guest that is snapshot, killed and restored again and again.
struct Cycled {
    vm: Vm,
    /// What the killed processes have shown of its console.
    console: Vec<u8>,
    cycles: usize,
    /// How long it was away at least, the last time.
    away: Duration,
}

impl Cycled {
    /// Kills the process in which the guest is at rest, with its point made, and lets it go on from there in another. No time
    /// passes for the guest in which its disks or its peers could go on without it.
    fn cycle(mut self, clock: &str) -> Self {
        self.vm.patch("/vm", &json!({ "state": "Paused" })).done();
        let point = self.vm.folder.path().join("point");
        let job = self.vm.job("/husk/v1/snapshots", &json!({ "path": point }));
        assert_eq!(job["state"], "done", "{job}");
        self.vm.husk.signal(libc::SIGKILL);
        let killed = self.vm.husk.end();
        assert_eq!((killed.signal(), killed.stderr.as_str()), (Some(libc::SIGKILL), ""), "cycle {}", self.cycles);
        self.console.extend(killed.stdout);
        let (since, point) = (Instant::now(), point.to_str().unwrap());
        if clock == "realtime" {
            // Time passes.
            let verified = husk(["snapshot", "verify", point]).end();
            assert_eq!(verified.code(), Some(0), "cycle {}: {verified}", self.cycles);
        }
        let away = since.elapsed();
        let folder = Folder::new();
        let husk = husk(["restore", point, "--api-sock", &folder.at("s"), "--clock", clock]).start();
        let client = Connection::open(folder.at("s"));
        // It hears of its new generation before the next one.
        husk.wait_for("crng reseeded due to virtual machine fork");
        Self { vm: Vm { folder, husk, client }, console: self.console, cycles: self.cycles + 1, away }
    }

    /// As [`Self::cycle`], once the guest has written to `disk` again.
    fn cycle_after_a_write(self, disk: &str) -> Self {
        let written = || fs::metadata(disk).unwrap().modified().unwrap();
        let (before, deadline) = (written(), Instant::now() + DEADLINE);
        while written() == before {
            assert!(Instant::now() < deadline, "cycle {}: nothing is written\n{}", self.cycles, self.vm.husk.output());
            // Nobody tells of a write to a file; the guest has the CPU meanwhile.
            thread::sleep(Duration::from_millis(5));
        }
        self.cycle("freeze")
    }

    /// Its end, with all of its console.
    fn end(self) -> Ended {
        let mut ended = self.vm.husk.end();
        ended.stdout.splice(0..0, self.console);
        ended
    }
}

#[test]
fn linux_goes_on_through_snapshot_kill_and_restore_under_disk_and_network_load() {
    const SEED: u64 = 83;
    const SENT: usize = 2 * MIB;
    const CHECKS: [&str; 4] = ["soak", "net", "rng", "dmesg"];
    // How many under each load: a disk's, a stream out, a stream in.
    let (on_disk, on_net) = if soaks_in_full() { (34, 33) } else { (4, 3) };
    in_network_namespace(|| {
        tap("tap8");
        let listener = TcpListener::bind((HOST, 4243)).unwrap();
        let (folder, files) = (Folder::new(), Folder::new());
        let disk = files.sparse("disk", MIB as u64);
        let requests = 150 * on_disk;
        let words = format!(
            "loglevel=8 reboot=k husk.seed={SEED} husk.soak={requests} husk.net={SENT} husk.check={} husk.end=poweroff",
            CHECKS.join(",")
        );
        let options = ["--memory", "64M", "--cpus", "2", "--net", "tap=tap8", "--disk", &disk];
        let husk = linux(&words).args(options).args(["--api-sock", &folder.at("s")]).start();
        husk.wait_for("GUEST READY ");
        let client = Connection::open(folder.at("s"));
        let mut guest =
            Cycled { vm: Vm { folder, husk, client }, console: Vec::new(), cycles: 0, away: Duration::ZERO };
        for _ in 0..on_disk {
            guest = guest.cycle_after_a_write(&disk);
        }

        let (mut stream, _) = listener.accept().unwrap();
        let mut came = Vec::new();
        let mut piece = vec![0; SENT / (on_net + 1)];
        for _ in 0..on_net {
            stream.read_exact(&mut piece).unwrap();
            came.extend_from_slice(&piece);
            guest = guest.cycle("freeze");
        }
        stream.read_to_end(&mut came).unwrap();
        assert!(came == pattern(SEED, 1000, SENT), "what the guest sent");
        let back = noise(51, SENT);
        let (pieces, rest) = back.split_at(piece.len() * on_net);
        for (number, piece) in pieces.chunks(piece.len()).enumerate() {
            stream.write_all(piece).unwrap();
            guest = guest.cycle(if number + 1 < on_net { "freeze" } else { "realtime" });
        }
        stream.write_all(rest).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();

        let (cycles, away) = (guest.cycles, guest.away);
        assert_eq!(cycles, on_disk + 2 * on_net);
        let ended = guest.end();
        checks_went_well(&ended, &CHECKS, "poweroff");
        holds_what_was_acknowledged(&ended, "vda", &files.read("disk"), SEED);
        let net = ended.check("net");
        assert_eq!((sum(&net, "sent_sum"), sum(&net, "received_sum")), (fnv1a(&came), fnv1a(&back)), "{ended}");
        assert_eq!(ended.check("dmesg").number("warnings"), 0, "{ended}");
        // Each life of the machine is told of by its generation, and has random numbers of its own. The kernel dates its lines
        // by kvm-clock, which made up for the last time away.
        let text = ended.text();
        let reseeded =
            text.lines().filter_map(|line| line.strip_suffix("] random: crng reseeded due to virtual machine fork"));
        let dates: Vec<f64> = reseeded.map(|line| line.trim_start_matches(['[', ' ']).parse().unwrap()).collect();
        assert_eq!(dates.len(), cycles, "{ended}");
        assert!(dates.is_sorted(), "{dates:?}");
        let [.., before, last] = dates[..] else { unreachable!("there are several cycles") };
        assert!(last - before >= away.as_secs_f64(), "{dates:?}, and it was away for {away:?}");
    });
}
