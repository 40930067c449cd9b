//! The unit files under systemd itself, which runs as the first process of namespaces of its own (tests/systemd/boot).
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::ended::Ended;
use common::folder::Folder;
use common::guest::PROBE;
use common::{HUSK, Husk, Launch};
use serde_json::json;

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// A systemd that has the unit files of resources/systemd.
struct Systemd {
    folder: Folder,
    name: String,
    /// Taken when it ends.
    process: Option<Husk>,
    pid: u32,
}

impl Systemd {
    fn boot() -> Self {
        let folder = Folder::new();
        fs::create_dir_all(folder.path().join("units/husk@hangs.service.d")).unwrap();
        let service = include_str!("../resources/systemd/husk@.service");
        let service = service.replace("/usr/bin/husk", HUSK).replace("/etc/husk", folder.path().to_str().unwrap());
        folder.file("units/husk@.service", service.as_bytes());
        folder.file("units/husk@.socket", include_bytes!("../resources/systemd/husk@.socket"));
        // This one is ended sooner than a user would have it.
        folder.file("units/husk@hangs.service.d/test.conf", b"[Service]\nWatchdogSec=2\n");
        let name = format!("husk-test-{}", std::process::id());
        let boot = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/systemd/boot");
        let process = Launch::new(boot, [folder.path().to_str().unwrap(), &name]).start();
        let children = format!("/proc/{0}/task/{0}/children", process.pid());
        let mut systemd = Self { folder, name, process: Some(process), pid: 0 };
        eventually("systemd", || {
            // Before it, what prepares its way has children, too.
            systemd.pid = fs::read_to_string(&children).ok()?.trim().parse().ok()?;
            systemd.run(&["systemctl", "is-active", "test.target"]).status.success().then_some(())
        });
        systemd
    }

    /// Describes the VM `name`, whose probe has these words.
    fn describe(&self, name: &str, words: &str) {
        let config = json!({
            "boot-source": { "kernel_image_path": PROBE, "boot_args": words },
            "machine-config": { "vcpu_count": 1, "mem_size_mib": 64 },
        });
        self.folder.file(&format!("{name}.json"), config.to_string().as_bytes());
    }

    /// Runs a program where systemd is.
    fn run(&self, words: &[&str]) -> Ended {
        let target = self.pid.to_string();
        Launch::new("nsenter", ["--all", "--target", &target, "--"]).args(words).end()
    }

    #[track_caller]
    fn does(&self, words: &[&str]) -> String {
        let ended = self.run(words);
        assert_eq!(ended.code(), Some(0), "{words:?}: {ended}");
        ended.text()
    }

    fn property(&self, unit: &str, name: &str) -> String {
        self.does(&["systemctl", "show", unit, "--value", "--property", name]).trim().to_owned()
    }

    fn wait_for(&self, unit: &str, name: &str, value: &str) {
        eventually(&format!("{name}={value} of {unit}"), || (self.property(unit, name) == value).then_some(()));
    }

    fn wait_for_restarts(&self, unit: &str, count: u32) {
        eventually(&format!("{count} restarts of {unit}"), || {
            self.property(unit, "NRestarts").parse().is_ok_and(|restarts: u32| restarts >= count).then_some(())
        });
    }

    fn wait_for_journal(&self, unit: &str, text: &str) {
        eventually(text, || self.does(&["journalctl", "--unit", unit]).contains(text).then_some(()));
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // Killed and reaped, and all that it started with it.
        self.process = None;
        let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else { return };
        for mount in mounts.lines() {
            let mut words = mount.split(' ').skip(1);
            if let (Some(place), Some("cgroup" | "cgroup2")) = (words.next(), words.next()) {
                remove_group(&Path::new(place).join(&self.name));
            }
        }
    }
}

/// Removes a control group and those in it, as soon as their processes are gone.
fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    let deadline = Instant::now() + DEADLINE;
    while group.exists() && fs::remove_dir(group).is_err() && Instant::now() < deadline {
        std::thread::yield_now();
    }
}

#[track_caller]
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} does not come");
        std::thread::yield_now();
    }
}

#[test]
fn a_unit_is_started_answers_and_is_stopped_by_its_power_button() {
    let systemd = Systemd::boot();
    systemd.describe("vm1", "check=button end=poweroff");
    systemd.does(&["systemctl", "start", "husk@vm1"]);
    let answer = systemd.does(&["curl", "-s", "--unix-socket", "/run/husk/vm1/api.sock", "http://localhost/"]);
    assert!(answer.contains(r#""id":"vm1""#), "{answer}");
    systemd.wait_for("husk@vm1", "StatusText", "The machine is running");
    systemd.wait_for_journal("husk@vm1", "BUTTON WAIT");
    systemd.does(&["systemctl", "stop", "husk@vm1"]);
    systemd.wait_for_journal("husk@vm1", "CHECK button ok");
    assert_eq!(systemd.property("husk@vm1", "Result"), "success");
    assert_eq!(systemd.property("husk@vm1", "NRestarts"), "0");
}

#[test]
fn a_loop_that_hangs_and_a_guest_that_crashes_are_started_again_and_a_mistake_is_not() {
    let systemd = Systemd::boot();
    systemd.describe("hangs", "check=serial end=poweroff");
    systemd.does(&["systemctl", "start", "husk@hangs"]);
    systemd.does(&["systemctl", "kill", "--signal", "STOP", "husk@hangs"]);
    systemd.wait_for_restarts("husk@hangs", 1);
    systemd.wait_for("husk@hangs", "StatusText", "The machine is running");
    systemd.wait_for_journal("husk@hangs", "SERIAL WAIT");

    systemd.describe("crashes", "end=triple");
    systemd.does(&["systemctl", "start", "husk@crashes"]);
    systemd.wait_for_restarts("husk@crashes", 2);

    systemd.folder.file("wrong.json", b"{}");
    systemd.run(&["systemctl", "start", "husk@wrong"]);
    systemd.wait_for("husk@wrong", "ActiveState", "failed");
    let told = ["ExecMainStatus", "NRestarts"].map(|name| systemd.property("husk@wrong", name));
    assert_eq!(told, ["1", "0"]);
}

#[test]
fn the_first_client_of_the_socket_unit_starts_husk() {
    let systemd = Systemd::boot();
    systemd.describe("vm2", "check=serial end=poweroff");
    systemd.does(&["systemctl", "start", "husk@vm2.socket"]);
    assert_eq!(systemd.property("husk@vm2", "ActiveState"), "inactive");
    let curl = ["curl", "-s", "--unix-socket", "/run/husk/vm2/api.sock", "http://localhost/husk/v1/health"];
    assert!(systemd.does(&curl).contains(r#""id":"vm2""#));
    assert_eq!(systemd.property("husk@vm2", "ActiveState"), "active");
    systemd.does(&["systemctl", "stop", "husk@vm2.service"]);
    systemd.does(&["test", "-S", "/run/husk/vm2/api.sock"]);
    assert!(systemd.does(&curl).contains("vm2"), "the socket starts it again");
    systemd.does(&["systemctl", "stop", "husk@vm2.socket", "husk@vm2.service"]);
    assert_eq!(systemd.run(&["test", "-e", "/run/husk/vm2/api.sock"]).code(), Some(1));
}
