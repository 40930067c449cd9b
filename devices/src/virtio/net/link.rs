//! The wire: whether frames go over it, which the machine's owner and the backend decide, and the driver is told.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use super::NetCounters;
use crate::bus::lock;
use crate::virtio::abi::NET_LINK_UP;
use crate::virtio::transport::Interrupt;
use crate::virtio::voice::{Changed, ConfigVoice, News};

/// The shortest time of a timer, which none at all would stop.
const AT_ONCE: Duration = Duration::from_nanos(1);

/// Whether a network device's cable is plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// It is.
    Up,
    /// It is not: frames of either direction are lost, and counted as dropped.
    Down,
}

/// A network device that is in use, for the machine's owner.
#[derive(Clone, Debug)]
pub struct NetControl {
    pub(super) link: Arc<Link>,
    pub(super) counters: Arc<NetCounters>,
}

/// What the workers, the device and its owner share.
#[derive(Debug)]
pub(super) struct Link {
    plugged: AtomicBool,
    /// Until the backend turns out to be gone.
    backed: AtomicBool,
    voice: ConfigVoice,
    /// One for each receive queue, which may be asleep while frames come that must be lost, or until it tries again.
    wakes: Vec<Mutex<TimerFd>>,
}

impl NetControl {
    /// Plugs the cable in, or out, and tells the driver.
    pub fn set_link(&self, state: LinkState) {
        self.link.plug(state);
    }

    /// Whether frames go through: the cable is plugged in, and the backend is there.
    pub fn link(&self) -> LinkState {
        if self.link.status() == NET_LINK_UP { LinkState::Up } else { LinkState::Down }
    }

    /// What happens in the device.
    pub fn counters(&self) -> &NetCounters {
        &self.counters
    }
}

impl Link {
    /// A link that is up, of a device of so many receive queues.
    pub(super) fn new(queues: usize) -> io::Result<Self> {
        let wakes = (0..queues).map(|_| Ok(Mutex::new(TimerFd::new()?))).collect::<io::Result<_>>()?;
        Ok(Self { plugged: AtomicBool::new(true), backed: AtomicBool::new(true), voice: ConfigVoice::new(), wakes })
    }

    /// The field of the configuration space (virtio 1.3 §5.1.4).
    pub(super) fn status(&self) -> u16 {
        let up = self.is_plugged() && self.backed.load(Ordering::Relaxed);
        if up { NET_LINK_UP } else { 0 }
    }

    /// Asked for every frame. A flag alone: whoever sees the old one is as good as a moment earlier.
    pub(super) fn is_plugged(&self) -> bool {
        self.plugged.load(Ordering::Relaxed)
    }

    /// Signalled, for the receive queue of that pair, when the cable was plugged in or out, or by [`Self::wake`] and
    /// [`Self::wake_after`].
    pub(super) fn wake_fd(&self, pair: usize) -> RawFd {
        lock(&self.wakes[pair]).as_raw_fd()
    }

    fn plug(&self, state: LinkState) {
        self.change(|| self.plugged.store(state == LinkState::Up, Ordering::Relaxed));
        (0..self.wakes.len()).for_each(|pair| self.wake(pair));
    }

    /// Wakes the receive queue of a pair.
    pub(super) fn wake(&self, pair: usize) {
        self.wake_after(pair, AT_ONCE);
    }

    /// As [`Self::wake`], so much later. Of two the last one counts: who asks for a late one is the queue itself, and finds
    /// then what the other was for.
    pub(super) fn wake_after(&self, pair: usize, wait: Duration) {
        lock(&self.wakes[pair]).reset(wait, None).expect("a timer takes any time from a nanosecond to centuries");
    }

    /// The backend is gone.
    pub(super) fn cut(&self) {
        self.change(|| self.backed.store(false, Ordering::Relaxed));
    }

    /// The backend is tried again: by a driver that starts, and reads the status anyway.
    pub(super) fn mend(&self) {
        self.backed.store(true, Ordering::Relaxed);
    }

    fn change(&self, make: impl FnOnce()) {
        self.voice.tell(|| {
            let before = self.status();
            make();
            if self.status() == before { Changed::No } else { Changed::Yes }
        });
    }

    /// The device runs, for a driver that wants to hear of the link.
    pub(super) fn started(&self, interrupt: Arc<Interrupt>) {
        self.voice.started(interrupt);
    }

    pub(super) fn stopped(&self) {
        self.voice.stopped();
    }

    /// Whether the driver has yet to be told.
    pub(super) fn news(&self) -> News {
        self.voice.news()
    }

    /// Is as another one was.
    pub(super) fn inherit(&self, state: LinkState, news: News) {
        self.plugged.store(state == LinkState::Up, Ordering::Relaxed);
        self.voice.inherit(news);
    }

    pub(super) fn reset(&self) {
        self.voice.reset();
        self.mend();
    }
}
