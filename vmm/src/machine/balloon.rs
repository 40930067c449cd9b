//! The machine's balloon: given a thread, the memory that it gives back, and a way to say that a pool is empty.

use std::sync::Arc;
use std::time::Duration;

use arch::GuestMemory;
use devices::backend::memory::Reclaim;
use devices::virtio::balloon::{BALLOON_PAGE_BYTES, Balloon, BalloonOptions};

use super::devices::DeviceError;
use super::pool::IoPool;
use crate::config::{BALLOON_ID, BalloonConfig, Pages};
use crate::control::{EventSender, GuestEvent};

/// Makes a balloon over memory that is made of `pages`, which may be others than were asked for.
pub(super) fn make(
    balloon: &BalloonConfig,
    pages: Pages,
    memory: &Arc<GuestMemory>,
    events: &EventSender,
    pool: &mut IoPool,
) -> Result<Balloon, DeviceError> {
    let page_bytes = pages.pool_page_bytes();
    if page_bytes.is_some() && (balloon.hinting || balloon.reporting) {
        log::warn!(
            "balloon: free page hinting and reporting are not offered on HugePages, which go whole or not at all"
        );
    }
    let options = BalloonOptions {
        target_pages: u32::try_from(balloon.target_bytes / BALLOON_PAGE_BYTES).unwrap_or(u32::MAX),
        deflate_on_oom: balloon.deflate_on_oom,
        statistics: balloon.statistics,
        hinting: balloon.hinting,
        reporting: balloon.reporting,
    };
    let events = events.clone();
    let on_exhausted = Arc::new(move || events.send(GuestEvent::PoolExhausted));
    let thread = pool.spawn(BALLOON_ID, Duration::ZERO)?;
    Balloon::new(BALLOON_ID, &options, Reclaim::new(Arc::clone(memory), page_bytes), on_exhausted, thread)
        .map_err(|source| DeviceError::Host { what: "the balloon".to_owned(), source })
}
