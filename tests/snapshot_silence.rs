//! A machine that ends while the host of its snapshot's files, or of the file that its memory comes from, answers no more: that is
//! waited for a few seconds. And one whose memory's file fails: it ends, and says why.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::ended::Ended;
use common::folder::Folder;
use common::fuse::Ask;
use common::http::Connection;
use common::husk;
use common::silent::{Asked, Manner, SilentFolder};
use common::vm::Vm;
use serde_json::json;

/// Longer than husk's own patience with vCPUs, the pager and a snapshot, one after the other.
const PATIENCE: Duration = Duration::from_secs(40);

/// What a pager reads at once.
const CHUNK_LEN: usize = 2 << 20;

/// How a machine is ended.
#[derive(Clone, Copy)]
enum End {
    Signal,
    Stop,
    /// The guest, by its power button.
    PowerOff,
}

/// husk beside the folder `silent`, with a control socket.
fn beside_silence(
    files: Vec<(String, Vec<u8>)>,
    manner: impl FnMut(&Asked<'_>) -> Manner + Send + 'static,
) -> (Vm, SilentFolder) {
    let folder = Folder::new();
    let launch = husk(["--api-sock", &folder.at("s")]);
    let (silent, launch) = SilentFolder::around(&folder, files, manner, launch);
    let husk = launch.start();
    let client = Connection::open(folder.at("s"));
    (Vm { folder, husk, client }, silent)
}

fn ended(mut vm: Vm, end: End) -> Ended {
    let begun = Instant::now();
    match end {
        End::Signal => vm.husk.signal(libc::SIGTERM),
        End::Stop => assert_eq!(vm.client.ask("POST", "/husk/v1/stop", r#"{"grace_ms": 0}"#).status, 202),
        End::PowerOff => assert_eq!(vm.client.ask("POST", "/husk/v1/stop", r#"{"grace_ms": 120000}"#).status, 202),
    }
    let ended = vm.husk.end();
    assert!(begun.elapsed() < PATIENCE, "{:?}: {ended}", begun.elapsed());
    assert_eq!(ended.code(), Some(0), "{ended}");
    ended
}

/// Ends a machine whose snapshot is made where nothing that is written is answered.
fn ends_beside_a_snapshot(end: End) {
    let falls_silent = |asked: &Asked<'_>| match asked.ask {
        // The last before the first page is written.
        Ask::SetLabel => Manner::FallsSilent,
        _ => Manner::Answers,
    };
    let (mut vm, silent) = beside_silence(Vec::new(), falls_silent);
    vm.describe("check=button end=poweroff");
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    vm.husk.wait_for("BUTTON WAIT");
    let mut follower = vm.connect();
    follower.send(common::http::request("GET", "/husk/v1/events", "").as_bytes());
    let begun = vm.client.ask("POST", "/husk/v1/snapshots", r#"{ "path": "silent" }"#);
    assert_eq!(begun.status, 202, "{begun:?}");
    silent.wait_until_silent();
    let ended = ended(vm, end);
    let left = "the thread husk-job-snap did not come back from silent/memory";
    assert_eq!(ended.stderr.matches(left).count(), 1, "{ended}");
    assert!(!follower.wait_for(left).is_empty(), "its job is told to have failed");
    if let End::PowerOff = end {
        ended.check("button");
    }
}

#[test]
fn a_snapshot_whose_writes_nobody_answers_is_left_when_a_signal_ends_the_machine() {
    ends_beside_a_snapshot(End::Signal);
}

#[test]
fn a_snapshot_whose_writes_nobody_answers_is_left_when_a_client_stops_the_machine() {
    ends_beside_a_snapshot(End::Stop);
}

#[test]
fn a_snapshot_whose_writes_nobody_answers_is_left_when_the_guest_powers_off() {
    ends_beside_a_snapshot(End::PowerOff);
}

/// A counting machine's point: its files by their names.
fn point() -> Vec<(String, Vec<u8>)> {
    let mut saved = Vm::running("check=count end=poweroff");
    saved.husk.wait_for("TICK 2 ");
    let point = saved.folder.path().join("point");
    assert_eq!(saved.job("/husk/v1/snapshots", &json!({ "path": point }))["state"], "done");
    let read = |name: &str| (name.to_owned(), fs::read(point.join(name)).unwrap());
    ["memory", "memory.idx", "state"].map(read).into()
}

/// Where the last chunk of its memory is that holds anything: the machine is there before a pager comes to that.
fn last_chunk(point: &[(String, Vec<u8>)]) -> usize {
    point[0].1.iter().rposition(|&byte| byte != 0).unwrap() / CHUNK_LEN * CHUNK_LEN
}

/// Has the memory file read from `offset` on in that manner, and all else answered.
fn at(offset: usize, manner: Manner) -> impl Fn(&Asked<'_>) -> Manner {
    move |asked| match (asked.name, asked.ask) {
        ("memory", Ask::Read) if asked.bytes.start >= offset => manner,
        _ => Manner::Answers,
    }
}

/// A machine whose vCPU waits for memory that is mapped from a file of which nothing is read any more.
fn waits_for_mapped_memory() -> (Vm, SilentFolder) {
    let is_armed = Arc::new(AtomicBool::new(false));
    let arm = Arc::clone(&is_armed);
    let manner = move |_: &Asked<'_>| match is_armed.load(Ordering::SeqCst) {
        true => Manner::FallsSilent,
        false => Manner::Answers,
    };
    let (mut vm, silent) = beside_silence(point(), manner);
    assert_eq!(vm.job("/husk/v1/restore", &json!({ "path": "silent", "memory": "map" }))["state"], "done");
    arm.store(true, Ordering::SeqCst);
    // It is asked once more.
    fs::metadata(format!("/proc/{}/cwd/silent/nothing", vm.husk.pid())).unwrap_err();
    silent.wait_until_silent();
    vm.patch("/vm", &json!({ "state": "Resumed" })).done();
    vm.husk.wait_until_held("husk-vcpu0");
    (vm, silent)
}

fn ends_beside_mapped_memory(end: End) {
    let (vm, _silent) = waits_for_mapped_memory();
    let ended = ended(vm, end);
    assert!(ended.stderr.contains("vCPU 0, which resets a device or waits for a page of memory,"), "{ended}");
}

#[test]
fn a_machine_that_waits_for_memory_of_a_mapped_file_ends_by_a_signal() {
    ends_beside_mapped_memory(End::Signal);
}

#[test]
fn a_machine_that_waits_for_memory_of_a_mapped_file_is_stopped_by_a_client() {
    ends_beside_mapped_memory(End::Stop);
}

/// KVM changes no slot before a vCPU is through with its page fault, not even to log what is written.
#[test]
fn a_snapshot_that_waits_for_such_a_machine_keeps_neither_who_asks_for_figures_waiting_nor_the_end() {
    let (mut vm, _silent) = waits_for_mapped_memory();
    let begun = vm.client.ask("POST", "/husk/v1/snapshots", r#"{ "path": "point" }"#);
    assert_eq!(begun.status, 202, "{begun:?}");
    vm.husk.wait_until_held("husk-job-snap");
    assert_eq!(vm.client.ask("GET", "/husk/v1/metrics", "").status, 200);
    ended(vm, End::Signal);
}

/// Ends a machine, which runs or is paused, whose pager waits for the file that it reads.
fn ends_beside_a_pager(resume: bool, end: End) {
    let point = point();
    let manner = at(last_chunk(&point), Manner::FallsSilent);
    let (mut vm, silent) = beside_silence(point, manner);
    let body = json!({ "path": "silent", "memory": "lazy", "resume": resume });
    assert_eq!(vm.job("/husk/v1/restore", &body)["state"], "done");
    silent.wait_until_silent();
    let ended = ended(vm, end);
    assert!(ended.stderr.contains("the thread husk-pager did not come back from silent/memory"), "{ended}");
}

#[test]
fn a_pager_that_waits_for_its_file_is_left_when_a_signal_ends_the_machine() {
    ends_beside_a_pager(false, End::Signal);
}

#[test]
fn a_pager_that_waits_for_its_file_while_the_guest_runs_is_left_when_a_client_stops_the_machine() {
    ends_beside_a_pager(true, End::Stop);
}

/// A machine whose pager does not get the last of its memory ends with an error that says what it did not get.
fn ends_with_the_error_of(manner: Manner, why: &str) {
    let point = point();
    let last = last_chunk(&point);
    let (mut vm, _silent) = beside_silence(point, at(last, manner));
    let body = json!({ "path": "silent", "memory": "lazy", "resume": true }).to_string();
    assert_eq!(vm.client.ask("POST", "/husk/v1/restore", &body).status, 202);
    let ended = vm.husk.end();
    assert_eq!(ended.code(), Some(1), "{ended}");
    let what = format!("cannot read memory file silent/memory: the chunk at byte {last}: {why}");
    let line = format!("husk: guest memory is lost: cannot read the memory of the snapshot: {what}");
    assert!(ended.stderr.lines().any(|said| said == line), "{ended}");
}

#[test]
fn a_memory_file_that_cannot_be_read_while_the_guest_runs_ends_the_machine_and_says_where() {
    ends_with_the_error_of(Manner::Fails, "Input/output error (os error 5)");
}

#[test]
fn a_memory_file_that_became_shorter_while_the_guest_runs_ends_the_machine_and_says_where() {
    ends_with_the_error_of(Manner::Ends, "the file ends before its memory does");
}
