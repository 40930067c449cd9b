//! The life of a machine as a total, pure table: which command each state accepts, and the state it leads to.

use thiserror::Error;

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Assembled; no vCPU has entered the guest.
    NotStarted,
    /// The vCPUs run.
    Running,
    /// All vCPUs are parked and all devices are drained.
    Paused,
    /// It has ended and will not run again.
    Ended,
}

/// What a machine can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Enter the guest for the first time.
    Start,
    /// Park all vCPUs and drain the devices.
    Pause,
    /// Go on.
    Resume,
    /// Press the power button.
    PowerButton,
    /// End the machine at once.
    Stop,
}

/// A command that the present state does not accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("cannot {command} a machine that {state}")]
pub struct Refusal {
    /// The state.
    pub state: State,
    /// The command.
    pub command: Command,
}

impl State {
    /// The state that `command` leads to.
    ///
    /// # Errors
    /// This state does not accept it.
    pub const fn accepts(self, command: Command) -> Result<Self, Refusal> {
        match (self, command) {
            (Self::NotStarted, Command::Start) | (Self::Paused, Command::Resume) => Ok(Self::Running),
            (Self::Running, Command::Pause) => Ok(Self::Paused),
            (Self::Running, Command::PowerButton) => Ok(Self::Running),
            (Self::NotStarted | Self::Running | Self::Paused, Command::Stop) => Ok(Self::Ended),
            (Self::NotStarted, Command::Pause | Command::Resume | Command::PowerButton)
            | (Self::Running, Command::Start | Command::Resume)
            | (Self::Paused, Command::Start | Command::Pause | Command::PowerButton)
            | (Self::Ended, _) => Err(Refusal { state: self, command }),
        }
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

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::PowerButton => "press the power button of",
            Self::Stop => "stop",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_what_a_user_expects_of_every_pair() {
        use Command as C;
        use State as S;
        let commands = [C::Start, C::Pause, C::Resume, C::PowerButton, C::Stop];
        let table = [
            (S::NotStarted, [Some(S::Running), None, None, None, Some(S::Ended)]),
            (S::Running, [None, Some(S::Paused), None, Some(S::Running), Some(S::Ended)]),
            (S::Paused, [None, None, Some(S::Running), None, Some(S::Ended)]),
            (S::Ended, [None; 5]),
        ];
        for (state, row) in table {
            for (command, next) in commands.into_iter().zip(row) {
                assert_eq!(state.accepts(command), next.ok_or(Refusal { state, command }), "{state:?} {command:?}");
            }
        }
    }

    #[test]
    fn a_refusal_names_state_and_command() {
        let refusal = State::Paused.accepts(Command::Pause).unwrap_err();
        assert_eq!(refusal.to_string(), "cannot pause a machine that is paused");
    }
}
