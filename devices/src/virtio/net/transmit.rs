//! Sends the driver's frames, on the device's I/O thread.
//!
//! No allocation after warm-up, no copy of a frame: its header is copied and checked, the rest goes to the backend from
//! where the driver has it. Frames leave in the order in which they came.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::counters::Tally;
use super::frames::TransmitFrame;
use super::header::TransmitRules;
use super::{Ends, Link, NetCounters, Publishing, publish};
use crate::backend::net::NetBackend;
use crate::fault::FaultLog;
use crate::virtio::ActiveQueue;
use crate::virtio::queue::{Chain, QueueError, QueueState};
use crate::virtio::transport::Interrupt;
use crate::virtio::worker::{CHAINS_PER_WAKE_MAX, Progress, Source, Worker};

/// The transmit queue and its way to the backend.
pub(super) struct TransmitWorker {
    queue: ActiveQueue,
    interrupt: Arc<Interrupt>,
    backend: Arc<dyn NetBackend>,
    link: Arc<Link>,
    features: u64,
    rules: TransmitRules,
    publishing: Publishing,
    chain: Chain,
    frame: TransmitFrame,
    /// The chain is popped and its frame loaded, and the backend had no room for it. Nothing is popped meanwhile.
    stalled: bool,
    tally: Tally,
    counters: Arc<NetCounters>,
    log: FaultLog,
}

impl TransmitWorker {
    pub(super) fn new(queue: ActiveQueue, ends: &Ends) -> Self {
        Self {
            interrupt: Arc::clone(&ends.interrupt),
            backend: Arc::clone(&ends.backend),
            link: Arc::clone(&ends.link),
            features: ends.features,
            rules: TransmitRules::new(ends.features),
            publishing: Publishing::new(ends.features),
            chain: Chain::new(),
            frame: TransmitFrame::new(Arc::clone(queue.ring.memory())),
            stalled: false,
            tally: Tally::default(),
            counters: Arc::clone(&ends.counters),
            log: ends.log.clone(),
            queue,
        }
    }

    pub(super) fn queue_state(&self) -> QueueState {
        self.queue.ring.state()
    }

    /// Serves at most a wake's worth of chains.
    fn serve(&mut self) -> Result<Progress, QueueError> {
        let mut budget = CHAINS_PER_WAKE_MAX;
        if self.stalled {
            self.send();
        }
        loop {
            self.queue.ring.disable_notification();
            while !self.stalled && budget > 0 && self.queue.ring.pop(&mut self.chain)? {
                budget -= 1;
                self.begin();
                if self.publishing == Publishing::Early {
                    self.publish();
                }
            }
            self.publish();
            if self.stalled {
                // The backend wakes us when it has room. Until then a doorbell would change nothing.
                return Ok(Progress::Idle);
            }
            if budget == 0 {
                return Ok(Progress::More);
            }
            if !self.queue.ring.enable_notification()? {
                return Ok(Progress::Idle);
            }
        }
    }

    /// Checks the popped chain's frame, and sends it.
    fn begin(&mut self) {
        let counters = &self.counters.transmitted;
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
        self.send();
    }

    /// Sends the loaded frame, or finds that it must wait.
    fn send(&mut self) {
        self.stalled = false;
        let result = loop {
            match self.backend.transmit(&mut self.frame) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        match result {
            Ok(()) => self.tally.add(self.frame.bytes().into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.stalled = true;
                return;
            }
            Err(error) => self.lose(&error),
        }
        self.queue.ring.add_used(self.chain.head(), 0);
    }

    /// A frame was lost, as on a wire: the driver is not told.
    fn lose(&mut self, error: &io::Error) {
        self.log.report(format_args!("cannot transmit {} bytes: {error}", self.frame.bytes()));
        self.counters.transmitted.count_error();
        // The interface was deleted.
        if error.raw_os_error() == Some(libc::EBADFD) {
            self.link.cut(self.features, &self.interrupt);
        }
    }

    fn publish(&mut self) {
        self.tally.flush(&self.counters.transmitted);
        publish(&mut self.queue, &self.interrupt);
    }
}

impl Worker for TransmitWorker {
    fn sources(&self) -> Vec<Source> {
        vec![Source::Edge(self.queue.doorbell.as_raw_fd()), Source::LevelWritable(self.backend.transmit_fd())]
    }

    fn wake(&mut self) -> Progress {
        match self.serve() {
            Ok(progress) => progress,
            Err(error) => {
                self.publish();
                super::retire(&self.counters, &self.log, &self.interrupt, error);
                Progress::Idle
            }
        }
    }

    fn is_listening(&self) -> bool {
        self.stalled
    }

    /// A frame that waits for room is not waited for: its chain is as if it had never been popped.
    fn drain(&mut self) {
        if std::mem::take(&mut self.stalled) {
            self.queue.ring.unpop(1);
        }
    }
}
