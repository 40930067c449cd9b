//! `clock`: the monotonic clock goes with a sleep and the wall clock is of this time.

use core::time::Duration;

use super::{Facts, Fault, fault};
use crate::sys::{self, Clock};
use crate::text::Printable;
use crate::words::Words;

/// 2025-01-01 and 2100-01-01 in seconds since 1970: a clock outside is not set, or not read right.
const PLAUSIBLE: core::ops::Range<u64> = 1_735_689_600..4_102_444_800;
/// Two timer ticks of a kernel with HZ=25, so that the timer must fire.
const SLEEP: Duration = Duration::from_millis(80);
/// A sleep that takes longer says that timer interrupts get lost.
const SLEEP_MAX: Duration = Duration::from_secs(5);

pub(super) fn run(_words: &Words, facts: &mut Facts) -> Result<(), Fault> {
    let read = |clock| sys::clock(clock).map_err(|errno| fault!("cannot read a clock: {errno}"));
    let before = read(Clock::Monotonic)?;
    sys::sleep(SLEEP).map_err(|errno| fault!("cannot sleep: {errno}"))?;
    let slept = read(Clock::Monotonic)?.saturating_sub(before);
    if slept < SLEEP || slept > SLEEP_MAX {
        return Err(fault!("a sleep of {} ms took {} ms", SLEEP.as_millis(), slept.as_millis()));
    }
    let now = read(Clock::Real)?.as_secs();
    if !PLAUSIBLE.contains(&now) {
        return Err(fault!("the wall clock says {now} seconds since 1970"));
    }
    let mut source = [0; 32];
    let len = sys::read_file(c"/sys/devices/system/clocksource/clocksource0/current_clocksource", &mut source)
        .map_err(|errno| fault!("cannot read the clock source: {errno}"))?;
    let source = source.get(..len).unwrap_or_default().trim_ascii();
    facts.fact(format_args!("epoch={now} slept_ms={} source={}", slept.as_millis(), Printable(source)));
    Ok(())
}
