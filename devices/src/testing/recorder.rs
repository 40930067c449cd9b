//! A device that writes down what its transport tells it, and holds the transport to the contract.

use std::sync::{Arc, Mutex};

use crate::bus::lock;
use crate::virtio::queue::{QueueState, ReadyQueue};
use crate::virtio::rng::RngState;
use crate::virtio::worker::Holding;
use crate::virtio::{Activation, DeviceState, Identity, RestoreError, StartError, VirtioDevice, read_config_bytes};

/// What a device was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// To start, with these features, and these queues: index, entries, state.
    Start {
        /// What was negotiated.
        features: u64,
        /// Index, entries, and where the queue begins.
        queues: Vec<(u16, u16, QueueState)>,
    },
    /// To stop, while it ran.
    Stop,
    /// To reset.
    Reset,
    /// That the driver wrote to the configuration space.
    WriteConfig(u64, Vec<u8>),
}

/// What a [`Recorder`] was told and what it holds.
#[derive(Debug, Default)]
pub struct Record {
    /// In order.
    pub events: Vec<Event>,
    /// The device cannot start.
    pub refuse_start: bool,
    /// The queues, while it runs.
    pub queues: Vec<ReadyQueue>,
    /// Between start and stop.
    pub running: bool,
}

/// A device that does nothing with its queues.
#[derive(Debug)]
pub struct Recorder {
    identity: Identity,
    record: Arc<Mutex<Record>>,
}

impl Recorder {
    /// A device that is `identity`.
    pub fn new(identity: Identity, record: Arc<Mutex<Record>>) -> Self {
        Self { identity, record }
    }
}

impl VirtioDevice for Recorder {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&[1, 2, 3, 4, 5, 6, 7, 8], offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        lock(&self.record).events.push(Event::WriteConfig(offset, data.to_vec()));
    }

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let mut record = lock(&self.record);
        assert!(!record.running, "contract 3: start only when stopped");
        let queues = activation.queues.iter();
        let queues = queues.map(|queue| (queue.ring.index(), queue.ring.size(), queue.ring.state())).collect();
        record.events.push(Event::Start { features: activation.features, queues });
        if record.refuse_start {
            return Err(StartError::QueueMissing(0));
        }
        record.queues = activation.queues.into_iter().map(|queue| queue.ring).collect();
        record.running = true;
        Ok(())
    }

    fn hold(&self) -> Vec<Holding> {
        Vec::new()
    }

    fn release(&self) {}

    fn stop(&mut self) -> Vec<(u16, QueueState)> {
        let mut record = lock(&self.record);
        if std::mem::take(&mut record.running) {
            record.events.push(Event::Stop);
        }
        record.queues.drain(..).map(|queue| (queue.index(), queue.state())).collect()
    }

    fn reset(&mut self) {
        let mut record = lock(&self.record);
        assert!(!record.running, "contract 6: reset only when stopped");
        record.events.push(Event::Reset);
    }

    /// As an entropy source, which has nothing of its own to save.
    fn save(&self) -> DeviceState {
        assert!(!lock(&self.record).running, "contract 9: save only when stopped");
        DeviceState::Entropy(RngState::default())
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        let record = lock(&self.record);
        assert!(!record.running && record.events.is_empty(), "contract 9: restore only as new");
        assert_eq!(state, DeviceState::Entropy(RngState::default()), "the transport passes the state on");
        Ok(())
    }
}
