//! A host that has no space for what a guest writes: `on_enospc=stop`.

mod common;

use std::process::Command;

use common::folder::Folder;
use common::guest::{fnv1a, probe};
use common::http::Connection;
use common::through_shell;

const MIB: usize = 1 << 20;

/// What the probe writes over the first MiB of a disk.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64 / 8).flat_map(|i| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

#[test]
fn a_machine_waits_for_space_and_the_guest_never_hears_of_it() {
    for engine in ["sync", "io_uring"] {
        let folder = Folder::new();
        std::fs::create_dir(folder.at("small")).expect("the folder is new");
        let disk = format!("small/disk,engine={engine},on_enospc=stop");
        let launch = probe("check=blk end=poweroff").args(["--disk", &disk, "--api-sock", "s"]).folder(folder.path());
        let script = "exec unshare -m sh -c '
            mount -t tmpfs -o size=256k none small && truncate -s 1M small/disk && exec \"$@\"' sh \"$@\"";
        let husk = through_shell(script, &launch).start();
        husk.wait_for_error("disk `disk0`: no space left on the host");
        let mut client = Connection::open(folder.at("s"));
        assert_eq!(client.ask("GET", "/", "").json()["state"], "Paused");
        let resume = r#"{"state": "Resumed"}"#;
        // Still no room: it waits again.
        client.ask("PATCH", "/vm", resume).done();
        husk.wait_for_error_times("disk `disk0`: no space left on the host", 2);
        assert_eq!(client.ask("GET", "/", "").json()["state"], "Paused");
        let inside = |words: &[&str]| {
            let mut command = Command::new("nsenter");
            command.args(["--target", &husk.pid().to_string(), "--mount", "--wd"]).args(words);
            command.output().expect("nsenter starts")
        };
        let grown = inside(&["mount", "-o", "remount,size=2M", "none", &folder.at("small")]);
        assert!(grown.status.success(), "{}", String::from_utf8_lossy(&grown.stderr));
        client.ask("PATCH", "/vm", resume).done();
        let ended = husk.end();
        assert_eq!(ended.code(), Some(0), "{engine}: {ended}");
        ended.check("blk");
        let told = common::ended::Facts::of(&ended.line("BLK 0 ")).number("fnv");
        assert_eq!(told, fnv1a(&pattern(MIB)), "{engine}: {ended}");
    }
}
