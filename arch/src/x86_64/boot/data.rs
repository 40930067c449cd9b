//! Writes what a kernel finds in memory at its entry.

use super::map;
use super::{BootProtocol, Initrd, Kernel, LoadError, SetupHeader, linux64, pvh};
use crate::layout::{CMDLINE_MAX, CMDLINE_START};
use crate::memory::{Bytes, GuestAddress, GuestMemory};

/// What both protocols tell the kernel, each in its own form.
pub(super) struct BootData<'a> {
    pub(super) initrd: Option<&'a Initrd>,
    /// What the kernel's own bzImage says, for the protocol that hands it on.
    pub(super) setup: Option<&'a SetupHeader>,
    /// Where the tables start; without ACPI there are none.
    pub(super) rsdp: Option<GuestAddress>,
    pub(super) map: Vec<map::Range>,
}

/// Writes the command line and what `kernel`'s protocol says: for PVH the start info with its lists, for the 64-bit
/// Linux protocol the zero page, the descriptors and the page tables. `rsdp` is where the ACPI tables begin, or `None`
/// for a machine without ACPI.
///
/// # Errors
/// [`LoadError`] if the command line is longer than [`CMDLINE_MAX`] with its closing NUL, has a NUL in it, or guest
/// memory is smaller than 1 MiB.
pub fn write_boot_data(
    memory: &GuestMemory,
    kernel: &Kernel,
    initrd: Option<&Initrd>,
    cmdline: &str,
    rsdp: Option<GuestAddress>,
) -> Result<(), LoadError> {
    write_cmdline(memory, cmdline)?;
    let data = BootData { initrd, setup: kernel.setup(), rsdp, map: map::ranges(memory) };
    match kernel.protocol {
        BootProtocol::Pvh => pvh::write(memory, &data),
        BootProtocol::Linux64 => linux64::write(memory, &data),
    }
}

pub(super) fn write(
    memory: &GuestMemory,
    what: &'static str,
    address: GuestAddress,
    bytes: &[u8],
) -> Result<(), LoadError> {
    memory.write_slice(bytes, address).map_err(|source| LoadError::Memory { what, address, source })
}

fn write_cmdline(memory: &GuestMemory, cmdline: &str) -> Result<(), LoadError> {
    if cmdline.len() >= CMDLINE_MAX {
        return Err(LoadError::CmdlineTooLong { len: cmdline.len() });
    }
    if let Some(at) = cmdline.bytes().position(|byte| byte == 0) {
        return Err(LoadError::CmdlineNul { at });
    }
    write(memory, "command line", CMDLINE_START, &[cmdline.as_bytes(), &[0]].concat())
}

#[cfg(test)]
mod tests;
