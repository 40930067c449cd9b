//! Points of a machine: made by both dialects of the control socket, chained, and made machines again in other processes.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use common::faults::handle_faults;
use common::folder::Folder;
use common::guest::PROBE;
use common::http::{Connection, request};
use common::vm::Vm;
use common::{Husk, husk, through_shell};
use serde_json::{Value, json};

const MEMORY_BYTES: u64 = 64 << 20;

/// A guest that counts its timer's ticks aloud until it is told to end.
fn counting() -> Vm {
    let vm = Vm::running("check=count end=poweroff");
    vm.husk.wait_for("TICK 5 ");
    vm
}

fn pause(vm: &mut Vm) {
    vm.patch("/vm", &json!({ "state": "Paused" })).done();
}

/// Waits until a machine that is to be paused is there.
fn wait_until_paused(vm: &mut Vm) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while vm.state() != "Paused" {
        assert!(Instant::now() < deadline, "the machine is not there");
        std::thread::yield_now();
    }
}

fn resume(vm: &mut Vm) {
    vm.patch("/vm", &json!({ "state": "Resumed" })).done();
}

/// Guest memory as the kernel shows it to who may see a process: read without the process's doing.
fn memory_of(husk: &Husk) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{}/maps", husk.pid())).unwrap();
    let bounds = |line: &str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
    };
    // A machine that maps files has several mappings where another has one.
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (start, end) in maps.lines().filter_map(bounds) {
        match joined.last_mut().filter(|(_, last)| *last == start) {
            Some((_, last)) => *last = end,
            None => joined.push((start, end)),
        }
    }
    let exact = maps.lines().filter_map(bounds).find(|(start, end)| end - start == MEMORY_BYTES);
    let (start, _) = exact.unwrap_or_else(|| panic!("no mapping of guest memory: {maps}"));
    let mut memory = vec![0; usize::try_from(MEMORY_BYTES).unwrap()];
    File::open(format!("/proc/{}/mem", husk.pid())).unwrap().read_exact_at(&mut memory, start).unwrap();
    memory
}

/// Holds two memories against each other, but for the page of the VM generation, which a clone has of its own.
#[track_caller]
fn assert_same_memory(one: &[u8], other: &[u8], what: &str) {
    const GENERATION_PAGE: usize = 0xf1;
    assert_eq!(one.len(), other.len());
    let differs =
        |(page, (one, other)): (usize, (&[u8], &[u8]))| (page != GENERATION_PAGE && one != other).then_some(page);
    let differing: Vec<_> = one.chunks(4096).zip(other.chunks(4096)).enumerate().filter_map(differs).collect();
    assert!(differing.is_empty(), "{what}: pages {differing:x?} differ");
}

fn refusal(point: &Path, words: &[&str]) -> String {
    let ended = husk(["restore", point.to_str().unwrap()]).args(words).end();
    assert_eq!(ended.code(), Some(1), "{ended}");
    assert!(ended.text().is_empty(), "{ended}");
    ended.stderr
}

#[test]
fn a_paused_machine_goes_to_firecrackers_two_files_and_comes_back_from_them() {
    let mut vm = counting();
    let (state, memory) = (vm.folder.at("vm.state"), vm.folder.at("vm.mem"));
    let create = json!({ "snapshot_path": state, "mem_file_path": memory });
    vm.put("/snapshot/create", &create).refused(&["make a snapshot of a machine that is running"]);
    pause(&mut vm);
    vm.put("/snapshot/create", &create).done();
    let size = fs::metadata(&memory).unwrap();
    assert_eq!(size.len(), MEMORY_BYTES);
    assert!(size.blocks() * 512 < 4 << 20, "{} blocks for a guest that touched little", size.blocks());
    assert!(fs::metadata(&state).unwrap().len() <= 32 << 10, "the state of one vCPU");
    for words in [&["--snapshot-version"][..], &["--describe-snapshot", &state]] {
        assert_eq!(husk(words).end().went_well().text(), "v1.0.0\n");
    }
    let before = memory_of(&vm.husk);
    assert_same_memory(&before, &fs::read(&memory).unwrap(), "the memory file");
    let tick = vm.husk.last_tick();
    let folder = vm.folder;
    drop(vm.husk);

    let mut clone = Vm::new();
    let load = json!({ "snapshot_path": state, "mem_backend": { "backend_type": "File", "backend_path": memory } });
    clone.put("/snapshot/load", &load).done();
    assert_eq!(clone.state(), "Paused");
    assert_same_memory(&memory_of(&clone.husk), &before, "the restored memory");
    assert_eq!(clone.get("/machine-config")["mem_size_mib"], 64);
    resume(&mut clone);
    clone.husk.wait_for(&format!("TICK {} ", tick + 3));
    clone.put("/snapshot/load", &load).refused(&["load a snapshot into a machine that is running"]);
    clone.stop();
    drop(folder);
}

#[test]
fn a_serial_port_that_is_described_before_a_snapshot_is_loaded_is_that_of_its_machine() {
    let mut vm = counting();
    let point = vm.folder.path().join("point");
    vm.job("/husk/v1/snapshots", &json!({ "path": point }));
    let (state, memory) = (point.join("state"), point.join("memory"));
    let load = json!({ "snapshot_path": state, "mem_file_path": memory, "resume_vm": true });
    let mut clone = Vm::new();
    clone.put("/cpu-config", &json!({})).done();
    let serial = json!({ "serial_out_path": clone.folder.at("serial"), "rate_limiter": null });
    clone.put("/serial", &serial).done();
    clone.put("/snapshot/load", &load).done();
    assert_eq!(clone.get("/vm/config")["serial"], serial);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !clone.folder.read("serial").windows(5).any(|text| text == b"TICK ") {
        assert!(Instant::now() < deadline, "the machine says nothing");
        std::thread::yield_now();
    }
    clone.stop();
    let mut described = Vm::new();
    described.put("/serial", &serial).done();
    described.put("/entropy", &json!({})).done();
    described.put("/snapshot/load", &load).refused(&["has been configured"]);
    described.stop();
}

#[test]
fn a_machine_that_runs_goes_on_and_its_point_does_so_too_in_every_mode() {
    let mut vm = counting();
    let point = vm.folder.path().join("point");
    let job = vm.job("/husk/v1/snapshots", &json!({ "path": point }));
    assert_eq!((job["state"].as_str(), job["kind"].as_str()), (Some("done"), Some("snapshot")), "{job}");
    assert!(job["figures"]["pause_us"].as_u64().unwrap() > 0 && job["figures"]["rounds"].as_u64().unwrap() > 0);
    assert_eq!(vm.state(), "Running");
    let tick = vm.husk.last_tick();
    vm.husk.wait_for(&format!("TICK {} ", tick + 3));
    for mode in ["map", "lazy", "copy"] {
        let clone = Vm::restored(&point, &["--memory", mode]);
        clone.husk.wait_for(&format!("TICK {} ", tick + 3));
        assert!(!clone.husk.output().contains("TICK 1 "), "{mode}: it did not start again");
        clone.stop();
    }
    vm.stop();
}

#[test]
fn every_point_of_a_chain_comes_back_as_it_was_whichever_of_the_others_are_gone() {
    const POINTS: usize = 50;
    let mut vm = counting();
    let mut kept: Vec<(std::path::PathBuf, Vec<u8>)> = Vec::new();
    for number in 0..POINTS {
        pause(&mut vm);
        let point = vm.folder.path().join(number.to_string());
        let parent = kept.last().map(|(parent, _)| parent);
        let job = vm.job("/husk/v1/snapshots", &json!({ "path": point, "parent": parent, "track": true }));
        assert_eq!(job["state"], "done", "{job}");
        kept.push((point, memory_of(&vm.husk)));
        resume(&mut vm);
        let tick = vm.husk.last_tick();
        vm.husk.wait_for(&format!("TICK {} ", tick + 1));
    }
    drop(vm.husk);
    // What is left of the chain needs none of these.
    let gone = |number: usize| number % 7 == 3 || number == 0;
    for (number, (point, _)) in kept.iter().enumerate().filter(|(number, _)| gone(*number)) {
        let dropped = husk(["snapshot", "drop", point.to_str().unwrap()]).end();
        assert_eq!(dropped.code(), Some(0), "{number}: {dropped}");
    }
    for (number, (point, memory)) in kept.iter().enumerate().filter(|(number, _)| !gone(*number)) {
        let mode = ["map", "copy", "lazy"][number % 3];
        let mut clone = Vm::restored(point, &["--paused", "--memory", mode]);
        wait_until_paused(&mut clone);
        match mode {
            "copy" => assert_same_memory(&memory_of(&clone.husk), memory, &format!("point {number} copied")),
            // Nobody else can read pages that are not there: the machine's own snapshot finds them where they are.
            _ => {
                let again = clone.folder.path().join("again");
                assert_eq!(clone.job("/husk/v1/snapshots", &json!({ "path": again }))["state"], "done");
                assert_same_memory(
                    &fs::read(again.join("memory")).unwrap(),
                    memory,
                    &format!("point {number} by {mode}"),
                );
            }
        }
        resume(&mut clone);
        clone.stop();
    }
}

#[test]
fn many_clones_of_one_point_run_at_once() {
    let mut vm = counting();
    pause(&mut vm);
    let point = vm.folder.path().join("point");
    assert_eq!(vm.job("/husk/v1/snapshots", &json!({ "path": point }))["state"], "done");
    let tick = vm.husk.last_tick();
    let clones: Vec<Vm> = (0..8).map(|_| Vm::restored(&point, &[])).collect();
    for clone in &clones {
        clone.husk.wait_for(&format!("TICK {} ", tick + 3));
    }
    let generation = |clone: &Vm| memory_of(&clone.husk)[0xf_1000..][..16].to_vec();
    let mut generations: Vec<_> = clones.iter().map(generation).collect();
    generations.sort();
    generations.dedup();
    assert_eq!(generations.len(), clones.len(), "every clone is a generation of its own");
    clones.into_iter().for_each(|clone| drop(clone.stop()));
}

#[test]
fn a_point_that_is_not_whole_is_refused_with_the_reason() {
    let mut vm = counting();
    pause(&mut vm);
    let folder = vm.folder.path().to_owned();
    let at = |name: &str| folder.join(name);
    let (point, other) = (at("point"), at("other"));
    assert_eq!(vm.job("/husk/v1/snapshots", &json!({ "path": point }))["state"], "done");
    resume(&mut vm);
    vm.husk.wait_for(&format!("TICK {} ", vm.husk.last_tick() + 2));
    pause(&mut vm);
    assert_eq!(vm.job("/husk/v1/snapshots", &json!({ "path": other }))["state"], "done");

    let broken = |name: &str, change: &dyn Fn(&Path)| {
        let copy = at(name);
        fs::create_dir(&copy).unwrap();
        for file in ["state", "memory", "memory.idx"] {
            fs::copy(point.join(file), copy.join(file)).unwrap();
        }
        change(&copy);
        refusal(&copy, &[])
    };
    let set_len = |path: &Path, bytes| File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
    let short = broken("short", &|copy| set_len(&copy.join("memory"), MEMORY_BYTES - 4096));
    assert!(short.contains("67104768 bytes, the snapshot's memory 67108864"), "{short}");
    let long = broken("long", &|copy| set_len(&copy.join("memory"), MEMORY_BYTES + 4096));
    assert!(long.contains("67112960 bytes"), "{long}");
    let swapped = broken("swapped", &|copy| {
        fs::copy(other.join("memory"), copy.join("memory")).unwrap();
    });
    assert!(swapped.contains("is not what was written") || swapped.contains("is of point"), "{swapped}");
    let cut = broken("cut", &|copy| set_len(&copy.join("state"), 100));
    assert!(cut.starts_with("husk: state file"), "{cut}");
    let foreign = broken("foreign", &|copy| fs::write(copy.join("state"), [7; 4096]).unwrap());
    assert!(foreign.contains("no state file of husk's"), "{foreign}");
    let none = refusal(&at("nowhere"), &[]);
    assert!(none.contains("nowhere"), "{none}");
    vm.stop();
}

#[test]
fn what_cannot_be_an_increment_is_refused_and_the_machine_runs_on() {
    let mut vm = counting();
    let folder = vm.folder.path().to_owned();
    let ask = |vm: &mut Vm, body: Value| vm.job("/husk/v1/snapshots", &body);
    let (first, second) = (folder.join("first"), folder.join("second"));
    let job = ask(&mut vm, json!({ "path": second, "parent": first }));
    assert_eq!(job["state"], "failed");
    assert!(job["error"].as_str().unwrap().contains("not tracked since"), "{job}");
    assert!(!second.exists(), "nothing is left of it");
    assert_eq!(ask(&mut vm, json!({ "path": first, "track": true }))["state"], "done");
    let job = ask(&mut vm, json!({ "path": second, "parent": folder.join("elsewhere") }));
    assert!(job["error"].as_str().unwrap().contains("the machine's last snapshot is"), "{job}");
    assert_eq!(ask(&mut vm, json!({ "path": second, "parent": first, "track": true }))["state"], "done");
    assert_eq!(vm.state(), "Running");
    let tick = vm.husk.last_tick();
    vm.husk.wait_for(&format!("TICK {} ", tick + 2));
    vm.stop();
}

#[test]
fn a_page_fault_handler_of_firecrackers_brings_memory_and_its_end_is_the_machines() {
    let mut vm = counting();
    let (state, memory) = (vm.folder.at("vm.state"), vm.folder.at("vm.mem"));
    pause(&mut vm);
    vm.put("/snapshot/create", &json!({ "snapshot_path": state, "mem_file_path": memory })).done();
    let tick = vm.husk.last_tick();
    let mut clone = Vm::new();
    let load = |path: &str| {
        let backend = json!({ "backend_type": "Uffd", "backend_path": path });
        json!({ "snapshot_path": state, "mem_backend": backend, "resume_vm": true })
    };
    clone.put("/snapshot/load", &load("/nowhere")).refused(&["page fault handler on /nowhere", "start it first"]);
    let socket = vm.folder.at("handler");
    let listener = UnixListener::bind(&socket).unwrap();
    let memory = std::path::PathBuf::from(memory);
    let handler = std::thread::spawn(move || handle_faults(&listener, &memory, MEMORY_BYTES));
    clone.put("/snapshot/load", &load(&socket)).done();
    let connection = handler.join().unwrap();
    clone.husk.wait_for(&format!("TICK {} ", tick + 3));
    drop(connection);
    let ended = clone.husk.end();
    assert_eq!(ended.code(), Some(1), "{ended}");
    assert!(ended.stderr.contains("guest memory is lost: the page fault handler on"), "{ended}");
}

#[test]
fn a_machine_tells_which_points_it_came_from_and_made() {
    let mut vm = counting();
    let folder = vm.folder.path().to_owned();
    let (first, second) = (folder.join("first"), folder.join("second"));
    assert_eq!(vm.get("/husk/v1/snapshots"), json!([]));
    let mut ids = Vec::new();
    for body in [json!({ "path": first, "track": true }), json!({ "path": second, "parent": first, "track": true })] {
        let job = vm.job("/husk/v1/snapshots", &body);
        ids.push(job["figures"]["id"].clone());
    }
    // One that failed is none.
    assert_eq!(vm.job("/husk/v1/snapshots", &json!({ "path": "/proc/none" }))["state"], "failed");
    let told = vm.get("/husk/v1/snapshots");
    let held = |point: &Path| {
        let inspected = husk(["snapshot", "list", "--json", point.to_str().unwrap()]).end().went_well().text();
        serde_json::from_str::<Value>(&inspected).unwrap()["points"][0]["pages"].as_u64().unwrap() * 4096
    };
    for (number, (point, parent)) in [(&first, None), (&second, Some(&ids[0]))].into_iter().enumerate() {
        let one = &told[number];
        assert_eq!((&one["id"], one.get("parent"), &one["relation"]), (&ids[number], parent, &json!("made")), "{told}");
        assert_eq!(
            (&one["state_path"], &one["memory_path"]),
            (&json!(point.join("state")), &json!(point.join("memory")))
        );
        assert_eq!(one["memory_bytes"], MEMORY_BYTES);
        assert_eq!(one["held_bytes"], held(point), "{told}");
    }
    assert!(told[0]["created_ms"].as_u64().unwrap() <= told[1]["created_ms"].as_u64().unwrap() && told[2].is_null());
    drop(vm.husk);
    let mut clone = Vm::restored(&second, &[]);
    let third = clone.folder.path().join("third");
    assert_eq!(clone.job("/husk/v1/snapshots", &json!({ "path": third }))["state"], "done");
    let again = clone.get("/husk/v1/snapshots");
    let mut origin = told[1].clone();
    origin["relation"] = json!("origin");
    assert_eq!((&again[0], &again[1]["relation"]), (&origin, &json!("made")), "{again}");
    let table = husk(["ctl", "--api-sock", &clone.folder.at("s"), "snapshots"]).end().went_well().text();
    assert!(table.starts_with("CREATED_MS") && table.lines().count() == 3, "{table}");
    clone.stop();
}

#[test]
fn a_restored_machine_knows_which_devices_are_near_its_nodes() {
    let folder = Folder::new();
    let nodes = ["--numa", "cpus=0,memory=40M,devices=rng", "--numa", "cpus=1,memory=24M"];
    let run = ["run", "--kernel", PROBE, "--cmdline", "check=count end=poweroff", "--memory", "64M", "--cpus", "2"];
    let launched = husk(run).args(nodes).args(["--api-sock", &folder.at("s")]).start();
    let client = Connection::open(folder.at("s"));
    let mut vm = Vm { folder, husk: launched, client };
    vm.husk.wait_for("TICK 5 ");
    // The configuration of both is the same to the last device: so is what their snapshots keep of it.
    let kept = |vm: &mut Vm| {
        let point = vm.folder.path().join("point");
        assert_eq!(vm.job("/husk/v1/snapshots", &json!({ "path": point }))["state"], "done");
        let inspected = husk(["snapshot", "inspect", "--json", point.to_str().unwrap()]).end();
        let told: Value = serde_json::from_slice(&inspected.stdout).unwrap();
        let told = &told["points"][0];
        let table = told["sections"].as_array().unwrap().clone();
        let of_nodes = table.into_iter().find(|section| section["kind"] == "nearness");
        (point, told["config"].clone(), of_nodes.unwrap())
    };
    let (point, config, section) = kept(&mut vm);
    let tick = vm.husk.last_tick();
    let mut clone = Vm::restored(&point, &[]);
    clone.husk.wait_for(&format!("TICK {} ", tick + 3));
    let (_, config_again, section_again) = kept(&mut clone);
    assert_eq!((config_again, section_again), (config, section));
    clone.stop();
    vm.stop();
}

/// What the kernel was told of guest memory: the flags of its mapping (proc(5), VmFlags).
fn flags_of(husk: &Husk) -> Vec<String> {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", husk.pid())).unwrap();
    let size = format!("{} kB", MEMORY_BYTES >> 10);
    let of_memory = |line: &&str| line.strip_prefix("Size:").is_some_and(|value| value.trim() == size);
    let mut lines = smaps.lines().skip_while(|line| !of_memory(line));
    let flags = lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap_or_else(|| panic!("{smaps}"));
    flags.split_ascii_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_restored_machine_has_its_memory_as_it_asked_for_it() {
    for (words, wanted) in [("64M", &["dd"][..]), ("64M,pages=transparent", &["dd", "hg"]), ("64M,lock", &["dd", "lo"])]
    {
        let folder = Folder::new();
        let run = ["run", "--kernel", PROBE, "--cmdline", "check=count end=poweroff", "--memory", words];
        let husk = husk(run).args(["--api-sock", &folder.at("s")]).start();
        let client = Connection::open(folder.at("s"));
        let mut vm = Vm { folder, husk, client };
        vm.husk.wait_for("TICK 5 ");
        let holds = |vm: &Vm, what: &str| {
            let flags = flags_of(&vm.husk);
            assert!(wanted.iter().all(|wanted| flags.iter().any(|flag| flag == wanted)), "{words}, {what}: {flags:?}");
        };
        holds(&vm, "at first");
        let point = vm.folder.path().join("point");
        assert_eq!(vm.job("/husk/v1/snapshots", &json!({ "path": point }))["state"], "done");
        let tick = vm.husk.last_tick();
        let mut clone = Vm::restored(&point, &[]);
        clone.husk.wait_for(&format!("TICK {} ", tick + 3));
        holds(&clone, "restored");
        if words.ends_with("lock") {
            let memory = clone.get("/husk/v1/placement")["memory"].clone();
            assert_eq!(memory["locked_bytes"], MEMORY_BYTES, "{memory}");
            let backend = json!({ "backend_type": "Uffd", "backend_path": vm.folder.at("handler") });
            let load = json!({ "snapshot_path": point.join("state"), "mem_backend": backend });
            Vm::new().put("/snapshot/load", &load).refused(&["memory that is locked", "cannot come as it is wanted"]);
        }
        if words.ends_with("transparent") {
            assert!(refusal(&point, &["--memory", "map"]).contains("it is on transparent pages"));
        }
    }
}

#[test]
fn a_snapshot_that_is_given_up_or_does_not_fit_leaves_nothing_and_the_machine_runs_on() {
    let mut vm = counting();
    let point = vm.folder.path().join("point");
    // Both requests at once: the second finds the first one's job at work.
    let given_up = (1..=50).any(|_| {
        let before = vm.get("/husk/v1/jobs").as_array().map_or(0, Vec::len) as u64;
        let body = json!({ "path": point }).to_string();
        let both = request("POST", "/husk/v1/snapshots", &body)
            + &request("DELETE", &format!("/husk/v1/jobs/{}", before + 1), "");
        vm.client.send(both.as_bytes());
        assert_eq!(vm.client.answer().status, 202);
        vm.client.answer();
        let job = vm.finished(before + 1);
        if job["state"] == "done" {
            fs::remove_dir_all(&point).unwrap();
        }
        job["state"] == "cancelled"
    });
    assert!(given_up, "no job of fifty was given up in time");
    assert!(!point.exists(), "nothing is left of it");

    // A file of the guest's memory is longer than any file of this process may be.
    let folder = Folder::new();
    let words = ["run", "--kernel", PROBE, "--cmdline", "check=count end=poweroff", "--memory", "64M"];
    let launch = husk(words).args(["--api-sock", &folder.at("s")]);
    let limited = through_shell(r#"ulimit -f 1024; exec "$@""#, &launch).start();
    let client = Connection::open(folder.at("s"));
    let mut vm = Vm { folder, husk: limited, client };
    vm.husk.wait_for("TICK 5 ");
    let point = vm.folder.path().join("point");
    let job = vm.job("/husk/v1/snapshots", &json!({ "path": point }));
    assert_eq!(job["state"], "failed");
    assert!(job["error"].as_str().unwrap().contains("File too large"), "{job}");
    assert!(!point.exists(), "nothing is left of it");
    assert_eq!(vm.state(), "Running");
    let tick = vm.husk.last_tick();
    vm.husk.wait_for(&format!("TICK {} ", tick + 2));
}
