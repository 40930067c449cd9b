//! Which pages of guest memory were written since the last time, by whomever: KVM's log has the guest's own writes and KVM's
//! for it, the memory's [`DirtyBitmap`](arch::memory::DirtyBitmap)s have husk's.
//!
//! Who copies pages harvests first and reads after: a write that comes later than the reading is in the next harvest. That
//! holds from the end of `DirtyLog::start` on, so what was copied before it is worth nothing.
//!
//! The log has every page that was written, and some that were not: what the guest reads first while the log is on, KVM may map
//! for writing at once and count.
//!
//! What it costs, in ms (medians, 1 vCPU, 4 KiB pages, on the development machine):
//!
//! | memory, touched by the guest | 128 MiB, all | 1 GiB, half | 6 GiB, 512 MiB |
//! | --- | --- | --- | --- |
//! | start, with the first clear | 0.3 | 2.1 | 14 |
//! | harvest, nothing written | 0.001 | 0.008 | 0.08 |
//! | harvest of 10 pages | 0.004 | 0.02 | 0.1 |
//! | stop | 1.1 | 5 | 7 |
//!
//! The first start of a process waits for grace periods of the kernel beside that: 10 to 16 ms.
//!
//! Architecture invariants:
//! - protection is put on all of memory once, by the start, in parts and while the machine runs; a harvest puts it back only
//!   on what was written;
//! - a page that KVM or a bitmap has forgotten is in a set here, until somebody acknowledges that it arrived.

use std::io;
use std::mem;
use std::sync::Arc;

use arch::memory::bitmap;
use thiserror::Error;
use vm_memory::GuestMemoryBackend;

use super::{PAGE_BYTES, PageSet, barrier, file_order};
use crate::machine::{MemoryError, MemorySlots};

/// What keeps writes from being known.
#[derive(Debug, Error)]
pub enum DirtyLogError {
    /// KVM cannot clear a part of its log.
    #[error("this host's KVM lacks KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: use a newer kernel")]
    Lacks,
    /// It can, and does not.
    #[error("cannot have KVM's dirty log cleared in parts (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)")]
    Protect(#[source] io::Error),
    /// A slot's log is not switched.
    #[error(transparent)]
    Switch(#[from] MemoryError),
    /// A slot's log does not do what it was told.
    #[error("cannot {what} of memory slot {slot}")]
    Ioctl {
        /// What was attempted.
        what: &'static str,
        /// KVM's number for the region.
        slot: u32,
        /// What KVM said.
        source: io::Error,
    },
    /// What other threads write now would be missed.
    #[error("cannot have all threads pass a memory barrier (membarrier)")]
    Barrier(#[source] io::Error),
}

/// The log of all writes to a machine's memory. It is off again when this is dropped.
#[derive(Debug)]
pub struct DirtyLog {
    slots: Arc<MemorySlots>,
    /// Handed out and not acknowledged.
    handed: PageSet,
    /// For the next harvest, beside what is written until then.
    returned: PageSet,
    /// Room for a slot's bits.
    bits: Vec<u64>,
    state: Logging,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Logging {
    On,
    Off,
}

impl DirtyLog {
    /// Switches the log of a machine's memory on. From its return on, every write is in a harvest or was there to be read before
    /// it. For a machine that runs: it puts protection on all of its memory.
    ///
    /// # Errors
    /// KVM or the kernel does not do it; then nothing is logged.
    pub(crate) fn start(slots: &Arc<MemorySlots>) -> Result<Self, DirtyLogError> {
        let pages = file_order::bytes(slots.memory()) / PAGE_BYTES;
        slots.start_log()?;
        slots.memory().iter().for_each(|region| bitmap(region).start());
        let log = Self {
            slots: Arc::clone(slots),
            handed: PageSet::new(pages),
            returned: PageSet::new(pages),
            bits: Vec::with_capacity(slots.log_words_max()),
            state: Logging::On,
        };
        // Partner: each thread's look at whether its writes are marked. One that saw "no" has written before this returns.
        barrier::in_all_threads().map_err(DirtyLogError::Barrier)?;
        slots.clear_log()?;
        Ok(log)
    }

    /// How many pages the memory has.
    pub fn pages(&self) -> u64 {
        self.handed.pages()
    }

    /// Takes the pages that were written since the last harvest, and those that were put back. What they hold is to be read
    /// after this.
    ///
    /// # Errors
    /// KVM does not tell. Nothing is lost by it: the next harvest has all.
    pub fn harvest(&mut self) -> Result<PageSet, DirtyLogError> {
        let mut fresh = mem::replace(&mut self.returned, PageSet::new(self.handed.pages()));
        match self.take_into(&mut fresh) {
            Ok(()) => {
                self.handed.union_with(&fresh);
                Ok(fresh)
            }
            Err(error) => {
                self.returned = fresh;
                Err(error)
            }
        }
    }

    /// All that was harvested has arrived: it is nobody's business any more.
    pub fn acknowledge(&mut self) {
        self.handed.clear();
    }

    /// What was harvested since the last acknowledgement has not arrived: the next harvest has it again.
    pub fn put_back(&mut self) {
        self.returned.union_with(&self.handed);
        self.handed.clear();
    }

    /// Switches the log off. KVM makes large mappings again as the guest uses its memory.
    ///
    /// # Errors
    /// KVM refuses it for a slot, the first of those. It is tried for all.
    pub fn stop(mut self) -> Result<(), DirtyLogError> {
        self.switch_off()
    }

    fn switch_off(&mut self) -> Result<(), DirtyLogError> {
        if mem::replace(&mut self.state, Logging::Off) == Logging::Off {
            return Ok(());
        }
        self.slots.memory().iter().for_each(|region| bitmap(region).stop());
        self.slots.stop_log()
    }

    fn take_into(&mut self, pages: &mut PageSet) -> Result<(), DirtyLogError> {
        for (offset, region) in file_order::regions(self.slots.memory()) {
            pages.insert_bits(offset / PAGE_BYTES, bitmap(region).take());
        }
        self.slots.harvest_log(&mut self.bits, |first, bits| pages.insert_bits(first, bits.iter().copied()))
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        if let Err(error) = self.switch_off() {
            log::warn!("the log of writes to guest memory stays on: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
