//! virtio-blk: one queue, each request in a slot of its own, polled.

use crate::virtio::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Desc, Device, F_EVENT_IDX, F_INDIRECT, Queue};
use crate::{cpu, memory, time};

/// Bytes of a sector, whatever the device's block size.
pub const SECTOR: u64 = 512;
/// Requests that may be in flight.
pub const DEPTH_MAX: usize = 64;

/// virtio 1.3 §5.2.3.
pub const F_READ_ONLY: u64 = 1 << 5;
/// The block size is in the configuration.
pub const F_BLOCK_SIZE: u64 = 1 << 6;
/// There is a flush command.
pub const F_FLUSH: u64 = 1 << 9;

/// virtio 1.3 §5.2.6: the answers.
pub const OK: u8 = 0;
/// The request failed.
pub const IO_ERROR: u8 = 1;
/// Not answered yet; not one of virtio's.
const UNANSWERED: u8 = 0xff;

/// virtio 1.3 §5.2.6: the requests.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    /// From the disk.
    Read = 0,
    /// To the disk.
    Write = 1,
    /// Make durable what was answered.
    Flush = 4,
    /// The identity string, 20 bytes.
    GetId = 8,
}

/// One request.
#[derive(Clone, Copy)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// Where.
    pub sector: u64,
    /// The buffer's address.
    pub buffer: u64,
    /// Its bytes, whole sectors.
    pub len: u32,
}

/// What came of a series of requests.
#[derive(Clone, Copy)]
pub struct Series {
    /// Ticks of the time stamp counter from the first doorbell to the last answer.
    pub ticks: u64,
    /// Requests that were not answered OK.
    pub failed: u64,
    /// Doorbells rung.
    pub doorbells: u64,
}

/// How long any request may take.
const PATIENCE_MS: u64 = 5000;
/// A slot: header (16 bytes), status, and its indirect table at 64.
const SLOT: u64 = 256;
const STATUS: u64 = 16;
const TABLE: u64 = 64;

/// A disk.
pub struct Blk {
    /// The window.
    pub device: Device,
    /// What was agreed on.
    pub features: u64,
    /// Sectors of 512 bytes.
    pub capacity: u64,
    /// Its queue.
    pub queue: Queue,
    slots: u64,
    free: u64,
}

impl Blk {
    /// Brings a disk up with those of these features that it offers, besides read-only, block size and flush.
    pub fn open(device: Device, wanted: u64) -> Result<Self, &'static str> {
        let features = device.negotiate(wanted | F_READ_ONLY | F_BLOCK_SIZE | F_FLUSH)?;
        let queue = device.queue(0, 256, features)?;
        device.go();
        let capacity = u64::from(device.config(4)) << 32 | u64::from(device.config(0));
        let chains = if features & F_INDIRECT != 0 { queue.size } else { queue.size / 3 };
        let depth = usize::from(chains).min(DEPTH_MAX);
        if depth == 0 {
            return Err("a queue too short for one request");
        }
        let free = u64::MAX >> (64 - depth);
        Ok(Self { device, features, capacity, queue, slots: memory::alloc(SLOT * DEPTH_MAX as u64), free })
    }

    /// Opens it with the features that make polled requests cheapest.
    pub fn open_fast(device: Device) -> Result<Self, &'static str> {
        Self::open(device, F_EVENT_IDX | F_INDIRECT)
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.features & F_READ_ONLY != 0
    }

    /// The device's block size, or a sector.
    pub fn block_size(&self) -> u32 {
        if self.features & F_BLOCK_SIZE != 0 { self.device.config(20) } else { SECTOR as u32 }
    }

    /// Requests that fit in the queue.
    pub fn depth_max(&self) -> usize {
        self.free.count_ones() as usize
    }

    fn slot_address(&self, slot: u32) -> u64 {
        self.slots + SLOT * u64::from(slot)
    }

    /// Makes a request available at the next kick; gives its slot.
    pub fn push(&mut self, request: &Request) -> u32 {
        self.push_pieces(request, 1)
    }

    /// The same with the buffer in `pieces` descriptors, more than one only with indirect tables (at most 8).
    pub fn push_pieces(&mut self, request: &Request, pieces: u32) -> u32 {
        let slot = self.free.trailing_zeros();
        assert!(slot < 64, "more requests in flight than slots");
        self.free &= !(1 << slot);
        let at = self.slot_address(slot);
        memory::store(at, request.op as u32);
        memory::store(at + 4, 0u32);
        memory::store(at + 8, request.sector);
        memory::store(at + STATUS, UNANSWERED);

        let indirect = self.features & F_INDIRECT != 0;
        let first = if indirect { 0 } else { slot as u16 * 3 };
        let mut count = 0;
        let mut add = |address, len, flags| {
            let next = if flags & DESC_NEXT != 0 { first + count + 1 } else { 0 };
            let desc = Desc { address, len, flags, next };
            if indirect {
                memory::store(at + TABLE + 16 * u64::from(count), desc);
            } else {
                self.queue.set(first + count, desc);
            }
            count += 1;
        };
        add(at, 16, DESC_NEXT);
        let direction = if request.op == Op::Write { 0 } else { DESC_WRITE };
        let pieces = if request.len == 0 { 0 } else { pieces };
        for piece in 0..pieces {
            let (from, to) = (request.len * piece / pieces, request.len * (piece + 1) / pieces);
            add(request.buffer + u64::from(from), to - from, direction | DESC_NEXT);
        }
        add(at + STATUS, 1, DESC_WRITE);
        let head = if indirect {
            let table = Desc { address: at + TABLE, len: 16 * u32::from(count), flags: DESC_INDIRECT, next: 0 };
            self.queue.set(slot as u16, table);
            slot as u16
        } else {
            first
        };
        self.queue.push(head);
        slot
    }

    /// Takes one answer: slot and status.
    pub fn pop(&mut self) -> Option<(u32, u8)> {
        let (head, _) = self.queue.pop()?;
        let slot = u32::from(if self.features & F_INDIRECT != 0 { head } else { head / 3 });
        assert!(slot < 64 && self.free & 1 << slot == 0, "an answer to a request that nobody made: head {head}");
        self.free |= 1 << slot;
        Some((slot, memory::load(self.slot_address(slot) + STATUS)))
    }

    /// One request from doorbell to answer, polled; gives the status.
    pub fn request(&mut self, request: Request) -> Result<u8, &'static str> {
        self.push(&request);
        self.queue.kick();
        self.answer()
    }

    /// Polls for one answer; gives the status.
    pub fn answer(&mut self) -> Result<u8, &'static str> {
        let mut answer = None;
        time::poll_until(PATIENCE_MS, || {
            answer = self.pop();
            answer.is_some()
        });
        answer.map(|(_, status)| status).ok_or("no answer within 5 s")
    }

    /// Flushes.
    pub fn flush(&mut self) -> Result<u8, &'static str> {
        self.request(Request { op: Op::Flush, sector: 0, buffer: 0, len: 0 })
    }

    /// The identity string.
    pub fn id(&mut self) -> Result<[u8; 20], &'static str> {
        let buffer = memory::alloc(20);
        match self.request(Request { op: Op::GetId, sector: 0, buffer, len: 20 })? {
            OK => Ok(memory::load(buffer)),
            _ => Err("GET_ID is refused"),
        }
    }

    /// Reads or writes `len` bytes from `sector` on in requests of at most 64 KiB, eight at a time.
    pub fn transfer(&mut self, op: Op, sector: u64, buffer: u64, len: u64) -> Result<Series, &'static str> {
        const PIECE: u64 = 64 << 10;
        self.series(len.div_ceil(PIECE), 8, |i| Request {
            op,
            sector: sector + i * PIECE / SECTOR,
            buffer: buffer + i * PIECE,
            len: PIECE.min(len - i * PIECE) as u32,
        })
    }

    /// Keeps `depth` requests in flight until `count` are answered; `make` gives the nth.
    pub fn series(
        &mut self,
        count: u64,
        depth: usize,
        mut make: impl FnMut(u64) -> Request,
    ) -> Result<Series, &'static str> {
        let depth = depth.min(self.depth_max()) as u64;
        let (mut pushed, mut answered, mut failed, mut doorbells) = (0, 0, 0, 0);
        let start = cpu::tsc();
        let mut moved = start;
        while answered < count {
            let room = (depth - (pushed - answered)).min(count - pushed);
            if room > 0 {
                for _ in 0..room {
                    self.push(&make(pushed));
                    pushed += 1;
                }
                doorbells += u64::from(self.queue.kick());
            }
            let before = answered;
            while let Some((_, status)) = self.pop() {
                answered += 1;
                failed += u64::from(status != OK);
            }
            if answered != before {
                moved = cpu::tsc();
            } else if cpu::tsc() - moved > time::ticks(PATIENCE_MS * 1000) {
                return Err("no answer within 5 s");
            } else {
                cpu::pause();
            }
        }
        Ok(Series { ticks: cpu::tsc() - start, failed, doorbells })
    }
}
