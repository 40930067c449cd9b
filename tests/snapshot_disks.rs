//! Disks and networks of a machine that goes on from a point: those of then, or others, and those that are not what they were.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use common::folder::Folder;
use common::guest::{PROBE, noise, probe};
use common::http::Connection;
use common::husk;
use common::network::{Echo, in_network_namespace, ip, tap};
use common::vm::Vm;
use serde_json::json;

#[test]
fn a_disk_that_was_written_to_since_is_told_of_or_refused_and_one_of_another_size_is_refused() {
    let folder = Folder::new();
    let (data, other) = (folder.sparse("data.img", 1 << 20), folder.sparse("other.img", 2 << 20));
    let words = ["run", "--kernel", PROBE, "--cmdline", "check=count end=poweroff", "--memory", "64M"];
    let disk = format!("{data},id=data");
    let husk_of = husk(words).args(["--disk", &disk, "--api-sock", &folder.at("s")]).start();
    let client = Connection::open(folder.at("s"));
    let mut vm = Vm { folder, husk: husk_of, client };
    vm.husk.wait_for("TICK 2 ");
    let point = vm.folder.path().join("point");
    assert_eq!(vm.job("/husk/v1/snapshots", &json!({ "path": point }))["state"], "done");
    drop(vm.husk);
    let refusal = |words: &[&str]| {
        let ended = husk(["restore", point.to_str().unwrap()]).args(words).end();
        assert_eq!(ended.code(), Some(1), "{ended}");
        ended.stderr
    };
    // As it was it is nobody's concern.
    let clone = Vm::restored(&point, &["--strict-disks"]);
    clone.husk.wait_for("TICK ");
    assert!(!clone.stop().stderr.contains("written to"), "nobody has");

    let then = fs::metadata(&data).unwrap().modified().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::metadata(&data).unwrap().modified().unwrap() <= then {
        assert!(Instant::now() < deadline, "the file's time does not change");
        File::options().write(true).open(&data).unwrap().write_all_at(b"x", 0).unwrap();
    }
    let strict = refusal(&["--strict-disks"]);
    assert!(strict.contains("disk `data`") && strict.contains("has been written to since the snapshot"), "{strict}");
    let mut clone = Vm::restored(&point, &[]);
    clone.husk.wait_for("TICK ");
    clone.client.send(common::http::request("GET", "/husk/v1/events", "").as_bytes());
    let events = clone.client.wait_for("disk_changed_since");
    assert!(!events.is_empty());
    clone.client = clone.connect();
    let ended = clone.stop();
    assert!(ended.stderr.contains("data.img has been written to since the snapshot"), "{ended}");

    let size = refusal(&["--disk", &format!("data={other}")]);
    assert!(size.contains("the disk had 1048576 bytes when it was saved, and has 2097152 now"), "{size}");
    let unknown = refusal(&["--disk", &format!("nosuch={other}")]);
    assert!(unknown.contains("the machine in the snapshot has no disk `nosuch`"), "{unknown}");
    let unknown = refusal(&["--net", "nosuch=tap0"]);
    assert!(unknown.contains("the machine in the snapshot has no network `nosuch`"), "{unknown}");
}

#[test]
fn a_clone_goes_on_with_another_tap() {
    in_network_namespace(|| {
        tap("tap7");
        let folder = Folder::new();
        let socket = folder.at("s");
        let launch = probe("check=netecho end=poweroff");
        let saved = launch.args(["--net", "tap=tap7,id=lan", "--memory", "64M", "--api-sock", &socket]).start();
        saved.wait_for("NETECHO WAIT");
        let client = Connection::open(&socket);
        let mut vm = Vm { folder, husk: saved, client };
        let answers = |seed| {
            let (echo, sent) = (Echo::new(), noise(seed, 1000));
            echo.send(&sent);
            assert!(echo.receive() == sent);
            echo
        };
        drop(answers(1));
        let point = vm.folder.path().join("point");
        assert_eq!(vm.job("/husk/v1/snapshots", &json!({ "path": point }))["state"], "done");
        drop(vm.husk);
        ip("link delete tap7");
        let gone = husk(["restore", point.to_str().unwrap()]).end();
        assert!(gone.code() == Some(1) && gone.stderr.contains("tap tap7 does not exist"), "{gone}");

        tap("tap8");
        let mut clone = Vm::restored(&point, &["--net", "lan=tap8"]);
        // Before, the tap has no carrier, and the host drops what it sends.
        while clone.state() != "Running" {
            std::thread::yield_now();
        }
        let echo = answers(2);
        echo.send(b"end");
        assert_eq!(echo.receive(), b"end");
        assert_eq!(clone.husk.end().went_well().check("netecho").number("frames"), 3);
    });
}
