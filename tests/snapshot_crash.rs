//! husk killed at every step that it takes on a point's files: what is there afterwards is the old or the new, never half.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use common::folder::Folder;
use common::vm::Vm;
use common::{Husk, husk};
use serde_json::{Value, json};

/// The system calls that change a file or a folder, or wait for the disk.
const STEPS: [&str; 12] = [
    "mkdirat",
    "openat",
    "flock",
    "ftruncate",
    "fsetxattr",
    "pwrite64",
    "linkat",
    "fsync",
    "fdatasync",
    "renameat",
    "renameat2",
    "unlinkat",
];

const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// More calls of one kind than a point of so small a machine takes.
const CALLS_MAX: u32 = 100;

/// strace beside a process, which it kills when one of its threads begins the `call`th `step`.
struct Killer {
    strace: Child,
    /// It says of each thread that it is there, and would end if nobody listened.
    _told: BufReader<ChildStderr>,
}

impl Killer {
    fn beside(husk: &Husk, step: &str, call: u32) -> Self {
        let (trace, inject) = (format!("trace={step}"), format!("inject={step}:signal=SIGKILL:when={call}"));
        let mut strace = Command::new("strace");
        strace.args(["-f", "-o", "/dev/null", "-e", &trace, "-e", &inject, "-p", &husk.pid().to_string()]);
        let mut child = strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        told.read_line(&mut line).unwrap();
        assert!(line.contains("attached"), "{line}");
        Self { strace: child, _told: told }
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        // It has ended if its process has.
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

fn verify(point: &Path) {
    let ended = husk(["snapshot", "verify", point.to_str().unwrap()]).end();
    assert_eq!(ended.code(), Some(0), "{}: {ended}", point.display());
}

/// What husk answers; None if it is killed before.
fn ask(socket: &str, method: &str, target: &str, body: &Value) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head =
        format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).ok()?;
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("{method} {target}: no answer"),
        read => read.ok()?,
    };
    let (head, body) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 20"), "{answer}");
    serde_json::from_str(body).ok()
}

/// The end of the snapshot that `body` asks for; None if husk was killed before.
fn snapshot(socket: &str, body: &Value) -> Option<Value> {
    let target = format!("/husk/v1/jobs/{}", ask(socket, "POST", "/husk/v1/snapshots", body)?["id"]);
    let deadline = Instant::now() + ANSWER_WITHIN;
    loop {
        assert!(Instant::now() < deadline, "the snapshot does not end");
        let job = ask(socket, "GET", &target, &Value::Null)?;
        if job["state"] != "running" {
            return Some(job);
        }
    }
}

/// Makes the point `new` of a machine that goes on from `base`, killed at the `call`th `step` if it takes so many; whether it
/// was.
fn is_survived(base: &Path, new: &Path, parent: Option<&Path>, (step, call): (&str, u32)) -> bool {
    let folder = Folder::new();
    let socket = folder.at("s");
    let machine = husk(["restore", base.to_str().unwrap(), "--track", "--api-sock", &socket]).start();
    machine.wait_for("TICK ");
    let killer = Killer::beside(&machine, step, call);
    let end = snapshot(&socket, &json!({ "path": new, "parent": parent }));
    drop(killer);
    drop(machine);
    verify(base);
    if let Some(job) = &end {
        assert_eq!(job["state"], "done", "{step} {call}: {job}");
    }
    // Its name is only there when all of it is. What is left of another is in nobody's way.
    if new.join("state").exists() {
        verify(new);
        let dropped = husk(["snapshot", "drop", new.to_str().unwrap()]).end();
        assert_eq!(dropped.code(), Some(0), "{step} {call}: {dropped}");
    } else {
        assert!(end.is_none(), "{step} {call}: a point that is done is not there");
    }
    end.is_none()
}

/// Makes a point again and again, killed at each step of each kind in turn.
fn survives_every_step(base: &Path, new: &Path, parent: Option<&Path>) {
    let mut survived = 0;
    for step in STEPS {
        let calls = (1..CALLS_MAX).take_while(|call| is_survived(base, new, parent, (step, *call))).count();
        assert!(calls + 1 < CALLS_MAX as usize, "{step} is called more than {CALLS_MAX} times");
        survived += calls;
    }
    assert!(survived >= 20, "only {survived} steps: those that were counted are not husk's");
}

#[test]
fn a_husk_that_is_killed_at_any_step_of_a_point_leaves_the_old_or_the_new() {
    let mut vm = Vm::running("check=count end=poweroff");
    vm.husk.wait_for("TICK 5 ");
    let base = vm.folder.path().join("base");
    assert_eq!(vm.job("/husk/v1/snapshots", &json!({ "path": base }))["state"], "done");
    drop(vm.husk);
    let [full, increment] = ["full", "increment"].map(|name| vm.folder.path().join(name));
    survives_every_step(&base, &full, None);
    survives_every_step(&base, &increment, Some(&base));
    // With the last of them dropped their folders are gone, so nothing was left of those that were begun.
    assert!(!full.exists() && !increment.exists());
}
