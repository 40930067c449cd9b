//! The fixed registers of hardware-reduced ACPI, and the power button.
//!
//! ACPI 6.5 §4.8.3.7 (sleep control and status registers) and §4.8.3.6 (reset register).

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::machine::{MachineRequest, RequestSink};

const SLEEP_CONTROL: u64 = 0;
const SLEEP_STATUS: u64 = 1;
const RESET: u64 = 2;

const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;
const SLEEP_ENABLE: u8 = 1 << 5;

/// Three byte registers at consecutive ports: sleep control, sleep status, reset.
pub struct AcpiPm {
    requests: RequestSink,
}

impl AcpiPm {
    /// How many ports the registers take.
    pub const PORTS: u64 = 3;
    /// The offset of the sleep control register.
    pub const SLEEP_CONTROL: u64 = SLEEP_CONTROL;
    /// The offset of the sleep status register.
    pub const SLEEP_STATUS: u64 = SLEEP_STATUS;
    /// The offset of the reset register.
    pub const RESET: u64 = RESET;
    /// `SLP_TYP` of the soft-off state, for the DSDT's `\_S5` package.
    pub const SLEEP_TYPE_S5: u8 = 5;
    /// What the FADT says to write into the reset register.
    pub const RESET_VALUE: u8 = 1;

    /// Registers that ask `requests` for what the guest writes into them.
    pub fn new(requests: RequestSink) -> Self {
        Self { requests }
    }
}

impl BusDevice for AcpiPm {
    /// All registers read 0: the control registers are write-only, and no wake event is ever pending.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let [value] = *data else { return };
        match offset {
            SLEEP_CONTROL => {
                let sleep_type = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
                if value & SLEEP_ENABLE != 0 && sleep_type == Self::SLEEP_TYPE_S5 {
                    (self.requests)(MachineRequest::PowerOff);
                }
            }
            RESET if value == Self::RESET_VALUE => (self.requests)(MachineRequest::Reset),
            _ => {}
        }
    }
}

/// The power button: the Generic Event Device's interrupt (ACPI 6.5 §5.6.9), which the DSDT turns into a notification
/// of the button.
#[derive(Clone)]
pub struct PowerButton {
    line: Arc<EventFd>,
}

impl PowerButton {
    /// A button that nobody presses yet.
    ///
    /// # Errors
    /// That of the eventfd's creation.
    pub fn new() -> io::Result<Self> {
        Ok(Self { line: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?) })
    }

    /// The interrupt line, to be bound to the event device's GSI.
    pub fn interrupt_line(&self) -> &EventFd {
        &self.line
    }

    /// Presses the button: the guest's operating system decides what follows.
    pub fn press(&self) {
        // Fails only when 2^64 - 2 edges are undelivered, and then one is pending.
        let _pending = self.line.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    fn pm() -> (AcpiPm, Receiver<MachineRequest>) {
        let (sender, receiver) = channel();
        (AcpiPm::new(Arc::new(move |request| sender.send(request).unwrap())), receiver)
    }

    #[test]
    fn only_s5_with_the_enable_bit_powers_off() {
        for value in 0..=u8::MAX {
            let (mut pm, requests) = pm();
            pm.write(SLEEP_CONTROL, &[value]);
            let expected = value & 0x20 != 0 && value & 0x1c == 5 << 2;
            assert_eq!(requests.try_recv().is_ok(), expected, "{value:#x}");
        }
    }

    #[test]
    fn only_the_reset_value_resets() {
        let (mut pm, requests) = pm();
        for value in [0, 2, 0xff] {
            pm.write(RESET, &[value]);
        }
        pm.write(RESET, &[1, 0]);
        pm.write(SLEEP_STATUS, &[0x34]);
        assert!(requests.try_recv().is_err());
        pm.write(RESET, &[AcpiPm::RESET_VALUE]);
        assert_eq!(requests.try_recv(), Ok(MachineRequest::Reset));
    }

    #[test]
    fn no_wake_event_is_ever_pending() {
        let (mut pm, _requests) = pm();
        let mut data = [0xff];
        pm.read(SLEEP_STATUS, &mut data);
        assert_eq!(data, [0]);
    }

    #[test]
    fn a_pressed_button_raises_its_line() {
        let button = PowerButton::new().unwrap();
        assert!(button.interrupt_line().read().is_err());
        button.press();
        assert_eq!(button.interrupt_line().read().unwrap(), 1);
    }
}
