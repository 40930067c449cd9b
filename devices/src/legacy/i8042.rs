//! The keyboard controller, as far as a kernel that reboots through it looks (Linux `reboot=k`).
//!
//! No keyboard is attached: the controller answers its own commands, and what is sent to a keyboard is lost.

use crate::bus::BusDevice;
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
/// Pulses line 0 of the output port, which a PC wires to the processor's reset.
const PULSE_RESET: u8 = 0xfe;

const SELF_TEST_PASSED: u8 = 0x55;
const TEST_PASSED: u8 = 0x00;
const TEST_CLOCK_STUCK_LOW: u8 = 0x01;

/// Reset line high, A20 on.
const OUTPUT_PORT: u8 = 0x03;
const OUTPUT_PORT_NOT_RESET: u8 = 1 << 0;
const CONTROL_KEYBOARD_OFF: u8 = 1 << 4;
const CONTROL_AUX_OFF: u8 = 1 << 5;

/// A keyboard controller at ports 0x60 and 0x64, to be inserted at `0x60..0x65`.
pub struct I8042 {
    control: u8,
    output_port: u8,
    output: Option<u8>,
    /// The command whose parameter the next write to the data port is.
    awaiting: Option<u8>,
    last_was_command: bool,
    requests: RequestSink,
}

impl I8042 {
    /// A controller that asks `requests` for a reset.
    pub fn new(requests: RequestSink) -> Self {
        Self {
            control: CONTROL_KEYBOARD_OFF | CONTROL_AUX_OFF,
            output_port: OUTPUT_PORT,
            output: None,
            awaiting: None,
            last_was_command: false,
            requests,
        }
    }

    /// The input buffer is never full: what is written is taken at once. Linux waits for that before it resets.
    fn status(&self) -> u8 {
        let output = if self.output.is_some() { STATUS_OUTPUT_FULL } else { 0 };
        let command = if self.last_was_command { STATUS_COMMAND } else { 0 };
        STATUS_SYSTEM | STATUS_UNLOCKED | output | command
    }

    fn command(&mut self, command: u8) {
        self.last_was_command = true;
        self.awaiting = None;
        match command {
            READ_CONTROL => self.output = Some(self.control),
            WRITE_CONTROL | WRITE_OUTPUT_PORT => self.awaiting = Some(command),
            SELF_TEST => self.output = Some(SELF_TEST_PASSED),
            TEST_KEYBOARD => self.output = Some(TEST_PASSED),
            TEST_AUX => self.output = Some(TEST_CLOCK_STUCK_LOW),
            DISABLE_AUX => self.control |= CONTROL_AUX_OFF,
            DISABLE_KEYBOARD => self.control |= CONTROL_KEYBOARD_OFF,
            ENABLE_KEYBOARD => self.control &= !CONTROL_KEYBOARD_OFF,
            READ_OUTPUT_PORT => self.output = Some(self.output_port),
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
            _ => {}
        }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let [byte] = data else { return };
        match offset {
            DATA => *byte = self.output.take().unwrap_or(0),
            COMMAND => *byte = self.status(),
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let [byte] = *data else { return };
        match offset {
            DATA => self.data(byte),
            COMMAND => self.command(byte),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, channel};

    fn controller() -> (I8042, Receiver<MachineRequest>) {
        let (sender, receiver) = channel();
        (I8042::new(Arc::new(move |request| sender.send(request).unwrap())), receiver)
    }

    fn read(controller: &mut I8042, offset: u64) -> u8 {
        let mut data = [0xff];
        controller.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn the_reset_pulse_asks_for_a_reset() {
        let (mut controller, requests) = controller();
        // Linux: waits for an empty input buffer, then pulses.
        assert_eq!(read(&mut controller, COMMAND) & 0x02, 0);
        assert!(requests.try_recv().is_err());
        controller.write(COMMAND, &[0xfe]);
        assert_eq!(requests.try_recv(), Ok(MachineRequest::Reset));
    }

    #[test]
    fn pulling_the_reset_line_through_the_output_port_asks_for_a_reset() {
        let (mut controller, requests) = controller();
        controller.write(COMMAND, &[WRITE_OUTPUT_PORT]);
        controller.write(DATA, &[0x03]);
        assert!(requests.try_recv().is_err());
        controller.write(COMMAND, &[WRITE_OUTPUT_PORT]);
        controller.write(DATA, &[0x02]);
        assert_eq!(requests.try_recv(), Ok(MachineRequest::Reset));
    }

    #[test]
    fn the_controller_answers_its_own_commands() {
        let (mut controller, _requests) = controller();
        controller.write(COMMAND, &[SELF_TEST]);
        assert_eq!(read(&mut controller, COMMAND) & STATUS_OUTPUT_FULL, STATUS_OUTPUT_FULL);
        assert_eq!(read(&mut controller, DATA), SELF_TEST_PASSED);
        assert_eq!(read(&mut controller, COMMAND) & STATUS_OUTPUT_FULL, 0);
        controller.write(COMMAND, &[WRITE_CONTROL]);
        controller.write(DATA, &[0x47]);
        controller.write(COMMAND, &[READ_CONTROL]);
        assert_eq!(read(&mut controller, DATA), 0x47);
    }

    #[test]
    fn data_without_a_command_goes_to_no_keyboard() {
        let (mut controller, requests) = controller();
        controller.write(DATA, &[0xfe]);
        assert_eq!(read(&mut controller, COMMAND) & STATUS_OUTPUT_FULL, 0);
        assert!(requests.try_recv().is_err());
    }
}
