//! The options of `--disk`, as they show to a guest and on the host.

mod common;

use common::ended::Facts;
use common::folder::Folder;
use common::guest::{fnv1a, noise, probe};

const MIB: usize = 1 << 20;

/// What the probe writes over the first MiB of a disk.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64 / 8).flat_map(|i| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

/// Lets the probe write to a disk with these options; the file must hold what it wrote.
fn serves(options: &str) {
    let folder = Folder::new();
    let content = noise(12, 2 * MIB);
    let path = folder.file("disk", &content);
    let disk = format!("{path}{options}");
    let ended = probe("check=blk end=poweroff").args(["--disk", &disk]).end();
    assert_eq!(ended.code(), Some(0), "{options}: {ended}");
    assert!(!ended.text().contains(" FAIL "), "{options}: {ended}");
    assert_eq!(Facts::of(&ended.line("BLK 0 ")).number("fnv"), fnv1a(&pattern(MIB)), "{options}");
    let after = folder.read("disk");
    assert!(after[..MIB] == pattern(MIB)[..] && after[MIB..] == content[MIB..], "{options}");
}

#[test]
fn every_engine_and_cache_serves_a_guest() {
    for engine in ["io_uring", "sync"] {
        for cache in ["writeback", "writethrough", "direct", "unsafe"] {
            serves(&format!(",engine={engine},cache={cache}"));
        }
    }
}

#[test]
fn queues_threads_polling_and_limits_serve_a_guest() {
    for options in [
        ",queues=4,iothreads=2,queue_size=64",
        ",iothread=shared,poll_us=50",
        ",queues=2,engine=sync,poll_us=1000,iops=2000,bps=100M",
        ",limit_group=all,iops=3000,serial=HUSK-1",
        ",block=512,engine=io_uring,queue_size=1024",
    ] {
        serves(options);
    }
}

#[test]
fn disks_share_a_thread_and_a_limit() {
    let folder = Folder::new();
    let disks = ["a", "b", "c"].map(|name| folder.file(name, &noise(13, MIB)));
    let disks = disks.map(|path| format!("{path},iothread=io,limit_group=g,iops=5000"));
    let [a, b, c] = &disks;
    let ended = probe("check=blk end=poweroff").args(["--disk", a, "--disk", b, "--disk", c]).end();
    assert_eq!(ended.code(), Some(0), "{ended}");
    assert!(!ended.text().contains(" FAIL "), "{ended}");
    for name in ["a", "b", "c"] {
        assert!(folder.read(name) == pattern(MIB), "{name}");
    }
}

#[test]
fn a_disk_is_free_again_as_soon_as_its_guest_has_ended() {
    let folder = Folder::new();
    let path = folder.file("disk", &noise(14, MIB));
    for round in 0..5 {
        let disk = format!("{path},engine=io_uring,cache=direct");
        let ended = probe("check=blk end=poweroff").args(["--disk", &disk]).end();
        assert_eq!(ended.code(), Some(0), "{round}: {ended}");
    }
}

#[test]
fn options_that_cannot_be_are_refused_by_name() {
    let folder = Folder::new();
    let path = folder.file("disk", &noise(15, MIB));
    for (options, code, told) in [
        (",engine=aio", 2, "engine=aio: use io_uring, sync or auto"),
        (",queues=0", 1, "queues=0: use 1 to 64"),
        (",queue_size=100", 1, "queue_size=100: use a power of two from 4 to 1024"),
        (",iothreads=2", 1, "iothreads=2: use 1 to 1, its number of queues"),
        (",serial=123456789012345678901", 1, "use 1 to 20 printable ASCII characters"),
        (",poll_us=5000", 1, "poll_us=5000: use at most 1000"),
        (",physical_block=1000", 1, "physical_block=1000: use a power of two from 512 to 2097152"),
        (",block=4096,physical_block=512", 1, "use physical_block=4096 or more, not 512"),
        (
            ",on_enospc=stop",
            1,
            "disk `disk0`: on_enospc=stop: nobody could resume the machine: give it a control socket",
        ),
    ] {
        let ended = probe("check=blk end=poweroff").args(["--disk", &format!("{path}{options}")]).end();
        assert_eq!(ended.code(), Some(code), "{options}: {ended}");
        assert!(ended.stderr.contains(told), "{options}: {ended}");
    }
    let roots = ["--disk", &format!("{path},root"), "--disk", "other,partuuid=0eaa91a0-01"];
    let ended = probe("check=blk end=poweroff").args(roots).end();
    assert_eq!(ended.code(), Some(1), "{ended}");
    assert!(ended.stderr.contains("disks `disk0` and `disk1` are both the root"), "{ended}");
}
