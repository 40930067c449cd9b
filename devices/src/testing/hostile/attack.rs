//! A hostile driver of a whole device.

use std::sync::Arc;
use std::time::Instant;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_STATUS};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::input::Input;
use super::ledger::{ENTRIES_MAX, Ledger, indirect_table};
use super::territory::{DATA, REGION_BYTES, Territory};
use crate::bus::lock;
use crate::testing::{Buffer, DEADLINE, Descriptor, FakeDriver};
use crate::virtio::VirtioDevice;
use crate::virtio::transport::MmioTransport;

/// A device's own part in an attack on it, and its other end, which is the host's.
pub(super) trait Victim {
    /// How many queues it has.
    const QUEUES: u16;

    /// Whether all chains of a queue come back with nothing done on the host.
    fn answers(&self, queue: u16) -> bool;

    /// The buffers of a chain that a driver may mean.
    fn plausible(&mut self, queue: u16, input: &mut Input<'_>, territory: &mut Territory) -> Vec<Buffer>;

    /// Something happens on the host.
    fn stir(&mut self, input: &mut Input<'_>);

    /// Takes off what the device gave to the host, so that it never waits for room.
    fn relieve(&mut self);

    /// An honest driver of the reset device is served.
    fn serve_honestly(&mut self, driver: &mut FakeDriver);
}

/// A driver of one device, and what it must find.
pub(super) struct Attack<V> {
    driver: FakeDriver,
    territory: Territory,
    rings: Vec<Ledger>,
    victim: V,
}

impl<V: Victim> Attack<V> {
    /// Does what the input says to `device`, then resets it and uses it as one should.
    pub(super) fn run(device: Box<dyn VirtioDevice>, victim: V, mut input: Input<'_>) {
        let territory = Territory::new();
        let memory = Arc::clone(territory.memory());
        let transport = MmioTransport::new("victim", device, Arc::clone(&memory)).expect("a test has descriptors");
        let driver = FakeDriver::new(transport, memory);
        let mut attack = Self { driver, territory, rings: Vec::new(), victim };
        while !input.is_empty() {
            attack.act(&mut input);
            attack.check_status();
        }
        attack.settle();
        attack.driver.reset();
        attack.after_reset();
        attack.victim.serve_honestly(&mut attack.driver);
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let action = input.byte() % 16;
        if self.rings.is_empty() && action != 12 {
            self.bring_up(input);
            return;
        }
        match action {
            0..4 => self.ask(input),
            4 => self.write_any_descriptor(input),
            5 => self.write_any_indirect(input),
            6 => {
                let queue = self.any_queue(input);
                let ring = &mut self.rings[queue];
                let head = input.below(ring.size() + 2);
                ring.make_available(&mut self.territory, head);
            }
            7 => {
                let queue = self.any_queue(input);
                let ring = &mut self.rings[queue];
                let step = if input.byte() < 200 { input.below(4) } else { input.half() };
                let index = ring.avail_index().wrapping_add(step);
                ring.publish(&mut self.territory, index);
            }
            8 | 9 => self.driver.kick(usize::from(input.byte() % 4)),
            10 => {
                let queue = self.any_queue(input);
                self.rings[queue].wish(&mut self.territory, input.half(), input.half());
            }
            11 => self.settle(),
            12 => self.write_any_register(input),
            13 => {
                let address = DATA + u64::from(input.half()) % (REGION_BYTES - DATA - 8);
                self.territory.poke(address, &input.long().to_le_bytes());
            }
            14 => self.victim.stir(input),
            _ => self.pause_or_reset(input),
        }
    }

    /// Negotiates, sets the queues up and says DRIVER_OK, or asks for what was not offered and is refused.
    fn bring_up(&mut self, input: &mut Input<'_>) {
        self.driver.reset();
        self.after_reset();
        let choice = input.byte();
        let offered = self.driver.offered_features();
        let version = 1 << VIRTIO_F_VERSION_1;
        let [indirect, event_idx] = [VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_RING_F_EVENT_IDX].map(|bit| 1_u64 << bit);
        let mut features = offered & !(indirect | event_idx);
        features |= if choice & 1 == 0 { indirect } else { 0 } | if choice & 2 == 0 { event_idx } else { 0 };
        if choice & 12 == 12 {
            features = version | (features & input.long());
        }
        if choice >= 0xf0 {
            let wanted = features | (!offered & (1 << (choice % 64))) | (!offered & (1 << 63));
            assert!(!self.driver.negotiate(wanted), "features that were not offered are refused");
            self.driver.driver_ok();
            assert_eq!(self.driver.status() & VIRTIO_CONFIG_S_DRIVER_OK, 0, "no driver is ready without features");
            return;
        }
        assert!(self.driver.negotiate(features), "features that were offered are agreed to");
        for queue in 0..V::QUEUES {
            let size = ENTRIES_MAX >> (input.byte() % 5);
            let ring = Ledger::new(queue, size);
            self.driver.describe_queue(queue.into(), size.into(), ring.addresses());
            self.territory.offer(ring.addresses()[2], ring.used_bytes());
            self.rings.push(ring);
        }
        self.driver.driver_ok();
        assert_eq!(self.driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0, "the device starts");
    }

    /// A chain that means something, direct or indirect.
    fn ask(&mut self, input: &mut Input<'_>) {
        let queue = self.any_queue(input);
        let buffers = self.victim.plausible(u16::try_from(queue).expect("few queues"), input, &mut self.territory);
        let choice = input.byte();
        let ring = &mut self.rings[queue];
        let first = u16::from(choice >> 4) % ring.size();
        let entries = if choice & 1 == 0 { ring.size() } else { ENTRIES_MAX };
        let (table, start) =
            if choice & 1 == 0 { (ring.addresses()[0], first) } else { (indirect_table(choice >> 1), 0) };
        let mut index = start;
        for (at, buffer) in buffers.iter().enumerate() {
            let mut descriptor = buffer.descriptor();
            let next = (index + 1) % entries;
            if at + 1 < buffers.len() {
                descriptor.flags |= Descriptor::NEXT;
                descriptor.next = next;
            }
            Ledger::write_descriptor(&mut self.territory, table, index, descriptor);
            index = next;
        }
        if choice & 1 == 1 {
            let len = 16 * u32::try_from(buffers.len()).expect("few buffers");
            let outer = Descriptor { address: table, len, flags: Descriptor::INDIRECT, next: 0 };
            Ledger::write_descriptor(&mut self.territory, ring.addresses()[0], first, outer);
        }
        ring.make_available(&mut self.territory, first);
    }

    fn any_descriptor(input: &mut Input<'_>, entries: u16) -> Descriptor {
        Descriptor {
            address: Territory::address(input),
            len: Territory::len(input),
            flags: input.choose(&[0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 2, 3, 4, 5, 6, 7]),
            next: input.below(entries + 2),
        }
    }

    fn write_any_descriptor(&mut self, input: &mut Input<'_>) {
        let queue = self.any_queue(input);
        let size = self.rings[queue].size();
        let table = self.rings[queue].addresses()[0];
        let (index, descriptor) = (input.below(size), Self::any_descriptor(input, size));
        Ledger::write_descriptor(&mut self.territory, table, index, descriptor);
    }

    /// A descriptor of an indirect table, and one that refers to the table, with a length that may be wrong.
    fn write_any_indirect(&mut self, input: &mut Input<'_>) {
        let table = indirect_table(input.byte());
        let (index, descriptor) = (input.below(ENTRIES_MAX), Self::any_descriptor(input, ENTRIES_MAX));
        Ledger::write_descriptor(&mut self.territory, table, index, descriptor);
        let queue = self.any_queue(input);
        let len = if input.byte() < 128 { 16 * (1 + u32::from(index)) } else { Territory::len(input) };
        let outer = Descriptor { address: table, len, flags: Descriptor::INDIRECT, next: 0 };
        let (own, at) = (self.rings[queue].addresses()[0], input.below(self.rings[queue].size()));
        Ledger::write_descriptor(&mut self.territory, own, at, outer);
    }

    fn write_any_register(&mut self, input: &mut Input<'_>) {
        let offset = if input.byte() < 64 { u64::from(input.half()) % 0x200 } else { 4 * u64::from(input.byte() % 66) };
        let value = input.word();
        let len = usize::from(input.choose(&[4_u8, 4, 4, 4, 1, 2, 8]));
        let mut data = [0; 8];
        data[..4].copy_from_slice(&value.to_le_bytes());
        self.driver.write_bytes(offset, &data[..len]);
        self.driver.read_bytes(offset, &mut data[..len]);
        if self.rings.is_empty() {
            // With queues that nobody knows of, if the driver got that far.
            if self.driver.status() & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
                self.territory.grow_wild();
            }
        } else if offset == u64::from(VIRTIO_MMIO_STATUS) && len == 4 && value == 0 {
            self.after_reset();
        } else if offset == u64::from(VIRTIO_MMIO_QUEUE_READY) {
            let known = self.driver.status() & VIRTIO_CONFIG_S_DRIVER_OK;
            assert_ne!(known, 0, "queues are frozen and the driver is still ready");
        }
    }

    fn pause_or_reset(&mut self, input: &mut Input<'_>) {
        let transport = Arc::clone(self.driver.transport());
        match input.byte() % 4 {
            0 => {
                self.driver.reset();
                self.after_reset();
            }
            1 => {
                lock(&transport).core().pause();
                self.driver.reset();
                lock(&transport).core().resume();
                self.after_reset();
            }
            _ => {
                lock(&transport).core().pause();
                self.look();
                lock(&transport).core().resume();
            }
        }
    }

    /// After a reset nothing is in flight, and the driver's memory is its own again.
    fn after_reset(&mut self) {
        assert_eq!(self.driver.status(), 0, "a reset device has no status");
        self.look();
        self.territory.take_back();
        self.rings.clear();
        let structures = usize::try_from(DATA).expect("64 bits fit");
        self.territory.poke(0, &vec![0; structures]);
    }

    /// Waits until all that the device owes has come back, or it asks for a reset.
    fn settle(&mut self) {
        for queue in 0..self.rings.len() {
            self.driver.kick(queue);
        }
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.victim.relieve();
            self.look();
            let owed = (0..V::QUEUES).zip(&self.rings).filter(|(queue, _)| self.victim.answers(*queue));
            let settled = owed.into_iter().all(|(_, ring)| ring.is_settled());
            if settled || self.territory.is_wild() || self.driver.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0 {
                break;
            }
            assert!(Instant::now() < deadline, "what the device owes comes back in time");
            std::thread::yield_now();
        }
        self.territory.check();
    }

    fn look(&mut self) {
        for ring in &mut self.rings {
            ring.collect(&self.territory);
        }
    }

    /// virtio 1.3 §3.1.1: each step needs the one before.
    fn check_status(&self) {
        let status = self.driver.status();
        let (driver, features_ok) = (VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_FEATURES_OK);
        let all = 0xf | VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED;
        assert_eq!(status & !all, 0, "status {status:#x} has only bits that exist");
        assert!(status & features_ok == 0 || status & driver != 0, "status {status:#x}: features without a driver");
        let ready = status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        assert!(!ready || status & features_ok != 0, "status {status:#x}: ready without features");
    }

    fn any_queue(&self, input: &mut Input<'_>) -> usize {
        usize::from(input.byte()) % self.rings.len()
    }
}
