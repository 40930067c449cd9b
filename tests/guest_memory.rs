//! Guest memory that the host does not have any more.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs::{self, OpenOptions};
use std::time::{Duration, Instant};

use common::Husk;
use common::folder::Folder;
use common::guest::{PROBE, READY, probe};
use common::sys::Held;

/// Where a guest's image ends in guest memory; what it allocates, its rings too, comes behind (ELF-64: program headers).
fn image_end(image: &str) -> u64 {
    let elf = fs::read(image).unwrap();
    let number = |at: usize, len: usize| {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&elf[at..at + len]);
        u64::from_le_bytes(bytes)
    };
    let at = |value: u64| usize::try_from(value).unwrap();
    let (table, size, count) = (at(number(32, 8)), at(number(54, 2)), at(number(56, 2)));
    let headers = (0..count).map(|index| table + index * size).filter(|&header| number(header, 4) == 1);
    headers.map(|header| number(header + 24, 8) + number(header + 40, 8)).max().unwrap()
}

/// Takes a machine's memory behind its guest's image away, as an empty pool has no page for what was given back.
fn take_memory_away(husk: &Husk, image: &str) {
    let folder = format!("/proc/{}/fd", husk.pid());
    let links = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut memfds =
        links.filter(|path| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("husk-guest")));
    OpenOptions::new()
        .write(true)
        .open(memfds.next().unwrap())
        .unwrap()
        .set_len(image_end(image).next_multiple_of(4096))
        .unwrap();
}

/// How long a disk's limiter will have a request wait from now on: what its timer is set to (proc(5)), the only one of a machine
/// with one disk.
fn limiters_wait(husk: &Husk) -> Duration {
    let folder = format!("/proc/{}/fdinfo", husk.pid());
    let texts = fs::read_dir(folder).unwrap().filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok());
    let set_to = |text: String| {
        let value = text.lines().find_map(|line| line.strip_prefix("it_value: (")?.strip_suffix(')'))?.to_owned();
        let (seconds, nanoseconds) = value.split_once(", ")?;
        Some(Duration::new(seconds.parse().ok()?, nanoseconds.parse().ok()?))
    };
    texts.filter_map(set_to).max().unwrap_or_default()
}

#[test]
fn a_ring_in_memory_that_is_gone_ends_as_a_crash_with_its_address_and_by_no_signal() {
    let folder = Folder::new();
    let disk = format!("{},iops=1", folder.sparse("disk", 1 << 20));
    let options = ["--memory", "64M,shared", "--disk", &disk];
    let husk = probe("check=blkbench end=poweroff").args(options).start();
    husk.wait_for(READY);
    let deadline = Instant::now() + Duration::from_secs(60);
    while limiters_wait(&husk) < Duration::from_millis(500) {
        assert!(Instant::now() < deadline, "the disk has no request that waits");
        std::thread::yield_now();
    }
    // The guest itself would be told by KVM. It is held, and only the disk's thread looks at the ring again, when the
    // limiter lets that request through.
    let vcpu = Held::hold_thread(husk.threads("husk-vcpu0")[0]);
    take_memory_away(&husk, PROBE);
    husk.wait_for_error("guest memory");
    vcpu.release();
    let ended = husk.end();
    assert_eq!((ended.code(), ended.signal()), (Some(3), None), "{ended}");
    assert!(ended.stderr.contains("husk: husk-io-disk0: guest memory at guest address 0x"), "{ended}");
    assert!(ended.stderr.contains("(SIGBUS)"), "{ended}");
}

#[test]
fn a_guest_that_touches_memory_that_is_gone_ends_as_a_crash_and_by_no_signal() {
    const BENCH: &str = env!("HUSK_GUEST_BENCH");
    let words =
        ["run", "--kernel", BENCH, "--memory", "64M,shared", "--cmdline", "run=touch:size=65536:us=100:ms=60000"];
    let husk = common::husk(words).start();
    husk.wait_for("BENCH-BEGIN touch");
    take_memory_away(&husk, BENCH);
    let ended = husk.end();
    assert_eq!((ended.code(), ended.signal()), (Some(3), None), "{ended}");
    // Its address too, where KVM tells (KVM api: KVM_EXIT_MEMORY_FAULT); of what an anonymous or a shared file lacks, it tells none.
    assert!(ended.stderr.contains("husk: vcpu 0: guest memory that the host cannot give"), "{ended}");
    assert!(ended.stderr.contains("(EFAULT) at rip 0x") && !ended.stderr.contains("SIGBUS"), "{ended}");
}
