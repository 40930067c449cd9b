//! One token bucket: pure arithmetic over nanoseconds that the caller counts.

use serde::{Deserialize, Serialize};

use super::LevelError;

/// How fast tokens come, and how many can be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// What the bucket holds; full at the start.
    size: u64,
    /// Tokens beside the bucket, once.
    burst: u64,
    /// The time in which an empty bucket fills, evenly.
    refill_ns: u64,
}

/// The longest refill: a year.
const REFILL_MS_MAX: u64 = 366 * 24 * 3600 * 1000;

impl Rate {
    /// `size` tokens in each `refill_ms`, and `burst` once. None if that is no limit: a size or time of 0.
    pub fn new(size: u64, burst: u64, refill_ms: u64) -> Option<Self> {
        (size > 0 && refill_ms > 0).then(|| Self { size, burst, refill_ns: refill_ms.min(REFILL_MS_MAX) * 1_000_000 })
    }

    /// Tokens that the bucket holds.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Tokens beside the bucket, once.
    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// The milliseconds in which an empty bucket fills.
    pub fn refill_ms(&self) -> u64 {
        self.refill_ns / 1_000_000
    }

    /// `per_second` tokens a second, of which a second's worth can be saved. None for 0, which is no limit.
    pub fn per_second(per_second: u64) -> Option<Self> {
        Self::new(per_second, 0, 1000)
    }
}

/// A bucket with what is in it.
///
/// Its level is counted in tokens times the refill time in nanoseconds, so that a nanosecond adds exactly `size` and
/// nothing is ever rounded.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    /// Below 0 after a request that was larger than the bucket.
    level: i128,
    burst: u64,
    now_ns: u64,
}

impl Bucket {
    pub(crate) fn new(rate: Rate) -> Self {
        let mut bucket = Self { rate, level: 0, burst: rate.burst, now_ns: 0 };
        bucket.level = bucket.worth(rate.size);
        bucket
    }

    /// How long until `cost` tokens can be taken; 0 means now. A cost above the size waits for a full bucket.
    pub(crate) fn wait_ns(&mut self, cost: u64, now_ns: u64) -> u64 {
        self.refill(now_ns);
        let need = self.worth(cost.saturating_sub(self.burst).min(self.rate.size));
        let missing = need - self.level;
        if missing <= 0 {
            return 0;
        }
        let size = i128::from(self.rate.size);
        u64::try_from((missing + size - 1) / size).unwrap_or(u64::MAX)
    }

    /// Takes `cost` tokens, for which there must be no wait, or nothing owed.
    pub(crate) fn take(&mut self, cost: u64) {
        let from_burst = cost.min(self.burst);
        self.burst -= from_burst;
        self.level -= self.worth(cost - from_burst);
    }

    /// Puts `cost` tokens back that were taken, as far as there is room. The burst is gone once it was used.
    pub(crate) fn give_back(&mut self, cost: u64) {
        self.level = self.level.saturating_add(self.worth(cost)).min(self.worth(self.rate.size));
    }

    /// Whether more was taken than there was.
    pub(crate) fn owes(&mut self, now_ns: u64) -> bool {
        self.refill(now_ns);
        self.level < 0
    }

    fn refill(&mut self, now_ns: u64) {
        // A clock that two threads read may seem to step back.
        let elapsed = now_ns.saturating_sub(self.now_ns);
        self.now_ns = self.now_ns.max(now_ns);
        let added = i128::from(elapsed).saturating_mul(self.rate.size.into());
        self.level = self.level.saturating_add(added).min(self.worth(self.rate.size));
    }

    /// 64 bits of tokens times 56 bits of time.
    fn worth(&self, tokens: u64) -> i128 {
        i128::from(tokens) * i128::from(self.rate.refill_ns)
    }
}

/// A bucket's rate, by which it is known, and what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BucketState {
    size: u64,
    burst_max: u64,
    refill_ns: u64,
    level: i128,
    burst: u64,
}

/// No request is larger: a chain describes at most so many bytes (virtio 1.3 §2.7.5.2).
const COST_MAX: u64 = 1 << 32;

impl Bucket {
    pub(super) fn save(&mut self, now_ns: u64) -> BucketState {
        self.refill(now_ns);
        let Self { rate: Rate { size, burst: burst_max, refill_ns }, level, burst, now_ns: _ } = *self;
        BucketState { size, burst_max, refill_ns, level, burst }
    }

    /// As it was saved, from now on. Of another rate it stays full.
    pub(super) fn restore(&mut self, state: &BucketState, now_ns: u64) -> Result<(), LevelError> {
        let BucketState { size, burst_max, refill_ns, level, burst } = *state;
        if (Rate { size, burst: burst_max, refill_ns }) != self.rate {
            return Ok(());
        }
        let levels = -self.worth(COST_MAX)..=self.worth(size);
        if !levels.contains(&level) || burst > burst_max {
            return Err(LevelError);
        }
        (self.level, self.burst, self.now_ns) = (level, burst, now_ns);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND_NS: u64 = 1_000_000_000;

    /// When each of `costs` is let through if the next is asked for `gaps` after the one before was.
    fn release_times(rate: Rate, requests: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let mut bucket = Bucket::new(rate);
        let mut now = 0;
        let mut released = Vec::new();
        for (gap, cost) in requests {
            now += gap;
            now += bucket.wait_ns(*cost, now);
            assert_eq!(bucket.wait_ns(*cost, now), 0, "the wait is enough");
            bucket.take(*cost);
            released.push((now, *cost));
        }
        released
    }

    #[test]
    fn a_size_or_a_time_of_zero_is_no_limit() {
        assert_eq!(Rate::new(0, 5, 100), None);
        assert_eq!(Rate::new(5, 5, 0), None);
        assert_eq!(Rate::per_second(0), None);
    }

    #[test]
    fn the_burst_goes_once_and_then_the_rate_holds() {
        let rate = Rate::new(10, 5, 1000).unwrap();
        let released = release_times(rate, &[(0, 1); 35]);
        assert!(released[..15].iter().all(|(at, _)| *at == 0));
        let last = released[34].0;
        assert_eq!(last, 2 * SECOND_NS, "20 tokens at 10 a second");
        let after_a_rest = [[(0, 1); 15].as_slice(), &[(10 * SECOND_NS, 1)], &[(0, 1); 10]].concat();
        let released = release_times(rate, &after_a_rest);
        assert_eq!(released[24].0, 10 * SECOND_NS, "a full bucket and no second burst");
        assert_eq!(released[25].0, 10 * SECOND_NS + SECOND_NS / 10);
    }

    #[test]
    fn a_request_larger_than_the_bucket_waits_for_a_full_one_and_is_paid_afterwards() {
        let rate = Rate::new(1000, 0, 1000).unwrap();
        let released = release_times(rate, &[(0, 1), (0, 5000), (0, 1)]);
        let times: Vec<_> = released.iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [0, SECOND_NS / 1000, SECOND_NS / 1000 + 4 * SECOND_NS + SECOND_NS / 1000]);
    }

    #[test]
    fn extreme_rates_do_not_overflow() {
        for (size, refill_ms) in [(u64::MAX, 1), (u64::MAX, u64::MAX), (1, u64::MAX), (1, 1)] {
            let mut bucket = Bucket::new(Rate::new(size, u64::MAX, refill_ms).unwrap());
            for (cost, now) in [(u64::MAX, 0), (1, 1), (u64::MAX, 2), (u64::MAX, u64::MAX), (1, u64::MAX)] {
                if bucket.wait_ns(cost, now) == 0 {
                    bucket.take(cost);
                }
            }
        }
    }

    #[test]
    fn a_bucket_is_as_full_as_the_one_whose_state_it_has() {
        let rate = Rate::new(10, 5, 1000).unwrap();
        let mut first = Bucket::new(rate);
        first.take(3);
        first.take(9);
        let state = first.save(SECOND_NS / 10);
        let mut heir = Bucket::new(rate);
        // What passed between the two fills nothing.
        heir.restore(&state, 1000 * SECOND_NS).unwrap();
        assert_eq!(heir.wait_ns(5, 1000 * SECOND_NS), SECOND_NS / 10, "10 + 5 - 12 + 1 are 4");
        let mut other = Bucket::new(Rate::new(20, 5, 1000).unwrap());
        other.restore(&state, 0).unwrap();
        assert_eq!(other.wait_ns(25, 0), 0, "of another rate it is full");
    }

    #[test]
    fn a_level_that_no_bucket_has_is_refused_and_the_lowest_does_not_overflow() {
        for (size, refill_ms) in [(u64::MAX, u64::MAX), (1, 1), (10, 1000)] {
            let rate = Rate::new(size, 5, refill_ms).unwrap();
            let mut bucket = Bucket::new(rate);
            let good = bucket.save(0);
            let lowest = -bucket.worth(COST_MAX);
            for level in [good.level + 1, lowest - 1, i128::MIN, i128::MAX] {
                let state = BucketState { level, ..good.clone() };
                assert_eq!(Bucket::new(rate).restore(&state, 0), Err(LevelError));
            }
            let state = BucketState { burst: 6, ..good.clone() };
            assert_eq!(Bucket::new(rate).restore(&state, 0), Err(LevelError));
            let mut poor = Bucket::new(rate);
            poor.restore(&BucketState { level: lowest, ..good }, 0).unwrap();
            poor.wait_ns(u64::MAX, 0);
            poor.wait_ns(u64::MAX, u64::MAX);
        }
    }

    proptest! {
        /// Between any two moments no more than size + burst + rate x T is let through, plus what the largest request
        /// has beyond the bucket.
        #[test]
        fn no_window_has_more_than_its_share(
            size in 1..5000_u64,
            burst in 0..5000_u64,
            refill_ms in 1..3000_u64,
            requests in prop::collection::vec((0..20_000_000_u64, 1..6000_u64), 1..120),
        ) {
            let released = release_times(Rate::new(size, burst, refill_ms).unwrap(), &requests);
            let beyond = requests.iter().map(|(_, cost)| cost.saturating_sub(size)).max().unwrap();
            for (at, (start, _)) in released.iter().enumerate() {
                let mut sum = 0;
                for (end, cost) in &released[at..] {
                    sum += cost;
                    let refill_ns = refill_ms * 1_000_000;
                    let earned = u128::from(end - start) * u128::from(size) / u128::from(refill_ns);
                    let share = u128::from(size + burst + beyond) + earned;
                    prop_assert!(u128::from(sum) <= share, "{sum} within {} ns, share {share}", end - start);
                }
            }
        }

        /// A queue that always has something gets what it is owed, also when each of its looks is late.
        #[test]
        fn a_drained_bucket_gives_its_rate(late in 0..400_000_u64, size in 50..2000_u64) {
            let mut bucket = Bucket::new(Rate::new(size, 0, size).unwrap());
            let (mut now, mut count) = (0, 0);
            while bucket.wait_ns(1, now) == 0 {
                bucket.take(1);
            }
            let end = 10 * SECOND_NS;
            while now < end {
                now += bucket.wait_ns(1, now) + late;
                while bucket.wait_ns(1, now) == 0 {
                    bucket.take(1);
                    count += 1;
                }
            }
            prop_assert!((9900..=10100).contains(&count), "{count} in 10 s at 1000 a second");
        }
    }
}
