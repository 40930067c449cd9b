//! Serves a memory device's queue, on its I/O thread.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::blocks::{BlockRun, BlockState, Blocks};
use super::request::{ANSWER_BYTES, Answer, Request, read, write};
use super::{BlockStore, Shared};
use crate::bus::lock;
use crate::fault::FaultLog;
use crate::virtio::ActiveQueue;
use crate::virtio::queue::{Chain, QueueError, QueueState};
use crate::virtio::transport::Interrupt;
use crate::virtio::worker::{CHAINS_PER_WAKE_MAX, Progress, Source, Worker};

/// The worker.
pub(super) struct MemoryWorker {
    queue: ActiveQueue,
    interrupt: Arc<Interrupt>,
    shared: Arc<Shared>,
    store: Arc<dyn BlockStore>,
    chain: Chain,
    log: FaultLog,
}

impl MemoryWorker {
    pub(super) fn new(
        queue: ActiveQueue,
        interrupt: Arc<Interrupt>,
        shared: Arc<Shared>,
        store: Arc<dyn BlockStore>,
        log: FaultLog,
    ) -> Self {
        Self { queue, interrupt, shared, store, chain: Chain::new(), log }
    }

    pub(super) fn into_state(self) -> QueueState {
        self.queue.ring.state()
    }

    fn serve(&mut self) -> Result<Progress, QueueError> {
        for _ in 0..CHAINS_PER_WAKE_MAX {
            self.queue.ring.disable_notification();
            if !self.queue.ring.pop(&mut self.chain)? {
                if self.queue.ring.enable_notification()? {
                    continue;
                }
                return Ok(Progress::Idle);
            }
            let written = self.serve_chain();
            self.queue.ring.add_used(self.chain.head(), written);
        }
        Ok(Progress::More)
    }

    /// Does what the popped chain asks. Returns how many bytes the answer has.
    fn serve_chain(&mut self) -> u32 {
        let memory = self.queue.ring.memory();
        let request = read(memory, self.chain.readable()).and_then(|bytes| Request::parse(&bytes));
        let answer = request.map_or(Answer::Error, |request| self.obey(request));
        add(&self.shared.counters.requests, 1);
        let answered = write(memory, self.chain.writable(), &answer.bytes());
        if answer == Answer::Error || !answered {
            add(&self.shared.counters.errors, 1);
            self.log.report(format_args!("a request that makes no sense: {request:?}"));
        }
        if answered { u32::try_from(ANSWER_BYTES).expect("small") } else { 0 }
    }

    fn obey(&self, request: Request) -> Answer {
        let mut blocks = lock(&self.shared.blocks);
        let answer = match request {
            Request::Plug { start, count } => match blocks.run(start, count) {
                Some(run) if blocks.state(run) == BlockState::Unplugged => self.plug(&mut blocks, run),
                _ => Answer::Error,
            },
            Request::Unplug { start, count } => match blocks.run(start, count) {
                Some(run) if blocks.state(run) == BlockState::Plugged => self.unplug(&mut blocks, run),
                _ => Answer::Error,
            },
            Request::UnplugAll => {
                let runs = blocks.plugged_runs();
                let refused =
                    runs.into_iter().map(|run| self.unplug(&mut blocks, run)).find(|&done| done != Answer::Ack);
                refused.unwrap_or(Answer::Ack)
            }
            Request::State { start, count } => {
                blocks.run(start, count).map_or(Answer::Error, |run| Answer::State(blocks.state(run)))
            }
        };
        self.shared.plugged.store(blocks.plugged_bytes(), Ordering::Release);
        answer
    }

    /// virtio 1.3 §5.15.6.1: no more than the host asks for.
    fn plug(&self, blocks: &mut Blocks, run: BlockRun) -> Answer {
        let (start, bytes) = self.shared.area.range(run);
        let requested = self.shared.requested.load(Ordering::Acquire);
        if blocks.plugged_bytes() + bytes > requested {
            return Answer::Nack;
        }
        if let Err(error) = self.store.plug(start, bytes) {
            add(&self.shared.counters.exhausted, 1);
            self.log.report(format_args!("no memory for {bytes} bytes at {:#x}: {error}", start.0));
            self.shared.exhaustion.begin();
            return Answer::Busy;
        }
        blocks.plug(run);
        // Less a driver could take and give back as often as it likes.
        if blocks.plugged_bytes() == requested {
            self.shared.exhaustion.end();
        }
        add(&self.shared.counters.plugged_bytes, bytes);
        Answer::Ack
    }

    fn unplug(&self, blocks: &mut Blocks, run: BlockRun) -> Answer {
        let (start, bytes) = self.shared.area.range(run);
        if let Err(error) = self.store.unplug(start, bytes) {
            add(&self.shared.counters.exhausted, 1);
            self.log.report(format_args!("{bytes} bytes at {:#x} are not given back: {error}", start.0));
            return Answer::Busy;
        }
        blocks.unplug(run);
        add(&self.shared.counters.unplugged_bytes, bytes);
        Answer::Ack
    }
}

impl Worker for MemoryWorker {
    fn sources(&self) -> Vec<Source> {
        vec![Source::Edge(self.queue.doorbell.as_raw_fd())]
    }

    fn wake(&mut self) -> Progress {
        let served = self.serve();
        if self.queue.ring.publish() {
            self.interrupt.queue_used();
        }
        served.unwrap_or_else(|error| {
            add(&self.shared.counters.retired_queues, 1);
            self.log.report(format_args!("queue retired: {error}"));
            self.interrupt.needs_reset();
            Progress::Idle
        })
    }

    /// Nothing is ever in flight between two wakes.
    fn drain(&mut self) {}
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
