//! A machine's life as this process: assembled from its configuration, run on this process's streams and signals, and
//! assembled again where a reboot of the guest asks for that.

use std::io;
use std::path::PathBuf;

use clap::ValueEnum;
use thiserror::Error;
use vmm::config::firecracker::BodyError;
use vmm::config::{ConfigError, HostFacts, SerialTarget, VmConfig};
use vmm::control::{ControlError, ControlLoop, Escape, Outcome, Signals, event_queue};
use vmm::machine::{BuildError, Machine, Wiring};

use crate::exit::{self, ExitStatus};
use crate::serial::{SerialEnd, SerialTargetError};
use crate::terminal::{RawTerminal, TerminalError};

/// What keeps a VM from running.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    /// The configuration breaks a limit.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    ReadFile {
        /// Its path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The configuration file says what husk cannot take.
    #[error("configuration file {}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Which field, and why.
        source: BodyError,
    },
    /// The machine cannot be assembled.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The machine cannot be kept running.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The serial port's other end cannot be opened.
    #[error(transparent)]
    Serial(#[from] SerialTargetError),
    /// The terminal cannot be the console.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    /// Something that this version does not do.
    #[error("{what} is not supported yet: {hint}")]
    NotYet {
        /// What was asked.
        what: &'static str,
        /// What works.
        hint: &'static str,
    },
    /// A descriptor that the process itself needs.
    #[error("cannot {what}")]
    Host {
        /// What was attempted.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

/// What a guest that resets itself gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnReboot {
    /// The end of the process.
    Exit,
    /// The same machine, started again in this process.
    Restart,
}

/// A machine to be run.
#[derive(Debug)]
pub(crate) struct Session {
    config: VmConfig,
    escape: Escape,
    on_reboot: OnReboot,
}

/// A machine whose life is over, and how it ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) machine: Machine,
    pub(crate) outcome: Outcome,
}

impl Session {
    pub(crate) fn new(config: VmConfig, escape: Escape, on_reboot: OnReboot) -> Self {
        Self { config, escape, on_reboot }
    }

    /// Runs the machine to its end.
    pub(crate) fn run(&self) -> Result<Finished, RunError> {
        self.config.validate(HostFacts::read())?;
        // Before any thread is made, so that all of them inherit the mask and only the control loop takes the signals.
        let signals =
            Signals::block().map_err(|source| RunError::Host { what: "take over termination signals", source })?;
        let mut serial = SerialEnd::open(&self.config.serial, self.escape)?;
        loop {
            let finished = self.run_once(&signals, &mut serial)?;
            match (&finished.outcome, self.on_reboot) {
                // The old machine goes first: its disks are unlocked and its memory is free for the new one.
                (Outcome::Reset, OnReboot::Restart) => drop(finished),
                _ => return Ok(finished),
            }
        }
    }

    fn run_once(&self, signals: &Signals, serial: &mut SerialEnd) -> Result<Finished, RunError> {
        let (sender, events) =
            event_queue().map_err(|source| RunError::Host { what: "create the event queue", source })?;
        let wiring = Wiring { serial_output: serial.output(), events: sender };
        let machine = Machine::build(&self.config, wiring).inspect_err(|_| serial.abandon())?;
        let stdio = self.config.serial == SerialTarget::Stdio;
        let raw = if stdio { RawTerminal::enter()? } else { None };
        let ended = ControlLoop::new(machine, events, signals, serial.console.as_mut())?.run();
        drop(raw);
        let (machine, outcome) = ended?;
        Ok(Finished { machine, outcome })
    }
}

impl Finished {
    /// Says what there is to say, and how the process ends.
    pub(crate) fn report(&self) -> ExitStatus {
        match &self.outcome {
            Outcome::PoweredOff | Outcome::Reset | Outcome::Stopped => ExitStatus::Success,
            Outcome::Crashed(crash) => {
                exit::say(&crash.to_string());
                ExitStatus::GuestCrashed
            }
        }
    }
}
