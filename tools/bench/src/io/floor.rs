//! What the bench guest does, done by a plain program: no guest, no rings of virtio's, no interrupts.
//!
//! It prints the guest's lines around the same quiet, so it is measured as a monitor is. Disk requests are plain calls,
//! or an io_uring's where more than one is in flight, except for writes to the page cache, which a ring would hand to a
//! kernel thread; frames are one call each, as the tap wants it.
#![expect(unsafe_code, reason = "an io_uring's entries carry addresses; an eventfd")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::{File, OpenOptions};
use std::io::{self, Error, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types::Fd};

use super::host;

/// The first word of this program's command line when it is the floor.
pub(crate) const FLOOR: &str = "io-floor";

const QUIET: Duration = Duration::from_millis(20);
/// From here on requests go through the disk in order.
const SEQUENTIAL_BYTES_MIN: u64 = 1 << 20;

struct Run<'a> {
    name: &'a str,
    size: u64,
    depth: u32,
    time: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cache {
    Used,
    Passed,
}

/// `io-floor DISK cached|direct run=...`.
pub(crate) fn main(arguments: &[String]) -> io::Result<()> {
    let [disk, cache, runs @ ..] = arguments else { return Err(Error::other("no disk and no cache mode")) };
    let cache = if cache == "direct" { Cache::Passed } else { Cache::Used };
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if cache == Cache::Passed {
        options.custom_flags(libc::O_DIRECT);
    }
    let file = options.open(disk)?;
    for word in runs {
        let run = parse(word)?;
        perform(&file, cache, &Run { time: run.time / 8, ..run })?;
        println!("BENCH-BEGIN {} size={} depth={}", run.name, run.size, run.depth);
        std::thread::sleep(QUIET);
        let start = Instant::now();
        let requests = perform(&file, cache, &run)?;
        let seconds = start.elapsed().as_secs_f64();
        let rate = f64::from(requests) / seconds;
        println!("BENCH {} requests={requests} rate={rate:.0} failed=0 wrong=0", run.name);
        std::thread::sleep(QUIET);
    }
    println!("BENCH-END");
    Ok(())
}

fn parse(word: &str) -> io::Result<Run<'_>> {
    let mut parts = word.strip_prefix("run=").unwrap_or(word).split(':');
    let mut run = Run { name: parts.next().unwrap_or_default(), size: 4096, depth: 1, time: Duration::ZERO };
    for (key, value) in parts.filter_map(|part| part.split_once('=')) {
        if key == "wait" {
            continue;
        }
        let number: u32 = value.parse().map_err(Error::other)?;
        match key {
            "size" => run.size = number.into(),
            "depth" => run.depth = number,
            _ => run.time = Duration::from_millis(number.into()),
        }
    }
    Ok(run)
}

/// Gives the number of requests.
fn perform(file: &File, cache: Cache, run: &Run) -> io::Result<u32> {
    match run.name {
        "blk-read" if run.depth > 1 && run.size < SEQUENTIAL_BYTES_MIN => by_ring(file, run),
        "blk-write" if run.depth > 1 && cache == Cache::Passed => by_ring(file, run),
        "blk-read" => by_calls(file, run, |file, buffer, at| file.read_exact_at(buffer, at)),
        "blk-write" => by_calls(file, run, |file, buffer, at| file.write_all_at(buffer, at)),
        "blk-flush" => by_calls(file, run, |file, buffer, at| {
            file.write_all_at(buffer, at)?;
            file.sync_data()
        }),
        "notify" => ring(run),
        "net-tx" => transmit(run),
        "net-rx" => receive(run),
        other => Err(Error::other(format!("no run {other}"))),
    }
}

/// The guest's sequence of places.
fn place(run: &Run, disk_bytes: u64, number: u32) -> u64 {
    let places = disk_bytes / run.size;
    let number = u64::from(number);
    let random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (if run.size >= SEQUENTIAL_BYTES_MIN { number } else { random }) % places * run.size
}

fn by_calls(file: &File, run: &Run, call: impl Fn(&File, &mut [u8], u64) -> io::Result<()>) -> io::Result<u32> {
    let bytes = file.metadata()?.len();
    let mut pages = Pages::new(run.size)?;
    let (start, mut done) = (Instant::now(), 0);
    while start.elapsed() < run.time {
        let at = place(run, bytes, done);
        let buffer = pages.bytes();
        // The guest marks its blocks, and so must we, or its reads would find none.
        for (block, sector) in buffer.chunks_mut(4096).zip((at / 512..).step_by(8)) {
            block[..8].copy_from_slice(&sector.to_le_bytes());
        }
        call(file, buffer, at)?;
        done += 1;
    }
    Ok(done)
}

fn by_ring(file: &File, run: &Run) -> io::Result<u32> {
    let bytes = file.metadata()?.len();
    let mut ring: IoUring = IoUring::builder().setup_single_issuer().setup_coop_taskrun().build(run.depth)?;
    let mut buffers = (0..run.depth).map(|_| Pages::new(run.size)).collect::<io::Result<Vec<_>>>()?;
    let mut free: Vec<u32> = (0..run.depth).collect();
    let (start, mut begun, mut done) = (Instant::now(), 0, 0);
    loop {
        let goes_on = start.elapsed() < run.time;
        while goes_on && let Some(index) = free.pop() {
            let at = place(run, bytes, begun);
            let buffer = buffers[usize::try_from(index).map_err(Error::other)?].bytes();
            for (block, sector) in buffer.chunks_mut(4096).zip((at / 512..).step_by(8)) {
                block[..8].copy_from_slice(&sector.to_le_bytes());
            }
            let len = u32::try_from(buffer.len()).map_err(Error::other)?;
            let fd = Fd(file.as_raw_fd());
            let entry = match run.name {
                "blk-read" => opcode::Read::new(fd, buffer.as_mut_ptr(), len).offset(at).build(),
                _ => opcode::Write::new(fd, buffer.as_ptr(), len).offset(at).build(),
            };
            // SAFETY: the buffer must hold until the completion = it is in `buffers`, which outlives the ring's work,
            // and its index is not free before.
            unsafe { ring.submission().push(&entry.user_data(index.into())) }.map_err(Error::other)?;
            begun += 1;
        }
        if begun == done {
            return Ok(done);
        }
        ring.submit_and_wait(1)?;
        for completion in ring.completion() {
            if u64::try_from(completion.result()) != Ok(run.size) {
                return Err(Error::from_raw_os_error(completion.result().saturating_neg()));
            }
            free.push(u32::try_from(completion.user_data()).map_err(Error::other)?);
            done += 1;
        }
    }
}

fn transmit(run: &Run) -> io::Result<u32> {
    let mut tap = host::open_tap()?;
    let frame = host::frame(host::TAP_HEADER_BYTES, usize::try_from(run.size).map_err(Error::other)?);
    let (start, mut done) = (Instant::now(), 0);
    while start.elapsed() < run.time {
        tap.write_all(&frame)?;
        done += 1;
    }
    Ok(done)
}

/// A doorbell is an eventfd's write.
fn ring(run: &Run) -> io::Result<u32> {
    // SAFETY: eventfd takes two numbers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let mut bell = unsafe { File::from_raw_fd(fd) };
    let (start, mut done) = (Instant::now(), 0);
    while start.elapsed() < run.time {
        bell.write_all(&1_u64.to_ne_bytes())?;
        done += 1;
    }
    Ok(done)
}

/// From the first frame on. Nobody sends before the run begins, so there is no warm-up.
fn receive(run: &Run) -> io::Result<u32> {
    const WARM_UP_MAX: Duration = Duration::from_millis(100);
    let mut tap = host::open_tap()?;
    let mut buffer = vec![0; 1 << 17];
    if run.time < WARM_UP_MAX {
        return Ok(0);
    }
    let (mut start, mut done) = (None, 0);
    while start.is_none_or(|start: Instant| start.elapsed() < run.time) {
        let _bytes = tap.read(&mut buffer)?;
        start.get_or_insert_with(Instant::now);
        done += 1;
    }
    Ok(done)
}

/// Memory on page boundaries, as O_DIRECT wants it.
struct Pages {
    start: *mut u8,
    layout: Layout,
}

impl Pages {
    fn new(bytes: u64) -> io::Result<Self> {
        let layout = Layout::from_size_align(usize::try_from(bytes.max(1)).map_err(Error::other)?, 4096)
            .map_err(Error::other)?;
        // SAFETY: the layout has a size = at least 1.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() { Err(io::ErrorKind::OutOfMemory.into()) } else { Ok(Self { start, layout }) }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `start` has so many zeroed bytes, which are borrowed as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.layout.size()) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout by `new`, and freed once.
        unsafe { dealloc(self.start, self.layout) }
    }
}
