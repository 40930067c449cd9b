//! virtio-mem: blocks plugged and unplugged, one at a time.

use crate::virtio::{DESC_NEXT, DESC_WRITE, Desc, Device, Queue};
use crate::{memory, time};

/// virtio 1.3 §5.15.3: what is not plugged is not touched.
const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// virtio 1.3 §5.15.6.
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const REQUEST_BYTES: u64 = 24;
const ANSWER_BYTES: u64 = 10;
const ACK: u16 = 0;

/// A device that has memory for the guest.
pub struct Pluggable {
    device: Device,
    queue: Queue,
    request: u64,
    /// Where its memory begins.
    pub start: u64,
    /// How large a block is.
    pub block_bytes: u64,
}

impl Pluggable {
    /// Sets the device up and maps all of its memory, which must not be touched where it is not plugged.
    pub fn new(device: Device) -> Result<Self, &'static str> {
        let features = device.negotiate(F_UNPLUGGED_INACCESSIBLE)?;
        if features & F_UNPLUGGED_INACCESSIBLE == 0 {
            return Err("the device does not say that unplugged memory is not there");
        }
        let queue = device.queue(0, 8, features)?;
        device.go();
        let request = memory::alloc(REQUEST_BYTES + ANSWER_BYTES);
        let (block_bytes, start) = (wide(device, 0), wide(device, 16));
        memory::map_to(start + wide(device, 24));
        Ok(Self { device, queue, request, start, block_bytes })
    }

    /// Bytes that the host wants plugged.
    pub fn requested(&self) -> u64 {
        wide(self.device, 48)
    }

    /// Plugs a block.
    pub fn plug(&mut self, block: u64) -> Result<(), &'static str> {
        self.ask(PLUG, block)
    }

    /// Gives a block back.
    pub fn unplug(&mut self, block: u64) -> Result<(), &'static str> {
        self.ask(UNPLUG, block)
    }

    fn ask(&mut self, what: u16, block: u64) -> Result<(), &'static str> {
        let answer = self.request + REQUEST_BYTES;
        for (offset, value) in [(0, u64::from(what)), (8, self.start + block * self.block_bytes), (16, 1)] {
            memory::store(self.request + offset, value);
        }
        memory::store(answer, u16::MAX);
        let (len, answer_len) = (REQUEST_BYTES as u32, ANSWER_BYTES as u32);
        self.queue.set(0, Desc { address: self.request, len, flags: DESC_NEXT, next: 1 });
        self.queue.set(1, Desc { address: answer, len: answer_len, flags: DESC_WRITE, next: 0 });
        self.queue.push(0);
        self.queue.kick();
        // A machine may be held meanwhile, and its clock goes on.
        if !time::poll_until(60_000, || self.queue.pop().is_some()) {
            return Err("no answer within a minute");
        }
        match memory::load::<u16>(answer) {
            ACK => Ok(()),
            _ => Err("the device does not do it"),
        }
    }
}

/// 64 bits of the configuration.
fn wide(device: Device, offset: u64) -> u64 {
    u64::from(device.config(offset)) | u64::from(device.config(offset + 4)) << 32
}
