//! Log lines about faults that a guest or a host can repeat at will.
//!
//! A hostile guest must not be able to fill a disk with our log: one line a period and device, with the count of what was
//! left out, however often the device is reset in between.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::bus::lock;

const PERIOD: Duration = Duration::from_secs(1);

/// Lines that were left out since the process began.
static SUPPRESSED: AtomicU64 = AtomicU64::new(0);

/// How many lines about faults were left out since the process began.
pub fn suppressed_lines() -> u64 {
    SUPPRESSED.load(Ordering::Relaxed)
}

/// One device's throttled log. Its clones, one for each thread that serves the device, share the throttle.
#[derive(Clone, Debug)]
pub struct FaultLog {
    source: Arc<str>,
    throttle: Arc<Mutex<Throttle>>,
}

#[derive(Debug, Default)]
struct Throttle {
    last: Option<Instant>,
    suppressed: u64,
}

impl FaultLog {
    /// A log whose lines begin with `source`, the device's name.
    pub fn new(source: &str) -> Self {
        Self { source: source.into(), throttle: Arc::default() }
    }

    /// Writes one line, unless one was written less than a second ago.
    pub fn report(&self, fault: fmt::Arguments<'_>) {
        if let Some(line) = self.line(fault, Instant::now()) {
            log::warn!("{line}");
        }
    }

    fn line(&self, fault: fmt::Arguments<'_>, now: Instant) -> Option<String> {
        let suppressed = {
            let mut throttle = lock(&self.throttle);
            if throttle.last.is_some_and(|last| now.duration_since(last) < PERIOD) {
                throttle.suppressed = throttle.suppressed.saturating_add(1);
                SUPPRESSED.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            throttle.last = Some(now);
            std::mem::take(&mut throttle.suppressed)
        };
        Some(match suppressed {
            0 => format!("{}: {fault}", self.source),
            more => format!("{}: {fault} ({more} more since the last line)", self.source),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_period_and_the_next_counts_what_was_left_out() {
        let log = FaultLog::new("disk0");
        let start = Instant::now();
        assert_eq!(log.line(format_args!("a"), start).unwrap(), "disk0: a");
        for _ in 0..1000 {
            // A clone, as each activation of the device makes one.
            assert_eq!(log.clone().line(format_args!("a"), start), None);
        }
        // Other tests of this process may leave out some, too.
        assert!(suppressed_lines() >= 1000);
        assert_eq!(log.line(format_args!("b"), start + PERIOD).unwrap(), "disk0: b (1000 more since the last line)");
    }
}
