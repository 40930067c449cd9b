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
pub struct ControlLoop<'a> {
    machine: Machine,
    events: EventReceiver,
    signals: &'a Signals,
    console: Option<&'a mut Console>,
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

impl<'a> ControlLoop<'a> {
    /// Prepares to run `machine`, with `console` feeding its serial port.
    ///
    /// # Errors
    /// The host gives no epoll, or does not take one of the descriptors.
    pub fn new(
        machine: Machine,
        events: EventReceiver,
        signals: &'a Signals,
        console: Option<&'a mut Console>,
    ) -> Result<Self, ControlError> {
        let epoll = Epoll::new().map_err(|source| ControlError::Wait { what: "create an epoll", source })?;
        let mut control = Self { machine, events, signals, console, input: Input::Ended, epoll };
        control.watch(control.events.wake().as_raw_fd(), Source::Guest)?;
        control.watch(control.signals.as_raw_fd(), Source::Signal)?;
        control.watch(control.machine.serial_room().as_raw_fd(), Source::SerialRoom)?;
        if let Some(console) = &control.console {
            control.input = Self::watch_console(&control.epoll, console);
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
            if let Some(outcome) = self.take_guest_event() {
                return Ok(outcome);
            }
            if self.input == Input::Ready && self.feed_console() {
                return Ok(Outcome::Stopped);
            }
            let count = match self.epoll.wait(-1, &mut ready) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(source) => {
                    return Err(ControlError::Wait { what: "wait for events", source });
                }
            };
            let woke = |source: Source| ready[..count].iter().any(|event| event.data() == source as u64);
            let (signal, typed, room) = (woke(Source::Signal), woke(Source::Console), woke(Source::SerialRoom));
            if let Some(outcome) = self.take_guest_event() {
                return Ok(outcome);
            }
            if signal || (typed && self.feed_console()) {
                return Ok(Outcome::Stopped);
            }
            if room {
                self.regain_room();
            }
        }
    }

    /// The guest's oldest event, if there is one; each there is so far ends the machine.
    fn take_guest_event(&mut self) -> Option<Outcome> {
        // The count does not matter, and an empty one is no error here.
        let _ = self.events.wake().read();
        self.events.next().map(|event| match event {
            GuestEvent::Crashed(crash) => Outcome::Crashed(crash),
            GuestEvent::Request(MachineRequest::PowerOff) => Outcome::PoweredOff,
            GuestEvent::Request(MachineRequest::Reset) => Outcome::Reset,
        })
    }

    /// Moves what there is from the console into the serial port; whether the user asked to quit.
    fn feed_console(&mut self) -> bool {
        loop {
            let Some(console) = &mut self.console else { return false };
            match console.read() {
                Typed::Some => {}
                Typed::Quit => return true,
                Typed::End => {
                    self.stop_watching(Input::Ended);
                    return false;
                }
            }
            if !self.move_pending() {
                self.stop_watching(Input::Full);
            }
            if self.input != Input::Ready {
                return false;
            }
        }
    }

    /// Gives the guest what it has room for. False if the console should wait until it has read that.
    fn move_pending(&mut self) -> bool {
        let Some(console) = &mut self.console else { return true };
        let taken = self.machine.serial_input(console.pending());
        console.taken(taken);
        console.wants_more()
    }

    /// The guest has read from its serial port.
    fn regain_room(&mut self) {
        // As above: the count does not matter.
        let _ = self.machine.serial_room().read();
        if self.move_pending()
            && self.input == Input::Full
            && let Some(console) = &self.console
        {
            self.input = Self::watch_console(&self.epoll, console);
        }
    }

    fn stop_watching(&mut self, next: Input) {
        if self.input == Input::Watched {
            self.unwatch_console();
        }
        self.input = next;
    }

    /// Where a console's bytes will come from.
    fn watch_console(epoll: &Epoll, console: &Console) -> Input {
        let interest = EpollEvent::new(EventSet::IN, Source::Console as u64);
        match epoll.ctl(ControlOperation::Add, console.as_raw_fd(), interest) {
            Ok(()) => Input::Watched,
            // A plain file never blocks, which is why epoll refuses it.
            Err(_) => Input::Ready,
        }
    }

    fn unwatch_console(&self) {
        if let Some(console) = &self.console {
            // A descriptor that epoll holds can be taken out.
            let _ = self.epoll.ctl(ControlOperation::Delete, console.as_raw_fd(), EpollEvent::default());
        }
    }

    fn watch(&self, fd: RawFd, source: Source) -> Result<(), ControlError> {
        self.epoll
            .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, source as u64))
            .map_err(|source| ControlError::Wait { what: "watch a descriptor", source })
    }
}
