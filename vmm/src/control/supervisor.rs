//! The service manager that supervises this process, if one does, and what it is told (sd_notify(3)): that the process
//! serves, what it does, that it ends, and, for a watchdog, that the control loop goes round.
//!
//! Architecture invariant: the control loop's thread alone tells it anything, so that a loop which hangs is silent, and it
//! never waits for it.

use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// When a message is sent again for which there was no room.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// The way to the service manager.
#[derive(Debug)]
pub struct Supervisor {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Watchdog>,
    owed: Owed,
    retry_at: Option<Instant>,
    /// It did not hear the last message: that is said once.
    is_deaf: bool,
}

/// A watchdog that wants to hear of the control loop.
#[derive(Debug)]
struct Watchdog {
    period: Duration,
    due: Instant,
}

/// What it has not been told yet. A status that is overtaken by another is not missed.
#[derive(Debug, Default)]
struct Owed {
    ready: Ready,
    stopping: bool,
    status: Option<&'static str>,
}

/// Whether it knows that the process serves: it is told once.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Ready {
    #[default]
    NotYet,
    Owed,
    Told,
}

impl Supervisor {
    /// One that listens at `address`, and ends this process when it has not heard of its control loop for `watchdog`.
    ///
    /// # Errors
    /// The host gives no socket.
    pub fn new(address: SocketAddr, watchdog: Option<Duration>) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let due = Instant::now();
        let watchdog = watchdog.map(|limit| Watchdog { period: limit / 2, due });
        Ok(Self { socket, address, watchdog, owed: Owed::default(), retry_at: None, is_deaf: false })
    }

    /// The process serves from now on. Said again, it is not told again.
    pub(super) fn tell_ready(&mut self, status: &'static str) {
        if self.owed.ready == Ready::NotYet {
            self.owed.ready = Ready::Owed;
        }
        self.tell_status(status);
    }

    /// The process is about to end.
    pub(super) fn tell_stopping(&mut self) {
        self.owed.stopping = true;
        self.send();
    }

    /// What the machine does now, for people.
    pub(super) fn tell_status(&mut self, status: &'static str) {
        self.owed.status = Some(status);
        self.send();
    }

    /// When the loop has to go round next.
    pub(super) fn due(&self) -> Option<Instant> {
        // What is tried again holds the watchdog's message too: one that is overdue must not make the loop spin.
        self.retry_at.or(self.watchdog.as_ref().map(|watchdog| watchdog.due))
    }

    /// The loop has gone round.
    pub(super) fn went_round(&mut self) {
        let now = Instant::now();
        if self.due().is_some_and(|due| due <= now) {
            self.send();
        }
    }

    /// Sends all that is owed and due in one datagram.
    fn send(&mut self) {
        let now = Instant::now();
        let mut text = String::new();
        if self.owed.ready == Ready::Owed {
            text.push_str("READY=1\n");
        }
        if self.owed.stopping {
            text.push_str("STOPPING=1\n");
        }
        if let Some(status) = self.owed.status {
            text.extend(["STATUS=", status, "\n"]);
        }
        if self.watchdog.as_ref().is_some_and(|watchdog| watchdog.due <= now) {
            text.push_str("WATCHDOG=1\n");
        }
        match self.socket.send_to_addr(text.as_bytes(), &self.address) {
            Err(error) if is_passing(&error) => self.retry_at = Some(now + RETRY_AFTER),
            sent => {
                if let Err(error) = &sent
                    && !self.is_deaf
                {
                    log::warn!("the service manager does not hear this process: {error}");
                }
                self.is_deaf = sent.is_err();
                self.settle(now);
            }
        }
    }

    /// Nothing is owed, whether it was heard or nobody is there to hear it.
    fn settle(&mut self, now: Instant) {
        let ready = if self.owed.ready == Ready::NotYet { Ready::NotYet } else { Ready::Told };
        self.owed = Owed { ready, stopping: false, status: None };
        self.retry_at = None;
        if let Some(watchdog) = &mut self.watchdog
            && watchdog.due <= now
        {
            watchdog.due = now + watchdog.period;
        }
    }
}

/// Whether the same message may find room later.
fn is_passing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}
