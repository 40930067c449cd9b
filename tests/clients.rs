//! Published client libraries of Firecracker's API drive husk, which they take for Firecracker by its name.
//! tools/dev.d/clients installs them.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::path::{Path, PathBuf};

use common::folder::Folder;
use common::guest::PROBE;
use common::http::Connection;
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
