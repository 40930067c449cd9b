//! A VM that is driven over its control socket.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::path::Path;

use serde_json::{Value, json};

use super::ended::Ended;
use super::folder::Folder;
use super::guest::PROBE;
use super::http::{Answer, Connection};
use super::{Husk, husk};

/// husk that waits on a socket of its own.
pub(crate) struct Vm {
    pub(crate) folder: Folder,
    pub(crate) husk: Husk,
    pub(crate) client: Connection,
}

impl Vm {
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(arguments: &[&str]) -> Self {
        let folder = Folder::new();
        let husk = husk(["--api-sock", &folder.at("s")]).args(arguments).start();
        let client = Connection::open(folder.at("s"));
        Self { folder, husk, client }
    }

    /// One that runs the probe with these words.
    pub(crate) fn running(words: &str) -> Self {
        let mut vm = Self::new();
        vm.describe(words);
        vm.put("/actions", &json!({ "action_type": "InstanceStart" })).done();
        vm.husk.wait_for("PROBE READY");
        vm
    }

    /// One with the machine of a folder's point, on a socket of its own.
    pub(crate) fn restored(point: &Path, words: &[&str]) -> Self {
        let folder = Folder::new();
        let point = point.to_str().unwrap();
        let husk = husk(["restore", point, "--api-sock", &folder.at("s")]).args(words).start();
        let client = Connection::open(folder.at("s"));
        Self { folder, husk, client }
    }

    /// As [`Self::running`], of the probe that repeats what is typed until it is told to end.
    pub(crate) fn echoing() -> Self {
        let vm = Self::running("check=serial end=poweroff");
        vm.husk.wait_for("SERIAL WAIT");
        vm
    }

    pub(crate) fn describe(&mut self, words: &str) {
        self.put("/machine-config", &json!({ "vcpu_count": 1, "mem_size_mib": 64 })).done();
        self.put("/boot-source", &json!({ "kernel_image_path": PROBE, "boot_args": words })).done();
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.folder.at("s"))
    }

    pub(crate) fn get(&mut self, target: &str) -> Value {
        let answer = self.client.ask("GET", target, "");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    pub(crate) fn put(&mut self, target: &str, body: &Value) -> Answer {
        self.client.ask("PUT", target, &body.to_string())
    }

    pub(crate) fn patch(&mut self, target: &str, body: &Value) -> Answer {
        self.client.ask("PATCH", target, &body.to_string())
    }

    /// Begins a job of husk's, and waits for its end.
    pub(crate) fn job(&mut self, target: &str, body: &Value) -> Value {
        let answer = self.client.ask("POST", target, &body.to_string());
        assert_eq!(answer.status, 202, "{answer:?}");
        self.finished(answer.json()["id"].as_u64().unwrap())
    }

    /// A job when it has ended.
    pub(crate) fn finished(&mut self, number: u64) -> Value {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let job = self.get(&format!("/husk/v1/jobs/{number}"));
            if job["state"] != "running" {
                return job;
            }
            assert!(std::time::Instant::now() < deadline, "{job}");
            std::thread::yield_now();
        }
    }

    pub(crate) fn state(&mut self) -> String {
        self.get("/")["state"].as_str().unwrap().to_owned()
    }

    pub(crate) fn stop(mut self) -> Ended {
        let answer = self.client.ask("POST", "/husk/v1/stop", r#"{"grace_ms": 0}"#);
        assert_eq!(answer.status, 202, "{answer:?}");
        let ended = self.husk.end();
        assert_eq!(ended.code(), Some(0), "{ended}");
        assert!(!self.folder.path().join("s").exists(), "the socket goes with husk");
        ended
    }
}
