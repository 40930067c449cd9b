//! What `husk ctl` shows of long jobs: the test plays husk's part, whose jobs take as long as it likes.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use common::folder::Folder;
use common::sys::{Terminal, read_until};
use common::{Launch, husk};
use serde_json::{Value, json};

/// Answers each request on `socket`, which is told by its first line, on a thread of its own.
fn serve(socket: &str, answer: impl Fn(&str) -> Value + Send + Sync + 'static) {
    let (listener, answer) = (UnixListener::bind(socket).unwrap(), Arc::new(answer));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), Arc::clone(&answer));
            thread::spawn(move || {
                let mut request = [0; 4096];
                // The client sends a request in one piece.
                let count = stream.read(&mut request).unwrap();
                let body = answer(str::from_utf8(&request[..count]).unwrap().lines().next().unwrap()).to_string();
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
            });
        }
    });
}

fn job(kind: &str, state: &str, progress: f64) -> Value {
    json!({ "id": 1, "kind": kind, "state": state, "progress": progress, "elapsed_ms": 1 })
}

fn ctl(folder: &Folder, words: &[&str]) -> Launch {
    husk(["ctl", "--api-sock", &folder.at("s")]).args(words)
}

#[test]
fn a_long_job_has_a_bar_on_the_terminal_which_is_gone_when_it_ends() {
    let (folder, terminal) = (Folder::new(), Terminal::open());
    let seen = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&seen);
    serve(&folder.at("s"), move |_| match ends.load(Ordering::Relaxed) {
        false => job("snapshot", "running", 0.5),
        true => job("snapshot", "done", 1.0),
    });
    let ctl = ctl(&folder, &["snapshot", "/x"]).stderr(terminal.slave()).start();
    let shown = read_until(&mut terminal.master(), " 50 %");
    assert!(shown.starts_with("\rsnapshot [###############...............]"), "{shown:?}");
    seen.store(true, Ordering::Relaxed);
    let ended = ctl.end();
    assert_eq!(ended.code(), Some(0), "{ended}");
    assert!(ended.text().contains("state       done\n") && !ended.text().contains('#'), "{ended}");
    let rest = read_until(&mut terminal.master(), "\r\x1b[K");
    assert!(rest.ends_with("\r\x1b[K"), "{rest:?}");
}

#[test]
fn a_start_that_takes_long_has_one_too() {
    let (folder, terminal) = (Folder::new(), Terminal::open());
    let seen = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&seen);
    serve(&folder.at("s"), move |request| {
        if request.starts_with("GET /husk/v1/jobs ") {
            return json!([job("start", "failed", 0.9), job("start", "running", 0.25)]);
        }
        assert_eq!(request, "PUT /actions HTTP/1.1");
        while !ends.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        Value::Null
    });
    let ctl = ctl(&folder, &["start"]).stderr(terminal.slave()).start();
    let shown = read_until(&mut terminal.master(), " 25 %");
    assert!(shown.starts_with("\rstart [#######......................."), "{shown:?}");
    seen.store(true, Ordering::Relaxed);
    let ended = ctl.end();
    assert_eq!((ended.code(), ended.text().as_str()), (Some(0), ""), "{ended}");
    read_until(&mut terminal.master(), "\r\x1b[K");
}

#[test]
fn without_a_terminal_there_is_no_bar() {
    let folder = Folder::new();
    let looks = AtomicUsize::new(0);
    // It looks twice as late each time: these take longer than what has no bar.
    serve(&folder.at("s"), move |_| match looks.fetch_add(1, Ordering::Relaxed) {
        0..10 => job("snapshot", "running", 0.5),
        _ => job("snapshot", "done", 1.0),
    });
    let ended = ctl(&folder, &["snapshot", "/x", "--json"]).end().went_well();
    assert_eq!(serde_json::from_str::<Value>(&ended.text()).unwrap()["state"], "done");
}
