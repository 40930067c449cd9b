//! The control loop. It runs on the thread `husk`, owns the [`Machine`], and is the only one to change its state. After
//! every wake-up the guest's events come first, so that no later step acts on a machine that has already ended; then
//! signals, the console, and the clients' commands, one wake's worth of each.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use devices::MachineRequest;
use thiserror::Error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::changes;
use super::command::{Answered, Command, CommandError, CommandResult, DiskChange, HostAnswer, Reply, ReplyTo, Request};
use super::console::{Console, Typed};
use super::jobs::{Extent, JobEnd, JobId, JobKind};
use super::news::EventKind;
use super::plane::{COMMAND, SIGNAL, watch};
use super::snapshots::Snapshot;
use super::{Action, ControlPlane, EventReceiver, GuestEvent, Starter, State};
use crate::config::{BALLOON_ID, HOTPLUG_ID, VmConfig};
use crate::machine::{Machine, MachineError};
use crate::vcpu::Crash;

/// What ends the control loop against its will.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The loop cannot wait for its events.
    #[error("cannot {what}")]
    Wait {
        /// What was attempted.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// The machine did not do what it was told.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// How a machine's life ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest powered off.
    PoweredOff,
    /// The guest reset itself.
    Reset,
    /// The user or the host asked it to stop.
    Stopped,
    /// A vCPU could not go on.
    Crashed(Box<Crash>),
    /// Guest memory comes no more from where it came, for this reason.
    MemoryLost(String),
}

impl Outcome {
    /// Its name where a machine reads it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::PoweredOff => "powered_off",
            Self::Reset => "reset",
            Self::Stopped => "stopped",
            Self::Crashed(_) => "crashed",
            Self::MemoryLost(_) => "memory_lost",
        }
    }
}

/// The loop and what it waits for.
#[derive(Debug)]
pub struct ControlLoop<'a> {
    pub(super) machine: Machine,
    events: EventReceiver,
    pub(super) plane: &'a mut ControlPlane,
    pub(super) config: &'a mut VmConfig,
    console: Option<&'a mut Console>,
    input: Input,
    stopping: Option<Stopping>,
    pub(super) snapshot: Option<Snapshot>,
    /// When the devices' threads are started, until they are.
    threads_due: Option<Instant>,
    epoll: Epoll,
}

/// The guest's first instruction has come by then, and its first device has not.
const THREADS_AFTER: Duration = Duration::from_millis(1);

/// How a machine that was assembled comes to life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entrance {
    /// It starts.
    Start,
    /// It is what a snapshot holds, and goes on.
    Resumed,
    /// It is what a snapshot holds, and waits.
    Paused,
}

/// A guest that was asked to end by itself.
#[derive(Debug)]
struct Stopping {
    job: JobId,
    deadline: Instant,
    button: Button,
}

/// The power button of a guest that was asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Button {
    Pressed,
    /// A snapshot holds the machine: it is pressed when that goes on.
    Due,
}

/// Where the console's next bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// epoll tells when there are some.
    Watched,
    /// The guest has no room; its reading brings the loop back.
    Full,
    /// A file that epoll does not take: always readable.
    Ready,
    /// There will be none.
    Ended,
}

/// Which descriptor woke the loop.
#[derive(Debug, Clone, Copy)]
#[repr(u64)]
enum Source {
    Signal = SIGNAL,
    Command = COMMAND,
    Guest,
    Console,
    SerialRoom,
}

/// Commands that one wake carries out: no client keeps the loop from the guest's events.
const COMMANDS_PER_WAKE_MAX: usize = 16;

impl<'a> ControlLoop<'a> {
    /// Prepares to run `machine`, which `config` describes, with `console` feeding its serial port.
    ///
    /// # Errors
    /// The host gives no epoll, or does not take one of the descriptors.
    pub fn new(
        machine: Machine,
        config: &'a mut VmConfig,
        events: EventReceiver,
        plane: &'a mut ControlPlane,
        console: Option<&'a mut Console>,
    ) -> Result<Self, ControlError> {
        let epoll = plane.watch()?;
        let input = Input::Ended;
        let (stopping, snapshot, threads_due) = (None, None, Some(Instant::now() + THREADS_AFTER));
        let mut control =
            Self { machine, events, plane, config, console, input, stopping, snapshot, threads_due, epoll };
        watch(&control.epoll, control.events.wake().as_raw_fd(), Source::Guest as u64)?;
        watch(&control.epoll, control.machine.serial_room().as_raw_fd(), Source::SerialRoom as u64)?;
        if let Some(console) = &control.console {
            control.input = Self::watch_console(&control.epoll, console);
        }
        Ok(control)
    }

    /// Starts the machine, or lets it go on, tells `starter`, and runs it to its end; its threads have ended when this returns and
    /// the machine is dropped, but for those that the log says are left to the end of the process.
    ///
    /// # Errors
    /// The host fails the loop itself; the machine is stopped all the same.
    pub fn run(mut self, entrance: Entrance, starter: Starter) -> Result<(Machine, Outcome), ControlError> {
        if let Err(error) = self.enter(entrance) {
            starter.failed(self.plane, crate::describe(&error));
            return Err(error.into());
        }
        starter.succeeded(self.plane);
        let outcome = self.wait();
        self.apply(Action::Stop)?;
        self.end_stopping();
        self.abandon_snapshot();
        self.plane.write_metrics(|| self.machine.metrics());
        let outcome = outcome?;
        self.plane.news.tell(EventKind::Ended { reason: outcome.name() });
        Ok((self.machine, outcome))
    }

    fn enter(&mut self, entrance: Entrance) -> Result<(), MachineError> {
        match entrance {
            Entrance::Start => self.apply(Action::Start),
            Entrance::Paused => self.apply(Action::Restore),
            Entrance::Resumed => {
                self.apply(Action::Restore)?;
                self.apply(Action::Resume)
            }
        }
    }

    /// Does it to the machine, and shows the state that it is in then.
    pub(super) fn apply(&mut self, action: Action) -> Result<(), MachineError> {
        let state = self.machine.apply(action)?;
        self.plane.set_state(state);
        Ok(())
    }

    fn wait(&mut self) -> Result<Outcome, ControlError> {
        let mut ready = [EpollEvent::default(); 5];
        loop {
            if let Some(outcome) = self.take_guest_event() {
                return Ok(outcome);
            }
            if self.input == Input::Ready && self.feed_console() {
                return Ok(Outcome::Stopped);
            }
            let count = self.plane.wait(&self.epoll, self.deadline(), &mut ready)?;
            let woke = |source: Source| ready[..count].iter().any(|event| event.data() == source as u64);
            let (signal, typed, room) = (woke(Source::Signal), woke(Source::Console), woke(Source::SerialRoom));
            let commanded = woke(Source::Command);
            if let Some(outcome) = self.take_guest_event() {
                return Ok(outcome);
            }
            if (signal && self.take_signal()) || self.is_out_of_grace() || (typed && self.feed_console()) {
                return Ok(Outcome::Stopped);
            }
            if room {
                self.regain_room();
            }
            self.start_due_threads()?;
            self.write_due_metrics();
            if commanded && self.serve_commands() {
                return Ok(Outcome::Stopped);
            }
            self.plane.went_round();
        }
    }

    /// When the loop has to wake by itself: to start threads, at the end of a guest's grace, and to write figures.
    fn deadline(&self) -> Option<Instant> {
        let grace = self.stopping.as_ref().map(|stopping| stopping.deadline);
        [self.threads_due, grace, self.plane.metrics_due()].into_iter().flatten().min()
    }

    fn start_due_threads(&mut self) -> Result<(), MachineError> {
        let due = self.threads_due.take_if(|due| *due <= Instant::now());
        due.map_or(Ok(()), |_| self.machine.start_threads())
    }

    fn write_due_metrics(&mut self) {
        if self.plane.metrics_due().is_some_and(|due| due <= Instant::now()) {
            self.plane.write_metrics(|| self.machine.metrics());
        }
    }

    fn is_out_of_grace(&self) -> bool {
        self.stopping.as_ref().is_some_and(|stopping| stopping.deadline <= Instant::now())
    }

    /// Whether the machine ends at once: at a second signal, and where the guest would not heed its power button.
    fn take_signal(&mut self) -> bool {
        self.plane.signals.take();
        self.stopping.is_some() || self.begin_stop(self.plane.stop_grace).is_none()
    }

    /// Presses the power button and gives the guest `grace`, or finds that it would not help.
    fn begin_stop(&mut self, grace: Duration) -> Option<JobId> {
        let is_held = self.snapshot.as_ref().is_some_and(Snapshot::holds_a_running_machine);
        let runs = self.machine.state() == State::Running || is_held;
        if grace.is_zero() || !runs || !self.machine.power_button_is_enabled() {
            return None;
        }
        let button = if is_held { Button::Due } else { Button::Pressed };
        if button == Button::Pressed {
            self.machine.apply(Action::PowerButton).ok()?;
        }
        let job = self.plane.begin(JobKind::Stop, Extent::Time(grace));
        self.plane.tell_status("The guest was asked to end");
        self.stopping = Some(Stopping { job, deadline: Instant::now() + grace, button });
        Some(job)
    }

    /// Presses the power button if that had to wait for a snapshot.
    pub(super) fn press_due_button(&mut self) {
        let Some(stopping) = &mut self.stopping else { return };
        if std::mem::replace(&mut stopping.button, Button::Pressed) == Button::Due
            && let Err(error) = self.machine.apply(Action::PowerButton)
        {
            log::error!("the guest cannot be asked to end: {error}");
        }
    }

    /// The guest ends, or nobody waits for that any more. Gives the job that did, if there was one.
    fn end_stopping(&mut self) -> Option<JobId> {
        let Stopping { job, .. } = self.stopping.take()?;
        self.plane.end(job, JobEnd::Done(None));
        Some(job)
    }

    /// Carries out what clients ask; whether the machine ends.
    fn serve_commands(&mut self) -> bool {
        self.plane.hear();
        for _ in 0..COMMANDS_PER_WAKE_MAX {
            let Some(request) = self.plane.next_request() else { return false };
            let held = match &mut self.snapshot {
                Some(snapshot) => snapshot.defer(request),
                None => Some(request),
            };
            let Some(Request { command, reply }) = held else { continue };
            let (result, ends) = match self.plane.answer(command) {
                Ok(result) => (result, false),
                Err(Command::Stop { grace }) => self.stop(grace),
                Err(Command::Snapshot(request, when)) => {
                    self.begin_snapshot(*request, when, reply);
                    continue;
                }
                Err(command) => {
                    self.obey(Request { command, reply });
                    continue;
                }
            };
            reply(result);
            if ends {
                return true;
            }
        }
        // There may be more, whose signal was consumed: the next wake looks again, behind the guest's events.
        self.plane.hand_over();
        false
    }

    /// Begins to end the machine; whether that is at once.
    fn stop(&mut self, grace: Duration) -> (CommandResult, bool) {
        if let Some(job) = self.end_stopping() {
            return (self.plane.job(job).map(Reply::Job).ok_or(CommandError::NoSuchJob(job)), true);
        }
        match self.begin_stop(grace).and_then(|job| self.plane.job(job)) {
            Some(job) => (Ok(Reply::Job(job)), false),
            None => (Ok(self.plane.done(JobKind::Stop)), true),
        }
    }

    /// Carries a request out, now or when the host has said what it needs.
    pub(super) fn obey(&mut self, Request { command, reply }: Request) {
        match command {
            Command::Disk(id, change) => self.begin_disk_change(id, *change, reply),
            command => reply(self.carry_out(command)),
        }
    }

    /// Asks the host about the file of a disk that shall change; without one, the disk changes now.
    fn begin_disk_change(&mut self, id: String, change: DiskChange, reply: ReplyTo) {
        if let Err(refusal) = self.machine.state().accepts(Action::ChangeDevice) {
            return reply(Err(refusal.into()));
        }
        match change {
            DiskChange::Resize(bytes) => match self.machine.disk_size_question(&id) {
                Ok(question) => {
                    let path = question.path().to_owned();
                    self.plane.ask(path, reply, move |asker| {
                        asker.answer(HostAnswer::DiskSize(id, bytes, question.ask()));
                    });
                }
                Err(error) => reply(Err(error.into())),
            },
            DiskChange::Part { path: Some(path), limits } => match self.machine.disk_file_question(&id, &path) {
                Ok(question) => {
                    self.plane.ask(path, reply, move |asker| {
                        question.ask(|opened| asker.answer(HostAnswer::DiskFile(id, limits, opened)));
                    });
                }
                Err(error) => reply(Err(error.into())),
            },
            DiskChange::Part { path: None, limits } => {
                let changed = changes::disk_limits(&self.machine, self.config, &id, limits);
                reply(changed.map(|()| self.tell_change(id, "limits")));
            }
        }
    }

    /// Changes a device as the host was found.
    fn go_on(&mut self, answer: HostAnswer) -> CommandResult {
        let reply = match answer {
            // The machine was started meanwhile.
            HostAnswer::Configure(..) => self.machine.state().accepts(Action::Configure).map(|_| Reply::Done)?,
            HostAnswer::DiskSize(id, bytes, found) => {
                self.machine.state().accepts(Action::ChangeDevice)?;
                self.machine.resize_disk(&id, &found?, bytes)?;
                self.tell_change(id, "size")
            }
            HostAnswer::DiskFile(id, limits, file) => {
                self.machine.state().accepts(Action::ChangeDevice)?;
                changes::disk_file(&self.machine, self.config, &id, file?)?;
                changes::disk_limits(&self.machine, self.config, &id, limits)?;
                self.tell_change(id, "path")
            }
        };
        Ok(reply)
    }

    fn carry_out(&mut self, command: Command) -> CommandResult {
        let (action, job) = match command {
            Command::Pause => (Action::Pause, Some(JobKind::Pause)),
            Command::Resume => (Action::Resume, Some(JobKind::Resume)),
            Command::PowerButton => (Action::PowerButton, Some(JobKind::PowerButton)),
            Command::CtrlAltDel => (Action::CtrlAltDel, Some(JobKind::CtrlAltDel)),
            Command::Nmi => (Action::Nmi, Some(JobKind::Nmi)),
            Command::Configure(_) => (Action::Configure, None),
            Command::Start => (Action::Start, None),
            Command::Restore(..) => (Action::Restore, None),
            Command::ReadConfig => return Ok(Reply::Config(Box::new(self.config.clone()))),
            Command::ReadPlacement => return Ok(Reply::Placement(self.machine.placement().clone())),
            Command::ReadMetrics => return Ok(Reply::Metrics(Box::new(self.machine.metrics()))),
            Command::FlushMetrics => {
                self.machine.state().accepts(Action::FlushMetrics)?;
                self.plane.write_metrics(|| self.machine.metrics());
                return Ok(Reply::Done);
            }
            Command::ListDevices => return Ok(Reply::Devices(self.machine.device_reports())),
            Command::CancelJob(id) => return self.cancel(id),
            Command::Answered(Answered(answer)) => return self.go_on(*answer),
            Command::Net(id, change) => {
                self.machine.state().accepts(Action::ChangeDevice)?;
                let what = changes::net(&self.machine, self.config, &id, *change)?;
                return Ok(self.tell_change(id, what));
            }
            Command::Limit(id, limits) => {
                self.machine.state().accepts(Action::ChangeDevice)?;
                changes::limits(&self.machine, self.config, &id, *limits)?;
                return Ok(self.tell_change(id, "limits"));
            }
            Command::Balloon(ask) => {
                self.machine.state().accepts(Action::ChangeDevice)?;
                let (reply, what) = changes::balloon(&self.machine, self.config, ask)?;
                if let Some(what) = what {
                    self.tell_change(BALLOON_ID.to_owned(), what);
                }
                return Ok(reply);
            }
            Command::Hotplug(ask) => {
                self.machine.state().accepts(Action::ChangeDevice)?;
                let (reply, what) = changes::hotplug(&self.machine, self.config, ask)?;
                if let Some(what) = what {
                    self.tell_change(HOTPLUG_ID.to_owned(), what);
                }
                return Ok(reply);
            }
            Command::ListPoints
            | Command::ListJobs
            | Command::ReadJob(_)
            | Command::MetricsTo(_)
            | Command::Snapshot(..)
            | Command::Disk(..)
            | Command::Stop { .. } => unreachable!("serve_commands and obey have answered these"),
        };
        self.apply(action)?;
        Ok(job.map_or(Reply::Done, |kind| self.plane.done(kind)))
    }

    fn tell_change(&self, id: String, what: &'static str) -> Reply {
        self.plane.news.tell(EventKind::DeviceChanged { id, what });
        Reply::Done
    }

    /// Gives up a snapshot, or waiting for the guest to end: it goes on.
    fn cancel(&mut self, id: JobId) -> CommandResult {
        if let Some(snapshot) = self.snapshot.as_ref().filter(|snapshot| snapshot.job() == id) {
            // Its end is told when its files are gone again.
            snapshot.cancel();
            return self.plane.job(id).map(Reply::Job).ok_or(CommandError::NoSuchJob(id));
        }
        if self.stopping.as_ref().is_none_or(|stopping| stopping.job != id) {
            return Err(self.plane.cannot_cancel(id));
        }
        self.stopping = None;
        self.plane.end(id, JobEnd::Cancelled);
        self.plane.tell_status(self.machine.state().sentence());
        self.plane.job(id).map(Reply::Job).ok_or(CommandError::NoSuchJob(id))
    }

    /// Takes the guest's events, oldest first, up to one that ends the machine.
    fn take_guest_event(&mut self) -> Option<Outcome> {
        // The count does not matter, and an empty one is no error here.
        let _ = self.events.wake().read();
        while let Some(event) = self.events.next() {
            match event {
                GuestEvent::Crashed(crash) => return Some(Outcome::Crashed(crash)),
                GuestEvent::Request(MachineRequest::PowerOff) => return Some(Outcome::PoweredOff),
                // A guest that was asked to end has ended, in its way: nobody wants it started again.
                GuestEvent::Request(MachineRequest::Reset) if self.stopping.is_some() => {
                    return Some(Outcome::Stopped);
                }
                GuestEvent::Request(MachineRequest::Reset) => return Some(Outcome::Reset),
                GuestEvent::Drifted { what } => {
                    log::warn!("placement: {what}");
                    self.plane.news.tell(EventKind::PlacementDrift { what });
                }
                GuestEvent::PoolExhausted => {
                    log::error!(
                        "memory: the host has no page for what the guest takes out of its balloon or plugs: add pages to the pool"
                    );
                    self.plane.news.tell(EventKind::PoolExhausted);
                }
                GuestEvent::DiskFull { id } => self.wait_for_space(id),
                GuestEvent::MemoryLost(why) => return Some(Outcome::MemoryLost(why)),
                GuestEvent::Snapshot(event) => self.take_maker_event(event),
            }
        }
        None
    }

    /// Pauses the machine until somebody has made room on the host and resumes it.
    fn wait_for_space(&mut self, id: String) {
        // It may have been resumed since, and have found room.
        if self.machine.state() != State::Running || !self.machine.is_disk_full(&id) {
            return;
        }
        match self.apply(Action::Pause) {
            Ok(()) => {
                log::error!("disk `{id}`: no space left on the host: the machine is paused: make room and resume it");
                self.plane.news.tell(EventKind::DiskFull { id });
            }
            Err(error) => log::error!("disk `{id}`: no space left on the host, and the machine cannot pause: {error}"),
        }
    }

    /// Moves what there is from the console into the serial port; whether the user asked to quit.
    fn feed_console(&mut self) -> bool {
        loop {
            let Some(console) = &mut self.console else { return false };
            match console.read() {
                Typed::Some => {}
                Typed::Quit => return true,
                Typed::End => {
                    self.stop_watching(Input::Ended);
                    return false;
                }
            }
            if !self.move_pending() {
                self.stop_watching(Input::Full);
            }
            if self.input != Input::Ready {
                return false;
            }
        }
    }

    /// Gives the guest what it has room for. False if the console should wait until it has read that.
    fn move_pending(&mut self) -> bool {
        let Some(console) = &mut self.console else { return true };
        let taken = self.machine.serial_input(console.pending());
        console.taken(taken);
        console.wants_more()
    }

    /// The guest has read from its serial port.
    fn regain_room(&mut self) {
        // As above: the count does not matter.
        let _ = self.machine.serial_room().read();
        if self.move_pending()
            && self.input == Input::Full
            && let Some(console) = &self.console
        {
            self.input = Self::watch_console(&self.epoll, console);
        }
    }

    fn stop_watching(&mut self, next: Input) {
        if self.input == Input::Watched {
            self.unwatch_console();
        }
        self.input = next;
    }

    /// Where a console's bytes will come from.
    fn watch_console(epoll: &Epoll, console: &Console) -> Input {
        let interest = EpollEvent::new(EventSet::IN, Source::Console as u64);
        match epoll.ctl(ControlOperation::Add, console.as_raw_fd(), interest) {
            Ok(()) => Input::Watched,
            // A plain file never blocks, which is why epoll refuses it.
            Err(_) => Input::Ready,
        }
    }

    fn unwatch_console(&self) {
        if let Some(console) = &self.console {
            // A descriptor that epoll holds can be taken out.
            let _ = self.epoll.ctl(ControlOperation::Delete, console.as_raw_fd(), EpollEvent::default());
        }
    }
}
