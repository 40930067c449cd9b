//! What every virtio transport does, however its registers are laid out: status, features, queues, life and death of
//! the device.
//!
//! It runs with the transport's lock held, on the vCPU that touched a register, or on the machine's own thread for
//! pause and resume.
//!
//! Architecture invariants:
//! - what a driver configured is frozen from DRIVER_OK to reset;
//! - the device runs only while DRIVER_OK is set and the machine is not paused;
//! - when a reset returns, nothing of the device is in flight.

mod state;

use std::io;
use std::sync::Arc;

use arch::GuestMemory;
use thiserror::Error;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use self::state::{RunState, SavedQueue, TransportState};
use super::Interrupt;
use crate::fault::FaultLog;
use crate::virtio::queue::{QueueConfig, QueueState};
use crate::virtio::worker::Holding;
use crate::virtio::{Activation, ActiveQueue, Identity, VirtioDevice};

const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

/// Why a transport cannot be made.
#[derive(Debug, Error)]
pub enum TransportError {
    /// No descriptor is left for a doorbell or an interrupt.
    #[error("cannot create an eventfd for a virtio device")]
    EventFd(#[source] io::Error),
}

/// The registers' meaning, for one device.
pub struct TransportCore {
    device: Box<dyn VirtioDevice>,
    identity: Identity,
    memory: Arc<GuestMemory>,
    interrupt: Arc<Interrupt>,
    doorbells: Vec<EventFd>,
    status: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<Queue>,
    run: Run,
    /// The state is another transport's, whose last interrupt may have been lost.
    inherited: bool,
    log: FaultLog,
}

/// What a device's driver has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverState {
    /// No driver has said that it is ready.
    Absent,
    /// It uses the device.
    Ready,
    /// It, or the host, broke the device, which waits for a reset.
    NeedsReset,
}

struct Queue {
    config: QueueConfig,
    state: QueueState,
}

/// What the device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    /// No driver is ready.
    Stopped,
    /// It serves its queues.
    Running,
    /// A driver is ready, and the machine's owner stopped the device.
    Paused,
    /// A driver is ready, and the device could not start: only a reset helps.
    Dead,
}

impl TransportCore {
    /// A transport for `device`, whose driver will live in `memory`. `name` is the device's, for the log.
    ///
    /// # Errors
    /// [`TransportError::EventFd`].
    pub fn new(name: &str, device: Box<dyn VirtioDevice>, memory: Arc<GuestMemory>) -> Result<Self, TransportError> {
        let identity = device.identity().clone();
        let doorbells = identity.queue_sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC));
        let doorbells = doorbells.collect::<io::Result<Vec<_>>>().map_err(TransportError::EventFd)?;
        let interrupt = Arc::new(Interrupt::new().map_err(TransportError::EventFd)?);
        let queues = Self::fresh_queues(&identity);
        Ok(Self {
            device,
            identity,
            memory,
            interrupt,
            doorbells,
            status: 0,
            driver_features: 0,
            queue_select: 0,
            queues,
            run: Run::Stopped,
            inherited: false,
            log: FaultLog::new(name),
        })
    }

    /// What the device is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The device's interrupt.
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    /// One eventfd for each queue, by index: signalled, it says that the driver notified that queue.
    pub fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    /// Prepares a device that runs for [`Self::pause`], which is quick when all that is returned has come.
    /// [`Self::release`] undoes it.
    pub fn hold(&self) -> Vec<Holding> {
        if self.run == Run::Running { self.device.hold() } else { Vec::new() }
    }

    /// Lets a device that was held, and not paused, go on.
    pub fn release(&self) {
        if self.run == Run::Running {
            self.device.release();
        }
    }

    /// Stops the device for as long as the machine is paused. When this returns, all that was in flight is complete.
    /// Idempotent.
    pub fn pause(&mut self) {
        if self.run == Run::Running {
            self.stop_device();
            self.run = Run::Paused;
        }
    }

    /// Lets the device go on where [`Self::pause`] stopped it, or where the one had come to whose state it has: a worker
    /// looks at its rings when it starts, so a doorbell that nobody heard is not missed. Idempotent.
    pub fn resume(&mut self) {
        if std::mem::take(&mut self.inherited) {
            self.interrupt.repeat();
        }
        if self.run == Run::Paused {
            self.start_device();
        }
    }

    /// All features offered.
    pub fn offered_features(&self) -> u64 {
        self.identity.features | VERSION_1
    }

    /// Takes over 32 of the features that the driver wants; `half` counts from the low ones.
    pub fn write_driver_features(&mut self, half: u32, value: u32) {
        // virtio 1.3 §3.1.1: once the device said FEATURES_OK they do not change.
        if self.status & FEATURES_OK != 0 {
            return;
        }
        let (low, value) = (0xffff_ffff_u64, u64::from(value));
        match half {
            0 => self.driver_features = (self.driver_features & !low) | value,
            1 => self.driver_features = (self.driver_features & low) | (value << 32),
            // There is no feature there to accept; a driver that does wants what was not offered.
            _ => {}
        }
    }

    /// The device status (virtio 1.3 §2.1).
    pub fn status(&self) -> u32 {
        let needs_reset = if self.interrupt.is_reset_needed() { NEEDS_RESET } else { 0 };
        self.status | needs_reset
    }

    /// What the driver has come to, for whoever asks.
    pub fn driver_state(&self) -> DriverState {
        match self.run {
            _ if self.interrupt.is_reset_needed() => DriverState::NeedsReset,
            Run::Stopped => DriverState::Absent,
            Run::Running | Run::Paused => DriverState::Ready,
            Run::Dead => DriverState::NeedsReset,
        }
    }

    /// Takes the driver's write to the device status. 0 resets; every other write can only add bits.
    pub fn write_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let added = value & !self.status;
        self.status |= added & (ACKNOWLEDGE | DRIVER | FAILED);
        if added & FEATURES_OK != 0 && self.status & DRIVER != 0 && self.features_are_acceptable() {
            self.status |= FEATURES_OK;
        }
        if added & DRIVER_OK != 0 && self.status & FEATURES_OK != 0 {
            self.status |= DRIVER_OK;
            self.start_device();
        }
    }

    /// Chooses the queue that the queue registers speak of.
    pub fn select_queue(&mut self, index: u32) {
        self.queue_select = index;
    }

    /// The selected queue, if there is one.
    pub fn queue(&self) -> Option<&QueueConfig> {
        self.queues.get(usize::try_from(self.queue_select).ok()?).map(|queue| &queue.config)
    }

    /// Changes the selected queue, if there is one and it is still the driver's to describe.
    pub fn configure_queue(&mut self, change: impl FnOnce(&mut QueueConfig)) {
        let frozen = self.status & DRIVER_OK != 0;
        let selected = usize::try_from(self.queue_select).ok().and_then(|index| self.queues.get_mut(index));
        if let Some(queue) = selected.filter(|_| !frozen) {
            change(&mut queue.config);
        }
    }

    /// The driver notified a queue, by a write that came to user space.
    pub fn notify(&self, queue: u32) {
        if let Some(doorbell) = usize::try_from(queue).ok().and_then(|queue| self.doorbells.get(queue)) {
            // Fails only when 2^64 - 2 notifications are unseen, and then one is pending.
            let _pending = doorbell.write(1);
        }
    }

    /// Reads the configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    /// Writes to the configuration space. Before a driver said hello it may not (virtio 1.3 §3.1.1).
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        if self.status & DRIVER != 0 {
            self.device.write_config(offset, data);
        }
    }

    /// Changes whenever the configuration space has changed.
    pub fn config_generation(&self) -> u32 {
        self.interrupt.config_generation()
    }

    fn features_are_acceptable(&self) -> bool {
        let unoffered = self.driver_features & !self.offered_features();
        unoffered == 0 && self.driver_features & VERSION_1 != 0
    }

    /// Synchronous, on the vCPU that wrote the 0: the specification lets a driver wait until the status reads 0, but
    /// Linux's virtio-mmio does not wait, it frees its rings as soon as the write returns.
    fn reset(&mut self) {
        self.stop_device();
        self.device.reset();
        self.interrupt.reset();
        self.status = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.queues = Self::fresh_queues(&self.identity);
        self.run = Run::Stopped;
    }

    fn fresh_queues(identity: &Identity) -> Vec<Queue> {
        let sizes = identity.queue_sizes.iter();
        let configs = (0..).zip(sizes).map(|(index, size)| QueueConfig::new(index, *size));
        configs.map(|config| Queue { config, state: QueueState::default() }).collect()
    }

    fn start_device(&mut self) {
        let features = self.driver_features;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (queue, doorbell) in self.queues.iter().zip(&self.doorbells).filter(|(queue, _)| queue.config.ready) {
            let ring = match queue.config.validate(&self.memory, features, queue.state.clone()) {
                Ok(ring) => ring,
                Err(error) => return self.die(&error),
            };
            match doorbell.try_clone() {
                Ok(doorbell) => queues.push(ActiveQueue { ring, doorbell }),
                Err(error) => return self.die(&error),
            }
        }
        let activation =
            Activation { memory: Arc::clone(&self.memory), features, queues, interrupt: Arc::clone(&self.interrupt) };
        match self.device.start(activation) {
            Ok(()) => self.run = Run::Running,
            Err(error) => self.die(&error),
        }
    }

    /// The device cannot serve this driver, which may reset it and try again.
    fn die(&mut self, error: &dyn std::error::Error) {
        let cause = error.source().map(|source| format!(": {source}")).unwrap_or_default();
        self.log.report(format_args!("cannot start: {error}{cause}"));
        self.run = Run::Dead;
        self.interrupt.needs_reset();
    }

    fn stop_device(&mut self) {
        for (index, state) in self.device.stop() {
            self.queues[usize::from(index)].state = state;
        }
    }
}

impl Drop for TransportCore {
    /// Nothing of the device outlives it on an I/O thread.
    fn drop(&mut self) {
        self.stop_device();
    }
}
