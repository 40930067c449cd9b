//! `soak`: `husk.soak` requests, mixed, at random places of each writable disk, any of which may fail. What a disk has
//! acknowledged it must give back; what of a failed write it kept is open until the next one there succeeds.
//!
//! At the end each disk's lines say which pattern every block holds, so that the host can look for it in the file.

use core::fmt::Write;

use super::{Facts, Fault, fault};
use crate::fnv::Fnv;
use crate::pattern::{Pattern, SEED_DEFAULT};
use crate::sys::{self, Access, Errno, File};
use crate::text::{Text, say};
use crate::words::Words;

const REQUESTS_DEFAULT: u64 = 2000;
/// The unit of what is remembered, in bytes: a multiple of every logical block.
const BLOCK: usize = 4096;
/// How many blocks are used of each disk, from its start.
const BLOCKS_MAX: usize = 256;
/// How many blocks one request moves at most.
const RUN_MAX: usize = 4;
/// More disks than that are left alone.
const DISKS_MAX: usize = 4;
/// How often the same read may fail at the end: a disk that fails one in two answers nearly always.
const TRIES_MAX: usize = 64;
/// Blocks on one line of the report.
const BLOCKS_A_LINE: usize = 32;
/// The pattern of a block whose content is open. Requests are numbered from 1.
const OPEN: u64 = 0;

/// A disk and what it must hold.
struct Disk {
    name: Text<8>,
    file: File,
    blocks: usize,
    /// The index of the pattern in each block.
    written: [u64; BLOCKS_MAX],
}

/// Consecutive blocks.
#[derive(Clone, Copy)]
struct Run {
    first: usize,
    count: usize,
}

#[derive(Default)]
struct Tally {
    reads: usize,
    writes: usize,
    flushes: usize,
    failed: usize,
}

pub(super) fn run(words: &Words, facts: &mut Facts) -> Result<(), Fault> {
    let requests = words.number("husk.soak", REQUESTS_DEFAULT).map_err(|refusal| fault!("{refusal}"))?;
    let seed = words.number("husk.seed", SEED_DEFAULT).map_err(|refusal| fault!("{refusal}"))?;
    let buffer = sys::memory(RUN_MAX * BLOCK).map_err(|errno| fault!("cannot have a buffer: {errno}"))?;
    let mut disks: [Option<Disk>; DISKS_MAX] = [const { None }; DISKS_MAX];
    let mut found = 0;
    for (place, letter) in disks.iter_mut().zip(b'a'..) {
        *place = open(char::from(letter))?;
        found += usize::from(place.is_some());
    }
    if found == 0 {
        return Err(fault!("there is no disk to write to"));
    }
    let mut tally = Tally::default();
    let mut dice = Pattern::new(seed, u64::MAX / 2);
    for number in 1..=requests {
        let which = dice.below(found);
        if let Some(disk) = disks.iter_mut().flatten().nth(which) {
            disk.request(number, seed, &mut dice, buffer, &mut tally)?;
        }
    }
    for disk in disks.iter().flatten() {
        disk.report(seed, buffer, &mut tally)?;
    }
    let Tally { reads, writes, flushes, failed } = tally;
    facts.fact(format_args!("disks={found} reads={reads} writes={writes} flushes={flushes} failed={failed}"));
    Ok(())
}

/// The disk of that letter, if there is one that may be written.
fn open(letter: char) -> Result<Option<Disk>, Fault> {
    let name = Text::of(format_args!("vd{letter}"));
    let path = Text::<16>::of(format_args!("/dev/{name}"));
    let path = path.as_cstr().ok_or_else(|| fault!("the name is too long"))?;
    let told = |errno: Errno| fault!("{name}: cannot open it: {errno}");
    match File::open(path, Access::ReadDirect) {
        Err(Errno::NOT_FOUND) => return Ok(None),
        Err(errno) => return Err(told(errno)),
        Ok(file) if file.disk_is_read_only().map_err(told)? => return Ok(None),
        Ok(_) => {}
    }
    let file = File::open(path, Access::ReadWriteDirect).map_err(told)?;
    let size = usize::try_from(file.disk_size().map_err(told)?).unwrap_or(usize::MAX);
    let blocks = (size / BLOCK).min(BLOCKS_MAX);
    if blocks < RUN_MAX {
        return Err(fault!("{name} has less than {RUN_MAX} blocks"));
    }
    Ok(Some(Disk { name, file, blocks, written: [OPEN; BLOCKS_MAX] }))
}

/// The name of the pattern in the `place`th block that the request wrote.
const fn index(number: u64, place: usize) -> u64 {
    number * RUN_MAX as u64 + place as u64
}

impl Disk {
    /// Does one request of a kind and at a place that the dice say.
    fn request(
        &mut self,
        number: u64,
        seed: u64,
        dice: &mut Pattern,
        buffer: &mut [u8],
        tally: &mut Tally,
    ) -> Result<(), Fault> {
        let count = 1 + dice.below(RUN_MAX);
        let run = Run { first: dice.below(self.blocks - count + 1), count };
        match dice.below(16) {
            0 | 1 => {
                tally.flushes += 1;
                tally.failed += usize::from(self.file.sync().is_err());
            }
            2..9 => {
                tally.reads += 1;
                self.read(run, seed, buffer, tally)?;
            }
            _ => {
                tally.writes += 1;
                self.write(run, number, seed, buffer, tally)?;
            }
        }
        Ok(())
    }

    /// Writes new patterns, which the disk then has to keep, unless it says that it failed.
    fn write(&mut self, run: Run, number: u64, seed: u64, buffer: &mut [u8], tally: &mut Tally) -> Result<(), Fault> {
        let bytes = &mut buffer[..run.count * BLOCK];
        for (place, block) in bytes.chunks_exact_mut(BLOCK).enumerate() {
            Pattern::new(seed, index(number, place)).fill(block);
        }
        let kept = match self.file.write_at(bytes, run.first * BLOCK) {
            Ok(written) if written == bytes.len() => true,
            Ok(written) => return Err(fault!("{}: wrote {written} of {} bytes", self.name, bytes.len())),
            Err(Errno::IO) => false,
            Err(errno) => return Err(fault!("{}: cannot write: {errno}", self.name)),
        };
        tally.failed += usize::from(!kept);
        for (place, written) in self.written[run.first..][..run.count].iter_mut().enumerate() {
            *written = if kept { index(number, place) } else { OPEN };
        }
        Ok(())
    }

    /// Reads blocks and compares those whose content is known. `false` where the disk says that it failed.
    fn read(&self, run: Run, seed: u64, buffer: &mut [u8], tally: &mut Tally) -> Result<bool, Fault> {
        let bytes = &mut buffer[..run.count * BLOCK];
        match self.file.read_at(bytes, run.first * BLOCK) {
            Ok(read) if read == bytes.len() => {}
            Ok(read) => return Err(fault!("{}: read {read} of {} bytes", self.name, bytes.len())),
            Err(Errno::IO) => {
                tally.failed += 1;
                return Ok(false);
            }
            Err(errno) => return Err(fault!("{}: cannot read: {errno}", self.name)),
        }
        let written = &self.written[run.first..][..run.count];
        for ((block, &index), number) in bytes.chunks_exact(BLOCK).zip(written).zip(run.first..) {
            if index != OPEN
                && let Some(at) = Pattern::new(seed, index).first_difference(block)
            {
                return Err(fault!("{}: byte {at} of block {number} is not that of pattern {index:x}", self.name));
            }
        }
        Ok(true)
    }

    /// Reads all that is known once more and says what it is.
    fn report(&self, seed: u64, buffer: &mut [u8], tally: &mut Tally) -> Result<(), Fault> {
        let mut sum = Fnv::new();
        let written = &self.written[..self.blocks];
        for (piece, written) in written.chunks(RUN_MAX).enumerate() {
            let run = Run { first: piece * RUN_MAX, count: written.len() };
            let mut tries = 0;
            while !self.read(run, seed, buffer, tally)? {
                tries += 1;
                if tries == TRIES_MAX {
                    return Err(fault!("{}: block {} failed {tries} times", self.name, run.first));
                }
            }
            let known = buffer.chunks_exact(BLOCK).zip(written).filter(|(_, index)| **index != OPEN);
            known.for_each(|(block, _)| sum.add(block));
        }
        for (line, written) in written.chunks(BLOCKS_A_LINE).enumerate() {
            let mut patterns = Text::<512>::new();
            for index in written {
                // A line that is cut has fewer words than the host counts.
                let _ = write!(patterns, " {index:x}");
            }
            say!("SOAK {} from={}{patterns}", self.name, line * BLOCKS_A_LINE);
        }
        let known = written.iter().filter(|index| **index != OPEN).count();
        say!("SOAKED {} blocks={} known={known} sum={:016x}", self.name, self.blocks, sum.value());
        Ok(())
    }
}
