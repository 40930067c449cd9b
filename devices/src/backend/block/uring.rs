//! A disk in a file or on a block device, by io_uring.
//!
//! A ring may do nothing but transfer, flush and give back space on its one file: the kernel holds it to that. What
//! the page cache can answer at once never sees it ([`CachedReads`]); nor does a flush that is alone, as long as the last
//! one took no longer than to hand it to a kernel thread. Everything else waits in the kernel, and one call a batch
//! submits it all.
//!
//! Architecture invariant: each slot has at most one entry in the ring, which has as many entries as there are slots;
//! so an operation that was taken always finds room for its next step.
#![expect(unsafe_code, reason = "entries with addresses of guest memory are handed to the kernel")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::bounce::BouncePool;
use super::cached::CachedReads;
use super::file::{Waiting, durability_flag, perform};
use super::image::Kind;
use super::job::{Job, Pieces, Step, Verdict};
use super::syncs::Doubt;
use super::{BlockAction, BlockBackend, BlockOperation, Completion, DiskGeometry, DiskImage, Submission, Token};
use crate::backend::burst;
use crate::virtio::worker::Source;

/// Operations in the kernel at once: what one guest queue may keep busy.
const SLOTS: u32 = 128;

/// Kernel threads for what would block, such as a flush: enough for a disk, few enough for a host of many.
const WORKERS_MAX: u32 = 8;

/// Unaligned transfers at once.
const BOUNCE_BUFFERS: usize = 4;

/// A flush that took so long delays others less than its way to a kernel thread and back does itself.
const QUICK_FLUSH: Duration = Duration::from_micros(500);

/// The ring's only registered file.
const FILE: Fixed = Fixed(0);

/// `_IO(0x12, 0)`, linux/blkdev.h: the discard of a block device as a ring's command.
const BLOCK_URING_CMD_DISCARD: u32 = 0x1200;

/// `IORING_UNREGISTER_FILES`, linux/io_uring.h: all that may be changed about a ring in use.
const UNREGISTER_FILES: u8 = 3;

/// Why there is no ring.
#[derive(Debug, Error)]
pub enum RingError {
    /// The kernel has none for us: it is old, or `kernel.io_uring_disabled` is set, or a filter forbids it.
    #[error("cannot create an io_uring")]
    Create(#[source] io::Error),
    /// The kernel does not confine it.
    #[error("cannot {0}")]
    Confine(&'static str, #[source] io::Error),
}

impl RingError {
    /// What the host said, if it would have given a ring to a process with fewer descriptors: then this one can hardly
    /// go on. Else the host has no rings, for which there is a way around.
    ///
    /// # Errors
    /// The other kind.
    pub fn exhaustion(self) -> Result<io::Error, Self> {
        match self {
            Self::Create(source) if matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => Ok(source),
            other => Err(other),
        }
    }
}

/// The asynchronous backend.
///
/// A ring belongs to the thread that submits first, until [`BlockBackend::leave_thread`]. The kernel keeps what a ring
/// has registered for a while after its end, and with the file its lock: so the file is taken back before.
pub struct UringBackend {
    image: Arc<DiskImage>,
    /// None between two threads, and when the kernel gives no other one.
    ring: Option<IoUring>,
    /// Signalled by the kernel. The ring's own descriptor is not, before deferred work was run.
    news: Arc<EventFd>,
    life: Life,
    slots: Box<[Option<Job>]>,
    free: Vec<u32>,
    /// Jobs that are done, and keep their slots until other queues' syncs have ended: their own are worth what those are.
    doubted: Vec<Doubted>,
    pool: BouncePool,
    cached: CachedReads,
    /// Reads that the cache had not, while they begin.
    missed: Vec<(Token, BlockOperation)>,
    device_discard: Route,
    /// When the newest flush began, if it was alone.
    flush_began: Option<Instant>,
    /// How the next flush is done that is alone, by how long the last one took.
    lone_flush: Route,
}

struct Doubted {
    slot: u32,
    job: Job,
    doubt: Doubt,
}

/// Where a ring is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// It belongs to no thread yet.
    Disabled,
    Enabled,
    /// Its thread has left it, and the next one needs another.
    Left,
}

const HAS_RING: &str = "a job in a slot has a ring";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Ring,
    Call,
}

impl UringBackend {
    /// A backend over an open image, which it may share with those of other queues.
    ///
    /// # Errors
    /// [`RingError`], and then [`super::FileBackend`] does it.
    pub fn new(image: Arc<DiskImage>) -> Result<Self, RingError> {
        let news = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(RingError::Create)?);
        let ring = create()?;
        confine(&ring, image.file().as_raw_fd(), news.as_raw_fd())?;
        let align = image.direct().map_or(1, |alignment| alignment.memory);
        Ok(Self {
            cached: CachedReads::new(&image),
            missed: Vec::new(),
            image,
            ring: Some(ring),
            news,
            life: Life::Disabled,
            slots: (0..SLOTS).map(|_| None).collect(),
            free: (0..SLOTS).rev().collect(),
            doubted: Vec::new(),
            pool: BouncePool::new(BOUNCE_BUFFERS, align),
            device_discard: Route::Ring,
            flush_began: None,
            lone_flush: Route::Ring,
        })
    }

    /// Whether the next step of the job is done without the ring.
    ///
    /// A write goes into the page cache here, as with the synchronous backend: no file system of ours takes it without
    /// the right to wait, and the ring would hand it to a kernel thread, for several times the cost.
    fn is_done_here(&self, job: &Job) -> bool {
        let kind = self.image.kind();
        match job.action() {
            _ if kind == Kind::MemoryFile || self.ring.is_none() => true,
            BlockAction::Write(_) => self.image.direct().is_none() && !job.is_syncing(),
            BlockAction::Discard { .. } => kind == Kind::Device && self.device_discard == Route::Call,
            BlockAction::Flush => self.lone_flush == Route::Call && self.is_alone(),
            _ => false,
        }
    }

    /// Does the steps of the job here that are. Its result if those are all.
    fn do_here(&mut self, job: &mut Job) -> Option<io::Result<()>> {
        while self.is_done_here(job) {
            self.image.watch(job);
            let answer = perform(self.image.file(), self.step(job), Waiting::Allowed);
            if let Verdict::End(result) = job.advance(answer) {
                self.note_end(job.action());
                return Some(result);
            }
        }
        None
    }

    /// Remembers how quick a flush was.
    fn note_end(&mut self, action: BlockAction) {
        if action == BlockAction::Flush
            && let Some(began) = self.flush_began.take()
        {
            self.lone_flush = lone_flush_after(began.elapsed());
        }
    }

    /// Whether the job that is being submitted is the only one.
    fn is_alone(&self) -> bool {
        self.busy() == 1
    }

    /// Reads what the page cache has. The rest goes into the ring.
    fn read_cached(&mut self, completions: &mut Vec<Completion>) {
        if self.cached.len() == 0 {
            return;
        }
        let mut missed = std::mem::take(&mut self.missed);
        self.cached.attempt(&self.image, completions, &mut missed);
        for (token, operation) in missed.drain(..) {
            match self.begin(token, operation) {
                Submission::Done(completion) => completions.push(completion),
                Submission::Pending => {}
                Submission::Ripe | Submission::Full(_) => unreachable!("each read that waits has a slot left for it"),
            }
        }
        self.missed = missed;
    }

    /// Begins an operation that the page cache does not answer.
    fn begin(&mut self, token: Token, operation: BlockOperation) -> Submission {
        let Some(slot) = self.free.pop() else {
            return Submission::Full(operation);
        };
        let mut job = match Job::new(token, operation, self.image.direct(), &mut self.pool) {
            Ok(job) => job,
            Err(operation) => {
                self.free.push(slot);
                return Submission::Full(operation);
            }
        };
        if self.life == Life::Left {
            self.renew();
        }
        if job.action() == BlockAction::Flush {
            self.flush_began = self.is_alone().then(Instant::now);
        }
        if let Some(result) = self.do_here(&mut job) {
            let done = self.end(slot, job, result);
            if done.is_none() {
                // The next poll asks. It fails only when 2^64 - 2 signals are unseen, and then one is pending.
                let _pending = self.news.write(1);
            }
            return done.map_or(Submission::Pending, Submission::Done);
        }
        self.slots[index(slot)] = Some(job);
        self.enqueue(slot);
        Submission::Pending
    }

    fn step(&self, job: &mut Job) -> Step {
        job.next(self.image.kind() == Kind::Device)
    }

    /// Puts the next step of the job in `slot` into the ring.
    fn enqueue(&mut self, slot: u32) {
        let is_device = self.image.kind() == Kind::Device;
        let job = self.slots[index(slot)].as_mut().expect("a job waits in its slot");
        self.image.watch(job);
        let entry = entry(job.next(is_device)).flags(Flags::FIXED_FILE).user_data(slot.into());
        let mut submission = self.ring.as_mut().expect(HAS_RING).submission();
        // SAFETY: an entry's pointers must hold until its completion = they point into guest memory, iovecs and
        // buffers that the job owns, which stays in its slot until then, also when this is dropped.
        unsafe { submission.push(&entry) }.expect("each slot has room for an entry");
    }

    /// Fails on a thread that the ring does not belong to; then the kernel does it when it has time.
    fn take_file_back(&mut self) {
        let _late = self.ring.as_ref().map(|ring| ring.submitter().unregister_files());
    }

    /// A ring for the thread that we are on now. Without one, all is done by plain calls.
    fn renew(&mut self) {
        let ring = create().and_then(|ring| {
            confine(&ring, self.image.file().as_raw_fd(), self.news.as_raw_fd())?;
            Ok(ring)
        });
        self.life = Life::Disabled;
        self.ring = ring.ok();
        if self.ring.is_none() {
            log::warn!("the host gives no other io_uring: a disk goes on with engine=sync");
        }
    }

    /// The kernel has run something for us that it has not told of.
    fn has_deferred(&mut self) -> bool {
        self.ring.as_mut().is_some_and(|ring| ring.submission().taskrun())
    }

    /// Jobs in the ring or the kernel, and the one that is being submitted.
    fn busy(&self) -> usize {
        self.slots.len() - self.free.len() - self.doubted.len()
    }

    /// Hands queued entries over and runs what the kernel has deferred to us, waiting for `want` completions.
    fn enter(&mut self, want: usize) -> io::Result<()> {
        let ring = self.ring.as_mut().expect(HAS_RING);
        if self.life == Life::Disabled {
            // All works without.
            let _ = keep_workers_here(ring);
            ring.submitter().register_enable_rings()?;
            self.life = Life::Enabled;
        }
        burst::hand_over(ring, want)
    }

    fn enter_own(&mut self, want: usize) {
        self.enter(want).expect("our own ring takes our entries, from the one thread that uses it");
    }

    /// Takes completions out of the ring; what needs another step goes back in.
    fn reap(&mut self, completions: &mut Vec<Completion>) {
        while let Some((slot, answer)) = self.next_answer() {
            let mut job = self.slots[index(slot)].take().expect("a completion belongs to a job");
            let answer = self.discard_by_call(&mut job, answer);
            match job.advance(answer) {
                Verdict::Again => {
                    self.slots[index(slot)] = Some(job);
                    self.enqueue(slot);
                }
                Verdict::End(result) => {
                    self.note_end(job.action());
                    completions.extend(self.end(slot, job, result));
                }
            }
        }
    }

    /// Gives the job of a slot up, unless it is in doubt what it was worth.
    fn end(&mut self, slot: u32, mut job: Job, result: io::Result<()>) -> Option<Completion> {
        match self.image.settle(&mut job, result) {
            Ok(result) => {
                self.free.push(slot);
                Some(job.finish(result, &mut self.pool))
            }
            Err(doubt) => {
                self.doubted.push(Doubted { slot, job, doubt });
                None
            }
        }
    }

    /// Gives those up that were in doubt, and are by `verdict` no longer.
    fn resolve(
        &mut self,
        completions: &mut Vec<Completion>,
        verdict: impl Fn(&Self, &Doubt) -> Option<io::Result<()>>,
    ) {
        let mut next = 0;
        while let Some(doubted) = self.doubted.get(next) {
            match verdict(self, &doubted.doubt) {
                Some(result) => {
                    let Doubted { slot, job, .. } = self.doubted.swap_remove(next);
                    self.free.push(slot);
                    completions.push(job.finish(result, &mut self.pool));
                }
                None => next += 1,
            }
        }
    }

    /// What the syncs of other queues say by now; they tell when there is more.
    fn ask(&self, doubt: &Doubt) -> Option<io::Result<()>> {
        self.image.syncs().ask(doubt, &self.news)
    }

    fn next_answer(&mut self) -> Option<(u32, io::Result<usize>)> {
        let completion = self.ring.as_mut()?.completion().next()?;
        let slot = u32::try_from(completion.user_data()).expect("a completion names its slot");
        Some((slot, burst::moved(completion.result())))
    }

    /// Discards on a block device without the ring where the kernel has no such command yet (it came with 6.12).
    fn discard_by_call(&mut self, job: &mut Job, answer: io::Result<usize>) -> io::Result<usize> {
        let is_discard = matches!(job.action(), BlockAction::Discard { .. }) && self.image.kind() == Kind::Device;
        match &answer {
            Err(error) if is_discard && matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                self.device_discard = Route::Call;
                perform(self.image.file(), self.step(job), Waiting::Allowed)
            }
            _ => answer,
        }
    }
}

impl BlockBackend for UringBackend {
    fn geometry(&self) -> DiskGeometry {
        self.image.geometry()
    }

    fn submit(&mut self, token: Token, operation: BlockOperation) -> Submission {
        // Each read that waits may need a slot in the end.
        if self.free.len() <= self.cached.len() {
            return Submission::Full(operation);
        }
        if !self.cached.suits(&operation) {
            return self.begin(token, operation);
        }
        self.cached.add(token, operation);
        if self.cached.is_full() { Submission::Ripe } else { Submission::Pending }
    }

    fn commit(&mut self) {
        if self.ring.as_mut().is_some_and(|ring| !ring.submission().is_empty()) {
            self.enter_own(0);
        }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        self.read_cached(completions);
        if self.free.len() == self.slots.len() {
            return;
        }
        // The kernel runs a part of its deferred work at a time, and signals only the first of it.
        while self.has_deferred() {
            self.enter_own(0);
            self.reap(completions);
        }
        self.reap(completions);
        self.resolve(completions, Self::ask);
        self.commit();
    }

    fn drain(&mut self, completions: &mut Vec<Completion>) {
        self.read_cached(completions);
        while self.busy() > 0 {
            self.enter_own(1);
            self.reap(completions);
        }
        // The others may be those of a queue on this very thread, and are not waited for: what is stopped without having been quiet
        // is not believed.
        self.resolve(completions, |backend, doubt| {
            Some(backend.ask(doubt).unwrap_or_else(|| Err(io::Error::from_raw_os_error(libc::EIO))))
        });
    }

    fn leave_thread(&mut self) {
        if self.life == Life::Enabled {
            self.take_file_back();
            self.ring = None;
            self.life = Life::Left;
        }
    }

    fn wake_source(&self) -> Option<Source> {
        Some(Source::Edge(self.news.as_raw_fd()))
    }
}

impl Drop for UringBackend {
    /// The kernel may not write into memory that is gone: what it still has is waited for, or never freed.
    fn drop(&mut self) {
        while self.busy() > 0 {
            if self.enter(1).is_err() {
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            self.reap(&mut Vec::new());
        }
        self.take_file_back();
    }
}

/// Completions are worked off by our own calls and not by interrupting us, where the kernel knows how (6.1).
fn create() -> Result<IoUring, RingError> {
    let mut builder = IoUring::builder();
    builder.setup_r_disabled().setup_clamp().dontfork();
    let mut modern = builder.clone();
    modern.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    match modern.build(SLOTS) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => builder.build(SLOTS).map_err(RingError::Create),
        ring => ring.map_err(RingError::Create),
    }
}

/// Leaves a ring that is not enabled yet with one file, a few kinds of operations on it, and bounded kernel threads.
fn confine(ring: &IoUring, file: RawFd, news: RawFd) -> Result<(), RingError> {
    use io_uring::register::Restriction;
    let submitter = ring.submitter();
    let attempt = |what, result: io::Result<()>| result.map_err(|source| RingError::Confine(what, source));
    attempt("register a disk with its io_uring", submitter.register_files(&[file]))?;
    attempt("register an eventfd with an io_uring", submitter.register_eventfd(news))?;
    // Two kinds of kernel threads: for regular files and for all else.
    let workers = submitter.register_iowq_max_workers(&mut [WORKERS_MAX, WORKERS_MAX]);
    attempt("bound the threads of an io_uring", workers)?;
    let operations = [
        opcode::Read::CODE,
        opcode::Readv::CODE,
        opcode::Write::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::UringCmd16::CODE,
    ];
    let mut restrictions: Vec<_> = operations.map(Restriction::sqe_op).into();
    restrictions.push(Restriction::register_op(UNREGISTER_FILES));
    restrictions.push(Restriction::sqe_flags_allowed(Flags::FIXED_FILE.bits()));
    restrictions.push(Restriction::sqe_flags_required(Flags::FIXED_FILE.bits()));
    attempt("restrict an io_uring", submitter.register_restrictions(&mut restrictions))
}

/// The kernel's threads for what would block run where our thread may. Before Linux 6.2 they ran anywhere in its cpuset unless
/// that was said, and before 5.18 it cannot be said in time.
fn keep_workers_here(ring: &mut IoUring) -> io::Result<()> {
    let cpus = allowed_cpus()?;
    let mut submitter = ring.submitter();
    // That makes our thread one of those that have such threads, which its first operation would do too late.
    submitter.register_ring_fd()?;
    let kept = submitter.register_iowq_aff(&cpus);
    // The ring may go to another thread, which an index of this one's is nothing to.
    submitter.unregister_ring_fd().and(kept)
}

/// The CPUs that our thread may run on: an error on a host of more than a set has room for.
fn allowed_cpus() -> io::Result<libc::cpu_set_t> {
    // SAFETY: a set is bits, for which zero is a value.
    let mut cpus: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: sched_getaffinity writes to the set's bytes, and no more than their number.
    let told = unsafe { libc::sched_getaffinity(0, size_of_val(&cpus), &raw mut cpus) } == 0;
    if told { Ok(cpus) } else { Err(io::Error::last_os_error()) }
}

/// How to do a flush after one that took so long.
fn lone_flush_after(took: Duration) -> Route {
    if took <= QUICK_FLUSH { Route::Call } else { Route::Ring }
}

/// A step as the ring takes it.
fn entry(step: Step) -> Entry {
    let len_of = |len: usize| u32::try_from(len).expect("a piece of guest memory has 32 bits of bytes");
    match step {
        Step::Read(Pieces::One { address, len }, offset) => {
            opcode::Read::new(FILE, address.cast(), len_of(len)).offset(offset).build()
        }
        Step::Read(Pieces::Many { first, count }, offset) => {
            opcode::Readv::new(FILE, first, len_of(count)).offset(offset).build()
        }
        Step::Write(Pieces::One { address, len }, offset, durability) => {
            let write = opcode::Write::new(FILE, address.cast_const().cast(), len_of(len));
            write.offset(offset).rw_flags(durability_flag(durability)).build()
        }
        Step::Write(Pieces::Many { first, count }, offset, durability) => {
            let write = opcode::Writev::new(FILE, first, len_of(count));
            write.offset(offset).rw_flags(durability_flag(durability)).build()
        }
        Step::Sync => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
        Step::Allocate(mode, offset, len) => opcode::Fallocate::new(FILE, len).offset(offset).mode(mode).build(),
        Step::DeviceDiscard(offset, len) => {
            // The start goes where an address does, the length where a command's own data begins.
            let mut data = [0; 16];
            data[..8].copy_from_slice(&len.to_ne_bytes());
            opcode::UringCmd16::new(FILE, BLOCK_URING_CMD_DISCARD).addr(Some(offset)).cmd(data).build()
        }
    }
}

fn index(slot: u32) -> usize {
    usize::try_from(slot).expect("32 bits fit")
}

#[cfg(test)]
mod tests;
