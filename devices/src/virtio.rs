//! What faces the guest over virtio: a device never sees a register, a transport never sees a descriptor.
//!
//! | who | runs on | may touch rings |
//! | --- | --- | --- |
//! | [`transport`] | the vCPU that touches a register, or the machine's owner | never |
//! | a [`VirtioDevice`] | as the transport, with its lock held | never |
//! | a [`worker::Worker`] | its I/O thread | its own |

pub(crate) mod abi;
pub mod balloon;
pub mod blk;
mod buffers;
mod counters;
mod exhaustion;
mod features;
mod linger;
pub mod mem;
pub mod net;
pub mod queue;
pub mod rng;
mod state;
mod throttle;
pub mod transport;
mod voice;
pub mod worker;

use std::io;
use std::sync::Arc;

use arch::GuestMemory;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

pub use buffers::GuestBuffers;
pub use counters::DeviceCounters;
pub use features::FeatureSet;
use queue::{QueueState, ReadyQueue};
pub use state::{DeviceState, RestoreError};
use transport::Interrupt;
use worker::Holding;

/// What kind of device it is (virtio 1.3 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceType {
    /// Network card.
    Network = 1,
    /// Block device.
    Block = 2,
    /// Entropy source.
    Entropy = 4,
    /// Memory balloon.
    Balloon = 5,
    /// Memory that comes and goes.
    Memory = 24,
}

impl DeviceType {
    /// The number in the specification.
    pub fn id(self) -> u32 {
        match self {
            Self::Network => 1,
            Self::Block => 2,
            Self::Entropy => 4,
            Self::Balloon => 5,
            Self::Memory => 24,
        }
    }
}

/// What a device is, for as long as it exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The kind of device.
    pub device_type: DeviceType,
    /// The device's own feature bits and those of the queue. VERSION_1 is the transport's to add.
    pub features: u64,
    /// The most entries of each queue, a power of two each.
    pub queue_sizes: Vec<u16>,
}

/// What a device gets when the driver says that it is ready.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory, which stays as it is until [`VirtioDevice::stop`].
    pub memory: Arc<GuestMemory>,
    /// The negotiated features: offered ones only, VERSION_1 among them.
    pub features: u64,
    /// The queues that the driver set up, in order of their index; some may be missing.
    pub queues: Vec<ActiveQueue>,
    /// The device's voice.
    pub interrupt: Arc<Interrupt>,
}

/// A queue that a device may serve.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The queue.
    pub ring: ReadyQueue,
    /// Signalled when the driver made chains available. Its count means nothing.
    pub doorbell: EventFd,
}

/// Why a device cannot start. The guest sees DEVICE_NEEDS_RESET.
#[derive(Debug, Error)]
pub enum StartError {
    /// The driver did not set up a queue that the device cannot do without.
    #[error("queue {0} is not set up")]
    QueueMissing(u16),
    /// The I/O thread cannot take the worker.
    #[error("cannot attach to the I/O thread")]
    Attach(#[source] io::Error),
    /// The backend does not take what was negotiated.
    #[error("cannot set the backend up for the driver")]
    Backend(#[source] io::Error),
}

/// A virtio device, behind a transport. The contract:
///
/// 1. [`Self::identity`] never changes.
/// 2. A device is stopped when it is made. It touches guest memory and interrupts only between [`Self::start`] and
///    [`Self::stop`].
/// 3. [`Self::start`] is called only on a stopped device, and with queues that were checked. After an error from it
///    the device is stopped.
/// 4. [`Self::stop`] returns when all that was in flight is complete and published, the I/O thread holds nothing of
///    the device any more, and nobody will write to guest memory. Its result is where each queue has come to, by
///    index. On a stopped device it does nothing and returns nothing.
/// 5. Pause, snapshot, unplug and reset are all `stop`: a stopped device started again with the states that `stop`
///    returned goes on as if nothing had been.
/// 6. [`Self::reset`] is called only on a stopped device, and makes it as new.
/// 7. What a guest does wrong is never an error here: it gets a status, or its queue is retired through
///    [`Interrupt::needs_reset`].
/// 8. [`Self::read_config`] and [`Self::write_config`] take any offset and length. What is outside the configuration
///    space reads 0 and takes no writes.
/// 9. [`Self::save`] and [`Self::restore`] are called only on a stopped device, the latter only on one that is as new. A
///    device that took over another's state and starts with the queue states that the other's `stop` returned goes on
///    as the other would have.
pub trait VirtioDevice: Send {
    /// What the device is.
    fn identity(&self) -> &Identity;

    /// Reads `data.len()` bytes of the configuration space.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to the configuration space.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Begins to serve the queues.
    ///
    /// # Errors
    /// What keeps it from that, which is the host's fault or a queue left out.
    fn start(&mut self, activation: Activation) -> Result<(), StartError>;

    /// Lets nothing new begin that may wait for the host, until [`Self::release`] or [`Self::stop`]. When all that is
    /// returned has come, nothing is in flight, the device's I/O threads answer, and [`Self::stop`] is quick: who must not
    /// wait for the host asks each device first, since a thread may be held up by another's.
    fn hold(&self) -> Vec<Holding>;

    /// Undoes [`Self::hold`].
    fn release(&self);

    /// Stops serving, and returns where each queue has come to.
    fn stop(&mut self) -> Vec<(u16, QueueState)>;

    /// Forgets all that a driver ever did.
    fn reset(&mut self);

    /// What the device has come to, beside its queues.
    fn save(&self) -> DeviceState;

    /// Takes over what another device of its kind had come to.
    ///
    /// # Errors
    /// [`RestoreError`]; then the device is good only for being dropped.
    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError>;
}

/// Reads from a configuration space held as bytes, as [`VirtioDevice::read_config`] should.
pub(crate) fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Some(rest) = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)) else {
        return;
    };
    let len = rest.len().min(data.len());
    data[..len].copy_from_slice(&rest[..len]);
}
