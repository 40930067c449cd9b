//! A machine whose memory takes long to come: clients and signals are seen to meanwhile, and may give it up.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::folder::Folder;
use common::guest::PROBE;
use common::http::{Answer, Connection};
use common::sys::Held;
use common::vm::Vm;
use common::{Husk, husk};
use serde_json::{Value, json};

/// The thread that brings memory in, as soon as it is there, so that it does not end before it is released.
fn hold_memory_thread(husk: &Husk) -> Held {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(thread) = husk.threads("husk-job-memory").first() {
            let held = Held::hold_thread(*thread);
            if matches!(held.call(), Some(libc::SYS_madvise | libc::SYS_futex)) {
                return held;
            }
            held.release();
        }
        assert!(Instant::now() < deadline, "no thread brings memory in");
    }
}

/// A VM of so much memory that is all there before its guest starts, and somebody who starts it and waits.
fn starting() -> (Vm, JoinHandle<Answer>) {
    let mut vm = Vm::new();
    vm.put("/machine-config", &json!({ "vcpu_count": 1, "mem_size_mib": 2048 })).done();
    vm.put("/boot-source", &json!({ "kernel_image_path": PROBE, "boot_args": "check=serial end=poweroff" })).done();
    vm.put("/husk/v1/placement", &json!({ "memory": { "prefault": true } })).done();
    let mut starter = vm.connect();
    let start = move || starter.ask("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
    (vm, std::thread::spawn(start))
}

fn job_of_kind(vm: &mut Vm, kind: &str) -> Value {
    let jobs = vm.get("/husk/v1/jobs");
    jobs.as_array().unwrap().iter().find(|job| job["kind"] == kind).unwrap_or_else(|| panic!("{jobs}")).clone()
}

#[test]
fn clients_are_answered_while_memory_comes_and_the_start_goes_on() {
    let (mut vm, start) = starting();
    let held = hold_memory_thread(&vm.husk);
    assert_eq!(vm.state(), "Not started");
    assert_eq!(vm.get("/vm/config")["machine-config"]["mem_size_mib"], 2048);
    assert_eq!(vm.get("/husk/v1/devices"), json!([]));
    assert_eq!(vm.client.ask("GET", "/husk/v1/metrics", "").status, 200);
    let job = job_of_kind(&mut vm, "start");
    assert_eq!(job["state"], "running");
    vm.put("/machine-config", &json!({ "vcpu_count": 2, "mem_size_mib": 64 })).refused(&["being assembled", "job 1"]);
    let again = vm.client.ask("POST", "/husk/v1/pause", "");
    assert_eq!((again.status, again.json()["code"].as_str()), (409, Some("state")), "{again:?}");
    held.release();
    start.join().unwrap().done();
    vm.husk.wait_for("SERIAL WAIT");
    let job = job_of_kind(&mut vm, "start");
    assert_eq!((job["state"].as_str(), job["progress"].as_f64()), (Some("done"), Some(1.0)), "{job}");
    vm.stop();
}

#[test]
fn a_start_that_is_given_up_leaves_a_machine_that_can_be_started_again() {
    let (mut vm, start) = starting();
    let held = hold_memory_thread(&vm.husk);
    let job = job_of_kind(&mut vm, "start");
    assert_eq!(vm.client.ask("DELETE", &format!("/husk/v1/jobs/{}", job["id"]), "").status, 200);
    held.release();
    start.join().unwrap().refused(&["given up"]);
    assert_eq!(job_of_kind(&mut vm, "start")["state"], "cancelled");
    assert_eq!(vm.state(), "Not started");
    vm.put("/husk/v1/placement", &json!({})).done();
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    vm.husk.wait_for("SERIAL WAIT");
    vm.stop();
}

#[test]
fn a_signal_ends_a_husk_whose_memory_is_still_to_come() {
    let (vm, start) = starting();
    let held = hold_memory_thread(&vm.husk);
    vm.husk.signal(libc::SIGTERM);
    held.release();
    start.join().unwrap().refused(&["given up"]);
    assert_eq!(vm.husk.end().code(), Some(0));
    assert!(!vm.folder.path().join("s").exists());
}

#[test]
fn a_restore_by_copy_is_a_job_with_progress_and_an_end() {
    let folder = Folder::new();
    let mut vm = Vm::running("check=serial end=poweroff");
    let point = folder.at("point");
    assert_eq!(vm.job("/husk/v1/snapshots", &json!({ "path": point }))["state"], "done");
    vm.stop();
    let mut vm = Vm::new();
    let begun = vm.client.ask("POST", "/husk/v1/restore", &json!({ "path": point, "memory": "copy" }).to_string());
    assert_eq!(begun.status, 202, "{begun:?}");
    let ended = vm.finished(begun.json()["id"].as_u64().unwrap());
    assert_eq!((ended["kind"].as_str(), ended["state"].as_str()), (Some("restore"), Some("done")), "{ended}");
    // What is wrong is told by the job, and the socket waits for another.
    let memory = fs::read(folder.path().join("point/memory")).unwrap();
    let page = memory.chunks(4096).position(|page| page.iter().any(|&byte| byte != 0)).unwrap();
    let mut damaged = memory.clone();
    damaged[4096 * page] ^= 1;
    fs::write(folder.path().join("point/memory"), damaged).unwrap();
    vm.stop();
    let mut vm = Vm::new();
    let begun = vm.client.ask("POST", "/husk/v1/restore", &json!({ "path": point, "memory": "copy" }).to_string());
    assert_eq!(begun.status, 202, "{begun:?}");
    let ended = vm.finished(begun.json()["id"].as_u64().unwrap());
    assert_eq!(ended["state"], "failed", "{ended}");
    assert!(ended["error"].as_str().unwrap().contains("is not what was written"), "{ended}");
    let ctl = husk(["ctl", "--api-sock", &vm.folder.at("s"), "restore", &point, "--memory", "copy"]).end();
    assert_eq!(ctl.code(), Some(1), "{ctl}");
    assert!(ctl.message().contains("is not what was written"), "{ctl}");
    fs::write(folder.path().join("point/memory"), memory).unwrap();
    let ctl = husk(["ctl", "--api-sock", &vm.folder.at("s"), "restore", &point, "--memory", "copy"]).end();
    assert_eq!(ctl.code(), Some(0), "{ctl}");
    assert_eq!(Connection::open(vm.folder.at("s")).ask("GET", "/", "").json()["state"], "Running");
    vm.stop();
}

#[test]
fn a_snapshot_that_firecrackers_client_loads_is_there_when_it_is_answered() {
    let mut vm = Vm::new();
    vm.describe("check=serial end=poweroff");
    vm.put("/husk/v1/placement", &json!({ "memory": { "prefault": true } })).done();
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    vm.husk.wait_for("SERIAL WAIT");
    vm.patch("/vm", &json!({ "state": "Paused" })).done();
    let (state, memory) = (vm.folder.at("vm.state"), vm.folder.at("vm.mem"));
    vm.put("/snapshot/create", &json!({ "snapshot_path": state, "mem_file_path": memory })).done();
    let folder = vm.folder;
    drop(vm.husk);
    // Its memory is prefaulted, so it is copied, which takes long.
    let mut clone = Vm::new();
    let load = json!({ "snapshot_path": state, "mem_backend": { "backend_type": "File", "backend_path": memory } });
    clone.put("/snapshot/load", &load).done();
    assert_eq!(clone.state(), "Paused");
    assert_eq!(job_of_kind(&mut clone, "restore")["state"], "done");
    clone.stop();
    fs::write(&memory, vec![1; 64 << 20]).unwrap();
    let mut clone = Vm::new();
    clone.put("/snapshot/load", &load).refused(&["cannot start the machine"]);
    assert_eq!(clone.state(), "Not started");
    clone.stop();
    drop(folder);
}

#[test]
fn who_asks_while_another_starts_the_machine_is_answered() {
    let mut vm = Vm::new();
    vm.describe("check=serial end=poweroff");
    let held = Held::hold(vm.husk.pid());
    // Both are in the control loop's queue when it looks again.
    let mut clients = [vm.connect(), vm.connect()];
    clients[0].send(common::http::request("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#).as_bytes());
    assert_eq!(vm.client.ask("GET", "/version", "").status, 200);
    clients[1].send(common::http::request("GET", "/vm/config", "").as_bytes());
    assert_eq!(vm.client.ask("GET", "/version", "").status, 200);
    held.release();
    assert_eq!(clients[1].answer().status, 200);
    clients[0].answer().done();
    vm.husk.wait_for("SERIAL WAIT");
    vm.stop();
}

#[test]
fn a_start_that_nobody_asked_for_over_the_socket_is_a_job_with_an_end_too() {
    let folder = Folder::new();
    let words = ["run", "--kernel", PROBE, "--memory", "2G,prefault", "--api-sock", &folder.at("s")];
    let husk = husk(words).start();
    let held = hold_memory_thread(&husk);
    let mut follower = Connection::open(folder.at("s"));
    follower.send(common::http::request("GET", "/husk/v1/events", "").as_bytes());
    follower.wait_for(r#""kind":"start","state":"running""#);
    husk.signal(libc::SIGTERM);
    follower.wait_for(r#""event":"state","state":"ended""#);
    held.release();
    follower.wait_for(r#""kind":"start","state":"cancelled""#);
    assert_eq!(husk.end().code(), Some(0));
}
