//! Where a serial port's output goes: a bounded buffer, and the thread that empties it.
//!
//! vCPU threads fill the buffer and never wait for what is behind it. The thread writes to the owner's descriptor and may
//! wait there as long as it likes: what does not fit meanwhile is dropped and counted.
#![expect(unsafe_code, reason = "a write that does not wait has no safe interface")]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::bus::lock;
use crate::limit::{Bucket, Rate};

/// What a guest can be ahead of a slow terminal.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// Bytes that end a pause early, so that a fast guest does not fill the buffer during one.
const BATCH_BYTES: usize = 4 << 10;

/// After a write the thread gathers for this long: a guest writes byte by byte, and each wake-up costs it a
/// system call. The first byte after a silence goes out at once.
const GATHER: Duration = Duration::from_millis(1);

/// The thread calls nothing deep.
const STACK_BYTES: usize = 128 << 10;

/// What happened to a guest's output.
#[derive(Debug, Default)]
pub struct ConsoleCounters {
    /// Bytes that the descriptor took.
    pub written_bytes: AtomicU64,
    /// Bytes that were lost: the buffer full, or the descriptor broken.
    pub dropped_bytes: AtomicU64,
    /// Bytes that were dropped: beyond the limit.
    pub limited_bytes: AtomicU64,
}

/// The owner's end of a console: it lives as long as the machine.
pub struct ConsoleOutput {
    shared: Arc<Shared>,
}

/// What a thread is made of.
struct Prepared {
    name: String,
    output: OwnedFd,
}

/// The guest's end of a console, for one [`super::Serial`].
#[derive(Clone)]
pub struct ConsoleWriter {
    shared: Arc<Shared>,
}

struct Shared {
    buffer: Mutex<Buffer>,
    /// The thread, until it runs.
    prepared: Mutex<Option<Prepared>>,
    /// Something to write, or an end to the gathering.
    filled: Condvar,
    /// Nothing left to write.
    emptied: Condvar,
    counters: ConsoleCounters,
}

#[derive(Default)]
struct Buffer {
    bytes: VecDeque<u8>,
    meter: Option<Meter>,
    thread: ThreadState,
    /// Somebody waits in `drain`, or the owner is gone: no gathering any more.
    hurry: bool,
    closed: bool,
    broken: bool,
}

/// A limit, and when its time begins.
struct Meter {
    bucket: Bucket,
    started: Instant,
}

impl Meter {
    /// Whether so many bytes may go now; if so, they are counted.
    fn lets(&mut self, bytes: usize) -> bool {
        let now_ns = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let goes = self.bucket.wait_ns(as_u64(bytes), now_ns) == 0;
        if goes {
            self.bucket.take(as_u64(bytes));
        }
        goes
    }
}

#[derive(Default, PartialEq, Eq)]
enum ThreadState {
    /// There is no thread yet.
    #[default]
    Prepared,
    /// Waiting for bytes.
    Idle,
    Gathering,
    Writing,
}

impl ConsoleOutput {
    /// A console whose output goes to `output`: a terminal, a pipe, a file or a socket, blocking or not. Its thread will
    /// be called `name`.
    pub fn new(name: &str, output: OwnedFd) -> Self {
        let shared = Arc::new(Shared {
            buffer: Mutex::default(),
            prepared: Mutex::new(Some(Prepared { name: name.to_owned(), output })),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            counters: ConsoleCounters::default(),
        });
        Self { shared }
    }

    /// The guest's end. What is written to it is written on until the console is dropped.
    pub fn writer(&self) -> ConsoleWriter {
        ConsoleWriter { shared: Arc::clone(&self.shared) }
    }

    /// Starts the thread, if it does not run yet. The first byte that the descriptor does not take at once does that too.
    ///
    /// # Errors
    /// That of its creation; then the output is broken.
    pub fn start(&self) -> io::Result<()> {
        self.shared.start()
    }

    /// Holds what the guest writes from now on to `rate`, in bytes. What is beyond is dropped: a vCPU does not wait.
    pub fn limit(&self, rate: Option<Rate>) {
        let meter = rate.map(|rate| Meter { bucket: Bucket::new(rate), started: Instant::now() });
        lock(&self.shared.buffer).meter = meter;
    }

    /// What has been written and lost.
    pub fn counters(&self) -> &ConsoleCounters {
        &self.shared.counters
    }

    /// Waits until all that the guest wrote before is out, at most until `deadline`. True if it is.
    pub fn drain(&self, deadline: Instant) -> bool {
        let mut buffer = lock(&self.shared.buffer);
        buffer.hurry = true;
        self.shared.filled.notify_one();
        let left = deadline.saturating_duration_since(Instant::now());
        let (mut buffer, _) = self
            .shared
            .emptied
            .wait_timeout_while(buffer, left, |buffer| !buffer.is_drained())
            .expect("a thread panicked with the console's lock held, which aborts the process");
        buffer.hurry = false;
        buffer.is_drained()
    }
}

impl std::fmt::Debug for ConsoleOutput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleOutput").field("counters", self.counters()).finish_non_exhaustive()
    }
}

impl Drop for ConsoleOutput {
    fn drop(&mut self) {
        lock(&self.shared.buffer).closed = true;
        self.shared.filled.notify_one();
        // Without a thread nobody else closes the descriptor.
        drop(lock(&self.shared.prepared).take());
    }
}

impl Buffer {
    fn is_drained(&self) -> bool {
        self.broken || (self.bytes.is_empty() && self.thread != ThreadState::Writing)
    }
}

impl Shared {
    fn start(self: &Arc<Self>) -> io::Result<()> {
        let Some(Prepared { name, output }) = lock(&self.prepared).take() else { return Ok(()) };
        let theirs = Arc::clone(self);
        // The thread is never joined: it may be inside a write that never ends. It owns what it uses.
        let thread = thread::Builder::new().name(name).stack_size(STACK_BYTES);
        let started = thread.spawn(move || theirs.write_all_to(File::from(output)));
        started.map(|_| ()).inspect_err(|_| self.break_off(0))
    }

    /// Writes what the descriptor takes without waiting, while there is no thread: to make one, or to wake it, would take
    /// the guest's first byte as long as all the way to it from the guest's first instruction. The rest is the thread's.
    fn write_at_once(&self, buffer: &mut Buffer) {
        if let Some(Prepared { output, .. }) = &*lock(&self.prepared) {
            let written = write_nowait(output, buffer.bytes.make_contiguous());
            buffer.bytes.drain(..written);
            self.counters.written_bytes.fetch_add(as_u64(written), Ordering::Relaxed);
        }
    }

    /// The thread's loop. It ends when the owner is gone and the buffer empty, or the descriptor broken.
    fn write_all_to(&self, mut output: File) {
        let mut batch = Vec::new();
        while self.take(&mut batch) {
            let written = write_blocking(&mut output, &batch);
            self.counters.written_bytes.fetch_add(as_u64(written), Ordering::Relaxed);
            if written < batch.len() {
                self.break_off(batch.len() - written);
                return;
            }
            self.gather();
        }
    }

    /// Waits for bytes and moves all of them to `batch`. False at the end.
    fn take(&self, batch: &mut Vec<u8>) -> bool {
        batch.clear();
        let mut buffer = lock(&self.buffer);
        buffer.thread = ThreadState::Idle;
        if buffer.bytes.is_empty() {
            self.emptied.notify_all();
        }
        let mut buffer = self
            .filled
            .wait_while(buffer, |buffer| buffer.bytes.is_empty() && !buffer.closed)
            .expect("a thread panicked with the console's lock held, which aborts the process");
        buffer.thread = ThreadState::Writing;
        batch.extend(buffer.bytes.drain(..));
        !batch.is_empty()
    }

    fn gather(&self) {
        let mut buffer = lock(&self.buffer);
        buffer.thread = ThreadState::Gathering;
        if buffer.bytes.is_empty() {
            self.emptied.notify_all();
        }
        let gathered = self.filled.wait_timeout_while(buffer, GATHER, |buffer| {
            !buffer.hurry && !buffer.closed && buffer.bytes.len() < BATCH_BYTES
        });
        drop(gathered);
    }

    fn break_off(&self, unwritten: usize) {
        let mut buffer = lock(&self.buffer);
        buffer.broken = true;
        let lost = unwritten + buffer.bytes.len();
        buffer.bytes = VecDeque::new();
        self.counters.dropped_bytes.fetch_add(as_u64(lost), Ordering::Relaxed);
        self.emptied.notify_all();
    }
}

/// What bytes in the buffer ask of the thread.
enum Next {
    Nothing,
    Wake,
    Start,
}

impl Write for ConsoleWriter {
    /// Takes all of `bytes`, or drops and counts what does not fit. Never waits, never fails.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut buffer = lock(&self.shared.buffer);
        let room = if buffer.broken { 0 } else { BUFFER_BYTES_MAX - buffer.bytes.len() };
        let fits = bytes.len().min(room);
        self.shared.counters.dropped_bytes.fetch_add(as_u64(bytes.len() - fits), Ordering::Relaxed);
        if buffer.meter.as_mut().is_none_or(|meter| meter.lets(fits)) {
            buffer.bytes.extend(&bytes[..fits]);
        } else {
            self.shared.counters.limited_bytes.fetch_add(as_u64(fits), Ordering::Relaxed);
        }
        if buffer.thread == ThreadState::Prepared {
            self.shared.write_at_once(&mut buffer);
        }
        let next = match buffer.thread {
            ThreadState::Prepared if buffer.bytes.is_empty() => Next::Nothing,
            ThreadState::Prepared => Next::Start,
            ThreadState::Idle => Next::Wake,
            ThreadState::Gathering if buffer.bytes.len() >= BATCH_BYTES => Next::Wake,
            ThreadState::Gathering | ThreadState::Writing => Next::Nothing,
        };
        drop(buffer);
        match next {
            Next::Nothing => {}
            Next::Wake => self.shared.filled.notify_one(),
            Next::Start => {
                if let Err(error) = self.shared.start() {
                    log::error!("the serial port's output is lost: its thread cannot be started: {error}");
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes all of `bytes`, waiting where the descriptor does not. Returns how many bytes it took before it broke.
fn write_blocking(output: &mut File, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match output.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // The terminal is shared, and another process may have made it non-blocking for all.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if wait_writable(output).is_err() {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    written
}

/// Writes what goes without waiting (RWF_NOWAIT, pwritev2(2)). Returns how many bytes that were: none where the descriptor
/// knows no such writes, as a terminal's does not, or is broken, which a write that may wait finds out.
fn write_nowait(output: &OwnedFd, bytes: &[u8]) -> usize {
    let place = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: one iovec is passed, and it describes bytes that outlive the call, which only reads them.
    let written = unsafe { libc::pwritev2(output.as_raw_fd(), &raw const place, 1, -1, libc::RWF_NOWAIT) };
    usize::try_from(written).unwrap_or(0)
}

fn wait_writable(output: &File) -> io::Result<()> {
    let epoll = Epoll::new()?;
    epoll.ctl(ControlOperation::Add, output.as_raw_fd(), EpollEvent::new(EventSet::OUT, 0))?;
    match epoll.wait(-1, &mut [EpollEvent::default()]) {
        Ok(_) => Ok(()),
        // A signal, or SIGSTOP and SIGCONT: the write that follows finds out.
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
        Err(error) => Err(error),
    }
}

fn as_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("a buffer's length fits 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn console() -> (ConsoleOutput, io::PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        (ConsoleOutput::new("test-console", writer.into()), reader)
    }

    #[test]
    fn output_arrives_byte_for_byte_and_the_end_of_the_owner_is_the_end_of_the_file() {
        let (output, mut reader) = console();
        let mut writer = output.writer();
        let text: Vec<u8> = (0..=255).cycle().take(40_000).collect();
        for byte in &text {
            writer.write_all(&[*byte]).unwrap();
        }
        let reading = thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        assert!(output.drain(soon()));
        assert_eq!(output.counters().written_bytes.load(Ordering::Relaxed), 40_000);
        drop(output);
        assert_eq!(reading.join().unwrap(), text);
    }

    #[test]
    fn an_output_that_blocks_stops_nobody_and_what_is_lost_is_counted() {
        let (output, mut reader) = console();
        let mut writer = output.writer();
        let written = 1 << 20;
        for _ in 0..written {
            writer.write_all(b"x").unwrap();
        }
        assert!(!output.drain(Instant::now() + Duration::from_millis(20)), "nobody reads");
        let dropped = output.counters().dropped_bytes.load(Ordering::Relaxed);
        assert!(dropped > 0);
        drop(output);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(as_u64(all.len()) + dropped, written);
    }

    #[test]
    fn what_is_beyond_the_limit_is_dropped_and_counted() {
        let (output, mut reader) = console();
        let mut writer = output.writer();
        // A bucket that fills within a year, and 5 bytes once.
        output.limit(Rate::new(10, 5, 366 * 24 * 3_600_000));
        for byte in 0..100 {
            writer.write_all(&[byte]).unwrap();
        }
        assert!(output.drain(soon()));
        assert_eq!(output.counters().limited_bytes.load(Ordering::Relaxed), 85);
        assert_eq!(output.counters().dropped_bytes.load(Ordering::Relaxed), 0);
        output.limit(None);
        writer.write_all(b"free").unwrap();
        assert!(output.drain(soon()));
        drop(output);
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(all, (0..15).chain(*b"free").collect::<Vec<u8>>());
    }

    #[test]
    fn an_output_that_breaks_stops_nobody_and_drains_at_once() {
        let (output, reader) = console();
        drop(reader);
        let mut writer = output.writer();
        writer.write_all(b"lost").unwrap();
        assert!(output.drain(soon()));
        writer.write_all(b"lost too").unwrap();
        assert!(output.drain(soon()));
        assert_eq!(output.counters().dropped_bytes.load(Ordering::Relaxed), 12);
        assert_eq!(output.counters().written_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_non_blocking_output_loses_nothing_that_the_buffer_holds() {
        let (left, mut right) = std::os::unix::net::UnixStream::pair().unwrap();
        left.set_nonblocking(true).unwrap();
        let output = ConsoleOutput::new("test-console", left.into());
        let mut writer = output.writer();
        let text = vec![7; BUFFER_BYTES_MAX];
        let mut all = vec![0; text.len() * 8];
        let reading = thread::spawn(move || {
            right.read_exact(&mut all).unwrap();
            all
        });
        for _ in 0..8 {
            writer.write_all(&text).unwrap();
            assert!(output.drain(soon()));
        }
        assert!(reading.join().unwrap().iter().all(|byte| *byte == 7));
        assert_eq!(output.counters().dropped_bytes.load(Ordering::Relaxed), 0);
    }
}
