//! What a restored guest's clocks do: stand still for the time that it was away, or make up for it.
//!
//! kvm-clock and the time stamp counter go together. Both only ever go forward: where the host's clock says that a guest
//! comes back before it left, no time has passed.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// What the clocks of a restored guest do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClockPolicy {
    /// They go on where they stopped.
    #[default]
    Freeze,
    /// They advance by the time away, as the host's clock tells it.
    Realtime,
}

impl ClockPolicy {
    /// How far the clocks of a guest advance that was saved at one time of day and is restored at another.
    #[must_use]
    pub fn time_away(self, saved: SystemTime, now: SystemTime) -> TimeAway {
        match self {
            Self::Freeze => TimeAway::NONE,
            Self::Realtime => TimeAway(now.duration_since(saved).unwrap_or(Duration::ZERO)),
        }
    }
}

/// How far a guest's clocks advance while it is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeAway(Duration);

impl TimeAway {
    /// Not at all.
    pub const NONE: Self = Self(Duration::ZERO);

    /// As nanoseconds; what 64 bits do not hold is their most.
    #[must_use]
    pub fn nanoseconds(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// As cycles of a counter of this frequency, modulo 2^64 as such a counter is.
    #[must_use]
    pub(crate) fn cycles(self, khz: u32) -> u64 {
        let cycles = u128::from(self.nanoseconds()) * u128::from(khz) / 1_000_000;
        u64::try_from(cycles & u128::from(u64::MAX)).expect("64 bits are 64 bits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn frozen_clocks_stand_and_real_ones_advance_but_never_go_back() {
        use ClockPolicy::{Freeze, Realtime};
        for (policy, saved, now, advance) in [
            (Freeze, 100, 100, 0),
            (Freeze, 100, 90_000, 0),
            (Freeze, 100, 50, 0),
            (Realtime, 100, 100, 0),
            (Realtime, 100, 101, 1_000_000_000),
            (Realtime, 100, 90_100, 90_000_000_000_000),
            (Realtime, 100, 99, 0),
            (Realtime, u64::MAX >> 2, 100, 0),
            (Realtime, 0, u64::MAX >> 2, u64::MAX),
        ] {
            let away = policy.time_away(at(saved), at(now));
            assert_eq!(away.nanoseconds(), advance, "{policy:?} from {saved} to {now}");
        }
    }

    #[test]
    fn cycles_are_time_by_frequency_and_wrap_as_the_counter_does() {
        let away = |ns| TimeAway(Duration::from_nanos(ns));
        assert_eq!(away(1_000_000_000).cycles(2_500_000), 2_500_000_000);
        assert_eq!(away(1).cycles(2_999_999), 2);
        assert_eq!(away(1 << 40).cycles(0), 0);
        let wrapped = (u128::from(u64::MAX) * 5_000_000 / 1_000_000) % (1 << 64);
        assert_eq!(u128::from(away(u64::MAX).cycles(5_000_000)), wrapped);
    }
}
