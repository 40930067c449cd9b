//! How late a sleeping thread wakes on each CPU: what a guest's timer has on top of its own.

use std::thread;
use std::time::{Duration, Instant};

use super::{Outcome, Quantiles, TimerMeasured, on_cpus};
use crate::host::id_list::IdList;

const PERIOD: Duration = Duration::from_millis(1);
/// A second's.
const SLEEPS: usize = 1000;
/// Of a CPU that is so busy that a second's sleeps take longer.
const TIME_MAX: Duration = Duration::from_secs(2);

/// All CPUs at once.
pub(super) fn measure(cpus: &IdList) -> Vec<TimerMeasured> {
    let one = |cpu: u16| {
        let only: IdList = [cpu].into_iter().collect();
        let outcome = on_cpus(&only, || Quantiles::of(lateness()).ok_or_else(|| std::io::ErrorKind::TimedOut.into()));
        TimerMeasured { cpu, outcome: Outcome::of(outcome) }
    };
    thread::scope(|scope| {
        let measuring: Vec<_> = cpus.iter().map(|cpu| scope.spawn(move || one(cpu))).collect();
        measuring.into_iter().map(|thread| thread.join().expect("a measurement does not panic")).collect()
    })
}

/// How long after each millisecond's end the thread runs again. A sleep is a clock_nanosleep.
fn lateness() -> Vec<Duration> {
    let began = Instant::now();
    let mut late = Vec::with_capacity(SLEEPS);
    let mut due = began;
    while late.len() < SLEEPS && began.elapsed() < TIME_MAX {
        // From now on, where the last wake-up was later than a whole period.
        due = (due + PERIOD).max(Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
        late.push(due.elapsed());
    }
    late
}
