//! The PS/2 keyboard controller with a keyboard: a kernel that reboots through it (Linux `reboot=k`) finds the reset line,
//! and the host types Ctrl-Alt-Del. Nothing is at the auxiliary port.
//!
//! vCPU threads run the registers; the control loop presses the keys.

mod keyboard;
mod state;

use std::io;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::keyboard::{Codes, Keyboard};
pub use self::state::{I8042RestoreError, I8042State, KeyboardState};
use crate::bus::BusDevice;
use crate::fault::FaultLog;
use crate::machine::{MachineRequest, RequestSink};

/// Offsets from port 0x60.
const DATA: u64 = 0;
const COMMAND: u64 = 4;

/// Status register: a byte waits at port 0x60.
const STATUS_OUTPUT_FULL: u8 = 1 << 0;
/// The self-test passed.
const STATUS_SYSTEM: u8 = 1 << 2;
/// The last write went to the command port.
const STATUS_COMMAND: u8 = 1 << 3;
/// The keyboard is not locked.
const STATUS_UNLOCKED: u8 = 1 << 4;

const READ_CONTROL: u8 = 0x20;
const WRITE_CONTROL: u8 = 0x60;
const DISABLE_AUX: u8 = 0xa7;
const TEST_AUX: u8 = 0xa9;
const SELF_TEST: u8 = 0xaa;
const TEST_KEYBOARD: u8 = 0xab;
const DISABLE_KEYBOARD: u8 = 0xad;
const ENABLE_KEYBOARD: u8 = 0xae;
const READ_OUTPUT_PORT: u8 = 0xd0;
const WRITE_OUTPUT_PORT: u8 = 0xd1;
/// Parameters that are not for the keyboard: its output buffer, the auxiliary port's, and the auxiliary device.
const WRITE_KEYBOARD_OUTPUT: u8 = 0xd2;
const WRITE_AUX_OUTPUT: u8 = 0xd3;
const WRITE_AUX: u8 = 0xd4;
/// Pulses line 0 of the output port, which a PC wires to the processor's reset.
const PULSE_RESET: u8 = 0xfe;

const SELF_TEST_PASSED: u8 = 0x55;
const TEST_PASSED: u8 = 0x00;
const TEST_CLOCK_STUCK_LOW: u8 = 0x01;

/// Reset line high, A20 on.
const OUTPUT_PORT: u8 = 0x03;
const OUTPUT_PORT_NOT_RESET: u8 = 1 << 0;
/// Control byte: a byte that comes to port 0x60 interrupts.
const CONTROL_INTERRUPT: u8 = 1 << 0;
const CONTROL_KEYBOARD_OFF: u8 = 1 << 4;
const CONTROL_AUX_OFF: u8 = 1 << 5;
/// What the keyboard sends is translated to scan code set 1.
const CONTROL_TRANSLATE: u8 = 1 << 6;

/// A keyboard controller at ports 0x60 and 0x64, to be inserted at `0x60..0x65`.
pub struct I8042 {
    control: u8,
    output_port: u8,
    /// The controller's own answer, which comes before what the keyboard sends.
    answer: Option<u8>,
    keyboard: Keyboard,
    /// The byte that waits has interrupted.
    announced: bool,
    /// The command whose parameter the next write to the data port is.
    awaiting: Option<u8>,
    last_was_command: bool,
    line: EventFd,
    log: FaultLog,
    requests: RequestSink,
}

impl I8042 {
    /// A controller that asks `requests` for a reset.
    ///
    /// # Errors
    /// That of the eventfd's creation.
    pub fn new(requests: RequestSink) -> io::Result<Self> {
        Ok(Self {
            control: CONTROL_KEYBOARD_OFF | CONTROL_AUX_OFF,
            output_port: OUTPUT_PORT,
            answer: None,
            keyboard: Keyboard::new(),
            announced: false,
            awaiting: None,
            last_was_command: false,
            line: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            log: FaultLog::new("keyboard"),
            requests,
        })
    }

    /// The keyboard's interrupt line, to be bound to its GSI: a rising edge for each byte.
    pub fn interrupt_line(&self) -> &EventFd {
        &self.line
    }

    /// Presses Ctrl, Alt and Delete, and lets them go. A guest that has not enabled its keyboard, or does not read it,
    /// never hears of it; the log does.
    pub fn press_ctrl_alt_del(&mut self) {
        if self.keyboard_is_off() || !self.keyboard.type_ctrl_alt_del(self.codes()) {
            self.log.report(format_args!("Ctrl-Alt-Del is lost: the guest does not use its keyboard"));
        }
        self.announce();
    }

    fn keyboard_is_off(&self) -> bool {
        self.control & CONTROL_KEYBOARD_OFF != 0
    }

    fn codes(&self) -> Codes {
        if self.control & CONTROL_TRANSLATE == 0 { Codes::Plain } else { Codes::Translated }
    }

    fn output_is_full(&self) -> bool {
        self.answer.is_some() || (!self.keyboard_is_off() && self.keyboard.has_output())
    }

    /// The input buffer is never full: what is written is taken at once. Linux waits for that before it resets.
    fn status(&self) -> u8 {
        let output = if self.output_is_full() { STATUS_OUTPUT_FULL } else { 0 };
        let command = if self.last_was_command { STATUS_COMMAND } else { 0 };
        STATUS_SYSTEM | STATUS_UNLOCKED | output | command
    }

    fn command(&mut self, command: u8) {
        self.last_was_command = true;
        self.awaiting = None;
        match command {
            READ_CONTROL => self.answer = Some(self.control),
            WRITE_CONTROL | WRITE_OUTPUT_PORT | WRITE_KEYBOARD_OUTPUT | WRITE_AUX_OUTPUT | WRITE_AUX => {
                self.awaiting = Some(command);
            }
            SELF_TEST => self.answer = Some(SELF_TEST_PASSED),
            TEST_KEYBOARD => self.answer = Some(TEST_PASSED),
            TEST_AUX => self.answer = Some(TEST_CLOCK_STUCK_LOW),
            DISABLE_AUX => self.control |= CONTROL_AUX_OFF,
            DISABLE_KEYBOARD => self.control |= CONTROL_KEYBOARD_OFF,
            ENABLE_KEYBOARD => self.control &= !CONTROL_KEYBOARD_OFF,
            READ_OUTPUT_PORT => self.answer = Some(self.output_port),
            PULSE_RESET => (self.requests)(MachineRequest::Reset),
            _ => {}
        }
    }

    fn data(&mut self, value: u8) {
        self.last_was_command = false;
        match self.awaiting.take() {
            Some(WRITE_CONTROL) => self.control = value,
            Some(WRITE_OUTPUT_PORT) => {
                self.output_port = value;
                if value & OUTPUT_PORT_NOT_RESET == 0 {
                    (self.requests)(MachineRequest::Reset);
                }
            }
            // The second comes back marked as the keyboard's: a driver sees at once that there is no auxiliary port.
            Some(WRITE_KEYBOARD_OUTPUT | WRITE_AUX_OUTPUT) => self.answer = Some(value),
            Some(_) => {}
            None => {
                // What is sent to the keyboard lets its clock run again.
                self.control &= !CONTROL_KEYBOARD_OFF;
                self.keyboard.receive(value, self.codes());
            }
        }
    }

    /// Takes the byte at port 0x60; what waits behind it interrupts anew.
    fn take_output(&mut self) -> u8 {
        self.announced = false;
        match self.answer.take() {
            Some(answer) => answer,
            None if self.keyboard_is_off() => 0,
            None => self.keyboard.send().unwrap_or(0),
        }
    }

    /// Interrupts for a byte that has come to wait, once.
    fn announce(&mut self) {
        let waits = self.output_is_full() && self.control & CONTROL_INTERRUPT != 0;
        if waits && !self.announced {
            // Fails only when 2^64 - 2 edges are undelivered, and then one is pending.
            let _pending = self.line.write(1);
        }
        self.announced = waits;
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let [byte] = data else { return };
        match offset {
            DATA => {
                *byte = self.take_output();
                self.announce();
            }
            COMMAND => *byte = self.status(),
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let [byte] = *data else { return };
        match offset {
            DATA => self.data(byte),
            COMMAND => self.command(byte),
            _ => return,
        }
        self.announce();
    }
}

#[cfg(test)]
mod tests;
