//! The devices of a PC that kernels still expect: serial port, keyboard controller, CMOS clock, ACPI registers.
//!
//! All of them run on the thread of the vCPU that touches them, so none of them may wait.

mod console;
mod i8042;
mod pm;
mod rtc;
mod serial;

pub use console::{ConsoleCounters, ConsoleOutput, ConsoleWriter};
pub use i8042::{I8042, I8042RestoreError, I8042State, KeyboardState};
pub use pm::{AcpiPm, PowerButton};
pub use rtc::{Clock, Rtc, RtcRestoreError, RtcState, RtcTime};
pub use serial::{Serial, SerialError, SerialRestoreError, SerialState};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use crate::state::SaveState;
    use std::sync::Arc;

    /// Each prefix of a device's state is none, and each state that differs in a bit is refused or is another one, with
    /// which the device does not panic.
    fn attack<D: SaveState + BusDevice>(mut make: impl FnMut() -> D) {
        let mut used = make();
        for (offset, value) in [(0, 0x20), (1, 1), (4, 0x60), (0, 0xff), (1, 0x80), (0, 0x0b), (4, 0xd1)] {
            used.write(offset, &[value]);
        }
        let mut bytes = postcard::to_allocvec(&used.save()).unwrap();
        for len in 0..bytes.len() {
            assert!(postcard::from_bytes::<D::State>(&bytes[..len]).is_err(), "{len} of {}", bytes.len());
        }
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut heir = make();
            if let Ok(state) = postcard::from_bytes(&bytes)
                && heir.restore(state).is_ok()
            {
                for offset in 0..8 {
                    heir.read(offset, &mut [0]);
                    heir.write(offset, &[0x5a]);
                    heir.read(offset, &mut [0]);
                }
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn states_that_are_cut_short_or_have_a_bit_flipped_are_refused_or_outlived() {
        attack(|| I8042::new(Arc::new(|_| {})).unwrap());
        attack(Rtc::new);
        let (_reader, writer) = std::io::pipe().unwrap();
        let output = ConsoleOutput::new("test-console", writer.into());
        attack(|| Serial::new(output.writer()).unwrap());
    }
}
