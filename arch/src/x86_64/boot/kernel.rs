//! Puts an ELF kernel into guest memory and decides how it is entered.

use super::elf::{Elf, Segment};
use super::image::{Image, Source};
use super::{BootEntry, BootProtocol, Kernel, LoadError, map};
use crate::layout::{HIGH_RAM_START, MMIO_HOLE_START};
use crate::memory::{GuestAddress, GuestMemory};

/// Loads a kernel: checks all of its headers, then reads its segments straight into guest memory, at the physical
/// addresses that they name. Memory that a segment has beyond its bytes in the file must be zero already, as fresh
/// memory is.
///
/// # Errors
/// [`LoadError`], with nothing written unless a read failed half way.
pub fn load_kernel(memory: &GuestMemory, image: &mut impl Image, entry: BootEntry) -> Result<Kernel, LoadError> {
    let mut source = Source::open("kernel", image)?;
    let elf = Elf::parse(&mut source)?;
    let memory_end = map::low_memory_end(memory);
    for segment in &elf.segments {
        check_place(segment, memory_end)?;
    }
    let (protocol, entry) = choose_entry(&elf, &mut source, entry)?;
    if !elf.segments.iter().any(|segment| (segment.address..segment.end()).contains(&entry)) {
        return Err(LoadError::EntryOutsideKernel { protocol, entry });
    }
    for segment in &elf.segments {
        source.load_at(segment.offset, segment.file_size, memory, GuestAddress(segment.address))?;
    }
    let end = elf.segments.last().map_or(entry, Segment::end);
    Ok(Kernel { entry: GuestAddress(entry), protocol, end: GuestAddress(end) })
}

fn check_place(segment: &Segment, memory_end: u64) -> Result<(), LoadError> {
    let (index, end) = (segment.index, segment.end());
    if segment.address < HIGH_RAM_START.0 {
        return Err(LoadError::SegmentTooLow { segment: index, address: segment.address });
    }
    if end > MMIO_HOLE_START.0 {
        return Err(LoadError::SegmentInHole { segment: index, end });
    }
    if end > memory_end {
        return Err(LoadError::SegmentBeyondMemory { segment: index, end, memory_end });
    }
    Ok(())
}

fn choose_entry(
    elf: &Elf,
    source: &mut Source<'_, impl Image>,
    entry: BootEntry,
) -> Result<(BootProtocol, u64), LoadError> {
    let linux64 = (BootProtocol::Linux64, elf.entry);
    if entry == BootEntry::Linux64 {
        return Ok(linux64);
    }
    match elf.pvh_entry(source)? {
        Some(pvh) => Ok((BootProtocol::Pvh, pvh)),
        None if entry == BootEntry::Auto => Ok(linux64),
        None => Err(LoadError::NoPvhEntry),
    }
}

#[cfg(test)]
mod tests;
