//! How long requests took: a histogram of constant relative width, so that recording is two instructions and a store.

use guest::time;

/// Buckets between a power of two and the next: an error of at most 3 %.
const STEPS_LOG2: u32 = 5;
const STEPS: usize = 1 << STEPS_LOG2;
const BUCKETS: usize = STEPS * (65 - STEPS_LOG2 as usize);

/// Ticks of the time stamp counter, by magnitude.
pub(crate) struct Latencies {
    buckets: [u32; BUCKETS],
    count: u64,
}

impl Latencies {
    pub(crate) const fn new() -> Self {
        Self { buckets: [0; BUCKETS], count: 0 }
    }

    pub(crate) fn record(&mut self, ticks: u64) {
        self.buckets[bucket(ticks)] += 1;
        self.count += 1;
    }

    /// What `per_mille` of all did not exceed, in nanoseconds.
    pub(crate) fn percentile_ns(&self, per_mille: u64) -> u64 {
        let wanted = (self.count * per_mille).div_ceil(1000);
        let mut below = 0;
        let reached = |count: &u32| {
            below += u64::from(*count);
            below >= wanted
        };
        self.buckets.iter().position(reached).map_or(0, |bucket| time::ns(last_of(bucket)))
    }
}

/// The first [`STEPS`] are exact.
fn bucket(ticks: u64) -> usize {
    let shift = (64 - STEPS_LOG2).saturating_sub(1).saturating_sub(ticks.leading_zeros());
    shift as usize * STEPS + (ticks >> shift) as usize
}

/// The largest number of a bucket.
fn last_of(bucket: usize) -> u64 {
    let shift = (bucket / STEPS).saturating_sub(1);
    let lead = (bucket - shift * STEPS) as u64;
    ((lead + 1) << shift) - 1
}
