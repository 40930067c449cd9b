//! Disks as the host finds them after a guest: what was written, what was not, and who may open them.

mod common;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use common::ended::{Ended, Facts};
use common::folder::Folder;
use common::guest::{fnv1a, noise, probe};
use common::sys::{self, Lock};
use common::through_shell;

const MIB: usize = 1 << 20;
const SECTOR: usize = 512;

/// What the probe writes over the first MiB of a disk, or all of a smaller one.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64 / 8).flat_map(|i| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

/// What the probe said of its `n`th disk.
#[track_caller]
fn disk(ended: &Ended, n: usize) -> Facts {
    Facts::of(&ended.line(&format!("BLK {n} ")))
}

/// Runs a check of the probe on a disk with some content of 2 MiB; its first MiB must then be the pattern in the file,
/// and the rest as it was.
fn leaves_the_pattern(check: &str) -> Ended {
    let folder = Folder::new();
    let content = noise(11, 2 * MIB);
    let path = folder.file("disk", &content);
    let ended = probe(&format!("check={check} end=poweroff")).args(["--disk", &path]).end();
    assert_eq!(ended.code(), Some(0), "{ended}");
    assert!(!ended.text().contains(" FAIL "), "{ended}");
    let after = folder.read("disk");
    assert_eq!(after.len(), content.len(), "a disk keeps its size");
    assert!(after[..MIB] == pattern(MIB)[..], "what the guest wrote is in the file");
    assert!(after[MIB..] == content[MIB..], "and nothing else");
    ended
}

#[test]
fn what_the_guest_writes_is_in_the_file_and_the_rest_is_untouched() {
    let ended = leaves_the_pattern("blk");
    let facts = disk(&ended, 0);
    assert_eq!(facts.number("fnv"), fnv1a(&pattern(MIB)));
    assert_eq!(facts.number("capacity"), (2 * MIB / SECTOR) as u64);
    assert_eq!(facts.number("ro"), 0);
}

#[test]
fn indirect_descriptors_write_the_same_bytes() {
    let ended = leaves_the_pattern("indirect");
    assert_eq!(ended.check("indirect").number("fnv"), fnv1a(&pattern(MIB)));
}

#[test]
fn interrupts_come_where_the_driver_asked_for_them() {
    let folder = Folder::new();
    let path = folder.sparse("disk", MIB as u64);
    let ended = probe("check=eventidx end=poweroff").args(["--disk", &path]).end().went_well();
    assert!(ended.check("eventidx").number("interrupts") > 0);
}

#[test]
fn a_disk_that_is_reset_with_requests_outstanding_works_again() {
    leaves_the_pattern("reset");
}

#[test]
fn a_broken_ring_asks_for_a_reset_and_the_machine_stays_up() {
    let ended = leaves_the_pattern("broken,blk,broken,indirect");
    // At most one line a second for all that a guest does wrong to a disk, whatever it resets in between.
    let said = ended.stderr.lines().filter(|line| line.contains("disk0") && line.contains("loop")).count();
    assert!((1..=2).contains(&said), "{ended}");
}

#[test]
fn all_checks_in_one_life_leave_the_pattern() {
    leaves_the_pattern("blk,indirect,reset,eventidx,broken,reset,blk");
}

#[test]
fn two_cpus_and_memory_across_the_hole_change_nothing() {
    let folder = Folder::new();
    let path = folder.file("disk", &noise(5, MIB));
    for memory in ["6G", "128M,shared"] {
        let options = ["--disk", &path, "--cpus", "2", "--memory", memory];
        let ended = probe("check=cpus,mem,blk end=poweroff").args(options).end();
        assert_eq!(disk(&ended, 0).number("fnv"), fnv1a(&pattern(MIB)), "{ended}");
        assert!(folder.read("disk") == pattern(MIB));
    }
}

#[test]
fn a_read_only_disk_is_read_and_stays_as_it_is() {
    let folder = Folder::new();
    let content = noise(12, 2 * MIB);
    let path = folder.file("disk", &content);
    let before = folder.snapshot();
    // The check itself holds that a write is answered with an error.
    let ended = probe("check=blk end=poweroff").args(["--disk", &format!("{path},ro")]).end();
    ended.check("blk");
    let facts = disk(&ended, 0);
    assert_eq!(facts.number("ro"), 1);
    assert_eq!(facts.number("fnv"), fnv1a(&content[..MIB]));
    assert_eq!(ended.code(), Some(0), "{ended}");
    assert_eq!(folder.snapshot(), before);
}

#[test]
fn a_file_that_may_only_be_read_is_a_read_only_disk() {
    let folder = Folder::new();
    let content = noise(12, MIB);
    folder.file("disk", &content);
    let launch = probe("check=blk end=poweroff").args(["--disk", "disk,ro"]).folder(folder.path());
    let script =
        r#"exec unshare -m sh -c 'mount --bind . . && mount -o remount,bind,ro . && cd "$PWD" && exec "$@"' sh "$@""#;
    let ended = through_shell(script, &launch).end();
    assert_eq!(disk(&ended, 0).number("fnv"), fnv1a(&content), "{ended}");
}

#[test]
fn the_smallest_disk_is_one_sector() {
    let folder = Folder::new();
    let path = folder.file("disk", &noise(13, SECTOR));
    let ended = probe("check=blk end=poweroff").args(["--disk", &path]).end();
    assert_eq!(disk(&ended, 0).number("capacity"), 1, "{ended}");
    assert!(folder.read("disk") == pattern(SECTOR));
}

#[test]
fn a_sparse_disk_of_a_tebibyte_has_all_its_sectors_and_stays_sparse() {
    let folder = Folder::new();
    let path = folder.sparse("disk", 1 << 40);
    let ended = probe("check=blk end=poweroff").args(["--disk", &path]).end();
    assert_eq!(disk(&ended, 0).number("capacity"), 1 << 31, "{ended}");
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 1 << 40);
    assert!(metadata.blocks() * 512 < 64 << 20, "{} blocks", metadata.blocks());
}

#[test]
fn the_guest_reads_each_disks_id() {
    let folder = Folder::new();
    let path = |name: &str| folder.sparse(name, 64 << 10);
    let options = [
        "--disk".to_owned(),
        path("a"),
        "--disk".to_owned(),
        format!("{},id=data_1", path("b")),
        "--disk".to_owned(),
        // A virtio-blk id has 20 bytes.
        format!("{},id=abcdefghijklmnopqrstuvwxyz", path("c")),
    ];
    let ended = probe("check=blk end=poweroff").args(options).end();
    let ids: Vec<String> = (0..3).map(|n| disk(&ended, n).get("id").to_owned()).collect();
    assert_eq!(ids, ["disk0", "data_1", "abcdefghijklmnopqrst"], "{ended}");
}

#[test]
fn several_disks_keep_their_order_and_their_own_content() {
    let folder = Folder::new();
    let contents: Vec<Vec<u8>> = (0..4).map(|n| noise(20 + n, MIB + 4096 * usize::try_from(n).unwrap())).collect();
    let option = |(n, content): (usize, &Vec<u8>)| {
        // The third can be written.
        let path = folder.file(&format!("disk{n}"), content);
        ["--disk".to_owned(), if n == 2 { path } else { path + ",ro" }]
    };
    let options: Vec<String> = contents.iter().enumerate().flat_map(option).collect();
    let ended = probe("check=blk,indirect end=poweroff").args(options).end();
    ended.check("indirect");
    for (n, content) in contents.iter().enumerate() {
        let facts = disk(&ended, n);
        assert_eq!(facts.number("capacity"), (content.len() / SECTOR) as u64, "{ended}");
        let (expected, file) =
            if n == 2 { (pattern(MIB), folder.read("disk2")) } else { (content[..MIB].to_vec(), content.clone()) };
        assert_eq!(facts.number("fnv"), fnv1a(&expected), "{ended}");
        assert!(file[..MIB] == expected && file[MIB..] == content[MIB..]);
        assert!(n == 2 || folder.read(&format!("disk{n}")) == *content);
    }
}

#[test]
fn each_disk_has_an_address_and_an_interrupt_of_its_own() {
    let folder = Folder::new();
    let options = (0..19).flat_map(|n| ["--disk".to_owned(), folder.sparse(&format!("d{n}"), 4096)]);
    let ended = probe("check=blk end=poweroff").args(options).end();
    let places: Vec<(u64, u64)> =
        (0..19).map(|n| disk(&ended, n)).map(|f| (f.number("addr"), f.number("gsi"))).collect();
    let expected: Vec<(u64, u64)> = (0..19).map(|n| (0xd000_0000 + 0x1000 * n, 5 + n)).collect();
    assert_eq!(places, expected);
}

#[test]
fn a_host_file_system_that_is_full_is_an_error_to_the_guest_and_no_end() {
    let folder = Folder::new();
    let launch = probe("check=blk,cpus end=poweroff").args(["--disk", "disk"]).folder(folder.path());
    let script = "exec unshare -m sh -c '
        mount -t tmpfs -o size=256k none . && cd \"$PWD\" && truncate -s 1M disk && exec \"$@\"' sh \"$@\"";
    let ended = through_shell(script, &launch).end();
    assert!(ended.text().contains("CHECK blk FAIL failed writes"), "{ended}");
    ended.check("cpus");
    assert_eq!(ended.code(), Some(0), "{ended}");
}

#[test]
fn a_limit_of_the_hosts_on_file_sizes_is_an_error_to_the_guest_and_no_end() {
    let folder = Folder::new();
    let path = folder.sparse("disk", MIB as u64);
    let launch = probe("check=blk,cpus end=poweroff").args(["--disk", &path]);
    let ended = through_shell(r#"ulimit -f 16; exec "$@""#, &launch).end();
    assert_eq!((ended.code(), ended.signal()), (Some(0), None), "{ended}");
    assert!(ended.text().contains("CHECK blk FAIL failed writes"), "{ended}");
    ended.check("cpus");
}

#[test]
fn a_disk_that_shrinks_under_the_guest_is_an_error_to_the_guest_and_no_end() {
    let folder = Folder::new();
    let path = folder.file("disk", &noise(30, MIB));
    let mut husk = probe("check=serial,blk,cpus end=poweroff").args(["--disk", &format!("{path},ro")]).typed();
    husk.wait_for("SERIAL WAIT");
    File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    husk.type_in(b"end\n");
    let ended = husk.end();
    assert!(ended.text().contains("CHECK blk FAIL failed reads"), "{ended}");
    ended.check("cpus");
    assert_eq!(ended.code(), Some(0), "{ended}");
}

#[test]
fn after_kill_9_in_the_middle_the_disk_can_be_opened_again() {
    let folder = Folder::new();
    let path = folder.file("disk", &noise(31, 2 * MIB));
    let husk = probe("check=blk,blkbench,blkbench,blkbench,blkbench end=halt").args(["--disk", &path]).start();
    // The first benchmark has begun: requests are in flight.
    husk.wait_for("CHECK blk ok");
    husk.signal(libc::SIGKILL);
    assert_eq!(husk.end().signal(), Some(libc::SIGKILL));
    let file = File::options().read(true).write(true).open(&path).unwrap();
    // io_uring lets a dead process's file go when its own work is done, which takes some tens of milliseconds.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !sys::lock(&file, Lock::Exclusive) {
        assert!(Instant::now() < deadline, "the lock goes with the process");
        std::thread::yield_now();
    }
    drop(file);
    let ended = probe("check=blk end=poweroff").args(["--disk", &path]).end();
    ended.check("blk");
    assert!(folder.read("disk")[..MIB] == pattern(MIB));
}

#[test]
fn a_disk_under_load_is_whole_when_a_signal_ends_the_machine() {
    let folder = Folder::new();
    let path = folder.file("disk", &noise(31, 2 * MIB));
    let husk = probe("check=blk,blkbench,blkbench,blkbench,blkbench end=halt").args(["--disk", &path]).start();
    husk.wait_for("CHECK blk ok");
    husk.signal(libc::SIGTERM);
    let ended = husk.end();
    assert_eq!(ended.code(), Some(0), "{ended}");
    assert_eq!(folder.read("disk").len(), 2 * MIB);
}
