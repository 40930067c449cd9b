//! `tools/dev bench snapshot`.

mod lazy;
mod logged;
mod machine;
mod qemu;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use machine::Machine;
use qemu::Qemu;
use serde_json::json;

use crate::child::Measured;
use crate::peer::Artifacts;
use crate::report::Row;
use crate::stats::median;
use crate::{BenchError, Wanted};

const SNAPSHOTS: usize = 11;
const RESTORES: usize = 31;
const CLONES: usize = 100;
const LIMIT: Duration = Duration::from_secs(30);
/// The kernel goes on taking a VM apart after its process has been reaped; the next one must not pay for it.
const SETTLE: Duration = Duration::from_millis(40);
/// A guest that touches almost nothing.
const QUIET: &str = "run=touch:size=65536:us=20000:ms=3600000";
/// One that tells soon that it goes on.
const LIVELY: &str = "run=touch:size=65536:us=20:ms=3600000";
/// One that writes 10 MiB/s: a page each 390 us.
const WRITING: &str = "run=touch:size=67108864:us=390:ms=3600000";
/// What that guest writes, and what the one-instruction guest does.
const STEP: &str = ".";
const FIRST_BYTE: &str = "!";

pub(crate) fn run(wanted: &Wanted) -> Result<Vec<Row>, BenchError> {
    let artifacts = Artifacts::find()?;
    let place = Place::make(&artifacts)?;
    let mut rows = Vec::new();
    for (name, mib) in [("snapshot-paused-128m", 128), ("snapshot-paused-1g", 1024)] {
        if wanted.has(name) {
            rows.push(paused(&artifacts, &place, name, mib)?);
        }
    }
    if wanted.has("snapshot-nothing-dirty") {
        rows.push(nothing_dirty(&artifacts, &place)?);
    }
    if wanted.has("snapshot-pause-running-1g") {
        rows.push(running(&artifacts, &place)?);
    }
    if wanted.has("dirty-log-writes") {
        rows.push(logged::writes(&artifacts, &place)?);
    }
    for (name, mib) in [("restore-map-128m", 128), ("restore-map-1g", 1024), ("restore-map-6g", 6144)] {
        if wanted.has(name) {
            rows.push(restored(&artifacts, &place, name, mib)?);
        }
    }
    if wanted.has("restore-map-growth") {
        rows.push(growth(&artifacts, &place)?);
    }
    if wanted.has("restore-lazy-recorded") {
        rows.push(lazy::recorded(&artifacts, &place)?);
    }
    if wanted.has("clones-100") {
        rows.extend(clones(&artifacts, &place)?);
    }
    Ok(rows)
}

/// From the request to the files' being durable, of a paused machine.
fn paused(artifacts: &Artifacts, place: &Place, name: &str, mib: u64) -> Result<Row, BenchError> {
    let mut machine = Machine::start(artifacts, place, mib, QUIET)?;
    machine.pause()?;
    let mut qemu = Qemu::start(artifacts, place, mib, QUIET)?;
    let (state, memory, file) = (place.at("state"), place.at("memory"), place.at("qemu"));
    let (mut husk, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..SNAPSHOTS {
        remove([&state, &memory, &place.at("memory.idx"), &file]);
        let body = json!({ "snapshot_path": state, "mem_file_path": memory });
        let begun = Instant::now();
        machine.ask("PUT", "/snapshot/create", &body)?;
        husk.push(milliseconds(begun.elapsed()));
        peer.push(milliseconds(qemu.save(&file)?));
    }
    let peer = median(peer).map(|figure| ("qemu-microvm", figure));
    Ok(Row::less_is_better(name, "ms", median(husk), peer, None))
}

/// What an increment takes without the disk, where nothing was written since.
fn nothing_dirty(artifacts: &Artifacts, place: &Place) -> Result<Row, BenchError> {
    let mut machine = Machine::start(artifacts, place, 128, QUIET)?;
    machine.pause()?;
    let mut parent = place.at("points/0");
    machine.snapshot(&json!({ "path": parent, "track": true }))?;
    let mut figures = Vec::new();
    for number in 1..=SNAPSHOTS {
        let path = place.at(&format!("points/{number}"));
        let job = machine.snapshot(&json!({ "path": path, "parent": parent, "track": true }))?;
        figures.push((job.total_us - job.sync_us) / 1e3);
        parent = path;
    }
    place.clear();
    Ok(Row::less_is_better("snapshot-nothing-dirty", "ms", median(figures), None, None))
}

/// How long a machine that writes 10 MiB/s is held for a full snapshot.
fn running(artifacts: &Artifacts, place: &Place) -> Result<Row, BenchError> {
    let mut machine = Machine::start(artifacts, place, 1024, WRITING)?;
    let mut figures = Vec::new();
    for number in 0..SNAPSHOTS {
        let path = place.at(&format!("points/{number}"));
        figures.push(machine.snapshot(&json!({ "path": path }))?.pause_us / 1e3);
    }
    place.clear();
    Ok(Row::less_is_better("snapshot-pause-running-1g", "ms", median(figures), None, None))
}

/// From exec to the first step of a guest whose memory is mapped, beside a cold boot of the same size.
fn restored(artifacts: &Artifacts, place: &Place, name: &str, mib: u64) -> Result<Row, BenchError> {
    let point = point(artifacts, place, mib, LIVELY)?;
    let restore = || restore(artifacts, &point);
    let boot = || artifacts.husk(&artifacts.first, mib, 1);
    let time = |command: Command, wanted: &str| {
        std::thread::sleep(SETTLE);
        Measured::start(command, wanted, LIMIT).map(|measured| milliseconds(measured.took))
    };
    // One of each that does not count: the page cache is warm from then on.
    time(restore(), STEP)?;
    time(boot(), FIRST_BYTE)?;
    let pairs = (0..RESTORES).map(|_| Ok((time(restore(), STEP)?, time(boot(), FIRST_BYTE)?)));
    let (restored, booted): (Vec<_>, Vec<_>) = pairs.collect::<Result<Vec<_>, BenchError>>()?.into_iter().unzip();
    place.clear();
    Ok(Row::less_is_better(name, "ms", median(restored), Some(("cold boot", median(booted).unwrap_or(f64::NAN))), None))
}

/// By how much husk's own part of a restore grows from 128 MiB to 6 GiB: what it takes beyond the floor of the same size, in
/// rounds of all four.
fn growth(artifacts: &Artifacts, place: &Place) -> Result<Row, BenchError> {
    let sizes = [128, 6144];
    let mut points = Vec::new();
    for mib in sizes {
        let made = point(artifacts, place, mib, LIVELY)?;
        let kept = place.at(&format!("points/{mib}"));
        std::fs::rename(&made, &kept)
            .map_err(|source| BenchError::Proc { path: made.display().to_string(), source })?;
        points.push(kept);
    }
    let time = |command: Command, wanted: &str| {
        std::thread::sleep(SETTLE);
        Measured::start(command, wanted, LIMIT).map(|measured| milliseconds(measured.took))
    };
    let mut beyond = [Vec::new(), Vec::new()];
    for round in 0..=RESTORES {
        for ((point, mib), beyond) in points.iter().zip(sizes).zip(&mut beyond) {
            let own = time(restore(artifacts, point), STEP)? - time(artifacts.floor(mib, 1), FIRST_BYTE)?;
            // The first round warms the page cache.
            beyond.extend((round > 0).then_some(own));
        }
    }
    place.clear();
    let [small, large] = beyond.map(median);
    let grown = small.zip(large).map(|(small, large)| large - small);
    Ok(Row::less_is_better("restore-map-growth", "ms", grown, None, None))
}

/// From the first exec to the last of all clones' being there, before they run; and what memory each has to itself.
fn clones(artifacts: &Artifacts, place: &Place) -> Result<[Row; 2], BenchError> {
    let point = point(artifacts, place, 128, QUIET)?;
    let begun = Instant::now();
    let mut clones = Vec::with_capacity(CLONES);
    for number in 0..CLONES {
        let mut command = restore(artifacts, &point);
        command.arg("--paused");
        clones.push(Machine::spawn(command, place.at(&format!("clone{number}")))?);
    }
    clones.iter_mut().try_for_each(Machine::wait_until_paused)?;
    let took = begun.elapsed();
    let unique = clones.iter().map(Machine::unique_kib).collect::<Result<Vec<_>, _>>()?;
    drop(clones);
    place.clear();
    let row = |name, unit, figure| Row::less_is_better(name, unit, figure, None, None);
    Ok([row("clones-100", "ms", Some(milliseconds(took))), row("clones-100-unique", "KiB", median(unique))])
}

fn restore(artifacts: &Artifacts, point: &Path) -> Command {
    let mut command = Command::new(&artifacts.husk);
    command.arg("restore").arg(point).args(["--memory", "map"]);
    command
}

/// A point of a machine that has run for a while.
fn point(artifacts: &Artifacts, place: &Place, mib: u64, words: &str) -> Result<PathBuf, BenchError> {
    let mut machine = Machine::start(artifacts, place, mib, words)?;
    machine.pause()?;
    let point = place.at("points/0");
    machine.snapshot(&json!({ "path": point }))?;
    Ok(point)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn remove<const N: usize>(paths: [&PathBuf; N]) {
    for path in paths {
        // One that is not there yet is as it should be.
        let _ = std::fs::remove_file(path);
    }
}

/// A folder for what the benchmark makes; gone when it ends.
struct Place(PathBuf);

impl Place {
    fn make(artifacts: &Artifacts) -> Result<Self, BenchError> {
        let place = Self(artifacts.husk.with_file_name("bench-snapshot"));
        place.clear();
        let made = std::fs::create_dir_all(place.at("points"));
        made.map_err(|source| BenchError::Proc { path: place.0.display().to_string(), source })?;
        Ok(place)
    }

    fn at(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        std::path::absolute(&path).unwrap_or(path)
    }

    /// Removes all points.
    fn clear(&self) {
        let points = self.at("points");
        let _ = std::fs::remove_dir_all(&points);
        let _ = std::fs::create_dir_all(&points);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A failure leaves a folder in target/.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
