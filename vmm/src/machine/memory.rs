//! Guest memory: mapped once, before anything that is created in the VM, and never changed after.
#![expect(unsafe_code, reason = "KVM is told which host memory is the guest's")]

use std::io;
use std::sync::Arc;

use arch::{GuestMemory, layout};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::mmap::FromRangesError;
use vm_memory::{Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::config::{MIB, MemoryBacking, MemoryConfig};
use crate::memfd;

/// What keeps a machine from having its memory.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The memfd cannot be made or sized.
    #[error("cannot create a memfd of {} MiB for guest memory", bytes / MIB)]
    Memfd {
        /// Its size.
        bytes: u64,
        /// What the host said.
        source: io::Error,
    },
    /// The mapping is refused.
    #[error("cannot map {} MiB of guest memory: {cause}: give the guest less, or check ulimit -v and vm.overcommit_memory", bytes / MIB)]
    Map {
        /// How much was asked.
        bytes: u64,
        /// What the host said. Its text has its own source's in it.
        cause: FromRangesError,
    },
    /// KVM does not take a region.
    #[error("cannot give KVM {} MiB of memory at guest address {address:#x} (slot {slot})", bytes / MIB)]
    Slot {
        /// KVM's number for the region.
        slot: u32,
        /// Where it begins.
        address: u64,
        /// Its size.
        bytes: u64,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
}

/// Maps guest memory as `config` says, at the addresses where the machine has RAM.
///
/// # Errors
/// The host cannot give it.
pub(crate) fn map(config: &MemoryConfig) -> Result<GuestMemory, MemoryError> {
    let bytes = config.size_bytes;
    let file = match config.backing {
        MemoryBacking::Anonymous => None,
        MemoryBacking::Memfd => Some(Arc::new(
            memfd::create("husk-guest-memory", bytes).map_err(|source| MemoryError::Memfd { bytes, source })?,
        )),
    };
    let mut offset = 0;
    let ranges: Vec<(GuestAddress, usize, Option<FileOffset>)> = layout::ram_ranges(bytes)
        .into_iter()
        .map(|(address, length)| {
            let place = file.as_ref().map(|file| FileOffset::from_arc(Arc::clone(file), offset));
            offset += length;
            (address, usize::try_from(length).expect("a 64-bit host addresses 64 bits"), place)
        })
        .collect();
    GuestMemory::from_ranges_with_files(ranges).map_err(|cause| MemoryError::Map { bytes, cause })
}

/// Gives KVM every region. Before KVM_CREATE_IRQCHIP a slot costs KVM no grace period with it.
///
/// # Errors
/// KVM refuses one.
pub(crate) fn register(vm: &VmFd, memory: &GuestMemory) -> Result<(), MemoryError> {
    for (slot, region) in (0u32..).zip(memory.iter()) {
        let slice = region.as_volatile_slice().expect("a mapped region has a host address");
        let host = slice.ptr_guard_mut().as_ptr();
        let request = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: host.expose_provenance() as u64,
        };
        // SAFETY: the range is one mapping that the machine keeps until after the VM's last vCPU has ended, and regions
        // of one GuestMemory do not overlap.
        unsafe { vm.set_user_memory_region(request) }.map_err(|source| MemoryError::Slot {
            slot,
            address: request.guest_phys_addr,
            bytes: request.memory_size,
            source,
        })?;
    }
    Ok(())
}
