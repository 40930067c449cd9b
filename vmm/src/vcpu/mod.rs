//! The vCPU thread. It owns one vCPU's file descriptor, runs it, and answers every ask, also after the vCPU has ended.
//! It takes no lock but a bus device's own, and waits for a backend only where a driver's
//! reset has requests in flight to complete.

mod crash;
mod exits;
mod kick;
mod run;

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use arch::VcpuIndex;
use arch::cpu_template::CpuTemplateError;
use arch::cpuid::CpuidError;
use arch::vcpu::{VcpuError, VcpuShape, VcpuState, VcpuStateError};
use devices::bus::Bus;
use kvm_ioctls::VcpuFd;
use thiserror::Error;

use crate::control::{EventSender, GuestEvent};

pub use crash::{CpuMode, Crash, CrashKind};
pub use exits::{ExitCounts, ExitKind};
pub use kick::KickError;
pub(crate) use kick::install_kick_handler;
use kick::{Kicker, RunPage};
use run::Turn;

/// What a vCPU thread cannot start or do.
#[derive(Debug, Error)]
pub enum VcpuThreadError {
    /// Its thread cannot be created.
    #[error("cannot start the thread of vCPU {index}")]
    Spawn {
        /// Which vCPU.
        index: VcpuIndex,
        /// What the host said.
        source: io::Error,
    },
    /// Its kick page cannot be mapped.
    #[error("cannot prepare to interrupt vCPU {index}")]
    Kick {
        /// Which vCPU.
        index: VcpuIndex,
        /// What failed.
        source: KickError,
    },
    /// Its registers cannot be set.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// What keeps a vCPU from its state before the first instruction.
#[derive(Debug, Error)]
pub enum SetupError {
    /// What CPUID shall answer cannot be said.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// KVM does not take it.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// KVM does not take a saved state.
    #[error(transparent)]
    State(#[from] VcpuStateError),
    /// The user's CPU template asks for what cannot be.
    #[error(transparent)]
    CpuTemplate(#[from] CpuTemplateError),
}

/// What keeps a vCPU's state from being saved.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The guest cannot go on from where it is.
    #[error("cannot save vCPU {index}: its guest has crashed")]
    Crashed {
        /// Which vCPU.
        index: VcpuIndex,
    },
    /// KVM does not give it.
    #[error(transparent)]
    State(#[from] VcpuStateError),
}

/// What a vCPU is asked. Each ask is answered once it is so.
#[derive(Debug)]
enum Ask {
    /// Run the guest.
    Run,
    /// Leave the guest and wait.
    Park,
    /// Tell the thread's number.
    Identify,
    /// Save the state, parked.
    Save(Arc<VcpuShape>),
    /// End the thread.
    Stop,
}

/// The two buses that a vCPU's exits reach.
#[derive(Clone)]
pub struct Buses {
    /// Port I/O.
    pub pio: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
}

/// What a vCPU thread works with besides its file descriptor.
pub(crate) struct VcpuContext {
    pub(crate) index: VcpuIndex,
    pub(crate) buses: Buses,
    pub(crate) counts: Arc<ExitCounts>,
    pub(crate) events: EventSender,
}

/// What brings a vCPU to its first state: the boot registers, or a saved state.
pub(crate) type Setup = Box<dyn FnOnce(&VcpuFd) -> Result<(), SetupError> + Send>;

/// Who sees to a vCPU's first state.
pub(crate) enum FirstState {
    /// Its owner has.
    Set,
    /// Its thread does, before the first ask, and answers.
    ByThread(Setup),
}

/// The owner's end of a vCPU thread.
#[derive(Debug)]
pub struct VcpuHandle {
    kicker: Kicker,
    asks: Sender<Ask>,
    answers: Receiver<Answer>,
    /// Asks without an answer so far.
    owed: Cell<u32>,
    first_run: Cell<Option<Instant>>,
    thread: Option<JoinHandle<()>>,
    counts: Arc<ExitCounts>,
}

#[derive(Debug)]
enum Answer {
    SetUp(Result<(), SetupError>),
    Done { first_run: Option<Instant> },
    Identity(io::Result<i32>),
    Saved(Box<Result<VcpuState, SaveError>>),
}

impl VcpuHandle {
    /// Starts the thread `husk-vcpuN`; it sets its vCPU up, unless that is done, and then waits, parked.
    pub(crate) fn spawn(fd: VcpuFd, context: VcpuContext, state: FirstState) -> Result<Self, VcpuThreadError> {
        let index = context.index;
        let page = Arc::new(RunPage::map(&fd).map_err(|source| VcpuThreadError::Kick { index, source })?);
        let (asks, asked) = channel();
        let (answer, answers) = channel();
        let counts = Arc::clone(&context.counts);
        let vcpu = Vcpu { fd, context, kicks: Arc::clone(&page), asked, answer, first_run: None };
        let thread = std::thread::Builder::new()
            .name(format!("husk-vcpu{index}"))
            .stack_size(VCPU_STACK_BYTES)
            .spawn(move || vcpu.main(state))
            .map_err(|source| VcpuThreadError::Spawn { index, source })?;
        let kicker = Kicker::new(page, &thread);
        Ok(Self { kicker, asks, answers, owed: Cell::new(0), first_run: Cell::new(None), thread: Some(thread), counts })
    }

    /// Waits until the thread has set its vCPU up. To be called once, before any ask, and only where the thread does that.
    pub(crate) fn wait_set_up(&self) -> Result<(), VcpuThreadError> {
        match self.answer() {
            Answer::SetUp(done) => done.map_err(VcpuThreadError::Setup),
            Answer::Done { .. } | Answer::Identity(_) | Answer::Saved(_) => {
                unreachable!("a vCPU thread answers its setup before any ask")
            }
        }
    }

    /// The kernel's number for the thread, whose vCPU is parked and has answered every ask.
    pub(crate) fn id(&self) -> io::Result<i32> {
        self.tell(Ask::Identify);
        match self.answer() {
            Answer::Identity(id) => id,
            Answer::SetUp(_) | Answer::Done { .. } | Answer::Saved(_) => {
                unreachable!("no other ask is without an answer")
            }
        }
    }

    /// Asks for the state without waiting, so that all vCPUs save theirs at once. The vCPU is parked and has answered every
    /// ask; [`Self::wait_saved`] comes before the next one.
    pub(crate) fn ask_save(&self, shape: &Arc<VcpuShape>) {
        self.tell(Ask::Save(Arc::clone(shape)));
    }

    /// Waits for the state that was asked for.
    pub(crate) fn wait_saved(&self) -> Result<VcpuState, SaveError> {
        match self.answer() {
            Answer::Saved(state) => *state,
            Answer::SetUp(_) | Answer::Done { .. } | Answer::Identity(_) => {
                unreachable!("no other ask is without an answer")
            }
        }
    }

    /// Asks without waiting, so that all vCPUs can be asked before the first is waited for. No kick: only a parked vCPU is
    /// asked to run, and that one waits for its ask.
    pub(crate) fn ask_run(&self) {
        self.send(Ask::Run);
    }

    /// Asks without waiting; the vCPU is interrupted if it runs.
    pub(crate) fn ask_park(&self) {
        self.send(Ask::Park);
        self.kicker.kick();
    }

    /// When the vCPU first entered the guest, if it has said so by now.
    pub(crate) fn first_run(&self) -> Option<Instant> {
        while let Ok(answer) = self.answers.try_recv() {
            self.take_done(answer);
        }
        self.first_run.get()
    }

    /// Waits until every ask is answered, no longer than until `deadline`: false if the vCPU is held up in a device by then. It
    /// does what it was asked, in order, when it comes back.
    pub(crate) fn wait_done_by(&self, deadline: Instant) -> bool {
        while self.owed.get() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left) {
                Ok(answer) => self.take_done(answer),
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => unreachable!("a vCPU thread answers before it ends"),
            };
        }
        true
    }

    fn take_done(&self, answer: Answer) {
        self.owed.set(self.owed.get() - 1);
        match answer {
            Answer::Done { first_run } => self.first_run.set(first_run),
            Answer::SetUp(_) | Answer::Identity(_) | Answer::Saved(_) => {
                unreachable!("wait_set_up, id and wait_saved take the answers to their asks")
            }
        }
    }

    /// The exits of this vCPU so far, by kind.
    #[must_use]
    pub fn counts(&self) -> &ExitCounts {
        &self.counts
    }

    fn send(&self, ask: Ask) {
        self.owed.set(self.owed.get() + 1);
        self.tell(ask);
    }

    fn tell(&self, ask: Ask) {
        self.asks.send(ask).expect("a vCPU thread lives until it is asked to stop, which is its handle's drop");
    }

    fn answer(&self) -> Answer {
        self.answers.recv().expect("a vCPU thread answers before it ends")
    }
}

impl Drop for VcpuHandle {
    /// Ends the thread and waits for it: no vCPU outlives its owner.
    fn drop(&mut self) {
        if self.asks.send(Ask::Stop).is_ok() {
            self.kicker.kick();
        }
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok(), "a vCPU thread does not unwind");
        }
    }
}

/// Stack of a vCPU thread: its deepest path is a device's register access.
const VCPU_STACK_BYTES: usize = 256 << 10;

/// Whether the guest is being run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waiting for an ask.
    Parked,
    /// In and out of the guest.
    Running,
    /// The guest cannot be run any more; asks are still answered.
    Ended,
}

/// The thread's own side.
struct Vcpu {
    fd: VcpuFd,
    context: VcpuContext,
    kicks: Arc<RunPage>,
    asked: Receiver<Ask>,
    answer: Sender<Answer>,
    first_run: Option<Instant>,
}

impl Vcpu {
    fn main(mut self, state: FirstState) {
        let mut phase = match state {
            FirstState::Set => Phase::Parked,
            FirstState::ByThread(setup) => {
                let set_up = setup(&self.fd);
                let phase = if set_up.is_ok() { Phase::Parked } else { Phase::Ended };
                self.reply(Answer::SetUp(set_up));
                phase
            }
        };
        while let Some(next) = self.step(phase) {
            phase = next;
        }
    }

    /// One ask answered or one turn through the guest; `None` ends the thread.
    fn step(&mut self, phase: Phase) -> Option<Phase> {
        match self.next_ask(phase) {
            NextAsk::Stop => return None,
            NextAsk::Ask(ask) => return Some(self.take(ask, phase)),
            NextAsk::Nothing => {}
        }
        match self.turn() {
            Turn::Again => Some(Phase::Running),
            Turn::Crashed(crash) => {
                self.context.events.send(GuestEvent::Crashed(crash));
                Some(Phase::Ended)
            }
        }
    }

    /// A vCPU that does not run blocks here. A running one looks only after a kick: `RunPage::take` clears the flag
    /// before the channel is read, and an asker sends before it sets the flag, so no ask is left behind.
    fn next_ask(&self, phase: Phase) -> NextAsk {
        let asked = match phase {
            Phase::Parked | Phase::Ended => self.asked.recv().ok(),
            Phase::Running if self.kicks.take() => match self.asked.try_recv() {
                Ok(ask) => Some(ask),
                Err(std::sync::mpsc::TryRecvError::Empty) => return NextAsk::Nothing,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => None,
            },
            Phase::Running => return NextAsk::Nothing,
        };
        match asked {
            None | Some(Ask::Stop) => NextAsk::Stop,
            Some(ask) => NextAsk::Ask(ask),
        }
    }

    fn take(&mut self, ask: Ask, phase: Phase) -> Phase {
        let next = match (ask, phase) {
            (Ask::Identify, phase) => {
                self.reply(Answer::Identity(devices::virtio::worker::thread_id()));
                return phase;
            }
            (Ask::Save(shape), phase) => {
                self.reply(Answer::Saved(Box::new(self.save(&shape, phase))));
                return phase;
            }
            (_, Phase::Ended) => Phase::Ended,
            (Ask::Run, phase) => {
                if phase == Phase::Parked {
                    self.excuse_pause();
                }
                self.first_run.get_or_insert_with(Instant::now);
                Phase::Running
            }
            (Ask::Park, Phase::Running) => {
                self.complete_exit();
                Phase::Parked
            }
            (Ask::Park | Ask::Stop, phase) => phase,
        };
        self.reply(Answer::Done { first_run: self.first_run });
        next
    }

    fn save(&self, shape: &VcpuShape, phase: Phase) -> Result<VcpuState, SaveError> {
        let index = self.context.index;
        match phase {
            Phase::Parked => Ok(VcpuState::save(&self.fd, index, shape)?),
            Phase::Ended => Err(SaveError::Crashed { index }),
            Phase::Running => unreachable!("only a parked vCPU is asked for its state"),
        }
    }

    /// Tells a guest with kvm-clock that it did not run for a while, so that its watchdogs do not take the pause for a CPU
    /// that hangs (KVM api: KVM_KVMCLOCK_CTRL). A guest without is told nothing, which KVM answers with EINVAL.
    fn excuse_pause(&self) {
        if let Err(error) = self.fd.kvmclock_ctrl()
            && error.errno() != libc::EINVAL
        {
            log::warn!("vcpu {}: cannot tell the guest of its pause (KVM_KVMCLOCK_CTRL): {error}", self.context.index);
        }
    }

    /// The owner may already be gone, as after a build that failed; then nobody waits for the answer.
    fn reply(&self, answer: Answer) {
        let _ = self.answer.send(answer);
    }
}

enum NextAsk {
    Nothing,
    Ask(Ask),
    Stop,
}
