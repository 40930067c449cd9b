//! A restore by `lazy` whose working set is recorded: until that is there, beside a program that reads as many bytes.
#![expect(unsafe_code, reason = "lseek to data and to holes has no safe interface in std")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use super::machine::Machine;
use super::{LIMIT, Place, SETTLE, SNAPSHOTS, milliseconds};
use crate::BenchError;
use crate::peer::Artifacts;
use crate::report::Row;
use crate::stats::median;

/// A guest that has written 256 MiB.
const WRITTEN: &str = "run=touch:size=268435456:count=65536 run=touch:size=4096:us=20000:ms=3600000";
const AREA_BYTES: u64 = 256 << 20;
/// The pager brings so much at once, and records it as one.
const UNIT_BYTES: u64 = 2 << 20;
const SHARE: f64 = 0.95;

pub(super) fn recorded(artifacts: &Artifacts, place: &Place) -> Result<Row, BenchError> {
    let point = place.at("points/0");
    let mut machine = Machine::start(artifacts, place, 512, WRITTEN)?;
    while machine.resident_bytes()? < AREA_BYTES {
        std::thread::sleep(SETTLE);
    }
    machine.pause()?;
    machine.snapshot(&serde_json::json!({ "path": point }))?;
    drop(machine);
    let failed = |source| BenchError::Proc { path: point.display().to_string(), source };
    let units = units_with_data(&point.join("memory")).map_err(failed)?;
    // A guest would want them by and by, and the background be faster: the record says that all of it is wanted.
    let record = [b"HUSKWSET".to_vec(), units.iter().flat_map(|unit| unit.to_le_bytes()).collect()].concat();
    let bytes = units.len() as u64 * UNIT_BYTES;
    let (mut husk, mut floor) = (Vec::new(), Vec::new());
    for round in 0..=SNAPSHOTS {
        std::fs::write(point.join("memory.ws"), &record).map_err(failed)?;
        let mut command = std::process::Command::new(&artifacts.husk);
        command.arg("restore").arg(&point).args(["--memory", "lazy", "--paused"]);
        std::thread::sleep(SETTLE);
        let begun = Instant::now();
        let machine = Machine::spawn(command, place.at("lazy"))?;
        while (machine.resident_bytes()? as f64) < SHARE * bytes as f64 {
            if begun.elapsed() > LIMIT {
                return Err(failed(std::io::Error::other("the working set does not come")));
            }
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        let took = milliseconds(begun.elapsed());
        drop(machine);
        let read = read_all(&point.join("memory"), &units).map_err(failed)?;
        // The first round warms the page cache.
        if round > 0 {
            husk.push(took);
            floor.push(read);
        }
    }
    place.clear();
    Ok(Row::less_is_better("restore-lazy-recorded", "ms", median(husk), None, median(floor)))
}

/// The units of a memory file that are not all hole.
fn units_with_data(memory: &Path) -> std::io::Result<Vec<u32>> {
    let file = File::open(memory)?;
    let mut units: Vec<u32> = Vec::new();
    let mut offset = 0;
    loop {
        // SAFETY: lseek takes a descriptor = an open one, and two numbers.
        let data = unsafe { libc::lseek(file.as_raw_fd(), offset, libc::SEEK_DATA) };
        if data < 0 {
            return Ok(units);
        }
        // SAFETY: as above.
        offset = unsafe { libc::lseek(file.as_raw_fd(), data, libc::SEEK_HOLE) };
        let unit = |byte: i64| u32::try_from(byte.unsigned_abs() / UNIT_BYTES).unwrap_or(u32::MAX);
        let after = units.last().map_or(0, |last| last + 1);
        units.extend(unit(data).max(after)..=unit(offset - 1));
    }
}

/// How long one thread takes to read these units into fresh memory, in milliseconds.
fn read_all(memory: &Path, units: &[u32]) -> std::io::Result<f64> {
    let file = File::open(memory)?;
    let begun = Instant::now();
    let unit_bytes = usize::try_from(UNIT_BYTES).map_err(std::io::Error::other)?;
    let mut bytes = vec![0; unit_bytes * units.len()];
    for (unit, place) in units.iter().zip(bytes.chunks_mut(unit_bytes)) {
        file.read_exact_at(place, u64::from(*unit) * UNIT_BYTES)?;
    }
    Ok(milliseconds(begun.elapsed()))
}
