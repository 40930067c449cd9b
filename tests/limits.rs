//! Limits of devices in use, as the guest feels them and as the machine remembers them.

mod common;

use std::time::{Duration, Instant};

use common::Husk;
use common::folder::Folder;
use common::guest::{echoing, noise, probe};
use common::http::Connection;
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

fn config(client: &mut Connection) -> Value {
    client.ask("GET", "/husk/v1/config", "").json()
}

/// What each of the disks is held to in all.
fn totals(client: &mut Connection) -> Vec<Value> {
    let config = config(client);
    config["disks"].as_array().into_iter().flatten().map(|disk| disk["limits"]["total"].clone()).collect()
}

fn ask_for(client: &mut Connection, disk: &str, body: &Value) {
    let answer = client.ask("PATCH", &format!("/drives/{disk}"), &body.to_string());
    assert_eq!(answer.status, 204, "{answer:?}");
}

fn end(husk: Husk, client: &mut Connection) {
    assert_eq!(client.ask("POST", "/husk/v1/stop", r#"{"grace_ms": 0}"#).status, 202);
    assert_eq!(husk.end().code(), Some(0));
}

#[test]
fn a_group_changes_as_one_and_stays_one_over_a_snapshot() {
    let folder = Folder::new();
    let disks = ["a", "b"].map(|name| folder.file(name, &noise(21, MIB)));
    let [a, b] = disks.map(|path| format!("{path},limit_group=g,iops=5000"));
    let husk = echoing().args(["--disk", &a, "--disk", &b, "--memory", "64M", "--api-sock", &folder.at("s")]).start();
    husk.wait_for("SERIAL WAIT");
    let mut client = Connection::open(folder.at("s"));
    // Each through another of the two: what the first said holds on.
    ask_for(
        &mut client,
        "disk0",
        &json!({ "drive_id": "disk0", "rate_limiter": { "ops": { "size": 7, "refill_time": 100 } } }),
    );
    ask_for(
        &mut client,
        "disk1",
        &json!({ "drive_id": "disk1", "rate_limiter": { "bandwidth": { "size": 4096, "refill_time": 100 } } }),
    );
    let bucket = |size| json!({ "size": size, "burst": 0, "refill_ms": 100 });
    let expected = json!({ "bytes": bucket(4096), "operations": bucket(7) });
    assert_eq!(totals(&mut client), [expected.clone(), expected.clone()]);

    let point = folder.at("point");
    let begun = client.ask("POST", "/husk/v1/snapshots", &json!({ "path": point }).to_string());
    assert_eq!(begun.status, 202, "{begun:?}");
    let number = begun.json()["id"].clone();
    let deadline = Instant::now() + Duration::from_secs(20);
    while client.ask("GET", &format!("/husk/v1/jobs/{number}"), "").json()["state"] == "running" {
        assert!(Instant::now() < deadline, "the snapshot does not end");
    }
    end(husk, &mut client);
    let restored = common::husk(["restore", &point, "--paused", "--api-sock", &folder.at("r")]).start();
    let mut client = Connection::open(folder.at("r"));
    // Clients are answered before the machine is there.
    let deadline = Instant::now() + Duration::from_secs(20);
    while client.ask("GET", "/", "").json()["state"] != "Paused" {
        assert!(Instant::now() < deadline, "the machine does not come back");
    }
    assert_eq!(totals(&mut client), [expected.clone(), expected]);
    end(restored, &mut client);
}

#[test]
fn husks_own_limits_are_asked_for_as_they_are_told() {
    let folder = Folder::new();
    let disk = format!("{},rd_iops=100+50,wr_bps=1M", folder.file("disk", &noise(22, MIB)));
    let husk = echoing().args(["--disk", &disk, "--api-sock", &folder.at("s")]).start();
    husk.wait_for("SERIAL WAIT");
    let mut client = Connection::open(folder.at("s"));
    let told = config(&mut client)["disks"][0]["limits"].clone();
    assert_eq!(told["to_guest"]["operations"], json!({ "size": 100, "burst": 50, "refill_ms": 1000 }));
    assert_eq!(told["from_guest"]["bytes"]["size"], 1 << 20);
    let ctl = |words: &[&str]| common::husk(["ctl", "--api-sock", &folder.at("s")]).args(words).end();
    assert_eq!(ctl(&["limit", "disk0", "iops=9"]).code(), Some(0));
    let now = config(&mut client)["disks"][0]["limits"].clone();
    assert_eq!((now["total"]["operations"]["size"].as_u64(), &now["to_guest"]["operations"]), (Some(9), &Value::Null));
    let back = client.ask("PATCH", "/husk/v1/devices/disk0", &json!({ "limits": told }).to_string());
    assert_eq!(back.status, 204, "{back:?}");
    assert_eq!(config(&mut client)["disks"][0]["limits"], told);

    let nothing = json!({ "limits": { "total": { "bytes": { "size": 0, "refill_ms": 5 } } } });
    let refused = client.ask("PATCH", "/husk/v1/devices/disk0", &nothing.to_string());
    assert_eq!((refused.status, refused.json()["field"].as_str()), (400, Some("limits")), "{refused:?}");
    assert_eq!(ctl(&["limit", "disk0"]).code(), Some(2), "to name nothing lifts nothing");
    assert_eq!(config(&mut client)["disks"][0]["limits"], told);
    let unknown = ctl(&["limit", "disk7", "iops=9"]);
    assert_eq!(unknown.code(), Some(1));
    assert!(unknown.message().contains("there is no disk and no network `disk7`"), "{unknown}");
    end(husk, &mut client);
}

/// The probe reads and writes 1 MiB and more by small requests, which takes many seconds at ten a second.
#[test]
fn a_limit_that_is_lifted_lets_a_guest_go_on() {
    let folder = Folder::new();
    let disk = format!("{},iops=1", folder.file("disk", &noise(23, 2 * MIB)));
    let husk = probe("check=blk end=poweroff").args(["--disk", &disk, "--api-sock", &folder.at("s")]).start();
    let mut client = Connection::open(folder.at("s"));
    let waits = |client: &mut Connection| {
        let page = client.ask("GET", "/husk/v1/metrics", "").body;
        page.lines().any(|line| line.starts_with("husk_disk_queue_requests_total{") && !line.ends_with(" 0"))
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while !waits(&mut client) {
        assert!(Instant::now() < deadline, "no request was served");
    }
    // At one a second the check, of hundreds of requests, is not over; without a limit it is at once.
    let ctl = common::husk(["ctl", "--api-sock", &folder.at("s"), "limit", "disk0", "none"]).end();
    assert_eq!(ctl.code(), Some(0), "{ctl}");
    let begun = Instant::now();
    let ended = husk.end();
    assert_eq!(ended.code(), Some(0), "{ended}");
    assert!(!ended.text().contains(" FAIL "), "{ended}");
    assert!(begun.elapsed() < Duration::from_secs(20), "the limit was lifted");
}
