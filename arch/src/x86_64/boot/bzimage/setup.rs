//! The setup header of a bzImage, and what it says once it is checked.

use std::mem::offset_of;

use linux_loader::bootparam::{boot_params, setup_header};
use linux_loader::elf::ELFMAG;

use super::super::LoadError;
use super::super::image::{Image, Source};
use super::BzImageError;
use crate::layout::{HIGH_RAM_START, MMIO_HOLE_START};
use crate::memory::ByteValued;

/// Where the header is, in the file and in the zero page.
const HEADER_START: u64 = offset_of!(boot_params, hdr) as u64;
const MAGIC_OFFSET: u64 = HEADER_START + offset_of!(setup_header, header) as u64;
const MAGIC: [u8; 4] = *b"HdrS";
/// The header ends behind this many bytes from its magic: the offset of the jump over it, at 0x201.
const JUMP_OFFSET: usize = offset_of!(setup_header, jump) + 1;
const SECTOR_SIZE: u64 = 512;
/// What 0 means in `setup_sects`.
const SECTORS_DEFAULT: u8 = 4;
/// 2.08 is the first with the payload's place.
const VERSION_PAYLOAD: u16 = 0x0208;
/// 2.12 is the first with `xloadflags`.
const VERSION_XLOADFLAGS: u16 = 0x020c;
/// XLF_KERNEL_64: there is a 64-bit entry at [`ENTRY_64_OFFSET`].
const KERNEL_64: u16 = 1;
const ENTRY_64_OFFSET: u64 = 0x200;
/// LOADED_HIGH: the protected-mode code goes to 1 MiB or above.
const LOADED_HIGH: u8 = 1;

const _: () = assert!(MAGIC_OFFSET == 0x202 && HEADER_START + JUMP_OFFSET as u64 == 0x201);

/// A bzImage's setup header. Nothing in it is checked until it is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SetupHeader(setup_header);

// Every field is an integer.
impl Eq for SetupHeader {}

/// Where a bzImage goes that is loaded as it is.
#[derive(Debug)]
pub(super) struct ImagePlace {
    /// Where the protected-mode code starts in the file.
    pub(super) offset: u64,
    /// How long it is there, in bytes.
    pub(super) file_size: u64,
    /// Where it goes, at 1 MiB or above.
    pub(super) address: u64,
    pub(super) entry: u64,
    /// The first address behind what it needs to unpack itself. Not above the hole.
    pub(super) end: u64,
}

impl SetupHeader {
    /// The header of a bzImage, or `None` if the file is none.
    pub(in super::super) fn find(source: &mut Source<'_, impl Image>) -> Result<Option<Self>, LoadError> {
        if source.size < MAGIC_OFFSET + 4 {
            return Ok(None);
        }
        let mut start = [0; 4];
        let mut magic = [0; 4];
        source.read_at(0, &mut start)?;
        source.read_at(MAGIC_OFFSET, &mut magic)?;
        if start == *ELFMAG || magic != MAGIC {
            return Ok(None);
        }
        let mut header = setup_header::default();
        let bytes = header.as_mut_slice();
        let end = HEADER_START + super::bytes(bytes.len());
        inside_file("setup header", end, source.size)?;
        source.read_at(HEADER_START, bytes)?;
        // What is behind the header's own end is code.
        let end = offset_of!(setup_header, header) + usize::from(bytes[JUMP_OFFSET]);
        if let Some(code) = bytes.get_mut(end..) {
            code.fill(0);
        }
        let found = Self(header);
        if found.0.version < VERSION_PAYLOAD {
            return Err(found.too_old(VERSION_PAYLOAD).into());
        }
        found.check("loadflags", (found.0.loadflags & LOADED_HIGH).into(), 1, "1 (loaded high)")?;
        Ok(Some(found))
    }

    /// Whether the kernel can be entered at another address than the one that it is linked for.
    pub(in super::super) fn is_relocatable(&self) -> bool {
        self.0.relocatable_kernel != 0
    }

    /// The highest address that the initrd's last byte may have.
    pub(in super::super) fn initrd_last(&self) -> u64 {
        self.0.initrd_addr_max.into()
    }

    /// The header itself, for the zero page.
    pub(in super::super) fn raw(&self) -> setup_header {
        self.0
    }

    /// Where the packed kernel is in a file of `file_size` bytes, and how long it is there. It is inside the file.
    pub(super) fn payload(&self, file_size: u64) -> Result<(u64, u64), LoadError> {
        let (offset, size) = (self.0.payload_offset, self.0.payload_length);
        // Every sum of these is far below the end of 64 bits.
        let start = self.code_offset() + u64::from(offset);
        inside_file("packed kernel", start + u64::from(size), file_size)?;
        Ok((start, size.into()))
    }

    /// Where the image goes as it is (Linux: arch/x86/boot.rst, 64-bit boot protocol): to the address that it prefers,
    /// because it takes itself there from everywhere below.
    pub(super) fn place_of_image(&self, file_size: u64) -> Result<ImagePlace, LoadError> {
        if self.0.version < VERSION_XLOADFLAGS {
            return Err(self.too_old(VERSION_XLOADFLAGS).into());
        }
        self.check("xloadflags", (self.0.xloadflags & KERNEL_64).into(), 1, "1 (64-bit entry)")?;
        let alignment = u64::from(self.0.kernel_alignment);
        if !alignment.is_power_of_two() {
            return Err(wrong("kernel_alignment", alignment, "a power of two").into());
        }
        let preferred = self.0.pref_address;
        let address = preferred.max(HIGH_RAM_START.0).checked_next_multiple_of(alignment);
        let address = match address {
            Some(address) if address < MMIO_HOLE_START.0 && (address == preferred || self.is_relocatable()) => address,
            _ => return Err(wrong("pref_address", preferred, "from 1 MiB to 3 GiB, and aligned").into()),
        };
        let offset = self.code_offset();
        // In paragraphs of 16 bytes; the last one need not be whole.
        let size = u64::from(self.0.syssize) * 16;
        inside_file("protected-mode code", offset + size.saturating_sub(15), file_size)?;
        let size = size.min(file_size - offset);
        if size <= ENTRY_64_OFFSET {
            return Err(wrong("syssize", self.0.syssize.into(), "more than 32").into());
        }
        Ok(ImagePlace {
            offset,
            file_size: size,
            address,
            entry: address + ENTRY_64_OFFSET,
            end: address + size.max(self.0.init_size.into()),
        })
    }

    /// Where the protected-mode code starts in the file: behind the boot sector and the real-mode code.
    fn code_offset(&self) -> u64 {
        let sectors = match self.0.setup_sects {
            0 => SECTORS_DEFAULT,
            sectors => sectors,
        };
        (u64::from(sectors) + 1) * SECTOR_SIZE
    }

    fn check(&self, field: &'static str, found: u64, wanted: u64, expected: &'static str) -> Result<(), BzImageError> {
        if found == wanted { Ok(()) } else { Err(wrong(field, found, expected)) }
    }

    fn too_old(&self, needed: u16) -> BzImageError {
        BzImageError::TooOld { version: self.0.version, needed }
    }
}

fn wrong(field: &'static str, found: u64, expected: &'static str) -> BzImageError {
    BzImageError::Setup { field, found, expected }
}

fn inside_file(what: &'static str, end: u64, size: u64) -> Result<(), LoadError> {
    if end <= size { Ok(()) } else { Err(LoadError::Truncated { what, end, size }) }
}
