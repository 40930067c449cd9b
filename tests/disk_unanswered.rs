//! A file whose host never answers when it is opened: who asked for it hears so, and nobody waits.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::folder::Folder;
use common::guest::probe;
use common::http::{Connection, request};
use common::{Husk, Launch, husk, through_shell};

/// As many opens as husk leaves without an answer.
const THREADS_MAX: usize = 8;

/// Starts husk where `dead` is a file system whose server says nothing.
fn beside_the_dead(folder: &Folder, launch: Launch) -> Husk {
    fs::create_dir(folder.at("dead")).unwrap();
    let script = "exec unshare -m sh -c '
        exec 3<>/dev/fuse
        mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 dead dead
        exec \"$@\"' sh \"$@\"";
    through_shell(script, &launch.folder(folder.path())).typed()
}

fn replace_by(client: &mut Connection, path: &str) {
    let body = format!(r#"{{"drive_id": "disk0", "path_on_host": "{path}"}}"#);
    client.send(request("PATCH", "/drives/disk0", &body).as_bytes());
}

/// Waits until so many threads wait for the host.
fn wait_until_asked(husk: &Husk, threads: usize) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let asked = || husk.threads("husk-job-file").len();
    while asked() < threads {
        assert!(Instant::now() < deadline, "{} threads are asked", asked());
        std::thread::yield_now();
    }
}

#[test]
fn a_disk_that_is_to_have_a_file_nobody_answers_for_keeps_its_own_and_delays_nobody() {
    let folder = Folder::new();
    for disk in ["disk", "other"] {
        folder.sparse(disk, 1 << 20);
    }
    let launch = probe("check=serial end=poweroff").args(["--disk", "disk,id=disk0", "--api-sock", "s"]);
    let mut husk = beside_the_dead(&folder, launch);
    husk.wait_for("SERIAL WAIT");
    let mut waiting: Vec<_> = (0..THREADS_MAX).map(|_| Connection::open(folder.at("s"))).collect();
    waiting.iter_mut().for_each(|client| replace_by(client, "dead/disk"));
    wait_until_asked(&husk, THREADS_MAX);
    let mut client = Connection::open(folder.at("s"));
    for state in ["Paused", "Resumed"] {
        client.ask("PATCH", "/vm", &format!(r#"{{"state": "{state}"}}"#)).done();
    }
    assert_eq!(client.ask("GET", "/vm/config", "").json()["drives"][0]["path_on_host"], "disk");
    replace_by(&mut client, "dead/disk");
    client.answer().refused(&["cannot open dead/disk", "8 others are waited for already"]);
    for client in &mut waiting {
        client.answer().refused(&["cannot open dead/disk", "no answer within 5 s"]);
    }
    husk.type_in(b"still here\n");
    husk.wait_for("still here");
    replace_by(&mut waiting[0], "dead/disk");
    client.ask("GET", "/husk/v1/devices", "").json();
    husk.signal(libc::SIGTERM);
    let ended = husk.end();
    assert_eq!(ended.code(), Some(0), "{ended}");
}

#[test]
fn a_guest_that_resets_itself_has_its_disk_again_while_a_question_about_another_is_open() {
    let folder = Folder::new();
    folder.sparse("disk", 1 << 20);
    let launch = probe("check=serial end=i8042").args(["--on-reboot", "restart"]);
    let mut husk = beside_the_dead(&folder, launch.args(["--disk", "disk,id=disk0", "--api-sock", "s"]));
    husk.wait_for("SERIAL WAIT");
    let mut client = Connection::open(folder.at("s"));
    replace_by(&mut client, "dead/disk");
    wait_until_asked(&husk, 1);
    husk.type_in(b"end\n");
    husk.wait_for_times("SERIAL WAIT", 2);
    assert_eq!(husk.threads("husk-job-file").len(), 1, "it is open still");
    client.answer().refused(&["cannot open dead/disk", "no answer within 5 s"]);
    husk.signal(libc::SIGTERM);
    let ended = husk.end();
    assert_eq!(ended.code(), Some(0), "{ended}");
}

#[test]
fn a_drive_that_is_described_by_such_a_file_delays_neither_the_next_request_nor_the_end() {
    let folder = Folder::new();
    let husk = beside_the_dead(&folder, husk(["--api-sock", "s"]));
    let mut waiting = Connection::open(folder.at("s"));
    let drive = r#"{"drive_id": "root", "path_on_host": "dead/disk", "is_root_device": true}"#;
    waiting.send(request("PUT", "/drives/root", drive).as_bytes());
    let mut client = Connection::open(folder.at("s"));
    client.ask("PUT", "/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 64}"#).done();
    assert_eq!(client.ask("GET", "/vm/config", "").json()["drives"].as_array().map(Vec::len), Some(0));
    waiting.answer().refused(&["cannot open dead/disk", "no answer within 5 s"]);
    waiting.send(request("PUT", "/drives/root", drive).as_bytes());
    client.ask("GET", "/vm/config", "").json();
    husk.signal(libc::SIGTERM);
    let ended = husk.end();
    assert_eq!(ended.code(), Some(0), "{ended}");
}
