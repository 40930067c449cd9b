//! A snapshot as the control loop sees it. Its maker copies memory on a thread of its own; the loop parks the machine when
//! the maker says that little is left, gives it the state, and lets the machine go on when the last page is copied. While
//! the machine is held, what would change it waits; everything else is answered.

use std::time::{Duration, Instant};

use super::command::{Command, CommandError, Reply, ReplyTo, Request};
use super::control_loop::ControlLoop;
use super::jobs::{Extent, JobEnd, JobId, JobKind};
use super::{Action, State};
use crate::config::ConfigState;
use crate::machine::StampQuestion;
use crate::snapshot::{MadePoint, Maker, MakerEvent, Mode, Order, SnapshotError, SnapshotRequest};
use crate::time::microseconds;

/// A snapshot that is being made.
pub(super) struct Snapshot {
    job: JobId,
    maker: Maker,
    /// Who waits for its end, if not for its begin.
    waiter: Option<ReplyTo>,
    held: Option<Held>,
    pause: Duration,
    /// What would have changed the machine while it was held.
    deferred: Vec<Request>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("job", &self.job).field("held", &self.held).finish_non_exhaustive()
    }
}

/// A machine that a snapshot keeps as it is.
#[derive(Debug)]
struct Held {
    since: Instant,
    then: Then,
}

/// What a held machine does after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It runs, as it did.
    Run,
    /// It is paused, as it was.
    Stay,
}

/// When a client is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerWhen {
    /// The job has begun.
    Begun,
    /// The files are durable.
    Done,
}

impl Snapshot {
    pub(super) fn job(&self) -> JobId {
        self.job
    }

    /// Keeps a request for later if it would change a machine that is held; gives any other back.
    pub(super) fn defer(&mut self, request: Request) -> Option<Request> {
        if self.held.is_none() || !changes_the_machine(&request.command) {
            return Some(request);
        }
        self.deferred.push(request);
        None
    }

    /// Whether the machine is paused for this only.
    pub(super) fn holds_a_running_machine(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.then == Then::Run)
    }

    pub(super) fn cancel(&self) {
        self.maker.cancel();
    }
}

fn changes_the_machine(command: &Command) -> bool {
    match command {
        Command::Pause
        | Command::Resume
        | Command::PowerButton
        | Command::CtrlAltDel
        | Command::Nmi
        | Command::Disk(..)
        | Command::Answered(_)
        | Command::Net(..)
        | Command::Limit(..)
        | Command::Balloon(_)
        | Command::Hotplug(_) => true,
        Command::Configure(_)
        | Command::Start
        | Command::Stop { .. }
        | Command::Snapshot(..)
        | Command::Restore(..)
        | Command::ReadConfig
        | Command::ListDevices
        | Command::ReadPlacement
        | Command::ReadMetrics
        | Command::MetricsTo(_)
        | Command::FlushMetrics
        | Command::ListPoints
        | Command::ListJobs
        | Command::ReadJob(_)
        | Command::CancelJob(_) => false,
    }
}

impl ControlLoop<'_> {
    /// Begins a snapshot; `reply` is called now or at its end, as the client wants it.
    pub(super) fn begin_snapshot(&mut self, request: SnapshotRequest, when: AnswerWhen, reply: ReplyTo) {
        let begun = self.start_maker(request, when);
        match (begun, when) {
            (Err(error), _) => reply(Err(error)),
            (Ok(job), AnswerWhen::Begun) => {
                reply(self.plane.job(job).map(Reply::Job).ok_or(CommandError::NoSuchJob(job)))
            }
            (Ok(_), AnswerWhen::Done) => {
                let snapshot = self.snapshot.as_mut().expect("it has begun");
                snapshot.waiter = Some(reply);
            }
        }
    }

    fn start_maker(&mut self, request: SnapshotRequest, when: AnswerWhen) -> Result<JobId, CommandError> {
        let action = match when {
            // Firecracker's clients, who wait, pause the machine first.
            AnswerWhen::Done => Action::SnapshotPaused,
            AnswerWhen::Begun => Action::Snapshot,
        };
        self.machine.state().accepts(action)?;
        if let Some(snapshot) = &self.snapshot {
            return Err(CommandError::SnapshotIsMade(snapshot.job));
        }
        // What no other process could read again is refused before anything is held.
        ConfigState::save(self.config).map_err(SnapshotError::from)?;
        let paused = self.machine.state() == State::Paused;
        let mode = if paused { Mode::Paused } else { Mode::Running };
        let ground = self.machine.snapshot_ground();
        let maker = Maker::start(request, mode, ground, self.machine.events().clone())?;
        let job = self.plane.begin(JobKind::Snapshot, Extent::Work(maker.progress()));
        let (held, deferred) = (None, Vec::new());
        self.snapshot = Some(Snapshot { job, maker, waiter: None, held, pause: Duration::ZERO, deferred });
        if paused {
            self.hold();
        }
        Ok(job)
    }

    /// Takes what a snapshot's maker tells.
    pub(super) fn take_maker_event(&mut self, event: MakerEvent) {
        match event {
            MakerEvent::Close => self.hold(),
            MakerEvent::Copied => self.release(),
            MakerEvent::Finished => self.finish_snapshot(),
        }
    }

    /// Parks the machine, and gives the maker its state.
    fn hold(&mut self) {
        let Some(mut snapshot) = self.snapshot.take() else { return };
        let since = Instant::now();
        let (then, parked) = match self.machine.state() {
            State::Paused => (Then::Stay, Ok(())),
            _ => (Then::Run, self.apply(Action::Pause)),
        };
        match parked {
            Ok(()) => {
                snapshot.held = Some(Held { since, then });
                snapshot.maker.send(Order::Parked(StampQuestion::of(&self.config.disks)));
                snapshot
                    .maker
                    .send(Order::State(self.machine.save(self.config).map(Box::new).map_err(SnapshotError::from)));
            }
            Err(error) => snapshot.maker.send(Order::State(Err(SnapshotError::Park(error.to_string())))),
        }
        self.snapshot = Some(snapshot);
    }

    /// Lets the machine go on as before, and does what had to wait.
    fn release(&mut self) {
        let Some(snapshot) = &mut self.snapshot else { return };
        let Some(Held { since, then }) = snapshot.held.take() else { return };
        let deferred = std::mem::take(&mut snapshot.deferred);
        if then == Then::Run
            && let Err(error) = self.apply(Action::Resume)
        {
            log::error!("the machine does not go on after its snapshot: {error}");
        }
        self.press_due_button();
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.pause = since.elapsed();
        }
        deferred.into_iter().for_each(|request| self.obey(request));
    }

    fn finish_snapshot(&mut self) {
        self.release();
        self.end_snapshot();
    }

    /// The machine has ended: a snapshot whose last page is copied becomes whole, and any other is given up.
    pub(super) fn abandon_snapshot(&mut self) {
        let Some(snapshot) = &mut self.snapshot else { return };
        snapshot.held = None;
        let deferred = std::mem::take(&mut snapshot.deferred);
        snapshot.maker.give_up();
        if self.machine.is_abandoned() {
            self.leave_snapshot();
        }
        // Its maker may wait for a page that nobody brings any more. What it still reads is in no point.
        self.machine.let_go_of_memory();
        deferred.into_iter().for_each(|request| self.obey(request));
        self.end_snapshot();
    }

    /// Its maker may wait for what other threads wait for that were left to the end of the process, and is left to it with them.
    fn leave_snapshot(&mut self) {
        let Some(Snapshot { job, maker, waiter, .. }) = self.snapshot.take() else { return };
        std::mem::forget(maker);
        self.plane.end(job, JobEnd::Cancelled);
        if let Some(waiter) = waiter {
            waiter(Err(CommandError::Snapshot(Box::new(SnapshotError::Cancelled))));
        }
    }

    /// Waits for the maker, and tells what came of it.
    fn end_snapshot(&mut self) {
        let Some(Snapshot { job, maker, waiter, pause, .. }) = self.snapshot.take() else { return };
        let made = maker.finish();
        let (log, result) = (made.log, made.result);
        let (end, reply) = match result {
            Ok(MadePoint { last, report, mut figures }) => {
                self.plane.has_point(report);
                figures.pause_us = microseconds(pause);
                self.machine.keep_tracking(log, Some(last));
                (JobEnd::Done(Some(figures)), Ok(Reply::Done))
            }
            Err(SnapshotError::Cancelled) => {
                self.machine.keep_tracking(log, None);
                (JobEnd::Cancelled, Err(CommandError::Snapshot(Box::new(SnapshotError::Cancelled))))
            }
            Err(error) => {
                self.machine.keep_tracking(log, None);
                let text = crate::describe(&error);
                log::error!("snapshot: {text}");
                (JobEnd::Failed(text), Err(CommandError::Snapshot(Box::new(error))))
            }
        };
        self.plane.end(job, end);
        if let Some(waiter) = waiter {
            waiter(reply);
        }
    }
}
