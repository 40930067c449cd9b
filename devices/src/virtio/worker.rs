//! The threads that serve queues: an [`IoThread`] hosts any number of [`Worker`]s.
//!
//! The machine's owner spawns and joins the thread; devices attach and detach workers through a [`IoThreadHandle`].
//! A worker belongs to the thread between the two, so its rings and its backend need no lock.
//!
//! Architecture invariant: the thread sleeps in epoll, and nothing but an event wakes it. One that polls looks for more
//! work for a bounded time after it had some, and then sleeps like any other.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What a worker may do in one wake before its siblings get their turn.
pub const CHAINS_PER_WAKE_MAX: u16 = 64;

/// The loop keeps its large things on the heap.
const STACK_BYTES: usize = 256 << 10;

const EVENTS_PER_WAIT: usize = 32;

/// Looks between two questions to the epoll, which cost a system call each.
const LOOKS_PER_COLLECT: u32 = 16;

/// The epoll data of the thread's own eventfd. A worker's is its slot and the number of the descriptor.
const COMMANDS: u64 = u64::MAX;

/// Something that serves queues on an I/O thread.
pub trait Worker: Send + 'static {
    /// The descriptors that wake the worker. They stay the same and open as long as it is attached.
    fn sources(&self) -> Vec<Source>;

    /// Does what there is to do. It is called once after attaching and then whenever a source fired, and must not
    /// trust that there is something to do.
    fn wake(&mut self) -> Progress;

    /// Prepares for [`Self::look`]: what is looked for needs no doorbell. [`Self::wake`] undoes it.
    fn begin_looking(&mut self) {}

    /// Whether a wake would find something, seen without a system call.
    fn look(&self) -> bool {
        false
    }

    /// Whether the level sources may wake the worker. The thread asks when the worker is attached and after each wake;
    /// a worker that could do nothing with what they have says no, or it would be woken over and over.
    fn is_listening(&self) -> bool {
        true
    }

    /// Takes nothing new until [`Self::release`]; what is in flight completes as ever.
    fn hold(&mut self) {}

    /// Undoes [`Self::hold`].
    fn release(&mut self) {}

    /// Whether nothing is in flight, so that [`Self::drain`] has nothing to wait for.
    fn is_quiet(&self) -> bool {
        true
    }

    /// Completes all that is in flight, and takes nothing new. After it the worker leaves the thread.
    fn drain(&mut self);
}

/// A descriptor that wakes a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An eventfd that nobody reads: each signal wakes once. It saves a system call a wake.
    Edge(RawFd),
    /// Wakes for as long as it is readable and the worker listens.
    Level(RawFd),
    /// Wakes for as long as it is writable and the worker listens.
    LevelWritable(RawFd),
}

/// What a worker says after a wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left to do until a source fires.
    Idle,
    /// There is more; the siblings go first.
    More,
}

/// A thread, to be joined by its owner. It runs from [`Self::start`], or from the first worker that is attached.
#[derive(Debug)]
pub struct IoThread {
    name: String,
    handle: IoThreadHandle,
}

/// Access to an I/O thread for a device.
#[derive(Clone)]
pub struct IoThreadHandle {
    commands: Sender<Command>,
    event: Arc<EventFd>,
    life: Arc<Mutex<Life>>,
}

/// Where a thread is in its life. Locked by who attaches, starts or ends, never by the thread.
enum Life {
    /// Its loop, which runs nowhere yet.
    Prepared {
        name: String,
        host: Host,
    },
    Running(JoinHandle<()>),
    Ended,
}

/// A worker that is on an I/O thread. Dropping it without [`Self::detach`] leaves the worker there.
#[derive(Debug)]
pub struct Attachment<W> {
    thread: IoThreadHandle,
    slot: usize,
    back: Receiver<W>,
}

/// A worker that was asked to take nothing new.
#[derive(Debug)]
pub struct Holding {
    quiet: Receiver<()>,
}

/// A worker that could not be attached.
#[derive(Debug)]
pub struct AttachError<W> {
    /// Why.
    pub error: io::Error,
    /// The worker, unless the thread ended just then and took it along.
    pub worker: Option<W>,
}

enum Command {
    Attach(Box<dyn Hosted>, Sender<io::Result<usize>>),
    Detach(usize),
    /// The sender is told when nothing is in flight.
    Hold(usize, Sender<()>),
    Release(usize),
    /// The sender is told the thread's number.
    Identify(Sender<io::Result<i32>>),
    Exit,
}

impl IoThread {
    /// Starts a thread called `name` (at most 15 bytes show).
    ///
    /// # Errors
    /// Those of its epoll, its eventfd and its creation.
    pub fn spawn(name: &str) -> io::Result<Self> {
        Self::spawn_polling(name, Duration::ZERO)
    }

    /// As [`Self::spawn`], with a thread that looks for more work for `poll` before it sleeps.
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub fn spawn_polling(name: &str, poll: Duration) -> io::Result<Self> {
        let thread = Self::prepare(name, poll)?;
        thread.start()?;
        Ok(thread)
    }

    /// As [`Self::spawn_polling`], but for the start: a machine's first instruction waits for no thread that it does not need.
    ///
    /// # Errors
    /// Those of its epoll and its eventfd.
    pub fn prepare(name: &str, poll: Duration) -> io::Result<Self> {
        let (commands, queue) = mpsc::channel();
        let event = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let epoll = Epoll::new()?;
        let interest = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, COMMANDS);
        epoll.ctl(ControlOperation::Add, event.as_raw_fd(), interest)?;
        let host = Host { epoll, queue, slots: Vec::new(), poll };
        let life = Arc::new(Mutex::new(Life::Prepared { name: name.to_owned(), host }));
        Ok(Self { name: name.to_owned(), handle: IoThreadHandle { commands, event, life } })
    }

    /// Lets the thread run, if it does not yet.
    ///
    /// # Errors
    /// That of its creation; then it never runs.
    pub fn start(&self) -> io::Result<()> {
        self.handle.start()
    }

    /// Access for a device.
    pub fn handle(&self) -> IoThreadHandle {
        self.handle.clone()
    }

    /// The name that it was given, all of it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kernel's number for the thread, which runs from now on.
    ///
    /// # Errors
    /// The kernel does not tell it, or the thread cannot be created.
    pub fn id(&self) -> io::Result<i32> {
        self.start()?;
        let (reply, id) = mpsc::channel();
        self.handle.send(Command::Identify(reply));
        id.recv().expect("an I/O thread answers until its owner ends it")
    }

    /// Ends the thread and waits for it. Workers that are still attached are drained first.
    pub fn join(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let life = mem::replace(&mut *self.handle.life(), Life::Ended);
        if let Life::Running(thread) = life {
            self.handle.send(Command::Exit);
            thread.join().expect("an I/O thread that panics aborts the process");
        }
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.end();
    }
}

impl std::fmt::Debug for IoThreadHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoThreadHandle").field("event", &self.event).finish_non_exhaustive()
    }
}

impl IoThreadHandle {
    /// Puts `worker` on the thread, and returns when it is there. It is woken once.
    ///
    /// # Errors
    /// [`AttachError`], if the thread cannot be created or has ended, or if its epoll refuses a source.
    pub fn attach<W: Worker>(&self, worker: W) -> Result<Attachment<W>, AttachError<W>> {
        if let Err(error) = self.start() {
            return Err(AttachError { error, worker: Some(worker) });
        }
        let (give_back, back) = mpsc::channel();
        let (reply, slot) = mpsc::channel();
        self.send(Command::Attach(Box::new(Guest { worker, give_back }), reply));
        let ended = |_| Err(io::Error::other("the I/O thread has ended"));
        match slot.recv().unwrap_or_else(ended) {
            Ok(slot) => Ok(Attachment { thread: self.clone(), slot, back }),
            Err(error) => Err(AttachError { error, worker: back.recv().ok() }),
        }
    }

    fn start(&self) -> io::Result<()> {
        let mut life = self.life();
        *life = match mem::replace(&mut *life, Life::Ended) {
            Life::Prepared { name, host } => {
                Life::Running(Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || host.run())?)
            }
            other => other,
        };
        Ok(())
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().expect("a thread that panics aborts the process")
    }

    fn send(&self, command: Command) {
        // Fails only when the thread has ended; who waits for an answer then finds its channel closed.
        if self.commands.send(command).is_ok() {
            let _pending = self.event.write(1);
        }
    }
}

impl<W> Attachment<W> {
    /// Asks the worker to take nothing new. [`Self::release`] or [`Self::detach`] ends that.
    pub fn hold(&self) -> Holding {
        let (tell, quiet) = mpsc::channel();
        self.thread.send(Command::Hold(self.slot, tell));
        Holding { quiet }
    }

    /// Lets the worker go on.
    pub fn release(&self) {
        self.thread.send(Command::Release(self.slot));
    }

    /// Takes the worker off the thread: it is drained there, and then it is the caller's.
    pub fn detach(self) -> W {
        self.thread.send(Command::Detach(self.slot));
        self.back.recv().expect("a worker leaves its thread only by coming back, also when the thread ends")
    }
}

impl Holding {
    /// Waits until nothing of the worker is in flight, and then [`Attachment::detach`] is quick. False if the deadline
    /// passes first: what backs the device does not answer.
    pub fn wait_until(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        // A thread that has ended has drained its workers.
        self.quiet.recv_timeout(left) != Err(RecvTimeoutError::Timeout)
    }
}

/// A worker of any type, with the way back to who attached it.
trait Hosted: Send {
    fn sources(&self) -> Vec<Source>;
    fn wake(&mut self) -> Progress;
    fn begin_looking(&mut self);
    fn look(&self) -> bool;
    fn is_listening(&self) -> bool;
    fn hold(&mut self);
    fn release(&mut self);
    fn is_quiet(&self) -> bool;
    fn leave(self: Box<Self>);
}

struct Guest<W> {
    worker: W,
    give_back: Sender<W>,
}

impl<W: Worker> Hosted for Guest<W> {
    fn sources(&self) -> Vec<Source> {
        self.worker.sources()
    }

    fn wake(&mut self) -> Progress {
        self.worker.wake()
    }

    fn begin_looking(&mut self) {
        self.worker.begin_looking();
    }

    fn look(&self) -> bool {
        self.worker.look()
    }

    fn is_listening(&self) -> bool {
        self.worker.is_listening()
    }

    fn hold(&mut self) {
        self.worker.hold();
    }

    fn release(&mut self) {
        self.worker.release();
    }

    fn is_quiet(&self) -> bool {
        self.worker.is_quiet()
    }

    fn leave(mut self: Box<Self>) {
        self.worker.drain();
        let Self { worker, give_back } = *self;
        // Nobody wants a worker whose attachment was dropped.
        let _unwanted = give_back.send(worker);
    }
}

/// What the thread owns.
struct Host {
    epoll: Epoll,
    queue: Receiver<Command>,
    slots: Vec<Option<Slot>>,
    /// How long to look before sleeping.
    poll: Duration,
}

struct Slot {
    worker: Box<dyn Hosted>,
    sources: Vec<Source>,
    /// It has something to do.
    due: bool,
    /// Its level sources wake it.
    listening: bool,
    /// Who waits for it to be quiet.
    quiet: Option<Sender<()>>,
}

impl Slot {
    fn tell_if_quiet(&mut self) {
        if let Some(waiting) = self.quiet.take_if(|_| self.worker.is_quiet()) {
            // Who gave up waiting releases the worker, or takes it off.
            let _gave_up = waiting.send(());
        }
    }
}

impl Host {
    fn run(mut self) {
        let mut events = vec![EpollEvent::default(); EVENTS_PER_WAIT];
        loop {
            let timeout_ms = if self.is_due() { 0 } else { -1 };
            let mut commanded = self.collect(timeout_ms, &mut events);
            self.wake_due();
            if !commanded && !self.poll.is_zero() && !self.is_due() {
                commanded = self.look_around(&mut events);
            }
            // Last, so that no event of this batch can meet a slot that has changed hands.
            if commanded && self.obey() == Wish::End {
                return;
            }
        }
    }

    /// Waits for events, and marks who has to be woken. True if there are commands.
    fn collect(&mut self, timeout_ms: i32, events: &mut [EpollEvent]) -> bool {
        let count = match self.epoll.wait(timeout_ms, events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => panic!("epoll_wait on our own epoll fails: {error}"),
        };
        let mut commanded = false;
        for event in &events[..count] {
            match event.data() {
                COMMANDS => commanded = true,
                slot => self.mark_due(slot),
            }
        }
        commanded
    }

    /// Looks for work until there has been none for a while. True if there are commands.
    fn look_around(&mut self, events: &mut [EpollEvent]) -> bool {
        let mut commanded = false;
        let mut last_found = Instant::now();
        let mut found_since_collect = 0;
        self.begin_looking();
        while !commanded && last_found.elapsed() < self.poll {
            for _ in 0..LOOKS_PER_COLLECT {
                self.slots.iter_mut().flatten().for_each(|slot| slot.due |= slot.worker.look());
                if self.is_due() {
                    break;
                }
                std::hint::spin_loop();
            }
            // Also where there always is something to find: commands and the siblings' events must not wait for ever.
            if !self.is_due() || found_since_collect >= LOOKS_PER_COLLECT {
                found_since_collect = 0;
                commanded = self.collect(0, events);
            }
            if self.is_due() {
                found_since_collect += 1;
                self.wake_due();
                self.begin_looking();
                last_found = Instant::now();
            }
        }
        // Each wants its doorbell again, and sees what came just before that.
        self.slots.iter_mut().flatten().for_each(|slot| slot.due = true);
        self.wake_due();
        commanded
    }

    fn begin_looking(&mut self) {
        self.slots.iter_mut().flatten().for_each(|slot| slot.worker.begin_looking());
    }

    fn is_due(&self) -> bool {
        self.slots.iter().flatten().any(|slot| slot.due)
    }

    fn mark_due(&mut self, slot: u64) {
        let slot = usize::try_from(slot).ok().and_then(|slot| self.slots.get_mut(slot));
        if let Some(Some(slot)) = slot {
            slot.due = true;
        }
    }

    fn wake_due(&mut self) {
        for (number, slot) in self.slots.iter_mut().enumerate() {
            let Some(slot) = slot.as_mut().filter(|slot| slot.due) else { continue };
            slot.due = slot.worker.wake() == Progress::More;
            slot.tell_if_quiet();
            let listening = slot.worker.is_listening();
            if listening != slot.listening {
                slot.listening = listening;
                listen(&self.epoll, number, slot);
            }
        }
    }

    fn obey(&mut self) -> Wish {
        // A command that is sent after the last try_recv comes with an edge of its own.
        while let Ok(command) = self.queue.try_recv() {
            match command {
                Command::Attach(worker, reply) => {
                    let _unwanted = reply.send(self.attach(worker));
                }
                Command::Detach(slot) => self.detach(slot),
                Command::Hold(slot, quiet) => self.hold(slot, quiet),
                Command::Release(slot) => self.release(slot),
                Command::Identify(reply) => {
                    // The asker waits for it.
                    let _ = reply.send(thread_id());
                }
                Command::Exit => {
                    (0..self.slots.len()).for_each(|slot| self.detach(slot));
                    return Wish::End;
                }
            }
        }
        Wish::GoOn
    }

    fn attach(&mut self, worker: Box<dyn Hosted>) -> io::Result<usize> {
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.slots.len());
        let (sources, listening) = (worker.sources(), worker.is_listening());
        for (count, source) in sources.iter().enumerate() {
            let interest = source.interest(slot, listening);
            if let Err(error) = self.epoll.ctl(ControlOperation::Add, source.fd(), interest) {
                self.unwatch(&sources[..count]);
                worker.leave();
                return Err(error);
            }
        }
        let occupied = Some(Slot { worker, sources, due: true, listening, quiet: None });
        match free {
            Some(free) => self.slots[free] = occupied,
            None => self.slots.push(occupied),
        }
        Ok(slot)
    }

    fn detach(&mut self, slot: usize) {
        if let Some(Slot { worker, sources, .. }) = self.slots[slot].take() {
            self.unwatch(&sources);
            worker.leave();
        }
    }

    fn hold(&mut self, slot: usize, quiet: Sender<()>) {
        if let Some(slot) = &mut self.slots[slot] {
            slot.worker.hold();
            slot.quiet = Some(quiet);
            slot.tell_if_quiet();
        }
    }

    fn release(&mut self, slot: usize) {
        if let Some(slot) = &mut self.slots[slot] {
            slot.quiet = None;
            slot.worker.release();
            slot.due = true;
        }
    }

    fn unwatch(&self, sources: &[Source]) {
        for source in sources {
            let gone = self.epoll.ctl(ControlOperation::Delete, source.fd(), EpollEvent::default());
            debug_assert!(gone.is_ok(), "a source was closed while its worker was attached");
        }
    }
}

/// Turns the level sources of the slot `number` on or off, as its worker said.
fn listen(epoll: &Epoll, number: usize, slot: &Slot) {
    for source in slot.sources.iter().filter(|source| !matches!(source, Source::Edge(_))) {
        let changed = epoll.ctl(ControlOperation::Modify, source.fd(), source.interest(number, slot.listening));
        changed.expect("a descriptor that is in our epoll stays open and there");
    }
}

impl Source {
    fn fd(self) -> RawFd {
        let (Self::Edge(fd) | Self::Level(fd) | Self::LevelWritable(fd)) = self;
        fd
    }

    fn interest(self, slot: usize, listening: bool) -> EpollEvent {
        let set = match self {
            Self::Edge(_) => EventSet::IN | EventSet::EDGE_TRIGGERED,
            // An error is reported whether one listens or not: so by edge, or it would wake for ever.
            Self::Level(_) | Self::LevelWritable(_) if !listening => EventSet::EDGE_TRIGGERED,
            Self::Level(_) => EventSet::IN,
            Self::LevelWritable(_) => EventSet::OUT,
        };
        EpollEvent::new(set, u64::try_from(slot).expect("64 bits fit"))
    }
}

#[derive(PartialEq, Eq)]
enum Wish {
    GoOn,
    End,
}

/// The kernel's number for the calling thread: `/proc/thread-self` leads to `PID/task/TID`.
///
/// # Errors
/// There is no /proc.
pub fn thread_id() -> io::Result<i32> {
    let link = std::fs::read_link("/proc/thread-self")?;
    let id = link.file_name().and_then(|name| name.to_str()?.parse().ok());
    id.ok_or_else(|| io::Error::other("/proc/thread-self leads to no thread"))
}

#[cfg(test)]
mod tests;
