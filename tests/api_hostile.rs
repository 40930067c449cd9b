//! The control socket under clients that are broken or mean harm: what they send is refused and changes nothing, and what
//! they do not read or finish keeps nobody else from an answer.

mod common;

use std::time::{Duration, Instant};

use common::http::{Connection, request};
use common::sys::Held;
use common::vm::Vm;
use serde_json::{Value, json};

/// How long husk may take for what it does at once, on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a failed request must not change.
fn description(vm: &mut Vm) -> [Value; 2] {
    [vm.get("/vm/config"), vm.get("/husk/v1/config")]
}

#[test]
fn a_head_that_is_no_http_or_no_one_thing_is_refused_and_the_connection_ends() {
    let mut vm = Vm::new();
    let before = description(&mut vm);
    let put = "PUT /machine-config HTTP/1.1\r\nHost: x\r\n";
    let body = r#"{"vcpu_count": 2, "mem_size_mib": 64}"#;
    let many: String = (0..200).map(|number| format!("X-{number}: x\r\n")).collect();
    for (head, statuses) in [
        ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned(), &[400][..]),
        ("GET\r\n\r\n".to_owned(), &[400]),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), &[400]),
        // Its client would not understand an answer.
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), &[]),
        ("GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), &[400]),
        ("GET / HTTP/1.1\r\nHost : x\r\n\r\n".to_owned(), &[400]),
        ("GET / HTTP/1.1\r\nX: \0\r\n\r\n".to_owned(), &[400]),
        (format!("{put}Content-Length: 36\r\nContent-Length: 37\r\n\r\n{body}"), &[400]),
        (format!("{put}Content-Length: -1\r\n\r\n{body}"), &[400]),
        (format!("{put}Content-Length: 99999999999999999999\r\n\r\n{body}"), &[400]),
        (format!("{put}Transfer-Encoding: gzip\r\n\r\n{body}"), &[400]),
        (
            format!("PUT /machine-config HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n25\r\n{body}\r\n0\r\n\r\n"),
            &[400],
        ),
        (format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n"), &[431]),
        (format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(80_000)), &[414, 431]),
    ] {
        let mut client = vm.connect();
        client.send(head.as_bytes());
        if !statuses.is_empty() {
            let answer = client.answer();
            assert!(statuses.contains(&answer.status), "{head:?}: {answer:?}");
        }
        assert!(client.is_closed_within(DEADLINE), "{head:?}");
    }
    assert_eq!(description(&mut vm), before);
    vm.stop();
}

#[test]
fn a_body_in_broken_chunks_or_cut_short_changes_nothing() {
    let mut vm = Vm::new();
    let before = description(&mut vm);
    let put = "PUT /machine-config HTTP/1.1\r\nHost: x\r\n";
    for rest in ["zz\r\n", "ffffffffffffffffff\r\n", "25\r\n{\"vcpu_count\": 2, \"mem_size_mib\": 64}xx"] {
        let mut client = vm.connect();
        client.send(format!("{put}Transfer-Encoding: chunked\r\n\r\n{rest}").as_bytes());
        client.answer().refused(&["the body did not arrive whole"]);
        assert!(client.is_closed_within(DEADLINE), "{rest:?}");
    }
    let mut client = vm.connect();
    client.send(format!("{put}Content-Length: 1000000\r\n\r\n").as_bytes());
    client.answer().refused(&["the request is larger than", "bytes"]);
    for sent in ["", "{", r#"{"vcpu_count": 2, "mem_size_mib": 64}"#] {
        let mut client = vm.connect();
        client.send(format!("{put}Content-Length: 100\r\n\r\n{sent}").as_bytes());
        drop(client);
    }
    assert_eq!(description(&mut vm), before);
    vm.stop();
}

#[test]
fn old_and_rare_forms_of_http_are_understood() {
    let mut vm = Vm::new();
    let body = r#"{"vcpu_count": 2, "mem_size_mib": 64}"#;
    let length = format!("Content-Length: {}\r\n", body.len());
    let put = "PUT /machine-config HTTP/1.1\r\nHost: x\r\n";
    vm.client.send(format!("{put}{length}{length}\r\n{body}").as_bytes());
    vm.client.answer().done();
    vm.client.send(b"GET http://localhost/version?x=%20#y HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(vm.client.answer().status, 200);
    vm.client.send(format!("{put}{length}Expect: 100-continue\r\n\r\n").as_bytes());
    assert_eq!(vm.client.answer().status, 100);
    vm.client.send(body.as_bytes());
    vm.client.answer().done();
    let mut old = vm.connect();
    old.send(b"GET /version HTTP/1.0\r\n\r\n");
    assert_eq!(old.answer().status, 200);
    assert!(old.is_closed_within(DEADLINE), "HTTP/1.0 has one request a connection");
    // Who reads one length and who reads the other would not agree on where the next request begins (RFC 9112 §6.1).
    let mut smuggler = vm.connect();
    let chunked = format!("{put}{length}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    smuggler.send(format!("{chunked}{}", request("GET", "/", "")).as_bytes());
    smuggler.answer().done();
    assert!(smuggler.is_closed_within(DEADLINE));
    vm.stop();
}

#[test]
fn a_path_is_taken_as_it_stands() {
    let mut vm = Vm::new();
    for (method, target) in [
        ("GET", "/../version"),
        ("GET", "/vm/../version"),
        ("GET", "/%76ersion"),
        ("GET", "/version%00"),
        ("GET", "//version"),
        ("GET", "/version/x"),
        ("OPTIONS", "*"),
    ] {
        let answer = vm.connect().ask(method, target, "");
        assert_eq!(answer.status, 400, "{method} {target}: {answer:?}");
    }
    for target in ["/husk/v1/../health", "/husk/v1/%68ealth", "/husk", "/husk/v2/health"] {
        assert_eq!(vm.client.ask("GET", target, "").status, 404, "{target}");
    }
    let refused = vm.client.ask("PUT", "/husk/v1/stop", "");
    assert_eq!((refused.status, refused.header("allow")), (405, Some("POST")), "{refused:?}");
    let refused = vm.client.ask("POST", "/husk/v1/jobs/1", "");
    assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, DELETE")), "{refused:?}");
    vm.stop();
}

#[test]
fn a_value_of_the_wrong_kind_or_size_is_refused_by_its_field_and_changes_nothing() {
    let mut vm = Vm::new();
    vm.describe("end=poweroff");
    let disk = vm.folder.file("disk", &[0; 4096]);
    let before = description(&mut vm);
    for (value, part) in [
        ("-1", "-1"),
        ("-0", "-0"),
        ("1.0", "1.0"),
        ("1e0", "1.0"),
        ("1e400", "out of range"),
        ("18446744073709551616", "expected u64"),
        ("4294967297", "1 to 64"),
        ("65", "1 to 64"),
        ("01", "invalid number"),
        ("0x1", "expected"),
        ("NaN", "expected"),
        ("null", "null"),
        ("true", "true"),
        ("\"1\"", "\"1\""),
        ("[1]", "array"),
        ("{}", "object"),
    ] {
        let body = format!(r#"{{"mem_size_mib": 64, "vcpu_count": {value}}}"#);
        vm.client.ask("PUT", "/machine-config", &body).refused(&[part]);
    }
    let bucket =
        |field: &str| format!(r#"{{"drive_id": "d", "is_root_device": false, "path_on_host": "{disk}", {field}}}"#);
    for (target, body, parts) in [
        (
            "/drives/d",
            bucket(r#""rate_limiter": {"ops": {"size": -1, "refill_time": 1}}"#),
            ["rate_limiter.ops.size", "-1"],
        ),
        ("/drives/d", bucket(r#""rate_limiter": {"ops": [1, 2, 3]}"#), ["rate_limiter.ops", "use object"]),
        ("/drives/d", bucket(r#""io_engine": {"Sync": null}"#), ["io_engine", "use string"]),
        ("/drives/d", bucket(r#""is_read_only": 1"#), ["is_read_only", "1"]),
        ("/boot-source", r#"{"kernel_image_path": "a\u0000b"}"#.to_owned(), ["kernel_image_path", "cannot open"]),
        ("/boot-source", r#"["/vmlinux"]"#.to_owned(), ["the body is of type array", "use object"]),
        ("/boot-source", r#"{"kernel_image_path": "\ud800"}"#.to_owned(), ["kernel_image_path", "hex escape"]),
        (
            "/machine-config",
            r#"{"vcpu_count": 2, "mem_size_mib": 64, "huge_pages": "3M"}"#.to_owned(),
            ["huge_pages", "3M"],
        ),
    ] {
        vm.client.ask("PUT", target, &body).refused(&parts);
    }
    let wrong = vm.client.ask("POST", "/husk/v1/stop", r#"{"grace_ms": 1.5}"#);
    assert_eq!((wrong.status, wrong.json()["field"].as_str()), (400, Some("grace_ms")), "{wrong:?}");
    assert_eq!(description(&mut vm), before);
    vm.stop();
}

/// Sockets that husk has open.
fn sockets(vm: &Vm) -> usize {
    let files = std::fs::read_dir(format!("/proc/{}/fd", vm.husk.pid()));
    let links = files.into_iter().flatten().flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

#[test]
fn a_hundred_clients_that_finish_nothing_leave_room_for_one_that_does() {
    let mut vm = Vm::echoing();
    // One of them is that of `vm`.
    let at_first = sockets(&vm);
    let mut crowd: Vec<Connection> = (0..100).map(|_| vm.connect()).collect();
    for client in &mut crowd {
        // Those that have been closed already do not take it.
        let _ = client.try_send(b"PUT /vm HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{");
    }
    let mut client = vm.connect();
    assert_eq!(client.ask("GET", "/", "").status, 200);
    let begun = Instant::now();
    while sockets(&vm) > at_first + 15 {
        assert!(begun.elapsed() < DEADLINE, "{} sockets", sockets(&vm));
    }
    assert_eq!(client.ask("GET", "/version", "").status, 200);
    drop((crowd, client));
    vm.client = vm.connect();
    vm.stop();
}

#[test]
fn of_forty_requests_that_the_control_loop_is_too_busy_for_sixteen_are_held_and_all_are_answered() {
    let mut vm = Vm::echoing();
    let at_first = sockets(&vm);
    let held = Held::hold(vm.husk.pid());
    let ask = |mut client: Connection| {
        client.send(request("GET", "/vm/config", "").as_bytes());
        client
    };
    let mut crowd: Vec<Connection> = (0..40).map(|_| ask(vm.connect())).collect();
    // The place of `vm` is taken as well, and the next has been accepted and waits for one. Between the two there is one less.
    let begun = Instant::now();
    while sockets(&vm) < at_first + 16 {
        assert!(begun.elapsed() < DEADLINE, "{} sockets", sockets(&vm));
    }
    for _ in 0..200 {
        let count = sockets(&vm);
        assert!(count <= at_first + 16, "{count} sockets");
        std::thread::yield_now();
    }
    held.release();
    for client in &mut crowd {
        assert_eq!(client.answer().status, 200);
    }
    drop(crowd);
    vm.client = vm.connect();
    vm.stop();
}

#[test]
fn a_client_that_still_takes_its_answer_keeps_its_place() {
    let mut vm = Vm::echoing();
    let mut slow = vm.connect();
    // Far more than the socket's buffers hold.
    slow.send(request("GET", "/husk/v1/openapi.json", "").repeat(50).as_bytes());
    slow.wait_for("HTTP/1.1 200");
    let crowd: Vec<Connection> = (0..40).map(|_| vm.connect()).collect();
    assert_eq!(vm.connect().ask("GET", "/", "").status, 200);
    for _ in 0..50 {
        assert_eq!(slow.answer().status, 200);
    }
    drop(crowd);
    vm.client = vm.connect();
    vm.stop();
}

#[test]
fn what_comes_with_a_complete_request_has_to_be_completed_in_time_as_well() {
    let vm = Vm::new();
    let body = r#"{"vcpu_count": 1, "mem_size_mib": 64}"#;
    let put = "PUT /machine-config HTTP/1.1\r\nHost: x\r\n";
    let chunked = format!("{put}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let whole = [request("GET", "/", ""), request("PUT", "/machine-config", body), chunked];
    let mut patient: Vec<Connection> = whole.iter().map(|_| vm.connect()).collect();
    for (client, request) in patient.iter_mut().zip(&whole) {
        client.send(request.as_bytes());
        assert!(client.answer().status < 300);
    }
    let begun = Instant::now();
    let mut partial = Vec::new();
    for (whole, part) in whole.iter().zip([
        "PUT /vm HTT",
        "GET / HTTP/1.1\r\nHost: x\r\n",
        "PUT /vm HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n",
    ]) {
        let mut client = vm.connect();
        client.send(format!("{whole}{part}").as_bytes());
        assert!(client.answer().status < 300);
        partial.push(client);
    }
    for client in &mut partial {
        assert!(client.is_closed_within(Duration::from_secs(15)));
        assert!(begun.elapsed() >= Duration::from_secs(10), "{:?}", begun.elapsed());
    }
    for client in &mut patient {
        assert_eq!(client.ask("GET", "/", "").status, 200, "nothing of its next request had come");
    }
    vm.stop();
}

#[test]
fn clients_that_take_none_of_their_answers_lose_their_places_to_others() {
    let mut vm = Vm::echoing();
    let documents = request("GET", "/husk/v1/openapi.json", "").repeat(50);
    let mut deaf: Vec<Connection> = (0..15).map(|_| vm.connect()).collect();
    for client in &mut deaf {
        client.send(documents.as_bytes());
        client.wait_for("HTTP/1.1 200");
    }
    assert_eq!(vm.state(), "Running");
    for _ in 0..2 {
        let mut other = vm.connect();
        assert_eq!(other.ask("GET", "/", "").status, 200);
        other.send(documents.as_bytes());
        deaf.push(other);
    }
    drop(deaf);
    vm.client = vm.connect();
    vm.stop();
}

#[test]
fn a_client_that_reads_none_of_its_answers_keeps_nobody_from_theirs() {
    let mut vm = Vm::echoing();
    let mut deaf = vm.connect();
    // Far more answers than the socket's buffers hold.
    let document = request("GET", "/husk/v1/openapi.json", "").repeat(100);
    let metrics = request("GET", "/husk/v1/metrics", "").repeat(100);
    deaf.send(format!("{document}{metrics}").as_bytes());
    for _ in 0..50 {
        assert_eq!(vm.state(), "Running");
    }
    assert_eq!(deaf.answer().status, 200);
    for _ in 1..200 {
        assert_eq!(deaf.answer().status, 200);
    }
    vm.stop();
}

#[test]
fn a_follower_that_does_not_read_misses_events_and_delays_no_job() {
    let mut vm = Vm::echoing();
    let mut follower = vm.connect();
    follower.send(request("GET", "/husk/v1/events", "").as_bytes());
    for _ in 0..400 {
        assert_eq!(vm.client.ask("POST", "/husk/v1/pause", "").status, 202);
        assert_eq!(vm.client.ask("POST", "/husk/v1/resume", "").status, 202);
    }
    let last = vm.get("/husk/v1/jobs").as_array().and_then(|jobs| jobs.last().cloned()).unwrap_or_default();
    assert_eq!(last["id"], 800);
    follower.wait_for(r#""job":{"id":800,"kind":"resume","state":"done""#);
    vm.stop();
}

#[test]
fn while_a_job_runs_and_a_client_hangs_others_are_answered() {
    let mut vm = Vm::running("check=button end=halt");
    vm.husk.wait_for("BUTTON WAIT");
    // The guest takes the button and stays.
    assert_eq!(vm.client.ask("POST", "/husk/v1/stop", r#"{"grace_ms": 3600000}"#).status, 202);
    vm.husk.wait_for("END halt");
    let mut hanging = vm.connect();
    hanging.send(b"PUT /actions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
    for _ in 0..100 {
        assert_eq!(vm.state(), "Running");
    }
    let job = vm.get("/husk/v1/jobs/1");
    assert_eq!((job["kind"].as_str(), job["state"].as_str()), (Some("stop"), Some("running")));
    let cancelled = vm.client.ask("DELETE", "/husk/v1/jobs/1", "");
    assert_eq!((cancelled.status, cancelled.json()["state"].clone()), (200, json!("cancelled")), "{cancelled:?}");
    vm.stop();
}
