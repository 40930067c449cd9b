//! What the control loop hears and tells for the life of the process, whichever machine it has.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::command::{Command, CommandError, CommandReceiver, CommandResult, Reply, ReplyTo, Request};
use super::inquiries::{Asker, Inquiries};
use super::jobs::{Extent, JobEnd, JobId, JobKind, Jobs};
use super::news::{EventKind, EventLog};
use super::{ControlError, Signals, State, StateCell, Supervisor};
use crate::metrics::{FirecrackerFile, Snapshot};
use crate::snapshot::PointReport;

/// A signal has come.
pub(super) const SIGNAL: u64 = 0;
/// Commands have.
pub(super) const COMMAND: u64 = 1;

/// Points that are remembered.
const POINTS_MAX: usize = 256;

/// Has `epoll` woken by a descriptor, which is told by `data` then.
pub(super) fn watch(epoll: &Epoll, fd: RawFd, data: u64) -> Result<(), ControlError> {
    epoll
        .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, data))
        .map_err(|source| ControlError::Wait { what: "watch a descriptor", source })
}

/// The control loop's connections, which outlive machines.
#[derive(Debug)]
pub struct ControlPlane {
    pub(super) signals: Signals,
    pub(super) commands: Option<CommandReceiver>,
    pub(super) jobs: Jobs,
    pub(super) news: EventLog,
    pub(super) state: StateCell,
    pub(super) stop_grace: Duration,
    /// Somebody has described a part of the machine that a snapshot has as well.
    pub(super) configured: bool,
    /// Somebody has said where the serial port's other end is.
    pub(super) serial_given: bool,
    pub(super) inquiries: Inquiries,
    points: VecDeque<PointReport>,
    metrics: Option<FirecrackerFile>,
    supervisor: Option<Supervisor>,
}

impl ControlPlane {
    /// A loop that hears of `signals`, and of commands if there is a way for them.
    #[must_use]
    pub fn new(signals: Signals, commands: Option<CommandReceiver>) -> Self {
        Self {
            signals,
            commands,
            jobs: Jobs::default(),
            news: EventLog::default(),
            state: StateCell::default(),
            stop_grace: Duration::ZERO,
            configured: false,
            serial_given: false,
            inquiries: Inquiries::default(),
            points: VecDeque::new(),
            metrics: None,
            supervisor: None,
        }
    }

    /// Tells of disks that were written to after the snapshot that a machine goes on from.
    pub fn tell_changed_disks(&self, ids: &[String]) {
        ids.iter().for_each(|id| self.news.tell(EventKind::DiskChangedSince { id: id.clone() }));
    }

    /// The machine goes on from a point, or has made one.
    pub fn has_point(&mut self, point: PointReport) {
        if self.points.len() == POINTS_MAX {
            self.points.pop_front();
        }
        self.points.push_back(point);
    }

    /// How long a signal leaves a guest that has enabled its power button; without, the signal ends it at once.
    #[must_use]
    pub fn with_stop_grace(self, stop_grace: Duration) -> Self {
        Self { stop_grace, ..self }
    }

    /// Writes the machine's figures to `file`.
    #[must_use]
    pub fn with_metrics(self, file: Option<FirecrackerFile>) -> Self {
        Self { metrics: file, ..self }
    }

    /// Tells `supervisor`, if there is one, how the process is.
    #[must_use]
    pub fn with_supervisor(self, supervisor: Option<Supervisor>) -> Self {
        Self { supervisor, ..self }
    }

    /// The process is of use from now on: its socket accepts, or its guest runs.
    pub fn serves(&mut self) {
        let state = self.state.get();
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.tell_ready(state.sentence());
        }
    }

    /// The process is about to end.
    pub fn ends(&mut self) {
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.tell_stopping();
        }
    }

    /// The loop has done all that it woke up for.
    pub(super) fn went_round(&mut self) {
        self.inquiries.end_late();
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.went_round();
        }
    }

    /// An epoll that is woken by what the process hears whether or not it has a machine: signals as [`SIGNAL`], commands as
    /// [`COMMAND`].
    pub(super) fn watch(&self) -> Result<Epoll, ControlError> {
        let epoll = Epoll::new().map_err(|source| ControlError::Wait { what: "create an epoll", source })?;
        watch(&epoll, self.signals.as_raw_fd(), SIGNAL)?;
        if let Some(commands) = &self.commands {
            watch(&epoll, commands.wake().as_raw_fd(), COMMAND)?;
        }
        Ok(epoll)
    }

    /// Waits until something has happened, or until `deadline`. Returns how many are `ready`.
    pub(super) fn wait(
        &self,
        epoll: &Epoll,
        deadline: Option<Instant>,
        ready: &mut [EpollEvent],
    ) -> Result<usize, ControlError> {
        match epoll.wait(self.timeout_ms(deadline), ready) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            waited => waited.map_err(|source| ControlError::Wait { what: "wait for events", source }),
        }
    }

    /// How long the loop may wait, for epoll: until `deadline`, or until it has something to do by itself.
    fn timeout_ms(&self, deadline: Option<Instant>) -> i32 {
        let supervisor = self.supervisor.as_ref().and_then(Supervisor::due);
        let Some(deadline) = [deadline, supervisor, self.inquiries.due()].into_iter().flatten().min() else {
            return -1;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, or the loop would spin through the last millisecond.
        i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
    }

    /// When the loop has to write figures.
    pub(super) fn metrics_due(&self) -> Option<Instant> {
        self.metrics.as_ref().map(FirecrackerFile::due)
    }

    /// Writes figures, if they go anywhere.
    pub(super) fn write_metrics(&mut self, figures: impl FnOnce() -> Snapshot) {
        if let Some(file) = &mut self.metrics {
            file.write(figures());
        }
    }

    fn metrics_to(&mut self, file: FirecrackerFile) -> CommandResult {
        match &self.metrics {
            Some(present) => Err(CommandError::MetricsGo(present.path().to_owned())),
            None => {
                self.metrics = Some(file);
                Ok(Reply::Done)
            }
        }
    }

    /// What happens to the machine.
    #[must_use]
    pub fn news(&self) -> EventLog {
        self.news.clone()
    }

    /// The machine's state.
    #[must_use]
    pub fn state(&self) -> StateCell {
        self.state.clone()
    }

    pub(super) fn next_request(&self) -> Option<Request> {
        self.commands.as_ref().and_then(CommandReceiver::next)
    }

    /// Has the host asked about what is at `path`, on another thread. The answer comes as a command of the one who waits.
    pub(super) fn ask(&mut self, path: PathBuf, reply: ReplyTo, question: impl FnOnce(Asker) + Send + 'static) {
        if let Some(commands) = &self.commands {
            self.inquiries.ask(path, reply, commands, question);
        }
    }

    /// Consumes what woke the loop; the queue tells what there is.
    pub(super) fn hear(&self) {
        if let Some(commands) = &self.commands {
            let _ = commands.wake().read();
        }
    }

    pub(super) fn set_state(&mut self, state: State) {
        if self.state.get() != state {
            self.state.set(state);
            self.news.tell_state(state);
            match state {
                State::Running => self.serves(),
                State::NotStarted | State::Paused | State::Ended => self.tell_status(state.sentence()),
            }
        }
    }

    pub(super) fn tell_status(&mut self, status: &'static str) {
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.tell_status(status);
        }
    }

    pub(super) fn begin(&mut self, kind: JobKind, extent: Extent) -> JobId {
        let id = self.jobs.begin(kind, extent, Instant::now());
        self.tell_job(id);
        id
    }

    pub(super) fn end(&mut self, id: JobId, end: JobEnd) {
        self.jobs.end(id, end, Instant::now());
        self.tell_job(id);
    }

    /// A job that is over as soon as it is begun.
    pub(super) fn done(&mut self, kind: JobKind) -> Reply {
        let now = Instant::now();
        let id = self.jobs.begin(kind, Extent::Time(Duration::ZERO), now);
        self.end(id, JobEnd::Done(None));
        self.job(id).map_or(Reply::Done, Reply::Job)
    }

    pub(super) fn job(&self, id: JobId) -> Option<super::JobReport> {
        self.jobs.report(id, Instant::now())
    }

    /// Answers what needs no machine. Gives any other command back.
    pub(super) fn answer(&mut self, command: Command) -> Result<CommandResult, Command> {
        match command {
            Command::ListJobs => Ok(Ok(Reply::Jobs(self.jobs.reports(Instant::now())))),
            Command::ReadJob(id) => Ok(self.job(id).map(Reply::Job).ok_or(CommandError::NoSuchJob(id))),
            Command::ListPoints => Ok(Ok(Reply::Points(self.points.iter().cloned().collect()))),
            Command::MetricsTo(file) => Ok(self.metrics_to(*file)),
            other => Err(other),
        }
    }

    /// Why a job that the loop does not work on cannot be given up.
    pub(super) fn cannot_cancel(&self, id: JobId) -> CommandError {
        match self.job(id) {
            Some(_) => CommandError::JobEnded(id),
            None => CommandError::NoSuchJob(id),
        }
    }

    fn tell_job(&self, id: JobId) {
        if let Some(job) = self.job(id) {
            self.news.tell(EventKind::Job { job });
        }
    }
}
