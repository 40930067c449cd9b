//! The life of a machine as a total, pure table: which action each state accepts, and the state it leads to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use schemars::JsonSchema;
use serde::Serialize;
use thiserror::Error;

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum State {
    /// Being described, or assembled; no vCPU has entered the guest.
    NotStarted,
    /// The vCPUs run.
    Running,
    /// All vCPUs are parked and all devices are drained.
    Paused,
    /// It has ended and will not run again.
    Ended,
}

/// What can be done to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Describe a part of it.
    Configure,
    /// Assemble it and enter the guest for the first time.
    Start,
    /// Park all vCPUs and drain the devices. One that is paused stays so.
    Pause,
    /// Go on. One that runs goes on running.
    Resume,
    /// Press the power button.
    PowerButton,
    /// Type Ctrl-Alt-Delete.
    CtrlAltDel,
    /// Interrupt it by what it cannot mask.
    Nmi,
    /// Change a device that it uses.
    ChangeDevice,
    /// Write a point of it to files.
    Snapshot,
    /// As [`Self::Snapshot`], of one that somebody has paused.
    SnapshotPaused,
    /// Be what such a point holds: all vCPUs parked, all devices drained.
    Restore,
    /// Write down what it has counted.
    FlushMetrics,
    /// End it, in whatever way.
    Stop,
}

/// An action that the present state does not accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("cannot {action} a machine that {state}")]
pub struct Refusal {
    /// The state.
    pub state: State,
    /// The action.
    pub action: Action,
}

impl State {
    /// The state that `action` leads to.
    ///
    /// # Errors
    /// This state does not accept it.
    pub const fn accepts(self, action: Action) -> Result<Self, Refusal> {
        use Action as A;
        match (self, action) {
            (Self::NotStarted, A::Configure) => Ok(Self::NotStarted),
            (Self::NotStarted, A::Start) | (Self::Running | Self::Paused, A::Resume) => Ok(Self::Running),
            (Self::NotStarted, A::Restore) | (Self::Running | Self::Paused, A::Pause) => Ok(Self::Paused),
            (
                Self::Running,
                A::PowerButton | A::Nmi | A::CtrlAltDel | A::ChangeDevice | A::FlushMetrics | A::Snapshot,
            ) => Ok(Self::Running),
            // Keys wait in the keyboard until the guest goes on.
            (Self::Paused, A::CtrlAltDel | A::ChangeDevice | A::FlushMetrics | A::Snapshot | A::SnapshotPaused) => {
                Ok(Self::Paused)
            }
            (Self::NotStarted | Self::Running | Self::Paused, A::Stop) => Ok(Self::Ended),
            (
                Self::NotStarted,
                A::Pause
                | A::Resume
                | A::PowerButton
                | A::CtrlAltDel
                | A::Nmi
                | A::ChangeDevice
                | A::FlushMetrics
                | A::Snapshot
                | A::SnapshotPaused,
            )
            | (Self::Running, A::Configure | A::Start | A::Restore | A::SnapshotPaused)
            | (Self::Paused, A::Configure | A::Start | A::Restore | A::PowerButton | A::Nmi)
            | (Self::Ended, _) => Err(Refusal { state: self, action }),
        }
    }

    /// Its name where a machine reads it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotStarted => "not_started",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ended => "ended",
        }
    }

    /// It as a sentence.
    pub(super) const fn sentence(self) -> &'static str {
        match self {
            Self::NotStarted => "The machine has not been started",
            Self::Running => "The machine is running",
            Self::Paused => "The machine is paused",
            Self::Ended => "The machine has ended",
        }
    }
}

/// The state for whoever asks, whatever the control loop is busy with. The loop writes, anybody reads.
#[derive(Debug, Clone)]
pub struct StateCell(Arc<AtomicU8>);

impl StateCell {
    /// What the control loop last said.
    #[must_use]
    pub fn get(&self) -> State {
        match self.0.load(Ordering::Acquire) {
            0 => State::NotStarted,
            1 => State::Running,
            2 => State::Paused,
            _ => State::Ended,
        }
    }

    /// Release pairs with the Acquire of [`Self::get`]: who sees a state sees what led to it.
    pub(super) fn set(&self, state: State) {
        self.0.store(state as u8, Ordering::Release);
    }
}

impl Default for StateCell {
    fn default() -> Self {
        Self(Arc::new(AtomicU8::new(State::NotStarted as u8)))
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotStarted => "has not been started",
            Self::Running => "is running",
            Self::Paused => "is paused",
            Self::Ended => "has ended",
        })
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Configure => "configure",
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::PowerButton => "press the power button of",
            Self::CtrlAltDel => "send Ctrl-Alt-Delete to",
            Self::Nmi => "send an NMI to",
            Self::ChangeDevice => "change a device of",
            Self::FlushMetrics => "write the metrics of",
            Self::Snapshot | Self::SnapshotPaused => "make a snapshot of",
            Self::Restore => "load a snapshot into",
            Self::Stop => "stop",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_what_a_user_expects_of_every_pair() {
        use Action as A;
        use State as S;
        let actions = [
            A::Configure,
            A::Start,
            A::Pause,
            A::Resume,
            A::PowerButton,
            A::CtrlAltDel,
            A::Nmi,
            A::ChangeDevice,
            A::FlushMetrics,
            A::Snapshot,
            A::SnapshotPaused,
            A::Restore,
            A::Stop,
        ];
        let (new, runs, paused, end) = (Some(S::NotStarted), Some(S::Running), Some(S::Paused), Some(S::Ended));
        let table = [
            (S::NotStarted, [new, runs, None, None, None, None, None, None, None, None, None, paused, end]),
            (S::Running, [None, None, paused, runs, runs, runs, runs, runs, runs, runs, None, None, end]),
            (S::Paused, [None, None, paused, runs, None, paused, None, paused, paused, paused, paused, None, end]),
            (S::Ended, [None; 13]),
        ];
        for (state, row) in table {
            for (action, next) in actions.into_iter().zip(row) {
                assert_eq!(state.accepts(action), next.ok_or(Refusal { state, action }), "{state:?} {action:?}");
            }
        }
    }

    #[test]
    fn a_refusal_names_state_and_action() {
        let refusal = State::Paused.accepts(Action::Start).unwrap_err();
        assert_eq!(refusal.to_string(), "cannot start a machine that is paused");
    }

    #[test]
    fn a_cell_tells_every_state_as_it_was_set() {
        let cell = StateCell::default();
        assert_eq!(cell.get(), State::NotStarted);
        for state in [State::Running, State::Paused, State::Ended, State::NotStarted] {
            cell.set(state);
            assert_eq!(cell.clone().get(), state);
        }
    }
}
