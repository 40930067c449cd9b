//! Linux, killed and restored again and again from points that were made while it worked.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use common::folder::Folder;
use common::guest::fnv1a;
use common::http::Connection;
use common::linux::{checks_went_well, linux, pattern, sum};
use common::neighbour::{EndsAtLast, Life, Neighbour};
use common::network::{in_network_namespace, tap};
use common::vm::Vm;
use common::{Launch, husk, soaks_in_full};
use serde_json::json;

const SEED: u64 = 80;
const BLOCK: usize = 4096;
/// New requests of the guest between a restore and the next point: most of a second of its life.
const FRESH: u64 = 6;
/// The clock that stands still wherever a restored guest's shall: the development machines' KVM shows a guest the host's own
/// time stamp counter, and takes an offset or a value for it without a word and without an effect.
const CLOCK: &str = "clocksource=kvm-clock";
/// How long the guest is away in the first cycle with each clock, so that it shows. In a soak it is longer than Linux lets a CPU
/// be silent (CONFIG_RCU_CPU_STALL_TIMEOUT, 21 s).
const AWAY: Duration = Duration::from_millis(1500);
const SOAK_AWAY: Duration = Duration::from_secs(25);
/// How late the quickest of some requests may be on a loaded machine.
const LATE: i128 = 500_000_000;

/// What Linux says of itself when something is wrong.
const ALARMS: [&str; 6] = ["WARNING:", "BUG:", "Call Trace", "lockup", "stall", "unstable"];
/// What it says once when a timer interrupt finds the next one due three times in a row: a CPU that is emulated got too little of a
/// loaded host, or had to wait for its pages. A clock that has advanced costs it one time, however far.
const STARVED: &str = "hrtimer: interrupt took";

/// How a point is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    /// Of a machine that runs. It writes to its disk until it is killed, which its load can bear.
    Running,
    /// Of a paused one, with a copy of its disk as it is then: what was under way is on it, or is done after the restore.
    Paused,
}

/// What one cycle does. In twelve of them each kind of point meets each way to bring memory back.
#[derive(Debug, Clone, Copy)]
struct Cycle {
    number: usize,
    made: Made,
    memory: &'static str,
    clock: &'static str,
}

impl Cycle {
    fn of(number: usize) -> Self {
        Self {
            number,
            made: [Made::Running, Made::Paused][number / 3 % 2],
            memory: ["map", "lazy", "copy"][number % 3],
            clock: ["freeze", "realtime"][number % 2],
        }
    }

    /// Chains are of a full point and three increments, each of the point that the machine was restored from.
    fn is_full(self) -> bool {
        self.number.is_multiple_of(4)
    }
}

/// Where a machine's disk and its last point are.
struct Place {
    disk: PathBuf,
    point: Option<PathBuf>,
}

fn started(launch: Launch) -> Vm {
    let folder = Folder::new();
    let husk = launch.args(["--api-sock", &folder.at("s")]).start();
    let client = Connection::open(folder.at("s"));
    Vm { folder, husk, client }
}

/// Makes a point, kills the machine and starts it again from there.
fn cycle(mut vm: Vm, folder: &Path, place: &mut Place, neighbour: &Neighbour, cycle: Cycle) -> Vm {
    if cycle.made == Made::Paused {
        vm.patch("/vm", &json!({ "state": "Paused" })).done();
    }
    let point = folder.join(format!("point{}", cycle.number));
    let parent = place.point.as_ref().filter(|_| !cycle.is_full());
    let earliest = neighbour.exchanges();
    let job = vm.job("/husk/v1/snapshots", &json!({ "path": point, "parent": parent, "track": true }));
    assert_eq!(job["state"], "done", "{cycle:?}: {job}");
    let left = Instant::now();
    if cycle.made == Made::Paused {
        let copy = folder.join(format!("disk{}", cycle.number));
        fs::copy(&place.disk, &copy).unwrap();
        fs::remove_file(std::mem::replace(&mut place.disk, copy)).unwrap();
    }
    vm.husk.signal(libc::SIGKILL);
    let killed = vm.husk.end();
    assert_eq!((killed.signal(), killed.stderr.as_str()), (Some(libc::SIGKILL), ""), "{cycle:?}: {killed}");
    // What its kernel logs from here on is forgotten with the point.
    let alarm = ALARMS.iter().find(|alarm| killed.text().contains(*alarm));
    assert_eq!(alarm, None, "{cycle:?}: {killed}");
    let before = neighbour.next_life();
    let latest = neighbour.exchanges();
    if let Some(old) = place.point.replace(point.clone()) {
        husk(["snapshot", "drop", old.to_str().unwrap()]).end().went_well();
    }
    if cycle.number < 2 {
        // Time itself is what is waited for.
        let away = if soaks_in_full() { SOAK_AWAY } else { AWAY };
        thread::sleep(away.saturating_sub(left.elapsed()));
    }

    let words = ["--memory", cycle.memory, "--clock", cycle.clock, "--track"];
    let disk = format!("root={}", place.disk.display());
    let away = left.elapsed();
    let vm = started(husk(["restore", point.to_str().unwrap(), "--disk", &disk]).args(words));
    vm.husk.wait_for("random: crng reseeded due to virtual machine fork");
    neighbour.wait_for_fresh(FRESH);
    let life = neighbour.life();
    let first = life.first.unwrap();
    assert!((earliest..=latest + 1).contains(&first), "{cycle:?}: {first} is not in {earliest}..={latest}");
    clocks_did_as_asked(cycle, away, before, life);
    vm
}

/// Holds the guest's clocks, the monotonic and the real-time one, against the host's.
#[track_caller]
fn clocks_did_as_asked(cycle: Cycle, away: Duration, before: Life, after: Life) {
    let away = i128::try_from(away.as_nanos()).unwrap();
    for (before, after) in before.behind.unwrap().into_iter().zip(after.behind.unwrap()) {
        let fell_back = after - before;
        match cycle.clock {
            "freeze" => assert!(fell_back > away - LATE, "{cycle:?}: {fell_back} ns of {away}"),
            _ => assert!(fell_back.abs() < LATE, "{cycle:?}: {fell_back} ns of {away}"),
        }
    }
}

#[test]
fn linux_works_on_through_snapshots_kills_and_restores_and_all_its_sums_are_right() {
    let (cycles, disk_bytes) = if soaks_in_full() { (100, 16 << 20) } else { (10, 4 << 20) };
    let folder = Folder::new();
    let mut place = Place { disk: folder.sparse("disk", disk_bytes).into(), point: None };
    in_network_namespace(|| {
        tap("tap9");
        let neighbour = Neighbour::new(SEED);
        thread::scope(|scope| {
            scope.spawn(|| neighbour.run());
            let _ends = EndsAtLast(&neighbour);
            let words = format!("{CLOCK} loglevel=8 husk.seed={SEED} husk.check=load,rng,dmesg husk.end=poweroff");
            let disk = format!("{},id=root", place.disk.display());
            let options = ["--cpus", "2", "--memory", "64M", "--disk", &disk, "--net", "tap=tap9"];
            let mut vm = started(linux(&words).args(options));
            vm.husk.wait_for("LOAD begins");
            neighbour.wait_for_fresh(FRESH);
            for number in 0..cycles {
                vm = cycle(vm, folder.path(), &mut place, &neighbour, Cycle::of(number));
            }
            neighbour.say_enough();
            let ended = vm.husk.end();
            let (exchanges, sent, received) = neighbour.end();
            checks_went_well(&ended, &["load", "rng", "dmesg"], "poweroff");
            let warnings = ended.lines("DMESG ").into_iter().filter(|line| !line.contains(STARVED));
            assert_eq!(warnings.collect::<Vec<_>>(), [""; 0], "{ended}");
            let load = ended.check("load");
            let told = (load.number("exchanges"), sum(&load, "sent_sum"), sum(&load, "received_sum"));
            assert_eq!(told, (exchanges, sent, received), "{ended}");
            let blocks = usize::try_from(load.number("blocks")).unwrap();
            // Each exchange comes after a write of a block or more.
            assert!(blocks as u64 >= exchanges, "{ended}");
            let content = fs::read(&place.disk).unwrap();
            let written = &content[..blocks * BLOCK];
            assert_eq!(sum(&load, "disk_sum"), fnv1a(written), "{ended}");
            for (block, number) in written.chunks(BLOCK).zip(0..) {
                assert!(block == pattern(SEED, number, BLOCK), "block {number}\n{ended}");
            }
        });
    });
}
