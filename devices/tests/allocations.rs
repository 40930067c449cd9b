//! The hot paths do not allocate: a counting allocator under an I/O thread that serves a driver's rings.
#![expect(unsafe_code, reason = "a global allocator, which counts and passes on")]
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arch::memory::bitmap;
use devices::backend::block::{BlockBackend, CacheMode, DiskAccess, DiskImage, DiskOptions, FileBackend, UringBackend};
use devices::backend::net::{InterfaceName, Tap};
use devices::testing::{Buffer, DEADLINE, FakeDriver, in_network_namespace, ip, memory_with_hole};
use devices::virtio::VirtioDevice;
use devices::virtio::blk::{Blk, BlkOptions, DiskName, DiskQueue};
use devices::virtio::net::{Net, NetOptions, NetQueue};
use devices::virtio::transport::MmioTransport;
use devices::virtio::worker::IoThread;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// Allocations of all threads but those of tests, which act the driver and may.
static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_DRIVER: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: an allocator must hand out what a layout asks for = all is passed on to the system's, with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !IS_DRIVER.try_with(Cell::get).unwrap_or(true) {
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the layout has a size = the caller's promise, which is the same as ours.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // SAFETY: the address came from `alloc` with this layout = the caller's promise, and `alloc` is the system's.
        unsafe { System.dealloc(address, layout) }
    }
}

fn driver(device: Box<dyn VirtioDevice>, queues: &[u16]) -> FakeDriver {
    let memory = memory_with_hole(16 << 20);
    // With its writes tracked, which is more than without.
    memory.iter().for_each(|region| bitmap(region).start());
    let transport = MmioTransport::new("test", device, memory.clone()).unwrap();
    let mut driver = FakeDriver::new(transport, memory);
    driver.initialize(!(1 << 34), queues);
    driver.queues.iter().for_each(devices::testing::DriverRing::want_interrupt);
    driver
}

/// Runs `round` until it is warm, and then counts what further rounds allocate: the least of ten spells, since what is in
/// flight at once may reach a new height at any time, for which a pool grows, once. An allocation a request is in each of them.
fn counted(mut round: impl FnMut()) -> u64 {
    let mut spell = || {
        let before = COUNT.load(Ordering::Relaxed);
        (0..20).for_each(|_| round());
        COUNT.load(Ordering::Relaxed) - before
    };
    spell();
    (0..10).map(|_| spell()).min().expect("there are ten")
}

/// A batch of reads, writes of several pieces, a discard, zeroes and a flush. A fault is none of it: its log line, at most
/// one a second, is a string.
struct DiskRound {
    driver: FakeDriver,
    chains: Vec<Vec<Buffer>>,
}

impl DiskRound {
    fn new(mut driver: FakeDriver) -> Self {
        let mut chains = Vec::new();
        for (kind, data_len) in [(0, 4096), (1, 4096), (0, 8193), (1, 12288), (11, 16), (13, 16), (4, 0)] {
            let mut header = [0; 16];
            header[..4].copy_from_slice(&u32::to_le_bytes(kind));
            let header = Buffer::Readable(driver.place(&header), 16);
            let status = Buffer::Writable(driver.place(&[0xee]), 1);
            let range = [&8_u64.to_le_bytes()[..], &8_u32.to_le_bytes(), &0_u32.to_le_bytes()].concat();
            let bytes = [range, vec![7; 16 << 10]].concat();
            // A page, except that odd lengths stand for an odd address, which O_DIRECT takes through a copy.
            let GuestAddress(room) = driver.place(&[&bytes[..], &[0; 4096]].concat());
            let at = if data_len == 16 { room } else { room.next_multiple_of(4096) + u64::from(data_len % 2) };
            let len = data_len / 16 * 16;
            let data = |at, len| match kind {
                0 => Buffer::Writable(GuestAddress(at), len),
                _ => Buffer::Readable(GuestAddress(at), len),
            };
            let mut chain = vec![header];
            match len {
                0 => {}
                12288 => chain.extend([0, 4096, 8192].map(|part| data(at + part, 4096))),
                _ => chain.push(data(at, len)),
            }
            chain.push(status);
            chains.push(chain);
        }
        Self { driver, chains }
    }

    fn run(&mut self) {
        for chain in &self.chains {
            self.driver.queues[0].add(chain);
        }
        self.driver.kick(0);
        for _ in &self.chains {
            self.driver.wait_used(0);
        }
    }
}

#[test]
fn a_disk_s_request_allocates_nothing() {
    IS_DRIVER.set(true);
    for cache in [CacheMode::Writeback, CacheMode::Writethrough, CacheMode::Direct] {
        for uring in [false, true] {
            let file = tempfile::tempfile_in("/tmp").unwrap();
            file.set_len(1 << 20).unwrap();
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
            let mut round = DiskRound::new(driver(Box::new(blk), &[128]));
            assert_eq!(counted(|| round.run()), 0, "{cache:?} {uring}");
        }
    }
}

#[test]
fn a_card_s_frame_allocates_nothing() {
    in_network_namespace(|| {
        IS_DRIVER.set(true);
        ip("link set lo up");
        ip("tuntap add dev tap0 mode tap");
        ip("addr add 192.0.2.1/24 dev tap0");
        ip("link set tap0 up");
        ip("neigh add 192.0.2.2 lladdr 02:00:00:00:00:07 dev tap0");
        let tap = Tap::open(&InterfaceName::new("tap0").unwrap()).unwrap();
        let thread = IoThread::spawn("husk-io-test").unwrap();
        let queue = NetQueue { backend: Arc::new(tap), thread: thread.handle() };
        let options = NetOptions { mac: Some([2, 0, 0, 0, 0, 7]), ..NetOptions::default() };
        let net = Net::new("net0", vec![queue], options).unwrap();
        let mut driver = driver(Box::new(net), &[64, 64]);
        let rooms: Vec<_> = (0..16).map(|_| driver.allocate(2048)).collect();
        let mut frame = vec![0; 12];
        // To nobody, of a protocol that nobody speaks.
        frame.extend([2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 7, 0x88, 0xb5]);
        frame.resize(12 + 1500, 0x5a);
        let frame = driver.place(&frame);
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        let round = || {
            for room in &rooms {
                driver.queues[0].add(&[Buffer::Writable(*room, 2048)]);
                driver.queues[1].add(&[Buffer::Readable(frame, 12 + 1500)]);
            }
            driver.kick(0);
            driver.kick(1);
            for _ in &rooms {
                driver.wait_used(1);
                // The kernel drops what is sent before it has noticed the carrier.
                let deadline = Instant::now() + DEADLINE;
                while driver.queues[0].take_used().is_none() {
                    assert!(Instant::now() < deadline, "frames come in time");
                    socket.send_to(&[0x33; 1000], "192.0.2.2:9").unwrap();
                    std::thread::yield_now();
                }
            }
        };
        assert_eq!(counted(round), 0);
    });
}
