//! Serves a disk's queue on its I/O thread.
//!
//! No allocation after warm-up, no copy of data: an operation carries the guest's own buffers to the backend. What
//! completes is published in batches, one interrupt a batch at most.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use vm_memory::{Bytes, GuestAddress};

use super::request::{self, HEADER_LEN, Request, SERIAL_LEN, STATUS_LEN, Status};
use super::{DiskName, SERIAL_BYTES};
use crate::backend::block::{
    BlockAction, BlockBackend, BlockOperation, Completion, DiskGeometry, Durability, Submission, Token,
};
use crate::fault::FaultLog;
use crate::virtio::queue::{Chain, QueueError, QueueState};
use crate::virtio::transport::Interrupt;
use crate::virtio::worker::{CHAINS_PER_WAKE_MAX, Progress, Source, Worker};
use crate::virtio::{Activation, ActiveQueue, DeviceCounters, GuestBuffers};

/// How long a finished request may wait for its batch: a slow operation must not hold back what is done.
const PUBLISH_AFTER: Duration = Duration::from_micros(50);

/// The queue, the backend, and what is between them.
pub(super) struct BlkWorker {
    queue: ActiveQueue,
    interrupt: Arc<Interrupt>,
    backend: Box<dyn BlockBackend>,
    geometry: DiskGeometry,
    write_durability: Durability,
    serial: [u8; SERIAL_BYTES],
    chain: Chain,
    /// Requests that are with the backend, by token.
    in_flight: Vec<Option<InFlight>>,
    free_tokens: Vec<Token>,
    spare_buffers: Vec<GuestBuffers>,
    completions: Vec<Completion>,
    /// The operation that the backend had no room for. While there is one, nothing is popped.
    stalled: Option<(Token, BlockOperation)>,
    batch: Batch,
    counters: Arc<DeviceCounters>,
    log: FaultLog,
}

/// A request that is with the backend.
struct InFlight {
    head: u16,
    status: GuestAddress,
    /// What the driver finds in its writable buffers if all goes well.
    written: u32,
}

/// Used chains that the driver does not see yet.
#[derive(Default)]
struct Batch {
    requests: u64,
    bytes: u64,
    since: Option<Instant>,
}

impl BlkWorker {
    pub(super) fn new(
        name: &DiskName,
        counters: Arc<DeviceCounters>,
        backend: Box<dyn BlockBackend>,
        queue: ActiveQueue,
        activation: &Activation,
    ) -> Self {
        // A driver that cannot flush relies on every write (virtio 1.3 §5.2.6.2).
        let can_flush = activation.features & (1 << VIRTIO_BLK_F_FLUSH) != 0;
        Self {
            queue,
            interrupt: Arc::clone(&activation.interrupt),
            geometry: backend.geometry(),
            backend,
            write_durability: if can_flush { Durability::Cached } else { Durability::Durable },
            serial: name.serial,
            chain: Chain::new(),
            in_flight: Vec::new(),
            free_tokens: Vec::new(),
            spare_buffers: Vec::new(),
            completions: Vec::new(),
            stalled: None,
            batch: Batch::default(),
            counters,
            log: FaultLog::new(&name.id),
        }
    }

    pub(super) fn queue_state(&self) -> QueueState {
        self.queue.ring.state()
    }

    pub(super) fn into_backend(self) -> Box<dyn BlockBackend> {
        self.backend
    }

    /// Serves at most a wake's worth of chains.
    fn serve(&mut self) -> Result<Progress, QueueError> {
        let mut budget = CHAINS_PER_WAKE_MAX;
        loop {
            self.queue.ring.disable_notification();
            while self.unstall() && budget > 0 && self.queue.ring.pop(&mut self.chain)? {
                budget -= 1;
                self.publish_if_late();
                self.begin();
            }
            self.publish();
            if self.stalled.is_some() {
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

    /// Turns the popped chain into an operation, or answers it at once.
    fn begin(&mut self) {
        let head = self.chain.head();
        let Some(status) = request::status_address(&self.chain) else {
            self.log.report(format_args!("request without room for a status"));
            self.count_error();
            self.use_chain(head, 0, 0);
            return;
        };
        let data_len = self.chain.writable_len() - STATUS_LEN;
        let memory = Arc::clone(self.queue.ring.memory());
        match request::parse(&memory, &self.chain, data_len, self.geometry) {
            Ok(Request::Read { offset, len }) => {
                let mut buffers = self.buffers();
                buffers.fill(self.chain.writable(), 0, len);
                self.submit(InFlight { head, status, written: len }, BlockAction::Read, offset, buffers);
            }
            Ok(Request::Write { offset, len }) => {
                let mut buffers = self.buffers();
                buffers.fill(self.chain.readable(), HEADER_LEN, len);
                let action = BlockAction::Write(self.write_durability);
                self.submit(InFlight { head, status, written: 0 }, action, offset, buffers);
            }
            Ok(Request::Flush) => {
                let buffers = self.buffers();
                self.submit(InFlight { head, status, written: 0 }, BlockAction::Flush, 0, buffers);
            }
            Ok(Request::GetId) => {
                let written = self.write_serial();
                self.answer(head, status, Status::Ok, written, 0);
            }
            Err(refused) => {
                self.log.report(format_args!("{}", refused.reason));
                self.count_error();
                self.answer(head, status, refused.status, 0, 0);
            }
        }
    }

    fn submit(&mut self, request: InFlight, action: BlockAction, offset: u64, buffers: GuestBuffers) {
        let token = self.free_tokens.pop().unwrap_or_else(|| {
            // Bounded by the queue, which lets no more chains be in flight than it has entries.
            let token = u32::try_from(self.in_flight.len()).expect("a queue has at most 32768 entries");
            self.in_flight.push(None);
            Token(token)
        });
        self.in_flight[index(token)] = Some(request);
        self.submit_operation(token, BlockOperation { action, offset, buffers });
    }

    fn submit_operation(&mut self, token: Token, operation: BlockOperation) {
        match self.backend.submit(token, operation) {
            Submission::Done(completion) => self.complete(completion),
            Submission::Pending => {}
            Submission::Full(operation) => self.stalled = Some((token, operation)),
        }
    }

    /// Offers a stalled operation again. True if nothing is stalled now.
    fn unstall(&mut self) -> bool {
        if let Some((token, operation)) = self.stalled.take() {
            self.submit_operation(token, operation);
        }
        self.stalled.is_none()
    }

    fn complete(&mut self, completion: Completion) {
        let Completion { token, operation, result } = completion;
        let request = self.in_flight[index(token)].take().expect("a backend gives back what it was given, once");
        self.free_tokens.push(token);
        let BlockOperation { action, offset, buffers } = operation;
        let bytes = buffers.len();
        self.spare_buffers.push(buffers);
        let InFlight { head, status, written } = request;
        match result {
            Ok(()) => self.answer(head, status, Status::Ok, written, bytes),
            Err(error) => {
                self.log.report(format_args!("{action:?} of {bytes} bytes at {offset:#x}: {error}"));
                self.count_error();
                self.answer(head, status, Status::IoError, 0, 0);
            }
        }
    }

    /// Writes the status and gives the chain back. `written` counts the data before it.
    fn answer(&mut self, head: u16, status_at: GuestAddress, status: Status, written: u32, bytes: u64) {
        let memory = self.queue.ring.memory();
        memory.write_obj(status.byte(), status_at).expect("the chain was checked to be in memory");
        self.use_chain(head, written + STATUS_LEN, bytes);
    }

    fn use_chain(&mut self, head: u16, written: u32, bytes: u64) {
        self.queue.ring.add_used(head, written);
        self.batch.requests += 1;
        self.batch.bytes += bytes;
    }

    /// The chain has room for it, in any number of pieces.
    fn write_serial(&mut self) -> u32 {
        let memory = self.queue.ring.memory();
        let mut rest = &self.serial[..];
        for segment in self.chain.writable() {
            let len = rest.len().min(usize::try_from(segment.len()).expect("32 bits fit"));
            let (here, later) = rest.split_at(len);
            memory.write_slice(here, segment.address()).expect("the chain was checked to be in memory");
            rest = later;
        }
        SERIAL_LEN
    }

    fn buffers(&mut self) -> GuestBuffers {
        let mut buffers =
            self.spare_buffers.pop().unwrap_or_else(|| GuestBuffers::new(Arc::clone(self.queue.ring.memory())));
        buffers.clear();
        buffers
    }

    /// Collects what the backend has completed.
    fn reap(&mut self, collect: impl FnOnce(&mut dyn BlockBackend, &mut Vec<Completion>)) {
        let mut completions = std::mem::take(&mut self.completions);
        collect(&mut *self.backend, &mut completions);
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
    }

    /// A batch is dated when the second of its requests begins, so a single one costs no look at the clock.
    fn publish_if_late(&mut self) {
        if self.batch.requests == 0 {
            return;
        }
        let now = Instant::now();
        match self.batch.since {
            None => self.batch.since = Some(now),
            Some(since) if now.duration_since(since) >= PUBLISH_AFTER => self.publish(),
            Some(_) => {}
        }
    }

    fn publish(&mut self) {
        let Batch { requests, bytes, .. } = std::mem::take(&mut self.batch);
        if requests == 0 {
            return;
        }
        DeviceCounters::add(&self.counters.requests, requests);
        DeviceCounters::add(&self.counters.bytes, bytes);
        if self.queue.ring.publish() {
            self.interrupt.queue_used();
        }
    }

    fn count_error(&self) {
        DeviceCounters::add(&self.counters.errors, 1);
    }

    /// The driver broke its ring: nothing is popped any more, and what is in flight completes as ever.
    fn retire(&mut self, error: QueueError) {
        self.publish();
        DeviceCounters::add(&self.counters.retired_queues, 1);
        self.log.report(format_args!("queue retired: {error}"));
        self.interrupt.needs_reset();
    }
}

impl Worker for BlkWorker {
    fn sources(&self) -> Vec<Source> {
        let doorbell = Source::Edge(self.queue.doorbell.as_raw_fd());
        let backend = self.backend.wake_fd().map(Source::Level);
        [Some(doorbell), backend].into_iter().flatten().collect()
    }

    fn wake(&mut self) -> Progress {
        self.reap(|backend, completions| backend.poll(completions));
        match self.serve() {
            Ok(progress) => progress,
            Err(error) => {
                self.retire(error);
                Progress::Idle
            }
        }
    }

    fn drain(&mut self) {
        loop {
            self.reap(|backend, completions| backend.drain(completions));
            if self.unstall() && self.queue.ring.in_flight() == 0 {
                break;
            }
        }
        self.publish();
    }
}

fn index(token: Token) -> usize {
    usize::try_from(token.0).expect("32 bits fit")
}
