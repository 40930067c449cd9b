//! virtio-net: one pair of queues, frames in buffers of one descriptor each, polled.

use crate::memory;
use crate::virtio::{DESC_WRITE, Desc, Device, Queue};

/// virtio 1.3 §5.1.3: the device says how long a packet may be.
pub const F_MTU: u64 = 1 << 3;
/// The device has an address.
pub const F_MAC: u64 = 1 << 5;
/// A received frame may be spread over several buffers.
pub const F_MERGE: u64 = 1 << 15;
/// The configuration says whether the link is up.
pub const F_STATUS: u64 = 1 << 16;

/// virtio 1.3 §5.1.6: before each frame.
pub const HEADER: u64 = 12;
/// Where in it the number of buffers is.
const NUM_BUFFERS: u64 = 10;

/// The queues' numbers.
const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;

/// A receive buffer: a frame of the usual size, or a part of a larger one.
const ROOM: u64 = 2048;
const ROOMS_MAX: u16 = 128;
/// A transmit buffer holds any frame.
const SLOT: u64 = 68 << 10;
const SLOTS_MAX: u16 = 32;

/// A network card.
pub struct Net {
    /// The window.
    pub device: Device,
    /// What was agreed on.
    pub features: u64,
    /// The queue of buffers for frames that come.
    pub receive_queue: Queue,
    /// The queue of frames that go.
    pub transmit_queue: Queue,
    rooms: u64,
    /// The buffer of the frame that was received last, whose reader may still be reading.
    held: Option<u16>,
    /// Where a frame in several buffers is put together.
    whole: u64,
    slots: u64,
    slot_count: u16,
    sent: u16,
    in_flight: u16,
}

impl Net {
    /// Brings a card up with those of these features that it offers, besides its MTU, its address and its status.
    pub fn open(device: Device, wanted: u64) -> Result<Self, &'static str> {
        let features = device.negotiate(wanted | F_MTU | F_MAC | F_STATUS)?;
        let receive_queue = device.queue(RECEIVE, ROOMS_MAX, features)?;
        let transmit_queue = device.queue(TRANSMIT, SLOTS_MAX, features)?;
        let (room_count, slot_count) = (receive_queue.size, transmit_queue.size);
        let mut net = Self {
            device,
            features,
            receive_queue,
            transmit_queue,
            rooms: memory::alloc(ROOM * u64::from(room_count)),
            held: None,
            whole: memory::alloc(SLOT),
            slots: memory::alloc(SLOT * u64::from(slot_count)),
            slot_count,
            sent: 0,
            in_flight: 0,
        };
        device.go();
        for index in 0..room_count {
            let desc = Desc { address: net.room(index), len: ROOM as u32, flags: DESC_WRITE, next: 0 };
            net.receive_queue.set(index, desc);
            net.receive_queue.push(index);
        }
        net.receive_queue.kick();
        Ok(net)
    }

    /// The card's address, if it has one.
    pub fn mac(&self) -> Option<[u8; 6]> {
        (self.features & F_MAC != 0).then(|| core::array::from_fn(|at| self.device.config8(at as u64)))
    }

    /// How long a packet may be, if the card says so.
    pub fn mtu(&self) -> Option<u16> {
        (self.features & F_MTU != 0).then(|| u16::from_le_bytes([10, 11].map(|at| self.device.config8(at))))
    }

    /// Whether the link is up.
    pub fn is_up(&self) -> bool {
        self.features & F_STATUS == 0 || self.device.config8(6) & 1 != 0
    }

    fn room(&self, index: u16) -> u64 {
        self.rooms + ROOM * u64::from(index)
    }

    /// The next frame that came, without its header, to be read before the next call.
    pub fn receive(&mut self) -> Option<&'static [u8]> {
        if let Some(index) = self.held.take() {
            self.give_back(index);
        }
        let (first, len) = self.receive_queue.pop()?;
        let buffers: u16 = memory::load(self.room(first) + NUM_BUFFERS);
        if buffers == 1 {
            self.held = Some(first);
            return Some(memory::bytes(self.room(first) + HEADER, u64::from(len) - HEADER));
        }
        let (mut next, mut total) = ((first, len), 0);
        for left in (0..buffers).rev() {
            let (index, len) = next;
            memory::copy(self.room(index), self.whole + total, u64::from(len));
            total += u64::from(len);
            self.give_back(index);
            if left > 0 {
                // virtio 1.3 §5.1.6.4: all of a frame's buffers are used at once.
                next = self.receive_queue.pop().expect("the rest of a frame comes with its first buffer");
            }
        }
        Some(memory::bytes(self.whole + HEADER, total - HEADER))
    }

    fn give_back(&mut self, index: u16) {
        self.receive_queue.push(index);
        self.receive_queue.kick();
    }

    /// Puts a frame into the transmit queue, to leave at the next `flush`; waits for a buffer if all are in use. Gives
    /// where it is now, for changes before the `flush`.
    pub fn push(&mut self, frame: &[u8]) -> u64 {
        self.reap();
        if self.in_flight == self.slot_count {
            self.flush();
            while self.in_flight == self.slot_count {
                crate::cpu::pause();
                self.reap();
            }
        }
        let index = self.sent % self.slot_count;
        let slot = self.slots + SLOT * u64::from(index);
        (0..HEADER).for_each(|at| memory::store(slot + at, 0u8));
        memory::copy(frame.as_ptr() as u64, slot + HEADER, frame.len() as u64);
        let desc = Desc { address: slot, len: HEADER as u32 + frame.len() as u32, flags: 0, next: 0 };
        self.transmit_queue.set(index, desc);
        self.transmit_queue.push(index);
        self.sent = self.sent.wrapping_add(1);
        self.in_flight += 1;
        slot + HEADER
    }

    /// Shows the device what was pushed.
    pub fn flush(&mut self) {
        self.transmit_queue.kick();
    }

    /// Sends one frame.
    pub fn send(&mut self, frame: &[u8]) {
        self.push(frame);
        self.flush();
    }

    /// Takes back the buffers of frames that have left; gives how many there are still.
    pub fn reap(&mut self) -> u16 {
        while self.transmit_queue.pop().is_some() {
            self.in_flight -= 1;
        }
        self.in_flight
    }
}
