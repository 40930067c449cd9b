//! Memory that can be plugged, over the control socket and on the command line, and in snapshots.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use common::faults::handle_faults;
use common::guest::{PROBE, probe};
use common::husk;
use common::vm::Vm;
use serde_json::json;

/// A machine whose guest plugs and unplugs as it is asked, and looks after what it has.
fn plugging(machine: serde_json::Value) -> Vm {
    let mut vm = Vm::new();
    vm.describe("check=plug end=poweroff");
    vm.patch("/machine-config", &machine).done();
    vm.put("/hotplug/memory", &json!({ "total_size_mib": 512 })).done();
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    vm.husk.wait_for("STEADY 1\n");
    vm
}

/// Has the guest plug or unplug until it has so much, for the `times`th time.
fn plug(vm: &mut Vm, mib: u64, times: usize) {
    vm.patch("/hotplug/memory", &json!({ "requested_size_mib": mib })).done();
    assert_eq!(vm.husk.line("PLUGGED ", times), format!("PLUGGED {}", mib / 2));
    steady(vm);
}

/// The guest has looked at all that it has twice from here on, and found it as it should be.
fn steady(vm: &Vm) {
    let looks = vm.husk.output().matches("STEADY ").count();
    vm.husk.wait_for_times("STEADY ", looks + 3);
}

fn plugged(vm: &mut Vm) -> (u64, u64) {
    let status = vm.get("/hotplug/memory");
    let number = |field: &str| status[field].as_u64().unwrap();
    (number("plugged_size_mib"), number("requested_size_mib"))
}

#[test]
fn memory_that_can_be_plugged_is_described_asked_for_and_told_of_as_firecracker_does() {
    let mut vm = Vm::new();
    vm.describe("check=serial end=poweroff");
    vm.client.ask("GET", "/hotplug/memory", "").refused(&["machine has none", "PUT /hotplug/memory"]);
    vm.put("/hotplug/memory", &json!({ "total_size_mib": 1024 })).done();
    let described = json!({ "total_size_mib": 1024, "slot_size_mib": 128, "block_size_mib": 2 });
    assert_eq!(vm.get("/vm/config")["memory-hotplug"], described);
    for (body, parts) in [
        (json!({ "total_size_mib": 1000 }), &["total", "1000 MiB", "128 MiB"][..]),
        (json!({ "total_size_mib": 1024, "block_size_mib": 3 }), &["block", "3 MiB", "power of two"]),
        (json!({ "total_size_mib": 1024, "slot_size_mib": 64 }), &["slot", "64 MiB", "128"]),
        (json!({ "total_size_mib": 1024, "slot_size_mib": 131 }), &["slot", "131 MiB", "2 MiB"]),
        (json!({ "total_size_mib": 4_294_967_168_u32 }), &["slots", "1024"]),
        (json!({ "slot_size_mib": 128 }), &["total_size_mib"]),
    ] {
        vm.put("/hotplug/memory", &body).refused(parts);
    }
    vm.patch("/hotplug/memory", &json!({ "requested_size_mib": 4 })).refused(&["has not been started"]);
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    vm.husk.wait_for("SERIAL WAIT");
    let status = |requested: u32| {
        json!({ "total_size_mib": 1024, "slot_size_mib": 128, "block_size_mib": 2, "plugged_size_mib": 0,
            "requested_size_mib": requested })
    };
    assert_eq!(vm.get("/hotplug/memory"), status(0));
    vm.patch("/hotplug/memory", &json!({ "requested_size_mib": 4 })).done();
    vm.patch("/hotplug/memory", &json!({ "requested_size_mib": 5 })).refused(&["requested_size_mib", "blocks"]);
    vm.patch("/hotplug/memory", &json!({ "requested_size_mib": 1026 }))
        .refused(&["requested_size_mib", "can be plugged"]);
    assert_eq!(vm.get("/hotplug/memory"), status(4));
    let ctl = |words: &[&str]| husk(["ctl", "--api-sock", &vm.folder.at("s")]).args(words).end();
    ctl(&["memory", "8M"]).went_well();
    let told = ctl(&["memory"]).went_well().text();
    assert!(told.contains("requested_size_mib  8\n") && told.contains("plugged_size_mib    0\n"), "{told}");
    for (size, part) in [("5M", "blocks"), ("1.5M", "1.5M"), ("512K", "512K is no whole number of MiB")] {
        let refused = ctl(&["memory", size]);
        assert!(refused.code() == Some(1) && refused.stderr.contains(part), "{refused}");
    }
    let devices = vm.get("/husk/v1/devices");
    assert_eq!((&devices[0]["kind"], &devices[0]["id"]), (&json!("memory"), &json!("mem")), "{devices}");
    vm.put("/hotplug/memory", &json!({ "total_size_mib": 1024 })).refused(&["is running"]);
    vm.stop();
}

#[test]
fn a_machine_without_it_has_none() {
    let mut vm = Vm::new();
    vm.describe("check=serial end=poweroff");
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    vm.husk.wait_for("SERIAL WAIT");
    vm.client.ask("GET", "/hotplug/memory", "").refused(&["machine has none"]);
    vm.patch("/hotplug/memory", &json!({ "requested_size_mib": 4 })).refused(&["machine has none"]);
    vm.stop();
}

#[test]
fn it_costs_the_host_nothing_until_it_is_plugged() {
    // More than the host has: 256 slots of 1 GiB.
    let ended = probe("check=mem end=poweroff").args(["--hotplug", "256G,slot=1G"]).end();
    ended.went_well().check("mem");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    for (options, parts) in [
        (vec!["--hotplug", "1G,node=1"], vec!["hotplug", "no node 1"]),
        (vec!["--hotplug", "1G", "--memory", "64M,lock"], vec!["hotplug", "lock"]),
        (vec!["--hotplug", "1G,requested=2G"], vec!["hotplug", "2048 MiB", "1024"]),
        (vec!["--hotplug", "1G", "--memory", "1G,pages=1G"], vec!["hotplug", "block", "1G pages"]),
    ] {
        let ended = husk(["run", "--kernel", PROBE]).args(options).end();
        assert_eq!(ended.code(), Some(1), "{ended}");
        assert!(parts.iter().all(|part| ended.stderr.contains(part)), "{ended}");
    }
}

#[test]
fn a_point_holds_what_is_plugged_and_every_mode_brings_it_back() {
    let mut vm = plugging(json!({ "track_dirty_pages": false }));
    let folder = vm.folder.path().to_owned();
    let mut points: Vec<(PathBuf, u64)> = Vec::new();
    // The first blocks go and come back between two points.
    for (number, mib) in [16, 4, 16].into_iter().enumerate() {
        plug(&mut vm, mib, number + 1);
        let (point, parent) = (folder.join(number.to_string()), points.last().map(|(point, _)| point));
        let job = vm.job("/husk/v1/snapshots", &json!({ "path": point, "parent": parent, "track": true }));
        assert_eq!(job["state"], "done", "{job}");
        points.push((point, mib));
    }
    let size = fs::metadata(points[0].0.join("memory")).unwrap();
    assert_eq!(size.len(), (64 + 512) << 20);
    assert!(size.blocks() * 512 < 8 << 20, "{} blocks", size.blocks());
    // In the midst of it.
    vm.patch("/hotplug/memory", &json!({ "requested_size_mib": 100 })).done();
    let midst = folder.join("midst");
    let job = vm.job("/husk/v1/snapshots", &json!({ "path": midst, "parent": points[2].0 }));
    assert_eq!(job["state"], "done", "{job}");
    drop(vm.husk);
    for (point, mib) in &points {
        assert_eq!(husk(["snapshot", "verify", point.to_str().unwrap()]).end().code(), Some(0));
        for mode in ["map", "lazy", "copy"] {
            let mut clone = Vm::restored(point, &["--memory", mode]);
            steady(&clone);
            assert_eq!(plugged(&mut clone), (*mib, *mib), "{mode}");
            plug(&mut clone, 2, 1);
            plug(&mut clone, 16, 2);
            // A machine that came from a point is a point again, with what was plugged since.
            let again = clone.folder.path().join("again");
            assert_eq!(clone.job("/husk/v1/snapshots", &json!({ "path": again }))["state"], "done");
            let second = Vm::restored(&again, &[]);
            steady(&second);
            second.stop();
            clone.stop();
        }
    }
    let mut clone = Vm::restored(&midst, &[]);
    steady(&clone);
    while plugged(&mut clone) != (100, 100) {
        steady(&clone);
    }
    clone.stop();
}

#[test]
fn firecrackers_snapshots_hold_what_is_plugged_and_what_can_be() {
    let mut vm = plugging(json!({ "track_dirty_pages": true }));
    let [full, memory, diff, diff_memory] = ["full", "full.mem", "diff", "diff.mem"].map(|name| vm.folder.at(name));
    let pause = |vm: &mut Vm, state: &str| vm.patch("/vm", &json!({ "state": state })).done();
    let create = |vm: &mut Vm, kind: &str, state: &str, memory: &str| {
        pause(vm, "Paused");
        let body = json!({ "snapshot_type": kind, "snapshot_path": state, "mem_file_path": memory });
        vm.put("/snapshot/create", &body).done();
        pause(vm, "Resumed");
    };
    plug(&mut vm, 8, 1);
    create(&mut vm, "Full", &full, &memory);
    plug(&mut vm, 2, 2);
    plug(&mut vm, 6, 3);
    create(&mut vm, "Diff", &diff, &diff_memory);
    let described = vm.get("/vm/config")["memory-hotplug"].clone();
    drop(vm.husk);
    let file = |path: &str| json!({ "backend_type": "File", "backend_path": path });
    let handler = vm.folder.at("handler");
    let listener = UnixListener::bind(&handler).unwrap();
    let uffd = json!({ "backend_type": "Uffd", "backend_path": handler });
    let memory_path = PathBuf::from(&memory);
    // RAM, and what is plugged.
    let faults = std::thread::spawn(move || handle_faults(&listener, &memory_path, (64 + 8) << 20));
    for (state, backend, mib) in [(&diff, file(&diff_memory), 6), (&full, file(&memory), 8), (&full, uffd, 8)] {
        let mut clone = Vm::new();
        let load = json!({ "snapshot_path": state, "mem_backend": backend, "resume_vm": true });
        clone.put("/snapshot/load", &load).done();
        steady(&clone);
        assert_eq!((plugged(&mut clone), &clone.get("/vm/config")["memory-hotplug"]), ((mib, mib), &described));
        plug(&mut clone, 2, 1);
        plug(&mut clone, 16, 2);
        clone.stop();
    }
    drop(faults.join().unwrap());
}
