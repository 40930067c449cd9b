//! Serves a disk's queue on its I/O thread.
//!
//! No allocation after warm-up, no copy of data: an operation carries the guest's own buffers to the backend. What
//! completes is shown while more is done, so that driver and device work at the same time, and one interrupt a batch at
//! most tells of it.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::GuestAddress;

use super::batch::Batch;
use super::control::Shared;
use super::in_flight::{InFlight, InFlightTable};
use super::policy::{Flush, Policy};
use super::request::{self, Disk, HEADER_LEN, Request, SERIAL_LEN, STATUS_LEN, Status};
use super::slots::Idle;
use super::{DiskName, SERIAL_BYTES};
use crate::backend::block::{BlockAction, BlockBackend, BlockOperation, CacheMode, Completion, Submission, Token};
use crate::fault::FaultLog;
use crate::limit::Flow;
use crate::virtio::buffers::write_at;
use crate::virtio::linger::Linger;
use crate::virtio::queue::{Chain, QueueError, QueueState};
use crate::virtio::throttle::Throttle;
use crate::virtio::transport::Interrupt;
use crate::virtio::worker::{CHAINS_PER_WAKE_MAX, Progress, Source, Worker};
use crate::virtio::{Activation, ActiveQueue, DeviceCounters, GuestBuffers};

/// Bytes after which a wake ends, whatever its chains are: a stop waits no longer than for these.
const BYTES_PER_WAKE_MAX: u64 = 16 << 20;

/// Finished requests after which the driver sees them, if it looks. More often costs both sides: they share these bytes.
const SHOW_AFTER: u64 = 16;

/// How long a finished request may wait for its batch: a slow operation must not hold back what is done.
const PUBLISH_AFTER: Duration = Duration::from_micros(50);

/// The queue, the backend, and what is between them.
pub(super) struct BlkWorker {
    queue: ActiveQueue,
    interrupt: Arc<Interrupt>,
    backend: Box<dyn BlockBackend>,
    throttle: Option<Throttle>,
    shared: Arc<Shared>,
    features: u64,
    policy: Policy,
    serial: [u8; SERIAL_BYTES],
    chain: Chain,
    in_flight: InFlightTable,
    spare_buffers: Vec<GuestBuffers>,
    completions: Vec<Completion>,
    /// The operation that the backend had no room for. While there is one, nothing is popped.
    stalled: Option<(Token, BlockOperation)>,
    batch: Batch,
    /// Since when there is something that the driver was not told of.
    unpublished: Option<Instant>,
    linger: Linger,
    blocked: Blocked,
    intake: Intake,
    /// Bytes that this wake has taken on.
    taken_bytes: u64,
    /// When the chains that are popped now were noticed, once one needs to know.
    noticed: Option<Instant>,
    log: FaultLog,
}

/// Whether chains are popped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Intake {
    Open,
    /// The machine's owner wants the queue quiet.
    Held,
    /// The backing has no space, and a request is kept until the device goes on after a stop.
    Full,
}

/// Whether what is available has to wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blocked {
    No,
    Yes,
}

/// What became of a chain that was popped.
#[derive(PartialEq, Eq)]
enum Begun {
    Yes,
    /// It may not begin yet, and is back in its ring. Something will wake us.
    Throttled,
}

/// Where a popped chain comes from, and is put back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Ring,
    /// It was popped before, and kept.
    Kept,
}

impl BlkWorker {
    pub(super) fn new(
        name: &DiskName,
        log: FaultLog,
        shared: Arc<Shared>,
        idle: Idle,
        queue: ActiveQueue,
        activation: &Activation,
    ) -> Self {
        let Idle { backend, throttle } = idle;
        let entries = usize::from(queue.ring.size());
        Self {
            queue,
            interrupt: Arc::clone(&activation.interrupt),
            backend,
            throttle,
            features: activation.features,
            policy: Policy::new(shared.geometry().cache, activation.features),
            shared,
            serial: name.serial,
            chain: Chain::new(),
            in_flight: InFlightTable::default(),
            spare_buffers: Vec::new(),
            completions: Vec::new(),
            stalled: None,
            batch: Batch::new(entries),
            unpublished: None,
            linger: Linger::new(),
            blocked: Blocked::No,
            intake: Intake::Open,
            taken_bytes: 0,
            noticed: None,
            log,
        }
    }

    pub(super) fn queue_state(&self) -> QueueState {
        self.queue.ring.state()
    }

    pub(super) fn into_idle(self) -> Idle {
        Idle { backend: self.backend, throttle: self.throttle }
    }

    /// Exchanges the queue's backend for another, with nothing in flight. The queue takes nothing until it is released.
    pub(super) fn exchange_backend(&mut self, backend: &mut Box<dyn BlockBackend>) {
        assert!(self.is_quiet(), "a backend is exchanged with requests in flight");
        std::mem::swap(&mut self.backend, backend);
        self.intake = Intake::Held;
    }

    /// Serves at most a wake's worth of chains.
    fn serve(&mut self) -> Result<Progress, QueueError> {
        if self.intake != Intake::Open {
            self.unstall();
            let answered = self.commit();
            self.publish();
            self.blocked = Blocked::Yes;
            return Ok(self.after(answered));
        }
        let mut budget = CHAINS_PER_WAKE_MAX;
        self.taken_bytes = 0;
        loop {
            self.noticed = None;
            self.queue.ring.disable_notification();
            let mut begun = Begun::Yes;
            while begun == Begun::Yes && self.may_pop() && budget > 0 {
                let origin = if self.queue.ring.is_holding() { Origin::Kept } else { Origin::Ring };
                if !self.queue.ring.pop(&mut self.chain)? {
                    break;
                }
                self.taken_bytes += u64::from(self.chain.readable_len()) + u64::from(self.chain.writable_len());
                self.show_if_due();
                begun = self.begin(origin);
                budget = if self.taken_bytes < BYTES_PER_WAKE_MAX { budget - 1 } else { 0 };
            }
            let answered = self.commit();
            self.publish();
            let waits = self.stalled.is_some() || begun == Begun::Throttled || self.intake != Intake::Open;
            self.blocked = if waits { Blocked::Yes } else { Blocked::No };
            if waits {
                // The backend, the throttle or the machine's owner wakes us. Until then a doorbell would change nothing.
                return Ok(self.after(answered));
            }
            if budget == 0 {
                return Ok(Progress::More);
            }
            if !self.is_followed_up() && !self.queue.ring.enable_notification()? {
                return Ok(Progress::Idle);
            }
        }
    }

    /// What to do while nothing is popped. If a commit has answered something, there may be room for what is stalled, and
    /// nobody else to tell of it.
    fn after(&self, answered: bool) -> Progress {
        if answered && self.stalled.is_some() { Progress::More } else { Progress::Idle }
    }

    /// Whether the driver makes more available at once. What the backend has pending tells of itself instead.
    fn is_followed_up(&mut self) -> bool {
        let ring = &self.queue.ring;
        ring.in_flight() == 0 && self.linger.finds(|| ring.is_available())
    }

    /// Whether the next chain may be popped. An operation that had no room goes first.
    fn may_pop(&mut self) -> bool {
        self.unstall() && self.intake == Intake::Open
    }

    /// Turns the popped chain into an operation, or answers it at once.
    fn begin(&mut self, origin: Origin) -> Begun {
        let head = self.chain.head();
        let Some(status) = request::status_address(&self.chain) else {
            self.log.report(format_args!("request without room for a status"));
            self.count_error();
            self.use_chain(head, 0, 0);
            return Begun::Yes;
        };
        let data_len = self.chain.writable_len() - STATUS_LEN;
        let geometry = self.shared.geometry();
        let disk = Disk {
            sectors: self.shared.sectors(),
            align: geometry.transfer_align(),
            access: geometry.access,
            features: self.features,
        };
        let request = request::parse(self.queue.ring.memory(), &self.chain, data_len, &disk);
        if let (Some(throttle), Ok(request)) = (&mut self.throttle, &request) {
            let (flow, bytes) = request.share();
            if !throttle.admit(flow, bytes) {
                match origin {
                    Origin::Ring => self.queue.ring.unpop(1),
                    Origin::Kept => self.queue.ring.hold_first(head),
                }
                return Begun::Throttled;
            }
        }
        match request {
            Ok(request) => {
                let since = *self.noticed.get_or_insert_with(Instant::now);
                self.perform(InFlight { head, status, written: 0, since }, request);
            }
            Err(refused) => {
                self.log.report(format_args!("{}", refused.reason));
                self.count_error();
                self.answer(head, status, refused.status, 0, 0);
            }
        }
        Begun::Yes
    }

    fn perform(&mut self, in_flight: InFlight, request: Request) {
        let InFlight { head, status, .. } = in_flight;
        match request {
            Request::Read { offset, len } => {
                let mut buffers = self.buffers();
                buffers.fill(self.chain.writable(), 0, len);
                self.submit(InFlight { written: len, ..in_flight }, BlockAction::Read, offset, buffers);
            }
            Request::Write { offset, len } => {
                let mut buffers = self.buffers();
                buffers.fill(self.chain.readable(), HEADER_LEN, len);
                self.submit(in_flight, BlockAction::Write(self.policy.writes), offset, buffers);
            }
            Request::Flush if self.policy.flush == Flush::Ignored => self.answer(head, status, Status::Ok, 0, 0),
            Request::Flush => {
                let buffers = self.buffers();
                self.submit(in_flight, BlockAction::Flush, 0, buffers);
            }
            Request::Discard { offset, len } => {
                let buffers = self.buffers();
                self.submit(in_flight, BlockAction::Discard { len }, offset, buffers);
            }
            Request::WriteZeroes { offset, len, space } => {
                self.taken_bytes += len;
                let buffers = self.buffers();
                let action = BlockAction::WriteZeroes { len, space, durability: self.policy.writes };
                self.submit(in_flight, action, offset, buffers);
            }
            Request::GetId => {
                let written = self.write_serial();
                self.answer(head, status, Status::Ok, written, 0);
            }
        }
    }

    fn submit(&mut self, request: InFlight, action: BlockAction, offset: u64, buffers: GuestBuffers) {
        let token = self.in_flight.insert(request);
        self.submit_operation(token, BlockOperation { action, offset, buffers });
    }

    fn submit_operation(&mut self, token: Token, operation: BlockOperation) {
        match self.backend.submit(token, operation) {
            Submission::Done(completion) => self.complete(completion),
            Submission::Pending => {}
            Submission::Ripe => {
                self.reap(|backend, completions| backend.poll(completions));
            }
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
        let BlockOperation { action, offset, buffers } = operation;
        let bytes = buffers.len();
        self.spare_buffers.push(buffers);
        let InFlight { head, status, written, since } = self.in_flight.remove(token);
        match result {
            Ok(()) => {
                self.batch.add_served(action, bytes, since);
                self.answer(head, status, Status::Ok, written, bytes);
            }
            Err(error) if self.keeps(action, &error) => {
                let moved = if let BlockAction::WriteZeroes { len, .. } = action { len } else { bytes };
                self.keep(head, moved);
            }
            Err(error) => {
                self.batch.add_served(action, 0, since);
                self.log.report(format_args!("{action:?} of {bytes} bytes at {offset:#x}: {error}"));
                self.count_error();
                self.answer(head, status, Status::IoError, 0, 0);
            }
        }
    }

    /// Whether a request is kept until there is space for it. A flush through the page cache is not: the host forgets what
    /// it could not write, and a second flush would say that it was written.
    fn keeps(&self, action: BlockAction, error: &io::Error) -> bool {
        let cached = self.shared.geometry().cache != CacheMode::Direct;
        let changes = match action {
            BlockAction::Read => false,
            BlockAction::Flush => !cached,
            BlockAction::Write(_) | BlockAction::Discard { .. } | BlockAction::WriteZeroes { .. } => true,
        };
        changes && self.shared.keeps_when_full() && matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
    }

    /// Puts a request aside that was to move so many bytes. It did not happen, and asks the limiter again when it is tried
    /// again: the driver may have changed it by then.
    fn keep(&mut self, head: u16, bytes: u64) {
        if let Some(throttle) = &self.throttle {
            throttle.give_back(Flow::Out, bytes);
        }
        self.queue.ring.hold(head);
        if self.intake != Intake::Full {
            self.intake = Intake::Full;
            self.shared.tell_full();
        }
    }

    /// Writes the status and gives the chain back. `written` counts the data before it.
    fn answer(&mut self, head: u16, status_at: GuestAddress, status: Status, written: u32, bytes: u64) {
        let memory = self.queue.ring.memory();
        write_at(memory, status_at, &[status.byte()]);
        self.use_chain(head, written + STATUS_LEN, bytes);
    }

    fn use_chain(&mut self, head: u16, written: u32, bytes: u64) {
        self.queue.ring.add_used(head, written);
        self.batch.add(bytes);
    }

    /// The chain has room for it, in any number of pieces.
    fn write_serial(&mut self) -> u32 {
        let memory = self.queue.ring.memory();
        let mut rest = &self.serial[..];
        for segment in self.chain.writable() {
            let len = rest.len().min(usize::try_from(segment.len()).expect("32 bits fit"));
            let (here, later) = rest.split_at(len);
            write_at(memory, segment.address(), here);
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

    /// Collects what is complete by now, and hands over the rest. Whether there was anything.
    fn commit(&mut self) -> bool {
        let answered = self.reap(|backend, completions| backend.poll(completions));
        self.backend.commit();
        answered
    }

    /// Collects what the backend has completed. Whether there was anything.
    fn reap(&mut self, collect: impl FnOnce(&mut dyn BlockBackend, &mut Vec<Completion>)) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        collect(&mut *self.backend, &mut completions);
        let any = !completions.is_empty();
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        self.completions = completions;
        any
    }

    /// Shows what is done, and tells of it when that is late. The clock is not asked for a single request.
    fn show_if_due(&mut self) {
        if self.batch.requests() == 0 && self.unpublished.is_none() {
            return;
        }
        let now = Instant::now();
        self.noticed = Some(now);
        if now.duration_since(*self.unpublished.get_or_insert(now)) >= PUBLISH_AFTER {
            self.publish();
        } else if self.batch.requests() >= SHOW_AFTER {
            self.show();
        }
    }

    fn show(&mut self) {
        if self.batch.requests() == 0 {
            return;
        }
        // Before the driver can see them: who hears from it of an answer finds that counted.
        self.count_waits();
        let queue = self.shared.queue_counters(self.queue.ring.index());
        self.batch.count_into(self.shared.counters(), queue);
        self.queue.ring.show();
    }

    fn publish(&mut self) {
        self.show();
        self.unpublished = None;
        if self.queue.ring.publish() {
            self.interrupt.queue_used();
        }
    }

    fn count_error(&self) {
        DeviceCounters::add(&self.shared.counters().errors, 1);
        DeviceCounters::add(&self.shared.queue_counters(self.queue.ring.index()).errors, 1);
    }

    fn count_waits(&mut self) {
        if let Some(throttle) = &mut self.throttle {
            throttle.count_waits(&self.shared.queue_counters(self.queue.ring.index()).throttled_ns);
        }
    }

    /// The driver broke its ring: nothing is popped any more, and what is in flight completes as ever.
    fn retire(&mut self, error: QueueError) {
        self.commit();
        self.publish();
        DeviceCounters::add(&self.shared.counters().retired_queues, 1);
        self.log.report(format_args!("queue retired: {error}"));
        self.interrupt.needs_reset();
    }
}

impl Worker for BlkWorker {
    fn sources(&self) -> Vec<Source> {
        let doorbell = Source::Edge(self.queue.doorbell.as_raw_fd());
        let backend = self.backend.wake_source();
        let throttle = self.throttle.iter().flat_map(Throttle::sources);
        [Some(doorbell), backend].into_iter().flatten().chain(throttle).collect()
    }

    fn wake(&mut self) -> Progress {
        self.reap(|backend, completions| backend.poll(completions));
        let served = self.serve();
        if let Some(throttle) = &mut self.throttle {
            throttle.settle();
        }
        self.count_waits();
        served.unwrap_or_else(|error| {
            self.retire(error);
            Progress::Idle
        })
    }

    fn begin_looking(&mut self) {
        self.queue.ring.retract_notification();
    }

    fn look(&self) -> bool {
        self.blocked == Blocked::No && self.queue.ring.is_available()
    }

    fn hold(&mut self) {
        if self.intake == Intake::Open {
            self.intake = Intake::Held;
        }
        self.blocked = Blocked::Yes;
    }

    fn release(&mut self) {
        if self.intake == Intake::Held && !self.shared.is_broken() {
            self.intake = Intake::Open;
        }
    }

    fn is_quiet(&self) -> bool {
        self.queue.ring.in_flight() == 0
    }

    fn drain(&mut self) {
        loop {
            self.reap(|backend, completions| backend.drain(completions));
            if self.unstall() && self.queue.ring.in_flight() == 0 {
                break;
            }
        }
        self.publish();
        self.backend.leave_thread();
        if let Some(throttle) = &mut self.throttle {
            throttle.stop();
        }
        self.count_waits();
    }
}
