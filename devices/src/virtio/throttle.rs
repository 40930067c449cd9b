//! A queue's place in its limiter: the timer that it sleeps on.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::timerfd::TimerFd;

use super::worker::Source;
use crate::limit::{Admission, Flow, Limiter, Member};

/// Asks the limiter for one queue.
pub(super) struct Throttle {
    member: Member,
    timer: TimerFd,
    waiting: bool,
    /// It has asked since [`Self::settle`].
    asked: bool,
}

impl Throttle {
    pub(super) fn new(limiter: &Arc<Limiter>) -> io::Result<Self> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Self { member: limiter.join()?, timer, waiting: false, asked: false })
    }

    /// What wakes a queue that has to wait.
    pub(super) fn sources(&self) -> [Source; 2] {
        [Source::Edge(self.timer.as_raw_fd()), Source::Edge(self.member.wake_fd())]
    }

    /// Whether a request may begin now. If not, a source fires when it is worth asking again.
    pub(super) fn admit(&mut self, flow: Flow, bytes: u64) -> bool {
        self.asked = true;
        match self.member.admit(flow, bytes) {
            Admission::Granted => self.waiting = false,
            Admission::After(wait) => {
                self.waiting = true;
                self.timer.reset(wait, None).expect("a timer takes any time from a nanosecond to centuries");
            }
            Admission::InLine => self.waiting = true,
        }
        !self.waiting
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
    /// the driver: others need not wait for it. Returns whether the queue waits.
    pub(super) fn settle(&mut self) -> bool {
        if !std::mem::take(&mut self.asked) {
            self.stop();
        }
        self.waiting
    }

    /// The queue stops: others need not wait for it.
    pub(super) fn stop(&mut self) {
        if std::mem::take(&mut self.waiting) {
            self.member.give_up();
            self.timer.clear().expect("a timer can be stopped");
        }
    }
}
