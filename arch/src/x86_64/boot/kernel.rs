//! Puts a kernel into guest memory and decides how it is entered.

use super::elf::{Elf, Segment};
use super::image::{Image, Source};
use super::{BootEntry, BootProtocol, Kernel, KernelFile, LoadError, SetupHeader, bzimage, map};
use crate::layout::{HIGH_RAM_START, MMIO_HOLE_START};
use crate::memory::{GuestAddress, GuestMemory};

/// Loads a kernel. An ELF: checks all of its headers, then reads its segments straight into guest memory, at the
/// physical addresses that they name. A bzImage: unpacks the ELF in it on the way there, or with [`BootEntry::Image`]
/// loads it as it is. Memory that is not written must be zero already, as fresh memory is.
///
/// # Errors
/// [`LoadError`], with nothing written unless a read failed half way or a packed kernel turned out to be bad.
pub fn load_kernel(memory: &GuestMemory, image: &mut impl Image, entry: BootEntry) -> Result<Kernel, LoadError> {
    let mut source = Source::open("kernel", image)?;
    match SetupHeader::find(&mut source)? {
        Some(setup) if entry == BootEntry::Image => bzimage::load_image(memory, source, setup),
        Some(setup) => bzimage::unpack(memory, source, setup, entry),
        None if entry == BootEntry::Image => Elf::parse(&mut source).and(Err(LoadError::NotBzImage)),
        None => load_elf(memory, source, entry),
    }
}

fn load_elf(memory: &GuestMemory, mut source: Source<'_, impl Image>, entry: BootEntry) -> Result<Kernel, LoadError> {
    let elf = Elf::parse(&mut source)?;
    check_places(&elf, map::low_memory_end(memory))?;
    let (protocol, entry) = choose_entry(&elf, entry, |offset, buffer| source.read_at(offset, buffer))?;
    for segment in &elf.segments {
        source.load_at(segment.offset, segment.file_size, memory, GuestAddress(segment.address))?;
    }
    Ok(Kernel { entry, protocol, end: elf.end(), file: KernelFile::Elf })
}

/// Checks that every segment has its place in guest memory.
pub(super) fn check_places(elf: &Elf, memory_end: u64) -> Result<(), LoadError> {
    elf.segments.iter().try_for_each(|segment| check_place(segment, memory_end))
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

/// Decides where and how the kernel is entered; `read` fills a buffer from an offset of the ELF.
pub(super) fn choose_entry(
    elf: &Elf,
    entry: BootEntry,
    read: impl FnMut(u64, &mut [u8]) -> Result<(), LoadError>,
) -> Result<(BootProtocol, GuestAddress), LoadError> {
    let pvh = match entry {
        BootEntry::Auto | BootEntry::Pvh => elf.pvh_entry(read)?,
        BootEntry::Linux64 | BootEntry::Image => None,
    };
    let (protocol, entry) = match (pvh, entry) {
        (Some(pvh), _) => (BootProtocol::Pvh, pvh),
        (None, BootEntry::Pvh) => return Err(LoadError::NoPvhEntry),
        (None, _) => (BootProtocol::Linux64, elf.entry),
    };
    let inside = |segment: &Segment| (segment.address..segment.end()).contains(&entry);
    if elf.segments.iter().any(inside) {
        Ok((protocol, GuestAddress(entry)))
    } else {
        Err(LoadError::EntryOutsideKernel { protocol, entry })
    }
}

#[cfg(test)]
mod tests;
