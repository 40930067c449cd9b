//! A disk's queues, each stopped or on its I/O thread, and what is done to all of them at once.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::control::ReplaceError;
use super::worker::BlkWorker;
use crate::backend::block::BlockBackend;
use crate::virtio::queue::QueueState;
use crate::virtio::throttle::Throttle;
use crate::virtio::transport::Interrupt;
use crate::virtio::worker::{AttachError, Attachment, Holding, IoThreadHandle};

/// All queues of a disk, by index.
pub(super) struct QueueSlots {
    pub(super) slots: Vec<QueueSlot>,
    /// The driver's ear while one is there.
    pub(super) interrupt: Option<Arc<Interrupt>>,
}

/// One queue.
pub(super) struct QueueSlot {
    thread: IoThreadHandle,
    run: Run,
    /// The backend that it has to have when its worker is off its thread.
    owed: Option<Box<dyn BlockBackend>>,
}

enum Run {
    Stopped(Idle),
    Running(Attachment<BlkWorker>),
    /// It is off its thread for a moment.
    Halted(Box<BlkWorker>),
    /// Only while it becomes another.
    Lost,
}

/// What a queue keeps while it is not served.
pub(super) struct Idle {
    pub(super) backend: Box<dyn BlockBackend>,
    pub(super) throttle: Option<Throttle>,
}

impl QueueSlot {
    pub(super) fn new(thread: IoThreadHandle, idle: Idle) -> Self {
        Self { thread, run: Run::Stopped(idle), owed: None }
    }

    /// Begins to serve a stopped queue.
    pub(super) fn start(&mut self, worker: impl FnOnce(Idle) -> BlkWorker) -> io::Result<()> {
        let Run::Stopped(idle) = std::mem::replace(&mut self.run, Run::Lost) else {
            unreachable!("a transport starts only a stopped device");
        };
        let started = self.attach(worker(idle));
        if started.is_err() {
            self.stop();
        }
        started
    }

    /// Stops serving the queue, and says where it has come to if it was served.
    pub(super) fn stop(&mut self) -> Option<QueueState> {
        self.halt();
        match std::mem::replace(&mut self.run, Run::Lost) {
            Run::Halted(worker) => {
                let (state, mut idle) = (worker.queue_state(), worker.into_idle());
                idle.backend = self.owed.take().unwrap_or(idle.backend);
                self.run = Run::Stopped(idle);
                Some(state)
            }
            other => {
                self.run = other;
                None
            }
        }
    }

    /// Takes the worker off its thread.
    fn halt(&mut self) {
        self.run = match std::mem::replace(&mut self.run, Run::Lost) {
            Run::Running(attachment) => Run::Halted(Box::new(attachment.detach())),
            other => other,
        };
    }

    /// As [`Self::halt`], if the thread comes to it in time.
    fn halt_by(&mut self, deadline: Instant) -> bool {
        let halted = match std::mem::replace(&mut self.run, Run::Lost) {
            Run::Running(attachment) => {
                attachment.detach_by(deadline).map(|worker| Run::Halted(Box::new(worker))).map_err(Run::Running)
            }
            other => Ok(other),
        };
        let is_halted = halted.is_ok();
        self.run = halted.unwrap_or_else(|running| running);
        is_halted
    }

    fn attach(&mut self, worker: BlkWorker) -> io::Result<()> {
        match self.thread.attach(worker) {
            Ok(attachment) => {
                self.run = Run::Running(attachment);
                Ok(())
            }
            Err(AttachError { error, worker }) => {
                self.run = Run::Halted(Box::new(worker));
                Err(error)
            }
        }
    }

    /// Puts a halted worker back.
    fn go_on(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.run, Run::Lost) {
            Run::Halted(worker) => self.attach(*worker),
            other => {
                self.run = other;
                Ok(())
            }
        }
    }

    fn exchange(&mut self, backend: &mut Box<dyn BlockBackend>) {
        match &mut self.run {
            Run::Stopped(idle) => std::mem::swap(&mut idle.backend, backend),
            Run::Halted(worker) => worker.exchange_backend(backend),
            Run::Running(_) | Run::Lost => {}
        }
    }
}

/// What became of an exchange that an I/O thread did not let happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undone {
    /// All queues are served as before.
    Yes,
    /// Some are on their threads with backends that they must not use. They take nothing, and have their old ones when
    /// they have stopped.
    AtStop,
}

impl QueueSlots {
    /// Asks all queues to take nothing new, and waits until nothing is in flight. After the deadline all go on, and it
    /// is false.
    pub(super) fn quiet(&self, deadline: Instant) -> bool {
        let quiet = self.hold().iter().all(|holding| holding.wait_until(deadline));
        if !quiet {
            self.release();
        }
        quiet
    }

    /// Asks all queues to take nothing new.
    pub(super) fn hold(&self) -> Vec<Holding> {
        self.running().map(Attachment::hold).collect()
    }

    /// Lets all queues go on.
    pub(super) fn release(&self) {
        self.running().for_each(Attachment::release);
    }

    fn running(&self) -> impl Iterator<Item = &Attachment<BlkWorker>> {
        self.slots.iter().filter_map(|slot| match &slot.run {
            Run::Running(attachment) => Some(attachment),
            _ => None,
        })
    }

    /// Gives quiet queues other backends, one each, does `before` it lets them go on, and gives the old ones back. Nothing is
    /// asked of the others until all queues have theirs.
    ///
    /// # Errors
    /// An I/O thread does not give its worker away in time, or does not take it back; `undone` says, before any queue may
    /// go on, what that means.
    pub(super) fn exchange(
        &mut self,
        mut backends: Vec<Box<dyn BlockBackend>>,
        deadline: Instant,
        before: impl FnOnce(),
        undone: impl FnOnce(Undone),
    ) -> Result<Vec<Box<dyn BlockBackend>>, ReplaceError> {
        if !self.halt_by(deadline) {
            self.must(Self::go_on);
            self.release();
            return Err(ReplaceError::Held);
        }
        self.swap(&mut backends);
        if let Err(error) = self.go_on() {
            if self.halt_by(deadline) {
                undone(Undone::Yes);
                self.swap(&mut backends);
                self.must(Self::go_on);
                self.release();
            } else {
                undone(Undone::AtStop);
                self.owe(backends);
                self.must(|_| Err(io::ErrorKind::TimedOut.into()));
            }
            return Err(ReplaceError::Attach(error));
        }
        before();
        self.release();
        Ok(backends)
    }

    /// Gives each queue its old backend, or sees to it that it has it when its worker is off its thread.
    fn owe(&mut self, backends: Vec<Box<dyn BlockBackend>>) {
        for (slot, mut backend) in self.slots.iter_mut().zip(backends) {
            match slot.run {
                Run::Running(_) => slot.owed = Some(backend),
                Run::Stopped(_) | Run::Halted(_) | Run::Lost => slot.exchange(&mut backend),
            }
        }
    }

    /// Does what keeps the queues served; without it only a reset helps.
    fn must(&mut self, undo: impl FnOnce(&mut Self) -> io::Result<()>) {
        if undo(self).is_err()
            && let Some(interrupt) = &self.interrupt
        {
            interrupt.needs_reset();
        }
    }

    /// Takes all workers off their threads. False if the request of another device holds one up: then some are where they
    /// were.
    fn halt_by(&mut self, deadline: Instant) -> bool {
        self.slots.iter_mut().all(|slot| slot.halt_by(deadline))
    }

    fn swap(&mut self, backends: &mut [Box<dyn BlockBackend>]) {
        for (slot, backend) in self.slots.iter_mut().zip(backends) {
            slot.exchange(backend);
        }
    }

    fn go_on(&mut self) -> io::Result<()> {
        self.slots.iter_mut().map(QueueSlot::go_on).fold(Ok(()), Result::and)
    }
}
