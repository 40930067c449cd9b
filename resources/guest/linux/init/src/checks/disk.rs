//! `disk`: every virtio disk is described and read; a writable one is written, flushed and read again.
//!
//! All transfers bypass the page cache (O_DIRECT), so that what is read comes from the device.

use super::{Facts, Fault, fault};
use crate::fnv::Fnv;
use crate::pattern::{Pattern, SEED_DEFAULT};
use crate::sys::{self, Access, Errno, File};
use crate::text::{Printable, Text, say};
use crate::words::Words;

/// How much of a disk is read and written, from its start, in bytes. `husk.disk=` says another figure.
const COVERED_DEFAULT: u64 = 8 << 20;
/// How much one request moves. Larger ones save little, and each page of it costs the guest.
const PIECE: usize = 128 << 10;
/// Linux names them vda to vdz; more than the 19 devices that the machine can have.
const LETTERS: core::ops::RangeInclusive<u8> = b'a'..=b'z';

/// One disk while it is looked at.
struct Disk<'a> {
    file: File,
    buffer: &'a mut [u8],
    /// How much of it the check covers, in bytes, from the start.
    covered: usize,
    /// What is written: offset and length in bytes, both of whole blocks.
    region: (usize, usize),
}

pub(super) fn run(words: &Words, facts: &mut Facts) -> Result<(), Fault> {
    let limit = words.number("husk.disk", COVERED_DEFAULT).map_err(|refusal| fault!("{refusal}"))?;
    let seed = words.number("husk.seed", SEED_DEFAULT).map_err(|refusal| fault!("{refusal}"))?;
    let buffer = sys::memory(PIECE).map_err(|errno| fault!("cannot have a buffer: {errno}"))?;
    let mut disks = 0;
    for (letter, index) in LETTERS.zip(0..) {
        let name = Text::<8>::of(format_args!("vd{}", char::from(letter)));
        if !look_at(&name, limit, Pattern::new(seed, index), buffer).map_err(|fault| fault!("{name}: {fault}"))? {
            break;
        }
        disks += 1;
    }
    if disks == 0 {
        return Err(fault!("there is no /dev/vda"));
    }
    facts.fact(format_args!("disks={disks}"));
    Ok(())
}

/// Checks one disk and says what was found. `false` where there is none of that name.
fn look_at(name: &Text<8>, limit: u64, pattern: Pattern, buffer: &mut [u8]) -> Result<bool, Fault> {
    let path = Text::<32>::of(format_args!("/dev/{name}"));
    let path = path.as_cstr().ok_or_else(|| fault!("the name is too long"))?;
    let file = match File::open(path, Access::ReadDirect) {
        Ok(file) => file,
        Err(Errno::NOT_FOUND) => return Ok(false),
        Err(errno) => return Err(fault!("cannot open it: {errno}")),
    };
    let told = |errno| fault!("cannot ask for its properties: {errno}");
    let size = file.disk_size().map_err(told)?;
    let block = usize::try_from(file.disk_block_size().map_err(told)?).unwrap_or(512).max(512);
    let read_only = file.disk_is_read_only().map_err(told)?;
    let covered = usize::try_from(size.min(limit)).unwrap_or(0) / block * block;
    let blocks = covered / block;
    let region = (blocks / 4 * block, (blocks / 2).max(1) * block);

    let mut serial = [0; 32];
    let serial_path = Text::<48>::of(format_args!("/sys/block/{name}/serial"));
    let serial_path = serial_path.as_cstr().ok_or_else(|| fault!("the name is too long"))?;
    let len = sys::read_file(serial_path, &mut serial).unwrap_or(0);
    let serial = Printable(serial.get(..len).unwrap_or_default().trim_ascii());

    let ro = u8::from(read_only);
    let described = format_args!("bytes={size} block={block} ro={ro} serial={serial} covered={covered}");
    let file = if read_only {
        file
    } else {
        File::open(path, Access::ReadWriteDirect).map_err(|errno| fault!("cannot open it for writing: {errno}"))?
    };
    let mut disk = Disk { file, buffer, covered, region };
    let before = disk.sum(None)?;
    if read_only || covered == 0 {
        say!("DISK {name} {described} before={before:016x}");
        return Ok(true);
    }
    disk.write(pattern.clone())?;
    let after = disk.sum(Some(pattern))?;
    let (offset, len) = region;
    say!("DISK {name} {described} before={before:016x} offset={offset} len={len} after={after:016x}");
    Ok(true)
}

impl Disk<'_> {
    /// The checksum of what is covered; with a pattern, also compares the region with it.
    fn sum(&mut self, mut pattern: Option<Pattern>) -> Result<u64, Fault> {
        let mut sum = Fnv::new();
        let (start, end) = (self.region.0, self.region.0 + self.region.1);
        let mut offset = 0;
        while offset < self.covered {
            let piece = piece(self.buffer, offset, self.covered);
            let read = self.file.read_at(piece, offset).map_err(|errno| fault!("cannot read at {offset}: {errno}"))?;
            if read != piece.len() {
                return Err(fault!("read {read} of {} bytes at {offset}", piece.len()));
            }
            sum.add(piece);
            // The part of this piece that lies in the region, if any does.
            let from = start.clamp(offset, offset + read) - offset;
            let to = end.clamp(offset, offset + read) - offset;
            if let (Some(pattern), Some(written)) = (pattern.as_mut(), piece.get(from..to))
                && let Some(at) = pattern.first_difference(written)
            {
                return Err(fault!("byte {} is not what was written there", offset + from + at));
            }
            offset += read;
        }
        Ok(sum.value())
    }

    /// Writes the pattern over the region and makes it durable.
    fn write(&mut self, mut pattern: Pattern) -> Result<(), Fault> {
        let (mut offset, end) = (self.region.0, self.region.0 + self.region.1);
        while offset < end {
            let piece = piece(self.buffer, offset, end);
            pattern.fill(piece);
            let len = piece.len();
            let written =
                self.file.write_at(piece, offset).map_err(|errno| fault!("cannot write at {offset}: {errno}"))?;
            if written != len {
                return Err(fault!("wrote {written} of {len} bytes at {offset}"));
            }
            offset += written;
        }
        self.file.sync().map_err(|errno| fault!("cannot flush: {errno}"))
    }
}

/// The buffer, cut to what is left between `offset` and `end`.
fn piece(buffer: &mut [u8], offset: usize, end: usize) -> &mut [u8] {
    let len = buffer.len().min(end - offset);
    &mut buffer[..len]
}
