//! The control loop. It runs on the thread `husk`, owns the [`Machine`], and is the only one to change its state. After
//! every wake-up the guest's events come first, so that no later step acts on a machine that has already ended.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use devices::MachineRequest;
use thiserror::Error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::console::{Console, Typed};
use super::{Command, EventReceiver, GuestEvent, Signals};
use crate::machine::{Machine, MachineError};
use crate::vcpu::Crash;

/// What ends the control loop against its will.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The loop cannot wait for its events.
    #[error("cannot {what}")]
    Wait {
        /// What was attempted.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// The machine did not do what it was told.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// How a machine's life ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest powered off.
    PoweredOff,
    /// The guest reset itself.
    Reset,
    /// The user or the host asked it to stop.
    Stopped,
    /// A vCPU could not go on.
    Crashed(Box<Crash>),
}

/// The loop and what it waits for.
#[derive(Debug)]
pub struct ControlLoop {
    machine: Machine,
    events: EventReceiver,
    signals: Signals,
    console: Option<Console>,
    input: Input,
    epoll: Epoll,
}

/// Where the console's next bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// epoll tells when there are some.
    Watched,
    /// The guest has no room; its reading brings the loop back.
    Full,
    /// A file that epoll does not take: always readable.
    Ready,
    /// There will be none.
    Ended,
}

/// Which descriptor woke the loop.
#[derive(Debug, Clone, Copy)]
#[repr(u64)]
enum Source {
    Guest = 0,
    Signal = 1,
    Console = 2,
    SerialRoom = 3,
}

impl ControlLoop {
    /// Prepares to run `machine`, with `console` feeding its serial port.
    ///
    /// # Errors
    /// The host gives no epoll, or does not take one of the descriptors.
    pub fn new(
        machine: Machine,
        events: EventReceiver,
        signals: Signals,
        console: Option<Console>,
    ) -> Result<Self, ControlError> {
        let epoll = Epoll::new().map_err(|source| ControlError::Wait { what: "create an epoll", source })?;
        let mut control = Self { machine, events, signals, console, input: Input::Ended, epoll };
        control.watch(control.events.wake().as_raw_fd(), Source::Guest)?;
        control.watch(control.signals.as_raw_fd(), Source::Signal)?;
        control.watch(control.machine.serial_room().as_raw_fd(), Source::SerialRoom)?;
        if let Some(console) = &control.console {
            control.input = match control.add(console.as_raw_fd(), Source::Console) {
                Ok(()) => Input::Watched,
                // A plain file never blocks, which is why epoll refuses it.
                Err(_) => Input::Ready,
            };
        }
        Ok(control)
    }

    /// Starts the machine and runs it to its end; all its threads have ended when this returns.
    ///
    /// # Errors
    /// The host fails the loop itself; the machine is stopped all the same.
    pub fn run(mut self) -> Result<(Machine, Outcome), ControlError> {
        self.machine.apply(Command::Start)?;
        let outcome = self.wait();
        self.machine.apply(Command::Stop)?;
        Ok((self.machine, outcome?))
    }

    fn wait(&mut self) -> Result<Outcome, ControlError> {
        let mut ready = [EpollEvent::default(); 4];
        loop {
            if let Some(outcome) = self.take_guest_events() {
                return Ok(outcome);
            }
            if self.input == Input::Ready && self.feed_console() {
                return Ok(Outcome::Stopped);
            }
            let count = match self.epoll.wait(-1, &mut ready) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(source) => return Err(ControlError::Wait { what: "wait for events", source }),
            };
            let woke = |source: Source| ready[..count].iter().any(|event| event.data() == source as u64);
            let (signal, typed, room) = (woke(Source::Signal), woke(Source::Console), woke(Source::SerialRoom));
            if let Some(outcome) = self.take_guest_events() {
                return Ok(outcome);
            }
            if signal || (typed && self.feed_console()) {
                return Ok(Outcome::Stopped);
            }
            if room {
                self.regain_room()?;
            }
        }
    }

    /// All events of the guest there are now; the first that ends the machine is its outcome.
    fn take_guest_events(&mut self) -> Option<Outcome> {
        // The count does not matter, and an empty one is no error here.
        let _ = self.events.wake().read();
        while let Some(event) = self.events.next() {
            match event {
                GuestEvent::Crashed(crash) => return Some(Outcome::Crashed(crash)),
                GuestEvent::Request(MachineRequest::PowerOff) => return Some(Outcome::PoweredOff),
                GuestEvent::Request(MachineRequest::Reset) => return Some(Outcome::Reset),
            }
        }
        None
    }

    /// Moves what there is from the console into the serial port; whether the user asked to quit.
    fn feed_console(&mut self) -> bool {
        let Some(console) = &mut self.console else { return false };
        loop {
            let room = self.machine.serial_input_room();
            if room == 0 {
                if self.input == Input::Watched {
                    self.input = Input::Full;
                    self.unwatch_console();
                }
                return false;
            }
            match console.read(room) {
                // All of it fits: only this thread fills the room that it was just told of.
                Typed::Bytes(bytes) => {
                    self.machine.serial_input(&bytes);
                }
                Typed::Quit => return true,
                Typed::End => {
                    if self.input == Input::Watched {
                        self.unwatch_console();
                    }
                    self.input = Input::Ended;
                    return false;
                }
            }
            if self.input == Input::Watched {
                return false;
            }
        }
    }

    /// The guest has read from its serial port.
    fn regain_room(&mut self) -> Result<(), ControlError> {
        // As above: the count does not matter.
        let _ = self.machine.serial_room().read();
        if self.input == Input::Full
            && let Some(console) = &self.console
        {
            self.watch(console.as_raw_fd(), Source::Console)?;
            self.input = Input::Watched;
        }
        Ok(())
    }

    fn unwatch_console(&self) {
        if let Some(console) = &self.console {
            // A descriptor that epoll holds can be taken out.
            let _ = self.epoll.ctl(ControlOperation::Delete, console.as_raw_fd(), EpollEvent::default());
        }
    }

    fn watch(&self, fd: RawFd, source: Source) -> Result<(), ControlError> {
        self.add(fd, source).map_err(|source| ControlError::Wait { what: "watch a descriptor", source })
    }

    fn add(&self, fd: RawFd, source: Source) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, source as u64))
    }
}
