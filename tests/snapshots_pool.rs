//! Points of machines whose memory is of a HugePage pool, on nodes of the host.

mod common;

use std::time::{Duration, Instant};

use common::folder::Folder;
use common::guest::PROBE;
use common::http::Connection;
use common::husk;
use common::pool::Pool;
use common::vm::Vm;
use serde_json::json;

#[test]
fn a_machine_on_huge_pages_of_a_node_goes_on_there_page_by_page_or_read_at_once_and_is_never_mapped() {
    let pool = Pool::of_2m(40);
    let free = pool.free();
    let start = |words: &[&str]| {
        let folder = Folder::new();
        let husk = husk(words).args(["--api-sock", &folder.at("s")]).start();
        let client = Connection::open(folder.at("s"));
        Vm { folder, husk, client }
    };
    let kept = Folder::new();
    let point = kept.at("point");
    let mut vm =
        start(&["run", "--kernel", PROBE, "--cmdline", "check=count end=poweroff", "--memory", "64M,pages=2M,nodes=0"]);
    vm.husk.wait_for("TICK 5 ");
    assert_eq!(vm.job("/husk/v1/snapshots", &json!({ "path": point }))["state"], "done");
    let tick = vm.husk.last_tick();
    vm.stop();
    let mapped = husk(["restore", &point, "--memory", "map"]).end();
    assert_eq!(mapped.code(), Some(1), "{mapped}");
    assert!(mapped.stderr.contains("it is on 2M pages: use lazy or copy"), "{mapped}");
    for words in [&[][..], &["--memory", "copy"], &["--memory", "lazy"]] {
        let mut clone = start(&[&["restore", &point], words].concat());
        clone.husk.wait_for(&format!("TICK {} ", tick + 3));
        let report = clone.get("/husk/v1/placement");
        assert_eq!(report["memory"]["given"]["pages"], "2M", "{report}");
        assert!(report["memory"]["pool_bytes"].as_u64().unwrap() > 0, "{report}");
        // Who has brought it page by page keeps what was wanted first.
        let record = kept.path().join("point/memory.ws");
        let deadline = Instant::now() + Duration::from_secs(20);
        while words.contains(&"lazy") && !record.exists() {
            assert!(Instant::now() < deadline, "memory is not all there");
            std::thread::yield_now();
        }
        clone.stop();
        assert_eq!(record.exists(), words.contains(&"lazy"), "{words:?}: who has it prefaulted has it read at once");
        assert_eq!(pool.free(), free, "{words:?}: given back");
    }
}

#[test]
fn what_was_plugged_on_huge_pages_is_there_again_page_by_page_or_at_once() {
    let pool = Pool::of_2m(32 + 16);
    let free = pool.free();
    let kept = Folder::new();
    let point = kept.path().join("point");
    let folder = Folder::new();
    let words = ["run", "--kernel", PROBE, "--cmdline", "check=plug end=poweroff", "--memory", "64M,pages=2M"];
    let husk = husk(words).args(["--hotplug", "128M,requested=16M", "--api-sock", &folder.at("s")]).start();
    let client = Connection::open(folder.at("s"));
    let mut vm = Vm { folder, husk, client };
    assert_eq!(vm.husk.line("PLUGGED ", 1), "PLUGGED 8");
    assert_eq!(vm.job("/husk/v1/snapshots", &json!({ "path": point }))["state"], "done");
    vm.stop();
    for mode in ["lazy", "copy"] {
        let mut clone = Vm::restored(&point, &["--memory", mode]);
        clone.husk.wait_for_times("STEADY ", 3);
        for (number, mib) in [4, 20].into_iter().enumerate() {
            clone.patch("/hotplug/memory", &json!({ "requested_size_mib": mib })).done();
            assert_eq!(clone.husk.line("PLUGGED ", number + 1), format!("PLUGGED {}", mib / 2), "{mode}");
        }
        let looks = clone.husk.output().matches("STEADY ").count();
        clone.husk.wait_for_times("STEADY ", looks + 2);
        clone.stop();
        assert_eq!(pool.free(), free, "{mode}: given back");
    }
}
