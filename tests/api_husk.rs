//! husk's own dialect of the control socket, `husk ctl`, and the end by signals.

mod common;

use std::fs::OpenOptions;
use std::time::{Duration, Instant};

use common::ended::Ended;
use common::http::Connection;
use common::husk;
use common::vm::Vm;
use serde_json::{Value, json};

fn ctl(vm: &Vm, words: &[&str]) -> Ended {
    husk(["ctl", "--api-sock", &vm.folder.at("s")]).args(words).end()
}

fn ctl_json(vm: &Vm, words: &[&str]) -> Value {
    let ended = ctl(vm, words);
    assert_eq!(ended.code(), Some(0), "{ended}");
    serde_json::from_str(&ended.text()).unwrap_or_else(|error| panic!("{error}: {ended}"))
}

#[test]
fn a_job_is_begun_with_its_place_and_told_of_as_an_event() {
    let mut vm = Vm::echoing();
    let answer = vm.client.ask("POST", "/husk/v1/pause", "");
    assert_eq!((answer.status, answer.header("location")), (202, Some("/husk/v1/jobs/1")), "{answer:?}");
    let job = vm.get("/husk/v1/jobs/1");
    assert_eq!((job["kind"].as_str(), job["state"].as_str()), (Some("pause"), Some("done")));
    assert_eq!(vm.state(), "Paused");
    let refused = vm.client.ask("POST", "/husk/v1/power-button", "");
    assert_eq!(refused.status, 409);
    assert_eq!(refused.json()["state"], "paused");
    assert_eq!(refused.json()["code"], "state");
    assert_eq!(vm.client.ask("POST", "/husk/v1/resume", "").status, 202);
    assert_eq!(vm.get("/husk/v1/jobs").as_array().unwrap().len(), 2);
    let mut follower = vm.connect();
    follower.send(common::http::request("GET", "/husk/v1/events?after=1", "").as_bytes());
    let events = follower.wait_for(r#""kind":"resume""#);
    assert!(events.contains(r#""event":"state","state":"paused""#), "{events}");
    assert!(!events.contains(r#""seq":1,"#), "{events}");
    vm.husk.signal(libc::SIGTERM);
    follower.wait_for(r#""event":"ended","reason":"stopped""#);
    assert_eq!(vm.husk.end().code(), Some(0));
}

/// The events of a machine whose end somebody follows from its beginning.
fn followed(vm: &Vm) -> Connection {
    let mut follower = vm.connect();
    follower.send(common::http::request("GET", "/husk/v1/events", "").as_bytes());
    follower.wait_for(r#""state":"running""#);
    follower
}

#[test]
fn a_guest_that_heeds_its_button_ends_the_job_that_waits_for_it() {
    let mut vm = Vm::running("check=button end=poweroff");
    vm.husk.wait_for("BUTTON WAIT");
    let mut follower = followed(&vm);
    let begun = vm.client.ask("POST", "/husk/v1/stop", r#"{"grace_ms": 3600000}"#);
    assert_eq!(begun.status, 202, "{begun:?}");
    let told = follower.wait_for(r#""event":"ended","reason":"powered_off""#);
    assert!(told.contains(r#""kind":"stop","state":"done""#), "{told}");
    assert_eq!(vm.husk.end().code(), Some(0));
}

#[test]
fn a_second_stop_ends_the_job_of_the_first() {
    let mut vm = Vm::running("check=button end=halt");
    vm.husk.wait_for("BUTTON WAIT");
    let mut follower = followed(&vm);
    let first = vm.client.ask("POST", "/husk/v1/stop", r#"{"grace_ms": 3600000}"#);
    vm.husk.wait_for("END halt");
    let second = vm.client.ask("POST", "/husk/v1/stop", r#"{"grace_ms": 3600000}"#);
    assert_eq!((first.status, second.status), (202, 202));
    let (first, second) = (first.json(), second.json());
    assert_eq!(
        (&first["id"], first["state"].as_str(), second["state"].as_str()),
        (&second["id"], Some("running"), Some("done"))
    );
    follower.wait_for(r#""event":"ended","reason":"stopped""#);
    assert_eq!(vm.husk.end().code(), Some(0));
}

#[test]
fn a_guest_that_stays_is_ended_when_its_grace_is_over() {
    let mut vm = Vm::running("check=button end=halt");
    vm.husk.wait_for("BUTTON WAIT");
    let mut follower = followed(&vm);
    let begun = Instant::now();
    assert_eq!(vm.client.ask("POST", "/husk/v1/stop", r#"{"grace_ms": 300}"#).status, 202);
    follower.wait_for(r#""kind":"stop","state":"done""#);
    follower.wait_for(r#""event":"ended","reason":"stopped""#);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!(vm.husk.end().code(), Some(0));
}

#[test]
fn a_snapshot_that_the_guests_end_overtakes_has_an_end_too() {
    let mut vm = Vm::running("check=count end=poweroff");
    vm.husk.wait_for("TICK 5 ");
    let mut follower = followed(&vm);
    // The stop comes before its end or behind it: either way that is told.
    let path = vm.folder.at("point");
    assert_eq!(vm.client.ask("POST", "/husk/v1/snapshots", &json!({ "path": path }).to_string()).status, 202);
    assert_eq!(vm.client.ask("POST", "/husk/v1/stop", r#"{"grace_ms": 0}"#).status, 202);
    let told = follower.wait_for(r#""event":"ended""#);
    let state = told.rsplit_once(r#""kind":"snapshot","state":"#).map(|(_, rest)| rest);
    assert!(state.is_some_and(|state| state.starts_with("\"done\"") || state.starts_with("\"cancelled\"")), "{told}");
    let whole = vm.folder.path().join("point/state").exists();
    assert_eq!(whole, told.contains(r#""kind":"snapshot","state":"done""#), "{told}");
    assert_eq!(vm.husk.end().code(), Some(0));
}

#[test]
fn an_nmi_reaches_the_guest() {
    let mut vm = Vm::running("end=halt");
    vm.husk.wait_for("END halt\n");
    assert_eq!(vm.client.ask("POST", "/husk/v1/nmi", "").status, 202);
    // The probe takes none, and says so on its way out.
    vm.husk.wait_for("FAULT vector=2 ");
    assert_eq!(vm.husk.end().code(), Some(3));
}

#[test]
fn clients_that_follow_leave_room_for_others() {
    let mut vm = Vm::echoing();
    let follow = common::http::request("GET", "/husk/v1/events", "");
    let mut followers: Vec<_> = (0..8).map(|_| vm.connect()).collect();
    for follower in &mut followers {
        follower.send(follow.as_bytes());
        follower.wait_for("running");
    }
    let refused = vm.connect().ask("GET", "/husk/v1/events", "");
    assert_eq!((refused.status, refused.json()["code"].as_str()), (503, Some("too_many_followers")));
    // One that has said all that it will say still listens.
    followers[0].end_sending();
    vm.patch("/vm", &json!({ "state": "Paused" })).done();
    followers[0].wait_for("paused");
    assert_eq!(vm.connect().ask("GET", "/husk/v1/events", "").status, 503);
    drop(followers.pop());
    // The place is free when the server has seen that the other hung up, with no event.
    let deadline = Instant::now() + Duration::from_secs(60);
    while vm.connect().ask("GET", "/husk/v1/events?after=1000", "").status == 503 {
        assert!(Instant::now() < deadline);
    }
    vm.stop();
}

#[test]
fn what_is_not_there_is_said_in_husks_own_form() {
    let mut vm = Vm::new();
    for (method, target, body, status, code) in [
        ("GET", "/husk/v1/nothing", "", 404, "not_found"),
        ("GET", "/husk/v1/jobs/7", "", 404, "no_such_job"),
        ("GET", "/husk/v1/jobs/x", "", 404, "no_such_job"),
        ("DELETE", "/husk/v1/jobs/7", "", 404, "no_such_job"),
        ("DELETE", "/husk/v1/health", "", 405, "method_not_allowed"),
        ("POST", "/husk/v1/pause", "{}", 400, "bad_request"),
        ("POST", "/husk/v1/pause", "", 409, "state"),
        ("POST", "/husk/v1/stop", r#"{"grace_ms": -1}"#, 400, "bad_request"),
        ("POST", "/husk/v1/stop", "\u{b}", 400, "bad_request"),
        ("PATCH", "/husk/v1/devices/x", "{}", 400, "bad_request"),
        ("PATCH", "/husk/v1/devices/x", r#"{"size_bytes": 512}"#, 409, "state"),
        ("GET", "/husk/v1/events?from=1", "", 400, "bad_request"),
    ] {
        let answer = vm.client.ask(method, target, body);
        assert_eq!(
            (answer.status, answer.json()["code"].as_str()),
            (status, Some(code)),
            "{method} {target}: {answer:?}"
        );
        assert!(answer.json()["message"].as_str().is_some_and(|message| !message.is_empty()), "{answer:?}");
    }
    vm.stop();
}

#[test]
fn a_disk_in_use_is_resized_and_the_guest_is_told() {
    let mut vm = Vm::new();
    vm.describe("check=serial end=poweroff");
    let path = vm.folder.file("disk", &[0; 1 << 20]);
    let drive = json!({ "drive_id": "data", "is_root_device": false, "is_read_only": false, "path_on_host": path });
    vm.put("/drives/data", &drive).done();
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    vm.husk.wait_for("SERIAL WAIT");
    let devices = vm.get("/husk/v1/devices");
    assert_eq!(devices[0]["id"], "data");
    assert_eq!((devices[0]["kind"].as_str(), devices[0]["size_bytes"].as_u64()), (Some("disk"), Some(1 << 20)));
    let beyond = ctl(&vm, &["disk", "resize", "data", "2M"]);
    assert_eq!(beyond.code(), Some(1), "{beyond}");
    assert!(beyond.message().contains("extend that first"), "{beyond}");
    OpenOptions::new().write(true).open(&path).unwrap().set_len(2 << 20).unwrap();
    assert_eq!(ctl(&vm, &["disk", "resize", "data", "2M"]).code(), Some(0));
    assert_eq!(vm.get("/husk/v1/devices")[0]["size_bytes"], 2 << 20);
    let limit = json!({ "drive_id": "data", "rate_limiter": { "ops": { "size": 10, "refill_time": 100 } } });
    vm.patch("/drives/data", &limit).done();
    let told = vm.get("/vm/config")["drives"][0]["rate_limiter"]["ops"].clone();
    assert_eq!(told, json!({ "size": 10, "one_time_burst": null, "refill_time": 100 }));
    let told = vm.get("/husk/v1/config")["disks"][0]["limits"]["total"].clone();
    assert_eq!(told, json!({ "bytes": null, "operations": { "size": 10, "burst": 0, "refill_ms": 100 } }));
    let other = vm.folder.file("other", &[1; 4 << 20]);
    vm.patch("/drives/data", &json!({ "drive_id": "data", "path_on_host": other })).done();
    assert_eq!(vm.get("/husk/v1/devices")[0]["size_bytes"], 4 << 20);
    assert_eq!(vm.get("/vm/config")["drives"][0]["path_on_host"], other.as_str());
    let refresh = json!({ "drive_id": "data", "path_on_host": other });
    OpenOptions::new().write(true).open(&other).unwrap().set_len(8 << 20).unwrap();
    vm.patch("/drives/data", &refresh).done();
    assert_eq!(vm.get("/husk/v1/devices")[0]["size_bytes"], 8 << 20);
    let missing = json!({ "drive_id": "data", "path_on_host": vm.folder.at("missing") });
    vm.patch("/drives/data", &missing).refused(&["missing"]);
    assert_eq!(vm.get("/vm/config")["drives"][0]["path_on_host"], other.as_str());
    vm.patch("/drives/data", &json!({ "drive_id": "data" })).refused(&["changes nothing", "path_on_host"]);
    vm.patch("/drives/none", &json!({ "drive_id": "none", "path_on_host": other })).refused(&["no disk `none`"]);
    vm.stop();
}

#[test]
fn devices_tell_what_each_of_their_queues_has_done() {
    let mut vm = Vm::new();
    vm.describe("check=blk,serial end=poweroff");
    let path = vm.folder.file("disk", &[0; 1 << 20]);
    vm.put("/drives/data", &json!({ "drive_id": "data", "path_on_host": path, "is_root_device": false })).done();
    vm.put("/entropy", &json!({})).done();
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    vm.husk.wait_for("SERIAL WAIT");
    let devices = vm.get("/husk/v1/devices");
    let [queue] = devices[0]["queues"].as_array().unwrap().as_slice() else { panic!("{devices}") };
    assert!(queue["requests"].as_u64() > Some(10) && queue["bytes"].as_u64() > Some(4096), "{queue}");
    // The check asks for what cannot be, too.
    assert!(queue["errors"].as_u64() < queue["requests"].as_u64() && queue["throttled_ms"] == 0, "{queue}");
    assert_eq!(devices[1]["queues"], json!([{ "queue": 0, "requests": 0, "bytes": 0, "errors": 0 }]));
    let page = ctl(&vm, &["metrics"]).text();
    let label = r#"husk_disk_queue_requests_total{device="data",queue="0","#;
    let told = page.lines().filter_map(|line| line.strip_prefix(label)?.rsplit_once(' ')?.1.parse::<u64>().ok());
    assert_eq!(Some(told.sum()), queue["requests"].as_u64(), "{page}");
    let table = ctl(&vm, &["devices"]).text();
    let (head, row) = (table.lines().next().unwrap(), table.lines().nth(1).unwrap());
    let column = head.split_whitespace().position(|name| name == "REQUESTS").unwrap();
    assert_eq!(row.split_whitespace().nth(column), Some(queue["requests"].to_string().as_str()), "{table}");
    assert!(!table.contains('{'), "{table}");
    vm.stop();
}

#[test]
fn ctl_drives_a_vm_and_says_what_it_does() {
    let mut vm = Vm::new();
    vm.describe("check=serial end=poweroff");
    let status = ctl(&vm, &["status"]);
    assert_eq!(status.line("state ").trim(), "not_started", "{status}");
    assert_eq!(ctl(&vm, &["pause"]).code(), Some(1));
    assert_eq!(ctl(&vm, &["start"]).code(), Some(0));
    vm.husk.wait_for("SERIAL WAIT");
    assert_eq!(ctl(&vm, &["pause"]).text(), "");
    assert_eq!(ctl_json(&vm, &["--json", "status"])["state"], "paused");
    assert_eq!(ctl_json(&vm, &["resume", "--json"])["kind"], "resume");
    let config = ctl_json(&vm, &["config", "--json"]);
    assert_eq!((config["memory_bytes"].as_u64(), config["tables"].as_str()), (Some(64 << 20), Some("acpi+mp")));
    assert_eq!(config["cmdline"], "check=serial end=poweroff");
    assert!(ctl(&vm, &["jobs"]).text().starts_with("ELAPSED_MS  ID  KIND    PROGRESS  STATE\n"));
    let refused = ctl(&vm, &["start"]);
    assert_eq!(refused.code(), Some(1));
    assert_eq!(refused.message(), "husk: cannot start a machine that is running");
    assert_eq!(ctl(&vm, &["stop", "--grace", "0"]).code(), Some(0));
    assert_eq!(vm.husk.end().code(), Some(0));
    let nobody = husk(["ctl", "--api-sock", &vm.folder.at("s"), "status"]).end();
    assert_eq!(nobody.code(), Some(1));
    assert!(nobody.message().starts_with("husk: cannot reach husk on "), "{nobody}");
}

#[test]
fn a_machine_of_husk_run_has_the_socket_too() {
    let folder = common::folder::Folder::new();
    let husk = common::guest::echoing().args(["--api-sock", &folder.at("s"), "--id", "mine"]).start();
    husk.wait_for("SERIAL WAIT");
    let mut client = Connection::open(folder.at("s"));
    assert_eq!(client.ask("GET", "/husk/v1/health", "").json()["id"], "mine");
    assert_eq!(client.ask("POST", "/husk/v1/stop", "").status, 202);
    assert_eq!(husk.end().code(), Some(0));
}

#[test]
fn a_signal_ends_a_guest_that_has_not_enabled_its_power_button_at_once() {
    let mut vm = Vm::with(&["--stop-timeout", "60"]);
    vm.describe("check=serial end=poweroff");
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    vm.husk.wait_for("SERIAL WAIT");
    let begun = Instant::now();
    vm.husk.signal(libc::SIGTERM);
    assert_eq!(vm.husk.end().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert!(!vm.folder.path().join("s").exists());
}

/// A guest with a button, started with this time to stop.
fn with_button(stop_timeout: &str, end: &str) -> Vm {
    let mut vm = Vm::with(&["--stop-timeout", stop_timeout]);
    vm.describe(&format!("check=button end={end}"));
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    vm.husk.wait_for("BUTTON WAIT");
    vm
}

#[test]
fn a_signal_presses_the_button_of_a_guest_that_has_enabled_it() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let vm = with_button("3600", "poweroff");
        vm.husk.signal(signal);
        vm.husk.end().went_well().check("button");
        assert!(!vm.folder.path().join("s").exists());
    }
}

#[test]
fn a_second_signal_ends_a_guest_that_stays() {
    let mut vm = with_button("3600", "halt");
    vm.husk.signal(libc::SIGTERM);
    vm.husk.wait_for("END halt");
    assert_eq!(vm.state(), "Running");
    vm.husk.signal(libc::SIGTERM);
    assert_eq!(vm.husk.end().code(), Some(0));
    assert!(!vm.folder.path().join("s").exists());
}

#[test]
fn a_guest_that_stays_after_a_signal_is_ended_when_the_stop_timeout_is_over() {
    let vm = with_button("0.3", "halt");
    let begun = Instant::now();
    vm.husk.signal(libc::SIGTERM);
    assert_eq!(vm.husk.end().code(), Some(0));
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[test]
fn the_log_goes_where_a_client_says_and_reads_as_it_says() {
    let mut vm = Vm::with(&["--id", "vm-7"]);
    let log = vm.folder.at("log");
    vm.put("/logger", &json!({ "log_path": log, "level": "Debug", "show_level": true })).done();
    vm.put("/logger", &json!({ "log_path": vm.folder.at("no/log") })).refused(&["log_path", "no/log"]);
    vm.put("/logger", &json!({ "level": "Loud" })).refused(&["level", "Loud", "Warning"]);
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).refused(&["no kernel"]);
    let text = vm.folder.read("log");
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains(" [vm-7:husk-api:DEBUG] api: PUT /actions"), "{text}");
    vm.put("/logger", &json!({ "module": "nothing", "level": "Debug" })).done();
    vm.get("/machine-config");
    assert_eq!(vm.folder.read("log").len(), text.len(), "no other module's lines");
    vm.put("/logger", &json!({ "module": "husk", "level": "Debug" })).done();
    vm.get("/machine-config");
    let text = vm.folder.read("log");
    assert!(String::from_utf8_lossy(&text).contains("api: GET /machine-config"));
    vm.put("/logger", &json!({})).done();
    vm.get("/machine-config");
    assert_eq!(vm.folder.read("log").len(), text.len(), "without a level it is Info");
    vm.stop();
    let json =
        husk(["--log-format", "json", "--level", "debug", "--boot-timer", "--no-api", "--config-file", "/x"]).end();
    let line: Value = serde_json::from_str(json.stderr.lines().next().unwrap_or_default()).unwrap_or_default();
    assert_eq!((line["level"].as_str(), line["thread"].as_str()), (Some("warn"), Some("main")), "{json}");
}

#[test]
fn metrics_are_told_as_prometheus_and_as_firecracker_write_them() {
    let mut vm = Vm::echoing();
    let page = ctl(&vm, &["metrics"]).text();
    let value = |name: &str| {
        let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in\n{page}"));
        line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok()).unwrap_or_else(|| panic!("{line}"))
    };
    assert!(value(r#"husk_vm_state{state="running"}"#) > 0.5);
    assert!(value(r#"husk_vcpu_exits_total{vcpu="0",reason="io-out"}"#) > 10.0, "the probe has written lines");
    assert!(value(r#"husk_vcpu_outside_guest_seconds_total{vcpu="0"}"#) > 0.0);
    assert!(value(r#"husk_thread_cpu_seconds_total{thread="husk-vcpu0"}"#) > 0.0);
    assert!(value("husk_guest_memory_bytes") > 6e7);
    let count = r#"husk_api_request_duration_seconds_count{method="PUT",route="/boot-source"}"#;
    assert!((value(count) - 1.0).abs() < 0.1, "one request of this route");
    assert!(!page.contains("/snapshot/create"), "a route that nobody used is left out");
    let file = vm.folder.at("metrics");
    vm.put("/metrics", &json!({ "metrics_path": vm.folder.at("no/m") })).refused(&["metrics_path", "no/m"]);
    let body = json!({ "metrics_path": file, "emit_id": true, "properties": { "rack": "7" } });
    vm.put("/metrics", &body).done();
    vm.put("/metrics", &body).refused(&["metrics_path", "already"]);
    vm.put("/actions", &json!({ "action_type": "FlushMetrics" })).done();
    let folder = vm.folder.at("");
    let ended = vm.husk;
    ended.signal(libc::SIGTERM);
    assert_eq!(ended.end().code(), Some(0));
    let text = std::fs::read_to_string(format!("{folder}/metrics")).unwrap_or_default();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap_or_default()).collect();
    assert_eq!(lines.len(), 2, "one that was asked for and one at the end: {text}");
    assert!(lines[0]["vcpu"]["exit_io_out"].as_u64() > Some(10), "{text}");
    assert_eq!(
        (lines[0]["id"].as_str(), lines[0]["properties"]["rack"].as_str()),
        (Some("anonymous-instance"), Some("7"))
    );
    assert!(lines[1]["utc_timestamp_ms"].as_u64() >= lines[0]["utc_timestamp_ms"].as_u64(), "{text}");
}

#[test]
fn completion_names_the_subcommands() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = husk(["completion", shell]).end();
        assert_eq!(ended.code(), Some(0));
        assert!(ended.text().contains("power-button"), "{shell}");
    }
}

#[test]
fn what_is_printed_may_be_read_in_part_and_a_device_that_is_full_is_an_error() {
    let vm = Vm::new();
    let socket = vm.folder.at("s");
    for words in [
        &["completion", "bash"][..],
        &["man", "run"],
        &["--snapshot-version"],
        &["ctl", "--api-sock", &socket, "metrics"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let launch = || husk(words.iter().copied());
        launch().stdout(writer).end().went_well();
        let full = launch().stdout(OpenOptions::new().write(true).open("/dev/full").unwrap()).end();
        assert_eq!(full.code(), Some(1), "{words:?}: {full}");
        assert!(full.message().contains("No space left on device"), "{words:?}: {full}");
    }
}

#[test]
fn every_manual_page_that_another_names_is_there() {
    let mut commands = vec![Vec::<String>::new()];
    let mut pages = 0;
    while let Some(words) = commands.pop() {
        let name = ["husk".to_owned()].iter().chain(&words).cloned().collect::<Vec<_>>().join("-");
        let page = husk(["man"]).args(&words).end().went_well().text().replace('\\', "");
        assert!(page.contains(&format!(".TH {name} 1  \"husk ")), "{words:?}: {page}");
        pages += 1;
        let named = page.lines().filter_map(|line| line.strip_suffix("(1)")?.strip_prefix(&name)?.strip_prefix('-'));
        // clap's own, which has no page.
        let own = named.filter(|word| !word.split('-').any(|part| part == "help"));
        commands.extend(own.map(|word| [&words[..], &[word.to_owned()]].concat()));
    }
    assert!(pages > 25, "{pages}");
    let ended = husk(["man", "ctl", "frobnicate"]).end();
    assert_eq!((ended.code(), ended.text().as_str()), (Some(2), ""), "{ended}");
    assert!(ended.stderr.contains("no command `frobnicate`"), "{ended}");
}

#[test]
fn every_verb_of_ctl_does_what_it_says_and_speaks_json_when_asked() {
    let mut vm = Vm::new();
    vm.describe("check=serial end=poweroff");
    let disk = vm.folder.file("disk", &[0; 1 << 20]);
    vm.put("/drives/data", &json!({ "drive_id": "data", "path_on_host": disk, "is_root_device": false })).done();
    assert_eq!(ctl_json(&vm, &["start", "--json"]), json!({}));
    vm.husk.wait_for("SERIAL WAIT");
    assert!(ctl(&vm, &["devices"]).text().contains("data"));
    assert!(ctl(&vm, &["placement"]).text().contains("memory."));
    assert!(ctl(&vm, &["metrics"]).text().contains("husk_vm_state"));
    let state = json!({ "name": "husk_vm_state", "labels": { "state": "running" }, "value": 1 });
    assert!(ctl_json(&vm, &["metrics", "--json"]).as_array().unwrap().contains(&state));
    let followers = [&["events"][..], &["events", "--json"]]
        .map(|words| husk(["ctl", "--api-sock", &vm.folder.at("s")]).args(words).start());
    followers[0].wait_for("  state  state=running\n");
    followers[1].wait_for(r#""event":"state","state":"running""#);
    let other = vm.folder.file("other", &[0; 2 << 20]);
    assert_eq!(ctl_json(&vm, &["disk", "replace", "data", &other, "--json"]), json!({}));
    assert_eq!(ctl_json(&vm, &["devices", "--json"])[0]["size_bytes"], 2 << 20);
    assert_eq!(ctl_json(&vm, &["limit", "data", "iops=1000", "--json"]), json!({}));
    assert_eq!(ctl_json(&vm, &["power-button", "--json"])["kind"], "power-button");
    assert_eq!(ctl_json(&vm, &["ctrl-alt-del", "--json"])["kind"], "ctrl-alt-del");
    assert_eq!(ctl(&vm, &["cancel", "77"]).message(), "husk: there is no job 77");
    let point = vm.folder.at("point");
    assert_eq!(ctl_json(&vm, &["snapshot", &point, "--json"])["state"], "done");
    let clone = Vm::new();
    // The disk is the first machine's for as long as that lives.
    let refused = ctl(&clone, &["restore", &point, "--json"]);
    assert_eq!(refused.code(), Some(1), "{refused}");
    assert!(refused.message().contains("is locked by another process"), "{refused}");
    assert_eq!(ctl_json(&vm, &["stop", "--grace", "0", "--json"])["kind"], "stop");
    assert_eq!(vm.husk.end().code(), Some(0));
    for follower in followers {
        let ended = follower.end().went_well();
        assert!(ended.text().lines().last().is_some_and(|line| line.contains("stopped")), "{ended}");
    }
    assert_eq!(ctl_json(&clone, &["restore", &point, "--json"])["kind"], "restore");
    assert_eq!(ctl_json(&clone, &["nmi", "--json"])["kind"], "nmi");
    // The probe takes none.
    assert_eq!(clone.husk.end().code(), Some(3));
}
