//! A look for more work before a queue's worker asks for a doorbell and sleeps.
//!
//! To sleep and be woken costs the host more than a look of [`LOOK_NS_MAX`], and the driver a doorbell. A driver that
//! answers at once, or makes buffers available while others are served, is met awake; before one that takes longer, the
//! looks become rare. It is no polling: an idle queue sleeps.

use std::time::{Duration, Instant};

use crate::odds::Odds;

/// Less than half of what it costs to sleep and be woken.
const LOOK_NS_MAX: u64 = 1500;

/// Looks between two at the clock, which costs as much as one.
const LOOKS_PER_CLOCK: u32 = 8;

/// When a queue's worker looks, and for how long.
#[derive(Debug)]
pub(super) struct Linger {
    odds: Odds,
}

impl Linger {
    pub(super) fn new() -> Self {
        Self { odds: Odds::new() }
    }

    /// Looks, if that has been worth it of late, until `found` says yes. False if there is nothing for now.
    pub(super) fn finds(&mut self, found: impl Fn() -> bool) -> bool {
        if !self.odds.favour() {
            return false;
        }
        let start = Instant::now();
        loop {
            for _ in 0..LOOKS_PER_CLOCK {
                if found() {
                    self.odds.won();
                    return true;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= Duration::from_nanos(LOOK_NS_MAX) {
                self.odds.lost();
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn what_comes_while_it_looks_is_found() {
        let looks = Cell::new(0);
        let comes_soon = || {
            looks.set(looks.get() + 1);
            looks.get() > 3
        };
        assert!(Linger::new().finds(comes_soon));
    }

    #[test]
    fn a_queue_that_stays_idle_is_hardly_looked_at() {
        let (mut linger, looks) = (Linger::new(), Cell::new(0));
        let mut spells_with_looks = 0;
        for _ in 0..1000 {
            let before = looks.get();
            assert!(!linger.finds(|| {
                looks.set(looks.get() + 1);
                false
            }));
            spells_with_looks += u32::from(looks.get() != before);
        }
        assert!((1..50).contains(&spells_with_looks), "{spells_with_looks} of 1000");
    }
}
