//! husk with a machine, driven over its socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{LIMIT, Place, STEP};
use crate::BenchError;
use crate::child::Measured;
use crate::peer::{Artifacts, from_environment};

pub(super) struct Machine {
    socket: PathBuf,
    process: Process,
}

/// Killed with the machine.
enum Process {
    Measured(Measured),
    Spawned(Child),
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Self::Spawned(child) = self {
            // Either fails only for a program that has ended, which is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a snapshot measured of itself.
pub(super) struct Figures {
    pub(super) pause_us: f64,
    pub(super) sync_us: f64,
    pub(super) total_us: f64,
}

impl Machine {
    /// One whose bench guest has begun its run.
    pub(super) fn start(artifacts: &Artifacts, place: &Place, mib: u64, words: &str) -> Result<Self, BenchError> {
        let guest = from_environment("HUSK_BENCH_GUEST", "the bench guest")?;
        let socket = place.at("socket");
        let mut command = artifacts.husk(&guest, mib, 1);
        command.args(["--cmdline", words, "--api-sock"]).arg(&socket);
        let process = Measured::start(command, STEP, LIMIT)?;
        Ok(Self { socket, process: Process::Measured(process) })
    }

    /// One that is on its way.
    pub(super) fn spawn(mut command: Command, socket: PathBuf) -> Result<Self, BenchError> {
        command.arg("--api-sock").arg(&socket).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().map_err(|source| BenchError::Start { program, source })?;
        Ok(Self { socket, process: Process::Spawned(child) })
    }

    /// One that has begun already.
    pub(super) fn of(child: Child, socket: PathBuf) -> Self {
        Self { socket, process: Process::Spawned(child) }
    }

    pub(super) fn wait_until_paused(&mut self) -> Result<(), BenchError> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.ask("GET", "/", &Value::Null) {
                Ok(instance) if instance["state"] == "Paused" => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn pid(&self) -> u32 {
        match &self.process {
            Process::Measured(process) => process.pid(),
            Process::Spawned(child) => child.id(),
        }
    }

    /// Memory that the process has, its guest's included, in bytes.
    pub(super) fn resident_bytes(&self) -> Result<u64, BenchError> {
        let path = format!("/proc/{}/statm", self.pid());
        let text = std::fs::read_to_string(&path).map_err(|source| BenchError::Proc { path, source })?;
        Ok(text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096)
    }

    /// Memory that the process has to itself, its guest's included, in KiB.
    pub(super) fn unique_kib(&self) -> Result<f64, BenchError> {
        let pid = self.pid();
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = std::fs::read_to_string(&path).map_err(|source| BenchError::Proc { path, source })?;
        let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<u32>().ok();
        let private = text.lines().filter(|line| line.starts_with("Private_")).filter_map(kib);
        Ok(f64::from(private.sum::<u32>()))
    }

    pub(super) fn pause(&mut self) -> Result<(), BenchError> {
        self.ask("PATCH", "/vm", &json!({ "state": "Paused" })).map(|_| ())
    }

    pub(super) fn resume(&mut self) -> Result<(), BenchError> {
        self.ask("PATCH", "/vm", &json!({ "state": "Resumed" })).map(|_| ())
    }

    /// Makes a point, and waits until it is durable.
    pub(super) fn snapshot(&mut self, body: &Value) -> Result<Figures, BenchError> {
        let number = self.ask("POST", "/husk/v1/snapshots", body)?["id"].as_u64().unwrap_or(0);
        let deadline = Instant::now() + LIMIT;
        loop {
            let job = self.ask("GET", &format!("/husk/v1/jobs/{number}"), &Value::Null)?;
            let figure = |name: &str| job["figures"][name].as_f64().unwrap_or(f64::NAN);
            match job["state"].as_str() {
                Some("done") => {
                    let (pause_us, sync_us) = (figure("pause_us"), figure("sync_us"));
                    return Ok(Figures { pause_us, sync_us, total_us: figure("total_us") });
                }
                Some("running") if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
                _ => return Err(self.refused("make a snapshot", &job.to_string())),
            }
        }
    }

    /// A request and its answer.
    pub(super) fn ask(&mut self, method: &str, target: &str, body: &Value) -> Result<Value, BenchError> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let failed = |source| BenchError::Socket { path: self.socket.display().to_string(), what: "ask", source };
        let mut socket = UnixStream::connect(&self.socket).map_err(failed)?;
        let length = body.len();
        let head =
            format!("{method} {target} HTTP/1.1\r\nHost: l\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        socket.write_all((head + &body).as_bytes()).map_err(failed)?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).map_err(failed)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        match head.split(' ').nth(1) {
            Some(status) if status.starts_with('2') => Ok(serde_json::from_str(body).unwrap_or_default()),
            _ => Err(self.refused("ask", body)),
        }
    }

    fn refused(&self, what: &'static str, answer: &str) -> BenchError {
        let source = std::io::Error::other(answer.to_owned());
        BenchError::Socket { path: self.socket.display().to_string(), what, source }
    }
}
