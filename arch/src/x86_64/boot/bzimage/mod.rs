//! Linux's bzImage (Linux: arch/x86/boot.rst): a setup header, real-mode code, and a decompressor with a packed kernel
//! in it.
//!
//! The packed kernel is an ELF with relocations behind it. Unpacked here, it is entered like any other ELF, at the
//! addresses that it is linked for, so the relocations are not needed. The ELF never is in one piece: its segments are
//! written to guest memory as they come out of the decompressor.

mod error;
mod loading;
mod lz4;
mod setup;
mod unpacker;

use std::io::Cursor;

use super::elf::{Elf, PROGRAM_HEADERS_MAX};
use super::image::{Image, Source};
use super::{BootEntry, BootProtocol, Kernel, KernelFile, LoadError, kernel, map};
use crate::memory::{GuestAddress, GuestMemory};

use self::loading::Loading;
use self::unpacker::Unpacker;

pub use error::BzImageError;
pub use setup::SetupHeader;
pub use unpacker::Compression;

/// No kernel takes more than this when it is unpacked: the virtual addresses that x86-64 Linux has for itself
/// (Linux: KERNEL_IMAGE_SIZE).
const UNPACKED_MAX: u64 = 1 << 30;
/// How much of the ELF must be there before its headers are read: the header, the most program headers, and some room.
const HEAD_SIZE: usize = 16 << 10;
const _: () = assert!(HEAD_SIZE > 64 + 56 * PROGRAM_HEADERS_MAX as usize);

/// Loads a bzImage as it is, its own decompressor included.
pub(super) fn load_image(
    memory: &GuestMemory,
    mut source: Source<'_, impl Image>,
    setup: SetupHeader,
) -> Result<Kernel, LoadError> {
    let place = setup.place_of_image(source.size)?;
    let memory_end = map::low_memory_end(memory);
    if place.end > memory_end {
        return Err(BzImageError::BeyondMemory { end: place.end, memory_end }.into());
    }
    source.load_at(place.offset, place.file_size, memory, GuestAddress(place.address))?;
    Ok(Kernel {
        entry: GuestAddress(place.entry),
        protocol: BootProtocol::Linux64,
        end: GuestAddress(place.end),
        file: KernelFile::Image { setup },
    })
}

/// Unpacks the kernel of a bzImage into guest memory.
pub(super) fn unpack(
    memory: &GuestMemory,
    mut source: Source<'_, impl Image>,
    setup: SetupHeader,
    entry: BootEntry,
) -> Result<Kernel, LoadError> {
    let memory_end = map::low_memory_end(memory);
    let payload = setup.payload(source.size)?;
    let mut unpacker = Unpacker::open(&mut source, payload, memory_end.min(UNPACKED_MAX))?;
    let head = unpacker.head(HEAD_SIZE)?;
    let elf = parse_head(&head, unpacker.compression)?;
    kernel::check_places(&elf, memory_end)?;
    let notes = match entry {
        BootEntry::Auto | BootEntry::Pvh => elf.notes()?,
        BootEntry::Linux64 | BootEntry::Image => &[],
    };
    let mut loading = Loading::new(memory, &elf.segments, notes);
    unpacker.check_size(loading.size())?;
    loading.pass(&head)?;
    unpacker.drain(|bytes| loading.pass(bytes))?;
    loading.check_complete()?;
    let (protocol, entry) = kernel::choose_entry(&elf, entry, |offset, buffer| loading.read_notes(offset, buffer))?;
    Ok(Kernel {
        entry,
        protocol,
        end: elf.end(),
        file: KernelFile::Unpacked { compression: unpacker.compression, setup },
    })
}

/// Reads the headers of an ELF from its first bytes. If these are not all of it, it may have any size.
fn parse_head(head: &[u8], compression: Compression) -> Result<Elf, LoadError> {
    let size = if head.len() < HEAD_SIZE { bytes(head.len()) } else { u64::MAX };
    let mut head = Cursor::new(head);
    match Elf::parse(&mut Source::of_size("packed kernel", size, &mut head)) {
        Err(LoadError::NotElf { start }) => Err(BzImageError::NotElf { compression, start }.into()),
        parsed => parsed,
    }
}

fn bytes(len: usize) -> u64 {
    u64::try_from(len).expect("a usize is at most 64 bits wide")
}

#[cfg(test)]
mod tests;
