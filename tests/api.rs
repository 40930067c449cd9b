//! The control socket in Firecracker's dialect, as its clients meet it, and the limits at its edge.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use common::folder::Folder;
use common::guest::PROBE;
use common::http::{Connection, request};
use common::vm::Vm;
use common::{Launch, husk, through_shell};
use serde_json::{Value, json};

#[test]
fn a_vm_is_described_started_paused_resumed_and_stopped() {
    let mut vm = Vm::with(&["--id", "vm-1"]);
    let info = vm.get("/");
    let expected = json!({ "app_name": "Firecracker", "id": "vm-1", "state": "Not started", "vmm_version": "1.17.0" });
    assert_eq!(info, expected);
    assert_eq!(vm.get("/version"), json!({ "firecracker_version": "1.17.0" }));
    assert_eq!(vm.get("/machine-config")["mem_size_mib"], 128);
    let none = json!({ "kernel_image_path": "", "initrd_path": null, "boot_args": null });
    assert_eq!(vm.get("/vm/config")["boot-source"], none);
    vm.patch("/vm", &json!({ "state": "Paused" })).refused(&["pause", "not been started"]);
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).refused(&["no kernel", "PUT /boot-source"]);
    vm.describe("check=serial end=poweroff");
    let disk = vm.folder.file("disk", &[7; 1 << 20]);
    let drive = json!({ "drive_id": "data", "is_root_device": false, "is_read_only": true, "path_on_host": disk });
    vm.put("/drives/data", &drive).done();
    vm.put("/entropy", &json!({})).done();
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    assert_eq!(vm.state(), "Running");
    vm.husk.wait_for("SERIAL WAIT");
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).refused(&["start", "is running"]);
    vm.put("/machine-config", &json!({ "vcpu_count": 1, "mem_size_mib": 64 })).refused(&["configure", "is running"]);
    for _ in 0..2 {
        vm.patch("/vm", &json!({ "state": "Paused" })).done();
        assert_eq!(vm.state(), "Paused");
    }
    for _ in 0..2 {
        vm.patch("/vm", &json!({ "state": "Resumed" })).done();
        assert_eq!(vm.state(), "Running");
    }
    let config = vm.get("/vm/config");
    assert_eq!(config["machine-config"]["mem_size_mib"], 64);
    assert_eq!(config["drives"][0]["path_on_host"], disk.as_str());
    assert_eq!(config["drives"][0]["cache_type"], "Unsafe");
    assert_eq!(config["boot-source"]["boot_args"], "check=serial end=poweroff");
    vm.stop();
}

#[test]
fn ctrl_alt_del_reaches_a_guest_that_has_enabled_its_keyboard() {
    let mut vm = Vm::running("check=keyboard end=poweroff");
    vm.husk.wait_for("KEYBOARD WAIT");
    vm.put("/actions", &json!({ "action_type": "SendCtrlAltDel" })).done();
    let ended = vm.husk.end().went_well();
    assert!(ended.text().contains("KEYBOARD 1d 38 e0 53 e0 d3 b8 9d\n"), "{ended}");
    ended.check("keyboard");
}

#[test]
fn ctrl_alt_del_is_lost_and_said_to_be_where_no_guest_uses_a_keyboard() {
    let mut vm = Vm::echoing();
    vm.put("/actions", &json!({ "action_type": "SendCtrlAltDel" })).done();
    vm.husk.wait_for_error("Ctrl-Alt-Del is lost");
    vm.stop();
}

#[test]
fn a_start_that_fails_can_be_mended_and_tried_again() {
    let mut vm = Vm::new();
    vm.describe("end=poweroff");
    let disk = vm.folder.file("disk", &[0; 100]);
    let drive =
        |path: &str| json!({ "drive_id": "d", "is_root_device": false, "is_read_only": true, "path_on_host": path });
    vm.put("/drives/d", &drive(&disk)).done();
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).refused(&["disk `d`", "512"]);
    assert_eq!(vm.state(), "Not started");
    let disk = vm.folder.file("disk", &[0; 4096]);
    vm.put("/drives/d", &drive(&disk)).done();
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    let ended = vm.husk.end();
    assert_eq!(ended.code(), Some(0), "{ended}");
}

#[test]
fn a_wrong_body_is_refused_by_its_field_and_changes_nothing() {
    let mut vm = Vm::new();
    vm.describe("end=poweroff");
    let before = vm.get("/vm/config");
    let long = format!("/drives/{}", "x".repeat(300));
    for (method, target, body, parts) in [
        ("PUT", "/machine-config", r#"{"vcpu_count": 0, "mem_size_mib": 64}"#, &["vcpu_count", "0"][..]),
        ("PUT", "/machine-config", r#"{"vcpu_count": 1}"#, &["mem_size_mib"]),
        ("PUT", "/machine-config", r#"{"vcpu_count": "1", "mem_size_mib": 64}"#, &["vcpu_count", "string"]),
        ("PUT", "/machine-config", r#"{"vcpu_count": 1, "vcpu_count": 1, "mem_size_mib": 64}"#, &["duplicate"]),
        ("PUT", "/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 64, "x": 1}"#, &["unknown field `x`"]),
        ("PATCH", "/machine-config", r#"{"mem_size_mib": 0}"#, &["mem_size_mib", "0 bytes"]),
        ("PUT", "/boot-source", "{}", &["kernel_image_path"]),
        ("PUT", "/boot-source", "", &["the body is empty"]),
        (
            "PUT",
            "/boot-source",
            r#"{"kernel_image_path": "/nowhere/k"}"#,
            &["kernel_image_path", "/nowhere/k", "No such file"],
        ),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id": "a", "is_root_device": false, "path_on_host": "/nowhere/d"}"#,
            &["path_on_host", "/nowhere/d"],
        ),
        ("PUT", "/boot-source", "nonsense", &["line 1"]),
        ("PUT", "/boot-source", r#"{"kernel_image_path": "k"} {}"#, &["trailing"]),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id": "b", "is_root_device": false, "path_on_host": "p"}"#,
            &["drive_id", "`b`", "`a`"],
        ),
        ("PUT", &long, r#"{"drive_id": "b", "is_root_device": false, "path_on_host": "p"}"#, &["drive_id"]),
        (
            "PUT",
            "/network-interfaces/e",
            r#"{"iface_id": "e", "host_dev_name": "t", "guest_mac": "x"}"#,
            &["guest_mac", "`x`"],
        ),
        ("PUT", "/actions", r#"{"action_type": "Dance"}"#, &["action_type", "Dance", "InstanceStart"]),
        ("PATCH", "/vm", r#"{"state": "Gone"}"#, &["state", "Gone", "Paused"]),
        ("GET", "/machine-config", "{}", &["no body"]),
        ("GET", "/nowhere", "", &["GET", "/nowhere"]),
        ("DELETE", "/machine-config", "", &["DELETE", "/machine-config"]),
        ("PUT", "/balloon", r#"{"amount_mib": 900, "deflate_on_oom": false}"#, &["balloon", "900 MiB", "at most"]),
        ("GET", "/balloon", "", &["the machine has none"]),
        ("PUT", "/vsock", "{}", &["vsock", "not supported yet"]),
        ("GET", "/mmds", "", &["metadata", "not supported yet"]),
        ("DELETE", "/network-interfaces/eth0", "", &["unplugging a network", "not supported yet"]),
        ("DELETE", "/pmem/p", "", &["pmem", "not supported yet"]),
        ("PATCH", "/machine-config", "{}", &["Empty PATCH request."]),
        ("PATCH", "/machine-config", r#"{"smt": null, "vcpu_count": null}"#, &["Empty PATCH request."]),
        ("PUT", "/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "T3"}"#, &["T3", "T2CL"]),
        ("PUT", "/snapshot/create", "{}", &["mem_file_path"]),
        (
            "PUT",
            "/snapshot/create",
            r#"{"mem_file_path": "m", "snapshot_path": "s"}"#,
            &["make a snapshot of a machine that has not been started"],
        ),
    ] {
        vm.client.ask(method, target, body).refused(parts);
    }
    let deep = format!(r#"{{"kernel_image_path": {}{}}}"#, "[".repeat(40), "]".repeat(40));
    vm.client.ask("PUT", "/boot-source", &deep).refused(&["32 levels"]);
    vm.client.send(b"PUT /boot-source HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n{\"\xff\"");
    vm.client.answer().refused(&["UTF-8"]);
    assert_eq!(vm.get("/vm/config"), before);
    vm.stop();
}

#[test]
fn a_file_that_the_guest_shall_write_can_be_written() {
    let mut vm = Vm::new();
    // Not even root writes to a program that runs.
    let mut drive = json!({ "drive_id": "d", "is_root_device": false, "path_on_host": common::HUSK });
    vm.put("/drives/d", &drive).refused(&["path_on_host", common::HUSK, "Text file busy"]);
    drive["is_read_only"] = true.into();
    vm.put("/drives/d", &drive).done();
    vm.stop();
}

#[test]
fn requests_come_in_pieces_in_chunks_and_one_after_the_other() {
    let mut vm = Vm::new();
    for byte in request("GET", "/version", "").into_bytes() {
        vm.client.send(&[byte]);
    }
    assert_eq!(vm.client.answer().status, 200);
    vm.client.send(b"PUT /machine-config HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    vm.client.send(b"10\r\n{\"vcpu_count\": 3\r\n17\r\n, \"mem_size_mib\": 256 }\r\n0\r\n\r\n");
    vm.client.answer().done();
    assert_eq!(vm.get("/machine-config")["vcpu_count"], 3);
    let pipelined: String = (0..50).map(|_| request("GET", "/", "")).collect();
    vm.client.send(pipelined.as_bytes());
    for _ in 0..50 {
        assert_eq!(vm.client.answer().status, 200);
    }
    vm.stop();
}

#[test]
fn a_request_beyond_the_limit_is_refused_and_the_socket_goes_on() {
    let mut vm = Vm::new();
    let large = format!(r#"{{"kernel_image_path": "{}"}}"#, "k".repeat(70 << 10));
    let mut other = vm.connect();
    other.send(request("PUT", "/boot-source", &large).as_bytes());
    other.answer().refused(&["65536"]);
    let mut endless = vm.connect();
    endless.send(b"PUT /boot-source HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..70 {
        endless.send(b"400\r\n");
        endless.send(&[b' '; 1024]);
        endless.send(b"\r\n");
    }
    endless.answer().refused(&["65536"]);
    let mut head = vm.connect();
    head.send(format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(70 << 10)).as_bytes());
    // Where the server has to parse it to know that, it says so itself; beyond, HTTP does (RFC 6585 §5).
    assert!(matches!(head.answer().status, 400 | 431));
    assert_eq!(vm.state(), "Not started");
    vm.stop();
}

#[test]
fn at_sixteen_connections_the_one_that_has_waited_longest_makes_place() {
    let mut vm = Vm::running("check=serial end=poweroff");
    let mut followers = vm.connect();
    followers.send(request("GET", "/husk/v1/events", "").as_bytes());
    followers.wait_for("running");
    // With the one of `vm` and the follower there are 16.
    let mut idle: Vec<Connection> = (0..14).map(|_| vm.connect()).collect();
    // The first has asked last.
    for connection in idle.iter_mut().rev() {
        assert_eq!(connection.ask("GET", "/", "").status, 200);
    }
    assert_eq!(vm.state(), "Running");
    let mut new = vm.connect();
    assert_eq!(new.ask("GET", "/", "").status, 200);
    assert!(idle[13].is_closed_within(Duration::from_secs(5)), "it had waited longest");
    assert_eq!(idle[0].ask("GET", "/", "").status, 200);
    vm.patch("/vm", &json!({ "state": "Paused" })).done();
    followers.wait_for("paused");
    vm.stop();
}

#[test]
fn a_client_that_never_finishes_its_request_delays_nobody_and_is_closed() {
    let mut vm = Vm::running("check=serial end=poweroff");
    let begun = Instant::now();
    let mut slow = vm.connect();
    slow.send(b"PUT /actions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
    let mut idle = vm.connect();
    assert_eq!(idle.ask("GET", "/", "").status, 200);
    for _ in 0..100 {
        assert_eq!(vm.state(), "Running");
    }
    assert!(!slow.is_closed_within(Duration::from_secs(5)));
    assert!(slow.is_closed_within(Duration::from_secs(10)), "it has 10 seconds");
    assert!(begun.elapsed() >= Duration::from_secs(9));
    assert_eq!(idle.ask("GET", "/", "").status, 200, "one that has sent nothing is kept");
    vm.stop();
}

#[test]
fn the_socket_is_private_and_a_second_husk_leaves_it_alone() {
    let mut vm = Vm::new();
    let path = vm.folder.at("s");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let second = husk(["--api-sock", &path]).end();
    assert_eq!(second.code(), Some(1), "{second}");
    assert!(second.message().contains("another process listens on it"), "{second}");
    assert_eq!(vm.state(), "Not started");
    let folder = vm.folder.at("s");
    vm.husk.signal(libc::SIGKILL);
    vm.husk.end();
    let third = husk(["--api-sock", &folder]).start();
    assert_eq!(Connection::open(&folder).ask("GET", "/", "").status, 200, "a dead husk's socket is replaced");
    third.signal(libc::SIGTERM);
    assert_eq!(third.end().code(), Some(0));
}

#[test]
fn the_socket_has_the_mode_that_is_asked_for_whatever_the_umask_is() {
    let folder = Folder::new();
    let path = folder.at("s");
    let waiting = husk(["--api-sock", &path]);
    let running = common::guest::echoing().args(["--api-sock", &path]);
    for (launch, mode, permissions) in [(waiting, "0666", 0o666), (running, "620", 0o620)] {
        let husk = through_shell(r#"umask 077; exec "$@""#, &launch.args(["--api-sock-mode", mode])).start();
        assert_eq!(Connection::open(&path).ask("GET", "/", "").status, 200);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, permissions);
        husk.signal(libc::SIGTERM);
        assert_eq!(husk.end().code(), Some(0));
    }
    for words in [
        &["--api-sock", &path, "--api-sock-mode", "1777"][..],
        &["--api-sock", &path, "--api-sock-mode", "u=rw"],
        &["run", "--kernel", PROBE, "--api-sock-mode", "0660"],
    ] {
        let ended = husk(words.iter().copied()).end();
        assert_eq!(ended.code(), Some(2), "{words:?}: {ended}");
        assert!(ended.stderr.contains("--api-sock"), "{ended}");
        assert!(!folder.path().join("s").exists());
    }
}

#[test]
fn a_configuration_file_boots_at_once_and_the_socket_answers() {
    let folder = Folder::new();
    let text = json!({
        "boot-source": { "kernel_image_path": PROBE, "boot_args": "check=serial end=poweroff" },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 64 },
    });
    let file = folder.file("vm.json", text.to_string().as_bytes());
    let husk = husk(["--api-sock", &folder.at("s"), "--config-file", &file]).start();
    husk.wait_for("SERIAL WAIT");
    let mut client = Connection::open(folder.at("s"));
    assert_eq!(client.ask("GET", "/", "").json()["state"], "Running");
    assert_eq!(client.ask("POST", "/husk/v1/stop", "").status, 202);
    assert_eq!(husk.end().code(), Some(0));
}

#[test]
fn a_configuration_file_says_where_the_log_and_the_figures_go() {
    let folder = Folder::new();
    let text = json!({
        "boot-source": { "kernel_image_path": PROBE, "boot_args": "end=poweroff" },
        "logger": { "log_path": folder.at("log"), "level": "Debug", "show_level": true },
        "metrics": { "metrics_path": folder.at("metrics"), "emit_id": true },
    });
    let file = folder.file("vm.json", text.to_string().as_bytes());
    for words in
        [&["--no-api", "--id", "seven", "--config-file", &file][..], &["run", "--id", "seven", "--config-file", &file]]
    {
        let ended = husk(words.iter().copied()).end();
        assert_eq!(ended.code(), Some(0), "{ended}");
        assert!(std::path::Path::new(&folder.at("log")).exists());
        let metrics: Value = serde_json::from_slice(&folder.read("metrics")).unwrap_or_default();
        assert_eq!(metrics["id"], "seven");
        for name in ["log", "metrics"] {
            let _ = std::fs::remove_file(folder.at(name));
        }
    }
    let twice = husk(["--no-api", "--metrics-path", &folder.at("m"), "--config-file", &file]).end();
    assert_eq!(twice.code(), Some(1), "{twice}");
    assert!(twice.message().contains("metrics: --metrics-path is given as well"), "{twice}");
    let unknown = json!({ "boot-source": { "kernel_image_path": PROBE }, "logger": { "lvl": 1 } });
    let unknown = husk(["--no-api", "--config-file", &folder.file("x", unknown.to_string().as_bytes())]).end();
    assert!(unknown.message().contains("logger.lvl: unknown field"), "{unknown}");
}

#[test]
fn a_link_called_firecracker_says_firecrackers_version() {
    let folder = Folder::new();
    std::os::unix::fs::symlink(common::HUSK, folder.at("firecracker")).unwrap();
    let said = Launch::new(folder.at("firecracker"), ["--version"]).end();
    assert_eq!(said.text().trim(), "Firecracker v1.17.0");
    assert!(husk(["--version"]).end().text().starts_with("husk "));
}

#[test]
fn serial_output_beyond_its_limit_is_dropped() {
    let mut vm = Vm::new();
    vm.describe("check=flood flood_kib=8 end=poweroff");
    let (path, day_ms) = (vm.folder.at("serial"), 24 * 3_600_000);
    let serial = json!({ "serial_out_path": path, "rate_limiter": { "size": 100, "one_time_burst": 28, "refill_time": day_ms } });
    vm.put("/serial", &serial).done();
    vm.put("/metrics", &json!({ "metrics_path": vm.folder.at("metrics") })).done();
    assert_eq!(vm.get("/vm/config")["serial"], serial);
    assert_eq!(vm.get("/husk/v1/config")["serial_limit"]["burst"], 28);
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    let (husk, folder) = (vm.husk, vm.folder);
    assert_eq!(husk.end().code(), Some(0));
    let metrics: Value = serde_json::from_slice(&folder.read("metrics")).unwrap_or_default();
    let uart = &metrics["uart"];
    assert!(uart["rate_limiter_dropped_bytes"].as_u64() >= Some(8 << 10), "{metrics}");
    assert_eq!(uart["missed_write_count"], 0);
    let text = folder.read("serial");
    assert!(text.len() == 128 && text.starts_with(b"PROBE READY"), "{}", String::from_utf8_lossy(&text));
}

#[test]
fn vcpus_that_are_threads_make_whole_cores() {
    let mut vm = Vm::new();
    vm.describe("check=cpus end=poweroff");
    let machine = |vcpus: u32| json!({ "vcpu_count": vcpus, "mem_size_mib": 64, "smt": true });
    vm.put("/machine-config", &machine(3)).refused(&["vcpu_count", "3 vCPUs", "even"]);
    assert_eq!(vm.get("/machine-config")["smt"], false);
    vm.put("/machine-config", &machine(2)).done();
    assert_eq!(vm.get("/machine-config")["smt"], true);
    assert_eq!(vm.get("/husk/v1/config")["threads_per_core"], 2);
    vm.patch("/machine-config", &json!({ "vcpu_count": 1 })).done();
    vm.patch("/machine-config", &json!({ "vcpu_count": 4 })).done();
    vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
    assert_eq!(vm.husk.end().went_well().check("cpus").number("running"), 4);
}
