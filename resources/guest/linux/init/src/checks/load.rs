//! `load`: disk, memory, CPUs and network work together until the neighbour says that it is enough; then all that was
//! written is read once more.
//!
//! It is made for a machine that is taken back to an earlier instant in the middle of it. What is written and sent follows
//! from its number alone, and a block of the disk is written once, in order: a disk that was written to after that instant
//! still holds all that the guest knew then. Each request to UDP port 4244 of the neighbour is sent until its answer comes,
//! and has the sums of all that was sent and received, so that the neighbour can hold them against its own.

use core::time::Duration;

use super::net;
use super::{Facts, Fault, fault};
use crate::fnv::Fnv;
use crate::pattern::{Pattern, SEED_DEFAULT};
use crate::sys::socket::{Carries, Socket};
use crate::sys::{self, Access, Clock, CpuSet, Errno, File};
use crate::text::say;
use crate::words::Words;

const PORT: u16 = 4244;
/// The lengths of requests and answers, their heads included.
const DATAGRAM: usize = 1024;
/// A request's head: its number, the monotonic and the real-time clock in ns, and the sums of the bodies sent, this one
/// included, and received.
const REQUEST_HEAD: usize = 5 * 8;
/// An answer's head: the number of the request, and [`GO_ON`] or not.
const ANSWER_HEAD: usize = 2 * 8;
const GO_ON: u64 = 0;
/// How long an answer is waited for before the request is sent again.
const AGAIN_AFTER: Duration = Duration::from_millis(200);
const TRIES_MAX: u32 = 300;

const BLOCK: usize = 4096;
/// How many blocks one write has at most.
const RUN_MAX: usize = 4;
/// How much memory is written and compared, in pages, and how many of them in each round.
const PAGES: usize = 512;
const PAGES_A_ROUND: usize = 4;

/// Where the patterns' indices of requests, answers and pages begin; a disk's block has its own number.
const REQUESTS: u64 = 1 << 32;
const ANSWERS: u64 = 2 << 32;
const MEMORY: u64 = 3 << 32;

pub(super) fn run(words: &Words, facts: &mut Facts) -> Result<(), Fault> {
    let seed = words.number("husk.seed", SEED_DEFAULT).map_err(|refusal| fault!("{refusal}"))?;
    let cpus = sys::allowed_cpus().map_err(|errno| fault!("cannot ask for the CPUs: {errno}"))?;
    let mut disk = Log::open(seed)?;
    let mut memory = Pages::new(seed)?;
    let mut neighbour = Neighbour::meet(seed)?;
    let mut dice = Pattern::new(seed, u64::MAX / 2);
    say!("LOAD begins");
    loop {
        visit(&cpus, neighbour.number)?;
        disk.append(1 + dice.below(RUN_MAX))?;
        disk.compare_one(&mut dice)?;
        memory.work(&mut dice)?;
        if neighbour.exchange()? == Word::Enough {
            break;
        }
    }
    memory.compare_all()?;
    let disk_sum = disk.compare_all()?;
    let Neighbour { number, again, sent, received, .. } = neighbour;
    facts.fact(format_args!("exchanges={number} again={again} blocks={} disk_sum={disk_sum:016x}", disk.written));
    facts.fact(format_args!("sent_sum={:016x} received_sum={:016x}", sent.value(), received.value()));
    Ok(())
}

/// Moves to the CPU whose turn it is. On every second one the kernel interrupts the others.
fn visit(cpus: &CpuSet, round: u64) -> Result<(), Fault> {
    let turn = round % u64::from(cpus.count());
    let Some((cpu, _)) = cpus.iter().zip(0u64..).find(|(_, place)| *place == turn) else { return Ok(()) };
    sys::run_on(cpu).map_err(|errno| fault!("cannot move to CPU {cpu}: {errno}"))?;
    if cpu % 2 == 1 {
        sys::flush_other_tlbs().map_err(|errno| fault!("cannot map and unmap a page: {errno}"))?;
    }
    Ok(())
}

/// A disk whose blocks are written once, in order.
struct Log {
    seed: u64,
    file: File,
    blocks: usize,
    written: usize,
    buffer: &'static mut [u8],
}

impl Log {
    fn open(seed: u64) -> Result<Self, Fault> {
        let file =
            File::open(c"/dev/vda", Access::ReadWriteDirect).map_err(|errno| fault!("cannot open vda: {errno}"))?;
        let bytes = file.disk_size().map_err(|errno| fault!("cannot ask for the size of vda: {errno}"))?;
        let buffer = sys::memory(RUN_MAX * BLOCK).map_err(|errno| fault!("cannot have a buffer: {errno}"))?;
        let blocks = usize::try_from(bytes).unwrap_or(usize::MAX) / BLOCK;
        Ok(Self { seed, file, blocks, written: 0, buffer })
    }

    /// Writes so many blocks, or as many as there is room for.
    fn append(&mut self, count: usize) -> Result<(), Fault> {
        let count = count.min(self.blocks - self.written);
        let bytes = &mut self.buffer[..count * BLOCK];
        for (block, number) in bytes.chunks_exact_mut(BLOCK).zip(self.written as u64..) {
            Pattern::new(self.seed, number).fill(block);
        }
        match self.file.write_at(bytes, self.written * BLOCK) {
            Ok(written) if written == bytes.len() => {}
            Ok(written) => return Err(fault!("wrote {written} of {} bytes at block {}", bytes.len(), self.written)),
            Err(errno) => return Err(fault!("cannot write block {}: {errno}", self.written)),
        }
        self.written += count;
        Ok(())
    }

    fn compare_one(&mut self, dice: &mut Pattern) -> Result<(), Fault> {
        let block = dice.below(self.written.max(1));
        self.compare(block, 1)
    }

    /// Reads blocks that were written, and leaves them in the buffer.
    fn compare(&mut self, first: usize, count: usize) -> Result<(), Fault> {
        let bytes = &mut self.buffer[..count * BLOCK];
        match self.file.read_at(bytes, first * BLOCK) {
            Ok(read) if read == bytes.len() => {}
            Ok(read) => return Err(fault!("read {read} of {} bytes at block {first}", bytes.len())),
            Err(errno) => return Err(fault!("cannot read block {first}: {errno}")),
        }
        for (block, number) in bytes.chunks_exact(BLOCK).zip(first as u64..) {
            if let Some(at) = Pattern::new(self.seed, number).first_difference(block) {
                return Err(fault!("byte {at} of block {number} is not what was written"));
            }
        }
        Ok(())
    }

    /// The sum of all that was written, as it is read.
    fn compare_all(&mut self) -> Result<u64, Fault> {
        let mut sum = Fnv::new();
        let mut first = 0;
        while first < self.written {
            let count = RUN_MAX.min(self.written - first);
            self.compare(first, count)?;
            sum.add(&self.buffer[..count * BLOCK]);
            first += count;
        }
        Ok(sum.value())
    }
}

/// Memory that keeps what is written to it.
struct Pages {
    seed: u64,
    bytes: &'static mut [u8],
    /// The index of the pattern in each page, of which 0 is none.
    written: [u64; PAGES],
    last: u64,
}

impl Pages {
    fn new(seed: u64) -> Result<Self, Fault> {
        let bytes = sys::memory(PAGES * BLOCK).map_err(|errno| fault!("cannot have memory: {errno}"))?;
        Ok(Self { seed, bytes, written: [0; PAGES], last: MEMORY })
    }

    /// Writes some pages, and compares some.
    fn work(&mut self, dice: &mut Pattern) -> Result<(), Fault> {
        for _ in 0..PAGES_A_ROUND {
            let page = dice.below(PAGES);
            self.last += 1;
            self.written[page] = self.last;
            Pattern::new(self.seed, self.last).fill(&mut self.bytes[page * BLOCK..][..BLOCK]);
        }
        (0..PAGES_A_ROUND).try_for_each(|_| self.compare(dice.below(PAGES)))
    }

    fn compare(&self, page: usize) -> Result<(), Fault> {
        let bytes = &self.bytes[page * BLOCK..][..BLOCK];
        let differs = match self.written[page] {
            0 => bytes.iter().position(|&byte| byte != 0),
            index => Pattern::new(self.seed, index).first_difference(bytes),
        };
        differs.map_or(Ok(()), |at| Err(fault!("byte {at} of page {page} is not what was written")))
    }

    fn compare_all(&self) -> Result<(), Fault> {
        (0..PAGES).try_for_each(|page| self.compare(page))
    }
}

/// What the neighbour says.
#[derive(PartialEq, Eq)]
enum Word {
    GoOn,
    Enough,
}

/// Who answers at the other end of the network.
struct Neighbour {
    seed: u64,
    socket: Socket,
    number: u64,
    /// How many requests were sent again.
    again: u64,
    sent: Fnv,
    received: Fnv,
}

impl Neighbour {
    fn meet(seed: u64) -> Result<Self, Fault> {
        let control = Socket::new(Carries::Datagrams).map_err(|errno| fault!("no socket: {errno}"))?;
        net::begin(&control)?;
        let socket = net::open(Carries::Datagrams, PORT)?;
        socket.limit(AGAIN_AFTER).map_err(|errno| fault!("cannot limit a socket: {errno}"))?;
        Ok(Self { seed, socket, number: 0, again: 0, sent: Fnv::new(), received: Fnv::new() })
    }

    /// Sends the next request and takes its answer.
    fn exchange(&mut self) -> Result<Word, Fault> {
        self.number += 1;
        let mut request = [0; DATAGRAM];
        Pattern::new(self.seed, REQUESTS + self.number).fill(&mut request[REQUEST_HEAD..]);
        self.sent.add(&request[REQUEST_HEAD..]);
        let [monotonic, real] = [Clock::Monotonic, Clock::Real].map(|clock| sys::clock(clock).unwrap_or_default());
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let sums = [self.sent.value(), self.received.value()];
        let head = [self.number, nanoseconds(monotonic), nanoseconds(real), sums[0], sums[1]];
        for (place, word) in request.as_chunks_mut::<8>().0.iter_mut().zip(head) {
            *place = word.to_le_bytes();
        }
        for _ in 0..TRIES_MAX {
            // A request that cannot be sent is one that was lost.
            let _ = self.socket.send(&request);
            if let Some(word) = self.answer()? {
                return Ok(word);
            }
            self.again += 1;
        }
        Err(fault!("no answer to request {} within {} s", self.number, (AGAIN_AFTER * TRIES_MAX).as_secs()))
    }

    /// The answer to the last request, if it comes.
    fn answer(&mut self) -> Result<Option<Word>, Fault> {
        let mut answer = [0; DATAGRAM];
        loop {
            match self.socket.receive(&mut answer) {
                Ok(DATAGRAM) => {}
                Ok(len) => return Err(fault!("an answer has {len} bytes")),
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(fault!("cannot receive: {errno}")),
            }
            let (head, body) = answer.split_at(ANSWER_HEAD);
            let [number, word] =
                [&head[..8], &head[8..]].map(|bytes| bytes.iter().rfold(0, |sum, byte| sum << 8 | u64::from(*byte)));
            // The answer to a request that was sent twice.
            if number < self.number {
                continue;
            }
            if number > self.number {
                return Err(fault!("an answer to request {number} after {}", self.number));
            }
            if let Some(at) = Pattern::new(self.seed, ANSWERS + number).first_difference(body) {
                return Err(fault!("byte {at} of answer {number} is not what was sent"));
            }
            self.received.add(body);
            return Ok(Some(if word == GO_ON { Word::GoOn } else { Word::Enough }));
        }
    }
}
