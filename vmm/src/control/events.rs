//! What the machine's threads tell the control loop: a queue and the eventfd that wakes it.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use devices::MachineRequest;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::snapshot::MakerEvent;
use crate::vcpu::Crash;

/// Something that happened in the machine.
#[derive(Debug)]
pub enum GuestEvent {
    /// A vCPU cannot go on.
    Crashed(Box<Crash>),
    /// The guest asked, through a device, for something that the whole machine does.
    Request(MachineRequest),
    /// A thread or memory is not where it was asked to be.
    Drifted {
        /// What.
        what: String,
    },
    /// Guest memory comes no more, for this reason.
    MemoryLost(String),
    /// The maker of a snapshot is so far.
    Snapshot(MakerEvent),
    /// The HugePage pool has no page for what the guest takes out of its balloon, or plugs.
    PoolExhausted,
    /// A disk's file system or device has no space for a write, and its user wants the machine to wait for some.
    DiskFull {
        /// The disk.
        id: String,
    },
}

/// The sending end; any thread of the machine has a clone.
#[derive(Debug, Clone)]
pub struct EventSender {
    queue: Sender<GuestEvent>,
    wake: Arc<EventFd>,
}

/// The control loop's end.
#[derive(Debug)]
pub struct EventReceiver {
    queue: Receiver<GuestEvent>,
    wake: Arc<EventFd>,
}

/// A queue of events.
///
/// # Errors
/// The host gives no eventfd.
pub fn event_queue() -> io::Result<(EventSender, EventReceiver)> {
    let (sender, receiver) = channel();
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    Ok((EventSender { queue: sender, wake: Arc::clone(&wake) }, EventReceiver { queue: receiver, wake }))
}

impl EventSender {
    /// Queues an event and wakes the control loop. Never blocks; after the control loop has ended, nothing happens.
    pub fn send(&self, event: GuestEvent) {
        if self.queue.send(event).is_ok() {
            // It can only fail by the counter's overflow, and then the loop is awake already.
            let _ = self.wake.write(1);
        }
    }
}

impl EventReceiver {
    /// The descriptor that is readable while there may be events.
    #[must_use]
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// The oldest event, if there is one.
    #[must_use]
    pub fn next(&self) -> Option<GuestEvent> {
        self.queue.try_recv().ok()
    }
}
