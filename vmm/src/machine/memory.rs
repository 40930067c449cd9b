//! Guest memory: mapped once, before anything that is created in the VM, and never changed after.
#![expect(unsafe_code, reason = "KVM is told which host memory is the guest's")]

use std::fs::File;
use std::io;
use std::sync::Arc;

use arch::GuestMemory;
use arch::memory::{GuestRegionMmap, MmapRegion};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{Address, FileOffset, GuestMemoryBackend, GuestMemoryRegion};

use crate::config::{MIB, MemoryBacking, MemoryConfig, Pages};
use crate::memfd;
use crate::placement::{self, ApplyError, Settled};

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
    #[error("cannot map {} MiB of guest memory: {cause}: {}", bytes / MIB, map_hint(*pages))]
    Map {
        /// How much was asked.
        bytes: u64,
        /// On which pages.
        pages: Pages,
        /// What the host said. Its text has its own source's in it.
        cause: MmapRegionError,
    },
    /// It cannot be where it shall be.
    #[error(transparent)]
    Place(#[from] ApplyError),
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

fn map_hint(pages: Pages) -> &'static str {
    match pages.pool_page_bytes() {
        Some(_) => "the pool has too few HugePages now: add some, and start again",
        None => "give the guest less, or check ulimit -v and vm.overcommit_memory",
    }
}

/// Maps guest memory as `config` says, at the addresses where the machine has RAM and on what the host has `settled` on, part
/// by part: nothing is touched before its policy is set, and what shall be there from the start is.
///
/// # Errors
/// The host cannot give it.
pub(crate) fn map(config: &MemoryConfig, settled: &Settled) -> Result<GuestMemory, MemoryError> {
    let (bytes, placement) = (config.size_bytes, &settled.placement);
    let file = match (config.backing, placement.pages.pool_page_bytes()) {
        (MemoryBacking::Anonymous, None) => None,
        // A pool's pages always have a file: what is punched out of it is the pool's again, and not only this mapping's.
        (MemoryBacking::Memfd, _) | (_, Some(_)) => Some(memfd_of(bytes, placement.pages)?),
    };
    let mut offset = 0;
    let mut regions = Vec::with_capacity(2);
    for (address, length, nodes) in settled.ranges() {
        let place = file.as_ref().map(|file| FileOffset::from_arc(Arc::clone(file), offset));
        offset += length;
        let mapping = map_aligned(place, length, placement.pages).map_err(|cause| MemoryError::Map {
            bytes,
            pages: placement.pages,
            cause,
        })?;
        let region = GuestRegionMmap::new(mapping, address).expect("RAM ends below 64 bits");
        placement::advise(&region, placement, nodes)?;
        regions.push(region);
    }
    let memory = GuestMemory::from_regions(regions).expect("the ranges of RAM are in order and apart");
    placement::prefault(&memory, settled)?;
    if placement.lock {
        placement::lock(&memory)?;
    }
    Ok(memory)
}

fn memfd_of(bytes: u64, pages: Pages) -> Result<Arc<File>, MemoryError> {
    const NAME: &str = "husk-guest-memory";
    let file = match pages.pool_page_bytes() {
        None => memfd::create(NAME, bytes),
        Some(page_bytes) => memfd::create_huge(NAME, bytes, page_bytes),
    };
    file.map(Arc::new).map_err(|source| MemoryError::Memfd { bytes, source })
}

/// Maps a region so that host and guest addresses are alike within the largest page that it may be made of: no huge page
/// forms across a guest's and a host's that do not match. Guest addresses are whole GiB.
fn map_aligned(place: Option<FileOffset>, length: u64, pages: Pages) -> Result<MmapRegion, MmapRegionError> {
    let length = usize::try_from(length).expect("a 64-bit host addresses 64 bits");
    let flags = match &place {
        None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        // Reserved: what the pool cannot give is refused here.
        Some(_) if pages.pool_page_bytes().is_some() => libc::MAP_SHARED,
        Some(_) => libc::MAP_SHARED | libc::MAP_NORESERVE,
    };
    let map = || MmapRegion::build(place.clone(), length, libc::PROT_READ | libc::PROT_WRITE, flags);
    let mapping = map()?;
    // Pages of a pool are mapped so always, others by newer kernels.
    let beyond = mapping.as_ptr().addr() % THP_BYTES;
    if pages != Pages::Transparent || beyond == 0 {
        return Ok(mapping);
    }
    // The kernel fills its mappings' room downwards: what is mapped where the first one's end was ends lower by so much.
    drop(mapping);
    let spacer = MmapRegion::build(None, beyond, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)?;
    let mapping = map()?;
    drop(spacer);
    if !mapping.as_ptr().addr().is_multiple_of(THP_BYTES) {
        log::warn!("memory: its host addresses are not multiples of 2 MiB: few transparent HugePages will form");
    }
    Ok(mapping)
}

/// What a transparent HugePage maps.
const THP_BYTES: usize = 2 << 20;

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
