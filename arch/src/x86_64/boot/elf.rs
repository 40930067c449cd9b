//! Reads an ELF kernel's headers and turns them into checked segments and entries.
//!
//! linux-loader has the structures; its loader is not used, because it trusts what it reads: it reads one note at a time
//! for as many bytes as a header claims, loads any number of segments over each other, forgets the PVH entry when a
//! second note segment follows, takes an ELF for any machine, and lets an entry point anywhere.

use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_X86_64, ET_DYN, ET_EXEC, Elf64_Ehdr, Elf64_Phdr, PT_LOAD,
    PT_NOTE,
};

use super::LoadError;
use super::image::{Image, Source};
use crate::memory::{ByteValued, GuestAddress};

/// vmlinux has about five. With the check that segments do not overlap this bounds what loading one costs.
pub(super) const PROGRAM_HEADERS_MAX: u16 = 128;
/// vmlinux has a few hundred bytes.
pub(super) const NOTES_BYTES_MAX: u64 = 64 << 10;

const EHDR_SIZE: u64 = size_of::<Elf64_Ehdr>() as u64;
const PHDR_SIZE: usize = size_of::<Elf64_Phdr>();
/// Xen's note with a 32-bit physical entry (Xen: public/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY).
const PVH_NOTE_TYPE: u32 = 18;
const PVH_NOTE_NAME: &[u8] = b"Xen\0";

/// A part of the file that goes to guest memory. Its file range is inside the file, its memory range does not overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// The program header's number.
    pub(super) index: usize,
    pub(super) offset: u64,
    pub(super) file_size: u64,
    pub(super) address: u64,
    pub(super) memory_size: u64,
}

impl Segment {
    pub(super) fn end(&self) -> u64 {
        self.address + self.memory_size
    }
}

/// An ELF kernel's headers, checked against the file.
#[derive(Debug)]
pub(super) struct Elf {
    /// Sorted by address, without overlaps, at least one.
    pub(super) segments: Vec<Segment>,
    /// Where the ELF itself says that it starts.
    pub(super) entry: u64,
    notes: Vec<Notes>,
}

/// A part of the file that holds notes. It is inside the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Notes {
    pub(super) offset: u64,
    pub(super) size: u64,
    align: usize,
}

impl Elf {
    pub(super) fn parse(source: &mut Source<'_, impl Image>) -> Result<Self, LoadError> {
        let header = read_header(source)?;
        let count = header.e_phnum;
        if count > PROGRAM_HEADERS_MAX {
            return Err(LoadError::TooManyProgramHeaders { count, max: PROGRAM_HEADERS_MAX });
        }
        let mut table = vec![0; usize::from(count) * PHDR_SIZE];
        inside_file(
            "program header table",
            header.e_phoff,
            u64::from(count) * u64::from(header.e_phentsize),
            source.size,
        )?;
        source.read_at(header.e_phoff, &mut table)?;

        let mut elf = Self { segments: Vec::new(), entry: header.e_entry, notes: Vec::new() };
        for (index, bytes) in table.chunks_exact(PHDR_SIZE).enumerate() {
            let mut program = Elf64_Phdr::default();
            program.as_mut_slice().copy_from_slice(bytes);
            match program.p_type {
                PT_LOAD if program.p_memsz > 0 || program.p_filesz > 0 => {
                    elf.segments.push(segment(index, &program, source.size)?);
                }
                PT_NOTE => elf.notes.push(notes(&program, source.size)?),
                _ => {}
            }
        }
        elf.sort_segments()?;
        Ok(elf)
    }

    /// The first address behind all segments.
    pub(super) fn end(&self) -> GuestAddress {
        // They are sorted and do not overlap, and there is one.
        GuestAddress(self.segments.last().map_or(self.entry, Segment::end))
    }

    /// The parts that hold notes, none larger than [`NOTES_BYTES_MAX`].
    pub(super) fn notes(&self) -> Result<&[Notes], LoadError> {
        match self.notes.iter().find(|notes| notes.size > NOTES_BYTES_MAX) {
            None => Ok(&self.notes),
            Some(notes) => Err(LoadError::NotesTooLarge { size: notes.size, max: NOTES_BYTES_MAX }),
        }
    }

    /// The entry that the kernel offers for PVH. Reads the notes, which nothing else needs: `read` fills a buffer from an
    /// offset of the ELF.
    pub(super) fn pvh_entry(
        &self,
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), LoadError>,
    ) -> Result<Option<u64>, LoadError> {
        for notes in self.notes()? {
            let mut bytes = vec![0; usize::try_from(notes.size).expect("notes() bounds it")];
            read(notes.offset, &mut bytes)?;
            if let Some(entry) = find_pvh_note(&bytes, notes.align)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    fn sort_segments(&mut self) -> Result<(), LoadError> {
        self.segments.sort_by_key(|segment| segment.address);
        for pair in self.segments.windows(2) {
            if pair[1].address < pair[0].end() {
                let (first, second) = (pair[0].index, pair[1].index);
                return Err(LoadError::SegmentsOverlap { first, second, address: pair[1].address });
            }
        }
        if self.segments.is_empty() { Err(LoadError::NoSegments) } else { Ok(()) }
    }
}

fn read_header(source: &mut Source<'_, impl Image>) -> Result<Elf64_Ehdr, LoadError> {
    let mut start = [0; 4];
    source.read_at(0, &mut start[..usize::try_from(source.size.min(4)).expect("at most 4")])?;
    if start != *ELFMAG {
        return Err(LoadError::NotElf { start });
    }
    inside_file("ELF header", 0, EHDR_SIZE, source.size)?;
    let mut header = Elf64_Ehdr::default();
    source.read_at(0, header.as_mut_slice())?;
    let is = |field, found: u64, wanted: &[u64], expected| match wanted.contains(&found) {
        true => Ok(()),
        false => Err(LoadError::WrongElf { field, found, expected }),
    };
    is("ELF class", header.e_ident[EI_CLASS].into(), &[ELFCLASS64.into()], "2 (64 bit)")?;
    is("ELF byte order", header.e_ident[EI_DATA].into(), &[ELFDATA2LSB.into()], "1 (little endian)")?;
    is("ELF machine", header.e_machine.into(), &[EM_X86_64.into()], "62 (x86-64)")?;
    is("ELF type", header.e_type.into(), &[ET_EXEC.into(), ET_DYN.into()], "2 (executable)")?;
    is("ELF program header size", header.e_phentsize.into(), &[PHDR_SIZE as u64], "56")?;
    Ok(header)
}

fn segment(index: usize, program: &Elf64_Phdr, size: u64) -> Result<Segment, LoadError> {
    let (address, file_size, memory_size) = (program.p_paddr, program.p_filesz, program.p_memsz);
    if file_size > memory_size || address.checked_add(memory_size).is_none() {
        return Err(LoadError::MalformedSegment { segment: index, address, file_size, memory_size });
    }
    inside_file("segment", program.p_offset, file_size, size)?;
    Ok(Segment { index, offset: program.p_offset, file_size, address, memory_size })
}

fn notes(program: &Elf64_Phdr, size: u64) -> Result<Notes, LoadError> {
    inside_file("note segment", program.p_offset, program.p_filesz, size)?;
    // The ELF specification says 8 for 64-bit files, tools say 4 but for GNU properties; the header tells which.
    let align = if program.p_align == 8 { 8 } else { 4 };
    Ok(Notes { offset: program.p_offset, size: program.p_filesz, align })
}

fn inside_file(what: &'static str, offset: u64, len: u64, size: u64) -> Result<(), LoadError> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        end => Err(LoadError::Truncated { what, end: end.unwrap_or(u64::MAX), size }),
    }
}

/// Looks through notes: a header of three words (name size, descriptor size, type), the name, the descriptor, each
/// padded to `align`. Every turn consumes at least the header, so it ends.
fn find_pvh_note(bytes: &[u8], align: usize) -> Result<Option<u64>, LoadError> {
    let mut offset = 0;
    while let Some((header, _)) = bytes[offset..].split_first_chunk::<12>() {
        let malformed = LoadError::MalformedNote { offset };
        let word = |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        let part = |start: usize, size: u32| {
            let end = start.checked_add(usize::try_from(size).ok()?)?;
            Some((bytes.get(start..end)?, end.checked_next_multiple_of(align)?))
        };
        let Some((name, descriptor_start)) = part(offset + 12, word(0)) else {
            return Err(malformed);
        };
        let Some((descriptor, next)) = part(descriptor_start, word(4)) else {
            return Err(malformed);
        };
        if word(8) == PVH_NOTE_TYPE && name == PVH_NOTE_NAME {
            return pvh_address(descriptor).map(Some).ok_or(malformed);
        }
        // The last note's padding may be missing.
        offset = next.min(bytes.len());
    }
    Ok(None)
}

/// The entry is 32 bits wide, in as many bytes as the kernel's own word has.
fn pvh_address(descriptor: &[u8]) -> Option<u64> {
    match *descriptor {
        [a, b, c, d] | [a, b, c, d, 0, 0, 0, 0] => Some(u32::from_le_bytes([a, b, c, d]).into()),
        _ => None,
    }
}
