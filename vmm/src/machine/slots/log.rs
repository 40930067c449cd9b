//! KVM's log of the pages that a VM's vCPUs, and KVM for them, wrote: a bit a page for each slot.
//!
//! kvm-ioctls has no KVM_CLEAR_DIRTY_LOG, and makes a new bitmap for each KVM_GET_DIRTY_LOG; here both take the caller's.
#![expect(unsafe_code, reason = "ioctls on a VM that kvm-ioctls does not have in this form")]

use std::ffi::{c_int, c_ulong};
use std::io;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_MEM_LOG_DIRTY_PAGES, KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log,
    kvm_dirty_log__bindgen_ty_1, kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};

use super::{MemorySlots, Slot};
use crate::epoch::{DirtyLogError, PAGE_BYTES};

ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);

/// Pages of one word of a bitmap. A range to be cleared begins at a whole word (KVM api: KVM_CLEAR_DIRTY_LOG).
const WORD_PAGES: u64 = 64;

/// Words of one clear, for 64 MiB: KVM holds the lock that vCPUs fault under while it clears.
const CLEAR_WORDS: usize = 256;

impl MemorySlots {
    /// Has writes to the slots logged, also to those that come later. Until [`Self::clear_log`] all of them count as written.
    ///
    /// # Errors
    /// KVM does not do it; then nothing is logged.
    pub(crate) fn start_log(&self) -> Result<(), DirtyLogError> {
        // What is cleared is what was read, and only that is protected again.
        let offered = self.vm.check_extension_raw(c_ulong::from(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));
        // A log that begins with every bit set protects nothing before those are cleared, which can be done in parts.
        let wanted = u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
        let flags = u64::try_from(offered).unwrap_or(0) & wanted;
        if flags == 0 {
            return Err(DirtyLogError::Lacks);
        }
        let request =
            kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, args: [flags, 0, 0, 0], ..Default::default() };
        self.vm.enable_cap(&request).map_err(|error| DirtyLogError::Protect(error.into()))?;
        self.switch(KVM_MEM_LOG_DIRTY_PAGES).inspect_err(|_| {
            let _off = self.stop_log();
        })
    }

    /// Has nothing logged any more. KVM makes large mappings again as the guest uses its memory.
    ///
    /// # Errors
    /// KVM refuses it for a slot, the first of those. It is tried for all.
    pub(crate) fn stop_log(&self) -> Result<(), DirtyLogError> {
        self.switch(0)
    }

    /// Clears the log of all slots, in parts.
    ///
    /// # Errors
    /// KVM refuses it.
    pub(crate) fn clear_log(&self) -> Result<(), DirtyLogError> {
        let _flags = self.lock();
        self.present().iter().try_for_each(|slot| clear_all(&self.vm, slot))
    }

    /// Passes the log of each slot on, with its first page in memory file order and a bit for each page, and clears in it what was
    /// set. `bits` is room to read into; if it is as large as the largest slot's log, nothing is allocated.
    ///
    /// # Errors
    /// KVM refuses it.
    pub(crate) fn harvest_log(
        &self,
        bits: &mut Vec<u64>,
        mut pass: impl FnMut(u64, &[u64]),
    ) -> Result<(), DirtyLogError> {
        // What is plugged and unplugged waits: a slot that goes takes its log along.
        let _flags = self.lock();
        for slot in self.slots.iter().filter(|slot| self.has(**slot)) {
            get(&self.vm, slot, bits)?;
            // They are known elsewhere before KVM forgets them.
            pass(slot.offset / PAGE_BYTES, bits);
            clear_set(&self.vm, slot, bits)?;
        }
        Ok(())
    }

    /// The words of the largest slot's log.
    pub(crate) fn log_words_max(&self) -> usize {
        self.slots.iter().map(words).max().unwrap_or(0)
    }

    fn switch(&self, flags: u32) -> Result<(), DirtyLogError> {
        let mut wanted = self.lock();
        *wanted = flags;
        let present = self.slots.iter().filter(|slot| self.has(**slot));
        let set = present.map(|slot| self.set(*slot, slot.bytes, flags));
        Ok(set.fold(Ok(()), Result::and)?)
    }
}

/// Clears the log of a slot that was just added, in which nothing is written yet: if KVM began it with every bit set, and does not
/// do this, more pages are logged than were written, and none less.
pub(super) fn begin(vm: &VmFd, slot: &Slot, flags: u32) {
    if flags & KVM_MEM_LOG_DIRTY_PAGES != 0
        && let Err(error) = clear_all(vm, slot)
    {
        log::warn!("memory: all of a new slot counts as written: {error}");
    }
}

fn clear_all(vm: &VmFd, slot: &Slot) -> Result<(), DirtyLogError> {
    (0..words(slot)).step_by(CLEAR_WORDS).try_for_each(|first| {
        let count = CLEAR_WORDS.min(words(slot) - first);
        clear(vm, slot, first, &[u64::MAX; CLEAR_WORDS][..count])
    })
}

/// Clears what is set in `bits`, which are all of a slot's.
fn clear_set(vm: &VmFd, slot: &Slot, bits: &[u64]) -> Result<(), DirtyLogError> {
    for (part, first) in bits.chunks(CLEAR_WORDS).zip((0..).step_by(CLEAR_WORDS)) {
        let is_set = |word: &u64| *word != 0;
        if let (Some(start), Some(last)) = (part.iter().position(is_set), part.iter().rposition(is_set)) {
            clear(vm, slot, first + start, &part[start..=last])?;
        }
    }
    Ok(())
}

/// Reads the log of a slot that is present into `bits`. Nothing is cleared by it.
fn get(vm: &VmFd, slot: &Slot, bits: &mut Vec<u64>) -> Result<(), DirtyLogError> {
    bits.resize(words(slot), 0);
    let dirty_bitmap = bits.as_mut_ptr().cast();
    let request = kvm_dirty_log {
        slot: slot.number,
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap },
        ..Default::default()
    };
    // SAFETY: KVM writes a bit for each page of the slot, in whole words = `bits` has so many: a slot that is present has the
    // size that MemorySlots gave it, and nothing else tells KVM of slots.
    let answer = unsafe { ioctl_with_ref(vm, KVM_GET_DIRTY_LOG(), &request) };
    check(answer, "read KVM's dirty log (KVM_GET_DIRTY_LOG)", slot)
}

/// Clears the pages of `bits` in the log of a slot, from word `first` of it on: writes to them are logged again.
fn clear(vm: &VmFd, slot: &Slot, first: usize, bits: &[u64]) -> Result<(), DirtyLogError> {
    let first_page = WORD_PAGES * u64::try_from(first).expect("64 bits fit");
    let pages = WORD_PAGES * u64::try_from(bits.len()).expect("64 bits fit");
    // The last word of a slot may be one in part.
    let pages = pages.min(slot.bytes / PAGE_BYTES - first_page);
    let mut request = kvm_clear_dirty_log {
        slot: slot.number,
        num_pages: u32::try_from(pages).expect("a clear is of a few words"),
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap: bits.as_ptr().cast_mut().cast() },
    };
    // SAFETY: KVM reads a bit for each of `num_pages`, in whole words = `bits` has so many, and writes none of them.
    let answer = unsafe { ioctl_with_mut_ref(vm, KVM_CLEAR_DIRTY_LOG(), &mut request) };
    check(answer, "clear KVM's dirty log (KVM_CLEAR_DIRTY_LOG)", slot)
}

fn words(slot: &Slot) -> usize {
    let words = (slot.bytes / PAGE_BYTES).div_ceil(WORD_PAGES);
    usize::try_from(words).expect("memory that is mapped here has a log that fits")
}

fn check(answer: c_int, what: &'static str, slot: &Slot) -> Result<(), DirtyLogError> {
    match answer {
        0 => Ok(()),
        _ => Err(DirtyLogError::Ioctl { what, slot: slot.number, source: io::Error::last_os_error() }),
    }
}
