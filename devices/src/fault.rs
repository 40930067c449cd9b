//! Log lines about faults that a guest or a host can repeat at will.
//!
//! A hostile guest must not be able to fill a disk with our log: one line a period, with the count of what was left
//! out. Each log belongs to the thread that meets the faults.

use std::fmt;
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(1);

/// One device's throttled log.
#[derive(Debug)]
pub struct FaultLog {
    source: String,
    last: Option<Instant>,
    suppressed: u64,
}

impl FaultLog {
    /// A log whose lines begin with `source`, the device's name.
    pub fn new(source: impl Into<String>) -> Self {
        Self { source: source.into(), last: None, suppressed: 0 }
    }

    /// Writes one line, unless one was written less than a second ago.
    pub fn report(&mut self, fault: fmt::Arguments<'_>) {
        if let Some(line) = self.line(fault, Instant::now()) {
            log::warn!("{line}");
        }
    }

    fn line(&mut self, fault: fmt::Arguments<'_>, now: Instant) -> Option<String> {
        if self.last.is_some_and(|last| now.duration_since(last) < PERIOD) {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.last = Some(now);
        let suppressed = std::mem::take(&mut self.suppressed);
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
        let mut log = FaultLog::new("disk0");
        let start = Instant::now();
        assert_eq!(log.line(format_args!("a"), start).unwrap(), "disk0: a");
        for _ in 0..1000 {
            assert_eq!(log.line(format_args!("a"), start), None);
        }
        assert_eq!(log.line(format_args!("b"), start + PERIOD).unwrap(), "disk0: b (1000 more since the last line)");
    }
}
