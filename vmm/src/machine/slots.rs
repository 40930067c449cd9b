//! Which parts of guest memory KVM maps into the guest: RAM always, memory that is plugged while it is.
#![expect(unsafe_code, reason = "KVM is told which host memory is the guest's")]

mod log;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use arch::memory::{GuestRegionMmap, host_address};
use arch::{GuestAddress, GuestMemory};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::mapped::Mapped;
use super::memory::{MachineMemory, MemoryError};

/// The slots of a VM. They keep the VM and all of guest memory.
///
/// Architecture invariant: nothing else tells KVM of guest memory.
pub(crate) struct MemorySlots {
    vm: Arc<VmFd>,
    slots: Box<[Slot]>,
    /// Those that the guest has. Who changes one has the lock; who only looks does not wait for it: KVM changes no slot before a vCPU
    /// is through with its page fault, for which a host may not answer.
    present: Box<[AtomicBool]>,
    /// KVM_MEM_LOG_DIRTY_PAGES or nothing: those that come later have it as well.
    flags: Mutex<u32>,
    /// Before the memory that it names.
    _mapped: Mapped,
    memory: Arc<GuestMemory>,
}

/// A part of guest memory that KVM knows by one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// KVM's number for it: its place among all.
    pub(crate) number: u32,
    /// Where it begins for the guest.
    pub(crate) guest: GuestAddress,
    /// Where it begins here.
    pub(crate) host: usize,
    /// Where it begins in memory file order: the regions of guest memory back to back, in bytes.
    pub(crate) offset: u64,
    /// Its size.
    pub(crate) bytes: u64,
}

impl MemorySlots {
    /// The slots of `memory`: those of RAM, and behind them those of what can be plugged. KVM is given the first now, and of the
    /// others those that have a plugged part.
    ///
    /// # Errors
    /// KVM refuses one.
    pub(crate) fn new(vm: &Arc<VmFd>, memory: &MachineMemory) -> Result<Self, MemoryError> {
        let pluggable = memory.pluggable.as_ref();
        let (rams, slot_bytes) = (memory.ram.num_regions(), pluggable.map_or(0, |pluggable| pluggable.slot_bytes));
        let whole = memory.all.iter().take(rams).map(|region| (region, 0, region.len()));
        let parts = memory.all.iter().skip(rams).flat_map(|region| {
            let starts = (0..region.len() / slot_bytes).map(move |index| index * slot_bytes);
            starts.map(move |offset| (region, offset, slot_bytes))
        });
        let mut end = 0;
        let slots: Box<[Slot]> = (0_u32..)
            .zip(whole.chain(parts))
            .map(|(number, part)| {
                let slot = Slot::of(number, end, part);
                // The parts of a region leave nothing of it out.
                end += slot.bytes;
                slot
            })
            .collect();
        let present = slots.iter().map(|_| AtomicBool::new(false)).collect();
        let all = Self {
            vm: Arc::clone(vm),
            slots,
            present,
            flags: Mutex::new(0),
            _mapped: Mapped::new(&memory.all),
            memory: Arc::clone(&memory.all),
        };
        let (ram, rest) = all.slots.split_at(rams);
        let is_plugged = |slot: &&Slot| pluggable.is_some_and(|of| of.is_plugged(slot.guest, slot.bytes));
        ram.iter().chain(rest.iter().filter(is_plugged)).try_for_each(|slot| all.add(*slot))?;
        Ok(all)
    }

    /// All of guest memory, what can be plugged with it.
    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The slots inside a range, which begins and ends with one.
    pub(crate) fn inside(&self, start: GuestAddress, bytes: u64) -> &[Slot] {
        let end = start.0 + bytes;
        let first = self.slots.partition_point(|slot| slot.guest < start);
        let behind = self.slots.partition_point(|slot| slot.guest.0 < end);
        &self.slots[first..behind]
    }

    /// The slots that the guest has now.
    pub(crate) fn present(&self) -> Vec<Slot> {
        self.slots.iter().filter(|slot| self.has(**slot)).copied().collect()
    }

    /// Whether the guest has a slot.
    pub(crate) fn has(&self, slot: Slot) -> bool {
        self.present[place(slot)].load(Ordering::Relaxed)
    }

    /// The guest has a slot from now on, if it had not before.
    ///
    /// # Errors
    /// KVM refuses it.
    pub(crate) fn add(&self, slot: Slot) -> Result<(), MemoryError> {
        let flags = self.lock();
        if self.has(slot) {
            return Ok(());
        }
        self.set(slot, slot.bytes, *flags)?;
        log::begin(&self.vm, &slot, *flags);
        self.present[place(slot)].store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The guest has it no more, if it had it.
    ///
    /// # Errors
    /// KVM refuses it.
    pub(crate) fn remove(&self, slot: Slot) -> Result<(), MemoryError> {
        let _flags = self.lock();
        // KVM refuses to delete a slot that it has not.
        if !self.has(slot) {
            return Ok(());
        }
        // A slot of no size is none (KVM api: KVM_SET_USER_MEMORY_REGION).
        self.set(slot, 0, 0)?;
        self.present[place(slot)].store(false, Ordering::Relaxed);
        Ok(())
    }

    fn set(&self, slot: Slot, bytes: u64, flags: u32) -> Result<(), MemoryError> {
        let request = kvm_userspace_memory_region {
            slot: slot.number,
            flags,
            guest_phys_addr: slot.guest.0,
            memory_size: bytes,
            userspace_addr: slot.host as u64,
        };
        // SAFETY: the range is one mapping or a part of one, which `memory` keeps until the VM is closed, and regions of one
        // GuestMemory do not overlap, nor do the parts of one.
        unsafe { self.vm.set_user_memory_region(request) }.map_err(|source| MemoryError::Slot {
            slot: slot.number,
            address: slot.guest.0,
            bytes,
            source,
        })
    }

    fn lock(&self) -> MutexGuard<'_, u32> {
        self.flags.lock().expect("a thread panicked with the slots' lock held, which aborts the process")
    }
}

impl Slot {
    fn of(number: u32, file_offset: u64, (region, offset, bytes): (&GuestRegionMmap, u64, u64)) -> Self {
        let place = usize::try_from(offset).expect("a 64-bit host addresses 64 bits");
        let guest = GuestAddress(region.start_addr().0 + offset);
        Self { number, guest, host: host_address(region) + place, offset: file_offset, bytes }
    }
}

fn place(slot: Slot) -> usize {
    usize::try_from(slot.number).expect("32 bits fit")
}

impl std::fmt::Debug for MemorySlots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.present()).finish()
    }
}
