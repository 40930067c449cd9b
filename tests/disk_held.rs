//! A disk whose host does not answer: the guest waits, and nobody else does.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::process::{Command, Output};

use common::folder::Folder;
use common::guest::probe;
use common::http::Connection;
use common::network::{in_network_namespace, tap};
use common::{Husk, through_shell};

/// A file system that stands still until this goes.
struct Frozen {
    /// Open: it leads there when husk's main thread, and with it the way through its namespace, is gone.
    folder: File,
}

impl Frozen {
    fn new(husk: &Husk, folder: String) -> Self {
        let frozen = Self { folder: File::open(format!("/proc/{}/root{folder}", husk.pid())).unwrap() };
        let output = frozen.fsfreeze("--freeze");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        frozen
    }

    fn fsfreeze(&self, what: &str) -> Output {
        let folder = format!("/proc/{}/fd/{}", std::process::id(), self.folder.as_raw_fd());
        Command::new("fsfreeze").args([what, &folder]).output().unwrap()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.fsfreeze("--unfreeze");
    }
}

/// The probe with a disk on an ext4 of its own, about to write to it; what is told of `engine` are words of `--disk`.
fn about_to_write(folder: &Folder, engine: &str) -> Husk {
    about_to_write_with(folder, engine, "serial,blk", &[])
}

/// As [`about_to_write`], of a probe with these checks and a husk with these words more.
fn about_to_write_with(folder: &Folder, engine: &str, checks: &str, more: &[&str]) -> Husk {
    fs::create_dir(folder.at("mount")).unwrap();
    let image = folder.sparse("image", 16 << 20);
    let made = Command::new("mkfs.ext4").args(["-q", "-F", &image]).status().unwrap();
    assert!(made.success());
    let disk = format!("mount/disk,{engine}");
    let launch = probe(&format!("check={checks} end=poweroff")).args(["--disk", &disk, "--api-sock", "s"]).args(more);
    let script = "exec unshare -m sh -c '
        mount -o loop image mount && truncate -s 2M mount/disk && sync -f mount/disk && exec \"$@\"' sh \"$@\"";
    let husk = through_shell(script, &launch.folder(folder.path())).typed();
    husk.wait_for("SERIAL WAIT");
    husk
}

/// The guest waits as long as it likes, and is never told of a success.
fn pause_is_refused(engine: &str) {
    let folder = Folder::new();
    let mut husk = about_to_write(&folder, engine);
    let mut client = Connection::open(folder.at("s"));
    let frozen = Frozen::new(&husk, folder.at("mount"));
    husk.type_in(b"end\n");
    husk.wait_until_held("");
    client.ask("PATCH", "/vm", r#"{"state": "Paused"}"#).refused(&["cannot pause", "`disk0`", "did not answer"]);
    // The disk is still held up: nobody else waits for it.
    assert_eq!(client.ask("GET", "/", "").json()["state"], "Running");
    husk.wait_for("CHECK blk FAIL no answer");
    drop(frozen);
    assert_eq!(husk.end().code(), Some(0), "{engine}");
}

#[test]
fn a_pause_names_the_disk_that_holds_it_and_the_machine_runs_on() {
    pause_is_refused("engine=sync");
}

#[test]
fn a_pause_names_the_disk_whose_ring_holds_it_and_the_machine_runs_on() {
    pause_is_refused("engine=io_uring,cache=direct");
}

#[test]
fn a_machine_whose_disk_does_not_answer_ends_when_it_is_told_to() {
    let folder = Folder::new();
    let mut husk = about_to_write(&folder, "engine=sync");
    let frozen = Frozen::new(&husk, folder.at("mount"));
    husk.type_in(b"end\n");
    husk.wait_until_held("");
    husk.signal(libc::SIGTERM);
    husk.wait_for_error("device `disk0` does not answer: its requests are given up");
    // The kernel keeps a process until its calls return.
    drop(frozen);
    assert_eq!(husk.end().code(), Some(0));
}

/// The same of a network whose queues the disk's thread serves: its frames wait too, and it holds up nobody else.
#[test]
fn a_network_on_the_thread_of_a_disk_that_does_not_answer_delays_neither_a_pause_nor_an_end() {
    in_network_namespace(|| {
        tap("tap7");
        let folder = Folder::new();
        let net = ["--net", "tap=tap7,iothread=io"];
        let mut husk = about_to_write_with(&folder, "engine=sync,iothread=io", "net,serial,blk", &net);
        let mut client = Connection::open(folder.at("s"));
        let frozen = Frozen::new(&husk, folder.at("mount"));
        husk.type_in(b"end\n");
        husk.wait_until_held("");
        client.ask("PATCH", "/vm", r#"{"state": "Paused"}"#).refused(&["cannot pause", "`disk0`", "did not answer"]);
        assert_eq!(client.ask("GET", "/", "").json()["state"], "Running");
        husk.signal(libc::SIGTERM);
        husk.wait_for_error("device `disk0` does not answer: its requests are given up");
        drop(frozen);
        assert_eq!(husk.end().code(), Some(0));
    });
}
