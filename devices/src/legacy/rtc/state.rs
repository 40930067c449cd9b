//! What a CMOS clock saves. The time itself is the host's: it goes on while there is no machine, as a battery has it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{A_UPDATE_IN_PROGRESS, B_SET, DateTime, INDEX_MASK, REGISTERS, Rtc, SECONDS_A_DAY, STATUS_A, STATUS_B};
use crate::state::SaveState;

/// Registers are kept in rows: so many are as many as an array of serde's has.
const ROW_BYTES: usize = 32;

/// Years from and to which no guest's clock comes, and with which nothing overflows.
const YEARS: std::ops::RangeInclusive<i64> = -100_000..=100_000;
const OFFSET_S_MAX: i64 = 100_000 * 366 * SECONDS_A_DAY;

/// What a CMOS clock saves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    pub(crate) offset_s: i64,
    pub(crate) index: u8,
    pub(crate) setting: Option<RtcTime>,
    pub(crate) storage: [[u8; ROW_BYTES]; REGISTERS / ROW_BYTES],
}

/// The time that a guest is about to set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcTime {
    pub(crate) year: i64,
    pub(crate) month: u8,
    pub(crate) day: u8,
    pub(crate) hour: u8,
    pub(crate) minute: u8,
    pub(crate) second: u8,
}

/// Why a CMOS clock cannot go on from a saved state.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RtcRestoreError {
    /// There is no such register.
    #[error("there is no CMOS register {0:#04x}")]
    Index(u8),
    /// Registers that no guest can write so.
    #[error("no guest gets to such CMOS registers: {0}")]
    Impossible(&'static str),
}

impl SaveState for Rtc {
    type State = RtcState;
    type Error = RtcRestoreError;

    fn save(&self) -> RtcState {
        let Self { clock: _, offset_s, index, setting, storage } = self;
        let mut rows = [[0; ROW_BYTES]; REGISTERS / ROW_BYTES];
        rows.as_flattened_mut().copy_from_slice(storage);
        RtcState { offset_s: *offset_s, index: *index, setting: setting.map(RtcTime::from), storage: rows }
    }

    fn restore(&mut self, state: RtcState) -> Result<(), RtcRestoreError> {
        let RtcState { offset_s, index, setting, storage } = state;
        let storage: [u8; REGISTERS] = storage.as_flattened().try_into().expect("as many rows as make all registers");
        if index & !INDEX_MASK != 0 {
            return Err(RtcRestoreError::Index(index));
        }
        if !(-OFFSET_S_MAX..=OFFSET_S_MAX).contains(&offset_s) {
            return Err(RtcRestoreError::Impossible("a time that they do not hold"));
        }
        if storage[usize::from(STATUS_A)] & A_UPDATE_IN_PROGRESS != 0 {
            return Err(RtcRestoreError::Impossible("an update in progress that stays"));
        }
        if setting.is_some() != (storage[usize::from(STATUS_B)] & B_SET != 0) {
            return Err(RtcRestoreError::Impossible("a time is being set, and the bit says otherwise"));
        }
        if setting.as_ref().is_some_and(|time| !YEARS.contains(&time.year)) {
            return Err(RtcRestoreError::Impossible("a year that they do not hold"));
        }
        self.offset_s = offset_s;
        self.index = index;
        self.setting = setting.map(DateTime::from);
        self.storage = storage;
        Ok(())
    }
}

impl From<DateTime> for RtcTime {
    fn from(time: DateTime) -> Self {
        let DateTime { year, month, day, hour, minute, second } = time;
        Self { year, month, day, hour, minute, second }
    }
}

impl From<RtcTime> for DateTime {
    fn from(time: RtcTime) -> Self {
        let RtcTime { year, month, day, hour, minute, second } = time;
        Self { year, month, day, hour, minute, second }
    }
}
