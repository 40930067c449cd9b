//! What a transport saves, and the checks of what it is given back.

use serde::{Deserialize, Serialize};

use super::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, Queue, Run, TransportCore};
use crate::state::SaveState;
use crate::virtio::queue::{QueueConfig, QueueState};
use crate::virtio::state::same;
use crate::virtio::transport::interrupt::InterruptState;
use crate::virtio::{DeviceState, FeatureSet, RestoreError};

/// A transport with its device, its queues and its driver's wishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    pub(crate) status: u32,
    pub(crate) driver_features: u64,
    pub(crate) queue_select: u32,
    pub(crate) queues: Vec<SavedQueue>,
    pub(crate) run: RunState,
    pub(crate) interrupt: InterruptState,
    pub(crate) device: DeviceState,
}

/// What a device does that is not running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// No driver is ready.
    Stopped,
    /// A driver is ready, and the device waits to go on.
    Paused,
    /// A driver is ready, and only a reset helps.
    Dead,
}

/// A queue as its driver described it, and how far the device has come in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueue {
    pub(crate) size_max: u16,
    pub(crate) size: u16,
    pub(crate) ready: bool,
    pub(crate) descriptor_table: u64,
    pub(crate) avail_ring: u64,
    pub(crate) used_ring: u64,
    pub(crate) next_avail: u16,
    pub(crate) next_used: u16,
    pub(crate) retired: bool,
    pub(crate) held: Vec<u16>,
}

impl SaveState for TransportCore {
    type State = TransportState;
    type Error = RestoreError;

    /// # Panics
    /// If the device runs: pause it.
    fn save(&self) -> TransportState {
        let Self {
            device,
            identity: _,
            memory: _,
            interrupt,
            doorbells: _,
            status,
            driver_features,
            queue_select,
            queues,
            run,
            inherited: _,
            log: _,
        } = self;
        TransportState {
            status: *status,
            driver_features: *driver_features,
            queue_select: *queue_select,
            queues: queues.iter().map(Queue::save).collect(),
            run: match run {
                Run::Running => panic!("a virtio device is saved while it runs"),
                Run::Stopped => RunState::Stopped,
                Run::Paused => RunState::Paused,
                Run::Dead => RunState::Dead,
            },
            interrupt: interrupt.save(),
            device: device.save(),
        }
    }

    /// Leaves the device paused, if its driver is ready: [`TransportCore::resume`] starts it.
    ///
    /// # Panics
    /// If a driver has touched the transport.
    fn restore(&mut self, state: TransportState) -> Result<(), RestoreError> {
        assert!(self.status == 0 && self.run == Run::Stopped, "a state is restored over that of a driver");
        let TransportState { status, driver_features, queue_select, queues, run, interrupt, device } = state;
        if device.device_type() != self.identity.device_type {
            return Err(RestoreError::of_another_kind(&device, self.identity.device_type));
        }
        check_status(status, run, &interrupt)?;
        self.check_features(status, driver_features)?;
        let queues = self.restored_queues(queues, run)?;
        for Queue { config, state } in queues.iter().filter(|queue| run == RunState::Paused && queue.config.ready) {
            config.validate(&self.memory, driver_features, state.clone()).map_err(RestoreError::Queue)?;
        }
        self.device.restore(device)?;
        self.interrupt.restore(interrupt);
        self.status = status;
        self.driver_features = driver_features;
        self.queue_select = queue_select;
        self.queues = queues;
        self.run = match run {
            RunState::Stopped => Run::Stopped,
            RunState::Paused => Run::Paused,
            RunState::Dead => Run::Dead,
        };
        self.inherited = true;
        Ok(())
    }
}

impl TransportCore {
    /// A driver that was told FEATURES_OK relies on all that it wanted.
    fn check_features(&self, status: u32, features: u64) -> Result<(), RestoreError> {
        let bits = features & !self.offered_features();
        if status & FEATURES_OK == 0 {
            return Ok(());
        }
        if bits != 0 {
            let missing = FeatureSet { device_type: self.identity.device_type, bits };
            return Err(RestoreError::Features { missing });
        }
        possible(features & super::VERSION_1 != 0, "features were agreed upon without VERSION_1")
    }

    fn restored_queues(&self, saved: Vec<SavedQueue>, run: RunState) -> Result<Vec<Queue>, RestoreError> {
        let count = |queues: usize| u64::try_from(queues).expect("64 bits fit");
        same("a number of queues of", count(saved.len()), count(self.queues.len()))?;
        saved.into_iter().zip(&self.queues).map(|(saved, here)| saved.restore(&here.config, run)).collect()
    }
}

impl Queue {
    fn save(&self) -> SavedQueue {
        let Self { config, state } = self;
        let QueueConfig { index: _, size_max, size, ready, descriptor_table, avail_ring, used_ring } = *config;
        let QueueState { next_avail, next_used, retired, held } = state.clone();
        SavedQueue {
            size_max,
            size,
            ready,
            descriptor_table,
            avail_ring,
            used_ring,
            next_avail,
            next_used,
            retired,
            held,
        }
    }
}

impl SavedQueue {
    /// A queue in the place of `here`. Its driver's description is as little checked as it was when it was given.
    fn restore(self, here: &QueueConfig, run: RunState) -> Result<Queue, RestoreError> {
        let Self {
            size_max,
            size,
            ready,
            descriptor_table,
            avail_ring,
            used_ring,
            next_avail,
            next_used,
            retired,
            held,
        } = self;
        same("a largest queue of", size_max.into(), here.size_max.into())?;
        let config = QueueConfig { size, ready, descriptor_table, avail_ring, used_ring, ..*here };
        let state = QueueState { next_avail, next_used, retired, held };
        possible(run != RunState::Stopped || state == QueueState::default(), "a queue was served without a driver")?;
        possible(state.held.iter().all(|head| *head < size), "a queue holds a chain that it cannot have")?;
        // Nothing is in flight, so what was popped was given back or is held.
        let open = next_avail.wrapping_sub(next_used);
        possible(retired || usize::from(open) == state.held.len(), "a queue has lost chains, or invented some")?;
        Ok(Queue { config, state })
    }
}

/// What [`TransportCore::write_status`] can make of a driver's writes (virtio 1.3 §2.1).
fn check_status(status: u32, run: RunState, interrupt: &InterruptState) -> Result<(), RestoreError> {
    let has = |bit: u32| status & bit != 0;
    let known = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;
    possible(status & !known == 0, "a device status with unknown bits")?;
    possible(has(DRIVER) || !has(FEATURES_OK), "FEATURES_OK without DRIVER")?;
    possible(has(FEATURES_OK) || !has(DRIVER_OK), "DRIVER_OK without FEATURES_OK")?;
    possible(
        has(DRIVER_OK) == (run != RunState::Stopped),
        "a device that runs for nobody, or a driver without a device",
    )?;
    possible(run != RunState::Dead || interrupt.needs_reset, "a dead device that does not say so")?;
    possible(interrupt.is_possible(), "an interrupt without a cause")
}

fn possible(holds: bool, otherwise: &'static str) -> Result<(), RestoreError> {
    if holds { Ok(()) } else { Err(RestoreError::Impossible(otherwise)) }
}
