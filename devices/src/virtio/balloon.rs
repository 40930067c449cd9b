//! The memory balloon (virtio 1.3 §5.5): the driver puts pages into it that the host shall have, and takes them out again.
//!
//! Queues are numbered without gaps, as Linux numbers them: after inflate and deflate come, of statistics, hinting and
//! reporting, those that were negotiated.

mod huge;
mod pages;
mod state;
mod statistics;
mod worker;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use thiserror::Error;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::huge::Ledger;
use self::worker::{BalloonWorker, Queues};
use super::exhaustion::Exhaustion;
use super::queue::QueueState;
use super::voice::{Changed, ConfigVoice};
use super::worker::{AttachError, Attachment, Holding, IoThreadHandle};
use super::{Activation, DeviceState, DeviceType, Identity, RestoreError, StartError, VirtioDevice, read_config_bytes};
use crate::backend::memory::Reclaim;
use crate::bus::lock;
use crate::fault::FaultLog;
use crate::state::SaveState;

pub use self::state::BalloonState;
pub use self::statistics::Statistics;
pub use super::exhaustion::OnExhausted;

/// The size of what is counted in the balloon, in bytes: a page of the specification, whatever the memory is made of.
pub const BALLOON_PAGE_BYTES: u64 = 4096;

const QUEUE_SIZE: u16 = 128;
/// Where the driver writes how many pages the balloon has.
const ACTUAL_OFFSET: u64 = 4;

/// What a balloon can do.
#[derive(Debug, Clone, Default)]
pub struct BalloonOptions {
    /// Pages that it shall have at first.
    pub target_pages: u32,
    /// Whether a driver that is short of memory may take pages out by itself.
    pub deflate_on_oom: bool,
    /// How often the driver is asked for statistics; `None` for a balloon without.
    pub statistics: Option<Duration>,
    /// Whether the driver can be asked which pages are free. Not with pages of a HugePage pool.
    pub hinting: bool,
    /// Whether the driver tells which pages have become free. Not with pages of a HugePage pool.
    pub reporting: bool,
}

/// A virtio balloon.
pub struct Balloon {
    log: FaultLog,
    identity: Identity,
    thread: IoThreadHandle,
    reclaim: Reclaim,
    shared: Arc<Shared>,
    /// Of memory of a pool, while nobody serves the queues.
    ledger: Option<Ledger>,
    run: Option<Attachment<BalloonWorker>>,
}

/// What the device, its worker and its owner share.
#[derive(Debug)]
struct Shared {
    features: u64,
    /// Pages that the balloon shall have.
    target: AtomicU32,
    /// Pages that it has, as the driver says.
    actual: AtomicU32,
    /// The command that the device shows: a run's number, or [`STOP`] or [`DONE`].
    host_command: AtomicU32,
    /// The last that the driver gave; beyond 32 bits: none yet.
    guest_command: AtomicU64,
    acknowledge: AtomicU32,
    statistics: Mutex<Statistics>,
    interval_ms: AtomicU64,
    /// Wakes the worker for another interval.
    ask: EventFd,
    voice: ConfigVoice,
    /// Of the pool that a driver wants pages back of.
    exhaustion: Exhaustion,
    counters: BalloonCounters,
}

/// No hinting (VIRTIO_BALLOON_CMD_ID_STOP).
const STOP: u32 = 0;
/// The driver has its hinted pages back (VIRTIO_BALLOON_CMD_ID_DONE).
const DONE: u32 = 1;
const NO_COMMAND: u64 = u64::MAX;

/// What happened in a balloon.
#[derive(Debug, Default)]
pub struct BalloonCounters {
    /// Pages that the driver put in.
    pub inflated_pages: AtomicU64,
    /// Pages that it took out.
    pub deflated_pages: AtomicU64,
    /// Bytes that the host has because the driver put them in.
    pub discarded_bytes: AtomicU64,
    /// Bytes that the host has because the driver reported them free.
    pub reported_bytes: AtomicU64,
    /// Bytes that the host has because the driver said, when asked, that they are free.
    pub hinted_bytes: AtomicU64,
    /// Chains that made no sense, and pages that the host did not take.
    pub errors: AtomicU64,
    /// Times that a driver waited for a page of an empty pool.
    pub exhausted: AtomicU64,
    /// Queues that a driver broke.
    pub retired_queues: AtomicU64,
}

/// What cannot be done to a balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BalloonError {
    /// It was made without.
    #[error("the balloon was made without {0}")]
    Without(&'static str),
    /// It shall have more than there is.
    #[error("{pages} pages are more than the guest's {memory_pages}")]
    TooLarge {
        /// What was asked, in pages of 4 KiB.
        pages: u64,
        /// What the guest has.
        memory_pages: u64,
    },
}

/// A free page hinting run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HintingStatus {
    /// The command that the device shows.
    pub host_command: u32,
    /// The last that the driver gave.
    pub guest_command: Option<u32>,
}

impl Balloon {
    /// A balloon, `id` in the log, whose queues are served on `thread` and whose pages go to the host by `reclaim`.
    ///
    /// # Errors
    /// The host gives no eventfd.
    pub fn new(
        id: &str,
        options: &BalloonOptions,
        reclaim: Reclaim,
        on_exhausted: OnExhausted,
        thread: IoThreadHandle,
    ) -> std::io::Result<Self> {
        let by_small_pages = !reclaim.is_of_pool();
        let features = [
            (1 << VIRTIO_RING_F_EVENT_IDX, true),
            (1 << VIRTIO_RING_F_INDIRECT_DESC, true),
            (DEFLATE_ON_OOM, options.deflate_on_oom),
            (STATISTICS, options.statistics.is_some()),
            (HINTING, options.hinting && by_small_pages),
            (REPORTING, options.reporting && by_small_pages),
            // A huge page that the host has must be back before the driver uses any part of it.
            (MUST_TELL_HOST, !by_small_pages),
        ];
        let features = features.into_iter().filter(|(_, offered)| *offered).fold(0, |all, (bit, _)| all | bit);
        let optional = [STATISTICS, HINTING, REPORTING].into_iter().filter(|feature| features & feature != 0).count();
        let shared = Shared {
            features,
            target: AtomicU32::new(options.target_pages),
            actual: AtomicU32::new(0),
            host_command: AtomicU32::new(STOP),
            guest_command: AtomicU64::new(NO_COMMAND),
            acknowledge: AtomicU32::new(0),
            statistics: Mutex::default(),
            interval_ms: AtomicU64::new(options.statistics.map_or(0, milliseconds)),
            ask: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            voice: ConfigVoice::new(),
            exhaustion: Exhaustion::new(on_exhausted),
            counters: BalloonCounters::default(),
        };
        let identity =
            Identity { device_type: DeviceType::Balloon, features, queue_sizes: vec![QUEUE_SIZE; 2 + optional] };
        let (log, shared) = (FaultLog::new(id), Arc::new(shared));
        let ledger = Ledger::of(&reclaim);
        Ok(Self { log, identity, thread, reclaim, shared, ledger, run: None })
    }

    /// What its owner holds it by.
    pub fn control(&self) -> BalloonControl {
        BalloonControl { shared: Arc::clone(&self.shared), memory_pages: self.reclaim.bytes() / BALLOON_PAGE_BYTES }
    }
}

// Features (virtio 1.3 §5.5.3), by their names there.
const MUST_TELL_HOST: u64 = 1 << 0;
const STATISTICS: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const HINTING: u64 = 1 << 3;
const REPORTING: u64 = 1 << 5;

fn milliseconds(interval: Duration) -> u64 {
    u64::try_from(interval.as_millis()).unwrap_or(u64::MAX)
}

impl VirtioDevice for Balloon {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let Shared { target, actual, host_command, .. } = &*self.shared;
        let fields = [target, actual, host_command].map(|field| field.load(Ordering::Acquire).to_le_bytes());
        read_config_bytes(fields.as_flattened(), offset, data);
    }

    /// The driver writes how many pages the balloon has; whatever it says is only told.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL_OFFSET, Ok(bytes)) = (offset, data.try_into()) {
            self.shared.actual.store(u32::from_le_bytes(bytes), Ordering::Relaxed);
        }
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let interrupt = Arc::clone(&activation.interrupt);
        let queues = Queues::assign(activation.queues, activation.features)?;
        let worker = BalloonWorker::new(
            queues,
            activation.interrupt,
            Arc::clone(&self.shared),
            self.reclaim.clone(),
            self.log.clone(),
        );
        let worker = worker.map_err(StartError::Attach)?.with_ledger(self.ledger.take());
        match self.thread.attach(worker) {
            Ok(attachment) => self.run = Some(attachment),
            Err(AttachError { error, worker }) => {
                self.ledger = worker.into_ledger();
                return Err(StartError::Attach(error));
            }
        }
        self.shared.voice.started(interrupt);
        Ok(())
    }

    fn hold(&self) -> Vec<Holding> {
        self.run.iter().map(Attachment::hold).collect()
    }

    fn release(&self) {
        self.run.iter().for_each(Attachment::release);
    }

    fn stop(&mut self) -> Vec<(u16, QueueState)> {
        self.shared.voice.stopped();
        let Some(worker) = self.run.take().map(Attachment::detach) else { return Vec::new() };
        let states = worker.states();
        self.ledger = worker.into_ledger();
        states
    }

    fn reset(&mut self) {
        self.shared.voice.reset();
        self.shared.actual.store(0, Ordering::Relaxed);
        self.shared.host_command.store(STOP, Ordering::Relaxed);
        self.shared.guest_command.store(NO_COMMAND, Ordering::Relaxed);
        *lock(&self.shared.statistics) = Statistics::default();
        // A vCPU is here, and waits for no huge page to be cleared: they come back by the worker of the next driver.
        self.ledger.iter_mut().for_each(Ledger::empty);
    }

    fn save(&self) -> DeviceState {
        DeviceState::Balloon(SaveState::save(self))
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Balloon(state) => SaveState::restore(self, state),
            other => Err(RestoreError::of_another_kind(&other, self.identity.device_type)),
        }
    }
}

/// What a balloon's owner holds it by.
#[derive(Debug, Clone)]
pub struct BalloonControl {
    shared: Arc<Shared>,
    memory_pages: u64,
}

impl BalloonControl {
    /// Pages that the balloon shall have.
    pub fn target_pages(&self) -> u32 {
        self.shared.target.load(Ordering::Relaxed)
    }

    /// Pages that it has, as the driver says.
    pub fn actual_pages(&self) -> u32 {
        self.shared.actual.load(Ordering::Relaxed)
    }

    /// Gives it another target.
    ///
    /// # Errors
    /// The guest has not so many.
    pub fn set_target(&self, pages: u64) -> Result<(), BalloonError> {
        let too_large = BalloonError::TooLarge { pages, memory_pages: self.memory_pages };
        let target = u32::try_from(pages).ok().filter(|_| pages <= self.memory_pages).ok_or(too_large)?;
        self.shared.voice.tell(|| match self.shared.target.swap(target, Ordering::Release) == target {
            true => Changed::No,
            false => Changed::Yes,
        });
        Ok(())
    }

    /// What the driver last told of its memory.
    ///
    /// # Errors
    /// The balloon has no statistics.
    pub fn statistics(&self) -> Result<Statistics, BalloonError> {
        self.needs(STATISTICS, "statistics").map(|()| lock(&self.shared.statistics).clone())
    }

    /// Asks for statistics so often; zero asks no more.
    ///
    /// # Errors
    /// The balloon has no statistics.
    pub fn set_interval(&self, interval: Duration) -> Result<(), BalloonError> {
        self.needs(STATISTICS, "statistics")?;
        self.shared.interval_ms.store(milliseconds(interval), Ordering::Relaxed);
        // It can only fail by the counter's overflow, and then the worker is awake already.
        let _ = self.shared.ask.write(1);
        Ok(())
    }

    /// Asks the driver which pages are free, and gives them to the host; with `acknowledge` the driver gets them back when
    /// it has told them all.
    ///
    /// # Errors
    /// The balloon has no hinting.
    pub fn start_hinting(&self, acknowledge: bool) -> Result<(), BalloonError> {
        self.needs(HINTING, "free page hinting")?;
        self.shared.acknowledge.store(acknowledge.into(), Ordering::Relaxed);
        let next = match self.shared.host_command.load(Ordering::Relaxed).wrapping_add(1) {
            STOP | DONE => DONE + 1,
            next => next,
        };
        self.shared.command(next);
        Ok(())
    }

    /// Ends a hinting run: the driver has its pages back.
    ///
    /// # Errors
    /// The balloon has no hinting.
    pub fn stop_hinting(&self) -> Result<(), BalloonError> {
        self.needs(HINTING, "free page hinting").map(|()| self.shared.command(DONE))
    }

    /// Where hinting has come to.
    ///
    /// # Errors
    /// The balloon has no hinting.
    pub fn hinting(&self) -> Result<HintingStatus, BalloonError> {
        self.needs(HINTING, "free page hinting")?;
        let guest_command = u32::try_from(self.shared.guest_command.load(Ordering::Relaxed)).ok();
        Ok(HintingStatus { host_command: self.shared.host_command.load(Ordering::Relaxed), guest_command })
    }

    /// What happened in it.
    pub fn counters(&self) -> &BalloonCounters {
        &self.shared.counters
    }

    fn needs(&self, feature: u64, name: &'static str) -> Result<(), BalloonError> {
        if self.shared.features & feature == 0 { Err(BalloonError::Without(name)) } else { Ok(()) }
    }
}

impl Shared {
    /// Shows the driver another command.
    fn command(&self, command: u32) {
        self.voice.tell(|| {
            self.host_command.store(command, Ordering::Release);
            Changed::Yes
        });
    }
}

#[cfg(test)]
mod tests;
