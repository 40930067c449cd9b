//! Disks that are none, that somebody else uses, or that are too many: refused with a line, and left as they were.

mod common;

use std::fs::{self, File};

use common::folder::Folder;
use common::guest::{PROBE, READY, noise, probe};
use common::refusal::{as_nobody, refused, with};
use common::sys::{self, Lock};
use common::{Husk, husk};

#[test]
fn an_absent_disk_is_named_and_not_created() {
    let folder = Folder::new();
    for options in ["no-such-disk", "no-such-disk,ro", "no-such-folder/disk"] {
        let path = options.trim_end_matches(",ro");
        refused(&folder, with(["--disk", options]), &[path, "does not exist"]);
    }
}

#[test]
fn an_empty_disk_is_named() {
    let folder = Folder::new();
    let path = folder.file("disk", b"");
    refused(&folder, with(["--disk", &path]), &[&path, "empty"]);
}

#[test]
fn a_disk_that_is_not_whole_sectors_is_told_its_size() {
    let folder = Folder::new();
    for bytes in [1, 511, 513, 1_000_000] {
        let path = folder.file("disk", &noise(7, bytes));
        refused(&folder, with(["--disk", &path]), &[&path, &bytes.to_string(), "512"]);
    }
}

#[test]
fn a_disk_that_is_a_directory_a_pipe_or_a_character_device_is_named() {
    let folder = Folder::new();
    refused(&folder, with(["--disk", folder.path().to_str().unwrap()]), &["directory"]);
    refused(&folder, with(["--disk", &format!("{},ro", folder.path().display())]), &["directory"]);
    let path = folder.fifo("pipe");
    refused(&folder, with(["--disk", &path]), &[&path, "regular file"]);
    refused(&folder, with(["--disk", "/dev/zero"]), &["/dev/zero", "regular file"]);
}

#[test]
fn a_disk_that_nobody_may_write_is_named_and_may_still_be_read() {
    let folder = Folder::new();
    let disk = folder.file("disk", &noise(3, 4096));
    let kernel = folder.file("kernel", &fs::read(PROBE).unwrap());
    let launch = husk(["run", "--kernel", &kernel, "--disk", &disk]);
    refused(&folder, as_nobody(&folder, &launch), &[&disk, "ermission", "writing"]);
}

/// A guest that holds its disk until it is told to end.
fn holder(options: &[&str]) -> Husk {
    let husk = probe("end=halt").args(options).start();
    husk.wait_for(READY);
    husk
}

#[test]
fn a_disk_that_another_husk_uses_is_locked_and_free_when_that_one_ends() {
    let folder = Folder::new();
    let path = folder.file("disk", &noise(3, 1 << 20));
    let reading = format!("{path},ro");
    let first = holder(&["--disk", &path]);
    for option in [&path, &reading] {
        refused(&folder, with(["--disk", option]), &[&path, "locked"]);
    }
    first.signal(libc::SIGTERM);
    first.end().went_well();
    with(["--disk", &path]).end().went_well();
}

#[test]
fn a_disk_may_be_read_by_two_and_then_be_written_by_none() {
    let folder = Folder::new();
    let path = folder.file("disk", &noise(3, 1 << 20));
    let reading = format!("{path},ro");
    let _first = holder(&["--disk", &reading]);
    let _second = holder(&["--disk", &reading]);
    refused(&folder, with(["--disk", &path]), &[&path, "locked"]);
}

#[test]
fn a_disk_that_another_program_has_locked_is_refused() {
    let folder = Folder::new();
    let path = folder.file("disk", &noise(3, 1 << 20));
    let reading = format!("{path},ro");
    let file = File::options().read(true).write(true).open(&path).unwrap();
    assert!(sys::lock(&file, Lock::Shared));
    refused(&folder, with(["--disk", &path]), &[&path, "locked"]);
    with(["--disk", &reading]).end().went_well();
    assert!(sys::lock(&file, Lock::Exclusive));
    refused(&folder, with(["--disk", &reading]), &[&path, "locked"]);
}

#[test]
fn husk_holds_the_lock_that_other_programs_ask_for() {
    let folder = Folder::new();
    let path = folder.file("disk", &noise(3, 1 << 20));
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let reader = holder(&["--disk", &format!("{path},ro")]);
    assert!(!sys::lock(&file, Lock::Exclusive));
    assert!(sys::lock(&file, Lock::Shared));
    drop((reader, file));
    let _writer = holder(&["--disk", &path]);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    assert!(!sys::lock(&file, Lock::Shared));
}

#[test]
fn the_same_disk_twice_is_refused() {
    let folder = Folder::new();
    let path = folder.file("disk", &noise(3, 1 << 20));
    let link = folder.at("link");
    std::os::unix::fs::symlink(&path, &link).expect("the folder is new");
    let reading = format!("{path},ro");
    for [one, other] in [[&path, &path], [&path, &link], [&reading, &path], [&path, &reading]] {
        let named = ["`disk0`", "`disk1`", "give each its own"];
        refused(&folder, with(["--disk", one, "--disk", other]), &named);
    }
    with(["--disk", &reading, "--disk", &reading]).end().went_well();
}

/// `--disk` options for so many disks.
fn disks(folder: &Folder, count: usize) -> Vec<String> {
    let file = |index| folder.file(&format!("d{index}"), &noise(index as u64, 64 << 10));
    (0..count).flat_map(|index| ["--disk".to_owned(), file(index)]).collect()
}

#[test]
fn nineteen_disks_boot_and_the_entropy_device_gives_way() {
    let folder = Folder::new();
    let ended = probe("check=blk,rng end=poweroff").args(disks(&folder, 19)).end();
    assert_eq!(ended.code(), Some(0), "{ended}");
    assert_eq!(ended.check("blk").number("devices"), 19);
    assert!(ended.text().contains("CHECK rng FAIL there is no virtio-rng device"), "{ended}");
}

#[test]
fn the_device_that_finds_no_slot_is_named() {
    let folder = Folder::new();
    let twenty = disks(&folder, 20);
    refused(&folder, with([]).args(&twenty), &["disk19", "20", "19"]);
    refused(&folder, with(["--rng", "on"]).args(&twenty[..38]), &["rng", "20", "19"]);
}

#[test]
fn two_disks_of_one_id_are_refused() {
    let folder = Folder::new();
    let (a, b) = (folder.file("a", &noise(1, 4096)), folder.file("b", &noise(2, 4096)));
    refused(&folder, with(["--disk", &format!("{a},id=x"), "--disk", &format!("{b},id=x")]), &["`x`", "twice"]);
    refused(&folder, with(["--disk", &a, "--disk", &format!("{b},id=disk0")]), &["`disk0`", "twice"]);
    refused(&folder, with(["--disk", &format!("{a},id=rng")]), &["`rng`", "twice"]);
}

#[test]
fn an_id_that_is_none_is_shown_on_one_line() {
    let folder = Folder::new();
    let path = folder.file("disk", &noise(1, 4096));
    for id in ["", "a/b", "a b", "ä", &"x".repeat(65)] {
        refused(&folder, with(["--disk", &format!("{path},id={id}")]), &[id, "64"]);
    }
    refused(&folder, with(["--disk", &format!("{path},id=a\nb")]), &["letters"]);
    refused(&folder, with(["--disk", "no\nsuch\x1b[2Jdisk"]), &["does not exist"]);
}
