//! What a limiter saves: how full its buckets are, so that a guest gains nothing by being saved and restored.
//!
//! The limits themselves are the configuration's: a bucket whose rate has changed meanwhile is full. The time between
//! saving and restoring fills nothing.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::bucket::{Bucket, BucketState};
use super::{Buckets, Limiter, Pair};
use crate::bus::lock;

/// A limiter's buckets, as far as it has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimiterState {
    total: PairState,
    inward: PairState,
    outward: PairState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PairState {
    bytes: Option<BucketState>,
    operations: Option<BucketState>,
}

/// A saved bucket is where none of its rate comes to.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a bucket holds more than its size, or owes more than any request takes")]
pub struct LevelError;

impl Limiter {
    /// How full it is. Who waits in line is not saved: a device that stops leaves it.
    pub(crate) fn save(&self) -> LimiterState {
        let now_ns = self.now_ns();
        lock(&self.state).buckets.save(now_ns)
    }

    /// Is as full as another one was. A group's limiter is saved and restored with each of its devices, which is once.
    ///
    /// # Errors
    /// [`LevelError`].
    pub(crate) fn restore(&self, state: LimiterState) -> Result<(), LevelError> {
        let now_ns = self.now_ns();
        lock(&self.state).buckets.restore(state, now_ns)
    }
}

impl Buckets {
    fn save(&mut self, now_ns: u64) -> LimiterState {
        let Self { total, inward, outward } = self;
        LimiterState { total: total.save(now_ns), inward: inward.save(now_ns), outward: outward.save(now_ns) }
    }

    fn restore(&mut self, state: LimiterState, now_ns: u64) -> Result<(), LevelError> {
        let LimiterState { total, inward, outward } = state;
        self.total.restore(total, now_ns)?;
        self.inward.restore(inward, now_ns)?;
        self.outward.restore(outward, now_ns)
    }
}

impl Pair {
    fn save(&mut self, now_ns: u64) -> PairState {
        let Self { bytes, operations } = self;
        let save = |bucket: &mut Option<Bucket>| bucket.as_mut().map(|bucket| bucket.save(now_ns));
        PairState { bytes: save(bytes), operations: save(operations) }
    }

    fn restore(&mut self, state: PairState, now_ns: u64) -> Result<(), LevelError> {
        let PairState { bytes, operations } = state;
        for (bucket, state) in [(&mut self.bytes, bytes), (&mut self.operations, operations)] {
            if let (Some(bucket), Some(state)) = (bucket, state) {
                bucket.restore(&state, now_ns)?;
            }
        }
        Ok(())
    }
}
