//! Why a kernel, an initrd or a command line was refused.

use std::io;

use super::bzimage::BzImageError;
use crate::layout::{CMDLINE_MAX, HIGH_RAM_START, MMIO_HOLE_START};
use crate::memory::{GuestAddress, GuestMemoryError};

/// What is wrong with a file or a command line. Each message names the value and what would mend it; the caller adds
/// which file it was.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read: a directory, a pipe, a failing disk.
    #[error("cannot read {len} bytes at offset {offset} of the {what}")]
    Read {
        /// Kernel or initrd.
        what: &'static str,
        /// Where in the file, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The file's size cannot be had: it is a pipe or a socket.
    #[error("cannot tell how large the {what} is: it must be a regular file")]
    Size {
        /// Kernel or initrd.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A file of no bytes.
    #[error("the {what} is empty: copy it again")]
    Empty {
        /// Kernel or initrd.
        what: &'static str,
    },
    /// The file ends before something that it should contain.
    #[error("the kernel is truncated: its {what} ends at byte {end}, the file has {size}: copy it again")]
    Truncated {
        /// What does not fit.
        what: &'static str,
        /// Where it ends, in bytes from the file's start.
        end: u64,
        /// The file's size, in bytes.
        size: u64,
    },
    /// Neither an ELF nor anything else that is known.
    #[error(
        "the kernel is neither an ELF file nor a bzImage, it starts with {start:02x?}: give the vmlinux or the vmlinuz \
         of an x86-64 kernel"
    )]
    NotElf {
        /// The first bytes of the file.
        start: [u8; 4],
    },
    /// A bzImage that cannot be used.
    #[error(transparent)]
    BzImage(#[from] BzImageError),
    /// The image entry was asked for and there is none.
    #[error("the kernel is an ELF file, the boot entry image is a bzImage's: use the boot entry auto")]
    NotBzImage,
    /// An ELF for another CPU or of another kind.
    #[error("the kernel has {field} {found}, it must be {expected}: give the vmlinux of an x86-64 kernel")]
    WrongElf {
        /// The ELF header's field.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What would be right.
        expected: &'static str,
    },
    /// More program headers than any kernel has.
    #[error("the kernel has {count} program headers, at most {max} are read: strip it or link it anew")]
    TooManyProgramHeaders {
        /// How many there are.
        count: u16,
        /// How many there may be.
        max: u16,
    },
    /// A program header that contradicts itself.
    #[error(
        "kernel segment {segment} is malformed: {file_size:#x} bytes of file for {memory_size:#x} of memory at \
         {address:#x}: link it anew"
    )]
    MalformedSegment {
        /// The program header's number, from 0.
        segment: usize,
        /// Its physical address.
        address: u64,
        /// Its size in the file, in bytes.
        file_size: u64,
        /// Its size in memory, in bytes.
        memory_size: u64,
    },
    /// Nothing to load.
    #[error("the kernel has no segment to load: give a linked vmlinux, not an object or a debug file")]
    NoSegments,
    /// Two program headers want the same memory.
    #[error("kernel segments {first} and {second} overlap at {address:#x}: link it anew")]
    SegmentsOverlap {
        /// One program header's number.
        first: usize,
        /// The other's.
        second: usize,
        /// The first address that both claim.
        address: u64,
    },
    /// A segment where the boot data go.
    #[error(
        "kernel segment {segment} starts at {address:#x}, below {:#x} where boot data and the BIOS area are: link it \
         higher",
        HIGH_RAM_START.0
    )]
    SegmentTooLow {
        /// The program header's number.
        segment: usize,
        /// Its physical address.
        address: u64,
    },
    /// A segment in or above the MMIO hole.
    #[error("kernel segment {segment} ends at {end:#x}, above {:#x} where devices are: link it lower", MMIO_HOLE_START.0)]
    SegmentInHole {
        /// The program header's number.
        segment: usize,
        /// The first address behind it.
        end: u64,
    },
    /// A segment beyond the guest's memory.
    #[error(
        "kernel segment {segment} ends at {end:#x}, guest memory at {memory_end:#x}: give the guest more than {} MiB",
        end >> 20
    )]
    SegmentBeyondMemory {
        /// The program header's number.
        segment: usize,
        /// The first address behind it.
        end: u64,
        /// The first address behind guest memory.
        memory_end: u64,
    },
    /// An entry point outside of everything that was loaded.
    #[error("the kernel's {protocol} entry {entry:#x} is in none of its segments: link it anew")]
    EntryOutsideKernel {
        /// Which entry.
        protocol: super::BootProtocol,
        /// Its address.
        entry: u64,
    },
    /// A note segment too large to be notes.
    #[error("the kernel's notes take {size} bytes, at most {max} are read: use the linux64 boot entry")]
    NotesTooLarge {
        /// The size of the note segment, in bytes.
        size: u64,
        /// The limit, in bytes.
        max: u64,
    },
    /// A note that reaches out of its segment, or a PVH note without an address in it.
    #[error("the kernel's note at byte {offset} of its notes is malformed: use the linux64 boot entry")]
    MalformedNote {
        /// From the start of the note segment, in bytes.
        offset: usize,
    },
    /// PVH was asked for and is not there.
    #[error("the kernel has no PVH entry: build it with CONFIG_PVH, or use the boot entry auto or linux64")]
    NoPvhEntry,
    /// The initrd does not fit between the kernel and the end of memory below the hole.
    #[error(
        "the initrd has {size} bytes, {available} are free above the kernel: give the guest {} MiB more",
        size.saturating_sub(*available).div_ceil(1 << 20)
    )]
    InitrdTooLarge {
        /// Its size, in bytes.
        size: u64,
        /// What is free, in bytes.
        available: u64,
    },
    /// The command line is longer than a kernel keeps.
    #[error("the kernel command line has {len} bytes, at most {} fit: shorten it", CMDLINE_MAX - 1)]
    CmdlineTooLong {
        /// Its length, in bytes.
        len: usize,
    },
    /// The command line would end early.
    #[error("the kernel command line has a NUL at byte {at}: remove it")]
    CmdlineNul {
        /// Where, in bytes from its start.
        at: usize,
    },
    /// Guest memory is missing where the map says that it is.
    #[error("cannot write the {what} at {:#x} of guest memory: give the guest at least 1 MiB", address.0)]
    Memory {
        /// What was to be written.
        what: &'static str,
        /// Where.
        address: GuestAddress,
        /// What guest memory said.
        source: GuestMemoryError,
    },
}
