//! What a balloon saves. Its pages are not in it, but for those of a pool: the host has had the others since they were
//! put in, and what comes back is new.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;

use super::pages::Run;
use super::statistics::{Statistics, TAGS};
use super::{BALLOON_PAGE_BYTES, Balloon, NO_COMMAND, Shared};
use crate::bus::lock;
use crate::state::SaveState;
use crate::virtio::RestoreError;
use crate::virtio::voice::News;

/// What a balloon saves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    pub(crate) target_pages: u32,
    pub(crate) actual_pages: u32,
    pub(crate) host_command: u32,
    pub(crate) guest_command: Option<u32>,
    pub(crate) acknowledge: bool,
    pub(crate) statistics: [Option<u64>; TAGS],
    pub(crate) interval_ms: u64,
    pub(crate) news: News,
    /// Pages of a pool that are in it: the first of a run, and how many.
    pub(crate) pool_runs: Vec<(u32, u32)>,
}

impl SaveState for Balloon {
    type State = BalloonState;
    type Error = RestoreError;

    fn save(&self) -> BalloonState {
        let Self { log: _, identity: _, thread: _, reclaim: _, shared, ledger, run: _ } = self;
        let Shared {
            features: _,
            target,
            actual,
            host_command,
            guest_command,
            acknowledge,
            statistics,
            interval_ms,
            ask: _,
            voice,
            exhaustion: _,
            counters: _,
        } = &**shared;
        let Statistics(statistics) = lock(statistics).clone();
        BalloonState {
            target_pages: target.load(Ordering::Relaxed),
            actual_pages: actual.load(Ordering::Relaxed),
            host_command: host_command.load(Ordering::Relaxed),
            guest_command: u32::try_from(guest_command.load(Ordering::Relaxed)).ok(),
            acknowledge: acknowledge.load(Ordering::Relaxed) != 0,
            statistics,
            interval_ms: interval_ms.load(Ordering::Relaxed),
            news: voice.news(),
            pool_runs: ledger.iter().flat_map(|ledger| ledger.runs()).map(|run| (run.first, run.count)).collect(),
        }
    }

    fn restore(&mut self, state: BalloonState) -> Result<(), RestoreError> {
        let BalloonState {
            target_pages,
            actual_pages,
            host_command,
            guest_command,
            acknowledge,
            statistics,
            interval_ms,
            news,
            pool_runs,
        } = state;
        if u64::from(target_pages) > self.reclaim.bytes() / BALLOON_PAGE_BYTES {
            return Err(RestoreError::Impossible("a balloon that shall have more than the guest's memory"));
        }
        self.inherit_runs(&pool_runs)?;
        let shared = &self.shared;
        shared.target.store(target_pages, Ordering::Relaxed);
        shared.actual.store(actual_pages, Ordering::Relaxed);
        shared.host_command.store(host_command, Ordering::Relaxed);
        shared.guest_command.store(guest_command.map_or(NO_COMMAND, u64::from), Ordering::Relaxed);
        shared.acknowledge.store(acknowledge.into(), Ordering::Relaxed);
        *lock(&shared.statistics) = Statistics(statistics);
        shared.interval_ms.store(interval_ms, Ordering::Relaxed);
        shared.voice.inherit(news);
        Ok(())
    }
}

impl Balloon {
    fn inherit_runs(&mut self, runs: &[(u32, u32)]) -> Result<(), RestoreError> {
        let Self { ledger, reclaim, .. } = self;
        let Some(ledger) = ledger else {
            let none = RestoreError::Impossible("a balloon with pages of a pool, whose memory is of none");
            return if runs.is_empty() { Ok(()) } else { Err(none) };
        };
        let mut free = 0;
        for (first, count) in runs.iter().copied() {
            let end = first.checked_add(count).filter(|end| count > 0 && first >= free && *end <= ledger.pages());
            let Some(end) = end else {
                return Err(RestoreError::Impossible("a balloon with pages twice, or beyond memory"));
            };
            let huge = reclaim.page_bytes();
            ledger.inherit(Run { first, count }, |number| reclaim.has(GuestAddress(number * huge), huge));
            // Runs that adjoin are one.
            free = end.saturating_add(1);
        }
        Ok(())
    }
}
