mod answers;
mod full;
mod hostile;
mod lifecycle;
mod limits;
mod model;
mod modes;
mod queues;
mod replace;
mod state;

use super::*;
use crate::backend::block::{
    BlockAction, DiskImage, DiskOptions, Durability, Fault, FaultyBackend, FileBackend, UringBackend,
};
use crate::limit::{LimiterConfig, Limits, Rate};
use crate::testing::{Buffer, FakeDriver, Used, memory_with_hole};
use crate::virtio::transport::MmioTransport;
use crate::virtio::worker::IoThread;
use arch::GuestMemory;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress};

const SECTORS: u64 = 64;
const SECTOR: usize = 512;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH_REQUEST: u32 = 4;
const GET_ID: u32 = 8;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// What is in the status byte until a device writes it.
const UNWRITTEN: u8 = 0xee;

/// Who does a disk's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Sync,
    Uring,
}

/// A disk to be tested.
#[derive(Clone, Debug)]
struct Setup {
    engine: Engine,
    options: DiskOptions,
    fault: Fault,
    access: DiskAccess,
    features: u64,
    folder: &'static str,
    queues: usize,
    limiter: Option<Arc<Limiter>>,
    on_full: OnFull,
    thread: &'static str,
    poll: Duration,
    memory: fn() -> Arc<GuestMemory>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            engine: Engine::Sync,
            options: DiskOptions::default(),
            fault: Fault::default(),
            access: DiskAccess::ReadWrite,
            features: FLUSH | EVENT_IDX | INDIRECT,
            folder: "/tmp",
            queues: 1,
            limiter: None,
            on_full: OnFull::Report,
            thread: "husk-io-test",
            poll: Duration::ZERO,
            memory: || memory_with_hole(4 << 20),
        }
    }
}

struct Bench {
    driver: FakeDriver,
    file: File,
    image: Arc<DiskImage>,
    control: DiskControl,
    counters: Arc<DeviceCounters>,
    taken: Arc<Mutex<Vec<BlockAction>>>,
    _threads: Vec<IoThread>,
}

impl Bench {
    fn new() -> Self {
        Self::build(&Setup::default())
    }

    fn with(fault: Fault, access: DiskAccess, features: u64) -> Self {
        Self::build(&Setup { fault, access, features, ..Setup::default() })
    }

    fn build(setup: &Setup) -> Self {
        let file = tempfile::tempfile_in(setup.folder).unwrap();
        for sector in 0..SECTORS {
            file.write_all_at(&pattern(sector), sector * SECTOR_BYTES).unwrap();
        }
        Self::over(setup, file)
    }

    fn over(setup: &Setup, file: File) -> Self {
        // A test looks at the file through an open file description of its own, which keeps the page cache.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let own = File::options().read(true).write(true).open(path).unwrap();
        let (image, file) = (file, own);
        let image = DiskImage::from_file(image, Path::new("scratch"), setup.access, setup.options).unwrap();
        let image = Arc::new(image);
        let taken = Arc::default();
        let (blk, threads) = setup.disk(&image, &taken);
        let (counters, control) = (blk.counters(), blk.control());
        let memory = (setup.memory)();
        let transport = MmioTransport::new("disk0", Box::new(blk), memory.clone()).unwrap();
        let mut driver = FakeDriver::new(transport, memory);
        driver.initialize(setup.features, &vec![64; setup.queues]);
        Self { driver, file, image, control, counters, taken, _threads: threads }
    }

    fn header(&mut self, kind: u32, sector: u64) -> Buffer {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        Buffer::Readable(self.driver.place(&header), 16)
    }

    fn status_byte(&mut self) -> GuestAddress {
        self.driver.place(&[UNWRITTEN])
    }

    fn status(&self, address: GuestAddress) -> u8 {
        self.driver.bytes_at(address, 1)[0]
    }

    /// One request with one buffer each way. Returns the status and what was used.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, Used) {
        let status = self.status_byte();
        let mut chain = vec![self.header(kind, sector)];
        chain.extend(data);
        chain.push(Buffer::Writable(status, 1));
        let used = self.driver.run(0, &chain);
        (self.status(status), used)
    }

    fn read(&mut self, sector: u64, len: usize) -> (u8, u32, Vec<u8>) {
        let data = self.driver.place(&vec![UNWRITTEN; len]);
        let (status, used) = self.request(IN, sector, &[Buffer::Writable(data, u32::try_from(len).unwrap())]);
        (status, used.written, self.driver.bytes_at(data, len))
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> (u8, u32) {
        let data = self.driver.place(bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        let (status, used) = self.request(OUT, sector, &[Buffer::Readable(data, len)]);
        (status, used.written)
    }

    /// Makes a write of one sector available; where its status will be.
    fn begin_write(&mut self, sector: u64, byte: u8) -> GuestAddress {
        let (header, status) = (self.header(OUT, sector), self.status_byte());
        let data = self.driver.place(&[byte; SECTOR]);
        self.driver.queues[0].add(&[header, Buffer::Readable(data, 512), Buffer::Writable(status, 1)]);
        status
    }

    fn pause(&self) {
        self.driver.transport().lock().unwrap().core().pause();
    }

    fn resume(&self) {
        self.driver.transport().lock().unwrap().core().resume();
    }

    fn disk(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(SECTORS).unwrap() * SECTOR];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn submitted(&self) -> u64 {
        u64::try_from(self.taken.lock().unwrap().len()).unwrap()
    }

    fn count(&self, counter: impl Fn(&DeviceCounters) -> &AtomicU64) -> u64 {
        counter(&self.counters).load(Ordering::Relaxed)
    }
}

impl Setup {
    fn disk(&self, image: &Arc<DiskImage>, taken: &Arc<Mutex<Vec<BlockAction>>>) -> (Blk, Vec<IoThread>) {
        let (queues, threads) = (0..self.queues).map(|_| self.queue(image, taken)).collect::<(Vec<_>, Vec<IoThread>)>();
        let options =
            BlkOptions { limiter: self.limiter.clone(), on_full: self.on_full.clone(), ..BlkOptions::default() };
        (Blk::new(DiskName::new("disk0"), queues, options).unwrap(), threads)
    }

    fn queue(&self, image: &Arc<DiskImage>, taken: &Arc<Mutex<Vec<BlockAction>>>) -> (DiskQueue, IoThread) {
        let thread = IoThread::spawn_polling(self.thread, self.poll).unwrap();
        let engine: Box<dyn BlockBackend> = match self.engine {
            Engine::Sync => Box::new(FileBackend::new(Arc::clone(image))),
            Engine::Uring => Box::new(UringBackend::new(Arc::clone(image)).unwrap()),
        };
        let backend: Box<dyn BlockBackend> = match (self.engine, self.fault) {
            (Engine::Uring, Fault { fail_nth: None, depth: 0, .. }) => engine,
            (_, fault) => Box::new(FaultyBackend::sharing(engine, fault, Arc::clone(taken))),
        };
        (DiskQueue { backend, thread: thread.handle() }, thread)
    }
}

fn pattern(sector: u64) -> Vec<u8> {
    (0..SECTOR).map(|at| u8::try_from((at * 7 + usize::try_from(sector).unwrap() * 13) % 251).unwrap()).collect()
}

#[test]
fn what_is_read_is_what_the_disk_holds() {
    let mut bench = Bench::new();
    assert_eq!(bench.read(3, SECTOR), (OK, 513, pattern(3)));
    let (status, written, data) = bench.read(SECTORS - 2, 2 * SECTOR);
    assert_eq!((status, written), (OK, 1025));
    assert_eq!(data, [pattern(SECTORS - 2), pattern(SECTORS - 1)].concat());
    assert_eq!((bench.count(|all| &all.requests), bench.count(|all| &all.bytes)), (2, 1536));
    assert_eq!(bench.count(|all| &all.errors), 0);
}

#[test]
fn each_queue_counts_what_it_was_asked_and_how_long_that_took() {
    let mut bench = Bench::new();
    bench.read(3, 2 * SECTOR);
    bench.write(5, &[0xab; SECTOR]);
    bench.request(FLUSH_REQUEST, 0, &[]);
    bench.read(SECTORS, SECTOR);
    let counters = &bench.control.queue_counters()[0];
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counts = DiskOperation::ALL.map(|(operation, _)| {
        let counters = counters.operation(operation);
        (read(&counters.requests), read(&counters.bytes))
    });
    // What lies beyond the end never came to the backend.
    assert_eq!(counts, [(1, 1024), (1, 512), (1, 0), (1, 0)]);
    assert_eq!((read(&counters.errors), read(&counters.batches), read(&counters.throttled_ns)), (1, 4, 0));
    let latency = counters.latency.read();
    assert_eq!(latency.count(), 3);
    assert!(latency.sum() > Duration::ZERO);
}

#[test]
fn what_is_written_is_on_the_disk_and_nothing_else_changed() {
    let mut bench = Bench::new();
    let mut expected = bench.disk();
    assert_eq!(bench.write(5, &[0xab; 2 * SECTOR]), (OK, 1));
    expected[5 * SECTOR..7 * SECTOR].fill(0xab);
    assert_eq!(bench.disk(), expected);
    assert_eq!(bench.request(FLUSH_REQUEST, 0, &[]).0, OK);
    assert_eq!(bench.read(5, 2 * SECTOR).2, expected[5 * SECTOR..7 * SECTOR]);
}

#[test]
fn a_request_may_be_in_any_number_of_pieces() {
    let mut bench = Bench::new();
    let header = match bench.header(IN, 9) {
        Buffer::Readable(address, _) => address,
        other => panic!("{other:?}"),
    };
    let data = bench.driver.place(&[0; SECTOR + 1]);
    let mut chain: Vec<_> = (0..16).map(|at| Buffer::Readable(GuestAddress(header.0 + at), 1)).collect();
    // The last piece holds data and the status.
    for (start, end) in [(0, 1), (1, 200), (200, 201), (201, 513)] {
        chain.push(Buffer::Writable(GuestAddress(data.0 + start), u32::try_from(end - start).unwrap()));
    }
    let used = bench.driver.run(0, &chain);
    assert_eq!(used.written, 513);
    assert_eq!(bench.driver.bytes_at(data, SECTOR + 1), [pattern(9), vec![OK]].concat());

    // Header and data in one piece.
    let mut bytes = [0; 16 + SECTOR];
    bytes[0] = 1;
    bytes[8] = 4;
    bytes[16..].fill(0x77);
    let out = bench.driver.place(&bytes);
    let status = bench.status_byte();
    bench.driver.run(0, &[Buffer::Readable(out, 528), Buffer::Writable(status, 1)]);
    assert_eq!(bench.status(status), OK);
    assert_eq!(bench.disk()[4 * SECTOR..5 * SECTOR], [0x77; SECTOR]);
}

#[test]
fn an_indirect_request_with_the_most_segments_is_one_transfer() {
    let mut bench = Bench::new();
    let count = usize::try_from(u32::from_le_bytes(bench.driver.config(12))).unwrap();
    assert_eq!(count, 254);
    let table = bench.driver.allocate(300 * 16);
    let header = bench.header(OUT, 0);
    let status = bench.status_byte();
    // 254 pieces of 64 bytes and one that fills the sector up.
    let data = bench.driver.place(&[0x42; 32 * SECTOR]);
    let mut chain = vec![header];
    chain.extend((0..253).map(|at| Buffer::Readable(GuestAddress(data.0 + at * 64), 64)));
    chain.push(Buffer::Readable(GuestAddress(data.0 + 253 * 64), 192));
    chain.push(Buffer::Writable(status, 1));
    bench.driver.queues[0].want_interrupt();
    bench.driver.queues[0].add_indirect(table, &chain);
    bench.driver.kick(0);
    assert_eq!(bench.driver.wait_used(0).written, 1);
    assert_eq!((bench.status(status), bench.submitted()), (OK, 1));
    assert_eq!(bench.disk()[..32 * SECTOR], [0x42; 32 * SECTOR]);
}

#[test]
fn a_transfer_of_no_whole_sectors_is_an_error() {
    let mut bench = Bench::new();
    for len in [1, 511, 513] {
        assert_eq!(bench.read(0, len).0, IOERR);
        assert_eq!(bench.write(0, &vec![1; len]).0, IOERR);
    }
    assert_eq!(bench.request(IN, 0, &[]).0, IOERR);
    assert_eq!(bench.request(OUT, 0, &[]).0, IOERR);
}

#[test]
fn the_serial_number_is_the_disk_s_name() {
    let mut bench = Bench::new();
    let data = bench.driver.place(&[UNWRITTEN; 32]);
    let (status, used) = bench.request(GET_ID, 0, &[Buffer::Writable(data, 20)]);
    assert_eq!((status, used.written), (OK, 21));
    assert_eq!(bench.driver.bytes_at(data, 20), b"disk0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(bench.request(GET_ID, 0, &[Buffer::Writable(data, 19)]).0, IOERR);
    let (first, rest) = (GuestAddress(data.0), GuestAddress(data.0 + 3));
    assert_eq!(bench.request(GET_ID, 0, &[Buffer::Writable(first, 3), Buffer::Writable(rest, 29)]).0, OK);
    assert_eq!(bench.driver.bytes_at(data, 8), b"disk0\0\0\0");
    assert_eq!(bench.driver.bytes_at(data, 32)[20..], [UNWRITTEN; 12]);
}

#[test]
fn unknown_requests_are_unsupported() {
    let mut bench = Bench::new();
    for kind in [2, 3, 5, 9, 11, 13, 14, 15, 26, 0x8000_0000, u32::MAX] {
        assert_eq!(bench.request(kind, 0, &[]).0, UNSUPP, "{kind}");
    }
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let mut bench = Bench::with(Fault::default(), DiskAccess::ReadOnly, u64::MAX);
    assert_ne!(bench.driver.offered_features() & (1 << VIRTIO_BLK_F_RO), 0);
    let before = bench.disk();
    assert_eq!(bench.write(0, &[1; SECTOR]).0, IOERR);
    assert_eq!(bench.disk(), before);
    assert_eq!(bench.read(0, SECTOR), (OK, 513, pattern(0)));
    assert_eq!(bench.submitted(), 1);
}

#[test]
fn the_configuration_space_tells_the_disk_s_shape() {
    let bench = Bench::new();
    let block_bytes = bench.file.metadata().unwrap();
    let block_bytes = std::os::unix::fs::MetadataExt::blksize(&block_bytes);
    assert_eq!(u64::from_le_bytes(bench.driver.config(0)), SECTORS);
    assert_eq!(u32::from_le_bytes(bench.driver.config(20)), 512);
    let [exponent] = bench.driver.config(24);
    assert_eq!(512_u64 << exponent, block_bytes);
    assert_eq!(u64::from(u16::from_le_bytes(bench.driver.config(26))), block_bytes / 512);
    assert_eq!(bench.driver.config(32), [1]);
    assert_eq!(u16::from_le_bytes(bench.driver.config(34)), 1);
    assert_eq!(bench.driver.config(60), [0; 8]);
    bench.driver.write_bytes(0x100, &[0xff; 4]);
    assert_eq!(u64::from_le_bytes(bench.driver.config(0)), SECTORS, "it takes no writes");
    let offered = bench.driver.offered_features();
    assert_eq!(offered & (1 << VIRTIO_BLK_F_RO), 0);
    assert_eq!(offered & (FLUSH | EVENT_IDX | INDIRECT), FLUSH | EVENT_IDX | INDIRECT);
}

#[test]
fn the_nth_failure_is_one_error_status_for_every_n() {
    for depth in [0, 4] {
        for failing in 0..12 {
            let fault = Fault { fail_nth: Some(failing), depth, ..Fault::default() };
            let mut bench = Bench::with(fault, DiskAccess::ReadWrite, FLUSH | EVENT_IDX);
            let mut failed = Vec::new();
            for step in 0..4 {
                let write = bench.write(step, &[0x99; SECTOR]);
                let flush = bench.request(FLUSH_REQUEST, 0, &[]);
                let (status, written, data) = bench.read(step + 8, SECTOR);
                assert_eq!(write.1, 1);
                assert_eq!(flush.1.written, 1);
                if status == OK {
                    assert_eq!((written, data), (513, pattern(step + 8)));
                } else {
                    assert_eq!(written, 1, "of a failed read only the status counts");
                }
                failed.extend([write.0, flush.0, status]);
            }
            let expected: Vec<_> = (0..12).map(|step| if step == failing { IOERR } else { OK }).collect();
            assert_eq!(failed, expected);
            assert_eq!((bench.count(|all| &all.errors), bench.count(|all| &all.requests)), (1, 12));
        }
    }
}

#[test]
fn a_file_that_is_truncated_under_the_guest_is_an_io_error() {
    let mut bench = Bench::new();
    bench.file.set_len(10 * SECTOR_BYTES).unwrap();
    assert_eq!(bench.read(9, SECTOR).0, OK);
    assert_eq!(bench.read(9, 2 * SECTOR).0, IOERR);
    assert_eq!(bench.read(40, SECTOR).0, IOERR);
    assert_eq!(bench.request(FLUSH_REQUEST, 0, &[]).0, OK);
}

#[test]
fn with_flush_a_write_is_cached_until_the_flush() {
    let mut bench = Bench::new();
    bench.write(1, &[0x10; SECTOR]);
    bench.request(FLUSH_REQUEST, 0, &[]);
    assert_eq!(*bench.taken.lock().unwrap(), [BlockAction::Write(Durability::Cached), BlockAction::Flush]);
}

#[test]
fn without_flush_every_write_is_durable() {
    let mut bench = Bench::with(Fault::default(), DiskAccess::ReadWrite, 0);
    for len in [SECTOR, 3 * SECTOR] {
        assert_eq!(bench.write(1, &vec![0x10; len]), (OK, 1));
    }
    let (header, status) = (bench.header(OUT, 10), bench.status_byte());
    let (one, two) = (bench.driver.place(&[1; 100]), bench.driver.place(&[2; 412]));
    let chain = [header, Buffer::Readable(one, 100), Buffer::Readable(two, 412), Buffer::Writable(status, 1)];
    bench.driver.run(0, &chain);
    assert_eq!(bench.status(status), OK);
    assert_eq!(bench.disk()[10 * SECTOR..11 * SECTOR], [vec![1; 100], vec![2; 412]].concat());
    assert_eq!(*bench.taken.lock().unwrap(), [BlockAction::Write(Durability::Durable); 3]);
}

#[test]
fn a_block_device_is_a_disk_of_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backing");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let loop_device = LoopDevice::over(&path);
    let options = DiskOptions::default();
    let image = DiskImage::open(&loop_device.0, DiskAccess::ReadWrite, options).unwrap();
    assert_eq!(image.geometry().sectors, 2048);
    let refused = DiskImage::open(&loop_device.0, DiskAccess::ReadOnly, options).unwrap_err();
    assert!(matches!(refused, crate::backend::block::DiskImageError::Locked { .. }), "{refused:?}");
}

/// A loop device, detached at the end.
struct LoopDevice(std::path::PathBuf);

impl LoopDevice {
    fn over(path: &Path) -> Self {
        let output = std::process::Command::new("losetup").args(["--find", "--show"]).arg(path).output().unwrap();
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        Self(String::from_utf8(output.stdout).unwrap().trim_end().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = std::process::Command::new("losetup").arg("--detach").arg(&self.0).status();
        assert!(detached.is_ok_and(|status| status.success()), "losetup --detach {}", self.0.display());
    }
}
