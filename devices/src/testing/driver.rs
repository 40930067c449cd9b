//! A driver behind the registers of virtio-mmio.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arch::GuestMemory;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::{Buffer, DEADLINE, DriverRing, Used};
use crate::bus::{Bus, lock};
use crate::state::SaveState;
use crate::virtio::transport::{MmioState, MmioTransport};

const WINDOW: u64 = 0xd000_0000;

/// Where the driver's own structures begin in guest memory.
const HEAP: u64 = 0x1000;

/// A driver of one device.
pub struct FakeDriver {
    bus: Bus,
    transport: Arc<Mutex<MmioTransport>>,
    memory: Arc<GuestMemory>,
    line: EventFd,
    line_ready: Epoll,
    heap: u64,
    features: u64,
    /// The queues that were set up, by index.
    pub queues: Vec<DriverRing>,
}

impl FakeDriver {
    /// A driver of the device behind `transport`, living in `memory`.
    ///
    /// # Panics
    /// If descriptors run out.
    pub fn new(transport: MmioTransport, memory: Arc<GuestMemory>) -> Self {
        let (bus, transport, line, line_ready) = Self::wire(transport);
        Self { bus, transport, memory, line, line_ready, heap: HEAP, features: 0, queues: Vec::new() }
    }

    /// Goes on with another device, which has the state of the one before: a driver does not notice.
    ///
    /// # Panics
    /// If descriptors run out.
    pub fn move_to(&mut self, transport: MmioTransport) {
        (self.bus, self.transport, self.line, self.line_ready) = Self::wire(transport);
    }

    /// Saves the device, gives `heir` its state by way of the bytes that it is kept in, and goes on with that one, which is
    /// left paused if its driver is ready.
    ///
    /// # Panics
    /// If the state is refused, or is not what the heir would save.
    pub fn migrate(&mut self, mut heir: MmioTransport) {
        let state = self.save();
        let bytes = postcard::to_allocvec(&state).expect("a state has no end");
        let kept = postcard::from_bytes(&bytes).expect("what was written can be read");
        heir.restore(kept).expect("the heir is made as its predecessor was");
        assert_eq!(heir.save(), state, "what was restored is what is saved");
        self.move_to(heir);
    }

    /// Pauses the device and saves it.
    pub fn save(&self) -> MmioState {
        let mut transport = lock(&self.transport);
        transport.core().pause();
        transport.save()
    }

    fn wire(transport: MmioTransport) -> (Bus, Arc<Mutex<MmioTransport>>, EventFd, Epoll) {
        let line = transport.interrupt_line().try_clone().expect("a test has descriptors");
        let line_ready = Epoll::new().expect("a test has descriptors");
        let interest = EpollEvent::new(EventSet::IN, 0);
        line_ready.ctl(ControlOperation::Add, line.as_raw_fd(), interest).expect("an eventfd can be polled");
        let bus = Bus::new();
        let transport = Arc::new(Mutex::new(transport));
        let window = WINDOW..WINDOW + MmioTransport::WINDOW_BYTES;
        bus.insert(window, transport.clone()).expect("the bus is empty");
        (bus, transport, line, line_ready)
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The device's transport, for what the machine's owner does.
    pub fn transport(&self) -> &Arc<Mutex<MmioTransport>> {
        &self.transport
    }

    /// Reads a register.
    pub fn read(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        assert!(self.bus.read(WINDOW + u64::from(register), &mut data), "the window answers");
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&self, register: u32, value: u32) {
        assert!(self.bus.write(WINDOW + u64::from(register), &value.to_le_bytes()), "the window answers");
    }

    /// Any access to the window, of any width.
    pub fn read_bytes(&self, offset: u64, data: &mut [u8]) -> bool {
        self.bus.read(WINDOW + offset, data)
    }

    /// Any access to the window, of any width.
    pub fn write_bytes(&self, offset: u64, data: &[u8]) -> bool {
        self.bus.write(WINDOW + offset, data)
    }

    /// Reads `N` bytes of the configuration space.
    pub fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        assert!(self.read_bytes(u64::from(VIRTIO_MMIO_CONFIG) + offset, &mut data), "the window answers");
        data
    }

    /// The device status.
    pub fn status(&self) -> u32 {
        self.read(VIRTIO_MMIO_STATUS)
    }

    /// Adds a bit to the device status, as drivers do.
    pub fn add_status(&self, bit: u32) {
        self.write(VIRTIO_MMIO_STATUS, self.status() | bit);
    }

    /// All that the device offers.
    pub fn offered_features(&self) -> u64 {
        self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        let high = u64::from(self.read(VIRTIO_MMIO_DEVICE_FEATURES));
        self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        (high << 32) | u64::from(self.read(VIRTIO_MMIO_DEVICE_FEATURES))
    }

    /// Resets the device and forgets all queues; the memory of the old ones is not used again.
    pub fn reset(&mut self) {
        self.write(VIRTIO_MMIO_STATUS, 0);
        self.queues.clear();
        self.features = 0;
    }

    /// Writes features, offered or not, and FEATURES_OK. True if the device agrees.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.add_status(VIRTIO_CONFIG_S_DRIVER);
        let bytes = features.to_le_bytes();
        for (half, word) in (0..).zip(bytes.chunks_exact(4)) {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            let word = u32::from_le_bytes(word.try_into().expect("four bytes"));
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, word);
        }
        self.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
        self.features = features;
        self.status() & VIRTIO_CONFIG_S_FEATURES_OK != 0
    }

    /// Makes the next queue, of `size` entries, and describes it to the device.
    pub fn set_up_queue(&mut self, size: u16) {
        let event_idx = self.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let address = self.allocate(DriverRing::bytes(size));
        let ring = DriverRing::new(Arc::clone(&self.memory), address, size, event_idx);
        let index = u32::try_from(self.queues.len()).expect("few queues");
        self.describe_queue(index, u32::from(size), [ring.table.0, ring.avail.0, ring.used.0]);
        self.queues.push(ring);
    }

    /// Describes a queue to the device, rightly or wrongly: table, available ring, used ring.
    pub fn describe_queue(&self, index: u32, size: u32, [table, avail, used]: [u64; 3]) {
        self.write(VIRTIO_MMIO_QUEUE_SEL, index);
        self.write(VIRTIO_MMIO_QUEUE_NUM, size);
        for (low, high, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, table),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, avail),
            (VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_QUEUE_USED_HIGH, used),
        ] {
            self.write(low, u32::try_from(address & 0xffff_ffff).expect("masked"));
            self.write(high, u32::try_from(address >> 32).expect("shifted"));
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// Says DRIVER_OK.
    pub fn driver_ok(&self) {
        self.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    }

    /// All of the above: what is offered among `wanted` is negotiated, one queue of each size is set up.
    ///
    /// # Panics
    /// If the device refuses.
    pub fn initialize(&mut self, wanted: u64, queue_sizes: &[u16]) {
        self.reset();
        let features = self.offered_features() & (wanted | (1 << VIRTIO_F_VERSION_1));
        assert!(self.negotiate(features), "the device agrees with features {features:#x} that it offered");
        for size in queue_sizes {
            self.set_up_queue(*size);
        }
        self.driver_ok();
        assert_eq!(self.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0, "the device starts");
    }

    /// Takes `bytes` of guest memory that nobody uses yet, aligned to 16.
    pub fn allocate(&mut self, bytes: u64) -> GuestAddress {
        let address = self.heap;
        self.heap += bytes.next_multiple_of(16);
        GuestAddress(address)
    }

    /// Makes all guest memory free again. The device must be reset before it is used.
    pub fn rewind_heap(&mut self) {
        self.reset();
        self.heap = HEAP;
    }

    /// Takes guest memory and puts `bytes` there.
    ///
    /// # Panics
    /// If guest memory has run out.
    pub fn place(&mut self, bytes: &[u8]) -> GuestAddress {
        let address = self.allocate(u64::try_from(bytes.len()).expect("64 bits fit"));
        self.memory.write_slice(bytes, address).expect("a test has guest memory");
        address
    }

    /// What lies in guest memory.
    ///
    /// # Panics
    /// If it is not guest memory.
    pub fn bytes_at(&self, address: GuestAddress, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, address).expect("a test reads its own buffers");
        bytes
    }

    /// Rings the doorbell, whether the device wants that or not.
    pub fn kick(&self, queue: usize) {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, u32::try_from(queue).expect("few queues"));
    }

    /// Makes a chain available, rings the doorbell if the device wants that, and waits until the chain is back.
    pub fn run(&mut self, queue: usize, buffers: &[Buffer]) -> Used {
        self.queues[queue].want_interrupt();
        let head = self.queues[queue].add(buffers);
        if self.queues[queue].needs_kick() {
            self.kick(queue);
        }
        let used = self.wait_used(queue);
        assert_eq!(used.head, head, "the only chain comes back");
        used
    }

    /// Waits for the next used chain. The driver must want interrupts.
    pub fn wait_used(&mut self, queue: usize) -> Used {
        self.wait_for("a used chain", |driver| {
            let used = driver.queues[queue].take_used();
            if used.is_none() {
                driver.queues[queue].want_interrupt();
            }
            used.or_else(|| driver.queues[queue].take_used())
        })
    }

    /// Waits until the device asks to be reset, which it says by an interrupt.
    pub fn wait_needs_reset(&mut self) {
        self.wait_for("DEVICE_NEEDS_RESET", |driver| {
            (driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0).then_some(())
        });
    }

    /// Looks, and looks again after each interrupt, until `look` finds something.
    ///
    /// # Panics
    /// If the deadline passes.
    pub fn wait_for<T>(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what} does not come within {DEADLINE:?}");
            let left_ms = i32::try_from(left.as_millis()).expect("a short deadline") + 1;
            // Whatever woke us, we look again.
            let _events = self.line_ready.wait(left_ms, &mut [EpollEvent::default()]);
            self.take_interrupt();
        }
    }

    /// Takes an interrupt and acknowledges its causes, if one is pending. Returns the causes.
    pub fn take_interrupt(&self) -> Option<u32> {
        self.line.read().ok()?;
        let causes = self.read(VIRTIO_MMIO_INTERRUPT_STATUS);
        self.write(VIRTIO_MMIO_INTERRUPT_ACK, causes);
        Some(causes)
    }
}
