//! A file whose host never answers when it is opened or looked at: who asked for it hears so, and nobody waits.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::folder::Folder;
use common::guest::{PROBE, probe};
use common::http::{Connection, request};
use common::vm::Vm;
use common::{Husk, Launch, husk, through_shell};
use serde_json::json;

/// As many opens as husk leaves without an answer.
const THREADS_MAX: usize = 8;

/// Starts husk where `dead` is a file system whose server says nothing.
fn beside_the_dead(folder: &Folder, launch: Launch) -> Husk {
    fs::create_dir_all(folder.at("dead")).unwrap();
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

#[test]
fn a_start_with_a_disk_nobody_answers_for_ends_with_its_name_or_at_a_signal() {
    for signalled in [false, true] {
        let folder = Folder::new();
        folder.sparse("disk", 1 << 20);
        let launch = probe("end=poweroff").args(["--disk", "disk", "--disk", "dead/disk,id=far"]);
        let husk = beside_the_dead(&folder, launch);
        wait_until_asked(&husk, 1);
        if signalled {
            husk.signal(libc::SIGTERM);
        }
        let ended = husk.end();
        let told =
            "husk: disk `far`: cannot open dead/disk: no answer within 5 s: check the server or device behind it";
        let expected = if signalled { (Some(0), false) } else { (Some(1), true) };
        assert_eq!((ended.code(), ended.stderr.contains(told)), expected, "{ended}");
    }
}

/// Has `link` lead to `target`.
fn link_leads_to(folder: &Folder, target: &str) {
    let _absent = fs::remove_file(folder.at("link"));
    std::os::unix::fs::symlink(target, folder.at("link")).unwrap();
}

#[test]
fn a_snapshot_holds_a_machine_no_longer_than_it_waits_for_the_host_of_a_disk_and_a_restore_ends() {
    let folder = Folder::new();
    folder.sparse("disk", 1 << 20);
    link_leads_to(&folder, "disk");
    let launch = probe("check=count end=poweroff").args(["--memory", "64M", "--disk", "link,id=far"]);
    let husk = beside_the_dead(&folder, launch.args(["--api-sock", "s"]));
    husk.wait_for("TICK 2 ");
    let client = Connection::open(folder.at("s"));
    let mut vm = Vm { folder, husk, client };
    let [good, point] = ["good", "point"].map(|name| vm.folder.path().join(name));
    assert_eq!(vm.job("/husk/v1/snapshots", &json!({ "path": good }))["state"], "done");
    link_leads_to(&vm.folder, "dead/disk");
    let job = vm.job("/husk/v1/snapshots", &json!({ "path": point }));
    assert_eq!(job["state"], "done", "{job}");
    vm.husk.wait_for_error("disk `far`: nobody says within 1 s when link was written last");
    assert_eq!(vm.state(), "Running");
    let Vm { folder, husk, .. } = vm;
    husk.signal(libc::SIGTERM);
    assert_eq!(husk.end().code(), Some(0));
    for (point, words, told) in [
        ("good", &[][..], "disk `far`: cannot open link: no answer within 5 s"),
        ("good", &["--strict-disks"], "disk `far`: nobody says within 1 s when link was written last"),
        ("point", &[], "disk `far`: cannot open link: no answer within 5 s"),
    ] {
        let husk = beside_the_dead(&folder, common::husk(["restore", point]).args(words));
        let ended = husk.end();
        assert!(ended.code() == Some(1) && ended.stderr.contains(told), "{ended}");
    }
}

#[test]
fn a_client_whose_start_meets_such_a_disk_is_told_so_and_can_start_again() {
    let folder = Folder::new();
    for disk in ["disk", "near"] {
        folder.sparse(disk, 1 << 20);
    }
    let husk = beside_the_dead(&folder, husk(["--api-sock", "s"]));
    let mut client = Connection::open(folder.at("s"));
    link_leads_to(&folder, "near");
    client.ask("PUT", "/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 64}"#).done();
    let kernel = format!(r#"{{"kernel_image_path": "{PROBE}", "boot_args": "check=serial end=poweroff"}}"#);
    client.ask("PUT", "/boot-source", &kernel).done();
    for (id, path) in [("a", "disk"), ("b", "link")] {
        let drive = format!(r#"{{"drive_id": "{id}", "path_on_host": "{path}", "is_root_device": false}}"#);
        client.ask("PUT", &format!("/drives/{id}"), &drive).done();
    }
    link_leads_to(&folder, "dead/disk");
    let start = r#"{"action_type": "InstanceStart"}"#;
    let mut waiting = Connection::open(folder.at("s"));
    waiting.send(request("PUT", "/actions", start).as_bytes());
    wait_until_asked(&husk, 1);
    assert_eq!(client.ask("GET", "/", "").json()["state"], "Not started");
    waiting.answer().refused(&["disk `b`: cannot open link: no answer within 5 s"]);
    link_leads_to(&folder, "near");
    client.ask("PUT", "/actions", start).done();
    husk.wait_for("SERIAL WAIT");
    husk.signal(libc::SIGTERM);
    assert_eq!(husk.end().code(), Some(0));
}
