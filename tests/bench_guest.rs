//! The bench guest on husk, for few requests: what it counts is what the host finds, so its figures can be believed.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::net::UdpSocket;
use std::process::Command;

use common::ended::{Ended, Facts};
use common::folder::Folder;
use common::network::{HOST, in_network_namespace, ip, tap};
use common::{Launch, husk};

/// resources/guest/small/bench.
const BENCH: &str = env!("HUSK_GUEST_BENCH");
const BLOCK: usize = 4096;
const SECTOR: usize = 512;

fn bench(runs: &str) -> Launch {
    husk(["run", "--kernel", BENCH, "--memory", "128M", "--cmdline", runs])
}

/// The figures of each run, in order.
#[track_caller]
fn figures(ended: &Ended, runs: usize) -> Vec<Facts> {
    assert!(ended.lines("BENCH-FAIL").is_empty(), "{ended}");
    let figures: Vec<Facts> = ended.lines("BENCH ").iter().map(|line| Facts::of(line)).collect();
    assert_eq!((figures.len(), ended.lines("BENCH-BEGIN ").len()), (runs, runs), "{ended}");
    assert!(figures.iter().all(|facts| facts.number("ns") > 0 && facts.number("rate") > 0), "{ended}");
    figures
}

#[test]
fn requests_that_the_bench_guest_counts_are_in_the_file() {
    const WRITES: u64 = 100;
    let folder = Folder::new();
    let path = folder.file("disk", &vec![0; 16 << 20]);
    let runs = format!(
        "run=blk-write:depth=32:count={WRITES} run=blk-read:depth=4:count=200 run=blk-read:count=50:wait=sleep \
         run=blk-flush:count=5 run=blk-read:size=1048576:depth=2:count=4 run=notify:count=10 run=spin:count=20000"
    );
    for tables in ["on", "off"] {
        let ended = bench(&runs).args(["--disk", &path, "--acpi", tables]).end().went_well();
        let figures = figures(&ended, 7);
        let counts: Vec<u64> = figures.iter().map(|facts| facts.number("requests")).collect();
        assert_eq!(counts, [WRITES, 200, 50, 5, 4, 10, 20_000]);
        for facts in &figures[..5] {
            assert_eq!((facts.number("failed"), facts.number("wrong")), (0, 0), "{ended}");
            assert!(facts.number("p50_ns") > 0 && facts.number("p50_ns") <= facts.number("p999_ns"), "{ended}");
        }
    }
    let disk = folder.read("disk");
    let marks = disk.chunks(BLOCK).enumerate().filter(|(_, block)| block[..8] != [0; 8]);
    let places = (1..WRITES).map(|number| (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % 4096);
    let distinct: std::collections::BTreeSet<u64> = places.collect();
    let marked: Vec<usize> = marks.map(|(block, _)| block).collect();
    assert_eq!(marked, distinct.iter().map(|place| usize::try_from(*place).unwrap()).collect::<Vec<_>>());
    for block in marked {
        assert_eq!(disk[block * BLOCK..][..8], ((block * BLOCK / SECTOR) as u64).to_le_bytes());
    }
}

#[test]
fn accesses_are_as_many_as_were_asked_for_in_an_area_that_has_all_of_its_pages() {
    const AREA: u64 = 64 << 20;
    // The last run is there to be looked at.
    let husk = bench(&format!("run=access:size={AREA}:count=2500 run=access:size=8:count=1 run=spin:ms=60000")).start();
    husk.wait_for("BENCH-BEGIN spin");
    let status = std::fs::read_to_string(format!("/proc/{}/status", husk.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident_kib: u64 = resident.trim_end_matches("kB").trim().parse().unwrap();
    husk.signal(libc::SIGTERM);
    let figures = husk.end().lines("BENCH access");
    let figures: Vec<Facts> = figures.iter().map(|line| Facts::of(line)).collect();
    let counts: Vec<u64> = figures.iter().map(|facts| facts.number("requests")).collect();
    assert_eq!(counts, [2500, 1]);
    assert!(figures.iter().all(|facts| facts.number("rate") > 0));
    assert!(resident_kib << 10 >= AREA, "{resident_kib} KiB are there");
}

#[test]
fn a_block_that_is_not_what_it_should_be_is_counted() {
    let folder = Folder::new();
    let path = folder.file("disk", &vec![0x11; 1 << 20]);
    let ended = bench("run=blk-read:count=20").args(["--disk", &path]).end().went_well();
    assert_eq!(figures(&ended, 1)[0].number("wrong"), 20);
}

/// Frames that the host has received from a guest.
fn received(tap: &str) -> u64 {
    let output = Command::new("ip").args(["-s", "-j", "link", "show", tap]).output().unwrap();
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    links[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}

#[test]
fn frames_that_the_bench_guest_counts_cross_the_tap() {
    in_network_namespace(|| {
        tap("tap7");
        ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:07 dev tap7");
        let runs = "run=net-tx:size=64:count=300 run=net-tx:size=1500:count=300 run=net-tx:size=65535:count=40 \
                    run=net-rx:size=1000:count=50";
        let husk = bench(runs).args(["--net", "tap=tap7,mac=02:00:00:00:00:07"]).start();
        husk.wait_for("BENCH-BEGIN net-rx");
        assert_eq!(received("tap7"), 640);
        let socket = UdpSocket::bind((HOST, 0)).unwrap();
        // With its UDP, IP and Ethernet headers each is of the size that is counted.
        let data = [0; 1000 - 8 - 20 - 14];
        for _ in 0..50 {
            socket.send_to(&data, "192.0.2.2:9").unwrap();
        }
        let ended = husk.end().went_well();
        let counts: Vec<u64> = figures(&ended, 4).iter().map(|facts| facts.number("requests")).collect();
        assert_eq!(counts, [300, 300, 40, 50]);
    });
}

#[test]
fn a_run_that_cannot_be_is_said_to_fail() {
    let ended = bench("run=blk-read run=nonsense run=blk-read:depth=x run=access:size=7").end();
    assert_eq!(ended.lines("BENCH-FAIL ").len(), 4, "{ended}");
    assert_eq!(ended.lines("BENCH-END").len(), 1, "{ended}");
}

/// How often threads other than vCPUs have gone to sleep or been sent there.
fn switches(pid: u32) -> u64 {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let path = task.unwrap().path();
        if std::fs::read_to_string(path.join("comm")).unwrap().contains("vcpu") {
            continue;
        }
        let status = std::fs::read_to_string(path.join("status")).unwrap();
        let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
        sum += counts.map(|line| line.split_whitespace().last().unwrap().parse::<u64>().unwrap()).sum::<u64>();
    }
    sum
}

#[test]
fn an_idle_disk_and_card_wake_nobody() {
    in_network_namespace(|| {
        tap("tap7");
        let folder = Folder::new();
        let path = folder.file("disk", &vec![0; 1 << 20]);
        // Both were busy; then the guest waits for a frame that nobody sends, and looks at its used ring only.
        let runs = "run=net-tx:count=100 run=blk-read:count=100 run=net-rx:size=9999";
        let options = ["--net", "tap=tap7,mac=02:00:00:00:00:07", "--disk", &path];
        let husk = bench(runs).args(options).start();
        husk.wait_for("BENCH-BEGIN net-rx");
        ip("link set tap7 down");
        // The line itself is written by a thread of husk's. Another machine's whole life is the time that passes.
        bench("run=blk-read:count=1").args(["--disk", &folder.file("other", &[0; 1 << 20])]).end().went_well();
        let before = switches(husk.pid());
        bench("run=blk-read:ms=200").args(["--disk", &folder.file("third", &[0; 1 << 20])]).end().went_well();
        assert_eq!(switches(husk.pid()) - before, 0);
        husk.signal(libc::SIGTERM);
        assert_eq!(husk.end().code(), Some(0));
    });
}
