//! Sends the driver's frames, on the device's I/O thread.
//!
//! No allocation after warm-up, no copy of a frame: its header is copied and checked, the rest goes to the backend from
//! where the driver has it. Frames leave in the order in which they came.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::counters::{NetQueueCounters, Tally};
use super::filter::SourceFilter;
use super::frames::TransmitFrame;
use super::header::{TransmitRules, checksum_at};
use super::pair::Retired;
use super::{Ends, Link, NetCounters, Publishing, publish};
use crate::backend::net::NetBackend;
use crate::fault::FaultLog;
use crate::limit::Flow;
use crate::virtio::ActiveQueue;
use crate::virtio::linger::Linger;
use crate::virtio::queue::{Chain, QueueError, QueueState};
use crate::virtio::throttle::Throttle;
use crate::virtio::transport::Interrupt;
use crate::virtio::worker::{CHAINS_PER_WAKE_MAX, Progress, Source, Worker};

/// Frames after which the driver sees that they have left: each look of its at what we write costs both sides.
const SHOW_AFTER: u64 = 8;

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
    frame: TransmitFrame,
    waits_for: WaitsFor,
    tally: Tally,
    counters: Arc<NetCounters>,
    pair: usize,
    log: FaultLog,
}

/// What the worker cannot go on without. Nothing is popped meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WaitsFor {
    Frames,
    /// The chain is popped and its frame loaded, and the backend had no room for it.
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
            frame: TransmitFrame::new(
                Arc::clone(queue.ring.memory()),
                ends.filter.as_ref().map_or(0, |filter| filter.head_bytes()),
            ),
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
        match self.waits_for {
            WaitsFor::Room => self.send(),
            WaitsFor::Frames | WaitsFor::Admission => self.waits_for = WaitsFor::Frames,
        }
        loop {
            self.queue.ring.disable_notification();
            while self.waits_for == WaitsFor::Frames && budget > 0 && self.queue.ring.pop(&mut self.chain)? {
                budget -= 1;
                self.begin();
                if self.tally.frames() >= SHOW_AFTER {
                    self.show();
                }
            }
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

    /// Checks the popped chain's frame, and sends it.
    fn begin(&mut self) {
        let counters = &self.counters.pairs[self.pair].transmitted;
        if self.chain.writable_len() > 0 || !self.frame.load(&self.chain) {
            self.log.report(format_args!("a transmitted chain that holds no frame"));
            counters.count_error();
            self.queue.ring.add_used(self.chain.head(), 0);
            return;
        }
        let bytes = self.frame.bytes();
        if let Err(reason) = self.rules.check(self.frame.header(), bytes) {
            self.log.report(format_args!("transmitted {bytes} bytes dropped: {reason}"));
            counters.count_dropped();
            self.queue.ring.add_used(self.chain.head(), 0);
            return;
        }
        if let Err(reason) = self.filter() {
            self.log.report(format_args!("transmitted {bytes} bytes filtered out: {reason}"));
            self.queue_counters().filtered.fetch_add(1, Ordering::Relaxed);
            self.queue.ring.add_used(self.chain.head(), 0);
            return;
        }
        // What is lost anyway waits for nothing.
        if self.link.is_plugged()
            && let Some(throttle) = &mut self.throttle
            && !throttle.admit(Flow::Out, bytes.into())
        {
            self.queue.ring.unpop(1);
            self.waits_for = WaitsFor::Admission;
            return;
        }
        self.tally.begin();
        self.send();
    }

    /// Says why the loaded frame, whose header is checked, may not go.
    fn filter(&mut self) -> Result<(), &'static str> {
        let Some(filter) = &self.filter else { return Ok(()) };
        let checksum_at = checksum_at(self.frame.header());
        filter.check(self.frame.head(), checksum_at)
    }

    /// Sends the loaded frame, or finds that it must wait.
    fn send(&mut self) {
        self.waits_for = WaitsFor::Frames;
        if !self.link.is_plugged() {
            self.tally.forget();
            self.queue_counters().count_dropped();
            self.queue.ring.add_used(self.chain.head(), 0);
            return;
        }
        let result = loop {
            match self.backend.transmit(&mut self.frame) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        match result {
            Ok(()) => self.tally.add(self.frame.bytes().into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Those before it are shown without it, and it has waited since now.
                self.tally.flush(&self.counters.pairs[self.pair].transmitted);
                self.tally.begin();
                self.waits_for = WaitsFor::Room;
                return;
            }
            Err(error) => {
                self.tally.forget();
                self.lose(&error);
            }
        }
        self.queue.ring.add_used(self.chain.head(), 0);
    }

    /// A frame was lost, as on a wire: the driver is not told.
    fn lose(&mut self, error: &io::Error) {
        self.log.report(format_args!("cannot transmit {} bytes: {error}", self.frame.bytes()));
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

    /// Before the driver can see them: who hears from it that a frame has left finds that counted.
    fn count(&mut self) {
        let counters = &self.counters.pairs[self.pair].transmitted;
        if let Some(throttle) = &mut self.throttle {
            throttle.count_waits(&counters.throttled_ns);
        }
        self.tally.flush(counters);
    }

    fn publish(&mut self) {
        self.count();
        publish(&mut self.queue, &self.interrupt);
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

    /// A frame that waits for room is not waited for: its chain is as if it had never been popped, and it was admitted for
    /// nothing.
    fn drain(&mut self) {
        if self.waits_for == WaitsFor::Room {
            self.queue.ring.unpop(1);
            if let Some(throttle) = &self.throttle {
                throttle.give_back(Flow::Out, self.frame.bytes().into());
            }
        }
        self.waits_for = WaitsFor::Frames;
        if let Some(throttle) = &mut self.throttle {
            throttle.stop();
        }
        self.count();
    }
}
