//! A machine that ends while a snapshot of it is made: held between the last page and the next instruction, and with a maker
//! that waits for a page.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::ended::Ended;
use common::faults::handle_faults_while;
use common::folder::Folder;
use common::guest::{noise, probe};
use common::http::{Answer, Connection};
use common::sys::Held;
use common::vm::Vm;
use common::{Husk, husk};
use serde_json::json;

/// A running machine that is held for a snapshot, whose maker does not get on before it is released.
fn held_by_its_maker(point: &Path) -> (Vm, Held) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut vm = Vm::running("check=scribble end=poweroff");
    // So much is written that the machine is held for a while.
    vm.husk.wait_for("SCRIBBLE 2\n");
    loop {
        assert!(Instant::now() < deadline, "the machine is not held");
        let body = json!({ "path": point }).to_string();
        let number = vm.client.ask("POST", "/husk/v1/snapshots", &body).json()["id"].as_u64().unwrap();
        while vm.get(&format!("/husk/v1/jobs/{number}"))["state"] == "running" {
            if vm.state() != "Paused" {
                continue;
            }
            let Some(maker) = vm.husk.threads("husk-job-snap").first().copied() else { continue };
            let held = Held::hold_thread(maker);
            // Now it cannot say that the last page is copied, if it has not.
            if vm.state() == "Paused" {
                return (vm, held);
            }
        }
        fs::remove_dir_all(point).unwrap();
    }
}

fn ended(husk: Husk, held: Held) -> Ended {
    // It is on its way to its end, and waits for the maker.
    held.release();
    husk.end()
}

/// Ends a machine that a snapshot holds, and returns whether the snapshot became whole: its maker may have been held behind its
/// last page, before it could say so.
fn becomes_whole(point: &Path, by_signal: bool) -> bool {
    let (mut vm, held) = held_by_its_maker(point);
    if by_signal {
        vm.husk.signal(libc::SIGTERM);
    } else {
        assert_eq!(vm.client.ask("POST", "/husk/v1/stop", r#"{"grace_ms": 0}"#).status, 202);
    }
    let ended = ended(vm.husk, held);
    assert_eq!(ended.code(), Some(0), "{ended}");
    let is_there = point.exists();
    if is_there {
        let verified = husk(["snapshot", "verify", point.to_str().unwrap()]).end();
        assert_eq!(verified.code(), Some(0), "{verified}");
    }
    is_there
}

#[test]
fn a_machine_that_is_stopped_while_a_snapshot_holds_it_ends_and_leaves_a_whole_one_or_none() {
    let folder = tempfile::tempdir().unwrap();
    for by_signal in [true, false] {
        let mut points = (0..10).map(|number| folder.path().join(format!("point-{by_signal}-{number}")));
        assert!(points.any(|point| !becomes_whole(&point, by_signal)), "a maker with pages to copy gives up");
    }
}

/// A machine whose page fault handler, which is here, answers no more, and that is held for a snapshot whose maker waits for a page.
fn held_by_a_page() -> (Vm, UnixStream, thread::JoinHandle<Answer>) {
    let mut vm = Vm::running("check=count end=poweroff");
    vm.husk.wait_for("TICK 2 ");
    let [state, memory, handler] = ["state", "memory", "handler"].map(|name| vm.folder.at(name));
    vm.patch("/vm", &json!({ "state": "Paused" })).done();
    vm.put("/snapshot/create", &json!({ "snapshot_path": state, "mem_file_path": memory })).done();
    let listener = UnixListener::bind(&handler).unwrap();
    let (hangs, (waits, waited)) = (Arc::new(AtomicBool::new(false)), mpsc::channel());
    let answers = {
        let hangs = Arc::clone(&hangs);
        move |_: &[u8; 4096]| !hangs.load(Ordering::SeqCst) || waits.send(()).is_err()
    };
    let accepted = thread::spawn(move || handle_faults_while(&listener, memory.as_ref(), 64 << 20, answers));
    let mut clone = Vm::new();
    let backend = json!({ "backend_type": "Uffd", "backend_path": handler });
    clone.put("/snapshot/load", &json!({ "snapshot_path": state, "mem_backend": backend })).done();
    hangs.store(true, Ordering::SeqCst);
    let (mut waiter, point) = (clone.connect(), clone.folder.at("point"));
    let body = json!({ "snapshot_path": point, "mem_file_path": format!("{point}.memory") }).to_string();
    let waiter = thread::spawn(move || waiter.ask("PUT", "/snapshot/create", &body));
    waited.recv().unwrap();
    (clone, accepted.join().unwrap(), waiter)
}

#[test]
fn a_snapshot_that_waits_for_a_page_keeps_nobody_from_ending_the_machine() {
    for by_signal in [true, false] {
        let (clone, handler, waiter) = held_by_a_page();
        if by_signal {
            clone.husk.signal(libc::SIGTERM);
        } else {
            // It hangs up, and keeps its userfaultfd.
            drop(handler);
        }
        let ended = clone.husk.end();
        assert_eq!(ended.code(), Some(if by_signal { 0 } else { 1 }), "{ended}");
        assert_eq!(ended.stderr.contains("has hung up"), !by_signal, "{ended}");
        waiter.join().unwrap().refused(&["the snapshot was given up"]);
        assert!(fs::read_dir(clone.folder.path()).unwrap().all(|file| {
            let name = file.unwrap().file_name();
            !name.to_string_lossy().contains("point")
        }));
    }
}

/// What the probe writes to a disk: of its 64-bit words, each is so much more than the one before it.
fn is_the_probes(page: &[u8; 4096]) -> bool {
    let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
    word(8).wrapping_sub(word(0)) == 0x9e37_79b9_7f4a_7c15
}

#[test]
fn what_waits_for_a_page_in_the_middle_of_a_write_when_the_machine_is_given_up_writes_no_zeros_to_the_disk() {
    let folder = Folder::new();
    let before = noise(31, 1 << 20);
    let image = folder.file("disk", &before);
    let saved = probe("check=blk end=poweroff").args(["--memory", "64M", "--api-sock", &folder.at("s")]);
    let saved = saved.args(["--disk", &format!("{image},engine=sync,wr_iops=1")]).start();
    let mut client = Connection::open(folder.at("s"));
    let deadline = Instant::now() + Duration::from_secs(60);
    // The first of its requests to be served; all others are held by then, or are not made yet.
    while fs::read(&image).unwrap() == before {
        assert!(Instant::now() < deadline, "nothing is written");
    }
    client.ask("PATCH", "/vm", r#"{"state": "Paused"}"#).done();
    let [state, memory, handler] = ["state", "memory", "handler"].map(|name| folder.at(name));
    let body = json!({ "snapshot_path": state, "mem_file_path": memory }).to_string();
    client.ask("PUT", "/snapshot/create", &body).done();
    drop(saved);
    let written = fs::read(&image).unwrap();

    let listener = UnixListener::bind(&handler).unwrap();
    let (waits, waited) = mpsc::channel();
    let answers = move |page: &[u8; 4096]| !is_the_probes(page) || waits.send(()).is_err();
    let accepted = thread::spawn(move || handle_faults_while(&listener, memory.as_ref(), 64 << 20, answers));
    let mut clone = Vm::new();
    let backend = json!({ "backend_type": "Uffd", "backend_path": handler });
    let body = json!({ "snapshot_path": state, "mem_backend": backend, "resume_vm": true });
    clone.put("/snapshot/load", &body).done();
    let _handler = accepted.join().unwrap();
    waited.recv().unwrap();
    clone.husk.signal(libc::SIGTERM);
    let ended = clone.husk.end();
    assert!(ended.code() == Some(0) && ended.stderr.contains("device `disk0` does not answer"), "{ended}");
    assert!(fs::read(&image).unwrap() == written, "nothing that the guest did not write is on its disk");
}
