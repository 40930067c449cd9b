//! The threads that serve queues: an [`IoThread`] hosts any number of [`Worker`]s.
//!
//! The machine's owner spawns and joins the thread; devices attach and detach workers through a [`IoThreadHandle`].
//! A worker belongs to the thread between the two, so its rings and its backend need no lock.
//!
//! Architecture invariant: the thread sleeps in epoll, and nothing but an event wakes it. One that polls looks for more
//! work for a bounded time after it had some, and then sleeps like any other.

mod host;

use std::io;
use std::mem;
use std::os::fd::RawFd;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::host::{Claim, Command, Guest, Host, Occupant, Seats};

/// What a worker may do in one wake before its siblings get their turn.
pub const CHAINS_PER_WAKE_MAX: u16 = 64;

/// The loop keeps its large things on the heap.
const STACK_BYTES: usize = 256 << 10;

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
    seats: Arc<Seats>,
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
    /// The worker.
    pub worker: W,
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
        let seats = Arc::new(Seats::new(&event)?);
        let host = Host::new(queue, Arc::clone(&seats), poll);
        let life = Arc::new(Mutex::new(Life::Prepared { name: name.to_owned(), host }));
        Ok(Self { name: name.to_owned(), handle: IoThreadHandle { commands, event, seats, life } })
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
    /// Puts `worker` on the thread, which takes it as soon as it can and wakes it once. It is not waited for: another worker
    /// there may be held up by what backs it.
    ///
    /// # Errors
    /// [`AttachError`], if the thread cannot be created or has ended, or if its epoll refuses a source.
    pub fn attach<W: Worker>(&self, worker: W) -> Result<Attachment<W>, AttachError<W>> {
        // What is sent while it runs comes before its end, which takes it off again.
        let mut life = self.life();
        let (sources, listening) = (worker.sources(), worker.is_listening());
        let seat = life.start().and_then(|()| match *life {
            Life::Running(_) => self.seats.take(&sources, listening),
            Life::Prepared { .. } | Life::Ended => Err(io::Error::other("the I/O thread has ended")),
        });
        match seat {
            Ok(slot) => {
                let (give_back, back) = mpsc::channel();
                let worker = Box::new(Guest { worker, give_back });
                self.send(Command::Attach(slot, Occupant { worker, sources, listening }));
                Ok(Attachment { thread: self.clone(), slot, back })
            }
            Err(error) => Err(AttachError { error, worker }),
        }
    }

    fn start(&self) -> io::Result<()> {
        self.life().start()
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

impl Life {
    /// Lets a prepared thread run.
    fn start(&mut self) -> io::Result<()> {
        *self = match mem::replace(self, Self::Ended) {
            Self::Prepared { name, host } => {
                Self::Running(Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || host.run())?)
            }
            other => other,
        };
        Ok(())
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
        self.thread.send(Command::Detach(self.slot, Arc::default()));
        self.back()
    }

    /// As [`Self::detach`], if the thread comes to it before the deadline.
    ///
    /// # Errors
    /// The attachment, as it was: another worker holds the thread up.
    pub fn detach_by(self, deadline: Instant) -> Result<W, Self> {
        let claim = Arc::<Claim>::default();
        self.thread.send(Command::Detach(self.slot, Arc::clone(&claim)));
        let left = deadline.saturating_duration_since(Instant::now());
        match self.back.recv_timeout(left) {
            Ok(worker) => Ok(worker),
            Err(RecvTimeoutError::Timeout) if claim.take() => Err(self),
            Err(_) => Ok(self.back()),
        }
    }

    fn back(&self) -> W {
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
