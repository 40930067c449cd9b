//! What a serial port saves: its registers, and input that the guest has not read. Output is with the console already.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_superio::serial::{Error as UartError, Serial as Uart, SerialState as UartState};
use vmm_sys_util::eventfd::EventFd;

use super::{Events, Line, Serial};
use crate::state::SaveState;

/// Bits of the line status register: data is ready, and nothing waits to be sent.
const DATA_READY: u8 = 1 << 0;
const TRANSMITTER_EMPTY: u8 = 0b11 << 5;
/// Interrupts that can be enabled.
const ENABLE_MASK: u8 = 0x0f;
/// Interrupt identifications: none; transmitter empty, received data, or both.
const IDENTIFICATIONS: [u8; 4] = [1, 2, 4, 6];

/// What a serial port saves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    pub(crate) baud_divisor_low: u8,
    pub(crate) baud_divisor_high: u8,
    pub(crate) interrupt_enable: u8,
    pub(crate) interrupt_identification: u8,
    pub(crate) line_control: u8,
    pub(crate) line_status: u8,
    pub(crate) modem_control: u8,
    pub(crate) modem_status: u8,
    pub(crate) scratch: u8,
    pub(crate) input: Vec<u8>,
}

/// Why a serial port cannot go on from a saved state.
#[derive(Debug, Error)]
pub enum SerialRestoreError {
    /// More input than the FIFO takes.
    #[error("{0} bytes of input are more than a serial port's FIFO takes")]
    Input(usize),
    /// Registers that no guest gets to.
    #[error("no serial port comes to such registers: {0}")]
    Impossible(&'static str),
    /// No descriptor is left for its interrupt.
    #[error("cannot clone the eventfd of the serial port")]
    EventFd(#[source] std::io::Error),
}

impl SaveState for Serial {
    type State = SerialState;
    type Error = SerialRestoreError;

    fn save(&self) -> SerialState {
        let Self { uart, room: _ } = self;
        let UartState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = uart.state();
        SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            input: in_buffer,
        }
    }

    /// Raises the line again for what the guest has not answered.
    fn restore(&mut self, state: SerialState) -> Result<(), SerialRestoreError> {
        let state = state.checked()?;
        let clone = |line: &EventFd| line.try_clone().map_err(SerialRestoreError::EventFd);
        let line = Line(clone(self.interrupt_line())?);
        let events = Events(std::sync::Arc::clone(&self.room));
        self.uart =
            Uart::from_state(&state, line, events, self.uart.writer().clone()).map_err(|error| match error {
                UartError::FullFifo => SerialRestoreError::Input(state.in_buffer.len()),
                UartError::Trigger(source) | UartError::IOError(source) => SerialRestoreError::EventFd(source),
            })?;
        Ok(())
    }
}

impl SerialState {
    fn checked(self) -> Result<UartState, SerialRestoreError> {
        let Self {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            input,
        } = self;
        let ready = if input.is_empty() { 0 } else { DATA_READY };
        if line_status != TRANSMITTER_EMPTY | ready {
            return Err(SerialRestoreError::Impossible("line status"));
        }
        if interrupt_enable & !ENABLE_MASK != 0 || !IDENTIFICATIONS.contains(&interrupt_identification) {
            return Err(SerialRestoreError::Impossible("interrupts"));
        }
        Ok(UartState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: input,
        })
    }
}
