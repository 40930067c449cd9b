//! The control queue (virtio 1.3 §5.1.6.5), on the I/O thread of the first pair: the driver says how many pairs it uses.
//!
//! A command that takes pairs away is answered when their receive queues have given back what they had; nothing waits
//! for that but the command. What a change costs the host, which stops its packets for a moment, a driver may ask for
//! only so often.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_net::VIRTIO_NET_F_MQ;

use super::pair::Retired;
use super::steering::Steering;
use super::{Ends, NetCounters, publish};
use crate::backend::net::NetBackend;
use crate::fault::FaultLog;
use crate::limit::{Flow, Limiter, LimiterConfig, Limits, Rate};
use crate::virtio::abi::net_control::{ACK_ERR, ACK_OK, CLASS_MQ, MQ_PAIRS_SET};
use crate::virtio::queue::{Chain, QueueError, QueueState};
use crate::virtio::throttle::Throttle;
use crate::virtio::transport::Interrupt;
use crate::virtio::worker::{CHAINS_PER_WAKE_MAX, Progress, Source, Worker};
use crate::virtio::{ActiveQueue, GuestBuffers};

/// Bytes of the only command that there is: class, command, number of pairs.
const PAIRS_SET_BYTES: usize = 4;
/// The least of any command: class and command.
const COMMAND_BYTES_MIN: usize = 2;

/// How often the number of pairs changes: many times at once, and then ten times a second.
const CHANGES_AT_ONCE: u64 = 32;
const CHANGES_REFILL_MS: u64 = 3200;

/// The control queue and what it steers.
pub(super) struct ControlWorker {
    queue: ActiveQueue,
    interrupt: Arc<Interrupt>,
    steering: Arc<Steering>,
    /// Of the pairs that the driver set up, all in a row from the first.
    backends: Vec<Arc<dyn NetBackend>>,
    throttle: Option<Throttle>,
    has_pairs: bool,
    chain: Chain,
    buffers: GuestBuffers,
    waits_for: WaitsFor,
    counters: Arc<NetCounters>,
    log: FaultLog,
}

/// What the worker cannot go on without. Nothing is popped meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WaitsFor {
    Commands,
    /// The popped command is done when the pairs that it takes away have left.
    Leaving,
    /// The number of pairs may not change yet: the chain is back in its ring, and the throttle wakes us.
    Admission,
}

/// What becomes of a popped command.
enum Outcome {
    Answer(u8),
    Wait(WaitsFor),
}

/// What the changes of a device are held to.
pub(super) fn limiter() -> Arc<Limiter> {
    let operations = Rate::new(CHANGES_AT_ONCE, 0, CHANGES_REFILL_MS);
    Limiter::new(LimiterConfig { total: Limits { bytes: None, operations }, ..LimiterConfig::default() })
}

impl ControlWorker {
    pub(super) fn new(
        queue: ActiveQueue,
        throttle: Option<Throttle>,
        backends: Vec<Arc<dyn NetBackend>>,
        ends: &Ends,
    ) -> Self {
        Self {
            interrupt: Arc::clone(&ends.interrupt),
            steering: Arc::clone(&ends.steering),
            backends,
            throttle,
            has_pairs: ends.features & (1 << VIRTIO_NET_F_MQ) != 0,
            chain: Chain::new(),
            buffers: GuestBuffers::new(Arc::clone(queue.ring.memory())),
            waits_for: WaitsFor::Commands,
            counters: Arc::clone(&ends.counters),
            log: ends.log.clone(),
            queue,
        }
    }

    fn serve(&mut self) -> Result<Progress, QueueError> {
        match self.waits_for {
            WaitsFor::Leaving if !self.steering.have_left() => return Ok(Progress::Idle),
            WaitsFor::Leaving => self.answer(ACK_OK),
            WaitsFor::Commands | WaitsFor::Admission => {}
        }
        self.waits_for = WaitsFor::Commands;
        for _ in 0..CHAINS_PER_WAKE_MAX {
            self.queue.ring.disable_notification();
            if !self.queue.ring.pop(&mut self.chain)? {
                if !self.queue.ring.enable_notification()? {
                    return Ok(Progress::Idle);
                }
                continue;
            }
            match self.obey() {
                Outcome::Answer(ack) => self.answer(ack),
                Outcome::Wait(waits_for) => {
                    self.waits_for = waits_for;
                    return Ok(Progress::Idle);
                }
            }
        }
        Ok(Progress::More)
    }

    /// Does what the popped command says.
    fn obey(&mut self) -> Outcome {
        let len = usize::try_from(self.chain.readable_len()).expect("32 bits fit");
        // Without room for the answer, nothing is done.
        if len < COMMAND_BYTES_MIN || self.chain.writable_len() == 0 {
            self.log.report(format_args!("a control command of {len} bytes, or without room for its answer"));
            self.counters.control_errors.fetch_add(1, Ordering::Relaxed);
            return Outcome::Answer(ACK_ERR);
        }
        let mut command = [0; PAIRS_SET_BYTES];
        let copied = u32::try_from(len.min(PAIRS_SET_BYTES)).expect("a short command");
        self.buffers.fill(self.chain.readable(), 0, copied);
        self.buffers.copy_out(0, &mut command);
        let [class, kind, pairs @ ..] = command;
        match (class, kind, usize::from(u16::from_le_bytes(pairs))) {
            (CLASS_MQ, MQ_PAIRS_SET, pairs)
                if self.has_pairs && len == PAIRS_SET_BYTES && (1..=self.backends.len()).contains(&pairs) =>
            {
                self.set_pairs(pairs)
            }
            // virtio 1.3 §5.1.6.5: a command of a feature that was not negotiated, too.
            (class, kind, _) => {
                self.log.report(format_args!("control command {kind} of class {class} refused"));
                self.counters.control_errors.fetch_add(1, Ordering::Relaxed);
                Outcome::Answer(ACK_ERR)
            }
        }
    }

    fn set_pairs(&mut self, pairs: usize) -> Outcome {
        let active = self.steering.active();
        if pairs == active {
            return Outcome::Answer(ACK_OK);
        }
        if self.throttle.as_mut().is_some_and(|throttle| !throttle.admit(Flow::Out, 0)) {
            self.queue.ring.unpop(1);
            return Outcome::Wait(WaitsFor::Admission);
        }
        for pair in active..pairs {
            if let Err(error) = self.backends[pair].attach() {
                self.log.report(format_args!("cannot attach queue {pair}: {error}"));
                self.detach(active..pair);
                return Outcome::Answer(ACK_ERR);
            }
        }
        self.detach(pairs..active);
        self.steering.activate(pairs);
        if self.steering.have_left() { Outcome::Answer(ACK_OK) } else { Outcome::Wait(WaitsFor::Leaving) }
    }

    fn detach(&self, pairs: std::ops::Range<usize>) {
        for pair in pairs {
            if let Err(error) = self.backends[pair].detach() {
                self.log.report(format_args!("cannot detach queue {pair}: {error}"));
            }
        }
    }

    /// Gives the popped command back with its answer, as far as there is room for one.
    fn answer(&mut self, ack: u8) {
        let written = u32::from(self.buffers.fill(self.chain.writable(), 0, 1));
        self.buffers.copy_in(0, &[ack][..usize::try_from(written).expect("at most 1")]);
        self.queue.ring.add_used(self.chain.head(), written);
    }
}

impl Retired for ControlWorker {
    fn into_parts(self) -> (QueueState, Option<Throttle>) {
        (self.queue.ring.state(), self.throttle)
    }
}

impl Worker for ControlWorker {
    fn sources(&self) -> Vec<Source> {
        let own = [Source::Edge(self.queue.doorbell.as_raw_fd()), Source::Edge(self.steering.left_fd())];
        own.into_iter().chain(self.throttle.iter().flat_map(Throttle::sources)).collect()
    }

    fn wake(&mut self) -> Progress {
        let served = self.serve();
        publish(&mut self.queue, &self.interrupt);
        served.unwrap_or_else(|error| {
            super::retire(&self.counters, &self.log, &self.interrupt, error);
            Progress::Idle
        })
    }

    /// A command whose pairs have not left yet is as if it had never been popped, and finds nothing to do later.
    fn drain(&mut self) {
        if self.waits_for == WaitsFor::Leaving {
            self.queue.ring.unpop(1);
        }
        self.waits_for = WaitsFor::Commands;
        if let Some(throttle) = &mut self.throttle {
            throttle.stop();
        }
    }
}
