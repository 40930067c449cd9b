//! What a memory device saves. What its blocks hold is guest memory's affair.

use std::sync::atomic::Ordering;

use arch::GuestAddress;
use serde::{Deserialize, Serialize};

use super::blocks::BlockRun;
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

    /// Plugs what was plugged.
    fn restore(&mut self, state: MemoryState) -> Result<(), RestoreError> {
        let MemoryState { start, bytes, block_bytes, requested_bytes, runs, news } = state;
        let area = self.shared.area;
        same("the address of memory that it can plug", start, area.start.0)?;
        same("the size of memory that it can plug", bytes, area.bytes)?;
        same("the size of a block of memory", block_bytes, area.block_bytes)?;
        if area.check(requested_bytes).is_err() {
            return Err(RestoreError::Impossible("memory that is asked for and cannot be plugged"));
        }
        let mut blocks = lock(&self.shared.blocks);
        let mut free = 0;
        for (first, count) in runs {
            let run = BlockRun { first, count };
            let end = first.checked_add(count).filter(|end| count > 0 && first >= free && *end <= blocks.count());
            let Some(end) = end else {
                return Err(RestoreError::Impossible("blocks of memory that are plugged twice, or that there are not"));
            };
            // Runs that adjoin are one.
            free = end.saturating_add(1);
            blocks.plug(run);
            let start = GuestAddress(area.start.0 + first * block_bytes);
            self.store.plug(start, count * block_bytes).map_err(RestoreError::Backend)?;
        }
        self.shared.plugged.store(blocks.plugged_bytes(), Ordering::Relaxed);
        self.shared.requested.store(requested_bytes, Ordering::Relaxed);
        self.shared.voice.inherit(news);
        Ok(())
    }
}
