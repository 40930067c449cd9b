//! Memory that can be plugged, over the control socket and on the command line.

mod common;

use common::guest::{PROBE, probe};
use common::husk;
use common::vm::Vm;
use serde_json::json;

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
    let point = json!({ "path": vm.folder.at("point") }).to_string();
    let refused = vm.client.ask("POST", "/husk/v1/snapshots", &point);
    assert_eq!(refused.status, 400, "{refused:?}");
    assert!(refused.body.contains("snapshots do not hold yet"), "{refused:?}");
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
