//! `rtc`: the CMOS clock, read by port I/O as a kernel does, against the kernel's wall clock.

use super::{Facts, Fault, fault};
use crate::sys::{self, Clock};
use crate::words::Words;

/// How far the two may be apart, in seconds. Until it has switched to kvm-clock the kernel counts ticks, and on a loaded
/// host whose ring 0 is emulated it misses some.
const APART_MAX: u64 = 30;
/// An update of the registers takes 2 ms; a bit that stays for so many reads never goes.
const UPDATE_READS_MAX: u32 = 10_000;

/// Registers of the MC146818.
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;

/// Register A: an update is under way.
const UPDATING: u8 = 0x80;
/// Register B: numbers are binary, not BCD.
const BINARY: u8 = 0x04;
/// Register B: hours count to 23.
const HOURS_24: u8 = 0x02;
/// The hour register: afternoon, where hours count to 12.
const AFTERNOON: u8 = 0x80;

/// The registers as they stand, from second to year.
type Registers = [u8; 6];

pub(super) fn run(_words: &Words, facts: &mut Facts) -> Result<(), Fault> {
    sys::allow_ports(0x70, 2).map_err(|errno| fault!("may not use ports 0x70 and 0x71: {errno}"))?;
    let registers = read_stable()?;
    let now = sys::clock(Clock::Real).map_err(|errno| fault!("cannot read the wall clock: {errno}"))?.as_secs();
    let seconds = decode(registers, sys::read_cmos(STATUS_B))
        .ok_or_else(|| fault!("the registers {registers:02x?} are no time"))?;
    if seconds.abs_diff(now) > APART_MAX {
        return Err(fault!("the CMOS clock says {seconds}, the kernel {now}"));
    }
    facts.fact(format_args!("epoch={seconds}"));
    Ok(())
}

/// Two equal readings with no update before either are one time.
fn read_stable() -> Result<Registers, Fault> {
    let mut last = read_registers()?;
    for _ in 0..3 {
        let next = read_registers()?;
        if next == last {
            return Ok(next);
        }
        last = next;
    }
    Err(fault!("the registers change with every reading, now {last:02x?}"))
}

fn read_registers() -> Result<Registers, Fault> {
    if (0..UPDATE_READS_MAX).all(|_| sys::read_cmos(STATUS_A) & UPDATING != 0) {
        return Err(fault!("the update bit never goes"));
    }
    Ok([SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR].map(sys::read_cmos))
}

/// Seconds since 1970, or `None` where a register is out of its range.
fn decode(registers: Registers, status: u8) -> Option<u64> {
    let number = |raw: u8| {
        let value = if status & BINARY != 0 { raw } else { (raw >> 4) * 10 + (raw & 0xf) };
        u64::from(value)
    };
    let [second, minute, hour, day, month, year] = registers;
    let hour = if status & HOURS_24 != 0 {
        number(hour)
    } else {
        number(hour & !AFTERNOON) % 12 + if hour & AFTERNOON != 0 { 12 } else { 0 }
    };
    let (second, minute, day, month) = (number(second), number(minute), number(day), number(month));
    let ranges = second < 60 && minute < 60 && hour < 24 && (1..=31).contains(&day) && (1..=12).contains(&month);
    let days = days_since_1970(2000 + number(year), month, day)?;
    ranges.then_some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

/// Days from 1970-01-01 to a day of the Gregorian calendar from 1970 on; years begin in March, so that a leap day is a
/// year's last.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let in_year = (153 * month + 2) / 5 + day.checked_sub(1)?;
    (year * 365 + year / 4 - year / 100 + year / 400 + in_year).checked_sub(719_468)
}
