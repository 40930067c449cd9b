//! The CMOS clock (MC146818 and its PC extensions): index port 0x70, data port 0x71.
//!
//! The registers are live, as on hardware: they follow the host's clock plus what the guest set. The update-in-progress
//! bit is set where hardware sets it, in the last 244 us of a second, so a driver that sees it clear has that long
//! to read a consistent time. There is no interrupt.

mod state;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use self::state::{RtcRestoreError, RtcState, RtcTime};
use crate::bus::BusDevice;

const INDEX: u64 = 0;
const DATA: u64 = 1;
/// Bit 7 of the index port masks the NMI and is no part of the index.
const INDEX_MASK: u8 = 0x7f;
const REGISTERS: usize = 128;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// A 32768 Hz time base.
const A_TIME_BASE: u8 = 0x20;
const B_SET: u8 = 1 << 7;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
const D_VALID: u8 = 1 << 7;
const HOURS_PM: u8 = 1 << 7;

/// How long before the end of a second the update-in-progress bit rises.
const UPDATE_LEAD: Duration = Duration::from_micros(244);

const SECONDS_A_DAY: i64 = 86_400;

/// The last year that two registers of a byte each hold. Without a last one a guest could go on for ever.
const YEAR_MAX: i64 = 25_599;

/// A clock: the time since the UNIX epoch.
pub type Clock = Box<dyn Fn() -> Duration + Send>;

/// The clock and its 128 bytes, to be inserted at `0x70..0x72`.
pub struct Rtc {
    clock: Clock,
    /// What the guest's time is ahead of the clock's.
    offset_s: i64,
    index: u8,
    /// While the guest sets the time, the time stands still here.
    setting: Option<DateTime>,
    storage: [u8; REGISTERS],
}

impl Rtc {
    /// A clock that shows the host's time in UTC.
    pub fn new() -> Self {
        Self::with_clock(Box::new(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()))
    }

    /// A clock that shows what `clock` says.
    pub fn with_clock(clock: Clock) -> Self {
        let mut storage = [0; REGISTERS];
        storage[usize::from(STATUS_A)] = A_TIME_BASE;
        storage[usize::from(STATUS_B)] = B_24_HOURS;
        Self { clock, offset_s: 0, index: 0, setting: None, storage }
    }

    fn now(&self) -> DateTime {
        self.setting.unwrap_or_else(|| DateTime::from_epoch_s(self.clock_s().saturating_add(self.offset_s)))
    }

    fn clock_s(&self) -> i64 {
        i64::try_from((self.clock)().as_secs()).unwrap_or(i64::MAX)
    }

    fn status_b(&self) -> u8 {
        self.storage[usize::from(STATUS_B)]
    }

    fn read_register(&self) -> u8 {
        let now = self.now();
        match self.index {
            SECONDS => self.encode(now.second),
            MINUTES => self.encode(now.minute),
            HOURS => self.encode_hour(now.hour),
            WEEKDAY => self.encode(now.weekday()),
            DAY => self.encode(now.day),
            MONTH => self.encode(now.month),
            YEAR => self.encode(now.year_of_century()),
            CENTURY => self.encode(now.century()),
            STATUS_A => self.storage[usize::from(STATUS_A)] | self.update_in_progress(),
            // No interrupt is ever pending.
            STATUS_C => 0,
            STATUS_D => D_VALID,
            index => self.storage[usize::from(index)],
        }
    }

    fn update_in_progress(&self) -> u8 {
        let into_second = Duration::from_nanos((self.clock)().subsec_nanos().into());
        let near = into_second + UPDATE_LEAD >= Duration::from_secs(1);
        if self.setting.is_none() && near { A_UPDATE_IN_PROGRESS } else { 0 }
    }

    fn write_register(&mut self, value: u8) {
        match self.index {
            SECONDS | MINUTES | HOURS | DAY | MONTH | YEAR | CENTURY => self.write_time(value),
            // The weekday follows from the date.
            WEEKDAY | STATUS_C | STATUS_D => {}
            STATUS_A => self.storage[usize::from(STATUS_A)] = value & !A_UPDATE_IN_PROGRESS,
            STATUS_B => self.write_status_b(value),
            index => self.storage[usize::from(index)] = value,
        }
    }

    fn write_time(&mut self, value: u8) {
        let mut time = self.now();
        let number = self.decode(value);
        match self.index {
            SECONDS => time.second = number,
            MINUTES => time.minute = number,
            HOURS => time.hour = self.decode_hour(value),
            DAY => time.day = number,
            MONTH => time.month = number,
            YEAR => time.year = time.year - i64::from(time.year_of_century()) + i64::from(number),
            _ => time.year = i64::from(number) * 100 + i64::from(time.year_of_century()),
        }
        time.year = time.year.clamp(0, YEAR_MAX);
        if self.setting.is_some() {
            self.setting = Some(time);
        } else {
            self.set(time);
        }
    }

    fn write_status_b(&mut self, value: u8) {
        if value & B_SET != 0 {
            self.setting = Some(self.now());
        } else if let Some(time) = self.setting.take() {
            self.set(time);
        }
        self.storage[usize::from(STATUS_B)] = value;
    }

    /// A date that does not exist is not taken over.
    fn set(&mut self, time: DateTime) {
        if let Some(epoch_s) = time.to_epoch_s() {
            self.offset_s = epoch_s - self.clock_s();
        }
    }

    fn encode(&self, number: u8) -> u8 {
        if self.status_b() & B_BINARY != 0 { number } else { ((number / 10) << 4) | (number % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.status_b() & B_BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.status_b() & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let half = if hour >= 12 { HOURS_PM } else { 0 };
        let twelfth = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(twelfth) | half
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.status_b() & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let twelfth = self.decode(value & !HOURS_PM) % 12;
        if value & HOURS_PM != 0 { twelfth + 12 } else { twelfth }
    }
}

impl Default for Rtc {
    fn default() -> Self {
        Self::new()
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // The index port is write-only on a PC and reads as ones.
        if let ([byte], DATA) = (data, offset) {
            *byte = self.read_register();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let [value] = *data else { return };
        match offset {
            INDEX => self.index = value & INDEX_MASK,
            DATA => self.write_register(value),
            _ => {}
        }
    }
}

/// A time in the Gregorian calendar, or what a guest takes for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DateTime {
    year: i64,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl DateTime {
    fn from_epoch_s(epoch_s: i64) -> Self {
        let (year, month, day) = civil_from_days(epoch_s.div_euclid(SECONDS_A_DAY));
        let second = epoch_s.rem_euclid(SECONDS_A_DAY);
        Self {
            year,
            month,
            day,
            hour: small(second / 3600),
            minute: small(second / 60 % 60),
            second: small(second % 60),
        }
    }

    /// None if there is no such time.
    fn to_epoch_s(self) -> Option<i64> {
        if !(1..=12).contains(&self.month) || self.hour > 23 || self.minute > 59 || self.second > 59 {
            return None;
        }
        let days = days_from_civil(self.year, self.month, self.day);
        if civil_from_days(days) != (self.year, self.month, self.day) {
            return None;
        }
        let second = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        Some(days * SECONDS_A_DAY + second)
    }

    /// 1 is Sunday.
    fn weekday(&self) -> u8 {
        // The epoch was a Thursday.
        small((days_from_civil(self.year, self.month.clamp(1, 12), self.day) + 4).rem_euclid(7) + 1)
    }

    fn year_of_century(&self) -> u8 {
        small(self.year.rem_euclid(100))
    }

    fn century(&self) -> u8 {
        small(self.year.div_euclid(100).rem_euclid(100))
    }
}

/// Days since the epoch, counting years from March so that the leap day is a year's last.
fn days_from_civil(year: i64, month: u8, day: u8) -> i64 {
    let (month, day) = (i64::from(month), i64::from(day));
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 719468 days lie between the 1st of March of year 0 and the epoch.
    year * 365 + leap_days + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, u8, u8) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, small(month), small(day))
}

fn small(number: i64) -> u8 {
    u8::try_from(number).expect("a remainder of at most 100")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::SaveState;
    use proptest::prelude::*;
    use std::sync::{Arc, Mutex};

    /// 2026-11-23 09:26:30 UTC, a Monday.
    const MONDAY_S: u64 = 1_795_425_990;

    struct Bench {
        rtc: Rtc,
        clock: Arc<Mutex<Duration>>,
    }

    impl Bench {
        fn at(epoch_s: u64) -> Self {
            let clock = Arc::new(Mutex::new(Duration::from_secs(epoch_s)));
            let theirs = clock.clone();
            Self { rtc: Rtc::with_clock(Box::new(move || *theirs.lock().unwrap())), clock }
        }

        fn get(&mut self, register: u8) -> u8 {
            self.rtc.write(INDEX, &[register | 0x80]);
            let mut data = [0xff];
            self.rtc.read(DATA, &mut data);
            data[0]
        }

        fn set(&mut self, register: u8, value: u8) {
            self.rtc.write(INDEX, &[register]);
            self.rtc.write(DATA, &[value]);
        }

        fn all(&mut self) -> [u8; 8] {
            [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, WEEKDAY].map(|register| self.get(register))
        }
    }

    #[test]
    fn the_time_is_utc_in_bcd_until_the_guest_asks_for_binary() {
        let mut bench = Bench::at(MONDAY_S);
        assert_eq!(bench.all(), [0x20, 0x26, 0x11, 0x23, 0x09, 0x26, 0x30, 2]);
        bench.set(STATUS_B, B_24_HOURS | B_BINARY);
        assert_eq!(bench.all(), [20, 26, 11, 23, 9, 26, 30, 2]);
    }

    #[test]
    fn twelve_hour_mode_counts_from_twelve() {
        for (hour, shown) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)] {
            let mut bench = Bench::at(hour * 3600);
            bench.set(STATUS_B, 0);
            assert_eq!(bench.get(HOURS), shown);
            bench.set(HOURS, shown);
            bench.set(STATUS_B, B_24_HOURS | B_BINARY);
            assert_eq!(u64::from(bench.get(HOURS)), hour);
        }
    }

    #[test]
    fn a_time_that_the_guest_sets_runs_on() {
        let mut bench = Bench::at(MONDAY_S);
        bench.set(STATUS_B, B_24_HOURS | B_SET);
        let new = [(CENTURY, 0x19), (YEAR, 0x99), (MONTH, 0x12), (DAY, 0x31), (HOURS, 0x23), (MINUTES, 0x59)];
        for (register, value) in new.into_iter().chain([(SECONDS, 0x59)]) {
            bench.set(register, value);
        }
        *bench.clock.lock().unwrap() += Duration::from_secs(100);
        assert_eq!(bench.all()[..7], [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59], "stands still while it is set");
        bench.set(STATUS_B, B_24_HOURS);
        *bench.clock.lock().unwrap() += Duration::from_secs(1);
        assert_eq!(bench.all()[..7], [0x20, 0x00, 0x01, 0x01, 0, 0, 0]);
    }

    #[test]
    fn a_time_that_does_not_exist_is_not_taken_over() {
        let mut bench = Bench::at(MONDAY_S);
        for (register, value) in [(MONTH, 0x13), (MONTH, 0), (DAY, 0x31), (HOURS, 0x24), (SECONDS, 0xff)] {
            bench.set(register, value);
            assert_eq!(bench.all(), [0x20, 0x26, 0x11, 0x23, 0x09, 0x26, 0x30, 2], "{register:#x} {value:#x}");
        }
    }

    #[test]
    fn an_update_is_in_progress_just_before_the_second_changes() {
        let mut bench = Bench::at(MONDAY_S);
        assert_eq!(bench.get(STATUS_A), A_TIME_BASE);
        *bench.clock.lock().unwrap() += Duration::from_micros(999_755);
        assert_eq!(bench.get(STATUS_A), A_TIME_BASE);
        *bench.clock.lock().unwrap() += Duration::from_micros(1);
        assert_eq!(bench.get(STATUS_A), A_TIME_BASE | A_UPDATE_IN_PROGRESS);
    }

    #[test]
    fn the_other_registers_are_plain_storage_and_the_status_is_sane() {
        let mut bench = Bench::at(MONDAY_S);
        assert_eq!((bench.get(STATUS_C), bench.get(STATUS_D)), (0, D_VALID));
        for register in (0x0e..0x80).filter(|register| *register != CENTURY) {
            bench.set(register, register ^ 0x5a);
        }
        for register in (0x0e..0x80).filter(|register| *register != CENTURY) {
            assert_eq!(bench.get(register), register ^ 0x5a);
        }
    }

    #[test]
    fn a_clock_goes_on_in_another_and_the_time_between_has_passed() {
        let mut bench = Bench::at(MONDAY_S);
        bench.set(STATUS_B, B_24_HOURS | B_BINARY);
        bench.set(YEAR, 30);
        bench.set(0x40, 0x5a);
        let state = bench.rtc.save();
        let mut heir = Bench::at(MONDAY_S + 7 * 60);
        heir.rtc.restore(state.clone()).unwrap();
        assert_eq!(heir.rtc.save(), state);
        let mut data = [0];
        heir.rtc.read(DATA, &mut data);
        assert_eq!(data, [0x5a], "the index is as it was");
        assert_eq!(heir.all()[..7], [20, 30, 11, 23, 9, 33, 30]);
    }

    #[test]
    fn a_time_that_is_being_set_still_is() {
        let mut bench = Bench::at(MONDAY_S);
        bench.set(STATUS_B, B_24_HOURS | B_SET);
        bench.set(HOURS, 0x45);
        let mut heir = Bench::at(MONDAY_S + 60);
        heir.rtc.restore(bench.rtc.save()).unwrap();
        assert_eq!((heir.get(HOURS), heir.get(MINUTES)), (0x45, 0x26));
        heir.set(HOURS, 0x10);
        heir.set(STATUS_B, B_24_HOURS);
        assert_eq!((heir.get(HOURS), heir.get(MINUTES)), (0x10, 0x26));
    }

    #[test]
    fn registers_that_no_guest_gets_to_are_refused() {
        let good = Rtc::new().save();
        let cases: [fn(&mut RtcState); 6] = [
            |state| state.index = 0x80,
            |state| state.offset_s = i64::MIN,
            |state| state.offset_s = i64::MAX,
            |state| state.storage[0][usize::from(STATUS_A)] |= A_UPDATE_IN_PROGRESS,
            |state| state.storage[0][usize::from(STATUS_B)] |= B_SET,
            |state| {
                state.storage[0][usize::from(STATUS_B)] |= B_SET;
                state.setting = Some(RtcTime { year: i64::MIN, month: 0, day: 0, hour: 0, minute: 0, second: 0 });
            },
        ];
        for (number, change) in cases.into_iter().enumerate() {
            let mut state = good.clone();
            change(&mut state);
            assert!(Rtc::new().restore(state).is_err(), "case {number}");
        }
    }

    proptest! {
        /// Wherever a guest leaves its clock, another one takes it over; and whatever is taken over does not panic.
        #[test]
        fn every_state_that_a_guest_gets_to_is_restored(
            writes in prop::collection::vec(any::<(u8, u8)>(), 0..64),
            flips in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        ) {
            let mut bench = Bench::at(MONDAY_S);
            for (register, value) in writes {
                bench.set(register, value);
            }
            let mut bytes = postcard::to_allocvec(&bench.rtc.save()).unwrap();
            let mut heir = Bench::at(MONDAY_S);
            heir.rtc.restore(postcard::from_bytes(&bytes).unwrap()).unwrap();
            prop_assert_eq!(heir.rtc.save(), bench.rtc.save());
            prop_assert_eq!(heir.all(), bench.all());
            for flip in flips {
                let bit = flip.index(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            if let Ok(state) = postcard::from_bytes(&bytes)
                && heir.rtc.restore(state).is_ok()
            {
                for register in 0..=u8::MAX {
                    heir.set(register, register);
                    heir.all();
                }
            }
        }

        #[test]
        fn every_day_survives_the_calendar(epoch_s in -62_135_596_800_i64..253_402_300_800) {
            prop_assert_eq!(DateTime::from_epoch_s(epoch_s).to_epoch_s(), Some(epoch_s));
        }

        #[test]
        fn no_sequence_of_writes_makes_the_clock_panic(writes in prop::collection::vec(any::<(u8, u8)>(), 0..64)) {
            let mut bench = Bench::at(MONDAY_S);
            for (register, value) in writes {
                bench.set(register, value);
                bench.all();
            }
        }
    }
}
