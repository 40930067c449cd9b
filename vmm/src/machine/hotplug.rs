//! Memory that is plugged while the machine runs: mapped from the start with no access, and given to KVM slot by slot as
//! blocks of it are plugged. What is not plugged the host has.
#![expect(unsafe_code, reason = "mprotect has no safe interface in libc")]

use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arch::GuestAddress;
use devices::backend::memory::Reclaim;
use devices::virtio::mem::{BlockStore, MemoryArea, MemoryDevice};

use super::devices::DeviceError;
use super::memory::{MachineMemory, Pluggable};
use super::pool::IoPool;
use super::slots::{MemorySlots, Slot};
use crate::config::{HOTPLUG_ID, HotplugConfig, MemoryConfig};
use crate::control::{EventSender, GuestEvent};

/// Memory that is plugged block by block. It is used by the device's I/O thread.
#[derive(Debug)]
pub(super) struct PluggableMemory {
    start: GuestAddress,
    slot_bytes: u64,
    arrival: Arrival,
    reclaim: Reclaim,
    /// Set before the first vCPU runs.
    slots: OnceLock<Arc<MemorySlots>>,
    /// How many bytes of each slot are plugged.
    plugged: Mutex<Box<[u64]>>,
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
    let area =
        MemoryArea { start: hotplug.start(config), bytes: hotplug.total_bytes, block_bytes: hotplug.block_bytes, node };
    let events = events.clone();
    let on_exhausted = Arc::new(move || events.send(GuestEvent::PoolExhausted));
    let thread = pool.spawn(HOTPLUG_ID, Duration::ZERO)?;
    let store = Arc::clone(store) as Arc<dyn BlockStore>;
    let device = MemoryDevice::new(HOTPLUG_ID, area, hotplug.requested_bytes, store, on_exhausted, thread);
    Ok(device.expect("validate() holds what is requested against the limits"))
}

impl PluggableMemory {
    /// That of `memory`, of which nothing is plugged.
    pub(super) fn new(memory: &MachineMemory, pluggable: &Pluggable, hotplug: &HotplugConfig) -> Self {
        let slots = usize::try_from(hotplug.slots()).expect("validate() bounds it");
        Self {
            start: pluggable.start,
            slot_bytes: hotplug.slot_bytes,
            arrival: pluggable.arrival,
            reclaim: Reclaim::new(Arc::clone(&memory.all), memory.pages.pool_page_bytes()),
            slots: OnceLock::new(),
            plugged: Mutex::new(vec![0; slots].into()),
        }
    }

    /// There is a VM now.
    pub(super) fn connect(&self, slots: &Arc<MemorySlots>) {
        let connected = self.slots.set(Arc::clone(slots));
        connected.expect("a machine is connected once");
    }

    /// The slots that a range has a part in, with each slot's place in `plugged` and the size of that part.
    fn parts(&self, start: GuestAddress, bytes: u64) -> Vec<(usize, Slot, u64)> {
        let slots = self.slots.get().expect("a device is connected before a driver or a saved state reaches it");
        let (first, end) = (start.0 - self.start.0, start.0 - self.start.0 + bytes);
        let from = first / self.slot_bytes * self.slot_bytes;
        let covered = end.next_multiple_of(self.slot_bytes) - from;
        let of_slot = |slot: &Slot| {
            let offset = slot.guest.0 - self.start.0;
            let part = end.min(offset + self.slot_bytes) - first.max(offset);
            (usize::try_from(offset / self.slot_bytes).expect("64 bits fit"), *slot, part)
        };
        slots.inside(GuestAddress(self.start.0 + from), covered).iter().map(of_slot).collect()
    }

    fn open(&self, new: &[Slot], (start, bytes): (GuestAddress, u64)) -> io::Result<()> {
        new.iter().try_for_each(|slot| protect(*slot, Access::Devices))?;
        if self.arrival == Arrival::AtOnce {
            self.reclaim.populate(start, bytes)?;
        }
        let slots = self.slots.get().expect("the caller has found some");
        new.iter().try_for_each(|slot| slots.add(*slot)).map_err(io::Error::other)
    }

    /// In the reverse order: what the guest cannot reach stays away.
    fn close(&self, empty: &[Slot], (start, bytes): (GuestAddress, u64)) -> io::Result<()> {
        let slots = self.slots.get().expect("the caller has found some");
        empty.iter().try_for_each(|slot| slots.remove(*slot)).map_err(io::Error::other)?;
        self.reclaim.discard(start, bytes)?;
        empty.iter().try_for_each(|slot| protect(*slot, Access::Nobody))
    }
}

impl BlockStore for PluggableMemory {
    fn plug(&self, start: GuestAddress, bytes: u64) -> io::Result<()> {
        let mut plugged = self.plugged.lock().expect(UNPOISONED);
        let parts = self.parts(start, bytes);
        let new: Vec<Slot> = parts.iter().filter(|(at, ..)| plugged[*at] == 0).map(|(_, slot, _)| *slot).collect();
        if let Err(error) = self.open(&new, (start, bytes)) {
            if let Err(error) = self.close(&new, (start, bytes)) {
                log::error!("memory: {bytes} bytes at {:#x} are neither plugged nor given back: {error}", start.0);
            }
            return Err(error);
        }
        parts.iter().for_each(|(at, _, part)| plugged[*at] += part);
        Ok(())
    }

    fn unplug(&self, start: GuestAddress, bytes: u64) -> io::Result<()> {
        let mut plugged = self.plugged.lock().expect(UNPOISONED);
        let parts = self.parts(start, bytes);
        let empty = parts.iter().filter(|(at, _, part)| plugged[*at] == *part).map(|(_, slot, _)| *slot);
        self.close(&empty.collect::<Vec<_>>(), (start, bytes))?;
        parts.iter().for_each(|(at, _, part)| plugged[*at] -= part);
        Ok(())
    }
}

const UNPOISONED: &str = "a thread panicked with the plugged blocks' lock held, which aborts the process";

fn protect(slot: Slot, access: Access) -> io::Result<()> {
    let access = match access {
        Access::Nobody => libc::PROT_NONE,
        Access::Devices => libc::PROT_READ | libc::PROT_WRITE,
    };
    let start = std::ptr::with_exposed_provenance_mut(slot.host);
    let length = usize::try_from(slot.bytes).expect("a 64-bit host addresses 64 bits");
    // SAFETY: the slot is a part of a mapping of guest memory, which is only ever reached as what anybody may change at any
    // time, and only where it is plugged; to change its protection takes nothing away that it holds.
    let failed = unsafe { libc::mprotect(start, length, access) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
