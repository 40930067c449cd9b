//! Memory that is plugged while the machine runs: mapped from the start with no access, and given to KVM slot by slot as
//! blocks of it are plugged. What is not plugged the host has.
#![expect(unsafe_code, reason = "mprotect and mmap have no safe interface in libc")]

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use arch::memory::{GuestRegionMmap, bitmap, host_address};
use arch::{GuestAddress, GuestMemory};
use devices::backend::memory::Reclaim;
use devices::virtio::mem::{BlockStore, MemoryArea, MemoryDevice};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::devices::DeviceError;
use super::memory::MachineMemory;
use super::pool::IoPool;
use super::slots::{MemorySlots, Slot};
use crate::config::{HOTPLUG_ID, HotplugConfig, MemoryConfig, MemoryPlacement};
use crate::control::{EventSender, GuestEvent};
use crate::epoch::{PAGE_BYTES, PageRun, PageSet, file_order};
use crate::faults;
use crate::pager::UserFault;
use crate::placement;

/// Memory that can be plugged, before there is a VM.
#[derive(Debug)]
pub(crate) struct Pluggable {
    /// Where it begins for the guest.
    pub(crate) start: GuestAddress,
    /// What KVM is given at once of it, in bytes.
    pub(crate) slot_bytes: u64,
    /// When its pages come.
    pub(crate) arrival: Arrival,
    /// What is plugged from the start, in order: where each run of blocks begins, and its size in bytes.
    pub(crate) plugged: Vec<(GuestAddress, u64)>,
    /// Where what that holds comes from.
    pub(crate) origin: Origin,
}

/// Where blocks come from that are plugged from the start.
#[derive(Debug, Clone, Default)]
pub(crate) enum Origin {
    /// They are as any others.
    #[default]
    Memory,
    /// They are private mappings of files, which show through where nothing is kept.
    Files(MemoryPlacement),
    /// Who touches a page of theirs first waits until it is brought.
    Faults(Arc<UserFault>),
}

/// Memory that is plugged block by block. It is used by the device's I/O thread, and by who copies what it holds.
#[derive(Debug)]
pub(crate) struct PluggableMemory {
    start: GuestAddress,
    bytes: u64,
    slot_bytes: u64,
    block_bytes: u64,
    /// Its first page in memory file order.
    first_page: u64,
    arrival: Arrival,
    origin: Origin,
    memory: Arc<GuestMemory>,
    reclaim: Reclaim,
    /// Set before the first vCPU runs.
    slots: OnceLock<Arc<MemorySlots>>,
    blocks: Mutex<Blocks>,
}

#[derive(Debug)]
struct Blocks {
    /// How many bytes of each slot are plugged.
    by_slot: Box<[u64]>,
    /// Those that are plugged. A page of these sets is a block.
    plugged: PageSet,
    /// Those that have been since the machine was made.
    original: PageSet,
}

/// Which pages are plugged. They stay so while this lives: who takes one away waits.
#[derive(Debug)]
pub(crate) struct Plugged<'a> {
    of: &'a PluggableMemory,
    blocks: MutexGuard<'a, Blocks>,
}

/// What a page of guest memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageKind {
    /// There since the machine was made: what nobody touched is as the machine found it.
    Original,
    /// Plugged since: what nobody touched is zeros.
    Fresh,
    /// Nobody's, and not to be touched: zeros.
    Unplugged,
}

/// When the host gives memory for a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Page by page, as it is touched.
    OnTouch,
    /// When it is plugged: a page that an empty HugePage pool lacks is an answer then, and no signal later.
    AtOnce,
}

/// Who may reach a slot from here.
#[derive(Debug, Clone, Copy)]
enum Access {
    Nobody,
    Devices,
}

/// Makes the device that plugs memory.
pub(super) fn make(
    hotplug: &HotplugConfig,
    config: &MemoryConfig,
    store: &Arc<PluggableMemory>,
    node: Option<u16>,
    events: &EventSender,
    pool: &mut IoPool,
) -> Result<MemoryDevice, DeviceError> {
    let area = area(hotplug, config, node);
    let events = events.clone();
    let on_exhausted = Arc::new(move || events.send(GuestEvent::PoolExhausted));
    let thread = pool.spawn(HOTPLUG_ID, Duration::ZERO)?;
    let store = Arc::clone(store) as Arc<dyn BlockStore>;
    let device = MemoryDevice::new(HOTPLUG_ID, area, hotplug.requested_bytes, store, on_exhausted, thread);
    Ok(device.expect("validate() holds what is requested against the limits"))
}

/// What can be plugged, as the device has it.
pub(super) fn area(hotplug: &HotplugConfig, config: &MemoryConfig, node: Option<u16>) -> MemoryArea {
    let HotplugConfig { total_bytes: bytes, block_bytes, .. } = *hotplug;
    MemoryArea { start: hotplug.start(config), bytes, block_bytes, node }
}

impl Pluggable {
    /// Whether a part of a range is plugged from the start.
    pub(crate) fn is_plugged(&self, start: GuestAddress, bytes: u64) -> bool {
        let first = self.plugged.partition_point(|(at, len)| at.0 + len <= start.0);
        self.plugged.get(first).is_some_and(|(at, _)| at.0 < start.0 + bytes)
    }

    /// How much is plugged from the start, in bytes.
    pub(super) fn plugged_bytes(&self) -> u64 {
        self.plugged.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Opens the slots of `region` that have a plugged part to devices.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(super) fn open(&self, region: &GuestRegionMmap) -> io::Result<()> {
        let host = host_address(region);
        let slots = (0..region.len() / self.slot_bytes).map(|slot| slot * self.slot_bytes);
        slots.filter(|offset| self.is_plugged(GuestAddress(self.start.0 + offset), self.slot_bytes)).try_for_each(
            |offset| {
                let place = usize::try_from(offset).expect(FITS);
                protect(host + place, self.slot_bytes, Access::Devices)
            },
        )
    }

    /// Has the host give all pages that are plugged from the start now, if they shall be there before they are touched, as long as
    /// `go_on` says so.
    ///
    /// # Errors
    /// It has none.
    pub(super) fn populate(&self, memory: &MachineMemory, go_on: impl Fn() -> bool) -> io::Result<()> {
        if self.arrival == Arrival::OnTouch {
            return Ok(());
        }
        let reclaim = Reclaim::new(Arc::clone(&memory.all), memory.pages.pool_page_bytes());
        for &(start, bytes) in &self.plugged {
            for offset in (0..bytes).step_by(usize::try_from(self.slot_bytes).expect(FITS)) {
                if !go_on() {
                    return Ok(());
                }
                reclaim.populate(GuestAddress(start.0 + offset), self.slot_bytes.min(bytes - offset))?;
            }
        }
        Ok(())
    }
}

impl PluggableMemory {
    /// That of `memory`.
    pub(super) fn new(memory: &MachineMemory, pluggable: &Pluggable, hotplug: &HotplugConfig) -> Self {
        let Pluggable { start, slot_bytes, arrival, ref plugged, ref origin } = *pluggable;
        let ram_bytes = file_order::bytes(&memory.ram);
        let blocks = PageSet::new(hotplug.total_bytes / hotplug.block_bytes);
        let slots = usize::try_from(hotplug.slots()).expect("validate() bounds it");
        let mut blocks = Blocks { by_slot: vec![0; slots].into(), plugged: blocks.clone(), original: blocks };
        for &(at, bytes) in plugged {
            let run = PageRun { first: (at.0 - start.0) / hotplug.block_bytes, pages: bytes / hotplug.block_bytes };
            blocks.plugged.insert_run(run);
            parts_of((at.0 - start.0, bytes), slot_bytes).for_each(|(slot, part)| blocks.by_slot[slot] += part);
        }
        blocks.original = blocks.plugged.clone();
        Self {
            start,
            bytes: hotplug.total_bytes,
            slot_bytes,
            block_bytes: hotplug.block_bytes,
            first_page: ram_bytes / PAGE_BYTES,
            arrival,
            origin: origin.clone(),
            reclaim: Reclaim::new(Arc::clone(&memory.all), memory.pages.pool_page_bytes()),
            memory: Arc::clone(&memory.all),
            slots: OnceLock::new(),
            blocks: Mutex::new(blocks),
        }
    }

    /// There is a VM now.
    pub(super) fn connect(&self, slots: &Arc<MemorySlots>) {
        let connected = self.slots.set(Arc::clone(slots));
        connected.expect("a machine is connected once");
    }

    /// Which pages are plugged.
    pub(crate) fn plugged(&self) -> Plugged<'_> {
        Plugged { of: self, blocks: self.lock() }
    }

    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().expect("a thread panicked with the plugged blocks' lock held, which aborts the process")
    }

    /// The slots that a range has a part in, with each slot's place and the size of that part.
    fn parts(&self, (start, bytes): (GuestAddress, u64)) -> Vec<(usize, Slot, u64)> {
        let all = self.slots().inside(self.start, self.bytes);
        let parts = parts_of((start.0 - self.start.0, bytes), self.slot_bytes);
        parts.map(|(place, part)| (place, all[place], part)).collect()
    }

    /// The blocks of a range.
    fn run(&self, (start, bytes): (GuestAddress, u64)) -> PageRun {
        PageRun { first: (start.0 - self.start.0) / self.block_bytes, pages: bytes / self.block_bytes }
    }

    /// Makes slots the guest's that it lacks, for a range that has a part in each.
    fn open(&self, lacking: &[Slot], (start, bytes): (GuestAddress, u64)) -> io::Result<()> {
        lacking.iter().try_for_each(|slot| protect(slot.host, slot.bytes, Access::Devices))?;
        if self.arrival == Arrival::AtOnce {
            step().and_then(|()| self.reclaim.populate(start, bytes))?;
        }
        lacking.iter().try_for_each(|slot| step().and_then(|()| self.slots().add(*slot).map_err(io::Error::other)))
    }

    /// In the reverse order, to the first step that the kernel refuses: what the guest cannot reach stays away.
    fn close(&self, blocks: &mut Blocks, empty: &[Slot], range: (GuestAddress, u64)) -> io::Result<()> {
        empty.iter().try_for_each(|slot| self.remove(*slot))?;
        self.forget_origin(blocks, range)?;
        self.discard(range)?;
        empty.iter().try_for_each(|slot| protect(slot.host, slot.bytes, Access::Nobody))
    }

    /// As [`Self::close`], of what was never the guest's, and every step of it.
    fn shut(&self, empty: &[Slot], range: (GuestAddress, u64)) -> io::Result<()> {
        let all = |each: &dyn Fn(&Slot) -> io::Result<()>| empty.iter().map(each).fold(Ok(()), io::Result::and);
        let removed = all(&|slot| self.remove(*slot));
        let discarded = self.discard(range);
        removed.and(discarded).and(all(&|slot| protect(slot.host, slot.bytes, Access::Nobody)))
    }

    fn slots(&self) -> &MemorySlots {
        self.slots.get().expect("a device is connected before a driver reaches it")
    }

    fn remove(&self, slot: Slot) -> io::Result<()> {
        step().and_then(|()| self.slots().remove(slot).map_err(io::Error::other))
    }

    fn discard(&self, (start, bytes): (GuestAddress, u64)) -> io::Result<()> {
        step().and_then(|()| self.reclaim.discard(start, bytes).map(|_| ()))
    }

    /// What comes back of a range is zeros, and not what the machine was made from.
    fn forget_origin(&self, blocks: &mut Blocks, range: (GuestAddress, u64)) -> io::Result<()> {
        let region = self.memory.find_region(self.start).expect("it is a region of the memory");
        let forgotten = match &self.origin {
            Origin::Memory => Ok(()),
            Origin::Files(_) => {
                step().and_then(|()| map_nothing(self.host(range), usize::try_from(range.1).expect(FITS)))
            }
            // From here on the kernel takes no page for it, and who waits in it goes on.
            Origin::Faults(faults) => {
                let host = self.host(range).expose_provenance() as u64;
                step().and_then(|()| faults.unregister(host, range.1))
            }
        };
        forgotten?;
        blocks.original.remove_run(self.run(range));
        match &self.origin {
            Origin::Files(placement) => {
                step().and_then(|()| placement::advise(region, placement, None).map_err(io::Error::other))
            }
            Origin::Memory | Origin::Faults(_) => Ok(()),
        }
    }

    /// Where a range of it is here.
    fn host(&self, (start, bytes): (GuestAddress, u64)) -> *mut u8 {
        let region = self.memory.find_region(self.start).expect("it is a region of the memory");
        let offset = MemoryRegionAddress(start.0 - self.start.0);
        let part = region.get_slice(offset, usize::try_from(bytes).expect(FITS));
        part.expect("a device's ranges are inside its memory").ptr_guard_mut().as_ptr()
    }

    /// What KVM logged of a slot is gone with it.
    fn mark_written(&self, (start, bytes): (GuestAddress, u64)) {
        let region = self.memory.find_region(self.start).expect("it is a region of the memory");
        let offset = usize::try_from(start.0 - self.start.0).expect(FITS);
        bitmap(region).mark_dirty(offset, usize::try_from(bytes).expect(FITS));
    }
}

impl BlockStore for PluggableMemory {
    fn plug(&self, start: GuestAddress, bytes: u64) -> io::Result<()> {
        let range = (start, bytes);
        let mut blocks = self.lock();
        let parts = self.parts(range);
        let slots = |is_one: &dyn Fn(usize, Slot) -> bool| -> Vec<Slot> {
            parts.iter().filter(|(at, slot, _)| is_one(*at, *slot)).map(|(_, slot, _)| *slot).collect()
        };
        let empty = slots(&|at, _| blocks.by_slot[at] == 0);
        // One with other blocks is the guest's, unless it could neither be taken away nor given back.
        let lacking = slots(&|at, slot| blocks.by_slot[at] == 0 || !self.slots().has(slot));
        if let Err(error) = self.open(&lacking, range) {
            if let Err(error) = self.shut(&empty, range) {
                log::error!("memory: {bytes} bytes at {:#x} are neither plugged nor given back: {error}", start.0);
            }
            return Err(error);
        }
        blocks.plugged.insert_run(self.run(range));
        parts.iter().for_each(|(at, _, part)| blocks.by_slot[*at] += part);
        Ok(())
    }

    fn unplug(&self, start: GuestAddress, bytes: u64) -> io::Result<()> {
        let range = (start, bytes);
        // Who copies what it holds is through with it, or finds it gone.
        let mut blocks = self.lock();
        let parts = self.parts(range);
        let empty = parts.iter().filter(|(at, _, part)| blocks.by_slot[*at] == *part).map(|(_, slot, _)| *slot);
        let empty: Vec<Slot> = empty.collect();
        if let Err(error) = self.close(&mut blocks, &empty, range) {
            // The guest has it still, but for what was in it, for which a driver that gives it away has no use.
            self.mark_written(range);
            if let Err(error) = self.open(&empty, range) {
                log::error!("memory: {bytes} bytes at {:#x} are neither given back nor the guest's: {error}", start.0);
            }
            return Err(error);
        }
        blocks.plugged.remove_run(self.run(range));
        parts.iter().for_each(|(at, _, part)| blocks.by_slot[*at] -= part);
        Ok(())
    }
}

impl Plugged<'_> {
    /// What a page is, by its number in memory file order.
    pub(crate) fn kind(&self, page: u64) -> PageKind {
        let Some(page) = page.checked_sub(self.of.first_page) else { return PageKind::Original };
        let block = page / self.block_pages();
        match (self.blocks.plugged.contains(block), self.blocks.original.contains(block)) {
            (false, _) => PageKind::Unplugged,
            (true, true) => PageKind::Original,
            (true, false) => PageKind::Fresh,
        }
    }

    /// Takes the pages out of `pages` that are not plugged.
    pub(crate) fn retain(&self, pages: &mut PageSet) {
        let (first, end) = (self.of.first_page, pages.pages());
        let mut next = first;
        for run in self.blocks.plugged.runs() {
            let [start, behind] = [run.first, run.end()].map(|block| first + block * self.block_pages());
            pages.remove_run(PageRun { first: next, pages: start - next });
            next = behind;
        }
        pages.remove_run(PageRun { first: next, pages: end - next });
    }

    fn block_pages(&self) -> u64 {
        self.of.block_bytes / PAGE_BYTES
    }
}

const FITS: &str = "a 64-bit host addresses 64 bits";

/// The slots that a range of offsets has a part in, by their places, and the size of that part.
fn parts_of((first, bytes): (u64, u64), slot_bytes: u64) -> impl Iterator<Item = (usize, u64)> {
    let end = first + bytes;
    (first / slot_bytes..end.div_ceil(slot_bytes)).map(move |slot| {
        let part = end.min((slot + 1) * slot_bytes) - first.max(slot * slot_bytes);
        (usize::try_from(slot).expect(FITS), part)
    })
}

/// Whether the kernel does the next step: as where a process has as many mappings as it may have, it does not.
fn step() -> io::Result<()> {
    faults::step(libc::ENOMEM)
}

fn protect(host: usize, bytes: u64, access: Access) -> io::Result<()> {
    step()?;
    let access = match access {
        Access::Nobody => libc::PROT_NONE,
        Access::Devices => libc::PROT_READ | libc::PROT_WRITE,
    };
    let start = std::ptr::with_exposed_provenance_mut(host);
    let length = usize::try_from(bytes).expect(FITS);
    // SAFETY: the range is a part of a mapping of guest memory, which is only ever reached as what anybody may change at any
    // time, and only where it is plugged; to change its protection takes nothing away that it holds.
    let failed = unsafe { libc::mprotect(start, length, access) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Maps zeros where files were.
fn map_nothing(host: *mut u8, length: usize) -> io::Result<()> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the range is a part of a mapping of guest memory that nobody but a driver against its word uses any more; it
    // stays mapped, and to become zeros is what anybody may do to it at any time.
    let mapped = unsafe { libc::mmap(host.cast(), length, access, flags, -1, 0) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
