//! Reads of a disk, past the page cache.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::{DiskFigures, FIGURE_TIME, Quantiles};
use crate::time::microseconds;

const READ_BYTES: usize = 4096;
/// Requests under way at once.
const READERS: u64 = 16;

pub(super) fn measure(path: &Path) -> io::Result<DiskFigures> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT | libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let blocks = file.seek(SeekFrom::End(0))? / READ_BYTES as u64;
    if blocks == 0 {
        return Err(io::Error::other(format!("it is smaller than the {READ_BYTES} bytes of one read")));
    }
    let latency = Quantiles::of(read_for(FIGURE_TIME * 2, &file, blocks, 0)?).ok_or(io::ErrorKind::TimedOut)?;
    let began = Instant::now();
    let reads = thread::scope(|scope| {
        let file = &file;
        let reading: Vec<_> =
            (1..=READERS).map(|seed| scope.spawn(move || read_for(FIGURE_TIME * 2, file, blocks, seed))).collect();
        reading.into_iter().try_fold(0, |sum, thread| {
            Ok::<_, io::Error>(sum + thread.join().expect("a measurement does not panic")?.len() as u64)
        })
    })?;
    let took_us = microseconds(began.elapsed());
    Ok(DiskFigures { latency, reads_s: reads.saturating_mul(1_000_000) / took_us.max(1) })
}

/// Reads at random places for a while, at least once; how long each read took.
fn read_for(time: Duration, file: &File, blocks: u64, seed: u64) -> io::Result<Vec<Duration>> {
    // O_DIRECT takes a buffer that begins on a block's boundary.
    let mut space = vec![0u8; 2 * READ_BYTES];
    let start = space.as_ptr().align_offset(READ_BYTES);
    let buffer = &mut space[start..start + READ_BYTES];
    let (began, mut took) = (Instant::now(), Vec::new());
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    loop {
        // Marsaglia's xorshift64.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let before = Instant::now();
        file.read_exact_at(buffer, random % blocks * READ_BYTES as u64)?;
        took.push(before.elapsed());
        if began.elapsed() >= time {
            return Ok(took);
        }
    }
}
