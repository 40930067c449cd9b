//! Published client libraries of Firecracker's API drive husk, which they take for Firecracker by its name, and Prometheus'
//! own tool reads its figures. tools/dev.d/clients installs them.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::path::{Path, PathBuf};

use common::folder::Folder;
use common::guest::{LISTENING, PROBE};
use common::http::Connection;
use common::network::{in_network_namespace, tap};
use common::{HUSK, Husk, Launch};

/// A file of what tools/dev.d/clients installs.
fn installed(file: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients").join(file);
    assert!(path.exists(), "{} is missing: run tools/dev.d/clients", path.display());
    path
}

/// Tells a client to do this, and waits until it says that it did.
fn order(client: &mut Husk, what: &str) {
    client.type_in(format!("{what}\n").as_bytes());
    client.wait_for(&format!("did {what}"));
}

fn drives_a_vm(program: impl AsRef<Path>, script: &[&str]) {
    let folder = Folder::new();
    let firecracker = folder.at("firecracker");
    std::os::unix::fs::symlink(HUSK, &firecracker).unwrap();
    let disk = folder.file("disk", &[7; 1 << 20]);
    let place = folder.path().to_str().unwrap();
    let arguments = [firecracker.as_str(), place, PROBE, "check=serial end=poweroff", &disk];
    let mut client = Launch::new(program.as_ref(), script.iter().copied().chain(arguments)).typed();
    client.wait_for("configured");
    let socket = folder.at("vm/firecracker.socket");
    // A connection of its own sees what the library did.
    let mut watcher = Connection::open(&socket);
    let mut state = || watcher.ask("GET", "/", "").json()["state"].as_str().unwrap().to_owned();
    assert_eq!(state(), "Not started");
    for (what, then) in [("start", "Running"), ("pause", "Paused"), ("resume", "Running"), ("ctrl-alt-del", "Running")]
    {
        order(&mut client, what);
        assert_eq!(state(), then, "after {what}");
    }
    order(&mut client, "end");
    assert!(!Path::new(&socket).exists(), "the socket goes with the VM");
    client.close_stdin();
    let ended = client.end();
    assert_eq!(ended.code(), Some(0), "{ended}");
}

#[test]
fn firepilot_starts_pauses_resumes_and_stops_a_vm() {
    drives_a_vm(installed("client-firepilot"), &[]);
}

#[test]
fn hysn_firecracker_python_starts_pauses_resumes_and_stops_a_vm() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/hysn.py");
    drives_a_vm(installed("python/bin/python"), &[script]);
}

#[test]
fn promtool_finds_nothing_to_say_about_the_metrics() {
    let checked = |page: &[u8]| {
        let mut promtool = Launch::new(installed("promtool"), ["check", "metrics"]).typed();
        promtool.type_in(page);
        promtool.close_stdin();
        promtool.end()
    };
    in_network_namespace(|| {
        tap("tap7");
        let folder = Folder::new();
        let disk = folder.file("disk", &[0; 1 << 20]);
        let (socket, disk) = (folder.at("s"), format!("{disk},queues=2,iops=1000"));
        let words = ["--net", "tap=tap7", "--hotplug", "128M", "--thread", "vcpu0,cpus=0", "--api-sock", &socket];
        let husk =
            common::guest::probe("check=blk,net,serial end=poweroff").args(words).args(["--disk", &disk]).start();
        husk.wait_for(LISTENING);
        let mut client = Connection::open(&socket);
        client.ask("GET", "/", "");
        let page = client.ask("GET", "/husk/v1/metrics", "").body;
        for part in ["husk_placement_drift", "husk_disk_queue_latency_seconds_bucket", "husk_net_queue_frames_total"] {
            assert!(page.contains(&format!("\n{part}")), "{part} is not in\n{page}");
        }
        checked(page.as_bytes()).went_well();
    });
    // It would say so.
    let wrong = checked(b"# HELP husk_times Time.\n# TYPE husk_times counter\nhusk_times 1\n");
    assert!(wrong.code() != Some(0) && wrong.stderr.contains("_total"), "{wrong}");
}
