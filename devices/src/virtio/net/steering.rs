//! How many pairs of queues take part (virtio 1.3 §5.1.6.5.6), for the control queue, which changes it, and the receive
//! queues, which go by it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Link;

/// Whether a pair's receive queue gets frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seat {
    /// It does not, and has nothing of the driver's.
    Out,
    /// It must not any more. It has not said yet that it has given back what it had.
    Leaving,
    In,
}

/// The seats of a device's pairs.
#[derive(Debug)]
pub(super) struct Steering {
    seats: Vec<AtomicU8>,
    active: AtomicUsize,
    /// Signalled when a receive queue has left.
    left: EventFd,
    link: Arc<Link>,
}

impl Steering {
    /// One pair takes part, of so many, whose receive queues `link` wakes.
    pub(super) fn new(pairs: usize, link: Arc<Link>) -> io::Result<Self> {
        let seats = (0..pairs).map(|_| AtomicU8::new(Seat::Out.number())).collect();
        let left = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let steering = Self { seats, active: AtomicUsize::new(0), left, link };
        steering.activate(1);
        steering.settle();
        Ok(steering)
    }

    /// How many pairs take part: the first ones.
    pub(super) fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// Asked at every wake of the pair's receive queue.
    pub(super) fn seat(&self, pair: usize) -> Seat {
        Seat::of(self.seats[pair].load(Ordering::Relaxed))
    }

    /// Has the first `active` pairs take part. Those that did and no longer do are told to leave.
    pub(super) fn activate(&self, active: usize) {
        self.active.store(active, Ordering::Relaxed);
        for (pair, seat) in self.seats.iter().enumerate() {
            let change = |now| match (Seat::of(now), pair < active) {
                (Seat::Out | Seat::Leaving, true) => Some(Seat::In.number()),
                (Seat::In, false) => Some(Seat::Leaving.number()),
                _ => None,
            };
            if seat.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok() {
                self.link.wake(pair);
            }
        }
    }

    /// The receive queue of `pair` has given back all that it had, and the driver can see it.
    pub(super) fn leave(&self, pair: usize) {
        let (leaving, out) = (Seat::Leaving.number(), Seat::Out.number());
        // Release: pairs with `have_left`, so that what the queue gave back is before the answer to the command.
        if self.seats[pair].compare_exchange(leaving, out, Ordering::Release, Ordering::Relaxed).is_ok() {
            // Fails only when 2^64 - 2 signals are unseen, and then one is pending.
            let _pending = self.left.write(1);
        }
    }

    /// Whether nobody is about to leave.
    pub(super) fn have_left(&self) -> bool {
        // Acquire: pairs with `leave`.
        self.seats.iter().all(|seat| Seat::of(seat.load(Ordering::Acquire)) != Seat::Leaving)
    }

    /// Signalled when [`Self::have_left`] may have come true.
    pub(super) fn left_fd(&self) -> RawFd {
        self.left.as_raw_fd()
    }

    /// No queue is served any more, so who was to leave has left.
    pub(super) fn settle(&self) {
        (0..self.seats.len()).for_each(|pair| self.leave(pair));
    }
}

impl Seat {
    fn number(self) -> u8 {
        match self {
            Self::Out => 0,
            Self::Leaving => 1,
            Self::In => 2,
        }
    }

    fn of(number: u8) -> Self {
        match number {
            0 => Self::Out,
            1 => Self::Leaving,
            _ => Self::In,
        }
    }
}
