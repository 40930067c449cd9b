//! From files to a guest that can start: kernel, initrd, command line, and what a kernel finds at its entry.
//!
//! Runs on the thread that builds the machine, before any vCPU runs, over memory that is fresh and therefore zero. The
//! files are not trusted: every number in them is checked once, against the file's size and the guest's memory, before
//! it is used. Nothing here allocates, reads or loops by a number from a file that was not bounded first.

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
}

/// A word that names no boot entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown boot entry {word:?}: use auto, pvh or linux64")]
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
    fn a_boot_entry_is_one_of_three_words() {
        assert_eq!("auto".parse(), Ok(BootEntry::Auto));
        assert_eq!("pvh".parse(), Ok(BootEntry::Pvh));
        assert_eq!("linux64".parse(), Ok(BootEntry::Linux64));
        let refused = "PVH".parse::<BootEntry>().unwrap_err().to_string();
        assert_eq!(refused, "unknown boot entry \"PVH\": use auto, pvh or linux64");
    }
}
