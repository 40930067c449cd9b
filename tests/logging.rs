//! husk's own log: pipes that are read late or never, and what no log has.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;

use common::guest::PROBE;
use common::vm::Vm;
use serde_json::{Value, json};

/// A running machine whose log is a named pipe; its path.
fn logging_to_a_pipe() -> (Vm, String) {
    let mut vm = Vm::echoing();
    let pipe = vm.folder.fifo("log");
    vm.put("/logger", &json!({ "log_path": pipe, "level": "Debug" })).done();
    (vm, pipe)
}

fn reader(pipe: &str) -> File {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(pipe).unwrap()
}

fn lost_lines(vm: &mut Vm) -> u64 {
    let page = vm.client.ask("GET", "/husk/v1/metrics", "").body;
    page.lines().find_map(|line| line.strip_prefix("husk_log_lost_lines_total ")).unwrap().parse().unwrap()
}

/// All that is in the pipe now; each line is whole.
fn lines(reader: &mut File) -> Vec<String> {
    let mut bytes = Vec::new();
    // That there is no more for now ends it.
    let _ = reader.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_pipe_that_nobody_reads_holds_up_nothing_and_what_it_has_no_room_for_is_counted() {
    let (mut vm, pipe) = logging_to_a_pipe();
    let mut asked = 0;
    while lost_lines(&mut vm) < 100 {
        vm.get("/machine-config");
        asked += 1;
        assert!(asked < 10_000, "a pipe is bounded");
    }
    vm.patch("/vm", &json!({ "state": "Paused" })).done();
    vm.patch("/vm", &json!({ "state": "Resumed" })).done();
    let mut reader = reader(&pipe);
    let kept = lines(&mut reader);
    assert!(kept.len() > 100, "{}", kept.len());
    assert!(kept.iter().all(|line| line.contains(":husk-api] api: ")), "{:?}", kept.last());
    let before = lost_lines(&mut vm);
    vm.get("/vm/config");
    assert!(lines(&mut reader).last().unwrap().ends_with("api: GET /vm/config"), "there is room again");
    assert_eq!(lost_lines(&mut vm), before);
    vm.stop();
}

#[test]
fn a_reader_that_goes_away_ends_nothing_and_the_next_one_reads_on() {
    let (mut vm, pipe) = logging_to_a_pipe();
    let mut first = BufReader::new(File::open(&pipe).unwrap());
    vm.get("/vm/config");
    let mut line = String::new();
    first.read_line(&mut line).unwrap();
    assert!(line.ends_with("api: GET /vm/config\n"), "{line}");
    drop(first);
    vm.get("/machine-config");
    let mut second = reader(&pipe);
    assert!(lines(&mut second).iter().any(|line| line.ends_with("api: GET /machine-config")));
    vm.stop();
}

#[test]
fn no_log_has_what_a_body_says_or_the_kernel_s_command_line() {
    const SECRET: &str = "hunter2";
    let mut vm = Vm::with(&["--log-format", "json", "--level", "Trace"]);
    let log = vm.folder.at("log");
    vm.put("/logger", &json!({ "log_path": log, "level": "Trace", "show_log_origin": true })).done();
    let mut refused = |target: &str, body: Value| {
        let answer = vm.put(target, &body);
        assert_eq!(answer.status, 400, "{answer:?}");
        answer.body.contains(SECRET)
    };
    let told = [
        refused("/boot-source", json!({ "kernel_image_path": "/nowhere", "boot_args": [SECRET] })),
        refused("/boot-source", json!({ "kernel_image_path": "/nowhere", "boot_args": SECRET })),
        refused("/machine-config", json!({ "vcpu_count": SECRET, "mem_size_mib": 64 })),
        refused("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 64, "huge_pages": SECRET })),
        refused("/drives/a", json!({ "drive_id": SECRET, "path_on_host": "/nowhere", "is_root_device": true })),
        refused("/machine-config", json!(SECRET)),
        refused("/mmds", json!({ "password": SECRET })),
        refused("/logger", json!({ "level": SECRET })),
    ];
    assert!(told.contains(&true), "to the client, messages quote what it said");
    let words = format!("check=serial end=triple token={SECRET}");
    vm.put("/boot-source", &json!({ "kernel_image_path": PROBE, "boot_args": words })).done();
    vm.put("/metrics", &json!({ "metrics_path": vm.folder.at("m"), "properties": { "key": SECRET } })).done();
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    vm.husk.wait_for("SERIAL WAIT");
    assert_eq!(vm.get("/vm/config")["boot-source"]["boot_args"], words.as_str());
    vm.client.ask("PUT", "/boot-source", &json!({ "kernel_image_path": SECRET }).to_string());
    assert_eq!(vm.client.ask("POST", "/husk/v1/stop", &json!({ "grace_ms": SECRET }).to_string()).status, 400);
    let point = vm.folder.at("point");
    assert_eq!(vm.job("/husk/v1/snapshots", &json!({ "path": point }))["state"], "done");
    let text = String::from_utf8(vm.folder.read("log")).unwrap();
    assert!(text.contains("api: PUT /machine-config: a bad request: vcpu_count"), "{text}");
    let ended = vm.stop();
    assert!(!text.contains(SECRET) && !ended.stderr.contains(SECRET), "{text}{ended}");
}
