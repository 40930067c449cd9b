//! The time before a machine: it is described, command by command, until somebody starts it.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use devices::backend::net::{InterfaceName, Tap};
use vmm_sys_util::epoll::EpollEvent;

use super::command::{
    Answered, BalloonAsk, Command, CommandError, CommandResult, HostAnswer, HotplugAsk, Reply, ReplyTo,
};
use super::jobs::{Extent, JobEnd, JobId, JobKind};
use super::plane::SIGNAL;
use super::{Action, AnswerWhen, ControlError, ControlPlane, State};
use crate::config::firecracker::balloon::Balloon;
use crate::config::firecracker::hotplug::MemoryHotplugStatus;
use crate::config::firecracker::{Access, Change, OfHost};
use crate::config::{HostFacts, VmConfig};
use crate::metrics::Snapshot;
use crate::snapshot::RestoreRequest;

/// Where every tap comes from.
const TUN_PATH: &str = "/dev/net/tun";

/// How the description of a machine ended.
#[derive(Debug)]
pub enum Prepared {
    /// It shall be assembled and started.
    Start(Starter),
    /// It shall be made from a snapshot.
    Restore(Starter, Box<RestoreRequest>),
    /// The process shall end.
    Stopped,
}

/// Who waits for a machine to start.
pub struct Starter {
    /// Who is answered, until that is done.
    reply: Option<ReplyTo>,
    /// When a client is answered; None where the process starts the machine by itself.
    when: Option<AnswerWhen>,
    /// What the start is as a job.
    kind: JobKind,
    /// The job that it is, since it takes long.
    job: Option<JobId>,
    given_up: bool,
}

impl Starter {
    /// Nobody does: the process starts it by itself.
    #[must_use]
    pub fn nobody(kind: JobKind) -> Self {
        Self { reply: None, when: None, kind, job: None, given_up: false }
    }

    fn client(reply: ReplyTo, kind: JobKind, when: AnswerWhen) -> Self {
        Self { reply: Some(reply), when: Some(when), ..Self::nobody(kind) }
    }

    /// Whether somebody asked for the start over the API, and is told if it fails.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.when.is_some()
    }

    /// The start takes long: it is a job from now on, and who wants to hear of its begin does.
    pub(super) fn begin(&mut self, plane: &mut ControlPlane, extent: Extent) -> JobId {
        if let Some(id) = self.job {
            return id;
        }
        let id = plane.begin(self.kind, extent);
        self.job = Some(id);
        if self.when == Some(AnswerWhen::Begun)
            && let Some(reply) = self.reply.take()
        {
            reply(plane.job(id).map(Reply::Job).ok_or(CommandError::NoSuchJob(id)));
        }
        id
    }

    /// Somebody gave the start up.
    pub(super) fn give_up(&mut self) {
        self.given_up = true;
    }

    /// The machine cannot be assembled, for this reason.
    pub fn failed(self, plane: &mut ControlPlane, cause: String) {
        if let Some(job) = self.job {
            plane.end(job, if self.given_up { JobEnd::Cancelled } else { JobEnd::Failed(cause.clone()) });
        }
        if let Some(reply) = self.reply {
            reply(Err(CommandError::Start(cause)));
        }
    }

    /// The machine is there.
    pub(super) fn succeeded(self, plane: &mut ControlPlane) {
        let reply = match (self.job, self.when) {
            (Some(job), _) => {
                plane.end(job, JobEnd::Done(None));
                Reply::Done
            }
            (None, Some(AnswerWhen::Begun)) => plane.done(self.kind),
            (None, _) => Reply::Done,
        };
        if let Some(answer) = self.reply {
            answer(Ok(reply));
        }
    }
}

impl std::fmt::Debug for Starter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Starter").field("waits", &self.waits()).finish_non_exhaustive()
    }
}

/// What a command before the machine leads to.
enum Step {
    GoOn(CommandResult),
    /// The host is asked first about what the change names.
    Ask(Change),
    Start,
    Restore(Box<RestoreRequest>, AnswerWhen),
    Stop,
}

impl ControlPlane {
    /// Lets clients describe the machine until one starts it, or the process is asked to end.
    ///
    /// # Errors
    /// The host gives no epoll, or fails it.
    pub fn prepare(&mut self, config: &mut VmConfig) -> Result<Prepared, ControlError> {
        let epoll = self.watch()?;
        let mut ready = [EpollEvent::default(); 2];
        loop {
            let count = self.wait(&epoll, None, &mut ready)?;
            if ready[..count].iter().any(|event| event.data() == SIGNAL) {
                self.set_state(State::Ended);
                return Ok(Prepared::Stopped);
            }
            self.hear();
            while let Some(request) = self.next_request() {
                match self.carry_out(request.command, config) {
                    Step::GoOn(result) => (request.reply)(result),
                    Step::Ask(change) => self.ask_about(change, request.reply),
                    Step::Start => {
                        self.hand_over();
                        let starter = Starter::client(request.reply, JobKind::Start, AnswerWhen::Done);
                        return Ok(Prepared::Start(starter));
                    }
                    Step::Restore(restore, when) => {
                        self.hand_over();
                        let starter = Starter::client(request.reply, JobKind::Restore, when);
                        return Ok(Prepared::Restore(starter, restore));
                    }
                    Step::Stop => {
                        self.set_state(State::Ended);
                        (request.reply)(Ok(self.done(JobKind::Stop)));
                        return Ok(Prepared::Stopped);
                    }
                }
            }
            self.went_round();
        }
    }

    fn carry_out(&mut self, command: Command, config: &mut VmConfig) -> Step {
        let command = match self.answer(command).or_else(|command| self.answer_unassembled(command, config)) {
            Ok(result) => return Step::GoOn(result),
            Err(command) => command,
        };
        let refuse = |action| Step::GoOn(State::NotStarted.accepts(action).map(|_| Reply::Done).map_err(Into::into));
        match command {
            Command::Configure(change) if change.of_host().is_empty() => Step::GoOn(self.configure(change, config)),
            // Whether the host has it is asked of what keeps every limit.
            Command::Configure(change) => match change.clone().apply(&mut config.clone(), HostFacts::read()) {
                Err(error) => Step::GoOn(Err(error.into())),
                Ok(()) => Step::Ask(change),
            },
            Command::Answered(Answered(answer)) => match *answer {
                HostAnswer::Configure(change, found) => Step::GoOn(found.and_then(|()| self.configure(change, config))),
                HostAnswer::DiskSize(..) | HostAnswer::DiskFile(..) => refuse(Action::ChangeDevice),
            },
            Command::Restore(..) if self.configured => Step::GoOn(Err(CommandError::Configured)),
            Command::Restore(mut request, when) => {
                request.overrides.serial = self.serial_given.then(|| (config.serial.clone(), config.serial_limit));
                Step::Restore(request, when)
            }
            Command::Snapshot(..) => refuse(Action::Snapshot),
            Command::Start => match config.validate(HostFacts::read()) {
                Ok(()) => Step::Start,
                Err(error) => Step::GoOn(Err(CommandError::Start(error.to_string()))),
            },
            Command::Stop { .. } => Step::Stop,
            Command::FlushMetrics => refuse(Action::FlushMetrics),
            Command::Pause => refuse(Action::Pause),
            Command::Resume => refuse(Action::Resume),
            Command::PowerButton => refuse(Action::PowerButton),
            Command::CtrlAltDel => refuse(Action::CtrlAltDel),
            Command::Nmi => refuse(Action::Nmi),
            Command::Balloon(BalloonAsk::Read) => {
                let balloon = config.balloon.as_ref().map(Balloon::describe).ok_or(CommandError::NoBalloon);
                Step::GoOn(balloon.map(Reply::Balloon))
            }
            Command::Hotplug(HotplugAsk::Read) => {
                let status = config.hotplug.as_ref().map(|hotplug| MemoryHotplugStatus::new(hotplug, 0));
                Step::GoOn(status.map(Reply::Hotplug).ok_or(CommandError::NoHotplug))
            }
            Command::Disk(..) | Command::Net(..) | Command::Limit(..) | Command::Balloon(_) | Command::Hotplug(_) => {
                refuse(Action::ChangeDevice)
            }
            Command::CancelJob(id) => Step::GoOn(Err(self.cannot_cancel(id))),
            Command::ListPoints
            | Command::ListJobs
            | Command::ReadJob(_)
            | Command::MetricsTo(_)
            | Command::ReadConfig
            | Command::ReadPlacement
            | Command::ListDevices
            | Command::ReadMetrics => unreachable!("answered without a machine"),
        }
    }

    /// Applies a change that keeps every limit.
    fn configure(&mut self, change: Change, config: &mut VmConfig) -> CommandResult {
        // As with Firecracker, neither keeps a snapshot from being loaded: its machine has CPUs of its own, and the serial
        // port that is given here.
        let noted = match change {
            Change::Serial(_) => Some(&mut self.serial_given),
            Change::CpuConfig(_) => None,
            _ => Some(&mut self.configured),
        };
        change.apply(config, HostFacts::read())?;
        if let Some(noted) = noted {
            *noted = true;
        }
        Ok(Reply::Done)
    }

    /// Has the host asked whether what a change names is there.
    fn ask_about(&mut self, change: Change, reply: ReplyTo) {
        let path = change.of_host().iter().find_map(|named| match named {
            OfHost::File { path, .. } => Some(path.to_path_buf()),
            OfHost::Tap(_) => None,
        });
        let path = path.unwrap_or_else(|| TUN_PATH.into());
        self.ask(path, reply, move |asker| {
            let found = change.of_host().iter().try_for_each(look);
            asker.answer(HostAnswer::Configure(change, found));
        });
    }

    /// Answers what can be told of a machine that is only described. Gives any other command back.
    pub(super) fn answer_unassembled(&self, command: Command, config: &VmConfig) -> Result<CommandResult, Command> {
        Ok(Ok(match command {
            // Nothing is anywhere yet.
            Command::ReadConfig | Command::ReadPlacement => Reply::Config(Box::new(config.clone())),
            Command::ListDevices => Reply::Devices(Vec::new()),
            Command::ReadMetrics => Reply::Metrics(Box::new(Snapshot::of_no_machine())),
            other => return Err(other),
        }))
    }

    /// Somebody else sees to the clients' requests from now on. There may be more, whose signal was consumed.
    pub(super) fn hand_over(&self) {
        if let Some(commands) = &self.commands {
            // The counter of one word does not overflow.
            let _ = commands.wake().write(1);
        }
    }
}

/// Whether the host has a thing.
fn look(named: &OfHost) -> Result<(), CommandError> {
    match *named {
        OfHost::File { field, path, access } => {
            // A pipe would keep us waiting; what kind of file it may be is found at the start.
            let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
            let mut options = OpenOptions::new();
            let opened = options.read(true).write(access == Access::ReadWrite).custom_flags(flags).open(path);
            opened.map(drop).map_err(|cause| CommandError::File { field, path: path.to_owned(), cause })
        }
        OfHost::Tap(name) => {
            let name = InterfaceName::new(name).expect("names have been held to their form");
            Tap::open(&name).map(drop).map_err(CommandError::Tap)
        }
    }
}
