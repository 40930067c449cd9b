//! Every device marks the pages of guest memory that it writes: the bytes that changed are held against the marks.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use devices::backend::block::{BlockBackend, CacheMode, DiskAccess, DiskImage, DiskOptions, FileBackend, UringBackend};
use devices::backend::memory::Reclaim;
use devices::backend::net::{FakeNet, Offloads, Wire};
use devices::testing::{Buffer, DEADLINE, FakeDriver, WriteWatch, memory_with_hole};
use devices::virtio::VirtioDevice;
use devices::virtio::balloon::{Balloon, BalloonOptions};
use devices::virtio::blk::{Blk, BlkOptions, DiskName, DiskQueue};
use devices::virtio::net::{Net, NetCounters, NetOptions, NetQueue};
use devices::virtio::rng::Rng;
use devices::virtio::transport::MmioTransport;
use devices::virtio::worker::IoThread;
use std::sync::atomic::Ordering;
use vm_memory::{Bytes, GuestAddress};

const PAGE: u64 = 4096;
const SECTOR: u64 = 512;

/// The driver of a new device. Its buffers lie in the upper region, its rings in the lower one.
fn driver(device: Box<dyn VirtioDevice>, features: u64, queues: &[u16]) -> FakeDriver {
    let memory = memory_with_hole(1 << 20);
    let transport = MmioTransport::new("test", device, memory.clone()).unwrap();
    let mut driver = FakeDriver::new(transport, memory);
    driver.initialize(features, queues);
    driver
}

/// An address in one of the pages for buffers.
fn upper(page: u64, byte: u64) -> GuestAddress {
    GuestAddress((1 << 32) + page * PAGE + byte)
}

fn pages(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<u64> {
    numbers.into_iter().map(|page| upper(page, 0).0).collect()
}

/// Makes chains available, rings, and waits until the device has given them all back. Returns the pages for buffers that were
/// marked meanwhile; the driver writes none, and of the rings only the used ones may be among the rest.
fn written(driver: &mut FakeDriver, queue: usize, chains: &[Vec<Buffer>]) -> BTreeSet<u64> {
    let ring = &mut driver.queues[queue];
    let count = u16::try_from(chains.len()).unwrap();
    let end = ring.device_used_index().wrapping_add(count);
    for chain in chains {
        ring.add(chain);
    }
    ring.want_interrupt_at(end);
    let watch = WriteWatch::begin(driver.memory());
    driver.kick(queue);
    driver.wait_for("used chains", |driver| (driver.queues[queue].device_used_index() == end).then_some(()));
    buffers_of(driver, queue, watch)
}

/// Ends a watch. Returns the pages for buffers that were marked.
fn buffers_of(driver: &mut FakeDriver, queue: usize, watch: WriteWatch) -> BTreeSet<u64> {
    let mut marked = watch.end();
    while driver.queues[queue].take_used().is_some() {}
    let buffers = marked.split_off(&upper(0, 0).0);
    let used: Vec<_> =
        driver.queues.iter().map(|ring| ring.used.0..ring.used.0 + 6 + 8 * u64::from(ring.size())).collect();
    for page in marked {
        let is_used = used.iter().any(|used| page < used.end && used.start < page + PAGE);
        assert!(is_used, "{page:#x} is marked; the used rings are {used:#x?}");
    }
    buffers
}

struct Disk {
    driver: FakeDriver,
    file: File,
    _thread: IoThread,
}

impl Disk {
    fn new(cache: CacheMode, uring: bool) -> Self {
        let file = tempfile::tempfile_in("/tmp").unwrap();
        file.write_all_at(&[0x5a; 1 << 16], 0).unwrap();
        let own = file.try_clone().unwrap();
        let options = DiskOptions { cache, block: None, ..DiskOptions::default() };
        let image = DiskImage::from_file(file, Path::new("scratch"), DiskAccess::ReadWrite, options).unwrap();
        let image = Arc::new(image);
        let backend: Box<dyn BlockBackend> = match uring {
            false => Box::new(FileBackend::new(image)),
            true => Box::new(UringBackend::new(image).unwrap()),
        };
        let thread = IoThread::spawn("husk-io-test").unwrap();
        let queue = DiskQueue { backend, thread: thread.handle() };
        let blk = Blk::new(DiskName::new("disk0"), vec![queue], BlkOptions::default()).unwrap();
        Self { driver: driver(Box::new(blk), u64::MAX, &[64]), file: own, _thread: thread }
    }

    /// A request, with its status in a page of its own.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer], status_page: u64) -> Vec<Buffer> {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let header = Buffer::Readable(self.driver.place(&header), 16);
        let status = upper(status_page, 17);
        self.driver.memory().write_slice(&[0xee], status).unwrap();
        [&[header], data, &[Buffer::Writable(status, 1)]].concat()
    }
}

#[test]
fn a_disk_marks_what_it_reads_into_and_each_status() {
    for cache in [CacheMode::Writeback, CacheMode::Direct] {
        for uring in [false, true] {
            let mut disk = Disk::new(cache, uring);
            let aligned = [Buffer::Writable(upper(2, 0), 4096), Buffer::Writable(upper(5, 0), 8192)];
            // O_DIRECT takes these through a copy.
            let odd = [Buffer::Writable(upper(10, 4000), 100), Buffer::Writable(upper(13, 1), 412)];
            let (read, odd) = (disk.request(0, 0, &aligned, 8), disk.request(0, 8, &odd, 16));
            let name = disk.request(8, 0, &[Buffer::Writable(upper(18, 4090), 20)], 21);
            let write = disk.request(1, 16, &[Buffer::Readable(upper(24, 0), 4096)], 26);
            let marked = written(&mut disk.driver, 0, &[read, odd, name, write]);
            assert_eq!(marked, pages([2, 5, 6, 8, 10, 11, 13, 16, 18, 19, 21, 26]), "{cache:?} {uring}");
        }
    }
}

#[test]
fn a_disk_marks_the_part_of_a_failed_read_that_arrived() {
    for cache in [CacheMode::Writeback, CacheMode::Direct] {
        for uring in [false, true] {
            let mut disk = Disk::new(cache, uring);
            disk.file.set_len(12 * SECTOR).unwrap();
            let data = [Buffer::Writable(upper(2, 0), 4096), Buffer::Writable(upper(4, 0), 4096)];
            let read = disk.request(0, 8, &data, 8);
            let marked = written(&mut disk.driver, 0, &[read]);
            let [status] = disk.driver.bytes_at(upper(8, 17), 1)[..] else { panic!("one byte") };
            assert_eq!((status, disk.driver.bytes_at(upper(2, 0), 4)), (1, vec![0x5a; 4]), "{cache:?} {uring}");
            assert!(marked.is_superset(&pages([2, 8])), "{cache:?} {uring}: {marked:x?}");
        }
    }
}

struct Card {
    driver: FakeDriver,
    wire: Wire,
    counters: Arc<NetCounters>,
    _thread: IoThread,
}

impl Card {
    fn new(pairs: usize, options: NetOptions) -> Self {
        let thread = IoThread::spawn("husk-io-test").unwrap();
        let (queues, mut wires): (Vec<_>, Vec<_>) = (0..pairs)
            .map(|_| {
                let (backend, wire) = FakeNet::new(Offloads::ALL);
                (NetQueue { backend: Arc::new(backend), thread: thread.handle() }, wire)
            })
            .unzip();
        let net = Net::new("net0", queues, options).unwrap();
        let counters = net.counters();
        // Beside several pairs there is a control queue, the last one.
        let driver = driver(Box::new(net), u64::MAX, &vec![128; 2 * pairs + usize::from(pairs > 1)]);
        Self { driver, wire: wires.swap_remove(0), counters, _thread: thread }
    }

    /// Makes receive buffers available, one in each of some pages.
    fn post(&mut self, pages: std::ops::Range<u64>, len: u32) {
        for page in pages {
            self.driver.queues[0].add(&[Buffer::Writable(upper(page, 100), len)]);
        }
        self.driver.kick(0);
    }

    fn wait_dropped(&self, count: u64) {
        let deadline = Instant::now() + DEADLINE;
        while self.counters.pairs[0].received.dropped.load(Ordering::Relaxed) != count {
            assert!(Instant::now() < deadline, "a frame is dropped in time");
            std::thread::yield_now();
        }
    }

    /// Sends frames of so many bytes, and returns the pages for buffers that are marked when `chains` are back.
    fn receive(&mut self, frames: &[usize], chains: u16) -> BTreeSet<u64> {
        let end = self.driver.queues[0].device_used_index().wrapping_add(chains);
        self.driver.queues[0].want_interrupt_at(end);
        let watch = WriteWatch::begin(self.driver.memory());
        for len in frames {
            let mut frame = vec![0; 12];
            frame.resize(12 + len, 0x3c);
            self.wire.send(&frame);
        }
        self.driver.wait_for("frames", |driver| (driver.queues[0].device_used_index() == end).then_some(()));
        buffers_of(&mut self.driver, 0, watch)
    }
}

#[test]
fn a_card_marks_the_buffers_that_frames_came_into_and_no_other() {
    let mut card = Card::new(1, NetOptions::default());
    card.post(10..60, 2048);
    assert_eq!(card.receive(&[60], 1), pages(10..11));
    // The end of a frame that is larger than those before goes through the device's own memory.
    assert_eq!(card.receive(&[60_000], 30), pages(11..41));
    assert_eq!(card.receive(&[2000, 60], 2), pages(41..43));
}

#[test]
fn a_card_marks_a_frame_that_nobody_gets() {
    let mut card = Card::new(1, NetOptions { mtu: Some(1000), ..NetOptions::default() });
    let watch = WriteWatch::begin(card.driver.memory());
    card.post(10..12, 2048);
    let mut large = vec![0; 12];
    large.resize(12 + 1500, 0x3c);
    card.wire.send(&large);
    card.wait_dropped(1);
    let marked = watch.end();
    assert!(marked.contains(&upper(10, 0).0), "{marked:x?}");
}

#[test]
fn a_card_marks_the_answer_to_a_command() {
    let mut card = Card::new(2, NetOptions::default());
    // One pair takes part.
    let command = card.driver.place(&[4, 0, 1, 0]);
    let chain = vec![Buffer::Readable(command, 4), Buffer::Writable(upper(7, 9), 1)];
    card.driver.memory().write_slice(&[0xee], upper(7, 9)).unwrap();
    assert_eq!(written(&mut card.driver, 4, &[chain]), pages([7]));
}

#[test]
fn entropy_is_marked() {
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let mut driver = driver(Box::new(Rng::new("rng0", None, thread.handle())), u64::MAX, &[16]);
    let chains = [
        vec![Buffer::Writable(upper(3, 4090), 20), Buffer::Writable(upper(9, 0), 64)],
        // Of a request's end, nothing is written.
        vec![Buffer::Writable(upper(20, 0), 4096), Buffer::Writable(upper(30, 0), 4096)],
    ];
    assert_eq!(written(&mut driver, 0, &chains), pages([3, 4, 9, 20]));
}

#[test]
fn pages_that_go_to_the_host_are_marked_for_their_bytes_are_others_now() {
    let memory = memory_with_hole(1 << 20);
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let options = BalloonOptions { reporting: true, ..BalloonOptions::default() };
    let reclaim = Reclaim::new(Arc::clone(&memory), None);
    let balloon = Balloon::new("balloon", &options, reclaim, Arc::new(|| {}), thread.handle()).unwrap();
    let transport = MmioTransport::new("balloon", Box::new(balloon), memory.clone()).unwrap();
    let mut driver = FakeDriver::new(transport, memory);
    driver.initialize(u64::MAX, &[16; 3]);
    driver.memory().write_slice(&[7; 32 * 4096], upper(0, 0)).unwrap();
    let numbers: Vec<u8> =
        [4, 6, 5].into_iter().flat_map(|page| u32::try_from(upper(page, 0).0 / PAGE).unwrap().to_le_bytes()).collect();
    let list = Buffer::Readable(driver.place(&numbers), 12);
    assert_eq!(written(&mut driver, 0, &[vec![list]]), pages([4, 5, 6]));
    // A page that is reported in part stays.
    let free = vec![Buffer::Writable(upper(10, 0), 3 * 4096 + 100), Buffer::Writable(upper(20, 0), 4096)];
    assert_eq!(written(&mut driver, 2, &[free]), pages([10, 11, 12, 20]));
}
