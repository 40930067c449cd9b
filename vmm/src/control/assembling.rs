//! The time in which a machine is assembled, where that is long: its memory is brought in by a thread of its own, and clients,
//! signals and the service manager are seen to meanwhile.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

use vmm_sys_util::epoll::EpollEvent;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::command::{Command, CommandError, CommandResult, Reply};
use super::jobs::{Extent, JobId, JobKind};
use super::plane::{COMMAND, SIGNAL, watch};
use super::{ControlError, ControlPlane, Starter, State};
use crate::config::VmConfig;
use crate::machine::{Assembly, Attendant};
use crate::placement::leave_inherited_place;

/// The plane's clients while the machine that `config` describes is assembled for `starter`.
#[derive(Debug)]
pub struct Assembling<'a> {
    plane: &'a mut ControlPlane,
    config: &'a VmConfig,
    starter: &'a mut Starter,
    stopped: bool,
}

/// The work is done.
const DONE: u64 = 2;

impl<'a> Assembling<'a> {
    /// Before the machine.
    pub fn new(plane: &'a mut ControlPlane, config: &'a VmConfig, starter: &'a mut Starter) -> Self {
        Self { plane, config, starter, stopped: false }
    }

    /// Whether the process shall end.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Sees to everything until the work is done.
    fn see_to_all(&mut self, job: JobId, assembly: &Assembly, done: &EventFd) -> Result<(), ControlError> {
        let epoll = self.plane.watch()?;
        watch(&epoll, done.as_raw_fd(), DONE)?;
        let mut ready = [EpollEvent::default(); 3];
        loop {
            let count = self.plane.wait(&epoll, None, &mut ready)?;
            let woke = |data| ready[..count].iter().any(|event| event.data() == data);
            if woke(SIGNAL) {
                self.plane.signals.take();
                self.stop(assembly);
            }
            if woke(COMMAND) {
                self.plane.hear();
                while let Some(request) = self.plane.next_request() {
                    let answered = self.plane.answer(request.command);
                    let answered = answered.or_else(|command| self.plane.answer_unassembled(command, self.config));
                    (request.reply)(answered.unwrap_or_else(|command| self.carry_out(command, job, assembly)));
                }
            }
            self.plane.went_round();
            if woke(DONE) {
                return Ok(());
            }
        }
    }

    fn stop(&mut self, assembly: &Assembly) {
        assembly.give_up();
        self.stopped = true;
        self.plane.set_state(State::Ended);
    }

    fn carry_out(&mut self, command: Command, job: JobId, assembly: &Assembly) -> CommandResult {
        match command {
            Command::CancelJob(id) if id == job => {
                // Its end is told when the work has ended.
                assembly.give_up();
                self.plane.job(id).map(Reply::Job).ok_or(CommandError::NoSuchJob(id))
            }
            Command::CancelJob(id) => Err(self.plane.cannot_cancel(id)),
            Command::Stop { .. } => {
                self.stop(assembly);
                Ok(self.plane.done(JobKind::Stop))
            }
            _ => Err(CommandError::Assembling(job)),
        }
    }
}

impl Attendant for Assembling<'_> {
    fn attend(&mut self, assembly: &Arc<Assembly>, work: &mut (dyn FnMut() + Send)) {
        let job = self.starter.begin(self.plane, Extent::Work(Arc::clone(assembly.progress())));
        // Without either, nobody is seen to, and the machine comes all the same.
        let Ok(done) = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC) else { return work() };
        let finished = done.try_clone();
        let mut work = Some(work);
        thread::scope(|scope| {
            let (work, finished) = (&mut work, &finished);
            let started = thread::Builder::new().name("husk-job-memory".to_owned()).spawn_scoped(scope, move || {
                // The main thread's place is for the loop that goes on meanwhile.
                leave_inherited_place();
                if let Some(work) = work.take() {
                    work();
                }
                if let Ok(finished) = finished {
                    // The counter of one word cannot overflow.
                    let _ = finished.write(1);
                }
            });
            match (started, finished) {
                (Ok(_), Ok(_)) => {
                    if let Err(error) = self.see_to_all(job, assembly, &done) {
                        log::warn!("nobody is answered while memory comes in: {}", crate::describe(&error));
                    }
                }
                (Ok(_), Err(_)) | (Err(_), _) => {}
            }
        });
        if let Some(work) = work {
            work();
        }
        if assembly.is_given_up() {
            self.starter.give_up();
        }
    }
}
