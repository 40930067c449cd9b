//! Frames through registers and rings, the other end of the wire in the test's hands.

mod filter;
mod hostile;
mod lifecycle;
mod limits;
mod link;
mod model;
mod pairs;
mod receive;
mod state;
mod tap;
mod transmit;
mod vlan;

use super::*;
use crate::backend::net::{FakeNet, NetFault, Wire};
use crate::testing::{Buffer, Descriptor, FakeDriver, memory_with_hole};
use crate::virtio::transport::MmioTransport;
use crate::virtio::worker::IoThread;
use arch::GuestMemory;
use std::sync::atomic::AtomicU64;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestAddress;

const RX: usize = 0;
const TX: usize = 1;
const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const STATUS: u64 = 1 << VIRTIO_NET_F_STATUS;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
const CSUM: u64 = 1 << VIRTIO_NET_F_CSUM;
const GUEST_CSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;
const ALL: u64 = u64::MAX;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// What a receive buffer holds before a frame comes.
const UNWRITTEN: u8 = 0xee;
const HEADER: usize = 12;

struct Bench {
    driver: FakeDriver,
    wire: Wire,
    counters: Arc<NetCounters>,
    control: NetControl,
    _thread: IoThread,
}

impl Bench {
    /// A device with queues of 32 entries and what is offered of `wanted`.
    fn new(wanted: u64) -> Self {
        Self::with_options(wanted, NetOptions::default())
    }

    /// As [`Self::new`], of a device that has an address and `options`.
    fn with_options(wanted: u64, options: NetOptions) -> Self {
        Self::build(wanted, options, IoThread::spawn("husk-io-test").unwrap())
    }

    fn build(wanted: u64, options: NetOptions, thread: IoThread) -> Self {
        Self::over(|backend, _| Arc::new(backend), wanted, options, thread)
    }

    /// As [`Self::build`], with what the test makes of the backend and the guest's memory.
    fn over(
        backend: impl FnOnce(FakeNet, &Arc<GuestMemory>) -> Arc<dyn NetBackend>,
        wanted: u64,
        options: NetOptions,
        thread: IoThread,
    ) -> Self {
        let (fake, wire) = FakeNet::new(Offloads::ALL);
        let memory = memory_with_hole(16 << 20);
        let net = card(backend(fake, &memory), options, &thread);
        let (counters, control) = (net.counters(), net.control());
        let transport = MmioTransport::new("net0", Box::new(net), memory.clone()).unwrap();
        let driver = FakeDriver::new(transport, memory);
        let mut bench = Self { driver, wire, counters, control, _thread: thread };
        bench.initialize(wanted);
        bench
    }

    fn initialize(&mut self, wanted: u64) {
        self.driver.initialize(wanted, &[32, 32]);
        self.driver.queues.iter().for_each(crate::testing::DriverRing::want_interrupt);
    }

    /// Guest memory of `len` bytes for a frame to come into.
    fn room(&mut self, len: usize) -> GuestAddress {
        self.driver.place(&vec![UNWRITTEN; len])
    }

    /// Makes one receive buffer of `len` bytes available, without a doorbell.
    fn add_room(&mut self, len: usize) -> GuestAddress {
        let room = self.room(len);
        self.driver.queues[RX].add(&[Buffer::Writable(room, u32::try_from(len).unwrap())]);
        room
    }

    /// Makes one receive buffer of `len` bytes available.
    fn post(&mut self, len: usize) -> GuestAddress {
        let room = self.add_room(len);
        if self.driver.queues[RX].needs_kick() {
            self.driver.kick(RX);
        }
        room
    }

    /// Sends one chain of `pieces`, and waits until it is back.
    fn send(&mut self, pieces: &[&[u8]]) {
        let buffers: Vec<_> = pieces
            .iter()
            .map(|piece| Buffer::Readable(self.driver.place(piece), u32::try_from(piece.len()).unwrap()))
            .collect();
        assert_eq!(self.driver.run(TX, &buffers).written, 0);
    }

    /// Waits until a counter has come to `count`, which no interrupt tells.
    fn wait_count(&self, counter: impl Fn(&NetCounters) -> &AtomicU64, count: u64) {
        let deadline = std::time::Instant::now() + crate::testing::DEADLINE;
        while self.count(&counter) != count {
            assert!(std::time::Instant::now() < deadline, "{} is not {count} in time", self.count(&counter));
            std::thread::yield_now();
        }
    }

    fn count(&self, counter: impl Fn(&NetCounters) -> &AtomicU64) -> u64 {
        counter(&self.counters).load(Ordering::Relaxed)
    }

    fn pause(&self) {
        self.driver.transport().lock().unwrap().core().pause();
    }

    fn resume(&self) {
        self.driver.transport().lock().unwrap().core().resume();
    }
}

/// A device of one pair that has an address and `options`.
fn card(backend: Arc<dyn NetBackend>, options: NetOptions, thread: &IoThread) -> Net {
    let queue = NetQueue { backend, thread: thread.handle() };
    Net::new("net0", vec![queue], NetOptions { mac: Some(MAC), ..options }).unwrap()
}

/// A frame of `len` bytes, different for each `seed`, behind an empty header.
fn frame(len: usize, seed: usize) -> Vec<u8> {
    let payload = (0..len).map(|at| u8::try_from((at * 7 + at / 256 + seed * 31) % 251).unwrap());
    [0; HEADER].into_iter().chain(payload).collect()
}

/// A frame as a driver finds it: in so many buffers.
fn delivered(frame: &[u8], buffers: u16) -> Vec<u8> {
    let mut delivered = frame.to_vec();
    delivered[10..12].copy_from_slice(&buffers.to_le_bytes());
    delivered
}

#[test]
fn the_configuration_space_has_address_and_status() {
    let bench = Bench::new(ALL);
    assert_eq!(bench.driver.read(0x08), 1, "a network card");
    assert_eq!(bench.driver.config(0), MAC);
    assert_eq!(bench.driver.config(6), [1, 0]);
    assert_eq!(bench.driver.config(8), [0; 16]);
    assert!(bench.driver.write_bytes(0x100, &[9; 6]));
    assert_eq!(bench.driver.config(0), MAC, "the driver cannot change it");
}

#[test]
fn without_an_address_the_guest_chooses() {
    let (backend, _wire) = FakeNet::new(Offloads::default());
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let queue = NetQueue { backend: Arc::new(backend), thread: thread.handle() };
    let net = Net::new("net0", vec![queue], NetOptions::default()).unwrap();
    assert_eq!(net.identity().features & (1 << 5), 0);
    let mut config = [9; 6];
    net.read_config(0, &mut config);
    assert_eq!(config, [0; 6]);
}
