//! Rates that a device may not exceed.
//!
//! A [`Limiter`] holds the buckets, for one device or for a group of them. Each queue is a [`Member`]: it asks before
//! it begins a request, and if it has to wait it stops popping and sleeps. Members that wait for the same bucket are
//! served in the order in which they began to, so a large request is not overtaken for ever; a flow that waits for its
//! own limit does not hold up the other. Nobody who asks is a vCPU.

mod bucket;
mod line;
mod state;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::lock;
pub(crate) use bucket::Bucket;
pub use bucket::Rate;
use line::{Lack, Line, MemberId};
pub use state::{LevelError, LimiterState};

/// Which way a request's bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// To the guest: reads, received frames.
    In,
    /// From the guest: writes, sent frames, and what moves no bytes.
    Out,
}

/// What one kind of requests is held to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub bytes: Option<Rate>,
    /// Requests.
    pub operations: Option<Rate>,
}

/// What a limiter holds its members to. A request is held to all that apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimiterConfig {
    /// Of both flows together.
    pub total: Limits,
    /// Of [`Flow::In`].
    pub inward: Limits,
    /// Of [`Flow::Out`].
    pub outward: Limits,
}

impl LimiterConfig {
    /// Nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// May a request begin?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may, and is accounted for.
    Granted,
    /// Ask again after so long.
    After(Duration),
    /// Ask again when [`Member::wake_fd`] is signalled: others came first.
    InLine,
}

/// The buckets of a device or of a group.
#[derive(Debug)]
pub struct Limiter {
    clock: Clock,
    /// There are limits: without, nobody needs the lock.
    limited: AtomicBool,
    state: Mutex<State>,
}

/// Where a limiter's time comes from.
#[derive(Debug)]
enum Clock {
    /// The time since then.
    Host(Instant),
    /// A test's hand sets it, in nanoseconds.
    #[cfg(test)]
    Hand(Arc<std::sync::atomic::AtomicU64>),
}

#[derive(Debug)]
struct State {
    buckets: Buckets,
    members: Vec<(MemberId, Weak<EventFd>)>,
    line: Line,
    next_id: u64,
}

/// The buckets of one [`Limits`].
#[derive(Debug)]
struct Pair {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

/// Why a request cannot begin.
struct Shortage {
    wait_ns: u64,
    lack: Lack,
}

#[derive(Debug)]
struct Buckets {
    total: Pair,
    inward: Pair,
    outward: Pair,
}

/// A queue that is held to a limiter.
#[derive(Debug)]
pub struct Member {
    limiter: Arc<Limiter>,
    id: MemberId,
    wake: Arc<EventFd>,
}

impl Limiter {
    /// A limiter whose buckets are full.
    pub fn new(config: LimiterConfig) -> Arc<Self> {
        Self::by(Clock::Host(Instant::now()), config)
    }

    /// As [`Self::new`], by a clock that stands still between what a test adds to it. Timers do not: who is woken early asks
    /// again.
    #[cfg(test)]
    pub(crate) fn by_hand(now_ns: &Arc<std::sync::atomic::AtomicU64>, config: LimiterConfig) -> Arc<Self> {
        Self::by(Clock::Hand(Arc::clone(now_ns)), config)
    }

    fn by(clock: Clock, config: LimiterConfig) -> Arc<Self> {
        let state = State { buckets: Buckets::new(config), members: Vec::new(), line: Line::default(), next_id: 0 };
        let limited = AtomicBool::new(!config.is_unlimited());
        Arc::new(Self { clock, limited, state: Mutex::new(state) })
    }

    /// Replaces the limits. The buckets are full again, and all who wait ask again.
    pub fn change(&self, config: LimiterConfig) {
        let mut state = lock(&self.state);
        state.buckets = Buckets::new(config);
        // A flag alone: who sees the old one asks a moment earlier. Who waits is told below.
        self.limited.store(!config.is_unlimited(), Ordering::Relaxed);
        state.line.all().for_each(|waiting| state.nudge(waiting));
        if config.is_unlimited() {
            // Nobody will come to leave the line.
            state.line.clear();
        }
    }

    /// Lets a queue join.
    ///
    /// # Errors
    /// That of its eventfd.
    pub fn join(self: &Arc<Self>) -> io::Result<Member> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let mut state = lock(&self.state);
        let id = MemberId(state.next_id);
        state.next_id += 1;
        state.members.push((id, Arc::downgrade(&wake)));
        Ok(Member { limiter: Arc::clone(self), id, wake })
    }

    /// How many members wait in line.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.state).line.all().count()
    }

    fn now_ns(&self) -> u64 {
        match &self.clock {
            // 584 years.
            Clock::Host(start) => u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
            #[cfg(test)]
            Clock::Hand(now_ns) => now_ns.load(Ordering::Relaxed),
        }
    }
}

impl Member {
    /// Whether there is a limit now. There may be one, or none any more, at any time.
    pub fn is_limited(&self) -> bool {
        self.limiter.limited.load(Ordering::Relaxed)
    }

    /// Asks for a request of so many bytes. After anything but [`Admission::Granted`] the member is in line, until it
    /// is granted a request or gives up.
    pub fn admit(&self, flow: Flow, bytes: u64) -> Admission {
        if !self.is_limited() {
            return Admission::Granted;
        }
        let mut state = lock(&self.limiter.state);
        state.admit(self.id, flow, bytes, self.limiter.now_ns())
    }

    /// Lets a request of so many bytes begin that can wait no longer, on credit, and steps out of the line. False if
    /// something is owed already: whoever stops a queue again and again gains one request by it.
    pub fn borrow(&self, flow: Flow, bytes: u64) -> bool {
        let mut state = lock(&self.limiter.state);
        state.leave_line(self.id);
        state.buckets.borrow(flow, bytes, self.limiter.now_ns())
    }

    /// Gives back what a request of so many bytes was granted: it did not happen, and asks again if it still is to.
    pub fn give_back(&self, flow: Flow, bytes: u64) {
        lock(&self.limiter.state).buckets.give_back(flow, bytes);
    }

    /// Steps out of the line: the queue stops.
    pub fn give_up(&self) {
        lock(&self.limiter.state).leave_line(self.id);
    }

    /// Signalled when a member in line should ask again.
    pub fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = lock(&self.limiter.state);
        state.leave_line(self.id);
        state.members.retain(|(id, _)| *id != self.id);
    }
}

impl State {
    fn admit(&mut self, id: MemberId, flow: Flow, bytes: u64, now_ns: u64) -> Admission {
        if self.line.blocks(id, flow) {
            self.line.join(id, flow, None);
            return Admission::InLine;
        }
        match self.buckets.take(flow, bytes, now_ns) {
            Ok(()) => {
                self.leave_line(id);
                Admission::Granted
            }
            Err(Shortage { wait_ns, lack }) => {
                self.line.join(id, flow, Some(lack));
                if lack == Lack::OfFlow {
                    self.nudge_unblocked();
                }
                Admission::After(Duration::from_nanos(wait_ns))
            }
        }
    }

    fn leave_line(&mut self, id: MemberId) {
        if self.line.leave(id) {
            self.nudge_unblocked();
        }
    }

    fn nudge_unblocked(&self) {
        self.line.unblocked().for_each(|waiting| self.nudge(waiting));
    }

    fn nudge(&self, member: MemberId) {
        let member = self.members.iter().find(|(id, _)| *id == member);
        if let Some(wake) = member.and_then(|(_, wake)| wake.upgrade()) {
            // Fails only when 2^64 - 2 signals are unseen, and then one is pending.
            let _pending = wake.write(1);
        }
    }
}

impl Buckets {
    fn new(config: LimiterConfig) -> Self {
        let LimiterConfig { total, inward, outward } = config;
        let pair = |Limits { bytes, operations }| Pair {
            bytes: bytes.map(Bucket::new),
            operations: operations.map(Bucket::new),
        };
        Self { total: pair(total), inward: pair(inward), outward: pair(outward) }
    }

    /// Takes a request's share from all buckets that apply, or from none; then how long until it can.
    fn take(&mut self, flow: Flow, bytes: u64, now_ns: u64) -> Result<(), Shortage> {
        let mut pairs = self.pairs(flow);
        let [of_total, of_flow] = pairs.each_mut().map(|pair| pair.wait_ns(bytes, now_ns));
        match of_total.max(of_flow) {
            0 => {
                pairs.into_iter().for_each(|pair| pair.take(bytes));
                Ok(())
            }
            wait_ns => Err(Shortage { wait_ns, lack: if of_total > 0 { Lack::OfTotal } else { Lack::OfFlow } }),
        }
    }

    /// Takes a request's share though it is not there, unless a bucket that applies owes something.
    fn borrow(&mut self, flow: Flow, bytes: u64, now_ns: u64) -> bool {
        let mut pairs = self.pairs(flow);
        let owes = pairs.each_mut().map(|pair| pair.owes(now_ns)).contains(&true);
        if !owes {
            pairs.into_iter().for_each(|pair| pair.take(bytes));
        }
        !owes
    }

    fn give_back(&mut self, flow: Flow, bytes: u64) {
        self.pairs(flow).into_iter().for_each(|pair| pair.give_back(bytes));
    }

    /// Those that apply: of both flows, and of this one.
    fn pairs(&mut self, flow: Flow) -> [&mut Pair; 2] {
        let directed = match flow {
            Flow::In => &mut self.inward,
            Flow::Out => &mut self.outward,
        };
        [&mut self.total, directed]
    }
}

impl Pair {
    /// How long until a request of so many bytes can begin; 0 means now.
    fn wait_ns(&mut self, bytes: u64, now_ns: u64) -> u64 {
        let wait = |bucket: &mut Option<Bucket>, cost| bucket.as_mut().map_or(0, |bucket| bucket.wait_ns(cost, now_ns));
        wait(&mut self.bytes, bytes).max(wait(&mut self.operations, 1))
    }

    fn take(&mut self, bytes: u64) {
        self.costs(bytes).for_each(|(bucket, cost)| bucket.take(cost));
    }

    fn give_back(&mut self, bytes: u64) {
        self.costs(bytes).for_each(|(bucket, cost)| bucket.give_back(cost));
    }

    fn owes(&mut self, now_ns: u64) -> bool {
        self.costs(0).any(|(bucket, _)| bucket.owes(now_ns))
    }

    /// Each bucket that there is, and what a request of so many bytes costs of it.
    fn costs(&mut self, bytes: u64) -> impl Iterator<Item = (&mut Bucket, u64)> {
        let costs = [(&mut self.bytes, bytes), (&mut self.operations, 1)];
        costs.into_iter().filter_map(|(bucket, cost)| Some((bucket.as_mut()?, cost)))
    }
}

#[cfg(test)]
mod tests;
