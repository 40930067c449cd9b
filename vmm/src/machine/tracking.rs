//! What a machine knows of its points: the last one, what was written since, and what its memory came from.

use std::sync::Arc;

use super::{Machine, MemorySlots};
use crate::epoch::{DirtyLog, DirtyLogError};
use crate::snapshot::{Absent, Ground, LastPoint};

/// A machine's points.
#[derive(Debug, Default)]
pub(super) struct Tracking {
    /// Whether what is written is recorded for as long as the machine lives.
    pub(super) always: bool,
    pub(super) log: Option<DirtyLog>,
    pub(super) last: Option<LastPoint>,
    /// Where pages are that nobody has touched since the machine was made.
    pub(super) absent: Absent,
}

impl Tracking {
    /// Of a machine that was made from a point.
    pub(super) fn from_point(last: LastPoint, absent: Absent) -> Self {
        Self { last: Some(last), absent, ..Self::default() }
    }

    /// Of a machine whose memory another process brings.
    pub(super) fn beside_handler() -> Self {
        Self { absent: Absent::WithHandler, ..Self::default() }
    }

    /// Records what is written from here on, if `always`.
    pub(super) fn begin(&mut self, always: bool, slots: &Arc<MemorySlots>) -> Result<(), DirtyLogError> {
        self.always = always;
        if always {
            self.log = Some(DirtyLog::start(slots)?);
        }
        Ok(())
    }
}

impl Machine {
    /// What the maker of a point works with. What is recorded as written goes with it until [`Self::keep_tracking`].
    pub(crate) fn snapshot_ground(&mut self) -> Ground {
        Ground {
            slots: Arc::clone(&self.slots),
            memory: Arc::clone(&self.memory),
            pluggable: self.devices.pluggable().map(Arc::clone),
            absent: self.tracking.absent.clone(),
            log: self.tracking.log.take(),
            last: self.tracking.last.clone(),
            tracks: self.tracking.always,
        }
    }

    /// Takes back what is recorded as written, and the point that it is recorded from, if there is a new one.
    pub(crate) fn keep_tracking(&mut self, log: Option<DirtyLog>, last: Option<LastPoint>) {
        self.tracking.log = log;
        if last.is_some() {
            self.tracking.last = last;
        }
    }
}
