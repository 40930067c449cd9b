//! From files to a guest that can start: kernel, initrd, command line, and what a kernel finds at its entry.
//!
//! Runs on the thread that builds the machine, before any vCPU runs, over memory that is fresh and therefore zero. The
//! files are not trusted: every number in them is checked once, against the file's size and the guest's memory, before
//! it is used. Nothing here allocates, reads or loops by a number from a file that was not bounded first.

mod bzimage;
mod data;
mod elf;
mod error;
mod image;
mod initrd;
mod kernel;
mod linux64;
mod map;
mod pvh;
#[cfg(test)]
pub(crate) mod testing;

use std::fmt;
use std::str::FromStr;

use crate::memory::GuestAddress;

pub use bzimage::{BzImageError, Compression, SetupHeader};
pub use data::write_boot_data;
pub use error::LoadError;
pub use image::Image;
pub use initrd::load_initrd;
pub use kernel::load_kernel;

/// Which way into the kernel the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BootEntry {
    /// PVH if the kernel offers it, else the 64-bit Linux protocol.
    #[default]
    Auto,
    /// PVH, or an error.
    Pvh,
    /// The 64-bit Linux protocol, at the ELF's own entry.
    Linux64,
    /// The 64-bit Linux protocol, at the entry of a bzImage as it is: the guest unpacks its kernel itself, which takes it
    /// longer than it takes us and lets it place the kernel at random (KASLR).
    Image,
}

/// A word that names no boot entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown boot entry {word:?}: use auto, pvh, linux64 or image")]
pub struct BootEntryError {
    /// What was given.
    pub word: String,
}

impl FromStr for BootEntry {
    type Err = BootEntryError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "auto" => Ok(Self::Auto),
            "pvh" => Ok(Self::Pvh),
            "linux64" => Ok(Self::Linux64),
            "image" => Ok(Self::Image),
            _ => Err(BootEntryError { word: word.to_owned() }),
        }
    }
}

/// The state in which a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootProtocol {
    /// 32-bit protected mode without paging, `ebx` at the start info (Xen: docs/misc/pvh.pandoc).
    Pvh,
    /// Long mode on identity page tables, `rsi` at the zero page (Linux: arch/x86/boot.rst, 64-bit boot protocol).
    Linux64,
}

impl fmt::Display for BootProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pvh => "pvh",
            Self::Linux64 => "linux64",
        })
    }
}

/// A kernel in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The physical address of its first instruction.
    pub entry: GuestAddress,
    /// The state that it expects there.
    pub protocol: BootProtocol,
    /// The first byte behind it, its zero-initialized data included.
    pub end: GuestAddress,
    /// What it came from.
    pub file: KernelFile,
}

impl Kernel {
    /// Whether the kernel could have placed itself at random, had its own decompressor been run. What the kernel
    /// randomizes later, as its heap and its modules, is not meant.
    pub fn skips_own_kaslr(&self) -> bool {
        matches!(&self.file, KernelFile::Unpacked { setup, .. } if setup.is_relocatable())
    }

    /// What its bzImage says about it.
    pub fn setup(&self) -> Option<&SetupHeader> {
        match &self.file {
            KernelFile::Elf => None,
            KernelFile::Unpacked { setup, .. } | KernelFile::Image { setup } => Some(setup),
        }
    }
}

/// What a kernel came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFile {
    /// An ELF file.
    Elf,
    /// The ELF that was packed in a bzImage.
    Unpacked {
        /// How it was packed.
        compression: Compression,
        /// The image's header.
        setup: SetupHeader,
    },
    /// A bzImage as it is, with its own decompressor.
    Image {
        /// The image's header.
        setup: SetupHeader,
    },
}

/// An initrd in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initrd {
    /// Its first byte, page aligned.
    pub address: GuestAddress,
    /// Its size, in bytes.
    pub size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_entry_is_one_of_four_words() {
        assert_eq!("auto".parse(), Ok(BootEntry::Auto));
        assert_eq!("pvh".parse(), Ok(BootEntry::Pvh));
        assert_eq!("linux64".parse(), Ok(BootEntry::Linux64));
        assert_eq!("image".parse(), Ok(BootEntry::Image));
        let refused = "PVH".parse::<BootEntry>().unwrap_err().to_string();
        assert_eq!(refused, "unknown boot entry \"PVH\": use auto, pvh, linux64 or image");
    }
}
