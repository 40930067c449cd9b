//! What happened to the machine, for clients that follow it: the last events, numbered, for whoever reads them in time.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};

use schemars::JsonSchema;
use serde::Serialize;

use super::State;
use super::jobs::JobReport;
use crate::time::unix_ms;

/// Events that are kept for those who come late.
const KEPT_MAX: usize = 256;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Event {
    /// Its number, counted from 1; one that is left out was missed.
    pub seq: u64,
    /// When, in milliseconds since 1970 (UTC).
    pub unix_ms: u64,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// The machine is in another state.
    State {
        /// Which.
        state: State,
    },
    /// The machine's life is over.
    Ended {
        /// `powered_off`, `reset`, `stopped`, `crashed` or `memory_lost`.
        reason: &'static str,
    },
    /// A job began or ended.
    Job {
        /// The job.
        job: JobReport,
    },
    /// A device was changed.
    DeviceChanged {
        /// Which.
        id: String,
        /// In what: `path`, `size`, `limits`, `link`, `statistics` or `hinting`.
        what: &'static str,
    },
    /// A disk was written to after the snapshot that the machine goes on from: its guest may find what it does not expect.
    DiskChangedSince {
        /// Which.
        id: String,
    },
    /// A thread or memory is not where it was asked to be (`GET /husk/v1/placement`).
    PlacementDrift {
        /// What.
        what: String,
    },
    /// A guest that wants a huge page back from its balloon, or memory plugged, waits: the host's pool has no page.
    PoolExhausted,
    /// A disk has no space for what the guest wrote, and the machine is paused until somebody resumes it.
    DiskFull {
        /// Which.
        id: String,
    },
}

/// The log; its clones are of the same one.
#[derive(Clone, Default)]
pub struct EventLog {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    kept: Mutex<Kept>,
    listener: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct Kept {
    events: VecDeque<Event>,
    last_seq: u64,
}

impl EventLog {
    /// Sets who is called after each event, on the thread on which it was told: it must not wait. Once a log.
    pub fn listen(&self, listener: impl Fn() + Send + Sync + 'static) {
        let set = self.shared.listener.set(Box::new(listener));
        assert!(set.is_ok(), "an event log has one listener");
    }

    /// The events after the one numbered `seq`, as far as they are kept.
    #[must_use]
    pub fn after(&self, seq: u64) -> Vec<Event> {
        self.kept().events.iter().filter(|event| event.seq > seq).cloned().collect()
    }

    pub(super) fn tell(&self, kind: EventKind) {
        let unix_ms = unix_ms();
        {
            let mut kept = self.kept();
            kept.last_seq += 1;
            let seq = kept.last_seq;
            if kept.events.len() == KEPT_MAX {
                kept.events.pop_front();
            }
            kept.events.push_back(Event { seq, unix_ms, kind });
        }
        if let Some(listener) = self.shared.listener.get() {
            listener();
        }
    }

    pub(super) fn tell_state(&self, state: State) {
        self.tell(EventKind::State { state });
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.shared.kept.lock().expect("a thread that panics aborts the process")
    }
}

impl fmt::Debug for EventLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLog").field("last_seq", &self.kept().last_seq).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn events_are_numbered_and_the_last_ones_are_kept() {
        let log = EventLog::default();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        log.listen(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        for _ in 0..KEPT_MAX + 10 {
            log.tell_state(State::Running);
        }
        assert_eq!(calls.load(Ordering::Relaxed), KEPT_MAX + 10);
        let all = log.after(0);
        assert_eq!((all.len(), all[0].seq), (KEPT_MAX, 11));
        assert_eq!(log.after(all[KEPT_MAX - 2].seq).len(), 1);
    }

    #[test]
    fn an_event_is_one_flat_line_of_json() {
        let log = EventLog::default();
        log.tell(EventKind::DiskFull { id: "data".to_owned() });
        let line = serde_json::to_string(&log.after(0)[0]).unwrap();
        assert!(line.starts_with(r#"{"seq":1,"unix_ms":"#), "{line}");
        assert!(line.ends_with(r#","event":"disk_full","id":"data"}"#), "{line}");
    }
}
