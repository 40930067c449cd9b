//! Guest memory: mapped once, before anything that is created in the VM, and never changed after.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use arch::memory::{GuestRegionMmap, MmapRegion};
use arch::{GuestAddress, GuestMemory};
use thiserror::Error;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryRegion};

use super::assembly::Assembly;
use super::hotplug::{Arrival, Origin, Pluggable};
use crate::config::{Honour, HotplugConfig, MIB, MemoryBacking, MemoryConfig, Pages};
use crate::epoch::file_order;
use crate::memfd;
use crate::placement::{self, ApplyError, Elsewhere, Settled};

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
    /// A file of a point cannot be mapped in its place.
    #[error("cannot map {} KiB of the snapshot's memory", bytes >> 10)]
    MapFile {
        /// How much.
        bytes: u64,
        /// What the host said.
        source: io::Error,
    },
    /// What is plugged from the start cannot be had.
    #[error("cannot give the guest {} MiB of plugged memory", bytes / MIB)]
    Plugged {
        /// How much.
        bytes: u64,
        /// What the host said.
        source: io::Error,
    },
    /// It cannot be where it shall be.
    #[error(transparent)]
    Place(#[from] ApplyError),
    /// It is not where it was bound to.
    #[error(transparent)]
    Elsewhere(#[from] Elsewhere),
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

/// A machine's memory.
#[derive(Debug)]
pub(crate) struct MachineMemory {
    /// What is there from the start: what a kernel is told of, and what has a place on the host.
    pub(crate) ram: Arc<GuestMemory>,
    /// That, and behind it what can be plugged: what devices reach. The same where nothing can.
    pub(crate) all: Arc<GuestMemory>,
    /// What can be plugged.
    pub(crate) pluggable: Option<Pluggable>,
    /// What it is made of.
    pub(crate) pages: Pages,
}

/// What can be plugged in a machine that is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hotplug<'a> {
    pub(crate) config: &'a HotplugConfig,
    /// What is plugged from the start, in order: where each run of blocks begins, and its size in bytes.
    pub(crate) plugged: &'a [(GuestAddress, u64)],
}

impl MachineMemory {
    /// Maps all memory of a machine.
    ///
    /// # Errors
    /// The host cannot give it.
    pub(crate) fn map(
        config: &MemoryConfig,
        hotplug: Option<Hotplug<'_>>,
        settled: &mut Settled,
    ) -> Result<Self, MemoryError> {
        let (ram, pages) = (Arc::new(map(config, settled)?), settled.placement.pages);
        let Some(hotplug) = hotplug else {
            return Ok(Self { all: Arc::clone(&ram), ram, pluggable: None, pages });
        };
        let region = map_pluggable(config, hotplug.config, settled)?;
        let at_once = pages.pool_page_bytes().is_some() || settled.placement.is_prefaulted(settled.hotplug_nodes());
        let pluggable = Pluggable {
            start: hotplug.config.start(config),
            slot_bytes: hotplug.config.slot_bytes,
            arrival: if at_once { Arrival::AtOnce } else { Arrival::OnTouch },
            plugged: hotplug.plugged.to_vec(),
            origin: Origin::default(),
        };
        pluggable.open(&region).map_err(|source| MemoryError::Plugged { bytes: pluggable.plugged_bytes(), source })?;
        let all = ram.insert_region(Arc::new(region)).expect("it lies above all RAM");
        Ok(Self { ram, all: Arc::new(all), pluggable: Some(pluggable), pages })
    }

    /// As [`Self::map`]; where the best effort is enough, without the pool if that has been emptied since it was counted.
    ///
    /// # Errors
    /// The host cannot give it.
    pub(crate) fn map_or_less(
        config: &MemoryConfig,
        hotplug: Option<Hotplug<'_>>,
        settled: &mut Settled,
    ) -> Result<Self, MemoryError> {
        match Self::map(config, hotplug, settled) {
            Err(MemoryError::Map { .. }) if settled.goes_without_pool() => Self::map(config, hotplug, settled),
            mapped => mapped,
        }
    }

    /// What of it is the guest's from the start, in memory file order: RAM, and what is plugged.
    pub(crate) fn held(&self) -> Vec<Range<u64>> {
        let ram_bytes = file_order::bytes(&self.ram);
        let of_plugged = |pluggable: &Pluggable| {
            let start = pluggable.start.0;
            let range = move |&(at, bytes): &(GuestAddress, u64)| {
                let offset = ram_bytes + (at.0 - start);
                offset..offset + bytes
            };
            pluggable.plugged.iter().map(range).collect::<Vec<_>>()
        };
        let plugged = self.pluggable.as_ref().map(of_plugged).unwrap_or_default();
        std::iter::once(0..ram_bytes).chain(plugged).collect()
    }
}

/// Maps what can be plugged, for nobody to reach yet.
fn map_pluggable(
    config: &MemoryConfig,
    hotplug: &HotplugConfig,
    settled: &mut Settled,
) -> Result<GuestRegionMmap, MemoryError> {
    let (bytes, pages) = (hotplug.total_bytes, settled.placement.pages);
    let file = file_of(config.backing, bytes, pages)?.map(|file| FileOffset::from_arc(file, 0));
    let mapped = map_aligned(file, bytes, pages, Presence::Plugged);
    let mapping = mapped.map_err(|cause| MemoryError::Map { bytes, pages, cause })?;
    let region = GuestRegionMmap::new(mapping, hotplug.start(config)).expect("validate() bounds its end");
    advise(&region, settled)?;
    Ok(region)
}

fn map_hint(pages: Pages) -> &'static str {
    match pages.pool_page_bytes() {
        Some(_) => "the pool has too few HugePages now: add some, and start again",
        None => "give the guest less, or check ulimit -v and vm.overcommit_memory",
    }
}

/// Maps guest memory as `config` says, at the addresses where the machine has RAM and on what the host has `settled` on, part
/// by part: nothing is touched before its policy is set.
///
/// # Errors
/// The host cannot give it.
fn map(config: &MemoryConfig, settled: &mut Settled) -> Result<GuestMemory, MemoryError> {
    let (bytes, pages) = (config.size_bytes, settled.placement.pages);
    let file = file_of(config.backing, bytes, pages)?;
    let mut offset = 0;
    let mut regions = Vec::with_capacity(2);
    let ranges: Vec<_> = settled.ranges().into_iter().map(|(address, length, _)| (address, length)).collect();
    for (address, length) in ranges {
        let place = file.as_ref().map(|file| FileOffset::from_arc(Arc::clone(file), offset));
        offset += length;
        let mapped = map_aligned(place, length, pages, Presence::Now);
        let mapping = mapped.map_err(|cause| MemoryError::Map { bytes, pages, cause })?;
        let region = GuestRegionMmap::new(mapping, address).expect("RAM ends below 64 bits");
        advise(&region, settled)?;
        regions.push(region);
    }
    Ok(GuestMemory::from_regions(regions).expect("the ranges of RAM are in order and apart"))
}

/// Says of a region what has been settled for it, or as much of that as the kernel takes if the best effort is enough.
fn advise(region: &GuestRegionMmap, settled: &mut Settled) -> Result<(), ApplyError> {
    let start = region.start_addr().0;
    while let Err(refused) = placement::advise(region, &settled.placement, settled.nodes_of(start)) {
        // One thing less is asked for each time.
        settled.goes_without(refused)?;
    }
    Ok(())
}

/// Says of all memory again what was said of it when it was mapped: its mappings are new.
///
/// # Errors
/// The kernel does not take it.
pub(crate) fn advise_anew(memory: &MachineMemory, settled: &mut Settled) -> Result<(), MemoryError> {
    Ok(memory.all.iter().try_for_each(|region| advise(region, settled))?)
}

/// As [`make_present`], of what is plugged from the start.
///
/// # Errors
/// The host cannot give it.
pub(crate) fn make_plugged_present(memory: &MachineMemory, assembly: &Assembly) -> Result<(), MemoryError> {
    let Some(pluggable) = &memory.pluggable else { return Ok(()) };
    let populated = pluggable.populate(memory, || !assembly.is_given_up());
    populated.map_err(|source| MemoryError::Plugged { bytes: pluggable.plugged_bytes(), source })
}

/// Brings all into memory that shall be there from the start, sees that it came from its nodes, and holds it there if it
/// shall be held. Where its pool lacks pages on its nodes (the kernel reserves them on any) and the best effort is enough, it is
/// other memory then, which `map` gives as it has been settled by then.
///
/// # Errors
/// The host cannot give it.
pub(crate) fn make_present(
    memory: &mut MachineMemory,
    map: impl Fn(&mut Settled) -> Result<MachineMemory, MemoryError>,
    settled: &mut Settled,
    assembly: &Assembly,
) -> Result<(), MemoryError> {
    placement::prefault(&memory.ram, settled, assembly).or_else(|refused| settled.goes_without(refused))?;
    if memory.pages.pool_page_bytes().is_some() && !settled.is_of_pool() {
        *memory = map(settled)?;
        placement::prefault(&memory.ram, settled, assembly).or_else(|refused| settled.goes_without(refused))?;
    }
    let memory = &*memory.ram;
    if assembly.is_given_up() {
        return Ok(());
    }
    match placement::verify(memory, settled) {
        // How much it is now, /placement tells.
        Err(error) if settled.placement.honour == Honour::BestEffort => log::warn!("best effort: {error}"),
        verified => verified?,
    }
    if settled.placement.lock {
        placement::lock(memory).or_else(|refused| settled.goes_without(refused))?;
    }
    Ok(())
}

/// The file that memory is mapped from, if it is from one. A pool's pages always are: what is punched out of it is the
/// pool's again, and not only this mapping's.
fn file_of(backing: MemoryBacking, bytes: u64, pages: Pages) -> Result<Option<Arc<File>>, MemoryError> {
    const NAME: &str = "husk-guest-memory";
    let file = match (backing, pages.pool_page_bytes()) {
        (MemoryBacking::Anonymous, None) => return Ok(None),
        (MemoryBacking::Memfd, None) => memfd::create(NAME, bytes),
        (_, Some(page_bytes)) => memfd::create_huge(NAME, bytes, page_bytes),
    };
    file.map(|file| Some(Arc::new(file))).map_err(|source| MemoryError::Memfd { bytes, source })
}

/// When memory is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// From the start.
    Now,
    /// Where it is plugged: until then nothing is reserved for it, and nobody reaches it.
    Plugged,
}

/// Maps a region so that host and guest addresses are alike within the largest page that it may be made of: no huge page
/// forms across a guest's and a host's that do not match. Guest addresses are whole GiB.
fn map_aligned(
    place: Option<FileOffset>,
    length: u64,
    pages: Pages,
    presence: Presence,
) -> Result<MmapRegion, MmapRegionError> {
    let length = usize::try_from(length).expect("a 64-bit host addresses 64 bits");
    let flags = match &place {
        None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        // Reserved: what the pool cannot give is refused here.
        Some(_) if pages.pool_page_bytes().is_some() && presence == Presence::Now => libc::MAP_SHARED,
        Some(_) => libc::MAP_SHARED | libc::MAP_NORESERVE,
    };
    let access = match presence {
        Presence::Now => libc::PROT_READ | libc::PROT_WRITE,
        Presence::Plugged => libc::PROT_NONE,
    };
    let map = || MmapRegion::build(place.clone(), length, access, flags);
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

#[cfg(test)]
mod tests;
