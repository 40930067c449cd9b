//! The network device (virtio 1.3 §5.1): pairs of queues, and a control queue where there are several.
//!
//! [`Net`] is the device behind the transport. While it runs, each queue has its own worker on the I/O thread of its
//! pair: `receive` fills the driver's buffers with frames, `transmit` sends those that the driver has filled, `control`
//! does what the driver says about how many pairs take part.

mod control;
mod counters;
mod features;
mod filter;
mod frames;
mod header;
mod link;
mod pair;
mod receive;
mod state;
mod steering;
#[cfg(test)]
mod tests;
mod transmit;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use control::ControlWorker;
use counters::Tally;
pub use counters::{NetCounters, NetQueueCounters, PairCounters};
pub use filter::SourceFilter;
pub use frames::{ReceiveRoom, TransmitFrame};
pub(crate) use header::HEADER_BYTES;
use link::Link;
pub use link::{LinkState, NetControl};
pub use pair::NetQueue;
use pair::{Lane, Pair};
pub use state::NetState;
use steering::Steering;

use super::queue::{QueueError, QueueState};
use super::transport::Interrupt;
use super::worker::Holding;
use super::{
    Activation, ActiveQueue, DeviceState, DeviceType, Identity, RestoreError, StartError, VirtioDevice,
    read_config_bytes,
};
use crate::backend::net::{NetBackend, Offloads};
use crate::fault::FaultLog;
use crate::limit::Limiter;
use crate::state::SaveState;
use crate::virtio::throttle::Throttle;

const QUEUE_SIZE: u16 = 256;

/// Offsets in the configuration space (virtio 1.3 §5.1.4).
const CONFIG_BYTES: usize = 12;
const CONFIG_MAC: usize = 0;
const CONFIG_STATUS: usize = 6;
const CONFIG_PAIRS_MAX: usize = 8;
const CONFIG_MTU: usize = 10;

/// Bytes of an Ethernet address.
pub const MAC_BYTES: usize = 6;

/// The most pairs of queues of a device: each costs descriptors, of which a process has few.
pub const PAIRS_MAX: usize = 16;

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
    control: Lane<ControlWorker>,
    /// Where the driver has its control queue.
    control_index: u16,
    steering: Arc<Steering>,
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
    steering: Arc<Steering>,
    /// The number of the pair.
    pair: usize,
}

impl Net {
    /// A network device, `id` in the log, with a pair of queues for each of `queues`.
    ///
    /// # Errors
    /// No descriptor is left for the limiter's timers or the device's events, or a backend does not step aside.
    ///
    /// # Panics
    /// If there are no queues, or more than [`PAIRS_MAX`].
    pub fn new(id: &str, queues: Vec<NetQueue>, options: NetOptions) -> io::Result<Self> {
        let count = queues.len();
        assert!((1..=PAIRS_MAX).contains(&count), "a network device has {count} pairs of queues");
        let identity = Identity {
            device_type: DeviceType::Network,
            features: features::offered(queues[0].backend.offloads(), &options) | features::of_pairs(count),
            queue_sizes: vec![QUEUE_SIZE; 2 * count + usize::from(count > 1)],
        };
        queues[1..].iter().try_for_each(|queue| queue.backend.detach())?;
        let pairs = queues.into_iter().map(|queue| Pair::new(queue, options.limiter.as_ref()));
        let pairs = pairs.collect::<io::Result<Vec<_>>>()?;
        let link = Arc::new(Link::new(count)?);
        let changes = (count > 1).then(|| Throttle::new(&control::limiter())).transpose()?;
        Ok(Self {
            identity,
            options,
            pairs,
            control: Lane::Stopped(changes),
            control_index: control_index(count),
            steering: Arc::new(Steering::new(count, Arc::clone(&link))?),
            counters: Arc::new(NetCounters::new(count)),
            link,
            log: FaultLog::new(id),
        })
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

    fn ends(&self, pair: usize, features: u64, interrupt: &Arc<Interrupt>) -> Ends {
        Ends {
            log: self.log.clone(),
            features,
            backend: Arc::clone(&self.pairs[pair].queue.backend),
            interrupt: Arc::clone(interrupt),
            link: Arc::clone(&self.link),
            counters: Arc::clone(&self.counters),
            mtu: self.options.mtu.filter(|_| features & (1 << VIRTIO_NET_F_MTU) != 0),
            filter: self.options.filter.clone(),
            steering: Arc::clone(&self.steering),
            pair,
        }
    }

    /// Begins to serve the queues that the driver set up, by index: the first pair, those that follow it without a gap,
    /// and the control queue.
    fn serve(
        &mut self,
        mut queues: BTreeMap<u16, ActiveQueue>,
        features: u64,
        interrupt: &Arc<Interrupt>,
    ) -> Result<(), StartError> {
        let has = |bit: u32| features & (1 << bit) != 0;
        // virtio 1.3 §5.1.2: to a driver that knows no more pairs, the control queue is the third.
        let pairs = if has(VIRTIO_NET_F_MQ) { self.pairs.len() } else { 1 };
        self.control_index = control_index(pairs);
        let control = queues.remove(&self.control_index).filter(|_| has(VIRTIO_NET_F_CTRL_VQ));
        let mut backends = Vec::with_capacity(pairs);
        for (pair, first) in (0..pairs).zip((0..).step_by(2)) {
            let mut take = |index| queues.remove(&index).ok_or(StartError::QueueMissing(index));
            match (take(first), take(first + 1)) {
                (Ok(receive), Ok(transmit)) => {
                    let ends = self.ends(pair, features, interrupt);
                    backends.push(Arc::clone(&ends.backend));
                    self.pairs[pair].start([receive, transmit], &ends)?;
                }
                (Err(error), _) | (_, Err(error)) if pair == 0 => return Err(error),
                _ => break,
            }
        }
        if let Some(queue) = control {
            let ends = self.ends(0, features, interrupt);
            let thread = &self.pairs[0].queue.thread;
            self.control.start(thread, |throttle| ControlWorker::new(queue, throttle, backends, &ends))?;
        }
        Ok(())
    }
}

/// The control queue's place behind so many pairs (virtio 1.3 §5.1.2).
fn control_index(pairs: usize) -> u16 {
    u16::try_from(2 * pairs).expect("at most PAIRS_MAX pairs")
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
        if self.pairs.len() > 1 {
            put(CONFIG_PAIRS_MAX, &(control_index(self.pairs.len()) / 2).to_le_bytes());
        }
        put(CONFIG_MTU, &self.options.mtu.unwrap_or_default().to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    /// With VERSION_1 the address is the device's to say (virtio 1.3 §5.1.4).
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn start(&mut self, activation: Activation) -> Result<(), StartError> {
        let Activation { features, queues, interrupt, .. } = activation;
        self.backend().set_offloads(features::offloads(features)).map_err(StartError::Backend)?;
        self.link.mend();
        let queues = queues.into_iter().map(|queue| (queue.ring.index(), queue)).collect();
        if let Err(error) = self.serve(queues, features, &interrupt) {
            self.stop();
            return Err(error);
        }
        if features & (1 << VIRTIO_NET_F_STATUS) != 0 {
            self.link.started(interrupt);
        }
        Ok(())
    }

    fn hold(&self) -> Vec<Holding> {
        self.pairs.iter().flat_map(Pair::hold).chain(self.control.hold()).collect()
    }

    fn release(&self) {
        self.pairs.iter().for_each(Pair::release);
        self.control.release();
    }

    fn stop(&mut self) -> Vec<(u16, QueueState)> {
        self.link.stopped();
        let control = self.control.stop().map(|state| (self.control_index, state));
        let states = self.pairs.iter_mut().flat_map(Pair::stop);
        let states = (0..).zip(states).filter_map(|(index, state)| Some((index, state?))).chain(control).collect();
        self.steering.settle();
        states
    }

    /// Frames that come from now on are for a driver that may know nothing.
    fn reset(&mut self) {
        self.link.reset();
        for pair in &self.pairs[1..self.steering.active()] {
            if let Err(error) = pair.queue.backend.detach() {
                self.log.report(format_args!("cannot detach a queue: {error}"));
            }
        }
        self.steering.activate(1);
        self.steering.settle();
        if let Err(error) = self.backend().set_offloads(Offloads::default()) {
            self.log.report(format_args!("cannot clear offloads: {error}"));
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Network(SaveState::save(self))
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Network(state) => SaveState::restore(self, state),
            other => Err(RestoreError::of_another_kind(&other, self.identity.device_type)),
        }
    }
}

/// When a worker tells the driver of what it has used so far.
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

/// Counts a batch and what its queue waited for, before the driver can see it: who hears from it of a frame finds that counted.
fn count(counters: &NetQueueCounters, tally: &mut Tally, throttle: &mut Option<Throttle>) {
    if let Some(throttle) = throttle {
        throttle.count_waits(&counters.throttled_ns);
    }
    tally.flush(counters);
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
