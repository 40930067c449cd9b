//! Serves a balloon's queues, on its I/O thread.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::timerfd::TimerFd;

use super::huge::{BroughtBack, Ledger};
use super::pages::{Run, for_each_run};
use super::statistics::Statistics;
use super::{DONE, HINTING, REPORTING, STATISTICS, STOP, Shared};
use crate::backend::memory::Reclaim;
use crate::bus::lock;
use crate::fault::FaultLog;
use crate::virtio::queue::{Chain, QueueError, QueueState};
use crate::virtio::transport::Interrupt;
use crate::virtio::worker::{CHAINS_PER_WAKE_MAX, Progress, Source, Worker};
use crate::virtio::{ActiveQueue, StartError};

/// How soon a pool that had no page is asked again.
const RETRY: Duration = Duration::from_millis(100);

/// The queues that were negotiated.
pub(super) struct Queues {
    inflate: ActiveQueue,
    deflate: ActiveQueue,
    statistics: Option<ActiveQueue>,
    hinting: Option<ActiveQueue>,
    reporting: Option<ActiveQueue>,
}

impl Queues {
    pub(super) fn assign(mut queues: Vec<ActiveQueue>, features: u64) -> Result<Self, StartError> {
        let mut take = |index: u16| {
            let at = queues.iter().position(|queue| queue.ring.index() == index);
            Ok::<_, StartError>(queues.swap_remove(at.ok_or(StartError::QueueMissing(index))?))
        };
        let (inflate, deflate) = (take(0)?, take(1)?);
        let mut next = 1;
        let mut optional = |feature: u64| match features & feature {
            0 => Ok(None),
            _ => {
                next += 1;
                take(next).map(Some)
            }
        };
        Ok(Self {
            inflate,
            deflate,
            statistics: optional(STATISTICS)?,
            hinting: optional(HINTING)?,
            reporting: optional(REPORTING)?,
        })
    }

    fn all(&self) -> impl Iterator<Item = &ActiveQueue> {
        let optional = [&self.statistics, &self.hinting, &self.reporting];
        [&self.inflate, &self.deflate].into_iter().chain(optional.into_iter().flatten())
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut ActiveQueue> {
        let optional = [&mut self.statistics, &mut self.hinting, &mut self.reporting];
        [&mut self.inflate, &mut self.deflate].into_iter().chain(optional.into_iter().flatten())
    }
}

/// The worker.
pub(super) struct BalloonWorker {
    queues: Queues,
    interrupt: Arc<Interrupt>,
    shared: Arc<Shared>,
    reclaim: Reclaim,
    ledger: Option<Ledger>,
    chain: Chain,
    /// The driver's buffer for statistics, which goes back to it when new ones are wanted.
    statistics_head: Option<u16>,
    statistics_timer: TimerFd,
    statistics_due: Option<Instant>,
    interval: Duration,
    retry_timer: TimerFd,
    log: FaultLog,
}

impl BalloonWorker {
    pub(super) fn new(
        queues: Queues,
        interrupt: Arc<Interrupt>,
        shared: Arc<Shared>,
        reclaim: Reclaim,
        log: FaultLog,
    ) -> io::Result<Self> {
        Ok(Self {
            queues,
            interrupt,
            shared,
            reclaim,
            ledger: None,
            chain: Chain::new(),
            statistics_head: None,
            statistics_timer: TimerFd::new()?,
            statistics_due: None,
            interval: Duration::ZERO,
            retry_timer: TimerFd::new()?,
            log,
        })
    }

    /// Goes on with what the balloon has.
    pub(super) fn with_ledger(self, ledger: Option<Ledger>) -> Self {
        Self { ledger, ..self }
    }

    pub(super) fn states(&self) -> Vec<(u16, QueueState)> {
        self.queues.all().map(|queue| (queue.ring.index(), queue.ring.state())).collect()
    }

    pub(super) fn into_ledger(self) -> Option<Ledger> {
        self.ledger
    }

    fn serve(&mut self) -> Result<Progress, QueueError> {
        self.look_at_interval();
        let mut progress = self.serve_inflate()?;
        for part in [Self::serve_deflate, Self::serve_statistics, Self::serve_hinting, Self::serve_reporting] {
            if part(self)? == Progress::More {
                progress = Progress::More;
            }
        }
        Ok(if self.bring_back() == Progress::More { Progress::More } else { progress })
    }

    /// Brings back a huge page that a driver before this one had put in: this one may touch all of memory, and on a dry pool
    /// that would be its end. One a wake, since to clear it takes long.
    fn bring_back(&mut self) -> Progress {
        let Self { ledger, reclaim, log, shared, retry_timer, .. } = self;
        let Some(ledger) = ledger else { return Progress::Idle };
        let huge = reclaim.page_bytes();
        let brought = ledger.bring_back(|number| {
            let there = reclaim.populate(GuestAddress(number * huge), huge);
            there.inspect_err(|error| log.report(format_args!("no huge page after a reset: {error}"))).is_ok()
        });
        match brought {
            BroughtBack::All => Progress::Idle,
            BroughtBack::Last => {
                shared.exhaustion.end();
                Progress::Idle
            }
            BroughtBack::One => Progress::More,
            BroughtBack::None => {
                retry_timer.reset(RETRY, None).expect("a timer takes any time");
                shared.exhaustion.begin();
                Progress::Idle
            }
        }
    }

    fn serve_inflate(&mut self) -> Result<Progress, QueueError> {
        let Self { queues, chain, shared, reclaim, ledger, log, .. } = self;
        each_chain(&mut queues.inflate, chain, |queue, chain| {
            let counters = &shared.counters;
            let discard =
                |start: u64, bytes: u64| give_back(reclaim, shared, log, (start, bytes), &counters.discarded_bytes);
            let listed = for_each_run(queue.ring.memory(), chain.readable(), |run: Run| {
                add(&counters.inflated_pages, run.count.into());
                match ledger {
                    None => {
                        discard(run.start(), run.bytes());
                    }
                    Some(ledger) => {
                        let huge = reclaim.page_bytes();
                        ledger.put_in(run, |number| discard(number * huge, huge));
                    }
                }
            });
            if listed.is_err() {
                add(&counters.errors, 1);
                log.report(format_args!("a chain to inflate that is no list of pages"));
            }
            Served::Done
        })
    }

    fn serve_deflate(&mut self) -> Result<Progress, QueueError> {
        let Self { queues, chain, shared, reclaim, ledger, log, retry_timer, .. } = self;
        each_chain(&mut queues.deflate, chain, |queue, chain| {
            let counters = &shared.counters;
            let (mut dry, mut pages) = (false, 0_u64);
            let listed = for_each_run(queue.ring.memory(), chain.readable(), |run: Run| {
                pages += u64::from(run.count);
                if let Some(ledger) = ledger
                    && !dry
                {
                    let huge = reclaim.page_bytes();
                    dry = !ledger.take_out(run, |number| {
                        let there = reclaim.populate(GuestAddress(number * huge), huge);
                        there
                            .inspect_err(|error| log.report(format_args!("no huge page to deflate with: {error}")))
                            .is_ok()
                    });
                }
            });
            if dry {
                // The driver hears nothing of its pages before they are there.
                add(&counters.exhausted, 1);
                retry_timer.reset(RETRY, None).expect("a timer takes any time");
                shared.exhaustion.begin();
                return Served::Later;
            }
            // What is still owed a driver could be given and lose again as often as it likes.
            if ledger.as_ref().is_none_or(|ledger| !ledger.is_owed()) {
                shared.exhaustion.end();
            }
            add(&counters.deflated_pages, pages);
            if listed.is_err() {
                add(&counters.errors, 1);
                log.report(format_args!("a chain to deflate that is no list of pages"));
            }
            Served::Done
        })
    }

    /// The driver's first buffer, and each that it gives back, has statistics; it is kept until new ones are wanted.
    fn serve_statistics(&mut self) -> Result<Progress, QueueError> {
        if self.queues.statistics.is_none() {
            return Ok(Progress::Idle);
        }
        let wanted = self.take_tick();
        let Some(queue) = &mut self.queues.statistics else { return Ok(Progress::Idle) };
        if wanted && let Some(head) = self.statistics_head.take() {
            queue.ring.add_used(head, 0);
        }
        if self.statistics_head.is_none() && queue.ring.pop(&mut self.chain)? {
            *lock(&self.shared.statistics) = Statistics::read(queue.ring.memory(), self.chain.readable());
            self.statistics_head = Some(self.chain.head());
        }
        // A driver has one buffer. More of them wait for the next tick.
        queue.ring.enable_notification()?;
        Ok(Progress::Idle)
    }

    fn serve_hinting(&mut self) -> Result<Progress, QueueError> {
        let Self { queues, chain, shared, reclaim, log, .. } = self;
        let Some(queue) = &mut queues.hinting else { return Ok(Progress::Idle) };
        each_chain(queue, chain, |queue, chain| {
            if let Some(command) = command(queue, chain) {
                shared.guest_command.store(command.into(), Ordering::Relaxed);
                if command == STOP && shared.acknowledge.load(Ordering::Relaxed) != 0 {
                    shared.command(DONE);
                }
            }
            let run = shared.host_command.load(Ordering::Relaxed);
            if run > DONE && shared.guest_command.load(Ordering::Relaxed) == u64::from(run) {
                discard_segments(chain, reclaim, shared, log, &shared.counters.hinted_bytes);
            }
            Served::Done
        })
    }

    fn serve_reporting(&mut self) -> Result<Progress, QueueError> {
        let Self { queues, chain, shared, reclaim, log, .. } = self;
        let Some(queue) = &mut queues.reporting else { return Ok(Progress::Idle) };
        each_chain(queue, chain, |_, chain| {
            discard_segments(chain, reclaim, shared, log, &shared.counters.reported_bytes);
            Served::Done
        })
    }

    /// Another interval counts from now, and the first statistics of it are asked for at once.
    fn look_at_interval(&mut self) {
        let interval = Duration::from_millis(self.shared.interval_ms.load(Ordering::Relaxed));
        if std::mem::replace(&mut self.interval, interval) != interval {
            self.statistics_due = (!interval.is_zero()).then(Instant::now);
        }
    }

    /// Whether statistics are due. Then the next are an interval later.
    fn take_tick(&mut self) -> bool {
        let now = Instant::now();
        let due = self.statistics_due.is_some_and(|due| due <= now);
        if due {
            self.statistics_due = now.checked_add(self.interval);
            self.statistics_timer.reset(self.interval, None).expect("a timer takes any time");
        }
        due
    }

    fn publish(&mut self) {
        for queue in self.queues.all_mut() {
            if queue.ring.publish() {
                self.interrupt.queue_used();
            }
        }
    }
}

impl Worker for BalloonWorker {
    fn sources(&self) -> Vec<Source> {
        let doorbells = self.queues.all().map(|queue| queue.doorbell.as_raw_fd());
        let timers = [self.statistics_timer.as_raw_fd(), self.retry_timer.as_raw_fd(), self.shared.ask.as_raw_fd()];
        doorbells.chain(timers).map(Source::Edge).collect()
    }

    fn wake(&mut self) -> Progress {
        let served = self.serve();
        self.publish();
        served.unwrap_or_else(|error| {
            add(&self.shared.counters.retired_queues, 1);
            self.log.report(format_args!("queue retired: {error}"));
            self.interrupt.needs_reset();
            Progress::Idle
        })
    }

    /// Nothing is in flight between two wakes but the buffer for statistics, which is as if it had never been popped.
    fn drain(&mut self) {
        if let (Some(queue), Some(_)) = (&mut self.queues.statistics, self.statistics_head.take()) {
            queue.ring.unpop(1);
        }
    }
}

/// What came of a chain.
enum Served {
    /// It goes back to the driver.
    Done,
    /// It is served again, before any other.
    Later,
}

/// Serves the chains of a queue, at most a wake's worth.
fn each_chain(
    queue: &mut ActiveQueue,
    chain: &mut Chain,
    mut serve: impl FnMut(&ActiveQueue, &Chain) -> Served,
) -> Result<Progress, QueueError> {
    for _ in 0..CHAINS_PER_WAKE_MAX {
        queue.ring.disable_notification();
        if !queue.ring.pop(chain)? {
            if queue.ring.enable_notification()? {
                continue;
            }
            return Ok(Progress::Idle);
        }
        match serve(queue, chain) {
            Served::Done => queue.ring.add_used(chain.head(), 0),
            Served::Later => {
                queue.ring.hold(chain.head());
                return Ok(Progress::Idle);
            }
        }
    }
    Ok(Progress::More)
}

/// The number that a hinting chain's readable part is.
fn command(queue: &ActiveQueue, chain: &Chain) -> Option<u32> {
    let first = chain.readable().first().filter(|segment| segment.len() >= 4)?;
    let mut bytes = [0; 4];
    queue.ring.memory().read_slice(&mut bytes, first.address()).expect("the chain was checked to be in memory");
    Some(u32::from_le_bytes(bytes))
}

fn discard_segments(chain: &Chain, reclaim: &Reclaim, shared: &Shared, log: &FaultLog, counter: &AtomicU64) {
    for segment in chain.writable() {
        give_back(reclaim, shared, log, (segment.address().0, segment.len().into()), counter);
    }
}

/// Gives a range to the host. False if it does not take it.
fn give_back(
    reclaim: &Reclaim,
    shared: &Shared,
    log: &FaultLog,
    (start, bytes): (u64, u64),
    counter: &AtomicU64,
) -> bool {
    match reclaim.discard(GuestAddress(start), bytes) {
        Ok(bytes) => add(counter, bytes),
        Err(ref error) => {
            add(&shared.counters.errors, 1);
            log.report(format_args!("{bytes} bytes at {start:#x} are not given back: {error}"));
            return false;
        }
    }
    true
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
