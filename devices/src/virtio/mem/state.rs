//! What a memory device saves. What its blocks hold is guest memory's affair.

use std::sync::atomic::Ordering;

use arch::GuestAddress;
use serde::{Deserialize, Serialize};

use super::blocks::{BlockRun, Blocks};
use super::{MemoryArea, MemoryDevice, Shared};
use crate::bus::lock;
use crate::state::SaveState;
use crate::virtio::RestoreError;
use crate::virtio::state::same;
use crate::virtio::voice::News;

/// What a memory device saves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryState {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) block_bytes: u64,
    pub(crate) requested_bytes: u64,
    /// Blocks that are plugged: the first of a run, and how many.
    pub(crate) runs: Vec<(u64, u64)>,
    pub(crate) news: News,
}

impl MemoryState {
    /// What is plugged of `area`: where each run of blocks begins for the guest, and its size in bytes. Who restores the device
    /// has the guest reach them again, before there is a device.
    ///
    /// # Errors
    /// It is the state of another memory, or one that no device comes to.
    pub fn plugged(&self, area: MemoryArea) -> Result<Vec<(GuestAddress, u64)>, RestoreError> {
        let range = |run| area.range(run);
        Ok(self.blocks(area)?.plugged_runs().into_iter().map(range).collect())
    }

    fn blocks(&self, area: MemoryArea) -> Result<Blocks, RestoreError> {
        same("the address of memory that it can plug", self.start, area.start.0)?;
        same("the size of memory that it can plug", self.bytes, area.bytes)?;
        same("the size of a block of memory", self.block_bytes, area.block_bytes)?;
        if area.check(self.requested_bytes).is_err() {
            return Err(RestoreError::Impossible("memory that is asked for and cannot be plugged"));
        }
        let mut blocks = Blocks::new(area);
        let mut free = 0;
        for &(first, count) in &self.runs {
            let end = first.checked_add(count).filter(|end| count > 0 && first >= free && *end <= blocks.count());
            let Some(end) = end else {
                return Err(RestoreError::Impossible("blocks of memory that are plugged twice, or that there are not"));
            };
            // Runs that adjoin are one.
            free = end.saturating_add(1);
            blocks.plug(BlockRun { first, count });
        }
        Ok(blocks)
    }
}

impl SaveState for MemoryDevice {
    type State = MemoryState;
    type Error = RestoreError;

    fn save(&self) -> MemoryState {
        let Self { log: _, identity: _, thread: _, store: _, shared, run: _ } = self;
        let Shared { area, requested, plugged: _, blocks, voice, exhaustion: _, counters: _ } = &**shared;
        let MemoryArea { start, bytes, block_bytes, node: _ } = *area;
        MemoryState {
            start: start.0,
            bytes,
            block_bytes,
            requested_bytes: requested.load(Ordering::Relaxed),
            runs: lock(blocks).plugged_runs().into_iter().map(|run| (run.first, run.count)).collect(),
            news: voice.news(),
        }
    }

    /// What was plugged is the guest's already: see [`MemoryState::plugged`].
    fn restore(&mut self, state: MemoryState) -> Result<(), RestoreError> {
        let restored = state.blocks(self.shared.area)?;
        let MemoryState { start: _, bytes: _, block_bytes: _, requested_bytes, runs: _, news } = state;
        self.shared.plugged.store(restored.plugged_bytes(), Ordering::Relaxed);
        *lock(&self.shared.blocks) = restored;
        self.shared.requested.store(requested_bytes, Ordering::Relaxed);
        self.shared.voice.inherit(news);
        Ok(())
    }
}
