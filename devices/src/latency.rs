//! How long things took: a histogram of powers of two, which one thread at a time adds to and any reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets: up to 1, 2, 4 .. 2^19 microseconds (half a second), and beyond.
const BUCKETS: usize = 21;

/// A histogram that is added to.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

/// A histogram as it was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LatencyFigures {
    buckets: [u64; BUCKETS],
    sum_ns: u64,
}

impl Latency {
    /// Counts one that took so long. Only the thread that owns what took it may: there is no other writer to lose against.
    pub fn add(&self, took: Duration) {
        self.add_alike(took, 1);
    }

    /// Counts `count` that took so long each, as [`Self::add`] does one.
    pub(crate) fn add_alike(&self, took: Duration, count: u64) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        // The first power of two that is not below it.
        let exponent = usize::try_from(u64::BITS - micros.saturating_sub(1).leading_zeros()).expect("at most 64");
        let add = |to: &AtomicU64, count: u64| {
            to.store(to.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
        };
        add(&self.buckets[exponent.min(BUCKETS - 1)], count);
        add(&self.sum_ns, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).wrapping_mul(count));
    }

    /// What was added so far.
    pub fn read(&self) -> LatencyFigures {
        let buckets = std::array::from_fn(|index| self.buckets[index].load(Ordering::Relaxed));
        LatencyFigures { buckets, sum_ns: self.sum_ns.load(Ordering::Relaxed) }
    }
}

impl LatencyFigures {
    /// The upper bounds in seconds, each with how many were not beyond it; the last has no bound.
    pub fn cumulative(&self) -> impl Iterator<Item = (Option<f64>, u64)> {
        let bounds = (0..BUCKETS - 1).map(|exponent| Some(1e-6 * 2_f64.powi(i32::try_from(exponent).expect("few"))));
        let counts = self.buckets.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        bounds.chain([None]).zip(counts.collect::<Vec<_>>())
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How long all of them took.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_in_the_first_bucket_whose_bound_it_does_not_pass() {
        let latency = Latency::default();
        for micros in [0, 1, 2, 3, 4, 524_288, 524_289, 10_000_000] {
            latency.add(Duration::from_micros(micros));
        }
        let figures = latency.read();
        let cumulative: Vec<_> = figures.cumulative().collect();
        assert_eq!(cumulative[0], (Some(1e-6), 2));
        assert_eq!(cumulative[1].1, 3);
        assert_eq!(cumulative[2].1, 5);
        assert_eq!(cumulative[19].1, 6);
        assert_eq!(cumulative[20], (None, 8));
        assert_eq!((figures.count(), figures.sum()), (8, Duration::from_micros(11_048_587)));
    }
}
