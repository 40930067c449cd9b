//! What a keyboard controller saves, with its keyboard.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::keyboard::{BYTES_MAX, Keyboard, PARAMETER_COMMANDS};
use super::{I8042, WRITE_AUX, WRITE_AUX_OUTPUT, WRITE_CONTROL, WRITE_KEYBOARD_OUTPUT, WRITE_OUTPUT_PORT};
use crate::state::SaveState;

/// What a keyboard controller saves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    pub(crate) control: u8,
    pub(crate) output_port: u8,
    pub(crate) answer: Option<u8>,
    pub(crate) keyboard: KeyboardState,
    pub(crate) awaiting: Option<u8>,
    pub(crate) last_was_command: bool,
}

/// What its keyboard saves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyboardState {
    pub(crate) scanning: bool,
    pub(crate) awaiting: Option<u8>,
    pub(crate) last_sent: u8,
    pub(crate) output: Vec<u8>,
}

/// Why a keyboard controller cannot go on from a saved state.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum I8042RestoreError {
    /// The keyboard holds more bytes back than it has room for.
    #[error("{0} bytes are more than the {BYTES_MAX} that a keyboard holds back")]
    Output(usize),
    /// A parameter is waited for of a command that has none.
    #[error("command {0:#04x} has no parameter to wait for")]
    Command(u8),
}

impl SaveState for I8042 {
    type State = I8042State;
    type Error = I8042RestoreError;

    fn save(&self) -> I8042State {
        let Self {
            control,
            output_port,
            answer,
            keyboard,
            // The interrupt of a byte that waits is raised again.
            announced: _,
            awaiting,
            last_was_command,
            line: _,
            log: _,
            requests: _,
        } = self;
        I8042State {
            control: *control,
            output_port: *output_port,
            answer: *answer,
            keyboard: keyboard.save(),
            awaiting: *awaiting,
            last_was_command: *last_was_command,
        }
    }

    fn restore(&mut self, state: I8042State) -> Result<(), I8042RestoreError> {
        const WITH_PARAMETER: [u8; 5] =
            [WRITE_CONTROL, WRITE_OUTPUT_PORT, WRITE_KEYBOARD_OUTPUT, WRITE_AUX_OUTPUT, WRITE_AUX];
        let I8042State { control, output_port, answer, keyboard, awaiting, last_was_command } = state;
        check_command(awaiting, &WITH_PARAMETER)?;
        self.keyboard = Keyboard::restored(keyboard)?;
        self.control = control;
        self.output_port = output_port;
        self.answer = answer;
        self.awaiting = awaiting;
        self.last_was_command = last_was_command;
        self.announced = false;
        self.announce();
        Ok(())
    }
}

impl Keyboard {
    fn save(&self) -> KeyboardState {
        let Self { scanning, awaiting, last_sent, output } = self;
        KeyboardState {
            scanning: *scanning,
            awaiting: *awaiting,
            last_sent: *last_sent,
            output: output.iter().copied().collect(),
        }
    }

    fn restored(state: KeyboardState) -> Result<Self, I8042RestoreError> {
        let KeyboardState { scanning, awaiting, last_sent, output } = state;
        if output.len() > BYTES_MAX {
            return Err(I8042RestoreError::Output(output.len()));
        }
        check_command(awaiting, &PARAMETER_COMMANDS)?;
        Ok(Self { scanning, awaiting, last_sent, output: output.into() })
    }
}

fn check_command(awaiting: Option<u8>, commands: &[u8]) -> Result<(), I8042RestoreError> {
    awaiting
        .filter(|command| !commands.contains(command))
        .map_or(Ok(()), |command| Err(I8042RestoreError::Command(command)))
}
