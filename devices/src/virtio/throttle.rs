//! A queue's place in its limiter: the timer that it sleeps on.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::worker::Source;
use crate::limit::{Admission, Flow, Limiter, Member};

/// Asks the limiter for one queue.
pub(super) struct Throttle {
    member: Member,
    timer: TimerFd,
    /// Since when the queue waits.
    waiting: Option<Instant>,
    /// How long it has waited before, as far as that is not counted yet.
    waited: Duration,
    /// It has asked since [`Self::settle`].
    asked: bool,
}

impl Throttle {
    pub(super) fn new(limiter: &Arc<Limiter>) -> io::Result<Self> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Self { member: limiter.join()?, timer, waiting: None, waited: Duration::ZERO, asked: false })
    }

    /// What wakes a queue that has to wait.
    pub(super) fn sources(&self) -> [Source; 2] {
        [Source::Edge(self.timer.as_raw_fd()), Source::Edge(self.member.wake_fd())]
    }

    /// Whether there is a limit now.
    pub(super) fn is_limited(&self) -> bool {
        self.member.is_limited()
    }

    /// Whether a request may begin now. If not, a source fires when it is worth asking again.
    pub(super) fn admit(&mut self, flow: Flow, bytes: u64) -> bool {
        self.asked = true;
        match self.member.admit(flow, bytes) {
            Admission::Granted => {
                self.end_waiting();
                return true;
            }
            Admission::After(wait) => {
                self.timer.reset(wait, None).expect("a timer takes any time from a nanosecond to centuries");
            }
            Admission::InLine => {}
        }
        self.waiting.get_or_insert_with(Instant::now);
        false
    }

    /// Adds to a counter of nanoseconds what the queue has waited since it was counted last, up to the end of a wait.
    pub(super) fn count_waits(&mut self, counter: &AtomicU64) {
        let waited = std::mem::take(&mut self.waited);
        if !waited.is_zero() {
            counter.fetch_add(u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// Whether a request that can wait no longer, since the queue stops, may begin on credit.
    pub(super) fn borrow(&mut self, flow: Flow, bytes: u64) -> bool {
        self.stop();
        self.member.borrow(flow, bytes)
    }

    /// A request that was admitted did not happen.
    pub(super) fn give_back(&self, flow: Flow, bytes: u64) {
        self.member.give_back(flow, bytes);
    }

    /// A wake ends. What the queue waited for and did not ask for again has gone another way, refused or lost or changed by
    /// the driver: others need not wait for it.
    pub(super) fn settle(&mut self) {
        if !std::mem::take(&mut self.asked) {
            self.stop();
        }
    }

    /// The queue stops: others need not wait for it.
    pub(super) fn stop(&mut self) {
        if self.waiting.is_some() {
            self.end_waiting();
            self.member.give_up();
            self.timer.clear().expect("a timer can be stopped");
        }
    }

    fn end_waiting(&mut self) {
        self.waited += self.waiting.take().map(|since| since.elapsed()).unwrap_or_default();
    }
}
