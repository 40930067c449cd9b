//! How far a long job is, as a bar on the terminal's last line.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

/// What is over sooner has no bar.
const SHOWN_AFTER: Duration = Duration::from_millis(300);
const CELLS: u32 = 30;
/// To the line's beginning, and nothing behind it (ECMA-48 §8.3.41).
const CLEAR_LINE: &str = "\r\x1b[K";

/// A bar on standard error, if that is a terminal. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct ProgressBar {
    begun: Instant,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nobody would see it.
    None,
    Empty,
    Drawn,
}

impl ProgressBar {
    pub(super) fn new() -> Self {
        let place = if io::stderr().is_terminal() { Place::Empty } else { Place::None };
        Self { begun: Instant::now(), place }
    }

    /// Whether anybody would see it.
    pub(super) fn is_seen(&self) -> bool {
        self.place != Place::None
    }

    /// Shows a job as it is told of.
    pub(super) fn show(&mut self, job: &Value) {
        let took = self.begun.elapsed();
        if self.is_seen() && took >= SHOWN_AFTER {
            self.place = Place::Drawn;
            write(&format!("\r{}\x1b[K", bar(job, took)));
        }
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        if self.place == Place::Drawn {
            write(CLEAR_LINE);
        }
    }
}

/// A terminal that is gone shows nothing, and the job goes on.
fn write(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

fn bar(job: &Value, took: Duration) -> String {
    let share = job["progress"].as_f64().unwrap_or(0.0).clamp(0.0, 1.0);
    let is_done = |cell| f64::from(cell) <= share * f64::from(CELLS);
    let cells: String = (1..=CELLS).map(|cell| if is_done(cell) { '#' } else { '.' }).collect();
    let kind = job["kind"].as_str().unwrap_or("job");
    format!("{kind} [{cells}] {:3.0} % {:5.1} s", (share * 100.0).floor(), took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_bar_is_full_when_the_job_is_and_no_sooner() {
        for (progress, full, percent) in
            [(0.0, 0, "  0 %"), (0.5, 15, " 50 %"), (0.999, 29, " 99 %"), (1.0, 30, "100 %"), (7.0, 30, "100 %")]
        {
            let text = bar(&json!({ "kind": "snapshot", "progress": progress }), Duration::from_millis(2500));
            assert_eq!(text.matches('#').count(), full, "{text}");
            assert!(text.starts_with("snapshot [") && text.contains(percent) && text.ends_with("  2.5 s"), "{text}");
            assert!(text.len() < 60, "it fits into a narrow terminal");
        }
    }
}
