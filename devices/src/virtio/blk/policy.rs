//! What a driver may rely on, which follows from the disk's cache and from whether the driver can flush it.

use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;

use crate::backend::block::{CacheMode, Durability};

/// When a driver's writes are durable, and what its flushes do.
#[derive(Clone, Copy)]
pub(super) struct Policy {
    pub(super) writes: Durability,
    pub(super) flush: Flush,
}

/// What becomes of a flush.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flush {
    /// All earlier writes become durable.
    Honoured,
    /// The user wanted none.
    Ignored,
}

impl Policy {
    pub(super) fn new(cache: CacheMode, features: u64) -> Self {
        // A driver that cannot flush relies on every write (virtio 1.3 §5.2.6.2).
        let can_flush = features & (1 << VIRTIO_BLK_F_FLUSH) != 0;
        match cache {
            CacheMode::Unsafe => Self { writes: Durability::Cached, flush: Flush::Ignored },
            _ if can_flush => Self { writes: Durability::Cached, flush: Flush::Honoured },
            _ => Self { writes: Durability::Durable, flush: Flush::Honoured },
        }
    }
}
