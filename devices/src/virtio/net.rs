//! The network device (virtio 1.3 §5.1), one pair of queues.
//!
//! [`Net`] is the device behind the transport. While it runs, each queue has its own worker on the I/O thread:
//! `receive` fills the driver's buffers with frames, `transmit` sends those that the driver has filled.

mod counters;
mod features;
mod filter;
mod frames;
mod header;
mod link;
mod pair;
mod receive;
#[cfg(test)]
mod tests;
mod transmit;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_net::{VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

pub use counters::{DirectionCounters, NetCounters};
pub use filter::SourceFilter;
pub use frames::{ReceiveRoom, TransmitFrame};
pub(crate) use header::HEADER_BYTES;
use link::Link;
pub use link::{LinkState, NetControl};
pub use pair::NetQueue;
use pair::Pair;

use super::queue::{QueueError, QueueState};
use super::transport::Interrupt;
use super::{Activation, ActiveQueue, DeviceType, Identity, StartError, VirtioDevice, read_config_bytes};
use crate::backend::net::{NetBackend, Offloads};
use crate::fault::FaultLog;
use crate::limit::Limiter;

const QUEUE_SIZE: u16 = 256;

/// Offsets in the configuration space (virtio 1.3 §5.1.4).
const CONFIG_BYTES: usize = 12;
const CONFIG_MAC: usize = 0;
const CONFIG_STATUS: usize = 6;
const CONFIG_MTU: usize = 10;

/// Bytes of an Ethernet address.
pub const MAC_BYTES: usize = 6;

/// The smallest MTU of a device: what IPv4 asks of every link (RFC 791).
pub const MTU_MIN: u16 = 68;

/// How a network device presents itself.
#[derive(Clone, Debug, Default)]
pub struct NetOptions {
    /// Its address. Without one the guest chooses its own.
    pub mac: Option<[u8; MAC_BYTES]>,
    /// The largest packet of an untagged frame, in bytes, at least [`MTU_MIN`]. Without one the guest is told nothing.
    pub mtu: Option<u16>,
    /// What the frames that it sends may say of their source. Without one they say what they like.
    pub filter: Option<Arc<SourceFilter>>,
    /// What all its queues are held to.
    pub limiter: Option<Arc<Limiter>>,
}

/// A virtio network device.
pub struct Net {
    identity: Identity,
    options: NetOptions,
    pairs: Vec<Pair>,
    counters: Arc<NetCounters>,
    link: Arc<Link>,
    log: FaultLog,
}

/// What a worker needs beside its queue.
struct Ends {
    log: FaultLog,
    features: u64,
    backend: Arc<dyn NetBackend>,
    interrupt: Arc<Interrupt>,
    link: Arc<Link>,
    counters: Arc<NetCounters>,
    mtu: Option<u16>,
    filter: Option<Arc<SourceFilter>>,
    /// The number of the pair.
    pair: usize,
}

impl Net {
    /// A network device, `id` in the log, with one pair of queues.
    ///
    /// # Errors
    /// No descriptor is left for the limiter's timers or the link's events.
    pub fn new(id: &str, queue: NetQueue, options: NetOptions) -> io::Result<Self> {
        let identity = Identity {
            device_type: DeviceType::Network,
            features: features::offered(queue.backend.offloads(), &options),
            queue_sizes: vec![QUEUE_SIZE; 2],
        };
        let pairs = vec![Pair::new(queue, options.limiter.as_ref())?];
        let link = Arc::new(Link::new(pairs.len())?);
        let log = FaultLog::new(id);
        Ok(Self { identity, options, pairs, counters: Arc::default(), link, log })
    }

    /// What happens in the device.
    pub fn counters(&self) -> Arc<NetCounters> {
        Arc::clone(&self.counters)
    }

    /// The device for the machine's owner.
    pub fn control(&self) -> NetControl {
        NetControl { link: Arc::clone(&self.link), counters: self.counters() }
    }

    fn backend(&self) -> &dyn NetBackend {
        &*self.pairs[0].queue.backend
    }
}

impl VirtioDevice for Net {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_BYTES];
        let mut put = |offset: usize, bytes: &[u8]| config[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(CONFIG_MAC, &self.options.mac.unwrap_or_default());
        put(CONFIG_STATUS, &self.link.status().to_le_bytes());
        put(CONFIG_MTU, &self.options.mtu.unwrap_or_default().to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    /// With VERSION_1 the address is the device's to say (virtio 1.3 §5.1.4).
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation { features, queues, interrupt, .. } = activation;
        let mut queues = queues.into_iter();
        let mut take = |index| queues.find(|queue| queue.ring.index() == index).ok_or(StartError::QueueMissing(index));
        let queues = [take(0)?, take(1)?];
        self.backend().set_offloads(features::offloads(features)).map_err(StartError::Backend)?;
        self.link.mend();
        let pair = &mut self.pairs[0];
        let ends = Ends {
            log: self.log.clone(),
            features,
            backend: Arc::clone(&pair.queue.backend),
            interrupt: Arc::clone(&interrupt),
            link: Arc::clone(&self.link),
            counters: Arc::clone(&self.counters),
            mtu: self.options.mtu.filter(|_| features & (1 << VIRTIO_NET_F_MTU) != 0),
            filter: self.options.filter.clone(),
            pair: 0,
        };
        if let Err(error) = pair.start(queues, &ends) {
            self.stop();
            return Err(error);
        }
        if features & (1 << VIRTIO_NET_F_STATUS) != 0 {
            self.link.started(interrupt);
        }
        Ok(())
    }

    fn stop(&mut self) -> Vec<(u16, QueueState)> {
        self.link.stopped();
        let states = self.pairs.iter_mut().flat_map(Pair::stop);
        (0..).zip(states).filter_map(|(index, state)| Some((index, state?))).collect()
    }

    /// Frames that come from now on are for a driver that may know nothing.
    fn reset(&mut self) {
        self.link.reset();
        if let Err(error) = self.backend().set_offloads(Offloads::default()) {
            self.log.report(format_args!("cannot clear offloads: {error}"));
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
