//! Sends the driver's frames, on the device's I/O thread.
//!
//! No allocation after warm-up, no copy of a large frame: its header is copied and checked, the rest goes to the backend from
//! where the driver has it. Frames leave in the order in which they came, together as far as they are there together.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arch::GuestMemory;

use super::counters::{NetQueueCounters, Tally};
use super::filter::SourceFilter;
use super::frames::TransmitFrame;
use super::header::{TransmitRules, checksum_at};
use super::pair::Retired;
use super::{Ends, Link, NetCounters, Publishing, publish};
use crate::backend::burst::BURST_MAX;
use crate::backend::net::NetBackend;
use crate::fault::FaultLog;
use crate::limit::Flow;
use crate::virtio::ActiveQueue;
use crate::virtio::linger::Linger;
use crate::virtio::queue::{Chain, QueueError, QueueState};
use crate::virtio::throttle::Throttle;
use crate::virtio::transport::Interrupt;
use crate::virtio::worker::{CHAINS_PER_WAKE_MAX, Progress, Source, Worker};

/// The transmit queue and its way to the backend.
pub(super) struct TransmitWorker {
    queue: ActiveQueue,
    interrupt: Arc<Interrupt>,
    backend: Arc<dyn NetBackend>,
    link: Arc<Link>,
    throttle: Option<Throttle>,
    rules: TransmitRules,
    filter: Option<Arc<SourceFilter>>,
    publishing: Publishing,
    linger: Linger,
    chain: Chain,
    outgoing: Outgoing,
    waits_for: WaitsFor,
    tally: Tally,
    counters: Arc<NetCounters>,
    pair: usize,
    log: FaultLog,
}

/// Frames whose chains are popped and which may go, oldest first.
struct Outgoing {
    /// Those, and behind them room for more.
    frames: Box<[TransmitFrame]>,
    heads: [u16; BURST_MAX],
    count: usize,
    /// What became of each when they were sent last.
    results: Box<[io::Result<()>]>,
}

/// Where a chain comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Ring,
    /// It was popped before, and waited for room when the queue was stopped.
    Kept,
}

/// What the worker cannot go on without. Nothing is popped meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WaitsFor {
    Frames,
    /// There are frames that the backend had no room for.
    Room,
    /// The frame may not go yet: its chain is back in its ring, and the throttle wakes us.
    Admission,
}

impl TransmitWorker {
    pub(super) fn new(queue: ActiveQueue, throttle: Option<Throttle>, ends: &Ends) -> Self {
        Self {
            interrupt: Arc::clone(&ends.interrupt),
            backend: Arc::clone(&ends.backend),
            link: Arc::clone(&ends.link),
            throttle,
            rules: TransmitRules::new(ends.features),
            filter: ends.filter.clone(),
            publishing: Publishing::new(ends.features),
            linger: Linger::new(),
            chain: Chain::new(),
            outgoing: Outgoing::new(queue.ring.memory(), ends.filter.as_ref().map_or(0, |filter| filter.head_bytes())),
            waits_for: WaitsFor::Frames,
            tally: Tally::default(),
            counters: Arc::clone(&ends.counters),
            pair: ends.pair,
            log: ends.log.clone(),
            queue,
        }
    }

    /// Serves at most a wake's worth of chains.
    fn serve(&mut self) -> Result<Progress, QueueError> {
        let mut budget = CHAINS_PER_WAKE_MAX;
        self.waits_for = WaitsFor::Frames;
        self.send();
        loop {
            self.queue.ring.disable_notification();
            while self.waits_for == WaitsFor::Frames && budget > 0 {
                let origin = if self.queue.ring.is_holding() { Origin::Kept } else { Origin::Ring };
                if !self.queue.ring.pop(&mut self.chain)? {
                    break;
                }
                budget -= 1;
                self.begin(origin);
                if self.outgoing.is_full() {
                    self.send();
                    self.show();
                }
            }
            self.send();
            self.publish();
            if self.waits_for != WaitsFor::Frames {
                // The backend or the throttle wakes us. Until then a doorbell would change nothing.
                return Ok(Progress::Idle);
            }
            if budget == 0 {
                return Ok(Progress::More);
            }
            let ring = &self.queue.ring;
            if !self.linger.finds(|| ring.is_available()) && !self.queue.ring.enable_notification()? {
                return Ok(Progress::Idle);
            }
        }
    }

    /// Checks the popped chain's frame, and adds it to those that go.
    fn begin(&mut self, origin: Origin) {
        let counters = &self.counters.pairs[self.pair].transmitted;
        let head = self.chain.head();
        let frame = self.outgoing.next();
        if self.chain.writable_len() > 0 || !frame.load(&self.chain) {
            self.log.report(format_args!("a transmitted chain that holds no frame"));
            counters.count_error();
            self.queue.ring.add_used(head, 0);
            return;
        }
        let bytes = frame.bytes();
        if let Err(reason) = self.rules.check(frame.header(), bytes) {
            self.log.report(format_args!("transmitted {bytes} bytes dropped: {reason}"));
            counters.count_dropped();
            self.queue.ring.add_used(head, 0);
            return;
        }
        if let Err(reason) = filter(self.filter.as_deref(), frame) {
            self.log.report(format_args!("transmitted {bytes} bytes filtered out: {reason}"));
            counters.filtered.fetch_add(1, Ordering::Relaxed);
            self.queue.ring.add_used(head, 0);
            return;
        }
        // What is lost anyway waits for nothing.
        if self.link.is_plugged()
            && let Some(throttle) = &mut self.throttle
            && !throttle.admit(Flow::Out, bytes.into())
        {
            match origin {
                Origin::Ring => self.queue.ring.unpop(1),
                Origin::Kept => self.queue.ring.hold_first(head),
            }
            self.waits_for = WaitsFor::Admission;
            return;
        }
        self.tally.begin();
        self.outgoing.add(head);
    }

    /// Sends what goes, as far as there is room.
    fn send(&mut self) {
        if self.outgoing.count == 0 {
            return;
        }
        if !self.link.is_plugged() {
            self.tally.forget();
            for head in self.outgoing.clear() {
                self.counters.pairs[self.pair].transmitted.count_dropped();
                self.queue.ring.add_used(head, 0);
            }
            return;
        }
        self.outgoing.send(&*self.backend);
        let mut kept = 0;
        for place in 0..self.outgoing.count {
            match std::mem::replace(&mut self.outgoing.results[place], Ok(())) {
                Ok(()) => self.tally.add(self.outgoing.frames[place].bytes().into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.outgoing.keep(place, kept);
                    kept += 1;
                    continue;
                }
                Err(error) => self.lose(&error, self.outgoing.frames[place].bytes()),
            }
            self.queue.ring.add_used(self.outgoing.heads[place], 0);
        }
        self.outgoing.count = kept;
        if kept > 0 {
            // Those before them are shown without them, and they have waited since now, or longer if there were none.
            self.tally.flush(&self.counters.pairs[self.pair].transmitted);
            self.tally.begin();
            self.waits_for = WaitsFor::Room;
        } else {
            self.tally.forget();
        }
    }

    /// A frame was lost, as on a wire: the driver is not told.
    fn lose(&self, error: &io::Error, bytes: u32) {
        self.log.report(format_args!("cannot transmit {bytes} bytes: {error}"));
        self.queue_counters().count_error();
        // The interface was deleted.
        if error.raw_os_error() == Some(libc::EBADFD) {
            self.link.cut();
        }
    }

    /// Shows what has left while there is more to do.
    fn show(&mut self) {
        match self.publishing {
            Publishing::Early => self.publish(),
            Publishing::Late => {
                self.count();
                self.queue.ring.show();
            }
        }
    }

    fn queue_counters(&self) -> &NetQueueCounters {
        &self.counters.pairs[self.pair].transmitted
    }

    fn count(&mut self) {
        super::count(&self.counters.pairs[self.pair].transmitted, &mut self.tally, &mut self.throttle);
    }

    fn publish(&mut self) {
        self.count();
        publish(&mut self.queue, &self.interrupt);
    }
}

/// Says why a frame whose header is checked may not go.
fn filter(filter: Option<&SourceFilter>, frame: &mut TransmitFrame) -> Result<(), &'static str> {
    let Some(filter) = filter else { return Ok(()) };
    let checksum_at = checksum_at(frame.header());
    filter.check(frame.head(), checksum_at)
}

impl Outgoing {
    fn new(memory: &Arc<GuestMemory>, head_bytes: usize) -> Self {
        let frames = (0..BURST_MAX).map(|_| TransmitFrame::new(Arc::clone(memory), head_bytes)).collect();
        let results = (0..BURST_MAX).map(|_| Ok(())).collect();
        Self { frames, heads: [0; BURST_MAX], count: 0, results }
    }

    fn is_full(&self) -> bool {
        self.count == BURST_MAX
    }

    /// Where the next one is loaded.
    fn next(&mut self) -> &mut TransmitFrame {
        &mut self.frames[self.count]
    }

    /// Takes the one that was loaded last.
    fn add(&mut self, head: u16) {
        self.heads[self.count] = head;
        self.count += 1;
    }

    fn send(&mut self, backend: &dyn NetBackend) {
        let Self { frames, count, results, .. } = self;
        backend.transmit_all(&mut frames[..*count], &mut |place, result| results[place] = result);
    }

    /// Moves one that was not sent to where it is the first, or behind those.
    fn keep(&mut self, place: usize, to: usize) {
        self.frames.swap(place, to);
        self.heads[to] = self.heads[place];
    }

    /// Forgets all of them.
    fn clear(&mut self) -> impl DoubleEndedIterator<Item = u16> {
        let count = std::mem::take(&mut self.count);
        self.heads.into_iter().take(count)
    }
}

impl Retired for TransmitWorker {
    fn into_parts(self) -> (QueueState, Option<Throttle>) {
        (self.queue.ring.state(), self.throttle)
    }
}

impl Worker for TransmitWorker {
    fn sources(&self) -> Vec<Source> {
        let ends = [Source::Edge(self.queue.doorbell.as_raw_fd()), Source::LevelWritable(self.backend.transmit_fd())];
        ends.into_iter().chain(self.throttle.iter().flat_map(Throttle::sources)).collect()
    }

    fn wake(&mut self) -> Progress {
        let served = self.serve();
        if let Some(throttle) = &mut self.throttle {
            throttle.settle();
        }
        self.count();
        served.unwrap_or_else(|error| {
            // What was popped before the ring broke.
            self.send();
            self.publish();
            super::retire(&self.counters, &self.log, &self.interrupt, error);
            Progress::Idle
        })
    }

    fn begin_looking(&mut self) {
        self.queue.ring.retract_notification();
    }

    fn look(&self) -> bool {
        self.waits_for == WaitsFor::Frames && self.queue.ring.is_available()
    }

    fn is_listening(&self) -> bool {
        self.waits_for == WaitsFor::Room
    }

    /// Frames that wait for room are not waited for: their chains are the first when the queue goes on, and they were admitted
    /// for nothing.
    fn drain(&mut self) {
        if let Some(throttle) = &self.throttle {
            let bytes = self.outgoing.frames[..self.outgoing.count].iter().map(|frame| u64::from(frame.bytes()));
            bytes.for_each(|bytes| throttle.give_back(Flow::Out, bytes));
        }
        // What was held before and not popped yet is younger.
        for head in self.outgoing.clear().rev() {
            self.queue.ring.hold_first(head);
        }
        self.waits_for = WaitsFor::Frames;
        if let Some(throttle) = &mut self.throttle {
            throttle.stop();
        }
        self.count();
    }
}
