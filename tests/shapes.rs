//! The shapes that a machine comes in beside the plain one: Firecracker's configuration file, tables by choice, other ends
//! of the serial port, and a reboot that starts the same machine again.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use common::ended::Ended;
use common::folder::Folder;
use common::guest::{PROBE, READY, probe};
use common::sys::read_until;
use common::{Husk, husk};

/// A file of the shape that Firecracker's users have, for the probe.
fn config_file(folder: &Folder, boot_args: &str, drives: &str, more: &str) -> String {
    let text = format!(
        r#"{{"boot-source": {{"kernel_image_path": "{PROBE}", "boot_args": "{boot_args}", "initrd_path": null}},
            "drives": [{drives}],
            "machine-config": {{"vcpu_count": 2, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false,
                               "huge_pages": "None"}},
            "cpu-config": null, "balloon": null, "network-interfaces": [], "vsock": null, "logger": null,
            "metrics": null, "mmds-config": null, "pmem": [], "memory-hotplug": null{more}}}"#
    );
    folder.file("vm.json", text.as_bytes())
}

fn disk(folder: &Folder, name: &str) -> String {
    folder.sparse(name, 1 << 20)
}

/// Ended by itself with every check passed. The disk check provokes an error on purpose, which husk may tell.
fn checked(ended: Ended) -> Ended {
    assert_eq!(ended.code(), Some(0), "{ended}");
    assert!(!ended.text().contains(" FAIL "), "{ended}");
    ended
}

#[test]
fn a_firecracker_users_file_boots_unchanged_with_the_root_drive_first() {
    let folder = Folder::new();
    let drive = |id: &str, root: bool| {
        let path = disk(&folder, id);
        format!(
            r#"{{"drive_id": "{id}", "partuuid": null, "is_root_device": {root}, "cache_type": "Unsafe",
            "is_read_only": false, "path_on_host": "{path}", "io_engine": "Sync", "rate_limiter": null, "socket": null}}"#
        )
    };
    let drives = format!("{}, {}", drive("data", false), drive("rootfs", true));
    let path = config_file(&folder, "check=cmdline,cpus,blk,rng end=poweroff", &drives, r#", "entropy": {}"#);
    for args in [vec!["--no-api", "--config-file", &path], vec!["run", "--config-file", &path]] {
        let ended = checked(husk(args).end());
        assert_eq!(ended.check("cpus").number("running"), 2);
        let cmdline = ended.line("CMDLINE ");
        assert!(cmdline.starts_with("check=cmdline,cpus,blk,rng end=poweroff root=/dev/vda rw "), "{cmdline}");
        let disks = ended.lines("BLK ");
        assert!(disks[0].contains(r#"id="rootfs""#) && disks[1].contains(r#"id="data""#), "{ended}");
        ended.check("rng");
    }
}

#[test]
fn what_a_file_asks_for_and_husk_cannot_is_refused_by_name() {
    let folder = Folder::new();
    let path = config_file(&folder, "end=poweroff", "", r#", "vsock-cid": 3"#);
    let ended = husk(["--no-api", "--config-file", &path]).end();
    assert_eq!(ended.code(), Some(1));
    assert!(ended.message().contains("unknown field `vsock-cid`") && ended.message().contains(&path), "{ended}");
    let ended = husk(["--no-api", "--config-file", "/nowhere/vm.json"]).end();
    assert_eq!(ended.code(), Some(1));
    assert!(ended.message().contains("/nowhere/vm.json"), "{ended}");
}

/// Boots the probe with this custom CPU template.
fn with_cpu_template(template: &str) -> Ended {
    let folder = Folder::new();
    let template = folder.file("template.json", template.as_bytes());
    let path = config_file(&folder, "check=cpus end=poweroff", "", "");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(r#""cpu-config": null"#, &format!(r#""cpu-config": "{template}""#))).unwrap();
    husk(["--no-api", "--config-file", &path]).end()
}

#[test]
fn a_custom_cpu_template_changes_leaves_and_msrs_of_every_cpu() {
    let ended = checked(with_cpu_template(
        r#"{"kvm_capabilities": ["!171", "0"],
            "cpuid_modifiers": [{"leaf": "0x80000008", "subleaf": "0x0", "flags": 0,
                "modifiers": [{"register": "ebx", "bitmap": "0bx00x"}]}],
            "msr_modifiers": [{"addr": "0x277", "bitmap": "0b00000111"}]}"#,
    ));
    assert_eq!(ended.check("cpus").number("running"), 2);
}

#[test]
fn a_cpu_template_that_masks_what_it_must_not_is_refused_by_name() {
    for (template, named) in [
        (
            r#"{"cpuid_modifiers": [{"leaf": "0xb", "subleaf": "0x0", "flags": 1,
                "modifiers": [{"register": "edx", "bitmap": "0b1"}]}]}"#,
            "leaf 0xb",
        ),
        (
            r#"{"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 0,
                "modifiers": [{"register": "ecx", "bitmap": "0b0xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}]}]}"#,
            "leaf 0x1",
        ),
        (r#"{"msr_modifiers": [{"addr": "0x1b", "bitmap": "0b0"}]}"#, "0x1b"),
        (r#"{"kvm_capabilities": ["9999"]}"#, "capability 9999"),
        (r#"{"cpuid_modifiers": [{"leaf": "one"}]}"#, "cpuid_modifiers"),
        (r#"{"leaves": []}"#, "unknown field `leaves`"),
        ("", "EOF"),
    ] {
        let ended = with_cpu_template(template);
        assert_eq!((ended.code(), ended.text().as_str()), (Some(1), ""), "{ended}");
        let line = ended.message();
        assert!(line.contains("cpu-config") && line.contains(named), "`{named}` in: {line}");
    }
}

#[test]
fn firecrackers_flags_are_accepted_with_one_warning() {
    let folder = Folder::new();
    let path = config_file(&folder, "end=poweroff", "", "");
    let ended = husk(["--no-api", "--config-file", &path, "--id", "vm-1", "--level", "Info", "--no-seccomp"]).end();
    assert_eq!(ended.code(), Some(0), "{ended}");
    assert!(ended.message().ends_with(": --no-seccomp"), "{ended}");
}

#[test]
fn without_acpi_the_kernel_finds_cpus_by_the_mp_table_and_devices_by_its_command_line() {
    let folder = Folder::new();
    let args = ["--acpi", "off", "--cpus", "4", "--disk", &disk(&folder, "d")];
    let ended = checked(probe("check=cmdline,cpus,timer,blk,rng end=i8042").args(args).end());
    assert!(ended.line(READY).contains("tables=mp"), "{ended}");
    assert!(ended.line("CMDLINE ").ends_with("virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"));
    assert_eq!(ended.check("cpus").number("running"), 4);
    ended.check("blk");
    ended.check("rng");
}

#[test]
fn serial_output_goes_to_a_file_behind_what_is_there() {
    let folder = Folder::new();
    let path = folder.path().join("console.log");
    for boots in 1..=2 {
        probe("end=poweroff").args(["--serial", path.to_str().unwrap()]).end().went_well();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches(READY).count(), boots, "{text}");
    }
}

#[test]
fn a_serial_file_is_not_left_behind_by_a_machine_that_never_was() {
    let folder = Folder::new();
    let path = folder.path().join("console.log");
    let args = ["run", "--kernel", "/nowhere", "--serial", path.to_str().unwrap()];
    assert_eq!(husk(args).end().code(), Some(1));
    assert!(!path.exists());
    fs::write(&path, "kept").unwrap();
    assert_eq!(husk(args).end().code(), Some(1));
    assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
}

#[test]
fn no_serial_output_is_an_option_too() {
    let ended = probe("end=poweroff").args(["--serial", "null"]).end().went_well();
    assert_eq!(ended.text(), "");
}

/// The other end of its guest's serial port.
fn pty_of(husk: &Husk) -> File {
    husk.wait_for_error("/dev/pts/");
    husk.wait_for_error("\n");
    let path = husk.error_line("husk: info: serial port: ");
    OpenOptions::new().read(true).write(true).open(Path::new(&path)).unwrap()
}

#[test]
fn a_pty_carries_the_console_both_ways_and_its_path_is_printed() {
    let husk = probe("check=serial end=poweroff").args(["--serial", "pty"]).start();
    let mut pty = pty_of(&husk);
    read_until(&mut pty, "SERIAL WAIT");
    pty.write_all(b"over the pty\nend\n").unwrap();
    let text = read_until(&mut pty, "END poweroff");
    assert!(text.contains("ECHO over the pty"), "{text}");
    assert_eq!(husk.end().code(), Some(0));
}

#[test]
fn a_slow_reader_of_a_pty_reads_the_guests_last_words() {
    let husk = probe("check=serial end=poweroff").args(["--serial", "pty"]).start();
    let mut pty = pty_of(&husk);
    pty.write_all(b"end\n").unwrap();
    let (mut text, mut byte) = (String::new(), [0]);
    while !text.contains("END poweroff") {
        assert_eq!(pty.read(&mut byte).unwrap(), 1, "{text}");
        text.push(char::from(byte[0]));
        thread::sleep(Duration::from_micros(500));
    }
    drop(pty);
    assert_eq!(husk.end().code(), Some(0));
}

#[test]
fn a_guest_that_resets_itself_is_started_again_with_the_same_disks() {
    let folder = Folder::new();
    let husk = probe("check=blk end=acpi-reset")
        .args(["--on-reboot", "restart", "--cpus", "2", "--disk", &disk(&folder, "d")])
        .start();
    husk.wait_for_times(READY, 5);
    husk.signal(15);
    checked(husk.end());
}

#[test]
fn restarts_with_a_pty_that_nobody_reads_leak_neither_threads_nor_descriptors() {
    let husk = probe("end=i8042").args(["--on-reboot", "restart", "--serial", "pty"]).start();
    husk.wait_for_error("/dev/pts/");
    let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", husk.pid())).unwrap().count();
    let warning = "the console did not take the guest's last output";
    husk.wait_for_error(warning);
    let (threads, files) = (count("task"), count("fd"));
    // One more of each a restart would be twelve; a machine that is just being made or ended has a few more or less.
    husk.wait_for_error_times(warning, 13);
    let (later_threads, later_files) = (count("task"), count("fd"));
    assert!(later_threads <= threads + 8, "{threads} threads, then {later_threads}");
    assert!(later_files <= files + 24, "{files} descriptors, then {later_files}");
    husk.signal(15);
    assert_eq!(husk.end().code(), Some(0));
}

#[test]
fn a_crash_is_no_reboot() {
    let ended = probe("end=triple").args(["--on-reboot", "restart"]).end();
    assert_eq!(ended.code(), Some(3), "{ended}");
    assert_eq!(ended.lines(READY).len(), 1);
}
