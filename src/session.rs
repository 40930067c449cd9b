//! A machine's life as this process: assembled from its configuration, run on this process's streams and signals, and
//! assembled again where a reboot of the guest asks for that.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use thiserror::Error;
use vmm::config::firecracker::BodyError;
use vmm::config::{ConfigError, HostFacts, SerialTarget, VmConfig};
use vmm::control::{
    Assembling, CommandReceiver, ControlError, ControlLoop, ControlPlane, Entrance, Escape, EventLog, EventReceiver,
    JobKind, Outcome, Prepared, Signals, Starter, StateCell, event_queue,
};
use vmm::epoch::StateError;
use vmm::host::AskedError;
use vmm::machine::{BuildError, Machine, Origin, Wiring};
use vmm::metrics::{FirecrackerFile, MetricsFileError};
use vmm::snapshot::{Restore, RestoreError, RestoreRequest};

use crate::api::{ServerError, SocketError};
use crate::cli::{PlanError, SnapshotError};
use crate::client::ClientError;
use crate::exit::{self, ExitStatus};
use crate::logging::LoggerError;
use crate::serial::{SerialEnd, SerialTargetError};
use crate::service;
use crate::terminal::{RawTerminal, TerminalError};

/// What keeps a VM from running.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    /// The configuration breaks a limit.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A disk would pause the machine for ever.
    #[error("disk `{disk}`: on_enospc=stop: nobody could resume the machine: give it a control socket (--api-sock)")]
    NobodyResumes {
        /// Its id.
        disk: String,
    },
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
    /// A state file is none.
    #[error(transparent)]
    State(#[from] StateError),
    /// A snapshot cannot become a machine.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The machine cannot be kept running.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The serial port's other end cannot be opened.
    #[error(transparent)]
    Serial(#[from] SerialTargetError),
    /// The terminal cannot be the console.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    /// The metrics cannot go where they should.
    #[error(transparent)]
    Metrics(#[from] MetricsFileError),
    /// The log cannot go where it should.
    #[error(transparent)]
    Logger(#[from] LoggerError),
    /// A VM's control socket does not answer as it should.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The control socket cannot be opened.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// It cannot be served.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// A disk or a network that `husk host` is asked about is not there.
    #[error(transparent)]
    Asked(#[from] AskedError),
    /// VMs cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Snapshots cannot be looked at.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
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

/// How a process runs a machine.
#[derive(Debug)]
pub(crate) struct Manners {
    /// Whether keys on the console can mean husk.
    pub(crate) escape: Escape,
    /// What a guest that resets itself gets.
    pub(crate) on_reboot: OnReboot,
    /// How long a guest that has enabled its power button has to end by itself.
    pub(crate) stop_grace: Duration,
    /// Where the machine's figures go, as Firecracker writes them.
    pub(crate) metrics: Option<FirecrackerFile>,
}

/// When a machine is assembled.
#[derive(Debug)]
pub(crate) enum Begin {
    /// At once.
    Now,
    /// When a client says so, who describes it before.
    WhenTold,
    /// At once, from a snapshot.
    Restored(Box<RestoreRequest>),
}

/// A process that runs a machine.
#[derive(Debug)]
pub(crate) struct Session {
    escape: Escape,
    on_reboot: OnReboot,
    plane: ControlPlane,
}

/// A machine whose life is over, and how it ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// None if it was never assembled.
    pub(crate) machine: Option<Machine>,
    pub(crate) outcome: Outcome,
}

impl Session {
    /// Takes over the process's signals. To be called before any thread is made, so that all of them inherit the mask and
    /// only the control loop takes the signals.
    pub(crate) fn open(manners: Manners, commands: Option<CommandReceiver>) -> Result<Self, RunError> {
        let signals =
            Signals::block().map_err(|source| RunError::Host { what: "take over termination signals", source })?;
        let Manners { escape, on_reboot, stop_grace, metrics } = manners;
        let plane = ControlPlane::new(signals, commands).with_stop_grace(stop_grace).with_metrics(metrics);
        let plane = plane.with_supervisor(service::supervisor());
        Ok(Self { escape, on_reboot, plane })
    }

    /// What happens to the machine.
    pub(crate) fn news(&self) -> EventLog {
        self.plane.news()
    }

    /// The machine's state.
    pub(crate) fn state(&self) -> StateCell {
        self.plane.state()
    }

    /// The process is of use before its guest runs: its socket accepts.
    pub(crate) fn serves(&mut self) {
        self.plane.serves();
    }

    /// Runs the machine that `config` describes, or that clients go on to describe, to its end.
    pub(crate) fn run(mut self, config: VmConfig, begin: Begin) -> Result<Finished, RunError> {
        let finished = self.run_to_end(config, begin);
        self.plane.ends();
        finished
    }

    fn run_to_end(&mut self, mut config: VmConfig, begin: Begin) -> Result<Finished, RunError> {
        let mut prepared = match begin {
            Begin::Now => Prepared::Start(Starter::nobody(JobKind::Start)),
            Begin::Restored(request) => Prepared::Restore(Starter::nobody(JobKind::Restore), request),
            Begin::WhenTold => self.plane.prepare(&mut config)?,
        };
        loop {
            let (starter, request) = match prepared {
                Prepared::Start(starter) => (starter, None),
                Prepared::Restore(starter, request) => (starter, Some(request)),
                Prepared::Stopped => return Ok(Finished::STOPPED),
            };
            match self.run_until_reset(&config, starter, request)? {
                Some(finished) => return Ok(finished),
                None => prepared = self.plane.prepare(&mut config)?,
            }
        }
    }

    /// Runs the machine, and again after each reset if that is wanted. Tells a client who waits for the start, and nobody
    /// else, if it cannot be assembled; then there is nothing finished.
    fn run_until_reset(
        &mut self,
        config: &VmConfig,
        mut starter: Starter,
        request: Option<Box<RestoreRequest>>,
    ) -> Result<Option<Finished>, RunError> {
        let opened = Described::by(config, request).and_then(|described| {
            let serial = SerialEnd::open(&described.config.serial, self.escape)?;
            Ok((described, serial))
        });
        let (Described { config: mut running, mut origin, mut entrance }, mut serial) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.refuse(starter, error),
        };
        let mut came_from = None;
        if let Origin::Point(restore) = &origin {
            self.plane.tell_changed_disks(restore.changed_disks());
            came_from = Some(restore.report().clone());
        }
        loop {
            let mut attendant = Assembling::new(&mut self.plane, &running, &mut starter);
            let assembled = Assembled::from(&running, &serial, origin, &mut attendant);
            let is_stopped = attendant.is_stopped();
            let assembled = match assembled {
                Ok(assembled) => assembled,
                Err(error) => {
                    serial.abandon();
                    let refused = self.refuse(starter, error);
                    return if is_stopped { Ok(Some(Finished::STOPPED)) } else { refused };
                }
            };
            came_from.take().into_iter().for_each(|point| self.plane.has_point(point));
            let finished = self.run_once(assembled, &mut running, &mut serial, (entrance, starter))?;
            (starter, origin, entrance) = (Starter::nobody(JobKind::Start), Origin::Boot, Entrance::Start);
            match (&finished.outcome, self.on_reboot) {
                // The old machine goes first: its disks are unlocked and its memory is free for the new one.
                (Outcome::Reset, OnReboot::Restart) => drop(finished),
                _ => return Ok(Some(finished)),
            }
            running.validate(HostFacts::read())?;
        }
    }

    fn run_once(
        &mut self,
        assembled: Assembled,
        config: &mut VmConfig,
        serial: &mut SerialEnd,
        (entrance, starter): (Entrance, Starter),
    ) -> Result<Finished, RunError> {
        let Assembled { machine, events } = assembled;
        let raw = if config.serial == SerialTarget::Stdio { RawTerminal::enter() } else { Ok(None) };
        let control = raw.map_err(RunError::from).and_then(|raw| {
            let control = ControlLoop::new(machine, config, events, &mut self.plane, serial.console.as_mut())?;
            Ok((raw, control))
        });
        let (raw, control) = match control {
            Ok(control) => control,
            Err(error) => {
                starter.failed(&mut self.plane, exit::describe(&error));
                return Err(error);
            }
        };
        let ended = control.run(entrance, starter);
        drop(raw);
        let (machine, outcome) = ended?;
        Ok(Finished { machine: Some(machine), outcome })
    }

    /// Tells the client who waits for the start why there is none, or the caller where nobody waits.
    fn refuse(&mut self, starter: Starter, error: RunError) -> Result<Option<Finished>, RunError> {
        let (waits, cause) = (starter.waits(), exit::describe(&error));
        if waits {
            log::warn!("cannot start the machine: {cause}");
        }
        starter.failed(&mut self.plane, cause);
        if waits { Ok(None) } else { Err(error) }
    }
}

/// A machine as it shall be, and what its memory and vCPUs come from.
struct Described {
    config: VmConfig,
    origin: Origin,
    entrance: Entrance,
}

impl Described {
    /// The machine of `config`, or the one in the snapshot that `request` names.
    fn by(config: &VmConfig, request: Option<Box<RestoreRequest>>) -> Result<Self, RunError> {
        match request {
            None => {
                config.validate(HostFacts::read())?;
                Ok(Self { config: config.clone(), origin: Origin::Boot, entrance: Entrance::Start })
            }
            Some(request) => {
                let entrance = if request.resume { Entrance::Resumed } else { Entrance::Paused };
                let (config, restore) = Restore::open(*request)?;
                Ok(Self { config, origin: Origin::Point(Box::new(restore)), entrance })
            }
        }
    }
}

/// A machine, ready to start.
struct Assembled {
    machine: Machine,
    events: EventReceiver,
}

impl Assembled {
    fn from(
        config: &VmConfig,
        serial: &SerialEnd,
        origin: Origin,
        attendant: &mut Assembling<'_>,
    ) -> Result<Self, RunError> {
        let (sender, events) =
            event_queue().map_err(|source| RunError::Host { what: "create the event queue", source })?;
        let wiring = Wiring { serial_output: serial.output(), events: sender };
        Ok(Self { machine: Machine::build(config, wiring, origin, attendant)?, events })
    }
}

impl Finished {
    const STOPPED: Self = Self { machine: None, outcome: Outcome::Stopped };

    /// Says what there is to say, and how the process ends.
    pub(crate) fn report(&self) -> ExitStatus {
        match &self.outcome {
            Outcome::PoweredOff | Outcome::Reset | Outcome::Stopped => ExitStatus::Success,
            Outcome::MemoryLost(why) => {
                exit::say(&format!("guest memory is lost: {why}"));
                ExitStatus::Failure
            }
            Outcome::Crashed(crash) => {
                exit::say(&crash.to_string());
                ExitStatus::GuestCrashed
            }
        }
    }
}
