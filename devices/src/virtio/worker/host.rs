//! The loop of an I/O thread: its epoll, its workers, and the commands that come to it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::{Progress, Source, Worker, thread_id};
use crate::bus::lock;

const EVENTS_PER_WAIT: usize = 32;

/// Looks between two questions to the epoll, which cost a system call each.
const LOOKS_PER_COLLECT: u32 = 16;

/// The epoll data of the thread's own eventfd. A worker's is its slot and the number of the descriptor.
const COMMANDS: u64 = u64::MAX;

/// What a thread is asked to do.
pub(super) enum Command {
    /// The seat is the worker's, and its sources are watched.
    Attach(usize, Occupant),
    /// Unless who asked has claimed it back.
    Detach(usize, Arc<Claim>),
    /// The sender is told when nothing is in flight.
    Hold(usize, Sender<()>),
    Release(usize),
    /// The sender is told the thread's number.
    Identify(Sender<io::Result<i32>>),
    Exit,
}

/// What one of two may do, who comes first: the thread, or who asked it.
#[derive(Debug, Default)]
pub(super) struct Claim(AtomicBool);

impl Claim {
    /// Whether the caller is the one.
    pub(super) fn take(&self) -> bool {
        // Nothing else is told by it: Relaxed will do.
        !self.0.swap(true, Ordering::Relaxed)
    }
}

/// A worker of any type, with the way back to who attached it.
pub(super) trait Hosted: Send {
    fn wake(&mut self) -> Progress;
    fn begin_looking(&mut self);
    fn look(&self) -> bool;
    fn is_listening(&self) -> bool;
    fn hold(&mut self);
    fn release(&mut self);
    fn is_quiet(&self) -> bool;
    fn leave(self: Box<Self>);
}

/// A worker, and who gets it back.
pub(super) struct Guest<W> {
    pub(super) worker: W,
    pub(super) give_back: Sender<W>,
}

impl<W: Worker> Hosted for Guest<W> {
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

/// What a thread watches, and for whom: shared with those who attach, so that nobody waits for a thread to sit down on it.
pub(super) struct Seats {
    epoll: Epoll,
    /// By number. Locked when workers come and go, and never for longer than a look.
    taken: Mutex<Vec<bool>>,
}

/// A worker that is about to sit down.
pub(super) struct Occupant {
    pub(super) worker: Box<dyn Hosted>,
    pub(super) sources: Vec<Source>,
    pub(super) listening: bool,
}

impl Seats {
    /// None is taken, and commands are announced by `event`.
    ///
    /// # Errors
    /// Those of its epoll.
    pub(super) fn new(event: &EventFd) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let interest = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, COMMANDS);
        epoll.ctl(ControlOperation::Add, event.as_raw_fd(), interest)?;
        Ok(Self { epoll, taken: Mutex::default() })
    }

    /// Takes a seat for a worker with these sources, and watches them. What fires before the worker sits there is not
    /// missed: it is woken once then.
    ///
    /// # Errors
    /// The epoll refuses a source; then nothing was taken.
    pub(super) fn take(&self, sources: &[Source], listening: bool) -> io::Result<usize> {
        let mut taken = lock(&self.taken);
        let seat = taken.iter().position(|taken| !taken).unwrap_or(taken.len());
        for (count, source) in sources.iter().enumerate() {
            if let Err(error) = self.epoll.ctl(ControlOperation::Add, source.fd(), source.interest(seat, listening)) {
                self.unwatch(&sources[..count]);
                return Err(error);
            }
        }
        match taken.get_mut(seat) {
            Some(taken) => *taken = true,
            None => taken.push(true),
        }
        Ok(seat)
    }

    /// The worker there is gone.
    fn free(&self, seat: usize, sources: &[Source]) {
        self.unwatch(sources);
        lock(&self.taken)[seat] = false;
    }

    fn unwatch(&self, sources: &[Source]) {
        for source in sources {
            let gone = self.epoll.ctl(ControlOperation::Delete, source.fd(), EpollEvent::default());
            debug_assert!(gone.is_ok(), "a source was closed while its worker was attached");
        }
    }

    /// Turns the level sources of the slot `number` on or off, as its worker said.
    fn listen(&self, number: usize, slot: &Slot) {
        for source in slot.sources.iter().filter(|source| !matches!(source, Source::Edge(_))) {
            let interest = source.interest(number, slot.listening);
            let changed = self.epoll.ctl(ControlOperation::Modify, source.fd(), interest);
            changed.expect("a descriptor that is in our epoll stays open and there");
        }
    }
}

/// What the thread owns.
pub(super) struct Host {
    seats: Arc<Seats>,
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
    /// Without workers.
    pub(super) fn new(queue: Receiver<Command>, seats: Arc<Seats>, poll: Duration) -> Self {
        Self { seats, queue, slots: Vec::new(), poll }
    }

    /// Serves until it is asked to end.
    pub(super) fn run(mut self) {
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
        let count = match self.seats.epoll.wait(timeout_ms, events) {
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
                self.seats.listen(number, slot);
            }
        }
    }

    fn obey(&mut self) -> Wish {
        // A command that is sent after the last try_recv comes with an edge of its own.
        while let Ok(command) = self.queue.try_recv() {
            match command {
                Command::Attach(seat, occupant) => self.seat(seat, occupant),
                Command::Detach(slot, claim) => {
                    if claim.take() {
                        self.detach(slot);
                    }
                }
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

    fn seat(&mut self, seat: usize, Occupant { worker, sources, listening }: Occupant) {
        if self.slots.len() <= seat {
            self.slots.resize_with(seat + 1, || None);
        }
        self.slots[seat] = Some(Slot { worker, sources, due: true, listening, quiet: None });
    }

    fn detach(&mut self, slot: usize) {
        if let Some(Slot { worker, sources, .. }) = self.slots[slot].take() {
            self.seats.free(slot, &sources);
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
