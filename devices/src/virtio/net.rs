//! The network device (virtio 1.3 §5.1), one pair of queues.
//!
//! [`Net`] is the device behind the transport. While it runs, each queue has its own worker on the I/O thread:
//! `receive` fills the driver's buffers with frames, `transmit` sends those that the driver has filled.

mod counters;
mod features;
mod frames;
mod header;
mod receive;
#[cfg(test)]
mod tests;
mod transmit;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_net::VIRTIO_NET_F_STATUS;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

pub use counters::{DirectionCounters, NetCounters};
pub use frames::{ReceiveRoom, TransmitFrame};
pub(crate) use header::HEADER_BYTES;
use receive::ReceiveWorker;
use transmit::TransmitWorker;

use super::abi::NET_LINK_UP;
use super::queue::{QueueError, QueueState};
use super::transport::Interrupt;
use super::worker::{AttachError, Attachment, IoThreadHandle, Worker};
use super::{Activation, ActiveQueue, DeviceType, Identity, StartError, VirtioDevice, read_config_bytes};
use crate::backend::net::{NetBackend, Offloads};
use crate::fault::FaultLog;

const RECEIVE_QUEUE: u16 = 0;
const TRANSMIT_QUEUE: u16 = 1;
const QUEUE_SIZE: u16 = 256;

/// Offsets in the configuration space (virtio 1.3 §5.1.4).
const CONFIG_BYTES: usize = 8;
const CONFIG_MAC: usize = 0;
const CONFIG_STATUS: usize = 6;

/// Bytes of an Ethernet address.
pub const MAC_BYTES: usize = 6;

/// A virtio network device.
pub struct Net {
    identity: Identity,
    mac: Option<[u8; MAC_BYTES]>,
    backend: Arc<dyn NetBackend>,
    thread: IoThreadHandle,
    counters: Arc<NetCounters>,
    link: Arc<Link>,
    run: Option<Running>,
    log: FaultLog,
}

/// The workers, in the order in which they are started and stopped.
struct Running {
    receive: Attachment<ReceiveWorker>,
    transmit: Attachment<TransmitWorker>,
}

/// What both workers and the device share. The wire is up until the backend turns out to be gone.
struct Link {
    up: AtomicBool,
}

/// What a worker needs beside its queue.
struct Ends {
    log: FaultLog,
    features: u64,
    backend: Arc<dyn NetBackend>,
    interrupt: Arc<Interrupt>,
    link: Arc<Link>,
    counters: Arc<NetCounters>,
}

impl Net {
    /// A network device over `backend`, `id` in the log, whose queues are served on `thread`. Without a `mac` the guest
    /// chooses its own address.
    pub fn new(id: &str, mac: Option<[u8; MAC_BYTES]>, backend: Arc<dyn NetBackend>, thread: IoThreadHandle) -> Self {
        let identity = Identity {
            device_type: DeviceType::Network,
            features: features::offered(backend.offloads(), mac.is_some()),
            queue_sizes: vec![QUEUE_SIZE; 2],
        };
        let log = FaultLog::new(id);
        let link = Arc::new(Link { up: AtomicBool::new(true) });
        Self { identity, mac, backend, thread, counters: Arc::default(), link, run: None, log }
    }

    /// What happens in the device.
    pub fn counters(&self) -> Arc<NetCounters> {
        Arc::clone(&self.counters)
    }

    fn attach<W: Worker>(&self, worker: W) -> Result<Attachment<W>, StartError> {
        self.thread.attach(worker).map_err(|AttachError { error, .. }| StartError::Attach(error))
    }
}

impl VirtioDevice for Net {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_BYTES];
        config[CONFIG_MAC..CONFIG_MAC + MAC_BYTES].copy_from_slice(&self.mac.unwrap_or_default());
        let status = if self.link.up.load(Ordering::Relaxed) { NET_LINK_UP } else { 0 };
        config[CONFIG_STATUS..CONFIG_STATUS + 2].copy_from_slice(&status.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    /// With VERSION_1 the address is the device's to say (virtio 1.3 §5.1.4).
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation { features, queues, interrupt, .. } = activation;
        let mut queues = queues.into_iter();
        let mut take = |index| queues.find(|queue| queue.ring.index() == index).ok_or(StartError::QueueMissing(index));
        let (receive, transmit) = (take(RECEIVE_QUEUE)?, take(TRANSMIT_QUEUE)?);
        self.backend.set_offloads(features::offloads(features)).map_err(StartError::Backend)?;
        self.link.up.store(true, Ordering::Relaxed);
        let ends = Ends {
            log: self.log.clone(),
            features,
            backend: Arc::clone(&self.backend),
            interrupt,
            link: Arc::clone(&self.link),
            counters: Arc::clone(&self.counters),
        };
        let receive = self.attach(ReceiveWorker::new(receive, &ends))?;
        match self.attach(TransmitWorker::new(transmit, &ends)) {
            Ok(transmit) => self.run = Some(Running { receive, transmit }),
            Err(error) => {
                receive.detach();
                return Err(error);
            }
        }
        Ok(())
    }

    fn stop(&mut self) -> Vec<(u16, QueueState)> {
        let Some(Running { receive, transmit }) = self.run.take() else { return Vec::new() };
        let (receive, transmit) = (receive.detach(), transmit.detach());
        vec![(RECEIVE_QUEUE, receive.queue_state()), (TRANSMIT_QUEUE, transmit.queue_state())]
    }

    /// Frames that come from now on are for a driver that may know nothing.
    fn reset(&mut self) {
        self.link.up.store(true, Ordering::Relaxed);
        if let Err(error) = self.backend.set_offloads(Offloads::default()) {
            self.log.report(format_args!("cannot clear offloads: {error}"));
        }
    }
}

impl Link {
    /// The backend is gone: the driver hears of it, once, if it wants to.
    fn cut(&self, features: u64, interrupt: &Interrupt) {
        let was_up = self.up.swap(false, Ordering::Relaxed);
        if was_up && features & (1 << VIRTIO_NET_F_STATUS) != 0 {
            interrupt.config_changed();
        }
    }
}

/// When a worker shows the driver what it has used so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Publishing {
    /// At the end of a wake, since each time may interrupt.
    Late,
    /// While there is more to do, so that the driver works at the same time: its event index keeps interrupts few.
    Early,
}

impl Publishing {
    fn new(features: u64) -> Self {
        if features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0 { Self::Early } else { Self::Late }
    }
}

/// Shows the driver what was used, and interrupts if it wants that.
fn publish(queue: &mut ActiveQueue, interrupt: &Interrupt) {
    if queue.ring.publish() {
        interrupt.queue_used();
    }
}

/// The driver broke its ring: nothing is popped any more.
fn retire(counters: &NetCounters, log: &FaultLog, interrupt: &Interrupt, error: QueueError) {
    counters.retired_queues.fetch_add(1, Ordering::Relaxed);
    log.report(format_args!("queue retired: {error}"));
    interrupt.needs_reset();
}
